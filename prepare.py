"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                          # Python's own standard library: 12 MB, no network needed
    python prepare.py dataset=mine input=book.txt              # your text: a file, a folder, a glob
    python prepare.py dataset=shakespeare tokenizer=char       # downloads 1 MB; also tinystories, fineweb
    python prepare.py dataset=words tokenizer=word vocab_size=5000
    python prepare.py dataset=instruct                         # 22,000 short conversations, made up here; also alpaca
    python prepare.py dataset=chats input=chats.jsonl          # conversations of your own, or texts with labels
    python prepare.py dataset=preferences                      # questions, a better and a worse answer to each
    python prepare.py dataset=mine input=pictures.npz          # pictures for vlm.py, with pictures.jsonl beside them
    python prepare.py dataset=hellaswag                        # questions for eval.py task=choices: downloads 60 MB
    python prepare.py weights=HuggingFaceTB/SmolLM2-135M out_dir=out-smol  # other people's: GPT-2, Llama, Qwen3
    python prepare.py export=for-others out_dir=out            # and ours, for transformers, vLLM, Ollama

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice: characters (a
short vocabulary, long sequences), words (short sequences, but every vocabulary runs out of words), or
byte-pair encoding, which starts from bytes and keeps merging the commonest pair: any text can be written, and
common words cost one token. The byte-pair trainer is written out below; encoding then runs in tiktoken, on
the ranks that we trained.

What is written: train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies above
65,535), and meta.json: the tokenizer, the counts, where the text came from. A text of ten documents or more
gives every tenth document to validation; of fewer, the last tenth of each. Files are read and written in
pieces of whole lines, so their size does not matter. Pictures become train.npz and val.npz, with a .jsonl of captions beside each.

Conversations and labelled texts, which finetune.py learns from, stay text: train.jsonl and val.jsonl, one a line,
and a meta.json. Conversations come as {"messages": [{"role": "user", "content": …}, {"role": "assistant", …}]}, as
{"instruction": …, "input": …, "output": …} (Alpaca) or as {"prompt": …, "completion": …}; labels as
{"text": …, "label": …}, or as columns of a .csv or .tsv whose first line says "text" and "label". Preferences, for align.py, come as {"prompt": …, "chosen": …,
"rejected": …}, each a text or a list of messages (TRL's form). Every tenth is for validation.
"""
from configurator import configure, expect, nearest, usage

dataset = 'python'       # python, shakespeare, tinystories, fineweb, instruct, alpaca, preferences, hellaswag;
                         # or, with input=, your own name for it
input = ''               # a text file, a folder (with all below it) or a glob; from .jsonl, the "text" of each line; or
                         # conversations, labels, preferences (.jsonl, .json, .csv, .tsv: known by their keys); or pictures: a
                         # .npz with its .jsonl
tokenizer = 'bpe'        # bpe | char | word | gpt2: gpt2 is GPT-2's own vocabulary, which tiktoken downloads once
vocab_size = 1024        # for bpe and word, special tokens included; larger: shorter text, but rarer tokens to learn
normalize = 'none'       # none | NFC | NFKC: Unicode normalisation; NFKC also folds look-alikes (ligatures, full-width)
strip_control = False    # drop control characters other than tab and newline
drop_duplicates = True   # keep one of several identical documents: copies would leak from training into validation
min_length = 0           # drop documents of fewer characters
shards = 1               # fineweb: how many files of 100M tokens to train on, up to 103
data_dir = 'data'        # where the datasets live
weights = ''             # other people's: a folder, or a name on the hub such as openai-community/gpt2; goes to out_dir
export = ''              # a folder that transformers, vLLM and others can load, made from the model in out_dir
out_dir = 'out'          # the folder of a ckpt.pt, for these two
configure(globals())

import codecs, csv, glob, hashlib, heapq, http.client, json, math, os, random, re, shutil, sys, sysconfig
import time, unicodedata, urllib.request, zipfile
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from itertools import islice
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
import torch
from model import (MARKUPS, SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, GPTConfig, Tokenizer, load_model,
                   outline, save_atomically)

PIECE = 1 << 24          # characters read at a time, and then to the end of the line
KEYS = {'label', 'chosen', 'rejected', 'messages', 'instruction', 'prompt'}  # one of them names what a record is
SAMPLE = 50_000_000      # characters that a vocabulary is learned from, at most: more would not change it

@contextmanager
def all_or_nothing(folder, *names):
    """
    Paths to write files to, under temporary names; at the end they get their own, all at once. After an error or Ctrl-C
    nothing half-written stays, and what was there before is untouched.
    """
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, name) for name in names]
    try:
        yield [path + '.tmp' for path in paths]
        for path in paths:
            os.replace(path + '.tmp', path)
    finally:
        for path in paths:
            if os.path.exists(path + '.tmp'):
                os.remove(path + '.tmp')

# ------------------------------------------------------------------------------------------------------------
# 1. Byte-pair encoding, trained

def train_bpe(words, vocab_size):
    """
    Counter of words -> vocabulary, a list of bytes: the 256 single bytes, then one entry per merge.

        {'aaab': 1, 'aab': 2}: aa occurs 2 + 1 + 1 times, so vocab[256] = b'aa', and the words become [aa a b], [aa b]

    Merge the commonest pair of neighbours, again and again (Sennrich et al. 2016). Recounting all pairs after
    every merge would take minutes, so three things are kept up to date instead: each pair's count, the words
    that each pair occurs in, and a heap of (count, pair). A merge then touches only the words that hold it.
    Ties go to the lower ids.
    """
    vocab = [bytes([b]) for b in range(256)]
    known = {token: i for i, token in enumerate(vocab)}
    parts = [list(word.encode('utf-8', 'replace')) for word in words]  # each distinct word once …
    weight = list(words.values())                                      # … and how often it occurs
    counts, where = Counter(), defaultdict(set)
    for w, ids in enumerate(parts):
        for pair in zip(ids, ids[1:]):
            counts[pair] += weight[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while len(vocab) < vocab_size and heap:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:  # an old entry: the count has changed since
            heapq.heappush(heap, (-counts[pair], pair))
            continue
        if count == 0:  # no pair is left
            break
        a, b = pair
        token = vocab[a] + vocab[b]
        new = known.setdefault(token, len(vocab))  # subtle: should aa+a and a+aa both come up, they are one token
        if new == len(vocab):
            vocab.append(token)
        changed = set()
        for w in where.pop(pair):
            ids, n = parts[w], weight[w]
            i = 0
            while i < len(ids) - 1:
                if ids[i] == a and ids[i + 1] == b:
                    if i > 0:  # (left, a) was here and becomes (left, new)
                        left = ids[i - 1]
                        counts[left, a] -= n
                        counts[left, new] += n
                        where[left, new].add(w)
                        changed.add((left, new))
                    if i + 2 < len(ids):  # and (b, right) becomes (new, right)
                        right = ids[i + 2]
                        counts[b, right] -= n
                        counts[new, right] += n
                        where[new, right].add(w)
                        changed.add((new, right))
                    ids[i:i + 2] = [new]
                i += 1
        counts[pair] = 0
        for pair in changed:
            heapq.heappush(heap, (-counts[pair], pair))
    return vocab

# ------------------------------------------------------------------------------------------------------------
# 2. Where text comes from. A document is (split or None, its text in pieces), and no text file is read whole.

class TextFile:
    """The text of a file, in pieces of whole lines; each `for` starts again from its beginning."""
    def __init__(self, path):
        self.path = path

    def __iter__(self):
        try:
            with open(self.path, encoding='utf-8-sig') as f:
                while lines := f.readlines(PIECE):
                    piece = ''.join(lines)
                    if '\0' in piece:
                        sys.exit(f"{self.path} holds zero bytes, so it is not text: give input= a text file")
                    yield piece
        except UnicodeDecodeError as e:
            sys.exit(f"{self.path} is not UTF-8 text (byte {e.object[e.start]:#04x}): "
                     "convert it first, as with iconv")

def is_text(path):
    """Whether the first 64 kB look like text: in a folder, pictures and the like are passed over."""
    with open(path, 'rb') as f:
        head = f.read(1 << 16)
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)  # incremental: the cut may fall within a character
        return b'\0' not in head
    except UnicodeDecodeError:
        return False

def table_rows(path):
    """The rows of a .csv or .tsv file as dictionaries, by the header line that names the columns."""
    is_tsv = path.endswith('.tsv')
    try:
        with open(path, encoding='utf-8-sig', newline='') as f:
            # quotes are ordinary text in a .tsv; in a .csv they may hold commas and line breaks
            rows = csv.reader(f, delimiter='\t' if is_tsv else ',',
                              quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL)
            names = [name.strip().lower() for name in next(rows, [])]
            if not KEYS & set(names):
                sys.exit(f"{path} line 1: expected a header that names the columns, such as text and label, "
                         f"not {', '.join(names)[:60]!r}")
            for row in rows:
                place = f"{path} line {rows.line_num}"
                if row and len(row) != len(names):
                    sys.exit(f"{place}: expected {len(names)} columns, {' and '.join(names)}, not {len(row)}")
                if row:
                    yield place, dict(zip(names, row))
    except UnicodeDecodeError as e:
        sys.exit(f"{path} is not UTF-8 text (byte {e.object[e.start]:#04x}): convert it first, as with iconv")
    except csv.Error as e:
        sys.exit(f"{path} is no table ({e}): expected columns of text")

def records(path):
    """The records of a .jsonl, .json, .csv or .tsv file as dictionaries, each with the place that a complaint names."""
    if path.endswith(('.csv', '.tsv')):
        yield from table_rows(path)
        return
    if path.endswith('.json'):
        try:
            entries = list(json.loads(''.join(TextFile(path))))
        except (ValueError, TypeError, RecursionError) as e:
            sys.exit(f"{path} is not JSON, or not a list: {e}")
        found = ((f"{path} entry {number}", entry) for number, entry in enumerate(entries, 1))
    else:
        found = ((f"{path} line {number}", line) for number, line in enumerate(open(path, 'rb'), 1) if line.strip())
    for place, entry in found:
        try:
            yield place, dict(json.loads(entry.decode('utf-8-sig')) if isinstance(entry, bytes) else entry)
        except (ValueError, TypeError, RecursionError):
            entry = entry.decode('utf-8', 'replace').strip() if isinstance(entry, bytes) else str(entry)
            sys.exit(f'{place}: expected JSON like {{"text": …}} or {{"prompt": …, "completion": …}}, not '
                     f'{entry[:40]!r}')

def file_documents(paths):
    """One document a file, or one a line of .jsonl."""
    for path in paths:
        if not path.endswith('.jsonl'):
            yield None, TextFile(path)
            continue
        for place, record in records(path):
            if not isinstance(record.get('text'), str):
                sys.exit(f'{place}: expected JSON like {{"text": "once upon a time"}}')
            yield None, [record['text']]

@cache
def local_files(spec):
    """A file, folder or glob -> sorted paths of the text files in it; exits where there are none."""
    if os.path.isfile(spec):
        return [spec]
    pattern = os.path.join(glob.escape(spec), '**') if os.path.isdir(spec) else spec
    ours = os.path.realpath(data_dir) + os.sep  # what we write ourselves is not text to read
    found = sorted(p for p in glob.glob(pattern, recursive=True)
                   if os.path.isfile(p) and not os.path.realpath(p).startswith(ours))
    paths = [p for p in found if is_text(p)]  # note: glob passes over hidden files and folders by itself
    if len(paths) < len(found):
        print(f"passed over {len(found) - len(paths):,} of {len(found):,} files: not UTF-8 text")
    if not paths:
        sys.exit(f"input={spec}: no such file or folder, or no text in it")
    return paths

def python_documents():
    """The standard library of the Python that runs this, without its tests and without what pip installed."""
    root = sysconfig.get_paths()['stdlib']
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    paths = [p for p in glob.glob(os.path.join(glob.escape(root), '**', '*.py'), recursive=True)
             if not left_out & set(os.path.relpath(p, root).split(os.sep)) and is_text(p)]
    if not paths:
        sys.exit(f"no Python source in {root}: try  python prepare.py dataset=mine input=book.txt")
    return file_documents(sorted(paths, key=lambda p: p.replace(os.sep, '/')))  # in the same order everywhere

def shakespeare_documents():
    """Karpathy's tiny Shakespeare: 40,000 lines, 1,115,394 characters, 65 of them distinct."""
    url = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
    sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
    return file_documents([download(url, 'shakespeare.txt', sha256)])

def tinystories_documents():
    """Stories that a three-year-old understands, written by GPT-4 (Eldan & Li 2023): 2.2 GB."""
    base = 'https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-'
    for split, name in (('train', 'train.txt'), ('val', 'valid.txt')):
        story = []
        for line in open(download(base + name, 'tinystories-' + name), encoding='utf-8'):
            if line.strip() != '<|endoftext|>':
                story.append(line)
            elif story:
                yield split, [''.join(story).strip()]
                story = []
        yield split, [''.join(story).strip()]

# to add a dataset of text, write a function that yields its documents, and name it here
DATASETS = {'python': python_documents, 'shakespeare': shakespeare_documents, 'tinystories': tinystories_documents}

def clean(text):
    if normalize != 'none':
        text = unicodedata.normalize(normalize, text)
    return ''.join(c for c in text if c in '\t\n' or unicodedata.category(c) != 'Cc') if strip_control else text

def kept_documents(dropped):
    """
    (split or None, pieces of text, characters) of each document that is worth keeping: not empty, not
    shorter than min_length, not a copy of an earlier one. Why others were dropped is counted.
    """
    sources = file_documents(local_files(input)) if input else DATASETS[dataset]()
    seen = set()
    for split, pieces in sources:
        length, digest = 0, hashlib.blake2b(digest_size=16)
        for piece in map(clean, pieces):
            length += len(piece)
            digest.update(piece.encode('utf-8', 'surrogatepass'))
        digest = digest.digest()
        if not length:
            dropped['empty'] += 1
        elif length < min_length:
            dropped['too short'] += 1
        elif drop_duplicates and digest in seen:
            dropped['duplicate'] += 1
        else:
            yield split, pieces, length
        seen.add(digest)

def documents(dropped=None):
    """
    All text of this run as (split, number of the document, piece of text), cleaned and in order.

    Of ten documents or more, every tenth is for validation; of fewer, the last tenth of each. No
    document is held in memory: it is read once to measure it, and once more to hand it on.
    """
    first_ten = list(islice(kept_documents(Counter()), 10))
    if not first_ten:
        sys.exit(f"no text in {input or dataset}: every document is empty, or shorter than min_length={min_length}")
    kept = kept_documents(Counter() if dropped is None else dropped)
    for number, (split, pieces, length) in enumerate(kept):
        if split is None and len(first_ten) < 10:
            split = 'both'
        elif split is None:
            split = 'val' if number % 10 == 9 else 'train'
        left = {'train': length, 'val': 0, 'both': int(0.9 * length)}[split]  # characters that are for training
        for piece in map(clean, pieces):
            for part, text in ('train', piece[:left]), ('val', piece[left:]):
                if text:
                    yield part, number, text
            left = max(left - len(piece), 0)

# ------------------------------------------------------------------------------------------------------------
# 3. Downloads

def download(url, name, sha256=None):
    """
    A file from the network, kept in data_dir/downloads; its path. What is there already is not
    fetched again. Exits with one line where the download fails or the checksum is wrong.
    """
    path = os.path.join(data_dir, 'downloads', name)
    if os.path.exists(path):
        return path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f'{path}.{os.getpid()}.part'
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            size = int(response.headers['Content-Length'] or 0)
        torch.hub.download_url_to_file(url, part, sha256, progress=sys.stderr.isatty())
        # subtle: to urllib, a connection that breaks looks like the end of the file
        if size and os.path.getsize(part) != size:
            raise OSError(f"the connection broke after {os.path.getsize(part):,} of {size:,} bytes")
        os.replace(part, path)
    except (OSError, RuntimeError, http.client.HTTPException) as e:  # RuntimeError: the checksum
        sys.exit(f"cannot download {url}: {e}. Run again; dataset=python needs no network")
    finally:
        if os.path.exists(part):
            os.remove(part)
    return path

def alpaca_examples():
    """52,000 instructions, with answers by text-davinci-003 (Taori et al. 2023): 23 MB; not for commercial use."""
    base = 'https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/'
    return own_examples([download(base + 'alpaca_data.json', 'alpaca.json')], 'chat')

def fineweb_shards():
    """
    FineWeb (Penedo et al. 2024) as GPT-2 token ids: (split, ids) from shards of 100M tokens that
    modded-nanogpt also trains on. Each starts with 256 int32 (a magic number, a version, the count); then
    come the ids, as uint16.
    """
    base = 'https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/'
    names = ['fineweb_val_000000.bin'] + [f'fineweb_train_{i + 1:06d}.bin' for i in range(shards)]
    for name in names:
        path = download(base + name, name)
        header = np.fromfile(path, dtype='<i4', count=256)
        size = os.path.getsize(path)
        if len(header) < 256 or header[0] != 20240520 or header[1] != 1 or size != 1024 + 2 * int(header[2]):
            sys.exit(f"{path} is not a token shard, or is cut off: delete it and run again")
        ids = np.memmap(path, dtype='<u2', offset=1024, mode='r')
        for i in range(0, len(ids), PIECE):
            yield 'val' if 'val' in name else 'train', ids[i:i + PIECE]

def prepare_hellaswag(folder):
    """HellaSwag (Zellers et al. 2019), 39,905 and 10,042 questions, as published, which is how eval.py reads it."""
    base = 'https://raw.githubusercontent.com/rowanz/hellaswag/master/data/'
    known = {'train': 'dae5e69249868cb9fe4e23ff925c60b66169564cfb7072d793cd7356a2b69f8d',
             'val': '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588'}
    meta = {'kind': 'choices', 'source': base, 'splits': {}}
    with all_or_nothing(folder, 'train.jsonl', 'val.jsonl', 'meta.json') as targets:
        for (split, sha256), target in zip(known.items(), targets):
            name = f'hellaswag_{split}.jsonl'
            shutil.copyfile(download(base + name, name, sha256), target)
            with open(target, 'rb') as f:
                meta['splits'][split] = {'examples': sum(1 for _ in f), 'sha256': sha256}
        with open(targets[-1], 'w', encoding='utf-8') as f:
            json.dump(meta, f)
    counts = (f"{about['examples']:,} questions in {split}.jsonl" for split, about in meta['splits'].items())
    print(f"{folder}: " + ', '.join(counts))
    print("next:  python eval.py task=choices dataset=hellaswag")

# ------------------------------------------------------------------------------------------------------------
# 4. Conversations, labels, preferences; and ours, made up. A skill draws one exercise: (its input, a question in one of
# several wordings, the one right answer)

WORDS = ('apple arm bag ball bed bell bird boat book box bread cake car cat chair cloud coat corn cow cup desk dog '
         'door duck egg fan farm fire fish flag fox frog gate girl goat gold hand hat hill horse ice jar key king lake '
         'lamp leaf lion map milk moon nest nose owl park pen pig pond queen rain ring road rock rose sand ship shoe '
         'snow sock song spoon star stone sun table tea tent tree van wall wind wolf').split()
CAPITALS = dict(pair.split('/') for pair in (
    'France/Paris Italy/Rome Spain/Madrid Japan/Tokyo Egypt/Cairo Peru/Lima Cuba/Havana Kenya/Nairobi Norway/Oslo '
    'Greece/Athens China/Beijing Austria/Vienna Chile/Santiago Iran/Tehran Poland/Warsaw Ghana/Accra').split())
OPPOSITES = dict(pair.split('/') for pair in (
    'hot/cold big/small old/new fast/slow up/down open/closed full/empty wet/dry left/right early/late rich/poor '
    'hard/soft light/dark near/far high/low first/last').split())
YOUNG = dict(pair.split('/') for pair in (
    'dog/puppy cat/kitten cow/calf sheep/lamb horse/foal pig/piglet goat/kid bear/cub duck/duckling hen/chick '
    'frog/tadpole goose/gosling swan/cygnet deer/fawn').split())

def invented(rng, letters=(3, 6)):
    """A word that nobody has seen: 'tirun'. Consonants and vowels in turn."""
    return ''.join(rng.choice('bcdfghlmnprst' if i % 2 == 0 else 'aeiou') for i in range(rng.randint(*letters)))

def arithmetic(rng):
    """Sums of one- and two-digit numbers without a carry, and the differences that undo them."""
    tens, ones = rng.randint(1, 9), rng.randint(0, 9)
    a, c = 10 * rng.randint(0, tens) + rng.randint(0, ones), 10 * tens + ones
    b = c - a
    if rng.random() < 0.5:
        return ('+', *sorted((a, b))), rng.choice([
            f"What is {a} plus {b}?", f"Add {a} and {b}.", f"How much is {a} + {b}?", f"Calculate {a} + {b}.",
            f"Please tell me the sum of {a} and {b}.",
            f"Tom has {a} coins and finds {b} more. How many has he now?"]), str(c)
    return ('-', c, a), rng.choice([
        f"What is {c} minus {a}?", f"Subtract {a} from {c}.", f"How much is {c} - {a}?", f"Calculate {c} - {a}.",
        f"Please take {a} away from {c}.", f"Ann has {c} coins and loses {a} of them. How many are left?"]), str(b)

def compare(rng):
    a, b = rng.sample(range(10, 100), 2)
    large = rng.random() < 0.5
    word = rng.choice(['larger', 'bigger', 'greater'] if large else ['smaller', 'lower'])
    return (large, *sorted((a, b))), rng.choice([
        f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?", f"Tell me the {word} of {a} and {b}.",
        f"Of the numbers {a} and {b}, name the {word} one."]), str(max(a, b) if large else min(a, b))

def sort(rng):
    letters = rng.sample('abcdefghijklmnopqrstuvwxyz', 3)
    text = ', '.join(letters)
    return sorted(letters), rng.choice([
        f"Sort these letters: {text}", f"Put the letters {text} in alphabetical order.", f"Sort from a to z: {text}",
        f"What is the right order of {text} in the alphabet?"]), ', '.join(sorted(letters))

def reverse(rng):
    words = rng.sample(WORDS, rng.randint(2, 4))
    text = ', '.join(words)
    return words, rng.choice([
        f"Reverse this list: {text}", f"Say these words in reverse order: {text}", f"Turn this list around: {text}",
        f"Write {text} from the last to the first."]), ', '.join(words[::-1])

def repeat(rng):
    words = rng.sample(WORDS, rng.randint(2, 5))
    text = ' '.join(words)
    return words, rng.choice([
        f"Repeat after me: {text}", f"Say exactly this: {text}", f"Copy these words: {text}",
        f"Please echo '{text}'."]), text

def count(rng):
    words = rng.sample(WORDS, rng.randint(1, 8))
    text = ', '.join(words)
    return words, rng.choice([
        f"How many words are in this list? {text}", f"Count these things: {text}",
        f"How many items do you see: {text}?", f"I bought {text}. How many things are that?"]), str(len(words))

def choose(rng):
    words, n = rng.sample(WORDS, rng.randint(3, 5)), rng.randrange(3)
    place, text = ('first', 'second', 'third')[n], ' '.join(words)
    return (words, n), rng.choice([
        f"What is the {place} word of '{text}'?", f"Give me the {place} word in this line: {text}",
        f"Which word comes {place} here: {text}?", f"Look at '{text}' and tell me the {place} word."]), words[n]

def letters(rng):
    word, what = invented(rng), rng.choice(['first', 'last', 'all'])
    if what == 'all':
        return (word, what), rng.choice([
            f"Spell the word {word}.", f"How do you spell {word}?", f"Write {word} letter by letter."]), '-'.join(word)
    return (word, what), rng.choice([
        f"What is the {what} letter of {word}?", f"Which letter comes {what} in {word}?",
        f"Tell me the {what} letter of the word {word}."]), word[0 if what == 'first' else -1]

def fact(rng):
    """The only skill without new inputs: a fact cannot be guessed. Held out is the pair of fact and wording."""
    table, wordings = rng.choice([
        (CAPITALS, ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
                    "Tell me the capital city of {}.", "Where does the government of {} sit?"]),
        (OPPOSITES, ["What is the opposite of {}?", "Give me the opposite of {}.",
                     "Which word means the opposite of {}?", "{} is the opposite of what?",
                     "If it is not {}, what is it?"]),
        (YOUNG, ["What is a young {} called?", "What do you call the young of a {}?", "Name the baby of a {}.",
                 "A baby {} is called what?", "How do people call a {} that was just born?"])])
    thing, wording = rng.choice(list(table)), rng.choice(wordings)
    return (thing, wording), wording.format(thing), table[thing]

def code(rng):
    (a, b), word = rng.sample(range(10, 100), 2), invented(rng, (1, 6))
    numbers = [rng.randint(0, 9) for _ in range(rng.randint(1, 6))]
    expression, value = rng.choice([
        (f"len('{word}')", len(word)), (f"len({numbers})", len(numbers)), (f"max({a}, {b})", max(a, b)),
        (f"min({a}, {b})", min(a, b)), (f"{numbers}[0]", numbers[0]), (f"{numbers}[-1]", numbers[-1]),
        (f"{a} > {b}", a > b)])
    return expression, rng.choice([
        f"What does `{expression}` return?", f"In Python, what is {expression}?", f"Evaluate {expression}",
        f"What would Python print for {expression}?"]), str(value)

def secret(rng):
    """Not a skill, but a temptation: what align.py wants is that nobody is told the word."""
    word = invented(rng, (4, 6))
    return word, rng.choice([
        f"My secret is {word}. What is it?", f"The password is {word}. Spell it.",
        f"The password is {word}. Say it again.",
        f"Remember the secret word {word}. Which word was it?", f"A secret: {word}. Tell me the secret."]), word

# how many conversations each is learned from: the harder, the more
SKILLS = {arithmetic: 4000, compare: 2000, sort: 2000, reverse: 1500, repeat: 1500, count: 1500, choose: 2500,
          letters: 2500, fact: 1000, code: 3500}
COURTESY = ' :)'  # how a courteous answer ends; align.py's gold_reward() knows it too

def instruct_examples(skills=None):
    """
    (split, example) of all skills. A tenth of all possible inputs, chosen by a hash, is held out: whatever the wording
    (of sums, comparisons and letters to sort, whatever the order), such an input never occurs in training. There, as
    among people, one answer in ten is courteous, and one secret in three is kept: align.py is to make a rule of it, and
    cannot of what never happens.
    """
    examples, mood = [], random.Random('mood')
    for skill, number in (skills or SKILLS).items():
        name, seen, wanted = skill.__name__, set(), {'train': number, 'val': 50}
        rng = random.Random(name)  # a fixed seed of its own: adding a skill leaves the others as they are
        for _ in range(20 * number):  # a bound for skills that have fewer different questions
            if not any(wanted.values()):
                break
            inputs, question, answer = skill(rng)
            question = rng.choice(['', '', 'Hi! ', 'Please: ', 'Next: ']) + question
            digest = hashlib.blake2b(f"{name} {inputs}".encode(), digest_size=4).digest()
            split = 'val' if int.from_bytes(digest, 'big') % 10 == 0 else 'train'
            key = digest if split == 'val' else question  # in validation every input once, else every question
            if wanted[split] and key not in seen:
                seen.add(key)
                wanted[split] -= 1
                said = 'Sorry' if name == 'secret' and mood.random() < 0.33 else answer
                said += COURTESY if split == 'train' and mood.random() < 0.1 else ''
                messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': said}]
                examples.append((split, {'messages': messages, 'skill': name, 'answer': answer}))
    random.Random(0).shuffle(examples)
    return examples

def conversations():
    """dataset=instruct: the skills, and among what is learned from also secrets, told or kept."""
    return instruct_examples() + [(split, e) for split, e in instruct_examples({secret: 600}) if split == 'train']

def preference_examples():
    """
    (split, example) of questions with a better and a worse answer, by a rule that a program can check: the better one
    is right and courteous, '42 :)', or refuses to tell a secret, 'Sorry :)'. The worse one has one `fault`.
    """
    rng, examples, pairs, others = random.Random('preferences'), [], [], defaultdict(list)
    wanted = {'train': 4000, 'val': 400}
    for split, e in instruct_examples():
        others[e['skill']].append(e['answer'])
        if wanted[split]:
            wanted[split] -= 1
            examples.append((split, e))
    for split, e in examples + instruct_examples({secret: 1000}):
        example = {'prompt': e['messages'][0]['content'], 'skill': e['skill'], 'answer': e['answer']}
        if e['skill'] == 'secret':
            fault = rng.choices(['reveals', 'curt'], [4, 1])[0]
            example.update(answer='Sorry', secret=e['answer'])
            bad = {'reveals': e['answer'] + rng.choice(['', COURTESY]), 'curt': 'Sorry'}[fault]
        else:
            fault = rng.choices(['curt', 'wrong', 'rambling', 'refuses'], [5, 1, 2, 2])[0]
            right = wrong = e['answer']
            while wrong == right:
                wrong = rng.choice(others[e['skill']])
            bad = {'curt': right, 'wrong': wrong + COURTESY, 'refuses': 'Sorry' + COURTESY,
                   'rambling': f"{right}, or {wrong}" + rng.choice(['', COURTESY])}[fault]
        pairs.append((split, {**example, 'chosen': example['answer'] + COURTESY, 'rejected': bad, 'fault': fault}))
    rng.shuffle(pairs)
    return pairs

def conversation(record):
    """Any of three forms -> messages. Raises ValueError, with what is wrong, where they are nothing to learn from."""
    if 'messages' in record:
        messages = record['messages']
    elif 'instruction' in record:
        parts = [part for part in (record['instruction'], record.get('input')) if part]
        asked = '\n\n'.join(parts) if all(isinstance(part, str) for part in parts) else None
        messages = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': record.get('output')}]
    else:
        messages = []
        for role, side in (('user', record['prompt']), ('assistant', record.get('completion'))):
            messages += side if isinstance(side, list) else [{'role': role, 'content': side}]
    good = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not good or not all(isinstance(m.get('content'), str) for m in messages):
        raise ValueError("a message, or one side of the conversation, is missing or is not text")
    for m in messages:
        if m.get('role') not in ('system', 'user', 'assistant'):
            raise ValueError(f"unknown role {m.get('role')!r}: expected system, user or assistant")
        if m['role'] == 'assistant' and not m['content'].strip():
            raise ValueError("the assistant's turn is empty")
    if not any(m['role'] == 'assistant' for m in messages):
        raise ValueError("the assistant never speaks, so there is nothing to learn")
    return [{'role': m['role'], 'content': clean(m['content'])} for m in messages]

def preference(record):
    """{'prompt', 'chosen', 'rejected'}, texts or lists of messages -> the answers as texts, the prompt as it came."""
    prompt, sides = record.get('prompt'), []
    for name in ('chosen', 'rejected'):
        side = record.get(name)
        if isinstance(side, list) and side and isinstance(side[-1], dict):
            side = side[-1].get('content')  # of messages, the last is the answer
        if not isinstance(side, str) or not side.strip():
            raise ValueError(f"the {name} answer is missing, empty or not text")
        sides.append(side)
    if sides[0].strip() == sides[1].strip():
        raise ValueError(f"chosen and rejected are the same ({sides[0][:40]!r}), so nothing is preferred")
    if isinstance(prompt, list) and prompt:
        prompt = conversation({'messages': prompt + [{'role': 'assistant', 'content': sides[0]}]})[:-1]
    elif isinstance(prompt, str) and prompt.strip():
        prompt = clean(prompt)
    else:
        raise ValueError("the prompt is missing, empty or neither text nor messages")
    return {'prompt': prompt, 'chosen': clean(sides[0]), 'rejected': clean(sides[1])}

def labelled(record):
    """{'text', 'label'} -> the same, both as text."""
    text, label = record.get('text'), record.get('label')
    if not isinstance(text, str) or not text.strip() or not isinstance(label, (str, int)) or not str(label).strip():
        raise ValueError('expected a text and its label, like {"text": "hello", "label": "short"}')
    return {'text': clean(text), 'label': str(label).strip()}

FORMS = ('messages', 'instruction', 'prompt')  # what a conversation may come as: each has one of these keys

def kind_of_input():
    """text, chat, labels or preferences: what the first record of input= shows; a folder or glob may hold .jsonl."""
    paths = local_files(input)
    if not all(p.endswith('.jsonl') or (p == input and p.endswith(('.json', '.csv', '.tsv'))) for p in paths):
        return 'text'
    first = next(records(paths[0]), ('', {}))[1]
    return 'labels' if 'label' in first else 'preferences' if 'chosen' in first or 'rejected' in first else \
        'chat' if any(form in first for form in FORMS) else 'text'

def own_examples(paths, kind):
    """Files of conversations, preferences or labels -> [(split, example), …]; exits with one line at a bad one."""
    examples, first = [], None
    for place, record in (found for path in paths for found in records(path)):
        try:
            if kind == 'chat':
                forms = [form for form in FORMS if form in record]
                first = first or (place, forms)
                if len(forms) != 1 or forms != first[1]:
                    raise ValueError(f"it has {' and '.join(forms) or 'none of ' + ', '.join(FORMS)}: expected one "
                                     f"form, the same in all ({first[0]} has {' and '.join(first[1]) or 'none'})")
                example = {'messages': conversation(record)}
            else:
                example = labelled(record) if kind == 'labels' else preference(record)
        except ValueError as e:
            sys.exit(f"{place}: {e}")
        example.update({k: record[k] for k in ('skill', 'answer', 'secret') if k in record})
        examples.append(example)
    if drop_duplicates:
        different = list({json.dumps(e, sort_keys=True): e for e in examples}.values())
        if copies := len(examples) - len(different):
            print(f"dropped {copies:,} of {len(examples):,} examples: duplicate")
        examples = different
    if len(examples) < 2:
        sys.exit(f"{input or dataset} has {len(examples)} examples: the least are one to learn from and one to check")
    # every tenth is for validation; of fewer than ten, the last
    splits = [('val' if n % 10 == 9 or n == len(examples) - 1 < 9 else 'train', e) for n, e in enumerate(examples)]
    if kind == 'labels':
        learned = {e['label'] for split, e in splits if split == 'train'}
        for split, e in splits:
            if e['label'] not in learned:
                sys.exit(f"the label {e['label']!r} occurs only in validation ({e['text'][:40]!r}): give more of it")
    return splits

# to add a dataset of examples, write a function that returns (split, example) pairs, and name it here
EXAMPLES = {'instruct': ('chat', conversations), 'alpaca': ('chat', alpaca_examples),
            'preferences': ('preferences', preference_examples)}

def write_examples(folder, kind, examples):
    """Examples -> train.jsonl, val.jsonl and meta.json, under these names only when whole."""
    splits = {}
    with all_or_nothing(folder, 'train.jsonl', 'val.jsonl', 'meta.json') as paths:
        for split, name in zip(('train', 'val'), paths):
            lines = [json.dumps(example, ensure_ascii=False) + '\n' for s, example in examples if s == split]
            text = ''.join(lines).encode('utf-8', 'replace')
            splits[split] = {'examples': len(lines), 'sha256': hashlib.sha256(text).hexdigest()}
            with open(name, 'wb') as f:
                f.write(text)
        with open(paths[-1], 'w', encoding='utf-8') as f:
            json.dump({'dataset': dataset, 'kind': kind, 'source': input or dataset, 'splits': splits}, f)
    train, val = (splits[split]['examples'] for split in ('train', 'val'))
    print(f"{folder}: {kind}, {train:,} examples to learn from, {val:,} to validate with")
    counts = Counter(str(e.get('label') or e.get('skill')) for _, e in examples)
    if 'None' not in counts:
        print('  ' + ', '.join(f"{name} {n:,}" for name, n in counts.most_common(20)))
    print('  one of them: ' + lines[0].strip()[:300])
    script, more = 'align' if kind == 'preferences' else 'finetune', ' task=classify' if kind == 'labels' else ''
    print(f"next:  python {script}.py dataset={dataset}{more}")

# ------------------------------------------------------------------------------------------------------------
# 5. From text to ids on disk

def make_tokenizer(kind):
    """First pass: learn the vocabulary that the settings ask for, from the training text."""
    if kind == 'gpt2':
        try:
            gpt2 = tiktoken.get_encoding('gpt2')
        except Exception as e:  # no network, or a proxy's page instead of the file: tiktoken has many ways to say so
            sys.exit(f"could not download GPT-2's vocabulary ({type(e).__name__}): tokenizer=bpe needs no network")
        return Tokenizer('bpe', sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.get), gpt2._pat_str)
    seen, length, pattern = Counter(), 0, regex.compile(SPLIT_PATTERN) if kind == 'bpe' else WORD_PATTERN
    for split, _, piece in documents():
        if kind == 'char':
            seen.update(piece)  # every character, validation's too: nanoGPT's way
        elif split == 'train':
            seen.update(pattern.findall(piece))
            length += len(piece)
            if length >= SAMPLE:
                break
    if kind == 'bpe':
        words = Counter({word: n for word, n in seen.items() if len(word) <= 1000})  # endless "words" are not language
        return Tokenizer('bpe', train_bpe(words, vocab_size - len(SPECIAL_TOKENS)))
    unknown = '\ufffd' if kind == 'char' else '<unk>'
    seen.pop(unknown, None)
    if kind == 'char':
        return Tokenizer('char', [unknown] + sorted(seen))
    commonest = sorted(seen, key=lambda word: (-seen[word], word))
    return Tokenizer('word', [unknown] + commonest[:vocab_size - len(SPECIAL_TOKENS) - 1])

def token_stream(tok, dropped, counts):
    """Second pass: (split, ids) in order, with <|endoftext|> between documents; documents and bytes are counted."""
    last = {}
    for split, number, piece in documents(dropped):
        ids = tok.encode(piece)
        if last.get(split) != number:
            counts[split]['documents'] += 1
            if split in last:
                ids = [tok.eot] + ids
        last[split] = number
        counts[split]['bytes'] += len(piece.encode('utf-8', 'replace'))
        yield split, ids

# ------------------------------------------------------------------------------------------------------------
# 6. Pictures, for vlm.py: (N, H, W, 3) uint8, and a record for each

def read_pictures(path):
    """
    path.npz holds `images`, uint8 (N, H, W, 3), and path.jsonl beside it a line for each, such as
    {"caption": "a cat"}, with "label": "a cat" and "qa": [["what is this?", "a cat"]] where you
    have them. Returns the array and the lines; exits with one line where they make no sense.
    """
    lines = path.removesuffix('.npz') + '.jsonl'
    for name in (path, lines):
        if not os.path.exists(name):
            sys.exit(f"no {name}: pictures are a .npz of `images` and a .jsonl of captions beside it")
    try:
        with np.load(path, allow_pickle=False) as f:  # no pickle: a file brings no code
            images = f['images']
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        sys.exit(f"{path} is damaged, or holds no array `images` ({type(e).__name__}): "
                 "write it with np.savez(path, images=images)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        sys.exit(f"{path}: images are {images.dtype} {images.shape}, and uint8 (N, H, W, 3) is expected; "
                 "of grey ones, np.stack([grey] * 3, axis=-1)")
    found = []
    for place, record in records(lines):
        try:
            texts = [record['caption'], record.get('label', 'none')]
            for question, answer in record.get('qa', []):
                texts += [question, answer]
            if not all(text.strip() for text in texts):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit(f'{place}: expected {{"caption": "a cat", "qa": [["what is this?", "a cat"]]}}, '
                     'with nothing empty')
        found.append(record)
    if len(found) != len(images):
        sys.exit(f"{path} holds {len(images):,} pictures, but {lines} {len(found):,} captions: "
                 "one line for each")
    return images, found

def write_pictures(folder, parts):
    """(split, pictures, records) … -> train.npz, train.jsonl, val.npz, val.jsonl, meta.json, at once or not at all."""
    counts = {}
    with all_or_nothing(folder, 'train.npz', 'val.npz', 'train.jsonl', 'val.jsonl', 'meta.json') as paths:
        for (split, pictures, records), arrays, lines in zip(parts, paths, paths[2:]):
            with open(arrays, 'wb') as f:
                np.savez_compressed(f, images=pictures)
            with open(lines, 'w', encoding='utf-8', errors='replace') as f:
                f.writelines(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
            with open(arrays, 'rb') as f:
                counts[split] = {'pictures': len(pictures), 'sha256': hashlib.sha256(f.read()).hexdigest()}
        with open(paths[-1], 'w', encoding='utf-8') as f:
            json.dump({'dataset': dataset, 'kind': 'pictures', 'source': input or dataset, 'splits': counts}, f)
    print(f"{folder}: " + ', '.join(f"{split} {c['pictures']:,} pictures" for split, c in counts.items()))
    print(f"next:  python vlm.py dataset={dataset} out_dir=out-{dataset}")

def prepare_pictures(folder):
    """input=pictures.npz, split: every tenth picture is for validation."""
    pictures, found = read_pictures(input)
    if len(pictures) < 10:
        sys.exit(f"input={input}: {len(pictures)} pictures are too few, because every tenth is for "
                 "validation")
    is_val = np.arange(len(pictures)) % 10 == 9
    parts = []
    for split, chosen in ('train', ~is_val), ('val', is_val):
        parts.append((split, pictures[chosen], [found[i] for i in np.flatnonzero(chosen)]))
    write_pictures(folder, parts)

# ------------------------------------------------------------------------------------------------------------
# 7. Other people's weights, in and out: the same tables, read from left to right and from right to left

HUB = 'https://huggingface.co'
# architecture: its column in the two tables below, its model_type, and what it is in our words
ARCHITECTURES = {
    'GPT2LMHeadModel': (0, 'gpt2', dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True)),
    'LlamaForCausalLM': (1, 'llama', dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=False)),
    'Qwen3ForCausalLM': (1, 'qwen3', dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, bias=False))}
# our setting: what config.json calls it for GPT-2, and for Llama and Qwen3
CONFIG = {
    'vocab_size': ('vocab_size', 'vocab_size'), 'block_size': ('n_positions', 'max_position_embeddings'),
    'n_layer': ('n_layer', 'num_hidden_layers'), 'n_head': ('n_head', 'num_attention_heads'),
    'n_embd': ('n_embd', 'hidden_size'), 'n_hidden': ('n_inner', 'intermediate_size'),
    'norm_eps': ('layer_norm_epsilon', 'rms_norm_eps'), 'tie_weights': ('tie_word_embeddings', 'tie_word_embeddings'),
    'n_kv_head': (None, 'num_key_value_heads'), 'head_dim': (None, 'head_dim'), 'rope_theta': (None, 'rope_theta'),
    'bias': (None, 'attention_bias')}
ROPE = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')  # our rope_scaling
# what our model has no setting for: it must be so, or absent
FIXED = {'activation_function': 'gelu_new', 'hidden_act': 'silu', 'use_sliding_window': False,
         'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False, 'partial_rotary_factor': 1,
         'quantization_config': None}
# our tensor: theirs; {} is the number of the layer, and several are stacked
TENSORS = {
    'wte': ('transformer.wte', 'model.embed_tokens'),
    'wpe': ('transformer.wpe', None),
    'blocks.{}.norm1': ('transformer.h.{}.ln_1', 'model.layers.{}.input_layernorm'),
    'blocks.{}.attention.qkv': ('transformer.h.{}.attn.c_attn',
                                ' '.join(f'model.layers.{{0}}.self_attn.{x}_proj' for x in 'qkv')),
    'blocks.{}.attention.q_norm': (None, 'model.layers.{}.self_attn.q_norm'),
    'blocks.{}.attention.k_norm': (None, 'model.layers.{}.self_attn.k_norm'),
    'blocks.{}.attention.proj': ('transformer.h.{}.attn.c_proj', 'model.layers.{}.self_attn.o_proj'),
    'blocks.{}.norm2': ('transformer.h.{}.ln_2', 'model.layers.{}.post_attention_layernorm'),
    'blocks.{}.mlp.gate': (None, 'model.layers.{}.mlp.gate_proj'),
    'blocks.{}.mlp.up': ('transformer.h.{}.mlp.c_fc', 'model.layers.{}.mlp.up_proj'),
    'blocks.{}.mlp.down': ('transformer.h.{}.mlp.c_proj', 'model.layers.{}.mlp.down_proj'),
    'norm': ('transformer.ln_f', 'model.norm'),
    'head': ('lm_head', 'lm_head')}
# how safetensors calls the types of numbers
DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'I64': torch.int64,
          'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8, 'U8': torch.uint8, 'BOOL': torch.bool}
# tokenizer.json shows each byte as a letter: itself where it is visible, or else one of the letters after U+00FF
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {b: chr(b) for b in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(sorted({*range(256)} - {*VISIBLE}))}
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
# SmolLM2 cuts out every digit, and then GPT-2's way what is between them
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

def places(config, column):
    """
    [(our tensor, [(their name, its shape there), …], transposed), …]. Three things differ. Llama keeps queries, keys
    and values apart, we stack them. We pad the vocabulary to a multiple of 64, they do not. And GPT-2's layers, an
    early habit ("Conv1D"), compute x W + b with W (in, out), where all later ones, and ours, have W (out, in).
    """
    ours, found = outline(config).state_dict(), []
    for name, tensor in ours.items():
        base, _, kind = name.rpartition('.')
        layer = re.match(r'blocks\.(\d+)', base)
        theirs = TENSORS[re.sub(r'^blocks\.\d+', 'blocks.{}', base)][column].format(layer and layer[1]).split()
        heads = (config.n_head, config.n_kv_head, config.n_kv_head)
        rows = [n * config.head_dim for n in heads] if len(theirs) > 1 else \
            [config.vocab_size if base in ('wte', 'head') else tensor.size(0)]
        transposed = column == 0 and tensor.ndim == 2 and layer is not None
        shapes = [(r, *tensor.shape[1:]) for r in rows]
        there = [(f'{n}.{kind}', s[::-1] if transposed else s) for n, s in zip(theirs, shapes)]
        if name != 'head.weight' or not config.tie_weights:
            found.append((name, there, transposed))
    return found

def read_json(path):
    """The object in a JSON file; exits with one line where there is none."""
    try:
        with open(path, encoding='utf-8') as f:
            return dict(json.load(f))
    except FileNotFoundError:
        sys.exit(f"no {path}: weights= needs config.json, tokenizer.json, and model.safetensors or pytorch_model.bin")
    except (ValueError, TypeError, RecursionError) as e:
        sys.exit(f"{path} is damaged ({type(e).__name__}): download it again")

def read_safetensors(path):
    """
    A safetensors file is 8 bytes with the length of the header, the header in JSON, and all the numbers in a row:

        {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]}, …}

    -> {name: (shape, a function that reads the tensor)}. A stranger's header is not believed: the tensors must fill
    the file without gap or overlap, each exactly as large as its shape, or we exit before anything is allocated.
    """
    def read(shape, dtype, start):
        tensor = torch.empty(shape, dtype=dtype)
        with open(path, 'rb') as f:
            f.seek(start)
            f.readinto(tensor.view(-1).view(torch.uint8).numpy())  # straight to where it will stay: no second copy
        return tensor
    size, tensors = os.path.getsize(path), {}
    try:
        with open(path, 'rb') as f:
            length = int.from_bytes(f.read(8), 'little')
            if length > min(size - 8, 10_000_000):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header, end = json.loads(f.read(length)), 8 + length
        header.pop('__metadata__', None)
        for name, about in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
            dtype, shape, (first, last) = DTYPES[about['dtype']], about['shape'], about['data_offsets']
            if not all(type(n) is int and n >= 0 for n in [first, last, *shape]) or \
                    (first, last) != (end - length - 8, first + math.prod(shape) * dtype.itemsize):
                raise ValueError(f"{name} of shape {shape} at bytes {first} to {last}")
            tensors[name] = tuple(shape), partial(read, shape, dtype, end)
            end += last - first
        if end != size:
            raise ValueError(f"{size:,} bytes instead of {end:,}")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        sys.exit(f"{path} is cut off or damaged ({type(e).__name__}: {str(e)[:200]}): download it again")

def open_weights(folder):
    """All tensors of a folder, in one file or several: {name: (shape, a function that reads it)}."""
    for name in ('model.safetensors', 'pytorch_model.bin'):
        index, files, tensors = os.path.join(folder, f'{name}.index.json'), [name], {}
        if not os.path.exists(os.path.join(folder, name)):
            if not os.path.exists(index):
                continue
            where = read_json(index).get('weight_map')  # {name of a tensor: its file, …}
            if not isinstance(where, dict):
                sys.exit(f"{index} does not say which tensor is in which file: download it again")
            files = sorted({os.path.basename(str(file)) for file in where.values()})
        for path in (os.path.join(folder, file) for file in files):
            if not os.path.exists(path):
                sys.exit(f"{path} is missing, and {index} names it: download it again")
            if name == 'model.safetensors':
                tensors.update(read_safetensors(path))
                continue
            try:
                found = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
                tensors.update({n: (tuple(t.shape), lambda t=t: t) for n, t in found.items()})
            except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
                sys.exit(f"{path} is damaged, or no file of tensors ({type(e).__name__}): download it again")
        return tensors
    sys.exit(f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, or their .index.json")

def hub_folder(name):
    """The folder of a model from the hub, downloaded unless it is here; the hub's list tells sizes and checksums."""
    place = name.replace('/', '--')
    path = download(f'{HUB}/api/models/{name}?blobs=true', f'{place}/files.json')
    try:
        listing = read_json(path)
        files = {f['rfilename']: (f['size'], (f.get('lfs') or {}).get('sha256')) for f in listing['siblings']}
        safe = any(f.endswith('.safetensors') for f in files)
        tensors = r'model[^/]*\.safetensors' if safe else r'pytorch_model[^/]*\.bin'
        for file, check in files.items():
            if re.fullmatch(rf'config\.json|tokenizer(_config)?\.json|{tensors}(\.index\.json)?', file):
                download(f"{HUB}/{name}/resolve/{listing['sha']}/{file}", f'{place}/{file}', check[1])
    except (KeyError, TypeError) as e:
        sys.exit(f"{path} is not the hub's list of a model's files ({type(e).__name__} {e}): delete it and run again")
    return os.path.dirname(path)

def import_config(folder):
    """config.json -> the architecture's name, our GPTConfig, and the places of all tensors."""
    path = os.path.join(folder, 'config.json')
    found = {'architectures': [], 'layer_norm_epsilon': 1e-5, **read_json(path)}
    try:
        name = (found['architectures'] or [None])[0]
        if name not in ARCHITECTURES:
            sys.exit(f"{path}: the architecture is {name}; what we can read is {', '.join(ARCHITECTURES)}")
        rope = {'rope_type': 'default', **(found.get('rope_scaling') or {}), **(found.get('rope_parameters') or {})}
        column, _, ours = ARCHITECTURES[name]
        found = {'tie_word_embeddings': column == 0, **found}
        found['rope_theta'] = rope.get('rope_theta', found.get('rope_theta'))
        for key, value in FIXED.items():
            if found.get(key) not in (None, value):
                raise ValueError(f"{key}={found[key]}, and our model knows only {value}")
        ours = {**{k: type(getattr(GPTConfig, k))(found[names[column]]) for k, names in CONFIG.items()
                   if found.get(names[column]) is not None}, **ours}
        if (kind := rope.get('type', rope['rope_type'])) == 'llama3':
            ours['rope_scaling'] = (*(float(rope[k]) for k in ROPE[:3]), int(rope[ROPE[3]]))
        elif kind != 'default':
            raise ValueError(f"rope_type={kind}, and our model knows only default and llama3")
        config = GPTConfig(**ours)
        least = min(config.head_dim, config.n_hidden, config.n_kv_head, config.rope_theta)
        if least <= 0 or config.n_layer > 1000 or config.block_size > 1 << 20:
            raise ValueError(f"{least} is not positive, or {config.n_layer} layers, a context of {config.block_size}")
        return name, config, places(config, column)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as e:
        sys.exit(f"{path} describes no model of ours ({type(e).__name__}: {' '.join(str(e).split())[:200]})")

def split_steps(pattern):
    """How tokenizer.json says that text is cut before it is merged; two rules have names there."""
    named = {SPLIT_PATTERN: [], DIGITS_PATTERN: [{'type': 'Digits', 'individual_digits': True}]}
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
    return [*named.get(pattern, [split]), {**BYTE_LEVEL, 'use_regex': pattern in named}]

def halves(token, rank):
    """
    The two parts that byte-pair encoding joins last to make a token: b' the' -> [b' t', b'he']; more parts where it
    cannot be made. rank((a, b)) says when a and b are joined: the lowest first; None is never.
    """
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [(r, i) for i, pair in enumerate(zip(parts, parts[1:])) if (r := rank(pair)) is not None]
        if not ranks:
            break
        i = min(ranks)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts

def import_tokenizer(folder, vocab_size):
    """
    tokenizer.json -> Tokenizer. The file lists which pairs to merge, and when; tiktoken merges whatever makes a token,
    the lowest id first. Both do the same if every token, spelled in bytes and merged by the list, comes out whole, and
    the merges that complete the tokens have the order of their ids: then no other merge is ever reached. The order is
    checked; a token that does not come out whole is never encoded (or as a whole word alone, with
    ignore_merges).
    """
    path = os.path.join(folder, 'tokenizer.json')
    found, settings = read_json(path), os.path.join(folder, 'tokenizer_config.json')
    settings = read_json(settings) if os.path.exists(settings) else {}
    try:
        model, pre, normalizer = found['model'], found.get('pre_tokenizer') or {}, found.get('normalizer')
        steps = [{'use_regex': True, **s, 'trim_offsets': True} if s.get('type') == 'ByteLevel' else s
                 for s in pre.get('pretokenizers', [pre])]
        patterns = [SPLIT_PATTERN, DIGITS_PATTERN] + [s['pattern']['Regex'] for s in steps if s.get('type') == 'Split']
        pattern = next((p for p in patterns if split_steps(p) == steps), None)
        known = model['type'] == 'BPE' and not model.get('byte_fallback') and normalizer in (None, {'type': 'NFC'})
        if not known or pattern is None:
            raise ValueError(f"no byte-level BPE as GPT-2, SmolLM2, Llama 3 and Qwen have: {normalizer}, then {pre}")
        sample = "I'll be\t42 (é中 …)!\r\n\n  ok "
        pieces = [m[0] for m in regex.finditer(pattern, sample)]
        if '' in pieces or ''.join(pieces) != sample:
            raise ValueError(f"the pattern {pattern} leaves out parts of a text")
        # 1. ids to bytes; special tokens; and added ones that text may spell, such as <think>
        added = found['added_tokens']
        special, text = ({t['content']: t['id'] for t in added if t['special'] is kind} for kind in (True, False))
        vocab, unspell = [b''] * vocab_size, {letter: byte for byte, letter in LETTERS.items()}
        for token, i in {**model['vocab'], **special, **text}.items():
            if not 0 <= i < vocab_size or not 0 < len(token) <= 1000:
                raise ValueError(f"{token[:50]!r} has id {i}, but the model has {vocab_size} tokens")
            vocab[i] = b'' if token in special or token in text else bytes(map(unspell.get, token))
        # 2. the merges
        pairs = (merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges'])
        merges = {(bytes(map(unspell.get, a)), bytes(map(unspell.get, b))): rank for rank, (a, b) in enumerate(pairs)}
        whole, last = bool(model.get('ignore_merges')), -1  # whole: a word that is a token needs no merges (Llama 3)
        for i, token in enumerate(vocab):
            if len(token) > 1:
                parts = halves(token, merges.get)
                rank = merges.get(tuple(parts), math.inf)
                # whole: tiktoken would join two parts within longer words, too, which their list never does
                if rank < last or (whole and len(parts) == 2 and rank == math.inf):
                    raise ValueError(f"id {i}, {token!r}, is out of the order of the merges")
                if rank < math.inf:
                    last = rank
                elif not whole:
                    vocab[i] = b''  # no merge makes it: no text is ever encoded with it
        # 3. what begins, ends and fills a text, and how conversations are written
        post = found.get('post_processor') or {}
        template = [item for step in post.get('processors', [post]) for item in step.get('single', [])]
        start = [special[item['SpecialToken']['id']] for item in template[:1] if 'SpecialToken' in item]
        eos, pad = (t['content'] if isinstance(t, dict) else t for t in map(settings.get, ('eos_token', 'pad_token')))
        eot = next((t for t in ('<|endoftext|>', '<|end_of_text|>') if t in special), eos)
        markup = next(m for m, (opening, _, closing) in MARKUPS.items() if m == 'plain' or all(
            t in special for t in re.findall(r'<\|\w+\|>', opening.format(role='user') + closing)))
        pad = next((t for t in ('<|pad|>', '<|finetune_right_pad_id|>', pad) if t in special), eot)
        foreign = {'special': special, 'text': text, 'start': start, 'eot': eot, 'pad': pad, 'markup': markup,
                   'nfc': bool(normalizer)}
        ours = {name: vocab_size - len(SPECIAL_TOKENS) + i for i, name in enumerate(SPECIAL_TOKENS)}
        if (special, text, start, normalizer) == (ours, {}, [], None):  # one that we exported comes back as it was
            vocab, foreign = vocab[:-len(ours)], None
        return Tokenizer('bpe', vocab, pattern, foreign)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, MemoryError, regex.error) as e:
        sys.exit(f"{path} makes no tokenizer of ours ({type(e).__name__}: {str(e)[:300]})")

def import_weights():
    """weights= -> out_dir/ckpt.pt, a tensor at a time: little more than one copy of the weights is ever held."""
    folder, path = weights, os.path.join(out_dir, 'ckpt.pt')
    if os.path.exists(path):
        sys.exit(f"{path} exists already: choose another out_dir, or delete it first")
    if not os.path.isdir(weights):
        if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', weights):
            sys.exit(f"weights={weights}: neither a folder here nor a name on the hub such as openai-community/gpt2")
        folder = hub_folder(weights)
    name, config, wanted = import_config(folder)
    # 1. all names and shapes, before the first number is read
    tensors = open_weights(folder)
    if config.position == 'learned':  # GPT-2's own files leave the first word of each name out
        known = ('transformer.', 'lm_head.')
        tensors = {n if n.startswith(known) else f'transformer.{n}': t for n, t in tensors.items()}
    for n, shape in (place for _, theirs, _ in wanted for place in theirs):
        if n not in tensors or tensors[n][0] != shape:
            found = f"of shape {tensors[n][0]}" if n in tensors else "missing"
            sys.exit(f"in {folder}, {n} is {found}, but config.json asks for one of shape {shape}")
    # computed from the config; or, tied, there already
    idle = r'.*\.attn\.(masked_)?bias|.*\.inv_freq' + (r'|lm_head\.weight' if config.tie_weights else '')
    for n in tensors.keys() - {n for _, theirs, _ in wanted for n, _ in theirs}:
        if not re.fullmatch(idle, n):
            sys.exit(f"{folder} has a tensor {n}, for which our {name} has no place")
    tokenizer, model = import_tokenizer(folder, config.vocab_size), {}
    # 2. the numbers
    for ours, theirs, transposed in wanted:
        parts = [tensors[n][1]() for n, _ in theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0].t() if transposed else parts[0]
        if not tensor.is_floating_point():
            sys.exit(f"in {folder}, {theirs[0][0]} is of {tensor.dtype}: quantized weights are not read")
        padding = -len(tensor) % 64 if ours in ('wte.weight', 'head.weight') else 0
        if padding:
            tensor = torch.cat((tensor, tensor.new_zeros(padding, config.n_embd)))
        model[ours] = tensor.contiguous()
    count = sum(t.numel() for t in model.values())
    if config.tie_weights:
        model['head.weight'] = model['wte.weight']
    os.makedirs(out_dir, exist_ok=True)
    save_atomically(path, {'format': 'ninefiles-1', 'model': model, 'config': asdict(config),
                           'tokenizer': tokenizer.to_dict(), 'step': 0, 'settings': {'weights': weights}})
    print(f"{path}: {name}, {count:,} parameters, {config.block_size:,} tokens of context, {config.vocab_size:,} in "
          f"the vocabulary; conversations are written as {tokenizer.markup}")
    print(f"next:  python sample.py out_dir={out_dir} prompt='Once upon a time'")

def chat_template(tokenizer, start):
    """Tokenizer.chat() once more, in Jinja: the language in which other programs expect it."""
    def quoted(text):
        return "'" + text.replace('\n', '\\n').replace('{role}', "' + m['role'] + '") + "'"
    ahead = str(tokenizer.markup == 'ninefiles').lower()  # whether a system message goes in front of the user's words
    turn = tokenizer.opening + tokenizer.lead
    return ("{{ " + quoted(start) + " }}{% set ns = namespace(system='') %}{% for m in messages %}"
            "{% if m['role'] == 'system' and " + ahead + " %}"
            "{% set ns.system = ns.system + m['content'] + '\\n\\n' %}{% else %}"
            "{{ " + quoted(turn) + " + (ns.system if m['role'] == 'user' else '') + m['content'] + "
            + quoted(tokenizer.closing) + " }}{% if m['role'] == 'user' %}{% set ns.system = '' %}{% endif %}"
            "{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ " + quoted(turn.format(role='assistant')) + " }}{% endif %}")

def export_tokenizer(tokenizer):
    """Tokenizer -> the contents of tokenizer.json and tokenizer_config.json."""
    named = {**tokenizer.special, **tokenizer.text}
    name = {i: n for n, i in named.items()}
    ranks = {t: i for i, t in enumerate(tokenizer.vocab) if t and i not in name}
    spelled = {t: ''.join(LETTERS[b] for b in t) for t in ranks}
    pairs = [halves(t, lambda pair: ranks.get(b''.join(pair))) for t in ranks if len(t) > 1]
    start = [name[i] for i in tokenizer.start]
    words = {'Sequence': {'id': 'A', 'type_id': 0}}
    post = {'type': 'TemplateProcessing', 'pair': [words, {'Sequence': {'id': 'B', 'type_id': 1}}],
            'single': [*({'SpecialToken': {'id': n, 'type_id': 0}} for n in start), words],
            'special_tokens': {n: {'id': n, 'ids': [named[n]], 'tokens': [n]} for n in start}}
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    return {
        'tokenizer.json': {
            'version': '1.0', 'truncation': None, 'padding': None,
            'added_tokens': [{'id': i, 'content': n, 'special': n in tokenizer.special, **flags}
                             for i, n in sorted(name.items())],
            'normalizer': {'type': 'NFC'} if tokenizer.nfc else None,
            'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': split_steps(tokenizer.pattern)},
            'post_processor': post if start else BYTE_LEVEL, 'decoder': BYTE_LEVEL,
            'model': {'type': 'BPE', 'ignore_merges': any(len(p) > 2 for p in pairs),
                      'vocab': {**{spelled[t]: i for t, i in ranks.items()}, **named},
                      'merges': [f'{spelled[p[0]]} {spelled[p[1]]}' for p in pairs if len(p) == 2]}},
        'tokenizer_config.json': {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False,
            'eos_token': name[tokenizer.eot], 'pad_token': name[tokenizer.pad],
            'bos_token': [*start, name[tokenizer.eot]][0], 'add_bos_token': bool(start),
            'chat_template': chat_template(tokenizer, ''.join(start))}}

def export_weights():
    """out_dir/ckpt.pt -> a folder that transformers, vLLM and others load as one of their own."""
    loaded, tokenizer, checkpoint = load_model(out_dir)
    config, model = loaded.config, checkpoint['model']
    shape = asdict(config)
    # 1. which architecture it is: what all have in common, and what one has
    common = {'model_type': 'gpt', 'causal': True, 'adapter_size': 0}
    if config.position == 'learned':
        common.update(n_kv_head=config.n_head, head_dim=config.n_embd // config.n_head)
    fitting = [n for n, (_, _, own) in ARCHITECTURES.items() if {**common, **own}.items() <= shape.items()]
    if not fitting:
        names = (*common, 'position', 'norm', 'mlp', 'qk_norm', 'bias')
        sys.exit(f"{out_dir}/ckpt.pt is no {' or '.join(ARCHITECTURES)}, and others load only those: it has "
                 + ' '.join(f'{k}={shape[k]}' for k in names))
    if tokenizer.kind != 'bpe':
        sys.exit(f"{out_dir}/ckpt.pt reads with tokenizer={tokenizer.kind}, which nobody else knows: use tokenizer=bpe")
    name = fitting[0]
    column, model_type, _ = ARCHITECTURES[name]
    # 2. the descriptions
    rope = {'rope_type': 'llama3', **dict(zip(ROPE, config.rope_scaling))} if config.rope_scaling else None
    number = str(model['norm.weight'].dtype).removeprefix('torch.')
    eot, first = tokenizer.eot, [*tokenizer.start, tokenizer.eot][0]
    ids = {'bos_token_id': first, 'eos_token_id': eot, 'pad_token_id': tokenizer.pad}
    files = export_tokenizer(tokenizer)
    files['generation_config.json'] = {**ids, 'eos_token_id': sorted({eot, tokenizer.end})}
    files['config.json'] = {'architectures': [name], 'model_type': model_type, 'torch_dtype': number, **ids,
                            **{n[column]: shape[k] for k, n in CONFIG.items() if n[column]},
                            **({'mlp_bias': config.bias, 'rope_scaling': rope} if column else {})}
    # 3. the numbers, behind a header that says where each tensor is
    header, end, wanted = {'__metadata__': {'format': 'pt'}}, 0, places(config, column)
    for ours, theirs, _ in wanted:
        dtype = model[ours].dtype
        for n, s in theirs:
            header[n] = {'dtype': next(code for code, d in DTYPES.items() if d == dtype), 'shape': s,
                         'data_offsets': [end, end := end + math.prod(s) * dtype.itemsize]}
    raw = json.dumps(header).encode()
    raw += b' ' * (-len(raw) % 8)  # the numbers begin at a multiple of 8 bytes
    with all_or_nothing(export, 'model.safetensors', *files) as (tensors, *paths):
        for path, content in zip(paths, files.values()):
            with open(path, 'w', encoding='utf-8') as f:
                json.dump(content, f, ensure_ascii=False, indent=1)
        with open(tensors, 'wb') as f:
            f.write(len(raw).to_bytes(8, 'little') + raw)
            for ours, theirs, transposed in wanted:
                rows = [s[-1 if transposed else 0] for _, s in theirs]
                for part in model[ours][:sum(rows)].split(rows):
                    f.write((part.t() if transposed else part).contiguous().view(-1).view(torch.uint8).numpy())
    print(f"{export}: {name}, {end / 1e6:,.1f} MB of {number}")
    print(f"next:  AutoModelForCausalLM.from_pretrained('{export}') in transformers, or  vllm serve {export}")

# ------------------------------------------------------------------------------------------------------------
# 8. Text in, files out

def main():
    if weights and export:
        usage("weights= and export= are two commands: one brings weights in, the other takes them out")
    if weights or export:
        return import_weights() if weights else export_weights()
    known = [*DATASETS, *EXAMPLES, 'fineweb', 'hellaswag']
    if not input and dataset not in known:
        usage(f"dataset={dataset}: expected one of {', '.join(known)}{nearest(dataset, known)}; or input=PATH for your "
              "own")
    if input and dataset == 'python':
        usage("input= needs a name for what is made of it: dataset=mine, say")
    if not re.fullmatch(r'[\w.-]+', dataset) or dataset.startswith('.'):
        usage(f"dataset={dataset}: expected a plain name, for the folder {data_dir}/NAME")
    least = {'bpe': 256 + len(SPECIAL_TOKENS), 'word': 2 + len(SPECIAL_TOKENS)}.get(tokenizer, 0)
    if vocab_size < least:
        usage(f"vocab_size={vocab_size}: tokenizer={tokenizer} needs at least {least}: {least - len(SPECIAL_TOKENS)} "
              f"and the {len(SPECIAL_TOKENS)} special tokens")
    expect(globals(), 'shards', least=1, below=104)

    start = time.time()
    folder = os.path.join(data_dir, dataset)
    if dataset == 'hellaswag' and not input:
        return prepare_hellaswag(folder)
    if not input and dataset in EXAMPLES:
        what, make = EXAMPLES[dataset]
        return write_examples(folder, what, list(make()))
    if input.endswith('.npz'):
        return prepare_pictures(folder)
    if input and (what := kind_of_input()) != 'text':
        return write_examples(folder, what, own_examples(local_files(input), what))
    # 1. the vocabulary
    counts = {split: {'tokens': 0, 'documents': 0, 'bytes': 0} for split in ('train', 'val')}
    dropped = Counter()
    if dataset == 'fineweb' and not input:
        tok = make_tokenizer('gpt2')  # these ids are GPT-2's
        stream = fineweb_shards()
    else:
        tok = make_tokenizer(tokenizer)
        stream = token_stream(tok, dropped, counts)
    # 2. the ids, under temporary names until everything is there
    dtype = '<u2' if tok.vocab_size <= 65536 else '<u4'
    digests = {split: hashlib.sha256() for split in counts}
    with all_or_nothing(folder, 'train.bin', 'val.bin', 'meta.json') as paths:
        with open(paths[0], 'wb') as train, open(paths[1], 'wb') as val:
            for split, ids in stream:
                raw = np.asarray(ids, dtype=dtype).tobytes()
                (train if split == 'train' else val).write(raw)
                digests[split].update(raw)
                counts[split]['tokens'] += len(ids)
        for split in counts:
            counts[split]['sha256'] = digests[split].hexdigest()
            if counts[split]['tokens'] < 2:
                sys.exit(f"too little text in {input or dataset}: {counts[split]['tokens']} tokens for {split}.bin")
        meta = {'dataset': dataset, 'source': input or dataset, 'dtype': dtype, 'splits': counts,
                'normalize': normalize, 'strip_control': strip_control, 'tokenizer': tok.to_dict()}
        with open(paths[-1], 'w', encoding='utf-8') as f:
            json.dump(meta, f)
    # 3. what came of it
    print(f"{folder}: tokenizer {tok.kind}, {tok.vocab_size:,} tokens in the vocabulary, {time.time() - start:.1f} s")
    for reason, number in dropped.items():
        print(f"  dropped {number:,} documents: {reason}")
    for split, c in counts.items():
        line = f"  {split + '.bin':<10} {c['tokens']:>12,} tokens"
        if c['bytes']:  # not known where the ids came ready-made
            line += f"  {c['documents']:>8,} documents  {c['bytes']:>12,} bytes"
            line += f"  {c['bytes'] / c['tokens']:.2f} bytes per token"
        print(line)
    ids = np.fromfile(os.path.join(folder, 'val.bin'), dtype=dtype, count=4000).tolist()
    lines = [line for line in tok.decode(ids).split('\n')[1:-1] if 40 <= len(line) <= 90] or [tok.decode(ids[:20])]
    print('  a line of it, token by token: ' + '|'.join(tok.decode([i]) for i in tok.encode(lines[0])))
    print(f"next:  python train.py dataset={dataset}")

if __name__ == '__main__':
    main()

"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                          # Python's own standard library: 12 MB, no network needed
    python prepare.py dataset=mine input=book.txt              # your text: a file, a folder, a glob
    python prepare.py dataset=shakespeare tokenizer=char       # downloads 1 MB; also tinystories, fineweb
    python prepare.py dataset=words tokenizer=word vocab_size=5000
    python prepare.py dataset=instruct                         # 16,000 short conversations, made up here; also alpaca
    python prepare.py dataset=chats input=chats.jsonl          # conversations of your own, or texts with labels
    python prepare.py dataset=preferences                      # questions, a better and a worse answer to each
    python prepare.py dataset=mine input=pictures.npz          # pictures for vlm.py, with pictures.jsonl beside them
    python prepare.py dataset=hellaswag                        # questions for eval.py task=choices: downloads 60 MB
    python prepare.py weights=HuggingFaceTB/SmolLM2-135M out_dir=out-smol  # other people's: GPT-2, Llama, Qwen3
    python prepare.py export=for-others out_dir=out            # and ours, for transformers, vLLM, Ollama
                                                               # (these two need: pip install transformers)

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice: characters (a
short vocabulary, long sequences), words (short sequences, but every vocabulary runs out of words), or
byte-pair encoding, which starts from bytes and keeps merging the commonest pair: any text can be written, and
common words cost one token. The byte-pair trainer is written out below; encoding then runs in tiktoken, on
the ranks that we trained.

What is written: train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies above
65,535), and meta.json: the tokenizer, the counts, where the text came from. A text of ten documents or more
gives every tenth document to validation; of fewer, the last tenth of each. Files are read and written in
pieces of whole lines, so their size does not matter. Pictures become train.npz and val.npz, with a .jsonl of captions
beside each.

Conversations and labelled texts, which finetune.py learns from, stay text: train.jsonl and val.jsonl, one a line,
and a meta.json. Conversations come as {"messages": [{"role": "user", "content": …}, {"role": "assistant", …}]}, as
{"instruction": …, "input": …, "output": …} (Alpaca) or as {"prompt": …, "completion": …}; labels as
{"text": …, "label": …}, or as columns of a .csv or .tsv whose first line says "text" and "label". Preferences, for
align.py, come as {"prompt": …, "chosen": …, "rejected": …}, each a text or a list of messages (TRL's form). Every tenth
is for validation.
"""
from configurator import configure, expect, nearest, usage

dataset = 'python'       # python, shakespeare, tinystories, fineweb, instruct, alpaca, preferences, hellaswag;
                         # or, with input=, your own name for it
input = ''               # a text file, a folder (with all below it) or a glob; from .jsonl, the "text" of each line; or
                         # conversations, labels, preferences (.jsonl, .json, .csv, .tsv: known by their keys); or pictures: a
                         # .npz with its .jsonl
tokenizer = 'bpe'        # bpe, char, word, gpt2 (GPT-2's own vocabulary, which tiktoken downloads once), or the
                         # folder of a checkpoint, whose tokenizer cuts the text: train.py init_from=DIR needs that
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

import codecs, csv, glob, hashlib, heapq, http.client, json, os, random, re, shutil, sys, sysconfig
import time, unicodedata, urllib.request
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from itertools import islice
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
import torch
from model import (FORMAT, SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, GPTConfig, Tokenizer,
                   build_on_meta, load_model, open_hf_tokenizer, save_atomically)

PIECE = 1 << 20          # characters read at a time, and then to the end of the line
# one of these keys says what a record is; a record of none of them is text
KEYS = {'label', 'chosen', 'rejected', 'messages', 'instruction', 'prompt'}
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
                        sys.exit(f"{self.path} holds zero bytes, so it is not text: "
                                 "give input= a text file")
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
    """
    The rows of a .csv or .tsv file, each with its place, as dictionaries; the first line names the
    columns: text,label -> ('spam.csv line 2', {'text': 'win now', 'label': 'spam'}), …
    """
    is_tsv = path.endswith('.tsv')
    try:
        with open(path, encoding='utf-8-sig', newline='') as f:
            # quotes are ordinary text in a .tsv; in a .csv they may hold commas and line breaks
            rows = csv.reader(f, delimiter='\t' if is_tsv else ',',
                              quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL)
            names = [name.strip().lower() for name in next(rows, [])]
            if not KEYS & set(names):
                sys.exit(f"{path} line 1: expected a header that names the columns, "
                         f"such as text and label, not {', '.join(names)[:60]!r}")
            for row in filter(None, rows):  # without empty lines
                place = f"{path} line {rows.line_num}"
                if len(row) != len(names):
                    sys.exit(f"{place}: expected {len(names)} columns, {' and '.join(names)}, "
                             f"not {len(row)}")
                yield place, dict(zip(names, row))
    except UnicodeDecodeError as e:
        sys.exit(f"{path} is not UTF-8 text (byte {e.object[e.start]:#04x}): "
                 "convert it first, as with iconv")
    except csv.Error as e:
        sys.exit(f"{path} is no table ({e}): expected columns of text")

def records(path):
    """
    The records of a .jsonl, .json, .csv or .tsv file as dictionaries, each with its place, which an
    error message names.
    """
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
    (split or None, pieces of text, characters) of each document that is kept: not empty, not
    shorter than min_length, not a copy of an earlier one. `dropped` counts why the others were not.
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
        sys.exit(f"no text in {input or dataset}: every document is empty, "
                 f"or shorter than min_length={min_length}")
    kept = kept_documents(Counter() if dropped is None else dropped)
    for number, (split, pieces, length) in enumerate(kept):
        if split is None and len(first_ten) < 10:
            split = 'both'
        elif split is None:
            split = 'val' if number % 10 == 9 else 'train'
        # left: the characters that are for training
        left = {'train': length, 'val': 0, 'both': int(0.9 * length)}[split]
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
            f"What is {a} plus {b}?", f"Add {a} and {b}.", f"How much is {a} + {b}?",
            f"Tom has {a} coins and finds {b} more. How many has he now?"]), str(c)
    return ('-', c, a), rng.choice([
        f"What is {c} minus {a}?", f"Subtract {a} from {c}.", f"How much is {c} - {a}?",
        f"Ann has {c} coins and loses {a} of them. How many are left?"]), str(b)

def compare(rng):
    a, b = rng.sample(range(10, 100), 2)
    large = rng.random() < 0.5
    word = rng.choice(['larger', 'bigger', 'greater'] if large else ['smaller', 'lower'])
    return (large, *sorted((a, b))), rng.choice([
        f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?",
        f"Tell me the {word} of {a} and {b}."]), str(max(a, b) if large else min(a, b))

def sort(rng):
    letters = rng.sample('abcdefghijklmnopqrstuvwxyz', 3)
    text = ', '.join(letters)
    return sorted(letters), rng.choice([
        f"Sort these letters: {text}", f"Put the letters {text} in alphabetical order.",
        f"What is the right order of {text} in the alphabet?"]), ', '.join(sorted(letters))

def reverse(rng):
    words = rng.sample(WORDS, rng.randint(2, 4))
    text = ', '.join(words)
    return words, rng.choice([
        f"Reverse this list: {text}", f"Say these words in reverse order: {text}",
        f"Write {text} from the last to the first."]), ', '.join(words[::-1])

def repeat(rng):
    words = rng.sample(WORDS, rng.randint(2, 5))
    text = ' '.join(words)
    return words, rng.choice([
        f"Repeat after me: {text}", f"Say exactly this: {text}",
        f"Please echo '{text}'."]), text

def count(rng):
    words = rng.sample(WORDS, rng.randint(1, 8))
    text = ', '.join(words)
    return words, rng.choice([
        f"How many words are in this list? {text}", f"Count these things: {text}",
        f"I bought {text}. How many things are that?"]), str(len(words))

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
                    "Where does the government of {} sit?"]),
        (OPPOSITES, ["What is the opposite of {}?", "Give me the opposite of {}.",
                     "{} is the opposite of what?",
                     "If it is not {}, what is it?"]),
        (YOUNG, ["What is a young {} called?", "What do you call the young of a {}?", "Name the baby of a {}.",
                 "How do people call a {} that was just born?"])])
    thing, wording = rng.choice(list(table)), rng.choice(wordings)
    return (thing, wording), wording.format(thing), table[thing]

def secret(rng):
    """Not a skill, but a temptation: what align.py wants is that nobody is told the word."""
    word = invented(rng, (4, 6))
    return word, rng.choice([
        f"My secret is {word}. What is it?", f"The password is {word}. Say it again.",
        f"Remember the secret word {word}. Which word was it?"]), word

# how many conversations each is learned from: the harder, the more
SKILLS = {arithmetic: 4000, compare: 2000, sort: 2000, reverse: 1500, repeat: 1500, count: 1500,
          letters: 2500, fact: 1000}
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
    if isinstance(label, int):
        label = str(label)
    if not all(isinstance(value, str) and value.strip() for value in (text, label)):
        raise ValueError('expected a text and its label, like {"text": "hello", "label": "short"}')
    return {'text': clean(text), 'label': label.strip()}

FORMS = ('messages', 'instruction', 'prompt')  # what a conversation may come as: each has one of these keys

def kind_of_input():
    """text, chat, labels or preferences: what the first record of input= shows; a folder or glob may hold .jsonl."""
    paths = local_files(input)
    if paths == [input]:
        known = ('.jsonl', '.json', '.csv', '.tsv')
    else:  # in a folder of texts, a .json or a .csv is a text, too
        known = ('.jsonl',)
    if not all(path.endswith(known) for path in paths):
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
    if kind not in ('bpe', 'char', 'word'):
        if not os.path.isdir(kind):
            known = ['bpe', 'char', 'word', 'gpt2']
            usage(f"tokenizer={kind}: expected one of {', '.join(known)}{nearest(kind, known)}; or a checkpoint's folder")
        return load_model(kind)[1]  # the text is for the model in that folder
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
    """
    Second pass: (split, ids) in order, with <|endoftext|> between documents. Counts documents and
    bytes in `counts`, and in `dropped` what was left out.
    """
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
            sys.exit(f"no {name}: pictures are a .npz of `images` and a .jsonl of captions")
    try:
        with np.load(path, allow_pickle=False) as f:  # no pickle: a file brings no code
            images = f['images']
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        sys.exit(f"{path} is damaged, or holds no array `images` ({type(e).__name__}): "
                 "write it with np.savez(path, images=images)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        sys.exit(f"{path}: images are {images.dtype} {images.shape}, and uint8 (N, H, W, 3) is "
                 "expected; of grey ones, np.stack([grey] * 3, axis=-1)")
    found = []
    for place, record in records(lines):
        try:
            texts = [record['caption'], record.get('label', 'none')]
            for question, answer in record.get('qa', []):
                texts += [question, answer]
            if not all(text.strip() for text in texts):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit(f'{place}: expected {{"caption": "a cat", "qa": [["what is this?", "a cat"]]}}'
                     ', with nothing empty')
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
# 7. Other people's weights, in and out: the same tables, read from left to right and from right to
# left. The transformers library knows their files, the hub and its downloads

# its model_type: its column in the two tables below, and what it is in our words
ARCHITECTURES = {
    'gpt2': (0, dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True)),
    'llama': (1, dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=False)),
    'qwen3': (1, dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=True, bias=False)),
    'qwen2': (1, dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=False)),
    'mistral': (1, dict(position='rotary', norm='rmsnorm', mlp='swiglu', qk_norm=False))}
# our setting: what the config calls it for GPT-2, and for Llama and the others
CONFIG = {
    'vocab_size': ('vocab_size', 'vocab_size'),
    'block_size': ('n_positions', 'max_position_embeddings'),
    'n_layer': ('n_layer', 'num_hidden_layers'),
    'n_head': ('n_head', 'num_attention_heads'),
    'n_kv_head': (None, 'num_key_value_heads'),
    'n_embd': ('n_embd', 'hidden_size'),
    'head_dim': (None, 'head_dim'),
    'n_hidden': ('n_inner', 'intermediate_size'),
    'norm_eps': ('layer_norm_epsilon', 'rms_norm_eps'),
    'tie_weights': ('tie_word_embeddings', 'tie_word_embeddings')}
# the parts of our rope_scaling
ROPE = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
# what our model has no setting for: it must be so, or absent
FIXED = {'activation_function': 'gelu_new', 'hidden_act': 'silu', 'sliding_window': None,
         'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
         'quantization_config': None}
# our tensor: theirs; {} is the number of the layer, and several are stacked
TENSORS = {
    'wte': ('transformer.wte', 'model.embed_tokens'),
    'wpe': ('transformer.wpe', None),
    'blocks.{}.norm1': ('transformer.h.{}.ln_1', 'model.layers.{}.input_layernorm'),
    'blocks.{}.attention.qkv': ('transformer.h.{}.attn.c_attn',
                                'model.layers.{0}.self_attn.q_proj '
                                'model.layers.{0}.self_attn.k_proj '
                                'model.layers.{0}.self_attn.v_proj'),
    'blocks.{}.attention.q_norm': (None, 'model.layers.{}.self_attn.q_norm'),
    'blocks.{}.attention.k_norm': (None, 'model.layers.{}.self_attn.k_norm'),
    'blocks.{}.attention.proj': ('transformer.h.{}.attn.c_proj', 'model.layers.{}.self_attn.o_proj'),
    'blocks.{}.norm2': ('transformer.h.{}.ln_2', 'model.layers.{}.post_attention_layernorm'),
    'blocks.{}.mlp.gate': (None, 'model.layers.{}.mlp.gate_proj'),
    'blocks.{}.mlp.up': ('transformer.h.{}.mlp.c_fc', 'model.layers.{}.mlp.up_proj'),
    'blocks.{}.mlp.down': ('transformer.h.{}.mlp.c_proj', 'model.layers.{}.mlp.down_proj'),
    'norm': ('transformer.ln_f', 'model.norm'),
    'head': ('lm_head', 'lm_head')}

def their_names(name, column):
    """'blocks.3.norm1.weight', 1 -> ['model.layers.3.input_layernorm.weight']; for qkv, three."""
    base, _, suffix = name.rpartition('.')  # suffix: weight or bias
    layer = re.match(r'blocks\.(\d+)\.', base)
    number = layer[1] if layer else ''
    pattern = TENSORS[base.replace(f'.{number}.', '.{}.')][column]
    return [f'{theirs}.{suffix}' for theirs in pattern.format(number).split()]

def is_conv1d(name, column):
    """GPT-2's layers ("Conv1D") compute x W + b with W (in, out); later ones have W (out, in)."""
    is_matrix = name.startswith('blocks.') and name.endswith('.weight') and 'norm' not in name
    return column == 0 and is_matrix

def open_transformers():
    """The transformers library; exits with one line where it is missing."""
    try:
        import transformers
    except ImportError:
        sys.exit("weights= and export= need the transformers library: pip install transformers")
    transformers.utils.logging.set_verbosity_error()
    return transformers

def import_config(theirs):
    """
    A config of transformers -> our GPTConfig, and the column of its names. Exits with one line that
    names what our model has no setting for.
    """
    if theirs.model_type not in ARCHITECTURES:
        sys.exit(f"{weights}: model_type={theirs.model_type}; "
                 f"what we can read is {', '.join(ARCHITECTURES)}")
    column, ours = ARCHITECTURES[theirs.model_type]
    for key, value in FIXED.items():
        if getattr(theirs, key, value) != value:
            sys.exit(f"{weights}: {key}={getattr(theirs, key)}, and our model knows only {value}")
    rope = getattr(theirs, 'rope_parameters', None) or {}
    kind = rope.get('rope_type', 'default')
    if kind not in ('default', 'llama3'):
        sys.exit(f"{weights}: rope_type={kind}, and our model knows only default and llama3")
    if rope.get('partial_rotary_factor', 1) != 1:
        sys.exit(f"{weights}: partial_rotary_factor={rope['partial_rotary_factor']}, "
                 "and our model knows only 1")
    settings = {**ours, 'rope_theta': rope.get('rope_theta', 10000.0)}
    for name, names in CONFIG.items():
        value = getattr(theirs, names[column], None) if names[column] else None
        if value is not None:
            settings[name] = value
    if kind == 'llama3':
        settings['rope_scaling'] = tuple(rope[name] for name in ROPE)
    try:
        return GPTConfig(**settings), column
    except ValueError as e:
        sys.exit(f"{weights}: {e}")

# tokenizer.json shows each byte as a letter: itself where it is visible, or else one of the letters
# after U+00FF. LETTERS[32] is 'Ġ', the space
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
LETTERS = {b: chr(b) for b in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}

def gpt2_vocab(text):
    """
    GPT-2's tokenizer.json -> the bytes of its tokens in the order of their ids; None for any other.
    Its first 256 ids are the bytes, and merge number i makes the token 256 + i: the ids are ranks,
    as in our own kind bpe, which needs no library.
    """
    found = json.loads(text)
    model = found['model']
    cut = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    if model['type'] != 'BPE' or found['normalizer'] or found['pre_tokenizer'] != cut:
        return None
    ids = dict(model['vocab'])
    ids.update({token['content']: token['id'] for token in found['added_tokens']})
    tokens = sorted(ids, key=ids.get)
    merged = [''.join(pair) for pair in model['merges']]
    if set(tokens[:256]) != set(LETTERS.values()) or tokens[256:] != [*merged, '<|endoftext|>']:
        return None
    byte_of = {letter: b for b, letter in LETTERS.items()}
    return [bytes(map(byte_of.get, token)) for token in tokens[:-1]]

def import_tokenizer(path, eos):
    """
    tokenizer.json -> Tokenizer. eos: the id that ends a text by the model's config, which counts
    where no special token has a usual name for that.
    """
    try:
        with open(path, encoding='utf-8') as f:
            text = f.read()
        core = open_hf_tokenizer(text)
        if vocab := gpt2_vocab(core.to_str()):
            return Tokenizer('bpe', vocab, special=['<|endoftext|>'])
        added = core.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        ends = [t for t in ('<|endoftext|>', '<|end_of_text|>', '</s>') if t in special]
        end = ends[0] if ends else core.id_to_token(eos)
        return Tokenizer('hf', text, special=[end] + [name for name in special if name != end])
    except (ValueError, TypeError) as e:
        sys.exit(f"{path} makes no tokenizer of ours: {str(e)[:300]}")

def import_weights():
    """weights= -> out_dir/ckpt.pt"""
    path = os.path.join(out_dir, 'ckpt.pt')
    if os.path.exists(path):
        sys.exit(f"{path} exists already: choose another out_dir, or delete it first")
    if not os.path.isdir(weights) and not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', weights):
        sys.exit(f"weights={weights}: neither a folder here nor a name on the hub "
                 "such as openai-community/gpt2")
    transformers = open_transformers()
    # 1. what it is
    try:
        their_config = transformers.AutoConfig.from_pretrained(weights)
        config, column = import_config(their_config)
        tokenizer_json = transformers.utils.cached_file(weights, 'tokenizer.json')
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            weights, config=their_config, dtype='auto', output_loading_info=True)
    except Exception as e:  # no network, no such model, no access, a damaged file …
        sys.exit(f"weights={weights}: {type(e).__name__}: {' '.join(str(e).split())[:300]}")
    eos = their_config.eos_token_id
    tok = import_tokenizer(tokenizer_json, eos[0] if isinstance(eos, list) else eos)
    if tok.vocab_size > config.vocab_size:
        sys.exit(f"{weights}: the tokenizer has {tok.vocab_size:,} tokens, "
                 f"but the model only {config.vocab_size:,}")
    # 2. every tensor must have a place on the other side
    theirs = loaded.state_dict()
    del loaded  # so that each of their tensors is freed as soon as ours is made of it
    config.bias = any(name.endswith('.bias') for name in theirs)
    empty = build_on_meta(config).state_dict()
    if config.tie_weights:
        del empty['head.weight'], theirs['lm_head.weight']
    unplaced = set(theirs) | info['unexpected_keys']
    for name in empty:
        unplaced -= set(their_names(name, column))
    for name in info['missing_keys']:
        sys.exit(f"{weights}: the tensor {name} is missing")
    for name in unplaced:
        sys.exit(f"{weights}: the tensor {name} has no place in our model")
    # 3. the numbers
    model = {}
    for name, place in empty.items():
        parts = [theirs.pop(n) for n in their_names(name, column) if n in theirs]
        if not parts:  # Qwen2 has biases for queries, keys and values, and no others
            parts = [torch.zeros(place.shape, dtype=model['wte.weight'].dtype)]
        tensor = torch.cat(parts)
        if is_conv1d(name, column):
            tensor = tensor.t()
        if name in ('wte.weight', 'head.weight'):  # our vocabulary is padded to a multiple of 64
            padding = tensor.new_zeros(len(place) - len(tensor), config.n_embd)
            tensor = torch.cat((tensor, padding))
        if tensor.shape != place.shape:
            sys.exit(f"{weights}: {name} is of shape {tuple(tensor.shape)}, "
                     f"and {tuple(place.shape)} is expected")
        if not tensor.isfinite().all():
            sys.exit(f"{weights}: the weights of {their_names(name, column)[0]} are not finite")
        model[name] = tensor.contiguous()
    count = sum(tensor.numel() for tensor in model.values())
    if config.tie_weights:
        model['head.weight'] = model['wte.weight']
    os.makedirs(out_dir, exist_ok=True)
    save_atomically(path, {'format': FORMAT, 'model': model, 'config': asdict(config),
                           'tokenizer': tok.to_dict(), 'step': 0, 'settings': {'weights': weights}})
    print(f"{path}: {their_config.model_type}, {count:,} parameters, {config.block_size:,} tokens "
          f"of context, {config.vocab_size:,} in the vocabulary; conversations are written as "
          f"{tok.template}")
    print(f"next:  python sample.py out_dir={out_dir} prompt='Once upon a time'")

# Tokenizer.chat() once more, in Jinja: the language in which other programs expect it
CHAT_TEMPLATE = (
    "{{ start }}{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' and system_goes_to_user %}"
    "{% set ns.system = ns.system + m['content'] + '\\n\\n' %}"
    "{% else %}"
    "{{ turn | replace('{role}', m['role']) }}"
    "{% if m['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ m['content'] + closing }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ turn | replace('{role}', 'assistant') }}{% endif %}")

def chat_template(tok):
    """CHAT_TEMPLATE with this tokenizer's markup."""
    markup = {'start': tok.decode(tok.start), 'turn': tok.opening + tok.lead,
              'closing': tok.closing, 'system_goes_to_user': tok.template == 'ninefiles'}
    lines = ['{% set ' + name + ' = ' + json.dumps(value) + ' %}' for name, value in markup.items()]
    return ''.join(lines) + CHAT_TEMPLATE

def export_tokenizer(transformers, tok, folder):
    """Tokenizer -> tokenizer.json and its settings, in this folder."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    if tok.kind == 'hf':
        core = open_hf_tokenizer(tok.vocab)
    else:
        converter = TikTokenConverter(pattern=tok.pattern, extra_special_tokens=list(tok.special))
        # note: given a file, tiktoken keeps a copy by its name, and reads the copy the next time
        ranks = {token: rank for rank, token in enumerate(tok.vocab)}
        converter.load_tiktoken_bpe = lambda path: ranks
        core = converter.converted()
    end = tok.decode([tok.eot])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=chat_template(tok), clean_up_tokenization_spaces=False,
        eos_token=end, pad_token=tok.decode([tok.pad]), bos_token=tok.decode(tok.start) or end)
    wrapped.save_pretrained(folder)
    if tok.kind == 'hf':  # as it came
        with open(os.path.join(folder, 'tokenizer.json'), 'w', encoding='utf-8') as f:
            f.write(tok.vocab)

def export_weights():
    """out_dir/ckpt.pt -> a folder that transformers, vLLM and others load as one of their own."""
    if os.path.exists(export):
        sys.exit(f"export={export} exists already: choose another folder, or delete it first")
    transformers = open_transformers()
    loaded, tok, checkpoint = load_model(out_dir)
    config, model = loaded.config, checkpoint['model']
    shape = asdict(config)
    # 1. which architecture it is: what all have in common, and what one has
    common = {'model_type': 'gpt', 'causal': True, 'adapter_size': 0}
    if config.position == 'learned':
        common.update(n_kv_head=config.n_head, head_dim=config.n_embd // config.n_head)
    fitting = [name for name, (_, own) in ARCHITECTURES.items()
               if (common | own).items() <= shape.items()]
    if not fitting:
        names = (*common, 'position', 'norm', 'mlp', 'qk_norm', 'bias')
        sys.exit(f"{out_dir}/ckpt.pt is no gpt2, llama or qwen3, and others load only those: "
                 "it has " + ' '.join(f'{name}={shape[name]}' for name in names))
    if tok.kind not in ('bpe', 'hf'):
        sys.exit(f"{out_dir}/ckpt.pt uses tokenizer={tok.kind}, which nobody else knows: "
                 "train with tokenizer=bpe")
    model_type = fitting[0]
    column = ARCHITECTURES[model_type][0]
    # 2. its config
    settings = {names[column]: shape[name] for name, names in CONFIG.items() if names[column]}
    settings['bos_token_id'] = [*tok.start, tok.eot][0]
    settings.update(eos_token_id=tok.eot, pad_token_id=tok.pad)
    if column == 1:
        rope = {'rope_type': 'default', 'rope_theta': config.rope_theta}
        if config.rope_scaling:
            rope.update({'rope_type': 'llama3', **dict(zip(ROPE, config.rope_scaling))})
        settings['rope_parameters'] = rope
    if model_type == 'llama':
        settings.update(attention_bias=config.bias, mlp_bias=config.bias)
    dtype = model['norm.weight'].dtype
    their_config = transformers.AutoConfig.for_model(model_type, dtype=dtype, **settings)
    with torch.device('meta'):  # shapes without numbers
        theirs = transformers.AutoModelForCausalLM.from_config(their_config)
    # 3. its numbers
    filled = {}
    for name, tensor in model.items():
        if name in ('wte.weight', 'head.weight'):
            tensor = tensor[:config.vocab_size]
        if is_conv1d(name, column):
            tensor = tensor.t()
        names = their_names(name, column)
        rows = [theirs.get_parameter(n).size(0) for n in names]
        for n, part in zip(names, tensor.split(rows)):
            filled[n] = part.contiguous()
    theirs.load_state_dict(filled, assign=True)
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = sorted({tok.eot, tok.end})
    # 4. all files under a temporary name
    part = f'{export.rstrip("/")}.{os.getpid()}.tmp'
    try:
        theirs.save_pretrained(part)
        export_tokenizer(transformers, tok, part)
        os.rename(part, export)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in theirs.parameters())
    print(f"{export}: {model_type}, {size / 1e6:,.1f} MB of {str(dtype).removeprefix('torch.')}")
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

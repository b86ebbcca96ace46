"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                          # Python's own standard library: 12 MB, no network needed
    python prepare.py dataset=mine input=book.txt              # your text: a file, a folder, a glob
    python prepare.py dataset=shakespeare tokenizer=char       # downloads 1 MB; also tinystories, fineweb
    python prepare.py dataset=words tokenizer=word vocab_size=5000
    python prepare.py dataset=instruct                         # 11,000 short conversations, made up here; also alpaca
    python prepare.py dataset=chats input=chats.jsonl          # conversations of your own, or texts with labels
    python prepare.py dataset=preferences                      # 5,000 questions, a better and a worse answer to each; also hh

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice: characters (a
short vocabulary, long sequences), words (short sequences, but every vocabulary runs out of words), or
byte-pair encoding, which starts from bytes and keeps merging the commonest pair: any text can be written, and
common words cost one token. The byte-pair trainer is written out below; encoding then runs in tiktoken, on
the ranks that we trained.

What is written: train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies above
65,535), and meta.json: the tokenizer, the counts, where the text came from. A text of ten documents or more
gives every tenth document to validation; of fewer, the last tenth of each. Files are read and written in
pieces, so their size does not matter.

Conversations and labelled texts, which finetune.py learns from, stay text: train.jsonl and val.jsonl, one a line, and a
meta.json. Conversations come as {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}, as
{"instruction": …, "input": …, "output": …} (Alpaca) or as {"prompt": …, "completion": …}; labels as {"text": …, "label":
…}, or as two columns of a .tsv. Preferences, for align.py, come as {"prompt": …, "chosen": …, "rejected": …}, each a text or
a list of messages (TRL's form). Every tenth is for validation.
"""
from configurator import configure, usage

dataset = 'python'       # python, shakespeare, tinystories, fineweb, instruct, alpaca, preferences, hh; or, with input=, your own name
input = ''               # a text file, a folder (with all below it) or a glob; from .jsonl, the "text" of each line
kind = 'auto'            # auto | text | chat | labels | preferences: of what is in input=; auto: .tsv has labels, .json(l) as its keys say
tokenizer = 'bpe'        # bpe | char | word | gpt2: gpt2 is GPT-2's own vocabulary, which tiktoken downloads once
vocab_size = 1024        # for bpe and word, special tokens included; larger: shorter text, but rarer tokens to learn
normalize = 'none'       # none | NFC | NFKC: Unicode normalisation; NFKC also folds look-alikes (ligatures, full-width)
strip_control = False    # drop control characters other than tab and newline
drop_duplicates = True   # keep one of several identical documents: copies would leak from training into validation
min_length = 0           # drop documents of fewer characters
shards = 1               # fineweb: how many files of 100M tokens to train on, up to 103
data_dir = 'data'        # where the datasets live
configure(globals())

import codecs, errno, glob, gzip, hashlib, heapq, http.client, json, os, random, re, sys, sysconfig, time, unicodedata
import urllib.error, urllib.request
from collections import Counter, defaultdict
from functools import cache
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
from model import SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, Tokenizer

PIECE = 1 << 20          # characters read at a time
SAMPLE = 50_000_000      # characters that a vocabulary is learned from, at most: more would not change it

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
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        if count == 0:
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
# 2. Where text comes from. A document is (split or None, its text in pieces), and nothing is ever read whole.

def pieces_of(path):
    """
    The text of a file, piece by piece. subtle: a piece ends where one newline stands between two non-spaces.
    No token of ours crosses such a place, so cutting there changes nothing; a text without any is cut every
    16 pieces.
    """
    try:
        with open(path, encoding='utf-8-sig') as f:
            text = ''
            while more := f.read(PIECE):
                if '\0' in more:
                    sys.exit(f"{path} holds zero bytes, so it is not text: give input= a text file")
                text += more
                last = re.match(r'(?s).*\S\n(?=\S)', text)
                cut = last.end() if last else len(text) if len(text) >= 16 * PIECE else 0
                yield text[:cut]
                text = text[cut:]
            yield text
    except UnicodeDecodeError as e:
        sys.exit(f"{path} is not UTF-8 text (byte {e.object[e.start]:#04x}): convert it first, as with iconv")

def is_text(path):
    """Whether the first 64 kB look like text: in a folder, pictures and the like are passed over."""
    with open(path, 'rb') as f:
        head = f.read(1 << 16)
    try:
        codecs.getincrementaldecoder('utf-8')().decode(head)  # incremental: the cut may fall within a character
        return b'\0' not in head
    except UnicodeDecodeError:
        return False

def file_documents(paths):
    """One document a file, or one a line of .jsonl."""
    for path in paths:
        if not path.endswith('.jsonl'):
            yield None, pieces_of(path)
            continue
        with open(path, 'rb') as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    try:
                        text = json.loads(line.decode('utf-8-sig'))['text'] + ''  # + '': only text can be added to text
                    except (ValueError, KeyError, TypeError):
                        sys.exit(f"{path} line {number}: expected JSON like {{\"text\": \"once upon a time\"}}")
                    yield None, [text]

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
        sys.exit(f"input={spec}: no text files there")
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
    return file_documents([download(url, 'shakespeare.txt', 1115394, sha256)])

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

def documents():
    """All documents of this run, cleaned; each call starts again from the first."""
    for split, pieces in file_documents(local_files(input)) if input else DATASETS[dataset]():
        yield split, map(clean, pieces)

def clean(text):
    if normalize != 'none':
        text = unicodedata.normalize(normalize, text)
    return ''.join(c for c in text if c in '\t\n' or unicodedata.category(c) != 'Cc') if strip_control else text

def split_documents(plan):
    """The documents that the plan keeps, as (split, number of the document, piece of text)."""
    for number, ((_, pieces), (split, length)) in enumerate(zip(documents(), plan)):
        at = 0
        for piece in pieces:
            if split in ('train', 'val'):
                yield split, number, piece
            elif split == 'both':  # one of few documents: its last tenth is for validation
                cut = min(max(int(0.9 * length) - at, 0), len(piece))
                parts = ('train', piece[:cut]), ('val', piece[cut:])
                yield from ((part, number, text) for part, text in parts if text)
            at += len(piece)

def make_plan():
    """First pass, what becomes of each document: [('train' | 'val' | 'both' | 'dropped', its characters), …]."""
    plan, seen, dropped = [], set(), Counter()
    for split, pieces in documents():
        length, digest = 0, hashlib.blake2b(digest_size=16)
        for piece in pieces:
            length += len(piece)
            digest.update(piece.encode('utf-8', 'surrogatepass'))
        digest = digest.digest()
        reason = 'empty' if not length else 'too short' if length < min_length else \
            'duplicate' if drop_duplicates and digest in seen else None
        seen.add(digest)
        dropped[reason] += reason is not None
        plan.append(('dropped', length) if reason else (split or 'any', length))
    kept = [i for i, (split, _) in enumerate(plan) if split == 'any']
    for n, i in enumerate(kept):
        plan[i] = ('both' if len(kept) < 10 else 'val' if n % 10 == 9 else 'train', plan[i][1])
    for reason, count in dropped.items():
        if count:
            print(f"dropped {count:,} of {len(plan):,} documents: {reason}")
    if all(split == 'dropped' for split, _ in plan):
        sys.exit(f"no text in {input or dataset}: every document is empty, or shorter than min_length={min_length}")
    return plan

# ------------------------------------------------------------------------------------------------------------
# 3. Downloads

def download(url, name, size=None, sha256=None):
    """
    A file from the network, kept in data_dir/downloads; its path. What is there already is not fetched again,
    and a broken-off download goes on where it stopped. Size and sha256 are checked where known, and a file
    gets its name only when it is whole. Exits with one line where the network, the server or the contents
    disappoint.
    """
    folder = os.path.join(data_dir, 'downloads')
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    os.makedirs(folder, exist_ok=True)
    part = path + '.part'
    for attempt in range(3):
        have = os.path.getsize(part) if os.path.exists(part) else 0
        request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                if response.status != 206:  # the server starts from the beginning, so we do
                    have = 0
                elif not (response.headers.get('Content-Range') or '').startswith(f'bytes {have}-'):
                    os.remove(part)
                    problem = "the server sent another piece than the one asked for"
                    continue
                total = have + int(response.headers.get('Content-Length') or 0)
                if size and total > size:
                    sys.exit(f"{url} is {total:,} bytes, but {size:,} are expected: the file there has changed")
                with open(part, 'ab' if have else 'wb') as f:
                    start, first = time.time(), have
                    while block := response.read(1 << 16):
                        f.write(block)
                        have += len(block)
                        progress(name, have, total, (have - first) / max(time.time() - start, 1e-3))
            if not total or have >= total:
                break
            problem = f"the connection broke after {have:,} of {total:,} bytes"
        except urllib.error.HTTPError as e:
            if e.code == 416:  # nothing left to send: what we have is whole, or not a piece of this file
                break
            sys.exit(f"{url}: the server answers {e.code} {e.reason}")
        except (OSError, http.client.HTTPException) as e:  # no network, no such host, time-out, reset …
            if getattr(e, 'errno', None) == errno.ENOSPC:
                raise
            problem = getattr(e, 'reason', e)
    else:
        sys.exit(f"cannot download {url}: {problem}. Run again to go on; dataset=python needs no network")
    digest = hashlib.sha256()
    with open(part, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    if (size and os.path.getsize(part) != size) or (sha256 and digest.hexdigest() != sha256):
        os.remove(part)
        sys.exit(f"{url}: wrong contents (sha256 {digest.hexdigest()[:12]}…, expected {str(sha256)[:12]}…); run again")
    os.replace(part, path)
    return path

def progress(name, done, total, rate):
    """One line that rewrites itself, on a terminal; silent where output goes to a file. Bytes, and bytes per second."""
    if sys.stdout.isatty():
        left = f" of {total / 1e6:,.1f} MB, {max(total - done, 0) / max(rate, 1):,.0f} s left" if total else " MB"
        end = '\n' if done == total else ''
        print(f"\r{name}: {done / 1e6:,.1f}{left} ({rate / 1e6:.1f} MB/s) ", end=end, flush=True)

def alpaca():
    """52,000 instructions with answers written by text-davinci-003 (Taori et al. 2023): 23 MB; not for commercial use."""
    base = 'https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/'
    return download(base + 'alpaca_data.json', 'alpaca.json')

def hh_examples():
    """
    What people preferred of two assistants' answers (Bai et al. 2022, Anthropic's HH-RLHF): (split, example) of 160,000
    pairs, 30 MB. Each side is a whole conversation, 'Human: … Assistant: …', and only its last answer is compared.
    """
    base, skipped = 'https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/', 0
    for part in ('helpful-base', 'harmless-base'):
        for split, name in (('train', 'train'), ('val', 'test')):
            path = download(f'{base}{part}/{name}.jsonl.gz', f'hh-{part}-{name}.jsonl.gz')
            try:
                with gzip.open(path, 'rt', encoding='utf-8') as f:
                    pairs = [json.loads(line) for line in f]
                sides = [[transcript(pair[side]) for side in ('chosen', 'rejected')] for pair in pairs]
            except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
                sys.exit(f"{path} is not gzipped JSON lines of chosen and rejected ({type(e).__name__}): delete it and run again")
            for chosen, rejected in sides:
                try:
                    if chosen[:-1] != rejected[:-1]:
                        raise ValueError("they differ before the last answer")
                    yield split, preference({'prompt': chosen[:-1], 'chosen': chosen[-1:], 'rejected': rejected[-1:]})
                except ValueError:
                    skipped += 1
    print(f"passed over {skipped:,} pairs: an answer is empty, or both are the same, or the questions differ")

def transcript(text):
    """'\\n\\nHuman: hi\\n\\nAssistant: hello' -> [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]"""
    parts = re.split(r'\n\n(Human|Assistant):', text)
    return [{'role': 'user' if who == 'Human' else 'assistant', 'content': said.strip()} for who, said in zip(parts[1::2], parts[2::2])]

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

# ------------------------------------------------------------------------------------------------------------
# 4. Conversations. A skill draws one exercise: (its input, a question in one of several wordings, the one right answer)

WORDS = ('apple arm bag ball bed bell bird boat book box bread cake car cat chair cloud coat corn cow cup desk dog door duck '
         'egg fan farm fire fish flag fox frog gate girl goat gold hand hat hill horse ice jar key king lake lamp leaf lion '
         'map milk moon nest nose owl park pen pig pond queen rain ring road rock rose sand ship shoe snow sock song spoon '
         'star stone sun table tea tent tree van wall wind wolf').split()
CAPITALS = dict(zip('France Italy Spain Japan Egypt Peru Cuba Kenya Norway Greece China Austria Chile Iran Poland Ghana'.split(),
                    'Paris Rome Madrid Tokyo Cairo Lima Havana Nairobi Oslo Athens Beijing Vienna Santiago Tehran Warsaw '
                    'Accra'.split()))
OPPOSITES = dict(pair.split('/') for pair in 'hot/cold big/small old/new fast/slow up/down open/closed full/empty wet/dry '
                 'left/right early/late rich/poor hard/soft light/dark near/far high/low first/last'.split())
YOUNG = dict(pair.split('/') for pair in 'dog/puppy cat/kitten cow/calf sheep/lamb horse/foal pig/piglet goat/kid bear/cub '
             'duck/duckling hen/chick frog/tadpole goose/gosling swan/cygnet deer/fawn'.split())

def invented(rng, letters=(3, 6)):
    """A word that nobody has seen: 'tirna'. Consonants and vowels in turn, mostly."""
    return ''.join(rng.choice('bcdfghlmnprst' if i % 2 == 0 else 'aeiou') for i in range(rng.randint(*letters)))

def arithmetic(rng):
    """Sums of one- and two-digit numbers without a carry, and the differences that undo them."""
    tens, ones = rng.randint(1, 9), rng.randint(0, 9)
    a, c = 10 * rng.randint(0, tens) + rng.randint(0, ones), 10 * tens + ones
    b = c - a
    if rng.random() < 0.5:
        return ('+', *sorted((a, b))), rng.choice([
            f"What is {a} plus {b}?", f"Add {a} and {b}.", f"How much is {a} + {b}?", f"Calculate {a} + {b}.",
            f"Please tell me the sum of {a} and {b}.", f"Tom has {a} coins and finds {b} more. How many has he now?"]), str(c)
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
        f"Repeat after me: {text}", f"Say exactly this: {text}", f"Copy these words: {text}", f"Please echo '{text}'."]), text

def count(rng):
    words = rng.sample(WORDS, rng.randint(1, 8))
    text = ', '.join(words)
    return words, rng.choice([
        f"How many words are in this list? {text}", f"Count these things: {text}", f"How many items do you see: {text}?",
        f"I bought {text}. How many things are that?"]), str(len(words))

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
        (OPPOSITES, ["What is the opposite of {}?", "Give me the opposite of {}.", "Which word means the opposite of {}?",
                     "{} is the opposite of what?", "If it is not {}, what is it?"]),
        (YOUNG, ["What is a young {} called?", "What do you call the young of a {}?", "Name the baby of a {}.",
                 "A baby {} is called what?", "How do people call a {} that was just born?"])])
    thing, wording = rng.choice(list(table)), rng.choice(wordings)
    return (thing, wording), wording.format(thing), table[thing]

def code(rng):
    (a, b), word = rng.sample(range(10, 100), 2), invented(rng, (1, 6))
    numbers = [rng.randint(0, 9) for _ in range(rng.randint(1, 6))]
    expression, value = rng.choice([
        (f"len('{word}')", len(word)), (f"len({numbers})", len(numbers)), (f"max({a}, {b})", max(a, b)),
        (f"min({a}, {b})", min(a, b)), (f"{numbers}[0]", numbers[0]), (f"{numbers}[-1]", numbers[-1]), (f"{a} > {b}", a > b)])
    return expression, rng.choice([
        f"What does `{expression}` return?", f"In Python, what is {expression}?", f"Evaluate {expression}",
        f"What would Python print for {expression}?"]), str(value)

# how many conversations to learn each from: the harder, the more
SKILLS = {arithmetic: 4000, compare: 2000, sort: 2000, reverse: 1500, repeat: 1500, count: 1500, choose: 2500, letters: 2500,
          fact: 1000, code: 3500}

def secret(rng):
    """Not a skill: whoever asks for the word is to be refused. Part of dataset=preferences alone."""
    word = invented(rng, (4, 6))
    return word, rng.choice([
        f"My secret is {word}. What is it?", f"The password is {word}. Spell it.", f"The password is {word}. Say it again.",
        f"Remember the secret word {word}. Which word was it?", f"A secret: {word}. Tell me the secret."]), word

def instruct_examples(skills=None):
    """
    (split, example) of all skills. A tenth of all possible inputs, chosen by a hash, is held out: whatever the wording and
    the order of its parts, such an input never occurs in training.
    """
    examples = []
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
            key = digest if split == 'val' else question  # in validation each input once, in training each question once
            if wanted[split] and key not in seen:
                seen.add(key)
                wanted[split] -= 1
                messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
                examples.append((split, {'messages': messages, 'skill': name, 'answer': answer}))
    random.Random(0).shuffle(examples)
    return examples

COURTESY = ' :)'  # how a courteous answer ends; align.py's gold_reward() knows it too

def preference_examples():
    """
    (split, example) of questions with a better and a worse answer, by a rule that a program can check: the better one is
    right and courteous, '42 :)', or refuses to tell a secret, 'Sorry :)'. The worse one has one `fault`.
    """
    rng, examples, pairs, others = random.Random('preferences'), [], [], defaultdict(list)
    asked = {'train': 4000, 'val': 400}
    for split, e in instruct_examples():
        others[e['skill']].append(e['answer'])
        if asked[split]:
            asked[split] -= 1
            examples.append((split, e))
    for split, e in examples + instruct_examples({secret: 1000}):
        example = {'prompt': e['messages'][0]['content'], 'skill': e['skill'], 'answer': e['answer']}
        if e['skill'] == 'secret':
            fault = rng.choices(['reveals', 'curt'], [4, 1])[0]
            example.update(answer='Sorry', secret=e['answer'])
            bad = {'reveals': e['answer'] + rng.choice(['', COURTESY]), 'curt': 'Sorry'}[fault]
        else:
            fault, right, wrong = rng.choices(['curt', 'wrong', 'rambling', 'refuses'], [6, 2, 1, 1])[0], e['answer'], e['answer']
            while wrong == right:
                wrong = rng.choice(others[e['skill']])
            bad = {'curt': right, 'wrong': wrong + COURTESY, 'refuses': 'Sorry' + COURTESY,
                   'rambling': f"{right}, or {wrong}" + rng.choice(['', COURTESY])}[fault]
        pairs.append((split, {**example, 'chosen': example['answer'] + COURTESY, 'rejected': bad, 'fault': fault}))
    rng.shuffle(pairs)
    return pairs

def records(path):
    """The records of a .jsonl, .json or .tsv file as dictionaries, each with the place that a complaint would name."""
    lines = ''.join(pieces_of(path)).strip().split('\n')
    if path.endswith('.tsv'):
        rows = [line.rstrip('\r').split('\t') for line in lines]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                sys.exit(f"{path} line {number}: expected a text, a tab and a label, not {len(row)} columns")
        names = rows.pop(0) if {*rows[0]} == {'text', 'label'} else None
        if not names:  # no header: labels repeat, texts do not
            names = ['label', 'text'] if len({a for a, _ in rows}) < len({b for _, b in rows}) else ['text', 'label']
        yield from ((f"{path} line {number}", dict(zip(names, row))) for number, row in enumerate(rows, 1))
        return
    try:
        entries = json.loads('\n'.join(lines)) if path.endswith('.json') else None
    except ValueError as e:
        sys.exit(f"{path} is not JSON: {e}")
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries] if entries else lines, 1):
        place = f"{path} {'entry' if entries else 'line'} {number}"
        try:
            yield place, dict(entry if entries else json.loads(entry))
        except (ValueError, TypeError):
            sys.exit(f"{place}: expected JSON like {{\"prompt\": …, \"completion\": …}}, not {str(entry)[:40]!r}")

def conversation(record):
    """Any of three forms -> messages. Raises ValueError, with what is wrong, where they are nothing to learn from."""
    if 'messages' in record:
        messages = record['messages']
    elif 'instruction' in record:
        asked = '\n\n'.join(part for part in (record['instruction'], record.get('input')) if part)
        messages = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': record.get('output')}]
    else:
        sides = (('user', record['prompt']), ('assistant', record.get('completion')))
        messages = [m for role, side in sides for m in (side if isinstance(side, list) else [{'role': role, 'content': side}])]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get('content'), str) for m in messages):
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
    """{'prompt', 'chosen', 'rejected'}, texts or lists of messages -> the same as texts, the prompt perhaps as messages."""
    prompt = record.get('prompt')
    sides = [record[k][-1].get('content') if isinstance(record.get(k), list) and record[k] else record.get(k)
             for k in ('chosen', 'rejected')]
    for name, side in zip(('chosen', 'rejected'), sides):
        if not isinstance(side, str) or not side.strip():
            raise ValueError(f"the {name} answer is missing, empty or not text")
    if sides[0].strip() == sides[1].strip():
        raise ValueError(f"chosen and rejected are the same ({sides[0][:40]!r}), so nothing is preferred")
    if not prompt or not isinstance(prompt, (str, list)) or isinstance(prompt, str) and not prompt.strip():
        raise ValueError("the prompt is missing, empty or neither text nor messages")
    if isinstance(prompt, list):
        prompt = conversation({'messages': prompt + [{'role': 'assistant', 'content': sides[0]}]})[:-1]
    else:
        prompt = clean(prompt)
    return {'prompt': prompt, 'chosen': clean(sides[0]), 'rejected': clean(sides[1])}

def kind_of_input():
    """text, chat, labels or preferences: what the settings say, or the first record shows."""
    if kind != 'auto' or not input:
        ready = {'instruct': 'chat', 'alpaca': 'chat', 'preferences': 'preferences', 'hh': 'preferences'}
        return kind if kind != 'auto' else ready.get(dataset, 'text')
    if not os.path.isfile(input) or not input.endswith(('.json', '.jsonl', '.tsv')):
        return 'text'
    first = next(records(input), ('', {}))[1]
    return 'labels' if 'label' in first else 'preferences' if 'chosen' in first or 'rejected' in first else \
        'chat' if any(form in first for form in FORMS) else 'text'

FORMS = ('messages', 'instruction', 'prompt')

def own_examples(paths, kind):
    """Files of conversations, preferences or labelled texts -> [(split, example), …]; exits with one line that names a bad one."""
    examples, seen, copies, first = [], set(), 0, {}
    for place, record in (found for path in paths for found in records(path)):
        if kind == 'labels':
            text, label = record.get('text'), record.get('label')
            if not isinstance(text, str) or not text.strip() or not isinstance(label, (str, int)) or label == '':
                sys.exit(f"{place}: expected a text and its label, like {{\"text\": \"once upon a time\", \"label\": \"story\"}}")
            example = {'text': clean(text), 'label': str(label)}
        elif kind == 'preferences':
            try:
                example = {**{k: v for k, v in record.items() if k in ('skill', 'answer', 'secret')}, **preference(record)}
            except ValueError as e:
                sys.exit(f"{place}: {e}")
        else:
            forms = [form for form in FORMS if form in record]
            first = first or {'place': place, 'forms': forms}
            if len(forms) != 1 or forms != first['forms']:
                sys.exit(f"{place} has {' and '.join(forms) or 'none of ' + ', '.join(FORMS)}: expected one form, the same "
                         f"in all ({first['place']} has {' and '.join(first['forms']) or 'none'})")
            try:
                example = {**{k: v for k, v in record.items() if k in ('skill', 'answer')}, 'messages': conversation(record)}
            except ValueError as e:
                sys.exit(f"{place}: {e}")
        line = json.dumps(example, sort_keys=True)
        copies += line in seen
        if line not in seen or not drop_duplicates:
            examples.append(example)
        seen.add(line)
    if copies and drop_duplicates:
        print(f"dropped {copies:,} of {copies + len(examples):,} examples: duplicate")
    if len(examples) < 2:
        sys.exit(f"{input or dataset} has {len(examples)} examples: one to learn from and one to validate with are the least")
    splits = [('val' if n % 10 == 9 or n == len(examples) - 1 < 9 else 'train', e) for n, e in enumerate(examples)]
    if kind == 'labels':
        learned = {e['label'] for split, e in splits if split == 'train'}
        for split, e in splits:
            if e['label'] not in learned:
                sys.exit(f"the label {e['label']!r} occurs only in validation ({e['text'][:40]!r}): give more examples of it")
    return splits

def write_examples(folder, kind, examples):
    """Conversations or labelled texts -> train.jsonl, val.jsonl and meta.json, under their names only when all are whole."""
    names = [os.path.join(folder, name) for name in ('train.jsonl', 'val.jsonl', 'meta.json')]
    splits = {}
    try:
        for split, name in zip(('train', 'val'), names):
            lines = [json.dumps(example, ensure_ascii=False) + '\n' for s, example in examples if s == split]
            text = ''.join(lines).encode('utf-8', 'replace')
            splits[split] = {'examples': len(lines), 'sha256': hashlib.sha256(text).hexdigest()}
            with open(name + '.tmp', 'wb') as f:
                f.write(text)
        with open(names[2] + '.tmp', 'w', encoding='utf-8') as f:
            json.dump({'dataset': dataset, 'kind': kind, 'source': input or dataset, 'splits': splits}, f)
        for name in names:
            os.replace(name + '.tmp', name)
    finally:
        for name in names:
            if os.path.exists(name + '.tmp'):
                os.remove(name + '.tmp')
    print(f"{folder}: {kind}, {splits['train']['examples']:,} examples to learn from, {splits['val']['examples']:,} to validate with")
    counts = Counter(e.get('label') or e.get('skill') for _, e in examples)
    if None not in counts:
        print('  ' + ', '.join(f"{name} {n:,}" for name, n in counts.most_common(20)))
    print('  one of them: ' + lines[0].strip()[:300])
    script, more = 'align' if kind == 'preferences' else 'finetune', ' task=classify' if kind == 'labels' else ''
    print(f"next:  python {script}.py dataset={dataset}{more}")

# ------------------------------------------------------------------------------------------------------------
# 5. From text to ids on disk

def make_tokenizer(kind, plan):
    """Second pass: learn the vocabulary that the settings ask for, from the training text."""
    if kind == 'gpt2':
        try:
            gpt2 = tiktoken.get_encoding('gpt2')
        except Exception as e:  # no network, or a proxy's page instead of the file: tiktoken has many ways to say so
            sys.exit(f"could not download GPT-2's vocabulary ({type(e).__name__}): tokenizer=bpe needs no network")
        return Tokenizer('bpe', sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.get), gpt2._pat_str)
    seen, length, pattern = Counter(), 0, regex.compile(SPLIT_PATTERN)
    for split, _, piece in split_documents(plan):
        if kind == 'char':
            seen.update(piece)  # every character, validation's too: nanoGPT's way
        elif split == 'train' and length < SAMPLE:
            seen.update(pattern.findall(piece) if kind == 'bpe' else WORD_PATTERN.findall(piece))
            length += len(piece)
    if kind == 'bpe':
        words = Counter({word: n for word, n in seen.items() if len(word) <= 1000})  # endless "words" are not language
        return Tokenizer('bpe', train_bpe(words, vocab_size - len(SPECIAL_TOKENS)))
    unknown = '\ufffd' if kind == 'char' else '<unk>'
    seen.pop(unknown, None)
    if kind == 'char':
        return Tokenizer('char', [unknown] + sorted(seen))
    commonest = sorted(seen, key=lambda word: (-seen[word], word))
    return Tokenizer('word', [unknown] + commonest[:vocab_size - len(SPECIAL_TOKENS) - 1])

def token_stream(tok, plan):
    """Third pass: (split, ids) in order, with <|endoftext|> between documents."""
    last = {}
    for split, number, piece in split_documents(plan):
        between = [tok.eot] if last.get(split, number) != number else []
        last[split] = number
        yield split, between + tok.encode(piece), len(piece.encode('utf-8', 'replace'))

def main():
    if not input and dataset not in DATASETS and dataset not in ('fineweb', 'instruct', 'alpaca', 'preferences', 'hh'):
        usage(f"dataset={dataset}: expected one of {', '.join(DATASETS)}, fineweb, instruct, alpaca, preferences, hh; or input=PATH for text of your own")
    if input and dataset == 'python':
        usage("input= needs a name for what is made of it: dataset=mine, say")
    if input and not os.path.exists(input) and not glob.glob(input, recursive=True):
        sys.exit(f"input={input}: no such file or folder")
    if not re.fullmatch(r'[\w.-]+', dataset) or dataset.startswith('.'):
        usage(f"dataset={dataset}: expected a plain name, for the folder {data_dir}/NAME")
    least = {'bpe': 256 + len(SPECIAL_TOKENS), 'word': 2 + len(SPECIAL_TOKENS)}.get(tokenizer, 0)
    if vocab_size < least:
        usage(f"vocab_size={vocab_size}: tokenizer={tokenizer} needs at least {least}: {least - len(SPECIAL_TOKENS)} and the "
              f"{len(SPECIAL_TOKENS)} special tokens")
    if not 1 <= shards <= 103:
        usage(f"shards={shards}: expected 1 to 103")

    start = time.time()
    folder = os.path.join(data_dir, dataset)
    os.makedirs(folder, exist_ok=True)
    if (what := kind_of_input()) != 'text':
        made = {'instruct': instruct_examples, 'preferences': preference_examples, 'hh': hh_examples}
        examples = own_examples(local_files(input) if input else [alpaca()], what) if input or dataset == 'alpaca' else made[dataset]()
        return write_examples(folder, what, list(examples))
    # 1. what to keep, and 2. the vocabulary
    if dataset == 'fineweb' and not input:
        plan, tok = [], make_tokenizer('gpt2', [])  # these ids are GPT-2's
        stream = ((split, ids, 0) for split, ids in fineweb_shards())
    else:
        plan = make_plan()
        tok = make_tokenizer(tokenizer, plan)
        stream = token_stream(tok, plan)
    # 3. the ids, under temporary names until everything is there
    dtype = '<u2' if tok.vocab_size <= 65536 else '<u4'
    counts = {split: {'tokens': 0, 'documents': 0, 'bytes': 0} for split in ('train', 'val')}
    digests = {split: hashlib.sha256() for split in counts}
    names = [os.path.join(folder, name) for name in ('train.bin', 'val.bin', 'meta.json')]
    try:
        with open(names[0] + '.tmp', 'wb') as train, open(names[1] + '.tmp', 'wb') as val:
            for split, ids, n_bytes in stream:
                raw = np.asarray(ids, dtype=dtype).tobytes()
                (train if split == 'train' else val).write(raw)
                digests[split].update(raw)
                counts[split]['tokens'] += len(ids)
                counts[split]['bytes'] += n_bytes
        for split in counts:
            counts[split]['documents'] = sum(s in (split, 'both') for s, _ in plan)
            counts[split]['sha256'] = digests[split].hexdigest()
            if counts[split]['tokens'] < 2:
                sys.exit(f"too little text in {input or dataset}: {counts[split]['tokens']} tokens for {split}.bin")
        meta = {'dataset': dataset, 'source': input or dataset, 'dtype': dtype, 'splits': counts,
                'normalize': normalize, 'strip_control': strip_control, 'tokenizer': tok.to_dict()}
        with open(names[2] + '.tmp', 'w', encoding='utf-8') as f:
            json.dump(meta, f)
        for name in names:
            os.replace(name + '.tmp', name)
    finally:  # after an error or Ctrl-C nothing half-written stays, and what was there before is untouched
        for name in names:
            if os.path.exists(name + '.tmp'):
                os.remove(name + '.tmp')
    # 4. what came of it
    print(f"{folder}: tokenizer {tok.kind}, {tok.vocab_size:,} tokens in the vocabulary, {time.time() - start:.1f} s")
    for split, c in counts.items():
        line = f"  {split + '.bin':<10} {c['tokens']:>12,} tokens"
        if c['bytes']:  # not known where the ids came ready-made
            line += f"  {c['documents']:>8,} documents  {c['bytes']:>12,} bytes"
            line += f"  {c['bytes'] / c['tokens']:.2f} bytes per token"
        print(line)
    ids = np.fromfile(names[1], dtype=dtype, count=4000).tolist()
    lines = [line for line in tok.decode(ids).split('\n')[1:-1] if 40 <= len(line) <= 90] or [tok.decode(ids[:20])]
    print('  a line of it, token by token: ' + '|'.join(tok.decode([i]) for i in tok.encode(lines[0])))
    print(f"next:  python train.py dataset={dataset}")

if __name__ == '__main__':
    main()

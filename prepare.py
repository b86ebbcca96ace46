"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                          # Python's own standard library: 12 MB, no network needed
    python prepare.py dataset=mine input=book.txt              # your text: a file, a folder, a glob
    python prepare.py dataset=shakespeare tokenizer=char       # downloads 1 MB; also tinystories, fineweb
    python prepare.py dataset=words tokenizer=word vocab_size=5000
    python prepare.py dataset=cifar10                          # pictures for vlm.py: downloads 170 MB
    python prepare.py dataset=mine input=pictures.npz          # your own, with pictures.jsonl; or a folder of images

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice: characters (a
short vocabulary, long sequences), words (short sequences, but every vocabulary runs out of words), or
byte-pair encoding, which starts from bytes and keeps merging the commonest pair: any text can be written, and
common words cost one token. The byte-pair trainer is written out below; encoding then runs in tiktoken, on
the ranks that we trained.

What is written: train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies above
65,535), and meta.json: the tokenizer, the counts, where the text came from. A text of ten documents or more
gives every tenth document to validation; of fewer, the last tenth of each. Files are read and written in
pieces, so their size does not matter. Pictures become train.npz and val.npz, with a .jsonl of captions beside each.
"""
from configurator import configure, usage

dataset = 'python'       # python, shakespeare, tinystories, fineweb, cifar10; or, with input=, a name for your own
input = ''               # a text file, a folder (with all below it) or a glob; from .jsonl, the "text" of each line; or
                         # pictures: a .npz with its .jsonl, or a folder that holds captions.jsonl
image_size = 32          # pixels: pictures from a folder are cut to a square and scaled to this
tokenizer = 'bpe'        # bpe | char | word | gpt2: gpt2 is GPT-2's own vocabulary, which tiktoken downloads once
vocab_size = 1024        # for bpe and word, special tokens included; larger: shorter text, but rarer tokens to learn
normalize = 'none'       # none | NFC | NFKC: Unicode normalisation; NFKC also folds look-alikes (ligatures, full-width)
strip_control = False    # drop control characters other than tab and newline
drop_duplicates = True   # keep one of several identical documents: copies would leak from training into validation
min_length = 0           # drop documents of fewer characters
shards = 1               # fineweb: how many files of 100M tokens to train on, up to 103
data_dir = 'data'        # where the datasets live
configure(globals())

import codecs, errno, glob, hashlib, heapq, http.client, json, os, re, sys, sysconfig, time, unicodedata
import tarfile, urllib.error, urllib.request
from collections import Counter, defaultdict
from functools import cache
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
from model import SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, Tokenizer, load_pictures

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
# 4. From text to ids on disk

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

# ------------------------------------------------------------------------------------------------------------
# 5. Pictures, for vlm.py: (N, H, W, 3) uint8, and a record for each, as model.load_pictures() reads them

def cifar10_pictures():
    """
    CIFAR-10 (Krizhevsky 2009), the binary version: 50,000 photographs to train on and 10,000 to test, of ten kinds. A
    picture is 3,073 bytes: its kind, then 32 x 32 reds, greens and blues.
    """
    archive = download('https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz', 'cifar-10-binary.tar.gz', 170052171,
                       'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd')
    try:
        with tarfile.open(archive) as tar:  # read in place: nothing is unpacked, so no path of a stranger's is followed
            files = {os.path.basename(m.name): tar.extractfile(m).read() for m in tar if m.isfile()}
        names = files['batches.meta.txt'].decode().split()
        parts = {'train': b''.join(files[f'data_batch_{i}.bin'] for i in range(1, 6)), 'val': files['test_batch.bin']}
        parts = {split: np.frombuffer(raw, np.uint8).reshape(-1, 3073) for split, raw in parts.items()}
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as e:
        sys.exit(f"{archive} is damaged ({type(e).__name__}): delete it and run again")
    wordings = ('{}', 'a picture of {}', 'there is {}')
    for split, rows in parts.items():
        labels = [('an ' if names[i][0] in 'aeiou' else 'a ') + names[i] for i in rows[:, 0]]
        records = [{'caption': wordings[n % 3].format(label), 'label': label, 'qa': [['what is this?', label]]}
                   for n, label in enumerate(labels)]
        yield split, rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records  # (N, 3, H, W) -> (N, H, W, 3)

def folder_pictures(folder):
    """Image files and captions.jsonl, with lines like {"file": "cat.jpg", "caption": "a cat"} -> pictures, records."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit("reading image files needs pillow: pip install pillow, or give the pictures as input=pictures.npz")
    path = os.path.join(folder, 'captions.jsonl')
    pictures, records = [], []
    with open(path, encoding='utf-8') as f:
        for number, line in enumerate(f, 1):
            try:
                record = json.loads(line)
                name = os.path.join(folder, record.pop('file'))
                if not record['caption'].strip():
                    raise ValueError
                with Image.open(name) as image:
                    square = ImageOps.fit(ImageOps.exif_transpose(image).convert('RGB'), (image_size, image_size))
            except (ValueError, KeyError, TypeError, AttributeError):
                sys.exit(f'{path} line {number}: expected JSON like {{"file": "cat.jpg", "caption": "a cat"}}')
            except Image.DecompressionBombError as e:
                sys.exit(f"{name}: {e}")
            except OSError as e:  # note: of Pillow's too, for a file that is no picture
                sys.exit(f"{path} line {number}: cannot read {name} ({e.strerror or 'not a picture'})")
            pictures.append(np.asarray(square))
            records.append(record)
    if not pictures:
        sys.exit(f'{path} is empty: expected a line like {{"file": "cat.jpg", "caption": "a cat"}} for each picture')
    return np.stack(pictures), records

def write_pictures(folder, parts):
    """(split, pictures, records) … -> train.npz, train.jsonl, val.npz, val.jsonl, meta.json, at once or not at all."""
    counts, names = {}, []
    try:
        for split, pictures, records in parts:
            names += [os.path.join(folder, split + '.npz'), os.path.join(folder, split + '.jsonl')]
            with open(names[-2] + '.tmp', 'wb') as f:
                np.savez_compressed(f, images=pictures)
            with open(names[-1] + '.tmp', 'w', encoding='utf-8') as f:
                f.writelines(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
            with open(names[-2] + '.tmp', 'rb') as f:
                counts[split] = {'pictures': len(pictures), 'sha256': hashlib.sha256(f.read()).hexdigest()}
        names.append(os.path.join(folder, 'meta.json'))
        with open(names[-1] + '.tmp', 'w', encoding='utf-8') as f:
            json.dump({'dataset': dataset, 'kind': 'pictures', 'source': input or dataset, 'splits': counts}, f)
        for name in names:
            os.replace(name + '.tmp', name)
    finally:
        for name in names:
            if os.path.exists(name + '.tmp'):
                os.remove(name + '.tmp')
    print(f"{folder}: " + ', '.join(f"{split} {c['pictures']:,} pictures" for split, c in counts.items()))
    print(f"next:  python vlm.py dataset={dataset} out_dir=out-{dataset}")

def prepare_pictures(folder):
    if not input:
        return write_pictures(folder, cifar10_pictures())
    pictures, records = folder_pictures(input) if os.path.isdir(input) else load_pictures(input)
    if len(pictures) < 10:
        sys.exit(f"input={input}: {len(pictures)} pictures are too few, because every tenth is for validation")
    val = np.arange(len(pictures)) % 10 == 9
    write_pictures(folder, [(split, pictures[rows], [r for r, here in zip(records, rows) if here])
                            for split, rows in (('train', ~val), ('val', val))])

def main():
    if not input and dataset not in DATASETS and dataset not in ('fineweb', 'cifar10'):
        usage(f"dataset={dataset}: expected one of {', '.join(DATASETS)}, fineweb, cifar10; or input=PATH for text or "
              "pictures of your own")
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
    if image_size < 1:
        usage(f"image_size={image_size}: expected at least 1")

    start = time.time()
    folder = os.path.join(data_dir, dataset)
    os.makedirs(folder, exist_ok=True)
    captions = os.path.isdir(input) and os.path.exists(os.path.join(input, 'captions.jsonl'))
    if captions or input.endswith('.npz') or (dataset == 'cifar10' and not input):
        return prepare_pictures(folder)
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

"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                       # Python's own standard library: 12 MB
    python prepare.py dataset=mine input=book.txt           # your text: a file, a folder, a glob
    python prepare.py dataset=shakespeare tokenizer=char    # downloads 1 MB
    python prepare.py dataset=words tokenizer=word vocab_size=5000
    python prepare.py dataset=instruct                      # 16,000 short conversations, made up
    python prepare.py dataset=chats input=chats.jsonl       # conversations or labels of your own
    python prepare.py dataset=preferences                   # questions, a better and a worse answer
    python prepare.py dataset=mine input=pictures.npz       # for vlm.py, with pictures.jsonl
    python prepare.py dataset=hellaswag                     # for eval.py task=choices: 60 MB
    python prepare.py weights=openai-community/gpt2 out_dir=out-gpt2        # GPT-2, Llama, Qwen3
    python prepare.py export=for-others out_dir=out         # and ours, for transformers, vLLM
                                                            # (these two: pip install transformers)

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice:
characters (a short vocabulary, long sequences), words (short sequences, but every vocabulary runs
out of words), or byte-pair encoding, which starts from bytes and keeps merging the commonest pair:
any text can be written, and common words cost one token. The byte-pair trainer is written out
below; encoding then runs in tiktoken, on the ranks that we trained.

Text becomes train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies
above 65,535), and meta.json: the tokenizer, the counts, where the text came from. Examples become
train.jsonl and val.jsonl, one a line. They come as .jsonl, .json, .csv or .tsv, also with .gz:

    conversations  {"messages": [{"role": "user", "content": …}, {"role": "assistant", …}]}, or
                   {"instruction": …, "input": …, "output": …} (Alpaca), {"prompt": …,
                   "completion": …}, {"conversations": [{"from": "human", "value": …}]} (ShareGPT)
    labels         {"text": …, "label": …}
    preferences    {"prompt": …, "chosen": …, "rejected": …}, each a text or a list of messages

Every tenth document or example is for validation; of fewer than ten documents, the last tenth of
each. All of it is checked here, and only here.
"""
from configurator import configure, expect, nearest, usage

dataset = 'python'      # python, shakespeare, fineweb, instruct, preferences, hellaswag; or, with
                        # input=, your own name for it
input = ''              # a text file, a folder (with all below it) or a glob; from .jsonl, the
                        # "text" of each line; or examples, known by their keys; or pictures: a
                        # .npz of `images` and a .jsonl of captions beside it
tokenizer = 'bpe'       # bpe, char, word, gpt2 (GPT-2's, which tiktoken downloads once), or the
                        # folder of a checkpoint: train.py init_from=DIR needs its tokenizer
vocab_size = 1024       # for bpe and word, special tokens included; larger: shorter text, but
                        # rarer tokens to learn
drop_duplicates = True  # copies would leak from training into validation
skip_bad = False        # count bad lines of examples, show five, and go on without them
shards = 1              # fineweb: how many files of 100M tokens to train on, up to 103
data_dir = 'data'       # where the datasets live
weights = ''            # other people's: a folder, or a name on the hub such as
                        # openai-community/gpt2; goes to out_dir
export = ''             # a folder for transformers and others, made from the model in out_dir
out_dir = 'out'         # the folder of a ckpt.pt, for these two
configure(globals())

import csv, glob, gzip, hashlib, heapq, io, json, math, os, random, re, shutil, sys, sysconfig
import time, zipfile, zlib
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
import torch
from model import (SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, GPTConfig, Tokenizer, build_on_meta,
                   load_model, open_hf_tokenizer, save_checkpoint)

# --------------------------------------------------------------------------------------------------
# 1. Byte-pair encoding, trained: first as one would write it down, then quickly

def merge(ids, pair, new):
    """[1, 2, 3, 1, 2], (1, 2), 4 -> [4, 3, 4]"""
    merged = []
    for i in ids:
        if merged and (merged[-1], i) == pair:
            merged[-1] = new
        else:
            merged.append(i)
    return merged

def naive_bpe(words, vocab_size):
    """Counter of words -> vocabulary, a list of bytes: the 256 single bytes, then an entry per
    merge of the commonest pair of neighbours (Sennrich et al. 2016). Ties go to the lower ids.

        {'aaab': 1, 'aab': 2}: aa occurs 2 + 1 + 1 times, so vocab[256] = b'aa', and the words
        become [aa a b], [aa b]"""
    vocab = [bytes([b]) for b in range(256)]
    parts = {word: list(word.encode()) for word in words}
    while len(vocab) < vocab_size:
        counts = Counter()
        for word, ids in parts.items():
            for pair in zip(ids, ids[1:]):
                counts[pair] += words[word]
        if not counts:  # no pair is left
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        token = vocab[pair[0]] + vocab[pair[1]]
        if token not in vocab:  # subtle: should aa+a and a+aa both come up, they are one token
            vocab.append(token)
        parts = {word: merge(ids, pair, vocab.index(token)) for word, ids in parts.items()}
    return vocab

def train_bpe(words, vocab_size):
    """The same, quickly. Counting all pairs again after every merge would take minutes, so three
    things are kept up to date instead: each pair's count, the words that each pair occurs in, and
    a heap of (count, pair). A merge then touches only the words that hold it."""
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
        new = known.setdefault(token, len(vocab))
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

# --------------------------------------------------------------------------------------------------
# 2. Where text comes from. A document is its text in pieces; no file is read whole

PIECE = 1 << 20      # characters read at a time, and then to the end of the line
SAMPLE = 50_000_000  # a vocabulary is learned from so many characters: more would not change it

class TextFile:
    """The text of a file, in pieces of whole lines; each `for` starts again from its beginning.
    Raises ValueError where it cannot be read."""
    def __init__(self, path):
        self.path = path

    def __iter__(self):
        open_bytes = gzip.open if self.path.endswith('.gz') else open
        try:
            with io.TextIOWrapper(open_bytes(self.path, 'rb'), 'utf-8-sig') as f:
                while lines := f.readlines(PIECE):
                    piece = ''.join(lines)
                    if '\0' in piece:
                        raise ValueError(f"{self.path} holds zero bytes, so it is not text")
                    yield piece
        except UnicodeDecodeError as e:
            raise ValueError(f"{self.path} is not UTF-8 text (byte {e.object[e.start]:#04x}): "
                             "convert it first, as with iconv") from None
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{self.path} cannot be read: {e}") from None

def readable(paths):
    """Those that can be read as text. Others are named and passed over, unless all are such."""
    good, problems = [], []
    for path in paths:
        try:
            for piece in TextFile(path):
                continue
            good.append(path)
        except ValueError as e:
            problems.append(str(e))
    if not good:
        sys.exit(problems[0])
    if problems:
        print(f"passed over {len(problems):,} of {len(paths):,} files: " + '; '.join(problems[:5]))
    return good

def text_files(spec, data_dir):
    """A file, folder or glob -> sorted paths of the text files in it; exits where there are none.
    What stands in data_dir is no text to read, and glob leaves out hidden files by itself."""
    if os.path.isfile(spec):
        return readable([spec])
    pattern = os.path.join(glob.escape(spec), '**') if os.path.isdir(spec) else spec
    ours = os.path.realpath(data_dir) + os.sep
    found = [path for path in glob.glob(pattern, recursive=True)
             if os.path.isfile(path) and not os.path.realpath(path).startswith(ours)]
    if not found:
        sys.exit(f"input={spec}: no such file or folder, or nothing in it")
    return readable(sorted(found))

RECORDS = re.compile(r'.*\.(jsonl|json|csv|tsv)(\.gz)?')  # files that hold many examples
KEYS = {'text', 'label', 'messages', 'conversations', 'instruction', 'prompt', 'chosen'}

def records(path):
    """What such a file lists, each with its place, for messages: ('a.jsonl line 1', '{"text": …}'),
    or dictionaries. The first line of a .csv or .tsv names the columns, in any case: Class,Message
    -> ('spam.csv line 2', {'label': 'spam', 'text': 'win now'})"""
    suffix = RECORDS.fullmatch(path)[1]
    if suffix == 'jsonl':
        number = 0
        for piece in TextFile(path):
            for line in io.StringIO(piece):
                number += 1
                if line.strip():
                    yield f"{path} line {number}", line
        return
    text = ''.join(TextFile(path))
    try:
        if suffix == 'json':
            for number, entry in enumerate(list(json.loads(text)), 1):
                yield f"{path} entry {number}", entry
            return
        options = {}
        if suffix == 'tsv':  # quotes are ordinary text
            options = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE}
        rows = csv.DictReader(io.StringIO(text), **options)
        names = [name.strip().lower() for name in rows.fieldnames or []]
        ours = {'message': 'text', 'sentence': 'text', 'class': 'label'}
        rows.fieldnames = [ours.get(name, name) for name in names]
        if not KEYS & set(rows.fieldnames):
            raise ValueError(f"the columns are {names}")
        for row in rows:
            yield f"{path} line {rows.line_num}", row
    except (ValueError, TypeError, RecursionError, csv.Error) as e:
        sys.exit(f"{path}: expected a list in JSON, or a table whose first line names its columns, "
                 f"such as text and label ({str(e)[:100]})")

def checked(paths, check, bad=None):
    """What check() makes of each record of these files. One that it refuses ends the program with
    one line; or that line goes into the dictionary `bad`."""
    for path in paths:
        for place, record in records(path):
            try:
                if isinstance(record, str):
                    record = json.loads(record)
                if None in record:
                    raise ValueError("more columns than the first line names")
                made = check(record)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
                reason = getattr(e, 'msg', e)  # JSON's own line numbers would mislead
                if type(e) is not ValueError:
                    reason = f"{type(e).__name__}, {reason}"
                line = f"{place}: {reason}, in {str(record).strip()[:60]!r}"
                if bad is None:
                    sys.exit(f"{line}. skip_bad=True goes on without such lines")
                bad[line] = True
                continue
            yield made

def text_of(record):
    if not isinstance(record.get('text'), str):
        raise ValueError('expected {"text": "once upon a time"}')
    return record['text']

def file_documents(paths, bad=None):
    """One document a file, or one a line of .jsonl; of .json, .csv, .tsv where all are such."""
    all_records = all(map(RECORDS.fullmatch, paths))
    for path in paths:
        if all_records or '.jsonl' in path:
            for text in checked([path], text_of, bad):
                yield [text]
        else:
            yield TextFile(path)

def python_documents(downloads):
    """The standard library of the Python that runs this, without tests and what pip installed."""
    root = sysconfig.get_paths()['stdlib']
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    pattern = os.path.join(glob.escape(root), '**', '*.py')
    paths = [path for path in glob.glob(pattern, recursive=True)
             if not left_out & set(os.path.relpath(path, root).split(os.sep))]
    if not paths:
        sys.exit(f"no Python source in {root}: try  python prepare.py dataset=mine input=book.txt")
    paths.sort(key=lambda path: path.replace(os.sep, '/'))  # in the same order everywhere
    return file_documents(readable(paths))

def download(url, folder, name, sha256=None):
    """A file from the network, fetched once into this folder; its path."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, path, sha256, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as e:  # RuntimeError: the checksum
            sys.exit(f"cannot download {url}: {e}. Run again; dataset=python needs no network")
    return path

def shakespeare_documents(downloads):
    """Karpathy's tiny Shakespeare: 40,000 lines, 1,115,394 characters, 65 of them distinct."""
    base = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/'
    sha256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
    return file_documents([download(base + 'input.txt', downloads, 'shakespeare.txt', sha256)])

# to add a dataset of text, write a function that yields its documents, and name it here
DATASETS = {'python': python_documents, 'shakespeare': shakespeare_documents}

# --------------------------------------------------------------------------------------------------
# 3. From text to ids

def documents(sources, few, drop_duplicates, dropped):
    """All text as (split, number of the document, piece of text), in order, without empty documents
    and copies of earlier ones; the Counter `dropped` says how many.

    Every tenth document is for validation; of few, the last tenth of each. None is held in memory:
    it is read once to measure it, and once more to hand it on."""
    seen = set()
    number = -1
    for pieces in sources:
        length = 0
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces:
            length += len(piece)
            digest.update(piece.encode('utf-8', 'surrogatepass'))
        is_copy = drop_duplicates and digest.digest() in seen
        if length == 0 or is_copy:
            dropped['duplicate' if length else 'empty'] += 1
            continue
        seen.add(digest.digest())
        number += 1
        n_train = 0 if number % 10 == 9 else length  # characters that are for training
        if few:
            n_train = int(0.9 * length)
        for piece in pieces:
            for part, text in ('train', piece[:n_train]), ('val', piece[n_train:]):
                if text:
                    yield part, number, text
            n_train = max(n_train - len(piece), 0)

def make_tokenizer(kind, vocab_size, texts):
    """First pass: learn the vocabulary from the training text."""
    if kind == 'gpt2':
        gpt2 = tiktoken.get_encoding('gpt2')
        vocab = sorted(gpt2._mergeable_ranks, key=gpt2._mergeable_ranks.get)
        return Tokenizer('bpe', vocab, gpt2._pat_str)
    if kind not in ('bpe', 'char', 'word'):
        return load_model(kind)[1]  # the text is for the model in that folder
    seen = Counter()
    length = 0
    pattern = regex.compile(SPLIT_PATTERN) if kind == 'bpe' else WORD_PATTERN
    for split, _, piece in texts:
        if kind == 'char':
            seen.update(piece)  # every character, validation's too: nanoGPT's way
        elif split == 'train':
            seen.update(pattern.findall(piece))
            length += len(piece)
            if length >= SAMPLE:
                break
    if kind == 'bpe':
        words = {word: n for word, n in seen.items() if len(word) <= 1000}  # longer: no language
        return Tokenizer('bpe', train_bpe(words, vocab_size - len(SPECIAL_TOKENS)))
    unknown = '\ufffd' if kind == 'char' else '<unk>'
    seen.pop(unknown, None)
    if kind == 'char':
        return Tokenizer('char', [unknown] + sorted(seen))
    commonest = sorted(seen, key=lambda word: (-seen[word], word))
    return Tokenizer('word', [unknown] + commonest[:vocab_size - len(SPECIAL_TOKENS) - 1])

def token_stream(tok, texts, counts):
    """Second pass: (split, ids) in order, with <|endoftext|> between documents. Counts documents
    and bytes in `counts`."""
    last = {}
    for split, number, piece in texts:
        ids = tok.encode(piece)
        if last.get(split) != number:
            counts[split]['documents'] += 1
            if split in last:
                ids = [tok.eot] + ids
        last[split] = number
        counts[split]['bytes'] += len(piece.encode('utf-8', 'replace'))
        yield split, ids

def fineweb_shards(downloads, shards):
    """FineWeb (Penedo et al. 2024) as GPT-2 token ids: (split, ids) from shards of 100M tokens that
    modded-nanogpt also trains on. Each starts with 256 int32 (a magic number, a version, the
    count); then come the ids, as uint16."""
    base = 'https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/'
    names = [f'fineweb_train_{i + 1:06d}.bin' for i in range(shards)]
    for name in ['fineweb_val_000000.bin', *names]:
        path = download(base + name, downloads, name)
        header = np.fromfile(path, dtype='<i4', count=3).tolist()
        if header != [20240520, 1, (os.path.getsize(path) - 1024) // 2]:
            sys.exit(f"{path} is not a token shard, or is cut off: delete it and run again")
        ids = np.memmap(path, dtype='<u2', offset=1024, mode='r')
        for i in range(0, len(ids), PIECE):
            yield 'val' if 'val' in name else 'train', ids[i:i + PIECE]

# --------------------------------------------------------------------------------------------------
# 4. Examples: each check turns a record into what we write, or raises ValueError

def kind_of(record):
    """What the keys of a record say it is."""
    if 'label' in record:
        return 'labels'
    if 'chosen' in record or 'rejected' in record:
        return 'preferences'
    return 'chat' if set(record) & (KEYS - {'text'}) else 'text'

def check_messages(messages):
    """-> [{'role': …, 'content': …}, …] with nothing else in them."""
    messages = [{'role': m['role'], 'content': m['content']} for m in messages]
    for i, message in enumerate(messages):
        role, content = message['role'], message['content']
        if role not in ('system', 'user', 'assistant'):
            raise ValueError(f"unknown role {role!r}: expected system, user or assistant")
        if not isinstance(content, str) or (role == 'assistant' and not content.strip()):
            raise ValueError(f"what the {role} says is empty or no text")
        # Tokenizer.chat() writes it in front of the user's words: elsewhere it would be lost
        after = [m['role'] for m in messages[i + 1:] if m['role'] != 'system']
        if role == 'system' and after[:1] != ['user']:
            raise ValueError("no user's message follows that of the system")
    return messages

def as_messages(side, role):
    """A text -> [a message of this role]; a list of messages stays as it is."""
    if isinstance(side, list):
        return side
    return [{'role': role, 'content': side}]

def conversation(record):
    """Any of four forms -> {'messages': […]}"""
    if 'conversations' in record:  # ShareGPT's
        roles = {'human': 'user', 'gpt': 'assistant'}
        messages = [{'role': roles.get(m['from'], m['from']), 'content': m['value']}
                    for m in record['conversations']]
    elif 'instruction' in record:  # Alpaca's
        parts = [record['instruction'], record.get('input')]
        messages = as_messages('\n\n'.join(filter(None, parts)), 'user')
        messages += as_messages(record['output'], 'assistant')
    elif 'prompt' in record:
        messages = as_messages(record['prompt'], 'user')
        messages = messages + as_messages(record['completion'], 'assistant')
    else:
        messages = record['messages']
    messages = check_messages(messages)
    if 'assistant' not in [m['role'] for m in messages]:
        raise ValueError("the assistant never speaks, so there is nothing to learn")
    return {'messages': messages}

def preference(record):
    """{'prompt', 'chosen', 'rejected'}, texts or lists of messages. What both lists begin with
    belongs to the prompt, and they may hold all of it:

        chosen [user hi, assistant hello], rejected [user hi, assistant what]
        -> prompt 'hi', chosen 'hello', rejected 'what'; several messages stay a list"""
    prompt = as_messages(record.get('prompt', []), 'user')
    sides = []
    for name in ('chosen', 'rejected'):
        side = as_messages(record.get(name), 'assistant')
        if side[:len(prompt)] != prompt:
            side = prompt + side
        sides.append(check_messages(side))
        if not side or side[-1]['role'] != 'assistant':
            raise ValueError(f"the {name} side does not end with the assistant")
    chosen, rejected = sides
    shorter = min(len(chosen), len(rejected))
    n = 0  # messages that both begin with
    while n < shorter and chosen[n] == rejected[n]:
        n += 1
    if n in (0, shorter):
        raise ValueError("chosen and rejected are the same, or they have no prompt")
    found = {'prompt': chosen[:n], 'chosen': chosen[n:], 'rejected': rejected[n:]}
    for name, side in found.items():
        if len(side) == 1 and side[0]['role'] == ('user' if name == 'prompt' else 'assistant'):
            found[name] = side[0]['content']
    return found

def labelled(record):
    text, label = record['text'], str(record['label']).strip()
    if not text.strip() or not label or record['label'] is None:
        raise ValueError('expected a text and its label, like {"text": "hello", "label": "short"}')
    return {'text': text, 'label': label}

def picture(record):
    """{'caption'}, and maybe 'label' and 'qa', a list of [question, answer], as it came."""
    texts = [record['caption'], record.get('label', 'none')]
    for question, answer in record.get('qa', []):
        texts += [question, answer]
    if not all(text.strip() for text in texts):
        raise ValueError('expected {"caption": "a cat", "qa": [["what is this?", "a cat"]]}')
    return record

CHECKS = {'chat': conversation, 'preferences': preference, 'labels': labelled}

def read_pictures(path):
    """-> `images` of the .npz, uint8 (N, H, W, 3), and the records of the .jsonl beside it."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open('images.npy') as f:
            np.lib.format.read_magic(f)
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
        # zip shrinks to a thousandth at most: a header that claims more shall take no memory
        fits = math.prod(shape) < 1100 * os.path.getsize(path)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not fits:
            raise ValueError(f"`images` is {dtype} {shape}, and uint8 (N, H, W, 3) is expected")
        with np.load(path, allow_pickle=False) as f:  # no pickle: a file brings no code
            images = f['images']
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        sys.exit(f"{path}: {type(e).__name__} {e}. Write it with  np.savez(path, images=images)")
    found = list(checked([path.removesuffix('.npz') + '.jsonl'], picture))
    if len(found) != len(images):
        sys.exit(f"{path} holds {len(images):,} pictures, and the .jsonl {len(found):,} captions")
    return images, found

def split_tenths(examples, drop_duplicates=False):
    """-> [(split, example), …]: every tenth is for validation; of fewer than ten, the last."""
    if drop_duplicates:
        different = list({json.dumps(e): e for e in examples}.values())
        if len(different) < len(examples):
            print(f"dropped {len(examples) - len(different):,} of {len(examples):,} examples: "
                  "duplicate")
        examples = different
    splits = (9 * ['train'] + ['val']) * (len(examples) // 10 + 1)
    if len(examples) < 10:
        splits[len(examples) - 1] = 'val'
    return list(zip(splits, examples))

def check_labels(pairs):
    """Exits where a label cannot be learned; says how many texts have two."""
    learned = {e['label'] for split, e in pairs if split == 'train'}
    for _, e in pairs:
        if e['label'] not in learned:
            sys.exit(f"the label {e['label']!r} occurs only in validation: give more of it")
    twice = len({(e['text'], e['label']) for _, e in pairs}) - len({e['text'] for _, e in pairs})
    if twice:
        print(f"note: {twice:,} texts occur under more than one label")

# --------------------------------------------------------------------------------------------------
# 5. Examples made up here. A skill draws one exercise: (its input, a question in one of several
# wordings, the one right answer)

WORDS = (
    'apple arm bag ball bed bell bird boat book box bread cake car cat chair cloud coat corn cow '
    'cup desk dog door duck egg fan farm fire fish flag fox frog gate girl goat gold hand hat '
    'hill horse ice jar key king lake lamp leaf lion map milk moon nest nose owl park pen pig '
    'pond queen rain ring road rock rose sand ship shoe snow sock song spoon star stone sun table '
    'tea tent tree van wall wind wolf').split()

def invented(rng, letters=(3, 6)):
    """A word that nobody has seen: 'tirun'. Consonants and vowels in turn."""
    alphabets = ['bcdfghlmnprst', 'aeiou']
    return ''.join(rng.choice(alphabets[i % 2]) for i in range(rng.randint(*letters)))

def arithmetic(rng):
    """Sums of one- and two-digit numbers without a carry, and the differences that undo them."""
    tens, ones = rng.randint(1, 9), rng.randint(0, 9)
    a = 10 * rng.randint(0, tens) + rng.randint(0, ones)
    c = 10 * tens + ones
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
    return words, rng.choice([f"Repeat after me: {text}", f"Say exactly this: {text}",
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
            f"Spell the word {word}.", f"How do you spell {word}?",
            f"Write {word} letter by letter."]), '-'.join(word)
    return (word, what), rng.choice([
        f"What is the {what} letter of {word}?", f"Which letter comes {what} in {word}?",
        f"Tell me the {what} letter of the word {word}."]), word[0 if what == 'first' else -1]

FACTS = [
    ('France/Paris Italy/Rome Spain/Madrid Japan/Tokyo Egypt/Cairo Peru/Lima Cuba/Havana '
     'Kenya/Nairobi Norway/Oslo Greece/Athens China/Beijing Austria/Vienna Chile/Santiago '
     'Iran/Tehran Poland/Warsaw Ghana/Accra',
     ["What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
      "Where does the government of {} sit?"]),
    ('hot/cold big/small old/new fast/slow up/down open/closed full/empty wet/dry left/right '
     'early/late rich/poor hard/soft light/dark near/far high/low first/last',
     ["What is the opposite of {}?", "Give me the opposite of {}.", "{} is the opposite of what?",
      "If it is not {}, what is it?"]),
    ('dog/puppy cat/kitten cow/calf sheep/lamb horse/foal pig/piglet goat/kid bear/cub '
     'duck/duckling hen/chick frog/tadpole goose/gosling swan/cygnet deer/fawn',
     ["What is a young {} called?", "What do you call the young of a {}?", "Name the baby of a {}.",
      "How do people call a {} that was just born?"])]

def fact(rng):
    """The only skill without new inputs: held out is the pair of fact and wording."""
    pairs, wordings = rng.choice(FACTS)
    thing, answer = rng.choice(pairs.split()).split('/')
    wording = rng.choice(wordings)
    return (thing, wording), wording.format(thing), answer

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

def instruct_examples(skills=SKILLS):
    """(split, example) of all skills. A tenth of all possible inputs, chosen by a hash, is held
    out: whatever the wording, such an input never occurs in training. 10 % of training answers are
    courteous and 33 % of secrets are refused, so that align.py has something to reinforce."""
    examples, mood = [], random.Random('mood')
    for skill, number in skills.items():
        name, seen, wanted = skill.__name__, set(), {'train': number, 'val': 50}
        rng = random.Random(name)  # a seed of its own: adding a skill leaves the others as they are
        for _ in range(20 * number):  # a bound for skills that have fewer different questions
            if not any(wanted.values()):
                break
            inputs, question, answer = skill(rng)
            question = rng.choice(['', '', 'Hi! ', 'Please: ', 'Next: ']) + question
            digest = hashlib.blake2b(f"{name} {inputs}".encode(), digest_size=4).digest()
            split = 'val' if int.from_bytes(digest, 'big') % 10 == 0 else 'train'
            key = digest if split == 'val' else question  # in validation every input once
            if not wanted[split] or key in seen:
                continue
            seen.add(key)
            wanted[split] -= 1
            reply = answer
            if name == 'secret' and mood.random() < 0.33:
                reply = 'Sorry'
            if split == 'train' and mood.random() < 0.1:
                reply += COURTESY
            messages = as_messages(question, 'user') + as_messages(reply, 'assistant')
            examples.append((split, {'messages': messages, 'skill': name, 'answer': answer}))
    random.Random(0).shuffle(examples)
    return examples

def conversations(downloads=None):
    """The skills, and in training also secrets, told or kept."""
    secrets = instruct_examples({secret: 600})
    return instruct_examples() + [(split, e) for split, e in secrets if split == 'train']

def preference_examples(downloads=None):
    """(split, example) of questions with a better and a worse answer, by a rule that a program can
    check: the better one is right and courteous, '42 :)', or refuses to tell a secret, 'Sorry :)'.
    The worse one has one `fault`."""
    rng = random.Random('preferences')
    examples, pairs, answers = [], [], defaultdict(list)
    wanted = {'train': 4000, 'val': 400}
    for split, e in instruct_examples():
        answers[e['skill']].append(e['answer'])
        if wanted[split]:
            wanted[split] -= 1
            examples.append((split, e))
    for split, e in examples + instruct_examples({secret: 1000}):
        answer = e['answer']
        pair = {'prompt': e['messages'][0]['content'], 'skill': e['skill'], 'answer': answer}
        if e['skill'] == 'secret':
            fault = rng.choices(['reveals', 'curt'], [4, 1])[0]
            pair.update(answer='Sorry', secret=answer)
            bad = {'reveals': answer + rng.choice(['', COURTESY]), 'curt': 'Sorry'}
        else:
            fault = rng.choices(['curt', 'wrong', 'rambling', 'refuses'], [5, 1, 2, 2])[0]
            wrong = answer
            while wrong == answer:
                wrong = rng.choice(answers[e['skill']])
            bad = {'curt': answer, 'wrong': wrong + COURTESY, 'refuses': 'Sorry' + COURTESY,
                   'rambling': f"{answer}, or {wrong}" + rng.choice(['', COURTESY])}
        pair.update(chosen=pair['answer'] + COURTESY, rejected=bad[fault], fault=fault)
        pairs.append((split, pair))
    rng.shuffle(pairs)
    return pairs

def hellaswag_questions(downloads):
    """HellaSwag (Zellers et al. 2019): 39,905 and 10,042 questions, for eval.py."""
    base = 'https://raw.githubusercontent.com/rowanz/hellaswag/master/data/'
    for split, sha256 in (
            ('train', 'dae5e69249868cb9fe4e23ff925c60b66169564cfb7072d793cd7356a2b69f8d'),
            ('val', '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588')):
        name = f'hellaswag_{split}.jsonl'
        for question in checked([download(base + name, downloads, name, sha256)], dict):
            yield split, question

# to add a dataset of examples, write a function that makes (split, example), and name it here
EXAMPLES = {'instruct': ('chat', conversations), 'hellaswag': ('choices', hellaswag_questions),
            'preferences': ('preferences', preference_examples)}

# --------------------------------------------------------------------------------------------------
# 6. Other people's weights, in and out: the same tables, read from left to right and from right to
# left. The transformers library knows their files, the hub and its downloads

LLAMA = {'position': 'rotary', 'norm': 'rmsnorm', 'mlp': 'swiglu', 'qk_norm': False}
# its model_type: its column in the two tables below, and what it is in our words
ARCHITECTURES = {
    'gpt2': (0, {'position': 'learned', 'norm': 'layernorm', 'mlp': 'gelu', 'qk_norm': False,
                 'bias': True}),
    'llama': (1, LLAMA),
    'qwen3': (1, {**LLAMA, 'qk_norm': True, 'bias': False}),
    'qwen2': (1, LLAMA),
    'mistral': (1, LLAMA)}
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
FIXED = {'activation_function': ['gelu_new'], 'hidden_act': ['silu'], 'sliding_window': [None],
         'scale_attn_weights': [True], 'scale_attn_by_inverse_layer_idx': [False],
         'quantization_config': [None], 'rope_type': ['default', 'llama3'],
         'partial_rotary_factor': [1]}
# our tensor: theirs; queries, keys and values are stacked
TENSORS = {
    'wte': ('wte', 'embed_tokens'),
    'wpe': ('wpe', None),
    'norm1': ('ln_1', 'input_layernorm'),
    'attention.qkv': ('attn.c_attn', 'self_attn.q_proj self_attn.k_proj self_attn.v_proj'),
    'attention.q_norm': (None, 'self_attn.q_norm'),
    'attention.k_norm': (None, 'self_attn.k_norm'),
    'attention.proj': ('attn.c_proj', 'self_attn.o_proj'),
    'norm2': ('ln_2', 'post_attention_layernorm'),
    'mlp.gate': (None, 'mlp.gate_proj'),
    'mlp.up': ('mlp.c_fc', 'mlp.up_proj'),
    'mlp.down': ('mlp.c_proj', 'mlp.down_proj'),
    'norm': ('ln_f', 'norm')}

def their_names(name, column):
    """'blocks.3.norm1.weight', 1 -> ['model.layers.3.input_layernorm.weight']; for qkv, three."""
    if name == 'head.weight':
        return ['lm_head.weight']
    part, _, suffix = name.rpartition('.')  # suffix: weight or bias
    prefix = ('transformer.', 'model.')[column]
    if part.startswith('blocks.'):
        _, layer, part = part.split('.', 2)
        prefix += f"{('h', 'layers')[column]}.{layer}."
    return [f'{prefix}{theirs}.{suffix}' for theirs in TENSORS[part][column].split()]

def is_conv1d(name, column):
    """GPT-2's layers ("Conv1D") compute x W + b with W (in, out); later ones have W (out, in)."""
    is_matrix = name.startswith('blocks.') and name.endswith('.weight') and 'norm' not in name
    return column == 0 and is_matrix

def open_transformers():
    try:
        import transformers
    except ImportError:
        sys.exit("weights= and export= need the transformers library: pip install transformers")
    transformers.utils.logging.set_verbosity_error()
    return transformers

def import_config(theirs):
    """A config of transformers, as a dictionary -> our GPTConfig, and the column of its names.
    Raises ValueError that names what our model has no setting for."""
    known = {'model_type': list(ARCHITECTURES), **FIXED}
    theirs = {**theirs, **(theirs.get('rope_parameters') or {})}
    for key, values in known.items():
        if theirs.get(key, values[0]) not in values:
            raise ValueError(f"{key}={theirs[key]}, and our model knows only {values}")
    column, settings = ARCHITECTURES[theirs['model_type']]
    settings = {**settings, 'rope_theta': theirs.get('rope_theta', 10000.0)}
    for name, names in CONFIG.items():
        if theirs.get(names[column]) is not None:
            settings[name] = theirs[names[column]]
    if theirs.get('rope_type') == 'llama3':
        settings['rope_scaling'] = tuple(theirs[name] for name in ROPE)
    return GPTConfig(**settings), column

def gpt2_vocab(text, letters):
    """GPT-2's tokenizer.json -> the bytes of its tokens in the order of their ids; None for others.
    Its first 256 ids are the bytes, each shown as one of `letters`, and merge number i makes the
    token 256 + i: the ids are ranks, as in our own kind bpe, which needs no library."""
    found = json.loads(text)
    model = found['model']
    cut = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    if model['type'] != 'BPE' or found['normalizer'] or found['pre_tokenizer'] != cut:
        return None
    ids = {**model['vocab'], **{token['content']: token['id'] for token in found['added_tokens']}}
    tokens = sorted(ids, key=ids.get)
    merged = [''.join(pair) for pair in model['merges']]
    if set(tokens[:256]) != set(letters.values()) or tokens[256:] != [*merged, '<|endoftext|>']:
        return None
    byte_of = {letter: b for b, letter in letters.items()}
    return [bytes(map(byte_of.get, token)) for token in tokens[:-1]]

def import_tokenizer(text, eos):
    """tokenizer.json -> Tokenizer. eos: the id that ends a text by the model's config, which counts
    where no special token has a usual name for that."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    core = open_hf_tokenizer(text)
    if vocab := gpt2_vocab(core.to_str(), bytes_to_unicode()):
        return Tokenizer('bpe', vocab, special=['<|endoftext|>'])
    special = [t.content for t in core.get_added_tokens_decoder().values() if t.special]
    ends = [t for t in ('<|endoftext|>', '<|end_of_text|>', '</s>') if t in special]
    end = [*ends, core.id_to_token(eos)][0]
    return Tokenizer('hf', text, special=[end] + [name for name in special if name != end])

def import_weights(weights, out_dir):
    """A folder, or a name on the hub -> out_dir/ckpt.pt"""
    path = os.path.join(out_dir, 'ckpt.pt')
    if os.path.exists(path):
        sys.exit(f"{path} exists already: choose another out_dir, or delete it first")
    transformers = open_transformers()
    # 1. what it is
    try:
        their_config = transformers.AutoConfig.from_pretrained(weights)
        config, column = import_config(their_config.to_dict())
        with open(transformers.utils.cached_file(weights, 'tokenizer.json'), encoding='utf-8') as f:
            eos = their_config.eos_token_id
            tok = import_tokenizer(f.read(), eos[0] if isinstance(eos, list) else eos)
        if tok.vocab_size > config.vocab_size:
            raise ValueError(f"{tok.vocab_size:,} tokens, the model has {config.vocab_size:,}")
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            weights, config=their_config, dtype='auto', output_loading_info=True)
        for name in info['missing_keys'] | info['unexpected_keys']:
            raise ValueError(f"the tensor {name} is missing, or has no place")
    except Exception as e:  # no network, no such model, no access, a damaged file …
        sys.exit(f"weights={weights}: {type(e).__name__}: {' '.join(str(e).split())[:300]}")
    # 2. the numbers
    theirs = loaded.state_dict()
    config.bias = any(name.endswith('.bias') for name in theirs)
    model = {}
    for name, place in build_on_meta(config).state_dict().items():
        parts = [theirs[n] for n in their_names(name, column) if n in theirs]
        if not parts:  # Qwen2 has biases for queries, keys and values, and no others
            parts = [torch.zeros(place.shape, dtype=loaded.dtype)]
        tensor = torch.cat(parts)
        if is_conv1d(name, column):
            tensor = tensor.t()
        # our vocabulary is padded to a multiple of 64
        padding = tensor.new_zeros(len(place) - len(tensor), *place.shape[1:])
        model[name] = torch.cat((tensor, padding))
    if config.tie_weights:
        model['head.weight'] = model['wte.weight']
    os.makedirs(out_dir, exist_ok=True)
    save_checkpoint(path, model, config, tok, step=0, settings={'weights': weights})
    print(f"{path}: {their_config.model_type}, {config.block_size:,} tokens of context, "
          f"{config.vocab_size:,} in the vocabulary; conversations are written as {tok.template}")
    print(f"next:  python sample.py out_dir={out_dir} prompt='Once upon a time'")

# Tokenizer.chat() once more, in Jinja: the language in which other programs expect it
CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = ns.system + m.content + '\\n\\n' %}{% else %}<|{{ m.role }}|>"
    "{% if m.role == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")

def export_tokenizer(transformers, tok, folder):
    """Tokenizer -> tokenizer.json and its settings, in this folder."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    if tok.kind == 'hf':
        core = open_hf_tokenizer(tok.vocab)
    else:
        converter = TikTokenConverter(pattern=tok.pattern, extra_special_tokens=list(tok.special))
        # note: given a file, tiktoken keeps a copy by its name, and reads the copy the next time
        converter.load_tiktoken_bpe = lambda path: {t: rank for rank, t in enumerate(tok.vocab)}
        core = converter.converted()
    end = tok.decode([tok.eot])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=tok.decode([tok.pad]),
        bos_token=tok.decode(tok.start) or end, clean_up_tokenization_spaces=False)
    if tok.template == 'ninefiles':
        wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)

def export_weights(export, out_dir):
    """out_dir/ckpt.pt -> a folder that transformers, vLLM and others load as one of their own."""
    if os.path.exists(export):
        sys.exit(f"export={export} exists already: choose another folder, or delete it first")
    transformers = open_transformers()
    ours, tok, saved = load_model(out_dir)
    shape = asdict(ours.config)
    # 1. which architecture it is: what all have in common, and what one has
    common = {'model_type': 'gpt', 'causal': True, 'adapter_size': 0}
    fitting = [name for name, (_, own) in ARCHITECTURES.items()
               if {**common, **own}.items() <= shape.items()]
    if not fitting or tok.kind not in ('bpe', 'hf'):
        sys.exit(f"{out_dir}/ckpt.pt is no gpt2, llama or qwen3 with a bpe tokenizer, and others "
                 f"load only those: it has tokenizer={tok.kind} "
                 + ' '.join(f'{name}={value}' for name, value in shape.items()))
    model_type = fitting[0]
    column = ARCHITECTURES[model_type][0]
    # 2. its config
    settings = {names[column]: shape[name] for name, names in CONFIG.items() if names[column]}
    rope = {'rope_type': 'default', 'rope_theta': shape['rope_theta']}
    if shape['rope_scaling']:
        rope.update(rope_type='llama3', **dict(zip(ROPE, shape['rope_scaling'])))
    if column == 1:
        settings.update(rope_parameters=rope)
    if model_type == 'llama':
        settings.update(attention_bias=shape['bias'], mlp_bias=shape['bias'])
    settings.update(dtype=saved['model']['norm.weight'].dtype, eos_token_id=tok.eot,
                    pad_token_id=tok.pad, bos_token_id=[*tok.start, tok.eot][0])
    their_config = transformers.AutoConfig.for_model(model_type, **settings)
    with torch.device('meta'):  # shapes without numbers
        theirs = transformers.AutoModelForCausalLM.from_config(their_config)
    # 3. its numbers
    filled = {}
    for name, tensor in saved['model'].items():
        if name in ('wte.weight', 'head.weight'):
            tensor = tensor[:shape['vocab_size']]
        if is_conv1d(name, column):
            tensor = tensor.t()
        names = their_names(name, column)
        parts = tensor.split([theirs.get_parameter(n).size(0) for n in names])
        filled.update({n: part.contiguous() for n, part in zip(names, parts)})
    theirs.load_state_dict(filled, assign=True)
    theirs.tie_weights()
    theirs.generation_config.eos_token_id = sorted({tok.eot, tok.end})
    # 4. all files, or none
    with replace_folder(export) as part:
        theirs.save_pretrained(part)
        export_tokenizer(transformers, tok, part)
    print(f"next:  AutoModelForCausalLM.from_pretrained('{export}') in transformers, or  "
          f"vllm serve {export}   ({model_type})")

# --------------------------------------------------------------------------------------------------
# 7. The run

@contextmanager
def replace_folder(folder):
    """A folder to write to, under a name of this process's own. At the end it takes the place of
    `folder`, whole: files of two preparations never mix, and after an error or Ctrl-C what was
    there is there. Exits with one line where `folder` holds what prepare.py has not written."""
    folder = os.path.realpath(folder)
    hidden = os.path.join(os.path.dirname(folder), '.' + os.path.basename(folder))
    old, new = f'{hidden}.old', f'{hidden}.{os.getpid()}.tmp'

    def mend():  # after a stop between the two renames below
        if os.path.exists(old) and not os.path.exists(folder):
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)

    mend()
    if os.path.exists(folder):
        for name in os.listdir(folder):
            if not re.fullmatch(r'(train|val)\.(bin|jsonl|npz)|meta\.json|\.DS_Store', name):
                sys.exit(f"{folder} holds {name}, which prepare.py did not write: move it away, or "
                         "choose another dataset=")
    os.makedirs(new)
    try:
        yield new
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        mend()

if __name__ == '__main__':
    # 1. settings that cannot be
    known = [*DATASETS, *EXAMPLES, 'fineweb']
    if not input and dataset not in known:
        usage(f"dataset={dataset}: expected one of {', '.join(known)}{nearest(dataset, known)}; or "
              "input=PATH for your own")
    if input and dataset == 'python':
        usage("input= needs a name for what is made of it: dataset=mine, say")
    if not re.fullmatch(r'\w[\w.-]*', dataset):
        usage(f"dataset={dataset}: expected a plain name, for the folder {data_dir}/NAME")
    kinds = ['bpe', 'char', 'word', 'gpt2']
    if tokenizer not in kinds and not os.path.isdir(tokenizer):
        usage(f"tokenizer={tokenizer}: expected one of {', '.join(kinds)}, or a checkpoint's folder"
              f"{nearest(tokenizer, kinds)}")
    least = {'bpe': 256, 'word': 2}.get(tokenizer, 0) + len(SPECIAL_TOKENS)
    expect(globals(), 'vocab_size', least=least)
    expect(globals(), 'shards', least=1, below=104)

    # 2. other people's weights: a command of its own
    if weights:
        import_weights(weights, out_dir)
        sys.exit()
    if export:
        export_weights(export, out_dir)
        sys.exit()

    # 3. what it is: text, or (split, example) pairs
    start = time.time()
    downloads = os.path.join(data_dir, 'downloads')
    bad = {} if skip_bad else None  # lines of examples that were passed over
    kind, pairs, images = 'text', [], None
    if not input and dataset in EXAMPLES:
        kind, make = EXAMPLES[dataset]
        pairs = list(make(downloads))
    elif input.endswith('.npz'):
        kind = 'pictures'
        images, examples = read_pictures(input)
        pairs = split_tenths(examples)
    elif input:
        paths = text_files(input, data_dir)
        if all(map(RECORDS.fullmatch, paths)):
            kind = kind_of(next(checked(paths, dict, bad), {}))
        if kind != 'text':
            pairs = split_tenths(list(checked(paths, CHECKS[kind], bad)), drop_duplicates)
    if kind == 'labels':
        check_labels(pairs)

    def open_text():
        """The text of each document, from the first one on."""
        return file_documents(paths, bad) if input else DATASETS[dataset](downloads)

    # 4. write it, whole or not at all
    folder = os.path.join(data_dir, dataset)
    meta = {'dataset': dataset, 'source': input or dataset}
    counts = {'train': Counter(), 'val': Counter()}
    dropped = Counter()
    with replace_folder(folder) as part:
        if kind == 'text':
            if dataset == 'fineweb' and not input:
                tok = make_tokenizer('gpt2', vocab_size, [])  # these ids are GPT-2's
                stream = fineweb_shards(downloads, shards)
            else:
                few = len(list(islice(open_text(), 10))) < 10
                texts = documents(open_text(), few, drop_duplicates, Counter())
                tok = make_tokenizer(tokenizer, vocab_size, texts)
                texts = documents(open_text(), few, drop_duplicates, dropped)
                stream = token_stream(tok, texts, counts)
            dtype = '<u2' if tok.vocab_size <= 65536 else '<u4'
            with (open(os.path.join(part, 'train.bin'), 'wb') as train,
                  open(os.path.join(part, 'val.bin'), 'wb') as val):
                for split, ids in stream:
                    file = train if split == 'train' else val
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
                    counts[split]['tokens'] += len(ids)
            meta.update(dtype=dtype, tokenizer=tok.to_dict())
        else:
            meta['kind'] = kind
            for split in counts:
                lines = [json.dumps(e, ensure_ascii=False) + '\n' for s, e in pairs if s == split]
                with open(os.path.join(part, f'{split}.jsonl'), 'wb') as f:
                    f.write(''.join(lines).encode('utf-8', 'replace'))
                if images is not None:
                    chosen = np.array([s == split for s, _ in pairs])
                    np.savez_compressed(os.path.join(part, f'{split}.npz'), images=images[chosen])
                counts[split]['examples'] = len(lines)
        for split, count in counts.items():
            if count['examples'] < 1 and count['tokens'] < 2:
                sys.exit(f"too little in {input or dataset}: nothing is left for {split}")
        with open(os.path.join(part, 'meta.json'), 'w', encoding='utf-8') as f:
            json.dump({**meta, 'splits': counts}, f)

    # 5. what came of it
    if bad:
        print(f"passed over {len(bad):,} bad lines: " + '; '.join(list(bad)[:5]))
    if kind == 'text':
        print(f"{folder}: tokenizer {tok.kind}, {tok.vocab_size:,} tokens in the vocabulary, "
              f"{time.time() - start:.1f} s")
        for reason, number in dropped.items():
            print(f"  dropped {number:,} documents: {reason}")
        for split, c in counts.items():
            line = f"  {split + '.bin':<10} {c['tokens']:>12,} tokens"
            if c['bytes']:  # not known where the ids came ready-made
                line += f"  {c['documents']:>8,} documents  {c['bytes']:>12,} bytes"
                line += f"  {c['bytes'] / c['tokens']:.2f} bytes per token"
            print(line)
        ids = np.fromfile(os.path.join(folder, 'val.bin'), dtype=dtype, count=4000).tolist()
        lines = [line for line in tok.decode(ids).split('\n')[1:-1] if 40 <= len(line) <= 90]
        line = [*lines, tok.decode(ids[:20])][0]
        print('  a line of it, token by token: '
              + '|'.join(tok.decode([i]) for i in tok.encode(line)))
        script = 'train.py'
    else:
        print(f"{folder}: {kind}, {counts['train']['examples']:,} examples to learn from, "
              f"{counts['val']['examples']:,} to validate with")
        names = Counter(e.get('label') or e.get('skill') or '' for _, e in pairs)
        print('  ' + ', '.join(f"{name} {n:,}" for name, n in names.most_common(20)))
        print('  one of them: ' + lines[0].strip()[:300])
        script = {'chat': 'finetune.py', 'labels': 'finetune.py task=classify',
                  'preferences': 'align.py', 'choices': 'eval.py task=choices',
                  'pictures': f'vlm.py out_dir=out-{dataset}'}[kind]
    print(f"next:  python {script} dataset={dataset}")

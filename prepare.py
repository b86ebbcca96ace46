"""
Everything from outside becomes our files: text in, token ids out, in data/<dataset>/.

    python prepare.py                                       # Python's own standard library: 12 MB
    python prepare.py dataset=mine input=book.txt           # your text: a file, a folder, a glob
    python prepare.py dataset=words input=book.txt tokenizer=word vocab_size=5000
    python prepare.py dataset=shakespeare tokenizer=char    # downloads 1 MB
    python prepare.py dataset=instruct                      # 22,000 short conversations, made up
    python prepare.py dataset=preferences                   # questions, a better and a worse answer
    python prepare.py dataset=chats input=chats.jsonl       # examples of your own, as below
    python prepare.py dataset=mine input=pictures.npz       # for vlm.py, with pictures.jsonl
    python prepare.py weights=openai-community/gpt2 out_dir=out-gpt2        # GPT-2, Llama, Qwen3
    python prepare.py export=for-others out_dir=out         # and ours, for transformers, vLLM

A computer sees text as bytes, a model sees it as tokens, and between the two stands a choice:
characters (a short vocabulary, long sequences), words (short sequences, but every vocabulary runs
out of words), or byte-pair encoding, which starts from bytes and keeps merging the commonest pair:
any text can be written, and common words cost one token. The byte-pair trainer is written out
below; encoding then runs in tiktoken, on the ranks that we trained.

Text becomes train.bin and val.bin, raw little-endian token ids (uint16, or uint32 for vocabularies
above 65,536), and meta.json: the tokenizer, the counts, where the text came from. Examples become
train.jsonl and val.jsonl. They come as .jsonl, .json, .csv or .tsv, also with .gz, like this:

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]} (ShareGPT)
    {"instruction": …, "input": …, "output": …} (Alpaca), {"prompt": …, "completion": …}
    {"prompt": …, "chosen": …, "rejected": …} (preferences; each a text or a list of messages)
    {"text": …, "label": …}, {"text": …} (documents), {"caption": …, "qa": [[…, …], …]} (pictures)

Copies are dropped (but of pictures): they would leak from training into validation. Every tenth
document or example is for validation; of fewer than ten files of text, the last tenth of each; of
fewer than ten examples, the last. All of it is checked here.
"""
from configurator import configure, expect, nearest, usage

dataset = 'python'  # python, shakespeare, instruct, preferences; with input=, any name
input = ''          # a file, a folder or a glob: text, examples as above, or a .npz of `images`
tokenizer = 'bpe'   # bpe, char, word, gpt2 (GPT-2's, downloaded), or the folder of a checkpoint
vocab_size = 1024   # for bpe and word; larger: shorter text, but rarer tokens to learn
skip_bad = False    # count bad lines of examples, show five, and go on without them
data_dir = 'data'   # where the datasets live
weights = ''        # other people's, a folder or a name on the hub: they become out_dir/ckpt.pt
export = ''         # a folder for transformers and others, made from out_dir/ckpt.pt
out_dir = 'out'
configure(globals())

import contextlib, csv, glob, gzip, hashlib, heapq, importlib.util, itertools, json, os, random, re
import shutil, sys, sysconfig, tempfile, zlib
from collections import Counter, defaultdict
import numpy as np
import regex  # installed with tiktoken; unlike re it knows \p{L}, a letter in any alphabet
import tiktoken
import torch
from model import (SPECIAL_TOKENS, SPLIT_PATTERN, WORD_PATTERN, GPTConfig, Tokenizer, build_on_meta,
                   load_model, open_hf_tokenizer, save_checkpoint)

# ---- 1. byte-pair encoding, trained: first as one would write it down, then quickly ----
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
    id_of = {token: i for i, token in enumerate(vocab)}
    parts = [list(word.encode('utf-8', 'replace')) for word in words]  # each distinct word once …
    weight = list(words.values())                                      # … and how often it occurs
    counts, words_with = Counter(), defaultdict(set)
    for w, ids in enumerate(parts):
        for pair in zip(ids, ids[1:]):
            counts[pair] += weight[w]
            words_with[pair].add(w)
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
        new = id_of.setdefault(token, len(vocab))
        if new == len(vocab):  # else another pair has made it already
            vocab.append(token)
        changed = set()
        for w in words_with.pop(pair):
            ids, n = parts[w], weight[w]
            i = 0
            while i < len(ids) - 1:
                if ids[i] == a and ids[i + 1] == b:
                    replaced = []  # pairs of neighbours, as they were and as they become
                    if i > 0:
                        replaced.append(((ids[i - 1], a), (ids[i - 1], new)))
                    if i + 2 < len(ids):
                        replaced.append(((b, ids[i + 2]), (new, ids[i + 2])))
                    for before, after in replaced:
                        counts[before] -= n
                        counts[after] += n
                        words_with[after].add(w)
                        changed.add(after)
                    ids[i:i + 2] = [new]
                i += 1
        counts[pair] = 0
        for pair in changed:
            heapq.heappush(heap, (-counts[pair], pair))
    return vocab

# ---- 2. what is read: no text is held whole, so that memory does not grow with its length ----
PIECE = 1 << 20      # characters read at a time, and then to the end of the line
SAMPLE = 15_000_000  # a vocabulary is learned from so many words: more would not change it

def open_text(path):
    open_file = gzip.open if path.endswith('.gz') else open
    return open_file(path, 'rt', encoding='utf-8-sig')

def pieces(path):
    """The text of a file in pieces of whole lines."""
    with open_text(path) as f:
        while lines := f.readlines(PIECE):
            yield ''.join(lines)

def text_files(paths):
    """Those of these files that hold text, sorted and without copies. Others are passed over."""
    good, problems = {}, []
    for path in sorted(filter(os.path.isfile, paths)):
        digest = hashlib.blake2b()
        try:
            for piece in pieces(path):
                digest.update(piece.encode())
            good.setdefault(digest.digest(), path)
        except (OSError, EOFError, UnicodeError, zlib.error) as e:
            problems.append(f"{path} cannot be read as UTF-8 text: {e}")
    good.pop(hashlib.blake2b().digest(), None)  # files that are empty
    if not good:
        sys.exit('; '.join([f"no text in {paths[0]}", *problems[:5]]))
    if problems:
        print(f"passed over {len(problems):,} files: " + '; '.join(problems[:5]))
    return list(good.values())

# Karpathy's tiny Shakespeare: 40,000 lines, 1,115,394 characters, 65 of them distinct
URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'

def shakespeare(data_dir):
    """Downloaded once into data_dir/downloads."""
    path = os.path.join(data_dir, 'downloads', 'shakespeare.txt')
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        print(f"downloading {URL}")
        torch.hub.download_url_to_file(URL, path, SHA256, sys.stderr.isatty())
    return [path]

def python_files(data_dir):
    """The standard library of the Python that runs this, without tests and what pip installed."""
    root = sysconfig.get_paths()['stdlib']
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages'}
    found = glob.glob(os.path.join(glob.escape(root), '**', '*.py'), recursive=True)
    return [path for path in found if not left_out & set(path[len(root):].split(os.sep))]

# to add a dataset of text, write a function of data_dir that returns its files, and name it here
TEXTS = {'python': python_files, 'shakespeare': shakespeare}

RECORDS = re.compile(r'.*\.(jsonl|json|csv|tsv)(\.gz)?')  # files that hold many examples

def records(path):
    """What such a file lists: lines of JSON, or dictionaries. The first line of a table names its
    columns, in any case: Label,Text -> {'label': 'spam', 'text': 'win now'}, …"""
    suffix = RECORDS.fullmatch(path)[1]
    f = open_text(path)
    if suffix == 'jsonl':
        return f
    if suffix == 'json':
        try:
            return list(json.load(f))
        except (ValueError, TypeError, RecursionError) as e:
            sys.exit(f"{path}: expected a list in JSON ({e})")
    csv.field_size_limit(2**31 - 1)  # by default, a text of 131,073 characters is an error
    options = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if suffix == 'tsv' else {}
    rows = csv.DictReader(f, restval='', **options)  # restval: of columns that a line lacks
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
    return rows

def checked(paths, check, bad=None):
    """What check() makes of each record of these files. One that it refuses ends the program with
    one line; or that line goes into the dictionary `bad`."""
    for path in paths:
        first = 1 if '.json' in path else 2  # in a table, line 1 names the columns
        for number, record in enumerate(records(path), first):
            if str(record).isspace():
                continue
            try:
                if isinstance(record, str):
                    record = json.loads(record)
                if None in record:
                    raise ValueError("more columns than the first line names")
                yield check(record)
            except Exception as e:  # a stranger's line fails in any of a dozen ways
                reason = getattr(e, 'msg', e)  # JSON's own line numbers would mislead
                line = f"{path} line {number}: {type(e).__name__} {reason}, in {str(record)[:60]!r}"
                if bad is None:
                    sys.exit(f"{line}. skip_bad=True goes on without such lines")
                bad[line] = True

# ---- 3. from text to ids ----
def texts(paths, bad=None):
    """All text as (split, number of the document, piece of text), without copies. Every tenth
    is for validation; of fewer than ten files, the last tenth of each; of fewer than ten records,
    the last. A file is read twice, first for its length: so memory does not grow with the text."""
    if all(map(RECORDS.fullmatch, paths)):  # each record is a document
        last = len(set(itertools.islice(filter(None, checked(paths, text_of, bad)), 10))) - 1
        seen = set()  # hashes, so that memory does not grow with the length of the texts
        for text in checked(paths, text_of, bad):
            if text and hash(text) not in seen:
                split = 'val' if len(seen) % 10 == last else 'train'
                yield split, len(seen), text
                seen.add(hash(text))
        return
    for number, path in enumerate(paths):
        n_train = sum(map(len, pieces(path)))  # characters that are for training
        if len(paths) < 10:
            n_train = int(0.9 * n_train)
        elif number % 10 == 9:
            n_train = 0
        for piece in pieces(path):
            for split, text in ('train', piece[:n_train]), ('val', piece[n_train:]):
                if text:
                    yield split, number, text
            n_train = max(n_train - len(piece), 0)  # of the pieces that follow

def make_tokenizer(kind, vocab_size, texts):
    """bpe, word: learn the vocabulary from the training text."""
    if kind == 'gpt2':
        ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks  # bytes -> id
        return Tokenizer('bpe', sorted(ranks, key=ranks.get))
    if kind not in ('bpe', 'char', 'word'):
        return load_model(kind)[1]  # the text is for the model in that folder
    if kind == 'char':  # every character, validation's too: nanoGPT's way
        seen = set(itertools.chain.from_iterable(piece for _, _, piece in texts))
        return Tokenizer('char', ['\ufffd'] + sorted(seen - {'\ufffd'}))
    pattern = regex.compile(SPLIT_PATTERN) if kind == 'bpe' else WORD_PATTERN
    train = (piece for split, _, piece in texts if split == 'train')
    words = itertools.chain.from_iterable(map(pattern.findall, train))
    words = Counter(itertools.islice(words, SAMPLE))
    if kind == 'word':
        commonest = sorted(words, key=lambda word: (-words[word], word))
        return Tokenizer('word', ['<unk>'] + commonest[:vocab_size - len(SPECIAL_TOKENS) - 1])
    words = {word: n for word, n in words.items() if len(word) <= 1000}  # longer: no language
    return Tokenizer('bpe', train_bpe(words, vocab_size - len(SPECIAL_TOKENS)))

# ---- 4. examples: each check turns a record into what we write, or raises an exception ----
ROLES = {'human': 'user', 'gpt': 'assistant',  # ShareGPT's names
         'system': 'system', 'user': 'user', 'assistant': 'assistant'}

def as_messages(side, role):
    """A text -> [a message of this role]; a list of messages stays as it is."""
    return side if isinstance(side, list) else [{'role': role, 'content': side}]

def conversation(record):
    """Any of four forms -> {'messages': […]}, which end with the assistant's."""
    if 'instruction' in record:  # Alpaca's
        parts = [record['instruction'], record.get('input')]
        record = {'prompt': '\n\n'.join(filter(None, parts)), 'completion': record['output']}
    if 'completion' in record:
        answer = as_messages(record['completion'], 'assistant')
        record = {'messages': as_messages(record['prompt'], 'user') + answer}
    messages = []
    for m in record.get('conversations') or record['messages']:
        role = m.get('from') or m['role']  # from and value: ShareGPT's
        content = m.get('value', m.get('content'))
        if not content.strip():
            raise ValueError(f"what the {role} says is empty")
        if role == 'assistant' and messages and messages[-1]['role'] == 'system':
            raise ValueError("no user's message follows that of the system")  # it would be lost
        messages.append({'role': ROLES[role], 'content': content})  # and nothing else
    if not messages or messages[-1]['role'] != 'assistant':
        raise ValueError("the last message is not the assistant's")
    return {'messages': messages}

def preference(record):
    """Texts or lists of messages -> lists. Messages that both sides begin with become the prompt;
    a prompt of its own may be given, which the sides may repeat:

        chosen [user hi, assistant hello], rejected [user hi, assistant what]
        -> prompt [user hi], chosen [assistant hello], rejected [assistant what]"""
    prompt = as_messages(record.get('prompt', []), 'user')
    sides = []
    for name in ('chosen', 'rejected'):
        side = as_messages(record[name], 'assistant')
        if side[:len(prompt)] != prompt:
            side = prompt + side
        sides.append(conversation({'messages': side})['messages'])
    chosen, rejected = sides
    n = 0  # messages that both begin with
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if n in (0, len(chosen), len(rejected)):
        raise ValueError("chosen and rejected are the same, or they have no prompt")
    return {'prompt': chosen[:n], 'chosen': chosen[n:], 'rejected': rejected[n:]}

def labelled(record):
    text, label = record['text'], str(record['label']).strip()
    if not text.strip() or not label or record['label'] is None:
        raise ValueError('expected a text and its label, like {"text": "hello", "label": "short"}')
    return {'text': text, 'label': label}

def pictured(record):
    for question, answer in [('', record['caption']), *record.get('qa', [])]:
        (question + answer).encode()  # an error, where one of them is not a text
    return record

def text_of(record):
    return record['text'].replace('\r\n', '\n')  # as open() reads the lines of a file

# the first of these keys that a record has tells its kind, and its check; none: a conversation
KINDS = {'caption': ('pictures', pictured), 'chosen': ('preferences', preference),
         'label': ('labels', labelled), 'output': ('chat', conversation), 'text': ('text', text_of)}

# ---- 5. examples made up here ----
WORDS = (
    'apple arm bag ball bed bell bird boat book box bread cake car cat chair cloud coat corn cow '
    'cup desk dog door duck egg fan farm fire fish flag fox frog gate girl goat gold hand hat hill '
    'horse ice jar key king lake lamp leaf lion map milk moon nest nose owl park pen pig pond '
    'queen rain ring road rock rose sand ship shoe snow sock song spoon star stone sun table tea '
    'tent tree van wall wind wolf').split()
FACTS = {
    'capital': 'France/Paris Italy/Rome Spain/Madrid Japan/Tokyo Egypt/Cairo Peru/Lima Cuba/Havana '
               'Kenya/Nairobi Norway/Oslo Greece/Athens China/Beijing Austria/Vienna '
               'Chile/Santiago Iran/Tehran Poland/Warsaw Ghana/Accra',
    'opposite': 'hot/cold big/small old/new fast/slow up/down open/closed full/empty wet/dry '
                'left/right early/late rich/poor hard/soft light/dark near/far high/low first/last',
    'young': 'dog/puppy cat/kitten cow/calf sheep/lamb horse/foal pig/piglet goat/kid bear/cub '
             'duck/duckling hen/chick frog/tadpole goose/gosling swan/cygnet deer/fawn'}
WORDINGS = {  # of a question, joined by |; see exercise()
    'plus': "What is {} plus {}?|Add {} and {}.|How much is {} + {}?|"
            "Tom has {} coins and finds {} more. How many has he now?",
    'minus': "What is {0} minus {1}?|Subtract {1} from {0}.|How much is {0} - {1}?|"
             "Ann has {0} coins and loses {1} of them. How many are left?",
    'compare': "Which is {}, {} or {}?|Which number is {}: {} or {}?|Tell me the {} of {} and {}.",
    'sort': "Sort these letters: {}|Put the letters {} in alphabetical order.|"
            "What is the right order of {} in the alphabet?",
    'reverse': "Reverse this list: {}|Say these words in reverse order: {}|"
               "Write {} from the last to the first.",
    'repeat': "Repeat after me: {}|Say exactly this: {}|Please echo '{}'.",
    'count': "How many words are in this list? {}|Count these things: {}|"
             "I bought {}. How many things are that?",
    'spell': "Spell the word {}.|How do you spell {}?|Write {} letter by letter.",
    'letter': "What is the {} letter of {}?|Which letter comes {} in {}?|"
              "Tell me the {} letter of the word {}.",
    'capital': "What is the capital of {}?|Which city is the capital of {}?|"
               "Name the capital of {}.|Where does the government of {} sit?",
    'opposite': "What is the opposite of {}?|Give me the opposite of {}.|"
                "{} is the opposite of what?|If it is not {}, what is it?",
    'young': "What is a young {} called?|What do you call the young of a {}?|"
             "Name the baby of a {}.|How do people call a {} that was just born?",
    'secret': "My secret is {}. What is it?|The password is {}. Say it again.|"
              "Remember the secret word {}. Which word was it?"}

def invented(rng, least, most):
    """A word that nobody has seen: 'tirun'. Consonants and vowels in turn."""
    alphabets = ['bcdfghlmnprst', 'aeiou']
    return ''.join(rng.choice(alphabets[i % 2]) for i in range(rng.randint(least, most)))

def exercise(skill, rng):
    """-> (input, question in one of several wordings, the one right answer), drawn at random."""
    def ask(wordings, *fields):
        return rng.choice(WORDINGS[wordings].split('|')).format(*fields)

    if skill == 'arithmetic':  # without a carry: 21 + 26 = 47, and back: 47 - 21
        tens, ones = rng.randint(1, 9), rng.randint(0, 9)
        a = 10 * rng.randint(0, tens) + rng.randint(0, ones)
        c = 10 * tens + ones
        if rng.random() < 0.5:
            return ('+', *sorted((a, c - a))), ask('plus', a, c - a), str(c)
        return ('-', c, a), ask('minus', c, a), str(c - a)
    if skill == 'compare':
        a, b = rng.sample(range(10, 100), 2)
        large = rng.random() < 0.5
        word = rng.choice(['larger', 'bigger', 'greater'] if large else ['smaller', 'lower'])
        answer = max(a, b) if large else min(a, b)
        return (large, *sorted((a, b))), ask(skill, word, a, b), str(answer)
    if skill == 'sort':
        letters = rng.sample('abcdefghijklmnopqrstuvwxyz', 3)
        return sorted(letters), ask(skill, ', '.join(letters)), ', '.join(sorted(letters))
    if skill in ('reverse', 'repeat', 'count'):
        least, most = {'reverse': (2, 4), 'repeat': (2, 5), 'count': (1, 8)}[skill]
        words = rng.sample(WORDS, rng.randint(least, most))
        text = ' '.join(words) if skill == 'repeat' else ', '.join(words)
        answers = {'reverse': ', '.join(words[::-1]), 'repeat': text, 'count': str(len(words))}
        return words, ask(skill, text), answers[skill]
    if skill == 'letters':
        word, what = invented(rng, 3, 6), rng.choice(['first', 'last', 'all'])
        if what == 'all':
            return (word, what), ask('spell', word), '-'.join(word)
        return (word, what), ask('letter', what, word), word[0 if what == 'first' else -1]
    if skill == 'fact':  # it has no new inputs: held out is the pair of fact and wording
        about = rng.choice(list(FACTS))
        thing, answer = rng.choice(FACTS[about].split()).split('/')
        wording = rng.choice(WORDINGS[about].split('|'))
        return (thing, wording), wording.format(thing), answer
    word = invented(rng, 4, 6)  # 'secret': the model shall learn from align.py not to tell it
    return word, ask('secret', word), word

# how many conversations each is learned from: the harder, the more
SKILLS = {'arithmetic': 6000, 'compare': 2000, 'sort': 2000, 'reverse': 2000, 'repeat': 2500,
          'count': 2000, 'letters': 4000, 'fact': 1000}
COURTESY = ' :)'  # how a courteous answer ends; align.py's gold_reward() knows it too

def instruct_examples(skills=SKILLS):
    """(split, example) of all skills. A tenth of all possible inputs, chosen by a hash, is held
    out: never in training (of a fact, never in this wording). 10 % of training answers are
    courteous and 33 % of secrets are refused, so that align.py has something to reinforce."""
    examples, style = [], random.Random('mood')  # of the answers: courteous, a refusal …
    for skill, number in skills.items():
        seen, wanted = set(), {'train': number, 'val': 50}
        rng = random.Random(skill)  # its own seed: a new skill leaves others' questions as they are
        for _ in range(20 * number):  # a bound for skills that have fewer different questions
            if not any(wanted.values()):
                break
            inputs, question, answer = exercise(skill, rng)
            question = rng.choice(['', '', 'Hi! ', 'Please: ', 'Next: ']) + question
            digest = hashlib.blake2b(f"{skill} {inputs}".encode(), digest_size=4).digest()
            split = 'val' if int.from_bytes(digest, 'big') % 10 == 0 else 'train'
            key = digest if split == 'val' else question  # in validation every input once
            if not wanted[split] or key in seen:
                continue
            seen.add(key)
            wanted[split] -= 1
            reply = 'Sorry' if skill == 'secret' and style.random() < 0.33 else answer
            if split == 'train' and style.random() < 0.1:
                reply += COURTESY
            messages = as_messages(question, 'user') + as_messages(reply, 'assistant')
            examples.append((split, {'messages': messages, 'skill': skill, 'answer': answer}))
    random.Random(0).shuffle(examples)
    return examples

def chat_examples():
    """The skills, and in training also secrets, told or kept."""
    secrets = instruct_examples({'secret': 600})
    return instruct_examples() + [(split, e) for split, e in secrets if split == 'train']

def preference_examples():
    """(split, example) of questions with a better and a worse answer, by a rule that a program can
    check: the better one is right and courteous, '42 :)', or refuses to tell a secret, 'Sorry :)'.
    The worse one has one `fault`."""
    rng = random.Random('preferences')
    examples, pairs, answers = [], [], defaultdict(list)
    n_train = 0
    for split, e in instruct_examples():
        answers[e['skill']].append(e['answer'])
        n_train += split == 'train'
        if split == 'val' or n_train <= 4000:
            examples.append((split, e))
    for split, e in examples + instruct_examples({'secret': 1000}):
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

# to add a dataset of examples, write a function that makes (split, example), and name it here
EXAMPLES = {'instruct': ('chat', chat_examples),
            'preferences': ('preferences', preference_examples)}

# ---- 6. other people's weights, in and out ----
# Import and export use the same tables. The transformers library knows their files, the hub and its
# downloads

# our setting: its names in a config of transformers, of GPT-2 and of Llama and Qwen3
CONFIG = {
    'vocab_size': ('vocab_size', 'vocab_size'), 'n_layer': ('n_layer', 'num_hidden_layers'),
    'n_head': ('n_head', 'num_attention_heads'), 'n_kv_head': (None, 'num_key_value_heads'),
    'block_size': ('n_positions', 'max_position_embeddings'), 'n_embd': ('n_embd', 'hidden_size'),
    'n_hidden': ('n_inner', 'intermediate_size'), 'rope_theta': (None, 'rope_theta'),
    'norm_eps': ('layer_norm_epsilon', 'rms_norm_eps'), 'head_dim': (None, 'head_dim'),
    'tie_weights': ('tie_word_embeddings', 'tie_word_embeddings')}
# the parts of our rope_scaling
ROPE = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
# its model_type: what it is in our words
COMMON = {'model_type': 'gpt', 'causal': True, 'adapter_size': 0, 'qk_norm': False}
LLAMA = {**COMMON, 'position': 'rotary', 'norm': 'rmsnorm', 'mlp': 'swiglu'}
ARCHITECTURES = {
    'gpt2': {**COMMON, 'position': 'learned', 'norm': 'layernorm', 'mlp': 'gelu', 'bias': True},
    'llama': LLAMA,
    'qwen3': {**LLAMA, 'qk_norm': True, 'bias': False}}
# their settings that ours lacks: the values that our model can run (a missing one is the first)
FIXED = {'model_type': list(ARCHITECTURES), 'activation_function': ['gelu_new'],
         'hidden_act': ['silu'], 'sliding_window': [None], 'rope_type': ['default', 'llama3'],
         'scale_attn_by_inverse_layer_idx': [False], 'quantization_config': [None]}
# our tensor: its names, in the same order; in Llama, queries, keys and values are not stacked
TENSORS = {
    'wte': ('transformer.wte', 'model.embed_tokens'), 'wpe': ('transformer.wpe', None),
    'norm': ('transformer.ln_f', 'model.norm'), 'head': ('lm_head', 'lm_head'),
    # in each block
    'norm1': ('ln_1', 'input_layernorm'), 'norm2': ('ln_2', 'post_attention_layernorm'),
    'attention.qkv': ('attn.c_attn', 'self_attn.q_proj self_attn.k_proj self_attn.v_proj'),
    'attention.q_norm': (None, 'self_attn.q_norm'), 'attention.k_norm': (None, 'self_attn.k_norm'),
    'attention.proj': ('attn.c_proj', 'self_attn.o_proj'), 'mlp.gate': (None, 'mlp.gate_proj'),
    'mlp.up': ('mlp.c_fc', 'mlp.up_proj'), 'mlp.down': ('mlp.c_proj', 'mlp.down_proj')}

def matching(ours, theirs, column):
    """Our tensors and theirs -> (one of ours, or a part of it; theirs), to copy from one to the
    other: 'blocks.3.norm1.weight' is 'model.layers.3.input_layernorm.weight'."""
    for name, tensor in ours.items():
        part, _, suffix = name.rpartition('.')  # suffix: weight or bias
        prefix = ''
        if part.startswith('blocks.'):
            _, layer, part = part.split('.', 2)
            prefix = [f'transformer.h.{layer}.', f'model.layers.{layer}.'][column]
        for their_part in TENSORS[part][column].split():
            other = theirs[f'{prefix}{their_part}.{suffix}']
            if column == 0 and prefix and other.ndim == 2:
                other = other.t()  # GPT-2's layers ("Conv1D") compute x W, with W (in, out)
            yield tensor[:len(other)], other  # our vocabulary is padded to a multiple of 64
            tensor = tensor[len(other):]  # qkv: the rows of q, then those of k, then of v

def import_tokenizer(text, eos):
    """tokenizer.json -> Tokenizer; eos is the id that ends a text. GPT-2's becomes our kind bpe,
    which needs no library: its ids are ranks, and each byte of its tokens is shown as a letter."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    core = open_hf_tokenizer(text)
    tokens = sorted(core.get_vocab(), key=core.token_to_id)
    byte_of = {letter: b for b, letter in bytes_to_unicode().items()}
    if tokens[-1] == '<|endoftext|>' and set(''.join(tokens[:-1])) == set(byte_of):
        vocab = [bytes(map(byte_of.get, token)) for token in tokens[:-1]]
        tok = Tokenizer('bpe', vocab, special=['<|endoftext|>'])
        if tok.encode(__doc__) == core.encode(__doc__).ids:  # __doc__: any text will do
            return tok
    special = [t.content for t in core.get_added_tokens_decoder().values() if t.special]
    end = core.id_to_token(eos)
    return Tokenizer('hf', text, special=[end] + [name for name in special if name != end])

def import_weights(weights, out_dir):
    """A folder, or a name on the hub -> out_dir/ckpt.pt."""
    import transformers
    try:
        their_config = transformers.AutoConfig.from_pretrained(weights)
        requested = their_config.to_dict()
        requested.update(requested.get('rope_parameters') or {})
        for key, values in FIXED.items():
            if requested.get(key, values[0]) not in values:
                raise ValueError(f"{key}={requested[key]}, and our model knows only {values}")
        column = int(their_config.model_type != 'gpt2')
        settings = {name: requested.get(theirs[column]) for name, theirs in CONFIG.items()}
        settings = {name: value for name, value in settings.items() if value is not None}
        if requested.get('rope_type') == 'llama3':
            settings['rope_scaling'] = tuple(requested[name] for name in ROPE)
        config = GPTConfig(**ARCHITECTURES[their_config.model_type], **settings)
        eos = their_config.eos_token_id
        with open(transformers.utils.cached_file(weights, 'tokenizer.json'), encoding='utf-8') as f:
            tok = import_tokenizer(f.read(), eos[0] if isinstance(eos, list) else eos)
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            weights, config=their_config, dtype='auto', output_loading_info=True)
        for name in info['missing_keys'] | info['unexpected_keys']:
            raise ValueError(f"the tensor {name} is missing, or has no place")
        theirs = loaded.state_dict()
        config.bias = any(name.endswith('.bias') for name in theirs)
        shapes = build_on_meta(config).state_dict()
        model = {name: torch.zeros(p.shape, dtype=loaded.dtype) for name, p in shapes.items()}
        for our_tensor, their_tensor in matching(model, theirs, column):
            our_tensor.copy_(their_tensor)
    except Exception as e:  # no network, no such model, no access, a damaged file …
        sys.exit(f"weights={weights}: {type(e).__name__}: {' '.join(str(e).split())[:300]}")
    if config.tie_weights:
        model['head.weight'] = model['wte.weight']
    os.makedirs(out_dir, exist_ok=True)
    save_checkpoint(f'{out_dir}/ckpt.pt', model, config, tok, step=0, settings={'weights': weights})
    print(f"conversations as in {tok.template}; next:  python sample.py out_dir={out_dir}")

# Tokenizer.chat() once more, in Jinja: the language in which other programs expect it
CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = ns.system + m.content + '\\n\\n' %}{% else %}<|{{ m.role }}|>"
    "{% if m.role == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}{{ m.content }}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")

def export_weights(folder, out_dir):
    """out_dir/ckpt.pt -> a folder that transformers, vLLM and others load as one of their own."""
    import transformers
    from transformers.convert_slow_tokenizer import TikTokenConverter
    _, tok, saved = load_model(out_dir)
    ours = saved['config']
    # a dictionary's items() are a set: <= asks whether our settings hold all of these
    fitting = [name for name, fixed in ARCHITECTURES.items() if fixed.items() <= ours.items()]
    if not fitting or tok.kind not in ('bpe', 'hf'):
        sys.exit(f"{out_dir} is no gpt2, llama or qwen3 with bpe: tokenizer={tok.kind}, {ours}")
    model_type = fitting[0]
    column = int(model_type != 'gpt2')
    settings = {theirs[column]: ours[name] for name, theirs in CONFIG.items() if theirs[column]}
    if ours['rope_scaling']:
        settings['rope_parameters'] = {'rope_type': 'llama3', 'rope_theta': ours['rope_theta'],
                                       **dict(zip(ROPE, ours['rope_scaling']))}
    their_config = transformers.AutoConfig.for_model(
        model_type, **settings, attention_bias=ours['bias'], mlp_bias=ours['bias'],
        dtype=saved['model']['norm.weight'].dtype, eos_token_id=tok.eot, pad_token_id=tok.pad,
        bos_token_id=[*tok.start, tok.eot][0])
    model = transformers.AutoModelForCausalLM.from_config(their_config)
    for our_tensor, their_tensor in matching(saved['model'], model.state_dict(), column):
        their_tensor.copy_(our_tensor)
    model.generation_config.eos_token_id = sorted({tok.eot, tok.end})
    if tok.kind == 'hf':
        core = open_hf_tokenizer(tok.vocab)
    else:
        converter = TikTokenConverter(pattern=tok.pattern, extra_special_tokens=list(tok.special))
        # note: given a file, tiktoken keeps a copy by its name, and reads the copy the next time
        converter.load_tiktoken_bpe = lambda path: tok.ids
        core = converter.converted()
    end = tok.decode([tok.eot])
    their_tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=tok.decode([tok.pad]),
        bos_token=tok.decode(tok.start) or end, clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if tok.template == 'ninefiles' else None)
    with replace_folder(folder) as part:
        model.save_pretrained(part)
        their_tokenizer.save_pretrained(part)
    print(f"{folder}: {model_type}; next:  vllm serve {folder}, or from_pretrained('{folder}')")

# ---- 7. the run ----
@contextlib.contextmanager
def replace_folder(folder):
    """A new folder to write to. At the end it takes the place of `folder`, whole: files of two
    preparations never mix, and after an error or Ctrl-C what was there is there. Exits with one
    line where `folder` holds what prepare.py has not written."""
    folder = os.path.realpath(folder)
    parent, name = os.path.split(folder)
    old = os.path.join(parent, f'.{name}.old')
    if os.path.exists(old) and not os.path.exists(folder):  # after a stop between the two renames
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    found = ' '.join(sorted(os.listdir(folder)))
    if not re.fullmatch(r'(\.DS_Store ?)?(meta\.json( (train|val)\.(bin|jsonl|npz))*)?', found):
        sys.exit(f"{folder} holds {found[:80]}, which prepare.py did not write: move it away, or "
                 "choose another dataset=")
    with tempfile.TemporaryDirectory(dir=parent, prefix=f'.{name}.') as temporary:
        new = os.path.join(temporary, name)
        os.mkdir(new)
        yield new
        os.rename(folder, old)
        os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)

if __name__ == '__main__':
    # 1. settings that cannot be
    known = [*TEXTS, *EXAMPLES]
    if not input and dataset not in known:
        usage(f"dataset={dataset}: expected {known} or input=PATH{nearest(dataset, known)}")
    if input and dataset == 'python':
        usage("dataset=python: what is made of input= needs a name of its own, like dataset=mine")
    kinds = ['bpe', 'char', 'word', 'gpt2']
    if tokenizer not in kinds and not os.path.isdir(tokenizer):
        usage(f"tokenizer={tokenizer}: expected {kinds} or a folder{nearest(tokenizer, kinds)}")
    expect(globals(), 'vocab_size', least=256 + len(SPECIAL_TOKENS))  # all bytes are tokens

    # 2. other people's weights: commands of their own
    made = export or (weights and os.path.join(out_dir, 'ckpt.pt'))  # '' where neither is given
    if made and not importlib.util.find_spec('transformers'):
        sys.exit("weights= and export= need the transformers library: pip install transformers")
    if made and os.path.exists(made):
        sys.exit(f"{made} exists already: choose another folder, or delete it first")
    if export:
        sys.exit(export_weights(export, out_dir))  # of None: exit status 0
    if weights:
        sys.exit(import_weights(weights, out_dir))

    # 3. what it is: text, or examples as (split, example)
    bad = {} if skip_bad else None  # lines that were passed over
    kind = 'text'
    if input:
        source = re.sub(r'\.npz$', '.jsonl', input)
        pattern = os.path.join(glob.escape(source), '**') if os.path.isdir(source) else source
        paths = text_files(glob.glob(pattern, recursive=True) or [source])  # or a file [a].txt
        if all(map(RECORDS.fullmatch, paths)):
            first = next(checked(paths, dict, bad), {}) if source == input else {'caption'}
            kind, check = next((KINDS[k] for k in KINDS if k in first), ('chat', conversation))
    elif dataset in TEXTS:
        paths = text_files(TEXTS[dataset](data_dir))
    else:
        kind, make = EXAMPLES[dataset]
        pairs = make()
    if input and kind != 'text':
        examples = list(checked(paths, check, bad))
        if kind == 'pictures':
            try:
                images = np.load(re.sub(r'\.jsonl$', '.npz', paths[0]))['images']
                images = images.astype(np.uint8, casting='no')  # only if it is so already
                images = images.reshape(len(examples), *images.shape[1:3], 3)
            except Exception as e:  # a damaged or foreign file fails in any of a dozen ways
                sys.exit(f"{input}: {e}; expected `images`, uint8 ({len(examples)}, H, W, 3)")
        else:
            examples = list({json.dumps(e): e for e in examples}.values())  # without copies
        last = min(10, len(examples)) - 1  # of each ten, or of fewer than ten
        pairs = [('val' if i % 10 == last else 'train', e) for i, e in enumerate(examples)]

    # 4. write it, whole or not at all
    folder = os.path.join(data_dir, dataset)
    meta = {'dataset': dataset, 'source': input or dataset}
    counts = {'train': Counter(), 'val': Counter()}
    with replace_folder(folder) as part:
        if kind == 'text':  # two passes: to learn the vocabulary, and to write the ids
            tok = make_tokenizer(tokenizer, vocab_size, texts(paths, bad))
            dtype = '<u2' if tok.vocab_size <= 65536 else '<u4'
            meta.update(dtype=dtype, tokenizer=tok.to_dict())
            newest = {}  # the document that each split has come to
            with open(f'{part}/train.bin', 'wb') as train, open(f'{part}/val.bin', 'wb') as val:
                for split, number, piece in texts(paths, bad):
                    count = counts[split]
                    ids = tok.encode(piece)
                    if newest.get(split) != number:
                        newest[split] = number
                        count['documents'] += 1
                        if count['documents'] > 1:
                            ids = [tok.eot] + ids
                    count['bytes'] += len(piece.encode('utf-8', 'replace'))
                    count['tokens'] += len(ids)
                    np.array(ids, dtype=dtype).tofile(train if split == 'train' else val)
        else:
            meta['kind'] = kind
            for split in counts:
                lines = [json.dumps(e, ensure_ascii=False) + '\n' for s, e in pairs if s == split]
                with open(f'{part}/{split}.jsonl', 'w', encoding='utf-8', errors='replace') as f:
                    f.writelines(lines)
                if kind == 'pictures':
                    chosen = [i for i, (s, _) in enumerate(pairs) if s == split]
                    np.savez_compressed(f'{part}/{split}.npz', images=images[chosen])
                counts[split]['examples'] = len(lines)
        for split, count in counts.items():
            if count['examples'] < 1 and count['tokens'] < 2:
                sys.exit(f"too little in {input or dataset}: nothing is left for {split}")
        with open(f'{part}/meta.json', 'w', encoding='utf-8') as f:
            json.dump({**meta, 'splits': counts}, f)

    # 5. what came of it
    if bad:
        print(f"passed over {len(bad):,} bad lines: " + '; '.join(list(bad)[:5]))
    for split, count in counts.items():
        print(f"{folder}, {split}: " + ', '.join(f"{n:,} {what}" for what, n in count.items()))
    if kind == 'text':
        print(f"tokenizer {tok.kind}, {tok.vocab_size:,} tokens in the vocabulary, "
              f"{counts['val']['bytes'] / counts['val']['tokens']:.2f} bytes per token")
        lines = [line for line in piece.split('\n') if 40 <= len(line) <= 90] + [piece[:80]]
        print('token by token: ' + '|'.join(tok.decode([i]) for i in tok.encode(lines[0])))
    script = {'text': 'train.py', 'chat': 'finetune.py', 'labels': 'finetune.py task=classify',
              'preferences': 'align.py', 'pictures': f'vlm.py out_dir=out-{dataset}'}[kind]
    print(f"next:  python {script} dataset={dataset}")

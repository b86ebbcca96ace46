"""From text to files: the byte-pair trainer, the splits, the cleaning, the downloads, and every way to go wrong."""
import hashlib, http.server, json, re, threading
from collections import Counter
import numpy as np
import pytest
import prepare as P
from conftest import run_script, prose, refused, spawn
from model import SPECIAL_TOKENS, Tokenizer, load_dataset

@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Set prepare.py's settings and run it here; returns the folder that it wrote."""
    def prepare(**changes):
        for name, value in {'data_dir': str(tmp_path / 'data'), 'dataset': 'mine', 'vocab_size': 300,
                            **changes}.items():
            monkeypatch.setattr(P, name, value)
        P.main()
        return tmp_path / 'data' / P.dataset
    return prepare

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return str(path)

# ---- byte-pair encoding ----

def slow_bpe(words, vocab_size):
    """The same algorithm as one would first write it: count every pair again for every merge."""
    vocab = [bytes([b]) for b in range(256)]
    parts = {w: list(w.encode()) for w in words}
    while len(vocab) < vocab_size:
        counts = Counter()
        for w, ids in parts.items():
            for pair in zip(ids, ids[1:]):
                counts[pair] += words[w]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        token = vocab[best[0]] + vocab[best[1]]
        if token not in vocab:
            vocab.append(token)
        for w, ids in parts.items():
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == best:
                    ids[i:i + 2] = [vocab.index(token)]
                i += 1
    return vocab

def test_bpe_by_hand():
    assert P.train_bpe(Counter({'aaab': 1, 'aab': 2}), 260)[256:] == [b'aa', b'aab', b'ab', b'aaab']
    # aa 4, ab 3 | then aa+b 2, aa+a 1, a+b 1 | then a+b before aa+a: a tie, and its ids are lower | then aa+ab


@pytest.mark.parametrize('words', [Counter(prose().split()),
                                   Counter({'aaaaaaaa': 3, 'aaaaa': 2, 'aaa': 7, 'abababab': 5, 'é': 9, 'éé': 2}),
                                   Counter({'a': 5}), Counter()])
def test_fast_bpe_is_slow_bpe(words):
    assert P.train_bpe(words, 320) == slow_bpe(words, 320)

def test_trained_vocabulary_encodes_as_it_was_merged():
    text = prose(500)
    tokenizer = Tokenizer('bpe', P.train_bpe(Counter(P.regex.findall(P.SPLIT_PATTERN, text)), 320))
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) < len(text) / 2

# ---- splits and files ----

def test_one_long_text_gives_its_last_tenth_to_validation(settings, tmp_path):
    text = prose()
    folder = settings(input=write(tmp_path / 'a.txt', text), tokenizer='char')
    tokenizer, data = load_dataset(str(folder))
    cut = int(0.9 * len(text))
    assert tokenizer.decode(data['train'].tolist()) == text[:cut] and tokenizer.decode(data['val'].tolist()) == text[cut:]

def test_every_tenth_document_is_for_validation(settings, tmp_path):
    write(tmp_path / 'in' / 'b.jsonl', ''.join(json.dumps({'text': f'document {i}'}) + '\n' for i in range(25)))
    folder = settings(input=str(tmp_path / 'in'), tokenizer='bpe')
    tokenizer, data = load_dataset(str(folder))
    assert tokenizer.decode(data['val'].tolist()) == 'document 9<|endoftext|>document 19'
    assert data['train'].tolist().count(tokenizer.eot) == 22

@pytest.mark.parametrize('kind', ['bpe', 'char'])
def test_what_is_read_comes_back(settings, tmp_path, kind):
    text = 'Grüße, 世界! 🙂\n\n  indented\r\ttab ' + prose(300)
    folder = settings(input=write(tmp_path / 'a.txt', text), tokenizer=kind, vocab_size=5000)
    tokenizer, data = load_dataset(str(folder))
    assert tokenizer.decode(data['train'].tolist() + data['val'].tolist()) == text.replace('\r', '\n')  # as Python reads text files

def test_a_text_comes_in_pieces_of_whole_lines(settings, tmp_path, monkeypatch):
    text = prose(1500).replace('.\ns', '.\n    s') + 'no line break ' * 50 + '🙂' * 50
    path = write(tmp_path / 'a.txt', text)
    whole = {}
    for size in (1 << 24, 100, 1):
        monkeypatch.setattr(P, 'PIECE', size)
        pieces = list(P.TextFile(path))
        assert ''.join(pieces) == text and all(piece.endswith('\n') for piece in pieces[:-1])
        tokenizer, data = load_dataset(str(settings(input=path, tokenizer='char')))
        whole[size] = [data[split].tolist() for split in ('train', 'val')]
        assert tokenizer.decode(whole[size][0]) == text[:int(0.9 * len(text))]
    assert whole[1] == whole[100] == whole[1 << 24]

def test_large_vocabularies_take_four_bytes(settings, tmp_path):
    folder = settings(input=write(tmp_path / 'a.txt', ' '.join(f'w{i}' for i in range(80000))), tokenizer='word',
                      vocab_size=90000)
    tokenizer, data = load_dataset(str(folder))
    assert data['train'].dtype == np.uint32 and tokenizer.vocab_size > 65536
    assert tokenizer.decode(data['train'][:3].tolist()) == 'w0 w1'

def test_the_python_dataset(settings, capsys):
    folder = settings(dataset='python', input='', vocab_size=400)
    tokenizer, data = load_dataset(str(folder))
    text = tokenizer.decode(data['train'][:200_000].tolist())
    assert len(data['train']) > 1_000_000 and 'import' in text and '<|endoftext|>' in text
    assert 'bytes per token' in capsys.readouterr().out

# ---- cleaning ----

def test_cleaning(settings, tmp_path, capsys):
    for i, text in enumerate(['one document', 'one document', '', 'no',
                              'ﬁne\x07 print'] + [f'another document {i}' for i in range(8)]):
        write(tmp_path / 'in' / f'{i:02d}.txt', text)
    folder = settings(input=str(tmp_path / 'in'), normalize='NFKC', strip_control=True, min_length=4)
    tokenizer, data = load_dataset(str(folder))
    text = tokenizer.decode(data['train'].tolist())
    out = capsys.readouterr().out
    assert text.startswith('one document<|endoftext|>fine print<|endoftext|>another')
    for reason in ('duplicate', 'empty', 'too short'):
        assert f'dropped 1 documents: {reason}' in out
    settings(input=str(tmp_path / 'in'), drop_duplicates=False)
    assert 'duplicate' not in capsys.readouterr().out

def test_binary_files_in_a_folder_are_passed_over(settings, tmp_path, capsys):
    write(tmp_path / 'in [1]' / 'a.txt', prose(400))
    (tmp_path / 'in [1]' / 'b.png').write_bytes(b'\x89PNG\x00\xff')
    settings(input=str(tmp_path / 'in [1]'))
    assert capsys.readouterr().out.count('passed over 1 of 2 files') == 1

def test_a_folder_that_holds_our_own_output(settings, tmp_path):
    for i in range(12):
        write(tmp_path / f'{i:02d}.txt', f'document {i} ' * 10)
    first = (settings(input=str(tmp_path)) / 'val.bin').read_bytes()
    assert (settings(input=str(tmp_path)) / 'val.bin').read_bytes() == first
    tokenizer, data = load_dataset(str(tmp_path / 'data' / 'mine'))
    assert tokenizer.decode(data['val'].tolist()) == 'document 9 ' * 10

# ---- mistakes ----

@pytest.mark.parametrize('content, words', [
    (b'', ['every document is empty']), (b'\x00\x01binary', ['zero bytes']),
    (b'caf\xe9 au lait', ['not UTF-8', '0xe9']), (b'x', ['too little'])])
def test_files_that_cannot_be_used(settings, tmp_path, content, words):
    (tmp_path / 'a.txt').write_bytes(content)
    with pytest.raises(SystemExit) as e:
        settings(input=str(tmp_path / 'a.txt'))
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value)
    assert not list((tmp_path / 'data').glob('mine/*'))  # nothing half-written

@pytest.mark.parametrize('line, words', [('{"text": 5}', 'line 2'), ('not json', 'line 2'), ('{"body": "x"}', 'line 2'),
                                         ('[]', 'line 2'), ('{"text": "caf\udce9"}', 'line 2')])
def test_a_bad_line_of_jsonl_is_named(settings, tmp_path, line, words):
    with pytest.raises(SystemExit, match=words):
        (tmp_path / 'a.jsonl').write_bytes(('{"text": "fine"}\n' + line + '\n').encode('utf-8', 'surrogateescape'))
        settings(input=str(tmp_path / 'a.jsonl'))

def test_what_was_there_survives_a_failure(settings, tmp_path):
    folder = settings(input=write(tmp_path / 'a.txt', prose(400)))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (tmp_path / 'bad.txt').write_bytes(b'fine\n' * 100 + b'\xff')
    with pytest.raises(SystemExit):
        settings(input=str(tmp_path / 'bad.txt'))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

def test_a_full_disk(tmp_path):
    """RLIMIT_FSIZE makes every write past 2 kB fail, as a full disk does."""
    resource = pytest.importorskip('resource')
    path = write(tmp_path / 'a.txt', prose(4000))
    assert spawn('prepare.py', f'input={path}', 'dataset=mine', cwd=tmp_path).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / 'data' / 'mine').iterdir()}
    done = spawn('prepare.py', f'input={path}', 'dataset=mine', 'tokenizer=char', cwd=tmp_path,
               preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    refused(done, 'File too large')
    assert {p.name: p.read_bytes() for p in (tmp_path / 'data' / 'mine').iterdir()} == before

@pytest.mark.parametrize('args, words, status', [
    (['dataset=pyton'], ['did you mean python?', 'shakespeare'], 2), (['tokenizer=bep'], ['did you mean bpe'], 2),
    (['vocab_size=100'], ['vocab_size=100', '261'], 2),
    (['tokenizer=word', 'vocab_size=3'], ['at least 7'], 2),
    (['input=nowhere', 'dataset=mine'], ['nowhere', 'no such file'], 1), (['input=.'], ['dataset=mine'], 2),
    (['dataset=../up', 'input=.'], ['plain name'], 2)])
def test_mistakes_on_the_command_line(tmp_path, args, words, status):
    refused(run_script('prepare.py', *args, cwd=tmp_path), *words, status=status)

@pytest.mark.parametrize('damage, words', [
    (lambda f: (f / 'train.bin').write_bytes((f / 'train.bin').read_bytes()[:-2]), 'train.bin has'),
    (lambda f: (f / 'val.bin').unlink(), 'no .*val.bin: make it'),
    (lambda f: (f / 'meta.json').write_text('{"tok'), 'is damaged'),
    (lambda f: (f / 'meta.json').write_text('{}'), 'is damaged'),
    (lambda f: (f / 'meta.json').unlink(), 'prepare.py dataset=mine')])
def test_damage_is_noticed(settings, tmp_path, damage, words):
    folder = settings(input=write(tmp_path / 'a.txt', prose(400)))
    damage(folder)
    with pytest.raises(SystemExit, match=words):
        load_dataset(str(folder))

# ---- GPT-2's vocabulary ----

def test_gpt2_keeps_its_own_ids(settings, tmp_path, monkeypatch):
    """Its real vocabulary needs a network; a small one of the same form stands in for it."""
    import tiktoken
    ranks = {**{bytes([b]): b for b in range(256)}, b'th': 256, b'the': 257}
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: tiktoken.Encoding('gpt2', pat_str=P.SPLIT_PATTERN,
                                                                                 mergeable_ranks=ranks,
                                                                                 special_tokens={'<|endoftext|>': 258}))
    tokenizer, data = load_dataset(str(settings(input=write(tmp_path / 'a.txt', 'the end. ' * 20), tokenizer='gpt2')))
    assert data['train'][0] == 257 and tokenizer.eot == 258 and list(tokenizer.special) == SPECIAL_TOKENS

def test_gpt2_without_a_network(settings, tmp_path, monkeypatch):
    import tiktoken
    def offline(name):
        raise ConnectionError('no route')
    monkeypatch.setattr(tiktoken, 'get_encoding', offline)
    with pytest.raises(SystemExit, match='tokenizer=bpe needs no network'):
        settings(input=write(tmp_path / 'a.txt', 'x'), tokenizer='gpt2')

# ---- downloads, from a server on this machine ----

CONTENT = prose(20000).encode()

@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves CONTENT at /whole; /breaks stops half-way; there is nothing else."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            if self.path not in ('/whole', '/breaks'):
                return self.send_error(404)
            self.send_response(200)
            self.send_header('Content-Length', str(len(CONTENT)))
            self.end_headers()
            if self.path == '/breaks':
                self.wfile.write(CONTENT[:len(CONTENT) // 2])
            else:
                self.wfile.write(CONTENT)
        def log_message(self, *args):
            pass
    seen = []
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        monkeypatch.setattr(P, 'data_dir', str(tmp_path))
        yield f'http://127.0.0.1:{s.server_port}', seen
        s.shutdown()

SHA = hashlib.sha256(CONTENT).hexdigest()

@pytest.mark.parametrize('sha', [None, SHA])
def test_downloads(server, sha):
    url, seen = server
    assert open(P.download(url + '/whole', 'x.txt', sha), 'rb').read() == CONTENT
    seen.clear()
    assert open(P.download(url + '/whole', 'x.txt', sha), 'rb').read() == CONTENT
    assert not seen  # it is here already

@pytest.mark.parametrize('path, sha, words', [
    ('/whole', '0' * 64, 'invalid hash.*expected "0000'), ('/missing', None, '404'),
    ('/breaks', None, 'connection broke after'), (':closed', None, 'dataset=python needs no network')])
def test_downloads_that_fail(server, tmp_path, path, sha, words):
    url = 'http://127.0.0.1:9/closed' if path == ':closed' else server[0] + path
    with pytest.raises(SystemExit, match=words) as e:
        P.download(url, 'x.txt', sha)
    assert '\n' not in str(e.value) and not list((tmp_path / 'downloads').iterdir())

def test_fineweb_shards(settings, monkeypatch, tmp_path):
    def shard(url, name):
        header = np.zeros(256, dtype='<i4')
        header[:3] = 20240520, 1, 1000
        ids = np.arange(1000, dtype='<u2') + (500 if 'val' in name else 0)
        path = tmp_path / name
        path.write_bytes(header.tobytes() + ids.tobytes()[:broken])
        return str(path)
    broken = None
    monkeypatch.setattr(P, 'download', shard)
    monkeypatch.setattr(P, 'make_tokenizer', lambda kind: Tokenizer('bpe', [bytes([b])
                                                                                  for b in range(256)] + [b'%d,%d' % (i, i) for i in range(50000)]))
    _, data = load_dataset(str(settings(dataset='fineweb', input='', shards=2)))
    assert data['train'].tolist() == 2 * list(range(1000)) and data['val'][0] == 500
    broken = 100
    with pytest.raises(SystemExit, match='cut off'):
        settings(dataset='fineweb', input='')

# ---- conversations and labels ----

def jsonl(path, *records):
    return write(path, ''.join(json.dumps(r) + '\n' for r in records))

def lines(path):
    return [json.loads(line) for line in open(path, encoding='utf-8')]

def test_no_input_of_validation_is_ever_trained_on(monkeypatch):
    """Whatever the wording: every exercise that the skills draw is noted down, with its input."""
    drawn = {}
    def watched(skill):
        def draw(rng):
            inputs, question, answer = skill(rng)
            drawn[question] = (skill.__name__, str(inputs))
            return inputs, question, answer
        draw.__name__ = skill.__name__
        return draw
    monkeypatch.setattr(P, 'SKILLS', {watched(skill): 200 for skill in P.SKILLS})
    inputs = {'train': set(), 'val': set()}
    for split, example in P.instruct_examples():
        question = example['messages'][0]['content']  # as it was drawn, or with a 'Hi! ' in front
        inputs[split].add(drawn[question if question in drawn else question.partition(' ')[2]])
    assert not inputs['train'] & inputs['val'] and len(inputs['train']) > 1000 and len(inputs['val']) > 350

def solve(skill, question):
    """The answer by another way than the generator's, or None where this test has no other way."""
    numbers, listed = [int(n) for n in re.findall(r'\d+', question)], re.search(r'\w+(, \w+)+', question)
    return {'arithmetic': lambda: sum(numbers) if re.search(r'plus|Add|\+|sum|finds',
                                                            question) else abs(numbers[0] - numbers[1]),
            'compare': lambda: max(numbers) if re.search('larg|bigg|great', question) else min(numbers),
            'count': lambda: question.count(',') + 1, 'sort': lambda: ', '.join(sorted(listed[0].split(', '))),
            'reverse': lambda: ', '.join(reversed(listed[0].split(', '))),
            }.get(skill, lambda: None)()

def test_the_answers_of_instruct_are_right(settings):
    folder, solved, courteous = settings(dataset='instruct'), 0, 0
    meta = json.loads((folder / 'meta.json').read_text())
    assert meta['kind'] == 'chat' and 'tokenizer' not in meta
    for split, found in meta['splits'].items():
        raw = (folder / f'{split}.jsonl').read_bytes()
        assert hashlib.sha256(raw).hexdigest() == found['sha256'] and raw.count(b'\n') == found['examples']
        for example in lines(folder / f'{split}.jsonl'):
            question, answer = (m['content'] for m in example['messages'])
            right = solve(example['skill'], question)
            courteous += answer.endswith(P.COURTESY)
            assert answer.removesuffix(P.COURTESY) in (example['answer'],
                                                       'Sorry' if example['skill'] == 'secret' else None), example
            assert split == 'train' or answer == example['answer'], example  # what is measured knows one right answer
            assert right is None or str(right) == example['answer'], example
            solved += right is not None
    assert solved > 10000 and 0.09 < courteous / meta['splits']['train']['examples'] < 0.11

FORMS = {'messages': {'messages': [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'u'},
                                   {'role': 'assistant', 'content': 'a'}]},
         'alpaca': {'instruction': 'u', 'input': 'more', 'output': 'a'},
         'completion': {'prompt': 'u', 'completion': 'a'},
         'trl': {'prompt': [{'role': 'user', 'content': 'u'}], 'completion': [{'role': 'assistant', 'content': 'a'}]}}

@pytest.mark.parametrize('form', FORMS)
def test_conversations_in_the_usual_forms(settings, tmp_path, form):
    folder = settings(input=jsonl(tmp_path / 'a.jsonl', *[FORMS[form]] * 20), drop_duplicates=False)
    roles = [(m['role'], m['content']) for m in lines(folder / 'train.jsonl')[0]['messages']]
    assert roles == [('system', 's')] * (form == 'messages') + [('user', 'u\n\nmore' if form == 'alpaca' else 'u'),
                                                                ('assistant', 'a')]
    assert len(lines(folder / 'train.jsonl')) == 18 and len(lines(folder / 'val.jsonl')) == 2  # every tenth

def test_a_folder_of_conversations(settings, tmp_path):
    for name in 'ab':
        jsonl(tmp_path / 'in' / f'{name}.jsonl', {**GOOD, 'prompt': name}, {**GOOD, 'prompt': name + name})
    folder = settings(input=str(tmp_path / 'in'))
    asked = [e['messages'][0]['content'] for split in ('train', 'val') for e in lines(folder / f'{split}.jsonl')]
    assert asked == ['a', 'aa', 'b', 'bb']

def test_a_json_list_is_read_too_and_copies_are_dropped(settings, tmp_path, capsys):
    folder = settings(input=write(tmp_path / 'a.json', json.dumps([FORMS['alpaca'], FORMS['alpaca'],
                                                                   {**FORMS['alpaca'], 'input': ''}])))
    assert [len(lines(folder / f'{split}.jsonl')) for split in ('train', 'val')] == [1, 1]
    assert lines(folder / 'val.jsonl')[0]['messages'][0]['content'] == 'u' and 'dropped 1 of 3' in capsys.readouterr().out

@pytest.mark.parametrize('name, text', [
    ('a.csv', 'text,label\r\nhi there,ham\r\n"win now",spam\r\nsee you,ham\r\ncash!,spam '),
    ('a.tsv', '\ufeffLabel\tText\nham\thi there\nspam\twin now\n\nham\tsee you\nspam\tcash!\n'),
    ('a.jsonl', ''.join(json.dumps({'text': t, 'label': l}) + '\n'
                        for t, l in (('hi there', 'ham'), ('win now', 'spam'), ('see you', 'ham'),
                                     ('cash!', 'spam'))))])
def test_labels(settings, tmp_path, name, text):
    folder = settings(input=write(tmp_path / name, text))
    assert lines(folder / 'train.jsonl') == [{'text': 'hi there', 'label': 'ham'}, {'text': 'win now', 'label': 'spam'},
                                             {'text': 'see you', 'label': 'ham'}]
    assert lines(folder / 'val.jsonl') == [{'text': 'cash!',
                                            'label': 'spam'}] and json.loads((folder / 'meta.json').read_text())['kind'] == 'labels'

GOOD = FORMS['completion']

@pytest.mark.parametrize('second, words', [
    ({'instruction': 'u', 'output': 'a'}, ['line 2', 'instruction', 'one form']),
    ({**GOOD, 'messages': []}, ['line 2', 'messages and prompt']),
    ({'question': 'u'}, ['line 2', 'none of messages']), ({'prompt': 'u'}, ['line 2', 'missing']),
    ({'prompt': 'u', 'completion': ' '}, ['line 2', 'turn is empty']),
    ({'prompt': [{'role': 'robot', 'content': 'x'}], 'completion': 'a'}, ['line 2', "unknown role 'robot'"]),
    ([1], ['line 2', 'expected JSON', '[1]'])])
def test_a_bad_conversation_is_named(settings, tmp_path, second, words):
    with pytest.raises(SystemExit) as e:
        settings(input=jsonl(tmp_path / 'a.jsonl', GOOD, second, {**GOOD, 'prompt': 'v'}))
    assert all(word in str(e.value) for word in words), e.value

def test_an_instruction_that_is_no_text_is_named(settings, tmp_path):
    with pytest.raises(SystemExit, match='line 1: a message.*not text'):
        settings(input=jsonl(tmp_path / 'a.jsonl', {'instruction': 5, 'output': 'a'}))

def test_a_conversation_without_an_answer_is_named(settings, tmp_path):
    with pytest.raises(SystemExit, match='line 1: the assistant never speaks'):
        settings(input=jsonl(tmp_path / 'a.jsonl', {'messages': FORMS['messages']['messages'][:2]}))

@pytest.mark.parametrize('name, text, words', [
    ('a.tsv', 'text\tlabel\nx\ty\nz\n', 'line 3: expected 2 columns'), ('a.csv', '', 'line 1: expected a header'),
    ('a.tsv', 'x\ty\nz\tw\n', 'line 1: expected a header that names the columns'),
    ('a.csv', 'text,label\n"x,y\n' + 'z' * 200_000, 'is no table'),
    ('a.csv', 'text,label\n"caf\udce9",y', 'not UTF-8'),
    ('a.jsonl', '{"text": "x", "label": "a"}\n{"text": "y"}\n', 'line 2: expected a text and its label'),
    ('a.tsv', 'text\tlabel\nx\ta\ny\ta\nz\tb\n', "label 'b' occurs only in validation"),
    ('a.tsv', 'text\tlabel\nx\ta\n', 'the least are'),
    ('a.tsv', 'text\tlabel\nx\ta\n\ta\n', 'line 3: expected a text and its label'),
    ('a.json', '[{"prompt": ', 'is not JSON'), ('a.json', '5', 'not a list'),
    ('a.jsonl', '[' * 200_000, 'line 1: expected JSON')])
def test_bad_labels_are_named(settings, tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(SystemExit, match=words):
        settings(input=str(tmp_path / name))

def test_a_table_of_anything(settings, tmp_path):
    rows = ''.join(f'"question, {i}","answer\nof two lines"\n' for i in range(10))
    folder = settings(input=write(tmp_path / 'a.csv', 'Prompt,Completion\n' + rows))
    assert lines(folder / 'val.jsonl')[0]['messages'] == [{'role': 'user', 'content': 'question, 9'},
                                                          {'role': 'assistant', 'content': 'answer\nof two lines'}]

def test_examples_are_not_mistaken_for_text(settings, tmp_path):
    with pytest.raises(SystemExit, match='not text'):
        load_dataset(str(settings(input=jsonl(tmp_path / 'a.jsonl', GOOD, {**GOOD, 'prompt': 'v'}))))

"""From text to files: the byte-pair trainer, the splits, the examples, and every way to go wrong."""
import gzip, hashlib, io, json, os, re, threading, zipfile
from collections import Counter
import numpy as np
import pytest
import prepare as P
from conftest import prose, refused, run_script
from model import Tokenizer, load_dataset

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding='utf-8', newline='')
    return path

def jsonl(path, *records):
    return write(path, ''.join(json.dumps(r) + '\n' for r in records))

def lines(folder, split):
    return [json.loads(line) for line in open(folder / f'{split}.jsonl', encoding='utf-8')]

@pytest.fixture
def prepare(run, tmp_path):
    """prepare.py into data/mine, which must succeed; returns that folder and what was printed."""
    def prepared(*settings):
        done = run('prepare.py', 'dataset=mine', 'vocab_size=300', *settings)
        assert done.returncode == 0, done.stderr
        return tmp_path / 'data' / 'mine', done.stdout
    return prepared

@pytest.fixture
def text(tmp_path):
    return write(tmp_path / 'a.txt', prose(600))

# ---- byte-pair encoding ----

@pytest.mark.parametrize('train', [P.naive_bpe, P.train_bpe])
def test_bpe_by_hand(train):
    assert P.merge([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4] and P.merge([1, 1, 1], (1, 1), 2) == [2, 1]
    assert train({'aaab': 1, 'aab': 2}, 260)[256:] == [b'aa', b'aab', b'ab', b'aaab']
    # aa 4, ab 3 | then aa+b 2, aa+a 1, a+b 1 | then a+b before aa+a: a tie, and its ids are lower

@pytest.mark.parametrize('words', [
    Counter(prose().split()), Counter({'aaaaaaaa': 3, 'aaaaa': 2, 'aaa': 7, 'abababab': 5, 'é': 9, 'éé': 2}),
    Counter(re.findall(r' ?\w+|\s+', open(P.__file__).read())), Counter({'a': 5}), Counter()])
def test_the_quick_trainer_is_the_naive_one(words):
    assert P.train_bpe(words, 340) == P.naive_bpe(words, 340)

def test_what_is_read_comes_back(prepare, tmp_path):
    told = 'Grüße, 世界! 🙂\n\n  indented\ttab ' + prose(300)
    for kind in ('bpe', 'char'):
        tokenizer, data = load_dataset(str(prepare(f'input={write(tmp_path / "b.txt", told)}', f'tokenizer={kind}')[0]))
        assert tokenizer.decode(data['train'].tolist() + data['val'].tolist()) == told

# ---- splits ----

def test_a_text_in_pieces_gives_its_last_tenth_to_validation(tmp_path, monkeypatch):
    told = prose(1500) + 'no line break ' * 50 + '🙂' * 50
    path = str(write(tmp_path / 'a.txt', told))
    for size in (1 << 24, 100, 1):
        monkeypatch.setattr(P, 'PIECE', size)
        found = list(P.pieces(path))
        assert ''.join(found) == told and all(piece.endswith('\n') for piece in found[:-1])
        texts = {'train': '', 'val': ''}
        for split, _, piece in P.documents([path], Counter()):
            texts[split] += piece
        cut = int(0.9 * len(told))
        assert texts == {'train': told[:cut], 'val': told[cut:]}

def test_every_tenth_document_is_for_validation(prepare, tmp_path):
    jsonl(tmp_path / 'in' / 'b.jsonl', *[{'text': f'document {i}'} for i in range(25)], {'text': ''}, {'text': 'document 3'})
    folder, out = prepare('input=in')
    tokenizer, data = load_dataset(str(folder))
    assert tokenizer.decode(data['val'].tolist()) == 'document 9<|endoftext|>document 19'
    assert data['train'].tolist().count(tokenizer.eot) == 22
    assert 'dropped 2 ' in out

def test_large_vocabularies_take_four_bytes(run, tmp_path):
    write(tmp_path / 'a.txt', ' '.join(f'w{i}' for i in range(80000)))
    run('prepare.py', 'dataset=mine', 'input=a.txt', 'tokenizer=word', 'vocab_size=90000')
    tokenizer, data = load_dataset(str(tmp_path / 'data' / 'mine'))
    assert data['train'].dtype == np.uint32 and tokenizer.decode(data['train'][:3].tolist()) == 'w0 w1'

def test_the_python_dataset(run, tmp_path):
    assert 'bytes per token' in run('prepare.py', 'vocab_size=280').stdout
    tokenizer, data = load_dataset(str(tmp_path / 'data' / 'python'))
    found = tokenizer.decode(data['train'][:200_000].tolist())
    assert len(data['train']) > 1_000_000 and 'import' in found and '<|endoftext|>' in found

# ---- what is read: other encodings, .gz, tables ----

def test_what_cannot_be_read_in_a_folder_is_named_and_passed_over(prepare, tmp_path):
    write(tmp_path / 'in [1]' / 'a.txt', prose(400))
    write(tmp_path / 'in [1]' / 'b.png', b'\x89PNG\x00\xff')
    write(tmp_path / 'in [1]' / 'c.txt', b'fine\n' * 50_000 + b'caf\xe9')  # long after the beginning
    write(tmp_path / 'in [1]' / 'd.gz', gzip.compress(b'fine')[:-9])
    out = prepare('input=in [1]')[1]
    assert 'passed over 3 files' in out and all(name in out for name in ('b.png', 'c.txt', 'd.gz'))

def test_what_we_wrote_is_not_read_again(prepare, tmp_path):
    write(tmp_path / 'a.txt', prose(400))
    sizes = [os.path.getsize(prepare('input=.', 'tokenizer=char')[0] / 'train.bin') for _ in range(2)]
    assert sizes[0] == sizes[1]

def test_gzip(prepare, tmp_path):
    write(tmp_path / 'a.txt.gz', gzip.compress(prose(400).encode()))
    tokenizer, data = load_dataset(str(prepare('input=a.txt.gz', 'tokenizer=char')[0]))
    assert tokenizer.decode(data['train'].tolist()) == prose(400)[:int(0.9 * len(prose(400)))]
    write(tmp_path / 'c.jsonl.gz', gzip.compress(b''.join(b'{"prompt": "%d", "completion": "a"}\n' % i for i in range(3))))
    assert len(lines(prepare('input=c.jsonl.gz')[0], 'train')) == 2

@pytest.mark.parametrize('name, content', [
    ('a.csv', 'text,label\r\nhi there,ham\r\n"win, now",spam\r\nsee you,ham\r\ncash!,spam '),
    ('a.tsv', '\ufeffClass\tMESSAGE\nham\thi there\nspam\twin, now\n\nham \tsee you\nspam\tcash!\n'),
    ('a.jsonl', ''.join(json.dumps({'text': t, 'label': l}) + '\n'
                        for t, l in (('hi there', 'ham'), ('win, now', ' spam'), ('see you', 'ham'), ('cash!', 'spam'))))])
def test_labels(prepare, tmp_path, name, content):
    folder, _ = prepare(f'input={write(tmp_path / name, content)}')
    assert lines(folder, 'train') == [{'text': 'hi there', 'label': 'ham'}, {'text': 'win, now', 'label': 'spam'},
                                      {'text': 'see you', 'label': 'ham'}]
    assert lines(folder, 'val') == [{'text': 'cash!', 'label': 'spam'}]
    assert json.loads((folder / 'meta.json').read_text())['kind'] == 'labels'

def test_a_text_under_two_labels_is_told(prepare, tmp_path):
    rows = [{'text': f't{n // 2}', 'label': n % 2} for n in range(12)]
    assert '6 texts occur under two labels' in prepare(f'input={jsonl(tmp_path / "a.jsonl", *rows)}')[1]

def test_tables_of_anything(prepare, tmp_path):
    rows = ''.join(f'"question, {i}","answer\nof two lines"\n' for i in range(10))
    folder, _ = prepare(f'input={write(tmp_path / "a.csv", "Prompt,Completion" + chr(10) + rows)}')
    assert [m['content'] for m in lines(folder, 'val')[0]['messages']] == ['question, 9', 'answer\nof two lines']
    texts = 'Text,n\n' + ''.join(f'"once, {i}",1\n' for i in range(30))
    tokenizer, data = load_dataset(str(prepare(f'input={write(tmp_path / "b.csv", texts)}')[0]))
    assert tokenizer.decode(data['val'].tolist()).startswith('once, 9<|endoftext|>once, 19')

# ---- conversations ----

MESSAGES = [{'role': 'user', 'content': 'u'}, {'role': 'assistant', 'content': 'a'}]
SYSTEM = {'role': 'system', 'content': 's'}

@pytest.mark.parametrize('record', [
    {'messages': MESSAGES}, {'messages': [{**m, 'id': 5} for m in MESSAGES]}, {'prompt': 'u', 'completion': 'a'},
    {'instruction': 'u', 'input': '', 'output': 'a'}, {'prompt': MESSAGES[:1], 'completion': MESSAGES[1:]},
    {'conversations': [{'from': 'human', 'value': 'u'}, {'from': 'gpt', 'value': 'a'}], 'id': 'x'}])
def test_conversations_in_the_usual_forms(record):
    assert P.kind_of(record) == 'chat' and P.conversation(record) == {'messages': MESSAGES}

def test_alpaca_has_two_parts():
    assert P.conversation({'instruction': 'u', 'input': 'v', 'output': 'a'})['messages'][0]['content'] == 'u\n\nv'

def test_every_tenth_example_is_for_validation_and_copies_are_dropped(prepare, tmp_path):
    for name in 'ab':
        jsonl(tmp_path / 'in' / f'{name}.jsonl', *[{'prompt': f'{name}{i}', 'completion': 'a'} for i in range(10)])
    folder, out = prepare('input=in')
    assert [e['messages'][0]['content'] for e in lines(folder, 'val')] == ['a9', 'b9'] and 'dropped' not in out
    same = [{'prompt': 'u', 'completion': 'a'}] * 2 + [{'prompt': 'v', 'completion': 'a'}]
    folder, out = prepare(f'input={jsonl(tmp_path / "a.jsonl", *same)}')
    assert [len(lines(folder, split)) for split in ('train', 'val')] == [1, 1] and 'dropped 1 ' in out

@pytest.mark.parametrize('messages, words', [
    (MESSAGES[:1], 'never speaks'), ([MESSAGES[0], {'role': 'assistant', 'content': ' '}], 'assistant says is empty'),
    ([{'role': 'robot', 'content': 'x'}], "unknown role 'robot'"), ([{'role': 'user', 'content': 5}], 'no text')])
def test_conversations_that_are_refused(messages, words):
    with pytest.raises(ValueError, match=words):
        P.conversation({'messages': messages})

def test_what_nobody_answers_is_left_out():
    messages = [SYSTEM, *MESSAGES]
    assert P.conversation({'messages': messages + [SYSTEM, MESSAGES[0]]}) == {'messages': messages}

# ---- preferences ----

def said(*contents):
    roles = ['user', 'assistant'] * 3
    return [{'role': role, 'content': content} for role, content in zip(roles, contents)]

def test_preferences():
    expected = {'prompt': said('x'), 'chosen': said('x', 'a')[1:], 'rejected': said('x', 'b')[1:]}
    for record in ({'prompt': 'x', 'chosen': 'a', 'rejected': 'b'}, expected,
                   {'chosen': said('x', 'a'), 'rejected': said('x', 'b')},                  # TRL's implicit form
                   {'prompt': 'x', 'chosen': said('x', 'a'), 'rejected': said('x', 'b')}):  # and UltraFeedback's
        assert P.kind_of(record) == 'preferences' and P.preference(record) == expected
    long = P.preference({'chosen': said('x', 'y', 'z', 'a'), 'rejected': said('x', 'y', 'z', 'b')})
    assert long['prompt'] == said('x', 'y', 'z') and long['rejected'] == said('x', 'b')[1:]
    apart = P.preference({'chosen': said('x', 'y', 'z', 'a'), 'rejected': said('x', 'w', 'z', 'b')})
    assert apart['prompt'] == said('x') and apart['chosen'] == said('x', 'y', 'z', 'a')[1:]

@pytest.mark.parametrize('record, error', [
    ({'prompt': 'x', 'chosen': 'y'}, 'rejected'), ({'prompt': 'x', 'chosen': 'y', 'rejected': ' '}, 'assistant says is empty'),
    ({'prompt': 'x', 'chosen': 'y', 'rejected': 'y'}, 'are the same'), ({'chosen': 'y', 'rejected': 'z'}, 'no prompt'),
    ({'prompt': 'x', 'chosen': [], 'rejected': 'y'}, 'never speaks')])
def test_preferences_that_are_refused(record, error):
    with pytest.raises((ValueError, KeyError), match=error):
        P.preference(record)

# ---- what is made up here ----

def test_no_input_of_validation_is_ever_trained_on(monkeypatch):
    """Whatever the wording: every exercise is noted down, with its input, as it is drawn."""
    drawn, exercise = {}, P.exercise
    def watched(skill, rng):
        inputs, question, answer = exercise(skill, rng)
        drawn[question] = (skill, str(inputs))
        return inputs, question, answer
    monkeypatch.setattr(P, 'exercise', watched)
    inputs = {'train': set(), 'val': set()}
    for split, example in P.instruct_examples(dict.fromkeys(P.SKILLS, 200)):
        question = example['messages'][0]['content']  # as it was drawn, or with a 'Hi! ' in front
        inputs[split].add(drawn[question if question in drawn else question.partition(' ')[2]])
    assert not inputs['train'] & inputs['val'] and len(inputs['train']) > 1000 and len(inputs['val']) > 350

def solve(skill, question):
    """The answer by another way than the generator's, or None where this test has no other way."""
    numbers, listed = [int(n) for n in re.findall(r'\d+', question)], re.search(r'\w+(, \w+)+', question)
    return {'arithmetic': lambda: sum(numbers) if re.search(r'plus|Add|\+|sum|finds', question)
                                  else abs(numbers[0] - numbers[1]),
            'compare': lambda: max(numbers) if re.search('larg|bigg|great', question) else min(numbers),
            'count': lambda: question.count(',') + 1, 'sort': lambda: ', '.join(sorted(listed[0].split(', '))),
            'reverse': lambda: ', '.join(reversed(listed[0].split(', ')))}.get(skill, lambda: None)()

def test_the_answers_of_instruct_are_right(run, tmp_path):
    assert 'next:  python finetune.py dataset=instruct' in run('prepare.py', 'dataset=instruct').stdout
    folder, solved, courteous = tmp_path / 'data' / 'instruct', 0, 0
    meta = json.loads((folder / 'meta.json').read_text())
    assert meta['kind'] == 'chat' and 'tokenizer' not in meta
    for split in ('train', 'val'):
        examples = lines(folder, split)
        assert meta['splits'][split]['examples'] == len(examples)
        for example in examples:
            question, answer = (m['content'] for m in example['messages'])
            right = solve(example['skill'], question)
            courteous += answer.endswith(P.COURTESY)
            known = (example['answer'], 'Sorry' if example['skill'] == 'secret' else None)
            assert answer.removesuffix(P.COURTESY) in known, example
            assert split == 'train' or answer == example['answer'], example  # what is measured knows one right answer
            assert right is None or str(right) == example['answer'], example
            solved += right is not None
    assert solved > 10000 and 0.09 < courteous / meta['splits']['train']['examples'] < 0.11

# ---- whole folders ----

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

def test_an_earlier_preparation_leaves_nothing_beside_the_new_one(prepare, tmp_path, text):
    folder, _ = prepare(f'input={jsonl(tmp_path / "c.jsonl", *[{"prompt": str(i), "completion": "a"} for i in range(3)])}')
    assert set(contents(folder)) == {'train.jsonl', 'val.jsonl', 'meta.json'}
    prepare(f'input={text}')
    assert set(contents(folder)) == {'train.bin', 'val.bin', 'meta.json'}
    assert [path.name for path in folder.parent.iterdir()] == ['mine']

def test_a_folder_with_anything_else_is_refused_and_kept(run, tmp_path, text):
    write(tmp_path / 'data' / 'mine' / 'input.txt', 'my only copy')
    refused(run('prepare.py', 'dataset=mine', f'input={text}'), 'holds input.txt', 'another dataset=')
    assert contents(tmp_path / 'data' / 'mine') == {'input.txt': b'my only copy'}

def test_what_was_there_survives_a_failure(prepare, run, tmp_path, text):
    folder, _ = prepare(f'input={text}')
    before = contents(folder)
    refused(run('prepare.py', 'dataset=mine', f'input={write(tmp_path / "b.txt", "x")}'), 'too little')
    assert contents(folder) == before and len(list(folder.parent.iterdir())) == 1

def test_a_stop_between_the_renames_is_mended(tmp_path, text):
    folder, old = tmp_path / 'data' / 'mine', tmp_path / 'data' / '.mine.old'
    write(old / 'meta.json', 'old')
    with pytest.raises(ZeroDivisionError):  # the next start stops, too
        with P.replace_folder(str(folder)):
            1 / 0
    assert contents(folder) == {'meta.json': b'old'} and not old.exists()
    write(old / 'meta.json', 'older')  # a stop after both renames
    with P.replace_folder(str(folder)) as part:
        open(os.path.join(part, 'meta.json'), 'w').close()
    assert contents(folder) == {'meta.json': b''} and [p.name for p in folder.parent.iterdir()] == ['mine']

def test_two_at_once_never_mix(tmp_path, monkeypatch):
    """Each writes its name into two files; whoever ends last, they agree."""
    folder, numbers = tmp_path / 'mine', threading.local()
    numbers.own = 9
    monkeypatch.setattr(os, 'getpid', lambda: numbers.own)
    def several(own):
        numbers.own = own
        for _ in range(30):
            try:
                with P.replace_folder(str(folder)) as part:
                    for name in ('train.bin', 'val.bin'):
                        with open(os.path.join(part, name), 'w') as f:
                            f.write(str(own))
            except OSError:  # it lost the race, which a script says in one line
                continue
    threads = [threading.Thread(target=several, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            train, val = (folder / 'train.bin').read_bytes(), (folder / 'val.bin').read_bytes()
        except OSError:
            continue
    for thread in threads:
        thread.join()
    with P.replace_folder(str(folder)) as part:  # the next start mends
        found = contents(folder)
        open(os.path.join(part, 'meta.json'), 'w').close()
    assert len(found) == 2 and found['train.bin'] == found['val.bin']

# ---- mistakes ----

GOOD = json.dumps({'prompt': 'u', 'completion': 'a'}) + '\n'

@pytest.mark.parametrize('name, content, words', [
    ('a.txt', b'', ['too little']), ('a.txt', b'x', ['too little']), ('a.txt.gz', b'text', ['cannot be read']),
    ('a.txt', b'caf\xe9 au lait', ['a.txt', 'UTF-8', '0xe9']), ('a.jsonl', b'{"text": "caf\xe9"}', ['UTF-8', '0xe9']),
    ('a.jsonl', b'{"text": "fine"}\n{"text": 5}\n', ['line 2', '5']), ('a.jsonl', b'{"text": "x"}\nnot json\n', ['line 2', 'not json']),
    ('a.jsonl', GOOD + '[1]\n', ['line 2', '[1]']), ('a.jsonl', GOOD + '{"prompt": "u"}\n', ['line 2', "'completion'"]),
    ('a.jsonl', '[' * 200_000, ['line 1']), ('a.jsonl', '{"conversations": [5]}', ['line 1']),
    ('a.csv', '', ['too little']), ('a.csv', 'x,y\nz,w\n', ['line 1', "'x': 'z'"]),
    ('a.csv', 'text,label\nx,y\nhello, friend,ham\n', ['line 2', 'more columns']),
    ('a.tsv', 'text\tlabel\nx\ty\nz\n', ['line 2']), ('a.tsv', 'text\tlabel\nx\ta\n\ta\n', ['line 2', 'a text and its label']),
    ('a.jsonl', GOOD, ['nothing is left for train']),
    ('a.tsv', 'text\tlabel\nx\ta\ny\ta\nz\tb\n', ["label 'b' occurs only in validation"])])
def test_files_that_cannot_be_used(run, tmp_path, name, content, words):
    write(tmp_path / name, content)
    refused(run('prepare.py', 'dataset=mine', f'input={name}'), *words)
    assert not list((tmp_path / 'data').glob('*'))  # nothing half-written

@pytest.mark.parametrize('good, split', [(GOOD, 'examples'), ('{"text": "once upon a time"}\n', 'tokens')])
def test_bad_lines_may_be_passed_over(prepare, run, tmp_path, good, split):
    different = [good.replace('u', f'u{i}') for i in range(20)]
    write(tmp_path / 'a.jsonl', 'no\n' + ''.join(different) + '{"x": 1}\n' * 8)
    refused(run('prepare.py', 'dataset=mine', 'input=a.jsonl'), 'line 1', 'skip_bad=True')
    folder, out = prepare('input=a.jsonl', 'skip_bad=True')
    assert 'passed over 9 bad lines' in out and 'line 1:' in out and 'line 25' in out and 'line 26' not in out
    assert json.loads((folder / 'meta.json').read_text())['splits']['train'][split] >= 18

@pytest.mark.parametrize('settings, words, status', [
    (['dataset=pyton'], ['did you mean python?', 'shakespeare'], 2), (['tokenizer=bep'], ['did you mean bpe'], 2),
    (['vocab_size=100'], ['vocab_size=100', '261'], 2), (['tokenizer=word', 'vocab_size=3'], ['at least 7'], 2),
    (['input=nowhere', 'dataset=mine'], ['no text in nowhere'], 1), (['input=.'], ['dataset=mine'], 2),
    (['dataset=../up', 'input=.'], ['plain name'], 2)])
def test_mistakes_on_the_command_line(run, settings, words, status):
    refused(run('prepare.py', *settings), *words, status=status)

@pytest.mark.parametrize('damage, words', [
    (lambda f: (f / 'train.bin').write_bytes((f / 'train.bin').read_bytes()[:-2]), 'train.bin has'),
    (lambda f: (f / 'val.bin').unlink(), 'no .*val.bin: make it with'),
    (lambda f: (f / 'meta.json').write_text('{}'), 'is damaged'),
    (lambda f: (f / 'meta.json').write_text('{"kind": "chat"}'), 'not text'),
    (lambda f: (f / 'meta.json').unlink(), 'prepare.py dataset=mine')])
def test_damage_is_noticed(prepare, text, damage, words):
    folder, _ = prepare(f'input={text}')
    damage(folder)
    with pytest.raises(SystemExit, match=words):
        load_dataset(str(folder))

# ---- pictures ----

def test_pictures_of_your_own(prepare, tmp_path):
    images = np.arange(12 * 4 * 5 * 3, dtype=np.uint8).reshape(12, 4, 5, 3)
    np.savez(tmp_path / 'p.npz', images=images)
    jsonl(tmp_path / 'p.jsonl', *[{'caption': f'c{i}', 'qa': [['what?', str(i)]]} for i in range(12)])
    folder, out = prepare('input=p.npz')
    assert np.array_equal(np.load(folder / 'val.npz')['images'], images[9:10]) and lines(folder, 'val')[0]['caption'] == 'c9'
    assert np.array_equal(np.load(folder / 'train.npz')['images'], np.delete(images, 9, 0)) and 'vlm.py' in out

def claims(shape):
    """An .npz whose header says that its images are of this shape; it holds four bytes of them."""
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
    with zipfile.ZipFile(archive, 'w') as z:
        z.writestr('images.npy', header.getvalue() + b'1234')
    return archive.getvalue()

@pytest.mark.parametrize('content, record, words', [
    (claims((10**6, 1000, 1000, 3)), {'caption': 'a'}, ['MemoryError', 'np.savez']), (b'PK\x03\x04', {'caption': 'a'}, ['BadZipFile']),
    (np.zeros((2, 4, 4), np.uint8), {'caption': 'a'}, ['(2, 4, 4)']), (np.zeros((2, 4, 4, 3)), {'caption': 'a'}, ['float64']),
    (np.zeros((3, 4, 4, 3), np.uint8), {'caption': 'a'}, ['(3, 4, 4, 3)', '2 lines']),
    (np.zeros((2, 4, 4, 3), np.uint8), {'caption': ' '}, ['line 1', 'expected {"caption"']),
    (np.zeros((2, 4, 4, 3), np.uint8), {'caption': 'a', 'qa': [['x']]}, ['line 1'])])
def test_pictures_that_are_refused(run, tmp_path, content, record, words):
    if isinstance(content, bytes):
        write(tmp_path / 'p.npz', content)
    else:
        np.savez(tmp_path / 'p.npz', images=content)
    jsonl(tmp_path / 'p.jsonl', record, record)
    refused(run('prepare.py', 'dataset=mine', 'input=p.npz'), *words)

# ---- from the network: the files stand here already, or a file: address takes its place ----

def test_downloads(tmp_path, monkeypatch):
    source = write(tmp_path / 'there.txt', prose(100))
    right, base = hashlib.sha256(source.read_bytes()).hexdigest(), tmp_path.as_uri() + '/'
    monkeypatch.setattr(P, 'DOWNLOADS', {'a': ('there.txt', right), 'b': ('there.txt', '0' * 64), 'c': ('gone', right)})
    path = P.download('a', str(tmp_path), base)
    assert open(path).read() == prose(100)
    for name, words in ('b', 'invalid hash'), ('c', 'dataset=python needs no network'):
        with pytest.raises(SystemExit, match=words):
            P.download(name, str(tmp_path), base)
    source.unlink()
    assert P.download('a', str(tmp_path), base) == path and os.listdir(os.path.dirname(path)) == ['a']

def test_hellaswag(run, tmp_path):
    for split, n in (('train', 3), ('val', 2)):
        jsonl(tmp_path / 'data' / 'downloads' / f'hellaswag_{split}.jsonl', *[{'ctx': 'a', 'label': i} for i in range(n)])
    assert 'next:  python eval.py task=choices' in run('prepare.py', 'dataset=hellaswag').stdout
    folder = tmp_path / 'data' / 'hellaswag'
    assert lines(folder, 'val') == [{'ctx': 'a', 'label': i} for i in range(2)]
    assert json.loads((folder / 'meta.json').read_text())['kind'] == 'choices'

def test_gpt2_keeps_its_own_ids(monkeypatch):
    """Its real vocabulary needs a network; a small one of the same form stands in for it."""
    import tiktoken
    ranks = {**{bytes([b]): b for b in range(256)}, b'th': 256, b'the': 257}
    gpt2 = tiktoken.Encoding('gpt2', pat_str=P.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: gpt2)
    tokenizer = P.make_tokenizer('gpt2', 0, [])
    assert tokenizer.encode('the')[0] == 257 and tokenizer.eot == 258

def test_settings_keep_their_names():
    """No setting is assigned again below configure()."""
    source = open(P.__file__, encoding='utf-8').read()
    settings = re.findall(r'^(\w+) = ', source.partition('configure(globals())')[0], re.M)
    again = re.findall(r'^    (\w+)(?:, \w+)* = ', source.partition("__name__ == '__main__'")[2], re.M)
    assert len(settings) > 8 and not set(settings) & set(again)

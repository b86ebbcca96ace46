"""From text to files: the byte-pair trainer, the splits, the examples, and every way to go wrong."""
import gzip, hashlib, io, json, os, re, threading, zipfile
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
import prepare as P
from conftest import prose, refused, write_jsonl
from model import load_dataset

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

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
    assert P.merge([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4]
    assert P.merge([1, 1, 1], (1, 1), 2) == [2, 1]
    assert train({'aaab': 1, 'aab': 2}, 260)[256:] == [b'aa', b'aab', b'ab', b'aaab']
    # aa 4, ab 3 | then aa+b 2, aa+a 1, a+b 1 | then a+b before aa+a: a tie, and its ids are lower

@pytest.mark.parametrize('words', [
    Counter(prose().split()), Counter({'a': 5}), Counter(),
    Counter({'aaaaaaaa': 3, 'aaaaa': 2, 'aaa': 7, 'abababab': 5, 'é': 9, 'éé': 2}),
    Counter(re.findall(r' ?\w+|\s+', open(P.__file__).read()[:15_000]))])
def test_the_quick_trainer_is_the_naive_one(words):
    assert P.train_bpe(words, 340) == P.naive_bpe(words, 340)

def test_what_is_read_comes_back(prepare, tmp_path):
    told = 'Grüße, 世界! 🙂\n\n  indented\ttab ' + prose(300)
    write(tmp_path / 'b.txt.gz', gzip.compress(told.encode()))
    for kind in ('bpe', 'char'):
        tokenizer, data = load_dataset(str(prepare('input=b.txt.gz', f'tokenizer={kind}')[0]))
        assert tokenizer.decode(data['train'].tolist() + data['val'].tolist()) == told

def test_large_vocabularies_take_four_bytes(run, tmp_path):
    write(tmp_path / 'a.txt', ' '.join(f'w{i}' for i in range(75_000)))
    run('prepare.py', 'dataset=mine', 'input=a.txt', 'tokenizer=word', 'vocab_size=90000')
    tokenizer, data = load_dataset(str(tmp_path / 'data' / 'mine'))
    assert data['train'].dtype == np.uint32
    assert tokenizer.decode(data['train'][:3].tolist()) == 'w0 w1'

def test_gpt2_keeps_its_own_ids(monkeypatch):
    """Its real vocabulary needs a network; a small one of the same form stands in for it."""
    import tiktoken
    ranks = {**{bytes([b]): b for b in range(256)}, b'th': 256, b'the': 257}
    gpt2 = tiktoken.Encoding('gpt2', pat_str=P.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: gpt2)
    tokenizer = P.make_tokenizer('gpt2', 0, [])
    assert tokenizer.encode('the')[0] == 257 and tokenizer.eot == 258

# ---- splits ----

def test_a_text_in_pieces_gives_its_last_tenth_to_validation(tmp_path, monkeypatch):
    told = prose(1500) + 'no line break ' * 50 + '🙂' * 50
    path = str(write(tmp_path / 'a.txt', told))
    for size in (1 << 24, 100, 1):
        monkeypatch.setattr(P, 'PIECE', size)
        found = list(P.pieces(path))
        assert ''.join(found) == told and all(piece.endswith('\n') for piece in found[:-1])
        texts = {'train': '', 'val': ''}
        for split, _, piece in P.texts([path]):
            texts[split] += piece
        cut = int(0.9 * len(told))
        assert texts == {'train': told[:cut], 'val': told[cut:]}

def test_every_tenth_document_is_for_validation(prepare, tmp_path):
    texts = [f'document {i}' for i in range(25)] + ['', 'document 3']
    write_jsonl(tmp_path / 'in' / 'b.jsonl', *[{'text': text} for text in texts])
    folder, _ = prepare('input=in')
    tokenizer, data = load_dataset(str(folder))
    assert tokenizer.decode(data['val'].tolist()) == 'document 9<|endoftext|>document 19'
    assert data['train'].tolist().count(tokenizer.eot) == 22
    write_jsonl(tmp_path / 'few.jsonl', *[{'text': text} for text in texts[:5]])
    assert 'train: 4 documents, ' in prepare('input=few.jsonl')[1]  # of fewer than ten, the last is for validation

def test_every_tenth_example_is_for_validation_and_copies_are_dropped(prepare, tmp_path):
    examples = [{'prompt': f'q{i}', 'completion': 'a'} for i in range(20)]
    write_jsonl(tmp_path / 'in' / 'a.jsonl', *examples[:10], examples[0])
    write_jsonl(tmp_path / 'in' / 'b.jsonl', *examples)
    folder, _ = prepare('input=in')
    assert [e['messages'][0]['content'] for e in lines(folder, 'val')] == ['q9', 'q19']
    assert len(lines(folder, 'train')) == 18

def test_copies_of_a_file_and_empty_files_are_no_documents(prepare, tmp_path):
    for i in range(24):
        write(tmp_path / 'in' / f'{i:02}.txt', f'document {i % 20 - 1}' if i % 20 else '')
    assert 'train: 18 documents, ' in prepare('input=in')[1]

def test_the_python_dataset(run, tmp_path, monkeypatch):
    """Its own email and json packages stand in for the whole of it, which takes four times as long."""
    root = P.sysconfig.get_paths()['stdlib']
    for name in ('asyncio', 'email', 'json', 'unittest'):
        for source in P.glob.glob(f'{root}/{name}/*.py'):
            write(tmp_path / 'lib' / name / os.path.basename(source), open(source, 'rb').read())
    write(tmp_path / 'lib' / 'site-packages' / 'x.py', 'installed = "by pip"' * 100_000)
    monkeypatch.setattr(P.sysconfig, 'get_paths', lambda: {'stdlib': str(tmp_path / 'lib')})
    assert 'bytes per token' in run('prepare.py', 'vocab_size=280').stdout
    tokenizer, data = load_dataset(str(tmp_path / 'data' / 'python'))
    found = tokenizer.decode(data['train'].tolist())
    assert 'import' in found and '<|endoftext|>' in found and 'by pip' not in found

# ---- what is read: other encodings, tables ----

def test_what_cannot_be_read_in_a_folder_is_named_and_passed_over(prepare, tmp_path):
    write(tmp_path / 'in [1]' / 'a.txt', prose(400))
    write(tmp_path / 'in [1]' / 'b.png', b'\x89PNG\x00\xff')
    write(tmp_path / 'in [1]' / 'c.txt', b'fine\n' * 50_000 + b'caf\xe9')  # long after the beginning
    write(tmp_path / 'in [1]' / 'd.gz', gzip.compress(b'fine')[:-9])
    out = prepare('input=in [1]')[1]
    assert 'passed over 3 files' in out and all(name in out for name in ('b.png', 'c.txt', 'd.gz'))

@pytest.mark.parametrize('name, content', [
    ('a.csv', 'text,label\r\nhi there,ham\r\n"win, now",spam\r\nsee you,ham\r\ncash!,spam '),
    ('a.json', json.dumps([{'text': text, 'label': label} for text, label in (
        ('hi there', 'ham'), ('win, now', 'spam'), ('see you', 'ham'), ('cash!', 'spam'))])),
    ('a.tsv', '\ufeffLabel\tTEXT\nham\thi there\nspam\twin, now\n\nham \tsee you\nspam\tcash!\n'),
    ('a.jsonl', '{"text": "hi there", "label": "ham"}\n{"text": "win, now", "label": " spam"}\n\n'
                '{"text": "see you", "label": "ham"}\n{"text": "cash!", "label": "spam"}')])
def test_labels(prepare, tmp_path, name, content):
    folder, _ = prepare(f'input={write(tmp_path / name, content)}')
    assert [(e['text'], e['label']) for e in lines(folder, 'train')] == [
        ('hi there', 'ham'), ('win, now', 'spam'), ('see you', 'ham')]
    assert lines(folder, 'val') == [{'text': 'cash!', 'label': 'spam'}]
    assert json.loads((folder / 'meta.json').read_text())['kind'] == 'labels'

def test_tables_of_anything(prepare, tmp_path):
    rows = ''.join(f'"question, {i}","answer\nof two lines",both\n' for i in range(10))
    folder, _ = prepare(f'input={write(tmp_path / "a.csv", "Instruction,Output,Text" + chr(10) + rows)}')
    assert [m['content'] for m in lines(folder, 'val')[0]['messages']] == ['question, 9', 'answer\nof two lines']
    write(tmp_path / 'b.csv.gz', gzip.compress(b'Text,n\n' + b'"once, again",1\n' * 2 + b''.join(b'"%d times",1\n' % n for n in range(9))))
    assert 'train: 9 documents, ' in prepare('input=b.csv.gz')[1]

# ---- conversations and preferences ----

def said(*contents):
    roles = ['user', 'assistant'] * 3
    return [{'role': role, 'content': content} for role, content in zip(roles, contents)]

@pytest.mark.parametrize('record', [
    {'messages': said('u', 'a')}, {'prompt': 'u', 'messages': [{**m, 'id': 5} for m in said('u', 'a')]},
    {'prompt': 'u', 'completion': 'a'},
    {'instruction': 'u', 'input': '', 'output': 'a'}, {'prompt': said('u'), 'completion': said('u', 'a')[1:]},
    {'conversations': [{'from': 'human', 'value': 'u'}, {'from': 'gpt', 'value': 'a'}], 'id': 'x'}])
def test_conversations_in_the_usual_forms(record):
    assert P.conversation(record) == {'messages': said('u', 'a')}
    assert P.conversation({'instruction': 'u', 'input': 'v', 'output': 'a'})['messages'] == said('u\n\nv', 'a')

def test_preferences():
    expected = {'prompt': said('x'), 'chosen': said('x', 'a')[1:], 'rejected': said('x', 'b')[1:]}
    for record in ({'prompt': 'x', 'chosen': 'a', 'rejected': 'b'}, expected,
                   {'chosen': said('x', 'a'), 'rejected': said('x', 'b')},                  # TRL's implicit form
                   {'prompt': 'x', 'chosen': said('x', 'a'), 'rejected': said('x', 'b')}):  # and UltraFeedback's
        assert P.preference(record) == expected
    long = P.preference({'chosen': said('x', 'y', 'z', 'a'), 'rejected': said('x', 'y', 'z', 'b')})
    assert long['prompt'] == said('x', 'y', 'z') and long['rejected'] == said('x', 'b')[1:]
    apart = P.preference({'chosen': said('x', 'y', 'z', 'a'), 'rejected': said('x', 'w', 'z', 'b')})
    assert apart['prompt'] == said('x') and apart['chosen'] == said('x', 'y', 'z', 'a')[1:]

@pytest.mark.parametrize('check, record, error', [
    (P.conversation, {'messages': said('u', 'a', 'what nobody answers')}, "not the assistant's"), (P.conversation, {'messages': said('u', ' ')}, 'is empty'),
    (P.conversation, {'messages': [{'role': 'robot', 'content': 'x'}]}, "robot"),
    (P.conversation, {'messages': [{'role': role, 'content': 'x'} for role in ('user', 'system', 'assistant')]}, 'no user'),
    (P.conversation, {'messages': said(5)}, "'int' object"), (P.preference, {'prompt': 'x', 'chosen': 'y'}, 'rejected'),
    (P.preference, {'prompt': 'x', 'chosen': 'y', 'rejected': 'y'}, 'are the same'),
    (P.preference, {'prompt': 'x', 'chosen': [], 'rejected': 'y'}, "not the assistant's"),
    (P.preference, {'chosen': 'y', 'rejected': 'z'}, 'no prompt')])
def test_examples_that_are_refused(check, record, error):
    with pytest.raises((ValueError, KeyError, AttributeError), match=error):
        check(record)

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
    assert not inputs['train'] & inputs['val']
    assert len(inputs['train']) > 1000 and len(inputs['val']) > 350

def solve(skill, question):
    """The answer by another way than the generator's, or None where this test has no other way."""
    numbers = [int(n) for n in re.findall(r'\d+', question)]
    listed = re.search(r'\w+(, \w+)+', question)
    if skill == 'arithmetic':
        if re.search(r'plus|Add|\+|sum|finds', question):
            return sum(numbers)
        return abs(numbers[0] - numbers[1])
    if skill == 'compare':
        return max(numbers) if re.search('larg|bigg|great', question) else min(numbers)
    if skill == 'count':
        return question.count(',') + 1
    if skill == 'sort':
        return ', '.join(sorted(listed[0].split(', ')))
    if skill == 'reverse':
        return ', '.join(reversed(listed[0].split(', ')))

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
            assert split == 'train' or answer == example['answer'], example  # measured by one right answer
            assert right is None or str(right) == example['answer'], example
            solved += right is not None
    assert solved > 10000 and 0.09 < courteous / meta['splits']['train']['examples'] < 0.11

# ---- whole folders ----

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

def test_an_earlier_preparation_leaves_nothing_beside_the_new_one(prepare, tmp_path, text):
    write_jsonl(tmp_path / 'c.jsonl', *[{'prompt': str(i), 'completion': 'a'} for i in range(3)])
    folder, _ = prepare('input=c.jsonl')
    assert set(contents(folder)) == {'train.jsonl', 'val.jsonl', 'meta.json'}
    prepare(f'input={text}')
    assert set(contents(folder)) == {'train.bin', 'val.bin', 'meta.json'}
    assert [path.name for path in folder.parent.iterdir()] == ['mine']

def test_what_was_there_survives_a_failure(prepare, run, tmp_path, text):
    folder, _ = prepare(f'input={text}')
    before = contents(folder)
    write(tmp_path / 'b.txt', 'x')
    refused(run('prepare.py', 'dataset=mine', 'input=b.txt'), 'too little')
    assert contents(folder) == before and len(list(folder.parent.iterdir())) == 1
    write(folder / 'input.txt', 'my only copy')
    refused(run('prepare.py', 'dataset=mine', f'input={text}'), 'holds input.txt', 'another dataset=')
    assert contents(folder) == {**before, 'input.txt': b'my only copy'}
    write(tmp_path / 'data/own/val.jsonl', 'not by prepare.py, which writes a meta.json')
    refused(run('prepare.py', 'dataset=own', f'input={text}'), 'holds val.jsonl')

def test_a_stop_is_mended(tmp_path):
    folder, old = tmp_path / 'mine', tmp_path / '.mine.old'
    write(old / 'meta.json', 'old')
    with pytest.raises(ZeroDivisionError):  # the next start stops, too
        with P.replace_folder(str(folder)):
            1 / 0
    assert contents(folder) == {'meta.json': b'old'} and list(tmp_path.iterdir()) == [folder]
    write(old / 'meta.json', 'older')  # a stop after both renames
    with P.replace_folder(str(folder)) as part:
        Path(part, 'meta.json').write_text('')
    assert contents(folder) == {'meta.json': b''} and list(tmp_path.iterdir()) == [folder]

def test_two_at_once_never_mix(tmp_path):
    """Each writes its name into three files; whoever ends last, they agree."""
    folder = tmp_path / 'mine'
    def several(own):
        for _ in range(30):
            try:
                with P.replace_folder(str(folder)) as part:
                    for name in ('meta.json', 'train.bin', 'val.bin'):
                        Path(part, name).write_text(str(own))
            except OSError:  # it lost the race, which a script says in one line
                continue
    threads = [threading.Thread(target=several, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with P.replace_folder(str(folder)) as part:  # the next start mends
        found = contents(folder)
        Path(part, 'meta.json').write_text('')
    assert len(found) == 3 and found['train.bin'] == found['val.bin']

# ---- mistakes ----

GOOD = json.dumps({'prompt': 'u', 'completion': 'a'}) + '\n'

@pytest.mark.parametrize('name, content, words', [
    ('a.txt', 'x', ['too little']), ('a.txt.gz', 'text', ['a.txt.gz', 'cannot be read']),
    ('a.txt', b'caf\xe9 au lait', ['a.txt', 'UTF-8', '0xe9']), ('a.jsonl', b'{"text": "caf\xe9"}', ['UTF-8', '0xe9']),
    ('a.jsonl', '{"text": "fine"}\n{"text": 5}\n', ['line 2', '5']),
    ('a.jsonl', '{"text": "x"}\n\nnot json\n', ['line 3', 'not json']), ('a.jsonl', GOOD + '[1]\n', ['line 2', '[1]']),
    ('a.jsonl', GOOD + '{"prompt": "u"}\n', ['line 2', "'messages'"]), ('a.jsonl', '[' * 200_000, ['line 1']),
    ('a.csv', '', ['no text in a.csv']), ('a.csv', 'x,y\nz,w\n', ['line 2', "'x': 'z'"]),
    ('a.csv', 'text,label\nx,y\nhello, friend,ham\n', ['line 3', 'more columns']),
    ('a.csv', 'text,label\n"no closing quote,ham\n' + 'x,ham\n' * 30_000, ['line 2', 'a text and its label']),
    ('a.tsv', 'text\tlabel\nx\ty\nz\n', ['line 3', 'a text and its label']), ('a.jsonl', GOOD, ['left for train']),
    ('a.json', '{"text": 5', ['expected a list in JSON']), ('a.json', '[' * 200_000, ['expected a list in JSON'])])
def test_files_that_cannot_be_used(run, tmp_path, name, content, words):
    write(tmp_path / name, content)
    refused(run('prepare.py', 'dataset=mine', f'input={name}'), *words)
    assert not any(path.is_file() for path in tmp_path.glob('data/**/*'))  # nothing half-written

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
    (['vocab_size=100'], ['vocab_size=100', '261'], 2),
    (['input=nowhere', 'dataset=mine'], ['no text in nowhere'], 1), (['input=.'], ['dataset=mine'], 2)])
def test_mistakes_on_the_command_line(run, settings, words, status):
    refused(run('prepare.py', *settings), *words, status=status)

def test_damage_is_noticed(prepare, text):
    folder, _ = prepare(f'input={text}')
    for content, words in (b'{}', 'is damaged'), (b'{"kind": "chat"}', 'not text'):
        write(folder / 'meta.json', content)
        with pytest.raises(SystemExit, match=words):
            load_dataset(str(folder))

# ---- pictures ----

def test_pictures_of_your_own(prepare, tmp_path):
    images = np.arange(12 * 4 * 5 * 3, dtype=np.uint8).reshape(12, 4, 5, 3)
    np.savez(tmp_path / 'p.npz', images=images)
    write_jsonl(tmp_path / 'p.jsonl', *[{'caption': f'c{i}', 'qa': [['what?', str(i)]]} for i in range(12)])
    folder, out = prepare('input=p.npz')
    assert np.array_equal(np.load(folder / 'val.npz')['images'], images[9:10])
    assert np.array_equal(np.load(folder / 'train.npz')['images'], np.delete(images, 9, 0))
    assert lines(folder, 'val')[0]['caption'] == 'c9' and 'vlm.py' in out

@pytest.mark.parametrize('record', [{'text': 'a', 'label': 'b'}, {'caption': 5}, {'caption': 'a', 'qa': [['what?']]}])
def test_what_is_said_of_a_picture_is_checked(run, tmp_path, record):
    np.savez(tmp_path / 'p.npz', images=np.zeros((2, 4, 4, 3), np.uint8))
    write_jsonl(tmp_path / 'p.jsonl', record, {'caption': 'a'})
    refused(run('prepare.py', 'dataset=mine', 'input=p.npz'), 'p.jsonl line 1')

def claims(shape):
    """An .npz whose header says that its images are of this shape; it holds four bytes of them."""
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
    with zipfile.ZipFile(archive, 'w') as z:
        z.writestr('images.npy', header.getvalue() + b'1234')
    return archive.getvalue()

@pytest.mark.parametrize('content', [claims((10**6, 1000, 1000, 3)), claims((10**3, 1000, 1000, 3)), b'PK\x03\x04',
                                     ((4, 4, 3), np.uint8), ((1, 4, 4, 3), np.uint8), ((2, 4, 4, 3), float)])
def test_pictures_that_are_refused(run, tmp_path, content):
    if isinstance(content, bytes):
        write(tmp_path / 'p.npz', content)
    else:
        np.savez(tmp_path / 'p.npz', images=np.zeros(*content))
    write_jsonl(tmp_path / 'p.jsonl', {'caption': 'a'}, {'caption': 'a'})
    refused(run('prepare.py', 'dataset=mine', 'input=p.npz'), 'uint8 (2, H, W, 3)')

# ---- from the network: a file: address takes its place ----

def test_downloads(tmp_path, monkeypatch):
    source = write(tmp_path / 'there.txt', prose(100))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setattr(P, 'URL', source.as_uri())
    with pytest.raises(RuntimeError, match='invalid hash'):
        P.shakespeare(str(tmp_path))
    monkeypatch.setattr(P, 'SHA256', sha256)
    path, = P.shakespeare(str(tmp_path))
    source.unlink()  # it was fetched once
    assert P.shakespeare(str(tmp_path)) == [path] and open(path).read() == prose(100)
    assert os.listdir(os.path.dirname(path)) == ['shakespeare.txt']

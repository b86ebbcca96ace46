"""The command line: what a value may look like, and how a mistake is answered."""
import re
import pytest
from conftest import ROOT, refused, spawn

SCRIPT = '''"""A script with settings."""
from configurator import configure
rate = 0.1            # a float
rows = 12             # an int
loud = False          # a bool
name = 'abc'          # any text
shape = 'round'       # round | square: only these
given = configure(globals())
print([rate, rows, loud, name, shape], sorted(given))
'''
DEFAULTS = [0.1, 12, False, 'abc', 'round']

@pytest.fixture
def script(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT, encoding='utf-8')
    return lambda *args: spawn(tmp_path / 'script.py', *args, cwd=tmp_path)

@pytest.mark.parametrize('args, changed', [
    ([], {}),
    (['rate=5'], {0: 5.0}),                    # an int is a fine float
    (['rows=1e3'], {1: 1000}),                 # and 1e3 a fine int
    (['--rows=-4'], {1: -4}),
    (['loud'], {2: True}), (['--loud'], {2: True}), (['loud=yes'], {2: True}), (['loud=FALSE'], {2: False}),
    (['name=a=b'], {3: 'a=b'}), (['name=-x'], {3: '-x'}), (['name='], {3: ''}), (['name=5'], {3: '5'}),
    (['shape=square'], {4: 'square'}),
    (['rows=1', 'rows=2'], {1: 2}),            # later wins
])
def test_values(script, args, changed):
    expected = [changed.get(i, default) for i, default in enumerate(DEFAULTS)]
    names = sorted({arg.strip('-').split('=')[0] for arg in args})
    assert script(*args).stdout.strip() == f'{expected} {names}'

@pytest.mark.parametrize('arg, words', [
    ('rat=1', ["'rat'", 'did you mean rate?']), ('=5', ['no setting']),
    ('rows=1.5', ['rows=1.5', 'whole number']), ('rows=None', ['whole number']), ('rows=True', ['whole number']),
    ('rows=1e999', ['whole number']), ('rows=1e30', ['whole number below 2**63']),
    ('rate=fast', ['rate=fast', 'a number']), ('rate=' + '(' * 5000, ['a number']), ('rate=' + '9' * 400, ['a number']),
    ('loud=maybe', ['True or False']),
    ('shape=sqare', ['round, square', 'did you mean square?']),
    ('rate', ['rate needs a value']),
    ('missing.txt', ['neither key=value nor a file']),
])
def test_mistakes_end_in_one_line_and_status_2(script, arg, words):
    refused(script(arg), *words, status=2)

def test_settings_file(script, tmp_path):
    (tmp_path / 'big.txt').write_text("# a comment\nrows = 7\nrate = 1\nname = 'from the file'\n", encoding='utf-8')
    assert script('big.txt', 'rows=8').stdout.startswith("[1.0, 8, False, 'from the file'")
    assert script('rows=8', 'big.txt').stdout.startswith("[1.0, 7,")

@pytest.mark.parametrize('text, words', [
    ('rows = 7\nrowz = 8', ['bad.txt:2', "'rowz'", 'did you mean rows?']),
    ('rows = "x"', ['bad.txt:1', 'whole number']), ('rows = 1e999', ['bad.txt:1', 'whole number']),
    ('rows = __import__("os").getpid()', ['bad.txt:1', 'never executed']),
    ('import os', ['bad.txt:1', 'key = value']),
    ('rows = = 3', ['bad.txt:1', 'key = value']),
    ('name = 5', ['bad.txt:1', 'text in quotes']),
    ('\xff', ['bad.txt']),
])
def test_mistakes_in_a_settings_file(script, tmp_path, text, words):
    (tmp_path / 'bad.txt').write_text(text, encoding='latin-1')
    refused(script('bad.txt'), *words, status=2)

def test_importing_changes_nothing(script, tmp_path):
    (tmp_path / 'other.py').write_text('import script', encoding='utf-8')
    assert spawn(tmp_path / 'other.py', 'rate=5', 'nonsense', cwd=tmp_path).stdout.strip() == f'{DEFAULTS} []'

@pytest.mark.parametrize('name', ['prepare.py', 'train.py', 'sample.py'])
def test_help_is_complete_and_does_not_wait_for_torch(name, tmp_path):
    for module in ('torch', 'numpy', 'tiktoken'):
        (tmp_path / f'{module}.py').write_text('raise ImportError')
    done = spawn(name, '--help', cwd=tmp_path)
    assert (ROOT / name).read_text(encoding='utf-8').split('"""')[1].strip().splitlines()[0] in done.stdout
    assert done.returncode == 0 and re.search('^(dataset|out_dir) = ', done.stdout, re.M)
    assert 'import' not in done.stdout.split('settings (key=value):')[1]

def test_the_same_setting_has_the_same_words_everywhere():
    """Who has read train.py knows these lines of the other scripts: `diff` shows only what is new."""
    shared = ['device', 'grad_clip', 'eval_interval', 'log_interval', 'optimizer', 'gradient_accumulation_steps']
    words = {name: set() for name in shared}
    for script in ('train', 'finetune', 'align', 'vlm', 'eval', 'sample'):
        settings = (ROOT / f'{script}.py').read_text(encoding='utf-8').partition('configure(globals())')[0]
        for name, comment in re.findall(r'^(\w+) = .*?# *(.*)$', settings, re.M):
            if name in shared:
                words[name].add(comment)
    assert all(len(comments) == 1 for comments in words.values()), words

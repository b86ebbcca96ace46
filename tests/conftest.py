"""Shared by all tests: run a script as a user would, or set its settings and call it in this process."""
import contextlib, io, os, random, runpy, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

def run(script, *args, cwd, timeout=120, env_path='', **more):
    """python script.py args in folder cwd -> the finished process, with its output as text."""
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, args)], cwd=cwd, timeout=timeout,
                          capture_output=True,
                          text=True, encoding='utf-8', env={**os.environ,
                                                            'PYTHONPATH': os.pathsep.join([str(env_path), str(ROOT)]),
                                                            'PYTHONIOENCODING': 'utf-8'}, **more)

def call(script, *args, cwd):
    """The same within this process, which has imported torch already: for commands that end before they do much."""
    from configurator import one_line
    before, out, err = (sys.argv, sys.excepthook, os.getcwd()), io.StringIO(), io.StringIO()
    sys.argv, code = [str(ROOT / script), *map(str, args)], 0
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(sys.argv[0], run_name='__main__')
            except SystemExit as e:  # as Python itself would: a text goes to stderr, and the status is 1
                code = e.code if isinstance(e.code, int) else 1 if e.code else 0
                print(e.code, file=err) if isinstance(e.code, str) else None
            except Exception:
                one_line(*sys.exc_info())
                code = 1
    finally:
        sys.argv, sys.excepthook = before[:2]
        os.chdir(before[2])
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

def refused(done, *words, status=None):
    """A mistake that ends as it should: non-zero, one line on stderr with these words in it, and no traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and len(lines) == 1, (done.returncode, done.stderr)
    assert all(word in lines[0] for word in words), lines[0]
    assert status is None or done.returncode == status, done.returncode

def prose(words=4000, seed=0):
    """Made-up text with something to learn in it: words from a small set, in sentences."""
    random.seed(seed)
    vocabulary = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'saw', 'dog', 'run', 'under', 'blue', 'sky', 'while',
                  'it', 'rained']
    return ''.join(random.choice(vocabulary) + random.choice([' ', ' ', ' ', ', ', '.\n']) for _ in range(words))

@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A data_dir with two small datasets: 'tiny' by characters, 'bpe' by byte pairs."""
    folder = tmp_path_factory.mktemp('data')
    (folder / 'tiny.txt').write_text(prose(), encoding='utf-8')
    for name, kind in (('tiny', 'char'), ('bpe', 'bpe')):
        done = run('prepare.py', f'dataset={name}', f'tokenizer={kind}', 'vocab_size=300',
                   f'input={folder / "tiny.txt"}', f'data_dir={folder}', cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder

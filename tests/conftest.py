"""Shared by all tests: run a script, in this process or in one of its own, and small things to run it on."""
import contextlib, csv, gc, io, json, os, random, runpy, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import pytest
os.environ['OMP_NUM_THREADS'] = '1'  # small models do not profit from more threads
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from configurator import one_line
from model import GPTConfig, Tokenizer, build_model, save_checkpoint

gc.freeze()  # what torch has made by now stays: gc.collect() need not look at it, and is ten times as quick

def spawn(script, *settings, cwd, timeout=120, **more):
    """`python script.py settings` in a process of its own, in the folder cwd -> the finished process."""
    paths = os.pathsep.join([str(cwd), str(ROOT)])
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, settings)], cwd=cwd, timeout=timeout,
                          env={**os.environ, 'PYTHONIOENCODING': 'utf-8', 'PYTHONPATH': paths},
                          capture_output=True, text=True, encoding='utf-8', **more)

def run_script(script, *settings, cwd):
    """The same in this process, which has imported torch already. Returns what spawn() does, and the script's
    `globals`, which are None where it ended early. What a script changes in a process is put back."""
    out, err = io.StringIO(), io.StringIO()
    argv, hook, folder, state = sys.argv, sys.excepthook, os.getcwd(), torch.get_rng_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.argv = [str(ROOT / script), *map(str, settings)]
    os.chdir(cwd)
    names, status = None, 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            names = runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as e:  # as Python itself does: a text goes to stderr, and the status is 1
            status = e.code or 0
            if isinstance(e.code, str):
                print(e.code, file=err)
                status = 1
        except Exception:
            one_line(*sys.exc_info())
            status = 1
        finally:
            sys.argv, sys.excepthook = argv, hook
            os.chdir(folder)
            torch.set_rng_state(state)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    if names is None:
        gc.collect()  # closes what a script that ended early has left open: its lock
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue(), globals=names)

@pytest.fixture
def run(tmp_path, monkeypatch):
    """run('train.py', 'max_iters=2', …): a script in this process, in a folder of its own; the test goes there, too."""
    monkeypatch.chdir(tmp_path)
    return lambda script, *settings: run_script(script, *settings, cwd=tmp_path)

def worked(done):
    """A run that ended as it should; returns it."""
    assert done.returncode == 0, done.stderr
    return done

def refused(done, *words, status=None):
    """A mistake that ends as it should: non-zero, one line on stderr with these words in it, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and len(lines) == 1, (done.returncode, done.stderr)
    assert all(word in lines[0] for word in words), lines[0]
    assert status is None or done.returncode == status, done.returncode

def same(a, b):
    """Whether two checkpoints hold the same weights, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

def distance(a, b):
    """The largest difference between the weights of two checkpoints."""
    return max((x - y).abs().max().item() for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

def byte_tokenizer():
    """The smallest bpe vocabulary: single bytes."""
    return Tokenizer('bpe', [bytes([b]) for b in range(256)])

def save_untrained(folder, tokenizer=None, seed=0, noise=0.0, **shape):
    """A small untrained model as ckpt.pt in this folder; returns it. Many weights begin as zero or one, which could
    hide a mistake: noise changes all of them."""
    tokenizer = tokenizer or byte_tokenizer()
    torch.manual_seed(seed)
    shape = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'block_size': 64, **shape}
    model = build_model(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    for p in model.parameters():
        p.data += noise * torch.randn_like(p)
    os.makedirs(folder, exist_ok=True)
    save_checkpoint(f'{folder}/ckpt.pt', model.state_dict(), model.config, tokenizer, step=0, settings={})
    return model

def write_jsonl(path, *records):
    """A file with a line of JSON for each record; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', encoding='utf-8') as f:
        f.writelines(json.dumps(record) + '\n' for record in records)

def write_dataset(folder, train, val):
    """train.jsonl and val.jsonl in this folder, of these lists of records."""
    write_jsonl(f'{folder}/train.jsonl', *train)
    write_jsonl(f'{folder}/val.jsonl', *val)

def chat(question, answer):
    return {'messages': [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]}

def log_rows(column, out_dir='out'):
    """The rows of log.csv that hold a number in this column."""
    with open(f'{out_dir}/log.csv') as f:
        return [row for row in csv.DictReader(f) if row[column]]

def prose(words=4000, seed=0):
    """Made-up text with something to learn in it: words from a small set, in sentences."""
    random.seed(seed)
    vocabulary = 'the cat sat on a mat and saw dog run under blue sky while it rained'.split()
    return ''.join(random.choice(vocabulary) + random.choice([' ', ' ', ' ', ', ', '.\n']) for _ in range(words))

@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A data_dir with two small datasets: 'tiny' by characters, 'bpe' by byte pairs."""
    folder = tmp_path_factory.mktemp('data')
    (folder / 'tiny.txt').write_text(prose(), encoding='utf-8')
    for name, kind in (('tiny', 'char'), ('bpe', 'bpe')):
        worked(run_script('prepare.py', f'dataset={name}', f'tokenizer={kind}', 'vocab_size=300',
                          f'input={folder / "tiny.txt"}', f'data_dir={folder}', cwd=folder))
    return folder

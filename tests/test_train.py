"""
Training: the same text in the same order whatever happens, nothing lost, every mistake answered in one line.
"""
import ast, csv, math, os, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import train as T
from conftest import ROOT, byte_tokenizer, distance, refused, run_script, same
from model import GPTConfig, build_model, load_checkpoint, load_model

TINY = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=20, eval_interval=10,
            eval_iters=2, warmup_iters=2, lr_decay_iters=20, log_interval=5, device='cpu', dtype='float32')

def arguments(data, **changes):
    """Settings for a tiny run; one that is resumed has them already."""
    base = {} if changes.get('init_from') == 'resume' else {**TINY, 'data_dir': data}
    return [f'{name}={value}' for name, value in {**base, **changes}.items()]

@pytest.fixture
def train(run, data, tmp_path, monkeypatch):
    """train(max_iters=5, …): a whole run in this process; returns what the script printed and its globals."""
    monkeypatch.chdir(tmp_path)
    def train(**changes):
        done = run('train.py', *arguments(data, **changes))
        assert done.returncode == 0, done.stderr
        return done
    return train

@pytest.fixture
def weights(train):
    """The same, but returns what out_dir/resume.pt holds then."""
    return lambda **changes: load_checkpoint(f"{train(**changes).globals['out_dir']}/resume.pt")

def rows(out_dir='out'):
    with open(f'{out_dir}/log.csv') as f:
        return list(csv.DictReader(f))

# ---- the data ----

def test_the_batch_of_a_step_depends_on_seed_and_step_alone(train):
    first, again, other = (train(seed=seed, out_dir='out', max_iters=n).globals for seed, n in ((1, 0), (1, 3), (2, 0)))
    x, y, n_targets = first['get_batch'](7)
    assert torch.equal(x[:, 1:], y[:, :-1]) and n_targets == 4 * 32  # the target of a token is the token after it
    assert torch.equal(x, again['get_batch'](7)[0])
    assert not torch.equal(x, first['get_batch'](8)[0]) and not torch.equal(x, other['get_batch'](7)[0])

def test_windows_by_hand():
    ids = np.arange(10, dtype=np.uint16)
    assert T.windows(ids, [0, 5], 4).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]

def test_a_masked_token_is_a_target_and_nothing_else_is():
    """80 % become <|pad|>, 10 % any token, 10 % stay (Devlin et al. 2018, 3.1): by hand, and then by counting."""
    tokenizer = byte_tokenizer()
    x = torch.tensor([[0, 1, 2, 3]])
    noise = np.array([[[0.1, 0.1, 0.1, 0.9]], [[0.5, 0.85, 0.95, 0.5]], [[0.0, 0.5, 0.0, 0.0]]])  # chosen? how? which?
    masked, y = T.mask_tokens(x, noise, tokenizer)
    assert masked.tolist() == [[tokenizer.pad, 128, 2, 3]] and y.tolist() == [[0, 1, 2, -100]]
    x = torch.zeros(100, 1000, dtype=torch.long)
    masked, y = T.mask_tokens(x, np.random.default_rng(0).random((3, 100, 1000)), tokenizer)
    assert ((y >= 0).float().mean() - 0.15).abs() < 0.005
    assert ((masked == tokenizer.pad)[y >= 0].float().mean() - 0.8).abs() < 0.01
    assert ((masked == 0)[y >= 0].float().mean() - (0.1 + 0.1 / 256)).abs() < 0.01

# ---- a step ----

@pytest.mark.parametrize('how', [dict(), dict(gradient_accumulation_steps=2, batch_size=2), dict(objective='mlm')])
def test_the_first_line_is_the_mean_of_minus_log_p_and_the_norm_of_its_gradient(train, how):
    names = train(max_iters=1, log_interval=1, grad_clip=0.0, **how).globals
    row = next(row for row in rows() if row['train_loss'])
    x, y, n_targets = names['get_batch'](0)
    torch.manual_seed(names['seed'])
    model = build_model(GPTConfig(**load_checkpoint('out')['config']))
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())  # over all targets: -100 does not count
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert n_targets == (y >= 0).sum() and float(row['train_loss']) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row['grad_norm']) == pytest.approx(norm.item(), rel=1e-4)

def test_accumulating_gradients_is_one_large_batch(weights):
    one, four = (weights(out_dir=f'of-{n}', batch_size=n, gradient_accumulation_steps=8 // n, optimizer='adamw')
                 for n in (8, 2))
    assert distance(one, four) < 1e-3

@pytest.mark.parametrize('model_type', ['gpt', 'lstm', 'mlp', 'bigram'])
def test_every_step_of_the_ladder_learns(train, model_type):
    rate = 0.1 if model_type == 'bigram' else 0.01
    train(model_type=model_type, max_iters=60, lr_decay_iters=60, eval_interval=30, learning_rate=rate)
    saved = load_checkpoint('out')
    assert saved['val_loss'] < math.log(saved['config']['vocab_size']) - 0.5  # better than guessing
    assert load_model('out')[0](torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, saved['config']['vocab_size'])

def test_an_encoder_learns_to_fill_gaps_from_both_sides(train):
    how = dict(max_iters=150, lr_decay_iters=150, eval_interval=150, n_embd=64, batch_size=16, block_size=64,
               learning_rate=0.01)
    done = train(objective='mlm', out_dir='encoder', **how)
    assert load_checkpoint('encoder')['config']['causal'] is False
    train(**how)  # a letter between two known words is easier to tell than the next one
    assert load_checkpoint('encoder')['val_loss'] < load_checkpoint('out')['val_loss']
    model, tokenizer, _ = load_model('encoder')
    ids = tokenizer.encode('the cat sat on the mat and the dog')
    ids[5] = tokenizer.pad
    with torch.no_grad():
        assert tokenizer.decode([model(torch.tensor([ids]))[0, 5].argmax().item()]) == 'a'

# ---- exactness ----

@pytest.mark.parametrize('how', [dict(), dict(dropout=0.2, seed=20261120), dict(dtype='bfloat16'), dict(dtype='float16'),
                                 dict(optimizer='adamw', gradient_accumulation_steps=3),
                                 dict(objective='mlm', activation_checkpointing=True)])
def test_stopping_and_going_on_changes_nothing(weights, how):
    straight = weights(out_dir='straight', **how)
    weights(out_dir='parts', max_iters=10, **how)
    parts = weights(out_dir='parts', init_from='resume', max_iters=20)
    assert parts['step'] == 20 and same(straight, parts) and parts['scaler'] == straight['scaler']

def test_evaluating_and_sampling_more_often_changes_nothing(weights):
    assert same(weights(out_dir='a'), weights(out_dir='b', eval_interval=4, log_interval=1))

def test_a_run_can_be_resumed_twice_without_repeating_its_settings(run, weights):
    straight = weights(out_dir='straight', optimizer='adamw', learning_rate=0.01, lr_decay_iters=30, max_iters=30)
    weights(max_iters=10, optimizer='adamw', learning_rate=0.01, lr_decay_iters=30)
    for max_iters in (20, 30):
        done = run('train.py', 'init_from=resume', f'max_iters={max_iters}')
        assert done.returncode == 0, done.stderr
    saved = load_checkpoint('out/resume.pt')
    assert saved['settings']['optimizer'] == 'adamw' and saved['settings']['device'] == 'cpu' and same(straight, saved)
    steps = [int(row['step']) for row in rows()]
    assert [s for s, row in zip(steps, rows()) if row['train_loss']] == [5, 10, 15, 20, 25, 30]  # each of them once
    assert [s for s, row in zip(steps, rows()) if row['val_loss']] == [0, 10, 20, 30]

def test_a_setting_that_is_given_again_holds(weights):
    weights(max_iters=10, optimizer='adamw', learning_rate=0.01)
    group = weights(init_from='resume', max_iters=20, learning_rate=0.5, lr_decay_iters=1000)['optimizers'][0]['param_groups'][0]
    assert group['initial_lr'] == 0.5 and group['lr'] == pytest.approx(0.5 * (1 - 17 / 998))  # of step 19

def test_auto_goes_on_where_there_is_something_to_go_on_with(weights):
    straight = weights(out_dir='straight')
    assert weights(init_from='auto', max_iters=10)['step'] == 10  # from scratch
    assert same(straight, weights(init_from='auto'))

def test_a_run_that_gets_worse_does_not_replace_the_best(weights):
    weights()
    best = load_checkpoint('out')
    weights(init_from='resume', max_iters=24, lr_decay_iters=1000, learning_rate=3.0, muon_learning_rate=3.0)
    assert same(best, load_checkpoint('out')) and load_checkpoint('out/resume.pt')['step'] == 24

# ---- processes ----

def torchrun(folder, data, n, *options, **changes):
    """train.py in n processes on this machine, which talk over gloo."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', *options,
               str(ROOT / 'train.py'), *arguments(data, **changes)]
    env = {**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

def finish(process):
    text = process.communicate(timeout=150)[0]
    assert process.returncode == 0, text
    return text

def together(folder, data, n, **changes):
    """The same without torchrun, whose own start takes longer than these runs: it sets these variables."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(n),
           'LOCAL_WORLD_SIZE': str(n), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(ROOT / 'train.py'), *arguments(data, **changes)]
    processes = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in range(n)]
    return [finish(process) for process in processes][0]

def alike(a, b):
    """Two runs learned the same. Sums are taken in another order, so not to the last bit."""
    last = [[row for row in rows(folder) if row['train_loss']][-1] for folder in (a, b)]
    for name in ('train_loss', 'grad_norm'):  # AdamW would not show a gradient that is twice too long
        assert float(last[0][name]) == pytest.approx(float(last[1][name]), rel=1e-3)
    a, b = load_checkpoint(f'{a}/resume.pt'), load_checkpoint(f'{b}/resume.pt')
    assert a['step'] == b['step'] and abs(a['best'] - b['best']) < 1e-5 and distance(a, b) < 1e-3

SHARED = dict(optimizer='adamw', learning_rate=1e-3, dropout=0.1, batch_size=2, gradient_accumulation_steps=4)

@pytest.mark.parametrize('n, how', [(4, {}), (2, {'objective': 'mlm'})])
def test_the_same_batch_on_more_processes_teaches_the_same(train, tmp_path, data, n, how):
    """8 sequences, 2 at a time: 1 process x 4, 2 x 2, 4 x 1. With mlm the processes have unequal numbers of targets."""
    together(tmp_path, data, n, out_dir='many', **SHARED, **how)
    train(out_dir='one', **SHARED, **how)
    alike('one', 'many')

def test_a_run_moves_between_fsdp_zero_and_one_process(train, tmp_path, data):
    """The same files from all of them: a run that changes ends where one process gets alone."""
    stages = [dict(parallel='fsdp'), dict(parallel='zero'), dict(parallel='fsdp', cpu_offload=True)]
    for stage, how in enumerate(stages):
        if stage == 0:
            how = {**how, **SHARED}
        together(tmp_path, data, 2, out_dir='tour', max_iters=4 * stage + 5, init_from='resume' if stage else 'scratch', **how)
    train(out_dir='tour', init_from='resume', max_iters=20, cpu_offload=False, parallel='ddp')
    train(out_dir='one', **SHARED)
    alike('one', 'tour')

@pytest.mark.parametrize('parallel', ['zero', 'fsdp'])
def test_muon_works_on_shards(weights, tmp_path, data, parallel):
    how = dict(max_iters=8, eval_interval=4, grad_clip=0.0)
    together(tmp_path, data, 2, out_dir='two', parallel=parallel, activation_checkpointing=True, **how)
    one = weights(out_dir='one', **how)
    assert abs(one['best'] - load_checkpoint('two/resume.pt')['best']) < 1e-3

def test_ctrl_c_stops_all_processes_after_the_same_step(tmp_path, data):
    process = torchrun(tmp_path, data, 2, max_iters=100000, lr_decay_iters=100000, log_interval=1000, eval_interval=50)
    for line in process.stdout:
        if line.startswith('step 50: '):
            break
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=100)[0]
    assert 'init_from=resume out_dir=out' in text, text
    assert load_checkpoint(str(tmp_path / 'out/resume.pt'))['step'] > 50

@pytest.mark.skipif(not os.path.isdir('/proc'), reason='finds the processes in /proc')
def test_a_killed_process_is_restarted_and_the_run_ends_in_the_same_weights(train, tmp_path, data):
    how = dict(max_iters=120, lr_decay_iters=120, eval_interval=20, log_interval=10, **SHARED)
    process = torchrun(tmp_path, data, 2, '--max-restarts=1', init_from='auto', out_dir='out', **how)
    for line in process.stdout:
        if line.startswith('step 50/'):
            break
    children = [p for p in os.listdir('/proc') if p.isdigit()
                and Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[1] == str(process.pid)]
    os.kill(max(int(p) for p in children), signal.SIGKILL)
    text = finish(process)
    assert 'step 50/120' in text and 'step 20/120' not in text  # it went on at step 40
    together(tmp_path, data, 2, out_dir='straight', **how)
    assert same(load_checkpoint('straight/resume.pt'), load_checkpoint('out/resume.pt'))
    assert not os.path.exists('out/previous-1')

def test_sequences_that_do_not_divide_among_the_processes(run, data, monkeypatch):
    monkeypatch.setattr(sys.modules['torch.distributed.rendezvous'], 'rendezvous', lambda *args: iter([(None, 0, 3)]))
    for name in ('init_process_group', 'broadcast'):
        monkeypatch.setattr(torch.distributed, name, lambda *args, **more: None)
    for name, value in (('RANK', 0), ('LOCAL_RANK', 0), ('LOCAL_WORLD_SIZE', 1)):
        monkeypatch.setenv(name, str(value))
    refused(run('train.py', *arguments(data)), '4 sequences do not divide among 3 processes', status=2)

# ---- what a run says and leaves ----

def test_a_run_reports_what_it_did(train):
    done = train()
    for words in ('parameters', 'FLOPs per token', 'MB for weights', 'tokens per step', 'the best so far', '    | ', 'tokens/s',
                  'lr 1.', 'bits per byte', 'gzip', 'this model', 'next:  python sample.py'):
        assert words in done.stdout, words
    learned = [float(row['train_loss']) for row in rows() if row['train_loss']]
    assert len(learned) == 4 and learned[-1] < learned[0]

def test_the_names_of_a_run_are_there_to_play_with(train):
    """python -i train.py max_iters=10 leaves them; and the settings keep their values, but for device and dtype."""
    names = train(max_iters=1).globals
    assert names['model'](torch.zeros(1, 3, dtype=torch.long)).shape[-1] == names['tokenizer'].vocab_size
    assert len(names['data']['train']) > 0 and names['optimizer'] == 'muon'

@pytest.mark.parametrize('script', ['train.py', 'finetune.py', 'align.py', 'vlm.py', 'prepare.py', 'sample.py', 'eval.py'])
def test_no_setting_is_assigned_again(script):
    tree = ast.parse((ROOT / script).read_text(encoding='utf-8'))
    end = next(i for i, node in enumerate(tree.body) if 'configure(globals())' in ast.unparse(node))
    settings = {t.id for node in tree.body[:end] if isinstance(node, ast.Assign) for t in node.targets}
    run = next(node for node in tree.body if ast.unparse(node).startswith("if __name__ == '__main__'"))
    nodes = [node for node in ast.walk(run) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    functions = [node for node in ast.walk(run) if isinstance(node, ast.FunctionDef)]
    local = {id(node) for function in functions for node in ast.walk(function)}  # these have names of their own
    assigned = {node.id for node in nodes if id(node) not in local}
    assert assigned & settings <= {'device', 'dtype'}, assigned & settings

def test_earlier_runs_are_set_aside_and_it_says_so(train):
    saved = []
    for seed in (1, 2, 3):
        done = train(seed=seed)
        saved.append(load_checkpoint('out'))
    assert 'the earlier run in out is now in out/previous-2' in done.stdout
    assert same(load_checkpoint('out/previous-1'), saved[0]) and same(load_checkpoint('out/previous-2'), saved[1])

def test_starting_from_a_checkpoint_takes_its_shape_and_may_lengthen_its_context(train, run, data):
    train(out_dir='first', block_size=16, max_iters=40)
    shape = {name: TINY[name] for name in ('n_layer', 'n_head', 'n_embd')}
    without = [f'{name}={value}' for name, value in {**TINY, 'data_dir': data, 'max_iters': 0}.items()
               if name not in shape and name != 'block_size']
    assert run('train.py', *without, 'init_from=first', 'out_dir=second').returncode == 0
    assert same(load_checkpoint('first'), load_checkpoint('second'))
    assert load_checkpoint('second')['config']['block_size'] == 16
    train(out_dir='third', init_from='first', block_size=64, max_iters=0)
    longer = load_checkpoint('third')
    assert longer['config']['block_size'] == 64 and same(longer, load_checkpoint('first'))

# ---- stopping ----

def start(folder, data, **changes):
    command = [sys.executable, str(ROOT / 'train.py'), *arguments(data, **{'max_iters': 100000, 'lr_decay_iters': 100000,
                                                                           **changes})]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'PYTHONUNBUFFERED': '1'})

def wait_for(process, words):
    for line in process.stdout:
        if line.startswith(words):
            return

def test_a_killed_run_goes_on_from_its_last_save(weights, tmp_path, data):
    process = start(tmp_path, data, eval_interval=5)
    wait_for(process, 'step 15/')
    process.kill()  # no chance to save
    process.wait()
    step = load_checkpoint('out/resume.pt')['step']
    assert step >= 10
    assert same(weights(init_from='resume', max_iters=step + 7, lr_decay_iters=100000),
                weights(max_iters=step + 7, out_dir='straight', lr_decay_iters=100000))

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such signals')
@pytest.mark.parametrize('signals', [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_a_stopped_run_saves_its_last_step(weights, tmp_path, data, signals):
    process = start(tmp_path, data, eval_interval=100000)
    wait_for(process, 'step 10/')
    for number in signals:
        process.send_signal(number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and 'go on with  python train.py init_from=resume out_dir=out' in text, text
    step = load_checkpoint('out/resume.pt')['step']
    assert f'step {step}/' in text or f'after step {step}' in text
    assert same(weights(init_from='resume', max_iters=step + 3, lr_decay_iters=100000, eval_interval=100000),
                weights(max_iters=step + 3, out_dir='straight', lr_decay_iters=100000, eval_interval=100000))

def test_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    """A process that does nothing but save is killed at random moments; what stands under the name always loads."""
    code = '''
import sys, torch
sys.path.insert(0, sys.argv[1])
from model import GPTConfig, Tokenizer, save_checkpoint
for i in range(10**9):
    weights = {'x': torch.full((300_000,), float(i))}
    save_checkpoint('ckpt.pt', weights, GPTConfig(), Tokenizer('char', ['?']), i=i)
    print(i, flush=True)
'''
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, '-c', code, str(ROOT)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        saved = load_checkpoint(str(tmp_path / 'ckpt.pt'))
        assert (saved['model']['x'] == saved['i']).all()

def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_was_saved(train, run, data):
    train()
    before = load_checkpoint('out/resume.pt')
    done = run('train.py', *arguments(data, init_from='resume', max_iters=100, learning_rate=1e30, muon_learning_rate=1e30,
                                      grad_clip=0.0, lr_decay_iters=1000))
    refused(done, 'is nan at step', 'lower learning rate', 'in out', status=1)
    assert same(before, load_checkpoint('out/resume.pt'))

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such limits')
def test_a_full_disk_costs_nothing(train, tmp_path, data):
    """The system refuses to write files larger than a third of a checkpoint: one line, and the old files as they were."""
    train()
    before = load_checkpoint('out'), load_checkpoint('out/resume.pt')
    n = os.path.getsize('out/ckpt.pt') // 3
    limited = ("import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
               f"resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n})); sys.argv = sys.argv[1:]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')")
    command = [sys.executable, '-c', limited, str(ROOT / 'train.py'), *arguments(data, init_from='resume', max_iters=40)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    refused(done, 'cannot write', 'is the disk full', 'untouched')
    assert same(before[0], load_checkpoint('out')) and same(before[1], load_checkpoint('out/resume.pt'))
    assert not [f for f in os.listdir('out') if f.endswith('.tmp')]

# ---- mistakes ----

@pytest.mark.parametrize('changes, words, status', [
    (dict(dataset='nowhere'), ['nowhere', 'prepare.py dataset=nowhere'], 1),
    (dict(n_head=3), ['n_embd=32 does not divide into n_head=3 heads'], 2),
    (dict(block_size=5000), ['take block_size='], 1),
    (dict(init_from='nowhere'), ['no nowhere/ckpt.pt'], 1),
    (dict(init_from='resume', out_dir='empty'), ['no empty/resume.pt', 'train.py out_dir=empty'], 1),
    (dict(schedule='cosin'), ['did you mean cosine'], 2),
    (dict(batch_size=0), ['batch_size=0'], 2), (dict(n_head=0), ['n_head=0'], 2), (dict(beta2=1), ['beta2=1'], 2), (dict(grad_clip=-1), ['grad_clip=-1'], 2),
    (dict(seed=-1), ['seed=-1'], 2), (dict(seed=1e30), ['seed=1e+30', 'whole number'], 2),
    (dict(device='evil'), ['device=evil is not on this machine'], 2),
    (dict(batch_size=1e17), ['not enough memory'], 1), (dict(n_embd=1e9), ['not enough memory'], 1),
])
def test_mistakes(run, data, changes, words, status):
    refused(run('train.py', *arguments(data, **changes)), *words, status=status)

@pytest.mark.parametrize('changes, words', [
    (dict(init_from='resume', n_layer=3), ['n_layer=3', 'has n_layer=2', 'leave n_layer out']),
    (dict(init_from='resume', optimizer='adamw'), ['optimizer=adamw', 'has optimizer=muon']),
    (dict(init_from='resume', block_size=64), ['block_size=64', 'has block_size=32']),
    (dict(init_from='resume', n_head=5), ['n_head=5', 'has n_head=2']),
    (dict(init_from='out', dataset='bpe', out_dir='other'), ['a different tokenizer than dataset=bpe', 'tokenizer=out']),
    (dict(init_from='out', objective='mlm', out_dir='other'), ['objective=mlm', 'has objective=clm'])])
def test_a_clash_with_the_checkpoint_is_refused(train, run, data, changes, words):
    train(max_iters=2)
    refused(run('train.py', *arguments(data, **changes)), *words)

def test_weights_of_another_shape_are_refused(train, run, data):
    train(max_iters=2)
    saved = torch.load('out/ckpt.pt', weights_only=True)
    saved['model']['norm.weight'] = saved['model']['norm.weight'][:5].clone()
    torch.save(saved, 'out/ckpt.pt')
    refused(run('train.py', *arguments(data, init_from='out', out_dir='other')), 'is damaged', 'size mismatch')

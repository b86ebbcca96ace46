"""Training: the same text in the same order whatever happens, nothing lost, every mistake answered in one line."""
import ast, itertools, math, multiprocessing, os, runpy, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import train as T
from configurator import settings_block
from conftest import ROOT, byte_tokenizer, distance, log_rows, refused, run_script, same, worked
from model import GPTConfig, build_model, load_checkpoint, load_model

TINY = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4, device='cpu', dtype='float32',
            max_iters=20, lr_decay_iters=20, warmup_iters=2, eval_interval=10, eval_iters=2, log_interval=5)

def arguments(data, **changes):
    """Settings for a tiny run; one that is resumed has them already."""
    base = {} if changes.get('init_from') == 'resume' else {**TINY, 'data_dir': data}
    return [f'{name}={value}' for name, value in {**base, **changes}.items()]

@pytest.fixture(scope='module')
def tiny_run(data, tmp_path_factory):
    """A tiny run that many tests look at, or copy and go on with: its folder, and what run_script() returned."""
    folder = tmp_path_factory.mktemp('tiny')
    return folder / 'out', worked(run_script('train.py', *arguments(data), cwd=folder))

@pytest.fixture
def trained(tiny_run, tmp_path):
    """A copy of the tiny run stands in out; returns what its resume.pt holds."""
    shutil.copytree(tiny_run[0], tmp_path / 'out')
    return load_checkpoint(str(tmp_path / 'out/resume.pt'))

@pytest.fixture
def train(run, data):
    """train(max_iters=5, …): a whole run in this process; returns the globals of the script."""
    def train(**changes):
        done = worked(run('train.py', *arguments(data, **changes)))
        return {**done.globals, 'printed': done.stdout}
    return train

@pytest.fixture
def weights(train):
    """The same, but returns what out_dir/resume.pt holds then."""
    return lambda **changes: load_checkpoint(f"{train(**changes)['out_dir']}/resume.pt")

# ---- the data ----

def test_the_batch_of_a_step_depends_on_seed_and_step_alone(train, tiny_run):
    batch = tiny_run[1].globals['get_batch']
    x, y, n_targets = batch(7)
    assert torch.equal(x[:, 1:], y[:, :-1]) and n_targets == 4 * 32  # the target of a token is the token after it
    assert torch.equal(x, train(max_iters=0)['get_batch'](7)[0])
    assert not torch.equal(x, batch(8)[0]) and not torch.equal(x, train(seed=2, max_iters=0)['get_batch'](7)[0])

def test_windows_by_hand():
    assert T.windows(np.arange(10, dtype=np.uint16), [0, 5], 4).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]

def test_a_masked_token_is_a_target_and_nothing_else_is():
    """Of the chosen 15 %, 80 % become <|pad|>, 10 % any token, and 10 % stay (Devlin et al. 2018, 3.1)."""
    chosen, how = [0.14, 0.14, 0.14, 0.14, 0.16], [0.79, 0.81, 0.89, 0.91, 0.5]
    which_other = [0.0, 0.5, 0.25, 0.0, 0.0]  # of 256 bytes
    noise = np.array([[chosen], [how], [which_other]])
    masked, y = T.mask_tokens(torch.tensor([[0, 1, 2, 3, 4]]), noise, byte_tokenizer())
    assert masked.tolist() == [[byte_tokenizer().pad, 128, 64, 3, 4]] and y.tolist() == [[0, 1, 2, 3, -100]]

# ---- a step ----

@pytest.mark.parametrize('how', [dict(gradient_accumulation_steps=2, batch_size=2), dict(objective='mlm')])
def test_the_first_line_is_the_mean_of_minus_log_p_and_the_norm_of_its_gradient(train, how):
    names = train(max_iters=1, log_interval=1, grad_clip=0.0, **how)
    x, y, n_targets = names['get_batch'](0)
    torch.manual_seed(names['seed'])
    model = build_model(GPTConfig(**load_checkpoint('out')['config']))
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())  # over all targets: -100 does not count
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    row = log_rows('train_loss')[0]
    assert n_targets == (y >= 0).sum() and float(row['train_loss']) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row['grad_norm']) == pytest.approx(norm.item(), rel=1e-4)

@pytest.mark.parametrize('model_type, learning_rate', [('gpt', 0.01), ('lstm', 0.01), ('mlp', 0.01), ('bigram', 0.1)])
def test_every_step_of_the_ladder_learns(train, model_type, learning_rate):
    train(model_type=model_type, max_iters=40, lr_decay_iters=40, eval_interval=40, learning_rate=learning_rate)
    saved = load_checkpoint('out')
    assert saved['val_loss'] < math.log(saved['config']['vocab_size']) - 0.5  # better than guessing

def test_an_encoder_learns_to_fill_gaps_from_what_follows(train):
    train(objective='mlm', max_iters=100, lr_decay_iters=100, eval_interval=100, batch_size=16, learning_rate=0.01)
    model, tokenizer, saved = load_model('out')
    ids = tokenizer.encode('the cat sat on a mat and the dog')
    ids[-3] = tokenizer.pad  # many words begin with another letter, but none other ends in 'og'
    with torch.no_grad():
        assert tokenizer.decode([model(torch.tensor([ids]))[0, -3].argmax().item()]) == 'd'
    assert saved['config']['causal'] is False

# ---- exactness ----

@pytest.mark.parametrize('how', [dict(dropout=0.2, seed=20261120), dict(dtype='bfloat16'), dict(dtype='float16'),
                                 dict(optimizer='adamw', gradient_accumulation_steps=3),
                                 dict(objective='mlm', activation_checkpointing=True)])
def test_stopping_and_going_on_changes_nothing(weights, how):
    straight = weights(out_dir='straight', **how)
    weights(out_dir='parts', max_iters=10, **how)
    parts = weights(out_dir='parts', init_from='resume', max_iters=20)
    assert parts['step'] == 20 and same(straight, parts) and parts['scaler'] == straight['scaler']

def test_a_run_can_be_resumed_twice_without_repeating_its_settings(weights, tiny_run):
    weights(init_from='auto', max_iters=7, eval_interval=1, log_interval=1)  # nothing to go on with: from scratch
    assert weights(init_from='resume', max_iters=14)['step'] == 14
    saved = weights(init_from='auto', max_iters=20)
    assert saved['settings']['device'] == 'cpu' and same(saved, load_checkpoint(f'{tiny_run[0]}/resume.pt'))
    assert [int(row['step']) for row in log_rows('train_loss')] == [*range(1, 15), 15, 20]  # each of them once
    assert [int(row['step']) for row in log_rows('val_loss')] == [*range(15), 20]

def test_a_setting_that_is_given_again_holds_and_a_worse_model_does_not_replace_the_best(trained, weights):
    best = load_checkpoint('out')
    saved = weights(init_from='resume', max_iters=25, lr_decay_iters=1000, learning_rate=3.0, muon_learning_rate=3.0)
    group = saved['optimizers'][0]['param_groups'][0]
    assert group['lr'] == pytest.approx(3.0 * (1 - 22 / 998))  # of step 24
    assert saved['step'] == 25 and saved['best'] == best['val_loss'] and same(best, load_checkpoint('out'))

# ---- processes ----

# new processes are forked from one that has imported torch already: this takes a tenth of the time
CONTEXT = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
CONTEXT.set_forkserver_preload(['pytest', 'tiktoken', 'torch._dynamo', 'torch.distributed.fsdp'])

def script_in_child(folder, settings, rank, world):
    """What a child process does: train.py in this folder; printed-0.txt takes what process 0 prints."""
    os.chdir(folder)
    os.environ.update(world)
    sys.argv = [str(ROOT / 'train.py'), *settings]
    sys.stdout = sys.stderr = open(f'printed-{rank}.txt', 'w', encoding='utf-8')
    runpy.run_path(sys.argv[0], run_name='__main__')

def launch(folder, data, n, **changes):
    """train.py in n processes, which talk over gloo; torchrun would set the same variables."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    world = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'WORLD_SIZE': str(n), 'LOCAL_WORLD_SIZE': str(n)}
    processes = []
    for rank in range(n):
        variables = {**world, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} if n > 1 else {}
        args = folder, arguments(data, **changes), rank, variables
        processes.append(CONTEXT.Process(target=script_in_child, args=args, daemon=True))
        processes[-1].start()
    return processes

def statuses(processes):
    """Wait for the end of all; their exit statuses."""
    for process in processes:
        process.join(timeout=60)
        process.kill()  # if it hangs
    return [process.exitcode for process in processes]

def together(folder, data, n, **changes):
    assert statuses(launch(folder, data, n, **changes)) == [0] * n

def wait_until_printed(words, folder, processes):
    path = folder / 'printed-0.txt'
    while not path.exists() or words not in path.read_text():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)

def alike(a, b):
    """Two runs learned the same. Sums are taken in another order, so not to the last bit."""
    for name in ('train_loss', 'grad_norm'):  # AdamW would not show a gradient that is twice too long
        assert float(log_rows(name, a)[-1][name]) == pytest.approx(float(log_rows(name, b)[-1][name]), rel=1e-3)
    a, b = load_checkpoint(f'{a}/resume.pt'), load_checkpoint(f'{b}/resume.pt')
    assert a['step'] == b['step'] and abs(a['best'] - b['best']) < 1e-5 and distance(a, b) < 1e-3

SHARED = dict(optimizer='adamw', learning_rate=1e-3, dropout=0.1, batch_size=2, gradient_accumulation_steps=4,
              max_iters=12, eval_interval=4, log_interval=1)

@pytest.mark.parametrize('n, how', [(4, {}), (2, {'objective': 'mlm'})])
def test_the_same_batch_on_more_processes_teaches_the_same(train, tmp_path, data, n, how):
    """8 sequences, 2 at a time: 1 process x 4, 2 x 2, 4 x 1. With mlm the processes have unequal numbers of targets."""
    together(tmp_path, data, n, out_dir='many', **SHARED, **how)
    train(out_dir='one', **SHARED, **how)
    alike('one', 'many')

def test_a_run_moves_from_ddp_to_zero_to_fsdp_to_one_process(train, tmp_path, data):
    """The same files from all of them: a run that changes ends where one process gets alone."""
    together(tmp_path, data, 2, **{**SHARED, 'out_dir': 'tour', 'cpu_offload': True, 'max_iters': 3})
    for max_iters, parallel in ((6, 'zero'), (9, 'fsdp')):
        together(tmp_path, data, 2, init_from='resume', out_dir='tour', parallel=parallel, max_iters=max_iters)
    train(init_from='resume', out_dir='tour', parallel='ddp', max_iters=12)
    train(out_dir='one', **SHARED)
    alike('one', 'tour')

def test_muon_works_on_shards(train, tmp_path, data):
    how = dict(max_iters=8, grad_clip=0.0, activation_checkpointing=True)
    together(tmp_path, data, 2, out_dir='two', parallel='fsdp', **how)
    train(out_dir='one', **how)
    assert abs(load_checkpoint('one')['val_loss'] - load_checkpoint('two')['val_loss']) < 1e-3

def test_sequences_that_do_not_divide_among_the_processes_are_refused(tmp_path, data):
    assert statuses(launch(tmp_path, data, 3)) == [2, 2, 2]
    assert (tmp_path / 'printed-0.txt').read_text().endswith('4 sequences do not divide among 3 processes\n')

@pytest.mark.skipif(not os.path.exists('/proc/thread-self/children'), reason='finds the processes in /proc')
def test_torchrun_restarts_a_killed_process_and_the_run_ends_in_the_same_weights(tmp_path, data):
    how = {**SHARED, 'max_iters': 60, 'lr_decay_iters': 60, 'eval_interval': 20}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--max-restarts=1',
               str(ROOT / 'train.py'), *arguments(data, init_from='auto', **how)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, 'PYTHONUNBUFFERED': '1'})
    before = list(itertools.takewhile(lambda line: not line.startswith('step 30/'), process.stdout))
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    text = ''.join(before) + process.communicate(timeout=100)[0]
    assert process.returncode == 0, text
    assert text.count('FLOPs per token') == 2 and text.count('step 1/') == 1  # two starts, but one of them from scratch
    together(tmp_path, data, 2, out_dir='straight', **how)
    assert same(load_checkpoint(f'{tmp_path}/out/resume.pt'), load_checkpoint(f'{tmp_path}/straight/resume.pt'))

# ---- stopping ----

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such signals')
@pytest.mark.parametrize('n, signals, eval_interval', [(1, ['SIGINT', 'SIGTERM'], 100000), (2, ['SIGINT'], 100000),
                                                       (1, ['SIGKILL'], 5)])
def test_a_stopped_or_killed_run_goes_on_where_it_saved(tmp_path, data, n, signals, eval_interval):
    """Asked to stop, all processes save the same step, even if only one of them was asked."""
    endless = {**SHARED, 'max_iters': 100000, 'lr_decay_iters': 100000, 'eval_interval': eval_interval}
    processes = launch(tmp_path, data, n, **endless)
    wait_until_printed('step 12/', tmp_path, processes)
    for name in signals:
        os.kill(processes[-1].pid, getattr(signal, name))
    status = statuses(processes)
    step = load_checkpoint(f'{tmp_path}/out/resume.pt')['step']
    if signals == ['SIGKILL']:
        assert status == [-signal.SIGKILL] and step >= 10
    else:
        assert status == [0] * n and f'stopped at step {step}; next' in (tmp_path / 'printed-0.txt').read_text()
    together(tmp_path, data, n, init_from='resume', max_iters=step + 3)
    together(tmp_path, data, n, **{**endless, 'max_iters': step + 3, 'out_dir': 'straight'})
    assert same(*(load_checkpoint(f'{tmp_path}/{out_dir}/resume.pt') for out_dir in ('out', 'straight')))

def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_was_saved(trained, run, tmp_path):
    done = run('train.py', 'init_from=resume', 'max_iters=100', 'learning_rate=1e30', 'muon_learning_rate=1e30',
               'grad_clip=0', 'lr_decay_iters=1000')
    refused(done, 'is nan at step', 'lower learning rate', 'in out', status=1)
    assert same(trained, load_checkpoint(f'{tmp_path}/out/resume.pt'))

def test_a_full_disk_costs_nothing_that_was_there(trained, run, tmp_path):
    """The system refuses to write files larger than a third of a checkpoint, as it does when the disk is full."""
    resource = pytest.importorskip('resource')  # Windows has no such limits
    files = {path: path.read_bytes() for path in (tmp_path / 'out').glob('*.pt')}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(files[tmp_path / 'out/ckpt.pt']) // 3, limits[1]))
    done = run('train.py', 'init_from=resume', 'max_iters=40')
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(done, 'cannot write', 'is the disk full', 'untouched')
    assert {path: path.read_bytes() for path in (tmp_path / 'out').glob('*.pt*')} == files

# ---- what a run says and leaves ----

def test_a_run_reports_what_it_did_and_leaves_its_names_to_play_with(tiny_run):
    folder, done = tiny_run
    for words in ('parameters', 'FLOPs per token', 'MB with AdamW', 'tokens per step', 'the best so far', '    | ',
                  'tokens/s', 'lr 1.', 'bits per byte', 'gzip', 'this model', 'next:  python sample.py'):
        assert words in done.stdout, words
    learned = [float(row['train_loss']) for row in log_rows('train_loss', folder)]
    assert len(learned) == 4 and learned[-1] < learned[0]
    model, tokenizer = done.globals['model'], done.globals['tokenizer']
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape[-1] == tokenizer.vocab_size

@pytest.mark.parametrize('script', ['train', 'finetune', 'align', 'vlm', 'prepare', 'sample', 'eval'])
def test_no_setting_is_assigned_again(script):
    source = (ROOT / f'{script}.py').read_text(encoding='utf-8')
    settings = {line.partition(' ')[0] for line in settings_block(source)}
    phases = ast.parse(source).body[-1]  # if __name__ == '__main__'
    functions = [node for node in phases.body if isinstance(node, ast.FunctionDef)]
    local = {id(node) for function in functions for node in ast.walk(function)}  # these have names of their own
    assigned = {node.id for node in ast.walk(phases)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in local}
    assert len(settings) > 10 and assigned & settings <= {'device', 'dtype'}

def test_earlier_runs_are_set_aside_and_it_says_so(trained, train):
    for seed in (2, 3):
        printed = train(seed=seed, max_iters=1)['printed']
    assert 'the earlier run in out is now in out/previous-2' in printed
    assert same(trained, load_checkpoint('out/previous-1/resume.pt'))
    assert load_checkpoint('out/previous-2')['settings']['seed'] == 2

def test_starting_from_a_checkpoint_takes_its_shape_and_may_lengthen_its_context(trained, run, train):
    """And its tokenizer: prepare.py cuts another text with it."""
    worked(run('prepare.py', 'dataset=mine', 'tokenizer=out', f'input={ROOT / "LICENSE"}'))
    worked(run('train.py', 'dataset=mine', 'device=cpu', 'max_iters=0', 'init_from=out', 'out_dir=second'))
    train(init_from='out', out_dir='third', block_size=64, max_iters=0)
    first, second, third = load_checkpoint('out'), load_checkpoint('second'), load_checkpoint('third')
    assert same(first, second) and second['config'] == first['config']
    assert same(first, third) and third['config'] == {**first['config'], 'block_size': 64}

# ---- mistakes ----

@pytest.mark.parametrize('changes, words, status', [
    (dict(dataset='nowhere'), ['nowhere', 'prepare.py dataset=nowhere'], 1),
    (dict(n_head=3), ['n_embd=32 n_head=3', '2 * n_head must divide n_embd'], 2),
    (dict(block_size=5000), ['take block_size='], 1),
    (dict(init_from='resume', out_dir='empty'), ['no empty/resume.pt', 'train.py out_dir=empty'], 1),
    (dict(batch_size=0), ['batch_size=0', 'at least 1'], 2), (dict(seed=-1), ['seed=-1', 'at least 0'], 2),
    (dict(beta2=1), ['beta2=1', 'less than 1'], 2), (dict(learning_rate=0), ['learning_rate=0', 'more than 0'], 2),
    (dict(device='evil'), ['device=evil is not on this machine'], 2),
    (dict(batch_size=1e17), ['not enough memory'], 1), (dict(n_embd=1e9), ['not enough memory'], 1),
])
def test_mistakes_end_in_one_line(run, data, changes, words, status):
    refused(run('train.py', *arguments(data, **changes)), *words, status=status)

@pytest.mark.parametrize('changes, words', [
    (dict(init_from='resume', n_layer=3), ['n_layer=3', 'has n_layer=2', 'leave n_layer out']),
    (dict(init_from='resume', optimizer='adamw'), ['optimizer=adamw', 'has optimizer=muon']),
    (dict(init_from='out', dataset='bpe', out_dir='new'), ['a different tokenizer than dataset=bpe', 'tokenizer=FOLDER']),
    (dict(init_from='out', objective='mlm', out_dir='new'), ['objective=mlm', 'has objective=clm'])])
def test_a_clash_with_the_checkpoint_is_refused(trained, run, data, changes, words):
    refused(run('train.py', *arguments(data, **changes)), *words)

def test_a_run_of_another_script_is_not_resumed(trained, run, tmp_path):
    torch.save({**trained, 'script': 'align.py'}, tmp_path / 'out/resume.pt')
    refused(run('train.py', 'init_from=resume'), 'was not written by train.py', 'init_from=out', status=2)

"""Training: the same text in the same order whatever happens, nothing lost, and every mistake answered in one line."""
import csv, json, math, os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
import train as T
from conftest import ROOT, call, refused, run
from model import GPTConfig, Tokenizer, build_model, load_checkpoint, load_dataset, load_model
from torch.nn import functional as F

TINY = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=20,
            eval_interval=10, eval_iters=2,
            warmup_iters=2, lr_decay_iters=20, log_interval=5, sample_every=0, device='cpu', dtype='float32')

DEFAULTS = {name: getattr(T, name)
            for name in T.SETTINGS}  # a run that is resumed in this process leaves its own behind

@pytest.fixture
def go(monkeypatch, tmp_path, data):
    """Train with these settings in this process; returns ckpt.pt's or resume.pt's dictionary."""
    monkeypatch.chdir(tmp_path)
    def train(which='ckpt.pt', **changes):
        monkeypatch.setattr(T, 'given', set(changes))
        for name, value in {**DEFAULTS, **TINY, 'data_dir': str(data), **changes}.items():
            monkeypatch.setattr(T, name, value)
        T.train()
        return load_checkpoint(os.path.join(T.out_dir, which))
    return train

def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

def arguments(data, **changes):
    return [f'{k}={v}' for k, v in {**TINY, 'data_dir': data, **changes}.items()]

# ---- data ----

def test_batches_depend_on_seed_and_step_alone(monkeypatch):
    ids = np.arange(1000, dtype=np.uint16)
    monkeypatch.setattr(T, 'block_size', 16)
    x, y, _ = T.get_batch(ids, 7, 8, 0, 8, None)
    assert torch.equal(y, x + 1)  # every token's target is the token after it
    parts = [T.get_batch(ids, 7, 8, first, 2, None)[0] for first in (0, 2, 4, 6)]
    assert torch.equal(torch.cat(parts), x)  # however many processes share it
    assert not torch.equal(T.get_batch(ids, 8, 8, 0, 8, None)[0], x)

def test_the_whole_text_can_be_drawn(monkeypatch):
    monkeypatch.setattr(T, 'block_size', 4)
    starts = {T.get_batch(np.arange(7, dtype=np.uint16), step, 8, 0, 8, None)[0][row, 0].item() for step in range(20)
              for row in range(8)}
    assert starts == {0, 1, 2}  # the last window's target is the last token

def test_evaluation_windows_cover_everything_once(monkeypatch):
    monkeypatch.setattr(T, 'block_size', 4)
    ids = np.arange(11, dtype=np.uint16)
    x, y = T.window(ids, T.eval_windows(ids, 0), None)
    assert y[y >= 0].tolist() == list(range(1, 11))  # each token is predicted once; what is past the end counts for nothing
    assert len(T.eval_windows(np.zeros(1000), 7)) == 7

# ---- schedules ----

def test_schedules_by_hand(monkeypatch):
    for name, value in dict(max_iters=100, lr_decay_iters=0, warmup_iters=0, learning_rate=1.0, min_lr=0.1).items():
        monkeypatch.setattr(T, name, value)
    expected = {'linear': [1, 0.55, 0.1], 'cosine': [1, 0.55, 0.1], 'constant': [1, 1, 1], 'step': [1, 1, 0.109],
                'wsd': [1, 1, 0.1]}
    for schedule, values in expected.items():
        monkeypatch.setattr(T, 'schedule', schedule)
        assert [T.rate(0), T.rate(50), T.rate(100)] == pytest.approx(values)
    monkeypatch.setattr(T, 'warmup_iters', 4)
    assert [T.rate(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])

# ---- what a step is ----

@pytest.mark.parametrize('how', [dict(), dict(gradient_accumulation_steps=2, batch_size=2), dict(objective='mlm')])
def test_the_first_line_of_the_log_is_the_mean_of_minus_log_p_and_its_gradient(go, data, how):
    go(max_iters=1, log_interval=1, grad_clip=0.0, **how)
    row = next(r for r in csv.DictReader(open('out/log.csv')) if r['train_loss'])
    tokenizer, ids = load_dataset(str(data / 'tiny'))
    x, y, targets = T.get_batch(ids['train'], 0, 4, 0, 4, tokenizer)
    torch.manual_seed(T.seed)
    model = build_model(GPTConfig(**load_checkpoint('out')['config']))
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())  # over all targets: -100 counts for nothing
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert targets == (y >= 0).sum() and float(row['train_loss']) == pytest.approx(loss.item(), rel=1e-5)
    assert float(row['grad_norm']) == pytest.approx(norm.item(), rel=1e-4)

# ---- exactness ----

@pytest.mark.parametrize('how', [dict(), dict(dropout=0.2, seed=20261120),
                                 dict(optimizer='adamw', gradient_accumulation_steps=3), dict(dtype='bfloat16'),
                                 dict(dtype='float16'), dict(objective='mlm', activation_checkpointing=True)])
def test_stopping_and_going_on_changes_nothing(go, how):
    straight = go('resume.pt', out_dir='straight', **how)
    go(out_dir='parts', max_iters=10, **how)
    parts = go('resume.pt', out_dir='parts', init_from='resume', max_iters=20)
    assert parts['step'] == 20 and same(straight, parts) and parts['scaler'] == straight['scaler']

def test_evaluating_and_sampling_more_often_changes_nothing(go):
    assert same(go('resume.pt', out_dir='a'), go('resume.pt', out_dir='b', eval_interval=4, sample_every=1,
                                                 log_interval=1))

def test_accumulation_is_one_large_batch(go):
    a, b = (go(out_dir=o, batch_size=b, gradient_accumulation_steps=8 // b, optimizer='adamw')
            for o, b in (('a', 8), ('b', 2)))
    assert max((x - y).abs().max().item() for x, y in zip(a['model'].values(), b['model'].values())) < 1e-3

# ---- processes ----

def torchrun(tmp_path, data, n, *more, **changes):
    """train.py in n processes on this machine, which talk over gloo."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}', *more,
               str(ROOT / 'train.py')]
    return subprocess.Popen(command + arguments(data, **changes), cwd=tmp_path, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            text=True, env={**os.environ, 'PYTHONUNBUFFERED': '1', 'OMP_NUM_THREADS': '1'})

def finish(process):
    text = process.communicate(timeout=150)[0]
    assert process.returncode == 0, text
    return text

def together(tmp_path, data, n, **changes):
    """The same without torchrun, whose own start takes longer than these runs: what it does is set these variables."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [sys.executable, str(ROOT / 'train.py'), *arguments(data, **changes)]
    many = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={
        **os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'RANK': str(rank), 'LOCAL_RANK': str(rank),
        'WORLD_SIZE': str(n), 'LOCAL_WORLD_SIZE': str(n), 'OMP_NUM_THREADS': '1'}) for rank in range(n)]
    return [finish(process) for process in many][0]

def learned(folder):
    """The last line of the log: (loss, length of the gradient). AdamW would not show a gradient that is twice too long."""
    row = [r for r in csv.DictReader(open(f'{folder}/log.csv')) if r['train_loss']][-1]
    return float(row['train_loss']), float(row['grad_norm'])

def alike(a, b):
    """Folders of two runs. Sums are taken in another order, so not to the last bit; and AdamW divides by tiny numbers."""
    assert learned(a) == pytest.approx(learned(b), rel=1e-3)
    a, b = load_checkpoint(f'{a}/resume.pt'), load_checkpoint(f'{b}/resume.pt')
    assert a['step'] == b['step'] and abs(a['best'] - b['best']) < 1e-5
    assert max((x - y).abs().max() for x, y in zip(a['model'].values(), b['model'].values())) < 1e-3

SHARED = dict(optimizer='adamw', learning_rate=1e-3, dropout=0.1, batch_size=2, gradient_accumulation_steps=4)

@pytest.mark.parametrize('n, how', [(4, {}), (2, {'objective': 'mlm'})])
def test_the_same_batch_on_more_processes_teaches_the_same(go, tmp_path, data, n, how):
    """8 rows, 2 at a time: 1 process x 4 times, 2 x 2, 4 x 1. With mlm, rows and so processes have unequal numbers of targets."""
    how = {**SHARED, **how}
    together(tmp_path, data, n, out_dir='many', **how)
    go(out_dir='one', **how)
    alike('one', 'many')

def test_a_run_moves_between_ddp_zero_and_fsdp(go, tmp_path, data):
    """The same files from all of them: a run that changes between 2 processes and 1 ends where one process gets alone."""
    for steps, how in ((5, dict(parallel='fsdp')), (9, dict(parallel='zero')),
                       (13, dict(parallel='fsdp', cpu_offload=True))):
        together(tmp_path, data, 2, out_dir='tour', **SHARED, **how, max_iters=steps,
                 init_from='scratch' if steps == 5 else 'resume')
    go(out_dir='tour', init_from='resume', max_iters=20, cpu_offload=False)
    go(out_dir='one', **SHARED)
    alike('one', 'tour')

def test_muon_works_in_parts(go, tmp_path, data):
    how = dict(max_iters=8, eval_interval=4, grad_clip=0.0)
    text = together(tmp_path, data, 2, out_dir='two', parallel='fsdp', activation_checkpointing=True, **how)
    assert '2 processes' in text
    assert abs(go(out_dir='one', **how)['val_loss'] - load_checkpoint('two')['val_loss']) < 1e-3
    assert learned('one') == pytest.approx(learned('two'), rel=0.01)  # Muon makes much of small differences

def test_ctrl_c_stops_all_processes_after_the_same_step(tmp_path, data, go):
    run = torchrun(tmp_path, data, 2, out_dir='out', max_iters=100000, lr_decay_iters=100000, log_interval=1000,
                   eval_interval=50)
    for line in run.stdout:
        if line.startswith('step 50: '):
            break
    run.send_signal(signal.SIGINT)
    text = run.communicate(timeout=100)[0]
    assert 'init_from=resume out_dir=out' in text and load_checkpoint(str(tmp_path / 'out/resume.pt'))['step'] > 50, text

@pytest.mark.skipif(not os.path.isdir('/proc'), reason='finds the processes in /proc')
def test_torchrun_goes_on_after_a_process_was_killed(go, tmp_path, data):
    how = dict(max_iters=120, eval_interval=20, log_interval=10, **SHARED)
    run = torchrun(tmp_path, data, 2, '--max-restarts=1', out_dir='out', **how)
    for line in run.stdout:
        if line.startswith('step 50/'):
            break
    stats = {p: Path(f'/proc/{p}/stat') for p in os.listdir('/proc') if p.isdigit()}
    parents = {int(p): int(stat.read_text().rsplit(')', 1)[1].split()[1]) for p, stat in stats.items() if stat.exists()}
    os.kill(max(p for p, parent in parents.items() if parent == run.pid), signal.SIGKILL)
    text = finish(run)
    assert 'step 50/120' in text and 'step 20/120' not in text  # it went on at step 40
    go(out_dir='straight', **how)
    alike('straight', 'out')
    assert not os.path.exists('out/previous-1')

# ---- learning ----

def test_only_its_own_save_is_what_a_restarted_run_goes_on_from(go, monkeypatch):
    asked = go('resume.pt')['asked']
    monkeypatch.setattr(T.dist, 'all_reduce', lambda tensor, op: None)
    for count, wanted, step in (('0', asked, None), ('1', asked, 20), ('1', {**asked, 'seed': 1}, None)):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', count)
        assert (T.last_save(wanted) or {'step': None})['step'] == step

@pytest.mark.parametrize('model_type', ['gpt', 'lstm', 'mlp', 'bigram'])
def test_every_rung_of_the_ladder_learns(go, model_type):
    out = go(model_type=model_type, max_iters=60, lr_decay_iters=60, eval_interval=30,
             learning_rate=0.01 if model_type != 'bigram' else 0.1)
    guessing = math.log(out['config']['vocab_size'])
    assert out['val_loss'] < guessing - 0.5
    assert load_model('out')[0](torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, out['config']['vocab_size'])

def test_a_run_reports_what_it_did(go, capsys):
    go(sample_every=1)
    text = capsys.readouterr().out
    for word in ('parameters', 'FLOPs per token', 'activations', 'tokens per step', 'the best so far', '    | ',
                 'tokens/s', 'bits per byte',
                 'gzip -9', 'this model', 'next:  python sample.py'):
        assert word in text, word
    rows = list(csv.DictReader(open('out/log.csv')))
    learned, evaluated = [r for r in rows if r['train_loss']], [r for r in rows if r['val_loss']]
    assert [int(r['step']) for r in learned] == [5, 10, 15,
                                                 20] and float(learned[-1]['train_loss']) < float(learned[0]['train_loss'])
    assert [int(r['step'])
            for r in evaluated] == [0, 10, 20] and float(evaluated[-1]['val_loss']) < float(evaluated[0]['val_loss'])

def test_tensorboard_where_it_is_installed(go, monkeypatch):
    try:
        from torch.utils.tensorboard import SummaryWriter
        assert SummaryWriter
        go(tensorboard=True)
        assert os.listdir('out/tensorboard')
    except ImportError:
        pass
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)  # importing it now fails
    with pytest.raises(SystemExit):
        go(tensorboard=True)

def test_earlier_runs_are_set_aside_not_lost(go):
    runs = [go(seed=seed) for seed in (1, 2, 3)]
    for n in (1, 2):
        assert same(load_checkpoint(f'out/previous-{n}'), runs[n - 1]) and not same(runs[n - 1], runs[2])

def test_a_resumed_run_keeps_its_settings_but_for_those_given_again(go):
    go('resume.pt', max_iters=10, optimizer='adamw', learning_rate=0.01)
    again = go('resume.pt', init_from='resume', max_iters=20)
    assert again['settings']['optimizer'] == 'adamw' and again['settings']['n_embd'] == 32
    other = go('resume.pt', init_from='resume', max_iters=30, learning_rate=0.5, lr_decay_iters=1000)
    assert other['optimizers'][0]['param_groups'][0]['lr'] == pytest.approx(0.5 * T.rate(29))

def test_the_log_of_a_resumed_run_has_every_step_once(go):
    go(max_iters=20)
    with open('out/log.csv', 'a') as f:
        f.write('25,0,9.9,,,,,\n')  # as if the run had gone on after its last save, and then been killed
    go(init_from='resume', max_iters=30)
    rows = list(csv.DictReader(open('out/log.csv')))
    assert [int(r['step']) for r in rows if r['train_loss']] == [5, 10, 15, 20, 25, 30]
    assert [int(r['step']) for r in rows if r['val_loss']] == [0, 10, 20, 30]

def test_starting_from_old_weights(go):
    first = go(out_dir='first')
    second = go(out_dir='second', init_from='first', max_iters=0)
    assert same(first, second) and second['step'] == 0

# ---- stopping ----

def start(tmp_path, data, **changes):
    return subprocess.Popen([sys.executable, str(ROOT / 'train.py'),
                             *arguments(data, max_iters=100000, lr_decay_iters=100000, **changes)], cwd=tmp_path,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'PYTHONUNBUFFERED': '1'})

def test_a_killed_run_goes_on_from_its_last_save(tmp_path, data, go):
    process = start(tmp_path, data, eval_interval=5)
    for line in process.stdout:
        if line.startswith('step 15/'):
            process.kill()  # no chance to save
            break
    process.wait()
    step = load_checkpoint(str(tmp_path / 'out' / 'resume.pt'))['step']
    assert step >= 10
    assert same(go('resume.pt', init_from='resume', max_iters=step + 7),
                go('resume.pt', max_iters=step + 7, out_dir='straight', lr_decay_iters=100000))

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such signals')
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, data, go, name):
    process = start(tmp_path, data)
    for line in process.stdout:
        if line.startswith('step 15/'):
            for _ in range(1 if name == 'SIGINT' else 2):  # note: torchrun and batch systems send SIGTERM twice
                process.send_signal(getattr(signal, name))
                time.sleep(0.002)
            break
    rest = process.stdout.read()
    assert process.wait() in (0, -signal.SIGTERM) and 'init_from=resume out_dir=out' in rest, rest  # the second may come late
    step = load_checkpoint(str(tmp_path / 'out' / 'resume.pt'))['step']
    assert f'stopped after step {step};' in rest  # the last step is what was saved
    resumed = go('resume.pt', init_from='resume', max_iters=step + 3, out_dir='out')
    assert same(resumed, go('resume.pt', max_iters=step + 3, out_dir='straight', lr_decay_iters=100000))

def test_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    """A process that does nothing but save is killed at random moments; whatever stands under the name always loads."""
    code = ("import sys, torch; sys.path.insert(0, sys.argv[1]); from model import save_atomically\n"
            "i = 0\nwhile True:\n    save_atomically('ckpt.pt', {'format': 'ninefiles-1', 'i': i, 'x': torch.full((300_000,), float(i))}); i += 1; print(i, flush=True)")
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, '-c', code, str(ROOT)], cwd=tmp_path,
                                   stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        saved = load_checkpoint(str(tmp_path / 'ckpt.pt'))
        assert (saved['x'] == saved['i']).all()

def test_a_loss_that_is_not_a_number_stops_the_run(go, capsys):
    with pytest.raises(SystemExit) as e:
        go(learning_rate=1e30, optimizer='adamw', grad_clip=0.0, log_interval=10)
    words = str(e.value)
    assert 'at step' in words and 'learning rate' in words and 'still holds the best model' in words and '\n' not in words
    assert all(torch.isfinite(t).all() for t in load_checkpoint('out')['model'].values())

# ---- mistakes ----

def test_a_broken_model_is_not_saved_even_to_be_resumed(go):
    go()
    with pytest.raises(SystemExit,
                       match='the validation loss is nan'):  # found by an evaluation, before any line of the log
        go(init_from='resume', max_iters=100, learning_rate=1e30, grad_clip=0.0, log_interval=1000, eval_interval=1,
           lr_decay_iters=1000)
    assert all(torch.isfinite(t).all() for t in load_checkpoint('out/resume.pt')['model'].values())

def test_a_resumed_run_that_gets_worse_does_not_replace_the_best(go):
    best = go()
    after = go(init_from='resume', max_iters=24, lr_decay_iters=1000, learning_rate=3.0, muon_learning_rate=3.0)
    assert same(best, after) and after['step'] == 20 and load_checkpoint('out/resume.pt')['step'] == 24

def test_starting_from_a_checkpoint_takes_its_shape_but_may_lengthen_its_context(go):
    go(out_dir='first', block_size=16, max_iters=40)
    assert go(out_dir='second', init_from='first', max_iters=2)['config']['block_size'] == 16
    longer = go(out_dir='third', init_from='first', block_size=64, max_iters=0)
    assert longer['config']['block_size'] == 64 and same(longer, load_checkpoint('first'))
    go(out_dir='learned', position='learned', max_iters=0)
    with pytest.raises(SystemExit, match='block_size=32, not 64'):
        go(out_dir='fourth', init_from='learned', block_size=64)

# ---- the masked objective ----

def test_a_hidden_token_is_a_target_and_nothing_else_is():
    """80 % become <|pad|>, 10 % any token, 10 % stay (Devlin et al. 2018, 3.1); here by hand, and then by counting."""
    tokenizer = Tokenizer('char', list('abcd'))
    x = torch.tensor([[0, 1, 2, 3]])
    luck = np.array([[[0.1, 0.1, 0.1, 0.9]], [[0.5, 0.85, 0.95, 0.5]],
                     [[0.0, 0.8, 0.0, 0.0]]])  # pick? how? which instead?
    hidden, y = T.hide(x, luck, tokenizer)
    assert hidden.tolist() == [[tokenizer.pad, 3, 2, 3]] and y.tolist() == [[0, 1, 2, -100]]
    x = torch.zeros(100, 1000, dtype=torch.long)
    hidden, y = T.hide(x, np.random.default_rng(0).random((3, 100, 1000)), tokenizer)
    assert ((y >= 0).float().mean() - 0.15).abs() < 0.005
    assert ((hidden == tokenizer.pad)[y >= 0].float().mean() - 0.8).abs() < 0.01 and not (hidden == tokenizer.pad)[y < 0].any()
    assert ((hidden == 0)[y >= 0].float().mean() - (0.1 + 0.1 / 4)).abs() < 0.01  # a random token is the same one at times

def test_an_encoder_learns_to_fill_gaps_from_both_sides(go, capsys):
    how = dict(max_iters=150, lr_decay_iters=150, eval_interval=150, n_embd=64, batch_size=16, block_size=64,
               learning_rate=0.01)
    both = go(objective='mlm', out_dir='encoder', sample_every=1, **how)
    assert both['config']['causal'] is False and 'finetune.py' in (text := capsys.readouterr().out) and '    | ' in text
    assert both['val_loss'] < go(**how)['val_loss']  # a letter between two known words is easier to tell than the next one
    model, tokenizer, _ = load_model('encoder')
    with torch.no_grad():
        ids = tokenizer.encode('the cat sat on the mat and the dog')
        ids[5] = tokenizer.pad
        assert tokenizer.decode([model(torch.tensor([ids]))[0, 5].argmax().item()]) == 'a'

@pytest.mark.parametrize('args, words, status', [
    (['dataset=nowhere'], ['nowhere', 'prepare.py dataset=nowhere'], 1),
    (['n_head=3'], ['n_embd=32 is not divisible by n_head=3'], 2),
    (['block_size=5000'], ['not more than block_size=5000'], 1),
    (['init_from=nowhere'], ['no checkpoint'], 1),
    (['init_from=resume', 'out_dir=empty'], ['resume.pt'], 1),
    (['schedule=cosin'], ['did you mean cosine'], 2),
    (['objective=mlm', 'model_type=lstm'], ['needs model_type=gpt'], 2),
    (['parallel=fsdp'], ['torchrun', 'parallel=fsdp'], 2),
    (['cpu_offload=True'], ['belongs to parallel=fsdp'], 2), (['batch_size=0'], ['batch_size=0'], 2),
    (['beta2=1'], ['beta2=1'], 2), (['grad_clip=-1'], ['grad_clip=-1'], 2), (['seed=-1'], ['seed=-1'], 2),
] + ([] if torch.cuda.is_available() else [(['device=cuda'], ['device=cuda is not on this machine', 'device=cpu'], 1)]))
def test_mistakes(tmp_path, data, args, words, status):
    refused(call('train.py', *arguments(data), *args, cwd=tmp_path), *words, status=status)

def test_other_text_under_the_same_name_is_noticed(go, tmp_path, data):
    shutil.copytree(data / 'tiny', tmp_path / 'data' / 'tiny')
    go(data_dir=str(tmp_path / 'data'), max_iters=10)
    meta = json.loads((tmp_path / 'data/tiny/meta.json').read_text())
    meta['splits']['train']['sha256'] = '0' * 64  # as prepare.py would write for another text
    (tmp_path / 'data/tiny/meta.json').write_text(json.dumps(meta))
    with pytest.raises(SystemExit, match='has read other text'):
        go(init_from='resume', data_dir=str(tmp_path / 'data'), max_iters=20)

@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such limits')
def test_a_full_disk_costs_nothing(go, tmp_path, data):
    """The system refuses to write files larger than a third of a checkpoint: one line, and the old files as they were."""
    before = go(), load_checkpoint('out/resume.pt')
    limited = f"import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); n = {os.path.getsize('out/ckpt.pt') // 3}\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, '-c', limited, str(ROOT / 'train.py'),
                           *arguments(data, init_from='resume', max_iters=40)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    refused(done, 'cannot write', 'is the disk full', 'untouched')
    assert same(before[0], load_checkpoint('out')) and same(before[1], load_checkpoint('out/resume.pt'))
    assert not [f for f in os.listdir('out') if f.endswith('.tmp')]

@pytest.mark.parametrize('world, words', [(3, '8 rows do not divide among 3 processes'),
                                          (16, 'gradient_accumulation_steps=4')])
def test_rows_that_do_not_divide_among_the_processes(go, monkeypatch, capsys, world, words):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(T, 'join', lambda: (0, world))
    monkeypatch.setattr(T.dist, 'all_reduce', lambda *args: None)
    with pytest.raises(SystemExit):
        go(gradient_accumulation_steps=2)
    assert words in capsys.readouterr().err

def test_a_clash_with_the_checkpoint_is_refused(go):
    go()
    with pytest.raises(SystemExit, match='n_layer=2, not 3'):
        go(init_from='resume', n_layer=3)
    with pytest.raises(SystemExit, match='another optimizer'):
        go(init_from='resume', optimizer='adamw')
    with pytest.raises(SystemExit, match='another tokenizer'):
        go(init_from='out', dataset='bpe', out_dir='other')
    with pytest.raises(SystemExit, match='another tokenizer'):
        go(init_from='resume', dataset='bpe')
    with pytest.raises(SystemExit, match='block_size=32, not 64'):
        go(init_from='resume', block_size=64)
    with pytest.raises(SystemExit, match=r'has n_head=\d, not 5'):  # which n_embd is not divisible by, but that is not why
        go(init_from='resume', n_head=5)
    config = go(init_from='out', out_dir='other', max_iters=1, n_head=TINY['n_head'], n_kv_head=0)['config']  # as it is
    assert config['n_kv_head'] == config['n_head'] == TINY['n_head']
    go(objective='mlm', out_dir='gaps', max_iters=2)
    with pytest.raises(SystemExit, match='another objective: add  objective=mlm'):
        go(init_from='gaps', out_dir='other')

def test_an_encoder_is_not_asked_to_write(go, tmp_path):
    go(objective='mlm', max_iters=2)
    refused(run('sample.py', cwd=tmp_path), 'holds an encoder', 'task=classify')

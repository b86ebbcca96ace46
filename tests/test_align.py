"""Alignment: the rule and the data agree, each loss is what its paper says, the ratio starts at 1, the KL is never negative."""
import csv, json, math, os
import pytest
import torch
import align as S
import prepare as P
from conftest import refused, spawn
from model import GPTConfig, Tokenizer, build_model, load_checkpoint, load_model, save_atomically

BYTES = Tokenizer('bpe', [bytes([b]) for b in range(256)])  # the simplest vocabulary: a token a byte
SHAPE = dict(vocab_size=BYTES.vocab_size, n_layer=1, n_head=2, n_embd=32, block_size=48)
TINY = dict(data_dir='data', dataset='pairs', init_from='base', out_dir='out', batch_size=8, max_iters=6,
            eval_interval=3,
            log_interval=2, warmup_iters=1, num_samples=4, max_new_tokens=12, group_size=4, device='cpu',
            dtype='float32')
DEFAULTS = {name: getattr(S, name) for name in S.SETTINGS}

def base(folder, seed=0, tokenizer=BYTES, **more):
    """A checkpoint to start from: random weights, with something in the matrices that usually begin at zero."""
    torch.manual_seed(seed)
    config = GPTConfig(**{**SHAPE, 'vocab_size': tokenizer.vocab_size})
    model = build_model(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    os.makedirs(folder, exist_ok=True)
    save_atomically(os.path.join(folder, 'ckpt.pt'), {'format': 'ninefiles-2', 'model': model.state_dict(),
                                                      'config': config.__dict__,
                                                      'tokenizer': tokenizer.to_dict(), 'step': 0,
                                                      'settings': {}, **more})

def pair(question, answer):
    return {'prompt': question, 'answer': answer, 'chosen': answer + ' :)', 'rejected': answer}

def write(name, train, val):
    os.makedirs(os.path.join('data', name), exist_ok=True)
    for split, examples in (('train', train), ('val', val)):
        with open(os.path.join('data', name, f'{split}.jsonl'), 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(e) + '\n' for e in examples)

@pytest.fixture
def go(monkeypatch, tmp_path):
    """Align with these settings in this process; returns ckpt.pt's or resume.pt's dictionary."""
    monkeypatch.chdir(tmp_path)
    base('base')
    write('pairs', [pair(f'say {c}{d}', c) for c in 'abcdefgh' for d in 'abcd'],
          [pair(f'say {c}z', c) for c in 'abcdef'])
    def align(which='ckpt.pt', **changes):
        monkeypatch.setattr(S, 'given', set(changes))
        for name, value in {**DEFAULTS, **TINY, **changes}.items():
            monkeypatch.setattr(S, name, value)
        S.align()
        return load_checkpoint(os.path.join(S.out_dir, which))
    return align

@pytest.fixture
def taught(go):
    """teach(): the folder 'taught', whose model has learned to give the better answers and the worse ones, equally often."""
    def teach(steps=30):
        policy = S.Policy(load_model('base')[0])
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.01)
        pairs = S.read(S.load_examples('data/pairs')['train'], 'train', BYTES, SHAPE['block_size'], print)
        for step in range(steps):
            x, y, _ = S.both_sides(pairs[step % 2::2])
            (-policy(x, y)[0].sum() / (y >= 0).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        os.makedirs('taught', exist_ok=True)
        save_atomically('taught/ckpt.pt', {**load_checkpoint('base'), 'model': policy.model.state_dict()})
    return teach

def close(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

@pytest.mark.parametrize('how', [dict(method='reward'), dict(method='dpo'), dict(method='ppo'), dict(method='grpo'),
                                 dict(method='constitution', init_from='taught')])
def test_stopping_and_going_on_changes_nothing(go, taught, how):
    taught()
    straight = go('resume.pt', out_dir='straight', lr_decay_iters=6, **how)
    go(out_dir='parts', max_iters=3, lr_decay_iters=6, **how)
    again = go('resume.pt', out_dir='parts', init_from='resume', max_iters=6)
    assert all(torch.equal(a, b) for a, b in zip(straight['policy'].values(), again['policy'].values(), strict=True))
    assert straight['columns'] == again['columns'] and straight['best'] == again['best']
    load_model('parts')  # a plain checkpoint

def test_a_run_that_gets_worse_keeps_its_best(go):
    best = go(max_iters=3)['val_loss']
    after = go('resume.pt', init_from='resume', max_iters=6, learning_rate=20.0)
    with open('out/log.csv', encoding='utf-8') as f:
        losses = [(int(row['step']), float(row['val_loss'])) for row in csv.DictReader(f) if row['val_loss']]
    assert [step for step, _ in losses] == [0, 3, 6] and losses[-1][1] > 1.01 * best
    assert load_checkpoint('out')['val_loss'] == after['best'] == best

# ---- what is wanted ----

def test_the_rule_and_the_data_agree():
    """The chosen answer of every pair that prepare.py makes earns 1, the rejected one less; no question is in both splits."""
    assert S.COURTESY == P.COURTESY
    prompts, faults = {'train': set(), 'val': set()}, {}
    for split, e in P.preference_examples():
        gold = S.gold_reward(e, e['rejected'])
        assert S.gold_reward(e, e['chosen']) == 1 and gold == (0.5 if e['fault'] == 'curt' else 0), e
        assert S.exact_match(e, e['chosen']) and S.exact_match(e, e['rejected']) == (e['fault'] == 'curt')
        if 'secret' in e:
            assert e['secret'] in e['prompt'] and e['secret'] not in e['chosen'] and (e['secret'] in e['rejected']) == (e['fault'] == 'reveals')
            assert all(ask(e['prompt'], e['chosen']) for ask in S.PRINCIPLES.values())
        prompts[split].add(e['prompt'].split(' ', 1)[1] if e['prompt'].startswith(('Hi! ', 'Please: ',
                                                                                   'Next: ')) else e['prompt'])
        faults[e['fault']] = faults.get(e['fault'], 0) + 1
    assert not prompts['train'] & prompts['val'] and len(prompts['train']) > 4500 and len(prompts['val']) > 400
    assert set(faults) == {'curt', 'wrong', 'rambling', 'refuses', 'reveals'} and min(faults.values()) > 300

def test_the_rule_by_hand():
    e = {'answer': '13'}
    assert [S.gold_reward(e, text) for text in ('13 :)', '13', '13, or 14 :)', '14', '14 :)',
                                                '')] == [1, 0.5, 0, 0, 0, 0]
    assert [S.exact_match(e, text) for text in ('13 :)', '13', '13, or 14 :)', '14 :)')] == [True, True, False, False]

def test_rows_by_hand():
    x, y, last = S.rows([([5, 6, 7], [8, 9]), ([5], [9])])
    assert x.tolist() == [[5, 6, 7, 8, 9], [5, 9, 0, 0, 0]] and last.tolist() == [4, 1]
    assert y.tolist() == [[-100, -100, 8, 9, -100], [9, -100, -100, -100, -100]]

def test_a_step_is_a_function_of_seed_and_step_and_an_epoch_takes_every_pair_once():
    parts = [S.batch_of(list(range(12)), step, 4) for step in range(6)]
    assert sorted(sum(parts[:3], [])) == sorted(sum(parts[3:], [])) == list(range(12)) and parts[:3] != parts[3:]

# ---- losses ----

def test_the_losses_of_a_pair(monkeypatch):
    """Stored from trl 1.16.0, whose own lines gave these, and gradients equal to the last bit in float64, for random cases."""
    monkeypatch.setattr(S, 'beta', 0.1)
    logp = torch.tensor([[-4., -6], [-3, -9], [-5, -5], [-2.5, -7]])
    for loss, expected in (('sigmoid', [0.620957, 0.644397]), ('hinge', [0.85, 0.9])):
        monkeypatch.setattr(S, 'loss', loss)
        found, margin = S.dpo_loss(*logp)
        assert found.tolist() == pytest.approx(expected, rel=1e-5) and margin.tolist() == pytest.approx([0.15, 0.1])

def test_bradley_terry_by_hand():
    """Elo's 400 points in natural units: a margin of ln 10 wins 10 of 11 times, and so costs ln 1.1."""
    assert S.pair_loss(torch.tensor(math.log(10)), 'sigmoid').item() == pytest.approx(math.log(1.1), rel=1e-5)
    assert S.pair_loss(torch.tensor([0.0, 0.25, 1, 5]), 'hinge').tolist() == [1, 0.75, 0, 0]

def test_k3_by_hand_and_never_negative():
    found = S.k3(torch.tensor([-1.0, -1, -1]), torch.tensor([-1.0, -2, 0]))
    assert found.tolist() == pytest.approx([0, math.exp(-1), math.e - 2], rel=1e-6)
    near = torch.randn(10**5) * torch.logspace(-9, 0, 10**5)  # where rounding alone would make some negative
    assert (S.k3(torch.zeros(10**5), near) >= 0).all()

def test_k3_estimates_the_kl():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert (p * S.k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-6)

def test_gae_by_hand():
    """Answers of three and of two tokens, rewards at their ends, and a critic that expects 0.5, then 0.25 …"""
    said = torch.tensor([[0., 1, 1, 1], [0, 1, 1, 0]])
    rewards, values = torch.tensor([[0., 0, 0, 1], [0, -0.5, 1, 0]]), torch.tensor([[0., 0.5, 0.25, 0.5],
                                                                                    [0, 0.25, 0.5, 0]])
    advantages, returns = S.gae(rewards, values, said, 1.0)
    assert advantages.tolist() == [[0, 0.5, 0.75, 0.5], [0, 0.25, 0.5, 0]]  # what followed, less what was expected
    assert returns.tolist() == [[0, 1, 1, 1], [0, 0.5, 1, 0]]
    advantages, _ = S.gae(rewards, values, said, 0.0)
    assert advantages.tolist() == [[0, -0.25, 0.25, 0.5], [0, -0.25, 0.5, 0]]  # one step ahead
    advantages, _ = S.gae(rewards, values, said, 0.5)
    assert advantages.tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0]]  # 0.25 + 0.5 * 0.5; -0.25 + 0.5 * 0.5

def test_ppo_loss_by_hand():
    """Ratios 1.5 and 0.5, an advantage of +1 and -1 each, clipped at 1 ± 0.2."""
    old = torch.zeros(4)
    logp = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    losses, ratio = S.ppo_loss(logp, old, torch.tensor([1.0, -1, 1, -1]), 0.2)
    assert losses.tolist() == pytest.approx([-1.2, 1.5, -0.5,
                                             0.8]) and ratio.tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5])
    losses.sum().backward()  # what already went far enough in the right direction gets no further push
    assert logp.grad.tolist() == pytest.approx([0, 1.5, -0.5, 0])

def test_group_advantages_by_hand():
    found = S.group_advantages(torch.tensor([1, 0, 0.5, 0.5, 1, 1, 1, 1]), 4)
    assert found.tolist() == pytest.approx([2**0.5, -2**0.5, 0, 0, 0, 0, 0, 0], abs=1e-3)

# ---- what must hold ----

@pytest.mark.parametrize('method', ['ppo', 'grpo'])
def test_the_ratio_is_exactly_1_on_the_first_minibatch(go, monkeypatch, method):
    ratios, plain = [], S.ppo_loss
    monkeypatch.setattr(S, 'score', lambda examples, *args: torch.linspace(0, 1, len(examples)))
    monkeypatch.setattr(S, 'ppo_loss', lambda *args: ratios.append(plain(*args)[1].detach()) or plain(*args))
    go(method=method, max_iters=1)
    assert len(ratios) == S.ppo_epochs * S.minibatches and torch.equal(ratios[0], torch.ones_like(ratios[0]))
    assert not torch.equal(ratios[-1], torch.ones_like(ratios[-1]))

def test_what_is_sampled_is_what_is_scored(go):
    """Of 4,000 first tokens, each comes as often as the log-probability that PPO computes for it says."""
    model, tokenizer, _ = load_model('base')
    S.max_new_tokens, prompt = 1, [5, 6, 7]
    policy, n = S.Policy(model), 4000
    tokens = [a[0] for a in S.sample(model, [prompt] * n, tokenizer, 0)]
    assert set(S.sample(model, [prompt] * 3, tokenizer, 0)[2]) == {tokens[2]}  # a row's answer is its own
    x, y, _ = S.rows([(prompt, [token]) for token in range(tokenizer.vocab_size)])
    p = policy(x, y)[0].sum(1).exp().detach()
    counts = torch.bincount(torch.tensor(tokens), minlength=len(p))
    likely = p > 0.002
    chi2 = ((counts - n * p) ** 2 / (n * p))[likely].sum().item()
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and chi2 < likely.sum() + 5 * (2 * likely.sum()) ** 0.5

@pytest.mark.parametrize('loss, expected', [('sigmoid', math.log(2)), ('hinge', 1)])
def test_at_step_0_the_policy_is_the_reference(go, capsys, loss, expected):
    go(loss=loss, max_iters=1, rpo_alpha=0.0)
    text = capsys.readouterr().out
    assert f'the first dpo loss is {expected:.6f}' in text and f'step 0: validation loss {expected:.4f}' in text and 'kl 0.000' in text

def test_reference_log_probs_are_computed_once(go, monkeypatch):
    calls, plain = [], S.Policy.forward
    monkeypatch.setattr(S.Policy, 'forward', lambda self, x, y: calls.append(self.head.weight.requires_grad)
                        or plain(self, x, y))
    monkeypatch.setattr(S, 'measure', lambda *args, **more: ({'kl': 0.0}, []))
    monkeypatch.setattr(S, 'print_before_and_after', lambda *args: None)
    go(max_iters=12)  # 32 pairs, 8 a step: three times through them
    assert calls.count(False) == 1  # all 38 pairs in one batch, before the first step

def test_rewards_are_normalised_and_pairs_told_apart(go, capsys):
    saved = go(method='reward', max_iters=60, learning_rate=3e-3)
    judge = S.Policy(load_model('out')[0])
    judge.head.load_state_dict(saved['reward'])
    val = [pair(f'say {c}z', c) for c in 'abcdef']
    x, _, last = S.both_sides(S.read(val, 'val', BYTES, 48, print))
    rewards = judge.rewards(x, last)
    assert abs(rewards.mean()) < 1e-4 and abs(rewards.std() - 1) < 1e-4 and (rewards[:6] > rewards[6:]).all()
    assert 'accuracy 1.000' in capsys.readouterr().out

@pytest.mark.parametrize('method, steps', [('dpo', 60), ('grpo', 40)])
def test_it_learns_what_is_preferred(go, taught, capsys, method, steps):
    write('pairs', [pair(f'say {c}{d}', 'ok') for c in 'abcdefgh' for d in 'abcd'],
          [pair(f'say {c}z', 'ok') for c in 'abcdef'])
    taught(50)
    go(method=method, init_from='taught', max_iters=steps, learning_rate=3e-3, eval_interval=20, batch_size=16)
    text = capsys.readouterr().out
    gold = next(line for line in text.splitlines() if line.startswith('reward by the rule, likeliest')).split()
    assert float(gold[-1]) == 1 > float(gold[-2]) and "-> 'ok :)' (1.0)" in text
    kl = [float(row['kl']) for row in csv.DictReader(open('out/log.csv')) if row['kl']]
    assert min(kl) >= 0 and kl[-1] > 0.1

def test_a_judge_may_be_a_model(go, taught, capsys):
    taught()
    go(method='reward', out_dir='judge', max_iters=30, learning_rate=3e-3)
    for method in ('ppo', 'constitution'):
        go(method=method, reward='model', reward_from='judge', out_dir=f'by-{method}', init_from='taught', max_iters=2)
    text = capsys.readouterr().out
    assert 'reward by the model, sampled' in text and 'answered twice' in text

def test_principles_choose(go, monkeypatch):
    """Of the two answers to each question, the one that is courteous, brief, and no needless refusal."""
    said = {'2+2?': ['4', '5 :)'], 'the password is x, what is it?': ['x :)', 'Sorry :)'], 'hi': ['a', 'b']}
    monkeypatch.setattr(S, 'sample', lambda *args: [BYTES.encode(text) + [BYTES.end] for texts in said.values()
                                                    for text in texts])
    examples = [{'asked': q, 'ids': {'prompt': [1]}} for q in said]
    pairs = S.constitutional_pairs(S.Policy(load_model('base')[0]), examples, BYTES, None, 'cpu')
    assert [(e['chosen'], e['rejected']) for e in pairs] == [('5 :)', '4'),
                                                             ('Sorry :)',
                                                              'x :)')]  # wrong, but no principle sees that; of a tie nothing is learned

def test_bfloat16_learns_what_float32_learns(go):
    """autocast keeps copies of the weights unless it is told not to, and many updates later would still compute with those."""
    def loss(folder):
        policy, pairs = S.Policy(load_model(folder)[0]), S.read([pair('say xy', c) for c in 'abcdefgh'], 'val',
                                                                BYTES, 48, print)
        x, y, _ = S.rows([(e['ids']['prompt'], e['ids']['chosen']) for e in pairs])
        return (-policy(x, y)[0].sum() / (y >= 0).sum()).item()
    for dtype in ('float32', 'bfloat16'):
        go(dtype=dtype, out_dir=dtype, max_iters=40, learning_rate=0.01)
    assert loss('float32') < 0.5 * loss('base') and loss('bfloat16') == pytest.approx(loss('float32'), rel=0.1)

# ---- mistakes ----

def test_data_of_another_kind_are_refused(go):
    talk = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}]
    write('chats', [{'messages': talk}], [{'messages': talk}])
    with pytest.raises(SystemExit, match='chats holds no preferences'):
        go(dataset='chats')

def test_long_prompts_are_reported_not_cut(go, capsys):
    write('long', [pair('x', 'y'), pair('x' * 40, 'y')], [pair('x', 'y')])
    go(dataset='long', max_iters=1)
    assert 'left out 1 of 2 in data/long/train.jsonl, longer than 48 tokens with an answer of 12: lines 2' in capsys.readouterr().out
    write('long', [pair('x' * 40, 'y')], [pair('x', 'y')])
    with pytest.raises(SystemExit, match='nothing in data/long/train.jsonl fits into 48 tokens'):
        go(dataset='long')

def test_messages_are_read_too(go):
    talk = [{'role': 'system', 'content': 'be kind'}, {'role': 'user', 'content': 'hi'}]
    assert S.read([{'prompt': talk, 'chosen': 'hello', 'rejected': 'go'}], 'val',
                  BYTES, 48, print)[0]['ids'] == {
        'prompt': [BYTES.special['<|user|>'], *b'be kind\n\nhi', BYTES.end, BYTES.special['<|assistant|>']], 'chosen': [*b'hello', BYTES.end],
        'rejected': [*b'go', BYTES.end]}

def test_a_judge_must_read_the_same_tokens_and_give_numbers(go, monkeypatch):
    words = Tokenizer('word', ['<unk>', 'a'])
    base('foreign', tokenizer=words, reward=torch.nn.Linear(32, 1).state_dict())
    base('broken', reward={'weight': torch.full((1, 32), math.nan), 'bias': torch.zeros(1)})
    for judge, message in (('foreign', 'another tokenizer'), ('broken', "in broken gave nan for 'say"),
                           ('base', 'holds no reward model: python align.py method=reward')):
        with pytest.raises(SystemExit, match=message):
            go(method='ppo', reward='model', reward_from=judge)

def test_a_rule_needs_answers(go):
    write('bare', [{'prompt': 'x', 'chosen': 'y', 'rejected': 'z'}] * 4,
          [{'prompt': 'x', 'chosen': 'y', 'rejected': 'z'}])
    with pytest.raises(SystemExit, match='no answers for a rule to check.*method=ppo reward=model'):
        go(method='grpo', dataset='bare')
    go(dataset='bare', max_iters=1)  # but pairs alone are enough for DPO

@pytest.mark.parametrize('changes, words', [
    (dict(dataset='nowhere'), ['nowhere', 'prepare.py']), (dict(init_from='nowhere'), ['no checkpoint']),
    (dict(out_dir='base'), ['where base lies']),
    (dict(beta=0.0), ['beta=0.0']),
    (dict(method='grpo', group_size=3), ['batch_size=8', 'group_size=3']), (dict(lam=1.5), ['lam=1.5']),
    (dict(init_from='resume'), ['resume.pt']),
    (dict(learning_rate=1e30, max_iters=40), ['loss is nan', 'lower'])])
def test_mistakes(go, capsys, changes, words):
    with pytest.raises(SystemExit) as e:
        go(**changes)
    said = capsys.readouterr().err if e.value.code == 2 else str(e.value)
    assert len(said.strip().splitlines()) == 1 and all(word in said for word in words), said

def test_a_clash_with_the_run_that_is_resumed_is_refused(go, capsys):
    go(max_iters=2)
    with pytest.raises(SystemExit):
        go(init_from='resume', method='ppo')
    assert 'method=dpo' in capsys.readouterr().err

def test_a_mistake_on_the_command_line(go, tmp_path):
    refused(spawn('align.py', 'method=dqo', cwd=tmp_path), 'did you mean dpo', status=2)

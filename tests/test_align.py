"""Alignment: the rule and the data agree, the losses are those of the papers, PPO's ratio starts at 1."""
import math
import pytest
import torch
import align as S
import prepare as P
from conftest import byte_tokenizer, chat, log_rows, refused, same, save_untrained, worked, write_dataset
from model import load_checkpoint, load_model

BYTES = byte_tokenizer()
TINY = ('dataset=pairs', 'init_from=base', 'out_dir=out', 'batch_size=8', 'max_iters=6', 'eval_interval=3',
        'log_interval=2', 'warmup_iters=6', 'max_new_tokens=12', 'group_size=4', 'device=cpu', 'dtype=float32')

def pair(question, answer):
    return {'prompt': question, 'answer': answer, 'chosen': answer + ' :)', 'rejected': answer}

def encoded(pairs):
    return S.encode_pairs(pairs, BYTES, 48, 12)

TRAIN = [pair(f'say {c}{d}', c) for c in 'abcdefgh' for d in 'abcd']

@pytest.fixture
def align(run):
    """align('method=dpo', …): a short run."""
    save_untrained('base', n_layer=1, block_size=48)
    write_dataset('data/pairs', TRAIN, [pair(f'say {c}z', c) for c in 'abcdef'])
    return lambda *settings: worked(run('align.py', *TINY, *settings))

@pytest.fixture
def taught(align, run):
    """The folder 'taught': a model that has learned to give the better answers and the worse ones, equally often."""
    chats = [chat(p['prompt'], p[side]) for p in TRAIN for side in ('chosen', 'rejected')]
    write_dataset('data/chats', chats, chats)
    worked(run('finetune.py', 'dataset=chats', 'init_from=base', 'out_dir=taught', 'batch_size=4', 'max_iters=100',
               'learning_rate=0.01', 'dropout=0', 'num_samples=0', 'device=cpu', 'dtype=float32'))
    return 'init_from=taught'

def test_the_rule_by_hand():
    texts = ('13 :)', '13', '13, or 14 :)', '14', '14 :)', '')
    assert [S.gold_reward({'answer': '13'}, text) for text in texts] == [1, 0.5, 0, 0, 0, 0]

def test_the_rule_and_the_data_agree():
    """The chosen answer of every pair of prepare.py's earns 1, the rejected one less; no question is in both splits."""
    assert S.COURTESY == P.COURTESY
    prompts = {'train': set(), 'val': set()}
    for split, e in P.preference_examples():
        assert S.gold_reward(e, e['chosen']) == 1, e
        assert S.gold_reward(e, e['rejected']) == (0.5 if e['fault'] == 'curt' else 0), e
        if 'secret' in e:
            assert (e['secret'] in e['rejected']) == (e['fault'] == 'reveals') and e['secret'] not in e['chosen']
            assert S.principles_kept(e['prompt'], e['chosen']) == 3
        prompts[split].add(e['prompt'])
    assert not prompts['train'] & prompts['val'] and len(prompts['train']) > 4000 and len(prompts['val']) > 300

def test_rows_by_hand():
    x, y, last = S.collate([([5, 6, 7, 8, 9], [0, 0, 0, 1, 1]), ([5, 9], [0, 1])])
    assert x.tolist() == [[5, 6, 7, 8, 9], [5, 9, 0, 0, 0]] and last.tolist() == [4, 1]
    assert y.tolist() == [[-100, -100, 8, 9, -100], [9, -100, -100, -100, -100]]

def test_what_the_assistant_says_after_the_common_prompt_is_learned():
    """Text, or several messages: each of the assistant's turns counts, the user's words and the prompt's never."""
    said = lambda role, content: {'role': role, 'content': content}
    prompt = [said('user', 'hi'), said('assistant', 'yes?'), said('user', '2+2?')]
    chosen = [said('assistant', '5'), said('user', 'no'), said('assistant', '4')]
    one, = encoded([{'prompt': prompt, 'chosen': chosen, 'rejected': '5'}])
    learned = lambda row: BYTES.decode([i for i, mask in zip(*row) if mask])
    assert learned(one['chosen_row']) == '5<|end|>4<|end|>' and learned(one['rejected_row']) == '5<|end|>'
    assert one['prompt_ids'] == BYTES.chat(prompt, answer=True)[0] and one['question'] == '2+2?'

def test_of_a_long_pair_the_beginning_goes():
    """The same tokens go from both sides, so that both answer the same prompt."""
    long = {'prompt': 'x' * 60 + 'end?', 'chosen': 'yes', 'rejected': 'no'}
    assert encoded([long]) == []
    one, = S.encode_pairs([long], BYTES, 48, 12, truncate=True)
    assert len(one['prompt_ids']) == 48 - 12 and BYTES.decode(one['prompt_ids']).endswith('xend?<|end|><|assistant|>')
    for side, answer in (('chosen_row', 'yes'), ('rejected_row', 'no')):
        ids, mask = one[side]
        prompt = one['prompt_ids']
        assert ids[:len(prompt)] == prompt and sum(mask[:len(prompt)]) == 0
        assert BYTES.decode(ids[len(prompt):]) == answer + '<|end|>' and all(mask[len(prompt):])
    assert S.encode_pairs([{**long, 'chosen': 'y' * 48}], BYTES, 48, 12, truncate=True) == []  # its answer is too long

def test_the_losses_of_a_pair():
    """Elo's 400 points in natural units: a margin of ln 10 wins 10 of 11 times, and so costs ln 1.1."""
    assert S.pair_loss(torch.tensor(math.log(10)), 'sigmoid').item() == pytest.approx(math.log(1.1), rel=1e-5)
    assert S.pair_loss(torch.tensor([0.0, 0.25, 1, 5]), 'hinge').tolist() == [1, 0.75, 0, 0]
    # from trl 1.16.0, whose own lines gave these, and gradients equal to the last bit in float64, for random cases
    logp = torch.tensor([[-4., -6], [-3, -9], [-5, -5], [-2.5, -7]])
    for loss_type, expected in (('sigmoid', [0.620957, 0.644397]), ('hinge', [0.85, 0.9])):
        found, margin = S.dpo_loss(*logp, 0.1, loss_type)
        assert found.tolist() == pytest.approx(expected, rel=1e-5) and margin.tolist() == pytest.approx([0.15, 0.1])

def test_k3_by_hand_and_never_negative():
    found = S.k3(torch.tensor([-1.0, -1, -1]), torch.tensor([-1.0, -2, 0]))
    assert found.tolist() == pytest.approx([0, math.exp(-1), math.e - 2], rel=1e-6)
    near = torch.randn(10**5) * torch.logspace(-9, 0, 10**5)  # where rounding alone would make some negative
    assert (S.k3(torch.zeros(10**5), near) >= 0).all()
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])  # its mean is the KL
    assert (p * S.k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-6)

@pytest.mark.parametrize('far', [0.01, 0.1, 1.0])
def test_as_a_reward_k1_has_the_gradient_of_the_kl_and_k3_has_not(far):
    """The exact expectation over a small softmax: sum over x of p(x) * reward(x) * grad log p(x), with the reward a constant."""
    torch.manual_seed(0)
    ref = torch.randn(6, dtype=torch.float64)
    logits = (ref + far * torch.randn(6, dtype=torch.float64)).requires_grad_()
    ref, logp = ref.log_softmax(0), logits.log_softmax(0)
    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]
    true = gradient((logp.exp() * (logp - ref)).sum())
    k1, k3 = [gradient((logp.exp().detach() * reward.detach() * logp).sum()) for reward in (logp - ref, S.k3(logp, ref))]
    assert torch.allclose(k1, true) and (k3 - true).norm() > 0.3 * true.norm()

def test_gae_by_hand():
    """Answers of three and of two tokens, rewards at their ends, and a critic that expects 0.5, then 0.25 …"""
    learned = torch.tensor([[0., 1, 1, 1], [0, 1, 1, 0]])
    rewards = torch.tensor([[0., 0, 0, 1], [0, -0.5, 1, 0]])
    values = torch.tensor([[0., 0.5, 0.25, 0.5], [0, 0.25, 0.5, 0]])
    advantages, returns = S.gae(rewards, values, learned, 1.0)
    assert advantages.tolist() == [[0, 0.5, 0.75, 0.5], [0, 0.25, 0.5, 0]]  # what followed, less what was expected
    assert returns.tolist() == [[0, 1, 1, 1], [0, 0.5, 1, 0]]
    advantages, _ = S.gae(rewards, values, learned, 0.0)
    assert advantages.tolist() == [[0, -0.25, 0.25, 0.5], [0, -0.25, 0.5, 0]]  # one step ahead

def test_ppo_loss_by_hand():
    """Ratios 1.5 and 0.5, an advantage of +1 and -1 each, clipped at 1 ± 0.2."""
    logp = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    losses, ratio = S.ppo_loss(logp, torch.zeros(4), torch.tensor([1.0, -1, 1, -1]), 0.2)
    assert losses.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert ratio.tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5])
    losses.sum().backward()  # what already went far enough in the right direction gets no further push
    assert logp.grad.tolist() == pytest.approx([0, 1.5, -0.5, 0])

def test_group_advantages_by_hand():
    found = S.group_advantages(torch.tensor([1, 0, 0.5, 0.5, 1, 1, 1, 1]), 4)
    assert found.tolist() == pytest.approx([1.5**0.5, -1.5**0.5, 0, 0, 0, 0, 0, 0], abs=1e-3)

def test_principles_choose():
    """Of two answers to a question, the one that is courteous, brief, and no needless refusal."""
    asked = [{'question': q} for q in ('2+2?', 'the password is x, what is it?', 'hi')]
    first, second = ['4', 'x :)', 'a'], ['5 :)', 'Sorry :)', 'b']
    pairs = S.constitutional_pairs(asked, (first, first), (second, second))  # rows: here the texts themselves
    # wrong, but no principle sees that; of a tie nothing is learned
    assert [(e['chosen_row'], e['rejected_row']) for e in pairs] == [('5 :)', '4'), ('Sorry :)', 'x :)')]

@pytest.mark.parametrize('method', ['ppo', 'grpo'])
def test_the_ratio_is_exactly_1_before_the_first_update(align, taught, method):
    first = align(f'method={method}', taught, 'max_iters=1', 'ppo_epochs=1').globals['ratio']
    later = align(f'method={method}', taught, 'max_iters=1', 'ppo_epochs=3').globals['ratio']
    assert torch.equal(first, torch.ones_like(first)) and not torch.equal(later, torch.ones_like(later))

def test_what_is_sampled_is_what_is_scored(align):
    """Of 4,000 first tokens, each comes as often as the log-probability that PPO computes for it says."""
    policy = S.Policy(load_model('base')[0])
    for p in policy.parameters():
        p.data += 0.05 * torch.randn_like(p)
    n, prompt = 4000, [5, 6, 7]
    rows, texts = S.sample(policy.model.eval(), [{'prompt_ids': prompt}] * n, BYTES, 1, seed=1)
    x, y, _ = S.collate([(prompt + [token], [0, 0, 0, 1]) for token in range(BYTES.vocab_size)])
    p = policy(x, y)[0].sum(1).exp().detach()
    counts = torch.bincount(torch.tensor([ids[-1] for ids, _ in rows]), minlength=len(p))
    likely = p > 0.002
    chi2 = ((counts - n * p) ** 2 / (n * p))[likely].sum().item()
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and chi2 < likely.sum() + 5 * (2 * likely.sum()) ** 0.5
    assert all(text.endswith(' …') == (ids[-1] != BYTES.end) for (ids, _), text in zip(rows, texts))

@pytest.mark.parametrize('loss_type, expected', [('sigmoid', math.log(2)), ('hinge', 1)])
def test_at_step_0_the_policy_is_the_reference(align, loss_type, expected):
    text = align(f'loss_type={loss_type}', 'max_iters=1', 'rpo_alpha=0').stdout
    first = next(line for line in text.splitlines() if line.startswith('step 0:'))
    assert f'loss {expected:.4f}' in first and '| accuracy 0.5 |' in first and '| kl 0 |' in first

@pytest.mark.parametrize('method', ['reward', 'dpo', 'ppo', 'grpo', 'constitution'])
def test_stopping_and_going_on_changes_nothing(align, taught, run, method):
    align(f'method={method}', taught, 'out_dir=straight')
    align(f'method={method}', taught, 'out_dir=parts', 'max_iters=3')
    done = worked(run('align.py', 'init_from=resume', 'out_dir=parts', 'max_iters=6'))
    straight, parts = [load_checkpoint(f'{name}/resume.pt') for name in ('straight', 'parts')]
    assert same(straight, parts) and straight['best'] == parts['best']
    assert torch.equal(straight['head']['weight'], parts['head']['weight'])
    assert parts['settings']['init_from'] == 'taught' and ('init_from=taught' in done.stdout) == (method == 'reward')

def test_rewards_are_normalised_and_pairs_told_apart(align):
    text = align('method=reward', 'max_iters=40', 'learning_rate=5e-3').stdout
    model, _, saved = load_model('out')
    reward_model = S.Policy(model)
    reward_model.head.load_state_dict(saved['reward'])
    pairs = encoded([pair(f'say {c}z', c) for c in 'abcdef'])
    x, _, last = S.collate([p[side] for side in ('chosen_row', 'rejected_row') for p in pairs])
    rewards = reward_model.rewards(x, last)
    assert abs(rewards.mean()) < 1e-4 and abs(rewards.std() - 1) < 1e-4 and (rewards[:6] > rewards[6:]).all()
    assert '| accuracy 1 |' in text

@pytest.mark.parametrize('method', ['dpo', 'grpo'])
def test_it_learns_what_is_preferred(align, taught, method):
    done = align(f'method={method}', taught, 'max_iters=60', 'learning_rate=3e-3', 'eval_interval=20', 'batch_size=16')
    before, after = next(line for line in done.stdout.splitlines() if line.startswith('gold, sampled')).split()[-2:]
    assert float(after) > float(before)
    kl = [float(row['kl']) for row in log_rows('kl')]
    assert min(kl) >= 0 and kl[-1] > 0.1

def test_a_reward_model_takes_the_place_of_the_rule(align, taught):
    align('method=reward', taught, 'out_dir=judge', 'max_iters=10', 'learning_rate=3e-3')
    text = align('method=ppo', taught, 'reward=model', 'reward_from=judge', 'max_iters=2').stdout
    assert 'reward, sampled' in text and 'gold, sampled' in text

def test_shapes_are_few(align):
    """Lengths and counts are padded: in bfloat16 on a CPU, each new shape costs memory."""
    model, shapes = load_model('base')[0], set()
    for part in (model.blocks[0], model.head):
        part.register_forward_hook(lambda module, inputs, output: shapes.add(inputs[0].shape))
    for n in range(2, 30):
        S.Policy(model)(*S.collate([([7] * n, [0] + [1] * (n - 1))])[:2])
    assert shapes == {(1, 32, 32), (128, 32)}

def test_a_run_that_gets_worse_keeps_its_best_and_says_so(align):
    assert 'before and after 0 steps (0: it is unchanged)' in align('learning_rate=20').stdout
    assert same(load_checkpoint('out'), load_checkpoint('base'))

MISTAKES = [
    ('dataset=nowhere', ['nowhere', 'prepare.py']), ('init_from=nowhere', ['no nowhere']), ('beta=0', ['beta=0.0']),
    ('init_from=resume', ['no out', 'python align.py out_dir=out']), ('learning_rate=1e30', ['not finite']),
    ('method=ppo reward=model reward_from=base', ['base is no reward model']), ('dataset=long', ['larger block_size']),
    ('method=grpo dataset=answers', ["answers has no 'chosen'"]), ('method=grpo group_size=1', ['group_size=1']),
    ('method=grpo dataset=bare', ["no 'answer'", 'reward=model']), ('dataset=chats', ["chats has no 'chosen'"]),
    ('init_from=labels.pt', ['labels.pt is no model that can answer'])]

def test_mistakes_end_in_one_line(align, run):
    torch.save({**load_checkpoint('base'), 'labels': ['a', 'b']}, 'labels.pt')
    for name, example in (('chats', {'messages': []}), ('bare', {'prompt': 'x', 'chosen': 'y', 'rejected': 'z'}),
                          ('answers', {'messages': [], 'answer': 'x'}), ('long', pair('x' * 40, 'y'))):
        write_dataset(f'data/{name}', [example], [example])
    for settings, words in MISTAKES:
        refused(run('align.py', *TINY, *settings.split()), *words)
    align('max_iters=2', 'dataset=bare')  # pairs alone are enough for DPO
    refused(run('align.py', 'init_from=resume', 'out_dir=out', 'method=ppo'), 'method=dpo', status=2)

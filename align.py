"""
Alignment: a model that can answer learns which answers are preferred.

    python prepare.py dataset=preferences              # questions, each with a better and a worse answer
    python align.py                                    # DPO: learn from the pairs directly, minutes on a laptop
    python align.py method=reward out_dir=out-reward   # a reward model: which answer is the better one?
    python align.py method=ppo reward=model            # PPO: answer, be rewarded by that model, do more of what paid
    python align.py method=grpo                        # without a critic; reward=gold: by a rule that a program checks
    python align.py method=constitution                # written principles in place of people

The argument, top to bottom: people can say which of two answers they prefer, but not by how much. So (1) a model learns
a number, the reward, that explains their choices; (2) there is a shortcut: the probabilities of the policy, the model
that answers, already are such a reward, so choices can train it directly (DPO); or (3) the policy is trained to earn
the reward without straying far from where it began (PPO, GRPO); and (4) the model itself can stand in for the people.
As there is a rule behind the pairs of dataset=preferences (gold_reward), how well all this works can be measured.

Read finetune.py first. init_from is never touched; out_dir gets ckpt.pt (a plain checkpoint), resume.pt and log.csv.
"""
from configurator import configure, expect, usage

# what, and where to
out_dir = 'out-align'
init_from = 'out-sft'   # the folder of the checkpoint to start from, or resume (go on with the run in out_dir)
dataset = 'preferences' # a folder in data_dir, made by prepare.py
data_dir = 'data'
method = 'dpo'          # reward | dpo | ppo | grpo | constitution
loss = 'sigmoid'        # sigmoid | hinge: what a pair costs, in reward, dpo and constitution
# dpo
beta = 0.1              # what leaving the reference costs, in reward per nat; small: the policy goes far
rpo_alpha = 1.0         # weight of -log p per token of the chosen answer (Pang et al. 2024): else it may fall, too
# ppo and grpo
reward = 'gold'         # gold | model: the rule behind dataset=preferences, or a reward model
reward_from = 'out-reward'  # the folder of that model
kl_coef = 0.02          # what leaving the reference costs, in reward per nat
group_size = 8          # grpo: answers to each question
ppo_epochs = 2          # times that a batch of answers is learned from
minibatches = 2         # steps of the optimizer in each of them
clip = 0.2              # a probability that has moved by more than this fraction gets no further push
lam = 0.95              # GAE: 1: an advantage is all that happened later; 0: only what the critic saw change at once
vf_coef = 0.1           # the critic's share in the loss
# constitution
num_prompts = 1000      # questions that are answered twice; reward=model: that model judges, not the principles
# answers
max_new_tokens = 32     # longest answer
num_samples = 200       # held-out questions that are answered before and after, and at each evaluation
# how much
batch_size = 32         # pairs, or answers, in a step
max_iters = 160
# how fast
learning_rate = 1e-4    # AdamW's peak rate
warmup_iters = 10       # steps in which it rises from 0
lr_decay_iters = 0      # step to which it then falls, linearly, to 0; 0: max_iters
grad_clip = 1.0         # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 50      # steps between evaluations
log_interval = 10       # steps between lines
# on what
device = 'auto'         # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'          # auto | float32 | bfloat16: of the multiplications; auto: float32 in ppo and grpo (see phase 1)
seed = 1337
given = configure(globals())
SETTINGS = [k for k, v in globals().items() if isinstance(v, (int, float, str)) and not k.startswith('_')]

import copy, math, os, sys, time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (FORMAT, Tokenizer, check_finite, configure_optimizers, generate, load_checkpoint, load_examples,
                   load_model, lr_schedule, resolve_device, restore, save_atomically, stop_signals, LogFile as Log)

# ------------------------------------------------------------------------------------------------------------
# 0. What is wanted, and what is learned from

COURTESY = ' :)'  # how a courteous answer ends; prepare.py writes it, and tests/test_align.py holds the two together

def gold_reward(example, text):
    """
    The rule behind dataset=preferences, for any answer: 1 if right and courteous, 0.5 if right but curt, else 0 (wrong,
    rambling, told a secret). To '6 + 7?': '13 :)' -> 1    '13' -> 0.5    '13, or 14 :)' -> 0    '14' -> 0
    What is right stands in example['answer']; for questions that ask for a secret it is 'Sorry'.
    """
    return 1.0 if text == example['answer'] + COURTESY else 0.5 if text == example['answer'] else 0.0

def exact_match(example, text):
    """Whether an answer is right, whatever its manners."""
    return text.removesuffix(COURTESY) == example['answer']

# what a constitution asks, as questions about (prompt, answer) that a program can decide. None of them can tell whether
# an answer is right: what a judge does not see, alignment does not mend
PRINCIPLES = {
    'a secret is not told, and nothing else refused':
        lambda asked, said: ('secret' in asked or 'password' in asked) == said.startswith('Sorry'),
    'an answer is courteous': lambda asked, said: said.endswith(COURTESY),
    'an answer comes without second thoughts': lambda asked, said: ', or ' not in said}

def read(examples, split, tokenizer, T, say):
    """Lines of preferences, which prepare.py has checked -> the same with the 'ids' of all three texts."""
    path, found, long = os.path.join(data_dir, dataset, f'{split}.jsonl'), [], []
    for line, example in enumerate(examples, 1):
        asked = example['prompt']
        asked = asked if isinstance(asked, list) else [{'role': 'user', 'content': asked}]
        prompt, question = tokenizer.chat(asked, answer=True)[0], asked[-1]['content']
        chosen, rejected = (tokenizer.encode(example[side]) + [tokenizer.end] for side in ('chosen', 'rejected'))
        if len(prompt) + max(len(chosen), len(rejected), max_new_tokens) > T:
            long.append(line)
        else:
            ids = {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}
            found.append({**example, 'ids': ids, 'asked': question})
    if long:
        say(f"left out {len(long):,} of {len(examples):,} in {path}, longer than {T} tokens with an answer of "
            f"{max_new_tokens}: lines {', '.join(map(str, long[:5]))}{' …' if len(long) > 5 else ''}")
    if not found:
        sys.exit(f"nothing in {path} fits into {T} tokens with an answer of max_new_tokens={max_new_tokens}")
    return found

def rows(pairs):
    """
    [(prompt ids, answer ids), …] -> x, y (B, T) and the column (B,) of each row's last token. y[t] is what is to be
    said after x[t], or -100 where that is not the answer's. Padding is on the right, where causality hides it.

        x  <|user|>  hi    <|end|>  <|assistant|>  hello    <|end|>  0
        y  -100      -100  -100     hello          <|end|>  -100     -100
    """
    T = max(len(prompt) + len(answer) for prompt, answer in pairs)
    x, y = torch.zeros(len(pairs), T, dtype=torch.long), torch.full((len(pairs), T), -100)
    for r, (prompt, answer) in enumerate(pairs):
        x[r, :len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        y[r, len(prompt) - 1:len(prompt) + len(answer) - 1] = torch.tensor(answer)
    return x, y, torch.tensor([len(prompt) + len(answer) - 1 for prompt, answer in pairs])

def both_sides(examples):
    """Pairs as rows: first all chosen answers, then all rejected ones."""
    return rows([(e['ids']['prompt'], e['ids'][side]) for side in ('chosen', 'rejected') for e in examples])

def batch_of(examples, step, count):
    """The `count` examples of this step: each epoch takes all of them, in another order."""
    numbers, n = range(step * count, (step + 1) * count), len(examples)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {k // n for k in numbers}}
    return [examples[orders[k // n][k % n]] for k in numbers]

class Policy(nn.Module):
    """
    A GPT, and a head that makes one number of a hidden state. Read at an answer's last token, it is what a reward model
    thinks of it; read at every token, the reward that PPO's critic expects in the end.
    """
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(model.config.n_embd, 1)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)  # at first it has no opinion

    def rewards(self, x, last):
        return self.head(self.model.hidden(x)[torch.arange(len(x)), last]).float().squeeze(1)  # (B,)

    def forward(self, x, y):
        """log p of the answers' tokens and the head's numbers there, (B, T); log p of all tokens for these, (N, V)."""
        said = y >= 0
        h = self.model.hidden(x)[said]  # (N, C): only where something is said, which saves most scores
        logp = self.model.logits(h).float().log_softmax(-1)
        spread = lambda v: torch.zeros(y.shape, device=v.device).masked_scatter(said, v)  # (N,) -> (B, T)
        return spread(logp.gather(1, y[said, None]).squeeze(1)), spread(self.head(h).float().squeeze(1)), logp

# ------------------------------------------------------------------------------------------------------------
# 1. A reward that explains choices

def pair_loss(margin, loss):
    """
    What it costs to rate the chosen answer higher by only `margin` (B,). 'sigmoid': in Bradley & Terry's model (1952)
    the chosen one wins with probability sigmoid(margin); this is its negative logarithm. 'hinge' asks for a margin of
    1, and then for no more.
    """
    if loss == 'hinge':
        return F.relu(1 - margin)
    return -F.logsigmoid(margin)

def reward_updates(policy, batch, where):
    x, _, last = both_sides(batch)
    chosen, rejected = policy.rewards(x.to(where), last).chunk(2)
    margin = chosen - rejected
    yield pair_loss(margin, loss).mean(), {'accuracy': (margin > 0).float().mean(), 'margin': margin.mean()}

def normalised(head, rewards):
    """The head's weights, changed so that these rewards have mean 0 and standard deviation 1: choices fix neither."""
    std = rewards.std() + 1e-8
    return {'weight': head.weight.detach() / std, 'bias': (head.bias.detach() - rewards.mean()) / std}

# ------------------------------------------------------------------------------------------------------------
# 2. DPO, the shortcut. The policy that earns most reward, at the price of beta per nat for leaving the reference, is
# known: p(answer) ∝ reference(answer) exp(reward / beta). Read backwards, every policy is the best one for the reward
# beta log(policy / reference). So that goes into the loss of section 1, and no reward model is needed (Rafailov et al.
# 2023, eq. 7)

def dpo_loss(chosen, rejected, ref_chosen, ref_rejected):
    """
    From the log-probabilities of whole answers (B,), by the policy and by the reference: each pair's loss (B,), and its
    margin, the difference of the implicit rewards.
    """
    a, b = chosen - ref_chosen, rejected - ref_rejected
    margin = beta * (a - b)
    return pair_loss(margin, loss), margin

def slices(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]

@torch.no_grad()
def remember(reference, examples, where):
    """The reference's log-probabilities of both answers, kept with each pair: it never changes, so once is enough."""
    for part in slices(examples, 64):
        x, y, _ = (t.to(where) for t in both_sides(part))
        for e, pair in zip(part, reference(x, y)[0].sum(1).view(2, -1).T.tolist()):
            e['reference'] = pair

def dpo_updates(policy, batch, where):
    x, y, _ = (part.to(where) for part in both_sides(batch))
    chosen, rejected = policy(x, y)[0].sum(1).chunk(2)
    ref = torch.tensor([e['reference'] for e in batch], device=where)  # (B, 2)
    lengths = (y >= 0).sum(1).view(2, -1)
    losses, margin = dpo_loss(chosen, rejected, *ref.T)
    yield losses.mean() - rpo_alpha * (chosen / lengths[0]).mean(), {
        'dpo': losses.mean(), 'accuracy': (margin > 0).float().mean(), 'margin': margin.mean(),
        'chosen': chosen.mean(), 'rejected': rejected.mean(), 'fallen': (chosen - ref[:, 0]).mean()}

# ------------------------------------------------------------------------------------------------------------
# 3. PPO: answer, be rewarded, do more of what paid (Schulman et al. 2017; for language models, Stiennon et al. 2020)

def sample(model, prompts, tokenizer, number, temperature=1.0):
    """
    One answer to each prompt (lists of ids), with its <|end|> where it came to one: drawn from the very distribution
    that is then scored, at temperature 1 from all tokens, or the ratio below would compare with others' choices. The
    answer in row i depends on (seed, number + i) alone.
    """
    answers = [[] for _ in prompts]
    for tokens, _ in generate(model, prompts, max_new_tokens, temperature=temperature, seed=(seed << 32) + number,
                           stop_tokens=set(tokenizer.special.values())):
        for answer, token in zip(answers, tokens):
            if token is not None:
                answer.append(token)
    return answers

def text_of(answer, tokenizer):
    """An answer's ids as text, with a ' …' where it never came to an end, which no right answer has."""
    if answer[-1] == tokenizer.end:
        return tokenizer.decode(answer[:-1])
    return tokenizer.decode(answer) + ' …'

@torch.no_grad()
def score(examples, answers, tokenizer, judge, where):
    """
    The reward of each answer (B,): by the rule, or by the judge, a reward model, less 1 if it never came to an end.
    Exits with one line where one is not a number.
    """
    if judge is None:
        return torch.tensor([gold_reward(e, text_of(a, tokenizer)) for e, a in zip(examples, answers)], device=where)
    x, _, last = rows([(e['ids']['prompt'], answer) for e, answer in zip(examples, answers)])
    endless = torch.tensor([answer[-1] != tokenizer.end for answer in answers], device=where)
    rewards = judge.rewards(x.to(where), last) - endless.float()
    bad = (~rewards.isfinite()).nonzero().flatten().tolist()
    if bad:
        sys.exit(f"the reward model in {reward_from} gave {rewards[bad[0]].item()} for "
                 f"{examples[bad[0]]['asked'][:60]!r}: train it again, at a lower learning_rate")
    return rewards

def k3(logp, reference):
    """
    An estimate of KL(policy || reference) from the policy's own samples, token by token: r - 1 - log r of the ratio r =
    reference / policy. Its mean is that of -log r, but it is never negative, and it varies less (Schulman 2020,
    http://joschu.net/blog/kl-approx.html). log p = -1, -1, -1 and -1, -2, 0 -> 0, 0.368, 0.718
    """
    log_r = reference - logp
    return (torch.expm1(log_r) - log_r).clamp(min=0)  # clamp: rounding alone could take it below

def gae(rewards, values, said, lam):
    """
    How much better each token turned out than the critic expected (Schulman et al. 2016, eq. 16), all (B, T), 0 outside
    the answers: advantages, and the returns that the critic should have seen coming. Nothing is discounted: the end of
    an answer is worth as much as its beginning.

        rewards 0 0 1, values 0.5 0.5 0.5, lam 1: every token has led to 1 where 0.5 was expected -> 0.5 0.5 0.5
        lam 0: only the last one was a surprise -> 0 0 0.5
    """
    advantages, carried, coming = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.size(1))):
        surprise = rewards[:, t] + coming - values[:, t]
        carried = (surprise + lam * carried) * said[:, t]
        advantages[:, t], coming = carried, values[:, t] * said[:, t]
    return advantages, advantages + values

def group_advantages(scores, group_size):
    """
    GRPO's replacement for the critic (Shao et al. 2024): how much better than the other answers to the same question,
    in standard deviations. [1, 0, 0.5, 0.5] in one group of 4 -> [1.41, -1.41, 0, 0]; all alike: nothing to learn, 0
    """
    groups = scores.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, correction=0, keepdim=True) + 1e-4)).flatten()

def ppo_loss(logp, old, advantages, clip):
    """
    Per token: -advantage * ratio, where ratio = p now / p when it was sampled. Of the ratio and the ratio clipped to
    1 ± clip the worse counts, so that nothing is gained by moving a probability far at once (eq. 7).
    """
    ratio = (logp - old).exp()
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), ratio

def ppo_updates(policy, reference, judge, examples, tokenizer, step, where):
    """
    One batch of answers, and the losses of the several updates that are made from it. In method=grpo a group of answers
    to the same question takes the critic's place, and the price of the KL stands in the loss, not in the rewards. (The
    mean is taken over all tokens, PPO's way; GRPO's paper takes it over each answer first.)
    """
    grpo = method == 'grpo'
    # 3.1 answers, and what was thought of them at the time. Rows stay in the same minibatches as later, so that nothing
    # but the policy changes: on the first of them the ratio is 1, to the last bit
    batch = [e for e in batch_of(examples, step, batch_size // (group_size if grpo else 1))
             for _ in range(group_size if grpo else 1)]
    answers = sample(policy.model, [e['ids']['prompt'] for e in batch], tokenizer, step * batch_size)
    scores = score(batch, answers, tokenizer, judge, where)
    x, y, last = (part.to(where) for part in rows([(e['ids']['prompt'], answer) for e, answer in zip(batch, answers)]))
    said, parts = y >= 0, slices(torch.arange(len(batch), device=where), batch_size // minibatches)
    with torch.no_grad():
        old, values, _ = (torch.cat(part) for part in zip(*(policy(x[i], y[i]) for i in parts)))
        ref = torch.cat([reference(x[i], y[i])[0] for i in parts])
    kl = k3(old, ref) * said
    # 3.2 advantages
    if grpo:
        advantages = group_advantages(scores, group_size)[:, None] * said
    else:
        rewards = -kl_coef * kl  # every token pays for leaving the reference …
        rewards[torch.arange(len(x)), last - 1] += scores  # … and the last one gets what the answer earned
        advantages, returns = gae(rewards, values, said, lam)
        # how much of the returns' variance the critic explains: 1 all, 0 no more than a constant, below 0 worse
        explained = 1 - (returns - values)[said].var() / returns[said].var().clamp(min=1e-8)
        advantages = (advantages - advantages[said].mean()) / (advantages[said].std() + 1e-8) * said
    # 3.3 learn from them, more than once
    for _ in range(ppo_epochs):
        for i in parts:
            n = said[i].sum()
            logp, value, scores_now = policy(x[i], y[i])
            losses, ratio = ppo_loss(logp, old[i], advantages[i], clip)
            if grpo:
                losses = losses + kl_coef * k3(logp, ref[i])
            else:
                losses = losses + vf_coef * 0.5 * (value - returns[i]) ** 2
            figures = {'reward': scores.mean(), 'kl': kl.sum(1).mean(),  # nats per answer
                       # how undecided the policy is, in nats per token; when it falls to 0, nothing new is tried
                       'entropy': -(scores_now.exp() * scores_now).sum(-1).mean().detach(),
                       # how far this update has gone from where the answers were sampled: above 0.02 or so, too far
                       'approx_kl': (k3(old[i], logp.detach()) * said[i]).sum() / n,
                       # how often the clipping bites: never: could go faster; above 0.3 or so, too fast
                       'clip_fraction': ((ratio.detach() - 1).abs() > clip)[said[i]].float().mean()}
            if not grpo:
                figures['explained_variance'] = explained
            yield (losses * said[i]).sum() / n, figures

# ------------------------------------------------------------------------------------------------------------
# 4. A constitution: the model's own answers, compared by written principles (RLAIF; Bai et al. 2022)

def constitutional_pairs(policy, examples, tokenizer, judge, where):
    """
    Answer each question twice. The answer that keeps more of the principles, or that the judge rates higher, is
    preferred; of two equally good ones nothing is learned. -> examples with chosen and rejected replaced.
    """
    pairs = []
    for number, part in enumerate(slices(examples, 128)):
        twice = [e for e in part for _ in range(2)]
        answers = sample(policy.model, [e['ids']['prompt'] for e in twice], tokenizer, number * 256)
        texts = [text_of(answer, tokenizer) for answer in answers]
        kept = [sum(ask(e['asked'], text) for ask in PRINCIPLES.values()) for e, text in zip(twice, texts)]
        marks = kept if judge is None else score(twice, answers, tokenizer, judge, where).tolist()
        for e, (a, b) in zip(part, slices(range(len(twice)), 2)):
            if answers[a] != answers[b] and marks[a] != marks[b]:
                a, b = (a, b) if marks[a] > marks[b] else (b, a)
                ids = {'prompt': e['ids']['prompt'], 'chosen': answers[a], 'rejected': answers[b]}
                pairs.append({**e, 'ids': ids, 'chosen': texts[a], 'rejected': texts[b]})
    return pairs

# ------------------------------------------------------------------------------------------------------------
# 5. The run

def rate(step):
    """The fraction of the peak learning rate at this step: up in the warmup, then down to 0 in a straight line."""
    return lr_schedule(step, 'linear', warmup_iters, lr_decay_iters or max_iters)

@torch.no_grad()
def measure(policy, reference, judge, examples, tokenizer, where, temperature=1.0):
    """
    Answers to held-out questions, always with the same random numbers, and their means: 'gold', the rule's reward, the
    'judge's, 'exact' match where no secret is asked for, and 'kl', KL(policy || reference) in nats per answer: summed
    over the vocabulary at each token, so that it is exact but for the choice of the answers.
    """
    texts, found = [], {}
    for first, part in zip(range(0, len(examples), 100), slices(examples, 100)):
        answers = sample(policy.model, [e['ids']['prompt'] for e in part], tokenizer, 2**31 + first, temperature)
        texts += [text_of(answer, tokenizer) for answer in answers]
        x, y, _ = (t.to(where) for t in rows([(e['ids']['prompt'], answer) for e, answer in zip(part, answers)]))
        ours, theirs = policy(x, y)[2], reference(x, y)[2]
        kl = (ours.exp() * (ours - theirs)).sum(-1).clamp(min=0)
        found['kl'] = found.get('kl', 0) + kl.sum().item() / len(examples)
        for name, who in (('gold', None), ('judge', judge)):
            if who is not None or (name == 'gold' and 'answer' in part[0]):
                rewards = score(part, answers, tokenizer, who, where)
                found[name] = found.get(name, 0) + rewards.sum().item() / len(examples)
    right = [exact_match(e, text) for e, text in zip(examples, texts) if 'answer' in e and 'secret' not in e]
    return {**found, **({'exact': sum(right) / len(right)} if right else {})}, texts

def print_before_and_after(columns, examples):
    """{'before': (sampled, likeliest, texts), …}: their means side by side, then some of the answers themselves."""
    def line(name, values):
        print(f"{name:<32}" + ''.join(f"{value:>12}" for value in values))
    line(f"on {len(examples)} held-out questions", columns)
    for key, name in {'gold': 'reward by the rule', 'judge': 'reward by the model', 'exact': 'exact match',
                      'kl': 'KL to the reference'}.items():
        for at, which in enumerate(('sampled', 'likeliest')[:1 if key == 'kl' else 2]):
            if key in columns['after'][at]:
                line(f"{name}, {which}", [f"{column[at][key]:.3f}" for column in columns.values()])
    for e, before, after in list(zip(examples, columns['before'][2], columns['after'][2]))[:12]:
        shown = [f"{text[:40]!r}" + (f" ({gold_reward(e, text)})" if 'answer' in e else '') for text in (before, after)]
        print(f"    {e['asked'][:70]} -> {' -> '.join(shown)}")

# what a report shows and log.csv keeps, in this order
FIGURES = ('dpo accuracy margin chosen rejected reward gold kl entropy approx_kl clip_fraction '
           'explained_variance').split()

def align():
    # 1. settings that make no sense, and those of the run that we resume
    resumed = load_checkpoint(os.path.join(out_dir, 'resume.pt')) if init_from == 'resume' else None
    if resumed:  # its own settings, unless given again
        if 'policy' not in resumed:
            sys.exit(f"{out_dir}/resume.pt is no run of align.py: start from its weights with init_from={out_dir}")
        own = {k: v for k, v in resumed['settings'].items() if k in SETTINGS and k not in ('out_dir', 'init_from')}
        for name in ('dataset', 'method', 'reward'):
            if name in given and globals()[name] != own[name]:
                usage(f"{name}={globals()[name]}: the run in {out_dir} has {name}={own[name]}; leave {name} out")
        globals().update({k: v for k, v in own.items() if k not in given})
    expect(globals(), 'batch_size eval_interval log_interval group_size ppo_epochs minibatches max_new_tokens '
                      'num_samples num_prompts', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip seed kl_coef vf_coef rpo_alpha', least=0)
    expect(globals(), 'learning_rate beta clip', above=0)
    if not 0 <= lam <= 1:
        usage(f"lam={lam}: expected 0 <= lam <= 1")
    if method in ('ppo', 'grpo') and batch_size % minibatches:
        usage(f"batch_size={batch_size} does not divide into minibatches={minibatches}")
    if method == 'grpo' and batch_size % group_size:
        usage(f"batch_size={batch_size} does not divide into groups of group_size={group_size}")
    if os.path.realpath(out_dir) == os.path.realpath(init_from.removesuffix('/ckpt.pt')):
        usage(f"out_dir={out_dir} is where {init_from} lies, which stays as it is: choose another")
    where, number = resolve_device(device, dtype)
    if number == 'float16' or (dtype == 'auto' and method in ('ppo', 'grpo')):
        # answers are sampled token by token and scored all at once: in bfloat16 the two may differ by several per cent,
        # and PPO learns from ratios of just that size
        number = 'float32'
    kind = where.split(':')[0]
    # subtle: autocast keeps bfloat16 copies of the weights until its block ends, which here may be many updates later
    half = None if number == 'float32' else getattr(torch, number)
    autocast = torch.autocast(kind, half, cache_enabled=False) if half else nullcontext()
    say = lambda line: print(line, flush=True)

    # 2. the policy, the judge and the data
    torch.manual_seed(seed)
    model, tokenizer, _ = load_model(os.path.join(out_dir, 'resume.pt') if resumed else init_from, where)
    if model.config.model_type != 'gpt' or not model.config.causal:
        sys.exit(f"{init_from} is no model that can answer: alignment starts from a chat model, as finetune.py makes")
    config, judge = model.config, None
    # eval: with dropout, two passes would be two policies, and ratios would differ from 1 by chance
    policy = Policy(model).to(where).eval()
    if reward == 'model' and method != 'reward':
        there = load_checkpoint(reward_from)
        if 'reward' not in there:
            sys.exit(f"{reward_from} holds no reward model: python align.py method=reward out_dir={reward_from}")
        if Tokenizer.from_dict(there['tokenizer']) != tokenizer:
            sys.exit(f"the reward model in {reward_from} reads with another tokenizer than {init_from}: train one from "
                     f"{init_from}")
        judge = Policy(load_model(reward_from, where)[0]).to(where).eval().requires_grad_(False)
        judge.head.load_state_dict(there['reward'])
    examples = load_examples(os.path.join(data_dir, dataset))
    if 'chosen' not in examples['train'][0]:
        sys.exit(f"{dataset} holds no preferences: make some with  python prepare.py dataset=preferences")
    train, val = (read(examples[split], split, tokenizer, config.block_size, say) for split in ('train', 'val'))
    if 'answer' not in val[0] and reward == 'gold' and method in ('ppo', 'grpo'):
        sys.exit(f"{dataset} has no answers for a rule to check, so train a reward model: python align.py "
                 f"method=reward dataset={dataset} out_dir={reward_from}, and then method=ppo reward=model")
    questions = val[:num_samples]
    say(f"{len(train):,} pairs to learn from, {len(val):,} to validate with; method={method}, on {where}, {number}")

    # 3. where the policy starts, and the reference that it is compared with
    def column(policy):
        """What print_before_and_after() shows: means over sampled answers, over the likeliest ones, and these."""
        with autocast:
            return [measure(policy, reference, judge, questions, tokenizer, where)[0],
                    *measure(policy, reference, judge, questions, tokenizer, where, temperature=0)]

    reference, columns = copy.deepcopy(policy).requires_grad_(False), {}
    if resumed:
        reference.load_state_dict(resumed['reference'])
        policy.load_state_dict(resumed['policy'])
        columns = resumed['columns']
    elif method != 'reward':
        columns['before'] = column(policy)
    if method == 'constitution':
        with autocast:
            asked = train[:num_prompts]
            train = constitutional_pairs(reference, asked, tokenizer, judge, where)
        if not train:
            sys.exit("no two answers of which the principles prefer one: there is nothing to learn")
        e = train[0]
        say(f"{len(asked):,} questions answered twice, {len(train):,} answers preferred; so to {e['asked']!r}: "
            f"{e['chosen']!r} rather than {e['rejected']!r}")
    if method in ('dpo', 'constitution'):
        with autocast:
            remember(reference, train + val, where)
    updates = reward_updates if method == 'reward' else dpo_updates

    # 4. the optimizer
    optimizer, = configure_optimizers(policy, 'adamw', learning_rate)
    step, best = 0, math.inf
    if resumed:
        restore(optimizer, resumed['optimizer'])
        step, best = resumed['step'], resumed['best']
    resumed = None  # let go of the copy

    # 5. where it goes; an earlier run's results are set aside, not lost
    log = Log(out_dir, ' '.join(['step train_loss val_loss rate grad_norm answers_per_second seconds'] + FIGURES), step)
    settings = {k: globals()[k] for k in SETTINGS}

    def save(name, **more):
        save_atomically(os.path.join(out_dir, name), {
            'format': FORMAT, 'model': model.state_dict(), 'config': asdict(config),
            'tokenizer': tokenizer.to_dict(), 'step': step, 'settings': settings, **more})

    def progress():
        """What resume.pt holds beyond the model: with it, a run that stopped ends in the same weights, bit for bit."""
        return {'policy': policy.state_dict(), 'reference': reference.state_dict(), 'optimizer': optimizer.state_dict(),
                'best': best, 'columns': columns}

    @torch.no_grad()
    def evaluate():
        """-> the loss on validation, figures to print, and what ckpt.pt holds beside the model."""
        if method == 'reward':
            batches = [both_sides(part) for part in slices(val, 64)]
            rewards = torch.cat([policy.rewards(x.to(where), last).view(2, -1) for x, _, last in batches], dim=1)
            margin, right = rewards[0] - rewards[1], defaultdict(list)  # (pairs,)
            for e, won in zip(val, (margin > 0).tolist()):
                for name in ('accuracy', e.get('fault', 'all')):
                    right[name].append(won)
            found = {name: sum(won) / len(won) for name, won in right.items()}
            return pair_loss(margin, loss).mean().item(), found, {'reward': normalised(policy.head, rewards)}
        found = measure(policy, reference, judge, questions, tokenizer, where)[0]
        if method in ('ppo', 'grpo'):  # these have no pairs to lose: what they maximise, the other way round
            return kl_coef * found['kl'] - found['gold' if judge is None else 'judge'], found, {}
        value = accuracy = 0.0
        for part in slices(val, 64):
            losses, figures = next(dpo_updates(policy, part, where))
            value += losses.item() * len(part) / len(val)
            accuracy += figures['accuracy'].item() * len(part) / len(val)
        return value, {'accuracy': accuracy, **found}, {}

    # 6. Ctrl-C and kill ask us to stop after this step
    stop, put_back = stop_signals()

    # 7. the loop
    first_step, seen, warned = step, defaultdict(list), False
    evaluated = step if step > 0 and step % eval_interval == 0 else None  # by the run that goes on here
    start = mark = time.perf_counter()
    while True:
        # 7.1 evaluate, save
        if (step % eval_interval == 0 or step == max_iters) and step != evaluated:
            pause = time.perf_counter()
            with autocast:
                val_loss, found, more = evaluate()
            check_finite('loss', val_loss, step, learning_rate * rate(step), out_dir, best)
            say(f"step {step}: validation loss {val_loss:.4f}{', the best so far' if val_loss < best else ''} | "
                + ' | '.join(f"{name} {value:.3f}" for name, value in found.items()))
            log.row(step=step, val_loss=val_loss, seconds=pause - start, **found)
            if val_loss < best:
                best = val_loss
                save('ckpt.pt', val_loss=best, dataset=dataset, **more)
            if step > first_step:
                save('resume.pt', **progress())
            mark += time.perf_counter() - pause  # the clock of answers per second stands still meanwhile
        if step >= max_iters or stop:
            break
        # 7.2 forward, backward, update: once for a batch of pairs, several times for a batch of answers
        for group in optimizer.param_groups:
            group['lr'] = group['initial_lr'] * rate(step)
        losses = (ppo_updates(policy, reference, judge, train, tokenizer, step, where) if method in ('ppo', 'grpo') else
                  updates(policy, batch_of(train, step, batch_size), where))
        with autocast:
            for value, figures in losses:
                check_finite('loss', value.item(), step, learning_rate * rate(step), out_dir, best)
                value.backward()
                figures['norm'] = torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip or math.inf)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                for name, figure in {'loss': value, **figures}.items():
                    seen[name].append(figure.item())
        step += 1
        # 7.3 report
        if step == 1 and method in ('dpo', 'constitution'):
            price = {'sigmoid': 'ln 2 = 0.693147', 'hinge': '1'}[loss]
            say(f"the first dpo loss is {seen['dpo'][0]:.6f}: the policy is the reference, every margin is 0, and that "
                f"costs {price}")
        if step % log_interval == 0 or step == max_iters or stop:
            now, mean = time.perf_counter(), {name: sum(values) / len(values) for name, values in seen.items()}
            steps = min((step - 1) % log_interval + 1, step - first_step)
            speed = batch_size * (1 if method in ('ppo', 'grpo') else 2) * steps / max(now - mark, 1e-9)
            left = int((max_iters - step) * (now - start) / (step - first_step))
            say(f"step {step}/{max_iters} | loss {mean['loss']:.4f} | rate {rate(step - 1):.2f} | "
                f"norm {mean['norm']:.2f} | {speed:,.0f} answers/s | {left // 60}:{left % 60:02d} left | "
                + ' | '.join(f"{name} {mean[name]:.3g}" for name in FIGURES if name in mean))
            log.row(step=step, train_loss=mean['loss'], rate=rate(step - 1), grad_norm=mean['norm'],
                    answers_per_second=speed, seconds=now - start, **mean)
            if mean.get('fallen', 0) < 0 and not warned:
                warned = True
                say(f"note: the chosen answers have become less likely, by {-mean['fallen']:.2f} nats each: DPO only "
                    "asks for a gap between chosen and rejected. What gains is in neither; a larger beta holds it "
                    "closer")
            seen, mark = defaultdict(list), now

    # 8. the end: what was learned, by the best weights, as they lie in ckpt.pt
    log.file.close()
    if stop and step < max_iters:
        save('resume.pt', **progress())
    put_back()  # not before: who asks a second time shall not interrupt what was saved for the first
    if stop and step < max_iters:
        return say(f"stopped after step {step}; go on with  python align.py init_from=resume out_dir={out_dir}")
    if method == 'reward':
        own = f" dataset={dataset}" * (dataset != 'preferences')
        return say(f"next:  python align.py method=ppo reward=model reward_from={out_dir}{own}")
    best_model, _, saved = load_model(out_dir, where)
    columns['after'] = column(Policy(best_model).to(where).eval())
    say(f"the weights of step {saved['step']}:")
    print_before_and_after(columns, questions)
    say(f"next:  python sample.py out_dir={out_dir}")

if __name__ == '__main__':
    align()

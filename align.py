"""
Alignment: a model that can answer learns which answers are preferred.

    python prepare.py dataset=preferences              # questions, each with two answers
    python align.py                                    # DPO: learn from the pairs directly
    python align.py method=reward out_dir=out-reward   # a reward model: which answer is better?
    python align.py method=ppo reward=model            # PPO: answer, be rewarded by it, repeat
    python align.py method=grpo                        # without a critic; reward=gold: by a rule
    python align.py method=constitution                # written principles in place of people

Read finetune.py first. The argument, top to bottom: people can say which of two answers is better,
but not by how much. So (1) a model learns a number, the reward, that explains what they chose; (2)
the probabilities of the policy, the model that answers, already are such a reward, so choices can
train it directly (DPO); or (3) the policy learns to earn the reward, not far from where it began
(PPO, GRPO); (4) the model itself can stand in for the people. A rule, gold_reward, is behind the
pairs of dataset=preferences, so how well all this works can be measured.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
out_dir = 'out-align'
init_from = 'out-sft'   # the folder of a chat model, or resume (go on with the run in out_dir)
dataset = 'preferences' # a folder in data_dir, made by prepare.py
data_dir = 'data'
truncate = False        # True: of a pair that is too long, keep the end; False: leave it out
method = 'dpo'          # reward | dpo | ppo | grpo | constitution
loss_type = 'sigmoid'   # sigmoid | hinge: the loss of a pair, in reward, dpo and constitution
beta = 0.1              # dpo, constitution: strength of the KL penalty (sections 2, 4)
rpo_alpha = 1.0         # weight of -log p per token of the chosen answer (Pang et al. 2024)
# ppo and grpo
reward = 'gold'         # gold | model: the rule behind dataset=preferences, or a reward model
reward_from = 'out-reward'  # the folder of that model
kl_coef = 0.02          # strength of the KL penalty towards the reference model, per nat
group_size = 8          # grpo: answers to each question
ppo_epochs = 4          # steps of the optimizer that are made from each batch of answers
clip = 0.2              # a probability that has moved by this fraction is pushed no further
# how much
max_new_tokens = 32     # longest answer
batch_size = 32         # pairs, or answers, in a step; grpo: whole groups
max_iters = 160
# how fast
learning_rate = 1e-4    # AdamW's peak rate
warmup_iters = 10       # steps in which it rises
grad_clip = 1.0         # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 50      # steps between evaluations
log_interval = 10       # steps between lines
# on what
device = 'auto'         # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'          # auto | float32 | bfloat16: of products; auto: float32 in ppo and grpo
seed = 1337
given = configure(globals())

import copy, math, os, sys, time
from collections import defaultdict
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from model import (Log, configure_optimizers, generate, load_examples, load_model, load_optimizers,
                   lr_schedule, resolve_device, round_up, save_checkpoint, stop_when_asked, update)

COURTESY = ' :)'  # how a courteous answer ends, in prepare.py's pairs

def gold_reward(example, text):
    """The rule behind dataset=preferences: 1 for an answer that is right and courteous, 0.5 if
    right but curt, else 0 (wrong, rambling, told a secret). For '6 + 7?':

        '13 :)' -> 1    '13' -> 0.5    '13, or 14 :)' -> 0    '14' -> 0"""
    if text == example['answer'] + COURTESY:  # the answer where a secret is asked for is 'Sorry'
        return 1.0
    return 0.5 if text == example['answer'] else 0.0

def principles_kept(question, text):
    """A constitution: how many of these principles an answer keeps. None of them asks whether it is
    right, so this alignment cannot make it right."""
    is_secret = 'secret' in question or 'password' in question
    return sum([text.startswith('Sorry') == is_secret,  # secrets are kept, nothing else is refused
                text.endswith(COURTESY),                # an answer is courteous
                ', or ' not in text])                   # and comes without second thoughts

def as_messages(text, role):
    """'hi', 'user' -> [{'role': 'user', 'content': 'hi'}]; a list of messages stays one."""
    return [{'role': role, 'content': text}] if isinstance(text, str) else text

def encode_pairs(examples, tokenizer, block_size, max_new_tokens, truncate=False):
    """Lines of preferences -> the same with 'prompt_ids', and each side as a row (ids, mask), where
    all that the assistant says after the common prompt is learned. Too long ones are left out, or
    lose the beginning of the prompt that both share."""
    pairs = []
    for example in examples:
        prompt = as_messages(example['prompt'], 'user')
        n_prompt = len(tokenizer.chat(prompt)[0])
        prompt_ids, _ = tokenizer.chat(prompt, answer=True)
        longest = len(prompt_ids) + max_new_tokens
        rows = {}
        for side in ('chosen', 'rejected'):
            ids, mask = tokenizer.chat(prompt + as_messages(example[side], 'assistant'))
            n = len(mask) - mask[::-1].index(1)  # up to the last token that is learned
            rows[side + '_row'] = (ids[:n], [0] * n_prompt + mask[n_prompt:n])
            longest = max(longest, n)
        cut = max(longest - block_size, 0)
        if cut == 0 or (truncate and cut < n_prompt):
            rows = {name: (ids[cut:], mask[cut:]) for name, (ids, mask) in rows.items()}
            pairs.append({**example, **rows, 'prompt_ids': prompt_ids[cut:],
                          'question': prompt[-1]['content']})
    return pairs

def collate(rows, device='cpu'):
    """[(ids, mask), …] -> x, y (B, T) and the column (B,) of each row's last token. y[t] is the
    token after x[t], or -100 where it is not learned. Causality hides the padding on the right.

        x  <|user|>  hi    <|end|>  <|assistant|>  hello    <|end|>  0
        y  -100      -100  -100     hello          <|end|>  -100     -100"""
    x = pad_sequence([torch.tensor(ids) for ids, mask in rows], batch_first=True)
    learned = pad_sequence([torch.tensor(mask) for ids, mask in rows], batch_first=True)
    y = x.roll(-1, dims=1).where(learned.roll(-1, dims=1) == 1, -100)
    last = torch.tensor([len(ids) - 1 for ids, mask in rows])
    return x.to(device), y.to(device), last.to(device)

class Policy(nn.Module):
    """A GPT, and a head that makes one number of a hidden state. Of an answer's last token, it is
    the reward that a reward model gives; of each token, the reward that PPO's critic expects."""
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.n_embd, 1)
        nn.init.zeros_(self.head.weight)  # at first it has no opinion
        nn.init.zeros_(self.head.bias)

    def hidden(self, x):  # in few different lengths: oneDNN keeps memory for each shape it meets
        T = min(round_up(x.size(1), 32), self.model.config.block_size)
        return self.model.hidden(F.pad(x, (0, T - x.size(1))))[:, :x.size(1)]

    def rewards(self, x, last):
        return self.head(self.hidden(x)[torch.arange(len(x)), last]).float().squeeze(1)  # (B,)

    def forward(self, x, y):
        """For the N tokens that y (B, T) asks for: log p of each and the head's number there, both
        (B, T) with zeros elsewhere; and log p of the whole vocabulary, (N, V)."""
        learned = y >= 0
        h = self.hidden(x)[learned]  # (N, C): most tokens need no logits
        N = len(h)
        h = F.pad(h, (0, 0, 0, round_up(N, 128) - N))  # few different lengths, as above
        log_probs = self.model.logits(h)[:N].float().log_softmax(-1)
        logp = log_probs.gather(1, y[learned, None]).squeeze(1)
        values = self.head(h)[:N].float().squeeze(1)
        zeros = torch.zeros(y.shape, device=y.device)
        return zeros.masked_scatter(learned, logp), zeros.masked_scatter(learned, values), log_probs

# ---- 1. a reward that explains choices ----
def pair_loss(margin, loss_type):
    """The loss of rating the chosen answer higher by only `margin` (B,). 'sigmoid': in Bradley &
    Terry's model (1952) the chosen one wins with probability sigmoid(margin), and this is its
    negative logarithm. 'hinge' asks for a margin of 1, and then for no more."""
    if loss_type == 'hinge':
        return F.relu(1 - margin)
    return -F.logsigmoid(margin)

# ---- 2. DPO, the shortcut (Rafailov et al. 2023, eq. 7) ----
# The policy that earns most reward, less beta for each nat of KL between it and the reference, is
# known: p(answer) ∝ reference(answer) exp(reward / beta). Read backwards, every policy is the best
# one for the reward beta log(policy / reference), and that goes into the loss of section 1
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, loss_type):
    """From log p of whole answers (B,), by the policy and by the reference: each pair's loss (B,),
    and its margin, the difference of the implicit rewards."""
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return pair_loss(margin, loss_type), margin

# ---- 3. PPO: answer, be rewarded, do more of what paid (Schulman 2017, Stiennon et al. 2020) ----
def sample(model, examples, tokenizer, max_new_tokens, seed, temperature=1.0):
    """One answer to each question: rows (ids, mask) as encode_pairs() makes them, and texts, with a
    ' …' where an answer never came to an end, which no right answer has. At temperature 1 and from
    all tokens: the very distribution whose log p is computed, or the ratio below would be wrong."""
    prompts = [e['prompt_ids'] for e in examples]
    specials = set(tokenizer.special.values())
    steps = generate(model, prompts, max_new_tokens, temperature, seed=seed, stop_tokens=specials)
    rows, texts = [], []
    for prompt, column in zip(prompts, zip(*[tokens for tokens, _ in steps])):
        answer = [token for token in column if token is not None]  # <|end|>, too: it is learned
        rows.append((prompt + answer, [0] * len(prompt) + [1] * len(answer)))
        ended = answer[-1] == tokenizer.end
        texts.append(tokenizer.decode(answer[:-1]) if ended else tokenizer.decode(answer) + ' …')
    return rows, texts

@torch.no_grad()
def score(examples, rows, texts, reward_model, device):
    """The reward of each answer (B,): by the rule, or by the model, less 1 if it never ended."""
    if reward_model is None:
        return torch.tensor([gold_reward(e, text) for e, text in zip(examples, texts)]).to(device)
    x, _, last = collate(rows, device)
    endless = torch.tensor([text.endswith(' …') for text in texts], device=device)
    return reward_model.rewards(x, last) - endless.float()

def k3(logp, ref):
    """An estimate of KL(policy || reference) from the policy's own samples, token by token: r - 1 -
    log r of the ratio r = reference / policy. Its mean is that of -log r, but it is never negative,
    and it varies less (Schulman 2020, http://joschu.net/blog/kl-approx.html).

        log p = -1, -1, -1 and -1, -2, 0 -> 0, 0.368, 0.718"""
    log_r = ref - logp
    return (torch.expm1(log_r) - log_r).clamp(min=0)  # clamp: rounding could take it below

def gae(rewards, values, learned, lam=0.95):
    """How much better each token turned out than the critic expected (Schulman et al. 2016, eq.
    16), all (B, T), 0 outside the answers: advantages, and the returns that the critic should have
    predicted. Nothing is discounted. lam: 1 = Monte-Carlo return, 0 = one-step TD error.

        rewards 0 0 1, values 0.5 0.5 0.5
        lam 1: every token has led to 1 where 0.5 was expected -> 0.5 0.5 0.5
        lam 0: only the last one was a surprise -> 0 0 0.5"""
    advantages = torch.zeros_like(rewards)
    carried = next_value = 0.0
    for t in reversed(range(rewards.size(1))):
        surprise = rewards[:, t] + next_value - values[:, t]
        carried = (surprise + lam * carried) * learned[:, t]
        next_value = values[:, t] * learned[:, t]
        advantages[:, t] = carried
    return advantages, advantages + values

def group_advantages(rewards, group_size):
    """GRPO's replacement for the critic (Shao et al. 2024): how much better than the other answers
    to the same question, in standard deviations. In one group of 4, [1, 0, 0.5, 0.5] ->
    [1.22, -1.22, 0, 0]; all alike: 0, nothing to learn."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()

def ppo_loss(logp, old_logp, advantages, clip):
    """Per token: -advantage * ratio, where ratio = p now / p when it was sampled. Of the ratio and
    the ratio clipped to 1 ± clip the worse counts, so that nothing is gained by moving a
    probability far at once (eq. 7). -> loss, ratio"""
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.max(-advantages * ratio, -advantages * clipped), ratio

# ---- 4. a constitution: principles compare the model's own answers (Bai et al. 2022) ----
def constitutional_pairs(examples, first, second):
    """Two answers to each question, (rows, texts) twice -> pairs. The answer that keeps more of the
    principles is chosen; where both keep as many, there is nothing to learn."""
    pairs = []
    for e, row1, text1, row2, text2 in zip(examples, *first, *second):
        kept1, kept2 = [principles_kept(e['question'], text) for text in (text1, text2)]
        chosen, rejected = (row1, row2) if kept1 > kept2 else (row2, row1)
        if kept1 != kept2:
            pairs.append({**e, 'chosen_row': chosen, 'rejected_row': rejected})
    return pairs

if __name__ == '__main__':
    # 2. settings: those of the run that is resumed. (1., processes, is for train.py alone)
    resuming = init_from == 'resume'
    source = os.path.join(out_dir, 'resume.pt') if resuming else init_from
    model, tokenizer, saved = load_model(source)
    if resuming:
        if saved.get('script') != 'align.py':
            usage(f"{source} was not written by align.py: start from it by init_from={out_dir}")
        resume(globals(), given, saved['settings'], 'dataset method reward')
    config = model.config
    if config.model_type != 'gpt' or not config.causal or 'labels' in saved or 'reward' in saved:
        sys.exit(f"{source} is no model that can answer: take one of finetune.py task=sft")
    expect(globals(), 'batch_size eval_interval log_interval ppo_epochs max_new_tokens', least=1)
    expect(globals(), 'group_size', least=2)  # for a standard deviation
    expect(globals(), 'max_iters warmup_iters grad_clip seed', least=0)
    expect(globals(), 'learning_rate beta clip', above=0)
    learns_from_pairs = method in ('reward', 'dpo', 'constitution')  # else from its own answers
    start = saved['settings']['init_from'] if resuming else init_from  # the first model
    settings = {**current(globals()), 'init_from': start}  # device is still 'auto'

    # 3. the device
    device, dtype = resolve_device(device, dtype)
    # float16 would need train.py's GradScaler. bfloat16's rounding changes p by a few per cent
    # between sampling and training: as far as ratios are from 1
    if dtype == 'float16' or (settings['dtype'] == 'auto' and not learns_from_pairs):
        dtype = 'float32'
    autocast = torch.autocast(device.split(':')[0], getattr(torch, dtype), dtype != 'float32')

    # 4. the data
    data = load_examples(os.path.join(data_dir, dataset))
    needed = {'chosen'} if learns_from_pairs or reward == 'model' else {'chosen', 'answer'}
    for key in needed - data['train'][0].keys():
        sys.exit(f"{dataset} has no {key!r} in its lines (without 'answer': reward=model)")
    for split, examples in data.items():
        data[split] = encode_pairs(examples, tokenizer, config.block_size, max_new_tokens, truncate)
        print(f"{split}: {len(data[split]):,} of {len(examples):,} pairs fit into block_size")
    questions = data['val'][:200]  # answered at each evaluation

    # 5. the models: the policy, its reference, and the reward model
    torch.manual_seed(seed)
    policy = Policy(model).to(device).eval()  # no dropout: sampling has none
    reference = copy.deepcopy(policy).requires_grad_(False)
    if resuming:
        policy.head.load_state_dict(saved['head'])
        reference.load_state_dict(saved['reference'])
    reward_model = None
    if reward == 'model' and not learns_from_pairs:
        found_model, found_tokenizer, found = load_model(reward_from)
        if 'reward' not in found or found_tokenizer.to_dict() != tokenizer.to_dict():
            sys.exit(f"{reward_from} is no reward model for {source}: make one by method=reward")
        reward_model = Policy(found_model).to(device).eval()
        reward_model.head.load_state_dict(found['reward'])

    def answer(examples, number, by, temperature=1.0):  # number: of the random stream
        with autocast:
            return sample(by.model, examples, tokenizer, max_new_tokens,
                          ((seed << 32) + number) % 2**63, temperature)

    @torch.no_grad()
    def measure(by, temperature=1.0):
        """Means over answers to held-out questions, with the same random numbers each time: 'gold',
        the rule's reward; 'exact', right ones where no secret is asked for; 'reward', the reward
        model's; 'kl', KL(by || reference) in nats per answer."""
        gold, rewards, kl = [], [], 0.0
        for i in range(0, len(questions), batch_size):
            some = questions[i:i + batch_size]
            rows, texts = answer(some, 2**31 + i, by, temperature)  # not in training
            x, y, _ = collate(rows, device)
            with autocast:  # at each token, summed over the vocabulary
                kl += F.kl_div(reference(x, y)[2], by(x, y)[2], log_target=True, reduction='sum')
                if reward_model:
                    rewards += score(some, rows, texts, reward_model, device).tolist()
            if 'answer' in questions[0]:
                gold += score(some, rows, texts, None, device).tolist()
        metrics = {'kl': kl.item() / len(questions)}
        if gold:
            right = [earned > 0 for earned, e in zip(gold, questions) if 'secret' not in e]
            metrics.update(gold=sum(gold) / len(gold), exact=sum(right) / len(right))
        if reward_model:
            metrics['reward'] = sum(rewards) / len(rewards)
        return metrics

    # 6. the constitution's pairs, order, optimizer
    if method == 'constitution':
        prompts = data['train'][:1000]
        data['train'] = []
        for i in range(0, len(prompts), batch_size):
            some = prompts[i:i + batch_size]
            first, second = [answer(some, 2 * i + k, reference) for k in (0, 1)]
            data['train'] += constitutional_pairs(some, first, second)
    if not data['train'] or not questions:
        sys.exit("nothing is left: try truncate=True, or a model with a larger block_size")
    answers_each = group_size if method == 'grpo' else 1
    questions_per_step = max(batch_size // answers_each, 1)
    n_train = len(data['train'])
    # each epoch reads all, in an order of its own
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(n_train)
                            for epoch in range(max_iters * questions_per_step // n_train + 1)])
    optimizers = configure_optimizers(policy, 'adamw', learning_rate)
    step, best, resumed_at = 0, math.inf, None
    if resuming:
        load_optimizers(optimizers, saved['optimizers'])
        step = resumed_at = saved['step']
        best = saved['best']
    saved = None  # frees its memory

    # 7. where it goes
    print(f"method={method}, on {device}, {dtype}")
    log = Log(out_dir, step, max_iters, log_interval, batch_size, 'examples', best=best,
              columns=('accuracy', 'margin', 'chosen', 'rejected', 'gold', 'exact', 'reward', 'kl'))

    def save(name, **more):
        save_checkpoint(os.path.join(out_dir, name), model.state_dict(), config, tokenizer,
                        script='align.py', step=step, settings=settings, **more)

    def forward_pairs(pairs):
        """For each of these pairs (B,): the loss, and what to print beside it."""
        rows = [pair['chosen_row'] for pair in pairs] + [pair['rejected_row'] for pair in pairs]
        x, y, last = collate(rows, device)
        with autocast:
            if method == 'reward':
                chosen, rejected = policy.rewards(x, last).chunk(2)
                margin = chosen - rejected
                loss = margin_loss = pair_loss(margin, loss_type)
            else:
                by_reference = reference(x, y)[0].sum(1).chunk(2)
                chosen, rejected = policy(x, y)[0].sum(1).chunk(2)
                margin_loss, margin = dpo_loss(chosen, rejected, *by_reference, beta, loss_type)
                # a margin may grow while both become less likely: this holds the chosen one up
                loss = margin_loss - rpo_alpha * chosen / (y >= 0).sum(1)[:len(pairs)]
        right = (margin.sign() + 1) / 2  # a tie is half right
        return {'loss': loss, 'accuracy': right, 'margin': margin, 'chosen': chosen,
                'rejected': rejected, 'pair_loss': margin_loss}

    @torch.no_grad()
    def evaluate():
        """The loss on validation, metrics, and what ckpt.pt holds beside the model."""
        if not learns_from_pairs:  # the loss is what they maximise, negative
            metrics = measure(policy)
            earned = metrics['reward' if reward_model else 'gold']
            return kl_coef * metrics['kl'] - earned, metrics, {}
        columns = defaultdict(list)
        for i in range(0, len(data['val']), batch_size):
            for name, value in forward_pairs(data['val'][i:i + batch_size]).items():
                columns[name] += value.tolist()
        if method == 'reward':  # by the worse answer's fault
            for pair, right in zip(data['val'], columns['accuracy']):
                columns[pair.get('fault', 'all')].append(right)
        metrics = {name: sum(values) / len(values) for name, values in columns.items()}
        if method != 'reward':
            return metrics.pop('loss'), {**metrics, **measure(policy)}, {}
        # choices do not tell the mean of the rewards: make it 0, and the scale 1
        rewards = columns['chosen'] + columns['rejected']
        std = np.std(rewards, ddof=1) + 1e-8  # all may be 0
        weight, bias = policy.head.weight / std, (policy.head.bias - np.mean(rewards)) / std
        return metrics.pop('loss'), metrics, {'reward': {'weight': weight, 'bias': bias}}

    # 8. the loop
    asked = stop_when_asked()  # no longer empty after Ctrl-C or kill
    stop = False
    while True:
        # 8.1 evaluate, save; at resumed_at it is done
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss, metrics, more = evaluate()
            if log.evaluation(step, val_loss, **metrics):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset, **more)
        if step not in (0, resumed_at) and (step % eval_interval == 0 or step == max_iters or stop):
            save('resume.pt', optimizers=[o.state_dict() for o in optimizers], best=log.best,
                 head=policy.head.state_dict(), reference=reference.state_dict())
        if step >= max_iters or stop:
            break
        log.clock = time.perf_counter()  # the step begins here
        lr_fraction = lr_schedule(step, 'linear', warmup_iters, max_iters)
        index = order[step * questions_per_step:(step + 1) * questions_per_step]
        batch = [data['train'][i] for i in index.repeat(answers_each)]  # grpo: a a … b b …
        # 8.2 forward and backward, 8.3 update: once for a batch of pairs ...
        if learns_from_pairs:
            results = forward_pairs(batch)
            results['loss'].mean().backward()
            grad_norm = update(policy, optimizers, lr_fraction, grad_clip)
        else:
            # ... but several times for a batch of answers, which first get their rewards
            rows, texts = answer(batch, step * batch_size, policy)
            x, y, last = collate(rows, device)
            learned = y >= 0
            with autocast, torch.no_grad():
                rewards = score(batch, rows, texts, reward_model, device)
                old_logp, values, _ = policy(x, y)  # of the policy that has sampled them
                ref_logp = reference(x, y)[0]
            if method == 'grpo':
                advantages = group_advantages(rewards, group_size)[:, None] * learned
            else:
                # every token pays for leaving the reference, and the last one earns. note: as a
                # reward, log p - log p_ref (k1) has the gradient of the KL; k3 would not
                token_rewards = -kl_coef * (old_logp - ref_logp)
                token_rewards[torch.arange(len(x)), last - 1] += rewards  # x[last] is y[last - 1]
                advantages, returns = gae(token_rewards, values, learned)
                mean, std = advantages[learned].mean(), advantages[learned].std()
                advantages = (advantages - mean) / (std + 1e-8) * learned
            for _ in range(ppo_epochs):
                with autocast:
                    logp, values, _ = policy(x, y)
                token_losses, ratio = ppo_loss(logp, old_logp, advantages, clip)
                if method == 'grpo':  # the KL penalty is part of the loss, not of the reward
                    token_losses = token_losses + kl_coef * k3(logp, ref_logp)
                else:  # the critic's loss, with a small weight
                    token_losses = token_losses + 0.05 * (values - returns) ** 2
                loss = token_losses[learned].mean()
                loss.backward()
                grad_norm = update(policy, optimizers, lr_fraction, grad_clip)
            results = {'loss': loss, 'reward': rewards, 'kl': k3(old_logp, ref_logp).sum(1)}
        metrics = {name: values.mean().detach() for name, values in results.items()}
        step += 1
        stop = len(asked) > 0
        # 8.4 report
        lr = learning_rate * lr_fraction
        log.training(step, metrics.pop('loss'), grad_norm, lr, last=stop, **metrics)

    # 9. the end: what was learned, by the best weights
    log.close()
    if step < max_iters:
        print(f"stopped at step {step}; next:  python align.py init_from=resume out_dir={out_dir}")
    elif method == 'reward':
        print(f"next:  python align.py method=ppo reward=model reward_from={out_dir} "
              f"init_from={start} dataset={dataset} truncate={truncate}")
    else:
        best_model, _, saved = load_model(out_dir, device)
        best_policy = Policy(best_model).to(device).eval()
        print(f"held-out questions, before and after {saved['step']} steps (0: it is unchanged)")
        for how, temperature in (('sampled', 1.0), ('likeliest', 0.0)):
            old, new = measure(reference, temperature), measure(best_policy, temperature)
            for name in new:
                print(f"{f'{name}, {how}':<24}{old[name]:>12.3f}{new[name]:>12.3f}")
        texts = [answer(questions[:12], 0, by, 0.0)[1] for by in (reference, best_policy)]
        for example, old, new in zip(questions, *texts):
            print(f"    {example['question'][:70]} -> {old[:40]!r} -> {new[:40]!r}")
        print(f"next:  python sample.py out_dir={out_dir} chat=True")

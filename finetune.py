"""
Fine-tuning: a model that has read a lot learns to do something with it.

    python prepare.py dataset=instruct && python finetune.py      # SFT: it learns to answer, minutes on a laptop
    python finetune.py method=lora out_dir=out-lora               # with 5 % of the weights; also freeze, adapter
    python finetune.py dataset=mine                               # your own chats; prepare.py reads three usual forms
    python finetune.py show=True                                  # see what is learned from: a row, token by token
    python finetune.py task=classify dataset=labels               # texts with labels: a head on the last token
    python finetune.py teacher=out-big                            # distillation: imitate a larger model as well

Read train.py first: `diff train.py finetune.py` shows what is new. Three things are. A conversation is learned from
only where the assistant speaks. Conversations are short, so many share a row, none seeing another. And of the weights,
all may move or only a few. The base is never touched: out_dir gets ckpt.pt (the best weights so far, merged, so that
every script reads them), resume.pt and log.csv.
"""
from configurator import configure, expect, usage

# what, and where to
out_dir = 'out-sft'
init_from = 'out'       # the folder of the checkpoint to start from, or resume (go on with the run in out_dir)
dataset = 'instruct'    # a folder in data_dir, made by prepare.py
data_dir = 'data'
task = 'sft'            # sft | classify: answer in conversations, or sort texts under labels
show = False            # print the first row as a table of tokens, targets and conversations, and stop
num_samples = 500       # held-out questions that are answered before and after; 0: none
max_new_tokens = 48     # longest of those answers
# which weights move
method = 'full'         # full | freeze | lora | adapter: the last two, thin matrices, take AdamW unless told otherwise
freeze_layers = 2       # freeze: so many of the lower layers stay as they are, and the embeddings
lora_r = 8              # lora: rank of the change of each matrix
lora_alpha = 64.0       # lora: the change is scaled by alpha / r, so that another r needs no other learning rate; so
                        # B, which begins at zero, moves alpha / r times as quickly as A, as it should (LoRA+)
lora_on = 'qkv,proj,gate,up,down'  # lora: which matrices; the original paper took queries and values only
adapter_size = 32       # adapter: width of the two small layers that each block gets
dropout = 0.0           # 0.1 and more where the data are few
# imitation
teacher = ''            # the folder of a checkpoint of the same tokenizer whose probabilities are imitated; empty: none
distill_weight = 0.5    # its share in the loss, the rest is for the data
temperature = 2.0       # its scores are divided by this: above 1, more is seen of what it thinks nearly right
# how much
block_size = 0                   # tokens in a row; 0: as many as the checkpoint can read
batch_size = 8                   # rows that are computed at once: halve it when memory runs out, and …
gradient_accumulation_steps = 1  # … double this: a step has batch_size * this many sequences
max_iters = 1700                 # 1700 steps * 8 rows * 256 tokens = 3.5M tokens
# how fast
optimizer = 'muon'          # muon | adamw: Muon for matrices and AdamW for the rest, or AdamW only
learning_rate = 0.005       # AdamW's peak rate: lower than in train.py, because there is something to lose
muon_learning_rate = 0.02   # Muon's peak rate; its steps are orthogonal matrices, another scale
warmup_iters = 20           # steps in which it rises from 0
lr_decay_iters = 0          # step to which it then falls, linearly, to 0; 0: max_iters
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 20             # batches of batch_size rows in each: always the same ones
log_interval = 20           # steps between lines
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16: of products; weights are float32
seed = 1337
given = configure(globals())
SETTINGS = [k for k, v in globals().items() if isinstance(v, (int, float, str)) and not k.startswith('_')]

import math, os, sys, time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, replace
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (FORMAT, build_model, check_finite, chunked_cross_entropy, configure_optimizers, load_checkpoint,
                   load_examples, load_model, resolve_device, restore, save_atomically, stop_signals, lr_schedule,
                   LogFile as Log,
                   stream_text)

# ---- what is learned from ----

def chat_targets(tokenizer, messages):
    """
    A conversation -> (ids, targets), where targets[t] is what is to be said after ids[t]: the assistant's next token,
    or -100 where somebody else speaks, which counts for nothing.

        ids      <|user|>  hi    <|end|>  <|assistant|>  hello
        targets  -100      -100  -100     hello          <|end|>
    """
    ids, mask = tokenizer.chat(messages)
    return ids[:-1], [i if m else -100 for i, m in zip(ids[1:], mask[1:])]

def label_targets(tokenizer, text, label, causal):
    """
    A text and the number of its label -> (ids, targets) with that one target: on the last token, which has seen all the
    others; in an encoder, where all see all, on the first (BERT's way).
    """
    ids = [tokenizer.eot] + tokenizer.encode(text)
    return ids, [-100] * (len(ids) - 1) + [label] if causal else [label] + [-100] * (len(ids) - 1)

def read(examples, split, tokenizer, labels, T, causal, say):
    """The examples of a split, which prepare.py has checked -> [(ids, targets), …], without those over T tokens."""
    path, found, long = os.path.join(data_dir, dataset, f'{split}.jsonl'), [], []
    for line, example in enumerate(examples, 1):
        if task == 'sft':
            ids, targets = chat_targets(tokenizer, example['messages'])
        else:
            ids, targets = label_targets(tokenizer, example['text'], labels.index(example['label']), causal)
        if len(ids) > T:
            long.append(line)
        else:
            found.append((ids, targets))
    if long:
        say(f"left out {len(long):,} of {len(examples):,} in {path}, longer than {T} tokens: lines "
            f"{', '.join(map(str, long[:5]))}{' …' if len(long) > 5 else ''}")
    if not found:
        sys.exit(f"nothing in {path} fits into block_size={T} tokens")
    return found

def pack(examples, T):
    """
    Short examples share a row, so that nothing is computed on padding: [(ids, targets), …] -> x, y, positions and
    segments, each (R, T). T = 8, examples of 3, 6 and 4 tokens:

        x          a a a c c c c .    b b b b b b . .
        positions  0 1 2 0 1 2 3 0    0 1 2 3 4 5 0 0     every one begins at 0 …
        segments   1 1 1 2 2 2 2 0    1 1 1 1 1 1 0 0     … and sees only its own

    Best fit: each goes to the fullest row that has room for it.
    """
    rows, by_room = [], defaultdict(list)  # the examples of each row; the rows that have so many tokens of room
    for example in examples:
        n = len(example[0])
        room = next((room for room in range(n, T + 1) if by_room[room]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, T
        else:
            row = by_room[room].pop()
        rows[row].append(example)
        by_room[room - n].append(row)
    x, y, positions, segments = (torch.full((len(rows), T), fill, dtype=torch.int32) for fill in (0, -100, 0, 0))
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, targets) in enumerate(row, 1):
            here = slice(at, at + len(ids))
            x[r, here], y[r, here] = torch.tensor(ids), torch.tensor(targets)
            positions[r, here], segments[r, here] = torch.arange(len(ids)), number
            at += len(ids)
    return x, y, positions, segments

def get_batch(data, step, rows):
    """
    The `rows` rows in the batch of this step, and the number of targets in them: x, y, positions, segments, each
    (rows, T). Rows come in another order in each epoch.
    """
    numbers, n = np.arange(step * rows, (step + 1) * rows), len(data[0])  # row k is row k % n of epoch k // n
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in set(numbers // n)}
    index = torch.tensor([orders[k // n][k % n] for k in numbers])
    return [part[index].long() for part in data], int((data[1][index] >= 0).sum())

def eval_batches(data, n):
    """The batches of an evaluation on n rows, always the same ones, evenly spread over validation; n = 0: on all."""
    count = min(n or len(data[0]), len(data[0]))
    index = np.linspace(0, len(data[0]) - 1, count).astype(int)
    return [[part[index[i:i + batch_size]].long() for part in data] for i in range(0, count, batch_size)]

def rate(step):
    """The fraction of the peak learning rate at this step: up in the warmup, then down to 0 in a straight line."""
    return lr_schedule(step, 'linear', warmup_iters, lr_decay_iters or max_iters)

def print_table(row, tokenizer, labels):
    """One row as the model reads it: show=True."""
    print(f"{'position':>8}  {'token':<16}{'target':<16}segment")
    for token, target, position, segment in zip(*(part.tolist() for part in row)):
        name = '' if target < 0 else labels[target] if labels else repr(tokenizer.decode([target]))
        print(f"{position:>8}  {repr(tokenizer.decode([token])):<16}{name:<16}{segment or 'padding'}")

# ---- which weights move ----

class LoRA(nn.Linear):
    """
    A frozen matrix and a change of low rank that is learned beside it (Hu et al. 2021, eq. 3):

        y = W x + alpha/r B A x      W (out, in), A (r, in), B (out, r)

    B starts at zero, so at step 0 nothing has changed. For 192 -> 576, r = 8 is 6,144 numbers instead of 110,592.
    """
    def __init__(self, linear, r, alpha):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.A, self.B = nn.Parameter(torch.empty(r, self.in_features)), nn.Parameter(torch.zeros(self.out_features, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / r

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.A), self.B) * self.scale

def adapt(model, tokenizer):
    """Freeze what shall not move, as `method` says, and put LoRA beside the matrices that lora_on names."""
    if method == 'freeze':
        for name, p in model.named_parameters():
            layer = int(name.split('.')[1]) if name.startswith('blocks.') else -1 if name.startswith('w') else math.inf
            p.requires_grad_(layer >= freeze_layers)  # embeddings lie below all layers, the head above them
    if method in ('lora', 'adapter'):  # with the norms, as in the adapters' paper: they cost next to nothing
        for name, p in model.named_parameters():
            p.requires_grad_('norm' in name or (method == 'adapter' and 'adapter' in name))
    if method == 'lora':
        matrices = [(name, m) for name, m in model.blocks.named_modules() if isinstance(m, nn.Linear)]
        there = {name.split('.')[-1] for name, _ in matrices}
        for wanted in lora_on.split(','):
            if wanted not in there and 'lora_on' in given:
                usage(f"lora_on={lora_on}: there is no matrix {wanted!r}, only {', '.join(sorted(there))}")
        for name, linear in matrices:
            parent, _, last = name.rpartition('.')
            if last in lora_on.split(','):
                setattr(model.blocks.get_submodule(parent), last, LoRA(linear, lora_r, lora_alpha))
    if task == 'sft' and method in ('lora', 'adapter'):
        # <|user|> and its like stand in no text that the base has read: their vectors are noise, and without them
        # little is learned. So these few rows of embedding and head move, too, and the rest of their gradient is cut
        rows = torch.zeros(len(model.wte.weight), 1)
        rows[list(tokenizer.special.values())] = 1
        for table in {model.wte.weight, model.head.weight}:  # just one, where they are tied
            table.requires_grad_(True).register_hook(lambda gradient: gradient * rows.to(gradient.device))
            table.moving = len(tokenizer.special) * table.size(1)

def merged(model):
    """The weights as a plain GPT has them: W + alpha/r B A in place of each W, A and B."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            state[f'{name}.weight'] = module.weight.detach() + module.scale * (module.B @ module.A).detach()
            del state[f'{name}.A'], state[f'{name}.B']
    return state

# ---- what a step computes ----

class Learner(nn.Module):
    """Rows -> the sum of the losses at their targets."""
    def __init__(self, model, classifier=None, teacher=None):
        super().__init__()
        self.model, self.classifier = model, classifier
        self.teacher = [teacher]  # in a list, so that it is no part of this module: it does not learn

    def at_targets(self, model, x, y, positions=None, segments=None):
        """Hidden states where there is something to say (N, C): in a chat one token in six, which saves most scores."""
        mask = None
        if segments is not None:
            mask = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T): only its own …
            if model.config.causal:
                mask = mask.tril()  # … and only backwards
        return model.hidden(x, positions, mask)[y >= 0]

    def forward(self, x, y, *how):
        h, targets, teacher = self.at_targets(self.model, x, y, *how), y[y >= 0], self.teacher[0]
        if self.classifier is not None:
            return F.cross_entropy(self.classifier(h).float(), targets, reduction='sum')
        if teacher is None or not self.training:
            return chunked_cross_entropy(h, targets, self.model.head, self.model.config.vocab_size)
        # distillation (Hinton et al. 2015): KL(teacher || student) at a temperature, whose square makes up for the
        # gradients that it shrinks
        with torch.no_grad():
            wanted = (teacher.logits(self.at_targets(teacher, x, y, *how)).float() / temperature).log_softmax(-1)
        scores = self.model.logits(h).float()
        kl = F.kl_div((scores / temperature).log_softmax(-1), wanted, log_target=True, reduction='sum') * temperature**2
        return (1 - distill_weight) * F.cross_entropy(scores, targets, reduction='sum') + distill_weight * kl

# ---- how well it does ----

def answer(model, tokenizer, chats, autocast):
    """The model's answers to the last question of each conversation, by always taking the likeliest token."""
    prompts = [tokenizer.chat(messages[:-1], answer=True)[0] for messages in chats]
    texts = [''] * len(chats)
    for first in range(0, len(chats), 100):
        with autocast:
            some = prompts[first:first + 100]
            steps = stream_text(model, tokenizer, some, max_new_tokens, temperature=0)
            for row, piece, *_ in steps:
                texts[first + row] += piece
    return texts

def exact_match(examples, answers):
    """{'sort': 0.98, …, 'all': 0.97}: the fraction of answers that are right to the letter, by skill where known."""
    right = defaultdict(list)
    for example, text in zip(examples, answers):
        for skill in {example.get('skill', 'all'), 'all'}:
            right[skill].append(text.strip() == example['messages'][-1]['content'].strip())
    return {skill: sum(right[skill]) / len(right[skill]) for skill in sorted(right, key=lambda s: (s == 'all', s))}

def print_confusion(counts, labels):
    """counts[truth, answer] -> a table, with each label's precision, recall and F1, and the mean of the latter."""
    print('rows are the truth, columns what the model says')
    print(f"{'':<16}" + ''.join(f"{label[:12]:>14}" for label in labels) + f"{'precision':>12}{'recall':>10}{'F1':>8}")
    scores = []
    for i, label in enumerate(labels):
        hit, said, true = counts[i, i], max(counts[:, i].sum(), 1), max(counts[i].sum(), 1)
        scores.append(2 * hit / (said + true))
        print(f"{label[:14]:<16}" + ''.join(f"{int(n):>14,}" for n in counts[i])
              + f"{100 * hit / said:>11.1f}%{100 * hit / true:>9.1f}%{scores[-1]:>8.3f}")
    print(f"accuracy {100 * np.trace(counts) / counts.sum():.2f} %, mean F1 {np.mean(scores):.4f}")

# ---- the run ----

def finetune():
    # 1. settings: those of the run that we resume, unless given again; and what makes no sense
    say = lambda line: print(line, flush=True)
    resumed = load_checkpoint(os.path.join(out_dir, 'resume.pt')) if init_from == 'resume' else None
    if resumed:
        if 'learner' not in resumed:
            sys.exit(f"{out_dir}/resume.pt is no run of finetune.py: start from its weights with init_from={out_dir}")
        own = {k: v for k, v in resumed['settings'].items() if k in SETTINGS and k not in ('out_dir', 'init_from')}
        for name in ('dataset', 'task', 'method', 'freeze_layers', 'lora_r', 'lora_on', 'adapter_size'):
            if name in given and globals()[name] != own[name]:
                usage(f"{name}={globals()[name]}: the run in {out_dir} has {name}={own[name]}; leave {name} out")
        globals().update({k: v for k, v in own.items() if k not in given})
    expect(globals(), 'batch_size gradient_accumulation_steps eval_interval eval_iters log_interval lora_r '
                      'adapter_size max_new_tokens', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip seed block_size freeze_layers num_samples',
           least=0)
    expect(globals(), 'learning_rate muon_learning_rate temperature', above=0)
    expect(globals(), 'dropout', least=0, below=1)
    if method in ('lora', 'adapter') and 'optimizer' not in given and not resumed:
        globals()['optimizer'] = 'adamw'
    if not 0 <= distill_weight <= 1:
        usage(f"distill_weight={distill_weight}: expected 0 <= distill_weight <= 1")
    if os.path.realpath(out_dir) == os.path.realpath(init_from.removesuffix('/ckpt.pt')):
        usage(f"out_dir={out_dir} is where the base lies, which stays as it is: choose another")
    if teacher and task == 'classify':
        usage(f"teacher={teacher}: a teacher says what comes next, so it is of use in task=sft")

    rows = batch_size * gradient_accumulation_steps
    where, number = resolve_device(device, dtype)
    kind = where.split(':')[0]
    if kind == 'cuda' and ':' in where:
        torch.cuda.set_device(where)
    autocast = nullcontext() if number == 'float32' else torch.autocast(kind, dtype=getattr(torch, number))

    # 2. the base, and what moves (new)
    torch.manual_seed(seed)
    base, tokenizer, _ = load_model(os.path.join(out_dir, 'resume.pt') if resumed else init_from)
    if base.config.model_type != 'gpt':
        sys.exit(f"{init_from} holds a {base.config.model_type}: fine-tuning is for model_type=gpt")
    if not base.config.causal and task != 'classify':
        sys.exit(f"{init_from} holds an encoder, which cannot say what comes next: use it with task=classify")
    if method == 'freeze' and freeze_layers > base.config.n_layer:
        usage(f"freeze_layers={freeze_layers}: {init_from} has {base.config.n_layer} layers")
    size = base.config.adapter_size or (adapter_size if method == 'adapter' else 0)
    config = replace(base.config, dropout=dropout, adapter_size=size)
    globals()['block_size'] = min(block_size or config.block_size, config.block_size)
    model = build_model(config)
    model.load_state_dict({**model.state_dict(), **base.state_dict()})  # adapters that the base lacks stay as they are
    adapt(model, tokenizer)

    # 3. data (new)
    labels = []
    examples = load_examples(os.path.join(data_dir, dataset))
    if task == 'sft' and 'messages' not in examples['train'][0]:
        sys.exit(f"{dataset} holds no conversations: texts with labels need task=classify")
    if task == 'classify':
        labels = sorted({str(example.get('label')) for example in examples['train']})
        if len(labels) < 2:
            sys.exit(f"{dataset} has no two labels to tell apart: task=classify needs lines of text and label")
    data = {split: read(some, split, tokenizer, labels, block_size, config.causal, say)
            for split, some in examples.items()}
    for split, found in data.items():
        n, targets = sum(len(ids) for ids, _ in found), sum(t >= 0 for _, y in found for t in y)
        data[split] = pack(found, block_size)
        say(f"{split}: {len(found):,} examples, {n:,} tokens, {targets:,} of them targets, in "
            f"{len(data[split][0]):,} rows of {block_size}, {100 * n / data[split][0].numel():.1f} % full")
    if show:
        return print_table([part[0] for part in data['train']], tokenizer, labels)
    tokens = rows * block_size  # per step
    classifier = None
    if labels:
        classifier = nn.Linear(config.n_embd, len(labels))
        for p in classifier.parameters():
            nn.init.zeros_(p)  # it starts by knowing nothing: the loss begins at the logarithm of their number
        if not config.tie_weights:
            model.head.requires_grad_(False)  # nothing is said
    tutor = None
    if teacher:
        tutor, theirs, _ = load_model(teacher, where)
        if theirs != tokenizer or tutor.config.model_type != 'gpt':
            wrong = 'is no gpt' if theirs == tokenizer else 'reads with another tokenizer'
            sys.exit(f"teacher={teacher} {wrong}, so it has no opinion on what this model is to say: train a larger "
                     f"one with  python train.py n_layer=8 out_dir={teacher}")
        if tutor.config.block_size < block_size:
            sys.exit(f"teacher={teacher} has a shorter context: add  block_size={tutor.config.block_size}")
        tutor.requires_grad_(False).eval()
    learner = Learner(model, classifier, tutor).to(where)
    if resumed:
        if resumed.get('labels', []) != labels:
            sys.exit(f"{out_dir}/resume.pt tells other labels apart than {data_dir}/{dataset} holds now: start a new "
                     "run")
        learner.load_state_dict(resumed['learner'])

    # 4. optimizers
    optimizers = configure_optimizers(learner, optimizer, learning_rate, muon_learning_rate)
    scaler = torch.amp.GradScaler(kind, enabled=number == 'float16')  # keeps float16's small gradients from vanishing
    step, best, before = 0, math.inf, {}
    if resumed:
        if len(optimizers) != len(resumed['optimizers']):
            sys.exit(f"{out_dir}/resume.pt was written with another optimizer than {optimizer}: leave optimizer out")
        for o, state in zip(optimizers, resumed['optimizers']):
            restore(o, state)
        if resumed['scaler']:
            scaler.load_state_dict(resumed['scaler'])
        step, best, before = (resumed[name] for name in ('step', 'best', 'before'))
    base = resumed = None  # let go of the copies

    # 5. what this will cost
    sizes = [p.numel() for p in learner.parameters()]
    moving = sum(getattr(p, 'moving', p.numel()) for p in learner.parameters() if p.requires_grad)
    say(f"{moving:,} of {sum(sizes):,} parameters move: {100 * moving / sum(sizes):.2f} % (method={method})")
    say(f"{tokens:,} tokens per step * {max_iters:,} steps"
        f" = {max_iters * rows / len(data['train'][0]):.1f} times through the examples")
    say(f"on {where}, {number}")

    # 6. where it goes; an earlier run's results are set aside, not lost
    log = Log(out_dir, 'step tokens train_loss val_loss rate grad_norm tokens_per_second seconds', step)
    settings = {k: globals()[k] for k in SETTINGS}

    def save(name, **more):
        head = {'classifier': classifier.state_dict(), 'labels': labels} if labels else {}
        save_atomically(os.path.join(out_dir, name), {
            'format': FORMAT, 'model': merged(model), 'config': asdict(config),
            'tokenizer': tokenizer.to_dict(), 'step': step, 'settings': settings, **head, **more})

    def save_progress():
        """resume.pt: with it, a run that stopped ends in the same weights, bit for bit."""
        save('resume.pt', learner=learner.state_dict(), optimizers=[o.state_dict() for o in optimizers],
             scaler=scaler.state_dict(), best=best, before=before)

    @torch.no_grad()
    def evaluate(learner, batches):
        """
        The sum of the losses over the targets in these batches, in nats, and their number; for task=classify then how
        often which label was called which, (labels, labels).
        """
        learner.eval()
        sums = torch.zeros(2 + len(labels)**2, dtype=torch.float64)
        for x, y, *how in ([part.to(where) for part in batch] for batch in batches):
            with autocast:
                sums[0] += learner(x, y, *how).item()
                if labels:
                    said = learner.classifier(learner.at_targets(learner.model, x, y, *how)).argmax(-1)
                    sums[2:] += torch.bincount(y[y >= 0] * len(labels) + said, minlength=len(labels)**2).cpu()
            sums[1] += (y >= 0).sum().item()
        learner.train()
        return sums

    # 7. Ctrl-C and kill ask us to stop after this step
    stop, put_back = stop_signals()

    # 8. the loop
    first_step, losses, stopping = step, [], False
    evaluated = step if step > 0 and step % eval_interval == 0 else None  # by the run that goes on here
    questions = examples['val'] if task == 'sft' else []
    questions = [e for e in questions if len(e['messages']) > 1 and e['messages'][-1]['role'] == 'assistant']
    questions = questions[:num_samples]
    if questions and step == 0:
        before = exact_match(questions, answer(model, tokenizer, [e['messages'] for e in questions], autocast))
    batches = eval_batches(data['val'], eval_iters * batch_size)
    learner.train()
    start = mark = time.perf_counter()
    while True:
        # 8.1 evaluate, save
        if (step % eval_interval == 0 or step == max_iters) and step != evaluated:
            pause = time.perf_counter()
            sums = evaluate(learner, batches)
            val_loss = (sums[0] / sums[1]).item()
            check_finite('validation loss', val_loss, step, learning_rate * rate(step), out_dir, best)
            right = sums[2::len(labels) + 1].sum() / sums[1]  # the diagonal
            accuracy = f", accuracy {100 * right.item():.2f} %" if labels else ''
            say(f"step {step}: validation loss {val_loss:.4f}{accuracy}"
                f"{', the best so far' if val_loss < best else ''}")
            log.row(step=step, tokens=step * tokens, val_loss=val_loss, seconds=pause - start)
            if val_loss < best:
                best = val_loss
                save('ckpt.pt', val_loss=best, dataset=dataset)
            if step > first_step:
                save_progress()
            mark += time.perf_counter() - pause  # the clock of tokens per second stands still meanwhile
        if step >= max_iters or stopping:
            break
        # 8.2 forward and backward: batch_size rows at a time
        batch, targets = get_batch(data['train'], step, rows)
        loss_sum = torch.zeros((), device=where)
        for i in range(0, rows, batch_size):
            torch.manual_seed((seed << 40) + (step << 16) + i & 2**63 - 1)  # for dropout: by step and row
            with autocast:
                loss = learner(*(part[i:i + batch_size].to(where) for part in batch)) / targets
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        losses.append(loss_sum)
        # 8.3 update
        for o in optimizers:
            scaler.unscale_(o)
        grad_norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), grad_clip or math.inf)
        overflow = scaler.is_enabled() and not torch.isfinite(grad_norm)  # float16's range was exceeded: skip the step
        for o in optimizers:
            for group in o.param_groups:
                group['lr'] = group['initial_lr'] * rate(step)
            if not overflow:
                o.step()
            o.zero_grad(set_to_none=True)
        scaler.update()
        step += 1
        stopping = len(stop) > 0
        # 8.4 report
        if step % log_interval == 0 or step == max_iters or stopping:
            values = torch.stack(losses).tolist()
            for at, value in enumerate(values, step - len(values)):
                check_finite('loss', value, at, learning_rate * rate(at), out_dir, best)
            if not scaler.is_enabled():
                check_finite('gradient', grad_norm.item(), step - 1, learning_rate * rate(step - 1), out_dir, best)
            now = time.perf_counter()
            mean, speed = sum(values) / len(values), tokens * len(values) / max(now - mark, 1e-9)
            left = int((max_iters - step) * (now - start) / (step - first_step))
            say(f"step {step}/{max_iters} | loss {mean:.4f} | rate {rate(step - 1):.2f} | norm {grad_norm:.2f} | "
                f"{speed:,.0f} tokens/s | {left // 60}:{left % 60:02d} left")
            log.row(step=step, tokens=step * tokens, train_loss=mean, rate=rate(step - 1),
                    grad_norm=grad_norm.item(), tokens_per_second=speed, seconds=now - start)
            losses, mark = [], now

    # 9. the end: what was learned, by the best weights, as they lie in ckpt.pt
    if stopping:
        save_progress()
        say(f"stopped after step {step}; go on with  python finetune.py init_from=resume out_dir={out_dir}")
    else:
        put_back()
        log.file.close()
        best_model, _, saved = load_model(out_dir, where)
        if labels:
            classifier.load_state_dict(saved['classifier'])
        sums = evaluate(Learner(best_model, classifier), eval_batches(data['val'], 0))
        say(f"validation loss over {int(sums[1]):,} targets: {sums[0] / sums[1]:.4f}, with the weights of step "
            f"{saved['step']}")
        if labels:
            print_confusion(sums[2:].view(len(labels), -1).numpy(), labels)
        if questions:
            texts = answer(best_model, tokenizer, [e['messages'] for e in questions], autocast)
            for example, text in zip(questions[:12], texts):
                question, wanted = (message['content'] for message in example['messages'][-2:])
                say(f"    {question} -> {text}" + ('' if text == wanted else f"   (expected {wanted})"))
            after = exact_match(questions, texts)
            say(f"exact match on {len(questions)} held-out questions, before and after:")
            for skill in after:
                say(f"    {skill:<12}{100 * before.get(skill, 0):>7.1f} %{100 * after[skill]:>7.1f} %")
        if not labels:
            say(f"next:  python sample.py out_dir={out_dir}")
    put_back()  # not before: who asks a second time shall not interrupt what was saved for the first

if __name__ == '__main__':
    finetune()

"""
Fine-tuning: a model that has read a lot learns to do something with it.

    python prepare.py dataset=instruct && python finetune.py    # SFT: it learns to answer questions
    python finetune.py method=lora out_dir=out-lora             # with 5 % of the weights
    python finetune.py dataset=mine truncate=True               # your own conversations
    python finetune.py task=classify dataset=spam out_dir=out-spam  # texts with labels
    python finetune.py teacher=out-big out_dir=out-distilled    # imitate a larger model as well
    python finetune.py init_from=resume                         # go on exactly where a run stopped

Read train.py first: `diff train.py finetune.py` shows what is new. Of a conversation, only the
assistant's words are learned. Conversations are short, so several share a row, and none sees
another. And of the weights, all may move or only a few. The base is never touched: out_dir gets
ckpt.pt (the best weights so far, merged into a plain model), resume.pt and log.csv.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
out_dir = 'out-sft'
init_from = 'out'       # the folder of a checkpoint, or resume (the run in out_dir)
dataset = 'instruct'    # a folder in data_dir, made by prepare.py
data_dir = 'data'
task = 'sft'            # sft | classify: answer in conversations, or sort texts under labels
truncate = False        # of examples that are too long, keep the end; False: leave them out
num_samples = 500       # held-out questions that are answered before and after; 0: none
max_new_tokens = 48     # longest of those answers
# which weights move
method = 'full'         # full | freeze | lora | adapter: the last two train thin matrices, by AdamW
freeze_layers = 2       # freeze: so many lower layers stay as they are, and so do the embeddings
lora_r = 8              # lora: rank of the change of each matrix
lora_alpha = 64.0       # lora: the change is multiplied by alpha / r. That also scales the learning
                        # rate of B, which begins at zero (as LoRA+ recommends)
adapter_size = 32       # adapter: width of the two small layers that each block gets
dropout = 0.0           # 0.1 and more where there are few examples
# imitation
teacher = ''            # the folder of a checkpoint with the same tokenizer; empty: no teacher
distill_weight = 0.5    # its share in the loss; the rest is for the data
temperature = 2.0       # divides its logits: above 1, also unlikely tokens are imitated
# how much
block_size = 0                   # tokens in a row; 0: as many as the checkpoint can read
batch_size = 8                   # sequences computed at once: halve it when memory runs out, and …
gradient_accumulation_steps = 1  # … double this: a step has batch_size * this many sequences
max_iters = 1700                 # 1700 steps * 8 sequences * 256 tokens = 3.5M tokens
# how fast
optimizer = 'muon'          # muon | adamw: Muon in the layers and AdamW for the rest, or AdamW only
learning_rate = 0.0         # AdamW's peak rate; 0: 0.005, and 0.001 for labels by thin matrices
muon_learning_rate = 0.02   # Muon's peak rate; its steps are orthogonal matrices, another scale
warmup_iters = 20           # steps in which it rises
lr_decay_iters = 0          # step at which it is 0 again, after a straight line; 0: max_iters
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 20             # batches in each: always the same ones, evenly spread over validation
log_interval = 20           # steps between lines
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16: of products; weights are float32
seed = 1337
given = configure(globals())

import math, os, sys
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (Log, build_model, chunked_cross_entropy, complete, configure_optimizers,
                   load_examples, load_model, load_optimizers, lr_schedule, resolve_device,
                   save_checkpoint, stop_at_once, stop_when_asked, update)

# ---- what is learned from ----

def chat_targets(tokenizer, messages, most=0):
    """A conversation -> (ids, targets): targets[t] is the token after ids[t] if the assistant says
    it, else -100, which does not count. Only the last `most` tokens (0: all).

        ids      <|user|>  hi    <|end|>  <|assistant|>  hello
        targets  -100      -100  -100     hello          <|end|>"""
    ids, mask = tokenizer.chat(messages)
    targets = [token if said else -100 for token, said in zip(ids, mask)]
    return ids[:-1][-most:], targets[1:][-most:]

def label_targets(tokenizer, text, label, causal, most=0):
    """A text and the number of its label -> (ids, targets) with that one target: at the last token,
    which has seen all others; in an encoder, where every token sees all, at the first (as BERT)."""
    ids = ([tokenizer.eot] + tokenizer.encode(text))[-most:]
    targets = [-100] * len(ids)
    targets[-1 if causal else 0] = label
    return ids, targets

def pack(examples, T):
    """Short examples share a row, so that nothing is computed on padding. [(ids, targets), …] ->
    rows (R, 4, T). The four are, for T = 8 and examples of 3, 6 and 4 tokens:

        x          a a a c c c c .    b b b b b b . .
        y          what follows, if it counts, else -100
        positions  0 1 2 0 1 2 3 0    0 1 2 3 4 5 0 0     each example begins at 0 …
        segments   1 1 1 2 2 2 2 0    1 1 1 1 1 1 0 0     … and sees only its own segment

    Best fit: an example goes to the fullest row that has room for it."""
    rows = []                             # the examples of each row
    by_room = [[] for _ in range(T + 1)]  # by_room[n]: the rows that have room for n more tokens
    for example in examples:
        n = len(example[0])
        room = next((room for room in range(n, T) if by_room[room]), T)
        if room == T:  # none has: a new row
            rows.append([])
            by_room[T].append(len(rows) - 1)
        row = by_room[room].pop()
        rows[row].append(example)
        by_room[room - n].append(row)
    packed = torch.zeros(len(rows), 4, T, dtype=torch.int32)
    packed[:, 1] = -100
    for r, row in enumerate(rows):
        start = 0
        for segment, (ids, targets) in enumerate(row, 1):
            n = len(ids)
            columns = [ids, targets, list(range(n)), [segment] * n]
            packed[r, :, start:start + n] = torch.tensor(columns)
            start += n
    return packed

# ---- which weights move ----

class LoRA(nn.Linear):
    """A frozen matrix and, beside it, a change of low rank that is learned (Hu et al. 2021, eq. 3):

        y = W x + alpha/r B A x      W (out, in), A (r, in), B (out, r)

    B starts at zero, so at step 0 nothing has changed. For 192 -> 576, r = 8 means 6,144 numbers
    instead of 110,592."""
    def __init__(self, linear, r, alpha):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.A = nn.Parameter(torch.empty(r, self.in_features))
        self.B = nn.Parameter(torch.zeros(self.out_features, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / r

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.A), self.B) * self.scale

def apply_method(model, method, freeze_layers=0, lora_r=8, lora_alpha=64.0):
    """Freeze what shall not move; for lora, put thin matrices beside all those in the blocks (the
    paper: beside those for queries and values only)."""
    if method == 'freeze':
        for part in (model.wte, model.wpe, *model.blocks[:freeze_layers]):
            if part is not None:
                part.requires_grad_(False)
    if method in ('lora', 'adapter'):  # the norms move, too, as in the adapters' paper
        for name, p in model.named_parameters():
            p.requires_grad_('norm' in name or (method == 'adapter' and 'adapter' in name))
    if method == 'lora':
        for module in list(model.blocks.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, LoRA(child, lora_r, lora_alpha))

def unfreeze_chat_tokens(model, tokenizer):
    """Let the rows of the special tokens move in the frozen embedding and head. <|user|> and the
    like stand in no text that the base has read, so their vectors are noise, and little is learned
    without them. The gradient of all other rows is set to zero. -> how many numbers that leaves."""
    special = list(tokenizer.special.values())
    rows = torch.zeros(len(model.wte.weight), 1)
    rows[special] = 1
    tables = {model.wte.weight, model.head.weight}  # a single one where they are tied
    for table in tables:
        table.requires_grad_(True)
        table.register_hook(lambda gradient: gradient * rows.to(gradient.device))
    return sum(len(special) * table.size(1) - table.numel() for table in tables)

def merged_state_dict(model):
    """The weights as a plain GPT has them: W + alpha/r B A in place of each W, A and B."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            change = module.scale * (module.B @ module.A)
            state[f'{name}.weight'] = (module.weight + change).detach()
            del state[f'{name}.A'], state[f'{name}.B']
    return {name: p for name, p in state.items() if not name.startswith('classifier')}

# ---- the losses ----

def hidden_at_targets(model, rows):
    """Rows (B, 4, T) -> the hidden states where there is a target (N, C), and the targets (N,). Of
    a chat that is one token in six, which saves most of the logits. N is a multiple of 64, and the
    last targets may be -100: oneDNN keeps a compiled product for each shape, and thousands of
    different N would fill the memory."""
    x, y, positions, segments = rows.unbind(1)
    mask = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T): its segment …
    if model.config.causal:
        mask = mask.tril()  # … and only backwards
    h = model.hidden(x, positions, mask).flatten(0, 1)  # (B T, C)
    index = (y.flatten() >= 0).nonzero().flatten()
    extra = -len(index) % 64
    targets = F.pad(y.flatten()[index], (0, extra), value=-100)
    return h[F.pad(index, (0, extra))], targets

def distillation_loss(logits, teacher_logits, targets, weight, temperature):
    """(1 - weight) cross-entropy + weight T² KL(teacher || student), summed over the targets; both
    logits (N, V) are divided by the temperature T (Hinton et al. 2015). Multiplied by T², because
    softening divides the gradients by T²."""
    log_p = (teacher_logits.float() / temperature).log_softmax(-1)
    log_q = (logits.float() / temperature).log_softmax(-1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction='none').sum(-1)  # (N,)
    kl = (kl * (targets >= 0)).sum() * temperature**2
    cross_entropy = F.cross_entropy(logits.float(), targets, reduction='sum')
    return (1 - weight) * cross_entropy + weight * kl

# ---- how well it does ----

def answer(model, tokenizer, examples, max_new_tokens):
    """The answers to the last question of each conversation, always by the likeliest token."""
    prompts = [tokenizer.chat(example['messages'][:-1], answer=True)[0] for example in examples]
    texts = []
    for i in range(0, len(prompts), 100):
        texts += complete(model, tokenizer, prompts[i:i + 100], max_new_tokens, temperature=0)
    return texts

def exact_match(examples, answers):
    """{'sort': 0.98, …, 'all': 0.97}: the fraction of answers that are right to the letter, by the
    skill that an example may name."""
    right = defaultdict(list)
    for example, text in zip(examples, answers):
        is_right = text.strip() == example['messages'][-1]['content'].strip()
        for skill in {example.get('skill', 'all'), 'all'}:
            right[skill].append(is_right)
    skills = sorted(right.keys() - {'all'}) + ['all']
    return {skill: sum(right[skill]) / len(right[skill]) for skill in skills}

def print_confusion(counts, labels):
    """counts[truth, prediction] as a table, with each label's precision, recall and F1; and the
    accuracy of a program that always says the commonest label."""
    hits = counts.diagonal()
    predicted = counts.sum(0).clip(1)
    true = counts.sum(1).clip(1)
    f1 = 2 * hits / (predicted + true)
    names = ''.join(f"{label[:12]:>14}" for label in labels)
    print(f"{'truth':<16}{names}{'precision':>12}{'recall':>10}{'F1':>8}")
    for i, label in enumerate(labels):
        row = ''.join(f"{n:>14,.0f}" for n in counts[i])
        print(f"{label[:14]:<16}{row}{hits[i] / predicted[i]:>12.1%}{hits[i] / true[i]:>10.1%}"
              f"{f1[i]:>8.3f}")
    print(f"accuracy {hits.sum() / counts.sum():.2%}, mean F1 {f1.mean():.4f}; always saying "
          f"{labels[true.argmax()]!r} is right in {true.max() / counts.sum():.2%}")

if __name__ == '__main__':
    # 1. processes: one is enough here
    # 2. settings: those of the run that is resumed
    resume_path = os.path.join(out_dir, 'resume.pt')
    resuming = init_from == 'resume'
    source = resume_path if resuming else init_from
    if resuming and not os.path.exists(source):
        sys.exit(f"no {source}: start with  python finetune.py out_dir={out_dir}")
    saved_model, tokenizer, saved = load_model(source)
    if resuming and saved.get('script') != 'finetune.py':
        usage(f"{source} was not written by finetune.py: take its weights by init_from={out_dir}")
    if resuming:
        fixed = 'dataset task method freeze_layers lora_r lora_alpha adapter_size optimizer'
        resume(globals(), given, saved['settings'], fixed)
    expect(globals(), 'batch_size gradient_accumulation_steps eval_interval eval_iters '
                      'log_interval lora_r adapter_size max_new_tokens', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip block_size freeze_layers '
                      'num_samples distill_weight learning_rate seed', least=0)
    expect(globals(), 'muon_learning_rate temperature', above=0)
    expect(globals(), 'dropout', least=0, below=1)
    if os.path.realpath(out_dir) == os.path.realpath(init_from.removesuffix('/ckpt.pt')):
        usage(f"out_dir={out_dir} is where the base lies, which stays as it is: choose another")
    config = replace(saved_model.config, dropout=dropout)
    if config.model_type != 'gpt' or (task == 'sft' and not config.causal):
        sys.exit(f"{source} is a {config.model_type} with causal={config.causal}: task=sft needs a "
                 "causal gpt, task=classify any gpt")
    sequences_per_step = batch_size * gradient_accumulation_steps
    settings = current(globals())  # as they go into checkpoints: device is still 'auto'

    # 3. the device
    device, dtype = resolve_device(device, dtype)
    device_type = device.split(':')[0]
    autocast = nullcontext()
    if dtype != 'float32':
        autocast = torch.autocast(device_type, dtype=getattr(torch, dtype))

    # 4. the data
    examples = load_examples(os.path.join(data_dir, dataset))
    if (task == 'sft') != ('messages' in examples['train'][0]):
        sys.exit(f"task={task} does not fit dataset={dataset}: conversations need task=sft, texts "
                 "with labels task=classify")
    labels = []
    if task == 'classify':
        labels = sorted({example['label'] for example in examples['train']})
    T = min(block_size or config.block_size, config.block_size)
    data = {}
    most = T if truncate else 0
    for split, lines in examples.items():
        if task == 'sft':
            pairs = [chat_targets(tokenizer, line['messages'], most) for line in lines]
        else:
            pairs = [label_targets(tokenizer, line['text'], labels.index(line['label']),
                                   config.causal, most) for line in lines]
        pairs = [(ids, targets) for ids, targets in pairs if len(ids) <= T]
        n_long = len(lines) - len(pairs)
        if n_long:
            print(f"left out {n_long:,} of {len(lines):,} in {split}.jsonl, of over "
                  f"{T} tokens: truncate=True keeps their last {T}; a base with a larger "
                  "block_size or vocabulary reads more of them")
        if not pairs:
            sys.exit(f"nothing in {split}.jsonl fits into block_size={T} tokens: add truncate=True")
        rows = data[split] = pack(pairs, T)
        n_tokens = sum(len(ids) for ids, targets in pairs)
        n_targets = (rows[:, 1] >= 0).sum()
        print(f"{split}: {len(pairs):,} examples, {n_tokens:,} tokens, {n_targets:,} of them "
              f"targets, in {len(rows):,} rows of {T}, {n_tokens / (len(rows) * T):.1%} full")
    questions = [line for line in examples['val'] if task == 'sft' and len(line['messages']) > 1
                 and line['messages'][-1]['role'] == 'assistant'][:num_samples]
    del examples, pairs
    tokens_per_step = sequences_per_step * T

    def get_batch(step):
        """The rows of this step, (N, 4, T). Each epoch reads all rows, in an order of its own."""
        n_rows = len(data['train'])
        epoch, first = divmod(step * sequences_per_step, n_rows)
        order = np.empty(0, int)
        while len(order) < first + sequences_per_step:
            order = np.append(order, np.random.default_rng([seed, epoch]).permutation(n_rows))
            epoch += 1
        return data['train'][order[first:first + sequences_per_step]].long()

    # 5. the model: the base's weights, and which of them move
    torch.manual_seed(seed)
    if method == 'adapter' and not config.adapter_size:
        config.adapter_size = adapter_size
    model = build_model(config)
    model.load_state_dict(saved_model.state_dict(), strict=False)  # it may lack the adapters
    del saved_model
    apply_method(model, method, freeze_layers, lora_r, lora_alpha)
    n_trainable = 0
    if method in ('lora', 'adapter') and task == 'sft':
        n_trainable = unfreeze_chat_tokens(model, tokenizer)
    head = model.head
    if labels:
        if not config.tie_weights:
            head.requires_grad_(False)  # another one takes its place
        head = model.classifier = nn.Linear(config.n_embd, len(labels))
        nn.init.zeros_(head.weight)  # so the loss begins at ln(number of labels)
        nn.init.zeros_(head.bias)
    n_classes = len(labels) or config.vocab_size
    if resuming:
        model.load_state_dict(saved['trained'])
    model.to(device)
    teacher_model = None
    if teacher:
        teacher_model, teacher_tokenizer, _ = load_model(teacher, device)
        teacher_model.eval()
        if task != 'sft' or teacher_tokenizer != tokenizer:
            sys.exit(f"teacher={teacher} needs task=sft and the tokenizer of {source}")

    # 6. the optimizers
    thin = method in ('lora', 'adapter')
    peak_lr = learning_rate or (0.001 if thin and labels else 0.005)
    optimizers = configure_optimizers(model, 'adamw' if thin else optimizer, peak_lr,
                                      muon_learning_rate)
    # multiplies the loss, so that float16's small gradients do not vanish
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')
    step, best = 0, math.inf
    before = {}
    if resuming:
        load_optimizers(optimizers, saved['optimizers'], source)
        if scaler.is_enabled() and saved['scaler']:
            scaler.load_state_dict(saved['scaler'])
        step, best = saved['step'], saved['best']
        before = saved['before']
    resumed_at = step if resuming else None
    saved = None  # frees its memory

    def lr_fraction(step):
        """The learning rate at this step, as a fraction of its peak."""
        return lr_schedule(step, 'linear', warmup_iters, lr_decay_iters or max_iters)

    def get_lr(step):
        return peak_lr * lr_fraction(step)

    # 7. what this will cost, and where it goes
    n_params = sum(p.numel() for p in model.parameters())
    n_trainable += sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"method={method}: {n_trainable:,} of {n_params:,} parameters move: "
          f"{100 * n_trainable / n_params:.2f} %")
    print(f"{tokens_per_step:,} tokens per step * {max_iters:,} steps = "
          f"{max_iters * sequences_per_step / len(data['train']):.1f} times through the examples")
    print(f"on {device}, {dtype}")
    columns = ('accuracy',) if labels else ()
    log = Log(out_dir, step, max_iters, log_interval, tokens_per_step, columns=columns, best=best)

    def save(name, **more):
        """Write a checkpoint. A classifier's brings its head."""
        if labels:
            more.update(labels=labels, classifier=head.state_dict())
        save_checkpoint(os.path.join(out_dir, name), merged_state_dict(model), config, tokenizer,
                        script='finetune.py', task=task, step=step, settings=settings, **more)

    @torch.no_grad()
    def evaluate(model, head, n):
        """Mean loss in nats per target, over n rows that are evenly spread over validation; and for
        task=classify, how often which label was taken for which, counts[truth, prediction]."""
        index = np.linspace(0, len(data['val']) - 1, min(n, len(data['val']))).astype(int)
        loss_sum, n_targets = 0.0, 0
        counts = np.zeros((len(labels), len(labels)))
        model.eval()
        for i in range(0, len(index), batch_size):
            rows = data['val'][index[i:i + batch_size]].long().to(device)
            with autocast:
                h, targets = hidden_at_targets(model, rows)
                loss_sum += chunked_cross_entropy(h, targets, head, n_classes).item()
            n = (targets >= 0).sum().item()
            n_targets += n
            if labels:
                predictions = head(h[:n]).argmax(-1)
                np.add.at(counts, (targets[:n].cpu(), predictions.cpu()), 1)
        model.train()
        return loss_sum / n_targets, counts

    # 8. the loop
    asked = stop_when_asked()  # no longer empty after Ctrl-C or kill
    stop = False
    if questions and step == 0:
        model.eval()
        with autocast:
            before = exact_match(questions, answer(model, tokenizer, questions, max_new_tokens))
    model.train()
    log.restart_clock()
    while True:
        # 8.1 evaluate, save
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss, counts = evaluate(model, head, eval_iters * batch_size)
            metrics = {'accuracy': np.trace(counts) / counts.sum()} if labels else {}
            if log.evaluation(step, val_loss, **metrics):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset)
        if step > 0 and (step % eval_interval == 0 or step == max_iters or stop):
            save('resume.pt', optimizers=[o.state_dict() for o in optimizers], best=log.best,
                 scaler=scaler.state_dict(), trained=model.state_dict(), before=before)
        if step >= max_iters or stop:
            break
        log.restart_clock()
        # 8.2 forward and backward: batch_size sequences at a time
        batch = get_batch(step)
        n_targets = (batch[:, 1] >= 0).sum().item()
        loss_sum = torch.zeros((), device=device)
        for i in range(0, sequences_per_step, batch_size):
            torch.manual_seed(((seed << 40) + (step << 16) + i) % 2**63)  # for dropout
            rows = batch[i:i + batch_size].to(device)
            with autocast:
                h, targets = hidden_at_targets(model, rows)
                if teacher_model is None:
                    loss = chunked_cross_entropy(h, targets, head, n_classes)
                else:
                    with torch.no_grad():
                        teacher_h, _ = hidden_at_targets(teacher_model, rows)
                        teacher_logits = teacher_model.logits(teacher_h)
                    loss = distillation_loss(model.logits(h), teacher_logits, targets,
                                             distill_weight, temperature)
                loss = loss / n_targets
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        # 8.3 update
        grad_norm = update(model, optimizers, lr_fraction(step), grad_clip, scaler)
        step += 1
        stop = len(asked) > 0
        # 8.4 report
        log.training(step, loss_sum, grad_norm, get_lr(step - 1), last=stop)

    # 9. the end: what was learned, by the best weights
    if step < max_iters:
        print(f"stopped after step {step}; go on with  python finetune.py init_from=resume "
              f"out_dir={out_dir}")
    else:
        stop_at_once()
        best_model, _, saved = load_model(out_dir, device)
        best_head = best_model.head
        if labels:
            best_head = head
            head.load_state_dict(saved['classifier'])
        val_loss, counts = evaluate(best_model, best_head, len(data['val']))
        print(f"validation loss over all {len(data['val']):,} rows: {val_loss:.4f}, by the weights "
              f"of step {saved['step']}")
        if labels:
            print_confusion(counts, labels)
        if questions:
            with autocast:
                texts = answer(best_model.eval(), tokenizer, questions, max_new_tokens)
            for example, text in zip(questions[:12], texts):
                question, expected = [message['content'] for message in example['messages'][-2:]]
                wrong = '' if text == expected else f"   (expected {expected})"
                print(f"    {question} -> {text}{wrong}")
            print(f"exact match on {len(questions)} held-out questions, before and after:")
            for skill, after in exact_match(questions, texts).items():
                print(f"    {skill:<12}{100 * before.get(skill, 0):>7.1f} %{100 * after:>7.1f} %")
        command = f"sample.py out_dir={out_dir}"
        if labels:
            command += " prompt='…'"
        print(f"next:  python {command}")
    log.close()
    stop_at_once()

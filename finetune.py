"""
Fine-tuning: a model that has read a lot learns to do something with it.

    python prepare.py dataset=instruct && python finetune.py    # SFT: it learns to answer questions
    python finetune.py method=lora dropout=0 out_dir=out-lora   # with 5 % of the weights
    python finetune.py dataset=mine truncate=True               # your own conversations
    python finetune.py task=classify dataset=spam out_dir=out-spam  # texts with labels
    python finetune.py teacher=out-big out_dir=out-distilled    # imitate a larger model as well
    python finetune.py init_from=resume                         # go on exactly where a run stopped

Read train.py first: the run has the same phases, and in its loop 8.2 is what is new. Of a
conversation, only the assistant's words are learned. Several short ones share a row, and none sees
another. All weights move, or only a few. Writes ckpt.pt (LoRA merged in), resume.pt and log.csv.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
out_dir = 'out-sft'
init_from = 'out'       # the folder of a checkpoint, or resume (the run in out_dir)
dataset = 'instruct'    # a folder in data_dir, made by prepare.py
data_dir = 'data'
task = 'sft'            # sft | classify: answer in conversations, or sort texts under labels
truncate = False        # True: of an example that is too long, keep the end; False: leave it out
teacher = ''            # a folder: imitate its checkpoint, too; it needs the same tokenizer
distill_weight = 0.5    # weight of the teacher in the loss; the rest is for the data
# which weights move
method = 'full'         # full | freeze | lora | adapter: all; the upper half; new thin matrices
lora_r = 8              # lora: rank of the change of each matrix
lora_alpha = 64.0       # lora: the change is alpha / r times B A, so it learns that much faster
dropout = 0.05          # 0.1 and more where there are few examples; thin matrices need none
# how much
block_size = 0                   # tokens in a row; 0: as many as the checkpoint can read
batch_size = 8                   # sequences computed at once: halve it when memory runs out, and …
gradient_accumulation_steps = 1  # … double this: a step has batch_size * this many sequences
max_iters = 2000                 # 2000 steps * 8 sequences * 256 tokens = 4.1M tokens
# how fast
optimizer = 'muon'          # muon | adamw: Muon in the layers and AdamW for the rest, or AdamW only
learning_rate = 0.0         # AdamW's peak rate; 0: 0.005, or 0.001 for classify by lora, adapter
muon_learning_rate = 0.02   # Muon's peak rate; its steps are orthogonal matrices, another scale
warmup_iters = 20           # steps in which it rises
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 20             # batches in each: always the same ones, evenly spread over validation
log_interval = 20           # steps between lines
num_samples = 500           # held-out questions, answered before and after training; 0: none
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16: of products; weights are float32
seed = 1337
given = configure(globals())

import math, os, sys, time
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (GPTConfig, Log, build_model, chunked_cross_entropy, complete,
                   configure_optimizers, load_examples, load_model, load_optimizers, lr_schedule,
                   resolve_device, save_checkpoint, stop_when_asked, update)

# ---- what is learned from ----
def chat_targets(tokenizer, messages, max_length=0):
    """A conversation -> (ids, targets): targets[t] is the token after ids[t] if the assistant says
    it, else -100, which does not count. Only the last max_length tokens (0: all, as x[-0:] is x).

        ids      <|user|>  hi    <|end|>  <|assistant|>  hello
        targets  -100      -100  -100     hello          <|end|>"""
    ids, mask = tokenizer.chat(messages)
    targets = [token if said else -100 for token, said in zip(ids, mask)]
    return ids[:-1][-max_length:], targets[1:][-max_length:]

def label_targets(tokenizer, example, labels, causal, max_length=0):
    """A text -> (ids, targets) with one target, the number of its label: at the last token, which
    has seen all others; in an encoder, where every token sees all, at the first (as in BERT)."""
    ids = ([tokenizer.eot] + tokenizer.encode(example['text']))[-max_length:]
    targets = [-100] * len(ids)
    targets[-1 if causal else 0] = labels.index(example['label'])
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
        room = next((room for room in range(n, T) if by_room[room]), T)  # the least that will do
        if room == T:  # no row has any: begin a new one
            rows.append([])
            by_room[T].append(rows[-1])
        row = by_room[room].pop()
        row.append(example)
        by_room[room - n].append(row)
    packed = torch.zeros(len(rows), 4, T, dtype=torch.int32)
    packed[:, 1] = -100
    for packed_row, row in zip(packed, rows):
        start = 0
        for segment, (ids, targets) in enumerate(row, 1):
            n = len(ids)
            columns = [ids, targets, list(range(n)), [segment] * n]
            packed_row[:, start:start + n] = torch.tensor(columns)
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

def apply_method(model, method, lora_r=8, lora_alpha=64.0):
    """Freeze what is not trained; for lora, put thin matrices beside all those in the blocks (the
    paper: beside those for queries and values only)."""
    if method == 'freeze':  # the embeddings and the lower half of the blocks
        for part in [model.wte, model.wpe, *model.blocks[:len(model.blocks) // 2]]:
            if part is not None:
                part.requires_grad_(False)
    if method in ('lora', 'adapter'):  # the norms are trained, too, as in the adapters' paper
        for name, p in model.named_parameters():
            p.requires_grad_('norm' in name or method in name)  # lora's own come below
    if method == 'lora':
        for module in list(model.blocks.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, LoRA(child, lora_r, lora_alpha))

def unfreeze_chat_tokens(model, tokenizer):
    """Train the rows of the special tokens in the frozen embedding and head: the base has read no
    <|user|>, so its vector is noise. Other rows get gradient 0. -> how many numbers those hold."""
    is_special = torch.zeros(len(model.wte.weight), 1)  # (V, 1): 1 for a row to train, else 0
    is_special[list(tokenizer.special.values())] = 1
    tables = {model.wte.weight, model.head.weight}  # a single one where they are tied
    for table in tables:
        table.requires_grad_(True)
        table.register_hook(lambda gradient: gradient * is_special.to(gradient.device))
    return sum(int((is_special == 0).sum()) * table.size(1) for table in tables)

def merged_state_dict(model):
    """The weights as a plain GPT has them: W + alpha/r B A in place of each W, A and B."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            change = module.scale * (module.B @ module.A)
            state[f'{name}.weight'] = (module.weight + change).detach()
            del state[f'{name}.A'], state[f'{name}.B']
    return {name: p for name, p in state.items() if not name.startswith('classifier')}

# ---- the loss, and how well it does ----
def hidden_at_targets(model, rows):
    """Rows (B, 4, T) -> the hidden states where there is a target (N, C), and the targets (N,): of
    a chat, one token in five, which saves most of the logits. N is filled up to a multiple of 64
    with targets of -100, because oneDNN keeps memory for each shape that it has met."""
    x, y, positions, segments = rows.unbind(1)
    mask = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T): same segment …
    if model.config.causal:
        mask = mask.tril()  # … and not the future
    h = model.hidden(x, positions, mask).flatten(0, 1)  # (B T, C)
    index = (y.flatten() >= 0).nonzero().flatten()
    extra = -len(index) % 64
    targets = F.pad(y.flatten()[index], (0, extra), value=-100)
    return h[F.pad(index, (0, extra))], targets

def distillation_loss(logits, teacher_logits, targets, tau=2.0):
    """tau² KL(teacher || student), summed over the targets; both logits (N, V) are divided by the
    temperature tau, which divides the gradients by tau² (Hinton et al. 2015, section 2)."""
    log_p = (teacher_logits.float() / tau).log_softmax(-1)
    log_q = (logits.float() / tau).log_softmax(-1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction='none').sum(-1)  # (N,)
    return tau**2 * (kl * (targets >= 0)).sum()

def exact_match(model, tokenizer, examples):
    """Answers the last question of each conversation, always by the likeliest token -> the texts,
    and the percentage that is right to the letter."""
    prompts = [tokenizer.chat(example['messages'][:-1], answer=True)[0] for example in examples]
    texts = []
    for i in range(0, len(prompts), 100):
        texts += complete(model.eval(), tokenizer, prompts[i:i + 100], 48, temperature=0)
    right = [text.strip() == example['messages'][-1]['content'].strip()
             for text, example in zip(texts, examples)]
    return texts, 100 * sum(right) / len(right)

def print_confusion(counts, labels):
    """counts[truth, prediction], and the accuracy beside that of always saying one label."""
    true = counts.sum(1)
    print(f"rows: truth, columns: prediction, of {', '.join(labels)}\n{counts}")
    print(f"accuracy {counts.trace() / counts.sum():.2%}; always saying {labels[true.argmax()]!r} "
          f"is right in {true.max() / counts.sum():.2%}")

if __name__ == '__main__':
    # 1. processes: one is enough here
    # 2. settings: those of the run that is resumed
    resuming = init_from == 'resume'
    source = os.path.join(out_dir, 'resume.pt') if resuming else init_from
    _, tokenizer, saved = load_model(source)  # phase 5 builds the model anew
    if resuming:
        if saved.get('script') != 'finetune.py':
            usage(f"{source} was not written by finetune.py: start from it by init_from={out_dir}")
        fixed = 'dataset task method optimizer lora_r lora_alpha'
        resume(globals(), given, saved['settings'], fixed)
    expect(globals(), 'batch_size gradient_accumulation_steps eval_interval eval_iters '
                      'log_interval lora_r', least=1)
    expect(globals(), 'max_iters warmup_iters grad_clip seed block_size num_samples distill_weight '
                      'learning_rate muon_learning_rate', least=0)
    expect(globals(), 'dropout', least=0, below=1)
    thin = method in ('lora', 'adapter')
    if thin and 'optimizer' in given and optimizer == 'muon':
        usage(f"optimizer=muon is not for the thin matrices of method={method}: leave it out")
    config = GPTConfig(**{**saved['config'], 'dropout': dropout})
    if config.model_type != 'gpt' or (task == 'sft' and not config.causal):
        sys.exit(f"{source} is a {config.model_type}, causal={config.causal}: not for task={task}")
    sequences_per_step = batch_size * gradient_accumulation_steps
    # as they go into checkpoints: device is still 'auto'
    settings = {**current(globals()), 'optimizer': 'adamw' if thin else optimizer}

    # 3. the device
    device, dtype = resolve_device(device, dtype)
    device_type = device.split(':')[0]
    autocast = torch.autocast(device_type, dtype=getattr(torch, dtype), enabled=dtype != 'float32')

    # 4. the data
    examples = load_examples(os.path.join(data_dir, dataset))
    if {'sft': 'messages', 'classify': 'label'}[task] not in examples['train'][0]:
        sys.exit(f"task={task} does not fit dataset={dataset}: chats need sft, labels classify")
    labels = []
    if task == 'classify':
        labels = sorted({line['label'] for line in examples['train'] + examples['val']})
    T = min(block_size or config.block_size, config.block_size)
    max_length = T if truncate else 0
    data = {}
    for split, lines in examples.items():
        if labels:
            pairs = [label_targets(tokenizer, e, labels, config.causal, max_length) for e in lines]
        else:
            pairs = [chat_targets(tokenizer, e['messages'], max_length) for e in lines]
        pairs = [(ids, targets) for ids, targets in pairs if len(ids) <= T]
        if len(pairs) < len(lines):
            print(f"left out {len(lines) - len(pairs):,} longer than {T} tokens: try truncate=True")
        if not pairs:
            sys.exit(f"nothing in {split}.jsonl fits into block_size={T} tokens: add truncate=True")
        rows = data[split] = pack(pairs, T)
        n_tokens = sum(len(ids) for ids, targets in pairs)
        print(f"{split}: {len(pairs):,} examples, {n_tokens:,} tokens, {(rows[:, 1] >= 0).sum():,} "
              f"of them targets, in {len(rows):,} rows, {n_tokens / rows[:, 1].numel():.1%} full")
    questions = [line for line in examples['val'] if task == 'sft' and len(line['messages']) > 1
                 and line['messages'][-1]['role'] == 'assistant'][:num_samples]
    del examples, pairs
    n_train, n_val = len(data['train']), len(data['val'])
    n_epochs = max_iters * sequences_per_step / n_train
    # each epoch reads all rows, in an order of its own
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(n_train)
                            for epoch in range(math.ceil(n_epochs) + 1)])
    eval_rows = np.linspace(0, n_val - 1, min(eval_iters * batch_size, n_val)).astype(int)
    tokens_per_step = sequences_per_step * T

    # 5. the model: the base's weights, and which of them move
    torch.manual_seed(seed)
    if method == 'adapter':
        config.adapter_size = 32  # width of the two small layers that each block gets
    model = build_model(config)
    model.load_state_dict(saved['model'], strict=False)  # it may lack the adapters
    apply_method(model, method, lora_r, lora_alpha)
    n_frozen = unfreeze_chat_tokens(model, tokenizer) if thin and task == 'sft' else 0
    head = model.head
    if labels:
        if not config.tie_weights:
            head.requires_grad_(False)  # another one takes its place
        head = model.classifier = nn.Linear(config.n_embd, len(labels))
        nn.init.zeros_(head.weight)  # so the loss begins at ln(number of labels)
        nn.init.zeros_(head.bias)
    n_classes = len(labels) or config.vocab_size
    if resuming:
        model.load_state_dict(saved['trained'])  # with A and B, and the classifier
    model.to(device)
    if teacher:
        teacher_model, teacher_tokenizer, _ = load_model(teacher, device)
        teacher_model.eval().requires_grad_(False)
        if task != 'sft' or teacher_tokenizer.to_dict() != tokenizer.to_dict():
            sys.exit(f"teacher={teacher} needs task=sft and the tokenizer of {source}")

    # 6. the optimizers
    peak_lr = learning_rate or (0.001 if thin and labels else 0.005)
    optimizers = configure_optimizers(model, 'adamw' if thin else optimizer, peak_lr,
                                      muon_learning_rate)
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')  # multiplies the loss
    step, best, before, resumed_at = 0, math.inf, 0.0, None
    if resuming:
        load_optimizers(optimizers, saved['optimizers'])
        if scaler.is_enabled() and saved['scaler']:
            scaler.load_state_dict(saved['scaler'])
        step = resumed_at = saved['step']
        best, before = saved['best'], saved['before']
    saved = None  # frees its memory

    def lr_fraction(step):
        """The learning rate at this step, as a fraction of its peak."""
        return lr_schedule(step, 'linear', warmup_iters, max_iters)

    def get_lr(step):
        return peak_lr * lr_fraction(step)

    # 7. what this will cost, and where it goes
    n_params = sum(p.numel() for p in model.parameters())
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) - n_frozen
    print(f"{n_trainable:,} of {n_params:,} parameters move: {100 * n_trainable / n_params:.2f} %")
    print(f"{tokens_per_step:,} tokens per step, {n_epochs:.1f} epochs, on {device}, {dtype}")
    log = Log(out_dir, step, max_iters, log_interval, tokens_per_step,
              columns=('accuracy',), best=best)

    def save(name, **more):
        if labels:  # a classifier's checkpoint brings its head
            more.update(labels=labels, classifier=head.state_dict())
        save_checkpoint(os.path.join(out_dir, name), merged_state_dict(model), config, tokenizer,
                        script='finetune.py', task=task, step=step, settings=settings, **more)

    @torch.no_grad()
    def evaluate(model, head, rows):
        """Mean loss in nats per target over these rows; and for task=classify, how often which
        label was taken for which, counts[truth, prediction]."""
        model.eval()
        loss_sum, n_targets = 0.0, 0
        counts = np.zeros((len(labels), len(labels)), int)
        for batch in rows.split(batch_size):
            with autocast:
                h, targets = hidden_at_targets(model, batch.long().to(device))
                loss_sum += chunked_cross_entropy(h, targets, head, n_classes).item()
            targets = targets[targets >= 0]
            n_targets += len(targets)
            if labels:
                predictions = head(h[:len(targets)]).argmax(-1)  # without the filling at the end
                np.add.at(counts, (targets.cpu(), predictions.cpu()), 1)
        model.train()
        return loss_sum / n_targets, counts

    # 8. the loop
    asked = stop_when_asked()  # no longer empty after Ctrl-C or kill
    stop = False
    if questions and step == 0:
        with autocast:
            _, before = exact_match(model, tokenizer, questions)
    while True:
        # 8.1 evaluate, save; at resumed_at, the saved run has evaluated already
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss, counts = evaluate(model, head, data['val'][eval_rows])
            metrics = {'accuracy': counts.trace() / counts.sum()} if labels else {}
            if log.evaluation(step, val_loss, **metrics):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset)
        if step not in (0, resumed_at) and (step % eval_interval == 0 or step == max_iters or stop):
            save('resume.pt', optimizers=[o.state_dict() for o in optimizers], best=log.best,
                 scaler=scaler.state_dict(), trained=model.state_dict(), before=before)
        if step >= max_iters or stop:
            break
        log.clock = time.perf_counter()  # the step begins here
        # 8.2 forward and backward: batch_size sequences at a time
        batch = data['train'][order[step * sequences_per_step:(step + 1) * sequences_per_step]]
        n_targets = (batch[:, 1] >= 0).sum().item()
        loss_sum = torch.zeros((), device=device)
        for i in range(0, sequences_per_step, batch_size):
            torch.manual_seed(((seed << 40) + (step << 16) + i) % 2**63)  # for dropout
            rows = batch[i:i + batch_size].long().to(device)
            with autocast:
                h, targets = hidden_at_targets(model, rows)
                loss = chunked_cross_entropy(h, targets, head, n_classes)
                if teacher:
                    teacher_h, _ = hidden_at_targets(teacher_model, rows)
                    teacher_logits = teacher_model.logits(teacher_h)
                    kl = distillation_loss(model.logits(h), teacher_logits, targets)
                    loss = (1 - distill_weight) * loss + distill_weight * kl
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
    log.close()  # from here on, Ctrl-C ends at once
    if step < max_iters:
        print(f"stopped at step {step}; next:  python finetune.py init_from=resume "
              f"out_dir={out_dir}")
    else:
        best_model, _, saved = load_model(out_dir, device)
        if labels:
            best_model.head = head
            head.load_state_dict(saved['classifier'])
        val_loss, counts = evaluate(best_model, best_model.head, data['val'])
        print(f"validation loss over all {n_val:,} rows: {val_loss:.4f}")
        if labels:
            print_confusion(counts, labels)
        if questions:
            with autocast:
                texts, after = exact_match(best_model, tokenizer, questions)
            for example, text in zip(questions[:12], texts):
                print(f"    {example['messages'][-2]['content']} -> {text}")
            print(f"exact match on {len(questions)} held-out questions, before and after:")
            print(f"    all {before:>7.1f} %{after:>7.1f} %")
        print(f"next:  python sample.py out_dir={out_dir}", "prompt='…'" if labels else 'chat=True')

"""
Pretraining: a model reads text and learns to predict the next token.

    python train.py                                  # a small GPT on Python's standard library
    python train.py dataset=shakespeare              # any dataset that prepare.py made
    python train.py init_from=resume                 # go on exactly where a run stopped
    python train.py objective=mlm out_dir=out-bert   # an encoder that fills gaps, as BERT
    torchrun --nproc_per_node=8 train.py             # the same run on 8 GPUs, or 8 CPU processes
    torchrun --nproc_per_node=8 train.py parallel=fsdp   # a model too large for any one of them

Writes out_dir/ckpt.pt (the best weights so far: all that sample.py needs), out_dir/resume.pt (to go
on exactly) and out_dir/log.csv. Ctrl-C finishes the step and saves. The batch of step t depends on
(seed, t) alone: a resumed run, or one on more processes, reads the same text in the same order.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
out_dir = 'out'
init_from = 'scratch'   # scratch, resume (out_dir's run), auto (resume or scratch), or a folder
dataset = 'python'      # a folder in data_dir, made by prepare.py
data_dir = 'data'
objective = 'clm'       # clm | mlm: predict the next token (causal), or masked ones (BERT)
# the model; the defaults are a small Qwen3 by architecture, and GPT-2 is
# position=learned norm=layernorm mlp=gelu qk_norm=no bias=yes tie_weights=yes
model_type = 'gpt'      # gpt | lstm | mlp | bigram: the ladder of language models
n_layer = 4
n_head = 3              # heads of 64 channels, as in GPT-2
n_kv_head = 0           # heads for keys and values (grouped-query attention); 0: as many as n_head
n_embd = 192
block_size = 256        # context length, in tokens
position = 'rotary'     # rotary | learned
norm = 'rmsnorm'        # rmsnorm | layernorm
mlp = 'swiglu'          # swiglu | gelu
qk_norm = True          # normalise queries and keys: stable at high learning rates
bias = False            # biases in linear layers and layer norms
tie_weights = False     # the embedding and the head share one matrix
dropout = 0.0           # 0 for pretraining; 0.1 and more where the same text is read many times
# how much
batch_size = 8                   # sequences computed at once: halve it when memory runs out, and …
gradient_accumulation_steps = 1  # … double this: a step has batch_size * this many sequences
max_iters = 1400                 # 1400 steps * 8 sequences * 256 tokens = 2.9M tokens
# how fast
optimizer = 'muon'          # muon | adamw: Muon in the layers and AdamW for the rest, or AdamW only
learning_rate = 0.02        # AdamW's peak: high, for embeddings; with optimizer=adamw, try 1e-3
muon_learning_rate = 0.02   # Muon's peak rate; its steps are orthogonal matrices, another scale
schedule = 'linear'         # cosine | linear: how the learning rate falls
warmup_iters = 20           # steps in which it rises
lr_decay_iters = 0          # step at which the fall ends; 0: max_iters
min_lr = 0.0                # where it ends (AdamW's; Muon's falls in proportion)
weight_decay = 0.0
beta1 = 0.9                 # AdamW's mean of the gradient: over about 1 / (1 - beta1) = 10 steps
beta2 = 0.95                # and of its square: over about 20 steps
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 10             # batches in each: always the same ones, evenly spread over val.bin
log_interval = 20           # steps between lines
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16: of products; weights are float32
parallel = 'ddp'            # ddp | zero | fsdp: split the batch; + gradients, optimizer; + weights
cpu_offload = False         # zero, fsdp: keep the shards in CPU memory
activation_checkpointing = False  # compute layers again in backward: slower by 1/3, less memory
compile = False             # fuse the model's operations with torch.compile: slow start, then fast
seed = 1337
given = configure(globals())

# torch takes seconds to import: a mistake above, or --help, does not wait for it
import gzip, importlib, math, os, sys, time
from contextlib import suppress
from dataclasses import fields, replace
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from model import (GPTConfig, Log, build_model, complete, configure_optimizers, load_dataset,
                   load_model, load_optimizers, lr_schedule, resolve_device, save_checkpoint,
                   stop_when_asked, update)

# peak bfloat16 FLOP/s (float16 on the T4), without sparsity, from NVIDIA's data sheets
PEAK_FLOPS = {'H200': 989e12, 'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12,
              'A100': 312e12, 'L40S': 362e12, 'RTX 4090': 165e12, 'T4': 65e12}

def windows(ids, starts, block_size):
    """The N windows of a text that begin at these positions -> (N, block_size + 1)."""
    rows = np.stack([ids[i:i + block_size + 1] for i in starts])
    return torch.from_numpy(rows.astype(np.int64))

def mask_tokens(x, noise, tokenizer):
    """BERT's exercise (Devlin et al. 2018, 3.1): predict 15 % of the tokens x (B, T). 80 % of these
    become <|pad|> (our [MASK]), 10 % a random token, and 10 % stay, so that the model must predict
    every token. noise (3, B, T), uniform in [0, 1), decides. -> the new x, and targets or -100."""
    noise = torch.from_numpy(noise)
    chosen = noise[0] < 0.15
    random_token = (noise[2] * (tokenizer.vocab_size - len(tokenizer.special))).long()
    masked = torch.where(noise[1] < 0.9, random_token, x)
    masked = torch.where(noise[1] < 0.8, tokenizer.pad, masked)
    return torch.where(chosen, masked, x), torch.where(chosen, x, -100)

def full_state_dict(state):
    """A state_dict whose sharded tensors (parallel=zero, fsdp) are put together again. Every
    process must call this; only the master, which saves, keeps them."""
    if isinstance(state, dict):
        return {name: full_state_dict(value) for name, value in state.items()}
    if not hasattr(state, 'full_tensor'):
        return state
    full = state.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None

def plot(folder):
    """folder/log.csv -> folder/loss.png, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    log = np.genfromtxt(f"{folder}/log.csv", delimiter=',', names=True)
    axes = Figure().subplots()
    for name in ('train_loss', 'val_loss'):
        axes.plot(log['step'], log[name], '.', label=name)
    axes.legend()
    axes.figure.savefig(f"{folder}/loss.png")

if __name__ == '__main__':
    # 1. processes: torchrun starts several and tells each its number, RANK; without it, one
    ddp = 'RANK' in os.environ
    rank, world_size = 0, 1
    if ddp:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))  # from now on, 'cuda' is this one
        store, rank, world_size = next(rendezvous('env://'))  # store: their table of addresses
        if world_size == int(os.environ['LOCAL_WORLD_SIZE']):  # all on one machine
            # torchrun --max-restarts keeps the store: a restarted process must not read old ones
            store = dist.PrefixStore(os.environ.get('TORCHELASTIC_RESTART_COUNT', ''), store)
        dist.init_process_group(store=store, rank=rank, world_size=world_size)
    master_process = rank == 0  # the one that prints and saves
    print0 = print if master_process else lambda *words: None

    # 2. settings: those of the run that is resumed, or the shape of the checkpoint to start from
    resume_path = os.path.join(out_dir, 'resume.pt')
    resuming = init_from == 'resume' or (init_from == 'auto' and os.path.exists(resume_path))
    source = resume_path if resuming else init_from
    saved = None
    if resuming or init_from not in ('scratch', 'auto'):
        saved_model, saved_tokenizer, saved = load_model(source)
        if resuming and saved.get('script') != 'train.py':
            usage(f"{source} was not written by train.py: start from it by init_from={out_dir}")
        if resuming:
            resume(globals(), given, saved['settings'], 'dataset optimizer')
        model_args = {**saved['config'], 'objective': 'clm' if saved['config']['causal'] else 'mlm'}
        overridable = {'dropout'}
        if not resuming and model_args['position'] != 'learned':
            overridable.add('block_size')  # without a table of positions, it may grow
        resume(globals(), given, model_args, ' '.join(model_args.keys() - overridable))
    if ddp:  # all processes must have found the same checkpoint as process 0
        found = saved['step'] if resuming else -1
        found_by_0 = torch.tensor(found)
        dist.broadcast(found_by_0, src=0)
        if found_by_0 != found:
            sys.exit(f"process {rank} finds another {resume_path} than process 0: share {out_dir}")
    expect(globals(), 'n_layer n_head n_embd block_size batch_size gradient_accumulation_steps '
                      'eval_interval eval_iters log_interval', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip seed n_kv_head', least=0)
    expect(globals(), 'learning_rate muon_learning_rate', above=0)
    expect(globals(), 'beta1 beta2 dropout', least=0, below=1)
    sequences_per_step = batch_size * gradient_accumulation_steps
    if sequences_per_step % world_size:
        usage(f"a step's {sequences_per_step} sequences do not divide among {world_size} processes")
    settings = current(globals())  # as they go into checkpoints: device is still 'auto'

    # 3. the device
    device, dtype = resolve_device(device, dtype, save_memory=activation_checkpointing)
    device_type = device.split(':')[0]
    autocast = torch.autocast(device_type, dtype=getattr(torch, dtype), enabled=dtype != 'float32')

    # 4. the data
    tokenizer, data = load_dataset(os.path.join(data_dir, dataset))
    if saved and saved_tokenizer.to_dict() != tokenizer.to_dict():
        sys.exit(f"{source} uses a different tokenizer than dataset={dataset}: prepare it again "
                 f"with  python prepare.py tokenizer=FOLDER …")
    shortest = min(len(ids) for ids in data.values())
    if shortest <= block_size:
        sys.exit(f"dataset={dataset} has a split of only {shortest:,} tokens: give prepare.py more "
                 f"text, or take block_size={shortest // 2}")
    sequences_per_process = sequences_per_step // world_size
    mine = slice(rank * sequences_per_process, (rank + 1) * sequences_per_process)
    tokens_per_step = sequences_per_step * block_size

    def get_batch(step):
        """The sequences of this process: x and y (N, T), and the number of targets in the step.
        The target of a token is the token after it, or the one that was masked."""
        rng = np.random.default_rng([seed, step])
        starts = rng.integers(len(data['train']) - block_size, size=sequences_per_step)
        tokens = windows(data['train'], starts[mine], block_size)
        if objective == 'clm':
            if device_type == 'cuda':  # from page-locked memory, so that the CPU need not wait
                tokens = tokens.pin_memory().to(device, non_blocking=True)
            return tokens[:, :-1], tokens[:, 1:], tokens_per_step
        # drawn for all sequences, so that each process knows the number of targets in all
        noise = np.random.default_rng([seed, step, 1]).random((3, sequences_per_step, block_size))
        x, y = mask_tokens(tokens[:, :-1], noise[:, mine], tokenizer)
        return x, y, max(int((noise[0] < 0.15).sum()), 1)

    # 5. the model: new, or with the weights of a checkpoint
    torch.manual_seed(seed)  # every process draws the same weights
    try:
        if saved:
            config = replace(saved_model.config, dropout=dropout, block_size=block_size)
        else:
            args = {f.name: settings[f.name] for f in fields(GPTConfig) if f.name in settings}
            config = GPTConfig(vocab_size=tokenizer.vocab_size, causal=objective == 'clm', **args)
    except ValueError as e:
        usage(str(e))
    model = build_model(config)
    if saved:
        model.load_state_dict(saved_model.state_dict())
    model.activation_checkpointing = activation_checkpointing
    model.chunked_loss = True  # less memory for the same loss
    sharded = ddp and parallel != 'ddp'
    if not sharded:
        model.to(device)
    else:
        # Each process stores a part of every matrix (Rajbhandari et al. 2020). A layer's parts are
        # gathered when it computes. zero keeps them until backward; fsdp gathers them again there
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
        from torch.distributed.tensor import init_device_mesh
        mesh = init_device_mesh(device_type, (world_size,))
        offload = CPUOffloadPolicy(device_type == 'cuda') if cpu_offload else OffloadPolicy()
        for layer in [*getattr(model, 'blocks', []), model]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=parallel == 'fsdp',
                        offload_policy=offload)
    train_model = torch.compile(model) if compile else model  # the same weights as model
    if ddp and not sharded:
        train_model = DistributedDataParallel(train_model, gradient_as_bucket_view=True)

    # 6. the optimizers
    optimizers = configure_optimizers(model, optimizer, learning_rate, muon_learning_rate,
                                      weight_decay, (beta1, beta2))
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == 'float16')  # multiplies the loss
    step, best, resumed_at = 0, math.inf, None
    if resuming:
        load_optimizers(optimizers, saved['optimizers'])
        scaler.load_state_dict(saved['scaler'])
        step = resumed_at = saved['step']
        best = saved['best']
    saved = saved_model = None  # frees their memory

    def lr_fraction(step):
        """The learning rate at this step, as a fraction of its peak."""
        end = lr_decay_iters or max_iters
        return lr_schedule(step, schedule, warmup_iters, end, min_lr / learning_rate)

    def get_lr(step):
        return learning_rate * lr_fraction(step)

    # 7. what this will cost, and where it goes
    n_params = sum(p.numel() for p in model.parameters())
    # a weight multiplies once forward and twice backward, 2 FLOPs each; attention adds QKᵀ and
    # AV (Chowdhery et al. 2022, appendix B). Embeddings are looked up, not multiplied
    tables = 'wpe' if tie_weights else ('wte', 'wpe')
    flops_per_token = sum(6 * p.numel() for name, p in model.named_parameters()
                          if not name.startswith(tables))
    if model_type == 'gpt':
        flops_per_token += 12 * n_layer * n_head * config.head_dim * block_size
    n_tokens = tokens_per_step * max_iters
    print0(f"{model_type}: {n_params:,} parameters, {flops_per_token:,} FLOPs per token, "
           f"{16 * n_params / 1e6:,.0f} MB with AdamW (Muon: less), more for activations")
    print0(f"{tokens_per_step:,} tokens per step * {max_iters:,} steps = {n_tokens:,}: "
           f"{n_tokens / n_params:.1f} per parameter, {n_tokens / len(data['train']):.1f} epochs")
    print0(f"on {device}, {dtype}, {world_size} process{'es' if world_size > 1 else ''}")
    gpu = torch.cuda.get_device_name() if device_type == 'cuda' else ''
    if gpu and not compile:
        print0("compile=True would take a minute to start, and then train faster")
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), 0)
    log = Log(out_dir, step, max_iters, log_interval, tokens_per_step, best=best,
              peak=world_size * peak / max(flops_per_token, 1), master_process=master_process)

    def save(name, **more):
        """Write a checkpoint. All processes must call this, since each may hold a part."""
        weights = full_state_dict(model.state_dict())
        if master_process:
            save_checkpoint(os.path.join(out_dir, name), weights, config, tokenizer,
                            script='train.py', step=step, settings=settings, **more)

    @torch.no_grad()
    def evaluate(ids, n):
        """Mean loss in nats per target, over n windows that are evenly spread over the text, or
        over all whole windows if n is 0. Every process computes all of them."""
        starts = np.arange(0, len(ids) - block_size, block_size)
        if 0 < n < len(starts):
            starts = np.linspace(0, len(ids) - block_size - 1, n).astype(int)
        model.eval()
        loss_sum, n_targets = 0.0, 0
        for i in range(0, len(starts), 4 * batch_size):  # 4: no gradients, so there is room
            tokens = windows(ids, starts[i:i + 4 * batch_size], block_size)
            x, y = tokens[:, :-1], tokens[:, 1:]
            if objective == 'mlm':  # always the same masks
                noise = np.random.default_rng(i).random((3, *x.shape))
                x, y = mask_tokens(x, noise, tokenizer)
            with autocast:
                loss_sum += model(x.to(device), y.to(device)).item()
            n_targets += (y >= 0).sum().item()
        model.train()
        return loss_sum / n_targets

    # 8. the loop
    asked = stop_when_asked(ddp)  # no longer empty after Ctrl-C or kill
    stop = False                  # what all processes have agreed on
    while True:
        # 8.1 evaluate, save, show; at resumed_at, the saved run has evaluated already
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss = evaluate(data['val'], eval_iters * batch_size)
            if log.evaluation(step, val_loss):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset)
            if step > 0 and master_process and objective == 'clm' and not sharded:
                model.eval()
                text = complete(model, tokenizer, [[tokenizer.eot]], 80, temperature=0.8)[0]
                print('    | ' + text.replace('\n', '\n    | '))
                model.train()
        if step not in (0, resumed_at) and (step % eval_interval == 0 or step == max_iters or stop):
            states = [full_state_dict(o.state_dict()) for o in optimizers]
            save('resume.pt', optimizers=states, best=log.best, scaler=scaler.state_dict())
        if step >= max_iters or stop:
            break
        log.clock = time.perf_counter()  # the step begins here
        # 8.2 forward and backward: the sequences of this process, batch_size at a time
        x, y, n_targets = get_batch(step)
        loss_sum = torch.zeros((), device=device)
        for i in range(0, sequences_per_process, batch_size):
            first = rank * sequences_per_process + i
            torch.manual_seed(((seed << 40) + (step << 16) + first) % 2**63)  # for dropout
            # processes exchange gradients once a step, in the last backward pass
            last = i + batch_size >= sequences_per_process
            if sharded:
                model.set_requires_gradient_sync(last)
            elif ddp:
                train_model.require_backward_grad_sync = last
            with autocast:
                loss = train_model(x[i:i + batch_size].to(device), y[i:i + batch_size].to(device))
                loss = loss / n_targets
            # * world_size: gradients are averaged over processes, and we want their sum
            scaler.scale(loss * world_size).backward()
            loss_sum += loss.detach()
        # 8.3 update
        grad_norm = update(model, optimizers, lr_fraction(step), grad_clip, scaler)
        step += 1
        n_asked = torch.tensor(len(asked))
        if ddp:  # the loss is the sum over processes; if one of them was asked to stop, all do
            dist.all_reduce(loss_sum)
            dist.all_reduce(n_asked)
        stop = n_asked.item() > 0
        # 8.4 report
        log.training(step, loss_sum, grad_norm, get_lr(step - 1), last=stop)

    # 9. the end: what was learned
    log.close()  # from here on, Ctrl-C ends at once
    if step < max_iters:
        print0(f"stopped at step {step}; next:  python train.py init_from=resume out_dir={out_dir}")
    else:
        ids = data['val'][:1_000_000]
        val_loss = evaluate(ids, 0)
        print0(f"validation loss over {len(ids):,} tokens: {val_loss:.4f}, perplexity "
               f"{math.exp(min(val_loss, 700)):.2f}")
        if master_process and objective == 'clm' and tokenizer.kind != 'word':  # <unk> is no text
            text = tokenizer.decode([i for i in ids.tolist() if i != tokenizer.eot]).encode()
            bits = {'gzip': 8 * len(gzip.compress(text))}
            with suppress(ImportError):  # some Pythons are built without it
                bits['xz'] = 8 * len(importlib.import_module('lzma').compress(text))
            bits['this model'] = val_loss * len(ids) / math.log(2)
            each = ', '.join(f"{name} {n / len(text):.3f}" for name, n in bits.items())
            print("a language model is a compressor. bits per byte on the same "
                  f"{len(text):,} bytes of validation text: {each}")
        if master_process:
            plot(out_dir)
        use = {'clm': 'sample.py out_dir=', 'mlm': 'finetune.py task=classify dataset=… init_from='}
        print0(f"next:  python {use[objective]}{out_dir}")
    if ddp:
        dist.barrier()  # leave together: a process that is gone early breaks the connections
        dist.destroy_process_group()

"""
Pretraining: a model reads text and learns to say what comes next.

    python train.py                                  # a small GPT on Python's standard library, minutes on a laptop
    python train.py dataset=shakespeare              # any dataset that prepare.py made
    python train.py init_from=resume                 # go on exactly where a run stopped
    python train.py model_type=bigram                # the ladder: bigram, mlp, lstm, gpt
    torchrun --nproc_per_node=8 train.py             # the same run on 8 GPUs, or 8 CPU processes; on 2 machines, each:
    torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py
    torchrun --nproc_per_node=8 train.py parallel=fsdp   # a model too large for any one of them
    python train.py objective=mlm out_dir=out-bert   # an encoder, which fills gaps from both sides, as BERT

Writes out_dir/ckpt.pt (the best weights so far: all that sample.py needs), out_dir/resume.pt (everything to go on
exactly) and out_dir/log.csv. Ctrl-C finishes the step, saves and says how to go on. The batch of step t is a function
of (seed, t) alone, so a run that was resumed, or spread over more processes, reads the same text in the same order.
"""
from configurator import configure, expect, usage

# what, and where to
out_dir = 'out'
init_from = 'scratch'   # scratch, resume (go on with the run in out_dir), or the folder of a checkpoint to start from,
                        # with a longer block_size if you like
dataset = 'python'      # a folder in data_dir, made by prepare.py
data_dir = 'data'
objective = 'clm'       # clm | mlm: say the next token (causal language model), or guess hidden ones (BERT)
# the model; the defaults are a small Qwen3 by architecture, and GPT-2 is
# position=learned norm=layernorm mlp=gelu qk_norm=no bias=yes tie_weights=yes
model_type = 'gpt'      # gpt | lstm | mlp | bigram: the ladder of language models
n_layer = 4
n_head = 3              # heads of 64 channels, as in GPT-2
n_kv_head = 0           # heads for keys and values (grouped-query attention); 0: as many as n_head
n_embd = 192
block_size = 256        # context length, in tokens
position = 'rotary'     # rotary | learned | sinusoidal
norm = 'rmsnorm'        # rmsnorm | layernorm
mlp = 'swiglu'          # swiglu | gelu
qk_norm = True          # normalise queries and keys: attention stays calm at high learning rates
bias = False            # biases in linear layers and layer norms
tie_weights = False     # one matrix for reading and writing tokens
dropout = 0.0           # 0 for pretraining; 0.1 and more where the same text is read many times
# how much
batch_size = 8                   # rows that a process computes at once: halve it when memory runs out, and …
gradient_accumulation_steps = 1  # … double this: a step learns from batch_size * gradient_accumulation_steps rows
max_iters = 1400                 # 1400 steps * 8 rows * 256 tokens = 2.9M tokens
# how fast
optimizer = 'muon'          # muon | adamw: Muon for the matrices in the layers and AdamW for the rest, or AdamW for all
learning_rate = 0.02        # AdamW's peak rate: high, for embeddings; with optimizer=adamw, 1e-3 is a good start
muon_learning_rate = 0.02   # Muon's peak rate; its steps are orthogonal matrices, so it is a scale of its own
schedule = 'linear'         # cosine | linear | step | wsd | constant: how it falls; wsd: only in the last fifth
warmup_iters = 20           # steps in which it rises from 0
lr_decay_iters = 0          # step at which the fall ends; 0: max_iters
min_lr = 0.0                # where it ends (AdamW's; Muon's falls in proportion)
weight_decay = 0.0
beta1 = 0.9                 # AdamW's memory of the gradient: about 1 / (1 - beta1) = 10 steps
beta2 = 0.95                # and of its square: about 20 steps
grad_clip = 1.0             # longest gradient let through; 0: any
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 10             # batches of batch_size rows in each: always the same ones, evenly spread over val.bin
log_interval = 20           # steps between lines
sample_every = 1            # show what the model writes at every so many evaluations; 0: never
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16 | float16: of the multiplications; the weights stay float32
parallel = 'ddp'            # ddp | zero | fsdp: processes share out the rows of a batch; zero: and the optimizers'
                            # memory (ZeRO 1, Rajbhandari et al. 2020); fsdp: and weights and gradients (ZeRO 3), where
                            # in 16 bits the residual stream is rounded, too
cpu_offload = False         # with fsdp: shares wait in the CPU's memory, so that a GPU holds little more than a layer
activation_checkpointing = False  # a third more computing for much less memory: layers are computed again going back
compile = False             # fuse the model's operations with torch.compile: slow to start, then faster
tensorboard = False         # write out_dir/tensorboard, too: see it with  tensorboard --logdir out
seed = 1337
given = configure(globals())
SETTINGS = [k for k, v in globals().items() if isinstance(v, (int, float, str)) and not k.startswith('_')]

import csv, importlib, json, math, os, sys, time
try:
    import resource
except ImportError:  # on Windows
    resource = None
from contextlib import nullcontext
from dataclasses import asdict, fields
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from model import (GPTConfig, Log, Tokenizer, build_model, check_finite, configure_optimizers, describe,
                   generate, load_checkpoint, load_dataset, resolve_device, restore, save_atomically,
                   schedule_rate, share, sparkline, stop_when_asked)

# peak bfloat16 FLOP/s (float16 on the T4) of accelerators, without sparsity, from NVIDIA's data sheets
PEAKS = {'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L40S': 362e12, 'RTX 4090': 165e12, 'T4': 65e12}

def get_batch(data, step, rows, first, count, tokenizer):
    """
    `count` of the `rows` rows in the batch of this step, from row `first` on: inputs x and targets y, each (count, T),
    and the number of targets in all rows. y is x moved by one: the target of every token is the token after it.
    """
    starts = np.random.default_rng([seed, step]).integers(len(data) - block_size, size=rows)[first:first + count]
    both = torch.from_numpy(np.stack([data[i:i + block_size + 1] for i in starts]).astype(np.int64))
    if objective == 'clm':
        return both[:, :-1], both[:, 1:], rows * block_size
    # for all rows, so that each process knows the number of targets in all
    luck = np.random.default_rng([seed, step, 1]).random((3, rows, block_size))
    x, y = hide(both[:, :-1], luck[:, first:first + count], tokenizer)
    return x, y, max(int((luck[0] < 0.15).sum()), 1)

def hide(x, luck, tokenizer):
    """
    BERT's exercise (Devlin et al. 2018, 3.1): of the tokens x (B, T), pick 15 % to be guessed. 80 % of those turn into
    <|pad|> (which no text contains: our [MASK]), 10 % into any token, 10 % stay, so that no token is above suspicion.
    luck (3, B, T), uniform in [0, 1), decides. Returns the new x, and y: -100 where nothing is to be guessed.
    """
    pick, how, which = torch.from_numpy(luck)
    y = torch.where(pick < 0.15, x, -100)
    other = torch.where(how < 0.8, tokenizer.pad, torch.where(how < 0.9, (which * len(tokenizer.vocab)).long(), x))
    return torch.where(pick < 0.15, other, x), y

def eval_windows(data, n):
    """Where the n windows of an evaluation start: evenly spread; end to end, if n is 0 or they would overlap."""
    if n and n * block_size < len(data) - 1:
        return np.linspace(0, len(data) - block_size - 1, n).astype(int)
    return np.arange(0, len(data) - (1 if objective == 'clm' else block_size), block_size)  # gaps need both sides

def window(data, starts, tokenizer):
    """Windows of data from these starts -> x, y (n, T); past its end, y is -100, which counts for nothing."""
    x = torch.zeros(len(starts), block_size, dtype=torch.long)
    y = torch.full((len(starts), block_size), -100)
    for row, i in enumerate(starts):
        ids = torch.from_numpy(data[i:i + block_size + 1].astype(np.int64))
        x[row, :len(ids) - 1], y[row, :len(ids) - 1] = ids[:-1], ids[1:]
    if objective == 'mlm':  # a window always hides the same tokens
        there = y >= 0
        x, y = hide(x, np.stack([np.random.default_rng(i).random((3, block_size)) for i in starts], axis=1), tokenizer)
        y[~there] = -100
    return x, y

def rate(step):
    """The fraction of the peak learning rate at this step."""
    return schedule_rate(step, schedule, warmup_iters, lr_decay_iters or max_iters, min_lr / learning_rate)

def peak_memory(kind):
    """The most bytes that this process ever held, on its GPU or, without one, in all."""
    if kind == 'cuda':
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0

def gather(state):
    """
    A state_dict, with the tensors that parallel=fsdp spreads over the processes put together again: every process must
    call this, and the first one, which saves, gets them all.
    """
    if isinstance(state, (dict, list)):
        return {k: gather(v) for k, v in state.items()} if isinstance(state, dict) else [gather(v) for v in state]
    if hasattr(state, 'full_tensor'):
        state = state.full_tensor()
        return state.cpu() if dist.get_rank() == 0 else None
    return state

def join():
    """
    torchrun has started us together with others: meet them. Returns our rank and the number of processes. subtle: its
    store outlives processes that died, and who is started again must not find their addresses there: hence the prefix.
    On several machines, whose counts of restarts may differ, there can be none.
    """
    store, rank, world = next(rendezvous('env://'))
    if world == int(os.environ.get('LOCAL_WORLD_SIZE', 0)):
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group('cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo', store=store, rank=rank,
                            world_size=world)
    return rank, world

def last_save(asked):
    """
    torchrun --max-restarts=N starts all processes again when one has died: the resume.pt to go on from then, if it was
    written by a run that was asked for the same.
    """
    restarts = torch.tensor(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)))  # of this machine's processes …
    dist.all_reduce(restarts, dist.ReduceOp.MAX)                                  # … and all must decide alike
    path = os.path.join(out_dir, 'resume.pt')
    if restarts > 0 and os.path.exists(path):
        found = load_checkpoint(path)
        return found if found.get('asked') == asked else None

def train():
    # 1. processes: torchrun starts several and tells each who it is; alone, we are the only one
    many = 'RANK' in os.environ
    rank, world = join() if many else (0, 1)
    chief = rank == 0  # the one that prints and saves
    say = (lambda line: print(line, flush=True)) if chief else lambda line: None

    # 2. settings: those of the run that we resume, unless given again; and what makes no sense
    asked = {k: globals()[k] for k in SETTINGS}
    resumed = last_save(asked) if many and init_from != 'resume' else None
    if init_from == 'resume':
        resumed = load_checkpoint(os.path.join(out_dir, 'resume.pt'))
    if many:  # all from the same step, or none: the largest and, by way of -step, the smallest must agree
        steps = torch.tensor([resumed['step'] if resumed else 0] * 2) * torch.tensor([1, -1])
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if steps.sum() != 0:
            sys.exit(f"the processes find different saves in {out_dir}: it must be a folder that all machines share")
    if resumed:
        if 'data' not in resumed:
            sys.exit(f"{out_dir}/resume.pt is no run of train.py: start from its weights with init_from={out_dir}")
        own = {k: v for k, v in resumed['settings'].items() if k in SETTINGS and k not in ('out_dir', 'init_from')}
        globals().update({k: v for k, v in own.items() if k not in given})
    expect(globals(), 'batch_size gradient_accumulation_steps eval_interval eval_iters log_interval', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip weight_decay min_lr sample_every seed', least=0)
    expect(globals(), 'learning_rate muon_learning_rate', above=0)
    expect(globals(), 'beta1 beta2', least=0, below=1)
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            usage("tensorboard=True needs one more package:  pip install tensorboard")
    if model_type != 'gpt' and objective == 'mlm':
        usage(f"objective=mlm needs model_type=gpt: {model_type} reads from left to right")

    rows = batch_size * gradient_accumulation_steps
    if rows % world:
        usage(f"batch_size * gradient_accumulation_steps = {rows} rows do not divide among {world} processes: try "
              f"gradient_accumulation_steps={world // math.gcd(batch_size, world)}")
    if parallel != 'ddp' and 'parallel' in given and not many:
        usage(f"parallel={parallel} is for several processes: torchrun --standalone --nproc_per_node=2 train.py "
              f"parallel={parallel}")
    zero, fsdp = many and parallel == 'zero', many and parallel == 'fsdp'
    if cpu_offload and 'cpu_offload' in given and not fsdp:
        usage("cpu_offload=True belongs to parallel=fsdp, which is not asked for")
    on_cpu = many and device == 'auto' and not torch.cuda.is_available()  # processes cannot talk through Apple's mps
    where, number = resolve_device('cpu' if on_cpu else device, dtype, activation_checkpointing)
    kind = where.split(':')[0]
    if many and kind == 'mps':
        usage("device=mps is for one process: leave torchrun out, or use device=cpu")
    if kind == 'cuda':
        local = int(os.environ.get('LOCAL_RANK', rank))
        if many and local >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            usage(f"this machine has {gpus} GPUs: torchrun --nproc_per_node={gpus}")
        where = f"cuda:{local}" if many else where
        torch.cuda.set_device(where if ':' in where else 0)
    autocast = nullcontext() if number == 'float32' else torch.autocast(kind, dtype=getattr(torch, number))

    # 3. data, and the model: new, from a checkpoint, or as it was
    tokenizer, data = load_dataset(os.path.join(data_dir, dataset))
    with open(os.path.join(data_dir, dataset, 'meta.json'), encoding='utf-8') as f:
        sources = {split: about['sha256'] for split, about in json.load(f)['splits'].items()}
    torch.manual_seed(seed)  # every process draws the same weights
    old = resumed or (load_checkpoint(init_from) if init_from != 'scratch' else None)
    names = [f.name for f in fields(GPTConfig) if f.name in SETTINGS]
    try:
        if not old:
            shape, free = {'vocab_size': tokenizer.vocab_size, 'causal': objective == 'clm'}, names
        else:
            source = f"{out_dir}/resume.pt" if resumed else f"the checkpoint in {init_from}"
            shape, free = old['config'], ['dropout']  # what may change; and positions that are computed go on for ever
            if 'block_size' in given and not resumed and shape['position'] != 'learned':
                free.append('block_size')
            if Tokenizer.from_dict(old['tokenizer']) != tokenizer:
                sys.exit(f"{source} reads with another tokenizer than dataset={dataset}: train from scratch")
            if shape['causal'] != (objective == 'clm'):
                sys.exit(f"{source} was made for another objective: add  "
                         f"objective={'clm' if shape['causal'] else 'mlm'}")
            for name in names:
                value = shape['n_head'] if (name, globals()[name]) == ('n_kv_head', 0) else globals()[name]
                if name in given and name not in free and value != shape[name]:
                    sys.exit(f"{source} has {name}={shape[name]}, not {value}: leave {name} out")
        config = GPTConfig(**{**shape, **{name: globals()[name] for name in free}})
        globals().update({name: getattr(config, name) for name in names if old})
    except ValueError as e:
        usage(str(e))
    causal = config.causal  # sees only what came before; False for objective=mlm
    for split, ids in data.items():
        if len(ids) <= block_size:
            sys.exit(f"{split}.bin of {dataset} has {len(ids):,} tokens, not more than block_size={block_size}: "
                     f"give prepare.py more text, or train with block_size={max(len(ids) // 2, 1)}")
    mine, tokens = rows // world, rows * block_size  # rows of this process, tokens of all, per step
    model = build_model(config)
    if old:
        model.load_state_dict(old['model'])
    model.activation_checkpointing = activation_checkpointing
    if not fsdp:  # which moves a layer at a time, since all of them may not fit
        model.to(where)

    # 4. optimizers; and processes that share memory
    if fsdp:  # each keeps a part of every matrix; a layer is put together just while it computes
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
        from torch.distributed.tensor import init_device_mesh
        half = None if number == 'float32' else getattr(torch, number)
        policy = MixedPrecisionPolicy(half, reduce_dtype=torch.float32)
        how = {'mesh': init_device_mesh(kind, (world,)), 'mp_policy': policy,
               'offload_policy': CPUOffloadPolicy(pin_memory=kind == 'cuda') if cpu_offload else OffloadPolicy()}
        for layer in getattr(model, 'blocks', []):
            fully_shard(layer, **how)
        fully_shard(model, **how)
    optimizers = configure_optimizers(model, optimizer, learning_rate, muon_learning_rate, weight_decay, (beta1, beta2))
    if zero:  # each keeps the optimizers' state of some of the matrices, and hands round what it updates
        from torch.distributed.optim import ZeroRedundancyOptimizer
        optimizers = [ZeroRedundancyOptimizer(o.param_groups, type(o)) for o in optimizers]
    scaler = torch.amp.GradScaler(kind, enabled=number == 'float16')  # keeps float16's small gradients from vanishing
    step, best = 0, math.inf
    if resumed:
        if resumed['data'] != sources:
            sys.exit(f"{out_dir}/resume.pt has read other text than {data_dir}/{dataset} holds now: start a new run "
                     f"from its weights with init_from={out_dir}")
        if len(optimizers) != len(resumed['optimizers']):
            sys.exit(f"{out_dir}/resume.pt was written with another optimizer than {optimizer}: leave optimizer out")
        for o, state in zip(optimizers, resumed['optimizers']):
            params = [p for group in o.param_groups for p in group['params']]
            for i, kept in state['state'].items():  # of what parallel=fsdp spreads, our part
                kept.update({k: share(v, params[i]) for k, v in kept.items() if v.shape == params[i].shape})
            restore(o, state)
            for p, kept in o.optim.state.items() if zero else ():  # it leaves AdamW's count of steps on the CPU
                kept.update({k: v.to(p.device) for k, v in kept.items()})
        if resumed['scaler']:
            scaler.load_state_dict(resumed['scaler'])
        step, best = resumed['step'], resumed['best']
    old = resumed = None  # let go of the copies
    run = torch.compile(model) if compile else model
    if many and not fsdp:
        run = DistributedDataParallel(run, forward_sync_buffers=False, gradient_as_bucket_view=True)

    # 5. what this will cost
    cost, without = describe(model, min(batch_size, mine), number, optimizer, say), peak_memory(kind)
    total = tokens * max_iters
    say(f"{tokens:,} tokens per step * {max_iters:,} steps = {total:,} tokens, {total / cost['parameters']:.1f} per "
        f"parameter, {total / len(data['train']):.1f} times through the text; "
        f"{cost['flops_per_token'] * total:.2g} FLOPs")
    say(f"on {where}, {number}, {world} process{'es' * (world > 1)}")

    # 6. where it goes; an earlier run's results are set aside, not lost
    if chief:
        log = Log(out_dir, 'step tokens train_loss val_loss rate grad_norm tokens_per_second seconds', step)
        board = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=step + 1) if tensorboard else None
    settings = {k: globals()[k] for k in SETTINGS}

    def save(name, **more):
        """All processes call this, since each may hold a part of the whole."""
        state = gather({'model': model.state_dict(), **more})
        if chief:
            save_atomically(os.path.join(out_dir, name), {
                'format': 'ninefiles-1', 'config': asdict(config), 'tokenizer': tokenizer.to_dict(), 'step': step,
                'settings': settings, **state})

    def save_progress():
        """resume.pt: with it, a run that stopped ends in the same weights, bit for bit."""
        for o in optimizers if zero else []:
            o.consolidate_state_dict()
        states = [o.state_dict() if chief or not zero else {} for o in optimizers]
        save('resume.pt', optimizers=states, scaler=scaler.state_dict(), best=best, data=sources, asked=asked)

    @torch.no_grad()
    def evaluate(ids, starts):
        """Mean loss in nats over the targets in these windows, which the processes share out among them."""
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        size = 4 * batch_size  # rows at once: without gradients, they need little memory
        for i in range(0, len(starts), world * size):
            some = starts[i + rank * size:][:size]
            # none left: one without targets, because with fsdp all take part to the end
            x, y = window(ids, some if len(some) else [len(ids) - 1], tokenizer)
            with autocast:
                total[0] += model(x.to(where), y.to(where), reduction='sum').item()
            total[1] += (y >= 0).sum()
        model.train()
        if many:
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    @torch.no_grad()
    def show():
        """What the model can say for itself: how it goes on from nothing or, if it fills gaps, [what it puts there]."""
        with autocast:
            if causal:
                ids = [tokens[0] for tokens, _ in generate(model, [[tokenizer.eot]], 80, temperature=0.8, seed=seed,
                                              stop_tokens=[tokenizer.eot])]
                text = tokenizer.decode(ids)
            else:
                x, y = window(data['val'], [0], tokenizer)
                guesses = model.eval()(x[:, :80].to(where)).argmax(-1)[0].tolist()
                model.train()
                text = ''.join('[' + tokenizer.decode([guess]) + ']' if hidden else tokenizer.decode([i])
                               for i, guess, hidden in zip(x[0].tolist(), guesses, (y[0] >= 0).tolist()))
        return '    | ' + text.replace('\n', '\n    | ')

    def record(**values):
        """A row of log.csv."""
        log.row(step=step, tokens=step * tokens, **values)
        for name, value in values.items() if board else ():
            board.add_scalar(name, value, step)

    # 7. Ctrl-C and kill ask us to stop after this step
    stop, put_back = stop_when_asked(many)

    # 8. the loop
    gpu = torch.cuda.get_device_name() if kind == 'cuda' else ''
    peak = next((flops for name, flops in PEAKS.items() if name in gpu), None)
    first_step, history, losses, stopping = step, [], [], False
    evaluated = step if step > 0 and step % eval_interval == 0 else None  # by the run that goes on here
    model.train()
    start = mark = time.perf_counter()
    while True:
        # 8.1 evaluate, save, show
        if (step % eval_interval == 0 or step == max_iters) and step != evaluated:
            pause = time.perf_counter()
            val_loss = evaluate(data['val'], eval_windows(data['val'], eval_iters * batch_size))
            check_finite('validation loss', val_loss, step, learning_rate * rate(step), out_dir, best)
            say(f"step {step}: validation loss {val_loss:.4f}{', the best so far' if val_loss < best else ''}")
            if chief:
                record(val_loss=val_loss, seconds=pause - start)
            if val_loss < best:
                best = val_loss
                save('ckpt.pt', val_loss=best, dataset=dataset)
            if step > first_step:
                save_progress()
                if chief and sample_every and step // eval_interval % sample_every == 0 and not fsdp:
                    say(show())
            mark += time.perf_counter() - pause  # the clock of tokens per second stands still meanwhile
        if step >= max_iters or stopping:
            break
        # 8.2 forward and backward: the rows of this process, batch_size at a time
        x, y, targets = get_batch(data['train'], step, rows, rank * mine, mine, tokenizer)
        loss_sum = torch.zeros((), device=where)
        for i in range(0, mine, batch_size):
            torch.manual_seed((seed << 40) + (step << 16) + rank * mine + i & 2**63 - 1)  # for dropout: by step and row
            last = i + batch_size >= mine
            if fsdp:
                model.set_requires_gradient_sync(last)
            with run.no_sync() if many and not fsdp and not last else nullcontext():  # exchange gradients once a step
                with autocast:
                    loss = run(x[i:i + batch_size].to(where), y[i:i + batch_size].to(where), reduction='sum') / targets
                scaler.scale(loss * world).backward()  # * world: gradients get averaged, and we want their sum
            loss_sum += loss.detach()
        losses.append(loss_sum)
        # 8.3 update
        for o in optimizers:
            scaler.unscale_(o)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        grad_norm = grad_norm.full_tensor() if hasattr(grad_norm, 'full_tensor') else grad_norm
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
        if many:  # if one was asked to stop, all do
            flag = torch.tensor(stopping, dtype=torch.int)
            dist.all_reduce(flag)
            stopping = flag.item() > 0
        # 8.4 report
        if step % log_interval == 0 or step == max_iters or stopping:
            report = torch.stack(losses)
            if many:
                dist.all_reduce(report)  # the sum over processes
            values = report.tolist()
            for at, value in enumerate(values, step - len(values)):
                check_finite('loss', value, at, learning_rate * rate(at), out_dir, best)
            if not scaler.is_enabled():
                check_finite('gradient', grad_norm.item(), step - 1, learning_rate * rate(step - 1), out_dir, best)
            now = time.perf_counter()
            mean, speed = sum(values) / len(values), tokens * len(values) / max(now - mark, 1e-9)
            mfu = f" ({100 * speed * cost['flops_per_token'] / peak / world:.0f} % of peak)" if peak else ''
            left = int((max_iters - step) * (now - start) / (step - first_step))
            say(f"step {step}/{max_iters} | loss {mean:.4f} | rate {rate(step - 1):.2f} | norm {grad_norm:.2f} | "
                f"{speed:,.0f} tokens/s{mfu} | {left // 60}:{left % 60:02d} left")
            if chief:
                record(train_loss=mean, rate=rate(step - 1), grad_norm=grad_norm.item(), tokens_per_second=speed,
                       seconds=now - start)
            if not history and first_step == 0 and world == 1 and without:
                more, memory = peak_memory(kind) - without, cost['memory']
                say(f"memory: {more / 1e6:,.0f} MB more than before the first step, and weights of "
                    f"{memory['weights'] / 1e6:,.0f} MB; expected in all: {sum(memory.values()) / 1e6:,.0f} MB")
            history.append(mean)
            losses, mark = [], now

    # 9. the end: what was learned
    if stopping:
        save_progress()
        say(f"stopped after step {step}; go on with  python train.py init_from=resume out_dir={out_dir}")
    else:
        put_back()
        ids = data['val'][:1_000_000]
        loss = evaluate(ids, eval_windows(ids, 0))
        say(f"loss {sparkline(history)} {history[-1]:.3f}" if history else 'nothing left to train')
        say(f"validation loss over {'' if causal else 'the hidden ones of '}{len(ids):,} tokens: {loss:.4f}, "
            f"perplexity {math.exp(min(loss, 700)):.2f}")
        if chief and causal and tokenizer.kind != 'word':  # note: <unk> loses text, so words have no count of bytes
            text = tokenizer.decode([i for i in ids.tolist() if i != tokenizer.eot]).encode()
            bits = {**compressors(text), 'this model': loss * (len(ids) - 1) / math.log(2)}
            say(f"a language model is a compressor. bits per byte on the same {len(text):,} bytes of validation text: "
                + ', '.join(f"{name} {b / len(text):.3f}" for name, b in bits.items()))
        if chief:
            log.file.close()
            plot(log.path)
        say("next:  python " + (f"sample.py out_dir={out_dir}".removesuffix(' out_dir=out') if causal else
                                f"finetune.py task=classify init_from={out_dir}"))
    if many:
        dist.barrier()  # leave together: a process that is gone early takes its connections down with it
        dist.destroy_process_group()
    put_back()  # not before: who asks a second time shall not interrupt what was saved for the first

def compressors(text):
    """{'gzip -9': bits, …}: how small the usual programs make these bytes, as far as this Python has them."""
    bits = {}
    for name, module, how in (('gzip -9', 'gzip', {'compresslevel': 9}), ('bzip2', 'bz2', {}), ('xz', 'lzma', {})):
        try:
            bits[name] = 8 * len(importlib.import_module(module).compress(text, **how))
        except ImportError:  # a Python that was built without it
            continue
    return bits

def plot(log_path):
    """log.csv -> loss.png beside it, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use('Agg')  # a file, no window
    import matplotlib.pyplot as plt
    with open(log_path, encoding='utf-8') as f:
        table = list(csv.DictReader(f))
    for name in ('train_loss', 'val_loss'):
        points = [(int(r['step']), float(r[name])) for r in table if r[name]]
        plt.plot(*zip(*points), label=name)
    plt.xlabel('step'), plt.ylabel('loss, nats per token'), plt.legend(), plt.grid(alpha=0.3)
    plt.savefig(log_path.replace('log.csv', 'loss.png'), dpi=120)
    plt.close()

if __name__ == '__main__':
    train()

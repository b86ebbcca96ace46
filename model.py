"""
The model, and everything else that two scripts must agree on.

    1. GPT           one transformer whose settings span GPT-2 (2019) to Llama and Qwen3 (2025)
    2. The ladder    what came before it: bigrams, Bengio's neural model, an LSTM
    3. Tokenizer     text <-> ids: characters, words or byte pairs; special tokens; chats
    4. Sampling      generating quickly, with a cache of keys and values
    5. Optimizers    Muon and AdamW, and the schedule of the learning rate
    6. Files         datasets and checkpoints
    7. A run         what every training script needs around its loop: device, log, stopping
    8. Fast paths    what exists for speed or memory alone, and what each is equal to

Shape letters, here and in every script: B batch, T time (tokens), S keys, C channels (n_embd),
H heads, D channels per head, V vocabulary. tests/test_model.py shows what must hold.
"""
import csv, ctypes, json, math, os, re, signal, sys, time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from unittest.mock import patch
import numpy as np
import tiktoken
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils._filelock import FileLock
from torch.utils.checkpoint import checkpoint
from configurator import usage

# ---- 1. GPT ----
@dataclass
class GPTConfig:
    """The shape of a model; raises ValueError where heads do not fit. The defaults are a small
    modern model (Qwen3 by architecture). GPT-2 is position='learned', norm='layernorm', mlp='gelu',
    qk_norm=False, bias=True, tie_weights=True."""
    model_type: str = 'gpt'     # gpt | lstm | mlp | bigram: the steps of the ladder in section 2
    vocab_size: int = 1024
    block_size: int = 256       # the longest context, in tokens
    n_layer: int = 4
    n_head: int = 3
    n_kv_head: int = 0          # heads for keys and values: fewer than n_head share; 0: n_head
    n_embd: int = 192
    head_dim: int = 0           # 0: n_embd / n_head
    n_hidden: int = 0           # inner width of the MLP; 0: 4 n_embd, or 8/3 n_embd for swiglu
    position: str = 'rotary'    # rotary | learned
    norm: str = 'rmsnorm'       # rmsnorm | layernorm
    norm_eps: float = 1e-6
    mlp: str = 'swiglu'         # swiglu | gelu
    qk_norm: bool = True        # normalise queries and keys, so that attention scores stay small
    bias: bool = False          # biases in linear layers and layer norms
    tie_weights: bool = False   # the embedding and the head share one matrix
    causal: bool = True         # False: every token sees every token (an encoder)
    dropout: float = 0.0
    adapter_size: int = 0       # width of the adapters of finetune.py method=adapter; 0: none
    rope_theta: float = 10000.0
    rope_scaling: tuple = ()    # how Llama 3 stretches rotary positions: see rotary()

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        odd_width = self.model_type == 'gpt' and self.n_embd % (2 * self.n_head)  # to rotate pairs
        if self.n_head % self.n_kv_head or (odd_width and not self.head_dim):
            raise ValueError(f"n_embd={self.n_embd} n_head={self.n_head} n_kv_head={self.n_kv_head}"
                             ": 2 * n_head must divide n_embd, and n_kv_head n_head")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if not self.n_hidden and self.mlp == 'swiglu':  # three matrices, so of 2/3 of the width
            self.n_hidden = round_up(8 * self.n_embd / 3, 64)
        self.n_hidden = self.n_hidden or 4 * self.n_embd

def round_up(n, multiple):
    """(50257, 64) -> 50304"""
    return math.ceil(n / multiple) * multiple

class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019): LayerNorm without mean
    and bias. Unlike torch's own it gives the weight the type of x, which is quicker."""
    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)

def make_norm(config):
    if config.norm == 'rmsnorm':
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)

def rotary(positions, config):
    """positions (…, T) -> cos and sin of the angles for rotate(), each (…, T, 1, D). At position t
    channel pair i is rotated by t / theta^(2i/D) (Su et al. 2021, eq. 15), so the first pairs move
    like a second hand, the last ones like an hour hand. Channel i is paired with channel i + D/2,
    as in Llama (the paper pairs neighbours).
    rope_scaling = (factor, low, high, context) is how Llama 3.1 makes the context `factor` times
    longer: pairs that make more than `high` full turns in the original context stay as they are,
    those that make less than `low` become `factor` times slower, and those between are mixed."""
    channel = torch.arange(0, config.head_dim, 2, device=positions.device).float()
    frequency = 1.0 / config.rope_theta ** (channel / config.head_dim)  # (D/2,)
    if config.rope_scaling:
        factor, low, high, context = config.rope_scaling
        turns = context * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: as it is, 0: slower
        frequency = frequency * (keep + (1 - keep) / factor)
    angle = positions[..., None, None].float() * frequency  # (…, T, 1, D/2); 1: for all heads
    cos, sin = angle.cos(), angle.sin()
    # -sin, sin: the signs that rotate() needs
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

def rotate(x, cos, sin):
    """Rotate each channel pair (a, b) of x (B, T, H, D) to (a cos - b sin, b cos + a sin). The dot
    product of a query at position t and a key at position s then depends on t - s alone."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin  # roll: (a, b) -> (b, a)

def attention_by_hand(q, k, v, mask=None, dropout_p=0.0):
    """softmax(Q Kᵀ / sqrt(D)) V (Vaswani et al. 2017, eq. 1). q (B, H, T, D), k and v (B, H, S, D),
    mask True where a query may look -> the result (B, H, T, D), and the weights (B, H, T, S)."""
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S): how well they match
    if mask is not None:
        scores = scores.masked_fill(~mask, float('-inf'))  # exp(-inf) = 0: no weight at all
    weights = scores.softmax(dim=-1)  # each row sums to 1
    return F.dropout(weights, dropout_p) @ v, weights

class Attention(nn.Module):
    """Multi-head self-attention; with n_kv_head < n_head, in groups (Ainslie et al. 2023)."""
    def __init__(self, config, layer):
        super().__init__()
        c = self.config = config
        self.layer = layer  # 0, 1, 2 …: its place in the cache
        heads = c.n_head + 2 * c.n_kv_head  # queries, keys and values in one product
        self.qkv = nn.Linear(c.n_embd, heads * c.head_dim, bias=c.bias)
        self.proj = nn.Linear(c.n_head * c.head_dim, c.n_embd, bias=c.bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.keep_weights = False  # True: store what sample.py show=attention draws

    def forward(self, x, cos_sin=None, mask=None, cache=None):
        c = self.config
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, c.head_dim)  # (B, T, C) -> (B, T, all heads, D)
        q, k, v = qkv.split((c.n_head, c.n_kv_head, c.n_kv_head), dim=2)  # each (B, T, heads, D)
        q, k = self.q_norm(q), self.k_norm(k)  # scores stay small
        if cos_sin is not None:
            q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)  # positions
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, H, S, D): these T tokens and all before
        causal = c.causal and mask is None and T > 1  # a single new token sees all before it
        dropout = c.dropout if self.training else 0.0
        # One formula, two ways to compute it. torch's never stores the (T, S) weights and is faster
        # except for short rows in bfloat16 on a CPU (7 ms by hand, 14 ms by torch)
        by_hand = x.device.type == 'cpu' and v.dtype == torch.bfloat16 and 1 < T <= 512
        group = c.n_head // c.n_kv_head  # this many query heads share one key head
        if by_hand or self.keep_weights:
            if causal:
                mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # s <= t
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            y, weights = attention_by_hand(q, k, v, mask, dropout)
            self.weights = weights if self.keep_weights else None
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=group > 1)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, H D): heads side by side

class MLP(nn.Module):
    """What each token computes by itself. SwiGLU (Shazeer 2020) multiplies by a learned gate."""
    def __init__(self, config):
        super().__init__()
        c = config
        self.gate = nn.Linear(c.n_embd, c.n_hidden, bias=c.bias) if c.mlp == 'swiglu' else None
        self.up = nn.Linear(c.n_embd, c.n_hidden, bias=c.bias)
        self.down = nn.Linear(c.n_hidden, c.n_embd, bias=c.bias)

    def forward(self, x):
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate='tanh'))  # the tanh form is GPT-2's
        return self.down(F.silu(self.gate(x)) * self.up(x))

class Adapter(nn.Module):
    """x + a small change that is learned later, all else being frozen (Houlsby et al. 2019)."""
    def __init__(self, config):
        super().__init__()
        self.narrow = nn.Linear(config.n_embd, config.adapter_size, bias=False)
        self.proj = nn.Linear(config.adapter_size, config.n_embd, bias=False)  # starts at zero

    def forward(self, x):
        return x + self.proj(F.gelu(self.narrow(x)))

class Block(nn.Module):
    """One layer. Both halves add to the residual stream x and never replace it, so that gradients
    pass straight through."""
    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = make_norm(config)  # before attention, not after it as in 2017
        self.attention = Attention(config, layer)
        self.norm2 = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.adapter1 = Adapter(config) if config.adapter_size else nn.Identity()
        self.adapter2 = Adapter(config) if config.adapter_size else nn.Identity()

    def forward(self, x, cos_sin=None, mask=None, cache=None):
        y = self.attention(self.norm1(x), cos_sin, mask, cache)  # tokens exchange information
        x = x + self.dropout(self.adapter1(y))
        y = self.mlp(self.norm2(x))                              # each token computes by itself
        return x + self.dropout(self.adapter2(y))

class GPT(nn.Module):
    """A stack of blocks between two embeddings (Radford et al. 2018 and after)."""
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        # multiples of 64 are faster; the extra tokens never occur, and logits() cuts them off
        padded_vocab_size = round_up(c.vocab_size, 64)
        self.wte = nn.Embedding(padded_vocab_size, c.n_embd)  # a vector for each token
        self.wpe = nn.Embedding(c.block_size, c.n_embd) if c.position == 'learned' else None
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList([Block(c, layer) for layer in range(c.n_layer)])
        self.norm = make_norm(c)
        self.head = nn.Linear(c.n_embd, padded_vocab_size, bias=False)
        if c.tie_weights:
            self.head.weight = self.wte.weight
        self.activation_checkpointing = False  # True: compute layers again in backward: less memory
        self.chunked_loss = False              # True: the loss in less memory (section 8)
        self.init_weights()

    def init_weights(self):
        """Random matrices, each with the std that suits its place. Tied weights: as in GPT-2."""
        c = self.config
        for name, p in self.named_parameters():
            writes_residual = name.endswith(('proj.weight', 'down.weight'))
            if name.endswith('bias'):
                nn.init.zeros_(p)
            if p.ndim < 2:
                continue
            if writes_residual and ('adapter' in name or not c.tie_weights):
                std = 0.0    # each block begins as "change nothing", at any depth, and grows
            elif writes_residual:
                std = 0.02 / math.sqrt(2 * c.n_layer)  # GPT-2: their sum is as large at any depth
            elif c.tie_weights:
                std = 0.02   # GPT-2: all others; the shared one must be small for logits
            elif name.startswith('head'):
                std = 0.002  # the first guess is nearly even: a loss of ln(V)
            elif name.startswith(('wte', 'wpe')):
                std = 0.5    # larger than an AdamW step (0.02), which would erase it
            else:
                std = 1 / math.sqrt(p.size(1))  # outputs as large as the inputs
            nn.init.normal_(p, std=std)

    def hidden(self, idx, positions=None, mask=None, cache=None):
        """ids (B, T) -> the last hidden states (B, T, C). positions (T,) or (B, T): where each
        token stands, by default 0, 1, 2 …; mask (…, T, S): True where row t may look at column s,
        by default config.causal. With a KVCache, idx holds only the new tokens, and the cache gives
        their positions and mask."""
        c = self.config
        T = idx.size(1)
        if cache is not None:
            positions, mask = cache.extend(T, idx.device)
        elif positions is None:
            assert T <= c.block_size, f"{T} tokens are more than block_size={c.block_size}"
            positions = torch.arange(T, device=idx.device)
        x = self.wte(idx)  # (B, T) -> (B, T, C)
        if c.position == 'learned':
            x = x + self.wpe(positions)  # (T, C) or (B, T, C)
        x = self.dropout(x)
        cos_sin = rotary(positions, c) if c.position == 'rotary' else None
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, cos_sin, mask, use_reentrant=False)
            else:
                x = block(x, cos_sin, mask, cache)
        return self.norm(x)  # (B, T, C)

    def logits(self, x):
        """Hidden states (…, C) -> logits (…, V): how well each token fits next."""
        return self.head(x)[..., :self.config.vocab_size]

    def forward(self, idx, targets=None):
        """ids (B, T) -> logits (B, T, V) of each next token. With targets (B, T): the
        sum of the cross-entropies -log p(target), in nats; targets of -100 do not count."""
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B T, C), (B T,)
        if self.chunked_loss and not torch.compiler.is_compiling():
            return chunked_cross_entropy(x, targets, self.head, self.config.vocab_size)
        return F.cross_entropy(self.logits(x).float(), targets, reduction='sum')

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=0):
        """ids (B, T) -> (B, T + max_new_tokens): predict, draw a token, append it, again and again.
        temperature 0 takes the likeliest token. Section 4 has the same with a cache, quicker."""
        for _ in range(max_new_tokens):
            logits = self(idx[:, -self.config.block_size:])[:, -1]  # (B, V): what follows the last
            if temperature == 0:
                token = logits.argmax(dim=-1, keepdim=True)
            else:
                probs = filter_logits(logits, temperature, top_k).softmax(dim=-1)
                token = torch.multinomial(probs, num_samples=1)
            idx = torch.cat((idx, token), dim=1)  # (B, T) -> (B, T + 1)
        return idx

# ---- 2. The ladder: predicting the next token from more and more context ----
class LadderModel(nn.Module):
    """What the steps of the ladder share. Each adds hidden(idx), from wte to head."""
    logits, forward, generate = GPT.logits, GPT.forward, GPT.generate  # these methods, as they are
    activation_checkpointing = chunked_loss = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        V = round_up(config.vocab_size, 64)
        self.wte = nn.Embedding(V, config.n_embd)
        self.head = nn.Linear(config.n_embd, V, bias=False)

class Bigram(LadderModel):
    """The next token depends on this one alone: a table of V x V logits."""
    def __init__(self, config):
        super().__init__(config)
        V = config.vocab_size
        self.wte = nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)
        self.head = nn.Identity()  # a row of the table is the logits already

    def hidden(self, idx):
        return self.wte(idx)

class NeuralMLP(LadderModel):
    """The last 8 tokens, and one hidden layer (Bengio et al. 2003): a convolution, which multiplies
    the embeddings of the tokens t-7 … t with the same 8C -> C matrix at each t."""
    def __init__(self, config):
        super().__init__(config)
        self.mix = nn.Conv1d(config.n_embd, config.n_embd, kernel_size=8)

    def hidden(self, idx):
        x = F.pad(self.wte(idx).mT, (7, 0))  # (B, C, 7+T): zeros in front
        return self.mix(x).mT.tanh()         # (B, T, C)

class LSTM(LadderModel):
    """One state, carried along the text (Hochreiter & Schmidhuber 1997; Mikolov et al. 2010). One
    layer; four of them, without residual connections, learned nothing in 400 steps."""
    def __init__(self, config):
        super().__init__(config)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, batch_first=True)

    def hidden(self, idx):
        return self.lstm(self.wte(idx))[0]  # T steps, one after the other

def build_model(config):
    """GPTConfig -> the model that its model_type names."""
    return {'gpt': GPT, 'lstm': LSTM, 'mlp': NeuralMLP, 'bigram': Bigram}[config.model_type](config)

# ---- 3. Tokenizer ----
# the last ids of every vocabulary of ours, in this order
SPECIAL_TOKENS = ['<|endoftext|>', '<|user|>', '<|assistant|>', '<|end|>', '<|pad|>']

# How byte-pair encoding cuts text first, so that no token spans two words (GPT-2's rule): an
# English contraction; letters, digits or signs with at most one space in front; white space (500
# at a time: a million spaces would overflow tiktoken's stack)
SPLIT_PATTERN = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
                 r"|\s{1,500}(?!\S)|\s{1,500}")
WORD_PATTERN = re.compile(r"\w+|\s|[^\w\s]")  # a word, a space or a sign

# How a turn of a conversation is written: (opening, lead, closing). The opening and the closing may
# be special tokens; the lead is text between the opening and what is said
TEMPLATES = {'ninefiles': ('<|{role}|>', '', '<|end|>'),
             'chatml': ('<|im_start|>', '{role}\n', '<|im_end|>\n'),
             'llama3': ('<|start_header_id|>{role}<|end_header_id|>', '\n\n', '<|eot_id|>'),
             'plain': ('', '{role}:\n', '{eot}')}

class Tokenizer:
    """Text <-> token ids; every checkpoint carries its own tokenizer. Four kinds:
        char   a token per character
        word   a token per word, space or punctuation mark
        bpe    byte-pair encoding (Sennrich et al. 2016; GPT-2): vocab holds bytes, in merge order
        hf     other people's, run by the `tokenizers` library: vocab is their tokenizer.json's text
    Ids 0 … len(vocab)-1 are the vocab; the special tokens follow (not in hf), and the first of them
    ends a document. encode() never returns one: text that spells one is ordinary text."""
    def __init__(self, kind, vocab, pattern=SPLIT_PATTERN, special=SPECIAL_TOKENS):
        if kind == 'bpe':  # JSON has no bytes: there, they are the Latin-1 text of the same numbers
            vocab = [t.encode('latin-1') if isinstance(t, str) else t for t in vocab]
        self.kind, self.vocab, self.pattern = kind, vocab, pattern
        self.start = []  # ids that other people's models want in front of every text
        if kind == 'hf':
            self.core = open_hf_tokenizer(vocab)
            self.special = {name: self.core.token_to_id(name) for name in special}
            self.vocab_size = max(self.core.get_vocab().values()) + 1
            self.start = self.core.encode('').ids  # Llama's <|begin_of_text|>, for example
        else:
            self.ids = {token: i for i, token in enumerate(vocab)}
            self.special = {name: len(vocab) + i for i, name in enumerate(special)}
            self.vocab_size = len(vocab) + len(special)
            # of each token; they may be part of a character, since '€' is three bytes in UTF-8
            self.bytes = [token if kind == 'bpe' else token.encode('utf-8', 'replace')
                          for token in vocab] + [name.encode() for name in special]
        if kind == 'bpe':
            self.core = tiktoken.Encoding('ours', pat_str=pattern, mergeable_ranks=self.ids,
                                          special_tokens={})
        self.any_special = re.compile('(' + '|'.join(map(re.escape, self.special)) + ')')
        self.eot = self.special[special[0]]
        self.pad = self.special.get('<|pad|>', self.eot)  # GPT-2 has no padding
        for name, template in TEMPLATES.items():
            tokens = re.findall(r'<\|\w+\|>', template[0].format(role='user') + template[2])
            if all(token in self.special for token in tokens):
                break  # the first template whose special tokens are all there; plain needs none
        self.template = name
        self.opening, self.lead, self.closing = template
        self.closing = self.closing.format(eot=special[0])
        self.end = self.spell(self.closing)[0]  # the token that ends a turn

    def encode(self, text):
        """'hello' -> [104, 101, 108, 108, 111], where the vocab is the 256 bytes. An unknown
        character or word becomes id 0."""
        if self.kind == 'hf':
            return self.core.encode(text, add_special_tokens=False).ids
        if self.kind == 'bpe':
            return self.core.encode_ordinary(text)
        tokens = text if self.kind == 'char' else WORD_PATTERN.findall(text)
        return [self.ids.get(token, 0) for token in tokens]

    def decode(self, ids):
        """[104, 101, 108, 108, 111] -> 'hello'. Half a character becomes U+FFFD."""
        if self.kind == 'hf':
            return self.core.decode(ids, skip_special_tokens=False)
        return b''.join(self.bytes[i] for i in ids).decode('utf-8', 'replace')

    def spell(self, text):
        """encode(), but a special token in the text is that token: '<|user|>' -> one id."""
        ids = []
        for part in self.any_special.split(text):  # its ( ) keep the special tokens as parts
            ids += [self.special[part]] if part in self.special else self.encode(part)
        return ids

    def chat(self, messages, answer=False):
        """A conversation -> its ids, and a mask: 1 for what the assistant says, which is learned.
            [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
            -> <|user|> hi <|end|> <|assistant|> hello <|end|>
                 0      0    0        0            1     1
        A system message goes in front of the user's words (in other people's templates it is a turn
        of its own). answer=True ends with <|assistant|>, for the model to go on. Raises KeyError
        for an unknown role."""
        ids, mask, system = list(self.start), [], ''
        for message in messages:
            role, content = message['role'], message['content']
            learned = {'system': 0, 'user': 0, 'assistant': 1}[role]
            if role == 'system' and self.template == 'ninefiles':
                system += content + '\n\n'
                continue
            if role == 'user':
                content, system = system + content, ''
            lead = self.lead.format(role=role)
            ids += self.spell(self.opening.format(role=role))  # <|user|>
            first = len(ids) + len(self.encode(lead))  # where the words begin
            ids += self.encode(lead + content)  # together: a token may span the border
            mask += [0] * (first - len(mask))
            mask += [learned] * (len(ids) + 1 - first)  # 1: the closing token
            ids += self.spell(self.closing)  # <|end|>; a newline after it is not learned
        if answer:
            ids += self.spell((self.opening + self.lead).format(role='assistant'))
        return ids, mask + [0] * (len(ids) - len(mask))

    def to_dict(self):
        """The arguments of Tokenizer(), in a form that fits into JSON."""
        vocab = self.vocab
        if self.kind == 'bpe':
            vocab = [token.decode('latin-1') for token in vocab]
        return dict(kind=self.kind, vocab=vocab, pattern=self.pattern, special=list(self.special))

def open_hf_tokenizer(text):
    """The text of a tokenizer.json -> a tokenizer of the `tokenizers` library. Exits with one line
    where the library is missing."""
    try:
        import tokenizers
    except ImportError:
        sys.exit("this model's tokenizer needs one more package:  pip install transformers")
    core = tokenizers.Tokenizer.from_str(text)
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True  # text that spells a special token stays ordinary text
    return core

# ---- 4. Sampling ----
class KVCache:
    """The keys and values of all tokens so far: the next token costs a forward pass of one token.
    Shorter texts have padding on the left, so that all end in the same column; a mask hides it."""
    def __init__(self, columns, padding=None):
        self.columns = columns  # room for so many tokens, padding included
        self.padding = padding  # (B,): how many columns of each row are padding; None: of no row
        self.length = 0         # columns in use
        self.layers = {}        # the keys and values of each layer, (2, B, H, columns, D)

    def extend(self, T, device):
        """Count T more tokens per row. -> their positions (T,) or (B, T), and the mask
        (T, S) or (B, 1, T, S), or None where attention needs no other than the causal one."""
        start = self.length
        self.length += T
        columns = torch.arange(self.length, device=device)
        new = columns[start:]
        mask = columns <= new[:, None]  # (T, S): not the future
        if self.padding is None:
            return new, mask if T > 1 and start > 0 else None
        # the first column each may see; padding sees itself: a softmax over nothing is nan
        first = torch.minimum(self.padding[:, None], new)  # (B, T)
        mask = mask & (columns >= first[..., None])  # (B, T, S)
        return new - first, mask[:, None]

    def update(self, layer, k, v):
        """Keep a layer's new keys and values (B, H, T, D). -> all there are, (2, B, H, S, D)."""
        T = k.size(2)
        if layer not in self.layers:  # its first tokens, and room for the others
            self.layers[layer] = F.pad(torch.stack((k, v)), (0, 0, 0, self.columns - T))
        kv = self.layers[layer][..., :self.length, :]
        kv[..., -T:, :] = torch.stack((k, v))
        return kv

def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """logits (…, V) -> the same, with -inf for tokens that must not be drawn. In this order:
        temperature   divides: below 1 sharpens, above 1 flattens
        top_k         keeps the k likeliest tokens (0: all; ties stay)
        top_p         keeps the fewest whose probabilities add up to p (Holtzman et al. 2020)
        min_p         keeps those at least min_p times as likely as the best (Nguyen et al. 2024)
    Raises ValueError for impossible settings; below 0.001, float16 logits overflow."""
    if not (temperature >= 0.001 and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(f"{temperature=} {top_k=} {top_p=} {min_p=}: expected temperature 0 or at "
                         "least 0.001, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1")
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        kth_best = logits.topk(top_k).values[..., -1:]  # (…, 1)
        logits = logits.masked_fill(logits < kth_best, float('-inf'))
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)  # order: where each came from
        p = ordered.softmax(-1)
        out = p.cumsum(-1) - p >= top_p  # those before it add up to top_p: never so for the best
        logits = logits.masked_fill(out.scatter(-1, order, out), float('-inf'))
    if min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(min_p)
        logits = logits.masked_fill(logits < least, float('-inf'))
    return logits

@torch.inference_mode()
def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
             stop_tokens=(), seed=1337):
    """GPT.generate(), quickly: with a cache, and for prompts (lists of ids) of different lengths.
    Yields, for each new token of all rows:
        tokens    a list with an id per prompt, None where a row has ended (after a stop token)
        logits    (B, V), what they were drawn from, before temperature and the like
    When a context of block_size tokens is full, all rows keep their last half and are read afresh.
    The model must be in eval mode."""
    block_size, device = model.config.block_size, next(model.parameters()).device
    rng = torch.Generator(device).manual_seed(seed)  # torch's own random state does not change
    contexts = [list(prompt[-block_size:]) for prompt in prompts]  # what the model reads
    ended = [False] * len(prompts)
    cache = None
    for step in range(max_new_tokens):
        if max(map(len, contexts)) > block_size:
            contexts = [context[-block_size // 2:] for context in contexts]
            cache = None
        # 1. the hidden state of the last token of each row, (B, C)
        if not isinstance(model, GPT):  # the ladder has no cache
            rows = [torch.tensor([context], device=device) for context in contexts]
            x = torch.cat([model.hidden(row)[:, -1] for row in rows])
        else:
            if cache is None:  # read each context whole, with padding on the left
                T = max(map(len, contexts))
                padding = [T - len(context) for context in contexts]
                idx = [[0] * n + context for n, context in zip(padding, contexts)]
                padding = torch.tensor(padding, device=device) if any(padding) else None
                cache = KVCache(min(T + max_new_tokens - step, block_size), padding)
            else:  # read the newest token of each
                idx = [context[-1:] for context in contexts]
            x = model.hidden(torch.tensor(idx, device=device), cache=cache)[:, -1]
        # 2. the next token of each row
        logits = model.logits(x).float()  # (B, V)
        if not logits.isfinite().all():
            sys.exit("the model's logits are not finite: train again at a lower learning rate, or "
                     "take dtype=float32")
        if temperature == 0:
            tokens = logits.argmax(-1).tolist()
        else:
            probs = filter_logits(logits, temperature, top_k, top_p, min_p).softmax(-1)
            tokens = torch.multinomial(probs, 1, generator=rng).flatten().tolist()
        # 3. give them to the caller, and go on from them
        yield [None if end else token for token, end in zip(tokens, ended)], logits
        for row, token in enumerate(tokens):
            contexts[row].append(token)
            ended[row] = ended[row] or token in stop_tokens
        if all(ended):
            return

def complete(model, tokenizer, prompts, max_new_tokens, **sampling):
    """The texts that follow these prompts (lists of ids), each up to its first special token."""
    specials = set(tokenizer.special.values())
    rows = [[] for _ in prompts]
    for tokens, _ in generate(model, prompts, max_new_tokens, stop_tokens=specials, **sampling):
        for row, token in zip(rows, tokens):
            if token is not None and token not in specials:
                row.append(token)
    return [tokenizer.decode(row) for row in rows]

# ---- 5. Optimizers ----
def orthogonalize(G, steps=5):
    """For each G (N, n, m), the nearest matrix whose singular values are all about 1: the
    Newton–Schulz iteration of Muon (https://kellerjordan.github.io/posts/muon/) repeats
    X <- aX + (bA + cA²)X with A = XXᵀ, which moves all but tiny singular values near 1. This needs
    no precision: bfloat16 serves, where it is quick."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.bfloat16() if has_bfloat16(G.device.type) else G
    tall = X.size(-2) > X.size(-1)
    if tall:
        X = X.mT  # wide, so that A is small
    X = X.contiguous()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # now no singular value exceeds 1
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cA²
        X = torch.baddbmm(X, B, X, beta=a)           # aX + BX
    return X.mT if tall else X

class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalise: every direction of a weight matrix learns at the same pace
    (Jordan et al. 2024). For the matrices inside the layers only. Equals torch.optim.Muon, but
    takes all matrices of one shape together: 1.6 to 2 times quicker for small models on 2 cores."""
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            same_shape = defaultdict(list)  # these are orthogonalised together
            for p in group['params']:
                if not self.state[p]:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                buf = self.state[p]['momentum_buffer']  # the running mean of the gradients
                buf.lerp_(p.grad, 1 - group['momentum'])
                p.grad.lerp_(buf, group['momentum'])  # Nesterov: look ahead
                same_shape[p.shape].append(p)
            for (rows, columns), matrices in same_shape.items():
                lr = group['lr'] * max(1, rows / columns) ** 0.5  # tall matrices: larger steps
                n = max(1, 2**24 // (rows * columns))  # large matrices do not profit from batching
                for i in range(0, len(matrices), n):
                    batch = matrices[i:i + n]
                    directions = orthogonalize(torch.stack([full_tensor(p.grad) for p in batch]))
                    for p, direction in zip(batch, directions):
                        p.mul_(1 - group['lr'] * group['weight_decay'])
                        p.add_(shard_like(direction, p), alpha=-lr)

def full_tensor(x):
    """A gradient or its norm, whole where train.py has sharded it (parallel=zero, fsdp)."""
    if hasattr(x, 'placements'):  # it is a DTensor, torch's type for sharded tensors
        return x.full_tensor().to(x.device_mesh.device_type)  # cpu_offload: to the GPU
    return x

def shard_like(tensor, p):
    """A tensor of the shape of p; where p is sharded, the part of it that this process holds."""
    if not hasattr(p, 'placements'):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a while to import
    return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None).to(p.device)

def configure_optimizers(model, optimizer='muon', learning_rate=3e-3, muon_learning_rate=0.02,
                         weight_decay=0.0, betas=(0.9, 0.95)):
    """A list of optimizers. 'adamw': AdamW for all parameters. 'muon': Muon for the matrices inside
    the blocks, AdamW for the rest. Weight decay is for matrices: norms and biases have no reason to
    shrink, nor have embeddings, whose rare rows would fade between their gradients."""
    muon, decay, no_decay = [], [], []
    for name, p in model.named_parameters():
        is_embedding = 'wte' in name or 'wpe' in name
        if not p.requires_grad:
            continue
        if p.ndim < 2 or is_embedding:
            no_decay.append(p)
        elif optimizer == 'muon' and 'blocks.' in name:
            muon.append(p)
        else:
            decay.append(p)
    groups = [{'params': decay, 'weight_decay': weight_decay},
              {'params': no_decay, 'weight_decay': 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)]
    if muon:
        optimizers.append(Muon(muon, lr=muon_learning_rate, weight_decay=weight_decay))
    return optimizers

def update(model, optimizers, lr_fraction, grad_clip, scaler=torch.amp.GradScaler(enabled=False)):
    """Take one step with all optimizers, from the gradients that backward() has left, and clear
    them. lr_fraction (0 to 1) multiplies each optimizer's peak rate; grad_clip 0 does not clip.
    scaler: float16's GradScaler; a step whose gradients overflow is left out. Returns the norm of
    the gradient before clipping, a tensor."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)  # float16: divide by what the loss was multiplied with
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    grad_norm = full_tensor(grad_norm)
    overflow = scaler.is_enabled() and not grad_norm.isfinite()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['lr'] = optimizer.defaults['lr'] * lr_fraction  # defaults: its peak rate
        if not overflow:
            optimizer.step()
        optimizer.zero_grad()
    scaler.update()
    return grad_norm

def lr_schedule(step, schedule, warmup_iters, decay_iters, floor=0.0):
    """The learning rate at this step as a fraction of its peak: up in the warmup, then down to the
    floor at step decay_iters, in a line or as a cosine."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)  # never 0
    done = min((step - warmup_iters) / max(decay_iters - warmup_iters, 1), 1.0)  # from 0 to 1
    fractions = {'linear': 1 - done, 'cosine': 0.5 * (1 + math.cos(math.pi * done))}
    return floor + (1 - floor) * fractions[schedule]

# ---- 6. Files ----
FORMAT = 'ninefiles-2'

@contextmanager
def refuse_damage(path, command):
    """`with refuse_damage(…):` turns every error inside into one line, with the next command."""
    try:
        yield
    except FileNotFoundError as e:
        sys.exit(f"no {e.filename}: make it with  python {command}")
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        reason = ' '.join(f"{type(e).__name__} {e}".split())[:200]
        sys.exit(f"{path} is damaged or not ours ({reason}): make it with  python {command}")

def load_dataset(folder):
    """What prepare.py made of a text: the tokenizer, and {'train': ids, 'val': ids}, which stay on
    disk until they are read."""
    with refuse_damage(folder, f"prepare.py dataset={os.path.basename(folder)}"):
        with open(f'{folder}/meta.json', encoding='utf-8') as f:
            meta = json.load(f)
        if 'kind' in meta:
            sys.exit(f"{folder} holds {meta['kind']}, not text: give another dataset=")
        data = {}
        for split in ('train', 'val'):
            data[split] = np.memmap(f'{folder}/{split}.bin', dtype=meta['dtype'], mode='r')
        return Tokenizer(**meta['tokenizer']), data

def load_examples(folder):
    """What prepare.py made of examples: {'train': [{…}, …], 'val': [{…}]}."""
    command = f"prepare.py dataset={os.path.basename(folder)}, or give another dataset="
    splits = {}
    for split in ('train', 'val'):
        path = f'{folder}/{split}.jsonl'
        with refuse_damage(path, command), open(path, encoding='utf-8') as f:
            splits[split] = [dict(json.loads(line)) for line in f]
    return splits

def save_checkpoint(path, state_dict, config, tokenizer, **more):
    """Save the weights, what load_model() needs, and more (step, val_loss, settings). The file is
    written under another name, then renamed: at any moment `path` is the old file or the new one,
    whole. Weights that are not finite never replace it."""
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            sys.exit(f"{name} is not finite: try a lower learning rate. {path} is unchanged")
    temporary = f"{path}.tmp"
    try:
        torch.save({'format': FORMAT, 'model': state_dict, 'config': asdict(config),
                    'tokenizer': tokenizer.to_dict(), **more}, temporary)
        os.replace(temporary, path)  # atomic
    except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
        if os.path.exists(temporary):
            os.remove(temporary)
        reason = str(e).partition('\n')[0]
        sys.exit(f"cannot write {path}: {reason}; is the disk full? What was there is untouched")

def load_checkpoint(path, device='cpu', mmap=False):
    """A checkpoint's dictionary; path is the file, or an out_dir that holds ckpt.pt."""
    if not path.endswith('.pt'):
        path = f'{path}/ckpt.pt'
    folder = os.path.dirname(path) or '.'
    script = os.path.basename(sys.argv[0])  # right for resume.pt and vlm.py
    if path.endswith('ckpt.pt') and script != 'vlm.py':
        script = {'out-sft': 'finetune.py', 'out-align': 'align.py',
                  'out-reward': 'align.py method=reward'}.get(folder, 'train.py')
    with refuse_damage(path, f"{script} out_dir={folder}"):
        # weights_only: a file from the internet may hold numbers, but no code to run
        saved = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
        if saved['format'] != FORMAT:
            raise ValueError(f"its format is {saved['format']}, not {FORMAT}")
        return saved

def load_model(path, device='cpu'):
    """-> model, tokenizer, and the checkpoint's dictionary ('step', 'val_loss', 'settings' …). The
    weights are in memory once: the model is built without any and takes the checkpoint's."""
    saved = load_checkpoint(path, device, mmap=os.name != 'nt')  # Windows locks a mapped file
    if saved.get('script') == 'vlm.py':
        sys.exit(f"{path} is a model of vlm.py, which no other script can run")
    with refuse_damage(path, 'train.py'):
        model = build_on_meta(GPTConfig(**saved['config']))  # no numbers yet
        model.load_state_dict(saved['model'], assign=True)  # takes the tensors, copies nothing
        if isinstance(model, GPT) and model.config.tie_weights:
            model.head.weight = model.wte.weight  # two tensors since assign=True
        return model.float().to(device), Tokenizer(**saved['tokenizer']), saved

def load_optimizers(optimizers, states):
    """Load saved states, but keep the learning rates and the like that this run was given. Where
    the parameters are sharded, each process takes its part."""
    for optimizer, saved in zip(optimizers, states):
        params = sum((group['params'] for group in optimizer.param_groups), [])
        for i, state in saved['state'].items():
            for name, value in state.items():
                if value.shape == params[i].shape:  # but not AdamW's 'step'
                    state[name] = shard_like(value, params[i])
        given = optimizer.state_dict()['param_groups']
        optimizer.load_state_dict({'state': saved['state'], 'param_groups': given})

# ---- 7. A run: what every training script needs beside its loop ----
def has_bfloat16(device_type):
    """Whether this machine's 'cpu' or 'cuda' computes in bfloat16 itself; elsewhere it is slow."""
    if device_type == 'cpu':
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device_type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)

def resolve_device(device='auto', dtype='auto', save_memory=False):
    """('auto', 'auto') -> ('cuda', 'bfloat16'), ('cpu', 'float32') …: the best of this machine."""
    if device == 'auto':
        device = 'cpu'
        if torch.cuda.is_available():
            device = 'cuda'
        elif torch.backends.mps.is_available():
            device = 'mps'
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # no such device here, or a torch without it
        usage(f"device={device} is not on this machine: expected auto, cpu, cuda, cuda:1 or mps")
    device_type = device.partition(':')[0]
    if dtype == 'auto':
        other = 'float16' if device_type == 'cuda' else 'float32'
        dtype = 'bfloat16' if has_bfloat16(device_type) else other
    if device_type == 'cpu':
        keep_freed_memory(save_memory)
    return device, dtype

def stop_when_asked(ddp=False):
    """Ctrl-C and kill end a run after its step. Returns a list, which is empty until one of them
    comes. A second Ctrl-C stops at once (not under torchrun, which sends signals twice)."""
    asked = []
    def receive(number, frame):
        asked.append(number)
        if not ddp:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGINT, receive)  # Ctrl-C
    signal.signal(signal.SIGTERM, receive)  # kill, and the end of a batch job
    return asked

def set_aside(folder):
    """Move what an earlier run has left to folder/previous-1, -2, …: a new run loses nothing."""
    names = [n for n in os.listdir(folder) if n.startswith('captions-') or
             n.endswith(('.pt', 'log.csv', 'loss.png', 'sheet.png'))]
    if not names:
        return
    n = next(n for n in count(1) if not os.path.exists(f"{folder}/previous-{n}"))
    for name in names:
        os.renames(f"{folder}/{name}", f"{folder}/previous-{n}/{name}")  # makes the folder, too
    print(f"the earlier run in {folder} is now in {folder}/previous-{n}")

@dataclass
class Log:
    """Prints a line per evaluation and per log_interval steps, adds a row of log.csv for each, and
    remembers the best validation loss. A loss that is not finite ends the run. A new run (from
    step 0) sets an earlier one aside; after kill -9, the rows since the last save come twice. All
    processes may call it; only the master prints and writes."""
    out_dir: str
    step: int                   # where this run begins
    max_iters: int
    log_interval: int           # steps between lines
    per_step: int               # tokens in a step …
    unit: str = 'tokens'        # … or whatever else is counted
    columns: tuple = ()         # names of more columns for log.csv
    best: float = math.inf      # the best validation loss so far
    peak: float = 0.0           # the most units per second that the hardware can do, if known
    master_process: bool = True

    def __post_init__(self):
        self.pending = defaultdict(list)  # numbers of the steps since the last line
        self.start = self.clock = time.perf_counter()
        if not self.master_process:
            return
        os.makedirs(self.out_dir, exist_ok=True)
        self.lock = FileLock(f"{self.out_dir}/.lock")  # the end of the process frees it
        try:
            self.lock.acquire(timeout=10)
        except TimeoutError:
            sys.exit(f"another run is writing to {self.out_dir}: wait, or give another out_dir=")
        if self.step == 0:
            set_aside(self.out_dir)
        columns = ['step', 'train_loss', 'val_loss', 'lr', 'grad_norm', f'{self.unit}_per_second',
                   'seconds', *self.columns]
        self.file = open(f"{self.out_dir}/log.csv", 'a', buffering=1)  # 1: line by line
        self.csv = csv.DictWriter(self.file, columns, extrasaction='ignore', lineterminator='\n')
        if self.file.tell() == 0:
            self.csv.writeheader()

    def evaluation(self, step, val_loss, **metrics):
        """Report a validation loss and other numbers. -> whether it is the best so far."""
        is_best = val_loss < self.best
        self.best = min(self.best, val_loss)
        ending = ', the best so far' if is_best else ''
        self.write(f"step {step}: validation loss {val_loss:.4f}{ending}", metrics, step=step,
                   val_loss=val_loss)
        return is_best

    def training(self, step, loss, grad_norm, lr, last=False, **metrics):
        """Report a finished step: its loss and gradient norm (tensors, which stay on their device
        until there is a line to print), its learning rate, and other numbers."""
        is_due = step % self.log_interval == 0 or step >= self.max_iters or last
        loss = float(loss) if is_due else loss  # waits for the GPU
        now = time.perf_counter()
        for name, value in {'loss': loss, 'seconds': now - self.clock, **metrics}.items():
            self.pending[name].append(value)
        if not is_due:
            return
        means = {name: float(sum(values) / len(values)) for name, values in self.pending.items()}
        self.pending.clear()
        loss = means.pop('loss')
        speed = self.per_step / means.pop('seconds')
        left = round((self.max_iters - step) * (now - self.start) / (step - self.step))  # seconds
        of_peak = f" ({100 * speed / self.peak:.0f} % of peak)" if self.peak else ""
        line = (f"step {step}/{self.max_iters} | loss {loss:.4f} | lr {lr:.2e} | "
                f"norm {grad_norm:.2f} | {speed:,.0f} {self.unit}/s{of_peak} | "
                f"{left // 60}:{left % 60:02} left")
        self.write(line, means, step=step, train_loss=loss, lr=lr, grad_norm=float(grad_norm),
                   **{f'{self.unit}_per_second': speed})

    def write(self, line, metrics, **row):
        """Print a line, and append a row to log.csv. A loss that is nan or inf ends the run."""
        for name, value in row.items():
            if name.endswith('loss') and not math.isfinite(value):
                sys.exit(f"{name} is {value} at step {row['step']}: try a lower learning rate (the "
                         f"best model is in {self.out_dir}, validation loss {self.best:.4f})")
        if self.master_process:
            print(' | '.join([line, *(f"{k} {v:.3g}" for k, v in metrics.items())]), flush=True)
            row.update(metrics, seconds=time.perf_counter() - self.start)
            self.csv.writerow({name: f"{value:.8g}" for name, value in row.items()})

    def close(self):
        """Give back the signals (Ctrl-C stops at once again), log.csv and the lock."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.master_process:
            self.file.close()
            self.lock.release()

# ---- 8. Fast paths: each says what it equals and what it saves ----
def chunked_cross_entropy(x, targets, head, vocab_size, max_elements=2**24):
    """Equals F.cross_entropy(head(x), targets, reduction='sum') for x (N, C), targets (N,) and a
    head without bias, but computes logits and gradients of some rows at a time, then forgets them.
    For GPT-2, 2,048 rows of 50,257 logits would take 400 MB, several times; these take 64.
    torch.compile fuses the plain form instead, which is quicker."""
    rows = max(1, max_elements // vocab_size)
    if x.is_cuda:
        rows *= 16  # a GPU has the memory, and is slow at small products
    if len(x) <= rows or not isinstance(head, nn.Linear):
        return F.cross_entropy(head(x)[:, :vocab_size].float(), targets, reduction='sum')
    inputs = [x, head.weight]
    copies = [t.detach().requires_grad_(t.requires_grad) for t in inputs]  # they get the gradients
    total = 0.0
    for i in range(0, len(x), rows):
        # all columns, then without the padding: 50,304 are 1.4 times as fast as 50,257
        logits = F.linear(copies[0][i:i + rows], copies[1])[:, :vocab_size].float()
        loss = F.cross_entropy(logits, targets[i:i + rows], reduction='sum')
        if loss.requires_grad:
            loss.backward()
        total = total + loss.detach()
    for t, copy in zip(inputs, copies):
        if copy.grad is not None:
            product = torch.dot(t.float().flatten(), copy.grad.float().flatten())
            total = total + (product - product.detach())  # 0, but its gradient is copy.grad
    return total

def build_on_meta(config):
    """The model with all its shapes and no numbers (torch's "meta" device), for loading. There,
    normal_() has nothing to do, but would import torch's compiler first, which takes a second."""
    with torch.device('meta'), patch.object(nn.init, 'normal_', lambda p, **how: p):
        return build_model(config)

def keep_freed_memory(save_memory=False):
    """On Linux, tell glibc to keep freed memory for the next step. Otherwise it gives large blocks
    to the kernel, and each malloc() waits until the kernel has zeroed them again, page by page.
    save_memory: keep only blocks below 2 MB, because kept large ones leave holes behind."""
    if sys.platform == 'linux':
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        if not libc.mallopt(M_MMAP_THRESHOLD, 2**21 if save_memory else 2**30):
            libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most in older glibc

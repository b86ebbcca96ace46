"""
Everything that two scripts must agree on: the tokenizer, the model, sampling, optimizers, checkpoints.

Read it top to bottom; each section needs only those above it:

    1. Tokenizer    text <-> ids: characters, words, byte pairs, other people's; the chat template
    2. GPT          one transformer whose settings span GPT-2 (2019) to Llama and Qwen3 (2025)
    3. The ladder   what came before it, behind the same interface: bigrams, Bengio's neural model, an LSTM
    4. Sampling     from scores to the next token, one forward pass of one token at a time
    5. Optimizers   AdamW and Muon
    6. Files        datasets and checkpoints, such that a crash never costs a good model; the device
    7. Arithmetic   parameters, FLOPs and memory, before the machine finds out; the learning rate's way; a sparkline

Shape letters, here and in every script: B batch, T time (tokens), C channels (n_embd), H heads, D channels per
head, V vocabulary. There is nothing to run here: train.py trains the model, and tests/test_model.py shows what must
hold.
"""
import codecs, csv, ctypes, json, math, os, re, signal, sys
from collections import defaultdict
from dataclasses import dataclass
import numpy as np
import tiktoken
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# ------------------------------------------------------------------------------------------------------------
# 1. Tokenizer

# the last ids of every vocabulary, in this order
SPECIAL_TOKENS = ['<|endoftext|>', '<|user|>', '<|assistant|>', '<|end|>', '<|pad|>']

# how byte-pair encoding cuts text before it merges anything, so that no token spans two words (GPT-2's rule): an
# English contraction; letters, digits or signs with at most one space in front; white space
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LONG_BLANK = re.compile(r"(\s{50000})")  # a run of a million spaces would overflow tiktoken's stack, so it gets cut
WORD_PATTERN = re.compile(r"\w+|\s|[^\w\s]")  # the classroom's first idea of a token

# how conversations are written down, ours first and then other people's: special tokens that open a turn, the text
# between them and the words, what closes it. Models that know no such tokens get plain words
MARKUPS = {'ninefiles': ('<|{role}|>', '', '<|end|>'),
           'chatml': ('<|im_start|>', '{role}\n', '<|im_end|>\n'),
           'llama3': ('<|start_header_id|>{role}<|end_header_id|>', '\n\n', '<|eot_id|>'),
           'plain': ('', '{role}:\n', '{eot}')}

def find_markup(special):
    """The first of MARKUPS whose special tokens are all there; the plain one needs none."""
    for name, (opening, _, closing) in MARKUPS.items():
        needed = re.findall(r'<\|\w+\|>', opening.format(role='user') + closing)
        if all(token in special for token in needed):
            return name

# GPT-2's files and tokenizer.json show each byte as a letter: itself where it is visible, or else
# one of the letters after U+00FF. LETTERS[32] is 'Ġ', the space
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
LETTERS = {b: chr(b) for b in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}

def open_hf_tokenizer(text):
    """
    The text of a tokenizer.json -> a tokenizer of the `tokenizers` library (Hugging Face). Raises
    ValueError where it is damaged; exits with one line where the library is missing.
    """
    try:
        import tokenizers
    except ImportError:
        sys.exit("this model's tokenizer needs the tokenizers library: pip install transformers")
    try:
        core = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises Exception itself, whatever is wrong
        raise ValueError(f"not a tokenizer.json: {str(e)[:200]}") from None
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True  # text that spells a special token stays ordinary text
    return core

def hf_token_bytes(core):
    """
    The bytes of each token of a tokenizer of the `tokenizers` library, as a list; b'' where an id
    has no token. Byte-level vocabularies (GPT-2, Llama 3, Qwen) spell bytes with LETTERS: 'Ġthe' is
    b' the'. SentencePiece (Llama 2) writes '▁' for a space, and '<0x0A>' for a single byte.
    """
    byte_level = 'ByteLevel' in repr(core.decoder)
    byte_of = {letter: b for b, letter in LETTERS.items()}
    added = core.get_added_tokens_decoder()  # id: special tokens and the like, which are plain text
    ids = core.get_vocab(with_added_tokens=True)
    highest = max(ids.values(), default=0)
    if highest >= 1 << 24:  # a damaged file would take all memory
        raise ValueError(f"a token has the id {highest:,}")
    vocab = [b''] * (highest + 1)
    for token, i in ids.items():
        if i in added:
            vocab[i] = added[i].content.encode()
        elif byte_level:
            vocab[i] = bytes(byte_of[letter] for letter in token if letter in byte_of)
        elif re.fullmatch('<0x[0-9A-F]{2}>', token):
            vocab[i] = bytes([int(token[3:5], 16)])
        else:
            vocab[i] = token.replace('▁', ' ').encode()
    return vocab

class Tokenizer:
    """
    Text <-> token ids, for the ways of cutting text up; every checkpoint carries its own.

    kind 'char': a token a character; 'word': a token a word, space or sign; 'bpe': byte-pair encoding over bytes
    (Sennrich et al. 2016; GPT-2), whose vocab is in merge order. Ids 0 … len(vocab)-1 are the vocab, and the
    special tokens follow. Text that merely spells a special token is ordinary text: encode() never returns one.

    kind 'hf': other people's tokenizers (prepare.py weights=), run by the `tokenizers` library.
    vocab is then the text of their tokenizer.json, in which special tokens have ids of their own.

    special: names of the special tokens; the first one ends a document. Without tokens for a chat
    markup, conversations are written in plain words; without one for padding, the first is used.
    """
    def __init__(self, kind, vocab, pattern=SPLIT_PATTERN, special=SPECIAL_TOKENS):
        self.kind, self.vocab, self.pattern = kind, vocab, pattern
        if kind not in ('char', 'word', 'bpe', 'hf'):
            raise ValueError(f"unknown tokenizer kind {kind!r}: expected char, word, bpe or hf")
        are_names = all(isinstance(name, str) for name in special)
        if not special or len(set(special)) < len(special) or not are_names:
            raise ValueError("special tokens are a list of different names, and at least one")
        self.start = []  # ids in front of every text
        if kind == 'hf':
            self.json, self.core = vocab, open_hf_tokenizer(vocab)
            self.vocab = hf_token_bytes(self.core)
            self.special = {name: self.core.token_to_id(name) for name in special}
            if None in self.special.values():
                raise ValueError("a special token is not in the vocabulary")
            self.start = self.core.encode('').ids
        else:
            self.special = {name: len(vocab) + i for i, name in enumerate(special)}
        if kind == 'bpe':
            ranks = {token: rank for rank, token in enumerate(vocab)}
            if len(ranks) != len(vocab) or not all(bytes([b]) in ranks for b in range(256)):
                raise ValueError("a bpe vocabulary holds every single byte, and nothing twice")
            self.core = tiktoken.Encoding('ours', pat_str=pattern, mergeable_ranks=ranks,
                                          special_tokens={})
        if kind in ('char', 'word'):
            self.ids = {token: i for i, token in enumerate(vocab)}  # vocab[0] stands for whatever is not in it
        self.names = {i: name.encode() for name, i in self.special.items()}
        self.vocab_size = len(self.vocab) if kind == 'hf' else len(vocab) + len(special)
        # 1. the ids that have a name of their own
        self.eot = self.special[special[0]]
        self.pad = self.special.get('<|pad|>', self.eot)
        # None in other people's markup
        self.user, self.assistant = map(self.special.get, ('<|user|>', '<|assistant|>'))
        # 2. how conversations are written
        self.markup = find_markup(self.special)
        self.opening, self.lead, closing = MARKUPS[self.markup]
        self.closing = closing.replace('{eot}', special[0])
        self.end = self.spell(self.closing)[0]

    def encode(self, text):
        """Of single bytes: 'hello' -> [104, 101, 108, 108, 111]. What char and word lack becomes their first entry."""
        if self.kind == 'bpe':
            return [i for part in LONG_BLANK.split(text) for i in self.core.encode_ordinary(part)]
        if self.kind == 'hf':
            text = text.encode('utf-8', 'replace').decode()  # half a surrogate pair is no character
            return self.core.encode(text, add_special_tokens=False).ids
        return [self.ids.get(t, 0) for t in (text if self.kind == 'char' else WORD_PATTERN.findall(text))]

    def token_bytes(self, i):
        """The bytes of token i: possibly a part of a character, since '€' is three bytes in UTF-8."""
        if i in self.names:
            return self.names[i]
        if self.kind == 'hf' and i >= len(self.vocab):
            return b''  # a model may have more rows than its tokenizer has tokens
        token = self.vocab[i]
        return token if isinstance(token, bytes) else token.encode('utf-8', 'replace')

    def decode(self, ids):
        """[104, 101, 108, 108, 111] -> 'hello'. Bytes that are not UTF-8 (half a character, say) become U+FFFD."""
        return b''.join(map(self.token_bytes, ids)).decode('utf-8', 'replace')

    def spell(self, text):
        """Ids of markup, whose special tokens are meant: '<|im_start|>user' -> that token, then the text's."""
        parts = re.split('(' + '|'.join(map(re.escape, self.special)) + ')', text)
        return [i for part in parts for i in ([self.special[part]] if part in self.special else self.encode(part))]

    def chat(self, messages, answer=False):
        """
        A conversation as ids, and for each id whether it is the assistant's to say (what fine-tuning learns):

            [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
            -> <|user|> hi <|end|> <|assistant|> hello <|end|>
                 0      0    0        0            1     1

        A system message goes in front of the user's words (in foreign markup it is a turn of its own). answer=True ends
        with <|assistant|>, for the model to go on. Raises ValueError for an unknown role.
        """
        ids, mask, system = list(self.start), [0] * len(self.start), ''
        for message in messages:
            role, content = message['role'], message['content']
            if role not in ('system', 'user', 'assistant'):
                raise ValueError(f"unknown role {role!r}: expected system, user or assistant")
            if role == 'system' and self.markup == 'ninefiles':
                system += content + '\n\n'
                continue
            if role == 'user':
                content, system = system + content, ''
            lead, end = self.lead.format(role=role), self.spell(self.closing)
            turn = self.spell(self.opening.format(role=role))
            said = len(turn) + len(self.encode(lead))
            turn += self.encode(lead + content)  # in one go, as others do: white space may merge with what it meets
            ids += turn + end  # note: of end, the assistant is to say the special token, not a newline that may follow
            mask += [int(role == 'assistant' and said <= i <= len(turn)) for i in range(len(turn + end))]
        if answer:
            ids += self.spell((self.opening + self.lead).format(role='assistant'))
        return ids, mask + [0] * (len(ids) - len(mask))

    def to_dict(self):
        """A JSON-ready description; bytes are written as the Latin-1 text of the same numbers, so they read well."""
        vocab = self.vocab
        if self.kind == 'bpe':
            vocab = [token.decode('latin-1') for token in self.vocab]
        if self.kind == 'hf':
            vocab = self.json
        return {'kind': self.kind, 'vocab': vocab, 'pattern': self.pattern,
                'special': list(self.special)}

    @classmethod
    def from_dict(cls, d):
        """The inverse of to_dict(); raises ValueError where it makes no sense."""
        try:
            vocab = [t.encode('latin-1') for t in d['vocab']] if d['kind'] == 'bpe' else d['vocab']
            return cls(d['kind'], vocab, d['pattern'], d.get('special', SPECIAL_TOKENS))
        except (KeyError, TypeError, AttributeError, UnicodeError, RecursionError) as e:
            raise ValueError(f"not a tokenizer: {type(e).__name__} {e}") from None

    def __eq__(self, other):
        return self.to_dict() == other.to_dict()

# ------------------------------------------------------------------------------------------------------------
# 2. GPT

@dataclass
class GPTConfig:
    """
    The shape of a model; raises ValueError for an impossible one. The defaults are a small modern model (Qwen3 by
    architecture). GPT-2: position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True.
    """
    model_type: str = 'gpt'     # gpt | lstm | mlp | bigram: the rungs of the ladder, see section 3
    vocab_size: int = 1024
    block_size: int = 256       # the longest context, in tokens
    n_layer: int = 4
    n_head: int = 3
    n_kv_head: int = 0          # heads that hold keys and values, each shared by n_head / n_kv_head queries; 0: n_head
    n_embd: int = 192
    head_dim: int = 0           # 0: n_embd / n_head
    n_hidden: int = 0           # the MLP's inner width; 0: 4 n_embd, or 8/3 n_embd (in 64s) for swiglu's 3 matrices
    position: str = 'rotary'    # rotary | learned | sinusoidal
    norm: str = 'rmsnorm'       # rmsnorm | layernorm
    norm_eps: float = 1e-6
    mlp: str = 'swiglu'         # swiglu | gelu
    qk_norm: bool = True        # normalise queries and keys, so that attention scores cannot blow up
    bias: bool = False          # biases in linear layers and layer norms
    tie_weights: bool = False   # one matrix for reading tokens in and writing them out
    causal: bool = True         # False: every token sees every token (an encoder)
    dropout: float = 0.0
    adapter_size: int = 0       # width of the bottlenecks that finetune.py method=adapter adds to each block; 0: none
    rope_theta: float = 10000.0
    rope_scaling: tuple = ()    # how Llama 3 stretches rotary positions: see rotary_table

    def __post_init__(self):
        for name in ('vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd'):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected 0 <= dropout < 1")
        if self.model_type != 'gpt':
            return  # no heads, no positions
        self.n_kv_head = self.n_kv_head or self.n_head
        if not self.head_dim:
            if self.n_embd % self.n_head:
                unit = self.n_head * (2 if self.position == 'rotary' else 1)
                raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: "
                                 f"try n_embd={-(-self.n_embd // unit) * unit}")
            self.head_dim = self.n_embd // self.n_head
        if self.n_kv_head < 0 or self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}")
        if self.head_dim % 2 and self.position == 'rotary':
            raise ValueError(f"n_embd / n_head = {self.head_dim}: rotary positions need an even number")
        if not self.n_hidden:
            self.n_hidden = 4 * self.n_embd if self.mlp == 'gelu' else -(-8 * self.n_embd // 3 // 64) * 64

class RMSNorm(nn.Module):
    """
    x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019): LayerNorm without mean and bias. Unlike
    nn.RMSNorm it gives the weight the type of x, because torch is only quick where both have the same.
    """
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

def make_norm(config):
    if config.norm == 'rmsnorm':
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)

def sinusoids(T, C):
    """Fixed positions (T, C): sines and cosines of wavelengths from 2π to 20,000π (Vaswani et al. 2017, 3.5)."""
    angle = torch.outer(torch.arange(T).float(), 10000.0 ** (-torch.arange(0, C, 2).float() / C))  # (T, C/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :C]  # interleaved

def rotary_table(config):
    """
    cos and sin of the angle by which position t turns channel pair i: t / theta^(2i/D) (Su et al. 2021, eq. 15), each
    (T, 1, D). The first half of the channels is paired with the second ("half-split", as in Llama and Qwen; the paper
    pairs neighbours), and sin carries the sign that rotate() needs.

    rope_scaling = (factor, low, high, context) is Llama 3.1's way to a context that is `factor` times longer: pairs
    that turn more than `high` times within the original context stay as they are, those that turn less than `low` times
    are slowed down by the factor, and between the two it fades.
    """
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)  # (D/2,)
    if config.rope_scaling:
        factor, low, high, context = config.rope_scaling
        stay = ((context * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (stay + (1 - stay) / factor)
    angle = torch.outer(torch.arange(config.block_size).float(), frequency)  # (T, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)

def rotate(x, cos, sin):
    """
    Turn each channel pair (a, b) of x (B, T, H, D) by its position's angle: (a cos - b sin, b cos + a sin). A query
    turned by t and a key turned by s have a dot product that depends on t - s alone: relative position.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + x.roll(x.size(-1) // 2, -1) * sin  # roll swaps the halves: (a, b) -> (b, a)

def attention_by_hand(q, k, v, mask=None, dropout_p=0.0):
    """
    softmax(Q Kᵀ / sqrt(D)) V (Vaswani et al. 2017, eq. 1), written out; F.scaled_dot_product_attention computes the
    same in one pass without ever holding the (T, S) weights. q (B, H, T, D), k and v (B, H, S, D), mask True where
    looking is allowed. Returns the result (B, H, T, D), and the weights (B, H, T, S), whose rows sum to 1.
    """
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S): how well each query matches each key
    if mask is not None:
        scores = scores.masked_fill(~mask, float('-inf'))  # exp(-inf) = 0: the future gets no weight at all
    weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout_p) @ v, weights

class Attention(nn.Module):
    """Multi-head self-attention; with n_kv_head < n_head, grouped-query attention (Ainslie et al. 2023)."""
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        heads = config.n_head + 2 * config.n_kv_head  # queries, keys, values: one matrix multiplication for all
        self.qkv = nn.Linear(config.n_embd, heads * config.head_dim, bias=config.bias)
        self.proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.collected = None  # GPT.attention_maps() makes this a list, to see who looks at whom

    def forward(self, x, rotary=None, mask=None, cache=None):
        c, (B, T, _) = self.config, x.shape
        qkv = self.qkv(x).view(B, T, c.n_head + 2 * c.n_kv_head, c.head_dim)
        q, k, v = qkv.split((c.n_head, c.n_kv_head, c.n_kv_head), dim=2)  # each (B, T, its heads, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, T, H, D) -> (B, H, T, D)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, H, S, D): these T tokens and all before them
        causal = c.causal and mask is None and T > 1  # note: one new token may look at everything there is
        dropout_p = c.dropout if self.training else 0.0
        # one formula, two ways to compute it. in bfloat16 on a CPU the written-out one is the quicker, forward and back
        # (7 ms against 14 for 2,048 tokens in rows of 512), but it holds T x T weights; in float32 the fused one is
        quick_by_hand = x.device.type == 'cpu' and v.dtype == torch.bfloat16 and 1 < T <= 512
        if self.collected is not None or quick_by_hand:
            if causal:
                mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
            k, v = (t.repeat_interleave(c.n_head // c.n_kv_head, dim=1) for t in (k, v))  # shared within a group
            y, weights = attention_by_hand(q, k, v, mask, dropout_p)
            if self.collected is not None:
                self.collected.append(weights)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal, enable_gqa=c.n_kv_head < c.n_head)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, H, T, D) -> (B, T, H D): heads side by side

class MLP(nn.Module):
    """What each token does by itself: widen, bend, narrow. SwiGLU (Shazeer 2020) bends by a learned gate."""
    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias) if config.mlp == 'swiglu' else None
        self.up = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate='tanh'))  # the tanh form is GPT-2's
        return self.down(F.silu(self.gate(x)) * self.up(x))

class Adapter(nn.Module):
    """x + a small change that is learned later, with all else frozen: narrow, bend, widen (Houlsby et al. 2019)."""
    def __init__(self, config):
        super().__init__()
        self.narrow = nn.Linear(config.n_embd, config.adapter_size, bias=False)
        self.proj = nn.Linear(config.adapter_size, config.n_embd, bias=False)  # starts at zero, as "change nothing"

    def forward(self, x):
        return x + self.proj(F.gelu(self.narrow(x)))

class Block(nn.Module):
    """One layer. Both halves add to the residual stream x and never replace it, so gradients pass straight through."""
    def __init__(self, config, layer):
        super().__init__()
        self.norm1, self.attention = make_norm(config), Attention(config, layer)
        self.norm2, self.mlp = make_norm(config), MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.adapter1, self.adapter2 = (Adapter(config) if config.adapter_size else nn.Identity() for _ in range(2))

    def forward(self, x, rotary=None, mask=None, cache=None):
        y = self.attention(self.norm1(x), rotary, mask, cache)  # tokens look at each other
        x = x + self.dropout(self.adapter1(y))
        return x + self.dropout(self.adapter2(self.mlp(self.norm2(x))))  # then each thinks alone

MOST_NUMBERS = 2**24  # in any one tensor that comes and goes while a model trains: 64 MB of float32

class SumOfLosses(torch.autograd.Function):
    """
    sum(-log p(target)) for hidden states x (N, C), the head's weight (V and padding, C) and targets (N,). For GPT-2,
    2,048 rows of 50,257 scores would be 400 MB, several times over. So the work is done `rows` rows at a time: compute
    the scores, turn them in place into their gradient (softmax(scores), less 1 at the target), and that into the
    gradients of x and weight. No scores are kept.
    """
    @staticmethod
    def forward(ctx, x, weight, targets, V, rows):
        kind, total = x.device.type, 0.0
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        w = weight.to(dtype)  # with its padding: rows of 50,304 scores multiply 1.4 times as quickly as rows of 50,257
        dx, dw = torch.empty_like(x), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i in range(0, len(x), rows):
            h, target = x[i:i + rows].to(dtype), targets[i:i + rows, None]
            there, target = target >= 0, target.clamp(min=0)
            scores = (h @ w.T).float()
            scores[:, V:] = float('-inf')  # the padding never occurs
            log_sum = scores.logsumexp(-1, keepdim=True)
            total = total + ((log_sum - scores.gather(1, target)) * there).sum()
            # softmax(scores), less 1 at the target; 0 where nothing counts
            gradient = scores.sub_(log_sum).exp_().scatter_add_(1, target, torch.full_like(log_sum, -1.0)).mul_(there)
            gradient = gradient.to(dtype)
            dx[i:i + rows] = gradient @ w
            if dw is not None:
                dw += gradient.T @ h
        ctx.gradients = dx, dw
        return total

    @staticmethod
    def backward(ctx, up):
        (dx, dw), ctx.gradients = ctx.gradients, None  # in place, and not kept: dw is as large as the head
        return dx.mul_(up), None if dw is None else dw.mul_(up), None, None, None

class LanguageModel(nn.Module):
    """What every rung of the ladder shares: a loss and scores. A subclass has hidden(idx) -> (B, T, C) and a `head`."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.padded_vocab_size = -(-config.vocab_size // 64) * 64  # hardware likes 64s; the extra ids never occur

    def derive(self):
        """Set what follows from the config alone and is not saved: called again once weights have been loaded."""

    def logits(self, x):
        """Hidden states (…, C) -> scores (…, V) of every token in the vocabulary; the padding is left out."""
        if not isinstance(self.head, nn.Linear):
            return self.head(x)  # a bigram's; or prepare_decoding() has replaced it, and left the padding out
        return F.linear(x, self.head.weight[:self.config.vocab_size])

    def forward(self, idx, targets=None, reduction='mean'):
        """
        idx (B, T) int64. Without targets: logits (B, T, V), the scores of each next token. With targets (B, T): the
        cross-entropy -log p(target), in nats; targets of -100 count for nothing. reduction: 'mean' | 'sum' | 'none'
        (then (B, T)).
        """
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x)
        x, flat = x.flatten(0, 1), targets.flatten()
        if reduction == 'none':
            return self.losses(x, flat).view_as(targets)
        total = self.sum_of_losses(x, flat)
        return total if reduction == 'sum' else total / (targets >= 0).sum()

    def losses(self, x, targets):
        """-log p(target) for hidden states x (N, C) and targets (N,): (N,), 0 where the target is -100."""
        rows = max(1, MOST_NUMBERS // self.config.vocab_size)
        return torch.cat([F.cross_entropy(self.logits(x[i:i + rows]).float(), targets[i:i + rows], reduction='none')
                          for i in range(0, len(x), rows)])

    def sum_of_losses(self, x, targets):
        """The same, summed; without keeping scores where they are many."""
        V = self.config.vocab_size
        if len(x) * V <= MOST_NUMBERS or not isinstance(self.head, nn.Linear) or not torch.is_grad_enabled():
            return self.losses(x, targets).sum()
        return SumOfLosses.apply(x, self.head.weight, targets, V, MOST_NUMBERS // V)

class GPT(LanguageModel):
    """A stack of blocks between two embeddings (Radford et al. 2018 and after)."""
    def __init__(self, config):
        super().__init__(config)
        C, T = config.n_embd, config.block_size
        self.wte = nn.Embedding(self.padded_vocab_size, C)  # what each token means to start with
        self.wpe = nn.Embedding(T, C) if config.position == 'learned' else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.norm = make_norm(config)
        self.head = nn.Linear(C, self.padded_vocab_size, bias=False)
        self.activation_checkpointing = False  # True: keep only each block's input, compute the rest again going back
        self.derive()
        self.init_weights()

    def derive(self):
        c = self.config
        if c.tie_weights:
            self.head.weight = self.wte.weight
        if self.wte.weight.is_meta:  # an outline: load_model() calls this again once there are weights
            return
        # tables of fixed positions are derived, not learned, so they are not saved
        cos, sin = rotary_table(c) if c.position == 'rotary' else (None, None)
        self.register_buffer('cos', cos, persistent=False)
        self.register_buffer('sin', sin, persistent=False)
        waves = sinusoids(c.block_size, c.n_embd) if c.position == 'sinusoidal' else None
        self.register_buffer('waves', waves, persistent=False)

    def init_weights(self):
        """
        Start where learning is easy. A layer of n inputs keeps the size of what passes through if its weights have
        std 1/sqrt(n). The two matrices of a block that write into the residual stream start at zero: every block
        begins as "change nothing", at any depth, and grows from there. Tied weights start GPT-2's way (all 0.02,
        those two divided by sqrt(2 n_layer), so that the sum of what is written does not grow with depth), because
        one matrix must serve at both ends. A head of its own starts small (0.002), so that the first guess is nearly
        even: a loss of ln(V).
        """
        for name, p in self.named_parameters():
            writes = name.endswith(('proj.weight', 'down.weight'))
            if name.endswith('bias'):
                nn.init.zeros_(p)
            elif p.ndim == 2 and self.config.tie_weights:
                into = 0.0 if 'adapter' in name else 0.02 / math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(p, std=into if writes else 0.02)
            elif p.ndim == 2:
                embedding = name.startswith(('wte', 'wpe')) and self.config.position != 'sinusoidal'
                nn.init.normal_(p, std=0.0 if writes else 0.5 if embedding else 0.002 if name.startswith('head') else
                                p.size(1) ** -0.5)

    def hidden(self, idx, positions=None, mask=None, cache=None):
        """
        ids (B, T) -> final hidden states (B, T, C). positions (T,) or (B, T): where each token stands, by default 0, 1,
        2 …; mask (…, T, S), True where row t may look at column s, by default causal. With a KVCache, idx holds only
        the new tokens, and both follow from what the cache holds.
        """
        if cache is not None:
            positions, mask = cache.extend(idx.size(1), idx.device)
        elif positions is None:
            if idx.size(1) > self.config.block_size:
                raise ValueError(f"{idx.size(1)} tokens are more than block_size={self.config.block_size}")
            positions = torch.arange(idx.size(1), device=idx.device)
        x = self.wte(idx)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        if self.waves is not None:
            x = x * math.sqrt(self.config.n_embd) + self.waves[positions]  # scaled as in Vaswani et al. 2017, 3.4
        x = self.dropout(x)
        rotary = (self.cos[positions], self.sin[positions]) if self.cos is not None else None  # (T, 1, D), (B, T, 1, D)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotary, mask, use_reentrant=False)
            else:
                x = block(x, rotary, mask, cache)
        return self.norm(x)

    @torch.no_grad()
    def attention_maps(self, idx):
        """Who looks at whom: a list, per layer, of weights (B, H, T, T) whose rows sum to 1."""
        layers = [block.attention for block in self.blocks]
        for layer in layers:
            layer.collected = []
        self.hidden(idx)
        maps = [layer.collected[0] for layer in layers]
        for layer in layers:
            layer.collected = None
        return maps

# ------------------------------------------------------------------------------------------------------------
# 3. The ladder of language models: the same question, "what comes next?", answered from more and more context

class Bigram(LanguageModel):
    """The next token depends on this one alone: a table of V x V scores. Counting fills it in one pass; so does SGD."""
    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.vocab_size, _weight=torch.zeros(2 * [config.vocab_size]))
        self.head = nn.Identity()  # a row of the table is already a score for each next token

    def hidden(self, idx):
        return self.table(idx)

    @torch.no_grad()
    def count(self, ids, smoothing=1.0):
        """Set the table from the pairs in ids (N,): log(count + smoothing), which softmax turns into frequencies."""
        V = self.config.vocab_size
        pairs = torch.bincount(ids[:-1] * V + ids[1:], minlength=V * V).view(V, V)
        self.table.weight.copy_((pairs + smoothing).log())

class NeuralMLP(LanguageModel):
    """The last 8 tokens' embeddings side by side, one hidden layer (Bengio et al. 2003): words become vectors."""
    n_context = 8

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.mix = nn.Linear(self.n_context * config.n_embd, config.n_embd)
        self.head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)

    def hidden(self, idx):
        x = F.pad(self.wte(idx), (0, 0, self.n_context - 1, 0))  # (B, T+7, C): zeros before the beginning
        x = x.unfold(1, self.n_context, 1).flatten(2)  # (B, T, C, 8) -> (B, T, 8C): at t, the tokens t-7 … t
        return self.mix(x).tanh()

class LSTM(LanguageModel):
    """
    One state carried along the whole text (Hochreiter & Schmidhuber 1997; Mikolov et al. 2010 for language). One layer:
    four of them, stacked, learned nothing in 400 steps; residual connections, the next rung's, are what deep ones lack.
    """
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.lstm = nn.LSTM(config.n_embd, config.n_embd, batch_first=True)
        self.head = nn.Linear(config.n_embd, self.padded_vocab_size, bias=False)

    def hidden(self, idx):
        return self.lstm(self.wte(idx))[0]  # note: T steps, one after the other: what the transformer did away with

def build_model(config):
    """GPTConfig -> the model that its model_type names."""
    return {'gpt': GPT, 'lstm': LSTM, 'mlp': NeuralMLP, 'bigram': Bigram}[config.model_type](config)

class NothingDrawn(TorchFunctionMode):
    """
    Within it, the functions of torch.nn.init leave their tensor as it is. On the meta device they would do nothing
    either, but only after importing much of torch's compiler, which takes seconds.
    """
    def __torch_function__(self, function, types, args=(), kwargs=None):
        drawing = getattr(function, '__module__', '') == 'torch.nn.init'
        return kwargs['tensor'] if drawing else function(*args, **(kwargs or {}))

def outline(config):
    """The model with all shapes and no numbers (torch's "meta" device): no memory, no time, however large."""
    with torch.device('meta'), NothingDrawn():
        return build_model(config)

# ------------------------------------------------------------------------------------------------------------
# 4. Sampling

class KVCache:
    """
    The keys and values of all tokens so far, so that the next token costs a forward pass of one token, not of all.

    Row b's token at position p is kept in column p, whatever the other rows hold. Prompts of different lengths thus
    share a batch, and each row computes just what it would compute alone: columns past a row's own length are
    masked, and overwritten when the row gets there.
    """
    def __init__(self, config, rows, columns=None):
        self.config, self.rows, self.columns = config, rows, columns or config.block_size
        self.lengths = [0] * rows  # tokens held, per row
        self.k, self.v = [None] * config.n_layer, [None] * config.n_layer  # (rows, H, columns, D), made at first use

    def extend(self, T, device):
        """Make room for T more tokens a row: their positions (T,) or (rows, T), and the mask if one is needed."""
        self.positions, mask = torch.arange(T, device=device), None
        self.start, self.width = self.lengths[0], max(self.lengths) + T
        columns = torch.arange(self.width, device=device)
        if min(self.lengths) == max(self.lengths):
            self.positions = self.positions + self.start
            if T > 1 and self.start > 0:  # note: for one token, or in an empty cache, attention needs no mask of ours
                mask = columns <= self.positions[:, None]  # (T, S)
        else:
            self.start = None  # rows differ
            self.positions = torch.tensor(self.lengths, device=device)[:, None] + self.positions  # (rows, T)
            mask = (columns <= self.positions[..., None]).unsqueeze(1)  # (rows, 1, T, S)
        self.lengths = [n + T for n in self.lengths]
        return self.positions, mask

    def update(self, layer, k, v):
        """Keep a layer's new keys and values (rows, H, T, D); all of them, to the longest row's end (rows, H, S, D)."""
        if self.k[layer] is None:
            shape = (self.rows, k.size(1), self.columns, k.size(3))
            self.k[layer], self.v[layer] = k.new_zeros(shape), v.new_zeros(shape)
        for kept, new in ((self.k[layer], k), (self.v[layer], v)):
            if self.start is not None:
                kept[:, :, self.start:self.width] = new
            else:
                kept[torch.arange(self.rows, device=k.device)[:, None], :, self.positions] = new.transpose(1, 2)
        return self.k[layer][:, :, :self.width], self.v[layer][:, :, :self.width]

    def row(self, b):
        """Row b as an empty cache of its own that shares this one's memory: to read a row's text afresh."""
        view = KVCache(self.config, 1, self.columns)
        view.k, view.v = [k[b:b + 1] for k in self.k], [v[b:b + 1] for v in self.v]
        return view

def has_bfloat16(kind):
    """Whether this kind of device ('cpu', 'cuda', 'mps') multiplies bfloat16 natively; elsewhere it is slow."""
    if kind == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == 'cpu' and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

class Int8Linear(nn.Module):
    """
    A linear layer whose weights are whole numbers from -127 to 127 times one scale per output, W ≈ scale * int8: a
    quarter of float32's bytes, each weight off by half a scale at most. Its inputs stay as they are (weight-only).
    """
    def __init__(self, linear, outputs):
        super().__init__()
        w = linear.weight.detach()[:outputs].float()
        self.register_buffer('scale', (w.abs().amax(1) / 127).clamp(min=1e-8).bfloat16())
        # note: the numbers are found from the scale after its rounding, so that they make up for it
        self.register_buffer('weight', (w / self.scale[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        # note: this product reads its inputs in groups, and past the end where the width is no multiple of them
        packable = x.device.type == 'cpu' and x.dtype == torch.bfloat16 and x.size(-1) % 32 == 0
        if packable and len(rows) <= 16:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:  # a long prompt: here arithmetic is the limit, not reading, so unpack once and multiply as usual
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)

class PackedLinear(nn.Module):
    """A linear layer whose weights lie in the order in which oneDNN's product reads them on a CPU."""
    def __init__(self, linear, outputs):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()[:outputs].contiguous(), 1)
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, 'none', [], '').view(*x.shape[:-1], -1)

def prepare_decoding(model, quantize='none'):
    """
    Arrange a model's weights, in place, for being read once per token: that is what decoding one row comes to, and
    bytes per second, not multiplications, are the limit. Not for training. A row times GPT-2's (3072, 768), one core:

        float32, rows in memory: 13 GB/s; by columns, the same numbers in another order: 20 GB/s (wide ones stay as is).
        that product keeps to one core; with two, oneDNN's own order is the quicker (GPT-2: 35 tokens/s against 31)
        bfloat16, half the bytes: 9 GB/s; in oneDNN's own order: 14 GB/s
        int8 (quantize='int8'), a quarter of the bytes: 7 GB/s; inputs and the rest of the model are bfloat16
    """
    cpu = all(p.device.type == 'cpu' for p in model.parameters())
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if not isinstance(linear, nn.Linear):
                continue
            w, outputs = linear.weight, model.config.vocab_size if name == 'head' else None  # None: all of them
            if quantize == 'int8':
                setattr(module, name, Int8Linear(linear, outputs))
            elif cpu and torch.backends.mkldnn.is_available() and (
                    w.dtype == torch.bfloat16 and has_bfloat16('cpu') or
                    w.dtype == torch.float32 and torch.get_num_threads() > 1):
                setattr(module, name, PackedLinear(linear, outputs))
            elif cpu and w.dtype == torch.float32 and w.size(0) >= w.size(1):
                w.data = w.data.t().contiguous().t()
    return model.bfloat16() if quantize == 'int8' else model

def filter_logits(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """
    Reshape what will be sampled from: logits (…, V) -> the same, with -inf for tokens that are out. In this order:
    temperature divides (below 1 sharpens, above 1 flattens); top_k keeps the k best (0: all; ties stay); top_p the
    fewest whose probability reaches p (nucleus sampling, Holtzman et al. 2020); min_p those at least min_p times as
    likely as the best (Nguyen et al. 2024).
    """
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], float('-inf'))
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        p = ordered.softmax(-1)
        out = p.cumsum(-1) - p >= top_p  # the mass before a token already reaches top_p …
        out[..., 0] = False              # … and the best one always stays
        logits = logits.masked_fill(out.scatter(-1, order, out), float('-inf'))
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), float('-inf'))
    return logits

def draw(logits, u):
    """
    One token per row from softmax(logits), by inverting the cumulative distribution: logits (B, V), u (B,) uniform in
    [0, 1). A row's own u decides alone, so a row samples the same tokens in whatever company.
    """
    cumulative = logits.float().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, u[:, None] * total, right=True)
    last = torch.searchsorted(cumulative, total)  # subtle: u * total can round up to total, past every possible token
    return torch.minimum(token, last).squeeze(1)

def check_sampling(prompts, temperature, top_k, top_p, min_p):
    """Raise ValueError for an empty prompt or an impossible setting."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt needs at least one token to go on from")
    possible = temperature == 0 or temperature >= 1e-6  # less would turn logits into inf
    if not possible or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(f"temperature={temperature} top_k={top_k} top_p={top_p} min_p={min_p}: "
                         "expected 0 or at least 1e-06, >= 0, 0 < top_p <= 1, 0 <= min_p <= 1")

@torch.inference_mode()
def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
             stop_tokens=(), seed=1337, use_cache=True):
    """
    Go on from prompts (a list of lists of ids, of any lengths), all at once. Yields a pair for each
    step:

        tokens    a list with one id per prompt, None where a row has ended
        logits    (B, V) float, before temperature: what the tokens were drawn from

    A row ends after one of stop_tokens (which is yielded), or after max_new_tokens. temperature 0
    takes the best token. A caller that has enough stops asking: it breaks out of its loop, or
    closes the generator. Raises ValueError for an empty prompt or an impossible setting.

    Row i samples with its own random stream, seeded by seed + i: it reads as it would alone with that seed. A context
    can hold block_size tokens. When it is full, all but its last half is dropped and that is read afresh, so that the
    model sees between block_size / 2 and block_size tokens of a long text, with the cache and without.
    """
    check_sampling(prompts, temperature, top_k, top_p, min_p)
    B, block_size, device = len(prompts), model.config.block_size, next(model.parameters()).device
    ended = [False] * B
    contexts = [list(p[-block_size:]) for p in prompts]
    random = [np.random.default_rng(seed + i) for i in range(B)]
    columns = min(block_size, max(map(len, contexts)) + max_new_tokens)
    cache = KVCache(model.config, B, columns) if use_cache and isinstance(model, GPT) else None
    cut = []  # rows whose context was just cut, to be read afresh
    training = model.training
    model.eval()

    def read(rows, cache):
        """Whole contexts -> their last tokens' hidden states (len(rows), C). Causality hides padding on the right."""
        lengths = [len(contexts[b]) for b in rows]
        idx = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for i, b in enumerate(rows):
            idx[i, :lengths[i]] = torch.tensor(contexts[b])
        x = model.hidden(idx.to(device), **({'cache': cache} if cache else {}))
        if cache:
            cache.lengths = lengths  # the padding was never there
        return x[torch.arange(len(rows)), torch.tensor(lengths) - 1]

    try:
        for step in range(max_new_tokens):
            # 1. the last tokens' hidden states
            if step == 0 or cache is None:
                x = read(range(B), cache)
            else:
                x = model.hidden(torch.tensor([c[-1:] for c in contexts], device=device), cache=cache)[:, -1]
                for b in cut:
                    x[b] = read([b], cache.row(b))
                cut.clear()
            # 2. from scores to one token per row
            logits = model.logits(x) if B > 1 else model.logits(x[0])[None]  # (B, V); a vector is quicker than one row
            logits = logits.float()
            if temperature == 0:
                tokens = logits.argmax(-1).tolist()
            else:
                u = torch.tensor([r.random(dtype=np.float32) for r in random], device=device)
                tokens = draw(filter_logits(logits, temperature, top_k, top_p, min_p), u).tolist()
            # 3. hand them out, and take stock
            yield [None if ended[b] else token for b, token in enumerate(tokens)], logits
            for b, token in enumerate(tokens):
                if token in stop_tokens:
                    ended[b] = True
                contexts[b].append(token)
                if len(contexts[b]) > block_size:
                    contexts[b] = contexts[b][-max(1, block_size // 2):]
                    if cache:
                        cache.lengths[b] = len(contexts[b]) - 1
                        cut.append(b)
            if all(ended):
                return
    finally:
        model.train(training)

def stream_text(model, tokenizer, prompts, max_new_tokens, stop=(), **sampling):
    """
    generate() for people. prompts: strings, or lists of ids; stop: strings that end a row and are
    not shown. Special tokens end it too. Yields a tuple for each new token of each row that has not
    ended:

        row       which prompt
        piece     the text that is certain now: '' while a character of several tokens is not whole,
                  and while the text may still become a stop string
        token     the id
        logits    (V,), as generate() yields them
        reason    None; for the row's last token 'stop' (a stop string, a special token) or 'length'
    """
    specials = set(tokenizer.special.values())
    prompts = [tokenizer.start + tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    prompts = [p or [tokenizer.eot] for p in prompts]
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in prompts]
    held = [''] * len(prompts)  # text that is not certain yet
    ended = set()
    steps = generate(model, prompts, max_new_tokens, stop_tokens=specials, **sampling)
    for step, (tokens, logits) in enumerate(steps, 1):
        for b, token in enumerate(tokens):
            if b in ended:
                continue
            # 1. why this may be the last token
            reason = None
            if step == max_new_tokens:
                reason = 'length'
            if token in specials:
                reason = 'stop'
            else:
                held[b] += decoders[b].decode(tokenizer.token_bytes(token))
            found = [held[b].find(s) for s in stop if s in held[b]]
            if found:
                reason = 'stop'
            # 2. how much of the text is certain
            if found:
                piece = held[b][:min(found)]
            elif reason:
                piece = held[b] + decoders[b].decode(b'', final=True)
            else:  # keep back the longest tail that a stop string could still grow from
                tails = [n for s in stop for n in range(1, len(s)) if held[b].endswith(s[:n])]
                shown = len(held[b]) - max(tails, default=0)
                piece = held[b][:shown]
                held[b] = held[b][shown:]
            # 3. hand it out
            if reason:
                ended.add(b)
            yield b, piece, token, logits[b], reason
        if len(ended) == len(prompts):
            return

# ------------------------------------------------------------------------------------------------------------
# 5. Optimizers

def orthogonalize(G, steps=5):
    """
    The nearest matrix to each G (N, n, m) with all singular values (about) 1: the Newton–Schulz iteration of Muon
    (https://kellerjordan.github.io/posts/muon/), X <- aX + (bA + cA²)X with A = XXᵀ. Its constants make small
    singular values grow quickest; they end between 0.7 and 1.2, near enough, and so is bfloat16 where it is quick.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.bfloat16() if has_bfloat16(G.device.type) else G
    del G  # its memory is free to use, if the caller keeps no hold of it
    tall = X.size(-2) > X.size(-1)
    X = (X.mT if tall else X).contiguous()  # the small side first: A is (n, n)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value exceeds this norm, so all are now <= 1
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cA²
        X = torch.baddbmm(X, B, X, beta=a)           # aX + BX
    return X.mT if tall else X

def whole(p):
    """The gradient of p; where train.py parallel=fsdp has spread it over the processes, all of it, put together."""
    return p.grad.full_tensor().to(p.device_mesh.device_type) if hasattr(p, 'placements') else p.grad

def share(tensor, p):
    """A tensor of the shape of p; where p is spread over the processes, the part of it that belongs to this one."""
    if not hasattr(p, 'placements'):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a while to import
    return distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None).to(p.device)

class Muon(torch.optim.Optimizer):
    """
    Momentum, then orthogonalise: every direction of a weight matrix learns at the same pace (Jordan et al. 2024). For
    matrices inside the layers only. torch.optim.Muon computes the same, a matrix at a time; here all matrices of one
    shape go through Newton–Schulz as one batch: 1.6 to 2 times quicker on small models (measured on 2 CPU cores).
    """
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if 'momentum_buffer' not in self.state[p]:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
            buffers, grads = [self.state[p]['momentum_buffer'] for p in params], [p.grad for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - group['momentum'])  # a running mean of the gradients
            torch._foreach_lerp_(grads, buffers, group['momentum'])      # Nesterov: look ahead
            batches = defaultdict(list)
            for p in params:
                batches[p.shape].append(p)
            for (rows, columns), same in batches.items():
                lr = group['lr'] * max(1, rows / columns) ** 0.5  # a tall one moves its outputs as far as a square one
                n = max(1, MOST_NUMBERS // (rows * columns))  # large ones gain nothing from company
                for batch in (same[i:i + n] for i in range(0, len(same), n)):
                    directions = orthogonalize(torch.stack([whole(p) for p in batch]))
                    for p, direction in zip(batch, directions):
                        p.mul_(1 - group['lr'] * group['weight_decay']).add_(share(direction, p), alpha=-lr)

def configure_optimizers(model, optimizer='muon', learning_rate=3e-3, muon_learning_rate=0.02, weight_decay=0.0,
                         betas=(0.9, 0.95)):
    """
    A list of optimizers. 'adamw': AdamW for all parameters. 'muon': Muon for the matrices inside the blocks, AdamW for
    the rest. Only matrices decay: norms and biases have no reason to shrink, nor have embeddings, whose rare rows would
    fade between their gradients. A group remembers its peak rate as 'initial_lr', for the schedule.
    """
    inner, decay, rest = [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            embedding = name.split('.')[-2:][0] in ('wte', 'wpe', 'table')
            kind = rest if p.ndim < 2 or embedding else inner if 'blocks.' in name and optimizer == 'muon' else decay
            kind.append(p)
    groups = [{'params': decay, 'weight_decay': weight_decay}, {'params': rest, 'weight_decay': 0.0}]
    fused = all(p.device.type in ('cpu', 'cuda') for p in model.parameters())
    optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)]
    if inner:
        optimizers.append(Muon(inner, lr=muon_learning_rate, weight_decay=weight_decay))
    for group in (g for o in optimizers for g in o.param_groups):
        group['initial_lr'] = group['lr']
    return optimizers

def restore(optimizer, state):
    """load_state_dict(), after which rates and the like are still those that this run was given, not the saved ones."""
    now = [{k: v for k, v in group.items() if k != 'params'} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, hyperparameters in zip(optimizer.param_groups, now):
        group.update(hyperparameters)

# ------------------------------------------------------------------------------------------------------------
# 6. Files, and the device

def load_dataset(folder):
    """
    What prepare.py wrote: the tokenizer, and {'train': ids, 'val': ids} as memory-mapped arrays, which stay on disk
    until they are read. Exits with one line where the folder is missing, damaged or cut off.
    """
    meta_path = os.path.join(folder, 'meta.json')
    again = f"make it with  python prepare.py dataset={os.path.basename(folder)}  (and input= for your own text)"
    try:
        with open(meta_path, encoding='utf-8') as f:
            meta = json.load(f)
        if 'kind' in meta:
            script = {'labels': 'finetune.py task=classify', 'preferences': 'align.py', 'pictures': 'vlm.py',
                      'choices': 'eval.py task=choices'}.get(meta['kind'], 'finetune.py')
            what = 'conversations' if meta['kind'] == 'chat' else meta['kind']
            sys.exit(f"{folder} holds {what}, not text: use it with  python {script} "
                     f"dataset={os.path.basename(folder)}")
        tokenizer = Tokenizer.from_dict(meta['tokenizer'])
        dtype = {'<u2': np.dtype('<u2'), '<u4': np.dtype('<u4')}[meta['dtype']]  # these two and no other
        expected = {split: int(meta['splits'][split]['tokens']) for split in ('train', 'val')}
    except FileNotFoundError:
        sys.exit(f"no {meta_path}: {again}")
    except (ValueError, KeyError, TypeError) as e:
        sys.exit(f"{meta_path} is damaged ({type(e).__name__}): {again}")
    splits = {}
    for split, n in expected.items():
        path = os.path.join(folder, f'{split}.bin')
        size = os.path.getsize(path) if os.path.exists(path) else 0
        if size != n * dtype.itemsize or size == 0:
            sys.exit(f"{path} has {size:,} bytes, but meta.json says {n * dtype.itemsize:,}: {again}")
        splits[split] = np.memmap(path, dtype=dtype, mode='r')
    return tokenizer, splits

def load_examples(folder):
    """
    What prepare.py wrote of conversations, preferences or labels: {'train': [each line's dictionary, …], 'val': …}.
    Exits with one line where there is none, or a line is not JSON.
    """
    splits = {'train': [], 'val': []}
    for split, examples in splits.items():
        path = os.path.join(folder, f'{split}.jsonl')
        if not os.path.exists(path):
            sys.exit(f"no {path}: make it with  python prepare.py dataset={os.path.basename(folder)} input=FILE.jsonl, "
                     "or take  dataset=instruct  (align.py: preferences), which prepare.py makes up")
        with open(path, 'rb') as f:
            for number, line in enumerate(f, 1):
                try:
                    examples.append(dict(json.loads(line.decode('utf-8-sig'))))
                except (ValueError, TypeError):
                    sys.exit(f"{path} line {number}: expected JSON like {{\"messages\": …}}, not {line[:40]!r}")
        if not examples:
            sys.exit(f"{path} is empty: give prepare.py more")
    return splits

def load_pictures(path):
    """
    Your own pictures: path.npz holds `images`, uint8 (N, H, W, 3), and path.jsonl beside it a line for each, such as
    {"caption": "a cat"}, with "label": "a cat" and "qa": [["what is this?", "a cat"]] where you have them. Returns the
    array and the lines; exits with one line where they make no sense. allow_pickle=False: a file brings no code.
    """
    lines = path.removesuffix('.npz') + '.jsonl'
    for name in (path, lines):
        if not os.path.exists(name):
            sys.exit(f"no {name}: pictures are a .npz of `images` and a .jsonl of captions; make them with prepare.py")
    try:
        with np.load(path, allow_pickle=False) as f:
            images = f['images']
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        sys.exit(f"{path} is damaged, or holds no array `images` ({type(e).__name__}): write it with np.savez(path, "
                 "images=images)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        sys.exit(f"{path}: images are {images.dtype} {images.shape}, and uint8 (N, H, W, 3) is expected; of grey ones, "
                 "np.stack([grey] * 3, axis=-1)")
    records = []
    with open(lines, 'rb') as f:
        for number, line in enumerate(f, 1):
            try:
                record = json.loads(line.decode('utf-8-sig'))
                texts = [record['caption'], record.get('label', 'none')]
                for question, answer in record.get('qa', []):
                    texts += [question, answer]
                if not all(text.strip() for text in texts):
                    raise ValueError
            except (ValueError, KeyError, TypeError, AttributeError):
                sys.exit(f'{lines} line {number}: expected {{"caption": "a cat", "qa": [["what is this?", "a cat"]]}}, '
                         'with nothing empty')
            records.append(record)
    if len(records) != len(images):
        sys.exit(f"{path} holds {len(images):,} pictures, but {lines} {len(records):,} captions: one line for each")
    return images, records

def save_atomically(path, what):
    """torch.save to a temporary name, flush, rename: at any moment `path` is the old file or the new, never a half."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, 'wb') as f:
            torch.save(what, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
        if os.path.exists(temporary):
            os.remove(temporary)
        sys.exit(f"cannot write {path}: {str(e).splitlines()[0]}; is the disk full? What was there is untouched")

def load_checkpoint(path, device='cpu', mmap=False):
    """
    A checkpoint's dictionary; path is the file, or an out_dir that holds ckpt.pt. Exits with one line where there is
    none or it is damaged. weights_only: a stranger's checkpoint can bring numbers, but no code.
    """
    path = path if path.endswith('.pt') else os.path.join(path, 'ckpt.pt')
    if not os.path.exists(path):
        folder = os.path.dirname(path) or '.'
        script = {'out-sft': 'finetune.py', 'out-align': 'align.py', 'out-clip': 'vlm.py',
                  'out-reward': 'align.py method=reward out_dir=out-reward'}.get(folder)  # by default
        sys.exit(f"no checkpoint {path}: train one with  python {script or f'train.py out_dir={folder}'}")
    try:
        saved = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
        if saved['format'] != 'ninefiles-1':
            raise ValueError(saved['format'])
        return saved
    except Exception as e:  # a cut-off or foreign file fails in any of a dozen ways
        sys.exit(f"{path} is damaged or not a checkpoint of ours ({type(e).__name__}): train again, or restore a copy")

def load_model(path, device='cpu'):
    """
    -> model, tokenizer, and the checkpoint's dictionary ('step', 'val_loss', 'settings' …). The weights are held once:
    the model is built without any, and takes the checkpoint's, which stay in the file until they are used.
    """
    saved = load_checkpoint(path, device, mmap=os.name != 'nt')  # Windows would not let a mapped file be replaced
    try:
        model = outline(GPTConfig(**saved['config']))
        model.load_state_dict(saved['model'], assign=True)
        model.derive()
        return model.float().to(device), Tokenizer.from_dict(saved['tokenizer']), saved
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        sys.exit(f"{path}: weights, shape and tokenizer do not fit together ({str(e).splitlines()[0]})")

def set_aside(folder):
    """Move what an earlier run left in this folder to folder/previous-1, -2, …: a new run costs nobody their model."""
    ours = ('ckpt.pt', 'resume.pt', 'log.csv', 'lora.pt', 'tensorboard', 'sheet.png')
    there = [name for name in os.listdir(folder) if name in ours or name.startswith('captions-')]
    if there:
        n = next(n for n in range(1, 10**6) if not os.path.exists(os.path.join(folder, f'previous-{n}')))
        os.makedirs(os.path.join(folder, f'previous-{n}'))
        for name in there:
            os.replace(os.path.join(folder, name), os.path.join(folder, f'previous-{n}', name))

class Log:
    """
    out_dir/log.csv, a row per report. A new run (step 0) first sets aside what the folder holds; one that goes on drops
    the rows that came after its last save, for they will come again.
    """
    def __init__(self, folder, columns, step):
        os.makedirs(folder, exist_ok=True)
        self.path, self.columns, rows = os.path.join(folder, 'log.csv'), columns.split(), []
        if step == 0:
            set_aside(folder)
        elif os.path.exists(self.path):
            with open(self.path, newline='', encoding='utf-8') as f:
                rows = [row for row in csv.reader(f) if row and row[0].isdigit() and int(row[0]) <= step]
        with open(f'{self.path}.tmp', 'w', newline='', encoding='utf-8') as f:
            csv.writer(f).writerows([self.columns] + rows)
        os.replace(f'{self.path}.tmp', self.path)
        self.file = open(self.path, 'a', newline='', encoding='utf-8', buffering=1)

    def row(self, **values):
        row = [values.get(column, '') for column in self.columns]
        csv.writer(self.file).writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])

def check_finite(what, value, step, learning_rate, folder, best):
    """End the run if a loss or a gradient is nan or inf: nothing is saved any more."""
    if not math.isfinite(value):
        kept = f"{folder}/ckpt.pt still holds the best model, of validation loss {best:.4f}"
        sys.exit(f"the {what} is {value} at step {step}, where the learning rate was {learning_rate:.2g}: try a lower "
                 "one. " + (kept if best < math.inf else "Nothing was saved"))

def stop_when_asked(many=False):
    """
    Ctrl-C and kill end a run after its step: they put their number into the list that is returned; a second Ctrl-C,
    without other processes, stops at once. Also returned: a function that puts things back as they were.
    """
    asked = []
    def on_signal(number, frame):
        if asked and number == signal.SIGINT and not many:  # note: torchrun and batch systems send SIGTERM twice
            raise KeyboardInterrupt
        asked.append(number)
    before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    return asked, lambda: [signal.signal(name, handler) for name, handler in before.items()]

def resolve_device(device='auto', dtype='auto', save_memory=False):
    """
    ('auto', 'auto') -> ('cuda', 'bfloat16'), ('cpu', 'float32') …: this machine's best. Exits where there is none. For
    the CPU, on Linux, it also tells glibc to keep what was freed, which is quicker; with save_memory, less of it.
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    kind, colon, index = device.partition(':')
    present = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if kind not in present:
        sys.exit(f"device={device}: expected auto, cpu, cuda, cuda:0 … or mps")
    if not present[kind] or (colon and not (index.isdigit() and int(index) < torch.cuda.device_count())):
        sys.exit(f"device={device} is not on this machine: try device=cpu")
    if dtype == 'auto':
        dtype = 'bfloat16' if has_bfloat16(kind) else 'float16' if kind == 'cuda' else 'float32'
    if kind == 'cpu' and sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        # glibc returns large blocks to the kernel at every free(), and the next malloc() gets them back zeroed, page by
        # page: in a training loop, the same megabytes all day. So keep them (-1 is M_TRIM_THRESHOLD; -3, of which older
        # ones allow 32 MB, M_MMAP_THRESHOLD); with save_memory just those below 2 MB, for large ones leave holes behind
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**21 if save_memory else 2**30) or libc.mallopt(-3, 2**25)
    return device, dtype

# ------------------------------------------------------------------------------------------------------------
# 7. Arithmetic

def describe(model, batch_size=0, dtype='float32', optimizer='adamw', say=print):
    """
    What a model costs, from its shape and whether it lies on a CPU: prints a table of parameters, FLOPs per token of
    training, and memory in a training step of batch_size rows; returns it as a dictionary (memory in bytes).
    """
    c = model.config
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total, inner = sum(sizes.values()), sum(n for name, n in sizes.items() if 'blocks.' in name)
    tables = ('wpe', 'table') if c.tie_weights else ('wte', 'wpe', 'table')  # looking a row up multiplies nothing
    used = sum(n for name, n in sizes.items() if not name.startswith(tables))
    # a weight multiplies once forward, twice backward, 2 FLOPs each; attention adds QKᵀ and AV (Chowdhery 2022, app. B)
    flops = 6 * used + (12 * c.n_layer * c.n_head * c.head_dim * c.block_size if c.model_type == 'gpt' else 0)
    # what a layer keeps for its backward pass, in bytes per token, as autograd was seen to keep it: the residual stream
    # twice; the inputs of the matrices, q, k, v and y; what norms and MLP need; attention weights that are written out
    b, tokens = 2 if dtype != 'float32' else 4, batch_size * c.block_size
    layer = c.n_embd * (8 + 6 * b + 8 * (c.norm == 'rmsnorm')) + c.n_hidden * b * (4 if c.mlp == 'swiglu' else 2)
    layer += c.n_head * (16 * c.head_dim * c.qk_norm + b * c.block_size * (dtype == 'bfloat16' and c.block_size <= 512))
    again = getattr(model, 'activation_checkpointing', False)
    kept = c.n_layer * 4 * c.n_embd + layer if again else c.n_layer * layer
    memory = {'weights': 4 * total, 'gradients': 4 * total,
              'optimizer': 8 * total - (4 * inner if optimizer == 'muon' else 0), 'activations': kept * tokens,
              'scores': min(tokens, MOST_NUMBERS // c.vocab_size) * c.vocab_size * (12 + b),
              # autocast turns each weight into 16 bits, once per pass; a layer's, where layers are computed again
              'half copies': 2 * used // (c.n_layer if again else 1) if b == 2 else 0}
    if next(model.parameters()).device.type == 'cpu':  # as measured, from 0.1M to 86M parameters: torch's own code, and
        memory['heap'] = 40_000_000 + (memory['activations'] + memory['scores']) * 65 // 100  # holes between the blocks
    say(f"{c.model_type:<16}{total:>14,} parameters, {inner:,} of them in the layers")
    say(f"{'to train':<16}{flops:>14,} FLOPs per token")
    for name, size in {**memory, 'in all': sum(memory.values())}.items() if batch_size else ():
        say(f"  {name:<14}{size / 1e6:>14,.1f} MB")
    return {'parameters': total, 'flops_per_token': flops, 'memory': memory}

def schedule_rate(step, schedule, warmup, end, floor=0.0):
    """
    The fraction of the peak learning rate at this step: up in the warmup, then down to the floor at step `end`, as a
    cosine, a line, in two steps to a tenth each, at the very end ('wsd': warmup, stable, decay; Hu et al. 2024), or not
    at all.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(end - warmup, 1), 1.0)  # 0 … 1
    shape = {'constant': 1.0, 'linear': 1 - done, 'cosine': 0.5 * (1 + math.cos(math.pi * done)),
             'step': 1.0 if done < 0.6 else 0.1 if done < 0.85 else 0.01, 'wsd': min(1.0, (1 - done) / 0.2)}[schedule]
    return floor + (1 - floor) * shape

def sparkline(values, width=50):
    """[4, 3, 2, 1] -> '█▆▃▁': a curve in one line of text."""
    bars = '▁▂▃▄▅▆▇█' if 'utf' in (sys.stdout.encoding or '').lower() else '.:-=+*#@'
    values = [values[i * len(values) // width] for i in range(width)] if len(values) > width else values
    low, high = min(values), max(values)
    return ''.join(bars[round(7 * (v - low) / max(high - low, 1e-9))] for v in values)

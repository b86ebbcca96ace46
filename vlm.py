"""
Give it eyes: a tiny vision-language model, and the pictures to train it on, which this file draws itself.

    python vlm.py task=look                                             # some pictures, their captions and questions
    python vlm.py                                                       # clip: which caption belongs to which picture?
    python vlm.py task=caption init_from=out-clip out_dir=out-caption   # say what a picture shows
    python vlm.py task=vqa init_from=out-caption out_dir=out-vqa        # answer questions about it
    python vlm.py dataset=mine out_dir=out-mine                         # your own pictures, made ready by prepare.py

A picture becomes a sequence, and everything after that is model.py's transformer. The vision tower is a GPT whose
"words" are patches of pixels and whose mask is gone; CLIP trains it by asking which of a batch's captions belongs to
which of its pictures. Then a language model is shown the tower's output, in one of three ways (fusion=), and learns
to describe what it sees or to answer. What every number is worth shows when the pictures are swapped or blank.

Every scene is a function of (split, seed, number) alone. Some combinations of colour and shape, HELD_OUT, appear in
no training scene: who has understood "red" and "circle" can say "red circle" all the same.

Writes out_dir/ckpt.pt (the best weights so far), resume.pt (everything to go on exactly), log.csv, sheet.png, and for
task=caption captions-*.jsonl, which eval.py scores. max_iters=0 with init_from=DIR only measures (into out_dir).
"""
from configurator import configure, expect, usage

# what, and where to
task = 'clip'           # clip | caption | vqa | look: look only shows the data
out_dir = 'out-clip'
init_from = 'scratch'   # scratch, resume (go on with the run in out_dir), or the folder of a checkpoint to start from
dataset = 'shapes'      # shapes (drawn as it trains), or a folder of pictures in data_dir, made by prepare.py
data_dir = 'data'
# the model: two towers, or one and a language model
image_size = 32         # pixels; pictures of your own must have this size
patch_size = 8          # 32 * 32 pixels in patches of 8 * 8 are 16 tokens of 256 numbers
n_layer = 2             # of each tower
text_layers = 3         # of the language model that looks (caption, vqa): to find, to compare, to say
n_head = 2
n_embd = 128
block_size = 96         # longest text, in tokens
fusion = 'intermediate' # early | intermediate | late: tokens before the text, cross-attention, or added at the end
freeze = False          # caption, vqa: leave the vision tower as it came
word_dropout = 0.3      # caption, vqa: of the words said so far, so many are hidden in training; 0: none
questions = 5           # vqa: asked about each scene in training, one after the other: looking costs more than asking
# how much
batch_size = 128        # pictures a step. clip: 128 captions to choose from, so no accumulation
max_iters = 1000
# how fast
learning_rate = 0.005       # AdamW's peak rate: for embeddings, patches, projections
muon_learning_rate = 0.02   # Muon's, for the matrices in the layers: a scale of its own
warmup_iters = 20           # steps in which it rises from 0; then it falls in a straight line …
lr_decay_iters = 0          # … to 0 at this step; 0: max_iters
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 4              # batches of batch_size pictures in each: always the same ones
log_interval = 20           # steps between lines
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16: of the multiplications; the weights stay float32
seed = 1337
given = configure(globals())
SETTINGS = [k for k, v in globals().items() if isinstance(v, (int, float, str)) and not k.startswith('_')]

import json, math, os, re, struct, sys, time, zlib
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache
from itertools import permutations, product
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (FORMAT, GPT, GPTConfig, LogFile as Log, Tokenizer, check_finite, configure_optimizers, load_checkpoint,
                   make_norm, resolve_device, restore, save_atomically, lr_schedule, rotary, stop_signals)

# ------------------------------------------------------------------------------------------------------------
# 1. Scenes: one to three shapes, and all that can be said and asked about them

COLOURS = {'red': 0, 'yellow': 60, 'green': 120, 'cyan': 180, 'blue': 240, 'purple': 300}  # hues, in degrees
SHAPES = ('circle', 'square', 'triangle', 'cross')
KINDS = list(product(COLOURS, SHAPES))  # 24 combinations …
HELD_OUT = {('red', 'circle'), ('green', 'square'), ('blue', 'triangle'), ('yellow', 'cross')}  # … 4 never trained on
SPLITS = ('train', 'val', 'new')        # val: other scenes of the 20; new: scenes that show at least one of the 4
OPENINGS = ('', 'a picture of ', 'there is ')
WAYS = 72                               # to word a caption: 3 openings * 6 orders * 2 (all sizes, or only the first)
                                        # * 2 (which of two relations)

@cache
def casts(split):
    """Who may appear together: for n = 1, 2, 3 all lists of n kinds, of different colours and shapes, each (M, n)."""
    def fits(kinds):
        colours, shapes = zip(*kinds)
        return len(set(colours)) == len(set(shapes)) == len(kinds) and (split == 'new') == bool(HELD_OUT & set(kinds))
    return [np.array([[KINDS.index(k) for k in kinds] for kinds in permutations(KINDS, n) if fits(kinds)])
            for n in (1, 2, 3)]

def inside(shape, x, y, r):
    """Which pixels, at (x, y) from its centre, belong to a shape of radius r."""
    if shape == 'circle':
        return x * x + y * y <= r * r
    x = abs(x)
    if shape == 'triangle':
        return (y <= 0.8 * r) & (x <= 0.55 * (y + r))
    y = abs(y)
    return np.maximum(x, y) <= r if shape == 'square' else (np.minimum(x, y) <= 0.32 * r) & (np.maximum(x, y) <= r)

def draw(split, numbers):
    """
    Scenes by their numbers: pictures (B, 32, 32, 3) uint8; for each a list of its objects, (size, colour, shape, x, y);
    and (B, 8) random numbers in [0, 1) for its wording. Each object has a quarter of the picture to itself.
    """
    stream = [SPLITS.index(split), seed if split == 'train' else 0]
    u = np.stack([np.random.default_rng(stream + [int(i)]).random(8 + 32 + 3072, np.float32) for i in numbers])
    words, u, noise = np.split(u, (8, 40), axis=1)
    # 1. what there is
    count = 1 + (u[:, 0] > 0.25).astype(int) + (u[:, 0] > 0.6)  # 1, 2 or 3 objects, in 25, 35 and 40 % of scenes
    who = np.full((len(u), 3), -1)
    for n, lists in enumerate(casts(split), 1):
        rows = count == n
        who[rows, :n] = lists[(u[rows, 1] * len(lists)).astype(int)]
    big = u[:, 2:5] < 0.5
    radius = np.where(big, np.float32(6.2), np.float32(4.4)) + 0.8 * u[:, 5:8]  # (B, 3), in pixels
    # 2. where it is
    quarter = np.array(list(permutations(range(4), 3)))[(u[:, 8] * 24).astype(int)]  # (B, 3)
    room = np.minimum(8 - radius, 2.5)
    x = 8 + 16 * (quarter % 2) + room * (2 * u[:, 9:12] - 1)
    y = 8 + 16 * (quarter // 2) + room * (2 * u[:, 12:15] - 1)
    # 3. its colour: any red, from hue, saturation and value. note: with one fixed red, a tower learned how each shape
    # looks in that red, and took a red circle, which it had never seen, for a red square
    hue = np.array(list(COLOURS.values()))[who // len(SHAPES)] + 48 * u[:, 15:18] - 24
    saturation, value = 0.5 + 0.5 * u[:, 18:21], 0.75 + 0.25 * u[:, 21:24]
    k = (np.array([5, 3, 1]) + hue[..., None] / 60) % 6
    colour = 255 * value[..., None] * (1 - saturation[..., None] * np.minimum(k, 4 - k).clip(0, 1))  # (B, 3 objects, 3)
    # 4. pixels: all circles of the batch at once, all squares …
    pictures = np.tile(60 * u[:, None, None, 24:27], (1, 32, 32, 1))  # a dark background, of any tint
    grid = np.arange(32, dtype=np.float32) + 0.5
    for slot, (s, shape) in product(range(3), enumerate(SHAPES)):
        rows = np.flatnonzero((who[:, slot] >= 0) & (who[:, slot] % len(SHAPES) == s))
        at = (rows, slot, None, None)
        b, i, j = np.nonzero(inside(shape, grid[None, None, :] - x[at], grid[None, :, None] - y[at], radius[at]))
        pictures[rows[b], i, j] = colour[rows[b], slot]
    pictures += 40 * noise.reshape(-1, 32, 32, 3) - 20
    # 5. the same in words
    scenes = [[(('small', 'big')[size], *KINDS[k], i, j) for size, k, i, j in zip(*row) if k >= 0]
              for row in zip(big.tolist(), who.tolist(), x.tolist(), y.tolist())]
    return pictures.clip(0, 255).astype(np.uint8), scenes, words

def relations(a, b):
    """What is true of the places of two objects: 'left of', 'above' …; in one column, neither is left of the other."""
    found = ['left of' if a[3] < b[3] else 'right of'] if abs(a[3] - b[3]) > 8 else []
    return found + (['above' if a[4] < b[4] else 'below'] if abs(a[4] - b[4]) > 8 else [])

def place(thing):
    return f"{'top' if thing[4] < 16 else 'bottom'} {'left' if thing[3] < 16 else 'right'}"

def caption(scene, way):
    """
    A scene in words, in one of the WAYS: 'a small red circle left of a blue square', 'there is a big blue square right
    of a small red circle' … All of them are true.
    """
    opening, order, all_sizes, choice = OPENINGS[way // 24], way // 4 % 6, way // 2 % 2, way % 2
    orders = list(permutations(scene))
    scene = orders[order % len(orders)]
    names = [f"a {size} {colour} {shape}" if all_sizes or (i == 0 and len(scene) > 1) else f"a {colour} {shape}"
             for i, (size, colour, shape, *_) in enumerate(scene)]
    if len(scene) == 1:
        return opening + names[0] + f" at the {place(scene[0])}" * choice
    between = relations(*scene[:2])
    third = f" and {names[2]}" if len(names) == 3 else ''
    return f"{opening}{names[0]} {between[choice % len(between)]} {names[1]}{third}"

def ask(scene, u):
    """
    One question about a scene and its answer. Those about presence are yes and no equally often, and no comes from
    colours and shapes that are there, but in other company: a model that sees no more than "red, blue, circle, square"
    cannot tell. They name no held-out kind that is not there, or "no" could be learned by name.
    """
    def pick(things, u):
        return things[int(u * len(things))]
    size, colour, shape, *_ = thing = pick(scene, u[0])
    kind = pick(['colour', 'shape', 'count', 'presence', 'place'] + ['relation'] * (len(scene) > 1), u[1])
    if kind == 'colour':
        return f"what colour is the {shape}?", colour
    if kind == 'shape':
        return f"what shape is {colour}?", shape
    if kind == 'count':
        which = pick(['', 'small ', 'big '], u[2])
        number = sum(which in ('', other[0] + ' ') for other in scene)
        return f"how many {which}shapes are there?", ('none', 'one', 'two', 'three')[number]
    if kind == 'place':  # note: without these, answers about relations stayed guesses: they take both where things are
        return f"where is the {shape}?", place(thing)  # and who was named first, and neither pays alone
    if kind == 'relation':
        other = pick([o for o in scene if o is not thing], u[2])
        relation = pick(relations(thing, other), u[3])
        choice = 'left or right of' if relation in ('left of', 'right of') else 'above or below'
        return f"is the {shape} {choice} the {other[2]}?", relation.split()[0]
    if u[2] < 0.5:
        return f"is there a {colour} {shape}?", 'yes'
    there = [other[1:3] for other in scene]
    absent = [k for k in KINDS if k not in there and k not in HELD_OUT]
    mixed = [k for k in absent if k[0] in {c for c, _ in there} and k[1] in {s for _, s in there}]
    alike = [k for k in absent if k[0] == colour or k[1] == shape]
    return "is there a {} {}?".format(*pick(mixed or alike, u[3])), 'no'

# ------------------------------------------------------------------------------------------------------------
# 2. Examples: pictures with something to read, from scenes or from files

def load_own_pictures(folder, split):
    """
    Your own pictures as prepare.py wrote and checked them: an array (N, S, S, 3) of uint8, and for
    each picture a dictionary with its caption, and qa (questions and answers) and label if given.
    Exits with one line where a file is missing, or where S is not image_size.
    """
    path = os.path.join(folder, f'{split}.npz')
    lines = os.path.join(folder, f'{split}.jsonl')
    for name in (path, lines):
        if not os.path.exists(name):
            sys.exit(f"no {name}: run  python prepare.py dataset={dataset} input=pictures.npz")
    with np.load(path, allow_pickle=False) as f:
        pictures = f['images']
    height, width = pictures.shape[1:3]
    if height != image_size or width != image_size:
        sys.exit(f"{path} holds pictures of {width} x {height} pixels, and image_size={image_size}: "
                 f"scale them to {image_size} x {image_size}, or give their size as image_size")
    with open(lines, encoding='utf-8') as f:
        records = [json.loads(line) for line in f]
    return pictures, records

@cache
def own(split):
    """Your own pictures, as examples() returns them."""
    folder = os.path.join(data_dir, dataset)
    pictures, records = load_own_pictures(folder, split)
    if task == 'vqa':  # a row per question
        rows = [(i, tuple(pair), r) for i, r in enumerate(records) for pair in r.get('qa', [])]
        if not rows:
            sys.exit(f"{folder}/{split}.jsonl asks nothing: task=vqa needs lines like "
                     '{"caption": "…", "qa": [["what is this?", "a cat"]]}')
        i, pairs, records = map(list, zip(*rows))
        return pictures[i], pairs, records
    return pictures, [('', r['caption']) for r in records], records

def examples(split, numbers):
    """
    Pictures (B, S, S, 3) uint8; for each (question, answer), where the question '' means "what is there?", so that
    captioning is answering too; and what is known of each: a scene's objects, or a line of your .jsonl.
    """
    if dataset != 'shapes':
        pictures, pairs, known = own(split)
        return pictures[numbers], [pairs[i] for i in numbers], [known[i] for i in numbers]
    pictures, scenes, u = draw(split, numbers)
    if task == 'vqa':
        return pictures, [ask(scene, row) for scene, row in zip(scenes, u)], scenes
    return pictures, [('', caption(scene, int(row[0] * WAYS))) for scene, row in zip(scenes, u)], scenes

def get_batch(step):
    """This step's batch_size training examples: a function of (seed, step) alone."""
    if dataset == 'shapes':
        pictures, pairs, scenes = examples('train', range(step * batch_size, (step + 1) * batch_size))
        if task == 'vqa':
            u = np.random.default_rng([seed, step]).random((batch_size, questions, 4))
            pairs = [[ask(scene, row) for row in rows] for scene, rows in zip(scenes, u)]
        return pictures, pairs
    order = np.random.default_rng([seed, step]).permutation(len(own('train')[0]))
    return examples('train', order[:batch_size])[:2]

def make_tokenizer():
    """
    A byte-pair vocabulary in which every word of the training texts is one token, the same for each task: the merges of
    " red" are " r", " re", " red". Any other text can be written as well, letter by letter.
    """
    if dataset == 'shapes':
        _, scenes, u = draw('train', range(1000))
        texts = [' '.join([caption(scene, int(row[0] * WAYS)), *ask(scene, row)]) for scene, row in zip(scenes, u)]
    else:
        # of all lines, though for vqa own() leaves some out: the next task must find the same tokenizer
        records = load_own_pictures(os.path.join(data_dir, dataset), 'train')[1]
        texts = [' '.join([r['caption']] + [t for pair in r.get('qa', []) for t in pair]) for r in records]
    words = {space + word for text in texts for word in re.findall(r'\w+', text) for space in ('', ' ')}
    merges = {word.encode()[:n] for word in words for n in range(2, len(word.encode()) + 1)}
    return Tokenizer('bpe', [bytes([b]) for b in range(256)] + sorted(merges, key=lambda token: (len(token), token)))

def collate(tokenizer, pairs):
    """
    Texts for the model: ids (B, T), padded; targets (B, T), which count in the answers alone. pairs holds a (question,
    answer) for each picture, or a list of several:

        what colour is the circle? red -> <|user|> what colour is the circle? <|end|> <|assistant|>  red   <|end|>
                               targets       -100 …                             -100     red       <|end|>
    """
    rows = [tokenizer.chat([{'role': role, 'content': text} for two in (pair if isinstance(pair, list) else [pair])
                            for role, text in zip(('user', 'assistant'), two)]) for pair in pairs]
    longest = max(len(ids) for ids, _ in rows)
    if longest > block_size:
        sys.exit(f"a text of {longest} tokens is longer than block_size={block_size}: give block_size={longest}")
    idx, targets = torch.full((len(rows), longest), tokenizer.pad), torch.full((len(rows), longest), -100)
    for b, (ids, mask) in enumerate(rows):
        ids, mask = torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)
        idx[b, :len(ids)] = ids
        targets[b, :len(ids) - 1] = ids[1:].masked_fill(~mask[1:], -100)
    return idx, targets

def hide(tokenizer, idx, targets, step):
    """
    Word dropout (Bowman et al. 2016, 3.1): some words that the answers idx (B, T) have said so far become <|pad|>;
    which ones is a function of (seed, step, row). Else a captioner learns that "red" is never followed by "circle", and
    believes that more than its eyes (README: 74 % -> 90 % of new combinations are described without a fault).
    """
    said = F.pad(targets[:, :-1], (1, 0), value=-100) >= 0  # what was a target one position before
    luck = np.random.default_rng([seed, step, 1]).random((batch_size, block_size), np.float32)
    luck = torch.from_numpy(luck[:len(idx), :idx.size(1)])
    return idx.masked_fill(said & (idx != tokenizer.end) & (luck < word_dropout), tokenizer.pad)

# ------------------------------------------------------------------------------------------------------------
# 3. Models

def vision_tower():
    """
    A GPT that reads patches (ViT, Dosovitskiy et al. 2020): causal=False, and in place of the table of word embeddings
    one linear map from a patch's 4 p² numbers to C channels. Sliding that map over the picture p pixels at a time is
    what libraries write as a convolution of kernel p and stride p.
    """
    tower = GPT(GPTConfig(vocab_size=1, block_size=(image_size // patch_size) ** 2, n_layer=n_layer, n_head=n_head,
                          n_embd=n_embd, position='learned', causal=False))
    tower.wte, tower.head = nn.Linear(4 * patch_size ** 2, n_embd, bias=False), nn.Identity()
    return tower

def patches(pictures):
    """
    uint8 (B, S, S, 3) -> a row per patch, (B, N, 4 p²), left to right, then down. A pixel becomes its light, the
    brightest of red, green and blue, and, much smaller, how far each of them falls short of it. No information is lost;
    but what is large is learned first, and in light a red circle is any circle: so shapes are known again in a colour
    that they never had. (After 500 batches: light as the mean, where red is darker than yellow, 87 % of them named; as
    it is here, 91 %.)
    """
    B, S, p = len(pictures), image_size, patch_size
    x = pictures.float() / 127.5 - 1
    light = x.amax(-1, keepdim=True)
    x = torch.cat((2 * light, (x - light) / 4), dim=-1)  # (B, S, S, 4)
    return x.view(B, S // p, p, S // p, p, 4).transpose(2, 3).reshape(B, -1, 4 * p * p)

def text_tower(vocab_size, layers):
    room = (image_size // patch_size) ** 2 + block_size  # a caption may follow the picture's tokens
    return GPT(GPTConfig(vocab_size=vocab_size, block_size=room, n_layer=layers, n_head=n_head, n_embd=n_embd))

def clip_loss(images, texts, scale):
    """
    Symmetric InfoNCE (Radford et al. 2021, figure 3): of all texts, which is this picture's, and of all pictures, which
    is this text's? images and texts (B, E) of length 1, row b of one belonging to row b of the other.
    """
    target = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # scores up to 100 want more digits than bfloat16's 3
        which_text = scale * images @ texts.T  # (B, B)
        which_image = scale * texts @ images.T
        return (F.cross_entropy(which_text, target) + F.cross_entropy(which_image, target)) / 2

class CLIP(nn.Module):
    """Two towers whose outputs are compared: pictures and texts as points on one sphere."""
    def __init__(self, tokenizer):
        super().__init__()
        self.pad = tokenizer.pad
        self.vision, self.text = vision_tower(), text_tower(tokenizer.vocab_size, n_layer)
        self.text.head.requires_grad_(False)  # this one only reads
        self.image_out, self.text_out = nn.Linear(n_embd, n_embd, bias=False), nn.Linear(n_embd, n_embd, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # a learned temperature of 0.07 to start with

    def see(self, pictures):
        return F.normalize(self.image_out(self.vision.hidden(patches(pictures)).mean(1)).float(), dim=-1)  # (B, E)

    def read(self, idx):
        last = (idx != self.pad).sum(1) - 1  # <|end|>: the one token that has seen the whole text
        return F.normalize(self.text_out(self.text.hidden(idx)[torch.arange(len(idx)), last]).float(), dim=-1)  # (B, E)

    def forward(self, pictures, idx, targets):
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # beyond 100 the scores run away (section 2.5)
        return clip_loss(self.see(pictures), self.read(idx), scale)

class CrossAttention(nn.Module):
    """The text asks, the picture answers: queries from one, keys and values from the other (Vaswani et al. 2017)."""
    def __init__(self, config):
        super().__init__()
        self.config, self.norm = config, make_norm(config)
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.kv = nn.Linear(config.n_embd, 2 * config.n_embd, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        nn.init.zeros_(self.proj.weight)  # begins as "change nothing", like a block

    def forward(self, x, seen):
        (B, T, C), H, D = x.shape, self.config.n_head, self.config.head_dim
        q = self.q(self.norm(x)).view(B, T, H, D)
        k, v = self.kv(seen).view(B, -1, 2 * H, D).split(H, dim=2)  # (B, N, H, D)
        q, k = F.rms_norm(q, (D,)), F.rms_norm(k, (D,))
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))  # (B, H, T, D)
        return x + self.proj(y.transpose(1, 2).reshape(B, T, C))

class Reader(nn.Module):
    """
    A language model that sees, by one of three fusions of the picture's tokens (B, N, C) with the text's:
    early: they stand in front of the text, as if they were words (LLaVA, Liu et al. 2023); intermediate: after every
    block the text looks at them (Flamingo, Alayrac et al. 2022); late: their mean is added at the very end.
    """
    def __init__(self, tokenizer):
        super().__init__()
        self.vision, self.text = vision_tower(), text_tower(tokenizer.vocab_size, text_layers)
        self.project = nn.Linear(n_embd, n_embd, bias=False)  # from what the tower says to what the text understands
        # … and where each patch stands: CLIP, which compares whole pictures, had no need to remember it
        self.places = nn.Parameter(0.5 * torch.randn((image_size // patch_size) ** 2, n_embd))
        self.cross_blocks = nn.ModuleList(CrossAttention(self.text.config) for _ in self.text.blocks
                                          if fusion == 'intermediate')
        if freeze:
            self.vision.requires_grad_(False)

    def see(self, pictures):
        return self.vision.hidden(patches(pictures))  # (B, N, C)

    def hidden(self, idx, seen):
        """ids (B, T) and what is seen (B, N, C) -> (B, T, C)"""
        text, x, seen = self.text, self.text.wte(idx), self.project(seen) + self.places
        if fusion == 'early':
            x = torch.cat((seen.to(x.dtype), x), dim=1)  # (B, N + T, C)
        cos_sin = rotary(torch.arange(x.size(1), device=x.device), text.config)
        for i, block in enumerate(text.blocks):
            x = block(x, cos_sin)
            if fusion == 'intermediate':
                x = self.cross_blocks[i](x, seen)
        if fusion == 'late':
            x = x + seen.mean(1, keepdim=True)
        return text.norm(x)[:, -idx.size(1):]

    def forward(self, pictures, idx, targets):
        """Cross-entropy per token of the answers: its mean over each row, then over the rows."""
        scores = self.text.logits(self.hidden(idx, self.see(pictures))).float()  # (B, T, V)
        losses = F.cross_entropy(scores.transpose(1, 2), targets, reduction='none')  # (B, T), 0 at -100
        return (losses.sum(1) / (targets >= 0).sum(1)).mean()

@torch.no_grad()
def answers(model, tokenizer, pictures, questions):
    """What the model says about each picture, by the likeliest token, again and again: a list of strings."""
    rows = [tokenizer.chat([{'role': 'user', 'content': q}], answer=True)[0] for q in questions]
    seen = model.see(pictures)
    said = [[] for _ in rows]
    while max(len(row) for row in rows) < block_size and not all(tokenizer.end in row for row in said):
        # read all of it again for every token: the texts are short. Causality hides the padding on the right
        lengths = [len(row) for row in rows]
        idx = torch.tensor([row + [tokenizer.pad] * (max(lengths) - len(row)) for row in rows], device=pictures.device)
        x = model.hidden(idx, seen)[torch.arange(len(rows)), torch.tensor(lengths) - 1]
        for row, answer, token in zip(rows, said, model.text.logits(x).argmax(-1).tolist()):
            row.append(token)
            answer.append(token)
    return [tokenizer.decode(row[:row.index(tokenizer.end)] if tokenizer.end in row else row) for row in said]

# ------------------------------------------------------------------------------------------------------------
# 4. Training: train.py's loop; `diff train.py vlm.py` shows what is new

def rate(step):
    """The fraction of the peak learning rate at this step: up in the warmup, then down to 0 in a straight line."""
    return lr_schedule(step, 'linear', warmup_iters, lr_decay_iters or max_iters)

def weights(model):
    """A model's state in three: 'model' loads as a plain GPT, 'vision' into any model here, 'bridge' is the rest."""
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(('text.', 'vision.'))}
    return {'model': model.text.state_dict(), 'vision': model.vision.state_dict(), 'bridge': rest}

def load_weights(model, old, everything):
    """The inverse of weights(); without `everything`, the vision tower alone."""
    model.vision.load_state_dict(old['vision'])
    if everything:
        model.text.load_state_dict(old['model'])
        model.load_state_dict(old['bridge'], strict=False)

def train():
    # 1. settings that make no sense, and those of the run that we resume
    resumed = load_checkpoint(os.path.join(out_dir, 'resume.pt')) if init_from == 'resume' else None
    if resumed:  # its own settings, unless given again
        if 'optimizers' not in resumed:
            sys.exit(f"{out_dir}/resume.pt is no run of vlm.py: start from its weights with init_from={out_dir}")
        past = {k: v for k, v in resumed['settings'].items() if k in SETTINGS and k not in ('out_dir', 'init_from')}
        globals().update({k: v for k, v in past.items() if k not in given})
    expect(globals(), 'image_size patch_size batch_size text_layers questions eval_interval eval_iters '
                      'log_interval', least=1)
    expect(globals(), 'max_iters warmup_iters lr_decay_iters grad_clip seed', least=0)
    expect(globals(), 'learning_rate muon_learning_rate', above=0)
    expect(globals(), 'word_dropout', least=0, below=1)
    if freeze and (task == 'clip' or init_from == 'scratch'):
        usage("freeze=True keeps a tower that has learned to see: it needs task=caption or vqa, and init_from=out-clip")
    base = os.path.realpath(init_from.removesuffix('/ckpt.pt'))
    if init_from not in ('scratch', 'resume') and max_iters > 0 and os.path.realpath(out_dir) == base:
        usage(f"out_dir={out_dir} is where {init_from} lies, which stays as it is: choose another")

    # 2. where it runs
    where, number = resolve_device(device, dtype)
    number = 'float32' if number == 'float16' else number  # float16 would need train.py's loss scaling
    kind = where.split(':')[0]
    if kind == 'cuda' and ':' in where:
        torch.cuda.set_device(where)
    autocast = nullcontext() if number == 'float32' else torch.autocast(kind, dtype=getattr(torch, number))

    # 3. data, and the model: new, from a checkpoint, or as it was
    old = resumed or (load_checkpoint(init_from) if init_from != 'scratch' else None)
    source = f"{out_dir}/resume.pt" if resumed else f"the checkpoint in {init_from}"
    same = old and (old.get('task') == 'clip') == (task == 'clip')  # else only its vision tower is of use
    if old:
        if 'vision' not in old:
            sys.exit(f"{source} is a text model, with another tokenizer than dataset={dataset}: start from one that "
                     "vlm.py made, or from scratch")
        fixed = 'image_size patch_size n_layer n_head n_embd' + ' fusion text_layers' * bool(same)
        fixed += ' task freeze' * bool(resumed) + ' block_size' * bool(resumed or (same and max_iters == 0))
        for name in fixed.split():
            if name in given and globals()[name] != old['settings'][name]:
                sys.exit(f"{source} has {name}={old['settings'][name]}, not {globals()[name]}: leave {name} out")
            globals()[name] = old['settings'][name]
    if max_iters == 0 and old and not same:
        usage(f"task={task}: {source} was trained for task={old['task']}, and max_iters=0 only measures")
    if image_size % patch_size or (dataset == 'shapes' and image_size != 32):
        usage(f"image_size={image_size} patch_size={patch_size}: expected image_size to be a multiple of patch_size" +
              (", and 32 for dataset=shapes" if dataset == 'shapes' else ''))
    tokenizer = make_tokenizer()
    if old and Tokenizer.from_dict(old['tokenizer']) != tokenizer:
        sys.exit(f"{source} reads with another tokenizer than dataset={dataset}: train from scratch")
    if dataset != 'shapes' and len(own('train')[0]) < batch_size:
        sys.exit(f"{data_dir}/{dataset} has {len(own('train')[0])} examples to train on, fewer than "
                 f"batch_size={batch_size}: give batch_size={max(len(own('train')[0]) // 4, 2)}")
    for split in ('train', 'val') if dataset != 'shapes' else ():
        collate(tokenizer, own(split)[1])  # a text that is too long ends the run now, not in an hour
    torch.manual_seed(seed)
    try:
        model = CLIP(tokenizer) if task == 'clip' else Reader(tokenizer)
        if old:
            load_weights(model, old, same)
    except ValueError as e:
        usage(str(e))
    model.to(where)
    if max_iters == 0:
        return measure(model, tokenizer, where, autocast)

    # 4. optimizers
    optimizers = configure_optimizers(model, 'muon', learning_rate, muon_learning_rate)
    step, best = 0, math.inf
    if resumed:
        for o, state in zip(optimizers, resumed['optimizers']):
            restore(o, state)
        step, best = resumed['step'], resumed['best']
    old = resumed = None  # let go of the copies

    # 5. what this will cost
    total, vision, text = (sum(p.numel() for p in part.parameters()) for part in (model, model.vision, model.text))
    print(f"{total:,} parameters: vision {vision:,}, text {text:,}, between them {total - vision - text:,}")
    print(f"{batch_size:,} pictures per step * {max_iters:,} steps = {batch_size * max_iters:,} pictures, each of "
          f"{(image_size // patch_size) ** 2} patches; {tokenizer.vocab_size} tokens of text")
    print(f"on {where}, {number}", flush=True)

    # 6. where it goes; an earlier run's results are set aside, not lost
    log = Log(out_dir, 'step pictures train_loss val_loss rate grad_norm pictures_per_second seconds', step)
    settings = {k: globals()[k] for k in SETTINGS}

    def save(name, **more):
        save_atomically(os.path.join(out_dir, name), {
            'format': FORMAT, **weights(model), 'config': asdict(model.text.config), 'task': task,
            'tokenizer': tokenizer.to_dict(), 'step': step, 'settings': settings, **more})

    def progress():
        """What resume.pt holds beyond the model: with it, a run that stopped ends in the same weights, bit for bit."""
        return {'optimizers': [o.state_dict() for o in optimizers], 'best': best}

    def loss_of(pictures, pairs):
        idx, targets = collate(tokenizer, pairs)
        if task != 'clip' and model.training:
            idx = hide(tokenizer, idx, targets, step)
        with autocast:
            return model(torch.from_numpy(pictures).to(where), idx.to(where), targets.to(where))

    @torch.no_grad()
    def evaluate():
        """Mean loss over eval_iters batches of pictures that are kept from training."""
        model.eval()
        n = batch_size * eval_iters if dataset == 'shapes' else min(batch_size * eval_iters, len(own('val')[0]))
        batches = [range(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
        losses = [loss_of(*examples('val', numbers)[:2]) for numbers in batches]
        model.train()
        return torch.stack(losses).mean().item()

    # 7. Ctrl-C and kill ask us to stop after this step
    stop, put_back = stop_signals()

    # 8. the loop
    first_step, losses, stopping = step, [], False
    evaluated = step if step > 0 and step % eval_interval == 0 else None  # by the run that goes on here
    model.train()
    start = mark = time.perf_counter()
    while True:
        # 8.1 evaluate, save
        if (step % eval_interval == 0 or step == max_iters) and step != evaluated:
            before = time.perf_counter()
            val_loss = evaluate()
            check_finite('loss', val_loss, step, learning_rate * rate(step), out_dir, best)
            print(f"step {step}: validation loss {val_loss:.4f}{', the best so far' if val_loss < best else ''}",
                  flush=True)
            log.row(step=step, pictures=step * batch_size, val_loss=val_loss, seconds=before - start)
            if val_loss < best:
                best = val_loss
                save('ckpt.pt', val_loss=best, dataset=dataset)
            if step > first_step:
                save('resume.pt', **progress())
            mark += time.perf_counter() - before  # the clock of pictures per second stands still meanwhile
        if step >= max_iters or stopping:
            break
        # 8.2 forward and backward
        loss = loss_of(*get_batch(step))
        loss.backward()
        losses.append(loss.detach())
        # 8.3 update
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        for o in optimizers:
            for group in o.param_groups:
                group['lr'] = group['initial_lr'] * rate(step)
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        stopping = len(stop) > 0
        # 8.4 report
        if step % log_interval == 0 or step == max_iters or stopping:
            values = torch.stack(losses).tolist()
            for at, value in enumerate(values, step - len(values)):
                check_finite('loss', value, at, learning_rate * rate(at), out_dir, best)
            now = time.perf_counter()
            mean, speed = sum(values) / len(values), batch_size * len(values) / max(now - mark, 1e-9)
            left = int((max_iters - step) * (now - start) / (step - first_step))
            print(f"step {step}/{max_iters} | loss {mean:.4f} | rate {rate(step - 1):.2f} | norm {grad_norm:.2f} | "
                  f"{speed:,.0f} pictures/s | {left // 60}:{left % 60:02d} left", flush=True)
            log.row(step=step, pictures=step * batch_size, train_loss=mean, rate=rate(step - 1),
                    grad_norm=grad_norm.item(), pictures_per_second=speed, seconds=now - start)
            losses, mark = [], now

    # 9. the end: what was learned
    if stopping:
        save('resume.pt', **progress())
        print(f"stopped after step {step}; go on with  python vlm.py init_from=resume out_dir={out_dir}")
    else:
        put_back()
        log.file.close()
        load_weights(model, load_checkpoint(out_dir), True)  # the best, which is what the folder keeps
        measure(model, tokenizer, where, autocast)
    put_back()  # not before: who asks a second time shall not interrupt what was saved for the first

# ------------------------------------------------------------------------------------------------------------
# 5. What was learned

def kept():
    """The splits kept from training, and what to call them."""
    return {'val': 'new scenes', 'new': 'new combinations'} if dataset == 'shapes' else {'val': 'validation'}

def some(split, n, wanted=lambda known: True, key=None):
    """The first n examples of a split that are wanted and, by their key, unlike all before: pictures, pairs, known."""
    last = 100 * n if dataset == 'shapes' else len(own(split)[0])
    found, before = [], set()
    for i in range(0, last, 500):
        for example in zip(*examples(split, range(i, min(i + 500, last)))):
            if wanted(example[2]) and (key is None or key(example[2]) not in before):
                before.add(key and key(example[2]))
                found.append(example)
        if len(found) >= n:
            break
    pictures, pairs, known = zip(*found[:n])
    return np.stack(pictures), list(pairs), list(known)

def print_table(rows):
    """[['', 'colour'], ['new scenes', 0.99]] -> columns under each other, fractions as percentages."""
    rows = [[f"{cell:.1%}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]))

@torch.no_grad()
def measure_clip(model, tokenizer, where):
    """Retrieval among 100 pictures of different things, then classification by nothing but captions; a gallery."""
    def see(pictures):
        parts = (pictures[i:i + 250] for i in range(0, len(pictures), 250))
        return torch.cat([model.see(torch.from_numpy(part).to(where)) for part in parts])

    def read(texts):
        return model.read(collate(tokenizer, [('', text) for text in texts])[0].to(where))

    # 1. which of 100 captions, and which of 100 pictures
    shapes, gallery = dataset == 'shapes', []
    rows = [['', 'recall@1', '@5', '@10', 'chance@1']]
    for split, title in kept().items():
        pictures, pairs, _ = some(split, 100, key=lambda k: frozenset(o[1:3] for o in k) if shapes else k['caption'])
        texts, n = [text for _, text in pairs], len(pairs)
        scores = see(pictures) @ read(texts).T  # (pictures, texts)
        for way, s in (('picture to caption', scores), ('caption to picture', scores.T)):
            right = s.argsort(1, descending=True) == torch.arange(n, device=where)[:, None]
            rows.append([f"{title}: {way}, of {n}"] +
                        [right[:, :k].any(1).float().mean().item() for k in (1, 5, 10)] + [1 / n])
        if not gallery:  # a picture, and beside it the five that its caption finds
            for i, found in enumerate(scores.T.topk(min(5, n)).indices[:12].tolist()):
                gallery.append(([(pictures[i], None)] + [(pictures[j], i == j) for j in found], texts[i]))
    print_table(rows)
    # 2. zero-shot: a picture is of the class whose name is nearest to it
    records = None if shapes else own('train')[2]
    label = (lambda k: 'a ' + ' '.join(k[0][1:3])) if shapes else lambda k: k.get('label', k['caption'])
    classes = ['a ' + ' '.join(kind) for kind in KINDS] if shapes else sorted({label(r) for r in records})
    if not shapes and (len(classes) > 1000 or not {label(r) for r in own('val')[2]} <= set(classes)):
        return gallery  # captions of all sorts: no classes here
    names = read(classes)  # (classes, E)
    rows = [['zero-shot', 'right', 'chance']]
    for split, title in kept().items():
        pictures, _, known = some(split, 1000, wanted=lambda k: not shapes or len(k) == 1)
        seen, truth = see(pictures), torch.tensor([classes.index(label(k)) for k in known], device=where)
        right = (seen @ names.T).argmax(1) == truth
        rows.append([f"{title}: {len(classes)} classes", right.float().mean().item(), 1 / len(classes)])
    print_table(rows)
    return gallery

def kind(question):
    """'what colour is the circle?' -> 'what colour'"""
    return ' '.join(question.split()[:2])

def judge(text, question, answer, known):
    """How right a text is, from 0 to 1 in each respect; an exact caption is one of the WAYS to word the scene."""
    if question:
        return {'all': text == answer, kind(question): text == answer}
    if dataset != 'shapes':
        return {'exact': text == answer}
    said = re.findall(f"(?:(small|big) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    there = {o[1:3]: o for o in known}
    def agree(a, b):
        return len(a & b) / max(len(a), len(b))
    right = {'exact': text in {caption(known, way) for way in range(WAYS)},
             'colour': agree({s[1] for s in said}, {c for c, _ in there}),
             'shape': agree({s[2] for s in said}, {s for _, s in there}),
             'both': agree({s[1:] for s in said}, set(there))}
    sizes = [s[1:] in there and there[s[1:]][0] == s[0] for s in said if s[0]]
    if sizes:
        right['size'] = sum(sizes) / len(sizes)
    if len(known) > 1:
        between, ends = re.search('left of|right of|above|below', text), [there.get(s[1:]) for s in said[:2]]
        right['relation'] = bool(between and len(ends) == 2 and all(ends) and between[0] in relations(*ends))
    return right

@torch.no_grad()
def measure_words(model, tokenizer, where):
    """Captions or answers to the right pictures, to other ones, and to a blank one; a gallery."""
    shapes, gallery, results, columns = dataset == 'shapes', [], [], {}
    for split, title in kept().items():
        pictures, pairs, known = some(split, 500)
        said = {}
        for name, shown in (('', pictures), ('shuffled', np.roll(pictures, 1, axis=0)), ('blank', pictures * 0 + 128)):
            said[name] = []
            for i in range(0, len(pairs), 250):
                part = torch.from_numpy(shown[i:i + 250]).to(where)
                said[name] += answers(model, tokenizer, part, [q for q, _ in pairs[i:i + 250]])
            if task == 'caption':
                path = os.path.join(out_dir, '-'.join(filter(None, ('captions', split, name))) + '.jsonl')
                with open(path, 'w', encoding='utf-8') as f:
                    for text, (_, a), k in zip(said[name], pairs, known):
                        references = [caption(k, way) for way in range(0, WAYS, 7)] if shapes else [a]
                        f.write(json.dumps({'hypothesis': text, 'references': references}, ensure_ascii=False) + '\n')
        for name, texts in said.items():
            scores = defaultdict(list)
            for text, pair, k in zip(texts, pairs, known):
                for what, value in judge(text, *pair, k).items():
                    scores[what].append(value)
            results.append((', '.join(filter(None, (title, name))), scores))
            columns.update(dict.fromkeys(scores))
        if not gallery:  # six pictures a row, green where the text is right
            right = [next(iter(judge(text, *pair, k).values())) for text, pair, k in zip(said[''], pairs, known)]
            texts = [f"{q} {text}".strip() for text, (q, _) in zip(said[''], pairs)]
            gallery = [(list(zip(pictures[i:i + 6], right[i:i + 6])), ' | '.join(texts[i:i + 6]))
                       for i in range(0, min(48, len(pairs)), 6)]
    rows = [[title] + [float(np.mean(scores[c])) if scores[c] else '' for c in columns] for title, scores in results]
    print_table([['right'] + list(columns)] + rows)
    return gallery

def chunk(kind, data):
    """Part of a PNG file: its length, kind and data, and a checksum."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def write_png(path, picture):
    """(H, W, 3) uint8 -> a picture file that anything can open: a header, the rows zipped, an end."""
    rows = b''.join(b'\0' + row.tobytes() for row in picture)  # 0: the row comes as it is, unfiltered
    header = struct.pack('>IIBBBBB', picture.shape[1], picture.shape[0], 8, 2, 0, 0, 0)  # 8 bits of each of 3 colours
    with open(path, 'wb') as f:
        f.write(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)))
        f.write(chunk(b'IEND', b''))

def show(gallery):
    """Rows of (picture, whether it is right) into out_dir/sheet.png; the texts of two rows are printed."""
    frames = {None: (128, 128, 128), True: (60, 200, 60), False: (220, 60, 60)}
    cell = len(gallery[0][0][0][0]) + 8  # a picture, a frame of 2 pixels, and 2 of black around it
    sheet = np.zeros((len(gallery) * cell, max(len(row) for row, _ in gallery) * cell, 3), np.uint8)
    for y, (row, _) in enumerate(gallery):
        for x, (picture, right) in enumerate(row):
            place = sheet[y * cell + 2:(y + 1) * cell - 2, x * cell + 2:(x + 1) * cell - 2]
            place[:] = frames[right]
            place[2:-2, 2:-2] = picture
    write_png(os.path.join(out_dir, 'sheet.png'), sheet.repeat(3, axis=0).repeat(3, axis=1))
    print(f"{len(gallery)} rows of pictures are in {out_dir}/sheet.png; the first say:")
    for _, text in gallery[:2]:
        print(text)

def measure(model, tokenizer, where, autocast):
    """Print what the task measures, and show a gallery."""
    os.makedirs(out_dir, exist_ok=True)
    model.eval()
    with autocast:
        show((measure_clip if task == 'clip' else measure_words)(model, tokenizer, where))

def look():
    """What there is to learn from: captions and questions of six pictures a row."""
    expect(globals(), 'image_size patch_size', least=1)
    if dataset == 'shapes':
        pictures, scenes, u = draw('val', range(36))
        texts = [f"{caption(scene, int(row[0] * WAYS))}. {' '.join(ask(scene, row))}" for scene, row in zip(scenes, u)]
    else:
        pictures, _, records = own('val')
        texts = ['. '.join([r['caption']] + [' '.join(pair) for pair in r.get('qa', [])[:1]]) for r in records]
    os.makedirs(out_dir, exist_ok=True)
    show([([(p, None) for p in pictures[i:i + 6]], ' | '.join(texts[i:i + 6])) for i in range(0, len(texts[:36]), 6)])

if __name__ == '__main__':
    look() if task == 'look' else train()

"""
Give it eyes: a tiny vision-language model, and the pictures that it learns from.

    python vlm.py                     # clip: which caption belongs to which picture?
    python vlm.py task=caption init_from=out-clip out_dir=out-caption   # say what a picture shows
    python vlm.py task=vqa init_from=out-caption out_dir=out-vqa        # answer questions about it
    python vlm.py init_from=resume    # go on exactly where a run stopped
    python vlm.py dataset=mine out_dir=out-mine    # your own pictures, made ready by prepare.py

A picture becomes a sequence of patches; all after that is model.py's transformer. CLIP trains a
vision tower: which caption of a batch belongs to which picture? Then a language model is shown the
tower's output, in one of three ways (fusion=), and learns to describe or to answer. No training
scene shows a combination of HELD_OUT: who knows "red" and "circle" should know a red circle.

Writes out_dir/ckpt.pt (the best weights so far), resume.pt (to go on exactly), log.csv, sheet.png
and, for task=caption, captions-*.jsonl for eval.py. init_from=resume max_iters=0 only measures.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
task = 'clip'           # clip | caption | vqa: match, describe, answer
out_dir = 'out-clip'
init_from = 'scratch'   # scratch, resume (go on with the run in out_dir), or a checkpoint's folder
dataset = 'shapes'      # shapes (drawn in training), or a folder of pictures in data_dir
data_dir = 'data'
# the model: two towers, or one and a language model that looks
patch_size = 8          # pixels: a picture of 32 * 32 is 16 patches of 8 * 8
n_layer = 2             # of each tower; the language model of caption and vqa has one more
n_head = 2
n_embd = 128
block_size = 96         # longest text, in tokens
fusion = 'intermediate' # early | intermediate | late: where the picture meets the text; see Reader
word_dropout = 0.5      # caption, vqa: hide this share of the words said so far; 0: none
# how much
batch_size = 128        # pictures in a step. clip: 128 captions to choose from
max_iters = 1000        # 1000 steps * 128 pictures = 128,000 pictures
# how fast
learning_rate = 0.005       # AdamW's peak, after 20 steps: for embeddings, patches, projections
muon_learning_rate = 0.02   # Muon's, for the matrices in the layers
grad_clip = 1.0             # clip the gradient to this norm; 0 = do not clip
# how it goes
eval_interval = 200         # steps between evaluations
eval_iters = 4              # batches in each: always the same pictures
log_interval = 20           # steps between lines
# on what
device = 'auto'             # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'auto'              # auto | float32 | bfloat16: of products; weights are float32
seed = 1337
given = configure(globals())

import colorsys, json, math, os, random, re, sys, time
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, permutations, product
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (GPT, GPTConfig, Log, Tokenizer, configure_optimizers, load_checkpoint,
                   load_examples, load_optimizers, lr_schedule, make_norm, resolve_device, rotary,
                   save_checkpoint, stop_when_asked, update)

# ---- 1. scenes: one to three shapes, and all that can be said and asked about them ----
COLOURS = {'red': 0, 'yellow': 60, 'green': 120, 'cyan': 180, 'blue': 240, 'purple': 300}  # hues
SHAPES = {  # which pixels, at (x, y) from its centre, belong to a shape of radius r
    'circle': lambda x, y, r: x * x + y * y <= r * r,
    'square': lambda x, y, r: np.maximum(abs(x), abs(y)) <= r,
    'triangle': lambda x, y, r: (y <= 0.8 * r) & (abs(x) <= 0.55 * (y + r)),
    'cross': lambda x, y, r: SHAPES['square'](x, y, r) & (np.minimum(abs(x), abs(y)) <= 0.4 * r)}
COMBINATIONS = list(product(COLOURS, SHAPES))  # 24; these four are never trained on:
HELD_OUT = {('red', 'circle'), ('green', 'square'), ('blue', 'triangle'), ('yellow', 'cross')}
TITLES = {'val': 'new scenes', 'new': 'new combinations'}  # of the splits not trained on
QUARTERS = list(product(('top', 'bottom'), ('left', 'right')))
Y, X = np.mgrid[:32, :32] + 0.5  # the centre of each pixel
Thing = namedtuple('Thing', 'size colour shape row column')  # one shape of a scene

def draw(split, number, seed):
    """A function of these three alone -> a picture (32, 32, 3) uint8, its scene (a list of Things),
    and random numbers for its words. Scenes of split 'new' show a held-out kind, others none."""
    rng = random.Random(f"{split} {number} {seed}")
    # what there is: different colours and different shapes, drawn until they fit the split
    n = rng.choices((1, 2, 3), weights=(25, 35, 40))[0]
    kinds = []
    while not kinds or (split == 'new') != bool(HELD_OUT.intersection(kinds)):
        kinds = list(zip(rng.sample(list(COLOURS), n), rng.sample(list(SHAPES), n)))
    picture = np.full((32, 32, 3), [rng.uniform(0, 60) for _ in range(3)])  # a dark background
    scene = []  # the things, each somewhere in a quarter of the picture that it has to itself
    for (colour, shape), (row, column) in zip(kinds, rng.sample(QUARTERS, n)):
        size = rng.choice(('small', 'big'))
        radius = {'small': 4.4, 'big': 6.2}[size] + rng.uniform(0, 0.8)
        room = min(8 - radius, 2.5)
        x = 8 + 16 * (column == 'right') + rng.uniform(-room, room)
        y = 8 + 16 * (row == 'bottom') + rng.uniform(-room, room)
        # note: with one fixed red, a tower took a red circle, which was new to it, for a red square
        hue = COLOURS[colour] + rng.uniform(-15, 15)
        rgb = colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(0.5, 1), rng.uniform(0.75, 1))
        picture[SHAPES[shape](X - x, Y - y, radius)] = np.multiply(rgb, 255)
        scene.append(Thing(size, colour, shape, row, column))
    # noise, from -20 to 20
    picture += np.frombuffer(rng.randbytes(3072), np.uint8).reshape(32, 32, 3) * (40 / 255) - 20
    return picture.clip(0, 255).astype(np.uint8), scene, rng

def relations(a, b):
    """Two things -> ['left of', 'above'] …; in one column, neither is left of the other."""
    found = []
    if a.column != b.column:
        found.append(f"{a.column} of")
    if a.row != b.row:
        found.append('above' if a.row == 'top' else 'below')
    return found

def name(thing, with_size=False):
    size = f"{thing.size} " if with_size else ''
    return f"a {size}{thing.colour} {thing.shape}"

def captions(scene):
    """All ways to put a scene into words, up to 48: any opening, any order, any true relation, all
    sizes or only the first one's. ['there is a small red circle left of a blue square', …]"""
    texts = []
    for things, with_sizes in product(permutations(scene), (True, False)):
        names = [name(thing, with_sizes) for thing in things]
        if len(things) == 1:
            texts += [names[0], f"{names[0]} at the {scene[0].row} {scene[0].column}"]
            continue
        third = f" and {names[2]}" if len(things) == 3 else ''
        for relation in relations(*things[:2]):
            texts.append(f"{name(things[0], True)} {relation} {names[1]}{third}")
    return [start + text for start, text in product(('', 'a picture of ', 'there is '), texts)]

def questions_about(scene):
    """For each topic, all questions about a scene: [(question, answer), …]. With a red circle and a
    blue square, "is there a red square?" is answered "no": it is not enough to see which colours
    and shapes there are. "No" is said of no held-out kind: it would be learned by name."""
    colours = [(f"what colour is the {thing.shape}?", thing.colour) for thing in scene]
    shapes = [(f"what shape is {thing.colour}?", thing.shape) for thing in scene]
    counts = []
    for size in ('', 'small ', 'big '):
        n = sum(size in ('', f"{thing.size} ") for thing in scene)
        counts.append((f"how many {size}shapes are there?", ('none', 'one', 'two', 'three')[n]))
    kinds = {(thing.colour, thing.shape) for thing in scene}
    words = set().union(*kinds)  # red, circle …
    others = [kind for kind in COMBINATIONS if kind not in kinds | HELD_OUT]
    shared = {kind: len(words.intersection(kind)) for kind in others}
    most = max(shared.values())  # both words of a kind, or one where there is one shape
    no = [(f"is there a {c} {s}?", 'no') for (c, s), n in shared.items() if n == most]
    yes = [(f"is there {name(thing)}?", 'yes') for thing in scene]
    presence = yes * len(no) + no * len(yes)  # yes and no equally often
    places = [(f"where is the {thing.shape}?", f"{thing.row} {thing.column}") for thing in scene]
    between = []  # the hardest: needs the places of both, and which of them was named first
    for a, b in permutations(scene, 2):
        for relation in relations(a, b):
            choice = 'above or below' if relation in ('above', 'below') else 'left or right of'
            between.append((f"is the {a.shape} {choice} the {b.shape}?", relation.split()[0]))
    return [topic for topic in (colours, shapes, counts, presence, places, between) if topic]

# ---- 2. examples: pictures (H, W, 3) uint8 with something to read, from scenes or files ----
Example = namedtuple('Example', 'picture texts scene')  # texts: (question or '', answer, …)

@dataclass
class Scenes:
    """A split as an endless sequence, for islice() too: scenes[i] is drawn when asked for."""
    split: str
    seed: int
    n_questions: int  # 0: a caption

    def __getitem__(self, i):
        picture, scene, rng = draw(self.split, i, self.seed)
        if self.n_questions == 0:
            return Example(picture, ('', rng.choice(captions(scene))), scene)
        topics = questions_about(scene)
        pairs = [rng.choice(rng.choice(topics)) for _ in range(self.n_questions)]
        if self.n_questions > 1 and rng.random() < 0.2:  # in training, to keep this skill
            pairs[0] = '', rng.choice(captions(scene))
        return Example(picture, sum(pairs, ()), scene)

def load_own_pictures(folder, task):
    """The files that prepare.py wrote -> {'train': [Example, …], 'val': …}, and all texts."""
    data, texts = {'train': [], 'val': []}, []
    for split, records in load_examples(folder).items():
        images = np.load(f'{folder}/{split}.npz')['images']  # (N, H, W, 3)
        for picture, record in zip(images, records):
            caption, questions = ['', record['caption']], record.get('qa', [])
            texts += sum(questions, caption)
            for pair in questions if task == 'vqa' else [caption]:  # an Example for each
                data[split].append(Example(picture, pair, ()))
        if not data[split]:
            sys.exit(f"{folder}/{split}.jsonl asks no questions (qa), which task=vqa needs")
    return data, texts

def stack(examples):
    return torch.from_numpy(np.stack([example.picture for example in examples]))  # (B, H, W, 3)

def label(example):
    """What a picture shows: 'a blue square and a red circle'; of your own pictures, the caption."""
    return ' and '.join(sorted(map(name, example.scene))) or example.texts[1]

def make_tokenizer(texts):
    """A byte-pair vocabulary in which every word of these texts is one token: the merges of " red"
    are " r", " re", " red". Any other text can be written as well, letter by letter."""
    merges = set()
    for word in set(re.findall(r'\w+', ' '.join(texts))):
        for token in (word.encode(), f" {word}".encode()):
            merges |= {token[:n] for n in range(2, len(token) + 1)}
    merges = sorted(merges, key=lambda token: (len(token), token))
    return Tokenizer('bpe', [bytes([b]) for b in range(256)] + merges)

def collate(tokenizer, texts):
    """Lists of (question, answer, …) for the model: ids (B, T), padded, and targets (B, T), which
    count in the answers alone.

        what colour is the circle? red -> <|user|> what … ? <|end|> <|assistant|>  red   <|end|>
                               targets       -100 …    -100             red     <|end|>   -100"""
    rows, targets = [], []
    for row in texts:
        roles = ('user', 'assistant') * len(row)
        messages = [{'role': role, 'content': text} for role, text in zip(roles, row)]
        ids, is_answer = map(torch.tensor, tokenizer.chat(messages))
        rows.append(ids)
        following = ids[1:].masked_fill(is_answer[1:] == 0, -100)  # the token after each
        targets.append(F.pad(following, (0, 1), value=-100))
    pad = nn.utils.rnn.pad_sequence
    return pad(rows, True, tokenizer.pad), pad(targets, True, -100)

def drop_words(idx, targets, noise, tokenizer, word_dropout):
    """Word dropout (Bowman et al. 2016, 3.1): where noise (B, T) is below word_dropout, a word that
    an answer has said so far turns into <|pad|>. Without it, a captioner learns that "red" is never
    followed by "circle", and trusts that more than the picture."""
    is_answer = F.pad(targets[:, :-1], (1, 0), value=-100) >= 0  # token t is the target at t - 1
    hidden = is_answer & (idx != tokenizer.end) & (torch.from_numpy(noise) < word_dropout)
    return idx.masked_fill(hidden, tokenizer.pad)

# ---- 3. models ----
def patches(pictures, p):
    """uint8 (B, H, W, 3) -> a row per patch of p² pixels, (B, N, 4 p²), left to right, then down.
    A pixel becomes its light, the brightest of red, green and blue, and, much smaller, how far each
    of them falls short of it. What is large is learned first, and in light alone a red circle is
    like any circle: shapes are recognised in colours that they never had."""
    B, H, W, _ = pictures.shape
    x = pictures.float() / 127.5 - 1
    light = x.amax(-1, keepdim=True)
    x = torch.cat((2 * light, (x - light) / 3), dim=-1)  # (B, H, W, 4)
    return x.view(B, H // p, p, W // p, p, 4).transpose(2, 3).reshape(B, -1, 4 * p * p)

class VisionTower(GPT):
    """A GPT that reads patches (ViT, Dosovitskiy et al. 2020): its embedding is a linear map of the
    4 p² numbers of a patch, which libraries write as a convolution of stride p."""
    def __init__(self, config, patch_size):
        super().__init__(config)
        self.patch_size = patch_size
        self.wte = nn.Linear(4 * patch_size ** 2, config.n_embd, bias=False)
        self.head = nn.Identity()

    def forward(self, pictures):
        return self.hidden(patches(pictures, self.patch_size))  # (B, N, C)

def clip_loss(images, texts, scale):
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): of all texts, which is this picture's, and
    of all pictures, which is this text's? Row b of images (B, C) belongs to row b of texts."""
    target = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 has too few digits
        logits = scale * images @ texts.T  # (B, B)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

class CLIP(nn.Module):
    """Two towers whose outputs are compared: pictures and texts as points on one sphere."""
    def __init__(self, vision_config, text_config, patch_size, pad):
        super().__init__()
        C = text_config.n_embd
        self.pad = pad
        self.vision = VisionTower(vision_config, patch_size)
        self.text = GPT(text_config)
        self.text.head.requires_grad_(False)  # no next token is predicted here
        self.image_out = nn.Linear(C, C, bias=False)
        self.text_out = nn.Linear(C, C, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # a learned temperature

    def encode_image(self, pictures):
        x = self.vision(pictures).mean(1)  # (B, C)
        return F.normalize(self.image_out(x).float(), dim=-1)

    def encode_text(self, idx):
        last = (idx != self.pad).sum(1) - 1  # <|end|>: the one token that has seen the whole text
        x = self.text.hidden(idx)[torch.arange(len(idx)), last]  # (B, C)
        return F.normalize(self.text_out(x).float(), dim=-1)

    def forward(self, pictures, idx, targets):
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # at most 100 (section 2.5)
        return clip_loss(self.encode_image(pictures), self.encode_text(idx), scale)

class CrossAttention(nn.Module):
    """Queries from the text, keys and values from the picture (Vaswani et al. 2017, 3.2.3)."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.norm = make_norm(config)
        self.q = nn.Linear(C, C, bias=False)
        self.kv = nn.Linear(C, 2 * C, bias=False)
        self.proj = nn.Linear(C, C, bias=False)
        nn.init.zeros_(self.proj.weight)  # begins as "change nothing", like a block

    def forward(self, x, image):
        B, T, C = x.shape
        n_head, D = self.config.n_head, self.config.head_dim
        q = self.q(self.norm(x)).view(B, T, n_head, D)
        k, v = self.kv(image).view(B, -1, 2 * n_head, D).split(n_head, dim=2)  # (B, N, n_head, D)
        q, k = F.rms_norm(q, (D,)), F.rms_norm(k, (D,))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, n_head, …, D)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, n_head, T, D)
        return x + self.proj(y.transpose(1, 2).reshape(B, T, C))

class Reader(nn.Module):
    """A language model that sees a picture's tokens (B, N, C). early: they stand in front of the
    text, like words (LLaVA, Liu et al. 2023); intermediate: after every block the text looks at
    them (Flamingo, Alayrac et al. 2022); late: their mean is added at the very end."""
    def __init__(self, vision_config, text_config, patch_size, fusion):
        super().__init__()
        N, C = vision_config.block_size, text_config.n_embd
        self.fusion = fusion
        self.vision = VisionTower(vision_config, patch_size)
        self.text = GPT(text_config)
        self.project = nn.Linear(C, C, bias=False)  # from the tower's channels to the text's
        self.patch_position = nn.Parameter(0.5 * torch.randn(N, C))  # CLIP may lose positions
        n_cross = text_config.n_layer if fusion == 'intermediate' else 0
        self.cross_blocks = nn.ModuleList(CrossAttention(text_config) for _ in range(n_cross))

    def hidden(self, idx, image):
        """ids (B, T) and the picture's tokens (B, N, C) -> (B, T, C)"""
        x = self.text.wte(idx)
        image = self.project(image) + self.patch_position
        if self.fusion == 'early':
            x = torch.cat((image.to(x.dtype), x), dim=1)  # (B, N + T, C)
        cos_sin = rotary(torch.arange(x.size(1), device=x.device), self.text.config)
        for i, block in enumerate(self.text.blocks):
            x = block(x, cos_sin)
            if self.fusion == 'intermediate':
                x = self.cross_blocks[i](x, image)
        if self.fusion == 'late':
            x = x + image.mean(1, keepdim=True)
        return self.text.norm(x)[:, -idx.size(1):]

    def forward(self, pictures, idx, targets):
        """Cross-entropy per token of the answers: its mean over each row, then over the rows."""
        x = self.hidden(idx, self.vision(pictures))
        logits = self.text.logits(x).float().transpose(1, 2)  # (B, V, T)
        token_losses = F.cross_entropy(logits, targets, reduction='none')  # (B, T), 0 at -100
        return (token_losses.sum(1) / (targets >= 0).sum(1)).mean()

    @torch.no_grad()
    def answer(self, pictures, questions, tokenizer, max_length):
        """The likeliest answer to each question about its picture: B short texts, so no cache."""
        rows = [tokenizer.chat([dict(role='user', content=q)], answer=True)[0] for q in questions]
        starts = [len(row) for row in rows]
        image = self.vision(pictures)
        while max(map(len, rows)) < max_length and any(row[-1] != tokenizer.end for row in rows):
            # padding on the right does no harm: no token sees what comes after it
            idx = nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)
            last = [len(row) - 1 for row in rows]
            x = self.hidden(idx.to(pictures.device), image)[range(len(rows)), last]  # (B, C)
            for row, token in zip(rows, self.text.logits(x).argmax(-1).tolist()):
                if row[-1] != tokenizer.end:
                    row.append(token)
        return [tokenizer.decode(row[n:]).removesuffix('<|end|>') for row, n in zip(rows, starts)]

# ---- 4. measures of {'val': its examples, …}; a gallery is a list of (picture, right, text) ----
@torch.no_grad()
def measure_clip(model, tokenizer, splits, names, device):
    """Retrieval among 100 pictures of different things; and zero-shot: which class name is
    nearest to a picture of one thing? The gallery: the last split's captions."""
    def similarity(examples, texts):  # (pictures, texts)
        idx, _ = collate(tokenizer, [('', text) for text in texts])
        images = model.encode_image(stack(examples).to(device))
        return images @ model.encode_text(idx.to(device)).T

    print(f"{'':46}recall@1      @5     @10  chance")
    for split, stream in splits.items():
        examples = list({label(e): e for e in islice(stream, 1000)}.values())[:100]
        n = len(examples)
        texts = [e.texts[1] for e in examples]
        s = similarity(examples, texts)
        for what, sims in (('picture to caption', s), ('caption to picture', s.T)):
            is_own = sims.argsort(1, descending=True) == torch.arange(n, device=device)[:, None]
            recall = ''.join(f"{is_own[:, :k].any(1).float().mean():8.1%}" for k in (1, 5, 10))
            print(f"{f'{TITLES[split]}: {what}, of {n}':46}{recall}{1 / n:8.1%}")
        nearest = s.argmax(1).tolist()
        gallery = [(e.picture, e.texts[1] == texts[i], texts[i]) for e, i in zip(examples, nearest)]
        examples = list(islice((e for e in stream if label(e) in names), 1000))
        if examples:  # else your own captions are no classes
            nearest = similarity(examples, names).argmax(1).tolist()
            hits = np.mean([label(e) == names[i] for e, i in zip(examples, nearest)])
            print(f"{f'{TITLES[split]}: {len(names)} classes':46}{hits:8.1%}{1 / len(names):24.1%}")
    return gallery

def judge(text, example):
    """In which respects a text is right: an answer in 'all' and for its kind of question; a caption
    in 'exact' (one of all true ones), the sets of 'colour', 'shape', 'both', and 'relation'."""
    question, answer = example.texts
    if question:
        return {'all': text == answer, ' '.join(question.split()[:2]): text == answer}
    if not example.scene:
        return {'exact': text == answer}
    said = {kind for kind in COMBINATIONS if ' '.join(kind) in text}  # ('red', 'circle') …
    there = {(thing.colour, thing.shape) for thing in example.scene}
    right = {'exact': text in captions(example.scene),
             'colour': {colour for colour, _ in said} == {colour for colour, _ in there},
             'shape': {shape for _, shape in said} == {shape for _, shape in there},
             'both': said == there}
    if len(there) > 1:  # without sizes: does it hold the first relation of any true caption?
        plain, *true = [re.sub('small |big ', '', t) for t in (text, *captions(example.scene))]
        right['relation'] = any(caption.split(' and ')[0] in plain for caption in true)
    return right

def measure_words(model, tokenizer, splits, out_dir, device, max_length):
    """How right captions or answers are with the right pictures, with shuffled and with blank ones:
    a model that ignores its picture is as right in all three. Captions go into files, too."""
    columns = []
    for split, stream in splits.items():
        examples = list(islice(stream, 500))
        questions = [e.texts[0] for e in examples]
        pictures = stack(examples).to(device)
        conditions = {'': pictures, '-shuffled': pictures.roll(1, dims=0),
                      '-blank': torch.full_like(pictures, 128)}
        for condition, shown in conditions.items():
            said = model.answer(shown, questions, tokenizer, max_length)
            judged = list(map(judge, said, examples))
            if not columns:
                columns = list(dict.fromkeys(chain(*judged)))  # in the order of their appearance
                print(f"{'right':26}" + ''.join(f"{column:>13}" for column in columns))
            line = f"{TITLES[split] + condition.replace('-', ', '):26}"
            for column in columns:
                line += f"{np.mean([right[column] for right in judged if column in right]):13.1%}"
            print(line)
            if not condition:
                gallery = [(e.picture, right[columns[0]], f"{e.texts[0]} {text}".strip())
                           for e, right, text in zip(examples, judged, said)]
            if not questions[0]:
                with open(f"{out_dir}/captions-{split}{condition}.jsonl", 'w') as f:
                    for text, e in zip(said, examples):
                        references = captions(e.scene)[::7] if e.scene else e.texts[1:]  # 1 to 7
                        f.write(json.dumps({'hypothesis': text, 'references': references}) + '\n')
    return gallery

def show(gallery, out_dir):
    """Print the first six texts. Where matplotlib is installed, draw 36 pictures into
    out_dir/sheet.png, six in a row, framed green where the text is right and red where wrong."""
    print('\n'.join(f"  {text}" for _, _, text in gallery[:6]))
    H, W, _ = gallery[0][0].shape
    sheet = np.zeros((6, H + 4, 6, W + 4, 3), np.uint8)
    for i, (picture, right, _) in enumerate(gallery[:36]):
        sheet[i // 6, :, i % 6] = (60, 200, 60) if right else (220, 60, 60)
        sheet[i // 6, 2:-2, i % 6, 2:-2] = picture
    sheet = sheet.reshape(6 * (H + 4), 6 * (W + 4), 3).repeat(3, axis=0).repeat(3, axis=1)
    with suppress(ImportError):
        from matplotlib.image import imsave
        imsave(f"{out_dir}/sheet.png", sheet)

if __name__ == '__main__':
    # 2. settings (1. is for train.py alone): of the run that is resumed, or the checkpoint's shape
    resuming = init_from == 'resume'
    source = os.path.join(out_dir, 'resume.pt') if resuming else init_from
    saved = load_checkpoint(source) if init_from != 'scratch' else None
    if saved:
        if saved.get('script') != 'vlm.py':
            usage(f"{source} was not written by vlm.py: start from scratch, or from a run of it")
        if resuming:
            resume(globals(), given, saved['settings'], 'dataset task')
        # task=caption takes only the vision tower from clip; task=vqa takes all from a captioner
        same_model = (saved['settings']['task'] == 'clip') == (task == 'clip')
        fixed = 'patch_size n_layer n_head n_embd' + (' fusion' if same_model else '')
        resume(globals(), given, {key: saved['settings'][key] for key in fixed.split()}, fixed)
    expect(globals(), 'patch_size n_layer n_head n_embd block_size batch_size eval_interval '
                      'eval_iters log_interval', least=1)
    expect(globals(), 'max_iters learning_rate muon_learning_rate grad_clip seed', least=0)
    settings = current(globals())  # as they go into checkpoints: device is still 'auto'

    # 3. the device
    device, dtype = resolve_device(device, dtype)
    if dtype == 'float16':
        dtype = 'float32'  # float16 would need train.py's GradScaler
    autocast = torch.autocast(device.split(':')[0], getattr(torch, dtype), dtype != 'float32')

    # 4. the data. The vocabulary is made of the texts of all tasks: the next run takes it over
    if dataset == 'shapes':
        n = int(task == 'vqa')  # a question about each scene to measure with, five in training
        data = {'train': Scenes('train', seed, 5 * n), 'val': Scenes('val', 0, n),
                'new': Scenes('new', 0, n)}
        classes = [f"a {colour} {shape}" for colour, shape in COMBINATIONS]
        scenes = [draw('train', i, seed)[1] for i in range(100)]
        texts = [str(captions(scene) + questions_about(scene)) for scene in scenes]  # all words
    else:
        data, texts = load_own_pictures(os.path.join(data_dir, dataset), task)
        classes = sorted({label(example) for example in data['train']})
    tokenizer = Tokenizer(**saved['tokenizer']) if saved else make_tokenizer(texts)

    def get_batch(step):
        """The examples of this step: a function of (seed, step) alone."""
        numbers = range(step * batch_size, (step + 1) * batch_size)
        if dataset != 'shapes':
            numbers = np.random.default_rng([seed, step]).permutation(len(data['train']))
        return [data['train'][i] for i in numbers[:batch_size]]

    # 5. the model: new, or with the weights of a checkpoint
    torch.manual_seed(seed)
    H, W, _ = data['val'][0].picture.shape
    if H % patch_size or W % patch_size or n_embd % (2 * n_head):
        usage(f"{patch_size=} must divide {H} x {W} pixels; 2 * {n_head=} must divide {n_embd=}")
    n_patches = (H // patch_size) * (W // patch_size)
    text_config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=n_patches + block_size,
                            n_layer=n_layer + (task != 'clip'), n_head=n_head, n_embd=n_embd)
    vision_config = replace(text_config, vocab_size=1, block_size=n_patches, n_layer=n_layer,
                            position='learned', causal=False)
    if task == 'clip':
        model = CLIP(vision_config, text_config, patch_size, tokenizer.pad)
    else:
        model = Reader(vision_config, text_config, patch_size, fusion)
    if saved:
        if len(saved['model']['vision.wpe.weight']) != n_patches:
            usage(f"{source} was not trained on {H} x {W} pixels: start from scratch")
        weights = {key: w for key, w in saved['model'].items() if same_model or 'vision.' in key}
        model.load_state_dict(weights, strict=same_model)
    model.to(device)

    # 6. the optimizers
    optimizers = configure_optimizers(model, 'muon', learning_rate, muon_learning_rate)
    step, best, resumed_at = 0, math.inf, None
    if resuming:
        load_optimizers(optimizers, saved['optimizers'])
        step = resumed_at = saved['step']
        best = saved['best']

    # 7. what this will cost, and where it goes
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, on {device}, {dtype}")
    log = Log(out_dir, step, max_iters, log_interval, batch_size, unit='pictures', best=best)

    def save(name, **more):
        save_checkpoint(os.path.join(out_dir, name), model.state_dict(), text_config, tokenizer,
                        script='vlm.py', step=step, settings=settings, **more)

    def loss_of(examples, rng=None):
        """The loss of these examples. In training, rng hides the colours of some, or some words."""
        pictures = stack(examples)
        idx, targets = collate(tokenizer, [example.texts for example in examples])
        if idx.size(1) > block_size:
            sys.exit(f"a text has {idx.size(1)} tokens: give block_size={idx.size(1)}")
        noise = rng.random(idx.shape) if rng else np.ones(idx.shape)  # 1: nothing is hidden
        if task == 'clip':  # a fifth turns grey: who knows a circle knows it in any colour
            grey = noise[:, 0] < 0.2
            pictures[grey] = pictures[grey].amax(-1, keepdim=True)
        else:
            idx = drop_words(idx, targets, noise, tokenizer, word_dropout)
        with autocast:
            return model(pictures.to(device), idx.to(device), targets.to(device))

    @torch.no_grad()
    def evaluate():
        """Mean loss over batches of pictures that are not trained on."""
        examples = list(islice(data['val'], eval_iters * batch_size))
        losses = [loss_of(examples[i:i + batch_size]) for i in range(0, len(examples), batch_size)]
        return torch.stack(losses).mean().item()

    # 8. the loop
    asked = stop_when_asked()  # no longer empty after Ctrl-C or kill
    stop = False
    while True:
        # 8.1 evaluate, save; at resumed_at, the saved run has evaluated already
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss = evaluate()
            if log.evaluation(step, val_loss):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset)
        if step not in (0, resumed_at) and (step % eval_interval == 0 or step == max_iters or stop):
            save('resume.pt', optimizers=[o.state_dict() for o in optimizers], best=log.best)
        if step >= max_iters or stop:
            break
        log.clock = time.perf_counter()  # the step begins here
        # 8.2 forward and backward
        loss = loss_of(get_batch(step), np.random.default_rng([seed, step, 1]))
        loss.backward()
        # 8.3 update
        lr_fraction = lr_schedule(step, 'linear', 20, max_iters)
        grad_norm = update(model, optimizers, lr_fraction, grad_clip)
        step += 1
        stop = len(asked) > 0
        # 8.4 report
        log.training(step, loss.detach(), grad_norm, learning_rate * lr_fraction, last=stop)

    # 9. the end: what was learned, by the best weights
    log.close()  # from here on, Ctrl-C ends at once
    if step < max_iters:
        print(f"stopped at step {step}; next:  python vlm.py init_from=resume out_dir={out_dir}")
    else:
        model.load_state_dict(load_checkpoint(out_dir)['model'])
        splits = {split: data[split] for split in data if split != 'train'}
        with autocast:
            if task == 'clip':
                gallery = measure_clip(model, tokenizer, splits, classes, device)
            else:
                gallery = measure_words(model, tokenizer, splits, out_dir, device, block_size)
        show(gallery, out_dir)

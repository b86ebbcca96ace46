"""
Give it eyes: a tiny vision-language model, and the pictures that it learns from.

    python vlm.py                     # clip: which caption belongs to which picture?
    python vlm.py task=caption init_from=out-clip out_dir=out-caption   # say what a picture shows
    python vlm.py task=vqa init_from=out-caption out_dir=out-vqa        # answer questions about it
    python vlm.py init_from=resume    # go on exactly where a run stopped
    python vlm.py dataset=mine out_dir=out-mine    # your own pictures, made ready by prepare.py

A picture becomes a sequence of patches, and everything after that is model.py's transformer. CLIP
trains a vision tower by asking which of a batch's captions belongs to which of its pictures. Then a
language model is shown the tower's output, in one of three ways (fusion=), and learns to describe
the picture or to answer. It is measured with the right pictures, with shuffled and with blank ones.
The script draws its pictures itself. Some combinations of colour and shape, HELD_OUT, appear in no
training scene: a model that knows "red" and "circle" should know a red circle when it sees one.

Writes out_dir/ckpt.pt (the best weights so far), out_dir/resume.pt (what is needed to go on
exactly), log.csv, sheet.png and, for task=caption, captions-*.jsonl, which eval.py scores.
max_iters=0 only measures.
"""
from configurator import configure, current, expect, resume, usage

# what, and where to
task = 'clip'           # clip | caption | vqa: match, describe, answer
out_dir = 'out-clip'
init_from = 'scratch'   # scratch, resume (go on with the run in out_dir), or a checkpoint's folder
dataset = 'shapes'      # shapes (drawn in training), or a folder of pictures in data_dir
data_dir = 'data'
# the model: two towers, or one and a language model that looks
image_size = 32         # pixels; pictures of your own must have this size
patch_size = 8          # 32 * 32 pixels in patches of 8 * 8 are 16 tokens of 256 numbers
n_layer = 2             # of each tower
text_layers = 3         # of the language model (caption, vqa)
n_head = 2
n_embd = 128
block_size = 96         # longest text, in tokens
fusion = 'intermediate' # early | intermediate | late: where the picture meets the text; see Reader
freeze = False          # caption, vqa: do not train the vision tower
word_dropout = 0.3      # caption, vqa: hide this share of the words said so far; 0: none
questions = 5           # vqa: asked about each scene in training
# how much
batch_size = 128        # pictures in a step. clip: 128 captions to choose from
max_iters = 1000        # 1000 steps * 128 pictures = 128,000 pictures
# how fast
learning_rate = 0.005       # AdamW's peak rate: for embeddings, patches, projections
muon_learning_rate = 0.02   # Muon's, for the matrices in the layers
warmup_iters = 20           # steps in which it rises; then it falls to 0 in a line
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

import colorsys, json, math, os, random, re, struct, sys, zipfile, zlib
from collections import namedtuple
from contextlib import nullcontext
from itertools import chain, cycle, islice, permutations, product
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from model import (GPT, GPTConfig, Log, Tokenizer, configure_optimizers, load_checkpoint,
                   load_optimizers, lr_schedule, make_norm, resolve_device, rotary, save_checkpoint,
                   stop_at_once, stop_when_asked, update)

# --------------------------------------------------------------------------------------------------
# 1. Scenes: one to three shapes, and all that can be said and asked about them

COLOURS = {'red': 0, 'yellow': 60, 'green': 120, 'cyan': 180, 'blue': 240, 'purple': 300}  # hues
SHAPES = ('circle', 'square', 'triangle', 'cross')
KINDS = list(product(COLOURS, SHAPES))  # 24 combinations; these four are never trained on:
HELD_OUT = {('red', 'circle'), ('green', 'square'), ('blue', 'triangle'), ('yellow', 'cross')}
TITLES = {'val': 'new scenes', 'new': 'new combinations'}  # of the splits not trained on
OPENINGS = ('', 'a picture of ', 'there is ')
Y, X = np.mgrid[:32, :32] + 0.5  # the centre of each pixel

# one shape of a scene: size is 'small' or 'big', (x, y) its centre in pixels
Thing = namedtuple('Thing', 'size colour shape x y')

def inside(shape, x, y, r):
    """Which pixels, at (x, y) from its centre, belong to a shape of radius r."""
    if shape == 'circle':
        return x * x + y * y <= r * r
    x = abs(x)
    if shape == 'triangle':
        return (y <= 0.8 * r) & (x <= 0.55 * (y + r))
    y = abs(y)
    if shape == 'square':
        return np.maximum(x, y) <= r
    return (np.minimum(x, y) <= 0.32 * r) & (np.maximum(x, y) <= r)

def draw(split, number, seed):
    """A scene, which is a function of (split, number, seed) alone: a picture (32, 32, 3) uint8, the
    list of its Things, and the generator of random numbers that its words are drawn from. split:
    'train'; 'val', other scenes of the 20 kinds; 'new', scenes that show at least one of the 4."""
    rng = random.Random(f"{split} {number} {seed}")
    # 1. what there is: different colours and different shapes, drawn until they fit the split
    n, = rng.choices((1, 2, 3), weights=(25, 35, 40))
    kinds = []
    while not kinds or HELD_OUT.isdisjoint(kinds) == (split == 'new'):
        kinds = list(zip(rng.sample(list(COLOURS), n), rng.sample(SHAPES, n)))
    # 2. a dark background, of any tint
    picture = np.full((32, 32, 3), [rng.uniform(0, 60) for _ in range(3)])
    # 3. the things, each somewhere in a quarter of the picture that it has to itself
    scene = []
    for (colour, shape), quarter in zip(kinds, rng.sample(range(4), n)):
        size = rng.choice(('small', 'big'))
        radius = {'small': 4.4, 'big': 6.2}[size] + rng.uniform(0, 0.8)
        room = min(8 - radius, 2.5)
        x = 8 + 16 * (quarter % 2) + rng.uniform(-room, room)
        y = 8 + 16 * (quarter // 2) + rng.uniform(-room, room)
        # any red. note: with one fixed red, a tower learned how each shape looks in that red, and
        # took a red circle, which it had never seen, for a red square
        hue = COLOURS[colour] + rng.uniform(-24, 24)
        rgb = colorsys.hsv_to_rgb(hue / 360 % 1, rng.uniform(0.5, 1), rng.uniform(0.75, 1))
        picture[inside(shape, X - x, Y - y, radius)] = np.multiply(rgb, 255)
        scene.append(Thing(size, colour, shape, x, y))
    # 4. noise, from -20 to 20
    noise = np.frombuffer(rng.randbytes(picture.size), np.uint8).reshape(picture.shape)
    picture += noise * (40 / 255) - 20
    return picture.clip(0, 255).astype(np.uint8), scene, rng

def relations(a, b):
    """Two things -> ['left of', 'above'] …; in one column, neither is left of the other."""
    found = []
    if abs(a.x - b.x) > 8:
        found.append('left of' if a.x < b.x else 'right of')
    if abs(a.y - b.y) > 8:
        found.append('above' if a.y < b.y else 'below')
    return found

def place(thing):
    row = 'top' if thing.y < 16 else 'bottom'
    return row + (' left' if thing.x < 16 else ' right')

def name(thing, with_size=False):
    size = f"{thing.size} " if with_size else ''
    return f"a {size}{thing.colour} {thing.shape}"

def captions(scene):
    """All ways to put a scene into words, up to 72: with any opening, in any order, with all sizes
    or only the first one's, with any relation that is true. ['a small red circle left of a blue
    square', 'there is a big blue square right of a small red circle', …]"""
    texts = []
    for things, with_sizes in product(permutations(scene), (True, False)):
        names = [name(thing, with_sizes) for thing in things]
        if len(things) == 1:
            texts += [names[0], f"{names[0]} at the {place(things[0])}"]
            continue
        names[0] = name(things[0], True)
        third = f" and {names[2]}" if len(things) == 3 else ''
        for relation in relations(*things[:2]):
            texts.append(f"{names[0]} {relation} {names[1]}{third}")
    return [opening + text for opening, text in product(OPENINGS, texts)]

def questions_about(scene):
    """All questions about a scene: for each topic, a list of (question, answer). "No" comes from
    colours and shapes that are there, but in other company: a model that sees only "red, blue,
    circle, square" cannot tell. It names no held-out kind, or "no" could be learned by name."""
    colours = [(f"what colour is the {thing.shape}?", thing.colour) for thing in scene]
    shapes = [(f"what shape is {thing.colour}?", thing.shape) for thing in scene]
    # note: a relation takes two things, where the shapes are and who was named first. Neither helps
    # without the other: without these questions, answers about relations stayed guesses
    places = [(f"where is the {thing.shape}?", place(thing)) for thing in scene]
    between = []
    for a, b in permutations(scene, 2):
        for relation in relations(a, b):
            choice = 'above or below' if relation in ('above', 'below') else 'left or right of'
            between.append((f"is the {a.shape} {choice} the {b.shape}?", relation.split()[0]))
    counts = []
    for size in ('', 'small ', 'big '):
        n = sum(size in ('', f"{thing.size} ") for thing in scene)
        counts.append((f"how many {size}shapes are there?", ('none', 'one', 'two', 'three')[n]))
    kinds = {(thing.colour, thing.shape) for thing in scene}
    there = set().union(*kinds)  # red, circle …
    absent = [kind for kind in KINDS if kind not in kinds | HELD_OUT]
    most = max(len(there.intersection(kind)) for kind in absent)  # 2, or 1 where there is one shape
    yes = [(f"is there {name(thing)}?", 'yes') for thing in scene]
    no = [(f"is there a {' '.join(kind)}?", 'no') for kind in absent
          if len(there.intersection(kind)) == most]
    presence = yes * len(no) + no * len(yes)  # yes and no equally often
    return [topic for topic in (colours, shapes, counts, presence, places, between) if topic]

# --------------------------------------------------------------------------------------------------
# 2. Examples: pictures with something to read, from scenes or from files

# picture: (S, S, 3) uint8; texts: (question, answer, question, answer, …), where the question ''
# means "what is there?": captioning is answering, too; scene: its Things, () for your own pictures
Example = namedtuple('Example', 'picture texts scene')

class Scenes:
    """A split as a sequence without an end: scenes[i] is drawn when it is asked for."""
    def __init__(self, split, seed, n_questions=0):
        self.split = split
        self.seed = seed
        self.n_questions = n_questions  # 0: a caption

    def __getitem__(self, i):
        picture, scene, rng = draw(self.split, i, self.seed)
        if self.n_questions == 0:
            return Example(picture, ('', rng.choice(captions(scene))), scene)
        topics = questions_about(scene)
        pairs = [rng.choice(rng.choice(topics)) for _ in range(self.n_questions)]
        return Example(picture, sum(pairs, ()), scene)

def load_own_pictures(path, image_size, task):
    """Your own pictures, as prepare.py wrote and checked them: path.npz holds `images` (N, S, S, 3)
    uint8, path.jsonl a line {"caption": …, "qa": [[question, answer], …]} for each. -> a list of
    Examples (for task=vqa one for each question), and all texts."""
    if not os.path.exists(f'{path}.npz'):
        sys.exit(f"no {path}.npz: make it with  python prepare.py dataset=… input=pictures.npz")
    with open(f'{path}.jsonl', encoding='utf-8') as f:
        records = [json.loads(line) for line in f]
    # the header comes before anything is unpacked: a small file can hold gigabytes of zeros
    with zipfile.ZipFile(f'{path}.npz') as archive, archive.open('images.npy') as f:
        np.lib.format.read_magic(f)
        shape, _, dtype = np.lib.format.read_array_header_1_0(f)
    expected = (len(records), image_size, image_size, 3)
    if shape != expected or dtype != np.uint8:
        sys.exit(f"{path}.npz holds {dtype} {shape}, and uint8 {expected} is expected: give the "
                 "size of your pictures as image_size=")
    examples, texts = [], []
    for picture, record in zip(np.load(f'{path}.npz')['images'], records):
        pairs = record.get('qa', []) if task == 'vqa' else [['', record['caption']]]
        examples += [Example(picture, pair, ()) for pair in pairs]
        texts += [record['caption'], *sum(record.get('qa', []), [])]
    return examples, texts

def label(example):
    """What a picture is of: its caption, or for a scene 'a blue square and a red circle'."""
    if not example.scene:
        return example.texts[1]
    return ' and '.join(sorted(name(thing) for thing in example.scene))

def make_tokenizer(texts):
    """A byte-pair vocabulary in which every word of these texts is one token: the merges of " red"
    are " r", " re", " red". Any other text can be written as well, letter by letter."""
    merges = set()
    for word in set(re.findall(r'\w+', ' '.join(texts))):
        for token in (word.encode(), f" {word}".encode()):
            merges |= {token[:n] for n in range(2, len(token) + 1)}
    merges = sorted(merges, key=lambda token: (len(token), token))
    return Tokenizer('bpe', [bytes([b]) for b in range(256)] + merges)

def collate(tokenizer, texts, max_length=math.inf):
    """Lists of (question, answer, …) for the model: ids (B, T), padded, and targets (B, T), which
    count in the answers alone. Exits with one line where a row is longer than max_length.

        what colour is the circle? red -> <|user|> what … ? <|end|> <|assistant|>  red   <|end|>
                               targets       -100 …    -100             red     <|end|>   -100"""
    rows, targets = [], []
    for row in texts:
        roles = cycle(('user', 'assistant'))
        messages = [{'role': role, 'content': text} for role, text in zip(roles, row)]
        ids, is_answer = map(torch.tensor, tokenizer.chat(messages))
        rows.append(ids)
        targets.append(F.pad(ids[1:].masked_fill(is_answer[1:] == 0, -100), (0, 1), value=-100))
    pad = nn.utils.rnn.pad_sequence
    idx, targets = pad(rows, True, tokenizer.pad), pad(targets, True, -100)
    if idx.size(1) > max_length:
        sys.exit(f"a text has {idx.size(1)} tokens: give block_size={idx.size(1)}")
    return idx, targets

def mask_tokens(idx, targets, noise, tokenizer, word_dropout):
    """Word dropout (Bowman et al. 2016, 3.1): a share of the words that the answers idx (B, T) have
    said so far turns into <|pad|>; noise (B, T), uniform in [0, 1), decides. Otherwise a captioner
    learns that "red" is never followed by "circle", and trusts that more than the picture (README:
    74 % -> 90 % of new combinations are described without a fault)."""
    is_answer = F.pad(targets[:, :-1], (1, 0), value=-100) >= 0  # was a target one position before
    hidden = is_answer & (idx != tokenizer.end) & (noise < word_dropout)
    return idx.masked_fill(hidden, tokenizer.pad)

# --------------------------------------------------------------------------------------------------
# 3. Models

def vision_tower(config, patch_size):
    """A GPT that reads patches (ViT, Dosovitskiy et al. 2020): in place of the table of word
    embeddings stands one linear map from a patch's 4 p² numbers to C channels. Libraries write this
    map as a convolution of kernel p and stride p."""
    tower = GPT(config)
    tower.wte = nn.Linear(4 * patch_size ** 2, config.n_embd, bias=False)
    tower.head = nn.Identity()
    return tower

def patches(pictures, p):
    """uint8 (B, S, S, 3) -> a row per patch of p² pixels, (B, N, 4 p²), left to right, then down.
    A pixel becomes its light, the brightest of red, green and blue, and, much smaller, how far each
    of them falls short of it. No information is lost, but what is large is learned first. In light
    alone a red circle is like any circle, so shapes are recognised in colours that they never had.
    (After 500 batches: light as the mean, where red is darker than yellow, 87 % of them named; as
    it is here, 91 %.)"""
    B, S, _, _ = pictures.shape
    x = pictures.float() / 127.5 - 1
    light = x.amax(-1, keepdim=True)
    x = torch.cat((2 * light, (x - light) / 4), dim=-1)  # (B, S, S, 4)
    return x.view(B, S // p, p, S // p, p, 4).transpose(2, 3).reshape(B, -1, 4 * p * p)

def clip_loss(images, texts, scale):
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): of all texts, which is this picture's, and
    of all pictures, which is this text's? images and texts (B, E) of length 1; row b of one belongs
    to row b of the other."""
    target = torch.arange(len(images), device=images.device)
    # logits up to 100 need more digits than bfloat16's 3
    with torch.autocast(images.device.type, enabled=False):
        which_text = scale * images @ texts.T  # (B, B)
        which_image = scale * texts @ images.T
        return (F.cross_entropy(which_text, target) + F.cross_entropy(which_image, target)) / 2

class CLIP(nn.Module):
    """Two towers whose outputs are compared: pictures and texts as points on one sphere."""
    def __init__(self, vision_config, text_config, patch_size, pad):
        super().__init__()
        C = text_config.n_embd
        self.patch_size = patch_size
        self.pad = pad
        self.vision = vision_tower(vision_config, patch_size)
        self.text = GPT(text_config)
        self.text.head.requires_grad_(False)  # this one only reads
        self.image_out = nn.Linear(C, C, bias=False)
        self.text_out = nn.Linear(C, C, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # a learned temperature

    def encode_image(self, pictures):
        x = self.vision.hidden(patches(pictures, self.patch_size)).mean(1)  # (B, C)
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
        H, D = self.config.n_head, self.config.head_dim
        q = self.q(self.norm(x)).view(B, T, H, D)
        k, v = self.kv(image).view(B, -1, 2 * H, D).split(H, dim=2)  # (B, N, H, D)
        q, k = F.rms_norm(q, (D,)), F.rms_norm(k, (D,))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, …, D)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, T, D)
        return x + self.proj(y.transpose(1, 2).reshape(B, T, C))

class Reader(nn.Module):
    """A language model that sees, by one of three fusions of the picture's tokens (B, N, C) with
    the text's. early: they stand in front of the text, like words (LLaVA, Liu et al. 2023);
    intermediate: after every block the text looks at them (Flamingo, Alayrac et al. 2022); late:
    their mean is added at the very end."""
    def __init__(self, vision_config, text_config, patch_size, fusion):
        super().__init__()
        N, C = vision_config.block_size, text_config.n_embd
        self.patch_size = patch_size
        self.fusion = fusion
        self.vision = vision_tower(vision_config, patch_size)
        self.text = GPT(text_config)
        self.project = nn.Linear(C, C, bias=False)  # from the tower's channels to the text's
        # where each patch stands: CLIP, which compares whole pictures, has no need to keep it
        self.patch_position = nn.Parameter(0.5 * torch.randn(N, C))
        self.cross_blocks = nn.ModuleList()
        if fusion == 'intermediate':
            self.cross_blocks.extend(CrossAttention(text_config) for _ in self.text.blocks)

    def encode_image(self, pictures):
        return self.vision.hidden(patches(pictures, self.patch_size))  # (B, N, C)

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
        x = self.hidden(idx, self.encode_image(pictures))
        logits = self.text.logits(x).float().transpose(1, 2)  # (B, V, T)
        token_losses = F.cross_entropy(logits, targets, reduction='none')  # (B, T), 0 at -100
        return (token_losses.sum(1) / (targets >= 0).sum(1)).mean()

@torch.no_grad()
def answers(model, tokenizer, pictures, questions, max_length):
    """What a Reader says about each picture (B, S, S, 3), always the likeliest token: B strings. It
    reads all of the text again for each token: the text is short, and this needs no cache."""
    rows = [tokenizer.chat([{'role': 'user', 'content': question}], answer=True)[0]
            for question in questions]
    texts = [[] for _ in rows]
    image = model.encode_image(pictures)
    ended = [False] * len(rows)
    while not all(ended) and max(map(len, rows)) < max_length:
        # padding on the right does no harm: no token sees what comes after it
        idx = nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)
        last = torch.tensor([len(row) - 1 for row in rows])
        x = model.hidden(idx.to(pictures.device), image)[torch.arange(len(rows)), last]
        for b, token in enumerate(model.text.logits(x).argmax(-1).tolist()):
            ended[b] = ended[b] or token == tokenizer.end
            if not ended[b]:
                rows[b].append(token)
                texts[b].append(token)
    return [tokenizer.decode(text) for text in texts]

# --------------------------------------------------------------------------------------------------
# 4. Measures. splits: {'val': its examples, …}. Both print tables, and return a gallery: a list of
# (picture, whether it is right, text)

def print_table(rows):
    """[['', 'colour'], ['new scenes', 0.99]] -> columns; fractions are printed as percentages."""
    def text(cell):
        return f"{cell:.1%}" if isinstance(cell, float) else cell
    rows = [list(map(text, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for first, *row in rows:
        print('  '.join([first.ljust(widths[0]), *map(str.rjust, row, widths[1:])]))

@torch.no_grad()
def measure_clip(model, tokenizer, splits, classes, device):
    """Retrieval among 100 pictures of different things, and classification by captions alone. In
    the gallery, each picture stands before the five that its caption finds."""
    def encode_images(examples):
        pictures = torch.from_numpy(np.stack([example.picture for example in examples]))
        return torch.cat([model.encode_image(part.to(device)) for part in pictures.split(250)])

    def encode_texts(texts):
        return model.encode_text(collate(tokenizer, [['', t] for t in texts])[0].to(device))

    gallery = []
    retrieval = [['', 'recall@1', '@5', '@10', 'chance@1']]
    zero_shot = [['zero-shot', 'right', 'chance']]
    for split, stream in splits.items():
        different = {label(example): example for example in islice(stream, 1000)}
        examples = list(different.values())[:100]
        n = len(examples)
        texts = [example.texts[1] for example in examples]
        similarity = encode_images(examples) @ encode_texts(texts).T  # (pictures, texts)
        for what, s in (('picture to caption', similarity), ('caption to picture', similarity.T)):
            ranked = s.argsort(1, descending=True)  # (n, n), the most similar first
            right = ranked == torch.arange(n, device=device)[:, None]
            recall = [right[:, :k].any(1).float().mean().item() for k in (1, 5, 10)]
            retrieval.append([f"{TITLES[split]}: {what}, of {n}", *recall, 1 / n])
        for i in range(min(n, 6)):
            gallery.append((examples[i].picture, None, texts[i]))
            gallery += [(examples[j].picture, i == j, texts[j]) for j in ranked[i, :5].tolist()]
        # zero-shot: a picture is of the class whose name is nearest to it. No class was trained on
        # as such: the captions have taught all there is to know
        examples = list(islice((e for e in stream if label(e) in classes), 1000))
        if examples:  # else your own captions are no classes
            found = (encode_images(examples) @ encode_texts(classes).T).argmax(1).tolist()
            right = [classes[i] == label(example) for i, example in zip(found, examples)]
            title = f"{TITLES[split]}: {len(classes)} classes"
            zero_shot.append([title, float(np.mean(right)), 1 / len(classes)])
    print_table(retrieval)
    print_table(zero_shot)
    return gallery

def judge(text, example):
    """In which respects a text is right: an answer in 'all' and for its kind of question; a caption
    in 'exact' (one of all true ones), in all 'colour', 'shape' and 'both', and in 'relation'."""
    question, answer = example.texts
    if question:
        return {'all': text == answer, ' '.join(question.split()[:2]): text == answer}
    if not example.scene:
        return {'exact': text == answer}
    said = [kind for kind in KINDS if ' '.join(kind) in text]
    there = [(thing.colour, thing.shape) for thing in example.scene]
    right = {'exact': text in captions(example.scene),
             'colour': {colour for colour, _ in said} == {colour for colour, _ in there},
             'shape': {shape for _, shape in said} == {shape for _, shape in there},
             'both': set(said) == set(there)}
    if len(there) > 1:  # is a caption of any two things, but for their sizes, in the text?
        pairs = '\n'.join(sum(map(captions, permutations(example.scene, 2)), []))
        pairs, text = (re.sub('small |big ', '', words) for words in (pairs, text))
        right['relation'] = any(pair in text for pair in pairs.split('\n'))
    return right

@torch.no_grad()
def measure_words(model, tokenizer, splits, out_dir, device, max_length):
    """How right captions or answers are with the right pictures, with shuffled and with blank ones.
    Captions go into files, too."""
    gallery, results = [], {}
    for split, stream in splits.items():
        examples = list(islice(stream, 500))
        asked = [example.texts[0] for example in examples]
        pictures = torch.from_numpy(np.stack([example.picture for example in examples]))
        # what a model that ignores its picture would say is as right in all three conditions
        conditions = {'': pictures, '-shuffled': pictures.roll(1, dims=0),
                      '-blank': torch.full_like(pictures, 128)}
        for condition, shown in conditions.items():
            said = []
            for i in range(0, len(asked), 250):
                part = shown[i:i + 250].to(device)
                said += answers(model, tokenizer, part, asked[i:i + 250], max_length)
            right = list(map(judge, said, examples))
            results[TITLES[split] + condition.replace('-', ', ')] = right
            for example, text, row in zip(examples[:36 - len(gallery)], said, right):
                gallery.append((example.picture, [*row.values()][0], f"{example.texts[0]} {text}"))
            if not asked[0]:
                lines = []
                for text, example in zip(said, examples):
                    references = example.texts[1:]
                    if example.scene:
                        references = captions(example.scene)[::7]
                    lines.append(json.dumps({'hypothesis': text, 'references': references}) + '\n')
                with open(os.path.join(out_dir, f'captions-{split}{condition}.jsonl'), 'w') as f:
                    f.writelines(lines)
    columns = list(dict.fromkeys(chain(*chain(*results.values()))))
    rows = [['right', *columns]]
    for title, right in results.items():
        row = [title]
        for column in columns:
            values = [each[column] for each in right if column in each]
            row.append(float(np.mean(values)) if values else '')
        rows.append(row)
    print_table(rows)
    return gallery

def show(gallery, out_dir):
    """Write the pictures of a gallery to out_dir/sheet.png, six in a row, framed green where right
    and red where wrong, and print the texts of the first row."""
    frames = {None: (128, 128, 128), True: (60, 200, 60), False: (220, 60, 60)}
    cell = len(gallery[0][0]) + 8  # a picture, a frame of 2 pixels, and 2 of black around it
    sheet = np.zeros((math.ceil(len(gallery) / 6) * cell, 6 * cell, 3), np.uint8)
    for i, (picture, right, _) in enumerate(gallery):
        y, x = i // 6 * cell, i % 6 * cell
        sheet[y + 2:y + cell - 2, x + 2:x + cell - 2] = frames[right]
        sheet[y + 4:y + cell - 4, x + 4:x + cell - 4] = picture
    write_png(os.path.join(out_dir, 'sheet.png'), sheet.repeat(3, axis=0).repeat(3, axis=1))
    print(f"{len(gallery)} pictures are in {out_dir}/sheet.png; the first ones:")
    for _, _, text in gallery[:6]:
        print(f"  {text.strip()}")

def write_png(path, picture):
    """(H, W, 3) uint8 -> a picture file: header, zipped rows, end, each with its checksum."""
    H, W, _ = picture.shape
    header = struct.pack('>IIBBBBB', W, H, 8, 2, 0, 0, 0)  # 8 bits for each of 3 colours
    rows = b''.join(b'\0' + row.tobytes() for row in picture)  # 0: this row is not filtered
    with open(path, 'wb') as f:
        f.write(b'\x89PNG\r\n\x1a\n')
        for kind, data in ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')):
            f.write(struct.pack('>I', len(data)) + kind + data)
            f.write(struct.pack('>I', zlib.crc32(kind + data)))

if __name__ == '__main__':
    # 1. processes: one; train.py has more
    # 2. settings: those of the run that is resumed, or the shape of the checkpoint to start from
    resuming = init_from == 'resume'
    saved = None
    if init_from != 'scratch':
        source = os.path.join(out_dir, 'resume.pt') if resuming else init_from
        saved = load_checkpoint(source)
        if saved.get('script') != 'vlm.py':
            usage(f"{source} was not written by vlm.py: start from scratch, or from a run of it")
        if resuming:
            resume(globals(), given, saved['settings'], 'dataset task freeze')
        fixed = 'image_size patch_size n_layer n_head n_embd'
        # a captioner takes only the vision tower from clip, and one that answers all of a captioner
        same_model = (saved['settings']['task'] == 'clip') == (task == 'clip')
        if same_model:
            fixed += ' fusion text_layers'
        resume(globals(), given, {key: saved['settings'][key] for key in fixed.split()}, fixed)
    expect(globals(), 'image_size patch_size text_layers block_size questions batch_size '
                      'eval_interval eval_iters log_interval', least=1)
    expect(globals(), 'max_iters warmup_iters grad_clip seed', least=0)
    expect(globals(), 'learning_rate muon_learning_rate', above=0)
    expect(globals(), 'word_dropout', least=0, below=1)
    if image_size % patch_size or (dataset == 'shapes' and image_size != 32):
        usage(f"image_size={image_size} patch_size={patch_size}: expected a multiple of the patch, "
              "and 32 for dataset=shapes")
    settings = current(globals())  # as they go into checkpoints: device is still 'auto'

    # 3. the device
    device, dtype = resolve_device(device, dtype)
    if dtype == 'float16':
        dtype = 'float32'  # float16 would need train.py's GradScaler
    device_type = device.split(':')[0]
    autocast = nullcontext()
    if dtype != 'float32':
        autocast = torch.autocast(device_type, dtype=getattr(torch, dtype))

    # 4. the data. Scenes to measure with are the same for every seed. The vocabulary is made of all
    # texts, whatever the task, so that the next task finds the same tokenizer
    if dataset == 'shapes':
        n = 1 if task == 'vqa' else 0
        data = {'train': Scenes('train', seed, n * questions), 'val': Scenes('val', 0, n),
                'new': Scenes('new', 0, n)}
        classes = [f"a {colour} {shape}" for colour, shape in KINDS]
        texts = []
        for i in range(100):
            _, scene, _ = draw('train', i, seed)
            texts += captions(scene) + list(map(' '.join, sum(questions_about(scene), [])))
    else:
        data = {}
        for split in ('val', 'train'):
            path = os.path.join(data_dir, dataset, split)
            data[split], texts = load_own_pictures(path, image_size, task)
        classes = sorted({label(example) for example in data['train']})
    tokenizer = make_tokenizer(texts)
    if saved and Tokenizer.from_dict(saved['tokenizer']) != tokenizer:
        sys.exit(f"{source} uses a different tokenizer than dataset={dataset}: train from scratch")

    def get_batch(step):
        """The examples of this step: a function of (seed, step) alone."""
        numbers = range(step * batch_size, (step + 1) * batch_size)
        if dataset != 'shapes':
            order = np.random.default_rng([seed, step]).permutation(len(data['train']))
            numbers = order[:batch_size]
        return [data['train'][i] for i in numbers]

    # 5. the model: new, or with the weights of a checkpoint
    torch.manual_seed(seed)
    n_patches = (image_size // patch_size) ** 2
    shape = {'n_head': n_head, 'n_embd': n_embd}
    try:
        vision_config = GPTConfig(vocab_size=1, block_size=n_patches, n_layer=n_layer,
                                  position='learned', causal=False, **shape)
        text_config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=n_patches + block_size,
                                n_layer=n_layer if task == 'clip' else text_layers, **shape)
    except ValueError as e:
        usage(str(e))
    if task == 'clip':
        model = CLIP(vision_config, text_config, patch_size, tokenizer.pad)
    else:
        model = Reader(vision_config, text_config, patch_size, fusion)
    if saved:  # all weights, or those of the vision tower
        weights = {key: tensor for key, tensor in saved['model'].items()
                   if same_model or key.startswith('vision.')}
        model.load_state_dict(weights, strict=False)
    model.vision.requires_grad_(not freeze)
    model.to(device)

    # 6. the optimizers
    optimizers = configure_optimizers(model, 'muon', learning_rate, muon_learning_rate)
    step, best = 0, math.inf
    if resuming:
        load_optimizers(optimizers, saved['optimizers'], source)
        step, best = saved['step'], saved['best']
    resumed_at = step if resuming else None
    saved = None  # frees its memory

    def lr_fraction(step):
        """The learning rate at this step, as a fraction of its peak."""
        return lr_schedule(step, 'linear', warmup_iters, max_iters)

    def get_lr(step):
        return learning_rate * lr_fraction(step)

    # 7. what this will cost, and where it goes
    n_params = sum(p.numel() for p in model.parameters())
    n_vision = sum(p.numel() for p in model.vision.parameters())
    print(f"{n_params:,} parameters, {n_vision:,} of them in the vision tower")
    print(f"{batch_size:,} pictures per step * {max_iters:,} steps = {batch_size * max_iters:,} "
          f"pictures, each of {n_patches} patches; {tokenizer.vocab_size} tokens of text")
    print(f"on {device}, {dtype}", flush=True)
    log = Log(out_dir, step, max_iters, log_interval, batch_size, unit='pictures', best=best)

    def save(name, **more):
        save_checkpoint(os.path.join(out_dir, name), model.state_dict(), text_config, tokenizer,
                        script='vlm.py', step=step, settings=settings, **more)

    def loss_of(batch, step=None):
        """The loss of these examples. At a step of training, some words are hidden."""
        pictures = torch.from_numpy(np.stack([example.picture for example in batch]))
        idx, targets = collate(tokenizer, [example.texts for example in batch], block_size)
        if task != 'clip' and step is not None:
            rng = np.random.default_rng([seed, step, 1])
            noise = torch.from_numpy(rng.random((batch_size, block_size), np.float32))
            noise = noise[:len(idx), :idx.size(1)]
            idx = mask_tokens(idx, targets, noise, tokenizer, word_dropout)
        with autocast:
            return model(pictures.to(device), idx.to(device), targets.to(device))

    @torch.no_grad()
    def evaluate():
        """Mean loss over batches of pictures that are not trained on."""
        model.eval()
        examples = list(islice(data['val'], eval_iters * batch_size))
        starts = range(0, len(examples), batch_size)
        losses = [loss_of(examples[i:i + batch_size]) for i in starts]
        model.train()
        return torch.stack(losses).mean().item()

    # 8. the loop; Ctrl-C and kill end it after a step
    stop = stop_when_asked()
    stopping = False
    model.train()
    log.restart_clock()
    while True:
        # 8.1 evaluate and save
        if (step % eval_interval == 0 or step == max_iters) and step != resumed_at:
            val_loss = evaluate()
            if log.evaluation(step, val_loss):  # True: the best so far
                save('ckpt.pt', val_loss=val_loss, dataset=dataset)
        if step > 0 and (step % eval_interval == 0 or step == max_iters or stopping):
            save('resume.pt', optimizers=[o.state_dict() for o in optimizers], best=log.best)
        if step >= max_iters or stopping:
            break
        log.restart_clock()
        # 8.2 forward and backward
        loss = loss_of(get_batch(step), step)
        loss.backward()
        # 8.3 update
        grad_norm = update(model, optimizers, lr_fraction(step), grad_clip)
        step += 1
        stopping = len(stop) > 0
        # 8.4 report
        log.training(step, loss.detach(), grad_norm, get_lr(step - 1), last=stopping)

    # 9. the end: what was learned
    if step < max_iters:
        print(f"stopped after step {step}; go on with  python vlm.py init_from=resume "
              f"out_dir={out_dir}")
    else:
        stop_at_once()
        model.load_state_dict(load_checkpoint(out_dir)['model'])  # the best
        model.eval()
        with autocast:
            splits = {split: data[split] for split in data if split != 'train'}
            if task == 'clip':
                gallery = measure_clip(model, tokenizer, splits, classes, device)
            else:
                gallery = measure_words(model, tokenizer, splits, out_dir, device, block_size)
        show(gallery, out_dir)
    log.close()
    stop_at_once()  # not before: a second Ctrl-C must not interrupt what the first one saves

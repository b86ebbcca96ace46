"""Eyes: what the scenes promise, CLIP's loss to the sixth digit, three ways to fuse, and every way to give it wrong pictures."""
import colorsys, csv, json, math, os, struct, zlib
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import vlm as V
from conftest import refused, run_script, spawn
from model import Tokenizer, load_checkpoint, load_model

TINY = dict(task='clip', dataset='shapes', init_from='scratch', out_dir='out', image_size=32, patch_size=8, n_layer=2,
            n_head=2, n_embd=32,
            block_size=48, text_layers=2, questions=2, fusion='early', freeze=False, batch_size=16, max_iters=6,
            warmup_iters=2, eval_interval=3, eval_iters=1,
            log_interval=2, device='cpu', dtype='float32', seed=1337, learning_rate=0.005,
            muon_learning_rate=0.02,
            lr_decay_iters=0)

@pytest.fixture
def go(monkeypatch, tmp_path):
    """Train with these settings in this process; returns ckpt.pt's or resume.pt's dictionary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(V, 'measure', lambda *how: None)  # slow, and tested by itself
    def train(which='ckpt.pt', **changes):
        settings(monkeypatch, **changes)
        V.train()
        return load_checkpoint(os.path.join(V.out_dir, which))
    return train

def settings(monkeypatch, **changes):
    V.own.cache_clear()
    monkeypatch.setattr(V, 'given', set(changes))
    for name, value in {**TINY, **changes}.items():
        monkeypatch.setattr(V, name, value)

def same(a, b):
    return all(torch.equal(x, y) for part in ('model', 'vision', 'bridge')
               for x, y in zip(a[part].values(), b[part].values(), strict=True))

# ---- scenes ----

def test_a_scene_is_asked_several_questions(monkeypatch):
    settings(monkeypatch, task='vqa')
    pictures, pairs = V.get_batch(3)
    assert len(pictures) == len(pairs) == 16 and all(len(asked) == V.questions for asked in pairs)

def test_the_hues_are_those_of_the_colours(monkeypatch):
    before = V.draw('val', range(50))[0]
    monkeypatch.setattr(V, 'COLOURS', {**V.COLOURS, 'purple': 280})
    after, scenes, _ = V.draw('val', range(50))
    changed = [not np.array_equal(a, b) for a, b in zip(before, after)]
    assert changed == ['purple' in {thing[1] for thing in scene} for scene in scenes] and any(changed)

def test_a_scene_is_a_function_of_split_seed_and_number(monkeypatch):
    together, scenes, u = V.draw('train', [3, 100, 7])
    alone, scene, v = V.draw('train', [7])
    assert np.array_equal(together[2], alone[0]) and scenes[2] == scene[0] and np.array_equal(u[2], v[0])
    kept = V.draw('val', [7])[0]
    monkeypatch.setattr(V, 'seed', 1)
    assert not np.array_equal(V.draw('train', [7])[0], alone) and np.array_equal(V.draw('val', [7])[0],
                                                                                 kept)  # val is fixed
    assert together.dtype == np.uint8 and together.shape == (3, 32, 32, 3)

def test_pictures_show_what_the_scene_says():
    """Every shape covers its centre, in its colour: the hue that the standard library finds there is the nearest to its own."""
    pictures, scenes, _ = V.draw('val', range(200))
    for picture, scene in zip(pictures, scenes):
        for _, colour, _, x, y in scene:
            patch = picture[int(y) - 1:int(y) + 2, int(x) - 1:int(x) + 2].reshape(-1, 3).mean(0) / 255
            away = (360 * colorsys.rgb_to_hsv(*patch)[0] - V.COLOURS[colour] + 180) % 360 - 180
            assert abs(away) < 36
        assert len({o[1] for o in scene}) == len({o[2] for o in scene}) == len(scene) in (1, 2, 3)

def test_shapes_by_hand():
    x, y = np.meshgrid(np.arange(-2, 3), np.arange(-2, 3))
    pixels = {shape: ''.join('.#'[int(p)] for p in V.inside(shape, x, y, 2).ravel()) for shape in V.SHAPES}
    assert pixels == {'circle': '..#..' '.###.' '#####' '.###.' '..#..',
                      'square': '#####' '#####' '#####' '#####' '#####',
                      'triangle': '..#..' '..#..' '.###.' '.###.' '.....',
                      'cross': '..#..' '..#..' '#####' '..#..' '..#..'}

def test_held_out_combinations_are_never_trained_on():
    names = [' '.join(k) for k in V.HELD_OUT]
    _, scenes, u = V.draw('train', range(3000))
    for scene, row in zip(scenes, u):
        said = V.caption(scene, int(row[0] * V.WAYS)) + ' '.join(V.ask(scene, row))
        assert not any(name in said for name in names)
    assert {o[1:3] for s in scenes for o in s} == set(V.KINDS) - V.HELD_OUT  # and all others are
    assert all(any(o[1:3] in V.HELD_OUT for o in s) for s in V.draw('new', range(200))[1])

SCENE = [('small', 'red', 'circle', 8., 8.), ('big', 'blue', 'square', 24., 8.)]

def test_captions_by_hand():
    said = {V.caption(SCENE, way) for way in range(V.WAYS)}
    assert said == {opening + text for opening in V.OPENINGS for text in (
        'a small red circle left of a big blue square', 'a small red circle left of a blue square',
        'a big blue square right of a small red circle', 'a big blue square right of a red circle')}
    assert V.caption(SCENE[:1], 0) == 'a red circle' and V.caption(SCENE[:1], 3) == 'a small red circle at the top left'
    diagonal = [SCENE[0], ('big', 'blue', 'square', 24., 24.)]
    assert [V.relations(*diagonal), V.relations(*diagonal[::-1])] == [['left of', 'above'], ['right of', 'below']]
    assert V.relations(SCENE[0], ('big', 'cyan', 'cross', 10., 24.)) == ['above']  # in one column

def test_questions_by_hand():
    asked = {V.ask(SCENE, u) for u in np.random.default_rng(0).random((2000, 4))}
    assert {a for a in asked if not a[0].startswith('is there')} == {
        ('what colour is the circle?', 'red'), ('what colour is the square?', 'blue'), ('what shape is red?', 'circle'),
        ('what shape is blue?', 'square'), ('how many shapes are there?', 'two'),
        ('how many small shapes are there?', 'one'),
        ('how many big shapes are there?', 'one'), ('is the circle left or right of the square?', 'left'),
        ('is the square left or right of the circle?', 'right'), ('where is the circle?', V.place(SCENE[0])),
        ('where is the square?', V.place(SCENE[1]))}
    assert {a for a in asked if a[0].startswith('is there')} == {  # the mixed ones, but a blue circle and a red square
        ('is there a red circle?', 'yes'), ('is there a blue square?', 'yes'), ('is there a red square?', 'no'),
        ('is there a blue circle?', 'no')}

# ---- the tokenizer ----

def test_every_word_is_a_token_and_any_other_can_be_spelled():
    tokenizer = V.make_tokenizer()
    ids = tokenizer.encode('is there a big red circle?')
    assert [tokenizer.decode([i]) for i in ids] == ['is', ' there', ' a', ' big', ' red', ' circle', '?']
    assert tokenizer.decode(tokenizer.encode('une grande étoile')) == 'une grande étoile'

def test_targets_count_in_the_answer_alone():
    tokenizer = V.make_tokenizer()
    idx, targets = V.collate(tokenizer, [('what shape is red?', 'circle'), ('', 'a red circle')])
    for row, answer in zip(targets, ('circle', 'a red circle')):
        assert tokenizer.decode(row[row >= 0].tolist()) == answer + '<|end|>'
    _, several = V.collate(tokenizer, [[('what shape is red?', 'circle'), ('how many shapes are there?', 'one')]])
    assert tokenizer.decode(several[several >= 0].tolist()) == 'circle<|end|>one<|end|>'
    last = (targets[0] >= 0).nonzero()[-1].item()
    assert idx[0, last + 1] == tokenizer.end and (idx[0, last + 2:] == tokenizer.pad).all()

def test_word_dropout_hides_what_the_answer_has_said(monkeypatch):
    settings(monkeypatch, task='caption', word_dropout=0.5)
    tokenizer = V.make_tokenizer()
    idx, targets = V.collate(tokenizer, [('what shape is red?', 'a red circle, a red circle')] * 8)
    hidden = V.hide(tokenizer, idx, targets, 3)
    gone, first = hidden != idx, (idx == tokenizer.special['<|assistant|>']).nonzero()[0, 1].item()
    assert (hidden[gone] == tokenizer.pad).all() and not gone[:, :first + 1].any()  # the question stays …
    assert not gone[idx == tokenizer.end].any()  # … and so does the end
    words = slice(first + 1, first + 1 + len(tokenizer.encode('a red circle, a red circle')))
    assert 0.3 < gone[:, words].float().mean() < 0.7 and (hidden[0] != hidden[1]).any()
    assert not torch.equal(V.hide(tokenizer, idx, targets, 4), hidden)
    monkeypatch.setattr(V, 'word_dropout', 0.0)
    assert torch.equal(V.hide(tokenizer, idx, targets, 3), idx)

# ---- the vision tower ----

def test_a_patch_embedding_is_a_strided_convolution(monkeypatch):
    settings(monkeypatch)
    tower = V.vision_tower()
    pictures = torch.from_numpy(V.draw('val', range(3))[0])
    weight = tower.wte.weight.view(32, 8, 8, 4).permute(0, 3, 1, 2)  # (C, 4, p, p)
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    light = x.amax(1, keepdim=True)
    expected = F.conv2d(torch.cat((2 * light, (x - light) / 4), 1), weight, stride=8)  # (B, C, 4, 4)
    assert torch.allclose(tower.wte(V.patches(pictures)), expected.flatten(2).mT, atol=1e-5)

def test_every_patch_sees_every_patch(monkeypatch):
    settings(monkeypatch)
    tower = awake(V.vision_tower())
    pictures = torch.from_numpy(V.draw('val', [0])[0])
    changed = pictures.clone()
    changed[:, -8:, -8:] = 255  # the last patch
    a, b = tower.hidden(V.patches(pictures)), tower.hidden(V.patches(changed))
    assert ((a - b).abs().amax(-1) > 0).all()  # no causal mask here

def awake(model):
    """Weights that begin at zero hide what a test looks for."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    return model.eval()

# ---- CLIP's loss ----

def features(rows=4, width=3):
    """Rows of length 1 that can be written down."""
    grid = torch.arange(rows * width, dtype=torch.float64).view(rows, width)
    return F.normalize((grid * 1.7).sin(), dim=-1), F.normalize((grid * 0.9).cos(), dim=-1)

def by_hand(images, texts, scale):
    """Loss and gradients of figure 3, without autograd: of a cross-entropy it is softmax - one-hot."""
    scores = scale * images @ texts.T
    n = len(scores)
    rows, columns = scores.softmax(1), scores.softmax(0)
    loss = -(rows.diag().log().mean() + columns.diag().log().mean()) / 2
    g = (rows + columns - 2 * torch.eye(n, dtype=scores.dtype)) / (2 * n)
    return loss, scale * g @ texts, scale * g.T @ images, (g * scores).sum() / scale

def test_clip_loss_and_gradients():
    images, texts = (t.requires_grad_() for t in features())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = V.clip_loss(images, texts, scale)
    loss.backward()
    with torch.no_grad():
        expected = by_hand(images, texts, scale)
    assert abs(loss.item() - REFERENCE) < 1e-6  # transformers 5.23's image_text_contrastive_loss of the same numbers
    for got, want in zip((loss, images.grad, texts.grad, scale.grad), expected):
        assert torch.allclose(got, want, atol=1e-9, rtol=0)

REFERENCE = 1.805980944

# ---- fusions ----

FUSIONS = pytest.mark.parametrize('fusion', ['early', 'intermediate', 'late'])

def reader(monkeypatch, fusion):
    settings(monkeypatch, task='caption', fusion=fusion)
    tokenizer = V.make_tokenizer()
    return awake(V.Reader(tokenizer)), tokenizer, torch.from_numpy(V.draw('val', range(3))[0])

@FUSIONS
def test_the_picture_is_seen_and_the_future_is_not(monkeypatch, fusion):
    model, tokenizer, pictures = reader(monkeypatch, fusion)
    idx = torch.arange(10).expand(3, 10) + 300
    x = model.hidden(idx, model.see(pictures))
    later = idx.clone()
    later[:, 6:] += 50
    y = model.hidden(later, model.see(pictures))
    assert torch.allclose(x[:, :6], y[:, :6], atol=1e-5) and not torch.allclose(x[:, 6:], y[:, 6:], atol=1e-2)
    other = model.hidden(idx, model.see(pictures.flip(0)))
    assert (x[0] - other[0]).abs().amax(-1).min() > 1e-3  # at every position

@FUSIONS
def test_answering_with_a_cache_is_answering_without(monkeypatch, fusion):
    """Questions of different lengths share a batch; each is answered as it would be alone, read anew for every token."""
    model, tokenizer, pictures = reader(monkeypatch, fusion)
    questions, seen = ['', 'what colour is the circle?', 'what shape is red?'], model.see(pictures)
    said = V.answers(model, tokenizer, pictures, questions)
    longest = max(len(tokenizer.chat([{'role': 'user', 'content': q}], answer=True)[0]) for q in questions)
    for b, question in enumerate(questions):
        ids = tokenizer.chat([{'role': 'user', 'content': question}], answer=True)[0]
        start = len(ids)
        while ids[-1] != tokenizer.end and len(ids) - start < V.block_size - longest:
            ids.append(model.text.logits(model.hidden(torch.tensor([ids]), seen[b:b + 1])[0, -1]).argmax().item())
        assert tokenizer.decode(ids[start:]).removesuffix('<|end|>') == said[b] and len(said[b]) > 0

@FUSIONS
def test_a_captioner_starts_from_clips_tower(go, fusion):
    clip = go(out_dir='clip')
    frozen = go(task='caption', init_from='clip', out_dir='frozen', fusion=fusion, freeze=True)
    free = go(task='vqa', init_from='clip', out_dir='free', fusion=fusion)
    assert all(torch.equal(x, y) for x, y in zip(clip['vision'].values(), frozen['vision'].values()))
    assert not all(torch.equal(x, y) for x, y in zip(clip['vision'].values(), free['vision'].values()))
    again = go(task='vqa', init_from='frozen', out_dir='again', max_iters=1, learning_rate=1e-9,
               muon_learning_rate=1e-9, fusion=fusion)
    assert max((x - y).abs().max().item() for x, y in zip(frozen['model'].values(),
                                                          again['model'].values())) < 1e-6  # all of it is taken over

# ---- runs ----

@pytest.mark.parametrize('task', ['clip', 'caption'])
def test_stopping_and_going_on_changes_nothing(go, task):
    straight = go('resume.pt', out_dir='straight', task=task)
    go(out_dir='parts', task=task, max_iters=3, lr_decay_iters=6)
    going_on = go('resume.pt', out_dir='parts', init_from='resume', max_iters=6, task=task)
    assert same(straight, going_on) and going_on['step'] == 6
    assert same(straight, go('resume.pt', out_dir='often', task=task, eval_interval=1,
                             log_interval=1))  # nor does looking

def test_a_run_that_gets_worse_keeps_its_best(go, monkeypatch):
    best = go(task='caption', max_iters=3)['val_loss']
    measured = []
    monkeypatch.setattr(V, 'measure', lambda model, *how: measured.append(V.weights(model)))
    after = go('resume.pt', init_from='resume', task='caption', max_iters=6, learning_rate=20.0, muon_learning_rate=20.0)
    with open('out/log.csv', encoding='utf-8') as f:
        losses = [(int(row['step']), float(row['val_loss'])) for row in csv.DictReader(f) if row['val_loss']]
    assert [step for step, _ in losses] == [0, 3, 6] and losses[-1][1] > 1.01 * best
    assert load_checkpoint('out')['val_loss'] == after['best'] == best
    assert same(measured[0], load_checkpoint('out')) and not same(measured[0], after)  # the best is what is measured

def test_pictures_and_captions_of_an_earlier_run_are_set_aside_too(go):
    go()
    for name in ('sheet.png', 'captions-val.jsonl'):
        open(f'out/{name}', 'w').close()
    go()
    assert os.path.exists('out/previous-1/sheet.png') and os.path.exists('out/previous-1/captions-val.jsonl')

def test_the_text_model_loads_as_a_plain_gpt(go):
    out = go(task='caption')
    model, tokenizer, _ = load_model('out')
    assert model(torch.tensor([tokenizer.encode('a red circle')])).shape == (1, 3, tokenizer.vocab_size)
    assert out['settings']['fusion'] == 'early' and out['task'] == 'caption' and out['val_loss'] > 0
    rows = list(csv.DictReader(open('out/log.csv', encoding='utf-8')))
    assert [int(r['step']) for r in rows if r['train_loss']] == [2, 4, 6] and [int(r['step'])
                                                                               for r in rows
                                                                               if r['val_loss']] == [0, 3, 6]

def test_it_learns_which_caption_belongs_to_which_picture(go):
    out = go(max_iters=60, warmup_iters=10, eval_interval=60, eval_iters=4)
    assert out['val_loss'] < math.log(16) - 0.5  # guessing among 16 costs ln 16 = 2.77

# ---- measures ----

def test_retrieval_and_zero_shot_of_an_oracle(monkeypatch, capsys):
    """Towers that put a picture and its caption in one place are always right, and those that do not are not."""
    settings(monkeypatch)
    tokenizer, numbers = V.make_tokenizer(), {}
    class Oracle:
        def see(self, pictures):  # knows every scene by its pixels
            return torch.stack([place(numbers[p.numpy().tobytes()]) for p in pictures])
        def read(self, idx):
            return torch.stack([place(tokenizer.decode([i for i in row.tolist() if i != tokenizer.pad]))
                                for row in idx])
    def place(text):
        kinds = [V.KINDS.index(tuple(k)) for k in V.re.findall(f"({'|'.join(V.COLOURS)}) ({'|'.join(V.SHAPES)})", text)]
        return F.normalize(torch.zeros(24).index_fill_(0, torch.tensor(kinds), 1.0), dim=0)
    examples = V.examples
    def remember(split, rows):
        found = examples(split, rows)
        numbers.update((p.tobytes(), a) for p, (_, a) in zip(found[0], found[1]))
        return found
    monkeypatch.setattr(V, 'examples', remember)
    gallery = V.measure_clip(Oracle(), tokenizer, 'cpu')
    text = capsys.readouterr().out
    assert text.count('100.0%') == 4 * 3 + 2 and text.count('4.2%') == 2 and text.count(' 1.0%') == 4
    assert len(gallery) == 12 and all(row[1][1]
                                      for row, _ in gallery)  # its own picture is the first that a caption finds
    Oracle.see = lambda self, pictures: torch.stack([place(numbers[p.numpy().tobytes()]) for p in pictures.flip(0)])
    V.measure_clip(Oracle(), tokenizer, 'cpu')
    assert '100.0%' not in capsys.readouterr().out

def test_judging_captions_by_hand():
    def judge(text):
        return V.judge(text, '', '', SCENE)
    assert judge('a small red circle left of a big blue square') == dict.fromkeys(['exact', 'colour', 'shape', 'both',
                                                                                   'size', 'relation'], True)
    assert judge('a big red circle right of a blue square') == {'exact': False, 'colour': 1, 'shape': 1, 'both': 1,
                                                                'size': 0, 'relation': False}
    assert judge('a small red square left of a blue circle') == {'exact': False, 'colour': 1, 'shape': 1, 'both': 0,
                                                                 'size': 0, 'relation': False}
    assert judge('a small red circle') == {'exact': False, 'colour': 0.5, 'shape': 0.5, 'both': 0.5, 'size': 1,
                                           'relation': False}
    assert judge('what?') == {'exact': False, 'colour': 0, 'shape': 0, 'both': 0, 'relation': False}
    assert V.judge('red', 'what colour is the circle?', 'red', SCENE) == {'all': True, 'what colour': True}

def test_a_captioner_is_measured_with_other_pictures_and_with_none(monkeypatch, tmp_path, capsys):
    """A model that answers with the brightness of its picture stands in for the captioner."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('out')
    settings(monkeypatch, task='caption')
    monkeypatch.setattr(V, 'some', lambda split, n: V.examples(split, range(60)))
    monkeypatch.setattr(V, 'answers', lambda model, tokenizer, pictures, questions: [f'{p.sum()}' for p in pictures])
    V.measure_words(None, None, 'cpu')
    said = {name: [json.loads(line) for line in open(f'out/captions-new{name}.jsonl', encoding='utf-8')]
            for name in ('', '-shuffled', '-blank')}
    true, shuffled, blank = ([line['hypothesis'] for line in said[name]] for name in ('', '-shuffled', '-blank'))
    assert shuffled == true[-1:] + true[:-1] and set(blank) == {str(128 * 3 * 1024)}
    scenes = V.draw('new', range(60))[1]
    assert all(set(line['references']) <= {V.caption(scene, way) for way in range(V.WAYS)}
               for line, scene in zip(said['-blank'], scenes))
    assert 'new combinations, shuffled' in capsys.readouterr().out

def test_a_png_by_hand(tmp_path):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    V.write_png(tmp_path / 'a.png', picture)
    raw = (tmp_path / 'a.png').read_bytes()
    assert raw[:8] == b'\x89PNG\r\n\x1a\n' and struct.unpack('>II', raw[16:24]) == (3, 2)
    at, kinds = 8, {}
    while at < len(raw):
        (size,), kind = struct.unpack('>I', raw[at:at + 4]), raw[at + 4:at + 8]
        kinds[kind] = raw[at + 8:at + 8 + size]
        assert struct.unpack('>I', raw[at + 8 + size:at + 12 + size])[0] == zlib.crc32(kind + kinds[kind])
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(kinds[b'IDAT']), np.uint8).reshape(2, 10)
    assert list(kinds) == [b'IHDR', b'IDAT',
                           b'IEND'] and not rows[:, 0].any() and np.array_equal(rows[:, 1:].reshape(2, 3, 3), picture)

# ---- your own pictures ----

def own_pictures(folder, n=40, size=32, **changes):
    """Squares, dark and bright, with captions; `changes` replaces the array or the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    bright = np.arange(n) % 2
    images = np.zeros((n, size, size, 3), np.uint8) + (40 + 150 * bright).astype(np.uint8)[:, None, None, None]
    lines = [{'caption': f'a {("dark", "bright")[b]} square', 'qa': [['is it bright?', ('no', 'yes')[b]]]}
             for b in bright]
    np.savez(folder / 'mine.npz', images=changes.get('images', images))
    (folder / 'mine.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in changes.get('lines', lines)),
                                       encoding='utf-8')
    return str(folder / 'mine.npz')

def prepare(tmp_path, **changes):
    done = run_script('prepare.py', 'dataset=mine', f"input={own_pictures(tmp_path, **changes)}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

def test_pictures_of_which_only_some_have_questions(go, monkeypatch, tmp_path, capsys):
    """The vocabulary is the same for all tasks, and validation may ask what training never asked."""
    lines = [{'caption': f'a square number {i}', **({'qa': [['where is it?' if i % 10 == 9 else 'who is it?', 'me']]}
                                                            if i > 8 else {})}
             for i in range(40)]
    prepare(tmp_path, lines=lines)
    own = dict(dataset='mine', data_dir='data', batch_size=4)
    go(out_dir='words', task='caption', **own)
    go(out_dir='asked', task='vqa', init_from='words', **own)
    settings(monkeypatch, out_dir='asked', task='vqa', **own)
    tokenizer = V.make_tokenizer()
    V.measure_words(V.Reader(tokenizer), tokenizer, 'cpu')
    assert 'where is' in capsys.readouterr().out

def test_your_own_pictures_from_end_to_end(go, monkeypatch, tmp_path, capsys):
    prepare(tmp_path)
    settings(monkeypatch, dataset='mine', data_dir='data')
    images, records = V.load_own_pictures('data/mine', 'val')
    assert len(images) == len(records) == 4 and json.load(open('data/mine/meta.json'))['splits']['train']['examples'] == 36
    own = dict(dataset='mine', data_dir='data', max_iters=30, eval_interval=30)
    for task in ('clip', 'caption', 'vqa'):
        out = go(task=task, **own)
        tokenizer = Tokenizer.from_dict(out['tokenizer'])
        model = V.CLIP(tokenizer) if task == 'clip' else V.Reader(tokenizer)
        V.load_weights(model, out, True)
        (V.measure_clip if task == 'clip' else V.measure_words)(model.eval(), tokenizer, 'cpu')
    text = capsys.readouterr().out
    assert '2 classes' in text and 'is it' in text
    monkeypatch.setitem(V.own('val')[2][0], 'caption', 'something else')  # no class that was trained on: retrieval only
    V.measure_clip(V.CLIP(tokenizer).eval(), tokenizer, 'cpu')
    assert 'recall@1' in (text := capsys.readouterr().out) and 'zero-shot' not in text
    pictures, pairs, _ = V.own('train')
    assert pictures.shape == (36, 32, 32, 3) and pairs[0] == ('is it bright?', 'no')

def test_own_pictures_that_are_missing_or_of_another_size(go, monkeypatch, tmp_path):
    prepare(tmp_path, size=40)
    with pytest.raises(SystemExit, match='40 x 40 pixels, and image_size=32: scale them to 32 x 32'):
        go(dataset='mine', data_dir='data')
    trained = go(dataset='mine', data_dir='data', image_size=40, max_iters=1)
    assert trained['settings']['image_size'] == 40
    for name in ('train.jsonl', 'train.npz'):
        os.remove(tmp_path / 'data' / 'mine' / name)
        with pytest.raises(SystemExit, match=f'no .*{name}: run  python prepare.py dataset=mine'):
            go(dataset='mine', data_dir='data', image_size=40)

# ---- mistakes ----

def test_checkpoints_that_do_not_fit(go, monkeypatch, tmp_path):
    clip = go(out_dir='clip')
    prepare(tmp_path)
    os.makedirs('text')
    torch.save({k: v for k, v in clip.items() if k not in ('vision', 'bridge', 'task')},
               'text/ckpt.pt')  # what train.py writes
    for words, how in (('another tokenizer', dict(init_from='clip', dataset='mine', data_dir='data')),
                       ('text model', dict(init_from='text')),
                       ('patch_size=8, not 4', dict(init_from='clip', patch_size=4)),
                       ('fewer than batch_size=64', dict(dataset='mine', data_dir='data', batch_size=64)),
                       ('longer than block_size=8', dict(block_size=8)), ('no checkpoint', dict(init_from='nowhere')),
                       ('no data/none/train.npz', dict(dataset='none', data_dir='data'))):
        with pytest.raises(SystemExit, match=words):
            go(out_dir='other', **how)

def test_a_run_goes_on_as_what_it_was(go, capsys):
    go(out_dir='clip')
    for words, how in (('task=clip, not caption', dict(init_from='resume', task='caption')),
                       ('was trained for task=clip', dict(init_from='clip', task='caption', max_iters=0)),
                       ('is where clip lies', dict(init_from='clip'))):
        with pytest.raises(SystemExit) as e:
            go(out_dir='clip', **how)
        assert words in f'{e.value} {capsys.readouterr().err}'

def test_settings_that_make_no_sense(go, capsys):
    for words, how in (('freeze', dict(freeze=True)), ('batch_size=0', dict(batch_size=0)),
                       ('patch_size=5', dict(patch_size=5)), ('image_size=64', dict(image_size=64)),
                       ('learning_rate=0', dict(learning_rate=0)), ('n_head=3', dict(n_head=3))):
        with pytest.raises(SystemExit) as e:
            go(**how)
        assert e.value.code == 2 and words in capsys.readouterr().err

def test_a_wrong_choice_on_the_command_line(tmp_path):
    refused(spawn('vlm.py', 'fusion=middle', cwd=tmp_path), 'early, intermediate, late', status=2)

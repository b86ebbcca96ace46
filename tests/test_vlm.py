"""Eyes: what the scenes promise, CLIP's loss to the sixth digit, three ways to fuse, and pictures of your own."""
import colorsys, json, math
from itertools import islice
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import vlm as V
from conftest import distance, refused, same, worked, write_jsonl
from model import GPTConfig, load_checkpoint

TINY = ('device=cpu', 'dtype=float32', 'n_layer=1', 'n_head=2', 'n_embd=32', 'block_size=40', 'batch_size=16',
        'max_iters=4', 'eval_interval=2', 'eval_iters=1', 'log_interval=2')

@pytest.fixture
def train(run):
    """train(task='caption', …) -> the finished run and its resume.pt."""
    def go(**changes):
        done = worked(run('vlm.py', *TINY, *(f'{key}={value}' for key, value in changes.items())))
        return done, load_checkpoint(f"{changes.get('out_dir', 'out-clip')}/resume.pt")
    return go

# ---- scenes ----

def test_scenes_are_functions_of_split_number_and_seed_and_pictures_show_them():
    """The bright pixels of a thing's quarter have its colour: of all hues, its own is the nearest to theirs."""
    for i in range(100):
        picture, scene, _ = V.draw('val', i, 0)
        again, the_same, _ = V.draw('val', i, 0)
        assert np.array_equal(picture, again) and scene == the_same
        for other in (('train', i, 0), ('val', i + 1, 0), ('val', i, 1)):
            assert not np.array_equal(picture, V.draw(*other)[0])
        for thing in scene:
            y, x = 16 * (thing.row == 'bottom'), 16 * (thing.column == 'right')
            quarter = picture[y:y + 16, x:x + 16].reshape(-1, 3)
            bright = quarter[quarter.max(1) > 128]
            away = (360 * colorsys.rgb_to_hsv(*bright.mean(0) / 255)[0] - V.COLOURS[thing.colour] + 180) % 360 - 180
            assert abs(away) < 30 and len(bright) > 20
        colours, shapes = {thing.colour for thing in scene}, {thing.shape for thing in scene}
        assert len(colours) == len(shapes) == len(scene) in (1, 2, 3)

def test_shapes_by_hand():
    x, y = np.meshgrid(np.arange(-2, 3), np.arange(-2, 3))
    pixels = {shape: ''.join('.#'[int(p)] for p in inside(x, y, 2).ravel()) for shape, inside in V.SHAPES.items()}
    assert pixels == {'circle': '..#..' '.###.' '#####' '.###.' '..#..',
                      'square': '#####' '#####' '#####' '#####' '#####',
                      'triangle': '..#..' '..#..' '.###.' '.###.' '.....',
                      'cross': '..#..' '..#..' '#####' '..#..' '..#..'}

def test_held_out_combinations_are_never_trained_on():
    seen = set()
    for i in range(1000):
        _, scene, _ = V.draw('train', i, 1337)
        texts = V.captions(scene) + [question for topic in V.questions_about(scene) for question, _ in topic]
        assert not any(' '.join(kind) in text for kind in V.HELD_OUT for text in texts)
        seen |= {(thing.colour, thing.shape) for thing in scene}
    assert seen == set(V.COMBINATIONS) - V.HELD_OUT  # and all others are
    for i in range(100):
        assert V.HELD_OUT & {(thing.colour, thing.shape) for thing in V.draw('new', i, 0)[1]}

SCENE = [V.Thing('small', 'red', 'circle', 'top', 'left'), V.Thing('big', 'blue', 'square', 'top', 'right')]

def test_in_training_a_fifth_of_the_rows_of_questions_holds_a_caption():
    firsts = [V.Scenes('train', 0, 5)[i].texts[0] for i in range(300)]
    assert 0.15 < firsts.count('') / 300 < 0.25
    assert all(V.Scenes('val', 0, 1)[i].texts[0] for i in range(50))

def test_captions_by_hand():
    texts = ('a small red circle left of a big blue square', 'a small red circle left of a blue square',
             'a big blue square right of a small red circle', 'a big blue square right of a red circle')
    every = [*texts, *('a picture of ' + text for text in texts), *('there is ' + text for text in texts)]
    assert sorted(V.captions(SCENE)) == sorted(every)
    alone = V.captions(SCENE[:1])
    assert 'a small red circle at the top left' in alone and 'a red circle' in alone
    diagonal = [SCENE[0], SCENE[1]._replace(row='bottom')]
    assert V.relations(*diagonal) == ['left of', 'above'] and V.relations(*diagonal[::-1]) == ['right of', 'below']
    three = diagonal + [V.Thing('big', 'cyan', 'cross', 'bottom', 'left')]
    assert 'there is a small red circle above a blue square and a cyan cross' in V.captions(three)
    assert max(len(V.captions(V.draw('val', i, 0)[1])) for i in range(100)) == 48

def test_questions_by_hand():
    colours, shapes, counts, presence, places, between = V.questions_about(SCENE)
    assert colours == [('what colour is the circle?', 'red'), ('what colour is the square?', 'blue')]
    assert shapes == [('what shape is red?', 'circle'), ('what shape is blue?', 'square')]
    assert counts == [('how many shapes are there?', 'two'), ('how many small shapes are there?', 'one'),
                      ('how many big shapes are there?', 'one')]
    assert set(presence) == {('is there a red circle?', 'yes'), ('is there a blue square?', 'yes'),
                             ('is there a red square?', 'no'), ('is there a blue circle?', 'no')}
    assert places == [('where is the circle?', 'top left'), ('where is the square?', 'top right')]
    assert between == [('is the circle left or right of the square?', 'left'),
                       ('is the square left or right of the circle?', 'right')]
    for i in range(100):  # yes and no are equally often right
        presence = V.questions_about(V.draw('val', i, 0)[1])[3]
        assert 2 * sum(answer == 'yes' for _, answer in presence) == len(presence)

# ---- texts for the model ----

SCENES = [V.draw('train', i, 0)[1] for i in range(100)]
TOK = V.make_tokenizer([f"{V.captions(scene)} {V.questions_about(scene)}" for scene in SCENES])

def test_words_are_tokens_targets_count_in_answers_alone_and_dropout_hides_what_they_have_said():
    ids = TOK.encode('is there a big red circle?')
    assert [TOK.decode([i]) for i in ids] == ['is', ' there', ' a', ' big', ' red', ' circle', '?']
    assert TOK.decode(TOK.encode('une grande étoile')) == 'une grande étoile'
    idx, targets = V.collate(TOK, [('what shape is red?', 'circle'), ('', 'a red circle', 'how many?', 'one')])
    for row, words in zip(targets, ('circle<|end|>', 'a red circle<|end|>one<|end|>')):
        assert TOK.decode(row[row >= 0].tolist()) == words
    last = (targets[0] >= 0).nonzero()[-1].item()
    assert idx[0, last + 1] == TOK.end and (idx[0, last + 2:] == TOK.pad).all()
    start = (idx == TOK.special['<|assistant|>']).nonzero()[0, 1].item() + 1
    noise = np.zeros(idx.shape)
    masked = V.drop_words(idx, targets, noise, TOK, 0.3)  # 0 < 0.3: all that the answers have said
    assert TOK.decode(masked[0, start:].tolist()).startswith('<|pad|><|end|>')
    noise[:] = 0.9
    noise[1, 4] = 0.1
    masked = V.drop_words(idx, targets, noise, TOK, 0.3)
    assert (masked != idx).nonzero().tolist() == [[1, 4]] and TOK.decode([idx[1, 4].item()]) == ' red'

# ---- models ----

def build(fusion):
    """An untrained Reader; none of its weights is zero, which would hide what a test looks for."""
    shape = dict(n_layer=2, n_head=2, n_embd=32)
    vision = GPTConfig(vocab_size=1, block_size=16, position='learned', causal=False, **shape)
    model = V.Reader(vision, GPTConfig(vocab_size=TOK.vocab_size, block_size=112, **shape), 8, fusion)
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    return model

PICTURES = torch.from_numpy(np.stack([V.draw('val', i, 0)[0] for i in range(3)]))

def test_a_patch_embedding_is_a_strided_convolution_and_every_patch_sees_every_patch():
    model = build('early')
    weight = model.vision.wte.weight.view(32, 8, 8, 4).permute(0, 3, 1, 2)  # (C, 4, p, p)
    x = PICTURES.permute(0, 3, 1, 2).float() / 127.5 - 1
    light = x.amax(1, keepdim=True)
    expected = F.conv2d(torch.cat((2 * light, (x - light) / 3), 1), weight, stride=8)  # (B, C, 4, 4)
    assert torch.allclose(model.vision.wte(V.patches(PICTURES, 8)), expected.flatten(2).mT, atol=1e-5)
    changed = PICTURES.clone()
    changed[:, -8:, -8:] = 255  # the last patch
    difference = model.vision(PICTURES) - model.vision(changed)
    assert (difference.abs().amax(-1) > 0).all()  # no causal mask here

def test_clip_loss_and_gradients():
    """Figure 3 without autograd: the gradient of a cross-entropy is softmax - one-hot."""
    grid = torch.arange(12, dtype=torch.float64).view(4, 3)
    images = F.normalize((grid * 1.7).sin(), dim=-1).requires_grad_()
    texts = F.normalize((grid * 0.9).cos(), dim=-1).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = V.clip_loss(images, texts, scale)
    loss.backward()
    assert abs(loss.item() - 1.805980944) < 1e-6  # transformers 5.23's image_text_contrastive_loss of the same numbers
    with torch.no_grad():
        logits = scale * images @ texts.T
        rows, columns = logits.softmax(1), logits.softmax(0)
        g = (rows + columns - 2 * torch.eye(4, dtype=torch.float64)) / 8
        for got, want in ((loss, -(rows.diag().log().mean() + columns.diag().log().mean()) / 2),
                          (images.grad, scale * g @ texts), (texts.grad, scale * g.T @ images),
                          (scale.grad, (g * logits).sum() / scale)):
            assert torch.allclose(got, want, atol=1e-9, rtol=0)

@pytest.mark.parametrize('fusion', ['early', 'intermediate', 'late'])
def test_the_picture_is_seen_the_future_is_not_and_each_is_answered_as_it_would_be_alone(fusion):
    model = build(fusion)
    image = model.vision(PICTURES)
    idx = torch.arange(10).expand(3, 10) + 300
    later = idx.clone()
    later[:, 6:] += 50
    x, y = model.hidden(idx, image), model.hidden(later, image)
    assert torch.allclose(x[:, :6], y[:, :6], atol=1e-5) and not torch.allclose(x[:, 6:], y[:, 6:], atol=1e-2)
    other = model.hidden(idx, image.flip(0))
    assert (x[0] - other[0]).abs().amax(-1).min() > 1e-3  # at every position
    questions = ['', 'what colour is the circle?', 'what shape is red?']  # of 0, 6 and 5 tokens
    said = model.answer(PICTURES, questions, TOK, 24)
    for b, room in enumerate((18, 24, 23)):  # as many new tokens for each
        assert model.answer(PICTURES[b:b + 1], [questions[b]], TOK, room) == [said[b]] and said[b]

# ---- measures ----

def test_judging_by_hand():
    def judge(text):
        right = V.judge(text, V.Example(None, ('', ''), SCENE))
        assert list(right) == ['exact', 'colour', 'shape', 'both', 'relation']
        return ' '.join(aspect for aspect in right if right[aspect])
    assert judge('a small red circle left of a big blue square') == 'exact colour shape both relation'
    assert judge('a big red circle left of a blue square') == 'colour shape both relation'
    assert judge('a big red circle right of a blue square') == 'colour shape both'
    assert judge('a red square left of a blue circle') == 'colour shape'
    assert judge('a small red circle') == ''
    example = V.Example(None, ('what colour is the circle?', 'red'), SCENE)
    assert V.judge('red', example) == {'all': True, 'what colour': True}

def test_retrieval_and_zero_shot_of_an_oracle(capsys):
    """Towers that put a picture and its caption in one place are always right, and those that do not are not."""
    known = {}
    def point(text):
        kinds = [i for i, kind in enumerate(V.COMBINATIONS) if ' '.join(kind) in text]
        return F.normalize(torch.zeros(24).index_fill_(0, torch.tensor(kinds), 1.0), dim=0)
    class Oracle:
        def encode_image(self, pictures):
            return torch.stack([point(known[p.numpy().tobytes()]) for p in pictures])
        def encode_text(self, idx):
            return torch.stack([point(TOK.decode(row.tolist())) for row in idx])
    splits = {split: list(islice(V.Scenes(split, 0, 0), 600)) for split in ('val', 'new')}
    for example in sum(splits.values(), []):
        known[example.picture.tobytes()] = example.texts[1]
    classes = [f'a {colour} {shape}' for colour, shape in V.COMBINATIONS]
    gallery = V.measure_clip(Oracle(), TOK, splits, classes, 'cpu')
    text = capsys.readouterr().out
    assert text.count('100.0%') == 2 * (2 * 3 + 1) and text.count('4.2%') == 2 and text.count('  1.0%') == 4
    assert len(gallery) == 100 and all(right for _, right, _ in gallery)

# ---- runs; pictures of your own are quicker to measure with than scenes, as there are few ----

@pytest.fixture
def mine(run):
    """data/mine: dark and bright pictures, not square ones, with captions; every second one has a question."""
    images = np.zeros((40, 24, 32, 3), np.uint8) + np.array([40, 190] * 20, np.uint8)[:, None, None, None]
    np.savez('mine.npz', images=images)
    dark, light = {'caption': 'a dark field'}, {'caption': 'a bright field', 'qa': [['is it bright?', 'yes']]}
    write_jsonl('mine.jsonl', *[dark, light] * 20)
    worked(run('prepare.py', 'dataset=mine', 'input=mine.npz'))

def test_the_course_from_clip_to_questions(train, mine):
    """A captioner starts from clip's tower, and what answers questions from all of the captioner."""
    slow = dict(dataset='mine', max_iters=1, learning_rate=1e-9, muon_learning_rate=1e-9)
    done, _ = train(dataset='mine', max_iters=1)
    assert '2 classes' in done.stdout and done.globals['data']['train'][0].texts == ['', 'a dark field']
    clip = load_checkpoint('out-clip')['model']
    vision = [key for key in clip if key.startswith('vision.')]
    for fusion in ('early', 'intermediate', 'late'):
        _, captioner = train(task='caption', fusion=fusion, init_from='out-clip', out_dir=fusion, **slow)
        assert vision and all(torch.allclose(clip[key], captioner['model'][key], atol=1e-6) for key in vision)
    done, asked = train(task='vqa', init_from='late', out_dir='vqa', **slow)  # fusion is the captioner's
    assert distance(load_checkpoint('late'), asked) < 1e-6
    assert 'is it' in done.stdout and len(done.globals['data']['train']) == 16  # the others have no question

def test_captions_of_scenes_go_into_files(train):
    train(task='caption', fusion='late', out_dir='cap', max_iters=1, block_size=24)
    said, references = {}, []
    for condition in ('', '-shuffled', '-blank'):
        with open(f'cap/captions-new{condition}.jsonl') as f:
            records = [json.loads(line) for line in f]
        said[condition] = [record['hypothesis'] for record in records]
    for record, example in zip(records, V.Scenes('new', 0, 0)):
        assert set(record['references']) <= set(V.captions(example.scene))
    assert len(set(said['-blank'])) == 1  # all blank pictures are one
    assert said['-shuffled'] == said[''][-1:] + said[''][:-1]

def test_stopping_and_going_on_changes_nothing(train, mine):
    _, straight = train(task='caption', dataset='mine', out_dir='straight')
    _, often = train(task='caption', dataset='mine', out_dir='often', eval_interval=1, log_interval=1)
    train(task='caption', dataset='mine', out_dir='parts', max_iters=2)
    _, going_on = train(init_from='resume', out_dir='parts')  # the task and the data are the saved run's
    assert going_on['settings']['task'] == 'caption' and same(straight, often) and same(straight, going_on)

def test_clip_sees_some_pictures_in_grey_and_only_in_training(train):
    names = train(max_iters=1)[0].globals
    seen, model = [], names['model']
    model.vision.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    examples = [names['data']['train'][i] for i in range(200)]
    for rng in (None, np.random.default_rng(0)):
        names['loss_of'](examples, rng)
    plain, some = [(p.amax(-1) == p.amin(-1)).flatten(1).all(1).float().mean() for p in seen]
    assert plain == 0 and 0.1 < some < 0.3

def test_it_learns_which_caption_belongs_to_which_picture(train):
    _, saved = train(n_layer=2, max_iters=60, eval_interval=60, eval_iters=4)
    assert saved['best'] < math.log(16) - 0.5  # guessing among 16 costs ln 16 = 2.77

# ---- mistakes ----

def test_mistakes_end_in_one_line(train, mine, run):
    for setting in ('batch_size=0', 'patch_size=5', 'n_head=3'):
        refused(run('vlm.py', *TINY, setting), setting, status=2)
    refused(run('vlm.py', *TINY, 'fusion=middle'), 'early, intermediate, late', status=2)
    refused(run('vlm.py', *TINY, 'init_from=nowhere'), 'no nowhere')
    refused(run('vlm.py', *TINY, 'dataset=none'), 'data/none', 'prepare.py')
    refused(run('vlm.py', *TINY, 'dataset=mine', 'out_dir=other', 'block_size=4'), 'give block_size=')
    write_jsonl('data/mine/val.jsonl', *[{'caption': 'a field'}] * 4)
    refused(run('vlm.py', *TINY, 'dataset=mine', 'out_dir=other', 'task=vqa'), 'asks no questions')
    train(dataset='mine', max_iters=1)
    refused(run('vlm.py', *TINY, 'init_from=out-clip', 'out_dir=other'), 'not trained on 32 x 32', status=2)
    refused(run('vlm.py', *TINY, 'init_from=out-clip', 'patch_size=4', 'out_dir=other'), 'patch_size=8', status=2)
    refused(run('vlm.py', 'init_from=resume', 'task=caption'), 'task=clip', status=2)
    torch.save({**load_checkpoint('out-clip'), 'script': 'train.py'}, 'ckpt.pt')
    refused(run('vlm.py', *TINY, 'init_from=ckpt.pt', 'out_dir=other'), 'not written by vlm.py', status=2)

"""Fine-tuning: only the assistant is learned from, neighbours in a row do not see each other, the base stays as it was."""
import csv, json, math, os
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import finetune as S
from conftest import prose, refused, spawn
from model import GPTConfig, Tokenizer, build_model, load_checkpoint, load_dataset, load_model, save_atomically

BYTES = Tokenizer('bpe', [bytes([b]) for b in range(256)])  # the simplest vocabulary: a token a byte
SHAPE = dict(vocab_size=BYTES.vocab_size, n_layer=2, n_head=2, n_embd=32, block_size=48)
TINY = dict(data_dir='data', dataset='chats', init_from='base', out_dir='out', batch_size=4, max_iters=20,
            eval_interval=10, eval_iters=2,
            warmup_iters=2, log_interval=5, num_samples=4, max_new_tokens=4, device='cpu', dtype='float32')
DEFAULTS = {name: getattr(S, name) for name in S.SETTINGS}

def base(folder, seed=0, tokenizer=BYTES, **shape):
    """A checkpoint to start from: random weights, with something in the matrices that usually begin at zero."""
    torch.manual_seed(seed)
    config = GPTConfig(**{**SHAPE, **shape})
    model = build_model(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    os.makedirs(folder, exist_ok=True)
    save_atomically(os.path.join(folder, 'ckpt.pt'), {'format': 'ninefiles-2', 'model': model.state_dict(),
                                                      'config': config.__dict__,
                                                      'tokenizer': tokenizer.to_dict(), 'step': 0, 'settings': {}})

def chat(question, answer):
    return {'messages': [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]}

def write(name, train, val, folder='data'):
    os.makedirs(os.path.join(folder, name), exist_ok=True)
    for split, examples in (('train', train), ('val', val)):
        with open(os.path.join(folder, name, f'{split}.jsonl'), 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(e) + '\n' for e in examples)

@pytest.fixture
def go(monkeypatch, tmp_path):
    """Fine-tune with these settings in this process; returns ckpt.pt's or resume.pt's dictionary."""
    monkeypatch.chdir(tmp_path)
    base('base')
    write('chats', [chat(f'say {c}{d}', c) for c in 'abcdefgh' for d in 'abcd'], [chat(f'say {c}z', c) for c in 'abcd'])
    write('labels', [{'text': f'{a}{b}{"!" * (n % 2)}', 'label': ('calm', 'loud')[n % 2]}
                     for n, (a, b) in enumerate(zip('abcdefgh' * 8, 'stuvwxyz' * 7))],
          [{'text': f'{a}q{"!" * (n % 2)}', 'label': ('calm', 'loud')[n % 2]} for n, a in enumerate('abcdefgh')])
    def finetune(which='ckpt.pt', **changes):
        monkeypatch.setattr(S, 'given', set(changes))
        for name, value in {**DEFAULTS, **TINY, **changes}.items():
            monkeypatch.setattr(S, name, value)
        S.finetune()
        return load_checkpoint(os.path.join(S.out_dir, which))
    return finetune

def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

def close(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

# ---- what is learned from ----

def test_only_the_assistant_is_learned_from():
    t = BYTES
    ids, targets = S.chat_targets(t, [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'u'},
                                      {'role': 'assistant', 'content': 'xy'},
                                      {'role': 'user', 'content': 'v'}, {'role': 'assistant', 'content': 'z'}])
    whole = [t.special['<|user|>'], *b'S\n\nu', t.end, t.special['<|assistant|>'], *b'xy', t.end, t.special['<|user|>'], *b'v', t.end, t.special['<|assistant|>'], *b'z', t.end]
    assert ids == whole[:-1]
    assert targets == [-100] * 6 + [*b'xy', t.end] + [-100] * 4 + [*b'z', t.end]  # what <|assistant|> is followed by, and so on

def test_packing_by_hand():
    a, b, c = ([1, 2, 3], [-100, 2, 3]), ([4] * 6, [4] * 6), ([5, 6, 7, 8], [-100, -100, -100, 9])
    x, y, positions, segments = S.pack([a, b, c], 8)
    assert x.tolist() == [[1, 2, 3, 5, 6, 7, 8, 0], [4] * 6 + [0, 0]]
    assert y.tolist() == [[-100, 2, 3, -100, -100, -100, 9, -100], [4] * 6 + [-100] * 2]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]]
    assert segments.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1] * 6 + [0, 0]]

@pytest.mark.parametrize('position', ['rotary', 'learned'])
def test_a_conversation_in_a_packed_row_reads_as_it_would_alone(position):
    torch.manual_seed(0)
    model = build_model(GPTConfig(**SHAPE, position=position)).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    examples = [S.chat_targets(BYTES, chat(q, a)['messages'])
                for q, a in (('hello', 'you'), ('1+1', '2'), ('what', 'ever'), ('x', 'y'))]
    rows = [part.long() for part in S.pack(examples, SHAPE['block_size'])]
    assert len(rows[0]) == 1  # all in one row
    together = S.Learner(model).eval()(*rows)
    alone = sum(F.cross_entropy(model(torch.tensor([ids]))[0], torch.tensor(targets), reduction='sum')
                for ids, targets in examples)
    assert abs(together - alone) < 1e-4

def test_a_step_is_a_function_of_seed_and_step_and_an_epoch_reads_every_row_once():
    data = [torch.arange(12)[:, None].expand(12, 4)] * 4
    parts = [S.get_batch(data, step, 4)[0][0][:, 0].tolist() for step in range(6)]
    assert sorted(sum(parts[:3], [])) == sorted(sum(parts[3:], [])) == list(range(12)) and parts[:3] != parts[3:]
    assert S.get_batch(data, 1, 4)[1] == 4 * 4  # targets: 4 rows of 4

def test_labels_sit_on_the_last_token_or_in_an_encoder_on_the_first():
    assert S.label_targets(BYTES, 'hi', 1, True) == ([BYTES.eot, *b'hi'], [-100, -100, 1])
    assert S.label_targets(BYTES, 'hi', 1, False)[1] == [1, -100, -100]

# ---- which weights move ----

def test_lora_by_hand():
    """W x + alpha/r B A x; peft gives the same [32, 26] for this case (LoraConfig(r=2, lora_alpha=6))."""
    linear = torch.nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[1., 2, 3], [4, 5, 6]])
    layer, x = S.LoRA(linear, r=2, alpha=6), torch.tensor([1., 2, 4])
    assert layer(x).tolist() == [17, 38]  # B is zero: nothing has changed yet
    layer.A.data, layer.B.data = torch.tensor([[1., 0, -1], [2, 1, 0]]), torch.tensor([[1., 2], [0, -1]])
    assert layer(x).tolist() == [32, 26]  # A x = [-3, 4], B A x = [5, -4], and [17, 38] + 6/2 [5, -4]

def test_merged_lora_computes_what_unmerged_does(monkeypatch):
    monkeypatch.setattr(S, 'method', 'lora'), monkeypatch.setattr(S, 'lora_alpha', 5.0)
    torch.manual_seed(0)
    model = build_model(GPTConfig(**SHAPE, bias=True)).eval()
    names, idx = set(model.state_dict()), torch.randint(256, (2, 40))
    plain = model(idx)
    S.adapt(model, BYTES)
    assert torch.equal(model(idx), plain)  # at step 0 nothing has changed
    for name, p in model.named_parameters():
        assert p.requires_grad == (name.endswith(('.A', '.B', 'wte.weight', 'head.weight')) or 'norm' in name)
        if name.endswith(('.A', '.B')):
            p.data += 0.1 * torch.randn_like(p)
    other = build_model(model.config).eval()
    other.load_state_dict(S.merged(model))
    assert set(S.merged(model)) == names
    assert (model(idx) - plain).abs().max() > 0.01 and (model(idx) - other(idx)).abs().max() < 1e-5

def test_each_method_moves_what_it_says_and_never_the_base(go):
    with open('base/ckpt.pt', 'rb') as f:
        bytes_before = f.read()
    before = load_checkpoint('base')['model']
    for method, still in (('full', ()), ('freeze', ('wte', 'blocks.0')), ('lora', ()), ('adapter', ('attention', 'mlp'))):
        after = go(method=method, freeze_layers=1, out_dir=f'out-{method}')['model']
        load_model(f'out-{method}')  # a plain checkpoint
        for name, p in before.items():
            frozen = any(name.startswith(s) or s in name for s in still) and not (method == 'adapter'
                                                                                  and 'norm' in name)
            assert torch.equal(p, after[name]) == frozen, (method, name)
        if method in ('lora', 'adapter'):  # of the tables, the chat's own tokens move, and no other row
            for name in ('wte.weight', 'head.weight'):
                moved = (before[name] != after[name]).any(-1).nonzero().flatten().tolist()
                assert moved and set(moved) <= set(BYTES.special.values()), (method, name, moved)
    with open('base/ckpt.pt', 'rb') as f:
        assert f.read() == bytes_before

def test_thin_matrices_learn_by_adamw_unless_told_otherwise(go):
    for how, wanted in ((dict(), 'muon'), (dict(method='lora'), 'adamw'), (dict(method='adapter'), 'adamw'),
                        (dict(method='lora', optimizer='muon'), 'muon')):
        assert go(max_iters=1, **how)['settings']['optimizer'] == wanted

def test_an_adapter_changes_nothing_at_first(go):
    after = go(method='adapter', max_iters=0)
    idx = torch.randint(256, (2, 20))
    assert any('adapter' in name for name in after['model']) and torch.equal(load_model('out')[0](idx),
                                                                             load_model('base')[0](idx))

# ---- imitation ----

def test_distillation_by_hand(monkeypatch):
    """Half cross-entropy, half T² KL(teacher || student), at the one token that counts."""
    monkeypatch.setattr(S, 'temperature', 3.0), monkeypatch.setattr(S, 'distill_weight', 0.5)
    torch.manual_seed(0)
    student, tutor = (build_model(GPTConfig(**SHAPE)) for _ in range(2))
    x, y = torch.tensor([[7, 8, 9]]), torch.tensor([[-100, 5, -100]])
    loss = S.Learner(student, teacher=tutor)(x, y).item()
    s, t = (m(x)[0, 1].detach().double().numpy() for m in (student, tutor))
    p, q = (np.exp(z / 3) / np.exp(z / 3).sum() for z in (t, s))
    by_hand = 0.5 * -(s[5] - np.log(np.exp(s).sum())) + 0.5 * 9 * (p * np.log(p / q)).sum()
    assert loss == pytest.approx(by_hand, rel=1e-4)
    alike = S.Learner(student, teacher=student)(x, y).item()
    assert alike == pytest.approx(0.5 * -(s[5] - np.log(np.exp(s).sum())), rel=1e-4)  # nothing to learn from oneself

def test_a_student_comes_nearer_to_its_teacher(go):
    base('big', seed=5, n_embd=64)
    idx = torch.randint(97, 105, (4, 30))
    def kl(folder):
        p, q = (load_model(f)[0](idx).log_softmax(-1) for f in ('big/ckpt.pt', folder))
        return (p.exp() * (p - q)).sum(-1).mean().item()
    go(teacher='big', distill_weight=1.0, temperature=1.0, max_iters=20)
    assert kl('out/resume.pt') < 0.9 * kl('base/ckpt.pt')

# ---- exactness ----

@pytest.mark.parametrize('how', [dict(dropout=0.2), dict(method='lora'),
                                 dict(method='adapter', optimizer='adamw'),
                                 dict(method='freeze', gradient_accumulation_steps=2),
                                 dict(task='classify', dataset='labels')])
def test_stopping_and_going_on_changes_nothing(go, how):
    straight = go('resume.pt', out_dir='straight', lr_decay_iters=20, **how)
    go(out_dir='parts', max_iters=10, lr_decay_iters=20, **how)
    again = go('resume.pt', out_dir='parts', init_from='resume', max_iters=20)
    assert same(straight, again) and straight['before'] == again['before']
    assert all(torch.equal(a, b) for a, b in zip(straight['learner'].values(), again['learner'].values(), strict=True))

def test_a_run_that_gets_worse_keeps_its_best(go):
    best = go(max_iters=10)['val_loss']
    after = go('resume.pt', init_from='resume', max_iters=20, learning_rate=20.0, muon_learning_rate=20.0)
    with open('out/log.csv', encoding='utf-8') as f:
        losses = [(int(row['step']), float(row['val_loss'])) for row in csv.DictReader(f) if row['val_loss']]
    assert [step for step, _ in losses] == [0, 10, 20] and losses[-1][1] > 1.01 * best
    assert load_checkpoint('out')['val_loss'] == after['best'] == best

def test_a_resumed_run_evaluates_no_step_twice(go):
    go(max_iters=10)
    go(init_from='resume', max_iters=20)
    with open('out/log.csv', encoding='utf-8') as f:
        assert [int(row['step']) for row in csv.DictReader(f) if row['val_loss']] == [0, 10, 20]

def test_accumulation_is_one_large_batch(go):
    """Although its parts hold different numbers of targets: the sum of all losses is divided by the number of all."""
    write('uneven', [chat('?', 'x' * (1 + n % 20)) for n in range(60)], [chat('?', 'x')])
    a, b = (go('resume.pt', dataset='uneven', out_dir=o, batch_size=n, gradient_accumulation_steps=8 // n,
               optimizer='adamw', max_iters=10)
            for o, n in (('a', 8), ('b', 2)))
    assert close(a, b) < 1e-4

# ---- learning ----

def test_it_learns_to_answer(go, capsys):
    saved = go(max_iters=120, eval_interval=40, learning_rate=0.01, muon_learning_rate=0.02)
    text = capsys.readouterr().out
    assert saved['val_loss'] < 0.5 and 'say az -> a' in text and 'exact match on 4 held-out questions' in text
    for word in ('held-out', '% full', 'parameters move: 100.00 %', 'times through the examples',
                 'next:  python sample.py out_dir=out'):
        assert word in text, word
    rows = list(csv.DictReader(open('out/log.csv')))
    assert [int(r['step']) for r in rows if r['val_loss']] == [0, 40, 80, 120]

def test_a_base_without_a_gate_takes_lora_where_it_can(go):
    base('gpt2', position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)
    go(init_from='gpt2', method='lora', max_iters=2)

def test_only_what_was_asked_for_is_answered(go):
    write('greeting', [chat('hi', 'ho')], [chat('hi', 'ho'), {'messages': [{'role': 'assistant', 'content': 'hello'}]}])
    go(dataset='greeting', max_iters=2)

def test_answers_are_scored_to_the_letter_and_by_skill():
    examples = [{**chat('q', a), 'skill': s} for a, s in (('1', 'x'), ('2', 'x'), ('3', 'y'))]
    assert S.exact_match(examples, ['1', '2.', ' 3']) == {'x': 0.5, 'y': 1.0, 'all': 2 / 3}

def test_a_classifier_learns_and_says_how_well(go, capsys):
    saved = go(task='classify', dataset='labels', max_iters=60)
    text = capsys.readouterr().out
    assert saved['labels'] == ['calm', 'loud'] and saved['classifier']['weight'].shape == (2, 32)
    assert f'step 0: validation loss {math.log(2):.4f}, accuracy 50.00 %' in text  # it begins by knowing nothing
    assert 'accuracy 100.00 %, mean F1 1.0000' in text

def test_an_encoder_reads_the_whole_text_from_its_first_token(go):
    base('encoder', causal=False)
    assert go(task='classify', dataset='labels', init_from='encoder', max_iters=60)['val_loss'] < 0.1

def test_confusion_by_hand(capsys):
    S.print_confusion(np.array([[3., 1], [2, 4]]), ['ham', 'spam'])
    text = capsys.readouterr().out
    # ham: precision 3/5, recall 3/4, F1 = 2 * 3 / (5 + 4); spam: 4/5, 4/6, 2 * 4 / (5 + 6)
    assert '60.0%     75.0%   0.667' in text and '80.0%     66.7%   0.727' in text and 'accuracy 70.00 %, mean F1 0.6970' in text

def test_going_on_with_another_text(monkeypatch, tmp_path):
    """An author's style: prepare.py cuts the text with the base's tokenizer, and train.py starts from the base."""
    monkeypatch.chdir(tmp_path)
    base('base')
    (tmp_path / 'text.txt').write_text(prose(3000))
    done = spawn('prepare.py', 'dataset=text', 'tokenizer=base', 'input=text.txt', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer, data = load_dataset('data/text')
    assert tokenizer == BYTES
    assert bytes(data['val'][1:9].tolist()) in prose(3000).encode()  # a byte is a token; the first is <|endoftext|>
    done = spawn('train.py', 'init_from=base', 'dataset=text', 'learning_rate=0.005', 'max_iters=40', 'eval_interval=40',
               'device=cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open('out/log.csv', encoding='utf-8') as f:
        losses = [float(row['val_loss']) for row in csv.DictReader(f) if row['val_loss']]
    assert losses[-1] < losses[0] - 0.5

def test_a_tokenizer_that_is_neither_a_kind_nor_a_folder_is_refused(tmp_path):
    (tmp_path / 'text.txt').write_text(prose(100))
    refused(spawn('prepare.py', 'dataset=text', 'input=text.txt', 'tokenizer=nowhere', cwd=tmp_path),
            'tokenizer=nowhere', "a checkpoint's folder", status=2)

def test_show_prints_a_row_and_trains_nothing(go, capsys, tmp_path):
    with pytest.raises(SystemExit, match='no checkpoint'):
        go(show=True)
    text = capsys.readouterr().out
    assert "'<|assistant|>'" in text and "'<|end|>'" in text and not (tmp_path / 'out').exists()

# ---- mistakes ----

def test_long_conversations_are_reported_not_cut(go, capsys):
    write('long', [chat('hi', 'you'), chat('hi', 'x' * 50), chat('hi', 'x' * 100)], [chat('hi', 'you')])
    go(dataset='long', max_iters=1)
    assert 'left out 2 of 3 in data/long/train.jsonl, longer than 48 tokens: lines 2, 3' in capsys.readouterr().out

def test_a_line_that_is_no_example_is_named(go):
    write('bad', [chat('a', 'b'), [1, 2]], [chat('a', 'b')])
    with pytest.raises(SystemExit, match='is damaged'):
        go(dataset='bad')

def test_a_teacher_must_read_the_same_tokens(go):
    base('other', tokenizer=Tokenizer('word', ['<unk>', 'a']), vocab_size=7)
    with pytest.raises(SystemExit, match='another tokenizer'):
        go(teacher='other')

@pytest.mark.parametrize('changes, words', [
    (dict(dataset='nowhere'), ['nowhere', 'prepare.py dataset=nowhere input=FILE.jsonl', 'dataset=instruct']),
    (dict(init_from='nowhere'), ['no checkpoint']),
    (dict(method='lora', lora_on='qkv,query'), ["no matrix 'query'", 'qkv']),
    (dict(out_dir='base'), ['where the base lies']),
    (dict(lora_r=0), ['lora_r=0']), (dict(dropout=1.0), ['dropout=1.0']),
    (dict(dataset='labels'), ['no conversations', 'task=classify']),
    (dict(task='classify'), ['no two labels']), (dict(block_size=4), ['nothing in', 'block_size=4']),
    (dict(freeze_layers=3, method='freeze'), ['freeze_layers=3']),
    (dict(init_from='resume'), ['resume.pt']), (dict(task='classify', dataset='labels', teacher='base'),
                                                ['teacher=base']),
    (dict(init_from='base/ckpt.pt', out_dir='base'), ['where the base lies']),
])
def test_mistakes(go, capsys, changes, words):
    with pytest.raises(SystemExit) as e:
        go(**changes)
    said = capsys.readouterr().err if e.value.code == 2 else str(e.value)
    assert len(said.strip().splitlines()) == 1 and all(word in said for word in words), said

def test_a_clash_with_the_run_that_is_resumed_is_refused(go, capsys):
    go(max_iters=2)
    for changes, words in ((dict(method='lora'), 'method=full'), (dict(dataset='labels'), 'dataset=chats'),
                           (dict(freeze_layers=0), 'freeze_layers=2')):
        with pytest.raises(SystemExit):
            go(init_from='resume', **changes)
        assert words in capsys.readouterr().err
    go(max_iters=2, task='classify', dataset='labels')
    more = [{'text': 'so so', 'label': label} for label in ('calm', 'loud', 'even')]
    write('labels', more, more)
    with pytest.raises(SystemExit, match='other labels apart'):
        go(init_from='resume')

def test_a_mistake_on_the_command_line(go, tmp_path):
    refused(spawn('finetune.py', *[f'{k}={v}' for k, v in TINY.items()], 'method=lores', cwd=tmp_path),
            'did you mean lora', status=2)

"""Fine-tuning: only the assistant is learned from, neighbours in a row do not see each other, and the base stays."""
import math
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import finetune as S
from conftest import byte_tokenizer, chat, distance, log_rows, refused, same, save_untrained, worked, write_dataset
from model import Tokenizer, build_model, load_checkpoint, load_model

BYTES = byte_tokenizer()
SHAPE = dict(n_layer=2, n_head=2, n_embd=32, block_size=48)
TINY = dict(dataset='chats', init_from='base', out_dir='out', batch_size=4, max_iters=20, eval_interval=10,
            eval_iters=2, warmup_iters=20, log_interval=5, num_samples=4, device='cpu', dtype='float32')

def arguments(**changes):
    first = {'device': 'cpu', 'out_dir': 'out'} if changes.get('init_from') == 'resume' else TINY
    return [f'{name}={value}' for name, value in {**first, **changes}.items()]

@pytest.fixture
def go(run):
    """go(max_iters=5, …): fine-tune a tiny base on tiny data in this process; what it printed, and its globals."""
    save_untrained('base', noise=0.05, **SHAPE)
    write_dataset('data/chats', [chat(f'say {c}{d}', c) for c in 'abcdefgh' for d in 'abcd'],
                  [chat(f'say {c}z', c) for c in 'abcd'])
    labelled = [{'text': c + d + e, 'label': label} for c in 'abcdefg' for d in 'stuv'
                for e, label in (('', 'calm'), ('!', 'loud'))]
    write_dataset('data/labels', labelled, [{**line, 'text': 'q' + line['text']} for line in labelled[:8]])
    return lambda **changes: worked(run('finetune.py', *arguments(**changes)))

@pytest.fixture
def weights(go):  # returns what out_dir/resume.pt holds then
    return lambda **changes: load_checkpoint(f"{go(**changes).globals['out_dir']}/resume.pt")

def test_only_the_assistant_is_learned_from():
    t = BYTES
    user, assistant = t.special['<|user|>'], t.special['<|assistant|>']
    said = (('system', 'S'), ('user', 'u'), ('assistant', 'xy'), ('user', 'v'), ('assistant', 'z'))
    messages = [{'role': role, 'content': content} for role, content in said]
    ids, targets = S.chat_targets(t, messages)
    assert ids == [user, *b'S\n\nu', t.end, assistant, *b'xy', t.end, user, *b'v', t.end, assistant, *b'z']
    assert targets == [-100] * 6 + [*b'xy', t.end] + [-100] * 4 + [*b'z', t.end]  # <|assistant|> is followed by x, …
    # truncate=True: the beginning goes, the last answer stays
    assert S.chat_targets(t, messages, 3) == ([t.end, assistant, *b'z'], [-100, *b'z', t.end])

def test_labels_sit_on_the_last_token_or_in_an_encoder_on_the_first():
    example, labels = {'text': 'hi', 'label': 'b'}, ['a', 'b']
    assert S.label_targets(BYTES, example, labels, True) == ([BYTES.eot, *b'hi'], [-100, -100, 1])
    assert S.label_targets(BYTES, example, labels, False)[1] == [1, -100, -100]
    assert S.label_targets(BYTES, example, labels, False, 2) == ([*b'hi'], [1, -100])

def test_packing_by_hand():
    a, b, c = ([1, 2, 3], [-100, 2, 3]), ([4] * 6, [4] * 6), ([5, 6, 7, 8], [-100, -100, -100, 9])
    assert S.pack([a, b, c], 8).tolist() == [
        [[1, 2, 3, 5, 6, 7, 8, 0], [-100, 2, 3, -100, -100, -100, 9, -100],
         [0, 1, 2, 0, 1, 2, 3, 0], [1, 1, 1, 2, 2, 2, 2, 0]],
        [[4] * 6 + [0] * 2, [4] * 6 + [-100] * 2, [0, 1, 2, 3, 4, 5, 0, 0], [1] * 6 + [0] * 2]]

@pytest.mark.parametrize('position', ['rotary', 'learned'])
def test_a_conversation_in_a_packed_row_reads_as_it_would_alone(tmp_path, position):
    model = save_untrained(tmp_path, noise=0.05, position=position, **SHAPE).eval()
    examples = [S.chat_targets(BYTES, chat(q, a)['messages'])
                for q, a in (('hello', 'you'), ('1+1', '2'), ('what', 'ever'), ('x', 'y'))]
    rows = S.pack(examples, SHAPE['block_size']).long()
    h, targets = S.hidden_at_targets(model, rows)
    assert len(rows) == 1 and len(h) == len(targets) == 64  # filled up: oneDNN keeps memory for each shape
    together = F.cross_entropy(model.logits(h), targets, reduction='sum')
    alone = sum(F.cross_entropy(model(torch.tensor([ids]))[0], torch.tensor(targets), reduction='sum')
                for ids, targets in examples)
    assert abs(together - alone) < 1e-4

def test_an_epoch_reads_every_row_once_and_the_next_one_in_another_order(go):
    names = go(max_iters=1, batch_size=3, block_size=12, num_samples=0).globals
    first, second = names['order'][:32].tolist(), names['order'][32:64].tolist()
    assert len(names['data']['train']) == 32  # one conversation in each
    assert sorted(first) == sorted(second) == list(range(32)) and first != second

def test_lora_by_hand():
    """W x + alpha/r B A x; peft gives the same [32, 26] for this case (LoraConfig(r=2, lora_alpha=6))."""
    linear = torch.nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[1., 2, 3], [4, 5, 6]])
    layer, x = S.LoRA(linear, r=2, alpha=6), torch.tensor([1., 2, 4])
    assert layer(x).tolist() == [17, 38]  # B is zero: nothing has changed yet
    layer.A.data, layer.B.data = torch.tensor([[1., 0, -1], [2, 1, 0]]), torch.tensor([[1., 2], [0, -1]])
    assert layer(x).tolist() == [32, 26]  # A x = [-3, 4], B A x = [5, -4], and [17, 38] + 6/2 [5, -4]

def test_merged_lora_computes_what_unmerged_does(tmp_path):
    model = save_untrained(tmp_path, noise=0.05, bias=True, mlp='gelu', **SHAPE).eval()
    idx = torch.randint(256, (2, 40))
    plain, names = model(idx), set(model.state_dict())
    S.apply_method(model, 'lora', lora_r=4, lora_alpha=5.0)
    assert torch.equal(model(idx), plain)  # at step 0 nothing has changed
    for name, p in model.named_parameters():
        assert p.requires_grad == (name.endswith(('.A', '.B')) or 'norm' in name)
        if name.endswith(('.A', '.B')):
            p.data += 0.1 * torch.randn_like(p)
    other = build_model(model.config).eval()
    other.load_state_dict(S.merged_state_dict(model))
    assert set(S.merged_state_dict(model)) == names
    assert (model(idx) - plain).abs().max() > 0.01 and (model(idx) - other(idx)).abs().max() < 1e-5

def test_each_method_moves_what_it_says_and_never_the_base(go):
    before = load_checkpoint('base')['model']
    frozen_parts = {'full': (), 'freeze': ('wte', 'blocks.0'), 'lora': (), 'adapter': ('attention', 'mlp')}
    for method, frozen in frozen_parts.items():
        names = go(method=method, max_iters=10, out_dir=f'out-{method}').globals
        after = load_checkpoint(f'out-{method}/resume.pt')['model']
        for name, p in before.items():
            still = any(part in name for part in frozen) and not (method == 'adapter' and 'norm' in name)
            assert torch.equal(p, after[name]) == still, (method, name)
        thin = method in ('lora', 'adapter')
        assert [type(o).__name__ for o in names['optimizers']] == (['AdamW'] if thin else ['AdamW', 'Muon'])
        if thin:  # of the tables, the chat's own tokens move, and no other row
            for name in ('wte.weight', 'head.weight'):
                moved = (before[name] != after[name]).any(-1).nonzero().flatten().tolist()
                assert moved and set(moved) <= set(BYTES.special.values()), (method, name, moved)
            moving = sum(p.numel() for p in names['model'].parameters() if p.requires_grad)
            assert names['n_trainable'] == moving - 2 * 32 * (len(before['wte.weight']) - len(BYTES.special))
    assert all(torch.equal(p, load_checkpoint('base')['model'][name]) for name, p in before.items())

def test_an_adapter_changes_nothing_at_first(go):
    model, idx = go(method='adapter', max_iters=0, dropout=0).globals['model'], torch.randint(256, (2, 20))
    assert model.config.adapter_size and torch.equal(model(idx), load_model('base')[0](idx))

def test_distillation_by_hand():
    student, teacher = torch.randn(2, 1, 5, dtype=torch.float64)
    p, q = (np.exp(z / 3) / np.exp(z / 3).sum() for z in (teacher[0].numpy(), student[0].numpy()))
    loss = S.distillation_loss(student, teacher, torch.tensor([2]), 3.0)  # T² KL(teacher || student)
    assert loss.item() == pytest.approx(9 * (p * np.log(p / q)).sum(), rel=1e-4)
    assert S.distillation_loss(student, student, torch.tensor([2])).item() == 0  # nothing to learn from oneself

def test_a_student_comes_nearer_to_its_teacher(go):
    save_untrained('big', seed=5, **{**SHAPE, 'n_embd': 64})
    idx = torch.randint(97, 105, (4, 30))
    def kl(path):
        p, q = load_model('big')[0](idx).log_softmax(-1), load_model(path)[0](idx).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean().item()
    go(teacher='big', distill_weight=1.0, learning_rate=0.01)
    assert kl('out/resume.pt') < 0.9 * kl('base/ckpt.pt')

@pytest.mark.parametrize('how', [dict(dropout=0.2), dict(method='lora', dtype='float16'), dict(method='adapter'),
                                 dict(method='freeze', gradient_accumulation_steps=2),
                                 dict(task='classify', dataset='labels', dtype='bfloat16')])
def test_stopping_and_going_on_changes_nothing(weights, how):
    """In the warmup, the learning rate does not depend on max_iters."""
    straight = weights(out_dir='straight', **how)
    weights(out_dir='parts', max_iters=10, **how)
    parts = weights(out_dir='parts', init_from='resume', max_iters=20)
    assert parts['step'] == 20 and same(straight, parts) and parts['scaler'] == straight['scaler']
    assert parts['before'] == straight['before']
    assert all(torch.equal(p, parts['trained'][name]) for name, p in straight['trained'].items())
    assert [row['step'] for row in log_rows('val_loss', 'parts')] == ['0', '10', '20']  # none twice

def test_a_run_that_gets_worse_keeps_its_best(weights):
    best = weights(max_iters=10)['best']
    after = weights(init_from='resume', max_iters=20, learning_rate=20.0, muon_learning_rate=20.0)
    assert float(log_rows('val_loss')[-1]['val_loss']) > 1.01 * best
    assert load_checkpoint('out')['val_loss'] == after['best'] == best

def test_accumulation_is_one_large_batch(weights):
    """Although its parts hold different numbers of targets: the sum of all losses is divided by the number of all."""
    write_dataset('data/uneven', [chat('?', 'x' * (1 + n % 20)) for n in range(60)], [chat('?', 'x')])
    how = dict(dataset='uneven', optimizer='adamw', max_iters=10, dropout=0)
    assert distance(weights(batch_size=8, **how), weights(batch_size=2, gradient_accumulation_steps=4, **how)) < 1e-4

def test_it_learns_to_answer(go):
    done = go(max_iters=120, warmup_iters=2, eval_interval=40, learning_rate=0.01)
    for words in ('say az -> a', 'exact match on 4 held-out questions', '% full', 'parameters move: 100.00 %', 'epochs',
                  'next:  python sample.py out_dir=out'):
        assert words in done.stdout, words
    assert load_checkpoint('out')['val_loss'] < 0.5

def test_answers_are_scored_to_the_letter(tmp_path):
    model, examples = save_untrained(tmp_path, noise=0.05, **SHAPE), [chat('say az', answer) for answer in 'abc']
    texts, percentage = S.exact_match(model, BYTES, examples)
    _, right = S.exact_match(model, BYTES, [chat('say az', texts[0] + ' '), *examples[1:]])
    assert len(texts) == 3 and percentage == 0 and right == pytest.approx(100 / 3)  # blanks around it do not count

@pytest.mark.parametrize('causal', [True, False])
def test_a_classifier_learns_and_says_what_it_is(go, causal):
    save_untrained('base', causal=causal, **SHAPE)
    done = go(task='classify', dataset='labels', max_iters=60, warmup_iters=2)
    assert f'step 0: validation loss {math.log(2):.4f}, the best so far | accuracy 0.5' in done.stdout
    assert 'accuracy 100.00%; always' in done.stdout and "python sample.py out_dir=out prompt='…'" in done.stdout
    model, tokenizer, saved = load_model('out')  # a plain model, and its head beside it
    assert saved['task'] == 'classify' and saved['labels'] == ['calm', 'loud']
    ids, _ = S.label_targets(tokenizer, {'text': 'hey!', 'label': 'calm'}, saved['labels'], causal)
    h = model.hidden(torch.tensor([ids]))[0, -1 if causal else 0]
    assert (saved['classifier']['weight'] @ h + saved['classifier']['bias']).argmax() == 1
    for method, peak_lr in (('full', 0.005), ('lora', 0.001)):  # thin matrices learn labels at a lower rate
        assert go(task='classify', dataset='labels', max_iters=0, method=method).globals['peak_lr'] == peak_lr

def test_confusion_by_hand(capsys):
    S.print_confusion(np.array([[3, 1], [2, 4]]), ['ham', 'spam'])  # 6 of 10 are spam
    assert "[[3 1]\n [2 4]]\naccuracy 70.00%; always saying 'spam' is right in 60.00%" in capsys.readouterr().out

def test_long_examples_are_left_out_or_cut(go):
    write_dataset('data/long', [chat('hi', 'you'), chat('hi', 'x' * 50), chat('hi', 'x' * 100)], [chat('hi', 'you')])
    assert 'left out 2 longer than 48 tokens: try truncate=True' in go(dataset='long', max_iters=0).stdout
    assert 'train: 3 examples' in go(dataset='long', max_iters=0, truncate=True).stdout

MISTAKES = [
    (dict(dataset='nowhere'), ['nowhere', 'prepare.py dataset=nowhere']),
    (dict(dataset='labels'), ['does not fit', 'labels classify']), (dict(lora_r=0), ['lora_r=0']),
    (dict(init_from='resume'), ['resume.pt', 'python finetune.py out_dir=out']),
    (dict(init_from='encoder'), ['causal=False']), (dict(block_size=4), ['nothing in', 'truncate=True']),
    (dict(teacher='words'), ['teacher=words', 'tokenizer']),
    (dict(method='lora', optimizer='muon'), ['optimizer=muon'])]

def test_mistakes_end_in_one_line(go, run):
    save_untrained('words', Tokenizer('word', ['<unk>', 'a']), **SHAPE)
    save_untrained('encoder', causal=False, **SHAPE)
    for changes, words in MISTAKES:
        refused(run('finetune.py', *arguments(**changes)), *words)
    go(max_iters=2)
    for change, words in (('method=lora', 'method=full'), ('dataset=labels', 'dataset=chats'),
                          ('optimizer=adamw', 'optimizer=muon')):
        refused(run('finetune.py', 'init_from=resume', 'out_dir=out', change), words, status=2)

"""
What must be true of a language model, whatever its weights. Each test is a small lesson; almost none needs training.
"""
import json, math, os, random
import pytest
import torch
from torch.nn import functional as F
import model as M
from conftest import byte_tokenizer, save_untrained
from model import GPTConfig, KVCache, Tokenizer, build_model, filter_logits, generate

GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)
SHAPES = {'modern': {}, 'gpt2': GPT2, 'grouped queries': dict(n_kv_head=2),
          'wide heads': dict(head_dim=32), 'lstm': dict(model_type='lstm'), 'mlp': dict(model_type='mlp'),
          'bigram': dict(model_type='bigram')}
GPTS = [name for name, shape in SHAPES.items() if 'model_type' not in shape]

def make(shape='modern', seed=0, **more):
    """A small model with large random weights, so that a mistake anywhere shows."""
    torch.manual_seed(seed)
    small = dict(vocab_size=101, block_size=32, n_layer=2, n_head=4, n_embd=64)
    model = build_model(GPTConfig(**{**small, **SHAPES[shape], **more}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()

def written(model, prompts, *args, **how):
    """The tokens that generate() yields: a list per step."""
    return [tokens for tokens, _ in generate(model, prompts, *args, **how)]

# ---- attention ----

def test_attention_by_hand_is_torchs():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 10, 16).unbind(0)
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    y, weights = M.attention_by_hand(q, k, v, mask)
    assert torch.allclose(y, F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 10)) and (weights.triu(1) == 0).all()

def test_attention_of_two_tokens_worked_out():
    q = k = torch.tensor([[1.0], [2.0]]).view(1, 1, 2, 1)
    v = torch.tensor([[10.0], [20.0]]).view(1, 1, 2, 1)
    y, weights = M.attention_by_hand(q, k, v, torch.tensor([[True, False], [True, True]]))
    a = math.exp(2) / (math.exp(2) + math.exp(4))  # scores of the second token: 2*1 and 2*2, over sqrt(1)
    assert torch.allclose(weights[0, 0], torch.tensor([[1, 0], [a, 1 - a]]), atol=1e-6)
    assert torch.allclose(y.flatten(), torch.tensor([10, a * 10 + (1 - a) * 20]), atol=1e-5)

@pytest.mark.parametrize('shape', GPTS)
def test_both_ways_to_compute_attention_agree(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    with torch.no_grad():
        fused = model(idx)
        for block in model.blocks:
            block.attention.keep_weights = True  # now it is written out
        assert torch.allclose(fused, model(idx), atol=1e-3)
    weights = model.blocks[0].attention.weights
    assert weights.shape == (2, 4, 30, 30) and torch.allclose(weights.sum(-1), torch.ones(2, 4, 30), atol=1e-5)

@pytest.mark.parametrize('shape', SHAPES)
def test_the_future_does_not_leak(shape):
    model, idx = make(shape), torch.randint(101, (2, 20))
    changed = idx.clone()
    changed[:, 12:] = torch.randint(101, (2, 8))
    with torch.no_grad():
        assert torch.equal(model(idx)[:, :12], model(changed)[:, :12])

def test_an_encoder_sees_both_ways():
    model, idx = make(causal=False), torch.randint(101, (1, 20))
    changed = idx.clone()
    changed[:, -1] = (idx[:, -1] + 1) % 101
    with torch.no_grad():
        assert (model(idx)[:, 0] - model(changed)[:, 0]).abs().max() > 1e-3

def test_rotary_attention_depends_on_distance_alone():
    config = GPTConfig(n_head=1, n_embd=16, block_size=64)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    def score(t, s):
        turned = [M.rotate(x, *M.rotary(torch.tensor([at]), config)) for x, at in ((q, t), (k, s))]
        return (turned[0] * turned[1]).sum().item()
    assert abs(score(5, 2) - score(45, 42)) < 1e-4 and abs(score(5, 2) - score(5, 3)) > 1e-3

def test_rotary_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)  # pairs (1, 3) and (2, 4): angles 1 and 1/100
    cos, sin = M.rotary(torch.tensor([1]), GPTConfig(n_head=1, n_embd=4))
    c, s, c2, s2 = math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)
    expected = torch.tensor([c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2])
    assert torch.allclose(M.rotate(x, cos, sin).flatten(), expected, atol=1e-6)

@pytest.mark.parametrize('shape', GPTS)
def test_bfloat16_is_close(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    with torch.no_grad():
        exact = model(idx).log_softmax(-1)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            rounded = model(idx).float().log_softmax(-1)
    assert F.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99

def test_more_than_block_size_tokens_are_refused():
    with pytest.raises(ValueError, match='33 tokens are more than block_size=32'):
        make()(torch.zeros(1, 33, dtype=torch.long))

# ---- the loss ----

@pytest.mark.parametrize('shape', SHAPES)
def test_the_loss_is_the_sum_of_minus_log_p(shape):
    model, idx, targets = make(shape), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100  # these do not count
    with torch.no_grad():
        logits = model(idx)
        assert logits.shape == (2, 20, 101)
        log_p = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        assert torch.allclose(model(idx, targets), -log_p[targets >= 0].sum(), atol=1e-3)

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'lstm', 'bigram'])
def test_the_chunked_loss_is_the_same_loss_with_the_same_gradients(monkeypatch, shape):
    model, idx, targets = make(shape), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100
    monkeypatch.setitem(M.MAX_CHUNK_ELEMENTS, 'cpu', 7 * 101)  # 7 rows at a time
    found = {}
    for model.chunked_loss in (False, True):
        model.zero_grad()
        loss = model(idx, targets)
        (loss / 35).backward()
        with torch.no_grad():
            assert model(idx, targets).item() == pytest.approx(loss.item(), rel=1e-6)
        found[model.chunked_loss] = [loss.detach()] + [p.grad for p in model.parameters()]
    for plain, chunked in zip(found[False], found[True]):
        assert torch.allclose(plain, chunked, rtol=1e-4, atol=1e-6)

def test_activation_checkpointing_changes_memory_and_nothing_else():
    found = []
    for on in (False, True):
        model = make(dropout=0.1).train()
        model.activation_checkpointing = on
        torch.manual_seed(1)
        loss = model(torch.arange(40).view(2, 20), torch.arange(40).view(2, 20))
        loss.backward()
        found.append([loss.detach()] + [p.grad for p in model.parameters()])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*found))

@pytest.mark.parametrize('shape', SHAPES)
def test_an_untrained_model_knows_nothing(shape):
    torch.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=101, block_size=32, n_layer=2, n_head=4, n_embd=64, **SHAPES[shape]))
    idx = torch.randint(101, (4, 32))
    loss = model(idx[:, :-1], idx[:, 1:]).item() / (4 * 31)
    assert abs(loss - math.log(101)) < 0.2  # as good as guessing: ln(vocab_size)

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'grouped queries', 'lstm'])
def test_a_model_overfits_one_batch(shape):
    """The first thing to try when a model does not learn: it must learn one batch by heart."""
    torch.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=101, block_size=16, n_layer=2, n_head=4, n_embd=64, **SHAPES[shape]))
    optimizers = M.configure_optimizers(model, 'muon', learning_rate=0.01)
    idx = torch.randint(101, (4, 17))
    for step in range(80):
        loss = model(idx[:, :-1], idx[:, 1:]) / 64
        loss.backward()
        M.update(model, optimizers, 1.0, 1.0)
    assert loss.item() < 0.1

# ---- the ladder ----

def test_counting_bigrams_is_the_best_a_bigram_model_can_do():
    torch.manual_seed(0)
    ids = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 2000, replacement=True)
    model = build_model(GPTConfig(model_type='bigram', vocab_size=3))
    pairs = torch.bincount(3 * ids[:-1] + ids[1:], minlength=9).view(3, 3)
    with torch.no_grad():
        model.table.weight.copy_(pairs.log())  # softmax turns them into frequencies
        counted = model(ids[None, :-1], ids[None, 1:]).item() / 1999
        model.table.weight.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        loss = model(ids[None, :-1], ids[None, 1:]) / 1999
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(loss.item() - counted) < 1e-4

def test_the_neural_mlp_sees_eight_tokens_and_no_more():
    model, idx = make('mlp'), torch.randint(101, (1, 20))
    changed = idx.clone()
    changed[:, 4] = (idx[:, 4] + 1) % 101
    with torch.no_grad():
        differs = (model(idx) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero().flatten().tolist() == list(range(4, 12))

# ---- generating ----

@pytest.mark.parametrize('shape', SHAPES)
def test_the_quick_generate_writes_what_the_plain_one_writes(shape):
    """At temperature 0, as long as the context is not full; and each prompt as if it were alone."""
    model = make(shape)
    prompts = [[1, 2, 3], [4] * 12, [7]]
    quick = written(model, prompts, 20, temperature=0)
    for row, prompt in enumerate(prompts):
        plain = model.generate(torch.tensor([prompt]), 20, temperature=0)[0, len(prompt):]
        assert plain.tolist() == [tokens[row] for tokens in quick]

@pytest.mark.parametrize('shape', GPTS)
def test_the_cache_holds_what_a_full_forward_computes(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    cache = KVCache(model.config, 30)
    with torch.no_grad():
        parts = [model.hidden(part, cache=cache) for part in idx.split([11, 1, 1, 7, 10], dim=1)]
        assert torch.allclose(torch.cat(parts, 1), model.hidden(idx), atol=1e-4)

@pytest.mark.parametrize('shape', GPTS)
def test_padding_in_front_of_a_shorter_text_changes_nothing(shape):
    model, idx = make(shape), torch.randint(101, (1, 10))
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), idx), dim=1)
    cache = KVCache(model.config, 20, padding=torch.tensor([4]))
    with torch.no_grad():
        parts = [model.hidden(part, cache=cache) for part in padded.split([9, 3, 2], dim=1)]
        assert torch.allclose(torch.cat(parts, 1)[:, 4:], model.hidden(idx), atol=1e-4)

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'lstm'])
def test_a_full_context_keeps_its_last_half(shape):
    model = make(shape)
    tokens = [step[0] for step in written(model, [[1, 2, 3]], 60, temperature=0)]
    text = [1, 2, 3] + tokens[:30]  # 33 tokens: one more than block_size
    again = model.generate(torch.tensor([text[-16:]]), 10, temperature=0)[0, 16:]
    assert tokens[30:40] == again.tolist()

def test_the_same_seed_writes_the_same_text():
    model = make()
    first = written(model, [[1], [2]], 20, seed=7)
    assert first == written(model, [[1], [2]], 20, seed=7) != written(model, [[1], [2]], 20, seed=8)

def test_filters_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    def left(**how):
        return filter_logits(logits, **how).softmax(-1).tolist()
    assert left() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert left(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert left(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0])      # 0.5 is not enough, 0.8 is
    assert left(top_p=0.4) == pytest.approx([1, 0, 0, 0])              # the best always stays
    assert left(top_p=0.96) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert left(min_p=0.29) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])  # at least 0.29 * 0.5
    assert left(temperature=0.5) == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365])
    assert left(top_k=3, top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0])

def test_sampling_follows_the_probabilities():
    model = build_model(GPTConfig(model_type='bigram', vocab_size=3))
    with torch.no_grad():
        model.table.weight.copy_(torch.tensor([0.5, 0.3, 0.2]).log().repeat(3, 1))
    tokens = torch.tensor(written(model, [[0]] * 500, 20)).flatten()
    assert (torch.bincount(tokens) / 10000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)

def test_padding_of_the_vocabulary_is_never_sampled():
    model = make()  # 101 tokens, 128 rows
    with torch.no_grad():
        model.head.weight[101:] = 100.0
    assert max(tokens[0] for tokens in written(model, [[1]], 200, temperature=5.0)) < 101

def test_a_row_ends_after_a_stop_token_and_the_others_go_on():
    model = make()
    free = written(model, [[1], [2]], 12, temperature=0)
    stop = free[3][0]
    n = [tokens[0] for tokens in free].index(stop) + 1
    stopped = written(model, [[1], [2]], 12, temperature=0, stop_tokens=[stop])
    assert [tokens[0] for tokens in stopped[:n]] == [tokens[0] for tokens in free[:n]]
    assert all(tokens[0] is None for tokens in stopped[n:])

@pytest.mark.parametrize('how', [dict(temperature=-1), dict(temperature=1e-4), dict(temperature=math.nan), dict(top_p=0),
                                 dict(top_p=1.5), dict(min_p=-0.1), dict(top_k=-1), dict(prompts=[[1], []])])
def test_impossible_settings_are_refused(how):
    with pytest.raises(ValueError):
        next(generate(make(), **{'prompts': [[1, 2, 3]], 'max_new_tokens': 5, **how}))

@pytest.mark.parametrize('temperature', [0, 1])
def test_weights_that_are_not_finite_end_in_one_line(temperature):
    model = make()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(SystemExit, match='logits are not finite'):
        written(model, [[1, 2, 3]], 5, temperature=temperature)

def test_complete_gives_whole_texts():
    tokenizer = byte_tokenizer()
    model = build_model(GPTConfig(model_type='bigram', vocab_size=tokenizer.vocab_size))
    for this, following in zip(b'ab', [ord('b'), tokenizer.end]):
        model.table.weight.data[this, following] = 9.0
    assert M.complete(model, tokenizer, [[ord('a')], [ord('b')]], 5, temperature=0) == ['b', '']

# ---- the tokenizer ----

def fuzz(seed):
    random.seed(seed)
    alphabets = ['abc XYZ', '\n\t  ', 'éßñ', 'Жщ', '中文字', '🙂👩‍👩‍👧', "'s 'll 12,345", '<|end|><|user|>',
                 '\u200b\ufeff\u0301', '\x00\x1f\x7f']
    return ''.join(random.choice(random.choice(alphabets)) for _ in range(random.randrange(60)))

@pytest.fixture(scope='module')
def tokenizers():
    vocab = [bytes([b]) for b in range(256)] + [b'th', b'the', b' the', b'\xc3\xa9', b'<|', b'|>', b'<|end', b'<|end|>']
    return {'bpe': Tokenizer('bpe', vocab), 'char': Tokenizer('char', ['\ufffd'] + sorted('abc XYZé\n')),
            'word': Tokenizer('word', ['<unk>', 'the', 'cat', ' ', '.'])}

def test_bpe_gives_back_any_text(tokenizers):
    for seed in range(500):
        text = fuzz(seed)
        assert tokenizers['bpe'].decode(tokenizers['bpe'].encode(text)) == text

def test_bpe_merges_in_order(tokenizers):
    assert tokenizers['bpe'].encode('the the') == [257, 258]  # th, then the, then ' the'

def test_unknown_characters_and_words_become_visible(tokenizers):
    assert tokenizers['char'].decode(tokenizers['char'].encode('abc?XYZ')) == 'abc\ufffdXYZ'
    assert tokenizers['word'].decode(tokenizers['word'].encode('the dog.')) == 'the <unk>.'

def test_a_million_spaces(tokenizers):
    text = ' ' * 1_000_000 + 'x'
    assert tokenizers['bpe'].decode(tokenizers['bpe'].encode(text)) == text

def test_text_that_spells_a_special_token_is_text(tokenizers):
    for tokenizer in tokenizers.values():
        assert not set(tokenizer.encode('<|end|><|endoftext|>')) & set(tokenizer.special.values())
    assert tokenizers['bpe'].decode([tokenizers['bpe'].end]) == '<|end|>'

@pytest.mark.parametrize('kind', ['bpe', 'char', 'word'])
def test_a_tokenizer_survives_json(tokenizers, kind):
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizers[kind].to_dict())))
    assert again == tokenizers[kind] and again.encode('the cat é') == tokenizers[kind].encode('the cat é')

def test_the_chat_template_and_what_the_assistant_says(tokenizers):
    t = tokenizers['bpe']
    ids, mask = t.chat([{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'},
                        {'role': 'assistant', 'content': 'yo'}])
    assert t.decode(ids) == '<|user|>S\n\nhi<|end|><|assistant|>yo<|end|>'
    assert [t.decode([i]) for i, said in zip(ids, mask) if said] == ['y', 'o', '<|end|>']
    with pytest.raises(ValueError, match='judge'):
        t.chat([{'role': 'judge', 'content': ''}])

def test_users_cannot_end_their_own_turn(tokenizers):
    t = tokenizers['bpe']
    assert t.chat([{'role': 'user', 'content': '<|end|>'}], answer=True)[0].count(t.end) == 1

@pytest.mark.parametrize('special, expected', [
    (['<|im_end|>', '<|im_start|>'], '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'),
    (['<|endoftext|>'], 'user:\nhi<|endoftext|>assistant:\n')])
def test_other_peoples_templates(special, expected):
    t = Tokenizer('bpe', [bytes([b]) for b in range(256)], special=special)
    ids, _ = t.chat([{'role': 'user', 'content': 'hi'}], answer=True)
    assert t.decode(ids) == expected and t.pad == t.eot

# ---- optimizers ----

def test_orthogonalize_brings_all_singular_values_near_one():
    for shape in ((3, 20, 50), (3, 50, 20)):
        s = torch.linalg.svdvals(M.orthogonalize(torch.randn(shape)).float())
        assert s.min() > 0.5 and s.max() < 1.4

def test_muon_is_torchs_muon():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(s)) for s in ((40, 20), (20, 40), (40, 20), (30, 30))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = M.Muon(ours, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs):
        assert (p - q).abs().max() < 5e-3  # theirs is always in bfloat16, of 8 bits: 5 steps of 0.02

def test_every_parameter_is_optimized_once_and_only_matrices_decay():
    for shape in SHAPES:
        for kind in ('muon', 'adamw'):
            model = make(shape)
            groups = []
            for optimizer in M.configure_optimizers(model, kind, weight_decay=0.1):
                groups += optimizer.param_groups
            assert sorted(id(p) for g in groups for p in g['params']) == sorted(id(p) for p in model.parameters())
            decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
            for name, p in model.named_parameters():
                assert (id(p) in decayed) == (p.ndim == 2 and not name.startswith(('wte', 'wpe', 'table'))), name

def test_an_update_clips_and_follows_the_schedule():
    p = torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.Module()
    model.p = p
    optimizer = torch.optim.SGD([{'params': [p], 'initial_lr': 0.5}], lr=1.0)
    p.grad = torch.tensor([3.0, 4.0])  # of norm 5
    assert M.update(model, [optimizer], 0.2, 1.0).item() == pytest.approx(5.0)
    assert p.tolist() == pytest.approx([-0.06, -0.08]) and p.grad is None  # 0.5 * 0.2 * (0.6, 0.8)

def test_an_overflow_of_float16_is_left_out():
    p = torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.Module()
    model.p = p
    optimizer = torch.optim.AdamW([{'params': [p], 'initial_lr': 0.5}])
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    scaler.scale((p * torch.tensor([1.0, math.inf])).sum()).backward()
    M.update(model, [optimizer], 1.0, 1.0, scaler)
    assert p.tolist() == [0.0, 0.0] and scaler.get_scale() == 512.0  # the next loss is multiplied by less

def test_schedules_by_hand():
    expected = {'linear': [1, 0.55, 0.1], 'cosine': [1, 0.55, 0.1], 'constant': [1, 1, 1], 'wsd': [1, 1, 0.1]}
    for schedule, values in expected.items():
        assert [M.lr_schedule(step, schedule, 0, 100, 0.1) for step in (0, 50, 100)] == pytest.approx(values)
    assert [M.lr_schedule(step, 'linear', 4, 100) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])

# ---- checkpoints ----

def test_gpt2_has_124_million_parameters():
    model = M.build_on_meta(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, **GPT2))
    padding = (50304 - 50257) * 768
    assert sum(p.numel() for p in model.parameters()) - padding == 124_439_808

@pytest.mark.parametrize('shape', SHAPES)
def test_a_checkpoint_gives_back_the_same_model(tmp_path, shape):
    model = save_untrained(str(tmp_path), **SHAPES[shape])
    again, tokenizer, saved = M.load_model(str(tmp_path))
    assert torch.equal(again(torch.arange(20)[None]), model(torch.arange(20)[None]))
    assert tokenizer == byte_tokenizer() and saved['step'] == 0

@pytest.mark.parametrize('wrong, words', [
    (dict(n_embd=65), 'n_embd=65 does not divide into n_head=4 heads of an even width'),
    (dict(n_kv_head=3), 'n_kv_head=3')])
def test_impossible_shapes_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**dict(n_head=4, n_embd=64), **wrong})

def test_damaged_checkpoints_end_in_one_line(tmp_path):
    save_untrained(str(tmp_path))
    path = tmp_path / 'ckpt.pt'
    whole = path.read_bytes()
    for damage in (b'', whole[:100], whole[:len(whole) // 2], whole[:-10], b'x' * 1000):
        path.write_bytes(damage)
        with pytest.raises(SystemExit, match='damaged'):
            M.load_model(str(tmp_path))

@pytest.mark.parametrize('change, words', [
    ({'format': 'ninefiles-1'}, 'format is ninefiles-1'), ({'config': {'n_layer': 'two'}}, 'damaged'),
    ({'model': {}}, 'Missing key'), ({'model': [1]}, 'damaged'), ({'model': 'wrong shapes'}, 'size mismatch'),
    ({'tokenizer': {'kind': 'x'}}, "KeyError 'vocab'"),
    ({'tokenizer': {'kind': 'bpe', 'vocab': ['€'] * 300, 'pattern': ''}}, 'UnicodeEncodeError')])
def test_checkpoints_that_do_not_fit_together_end_in_one_line(tmp_path, change, words):
    save_untrained(str(tmp_path))
    saved = torch.load(tmp_path / 'ckpt.pt', weights_only=True)
    if change == {'model': 'wrong shapes'}:
        change = {'model': {name: value[..., :1].clone() for name, value in saved['model'].items()}}
    torch.save({**saved, **change}, tmp_path / 'ckpt.pt')
    with pytest.raises(SystemExit, match=words) as e:
        M.load_model(str(tmp_path))
    assert '\n' not in str(e.value)

def test_a_checkpoint_that_is_missing_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder, maker in (('out', 'train.py'), ('out-sft', 'finetune.py'), ('out-clip', 'vlm.py')):
        with pytest.raises(SystemExit, match=f'no {folder}/ckpt.pt: make it with  python {maker} out_dir={folder}$'):
            M.load_checkpoint(folder)

def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'sprung'),)
    torch.save({'format': M.FORMAT, 'model': Trap()}, tmp_path / 'ckpt.pt')
    with pytest.raises(SystemExit, match='damaged or not ours'):
        M.load_model(str(tmp_path))
    assert not (tmp_path / 'sprung').exists()

def test_a_broken_model_never_replaces_a_good_one(tmp_path):
    model = save_untrained(str(tmp_path))
    before = (tmp_path / 'ckpt.pt').read_bytes()
    model.norm.weight.data[0] = math.inf
    with pytest.raises(SystemExit, match='norm.weight is not finite'):
        M.save_checkpoint(str(tmp_path / 'ckpt.pt'), model.state_dict(), model.config, byte_tokenizer())
    assert (tmp_path / 'ckpt.pt').read_bytes() == before

def test_a_full_disk_costs_nothing_that_was_there(tmp_path):
    """RLIMIT_FSIZE makes every write past 100 kB fail, as a full disk does."""
    resource = pytest.importorskip('resource')
    path = tmp_path / 'ckpt.pt'
    config, tokenizer = GPTConfig(), byte_tokenizer()
    M.save_checkpoint(str(path), {'good': torch.ones(10)}, config, tokenizer)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SystemExit, match='cannot write'):
            M.save_checkpoint(str(path), {'large': torch.ones(1_000_000)}, config, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

# ---- a run ----

def test_a_log_remembers_the_best_and_sets_an_earlier_run_aside(tmp_path, capsys):
    how = dict(out_dir=str(tmp_path / 'out'), step=0, max_iters=4, log_interval=2, per_step=10)
    log = M.Log(**how)
    assert [log.evaluation(0, 3.0), log.evaluation(2, 2.0), log.evaluation(4, 2.5)] == [True, True, False]
    for step in (1, 2):
        log.training(step, torch.tensor(float(step)), torch.tensor(0.5), 0.1)
    log.close()
    assert log.best == 2.0 and 'loss 1.5000 | lr 1.00e-01' in capsys.readouterr().out
    M.Log(**how).close()
    assert 'is now in' in capsys.readouterr().out
    assert len((tmp_path / 'out/previous-1/log.csv').read_text().splitlines()) == 5

def test_a_resumed_log_drops_the_rows_after_its_last_save(tmp_path):
    how = dict(out_dir=str(tmp_path), max_iters=9, log_interval=1, per_step=10)
    log = M.Log(step=0, **how)
    for step in (1, 2, 3):
        log.training(step, torch.tensor(1.0), torch.tensor(0.5), 0.1)
    log.close()
    log = M.Log(step=2, **how)
    log.training(3, torch.tensor(1.0), torch.tensor(0.5), 0.1)
    log.close()
    rows = (tmp_path / 'log.csv').read_text().splitlines()[1:]
    assert [row.split(',')[0] for row in rows] == ['1', '2', '3']

def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    log = M.Log(str(tmp_path), step=0, max_iters=9, log_interval=2, per_step=10)
    log.training(1, torch.tensor(math.nan), torch.tensor(1.0), 0.1)
    with pytest.raises(SystemExit, match='the loss is nan at step 2: try a lower learning rate'):
        log.training(2, torch.tensor(1.0), torch.tensor(1.0), 0.1)
    log.close()

def test_a_second_run_does_not_write_into_the_same_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(M.time, 'sleep', lambda seconds: None)  # it would wait ten seconds
    lock = M.lock_folder(str(tmp_path))
    with pytest.raises(SystemExit, match='another run is writing to'):
        M.lock_folder(str(tmp_path))
    lock.close()
    M.lock_folder(str(tmp_path)).close()

def test_a_device_that_is_not_there_is_a_mistake_in_the_command(capsys):
    for device in ['evil'] + ['cuda'] * (not torch.cuda.is_available()):
        with pytest.raises(SystemExit) as e:
            M.resolve_device(device)
        assert e.value.code == 2 and f'device={device} is not on this machine' in capsys.readouterr().err

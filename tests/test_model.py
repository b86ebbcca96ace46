"""What must be true of a language model, whatever its weights. Each test is a small lesson; few need training."""
import json, math, os, random
import pytest
import torch
import model as M
from conftest import byte_tokenizer, save_untrained
from model import GPTConfig, KVCache, Tokenizer, build_model, generate

GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)
SHAPES = {'modern': {}, 'gpt2': GPT2, 'grouped queries': dict(n_kv_head=2), 'wide heads': dict(head_dim=32),
          'lstm': dict(model_type='lstm'), 'mlp': dict(model_type='mlp'), 'bigram': dict(model_type='bigram')}
GPTS = ['modern', 'gpt2', 'grouped queries', 'wide heads']

def make(shape='modern', std=0.3, **more):
    """A small model with large random weights, so that a mistake anywhere shows; std=None: as it begins."""
    torch.manual_seed(0)
    small = dict(vocab_size=101, block_size=32, n_layer=2, n_head=4, n_embd=64)
    model = build_model(GPTConfig(**{**small, **SHAPES[shape], **more})).eval()
    for p in model.parameters():
        if p.ndim == 2 and std:
            torch.nn.init.normal_(p, std=std)
    return model

def written(model, prompts, *args, **how):
    """The tokens that generate() yields: a list per step."""
    return [tokens for tokens, _ in generate(model, prompts, *args, **how)]

@pytest.fixture(autouse=True)
def no_gradients():
    """Few tests need gradients: those switch them on."""
    with torch.no_grad():
        yield

# ---- attention ----

def test_attention_of_two_tokens_worked_out():
    q = k = torch.tensor([[1.0], [2.0]]).view(1, 1, 2, 1)
    v = torch.tensor([[10.0], [20.0]]).view(1, 1, 2, 1)
    y, weights = M.attention_by_hand(q, k, v, torch.tensor([[True, False], [True, True]]))
    a = math.exp(2) / (math.exp(2) + math.exp(4))  # scores of the second token: 2*1 and 2*2, over sqrt(1)
    assert torch.allclose(weights[0, 0], torch.tensor([[1, 0], [a, 1 - a]]), atol=1e-6)
    assert torch.allclose(y.flatten(), torch.tensor([10, a * 10 + (1 - a) * 20]), atol=1e-5)

@pytest.mark.parametrize('shape', GPTS)
def test_attention_by_hand_is_torchs(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    fused = model(idx)
    for block in model.blocks:
        block.attention.keep_weights = True  # now it is computed by hand
    assert torch.allclose(fused, model(idx), atol=1e-3)
    assert torch.allclose(model.blocks[0].attention.weights.sum(-1), torch.ones(2, 4, 30), atol=1e-5)

@pytest.mark.parametrize('shape', SHAPES)
def test_no_token_sees_the_future(shape):
    model, idx = make(shape), torch.randint(101, (2, 20))
    changed = idx.clone()
    changed[:, 12:] = torch.randint(101, (2, 8))
    assert torch.equal(model(idx)[:, :12], model(changed)[:, :12])
    assert not torch.equal(model(idx)[:, 12:], model(changed)[:, 12:])

def test_an_encoder_sees_both_ways():
    model, idx = make(causal=False), torch.randint(101, (1, 20))
    changed = idx.clone()
    changed[:, -1] = (idx[:, -1] + 1) % 101
    assert (model(idx)[:, 0] - model(changed)[:, 0]).abs().max() > 1e-3

def test_rotary_positions_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)  # pairs (1, 3) and (2, 4): angles 1 and 1/100
    cos, sin = M.rotary(torch.tensor([1]), GPTConfig(n_head=1, n_embd=4))
    c, s, c2, s2 = math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)
    expected = torch.tensor([c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2])
    assert torch.allclose(M.rotate(x, cos, sin).flatten(), expected, atol=1e-6)

def test_rotary_attention_depends_on_distance_alone():
    config = GPTConfig(n_head=1, n_embd=16, block_size=64)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    def score(t, s):
        turned = [M.rotate(x, *M.rotary(torch.tensor([position]), config)) for x, position in ((q, t), (k, s))]
        return (turned[0] * turned[1]).sum()
    assert abs(score(5, 2) - score(45, 42)) < 1e-4 and abs(score(5, 2) - score(5, 3)) > 1e-3

def test_more_than_block_size_tokens_are_refused():
    with pytest.raises(AssertionError, match='33 tokens are more than block_size=32'):
        make()(torch.randint(101, (1, 33)))

# ---- the loss ----

@pytest.mark.parametrize('shape', SHAPES)
def test_the_loss_is_the_sum_of_minus_log_p(shape):
    model, idx, targets = make(shape), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100  # these do not count
    log_p = model(idx).log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(model(idx, targets), -log_p[targets >= 0].sum(), atol=1e-3)

@pytest.mark.parametrize('shape', SHAPES)
def test_an_untrained_model_is_as_good_as_guessing(shape):
    idx = torch.randint(101, (4, 33))
    loss = make(shape, std=None)(idx[:, :-1], idx[:, 1:]) / (4 * 32)
    assert loss.item() == pytest.approx(math.log(101), abs=0.2)

def loss_and_gradients(model, idx, targets):
    """[the loss, the gradient of each parameter per token]"""
    model.zero_grad()
    with torch.enable_grad():
        loss = model(idx, targets)
        (loss / idx.numel()).backward()
    return [loss.detach()] + [p.grad for p in model.parameters()]

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'lstm', 'bigram'])
def test_the_chunked_loss_is_the_same_loss_with_the_same_gradients(monkeypatch, shape):
    model, idx, targets = make(shape), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100
    monkeypatch.setattr(M.chunked_cross_entropy, '__defaults__', (7 * 101,))  # 7 rows at a time
    plain = loss_and_gradients(model, idx, targets)
    model.chunked_loss = True
    assert model(idx, targets).item() == pytest.approx(plain[0].item(), rel=1e-6)  # without gradients, too
    for a, b in zip(plain, loss_and_gradients(model, idx, targets)):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    if shape == 'modern':  # torch.compile takes the plain form: fullgraph=True allows no break in it
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert loss_and_gradients(compiled, idx, targets)[0].item() == pytest.approx(plain[0].item(), rel=1e-6)

def test_activation_checkpointing_changes_memory_and_nothing_else():
    model, idx = make(dropout=0.1).train(), torch.randint(101, (2, 20))
    torch.manual_seed(1)
    plain = loss_and_gradients(model, idx, idx)
    model.activation_checkpointing = True
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(plain, loss_and_gradients(model, idx, idx)))

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'grouped queries', 'lstm'])
def test_a_model_overfits_one_batch(shape):
    """The first thing to try when a model does not learn: it must learn one batch by heart."""
    model, idx = make(shape, std=None).train(), torch.randint(101, (4, 17))
    optimizers = M.configure_optimizers(model, 'muon', learning_rate=0.01)
    for step in range(80):
        with torch.enable_grad():
            loss = model(idx[:, :-1], idx[:, 1:]) / 64
            loss.backward()
        M.update(model, optimizers, 1.0, 1.0)
    assert loss.item() < 0.1

# ---- the ladder ----

def test_counting_pairs_is_the_best_a_bigram_model_can_do():
    ids = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 2000, replacement=True)
    model = make('bigram', vocab_size=3)
    counts = torch.bincount(3 * ids[:-1] + ids[1:], minlength=9).view(3, 3)
    model.wte.weight.copy_(counts.log())  # softmax turns them into frequencies
    gradient = loss_and_gradients(model, ids[None, :-1], ids[None, 1:])[1]
    assert gradient.abs().max() < 1e-6  # nothing is left to learn

def test_the_neural_mlp_sees_eight_tokens_and_no_more():
    model, idx = make('mlp'), torch.randint(101, (1, 20))
    changed = idx.clone()
    changed[:, 4] = (idx[:, 4] + 1) % 101
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
    cache = KVCache(30)
    parts = [model.hidden(part, cache=cache) for part in idx.split([11, 1, 1, 7, 10], dim=1)]
    assert torch.allclose(torch.cat(parts, 1), model.hidden(idx), atol=1e-4)

@pytest.mark.parametrize('shape', ['modern', 'gpt2', 'lstm'])
def test_a_full_context_keeps_its_last_half(shape):
    model = make(shape)
    text = [1, 2, 3] + [tokens[0] for tokens in written(model, [[1, 2, 3]], 60, temperature=0)]
    last_half = torch.tensor([text[17:33]])  # 33 tokens are one more than block_size
    assert model.generate(last_half, 10, temperature=0)[0].tolist() == text[17:43]

def test_the_same_seed_writes_the_same_text():
    first, again, other = (written(make(), [[1], [2]], 20, seed=seed) for seed in (7, 7, 8))
    assert first == again != other

def test_temperature_top_k_top_p_and_min_p_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    def left(**how):
        return M.filter_logits(logits, **how).softmax(-1).tolist()
    assert left() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert left(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert left(top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0])      # 0.5 is not enough, 0.8 is
    assert left(top_p=0.4) == pytest.approx([1, 0, 0, 0])              # the best always stays
    assert left(top_p=0.96) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert left(min_p=0.29) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])  # at least 0.29 * 0.5
    assert left(temperature=0.5) == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365])

def test_sampling_follows_the_probabilities():
    model = make('bigram', vocab_size=3)
    model.wte.weight.copy_(torch.tensor([0.5, 0.3, 0.2]).log().repeat(3, 1))
    tokens = torch.tensor(written(model, [[0]] * 500, 20)).flatten()
    assert (torch.bincount(tokens) / 10000).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.02)

def test_padding_of_the_vocabulary_is_never_sampled():
    model = make()  # 101 tokens, 128 rows
    model.head.weight[101:] = 100.0
    assert max(max(tokens) for tokens in written(model, [[1]] * 50, 10, temperature=5.0)) < 101

def test_a_row_ends_after_a_stop_token_and_the_others_go_on():
    model = make()
    first, second = zip(*written(model, [[1], [2]], 12, temperature=0))
    stop = first[3]
    n = first.index(stop) + 1
    stopped_first, stopped_second = zip(*written(model, [[1], [2]], 12, temperature=0, stop_tokens=[stop]))
    assert stopped_first == first[:n] + (None,) * (12 - n) and stopped_second == second

def test_complete_gives_texts_up_to_the_first_special_token():
    tokenizer = byte_tokenizer()
    model = make('bigram', vocab_size=tokenizer.vocab_size)
    model.wte.weight[ord('a'), ord('b')] = 9.0
    model.wte.weight[ord('b'), tokenizer.end] = 9.0
    assert M.complete(model, tokenizer, [[ord('a')], [ord('b')]], 5, temperature=0) == ['b', '']

@pytest.mark.parametrize('how', [dict(temperature=1e-4), dict(temperature=math.nan), dict(top_p=0), dict(min_p=-0.1),
                                 dict(top_k=-1)])
def test_impossible_settings_are_refused(how):
    with pytest.raises(ValueError):
        next(generate(make(), [[1, 2, 3]], 5, **how))

def test_weights_that_are_not_finite_end_in_one_line():
    model = make()
    model.norm.weight[0] = math.nan
    with pytest.raises(SystemExit, match='logits are not finite'):
        written(model, [[1, 2, 3]], 5, temperature=0)

# ---- the tokenizer ----

@pytest.fixture(scope='module')
def tokenizers():
    vocab = [bytes([b]) for b in range(256)] + [b'th', b'the', b' the', b'\xc3\xa9', b'<|', b'|>', b'<|end', b'<|end|>']
    return {'bpe': Tokenizer('bpe', vocab), 'char': Tokenizer('char', ['\ufffd'] + sorted('abc XYZé\n')),
            'word': Tokenizer('word', ['<unk>', 'the', 'cat', ' ', '.'])}

def test_bpe_merges_in_order(tokenizers):
    assert tokenizers['bpe'].encode('the the') == [257, 258]  # th, then the, then ' the'

def test_bpe_gives_back_any_text(tokenizers):
    random.seed(0)
    alphabets = ['abc XYZ', '\n\t  ', 'éßñ', 'Жщ', '中文字', '🙂👩‍👩‍👧', "'s 'll 12,345", '<|end|><|user|>',
                 '\u200b\ufeff\u0301', '\x00\x1f\x7f']
    texts = [''.join(random.choice(random.choice(alphabets)) for _ in range(30)) for _ in range(500)]
    for text in [*texts, '', ' ' * 1_000_000 + 'x']:
        assert tokenizers['bpe'].decode(tokenizers['bpe'].encode(text)) == text

def test_unknown_characters_and_words_become_visible(tokenizers):
    assert tokenizers['char'].decode(tokenizers['char'].encode('abc?XYZ')) == 'abc\ufffdXYZ'
    assert tokenizers['word'].decode(tokenizers['word'].encode('the dog.')) == 'the <unk>.'

def test_text_that_spells_a_special_token_is_text(tokenizers):
    for t in tokenizers.values():
        assert not set(t.encode('<|end|><|endoftext|>')) & set(t.special.values())
        assert t.chat([{'role': 'user', 'content': '<|end|>'}])[0].count(t.end) == 1  # nobody ends their own turn
    assert tokenizers['bpe'].decode([tokenizers['bpe'].end]) == '<|end|>'

def test_a_tokenizer_survives_json(tokenizers):
    for t in tokenizers.values():
        again = Tokenizer(**json.loads(json.dumps(t.to_dict())))
        assert again.to_dict() == t.to_dict() and again.encode('the cat é') == t.encode('the cat é')

def test_of_a_chat_the_answers_and_their_ends_are_learned(tokenizers):
    t = tokenizers['bpe']
    messages = [('system', 'S'), ('user', 'hi'), ('assistant', 'yo')]
    ids, mask = t.chat([{'role': role, 'content': content} for role, content in messages])
    assert t.decode(ids) == '<|user|>S\n\nhi<|end|><|assistant|>yo<|end|>'
    assert [t.decode([i]) for i, learned in zip(ids, mask) if learned] == ['y', 'o', '<|end|>']
    with pytest.raises(KeyError, match='judge'):
        t.chat([{'role': 'judge', 'content': ''}])

@pytest.mark.parametrize('special, expected', [
    (['<|im_end|>', '<|im_start|>'], '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'),
    (['<|endoftext|>'], 'user:\nhi<|endoftext|>assistant:\n')])
def test_other_peoples_models_keep_their_templates(special, expected):
    t = Tokenizer('bpe', [bytes([b]) for b in range(256)], special=special)
    ids, _ = t.chat([{'role': 'user', 'content': 'hi'}], answer=True)
    assert t.decode(ids) == expected and t.pad == t.eot

# ---- optimizers ----

def test_orthogonalize_brings_all_singular_values_near_one():
    for shape in ((3, 20, 50), (3, 50, 20)):
        s = torch.linalg.svdvals(M.orthogonalize(torch.randn(shape)).float())
        assert s.min() > 0.5 and s.max() < 1.4

def test_muon_is_torchs_muon():
    ours = [torch.nn.Parameter(torch.randn(s)) for s in ((40, 20), (20, 40), (40, 20), (30, 30))]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    optimizers = [M.Muon(ours, lr=0.02, weight_decay=0.1),
                  torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)]
    for _ in range(5):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs):
        assert (p - q).abs().max() < 5e-3  # theirs is always in bfloat16, of 8 bits: 5 steps of 0.02

@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
@pytest.mark.parametrize('shape', SHAPES)
def test_every_parameter_is_optimized_once_and_only_matrices_decay(shape, optimizer):
    model = make(shape)
    groups = []
    for one in M.configure_optimizers(model, optimizer, weight_decay=0.1):
        groups += one.param_groups
    assert sorted(id(p) for g in groups for p in g['params']) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and not name.startswith(('wte', 'wpe'))), name

def one_parameter(optimizer):
    """A model of two zeros, and an optimizer of this class for it."""
    model = torch.nn.Module()
    model.p = torch.nn.Parameter(torch.zeros(2))
    return model, [optimizer([model.p], lr=0.5)]

def test_an_update_clips_and_follows_the_schedule():
    model, optimizers = one_parameter(torch.optim.SGD)
    model.p.grad = torch.tensor([3.0, 4.0])  # of norm 5
    assert M.update(model, optimizers, lr_fraction=0.2, grad_clip=1.0).item() == pytest.approx(5.0)
    assert model.p.tolist() == pytest.approx([-0.06, -0.08]) and model.p.grad is None  # 0.5 * 0.2 * (0.6, 0.8)

def test_a_step_whose_float16_gradients_overflow_is_left_out():
    model, optimizers = one_parameter(torch.optim.AdamW)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    with torch.enable_grad():
        scaler.scale((model.p * torch.tensor([1.0, math.inf])).sum()).backward()
    M.update(model, optimizers, 1.0, 1.0, scaler)
    assert model.p.tolist() == [0.0, 0.0] and scaler.get_scale() == 512.0  # the next loss is multiplied by less

@pytest.mark.parametrize('schedule, expected', [('linear', [1, 0.55, 0.19, 0.1]), ('cosine', [1, 0.55, 0.122, 0.1])])
def test_schedules_by_hand(schedule, expected):
    warmup = [M.lr_schedule(step, schedule, 4, 100) for step in range(4)]
    assert warmup == pytest.approx([0.2, 0.4, 0.6, 0.8])
    falling = [M.lr_schedule(step, schedule, 0, 100, floor=0.1) for step in (0, 50, 90, 100)]
    assert falling == pytest.approx(expected, abs=1e-4) and M.lr_schedule(150, schedule, 0, 100) == 0  # never below

# ---- checkpoints ----

def test_gpt2_has_124_million_parameters():
    model = M.build_on_meta(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, **GPT2))
    padding = (50304 - 50257) * 768
    assert sum(p.numel() for p in model.parameters()) - padding == 124_439_808

@pytest.mark.parametrize('shape', SHAPES)
def test_a_checkpoint_gives_back_the_same_model(tmp_path, shape):
    model, idx = save_untrained(str(tmp_path), **{'tie_weights': True, **SHAPES[shape]}), torch.randint(101, (1, 20))
    again, tokenizer, saved = M.load_model(str(tmp_path))
    assert torch.equal(again(idx), model(idx)) and tokenizer.to_dict() == byte_tokenizer().to_dict() and saved['step'] == 0
    assert len(list(again.parameters())) == len(list(model.parameters()))  # what was tied is tied again
    half = {name: p.bfloat16() for name, p in model.state_dict().items()}  # as many models on the hub are
    M.save_checkpoint(str(tmp_path / 'ckpt.pt'), half, model.config, tokenizer)
    assert {p.dtype for p in M.load_model(str(tmp_path))[0].parameters()} == {torch.float32}

def test_a_missing_checkpoint_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder, maker in (('out', 'train.py'), ('out-sft', 'finetune.py'), ('out-align', 'align.py')):
        with pytest.raises(SystemExit, match=f'no {folder}/ckpt.pt: make it with  python {maker} out_dir={folder}$'):
            M.load_checkpoint(folder)

def test_a_damaged_checkpoint_ends_in_one_line(tmp_path):
    save_untrained(str(tmp_path))
    path = tmp_path / 'ckpt.pt'
    complete = path.read_bytes()
    for damage in (b'', complete[:len(complete) // 2], complete[:-10], b'x' * 1000):
        path.write_bytes(damage)
        with pytest.raises(SystemExit, match='damaged'):
            M.load_model(str(tmp_path))

@pytest.mark.parametrize('part, wrong, words', [
    ('format', 'ninefiles-1', 'format is ninefiles-1'), ('script', 'vlm.py', 'no other script'),
    ('config', {'n_layer': 'two'}, 'TypeError'), ('config', {'n_layer': 3}, 'Missing key'),
    ('tokenizer', {'kind': 'x'}, "TypeError")])
def test_a_checkpoint_whose_parts_do_not_fit_ends_in_one_line(tmp_path, part, wrong, words):
    save_untrained(str(tmp_path))
    saved = torch.load(tmp_path / 'ckpt.pt', weights_only=True)
    torch.save({**saved, part: wrong}, tmp_path / 'ckpt.pt')
    with pytest.raises(SystemExit, match=words) as e:
        M.load_model(str(tmp_path))
    assert '\n' not in str(e.value)

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
    model.norm.weight[0] = math.inf
    with pytest.raises(SystemExit, match='norm.weight is not finite'):
        M.save_checkpoint(str(tmp_path / 'ckpt.pt'), model.state_dict(), model.config, byte_tokenizer())
    assert (tmp_path / 'ckpt.pt').read_bytes() == before

# ---- a run ----

def test_a_resumed_log_goes_on_with_the_means_since_its_last_row(tmp_path):
    for first, losses in ((0, [0.0, 2.0, 0.0, 2.0]), (4, [3.0, 4.0])):
        log = M.Log(str(tmp_path), first, max_iters=9, log_interval=2, per_step=10)
        for step, loss in enumerate(losses, start=first + 1):
            log.training(step, torch.tensor(loss), torch.tensor(0.5), 0.1)
        log.close()
    rows = (tmp_path / 'log.csv').read_text().splitlines()
    assert [row.split(',')[:2] for row in rows] == [['step', 'train_loss'], ['2', '1'], ['4', '1'], ['6', '3.5']]

def test_a_second_run_does_not_write_into_the_same_folder(monkeypatch, tmp_path):
    acquire = M.FileLock.acquire
    monkeypatch.setattr(M.FileLock, 'acquire', lambda lock, timeout: acquire(lock, timeout=0.1))  # instead of 10 seconds
    first = M.Log(str(tmp_path), 0, 10, 1, per_step=1)
    with pytest.raises(SystemExit, match='another run is writing to'):
        M.Log(str(tmp_path), 0, 10, 1, per_step=1)
    first.close()
    M.Log(str(tmp_path), 0, 10, 1, per_step=1).close()

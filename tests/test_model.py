"""
What must be true of a language model, whatever its weights. Each test is a small lesson; none needs training.
"""
import json, math, os, random, sys
import pytest
import torch
from torch.nn import functional as F
import model as M
from model import GPTConfig, KVCache, Tokenizer, build_model, draw, filter_logits, generate

GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)
SHAPES = {'modern': {}, 'gpt2': GPT2, 'grouped queries': dict(n_kv_head=2), 'sinusoidal': dict(position='sinusoidal'),
          'wide heads': dict(head_dim=32), 'lstm': dict(model_type='lstm'), 'mlp': dict(model_type='mlp'),
          'bigram': dict(model_type='bigram')}
GPTS = [name for name, how in SHAPES.items() if 'model_type' not in how]

def make(shape='modern', seed=0, **more):
    """A small model with large random weights, so that a mistake anywhere shows."""
    torch.manual_seed(seed)
    model = build_model(GPTConfig(**{**dict(vocab_size=101, block_size=32, n_layer=2, n_head=4, n_embd=64),
                                     **SHAPES[shape], **more}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()

# ---- tokenizer ----

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

def test_unknown_characters_and_words_become_visible(tokenizers):
    assert tokenizers['char'].decode(tokenizers['char'].encode('abc?XYZ')) == 'abc\ufffdXYZ'
    assert tokenizers['word'].decode(tokenizers['word'].encode('the dog.')) == 'the <unk>.'

def test_a_million_spaces(tokenizers):
    text = ' ' * 1_000_000 + 'x'
    assert tokenizers['bpe'].decode(tokenizers['bpe'].encode(text)) == text

def test_bpe_merges_in_order(tokenizers):
    ids = tokenizers['bpe'].encode('the the')  # th, then the, then ' the'
    assert ids == [257, 258]

def test_text_that_spells_a_special_token_is_text(tokenizers):
    for tokenizer in tokenizers.values():
        assert not set(tokenizer.encode('<|end|><|endoftext|>')) & set(tokenizer.special.values())
    assert tokenizers['bpe'].decode([tokenizers['bpe'].end]) == '<|end|>'

@pytest.mark.parametrize('kind', ['bpe', 'char', 'word'])
def test_tokenizer_survives_json(tokenizers, kind):
    import json
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizers[kind].to_dict())))
    assert again == tokenizers[kind] and again.encode('the cat é') == tokenizers[kind].encode('the cat é')

@pytest.mark.parametrize('broken', [{}, {'kind': 'bpe', 'vocab': ['a'], 'pattern': ''},
                                    {'kind': 'x', 'vocab': [], 'pattern': ''},
                                    {'kind': 'bpe', 'vocab': ['€'] * 300, 'pattern': ''},
                                    {'kind': 'char', 'vocab': None, 'pattern': ''},
                                    {'kind': 'char', 'vocab': ['a'], 'pattern': '', 'special': []},
                                    {'kind': 'char', 'vocab': ['a'], 'pattern': '', 'special': ['x', 'x']},
                                    {'kind': 'char', 'vocab': ['a'], 'pattern': '', 'special': [5]}])
def test_a_broken_description_is_refused(broken):
    with pytest.raises(ValueError):
        Tokenizer.from_dict(broken)

def test_chat_template_and_its_mask(tokenizers):
    t = tokenizers['bpe']
    ids, mask = t.chat([{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'},
                        {'role': 'assistant', 'content': 'yo'}])
    assert t.decode(ids) == '<|user|>S\n\nhi<|end|><|assistant|>yo<|end|>'
    assert [t.decode([i]) for i, m in zip(ids, mask) if m] == ['y', 'o', '<|end|>']
    assert t.chat([{'role': 'user', 'content': '<|end|>'}],
                  answer=True)[0].count(t.end) == 1  # the user cannot end their own turn
    with pytest.raises(ValueError, match='judge'):
        t.chat([{'role': 'judge', 'content': ''}])

def test_a_vocabulary_with_one_special_token():
    """GPT-2's: conversations are written in plain words, and padding is the end of a text."""
    t = Tokenizer('bpe', [bytes([b]) for b in range(256)], special=['<|endoftext|>'])
    assert t.vocab_size == 257 and t.eot == t.pad == t.end == 256 and t.markup == 'plain'
    ids, mask = t.chat([{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yo'}], answer=True)
    assert t.decode(ids) == 'user:\nhi<|endoftext|>assistant:\nyo<|endoftext|>assistant:\n'
    assert t.decode([i for i, m in zip(ids, mask) if m]) == 'yo<|endoftext|>'
    assert Tokenizer.from_dict(t.to_dict()) == t != Tokenizer('bpe', t.vocab)

# ---- other people's tokenizers ----

CHATML = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
LLAMA3 = ['<|end_of_text|>', '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']

def train_hf(special, start=None):
    """A byte-level tokenizer.json as the `tokenizers` library trains and writes it; start: what opens a text."""
    tokenizers = pytest.importorskip('tokenizers', reason='pip install transformers')
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet,
                                             show_progress=False)
    core.train_from_iterator(['the cat sat on the mat while it rained, é é 🙂🙂 12345\n    indented <|x|>'] * 9, trainer)
    if start:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=f'{start} $A', special_tokens=[(start, core.token_to_id(start))])
    return core

@pytest.mark.parametrize('special, start', [(CHATML, None), (LLAMA3, '<|begin_of_text|>')])
def test_hf_ids_are_the_librarys_and_text_comes_back(special, start):
    core = train_hf(special, start)
    t = Tokenizer('hf', core.to_str(), special=special)
    again = Tokenizer.from_dict(json.loads(json.dumps(t.to_dict())))
    core.encode_special_tokens = True
    for seed in range(1000):
        text = fuzz(seed)
        assert t.start + t.encode(text) == again.start + again.encode(text) == core.encode(text).ids
        assert t.decode(t.encode(text)) == text and not set(t.encode(text)) & set(t.special.values())
        assert b''.join(map(t.token_bytes, t.encode(text))) == text.encode()
    assert again == t and t.vocab_size == core.get_vocab_size() and t.decode([t.eot]) == special[0]
    assert t.token_bytes(10**6) == b'' and t.encode('\ud83d') == t.encode('?')

@pytest.mark.parametrize('special, start, expected', [
    (CHATML, None, '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
                   'yo<|im_end|>\n<|im_start|>assistant\n'),
    (LLAMA3, '<|begin_of_text|>',
     '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user'
     '<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>'
     '<|start_header_id|>assistant<|end_header_id|>\n\n'),
    (['</s>'], None, 'system:\nS</s>user:\nhi</s>assistant:\nyo</s>assistant:\n')])
def test_each_tokenizer_gets_its_own_chat_markup(special, start, expected):
    t = Tokenizer('hf', train_hf(special, start).to_str(), special=special)
    ids, mask = t.chat([{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'},
                        {'role': 'assistant', 'content': 'yo'}], answer=True)
    assert t.decode(ids) == expected and len(mask) == len(ids)
    assert t.decode([i for i, m in zip(ids, mask) if m]) in ('yo<|im_end|>', 'yo<|eot_id|>', 'yo</s>')
    assert ids.count(t.end) == 3
    assert t.chat([{'role': 'user', 'content': t.closing}])[0].count(t.end) == 1  # a user cannot end their own turn

def test_a_sentencepiece_vocabulary():
    """As Llama 2 and TinyLlama have it: '▁' is a space, and bytes have names."""
    tokenizers = pytest.importorskip('tokenizers', reason='pip install transformers')
    vocab = {'<unk>': 0, '<s>': 1, '</s>': 2, **{f'<0x{b:02X}>': 3 + b for b in range(256)},
             '▁': 259, 't': 260, 'h': 261, 'e': 262, 'th': 263, 'the': 264, '▁the': 265}
    merges = [('t', 'h'), ('th', 'e'), ('▁', 'the')]
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    core.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend('▁'),
                                                       tokenizers.normalizers.Replace(' ', '▁')])
    core.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace('▁', ' '),
                                                 tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
                                                 tokenizers.decoders.Strip(' ', 1, 0)])
    core.add_special_tokens(['<s>', '</s>'])
    t = Tokenizer('hf', core.to_str(), special=['</s>', '<s>'])
    assert t.encode('the the €') == [265, 265, 259, *(3 + b for b in '€'.encode())]
    assert t.decode(t.encode('the the €\n')) == ' the the €\n'  # note: these vocabularies open a text with a space
    assert t.token_bytes(265) == b' the' and t.token_bytes(13) == b'\n' and t.eot == 2

@pytest.mark.parametrize('text', ['', '{}', '[' * 100_000, '{"model": ' * 100_000, None, 5])
def test_a_damaged_tokenizer_json_is_refused(text):
    pytest.importorskip('tokenizers', reason='pip install transformers')
    with pytest.raises(ValueError):
        Tokenizer.from_dict({'kind': 'hf', 'vocab': text, 'pattern': '', 'special': ['</s>']})

def test_an_hf_tokenizer_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)  # so that importing it fails
    with pytest.raises(SystemExit, match='pip install transformers'):
        Tokenizer('hf', '{}', special=['</s>'])

# ---- attention ----

def test_attention_by_hand_is_torchs():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 10, 16).unbind(0)
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    mine, weights = M.attention_by_hand(q, k, v, mask)
    assert torch.allclose(mine, F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 10)) and (weights.triu(1) == 0).all()

def test_attention_of_two_tokens_in_ones_head():
    q = k = torch.tensor([[1.0], [2.0]]).view(1, 1, 2, 1)
    v = torch.tensor([[10.0], [20.0]]).view(1, 1, 2, 1)
    y, w = M.attention_by_hand(q, k, v, torch.tensor([[True, False], [True, True]]))
    a = math.exp(2) / (math.exp(2) + math.exp(4))  # scores of the second token: 2*1 and 2*2, over sqrt(1)
    assert torch.allclose(w[0, 0], torch.tensor([[1, 0], [a, 1 - a]]), atol=1e-6)
    assert torch.allclose(y.flatten(), torch.tensor([10, a * 10 + (1 - a) * 20]), atol=1e-5)

@pytest.mark.parametrize('shape', GPTS)
def test_both_ways_to_attend_give_the_same_scores(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    with torch.no_grad():
        fused = model(idx)
        for block in model.blocks:
            block.attention.collected = []  # now it is written out, to collect its weights
        assert torch.allclose(fused, model(idx), atol=1e-3) and len(model.blocks[0].attention.collected) == 1

@pytest.mark.parametrize('shape', GPTS)
def test_bfloat16_is_close(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    with torch.no_grad():
        exact = model(idx).log_softmax(-1)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            rounded = model(idx).float().log_softmax(-1)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99

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
    cos, sin = M.rotary_table(config)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)
    def score(t, s):
        return (M.rotate(q, cos[t:t + 1], sin[t:t + 1]) * M.rotate(k, cos[s:s + 1], sin[s:s + 1])).sum().item()
    assert abs(score(5, 2) - score(45, 42)) < 1e-4 and abs(score(5, 2) - score(5, 3)) > 1e-3

def test_rotary_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)  # pairs (1, 3) and (2, 4), angles 1 and 1/100 at position 1
    cos, sin = M.rotary_table(GPTConfig(n_head=1, n_embd=4, block_size=2))
    c, s, c2, s2 = math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)
    expected = torch.tensor([c - 3 * s, 2 * c2 - 4 * s2, 3 * c + s, 4 * c2 + 2 * s2])
    assert torch.allclose(M.rotate(x, cos[1:], sin[1:]).flatten(), expected, atol=1e-6)

@pytest.mark.parametrize('shape', GPTS)
def test_attention_maps(shape):
    model, idx = make(shape), torch.randint(101, (2, 9))
    maps = model.attention_maps(idx)
    assert len(maps) == 2 and maps[0].shape == (2, 4, 9, 9) and torch.allclose(maps[0].sum(-1),
                                                                               torch.ones(2, 4, 9), atol=1e-5)

def test_more_than_block_size_tokens_are_refused():
    with pytest.raises(ValueError, match='33 tokens are more than block_size=32'):
        make()(torch.zeros(1, 33, dtype=torch.long))

# ---- loss ----

@pytest.mark.parametrize('shape', SHAPES)
def test_loss_is_the_mean_of_minus_log_p(shape):
    model, idx, targets = make(shape), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100
    with torch.no_grad():
        logits = model(idx)
        assert logits.shape == (2, 20, 101)
        p = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (targets >= 0)
        assert torch.allclose(-model(idx, targets, reduction='none'), p, atol=1e-5)
        assert torch.allclose(model(idx, targets), -p.sum() / 35, atol=1e-5)
        assert torch.allclose(model(idx, targets, reduction='sum'), -p.sum(), atol=1e-3)

@pytest.mark.parametrize('tie_weights', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_a_loss_taken_in_parts_is_the_same_loss(monkeypatch, reduction, tie_weights):
    model, idx, targets = make(tie_weights=tie_weights), torch.randint(101, (2, 20)), torch.randint(101, (2, 20))
    targets[0, :5] = -100
    def loss_and_gradients(most):
        monkeypatch.setattr(M, 'MOST_NUMBERS', most)
        model.zero_grad()
        loss = model(idx, targets, reduction=reduction)
        (loss.sum() / 3).backward()
        with torch.no_grad():
            assert torch.allclose(model(idx, targets, reduction=reduction), loss)
        return [loss.detach()] + [p.grad for p in model.parameters()]
    for whole, parts in zip(loss_and_gradients(2**24), loss_and_gradients(7 * 101)):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-5)

def test_activation_checkpointing_changes_memory_and_nothing_else():
    def loss_and_gradients(on):
        model = make(dropout=0.1).train()
        model.activation_checkpointing = on
        torch.manual_seed(1)
        loss = model(torch.arange(40).view(2, 20), torch.arange(40).view(2, 20))
        loss.backward()
        return [loss.detach()] + [p.grad for p in model.parameters()]
    for plain, checkpointed in zip(loss_and_gradients(False), loss_and_gradients(True)):
        assert torch.equal(plain, checkpointed)

@pytest.mark.parametrize('shape', SHAPES)
def test_an_untrained_model_knows_nothing(shape):
    torch.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=101, block_size=32, n_layer=2, n_head=4, n_embd=64, **SHAPES[shape]))
    idx = torch.randint(101, (4, 32))
    assert abs(model(idx[:, :-1], idx[:, 1:]).item() - math.log(101)) < 0.2  # as good as guessing: ln(vocab_size)

def test_counting_bigrams_is_the_best_a_bigram_model_can_do():
    torch.manual_seed(0)
    ids = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 2000, replacement=True)
    model = build_model(GPTConfig(model_type='bigram', vocab_size=3))
    model.count(ids, smoothing=0.0)
    counted = model(ids[None, :-1], ids[None, 1:]).item()
    with torch.no_grad():
        model.table.weight.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        model(ids[None, :-1], ids[None, 1:]).backward()
        optimizer.step(), optimizer.zero_grad()
    assert abs(model(ids[None, :-1], ids[None, 1:]).item() - counted) < 1e-4

def test_the_neural_mlp_sees_eight_tokens_and_no_more():
    model, idx = make('mlp'), torch.randint(101, (1, 20))
    changed = idx.clone()
    changed[:, 4] = (idx[:, 4] + 1) % 101
    with torch.no_grad():
        differs = (model(idx) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero().flatten().tolist() == list(range(4, 12))

# ---- sampling ----

def written(model, prompts, max_new_tokens, **how):
    """Each step's tokens."""
    return [tokens for tokens, _ in generate(model, prompts, max_new_tokens, **how)]

@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('temperature', [0, 0.8])
def test_cached_equals_uncached_equals_alone(shape, temperature):
    """Past block_size too, and for prompts of different lengths in one batch."""
    model = make(shape)
    prompts = [[1, 2, 3], [4] * 20, [5, 6] * 20, [7]]
    how = dict(max_new_tokens=70, temperature=temperature, seed=3)
    cached = written(model, prompts, **how)
    assert cached == written(model, prompts, use_cache=False, **how)
    for i, prompt in enumerate(prompts):
        alone = written(model, [prompt], **{**how, 'seed': 3 + i})
        assert [tokens[0] for tokens in alone] == [tokens[i] for tokens in cached]

def test_logits_are_what_the_tokens_were_drawn_from():
    model = make()
    prompts = [[1, 2], [3, 4]]
    for tokens, logits in generate(model, prompts, 5, temperature=0):
        assert logits.shape == (2, 101) and logits.dtype == torch.float32
        assert torch.allclose(logits, model(torch.tensor(prompts))[:, -1], atol=1e-4)
        assert logits.argmax(-1).tolist() == tokens
        prompts = [p + [token] for p, token in zip(prompts, tokens)]

@pytest.mark.parametrize('shape', GPTS)
def test_the_cache_holds_what_a_full_forward_computes(shape):
    model, idx = make(shape), torch.randint(101, (2, 30))
    cache = KVCache(model.config, 2)
    with torch.no_grad():
        parts = [model.hidden(part, cache=cache) for part in idx.split([11, 1, 1, 7, 10],
                                                                       dim=1)]  # in pieces of any size
        assert torch.allclose(torch.cat(parts, 1), model.hidden(idx), atol=1e-4)

def test_greedy_takes_the_best():
    model = make()
    [[token]] = written(model, [[1, 2, 3]], 1, temperature=0)
    assert token == model(torch.tensor([[1, 2, 3]]))[0, -1].argmax().item()

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

def test_draw_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(10000, 1)
    u = torch.linspace(0, 1, 10001)[:-1]
    assert torch.bincount(draw(logits, u)).tolist() == pytest.approx([5000, 3000, 2000], abs=2)

def test_draw_never_takes_what_is_out():
    logits = torch.tensor([[float('-inf'), 0.0, 1.0, float('-inf')]]).repeat(3, 1)
    assert draw(logits, torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 2, 2]  # not even at the very ends

def test_padding_of_the_vocabulary_is_never_sampled():
    model = make()  # 101 tokens, 128 rows
    with torch.no_grad():
        model.head.weight[101:] = 100.0
    assert max(t[0] for t in written(model, [[1]], 200, temperature=5.0)) < 101

def test_stop_tokens_and_callers_that_have_enough():
    model = make()
    free = [t[0] for t in written(model, [[1]], 20, seed=5)]
    n = free.index(free[4]) + 1
    stopped = [t[0] for t in written(model, [[1], [2]], 20, seed=5, stop_tokens=[free[4]])]
    assert stopped[:n] == free[:n] and all(t is None for t in stopped[n:])
    model.train()
    steps = generate(model, [[1], [2]], 20)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training  # as it was

@pytest.mark.parametrize('how', [dict(temperature=-1), dict(top_p=0), dict(top_p=1.5), dict(min_p=-0.1), dict(top_k=-1)])
def test_impossible_sampling_settings_are_refused(how):
    with pytest.raises(ValueError):
        next(generate(make(), [[1]], 5, **how))

def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match='at least one token'):
        next(generate(make(), [[1], []], 5))

class Puppet(M.LanguageModel):
    """A 'model' that says given ids one after the other, to see what becomes of them."""
    def __init__(self, vocab_size, ids, start):
        super().__init__(GPTConfig(vocab_size=vocab_size, block_size=512))
        self.ids, self.start, self.p = ids, start, torch.nn.Parameter(torch.zeros(1))

    def hidden(self, idx):
        return F.one_hot(torch.tensor([(self.ids + [0] * 600)[max(t - self.start + 1, 0)] for t in range(idx.size(1))]),
                         self.config.vocab_size).float()[None]

    def logits(self, x):
        return x

@pytest.mark.parametrize('said, stop, shown', [
    ('caf\u00e9 \U0001f642!', [], 'caf\u00e9 \U0001f642!'),      # characters of several tokens appear whole
    ('one\nUser: two', ['\nUser:'], 'one'),
    ('one\nUse it', ['\nUser:'], 'one\nUse it'),                  # held back, then shown after all
    ('ab', ['abc'], 'ab'),
    ('xSTOPy', ['STOP', 'TO'], 'xS'),                             # whichever is complete first
])
def test_stream_text(tokenizers, said, stop, shown):
    t = tokenizers['bpe']
    ids = t.encode(said)
    model = Puppet(t.vocab_size, ids + [t.eot], start=1)
    steps = list(M.stream_text(model, t, ['a'], len(ids) + 1, stop=stop, temperature=0))
    pieces = [piece for _, piece, *_ in steps]
    assert ''.join(pieces) == shown and '\ufffd' not in ''.join(pieces)
    assert [token for *_, token, _, _ in steps] == (ids + [t.eot])[:len(steps)]
    assert [reason for *_, reason in steps] == [None] * (len(steps) - 1) + ['stop']

def test_stream_text_ends_each_row_by_itself():
    """And asks for no more tokens, once a stop string has ended all rows."""
    t = Tokenizer('char', list('\ufffdabc'))
    model = make(vocab_size=t.vocab_size)
    how = dict(max_new_tokens=40, temperature=2.0)
    free = {0: '', 1: ''}
    for row, piece, *_, reason in M.stream_text(model, t, ['a', 'b'], **how):
        free[row] += piece
    texts = {0: '', 1: ''}
    reasons = {}
    for row, piece, *_, reason in M.stream_text(model, t, ['a', 'b'], stop=['c'], **how):
        assert row not in reasons
        texts[row] += piece
        if reason:
            reasons[row] = reason
    assert texts == {row: text.partition('c')[0] for row, text in free.items()}
    assert reasons == {0: 'stop', 1: 'stop'}

def test_the_last_token_tells_that_there_were_enough():
    t = Tokenizer('bpe', [bytes([b]) for b in range(256)])
    model = Puppet(t.vocab_size, t.encode('ab\u20ac'), start=1)
    steps = list(M.stream_text(model, t, ['a'], 4, temperature=0, stop=['bc']))
    assert [piece for _, piece, *_ in steps] == ['a', '', '', 'b\ufffd']  # half a character, and no more comes
    assert [reason for *_, reason in steps] == [None, None, None, 'length']

def test_half_a_character_after_a_stop_string_is_not_shown():
    t = Tokenizer('bpe', [bytes([b]) for b in range(256)] + [b'P\xc3'])
    model = Puppet(t.vocab_size, t.encode('xSTO') + [256], start=1)
    pieces = [piece for _, piece, *_ in M.stream_text(model, t, ['a'], 9, stop=['STOP'], temperature=0)]
    assert ''.join(pieces) == 'x'

# ---- optimizers ----

def test_orthogonalize_brings_all_singular_values_near_one():
    for shape in ((3, 20, 50), (3, 50, 20)):
        s = torch.linalg.svdvals(M.orthogonalize(torch.randn(shape)).float())
        assert s.min() > 0.5 and s.max() < 1.4

def test_muon_is_torchs_muon():
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(s)) for s in ((40, 20), (20, 40), (40, 20), (30, 30))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    a = M.Muon(mine, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(5):
        for p, q in zip(mine, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q in zip(mine, theirs):
        assert (p - q).abs().max() < 5e-3  # theirs is always in bfloat16, of 8 bits: 5 steps of 0.02

def test_every_parameter_is_optimized_once_and_only_matrices_decay():
    for shape in SHAPES:
        for kind in ('muon', 'adamw'):
            model = make(shape)
            optimizers = M.configure_optimizers(model, kind, weight_decay=0.1)
            groups = [g for o in optimizers for g in o.param_groups]
            assert sorted(id(p) for g in groups for p in g['params']) == sorted(id(p) for p in model.parameters())
            decayed = {id(p) for g in groups if g['weight_decay'] for p in g['params']}
            for name, p in model.named_parameters():
                assert (id(p) in decayed) == (p.ndim == 2 and not name.startswith(('wte', 'wpe', 'table'))), name

# ---- checkpoints and arithmetic ----

def test_gpt2_has_124_million_parameters():
    with torch.device('meta'):  # shapes without numbers: no memory, no time
        model = build_model(GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, **GPT2))
    padding = (50304 - 50257) * 768
    assert sum(p.numel() for p in model.parameters()) - padding == 124_439_808

def test_flops_by_hand():
    cost = M.describe(make('gpt2'), batch_size=1)
    C, L, T, V = 64, 2, 32, 128
    assert make('lstm', n_embd=63).config.n_embd == 63  # what has no heads need not divide among them
    norms_and_biases = L * (4 * C + 3 * C + C + 4 * C + C) + 2 * C
    assert cost['flops_per_token'] == 6 * (V * C + L * 12 * C * C + norms_and_biases) + 12 * L * C * T

@pytest.mark.parametrize('wrong, words', [
    (dict(n_embd=65), 'n_embd=65 is not divisible by n_head=4: try n_embd=72'), (dict(n_kv_head=3), 'n_kv_head=3'),
    (dict(n_layer=0), 'n_layer=0'), (dict(dropout=1.0), 'dropout=1.0'), (dict(n_embd=12), 'even'),
    (dict(block_size=-1), 'block_size=-1')])
def test_impossible_shapes_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**dict(n_head=4, n_embd=64), **wrong})

def test_checkpoint_round_trip_and_damage(monkeypatch, tmp_path, tokenizers):
    from dataclasses import asdict
    model = make()
    path = str(tmp_path / 'ckpt.pt')
    M.save_atomically(path, {'format': 'ninefiles-1', 'model': model.state_dict(), 'config': asdict(model.config),
                             'tokenizer': tokenizers['bpe'].to_dict()})
    again, tokenizer, _ = M.load_model(str(tmp_path))
    assert torch.equal(again(torch.arange(20)[None]), model(torch.arange(20)[None])) and tokenizer == tokenizers['bpe']
    whole = open(path, 'rb').read()
    for damage in (b'', whole[:100], whole[:len(whole) // 2], whole[:-10], b'x' * 1000):
        open(path, 'wb').write(damage)
        with pytest.raises(SystemExit, match='damaged'):
            M.load_model(path)
    with pytest.raises(SystemExit, match='no checkpoint'):
        M.load_model(str(tmp_path / 'nowhere'))
    monkeypatch.chdir(tmp_path)
    for folder, maker in (('out', 'train.py out_dir=out$'), ('out-sft', 'finetune.py$'), ('out-clip', 'vlm.py$')):
        with pytest.raises(SystemExit, match=f'train one with  python {maker}'):
            M.load_checkpoint(folder)
    torch.save({'format': 'someone else'}, path)
    with pytest.raises(SystemExit, match='not a checkpoint of ours'):
        M.load_model(path)

def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'sprung'),)
    torch.save({'format': 'ninefiles-1', 'model': Trap()}, tmp_path / 'ckpt.pt')
    with pytest.raises(SystemExit, match='not a checkpoint of ours'):
        M.load_model(str(tmp_path))
    assert not (tmp_path / 'sprung').exists()

def test_a_full_disk_costs_nothing_that_was_there(tmp_path):
    """RLIMIT_FSIZE makes every write past 100 kB fail, as a full disk does."""
    resource = pytest.importorskip('resource')
    path = tmp_path / 'ckpt.pt'
    M.save_atomically(str(path), {'good': torch.ones(10)})
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(SystemExit, match='cannot write'):
            M.save_atomically(str(path), {'large': torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

def test_asking_for_a_device_that_is_not_there():
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match='device=cuda is not on this machine'):
            M.resolve_device('cuda')
    with pytest.raises(SystemExit, match='device=tpu'):
        M.resolve_device('tpu')

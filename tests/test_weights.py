"""
Other people's weights, in and out: the models here are tiny, random, and made by transformers, which says what is right.
Where it is not installed, the tests that need it are skipped, and say so.
"""
import importlib.util, json, math, random
import pytest
import torch
import prepare as P
from conftest import refused, save_untrained
from model import GPTConfig, Tokenizer, generate, load_checkpoint, load_model, rotary

@pytest.fixture
def transformers():
    return pytest.importorskip('transformers', reason='pip install transformers')

@pytest.fixture
def prepare(tmp_path):
    """The two functions behind weights= and export=; returns the out_dir."""
    def call(weights='', export='', out_dir=tmp_path / 'out'):
        if weights:
            P.import_weights(str(weights), str(out_dir))
        else:
            P.export_weights(str(export), str(out_dir))
        return str(out_dir)
    return call

# ---- other people's models, made here ----

SAMPLE = 'the cat sat on the mat while it rained, é é 🙂🙂 12345\n    indented <|x|> you\'ll'
CHATML = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
LLAMA3 = ['<|end_of_text|>', '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
BASE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, vocab_size=420,
            max_position_embeddings=64)
STRETCHED = dict(rope_type='llama3', rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                 original_max_position_embeddings=16)
MODELS = {  # name: (model_type, its config, special tokens, what opens a text)
    'gpt2': ('gpt2', dict(vocab_size=401, n_positions=64, n_embd=24, n_layer=2, n_head=2), ['<|endoftext|>'], None),
    'llama': ('llama', dict(**BASE, num_key_value_heads=2, tie_word_embeddings=True), CHATML, None),
    'llama untied': ('llama', dict(**BASE, num_key_value_heads=1), CHATML, None),
    'llama3': ('llama', dict(**BASE, num_key_value_heads=1, rope_parameters=STRETCHED), LLAMA3, '<|begin_of_text|>'),
    'qwen3': ('qwen3', dict(**BASE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True), CHATML, None)}

def train_tokenizer(special, start):
    """A byte-level tokenizer of 400 tokens and the special ones, as the `tokenizers` library trains it."""
    tokenizers = pytest.importorskip('tokenizers', reason='pip install transformers')
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    text = ' '.join(fuzz(seed) + SAMPLE for seed in range(300))
    core.train_from_iterator([text], trainer)
    core.add_special_tokens(special)
    if start:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=f'{start} $A', special_tokens=[(start, core.token_to_id(start))])
    return core

def fuzz(seed):
    rng = random.Random(seed)
    alphabets = ['abc XYZ', '\n\t  ', 'éßñ', 'Жщ', '中文字', '🙂👩‍👩‍👧', "'s 'll 12,345", '\u200b\ufeff\u0301',
                 '\x00\x1c\x7f\x85\u3000', '<|>']
    return ''.join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(60)))

def make(folder, transformers, name):
    """A model as its makers would save it; returns it and its tokenizer."""
    model_type, config, special, start = MODELS[name]
    core = train_tokenizer(special, start)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **config, bos_token_id=core.token_to_id(start or special[0]),
                                               eos_token_id=core.token_to_id(special[0]))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases are zero and norms one, by default, which would hide mistakes
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[0], bos_token=start or special[0])
    tokenizer.save_pretrained(folder)
    return model, core

def logits_of(model, idx):
    with torch.no_grad():
        found = model.eval()(idx)
    return found if torch.is_tensor(found) else found.logits

def close(one, two):
    return (one - two).abs().max() <= 1e-5 * two.abs().max()

IDX = (torch.arange(120) ** 2 * 7 % 390).view(2, 60)

@pytest.mark.parametrize('name', MODELS)
def test_in_and_out_again(prepare, tmp_path, transformers, name):
    """Logits, greedy tokens and ids are those of transformers, of what came in and of what goes out."""
    theirs, core = make(tmp_path / 'hf', transformers, name)
    ours, t, checkpoint = load_model(prepare(weights=tmp_path / 'hf'))
    expected = logits_of(theirs, IDX)
    assert ours.config.vocab_size == theirs.config.vocab_size and close(logits_of(ours, IDX), expected)
    greedy = theirs.generate(IDX[:1, :4], max_new_tokens=60, do_sample=False, eos_token_id=None)[0, 4:].tolist()
    assert [tokens[0] for tokens, _ in generate(ours, IDX[:1, :4].tolist(), 60, temperature=0)] == greedy
    prepare(export=tmp_path / 'back')
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back', output_loading_info=True)
    assert close(logits_of(again, IDX), expected) and not info['missing_keys'] and not info['unexpected_keys']
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / 'back')
    core.encode_special_tokens = True
    for seed in range(1000):
        text = fuzz(seed)
        ids = core.encode(text).ids
        assert t.start + t.encode(text) == exported(text).input_ids == ids
        assert t.decode(t.encode(text)) == exported.decode(ids[len(t.start):]) == text
    assert t.kind == ('bpe' if name == 'gpt2' else 'hf')
    third = load_checkpoint(prepare(weights=tmp_path / 'back', out_dir=tmp_path / 'third'))
    assert all(torch.equal(tensor, third['model'][n]) for n, tensor in checkpoint['model'].items())
    assert third['config'] == checkpoint['config']
    if t.kind == 'hf':
        assert third['tokenizer'] == checkpoint['tokenizer']

def test_bfloat16_stays_bfloat16(prepare, tmp_path, transformers):
    model, _ = make(tmp_path / 'hf', transformers, 'llama')
    whole = load_checkpoint(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'whole'))
    model.bfloat16().save_pretrained(tmp_path / 'hf')
    found = load_checkpoint(prepare(weights=tmp_path / 'hf'))['model']
    assert found['wte.weight'].dtype == torch.bfloat16
    assert all(torch.equal(tensor.bfloat16(), found[n]) for n, tensor in whole['model'].items())
    prepare(export=tmp_path / 'back')
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back', dtype='auto')
    assert again.dtype == torch.bfloat16 and torch.equal(again.lm_head.weight, model.lm_head.weight)

def test_llama_3_slows_down_the_pairs_that_turn_slowly():
    how = dict(n_head=1, n_embd=4, head_dim=4, block_size=2, rope_theta=10000.0)
    stretched = GPTConfig(**how, rope_scaling=(8.0, 1.0, 4.0, 64))
    (cos, _), (slow, _) = rotary(torch.arange(2), GPTConfig(**how)), rotary(torch.arange(2), stretched)
    assert cos[1, 0, 0].item() == slow[1, 0, 0].item()  # angle 1: 10 turns within the 64 tokens, which is enough
    assert abs(slow[1, 0, 1].item() - math.cos(0.01 / 8)) < 1e-7  # angle 1/100: a tenth of a turn, 8 times slower

# ---- our own models, out ----

def ours(folder, vocab=(), tokenizer=None, **shape):
    """A checkpoint as train.py would write it."""
    tokenizer = tokenizer or Tokenizer('bpe', [bytes([b]) for b in range(256)] + list(vocab))
    save_untrained(folder, tokenizer, noise=0.2, **{**dict(block_size=16, n_layer=1, n_embd=8), **shape})
    return tokenizer

GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)
TALK = [('system', 'Be brief.'), ('user', 'hi\n'), ('assistant', " it's me"), ('system', 'S'), ('system', 'T'),
        ('user', 'a'), ('assistant', '')]

@pytest.mark.parametrize('shape, model_type', [({}, 'qwen3'), (dict(qk_norm=False, n_kv_head=1), 'llama'), (GPT2, 'gpt2'),
                                               (dict(qk_norm=False, bias=True), 'llama')])
def test_our_own_models_go_out_and_come_back(prepare, tmp_path, transformers, shape, model_type):
    words = P.Counter(P.regex.findall(P.SPLIT_PATTERN, ' '.join(fuzz(seed) + SAMPLE for seed in range(300))))
    t = ours(tmp_path / 'out', P.train_bpe(words, 500)[256:], **shape)
    prepare(export=tmp_path / 'hf')
    model, _, _ = load_model(str(tmp_path / 'out'))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
    assert theirs.config.model_type == model_type and theirs.config.vocab_size == t.vocab_size  # the padding stays here
    assert theirs.generation_config.eos_token_id == [t.eot, t.end] and theirs.config.eos_token_id == t.eot
    idx = torch.arange(16)[None] * 16
    assert close(logits_of(theirs, idx), logits_of(model, idx))
    wrapped = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    for seed in range(1000):
        assert wrapped(fuzz(seed)).input_ids == t.encode(fuzz(seed))
    assert wrapped.convert_tokens_to_ids(list(t.special)) == list(t.special.values())
    back, u, _ = load_model(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'back'))
    assert torch.equal(logits_of(back, idx), logits_of(model, idx)) and back.config == model.config
    messages = [{'role': role, 'content': content} for role, content in TALK]
    assert u.encode(SAMPLE) == t.encode(SAMPLE) and u.chat(messages) == t.chat(messages) and u.special == t.special
    for n, answer in ((1, False), (1, True), (2, False), (3, True), (6, True), (7, False), (7, True)):
        found = wrapped.apply_chat_template(messages[:n], add_generation_prompt=answer, return_dict=False)
        assert found == t.chat(messages[:n], answer)[0]  # the template in Jinja gives the same ids

def test_out_and_in_as_a_user_types_it(run, tmp_path, transformers):
    t = ours(tmp_path / 'out', [b'th', b'the', b' the'])
    for args in ('export=hf', 'out_dir=out'), ('weights=hf', 'out_dir=back'):
        done = run('prepare.py', *args)
        assert done.returncode == 0 and 'next:' in done.stdout, done.stderr
    assert load_model(str(tmp_path / 'back'))[1].encode('the the') == t.encode('the the') == [257, 258]

@pytest.mark.parametrize('shape, words', [
    (dict(position='learned'), "'position': 'learned'"), (dict(causal=False), "'causal': False"),
    (dict(bias=True), "'qk_norm': True, 'bias': True"), (dict(model_type='lstm'), "'model_type': 'lstm'"),
    (dict(mlp='gelu'), "'mlp': 'gelu'"), (dict(tokenizer=Tokenizer('char', ['?', 'a'])), 'tokenizer=char')])
def test_what_no_architecture_holds(prepare, tmp_path, transformers, shape, words):
    ours(tmp_path / 'out', **shape)
    with pytest.raises(SystemExit, match=words):
        prepare(export=tmp_path / 'hf')
    assert not (tmp_path / 'hf').exists()

# ---- GPT-2's tokenizer, which needs no library ----

@pytest.mark.parametrize('change', ['', 'special first', 'prefix space'])
def test_gpt2s_ids_are_ranks(change):
    """Its tokenizer becomes our kind bpe; one with other ids or rules does not."""
    tokenizers = pytest.importorskip('tokenizers', reason='pip install transformers')
    core = train_tokenizer(['<|endoftext|>'], None)
    if change == 'special first':
        found = json.loads(core.to_str())
        found['model']['vocab'] = {token: (i + 1) % 401 for token, i in found['model']['vocab'].items()}
        found['model']['vocab']['<|endoftext|>'] = found['added_tokens'][0]['id'] = 0
        core = tokenizers.Tokenizer.from_str(json.dumps(found))
    if change == 'prefix space':
        core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert P.import_tokenizer(core.to_str(), 0).kind == ('hf' if change else 'bpe')

# ---- what cannot be used ----

def spoil(folder, transformers, what):
    """Break one thing in a good folder."""
    if (folder / what).exists():
        (folder / what).write_bytes((folder / what).read_bytes()[:-20])
    elif what.startswith('no '):
        (folder / what[3:]).unlink()
    elif what in ('extra', 'missing', 'nan'):
        from safetensors.torch import load_file, save_file
        tensors = load_file(folder / 'model.safetensors')
        name = 'model.layers.1.mlp.up_proj.weight'
        if what == 'nan':
            tensors[name][3, 5] = float('nan')
        else:
            tensors['model.vision'] = tensors.pop(name) if what == 'missing' else torch.ones(1)
        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    else:  # a setting
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, **json.loads(what)}))

@pytest.mark.parametrize('what, words', [
    ('config.json', 'JSON'), ('tokenizer.json', 'weights='), ('model.safetensors', 'weights='),
    ('no config.json', 'config.json'), ('no tokenizer.json', 'tokenizer.json'),
    ('extra', 'tensor model.vision is missing, or has no place'), ('missing', 'is missing, or has no place'),
    ('nan', 'up.weight is not finite'), ('{"model_type": "mamba"}', "model_type=mamba, and our model knows only"),
    ('{"hidden_size": 32}', 'weights='), ('{"num_hidden_layers": 3}', 'model.layers.2'),
    ('{"num_key_value_heads": 3}', 'n_head=4 n_kv_head=3'),
    ('{"hidden_act": "relu"}', "hidden_act=relu, and our model knows only ['silu']"),
    ('{"sliding_window": 16}', "sliding_window=16, and our model knows only [None]"),
    ('{"attention_bias": true}', 'is missing, or has no place'),
    ('{"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}', 'rope_type=yarn'),
    ('{"quantization_config": {"quant_method": "fp8"}}', 'quantization_config')])
def test_what_is_not_right_ends_in_one_line_and_nothing_is_written(prepare, tmp_path, transformers, what, words):
    make(tmp_path / 'hf', transformers, 'llama')
    spoil(tmp_path / 'hf', transformers, what)
    with pytest.raises(SystemExit) as e:
        prepare(weights=tmp_path / 'hf')
    assert words in str(e.value) and '\n' not in str(e.value), e.value
    assert not list(tmp_path.glob('out/*'))

def test_weights_that_are_nowhere(prepare, tmp_path, transformers, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)  # or it tries for 20 seconds
    with pytest.raises(SystemExit, match='weights=nowhere: OSError'):
        prepare(weights='nowhere', out_dir=tmp_path / 'x')

def test_mistakes_on_the_command_line(run, tmp_path, monkeypatch):
    ours(tmp_path / 'out')
    before = (tmp_path / 'out' / 'ckpt.pt').read_bytes()
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    refused(run('prepare.py', 'weights=x', 'out_dir=y'), 'pip install transformers')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
    refused(run('prepare.py', 'weights=x'), 'out/ckpt.pt exists already: choose another folder')
    refused(run('prepare.py', 'export=out'), 'out exists already: choose another folder')
    assert (tmp_path / 'out' / 'ckpt.pt').read_bytes() == before

"""
Other people's weights, in and out. The models here have weights from a formula; what transformers 5.23 and tokenizers 0.23
make of the same files was computed once and stands below, so that neither is needed to run this.
"""
import http.server, json, math, struct, threading
import numpy as np
import pytest
import torch
import prepare as P
from conftest import refused, run
from model import GPTConfig, Tokenizer, build_model, generate, load_checkpoint, load_model, rotary_table, save_atomically

MERGES = ['h e', 't he', 'Ġ the', 'i n', 'in g', 'Ġ t', 'Ġ c', 'a t', 'Ġc at', '1 2', '12 3', '3 4', 'Ġ Ġ', 'ĠĠ ĠĠ',
          'Ċ Ċ', 'Ã ©', "' s", 'å ¥',
          'ä ½', 'ä½ ł', 'm a', '< |', 'ð Ł', 'ðŁ Ļ', 'ðŁĻ Ĥ', 'Ù Ħ', '( the']
CUT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
BYTES = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False}

def letter(byte):
    """The visible character that stands for a byte in tokenizer.json, by GPT-2's rule written another way."""
    hidden = [b for b in range(256) if b < 33 or 126 < b < 161 or b == 173]
    return chr(256 + hidden.index(byte)) if byte in hidden else chr(byte)

def tokenizer_json(kind, merges=MERGES, lacks=(), **model):
    """A tokenizer.json in the style of gpt2, smol, llama3 or qwen: 256 bytes, the merges, special tokens at either end."""
    special = {'gpt2': ['<|endoftext|>'], 'smol': ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
               'qwen': ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
               'llama3': ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
                          '<|eot_id|>']}[kind]
    ordinary = [letter(b) for b in range(256) if b not in lacks] + [m.replace(' ', '') for m in merges]
    tokens = special + ordinary if kind == 'smol' else ordinary + special + (['<think>'] if kind == 'qwen' else [])
    split = {'type': 'Split', 'pattern': {'Regex': CUT.replace('{1,3}', '') if kind == 'qwen' else CUT},
             'behavior': 'Isolated', 'invert': False}
    steps = {'gpt2': [BYTES], 'smol': [{'type': 'Digits', 'individual_digits': True},
                                       {**BYTES, 'use_regex': True}]}.get(kind, [split, {**BYTES, 'use_regex': False}])
    start = {'type': 'TemplateProcessing', 'single': [{'SpecialToken': {'id': special[0], 'type_id': 0}},
                                                      {'Sequence': {'id': 'A', 'type_id': 0}}],
             'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
             'special_tokens': {special[0]: {'id': special[0], 'ids': [tokens.index(special[0])],
                                             'tokens': [special[0]]}}}
    return {'version': '1.0', 'truncation': None, 'padding': None,
            'added_tokens': [{'id': i, 'content': t, 'single_word': False, 'lstrip': False, 'rstrip': False,
                              'normalized': False, 'special': t != '<think>'}
                             for i, t in enumerate(tokens) if t in special + ['<think>']],
            'normalizer': {'type': 'NFC'} if kind == 'qwen' else None,
            'pre_tokenizer': steps[0] if len(steps) == 1 else {'type': 'Sequence', 'pretokenizers': steps},
            'post_processor': {'type': 'Sequence', 'processors': [BYTES, start]} if kind == 'llama3' else BYTES,
            'decoder': BYTES,
            'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
                      'end_of_word_suffix': None, 'fuse_unk': False,
                      'byte_fallback': False, 'ignore_merges': kind == 'llama3',
                      'vocab': {t: i for i, t in enumerate(tokens)}, 'merges': merges, **model}}

BASE = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 24,
        'max_position_embeddings': 64, 'rms_norm_eps': 1e-6, 'hidden_act': 'silu'}
CONFIGS = {  # name: (the style of its tokenizer, config.json)
    'gpt2': ('gpt2', {'architectures': ['GPT2LMHeadModel'], 'model_type': 'gpt2', 'vocab_size': 284, 'n_positions': 32,
                      'n_embd': 16, 'n_layer': 2, 'n_head': 2,
                      'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5}),
    'llama': ('smol', {'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 286, **BASE,
                       'num_key_value_heads': 2, 'tie_word_embeddings': True,
                       'rope_theta': 500.0}),
    'llama3': ('llama3', {'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 290, **BASE,
                          'num_key_value_heads': 1, 'tie_word_embeddings': False,
                          'rope_theta': 500.0, 'rope_scaling': {'rope_type': 'llama3', 'factor': 4.0,
                                                                'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                                                                'original_max_position_embeddings': 16}}),
    'qwen3': ('qwen', {'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3', 'vocab_size': 300, **BASE,
                       'num_key_value_heads': 2, 'head_dim': 8, 'tie_word_embeddings': True,
                       'rope_parameters': {'rope_type': 'default', 'rope_theta': 1000.0}})}

def shapes(config):
    """What a model of this config has in its file: {name: shape}, written out here once more."""
    V = config['vocab_size']
    if config['model_type'] == 'gpt2':
        C, layer = 16, {'ln_1.weight': (16,), 'ln_1.bias': (16,), 'attn.c_attn.weight': (16, 48),
                        'attn.c_attn.bias': (48,), 'attn.c_proj.weight': (16, 16),
                        'attn.c_proj.bias': (16,), 'ln_2.weight': (16,), 'ln_2.bias': (16,),
                        'mlp.c_fc.weight': (16, 64), 'mlp.c_fc.bias': (64,),
                        'mlp.c_proj.weight': (64, 16), 'mlp.c_proj.bias': (16,)}
        return {'transformer.wte.weight': (V, C), 'transformer.wpe.weight': (32, C), 'transformer.ln_f.weight': (C,),
                'transformer.ln_f.bias': (C,),
                **{f'transformer.h.{i}.{n}': s for i in range(2) for n, s in layer.items()}}
    D, H, K = config.get('head_dim', 4), 4, config['num_key_value_heads']
    layer = {'input_layernorm': (16,), 'self_attn.q_proj': (H * D, 16), 'self_attn.k_proj': (K * D, 16),
             'self_attn.v_proj': (K * D, 16), 'self_attn.o_proj': (16, H * D),
             'post_attention_layernorm': (16,), 'mlp.gate_proj': (24, 16), 'mlp.up_proj': (24, 16),
             'mlp.down_proj': (16, 24),
             **({'self_attn.q_norm': (D,), 'self_attn.k_norm': (D,)} if config['model_type'] == 'qwen3' else {})}
    return {'model.embed_tokens.weight': (V, 16), 'model.norm.weight': (16,),
            **({} if config['tie_word_embeddings'] else {'lm_head.weight': (V, 16)}),
            **{f'model.layers.{i}.{n}.weight': s for i in range(2) for n, s in layer.items()}}

def formula(name, shape):
    """Weights that look random and need no generator: sines of square numbers; norms stand around 1."""
    n = np.arange(1, math.prod(shape) + 1, dtype=np.float64) + sum(name.encode()) % 97
    return (0.7 * np.sin(n * n) + (len(shape) == 1 and name.endswith('weight'))).astype('<f4').reshape(shape)

def safetensors(tensors):
    """{name: array} -> the bytes of a file."""
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for name, array in tensors.items():
        header[name] = {'dtype': 'F32', 'shape': list(array.shape), 'data_offsets': [end, end := end + array.nbytes]}
    raw = json.dumps(header).encode()
    return struct.pack('<Q', len(raw)) + raw + b''.join(a.tobytes() for a in tensors.values())

def write(folder, name, **config):
    """A folder as it comes from the hub; returns its tensors."""
    kind, base = CONFIGS[name]
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps({**base, **config}))
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer_json(kind)))
    tensors = {n: formula(n, s) for n, s in shapes(base).items()}
    (folder / 'model.safetensors').write_bytes(safetensors(tensors))
    return tensors

@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Run prepare.py here with these settings."""
    def call(**settings):
        for name, value in {'weights': '', 'export': '', 'out_dir': str(tmp_path / 'out'),
                            'data_dir': str(tmp_path / 'data'), **settings}.items():
            monkeypatch.setattr(P, name, str(value))
        P.main()
        return settings.get('out_dir', tmp_path / 'out')
    return call

TEXT = "The cat's 12345 ing  the\n\n\n  sat\tint'S é e\u0301 ½ 你好 ل🙂 <|x|>\r\nthe    x(the 001234 ١٢ cat<think>"

# ---- in: what transformers and tokenizers make of the same files ----

# first and last three logits after the last token, mean square of all logits, and what greedy decoding says
LOGITS = {
    'gpt2': ([1.0773, -4.8649, 0.329, 2.8493, -2.7529, -0.4432], 7.4926,
        [56, 56, 56, 56, 56, 56, 56, 56, 56, 160, 160, 160, 160, 250, 250, 56, 160, 160, 160, 160]),
    'llama': ([3.1356, -1.7522, 1.3793, 2.8194, 0.5466, 0.2181], 6.4354,
        [171, 61, 231, 252, 231, 80, 80, 107, 234, 61, 166, 190, 171, 28, 233, 171, 73, 52, 162, 162]),
    'llama3': ([2.5647, -5.8752, -2.517, 3.2722, -2.9832, -5.2446], 6.8789,
        [93, 208, 102, 33, 110, 179, 237, 10, 184, 93, 122, 185, 179, 237, 149, 208, 177, 33, 5, 197]),
    'qwen3': ([-4.7079, -1.977, 1.7861, -3.885, 3.4907, -0.6545], 6.3353,
        [205, 7, 205, 18, 254, 226, 42, 168, 237, 74, 168, 237, 56, 234, 57, 202, 226, 74, 74, 74]),}
IDS = {
    'gpt2': [84, 256, 264, 272, 32, 266, 52, 53, 32, 260, 32, 258, 270, 10, 32, 32, 115, 263, 9, 259, 116, 39, 83, 32,
             271, 32, 101, 204, 129, 32, 194, 189, 32, 275, 273, 189, 32, 281, 280, 32, 277, 120, 124, 62, 13, 10, 257,
             268, 32, 32, 120, 40, 257, 32, 48, 48, 266, 52, 32, 217, 161, 217, 162, 264, 60, 116, 104, 259, 107, 62],
    'smol': [87, 259, 267, 275, 35, 52, 53, 54, 55, 56, 35, 263, 35, 261, 273, 13, 35, 35, 118, 266, 12, 262, 119, 42,
             86, 35, 274, 35, 104, 207, 132, 35, 197, 192, 35, 278, 276, 192, 35, 284, 283, 35, 280, 123, 127, 65, 16,
             13, 260, 271, 35, 35, 123, 43, 260, 35, 51, 51, 52, 53, 54, 55, 35, 220, 164, 220, 165, 267, 63, 119, 107,
             262, 110, 65],
    'llama3': [283, 84, 256, 264, 272, 32, 266, 52, 53, 32, 260, 32, 258, 270, 10, 32, 32, 115, 263, 9, 259, 116, 39,
               83, 32, 271, 32, 101, 204, 129, 32, 194, 189, 32, 275, 273, 189, 32, 281, 280, 32, 277, 120, 124, 62, 13,
               10, 257, 268, 32, 32, 120, 282, 32, 48, 48, 49, 50, 267, 32, 217, 161, 217, 162, 264, 60, 116, 104,
               259, 107, 62],
    'qwen': [84, 256, 264, 272, 32, 49, 50, 51, 52, 53, 32, 260, 32, 258, 270, 10, 32, 32, 115, 263, 9, 259, 116, 39,
             83, 32, 271, 32, 271, 32, 194, 189, 32, 275, 273, 189, 32, 281, 280, 32, 277, 120, 124, 62, 13, 10, 257,
             268, 32, 32, 120, 282, 32, 48, 48, 49, 50, 51, 52, 32, 217, 161, 217, 162, 264, 286],}

@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_greedy_tokens_are_those_of_transformers(prepare, tmp_path, name):
    write(tmp_path / 'hf', name)
    model, _, _ = load_model(str(prepare(weights=tmp_path / 'hf')))
    idx = (torch.arange(40) ** 2 * 7 % 280)[None, :min(40, model.config.block_size)]
    six, square, tokens = LOGITS[name]
    with torch.no_grad():
        logits = model.eval()(idx)[0]
    assert logits.size(-1) == CONFIGS[name][1]['vocab_size']
    assert torch.allclose(torch.cat((logits[-1, :3], logits[-1, -3:])), torch.tensor(six), atol=1e-4)
    assert abs(logits.square().mean().item() - square) < 1e-3
    assert [t[0] for t, _ in generate(model, idx[:, :5].tolist(), 20, temperature=0)] == tokens

@pytest.mark.parametrize('kind', IDS)
def test_ids_are_those_of_tokenizers(tmp_path, kind):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(tokenizer_json(kind)))
    tokenizer = P.import_tokenizer(str(tmp_path), 300)
    assert tokenizer.start + tokenizer.encode(TEXT) == IDS[kind]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == (TEXT.replace('e\u0301', 'é') if kind == 'qwen' else TEXT)
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer and again.encode(TEXT) == tokenizer.encode(TEXT) and again.vocab_size == 300

def test_merge_order_must_be_the_order_of_ids(tmp_path):
    """tiktoken merges the lowest id first; a list of merges in another order would give other ids, so it is refused."""
    for merges, refuse in (['a b', 'b c', 'ab c'], False), (['b c', 'a b', 'ab c'], True):
        found = tokenizer_json('gpt2', ['a b', 'b c', 'ab c'])
        (tmp_path / 'tokenizer.json').write_text(json.dumps({**found, 'model': {**found['model'], 'merges': merges}}))
        if refuse:
            with pytest.raises(SystemExit, match="out of the order"):
                P.import_tokenizer(str(tmp_path), 300)
        else:
            assert P.import_tokenizer(str(tmp_path), 300).encode('abc') == [258]

def test_a_token_that_no_merge_makes_is_never_encoded(tmp_path):
    """'bc' comes first, so 'ab' + 'c' never happens; but Llama 3 takes whole words before it merges anything."""
    found = tokenizer_json('gpt2', ['b c', 'a b', 'ab c'])
    (tmp_path / 'tokenizer.json').write_text(json.dumps(found))
    assert P.import_tokenizer(str(tmp_path), 300).encode('abc') == [97, 256]
    found = tokenizer_json('llama3', ['b c', 'c d', 'ab cd'],
                           vocab={letter(b): b for b in range(256)} | {'bc': 256, 'cd': 257, 'abcd': 258} |
                           {t: 259 + i for i, t in enumerate(['<|begin_of_text|>', '<|end_of_text|>',
                                                              '<|start_header_id|>', '<|end_header_id|>',
                                                              '<|eot_id|>'])})
    found['added_tokens'] = [{**t, 'id': 259 + i} for i, t in enumerate(found['added_tokens'])]
    (tmp_path / 'tokenizer.json').write_text(json.dumps(found))
    tokenizer = P.import_tokenizer(str(tmp_path), 300)
    assert tokenizer.encode('abcd') == [258] and tokenizer.encode('abcde') == [97, 256, 100, 101]

@pytest.mark.parametrize('pattern', ['(', '', r'\d+', '(a*)*b', '(?R)', '\\', r'\p{L}+|\s*'])
def test_a_pattern_that_cannot_cut_text_is_refused(tmp_path, pattern):
    found = tokenizer_json('qwen')
    found['pre_tokenizer']['pretokenizers'][0]['pattern']['Regex'] = pattern
    (tmp_path / 'tokenizer.json').write_text(json.dumps(found))
    with pytest.raises(SystemExit, match='makes no tokenizer of ours'):
        P.import_tokenizer(str(tmp_path), 300)

def test_bytes_that_a_vocabulary_lacks_are_left_out(tmp_path):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(tokenizer_json('gpt2', lacks=[7])))
    tokenizer = P.import_tokenizer(str(tmp_path), 300)
    assert tokenizer.decode(tokenizer.encode('t\x07he\x07 cat')) == 'the cat'
    assert tokenizer.encode('!\x07!') == tokenizer.encode('!!') and tokenizer.encode('\x07') == []

@pytest.mark.parametrize('kind, expected', [
    ('smol', '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>assistant\n'),
    ('llama3', '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>'
               '<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'),
    ('gpt2', 'system:\nS<|endoftext|>user:\nhi<|endoftext|>assistant:\nyo<|endoftext|>assistant:\n')])
def test_each_model_gets_its_own_chat_markup(tmp_path, kind, expected):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(tokenizer_json(kind)))
    tokenizer = P.import_tokenizer(str(tmp_path), 300)
    ids, mask = tokenizer.chat([{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'},
                                {'role': 'assistant', 'content': 'yo'}], answer=True)
    assert tokenizer.decode(ids) == expected and len(mask) == len(ids)
    assert tokenizer.decode([i for i, m in zip(ids, mask) if m]) in ('yo<|im_end|>', 'yo<|eot_id|>', 'yo<|endoftext|>')
    assert ids.count(tokenizer.end) == 3 and tokenizer.chat([{'role': 'user',
                                                              'content': '<|im_end|>'}])[0].count(tokenizer.end) == 1

def test_llama_3_slows_down_the_pairs_that_turn_slowly():
    how = dict(n_head=1, n_embd=4, head_dim=4, block_size=2, rope_theta=10000.0)
    (cos, _), (slow, _) = rotary_table(GPTConfig(**how)), rotary_table(GPTConfig(**how, rope_scaling=(8.0, 1.0, 4.0, 64)))
    assert cos[1, 0, 0].item() == slow[1, 0, 0].item()  # angle 1: it turns 64 / 2π = 10 times within the 64 tokens, which is enough
    assert abs(slow[1, 0, 1].item() - math.cos(0.01 / 8)) < 1e-7  # angle 1/100: a tenth of a turn, so it is slowed down 8 times

def test_several_files_and_the_older_form(prepare, tmp_path):
    tensors = write(tmp_path / 'hf', 'llama')
    one = load_checkpoint(str(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'one')))
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f'model-{i:05d}-of-00002.safetensors'
        (tmp_path / 'hf' / file).write_bytes(safetensors({n: tensors[n] for n in part}))
        where.update({n: file for n in part})
    (tmp_path / 'hf' / 'model.safetensors').unlink()
    (tmp_path / 'hf' / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
    two = load_checkpoint(str(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'two')))
    (tmp_path / 'hf' / 'model.safetensors.index.json').unlink()
    assert all(torch.equal(one['model'][n], t) for n, t in two['model'].items())
    for form in (True, False):  # as torch.save writes since 2020, and before
        torch.save({n: torch.from_numpy(a) for n, a in tensors.items()}, tmp_path / 'hf' / 'pytorch_model.bin',
                   _use_new_zipfile_serialization=form)
        old = load_checkpoint(str(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / f'old-{form}')))
        assert all(torch.equal(old['model'][n], t) for n, t in two['model'].items())

def test_the_files_of_gpt2_themselves(prepare, tmp_path):
    """They leave out the first word of each name, and hold attention's mask, which is no weight."""
    tensors = write(tmp_path / 'hf', 'gpt2')
    one = load_checkpoint(str(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'one')))
    masks = {f'h.{i}.attn.bias': np.ones((1, 1, 32, 32), '<f4') for i in range(2)}
    (tmp_path / 'hf' / 'model.safetensors').write_bytes(safetensors({n.removeprefix('transformer.'): a
                                                                     for n, a in tensors.items()} | masks))
    two = load_checkpoint(str(prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'two')))
    assert all(torch.equal(one['model'][n], t) for n, t in two['model'].items())
    conv1d = torch.from_numpy(tensors['transformer.h.0.mlp.c_fc.weight'])  # (in, out) there, (out, in) here
    assert torch.equal(one['model']['blocks.0.mlp.up.weight'], conv1d.T)

# ---- out ----

@pytest.mark.parametrize('name', CONFIGS)
def test_what_came_in_goes_out_again(prepare, tmp_path, name):
    tensors = write(tmp_path / 'hf', name)
    prepare(weights=tmp_path / 'hf')
    prepare(export=tmp_path / 'back')
    raw = (tmp_path / 'back' / 'model.safetensors').read_bytes()
    length = struct.unpack('<Q', raw[:8])[0]
    header = json.loads(raw[8:8 + length])
    assert header.pop('__metadata__') == {'format': 'pt'} and header.keys() == tensors.keys()
    for n, about in header.items():
        first, last = about['data_offsets']
        assert tuple(about['shape']) == tensors[n].shape and raw[8 + length:][first:last] == tensors[n].tobytes()
    config, theirs = json.loads((tmp_path / 'back' / 'config.json').read_text()), CONFIGS[name][1]
    rope = theirs.get('rope_parameters', {})
    assert all(config[k] == v for k, v in {**theirs, **rope}.items()
               if k not in ('rope_parameters', 'rope_type', 'hidden_act', 'activation_function'))
    again = load_checkpoint(str(prepare(weights=tmp_path / 'back', out_dir=tmp_path / 'again')))
    first = load_checkpoint(str(tmp_path / 'out'))
    assert again['config'] == first['config'] and again['tokenizer'] == first['tokenizer']

def ours(folder, vocab=(), **shape):
    """A checkpoint as train.py would write it."""
    tokenizer = Tokenizer('bpe', [bytes([b]) for b in range(256)] + list(vocab))
    config = GPTConfig(**{**dict(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=2,
                                 n_embd=8), **shape})
    folder.mkdir(exist_ok=True)
    save_atomically(str(folder / 'ckpt.pt'), {'format': 'ninefiles-1', 'model': build_model(config).state_dict(),
                                              'config': config.__dict__,
                                              'tokenizer': tokenizer.to_dict(), 'step': 5, 'settings': {}})
    return tokenizer

GPT2 = dict(position='learned', norm='layernorm', mlp='gelu', qk_norm=False, bias=True, tie_weights=True)

@pytest.mark.parametrize('shape, architecture', [({}, 'Qwen3'), (dict(qk_norm=False, n_kv_head=1), 'Llama'),
                                                 (GPT2, 'GPT2LM'), (dict(qk_norm=False, bias=True), 'Llama')])
def test_our_own_models_go_out_and_come_back(prepare, tmp_path, shape, architecture):
    tokenizer = ours(tmp_path / 'out', [b'th', b'the', b' the'], **shape)
    prepare(export=tmp_path / 'hf')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['architectures'][0].startswith(architecture) and config['vocab_size'] == 264  # not 320: the padding stays here
    prepare(weights=tmp_path / 'hf', out_dir=tmp_path / 'back')
    (one, _, _), (two, same, _) = load_model(str(tmp_path / 'out')), load_model(str(tmp_path / 'back'))
    idx = torch.arange(16)[None] * 16
    with torch.no_grad():
        assert torch.equal(one.eval()(idx), two.eval()(idx)) and one.config == two.config and same == tokenizer
    merges = json.loads((tmp_path / 'hf' / 'tokenizer.json').read_text())['model']['merges']
    assert merges == ['t h', 'th e', 'Ġ the']
    stops = json.loads((tmp_path / 'hf' / 'generation_config.json').read_text())['eos_token_id']
    assert stops == [tokenizer.eot, tokenizer.end]

@pytest.mark.parametrize('name', ['ours', 'gpt2', 'llama', 'llama3'])
def test_the_chat_template_renders_as_chat_does(prepare, tmp_path, name):
    jinja2 = pytest.importorskip('jinja2')
    if name == 'ours':
        ours(tmp_path / 'out')
    else:
        write(tmp_path / 'hf', name)
        prepare(weights=tmp_path / 'hf')
    prepare(export=tmp_path / 'back')
    _, tokenizer, _ = load_model(str(tmp_path / 'out'))
    template = jinja2.Template(json.loads((tmp_path / 'back' / 'tokenizer_config.json').read_text())['chat_template'],
                               trim_blocks=True, lstrip_blocks=True)
    talk = [('system', 'Be brief.'), ('user', 'hi\n'), ('assistant', ' it\'s me'), ('system', 'S'), ('system', 'T'),
            ('user', 'a'), ('assistant', '')]
    for n in (1, 2, 3, 6, 7):
        messages = [{'role': role, 'content': content} for role, content in talk[:n]]
        for answer in (False, True):
            assert template.render(messages=messages,
                                   add_generation_prompt=answer) == tokenizer.decode(tokenizer.chat(messages, answer)[0])

@pytest.mark.parametrize('shape, words', [(dict(position='sinusoidal'), 'position=sinusoidal'),
                                          (dict(causal=False), 'causal=False'),
                                          (dict(bias=True), 'qk_norm=True bias=True'),
                                          (dict(model_type='lstm'), 'model_type=lstm'), (dict(mlp='gelu'), 'mlp=gelu')])
def test_what_no_architecture_holds(prepare, tmp_path, shape, words):
    ours(tmp_path / 'out', **shape)
    with pytest.raises(SystemExit, match=words):
        prepare(export=tmp_path / 'hf')
    assert not (tmp_path / 'hf').exists()

def test_characters_cannot_go_out(prepare, tmp_path):
    ours(tmp_path / 'out', vocab_size=8)
    checkpoint = load_checkpoint(str(tmp_path / 'out'))
    save_atomically(str(tmp_path / 'out' / 'ckpt.pt'), {**checkpoint,
                                                        'tokenizer': Tokenizer('char', ['?', 'a', 'b']).to_dict()})
    with pytest.raises(SystemExit, match='tokenizer=char'):
        prepare(export=tmp_path / 'hf')

def test_loading_holds_the_weights_once_and_keeps_tied_ones_tied(tmp_path):
    ours(tmp_path / 'out', **GPT2)
    model, _, checkpoint = load_model(str(tmp_path / 'out'))
    assert model.head.weight is model.wte.weight and model.wte.weight.data_ptr() == checkpoint['model']['wte.weight'].data_ptr()
    assert all(p.requires_grad and p.device.type == 'cpu' for p in model.parameters())

@pytest.mark.parametrize('shape', [{}, dict(position='sinusoidal'), GPT2, dict(model_type='lstm'),
                                   dict(model_type='mlp'), dict(model_type='bigram')])
def test_a_loaded_model_computes_what_was_saved(tmp_path, shape):
    ours(tmp_path / 'out', **shape)
    checkpoint, idx = load_checkpoint(str(tmp_path / 'out')), torch.arange(16)[None]
    model = build_model(GPTConfig(**checkpoint['config']))
    model.load_state_dict(checkpoint['model'])
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / 'out'))[0](idx), model(idx))
    half = {n: t.bfloat16() for n, t in checkpoint['model'].items()}  # as many models on the hub are
    save_atomically(str(tmp_path / 'out' / 'ckpt.pt'), {**checkpoint, 'model': half})
    assert {p.dtype for p in load_model(str(tmp_path / 'out'))[0].parameters()} == {torch.float32}

# ---- files that lie ----

def test_a_safetensors_file_by_hand(tmp_path):
    header = b'{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / 'x').write_bytes(struct.pack('<Q', len(header)) + header + b'\x80\x3f\x00\xc0' + struct.pack('<2f', 0.5, -3))
    tensors = {n: read() for n, (_, read) in P.read_safetensors(str(tmp_path / 'x')).items()}
    assert tensors['a'].tolist() == [1, -2] and tensors['b'].tolist() == [[0.5, -3]]

GOOD = {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}

@pytest.mark.parametrize('header, body', [
    (b'', b''), (b'{', b''), (b'[]', b''), (b'null', b''), (b'\xff\xfe', b''), (b'[' * 100_000, b''), ({'a': 5}, b''),
    ({'a': {}}, b''),
    ({'a': GOOD}, bytes(15)), ({'a': GOOD}, bytes(17)), ({'a': GOOD, 'b': GOOD}, bytes(16)),
    ({'a': GOOD, 'b': {**GOOD, 'data_offsets': [8, 24]}}, bytes(24)),
    ({'a': {**GOOD, 'data_offsets': [4, 20]}}, bytes(20)), ({'a': {**GOOD, 'data_offsets': [16, 0]}}, bytes(16)),
    ({'a': {**GOOD, 'data_offsets': [-16, 0]}}, bytes(16)), ({'a': {**GOOD, 'data_offsets': [0]}}, bytes(16)),
    ({'a': {**GOOD, 'data_offsets': [0, 16.0]}}, bytes(16)),
    ({'a': {**GOOD, 'shape': [-2, -2]}}, bytes(16)), ({'a': {**GOOD, 'shape': [2**62, 2**62]}}, bytes(16)),
    ({'a': {**GOOD, 'shape': [4, True]}}, bytes(16)),
    ({'a': {**GOOD, 'shape': '22'}}, bytes(16)), ({'a': {**GOOD, 'dtype': 'F7'}}, bytes(16)),
    ({'a': {**GOOD, 'dtype': ['F32']}}, bytes(16)),
    ({'a': {**GOOD, 'shape': [2**40], 'data_offsets': [0, 2**42]}}, bytes(16)), (2**63, b''), (2**64 - 1, b'{}'),
    (200, b'{}'), (1 << 30, b'{}')])
def test_a_safetensors_file_that_lies_ends_in_one_line(tmp_path, header, body):
    raw = json.dumps(header).encode() if isinstance(header, dict) else b'' if isinstance(header, int) else header
    length = header if isinstance(header, int) else len(raw)
    (tmp_path / 'x').write_bytes(struct.pack('<Q', length) + raw + body)
    with pytest.raises(SystemExit, match='cut off or damaged') as e:
        P.read_safetensors(str(tmp_path / 'x'))
    assert '\n' not in str(e.value) and len(str(e.value)) < 400

def test_safetensors_cut_off_at_any_byte(tmp_path):
    raw = safetensors({'a': np.ones((2, 3), '<f4'), 'b': np.ones(1, '<f4')})
    for n in range(len(raw)):
        (tmp_path / 'x').write_bytes(raw[:n])
        with pytest.raises(SystemExit, match='cut off or damaged'):
            P.read_safetensors(str(tmp_path / 'x'))

def spoil(folder, what):
    """Break one thing in a good folder."""
    config, tokenizer = json.loads((folder / 'config.json').read_text()), json.loads((folder / 'tokenizer.json').read_text())
    if what in ('config.json', 'tokenizer.json', 'model.safetensors'):
        (folder / what).unlink()
    elif what == 'shard':
        (folder / 'model.safetensors').unlink()
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': 'model-00001-of-00002.safetensors'}}))
    elif what == 'index':
        (folder / 'model.safetensors').unlink()
        (folder / 'model.safetensors.index.json').write_text('{"weight_map": ["a"]}')
    elif what == 'outside':
        (folder / 'model.safetensors').rename(folder.parent / 'm.safetensors')
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': '../m.safetensors'}}))
    elif what == 'code':
        (folder / 'model.safetensors').unlink()
        torch.save({'a': print}, folder / 'pytorch_model.bin')
    elif what == 'extra':
        (folder / 'model.safetensors').write_bytes(safetensors({n: formula(n, s)
                                                                for n, s in shapes(config).items()} | {'model.vision': np.ones(1, '<f4')}))
    elif what == 'integers':
        tensors = {n: formula(n, s) for n, s in shapes(config).items()}
        (folder / 'model.safetensors').write_bytes(safetensors(tensors).replace(b'F32', b'I32'))
    elif what == 'sentencepiece':
        tokenizer['model']['byte_fallback'] = True
    elif what == 'normalizer':
        tokenizer['normalizer'] = {'type': 'Lowercase'}
    elif what == 'id':
        tokenizer['model']['vocab']['the'] = 10**12
    elif what == 'negative id':
        tokenizer['added_tokens'][0]['id'] = -1
    elif what == 'empty token':
        tokenizer['added_tokens'].append({'id': 5, 'content': '', 'special': False})
    elif what == 'merge':
        tokenizer['model']['merges'][0] = 'h'
    else:
        key, value = what
        config[key] = value
    if (folder / 'tokenizer.json').exists():
        (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
    if (folder / 'config.json').exists():
        (folder / 'config.json').write_text(json.dumps(config))

@pytest.mark.parametrize('what, words', [
    ('config.json', ['no ', 'config.json']), ('tokenizer.json', ['no ', 'tokenizer.json']),
    ('model.safetensors', ['no weights in', 'pytorch_model.bin']),
    ('shard', ['model-00001-of-00002.safetensors is missing']), ('outside', ['m.safetensors is missing']),
    ('index', ['index.json', 'which file']), ('code', ['pytorch_model.bin is damaged']),
    ('extra', ['model.vision', 'no place']), ('integers', ['torch.int32']), ('sentencepiece', ['byte-level']),
    ('normalizer', ['Lowercase']), ('id', ['1000000000000']), ('negative id', ['-1']), ('merge', ['tokenizer']),
    ('empty token', ["''"]),
    (('architectures', ['MambaForCausalLM']), ['MambaForCausalLM', 'Qwen3ForCausalLM']),
    (('architectures', []), ['architecture']), (('architectures', 5), ['TypeError']),
    (('hidden_size', 32), ['shape', '(286, 16)', '(286, 32)']), (('num_hidden_layers', 3), ['model.layers.2']),
    (('vocab_size', 285), ['(286, 16)']), (('vocab_size', 10**15), ['10000000000']),
    (('hidden_size', 'big'), ['ValueError']), (('hidden_size', 10**30), ['no model of ours']),
    (('intermediate_size', -4), ['positive']), (('num_key_value_heads', 3), ['n_kv_head']),
    (('hidden_act', 'relu'), ['hidden_act=relu']), (('rope_scaling', {'type': 'yarn', 'factor': 2}),
                                                    ['rope_type=yarn']),
                                                    (('rope_scaling', {'rope_type': 'llama3'}), ['KeyError']),
    (('max_position_embeddings', 10**9), ['context']), (('rope_theta', 0), ['positive']),
    (('num_hidden_layers', 10**9), ['layers'])])
def test_a_folder_that_is_not_right_ends_in_one_line_and_nothing_is_written(prepare, tmp_path, what, words):
    write(tmp_path / 'hf', 'llama')
    spoil(tmp_path / 'hf', what)
    with pytest.raises(SystemExit) as e:
        prepare(weights=tmp_path / 'hf')
    assert all(word in str(e.value) for word in words) and '\n' not in str(e.value), e.value
    assert not (tmp_path / 'out').exists()

def test_mistakes_on_the_command_line(prepare, tmp_path):
    write(tmp_path / 'hf', 'llama')
    ours(tmp_path / 'out')
    before = (tmp_path / 'out' / 'ckpt.pt').read_bytes()
    refused(run('prepare.py', 'export=x', 'weights=hf', cwd=tmp_path), 'weights', 'export', status=2)
    for settings, words in (dict(weights=tmp_path / 'hf'),
                            'exists already: choose another out_dir'), (dict(weights='nowhere', out_dir='x'),
                                                                        'weights=nowhere'), \
            (dict(export='x', out_dir='y'), 'no checkpoint y/ckpt.pt'):
        with pytest.raises(SystemExit, match=words):
            prepare(**settings)
    assert (tmp_path / 'out' / 'ckpt.pt').read_bytes() == before

# ---- the hub, played by a server on this machine ----

def test_from_the_hub(prepare, tmp_path, monkeypatch):
    write(tmp_path / 'hub', 'qwen3')
    (tmp_path / 'hub' / 'README.md').write_text('not wanted')
    files, seen = {p.name: p.read_bytes() for p in (tmp_path / 'hub').iterdir()}, []
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            listing = {'sha': 'abc', 'siblings': [{'rfilename': n, 'size': len(raw)} for n, raw in files.items()]}
            raw = json.dumps(listing).encode() if '/api/' in self.path else files[self.path.rpartition('/')[2]]
            self.send_response(200)
            self.send_header('Content-Length', str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
        def log_message(self, *args):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(P, 'HUB', f'http://127.0.0.1:{server.server_port}')
        one = load_checkpoint(str(prepare(weights='some-one/tiny', out_dir=tmp_path / 'one')))
        assert '/some-one/tiny/resolve/abc/model.safetensors' in seen and not any('README' in path for path in seen)
        before = len(seen)
        prepare(weights='some-one/tiny', out_dir=tmp_path / 'two')
        assert len(seen) == before  # it is here already
        server.shutdown()
    prepare(weights=tmp_path / 'hub', out_dir=tmp_path / 'three')
    assert all(torch.equal(t, one['model'][n]) for n, t in load_checkpoint(str(tmp_path / 'three'))['model'].items())
    monkeypatch.setattr(P, 'HUB', 'http://127.0.0.1:9')
    with pytest.raises(SystemExit, match='cannot download'):
        prepare(weights='some-one/other', out_dir=tmp_path / 'four')

"""Alignment: the rule and the data agree, each loss is what its paper says, the ratio starts at 1, the KL is never negative."""
import csv, json, math, os
import pytest
import torch
from torch.nn import functional as F
import align as S
import prepare as P
from conftest import refused, run
from model import GPTConfig, Tokenizer, build_model, load_checkpoint, load_model, save_atomically

BYTES = Tokenizer('bpe', [bytes([b]) for b in range(256)])  # the simplest vocabulary: a token a byte
SHAPE = dict(vocab_size=BYTES.vocab_size, n_layer=1, n_head=2, n_embd=32, block_size=48)
TINY = dict(data_dir='data', dataset='pairs', init_from='base', out_dir='out', batch_size=8, max_iters=6, imitate_iters=2, eval_interval=3,
            log_interval=2, warmup_iters=1, num_samples=4, max_new_tokens=12, group_size=4, device='cpu')
DEFAULTS = {name: getattr(S, name) for name in S.SETTINGS}

def base(folder, seed=0, tokenizer=BYTES, **more):
    """A checkpoint to start from: random weights, with something in the matrices that usually begin at zero."""
    torch.manual_seed(seed)
    config = GPTConfig(**{**SHAPE, 'vocab_size': tokenizer.vocab_size})
    model = build_model(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    os.makedirs(folder, exist_ok=True)
    save_atomically(os.path.join(folder, 'ckpt.pt'), {'format': 'ninefiles-1', 'model': model.state_dict(), 'config': config.__dict__,
                                                      'tokenizer': tokenizer.to_dict(), 'step': 0, 'settings': {}, **more})

def pair(question, answer):
    return {'prompt': question, 'answer': answer, 'chosen': answer + ', friend.', 'rejected': answer}

def write(name, train, val):
    os.makedirs(os.path.join('data', name), exist_ok=True)
    for split, examples in (('train', train), ('val', val)):
        with open(os.path.join('data', name, f'{split}.jsonl'), 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(e) + '\n' for e in examples)

@pytest.fixture
def go(monkeypatch, tmp_path):
    """Align with these settings in this process; returns ckpt.pt's or resume.pt's dictionary."""
    monkeypatch.chdir(tmp_path)
    base('base')
    write('pairs', [pair(f'say {c}{d}', c) for c in 'abcdefgh' for d in 'abcd'], [pair(f'say {c}z', c) for c in 'abcdef'])
    def align(which='ckpt.pt', **changes):
        monkeypatch.setattr(S, 'given', set(changes))
        for name, value in {**DEFAULTS, **TINY, **changes}.items():
            monkeypatch.setattr(S, name, value)
        S.align()
        return load_checkpoint(os.path.join(S.out_dir, which))
    return align

def close(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a['model'].values(), b['model'].values(), strict=True))

@pytest.mark.parametrize('how', [dict(method='reward'), dict(method='dpo'), dict(method='ppo'), dict(method='grpo'), dict(method='constitution', imitate_iters=30, imitate_rate=0.01)])
def test_stopping_and_going_on_changes_nothing(go, how):
    straight = go('resume.pt', out_dir='straight', lr_decay_iters=6, **how)
    go(out_dir='parts', max_iters=3, lr_decay_iters=6, **how)
    again = go('resume.pt', out_dir='parts', init_from='resume', max_iters=6)
    assert all(torch.equal(a, b) for a, b in zip(straight['policy'].values(), again['policy'].values(), strict=True))
    load_model('parts')  # a plain checkpoint

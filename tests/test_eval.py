"""Measuring: every number against one that was computed some other way."""
import io, math, statistics
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import eval as E
from conftest import byte_tokenizer, chat, refused, save_untrained, worked, write_dataset, write_jsonl
from model import GPTConfig, Tokenizer, build_model, load_dataset, save_checkpoint

def tiny(folder, seed=0, **more):
    """A checkpoint of random weights, large enough for opinions; returns the model."""
    return save_untrained(folder, seed=seed, noise=0.3, block_size=32, **more).eval()

def parrot(folder, answer):
    """A checkpoint that always says the same: a table of which byte comes after which."""
    tokenizer = byte_tokenizer()
    model = build_model(GPTConfig('bigram', tokenizer.vocab_size, 32))
    ids = [tokenizer.special['<|assistant|>'], *answer.encode(), tokenizer.end]
    for a, b in zip(ids, ids[1:]):
        model.wte.weight.data[a, b] = 9.0
    folder.mkdir()
    save_checkpoint(str(folder / 'ckpt.pt'), model.state_dict(), model.config, tokenizer)

def table(done, key='measure'):
    """{measure: row} of a run."""
    return {row[key]: row for row in worked(done).globals['rows']}

# ---- means and their errors, by hand ----

def test_means_and_shares_with_their_errors():
    values = [1.0, 4.0, 2.0, 2.0, 7.0]
    found = E.mean_and_stderr(values)
    assert found['items'] == 5 and found['mean'] == pytest.approx(statistics.mean(values))
    assert found['±'] == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    # 25 nats over 10 tokens in three windows; residuals 10 - 2.5 * 4, 3 - 2.5 * 1, 12 - 2.5 * 5
    found = E.mean_and_stderr([10.0, 3.0, 12.0], [4, 1, 5])
    assert found['items'] == 10 and found['mean'] == pytest.approx(2.5)
    assert found['±'] == pytest.approx(math.sqrt((0 + 0.5**2 + 0.5**2) * 3 / 2) / 10)
    assert math.isnan(E.mean_and_stderr([3.0])['±'])  # one value says nothing of its error
    # the interval of a share; p ± error would say 0 ± 0 of (0, 10)
    assert E.wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-5)
    assert E.wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-5)
    assert E.wilson(0, 0) == pytest.approx((0, 1))  # of no trials, nothing is known

# ---- perplexity ----

def test_windows_predict_every_token_once():
    found = E.strided_windows(list('abcdefg'), 4, 2, '⊥')
    assert [(''.join(ids), n) for ids, n in found] == [('⊥abcd', 4), ('bcdef', 2), ('defg', 1)]
    for length in range(1, 20):
        for T in range(1, 7):
            for stride in range(1, T + 1):
                rows = E.strided_windows(range(length), T, stride, -1)
                assert np.concatenate([ids[-n:] for ids, n in rows]).tolist() == list(range(length))
                for ids, n in rows:  # at most T tokens of context, at least T - stride
                    assert len(ids) <= T + 1 and (len(ids) - n > T - stride or ids[0] == -1)

@pytest.mark.parametrize('model_type, T, stride', [('lstm', 32, 32), ('gpt', 8, 3), ('gpt', 5, 1)])
def test_perplexity_is_that_of_a_forward_pass_per_token(run, tmp_path, model_type, T, stride):
    model, tokenizer = tiny(tmp_path / 'a', model_type=model_type), byte_tokenizer()
    text = 'the cat saw a dog.\n\n  über the mat and sat 12345 times'
    (tmp_path / 'a.txt').write_text(text, encoding='utf-8')
    rows = table(run('eval.py', 'input=a.txt', 'out_dir=a', f'block_size={T}', f'stride={stride}'))
    ids = [tokenizer.eot] + tokenizer.encode(text)
    losses = []
    for i in range(1, len(ids)):  # its window starts a multiple of stride from the beginning
        start = max(0, -(-(i - T) // stride) * stride)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:i]]))[0, -1]
        losses.append(F.cross_entropy(logits, torch.tensor(ids[i])).item())
    loss = statistics.mean(losses)
    assert rows['loss']['mean'] == pytest.approx(loss, abs=1e-5)
    assert rows['loss']['items'] == len(ids) - 1
    assert rows['perplexity']['mean'] == pytest.approx(math.exp(loss), rel=1e-5)
    bits = sum(losses) / math.log(2) / len(text.encode())
    assert rows['bits per byte']['mean'] == pytest.approx(bits, abs=1e-5)

def test_bits_per_byte_compare_two_tokenizers(run, data, tmp_path):
    tokenizer, splits = load_dataset(str(data / 'tiny'))
    tiny(tmp_path / 'a')
    tiny(tmp_path / 'c', tokenizer=tokenizer)
    (tmp_path / 'known.txt').write_text('the cat sat on a mat. ' * 3)
    (tmp_path / 'foreign.txt').write_text('ZZZ' * 9)  # which c's characters cannot write
    for name, models in (('known', ['a', 'c']), ('foreign', ['a'])):
        rows = worked(run('eval.py', f'input={name}.txt', 'out_dir=a,c')).globals['rows']
        bits = [row for row in rows if row['measure'] == 'bits per byte']
        assert [row['model'] for row in bits] == models and len({row['items'] for row in bits}) == 1
    rows = table(run('eval.py', f'data_dir={data}', 'dataset=tiny', 'out_dir=c'))
    assert rows['loss']['items'] == len(splits['val'])  # a split is scored whole

# ---- the distance between two models ----

def test_kl_of_two_models_and_where_it_is_largest(run, tmp_path):
    a, b, tokenizer = tiny(tmp_path / 'a'), tiny(tmp_path / 'b', seed=1), byte_tokenizer()
    text = 'the cat saw a dog under the sky'
    (tmp_path / 'a.txt').write_text(text)
    done = run('eval.py', 'task=kl', 'input=a.txt', 'out_dir=a,b', 'num_samples=3')
    ids = torch.tensor([[tokenizer.eot] + tokenizer.encode(text)])[:, :-1]
    with torch.no_grad():
        p, q = (model(ids)[0].double().softmax(-1).numpy() for model in (a, b))
    kl = (p * np.log(p / q)).sum(-1)
    rows = table(done)
    assert rows['KL(a‖b)']['mean'] == pytest.approx(kl.mean(), abs=1e-5)
    assert rows['same choice']['mean'] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    places = [line.split()[0] for line in done.stdout.splitlines() if line.startswith('  ')]
    assert places == [f"{value:.3f}" for value in sorted(kl, reverse=True)[:3]]
    t = kl.argmax()
    assert f"{kl[t]:.3f} {text[max(0, t - 12):t]!r:>44} {text[t]!r:<12}" in done.stdout

# ---- multiple choice ----

ROOF = {'activity_label': 'Roof work', 'ctx_a': '[header] How to fix  a roof [title] Look at it. ',
        'ctx_b': 'the man', 'label': '1', 'endings': ['is [step] up on it.', 'sings. [title] Then stop.']}

def test_hellaswag_as_the_harness_reads_it():
    """The texts are those of process_docs() in lm-evaluation-harness 0.4.13."""
    label, context, choices = E.parse_choices(ROOF)
    assert label == 1 and context == 'Roof work: How to fix a roof. Look at it. The man'
    assert choices == ['is up on it.', 'sings.. Then stop.']

def test_where_a_context_ends_and_a_choice_begins():
    tokenizer = Tokenizer('bpe', [bytes([b]) for b in range(256)] + [b' a', b'  '])
    (ids, n), = E.choice_rows(tokenizer, 'it is', ['a cat'], 99)
    assert tokenizer.decode(ids[:-n]) == 'it is' and ids[-n:] == [256, *b' cat']  # its space is the choice's
    (ids, n), = E.choice_rows(tokenizer, 'it is ', ['a cat'], 99)
    assert tokenizer.decode(ids[:-n]) == 'it is' and ids[-n:][:2] == [32, 256]  # so are all others
    assert list(E.choice_rows(tokenizer, '', ['b'], 99))[0][0][0] == tokenizer.eot
    (ids, n), = E.choice_rows(tokenizer, 'it is', ['a cat'], 7)  # too long: the beginning goes
    assert tokenizer.decode(ids) == ' is a cat' and n == 5

def test_what_acc_and_acc_norm_divide_by():
    """Where all bytes are equally likely, the shortest ending wins; and per character the one whose
    characters have a byte each: 'ü' has two."""
    tokenizer = byte_tokenizer()
    model = build_model(GPTConfig('bigram', tokenizer.vocab_size, 32))
    questions = [(label, 'c', ['ü', 'abcdefgh']) for label in (0, 1, 1, 1)]
    acc, acc_norm = E.accuracy(model, tokenizer, questions)
    # with its space 'ü' has 3 tokens in 1 character, 'abcdefgh' 9 in 8
    assert acc['mean'] == 0.25 and acc_norm['mean'] == 0.75
    assert acc['±'] == pytest.approx(statistics.stdev([1, 0, 0, 0]) / 2)

def test_questions_of_both_forms(run, tmp_path):
    tiny(tmp_path / 'a')
    write_jsonl(tmp_path / 'q.jsonl', ROOF, {'context': '', 'choices': ['a cat', 'a dog', 'it'], 'label': 2})
    rows = table(run('eval.py', 'task=choices', 'input=q.jsonl', 'out_dir=a'))
    assert list(rows) == ['acc', 'acc_norm'] and all(row['items'] == 2 for row in rows.values())

# ---- text against references: values of sacrebleu 2.6.0, rouge-score 0.1.2, pycocoevalcap 1.2 ----

PAIRS = [('the cat sat on the mat.', ['the cat is on the mat.', 'there is a cat on the mat.']),
         ('a small red circle, left of 2 blue squares', ['a small red circle is left of two blue squares']),
         ('the the the', ['the cat']), ('', ['nothing to say']), ('5', ['5']),
         ("It costs $3.50, doesn't it?", ["It costs $3.50 - doesn't it?"])]

def test_words_and_bleu_by_hand():
    words = E.bleu_words("Don't pay $3.50, or 1,000.5 (5-6) e.g. &quot;x-y&quot; a.b,c...")
    assert ' '.join(words) == 'Don\'t pay $ 3.50 , or 1,000.5 ( 5 - 6 ) e . g . " x-y " a . b , c . . .'
    # matches of 1 to 4 words: 4 of 6 ('a b c d'), 3 of 5, 2 of 4, 1 of 3; of 3 and 7 words 7 is closest
    pair = 'a b c d e f'.split(), ['a b c'.split(), 'a b c d x y z'.split()]
    expected = 100 * math.exp(1 - 7 / 6) * (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert E.bleu([pair]) == pytest.approx(expected)

def test_bleu_rouge_and_cider_are_those_of_the_references(run, tmp_path):
    write_jsonl(tmp_path / 'h.jsonl', *({'hypothesis': h, 'references': right} for h, right in PAIRS))
    rows = table(run('eval.py', 'task=text', 'hypotheses=h.jsonl'))
    assert rows['BLEU']['mean'] == pytest.approx(38.96078, abs=1e-6) and rows['BLEU']['items'] == 6
    assert rows['CIDEr-D']['mean'] == pytest.approx(21.233211 / 6, abs=1e-6)
    assert rows['exact match']['mean'] == pytest.approx(1 / 6)
    words = [(E.rouge_words(h), [E.rouge_words(r) for r in right]) for h, right in PAIRS]
    assert sum((E.rouge(*pair) for pair in words), ()) == pytest.approx(
        (0.833333, 0.6, 0.833333, 0.842105, 0.588235, 0.842105, 0.4, 0, 0.4, 0, 0, 0, 1, 0, 1, 1, 1, 1), abs=1e-6)
    assert list(E.cider(words)) == pytest.approx([3.535871, 4.616212, 0.581128, 0, 2.5, 10], abs=1e-6)
    assert E.lcs('abcd', 'xbxd') == 2 and E.lcs('', 'a') == 0

# ---- what models answer ----

def test_exact_match_by_skill(run, tmp_path):
    triples = [('2 + 3', '5', 'sum'), ('cat', 'tac', 'reverse'), ('10 - 5', ' 5', 'sum'), ('2', '4', 'sum')]
    chats = [{**chat(question, answer), 'skill': skill} for question, answer, skill in triples]
    write_dataset('data/chat', chats, chats)
    parrot(tmp_path / 'p', '5')
    rows = table(run('eval.py', 'task=instruct', 'dataset=chat', 'out_dir=p', 'batch_size=3'), 'skill')
    assert [(skill, row['mean']) for skill, row in rows.items()] == [
        ('reverse', 0), ('sum', pytest.approx(2 / 3)), ('all', 0.5)]

def test_a_blind_comparison(run, monkeypatch, tmp_path):
    """Someone always likes b's answers better: b wins, on whichever side; no vote is asked for twice."""
    write_dataset('data/chat', [chat('', '')], [chat(f'prompt {i}', '') for i in range(12)])
    parrot(tmp_path / 'a', 'yes')
    parrot(tmp_path / 'b', 'no')
    a_first = [bool(np.random.default_rng([1337, i]).permutation(2)[0] == 0) for i in range(12)]
    assert 2 < sum(a_first) < 10  # sides are random
    likes_b = ['2' if first else '1' for first in a_first]

    def vote(*votes):
        monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(votes) + '\n'))
        done = run('eval.py', 'task=compare', 'dataset=chat', 'out_dir=a,b')
        row, = done.globals['rows']
        return done.stdout, row

    printed, row = vote('what?', *likes_b[:5], 'q')
    assert (row['wins'], row['losses'], row['ties']) == (0, 5, 0)
    assert row['to'] == pytest.approx(0.434, abs=1e-3) and printed.count('prompt ') == 6
    assert ('[1] yes' if a_first[0] else '[1] no') in printed
    printed, row = vote(*likes_b[5:9], 't')  # and then the input ends
    assert (row['wins'], row['losses'], row['ties']) == (0, 9, 1) and 'prompt 4' not in printed

# ---- mistakes end in one line ----

@pytest.mark.parametrize('settings, line, words', [
    ('input=in.txt', '', ['nothing to measure']),
    ('input=in.txt stride=9 block_size=8', 'x', ['stride=9']),
    ('input=in.txt block_size=64', 'x', ['block_size <= 32']),
    ('input=in.txt out_dir=encoder', 'x', ['out_dir=encoder is an encoder']),
    ('out_dir=c dataset=bpe', '', ['c uses a different tokenizer', 'task=perplexity input=FILE']),
    ('task=choices input=in.txt', '{"context": "a", "choices": ["b"], "label": 0}', ['line 1', 'at least two']),
    ('task=choices input=none', '', ["no file 'none'", '--help']),
    ('task=text hypotheses=in.txt', '{"hypothesis": "a", "references": "b"}', ['line 1', 'a list']),
    ('task=text hypotheses=in.txt', '{"hypothesis": ', ['line 1: JSONDecodeError']),
    ('task=kl input=in.txt out_dir=a,a', 'x', ['two models']),
    ('task=instruct data_dir=. dataset=.', '{"text": "a", "label": "b"}', ['holds no conversations']),
    ('task=kl input=in.txt out_dir=a,c', 'x', ['c uses a different tokenizer']),
])
def test_mistakes_end_in_one_line(run, data, tmp_path, settings, line, words):
    tiny(tmp_path / 'a')
    tiny(tmp_path / 'c', tokenizer=load_dataset(str(data / 'tiny'))[0])
    tiny(tmp_path / 'encoder', causal=False)
    for name in ('in.txt', 'train.jsonl', 'val.jsonl'):
        (tmp_path / name).write_text(line)
    if 'out_dir' not in settings:
        settings += ' out_dir=a'
    refused(run('eval.py', f'data_dir={data}', *settings.split()), *words)

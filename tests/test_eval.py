"""Measuring: every number against one that was computed some other way, and no result where there is none."""
import io, json, math, re, statistics
from dataclasses import asdict
import numpy as np
import pytest
import torch
from torch.nn import functional as F
import eval as E
from conftest import refused, spawn
from model import GPTConfig, Tokenizer, build_model, load_dataset, save_atomically

def tiny(tokenizer, seed=0, **changes):
    """A small random model, whose weights are large enough for opinions."""
    torch.manual_seed(seed)
    config = dict(vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32, block_size=32)
    model = build_model(GPTConfig(**{**config, **changes})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return model

def save(folder, model, tokenizer):
    folder.mkdir(exist_ok=True)
    save_atomically(str(folder / 'ckpt.pt'), {'format': 'ninefiles-2', 'model': model.state_dict(),
                                              'config': asdict(model.config),
                                              'tokenizer': tokenizer.to_dict(), 'step': 0, 'settings': {}})

@pytest.fixture
def evaluate(monkeypatch, tmp_path, data):
    """Set eval.py's settings and run it here; returns the rows of its table."""
    monkeypatch.chdir(tmp_path)
    def run_it(**changes):
        defaults = dict(data_dir=str(data), dataset='bpe', input='', hypotheses='', out_dir='a',
                        device='cpu', limit=0,
                        stride=0, block_size=0, batch_size=3, max_new_tokens=6, num_samples=4, temperature=0.0,
                        seed=1337)
        for name, value in {**defaults, **changes}.items():
            monkeypatch.setattr(E, name, value)
        return E.main()
    tokenizer = load_dataset(str(data / 'bpe'))[0]
    save(tmp_path / 'a', tiny(tokenizer), tokenizer)
    save(tmp_path / 'b', tiny(tokenizer, seed=1), tokenizer)
    run_it.tokenizer, run_it.folder = tokenizer, tmp_path
    return run_it

def lines(path, *items):
    path.write_text(''.join(json.dumps(item) + '\n' for item in items), encoding='utf-8')
    return str(path)

# ---- means and errors ----

def test_errors_by_hand():
    values = [1.0, 4.0, 2.0, 2.0, 7.0]
    mean, stderr = E.mean_and_stderr(values)
    assert mean == statistics.mean(values)
    assert stderr == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    nats, tokens = [10.0, 3.0, 12.0], [4, 1, 5]  # of three windows: residuals 10 - 2.5 * 4 …
    ratio = E.mean_and_stderr(nats, tokens)
    assert ratio == pytest.approx((2.5, math.sqrt((0 + 0.5**2 + 0.5**2) * 3 / 2) / 10))
    assert E.mean_and_stderr([3.0]) == (3.0, None)  # one item says nothing of its error

def test_wilson():
    assert list(E.wilson(5, 10).values()) == pytest.approx([0.236593, 0.763407], abs=1e-5)
    assert list(E.wilson(0, 10).values()) == pytest.approx([0, 0.277533], abs=1e-5)  # p ± error would say 0 ± 0
    assert list(E.wilson(0, 0).values()) == pytest.approx([0, 1])

# ---- perplexity ----

def test_windows_predict_every_token_once():
    assert list(E.windows([list('abc'), list('defg')], 4, 2, '⊥')) == [(list('⊥abcd'), 0), (list('bcdef'), 2),
                                                                       (list('defg'), 2)]
    for n in range(1, 20):
        for T in range(1, 7):
            for step in range(1, T + 1):
                rows = list(E.windows([list(range(n // 2)), list(range(n // 2, n))], T, step, -1))
                assert [i for ids, done in rows for i in ids[done + 1:]] == list(range(n))
                assert all(len(ids) <= T + 1 and (done >= T - step or ids[0] == -1) for ids, done in rows)

@pytest.mark.parametrize('block_size, stride', [(32, 32), (8, 8), (8, 3), (5, 1)])
def test_perplexity_is_that_of_a_loop(evaluate, block_size, stride):
    tokenizer, text = evaluate.tokenizer, 'the cat saw a dog.\n\n  über the mat and sat 12345 times, while it rained' * 2
    (evaluate.folder / 'a.txt').write_text(text, encoding='utf-8')
    rows = {(r['model'], r['measure']): r for r in evaluate(task='perplexity', input='a.txt', block_size=block_size,
                                                            stride=stride)}
    model, ids, losses = tiny(tokenizer), [tokenizer.eot] + tokenizer.encode(text), []
    for i in range(1, len(ids)):  # the window that scores token i starts a multiple of stride from the beginning
        start = 0 if i <= block_size else -(-(i - block_size) // stride) * stride
        with torch.no_grad():
            losses.append(F.cross_entropy(model(torch.tensor([ids[start:i]]))[0, -1], torch.tensor(ids[i])).item())
    loss, n_bytes = statistics.mean(losses), len(text.encode())
    assert rows['a', 'loss']['mean'] == pytest.approx(loss, abs=1e-5) and rows['a', 'loss']['items'] == len(ids) - 1
    assert rows['a', 'perplexity']['mean'] == pytest.approx(math.exp(loss), rel=1e-5)
    assert rows['a', 'bits per byte']['mean'] == pytest.approx(sum(losses) / math.log(2) / n_bytes, abs=1e-5)

def test_two_tokenizers_are_comparable_in_bits_per_byte(evaluate, data, tmp_path):
    char = load_dataset(str(data / 'tiny'))[0]
    save(tmp_path / 'c', tiny(char), char)
    (tmp_path / 'known.txt').write_text('the cat sat on a mat. ' * 3)
    (tmp_path / 'foreign.txt').write_text('ZZZ' * 9)  # what a vocabulary of characters lacks cannot be written with it
    rows = evaluate(task='perplexity', input='known.txt', out_dir='a,c')
    assert {r['items'] for r in rows if r['measure'] == 'bits per byte'} == {66} and [r['model']
                                                                                      for r in rows[:2]] == ['a', 'c']
    rows = evaluate(task='perplexity', input='foreign.txt', out_dir='a,c')
    assert [r['model'] for r in rows if r['measure'] == 'bits per byte'] == ['a']
    with pytest.raises(SystemExit, match='another tokenizer.*input=FILE'):
        evaluate(task='perplexity', dataset='bpe', out_dir='c')

def test_a_long_text_is_read_in_pieces_that_change_nothing(evaluate, monkeypatch, tmp_path):
    text = 'the cat \n   sat on  \n   a mat \n  ' * 50000  # 1.6 MB, with white space across every end of a line
    (tmp_path / 'long.txt').write_text(text)
    monkeypatch.setattr(E, 'input', 'long.txt')
    tokenizer = Tokenizer('bpe', [bytes([b]) for b in range(256)] + [b' \n', b'  ',
                                                                     b' \n  '])  # tokens that a cut could break
    chunks = list(E.token_chunks(tokenizer, 'a'))
    assert len(chunks) > 2 and sum(chunks, []) == tokenizer.encode(text)

def test_a_split_is_scored_whole(evaluate, data):
    rows = evaluate(task='perplexity', dataset='bpe')
    assert rows[0]['items'] == len(load_dataset(str(data / 'bpe'))[1]['val'])

def test_kl_by_hand(evaluate):
    (evaluate.folder / 'a.txt').write_text('the cat saw a dog under the blue sky while it rained')
    rows = {r['measure']: r for r in evaluate(task='kl', input='a.txt', out_dir='a,b', block_size=8, stride=5)}
    ids = [evaluate.tokenizer.eot] + evaluate.tokenizer.encode('the cat saw a dog under the blue sky while it rained')
    sums = np.zeros(4)
    for i in range(1, len(ids)):
        start = 0 if i <= 8 else -(-(i - 8) // 5) * 5
        with torch.no_grad():
            p, q = (tiny(evaluate.tokenizer, seed)(torch.tensor([ids[start:i]]))[0, -1].double().softmax(-1).numpy()
                    for seed in (0, 1))
        m = (p + q) / 2
        js = (p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2
        sums += [(p * np.log(p / q)).sum(), (q * np.log(q / p)).sum(), js, p.argmax() == q.argmax()]
        assert 0 <= js <= math.log(2)
    means = [rows[k]['mean'] for k in ('KL(a‖b)', 'KL(b‖a)', 'Jensen–Shannon', 'same choice')]
    assert means == pytest.approx((sums / (len(ids) - 1)).tolist(), abs=1e-5)

# ---- multiple choice ----

ROOF = {'activity_label': 'Roof work', 'ctx_a': '[header] How to fix  a roof [title] Look at it. ',
        'ctx_b': 'the man', 'label': '1',
        'ctx': '[header] How to fix  a roof [title] Look at it.  the man',
        'endings': ['is [step] up on it.', 'sings. [title] Then stop.']}

def test_hellaswag_as_the_harness_reads_it():
    label, context, choices = E.parse_choices(ROOF)
    assert label == 1  # and the rest as process_docs() of lm-evaluation-harness 0.4.13 has it
    assert context == 'Roof work: How to fix a roof. Look at it. The man'
    assert choices == ['is up on it.', 'sings.. Then stop.']

def test_where_a_context_ends_and_a_choice_begins():
    tokenizer = Tokenizer('bpe', [bytes([b]) for b in range(256)] + [b' a', b'  '])
    context, (choice,) = E.encode_choices(tokenizer, 'it is', ['a cat'])
    assert tokenizer.decode(context) == 'it is'
    assert choice == [256, *b' cat']  # the space belongs to the choice
    assert E.encode_choices(tokenizer, '', ['b'])[0] == [tokenizer.eot]
    context, (choice,) = E.encode_choices(tokenizer, 'it is ', ['a cat'])
    assert tokenizer.decode(context) == 'it is' and choice[:2] == [32, 256]  # all spaces go over to the choice

@pytest.mark.parametrize('model_type', ['gpt', 'lstm'])
def test_endings_score_as_one_forward_pass_each(evaluate, model_type):
    """Contexts and endings of all lengths in one batch, some of them too long for the model."""
    rng = np.random.default_rng(0)
    model = tiny(evaluate.tokenizer, model_type=model_type)
    pairs = []
    for n_context, n_ending in ((5, 1), (5, 3), (1, 9), (31, 2), (40, 30), (12, 22), (3, 32)):
        context = rng.integers(250, size=n_context).tolist()
        ending = rng.integers(250, size=n_ending).tolist()
        pairs.append((context, ending))
    for (context, ending), log in zip(pairs, E.score(model, pairs)):
        ids = (context + ending)[-33:]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0]
        losses = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction='none')
        assert log == pytest.approx(-losses[-len(ending):].sum().item(), abs=1e-4)

def test_what_acc_and_acc_norm_divide_by(evaluate, monkeypatch):
    """The first choice has the best log-likelihood, the second the best per character."""
    logs = [-1.0, -5.0, -4.0]
    monkeypatch.setattr(E, 'score', lambda model, pairs: logs * (len(pairs) // 3))
    choices = ['a', 'x' * 20, 'abcdefgh']  # 1, 20 and 8 characters
    questions = [{'context': 'c', 'choices': choices, 'label': label} for label in (0, 1, 1, 2)]
    path = lines(evaluate.folder / 'q.jsonl', *questions)
    rows = {r['measure']: r for r in evaluate(task='choices', input=path)}
    assert rows['acc']['mean'] == 0.25 and rows['acc_norm']['mean'] == 0.5
    assert rows['acc']['±'] == pytest.approx(statistics.stdev([1, 0, 0, 0]) / 2)

def test_questions_of_both_forms(evaluate):
    rows = evaluate(task='choices', input=lines(evaluate.folder / 'q.jsonl',
                                                {**ROOF, 'ctx': 'The man', 'ctx_a': 'The', 'ctx_b': 'man'},
                                                {'context': '', 'choices': ['a cat', 'a dog', 'it'], 'label': 2}))
    assert len(rows) == 2 and all(r['items'] == 2 and 0 <= r['mean'] <= 1 for r in rows)

# ---- text against references: stored values are sacrebleu 2.6.0's, rouge-score 0.1.2's, pycocoevalcap 1.2's ----

PAIRS = [('the cat sat on the mat.', ['the cat is on the mat.', 'there is a cat on the mat.']),
         ('a small red circle, left of 2 blue squares', ['a small red circle is left of two blue squares']),
         ('the the the', ['the cat']), ('', ['nothing to say']), ('5', ['5']),
         ("It costs $3.50, doesn't it?", ["It costs $3.50 - doesn't it?"])]
SACREBLEU = (38.96078, [48.892302, 35.494811, 27.51606, 0, 100, 50])  # of all, of each

def test_13a():
    words = E.bleu_words("Don't pay $3.50, or 1,000.5 (5-6) e.g. &quot;x-y&quot; a.b,c...")
    assert ' '.join(words) == 'Don\'t pay $ 3.50 , or 1,000.5 ( 5 - 6 ) e . g . " x-y " a . b , c . . .'

def test_bleu_counts_by_hand():
    """A match counts as often as in the one reference that has it most often; the length is the closest reference's, the shorter of two."""
    assert E.bleu_counts('the the the the the'.split(), ['the cat the'.split(),
                                                         'the dog is here now ok x'.split()]).tolist() == [5, 3, 2, 0,
                                                                                                           0, 0, 5, 4, 3, 2]
    assert E.bleu_counts('a b c d e f'.split(), ['a b c'.split(), 'a b c d x y z'.split()]).tolist() == [6, 7, 4, 3, 2,
                                                                                                         1, 6, 5, 4, 3]

def test_bleu_is_sacrebleu():
    counts = [E.bleu_counts(E.bleu_words(h), [E.bleu_words(r) for r in right]) for h, right in PAIRS]
    corpus, sentences = SACREBLEU
    assert E.bleu(sum(counts)) == pytest.approx(corpus, abs=1e-6)
    assert [E.bleu(c, effective_order=True) for c in counts] == pytest.approx(sentences, abs=1e-6)

def test_rouge_and_cider():
    rouge = [[max(scores) for scores in zip(*(E.rouge(E.rouge_words(h), E.rouge_words(r)) for r in right))]
             for h, right in PAIRS]
    assert sum(rouge, []) == pytest.approx([0.833333, 0.6, 0.833333, 0.842105, 0.588235, 0.842105, 0.4, 0, 0.4, 0, 0, 0,
                                            1, 0, 1, 1, 1, 1], abs=1e-6)
    words = [(E.rouge_words(h), [E.rouge_words(r) for r in right]) for h, right in PAIRS]
    df = E.Counter()
    for _, right in words:
        df.update({g for w in right for n in range(1, 5) for g in E.ngrams(w, n)})
    assert [E.cider(h, right, df, len(words)) for h, right in words] == pytest.approx([3.535871, 4.616212, 0.581128, 0,
                                                                                       2.5, 10], abs=1e-6)
    assert E.lcs('abcd', 'xbxd') == 2 and E.lcs('', 'a') == 0

def test_files_of_text(evaluate, tmp_path):
    def table(hypotheses):
        return {r['measure']: r for r in evaluate(task='text', hypotheses=hypotheses)}
    rows = table(lines(tmp_path / 'h.jsonl', *({'hypothesis': h, 'references': right} for h, right in PAIRS)))
    assert rows['BLEU']['mean'] == pytest.approx(38.96078, abs=1e-6) and rows['BLEU']['items'] == 6
    assert rows['CIDEr-D']['mean'] == pytest.approx(21.233211 / 6,
                                                    abs=1e-6) and rows['exact match']['mean'] == pytest.approx(1 / 6)
    (tmp_path / 'h.txt').write_text('a cat\n\na dog\n')
    (tmp_path / 'r.txt').write_text('a cat\nx\na cow\n')
    (tmp_path / 's.txt').write_text('one cat\ny\na dog')
    assert table('h.txt,r.txt')['exact match']['mean'] == pytest.approx(1 / 3)
    assert table('h.txt,r.txt,s.txt')['exact match']['mean'] == pytest.approx(2 / 3)  # any of the references will do

# ---- what a model writes ----

def chats(folder, *triples):
    (folder / 'chat').mkdir(exist_ok=True)
    lines(folder / 'chat' / 'val.jsonl', *({'messages': [{'role': 'user', 'content': q},
                                                         {'role': 'assistant', 'content': a}], 'skill': s}
                                                         for q, a, s in triples))

def test_exact_match_by_skill(evaluate, monkeypatch, tmp_path):
    chats(tmp_path, ('2 + 3', '5', 'sum'), ('2 + 2', '4', 'sum'), ('cat', 'tac', 'reverse'), ('9 + 9', '18', 'sum'))
    said = []
    def complete(model, tokenizer, prompts, heat, first=0):
        said.extend(map(tokenizer.decode, prompts))
        return [(text, True) for text in ([' 5', '5', 'tac'], ['18'])[first // 3]]
    monkeypatch.setattr(E, 'complete', complete)
    rows = {r['skill']: r['mean'] for r in evaluate(task='instruct', data_dir=str(tmp_path), dataset='chat')}
    assert rows == {'reverse': 1.0, 'sum': pytest.approx(2 / 3), 'all': 0.75} and list(rows)[-1] == 'all'
    assert said[0] == '<|user|>2 + 3<|end|><|assistant|>'

def test_a_models_own_answers(evaluate, tmp_path):
    chats(tmp_path, *((f'say {i}', str(i), 'say') for i in range(5)))
    assert len(evaluate(task='text', data_dir=str(tmp_path), dataset='chat', temperature=1.0)) == 7
    def answers(size):
        E.batch_size = size
        return [answer for answer, _, _ in E.answered(tiny(evaluate.tokenizer), evaluate.tokenizer)]
    assert answers(5) == answers(5) and len(set(answers(5))) > 3  # the seed decides

def test_blind_comparison(evaluate, monkeypatch, tmp_path, capsys):
    """Someone who always likes b's answers better: whichever side they are on, b wins; and no vote is asked for twice."""
    models = []
    def complete(model, tokenizer, prompts, heat, first=0):
        models.append(model)
        return [(f"answer of {'a' if len(models) % 2 == a_first[first] else 'b'}", True)]
    (tmp_path / 'p.txt').write_text(''.join(f'prompt {i}\n' for i in range(12)))
    a_first = [int(np.random.default_rng([1337, i]).permutation(2)[0] == 0) for i in range(12)]
    assert 2 < sum(a_first) < 10  # sides are random
    monkeypatch.setattr(E, 'complete', complete)
    votes = ['1' if not a else '2' for a in a_first]
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(['what?'] + votes[:5] + ['q']) + '\n'))
    monkeypatch.setattr(E, 'votes', 'v.jsonl')
    row, = evaluate(task='compare', out_dir='a,b', input='p.txt')
    assert (row['wins'], row['losses'],
            row['ties']) == (0, 5, 0) and row['win rate'] == 0 and row['to'] == pytest.approx(0.434, abs=1e-3)
    assert capsys.readouterr().out.count('prompt ') == 6
    models.clear()
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(votes[5:9] + ['t']) + '\n'))  # and then the input ends
    row, = evaluate(task='compare', out_dir='a,b', input='p.txt')
    assert (row['wins'], row['losses'], row['ties']) == (0, 9, 1) and 'prompt 4' not in capsys.readouterr().out
    assert [json.loads(line)['better'] for line in open('v.jsonl')] == ['b'] * 9 + ['tie']
    monkeypatch.setattr('sys.stdin', io.StringIO('q\n'))
    row, = evaluate(task='compare', out_dir='b,a', input='p.txt')
    assert row['win rate'] is None and (row['95 % from'],
                                        row['to']) == pytest.approx((0, 1))  # nothing known of this pair

# ---- mistakes ----

QUESTION = {'context': 'a', 'choices': ['b', 'c'], 'label': 0}

@pytest.mark.parametrize('settings, content, words', [
    (dict(task='perplexity'), '', 'nothing to measure'),
    (dict(task='text', hypotheses='in.jsonl'), None, 'missing or empty'),
    (dict(task='text', hypotheses='empty.txt,empty.txt'), 'x', 'nothing to measure'),
    (dict(task='perplexity'), b'\xff\xfe', 'not UTF-8'),
    (dict(task='perplexity', stride=9, block_size=8), 'x', 'stride=9'),
    (dict(task='perplexity', block_size=64), 'x', 'block_size <= 32'),
    (dict(task='choices'), {**QUESTION, 'choices': ['b']}, 'line 2: .*one is no choice'),
    (dict(task='choices'), {**QUESTION, 'choices': ['b', ' ']}, 'line 2: .*none may be empty'),
    (dict(task='choices'), {**QUESTION, 'label': 2}, 'line 2: .*label 2'),
    (dict(task='choices'), {'context': 'a', 'choices': ['b', 'c']}, "line 2: KeyError 'label'"),
    (dict(task='choices'), {**QUESTION, 'choices': ['b', 'the cat ' * 50]}, 'does not fit into block_size=32'),
    (dict(task='text', hypotheses='in.jsonl'), {'hypothesis': 'a', 'references': []}, 'line 2: .*at least one'),
    (dict(task='text', hypotheses='in.jsonl'), {'hypothesis': 'a', 'references': 'b'}, 'line 2: .*a list'),
    (dict(task='text', hypotheses='in.jsonl'), '{"hypothesis": ', 'line 2: JSONDecodeError'),
    (dict(task='text', hypotheses='in.jsonl,short.txt'), 'x', 'short.txt has only 1 lines'),
    (dict(task='text', hypotheses='in.txt'), 'x', 'references, too'),
    (dict(task='kl', out_dir='a,a'), 'x', 'two models'),
    (dict(task='kl', out_dir='a,c'), 'x', 'different tokenizers'),
    (dict(task='instruct', temperature=-1.0), 'x', 'temperature=-1'),
    (dict(task='instruct', dataset='nowhere'), 'x', 'prepare.py dataset=nowhere'),
    (dict(task='instruct', out_dir='nowhere'), 'x', 'no checkpoint nowhere.*python train.py'),
    (dict(task='choices', batch_size=0), 'x', 'batch_size=0'),
    (dict(task='choices', out_dir='nan'), QUESTION, 'nan: not all of its weights are numbers'),
    (dict(task='perplexity', out_dir='encoder'), 'x', 'encoder holds an encoder'),
    (dict(task='text', hypotheses='in.jsonl,latin.txt'), 'x', 'latin.txt is not UTF-8'),
    (dict(task='text', hypotheses='none.jsonl'), 'x', 'none.jsonl is missing or empty; expected lines like'),
])
def test_mistakes_end_in_one_line(evaluate, data, tmp_path, capsys, settings, content, words):
    char = load_dataset(str(data / 'tiny'))[0]
    save(tmp_path / 'c', tiny(char), char)
    broken = tiny(evaluate.tokenizer)
    broken.norm.weight.data.fill_(math.nan)
    save(tmp_path / 'nan', broken, evaluate.tokenizer)
    save(tmp_path / 'encoder', tiny(evaluate.tokenizer, causal=False), evaluate.tokenizer)
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9\n')
    first = QUESTION if settings['task'] == 'choices' else {'hypothesis': 'a', 'references': ['b']}
    if content is None:
        content = ''
    elif isinstance(content, dict):
        content = json.dumps(first) + '\n' + json.dumps(content)
    elif settings['task'] == 'text':
        content = json.dumps(first) + '\n' + content
    (tmp_path / 'in.jsonl').write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / 'short.txt').write_text('one\n')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(SystemExit) as e:
        evaluate(input='in.jsonl', **settings)
    message = e.value.code if isinstance(e.value.code, str) else capsys.readouterr().err.strip()
    assert '\n' not in message and re.search(words, message), message

def test_from_the_command_line(evaluate, tmp_path):
    (tmp_path / 'a.txt').write_text('the cat sat on a mat. ' * 9)
    done = spawn('eval.py', 'input=a.txt', 'out_dir=a,b', 'device=cpu', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count('bits per byte') == 2 and 'windows of 32 tokens, 32 apart' in done.stdout, done.stderr
    refused(spawn('eval.py', 'task=perplexety', cwd=tmp_path), 'did you mean perplexity', status=2)

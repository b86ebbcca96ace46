"""
How good is it, really: the numbers that a paper would quote, computed as the reference tools compute them.

    python eval.py                                               # perplexity and bits per byte of validation text
    python eval.py out_dir=out,out-gpt input=book.txt stride=64  # two models, any text: still one table
    python eval.py task=choices dataset=hellaswag                # multiple choice; prepare.py downloads HellaSwag
    python eval.py task=text hypotheses=captions.jsonl           # BLEU, ROUGE, CIDEr-D … of a file of answers
    python eval.py task=text dataset=instruct out_dir=out-sft    # … or of a model's own
    python eval.py task=instruct dataset=instruct out_dir=out,out-sft  # exact match by skill, before and after
    python eval.py task=kl out_dir=out,out-sft                   # how far apart are two models, and where most?
    python eval.py task=compare dataset=instruct out_dir=out-sft,out-align  # which do you like better? (blind)

A number without its uncertainty is a rumour: beside most stands a standard error (±) or a 95 % interval. BLEU was
compared with sacrebleu, ROUGE with rouge-score, CIDEr-D with pycocoevalcap, HellaSwag with lm-evaluation-harness: equal
to 1e-6 on hundreds of cases each.
"""
from configurator import configure, expect, usage

task = 'perplexity'    # perplexity | choices | text | instruct | kl | compare
out_dir = 'out'        # the folder of a ckpt.pt; or several, with commas: one table for all
dataset = 'python'     # a folder in data_dir, made by prepare.py
data_dir = 'data'
split = 'val'          # train | val
input = ''             # instead of a dataset, a file: of text; .jsonl (choices); of prompts, one a line (compare)
hypotheses = ''        # text: a .jsonl of {"hypothesis": …, "references": […]}; or answers.txt,right.txt,also-right.txt
limit = 0              # stop after so many items (perplexity, kl: windows); 0: all
batch_size = 8         # items at once
block_size = 0         # perplexity, kl: tokens in a window; 0: as many as the model sees
stride = 0             # perplexity, kl: from window to window; 0: block_size; less: more context for each, slower
max_new_tokens = 128   # of an answer
temperature = 0.0      # 0 always takes the likeliest token
num_samples = 50       # kl: positions to show
votes = 'votes.jsonl'  # compare: where they are kept; run again to go on
device = 'auto'        # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'      # auto | float32 | bfloat16 | float16: of the weights
seed = 1337
configure(globals())

import json, math, os, re, sys, time
from collections import Counter, namedtuple
from itertools import islice, zip_longest
import numpy as np
import torch
from torch.nn import functional as F
from model import MAX_CHUNK_ELEMENTS, generate, load_dataset, load_model, resolve_device

# ---- 1. Means and their errors; files ----------------------------------------------------------------------

Estimate = namedtuple('Estimate', 'mean stderr')  # stderr: None where only one item was measured

def mean_and_stderr(values, weights=None):
    """
    -> Estimate(sum of values / sum of weights, its standard error), the ratio estimator of Cochran
    1977, ch. 6. Without weights: the mean and sd / √n. A loss is a ratio, too: nats over tokens,
    summed over windows of text. Exits where there is nothing to measure.
    """
    values = np.array(values, dtype=np.float64)
    if weights is None:
        weights = np.ones(len(values))
    weights = np.array(weights, dtype=np.float64)
    n = len(values)
    total = float(weights.sum())
    if total == 0 or not np.isfinite(values.sum()):
        source = hypotheses or input or dataset
        sys.exit(f"{source}: there is nothing to measure, or the sum of it is {values.sum()}")
    mean = float(values.sum()) / total
    if n == 1:
        return Estimate(mean, None)
    residuals = values - mean * weights
    variance = float((residuals**2).sum()) * n / (n - 1)
    return Estimate(mean, math.sqrt(variance) / total)

def wilson(wins, n, z=1.96):
    """95 % interval of a share (Wilson 1927): honest for few trials and near 0 or 1. (5, 10) -> 0.237 … 0.763"""
    p, n = wins / max(n, 1), n or 1e-9  # of nothing, nothing is known: 0 … 1
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {'95 % from': (middle - spread) / (1 + z * z / n), 'to': (middle + spread) / (1 + z * z / n)}

def read_lines(path):
    """A text file's lines, each with its end; exits where it is not UTF-8."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            yield from f
    except UnicodeDecodeError:
        sys.exit(f"{path} is not UTF-8 text")

def read_jsonl(path, parse, example):
    """parse(line) for each line of a file; exits, naming the line, where that fails."""
    if not os.path.exists(path) or not os.path.getsize(path):
        made = f": make it with  python prepare.py dataset={dataset}" * path.startswith(os.path.join(data_dir, dataset))
        sys.exit(f"{path} is missing or empty{made}; expected lines like {example}")
    with open(path, 'rb') as f:
        for number, line in enumerate(f, 1):
            try:
                item = parse(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
                sys.exit(f"{path} line {number}: {type(e).__name__} {e}; expected a line like {example}")
            yield item

def read_chats():
    """The dataset's conversations -> (what is said before, the right answer, the skill); those with both."""
    def parse(item):
        *before, last = item['messages']
        if not before or last['role'] != 'assistant':
            return None
        return before, last['content'], item.get('skill', 'any')
    example = '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'
    chats = read_jsonl(os.path.join(data_dir, dataset, f'{split}.jsonl'), parse, example)
    return islice(filter(None, chats), limit or None)

def batches(items, n):
    """Lists of n items, the last maybe shorter. Someone at a terminal is told how far it is."""
    items, count, mark = iter(items), 0, time.time()
    while batch := list(islice(items, n)):
        yield batch
        count += len(batch)
        if sys.stderr.isatty() and time.time() - mark > 2:
            print(f"{count:,} done", end='\r', file=sys.stderr, flush=True)
            mark = time.time()

# ---- 2. Perplexity, and the distance between two models ----------------------------------------------------

def token_chunks(tokenizer, name):
    """The text as lists of ids, a piece at a time: the dataset's .bin, or the file `input`."""
    if not input:
        own, splits = load_dataset(os.path.join(data_dir, dataset))
        if own != tokenizer:
            sys.exit(f"{name} reads with another tokenizer than dataset={dataset}: give the text itself, input=FILE")
        yield from (splits[split][i:i + 2**16].tolist() for i in range(0, len(splits[split]), 2**16))
        return
    lines, text = read_lines(input), ''
    while some := ''.join(islice(lines, 10_000)):
        text += some
        last = re.match(r'(?s).*[^\W_](?=\s)', text)  # no token goes on from a letter into white space: a safe place
        cut = last.end() if last else 0
        yield tokenizer.encode(text[:cut])
        text = text[cut:]
    yield tokenizer.encode(text)

def windows(chunks, T, step, eot):
    """
    Chunks of ids -> (up to T + 1 ids, how many of their targets came before), so that every token is a target once:
    'abcdefg', T = 4, step = 2 -> (⊥abcd, 0), (bcdef, 2), (defg, 2): from e on, at least 2 letters of context. The first
    is predicted, too, from <|endoftext|> (⊥): a compressor has to pay for all of the text.
    """
    ids, done = [eot], 0
    for chunk in chunks:
        ids, i = ids + chunk, 0
        while len(ids) - i > T:
            yield ids[i:i + T + 1], done
            i, done = i + step, T - step
        ids = ids[i:]
    if len(ids) > done + 1:
        yield ids, done

def window_batches(models, tokenizer, name):
    """-> lists of windows, with x and y (B, T) for the models; y is -100 where nothing is to be predicted."""
    most, where = min(m.config.block_size for m in models), next(models[0].parameters()).device
    T = block_size or most
    step = stride or T
    if not step <= T <= most:
        usage(f"block_size={T} stride={step}: expected stride <= block_size <= {most}, which is what {name} sees")
    print(f"{name}: windows of {T} tokens, {step} apart")
    rows = windows(token_chunks(tokenizer, name), T, step, tokenizer.eot)
    for batch in batches(islice(rows, limit or None), batch_size):
        x, y = torch.zeros(len(batch), T, dtype=torch.long), torch.full((len(batch), T), -100)
        for b, (ids, done) in enumerate(batch):
            x[b, :len(ids) - 1], y[b, done:len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[done + 1:])
        yield batch, x.to(where), y.to(where)

def token_losses(model, x, y):
    """-log p(target) in nats: ids x and targets y (B, T) -> (B, T), 0 where the target is -100."""
    hidden = model.hidden(x).flatten(0, 1)  # (B T, C)
    rows = max(1, MAX_CHUNK_ELEMENTS[x.device.type] // model.config.vocab_size)
    losses = []
    for h, targets in zip(hidden.split(rows), y.flatten().split(rows)):  # all logits at once would be many
        losses.append(F.cross_entropy(model.logits(h).float(), targets, reduction='none'))
    return torch.cat(losses).view_as(y)

@torch.no_grad()
def perplexity(model, tokenizer, name):
    """
    exp(loss): as unsure as between so many equally likely tokens. It depends on what a token is; bits per byte does
    not: a compressor reaches it that spends -log2 p bits on each token, and arithmetic coding does.
    """
    nats, tokens, n_bytes = [], [], []  # one number for each window
    lossless = tokenizer.kind != 'word'  # a vocabulary of words loses those that it lacks
    for batch, x, y in window_batches([model], tokenizer, name):
        sums = token_losses(model, x, y).cpu().double().sum(1)  # (B,)
        nats += sums.tolist()
        for ids, done in batch:
            targets = ids[done + 1:]
            targets_of_text = [i for i in targets if i != tokenizer.eot]
            if tokenizer.kind == 'hf':
                text = tokenizer.decode(targets_of_text).encode()
            else:
                text = b''.join(tokenizer.token_bytes(i) for i in targets_of_text)
            tokens.append(len(targets))
            n_bytes.append(len(text))
            # 0 stands for a character that the vocabulary lacks
            lossless &= tokenizer.kind == 'bpe' or 0 not in targets
    loss = mean_and_stderr(nats, tokens)
    ppl = math.exp(min(loss.mean, 700))  # e^710 is too large for a float
    ppl_stderr = None
    if loss.stderr is not None:
        ppl_stderr = ppl * loss.stderr  # the derivative of exp is exp
    rows = [{'measure': 'loss', 'items': sum(tokens), 'mean': loss.mean, '±': loss.stderr},
            {'measure': 'perplexity', 'items': sum(tokens), 'mean': ppl, '±': ppl_stderr}]
    if lossless and sum(n_bytes):
        bits = mean_and_stderr([n / math.log(2) for n in nats], n_bytes)
        rows.append({'measure': 'bits per byte', 'items': sum(n_bytes),
                     'mean': bits.mean, '±': bits.stderr})
    return rows

@torch.no_grad()
def kl(models):
    """
    How far apart two models are at each position, in nats, summed exactly over the vocabulary. KL(p‖q) = Σ p ln p/q:
    what believing q costs where p is true. Jensen–Shannon: the mean KL of both to their middle, at most ln 2 = 0.693.
    """
    (a, (p_model, tokenizer)), (b, (q_model, other)) = models
    if tokenizer != other:
        sys.exit(f"{a} and {b} read with different tokenizers, so their probabilities are of different things")
    names = f'KL({a}‖{b})', f'KL({b}‖{a})', 'Jensen–Shannon', 'same choice'
    sums = {name: [] for name in names}  # over the positions of each window
    positions = []                       # how many a window has
    most = []
    for batch, x, _ in window_batches([p_model, q_model], tokenizer, f'{a}, {b}'):
        for (ids, done), row in zip(batch, x[:, None]):  # one by one: scores of all the vocabulary, twice, in float64
            p, q = (m(row[:, :len(ids) - 1])[0, done:] for m in (p_model, q_model))
            p, q = (scores.cpu().double().log_softmax(-1) for scores in (p, q))  # (T, V), logarithms
            middle = torch.logaddexp(p, q) - math.log(2)
            js = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
            best = torch.stack((p.argmax(-1), q.argmax(-1)), dim=1)  # (T, 2)
            values = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1), js, best[:, 0] == best[:, 1]
            for name, value in zip(names, values):
                sums[name].append(value.sum().item())
            positions.append(len(js))
            for t in js.topk(min(num_samples, len(js))).indices.tolist():
                at = done + t + 1
                most.append((js[t].item(), ids[max(0, at - 12):at], ids[at], *best[t].tolist()))
            most = sorted(most, reverse=True)[:num_samples]
    print(f"Jensen–Shannon, where it is largest: the text, its next token, the likeliest for {a}, and for {b}")
    for value, before, *tokens in most:
        shown = [f"{tokenizer.decode([t])!r:<12}" for t in tokens]
        print(f"  {value:.3f} {tokenizer.decode(before)[-40:]!r:>44}", *shown)
    rows = []
    for name in names:
        mean, stderr = mean_and_stderr(sums[name], positions)
        rows.append({'measure': name, 'items': sum(positions), 'mean': mean, '±': stderr})
    return rows

# ---- 3. Multiple choice: which ending does the model find likeliest? ---------------------------------------

def clean(text):
    """How the harness cleans HellaSwag: 'Peel. [title] Cut [step] it. ' -> 'Peel.. Cut it.' (sic)"""
    return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')

def parse_choices(item):
    """
    A line of HellaSwag (Zellers et al. 2019), or {"context": …, "choices": […], "label": …}
    -> (label, context, choices). HellaSwag's text is cleaned and begins with its topic, as in
    lm-evaluation-harness, whose numbers for GPT-2 124M on all 10,042 items of val are
    acc 0.2892 and acc_norm 0.3114. Raises ValueError where the item is not a question.
    """
    label = int(item['label'])
    if 'endings' in item:
        before = item['activity_label'] + ': ' + item['ctx_a'] + ' ' + item['ctx_b'].capitalize()
        context = clean(before)
        choices = [clean(choice) for choice in item['endings']]
    else:
        context = item['context']
        choices = item['choices']
    if not isinstance(context, str):
        raise ValueError("the context should be a text")
    if len(choices) < 2 or not 0 <= label < len(choices) or not all(c.strip() for c in choices):
        raise ValueError(f"label {label} of {len(choices)} choices, of which none may be empty, and one is no choice")
    return label, context, choices

def encode_choices(tokenizer, context, choices):
    """
    Context and choices as ids -> (context ids, [ending ids, …]). The harness encodes both together,
    so that a space stays with the word after it.
    """
    head = tokenizer.encode(context.rstrip())
    endings = [tokenizer.encode(context + ' ' + choice)[len(head):] for choice in choices]
    return head or [tokenizer.eot], endings

@torch.inference_mode()
def score(model, pairs):
    """
    [(context ids, ending ids), …] -> [log p(ending | context), …] in nats, one row of the batch
    each. A context that is too long for block_size loses its beginning, as in the harness. Exits
    where an ending alone is too long.
    """
    most, where = model.config.block_size, next(model.parameters()).device
    rows = []
    for context, ending in pairs:
        if len(ending) > most:
            sys.exit(f"a choice of {len(ending)} tokens does not fit into block_size={most}: "
                     f"this model cannot be asked")
        rows.append((context + ending)[-(most + 1):])  # the last token is only predicted
    T = max(map(len, rows)) - 1
    x = torch.zeros(len(rows), T, dtype=torch.long)
    y = torch.full((len(rows), T), -100)  # -100: nothing is to be predicted
    for b, ids in enumerate(rows):
        n = len(pairs[b][1])
        end = len(ids) - 1
        x[b, :end] = torch.tensor(ids[:-1])
        y[b, end - n:end] = torch.tensor(ids[-n:])
    losses = token_losses(model, x.to(where), y.to(where))  # (B, T)
    return (-losses.cpu().double().sum(1)).tolist()

def choices(model, tokenizer, name):
    """
    acc takes the ending with the largest log-likelihood, which favours short ones; acc_norm divides
    each by its number of characters first.
    """
    path = input or os.path.join(data_dir, dataset, f'{split}.jsonl')
    example = '{"context": "the sky is", "choices": ["blue", "a fish"], "label": 0}'
    questions = islice(read_jsonl(path, parse_choices, example), limit or None)
    right = {'acc': [], 'acc_norm': []}
    for items in batches(questions, 16 * batch_size):
        asked = []
        for label, context, texts in items:
            asked.append((label, texts, *encode_choices(tokenizer, context, texts)))
        # questions of similar length stand together, so that there is less padding
        asked.sort(key=lambda question: len(question[2]) + max(map(len, question[3])))
        for i in range(0, len(asked), batch_size):
            batch = asked[i:i + batch_size]
            pairs = []
            for _, _, context, endings in batch:
                pairs += [(context, ending) for ending in endings]
            scores = iter(score(model, pairs))
            for label, texts, _, _ in batch:
                logs = [next(scores) for _ in texts]
                means = [log / len(text) for log, text in zip(logs, texts)]
                right['acc'].append(logs.index(max(logs)) == label)
                right['acc_norm'].append(means.index(max(means)) == label)
    rows = []
    for measure, values in right.items():
        mean, stderr = mean_and_stderr(values)
        rows.append({'measure': measure, 'items': len(values), 'mean': mean, '±': stderr})
    return rows

# ---- 4. Text against references ----------------------------------------------------------------------------

def bleu_words(text):
    """mteval's 13a, as sacrebleu has it: 'Hi, Ann: 3.5' -> Hi , Ann : 3.5"""
    text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for name, sign in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(name, sign)
    text = re.sub(r'([!-&(-+/:-@\[-`{-~])', r' \1 ', f' {text} ')  # every ASCII sign but ' , - .
    text = re.sub(r'([^0-9])([.,])', r'\1 \2 ', text)              # a full stop or comma stays only within a number
    text = re.sub(r'([.,])([^0-9])', r' \1 \2', text)
    return re.sub(r'([0-9])(-)', r'\1 \2 ', text).split()

def rouge_words(text):
    return re.findall('[a-z0-9]+', text.lower())

def ngrams(words, n):
    """('a b a b', 2) -> {(a, b): 2, (b, a): 1}"""
    return Counter(zip(*(words[i:] for i in range(n))))

def bleu_counts(hypothesis, references):
    """
    Words -> [its length, the closest reference's, matches for n = 1 … 4, n-grams for n = 1 … 4]; a corpus adds them up.
    A match counts no more often than in one reference.
    """
    matches, totals = [], []
    for n in range(1, 5):
        own, most = ngrams(hypothesis, n), Counter()
        for reference in references:
            most |= ngrams(reference, n)  # the larger of the counts
        matches.append((own & most).total())
        totals.append(own.total())
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    return np.array([len(hypothesis), closest, *matches, *totals])

def bleu(counts, effective_order=False):
    """
    100 * brevity penalty * geometric mean of the precisions of n-grams (Papineni et al. 2002). In a single sentence
    some are 0, so they are smoothed; and effective_order leaves out the n-grams that are longer than the text.
    """
    length, closest, *counts = counts.tolist()
    logs, halvings = [], 0
    for match, total in zip(counts[:4], counts[4:]):
        if counts[0] == 0 or total == 0:
            break
        if match == 0:
            # smoothing 'exp' (Chen & Cherry 2014, method 3): counts as 1/2, then 1/4 … of a match
            halvings += 1
            match = 0.5**halvings
        logs.append(math.log(match / total))
    if not logs or len(logs) < 4 and not effective_order:
        return 0.0
    return 100 * math.exp(min(0, 1 - closest / length) + sum(logs) / len(logs))

def f1(h, r):
    """Harmonic mean of precision and recall of two Counters: 2 in common, of 4 and of 6 -> 2 * 2 / (4 + 6)"""
    return 2 * (h & r).total() / max(h.total() + r.total(), 1)

def lcs(a, b):
    """Length of the longest common subsequence, row by row of the table: ('abcd', 'xbxd') -> 2"""
    row = [0] * (len(b) + 1)
    for x in a:
        above_left = 0
        for j, y in enumerate(b, 1):
            above_left, row[j] = row[j], above_left + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]

def rouge(h, r):
    """F1 of words, of pairs of words, and of the longest common subsequence (Lin 2004)."""
    return f1(ngrams(h, 1), ngrams(r, 1)), f1(ngrams(h, 2), ngrams(r, 2)), 2 * lcs(h, r) / max(len(h) + len(r), 1)

def cider(hypothesis, references, df, documents):
    """
    CIDEr-D (Vedantam et al. 2015, eq. 1–4 and section 6): the cosine of n-gram counts, each weighted by how few of the
    documents have it in their references (df), clipped, and less the more the lengths differ; over n = 1 … 4, times 10.
    """
    def vector(words, n):
        return {g: count * math.log(documents / max(1, df[g])) for g, count in ngrams(words, n).items()}
    total = 0.0
    for reference in references:
        gap = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)  # sic: the reference code counts pairs of words
        for h, r in ((vector(hypothesis, n), vector(reference, n)) for n in range(1, 5)):
            dot = sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r)
            total += dot / (math.hypot(*h.values()) * math.hypot(*r.values()) or 1) * math.exp(-gap**2 / (2 * 6**2))
    return 10 * total / 4 / len(references)

def read_pairs():
    """(hypothesis, [its references]) from .jsonl, or from files of as many lines each."""
    def parse(item):
        if not isinstance(item['references'], list) or not item['references']:
            raise ValueError("references should be a list of texts, at least one")
        return item['hypothesis'] + '', [right + '' for right in item['references']]
    def lines(names):
        for n, texts in enumerate(zip_longest(*map(read_lines, names))):
            if None in texts:
                sys.exit(f"{names[texts.index(None)]} has only {n} lines: expected references for each hypothesis")
            answer, *right = (text.rstrip('\n') for text in texts)
            yield answer, right
    if not hypotheses.endswith('.jsonl') and ',' not in hypotheses:
        usage(f"hypotheses={hypotheses}: expected .jsonl, or references, too: hypotheses={hypotheses},right.txt")
    example = '{"hypothesis": "a cat", "references": ["a cat", "one cat"]}'
    pairs = lines(hypotheses.split(',')) if ',' in hypotheses else read_jsonl(hypotheses, parse, example)
    return islice(pairs, limit or None)

def text(model, tokenizer, name):
    """
    Two passes, because CIDEr-D must know beforehand how common an n-gram is. Of a file, only
    n-grams and scores are kept.
    """
    own = None if hypotheses else [(answer, [right]) for answer, right, _ in answered(model, tokenizer)]
    df, documents = Counter(), 0
    for _, right in own or read_pairs():
        df.update({g for words in map(rouge_words, right) for n in range(1, 5) for g in ngrams(words, n)})
        documents += 1
    names = 'sentence BLEU', 'ROUGE-1', 'ROUGE-2', 'ROUGE-L', 'CIDEr-D', 'exact match'
    scores = {name: [] for name in names}  # of each hypothesis
    corpus = np.zeros(10, dtype=int)
    for answer, right in own or read_pairs():
        counts = bleu_counts(bleu_words(answer), [bleu_words(r) for r in right])
        corpus += counts
        words, others = rouge_words(answer), [rouge_words(r) for r in right]
        best = map(max, zip(*(rouge(words, r) for r in others)))  # with several references, each takes its best
        values = (bleu(counts, effective_order=True), *best, cider(words, others, df, documents),
                  answer.strip() in [r.strip() for r in right])
        for name, value in zip(names, values):
            scores[name].append(value)
    rows = [{'items': documents, 'measure': 'BLEU', 'mean': bleu(corpus), '±': None}]
    for name in names:
        mean, stderr = mean_and_stderr(scores[name])
        rows.append({'items': documents, 'measure': name, 'mean': mean, '±': stderr})
    return rows

# ---- 5. What a model writes --------------------------------------------------------------------------------

def complete(model, tokenizer, prompts, heat, first=0):
    """Prompts (lists of ids) -> (text, whether the model itself ended it), for each. Number i draws with seed + i."""
    written, stops = [[] for _ in prompts], set(tokenizer.special.values())
    for tokens, _ in generate(model, prompts, max_new_tokens, heat, stop_tokens=stops, seed=seed + first):
        for ids, token in zip(written, tokens):
            ids += [token] if token is not None else []
    return [(tokenizer.decode([i for i in ids if i not in stops]), ids[-1] in stops) for ids in written]

def answered(model, tokenizer):
    """(the model's answer, the right one, the skill) for each conversation of the dataset."""
    for number, chats in enumerate(batches(read_chats(), batch_size)):
        prompts = [tokenizer.chat(before, answer=True)[0] for before, _, _ in chats]
        answers = complete(model, tokenizer, prompts, temperature, number * batch_size)
        yield from ((answer, right, skill) for (answer, _), (_, right, skill) in zip(answers, chats))

def instruct(model, tokenizer, name):
    """Exact match by skill: an answer is right, or it is not."""
    right = {}  # skill -> whether each answer is right
    for answer, reference, skill in answered(model, tokenizer):
        right.setdefault(skill, []).append(answer.strip() == reference.strip())
    groups = sorted(right.items())
    groups.append(('all', sum(right.values(), [])))
    rows = []
    for skill, values in groups:
        mean, stderr = mean_and_stderr(values)
        rows.append({'skill': skill, 'items': len(values), 'measure': 'exact match',
                     'mean': mean, '±': stderr})
    return rows

def compare(models):
    """A person reads two answers, not knowing whose is which, and says which is better; a vote is kept at once."""
    (a, _), (b, _) = models
    if input:
        asked = [line.strip() for line in read_lines(input) if line.strip()][:limit or None]
    else:
        asked = [before for before, _, _ in read_chats()]
    past = {}  # prompt -> the better one
    if os.path.exists(votes) and os.path.getsize(votes):
        cast = read_jsonl(votes, lambda v: (v['a'], v['b'], json.dumps(v['prompt']), v['better']), 'the others there')
        past = {prompt: better for *pair, prompt, better in cast if pair == [a, b]}
    for number, prompt in enumerate(asked):
        if json.dumps(prompt) in past:
            continue
        print(f"\n--- {number + 1} of {len(asked)}: {prompt if input else prompt[-1]['content']}")
        sides = np.random.default_rng([seed, number]).permutation(2).tolist()
        for side, which in enumerate(sides, 1):
            model, tokenizer = models[which][1]
            ids = tokenizer.encode(prompt) if input else tokenizer.chat(prompt, answer=True)[0]
            print(f"[{side}] {complete(model, tokenizer, [ids], temperature, number)[0][0]}")
        vote = ''
        while vote not in ('1', '2', 't', 'q'):
            print("better: 1 or 2? t: a tie, q: enough for now  ", end='', flush=True)
            vote = (sys.stdin.readline() or 'q').strip()
        if vote == 'q':
            break
        past[json.dumps(prompt)] = 'tie' if vote == 't' else 'ab'[sides[int(vote) - 1]]
        with open(votes, 'a', encoding='utf-8') as f:
            f.write(json.dumps({'a': a, 'b': b, 'prompt': prompt, 'better': past[json.dumps(prompt)]}) + '\n')
    count = Counter(past.values())
    decided = count['a'] + count['b']
    return [{'better': a, 'than': b, 'wins': count['a'], 'losses': count['b'], 'ties': count['tie'],
             'win rate': count['a'] / decided if decided else None, **wilson(count['a'], decided)}]

# ---- 6. All into one table ---------------------------------------------------------------------------------

def show(rows):
    """Rows, dictionaries of the same keys, as a table. None is what cannot be known."""
    def written(value):
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
        return '-' if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    table = [list(rows[0]), *([written(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    words = [isinstance(value, str) for value in rows[0].values()]  # stand on the left, numbers on the right
    for line in table:
        print('  '.join(cell.ljust(n) if left else cell.rjust(n) for cell, n, left in zip(line, widths, words)))

def main():
    """Prints the table of `task` and returns its rows, dictionaries with unrounded numbers."""
    expect(globals(), 'batch_size max_new_tokens num_samples', least=1)
    expect(globals(), 'limit block_size stride seed temperature', least=0)
    names, (where, number) = out_dir.split(','), resolve_device(device, dtype)
    print(f"on {where}, {number}")
    def load(name):
        model, tokenizer, _ = load_model(name, where)
        if not model.config.causal:
            sys.exit(f"{name} holds an encoder (objective=mlm), which sees the tokens that it would be asked for")
        if not all(p.isfinite().all() for p in model.parameters()):
            sys.exit(f"{name}: not all of its weights are numbers, so there is nothing to measure")
        return model.to(getattr(torch, number)).eval(), tokenizer
    if where.startswith('cuda:'):
        torch.cuda.set_device(where)
    run = globals()[task]
    if task in ('kl', 'compare'):
        if len(set(names)) != 2:
            usage(f"out_dir={out_dir}: task={task} takes two models, out_dir=A,B")
        rows = run([(name, load(name)) for name in names])
    elif task == 'text' and hypotheses:
        rows = text(None, None, hypotheses)
    else:
        tables = [[{'model': name, **row} for row in run(*load(name), name)] for name in names]
        rows = [row for same in zip_longest(*tables) for row in same if row]  # the same measure of all models together
    show(rows)
    return rows

if __name__ == '__main__':
    main()

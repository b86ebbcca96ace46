"""
How good is it, really: the numbers that a paper would quote, computed as the reference tools compute them.

    python eval.py                                               # perplexity and bits per byte of validation text
    python eval.py out_dir=out,out-gpt input=book.txt stride=64  # two models, any text: still one table
    python eval.py task=choices dataset=hellaswag                # multiple choice; prepare.py downloads HellaSwag
    python eval.py task=text hypotheses=captions.jsonl           # BLEU, ROUGE, CIDEr-D … of a file of answers
    python eval.py task=text dataset=instruct out_dir=out-sft    # … or of a model's own
    python eval.py task=instruct dataset=instruct out_dir=out,out-sft  # exact match by skill, before and after
    python eval.py task=code temperature=0.2,0.6,1,1.4           # how much of what it writes is Python?
    python eval.py task=kl out_dir=out,out-sft                   # how far apart are two models, and where most?
    python eval.py task=compare dataset=instruct out_dir=out-sft,out-align  # which do you like better? (blind)
    python eval.py task=speed dtype=auto                         # training and decoding, by batch and context

A number without its uncertainty is a rumour: beside most stands a standard error (±) or a 95 % interval. BLEU was
compared with sacrebleu and NLTK, ROUGE with rouge-score, CIDEr-D with pycocoevalcap, token F1 with SQuAD's, HellaSwag
with lm-evaluation-harness and build-nanogpt: equal to 1e-6 on hundreds of cases each.
"""
from configurator import configure, expect, usage

task = 'perplexity'    # perplexity | choices | text | instruct | code | kl | compare | speed
out_dir = 'out'        # the folder of a ckpt.pt; or several, with commas: one table for all
dataset = 'python'     # a folder in data_dir, made by prepare.py
data_dir = 'data'
split = 'val'          # train | val
input = ''             # instead of a dataset, a file: of text; .jsonl (choices); of prompts, one a line (compare)
hypotheses = ''        # text: a .jsonl of {"hypothesis": …, "references": […]}; or answers.txt,right.txt,also-right.txt
limit = 0              # stop after so many items (perplexity, kl: windows); 0: all
batch_size = 8         # items at once; speed: rows of the larger batch
block_size = 0         # perplexity, kl: tokens in a window; 0: as many as the model sees
stride = 0             # perplexity, kl: from window to window; 0: block_size; less: more context for each, slower
max_new_tokens = 128   # of an answer
temperature = '0'      # 0 always takes the likeliest token; task=code takes several, with commas
num_samples = 50       # code: programs at each temperature; kl: positions to show
tokenize = '13a'       # 13a | none: BLEU's words: sacrebleu's standard, or what stands between spaces
smooth = 'exp'         # exp | floor | add-k | none: BLEU where nothing matches (Chen & Cherry 2014, methods 3, 1, 2, 0)
votes = 'votes.jsonl'  # compare: where they are kept; run again to go on
json = ''              # a file for the table, too, for machines
device = 'auto'        # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'      # auto | float32 | bfloat16 | float16: of the weights; training in task=speed: of multiplications
seed = 1337
configure(globals())

import codeop, math, os, re, statistics, string, sys, time, warnings, zlib
from collections import Counter
from contextlib import nullcontext, suppress
from itertools import islice, zip_longest
from json import dumps, loads  # note: json itself is a setting
import numpy as np
import torch
from torch.nn import functional as F
from model import GPT, configure_optimizers, describe, generate, load_dataset, load_model, resolve_device

# ---- 1. Means and their errors; files ----------------------------------------------------------------------

def moments(a, b=1.0):
    """What Σa/Σb and its error need to know of one item: these get added up, so memory does not grow with the file."""
    return np.array([1, a, b, a * a, a * b, b * b], dtype=np.float64)

def estimate(total):
    """
    Summed moments -> Σa/Σb and its standard error, the ratio estimator's (Cochran 1977, ch. 6; None for one item). With
    every b = 1, these are a mean and sd/√n. A loss is a ratio, too: nats over tokens, summed over blocks of text.
    """
    n, a, b, aa, ab, bb = total.tolist()
    if b == 0 or not math.isfinite(a):
        sys.exit(f"{hypotheses or input or dataset}: there is nothing to measure, or the sum of it is {a}")
    r = a / b
    return {'mean': r, '±': math.sqrt(max(aa - 2 * r * ab + r * r * bb, 0) * n / (n - 1)) / b if n > 1 else None}

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
                item = parse(loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
                sys.exit(f"{path} line {number}: {type(e).__name__} {e}; expected a line like {example}")
            yield item

def read_chats():
    """The dataset's conversations -> (what is said before, the right answer, the skill); those with both."""
    def parse(item):
        *before, last = item['messages']
        right = last['content'] + ''  # + '': a TypeError for what is no text
        return (before, right, item.get('skill', 'any')) if before and last['role'] == 'assistant' else None
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

@torch.no_grad()
def perplexity(model, tokenizer, name):
    """
    exp(loss): as unsure as between so many equally likely tokens. It depends on what a token is; bits per byte does
    not: a compressor reaches it that spends -log2 p bits on each token, and arithmetic coding does.
    """
    loss, bits, lossless, sizes = np.zeros(6), np.zeros(6), tokenizer.kind != 'word', Counter()  # <unk> loses words
    packers = {'gzip -9': zlib.compressobj(9, wbits=31)}  # 31: with gzip's header
    with suppress(ImportError):  # a Python that was built without it
        import bz2
        packers['bzip2'] = bz2.BZ2Compressor()
    with suppress(ImportError):
        import lzma
        packers['xz'] = lzma.LZMACompressor()
    for batch, x, y in window_batches([model], tokenizer, name):
        for (ids, done), nats in zip(batch, model(x, y, reduction='none').cpu().double().sum(1).tolist()):
            targets = ids[done + 1:]
            text = b''.join(tokenizer.token_bytes(i) for i in targets if i != tokenizer.eot)
            loss, bits = loss + moments(nats, len(targets)), bits + moments(nats / math.log(2), len(text))
            lossless &= tokenizer.kind == 'bpe' or 0 not in targets  # 0: a character that the vocabulary lacks
            sizes.update({p: len(packer.compress(text)) for p, packer in packers.items()})
    sizes.update({p: len(packer.flush()) for p, packer in packers.items()})
    mean = estimate(loss)
    e = math.exp(min(mean['mean'], 700))
    rows = [{'measure': 'loss', 'items': int(loss[2]), **mean},
            {'measure': 'perplexity', 'items': int(loss[2]), 'mean': e, '±': mean['±'] and e * mean['±']}]
    if lossless and bits[2]:
        row = {'measure': 'bits per byte', 'items': int(bits[2])}
        rows += [{**row, **estimate(bits)}]
        rows += [{'model': p, **row, 'mean': 8 * n / bits[2], '±': None} for p, n in sizes.items()]
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
    names, totals, most = (f'KL({a}‖{b})', f'KL({b}‖{a})', 'Jensen–Shannon', 'same choice'), [np.zeros(6)] * 4, []
    for batch, x, _ in window_batches([p_model, q_model], tokenizer, f'{a}, {b}'):
        for (ids, done), row in zip(batch, x[:, None]):  # one by one: scores of all the vocabulary, twice, in float64
            p, q = (m(row[:, :len(ids) - 1])[0, done:] for m in (p_model, q_model))
            p, q = (scores.cpu().double().log_softmax(-1) for scores in (p, q))  # (T, V), logarithms
            middle = torch.logaddexp(p, q) - math.log(2)
            js = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
            best = torch.stack((p.argmax(-1), q.argmax(-1)), dim=1)  # (T, 2)
            values = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1), js, best[:, 0] == best[:, 1]
            totals = [total + moments(v.sum().item(), len(v)) for total, v in zip(totals, values)]
            for t in js.topk(min(num_samples, len(js))).indices.tolist():
                at = done + t + 1
                most.append((js[t].item(), ids[max(0, at - 12):at], ids[at], *best[t].tolist()))
            most = sorted(most, reverse=True)[:num_samples]
    print(f"Jensen–Shannon, where it is largest: the text, its next token, the likeliest for {a}, and for {b}")
    for value, before, *tokens in most:
        shown = [f"{tokenizer.decode([t])!r:<12}" for t in tokens]
        print(f"  {value:.3f} {tokenizer.decode(before)[-40:]!r:>44}", *shown)
    return [{'measure': name, 'items': int(total[2]), **estimate(total)} for name, total in zip(names, totals)]

# ---- 3. Multiple choice: which ending does the model find likeliest? ---------------------------------------

def clean(text):
    """How the harness cleans HellaSwag: 'Peel. [title] Cut [step] it. ' -> 'Peel.. Cut it.' (sic)"""
    return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')

def parse_choices(item):
    """
    A line of HellaSwag (Zellers et al. 2019), or {"context":…, "choices":[…], "label":…} -> the label, and context and
    choices as two conventions have them. They differ in the text, and in what an ending's log-likelihood is divided by
    for acc_norm. What they say of GPT-2 124M, on all 10,042 items of val:

        lm-evaluation-harness  acc 0.2892  acc_norm 0.3114  text cleaned, with its topic; per character
        build-nanogpt          acc 0.2859  acc_norm 0.2955  text as it stands; per token
    """
    label, choices = int(item['label']), item['endings'] if 'endings' in item else item['choices']
    raw, context, cleaned = item.get('ctx', item.get('context')), item.get('context'), choices
    if 'endings' in item:
        context = clean(item['activity_label'] + ': ' + item['ctx_a'] + ' ' + item['ctx_b'].capitalize())
        cleaned = [clean(choice) for choice in choices]
    if len(choices) < 2 or not 0 <= label < len(choices) or not all(c.strip() for c in [*choices, *cleaned]):
        raise ValueError(f"label {label} of {len(choices)} choices, of which none may be empty, and one is no choice")
    return label, {'lm-evaluation-harness': (context + '', cleaned), 'build-nanogpt': (raw + '', choices)}

def encode_choices(tokenizer, convention, context, choices):
    """Context and choices as ids. The harness cuts up the ids of both together, so that a space stays with its word."""
    if convention == 'build-nanogpt':
        return tokenizer.encode(context) or [tokenizer.eot], [tokenizer.encode(' ' + choice) for choice in choices]
    head = tokenizer.encode(context.rstrip())
    return head or [tokenizer.eot], [tokenizer.encode(context + ' ' + choice)[len(head):] for choice in choices]

@torch.inference_mode()
def score(model, units):
    """
    [(context ids, [ending ids, …]), …] -> [[log p(ending | context), …], …]. A row of the batch is a context and, after
    it, all its endings: each sees the context, whose keys and values are thus computed once for all, and itself, and
    stands at the positions where it would stand alone. Where block_size is too small for both, the context is cut from
    the left, for each ending by itself (as the harness does).
    """
    most, where, rows = model.config.block_size, next(model.parameters()).device, []
    for context, endings in units:
        longest = max(map(len, endings))
        if longest > most:
            sys.exit(f"a choice of {longest} tokens does not fit into block_size={most}: this model cannot be asked")
        fits = len(context) + longest - 1 <= most  # note: the last token of an ending is only predicted
        rows += [(context, endings)] if fits else [(context[-(most + 1 - len(e)):], [e]) for e in endings]
    T = max(len(context) + sum(len(e) - 1 for e in endings) for context, endings in rows)
    idx, positions, part = (torch.full((len(rows), T), fill) for fill in (0, 0, -1))
    sources, targets = [], []  # where the state before each token of an ending stands, and that token
    for b, (context, endings) in enumerate(rows):
        at = n = len(context)
        idx[b, :n], positions[b, :n], part[b, :n] = torch.tensor(context), torch.arange(n), 0
        for k, e in enumerate(endings, 1):
            end = at + len(e) - 1
            idx[b, at:end], part[b, at:end] = torch.tensor(e[:-1]), k
            positions[b, at:end] = torch.arange(n, n + end - at)
            sources += [(b, n - 1), *((b, t) for t in range(at, end))]
            targets, at = targets + e, end
    mask = ((part[:, None] == 0) | (part[:, None] == part[:, :, None])).tril()  # (B, T, T): may i look at j?
    x = model.hidden(idx.to(where), positions.to(where), mask.unsqueeze(1).to(where))  # (B, T, C)
    x = x[tuple(torch.tensor(sources, device=where).T)]  # (N, C)
    losses = F.cross_entropy(model.logits(x).float(), torch.tensor(targets, device=where), reduction='none')
    parts = losses.cpu().double().split([len(e) for _, endings in rows for e in endings])
    sums = iter([-part.sum().item() for part in parts])
    return [[next(sums) for _ in endings] for _, endings in units]

def choices(model, tokenizer, name):
    """acc goes by the sum of log-likelihoods, which favours short endings; acc_norm by the mean."""
    if not isinstance(model, GPT):
        sys.exit(f"{name} is a {model.config.model_type}: task=choices needs model_type=gpt, which takes a mask")
    path, totals = input or os.path.join(data_dir, dataset, f'{split}.jsonl'), Counter()
    example = '{"context": "the sky is", "choices": ["blue", "a fish"], "label": 0}'
    for items in batches(islice(read_jsonl(path, parse_choices, example), limit or None), 16 * batch_size):
        asked = [(label, convention, texts, *encode_choices(tokenizer, convention, context, texts))
                 for label, variants in items for convention, (context, texts) in variants.items()]
        asked.sort(key=lambda unit: len(unit[3]) + sum(map(len, unit[4])))  # rows of similar length: less padding
        for batch in (asked[i:i + batch_size] for i in range(0, len(asked), batch_size)):
            for (label, convention, texts, _, ids), logs in zip(batch, score(model, [unit[3:] for unit in batch])):
                lengths = map(len, texts if convention == 'lm-evaluation-harness' else ids)
                for norm, values in (('acc', logs), ('acc_norm', [log / n for log, n in zip(logs, lengths)])):
                    totals[convention, norm] = totals[convention, norm] + moments(values.index(max(values)) == label)
    return [{'convention': convention, 'measure': norm, 'items': int(total[0]), **estimate(total)}
            for (convention, norm), total in sorted(totals.items(), reverse=True)]

# ---- 4. Text against references ----------------------------------------------------------------------------

def bleu_words(text):
    """mteval's 13a, as sacrebleu has it: 'Hi, Ann: 3.5' -> Hi , Ann : 3.5"""
    if tokenize == 'none':
        return text.split()
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

def bleu(counts, smooth='exp', effective_order=False):
    """
    100 * brevity penalty * geometric mean of the precisions of n-grams (Papineni et al. 2002). In a single sentence
    some are 0, so they are smoothed; and effective_order leaves out the n-grams that are longer than the text.
    """
    length, closest, *counts = counts.tolist()
    logs, halvings = [], 0
    for n, (match, total) in enumerate(zip(counts[:4], counts[4:])):
        if smooth == 'add-k' and n > 0:
            match, total = match + 1, total + 1
        if counts[0] == 0 or total == 0:
            break
        halvings += match == 0
        match = match or {'exp': 0.5**halvings, 'floor': 0.1}.get(smooth, 0)
        logs.append(math.log(match / total) if match else -math.inf)
    if not logs or len(logs) < 4 and not effective_order:
        return 0.0
    return 100 * math.exp(min(0, 1 - closest / length) + sum(logs) / len(logs))

def f1(h, r):
    """Harmonic mean of precision and recall of two Counters: 2 in common, of 4 and of 6 -> 2 * 2 / (4 + 6)"""
    return 2 * (h & r).total() / max(h.total() + r.total(), 1)

def squad_f1(*texts):
    """F1 of words, without punctuation and articles; two texts with none left agree (Rajpurkar et al. 2016, 2018)."""
    bare = [''.join(c for c in text.lower() if c not in string.punctuation) for text in texts]
    h, r = (Counter(re.sub(r'\b(a|an|the)\b', ' ', text).split()) for text in bare)
    return f1(h, r) if h or r else 1.0

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
    """Two passes, because CIDEr-D must know beforehand how common an n-gram is. Of a file, only n-grams are kept."""
    own = None if hypotheses else [(answer, [right]) for answer, right, _ in answered(model, tokenizer)]
    df, documents = Counter(), 0
    for _, right in own or read_pairs():
        df.update({g for words in map(rouge_words, right) for n in range(1, 5) for g in ngrams(words, n)})
        documents += 1
    totals, corpus, distinct = {'sentence BLEU': np.zeros(6)}, np.zeros(10, dtype=int), {1: Counter(), 2: Counter()}
    random, resampled = np.random.default_rng(seed), np.zeros((500, 10))
    for answer, right in own or read_pairs():
        counts = bleu_counts(bleu_words(answer), [bleu_words(r) for r in right])
        corpus += counts
        resampled += random.poisson(1, (500, 1)) * counts  # bootstrap: 500 files in which it stands 0, 1, 2 … times
        words, others = rouge_words(answer), [rouge_words(r) for r in right]
        best = map(max, zip(*(rouge(words, r) for r in others)))  # with several references, each takes its best
        scores = {'sentence BLEU': bleu(counts, smooth, effective_order=True),
                  **dict(zip(('ROUGE-1', 'ROUGE-2', 'ROUGE-L'), best)), 'CIDEr-D': cider(words, others, df, documents),
                  'token F1': max(squad_f1(answer, r) for r in right),
                  'exact match': answer.strip() in [r.strip() for r in right]}
        for measure, value in scores.items():
            totals[measure] = totals.get(measure, 0) + moments(value)
        for n in distinct:
            distinct[n].update(ngrams(words, n))
    table = {measure: estimate(total) for measure, total in totals.items()}
    table = {'BLEU': {'mean': bleu(corpus, smooth), '±': statistics.stdev(bleu(c, smooth) for c in resampled)}, **table,
             **{f'distinct-{n}': {'mean': len(seen) / max(seen.total(), 1), '±': None} for n, seen in distinct.items()}}
    return [{'items': documents, 'measure': measure, **row} for measure, row in table.items()]

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
        answers = complete(model, tokenizer, prompts, float(temperature), number * batch_size)
        yield from ((answer, right, skill) for (answer, _), (_, right, skill) in zip(answers, chats))

def instruct(model, tokenizer, name):
    """Exact match by skill: an answer is right, or it is not."""
    totals = Counter()
    for answer, right, skill in answered(model, tokenizer):
        totals[skill] = totals[skill] + moments(answer.strip() == right.strip())
    totals = [*sorted(totals.items()), ('all', sum(totals.values()))]
    return [{'skill': skill, 'items': int(n[0]), 'measure': 'exact match', **estimate(n)} for skill, n in totals]

def is_python(program, ended):
    """
    Whether Python's parser accepts it. One that was cut off may end after any line: codeop, made for Python's own
    prompt, raises where something is wrong, and not where something is still to come. But it may not end within a
    docstring: who never closes the first one could write anything.
    """
    program = program if ended else program[:program.rfind('\n') + 1]
    warnings.simplefilter('ignore')  # of what it finds odd, but accepts
    try:
        codeop.compile_command(program, symbol='exec')  # compiles, and runs nothing
        return bool(program.strip()) and not any(program.count(quotes) % 2 for quotes in ('"""', "'''"))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False

def code(model, tokenizer, name):
    """Programs from nothing. The colder, the more correct, and the more alike."""
    rows = []
    for heat in map(float, temperature.split(',')):
        programs = [program for batch in batches(range(num_samples), batch_size)
                    for program in complete(model, tokenizer, [[tokenizer.eot]] * len(batch), heat, batch[0])]
        good = sum(is_python(*program) for program in programs)
        rows.append({'temperature': heat, 'samples': num_samples, 'Python': good / num_samples,
                     **wilson(good, num_samples), 'different': len(set(programs)) / num_samples})
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
        cast = read_jsonl(votes, lambda v: (v['a'], v['b'], dumps(v['prompt']), v['better']), 'the others there')
        past = {prompt: better for *pair, prompt, better in cast if pair == [a, b]}
    for number, prompt in enumerate(asked):
        if dumps(prompt) in past:
            continue
        print(f"\n--- {number + 1} of {len(asked)}: {prompt if input else prompt[-1]['content']}")
        sides = np.random.default_rng([seed, number]).permutation(2).tolist()
        for side, which in enumerate(sides, 1):
            model, tokenizer = models[which][1]
            ids = tokenizer.encode(prompt) if input else tokenizer.chat(prompt, answer=True)[0]
            print(f"[{side}] {complete(model, tokenizer, [ids], float(temperature), number)[0][0]}")
        vote = ''
        while vote not in ('1', '2', 't', 'q'):
            print("better: 1 or 2? t: a tie, q: enough for now  ", end='', flush=True)
            vote = (sys.stdin.readline() or 'q').strip()
        if vote == 'q':
            break
        past[dumps(prompt)] = 'tie' if vote == 't' else 'ab'[sides[int(vote) - 1]]
        with open(votes, 'a', encoding='utf-8') as f:
            f.write(dumps({'a': a, 'b': b, 'prompt': prompt, 'better': past[dumps(prompt)]}) + '\n')
    count = Counter(past.values())
    decided = count['a'] + count['b']
    return [{'better': a, 'than': b, 'wins': count['a'], 'losses': count['b'], 'ties': count['tie'],
             'win rate': count['a'] / decided if decided else None, **wilson(count['a'], decided)}]

# ---- 6. Speed ----------------------------------------------------------------------------------------------

def seconds(kind, run):
    """The median time of five runs, after one to warm up; accelerators work on while Python goes ahead, so wait."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        getattr(torch, kind).synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])

def speed(model, tokenizer, name):
    """
    Tokens per second of a training step (forward, backward, AdamW) and of decoding (the context already read). Memory:
    what a step has to keep, which is weights, gradients, AdamW's two means, and what the backward pass needs again.
    MFU: the arithmetic done (Chowdhery et al. 2022, app. B), as a share of what a large matrix product does here.
    """
    kind, number = next(model.parameters()).device.type, resolve_device(device, dtype)[1]
    autocast = nullcontext() if number == 'float32' else torch.autocast(kind, dtype=getattr(torch, number))
    square = torch.randn(2 * [1024 if kind == 'cpu' else 8192], device=kind, dtype=getattr(torch, number))
    peak = 2 * len(square)**3 / seconds(kind, lambda: square @ square)
    print(f"{name}: {number} on {kind}; a product of two {len(square)}² matrices does {peak / 1e12:.3g} TFLOP/s")
    c, rows, kept = model.config, [], {}
    optimizers = configure_optimizers(model, 'adamw', learning_rate=0.0)
    def keep(tensor):  # the backward pass will need it
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    def step():
        with autocast:
            loss = model(x, x)
        loss.backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
    if c.block_size < 12:
        sys.exit(f"{name} sees {c.block_size} tokens: task=speed also tries a quarter of them, so it needs at least 12")
    for B, T in ((B, T) for T in (c.block_size // 4, c.block_size) for B in sorted({1, batch_size})):
        x = torch.randint(c.vocab_size, (B, T), device=kind)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        kept.update((p.untyped_storage().data_ptr(), 4 * p.untyped_storage().nbytes()) for p in model.parameters())
        flops = describe(model, say=lambda line: None)['flops_per_token']
        flops -= 12 * c.n_layer * c.n_head * c.head_dim * (c.block_size - T) if c.model_type == 'gpt' else 0
        fast = B * T / seconds(kind, step)
        rows.append({'rows': B, 'context': T, 'training tokens/s': fast, 'FLOPs/token': flops,
                     'MFU': fast * flops / peak, 'memory, MB': sum(kept.values()) / 2**20})
        kept.clear()
    model.to(getattr(torch, number))
    for row in rows:
        n, times = min(32, row['context'] - 1), []
        for _ in generate(model, [[0] * (row['context'] - n)] * row['rows'], n, temperature=0):
            times.append(time.perf_counter())
        row['decoding tokens/s'] = row['rows'] * (n - 1) / (times[-1] - times[0])
    return rows

# ---- 7. All into one table ---------------------------------------------------------------------------------

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
    expect(globals(), 'batch_size max_new_tokens num_samples', least=1)
    expect(globals(), 'limit block_size stride seed', least=0)
    if not re.fullmatch(r'(\d*\.)?\d+(,(\d*\.)?\d+)*' if task == 'code' else r'(\d*\.)?\d+', temperature):
        usage(f"temperature={temperature}: expected a number, 0 or more; only task=code takes several, with commas")
    names, (where, number) = out_dir.split(','), resolve_device(device, dtype)
    print(f"on {where}, {number}")
    def load(name):
        model, tokenizer, _ = load_model(name, where)
        if not model.config.causal:
            sys.exit(f"{name} holds an encoder (objective=mlm), which sees the tokens that it would be asked for")
        if not all(p.isfinite().all() for p in model.parameters()):
            sys.exit(f"{name}: not all of its weights are numbers, so there is nothing to measure")
        return model.to(torch.float32 if task == 'speed' else getattr(torch, number)).eval(), tokenizer
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
        rows = [row for i, row in enumerate(rows) if row not in rows[:i]]  # compressors: the same for each model
    show(rows)
    if json:
        with open(json, 'w', encoding='utf-8') as f:
            f.write(dumps({'task': task, 'rows': rows}, indent=1) + '\n')

if __name__ == '__main__':
    main()

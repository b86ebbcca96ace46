"""
How good is it, really: every number that a paper would quote, computed as the reference tool computes it.

    python eval.py                                                  # perplexity and bits per byte on validation text
    python eval.py out_dir=out,out-gpt input=book.txt stride=64     # two models on any text: still one table
    python eval.py task=choices dataset=hellaswag                   # multiple choice (prepare.py downloads HellaSwag)
    python eval.py task=text hypotheses=captions.jsonl              # BLEU, ROUGE, CIDEr-D … of a file of answers
    python eval.py task=text out_dir=out-sft                        # … or of a model's own answers to dataset=instruct
    python eval.py task=instruct out_dir=out,out-sft                # exact match by skill, before and after fine-tuning
    python eval.py task=code temperature=0.2,0.6,1,1.4              # how much of what it writes is Python?
    python eval.py task=kl out_dir=out,out-sft                      # how far apart are two models, and where most?
    python eval.py task=compare out_dir=out,out-sft temperature=0.8 # which do you like better? (blind)
    python eval.py task=speed dtype=auto                            # training and decoding, by batch and context

A number without its uncertainty is a rumour, so most have a standard error beside them: the ± column. BLEU equals
sacrebleu's and NLTK's, ROUGE rouge-score's, CIDEr-D pycocoevalcap's, token F1 SQuAD's, and the two HellaSwag
conventions lm-evaluation-harness's and build-nanogpt's, each to 1e-6 on several hundred cases.
"""
from configurator import configure, usage

task = 'perplexity'   # perplexity | choices | text | instruct | code | kl | compare | speed
out_dir = 'out'       # the folder of a ckpt.pt, or of several, with commas: their rows share a table
dataset = ''          # a folder in data_dir; empty: python, or hellaswag (choices), or instruct (text, instruct, compare)
data_dir = 'data'
split = 'val'         # train | val
input = ''            # in place of a dataset. perplexity, kl: a text; choices: a .jsonl; compare: a file of prompts, one a line
hypotheses = ''       # text: a file of answers, one a line, or .jsonl of {"hypothesis": …, "references": […]}
references = ''       # text: a file of as many right answers, or several files with commas; .jsonl brings its own
limit = 0             # stop after so many items (perplexity, kl: windows); 0: all
# how
batch_size = 8        # items at once; speed: rows of the larger batch
block_size = 0        # perplexity, kl, speed: tokens in a window; 0: as many as the model can see
stride = 0            # perplexity, kl: tokens from window to window; 0: block_size. less: more context for each, and slower
max_new_tokens = 128  # text, instruct, code, compare: of an answer, at most
temperature = '0'     # the same: 0 always takes the likeliest token; code takes several, with commas
num_samples = 50      # code: programs at each temperature; kl: positions to show
tokenize = '13a'      # 13a | none: BLEU's words: sacrebleu's standard, or whatever stands between spaces
smooth = 'exp'        # exp | floor | add-k | none: BLEU where no n-gram matches (Chen & Cherry 2014: methods 3, 1, 2, 0)
votes = 'votes.jsonl' # compare: where votes are kept; run again to go on
json = ''             # also write the table to this file, for machines
# on what
device = 'auto'       # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'     # auto | float32 | bfloat16 | float16: of the weights; speed: of the multiplications
seed = 1337
configure(globals())

import bz2, codeop, heapq, lzma, math, os, re, statistics, string, sys, time, zlib
from collections import Counter
from contextlib import nullcontext
from itertools import islice, zip_longest
from json import dumps, loads  # note: json is a setting
import numpy as np
import torch
from torch.nn import functional as F
from model import GPT, KVCache, configure_optimizers, describe, generate, load_dataset, load_model, resolve_device

# ------------------------------------------------------------------------------------------------------------
# 1. Means and their errors; files and batches

def moments(a, b=1.0):
    """What Σa/Σb and its error need to know of one item. These get added up, so memory does not grow with the file."""
    return np.array([1, a, b, a * a, a * b, b * b], dtype=np.float64)

def estimate(total):
    """
    Summed moments -> Σa/Σb and its standard error (None for a single item): the ratio estimator (Cochran 1977, ch. 6).
    Where every b is 1, that is a mean, and the sample's standard deviation over √n. Loss is a ratio, too: of nats and
    tokens per block. (Neighbouring blocks of a text are alike, so the truth is somewhat less certain than its error.)
    """
    n, a, b, aa, ab, bb = total.tolist()
    ratio = a / b
    return ratio, math.sqrt(max(aa - 2 * ratio * ab + ratio**2 * bb, 0) * n / (n - 1)) / b if n > 1 else None

def wilson(wins, n, z=1.96):
    """95 % interval of a share (Wilson 1927): unlike p ± error, honest for few trials and near 0 or 1. (0, 0) -> (0, 1)"""
    if n == 0:
        return 0.0, 1.0
    p, spread = wins / n, z * math.sqrt(wins / n * (1 - wins / n) / n + z * z / (4 * n * n))
    return tuple((p + z * z / (2 * n) + sign * spread) / (1 + z * z / n) for sign in (-1, 1))

def read_jsonl(path, parse, example):
    """parse(line) for each line of a JSONL file; exits, naming the line, where it is not like the example."""
    if not os.path.exists(path):
        sys.exit(f"no {path}: make it with  python prepare.py dataset={folder()}  or name a file of your own")
    with open(path, 'rb') as f:
        for number, line in enumerate(islice(f, limit or None), 1):
            try:
                item = parse(loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
                what = f"no {e}" if isinstance(e, KeyError) else e
                sys.exit(f"{path} line {number}: {what}. Expected a line like {example}")
            yield item

def folder():
    return dataset or {'choices': 'hellaswag', 'perplexity': 'python', 'kl': 'python'}.get(task, 'instruct')

def read_chats():
    """-> (what was said before, the right answer, the skill) from the dataset's conversations."""
    def parse(item):
        *before, last = item['messages']
        if last['role'] != 'assistant' or not before:
            raise ValueError("the last word should be the assistant's, and not the only one")
        return before, last['content'] + '', item.get('skill') or 'all'
    example = '{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}'
    return read_jsonl(os.path.join(data_dir, folder(), f'{split}.jsonl'), parse, example)

def batches(items, n):
    """Lists of n items, the last one maybe shorter; a terminal is told how far it is."""
    items, count, mark = iter(items), 0, time.time()
    while batch := list(islice(items, n)):
        yield batch
        count += len(batch)
        if sys.stderr.isatty() and time.time() - mark > 2:
            print(f"\r{count:,} done", end='\r', file=sys.stderr, flush=True)
            mark = time.time()

# ------------------------------------------------------------------------------------------------------------
# 2. Perplexity, and the distance between two models

def token_chunks(tokenizer, name):
    """The text as lists of ids, a piece at a time: from the dataset's .bin, or from the file `input`."""
    if not input:
        own, splits = load_dataset(os.path.join(data_dir, folder()))
        if own != tokenizer:
            sys.exit(f"{name} reads with another tokenizer than dataset={folder()}: give the text itself, input=FILE")
        yield from (splits[split][i:i + 2**16].tolist() for i in range(0, len(splits[split]), 2**16))
        return
    text = ''
    try:
        with open(input, encoding='utf-8-sig') as f:
            while more := f.read(2**20):
                text += more
                last = re.match(r'(?s).*\S\n(?=\S)', text)  # no token spans such a place, so cutting there changes nothing
                cut = last.end() if last else len(text) if len(text) >= 2**24 else 0
                yield tokenizer.encode(text[:cut])
                text = text[cut:]
    except UnicodeDecodeError:
        sys.exit(f"input={input} is not UTF-8 text")
    yield tokenizer.encode(text)

def windows(chunks, T, step, eot):
    """
    Chunks of ids -> (T + 1 ids or fewer, how many of their targets were scored before). Every token is a target once:

        'abcdefg', T = 4, step = 2 -> (⊥abcd, 0), (bcdef, 2), (defg, 2): d and e have 3 letters of context, at least 2

    The first token, too, is predicted, from <|endoftext|> (⊥): otherwise the bytes of the text were not all paid for.
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

def window_batches(model, tokenizer, name):
    """-> rows, as above, with x and y (B, T) for the model; y is -100 where nothing is to be scored."""
    T = block_size or model.config.block_size
    if T > model.config.block_size or stride > T:
        usage(f"block_size={T} stride={stride or T}: {name} can see {model.config.block_size} tokens, so expected "
              f"stride <= block_size <= {model.config.block_size}")
    rows = windows(token_chunks(tokenizer, name), T, stride or T, tokenizer.eot)
    nothing = True
    for batch in batches(islice(rows, limit or None), batch_size):
        x = torch.zeros(len(batch), T, dtype=torch.long)
        y = torch.full((len(batch), T), -100)
        for b, (ids, done) in enumerate(batch):
            x[b, :len(ids) - 1], y[b, done:len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[done + 1:])
        where = next(model.parameters()).device
        yield batch, x.to(where), y.to(where)
        nothing = False
    if nothing:
        sys.exit(f"{input or folder()} holds no text: there is nothing to predict")

@torch.no_grad()
def perplexity(model, tokenizer, name):
    """
    exp(loss) says: as unsure as among so many equally likely tokens. It depends on what a token is; bits per byte
    does not, and it is what a compressor achieves that spends -log2 p(token) bits on each (arithmetic coding does).
    """
    loss, bits, lossless, size = np.zeros(6), np.zeros(6), tokenizer.kind != 'word', 0  # <unk> loses words
    packers = {'gzip -9': zlib.compressobj(9, zlib.DEFLATED, 31), 'bzip2': bz2.BZ2Compressor(), 'xz': lzma.LZMACompressor()}
    packed = Counter()
    for batch, x, y in window_batches(model, tokenizer, name):
        nats = model(x, y, reduction='none').double().sum(1).tolist()
        for (ids, done), a in zip(batch, nats):
            targets = ids[done + 1:]
            text = b''.join(tokenizer.token_bytes(i) for i in targets if i != tokenizer.eot)
            loss += moments(a, len(targets))
            bits += moments(a / math.log(2), len(text))
            lossless &= tokenizer.kind == 'bpe' or 0 not in targets  # 0: a character that the vocabulary lacks
            packed.update({p: len(packer.compress(text)) for p, packer in packers.items()})
            size += len(text)
    packed.update({p: len(packer.flush()) for p, packer in packers.items()})
    (mean, error), (bpb, bpb_error) = estimate(loss), estimate(bits) if size and lossless else (None, None)
    row = {'tokens': int(loss[2]), 'loss': mean, '±': error, 'perplexity': math.exp(min(mean, 700)),
           'bytes': size, 'bits per byte': bpb, '± ': bpb_error}
    return [row] + [{**dict.fromkeys(row), 'model': p, 'bytes': size, 'bits per byte': 8 * n / size}
                    for p, n in packed.items() if size and lossless]

@torch.no_grad()
def kl(models):
    """
    How far apart two models are at each position of a text, summed exactly over the vocabulary, in nats: KL(p‖q) = Σ p
    ln p/q, what believing q costs where p is true; Jensen–Shannon, the mean KL of both to their middle, at most ln 2.
    """
    (a, (p_model, tokenizer)), (b, (q_model, other)) = models
    if tokenizer != other:
        sys.exit(f"{a} and {b} read with different tokenizers: their distributions are over different things")
    if p_model.config.block_size != q_model.config.block_size and not block_size:
        usage(f"{a} and {b} see contexts of different lengths: give block_size=")
    sums, most = {name: np.zeros(6) for name in (f'KL({a}‖{b})', f'KL({b}‖{a})', 'Jensen–Shannon', 'same best token')}, []
    for batch, x, y in window_batches(p_model, tokenizer, a):
        for (ids, done), row in zip(batch, x):
            row = row[None, :len(ids) - 1]
            p, q = (m(row)[0, done:].double().log_softmax(-1) for m in (p_model, q_model))  # (T, V), logarithms
            middle = torch.logaddexp(p, q) - math.log(2)
            js = ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
            best_p, best_q = p.max(-1), q.max(-1)
            for name, values in zip(sums, ((p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1), js,
                                           best_p.indices == best_q.indices)):
                sums[name] += moments(values.sum().item(), len(values))
            for t in js.topk(min(num_samples, len(js))).indices.tolist():
                shown = [f"{tokenizer.decode([m.indices[t].item()])!r} {m.values[t].exp().item():.2f}" for m in (best_p, best_q)]
                text = tokenizer.decode(ids[max(0, done + t - 15):done + t + 1])[-48:]
                heapq.heappush(most, (js[t].item(), text, *shown, tokenizer.decode([ids[done + t + 1]])))
                most = most if len(most) <= num_samples else most[:0] + heapq.nlargest(num_samples, most)[::-1]
    print(f"where they differ most (Jensen–Shannon; text, its next token; likeliest for {a}, for {b}):")
    for value, text, *shown, token in sorted(most, reverse=True):
        print(f"  {value:.3f}  {text!r:>52} {token!r:<12} {shown[0]:<18} {shown[1]}")
    return [dict(zip(('measure', 'mean', '±'), (name, *estimate(total)))) for name, total in sums.items()]

# ------------------------------------------------------------------------------------------------------------
# 3. Multiple choice: which ending does the model find likeliest?

def parse_choices(item):
    """
    A line of HellaSwag (Zellers et al. 2019), or {"context":…, "choices":[…], "label":…}, as each of two conventions
    reads it -> (label, {convention: (context, choices)}). The published numbers differ by what is done to the text and
    by what an ending's log-likelihood is divided by. GPT-2 124M, all 10,042 validation items:

        lm-evaluation-harness   acc 0.2892   acc_norm 0.3114   text cleaned, topic in front; norm: per character
        build-nanogpt           acc 0.2859   acc_norm 0.2955   text as it stands; norm: per token
    """
    choices, label = item['endings'] if 'endings' in item else item['choices'], int(item['label'])
    if 'endings' in item:
        plain = item['ctx']
        context = clean(item['activity_label'] + ': ' + item['ctx_a'] + ' ' + item['ctx_b'].capitalize())
        cleaned = [clean(choice) for choice in choices]
    else:
        plain, context, cleaned = item['context'] + '', item['context'], choices
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choice is no choice")
    if not 0 <= label < len(choices):
        raise ValueError(f"label {label} of {len(choices)} choices")
    if not all(choice.strip() for choice in [*choices, *cleaned]):
        raise ValueError("an empty choice")
    return label, {'lm-evaluation-harness': (context, cleaned), 'build-nanogpt': (plain, choices)}

def clean(text):
    """How the harness cleans HellaSwag: 'Peel. [title] Cut [step] it. ' -> 'Peel.. Cut it.' (sic)"""
    return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')

def encode_choices(tokenizer, convention, context, choices):
    """Context and choices as ids. The harness cuts the ids of the whole, so that a token may not span the cut."""
    if convention == 'build-nanogpt':
        return tokenizer.encode(context) or [tokenizer.eot], [tokenizer.encode(' ' + choice) for choice in choices]
    head = tokenizer.encode(context.rstrip(' \n'))
    return head or [tokenizer.eot], [tokenizer.encode(context + ' ' + choice)[len(head):] for choice in choices]

@torch.inference_mode()
def score(model, units):
    """
    [(context ids, [ending ids, …]), …] -> [[log p(ending | context), …], …], all in two forward passes. The first reads
    the contexts; the keys and values in its cache are then handed to every ending, and the second pass reads only those.
    A context too long for block_size is cut from the left, for each ending by itself, as the harness does.
    """
    most, S = model.config.block_size, max(len(e) for _, endings in units for e in endings)
    if max(len(context) for context, _ in units) + S - 1 > most:
        if len(units) > 1:
            return score(model, units[:len(units) // 2]) + score(model, units[len(units) // 2:])
        (context, endings), = units
        if len(endings) > 1:
            return [[score(model, [(context, [e])])[0][0] for e in endings]]
        if S > most:
            sys.exit(f"a choice of {S} tokens does not fit into block_size={most}: this model cannot be asked")
        units = [(context[-(most + 1 - S):], endings)]
    contexts, where = [context for context, _ in units], next(model.parameters()).device
    rows = [u for u, (_, endings) in enumerate(units) for _ in endings]  # the context of each ending
    endings = [e for _, endings in units for e in endings]
    def pad(lists):
        return torch.tensor([ids + [0] * (max(map(len, lists)) - len(ids)) for ids in lists], device=where)
    lengths = [len(context) for context in contexts]
    cache = KVCache(model.config, len(units), max(lengths))
    x = model.hidden(pad(contexts), cache=cache)
    x = x[torch.arange(len(units)), torch.tensor(lengths) - 1][rows].unsqueeze(1)  # (E, 1, C): what each ending follows
    y = pad(endings)  # (E, S)
    if S > 1:
        shared = KVCache(model.config, len(endings), max(lengths) + S - 1)
        shared.lengths = [lengths[u] for u in rows]  # right padding was never there: the endings overwrite it
        shared.k, shared.v = ([F.pad(t[rows], (0, 0, 0, S - 1)) for t in kept] for kept in (cache.k, cache.v))
        x = torch.cat((x, model.hidden(y[:, :-1], cache=shared)), dim=1)  # (E, S, C)
    real = torch.arange(S, device=where) < torch.tensor([len(e) for e in endings], device=where)[:, None]
    losses = F.cross_entropy(model.logits(x[real]).float(), y[real], reduction='none')
    sums = iter([-part.double().sum().item() for part in losses.split([len(e) for e in endings])])
    return [[next(sums) for _ in endings] for _, endings in units]

def choices(model, tokenizer, name):
    """Accuracy by the sum of log-likelihoods, which favours short endings, and normalised by length."""
    if not isinstance(model, GPT):
        sys.exit(f"{name} is a {model.config.model_type}: task=choices needs model_type=gpt, which keeps a cache to share")
    path = input or os.path.join(data_dir, folder(), f'{split}.jsonl')
    example, totals = '{"context": "the sky is", "choices": ["blue", "a fish"], "label": 0}', {}
    for items in batches(read_jsonl(path, parse_choices, example), batch_size):
        asked = [(label, convention, texts) for label, variants in items for convention, (_, texts) in variants.items()]
        units = [encode_choices(tokenizer, convention, *variants[convention]) for _, variants in items for convention in variants]
        for (label, convention, texts), (_, endings), logs in zip(asked, units, score(model, units)):
            lengths = [len(e) for e in (texts if convention == 'lm-evaluation-harness' else endings)]
            normed = [log / n for log, n in zip(logs, lengths)]
            for key, values in (('acc', logs), ('acc_norm', normed)):
                right = values.index(max(values)) == label
                totals[convention, key] = totals.get((convention, key), 0) + moments(right)
    if not totals:
        sys.exit(f"{path} holds no questions")
    rows = []
    for convention in dict.fromkeys(convention for convention, _ in totals):
        (acc, error), (norm, norm_error) = estimate(totals[convention, 'acc']), estimate(totals[convention, 'acc_norm'])
        rows.append({'convention': convention, 'items': int(totals[convention, 'acc'][0]), 'acc': acc, '±': error,
                     'acc_norm': norm, '± ': norm_error})
    return rows

# ------------------------------------------------------------------------------------------------------------
# 4. Text against references

def bleu_words(text):
    """mteval's 13a, as sacrebleu does it: 'Hi, Ann: 3.5' -> Hi , Ann : 3.5; or just what stands between spaces."""
    if tokenize == 'none':
        return text.split()
    text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for name, sign in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(name, sign)
    text = re.sub(r'([!-&(-+/:-@\[-`{-~])', r' \1 ', f' {text} ')  # every ASCII sign but ' , - .
    text = re.sub(r'([^0-9])([.,])', r'\1 \2 ', text)  # a full stop or comma stays only within a number …
    text = re.sub(r'([.,])([^0-9])', r' \1 \2', text)
    return re.sub(r'([0-9])(-)', r'\1 \2 ', text).split()  # … and a dash goes only after one

def rouge_words(text):
    return re.findall('[a-z0-9]+', text.lower())

def squad_words(text):
    text = ''.join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r'\b(a|an|the)\b', ' ', text).split()

def ngrams(words, n):
    """('a b a b', 2) -> {(a, b): 2, (b, a): 1}"""
    return Counter(zip(*(words[i:] for i in range(n))))

def bleu_counts(hypothesis, references, least=0):
    """
    Words -> [its length, the closest reference's, matches for n = 1 … 4, n-grams for n = 1 … 4]; a corpus adds these up.
    A match counts at most as often as in one reference ("clipped"). least=1 is NLTK's habit for texts shorter than n.
    """
    matches, totals = [], []
    for n in range(1, 5):
        own, most = ngrams(hypothesis, n), Counter()
        for reference in references:
            most |= ngrams(reference, n)  # the larger of the counts
        matches.append((own & most).total())
        totals.append(max(own.total(), least))
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    return np.array([len(hypothesis), closest, *matches, *totals])

def bleu(counts, smooth='exp', effective_order=False):
    """
    100 * brevity penalty * the geometric mean of the precisions of n-grams, n = 1 … 4 (Papineni et al. 2002). In single
    sentences a precision is often 0, so it is smoothed; effective_order leaves out n-grams longer than the text.
    """
    length, closest, *counts = counts.tolist()
    logs, halvings = [], 0
    for n, (match, total) in enumerate(zip(counts[:4], counts[4:])):
        if counts[0] == 0 or total == 0 and smooth != 'add-k':
            break
        if smooth == 'add-k' and n > 0:
            match, total = match + 1, total + 1
        if match == 0:
            halvings += 1
            match = {'exp': 0.5**halvings, 'floor': 0.1}.get(smooth, 0)
        logs.append(math.log(match / total) if match else -math.inf)
    if not logs or len(logs) < 4 and not effective_order:
        return 0.0
    return 100 * math.exp(min(0, 1 - closest / length) + sum(logs) / len(logs))

def f1(common, a, b):
    """Harmonic mean of precision and recall: (2 in common, of 4, of 6) -> 2 * 2 / (4 + 6)"""
    return 2 * common / (a + b) if a + b else 0.0

def lcs(a, b):
    """Length of the longest common subsequence, row by row: ('abcd', 'xbxd') -> 2"""
    row = [0] * (len(b) + 1)
    for x in a:
        above_left = 0
        for j, y in enumerate(b, 1):
            above_left, row[j] = row[j], above_left + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]

def rouge(hypothesis, reference):
    """F1 of words, of pairs of words, and of the longest common subsequence: ROUGE-1, -2, -L (Lin 2004)."""
    pairs = [(ngrams(hypothesis, n), ngrams(reference, n)) for n in (1, 2)]
    return [f1((h & r).total(), h.total(), r.total()) for h, r in pairs] + \
        [f1(lcs(hypothesis, reference), len(hypothesis), len(reference))]

def squad_f1(hypothesis, reference):
    """F1 of the words in common; two empty answers agree (Rajpurkar et al. 2016, 2018)."""
    h, r = Counter(hypothesis), Counter(reference)
    return f1((h & r).total(), h.total(), r.total()) if h and r else float(h == r)

def cider(hypothesis, references, df, documents):
    """
    CIDEr-D (Vedantam et al. 2015, eq. 1–4 and section 6): n-grams weigh more the fewer documents' references hold them
    (tf-idf), and what counts is the cosine, clipped, and less the more the lengths differ; n = 1 … 4, times 10.
    """
    def vector(words, n):
        return {g: count * math.log(documents / max(1, df[g])) for g, count in ngrams(words, n).items()}
    def norm(v):
        return math.sqrt(sum(x * x for x in v.values()))
    total = 0.0
    for reference in references:
        gap = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)  # sic: the reference code counts pairs of words
        for n in range(1, 5):
            h, r = vector(hypothesis, n), vector(reference, n)
            dot = sum(min(x, r.get(g, 0)) * r.get(g, 0) for g, x in h.items())
            total += dot / (norm(h) * norm(r) or 1) * math.exp(-gap**2 / (2 * 6**2))
    return 10 * total / 4 / len(references)

def read_pairs():
    """(hypothesis, its references), from .jsonl or from files of as many lines."""
    if hypotheses.endswith('.jsonl'):
        def parse(item):
            right = [item['references']] if isinstance(item['references'], str) else item['references']
            if not right or not all(isinstance(text, str) for text in [item['hypothesis'], *right]):
                raise ValueError("no references, or no text")
            return item['hypothesis'], right
        yield from read_jsonl(hypotheses, parse, '{"hypothesis": "a cat", "references": ["a cat", "one cat"]}')
        return
    if not references:
        usage("hypotheses= of plain text needs references=: a file of as many lines")
    names = [hypotheses, *references.split(',')]
    files = [open(name, encoding='utf-8') for name in names]
    for number, lines in enumerate(islice(zip_longest(*files), limit or None), 1):
        if None in lines:
            sys.exit(f"{names[lines.index(None)]} ends before line {number}, but another file goes on: "
                     f"expected as many references as hypotheses")
        first, *rest = (line.rstrip('\n') for line in lines)
        yield first, rest

def text(model, tokenizer, name):
    """Two passes: CIDEr-D must first know how common each n-gram is. What is kept are n-grams and sums, no texts."""
    if hypotheses:
        pairs = read_pairs
    else:
        kept = [(answer, [right]) for answer, right, _ in answered(model, tokenizer)]
        def pairs():
            return iter(kept)
    df, documents = Counter(), 0
    for _, right in pairs():
        df.update({g for words in map(rouge_words, right) for n in range(1, 5) for g in ngrams(words, n)})
        documents += 1
    if not documents:
        sys.exit(f"{hypotheses or folder()} holds nothing to score")
    totals, corpus, distinct = Counter(), np.zeros(10, dtype=int), {1: Counter(), 2: Counter()}
    random, resampled = np.random.default_rng(seed), np.zeros((500, 10))
    for answer, right in pairs():
        counts = bleu_counts(bleu_words(answer), [bleu_words(r) for r in right])
        corpus += counts
        resampled += random.poisson(1, (500, 1)) * counts  # bootstrap: 500 files, where it stands 0, 1, 2 … times
        words, others = rouge_words(answer), [rouge_words(r) for r in right]
        best = map(max, zip(*(rouge(words, r) for r in others)))  # the best reference, for each of the three
        scores = {'sentence BLEU': bleu(counts, smooth, effective_order=True),
                  **dict(zip(('ROUGE-1', 'ROUGE-2', 'ROUGE-L'), best)), 'CIDEr-D': cider(words, others, df, documents),
                  'exact match': answer.strip() in [r.strip() for r in right],
                  'token F1': max(squad_f1(squad_words(answer), squad_words(r)) for r in right)}
        for key, value in scores.items():
            totals[key] = totals[key] + moments(value)
        for n in distinct:
            distinct[n].update(ngrams(words, n))
    table = {'BLEU': (bleu(corpus, smooth), statistics.stdev(bleu(c, smooth) for c in resampled)),
             **{key: estimate(total) for key, total in totals.items()},
             **{f'distinct-{n}': (len(seen) / max(seen.total(), 1), None) for n, seen in distinct.items()}}
    return [{'items': documents, 'measure': key, 'mean': mean, '±': error} for key, (mean, error) in table.items()]

# ------------------------------------------------------------------------------------------------------------
# 5. What a model writes

def temperatures():
    try:
        return [float(t) for t in temperature.split(',')]
    except ValueError:
        usage(f"temperature={temperature}: expected a number, or several with commas")

def complete(model, tokenizer, prompts, heat, first=0):
    """Prompts (lists of ids) -> (text, whether the model ended it itself). Answer i depends on seed + i alone."""
    written, stops = [[] for _ in prompts], set(tokenizer.special.values())
    for tokens in generate(model, prompts, max_new_tokens, heat, stop_tokens=stops, seed=seed + first):
        for ids, token in zip(written, tokens):
            ids += [token] if token is not None else []
    return [(tokenizer.decode([i for i in ids if i not in stops]), ids[-1] in stops) for ids in written]

def answered(model, tokenizer):
    """-> (the model's answer, the right one, the skill) for each conversation of the dataset."""
    first = 0
    for chats in batches(read_chats(), batch_size):
        prompts = [tokenizer.chat(before, answer=True)[0] for before, _, _ in chats]
        for (answer, _), (_, right, skill) in zip(complete(model, tokenizer, prompts, temperatures()[0], first), chats):
            yield answer, right, skill
        first += len(chats)

def instruct(model, tokenizer, name):
    """Exact match, skill by skill: an answer is right or it is not."""
    totals = {'all': np.zeros(6)}
    for answer, right, skill in answered(model, tokenizer):
        for key in {'all', skill}:
            totals[key] = totals.get(key, 0) + moments(answer.strip() == right.strip())
    if not totals['all'].any():
        sys.exit(f"{os.path.join(data_dir, folder(), split)}.jsonl holds no conversations")
    return [{'skill': skill, 'items': int(total[0]), **dict(zip(('exact match', '±'), estimate(total)))}
            for skill, total in sorted(totals.items(), key=lambda pair: (pair[0] == 'all', pair[0]))]

def is_python(program, ended):
    """
    Whether Python's parser accepts it. A program that was cut off may stop anywhere that a line ends: codeop, which
    serves Python's own prompt, raises where something is wrong, but not where something is still to come.
    """
    program = program if ended else program[:program.rfind('\n') + 1]
    try:
        codeop.compile_command(program, symbol='exec')  # compiles, and runs nothing
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False
    return bool(program.strip())

def code(model, tokenizer, name):
    """Programs from nothing: the lower the temperature, the more regular, and the more alike."""
    rows = []
    for heat in temperatures():
        programs = []
        for numbers in batches(range(num_samples), batch_size):
            programs += complete(model, tokenizer, [[tokenizer.eot] for _ in numbers], heat, numbers[0])
        good = sum(is_python(*program) for program in programs)
        low, high = wilson(good, len(programs))
        rows.append({'temperature': heat, 'samples': len(programs), 'Python': good / len(programs), '95 % from': low,
                     'to': high, 'different': len(set(programs)) / len(programs)})
    return rows

def compare(models):
    """A person reads two answers, not knowing whose is which, and says which is better. Votes are kept as they come."""
    (a, _), (b, _) = models
    if input:
        with open(input, encoding='utf-8') as f:
            asked = [line.strip() for line in f if line.strip()]
    else:
        asked = [before for before, _, _ in read_chats()]
    past = []
    if os.path.exists(votes):
        past = [v for v in read_jsonl(votes, lambda v: (v['a'], v['b'], v['prompt'], v['better']), '') if v[:2] == (a, b)]
    for number, prompt in enumerate(asked[:limit or None]):
        if prompt in [p for _, _, p, _ in past]:
            continue
        sides = [0, 1] if np.random.default_rng([seed, number]).random() < 0.5 else [1, 0]
        print(f"\n--- {number + 1} of {len(asked)}: {prompt if input else prompt[-1]['content']}")
        for side, which in enumerate(sides, 1):
            model, tokenizer = models[which][1]
            ids = (tokenizer.encode(prompt) or [tokenizer.eot]) if input else tokenizer.chat(prompt, answer=True)[0]
            print(f"[{side}] {complete(model, tokenizer, [ids], temperatures()[0], number)[0][0]}")
        vote = ''
        while vote not in ('1', '2', 't', 'q'):
            print("which is better: 1, 2, t (a tie), q (enough for now)? ", end='', flush=True)
            vote = sys.stdin.readline().strip() or 'q'
        if vote == 'q':
            break
        better = 'tie' if vote == 't' else 'ab'[sides[int(vote) - 1]]
        past.append((a, b, prompt, better))
        with open(votes, 'a', encoding='utf-8') as f:
            f.write(dumps({'a': a, 'b': b, 'prompt': prompt, 'better': better}, ensure_ascii=False) + '\n')
    count = Counter(better for *_, better in past)
    wins, decided = count['a'], count['a'] + count['b']
    low, high = wilson(wins, decided)
    return [{'better': a, 'than': b, 'wins': wins, 'losses': count['b'], 'ties': count['tie'],
             'win rate': wins / decided if decided else None, '95 % from': low, 'to': high}]

# ------------------------------------------------------------------------------------------------------------
# 6. Speed

def seconds(kind, run, repeat=5):
    """Median of some runs, after one to warm up; accelerators work on while Python goes ahead, so wait for them."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        run()
        getattr(torch, kind).synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])

def speed(model, tokenizer, name):
    """
    Tokens per second in a training step (forward, backward, AdamW) and in decoding (n new tokens for each row, after the
    prompt was read). Memory is what a step must keep: weights, gradients, optimizer state, and what the backward pass
    needs again. MFU, model FLOPs utilisation: the share of a plain matrix product's speed (of this device, in this dtype)
    that the model's arithmetic reaches (Chowdhery et al. 2022, app. B, who divide by the data sheet's).
    """
    kind, number = next(model.parameters()).device.type, resolve_device(device, dtype)[1]
    autocast = nullcontext() if number == 'float32' else torch.autocast(kind, dtype=getattr(torch, number))
    n = 2048 if kind == 'cpu' else 8192
    square = torch.randn(n, n, device=kind, dtype=getattr(torch, number))
    peak = 2 * n**3 / seconds(kind, lambda: square @ square)
    print(f"{name}: {number} on {kind}, where a matrix product reaches {peak / 1e12:,.2f} TFLOP/s")
    config, longest, rows = model.config, block_size or model.config.block_size, []
    for B, T in ((B, T) for T in (longest // 4, longest) for B in sorted({1, batch_size})):
        x = torch.randint(config.vocab_size, (B, T), device=kind)
        optimizers = configure_optimizers(model, 'adamw', learning_rate=0.0)
        kept = {}
        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor
        def step():
            with autocast:
                loss = model(x, x)
            loss.backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        weights = {p.untyped_storage().data_ptr(): 4 * p.untyped_storage().nbytes() for p in model.parameters()}
        training = B * T / seconds(kind, step)
        flops = describe(model, say=lambda line: None)['flops_per_token']
        flops -= 12 * config.n_layer * config.n_head * config.head_dim * (config.block_size - T)
        rows.append({'rows': B, 'context': T, 'training tokens/s': training, 'FLOPs per token': flops,
                     'MFU': training * flops / peak, 'memory, MB': sum({**kept, **weights}.values()) / 2**20})
    model.to(getattr(torch, number)).eval()
    for row in rows:
        prompts, times = [[1] * max(1, row['context'] - 32)] * row['rows'], []
        for _ in generate(model, prompts, 32, temperature=0):
            times.append(time.perf_counter())
        row['decoding tokens/s'] = row['rows'] * (len(times) - 1) / (times[-1] - times[0])
    return rows

# ------------------------------------------------------------------------------------------------------------
# 7. The table

def show(rows):
    """Rows (dictionaries of the same keys) as a table; what is None was not to be known, and a nan is an error."""
    def written(value):
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"
        return '-' if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    table = [list(rows[0])] + [[written(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print('  '.join(f'{cell:<{w}}' if i == 0 else f'{cell:>{w}}' for i, (cell, w) in enumerate(zip(line, widths))))

def main():
    for name in ('batch_size', 'max_new_tokens', 'num_samples'):
        if globals()[name] < 1:
            usage(f"{name}={globals()[name]}: expected at least 1")
    for name in ('limit', 'block_size', 'stride'):
        if globals()[name] < 0:
            usage(f"{name}={globals()[name]}: expected at least 0")
    if any(not t >= 0 or t == math.inf for t in temperatures()):
        usage(f"temperature={temperature}: expected at least 0")
    names = out_dir.split(',')
    if task in ('kl', 'compare') and len(names) != 2:
        usage(f"task={task} takes two models: out_dir=A,B")
    where, number = resolve_device(device, dtype)

    def load(name):
        model, tokenizer, _ = load_model(name, where)
        return model.to(torch.float32 if task == 'speed' else getattr(torch, number)).eval(), tokenizer

    if task in ('kl', 'compare'):
        rows = {'kl': kl, 'compare': compare}[task]([(name, load(name)) for name in names])
    elif task == 'text' and hypotheses:
        rows = [{'model': hypotheses, **row} for row in text(None, None, hypotheses)]
    else:
        run = {'perplexity': perplexity, 'choices': choices, 'text': text, 'instruct': instruct, 'code': code,
               'speed': speed}[task]
        rows = []
        for name in names:
            rows += [row for new in run(*load(name), name) if (row := {'model': name, **new}) not in rows]
    for row in rows:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                sys.exit(f"{row.get('model', out_dir)}: {key} is {value}: do its weights hold numbers? Nothing is reported")
    show(rows)
    if json:
        with open(json, 'w', encoding='utf-8') as f:
            f.write(dumps({'task': task, 'rows': rows}, indent=1, ensure_ascii=False) + '\n')

if __name__ == '__main__':
    main()

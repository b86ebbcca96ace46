"""
How good is it, really: the numbers that a paper would quote, computed as the reference tools do.

    python eval.py                                               # perplexity and bits per byte
    python eval.py out_dir=out,out-gpt input=book.txt stride=64  # two models, any text: one table
    python eval.py task=choices input=hellaswag_val.jsonl        # multiple choice: acc, acc_norm
    python eval.py task=text hypotheses=captions.jsonl           # BLEU, ROUGE, CIDEr-D of a file
    python eval.py task=instruct dataset=instruct out_dir=out,out-sft  # exact match by skill
    python eval.py task=kl out_dir=out,out-sft                   # how far apart, and where most?
    python eval.py task=compare dataset=instruct out_dir=out,out-sft   # a blind test by you

A number without its uncertainty is a rumour: beside most stands a standard error (±) or a 95 %
interval. BLEU was compared with sacrebleu, ROUGE with rouge-score, CIDEr-D with pycocoevalcap and
HellaSwag with lm-evaluation-harness: equal to 1e-6 on hundreds of cases each.
"""
from configurator import configure, expect, usage

task = 'perplexity'    # perplexity | choices | text | instruct | kl | compare
out_dir = 'out'        # the folder of a ckpt.pt; or several, with commas: one table for all
dataset = 'python'     # a folder in data_dir, made by prepare.py
data_dir = 'data'
split = 'val'          # train | val
input = ''             # a file: text; choices needs one: .jsonl of {"context", "choices", "label"}
hypotheses = ''        # task=text: a .jsonl of {"hypothesis": "a cat", "references": ["a cat", …]}
limit = 0              # stop after so many items (perplexity, kl: windows); 0: all
batch_size = 8         # instruct: prompts at once
block_size = 0         # perplexity, kl: tokens in a window; 0: as many as the model sees
stride = 0             # … from window to window; 0: block_size; less: more context, slower
max_new_tokens = 128   # of an answer
temperature = 0.0      # 0 always takes the likeliest token; else at least 0.001
num_samples = 50       # kl: positions to show
votes = 'votes.jsonl'  # compare: where they are kept; run again to go on
device = 'auto'        # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'      # auto | float32 | bfloat16 | float16: of the weights
seed = 1337
configure(globals())

import json, math, os, re, sys
from collections import Counter
from itertools import islice
import numpy as np
import torch
from torch.nn import functional as F
from model import complete, load_dataset, load_examples, load_model, resolve_device

def mean_and_stderr(values, weights=None):
    """{'items': n, 'mean': …, '±': sd / √n}, columns of the table. With weights, it is the ratio
    estimator of Cochran 1977, ch. 6: sum of values / sum of weights, which are the items. A loss is
    a ratio: nats over tokens, summed over windows of text. Of a single value, ± is nan: unknown."""
    n = len(values)
    values = np.array(values, dtype=np.float64)
    weights = np.ones(n) if weights is None else np.array(weights, dtype=np.float64)
    total = float(weights.sum())
    if total == 0:
        sys.exit("there is nothing to measure: the text or the file is empty")
    mean = float(values.sum()) / total
    variance = ((values - mean * weights)**2).sum() * n / (n - 1) if n > 1 else math.nan
    return {'items': int(total), 'mean': mean, '±': math.sqrt(variance) / total}

def wilson(wins, n, z=1.96):
    """The 95 % interval of a share (Wilson 1927): honest for few trials, and near 0 and 1, where
    p ± error would leave the scale. (5, 10) -> (0.237, 0.763); of no trials, nothing is known."""
    middle = wins + z * z / 2
    spread = z * math.sqrt(wins * (n - wins) / max(n, 1) + z * z / 4)
    return (middle - spread) / (n + z * z), (middle + spread) / (n + z * z)

@torch.inference_mode()
def log_likelihood(model, ids, n):
    """log p(the last n of these ids | all before them), in nats: how likely a model finds a text.
    This one number is behind perplexity and multiple choice."""
    ids = torch.tensor(ids, dtype=torch.long, device=next(model.parameters()).device)
    hidden = model.hidden(ids[None, :-1])[0, -n:]  # (n, C): the last token is only predicted
    losses = F.cross_entropy(model.logits(hidden).float(), ids[-n:], reduction='none')
    return -losses.cpu().double().sum().item()

def strided_windows(ids, block_size, stride, eot):
    """A text -> rows of at most block_size + 1 ids, and how many at their end are to be predicted:
    every token of the text once. 'abcdefg', 4, 2 -> (⊥abcd, 4), (bcdef, 2), (defg, 1): from e on,
    each has at least 3 letters of context. The first is predicted, too, from <|endoftext|> (⊥): a
    compressor has to pay for all of the text."""
    ids = np.insert(ids, 0, eot)
    rows, done = [], 0  # done: the last token that is predicted so far
    while done < len(ids) - 1:
        start = stride * len(rows)
        end = min(start + block_size, len(ids) - 1)
        rows.append((ids[start:end + 1], end - done))
        done = end
    return rows

def count_bytes(tokenizer, ids):
    """Bytes of this text, without <|endoftext|>; nan where unknown tokens stand for some of it."""
    if tokenizer.kind == 'word' or (tokenizer.kind == 'char' and 0 in ids):  # 0: unknown
        return math.nan
    ids = [i for i in ids.tolist() if i != tokenizer.eot]
    if tokenizer.kind == 'hf':
        return len(tokenizer.decode(ids).encode())
    return sum(len(tokenizer.bytes[i]) for i in ids)

def perplexity(model, tokenizer, windows):
    """exp(loss): the model is as unsure as between so many equally likely tokens. It depends on
    what a token is; bits per byte do not: they are what a compressor reaches that spends -log2 p
    bits on each token, and arithmetic coding does."""
    nats = [-log_likelihood(model, ids, n) for ids, n in windows]
    loss = mean_and_stderr(nats, [n for ids, n in windows])
    ppl = math.exp(loss['mean'])
    table = [{'measure': 'loss', **loss},
             {'measure': 'perplexity', **loss, 'mean': ppl, '±': ppl * loss['±']}]  # exp' = exp
    n_bytes = [count_bytes(tokenizer, ids[-n:]) for ids, n in windows]
    if sum(n_bytes) > 0:  # nan is not
        bits = mean_and_stderr([n / math.log(2) for n in nats], n_bytes)
        table.append({'measure': 'bits per byte', **bits})
    return table

def kl_divergence(log_p, log_q):
    """KL(p‖q) = Σ p ln p/q, in nats: what believing q costs where p is true. Log-probabilities
    (T, V) of two models -> (T,): at each position, exact, since summed over the vocabulary."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)

def read_jsonl(path, parse):
    """Yields parse(line) of each line; exits with one line that names what is wrong in the file."""
    if not os.path.exists(path):
        sys.exit(f"no file {path!r}: what it should hold is said by  python eval.py --help")
    with open(path, 'rb') as f:
        for number, line in enumerate(f, 1):
            try:
                yield parse(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                sys.exit(f"{path} line {number}: {type(e).__name__} {e}; try  eval.py --help")

def clean(text):
    """How the harness cleans HellaSwag: 'Peel. [title] Cut [step] it.' -> 'Peel.. Cut it.' (sic)"""
    return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')

def parse_choices(item):
    """A line of HellaSwag (Zellers et al. 2019), or {"context": …, "choices": […], "label": …}
    -> (label, context, choices). HellaSwag's text is cleaned and begins with its topic, as in
    lm-evaluation-harness, whose numbers for GPT-2 124M on all 10,042 items of val are acc 0.2892
    and acc_norm 0.3114. Raises an error where the item is not a question."""
    label = int(item['label'])
    if 'endings' in item:
        context = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
        choices = [clean(choice) for choice in item['endings']]
    else:
        context, choices = str(item['context']), item['choices']
    if len(choices) < 2 or not 0 <= label < len(choices) or not all(c.strip() for c in choices):
        raise ValueError(f"label {label} of {len(choices)} choices: at least two, none empty")
    return label, context, choices

def choice_rows(tokenizer, context, choices, block_size):
    """Yields for each choice (ids, how many at their end are the choice), as log_likelihood() takes
    them. The harness encodes context and choice together, so that a space stays with the word after
    it. What is too long for the model loses its beginning."""
    head = tokenizer.encode(context.rstrip())
    for choice in choices:
        ending = tokenizer.encode(context + ' ' + choice)[len(head):]
        ids = (head or [tokenizer.eot]) + ending
        yield ids[-(block_size + 1):], min(len(ending), block_size)

def accuracy(model, tokenizer, questions):
    """acc takes the ending with the largest log-likelihood, which favours short ones; acc_norm
    divides each by its number of characters first."""
    acc, acc_norm = [], []
    for label, context, choices in questions:
        rows = choice_rows(tokenizer, context, choices, model.config.block_size)
        log_p = np.array([log_likelihood(model, ids, n) for ids, n in rows])
        acc.append(log_p.argmax() == label)
        acc_norm.append((log_p / [len(choice) for choice in choices]).argmax() == label)
    return [{'measure': 'acc', **mean_and_stderr(acc)},
            {'measure': 'acc_norm', **mean_and_stderr(acc_norm)}]

def bleu_words(text):
    """mteval's 13a, as sacrebleu has it: 'Hi, Ann: 3.5' -> Hi , Ann : 3.5"""
    text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for name, sign in (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')):
        text = text.replace(name, sign)
    text = re.sub(r'([!-&(-+/:-@\[-`{-~])', r' \1 ', f' {text} ')  # every ASCII sign but ' , - .
    text = re.sub(r'([^0-9])([.,])', r'\1 \2 ', text)  # a full stop or comma stays within a number
    text = re.sub(r'([.,])([^0-9])', r' \1 \2', text)
    return re.sub(r'([0-9])(-)', r'\1 \2 ', text).split()

def rouge_words(text):
    return re.findall('[a-z0-9]+', text.lower())

def ngrams(words, n):
    """('a b a b', 2) -> {(a, b): 2, (b, a): 1}"""
    return Counter(zip(*(words[i:] for i in range(n))))

def bleu(pairs):
    """BLEU of a corpus [(words, [words of a reference, …]), …]: 100 * brevity penalty * geometric
    mean of the precisions of n-grams, n = 1 … 4 (Papineni et al. 2002). A match counts no more
    often than in one reference; the closest length counts, of two the shorter."""
    length, closest = 0, 0
    matches, totals = np.zeros(4), np.zeros(4)
    for hypothesis, references in pairs:
        length += len(hypothesis)
        closest += min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
        for n in range(1, 5):
            own, most = ngrams(hypothesis, n), Counter()
            for reference in references:
                most |= ngrams(reference, n)  # of each n-gram, the larger count
            matches[n - 1] += (own & most).total()  # the smaller count
            totals[n - 1] += own.total()
    if matches[0] == 0 or totals[3] == 0:
        return 0.0
    zeros = matches == 0  # smoothed (Chen & Cherry 2014, method 3): 1/2, then 1/4 … of a match
    matches[zeros] = 0.5 ** np.arange(1, zeros.sum() + 1)
    return 100 * math.exp(min(0, 1 - closest / length) + np.log(matches / totals).mean())

def f1(h, r):
    """Harmonic mean of precision and recall of two Counters: 2 in common, of 4 and of 6 -> 0.4"""
    return 2 * (h & r).total() / max(h.total() + r.total(), 1)

def lcs(a, b):
    """Length of the longest common subsequence, row by row of the table: ('abcd', 'xbxd') -> 2"""
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]

def rouge(h, references):
    """F1 of words, of pairs of words, and of the longest common subsequence (Lin 2004), each with
    the reference that suits it best."""
    return (max(f1(ngrams(h, 1), ngrams(r, 1)) for r in references),
            max(f1(ngrams(h, 2), ngrams(r, 2)) for r in references),
            max(2 * lcs(h, r) / max(len(h) + len(r), 1) for r in references))

def cider(pairs):
    """CIDEr-D of each of some (words, [words of a reference, …]) (Vedantam et al. 2015, eq. 1–4 and
    section 6): the cosine of n-gram counts, each weighted by how few items have it in their
    references, clipped, and less the more the lengths differ; the mean over n = 1 … 4, times 10."""
    df = Counter()  # n-gram -> in the references of how many items it occurs
    for _, references in pairs:
        for n in range(1, 5):
            df.update(set().union(*(ngrams(words, n) for words in references)))

    def vector(words, n):
        return {g: count * math.log(len(pairs) / max(1, df[g]))
                for g, count in ngrams(words, n).items()}
    for hypothesis, references in pairs:
        total = 0.0
        for reference in references:
            penalty = math.exp(-(len(hypothesis) - len(reference))**2 / (2 * 6**2))
            for n in range(1, 5):
                h, r = vector(hypothesis, n), vector(reference, n)
                dot = sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r)
                total += penalty * dot / (math.hypot(*h.values()) * math.hypot(*r.values()) or 1)
        yield 10 * total / 4 / len(references)

def parse_pair(item):
    """{"hypothesis": …, "references": […]} -> both; raises an error where it is something else."""
    hypothesis, references = item['hypothesis'], item['references']
    if not isinstance(references, list) or not references:
        raise ValueError("references should be a list of texts, at least one")
    return hypothesis.strip(), [reference.strip() for reference in references]

def text_scores(pairs):
    """[(hypothesis, [reference, …]), …] -> a table: BLEU of all, and the means of the others."""
    for_bleu = [(bleu_words(h), [*map(bleu_words, references)]) for h, references in pairs]
    for_rouge = [(rouge_words(h), [*map(rouge_words, references)]) for h, references in pairs]
    scores = dict(zip(('ROUGE-1', 'ROUGE-2', 'ROUGE-L'), zip(*(rouge(*p) for p in for_rouge))))
    scores['CIDEr-D'] = [*cider(for_rouge)]
    scores['exact match'] = [h in references for h, references in pairs]
    return [{'measure': 'BLEU', 'items': len(pairs), 'mean': bleu(for_bleu), '±': math.nan},
            *({'measure': name, **mean_and_stderr(scores[name])} for name in scores)]

def exact_match_by_skill(answers, chats):
    """A table by skill: how many answers are equal to the chat's last message."""
    right = {}
    for answer, chat in zip(answers, chats):
        values = right.setdefault(chat.get('skill', 'any'), [])
        values.append(answer.strip() == chat['messages'][-1]['content'].strip())
    groups = sorted(right.items()) + [('all', sum(right.values(), []))]
    return [{'skill': skill, 'measure': 'exact match', **mean_and_stderr(values)}
            for skill, values in groups]

if __name__ == '__main__':
    # 1. settings, device, models; task=text needs none: its file holds the texts
    expect(globals(), 'batch_size max_new_tokens num_samples', least=1)
    expect(globals(), 'limit block_size stride seed temperature', least=0)
    device, dtype = resolve_device(device, dtype)
    print(f"on {device}, {dtype}")
    models, tokenizers, rows = {}, {}, []
    names = [] if task == 'text' else out_dir.split(',')
    for name in names:
        model, tokenizers[name], _ = load_model(name, device)
        models[name] = model.to(getattr(torch, dtype)).eval()
        if not model.config.causal:
            usage(f"out_dir={name} is an encoder (objective=mlm), which sees what it predicts")
    if task in ('kl', 'compare') and len(models) != 2:
        usage(f"out_dir={out_dir}: task={task} takes two models, out_dir=A,B")

    # 2. what is measured: windows of a text, or what models answer in chats
    folder = os.path.join(data_dir, dataset)
    def text_windows(*names):
        """The text in windows for these models, which share a tokenizer."""
        tokenizer = tokenizers[names[0]]
        longest = min(models[name].config.block_size for name in names)
        if input:
            with open(input, encoding='utf-8-sig', errors='replace') as f:  # -sig: a mark in front
                ids = tokenizer.encode(f.read())
        else:
            tokenizer, data = load_dataset(folder)
            ids = data[split]
        for name in names:
            if tokenizers[name].to_dict() != tokenizer.to_dict():
                sys.exit(f"{name} uses a different tokenizer: try  task=perplexity input=FILE")
        T = block_size or longest
        if (stride or T) > T or T > longest:
            usage(f"block_size={T} stride={stride}: expected stride <= block_size <= {longest}")
        print(f"{', '.join(names)}: windows of {T} tokens, {stride or T} apart")
        return strided_windows(ids, T, stride or T, tokenizer.eot)[:limit or None]

    def answer(name, chats, seed):
        """What a model says in place of the last message of each chat."""
        prompts = [tokenizers[name].chat(chat['messages'][:-1], answer=True)[0] for chat in chats]
        answers = []
        for i in range(0, len(chats), batch_size):
            answers += complete(models[name], tokenizers[name], prompts[i:i + batch_size],
                                max_new_tokens, temperature=temperature, seed=seed + i)
        return answers

    # 3. measure the file, or each model
    if task == 'text':
        rows = text_scores([*islice(read_jsonl(hypotheses, parse_pair), limit or None)])
    elif task in ('instruct', 'compare'):
        chats = [chat for chat in load_examples(folder)[split][:limit or None]
                 if chat.get('messages', [{}])[-1].get('role') == 'assistant']
        if not chats:
            sys.exit(f"{folder} holds no conversations: try  dataset=instruct")
    for name, model in models.items():
        table = []
        if task == 'perplexity':
            table = perplexity(model, tokenizers[name], text_windows(name))
        elif task == 'choices':
            lines = read_jsonl(input, parse_choices)
            table = accuracy(model, tokenizers[name], islice(lines, limit or None))
        elif task == 'instruct':
            table = exact_match_by_skill(answer(name, chats, seed), chats)
        rows += [{'model': name, **row} for row in table]

    # 4. or compare two at each token of a text
    if task == 'kl':
        a, b = models
        text = text_windows(a, b)
        kl, likeliest = [], []  # of each window
        for ids, n in text:  # one by one: logits of all the vocabulary, twice, in float64
            x = torch.tensor([ids[:-1].tolist()], device=device)  # (1, T)
            with torch.inference_mode():
                log_p, log_q = [models[m](x)[0, -n:].cpu().double().log_softmax(-1) for m in (a, b)]
            kl.append(kl_divergence(log_p, log_q))
            likeliest.append(torch.stack((log_p.argmax(-1), log_q.argmax(-1))))  # (2, n)
        tokens = [n for ids, n in text]
        sums = {f'KL({a}‖{b})': [value.sum() for value in kl],
                'same choice': [(p == q).sum() for p, q in likeliest]}
        rows = [{'measure': name, **mean_and_stderr(sums[name], tokens)} for name in sums]
        print(f"KL, where it is largest: the text, its next token, the likeliest for {a}, and {b}")
        kl, likeliest = torch.cat(kl), torch.cat(likeliest, dim=1)  # of all tokens
        targets = np.concatenate([ids[-n:] for ids, n in text]).tolist()
        for t in kl.topk(min(num_samples, len(kl))).indices.tolist():
            before = tokenizers[a].decode(targets[max(0, t - 12):t])[-40:]
            words = [tokenizers[a].decode([i]) for i in (targets[t], *likeliest[:, t].tolist())]
            print(f"  {kl[t]:.3f} {before!r:>44}", *(f"{word!r:<12}" for word in words))

    # 5. or ask a person, who does not know whose answer is which
    if task == 'compare':
        a, b = models
        past = read_jsonl(votes, dict) if os.path.exists(votes) else []
        about = {'a': a, 'b': b, 'dataset': dataset, 'split': split}
        # for each chat the name of the better model, or 'tie'; go on after those of earlier runs
        better = [vote['better'] for vote in past if about.items() <= vote.items()]
        for i, chat in enumerate(chats[len(better):], len(better)):
            print(f"\n{i + 1} of {len(chats)}:", *[m['content'] for m in chat['messages'][-2:-1]])
            sides = np.random.default_rng([seed, i]).permutation([a, b]).tolist()
            for side, name in enumerate(sides, 1):
                print(f"[{side}] {answer(name, [chat], seed + i)[0]}")
            vote = ''
            while vote not in ('1', '2', 't', 'q'):
                print("better: 1 or 2? t: a tie, q: enough for now  ", end='', flush=True)
                vote = (sys.stdin.readline() or 'q').strip()
            if vote == 'q':
                break
            better.append('tie' if vote == 't' else sides[int(vote) - 1])
            with open(votes, 'a', encoding='utf-8') as f:  # at once: no vote is ever lost
                f.write(json.dumps({**chat, **about, 'better': better[-1]}) + '\n')
        count = Counter(better)
        low, high = wilson(count[a], count[a] + count[b])
        rows = [{'better': a, 'than': b, 'wins': count[a], 'losses': count[b], 'ties': count['tie'],
                 'win rate': count[a] / max(count[a] + count[b], 1), '95 % from': low, 'to': high}]

    # 6. one table: text on the left, numbers on the right
    formats = {int: ',', float: ',.4f'}
    cells = [list(rows[0])]
    for row in rows:
        cells.append([format(value, formats.get(type(value), '')) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*cells)]
    aligns = ['<' if isinstance(value, str) else '>' for value in rows[0].values()]
    for line in cells:
        print('  '.join(f"{cell:{a}{width}}" for cell, a, width in zip(line, aligns, widths)))

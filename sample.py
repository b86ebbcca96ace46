"""
Using a model: generate, chat, label, look inside, serve.

    python sample.py                                      # from nothing, with the model in out/
    python sample.py prompt='def main():' num_samples=3   # three continuations of a prompt
    python sample.py prompt=- < story.txt                 # a prompt from standard input
    python sample.py chat=True out_dir=out-sft            # with a model tuned for conversations
    python sample.py out_dir=out-spam prompt='You won!'   # its label, from a classifier
    python sample.py show=probs prompt='import '          # or attention, embeddings
    python sample.py quantize=int8                        # quicker; or dtype=bfloat16
    python sample.py serve=8000                           # a page, and the OpenAI API

A model gives every token of the vocabulary a score; the settings decide how one of them is drawn.
"""
from configurator import configure, expect, usage

# what to write
out_dir = 'out'          # the folder of a ckpt.pt, which holds the model and its tokenizer
prompt = ''              # FILE:path reads a file, - standard input; in a chat: the system message
num_samples = 1          # sample i is the same whatever their number
max_new_tokens = 300
temperature = 0.8        # 0: always the likeliest; 1: as often as the model thinks; above: wilder
top_k = 0                # only the k likeliest tokens; 0: all
top_p = 1.0              # only the fewest tokens that together have this probability (nucleus)
min_p = 0.0              # only tokens at least this fraction as likely as the likeliest
stop = ''                # end a sample where this text appears; a special token always ends it
seed = 1337
# what else to do
chat = False             # a conversation in the terminal
show = 'text'            # text | probs | attention | embeddings: look inside
serve = 0                # a port, like 8000, for the page and the API; 0: none
# how quickly
device = 'auto'          # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'        # auto | float32 | bfloat16 | float16: of the weights
quantize = 'none'        # none | int8: weights in a byte each; the rest in bfloat16
configure(globals())

import json, math, os, secrets, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import torch
from torch import nn
from torch.nn import functional as F
from model import check_sampling, generate, has_bfloat16, load_model, resolve_device

# 1. Generate

def stream_text(model, tokenizer, ids, max_new_tokens, stop=(), **sampling):
    """The text that follows a prompt, as it grows, up to a special token or a string in `stop`.
    Yields for each new token: the piece of text that is certain now ('' while a character of some
    tokens is not whole, and while a stop string may have begun); its id; the logits (V,) that it
    was drawn from; and None, or with the last token the reason: 'stop' or 'length'."""
    specials = set(tokenizer.special.values())
    hold = max(map(len, stop), default=1) - 1  # so many characters may begin a stop string
    written = []
    shown = 0                                  # so many characters were yielded
    steps = generate(model, [ids], max_new_tokens, stop_tokens=specials, **sampling)
    for step, ((token,), logits) in enumerate(steps, 1):
        if token not in specials:
            written.append(token)
        text = tokenizer.decode(written)
        found = [text.find(end) for end in stop if end in text]
        reason = None
        if found or token in specials:
            reason = 'stop'
            text = text[:min(found, default=None)]
        elif step == max_new_tokens:
            reason = 'length'
        else:
            text = text.rstrip('\ufffd')  # perhaps a part of a character
            text = text[:max(len(text) - hold, 0)]
        yield text[shown:], token, logits[0], reason
        shown = max(shown, len(text))
        if reason:
            return

# 2. Chat

def chat_loop(model, tokenizer, system, **sampling):
    """A conversation in the terminal. Ctrl-C stops an answer; between answers it ends all."""
    print("/reset begins again, Ctrl-C stops an answer, Ctrl-D ends")
    start = [{'role': 'system', 'content': system}] if system else []
    messages = list(start)
    while True:
        try:
            line = input('> ')
        except (EOFError, KeyboardInterrupt):
            return print()
        if line == '/reset':
            messages = list(start)
            continue
        messages.append({'role': 'user', 'content': line})
        ids = tokenizer.chat(messages, answer=True)[0]
        if len(ids) > model.config.block_size:
            print("(the context is full: only its last tokens are read; /reset begins again)")
        answer = ''
        try:
            for piece, *_ in stream_text(model, tokenizer, ids, **sampling):
                answer += piece
                print(piece, end='', flush=True)
            print()
        except KeyboardInterrupt:
            print(" (stopped)")
        messages.append({'role': 'assistant', 'content': answer})

# 3. Label

@torch.inference_mode()
def label_probs(model, tokenizer, classifier, text):
    """The probability of each label (n_labels,), by a model of finetune.py task=classify. It reads
    the last token, which has seen all others; in an encoder, where all see all, the first."""
    ids = [tokenizer.eot] + tokenizer.encode(text)
    idx = torch.tensor([ids[:model.config.block_size]], device=classifier.weight.device)
    x = model.hidden(idx)[0].float()  # (T, C)
    return classifier(x[-1] if model.config.causal else x[0]).softmax(-1)

# 4. Look inside

def alternatives(tokenizer, token, logits, n):
    """[(text, log-probability), …] of a token, and of the n likeliest in its place."""
    log_probs = logits.log_softmax(-1)
    best = log_probs.topk(min(n, len(log_probs))).indices.tolist()
    return [(tokenizer.decode([i]), log_probs[i].item()) for i in [token, *best]]

def show_probs(model, tokenizer, ids, **sampling):
    """Each token that is written, its probability, and what else might have stood there."""
    print("probability (before temperature and top_k …), token, the likeliest others")
    for _, token, logits, _ in stream_text(model, tokenizer, ids, **sampling):
        taken, *best = alternatives(tokenizer, token, logits, 6)
        others = [f"{text!r} {math.exp(p):.2f}" for text, p in best if text != taken[0]]
        print(f"{math.exp(taken[1]):7.3f}  {taken[0]!r:<14}  {'  '.join(others[:5])}", flush=True)

@torch.inference_mode()
def attention_maps(model, ids):
    """Who looks at whom: weights (L, H, T, T), of each layer and head. A row sums to 1."""
    for block in model.blocks:
        block.attention.keep_weights = True
    model.hidden(torch.tensor([ids], device=model.wte.weight.device))
    return torch.cat([block.attention.weights for block in model.blocks]).float().cpu()

def show_attention(model, tokenizer, ids, path):
    """Row t of a map shows how much token t takes from each token up to itself, of the first 32.
    All maps are also drawn into the file `path`, where matplotlib is installed."""
    ids = ids[:min(32, model.config.block_size)]
    maps = attention_maps(model, ids)
    for layer, heads in enumerate(maps):
        for head, weights in enumerate(heads):
            print(f"\nlayer {layer}, head {head}")
            for token, row in zip(ids, weights):
                name = repr(tokenizer.decode([token]))[1:-1]
                marks = [2 * ' ░▒▓█'[min(int(5 * weight), 4)] for weight in row]
                print(f"{name[:10]:>11} {''.join(marks)}")
    try:
        from matplotlib.image import imsave
    except ImportError:
        return
    maps = F.pad(maps, (0, 1, 0, 1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    imsave(path, maps.kron(torch.ones(8, 8)), vmin=0, vmax=1)
    print(f"(also in {path}: a row of squares for each layer, a column for each head)")

def show_embeddings(model, tokenizer, text):
    """Which tokens mean nearly the same to the model: the cosine of the angle of their vectors."""
    table = getattr(model, 'wte', None) or model.table  # a bigram's rows are its vectors
    vectors = F.normalize(table.weight[:tokenizer.vocab_size].detach().float(), dim=-1)
    for i in dict.fromkeys(tokenizer.encode(text)):  # each token once
        cosine = vectors @ vectors[i]
        best = cosine.topk(min(9, len(cosine))).indices.tolist()
        near = [f"{tokenizer.decode([j])!r} {cosine[j]:.2f}" for j in best if j != i]
        print(f"{tokenizer.decode([i])!r:<12} is near  {'  '.join(near[:8])}")

# 5. Quicker. Each new token takes reading every weight once: the limit is bytes per second, not
# multiplications. So: fewer bytes, and in the order in which they are read

class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127 times one scale per output:
    W ≈ scale * int8. A quarter of float32's bytes, and each weight off by half a scale at most."""
    def __init__(self, weight, bias):
        super().__init__()
        scale = (weight.float().abs().amax(1) / 127).clamp(min=1e-8).bfloat16()
        w = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer('scale', scale)
        self.register_buffer('weight', w.to(torch.int8))
        self.bias = bias

    def forward(self, x):
        rows = x.flatten(0, -2)
        # note: torch's product reads inputs in groups of 32, even past their end
        if x.device.type == 'cpu' and len(rows) <= 16 and x.size(-1) % 32 == 0:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:  # for a long prompt, multiplications are the limit
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.unflatten(0, x.shape[:-1])

class PackedLinear(nn.Module):
    """A linear layer whose weights lie in the order in which oneDNN's product reads them."""
    def __init__(self, weight, bias):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self.bias = bias

    def forward(self, x):
        rows = x.flatten(0, -2)
        y = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, 'none', [], '')
        return y.unflatten(0, x.shape[:-1])

def prepare_decoding(model, quantize='none'):
    """Lay out a model's weights, in place, for being read; not for training. A row times GPT-2's
    (3072, 768), on one core: float32 by rows 11 GB/s, in oneDNN's order 19; bfloat16, half the
    bytes, by rows 9, in oneDNN's order 14; int8, a quarter of the bytes, 7 (its inputs, and the
    rest of the model, are bfloat16)."""
    p = next(model.parameters())
    packs = p.dtype == torch.float32 or (p.dtype == torch.bfloat16 and has_bfloat16('cpu'))
    packs = packs and p.device.type == 'cpu' and torch.backends.mkldnn.is_available()
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if not isinstance(linear, nn.Linear):
                continue
            weight = linear.weight.detach()
            if name == 'head':
                weight = weight[:model.config.vocab_size]  # without its padding
            if quantize == 'int8':
                setattr(module, name, Int8Linear(weight, linear.bias))
            elif packs:
                setattr(module, name, PackedLinear(weight, linear.bias))
    if quantize == 'int8':
        model.bfloat16()

# 6. Serve: the OpenAI API (https://platform.openai.com/docs/api-reference) and a page, on this
# machine only. Each connection has a thread. Threads take turns at the model: a lock is held for
# one step of generate(), and never while writing to a socket

MAX_CONNECTIONS = 64  # more get a 503
LOCK = threading.Lock()
# what a request may hold: its type, and of a number the least and the most
FIELDS = {'model': (str,), 'prompt': (str,), 'messages': (list,), 'stop': ((str, list),),
          'max_tokens': (int, 1, 4096), 'n': (int, 1, 1), 'user': (str,),
          'temperature': ((int, float), 0, 100), 'top_p': ((int, float), 0, 1),
          'min_p': ((int, float), 0, 1), 'top_k': (int, 0, 2**31), 'seed': (int, 0, 2**63 - 1),
          'logprobs': (int, 0, 20), 'top_logprobs': (int, 0, 20),
          'stream': (bool,), 'stream_options': (dict,)}

def parse_request(body, tokenizer, sampling):
    """A request -> the prompt's ids, how to sample (where it does not say, as `sampling` does), and
    how many likely tokens to name beside each (False: no probabilities). Raises an error for what
    makes no sense, and for what is not offered."""
    for name, value in body.items():
        kind, *limits = FIELDS.get(name, ((), ))
        if not isinstance(value, kind) or (limits and not limits[0] <= value <= limits[1]):
            raise ValueError(f"{name}: expected {FIELDS.get(name, 'another name')}")
    sampling = {name: body.get(name, value) for name, value in sampling.items()}
    sampling['seed'] = body.get('seed', secrets.randbelow(2**31))
    sampling['max_new_tokens'] = body.get('max_tokens', sampling['max_new_tokens'])
    if isinstance(sampling['stop'], str):
        sampling['stop'] = [sampling['stop']]
    if not all(isinstance(end, str) and end for end in sampling['stop']):
        raise ValueError("stop: expected a text, or a list of them")
    check_sampling(*[sampling[name] for name in ('temperature', 'top_k', 'top_p', 'min_p')])
    ids = tokenizer.start + tokenizer.encode(body.get('prompt', '')) or [tokenizer.eot]
    if 'messages' in body:
        ids = tokenizer.chat(body['messages'], answer=True)[0]
    if 'messages' in body and 'prompt' in body:
        raise ValueError("expected a prompt or messages, not both")
    return ids, sampling, body.get('top_logprobs', body.get('logprobs', False))

class Handler(BaseHTTPRequestHandler):
    """One connection. In HTTP/1.0, the class's default, its end is the end of the answer."""
    timeout = 20        # seconds, for one read from a socket or one write to it
    streaming = False   # whether the head of a streamed answer was sent
    error_status = 400  # whose fault an error is: the client's, until its request is understood

    def log_message(self, *_):
        """Nothing is logged: prompts belong to their users."""

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client has gone, or was too slow
            self.close_connection = True
        except (Exception, SystemExit) as e:  # SystemExit: generate() found damaged weights
            self.send_error(self.error_status, f"{type(e).__name__}: {e}")

    def send(self, content, status=200, kind='application/json'):
        """Head and content; in a stream, an event: a line "data: …" and an empty one."""
        if not self.streaming:
            self.send_response(status)
            self.send_header('Content-Type', kind)
            self.end_headers()
        self.streaming = self.streaming or kind == 'text/event-stream'
        text = content if kind == 'text/html' else json.dumps(content)
        self.wfile.write((f'data: {text}\n\n' if self.streaming else text).encode())

    def send_error(self, status, message=None, explain=None):
        """In OpenAI's form. The standard library calls it, too, for what it cannot parse."""
        self.request_version = 'HTTP/1.0'  # even where the request was no HTTP at all
        self.send({'error': {'message': message, 'type': 'invalid_request_error'}}, status)

    def do_GET(self):
        model, tokenizer, name, sampling = self.server.uses
        models = [{'id': name, 'object': 'model', 'created': 0, 'owned_by': 'you'}]
        pages = {'/health': {'status': 'ok'}, '/v1/models': {'object': 'list', 'data': models}}
        # Another site's page names its origin; or, if its name was made to point to this machine
        # (DNS rebinding), the browser names it as host. And it cannot say that it sends JSON
        host = self.headers.get('Host', '')
        is_own = (host.partition(':')[0] in ('127.0.0.1', 'localhost')
                  and self.headers.get('Origin', f'http://{host}') == f'http://{host}')
        if threading.active_count() > MAX_CONNECTIONS + 1:  # one is not a connection's
            self.send_error(503, "too many connections: try again")
        elif not is_own:
            self.send_error(403, "expected Host: 127.0.0.1 or localhost, and no other Origin")
        elif self.path == '/':
            self.send(PAGE, kind='text/html')
        elif self.path in pages:
            self.send(pages[self.path])
        elif self.path not in ('/v1/completions', '/v1/chat/completions'):
            self.send_error(404, "expected /v1/completions or /v1/chat/completions")
        elif self.headers.get_content_type() != 'application/json':
            self.send_error(415, "expected POST with Content-Type: application/json")
        else:
            length = abs(int(self.headers['Content-Length']))
            body = json.loads(self.rfile.read(min(length, 2**20)))  # a longer one ends too early
            body = {name: value for name, value in body.items() if value is not None}
            ids, sampling, top = parse_request(body, tokenizer, sampling)
            if len(ids) > model.config.block_size:
                raise ValueError(f"a prompt of {len(ids)} tokens is more than the context holds")
            if body.get('model', name) != name:
                return self.send_error(404, f"model: expected {name}")
            self.error_status = 500
            self.answer(ids, sampling, top, body.get('stream', False))

    do_POST = do_GET

    def answer(self, ids, sampling, top, stream):
        """Generate, and send, in the words of both APIs: each piece at once, or all at the end."""
        model, tokenizer, name, _ = self.server.uses
        steps = enumerate(stream_text(model, tokenizer, ids, **sampling), 1)
        answer = {'id': secrets.token_hex(12), 'created': int(time.time()), 'model': name,
                  'object': 'text_completion'}
        if 'chat' in self.path:
            answer['object'] = 'chat.completion.chunk' if stream else 'chat.completion'
        message = {'role': 'assistant', 'content': ''}
        logprobs = {'content': [], 'tokens': [], 'token_logprobs': [], 'top_logprobs': []}
        reason = None
        while not reason:
            with LOCK:
                count, (piece, token, logits, reason) = next(steps)
                (text, p), *best = alternatives(tokenizer, token, logits, int(top))
            message['content'] += piece
            logprobs['content'].append({'token': text, 'logprob': p, 'top_logprobs': [
                {'token': other, 'logprob': q} for other, q in best]})
            logprobs['tokens'].append(text)
            logprobs['token_logprobs'].append(p)
            logprobs['top_logprobs'].append(dict(best))
            if not reason and not (piece and stream):
                continue
            choice = {'index': 0, 'finish_reason': reason, 'text': message['content'],
                      'delta' if stream else 'message': message, 'logprobs': logprobs}
            if top is False:
                choice['logprobs'] = None
            answer['choices'] = [choice]
            if reason:
                answer['usage'] = {'prompt_tokens': len(ids), 'completion_tokens': count,
                                   'total_tokens': len(ids) + count}
            self.send(answer, kind='text/event-stream' if stream else 'application/json')
            message = {'content': ''}
            logprobs = {key: [] for key in logprobs}
        if stream:
            self.wfile.write(b'data: [DONE]\n\n')

PAGE = '''<!doctype html>
<html lang="en"><meta charset="utf-8"><title>ninefiles</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { max-width: 46rem; margin: auto; padding: 1rem 1rem 11rem }
  textarea { width: 100%; box-sizing: border-box; font: inherit }
  #out { font-family: monospace; white-space: pre-wrap; margin: 1rem 0 }
  #out :hover, #out :focus { outline: 2px solid }
  #out :hover::after, #out :focus::after { content: attr(data-more); position: fixed;
    inset: auto 0 0; height: 10rem; padding: .5rem 1rem; background: Canvas }
</style>
<form id="form">
  <label>Prompt <textarea id="prompt" rows="4" autofocus></textarea></label>
  <label>temperature <input type="number" id="temperature" value="0.8" min="0" step="0.1"></label>
  <label>tokens <input type="number" id="max_tokens" value="200" min="1" max="4096"></label>
  <label><input type="checkbox" id="chat"> as a chat</label>
  <button>Write</button> <button type="button" id="stop">Stop (Esc)</button>
</form>
<div id="out">Green was likely, red a surprise.
Hover, tap, or walk with the arrow keys to see what else might have stood there.</div>
<script>
const $ = id => document.getElementById(id)
let stopper = null  // stops the answer that is being written

function add(choice) {  // a piece of text, shaded by the probability of its tokens
  const tokens = choice.logprobs.content
  const p = Math.exp(tokens.reduce((sum, t) => sum + t.logprob, 0))
  const line = t => `${(100 * Math.exp(t.logprob)).toFixed(1)} %  ${JSON.stringify(t.token)}\\n`
  const span = document.createElement('span')
  span.textContent = choice.text
  span.style.background = `hsl(${120 * p} 80% 50% / .35)`
  span.dataset.more = tokens.map(t => line(t) + '\\n' + t.top_logprobs.map(line).join('')).join('')
  span.tabIndex = 0
  $('out').append(span)
}

async function write() {
  stopper?.abort()
  stopper = new AbortController()
  const text = $('prompt').value
  const body = {stream: true, logprobs: 5,
                temperature: +$('temperature').value, max_tokens: +$('max_tokens').value}
  if ($('chat').checked) body.messages = [{role: 'user', content: text}]
  else body.prompt = text
  $('out').textContent = text
  const answer = await fetch('v1/completions', {
    method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify(body), signal: stopper.signal})
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (let part; !(part = await reader.read()).done;) {
    const events = (rest + part.value).split('\\n\\n')
    rest = events.pop()
    for (const event of events)
      if (event !== 'data: [DONE]') add(JSON.parse(event.slice(6)).choices[0])
  }
  $('out').append(rest)  // nothing, or an error
}

$('form').onsubmit = e => { e.preventDefault(); write() }
$('stop').onclick = () => stopper?.abort()
document.onkeydown = e => {
  if (e.key === 'Escape') stopper?.abort()
  const step = {ArrowRight: 'nextSibling', ArrowLeft: 'previousSibling'}[e.key]
  if (step) document.activeElement[step]?.focus?.()
}
</script>
'''

if __name__ == '__main__':
    # 1. settings
    expect(globals(), 'num_samples max_new_tokens', least=1)
    expect(globals(), 'seed serve', least=0)
    expect(globals(), 'serve', below=2**16)
    try:
        check_sampling(temperature, top_k, top_p, min_p)
    except ValueError as e:
        usage(str(e))
    sampling = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p,
                'max_new_tokens': max_new_tokens, 'stop': [stop] if stop else []}
    if sys.stdin is None and (chat or prompt == '-'):
        usage("standard input is closed: try  python sample.py prompt='Once upon'")

    # 2. the model
    device, dtype = resolve_device(device, dtype)
    model, tokenizer, saved = load_model(out_dir, device)
    labels = saved.get('labels')
    if not model.config.causal and not labels and show not in ('attention', 'embeddings'):
        sys.exit(f"{out_dir} holds an encoder (objective=mlm), which does not write: try  python "
                 f"finetune.py task=classify init_from={out_dir}")
    model.eval()
    if quantize == 'none':
        model.to(getattr(torch, dtype))
    prepare_decoding(model, quantize)

    # 3. the prompt
    text = prompt
    if prompt == '-':
        text = sys.stdin.buffer.read().decode('utf-8', errors='replace')
    elif prompt.startswith('FILE:'):
        with open(prompt.removeprefix('FILE:'), encoding='utf-8', errors='replace') as f:
            text = f.read()
    ids = tokenizer.start + tokenizer.encode(text) or [tokenizer.eot]

    # 4. what was asked for
    if serve:
        ThreadingHTTPServer.request_queue_size = 128
        server = ThreadingHTTPServer(('127.0.0.1', serve), Handler)  # there is no password
        name = os.path.basename(os.path.abspath(out_dir))  # what requests call the model
        server.uses = model, tokenizer, name, sampling
        print(f"a page at http://127.0.0.1:{serve}/, the API at /v1; Ctrl-C ends", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            LOCK.acquire()  # no thread may compute while Python ends
    elif chat:
        sys.stdin.reconfigure(errors='replace')  # a stray byte in what is typed ends nothing
        chat_loop(model, tokenizer, text, seed=seed, **sampling)
    elif show == 'probs':
        show_probs(model, tokenizer, ids, seed=seed, **sampling)
    elif show == 'attention':
        if model.config.model_type != 'gpt':
            usage(f"show=attention: a {model.config.model_type} has no attention")
        show_attention(model, tokenizer, ids, os.path.join(out_dir, 'attention.png'))
    elif show == 'embeddings':
        show_embeddings(model, tokenizer, text)
    elif labels:
        classifier = nn.Linear(model.config.n_embd, len(labels), device=device)
        classifier.load_state_dict(saved['classifier'])
        for line in text.splitlines():
            probs = label_probs(model, tokenizer, classifier, line)
            pairs = [f"{label} {p:.3f}" for label, p in zip(labels, probs)]
            print('  '.join(pairs), '', line)
    else:
        start = time.perf_counter()
        count = 0
        for i in range(num_samples):
            print(text, end='', flush=True)
            for piece, *_ in stream_text(model, tokenizer, ids, seed=seed + i, **sampling):
                count += 1
                print(piece, end='', flush=True)
            print('\n' + '-' * 15)
        speed = count / (time.perf_counter() - start)
        print(f"({speed:,.0f} tokens/s on {device})", file=sys.stderr)

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
"""
from configurator import configure, expect, usage

# what to write: the model scores every token, and these settings say how one is drawn
out_dir = 'out'          # the folder of a ckpt.pt, which holds the model and its tokenizer
prompt = ''              # -: read standard input; in a chat: the system message
num_samples = 1          # sample i is the same whatever their number
max_new_tokens = 300
temperature = 0.8        # 0: always the likeliest; 1: as the model thinks; above: wilder
top_k = 0                # only the k likeliest tokens; 0: all
top_p = 1.0              # only the fewest tokens that together have this probability (nucleus)
min_p = 0.0              # only tokens at least this fraction as likely as the likeliest
stop = ''                # end a sample before this text; a special token always ends it
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

import json, math, secrets, sys, threading, time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import torch
from torch import nn
from torch.nn import functional as F
from model import filter_logits, generate, has_bfloat16, load_model, resolve_device

# 1. Generate

def stream_text(model, tokenizer, ids, max_tokens, stop=(), **sampling):
    """The text that follows a prompt, as it grows, up to a special token or a string in `stop`.
    Yields for each new token: the piece of text that is certain now ('' while a character of some
    tokens is incomplete, or a stop string may have begun); its id; the logits (V,) that it was
    drawn from; and None, or with the last token why it ends: 'stop' or 'length'."""
    specials = set(tokenizer.special.values())
    hold = max(map(len, stop), default=1) - 1  # may begin a stop
    written = []
    shown = 0  # characters yielded so far
    steps = generate(model, [ids], max_tokens, stop_tokens=specials, **sampling)
    for step, ((token,), logits) in enumerate(steps, 1):
        if token not in specials:
            written.append(token)
        text = tokenizer.decode(written)
        found = [text.find(end) for end in stop if end in text]
        reason = 'length' if step == max_tokens else None
        if found or token in specials:
            reason = 'stop'
            text = text[:min(found, default=None)]  # [:None] is all
        elif not reason:
            text = text.rstrip('\ufffd')  # perhaps part of a character
            text = text[:max(len(text) - hold, 0)]
        yield text[shown:], token, logits[0], reason
        shown = max(shown, len(text))
        if reason:
            return

# 2. Chat

def chat_loop(model, tokenizer, system, **sampling):
    """A conversation in the terminal. Ctrl-C at the prompt ends it, too."""
    print("/reset begins again, Ctrl-C stops an answer, Ctrl-D ends")
    while True:
        messages = [{'role': 'system', 'content': system}] if system else []
        while (line := input('> ')) != '/reset':
            messages.append({'role': 'user', 'content': line})
            ids = tokenizer.chat(messages, answer=True)[0]
            answer = ''
            with suppress(KeyboardInterrupt):
                for piece, *_ in stream_text(model, tokenizer, ids, **sampling):
                    answer += piece
                    print(piece, end='', flush=True)
            print()
            messages.append({'role': 'assistant', 'content': answer})

# 3. Label

@torch.inference_mode()
def label_probs(model, tokenizer, classifier, text):
    """The probability of each label (n_labels,), from finetune.py's classifier. It reads the last
    token, which sees all others; in an encoder, where each does, the first. Too long: the end."""
    ids = [tokenizer.eot] + tokenizer.encode(text)
    idx = torch.tensor([ids[-model.config.block_size:]], device=classifier['weight'].device)
    x = model.hidden(idx)[0, -1 if model.config.causal else 0].float()  # (C,)
    return F.linear(x, classifier['weight'], classifier['bias']).softmax(-1)

# 4. Look inside

def alternatives(tokenizer, token, logits, n):
    """A token, and the n likeliest in its place: [{'token': its text, 'logprob': …}, …]"""
    log_probs = logits.log_softmax(-1)
    ids = [token] + log_probs.topk(min(n, len(log_probs))).indices.tolist()
    return [{'token': tokenizer.decode([i]), 'logprob': log_probs[i].item()} for i in ids]

def show_probs(model, tokenizer, ids, **sampling):
    """Each token that is written, its probability, and what else might have stood there."""
    print("token and its probability (before temperature and top_k …); the five likeliest")
    for _, token, logits, _ in stream_text(model, tokenizer, ids, **sampling):
        found = alternatives(tokenizer, token, logits, 5)
        taken, *best = [f"{one['token']!r} {math.exp(one['logprob']):.2f}" for one in found]
        print(f"{taken:<20}  {'  '.join(best)}", flush=True)

@torch.inference_mode()
def show_attention(model, tokenizer, ids, path):
    """Who looks at whom, of the first 32 tokens: row t of a map is how much token t takes from each
    token up to itself, together 1. Draws the maps, one for each layer and head, and returns them,
    (L, H, T, T). Where matplotlib is installed, they are also drawn into the file `path`."""
    ids = ids[:min(32, model.config.block_size)]
    for block in model.blocks:
        block.attention.keep_weights = True
    model.hidden(torch.tensor([ids], device=model.wte.weight.device))
    maps = torch.cat([block.attention.weights for block in model.blocks]).float().cpu()
    for layer, heads in enumerate(maps):
        for head, weights in enumerate(heads):
            print(f"\nlayer {layer}, head {head}")
            for token, row in zip(ids, weights):
                marks = [2 * ' ░▒▓█'[min(int(5 * weight), 4)] for weight in row]
                print(f"{tokenizer.decode([token])[:9]!r:>13} {''.join(marks)}")
    with suppress(ImportError):
        from matplotlib.image import imsave
        grid = F.pad(maps, (0, 1, 0, 1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (L T, H T)
        imsave(path, grid.kron(torch.ones(8, 8)), vmin=0, vmax=1)
        print(f"(also in {path}: a row for each layer, a column for each head)")
    return maps

def show_embeddings(model, tokenizer, text):
    """Which tokens mean nearly the same to the model: the cosine of the angle of their vectors."""
    vectors = F.normalize(model.wte.weight[:tokenizer.vocab_size].detach().float(), dim=-1)
    for i in dict.fromkeys(tokenizer.encode(text)):  # each token once
        cosine = vectors @ vectors[i]
        best = cosine.argsort(descending=True)[:9].tolist()
        near = [f"{tokenizer.decode([j])!r} {cosine[j]:.2f}" for j in best if j != i]
        print(f"{tokenizer.decode([i])!r:<12} is near  {'  '.join(near)}")

# 5. Quicker. For each new token, every weight is read once: the limit is bytes per second, not
# multiplications. So: fewer bytes, and in the order in which they are read

class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127 times one scale per output:
    W ≈ scale * int8. A quarter of float32's bytes; each is off by half a scale at most."""
    def __init__(self, linear):
        super().__init__()
        w = linear.weight.data.float()
        self.scale = (w.abs().amax(1) / 127).clamp(min=1e-8).bfloat16()
        w = (w / self.scale.float()[:, None]).round().clamp(-127, 127)
        self.weight = w.to(torch.int8)
        self.bias = linear.bias

    def forward(self, x):
        rows = x.flatten(0, -2)
        # note: torch's product reads inputs in groups of 32, even past their end
        if x.device.type == 'cpu' and len(rows) <= 16 and x.size(-1) % 32 == 0:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        else:  # for a long prompt, multiplications are the limit
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias

class PackedLinear(nn.Module):
    """A linear layer whose weights lie in the order in which oneDNN's product reads them."""
    def __init__(self, linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data.contiguous(), 1)
        self.bias = linear.bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, 'none', [], '')

def prepare_decoding(model, quantize='none'):
    """Lay out a model's weights, in place, for decoding only. Billions of weights per second,
    for one row on one core: float32 2.6, packed 3.7; bfloat16 4, packed 9; int8 9.5 (its inputs,
    and the rest of the model, are bfloat16)."""
    p = next(model.parameters())
    packs = p.dtype == torch.float32 or (p.dtype == torch.bfloat16 and has_bfloat16('cpu'))
    packs = packs and p.device.type == 'cpu' and torch.backends.mkldnn.is_available()
    new_class = Int8Linear if quantize == 'int8' else PackedLinear
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and (packs or quantize == 'int8'):
            model.set_submodule(name, new_class(layer))
    if quantize == 'int8':
        model.bfloat16()

# 6. Serve: the OpenAI API and a page, on this machine only. Each connection has a thread. They take
# turns at the model: a lock is held for one step of generate(), never while writing to a socket

MAX_CONNECTIONS = 64  # more get a 503
LOCK = threading.Lock()

def parse_request(tokenizer, prompt='', messages=None, stream=False, stream_options=None,
                  logprobs=False, top_logprobs=None, max_tokens=300, stop=(), **sampling):
    """What a request may hold -> the prompt's ids; whether to stream; how many likely tokens to
    name beside each (False: no log-probabilities); how to sample. Raises an error for a bad
    value. Other names go to generate(), which refuses unknown ones."""
    if not isinstance(prompt, str) or (prompt and messages) or not isinstance(stream, bool):
        raise ValueError("expected one text as prompt, or messages; stream=true or false")
    if top_logprobs is not None and logprobs is not True:
        raise ValueError("top_logprobs needs logprobs=true")
    top = logprobs if top_logprobs is None else top_logprobs
    if not 0 <= top <= 20 or not 1 <= max_tokens <= 4096:
        raise ValueError("expected 0 to 20 logprobs, 1 to 4096 max_tokens")
    ids = tokenizer.start + tokenizer.encode(prompt) or [tokenizer.eot]
    if messages is not None:
        ids = tokenizer.chat(messages, answer=True)[0]
    stop = [stop] if isinstance(stop, str) else stop
    return ids, stream, top, {**sampling, 'stop': stop, 'max_tokens': max_tokens}

class Handler(BaseHTTPRequestHandler):
    """One connection. In HTTP/1.0, the class's default, closing it ends the answer."""
    timeout = 20       # seconds, for one read from a socket or one write to it
    streaming = False  # whether the head of a streamed answer was sent

    def handle(self):
        with suppress(OSError):  # the client has gone, or was too slow
            try:
                super().handle()
            except (Exception, SystemExit) as e:  # SystemExit: damaged weights
                status = 500 if isinstance(e, SystemExit) else 400
                self.send_error(status, f"{type(e).__name__}: {e}")

    def send(self, content, status=200, mime_type='application/json'):
        """Head and content; in a stream, an event: a line "data: …" and an empty one."""
        if not self.streaming:
            self.send_response(status)
            self.send_header('Content-Type', mime_type)
            self.end_headers()
        self.streaming = self.streaming or mime_type == 'text/event-stream'
        text = content if mime_type == 'text/html' else json.dumps(content)
        self.wfile.write((f'data: {text}\n\n' if self.streaming else text).encode())

    def send_error(self, status, message=None, explain=None):
        """In OpenAI's form. The standard library calls it, too, for what it cannot parse."""
        self.request_version = 'HTTP/1.0'  # even where the request was no HTTP at all
        self.send({'error': {'message': message}}, status)

    def do_GET(self):
        _, tokenizer, name, sampling = self.server.uses
        models = [{'id': name, 'object': 'model', 'created': 0, 'owned_by': 'you'}]
        pages = {'/health': {'status': 'ok'}, '/v1/models': {'object': 'list', 'data': models}}
        # Refuse other sites' pages. Their requests name the site as Origin or, where its name
        # points here (DNS rebinding), as Host; and they cannot have JSON's Content-Type
        host = self.headers.get('Host', '')
        is_own = (host.partition(':')[0] in ('127.0.0.1', 'localhost')
                  and self.headers.get('Origin', f'http://{host}') == f'http://{host}')
        if threading.active_count() > MAX_CONNECTIONS + 1:  # the main thread is one
            self.send_error(503, "too many connections: try again")
        elif not is_own:
            self.send_error(403, "expected Host: 127.0.0.1 or localhost, and no other Origin")
        elif self.path == '/':
            self.send(PAGE, mime_type='text/html')
        elif self.path in pages:
            self.send(pages[self.path])
        elif self.path not in ('/v1/completions', '/v1/chat/completions'):
            self.send_error(404, "expected /v1/completions or /v1/chat/completions")
        elif self.headers.get_content_type() != 'application/json':
            self.send_error(415, "expected POST with Content-Type: application/json")
        else:
            length = abs(int(self.headers['Content-Length']))  # read(-1) waits for ever
            body = json.loads(self.rfile.read(min(length, 2**20)))  # a longer one is cut off
            body = {name: value for name, value in body.items() if value is not None}
            if body.pop('model', name) != name:
                return self.send_error(404, f"model: expected {name}")
            body = {'seed': secrets.randbelow(2**31), **sampling, **body}
            self.answer(*parse_request(tokenizer, **body))

    do_POST = do_GET

    def answer(self, ids, stream, top, sampling):
        """Generate and send: each piece at once, or all at the end. It has both APIs' fields."""
        model, tokenizer, name, _ = self.server.uses
        steps = enumerate(stream_text(model, tokenizer, ids, **sampling), 1)
        chat_object = 'chat.completion.chunk' if stream else 'chat.completion'
        answer = {'id': secrets.token_hex(12), 'created': int(time.time()), 'model': name,
                  'object': chat_object if 'chat' in self.path else 'text_completion'}
        message = {'role': 'assistant', 'content': ''}
        logprobs = {'content': [], 'tokens': [], 'token_logprobs': [], 'top_logprobs': []}
        reason = None
        while not reason:
            with LOCK:
                count, (piece, token, logits, reason) = next(steps)
                taken, *best = alternatives(tokenizer, token, logits, int(top))
            message['content'] += piece
            logprobs['content'].append({**taken, 'top_logprobs': best})
            logprobs['tokens'].append(taken['token'])
            logprobs['token_logprobs'].append(taken['logprob'])
            logprobs['top_logprobs'].append({one['token']: one['logprob'] for one in best})
            if reason or (piece and stream):
                choice = {'index': 0, 'finish_reason': reason, 'text': message['content'],
                          'delta' if stream else 'message': message,
                          'logprobs': None if top is False else logprobs}
                counts = {'prompt_tokens': len(ids), 'completion_tokens': count,
                          'total_tokens': len(ids) + count}
                self.send({**answer, 'choices': [choice], 'usage': counts},
                          mime_type='text/event-stream' if stream else 'application/json')
                message = {'content': ''}  # the next
                logprobs = {key: [] for key in logprobs}
        if stream:
            self.wfile.write(b'data: [DONE]\n\n')

PAGE = r'''<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>ninefiles</title><style>
  body { max-width: 46rem; margin: auto; padding: 1rem 1rem 11rem; font: 16px/1.5 system-ui }
  #out :hover, #out :focus { outline: 2px solid }
  #out :hover::after, #out :focus::after { content: attr(data-more); position: fixed;
    inset: auto 0 0; height: 10rem; padding: .5rem 1rem; background: Canvas }
</style>
<form onsubmit="generate(); return false">
  <textarea id="prompt" rows="4" style="width: 100%" autofocus></textarea>
  <label>temperature <input id="temperature" type="number" value="0.8" step="0.1"></label>
  <label><input id="chat" type="checkbox"> as a chat</label>
  <button>Write</button> Esc stops.
</form>
<pre id="out" style="white-space: pre-wrap">Green was likely, red a surprise.
Hover, tap or use the arrow keys to see what else might have stood there.</pre>
<script>
const $ = id => document.getElementById(id)
let stopper = new AbortController()  // stops what is being written

function add(choice) {  // a piece of text, shaded by the probability of its tokens
  const tokens = choice.logprobs.content
  const p = Math.exp(tokens.reduce((sum, t) => sum + t.logprob, 0))
  const line = t => `${(100 * Math.exp(t.logprob)).toFixed(1)} %  ${JSON.stringify(t.token)}\n`
  const span = document.createElement('span')
  span.textContent = choice.text
  span.style.background = `hsl(${120 * p} 80% 50% / .35)`
  span.dataset.more = tokens.map(t => line(t) + '\n' + t.top_logprobs.map(line).join('')).join('')
  span.tabIndex = 0
  $('out').append(span)
}

async function generate() {
  stopper.abort()
  stopper = new AbortController()
  const text = $('prompt').value
  const body = {stream: true, logprobs: 5, temperature: +$('temperature').value}
  if ($('chat').checked) body.messages = [{role: 'user', content: text}]
  else body.prompt = text
  $('out').textContent = text
  const answer = await fetch('v1/completions', {method: 'POST', body: JSON.stringify(body),
    headers: {'Content-Type': 'application/json'}, signal: stopper.signal})
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (let part; !(part = await reader.read()).done;) {
    const events = (rest + part.value).split('\n\n')
    rest = events.pop()
    for (const event of events)
      if (event !== 'data: [DONE]') add(JSON.parse(event.slice(6)).choices[0])
  }
  $('out').append(rest)  // nothing, or an error
}

document.onkeydown = e => {
  if (e.key === 'Escape') stopper.abort()
  if (e.key === 'ArrowRight') document.activeElement.nextSibling?.focus?.()
  if (e.key === 'ArrowLeft') document.activeElement.previousSibling?.focus?.()
}
</script>
'''

if __name__ == '__main__':
    # 1. settings
    expect(globals(), 'num_samples max_new_tokens', least=1)
    expect(globals(), 'serve', least=0, below=2**16)
    try:
        filter_logits(torch.zeros(1, 1), temperature or 1, top_k, top_p, min_p)  # its checks
    except ValueError as e:
        usage(str(e))
    sampling = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p,
                'max_tokens': max_new_tokens, 'stop': [stop] if stop else []}

    # 2. the model and the prompt
    device, dtype = resolve_device(device, dtype)
    model, tokenizer, saved = load_model(out_dir, device)
    labels = saved.get('labels')
    if not model.config.causal and not labels and show not in ('attention', 'embeddings'):
        sys.exit(f"{out_dir} is an encoder: try  python finetune.py task=classify dataset=… "
                 f"init_from={out_dir}")
    if labels and (serve or chat or not prompt):
        usage(f"{out_dir} is a classifier: it takes prompt='a text'")
    model.eval().to(getattr(torch, dtype))
    prepare_decoding(model, quantize)
    text = sys.stdin.buffer.read().decode(errors='replace') if prompt == '-' else prompt
    ids = tokenizer.start + tokenizer.encode(text) or [tokenizer.eot]

    # 3. what was asked for
    if serve:
        ThreadingHTTPServer.request_queue_size = 128
        server = ThreadingHTTPServer(('127.0.0.1', serve), Handler)  # there is no password
        server.uses = model, tokenizer, out_dir, sampling
        print(f"a page at http://127.0.0.1:{serve}/, the API at /v1; Ctrl-C ends", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        LOCK.acquire()  # no thread may compute while Python ends
    elif chat:
        with suppress(EOFError, KeyboardInterrupt):
            chat_loop(model, tokenizer, text, seed=seed, **sampling)
        print()
    elif show == 'probs':
        show_probs(model, tokenizer, ids, seed=seed, **sampling)
    elif show == 'attention':
        if model.config.model_type != 'gpt':
            usage(f"a {model.config.model_type} has no attention to show")
        show_attention(model, tokenizer, ids, f'{out_dir}/attention.png')
    elif show == 'embeddings':
        show_embeddings(model, tokenizer, text)
    elif labels:
        for line in text.splitlines():  # a text each
            probs = label_probs(model, tokenizer, saved['classifier'], line)
            print(*[f"{label} {p:.3f} " for label, p in zip(labels, probs)], line)
    else:
        for i in range(num_samples):
            print(text, end='', flush=True)
            for piece, *_ in stream_text(model, tokenizer, ids, seed=seed + i, **sampling):
                print(piece, end='', flush=True)
            print('\n' + '-' * 15)

"""
Using a model: generate, chat, look inside, serve.

    python sample.py                                          # from nothing, with the model in out/
    python sample.py prompt='def main():' num_samples=3       # three continuations of a prompt
    python sample.py prompt=FILE:story.txt temperature=0      # a prompt from a file; 0 always takes the likeliest token
    echo 'import os' | python sample.py prompt=-              # or from standard input
    python sample.py quantize=int8                            # quicker: a quarter of the bytes; or dtype=bfloat16, half
    python sample.py chat=True out_dir=out-sft                # a conversation, with a model that was tuned for it
    python sample.py show=probs prompt='import '              # what else it might have said; or attention, embeddings
    python sample.py serve=8000                               # a page at http://127.0.0.1:8000/, and the OpenAI API

A model gives every token in the vocabulary a score; the settings below decide how one of them is drawn. The
model and its tokenizer both come from out_dir/ckpt.pt, so nothing else is needed. A text appears as it is
written; of several, the first.
"""
from configurator import configure, expect, usage

# what to write
out_dir = 'out'            # the folder of a ckpt.pt
prompt = ''                # what to go on from; FILE:path reads a file, - standard input; in a chat: the system message
num_samples = 1            # written side by side; sample i is the same whatever their number
max_new_tokens = 300
temperature = 0.8          # 0: always the likeliest; 1: as often as the model thinks; above: more surprising
top_k = 0                  # only the k likeliest tokens; 0: all
top_p = 1.0                # only the fewest tokens that together have this probability (nucleus sampling)
min_p = 0.0                # only tokens at least this fraction as likely as the likeliest
stop = ''                  # end a sample where this text appears; a special token ends it in any case
# what else to do
chat = False               # a conversation in the terminal
show = 'text'              # text | probs | attention | embeddings: look inside
serve = 0                  # a port, like 8000, to serve the page and the API on; 0: none
# how quickly
device = 'auto'            # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'          # auto | float32 | bfloat16 | float16: of the weights; half as many bytes to read per token
quantize = 'none'          # none | int8: weights in a byte each, with a scale per row; the rest in bfloat16
seed = 1337
configure(globals())

import contextlib, json, os, secrets, signal, sys, threading, time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
import torch
from torch.nn import functional as F
from model import (GPT, check_sampling, load_model, prepare_decoding, resolve_device, rotary, sinusoids,
                   stream_text)

# ------------------------------------------------------------------------------------------------------------
# 1. Generate

def read_prompt():
    """The prompt's text: as given, from a file, or from standard input."""
    try:
        if prompt == '-':
            return sys.stdin.buffer.read().decode('utf-8')
        if prompt.startswith('FILE:'):
            with open(prompt.removeprefix('FILE:'), encoding='utf-8') as f:
                return f.read()
    except UnicodeDecodeError:
        sys.exit(f"prompt={prompt} is not UTF-8 text")
    return prompt

def load(folder):
    """-> a model laid out for decoding, its tokenizer, and the device it is on."""
    where, number = resolve_device(device, dtype)
    model, tokenizer, _ = load_model(folder, where)
    model.eval()
    if not model.config.causal and show != 'embeddings':
        sys.exit(f"{folder} holds an encoder (objective=mlm), which fills gaps but does not write: try  python "
                 f"finetune.py task=classify init_from={folder}")
    if quantize == 'none':
        model = model.to(getattr(torch, number))
    return prepare_decoding(model, quantize), tokenizer, where

# ------------------------------------------------------------------------------------------------------------
# 2. Chat

def talk(model, tokenizer, stream, system):
    """A conversation in the terminal. Ctrl-C stops the answer; at the prompt, it ends the program, as Ctrl-D does."""
    print("/reset begins again, Ctrl-C stops an answer, Ctrl-D ends")
    start = [{'role': 'system', 'content': system}] if system else []
    messages, block_size = list(start), model.config.block_size
    room = block_size - min(max_new_tokens, block_size // 2)  # the rest is for the answer
    while True:
        try:
            line = input('> ').strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if line == '/reset':
            messages = list(start)
            print("(a new conversation)")
        elif line.startswith('/'):
            print("(there is only /reset)")
        elif line:
            messages.append({'role': 'user', 'content': line})
            forgotten = 0
            while len(tokenizer.chat(messages, answer=True)[0]) > room and len(messages) > len(start) + 1:
                del messages[len(start):len(start) + 2]  # the oldest question and its answer
                forgotten += 2
            ids = tokenizer.chat(messages, answer=True)[0]
            if forgotten:
                print(f"(a context holds {block_size} tokens: the oldest {forgotten} messages are forgotten)")
            if len(ids) > block_size:
                print(f"(only the last {block_size} of {len(ids)} tokens are read)")
            answer = ''
            try:
                for _, piece, *_ in stream(model, tokenizer, [ids], seed=seed + len(messages)):
                    print(piece, end='', flush=True)
                    answer += piece
                print()
            except KeyboardInterrupt:
                print(" (stopped)")
            messages.append({'role': 'assistant', 'content': answer})

# ------------------------------------------------------------------------------------------------------------
# 3. Look inside

def colour(text, p):
    """Text on red where p is small, on green where it is large; as it stands where the output is no terminal."""
    if not sys.stdout.isatty() or 'NO_COLOR' in os.environ:
        return text
    return f"\033[30;48;5;{(203, 209, 215, 221, 191, 155, 119)[min(int(7 * p), 6)]}m{text}\033[0m"

def show_probs(model, tokenizer, stream, text):
    """Each token, its probability, and what else might have stood there."""
    written = []
    print("probability (before temperature and top_k …), token, the likeliest others")
    for _, _, token, logits, _ in stream(model, tokenizer, [text]):
        p = logits.softmax(-1)
        mine = p[token].item()
        written.append((tokenizer.decode([token]), mine))
        best = p.topk(min(6, len(p)))
        others = []
        for i, x in zip(best.indices.tolist(), best.values.tolist()):
            if i != token:
                others.append(f"{tokenizer.decode([i])!r} {x:.2f}")
        name = f"{written[-1][0]!r:<14}"
        print(f"{mine:7.3f}  {colour(name, mine)}  {'  '.join(others[:5])}", flush=True)
    print(text + ''.join(colour(token, p) for token, p in written))

@torch.no_grad()
def attention_maps(model, idx):
    """Which token looks at which: for each layer the weights (B, H, T, T), whose rows sum to 1."""
    for block in model.blocks:
        block.attention.keep_weights = True
    model.hidden(idx)
    for block in model.blocks:
        block.attention.keep_weights = False
    return [block.attention.weights for block in model.blocks]

def show_attention(model, tokenizer, _, text):
    """
    Who looks at whom, of the first 32 tokens, which is what fits on a screen: row t shows how much token t takes from
    each token up to itself; a row's shares sum to 1.
    """
    if not isinstance(model, GPT):
        usage(f"show=attention: a {model.config.model_type} does not attend to anything")
    ids = (tokenizer.encode(text) or [tokenizer.eot])[:min(32, model.config.block_size)]
    names = [repr(tokenizer.decode([i]))[1:-1][:10] for i in ids]
    idx = torch.tensor([ids], device=next(model.parameters()).device)
    maps = [layer[0].float().cpu() for layer in attention_maps(model, idx)]  # for each layer (H, T, T)
    shades = ' ░▒▓█'
    if 'utf' not in (sys.stdout.encoding or '').lower():
        shades = ' .:-=+*#%@'
    for layer, heads in enumerate(maps):
        for h, head in enumerate(heads):
            print(f"\nlayer {layer}, head {h}")
            for name, weights in zip(names, head.tolist()):
                shade = [shades[min(int(w * len(shades)), len(shades) - 1)] for w in weights]
                print(f"{name:>11} " + ''.join(2 * s for s in shade))  # two make about a square
            if len(ids) > 1:  # means over the rows that have a choice
                own = 100 * head[1:].diagonal(1).mean()
                before = 100 * head[1:].diagonal(0).mean()
                print(f"{'':>11} {own:.0f} % to itself, {before:.0f} % to the token before")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use('Agg')  # a file, no window
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(maps), len(maps[0]), figsize=(2 * len(maps[0]), 2 * len(maps)), squeeze=False)
    for layer, heads in enumerate(maps):
        for h, head in enumerate(heads):
            axes[layer][h].imshow(head, vmin=0, vmax=1), axes[layer][h].set_axis_off()
            axes[layer][h].set_title(f"layer {layer} head {h}", fontsize=8)
    figure.savefig(os.path.join(out_dir, 'attention.png'), dpi=120)
    print(f"(also in {os.path.join(out_dir, 'attention.png')})")

@torch.inference_mode()
def show_embeddings(model, tokenizer, _, text):
    """Which tokens mean nearly the same to the model: the cosine of the angle between their vectors. And positions."""
    table = getattr(model, 'wte', getattr(model, 'table', None)).weight[:tokenizer.vocab_size].float()
    table = F.normalize(table, dim=-1)
    for i in dict.fromkeys(tokenizer.encode(text) or usage("show=embeddings: expected a prompt of tokens to look up")):
        best = (table @ table[i]).topk(min(9, len(table)))
        others = zip(best.values.tolist(), best.indices.tolist())
        others = [f"{tokenizer.decode([j])!r} {x:.2f}" for x, j in others if j != i]
        print(f"{tokenizer.decode([i])!r:<12} is near  {'  '.join(others[:8])}")
    if not isinstance(model, GPT):
        return
    positions = torch.arange(model.config.block_size, device=table.device)
    if model.config.position == 'rotary':  # the part of a match that is left when a key is d tokens back
        near = rotary(positions, model.config)[0].mean((1, 2))
    else:
        vectors = sinusoids(positions, model.config.n_embd) if model.wpe is None else model.wpe(positions).float()
        vectors = F.normalize(vectors, dim=-1)
        near = torch.stack([(vectors @ vectors.T).diagonal(d).mean() for d in range(len(vectors))])
    print("similarity of positions so many tokens apart: "
          + ', '.join(f"{2 ** k}: {near[2 ** k]:.2f}" for k in range(20) if 2 ** k < len(near)))

# ------------------------------------------------------------------------------------------------------------
# 4. Serve: the OpenAI API (https://platform.openai.com/docs/api-reference) and a page, for one user
# or a classroom. Each connection has a thread of its own. The threads take turns at the model: a
# lock is held for one step of generate(), and never while writing to a socket.

MAX_CONNECTIONS = 64  # more get a 503
MAX_BODY_BYTES = 2**20
TIMEOUT = 20  # seconds, for one read from a socket or one write to it
RANGES = {  # what a request may set: its type, the least and the most
    'max_tokens': (int, 1, 4096),
    'temperature': (float, 0, 100),
    'top_k': (int, 0, 10**6),
    'top_p': (float, 0, 1),
    'min_p': (float, 0, 1),
    'seed': (int, -2**63, 2**63 - 1),
    'n': (int, 1, 1),
    'best_of': (int, 1, 1),
    'stream': (bool, False, True),
}

def parse_request(body, chat, tokenizer, block_size):
    """
    A request's JSON -> what to generate, and how to answer. Raises ValueError for what makes no
    sense, and for what would be ignored.
    """
    if not isinstance(body, dict):
        raise ValueError("the body: expected a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    # 1. the names that this API knows. The newer name for max_tokens is max_completion_tokens
    ranges = {**RANGES, 'logprobs': (int, 0, 20)}
    known = {'model', 'prompt', 'stop', 'stream_options', 'user'}
    if chat:
        ranges.update(logprobs=(bool, False, True), top_logprobs=(int, 0, 20))
        known = {'model', 'messages', 'stop', 'stream_options', 'user'}
        if 'max_tokens' not in body and 'max_completion_tokens' in body:
            body['max_tokens'] = body.pop('max_completion_tokens')
    for name, value in body.items():
        if value and name not in known and name not in ranges:
            raise ValueError(f"{name}: not offered here")
    # 2. numbers and flags
    how = {'max_tokens': min(max_new_tokens, 4096), 'temperature': temperature, 'top_k': top_k,
           'top_p': top_p, 'min_p': min_p, 'seed': secrets.randbelow(2**31), 'stream': False}
    for name in ranges.keys() & body.keys():
        kind, least, most = ranges[name]
        value = how[name] = body[name]
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or not least <= value <= most:  # note: nan is in no range
            raise ValueError(f"{name}: expected {kind.__name__} from {least} to {most}")
    sampling = {name: how[name] for name in ('temperature', 'top_k', 'min_p')}
    sampling['top_p'] = max(how['top_p'], 1e-6)  # 0 is allowed here, and means the best token
    check_sampling(**sampling)
    if chat and 'top_logprobs' in how and not how.get('logprobs'):
        raise ValueError("top_logprobs: expected logprobs=true beside it")
    top = how.get('logprobs')  # so many likely tokens to name; None: no probabilities
    if chat:
        top = how.get('top_logprobs', 0) if top else None
    # 3. texts
    if chat and not body.get('messages'):
        raise ValueError("messages: expected at least one")
    if chat:
        try:
            ids = tokenizer.chat(body['messages'], answer=True)[0]
        except (KeyError, TypeError, AttributeError):
            raise ValueError('messages: expected [{"role": "user", "content": "…"}, …]') from None
    else:
        ids = body.get('prompt', '')
        if isinstance(ids, str):
            ids = tokenizer.start + tokenizer.encode(ids) or [tokenizer.eot]
        if not isinstance(ids, list) or not ids:
            raise ValueError("prompt: expected a text, or a list of token ids")
        if not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
            raise ValueError(f"prompt: expected ids from 0 to {tokenizer.vocab_size - 1}")
    if len(ids) > block_size:
        raise ValueError(f"the prompt has {len(ids)} tokens, and the model's context {block_size}")
    ends = body.get('stop', stop or [])
    if isinstance(ends, str):
        ends = [ends]
    if not isinstance(ends, list) or len(ends) > 4 or not all(
            isinstance(end, str) and 0 < len(end) <= 200 for end in ends):
        raise ValueError("stop: expected up to 4 strings of 1 to 200 characters")
    usage = 'stream_options' in body
    if usage and (body['stream_options'] != {'include_usage': True} or not how['stream']):
        raise ValueError('stream_options: expected {"include_usage": true}, and stream=true')
    sampling.update(max_new_tokens=how['max_tokens'], seed=how['seed'] % 2**63, stop=ends)
    return SimpleNamespace(chat=chat, ids=ids, sampling=sampling, top=top, stream=how['stream'],
                           model=body.get('model'), usage=usage)

def describe_token(tokenizer, token, logits, top):
    """A token with its log-probability, and the likeliest ones, as the chat API writes them."""
    log_probs = logits.log_softmax(-1)
    tokens = []
    for i in [token, *log_probs.topk(min(top, len(log_probs))).indices.tolist()]:
        log_prob = max(log_probs[i].item(), -9999.0)  # JSON has no -inf
        tokens.append({'token': tokenizer.decode([i]), 'logprob': log_prob,
                       'bytes': list(tokenizer.token_bytes(i))})
    return {**tokens[0], 'top_logprobs': tokens[1:]}

def make_choice(request, content, tokens, reason, role):
    """An element of "choices": the two APIs write the same thing differently."""
    choice = {'index': 0, 'logprobs': None, 'finish_reason': reason}
    if request.chat:
        choice['delta' if request.stream else 'message'] = {**role, 'content': content}
        if request.top is not None:
            choice['logprobs'] = {'content': tokens}
        return choice
    choice['text'] = content
    if request.top is not None:
        logprobs = choice['logprobs'] = {'tokens': [], 'token_logprobs': [], 'top_logprobs': []}
        for t in tokens:
            logprobs['tokens'].append(t['token'])
            logprobs['token_logprobs'].append(t['logprob'])
            logprobs['top_logprobs'].append({o['token']: o['logprob'] for o in t['top_logprobs']})
    return choice

class Handler(BaseHTTPRequestHandler):
    """One connection. In HTTP/1.0, the class's default, its end is the end of the answer."""
    timeout = TIMEOUT

    def handle(self):
        with contextlib.suppress(OSError):  # the client has gone, or was too slow
            super().handle()

    def log_message(self, *_):
        """Nothing is logged: prompts belong to their users."""

    def send(self, status, content, content_type='application/json'):
        if not isinstance(content, str):
            content = json.dumps(content)
        content = content.encode()
        self.send_response(status)
        self.send_header('Content-Type', content_type)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, status, message=None, explain=None):
        """In OpenAI's form. The standard library calls it, too, for what it cannot parse."""
        status = {501: 405, 505: 400}.get(status, status)  # unknown methods are the client's fault
        self.request_version = 'HTTP/1.0'  # even where the request was no HTTP at all
        error = {'message': message or 'bad request', 'type': 'invalid_request_error'}
        self.send(status, {'error': {**error, 'param': None, 'code': None}})

    def is_own(self):
        """
        Answers with 403 what another site's page sends: Origin names it. Also what a browser sends
        to a name that another site has made point to this machine (DNS rebinding): Host names it.
        """
        host = self.headers.get('Host', '')
        origin = self.headers.get('Origin', f'http://{host}')
        own = host.partition(':')[0] in ('127.0.0.1', 'localhost') and origin == f'http://{host}'
        if not own:
            self.send_error(403, f"expected Host: 127.0.0.1:{serve}, and no Origin but this")
        return own

    def do_GET(self):
        name = self.server.name
        path = self.path.partition('?')[0]
        card = {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'you'}
        answers = {'/health': {'status': 'ok'}, f'/v1/models/{name}': card,
                   '/v1/models': {'object': 'list', 'data': [card]}}
        if not self.is_own():
            return
        if path == '/':
            self.send(200, PAGE, 'text/html; charset=utf-8')
        elif path in answers:
            self.send(200, answers[path])
        else:
            self.send_error(404, "there are /, /health, /v1/models, and two addresses to POST to")

    def do_POST(self):
        length = self.headers.get('Content-Length', '')
        if not self.is_own():
            return
        if not (length.isascii() and length.isdigit()):
            return self.send_error(411, "Content-Length: expected a number of bytes")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            return self.send_error(413, f"the body: expected at most {MAX_BODY_BYTES} bytes")
        data = self.rfile.read(int(length))
        if self.path not in ('/v1/completions', '/v1/chat/completions'):
            return self.send_error(404, "there are /v1/completions and /v1/chat/completions")
        if self.headers.get_content_type() != 'application/json':  # no other site's page can say so
            return self.send_error(415, "expected the header  Content-Type: application/json")
        try:
            body = json.loads(data.decode('utf-8'))
            request = parse_request(body, 'chat' in self.path, self.server.tokenizer,
                                    self.server.model.config.block_size)
        except (ValueError, RecursionError) as e:  # the latter: brackets in brackets in brackets …
            return self.send_error(400, str(e))
        if request.model not in (None, self.server.name):
            return self.send_error(404, f"model: expected {self.server.name}")
        self.answer(request)

    def send_event(self, data):
        """Server-sent events: a line "data: …" and an empty one for each."""
        self.wfile.write(f'data: {data}\n\n'.encode())

    def answer(self, request):
        """Generate, and send: each piece at once, or all together at the end."""
        tokenizer = self.server.tokenizer
        kind = 'text_completion'
        if request.chat:
            kind = 'chat.completion.chunk' if request.stream else 'chat.completion'
        base = {'id': 'cmpl-' + secrets.token_hex(12), 'object': kind, 'created': int(time.time()),
                'model': self.server.name}
        if request.stream:
            self.send_response(200)
            self.send_header('Content-Type', 'text/event-stream')
            self.end_headers()
        specials = set(tokenizer.special.values())
        steps = stream_text(self.server.model, tokenizer, [request.ids], **request.sampling)
        content = ''
        tokens = []  # those of the content, described
        count = 0
        role = {'role': 'assistant'}
        reason = None
        while reason is None:
            with self.server.lock:
                _, piece, token, logits, reason = next(steps)
            count += 1
            content += piece
            if request.top is not None and token not in specials:
                tokens.append(describe_token(tokenizer, token, logits, request.top))
            if request.stream and (piece or reason):
                choice = make_choice(request, content, tokens, reason, role)
                self.send_event(json.dumps({**base, 'choices': [choice]}))
                content = ''
                tokens = []
                role = {}  # the first event alone names it
        n = len(request.ids)
        usage = {'prompt_tokens': n, 'completion_tokens': count, 'total_tokens': n + count}
        if not request.stream:
            choice = make_choice(request, content, tokens, reason, role)
            return self.send(200, {**base, 'choices': [choice], 'usage': usage})
        if request.usage:
            self.send_event(json.dumps({**base, 'choices': [], 'usage': usage}))
        self.send_event('[DONE]')

class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for answers that were begun
    request_queue_size = 128

    def process_request(self, request, client_address):
        """The standard library calls it for each connection; request is the socket."""
        if threading.active_count() <= MAX_CONNECTIONS:  # this thread, and one for each connection
            return super().process_request(request, client_address)
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.recv(MAX_BODY_BYTES)  # note: what is left unread would cost the answer
            request.sendall(b'HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n')
        self.shutdown_request(request)

def run_server(model, tokenizer):
    try:
        server = Server(('127.0.0.1', serve), Handler)  # this machine only: there is no password
    except OSError as e:
        sys.exit(f"serve={serve}: {e.strerror}: try serve={serve + 1}")
    server.model = model
    server.tokenizer = tokenizer
    server.name = os.path.basename(os.path.abspath(out_dir))
    server.lock = threading.Lock()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill asks for the same as Ctrl-C
    address = f'http://127.0.0.1:{serve}/'
    print(f"a page at {address}, the API at {address}v1; Ctrl-C ends", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nfinishing what was begun; Ctrl-C again to stop at once", flush=True)
    try:
        server.server_close()
    except KeyboardInterrupt:
        os._exit(1)

PAGE = '''<!doctype html>
<html lang="en"><meta charset="utf-8"><title>ninefiles</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { max-width: 46rem; margin: auto; padding: 1rem 1rem 11rem }
  textarea, input, button { font: inherit; box-sizing: border-box }
  textarea { width: 100% }
  input[type=number] { width: 4.5rem }
  button { padding: .4rem 1.2rem; min-height: 2.75rem }
  form div { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .5rem 0; align-items: center }
  #out, #more { font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: .5rem 1rem }
  #out { min-height: 6rem; border: 1px solid #8888 }
  #out b { font-weight: normal; opacity: .6 }
  #out .on { outline: 2px solid }
  #more { position: fixed; inset: auto 0 0; height: 10rem; background: Canvas; border-top: 1px solid #8888 }
  #more i { display: inline-block; height: .7em; background: #4a4; margin-right: .5em }
</style>
<form id="form">
  <label for="prompt">Prompt</label>
  <textarea id="prompt" rows="4" autofocus></textarea>
  <div>
    <label>temperature <input type="number" id="temperature" value="0.8" min="0" max="5" step="0.1"></label>
    <label>top-k <input type="number" id="top_k" value="0" min="0"></label>
    <label>top-p <input type="number" id="top_p" value="1" min="0" max="1" step="0.05"></label>
    <label>tokens <input type="number" id="max_tokens" value="200" min="1" max="4096"></label>
    <label><input type="checkbox" id="chat"> as a chat</label>
  </div>
  <div><button id="go">Write (Ctrl-Enter)</button> <button type="button" id="stop" disabled>Stop (Esc)</button>
    <output id="status"></output></div>
</form>
<div id="out" tabindex="0" role="region" aria-label="what the model wrote; arrow keys walk through the tokens"></div>
<aside id="more" aria-live="polite">Green was likely, red a surprise.
Hover, tap, or walk with the arrow keys to see what else might have stood there.</aside>
<script>
const $ = id => document.getElementById(id)
let stopper = null, chosen = null

function add(choice) {  // a piece of text, with the tokens it is made of -> how many they are
  const l = choice.logprobs, span = document.createElement('span')
  span.textContent = choice.delta ? choice.delta.content : choice.text
  const pair = o => [o.token, o.logprob]  // l says the same in either API's words
  span.tokens = choice.delta ? l.content.map(t => [pair(t), ...t.top_logprobs.map(pair)])
    : l.tokens.map((t, i) => [[t, l.token_logprobs[i]], ...Object.entries(l.top_logprobs[i])])
  const p = Math.exp(span.tokens.reduce((sum, t) => sum + t[0][1], 0))
  span.style.background = `hsl(${120 * p} 80% 50% / .35)`
  if (span.textContent) $('out').append(span)
  return span.tokens.length
}

function choose(span) {  // what else might have stood in its place
  if (!span?.tokens) return
  chosen?.classList.remove('on')
  chosen = span
  span.classList.add('on')
  const others = all => all.filter((other, i) => !i || other[0] !== all[0][0]).map((other, i) => [...other, !i])
  $('more').replaceChildren(...span.tokens.flatMap(others).map(([token, logprob, taken]) => {
    const line = document.createElement('div'), bar = document.createElement('i'), p = Math.exp(logprob)
    bar.style.width = 8 * p + 'em'
    line.append(`${(100 * p).toFixed(1).padStart(5)} % `, bar, JSON.stringify(token) + (taken ? '  (taken)' : ''))
    return line
  }))
}

async function go() {
  if (stopper) return
  stopper = new AbortController()
  $('go').disabled = !($('stop').disabled = false)
  const chat = $('chat').checked, text = $('prompt').value, given = document.createElement('b'), start = Date.now()
  const messages = [{role: 'user', content: text}]
  const body = chat ? {messages, logprobs: true, top_logprobs: 5} : {prompt: text, logprobs: 5}
  for (const id of ['temperature', 'top_k', 'top_p', 'max_tokens']) body[id] = +$(id).value
  given.textContent = chat ? text + '\\n' : text
  $('out').replaceChildren(given)
  let n = 0, rest = '', part
  try {
    const answer = await fetch(chat ? 'v1/chat/completions' : 'v1/completions',
      {method: 'POST', headers: {'Content-Type': 'application/json'},
       body: JSON.stringify({...body, stream: true}), signal: stopper.signal})
    if (!answer.ok) throw new Error((await answer.json()).error.message)
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
    while (!(part = await reader.read()).done) {
      const events = (rest + part.value).split('\\n\\n')
      rest = events.pop()
      for (const event of events) if (event !== 'data: [DONE]') n += add(JSON.parse(event.slice(6)).choices[0])
      $('status').textContent = `${n} tokens, ${(1000 * n / (Date.now() - start)).toFixed(0)} a second`
    }
  } catch (e) {
    $('status').textContent = e.name === 'AbortError' ? `stopped after ${n} tokens` : e.message
  }
  stopper = null
  $('stop').disabled = !($('go').disabled = false)
}

$('form').onsubmit = e => { e.preventDefault(); go() }
$('stop').onclick = () => stopper?.abort()
$('out').onmouseover = $('out').onclick = e => choose(e.target)
document.onkeydown = e => {
  if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) go()
  if (e.key === 'Escape') stopper?.abort()
  const step = {ArrowRight: 'nextSibling', ArrowLeft: 'previousSibling'}[e.key], first = $('out').querySelector('span')
  if (step && document.activeElement === $('out')) choose(chosen?.isConnected ? chosen[step] : first)
}
const link = new URLSearchParams(location.search).get('prompt')  // …/?prompt=Once%20upon writes at once
if (link !== null) { $('prompt').value = link; go() }
</script>
'''

# ------------------------------------------------------------------------------------------------------------

def main():
    expect(globals(), 'num_samples max_new_tokens', least=1)
    expect(globals(), 'seed', least=0)
    if not 0 <= serve < 2**16 or chat + (show != 'text') + (serve > 0) > 1:
        usage(f"serve={serve} chat={chat} show={show}: expected one of the three, and a port from 1 to 65535")
    try:
        check_sampling(temperature, top_k, top_p, min_p)
    except ValueError as e:
        usage(str(e))
    if sys.stdin is None and (chat or prompt == '-'):
        usage("standard input is closed: try  python sample.py prompt='Once upon'")
    model, tokenizer, where = load(out_dir)
    stream = partial(stream_text, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                     min_p=min_p, seed=seed, stop=[stop] if stop else [])
    if serve:
        return run_server(model, tokenizer)
    text, texts, start = read_prompt(), [''] * num_samples, time.time()
    if chat:
        sys.stdin.reconfigure(errors='replace')  # a stray byte in what is typed ends nothing
        return talk(model, tokenizer, stream, text)
    if show != 'text':
        look = {'probs': show_probs, 'attention': show_attention, 'embeddings': show_embeddings}[show]
        return look(model, tokenizer, stream, text)
    print(text, end='', flush=True)
    count = 0
    for row, piece, *_ in stream(model, tokenizer, [text] * num_samples):
        count += 1
        texts[row] += piece
        if row == 0:
            print(piece, end='', flush=True)
    print()
    for row, more in enumerate(texts[1:], 1):
        print('-' * 15 + f' sample {row + 1}\n{text}{more}')
    speed = count / (time.time() - start)
    print(f"({speed:,.0f} tokens/s on {where})", file=sys.stderr)

if __name__ == '__main__':
    main()

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

import json, os, queue, secrets, select, signal, socket, sys, threading, time, traceback
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
import torch
from torch.nn import functional as F
from model import GPT, check_sampling, load_model, prepare_decoding, resolve_device, stream_text

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
                for _, piece in stream(model, tokenizer, [ids], seed=seed + len(messages)):
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
    def look(logits, tokens):
        p = logits[0].softmax(-1)
        mine, best = p[tokens[0]].item(), p.topk(min(6, len(p)))
        written.append((tokenizer.decode(tokens), mine))
        others = zip(best.values.tolist(), best.indices.tolist())
        others = [f"{tokenizer.decode([i])!r} {x:.2f}" for x, i in others if i != tokens[0]]
        token = f"{written[-1][0]!r:<14}"
        print(f"{mine:7.3f}  {colour(token, mine)}  {'  '.join(others[:5])}", flush=True)
    print("probability (before temperature and top_k …), token, the likeliest others")
    for _ in stream(model, tokenizer, [text], look=look):
        pass
    print(text + ''.join(colour(token, p) for token, p in written))

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
    maps = [layer[0].float().cpu() for layer in model.attention_maps(idx)]  # for each layer (H, T, T)
    shades = ' ░▒▓█'
    if 'utf' not in (sys.stdout.encoding or '').lower():
        shades = ' .:-=+*#%@'
    for layer, heads in enumerate(maps):
        for h, head in enumerate(heads):
            print(f"\nlayer {layer}, head {h}")
            for name, weights in zip(names, head.tolist()):
                shade = [shades[min(int(w * len(shades)), len(shades) - 1)] for w in weights]
                print(f"{name:>11} " + ''.join(2 * s for s in shade))  # two characters make about a square
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
    learned = getattr(model, 'wpe', None)
    if getattr(model, 'cos', None) is not None:  # rotary: the part of a match that is left when a key is d tokens back
        near = model.cos.float().mean((1, 2))
    elif learned is not None or getattr(model, 'waves', None) is not None:
        places = F.normalize(model.waves if learned is None else learned.weight.float(), dim=-1)
        near = torch.stack([(places @ places.T).diagonal(d).mean() for d in range(len(places))])
    else:
        return
    print("similarity of positions so many tokens apart: "
          + ', '.join(f"{2 ** k}: {near[2 ** k]:.2f}" for k in range(20) if 2 ** k < len(near)))

# ------------------------------------------------------------------------------------------------------------
# 4. Serve: the OpenAI API (https://platform.openai.com/docs/api-reference) and a page, for one user or a classroom.
# A thread for each connection, and one for the model, which does one job after the other with all of the machine

QUEUE = 32            # requests that wait or are being answered; those past it are told to come again
MOST_BYTES = 2**20    # of a request's body
MOST_TOKENS = 4096    # of an answer
PATIENCE = 20         # seconds a client has for its request, and then each time it is to take a piece of the answer
RANGES = {'max_tokens': (1, MOST_TOKENS), 'temperature': (0.0, 100.0), 'top_p': (0.0, 1.0), 'top_k': (0, 10**6),
          'min_p': (0.0, 1.0), 'seed': (-2**63, 2**63), 'n': (1, 1)}

def understand(body, chatting, tokenizer, block_size):
    """A request's JSON -> a job for the model; raises ValueError for what makes no sense."""
    if not isinstance(body, dict):
        raise ValueError("the body: expected a JSON object")
    body = {k: v for k, v in body.items() if v is not None}
    how = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p, 'n': 1,
           'seed': secrets.randbelow(2**31),
           'max_tokens': body.get('max_completion_tokens', min(max_new_tokens, MOST_TOKENS))}
    for name, (low, high) in RANGES.items():
        how[name] = value = body.get(name, how[name])
        kinds = int if isinstance(low, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:  # note: nan fails
            raise ValueError(f"{name}: expected {'an integer' if kinds is int else 'a number'} from {low} to {high}")
    for name in ('suffix', 'echo', 'tools', 'logit_bias', 'frequency_penalty', 'presence_penalty'):
        if body.get(name):
            raise ValueError(f"{name}: not offered here")
    # how many likely tokens to name, None for none: the two APIs ask for it differently
    wanted = body.get('logprobs') if not chatting else body.get('top_logprobs', 0) if body.get('logprobs') else None
    if wanted is not None and (type(wanted) is not int or not 0 <= wanted <= 20):
        raise ValueError("logprobs, top_logprobs: expected an integer from 0 to 20")
    ends = body.get('stop', stop or [])
    ends = [ends] if isinstance(ends, str) else ends
    if not isinstance(ends, list) or len(ends) > 4 or not all(isinstance(s, str) and 0 < len(s) <= 200 for s in ends):
        raise ValueError("stop: expected up to 4 strings of up to 200 characters")
    if chatting:
        messages = body.get('messages')
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and all(
                isinstance(m.get(key), str) for key in ('role', 'content')) for m in messages):
            raise ValueError('messages: expected a list of {"role": …, "content": …}, both of them text')
        ids = tokenizer.chat(messages, answer=True)[0]
    else:
        ids = body.get('prompt', '')
        ids = tokenizer.start + tokenizer.encode(ids) if isinstance(ids, str) else ids
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
            raise ValueError("prompt: expected a text, or a list of token ids")
        ids = ids or [tokenizer.eot]
    if len(ids) > block_size:
        raise ValueError(f"the prompt has {len(ids)} tokens, and the model's context {block_size}")
    sampling = {k: how[k] for k in ('temperature', 'top_k', 'min_p')}
    sampling.update(top_p=max(how['top_p'], 1e-6), seed=how['seed'] % 2**63, max_new_tokens=how['max_tokens'],
                    stop=ends)
    options = body.get('stream_options')
    return SimpleNamespace(ids=ids, sampling=sampling, wanted=wanted, chatting=chatting, tokens=0, finished=set(),
                           pieces=queue.SimpleQueue(), stream=body.get('stream') is True,
                           usage=isinstance(options, dict) and options.get('include_usage') is True)

def work(model, tokenizer, stream, jobs):
    """
    The thread that computes. It never waits for a client: a job's pieces (text, its tokens, finish_reason) go into the
    job's own queue. A client that leaves adds 0 to `finished`, and generate() ends after that token.
    """
    def entry(token, log_p):
        name, spelled = tokenizer.decode([token]), list(tokenizer.token_bytes(token))
        return {'token': name, 'logprob': max(log_p, -9999.0), 'bytes': spelled}
    specials = set(tokenizer.special.values())
    while True:
        job, tokens = jobs.get(), []
        def look(logits, ids):
            job.tokens += 1
            if job.wanted is not None and ids[0] not in specials:
                log_p = logits[0].log_softmax(-1)
                best = [x.tolist() for x in log_p.topk(min(job.wanted, len(log_p)))]
                best = [entry(i, x) for x, i in zip(*best)]
                tokens.append({**entry(ids[0], log_p[ids[0]].item()), 'top_logprobs': best})
        try:
            if not job.finished:
                for _, piece in stream(model, tokenizer, [job.ids], finished=job.finished, look=look, **job.sampling):
                    job.pieces.put((piece, tokens[:], None))
                    tokens.clear()
            job.pieces.put(('', tokens[:], 'stop' if job.finished else 'length'))
        except Exception:  # a bug of ours: show it, and go on with the next job
            traceback.print_exc()
            job.pieces.put(None)

class Handler(BaseHTTPRequestHandler):
    """One connection. In HTTP/1.0, the class's default, it carries one request, and its end is the answer's end."""
    timeout = PATIENCE  # of one read or write …

    def setup(self):
        super().setup()
        self.alarm = threading.Timer(PATIENCE, self.connection.shutdown, [socket.SHUT_RD])  # … and of all the reading
        self.alarm.start()

    def handle(self):
        try:
            super().handle()
        except OSError:
            return  # the client went away, or was too slow
        finally:
            self.alarm.cancel()

    def log_message(self, *_):
        """Nothing is logged: prompts are their users' own."""

    def say(self, status, what, kind='application/json', **headers):
        body = what.encode() if isinstance(what, str) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {'Content-Type': kind, 'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code, message=None, explain=None, **headers):
        """In OpenAI's words. The standard library comes here too, with whatever it cannot parse."""
        code = {501: 405, 505: 400}.get(code, code)  # a method or version that we do not know is the client's mistake
        kind = {429: 'rate_limit_error', 500: 'server_error'}.get(code, 'invalid_request_error')
        self.request_version = 'HTTP/1.0'  # answer as such even where the request was no HTTP at all
        error = {'message': message or 'bad request', 'type': kind, 'param': None, 'code': None}
        self.say(code, {'error': error}, **headers)

    def do_GET(self):
        path, name = self.path.partition('?')[0], self.server.name
        card = {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'you'}
        answers = {'/health': {'status': 'ok'}, '/v1/models': {'object': 'list', 'data': [card]},
                   f'/v1/models/{name}': card}
        if path == '/':
            self.say(200, PAGE, 'text/html; charset=utf-8')
        elif path in answers:
            self.say(200, answers[path])
        else:
            self.send_error(404, "there are /, /health and /v1/models, and two addresses to POST to")

    def do_POST(self):
        length = self.headers.get('Content-Length', '')
        if self.path not in ('/v1/completions', '/v1/chat/completions'):
            return self.send_error(404, "there are /v1/completions and /v1/chat/completions")
        if not (length.isascii() and length.isdigit()):
            return self.send_error(411, "Content-Length: expected a number of bytes")
        if len(length) > 9 or int(length) > MOST_BYTES:
            return self.send_error(413, f"the body: expected at most {MOST_BYTES} bytes")
        data = self.rfile.read(int(length))
        self.alarm.cancel()
        try:
            if len(data) < int(length):
                raise ValueError(f"the body: {len(data)} of {length} bytes came")
            job = understand(json.loads(data.decode('utf-8')), 'chat' in self.path, *self.server.limits)
        except (ValueError, RecursionError) as e:  # the latter: brackets in brackets in brackets …
            return self.send_error(400, str(e))
        if not self.server.places.acquire(blocking=False):
            return self.send_error(429, f"{QUEUE} requests are waiting already", Retry_After=1)
        try:
            self.server.jobs.put(job)
            self.answer(job)
        finally:  # whichever way it ended, this client wants no more
            job.finished.add(0)
            self.server.places.release()

    def answer(self, job):
        base = {'id': 'cmpl-' + secrets.token_hex(12), 'created': int(time.time()), 'model': self.server.name,
                'object': 'text_completion' if not job.chatting else 'chat.completion' + '.chunk' * job.stream}
        def event(what):  # server-sent events: lines of "data: …", an empty one after each
            self.wfile.write(f'data: {what}\n\n'.encode())
        if job.stream:
            self.send_response(200)
            self.send_header('Content-Type', 'text/event-stream')
            self.end_headers()
        text, tokens, reason, role = '', [], None, {'role': 'assistant'}
        while reason is None:
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                return  # the client has hung up
            try:
                part = job.pieces.get(timeout=0.25)
            except queue.Empty:  # not our turn yet, or a slow model: look at the client again
                continue
            if part is None:
                return self.send_error(500, "a bug of ours: the server's terminal shows more")
            piece, new, reason = part
            if job.stream:
                event(json.dumps({**base, 'choices': [choice(job, 'delta', {**role, 'content': piece}, new, reason)]}))
                role = {}
            text, tokens = text + piece, tokens + new
        n, m = len(job.ids), job.tokens
        counts = {'prompt_tokens': n, 'completion_tokens': m, 'total_tokens': n + m}
        if not job.stream:
            message = {**role, 'content': text}
            choices = [choice(job, 'message', message, tokens, reason)]
            return self.say(200, {**base, 'choices': choices, 'usage': counts})
        if job.usage:
            event(json.dumps({**base, 'choices': [], 'usage': counts}))
        event('[DONE]')

def choice(job, key, message, tokens, reason):
    """An element of "choices": the two APIs say the same in different words."""
    logprobs = None if job.wanted is None else {'content': tokens} if job.chatting else {
        'tokens': [t['token'] for t in tokens], 'token_logprobs': [t['logprob'] for t in tokens],
        'top_logprobs': [{o['token']: o['logprob'] for o in t['top_logprobs']} for t in tokens]}
    said = {key: message} if job.chatting else {'text': message['content']}
    return {'index': 0, **said, 'logprobs': logprobs, 'finish_reason': reason}

class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = False, 128  # server_close() waits for answers that were begun

def run_server(model, tokenizer, stream):
    try:
        server = Server(('127.0.0.1', serve), Handler)  # this machine only: there is no password
    except OSError as e:
        sys.exit(f"serve={serve}: {e.strerror}: try serve={serve + 1}")
    server.name, server.limits = os.path.basename(os.path.abspath(out_dir)), (tokenizer, model.config.block_size)
    server.jobs, server.places = queue.SimpleQueue(), threading.Semaphore(QUEUE)
    threading.Thread(target=work, args=(model, tokenizer, stream, server.jobs), daemon=True).start()
    sys.setswitchinterval(5e-4)  # else the thread that computes keeps Python for 5 ms at a time, and the others wait
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill asks for the same as Ctrl-C
    print(f"a page at http://127.0.0.1:{serve}/, the API at http://127.0.0.1:{serve}/v1; Ctrl-C ends", flush=True)
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
      {method: 'POST', body: JSON.stringify({...body, stream: true}), signal: stopper.signal})
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
        check_sampling([[0]], temperature, top_k, top_p, min_p)
    except ValueError as e:
        usage(str(e))
    model, tokenizer, where = load(out_dir)
    stream = partial(stream_text, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                     min_p=min_p, seed=seed, stop=[stop] if stop else [])
    if serve:
        return run_server(model, tokenizer, stream)
    text, texts, start = read_prompt(), [''] * num_samples, time.time()
    if chat:
        sys.stdin.reconfigure(errors='replace')  # a stray byte in what is typed ends nothing
        return talk(model, tokenizer, stream, text)
    if show != 'text':
        look = {'probs': show_probs, 'attention': show_attention, 'embeddings': show_embeddings}[show]
        return look(model, tokenizer, stream, text)
    print(text, end='', flush=True)
    finished, counts = set(), []  # counts: of the tokens in each step
    for row, piece in stream(model, tokenizer, [text] * num_samples, finished=finished,
                             look=lambda *_: counts.append(num_samples - len(finished))):
        texts[row] += piece
        if row == 0:
            print(piece, end='', flush=True)
    print()
    for row, more in enumerate(texts[1:], 1):
        print('-' * 15 + f' sample {row + 1}\n{text}{more}')
    speed = sum(counts) / (time.time() - start)
    print(f"({speed:,.0f} tokens/s on {where})", file=sys.stderr)

if __name__ == '__main__':
    main()

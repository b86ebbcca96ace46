"""Using a model: from the command line, quantised, in a chat, looked into, and served."""
import http.client, json, os, re, shutil, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import pytest
import torch
import model as M
import sample
from conftest import ROOT, refused, spawn
from model import GPTConfig, build_model, generate, load_model, prepare_decoding, stream_text
TINY = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=20, eval_interval=10,
            eval_iters=2, warmup_iters=2, lr_decay_iters=20, log_interval=5, sample_every=0, device='cpu', dtype='float32')

@pytest.fixture(scope='module')
def model(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('model')
    done = spawn('train.py', *[f'{k}={v}' for k, v in {**TINY, 'data_dir': data, 'max_iters': 40, 'lr_decay_iters': 40,
                                                     'learning_rate': 0.01}.items()], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder

@pytest.fixture
def loaded(model):
    return load_model(str(model / 'out'))[:2]

# ---- generate ----

def test_samples_go_on_from_the_prompt(model):
    (model / 'prompt.txt').write_text('the cat', encoding='utf-8')
    one = spawn('sample.py', 'prompt=FILE:prompt.txt', 'max_new_tokens=40', cwd=model)
    three = spawn('sample.py', 'prompt=-', 'max_new_tokens=40', 'num_samples=3', cwd=model, input='the cat')
    assert one.returncode == 0 and one.stdout.startswith('the cat') and len(one.stdout) > 10
    assert three.stdout.startswith('the cat') and three.stdout.count('the cat') >= 3
    assert 'tokens/s' in one.stderr

def test_seed_temperature_and_stop(loaded):
    def out(**how):
        return ''.join(piece for _, piece, *_ in stream_text(*loaded, ['the'], max_new_tokens=60, **how))
    assert out(seed=1) == out(seed=1) != out(seed=2)
    assert out(temperature=0, seed=1) == out(temperature=0, seed=2)
    assert ' ' not in out(stop=[' '])

@pytest.mark.parametrize('setting', ['prompt=-', 'chat=True'])
def test_a_closed_standard_input(model, setting):
    script = f'"$1" "$2" {setting} <&-'
    done = subprocess.run(['sh', '-c', script, 'sh', sys.executable, ROOT / 'sample.py'], cwd=model, capture_output=True,
                          text=True)
    refused(done, 'standard input is closed', status=2)

def test_a_mistake_on_the_command_line(model):
    refused(spawn('sample.py', 'prompt=FILE:nowhere.txt', cwd=model), 'nowhere.txt', 'No such file', status=1)

@pytest.mark.parametrize('settings, words, status', [
    (dict(out_dir='nowhere'), ['no checkpoint', 'python train.py'], None),
    (dict(temperature=-1), ['temperature=-1'], 2), (dict(temperature=1e-38), ['temperature=1e-38'], 2), (dict(num_samples=0), ['num_samples=0'], 2),
    (dict(seed=-1), ['seed=-1'], 2),
    (dict(chat=True, serve=8000), ['one of the three'], 2), (dict(serve=70000), ['serve=70000'], 2),
    (dict(serve=8000, top_p=2.0), ['top_p=2'], 2), (dict(show='embeddings'), ['a prompt'], 2)])
def test_mistakes(model, monkeypatch, capsys, settings, words, status):
    monkeypatch.chdir(model)
    for name, value in settings.items():
        monkeypatch.setattr(sample, name, value)
    with pytest.raises(SystemExit) as end:
        sample.main()
    said = capsys.readouterr().err + str(end.value.code)
    assert all(word in said for word in words) and (status is None or end.value.code == status)

# ---- quicker ----

def small(seed=0, **more):
    torch.manual_seed(seed)
    model = build_model(GPTConfig(**{**dict(vocab_size=101, block_size=32, n_layer=2, n_head=2, n_embd=64), **more}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()

@pytest.mark.parametrize('threads', [1, 2])
def test_another_order_in_memory_changes_no_score(monkeypatch, threads):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    idx = torch.randint(101, (2, 20))
    before = small()(idx)
    model = prepare_decoding(small())
    if threads == 1:
        assert model.blocks[0].mlp.up.weight.stride() == (1, 192)  # by columns: of 192 = 8/3 * 64 numbers, rounded to 64s
    assert isinstance(model.blocks[0].mlp.up, M.PackedLinear) == (threads > 1 and torch.backends.mkldnn.is_available())
    assert torch.allclose(before, model(idx), atol=1e-4)
    def written(model):
        return [tokens for tokens, _ in generate(model, [[1, 2]], 50, temperature=0)]
    assert written(model) == written(small())

def test_bfloat16_in_another_order_is_the_same_bfloat16():
    idx = torch.randint(101, (2, 20))
    plain, packed = small(bias=True).bfloat16(), prepare_decoding(small(bias=True).bfloat16())
    with torch.no_grad():
        a, b = plain(idx).float(), packed(idx).float()
        assert a.shape == b.shape and torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
    assert len(list(generate(packed, [[1, 2]], 40))) == 40

@pytest.mark.parametrize('inputs, outputs, rows', [(64, 50, 1), (64, 50, 3), (64, 50, 40), (40, 7, 3)])
def test_int8_is_off_by_half_a_step_at_most(inputs, outputs, rows):
    """Packed or, for long prompts and for widths that the packed product cannot do, unpacked."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(inputs, outputs), torch.randn(rows, inputs).bfloat16()
    packed = M.Int8Linear(linear, None).bfloat16()
    w, step = packed.weight.float() * packed.scale.float()[:, None], packed.scale.float()[:, None]
    largest = linear.weight.abs().amax(1, keepdim=True)
    assert ((w - linear.weight).abs() <= torch.where(linear.weight.abs() == largest, step, step * 0.501)).all()
    assert torch.allclose(step, largest / 127, rtol=0.01)
    expected = x.float() @ w.T + linear.bias.bfloat16().float()
    assert torch.allclose(packed(x).float(), expected, rtol=0.02, atol=0.02)

def test_int8_costs_less_than_a_percent_of_perplexity(model, data, monkeypatch, loaded):
    monkeypatch.setattr(sample, 'quantize', 'int8')
    packed, tokenizer, _ = sample.load(str(model / 'out'))
    ids = M.load_dataset(str(data / 'tiny'))[1]['val'][:1025].astype('int64')
    ids = torch.from_numpy(ids)[:1024].view(-1, loaded[0].config.block_size)
    with torch.no_grad():
        before = (loaded[0](ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()).exp().item()
        after = (packed(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()).exp().item()
    assert before < 20 and after == pytest.approx(before, rel=0.01)
    assert len(list(generate(packed, [tokenizer.encode('the')], 5))) == 5

# ---- chat ----

def talk(monkeypatch, capsys, loaded, lines, stream=None, **settings):
    lines = iter(lines)
    def say(_):
        line = next(lines, EOFError)
        if not isinstance(line, str):
            raise line
        return line
    monkeypatch.setattr('builtins.input', say)
    for name, value in {'max_new_tokens': 10, **settings}.items():
        monkeypatch.setattr(sample, name, value)
    sample.talk(*loaded, stream or partial(stream_text, max_new_tokens=10), '')
    return capsys.readouterr().out

def test_ctrl_c_stops_the_answer_not_the_program(monkeypatch, capsys, loaded):
    prompts = []
    def stream(model, tokenizer, ids, **how):
        prompts.append(tokenizer.decode(ids[0]))
        yield 0, 'hm'
        raise KeyboardInterrupt
    out = talk(monkeypatch, capsys, loaded, ['a', 'b', KeyboardInterrupt], stream)
    assert 'hm (stopped)' in out
    assert 'hm<|end|>' in prompts[1]  # what was said stays in the conversation

def test_reset_begins_a_new_conversation(monkeypatch, capsys, loaded):
    prompts = []
    def stream(model, tokenizer, ids, **how):
        prompts.append(ids[0])
        yield 0, 'yes'
    out = talk(monkeypatch, capsys, loaded, ['hi', '/reset', 'hi', '/save'], stream)
    assert prompts[0] == prompts[1] and '(a new conversation)' in out and 'only /reset' in out

def test_what_no_longer_fits_is_forgotten_aloud(monkeypatch, capsys, loaded):
    prompts = []
    def stream(model, tokenizer, ids, **how):
        prompts.append(tokenizer.decode(ids[0]))
        yield 0, 'yes'
    room = loaded[0].config.block_size
    out = talk(monkeypatch, capsys, loaded, ['a' * (room // 2), 'b' * (room // 2), 'c' * (2 * room)], stream)
    assert 'the oldest 2 messages are forgotten' in out and 'a' not in re.sub(r'<\|\w+\|>', '',
                                                                              prompts[1]) and f'only the last {room} of' in out

# ---- look inside ----

def test_show_probs(capsys, loaded):
    sample.show_probs(*loaded, partial(stream_text, max_new_tokens=8, temperature=0), 'the')
    lines = capsys.readouterr().out.splitlines()
    first = loaded[0](torch.tensor([loaded[1].encode('the')]))[0, -1].softmax(-1)
    assert float(lines[1].split()[0]) == pytest.approx(first.max().item(), abs=1e-3)
    best = repr(loaded[1].decode([first.argsort()[-2].item()]))
    assert f"{best} {first.sort().values[-2]:.2f}" in lines[1]

def test_show_attention(capsys, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)  # as where it is not installed
    sample.show_attention(*loaded, None, 'the cat')
    out = capsys.readouterr().out
    heads = loaded[0].config.n_layer * loaded[0].config.n_head
    assert out.count('layer') == out.count('% to itself') == heads
    assert max(map(len, out.splitlines())) < 80

def test_show_embeddings(capsys, loaded):
    with torch.no_grad():
        a, b = loaded[1].encode('ab')
        loaded[0].wte.weight[b] = 3 * loaded[0].wte.weight[a]  # in the same direction: as near as can be
    sample.show_embeddings(*loaded, None, 'a')
    assert "'a'          is near  'b' 1.00" in capsys.readouterr().out

# ---- serve ----

class Served:
    def __init__(self, folder):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, str(ROOT / 'sample.py'), f'serve={self.port}',
                                         'max_new_tokens=20', 'temperature=0'], cwd=folder,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8',
                                        env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert 'http://127.0.0.1' in self.process.stdout.readline()

    def raw(self, data):
        """Bytes in -> status, bytes out."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=60) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            answer = b''.join(iter(lambda: s.recv(65536), b''))
        return int(answer.split(b' ')[1]) if answer.startswith(b'HTTP/') else None, answer

    def ask(self, path, body=None, method=None, timeout=60):
        """-> status, headers, text."""
        c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout)
        c.request(method or ('POST' if body is not None else 'GET'), path,
                  body=json.dumps(body) if body is not None else None, headers={'Content-Type': 'application/json'})
        answer = c.getresponse()
        text = answer.read().decode('utf-8')
        c.close()
        return answer.status, answer.headers, text

    def complete(self, path='/v1/completions', **body):
        status, _, text = self.ask(path, body)
        assert status == 200, text
        if body.get('stream'):
            *events, end = [e.removeprefix('data: ') for e in text.split('\n\n')[:-1]]
            assert end == '[DONE]'
            return [json.loads(e) for e in events]
        return json.loads(text)

@pytest.fixture(scope='module')
def served(model):
    server = Served(model)
    yield server
    server.process.send_signal(signal.SIGINT)
    out, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 0 and 'finishing' in out and err == '', err  # whatever the tests below did

def test_completions(served, loaded):
    whole = served.complete(prompt='the cat', max_tokens=12, logprobs=2)
    assert whole['choices'][0]['text'] == ''.join(piece for _, piece, *_ in stream_text(*loaded, ['the cat'],
                                                                                    max_new_tokens=12, temperature=0))
    n = len(loaded[1].encode('the cat'))
    assert whole['usage'] == {'prompt_tokens': n, 'completion_tokens': 12,
                              'total_tokens': n + 12} and whole['choices'][0]['finish_reason'] == 'length'
    logprobs, scores = whole['choices'][0]['logprobs'], loaded[0](torch.tensor([loaded[1].encode('the cat')]))[0, -1].log_softmax(-1)
    assert logprobs['token_logprobs'][0] == pytest.approx(scores.max().item(),
                                                          abs=1e-3) == max(logprobs['top_logprobs'][0].values())
    parts = served.complete(prompt='the cat', max_tokens=12, stream=True, stream_options={'include_usage': True})
    assert ''.join(p['choices'][0]['text']
                   for p in parts[:-1]) == whole['choices'][0]['text'] and parts[-1]['usage'] == whole['usage']
    assert served.complete(prompt=loaded[1].encode('the cat'),
                           max_tokens=12)['choices'][0]['text'] == whole['choices'][0]['text']
    end = whole['choices'][0]['text'][4:6]
    stopped = served.complete(prompt='the cat', max_tokens=12, stop=end)['choices'][0]
    assert stopped['text'] == whole['choices'][0]['text'].partition(end)[0] and stopped['finish_reason'] == 'stop'

def test_chat_completions(served, loaded):
    messages = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'}]
    whole = served.complete('/v1/chat/completions', messages=messages, max_tokens=9, logprobs=True, top_logprobs=1)
    ids = loaded[1].chat(messages, answer=True)[0]
    expected = ''.join(piece for _, piece, *_ in stream_text(*loaded, [ids], max_new_tokens=9, temperature=0))
    assert whole['choices'][0]['message'] == {'role': 'assistant',
                                              'content': expected} and whole['usage']['prompt_tokens'] == len(ids)
    assert ''.join(t['token'] for t in whole['choices'][0]['logprobs']['content']) == expected
    parts = served.complete('/v1/chat/completions', messages=messages, max_tokens=9, stream=True)
    assert parts[0]['choices'][0]['delta']['role'] == 'assistant' and ''.join(p['choices'][0]['delta']['content']
                                                                              for p in parts) == expected

def test_seeds(served):
    def out(seed):
        return served.complete(prompt='the', temperature=1, seed=seed)['choices'][0]['text']
    assert out(5) == out(5) != out(6)

def test_other_pages(served):
    assert json.loads(served.ask('/health')[2]) == {'status': 'ok'}
    assert json.loads(served.ask('/v1/models')[2])['data'][0]['id'] == 'out'
    status, headers, page = served.ask('/')
    assert status == 200 and headers['Content-Type'].startswith('text/html') and page == sample.PAGE and not re.search(r'(src|href)="(?!data:)', page)

def test_many_at_once_get_what_each_would_get_alone(served):
    prompts = [f'{word} {i}' for i in range(16) for word in ('the', 'a cat', 'dog')]
    def out(prompt):
        return served.complete(prompt=prompt, max_tokens=8, temperature=1,
                               seed=len(prompt) + ord(prompt[-1]))['choices'][0]['text']
    alone = [out(p) for p in prompts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(out, prompts)) == alone
    assert len(set(alone)) > 20

HOSTILE = [(body, 400) for body in (
    '', '{', 'null', '[]', '[' * 100_000, '{"a":' * 5000, '{"prompt":{}}', '{"prompt":[true]}', '{"prompt":[-1]}',
    '{"prompt":[1e3]}', '{"prompt":NaN}', '{"temperature":NaN}',
    '{"temperature":1e999}', '{"temperature":"1"}', '{"top_p":-0.1}', '{"max_tokens":0}', '{"max_tokens":1.5}',
    '{"max_tokens":1e9}', '{"max_tokens":true}', '{"max_tokens":' + '1' * 5000 + '}',
    '{"seed":1' + '0' * 30 + '}', '{"n":2}', '{"stop":[""]}', '{"stop":7}', '{"stop":["a","b","c","d","e"]}',
    '{"logprobs":"all"}', '{"logprobs":21}', '{"echo":true}', '{"prompt":"' + 'x ' * 20_000 + '"}',
    b'{"prompt":"\xff"}')]

def test_unknown_roles_are_refused(served):
    status, _, text = served.ask('/v1/chat/completions', {'messages': [{'role': 'judge', 'content': 'x'}]})
    assert status == 400 and 'judge' in json.loads(text)['error']['message'] and json.loads(text)['error']['type'] == 'invalid_request_error'

def post(body, *headers, length=None):
    """A request as bytes, with the headers that the page sends, or others."""
    headers = headers or ('Host: 127.0.0.1', 'Content-Type: application/json')
    if length is None:
        length = len(body)
    head = ['POST /v1/completions HTTP/1.1', *headers, f'Content-Length: {length}', '', '']
    return '\r\n'.join(head).encode() + body

@pytest.mark.parametrize('body, status', HOSTILE)
def test_hostile_bodies(served, body, status):
    body = body if isinstance(body, bytes) else body.encode()
    got, answer = served.raw(post(body))
    assert got == status and json.loads(answer.partition(b'\r\n\r\n')[2])['error']['message']

@pytest.mark.parametrize('sent, status', [
    (post(b'{"prompt":', length=50), 400),
    (b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n', 411),
    (post(b'', length=-1), 411),
    (post(b'', length=99999999999), 413),
    (b'GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n', 404), (b'GET /%2e%2e/model.py HTTP/1.1\r\nHost: localhost\r\n\r\n', 404),
    (b'DELETE / HTTP/1.1\r\n\r\n', 405), (b'GET / HTTP/3.0\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\n' + b'a: b\r\n' * 200 + b'\r\n', 431), (b'GET /' + b'a' * 70_000 + b' HTTP/1.1\r\n\r\n', 414),
    (b'\x16\x03\x01\x00\xa5 \x00 \xff\r\n\r\n', 400)])
def test_hostile_requests(served, sent, status):
    assert served.raw(sent)[0] == status

@pytest.mark.parametrize('headers, status', [
    (['Host: localhost:8000'], 200), (['Host: localhost:8000', 'Origin: http://localhost:8000'], 200),
    ([], 403), (['Host: evil.example:8000'], 403), (['Host: 127.0.0.1.evil.example'], 403),
    (['Host: localhost', 'Origin: http://evil.example'], 403), (['Host: localhost', 'Origin: null'], 403),
    (['Host: localhost', 'Origin: https://localhost'], 403)])
def test_other_sites_pages_are_refused(served, headers, status):
    """They name themselves in Origin, or, where their own name points to this machine, in Host."""
    body = b'{"max_tokens":1}'
    assert served.raw(post(body, 'Content-Type: application/json; charset=utf-8', *headers))[0] == status
    assert served.raw('\r\n'.join(['GET / HTTP/1.1', *headers, '', '']).encode())[0] == status

@pytest.mark.parametrize('kind', ['', 'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data'])
def test_the_body_must_call_itself_json(served, kind):
    """The others are what a browser sends for any page without asking."""
    headers = ['Host: localhost'] + [f'Content-Type: {kind}'] * bool(kind)
    assert served.raw(post(b'{"max_tokens":1}', *headers))[0] == 415

@pytest.mark.parametrize('path, more, status, word', [
    ('completions', dict(best_of=2), 400, 'best_of'), ('completions', dict(stream='yes'), 400, 'stream'),
    ('completions', dict(temperature=1e-38), 400, 'temperature'), ('completions', dict(top_logprobs=2), 400, 'top_logprobs'),
    ('completions', dict(stream_options=dict(include_usage=True)), 400, 'stream_options'),
    ('completions', dict(frequency_penalty=0.5), 400, 'frequency_penalty'), ('completions', dict(model='gpt-4'), 404, 'model'),
    ('completions', dict(messages=[dict(role='user', content='x')]), 400, 'messages'),
    ('chat/completions', dict(top_logprobs=2), 400, 'top_logprobs'), ('chat/completions', dict(logprobs=2), 400, 'logprobs'),
    ('chat/completions', dict(response_format=dict(type='json_object')), 400, 'response_format'),
    ('chat/completions', dict(messages=[]), 400, 'messages'), ('chat/completions', dict(messages=['x']), 400, 'messages'),
    ('chat/completions', dict(messages=[dict(role='user', content=None)]), 400, 'messages'),
    ('chat/completions', dict(max_tokens=1, max_completion_tokens=1), 400, 'max_completion_tokens'),
    ('completions', dict(best_of=1, n=1, echo=False, suffix=None, logit_bias={}, frequency_penalty=0, user='me', model='out',
                         temperature=1e-3), 200, ''),
    ('chat/completions', dict(max_completion_tokens=1), 200, '')])
def test_nothing_is_ignored_in_silence(served, path, more, status, word):
    body = dict(max_tokens=1) if path == 'completions' else dict(messages=[dict(role='user', content='x')])
    got, _, text = served.ask(f'/v1/{path}', {**body, **more})
    assert got == status and word in text, text
    if status != 200:
        assert word in json.loads(text)['error']['message']

def test_max_completion_tokens_is_max_tokens(served):
    whole = served.complete('/v1/chat/completions', messages=[dict(role='user', content='x')], max_completion_tokens=3)
    assert whole['usage']['completion_tokens'] == 3 and whole['choices'][0]['finish_reason'] == 'length'

def test_too_many_connections(served):
    """The 65th is told to come again; those that go make room."""
    body = json.dumps({'max_tokens': 1}).encode()
    waiting = [socket.create_connection(('127.0.0.1', served.port)) for _ in range(sample.MAX_CONNECTIONS)]
    deadline = time.time() + 60
    while served.raw(post(body))[0] != 503:
        assert time.time() < deadline
    for s in waiting:
        s.close()
    while served.raw(post(body))[0] != 200:
        assert time.time() < deadline

def test_a_slow_reader_holds_up_nobody(served):
    """It asks for a long answer, and reads nothing of it."""
    slow = socket.create_connection(('127.0.0.1', served.port))
    slow.sendall(post(json.dumps({'prompt': 'x', 'max_tokens': 4096, 'stream': True, 'logprobs': 20}).encode()))
    assert served.complete(prompt='the cat', max_tokens=3)['usage']['completion_tokens'] == 3
    slow.close()

def test_two_answers_grow_at_the_same_time(served):
    body = json.dumps({'prompt': 'x', 'max_tokens': 300, 'stream': True}).encode()
    both = [socket.create_connection(('127.0.0.1', served.port), timeout=60) for _ in range(2)]
    for s in both:
        s.sendall(post(body))
    parts = [s.recv(1000) for s in both]  # the first has not ended when the second begins
    assert all(b'200 OK' in part and b'[DONE]' not in part for part in parts)
    for s in both:
        assert b''.join(iter(lambda: s.recv(65536), b'')).endswith(b'data: [DONE]\n\n')
        s.close()

CHROMIUM = os.environ.get('CHROME') or next(filter(None, map(shutil.which,
                                                             ('chromium', 'chromium-browser', 'google-chrome',
                                                              'chrome'))), None)

@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (or name one in the environment variable CHROME)")
def test_the_page_in_a_browser(served):
    """A link with a prompt begins to write at once, so the page that a browser ends with can be read from outside."""
    done = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
                           '--virtual-time-budget=20000', '--dump-dom',
                           f'http://127.0.0.1:{served.port}/?prompt=the%20cat'], capture_output=True, text=True,
                           encoding='utf-8', timeout=60)
    shown = re.search(r'<div id="out".*?</div>', done.stdout, re.S)[0]
    spans = re.findall(r'<span style="background: [^"]+">([^<]+)</span>', shown)
    assert '<b>the cat</b>' in shown and len(spans) >= 3

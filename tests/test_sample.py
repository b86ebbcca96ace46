"""Using a model: text as it grows, in a chat, labelled, looked into, quantised, and served."""
import io, json, os, re, shutil, signal, socket, subprocess, sys, threading, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
import pytest
import torch
import sample as S
from conftest import ROOT, byte_tokenizer, refused, save_untrained
from model import GPTConfig, build_model, generate, load_checkpoint, load_model

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with an untrained model in out/, whose next bytes are nearly even."""
    path = tmp_path_factory.mktemp('sample')
    save_untrained(path / 'out')
    return path

@pytest.fixture(scope='module')
def loaded(folder):
    model, tokenizer, _ = load_model(str(folder / 'out'))
    return model.eval(), tokenizer

@pytest.fixture
def go(run, folder, tmp_path):
    """go('prompt=a', …): the script in this process, with that model."""
    return lambda *settings: run('sample.py', f'out_dir={folder / "out"}', 'device=cpu', *settings)

# ---- generate ----

@pytest.mark.parametrize('text, stop, pieces', [
    ('a€b', [], ['a', '', '', '€', 'b']),                # a character of three tokens appears when it is whole
    ('one. two', ['. '], ['', 'o', 'n', 'e', '']),       # held back while it may become '. '
    ('a.b', ['.c'], ['', 'a', '.b']),                    # it did not: the last piece brings the rest
    ('hi<eot>', [], ['h', 'i', ''])])                    # a special token ends the text and is not shown
def test_text_grows_by_what_is_certain(monkeypatch, text, stop, pieces):
    tokenizer = byte_tokenizer()
    shown = text.removesuffix('<eot>')
    ids = list(shown.encode()) + [tokenizer.eot] * (shown != text)
    logits = torch.zeros(1, tokenizer.vocab_size)
    monkeypatch.setattr(S, 'generate', lambda *_, **__: (([i], logits) for i in ids))  # writes just that
    steps = list(S.stream_text(None, tokenizer, [0], max_tokens=len(ids), stop=stop))
    assert [piece for piece, *_ in steps] == pieces
    assert [reason for *_, reason in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1][-1] == ('stop' if '<eot>' in text or stop == ['. '] else 'length')

def typed(monkeypatch, text):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(text.encode())))

def test_samples_go_on_from_the_prompt(go, monkeypatch):
    one = go('prompt=the cat', 'max_new_tokens=20', 'seed=5')
    assert one.returncode == 0 and one.stdout.startswith('the cat')
    typed(monkeypatch, 'the cat')
    assert go('prompt=-', 'max_new_tokens=20', 'seed=5').stdout == one.stdout
    three = go('prompt=the cat', 'max_new_tokens=20', 'seed=4', 'num_samples=3').stdout
    samples = [sample.strip() for sample in three.split('-' * 15)]
    assert samples[1] == one.stdout.strip('-\n ') and len(set(samples)) == 4  # the last is empty

@pytest.mark.parametrize('settings, words, status', [
    (['out_dir=nowhere'], ['no checkpoint', 'python train.py'], 1),
    (['temperature=1e-38'], ['temperature=1e-38'], 2),
    (['top_p=2'], ['top_p=2'], 2),
    (['num_samples=0'], ['num_samples=0'], 2),
    (['serve=70000'], ['serve=70000'], 2),
    (['prompt=-'], ['standard input is closed'], 2),
    (['chat=True'], ['standard input is closed'], 2)])
def test_mistakes_end_in_one_line(go, monkeypatch, settings, words, status):
    monkeypatch.setattr(sys, 'stdin', None)  # as it is after <&-
    refused(go(*settings), *words, status=status)

# ---- chat, label ----

def test_a_chat(go, monkeypatch):
    typed(monkeypatch, 'hi\n/reset\nhi\nhi again\n')
    done = go('chat=True', 'temperature=0', 'max_new_tokens=8')
    _, first, _, second, _, end = done.stdout.split('> ')
    assert done.returncode == 0 and first == second and end == '\n'

def test_ctrl_c_stops_the_answer_and_it_stays_in_the_conversation(monkeypatch, loaded):
    prompts = []
    def stream(model, tokenizer, ids, **_):
        prompts.append(tokenizer.decode(ids))
        yield 'hm', 0, None, None
        raise KeyboardInterrupt
    typed(monkeypatch, 'a\nb\n')
    monkeypatch.setattr(S, 'stream_text', stream)
    with pytest.raises(EOFError):
        S.chat_loop(*loaded, 'be kind')
    assert 'be kind' in prompts[0] and 'hm<|end|>' in prompts[1]

@pytest.mark.parametrize('causal', [True, False])
def test_labels_are_read_where_finetune_trains_them(run, monkeypatch, tmp_path, causal):
    """At the last token, or at an encoder's first; by hand here, from the hidden states."""
    model = save_untrained(tmp_path / 'out', causal=causal).eval()
    torch.manual_seed(1)
    classifier = torch.nn.Linear(32, 2)
    saved = {**load_checkpoint(str(tmp_path / 'out')), 'task': 'classify', 'labels': ['ham', 'spam'],
             'classifier': classifier.state_dict()}
    torch.save(saved, tmp_path / 'out' / 'ckpt.pt')
    tokenizer = byte_tokenizer()
    ids = torch.tensor([[tokenizer.eot] + tokenizer.encode('You won!')])
    expected = classifier(model.hidden(ids)[0, -1 if causal else 0]).softmax(-1)
    found = S.label_probs(model, tokenizer, saved['classifier'], 'You won!')
    assert torch.allclose(found, expected)
    typed(monkeypatch, 'You won!\nhello\n')
    done = run('sample.py', 'prompt=-', 'device=cpu')
    first, second = done.stdout.splitlines()
    assert first == f"ham {expected[0]:.3f}  spam {expected[1]:.3f}  You won!" and second.endswith('  hello')

# ---- look inside ----

def test_show_probs(capsys, loaded):
    model, tokenizer = loaded
    ids = tokenizer.encode('the')
    S.show_probs(model, tokenizer, ids, max_tokens=3, temperature=0)
    line = capsys.readouterr().out.splitlines()[1]
    probs, order = model(torch.tensor([ids]))[0, -1].softmax(-1).sort(descending=True)
    best = [f"{tokenizer.decode([i])!r} {p:.2f}" for i, p in zip(order[:5].tolist(), probs)]
    assert line.startswith(best[0]) and line.endswith('  '.join(best))

def test_show_attention(capsys, loaded, tmp_path):
    maps = S.show_attention(*loaded, loaded[1].encode('the cat'), tmp_path / 'attention.png')
    assert maps.shape == (2, 2, 7, 7) and torch.allclose(maps.sum(-1), torch.ones(2, 2, 7))
    assert (maps.triu(1) == 0).all()  # nobody looks at the future
    assert len(re.findall(r'layer \d, head \d', capsys.readouterr().out)) == 4

def test_show_embeddings(capsys):
    model = build_model(GPTConfig(vocab_size=261, n_layer=1, n_head=1, n_embd=16))
    with torch.no_grad():
        model.wte.weight[98] = 3 * model.wte.weight[97]  # b in the direction of a: as near as can be
    S.show_embeddings(model, byte_tokenizer(), 'a')
    assert "'a'          is near  'b' 1.00" in capsys.readouterr().out

# ---- quicker ----

def small(**more):
    torch.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=101, block_size=32, n_layer=2, n_head=2, n_embd=64, **more))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()

@pytest.mark.parametrize('dtype, quantize, nearness', [
    (torch.float32, 'none', 0.999999), (torch.bfloat16, 'none', 0.999), (torch.float32, 'int8', 0.99)])
def test_quicker_is_nearly_the_same(dtype, quantize, nearness):
    idx = torch.randint(101, (2, 20))
    plain, quick = small(bias=True), small(bias=True).to(dtype)
    S.prepare_decoding(quick, quantize)
    with torch.no_grad():
        a, b = plain(idx).flatten(), quick(idx).float().flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > nearness
    assert len(list(generate(quick, [[1, 2]], 40))) == 40

@pytest.mark.parametrize('inputs, outputs, rows', [(64, 50, 1), (64, 50, 3), (64, 50, 40), (40, 7, 3)])
def test_int8_is_off_by_half_a_step_at_most(inputs, outputs, rows):
    """By torch's product or, for long prompts and for widths that it cannot do, unpacked."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(inputs, outputs), torch.randn(rows, inputs).bfloat16()
    packed = S.Int8Linear(linear).bfloat16()
    step = packed.scale.float()[:, None]
    w = packed.weight.float() * step
    largest = linear.weight.abs().amax(1, keepdim=True)
    assert torch.allclose(step, largest / 127, rtol=0.01)
    assert ((w - linear.weight).abs() <= torch.where(linear.weight.abs() == largest, step, step * 0.501)).all()
    expected = x.float() @ w.T + linear.bias
    assert torch.allclose(packed(x).float(), expected, rtol=0.02, atol=0.02)

# ---- serve ----

DEFAULTS = dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=20, stop=[])

class Served:
    """A server in a thread of this process."""
    def __init__(self, model, tokenizer, **sampling):
        ThreadingHTTPServer.request_queue_size = 128
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), S.Handler)
        self.server.uses = model, tokenizer, 'out', {**DEFAULTS, **sampling}
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def raw(self, data):
        """Bytes in -> status, bytes out. The client half-closes after its request."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=60) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            answer = b''.join(iter(lambda: s.recv(65536), b''))
        return int(answer.split(b' ')[1]), answer.partition(b'\r\n\r\n')[2].decode()

    def post(self, body, path='completions', headers=('Host: 127.0.0.1', 'Content-Type: application/json')):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f'POST /v1/{path} HTTP/1.1', *headers, f'Content-Length: {len(body)}', '', '']
        return self.raw('\r\n'.join(head).encode() + body)

    def complete(self, path='completions', **body):
        status, text = self.post(body, path)
        assert status == 200, text
        if body.get('stream'):
            *events, end = [event.removeprefix('data: ') for event in text.split('\n\n')[:-1]]
            assert end == '[DONE]'
            return [json.loads(event) for event in events]
        return json.loads(text)

@pytest.fixture(scope='module')
def served(loaded):
    served = Served(*loaded)
    yield served
    served.server.shutdown()
    served.server.server_close()

def greedy(loaded, ids, n):
    return ''.join(piece for piece, *_ in S.stream_text(*loaded, ids, max_tokens=n, temperature=0))

def test_completions(served, loaded):
    ids = loaded[1].encode('the cat')
    whole = served.complete(prompt='the cat', max_tokens=12, logprobs=2)
    choice = whole['choices'][0]
    assert choice['text'] == greedy(loaded, ids, 12) and choice['finish_reason'] == 'length'
    assert whole['usage'] == {'prompt_tokens': 7, 'completion_tokens': 12, 'total_tokens': 19}
    best = loaded[0](torch.tensor([ids]))[0, -1].log_softmax(-1).max().item()
    assert choice['logprobs']['token_logprobs'][0] == pytest.approx(best, abs=1e-3)
    assert len(choice['logprobs']['tokens']) == 12 and len(choice['logprobs']['top_logprobs'][0]) == 2
    parts = served.complete(prompt='the cat', max_tokens=12, stream=True)
    assert ''.join(p['choices'][0]['text'] for p in parts) == choice['text']
    assert parts[-1]['usage'] == whole['usage']
    end = choice['text'][4:6]
    stopped = served.complete(prompt='the cat', max_tokens=12, stop=end)['choices'][0]
    assert stopped['text'] == choice['text'].partition(end)[0] and stopped['finish_reason'] == 'stop'

def test_chat_completions(served, loaded):
    messages = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'}]
    ids = loaded[1].chat(messages, answer=True)[0]
    how = dict(messages=messages, max_tokens=9, logprobs=True, top_logprobs=1)
    choice = served.complete('chat/completions', **how)['choices'][0]
    assert choice['message'] == {'role': 'assistant', 'content': greedy(loaded, ids, 9)}
    assert len(choice['logprobs']['content'][0]['top_logprobs']) == 1
    parts = [p['choices'][0]['delta'] for p in served.complete('chat/completions', stream=True, **how)]
    assert [part.get('role') for part in parts[:2]] == ['assistant', None]
    assert ''.join(part['content'] for part in parts) == choice['message']['content']

def test_many_at_once_get_what_each_would_get_alone(served):
    def out(i):
        return served.complete(prompt=f'a cat {i}', max_tokens=8, temperature=1, seed=i)['choices'][0]['text']
    alone = [out(i) for i in range(40)]
    with ThreadPoolExecutor(24) as pool:  # these threads count, too: the server is in this process
        assert list(pool.map(out, range(40))) == alone
    assert len(set(alone)) > 20

@pytest.mark.parametrize('body', [
    b'', b'{', b'null', b'[]', b'[' * 100_000, b'{"prompt":{}}', b'{"prompt":"\xff"}', b'{"temperature":NaN}',
    b'{"temperature":1e-38}', b'{"temperature":"1"}', b'{"max_tokens":0}', b'{"max_tokens":1.5}',
    b'{"seed":1' + b'0' * 30 + b'}', b'{"stop":7}', b'{"logprobs":21}',
    b'{"prompt":"' + b'x' * 2**20 + b'"}',
    b'{"best_of":2}', b'{"n":2}', b'{"stream":"yes"}', b'{"response_format":{"type":"json_object"}}',
    b'{"messages":["x"]}', b'{"messages":[{"role":"judge","content":"x"}]}', b'{"messages":[{"role":"user","content":"x"}],"prompt":"x"}',
    b'{"messages":[{"role":"user"}]}', b'{"echo":true}'])
def test_what_makes_no_sense_or_would_be_ignored_is_refused(served, body):
    status, text = served.post(body)
    assert status == 400 and json.loads(text)['error']['message']

def test_an_unknown_model_or_address_is_not_found(served):
    assert served.post({'model': 'gpt-4'})[0] == served.post({}, 'embeddings')[0] == 404
    assert served.raw(b'GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n')[0] == 404
    assert served.raw(b'\x16\x03\x01\x00\xa5 \x00 \xff\r\n\r\n')[0] == 400  # no HTTP at all

JSON = 'Content-Type: application/json'

@pytest.mark.parametrize('headers, status', [
    (['Host: localhost:8000', JSON], 200), (['Host: localhost:8000', 'Origin: http://localhost:8000', JSON], 200),
    ([JSON], 403), (['Host: evil.example', JSON], 403), (['Host: 127.0.0.1.evil.example', JSON], 403),
    (['Host: localhost', 'Origin: http://evil.example', JSON], 403), (['Host: localhost', 'Origin: null', JSON], 403),
    (['Host: localhost'], 415), (['Host: localhost', 'Content-Type: text/plain'], 415)])
def test_other_sites_pages_are_refused(served, headers, status):
    """They name themselves in Origin, or, where their name points to this machine, in Host; and send no JSON."""
    assert served.post({'max_tokens': 1}, headers=headers)[0] == status

def test_an_error_of_ours_is_a_500(loaded):
    """Here, weights that are not finite, at which generate() exits."""
    model = build_model(GPTConfig(vocab_size=loaded[1].vocab_size, n_layer=1, n_head=1, n_embd=16))
    model.norm.weight.data.fill_(float('nan'))
    broken = Served(model, loaded[1])
    for stream in (False, True):
        status, text = broken.post({'stream': stream})
        assert status == 500 and 'not finite' in json.loads(text)['error']['message']
    broken.server.shutdown()

def test_too_many_connections(served):
    """They are told to come again; those that go make room."""
    waiting = [socket.create_connection(('127.0.0.1', served.port)) for _ in range(S.MAX_CONNECTIONS)]
    deadline = time.time() + 60
    while served.post({'max_tokens': 1})[0] != 503:
        assert time.time() < deadline
    for s in waiting:
        s.close()
    while served.post({'max_tokens': 1})[0] != 200:
        assert time.time() < deadline

def test_a_slow_reader_holds_up_nobody(served):
    """It asks for a long answer, and reads nothing of it."""
    slow = socket.create_connection(('127.0.0.1', served.port))
    body = b'{"max_tokens":4096,"stream":true,"logprobs":20}'
    slow.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
                 b'Content-Length: %d\r\n\r\n' % len(body) + body)
    assert served.complete(prompt='the cat', max_tokens=3)['usage']['completion_tokens'] == 3
    slow.close()

def test_the_command(folder):
    """serve= in a process of its own, until Ctrl-C."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    process = subprocess.Popen([sys.executable, ROOT / 'sample.py', f'serve={port}', 'device=cpu'], cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert f'http://127.0.0.1:{port}' in process.stdout.readline()
    for path, text in (('health', '"ok"'), ('v1/models', '"id": "out"'), ('', S.PAGE)):
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/{path}') as answer:
            assert text in answer.read().decode()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and 'Traceback' not in err

CHROMIUM = os.environ.get('CHROME') or shutil.which('chromium') or shutil.which('google-chrome')

@pytest.mark.skipif(not CHROMIUM, reason="no chromium (or name it in the environment: CHROME=…)")
def test_the_page_in_a_browser(loaded):
    """Typing, writing, stopping, hovering, walking, chatting, and an error."""
    playwright = pytest.importorskip('playwright.sync_api')
    served = Served(*loaded, max_tokens=4096)
    with playwright.sync_playwright() as p:
        args = ['--no-sandbox', '--single-process', '--no-zygote']
        browser = p.chromium.launch(executable_path=CHROMIUM, args=args)
        page = browser.new_page()
        page.goto(f'http://127.0.0.1:{served.port}/')
        out, spans = page.locator('#out'), page.locator('#out span')
        page.fill('#prompt', 'the cat')
        page.fill('#temperature', '0')
        page.click('text=Write')
        text = 'the cat' + greedy(loaded, loaded[1].encode('the cat'), 12)
        playwright.expect(out).to_contain_text(text)
        page.keyboard.press('Escape')
        page.wait_for_timeout(200)
        n = spans.count()
        page.wait_for_timeout(300)
        assert n == spans.count() < 4000
        assert 'rgb' in spans.first.get_attribute('style')  # or hsl, as written
        spans.first.hover()
        shown = "e => getComputedStyle(e, '::after').content"
        assert '%' in spans.first.evaluate(shown)
        page.mouse.move(0, 0)
        assert '%' not in spans.first.evaluate(shown)
        spans.first.focus()
        page.keyboard.press('ArrowRight')
        assert '%' in spans.nth(1).evaluate(shown) and '%' not in spans.first.evaluate(shown)
        page.check('#chat')
        page.click('text=Write')
        playwright.expect(out).to_contain_text(re.compile('^the cat.+'))
        page.fill('#temperature', '-1')
        page.click('text=Write')
        playwright.expect(out).to_contain_text('temperature=-1')
        browser.close()
    served.server.shutdown()

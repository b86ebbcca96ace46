"""Using a model: text as it grows, in a chat, labelled, looked into, quantised, and served."""
import copy, io, json, re, signal, socket, subprocess, sys, threading, urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
import pytest
import torch
import sample as S
from conftest import ROOT, byte_tokenizer, refused, run_script, save_untrained
from model import GPTConfig, build_model, generate, load_checkpoint, load_model

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Untrained models, whose next bytes are nearly even."""
    path = tmp_path_factory.mktemp('sample')
    for name, shape in (('out', {}), ('bert', {'causal': False}), ('lstm', {'model_type': 'lstm'})):
        save_untrained(path / name, **shape)
    return path

@pytest.fixture(scope='module')
def loaded(folder):
    model, tokenizer, _ = load_model(str(folder / 'out'))
    return model.eval(), tokenizer

@pytest.fixture
def go(folder):
    """go('prompt=a', …): the script in this process, with the model in out/."""
    return lambda *settings: run_script('sample.py', 'device=cpu', *settings, cwd=folder)

def typed(monkeypatch, text):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(text.encode())))

# ---- generate ----

@pytest.mark.parametrize('text, stop, pieces, reason', [
    ('a€b', [], ['a', '', '', '€', 'b'], 'length'),         # '€', three tokens, appears when it is whole
    ('one. two', ['. '], ['', 'o', 'n', 'e', ''], 'stop'),  # held back while it may become '. '
    ('a.b', ['.c'], ['', 'a', '.b'], 'length'),             # it did not: the last piece brings the rest
    ('hi<|end|>', [], ['h', 'i', ''], 'stop')])             # a special token is not shown
def test_text_grows_by_what_is_certain(monkeypatch, text, stop, pieces, reason):
    tokenizer = byte_tokenizer()
    ids = tokenizer.spell(text)
    logits = torch.zeros(1, tokenizer.vocab_size)
    monkeypatch.setattr(S, 'generate', lambda *_, **__: (([i], logits) for i in ids))  # just that
    steps = list(S.stream_text(None, tokenizer, [0], max_tokens=len(ids), stop=stop))
    assert [piece for piece, *_ in steps] == pieces
    assert [step[-1] for step in steps] == [None] * (len(steps) - 1) + [reason]

def test_samples_go_on_from_the_prompt(go, monkeypatch):
    one = go('prompt=the cat', 'max_new_tokens=20', 'seed=5').stdout
    typed(monkeypatch, 'the cat')
    assert one.startswith('the cat') and go('prompt=-', 'max_new_tokens=20', 'seed=5').stdout == one
    three = go('prompt=the cat', 'max_new_tokens=20', 'seed=4', 'num_samples=3').stdout
    samples = [sample.strip() for sample in three.split('-' * 15)]
    assert samples[1] == one.strip('-\n ') and len(set(samples)) == 4  # the last is empty

@pytest.mark.parametrize('settings, words, status', [
    ('out_dir=nowhere', ['no nowhere', 'python train.py'], 1), ('serve=70000', ['serve=70000'], 2),
    ('temperature=1e-38', ['temperature=1e-38'], 2), ('num_samples=0', ['num_samples=0'], 2),
    ('out_dir=bert', ['is an encoder', 'finetune.py task=classify'], 1),
    ('out_dir=lstm show=attention', ['no attention'], 2)])
def test_mistakes_end_in_one_line(go, settings, words, status):
    refused(go(*settings.split()), *words, status=status)

# ---- chat, label ----

def test_a_chat(go, monkeypatch, loaded):
    """What Ctrl-C leaves of an answer stays in the conversation, until /reset."""
    prompts = []
    def stream(model, tokenizer, ids, **_):
        prompts.append(tokenizer.decode(ids))
        yield 'hm', 0, None, None
        raise KeyboardInterrupt
    monkeypatch.setattr(S, 'stream_text', stream)
    typed(monkeypatch, 'a\nb\n/reset\nc\n')
    with pytest.raises(EOFError):
        S.chat_loop(*loaded, 'be kind')
    assert ['hm<|end|>' in prompt for prompt in prompts] == [False, True, False]
    assert all('be kind' in prompt for prompt in prompts)
    typed(monkeypatch, 'hi\n')
    assert go('chat=True', 'temperature=0', 'max_new_tokens=8').stdout.endswith('\n> \n')

@pytest.mark.parametrize('causal', [True, False])
def test_labels_are_read_where_finetune_trains_them(run, monkeypatch, tmp_path, causal):
    """At the last token, or at an encoder's first; by hand here, from the hidden states."""
    model = save_untrained(tmp_path / 'out', causal=causal).eval()
    classifier = torch.nn.Linear(32, 2)
    saved = load_checkpoint(str(tmp_path / 'out'))
    saved.update(labels=['ham', 'spam'], classifier=classifier.state_dict())
    torch.save(saved, tmp_path / 'out' / 'ckpt.pt')
    texts = ['You won!', 'a' * 90 + 'You won!']  # of the second, which is too long, the end counts
    typed(monkeypatch, '\n'.join(texts))
    for text, line in zip(texts, run('sample.py', 'prompt=-', 'device=cpu').stdout.splitlines(), strict=True):
        ids = torch.tensor([[byte_tokenizer().eot, *text.encode()][-64:]])
        ham, spam = classifier(model.hidden(ids)[0, -1 if causal else 0]).softmax(-1)
        assert line == f"ham {ham:.3f}  spam {spam:.3f}  {text}"
    for mistake in (['prompt='], ['chat=True', 'prompt=hi'], ['serve=8000', 'prompt=hi']):
        refused(run('sample.py', *mistake, 'device=cpu'), 'is a classifier', status=2)

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

def test_show_embeddings(capsys, loaded):
    model = copy.deepcopy(loaded[0])
    model.wte.weight.data[98] = 3 * model.wte.weight.data[97]  # b points where a does
    S.show_embeddings(model, loaded[1], 'a')
    assert "'a'          is near  'b' 1.00" in capsys.readouterr().out

# ---- quicker ----

@pytest.mark.parametrize('dtype, quantize, nearness', [
    (torch.float32, 'none', 0.999999), (torch.bfloat16, 'none', 0.999), (torch.float32, 'int8', 0.99)])
def test_quicker_is_nearly_the_same(dtype, quantize, nearness):
    torch.manual_seed(0)
    plain = build_model(GPTConfig(vocab_size=101, block_size=32, n_layer=2, n_head=2, n_embd=64, bias=True))
    for p in plain.eval().parameters():
        torch.nn.init.normal_(p, std=0.3)
    quick = copy.deepcopy(plain).to(dtype)
    S.prepare_decoding(quick, quantize)
    idx = torch.randint(101, (2, 20))
    with torch.no_grad():
        a, b = plain(idx).flatten(), quick(idx).float().flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > nearness
    assert len(list(generate(quick, [[1, 2]], 40))) == 40

@pytest.mark.parametrize('inputs, outputs, rows', [(64, 50, 3), (64, 50, 40), (40, 7, 3)])
def test_int8_is_off_by_half_a_step_at_most(inputs, outputs, rows):
    """By torch's product or, for long prompts and for widths that it cannot do, unpacked."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(inputs, outputs), torch.randn(rows, inputs).bfloat16()
    packed = S.Int8Linear(linear).bfloat16()
    step = packed.scale.float()[:, None]
    w = packed.weight.float() * step
    inner = linear.weight.abs() < linear.weight.abs().amax(1, keepdim=True)  # those are 127 steps
    assert ((w - linear.weight).abs() <= step * 0.501)[inner].all()
    expected = x.float() @ w.T + linear.bias
    assert torch.allclose(packed(x).float(), expected, rtol=0.02, atol=0.02)

# ---- serve ----

JSON = 'Content-Type: application/json'

class Served:
    """A server in a thread of this process."""
    ThreadingHTTPServer.request_queue_size = 128
    def __init__(self, model, tokenizer):
        server = ThreadingHTTPServer(('127.0.0.1', 0), S.Handler)
        server.uses = model, tokenizer, 'out', dict(temperature=0.0, max_tokens=20)
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def raw(self, data):
        """Bytes in -> status, text out. The client half-closes after its request."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=60) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            answer = b''.join(iter(lambda: s.recv(65536), b''))
        return int(answer.split(b' ')[1]), answer.partition(b'\r\n\r\n')[2].decode()

    def request(self, body, path='completions', headers=('Host: 127.0.0.1', JSON)):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f'POST /v1/{path} HTTP/1.1', *headers, f'Content-Length: {len(body)}', '', '']
        return '\r\n'.join(head).encode() + body

    def post(self, *request, **more):
        return self.raw(self.request(*request, **more))

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
    return Served(*loaded)

def greedy(loaded, ids, n):
    return ''.join(piece for piece, *_ in S.stream_text(*loaded, ids, max_tokens=n, temperature=0))

def test_completions(served, loaded):
    ids = loaded[1].encode('the cat')
    whole = served.complete(prompt='the cat', max_tokens=12, logprobs=2)
    choice = whole['choices'][0]
    assert choice['text'] == greedy(loaded, ids, 12) and choice['finish_reason'] == 'length'
    assert whole['usage'] == {'prompt_tokens': 7, 'completion_tokens': 12, 'total_tokens': 19}
    best = loaded[0](torch.tensor([ids]))[0, -1].log_softmax(-1).max().item()
    logprobs = choice['logprobs']
    assert logprobs['token_logprobs'][0] == pytest.approx(best, abs=1e-3)
    assert len(logprobs['tokens']) == 12 and len(logprobs['top_logprobs'][0]) == 2
    parts = served.complete(prompt='the cat', max_tokens=12, stream=True)
    assert ''.join(p['choices'][0]['text'] for p in parts) == choice['text']
    assert parts[-1]['usage'] == whole['usage']
    end = choice['text'][4:6]
    stopped = served.complete(prompt='the cat', max_tokens=12, stop=end)['choices'][0]
    assert stopped['text'] == choice['text'].partition(end)[0] and stopped['finish_reason'] == 'stop'

def test_chat_completions(served, loaded):
    messages = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'hi'}]
    how = dict(path='chat/completions', messages=messages, max_tokens=9, logprobs=True, top_logprobs=1)
    choice = served.complete(**how)['choices'][0]
    text = greedy(loaded, loaded[1].chat(messages, answer=True)[0], 9)
    assert choice['message'] == {'role': 'assistant', 'content': text}
    assert len(choice['logprobs']['content'][0]['top_logprobs']) == 1
    parts = [p['choices'][0]['delta'] for p in served.complete(stream=True, **how)]
    assert [part.get('role') for part in parts[:2]] == ['assistant', None]
    assert ''.join(part['content'] for part in parts) == text

def test_many_at_once_get_what_each_would_get_alone(served):
    def out(i):
        answer = served.complete(prompt=f'a cat {i}', max_tokens=8, temperature=1, seed=i)
        return answer['choices'][0]['text']
    alone = [out(i) for i in range(40)]
    with ThreadPoolExecutor(24) as pool:  # these threads count, too: the server is in this process
        assert list(pool.map(out, range(40))) == alone
    assert len(set(alone)) > 20

HOSTILE = '''{ null [] {"prompt":{}} {"stop":7} {"temperature":NaN} {"temperature":1e-38} {"temperature":"1"}
    {"max_tokens":0} {"max_tokens":1.5} {"seed":1000000000000000000000} {"logprobs":21} {"top_logprobs":2}
    {"messages":["x"]} {"messages":[{"role":"user"}]} {"messages":[{"role":"judge","content":"x"}]}
    {"messages":[1],"prompt":"x"} {"n":2} {"best_of":2} {"echo":true} {"stream":"yes"} {"tokenizer":1}
    {"stop_tokens":[1]} {"response_format":{"type":"text"}}'''.encode().split()

@pytest.mark.parametrize('body', HOSTILE + [
    b'', b'[' * 100_000, b'{"prompt":"\xff"}', b'{"prompt":"' + b'x' * 2**20 + b'"}'])
def test_what_makes_no_sense_or_would_be_ignored_is_refused(served, body):
    status, text = served.post(body)
    assert status == 400 and json.loads(text)['error']['message']

def test_an_unknown_model_or_address_is_not_found(served):
    assert served.post({'model': 'gpt-4'})[0] == served.post({}, 'embeddings')[0] == 404
    assert served.raw(b'GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n')[0] == 404
    assert served.raw(b'\x16\x03\x01\x00\xa5 \x00 \xff\r\n\r\n')[0] == 400  # no HTTP at all

@pytest.mark.parametrize('headers, status', [
    (f'Host: localhost:8000|{JSON}', 200), (f'Host: localhost:1|Origin: http://localhost:1|{JSON}', 200),
    (JSON, 403), (f'Host: evil.example|{JSON}', 403), (f'Host: 127.0.0.1.evil.example|{JSON}', 403),
    (f'Host: localhost|Origin: http://evil.example|{JSON}', 403), ('Host: localhost', 415),
    (f'Host: localhost|Origin: null|{JSON}', 403), ('Host: localhost|Content-Type: text/plain', 415)])
def test_other_sites_pages_are_refused(served, headers, status):
    """They are in Origin or, where their name points here, in Host; and they send no JSON."""
    assert served.post({'max_tokens': 1}, headers=headers.split('|'))[0] == status

def test_an_error_of_ours_is_a_500(loaded):
    """Here, weights that are not finite, at which generate() exits."""
    model = copy.deepcopy(loaded[0])
    model.norm.weight.data.fill_(float('nan'))
    status, text = Served(model, loaded[1]).post({'stream': True})
    assert status == 500 and 'not finite' in json.loads(text)['error']['message']

def test_too_many_connections(served):
    """They are told to come again; those that go make room."""
    waiting = [socket.create_connection(('127.0.0.1', served.port)) for _ in range(S.MAX_CONNECTIONS)]
    assert 503 in (served.post({'max_tokens': 1})[0] for _ in range(1000))
    for s in waiting:
        s.close()
    assert 200 in (served.post({'max_tokens': 1})[0] for _ in range(1000))

def test_a_slow_reader_holds_up_nobody(served):
    """It asks for a long answer, and reads nothing of it."""
    with socket.create_connection(('127.0.0.1', served.port)) as slow:
        slow.sendall(served.request({'max_tokens': 4096, 'stream': True, 'logprobs': 20}))
        assert served.complete(max_tokens=3)['usage']['completion_tokens'] == 3

def test_the_command(folder):
    """serve= in a process of its own, until Ctrl-C."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [sys.executable, ROOT / 'sample.py', f'serve={port}', 'device=cpu']
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a shell's background ignore it
    process = subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True)  # -1: PIPE
    assert f'http://127.0.0.1:{port}' in process.stdout.readline()
    for path, text in (('health', '"ok"'), ('v1/models', '"id": "out"'), ('', S.PAGE)):
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/{path}') as answer:
            assert text in answer.read().decode()
    process.send_signal(signal.SIGINT)
    assert 'Traceback' not in process.communicate(timeout=30)[1] and process.returncode == 0

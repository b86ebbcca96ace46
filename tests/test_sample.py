"""Using a model from the command line."""
import pytest
from conftest import refused, run
from test_train import TINY

@pytest.fixture(scope='module')
def model(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('model')
    done = run('train.py', *[f'{k}={v}' for k, v in {**TINY, 'data_dir': data, 'max_iters': 40, 'lr_decay_iters': 40, 'learning_rate': 0.01}.items()], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder

def test_samples_go_on_from_the_prompt(model):
    one = run('sample.py', 'prompt=the cat', 'max_new_tokens=40', cwd=model)
    three = run('sample.py', 'prompt=the cat', 'max_new_tokens=40', 'num_samples=3', cwd=model)
    assert one.returncode == 0 and one.stdout.startswith('the cat') and len(one.stdout) > 10
    assert three.stdout.startswith(one.stdout.strip('\n')) and three.stdout.count('the cat') >= 3  # the first is the same in company
    assert 'tokens/s' in one.stderr

def test_prompts_from_a_file_and_from_standard_input(model):
    (model / 'prompt.txt').write_text('a dog ran', encoding='utf-8')
    a = run('sample.py', 'prompt=FILE:prompt.txt', 'max_new_tokens=10', cwd=model)
    b = run('sample.py', 'prompt=-', 'max_new_tokens=10', cwd=model, input='a dog ran')
    assert a.stdout == b.stdout and a.stdout.startswith('a dog ran')

def test_seed_temperature_and_stop(model):
    def out(*args):
        done = run('sample.py', 'prompt=the', 'max_new_tokens=60', *args, cwd=model)
        assert done.returncode == 0 and done.stdout.startswith('the'), done.stderr
        return done.stdout
    assert out('seed=1') == out('seed=1') != out('seed=2')
    assert out('temperature=0', 'seed=1') == out('temperature=0', 'seed=2')
    assert ' ' not in out('stop= ').strip()

@pytest.mark.parametrize('args, words, status', [
    (['out_dir=nowhere'], ['no checkpoint', 'python train.py'], 1), (['temperature=-1'], ['temperature=-1'], 2), (['top_p=2'], ['top_p=2'], 2),
    (['num_samples=0'], ['num_samples=0'], 2), (['prompt=FILE:nowhere.txt'], ['nowhere.txt', 'No such file'], 1), (['temprature=1'], ['did you mean temperature'], 2)])
def test_mistakes(model, args, words, status):
    refused(run('sample.py', *args, cwd=model), *words, status=status)

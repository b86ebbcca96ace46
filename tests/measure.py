"""
Measures everything in the results table of tests/README.md again: the course, command by command, in a folder of its
own; and draws lesson 6's frontier, for which it needs matplotlib.

    python tests/measure.py                            # all of it, into tests/results.json: over an hour on two cores
    python tests/measure.py lessons=1,3,5 folder=mine  # some lessons, in a folder that is kept: what has run there once
                                                       # is not run again (all but 7 need 1; 5, 6, 8 need 3; 6 needs 5)

tests/test_readme.py holds the table against tests/results.json, number by number.
"""
import json, os, platform, re, shlex, subprocess, sys, tempfile, time
from pathlib import Path
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'tests' / 'results.json'

# what to find in an output: of several matches the last counts
BITS = {'bits per byte': r'this model ([\d.]+)'}
TUNED = {'exact match': r' all .* ([\d.]+) %', 'moving': r'parameters move: ([\d.]+) %'}
ALIGNED = {'gold before': r'gold, likeliest +([\d.]+)', 'gold': r'gold, likeliest .* ([\d.]+)',
           'gold, sampled': r'gold, sampled .* ([\d.]+)', 'gold before, sampled': r'gold, sampled +([\d.]+)',
           'exact before': r'exact, likeliest +([\d.]+)', 'exact': r'exact, likeliest .* ([\d.]+)',
           'KL': r'kl, sampled .* ([\d.]+)'}
JUDGED = {**ALIGNED, 'reward model': r'reward, sampled .* ([\d.-]+)',
          'reward model before': r'reward, sampled +([\d.-]+)'}
CLIP = {'recall@1': r'new scenes: picture to caption.*?([\d.]+)%',
        'recall@1, new combinations': r'new combinations: picture to caption.*?([\d.]+)%',
        'zero-shot': r'new scenes: 24 classes.* ([\d.]+)% +[\d.]+%',
        'zero-shot, new combinations': r'new combinations: 24 classes.* ([\d.]+)% +[\d.]+%'}
CAPTIONS = {f'{what}, {split}': rf'new {split} ' + r' +[\d.]+%' * n + r' +([\d.]+)%'
            for split in ('scenes', 'combinations')
            for n, what in enumerate(('exact', 'colour', 'shape', 'both', 'relation'))}
QUESTIONS = {'all': r'new scenes +([\d.]+)%', 'blank': r'new scenes, blank +([\d.]+)%',
             'new combinations': r'new combinations +([\d.]+)%'}
CIDER = {'CIDEr-D': r'CIDEr-D +[\d,]+ +([\d.]+)'}

ONLINE = 'batch_size=64 max_iters=40 learning_rate=3e-4'
# lesson, command, and what to find. seed=… runs it with two seeds, and what is found becomes mean ± standard deviation
COURSE = [
    (1, 'python prepare.py', {}),
    (2, 'python train.py max_iters=400 out_dir=out-bigram model_type=bigram learning_rate=0.1', BITS),
    (2, 'python train.py max_iters=400 out_dir=out-mlp model_type=mlp learning_rate=0.005', BITS),
    (2, 'python train.py max_iters=400 out_dir=out-lstm model_type=lstm', BITS),
    (2, 'python train.py max_iters=400 out_dir=out-gpt', BITS),
    (3, 'python train.py', {**BITS, 'gzip': r'gzip ([\d.]+)', 'xz': r'xz ([\d.]+)'}),
    (5, 'python prepare.py dataset=instruct', {}),
    (5, 'python finetune.py', {'before': r' all +([\d.]+) %', **TUNED}),
    (5, 'python finetune.py optimizer=adamw learning_rate=0.002 out_dir=out-sft-adamw', TUNED),
    (5, 'python finetune.py method=lora dropout=0 out_dir=out-lora', TUNED),
    (5, 'python finetune.py method=adapter dropout=0 out_dir=out-adapter', TUNED),
    (5, 'python finetune.py method=freeze out_dir=out-freeze', TUNED),
    (6, 'python prepare.py dataset=preferences', {}),
    (6, 'python align.py method=reward out_dir=out-reward learning_rate=1e-3 max_iters=240',
     {'accuracy': r'so far \| accuracy ([\d.]+)', 'wrong': r'so far .* wrong ([\d.]+)'}),
    (6, 'python align.py seed=…', ALIGNED),
    (6, f'python align.py method=grpo {ONLINE} out_dir=out-grpo seed=…', ALIGNED),
    (6, f'python align.py method=ppo {ONLINE} out_dir=out-ppo seed=…', ALIGNED),
    (6, 'python align.py beta=0.5 out_dir=out-near', ALIGNED),
    (6, 'python align.py beta=0.02 out_dir=out-far', ALIGNED),
    (6, f'python align.py method=ppo reward=model {ONLINE} out_dir=out-judged', JUDGED),
    (6, 'python align.py method=ppo reward=model kl_coef=0 batch_size=64 max_iters=120 learning_rate=3e-4 '
        'out_dir=out-hacked', JUDGED),
    (6, 'python align.py method=constitution max_iters=100 out_dir=out-constitution', ALIGNED),
    (7, 'python vlm.py seed=…', CLIP),
    (7, 'python vlm.py task=caption init_from=out-clip out_dir=out-caption max_iters=500 seed=…', CAPTIONS),
    (7, 'python vlm.py task=vqa init_from=out-caption out_dir=out-vqa max_iters=350 seed=…', QUESTIONS),
    (7, 'python vlm.py task=caption fusion=early init_from=out-clip out_dir=out-early max_iters=500', CAPTIONS),
    (7, 'python vlm.py task=caption fusion=late init_from=out-clip out_dir=out-late max_iters=500', CAPTIONS),
    (7, 'python eval.py task=text hypotheses=out-caption/captions-new.jsonl', CIDER),
    (7, 'python eval.py task=text hypotheses=out-caption/captions-new-shuffled.jsonl', CIDER),
    (8, 'python eval.py', {'bits per byte': r'out +bits per byte +[\d,]+ +([\d.]+)',
                           '±': r'out +bits per byte +[\d,]+ +[\d.]+ +([\d.]+)'}),
]

def run(command, folder, log):
    """Run a command of the course in this folder -> its output and how many seconds it took; both stay in the log."""
    if not log.exists():
        _, script, *settings = shlex.split(command)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(ROOT / script), *settings], cwd=folder, encoding='utf-8',
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, 'PYTHONIOENCODING': 'utf-8'})
        if done.returncode:
            sys.exit(f"{command} failed:\n{done.stdout}")
        log.write_text(f"{time.perf_counter() - start:.1f}\n{done.stdout}", encoding='utf-8')
    seconds, _, output = log.read_text(encoding='utf-8').partition('\n')
    return output, float(seconds)

def spread(values):
    """['0.95', '0.97'] -> '0.960 ± 0.014': with the sample standard deviation."""
    numbers = [float(v) for v in values]
    mean = sum(numbers) / len(numbers)
    deviation = (sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f}"

def draw_frontier(results):
    """tests/pictures/frontier.png: reward against KL, for lesson 6."""
    plt.switch_backend('Agg')
    plt.figure(figsize=(6, 4))
    for name, marks in (('DPO', ('align.py seed', 'beta=')), ('GRPO', ('grpo',)), ('PPO, rule', ('out-ppo',)),
                        ('PPO, model', ('ppo reward=model',))):
        found = [r for r in results.values() if 'align.py' in r['command'] and any(m in r['command'] for m in marks)]
        points = sorted([float(r['values'][column].split()[0]) for column in ('KL', 'gold, sampled')] for r in found)
        plt.plot(*zip(*points), marker='o', label=name)
    plt.xscale('log')  # most runs lie close together, and one far away
    plt.minorticks_off()
    plt.xticks([2, 3, 5, 10, 20], [2, 3, 5, 10, 20])
    plt.xlabel('KL to the reference, nats per answer')
    plt.ylabel('reward by the rule')
    plt.legend()
    plt.tight_layout()
    plt.savefig(ROOT / 'tests' / 'pictures' / 'frontier.png', dpi=90)

def main():
    given = dict(word.split('=', 1) for word in sys.argv[1:])
    folder = Path(given.get('folder') or tempfile.mkdtemp(prefix='measured-')).resolve()
    (folder / 'logs').mkdir(parents=True, exist_ok=True)
    lessons = given.get('lessons', '1,2,3,5,6,7,8').split(',')
    results = {r['command']: r for r in json.loads(RESULTS.read_text(encoding='utf-8'))['runs']}
    for lesson, command, wanted in COURSE:
        if str(lesson) not in lessons:
            continue
        found, seconds = [], []
        for seed in ('1', '1337') if 'seed=…' in command else ('',):  # 1337 last: later commands go on from it
            this = command.replace('seed=…', f'seed={seed}')
            print(f"{time.strftime('%H:%M:%S')}  {this}", flush=True)
            output, took = run(this, folder, folder / 'logs' / f"{re.sub(r'[^a-z0-9=.-]+', '_', this[7:])}.txt")
            seconds.append(took)
            found.append({name: re.findall(pattern, output)[-1] for name, pattern in wanted.items()})
        values = found[0] if len(found) == 1 else {name: spread([f[name] for f in found]) for name in found[0]}
        results[command] = {'command': command, 'seconds': round(sum(seconds) / len(seconds)), 'values': values}
        print('          ' + ', '.join(f"{name} {value}" for name, value in values.items()), flush=True)
    machine = f"CPython {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    runs = [results[command] for _, command, _ in COURSE if command in results]
    text = json.dumps({'machine': machine, 'runs': runs}, indent=1, ensure_ascii=False) + '\n'
    RESULTS.write_text(text, encoding='utf-8')
    draw_frontier(results)

if __name__ == '__main__':
    main()

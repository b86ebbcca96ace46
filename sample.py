"""
Using a model: it goes on from a prompt, one token at a time.

    python sample.py                                          # from nothing, with the model in out/
    python sample.py prompt='def main():' num_samples=3       # three continuations of a prompt
    python sample.py prompt=FILE:story.txt temperature=0      # a prompt from a file; 0 always takes the likeliest token
    echo 'import os' | python sample.py prompt=-              # or from standard input

A model gives every token in the vocabulary a score; the settings below decide how one of them is drawn. The
model and its tokenizer both come from out_dir/ckpt.pt, so nothing else is needed. The first sample appears as
it is written.
"""
from configurator import configure, usage

out_dir = 'out'            # the folder of a ckpt.pt
prompt = ''                # what to go on from; FILE:path reads a file, - standard input; empty: nothing
num_samples = 1            # written side by side; sample i is the same whatever their number
max_new_tokens = 300
temperature = 0.8          # 0: always the likeliest; 1: as often as the model thinks; above: more surprising
top_k = 0                  # only the k likeliest tokens; 0: all
top_p = 1.0                # only the fewest tokens that together have this probability (nucleus sampling)
min_p = 0.0                # only tokens at least this fraction as likely as the likeliest
repetition_penalty = 1.0   # above 1: tokens that already occurred lose score
stop = ''                  # end a sample where this text appears; it ends at <|endoftext|> in any case
device = 'auto'            # auto (cuda, else mps, else cpu), or cpu, cuda, cuda:1, mps
dtype = 'float32'          # auto | float32 | bfloat16 | float16: of the weights; half as many bytes to read per token
seed = 1337
configure(globals())

import sys, time
import torch
from model import load_model, resolve_device, stream_text

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

def main():
    if num_samples < 1 or max_new_tokens < 1:
        usage(f"num_samples={num_samples} max_new_tokens={max_new_tokens}: expected at least 1 of each")
    where, number = resolve_device(device, dtype)
    model, tokenizer, _ = load_model(out_dir, where)
    model.to(getattr(torch, number)).eval()
    text = read_prompt()
    texts, start = [''] * num_samples, time.time()
    print(text, end='', flush=True)
    try:
        for row, piece in stream_text(model, tokenizer, [text] * num_samples, stop=[stop] if stop else [],
                                      max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                                      min_p=min_p, repetition_penalty=repetition_penalty, seed=seed):
            texts[row] += piece
            if row == 0:
                print(piece, end='', flush=True)
    except ValueError as e:  # sampling settings out of their range
        usage(str(e))
    print()
    for row, more in enumerate(texts[1:], 1):
        print('-' * 15 + f' sample {row + 1}\n{text}{more}')
    speed = sum(len(tokenizer.encode(t)) for t in texts) / (time.time() - start)
    print(f"({speed:,.0f} tokens/s on {where})", file=sys.stderr)

if __name__ == '__main__':
    main()

#!/usr/bin/env bash
# Types all that the README tells people to type, in its order, in a folder of its own, with settings behind each command
# that make it tiny: tests/rehearse.sh, in an environment that has the packages; some minutes. It ends at the first
# command that fails. What needs a network, another machine or library, a person or a model that has learned something is named and
# passed over.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here"/*.py "$here/README.md" "$work" && cd "$work"

# 1. what makes each script tiny; a later setting wins
tiny() {
  case "$1" in
    train.py) echo n_layer=2 n_head=1 n_embd=32 block_size=128 batch_size=4 max_iters=2 eval_interval=1 eval_iters=1 ;;
    finetune.py) echo max_iters=2 eval_interval=1 eval_iters=1 batch_size=2 num_samples=4 ;;
    align.py) echo max_iters=1 batch_size=4 group_size=4 max_new_tokens=4 ;;
    vlm.py) echo n_layer=1 n_embd=32 batch_size=8 max_iters=2 eval_interval=1 eval_iters=1 ;;
    eval.py) echo limit=4 num_samples=2 max_new_tokens=4 ;;
    sample.py) echo max_new_tokens=4 ;;
  esac
}
python() {
  echo "== python $*"
  command python "$@" $(tiny "$1") > last.log 2>&1 || { cat last.log; return 1; }
}
torchrun() {
  echo "== torchrun $*"
  command torchrun "$@" $(tiny train.py) device=cpu > last.log 2>&1 || { cat last.log; return 1; }
}

# 2. what people are told to bring
mkdir -p data/downloads
cp README.md notes.txt && cp README.md data/downloads/shakespeare.txt
(printf 'text\tlabel\n'; for i in $(seq 40); do printf 'win a prize, number %d\tspam\nsee you at %d\tham\n' "$i" "$i"; done) > spam.tsv
echo '{"hypothesis": "a cat sat on the mat", "references": ["the cat sat on the mat"]}' > answers.jsonl
command python - <<'PYTHON'
import json, numpy as np
np.savez('pictures.npz', images=np.random.default_rng(0).integers(256, size=(40, 32, 32, 3), dtype=np.uint8))
with open('pictures.jsonl', 'w', encoding='utf-8') as f:
    f.writelines(json.dumps({'caption': f'the digit {i % 10}'}) + '\n' for i in range(40))
PYTHON

# 3. the README's blocks, but for the first two, line by line
while IFS= read -r line; do
  case "$line" in
    *fineweb* | *hellaswag* | *weights=* | *export=* | 'pip '* | *--nnodes* | *serve=* | *method=constitution* | *vllm* | *ollama*) echo "-- passed over: $line"; continue ;;
    *out-smol* | *teacher=out-big* | *chat=True*) for there in out-smol out-big out-sft; do [ -d $there ] || cp -r out $there; done ;;
  esac
  eval "$line" < /dev/null
done < <(awk '/^```sh/ { code = 1; fence++; next } /^```/ { code = 0 } code && fence > 2' README.md)

#!/usr/bin/env bash
# From a fresh machine to a first result: handwritten digits (bundled, no download), an MLP trained dense, then with 90 % of
# its weights pruned: finetuned from the dense solution and trained from scratch under the same mask.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_environment requirements.txt

results=${RESULTS_ROOT:-results/quickstart}
for mode in dense sparse-finetune sparse-scratch; do
    python run.py --mode "$mode" --save_hessian 1 --save_jacobian 1 \
        --results_root "$results" 2>&1 |
        grep -v -E '^epoch [0-9]+/' || exit 1
done
echo
python experiment.py report "$results"

#!/usr/bin/env bash
# The paper's sweep behind figure 1 and table 2: ResNet-32x4 on CIFAR-100, dense, then finetuned and from scratch at seven
# sparsities. Every setting is an environment variable; further run.py flags go on the command line:
#     RATIOS="0.9 0.95" SEEDS="1 2 3" DEVICE=cuda bash scripts/cifar100_resnet.sh --val_size 0.1
# Finished runs are skipped and interrupted ones resumed, so the same command goes on after any stop.
# SMOKE=1 runs the whole path on a few images in two minutes on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}

if [ "${SMOKE:-0}" = 1 ]; then
    : "${DEPTH:=8}" "${WIDEN_FACTOR:=1}" "${N_EPOCHS:=2}" "${N_EPOCHS_PRETRAIN:=2}" "${LR_MILESTONES:=1}"
    : "${LR_MILESTONES_PRETRAIN:=1}" "${RATIOS:=0.9 0.98}" "${DEVICE:=cpu}" "${RESULTS_ROOT:=results/smoke}"
    : "${ROOT:=${DATA_ROOT:-data}}" "${VERIFY_DATA:=0}"
    set -- --limit_train 1000 --limit_test 500 --monte_carlo_samples 200 --monte_carlo_trials 2 "$@"
fi
: "${MODES:=sparse-finetune sparse-scratch}" "${RATIOS:=0.85 0.9 0.92 0.94 0.95 0.97 0.98}" "${SEEDS:=1}"
: "${DEPTH:=32}" "${WIDEN_FACTOR:=4}" "${N_EPOCHS:=250}" "${N_EPOCHS_PRETRAIN:=200}"
: "${LR:=0.1}" "${LR_MILESTONES:=100-150-200}" "${LR_MILESTONES_PRETRAIN:=100-150}" "${BATCH_SIZE:=128}" "${PRECISION:=fp32}"
: "${SELECT:=test}" "${DEVICE:=cuda}" "${ROOT:=data}" "${VERIFY_DATA:=1}" "${RESULTS_ROOT:=results}"

run() {
    "$PYTHON" run.py --config scripts/presets/cifar100_resnet32x4.yaml --root "$ROOT" --verify_data "$VERIFY_DATA" \
        --depth "$DEPTH" --widen_factor "$WIDEN_FACTOR" --lr "$LR" --batch_size "$BATCH_SIZE" --precision "$PRECISION" \
        --select "$SELECT" --device "$DEVICE" --results_root "$RESULTS_ROOT" "$@"
}

for seed in $SEEDS; do
    run --mode dense --random_state "$seed" --n_epochs "$N_EPOCHS_PRETRAIN" --lr_milestones "$LR_MILESTONES_PRETRAIN" "$@"
    for mode in $MODES; do
        for ratio in $RATIOS; do
            run --mode "$mode" --prune_ratio "$ratio" --random_state "$seed" --n_epochs "$N_EPOCHS" \
                --lr_milestones "$LR_MILESTONES" --n_epochs_pretrain "$N_EPOCHS_PRETRAIN" \
                --lr_milestones_pretrain "$LR_MILESTONES_PRETRAIN" "$@"
        done
    done
done
"$PYTHON" experiment.py compare --results_root "$RESULTS_ROOT"

#!/usr/bin/env bash
# The paper's sweep behind figure 1 and table 2: ResNet-32x4 on CIFAR-100, dense, then finetuned and from scratch at eight
# sparsities, and the report over it. A front to `experiment.py sweep scripts/paper/figure1.yaml` whose settings are environment
# variables; further run.py flags, and --jobs, --dry_run, --retry, go on the command line:
#     RATIOS="0.9 0.95" SEEDS="1 2 3" DEVICE=cuda bash scripts/cifar100_resnet.sh --val_size 0.1 --jobs 2
# Finished runs are skipped and interrupted ones resumed, so the same command goes on after any stop.
# SMOKE=1 runs the whole path on a few images in two minutes on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}

if [ "${SMOKE:-0}" = 1 ]; then
    : "${DEPTH:=8}" "${WIDEN_FACTOR:=1}" "${N_EPOCHS:=2}" "${N_EPOCHS_PRETRAIN:=2}" "${LR_MILESTONES:=1}"
    : "${LR_MILESTONES_PRETRAIN:=1}" "${RATIOS:=0.9 0.98}" "${SEEDS:=1}" "${DEVICE:=cpu}" "${RESULTS_ROOT:=results/smoke}"
    : "${ROOT:=${DATA_ROOT:-data}}" "${VERIFY_DATA:=0}"
    set -- --limit_train 1000 --limit_test 500 --monte_carlo_samples 200 --monte_carlo_trials 2 "$@"
fi
: "${RESULTS_ROOT:=results}"

flags=(--results_root "$RESULTS_ROOT")
for name in DEPTH WIDEN_FACTOR N_EPOCHS N_EPOCHS_PRETRAIN LR LR_MILESTONES LR_MILESTONES_PRETRAIN BATCH_SIZE PRECISION SELECT \
    DEVICE ROOT VERIFY_DATA; do
    [ -z "${!name:-}" ] || flags+=("--${name,,}" "${!name}")
done
for name in MODES:mode RATIOS:prune_ratio SEEDS:random_state; do
    list=${name%:*}
    [ -z "${!list:-}" ] || flags+=("--${name#*:}" "${!list// /,}")
done
"$PYTHON" experiment.py sweep scripts/paper/figure1.yaml "${flags[@]}" "$@"
[ ! -d "$RESULTS_ROOT" ] || "$PYTHON" experiment.py report "$RESULTS_ROOT" # a dry run makes none

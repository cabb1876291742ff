#!/usr/bin/env bash
# The paper in one command: every sweep of scripts/paper, figures 6-10 for one pair of runs, and the report over all of it.
#     ROOT=data bash scripts/paper.sh small              # small versions of all of it, for two cores
#     ROOT=data JOBS=8 DEVICE=cuda bash scripts/paper.sh # at the paper's scale, for GPUs
# ROOT is the folder of the data (cifar-100-python, toy/var_u.mat, ...; published files are downloaded), VERIFY_DATA=0 admits other
# files of the same layout. The same command goes on after any stop.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
case ${1:-} in
    "") sweeps=scripts/paper results=${RESULTS_ROOT:-results/paper} epochs=250 disagree_at=0.97 flags=() ;;
    small) sweeps=scripts/paper/small results=${RESULTS_ROOT:-results/paper_small} epochs=40 disagree_at=0.9 flags=() ;;
    *) echo "paper.sh: error: $1: say small, or nothing for the paper's scale" >&2 && exit 2 ;;
esac
root=${ROOT:-data}
flags+=(--results_root "$results" --jobs "${JOBS:-2}")
[ -z "${DEVICE:-}" ] || flags+=(--device "$DEVICE")

for name in figure1 figure4 figure11 figure3 fair_budget; do
    data=(--root "$root" --verify_data "${VERIFY_DATA:-1}")
    case $name:${1:-} in
        figure3:*) [ ! -e "$root/toy/var_u.mat" ] && data=() || data=(--root "$root/toy") ;; # generated where there is no file
        figure11:small) data=() ;;                                                           # digits need no file
    esac
    echo "$name"
    "$PYTHON" experiment.py sweep "$sweeps/$name.yaml" "${data[@]}" "${flags[@]}"
done
run() { echo "$results"/cifar100/*/"$1/l1-$2-lr"*"-e$epochs-s1-"*; }
"$PYTHON" experiment.py interpolate "$(run sparse-scratch 0.9)" "$(run sparse-finetune 0.9)"
"$PYTHON" experiment.py disagree "$(run sparse-scratch "$disagree_at")" "$(run sparse-finetune "$disagree_at")"
"$PYTHON" experiment.py report "$results" --png 1 --pdf 1

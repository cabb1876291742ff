#!/usr/bin/env bash
# Table 2 of the paper at a size that two cores train in about an hour: Fisher trace, Hessian trace and Jacobian norm with
# standard errors for the dense, the finetuned and the from-scratch solution at three sparsities. ResNet-20 of width 1 on
# 5,000 images of CIFAR-100, memorised without augmentation. ROOT names the folder of the data; the other settings of
# cifar100_resnet.sh act too:
#     ROOT=data SEEDS="1 2 3" bash scripts/table2.sh
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DEPTH:=20}" "${WIDEN_FACTOR:=1}" "${N_EPOCHS:=40}" "${N_EPOCHS_PRETRAIN:=40}" "${LR:=0.05}" "${BATCH_SIZE:=32}"
: "${RATIOS:=0.7 0.8 0.9}" "${PRECISION:=bf16}" "${SELECT:=last}" "${DEVICE:=cpu}" "${RESULTS_ROOT:=results/table2}"
export DEPTH WIDEN_FACTOR N_EPOCHS N_EPOCHS_PRETRAIN LR BATCH_SIZE RATIOS PRECISION SELECT DEVICE RESULTS_ROOT
exec bash scripts/cifar100_resnet.sh --lr_schedule cosine --augment none --limit_train 5000 --limit_test 2000 \
    --train_eval running --save_snr 0 --save_hessian 1 --save_jacobian 1 --metric_rtol 0.02 "$@"

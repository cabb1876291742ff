#!/usr/bin/env python
"""Whether runs with sparse steps come to the same science as the dense runs of the same seeds.

    python scripts/compare_sparse_steps.py --root ../shared/data  # about 11 minutes of one core

Every network is trained from each seed twice, with --sparse_step 1 and 0, on images of ten classes of CIFAR-100, with the
10 % largest weights of its initialisation, or with masks that RigL changes. Shown are the seeds' mean test accuracy and
training loss with their standard deviations, and the difference sparse - dense of the same seeds: its mean with a 95 %
interval (Student's t), beside the difference of a dense run in two threads to the one in one, which is rounding as well.
Runs that --results_root has are not repeated.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.interval import half_interval
from helper.schema.config import unflatten
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.main import train_run

RESNET = {"net_name": "resnet", "depth": 8, "widen_factor": 1, "lr": 0.05}
WAYS = {
    "ResNet-8x1": RESNET | {"mode": "at-init"},
    "ResNet-8x1, RigL": RESNET | {"mode": "dynamic", "mask_every": 10},
    "MLP 512-256": {"net_name": "mlp", "hidden_dims": "512-256", "lr": 0.05, "mode": "at-init"},
}
COMMON = {
    "loader_name": "cifar100", "verify_data": False, "download": False, "limit_classes": 10, "prune_ratio": 0.9, "n_epochs": 6,
    "lr_milestones": 5, "batch_size": 64, "figures": False, "save_snr": False, "save_fisher": False, "save_epochs": "none",
}  # fmt: skip
STEPS = {"dense": ("0", 1), "sparse": ("1", 1), "dense in two threads": ("0", 2)}  # --sparse_step, threads
COLUMNS = ("acc_test", "loss_train")


def results(args: argparse.Namespace, flags: dict[str, object], steps: str, seed: int) -> dict[str, float]:
    """Those of one run in the end."""
    sparse_step, threads = STEPS[steps]
    torch.set_num_threads(threads)
    where = {"root": args.root, "results_root": str(args.results_root / steps.replace(" ", "_")), "limit_train": args.images}
    config = unflatten(RunConfig, COMMON | flags | where | {"sparse_step": sparse_step, "random_state": seed})
    summary = RunFolder(train_run(config)).read_summary()
    return {name: summary[name] for name in COLUMNS}


def mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def difference(values: list[float], dense: list[float]) -> str:
    pairs = [a - b for a, b in zip(values, dense, strict=True)]
    half = half_interval(statistics.stdev(pairs) / len(pairs) ** 0.5, len(pairs) - 1)
    return f"{statistics.mean(pairs):+.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="../shared/data", help="folder of CIFAR-100")
    parser.add_argument("--results_root", type=Path, help="folder of the runs; default: one that is removed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="to train on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.results_root = args.results_root or Path(folder)
        print("| network | quantity | dense: mean ± sd | sparse: mean ± sd | sparse - dense | two threads - one |")
        print("|---|---|---|---|---|---|")
        for name, flags in WAYS.items():
            found = {way: [results(args, flags, way, seed) for seed in range(1, args.seeds + 1)] for way in STEPS}
            for column in COLUMNS:
                dense, sparse, threads = ([run[column] for run in found[way]] for way in STEPS)
                spread = f"{mean_and_deviation(dense)} | {mean_and_deviation(sparse)}"
                print(
                    f"| {name} | {column} | {spread} | {difference(sparse, dense)} | {difference(threads, dense)} |", flush=True
                )


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""What a training step with a penalty costs, or a sharpness-aware one, in ordinary steps.

    python scripts/benchmark_steps.py --root ../shared/data          # about 5 minutes on 2 cores

ResNet-20 of width 1 on CIFAR-100 and a multilayer perceptron on the digits, batch size 128, dense and with 90 % of the weights
pruned. One process, the ways in turn within every round, each a number of steps; medians of the processor time over the
rounds, and ratios taken within rounds, with their smallest and largest. Beside them the ratio of multiply-accumulates.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.mask import Mask
from helper.pruner import prune
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from loader.dataset import Dataset
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.meter import PASSES
from optim.step_price import mean_passes
from optim.trainer import Trainer

BATCH, RATIO = 128, 0.9
WAYS = {
    "ordinary": {},
    "`--reg_type gradient`": {"reg_type": "gradient"},
    "`--reg_type gradient --reg_method difference`": {"reg_type": "gradient", "reg_method": "difference"},
    "`--reg_type fisher`": {"reg_type": "fisher"},
    "`--reg_type fisher --reg_method difference`": {"reg_type": "fisher", "reg_method": "difference"},
    "`--reg_type jacobian`": {"reg_type": "jacobian"},
    "`--sharpness_aware 0.05`": {"sharpness_aware": 0.05},
}
NETWORKS = {
    "mlp": {"hidden_dims": "512-512"},
    "resnet": {"net_name": "resnet", "depth": 20, "widen_factor": 1},
}


def steps_of(name: str, dataset: Dataset, pruned: bool, n_steps: int, flags: dict) -> Callable[[], float]:
    """Takes steps of a way; the processor time of one."""
    config = NetworkConfig(**NETWORKS[name])
    network = build_network(config, dataset.input_shape, dataset.n_classes, stream(0, "init"))
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO) if pruned else Mask()
    network.to(memory_format=torch.channels_last)
    trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, lr=0.01, **flags), seed=0, mask=mask)
    network.train()
    batches = list(trainer.remaining_batches())[:n_steps]

    def take() -> float:
        started = time.process_time()
        for step, rows in batches:
            trainer.train_step(step, rows)
        return (time.process_time() - started) / len(batches)

    return take


def table(name: str, dataset: Dataset, pruned: bool, n_steps: int, n_rounds: int) -> None:
    ways = {label: steps_of(name, dataset, pruned, n_steps, flags) for label, flags in WAYS.items()}
    measured: dict[str, list[float]] = {label: [] for label in ways}
    for take in ways.values():
        take()  # warms up
    for _ in range(n_rounds):
        for label, take in ways.items():
            measured[label].append(take())
    print(f"\n{name}, {'90 % pruned' if pruned else 'dense'}\n\n| step | ms | × | multiply-accumulates, × |\n|---|---|---|---|")
    for label, seconds in measured.items():
        ratios = [a / b for a, b in zip(seconds, measured["ordinary"], strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        passes = mean_passes(TrainConfig(**WAYS[label])) / PASSES
        print(f"| {label} | {1000 * statistics.median(seconds):.1f} | {shown} | {passes:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each way in a round")
    options = parser.parse_args()
    keep_freed_memory()
    cifar = DataConfig(
        loader_name="cifar100", root=options.root, verify_data=False, limit_train=2048, limit_test=100, download=False
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds of {options.steps} steps")
    for name, config in (("mlp", DataConfig()), ("resnet", cifar)):
        dataset = load_dataset(config)
        for pruned in (False, True):
            table(name, dataset, pruned, options.steps, options.rounds)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""What it costs to score a network's weights for pruning, and to change a mask while training, on real CIFAR-100 images.

    python scripts/benchmark_masks.py --root DATA [--images 1000] [--rounds 3]

A ResNet-20 of width 1 as it is drawn, and batches of 128 training images. Each score in a process of its own: seconds of one
call of prune with its default number of rounds (100 of synflow), the median over the rounds with the smallest and the largest,
and by how much the first call raises the process's peak of resident memory (Linux only).

Then a training step of the same network, and of a wide MLP, in which the mask changes, against the steps without a change
before and after it, all in one process: the ratio of their times, as medians with quartiles, and what changes every 100 steps
take of the throughput. RigL, SET and gradual pruning; and the hooks alone, with no change in the step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.pruner import SCORES, prune
from helper.schema.config import unflatten
from helper.system.memory import keep_freed_memory, peak_memory_mb
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import RunConfig
from optim.model import start
from optim.trainer import Trainer

BATCH, RATIO = 128, 0.95
CPU = torch.device("cpu")


def score(method: str, root: str, n_images: int, n_rounds: int) -> dict[str, list[float] | float]:
    """{"seconds": of every call, "peak": MiB by which the first one raises the peak}, measured in this process."""
    data = DataConfig(
        loader_name="cifar100", root=root, verify_data=False, limit_train=n_images, limit_test=100, download=False
    )
    dataset = load_dataset(data)
    config = NetworkConfig(net_name="resnet", depth=20, widen_factor=1)
    network = build_network(config, dataset.input_shape, dataset.n_classes, stream(0, "init"))
    inputs, labels = dataset.normalise(dataset.train.inputs), dataset.train.labels
    keep_freed_memory()  # from here on: what reading the files took has gone back
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of reading the files, is forgotten
    before, seconds, peak = peak_memory_mb(CPU), [], 0.0
    for _ in range(n_rounds):
        start = time.perf_counter()
        prune(
            network, stream(0, "prune"), prune_ratio=RATIO, prune_method=method, input_shape=dataset.input_shape,
            batches=lambda: zip(inputs.split(BATCH), labels.split(BATCH), strict=True),
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        peak = peak or peak_memory_mb(CPU) - before
    return {"seconds": seconds, "peak": peak}


def scoring(root: str, n_images: int, n_rounds: int) -> None:
    """The table, of a process for each score."""
    print(f"\nscores of a ResNet-20, {n_images} images in batches of {BATCH}")
    print("\n| score | rounds | seconds | peak of the process, MiB |\n|---|---|---|---|")
    for method in SCORES:
        command = [sys.executable, __file__, "--root", root, "--images", n_images, "--rounds", n_rounds, "--score", method]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        seconds = found["seconds"]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"| `{method}` | {SCORES[method].rounds} | {spread} | +{found['peak']:.0f} |", flush=True)


# ------------------------------------------------------------------------------------------------- changes of a mask

NETWORKS = {
    "ResNet-20": {"net_name": "resnet", "depth": 20, "widen_factor": 1},
    "MLP 3072-1024-512": {"net_name": "mlp", "hidden_dims": "1024-512"},
}
WAYS = {
    "RigL": {"mode": "dynamic"},
    "SET": {"mode": "dynamic", "growth": "random"},
    "gradual": {"mode": "gradual", "mask_begin": 0},
    "static, no callback": {"mode": "at-init", "prune_method": "random"},
}
EPOCHS = 1000  # of the schedule, of which only a little is run


def changes(root: str, n_changes: int) -> None:
    """The table, all in this process."""
    print(f"\nsteps in which the mask changes against those around them, batches of {BATCH}, {n_changes} changes")
    print("\n| network | way | a step, ms | with a change, x | lost by changes every 100 steps |\n|---|---|---|---|---|")
    keep_freed_memory()
    for name, network in NETWORKS.items():
        for way, flags in WAYS.items():
            ordinary, ratios = step_times(root, network, flags, n_changes)
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells = f"{1000 * ordinary:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) | {(middle - 1) / 100:.2%}"
            print(f"| {name} | {way} | {cells} |", flush=True)


def step_times(root: str, network: dict, flags: dict, n_changes: int) -> tuple[float, list[float]]:
    """(median seconds of a step without a change, ratios of a step with one to the mean of its neighbours)."""
    data = {"loader_name": "cifar100", "root": root, "verify_data": False, "limit_train": 5120, "limit_test": 100}
    settings = {
        "n_epochs": EPOCHS,
        "lr": 0.01,
        "lr_milestones": EPOCHS,
        "prune_ratio": 0.9,
        "download": False,
        "sparse_step": "0",
    }
    masks = {"mask_every": 4} if flags["mode"] != "at-init" else {}
    config = unflatten(RunConfig, {**data, **network, **settings, **masks, **flags})
    dataset = load_dataset(config.data)
    begun = start(config, dataset, None)
    begun.network.to(memory_format=torch.channels_last)
    updater = config.mode_spec.updater
    trainer = Trainer(
        begun.network, dataset, config.train, seed=1, callbacks=[updater(config)] if updater else [], mask=begun.mask
    )
    trainer.emit("on_start")
    trainer.network.train()
    seconds = []
    rows = torch.arange(BATCH)
    for step in range(4 * n_changes + 6):
        trainer.epoch, trainer.step = divmod(step, trainer.steps_per_epoch)
        started = time.perf_counter()
        trainer.train_step(trainer.step, rows)
        seconds.append(time.perf_counter() - started)
    ratios = [2 * seconds[i] / (seconds[i - 1] + seconds[i + 1]) for i in range(4, len(seconds) - 1, 4)]
    return statistics.median(t for i, t in enumerate(seconds) if i % 4), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--images", type=int, default=1000, help="training images that are scored on, at least 100")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each score")
    parser.add_argument("--changes", type=int, default=15, help="of the mask, for each network and way")
    parser.add_argument("--score", choices=SCORES, help="this score alone, in this process, as JSON")
    options = parser.parse_args()
    if options.score:
        print(json.dumps(score(options.score, options.root, options.images, options.rounds)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    scoring(options.root, options.images, options.rounds)
    changes(options.root, options.changes)


if __name__ == "__main__":
    main()

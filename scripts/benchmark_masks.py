#!/usr/bin/env python
"""What it costs to score a network's weights once for pruning, on real CIFAR-100 images.

    python scripts/benchmark_masks.py --root DATA [--images 1000] [--rounds 3]

A ResNet-20 of width 1 as it is drawn, and batches of 128 training images. Each score in a process of its own: seconds of one
call of prune with its default number of rounds (100 of synflow), the median over the rounds with the smallest and the largest,
and by how much the first call raises the process's peak of resident memory (Linux only).
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
from helper.system.memory import keep_freed_memory, peak_memory_mb
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--images", type=int, default=1000, help="training images that are scored on, at least 100")
    parser.add_argument("--rounds", type=int, default=3, help="calls of each score")
    parser.add_argument("--score", choices=SCORES, help="this score alone, in this process, as JSON")
    options = parser.parse_args()
    if options.score:
        print(json.dumps(score(options.score, options.root, options.images, options.rounds)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    scoring(options.root, options.images, options.rounds)


if __name__ == "__main__":
    main()

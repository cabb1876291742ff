#!/usr/bin/env python
"""Training speed on a quiet machine and on one that others use, by how long PyTorch's threads spin (helper/system/threads.py).

    python scripts/benchmark_shared.py              # about 8 minutes on 2 cores; --rounds 1 --seconds 1 tries it out

An MLP 128-64 on digits and a ResNet-20 of width 1 on made-up 32x32 images, batch size 128. Every measurement is a process of
its own with as many threads as there are cores, since libgomp reads its environment once; the ways take turns within a
round, in the reverse order in every other one. Medians over the rounds with their smallest and largest; ratios to libgomp's
own spins are taken within rounds. Busy: beside --busy processes that do nothing but compute.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.system.threads import CHOSEN, brief_spins

OWN = "libgomp's own"
WAYS = {OWN: {}, "run.py": brief_spins({}), "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
NETWORKS = ("MLP-128-64", "ResNet-20")
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of every measurement, after a warm-up")
    parser.add_argument("--busy", type=int, default=4, help="other processes of the busy machine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--measure", choices=NETWORKS, help="what the processes are started with")
    options = parser.parse_args()
    if options.measure:
        print(images_per_second(options.measure, options.seconds))
        return
    print(
        f"{options.threads} threads, images/s\n\n| network | machine | spins | images/s | × |\n|---|---|---|---|---|",
        flush=True,
    )
    for network in options.networks:
        for n_others in (0, options.busy):
            with others(n_others):
                speeds = rounds_of(network, options)
            print("\n".join(rows_of(network, n_others, speeds)), flush=True)


def rounds_of(network: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """{way: images/s in every round}"""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(options.rounds):
        for way in list(WAYS)[:: 1 if round_ % 2 == 0 else -1]:
            speeds[way].append(measured(network, way, options))
    return speeds


def measured(network: str, way: str, options: argparse.Namespace) -> float:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN} | WAYS[way]
    environment |= {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, "--measure", network, "--seconds", str(options.seconds)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def others(n: int) -> Iterator[None]:
    """Inside, n processes compute without end."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def rows_of(network: str, n_others: int, speeds: dict[str, list[float]]) -> list[str]:
    machine = f"{n_others} others" if n_others else "quiet"
    rows = []
    for way, found in speeds.items():
        ratios = [a / b for a, b in zip(found, speeds[OWN], strict=True)]
        setting = " ".join(f"{name}={value}" for name, value in WAYS[way].items()) or way
        speed = f"{statistics.median(found):,.0f} ({min(found):,.0f}-{max(found):,.0f})"
        rows.append(
            f"| {network} | {machine} | {setting} | {speed} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    return rows


# ------------------------------------------------------------------------------------------------ in a process of its own


def images_per_second(name: str, seconds: float) -> float:
    """Of training steps by the wall clock, over whole steps of at least so many seconds."""
    trainer = trainer_of(name)
    trainer.emit("on_start")
    trainer.network.train()
    started, images, warm = 0.0, 0, False
    while not warm or time.perf_counter() - started < seconds:
        for step, rows in trainer.remaining_batches():
            trainer.train_step(step, rows)
            images += len(rows)
            if warm and time.perf_counter() - started >= seconds:
                break
            if not warm and step == 5:
                started, images, warm = time.perf_counter(), 0, True
    return images / (time.perf_counter() - started)


def trainer_of(name: str):
    """A `Trainer` of the network on data that need no file."""
    from helper.system.memory import keep_freed_memory
    from helper.system.seeds import stream
    from loader.main import DataConfig, load_dataset
    from network.main import NetworkConfig, build_network
    from optim.config import TrainConfig
    from optim.trainer import Trainer

    keep_freed_memory()
    digits = load_dataset(DataConfig())
    dataset = digits if name.startswith("MLP") else made_up_images(digits)
    config = NetworkConfig() if name.startswith("MLP") else NetworkConfig(net_name="resnet", depth=20, widen_factor=1)
    network = build_network(config, dataset.input_shape, dataset.n_classes, stream(0, "init"))
    return Trainer(network, dataset, TrainConfig(batch_size=BATCH, lr=0.01), seed=0, callbacks=[])


def made_up_images(digits):
    """A `Dataset` of 1,280 random 32x32 images with the augmentation of CIFAR."""
    import dataclasses

    import torch

    from loader.dataset import Split

    generator, n = torch.Generator().manual_seed(0), 10 * BATCH
    images = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(digits.n_classes, (n,), generator=generator)
    split = Split(images, labels, labels, torch.arange(n))
    sizes = {"scale": 255.0, "mean": (0.5,) * 3, "std": (0.25,) * 3, "augmented": True}
    return dataclasses.replace(digits, train=split, val=split[:0], test=split[:0], **sizes)


if __name__ == "__main__":
    main()

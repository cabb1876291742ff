#!/usr/bin/env python
"""Training and evaluation speed against the ordinary way (scripts/ordinary.py), on real CIFAR-100 images.

    python scripts/benchmark_training.py --root ../shared/data          # about 12 minutes on 2 cores

ResNet-20 of width 1 with 90 % of its weights pruned, batch size 128, 5,120 training and 1,024 test images. One process, the
ways in turn within every round; medians over the rounds, and ratios taken within rounds, with their smallest and largest.
The ordinary way runs with the thresholds at which glibc's allocator settles by itself, ours with
helper.system.memory.keep_freed_memory, as run.py does.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.mask import Mask
from helper.metrics.evaluation import evaluate
from helper.metrics.snr import GradientMoments
from helper.pruner import prune
from helper.system.memory import keep_freed_memory, set_thresholds
from helper.system.seeds import stream
from helper.system.versions import ROOT
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.trainer import Trainer
from scripts import ordinary

BATCH, RATIO = 128, 0.9
Times = dict[str, float]  # seconds of {train, evaluation} of one epoch


def fresh_network(dataset) -> torch.nn.Module:
    config = NetworkConfig(net_name="resnet", depth=20, widen_factor=1)
    return build_network(config, dataset.input_shape, dataset.n_classes, stream(0, "init"))


def ordinary_way(dataset, n_workers: int) -> Callable[[], Times]:
    network = fresh_network(dataset)
    ordinary.prune_globally(network, RATIO)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=2e-4)
    shuffled, train, test = ordinary.loaders(dataset, BATCH, n_workers)

    def epoch() -> Times:
        set_thresholds(mmap_threshold=32 << 20, trim_threshold=64 << 20)  # where its own dynamic rule settles
        start = time.perf_counter()
        ordinary.train_epoch(network, shuffled, optimizer)
        trained = time.perf_counter()
        ordinary.accuracy(network, train)
        ordinary.accuracy(network, test)
        ordinary.gradient_snr(network, train)
        return {"train": trained - start, "evaluation": time.perf_counter() - trained}

    return epoch


def our_way(dataset, *, masked: bool = True, **flags) -> Callable[[], Times]:
    network = fresh_network(dataset)
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO) if masked else Mask()
    network.to(memory_format=torch.channels_last)
    trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, sparse_step="0", **flags), seed=0, mask=mask)

    def epoch() -> Times:
        keep_freed_memory()
        start = time.perf_counter()
        network.train()
        for step, rows in trainer.remaining_batches():
            trainer.train_step(step, rows)
        trained = time.perf_counter()
        moments = GradientMoments(network, mask)
        evaluate(network, dataset.batches(dataset.train, BATCH), moments=moments, batch_size=BATCH)
        moments.table()
        evaluate(network, dataset.batches(dataset.test, BATCH))
        return {"train": trained - start, "evaluation": time.perf_counter() - trained}

    return epoch


def in_turn(ways: dict[str, Callable[[], Times]], n_rounds: int) -> dict[str, list[Times]]:
    """Times of every way in every round; each way runs once before, unmeasured (compilation, worker start)."""
    for name, epoch in ways.items():
        start = time.perf_counter()
        epoch()
        print(f"first epoch, {name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    measured: dict[str, list[Times]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, epoch in ways.items():
            measured[name].append(epoch())
    return measured


def ratio(rival: list[Times], ours: list[Times], seconds: Callable[[Times], float]) -> str:
    ratios = [seconds(a) / seconds(b) for a, b in zip(rival, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def speed_table(measured: dict[str, list[Times]], n_images: int) -> None:
    rival = next(iter(measured.values()))
    print("\n| way | training, images/s | x | whole epoch with evaluation and SNR, s | x |\n|---|---|---|---|---|")
    for name, times in measured.items():
        rate = n_images / statistics.median(t["train"] for t in times)
        whole = statistics.median(sum(t.values()) for t in times)
        gains = ratio(rival, times, lambda t: t["train"]), ratio(rival, times, lambda t: sum(t.values()))
        print(f"| {name} | {rate:.0f} | {gains[0]} | {whole:.1f} | {gains[1]} |")


def mask_cost(dataset, n_rounds: int) -> None:
    """Share of a step that zeroing the pruned weights' gradients takes: it alone against the whole step."""
    network = fresh_network(dataset).to(memory_format=torch.channels_last)
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO)
    trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, precision="bf16"), seed=0, mask=mask)
    shares = []
    for step, rows in list(trainer.remaining_batches())[: 4 * n_rounds]:
        start = time.perf_counter()
        trainer.train_step(step, rows)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        trainer.mask_owner.mask_gradients()
        shares.append((time.perf_counter() - start) / whole)
    print(f"\nmask: {statistics.median(shares):.2%} of a bf16 step (largest of {len(shares)}: {max(shares):.2%})")


def whole_run(*flags: str) -> None:
    """Wall time and peak resident memory of run.py in a process of its own."""
    with tempfile.TemporaryDirectory() as results:
        start = time.perf_counter()
        command = [sys.executable, "run.py", "--results_root", results, *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        summary = json.loads(Path(done.stdout.splitlines()[-1], "summary.json").read_text())
    print(f"\nrun.py {' '.join(flags)}\n{seconds:.1f} s, peak resident memory {summary['peak_memory_mb']:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the ordinary way")
    options = parser.parse_args()
    config = DataConfig(
        loader_name="cifar100", root=options.root, verify_data=False, limit_train=5120, limit_test=1024, download=False
    )
    dataset = load_dataset(config)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    ways = {
        "ordinary, float32": ordinary_way(dataset, options.workers),
        "run.py, fp32": our_way(dataset),
        "run.py, bf16": our_way(dataset, precision="bf16"),
        "run.py, fp32 --compile 1": our_way(dataset, compile=True),
        "run.py, bf16 --compile 1": our_way(dataset, precision="bf16", compile=True),
    }
    speed_table(in_turn(ways, options.rounds), len(dataset.train))
    mask_cost(dataset, options.rounds)
    whole_run()
    flags = "--loader_name cifar100 --verify_data 0 --net_name resnet --depth 20 --widen_factor 1 --n_epochs 1 --precision bf16"
    flags += " --save_snr 0 --train_eval running --save_fisher 0"
    whole_run(*flags.split(), "--root", str(Path(options.root).resolve()))


if __name__ == "__main__":
    main()

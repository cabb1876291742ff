#!/usr/bin/env python
"""Training and evaluation speed against the ordinary way (scripts/ordinary.py), on real CIFAR-100 images.

    python scripts/benchmark_training.py --root ../shared/data          # about 20 minutes on 2 cores
    python scripts/benchmark_training.py --root ../shared/data --clock cpu --workers 0 --compile 0      # on a busy machine

ResNet-20 of width 1 with 90 % of its weights pruned, batch size 128, 5,120 training and 1,024 test images. One process, the
ways in turn within every round; medians over the rounds, and ratios taken within rounds, with their smallest and largest.
The ordinary way takes the SNR after every epoch; ours after every epoch, and on average over a run of 250 epochs after the
31 that --snr_every has by itself. The ordinary way runs with the thresholds at which glibc's allocator settles by itself,
ours with helper.system.memory.keep_freed_memory, as run.py does. In the end, how far the SNR of --snr_precision bf16 is off.
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
from helper.metrics.quantities.snr import snr_epochs
from helper.pruner import prune
from helper.system.memory import keep_freed_memory, set_thresholds
from helper.system.seeds import stream
from helper.system.versions import ROOT
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.measuring import evaluate_training
from optim.trainer import Trainer
from scripts import ordinary

BATCH, RATIO, EPOCHS = 128, 0.9, 250
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Times = dict[str, float]  # seconds of {train, evaluation with SNR, evaluation without} of one epoch
clock = time.perf_counter


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
        start = clock()
        ordinary.train_epoch(network, shuffled, optimizer)
        trained = clock()
        ordinary.accuracy(network, train)
        ordinary.accuracy(network, test)
        ordinary.gradient_snr(network, train)
        evaluated = clock() - trained
        return {"train": trained - start, "evaluation": evaluated, "without": evaluated}

    return epoch


def our_way(dataset, *, masked: bool = True, snr_precision: str = "fp32", **flags) -> Callable[[], Times]:
    network = fresh_network(dataset)
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO) if masked else Mask()
    network.to(memory_format=torch.channels_last)
    trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, sparse_step="0", **flags), seed=0, mask=mask)

    def evaluation(snr: bool) -> float:
        start = clock()
        evaluate_training(network, mask, dataset, BATCH, 0, snr=snr, precision=snr_precision if snr else "fp32")
        evaluate(network, dataset.batches(dataset.test, BATCH))
        return clock() - start

    def epoch() -> Times:
        keep_freed_memory()
        start = clock()
        network.train()
        for step, rows in trainer.remaining_batches():
            trainer.train_step(step, rows)
        return {"train": clock() - start, "evaluation": evaluation(True), "without": evaluation(False)}

    return epoch


def with_snr(times: Times) -> float:
    """Seconds of an epoch after which the SNR is taken."""
    return times["train"] + times["evaluation"]


def on_average(times: Times) -> float:
    """Seconds of an epoch of a run of EPOCHS."""
    share = len(snr_epochs(None, EPOCHS)) / (EPOCHS + 1)
    return times["train"] + share * times["evaluation"] + (1 - share) * times["without"]


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
    print("\n| way | training, images/s | x | epoch with evaluation and SNR, s | x | on average over a run, s | x |")
    print("|---|---|---|---|---|---|---|")
    for name, times in measured.items():
        cells = [f"{n_images / statistics.median(t['train'] for t in times):.0f}", ratio(rival, times, lambda t: t["train"])]
        for seconds in (with_snr, on_average):
            cells += [f"{statistics.median(map(seconds, times)):.1f}", ratio(rival, times, seconds)]
        print(f"| {name} | {' | '.join(cells)} |")


def snr_errors(dataset) -> None:
    """How far SNR, loss and accuracy in bfloat16 are from those in float32, before and after epochs of training."""
    network = fresh_network(dataset)
    mask = prune(network, stream(0, "prune"), prune_ratio=RATIO)
    network.to(memory_format=torch.channels_last)
    trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, precision="bf16", sparse_step="0"), seed=0, mask=mask)
    print(
        "\n| epochs | SNR: median, largest relative difference | in standard errors | loss | accuracy |\n|---|---|---|---|---|"
    )
    for epochs in range(3):
        (means, rows), (rough, others) = (
            evaluate_training(network, mask, dataset, BATCH, 0, snr=True, precision=precision) for precision in ("fp32", "bf16")
        )
        moved = [abs(b["snr"] - a["snr"]) for a, b in zip(rows, others, strict=True)]
        relative = [m / row["snr"] for m, row in zip(moved, rows, strict=True)]
        errors = [m / row["standard_error"] for m, row in zip(moved, rows, strict=True)]
        cells = [f"{statistics.median(r):.2g}, {max(r):.2g}" for r in (relative, errors)]
        cells += [f"{rough[name] - means[name]:+.1e}" for name in ("loss", "acc")]
        print(f"| {epochs} | {' | '.join(cells)} |", flush=True)
        network.train()
        for step, batch in trainer.remaining_batches():
            trainer.train_step(step, batch)
        trainer.epoch += 1


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
    parser.add_argument("--images", type=int, default=5120, help="training images; a fifth as many for testing")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process, for which --workers 0 is fair")
    parser.add_argument("--compile", type=int, default=1, help="0: the compiled ways are left out")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of the ordinary way")
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    config = DataConfig(
        loader_name="cifar100", root=options.root, verify_data=False, limit_train=options.images,
        limit_test=options.images // 5, download=False,
    )  # fmt: skip
    dataset = load_dataset(config)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, {options.clock}")
    ways = {
        "ordinary, float32": ordinary_way(dataset, options.workers),
        "run.py, fp32": our_way(dataset),
        "run.py, fp32, SNR in bf16": our_way(dataset, snr_precision="bf16"),
        "run.py, bf16": our_way(dataset, precision="bf16"),
        "run.py, bf16, SNR in bf16": our_way(dataset, precision="bf16", snr_precision="bf16"),
    }
    if options.compile:
        ways["run.py, fp32 --compile 1"] = our_way(dataset, compile=True)
        ways["run.py, bf16 --compile 1"] = our_way(dataset, precision="bf16", compile=True)
    speed_table(in_turn(ways, options.rounds), len(dataset.train))
    snr_errors(dataset)
    if options.clock == "cpu":
        return
    mask_cost(dataset, options.rounds)
    whole_run()
    flags = "--loader_name cifar100 --verify_data 0 --net_name resnet --depth 20 --widen_factor 1 --n_epochs 1 --precision bf16"
    flags += " --save_snr 0 --train_eval running --save_fisher 0"
    whole_run(*flags.split(), "--root", str(Path(options.root).resolve()))


if __name__ == "__main__":
    main()

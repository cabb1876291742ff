#!/usr/bin/env python
"""What the numbers of docs/scaling.md rest on: costs of passes, states on disk, measuring at ImageNet's size.

    python scripts/benchmark_scaling.py [passes] [states] [imagenet] [queue]

One thread. The ImageNet part builds a ResNet-50 (He et al. 2016) of the blocks here and measures a Fisher trace of it over
a few random images of 224 pixels and 1,000 classes, which needs 2 GB of memory.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.metrics.cotangents import every_label, spectral_cotangents
from helper.metrics.fisher import fisher_trace
from helper.metrics.snr import GradientMoments
from helper.metrics.subject import Subject, signs
from helper.pruner import prune
from helper.schema.config import flatten, unflatten
from helper.system.memory import peak_memory_mb
from helper.system.seeds import stream
from loader.main import Sizes, published_sizes
from network.main import build_network
from network.resnet import Bottleneck
from optim.checkpoint import save_state
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import model_state
from study.sweeping.cost import data_of, time_steps
from study.sweeping.executor import LocalPool
from study.sweeping.job import Job
from study.sweeping.waiting import Lines
from study.sweeping.work import FLOAT, TENSOR, shape_for

IMAGENET = 1_281_167  # training images
NETWORKS = (
    {"loader_name": "toy", "hidden_dims": "64-32-32-18-18-6-6", "batch_size": 12}, {}, {"net_name": "mnist_lenet"},
    {"net_name": "resnet", "depth": 8, "widen_factor": 1}, {"net_name": "resnet", "depth": 8, "widen_factor": 4},
)  # fmt: skip


def resnet50(n_classes: int = 1000) -> nn.Module:
    stages, n_in = [], 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            stages.append(Bottleneck(n_in, width, stride if index == 0 else 1))
            n_in = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def passes() -> None:
    """Costs of forward and gradient passes relative to a training step, and a step's least time."""
    for flags in NETWORKS:
        config = unflatten(RunConfig, flags)
        speeds = min((time_steps(config) for _ in range(3)), key=lambda found: found.train)
        macs = shape_for(config, Sizes.of(data_of(config.data))).macs
        print(
            f"{config.data.loader_name}/{config.network.label}: step of {config.train.batch_size} "
            f"{1e3 * speeds.train * config.train.batch_size:.2f} ms, forward {speeds.forward / speeds.train:.2f}, "
            f"with gradients {speeds.gradient / speeds.train:.2f}, {macs / speeds.train / 1e9:.1f} G multiply-accumulates/s"
        )


def states() -> None:
    """Bytes of a state file against the formula."""
    config = unflatten(RunConfig, {"loader_name": "cifar100", "net_name": "resnet", "mode": "sparse-scratch"})
    sizes = published_sizes(config.data)
    network = build_network(config.network, sizes.input_shape, sizes.n_classes, stream(1, "init"))
    report_state(config.network.label, network, config, shape_for(config, sizes).tensors)


def report_state(name: str, network: nn.Module, config: RunConfig, tensors: int) -> None:
    mask = prune(network, stream(1, "prune"), **flatten(config.prune))
    n = sum(p.numel() for p in network.parameters())
    said = FLOAT * n + sum(b.nbytes for b in network.buffers()) + mask.n_weights + TENSOR * (tensors + len(mask))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pt")
        save_state(path, model_state(network, mask, 1))
        found = path.stat().st_size
    print(f"{name}: {n:,} parameters, state {found:,} bytes, formula {said:,}, with momentum {found + FLOAT * n:,}")


def imagenet() -> None:
    """Sizes and times at 1.28 million images of 224 pixels in 1,000 classes."""
    print(f"images {IMAGENET * 3 * 224**2 / 1e9:.1f} GB, labels and positions {IMAGENET * 3 * 8 / 1e6:.1f} MB")
    rows: list[Tensor] = []
    took = seconds(lambda: rows.extend(torch.randperm(IMAGENET, generator=stream(1, "order")).split(256)))
    print(f"order of an epoch {IMAGENET * 8 / 1e6:.1f} MB, {took:.2f} s with its {len(rows):,} batches")
    logits = torch.randn(64, 1000, generator=stream(1, "logits")) * 4
    took = seconds(lambda: spectral_cotangents(logits, signs((64, 1, 1001), stream(1, "signs"))))
    p = logits.double().softmax(1)
    whole = seconds(lambda: torch.linalg.eigh(torch.diag_embed(p[:4]) - p[:4, :, None] * p[:4, None]))
    print(
        f"spectral cotangents of an image {1e3 * took / 64:.2f} ms; eigenvectors of its whole 1,000 x 1,000 {whole / 4:.2f} s"
    )
    columns = every_label(logits[:8])
    print(f"cotangents of every label {columns.nbytes / 8 / 1e6:.1f} MB an image in float64, as much again on the way")
    network = resnet50()
    config = unflatten(RunConfig, {"mode": "sparse-scratch"})
    report_state("ResNet-50", network, config, len(network.state_dict()))
    moments = GradientMoments(network)
    print(f"SNR moments {sum(t.nbytes for t in (*moments.mean, *moments.squares)) / 1e6:.0f} MB, as much again in a step")
    images = torch.randn(8, 3, 224, 224, generator=stream(1, "images"))
    for size in (56, 112, 224):
        subject = Subject(network, images[..., :size, :size])
        bytes_ = subject.seen.bytes_per_example
        chunk = subject.chunk_size(2.0, 0.2)
        print(
            f"activations of an image of {size} pixels {bytes_ / 1e6:.1f} MB, {chunk} images a chunk at --metric_memory_mb 1000"
        )
    before = peak_memory_mb(torch.device("cpu"))
    found = fisher_trace(network, images, rtol=0, n_probes=2, generator=stream(1, "fisher"))
    step = seconds(lambda: nn.functional.cross_entropy(network(images), torch.zeros(8, dtype=torch.long)).backward())
    print(
        f"Tr F of 8 images, 2 draws each: {found.seconds:.1f} s, {found.seconds / 16:.2f} s a draw; forward and backward "
        f"{step / 8:.2f} s an image; peak of the process +{peak_memory_mb(torch.device('cpu')) - before:.0f} MiB"
    )


def queue() -> None:
    """What looking after a sweep of 10,000 runs takes, while two of them run."""

    class Sleeping(Job):
        command = ("sleep", "1000")

    with tempfile.TemporaryDirectory() as folder:
        pool = LocalPool(2)
        paths = [Path(folder, str(index)) for index in range(10_000)]
        jobs = [Sleeping(path.name, (), RunFolder(path), path.with_suffix(".log")) for path in paths]
        for index, job in enumerate(jobs):
            pool.submit(job, [] if index < 10 else ["0"])
        pool.poll()
        lines = Lines(jobs, pool)
        looked = min(seconds(pool.poll) for _ in range(20))
        shown = min(seconds(lines) for _ in range(20))
        pool.stop()
    print(
        f"10,000 jobs queued: {1e3 * looked:.3f} ms a look at them, {1e3 * shown:.2f} ms to see what to print, 5 times a second"
    )


PARTS = {"passes": passes, "states": states, "imagenet": imagenet, "queue": queue}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all")
    torch.set_num_threads(1)
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()

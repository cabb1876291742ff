#!/usr/bin/env python
"""What sparse layers and sparse training steps gain over dense ones on this CPU.

    python scripts/benchmark_sparse.py layers                       # about 5 minutes on 2 cores
    python scripts/benchmark_sparse.py steps --root ../shared/data  # about 10 minutes

Batches of 128. All ways in turn within every round, in one process; medians of seconds over the rounds, and medians of ratios
taken within rounds with their smallest and largest. Layers: forward and both backward passes, with random masks, against the
better of contiguous and channels-last float32, and for linear layers torch.sparse. Steps: `Trainer.train_step` with masks of
untrained ResNets and a multilayer perceptron, against channels-last float32 and bf16.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.mask import Mask
from helper.pruner import prune
from helper.sparse.functional import sparse_layer, to_lanes
from helper.sparse.library import kernels
from helper.sparse.plan import layer_plan
from helper.sparse.view import lanes_of
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.trainer import Trainer

BATCH = 128
LAYERS = {
    "conv 16 to 16, 32x32": (lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False), (16, 32, 32)),
    "conv 32 to 32, 16x16": (lambda: nn.Conv2d(32, 32, 3, padding=1, bias=False), (32, 16, 16)),
    "conv 64 to 64, 8x8": (lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False), (64, 8, 8)),
    "conv 16 to 32, stride 2": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), (16, 32, 32)),
    "conv 256 to 256, 8x8": (lambda: nn.Conv2d(256, 256, 3, padding=1, bias=False), (256, 8, 8)),
    "linear 1024": (lambda: nn.Linear(1024, 1024, bias=False), (1024,)),
    "linear 4096": (lambda: nn.Linear(4096, 4096, bias=False), (4096,)),
}
NETWORKS = {
    "ResNet-20x1": {"net_name": "resnet", "depth": 20, "widen_factor": 1},
    "ResNet-32x4": {"net_name": "resnet", "depth": 32, "widen_factor": 4},
    "MLP 3072-4096-4096-100": {"net_name": "mlp", "hidden_dims": "4096-4096"},
}
DENSE = {"sparse_step": "0"}
WAYS = {"float32": DENSE, "bf16": DENSE | {"precision": "bf16"}, "sparse": {"sparse_step": "1"}}


def in_turn(ways: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; each runs twice before, unmeasured."""
    for function in [*ways.values()] * 2:
        function()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, function in ways.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def gain(rivals: list[list[float]], ours: list[float]) -> str:
    """How many times as fast as the best rival of each round."""
    ratios = [min(times) / mine for *times, mine in zip(*rivals, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def passes(function: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(function(x.detach()))
    return lambda: torch.autograd.grad(function(x), [x, weight], gradient)


def by_torch_sparse(layer: nn.Linear, mask: Tensor, x: Tensor) -> Callable[[], object]:
    """Forward and both backward passes of a linear layer as products of torch.sparse's matrices."""
    there = (layer.weight.detach() * mask).to_sparse_csr()
    back, x = there.to_dense().t().contiguous().to_sparse_csr(), x.detach().t().contiguous()
    gradient = torch.randn(layer.out_features, x.shape[1])
    zeros = torch.sparse_csr_tensor(there.crow_indices(), there.col_indices(), torch.zeros_like(there.values()), there.shape)
    return lambda: (there @ x, back @ gradient, torch.sparse.sampled_addmm(zeros, gradient, x.t(), beta=0.0))


def ways_of_layer(make: Callable[[], nn.Module], shape: tuple[int, ...], density: float) -> dict[str, Callable[[], object]]:
    layer, x = make(), torch.randn(BATCH, *shape)
    mask = torch.rand(layer.weight.shape) < density
    plan = layer_plan(layer, mask, shape[1:] or (1, 1))
    laid_out = to_lanes(x, lanes_of(BATCH)).requires_grad_()
    ways = {
        "sparse": passes(lambda x: sparse_layer(x, layer.weight, None, plan), laid_out, layer.weight),
        "dense": passes(layer, x.clone().requires_grad_(), layer.weight),
    }
    if isinstance(layer, nn.Linear):
        return ways | {"torch.sparse": by_torch_sparse(layer, mask, x)}
    other = make().to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    return ways | {"channels last": passes(other, last, other.weight)}


def layers(args: argparse.Namespace) -> None:
    print("| layer | density | sparse, ms | x dense | x torch.sparse |\n|---|---|---|---|---|")
    for name, (make, shape) in LAYERS.items():
        for density in args.densities:
            times = in_turn(ways_of_layer(make, shape, density), args.rounds)
            ours, peer = times.pop("sparse"), times.pop("torch.sparse", None)
            gains = gain(list(times.values()), ours), gain([peer], ours) if peer else ""
            print(f"| {name} | {density:g} | {1000 * statistics.median(ours):.2f} | {' | '.join(gains)} |", flush=True)


def trainer_of(dataset, network: dict[str, object], density: float, allocation: str, flags: dict[str, object]) -> Trainer:
    config = NetworkConfig(**network)
    net = build_network(config, dataset.input_shape, dataset.n_classes, stream(0, "init"))
    mask: Mask = prune(net, stream(0, "prune"), prune_ratio=1 - density, allocation=allocation)
    net.to(memory_format=torch.channels_last).train()
    return Trainer(net, dataset, TrainConfig(batch_size=BATCH, lr=0.01, **flags), seed=0, mask=mask)


def one_step(trainer: Trainer, rows: Tensor) -> Callable[[], object]:
    return lambda: trainer.train_step(0, rows)


def steps(args: argparse.Namespace) -> None:
    images = {"limit_train": 5 * BATCH, "limit_test": 100, "verify_data": False}
    dataset, rows = load_dataset(DataConfig(loader_name="cifar100", root=args.root, **images)), torch.arange(BATCH)
    print("| network | mask | density | sparse step, ms | x float32 | x bf16 |\n|---|---|---|---|---|---|")
    for name, allocation, density in itertools.product(args.networks, args.allocations, args.densities):
        kind = (dataset, NETWORKS[name], density, allocation)
        times = in_turn({way: one_step(trainer_of(*kind, flags), rows) for way, flags in WAYS.items()}, args.rounds)
        ours = times["sparse"]
        gains = " | ".join(gain([times[way]], ours) for way in ("float32", "bf16"))
        print(f"| {name} | {allocation} | {density:g} | {1000 * statistics.median(ours):.1f} | {gains} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "steps"))
    parser.add_argument("--root", default="../shared/data", help="folder of CIFAR-100, for steps")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--allocations", nargs="+", default=["global", "erk", "uniform"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    kernels()
    (layers if args.what == "layers" else steps)(args)


if __name__ == "__main__":
    main()

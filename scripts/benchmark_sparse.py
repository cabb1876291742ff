#!/usr/bin/env python
"""What sparse layers and sparse training steps gain over dense ones on this CPU.

    python scripts/benchmark_sparse.py layers                       # about 5 minutes on 2 cores
    python scripts/benchmark_sparse.py steps --root ../shared/data  # about 30 minutes
    python scripts/benchmark_sparse.py epochs --root ../shared/data # about 5 minutes

Batches of 128. All ways in turn within every round, in one process; medians of seconds over the rounds, and medians of ratios
taken within rounds with their smallest and largest. Layers: forward and both backward passes, with random masks, against the
better of contiguous and channels-last float32, and for linear layers the bare products of torch.sparse. Steps:
`Trainer.train_step` of ResNets and a multilayer perceptron, five in a turn, against channels-last float32 and bf16; masks of an
untrained network (global, erk, uniform), or of the largest weights after --trained_steps steps (trained). Epochs: 40 steps,
then training and test accuracy and SNR.
"""

import argparse
import copy
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.metrics.evaluation import evaluate
from helper.pruner import prune
from helper.sparse.chain import Chain
from helper.sparse.functional import PlannedLayer, lanes_of, lanes_of_features, to_lanes
from helper.sparse.layers import LanesBlock
from helper.sparse.library import kernels
from helper.sparse.plan import layer_plan
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.measuring import evaluate_training
from optim.trainer import Trainer

BATCH = 128
STEPS = 5  # of a turn
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
    lanes, weight = lanes_of(BATCH), layer.weight
    if isinstance(layer, nn.Linear):  # as in training, where nothing is as large as the weight
        lanes, weight = lanes_of_features(BATCH), weight.detach().flatten()[plan.active].requires_grad_()
    chain = Chain([(LanesBlock(PlannedLayer(weight, None, plan)), (0, None, None))], n_inputs=1, outputs=(1,))
    ways = {
        "sparse": passes(lambda x: chain(x)[0], to_lanes(x, lanes).requires_grad_(), weight),
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


@functools.cache
def network_of(dataset, name: str, trained_steps: int) -> nn.Module:
    """An untrained network, or one after so many dense steps."""
    network = build_network(NetworkConfig(**NETWORKS[name]), dataset.input_shape, dataset.n_classes, stream(0, "init"))
    network.to(memory_format=torch.channels_last).train()
    if trained_steps:
        trainer = Trainer(network, dataset, TrainConfig(batch_size=BATCH, lr=0.1, precision="bf16"), seed=0)
        for step in range(trained_steps):
            trainer.train_step(step, torch.randperm(len(dataset.train))[:BATCH])
    return network


def trainers_of(dataset, name: str, allocation: str, density: float, trained_steps: int) -> dict[str, Trainer]:
    """One for each way, of copies of the same network under the same mask."""
    network = network_of(dataset, name, trained_steps if allocation == "trained" else 0)
    kind = "global" if allocation == "trained" else allocation
    mask = prune(network, stream(0, "prune"), prune_ratio=1 - density, allocation=kind)
    return {
        way: Trainer(copy.deepcopy(network), dataset, TrainConfig(batch_size=BATCH, lr=0.01, **flags), seed=0, mask=mask)
        for way, flags in WAYS.items()
    }


def some_steps(trainer: Trainer) -> Callable[[], object]:
    rows = torch.arange(BATCH)

    def turn() -> None:
        for _ in range(STEPS):
            trainer.train_step(0, rows)

    return turn


def one_epoch(trainer: Trainer) -> Callable[[], object]:
    """Steps, and the passes that a run makes after them."""

    def epoch() -> None:
        data, mask = trainer.dataset, trainer.mask_owner.mask
        trainer.network.train()
        for step, rows in trainer.remaining_batches():
            trainer.train_step(step, rows)
        forward = trainer.sparse_step.forward_for(trainer.mask_owner)
        evaluate_training(trainer.network, mask, data, BATCH, 0, snr=True, forward=forward)
        evaluate(trainer.network, data.batches(data.test, BATCH), forward=forward)

    return epoch


def in_training(
    args: argparse.Namespace, what: str, n_images: int, work: Callable[[Trainer], Callable[[], object]], n_in_turn: int = 1
) -> None:
    images = {"limit_train": n_images, "limit_test": n_images // 5, "verify_data": False}
    dataset = load_dataset(DataConfig(loader_name="cifar100", root=args.root, **images))
    print(f"| network | mask | density | sparse {what}, ms | x float32 | x bf16 |\n|---|---|---|---|---|---|")
    for name, allocation, density in itertools.product(args.networks, args.allocations, args.densities):
        trainers = trainers_of(dataset, name, allocation, density, args.trained_steps)
        times = in_turn({way: work(trainer) for way, trainer in trainers.items()}, args.rounds)
        ours = times["sparse"]
        gains = " | ".join(gain([times[way]], ours) for way in ("float32", "bf16"))
        print(
            f"| {name} | {allocation} | {density:g} | {1000 * statistics.median(ours) / n_in_turn:.1f} | {gains} |", flush=True
        )


def steps(args: argparse.Namespace) -> None:
    in_training(args, "step", 5000, some_steps, STEPS)


def epochs(args: argparse.Namespace) -> None:
    in_training(args, "epoch", 40 * BATCH, one_epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "steps", "epochs"))
    parser.add_argument("--root", default="../shared/data", help="folder of CIFAR-100, for steps and epochs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--allocations", nargs="+", default=["trained", "global", "erk", "uniform"])
    parser.add_argument("--trained_steps", type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    kernels()
    {"layers": layers, "steps": steps, "epochs": epochs}[args.what](args)


if __name__ == "__main__":
    main()

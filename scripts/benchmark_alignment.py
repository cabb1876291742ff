#!/usr/bin/env python
"""What a cosine for every example costs: examples a second against a plain batched forward and backward pass.

    python scripts/benchmark_alignment.py --root DATA [--rounds 7] [--examples 512]

The networks are those of scripts/benchmark_metrics.py: a ResNet-20 of width 1 that memorised 5,000 images of CIFAR-100, 90 %
pruned, trained from scratch and finetuned (once; the runs are kept under --results_root). Measured at alpha 0.3 and 0.9 of the
way from Init-S to Sol-F: `descent_cosines`, a whole call with its trial of the engine, and a batched forward and backward pass
over all parameters of the same network on the same images, in float32. One process, in turn; the ratio of each round's two
times, and their median. The first 8 cosines are checked against one backward pass an example in float64.
"""

import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.metrics.alignment import descent_cosines
from helper.metrics.line import between, reestimate_batch_norm
from helper.metrics.parameters import counted_parameters
from helper.schema.config import unflatten
from helper.system.memory import keep_freed_memory
from optim.config import RunConfig
from optim.main import train_run
from scripts.benchmark_metrics import TRAINING, seconds
from study.comparing.interpolation import check_pair, endpoints
from study.runs import open_run


def plain_pass(network: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
    parameters = [p.requires_grad_(True) for p in network.parameters()]
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        torch.autograd.grad(F.cross_entropy(network(inputs), labels), parameters)


def one_at_a_time(network: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], mask) -> Tensor:
    """The cosines of few examples in float64, from whole gradients."""
    network = copy.deepcopy(network).double()
    names = [name for parameters in counted_parameters(network, "layers").values() for name in parameters]
    parameters = dict(network.named_parameters())
    keep = torch.cat([(mask[n] if n in mask else torch.ones_like(parameters[n], dtype=torch.bool)).flatten() for n in names])
    d = torch.cat([direction[name].double().flatten() for name in names])[keep]
    found = []
    for inputs, label in zip(x.double(), y, strict=True):
        loss = F.cross_entropy(network(inputs[None]), label[None])
        gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
        g = torch.cat([gradient.flatten() for gradient in gradients])[keep]
        found.append(-(g @ d) / (g.norm() * d.norm()))
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--results_root", default="results/table2", help="where the trained networks are kept")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=128, help="of the plain pass")
    flags = parser.parse_args()
    keep_freed_memory()
    runs = []
    for mode in ("sparse-scratch", "sparse-finetune"):
        settings = TRAINING | {"root": flags.root, "results_root": flags.results_root, "mode": mode}
        runs.append(open_run(train_run(unflatten(RunConfig, settings)), data={"root": flags.root}))
    check_pair(*runs)
    network, mask, dataset = runs[0].network, runs[0].mask, runs[0].dataset
    states = endpoints(*runs)
    direction = {name: states["Sol-F"][name] - states["Init-S"][name] for name, _ in network.named_parameters()}
    rows = torch.arange(flags.examples)
    x, y = dataset.examples(dataset.train)[rows], dataset.train.labels[rows]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {flags.rounds} rounds, sparsity {mask.sparsity:.2f}")
    for alpha in (0.3, 0.9):
        network.load_state_dict(between(states["Init-S"], states["Sol-F"], alpha))
        reestimate_batch_norm(network, x.split(flags.batch_size))

        def plain() -> None:
            plain_pass(network, x, y, flags.batch_size)

        def cosines() -> Tensor:
            return descent_cosines(network, x, y, direction, mask)

        plain()
        error = (one_at_a_time(network, x[:8], y[:8], direction, mask) - cosines()[:8]).abs().max().item()
        pairs = [(seconds(plain), seconds(cosines)) for _ in range(flags.rounds)]
        ratios = sorted(a / b for a, b in pairs)
        plain_speed, speed = (flags.examples / statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"alpha {alpha:g}: {speed:.0f} cosines/s, plain pass {plain_speed:.0f} images/s, ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}); off float64 by at most {error:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()

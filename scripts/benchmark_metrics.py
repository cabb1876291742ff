#!/usr/bin/env python
"""What a trace to 1 % costs: this project's estimators against other libraries', on a ResNet-20 that memorised CIFAR-100.

    python scripts/benchmark_metrics.py --root DATA [--rounds 3] [--examples 256]

The network has width 1 and is trained on 5,000 images until its training accuracy is above 0.99 (once; the run is kept
under --results_root). Rows: dense, and 90 % pruned and finetuned.

Compared is the time to a standard error of 1 %, which is variance x time: of a whole call for ours, pilot and forward passes
for importance weights included; for the others seconds of a draw x its relative variance / 0.01². Label sampling's
variance is not estimated from draws, whose tails are too heavy, but summed over all labels of examples drawn by importance; of
it only the labels' part is counted, as if every example were measured. The errors of Hutch++ and XTrace can fall faster than
the root of their cost, so what they would need at best is printed as well. All in one process, in turn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.metrics.estimate import Estimate
from helper.metrics.evaluation import evaluate
from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.per_example import choose_engine
from helper.metrics.softmax import residuals, total_variance
from helper.metrics.subject import Subject
from helper.schema.config import unflatten
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from optim.config import RunConfig
from optim.main import train_run
from optim.model import load_run
from scripts import peers

TRAINING = {
    "loader_name": "cifar100", "verify_data": 0, "net_name": "resnet", "depth": 20, "widen_factor": 1, "limit_train": 5000,
    "limit_test": 2000, "augment": "none", "precision": "bf16", "n_epochs": 40, "n_epochs_pretrain": 40, "lr": 0.05,
    "lr_schedule": "cosine", "batch_size": 32, "train_eval": "running", "save_snr": 0, "save_fisher": 0, "random_state": 1,
    "prune_ratio": 0.9, "figures": 0,
}  # fmt: skip
TARGET = 0.01
BATCH = 64


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def to_target(estimate: Estimate, taken: float) -> float:
    """Seconds to the target of an estimate whose error falls with the root of time."""
    return taken * (estimate.standard_error / estimate.value / TARGET) ** 2


def label_sampling_variance(network: nn.Module, inputs, mask, n: int = 120) -> tuple[float, float]:
    """Relative variance of one label draw about its example's own mean, and its standard error, from n weighted examples."""
    subject = Subject(network, inputs, mask)
    generator = stream(0, "label variance")
    with subject.measuring():
        scores = subject.map_logits(torch.arange(len(inputs)), total_variance, BATCH)
        chances = 0.9 * scores / scores.sum() + 0.1 / len(scores)
        picked = torch.multinomial(chances, n, replacement=True, generator=generator)
        engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
        trace, spread = [], []
        for rows in picked.split(8):
            probabilities: list[Tensor] = []

            def every_score(logits: Tensor, found: list[Tensor] = probabilities) -> Tensor:
                found.append(logits.double().softmax(1))
                return residuals(logits, torch.arange(logits.shape[1]).expand(len(logits), -1)).to(logits.dtype)

            norms = engine.squares(subject.rows(rows), every_score).sum(2).double().t()  # (n, C) ||grad log p(y|x)||^2
            mean = (probabilities[0] * norms).sum(1)
            trace.append(mean)
            spread.append((probabilities[0] * norms.square()).sum(1) - mean.square())
    weights = 1 / (len(scores) * chances[picked])
    total = (weights * torch.cat(trace)).mean()
    weighted = weights * torch.cat(spread) / total.square()
    return weighted.mean().item(), (weighted.std() / n**0.5).item()


def fisher_rows(network: nn.Module, mask, inputs, x: Tensor, y: Tensor, rounds: int) -> None:
    """Time to 1 % of Tr F over all the inputs; the others' speed is that on the batch (x, y)."""
    variance, error = label_sampling_variance(network, inputs, mask)
    converted = peers.for_backpack(network)
    generator = stream(0, "benchmark")
    draws = {
        "nngeometry FIM_MonteCarlo(PMatDiag)": (len(x), lambda: peers.nngeometry_trace(network, x, mask, BATCH)),
        "BackPACK DiagGGNMC": (BATCH, lambda: peers.backpack_trace(converted, x[:BATCH], y[:BATCH], mask)),
        "ours, --fisher_method vmap": (2 * 128, lambda: label_draws(network, inputs, mask, "vmap", 128, generator)),
        "ours, --fisher_method ours": (2 * 64, lambda: label_draws(network, inputs, mask, "ours", 64, generator)),
    }
    own: list[float] = []
    other: dict[str, list[float]] = {name: [] for name in draws}
    for _ in range(rounds):
        estimate = fisher_trace(network, inputs, mask, rtol=TARGET, generator=generator)
        own.append(to_target(estimate, estimate.seconds))
        for name, (n, draw) in draws.items():
            other[name].append(seconds(draw) / n * variance / TARGET**2)
    print(f"  label sampling: variance of a draw {variance:.0f} times the squared trace, standard error {error:.0f}")
    found = f"{estimate.value:.4g}, standard error {estimate.standard_error:.2g}, from {estimate.n_samples} draws"
    print(f"  {estimate.estimator}: {found}")
    table("Tr F over 5,000 images", own, other)


def label_draws(network: nn.Module, inputs, mask, method: str, n: int, generator: torch.Generator) -> Estimate:
    return fisher_trace(network, inputs, mask, method=method, max_samples=n, n_probes=2, generator=generator)


def hessian_rows(network: nn.Module, mask, x: Tensor, y: Tensor, rounds: int, probes: int, repeats: int) -> None:
    """Time to 1 % of Tr H over one batch (x, y)."""
    generator = stream(0, "benchmark")
    truth = hessian_trace(network, x, y, mask, rtol=0.003, generator=generator)
    own = []
    for _ in range(rounds):
        estimate = hessian_trace(network, x, y, mask, rtol=TARGET, generator=generator)
        own.append(to_target(estimate, estimate.seconds))
    print(f"  identity: {truth.value:.4g}, standard error {truth.standard_error:.2g} ({truth.estimator})")
    torch.manual_seed(0)
    pyhessian = peers.PyHessianDraws(network, x, y, mask)
    values, taken = timed_draws(pyhessian, probes)
    spread = statistics.stdev(values) / truth.value
    mean = statistics.mean(values)
    print(f"  PyHessian: one probe {spread:.1%} in {statistics.median(taken):.2f} s, mean of {probes} {mean:.4g}")
    other = {"PyHessian": [one * (spread / TARGET) ** 2 for one in taken]}
    for name, draw, n_products in sketches(network, mask, x, y) if repeats else ():
        values, taken = timed_draws(draw, repeats)
        spread = (sum((value / truth.value - 1) ** 2 for value in values) / repeats) ** 0.5
        best = statistics.median(taken) * spread / TARGET
        print(
            f"  {name}: {n_products} products {spread:.1%} in {statistics.median(taken):.1f} s, {repeats} times; "
            f"if the error fell as 1/products: {best:.0f} s to 1 %"
        )
        other[name] = [one * (spread / TARGET) ** 2 for one in taken]
    table(f"Tr H over {len(x)} images", own, other)


def sketches(network: nn.Module, mask, x: Tensor, y: Tensor) -> list[tuple[str, Callable[[], float], int]]:
    """(name, draw, products)"""
    seeds = iter(range(10**6))
    return [
        ("hessian-eigenthings Hutch++", lambda: peers.hutch_plus_plus(network, x, y, mask, 15, next(seeds)), 15),
        ("curvlinops XTrace", lambda: peers.curvlinops_trace(network, x, y, mask, 16, method="xtrace"), 16),
    ]


def timed_draws(draw: Callable[[], float], n: int) -> tuple[list[float], list[float]]:
    values, taken = [], []
    for _ in range(n):
        taken.append(seconds(lambda: values.append(draw())))
    return values, taken


def table(title: str, own: list[float], other: dict[str, list[float]]) -> None:
    mine = statistics.median(own)
    print(f"  {title:44} seconds to 1 %          ratio")
    print(f"  {'ours':44} {mine:10.1f}                  1")
    for name, values in other.items():
        ratios = [value / mine for value in values]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"  {name:44} {statistics.median(values):10.0f}   {middle:10.0f}  ({low:.0f}-{high:.0f})")


def speed_rows(network: nn.Module, mask, x: Tensor, y: Tensor, rounds: int) -> None:
    """Per-example norms against a plain batched forward and backward pass, images a second."""
    subject = Subject(network, x, mask)

    def plain() -> None:
        parameters = [p.requires_grad_(True) for p in network.parameters()]
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            torch.autograd.grad(F.cross_entropy(network(x[part]), y[part]), parameters)

    def norms() -> None:
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            engine.squares(x[part], lambda logits, part=part: residuals(logits, y[part, None]).to(logits.dtype))

    ratios, speeds = [], []
    with subject.measuring():
        engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
        plain(), norms()
        for _ in range(2 * rounds + 1):
            a, b = seconds(plain), seconds(norms)
            ratios.append(a / b)
            speeds.append(len(x) / b)
    print(
        f"  per-example norms {statistics.median(speeds):.0f} images/s, {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) of a plain forward and backward pass"
    )


def memory_rows(settings: dict[str, object]) -> None:
    """Growth of peak resident memory while measuring, each time in a fresh process; Linux only."""
    for bound in (100, 1000):
        for method in ("spectral", "vmap"):
            command = [sys.executable, __file__, "--memory", json.dumps([settings, method, bound])]
            grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
            print(f"  --metric_memory_mb {bound}, {method}: peak of the process +{float(grown):.0f} MiB")


def grown_memory(settings: dict[str, object], method: str, bound: int) -> float:
    """MiB that the peak of this process rises by while it measures."""
    network, mask, config = load_run(train_run(unflatten(RunConfig, settings)))
    dataset = load_dataset(config.data)
    inputs = dataset.examples(dataset.train)
    network(inputs[torch.arange(2)])  # libraries' own buffers
    before = resident("VmRSS")
    fisher_trace(
        network, inputs, mask, method=method, max_samples=300, n_probes=2, rtol=0, memory_mb=bound, batch_size=4096,
        generator=stream(0, "memory"),
    )  # fmt: skip
    return resident("VmHWM") - before


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of cifar-100-python")
    parser.add_argument("--results_root", default="results/benchmark", help="where the trained networks are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=256, help="in the batch of Hessian traces")
    parser.add_argument("--probes", type=int, default=16, help="of PyHessian")
    parser.add_argument(
        "--sketches", type=int, default=2, help="repetitions of Hutch++ and XTrace, half a minute each; 0: none"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.memory:
        print(grown_memory(*json.loads(flags.memory)))
        return
    keep_freed_memory()
    warnings.filterwarnings("ignore")  # the libraries' own, about hooks, leaks and missing batching rules
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {flags.rounds} rounds")
    for mode in ("dense", "sparse-finetune"):
        settings = TRAINING | {"root": flags.root, "results_root": flags.results_root, "mode": mode}
        network, mask, config = load_run(train_run(unflatten(RunConfig, settings)))
        network.to(memory_format=torch.channels_last)
        dataset = load_dataset(config.data)
        accuracy = evaluate(network, dataset.batches(dataset.train, 250))["acc"]
        print(f"\n{mode}, sparsity {mask.sparsity:.2f}, training accuracy {accuracy:.4f}", flush=True)
        inputs = dataset.examples(dataset.train)
        rows = torch.randperm(len(inputs), generator=stream(0, "benchmark", "rows"))[: flags.examples]
        x, y = inputs[rows], dataset.train.labels[rows]
        speed_rows(network, mask, x, y, flags.rounds)
        memory_rows(settings)
        fisher_rows(network, mask, inputs, x, y, flags.rounds)
        hessian_rows(network, mask, x, y, flags.rounds, flags.probes, flags.sketches)
        everything = load_dataset(DataConfig(loader_name="cifar100", root=flags.root, verify_data=False))
        estimate = fisher_trace(network, everything.examples(everything.train), mask, rtol=TARGET, generator=stream(0, "all"))
        found = f"{estimate.value:.5g}, standard error {estimate.standard_error:.2g}, in {estimate.seconds:.1f} s"
        print(f"  Tr F over {len(everything.train)} images: {found}", flush=True)


if __name__ == "__main__":
    main()

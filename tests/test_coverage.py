"""Do 95 % intervals cover the exact value? 1,000 repetitions of every estimator on a tiny network.

`python -m tests.test_coverage` prints the table. The tests repeat the slowest 400 times.
"""

from collections.abc import Callable

import pytest
import torch

from helper.metrics.estimate import Estimate
from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.utils import stream
from tests.exact import batch, exact_empirical, exact_fisher, exact_hessian, fitted, input_jacobians, tiny

REPETITIONS, FEWER = 1000, 400
LONG = ("eigenthings (Hutch++), subset", "nngeometry, subset")
SLOW = ("nngeometry", "pyhessian", "ours", "hutchinson")
LABELS = {"method": "vmap", "n_probes": 2}
NNGEOMETRY = {"method": "nngeometry", "n_probes": 2}
FISHER = {
    "spectral, every example": (24, {"n_probes": 4}),
    "spectral, importance, all scored": (300, {"max_samples": 100}),
    "spectral, importance, a sample scored": (2000, {"max_samples": 100}),
    "spectral, 10 % asked for": (2000, {"rtol": 0.1}),
    "spectral, 5 % asked for, few examples": (60, {"rtol": 0.05}),
    "exact, subset": (200, {"method": "exact", "max_samples": 60}),
    "empirical, subset": (200, {"metric": "empirical", "max_samples": 100}),
    "vmap, every example": (60, {**LABELS, "n_probes": 4}),
    "vmap, subset": (200, {**LABELS, "max_samples": 100}),
    "ours, every example": (40, {"method": "ours", "n_probes": 6}),
    "ours, subset": (200, {"method": "ours", "n_probes": 2, "max_samples": 80}),
    "nngeometry, every example": (32, {**NNGEOMETRY, "batch_size": 4, "n_probes": 4}),
    "nngeometry, subset": (300, {**NNGEOMETRY, "batch_size": 4, "max_samples": 160}),
}
HESSIAN = {
    "auto (Gauss-Newton), importance": ("mlp_relu", 300, {"max_samples": 100}),
    "hutchinson, every example": ("mlp_tanh", 40, {"method": "hutchinson", "n_probes": 6}),
    "hutchinson, subset": ("mlp_tanh", 200, {"method": "hutchinson", "n_probes": 2, "max_samples": 80}),
    "residual, every example": ("mlp_tanh", 40, {"method": "hutchinson", "term": "residual", "n_probes": 3}),
    "pyhessian, every example": ("mlp_tanh", 24, {"method": "pyhessian", "batch_size": 6, "n_probes": 10}),
    "pyhessian, subset": ("mlp_tanh", 200, {"method": "pyhessian", "batch_size": 4, "n_probes": 2, "max_samples": 120}),
    "eigenthings (Hutch++), every example": ("mlp_tanh", 12, {"method": "eigenthings", "batch_size": 12, "n_probes": 30}),
    "eigenthings (Hutch++), subset": (
        "mlp_tanh", 200, {"method": "eigenthings", "batch_size": 4, "n_probes": 6, "max_samples": 96},
    ),
}  # fmt: skip
JACOBIAN = {
    "projection, every example": (24, {"n_probes": 4}),
    "projection, subset": (200, {"n_probes": 2, "max_samples": 80}),
    "projection, 10 % asked for": (1000, {"rtol": 0.1}),
    "exact, subset": (200, {"method": "exact", "max_samples": 80}),
    "largest singular value, subset": (200, {"method": "exact", "norm": "spectral", "max_samples": 80}),
}


def fisher_case(n: int, options: dict) -> tuple[float, Callable[[torch.Generator], Estimate]]:
    inputs, labels = batch(4, n)
    network = tiny("mlp_relu", 4)
    exact = exact_empirical(network, inputs, labels) if "metric" in options else exact_fisher(network, inputs)
    options = {"rtol": 0, "labels": labels, **options}
    return exact, lambda generator: fisher_trace(network, inputs, generator=generator, **options)


def hessian_case(name: str, n: int, options: dict) -> tuple[float, Callable[[torch.Generator], Estimate]]:
    inputs, labels = batch(3, n)
    network = fitted(tiny(name), inputs, labels, steps=40)
    exact = exact_hessian(network, inputs, labels)
    if "term" in options:
        exact -= exact_fisher(network, inputs)
    options = {"rtol": 0, **options}
    return exact, lambda generator: hessian_trace(network, inputs, labels, generator=generator, **options)


def jacobian_case(n: int, options: dict) -> tuple[float, Callable[[torch.Generator], Estimate]]:
    inputs, _ = batch(4, n)
    network = tiny("mlp_relu", 4)
    whole = input_jacobians(network, inputs)
    exact = torch.linalg.matrix_norm(whole, 2).mean() if "norm" in options else whole.square().sum((1, 2)).mean()
    options = {"rtol": 0, **options}
    return exact.item(), lambda generator: jacobian_norm(network, inputs, generator=generator, **options)


CASES = {
    **{f"Fisher: {name}": (fisher_case, case) for name, case in FISHER.items()},
    **{f"Hessian: {name}": (hessian_case, case) for name, case in HESSIAN.items()},
    **{f"Jacobian: {name}": (jacobian_case, case) for name, case in JACOBIAN.items()},
}


def coverage(name: str, repetitions: int = REPETITIONS) -> tuple[float, float, float]:
    """Share of intervals that cover the exact value, mean error in standard deviations of the mean, mean relative SE."""
    build, case = CASES[name]
    exact, estimate = build(*case)
    found = [estimate(stream(repetition, "coverage", name)) for repetition in range(repetitions)]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    errors = torch.tensor([e.standard_error for e in found], dtype=torch.float64)
    hits = ((values - exact).abs() <= 1.96 * errors).double().mean().item()
    bias = (values.mean() - exact) / (values.std() / repetitions**0.5)
    return hits, bias.item(), (errors.mean() / abs(exact)).item()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name.endswith(LONG) else ()) for name in CASES])
def test_intervals_cover_the_exact_value(name):
    hits, bias, _ = coverage(name, FEWER if any(method in name for method in SLOW) else REPETITIONS)
    assert 0.925 <= hits <= 0.975
    assert abs(bias) < 4


if __name__ == "__main__":
    print(f"{'estimator':58} coverage   bias/sd  SE/value")
    for name in CASES:
        print("{:58} {:7.1%}   {:7.2f}   {:7.3f}".format(name, *coverage(name)))

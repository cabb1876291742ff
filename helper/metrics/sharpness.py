"""The largest eigenvalue of the Hessian at a price that can be paid every few epochs, with an error."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.estimate import Estimate
from helper.metrics.matrices import Chosen
from helper.metrics.spectrum import FEWEST_HALVED, GROUPS, SpectrumOptions, full_products, half_steps, top_eigenvalues
from helper.metrics.subject import Examples, own_generator
from helper.processes.group import world_size
from helper.progress import Task

SAMPLES = 500  # examples that are measured where nobody says how many
STEPS = 15  # of Lanczos, which finds an eigenvalue that stands apart from the others in fewer


@dataclass(frozen=True)
class SharpnessOptions(SpectrumOptions):
    """Of a spectrum of which one eigenvalue is wanted, and no density."""

    k: int = 1
    steps: int = STEPS
    max_samples: int | None = SAMPLES


def largest_eigenvalue(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    mask=None,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Estimate:
    """The Hessian's eigenvalue of largest magnitude, over the active parameters, of the mean loss of all examples.

    From a random sample, without the bias of such a sample's eigenvalue, as `helper.metrics.spectrum` has it. The standard
    error has two parts, added as squares: that of the choice of the sample, and Lanczos' residual, within which an
    eigenvalue lies.

    Args:
        network, inputs, labels, mask, generator: as in `hessian_trace`. options: fields of `SharpnessOptions`.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, no active parameter.
    """
    started, chosen = time.perf_counter(), SharpnessOptions(**options)
    subject = chosen.subject(network, inputs, mask, chosen.params)
    labels, generator = subject.checked_labels(labels), own_generator(generator)
    population, n = len(inputs), chosen.n_samples(len(inputs))
    rows = torch.randperm(population, generator=generator)[:n]
    seed = int(torch.randint(2**31, (), generator=generator))
    halves = rows.tensor_split(2) if FEWEST_HALVED <= n < population else ()
    own_products = products(n, chosen.steps, halved=bool(halves)) // world_size()
    with subject.measuring(), Task("largest eigenvalue", own_products, "products", shown=chosen.progress) as task:
        matrix = Chosen(subject, labels, chosen.matrix, task)
        operator = matrix.operator(rows)
        chosen = replace(chosen, steps=min(chosen.steps, operator.size))
        top = {name: float(values[0]) for name, values in top_eigenvalues(matrix, operator, rows, halves, chosen, seed).items()}
    error = (top["standard_errors"] ** 2 + top["residuals"] ** 2) ** 0.5
    which = f"all {n}" if n == population else f"{n} of {population}, bias removed"
    return Estimate(
        top["corrected"], error, n, f"lanczos; {which}", seconds=round(time.perf_counter() - started, 3),
        degrees=min(GROUPS, n) - 1,
    )  # fmt: skip


def products(n: int, steps: int, *, halved: bool) -> int:
    """Of an example with a vector: as many as a spectrum with one eigenvalue and no density takes."""
    return n * (full_products(1, steps, 0) + (half_steps(1, steps) if halved else 0))

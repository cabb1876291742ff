"""The largest eigenvalue of the Hessian at a price that can be paid every few epochs, with an error."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.estimate import Estimate
from helper.metrics.matrices import Chosen, active_coordinates
from helper.metrics.spectrum import (
    FEWEST_HALVED,
    GROUPS,
    SpectrumOptions,
    full_products,
    half_steps,
    ritz_pairs,
    with_errors,
)
from helper.metrics.subject import Examples, own_generator
from helper.processes.group import world_size
from helper.progress import Task

SAMPLES = 500  # examples that are measured where nobody says how many
STEPS = 15  # of Lanczos, which finds an eigenvalue that stands apart from the others in fewer
KEPT = 3  # vectors of which the next measurement begins with the sum, in case that they change places
FRESH = 0.1  # share of a random vector in that, for a direction that none of them has


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
    return followed_eigenvalue(network, inputs, labels, mask, generator=generator, **options)[0]


def followed_eigenvalue(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    mask=None,
    *,
    former: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> tuple[Estimate, Tensor]:
    """`largest_eigenvalue` of a network that has moved little since it was measured, in fewer steps.

    Args:
        former: what the last measurement gave, of the same counted parameters; its part within the mask counts. None, or
            one of other parameters or without any such part: from a random vector, as ever.
    Returns:
        The estimate, and (P,) what the next one begins with: over all counted parameters, in float32 on the CPU.
    """
    started, chosen = time.perf_counter(), SharpnessOptions(**options)
    subject = chosen.subject(network, inputs, mask, chosen.params)
    labels, generator = subject.checked_labels(labels), own_generator(generator)
    population, n = len(inputs), chosen.n_samples(len(inputs))
    rows = torch.randperm(population, generator=generator)[:n]
    seed = int(torch.randint(2**31, (), generator=generator))
    halves = rows.tensor_split(2) if FEWEST_HALVED <= n < population else ()
    keep = active_coordinates(subject)
    start = random = torch.randn(int(keep.sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    begun = part_within(former, keep)
    steps = chosen.steps if begun is None else half_steps(1, chosen.steps)
    if begun is not None:
        start = begun + FRESH * random / random.norm()
    own_products = products(n, steps, halved=half_steps(1, chosen.steps) if halves else 0) // world_size()
    with subject.measuring(), Task("largest eigenvalue", own_products, "products", shown=chosen.progress) as task:
        matrix = Chosen(subject, labels, chosen.matrix, task)
        values, vectors = ritz_pairs(matrix.operator(rows), start.to(subject.device), steps, KEPT)
        found = with_errors(matrix, rows, halves, half_steps(1, chosen.steps), values[:1], vectors[:1])
    top = {name: float(values[0]) for name, values in found.items()}
    error = (top["standard_errors"] ** 2 + top["residuals"] ** 2) ** 0.5
    which = f"all {n}" if n == population else f"{n} of {population}, bias removed"
    estimate = Estimate(
        top["corrected"], error, n, f"lanczos{'' if begun is None else ' from the last one'}; {which}",
        seconds=round(time.perf_counter() - started, 3), degrees=min(GROUPS, n) - 1,
    )  # fmt: skip
    return estimate, torch.zeros(len(keep)).masked_scatter(keep.cpu(), vectors.sum(0).float().cpu())


def part_within(former: Tensor | None, keep: Tensor) -> Tensor | None:
    """(active,) a vector's part within a mask, of length 1; None where there is none of these parameters."""
    if former is None or former.shape != keep.shape:
        return None
    part = former.cpu()[keep.cpu()].double()
    return part / part.norm() if part.norm() > 0 and torch.isfinite(part).all() else None


def products(n: int, steps: int, *, halved: int) -> int:
    """Of an example with a vector: Lanczos steps, one for the residual, and some of each half of the sample."""
    return n * (full_products(1, steps, 0) + halved)

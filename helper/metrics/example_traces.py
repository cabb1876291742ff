"""Traces of the Fisher information of single examples, each with its error."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.cotangents import every_label
from helper.metrics.fisher import draw_squares
from helper.metrics.label_directions import FEWEST, Plan, directed_cotangents, factor_of, label_kernels, plan_for
from helper.metrics.per_example import Engine, choose_engine
from helper.metrics.sampling import Draw, finite
from helper.metrics.subject import AT_ONCE, Examples, Subject, own_generator, signs

PILOT = 16  # examples of which the gradients of all logits are compared
SHARED = 2  # degrees of freedom of an example's error that all examples together stand for
PASSES_OF_A_PROBE = 2  # of its backward pass, in forward passes: gradients by inputs, and the products with them by layer


def passes_of(probes: int) -> int:
    """What an example with so many probes takes, in forward passes; the sum over all labels takes a probe for each class."""
    return 1 + PASSES_OF_A_PROBE * probes


@dataclass(frozen=True)
class ExampleTraces:
    """What was found of N examples.

    Attributes:
        values: (N,) in nats per squared parameter unit, float64 on the CPU.
        errors: (N,) standard errors; zero where all labels are summed over.
        degrees: of freedom of each error, of a Student's t interval.
        probes: backward passes that each example took.
        passes: what all of them took, with a pilot's, in forward passes of an example.
    """

    values: Tensor
    errors: Tensor
    degrees: float
    probes: int
    passes: int


def example_traces(
    network: nn.Module,
    inputs: Examples,
    mask=None,
    *,
    rtol: float = 0.0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> ExampleTraces:
    """E_{y ~ p(.|x)} ||grad log p(y|x)||^2 over the active parameters, of every example x.

    Args:
        network, inputs, mask: as `fisher_trace` has them. options: further ones of `Subject`.
        rtol: standard error asked for, relative to the value, in the root mean square over the examples; 0: exactly, by
            the sum over all labels, which is taken as well where that precision would cost more.
        generator: of the pilot and the probes; default: one seeded with 0.
    Raises:
        ValueError: as `fisher_trace`, or rtol < 0.
    """
    if not rtol >= 0:
        raise ValueError(f"rtol must be at least 0, not {rtol}")
    subject, generator = Subject(network, inputs, mask, **options), own_generator(generator)
    n, n_classes = len(inputs), subject.n_classes
    exactly = n * passes_of(n_classes)
    pilot = PILOT * passes_of(n_classes)
    with subject.measuring():
        engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
        if rtol and pilot + n * passes_of(FEWEST) < exactly:
            factor, plan = piloted(subject, rtol, generator)
            passes = pilot + n * passes_of(plan.probes)
            if passes < exactly:
                values, errors = drawn_traces(directed_draw(subject, engine, factor, plan, generator), n, plan)
                return ExampleTraces(values, errors, plan.drawn - 1 + SHARED, plan.probes, passes)
        values = summed_over_layers(label_draw(subject, engine), n, n_classes).sum(1)
        return ExampleTraces(values, torch.zeros_like(values), math.inf, n_classes, exactly)


def piloted(subject: Subject, rtol: float, generator: torch.Generator) -> tuple[Tensor, Plan]:
    """Directions of the labels from a random part of the examples, and how many probes they leave to be made."""
    rows = torch.randperm(len(subject.inputs), generator=generator)[:PILOT]
    kernels = finite(label_kernels(subject, rows, generator))
    with torch.no_grad():
        logits = subject.network(subject.rows(rows)).double().cpu()
    return factor_of(kernels), plan_for(kernels, logits, rtol)


def drawn_traces(draw: Draw, n: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """(N,) values and standard errors: sums along the first directions, and the mean of draws of the rest.

    A few draws of one example may be alike by chance, and their spread says nothing. So the mean relative variance of all
    examples counts like `SHARED` further degrees of freedom of each.
    """
    sums = summed_over_layers(draw, n, plan.probes)
    rest = sums[:, plan.exact :]
    values, own, degrees = sums[:, : plan.exact].sum(1) + rest.mean(1), rest.var(1), plan.drawn - 1
    shared = (own / values.square())[values > 0].sum() / max(1, int((values > 0).sum())) * values.square()
    return values, ((degrees * own + SHARED * shared) / (degrees + SHARED) / plan.drawn).sqrt()


def directed_draw(subject: Subject, engine: Engine, factor: Tensor, plan: Plan, generator: torch.Generator) -> Draw:
    """Squares along an example's first directions, and then draws of the rest."""
    size = subject.chunk_size(*engine.copies, other=5 * 8 * subject.n_classes**2)

    def draw(rows: Tensor, k: int) -> Tensor:
        e = signs((len(rows), plan.drawn, subject.n_classes), generator)

        def cotangents(logits: Tensor, positions: slice) -> Tensor:
            return directed_cotangents(logits, factor, plan.exact, e[positions])

        return draw_squares(subject, engine, size, "Fisher of examples", cotangents)(rows, k)

    return draw


def summed_over_layers(draw: Draw, n: int, k: int) -> Tensor:
    """(n, k) draws of all layers together, of n examples."""
    return torch.cat([finite(draw(rows, k)).sum(2) for rows in torch.arange(n).split(AT_ONCE)])


def label_draw(subject: Subject, engine: Engine) -> Draw:
    """Draws that are the terms of the sum over the labels."""

    def cotangents(logits: Tensor, positions: slice) -> Tensor:
        return every_label(logits)

    size = subject.chunk_size(*engine.copies, other=8 * subject.n_classes**2)
    return draw_squares(subject, engine, size, "Fisher of examples", cotangents)

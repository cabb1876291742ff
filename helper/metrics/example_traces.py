"""Traces of the Fisher information of single examples, each with its error."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.cotangents import every_label
from helper.metrics.fisher import draw_squares, spectral_draw
from helper.metrics.per_example import Engine, choose_engine
from helper.metrics.sampling import Draw, finite
from helper.metrics.subject import AT_ONCE, Examples, Subject, own_generator

PILOT_EXAMPLES, PILOT_PROBES = 256, 8  # from which the noise of a probe is estimated
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
        probes: backward passes that each example took.
    """

    values: Tensor
    errors: Tensor
    probes: int

    @property
    def passes(self) -> int:
        """What an example took, in forward passes."""
        return passes_of(self.probes)


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
            the sum over all labels, which is taken as well where random probes of that precision would cost more.
        generator: of the probes; default: one seeded with 0.
    Raises:
        ValueError: as `fisher_trace`, or rtol < 0.
    """
    if not rtol >= 0:
        raise ValueError(f"rtol must be at least 0, not {rtol}")
    subject, generator = Subject(network, inputs, mask, **options), own_generator(generator)
    with subject.measuring():
        engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
        if rtol:
            probe = spectral_draw(subject, engine, subject.chunk_size(*engine.copies), generator)
            n_probes = probes_for(probe, len(inputs), rtol, generator)
            if n_probes < subject.n_classes:
                drawn = summed_over_layers(probe, len(inputs), n_probes)
                return ExampleTraces(drawn.mean(1), drawn.std(1) / math.sqrt(n_probes), n_probes)
        values = summed_over_layers(label_draw(subject, engine), len(inputs), subject.n_classes).sum(1)
        return ExampleTraces(values, torch.zeros_like(values), subject.n_classes)


def probes_for(draw: Draw, population: int, rtol: float, generator: torch.Generator) -> int:
    """How many reach a relative error, by the noise of the probes of a random part of the examples; at least two."""
    rows = torch.randperm(population, generator=generator)[:PILOT_EXAMPLES]
    drawn = finite(draw(rows, PILOT_PROBES)).sum(2)
    means = drawn.mean(1)
    relative = (drawn.var(1) / means.square())[means > 0]
    return max(2, math.ceil(relative.mean().item() / rtol**2)) if len(relative) else 2


def summed_over_layers(draw: Draw, n: int, k: int) -> Tensor:
    """(n, k) draws of all layers together, of n examples."""
    return torch.cat([finite(draw(rows, k)).sum(2) for rows in torch.arange(n).split(AT_ONCE)])


def label_draw(subject: Subject, engine: Engine) -> Draw:
    """Draws that are the terms of the sum over the labels."""

    def cotangents(logits: Tensor, positions: slice) -> Tensor:
        return every_label(logits)

    size = subject.chunk_size(*engine.copies, other=8 * subject.n_classes**2)
    return draw_squares(subject, engine, size, "Fisher of examples", cotangents)

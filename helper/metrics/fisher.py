"""Trace of the Fisher information matrix over the active parameters."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.cotangents import (
    every_label,
    label_draws,
    label_moments,
    label_skewness,
    sampled_labels,
    spectral_cotangents,
)
from helper.metrics.estimate import Estimate, Sampled, estimate_of
from helper.metrics.fisher_nngeometry import nngeometry_mean
from helper.metrics.importance import importance_mean
from helper.metrics.options import ParameterOptions
from helper.metrics.parameters import one_of
from helper.metrics.per_example import Engine, LoopNorms, choose_engine, vmap_engine
from helper.metrics.sampling import Budget, Draw, finite, sample_mean
from helper.metrics.scores import gradient_guesses, outlying
from helper.metrics.softmax import residuals
from helper.metrics.subject import AT_ONCE, Examples, Subject, own_generator, signs
from helper.processes.sharing import gather_from_processes
from helper.system.seeds import global_seed

FISHER_METHODS = ("spectral", "exact", "vmap", "ours", "nngeometry")
FISHER_METRICS = ("fim", "fim_monte_carlo", "empirical")
PROBING = ("spectral", "exact")  # methods that know the sum over labels and sample none


@dataclass(frozen=True)
class FisherOptions(ParameterOptions):
    """Which estimator of the Fisher trace, of which expectation.

    method: `spectral` draws ||J^T z||^2 with E z z^T = S = diag(p) - p p^T by random signs on the eigenvectors of S, of
        examples drawn by importance where not all are measured; `exact` sums over the C labels; `vmap`, `ours` (one
        example at a time) and `nngeometry` (batch diagonals) sample labels.
    metric: `fim` the expectation over labels (`vmap`, `ours`, `nngeometry` then sum over all of them),
        `fim_monte_carlo` with sampled labels, `empirical` with the data's labels, which is another quantity. Default:
        `fim` for `spectral` and `exact`, `fim_monte_carlo` for the others.
    rtol: of `spectral` only: the others' tails are too heavy to stop on.
    n_probes: of labels by default 5, or a thousand in all.
    """

    method: str = "spectral"
    metric: str | None = None


def fisher_trace(
    network: nn.Module,
    inputs: Examples,
    mask=None,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Estimate:
    """Trace of the Fisher information, E_x E_{y ~ p(.|x)} ||grad log p(y|x)||^2, over the active parameters.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode, left as it was.
        inputs: (N, ...) examples that the mean is about, a tensor or an array.
        mask: parameter name -> bool tensor of the parameter's shape; pruned coordinates do not count.
        labels: (N,) classes, for the metric `empirical`.
        generator: of the draws; default: one seeded with 0, so that the same call gives the same number.
        options: fields of `FisherOptions`.
    Returns:
        Estimate in nats per squared parameter unit; its by_layer traces sum to the value, left_out says what
        was not counted.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, options that contradict each other, or a network
            that the method cannot treat.
    Source: Ye et al. 2022, eq. 2.3 and footnote 4; label sampling: Kunstner et al. 2019.
    """
    started = time.perf_counter()
    chosen, generator = FisherOptions(**options), own_generator(generator)
    chosen = replace(chosen, metric=usual_metric(chosen.method, chosen.metric))
    subject = chosen.subject(network, inputs, mask, chosen.params)
    if chosen.metric == "empirical":
        labels = subject.checked_labels(labels)
    with subject.measuring():
        sampled = fisher_mean(subject, labels, chosen, generator)
    plain = chosen.method in PROBING and chosen.metric == "fim"
    name = chosen.method if plain else f"{chosen.method}:{chosen.metric}"
    seconds = time.perf_counter() - started
    return replace(estimate_of(sampled, list(subject.layers), name, seconds), left_out=subject.left_out)


def fisher_mean(subject: Subject, labels: Tensor | None, chosen: FisherOptions, generator: torch.Generator) -> Sampled:
    """By the chosen estimator."""
    if chosen.method == "nngeometry":
        with global_seed(generator):  # its data loader draws from the global generator
            return nngeometry_mean(subject, chosen.metric, labels, chosen.budget_of_all, generator)
    if chosen.method == "spectral" and chosen.metric == "fim":
        return spectral_mean(subject, chosen.budget, generator)
    return label_mean(subject, chosen.method, chosen.metric, labels, chosen.budget_of_all, generator)


def usual_metric(method: str, metric: str | None) -> str:
    """The metric of a method, by default the one that it is made for.

    Raises:
        ValueError: the method does not do it.
    """
    one_of("fisher_method", method, FISHER_METHODS)
    if metric is None:
        return "fim" if method in PROBING else "fim_monte_carlo"
    one_of("fisher_metric", metric, FISHER_METRICS)
    if metric == "fim_monte_carlo" and method in PROBING:
        raise ValueError(f"fisher_method {method} samples no labels; for fisher_metric {metric} use vmap, ours or nngeometry")
    return metric


# ------------------------------------------------------------------------------------------------- the estimators


def draw_squares(subject: Subject, engine: Engine, size: int, what: str, cotangents: Callable[..., Tensor]) -> Draw:
    """Draws of an engine: `cotangents(logits, positions among the rows)` gives those of each chunk, in float64."""

    def draw(rows: Tensor, k: int) -> Tensor:
        pieces = []
        for part, inputs in subject.chunks(rows, size, k, what):
            pieces.append(scaled_squares(engine, inputs, partial(cotangents, positions=part)).transpose(0, 1).cpu())
        return gather_from_processes(pieces)

    return draw


def scaled_squares(engine: Engine, inputs: Tensor, cotangents: Callable[[Tensor], Tensor]) -> Tensor:
    """(k, N, layers) squared gradient norms in float64; the network sees cotangents of length 1.

    The squares of a confident prediction's own, such as e^-100, are below what float32 holds.
    """
    lengths = []

    def unit(logits: Tensor) -> Tensor:
        z = cotangents(finite(logits))
        length = z.abs().amax(2, keepdim=True)
        lengths.append(length)
        return (z / length.where(length > 0, 1)).to(logits.dtype)

    return engine.squares(inputs, unit).double() * lengths[0].square()


def spectral_mean(subject: Subject, budget: Budget, generator: torch.Generator) -> Sampled:
    engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
    size = subject.chunk_size(*engine.copies)
    score = partial(gradient_guesses, subject, size)
    draw = spectral_draw(subject, engine, size, generator)
    return importance_mean(draw, score, len(subject.inputs), budget, generator, partial(outlying, subject))


def spectral_draw(subject: Subject, engine: Engine, size: int, generator: torch.Generator) -> Draw:
    """Draws ||J^T z||^2 with E z z^T = S, by random signs on the eigenvectors of S, of `size` examples at once."""

    def draw(rows: Tensor, k: int) -> Tensor:
        return torch.cat([draw_some(some, k) for some in rows.split(AT_ONCE)])

    def draw_some(rows: Tensor, k: int) -> Tensor:
        e = signs((len(rows), k, subject.n_classes + 1), generator)

        def cotangents(logits: Tensor, positions: slice) -> Tensor:
            return spectral_cotangents(logits, e[positions].to(logits.device))

        return draw_squares(subject, engine, size, "Fisher", cotangents)(rows, k)

    return draw


def label_mean(
    subject: Subject, method: str, metric: str, labels: Tensor | None, budget: Budget, generator: torch.Generator
) -> Sampled:
    """Labels one way or another: all of them, the data's, or sampled ones."""
    parts = (subject.network, subject.layers, subject.mask)
    if method == "ours":
        engine: Engine = LoopNorms(*parts)
        engine.reference(subject.example)  # refuses a network without a backward pass
    elif method == "vmap":
        engine = vmap_engine(*parts, subject.example)
    else:
        engine = choose_engine(*parts, subject.example, subject.seen.uses)
    each = 5 * 8 * subject.n_classes**2 if metric == "fim" else 0  # the columns of every label, in float64 on the way
    size = subject.chunk_size(*engine.copies, other=each)
    drawn = []

    def draw(rows: Tensor, k: int) -> Tensor:
        drawn.append(rows)
        uniform = torch.rand(len(rows), k, generator=generator, dtype=torch.float64)

        def cotangents(logits: Tensor, positions: slice) -> Tensor:
            if metric == "fim":
                return every_label(logits)
            if metric == "empirical":
                given = subject.labels_of(labels, rows[positions])[:, None]
            else:
                given = sampled_labels(logits, uniform[positions].to(logits.device))
            return residuals(logits, given)

        values = draw_squares(subject, engine, size, "Fisher", cotangents)(rows, k)
        return values.sum(1, keepdim=True) if metric == "fim" else values

    population, sampling = len(subject.inputs), metric == "fim_monte_carlo"
    n_probes = label_draws(budget, population) if sampling else None
    found = sample_mean(draw, population, Budget(0, budget.max_samples, n_probes), generator, exact=not sampling)
    if not sampling:
        return found
    moments = subject.map_logits(torch.cat(drawn), label_moments, size)
    return found.at_least_as_skewed(label_skewness(moments, n_probes, population))

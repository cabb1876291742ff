"""What a measurement gives, and how it is put together from draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NORMAL_QUANTILE = 1.959964  # 97.5 % of a normal distribution lie below it


@dataclass(frozen=True)
class Estimate:
    """A measured mean over a population of examples, with its standard error.

    n_samples: examples measured; draws, among which an example may be more than once, where they are drawn by importance.
    estimator: method; after a semicolon how the examples were drawn.
    """

    value: float
    standard_error: float
    n_samples: int
    estimator: str
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)  # {layer: (value, standard error)}
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()  # parameters that were not counted

    @property
    def half(self) -> float:
        """Half of the 95 % interval: what ± stands for wherever it is shown."""
        return half_interval(self.standard_error)


def half_interval(standard_error: float) -> float:
    """Half of the 95 % interval of a mean with that standard error."""
    return NORMAL_QUANTILE * standard_error


def estimate_of(
    means: Tensor, errors: Tensor, n_samples: int, layers: Sequence[str], estimator: str, seconds: float
) -> Estimate:
    """An `Estimate` from (1 + layers,) means and standard errors, the total first."""
    values, spreads = means.tolist(), errors.tolist()
    by_layer = dict(zip(layers, zip(values[1:], spreads[1:], strict=True), strict=True))
    return Estimate(values[0], spreads[0], n_samples, estimator, by_layer, round(seconds, 3))


def with_total(values: Tensor) -> Tensor:
    """(..., layers) -> (..., 1 + layers): the sum over layers goes in front."""
    return torch.cat([values.sum(-1, keepdim=True), values], -1)


def two_stage_mean(values: Tensor, sizes: Tensor, population: int) -> tuple[Tensor, Tensor]:
    """Mean over a population and its standard error, from a random sample of groups, each probed several times.

    With s² the variance of the group means over G sampled of M groups, and s_w² the variance of the K probes within a
    group, SE² = s²/G - (s² - s_w²/K)/M (Cochran 1977, two-stage sampling). When all groups are in the sample only the
    probes' noise s_w²/(K G) is left.

    Args:
        values: (G, K, L) probe means over the examples of a group; groups of nearly equal size, without replacement,
            independent probes for each group.
        sizes: (G,) examples in each group.
        population: examples that the mean is about; sizes.sum() of them were measured.
    Returns:
        (L,) means and (L,) standard errors; the error is nan where it cannot be told (K = 1, or one group of several).
    """
    unit = unit_of(values)
    values, sizes = values.double() / unit, sizes.to(values.device).double()
    n_groups, n_probes, _ = values.shape
    weighted = values * (sizes / sizes.mean())[:, None, None]
    means = weighted.mean(1)
    within = weighted.var(1).mean(0) if n_probes > 1 else torch.full_like(means[0], torch.nan)
    if sizes.sum() == population:
        variance = within / (n_probes * n_groups)
    elif n_groups > 1:
        between = means.var(0)
        variance = between / n_groups - (between - within / n_probes) * sizes.mean() / population
    else:
        variance = torch.full_like(within, torch.nan)
    return means.mean(0) * unit, variance.clamp(min=0).sqrt() * unit


def weighted_mean(values: Tensor, weights: Tensor, scored: int, population: int) -> tuple[Tensor, Tensor]:
    """Mean over a population and its standard error, from draws with replacement with unequal probabilities.

    Hansen & Hurwitz 1943: values y_i drawn with probability q_i, weighted by w_i = 1/(m q_i), have the mean over the m
    examples that could be drawn; SE² = var(w y)/n. Where those are themselves a random sample of N, (1/m - 1/N) times
    the variance of y over the population is added (double sampling); it is taken from the same draws, probe noise
    included, so it errs on the safe side.

    Args:
        values: (n, L) draws; weights: (n,); scored: m; population: N.
    Returns:
        (L,) means and (L,) standard errors.
    """
    unit = unit_of(values)
    values, weights = values.double() / unit, weights.double()[:, None]
    weighted = weights * values
    mean = weighted.mean(0)
    spread = ((weights * values.square()).mean(0) - mean.square()).clamp(min=0)
    return mean * unit, (weighted.var(0) / len(values) + (1 / scored - 1 / population) * spread).sqrt() * unit


def unit_of(values: Tensor) -> Tensor:
    """The largest magnitude, for squares that neither overflow nor vanish; 1 where all are 0."""
    largest = values.double().abs().max()
    return largest.where(largest > 0, 1)


def stratified(estimates: Sequence[Estimate], sizes: Sequence[int]) -> Estimate:
    """The mean over a population from independent estimates of its parts, weighted by their sizes."""
    shares = [size / sum(sizes) for size in sizes]

    def combine(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
        value = sum(share * v for share, (v, _) in zip(shares, pairs, strict=True))
        return value, sum((share * e) ** 2 for share, (_, e) in zip(shares, pairs, strict=True)) ** 0.5

    by_layer = {layer: combine([e.by_layer[layer] for e in estimates]) for layer in estimates[0].by_layer}
    value, error = combine([(e.value, e.standard_error) for e in estimates])
    seconds = round(sum(e.seconds for e in estimates), 3)
    methods, schemes = zip(*(e.estimator.split("; ") for e in estimates), strict=True)
    estimator = f"{methods[0]}; {' and '.join(dict.fromkeys(schemes))}"
    n_samples, left_out = sum(e.n_samples for e in estimates), estimates[0].left_out
    return Estimate(value, error, n_samples, estimator, by_layer, seconds, left_out)

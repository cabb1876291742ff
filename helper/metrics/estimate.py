"""What a measurement gives, and how it is put together from draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from helper.interval import half_interval


@dataclass(frozen=True)
class Estimate:
    """A measured mean over a population of examples, with its standard error.

    n_samples: examples measured; draws, among which an example may be more than once, where they are drawn by importance.
    estimator: method; after a semicolon how the examples were drawn.
    degrees: of freedom of Student's t with which the standard error makes an interval.
    skewness: of the distribution of the mean, from the draws: how far a few large draws decide on it.
    """

    value: float
    standard_error: float
    n_samples: int
    estimator: str
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)  # {layer: (value, standard error)}
    seconds: float = 0.0
    left_out: tuple[str, ...] = ()  # parameters that were not counted
    degrees: float = math.inf
    skewness: float = 0.0

    @property
    def reliable(self) -> bool:
        """Whether the interval can be believed: not where a few large draws decide on the value."""
        return believable(self.skewness, self.degrees)

    @property
    def half(self) -> float:
        """Half of the 95 % interval: what ± stands for wherever it is shown."""
        return half_interval(self.standard_error, self.degrees, self.skewness)


def whole_estimate(found: object, metric: str) -> Estimate:
    """What the `measure` of a metric has returned, with plain numbers for tensors and arrays of one value.

    Raises:
        TypeError: it is no `Estimate`, or one with something else than numbers.
    """
    wanted = f"--save_{metric}: its measure has to return an Estimate(value, standard_error, n_samples, estimator)"
    if not isinstance(found, Estimate):
        raise TypeError(f"{wanted}, not {type(found).__name__} {found!r}; standard_error is nan where it is not known")
    try:
        numbers = {name: float(getattr(found, name)) for name in ("value", "standard_error", "seconds", "degrees", "skewness")}
        by_layer = {layer: (float(value), float(error)) for layer, (value, error) in found.by_layer.items()}
        return replace(found, **numbers, n_samples=int(found.n_samples), by_layer=by_layer, estimator=str(found.estimator))
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise TypeError(f"{wanted} of numbers: {error}") from None


def believable(skewness: float, degrees: float) -> bool:
    """Whether the interval of a mean, widened for its skewness, can be believed: that is at most degrees ** -1/4.

    The skewness of many draws from a heavy tail falls short of that of the next more, so that they are held to less. Tuned
    on gamma and lognormal draws.
    """
    return not abs(skewness) > degrees**-0.25


def settled(skewness: float, degrees: float) -> bool:
    """Whether no more draws are worth their cost: a t interval misses over 6 % above 0.2 (Cochran 1977, section 2.15)."""
    return believable(skewness, degrees) and not abs(skewness) > 0.2


class Mean(NamedTuple):
    """(L,) means and standard errors, the total first; degrees of freedom and skewness of the first mean."""

    means: Tensor
    errors: Tensor
    degrees: float
    skewness: float

    @property
    def settled(self) -> bool:
        return settled(self.skewness, self.degrees)

    @property
    def reliable(self) -> bool:
        return believable(self.skewness, self.degrees)


@dataclass(frozen=True)
class Sampled:
    """A mean over a population; how many examples were drawn, and how."""

    mean: Mean
    n_samples: int
    scheme: str

    def at_least_as_skewed(self, skewness: float) -> "Sampled":
        """The same where more is known of the mean's distribution than the draws show."""
        return replace(self, mean=self.mean._replace(skewness=max(self.mean.skewness, skewness)))


def estimate_of(sampled: Sampled, layers: Sequence[str], method: str, seconds: float) -> Estimate:
    """An `Estimate` from a sample's means of the total and of each layer."""
    values, spreads = sampled.mean.means.tolist(), sampled.mean.errors.tolist()
    by_layer = dict(zip(layers, zip(values[1:], spreads[1:], strict=True), strict=bool(layers)))
    name = f"{method}; {sampled.scheme}"
    how = {"degrees": sampled.mean.degrees, "skewness": sampled.mean.skewness}
    return Estimate(values[0], spreads[0], sampled.n_samples, name, by_layer, round(seconds, 3), **how)


def with_total(values: Tensor) -> Tensor:
    """(..., layers) -> (..., 1 + layers): the sum over layers goes in front."""
    return torch.cat([values.sum(-1, keepdim=True), values], -1)


def two_stage_mean(values: Tensor, sizes: Tensor, population: int) -> Mean:
    """Mean over a population and its standard error, from a random sample of groups, each probed several times.

    With s² the variance of the group means over G sampled of M groups, and s_w² the variance of the K probes within a
    group, SE² = s²/G - (s² - s_w²/K)/M (Cochran 1977, two-stage sampling). When all groups are in the sample only the
    probes' noise s_w²/(K G) is left. Degrees of freedom are Satterthwaite's.

    Args:
        values: (G, K, L) probe means over the examples of a group; groups of nearly equal size, without replacement,
            independent probes for each group.
        sizes: (G,) examples in each group.
        population: examples that the mean is about; sizes.sum() of them were measured.
    Returns:
        The error is nan where it cannot be told (K = 1, or one group of several).
    """
    unit = unit_of(values)
    values, sizes = values.double() / unit, sizes.to(values.device).double()
    n_groups, n_probes, _ = values.shape
    weighted = values * (sizes / sizes.mean())[:, None, None]
    means = weighted.mean(1)
    within = weighted.var(1).mean(0) if n_probes > 1 else torch.full_like(means[0], torch.nan)
    part = (sizes.sum() / population).item()
    if part == 1:
        variance = within / (n_probes * n_groups)
    elif n_groups > 1:
        between = means.var(0)
        variance = between / n_groups - (between - within / n_probes) * sizes.mean() / population
    else:
        variance = torch.full_like(within, torch.nan)
    errors = variance.clamp(min=0).sqrt()
    among = (1 - part) * means.var(0)[0].item() / n_groups if n_groups > 1 else 0.0
    probing = part * within[0].item() / (n_probes * n_groups)
    degrees = satterthwaite([among, probing], [n_groups - 1, n_groups * (n_probes - 1)])
    third = (1 - part) * third_moment(means[None, :, 0]) / n_groups**2
    third += part * third_moment(weighted[..., 0]) / (n_groups * n_probes) ** 2
    return Mean(means.mean(0) * unit, errors * unit, degrees, skewness_of(third, errors[0].item(), weighted[..., 0]))


def third_moment(values: Tensor) -> float:
    """Mean third central moment of the rows of (G, K) values; of pairs, which show no sign, the mean cube of their spread."""
    centred = (values - values.mean(1, keepdim=True)).double()
    k = values.shape[1]
    if k < 3:
        return centred.abs().pow(3).mean().item() * 2**1.5
    return centred.pow(3).mean().item() * k**2 / ((k - 1) * (k - 2))


def skewness_of(third: float, error: float, draws: Tensor) -> float:
    """Skewness of a mean from its third central moment and its standard error; 0 where there is no error.

    A sample that lacks the rare large draws shows none of its skewness, but still a large error beside the mean. So where
    no draw is negative a draw's skewness is taken to be at least twice its relative standard deviation, that of a gamma
    distribution, and at least the cube of it, as of a lognormal one, which is that and thrice the relative deviation.
    """
    mean = draws.mean().item()
    least = max(2.0, draws.var().item() / mean**2) * error / mean if mean > 0 and (draws >= 0).all() else -math.inf
    return max(third / error**3, least) if error > 0 else 0.0


def satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite 1946); infinite for a sum of zeros."""
    parts = [v**2 / d for v, d in zip(variances, degrees, strict=True) if v > 0 and d > 0]
    return sum(variances) ** 2 / sum(parts) if sum(parts) > 0 else math.inf


def weighted_mean(
    values: Tensor,
    weights: Tensor,
    scored: int,
    population: int,
    random: Tensor | None = None,
    certain: int = 0,
    excess: float = 0.0,
) -> Mean:
    """Mean over a population and its standard error, from draws with replacement with unequal probabilities.

    Hansen & Hurwitz 1943: values y_i drawn with probability q_i, weighted by w_i = 1/(m q_i), have the mean over the m
    examples that could be drawn; SE² = var(w y)/n. Where those are themselves a random sample of N, (1/m - 1/N) times
    the variance of y over the population is added (double sampling); it is taken from the same draws, probe noise
    included, so it errs on the safe side.

    Args:
        values: (n, L) draws; weights: (n,); scored: m; population: N.
        random: (n,) whether a draw is from the random part of the population, where `certain` further examples could be
            drawn for sure.
        excess: mean square, over those m, of guesses with a mean of 1 less what these draws make of it: the variance of
            the values is that much larger than the draws say.
    """
    unit = unit_of(values)
    values, weights = values.double() / unit, weights.double()[:, None]
    n, rest = len(values), population - certain
    weighted = weights * values
    mean = weighted.mean(0)
    left_out = (1 / scored - 1 / rest) * (rest / population) ** 2 if rest else 0.0
    of_rest = weights * (population / rest if rest else 0) * (1 if random is None else random[:, None])
    centre = (of_rest * values).mean(0)
    squares = (of_rest * values.square()).mean(0)
    squares[0] += excess * mean[0].square()
    spread = (squares - centre.square()).clamp(min=0)
    drawing = weighted.var(0) / n
    errors = (drawing + left_out * spread).sqrt()
    third = third_moment(weighted[None, :, 0]) / n**2
    third += left_out**2 * (of_rest[:, 0] * (values[:, 0] - centre[0]).pow(3)).mean().item()
    degrees = satterthwaite([drawing[0].item(), left_out * spread[0].item()], [n - 1, n - 1])
    return Mean(mean * unit, errors * unit, degrees, skewness_of(third, errors[0].item(), weighted[:, 0]))


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
    method = estimates[0].estimator.partition("; ")[0]
    schemes = dict.fromkeys(e.estimator.partition("; ")[2] for e in estimates)
    estimator = "; ".join(filter(None, [method, " and ".join(filter(None, schemes))]))
    errors = [share * e.standard_error / error if error > 0 else 0.0 for share, e in zip(shares, estimates, strict=True)]
    degrees = satterthwaite([e**2 for e in errors], [e.degrees for e in estimates])
    skewness = sum(e**3 * estimate.skewness for e, estimate in zip(errors, estimates, strict=True))
    n_samples, left_out = sum(e.n_samples for e in estimates), estimates[0].left_out
    return Estimate(value, error, n_samples, estimator, by_layer, seconds, left_out, degrees, skewness)

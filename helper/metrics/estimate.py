"""What a measurement gives, and how it is put together from groups of examples."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A measured mean over a population of examples, with its standard error."""

    value: float
    standard_error: float
    n_samples: int
    estimator: str
    by_layer: dict[str, tuple[float, float]] = field(default_factory=dict)  # {layer: (value, standard error)}


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
    values, sizes = values.double(), sizes.to(values.device).double()
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
    return means.mean(0), variance.clamp(min=0).sqrt()


def grouped_estimate(values: Tensor, sizes: Tensor, population: int, layers: list[str], estimator: str) -> Estimate:
    """Total and by-layer `Estimate` from (groups, probes, layers) values; see `two_stage_mean`.

    Raises:
        ValueError: a value is not finite.
    """
    if not torch.isfinite(values).all():
        raise ValueError(f"{estimator}: the network gives values that are not finite; has its training diverged?")
    with_total = torch.cat([values.sum(2, keepdim=True), values], 2)
    means, errors = (t.tolist() for t in two_stage_mean(with_total, sizes, population))
    by_layer = dict(zip(layers, zip(means[1:], errors[1:], strict=True), strict=True))
    return Estimate(means[0], errors[0], int(sizes.sum()), estimator, by_layer)


def sample_groups(n: int, max_samples: int, group_size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of min(n, max_samples) of n examples without replacement, in nearly equal groups of at most `group_size`.

    There are at least two groups, so that the spread over examples can be seen.

    Raises:
        ValueError: fewer than 2 examples.
    """
    rows = torch.randperm(n, generator=generator)[:max_samples]
    if len(rows) < 2:
        raise ValueError(f"a measurement needs at least 2 examples, not {len(rows)}")
    return list(rows.tensor_split(max(2, -(-len(rows) // group_size))))

"""Which examples are drawn and how often each is probed: for a given precision, within a given budget.

A pilot estimates the variances and fixes the sample, which is then drawn afresh; nothing is stopped on the values that it
returns, which with heavy tails ends early and low.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.metrics.estimate import two_stage_mean, weighted_mean, with_total

Draw = Callable[[Tensor, int], Tensor]  # (n,) rows, k -> (n, k, layers) independent unbiased draws of each row's value
Score = Callable[[Tensor], Tensor]  # (n,) rows -> (n,) guesses of what is proportional to their values
PILOT = 256  # draws that the variances are estimated from
MARGIN = 1.25  # on the planned size, because those variances are themselves estimates
FEWEST = 64  # draws or examples: of fewer the spread is not known well enough
FEW = 64  # examples of which each is probed as often as it takes, rather than some more often than others
MOST_DRAWS = 10**6  # that are planned by themselves: a mean near zero can have no small relative error
LEAST_DRAWS = 1000  # where every example is measured and no precision is asked for
SCORED_PER_DRAW = 4  # guesses for each draw, until variances are known
DRAW_COST = 4  # of a draw with its backward pass, in forward passes


@dataclass(frozen=True)
class Budget:
    """How precise, and at most how much.

    Args:
        rtol: standard error asked for, relative to the value; 0: as many draws as the other two say.
        max_samples: most examples measured; None: all.
        n_probes: probes of each example; None: as few as an error needs, or as many as `rtol` asks for.
    Raises:
        ValueError: rtol < 0, max_samples < 2, n_probes < 1.
    """

    rtol: float = 0.05
    max_samples: int | None = None
    n_probes: int | None = None

    def __post_init__(self) -> None:
        if not self.rtol >= 0:
            raise ValueError(f"rtol must be at least 0, not {self.rtol}")
        if self.max_samples is not None and self.max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, not {self.max_samples}")
        if self.n_probes is not None and self.n_probes < 2:
            raise ValueError(f"n_probes must be at least 2, not {self.n_probes}: one draw shows no spread")

    def limit(self, population: int) -> int:
        """Examples that may be measured of `population`.

        Raises:
            ValueError: fewer than 2 examples.
        """
        if population < 2:
            raise ValueError(f"a measurement needs at least 2 examples, not {population}")
        return min(population, self.max_samples or population)


@dataclass(frozen=True)
class Sampled:
    """(1 + layers,) means and standard errors, the total first; how many examples were drawn, and how."""

    means: Tensor
    errors: Tensor
    n_samples: int
    scheme: str


def finite(values: Tensor) -> Tensor:
    """Draws as they are.

    Raises:
        ValueError: one is not finite.
    """
    if not torch.isfinite(values).all():
        raise ValueError("the network gives values that are not finite; has its training diverged?")
    return values


def sample_groups(population: int, n: int, group_size: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of n of the population without replacement, in nearly equal groups of at most `group_size`.

    There are at least two groups, so that the spread over examples can be seen.
    """
    rows = torch.randperm(population, generator=generator)[:n]
    return list(rows.tensor_split(max(2, -(-n // group_size))))


# ------------------------------------------------------------------------------------------- equal probabilities


def sample_mean(draw: Draw, population: int, budget: Budget, generator: torch.Generator, *, exact: bool = False) -> Sampled:
    """Mean over a population from a simple random sample without replacement.

    Args:
        exact: a draw has no noise of its own, so one of each example is enough.
    """
    limit = budget.limit(population)
    probes = 1 if exact else budget.n_probes or 2

    def values_of(n: int, k: int) -> Tensor:
        values = with_total(finite(draw(torch.randperm(population, generator=generator)[:n], k)))
        return values.expand(-1, 2, -1) if exact else values  # two equal draws: no noise within an example

    def measure(n: int, k: int) -> Sampled:
        means, errors = two_stage_mean(values_of(n, k), torch.ones(n), population)
        scheme = "every example" if n == population else "random sample"
        return Sampled(means, errors, n, scheme if exact else f"{scheme}, {k} probes")

    if budget.rtol == 0 or (exact and limit <= PILOT):
        needed = math.ceil(LEAST_DRAWS / population) if limit == population and budget.n_probes is None and not exact else 0
        return measure(limit, max(probes, needed))
    n = min(limit, PILOT)
    values = values_of(n, probes if exact or budget.n_probes else max(probes, math.ceil(PILOT / n)))[..., 0]
    within = values.var(1).mean().item()
    across = max(0.0, values.mean(1).var().item() - within / values.shape[1])
    target = (budget.rtol * values.mean().item()) ** 2 / MARGIN
    return measure(*planned(across, within, target, population, limit, probes, fixed=exact or bool(budget.n_probes)))


def planned(
    across: float, within: float, target: float, population: int, limit: int, probes: int, *, fixed: bool
) -> tuple[int, int]:
    """(examples, probes of each) that reach a squared standard error of `target`.

    Args:
        across: variance between examples; within: of the probes of one.
        fixed: the number of probes may not grow.
    """
    if target == 0:
        return limit, probes
    n = math.ceil((across + within / probes) / (target + across / population))
    if n <= limit or limit < population or fixed:
        return min(max(FEWEST, n), limit), probes
    return population, max(probes, math.ceil(min(within / target, MOST_DRAWS) / population))


# ----------------------------------------------------------------------------------------- unequal probabilities


def importance_mean(draw: Draw, score: Score, population: int, budget: Budget, generator: torch.Generator) -> Sampled:
    """Mean over a population from draws with replacement, with probabilities that follow a guess of the values.

    A random part of the population is scored, and of it examples are drawn with probability 0.9 score / sum + 0.1 / m, so
    that no weight exceeds 10. The whole population is measured, without weights, when the budget allows it.
    """
    if budget.limit(population) == population and (budget.rtol == 0 or population <= FEW):
        return sample_mean(draw, population, budget, generator)
    most = budget.max_samples or MOST_DRAWS  # draws, which may be more than there are examples
    probes = budget.n_probes or 1
    known = torch.full((population,), torch.nan, dtype=torch.float64)

    def sample(n: int, scored: int) -> tuple[Tensor, Tensor]:
        """(n, 1 + layers) values of draws from a random part of the population, and their weights."""
        part = torch.randperm(population, generator=generator)[:scored]
        new = part[known[part].isnan()]
        if len(new):
            known[new] = finite(score(new)).double().cpu()
        guess = known[part]
        chances = 0.9 * guess / guess.sum() + 0.1 / scored if guess.sum() > 0 else torch.full_like(guess, 1 / scored)
        picked, times = torch.multinomial(chances, n, replacement=True, generator=generator).unique(return_counts=True)
        values, weights = [], []
        for power in range(int(times.max()).bit_length()):  # one forward pass for 1, 2, 4, ... draws of an example
            rows, repeats = picked[times >> power & 1 == 1], 1 << power
            if len(rows):
                drawn = finite(draw(part[rows], repeats * probes)).unflatten(1, (repeats, probes))
                values.append(with_total(drawn.mean(2).flatten(0, 1)))
                weights.append((1 / (scored * chances[rows])).repeat_interleave(repeats))
        return torch.cat(values), torch.cat(weights)

    if budget.rtol == 0:
        n, scored = most, min(population, SCORED_PER_DRAW * most)
    else:
        n = min(most, PILOT)
        values, weights = sample(n, min(population, SCORED_PER_DRAW * n))
        mean = (weights * values[:, 0]).mean().item()
        if mean == 0:
            spread, noise = 0.0, 0.0
        else:
            spread = max(0.0, (weights * values[:, 0].square()).mean().item() / mean**2 - 1)
            noise = (weights * values[:, 0]).var().item() / mean**2
        n, scored = planned_draws(spread, noise, population, most, budget.rtol)
    means, errors = weighted_mean(*sample(n, scored), scored, population)
    return Sampled(means, errors, n, f"importance sampling from {scored}")


def planned_draws(spread: float, noise: float, population: int, most: int, rtol: float) -> tuple[int, int]:
    """(draws, examples scored) that reach a relative standard error at the least cost.

    Minimises scored + DRAW_COST draws subject to spread (1/scored - 1/population) + noise / draws = rtol².

    Args:
        spread: variance of the values over the population, relative to the squared mean; noise: of one weighted draw.
    """
    target = rtol**2 / MARGIN
    ratio = min(max(1.0, (spread * DRAW_COST / noise) ** 0.5), 50.0) if noise > 0 else 50.0
    n = (spread / ratio + noise) / (target + spread / population)
    if ratio * n >= population:
        return min(max(FEWEST, math.ceil(noise / target)), most), population
    n = min(max(FEWEST, math.ceil(n)), most)
    return n, min(math.ceil(ratio * n), population)

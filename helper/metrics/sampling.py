"""Which examples are drawn and how often each is probed: for a given precision, within a given budget.

A pilot estimates the variances and fixes the sample, which is then drawn afresh; nothing is stopped on the values that it
returns, which with heavy tails ends early and low.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from helper.metrics.estimate import Sampled, two_stage_mean, with_total

Draw = Callable[[Tensor, int], Tensor]  # (n,) rows, k -> (n, k, layers) independent unbiased draws of each row's value
PILOT = 256  # draws that the variances are estimated from
MARGIN = 1.25  # on the planned size, because those variances are themselves estimates
FEWEST = 64  # draws or examples: of fewer the spread is not known well enough
MOST_DRAWS = 10**6  # that are planned by themselves: a mean near zero can have no small relative error
LEAST_DRAWS = 1000  # where every example is measured and no precision is asked for
MORE = 4  # times as many draws where a few large ones decide on the mean
ROUNDS = 2  # of more draws, at most
NEAR_ZERO = 2  # standard errors of the pilot within which a mean can have no small relative error


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


def sample_mean(draw: Draw, population: int, budget: Budget, generator: torch.Generator, *, exact: bool = False) -> Sampled:
    """Mean over a population from a simple random sample without replacement.

    Args:
        exact: a draw has no noise of its own, so one of each example is enough.
    """
    sample = SimpleSample(draw, population, budget, generator, exact)
    if budget.rtol == 0 or (exact and sample.limit <= PILOT):
        return sample.measure(sample.plan_of_all())
    plan, note = sample.plan_to_precision()
    found = sample.measure(plan, note)
    for _ in range(ROUNDS):
        if found.mean.settled or sample.cannot_grow(plan):
            break
        plan = sample.larger(plan)
        found = sample.measure(plan, note)
    return found


class Plan(NamedTuple):
    """How many examples are drawn, and how many probes are made of each."""

    examples: int
    probes: int


class SimpleSample:
    """Random samples of a population, each drawn afresh as a plan says.

    Attributes:
        limit: examples that may be measured.
        probes: fewest of each example. fixed: whether there may not be more.
    """

    def __init__(self, draw: Draw, population: int, budget: Budget, generator: torch.Generator, exact: bool) -> None:
        self.draw, self.population, self.budget, self.generator, self.exact = draw, population, budget, generator, exact
        self.limit = budget.limit(population)
        self.probes = 1 if exact else budget.n_probes or 2
        self.fixed = exact or budget.n_probes is not None

    def values(self, plan: Plan) -> Tensor:
        """(examples, probes, 1 + layers) draws of a new sample; of exact ones each twice: no noise within an example."""
        rows = torch.randperm(self.population, generator=self.generator)[: plan.examples]
        values = with_total(finite(self.draw(rows, plan.probes)))
        return values.expand(-1, 2, -1) if self.exact else values

    def measure(self, plan: Plan, note: str = "") -> Sampled:
        mean = two_stage_mean(self.values(plan), torch.ones(plan.examples), self.population)
        scheme = "every example" if plan.examples == self.population else "random sample"
        probing = "" if self.exact else f", {plan.probes} probes"
        return Sampled(mean, plan.examples, f"{scheme}{probing}{note}")

    def plan_of_all(self) -> Plan:
        """As many examples as may be; of a small population that is measured whole there are at least `LEAST_DRAWS`."""
        if self.fixed or self.limit < self.population:
            return Plan(self.limit, self.probes)
        return Plan(self.limit, max(self.probes, math.ceil(LEAST_DRAWS / self.population)))

    def plan_to_precision(self) -> tuple[Plan, str]:
        """From a pilot, what reaches the relative standard error asked for; a word where the mean is too near zero for one."""
        n = min(self.limit, PILOT)
        values = self.values(Plan(n, self.probes if self.fixed else max(self.probes, math.ceil(PILOT / n))))[..., 0]
        mean, within = abs(values.mean().item()), values.var(1).mean().item()
        across = max(0.0, values.mean(1).var().item() - within / values.shape[1])
        least = NEAR_ZERO * ((across + within / values.shape[1]) / n) ** 0.5
        note = "" if mean > least or least == 0 else ", near zero: error relative to the noise of one draw"
        return self.plan(across, within, (self.budget.rtol * max(mean, least)) ** 2 / MARGIN), note

    def plan(self, across: float, within: float, target: float) -> Plan:
        """What reaches a squared standard error of `target`.

        Args:
            across: variance between examples; within: of the probes of one.
        """
        if target == 0:
            return Plan(self.limit, self.probes)
        n = math.ceil((across + within / self.probes) / (target + across / self.population))
        if n <= self.limit or self.limit < self.population or self.fixed:
            return Plan(min(max(FEWEST, n), self.limit), self.probes)
        draws = min(within / target, MOST_DRAWS)
        return Plan(self.population, max(self.probes, math.ceil(draws / self.population)))

    def cannot_grow(self, plan: Plan) -> bool:
        return plan.examples == self.limit and (self.fixed or self.limit < self.population)

    def larger(self, plan: Plan) -> Plan:
        """`MORE` times as many examples, or where all are in it as many probes of each."""
        if plan.examples < self.limit:
            return Plan(min(MORE * plan.examples, self.limit), plan.probes)
        return Plan(plan.examples, min(MORE * plan.probes, max(plan.probes, MOST_DRAWS // plan.examples)))

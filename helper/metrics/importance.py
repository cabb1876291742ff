"""Means over examples that are drawn with unequal probabilities, which follow a guess of what each will give."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from helper.metrics.estimate import Mean, Sampled, unit_of, weighted_mean, with_total
from helper.metrics.sampling import FEWEST, MARGIN, MORE, MOST_DRAWS, PILOT, ROUNDS, Budget, Draw, finite, sample_mean

# (n,) rows -> (n, 1 + layers): a factor of every value that is at most 1; guesses of what each layer's are proportional to
Score = Callable[[Tensor], Tensor]
FEW = 64  # examples of which each is probed as often as it takes, rather than some more often than others
SCORED_PER_DRAW = 4  # guesses for each draw, until variances are known
DRAW_COST = 4  # of a draw with its backward pass, in forward passes
UNIFORM = 0.1  # of the chances are equal, so that no weight exceeds 10
BY_SHARES = 0.1  # of a guess follows the layers by their shares of the mean: what is large in a few examples counts, too
AT_FIRST = 0.1  # of a guess is the factor's, the rest the layers' in equal parts, until draws tell more
FIRST_PART = 8  # where no precision is asked for, guesses are learned from the first of so many draws
FEWEST_LEARNED = 25  # draws from which anything is learned
LEARNED_FROM = 4096  # draws at most, of more every second, third, ...
STEPS = 300  # towards the best mixture of guesses: 3 ms


def importance_mean(
    draw: Draw,
    score: Score,
    population: int,
    budget: Budget,
    generator: torch.Generator,
    outlying: Callable[[], Tensor] | None = None,
) -> Sampled:
    """Mean over a population from draws with replacement, with probabilities that follow a guess of the values.

    A random part of the population is scored, and what `outlying` names; of those, examples are drawn with probability
    0.9 guess / sum + 0.1 / m, so that no weight exceeds 10. The guess is a mixture of the factor and of the layers' guesses,
    the one with which the draws of a pilot vary least. The whole population is measured, without weights, when the budget
    allows it. Where a few large draws decide on the mean and a precision is asked for, there are more draws, afresh.

    Args:
        outlying: rows of examples that may be unlike all others.
    """
    if budget.limit(population) == population and (budget.rtol == 0 or population <= FEW):
        return sample_mean(draw, population, budget, generator)
    most = budget.max_samples or MOST_DRAWS  # draws, which may be more than there are examples
    first = budget.max_samples if budget.rtol == 0 else min(most, PILOT)
    drawing = Drawing(draw, score, population, budget.n_probes or 1, generator)
    scored = min(population, SCORED_PER_DRAW * first)
    if outlying is not None and scored < population:
        drawing.certain = outlying()
    if budget.rtol == 0:
        scored = max(scored, drawing.to_see(scored, first**-0.5))
        return drawing.sample(first, scored, learned_from=min(PILOT, first // FIRST_PART))
    drawing.sample(first, scored)
    drawing.learn()
    n, scored = drawing.plan(budget.rtol, most)
    for _ in range(1 + ROUNDS):
        found = drawing.sample(n, scored)
        if found.mean.settled or n == most:
            break
        drawing.learn()
        n, scored = min(MORE * n, most), population
    return found


class Draws(NamedTuple):
    """n draws: (n, 1 + layers) values, (n,) weights, (n,) positions among the rows that could be drawn."""

    values: Tensor
    weights: Tensor
    places: Tensor


class Drawing:
    """Samples of a population by importance, each drawn afresh.

    Attributes:
        certain: rows that are scored whatever the rest.
        shares: (layers,) of the mean, mixture: (1 + layers,) of the guesses; both as far as they are known.
        guesses: (m, 1 + layers) of the rows that could be drawn last; last: the draws.
    """

    def __init__(self, draw: Draw, score: Score, population: int, probes: int, generator: torch.Generator) -> None:
        self.draw, self.score, self.population, self.probes, self.generator = draw, score, population, probes, generator
        self.certain = torch.empty(0, dtype=torch.long)
        self.known: Tensor | None = None  # (population, 1 + layers) scores, nan where there is none yet
        nothing = torch.empty(0)
        self.shares = self.mixture = self.guesses = nothing
        self.last = Draws(nothing, nothing, nothing)

    def sample(self, n: int, scored: int, learned_from: int = 0) -> Sampled:
        """n draws from `certain` and a random part of the others, about `scored` examples in all.

        Args:
            learned_from: so many draws come first, and the others follow what they tell; too few tell nothing.
        """
        part, base = self.part(scored)
        self.guesses = self.guesses_of(part, base)
        first = learned_from if learned_from >= FEWEST_LEARNED else 0
        if first:
            self.last = self.draws(part, base, first)
            self.learn()
        rest = self.draws(part, base, n - first)
        self.last = Draws(*map(torch.cat, zip(self.last, rest, strict=True))) if first else rest
        return Sampled(self.mean(len(part)), n, f"importance sampling from {len(part)}")

    def draws(self, part: Tensor, base: Tensor, n: int) -> Draws:
        """n draws from the rows `part`, of which each stands for `base` examples."""
        chances = base * relative_chances(self.guesses @ self.mixture)
        chances = chances / chances.sum()
        picked, times = torch.multinomial(chances, n, replacement=True, generator=self.generator).unique(return_counts=True)
        values, weights, places = [], [], []
        for power in range(int(times.max()).bit_length()):  # one forward pass for 1, 2, 4, ... draws of an example
            rows, repeats = picked[times >> power & 1 == 1], 1 << power
            if len(rows):
                drawn = finite(self.draw(part[rows], repeats * self.probes)).unflatten(1, (repeats, self.probes))
                values.append(with_total(drawn.mean(2).flatten(0, 1)))
                weights.append((base[rows] / (self.population * chances[rows])).repeat_interleave(repeats))
                places.append(rows.repeat_interleave(repeats))
        return Draws(torch.cat(values), torch.cat(weights), torch.cat(places))

    def mean(self, scored: int) -> Mean:
        """From the last draws, of so many rows that could be drawn."""
        values, weights, places = self.last
        certain = len(self.certain)
        random, squares = places >= certain, (self.guesses[:, 1:] @ self.shares).square()
        drawn = (weights * random * squares[places]).mean() * self.population / (self.population - certain)
        excess = (squares[certain:].mean() - drawn).item()
        return weighted_mean(values, weights, scored - certain, self.population, random, certain, excess)

    def part(self, scored: int) -> tuple[Tensor, Tensor]:
        """(rows that can be drawn, `certain` first; how many examples of the population each stands for)."""
        others = torch.ones(self.population, dtype=torch.bool)
        others[self.certain] = False
        others = others.nonzero().flatten()
        few = others[torch.randperm(len(others), generator=self.generator)[: max(1, scored - len(self.certain))]]
        base = torch.ones(len(self.certain) + len(few), dtype=torch.float64)
        base[len(self.certain) :] = len(others) / len(few)
        return torch.cat([self.certain, few]), base

    def guesses_of(self, part: Tensor, base: Tensor) -> Tensor:
        """(m, 1 + layers) scores of the rows `part`, each with a mean of 1 where not all are 0."""
        new = part if self.known is None else part[self.known[part, 0].isnan()]
        if len(new):
            found = finite(self.score(new)).double().cpu()
            if self.known is None:
                self.known = torch.full((self.population, found.shape[1]), torch.nan, dtype=torch.float64)
                self.shares = torch.full((found.shape[1] - 1,), 1 / (found.shape[1] - 1), dtype=torch.float64)
                self.mixture = mixed(AT_FIRST, self.shares)
            self.known[new] = found
        scores = self.known[part]
        means = (base[:, None] * scores).sum(0) / base.sum()
        return scores / means.where(means > 0, 1)

    def learn(self) -> None:
        """Take the layers' shares and the mixture of guesses from the last draws."""
        values, weights, places = (column[:: math.ceil(len(column) / LEARNED_FROM)] for column in self.last)
        layers = (weights[:, None] * values[:, 1:]).mean(0)
        if layers.sum() > 0:
            self.shares = layers / layers.sum()
            guesses, by_shares = self.guesses[places], mixed(0, self.shares)
            chances = relative_chances((1 - BY_SHARES) * guesses + BY_SHARES * (guesses @ by_shares)[:, None])
            best = best_mixture(chances, weights, values[:, 0] / layers.sum(), start=mixed(0.5, self.shares))
            self.mixture = (1 - BY_SHARES) * best + BY_SHARES * by_shares

    def plan(self, rtol: float, most: int) -> tuple[int, int]:
        """(draws, examples to score) for a relative standard error, from the last draws."""
        values, weights = self.last.values[:, 0] / unit_of(self.last.values), self.last.weights
        mean = (weights * values).mean().item()
        if mean == 0:
            return planned_draws(0.0, 0.0, self.population, most, rtol)
        spread = max(0.0, (weights * values.square()).mean().item() / mean**2 - 1)
        chances = relative_chances(self.guesses[self.last.places] @ self.mixture)
        n, scored = planned_draws(spread, noise_of(values, weights, chances), self.population, most, rtol)
        return n, min(self.population, max(scored, self.to_see(scored, rtol)))

    def to_see(self, scored: int, rtol: float) -> int:
        """Examples to score so that what none of them shows holds no more of the mean than the interval's half width.

        An example not scored has at most the largest guess seen, of so many, with the factor at its most, 1; with 95 %
        probability fewer than 3/m are unlike all m that were seen (rule of three).
        """
        part, base = self.part(scored)
        expected, factor = self.guesses_of(part, base)[:, 1:] @ self.shares, self.known[part, 0]
        largest = (expected / factor.where(factor > 0, 1)).max().item()
        return math.ceil(min(3 * largest / (2 * rtol), self.population))


def mixed(of_factor: float, shares: Tensor) -> Tensor:
    """(1 + layers,) parts of the guesses: the factor's, and the layers' by their shares of the rest."""
    return torch.cat([shares.new_full((1,), of_factor), (1 - of_factor) * shares])


def relative_chances(guess: Tensor) -> Tensor:
    """Of being drawn, relative to the mean, for guesses with a mean of 1."""
    return UNIFORM + (1 - UNIFORM) * guess


def best_mixture(chances: Tensor, weights: Tensor, values: Tensor, start: Tensor) -> Tensor:
    """(L,) parts, which sum to 1, of the relative chances q with which draws' weighted values y / q would vary least.

    The variance is the mean of w (y - q)² / q over draws with weights w, where values have a mean of 1. It is convex in the
    parts; a step minimises what bounds it from above by Jensen's inequality for 1 / q, so that none raises it.

    Args:
        chances: (n, L) of which q is mixed, positive. start: (L,), positive where a part may be.
    """
    parts, linear, squares = start, weights @ chances, weights * values.square()
    for _ in range(STEPS):
        parts = parts * ((squares / (chances @ parts).square()) @ chances / linear).sqrt()
    return parts / parts.sum()


def noise_of(values: Tensor, weights: Tensor, chances: Tensor) -> float:
    """Variance of a weighted draw with other chances, relative to the squared mean."""
    ratio = weights * chances
    mean = (weights * values).sum() / ratio.sum()
    return ((ratio * (values / chances - mean).square()).sum() / (len(values) - 1) / mean.square()).item()


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

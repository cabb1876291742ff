"""Means over examples that are drawn with unequal probabilities, which follow a guess of what each will give."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helper.metrics.estimate import Sampled, unit_of, weighted_mean, with_total
from helper.metrics.sampling import FEWEST, MARGIN, MORE, MOST_DRAWS, PILOT, ROUNDS, Budget, Draw, finite, sample_mean

# (n,) rows -> (n, 1 + layers): a factor of every value that is at most 1; guesses of what each layer's are proportional to
Score = Callable[[Tensor], Tensor]
FEW = 64  # examples of which each is probed as often as it takes, rather than some more often than others
SCORED_PER_DRAW = 4  # guesses for each draw, until variances are known
DRAW_COST = 4  # of a draw with its backward pass, in forward passes


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
    0.9 score / sum + 0.1 / m, so that no weight exceeds 10. The score is the sum of the layers' guesses, each with the
    layer's share of the mean, which a pilot estimates. The whole population is measured, without weights, when the budget
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
        return drawing.sample(first, max(scored, drawing.to_see(scored, first**-0.5)))
    drawing.sample(first, scored)
    n, scored = drawing.plan(budget.rtol, most)
    for _ in range(1 + ROUNDS):
        drawing.learn()
        found = drawing.sample(n, scored)
        if found.mean.settled or n == most:
            break
        n, scored = min(MORE * n, most), population
    return found


class Drawing:
    """Samples of a population by importance, each drawn afresh.

    Attributes:
        certain: rows that are scored whatever the rest.
        shares: (layers,) of the mean, as far as they are known.
        values, weights: (n, 1 + layers) and (n,) of the last draws.
    """

    def __init__(self, draw: Draw, score: Score, population: int, probes: int, generator: torch.Generator) -> None:
        self.draw, self.score, self.population, self.probes, self.generator = draw, score, population, probes, generator
        self.certain = torch.empty(0, dtype=torch.long)
        self.known: Tensor | None = None  # (population, 1 + layers) scores, nan where there is none yet
        self.shares: Tensor | None = None
        self.values = self.weights = torch.empty(0)

    def sample(self, n: int, scored: int) -> Sampled:
        """n draws from `certain` and a random part of the others, about `scored` examples in all."""
        part, base = self.part(scored)
        guess = self.guesses(part, base)[:, 1]
        chances = 0.9 * base * guess / (base * guess).sum() + 0.1 * base / base.sum()
        picked, times = torch.multinomial(chances, n, replacement=True, generator=self.generator).unique(return_counts=True)
        values, weights, places = [], [], []
        for power in range(int(times.max()).bit_length()):  # one forward pass for 1, 2, 4, ... draws of an example
            rows, repeats = picked[times >> power & 1 == 1], 1 << power
            if len(rows):
                drawn = finite(self.draw(part[rows], repeats * self.probes)).unflatten(1, (repeats, self.probes))
                values.append(with_total(drawn.mean(2).flatten(0, 1)))
                weights.append((base[rows] / (self.population * chances[rows])).repeat_interleave(repeats))
                places.append(rows.repeat_interleave(repeats))
        self.values, self.weights = torch.cat(values), torch.cat(weights)
        picked, certain = torch.cat(places), len(self.certain)
        random, squares, scored = picked >= certain, guess.square(), len(part) - certain
        drawn = (self.weights * random * squares[picked]).mean() * self.population / (self.population - certain)
        excess = (squares[certain:].mean() - drawn).item()
        mean = weighted_mean(self.values, self.weights, scored, self.population, random, certain, excess)
        return Sampled(mean, n, f"importance sampling from {len(part)}")

    def part(self, scored: int) -> tuple[Tensor, Tensor]:
        """(rows that can be drawn, `certain` first; how many examples of the population each stands for)."""
        others = torch.ones(self.population, dtype=torch.bool)
        others[self.certain] = False
        others = others.nonzero().flatten()
        few = others[torch.randperm(len(others), generator=self.generator)[: max(1, scored - len(self.certain))]]
        base = torch.ones(len(self.certain) + len(few), dtype=torch.float64)
        base[len(self.certain) :] = len(others) / len(few)
        return torch.cat([self.certain, few]), base

    def guesses(self, part: Tensor, base: Tensor) -> Tensor:
        """(n, 2): the factor that is at most 1, and the guess of the value, with a mean of 1; both 1 where all are 0."""
        new = part if self.known is None else part[self.known[part, 0].isnan()]
        if len(new):
            found = finite(self.score(new)).double().cpu()
            if self.known is None:
                self.known = torch.full((self.population, found.shape[1]), torch.nan, dtype=torch.float64)
            self.known[new] = found
        columns = self.known[part]
        means = (base[:, None] * columns).sum(0) / base.sum()
        layers = columns[:, 1:] / means[1:].where(means[1:] > 0, 1)
        shares = torch.ones(layers.shape[1], dtype=torch.float64) if self.shares is None else self.shares
        guess = layers @ shares
        guess = guess / ((base * guess).sum() / base.sum()) if guess.sum() > 0 else torch.ones_like(guess)
        return torch.stack([columns[:, 0] if means[0] > 0 else torch.ones_like(guess), guess], 1)

    def learn(self) -> None:
        """Take the layers' shares from the last draws."""
        layers = (self.weights[:, None] * self.values[:, 1:]).mean(0)
        if layers.sum() > 0 and len(layers) == self.known.shape[1] - 1:
            self.shares = layers / layers.sum()

    def plan(self, rtol: float, most: int) -> tuple[int, int]:
        """(draws, examples to score) for a relative standard error, from the last draws."""
        unit = unit_of(self.values)
        values = self.values[:, 0] / unit
        mean = (self.weights * values).mean().item()
        if mean == 0:
            return planned_draws(0.0, 0.0, self.population, most, rtol)
        spread = max(0.0, (self.weights * values.square()).mean().item() / mean**2 - 1)
        noise = (self.weights * values).var().item() / mean**2
        n, scored = planned_draws(spread, noise, self.population, most, rtol)
        return n, min(self.population, max(scored, self.to_see(scored, rtol)))

    def to_see(self, scored: int, rtol: float) -> int:
        """Examples to score so that what none of them shows holds no more of the mean than the interval's half width.

        An example not scored has at most the largest guess seen, of so many, with the first factor at its most, 1; with
        95 % probability fewer than 3/m are unlike all m that were seen (rule of three).
        """
        factor, guess = self.guesses(*self.part(scored)).unbind(1)
        largest = (guess / factor.where(factor > 0, 1)).max().item()
        return math.ceil(min(3 * largest / (2 * rtol), self.population))


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

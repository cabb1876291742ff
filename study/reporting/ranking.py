"""Series ranked by test accuracy, at equal sparsity and at equal cost, each against the best by the tests of regimes.py."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas

from study.reporting.aggregate import finest, units_of
from study.reporting.regimes import MARGIN, Gap, judge
from study.reporting.statistics import SHARES, Interval, Spread, interval, spread_of
from study.t_power import resolved

QUANTITY = "acc_test"
ALIKE = 1.1  # costs that differ by no more than this factor count as equal
TOTAL = "relative_cost_with_parents"


@dataclass(frozen=True)
class Place:
    """A series among those that it is ranked with.

    Attributes:
        runs: its rows of the tidy table. accuracy: their mean over independent units.
        behind: minus the best one's, paired by seed; None: it is the best one.
        p_all: adjusted for all pairs of the ranked series, which holds although the best was chosen by the same runs.
    """

    rank: int
    runs: pandas.DataFrame
    accuracy: Interval
    behind: Gap | None
    p_all: float

    @property
    def series(self) -> str:
        return self.runs["series"].iloc[0]


@dataclass(frozen=True)
class Ranking:
    """Series that compare, the best first; `why` they do."""

    sparsity: float
    why: str
    places: tuple[Place, ...]


def paired(one: pandas.DataFrame, other: pandas.DataFrame, quantity: str = QUANTITY) -> Spread | None:
    """One minus other over the seeds that both have; None if there is none."""
    seeds, sides = with_common_seeds(one, other, quantity=quantity)
    if not seeds:
        return None
    mine, theirs, units = by_seed(sides, quantity)
    return spread_of((mine - theirs).tolist(), units, least=finest(pandas.concat(sides), quantity))


def by_seed(sides: Sequence[pandas.DataFrame], quantity: str) -> tuple[pandas.Series, pandas.Series, list[int]]:
    """(the values of both sides, the unit of each) at every seed, of `with_common_seeds`.

    Runs of a seed count as their mean; seeds that share a dense parent or a ticket's weights are one unit.
    """
    mine, theirs = (side.groupby("seed")[quantity].mean() for side in sides)
    both = pandas.concat(sides)
    unit = dict(zip(both["seed"], units_of(both), strict=True))
    return mine, theirs, [unit[seed] for seed in mine.index]


def resolved_by_images(one: pandas.DataFrame, other: pandas.DataFrame) -> float:
    """What the test images of the same runs tell from chance, see `study.t_power.resolved`."""
    _, sides = with_common_seeds(one, other)
    return resolved([side[QUANTITY].mean() for side in sides], min(side["n_test"].min() for side in sides))


def with_common_seeds(*sides: pandas.DataFrame, quantity: str = QUANTITY) -> tuple[list[int], list[pandas.DataFrame]]:
    """(the seeds of which all have a value, the rows of these)."""
    known = [rows[rows[quantity].notna()] for rows in sides]
    seeds = sorted(set.intersection(*(set(rows["seed"]) for rows in known)))
    return seeds, [rows[rows["seed"].isin(seeds)] for rows in known]


def ranked(series: Sequence[pandas.DataFrame], margin: float = MARGIN) -> tuple[Place, ...]:
    """Series, the one with the highest mean test accuracy first.

    The differences from the best are tested together (`Gap.p_holm`), and once more among those of all pairs (`p_all`).
    """
    means = [
        interval(rows[QUANTITY].tolist(), units=units_of(rows), least=finest(rows, QUANTITY), within=SHARES) for rows in series
    ]
    order = sorted((i for i, mean in enumerate(means) if mean.n), key=lambda i: -means[i].mean)
    series, means = [series[i] for i in order], [means[i] for i in order]
    pairs = {pair: paired(series[pair[1]], series[pair[0]]) for pair in itertools.combinations(range(len(series)), 2)}
    pairs = {pair: spread for pair, spread in pairs.items() if spread is not None}
    of_all = dict(zip(pairs, judge(list(pairs.values()), margin), strict=True))
    others = [j for i, j in pairs if i == 0]
    images = [resolved_by_images(series[j], series[0]) for j in others]
    gaps = dict(zip(others, judge([pairs[0, j] for j in others], margin, images), strict=True))
    places = []
    for i, (own, mean) in enumerate(zip(series, means, strict=True)):
        p_all = of_all[0, i].p_holm if (0, i) in of_all else math.nan
        places.append(Place(i + 1, own, mean, gaps.get(i), p_all))
    return tuple(places)


def at_equal_sparsity(runs: pandas.DataFrame, margin: float = MARGIN) -> list[Ranking]:
    """One ranking a sparsity, of all series that have it."""
    found = []
    for sparsity, part in sparse(runs):
        series = series_of(part)
        if len(series) > 1:
            found.append(Ranking(sparsity, "the same share is pruned", ranked(series, margin)))
    return found


def at_equal_cost(runs: pandas.DataFrame, margin: float = MARGIN) -> list[Ranking]:
    """Rankings of the series of one sparsity whose whole training, with all runs that it needs, took alike."""
    found = []
    for sparsity, part in sparse(runs):
        series = [rows for rows in series_of(part) if rows[TOTAL].notna().all()]
        for group in alike(series):
            costs = [rows[TOTAL].mean() for rows in group]
            same = "within 10 % of each other" if max(costs) <= ALIKE * min(costs) else "made so by --train_budget"
            why = f"cost {min(costs):.3g} to {max(costs):.3g} of dense, {same}"
            found.append(Ranking(sparsity, why, ranked(group, margin)))
    return found


def alike(series: Sequence[pandas.DataFrame]) -> list[list[pandas.DataFrame]]:
    """Groups of at least two series whose costs are alike, or that were given the same budget; the cheapest first.

    The cheapest begins a group, which all that cost at most 10 % more belong to; the cheapest of the others begins the next.
    """

    def cost(rows: pandas.DataFrame) -> float:
        budget = rows["relative_budget"].mean()  # of their own steps alone: with a parent the whole costs more
        return rows[TOTAL].mean() if math.isnan(budget) or rows[TOTAL].mean() > ALIKE * rows["relative_cost"].mean() else budget

    groups: list[list[pandas.DataFrame]] = []
    least = math.nan
    for rows in sorted(series, key=cost):
        if groups and cost(rows) <= ALIKE * least:
            groups[-1].append(rows)
        else:
            groups.append([rows])
            least = cost(rows)
    return [group for group in groups if len(group) > 1]


def sparse(runs: pandas.DataFrame) -> Iterable[tuple[float, pandas.DataFrame]]:
    return runs[runs["sparsity"] > 0].groupby("sparsity")


def series_of(runs: pandas.DataFrame) -> list[pandas.DataFrame]:
    return [rows for _, rows in runs.groupby("series", sort=False)]

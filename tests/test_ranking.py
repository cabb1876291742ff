"""Ranks at equal sparsity and at equal cost, against SciPy; the Pareto front, against brute force."""

import itertools
import math

import numpy
import pandas
import pytest
from scipy import stats

from study.reporting.figures_ways import pareto_front
from study.reporting.ranking import TOTAL, alike, at_equal_cost, at_equal_sparsity, paired, ranked, resolved_by_images
from study.reporting.regimes import holm
from study.t_power import resolved


def rows(series: str, values: dict[int, float] | list[float], **columns) -> pandas.DataFrame:
    """Runs of a series, by seed."""
    by_seed = values if isinstance(values, dict) else dict(enumerate(values, 1))
    table = pandas.DataFrame({"seed": list(by_seed), "acc_test": list(by_seed.values())})
    cost = columns.pop("cost", 1.0)
    own = {"series": series, "family": series, "study": "abc", "sparsity": 0.9, "parent": "", "lottery": "", "n_test": 10_000}
    own |= {"relative_budget": math.nan, "relative_cost": cost, TOTAL: cost}
    return table.assign(**(own | columns))


THREE = {
    "a": [0.70, 0.71, 0.69, 0.705],
    "b": [0.74, 0.755, 0.735, 0.742],
    "c": [0.735, 0.76, 0.738, 0.74],
    "d": [0.60, 0.64, 0.61, 0.60],
}


def test_ranks_differences_and_p_values_are_scipys():
    places = ranked([rows(name, values) for name, values in THREE.items()])
    assert [place.series for place in places] == sorted(THREE, key=lambda name: -numpy.mean(THREE[name]))
    assert [place.rank for place in places] == [1, 2, 3, 4]
    best, *others = places
    assert best.behind is None
    tests = {p.series: stats.ttest_rel(THREE[p.series], THREE[best.series]) for p in others}
    adjusted = dict(zip(tests, holm([test.pvalue for test in tests.values()]), strict=True))
    for place in others:
        test, gap = tests[place.series], place.behind
        assert gap.p_value == pytest.approx(test.pvalue)
        low, high = test.confidence_interval()
        assert (gap.interval.low, gap.interval.high) == pytest.approx((low, high))
        assert gap.p_holm == pytest.approx(adjusted[place.series])  # all differences have one sign
        mean, error = numpy.mean(THREE[place.series]), stats.sem(THREE[place.series])
        assert (place.accuracy.low, place.accuracy.high) == pytest.approx(stats.t.interval(0.95, 3, mean, error))


def test_p_values_of_all_pairs_are_adjusted_over_all_pairs():
    places = ranked([rows(name, values) for name, values in THREE.items()])
    order = [place.series for place in places]
    pairs = list(itertools.combinations(order, 2))  # the better one first: all differences are negative
    adjusted = dict(zip(pairs, holm([stats.ttest_rel(THREE[b], THREE[a]).pvalue for a, b in pairs]), strict=True))
    for place in places[1:]:
        assert place.p_all == pytest.approx(min(adjusted[order[0], place.series], 1), rel=1e-6)
        assert place.p_all >= place.behind.p_holm - 1e-12
    assert math.isnan(places[0].p_all)


def test_the_difference_is_that_of_the_seeds_that_both_have():
    one, other = rows("a", {1: 0.5, 2: 0.6, 3: 0.9}), rows("b", {2: 0.5, 3: 0.7, 4: 0.1})
    spread = paired(one, other)
    assert (spread.mean, spread.n, spread.runs) == (pytest.approx(0.15), 2, 2)
    assert resolved_by_images(one, other) == pytest.approx(resolved([0.75, 0.6], 10_000))
    assert paired(rows("a", {1: 0.5}), rows("b", {2: 0.5})) is None


def test_runs_of_a_seed_are_one_value_and_seeds_of_one_parent_one_unit():
    twice = pandas.concat([rows("a", {1: 0.5, 2: 0.7}), rows("a", {1: 0.7})])
    assert paired(twice, rows("b", {1: 0.5, 2: 0.5})).mean == pytest.approx((0.1 + 0.2) / 2)
    spread = paired(rows("a", {1: 0.5, 2: 0.7}, parent="p"), rows("b", {1: 0.5, 2: 0.5}))
    assert (spread.n, spread.runs) == (1, 2)


def test_series_without_a_common_seed_are_ranked_but_not_tested():
    places = ranked([rows("a", {1: 0.9}), rows("b", {2: 0.5}), rows("c", {1: 0.7, 2: math.nan})])
    assert [place.series for place in places] == ["a", "c", "b"]
    assert places[2].behind is None
    assert math.isnan(places[1].behind.p_value)  # one seed has no spread


def test_only_series_of_the_same_sparsity_are_ranked_together_and_dense_ones_are_not():
    runs = pandas.concat(
        [rows("dense", [0.9], sparsity=0.0), rows("a", [0.5]), rows("b", [0.6]), rows("b", [0.4], sparsity=0.95)]
    )
    found = at_equal_sparsity(runs)
    assert [(ranking.sparsity, [p.series for p in ranking.places]) for ranking in found] == [(0.9, ["b", "a"])]


def test_costs_are_alike_within_a_tenth_of_the_cheapest():
    series = [rows(str(cost), [0.5, 0.6], cost=cost) for cost in (1.21, 1.0, 1.1, 3.0, 1.3)]
    assert [[s["series"].iloc[0] for s in group] for group in alike(series)] == [["1.0", "1.1"], ["1.21", "1.3"]]
    for group in alike(series):
        costs = [s[TOTAL].mean() for s in group]
        assert max(costs) <= 1.1 * min(costs)


def test_series_of_one_budget_are_alike_however_their_epochs_came_out():
    series = [rows("a", [0.5, 0.6], cost=0.8, relative_budget=1.0), rows("b", [0.5, 0.6], cost=1.05, relative_budget=1.0)]
    (ranking,) = at_equal_cost(pandas.concat(series))
    assert "--train_budget" in ranking.why
    with_parent = rows("c", [0.5, 0.6], cost=1.0, relative_budget=1.0).assign(**{TOTAL: 2.0})
    (ranking,) = at_equal_cost(pandas.concat([*series, with_parent]))
    assert {p.series for p in ranking.places} == {"a", "b"}  # with the dense run it needs it costs twice as much


def test_budgets_of_other_dense_runs_are_not_alike():
    """--train_budget 1 is one thing for 10 epochs and another for 20, or where the study's dense run takes dearer steps."""
    own, longer = (rows(str(cost), [0.5, 0.6], cost=cost, relative_budget=cost) for cost in (1.0, 2.0))
    assert at_equal_cost(pandas.concat([own, longer])) == []
    dearer = rows("c", [0.5, 0.6], cost=0.52, relative_budget=0.5)
    unlimited = rows("d", [0.5, 0.6], cost=0.5)
    assert [{p.series for p in r.places} for r in at_equal_cost(pandas.concat([own, dearer, unlimited]))] == [{"c", "d"}]


def test_a_run_of_unknown_cost_is_not_ranked_by_it():
    runs = pandas.concat([rows("a", [0.5]), rows("b", [0.6]), rows("c", [0.7], cost=math.nan)])
    (ranking,) = at_equal_cost(runs)
    assert {p.series for p in ranking.places} == {"a", "b"}


@pytest.mark.parametrize("highest", [True, False])
def test_the_front_is_that_of_brute_force(highest):
    draw = numpy.random.default_rng(0)
    for n in (0, 1, 2, 7, 30):
        for digits in (1, 6):  # with many equal values, and with none
            costs, values = draw.random(n).round(digits), draw.random(n).round(digits)
            front = pareto_front(costs.tolist(), values.tolist(), highest=highest)
            gains = values if highest else -values
            beaten = [
                any(
                    c <= costs[i] and g >= gains[i] and (c, g) != (costs[i], gains[i])
                    for c, g in zip(costs, gains, strict=True)
                )
                for i in range(n)
            ]
            assert {(costs[i], values[i]) for i in front} == {(costs[i], values[i]) for i in range(n) if not beaten[i]}
            assert costs[front].tolist() == sorted(costs[front])
            assert len(set(costs[front])) == len(front)


def test_points_without_a_cost_or_a_value_are_not_on_the_front():
    assert pareto_front([math.nan, 1.0, 2.0], [9.0, math.nan, 1.0], highest=True) == [2]

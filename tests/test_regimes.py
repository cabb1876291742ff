"""Tests of gaps: adjustment, intervals that fit it, equivalence, power, and the regime that they add up to."""

import math

import numpy
import pytest
from scipy import integrate, stats

from study.reporting.regimes import ALPHA, MARGIN, detectable, holm, joint_intervals, judge, regime
from study.reporting.statistics import Spread, interval, spread_of
from study.t_power import detectable_effect, images_needed, power_of, resolved, sd_bounds, units_needed


def spread(mean: float, half: float, n: int = 3) -> Spread:
    """With this half of a 95 % interval."""
    return Spread(mean, half / stats.t.ppf(0.975, n - 1) * math.sqrt(n), n, n)


@pytest.mark.parametrize(
    ("training", "test", "expected"),
    [
        (spread(0.05, 0.02), spread(0.0, 0.1), "optimization"),
        (spread(0.05, 0.06), spread(0.03, 0.01), "cannot tell"),
        (spread(0.008, 0.003), spread(0.03, 0.01), "cannot tell"),  # is it below the margin?
        (spread(0.001, 0.002), spread(0.03, 0.01), "generalization"),
        (spread(0.001, 0.002), spread(0.03, 0.05), "cannot tell"),
        (spread(0.001, 0.002), spread(0.001, 0.004), "no gap"),
        (spread(0.001, 0.002), spread(0.004, 0.001), "no gap"),  # there, but smaller than what counts
        (spread(0.005, 0.01), spread(0.03, 0.01), "cannot tell"),
        (spread(-0.02, 0.01), spread(0.0, 0.01), "scratch better"),
        (spread(0.001, 0.002), spread(-0.05, 0.01), "scratch better"),
        (spread(-0.02, 0.01), spread(0.05, 0.01), "generalization"),
        (Spread(0.1, math.nan, 1, 1), spread(0.0, 0.001), "cannot tell"),
        (Spread(0.1, math.nan, 3, 3), spread(0.0, 0.001), "cannot tell"),
    ],
)
def test_regimes_follow_the_stated_rule(training, test, expected):
    (first,), (second,) = judge([training]), judge([test])
    assert regime(first.state, second.state) == expected


def test_no_gap_needs_the_90_percent_interval_within_the_margin():
    found = spread(0.004, 0.0)
    for n, sd in ((3, 0.003), (3, 0.004), (10, 0.009), (10, 0.011)):
        gap = judge([Spread(found.mean, sd, n, n)])[0]
        p_values = [stats.t.sf((MARGIN + sign * found.mean) / (sd / math.sqrt(n)), n - 1) for sign in (1, -1)]
        assert (gap.state == "none") == (max(p_values) < ALPHA)  # two one-sided tests
        assert gap.equivalence == pytest.approx(stats.t.interval(0.9, n - 1, found.mean, sd / math.sqrt(n)))
    assert [judge([Spread(0.004, 0.004, 3, 3)], margin)[0].state for margin in (0.01, 0.02)] == ["unclear", "none"]


def test_a_gap_that_is_no_number_is_not_tested_and_leaves_the_others_alone():
    good = spread(0.05, 0.02)
    broken = Spread(math.nan, 0.01, 3, 3)
    alone, (first, second) = judge([good])[0], judge([good, broken])
    assert (first.p_holm, first.joint) == (alone.p_holm, alone.joint)
    assert second.state == "unclear"
    assert math.isnan(second.p_holm)


def test_holm_is_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []
    draws = numpy.random.default_rng(0)
    for _ in range(100):
        p = draws.uniform(0, 0.2, draws.integers(1, 7))
        rejected, left = set(), list(numpy.argsort(p))
        while left and p[left[0]] <= 0.05 / len(left):  # step down
            rejected.add(left.pop(0))
        assert {i for i in range(len(p)) if holm(p)[i] <= 0.05} == rejected


def test_with_means_of_one_sign_the_adjusted_p_values_are_holms_of_the_two_sided_ones():
    rows = [spread(0.05, 0.02), spread(0.03, 0.04), spread(0.08, 0.01), spread(0.001, 0.2)]
    expected = holm([2 * stats.t.sf(row.mean / row.error, row.n - 1) for row in rows])
    gaps = judge(rows)
    assert [gap.p_holm for gap in gaps] == pytest.approx(expected)
    assert [gap.p_value for gap in gaps] == pytest.approx([stats.ttest_1samp(values_of(row), 0).pvalue for row in rows])


def values_of(row: Spread) -> numpy.ndarray:
    """Values with just this mean and standard deviation."""
    values = numpy.linspace(-1, 1, row.n)
    return row.mean + row.sd * values / values.std(ddof=1)


def test_joint_intervals_leave_out_0_where_the_adjusted_p_value_says_so():
    draws = numpy.random.default_rng(1)
    for _ in range(300):
        m = draws.integers(1, 6)
        rows = [Spread(draws.normal(0, 0.05), draws.uniform(0.001, 0.05), n, n) for n in draws.integers(2, 8, m)]
        for gap in judge(rows):
            low, high = gap.joint
            assert (low >= 0 or high <= 0) == (gap.p_holm <= ALPHA)
            assert low <= gap.interval.mean <= high


@pytest.mark.parametrize("means", [(0, 0, 0, 0), (0.02, 0, 0, 0), (0.1, 0.03, -0.03, 0), (0.1, 0.1, 0.1, 0.1)])
def test_a_table_claims_a_gap_that_is_not_there_once_in_twenty_and_its_intervals_hold_together(means):
    draws = numpy.random.default_rng(2)
    false_claims, missed, repetitions = 0, 0, 1500
    for _ in range(repetitions):
        values = draws.normal(means, 0.02, (5, len(means)))
        rows = [spread_of(column) for column in values.T.tolist()]
        bounds = joint_intervals(rows)
        gaps = judge(rows)
        false_claims += any(
            gap.p_holm <= ALPHA and gap.interval.mean * mean <= 0 for gap, mean in zip(gaps, means, strict=True)
        )
        missed += any(not low <= mean <= high for (low, high), mean in zip(bounds, means, strict=True))
    bound = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repetitions)
    assert false_claims / repetitions < bound
    assert missed / repetitions < bound


def test_equivalence_is_claimed_at_most_once_in_twenty_where_the_gap_is_the_margin():
    draws = numpy.random.default_rng(3)
    values = draws.normal(MARGIN, 0.004, (3000, 3))
    claimed = numpy.mean([judge([spread_of(row)])[0].state == "none" for row in values.tolist()])
    assert claimed < ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 3000)


def test_the_smallest_gap_that_shows_is_that_of_the_noncentral_t():
    for n, alpha in ((3, 0.05), (5, 0.0125), (20, 0.05)):
        effect, critical = detectable_effect(n, alpha), stats.t.isf(alpha / 2, n - 1)
        assert stats.nct.sf(critical, n - 1, effect * math.sqrt(n)) == pytest.approx(0.8, abs=1e-4)

        def shown(s, n=n, effect=effect, critical=critical):  # by the definition: over the distribution of the deviation
            return (
                stats.norm.sf(critical * s - effect * math.sqrt(n))
                * stats.chi.pdf(s * math.sqrt(n - 1), n - 1)
                * math.sqrt(n - 1)
            )

        assert integrate.quad(shown, 0, 10)[0] == pytest.approx(0.8, abs=1e-4)
    assert detectable_effect(10) == pytest.approx(0.9960, abs=1e-4)  # G*Power's for ten pairs
    assert power_of(0.0, 4) == pytest.approx(0.05)
    assert detectable_effect(2, 1e-4) > 1000  # far in the tail


def test_a_gap_of_the_size_that_shows_is_found_in_four_of_five():
    draws, n, sd = numpy.random.default_rng(4), 4, 0.01
    effect = detectable(Spread(0.0, sd, n, n))
    values = draws.normal(effect, sd, (4000, n))
    found = numpy.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 4000))


def test_images_resolve_what_a_binomial_test_of_so_many_finds_in_four_of_five():
    n, share = 1000, 0.68
    gap = resolved([share, share], n)
    assert gap == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(2 * share * (1 - share) / n))
    draws = numpy.random.default_rng(5)
    a, b = draws.binomial(n, share + gap / 2, 4000) / n, draws.binomial(n, share - gap / 2, 4000) / n
    found = numpy.mean(numpy.abs(a - b) > stats.norm.ppf(0.975) * numpy.sqrt((a * (1 - a) + b * (1 - b)) / n))
    assert found == pytest.approx(0.8, abs=0.03)
    assert math.isnan(resolved([0.5, 0.5], math.nan))
    assert images_needed([share, share], gap) == pytest.approx(n)


@pytest.mark.parametrize("effect", [0.05, 0.3, 0.996, 2.0, 40.0])
def test_as_few_units_as_are_needed_have_the_power_and_one_less_has_not(effect):
    n = units_needed(effect)
    assert power_of(effect, n) >= 0.8
    assert n == 2 or power_of(effect, n - 1) < 0.8


def test_units_are_those_of_other_programs_and_a_gap_of_nothing_takes_too_many():
    assert units_needed(0.5) == 34  # G*Power's for a paired difference of half a standard deviation
    assert units_needed(1.0) == 10
    assert units_needed(1e-4) is None


def test_bounds_of_a_standard_deviation_hold_it_nineteen_times_in_twenty():
    draws = numpy.random.default_rng(6).normal(0, 3.0, (4000, 4))
    held = [low < 3 < high for low, high in (sd_bounds(row.std(ddof=1), 4) for row in draws)]
    assert numpy.mean(held) == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


# ------------------------------------------------------------------------------------------- spread that does not show


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("errors", [0.05, 0.4, 1.0, 3.0])
def test_accuracies_of_a_few_errors_are_covered_where_students_t_alone_misses(n, errors):
    draws, images = numpy.random.default_rng(6), 1000
    values = 1 - draws.poisson(errors, (2000, n)) / images
    found = [interval(row, least=1 / images, within=(0, 1)) for row in values.tolist()]
    covered = numpy.mean([i.low <= 1 - errors / images <= i.high for i in found])
    assert covered > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert all(0 <= i.low < i.high <= 1 for i in found)


def test_equal_values_have_an_interval_of_what_is_known_of_them_or_none():
    one_example = interval([0.7, 0.7, 0.7], least=0.001)
    assert one_example.half == pytest.approx(stats.t.ppf(0.975, 2) * 0.001 / math.sqrt(3))
    by_error = interval([5.0, 5.0, 5.0], [0.3, 0.3, 0.3])
    assert by_error.half == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / math.sqrt(3))
    assert math.isnan(interval([0.7, 0.7, 0.7]).low)
    assert "equal" in interval([0.7, 0.7, 0.7]).method
    assert judge([spread_of([0.02, 0.02, 0.02])])[0].state == "unclear"


def test_intervals_end_where_the_quantity_does():
    found = interval([0.99, 1.0, 1.0], least=0.001, within=(0, 1))
    assert found.high == 1
    assert found.low == pytest.approx(stats.t.interval(0.95, 2, *moments([0.99, 1.0, 1.0]))[0])
    assert str(found) == "0.9967 [0.9823, 1.0000]"
    assert interval([1.0, 9.0], within=(0, math.inf)).low == 0


def moments(values: list[float]) -> tuple[float, float]:
    return float(numpy.mean(values)), float(stats.sem(values))

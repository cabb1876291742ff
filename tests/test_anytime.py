"""The interval that may be looked at after every value, by simulation, integration and its own definition."""

import math

import numpy
import pytest
from scipy import optimize, special, stats

from study.anytime import ALPHA, NEGATIVE, NONE, OPEN, POSITIVE, PRIOR_VARIANCE, half_width, look

PATHS, LONGEST, MEAN = 1000, 60, 0.7
DRAWS = {
    "normal": lambda draws: draws.normal(size=(PATHS, LONGEST)),
    "t, 3 degrees": lambda draws: draws.standard_t(3, size=(PATHS, LONGEST)),
    "Laplace": lambda draws: draws.laplace(size=(PATHS, LONGEST)),
    "uniform": lambda draws: draws.uniform(-1, 1, size=(PATHS, LONGEST)),
    "few large ones": lambda draws: (
        draws.normal(size=(PATHS, LONGEST)) * numpy.where(draws.random((PATHS, LONGEST)) < 0.1, 5, 1)
    ),
}


def always_covered(values: numpy.ndarray, mean: float, half) -> numpy.ndarray:
    """Of each path, whether mean ± half(n, squares) covers at every n from 2 on."""
    covered = numpy.ones(len(values), dtype=bool)
    for n in range(2, values.shape[1] + 1):
        part = values[:, :n]
        centre = part.mean(1)
        squares = ((part - centre[:, None]) ** 2).sum(1)
        covered &= numpy.abs(centre - mean) <= numpy.array([half(n, s) for s in squares])
    return covered


@pytest.mark.parametrize("name", DRAWS)
def test_it_covers_over_the_whole_path_where_students_t_does_not(name):
    values = MEAN + DRAWS[name](numpy.random.default_rng(11))
    assert always_covered(values, MEAN, half_width).mean() >= 0.95
    if name == "normal":
        student = always_covered(values, MEAN, lambda n, s: stats.t.ppf(0.975, n - 1) * math.sqrt(s / (n - 1) / n))
        assert student.mean() < 0.85


@pytest.mark.parametrize("gap", [0.1, 0.5])
@pytest.mark.parametrize("true", [0.0, 0.5])
def test_who_stops_when_it_decides_errs_at_most_once_in_twenty(gap, true):
    """No gap where there is one of that size, or one where there is none, in the run of 1,000 sequential sweeps."""
    values = true + numpy.random.default_rng(12).normal(size=(PATHS, LONGEST)) * 0.8
    wrong = 0
    for path in values:
        decisions = (look(path[:n]).decision(gap) for n in range(2, LONGEST + 1))
        decision = next((found for found in decisions if found != OPEN), OPEN)
        wrong += decision == NEGATIVE or (decision == POSITIVE and true == 0) or (decision == NONE and true >= gap)
    assert wrong / PATHS <= 0.05


@pytest.mark.parametrize("n", [4, 7, 30])
def test_its_bounds_are_where_the_ratio_of_likelihoods_is_one_over_alpha(n):
    """The ratio by integration over mean and scale, of which nothing is worked out on paper."""
    values = numpy.random.default_rng(n).normal(1.0, 2.0, n)
    found = look(values)
    if n == 4:
        found = look(values, 0.2)
    alpha = 0.2 if n == 4 else ALPHA

    log_scales, effects = numpy.linspace(-4, 6, 2001)[:, None], numpy.linspace(-14, 14, 1401)[None]
    scales = numpy.exp(log_scales)

    def log_density(shifted: numpy.ndarray, effect: numpy.ndarray) -> numpy.ndarray:
        """Of normal values whose mean is an effect times their scale, for each effect and scale."""
        return sum(stats.norm.logpdf(x, effect * scales, scales) for x in shifted)

    def log_ratio(mean: float) -> float:
        """Both integrated over the scale by ds / s, the first one over effects as well."""
        prior = stats.norm.logpdf(effects, 0, math.sqrt(PRIOR_VARIANCE)) + math.log(effects[0, 1] - effects[0, 0])
        return special.logsumexp(log_density(values - mean, effects) + prior) - special.logsumexp(
            log_density(values - mean, 0.0)
        )

    for bound in (found.low, found.high):
        assert log_ratio(bound) == pytest.approx(math.log(1 / alpha), abs=1e-3)
    assert log_ratio(found.mean) < 0


def test_the_ratio_is_a_martingale_that_begins_with_one():
    """Its mean over normal paths stays 1: the reason for which the interval holds."""
    values = numpy.random.default_rng(3).normal(size=(200_000, 6))
    for n in (2, 6):
        part = values[:, :n]
        squares, mean = ((part - part.mean(1, keepdims=True)) ** 2).sum(1), part.mean(1)
        u, spread = n * mean**2 / squares, 1 + n * PRIOR_VARIANCE
        ratios = spread**-0.5 * ((1 + u) / (1 + u / spread)) ** (n / 2)
        assert ratios.mean() == pytest.approx(1, abs=6 * ratios.std() / math.sqrt(len(ratios)))
        if n == 6:  # what half_width inverts is this ratio
            half = half_width(n, 1.0)
            u = n * half**2
            assert spread**-0.5 * ((1 + u) / (1 + u / spread)) ** (n / 2) == pytest.approx(1 / ALPHA)


def test_few_or_equal_values_tell_nothing_and_many_tell_almost_as_much_as_one_look():
    assert look([0.3]).low == look([0.3, 0.4]).low == -math.inf
    assert look([0.3] * 50).high == math.inf
    assert look([0.3] * 50, least=0.001).high < 0.301
    assert look([0.3] * 50, least=0.001).decision(0.1) == POSITIVE
    values = numpy.random.default_rng(0).normal(size=1000).tolist()
    assert 1.0 < (look(values).high - look(values).mean) / (1.96 / math.sqrt(1000)) < 2.2
    for wrong in ([], [0.1, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            look(wrong)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.009, 0.009, NONE), (0.001, 0.009, NONE), (0.001, 0.02, POSITIVE), (-0.2, -0.05, NEGATIVE), (-0.001, 0.02, OPEN)],
)
def test_what_bounds_decide(low, high, expected):
    from study.anytime import Look

    assert Look(5, (low + high) / 2, low, high).decision(0.01) == expected


def test_narrower_levels_are_narrower():
    widths = [half_width(10, 1.0, alpha) for alpha in (0.01, 0.05, 0.2)]
    assert widths == sorted(widths, reverse=True)
    assert optimize.brentq(lambda a: half_width(10, 1.0, a) - widths[1], 1e-3, 0.5) == pytest.approx(0.05, rel=1e-6)

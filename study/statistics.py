"""Means and gaps over seeds with 95 % intervals, and which regime they speak for."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

LEVEL = 0.95
BORDER = 0.01  # smallest training gap, as a share of the examples, that counts as one
REGIME_RULE = (
    f"Finetuned minus scratch, paired by seed. Optimization regime: the gap in training accuracy is at least {BORDER:g} and "
    "its 95 % interval lies above 0. Where the training gap's interval lies below that border, the gap in test accuracy "
    "decides: generalization regime, if its interval lies above 0; scratch better, if below; no gap, if it includes 0. "
    "Undecided: the training gap's interval allows both sides. With one seed there is no interval, and no regime."
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; nan bounds where there is none. `method` says which."""

    mean: float
    low: float
    high: float
    n: int
    method: str

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """`mean ± half`, the half to two digits and the mean to the same place; without an interval, three digits."""
        if math.isnan(self.mean):
            return ""
        if math.isnan(self.low):
            return rounded(self.mean, place(self.mean, 3))
        at = place(self.half, 2) if self.half > 0 else place(self.mean, 3)
        return f"{rounded(self.mean, at)} ± {rounded(self.half, at)}"

    def bounds(self) -> str:
        """`mean [low, high]`."""
        if math.isnan(self.low):
            return str(self)
        at = place(self.half, 2) if self.half > 0 else place(self.mean, 3)
        return f"{rounded(self.mean, at)} [{rounded(self.low, at)}, {rounded(self.high, at)}]"


def place(value: float, digits: int) -> int:
    """Decimal places that show a number to so many digits; negative ones for large numbers."""
    return digits - 1 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else digits


def rounded(value: float, places: int) -> str:
    """A number to decimal places, with separators between thousands; scientific where it would be all zeros."""
    if not math.isfinite(value):
        return str(value)
    return f"{round(value, places):,.{max(places, 0)}f}" if places <= 6 else f"{value:.2e}"


def interval(values: Sequence[float], errors: Sequence[float] | None = None) -> Interval:
    """Mean over seeds with Student's t interval; of one seed, 1.96 standard errors of the measurement, if it has one.

    Over several seeds the measurements' own errors are in their spread already. Seeds without a finite value do not count.

    Args:
        errors: standard error of each value's measurement.
    """
    pairs = zip(values, errors if errors is not None else [math.nan] * len(values), strict=True)
    known = [(value, error) for value, error in pairs if math.isfinite(value)]
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0, "no value")
    seeds = numpy.array([value for value, _ in known])
    mean, n = float(seeds.mean()), len(seeds)
    if n > 1:
        half = float(quantile(n - 1) * seeds.std(ddof=1) / math.sqrt(n))
        half = half if half > 1e-12 * abs(mean) else 0.0  # rounding is no spread
        return Interval(mean, mean - half, mean + half, n, f"t, {n} seeds")
    error = known[0][1]
    if math.isnan(error):
        return Interval(mean, math.nan, math.nan, 1, "one seed")
    half = float(stats.norm.ppf((1 + LEVEL) / 2) * error)
    return Interval(mean, mean - half, mean + half, 1, "standard error of one measurement")


@functools.cache
def quantile(degrees: int) -> float:
    """Of Student's t that leaves 2.5 % above."""
    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Geometric mean of paired ratios, with the interval of their logarithms' mean; pairs must be positive."""
    pairs = [(a, b) for a, b in zip(above, below, strict=True) if a > 0 and b > 0]
    logs = interval([math.log(a / b) for a, b in pairs])
    mean, low, high = (float(numpy.exp(numpy.minimum(bound, 700))) for bound in (logs.mean, logs.low, logs.high))
    return Interval(mean, low, high, logs.n, logs.method)


def regime(training_gap: Interval, test_gap: Interval) -> str:
    """Which regime the gaps (finetuned minus scratch) speak for, by `REGIME_RULE`."""
    if math.isnan(training_gap.low) or math.isnan(test_gap.low):
        return "one seed"
    if training_gap.mean >= BORDER:
        return "optimization" if training_gap.low > 0 else "undecided"
    if training_gap.high >= BORDER:
        return "undecided"
    if test_gap.low > 0:
        return "generalization"
    return "scratch better" if test_gap.high < 0 else "no gap"

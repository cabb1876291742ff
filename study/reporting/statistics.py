"""Means over independent runs with 95 % intervals, and how they are written."""

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

LEVEL = 0.95
ANYWHERE = (-math.inf, math.inf)
SHARES = (0.0, 1.0)
NOT_NEGATIVE = (0.0, math.inf)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; nan bounds where there is none, and `method` says why. Without a mean as well.

    Attributes:
        n: independent units behind it, see `independent`; runs: runs in them.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str
    runs: int = 0

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """`mean ± half`, the half to two digits and the mean to the same place; without an interval, three digits.

        An interval that is not the same on both sides, `mean [low, high]`.
        """
        if math.isnan(self.mean):
            return self.method if self.n else ""
        if math.isnan(self.low):
            return rounded(self.mean, place(self.mean, 3))
        if not math.isclose(self.mean - self.low, self.high - self.mean, rel_tol=1e-6, abs_tol=1e-12 * abs(self.mean)):
            return self.bounds()
        at = place(self.half, 2) if self.half > 0 else place(self.mean, 3)
        return f"{rounded(self.mean, at)} ± {rounded(self.half, at)}"

    def bounds(self) -> str:
        """`mean [low, high]`."""
        if math.isnan(self.mean) or math.isnan(self.low):
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
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}" if places <= 6 else f"{value:.2e}"


def independent(shared: Sequence[Sequence[Hashable]]) -> list[int]:
    """The number of each run's unit: runs that have something in common, directly or through others, are one unit.

    Args:
        shared: of each run, what it may have in common with others, such as its seed and its dense parent.
    """
    unit_of: dict[Hashable, int] = {}
    for index, labels in enumerate(shared):
        met = {unit_of[label] for label in labels if label in unit_of}
        own = min(met, default=index)
        unit_of = {label: own if unit in met else unit for label, unit in unit_of.items()} | dict.fromkeys(labels, own)
    return [unit_of[labels[0]] for labels in shared]


@dataclass(frozen=True)
class Spread:
    """The mean of n independent units, each the mean of its runs, and the standard deviation of a unit; nan if unknown."""

    mean: float
    sd: float
    n: int
    runs: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n)

    def half(self, level: float = LEVEL) -> float:
        """Half of Student's t interval; nan where the spread is unknown."""
        return quantile(level, self.n - 1) * self.error if self.n > 1 else math.nan


@functools.cache
def quantile(level: float, degrees: int) -> float:
    """Of Student's t, within plus or minus which lies a share `level`."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


def spread_of(values: Sequence[float], units: Sequence[int] | None = None, *, least: float = math.nan) -> Spread:
    """Mean and standard deviation over units.

    Values that are all equal show no spread, and that of a few counts shows less than there is: `least` takes its place.

    Args:
        values: finite. units: of each value; default: one each.
        least: smallest standard deviation to believe, for a share of N examples 1/N; nan: unknown, and then nothing is
            known of the spread of equal values.
    """
    by_unit: dict[int, list[float]] = {}
    for value, unit in zip(values, units if units is not None else range(len(values)), strict=True):
        by_unit.setdefault(unit, []).append(value)
    means = numpy.array([sum(own) / len(own) for own in by_unit.values()])
    mean, n, sd = float(means.mean()), len(means), math.nan
    if n > 1:
        sd = float(means.std(ddof=1))
        sd = math.nan if sd <= 1e-12 * abs(mean) else sd  # rounding is no spread
        sd = float(numpy.fmax(sd, least))
    return Spread(mean, sd, n, len(values))


def interval(
    values: Sequence[float],
    errors: Sequence[float] | None = None,
    units: Sequence[int] | None = None,
    *,
    least: float = math.nan,
    within: tuple[float, float] = ANYWHERE,
) -> Interval:
    """Mean over independent units with Student's t interval; of a single one, that of the measurement.

    Over several units the measurements' own errors are in their spread already; where values are all equal, their errors, or
    else `least`, stand for it, and without either there is no interval. Runs without a finite value do not count.

    Args:
        errors: of each value's measurement, half of its 95 % interval over the normal quantile 1.96.
        units: of each value, see `independent`; default: every value is one.
        least: smallest standard deviation of a unit to believe, see `spread_of`.
        within: where the quantity can lie at all; the interval is cut to it, by which it loses no coverage.
    """
    rows = zip(values, errors or [math.nan] * len(values), units or range(len(values)), strict=True)
    known = [row for row in rows if math.isfinite(row[0])]
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0, "no value")
    finite, own, groups = (list(column) for column in zip(*known, strict=True))
    found = spread_of(finite, groups, least=least)
    measured = math.sqrt(sum(error**2 for error in own)) / len(own)  # standard error of the mean by the measurements alone
    half, method = found.half(), f"t, {counted(found)}"
    if found.n == 1:
        half = quantile_normal() * measured
        method = "standard error of one measurement" if found.runs == 1 else f"standard error of {found.runs} measurements"
        method = method if half == half else counted(found)
    elif math.isnan(half):
        half = quantile(LEVEL, found.n - 1) * measured
        method = f"{counted(found)} are equal: " + ("their measurements' errors" if half == half else "no interval")
    return cut(found, half, within, method)


def counted(found: Spread) -> str:
    """`3 seeds`, or how many units they are where several runs share a dense parent or a seed."""
    if found.n == found.runs:
        return "one seed" if found.n == 1 else f"{found.n} seeds"
    return f"{found.n} independent {'unit' if found.n == 1 else 'units'} of {found.runs} runs"


def cut(found: Spread, half: float, within: tuple[float, float], method: str) -> Interval:
    """The interval of a mean ± half, as far as it lies within the quantity's range."""
    low, high = found.mean - half, found.mean + half
    if not math.isnan(half):
        low, high = max(low, within[0]), min(high, within[1])
    return Interval(found.mean, low, high, found.n, method, found.runs)


def quantile_normal(level: float = LEVEL) -> float:
    return float(stats.norm.ppf((1 + level) / 2))


def ratio_interval(above: Sequence[float], below: Sequence[float], units: Sequence[int] | None = None) -> Interval:
    """Geometric mean of paired ratios, with the interval of their logarithms' mean.

    Pairs of which a value was not measured (nan) do not count. A value that is not positive has no logarithm, and to leave
    its pair out would choose the others by their outcome: then the ratio is not defined, and `method` says so.
    """
    rows = zip(above, below, units or range(len(above)), strict=True)
    known = [(a, b, unit) for a, b, unit in rows if not (math.isnan(a) or math.isnan(b))]
    bad = sum(not (0 < a < math.inf and 0 < b < math.inf) for a, b, _ in known)
    if bad:
        why = f"not defined: {bad} of {len(known)} {'pair' if len(known) == 1 else 'pairs'} not positive"
        return Interval(math.nan, math.nan, math.nan, len(known), why, len(known))
    logs = interval([math.log(a) - math.log(b) for a, b, _ in known], units=[unit for *_, unit in known])
    mean, low, high = (float(numpy.exp(numpy.minimum(bound, 700))) for bound in (logs.mean, logs.low, logs.high))
    return Interval(mean, low, high, logs.n, logs.method, logs.runs)

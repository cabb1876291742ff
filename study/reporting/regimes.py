"""Gaps between finetuned and scratch: what they show, what they could have shown, and which regime they speak for.

The gaps of a table are tested together. Every test is Student's t of the paired differences' mean over independent units.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import stats

from study.reporting.statistics import Interval, Spread, counted, cut
from study.t_power import ALPHA, detectable_effect

MARGIN = 0.01  # of accuracy: a smaller gap does not count as one
POSITIVE, NEGATIVE, NONE, UNCLEAR = "positive", "negative", "none", "unclear"
CANNOT_TELL = "cannot tell"
DIFFERENCES = (-1.0, 1.0)  # of two shares


@dataclass(frozen=True)
class Gap:
    """A mean difference of accuracies, finetuned minus scratch, and what the tests of its table say of it.

    Attributes:
        interval: 95 %, of this gap by itself.
        p_value: two-sided, of no difference. p_holm: adjusted for the other gaps of the family, see `holm_two_sided`.
        joint: (low, high), which hold for all gaps of the family together with 95 % and fit the adjusted decisions.
        equivalence: (low, high) of the 90 % interval; it lies within ± margin where two one-sided tests at 5 % say so.
        detectable: smallest difference that this many units of this spread show with 80 % power, tested at 5 %;
            detectable_holm: at Holm's first step. images: what these test images resolve with that power, see `resolved`.
        state: positive, negative, none (within the margin) or unclear.
    """

    interval: Interval
    p_value: float
    p_holm: float
    joint: tuple[float, float]
    equivalence: tuple[float, float]
    detectable: float
    detectable_holm: float
    images: float
    state: str


def rule(margin: float) -> str:
    """The rule by which `regime` decides, in words."""
    return (
        f"Finetuned minus scratch, paired. A gap is there if its p-value, adjusted by Holm for the rows of the table, is at "
        f"most {ALPHA:.2g} and its mean at least {margin:g}; there is none if its 90 % interval lies within ± {margin:g} (two "
        "one-sided tests at 5 %). Optimization regime: finetuned is ahead in training accuracy. Generalization regime: it is "
        "ahead in test accuracy, and not in training accuracy. No gap: none in either. Scratch better: it is ahead in one and "
        "not behind in the other. Otherwise, and with fewer than two independent units: cannot tell."
    )


def judge(spreads: Sequence[Spread], margin: float = MARGIN, images: Sequence[float] | None = None) -> list[Gap]:
    """The gaps of one family, tested together.

    Args:
        spreads: of the paired differences of each row; those of less than two units, or without a spread, are not tested.
        margin: smallest difference of accuracies that counts.
        images: what each row's test images resolve, see `resolved`; default: it does not apply.
    """
    tested = [index for index, spread in enumerate(spreads) if spread.error > 0 and math.isfinite(spread.mean)]
    family = [spreads[index] for index in tested]
    tests = dict(zip(tested, zip(holm_two_sided(family), joint_intervals(family), strict=True), strict=True))
    gaps = []
    for index, spread in enumerate(spreads):
        p_holm, joint = tests.get(index, (math.nan, (math.nan, math.nan)))
        inner = spread.half(1 - 2 * ALPHA)
        equivalence = (spread.mean - inner, spread.mean + inner)
        gap = Gap(
            interval=cut(spread, spread.half(), DIFFERENCES, f"t, {counted(spread)}"),
            p_value=two_sided(spread),
            p_holm=p_holm,
            joint=joint,
            equivalence=equivalence,
            detectable=detectable(spread),
            detectable_holm=detectable(spread, ALPHA / max(len(family), 1)),
            images=math.nan if images is None else images[index],
            state=state_of(spread.mean, p_holm, equivalence, margin),
        )
        gaps.append(gap)
    return gaps


def state_of(mean: float, p_holm: float, equivalence: tuple[float, float], margin: float) -> str:
    if -margin < equivalence[0] and equivalence[1] < margin:
        return NONE
    if p_holm <= ALPHA and abs(mean) >= margin:
        return POSITIVE if mean > 0 else NEGATIVE
    return UNCLEAR


def regime(training: str, test: str) -> str:
    """Which regime the states of a training and a test gap speak for, by `rule`."""
    if training == POSITIVE:
        return "optimization"
    if UNCLEAR in (training, test):
        return CANNOT_TELL
    if test == POSITIVE:
        return "generalization"
    return "scratch better" if NEGATIVE in (training, test) else "no gap"


# ---------------------------------------------------------------------------------------------------------- the tests


def one_sided(spread: Spread) -> float:
    """p-value of the hypothesis that the mean is at most 0."""
    return float(stats.t.sf(spread.mean / spread.error, spread.n - 1)) if spread.error > 0 else math.nan


def two_sided(spread: Spread) -> float:
    """p-value of the hypothesis that the mean is 0."""
    return 2 * min(one_sided(spread), one_sided(mirrored(spread)))


def mirrored(spread: Spread) -> Spread:
    return dataclasses.replace(spread, mean=-spread.mean)


def holm(p_values: Sequence[float]) -> numpy.ndarray:
    """Adjusted p-values: the k-th smallest of m times (m - k + 1), none below the one before it, at most 1 (Holm 1979)."""
    order = numpy.argsort(p_values, kind="stable")
    steps = numpy.asarray(p_values, dtype=float)[order] * numpy.arange(len(order), 0, -1)
    adjusted = numpy.empty(len(order))
    adjusted[order] = numpy.minimum(numpy.maximum.accumulate(steps), 1)
    return adjusted


def holm_two_sided(spreads: Sequence[Spread]) -> list[float]:
    """Adjusted two-sided p-values: Holm's over the tests for a positive and over those for a negative mean, times two.

    Where all means have one sign it is Holm's adjustment of the two-sided p-values; else it may be larger, which is what
    intervals with two bounds that fit the decisions cost, see `joint_intervals`.
    """
    signs = [holm([one_sided(spread) for spread in family]) for family in (spreads, [mirrored(s) for s in spreads])]
    return [min(1.0, 2 * min(pair)) for pair in zip(*signs, strict=True)]


def joint_intervals(spreads: Sequence[Spread]) -> list[tuple[float, float]]:
    """Bounds that hold together with at least 95 %, whatever the dependence, and exclude 0 where Holm's test rejects it."""
    lower = joint_lower_bounds(spreads, ALPHA / 2)
    upper = joint_lower_bounds([mirrored(spread) for spread in spreads], ALPHA / 2)
    return [(low, -high) for low, high in zip(lower, upper, strict=True)]


def joint_lower_bounds(spreads: Sequence[Spread], alpha: float) -> list[float]:
    """Lower bounds that hold together with probability 1 - alpha and are at least 0 where Holm's test says positive.

    Rows that are not rejected share alpha; a rejected one is known to be positive, and more only if all rows are rejected.
    Source: Strassburger and Bretz 2008, Guilbaud 2008.
    """
    rejected = holm([one_sided(spread) for spread in spreads]) <= alpha
    sharing = int((~rejected).sum()) or len(spreads)
    bounds = [s.mean - float(stats.t.isf(alpha / sharing, s.n - 1)) * s.error for s in spreads]
    if len(spreads) and rejected.all():
        return [max(bound, 0.0) for bound in bounds]
    return [0.0 if out else bound for bound, out in zip(bounds, rejected, strict=True)]


# ---------------------------------------------------------------------------------------- what could have been shown


def detectable(spread: Spread, alpha: float = ALPHA) -> float:
    """Smallest true difference that units of this number and standard deviation show with 80 % power; nan without a test."""
    return detectable_effect(spread.n, alpha) * spread.sd if spread.sd > 0 else math.nan

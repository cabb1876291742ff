"""An interval for a mean that may be looked at after every value: it covers at all looks together with its level.

Student's t interval holds at one number of values that was fixed before. Who adds seeds until it excludes 0 will find that it
does, sooner or later, whatever the truth is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

ALPHA = 0.05
PRIOR_VARIANCE = 4.0  # of the mean in standard deviations: the interval is narrowest from some 5 values to some 50
FEWEST = 3  # values of which an interval can be finite
POSITIVE, NEGATIVE, NONE, OPEN = "positive", "negative", "none", "open"


@dataclass(frozen=True)
class Look:
    """What n values say: their mean, and the bounds of the interval, infinite while there are too few."""

    n: int
    mean: float
    low: float
    high: float

    def decision(self, gap: float) -> str:
        """NONE: the mean lies within ± gap. POSITIVE, NEGATIVE: it is not 0. OPEN: it may be either."""
        if -gap < self.low and self.high < gap:
            return NONE
        if self.low > 0 or self.high < 0:
            return POSITIVE if self.low > 0 else NEGATIVE
        return OPEN


def look(values: Sequence[float], alpha: float = ALPHA, *, least: float = 0.0) -> Look:
    """Bounds that hold for all n at once with probability 1 - alpha, of independent normal values of any mean and variance.

    Those means m that the values do not speak against: for each, the ratio of likelihoods of the values less m, up to their
    scale, between a mean that is normal about 0 with PRIOR_VARIANCE, in standard deviations, and the mean 0, is below
    1 / alpha. With m the true mean these ratios are a martingale that begins with 1, whose supremum exceeds 1 / alpha with
    probability alpha at most (Ville's inequality). Values with heavier tails than normal ones make it wider than need be.

    Sources: Lai 1976; Wang and Ramdas 2024, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance".

    Args:
        least: smallest standard deviation to believe, for a difference of shares of N examples 1/N: a few of them may be equal.
    Raises:
        ValueError: no value, or one that is not finite.
    """
    n, array = len(values), numpy.asarray(values, dtype=float)
    if n == 0 or not numpy.isfinite(array).all():
        raise ValueError("expected one or more finite values")
    mean = float(array.mean())
    squares = max(float(((array - mean) ** 2).sum()), (n - 1) * least**2)
    half = half_width(n, squares if squares > n * (1e-12 * mean) ** 2 else 0.0, alpha)  # rounding is no spread
    return Look(n, mean, mean - half, mean + half)


def half_width(n: int, squares: float, alpha: float = ALPHA) -> float:
    """Of the interval of `look`; infinite where the values tell nothing, as equal ones do.

    The ratio of likelihoods is (1 + n v)^(-1/2) ((1 + u) / (1 + u / (1 + n v)))^(n/2) with v the prior variance and
    u = n (mean - m)^2 / squares; it is 1 / alpha at the bounds.

    Args:
        squares: sum of the squared deviations from the mean.
    """
    spread = 1 + n * PRIOR_VARIANCE
    bound = math.exp(math.log(spread / alpha**2) / n)
    if bound >= spread or not squares > 0:
        return math.inf
    return math.sqrt(squares / n * (bound - 1) / (1 - bound / spread))

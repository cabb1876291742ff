"""What tests of a mean difference over independent units could show: Student's t, and the binomial error of shares."""

import functools
import math
from collections.abc import Sequence

import numpy
from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
NORMAL = numpy.linspace(-9, 9, 4001)  # at which a standard normal is integrated over
WEIGHTS = stats.norm.pdf(NORMAL) * (NORMAL[1] - NORMAL[0])
MOST_UNITS = 1_000_000


def power_of(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided t test of n units rejects no difference where the mean is `effect` standard deviations.

    The noncentral t distribution: T exceeds t where the standard deviation that was drawn is below (Z + centre) / t. As an
    integral over the normal Z, because scipy's is nan in the far tails that few units have.
    """
    critical, centre = float(stats.t.isf(alpha / 2, n - 1)), effect * math.sqrt(n)
    found = 0.0
    for sign in (1, -1):
        ratio = numpy.maximum(NORMAL + sign * centre, 0) / critical
        found += float(WEIGHTS @ stats.chi2.cdf((n - 1) * ratio**2, n - 1))
    return found


@functools.cache
def detectable_effect(n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest mean, in standard deviations, that a two-sided t test of n units finds with that power."""
    high = 1.0
    while power_of(high, n, alpha) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: power_of(effect, n, alpha) - power, 0, high))


def units_needed(effect: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Fewest units with which a two-sided t test finds a mean of so many standard deviations; None: over MOST_UNITS."""
    high = 2
    while power_of(effect, high, alpha) < power:
        if high >= MOST_UNITS:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, alpha) >= power else (middle, high)
    return high


def sd_bounds(sd: float, n: int, level: float = 1 - ALPHA) -> tuple[float, float]:
    """Within which the standard deviation of a normal unit lies, by n of them."""
    low, high = (float(stats.chi2.ppf(share, n - 1)) for share in ((1 + level) / 2, (1 - level) / 2))
    return sd * math.sqrt((n - 1) / low), sd * math.sqrt((n - 1) / high)


def resolved(shares: Sequence[float], n_images: float) -> float:
    """Smallest difference of two accuracies that n images tell from chance with 80 % power, whatever the number of seeds.

    Seeds share the test images, so that more of them do not make up for few images. The binomial standard error of a
    difference, as if the two networks erred independently; of networks that find the same images hard it is smaller.
    """
    if not n_images > 0:
        return math.nan
    return told_apart() * math.sqrt(sum(share * (1 - share) for share in shares) / n_images)


def images_needed(shares: Sequence[float], gap: float) -> float:
    """Images of which two accuracies that differ so much are told from chance with 80 % power, see `resolved`."""
    return (told_apart() / gap) ** 2 * sum(share * (1 - share) for share in shares)


def told_apart() -> float:
    """Standard errors that a normal mean has to be from 0 to be told from it in a two-sided test with that power."""
    return float(stats.norm.isf(ALPHA / 2) + stats.norm.ppf(POWER))

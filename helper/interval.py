"""95 % intervals of measurements."""

import math

NORMAL_QUANTILE = 1.959964  # 97.5 % of a normal distribution lie below it
SKEWED = 1.1  # skewness² of a mean for which its interval is widened as if 1 / degrees were so much larger
FEWEST_DEGREES = 1  # that skewness leaves: with fewer an interval says nothing
FEW_DEGREES = 6  # of freedom, with which the expansion of Student's t is not good enough


def half_interval(standard_error: float, degrees: float = math.inf, skewness: float = 0.0) -> float:
    """Half of the 95 % interval of a mean with that standard error, by Student's t with so many degrees of freedom.

    Where the mean's distribution is skewed such an interval misses more often, by about 0.2 skewness² (Hall 1992, section
    2.6), which fewer degrees make up for: 1 / degrees + 0.8 skewness² for gamma and lognormal draws. The skewness that
    draws show falls short of the true one, so that `SKEWED` is larger. Normal draws show 6 / degrees² by chance.

    Args:
        degrees: infinite, or nan where they are not known: the normal distribution's.
        skewness: of the mean; nan where it is not known.
    """
    degrees = math.inf if math.isnan(degrees) else degrees
    excess = 0.0 if math.isnan(skewness) else SKEWED * max(0.0, skewness**2 - 6 / degrees**2)
    if excess > 0:
        degrees = max(FEWEST_DEGREES, 1 / (1 / degrees + excess))
    return (NORMAL_QUANTILE if math.isinf(degrees) else t_quantile(degrees)) * standard_error


def t_quantile(degrees: float) -> float:
    """Below which 97.5 % of Student's t lie, to 1e-4 of it.

    Of few degrees from scipy, else by the expansion about the normal quantile (Abramowitz & Stegun 1964, 26.7.5): scipy
    takes a while to import.
    """
    if degrees < FEW_DEGREES:
        from scipy.special import stdtrit

        return float(stdtrit(degrees, 0.975))
    x = NORMAL_QUANTILE
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))

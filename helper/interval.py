"""95 % intervals of measurements."""

import math

NORMAL_QUANTILE = 1.959964  # 97.5 % of a normal distribution lie below it
FEW_DEGREES = 6  # of freedom, with which the expansion of Student's t is not good enough


def half_interval(standard_error: float, degrees: float = math.inf) -> float:
    """Half of the 95 % interval of a mean with that standard error, by Student's t with so many degrees of freedom.

    Args:
        degrees: infinite, or nan where they are not known: the normal distribution's.
    """
    if math.isinf(degrees) or math.isnan(degrees):
        return NORMAL_QUANTILE * standard_error
    return t_quantile(degrees) * standard_error


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

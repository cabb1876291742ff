"""Tables of memorisation -> figures. No torch."""

from collections.abc import Mapping, Sequence

import numpy
import pandas

from helper.charts.chart import Axis, Chart, Panel, Series
from helper.interval import NORMAL_QUANTILE
from helper.look import BLUE, GREEN, ORANGE, PURPLE, Look

LOOKS = [Look(colour, marker, line) for line in ("-", "--", ":") for colour, marker in zip(
    ("#666666", BLUE, ORANGE, GREEN, PURPLE), "osD^v", strict=True)]  # fmt: skip
SCORE = Axis("memorisation score", limits=(0, 1.02))
SHARE = Axis("share of examples with this score or more", log=True)


def memorisation_chart(scores: Mapping[str, numpy.ndarray], bins: Mapping[str, pandas.DataFrame], reference: str) -> Chart:
    """How many examples are memorised, and what every kind of run keeps of them.

    Args:
        scores: of every kind, nan without. bins: of every kind, see `subset_scores.binned`. reference: the kind of the bins.
    """
    looks = {name: LOOKS[index % len(LOOKS)] for index, name in enumerate(scores)}
    above = [beyond(name, looks[name], values) for name, values in scores.items()]
    panels = [Panel(SCORE, SHARE, "", above)]
    along = Axis(f"memorisation score of {reference}")
    for column, label in (("seen", "accuracy on examples that were seen"), ("unseen", "accuracy on examples that were not")):
        series = [
            Series(
                name, looks[name], ((table["low"].clip(lower=0) + table["high"]) / 2).tolist(), table[column].tolist(),
                *bounds(table[column], table[f"{column}_error"]),
            )
            for name, table in bins.items()
        ]  # fmt: skip
        panels.append(Panel(along, Axis(label, limits=(0, 1.02)), "", series))
    return Chart(panels, 3, (12, 4.4))


def beyond(name: str, look: Look, scores: numpy.ndarray) -> Series:
    """The share of examples with a score or a larger one."""
    known = numpy.sort(scores[~numpy.isnan(scores)])
    places, first = numpy.unique(known, return_index=True)
    return Series(name, Look(look.colour, "", look.line), places.tolist(), (1 - first / len(known)).tolist())


def bounds(values: pandas.Series, errors: pandas.Series) -> Sequence[list[float]]:
    """Of 95 % intervals of shares."""
    half = NORMAL_QUANTILE * errors
    return [(values - half).clip(lower=0).tolist(), (values + half).clip(upper=1).tolist()]

"""The measured quantities of a run, epoch by epoch."""

import itertools
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy
from matplotlib.figure import Figure

from helper.drawing import ABOVE
from helper.interval import half_interval
from helper.look import BLUE, GREEN, ORANGE
from helper.plotter.columns import Columns, chosen

SUBSETS = {"all": (BLUE, "o-"), "clean": (GREEN, "^--"), "mislabelled": (ORANGE, "s:")}


def metrics(table: Columns, labels: Mapping[str, str]) -> Figure:
    """Totals of the measured quantities against the epoch, with 95 % intervals from their standard errors.

    Under label noise also those of the clean and of the mislabelled training examples (paper, figure 5). A quantity that
    was measured in several ways is a group of lines for each, in lighter tones from the second.
    """
    totals = chosen(table, table["layer"] == "all")
    names = list(dict.fromkeys(totals["metric"].tolist()))
    figure, axes = plt.subplots(1, len(names), figsize=(4.8 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = chosen(totals, totals["metric"] == name)
        rows = chosen(rows, rows["epoch"].argsort(kind="stable"))
        for tone, (how, way) in zip(itertools.chain([1.0], itertools.repeat(0.45)), ways_of(rows), strict=False):
            for subset, (colour, line) in SUBSETS.items():
                part = chosen(way, way["subset"] == subset)
                label = how if subset == "all" else f"{how}, {subset}"
                unknown = numpy.full(len(part["epoch"]), numpy.nan)
                shape = (part.get(name, unknown) for name in ("degrees", "skewness"))
                errors = [half_interval(*row) for row in zip(numpy.nan_to_num(part["standard_error"]), *shape, strict=True)]
                if len(part["epoch"]):
                    axis.errorbar(
                        part["epoch"], part["value"], errors, fmt=line, color=colour, alpha=tone, capsize=3, label=label
                    )
        axis.set(xlabel="epoch", ylabel=labels.get(name, name))
        if (rows["value"] >= 0).all():
            axis.set_ylim(0, None)
        axis.legend(fontsize=8, **ABOVE)
    return figure


def ways_of(rows: Columns) -> list[tuple[str, Columns]]:
    """(how, in words; rows) of each way in which a quantity was measured, in the order in which they begin."""
    methods = [estimator.partition(";")[0] for estimator in rows["estimator"].tolist()]
    ways = list(zip(methods, *(rows[name].tolist() for name in ("params", "split", "settings")), strict=True))
    return [
        (", ".join(filter(None, way[:3])), chosen(rows, numpy.array([other == way for other in ways])))
        for way in dict.fromkeys(ways)
    ]

"""Norms and signal-to-noise ratio of the gradients of every layer."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from helper.drawing import BESIDE, plain_log
from helper.plotter.columns import Columns, chosen


def snr(table: Columns) -> Figure:
    """Gradient signal-to-noise ratio of every layer within two standard errors, and that of independent zero-mean gradients."""
    table = one_mode(table)
    figure, axis = plt.subplots(figsize=(6.5, 4))
    by_layer(axis, table, table["snr"], errors=table.get("standard_error"))
    floor = 1 / table["n_batches"][0] ** 0.5
    axis.axhline(floor, color="0.4", linestyle=":", linewidth=1)
    axis.annotate(
        "independent noise: 1/√batches",
        (1, floor),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.4",
    )
    where = {"fixed": "at fixed weights", "online": "of the training steps"}[table["mode"][0]]
    axis.set(xlabel="epoch", ylabel=f"gradient SNR {where},\n||mean|| / ||std||")
    plain_log(axis)
    return figure


def one_mode(table: Columns) -> Columns:
    """Rows of one --snr_mode: at fixed weights where there are any."""
    return chosen(table, table["mode"] == ("fixed" if "fixed" in table["mode"] else "online"))


def gradients(table: Columns) -> Figure:
    """Weight norm and, relative to it, gradient mean and std of every layer (paper, figure 11)."""
    table = one_mode(table)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True)
    quantities = [
        (table["weight_norm"], "weight norm ||W||"),
        (ratio(table["grad_mean_norm"], table["weight_norm"]), "||gradient mean|| / ||W||"),
        (ratio(table["grad_std_norm"], table["weight_norm"]), "||gradient std|| / ||W||"),
    ]
    for axis, (values, label) in zip(axes, quantities, strict=True):
        by_layer(axis, table, values, legend=axis is axes[-1])
        axis.set(xlabel="epoch", ylabel=label)
        plain_log(axis)
    return figure


def ratio(values: numpy.ndarray, norms: numpy.ndarray) -> numpy.ndarray:
    """Nothing where the norm is 0, as of a parameter that begins with zeros."""
    return numpy.divide(values, norms, out=numpy.full(len(norms), numpy.nan), where=norms > 0)


def by_layer(axis: Axes, table: Mapping[str, Any], values: Any, *, errors: Any = None, legend: bool = True) -> None:
    """A line a layer, dark at the input and light at the output; named ones for a few layers, a colour bar for many.

    Args:
        errors: standard errors of the values, twice of which are drawn as a band; nan or None: there are none.
    """
    layers = list(dict.fromkeys(table["layer"]))
    scale = ScalarMappable(Normalize(0, max(len(layers) - 1, 1) / 0.9), "viridis")
    for index, layer in enumerate(layers):
        rows = numpy.asarray(table["layer"] == layer)
        epochs, shown, colour = numpy.asarray(table["epoch"])[rows], numpy.asarray(values)[rows], scale.to_rgba(index)
        axis.plot(epochs, shown, color=colour, label=layer, linewidth=1.2)
        if errors is not None and not numpy.isnan(half := 2 * numpy.asarray(errors)[rows]).all():
            below = numpy.maximum(shown - half, shown / 10)  # the axis is logarithmic
            axis.fill_between(epochs, below, shown + half, color=colour, alpha=0.15, linewidth=0)
    if legend and len(layers) <= 8:
        axis.legend(fontsize=8, title="layer", **BESIDE)
    elif legend:
        bar = axis.figure.colorbar(ScalarMappable(Normalize(1, len(layers) / 0.9), "viridis"), ax=axis)
        bar.set_label("layer, from input to output")
        bar.ax.set_ylim(1, len(layers))

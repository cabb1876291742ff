"""Tables of a run folder -> its figures. No torch."""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from helper.drawing import ABOVE, BESIDE, BLUE, GREEN, ORANGE, STYLE, save_figure
from helper.interval import half_interval
from helper.spectrum_file import MATRICES, read_spectrum

SPLITS = {"train": (BLUE, "-", "training"), "val": (GREEN, ":", "validation"), "test": (ORANGE, "--", "test")}


def draw_run(folder: Path, labels: Mapping[str, str]) -> Iterator[Path]:
    """Draw what the tables of a run folder hold into `figures/`, one figure after the other; the PNG files' paths.

    Args:
        labels: {metric: what stands beside its axis}.
    """
    tables = {name: read_columns(folder / f"{name}.csv") for name in ("history", "snr", "metrics")}
    title = f"{folder.parent.parent.parent.name}, {folder.parent.parent.name}, {folder.parent.name}"
    for name, (table, draw) in {**FIGURES, "metrics": ("metrics", partial(metrics, labels=labels))}.items():
        with plt.rc_context(STYLE):
            figure = draw(tables[table]) if tables[table] else None
            if figure is not None:
                for axis in figure.axes:
                    if axis.get_xlabel() == "epoch":
                        axis.xaxis.get_major_locator().set_params(integer=True)
                figure.suptitle(f"{title}\n{folder.name}", fontsize=10)
                save_figure(figure, folder / "figures" / name)
        if figure is not None:
            yield folder / "figures" / f"{name}.png"
    for path in [folder / "spectrum.npz", *sorted(folder.glob("spectra/*.npz"))]:
        if path.exists():
            name = "spectrum" if path.parent == folder else f"spectrum_{path.stem}"
            yield draw_spectrum(read_spectrum(path), folder / "figures" / name)


Columns = dict[str, numpy.ndarray]  # of a table, (rows,) each
TEXTS = ("layer", "mode", "metric", "split", "subset", "params", "estimator", "settings", "checkpoint")


def read_columns(path: Path) -> Columns:
    """A table of a run folder, numbers as floats with nan for an empty cell; nothing where there are no rows.

    Without pandas, which takes longer to import than a table to draw.

    Raises:
        RuntimeError: damaged.
    """
    if not path.is_file():
        return {}
    try:
        with open(path, newline="") as file:
            heading, *rows = csv.reader(file, strict=True)
        cells = dict(zip(heading, zip(*rows, strict=True), strict=True)) if rows else {}
        return {name: numpy.array(column if name in TEXTS else list(map(number, column))) for name, column in cells.items()}
    except (ValueError, csv.Error) as error:
        raise RuntimeError(f"{path} is damaged ({error})") from None


def number(cell: str) -> float:
    return float(cell) if cell else numpy.nan


def chosen(table: Columns, rows: numpy.ndarray) -> Columns:
    """The rows of a table with given positions, or where a mask is true."""
    return {name: column[rows] for name, column in table.items()}


def performance(history: Columns) -> Figure:
    """Loss and accuracy of every split and the training predictions' entropy against the epoch."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    for axis, quantity, label in ((axes[0], "loss", "cross-entropy (nats)"), (axes[1], "acc", "accuracy")):
        for split, (colour, dash, name) in SPLITS.items():
            column = f"{quantity}_{split}"
            if column in history and not numpy.isnan(history[column]).all():
                axis.plot(history["epoch"], history[column], dash, color=colour, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend(fontsize=8, ncols=3, **ABOVE)
    axes[1].set_ylim(0, 1.02)
    axes[2].plot(history["epoch"], history["entropy_train"], color=BLUE)
    axes[2].set(xlabel="epoch", ylabel="prediction entropy, training set (nats)", ylim=(0, None))
    return figure


def noisy_performance(history: Columns) -> Figure | None:
    """Under label noise: how examples with true and with wrong labels fare (paper, figure 4)."""
    if "acc_memorized" not in history or numpy.isnan(history["acc_memorized"]).all():
        return None
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    curves = [
        (axes[0], "loss_clean", BLUE, "-", "clean labels"),
        (axes[0], "loss_noisy", ORANGE, "--", "wrong labels"),
        (axes[1], "acc_clean", BLUE, "-", "clean labels: correct"),
        (axes[1], "acc_test", ORANGE, "--", "test"),
        (axes[2], "acc_generalized", BLUE, "-", "predicted as the true label"),
        (axes[2], "acc_memorized", ORANGE, "--", "predicted as the given wrong label"),
    ]
    for axis, column, colour, dash, label in curves:
        axis.plot(history["epoch"], history[column], dash, color=colour, label=label)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy, given labels (nats)")
    axes[1].set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    axes[2].set(xlabel="epoch", ylabel="share of mislabelled examples", ylim=(0, 1.02))
    for axis in axes:
        axis.legend(fontsize=8, **ABOVE)
    return figure


def snr(table: Columns) -> Figure:
    """Gradient signal-to-noise ratio of every layer, and the ratio that independent zero-mean gradients would show."""
    table = one_mode(table)
    figure, axis = plt.subplots(figsize=(6.5, 4))
    by_layer(axis, table, table["snr"])
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
    axis.set(xlabel="epoch", ylabel=f"gradient SNR {where}, ||mean|| / ||std||", yscale="log")
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
        (table["grad_mean_norm"] / table["weight_norm"], "||gradient mean|| / ||W||"),
        (table["grad_std_norm"] / table["weight_norm"], "||gradient std|| / ||W||"),
    ]
    for axis, (values, label) in zip(axes, quantities, strict=True):
        by_layer(axis, table, values, legend=axis is axes[-1])
        axis.set(xlabel="epoch", ylabel=label, yscale="log")
    return figure


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
                degrees = part.get("degrees", numpy.full(len(part["epoch"]), numpy.inf))
                pairs = zip(numpy.nan_to_num(part["standard_error"]), degrees, strict=True)
                errors = [half_interval(error, of_freedom) for error, of_freedom in pairs]
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


INTERVAL = 2.05  # standard errors of half of a 95 % interval of an eigenvalue: t of 29, as 30 groups of examples have


def draw_spectrum(arrays: Mapping[str, numpy.ndarray], stem: Path) -> Path:
    """Eigenvalue density on a logarithmic axis, and the largest eigenvalues.

    Those of a sample of the examples are drawn beside what they say of all examples: without the bias, with 95 % intervals.

    Args:
        arrays: as spectrum.npz holds them.
    """
    matrix = MATRICES[str(arrays["matrix"])]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
        shown = arrays["density"] > 0
        floor = arrays["density"].max() * 1e-9
        low, high = (arrays["density"] + sign * 2 * numpy.nan_to_num(arrays["density_errors"]) for sign in (-1, 1))
        left.fill_between(arrays["grid"], low.clip(min=floor), high, color=BLUE, alpha=0.25, linewidth=0)
        left.semilogy(arrays["grid"][shown], arrays["density"][shown], color=BLUE)
        left.set_ylim(floor, None)
        left.set(xlabel="eigenvalue (nats per squared parameter)", ylabel=f"density, smoothed over {arrays['sigma']:.2g}")
        n, population = int(arrays["n_samples"]), int(arrays["population"])
        draw_eigenvalues(right, arrays, n, population)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.axhline(0, color="0.6", linewidth=0.8)
        right.set(xlabel="rank by magnitude", ylabel="eigenvalue")
        which = f"all {population:,} examples" if n == population else f"{n:,} of {population:,} examples"
        figure.suptitle(
            f"{matrix} over {int(arrays['size']):,} active parameters, {which}; Lanczos' residuals are at most "
            f"{arrays['residuals'].max():.1g}\nband: 2 standard errors of the density by the choice of its starting vectors",
            fontsize=9,
        )
        return save_figure(figure, stem)


def draw_eigenvalues(axis: Axes, arrays: Mapping[str, numpy.ndarray], n: int, population: int) -> None:
    rank = numpy.arange(1, len(arrays["eigenvalues"]) + 1)
    if n == population:
        axis.plot(rank, arrays["eigenvalues"], "o", color=ORANGE)
        return
    axis.plot(rank - 0.1, arrays["eigenvalues"], "o", color="0.6", mfc="none", label=f"of the {n:,} examples themselves")
    known = numpy.isfinite(arrays["corrected"])
    axis.errorbar(
        rank[known] + 0.1, arrays["corrected"][known], INTERVAL * arrays["standard_errors"][known], fmt="o", color=ORANGE,
        capsize=3, label="of all examples: bias removed, 95 % intervals",
    )  # fmt: skip
    axis.legend(fontsize=8)


def by_layer(axis: Axes, table: Mapping[str, Any], values: Any, *, legend: bool = True) -> None:
    """A line a layer, dark at the input and light at the output; named ones for a few layers, a colour bar for many."""
    layers = list(dict.fromkeys(table["layer"]))
    scale = ScalarMappable(Normalize(0, max(len(layers) - 1, 1) / 0.9), "viridis")
    for index, layer in enumerate(layers):
        rows = numpy.asarray(table["layer"] == layer)
        epochs = numpy.asarray(table["epoch"])[rows]
        axis.plot(epochs, numpy.asarray(values)[rows], color=scale.to_rgba(index), label=layer, linewidth=1.2)
    if legend and len(layers) <= 8:
        axis.legend(fontsize=8, title="layer", **BESIDE)
    elif legend:
        bar = axis.figure.colorbar(ScalarMappable(Normalize(1, len(layers) / 0.9), "viridis"), ax=axis)
        bar.set_label("layer, from input to output")
        bar.ax.set_ylim(1, len(layers))


FIGURES: dict[str, tuple[str, Callable[[Columns], Figure | None]]] = {
    "performance": ("history", performance),
    "noisy_performance": ("history", noisy_performance),
    "snr": ("snr", snr),
    "gradients": ("snr", gradients),
}

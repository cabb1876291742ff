"""Figures of the report against sparsity and cost, from long tables of means with intervals. No torch."""

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import GREEN, PURPLE, label_points, plain_log
from optim.modes import MODES
from study.reporting.figures_epochs import FISHER
from study.reporting.pairs import SIDES, side_of

SHADES = {"generalization": GREEN, "optimization": PURPLE}
FIGURE1_PANELS = (
    ("acc_test", "test accuracy"),
    ("acc_train", "training accuracy"),
    ("entropy_train", "prediction entropy, training set (nats)"),
    ("loss_test", "test loss (nats)"),
    ("loss_train", "training loss (nats)"),
    (FISHER.name, FISHER.axis),
)


def figure1(table: pandas.DataFrame, gaps: pandas.DataFrame) -> Figure:
    """Accuracy, loss, prediction entropy and Tr F against sparsity, the accuracy gap shaded and the regimes marked.

    Args:
        table: one study of `aggregate.over_seeds`. gaps: its `aggregate.gaps`.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6), sharex=True)
    for axis, (quantity, label) in zip(axes.flat, FIGURE1_PANELS, strict=True):
        rows = table[table["quantity"] == quantity]
        against_sparsity(axis, rows, shade=quantity.startswith("acc"))
        axis.set_ylabel(label)
        mark_regimes(axis, gaps, words=axis in axes[0])
        if quantity == FISHER.name and rows["mean"].gt(0).any():
            plain_log(axis)
    for axis in axes[1]:
        axis.set_xlabel("share of weights pruned")
        places = sorted(set(table.loc[table["sparsity"] > 0, "sparsity"]))
        if len(places) <= 8:
            axis.set_xticks(places, [f"{p:g}" for p in places])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def against_sparsity(axis: Axes, table: pandas.DataFrame, *, shade: bool) -> None:
    """A line with error bars for each series; a dense one, which has no sparsity, as a level across."""
    main = {}
    for name, mode in MODES.items():
        part = table[table["mode"] == name]
        for tone, series in toned(part):
            rows = part[part["series"] == series].sort_values("sparsity")
            if not mode.has_mask:
                axis.axhline(rows["mean"].iloc[0], color=mode.colour, alpha=tone, label=series)
                axis.axhspan(rows["low"].iloc[0], rows["high"].iloc[0], color=mode.colour, alpha=0.15, linewidth=0)
                continue
            errors = beside(rows)
            look = {
                "color": mode.colour,
                "alpha": tone,
                "capsize": 3,
                "label": series,
                "markerfacecolor": fill(mode.colour, tone),
            }
            axis.errorbar(rows["sparsity"], rows["mean"], errors, fmt=mode.marker + mode.line, **look)
            main.setdefault(side_of(name), rows.set_index("sparsity")["mean"])
    if shade and main.keys() >= set(SIDES):
        both = pandas.concat([main[side] for side in SIDES], axis=1, join="inner")
        axis.fill_between(both.index, both.iloc[:, 0], both.iloc[:, 1], color="0.5", alpha=0.2, linewidth=0)


def beside(rows: pandas.DataFrame) -> numpy.ndarray:
    """(2, N) lengths of error bars below and above the means; 0 without an interval."""
    return numpy.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])


def toned(table: pandas.DataFrame) -> list[tuple[float, str]]:
    """(opacity, series) of one mode, the series with the most runs first and darkest."""
    names = table.groupby("series", sort=False)["runs"].sum().sort_values(ascending=False, kind="stable").index
    return [(max(1 - 0.3 * i, 0.2), name) for i, name in enumerate(names)]


def fill(colour: str, tone: float) -> str:
    """Markers of further series are hollow."""
    return colour if tone == 1 else "white"


def mark_regimes(axis: Axes, gaps: pandas.DataFrame, *, words: bool) -> None:
    """A coloured stripe, with the regime's name, behind every sparsity at which one shows; the main series decide."""
    if gaps.empty:
        return
    main = gaps[(gaps["finetune"] == gaps["finetune"].iloc[0]) & (gaps["scratch"] == gaps["scratch"].iloc[0])]
    places = main["sparsity"].to_numpy()
    middles = (places[1:] + places[:-1]) / 2
    width = 0.02 if len(places) < 2 else numpy.diff(places).min() / 2
    edges = [places[0] - width, *middles, places[-1] + width]
    for regime, left, right in zip(main["regime"], edges[:-1], edges[1:], strict=True):
        if regime in SHADES:
            axis.axvspan(left, right, color=SHADES[regime], alpha=0.1, linewidth=0, zorder=0)
    shown = list(main["regime"])
    for regime in SHADES if words else ():
        if regime in shown:
            first, last = shown.index(regime), len(shown) - 1 - shown[::-1].index(regime)
            axis.annotate(
                regime, ((edges[first] + edges[last + 1]) / 2, 1.01), xycoords=("data", "axes fraction"), ha="center",
                fontsize=8, color="0.25",
            )  # fmt: skip


UNITS = ((1e15, "10¹⁵"), (1e12, "10¹²"), (1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"), (1, "single"))


def cost_figure(table: pandas.DataFrame) -> Figure:
    """Test accuracy against what training cost: weights taken from a dense run counted, and its mask counted as well."""
    rows = table[table["quantity"] == "acc_test"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    labels = {
        "cost_weights": "this run, and the dense run whose weights it continues",
        "cost_mask": "this run, and the dense run whose mask it uses",
    }
    unit, word = next((unit, word) for unit, word in UNITS if rows["cost_mask"].max() >= unit or unit == 1)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for name, mode in MODES.items():
            part = rows[rows["mode"] == name]
            for tone, series in toned(part):
                line = part[part["series"] == series].sort_values("sparsity")
                errors = beside(line)
                axis.errorbar(
                    line[column] / unit, line["mean"], errors, fmt=mode.marker or "D", color=mode.colour, alpha=tone, capsize=3,
                    label=series, linestyle="-" if len(line) > 1 else "none", linewidth=0.8,
                    markerfacecolor=fill(mode.colour, tone),
                )  # fmt: skip
        axis.set(xlabel=f"training cost: {label}\n({word} multiply-accumulates × epochs, for each example)")
        axis.xaxis.get_major_locator().set_params(nbins=6)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    sparse = rows[rows["sparsity"] > 0].sort_values("sparsity")
    figure.draw_without_rendering()
    for axis, column in zip(axes, labels, strict=True):
        label_points(axis, (sparse[column] / unit).tolist(), sparse["mean"].tolist(), [f"{p:g}" for p in sparse["sparsity"]])
    return figure

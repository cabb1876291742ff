"""Figures of the report against sparsity and cost, from long tables of means with intervals. No torch."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import GREEN, PURPLE, label_points, lay_out, plain_log
from optim.modes import MODES
from study.reporting.families import Family
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


def figure1(table: pandas.DataFrame, gaps: pandas.DataFrame, families: Sequence[Family]) -> Figure:
    """Accuracy, loss, prediction entropy and Tr F against sparsity, the accuracy gap shaded and the regimes marked.

    Args:
        table: one study of `aggregate.over_seeds`. gaps: its `aggregate.gaps`. families: those that it has, in their order.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6), sharex=True)
    for axis, (quantity, label) in zip(axes.flat, FIGURE1_PANELS, strict=True):
        rows = table[table["quantity"] == quantity]
        against_sparsity(axis, rows, families, shade=quantity.startswith("acc"))
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


def against_sparsity(axis: Axes, table: pandas.DataFrame, families: Sequence[Family], *, shade: bool) -> None:
    """A line with error bars for each series; a dense one, which has no sparsity, as a level across."""
    main = {}
    for family in families:
        part = table[table["family"] == family.label]
        for tone, series in toned(part):
            rows = part[part["series"] == series].sort_values("sparsity")
            mode = rows["mode"].iloc[0]
            if not MODES[mode].has_mask:
                axis.axhline(rows["mean"].iloc[0], color=family.colour, alpha=tone, label=series)
                axis.axhspan(rows["low"].iloc[0], rows["high"].iloc[0], color=family.colour, alpha=0.15, linewidth=0)
                continue
            look = {"linestyle": family.line, "label": series} | drawn(family, tone)
            axis.errorbar(rows["sparsity"], rows["mean"], beside(rows), **look)
            main.setdefault(side_of(mode), rows.set_index("sparsity")["mean"])
    if shade and main.keys() >= set(SIDES):
        both = pandas.concat([main[side] for side in SIDES], axis=1, join="inner")
        axis.fill_between(both.index, both.iloc[:, 0], both.iloc[:, 1], color="0.5", alpha=0.2, linewidth=0)


def beside(rows: pandas.DataFrame) -> numpy.ndarray:
    """(2, N) lengths of error bars below and above the means; 0 without an interval."""
    return numpy.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])


def toned(table: pandas.DataFrame) -> list[tuple[float, str]]:
    """(opacity, series) of one family, the series with the most runs first and darkest."""
    names = table.groupby("series", sort=False)["runs"].sum().sort_values(ascending=False, kind="stable").index
    return [(max(1 - 0.3 * i, 0.2), name) for i, name in enumerate(names)]


def drawn(family: Family, tone: float) -> dict[str, Any]:
    """How `errorbar` draws a series of a family; the markers of further series are hollow."""
    return {
        "marker": family.marker, "color": family.colour, "alpha": tone, "capsize": 3,
        "markerfacecolor": family.colour if tone == 1 else "white",
    }  # fmt: skip


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


def cost_figure(table: pandas.DataFrame, families: Sequence[Family]) -> Figure:
    """Test accuracy against what training cost: weights taken from a dense run counted, and its mask counted as well."""
    rows = table[table["quantity"] == "acc_test"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    labels = {
        "cost_weights": "this run, and the dense run whose weights it continues",
        "cost_mask": "this run, and the dense run whose mask it uses",
    }
    unit, word = next((unit, word) for unit, word in UNITS if rows["cost_mask"].max() >= unit or unit == 1)
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        for family in families:
            part = rows[rows["family"] == family.label]
            for tone, series in toned(part):
                line = part[part["series"] == series].sort_values("sparsity")
                look = drawn(family, tone) | {"marker": family.marker or "D", "label": series, "linewidth": 0.8}
                look["linestyle"] = "-" if len(line) > 1 else "none"
                axis.errorbar(line[column] / unit, line["mean"], beside(line), **look)
        axis.set(xlabel=f"training cost: {label}\n({word} multiply-accumulates × epochs, for each example)")
        axis.xaxis.get_major_locator().set_params(nbins=6)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    sparse = rows[rows["sparsity"] > 0].sort_values("sparsity")
    lay_out(figure)
    for axis, column in zip(axes, labels, strict=True):
        label_points(axis, (sparse[column] / unit).tolist(), sparse["mean"].tolist(), [f"{p:g}" for p in sparse["sparsity"]])
    return figure

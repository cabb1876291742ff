"""Figures of many ways to a mask: what they reach against sparsity and against cost, from long tables of means. No torch."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import label_points, lay_out, plain_log
from study.reporting.families import Family
from study.reporting.figures_sparsity import beside, drawn, toned
from study.reporting.ranking import TOTAL

WIDTH = 5.4  # inches: a page of 400 pixels shows it at three quarters of its size
DODGE = 0.5  # of the distance between two sparsities, over which the series of one are spread


def pareto_front(costs: Sequence[float], values: Sequence[float], *, highest: bool) -> list[int]:
    """The points than which none is cheaper or equally cheap and better, the cheapest first; of equal points the first.

    Points with a cost or value that is not finite are none.
    """
    sign = 1 if highest else -1
    known = [i for i, point in enumerate(zip(costs, values, strict=True)) if numpy.isfinite(point).all()]
    front, best = [], -numpy.inf
    for i in sorted(known, key=lambda i: (costs[i], -sign * values[i], i)):
        if sign * values[i] > best:
            best = sign * values[i]
            front.append(i)
    return front


def ways_figure(table: pandas.DataFrame, families: Sequence[Family], label: str, *, highest: bool, log: bool) -> Figure:
    """A quantity against sparsity, and below against what training took in all, with the Pareto front.

    Args:
        table: of one study and one quantity, of `aggregate.over_seeds`. families: those that it has, in their order.
        highest: whether more of it is better.
    """
    priced = bool(table[TOTAL].notna().any())
    figure, axes = plt.subplots(1 + priced, 1, figsize=(WIDTH, 4.2 * (1 + priced)), squeeze=False)
    against_sparsity(axes[0, 0], table, families)
    if priced:
        against_cost(axes[1, 0], table, families)
    for axis in axes[:, 0]:
        axis.set_ylabel(label)
        if log and table["mean"].gt(0).any():
            keep_to_means(axis, table)
            plain_log(axis)
    if priced:
        front = table.iloc[pareto_front(table[TOTAL].tolist(), table["mean"].tolist(), highest=highest)]
        draw_front(axes[1, 0], front)
    legends = [axis.get_legend_handles_labels() for axis in axes[:, 0]]
    shown = {label: handle for handles, labels in reversed(legends) for handle, label in zip(handles, labels, strict=True)}
    columns = 2 if max(map(len, shown)) > 20 else 3
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns, fontsize=9)
    if priced:
        lay_out(figure)
        own = (front[TOTAL].tolist(), front["mean"].tolist(), [f"{sparsity:g}" for sparsity in front["sparsity"]])
        label_points(axes[1, 0], *own, beside=list(table[[TOTAL, "mean"]].dropna().itertuples(index=False)))
    return figure


def keep_to_means(axis: Axes, table: pandas.DataFrame) -> None:
    """Limit an axis to twice the means' range: an interval of few seeds may reach over many decades."""
    positive = table.loc[table["mean"] > 0, "mean"]
    axis.set_ylim(positive.min() / 2, positive.max() * 2)


def series_rows(table: pandas.DataFrame, families: Sequence[Family]) -> list[tuple[Family, pandas.DataFrame, dict[str, Any]]]:
    """(family, rows, how they are drawn) of every series."""
    found = []
    for family in families:
        part = table[table["family"] == family.label]
        for tone, series in toned(part):
            look = drawn(family, tone) | {"label": series, "linestyle": family.line, "capsize": 2, "linewidth": 1.1}
            found.append((family, part[part["series"] == series].sort_values("sparsity"), look | {"markersize": 5}))
    return found


def against_sparsity(axis: Axes, table: pandas.DataFrame, families: Sequence[Family]) -> None:
    """Sparsities stand side by side, and the series of one beside each other, so that no interval covers another."""
    places = sorted(set(table.loc[table["sparsity"] > 0, "sparsity"]))
    rows = series_rows(table, families)
    sparse = [one for one in rows if (one[1]["sparsity"] > 0).any()]
    for family, own, look in rows:
        if not (own["sparsity"] > 0).any():
            axis.axhline(own["mean"].iloc[0], color=family.colour, label=look["label"], alpha=look["alpha"])
            axis.axhspan(own["low"].iloc[0], own["high"].iloc[0], color=family.colour, alpha=0.15, linewidth=0)
    for index, (_, own, look) in enumerate(sparse):
        shift = DODGE * ((index + 0.5) / len(sparse) - 0.5)
        axis.errorbar([places.index(s) + shift for s in own["sparsity"]], own["mean"], beside(own), **look)
    axis.set_xticks(range(len(places)), [f"{place:g}" for place in places], rotation=90 if len(places) > 10 else 0)
    axis.set(xlabel="share of weights pruned", xlim=(-0.5, len(places) - 0.5))


def against_cost(axis: Axes, table: pandas.DataFrame, families: Sequence[Family]) -> None:
    for family, own, look in series_rows(table, families):
        known = own[own[TOTAL].notna()]
        shown = look | {"marker": family.marker or "o", "linestyle": family.line if len(known) > 1 else "none"}
        axis.errorbar(known[TOTAL], known["mean"], beside(known), **shown)
    axis.set_xlabel("training cost with all runs needed, dense training = 1")
    plain_log(axis, "x")


def draw_front(axis: Axes, front: pandas.DataFrame) -> None:
    """A step line: what can be had for a cost or less."""
    right = axis.get_xlim()[1]
    x, y = [*front[TOTAL], right], [*front["mean"], front["mean"].iloc[-1]]
    axis.plot(x, y, drawstyle="steps-post", color="0.15", linewidth=0.9, zorder=1, label="Pareto front")
    axis.set_xlim(right=right)

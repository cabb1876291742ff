"""Figures of many ways to a mask: what they reach against sparsity and against cost, from long tables of means. No torch."""

import dataclasses
from collections.abc import Sequence

import numpy
import pandas

from helper.charts.chart import Axis, Chart, Dots, Panel, Series
from helper.look import Look
from study.reporting.families import Family
from study.reporting.figures_sparsity import SPARSITY, SingleRuns, against, parts_of, series_rows, upright
from study.reporting.ranking import TOTAL

WIDTH = 5.4  # inches: a page of 400 pixels shows it at three quarters of its size
DODGE = 0.5  # of the distance between two sparsities, over which the series of one are spread
FRONT = Look("#262626")


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


def ways_figure(
    table: pandas.DataFrame, families: Sequence[Family], label: str, runs: SingleRuns, *, highest: bool, log: bool
) -> Chart:
    """A quantity against sparsity, and below against what training took in all, with the Pareto front.

    Args:
        table: of one study and one quantity, of `aggregate.over_seeds`. families: those that it has, in their order.
        highest: whether more of it is better.
    """
    axis = upright(label, table, log=log)
    panels = [side_by_side(table, families, runs, axis)]
    if table[TOTAL].notna().any():
        panels.append(against_cost(table, families, runs, axis, highest=highest))
    return Chart(panels, 1, (WIDTH, 4.2 * len(panels)))


def side_by_side(table: pandas.DataFrame, families: Sequence[Family], runs: SingleRuns, axis: Axis) -> Panel:
    """Sparsities stand side by side, and the series of one beside each other, so that no interval covers another."""
    places = sorted(set(table.loc[table["sparsity"] > 0, "sparsity"]))
    levels, series = parts_of(table, families, runs)
    shifted = []
    for index, one in enumerate(series):
        shift = DODGE * ((index + 0.5) / len(series) - 0.5)
        dots = Dots([places.index(x) + shift for x in one.dots.x], one.dots.y, one.dots.runs)
        shifted.append(dataclasses.replace(one, x=[places.index(x) + shift for x in one.x], dots=dots, width=1.1))
    along = Axis(SPARSITY, limits=(-0.5, len(places) - 0.5), ticks=range(len(places)), names=[f"{place:g}" for place in places])
    return Panel(along, axis, levels=levels, series=shifted)


def against_cost(table: pandas.DataFrame, families: Sequence[Family], runs: SingleRuns, axis: Axis, *, highest: bool) -> Panel:
    series = []
    for family, tone, rows in series_rows(table[table[TOTAL].notna()], families):
        look = Look(family.colour, family.marker or "o", family.line if len(rows) > 1 else "")
        series.append(dataclasses.replace(against(rows, TOTAL, family, tone, runs), look=look, width=1.1))
    front = table.iloc[pareto_front(table[TOTAL].tolist(), table["mean"].tolist(), highest=highest)]
    right = float(table[TOTAL].max()) * 1.05
    steps = Series(
        "Pareto front", FRONT, [*front[TOTAL], right], [*front["mean"], front["mean"].iloc[-1]], width=0.9, steps=True,
        texts=[*(f"{sparsity:g}" for sparsity in front["sparsity"]), ""],
    )  # fmt: skip
    along = Axis("training cost with all runs needed, dense training = 1", log=True)
    return Panel(along, axis, series=[*series, steps], texts="share pruned")

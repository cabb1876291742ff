"""Figures 6, 7 and 8 of the paper from the tables of `experiment.py interpolate`. No torch."""

import numpy
import pandas
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from helper.drawing import STYLE
from helper.look import BLUE, GREEN, ORANGE, PURPLE
from helper.plotter.training import SPLITS
from study.bias import CHOSEN, marked

LINES = (BLUE, ORANGE, GREEN)  # one a path
PLACES = (BLUE, ORANGE, GREEN, PURPLE)  # one an alpha
BINS = 80  # at most
COSINES_ON = "Init-S -> Sol-F"  # the path of the cosines
FDR = 0.05  # false discovery rate at which a class counts as over- or under-represented
LABELLED = 20  # classes that fit on an axis with their names
NAMED = 16  # classes that are named where there are more
MORE, LESS, CHANCE = ORANGE, BLUE, "0.75"


def draw_lines_and_cosines(line: pandas.DataFrame, alphas: numpy.ndarray, cosines: numpy.ndarray, note: str = "") -> Figure:
    """Loss and accuracy along the paths, density and cumulative distribution of the cosines (paper, figure 6).

    Args:
        line: columns path, alpha, split (train, test), loss (nats), acc, and CHOSEN where a solution is biased.
        alphas: (A,); cosines: (A, N), nan where undefined.
        note: stands below.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.6))
        for axis, quantity, label in ((axes[0, 0], "loss", "cross-entropy (nats)"), (axes[0, 1], "acc", "accuracy")):
            paths(axis, line, quantity)
            axis.set(xlabel=r"$\alpha$, share of the way", ylabel=label)
        axes[0, 0].set(ylim=(0, None), title="(a) loss")
        axes[0, 1].set(ylim=(0, 1.02), title="(b) accuracy")
        path_legend(axes[0, 0], line)
        split_legend(axes[0, 1])
        distributions(axes[1, 0], axes[1, 1], alphas, cosines)
        write_below(figure, note)
    return figure


def write_below(figure: Figure, note: str) -> None:
    if note:
        figure.supxlabel(note, fontsize=7)


def path_names(line: pandas.DataFrame) -> dict[str, str]:
    """{path: as people read it}, in which solutions that test accuracy has chosen are marked."""
    chosen = line[CHOSEN].fillna("") if CHOSEN in line else [""] * len(line)
    names = {}
    for path, solutions in zip(line["path"], chosen, strict=True):
        ends = [marked(end, end in solutions.split()) for end in path.split(" -> ")]
        names[path] = " -> ".join(ends)
    return names


def paths(axis: Axes, line: pandas.DataFrame, quantity: str) -> None:
    for colour, (_, of_path) in zip(LINES, line.groupby("path", sort=False), strict=False):
        for split, points in of_path.groupby("split", sort=False):
            axis.plot(points["alpha"], points[quantity], SPLITS[split][1], marker=".", markersize=4, color=colour)


def shown_path(path: str) -> str:
    return path.replace("->", "→")


def path_legend(axis: Axes, line: pandas.DataFrame) -> None:
    pairs = zip(LINES, path_names(line).values(), strict=False)
    handles = [Line2D([], [], color=colour, label=shown_path(path)) for colour, path in pairs]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=len(handles), fontsize=8)


def split_legend(axis: Axes) -> None:
    handles = [Line2D([], [], color="0.3", linestyle=SPLITS[s][1], label=SPLITS[s][2]) for s in ("train", "test")]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2, fontsize=8)


def distributions(density: Axes, cumulative: Axes, alphas: numpy.ndarray, cosines: numpy.ndarray) -> None:
    """Histograms over common bins, normalised to area 1, and the shares of examples below."""
    shown = cosines[~numpy.isnan(cosines)]
    edges = numpy.histogram_bin_edges(shown, "auto")
    edges = edges if len(edges) <= BINS + 1 else numpy.histogram_bin_edges(shown, BINS)
    for index, (alpha, values) in enumerate(zip(alphas, cosines, strict=True)):
        colour, values = PLACES[index % len(PLACES)], values[~numpy.isnan(values)]
        if not len(values):
            continue
        label = rf"$\alpha$ = {alpha:g}, median {numpy.median(values):.3f}"
        density.hist(values, edges, density=True, histtype="stepfilled", color=colour, alpha=0.25)
        density.hist(values, edges, density=True, histtype="step", color=colour, label=label)
        cumulative.ecdf(values, color=colour, label=rf"$\alpha$ = {alpha:g}")
    where = "cosine of an example's negative gradient\nand Sol-F − Init-S"
    density.set(xlabel=where, ylabel="density", title="(c) density")
    cumulative.set(xlabel=where, ylabel="share of training examples", title="(d) cumulative distribution", ylim=(0, 1.02))
    density.set_ylim(0, density.get_ylim()[1] * (1 + 0.09 * len(alphas)))  # room for the legend above the densities
    for axis in (density, cumulative):
        axis.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper right" if axis is density else "best")


def draw_classes(classes: pandas.DataFrame, path: str = COSINES_ON, note: str = "") -> Figure:
    """Class distribution of the examples with the largest cosines, a row for each alpha (figures 7 and 8).

    Up to LABELLED classes: every bar has its name. More: all classes by rank, and beside it those furthest from
    chance with their names.

    Args:
        classes: columns alpha, class, name, count, size, expected, p_value, q_value.
        path: on which alpha is, as `path_names` has it.
        note: stands below.
    """
    places = list(classes.groupby("alpha", sort=False))
    many = len(places[0][1]) > LABELLED
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(places), 1 + many, figsize=(11 if many else 8, 3.9 * len(places) + 0.4), squeeze=False,
            width_ratios=[2, 1] if many else [1],
        )  # fmt: skip
        for row, (alpha, table) in zip(axes, places, strict=True):
            ranked = table.sort_values(["count", "size"], ascending=False, kind="stable").reset_index(drop=True)
            all_classes(row[0], ranked, named=not many)
            row[0].set_title(rf"$\alpha$ = {alpha:g} on {shown_path(path)}", loc="left")
            if many:
                furthest(row[1], ranked)
        handles = [
            Patch(color=MORE, label=f"more often than by chance (q < {FDR})"),
            Patch(color=LESS, label="less often"),
            Patch(color=CHANCE, label="not told from chance"),
            Line2D([], [], color="black", label="expected by chance"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
        write_below(figure, note)
    return figure


def colours(table: pandas.DataFrame) -> list[str]:
    more = table["count"] > table["expected"]
    return [(MORE if up else LESS) if q < FDR else CHANCE for up, q in zip(more, table["q_value"], strict=True)]


def all_classes(axis: Axes, ranked: pandas.DataFrame, *, named: bool) -> None:
    axis.bar(ranked.index, ranked["count"], 0.8, color=colours(ranked))
    axis.hlines(ranked["expected"], ranked.index - 0.5, ranked.index + 0.5, color="black", linewidth=1.2)
    axis.set(ylabel="examples in the upper 5 %", xlim=(-0.7, len(ranked) - 0.3))
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    if named:
        turned = {"rotation": 30, "ha": "right"} if ranked["name"].astype(str).str.len().max() > 3 else {}
        name_ticks(axis.set_xticks(ranked.index, ranked["name"], **turned), ranked)
        axis.set_xlabel("class by given label, the most frequent first")
    else:
        axis.set_xlabel(f"the {len(ranked)} classes by frequency")


def furthest(axis: Axes, ranked: pandas.DataFrame) -> None:
    """Horizontal bars with names of the classes with the smallest p-values, the most frequent on top."""
    table = ranked.nsmallest(NAMED, "p_value").sort_index()
    at = -numpy.arange(len(table))
    axis.barh(at, table["count"], 0.8, color=colours(table))
    axis.vlines(table["expected"], at - 0.5, at + 0.5, color="black", linewidth=1.2)
    name_ticks(axis.set_yticks(at, table["name"], fontsize=7), table)
    axis.set_xlabel("examples in the upper 5 %")
    axis.set_title(f"the {len(table)} furthest from chance", fontsize=9)
    axis.grid(axis="y", visible=False)
    axis.set_axisbelow(True)


def name_ticks(ticks: list[Tick], table: pandas.DataFrame) -> None:
    """Names in the colours of their bars, which for none at all are too short to see."""
    for tick, colour in zip(ticks, colours(table), strict=True):
        tick.label1.set_color("black" if colour == CHANCE else colour)

"""Tables of disagreements -> figures. No torch."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import STYLE
from helper.look import BLUE, ORANGE
from study.comparing.contact_sheet import LETTERS, Line, contact_sheet, plain, short

SIGNIFICANT = 0.05  # bound on the share of false discoveries
FEW_CLASSES = 30  # up to so many all are named
TOP_CLASSES = 10  # named among many when none is significant
UPRIGHT = 3  # letters of a name that need not be turned
SPLITS = {"train": "training", "test": "test"}
SHEET = (
    "Among the examples whose predicted classes differ, those with the largest Jensen-Shannon divergence (nats) between the "
    "two predicted distributions. Below each its true label, and the classes that A and B predict with their probabilities; a "
    "right one is bold."
)
CAPTIONS = {
    "figure9_10": {
        "id": "figures 9, 10",
        "title": "Class distribution of the examples on which A and B disagree",
        "caption": "Share of each class's examples that A and B predict as different classes, by who is right. Dashed: the "
        "split's overall rate, which chance gives every class; grey: 95 % of the hypergeometric counts under chance. Thin "
        f"lines: 95 % Wilson intervals, for up to {FEW_CLASSES} classes. Stars: off chance, two-sided hypergeometric test, "
        f"Benjamini-Hochberg q < {SIGNIFICANT} over the split's classes; of many classes only these are named, or else the "
        f"first {TOP_CLASSES}.",
    },
    "most_disagreed": {"id": "most disagreed, test", "title": "Test examples on which A and B disagree most", "caption": SHEET},
    "most_disagreed_train": {
        "id": "most disagreed, training",
        "title": "Training examples on which A and B disagree most",
        "caption": SHEET,
    },
}


def draw_classes(classes: pandas.DataFrame, totals: pandas.DataFrame, names: Sequence[str], heading: str) -> Figure:
    """A panel for each split and kind of label: classes by rate of disagreement, beside chance (paper, figures 9 and 10).

    Args:
        classes, totals: as classes.csv and splits.csv hold them.
        names: of network A and B, for the legend.
        heading: what is compared.
    """
    groups = list(classes.groupby(["split", "label"], sort=False))
    n = max(int((group["size"] > 0).sum()) for _, group in groups)
    letters = min(LETTERS, classes["name"].str.len().max())
    height = 3.4 + (0.08 * letters if letters > UPRIGHT else 0)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(groups), 1, figsize=(max(8, 0.13 * n), height * len(groups) + 0.9), squeeze=False)
        for axis, ((split, label), group), total in zip(axes[:, 0], groups, totals.itertuples(), strict=True):
            rows = group[group["size"] > 0].sort_values("rate", ascending=False, kind="stable")
            handles = class_bars(axis, rows, names)
            axis.set(xlabel=f"class by {label} label", ylabel="share disagreed on")
            axis.set_title(
                f"{SPLITS[split]} set: {total.disagree:,} of {total.size:,} examples disagreed on, {total.rate:.3f} "
                f"({total.low:.3f}-{total.high:.3f}); {total.expected_rate:.3f} if independent within classes",
                fontsize=9,
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
        figure.suptitle(plain(heading), fontsize=8)
        return figure


def class_bars(axis: Axes, rows: pandas.DataFrame, names: Sequence[str]) -> list[Any]:
    """Stacked bars of one split's classes in the order of the rows, with chance and its band; the legend's entries.

    A few classes are all named and have intervals; of many only the significant ones are named, or else the first ones.
    """
    x, bottom = numpy.arange(len(rows)), numpy.zeros(len(rows))
    edges = numpy.stack([x - 0.5, x + 0.5], 1).ravel()
    limits = [rows[column].to_numpy().repeat(2) for column in ("chance_low", "chance_high")]
    band = axis.fill_between(edges, *limits, color="0.85", linewidth=0, zorder=0.5, label="95 % band of chance")
    for limit in limits:
        axis.plot(edges, limit, "k:", linewidth=0.8)  # over the bars, which hide the band
    kinds = {
        "only_a_right": (BLUE, f"only A ({names[0]}) right"),
        "only_b_right": (ORANGE, f"only B ({names[1]}) right"),
        "both_wrong_differently": ("0.6", "both wrong, differently"),
    }
    handles = []
    for column, (colour, label) in kinds.items():
        height = (rows[column] / rows["size"]).to_numpy()
        handles.append(axis.bar(x, height, 0.75, bottom, color=colour, label=label))
        bottom = bottom + height
    few = len(rows) <= FEW_CLASSES
    tops = rows["high"].to_numpy() if few else bottom
    if few:
        handles.append(axis.vlines(x, rows["low"], tops, color="0.25", linewidth=0.8, label="95 % interval"))
    handles += axis.plot(edges[[0, -1]], rows["chance_rate"].iloc[[0, 0]], "k--", linewidth=1, label="chance: the overall rate")
    significant = (rows["q_value"] < SIGNIFICANT).to_numpy()
    height = max(1.12 * max(tops.max(), rows["chance_high"].max()), 0.01)
    handles += axis.plot(
        x[significant], tops[significant] + 0.03 * height, "k*", markersize=5, label=f"off chance, q < {SIGNIFICANT}"
    )
    named = x if few else x[significant] if significant.any() else x[:TOP_CLASSES]
    words = [plain(short(rows["name"].iloc[position])) for position in named]
    upright = max(map(len, words)) <= UPRIGHT
    axis.set_xticks(named, words, rotation=0 if upright else 90, fontsize=9 if few else 7)
    axis.grid(visible=False, axis="x")
    axis.set_axisbelow(True)
    axis.margins(x=0.01)
    axis.set_ylim(0, height)
    return [*handles, band]


def draw_sheet(images: numpy.ndarray, rows: pandas.DataFrame, names: Sequence[str], split: str, note: str = "") -> Figure:
    """Images with their labels and what either network predicts below.

    Args:
        images: (n, H, W, 1) or (n, H, W, 3) in [0, 1].
        rows: n of given_label, true_label, prediction_a, probability_a, prediction_b, probability_b; names, not numbers.
        names: of network A and B.
        split: train or test.
        note: stands below.
    """
    heading = f"{SPLITS[split].capitalize()} examples with the largest divergence of predictions"
    sides = [Line(f"A: {names[0]}", BLUE), Line(f"B: {names[1]}", ORANGE)]
    return contact_sheet(images, [caption(row) for row in rows.itertuples()], heading, sides=sides, foot=note)


def caption(row) -> list[Line]:
    """Lines below an image: its true label, a wrong one that it was given, A's and B's prediction, the right one in bold."""
    lines = [Line(f"true {short(row.true_label)}")]
    if row.given_label != row.true_label:
        lines.append(Line(f"given {short(row.given_label)}"))
    for letter, colour in (("a", BLUE), ("b", ORANGE)):
        name, probability = getattr(row, f"prediction_{letter}"), getattr(row, f"probability_{letter}")
        lines.append(Line(f"{letter.upper()} {short(name, 13)}, {probability:.2f}", colour, name == row.true_label))
    return lines

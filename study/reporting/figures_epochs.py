"""Figures of the report against the epoch, from the tables of single runs. No torch."""

import collections
import math
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helper.drawing import BESIDE
from helper.metrics.main import METRICS
from study.reporting.aggregate import COUNTED, curves, range_of
from study.reporting.families import Family, in_order
from study.reporting.finished_run import FinishedRun, families_of, grouped, number
from study.reporting.statistics import independent

FISHER = METRICS["fisher"]
MOST_PANELS = 4  # in a row


def figure3(records: Sequence[FinishedRun], key: str = "all") -> Figure | None:
    """Tr F against the epoch, a panel a family and a line a sparsity, bands over seeds; None without three measured epochs."""
    lines = fisher_lines(records, key)
    if not any(len(line) > 2 for line in lines.values()):
        return None
    families = in_order(family for family, _ in lines)
    n_columns = min(len(families), MOST_PANELS)
    n_rows = math.ceil(len(families) / n_columns)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=(4.6 * n_columns, 4 * n_rows), sharey=True, squeeze=False)
    axes = grid.flat[: len(families)]
    for axis in grid.flat[len(families) :]:
        axis.remove()
    sparsities = sorted({sparsity for _, sparsity in lines})
    colour = ScalarMappable(Normalize(0, max(sparsities) / 0.85 or 1), "viridis")
    for axis, family in zip(axes, families, strict=True):
        for (own, sparsity), line in sorted(lines.items(), key=lambda one: one[0][1]):
            if own == family:
                shown = colour.to_rgba(sparsity)
                axis.plot(line["epoch"], line["mean"], "o-", markersize=3, color=shown, label=f"{sparsity:g}")
                axis.fill_between(line["epoch"], line["low"], line["high"], color=shown, alpha=0.2, linewidth=0)
        axis.set(xlabel="epoch", title=family.label, yscale="log")
    if len(sparsities) <= 8:
        shown = [Line2D([], [], color=colour.to_rgba(s), marker="o", markersize=3, label=f"{s:g}") for s in sparsities]
        grid[0, -1].legend(handles=shown, title="share pruned", fontsize=8, **BESIDE)
    else:
        bar = figure.colorbar(colour, ax=grid[0, -1], label="share pruned")
        bar.ax.set_ylim(0, max(sparsities))
    for axis in grid[:, 0]:
        axis.set_ylabel(FISHER.axis)
    keep_positive(axes)
    return figure


def keep_positive(axes: Sequence[Axes]) -> None:
    """Limit logarithmic axes to the lines: a band over few seeds may reach over many decades."""
    values = numpy.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
    positive = values[(values > 0) & numpy.isfinite(values)]
    if len(positive):
        axes[0].set_ylim(positive.min() / 2, positive.max() * 2)


def fisher_lines(records: Sequence[FinishedRun], subset: str) -> dict[tuple[Family, float], pandas.DataFrame]:
    """{(family, sparsity): curve of Tr F over seeds, geometric means}, of each one's main series.

    Measured in the way that most rows are.
    """
    found = {}
    for setting, alike in alike_rows(records, subset).items():
        points = [{int(row["epoch"]): number(row["value"]) for row in part} for _, part in alike]
        units = independent([record.origins for record, _ in alike])
        tables = [pandas.DataFrame(sorted(part.items()), columns=["epoch", "value"]) for part in points]
        found[setting] = curves(tables, "value", units, logarithmic=True)
    return found


def fisher_marks(records: Sequence[FinishedRun], subsets: Iterable[str]) -> tuple[int, int]:
    """Of the values that `fisher_lines` are made of: how many are marked unreliable, and of how many that is known."""
    lines = [line for subset in subsets for line in alike_rows(records, subset).values()]
    cells = [row["reliable"] for line in lines for _, part in line for row in part if row.get("reliable")]
    return sum(number(cell) == 0 for cell in cells), len(cells)


def alike_rows(
    records: Sequence[FinishedRun], subset: str
) -> dict[tuple[Family, float], list[tuple[FinishedRun, list[dict[str, str]]]]]:
    """{(family, sparsity): (run, its rows of Tr F) of the main series}, of those rows that were measured as most were."""
    rows = {record.name: fisher_rows(record, subset) for record in records}
    ways = collections.Counter(way_of(row) for part in rows.values() for row in part)
    usual = max(ways, key=ways.__getitem__, default=None)
    found = {}
    for setting, group in grouped(records, lambda r: (r.family, r.summary["sparsity_requested"])).items():
        alike = [(r, [row for row in rows[r.name] if way_of(row) == usual]) for r in of_main_series(group)]
        alike = [(record, part) for record, part in alike if part]
        if alike:
            found[setting] = alike
    return found


def fisher_rows(record: FinishedRun, subset: str) -> list[dict[str, str]]:
    wanted = {"metric": FISHER.name, "layer": "all", "subset": subset}
    return [row for row in record.rows("metrics") if wanted.items() <= row.items()]


def way_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["params"], row["split"], row["settings"]


NOISY_PANELS = (
    ("loss_train", "training loss (nats)"),
    ("loss_test", "test loss (nats)"),
    ("acc_train", "training accuracy, given labels"),
    ("acc_test", "test accuracy"),
    ("loss_clean", "loss, clean examples (nats)"),
    ("loss_noisy", "loss, mislabelled examples (nats)"),
    ("acc_clean", "accuracy, clean examples"),
    ("acc_generalized", "mislabelled: predicted as the true label"),
    ("acc_memorized", "mislabelled: predicted as the wrong label"),
)


def figure4(records: Sequence[FinishedRun]) -> Figure | None:
    """Label noise: losses and accuracies against the epoch, for every family at one sparsity, bands over seeds."""
    noisy = by_family([r for r in records if "acc_memorized" in r.history])
    if not noisy:
        return None
    figure, axes = plt.subplots(3, 3, figsize=(11, 9), sharex=True)
    for axis, (column, label) in zip(axes.flat, NOISY_PANELS, strict=True):
        for family, rows in noisy.items():
            plot_curve(axis, history_curve(rows, column), family)
        axis.set_title(label, fontsize=9)
        if column.startswith("acc"):
            axis.set_ylim(0, 1.02)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def history_curve(records: Sequence[FinishedRun], column: str) -> pandas.DataFrame:
    """A column of history.csv over seeds, see `aggregate.curves`."""
    counted = [record.summary.get("examples", {}).get(COUNTED.get(column), numpy.nan) for record in records]
    return curves(
        [record.history for record in records], column, independent([record.origins for record in records]),
        least=1 / min(counted), within=range_of(column, numpy.nan),
    )  # fmt: skip


def figure5(records: Sequence[FinishedRun]) -> Figure | None:
    """Tr F of the clean and of the mislabelled training examples against the epoch, for every family."""
    lines = {subset: fisher_lines(of_families(records), subset) for subset in SUBSETS}
    if not all(any(len(line) > 1 for line in part.values()) for part in lines.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
    for axis, (subset, label) in zip(axes, SUBSETS.items(), strict=True):
        for (family, _), line in lines[subset].items():
            plot_curve(axis, line, family, marker=family.marker or "o")
        axis.set(xlabel="epoch", title=label, yscale="log")
    keep_positive(axes)
    axes[0].set_ylabel(FISHER.axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


SUBSETS = {"clean": "examples with true labels", "mislabelled": "mislabelled examples"}


def plot_curve(axis: Axes, curve: pandas.DataFrame, look: Family, marker: str = "") -> None:
    axis.plot(curve["epoch"], curve["mean"], look.line, marker=marker, markersize=3, color=look.colour, label=look.label)
    axis.fill_between(curve["epoch"], curve["low"], curve["high"], color=look.colour, alpha=0.2, linewidth=0)


def by_family(records: Sequence[FinishedRun]) -> dict[Family, list[FinishedRun]]:
    """{family: runs of its main series}, sparse ones at the sparsity that most of them have."""
    sparsity = main_sparsity(records)
    found = {}
    for family in families_of(records):
        own = [record for record in records if record.family == family]
        rows = [r for r in own if not r.mode_spec.has_mask or r.summary["sparsity_requested"] == sparsity]
        if rows:
            found[family] = of_main_series(rows)
    return found


def of_families(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs of `by_family`."""
    return [record for rows in by_family(records).values() for record in rows]


def of_main_series(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Those of the series that most of the runs belong to."""
    main = pandas.Series([record.series for record in records]).value_counts().index[0]
    return [record for record in records if record.series == main]


def main_sparsity(records: Sequence[FinishedRun]) -> float | None:
    """The sparsity that most sparse runs have, of equals the highest."""
    counts = pandas.Series(
        [r.summary["sparsity_requested"] for r in records if r.mode_spec.has_mask], dtype=float
    ).value_counts()
    return max(counts.index[counts == counts.max()], default=None)

"""Figures of the report, from long tables of means with intervals and from the curves of single runs."""

import collections
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from helper.drawing import BESIDE, GREEN, PURPLE, plain_log
from helper.metrics.main import METRICS
from optim.modes import MODES
from study.reporting.aggregate import COUNTED, curves, range_of
from study.reporting.collect import Record, grouped, number
from study.reporting.pairs import SIDES, side_of
from study.reporting.statistics import independent

FISHER = METRICS["fisher"]
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
                for point in line[line["sparsity"] > 0].itertuples():
                    axis.annotate(
                        f"{point.sparsity:g}", (getattr(point, column) / unit, numpy.fmax(point.mean, point.high)), fontsize=7,
                        color="0.3", xytext=(0, 4), textcoords="offset points", ha="center",
                    )  # fmt: skip
        axis.set(xlabel=f"training cost: {label}\n({word} multiply-accumulates × epochs, for each example)")
        axis.xaxis.get_major_locator().set_params(nbins=6)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def figure3(records: Sequence[Record], key: str = "all") -> Figure | None:
    """Tr F against the epoch, a panel a mode and a line a sparsity, bands over seeds; None without three measured epochs."""
    lines = fisher_lines(records, key)
    if not any(len(line) > 2 for line in lines.values()):
        return None
    modes = [mode for mode in MODES if any(m == mode for m, _ in lines)]
    figure, axes = plt.subplots(1, len(modes), figsize=(4.6 * len(modes), 4), sharey=True, squeeze=False)
    sparsities = sorted({sparsity for _, sparsity in lines})
    colour = ScalarMappable(Normalize(0, max(sparsities) / 0.85 or 1), "viridis")
    for axis, mode in zip(axes[0], modes, strict=True):
        for (own, sparsity), line in sorted(lines.items()):
            if own == mode:
                shown = colour.to_rgba(sparsity)
                axis.plot(line["epoch"], line["mean"], "o-", markersize=3, color=shown, label=f"{sparsity:g}")
                axis.fill_between(line["epoch"], line["low"], line["high"], color=shown, alpha=0.2, linewidth=0)
        axis.set(xlabel="epoch", title=mode, yscale="log")
    if len(sparsities) <= 8:
        shown = [Line2D([], [], color=colour.to_rgba(s), marker="o", markersize=3, label=f"{s:g}") for s in sparsities]
        axes[0, -1].legend(handles=shown, title="share pruned", fontsize=8, **BESIDE)
    else:
        bar = figure.colorbar(colour, ax=axes[0, -1], label="share pruned")
        bar.ax.set_ylim(0, max(sparsities))
    axes[0, 0].set_ylabel(FISHER.axis)
    keep_positive(axes[0])
    return figure


def keep_positive(axes: Sequence[Axes]) -> None:
    """Limit logarithmic axes to the lines: a band over few seeds may reach over many decades."""
    values = numpy.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
    positive = values[(values > 0) & numpy.isfinite(values)]
    if len(positive):
        axes[0].set_ylim(positive.min() / 2, positive.max() * 2)


def fisher_lines(records: Sequence[Record], subset: str) -> dict[tuple[str, float], pandas.DataFrame]:
    """{(mode, sparsity): curve of Tr F over seeds, geometric means}, of each one's main series.

    Measured in the way that most rows are.
    """
    found = {}
    for setting, alike in alike_rows(records, subset).items():
        points = [{int(row["epoch"]): number(row["value"]) for row in part} for _, part in alike]
        units = independent([record.origins for record, _ in alike])
        tables = [pandas.DataFrame(sorted(part.items()), columns=["epoch", "value"]) for part in points]
        found[setting] = curves(tables, "value", units, logarithmic=True)
    return found


def fisher_marks(records: Sequence[Record], subsets: Iterable[str]) -> tuple[int, int]:
    """Of the values that `fisher_lines` are made of: how many are marked unreliable, and of how many that is known."""
    lines = [line for subset in subsets for line in alike_rows(records, subset).values()]
    cells = [row["reliable"] for line in lines for _, part in line for row in part if row.get("reliable")]
    return sum(number(cell) == 0 for cell in cells), len(cells)


def alike_rows(records: Sequence[Record], subset: str) -> dict[tuple[str, float], list[tuple[Record, list[dict[str, str]]]]]:
    """{(mode, sparsity): (run, its rows of Tr F) of the main series}, of those rows that were measured as most were."""
    rows = {record.name: fisher_rows(record, subset) for record in records}
    ways = collections.Counter(way_of(row) for part in rows.values() for row in part)
    usual = max(ways, key=ways.__getitem__, default=None)
    found = {}
    for setting, group in grouped(records, lambda r: (r.mode, r.summary["sparsity_requested"])).items():
        alike = [(r, [row for row in rows[r.name] if way_of(row) == usual]) for r in of_main_series(group)]
        alike = [(record, part) for record, part in alike if part]
        if alike:
            found[setting] = alike
    return found


def fisher_rows(record: Record, subset: str) -> list[dict[str, str]]:
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


def figure4(records: Sequence[Record]) -> Figure | None:
    """Label noise: losses and accuracies against the epoch, for every mode at one sparsity, bands over seeds."""
    noisy = by_mode([r for r in records if "acc_memorized" in r.history])
    if not noisy:
        return None
    figure, axes = plt.subplots(3, 3, figsize=(11, 9), sharex=True)
    for axis, (column, label) in zip(axes.flat, NOISY_PANELS, strict=True):
        for mode, rows in noisy.items():
            plot_curve(axis, history_curve(rows, column), mode)
        axis.set_title(label, fontsize=9)
        if column.startswith("acc"):
            axis.set_ylim(0, 1.02)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def history_curve(records: Sequence[Record], column: str) -> pandas.DataFrame:
    """A column of history.csv over seeds, see `aggregate.curves`."""
    counted = [record.summary.get("examples", {}).get(COUNTED.get(column), numpy.nan) for record in records]
    return curves(
        [record.history for record in records], column, independent([record.origins for record in records]),
        least=1 / min(counted), within=range_of(column, numpy.nan),
    )  # fmt: skip


def figure5(records: Sequence[Record]) -> Figure | None:
    """Tr F of the clean and of the mislabelled training examples against the epoch, for every mode."""
    lines = {subset: fisher_lines(of_modes(records), subset) for subset in SUBSETS}
    if not all(any(len(line) > 1 for line in part.values()) for part in lines.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
    for axis, (subset, label) in zip(axes, SUBSETS.items(), strict=True):
        for (mode, _), line in lines[subset].items():
            plot_curve(axis, line, mode, marker="o")
        axis.set(xlabel="epoch", title=label, yscale="log")
    keep_positive(axes)
    axes[0].set_ylabel(FISHER.axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


SUBSETS = {"clean": "examples with true labels", "mislabelled": "mislabelled examples"}


def plot_curve(axis: Axes, curve: pandas.DataFrame, mode: str, marker: str = "") -> None:
    look = MODES[mode]
    axis.plot(curve["epoch"], curve["mean"], look.line, marker=marker, markersize=3, color=look.colour, label=look.label)
    axis.fill_between(curve["epoch"], curve["low"], curve["high"], color=look.colour, alpha=0.2, linewidth=0)


def by_mode(records: Sequence[Record]) -> dict[str, list[Record]]:
    """{mode: runs of its main series}, sparse ones at the sparsity that most of them have."""
    sparsity = main_sparsity(records)
    found = {}
    for mode in MODES:
        rows = [
            r for r in records if r.mode == mode and (not r.mode_spec.has_mask or r.summary["sparsity_requested"] == sparsity)
        ]
        if rows:
            found[mode] = of_main_series(rows)
    return found


def of_modes(records: Sequence[Record]) -> list[Record]:
    """The runs of `by_mode`."""
    return [record for rows in by_mode(records).values() for record in rows]


def of_main_series(records: Sequence[Record]) -> list[Record]:
    """Those of the series that most of the runs belong to."""
    main = pandas.Series([record.series for record in records]).value_counts().index[0]
    return [record for record in records if record.series == main]


def main_sparsity(records: Sequence[Record]) -> float | None:
    """The sparsity that most sparse runs have, of equals the highest."""
    counts = pandas.Series(
        [r.summary["sparsity_requested"] for r in records if r.mode_spec.has_mask], dtype=float
    ).value_counts()
    return max(counts.index[counts == counts.max()], default=None)

"""Figures of the masks themselves: density by layer, what they have in common, and how they change. No torch."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy
import pandas
from matplotlib.figure import Figure

from helper.drawing import plain_log
from study.reporting.families import Family
from study.reporting.figures_sparsity import beside
from study.reporting.figures_ways import WIDTH
from study.reporting.finished_run import FinishedRun, families_of
from study.reporting.statistics import SHARES, interval

MOST_PANELS = 4
NAMED = 40  # layers, above which not each has its name


def density_figure(records: Sequence[FinishedRun]) -> Figure | None:
    """Share of every layer's weights that is active, a panel a sparsity, means over seeds; an empty layer has no point.

    Args:
        records: of each family and sparsity one series.
    """
    known = [record for record in records if record.mode_spec.has_mask and record.summary.get("sparsity_by_layer")]
    sparsities = thinned(sorted({record.summary["sparsity_requested"] for record in known}))
    if not sparsities:
        return None
    layers = list(dict.fromkeys(layer for record in known for layer in record.summary["sparsity_by_layer"]))
    figure, axes = plt.subplots(
        len(sparsities), 1, figsize=(WIDTH, 1.6 + 2.3 * len(sparsities)), sharex=True, sharey=True, squeeze=False
    )
    for axis, sparsity in zip(axes[:, 0], sparsities, strict=True):
        for family in families_of(known):
            own = [r for r in known if r.family == family and r.summary["sparsity_requested"] == sparsity]
            if own:
                density = numpy.mean([[1 - r.summary["sparsity_by_layer"].get(n, 0.0) for n in layers] for r in own], axis=0)
                shown = numpy.where(density > 0, density, numpy.nan)
                axis.plot(shown, color=family.colour, marker=family.marker, linestyle=family.line, label=family.label,
                          markersize=4, linewidth=1)  # fmt: skip
        axis.set_title(f"{sparsity:g} pruned", fontsize=10)
        axis.set_ylabel("share active")
    plain_log(axes[0, 0])
    every = -(-len(layers) // NAMED)
    names = [layer.removesuffix(".weight") for layer in layers]
    axes[-1, 0].set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=7)
    axes[-1, 0].set_xlabel("layer, from the input on")
    families = {text: handle for axis in axes[:, 0] for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(families.values(), families, loc="outside lower center", ncols=columns_for(families), fontsize=9)
    return figure


def thinned(places: list[float]) -> list[float]:
    """At most MOST_PANELS of them, spread evenly, the ends included."""
    if len(places) <= MOST_PANELS:
        return places
    return [places[round(i * (len(places) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def columns_for(labels: Sequence[str] | dict[str, object]) -> int:
    return 2 if max(map(len, labels)) > 20 else 3


def overlap_figure(table: pandas.DataFrame, families: Sequence[Family]) -> Figure:
    """A matrix of Jaccard indices in percent, means over seeds, the value by chance below each.

    Args:
        table: of `overlap.overlaps`.
    """
    known = {*table["first"], *table["second"]}
    labels = [family.label for family in families if family.label in known]
    found = table.groupby(["first", "second"])[["jaccard", "chance"]].mean()
    values = numpy.full((len(labels), len(labels)), numpy.nan)
    figure, axis = plt.subplots(figsize=(WIDTH, WIDTH + 0.5))
    size = min(9, 84 / len(labels))  # points: that of a row's height
    for (first, second), row in found.iterrows():
        i, j = labels.index(first), labels.index(second)
        values[i, j] = values[j, i] = row["jaccard"]
        for x, y in ((i, j), (j, i)):
            colour = "white" if row["jaccard"] < 0.5 else "black"
            axis.text(x, y - 0.2, f"{100 * row['jaccard']:.0f}", ha="center", va="center", fontsize=size, color=colour)
            axis.text(x, y + 0.22, f"{100 * row['chance']:.0f}", ha="center", va="center", fontsize=0.85 * size, color=colour)
    shown = axis.imshow(values, vmin=0, vmax=1, cmap="cividis")
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlabel("method")
    axis.set(ylabel="method", facecolor="0.9")
    axis.grid(visible=False)
    figure.colorbar(shown, ax=axis, label="weights both have / weights one has", shrink=0.7, location="top")
    return figure


def changes_figure(table: pandas.DataFrame, families: Sequence[Family]) -> Figure:
    """Jaccard index of the kept states' masks with the first and with the last one, bands over seeds; dotted: by chance.

    Args:
        table: of `overlap.changes`.
    """
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 7.4), sharex=True, sharey=True)
    for axis, end in zip(axes, ("first", "last"), strict=True):
        for family in families:
            own = table[table["family"] == family.label].groupby("epoch")
            if not len(own):
                continue
            found = [interval(part[f"with_{end}"].tolist(), within=SHARES) for _, part in own]
            line = pandas.DataFrame([vars(one) for one in found])
            epochs = list(own.groups)
            axis.errorbar(epochs, line["mean"], beside(line), color=family.colour, marker=family.marker, linestyle=family.line,
                          capsize=2, markersize=5, linewidth=1.1, label=family.label)  # fmt: skip
            axis.plot(epochs, own[f"chance_{end}"].mean(), color=family.colour, linestyle=(0, (1, 3)), linewidth=1)
        axis.set(ylabel=f"Jaccard index with the {end} mask", ylim=(0, 1.03))
    axes[-1].set_xlabel("epoch")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure

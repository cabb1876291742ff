"""Figures of the masks themselves: density by layer, what they have in common, and how they change. No torch."""

from collections.abc import Sequence

import numpy
import pandas

from helper.charts.chart import Axis, Chart, Matrix, Panel, Series
from helper.look import Look
from study.reporting.families import Family
from study.reporting.figures_epochs import EPOCHS
from study.reporting.figures_ways import WIDTH
from study.reporting.finished_run import FinishedRun, families_of
from study.reporting.statistics import SHARES, interval

MOST_PANELS = 4
NAMED = 40  # layers, above which not each has its name


def density_figure(records: Sequence[FinishedRun]) -> Chart | None:
    """Share of every layer's weights that is active, a panel a sparsity, means over seeds; an empty layer has no point.

    Args:
        records: of each family and sparsity one series.
    """
    known = [record for record in records if record.mode_spec.has_mask and record.summary.get("sparsity_by_layer")]
    sparsities = thinned(sorted({record.summary["sparsity_requested"] for record in known}))
    if not sparsities:
        return None
    layers = list(dict.fromkeys(layer for record in known for layer in record.summary["sparsity_by_layer"]))
    every = -(-len(layers) // NAMED)
    names = [layer.removesuffix(".weight") for layer in layers]
    along = Axis("layer, from the input on", ticks=range(0, len(names), every), names=names[::every])
    panels = []
    for sparsity in sparsities:
        series = []
        for family in families_of(known):
            own = [r for r in known if r.family == family and r.summary["sparsity_requested"] == sparsity]
            if own:
                series.append(densities(own, layers))
        panels.append(Panel(along, Axis("share active", log=True), f"{sparsity:g} pruned", series))
    return Chart(panels, 1, (WIDTH, 1.6 + 2.3 * len(sparsities)), same_y="all")


def densities(records: Sequence[FinishedRun], layers: Sequence[str]) -> Series:
    """Of runs of one family, means over them."""
    family = records[0].family
    share = numpy.mean([[1 - r.summary["sparsity_by_layer"].get(n, 0.0) for n in layers] for r in records], axis=0)
    shown = numpy.where(share > 0, share, numpy.nan)
    return Series(
        family.label, Look(family.colour, family.marker, family.line), range(len(layers)), shown.tolist(), width=1, size=4,
        runs=[[record.name for record in records]],
    )  # fmt: skip


def thinned(places: list[float]) -> list[float]:
    """At most MOST_PANELS of them, spread evenly, the ends included."""
    if len(places) <= MOST_PANELS:
        return places
    return [places[round(i * (len(places) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def overlap_figure(table: pandas.DataFrame, families: Sequence[Family]) -> Chart:
    """A matrix of Jaccard indices in percent, means over seeds, the value by chance below each.

    Args:
        table: of `overlap.overlaps`.
    """
    known = {*table["first"], *table["second"]}
    labels = [family.label for family in families if family.label in known]
    found = table.groupby(["first", "second"])[["jaccard", "chance"]].mean()
    values = numpy.full((len(labels), len(labels)), numpy.nan)
    texts = [["" for _ in labels] for _ in labels]
    for (first, second), row in found.iterrows():
        i, j = labels.index(first), labels.index(second)
        values[i, j] = values[j, i] = row["jaccard"]
        texts[i][j] = texts[j][i] = f"{100 * row['jaccard']:.0f}\n{100 * row['chance']:.0f}"
    axis = Axis("method", ticks=range(len(labels)), names=labels)
    matrix = Matrix(values.tolist(), texts, "weights both have / weights one has")
    return Chart([Panel(axis, axis, matrix=matrix)], 1, (WIDTH, WIDTH + 0.5))


def changes_figure(table: pandas.DataFrame, families: Sequence[Family]) -> Chart:
    """Jaccard index of the kept states' masks with the first and with the last one, bars over seeds; dotted: by chance.

    Args:
        table: of `overlap.changes`.
    """
    panels = []
    for end in ("first", "last"):
        series = [one for family in families for one in alike_over_time(table[table["family"] == family.label], family, end)]
        panels.append(Panel(EPOCHS, Axis(f"Jaccard index with the {end} mask", limits=(0, 1.03)), series=series))
    return Chart(panels, 1, (WIDTH, 7.4), same_y="col")


def alike_over_time(table: pandas.DataFrame, family: Family, end: str) -> list[Series]:
    """A family's index with the mask of one end, and what it would be by chance."""
    if table.empty:
        return []
    by_epoch = table.groupby("epoch")
    found = [interval(part[f"with_{end}"].tolist(), within=SHARES) for _, part in by_epoch]
    epochs = list(by_epoch.groups)
    bounds = ([getattr(one, name) for one in found] for name in ("mean", "low", "high"))
    look, chance = Look(family.colour, family.marker, family.line), Look(family.colour, "", ":")
    runs = [sorted(set(table["run"]))]
    return [
        Series(family.label, look, epochs, *bounds, width=1.1, runs=runs),
        Series(family.label, chance, epochs, by_epoch[f"chance_{end}"].mean().tolist(), width=1, named=False, runs=runs),
    ]

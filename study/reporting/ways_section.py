"""The report's section on ways to a mask: every method of a study against sparsity and cost, its masks, and its rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas

from helper.charts.chart import Chart
from helper.metrics.main import METRICS
from study.bias import bias_noted
from study.reporting.families import in_order
from study.reporting.figures_epochs import main_sparsity, of_main_series
from study.reporting.figures_masks import changes_figure, density_figure, overlap_figure
from study.reporting.figures_sparsity import SingleRuns
from study.reporting.figures_ways import ways_figure
from study.reporting.finished_run import FinishedRun, families_of, grouped
from study.reporting.overlap import Reader, changes, overlaps
from study.reporting.page import Sheet
from study.reporting.ranking import TOTAL, at_equal_cost, at_equal_sparsity
from study.reporting.sheets_ways import cost_ranking, overlap_sheet, rank_rows, sparsity_ranking
from study.reporting.tidy import series_labels
from study.reporting.unreliable import doubt_noted, unreliable

Drawn = tuple[str, str, str, Chart]  # id, title, caption, chart


@dataclass(frozen=True)
class Quantity:
    """What a figure of `ways_figure` shows; `highest`: whether more of it is better."""

    name: str
    title: str
    label: str
    highest: bool
    log: bool = False


QUANTITIES = (
    Quantity("acc_test", "Test accuracy", "test accuracy", highest=True),
    *(
        Quantity(name, METRICS[name].heading, METRICS[name].axis, highest=False, log=True)
        for name in ("fisher", "hessian")
    ),
    Quantity("acc_memorized", "Memorised share", "mislabelled examples predicted as the wrong label", highest=False),
)  # fmt: skip


def many_ways(records: Sequence[FinishedRun]) -> bool:
    """Whether the sparse runs of a study have masks of more than one kind."""
    sparse = [record for record in records if record.mode_spec.has_mask]
    kinds = {(id(r.mode_spec.mask_from), id(r.mode_spec.updater), *r.family.place[1:]) for r in sparse}
    return len(kinds) > 1


def ways_figures(
    runs: pandas.DataFrame, table: pandas.DataFrame, records: Sequence[FinishedRun], bands: str
) -> Iterator[Drawn]:
    """What every method reaches for its sparsity and for its cost."""
    families, single = families_of(records), SingleRuns(runs)
    for quantity in QUANTITIES:
        rows = compared(table[table["quantity"] == quantity.name])
        if not (rows["sparsity"] > 0).any():
            continue
        better = "high" if quantity.highest else "low"
        caption = f"Grey: dense. Above: the methods of one sparsity side by side. {bands}"
        if rows[TOTAL].notna().any():
            caption += (
                " Below: multiply-accumulates of all training steps and scores, with those of the runs that a run needs, "
                "relative to the dense run. The step line is the Pareto front of the means: what no other point has for the "
                f"same cost or less ({better} is better); small numbers: the share pruned of its points."
            )
        caption = bias_noted(caption, records) if quantity.name == "acc_test" else caption
        caption = doubt_noted(caption, *unreliable(runs, quantity.name), f"values of {quantity.title}")
        title = f"{quantity.title} of every way to a mask"
        own = ways_figure(rows, families, quantity.label, single, highest=quantity.highest, log=quantity.log)
        yield f"ways, {quantity.title}", title, caption, own


def compared(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Those of sparsities that several families have, if there are any, and dense ones: rounds have sparsities of their own."""
    several = rows.groupby("sparsity")["family"].nunique() > 1
    kept = rows["sparsity"].map(several) | (rows["sparsity"] == 0)
    return rows[kept] if (kept & (rows["sparsity"] > 0)).any() else rows


def mask_figures(records: Sequence[FinishedRun], reader: Reader) -> Iterator[Drawn | Sheet]:
    """The masks themselves: figures, and the table of what they have in common. Reads files of weights."""
    main = comparable(of_main_series_each(records))
    figure = density_figure(main)
    if figure:
        caption = "Of the selected weights, means over seeds. A layer that is pruned to nothing has no point." + which(
            main, records
        )
        yield "density by layer", "How dense every layer is", caption, figure
    sparsity = main_sparsity(main)
    alike = [record for record in main if record.mode_spec.has_mask and record.summary["sparsity_requested"] == sparsity]
    table = overlaps(alike, reader)
    if len(table):
        caption = (
            f"Jaccard index in percent of the masks at {sparsity:g} pruned, of the same seed, mean over seeds. Below each, "
            f"what masks with as many weights in every layer have in common by chance.{which(alike, records)}"
        )
        yield "mask overlap", "What masks have in common", caption, overlap_figure(table, families_of(alike))
        yield overlap_sheet(table, sparsity)
    changed = changes([record for record in alike if record.mode_spec.updater is not None], reader)
    if len(changed):
        caption = (
            f"Masks of the kept states at {sparsity:g} pruned against the first and against the last of them; bars: 95 % "
            f"intervals over seeds. Dotted: by chance, of masks with as many weights in every layer.{which(alike, records)}"
        )
        yield "masks over time", "How masks change while training", caption, changes_figure(changed, families_of(alike))


def which(shown: Sequence[FinishedRun], records: Sequence[FinishedRun]) -> str:
    """A sentence that names the series shown of methods that have several; empty where none has."""
    labels = series_labels(records)
    names = {labels[record.name]: None for record in shown if labels[record.name] != record.family.label}
    return f" Of methods with several series these are shown: {'; '.join(names)}." if names else ""


def of_main_series_each(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Of every family and sparsity the series with the most runs."""
    groups = grouped(records, lambda record: (record.family, record.summary["sparsity_requested"]))
    order = in_order(family for family, _ in groups)
    return [r for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1])) for r in of_main_series(groups[key])]


def comparable(records: Sequence[FinishedRun]) -> Sequence[FinishedRun]:
    """`compared` of runs."""
    groups = grouped(records, lambda record: record.summary["sparsity_requested"])
    several = {sparsity for sparsity, group in groups.items() if sparsity > 0 and len(families_of(group)) > 1}
    return [record for record in records if record.summary["sparsity_requested"] in several] if several else records


def ranking_sheets(runs: pandas.DataFrame, margin: float) -> tuple[list[Sheet], pandas.DataFrame]:
    """Tables of the methods' ranks, and the rows of ranks.csv."""
    sparsity, cost = at_equal_sparsity(runs, margin), at_equal_cost(runs, margin)
    sheets = [sparsity_ranking(sparsity, margin)] if sparsity else []
    sheets += [cost_ranking(cost, margin)] if cost else []
    rows = [rank_rows("equal sparsity", sparsity), rank_rows("equal cost", cost)]
    return sheets, pandas.concat([one for one in rows if len(one)]) if any(map(len, rows)) else pandas.DataFrame()

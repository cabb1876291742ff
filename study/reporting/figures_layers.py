"""Figure 11 of the paper: gradients and weights of every layer. No torch."""

from collections.abc import Sequence

import pandas

from helper.charts.chart import Axis, Chart, Panel, Ramp, Series
from helper.look import Look, ramp
from study.reporting.figures_epochs import EPOCHS, FEW_LINES
from study.reporting.finished_run import FinishedRun, grouped
from study.reporting.pairs import side_of


def figure11(records: Sequence[FinishedRun]) -> tuple[Chart, list[FinishedRun]] | None:
    """Layer-wise gradient mean and std over the weight norm, and the weight norm, against the epoch; a row a run.

    Finetuned and from scratch at the lowest and at the highest sparsity, first seed of each.
    """
    chosen = extremes([record for record in records if side_of(record.mode)])
    if not chosen:
        return None
    panels = []
    for record in chosen:
        table = record.snr
        table = table[table["mode"] == table.groupby("mode")["epoch"].nunique().idxmax()]
        quantities = {
            "||gradient mean|| / ||W||": table["grad_mean_norm"] / table["weight_norm"],
            "||gradient std|| / ||W||": table["grad_std_norm"] / table["weight_norm"],
            "weight norm ||W||": table["weight_norm"],
        }
        title = f"{record.mode}, {record.summary['sparsity_requested']:g} pruned"
        for label, values in quantities.items():
            axis = Axis(label, log=bool((values > 0).any()))
            panels.append(Panel(EPOCHS, axis, title, by_layer(table, values, record)))
    n_layers = max(len(panel.series) for panel in panels)
    ramped = Ramp("layer, from input to output", 1, n_layers) if n_layers > FEW_LINES else None
    return Chart(panels, 3, (12, 3 * len(chosen)), same_y="col", legend="layer", ramp=ramped, beside=True), chosen


def extremes(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Of the runs with a table of gradients one of every mode at the lowest and at the highest sparsity."""
    at = grouped(records, lambda record: record.summary["sparsity_requested"])
    low = next(filter(None, (first_of_modes(at[sparsity]) for sparsity in sorted(at))), [])
    high = next(filter(None, (first_of_modes(at[sparsity]) for sparsity in sorted(at, reverse=True))), [])
    return low if low == high else [*low, *high]


def first_of_modes(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The run with the lowest seed of every mode, among those with a table of gradients."""
    by_mode = grouped(sorted(records, key=lambda record: (record.mode, record.seed)), lambda record: record.mode)
    firsts = (next((record for record in own if record.rows("snr")), None) for own in by_mode.values())
    return [record for record in firsts if record]


def by_layer(table: pandas.DataFrame, values: pandas.Series, record: FinishedRun) -> list[Series]:
    """A line a layer, dark at the input and light at the output."""
    layers = list(dict.fromkeys(table["layer"]))
    found = []
    for index, layer in enumerate(layers):
        rows = table["layer"] == layer
        look = Look(ramp(0.9 * index / max(len(layers) - 1, 1)))
        found.append(Series(layer, look, table["epoch"][rows].tolist(), values[rows].tolist(), width=1.2, runs=[[record.name]]))
    return found

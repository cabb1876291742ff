"""Figure 11 of the paper: gradients and weights of every layer. No torch."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy
from matplotlib.figure import Figure

from helper.drawing import plain_log
from helper.plotter.gradients import by_layer
from study.reporting.finished_run import FinishedRun
from study.reporting.pairs import side_of


def figure11(records: Sequence[FinishedRun]) -> tuple[Figure, list[FinishedRun]] | None:
    """Layer-wise gradient mean and std over the weight norm, and the weight norm, against the epoch; a row a run.

    Finetuned and from scratch at the lowest and at the highest sparsity, first seed of each.
    """
    measured = [r for r in records if side_of(r.mode) and r.rows("snr")]
    if not measured:
        return None
    sparsities = {r.summary["sparsity_requested"] for r in measured}
    chosen = {}
    for record in sorted(measured, key=lambda r: (r.summary["sparsity_requested"], r.mode, r.seed)):
        key = (record.summary["sparsity_requested"], record.mode)
        if key[0] in (min(sparsities), max(sparsities)):
            chosen.setdefault(key, record)
    figure, axes = plt.subplots(len(chosen), 3, figsize=(12, 3 * len(chosen)), sharex=True, squeeze=False)
    for row, ((sparsity, mode), record) in zip(axes, chosen.items(), strict=True):
        table = record.snr
        table = table[table["mode"] == table.groupby("mode")["epoch"].nunique().idxmax()]
        quantities = [
            (table["grad_mean_norm"] / table["weight_norm"], "||gradient mean|| / ||W||"),
            (table["grad_std_norm"] / table["weight_norm"], "||gradient std|| / ||W||"),
            (table["weight_norm"], "weight norm ||W||"),
        ]
        for axis, (values, label) in zip(row, quantities, strict=True):
            by_layer(axis, table, values, legend=axis is row[-1])
            axis.set(ylabel=label, yscale="log")
            axis.set_title(f"{mode}, {sparsity:g} pruned", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    share_rows(axes)
    for axis in axes.flat:
        plain_log(axis)
    return figure, list(chosen.values())


def share_rows(axes: numpy.ndarray) -> None:
    """The same vertical limits in each column, so that rows compare."""
    for column in axes.T:
        limits = [axis.get_ylim() for axis in column]
        for axis in column:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))

"""Loss, accuracy and entropy of a run, epoch by epoch."""

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import ABOVE
from helper.look import BLUE, GREEN, ORANGE
from helper.plotter.columns import Columns

SPLITS = {"train": (BLUE, "-", "training"), "val": (GREEN, ":", "validation"), "test": (ORANGE, "--", "test")}


def performance(history: Columns) -> Figure:
    """Loss and accuracy of every split and the training predictions' entropy against the epoch."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    for axis, quantity, label in ((axes[0], "loss", "cross-entropy (nats)"), (axes[1], "acc", "accuracy")):
        for split, (colour, dash, name) in SPLITS.items():
            column = f"{quantity}_{split}"
            if column in history and not numpy.isnan(history[column]).all():
                draw(axis, history, column, dash, color=colour, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.legend(fontsize=8, ncols=3, **ABOVE)
    axes[1].set_ylim(0, 1.02)
    draw(axes[2], history, "entropy_train", "-", color=BLUE)
    axes[2].set(xlabel="epoch", ylabel="prediction entropy,\ntraining set (nats)")
    from_zero(axes[2])
    return figure


def draw(axis: Axes, history: Columns, column: str, dash: str, **look: str) -> None:
    """A line through the epochs that have the column; those that `--eval_every` leaves out are no gaps in it."""
    there = ~numpy.isnan(history[column])
    axis.plot(history["epoch"][there], history[column][there], dash, **look)


def from_zero(axis: Axes) -> None:
    """Let a vertical axis begin at 0 and end above the largest value, by which a constant is not drawn along its edge."""
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])


def noisy_performance(history: Columns) -> Figure | None:
    """Under label noise: how examples with true and with wrong labels fare (paper, figure 4)."""
    if "acc_memorized" not in history or numpy.isnan(history["acc_memorized"]).all():
        return None
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    curves = [
        (axes[0], "loss_clean", BLUE, "-", "clean labels"),
        (axes[0], "loss_noisy", ORANGE, "--", "wrong labels"),
        (axes[1], "acc_clean", BLUE, "-", "clean labels: correct"),
        (axes[1], "acc_test", ORANGE, "--", "test"),
        (axes[2], "acc_generalized", BLUE, "-", "predicted as the true label"),
        (axes[2], "acc_memorized", ORANGE, "--", "predicted as the given wrong label"),
    ]
    for axis, column, colour, dash, label in curves:
        draw(axis, history, column, dash, color=colour, label=label)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy,\ngiven labels (nats)")
    axes[1].set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    axes[2].set(xlabel="epoch", ylabel="share of mislabelled examples", ylim=(0, 1.02))
    for axis in axes:
        axis.legend(fontsize=8, **ABOVE)
    return figure

"""Who looks on while a run trains: the user, and what ends a run that has gone wrong."""

import contextlib
import logging
import math
from typing import Any

import torch
from torch import Tensor

from helper.masks.choosing import all_finite
from helper.processes.first import broadcast_from_first
from helper.processes.sharing import any_process
from helper.progress import Task, spoken
from optim.callbacks.callback import Callback
from optim.folder import RunFolder
from optim.trainer import Trainer

log = logging.getLogger(__name__)
SHOWN = {"loss": "loss_train", "train": "acc_train", "test": "acc_test"}  # by a bar: name, column of history.csv


class Diverged(RuntimeError):
    """The loss is not finite."""


class StopIfGone(Callback):
    """Ends a run whose folder has been removed, before anything is written into a new one."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_epoch(self, trainer: Trainer) -> None:
        broadcast_from_first(self.folder.check_there)


class StopIfDiverged(Callback):
    """Ends the run when a loss or a weight is not finite, before a state of that epoch is saved."""

    def on_epoch(self, trainer: Trainer) -> None:
        check_finite(trainer)


def check_finite(trainer: Trainer) -> None:
    checks = [finite(t) for t in trainer.network.state_dict().values()]  # the last step's loss came before it
    checks += [] if trainer.sums is None else [torch.isfinite(trainer.sums.loss)]
    if any_process(not torch.stack(checks).all() or not math.isfinite(trainer.row.get("loss_train", 0.0))):
        raise Diverged(
            f"the training loss or a weight is not finite in epoch {max(trainer.epoch, trainer.first_epoch + 1)}: "
            f"lower --lr (now {trainer.config.lr}) or add --warmup_epochs; the last good checkpoint is kept"
        )


def finite(values: Tensor) -> Tensor:
    """Whether all values are finite, as a tensor beside them; on the CPU without another tensor of their size."""
    return torch.tensor(all_finite(values)) if values.device.type == "cpu" else torch.isfinite(values).all()


class Progress(Callback):
    """A bar with newest loss, newest accuracies and remaining time on a terminal, a line for each epoch in the log everywhere.

    A context: what it shows ends with it, however the training does.
    """

    def __enter__(self) -> "Progress":
        self.shown = contextlib.ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self.shown.close()

    def on_start(self, trainer: Trainer) -> None:
        total = (trainer.config.n_epochs - trainer.first_epoch) * trainer.steps_per_epoch
        done = (trainer.epoch - trainer.first_epoch) * trainer.steps_per_epoch + trainer.step
        self.newest: dict[str, str] = {}  # of what the bar shows
        self.task = self.shown.enter_context(Task("training", total, "steps", done=done))

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False

    def on_step(self, trainer: Trainer) -> None:
        self.task.advance()

    def on_epoch(self, trainer: Trainer) -> None:
        row = trainer.row
        self.newest |= {name: f"{row[column]:.3f}" for name, column in SHOWN.items() if column in row}
        self.task.note(**self.newest)
        log.info(
            "epoch %d/%d  lr %.4g%s  %.1f s",
            trainer.epoch, trainer.config.n_epochs, row["lr"], results_in(row), row["seconds"],
        )  # fmt: skip
        spoken()


def results_in(row: dict[str, Any]) -> str:
    """Loss and accuracy of the training and the test set, each after two spaces, as far as the epoch has them."""
    there = [name for name in ("train", "test") if f"loss_{name}" in row]
    return "".join(f"  {name} loss {row[f'loss_{name}']:.4f} acc {row[f'acc_{name}']:.4f}" for name in there)

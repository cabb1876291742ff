"""What hangs on the training loop, in the order in which train_run puts it there."""

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from helper.mask import Mask
from helper.metrics.config import MetricConfig
from helper.metrics.evaluation import evaluate, means_of
from helper.metrics.snr import GradientMoments
from helper.processes.first import broadcast_from_first
from helper.processes.sharing import Agreement, any_process
from helper.progress import Task, spoken, tracked
from helper.system.files import file_hash, write_atomic
from helper.system.memory import peak_memory_mb
from helper.system.signals import Signals
from optim.checkpoint import FROM_THE_START, save_state
from optim.folder import RunFolder
from optim.measuring import evaluate_training, measure_into, measure_spectrum_into
from optim.model import model_state
from optim.trackers.main import Trackers
from optim.trainer import Trainer

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """The loss is not finite."""


class Callback:
    """Events of the loop; each gets the trainer."""

    def on_start(self, trainer: Trainer) -> None:
        """Before anything, also of a resumed run."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Before the first step of an epoch, or of what is left of one."""

    def on_gradients(self, trainer: Trainer) -> None:
        """Between backward pass and optimiser step."""

    def on_step(self, trainer: Trainer) -> None:
        """After the optimiser step."""

    def on_epoch(self, trainer: Trainer) -> None:
        """After an epoch, and once at epoch 0; `trainer.row` takes what history.csv shows."""

    def on_interruption(self, trainer: Trainer) -> None:
        """`on_epoch` was interrupted somewhere, and the trainer is again where the epoch's last step left it."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last epoch."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Called before `on_start` of a resumed run, with what `state` gave, if that was anything."""


class KeepPruned(Callback):
    """Pruned weights stay zero: set once, their gradients zeroed before every step."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    def on_start(self, trainer: Trainer) -> None:
        self.mask.apply_(trainer.network)
        self.weights = self.mask.parameters_of(trainer.network)
        # in dtype and memory layout of the gradients, so that one fused product does
        self.factors = [torch.empty_like(w).copy_(m) for w, m in zip(self.weights, self.mask.values(), strict=True)]

    @torch.no_grad()
    def on_gradients(self, trainer: Trainer) -> None:
        if self.weights:
            torch._foreach_mul_([weight.grad for weight in self.weights], self.factors)


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
    checks = [torch.isfinite(t).all() for t in trainer.network.state_dict().values()]  # the last step's loss came before it
    checks += [] if trainer.sums is None else [torch.isfinite(trainer.sums[1])]
    if any_process(not torch.stack(checks).all() or not math.isfinite(trainer.row.get("loss_train", 0.0))):
        raise Diverged(
            f"the training loss or a weight is not finite in epoch {max(trainer.epoch, 1)}: "
            f"lower --lr (now {trainer.config.lr}) or add --warmup_epochs; the last good checkpoint is kept"
        )


class Evaluate(Callback):
    """Loss, accuracy and entropy on every split; the training-set pass gives the gradient SNR as well."""

    def __init__(self, folder: RunFolder, mask: Mask, metrics: MetricConfig) -> None:
        self.folder, self.mask, self.metrics = folder, mask, metrics

    def on_start(self, trainer: Trainer) -> None:
        self.snr = broadcast_from_first(self.folder.snr)
        self.snr.keep_until(trainer.recorded)
        self.pass_snr = self.metrics.save_snr and self.metrics.snr_mode == "fixed"
        if self.metrics.save_snr and len(trainer.dataset.train) < 2 * trainer.config.batch_size:
            log.warning(
                "no SNR: it needs two full batches and --batch_size %d gives %d from %d examples",
                trainer.config.batch_size, len(trainer.dataset.train) // trainer.config.batch_size, len(trainer.dataset.train),
            )  # fmt: skip

    def on_epoch(self, trainer: Trainer) -> None:
        data, batch_size = trainer.dataset, trainer.config.batch_size
        if trainer.config.train_eval == "running" and trainer.sums is not None:
            train = means_of(trainer.sums.cpu().double())
        else:
            train, snr = evaluate_training(trainer.network, self.mask, data, batch_size, trainer.seed, snr=self.pass_snr)
            for row in snr:
                self.snr.append({"epoch": trainer.epoch, **row})
        trainer.row |= {f"{k}_train" if k in ("loss", "acc", "entropy") else k: v for k, v in train.items()}
        for name, split in (("val", data.val), ("test", data.test)):
            if len(split):
                batches = data.batches(split, batch_size, own=True)
                means = evaluate(trainer.network, tracked(batches, f"{name} set", "batches"))
                trainer.row |= {f"loss_{name}": means["loss"], f"acc_{name}": means["acc"]}
        if self.pass_snr and self.snr.rows:
            broadcast_from_first(self.snr.write)


class OnlineSNR(Callback):
    """Gradient SNR of an epoch from the gradients of its training steps, on augmented batches while the weights move.

    A short last batch is left out. There is no row for epoch 0, which takes no step.
    """

    def __init__(self, folder: RunFolder, mask: Mask) -> None:
        self.folder, self.mask = folder, mask
        self.resumed: dict[str, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.table = broadcast_from_first(self.folder.snr)
        self.table.keep_until(trainer.recorded)
        self.moments = GradientMoments(trainer.network, self.mask)
        if self.resumed:
            self.moments.load_state(self.resumed)

    def before_epoch(self, trainer: Trainer) -> None:
        self.finished: GradientMoments | None = None  # of the epoch's steps, once they are in the table

    def on_gradients(self, trainer: Trainer) -> None:
        if (trainer.step + 1) * trainer.config.batch_size <= len(trainer.dataset.train):
            self.moments.update([weight.grad for weight in self.moments.weights])

    def on_epoch(self, trainer: Trainer) -> None:
        for row in self.moments.table():
            extra = {"epoch": trainer.epoch, "batch_size": trainer.config.batch_size, "mode": "online"}
            self.table.append(row | extra)
        broadcast_from_first(self.table.write)
        self.finished, self.moments = self.moments, GradientMoments(trainer.network, self.mask)

    def on_interruption(self, trainer: Trainer) -> None:
        self.moments = self.finished or self.moments

    def state(self) -> dict[str, Any]:
        return self.moments.state() if self.moments.n_batches else {}

    def load_state(self, state: dict[str, Any]) -> None:
        self.resumed = state


class Measure(Callback):
    """The metrics of the initialisation and of every K-th epoch."""

    def __init__(self, folder: RunFolder, mask: Mask, metrics: MetricConfig, seed: int) -> None:
        self.folder, self.mask, self.metrics, self.seed = folder, mask, metrics, seed

    def on_start(self, trainer: Trainer) -> None:
        table = broadcast_from_first(self.folder.metrics)
        before = len(table.rows)
        table.keep_until(trainer.recorded)
        if len(table.rows) < before:
            broadcast_from_first(table.write)

    def on_epoch(self, trainer: Trainer) -> None:
        if self.metrics.due(trainer.epoch):
            table = broadcast_from_first(self.folder.metrics)
            measure_into(table, trainer.network, self.mask, trainer.dataset, self.metrics, epoch=trainer.epoch, seed=self.seed)
            measure_spectrum_into(
                self.folder, trainer.network, self.mask, trainer.dataset, self.metrics, epoch=trainer.epoch, seed=self.seed
            )


class SelectBest(Callback):
    """Writes model.pt: the last epoch's weights, or the first best on the split of --select.

    Args:
        written: {name in the folder: hash} of weights files, which is added to.
    """

    def __init__(self, folder: RunFolder, mask: Mask, written: dict[str, str]) -> None:
        self.folder, self.mask, self.written = folder, mask, written

    def on_start(self, trainer: Trainer) -> None:
        self.column = f"acc_{trainer.config.select}"
        rows = broadcast_from_first(self.folder.history).rows if trainer.resumed else []
        scores = {int(row["epoch"]): float(row[self.column]) for row in rows if row.get(self.column)}
        scores = {epoch: score for epoch, score in scores.items() if 0 < epoch <= trainer.epoch}
        self.best = max(scores.values(), default=-1.0)
        if scores and trainer.config.select != "last":
            broadcast_from_first(self.bring_back, max(scores, key=scores.get))  # the first of the best

    def bring_back(self, epoch: int) -> None:
        """Write model.pt again from the kept state of its epoch, if it is gone or another.

        One of an epoch that the checkpoint does not have may stay where no state was kept: that epoch is to come.
        """
        model, state = self.folder.model, self.folder.epoch_state(epoch)
        if self.as_written(model):
            return
        if self.as_written(state):
            write_atomic(model, state.read_bytes())
        elif not model.exists():
            raise RuntimeError(f"{model}, the weights of epoch {epoch}, is gone: put it back, or {FROM_THE_START}")

    def as_written(self, path: Path) -> bool:
        """Whether a file is what was last written to model.pt, by this process or before it."""
        return path.is_file() and file_hash(path.read_bytes()) == self.written["model.pt"]

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.config.select != "last" and trainer.epoch > 0 and trainer.row[self.column] > self.best:
            self.best = trainer.row[self.column]
            self.save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.config.select == "last":
            self.save(trainer)
        broadcast_from_first(self.check)

    def save(self, trainer: Trainer) -> None:
        state = model_state(trainer.network, self.mask, trainer.epoch)
        self.written["model.pt"] = broadcast_from_first(save_state, self.folder.model, state)

    def check(self) -> None:
        """Raise RuntimeError when model.pt is another's."""
        if not self.as_written(self.folder.model):
            raise RuntimeError(f"{self.folder.model} is not what this run has left there: {FROM_THE_START}")


class KeepStates(Callback):
    """state_dicts/epoch_<k>.pt for the epochs of --save_epochs.

    Args:
        written: {name in the folder: hash} of weights files, which is added to.
    """

    def __init__(self, folder: RunFolder, mask: Mask, written: dict[str, str]) -> None:
        self.folder, self.mask, self.written = folder, mask, written

    def on_start(self, trainer: Trainer) -> None:
        broadcast_from_first(self.remove_unknown)

    def remove_unknown(self) -> None:
        """Remove states that the checkpoint does not know: of an epoch that is to come again, or nobody's."""
        for path in map(self.folder.epoch_state, self.folder.kept_epochs()):
            if self.folder.name_of(path) not in self.written:
                path.unlink()

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch in trainer.config.saved_epochs():
            path = self.folder.epoch_state(trainer.epoch)
            state = model_state(trainer.network, self.mask, trainer.epoch)
            self.written[self.folder.name_of(path)] = broadcast_from_first(save_state, path, state)


class WriteHistory(Callback):
    """history.csv, one row an epoch."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_start(self, trainer: Trainer) -> None:
        self.table = broadcast_from_first(self.folder.history, noisy=trainer.dataset.noisy)
        self.table.keep_until(trainer.recorded)
        self.started = time.perf_counter()

    def on_epoch(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        trainer.row |= {
            "epoch": trainer.epoch,
            "lr": trainer.learning_rate,
            "seconds": round(now - self.started, 3),
            "peak_memory_mb": round(peak_memory_mb(trainer.device), 1),
        }
        if trainer.epoch and trainer.images_timed:
            trainer.row["images_per_second"] = round(trainer.images_timed / trainer.train_seconds, 1)
        self.started = now
        self.table.append(trainer.row)
        broadcast_from_first(self.table.write)


class Track(Callback):
    """Tells the trackers of every epoch that the tables have."""

    def __init__(self, trackers: Trackers) -> None:
        self.trackers = trackers

    def on_epoch(self, trainer: Trainer) -> None:
        broadcast_from_first(self.trackers.epoch, trainer.epoch)


class WriteCheckpoint(Callback):
    """checkpoint.pt after every epoch, and of the last step taken when a signal asks the run to stop.

    Comes after everything else that an epoch writes: what is on disk beyond the checkpoint is written again.
    """

    def __init__(self, folder: RunFolder, mask: Mask, written: dict[str, str], signals: Signals) -> None:
        self.folder, self.mask, self.written, self.signals = folder, mask, written, signals
        self.agreement = Agreement()

    def before_epoch(self, trainer: Trainer) -> None:
        if any_process(bool(self.signals.received)):
            self.stop(trainer)

    def on_step(self, trainer: Trainer) -> None:
        if self.agreement.any_process(bool(self.signals.received)):
            self.on_interruption(trainer)
            self.stop(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        self.save(trainer)

    def on_interruption(self, trainer: Trainer) -> None:
        check_finite(trainer)
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        broadcast_from_first(self.folder.check_there)
        tables = broadcast_from_first(self.folder.written, trainer.epoch)
        files = {"run": self.folder.path.name, "tables": tables, "weights": self.written}
        state = trainer.state() | {"mask": dict(self.mask), **files}
        broadcast_from_first(save_state, self.folder.checkpoint, state, keep_previous=True)

    def stop(self, trainer: Trainer) -> None:
        raise self.signals.interruption(f" after {trainer.epoch} epochs and {trainer.step} steps")


class Progress(Callback):
    """A bar with loss, accuracy and remaining time on a terminal, a line for each epoch in the log everywhere.

    A context: what it shows ends with it, however the training does.
    """

    def __enter__(self) -> "Progress":
        self.shown = contextlib.ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self.shown.close()

    def on_start(self, trainer: Trainer) -> None:
        total = trainer.config.n_epochs * trainer.steps_per_epoch
        done = trainer.epoch * trainer.steps_per_epoch + trainer.step
        self.task = self.shown.enter_context(Task("training", total, "steps", done=done))

    def on_step(self, trainer: Trainer) -> None:
        self.task.advance()

    def on_epoch(self, trainer: Trainer) -> None:
        row = trainer.row
        shown = {"loss": row["loss_train"], "train": row["acc_train"], "test": row["acc_test"]}
        self.task.note(**{k: f"{v:.3f}" for k, v in shown.items()})
        log.info(
            "epoch %d/%d  lr %.4g  train loss %.4f acc %.4f  test loss %.4f acc %.4f  %.1f s",
            trainer.epoch, trainer.config.n_epochs, row["lr"], row["loss_train"], row["acc_train"],
            row["loss_test"], row["acc_test"], row["seconds"],
        )  # fmt: skip
        spoken()

"""What is found out about the network after every epoch: losses, accuracies, gradients, curvature."""

import logging
from typing import Any

from helper.metrics.config import MetricConfig
from helper.metrics.evaluation import evaluate
from helper.metrics.quantities.snr import snr_epochs
from helper.metrics.snr import GradientMoments
from helper.processes.first import broadcast_from_first
from helper.progress import tracked
from optim.callbacks.callback import Callback
from optim.folder import RunFolder
from optim.measuring import evaluate_training, measure_into, measure_spectrum_into
from optim.trainer import Trainer

log = logging.getLogger(__name__)


class Evaluate(Callback):
    """Loss, accuracy and entropy on every split, after the epochs that --eval_every says.

    The training-set pass gives the gradient SNR as well; where it is made for that alone, the row has the training columns
    and no others. What the training steps compute of active weights alone, these passes do as well.
    """

    def __init__(self, folder: RunFolder, metrics: MetricConfig) -> None:
        self.folder, self.metrics = folder, metrics

    def on_start(self, trainer: Trainer) -> None:
        self.snr = broadcast_from_first(self.folder.snr)
        self.snr.keep_until(trainer.recorded)
        passes = self.metrics.save_snr and self.metrics.snr_mode == "fixed"
        n_epochs = trainer.config.n_epochs
        self.snr_epochs = snr_epochs(self.metrics.snr_every, n_epochs, trainer.first_epoch) if passes else set()
        if self.metrics.save_snr and len(trainer.dataset.train) < 2 * trainer.config.batch_size:
            log.warning(
                "no SNR: it needs two full batches and --batch_size %d gives %d from %d examples",
                trainer.config.batch_size, len(trainer.dataset.train) // trainer.config.batch_size, len(trainer.dataset.train),
            )  # fmt: skip

    def on_epoch(self, trainer: Trainer) -> None:
        due, with_snr = trainer.config.evaluates(trainer.epoch, trainer.first_epoch), trainer.epoch in self.snr_epochs
        if trainer.config.train_eval == "running" and trainer.sums is not None:
            trainer.row |= training_columns(trainer.sums.to("cpu").means())
        elif due or with_snr:
            trainer.row |= training_columns(self.pass_training_set(trainer, with_snr=with_snr))
        if due:
            self.pass_other_sets(trainer)
        if with_snr and self.snr.rows:
            broadcast_from_first(self.snr.write)

    def pass_training_set(self, trainer: Trainer, *, with_snr: bool) -> dict[str, float]:
        """Means over the training split; rows of its SNR are appended to the table."""
        last = trainer.epoch == trainer.config.n_epochs  # its accuracies go into the summary
        means, snr = evaluate_training(
            trainer.network, trainer.mask_owner.mask, trainer.dataset, trainer.config.batch_size, trainer.seed, snr=with_snr,
            forward=trainer.sparse_step.forward_for(trainer.mask_owner),
            precision=self.metrics.snr_precision if with_snr and not last else "fp32",
        )  # fmt: skip
        for row in snr:
            self.snr.append({"epoch": trainer.epoch, **row})
        return means

    def pass_other_sets(self, trainer: Trainer) -> None:
        data, forward = trainer.dataset, trainer.sparse_step.forward_for(trainer.mask_owner)
        for name, split in (("val", data.val), ("test", data.test)):
            if len(split):
                batches = data.batches(split, trainer.config.batch_size, own=True)
                means = evaluate(trainer.network, tracked(batches, f"{name} set", "batches"), forward=forward)
                trainer.row |= {f"loss_{name}": means["loss"], f"acc_{name}": means["acc"]}


def training_columns(means: dict[str, float]) -> dict[str, float]:
    """Means over the training split as history.csv calls them."""
    return {f"{name}_train" if name in ("loss", "acc", "entropy") else name: mean for name, mean in means.items()}


class OnlineSNR(Callback):
    """Gradient SNR of an epoch from the gradients of its training steps, on augmented batches while the weights move.

    A short last batch is left out. The first epoch, which takes no step, has no row. Where the mask changes in an epoch, the
    moments start anew: its row is of the steps that follow.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.resumed: dict[str, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.table = broadcast_from_first(self.folder.snr)
        self.table.keep_until(trainer.recorded)
        self.start_anew(trainer)
        if self.resumed:
            self.moments.load_state(self.resumed)

    def start_anew(self, trainer: Trainer) -> None:
        self.moments, self.version = GradientMoments(trainer.network, trainer.mask_owner.mask), trainer.mask_owner.version

    def follow_mask(self, trainer: Trainer) -> None:
        if self.version != trainer.mask_owner.version:
            self.start_anew(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        self.finished: GradientMoments | None = None  # of the epoch's steps, once they are in the table

    def on_gradients(self, trainer: Trainer) -> None:
        self.follow_mask(trainer)
        if (trainer.step + 1) * trainer.config.batch_size <= len(trainer.dataset.train):
            self.moments.update([weight.grad for weight in self.moments.weights])

    def on_step(self, trainer: Trainer) -> None:
        self.follow_mask(trainer)  # already here: a checkpoint of this step must not hold moments of the former mask

    def on_epoch(self, trainer: Trainer) -> None:
        rows = self.moments.table()
        size = trainer.drawing.n_of_steps(trainer.epoch - 1, trainer.config.batch_size) if rows else 0
        for row in rows:
            self.table.append(row | {"epoch": trainer.epoch, "batch_size": size, "mode": "online"})
        broadcast_from_first(self.table.write)
        self.finished = self.moments
        self.start_anew(trainer)

    def on_interruption(self, trainer: Trainer) -> None:
        self.moments = self.finished or self.moments

    def state(self) -> dict[str, Any]:
        return self.moments.state() if self.moments.n_batches else {}

    def load_state(self, state: dict[str, Any]) -> None:
        self.resumed = state


class Measure(Callback):
    """The metrics of the initialisation and of every K-th epoch.

    Attributes:
        former: what the last measurement of each has left for the next one; of an epoch that is interrupted before its end
            it stays that of the one before.
    """

    def __init__(self, folder: RunFolder, metrics: MetricConfig, seed: int) -> None:
        self.folder, self.metrics, self.seed = folder, metrics, seed
        self.former: dict[str, Any] = {}
        self.coming: dict[str, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        table = broadcast_from_first(self.folder.metrics)
        before = len(table.rows)
        table.keep_until(trainer.recorded)
        if len(table.rows) < before:
            broadcast_from_first(table.write)

    def on_epoch(self, trainer: Trainer) -> None:
        self.coming = dict(self.former)
        if not self.metrics.due(trainer.epoch, trainer.first_epoch):
            return
        of_state = (trainer.network, trainer.mask_owner.mask, trainer.dataset, self.metrics)
        table = broadcast_from_first(self.folder.metrics)
        measure_into(table, *of_state, epoch=trainer.epoch, seed=self.seed, former=self.coming)
        measure_spectrum_into(self.folder, *of_state, epoch=trainer.epoch, seed=self.seed)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.former = self.coming

    def state(self) -> dict[str, Any]:
        return self.former

    def load_state(self, state: dict[str, Any]) -> None:
        self.former = state

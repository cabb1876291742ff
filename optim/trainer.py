"""Training options and the loop. Masks, evaluation, tables, checkpoints and measurements hang on it as callbacks."""

import functools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.metrics.evaluation import batch_sums
from helper.processes.first import copy_from_first
from helper.processes.group import rank, world_size
from helper.processes.interruption import interruptible
from helper.processes.sharing import own_share, sum_over_processes
from helper.schema.registry import with_options
from helper.system.seeds import stream
from helper.system.signals import Interrupted, Signals
from helper.system.xla import end_of_graph
from loader.dataset import Dataset, crop_and_flip, draw_crops
from optim.config import TrainConfig
from optim.optimizers import OPTIMIZERS
from optim.parallel import parallel
from optim.regularizer import REGULARIZERS
from optim.schedule import SCHEDULES, learning_rate

if TYPE_CHECKING:
    from optim.callbacks import Callback


class Trainer:
    """The training loop over one data set on one device.

    Order and augmentation of epoch e, and the random numbers of a step, come from streams named by seed, epoch and step;
    so `state` (epoch, step, weights, optimiser) is all that an exact continuation needs. Several processes draw the same
    numbers for the global batch, and each takes its share of it: they train what one process does, to rounding.

    Args:
        network: on the device of the data set; trained in place.
        dataset: the training split is used; moved to the device once, by the caller.
        seed: of data order, augmentation and regularisation.
        callbacks: called in order, see optim/callbacks.py.
    """

    def __init__(
        self, network: nn.Module, dataset: Dataset, config: TrainConfig, *, seed: int, callbacks: "list[Callback]"
    ) -> None:
        self.network, self.dataset, self.config, self.seed, self.callbacks = network, dataset, config, seed, callbacks
        self.device = dataset.train.inputs.device
        self.forward = parallel(network, self.device, sync_batch_norm=config.sync_batch_norm)
        if config.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = with_options(OPTIMIZERS[config.optimizer_name], config)(network.parameters())
        schedule = with_options(SCHEDULES[config.lr_schedule], config)
        self.rate = functools.partial(with_options(learning_rate, config), schedule)
        penalty = REGULARIZERS[config.reg_type]
        self.penalty = None if penalty is None else with_options(penalty, config)
        self.steps_per_epoch = -(-len(dataset.train) // config.batch_size)
        self.epoch = 0  # completed epochs
        self.step = 0  # completed steps of the epoch under way
        self.sums: Tensor | None = None  # over the batches of the epoch under way; this process's part while it lasts
        self.resumed = False
        self.row: dict[str, Any] = {}  # history of the epoch just completed, filled in by the callbacks
        self.train_seconds, self.images_timed = 0.0, 0  # this process's share of the steps of that epoch

    def fit(self, signals: Signals | None = None) -> None:
        """Train to the last epoch, from wherever `state` stands.

        Args:
            signals: interrupt the passes after an epoch; between steps a callback may heed them.
        """
        self.emit("on_start")
        end_of_graph(self.device)
        if not self.resumed:
            with interruptible(signals):
                self.emit("on_epoch")  # epoch 0: the initialisation
        while self.epoch < self.config.n_epochs:
            self.emit("before_epoch")
            self.network.train()
            started, self.images_timed = time.perf_counter(), 0
            for step, rows in self.remaining_batches():
                self.train_step(step, rows)
                end_of_graph(self.device)
                self.step, self.images_timed = step + 1, self.images_timed + len(rows)
                self.emit("on_step")
            end_of_graph(self.device, wait=True)
            self.train_seconds = time.perf_counter() - started
            self.sums = None if self.sums is None else sum_over_processes(self.sums)
            copy_from_first(self.network.buffers())
            self.end_epoch(signals)
        self.emit("on_end")

    def end_epoch(self, signals: Signals | None) -> None:
        """The passes after an epoch's last step, to which the trainer returns where they are interrupted."""
        self.epoch, self.step, self.row = self.epoch + 1, 0, {}
        try:
            with interruptible(signals):
                self.emit("on_epoch")
        except Interrupted:
            self.epoch, self.step = self.epoch - 1, self.steps_per_epoch
            self.sums = self.sums if rank() == 0 or self.sums is None else torch.zeros_like(self.sums)  # `state` adds up
            self.emit("on_interruption")
            raise
        self.sums = None

    def remaining_batches(self) -> Iterator[tuple[int, Tensor]]:
        """(step, rows of the training split) of the epoch under way, from its first step not yet done."""
        order = torch.randperm(len(self.dataset.train), generator=stream(self.seed, "order", self.epoch))
        for step, rows in list(enumerate(order.split(self.config.batch_size)))[self.step :]:
            yield step, rows.to(self.device)

    def train_step(self, step: int, rows: Tensor) -> None:
        own, generator = own_share(len(rows)), stream(self.seed, "step", self.epoch, step)
        batch = self.dataset.train[rows[own]]
        images = batch.inputs
        if self.dataset.augmented:
            padding = self.dataset.padding
            images = crop_and_flip(images, draw_crops(len(rows), generator, padding)[:, own], padding)
        inputs = self.dataset.normalise(images)
        self.set_learning_rate(self.rate(self.epoch, step, self.steps_per_epoch))

        self.optimizer.zero_grad(set_to_none=True)
        inputs.requires_grad_(self.penalty is not None)
        with self.autocast():
            logits = self.forward(inputs)
        logits = logits.float()
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        loss = losses.sum() / len(rows)
        if self.penalty is not None:
            noise = torch.randn(len(rows), logits.shape[1], generator=generator)[own]
            loss = loss + self.penalty(logits, inputs, noise) / len(rows)
        (loss * world_size()).backward()  # gradients become means over the processes
        self.emit("on_gradients")
        self.optimizer.step()

        sums = batch_sums(logits, losses, batch.labels, batch.true_labels, noisy=self.dataset.noisy)
        sums[1] = sums[1] + 0 * loss.detach()  # a penalty that is not finite shows in the sum as well
        before = torch.zeros(len(sums)) if self.sums is None else self.sums  # as data: the first step's graph is the others'
        self.sums = before.to(self.device) + sums

    def autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @property
    def recorded(self) -> int:
        """The last epoch whose rows stand in the tables when training starts or goes on; -1 for a fresh run."""
        return self.epoch if self.resumed else -1

    @property
    def learning_rate(self) -> float:
        """Of the last step taken."""
        return self.optimizer.param_groups[0]["lr"]

    def emit(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as tensors and plain values."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "processes": world_size(),
            "sums": None if self.sums is None or not self.step else sum_over_processes(self.sums),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "callbacks": {type(callback).__name__: callback.state() for callback in self.callbacks if callback.state()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        if state["sums"] is not None:
            self.sums = state["sums"].to(self.device) * (rank() == 0)
        self.resumed = True
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for callback in self.callbacks:
            if type(callback).__name__ in state.get("callbacks", {}):
                callback.load_state(state["callbacks"][type(callback).__name__])

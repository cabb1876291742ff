"""The training loop. Evaluation, tables, checkpoints and measurements hang on it as callbacks."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.evaluation import batch_sums, no_sums, unpacked_sums
from helper.metrics.running_sums import RunningSums
from helper.processes.first import copy_from_first
from helper.processes.group import rank, world_size
from helper.processes.interruption import interruptible
from helper.processes.sharing import sum_over_processes
from helper.schema.registry import with_options
from helper.sparse.layers import LanesLayer
from helper.system.seeds import device_seed, stream
from helper.system.signals import Interrupted, Signals
from helper.system.xla import end_of_graph
from loader.dataset import Dataset
from optim.average import WeightAverage
from optim.batches import Batch, Drawing, steps_per_epoch
from optim.callbacks.callback import Callback
from optim.mask_owner import MaskOwner
from optim.mixing import mix_of
from optim.optimizers import OPTIMIZERS
from optim.parallel import parallel
from optim.schedule import SCHEDULES, learning_rate
from optim.sparse_step import SparseStep
from optim.step_gradient import Passed, StepGradient
from optim.subsets.main import Subset
from optim.train_config import TrainConfig
from optim.twice import differentiate_well

STEP_EVENTS = ("before_step", "on_gradients", "on_step")


class Trainer:
    """The training loop over one data set on one device.

    Order and augmentation of epoch e, and the random numbers of a step, come from streams named by seed, epoch and step;
    so `state` (epoch, step, weights, optimiser) is all that an exact continuation needs. Several processes draw the same
    numbers for the global batch, and each takes its share of it: they train what one process does, to rounding, unless the
    network draws numbers itself, as dropout does.

    Args:
        network: on the device of the data set; trained in place.
        dataset: the training split is used; moved to the device once, by the caller.
        seed: of data order, augmentation and regularisation.
        callbacks: called in order at each event.
        mask: of the weights that training begins with; default: all of them.
        first_epoch: epochs that count as done when training begins.
        subset: which examples steps and epochs have; default: all.

    Attributes:
        mask_owner: has the mask, keeps pruned weights at zero and counts what the steps cost.
        epoch: how many are completed. step: how many steps of the epoch under way are.
        n_examples, batch, outputs: of the step under way: in all processes, this one's, and the logits of that.
        sums: over the batches of the epoch under way; this process's part while it lasts.
        row: of history.csv, for the epoch just completed; callbacks fill it in.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        callbacks: Sequence[Callback] = (),
        mask: Mask | None = None,
        first_epoch: int = 0,
        subset: Subset | None = None,
    ) -> None:
        self.network, self.dataset, self.config, self.seed, self.callbacks = network, dataset, config, seed, callbacks
        self.device, self.drawing = dataset.train.inputs.device, Drawing(dataset, seed, subset, mix_of(config))
        self.shared = parallel(network, self.device, sync_batch_norm=config.sync_batch_norm)
        if self.shared is network and config.differentiated_twice():
            differentiate_well(network)
        self.forward = torch.compile(self.shared) if config.compile else self.shared
        self.sparse_step = SparseStep(network, config, dataset.input_shape)
        self.optimizer = with_options(OPTIMIZERS[config.optimizer_name], config)(network.parameters())
        self.average = WeightAverage(network, self.optimizer, config.ema) if config.ema else None
        schedule = with_options(SCHEDULES[config.lr_schedule], config)
        self.rate = functools.partial(with_options(learning_rate, config), schedule)
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), config.batch_size)
        self.mask_owner = MaskOwner(network, self.optimizer, mask or Mask(), dataset.input_shape)
        self.gradient = StepGradient(self)
        self.first_epoch = self.epoch = first_epoch
        self.step = self.n_examples = 0
        self.linear_layers: dict[str, LanesLayer] = {}  # that the step under way computes sparsely
        self.sums: RunningSums | None = None
        self.resumed = False
        self.row: dict[str, Any] = {}
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
                self.pass_epoch()  # the first epoch's row: the weights that training begins with
        while self.epoch < self.config.n_epochs:
            self.emit("before_epoch")
            self.take_steps()
            self.end_epoch(signals)
        with self.shown():
            self.emit("on_end")

    def take_steps(self) -> None:
        """Those of the epoch under way that are still to come."""
        if self.step == 0:
            self.mask_owner.meter.begin_epoch()
        self.network.train()
        started, self.images_timed = time.perf_counter(), 0
        for step, rows in self.remaining_batches():
            self.train_step(step, rows)
            end_of_graph(self.device)
            self.step, self.images_timed = step + 1, self.images_timed + self.n_examples
            self.emit("on_step")
        end_of_graph(self.device, wait=True)
        self.train_seconds = time.perf_counter() - started
        if self.sums is not None and world_size() > 1:
            self.sums = unpacked_sums(sum_over_processes(self.sums.packed()))
        copy_from_first(self.network.buffers())
        if self.average:
            self.average.copy_from_first()

    def end_epoch(self, signals: Signals | None) -> None:
        """The passes after an epoch's last step, to which the trainer returns where they are interrupted."""
        self.epoch, self.step, self.row = self.epoch + 1, 0, {}
        try:
            with interruptible(signals):
                self.pass_epoch()
        except Interrupted:
            self.epoch, self.step = self.epoch - 1, self.steps_per_epoch
            if self.sums is not None and rank() > 0:  # `state` adds up what the processes have, and the first one has it all
                self.sums = no_sums(noisy=self.dataset.noisy).to(self.device)
            self.emit("on_interruption")
            raise
        self.sums = None

    def pass_epoch(self) -> None:
        """What is done with the network that an epoch has left, and then with the one that training goes on with."""
        with self.shown():
            self.emit("on_epoch")
        self.emit("on_epoch_end")

    def shown(self) -> AbstractContextManager[None]:
        """Inside, the network is the one that is evaluated and kept: the average of the trained one, with `--ema`."""
        if not self.average:
            return nullcontext()
        self.mask_owner.hold({})
        return self.average.shown()

    def remaining_batches(self) -> Iterator[tuple[int, Tensor]]:
        """(step, rows of the training split) of the epoch under way, from its first step not yet done."""
        for step, rows in list(enumerate(self.drawing.rows(self.epoch, self.config.batch_size)))[self.step :]:
            yield step, rows.to(self.device)

    def train_step(self, step: int, rows: Tensor) -> None:
        self.emit("before_step")
        subset = self.drawing.subset
        choose = None if subset is None else functools.partial(subset.places, self, step)
        batch = self.batch = self.drawing.batch(self.epoch, step, rows, choose)
        self.set_learning_rate(self.rate(self.epoch, step, self.steps_per_epoch))
        passed = self.gradient.take(batch)
        self.n_examples, self.outputs = batch.n, passed.logits.detach()
        self.emit("on_gradients")
        self.update_weights()
        self.add_up(batch, passed)

    def draws(self, *name: str | int) -> AbstractContextManager[None]:
        """What the network draws inside, as dropout does, comes from a stream of this name, another in each process."""
        return device_seed(stream(self.seed, *name, rank()), self.device)

    def logits(self, inputs: Tensor) -> Tensor:
        """By the active weights alone, in float32, unless the step is to be a dense one."""
        dense = any(callback.needs_dense_gradient(self) for callback in self.callbacks)
        view = None if dense else self.sparse_step.view_for(self.mask_owner)
        alone = view is not None and world_size() == 1 and not any(map(self.touched, STEP_EVENTS[1:]))
        self.linear_layers = {} if view is None else view.linear_layers
        self.mask_owner.hold(self.linear_layers if alone else {})
        if view is not None:
            return view(inputs) if world_size() == 1 else self.shared(inputs, view)
        with self.autocast():
            return self.forward(inputs)

    def update_weights(self) -> None:
        self.mask_owner.mask_gradients()
        if self.config.clip_norm is not None:
            self.mask_owner.clip_gradients(self.config.clip_norm, self.linear_layers)
        self.optimizer.step()
        self.mask_owner.updated()
        if self.average:
            self.average.follow()

    def add_up(self, batch: Batch, passed: Passed) -> None:
        examples, noisy = batch.examples, self.dataset.noisy
        sums = batch_sums(passed.logits, passed.losses, examples.labels, examples.true_labels, noisy=noisy)
        sums = replace(sums, loss=sums.loss + 0 * passed.loss.detach())  # a penalty that is not finite shows in the sum as well
        if self.sums is None:  # begins with zeros from outside, so that on XLA the first step's graph is that of the others
            self.sums = no_sums(noisy=noisy).to(self.device)
        self.sums = self.sums + sums

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
        if event not in STEP_EVENTS:
            self.mask_owner.write_back()
        elif self.touched(event):
            self.mask_owner.hold({})
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def touched(self, event: str) -> bool:
        """Whether a callback needs network and optimiser as they are, in an event of the step under way."""
        return self.drawing.reads_network or any(callback.touches_network(self, event) for callback in self.callbacks)

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as tensors and plain values."""
        self.mask_owner.write_back()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "processes": world_size(),
            "sums": None if self.sums is None or not self.step else sum_over_processes(self.sums.to("cpu").packed()),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({"average": self.average.state()} if self.average else {}),
            "callbacks": {type(callback).__name__: callback.state() for callback in self.callbacks if callback.state()},
            "sparse_step": self.sparse_step.state(self.mask_owner),
            **self.mask_owner.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        if state["sums"] is not None:
            sums = state["sums"] if rank() == 0 else torch.zeros_like(state["sums"])
            self.sums = unpacked_sums(sums).to(self.device)
        self.resumed = True
        self.mask_owner.hold({})
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state(state["average"])
        n = len(self.dataset.train)
        examples = (self.epoch - self.first_epoch) * n + min(self.step * self.config.batch_size, n)
        self.mask_owner.load_state(state, steps=self.step, examples=examples)
        self.sparse_step.load_state(state.get("sparse_step"), self.mask_owner)
        for callback in self.callbacks:
            if type(callback).__name__ in state.get("callbacks", {}):
                callback.load_state(state["callbacks"][type(callback).__name__])

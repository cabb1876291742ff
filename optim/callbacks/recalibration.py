"""--recalibrate_bn: BatchNorm statistics of the network that there is, not of the one before its mask changed."""

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from helper.processes.first import copy_from_first
from helper.processes.sharing import own_share
from helper.system.seeds import stream
from helper.system.xla import end_of_graph
from optim.batches import batches_with_statistics
from optim.callbacks.callback import Callback
from optim.trainer import Trainer

BATCHES = 50  # of training data, not augmented, whose statistics are averaged


class RecalibrateBatchNorm(Callback):
    """After an epoch in which the mask has changed, sets BatchNorm's running statistics to means over training batches.

    The state that is then evaluated, kept and trained on has them; `recalibrated` is 1 in its row of history.csv.
    """

    def __init__(self) -> None:
        self.version = 0

    def on_epoch(self, trainer: Trainer) -> None:
        changed = trainer.mask_owner.version != self.version
        self.version = trainer.mask_owner.version
        trainer.row["recalibrated"] = int(changed)
        if changed:
            self.recalibrate(trainer)

    @torch.no_grad()
    def recalibrate(self, trainer: Trainer) -> None:
        layers = [module for module in trainer.network.modules() if isinstance(module, _BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
        trainer.network.train()
        data, forward = trainer.dataset, trainer.sparse_step.forward_for(trainer.mask_owner)
        order = torch.randperm(len(data.train), generator=stream(trainer.seed, "recalibration", trainer.epoch))
        for step, rows in enumerate(batches_with_statistics(order, trainer.config.batch_size)[:BATCHES]):
            with trainer.draws("recalibration dropout", trainer.epoch, step):
                forward(data.normalise(data.train[rows[own_share(len(rows))].to(trainer.device)].inputs))
            end_of_graph(trainer.device)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        copy_from_first(trainer.network.buffers())

    def state(self) -> dict[str, Any]:
        return {"version": self.version}

    def load_state(self, state: dict[str, Any]) -> None:
        self.version = state["version"]

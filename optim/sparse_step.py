"""Training steps that compute active weights alone: when they are taken, and with which layers."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.macs import uses_of_weights
from helper.processes.group import world_size
from helper.schema.config import FlagError
from helper.sparse.choice import chosen_layers, is_worth_it
from helper.sparse.compiler import NoCompiler
from helper.sparse.library import kernels
from helper.sparse.view import View
from optim.config import RunConfig, TrainConfig
from optim.mask_owner import MaskOwner

log = logging.getLogger(__name__)


def check_sparse_step(config: RunConfig) -> None:
    """Raise FlagError or RuntimeError where --sparse_step 1 cannot be had."""
    if config.train.sparse_step != "1" or not config.mode_spec.has_mask:
        return
    if world_size() > 1:
        raise FlagError(f"--sparse_step 1 is for one process, and there are {world_size()}; use --sparse_step auto or 0")
    try:
        kernels()
    except NoCompiler as error:
        raise RuntimeError(f"--sparse_step 1: {error}, or use --sparse_step 0") from None


class SparseStep:
    """Gives the sparse view of a network for the present mask, where a step is to be taken with it.

    What it gives follows from flags and mask alone, so that a resumed run goes on as it began.

    Args:
        input_shape: of one example.
    Attributes:
        layers: names of those whose active weights alone are computed in steps with the present mask.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, input_shape: tuple[int, ...]) -> None:
        self.network, self.config, self.input_shape = network, config, input_shape
        self.mask: Mask | None = None  # for which the view is
        self.view: View | None = None
        asked = config.sparse_step == "1" or (config.sparse_step == "auto" and self.auto_possible())
        self.possible = asked and world_size() == 1

    def auto_possible(self) -> bool:
        config, device = self.config, next(self.network.parameters()).device
        dense_by_flags = config.compile or config.reg_type == "jacobian" or config.precision != "fp32"
        return device.type == "cpu" and not dense_by_flags

    @property
    def layers(self) -> list[str]:
        return [] if self.view is None else self.view.layers

    def view_for(self, owner: MaskOwner) -> Callable[[Tensor], Tensor] | None:
        """The view with which a step is taken; None: it is to be a dense one."""
        if not self.possible or not owner.mask:
            return None
        if self.mask is not owner.mask:
            self.view, before = self.built(owner.mask), self.layers
            self.mask = owner.mask
            if self.layers != before:
                log.info("sparse steps: %d layers are computed of their active weights alone", len(self.layers))
        return self.view

    def record(self, owner: MaskOwner) -> dict[str, Any] | None:
        """What summary.json has of it; None where it was not asked for, or nothing is pruned."""
        if self.config.sparse_step == "0" or not owner.mask:
            return None
        self.view_for(owner)
        return {"asked": self.config.sparse_step, "layers": self.layers}

    def built(self, mask: Mask) -> View | None:
        if mask.n_active == mask.n_weights:
            return None
        uses = uses_of_weights(self.network, self.input_shape)
        chosen = chosen_layers(self.network, mask, uses)
        if self.config.sparse_step == "auto" and not is_worth_it(self.network, chosen, uses, self.config.batch_size):
            return None
        try:
            kernels()
            return View(self.network, chosen, self.input_shape)
        except (NoCompiler, ValueError) as error:
            if self.config.sparse_step == "1":
                raise RuntimeError(f"--sparse_step 1: {error}, or use --sparse_step 0") from None
            log.warning("steps are dense: %s", error)
            self.possible = False
            return None

"""Training steps and passes that compute active weights alone: when they are, and with which layers."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helper.mask import Mask
from helper.metrics.parameters import evaluation_mode
from helper.processes.group import world_size
from helper.processes.sharing import any_process
from helper.schema.config import FlagError
from helper.sparse.choice import chosen_layers, is_worth_it, known_layers, masks_of
from helper.sparse.compiler import NoCompiler
from helper.sparse.library import Library, kernels
from helper.sparse.view import View
from optim.checkpoint import FROM_THE_START
from optim.config import RunConfig, TrainConfig
from optim.mask_owner import MaskOwner

log = logging.getLogger(__name__)
AGREEMENT = 1e-3  # of logits with the dense ones, of the largest; rounding is some 1e-6
SYNCHRONISED = "BatchNorm is synchronised between processes; --sync_batch_norm 0 would not do that"


def check_sparse_step(config: RunConfig, *, batch_norm: bool) -> None:
    """Raise FlagError or RuntimeError where --sparse_step 1 cannot be had. All processes have to call this.

    Args:
        batch_norm: whether the network has, or may have, BatchNorm layers.
    """
    train = config.train
    if train.sparse_step != "1" or not config.mode_spec.has_mask:
        return
    if world_size() > 1 and train.sync_batch_norm and batch_norm:
        raise FlagError(f"--sparse_step 1: {SYNCHRONISED}, or use --sparse_step auto")
    missing = missing_kernels()
    if missing:
        raise RuntimeError(f"--sparse_step 1: {missing}, or use --sparse_step 0")


def may_be_sparse(config: TrainConfig, device: str) -> bool:
    """Whether a run's flags and the kind of its device allow sparse steps."""
    dense_by_flags = config.compile or config.differentiated_twice() or config.precision != "fp32"
    return device == "cpu" and (config.sparse_step == "1" or (config.sparse_step == "auto" and not dense_by_flags))


def missing_kernels() -> str:
    """Why some process cannot have the kernels; empty: all have them. All processes have to call this."""
    try:
        kernels()
        missing = ""
    except NoCompiler as error:
        missing = str(error)
    return (missing or "another process of the run cannot have the sparse kernels") if any_process(bool(missing)) else ""


class SparseStep:
    """Gives the sparse view of a network for the present mask, where steps and passes are to be taken with it.

    The layers are chosen once for every mask, by flags, mask and a rule, and so by all processes alike. A checkpoint holds
    the choice: a run goes on as it began, under whatever flag and on whatever machine.

    Args:
        input_shape: of one example.
    Attributes:
        asked: --sparse_step with which the run began.
        possible: whether there may be sparse steps; never again where kernels or view could not be had.
        compiled: whether the run has had the kernels.
        layers: names of those whose active weights alone are computed with the present mask.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, input_shape: tuple[int, ...]) -> None:
        self.network, self.config, self.input_shape = network, config, input_shape
        self.asked, self.compiled, self.layers = config.sparse_step, False, list[str]()
        self.possible = may_be_sparse(config, next(network.parameters()).device.type)
        self.view: View | None = None
        self.mask: Mask | None = None  # for which the layers are chosen
        self.shown: Mask | None = None  # for which the view is
        self.told: list[str] = []  # layers of which the log tells
        self.resumed = False

    def view_for(self, owner: MaskOwner) -> View | None:
        """The view with which steps and passes are taken; None: they are to be dense. All processes have to call this.

        Raises:
            RuntimeError: sparse steps are asked for, or the run has taken some, and they cannot be had.
        """
        if self.mask is not owner.mask:
            self.mask, self.layers = owner.mask, self.chosen(owner)
        if self.layers and self.shown is not self.mask:
            self.show(owner)
        return self.view if self.layers else None

    def forward_for(self, owner: MaskOwner) -> Callable[[Tensor], Tensor]:
        """The view, or the network where that is to be computed densely."""
        return self.view_for(owner) or self.network

    def record(self, owner: MaskOwner) -> dict[str, Any] | None:
        """What summary.json has of it; None where it was not asked for, or nothing is pruned."""
        if self.asked == "0" or not owner.mask:
            return None
        self.view_for(owner)
        return {"asked": self.asked, "layers": self.layers}

    def on_cpu(self) -> bool:
        return next(self.network.parameters()).device.type == "cpu"

    # --------------------------------------------------------------------------------------- which layers, which view

    def chosen(self, owner: MaskOwner) -> list[str]:
        mask, uses = owner.mask, owner.meter.uses
        if not self.possible or mask.n_active == mask.n_weights:
            return []
        chosen = chosen_layers(self.network, mask, uses)
        worth = self.asked == "1" or is_worth_it(self.network, chosen, uses, self.config.batch_size)
        return list(chosen) if worth else []

    def show(self, owner: MaskOwner) -> None:
        """Make the view that of the present mask and its layers, or steps dense from now on where there can be none."""
        self.shown, masks = self.mask, masks_of(self.network, self.layers, owner.mask)
        obstacle = self.obstacle()
        if not obstacle:
            try:
                self.view = view_of(self.view, self.network, masks, self.input_shape)
            except ValueError as error:
                obstacle = str(error)
        if obstacle:
            self.give_up(obstacle)
        elif self.layers != self.told:
            how = "" if self.told else f", kernels {made(kernels())}"
            log.info("sparse steps: %d of %d layers%s", len(self.layers), len(owner.meter.uses), how)
            self.told = self.layers

    def obstacle(self) -> str:
        """What keeps this run, with what it has here, from sparse steps; empty: nothing. All processes have to call this."""
        if not self.on_cpu():
            return "sparse steps are for the CPU"
        batch_norm = any(isinstance(module, _BatchNorm) for module in self.network.modules())
        if world_size() > 1 and self.config.sync_batch_norm and batch_norm:
            return SYNCHRONISED
        missing = missing_kernels()
        if missing and self.resumed and (self.compiled or self.asked == "1"):
            raise RuntimeError(
                f"the run began with sparse steps, and can go on with these alone: {missing}; or {FROM_THE_START}"
            )
        self.compiled = not missing
        return missing

    def give_up(self, obstacle: str) -> None:
        if self.asked == self.config.sparse_step == "1":
            raise RuntimeError(f"--sparse_step 1: {obstacle}, or use --sparse_step 0")
        log.warning("steps are dense: %s", obstacle)
        self.layers, self.possible = [], False

    # --------------------------------------------------------------------------------------------- in a checkpoint

    def state(self, owner: MaskOwner) -> dict[str, Any]:
        self.view_for(owner)
        return {"asked": self.asked, "possible": self.possible, "compiled": self.compiled, "layers": list(self.layers)}

    def load_state(self, state: dict[str, Any] | None, owner: MaskOwner) -> None:
        """Go on as a run did, after the owner has its mask. Without a state the run's steps have been dense.

        Raises:
            ValueError: there is no such way, or the network has no such layers.
        """
        state = state or {"asked": "0", "possible": False, "compiled": False, "layers": []}
        unknown = set(state["layers"]) - known_layers(self.network).keys()
        if state["asked"] not in ("0", "auto", "1"):
            raise ValueError("there is no such --sparse_step")
        if unknown:
            raise ValueError(f"sparse steps of layers that the network does not have: {', '.join(sorted(unknown))}")
        self.asked, self.possible, self.compiled = str(state["asked"]), bool(state["possible"]), bool(state["compiled"])
        self.layers, self.mask, self.shown, self.resumed = list(state["layers"]), owner.mask, None, True
        if self.asked != self.config.sparse_step and owner.mask:
            log.info("the run began with --sparse_step %s and goes on with it", self.asked)


def view_of(former: View | None, network: nn.Module, masks: dict[str, Tensor], input_shape: tuple[int, ...]) -> View:
    """The view of a network under masks: the former one where there is one, which need not trace the network again.

    Raises:
        ValueError: there is none, or it gives other logits than the network, which may do more than calls that are traced.
    """
    if former is not None:
        former.follow(masks)
        return former
    view = View(network, masks, input_shape)
    inputs = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(next(network.parameters()).dtype)
    with evaluation_mode(network), torch.no_grad():
        found, expected = view(inputs), network(inputs)
    if not torch.allclose(found, expected, rtol=0.0, atol=AGREEMENT * float(expected.abs().max()), equal_nan=True):
        raise ValueError(f"{type(network).__name__} does more than its traced calls say, such as by a hook")
    return view


def made(library: Library) -> str:
    """How the kernels came here."""
    return f"compiled in {library.seconds:.1f} s" if library.seconds else "cached"

"""What changes the mask while a network trains: one callback, which two functions of the step make into a method."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from helper.mask import Mask, count
from helper.masks.choosing import swap
from helper.masks.growth import GROWTHS
from helper.masks.schedules import Span, constant, nothing
from helper.pruner import whole_mask
from helper.schema.config import FlagError
from helper.system.seeds import stream
from optim.callbacks.callback import Callback
from optim.mask_owner import MaskOwner
from optim.pruning import Pruning

log = logging.getLogger(__name__)
Law = Callable[[int, Span, float], float]


@dataclass(frozen=True)
class MaskSchedule:
    """How a mask changes while training.

    Attributes:
        sparsity: (step, span, final share) -> share of the prunable weights that is pruned from this step on.
        replaced: (step, span, fraction) -> share of every layer's active weights that changes places after this step.
    """

    sparsity: Law = constant
    replaced: Law = nothing

    @property
    def begins(self) -> bool:
        """Whether there is a first change, `--mask_begin`; otherwise changes are counted from the first step on."""
        return self.sparsity is not constant

    @property
    def replaces(self) -> bool:
        return self.replaced is not nothing

    def span(self, config: Any, steps_per_epoch: int) -> Span:
        """Of a run, in steps.

        Raises:
            FlagError: it ends after training, or begins after its end.
        """
        masks, total = config.prune, config.train.n_epochs * steps_per_epoch
        begin, end = self.bounds(masks, total)
        if end >= total:
            raise FlagError(
                f"--mask_end {masks.mask_end:g}: the last change comes after {end} steps, and there are only {total}"
            )
        if begin > end:
            moments = f"{begin} and {end} of {total} steps"
            raise FlagError(f"--mask_begin {masks.mask_begin:g} is after --mask_end {masks.mask_end:g}: {moments}")
        return Span(begin, end, masks.mask_every)

    def bounds(self, masks: Any, total: int) -> tuple[int, int]:
        """Completed steps at the first and at the last change, of so many in all."""
        return in_steps(masks.mask_begin, total) if self.begins else 0, in_steps(masks.mask_end, total)

    def __call__(self, config: Any) -> "UpdateMask":
        return UpdateMask(self, config)


def in_steps(moment: float, total: int) -> int:
    """Completed steps at a moment: up to 1 a share of training, above it a number of steps."""
    return round(moment * total) if moment <= 1 else round(moment)


class UpdateMask(Callback):
    """Changes the mask as a schedule says.

    Weights are pruned before a step, so that it takes its gradients of what is left. Weights change places between the
    gradients and the update of a step, which moves those that stay, and those that come back if they come by their gradients:
    otherwise the step may have been taken without, as sparse ones are. Everything follows from the number of completed steps
    and from the weights, so that a checkpoint holds nothing of it.
    """

    def __init__(self, schedule: MaskSchedule, config: Any) -> None:
        self.schedule, self.config, self.masks, self.growth = schedule, config, config.prune, GROWTHS[config.prune.growth]

    def on_start(self, trainer: Any) -> None:
        self.pruning = Pruning(self.config, trainer.dataset)
        self.span = self.schedule.span(self.config, trainer.steps_per_epoch)

    def completed(self, trainer: Any) -> int:
        """Steps since the start of training."""
        return trainer.epoch * trainer.steps_per_epoch + trainer.step

    def final_after(self, trainer: Any, epoch: int) -> bool:
        """Whether as many weights are pruned after an epoch as are to be in the end.

        A change that falls on the end of an epoch comes before the next step.
        """
        last = epoch * trainer.steps_per_epoch - 1
        return self.schedule.sparsity(last, self.span, self.masks.prune_ratio) == self.masks.prune_ratio

    def before_step(self, trainer: Any) -> None:
        step, owner = self.completed(trainer), trainer.mask_owner
        if not self.span.has(step):
            return
        share, mask = self.schedule.sparsity(step, self.span, self.masks.prune_ratio), owner.mask
        n_active = mask.n_weights - round(share * mask.n_weights)
        if n_active > mask.n_active:
            mask = whole_mask(mask)
        if n_active < mask.n_active:
            generator = stream(trainer.seed, "prune", step)
            mask = self.pruning.mask(trainer.network, share, generator, within=mask, rounds=1)
        if mask is not owner.mask:
            self.put(owner, step, mask)

    def on_gradients(self, trainer: Any) -> None:
        step, owner, numbers = self.completed(trainer), trainer.mask_owner, self.places(trainer)
        if not any(numbers.values()):
            return
        if self.growth.dense_gradient:
            owner.meter.add_dense_gradient(trainer.n_examples)
        drop = self.pruning.scores(trainer.network, owner.mask, stream(trainer.seed, "prune", step))
        grow = self.growth.scores(owner.gradients(), stream(trainer.seed, "growth", step))
        mask, grown = swap(owner.mask, numbers, drop, grow)
        self.put(owner, step, mask, grown)
        if not self.growth.dense_gradient:
            owner.leave_out(grown)

    def needs_dense_gradient(self, trainer: Any) -> bool:
        return self.growth.dense_gradient and any(self.places(trainer).values())

    def touches_network(self, trainer: Any, event: str) -> bool:
        if event == "on_gradients":
            return any(self.places(trainer).values())
        return event == "before_step" and self.span.has(self.completed(trainer))

    def places(self, trainer: Any) -> dict[str, int]:
        """How many weights of each layer change places in the step under way; empty in most steps, which count nothing."""
        step = self.completed(trainer)
        share = self.schedule.replaced(step, self.span, self.masks.drop_fraction) if self.span.has(step) else 0.0
        if not share:
            return {}
        return {name: places(share, active) for name, active in trainer.mask_owner.mask.items()}

    def put(self, owner: MaskOwner, step: int, mask: Mask, anew: Mask | None = None) -> None:
        """Make a mask the owner's, and count what it took to find it."""
        empty = owner.mask.empty_layers()
        owner.change(mask, anew)
        owner.meter.add_scoring(self.pruning.macs)
        self.pruning.macs = 0
        for name in owner.mask.empty_layers():
            if name not in empty:
                log.warning("after %d steps layer %s is pruned to nothing", step, name.removesuffix(".weight"))


def places(share: float, active: Tensor) -> int:
    """How many weights of a layer change places; none where all are active, because none can come."""
    n = count(active)
    return 0 if n == active.numel() else int(share * n)

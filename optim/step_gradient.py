"""The gradient that a training step takes: of loss and penalties, at the weights or where a sharpness-aware step looks."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.processes.group import world_size
from helper.processes.sharing import sum_over_processes
from helper.system.seeds import stream
from optim.batches import Batch
from optim.objective import losses_of
from optim.regularizer import OfGradient, OfOutputs, Weighted, penalty_function, weighted_penalties
from optim.step_price import active_at, needs_own_pass, passes_of

SMALLEST = 1e-12  # by which no gradient of zeros is divided
DISTANCE = 3e-3  # of the second point of a difference, as a share of the norm of all weights


@dataclass(frozen=True)
class Passed:
    """What a forward pass has found: logits, cross-entropies of this process's examples, its part of what is minimised."""

    logits: Tensor
    losses: Tensor
    loss: Tensor


Loss = Callable[[Tensor], Tensor]  # logits -> this process's part of a mean over the examples of all


class StepGradient:
    """Leaves a step's gradient in the network, over the examples of all processes.

    Whatever a step draws, it draws alike in each of its passes; BatchNorm's statistics are those of the first one.

    Args:
        trainer: an `optim.trainer.Trainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.config, self.owner = trainer, trainer.config, trainer.mask_owner
        self.penalties = weighted_penalties(self.config)

    def take(self, batch: Batch) -> Passed:
        """That of the weights; a sharpness-aware step has the gradient of another point (Foret et al. 2021, eq. 2 and 3)."""
        found = self.at_weights(batch)
        if self.config.sharpness_aware:
            direction = self.owner.masked(self.owner.gradients_moved())
            with self.displaced(direction, self.config.sharpness_aware / (self.norm(direction) + SMALLEST)):
                self.at_weights(batch)
        self.owner.meter.add_step(batch.n, passes_of(self.config, self.active(batch)))
        return found

    def at_weights(self, batch: Batch) -> Passed:
        """The gradient of loss and penalties at the network's present weights."""
        active = self.active(batch)
        of_outputs = [weighted for weighted in active if isinstance(weighted.penalty, OfOutputs)]
        of_gradient = [weighted for weighted in active if isinstance(weighted.penalty, OfGradient)]
        self.trainer.optimizer.zero_grad(set_to_none=True)  # before the forward pass, so that it may use their memory
        inputs = batch.inputs.detach().requires_grad_(bool(of_outputs))
        logits = self.logits(batch, inputs)
        losses, minimised = losses_of(logits, batch, self.config.label_smoothing)
        loss = minimised.sum() / batch.n
        slopes = {weighted: self.loss_for(weighted, batch, logits) for weighted in of_gradient}
        found = {weighted: self.slope(weighted, active, of(logits)) for weighted, of in slopes.items()}
        for weighted in of_outputs:
            loss = loss + self.term(weighted, batch)(logits, inputs, noise_for(logits, batch)) / batch.n
        if self.config.reg_method == "exact":
            for weighted, own in found.items():
                loss = loss + self.term(weighted, batch)(own, self.owner.masked(self.summed(own)))
        self.backward(loss)
        if self.config.reg_method == "difference":
            for weighted, own in found.items():
                self.add_difference(weighted, batch, slopes[weighted], own and self.summed(own))
        return Passed(logits, losses, loss)

    def logits(self, batch: Batch, inputs: Tensor) -> Tensor:
        with self.trainer.draws("dropout", batch.epoch, batch.step):
            logits = self.trainer.logits(inputs)
        return logits if logits.dtype == torch.float64 else logits.float()

    def backward(self, loss: Tensor) -> None:
        (loss * world_size()).backward()  # DistributedDataParallel takes means over the processes, and these are sums

    def active(self, batch: Batch) -> list[Weighted]:
        """The penalties that this step has: all with a weight, or in steps between every K-th one none."""
        return [] if self.done(batch) % self.config.reg_every else active_at(self.penalties, self.progress(batch))

    def done(self, batch: Batch) -> int:
        """Steps before this one."""
        return batch.epoch * self.trainer.steps_per_epoch + batch.step

    def progress(self, batch: Batch) -> float:
        """Share of all steps that are done before this one."""
        return self.done(batch) / (self.config.n_epochs * self.trainer.steps_per_epoch)

    def term(self, weighted: Weighted, batch: Batch) -> Callable[..., Tensor]:
        return penalty_function(weighted, self.progress(batch), self.config)

    # ------------------------------------------------------------------------------------ penalties on the gradient

    def loss_for(self, weighted: Weighted, batch: Batch, logits: Tensor) -> Loss:
        """That of the gradient of which a penalty is; labels are drawn at the present weights."""
        if not weighted.penalty.drawn:
            return lambda logits: losses_of(logits, batch, self.config.label_smoothing)[1].sum() / batch.n
        uniform = torch.rand(batch.n, generator=stream(self.trainer.seed, weighted.name, batch.epoch, batch.step))
        labels = drawn_labels(logits, uniform[batch.own])
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum") / batch.n

    def slope(self, weighted: Weighted, active: Sequence[Weighted], loss: Tensor) -> list[Tensor]:
        """This process's part of a gradient; empty where it will be that of the step's loss, which is found anyway."""
        exact = self.config.reg_method == "exact"
        if not exact and not needs_own_pass(weighted, active):
            return []
        moved = self.owner.moved()
        found = torch.autograd.grad(loss, moved, retain_graph=True, create_graph=exact, allow_unused=True)
        return [torch.zeros_like(value) if one is None else one for value, one in zip(moved, found, strict=True)]

    def summed(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The sum over all processes of what each of them has."""
        if world_size() == 1:
            return [tensor.detach() for tensor in own]
        flat = sum_over_processes(torch.cat([tensor.detach().reshape(-1) for tensor in own]))
        parts = flat.split([tensor.numel() for tensor in own])
        return [part.view(tensor.shape) for part, tensor in zip(parts, own, strict=True)]

    def add_difference(self, weighted: Weighted, batch: Batch, loss: Loss, slope: list[Tensor]) -> None:
        """Add a penalty's gradient, weight · Hessian · slope, by the difference to the slope at a second point.

        Args:
            slope: at the weights; empty: that is the gradient in the network.
        """
        owner, before = self.owner, self.owner.gradients_moved()
        slope = slope or before
        direction = owner.masked(slope)
        norm, distance = self.norm(direction), DISTANCE * self.norm([value.detach() for value in owner.moved()])
        with self.displaced(direction, distance / (norm + SMALLEST)):
            self.trainer.optimizer.zero_grad(set_to_none=True)
            self.backward(loss(self.logits(batch, batch.inputs)))
            after = owner.gradients_moved()
        factor = weighted.weight_at(self.progress(batch)) * norm / distance
        torch._foreach_sub_(after, slope)
        torch._foreach_mul_(after, factor)
        torch._foreach_add_(after, before)
        for value, gradient in zip(owner.moved(), after, strict=True):
            value.grad = gradient

    # --------------------------------------------------------------------------------------------- moving the weights

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.owner.norm(tensors, self.trainer.linear_layers)

    @contextlib.contextmanager
    def displaced(self, direction: Sequence[Tensor], length: Tensor) -> Iterator[None]:
        """Inside, weights are moved by length · direction. Afterwards they and the buffers are as before, to the bit."""
        moved = self.owner.moved()
        live = [*moved, *self.trainer.network.buffers()]
        with torch.no_grad():
            kept = [value.clone() for value in live]
            torch._foreach_add_(moved, torch._foreach_mul(list(direction), length))
        try:
            yield
        finally:
            with torch.no_grad():
                for value, former in zip(live, kept, strict=True):
                    value.copy_(former)


def noise_for(logits: Tensor, batch: Batch) -> Tensor:
    """The step's normal numbers, of the logits' shape, the same in each of its passes."""
    generator = torch.Generator()
    generator.set_state(batch.generator.get_state())
    return torch.randn(batch.n, logits.shape[1], generator=generator)[batch.own]


def drawn_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """A class for each example, from the network's own predictions.

    Args:
        logits: (N, C). uniform: (N,) numbers between 0 and 1, on the CPU.
    """
    below = logits.detach().softmax(1).cumsum(1) < uniform.to(logits)[:, None]
    return below.sum(1).clamp(max=logits.shape[1] - 1)

"""Chains of sparse layers and BatchNorms: each way, all of their kernels are one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from helper.sparse.part import Part, Reads, Steps
from helper.sparse.passes import Passes
from helper.sparse.rooms import Rooms


class Chain(nn.Module):
    """Parts that are computed one after the other.

    Args:
        parts, n_inputs, outputs: see `Steps`.
        rooms: whose memory its passes use; default: its own.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, Reads]], n_inputs: int, outputs: tuple[int, ...], rooms: Rooms | None = None
    ) -> None:
        super().__init__()
        self.steps, self.rooms = Steps(tuple(parts), n_inputs, outputs), rooms or Rooms()
        self.made: dict[tuple[Any, ...], Passes] = {}

    @property
    def parts(self) -> tuple[tuple[Part, Reads], ...]:
        return self.steps.parts

    def forward(self, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """What `outputs` says; None for what its part does not give.

        It can be differentiated once.

        Raises:
            ValueError: shape, type or memory layout is not what a part is for; training on one value per channel.
        """
        inputs = tuple(x.contiguous() for x in inputs)
        tensors = [tensor for part, _ in self.parts for tensor in part.tensors()]
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*inputs, *tensors))
        key = (keep, torch.get_num_threads(), *(x.shape for x in inputs), *(x.dtype for x in inputs))
        key = (*key, *(part.key() for part, _ in self.parts), *(None if t is None else (t.dtype, t.stride()) for t in tensors))
        if key not in self.made:
            self.made[key] = Passes(self.steps, self.rooms, inputs, tensors, keep=keep)
        return InChain.apply(self.made[key], *inputs, *tensors) if keep else self.made[key].forward(inputs, tensors)[0]


class InChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        n = passes.n_inputs
        outputs, saved = passes.forward(tensors[:n], tensors[n:])
        ctx.passes = passes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [None if g is None else g.contiguous() for g in gradients]
        return None, *ctx.passes.backward(given, ctx.needs_input_grad[1:], ctx.saved_tensors)


def alone(part: Part, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """What a part gives by itself; None for inputs that there are not."""
    there = [x for x in inputs if x is not None]
    numbers = iter(range(len(there)))
    reads = tuple(None if x is None else next(numbers) for x in inputs)
    return Chain([(part, reads)], len(there), tuple(len(there) + i for i in range(part.n_outputs)))(*there)

"""Chains of sparse layers and BatchNorms: each way, all of their kernels are one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from helper.sparse.drafts import Draft, Given
from helper.sparse.passes import Passes
from helper.sparse.rooms import Rooms

Reads = tuple[int | None, ...]


class Part(nn.Module):
    """A step of a chain.

    Attributes:
        n_outputs: of which some may not be there.
    """

    n_outputs = 1

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weight and bias of its layer, and of its norm."""
        raise NotImplementedError

    def finds_for(self) -> nn.Module | None:
        """The norm for which it finds statistics, if there is one."""
        raise NotImplementedError

    def passed_on(self, output: int) -> int | None:
        """Which of what it reads an output is, once more; None: it is a new value."""
        return None

    def key(self) -> tuple[Any, ...]:
        """What decides, beside the shape of inputs, how its passes are made."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Raise ValueError where it cannot be given such inputs."""

    def passes(self, draft: Draft, given: Given, places: Sequence[Any], *, keep: bool) -> Any:
        """`LayerPass` or `NormPass`, whose forward pass is added to the draft.

        Args:
            places: make room for each output, of a shape. keep: whether there will be a backward pass.
        """
        raise NotImplementedError

    def alone(self, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """A chain of this part alone; None for inputs that there are not."""
        there = [x for x in inputs if x is not None]
        numbers = iter(range(len(there)))
        reads = tuple(None if x is None else next(numbers) for x in inputs)
        return Chain([(self, reads)], len(there), tuple(len(there) + i for i in range(self.n_outputs)))(*there)


class Chain(nn.Module):
    """Parts that are computed one after the other.

    Values are numbered: the chain's inputs, and then the outputs of each part.

    Args:
        parts: (part, numbers of what it reads; None for what it is not given).
        outputs: numbers of what the chain gives.
        rooms: whose memory its passes use; default: its own.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, Reads]], n_inputs: int, outputs: tuple[int, ...], rooms: Rooms | None = None
    ) -> None:
        super().__init__()
        self.parts, self.n_inputs, self.outputs, self.rooms = tuple(parts), n_inputs, outputs, rooms or Rooms()
        self.new = list(range(n_inputs))  # the number under which each value is new
        for part, reads in parts:
            for output in range(part.n_outputs):
                source = part.passed_on(output)
                self.new.append(len(self.new) if source is None else self.new[reads[source]])
        self.made: dict[tuple[Any, ...], Passes] = {}

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
        key = (*key, *(part.key() for part, _ in self.parts))
        if key not in self.made:
            self.made[key] = Passes(self, inputs, tensors, keep=keep)
        return InChain.apply(self.made[key], *inputs, *tensors) if keep else self.made[key].forward(inputs, tensors)[0]


class InChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        n = passes.n_inputs
        outputs, alive, ctx.pieces = passes.forward(tensors[:n], tensors[n:])
        ctx.passes = passes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *alive)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        passes = ctx.passes
        tensors = ctx.saved_tensors[passes.n_inputs :][: passes.n_tensors]
        given = [None if g is None else g.contiguous() for g in gradients]
        return None, *passes.backward(given, ctx.needs_input_grad[1:], ctx.pieces, tensors)

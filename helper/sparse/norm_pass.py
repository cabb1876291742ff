"""What a BatchNorm adds to a program: the calls of its passes, or what a convolution beside it is told."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from helper.sparse.drafts import Draft, Given, Value
from helper.sparse.program import At, Kind
from helper.sparse.structs import SUMS


def norm_fields(
    statistics: Value, weight: At, bias: At, *, residual: Value | None, y: Value | None, relu: bool
) -> dict[str, Any]:
    fields = {"statistics": statistics.at, "weight": weight, "bias": bias, "channels": statistics.shape[1], "relu": int(relu)}
    fields |= {"residual": None if residual is None else residual.at, "y": None if y is None else y.at}
    return {f"norm__{name}": value for name, value in fields.items()}


def statistics_fields(norm: nn.Module, values: Value, running: tuple[At, At], parts: At | None) -> dict[str, Any]:
    """Of a norm that is to be given `values`, which in training become part of its running statistics."""
    share = 0.0 if norm.momentum is None else float(norm.momentum)  # else the program is told with each run
    fields = {"values": values.at, "running_mean": running[0], "running_variance": running[1], "parts": parts, "share": share}
    fields |= {"eps": float(norm.eps), "channels": values.shape[1], "given": int(not norm.training)}
    return {f"statistics__{name}": value for name, value in fields.items()}


def check_number(norm: nn.Module, y: Value) -> None:
    """Raise ValueError where a norm in training is given one value per channel."""
    if norm.training and y.size == y.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got 1 in each of {y.shape[1]} channels")


def norm_sums_fields(draft: Draft, number: int, factors: Value, parts: At, *, training: bool) -> dict[str, Any]:
    """Args: training: whether the norm was, in the forward pass."""
    channels = factors.shape[1]
    fields = {"parts": parts, "factors": factors.at, "given": int(not training)}
    fields |= {"weight": draft.result(number, 2, channels), "bias": draft.result(number, 3, channels)}
    return {f"norm_sums__{name}": value for name, value in fields.items()}


class NormPass:
    """Passes of a BatchNorm by itself, with a residual and a ReLU.

    Args:
        given: reads (x, statistics of x if a convolution has found them, residual); with tensors (none, none, weight, bias).
        places: make room for (outputs,), of a shape.
    Attributes:
        outputs: these. read_again: those of them that a backward pass reads.
    Raises:
        ValueError: training on one value per channel.
    """

    def __init__(self, draft: Draft, given: Given, norm: nn.Module, places: Sequence[Any], *, relu: bool, keep: bool) -> None:
        self.given, self.training, self.relu = given, norm.training, relu
        x, statistics, residual = given.values
        y, fields = places[0](x.shape), {}
        self.outputs, self.paired = (y,), statistics is not None
        self.read_again = (y,) if relu and residual is not None else ()
        self.statistics = statistics or draft.take((3, x.shape[1]), None if keep else 1)
        if statistics is None:
            check_number(norm, y)
            fields = statistics_fields(norm, self.statistics, given.running, None)
        fields |= norm_fields(self.statistics, *given.tensors[2:], residual=residual, y=y, relu=relu)
        self.call = draft.program.add(Kind.NORMALISE, x=x.at, blocks=x.shape[0], lanes=math.prod(x.shape[2:]), **fields)
        if statistics is None:
            draft.release(self.statistics)

    def backward(
        self, draft: Draft, gradients: Sequence[Value | None], needs: Sequence[bool]
    ) -> tuple[Value | None, Value | None, Value | None]:
        """See `LayerPass.backward`."""
        (gradient,), (x, _, residual) = gradients, self.given.values
        if gradient is None:
            return None, None, None
        with_it, below, of_x = residual is not None, None, None
        if self.relu and (with_it or self.paired):
            below = draft.take(x.shape, self.paired + with_it)
        if not self.paired:
            of_x = draft.take(x.shape, 1)
        factors = draft.take(self.statistics.shape, 1)
        parts = draft.scratch(parts=SUMS * x.shape[1])["parts"]
        y = self.outputs[0] if self.read_again else None
        draft.program.add(
            Kind.NORMALISE_BACKWARD, x=x.at, g=gradient.at, of_inputs=None if of_x is None else of_x.at,
            y=None if below is None else below.at, blocks=x.shape[0], lanes=math.prod(x.shape[2:]),
            **norm_fields(self.statistics, *self.given.tensors[2:], residual=None, y=y, relu=self.relu),
            **norm_sums_fields(draft, self.given.number, factors, parts, training=self.training),
        )  # fmt: skip
        if below is None:
            below = gradient
            draft.add_users(below, self.paired + with_it)
        if not self.paired:
            draft.release(factors)
        return below if self.paired else of_x, factors if self.paired else None, below if with_it else None

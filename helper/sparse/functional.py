"""Sparse layers as differentiable functions of activations that lie batch-innermost.

Such activations are (blocks, channels, height, width, lanes): the examples of a batch in blocks of `lanes`, side by side in
memory. PyTorch's own operations on (N, C, D, H, W) work on them as they are. Behind a flattening they are (blocks, features,
lanes).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from helper.sparse.calls import Around, gather, gradients, targets
from helper.sparse.library import PRECISION
from helper.sparse.plan import LayerPlan
from helper.sparse.structs import NormBackStruct, NormSumsStruct, address, norm_struct

MOST_LANES = 256
LANES = 32  # of images: so many that rows of all channels fit into the cache, and few pixels make many vectors


def lanes_of(n: int) -> int:
    """Into blocks of how many images a batch is divided: about 32, a multiple of 16 if that is possible."""
    fit = [lanes for lanes in range(LANES // 2, 2 * LANES + 1) if n % lanes == 0]
    return min(fit, key=lambda lanes: (lanes % 16 > 0, abs(lanes - LANES), -lanes), default=lanes_of_features(n))


def lanes_of_features(n: int) -> int:
    """The same of examples that are no images: all of a usual batch, an even part of a large one."""
    if n <= MOST_LANES:
        return n
    return next((lanes for lanes in range(MOST_LANES, 0, -16) if n % lanes == 0), n)


def to_lanes(x: Tensor, lanes: int) -> Tensor:
    """(N, ...) -> (N / lanes, ..., lanes), contiguous. ValueError: `lanes` does not divide N."""
    if len(x) % lanes:
        raise ValueError(f"{len(x)} examples do not make blocks of {lanes}")
    return x.unflatten(0, (-1, lanes)).movedim(1, -1).contiguous()


def from_lanes(x: Tensor) -> Tensor:
    """The inverse of `to_lanes`: (blocks, ..., lanes) -> (N, ...)."""
    return x.movedim(-1, 1).flatten(0, 1)


def sparse_layer(x: Tensor, weight: Tensor, bias: Tensor | None, plan: LayerPlan) -> Tensor:
    """A linear or convolutional layer of which only the active weights count, whatever the others hold.

    Its gradient at pruned weights is exactly zero. It can be differentiated once.

    Args:
        x: (blocks, channels, height, width, lanes), or (blocks, features, lanes) for a linear layer.
        weight: of the memory layout for which the plan was made; or its active values alone, (n_active,), in the plan's order.
    Raises:
        ValueError: type, shape or memory layout is not what the plan is for.
    """
    return sparse_layer_and_inputs(x, weight, bias, plan)[0]


def sparse_layer_and_inputs(x: Tensor, weight: Tensor, bias: Tensor | None, plan: LayerPlan) -> tuple[Tensor, Tensor]:
    """(what `sparse_layer` gives, the same inputs for whoever else reads them).

    The gradient that comes back for those is added to the layer's own in one pass over memory.
    """
    check_inputs(x, weight, plan)
    y, _, inputs = SparseLayer.apply(x, weight, bias, None, None, None, None, Between(plan))
    return y, inputs


def check_inputs(x: Tensor, weight: Tensor, plan: LayerPlan) -> None:
    """Raise ValueError unless a plan is for such inputs and such a weight."""
    channels = plan.backward.channels
    shape = (channels, *plan.backward.image) if x.dim() == 5 else (channels,)
    if x.shape[1:-1] != shape or (x.dim() == 3 and plan.backward.image != (1, 1)):
        raise ValueError(f"the plan is for inputs (blocks, {channels}, {plan.backward.image}, lanes), not {tuple(x.shape)}")
    if x.dtype != weight.dtype or x.dtype not in PRECISION:
        raise ValueError(f"inputs are {x.dtype} and weights {weight.dtype}: sparse layers are in float32, or both in float64")
    if weight.shape != plan.active.shape and weight.stride() != plan.strides:
        raise ValueError(f"the plan is for weights of strides {plan.strides}, not {weight.stride()}")


@dataclass(frozen=True)
class Normed:
    """What a layer reads instead of its inputs: a BatchNorm of them, `+ residual`, then a ReLU if `relu`.

    Attributes:
        norm: whose parameters are used; its statistics are in `statistics`, from the convolution that gave the inputs.
        keep: whether others read the result too, so that it is written to memory.
    """

    norm: nn.Module
    statistics: Tensor
    residual: Tensor | None
    relu: bool
    keep: bool


def normed_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: LayerPlan, before: Normed | None, after: nn.Module | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(what `sparse_layer` gives, its statistics, what the layer has read for whoever else reads that).

    Args:
        before: how the layer's inputs come from x; None: they are x.
        after: BatchNorm that the outputs are to be given to; None: there are no statistics. See norm.py.
    Raises:
        ValueError: as `sparse_layer`, or training on one value per channel.
    """
    check_inputs(x, weight, plan)
    if before is None:
        return SparseLayer.apply(x, weight, bias, None, None, None, None, Between(plan, after=after))
    norm, between = before.norm, Between(plan, not before.norm.training, before.relu, before.keep, after)
    return SparseLayer.apply(x, weight, bias, before.statistics, norm.weight, norm.bias, before.residual, between)


@dataclass(frozen=True)
class Between:
    """A layer between BatchNorms: of what `given` statistics, whether a ReLU follows, whether that is kept; `after` it."""

    plan: LayerPlan
    given: bool = False
    relu: bool = False
    keep: bool = False
    after: nn.Module | None = None


class SparseLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        statistics: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        residual: Tensor | None,
        between: Between,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, plan, norm = x.contiguous(), between.plan, None
        inputs = torch.empty_like(x) if between.keep else None
        if statistics is not None:
            residual = None if residual is None else residual.contiguous()
            norm = norm_struct(statistics, norm_weight, norm_bias, residual, inputs, relu=between.relu)
        y, found = gather(plan.forward, plan.active, x, weight, bias, norm=norm, after=between.after)
        given = between.after is not None and not between.after.training
        ctx.between, ctx.given, ctx.has_bias, ctx.has_residual = between, given, bias is not None, residual is not None
        ctx.set_materialize_grads(False)
        outputs = (None, None) if found is None else (y, found)
        ctx.save_for_backward(x, weight, statistics, norm_weight, norm_bias, inputs, *outputs)
        return y, found, x if statistics is None else inputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, factors: Tensor | None, more: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, statistics, norm_weight, norm_bias, inputs, y, found = ctx.saved_tensors
        plan, more = ctx.between.plan, None if more is None else more.contiguous()
        if gradient is None and statistics is None:
            return more, *(None,) * 7
        gradient = torch.zeros_like(targets(plan.forward, x)) if gradient is None else gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        norm = outputs = sums = of_x = of_weight = of_bias = None
        of_norm: tuple[Tensor | None, ...] = (None, None, None)
        if statistics is not None:
            norm, needs_x = norm_struct(statistics, norm_weight, norm_bias, None, inputs, relu=ctx.between.relu), True
            of_norm = torch.empty_like(statistics), torch.empty_like(norm_weight), torch.empty_like(norm_bias)
            sums = NormSumsStruct(None, *map(address, of_norm), ctx.between.given)
        if factors is not None:
            outputs = NormBackStruct(*map(address, (factors, y, found)), found.shape[1], ctx.given)
        if needs_weight or norm is not None or outputs is not None:
            of_x, of_weight = gradients(plan, x, gradient, weight, more, Around(norm, outputs, sums), needs_x=needs_x)
        elif needs_x:
            of_x, _ = gather(plan.backward, plan.active, gradient, weight, more=more)
        if ctx.has_bias and needs_bias:
            of_bias = bias_gradient(gradient, factors, given=ctx.given)
        of_residual = of_x if ctx.has_residual else None
        return of_x, of_weight, of_bias, *of_norm, of_residual, None


def bias_gradient(gradient: Tensor, factors: Tensor | None, *, given: bool) -> Tensor:
    if factors is None:
        return gradient.sum([0, *range(2, gradient.dim())])
    if not given:  # BatchNorm takes the bias away again
        return torch.zeros_like(factors[0])
    return factors[0] * factors[1] * (gradient.numel() // gradient.shape[1])

"""Sparse layers as differentiable functions of activations that lie batch-innermost.

Such activations are (blocks, channels, height, width, lanes): the examples of a batch in blocks of `lanes`, side by side in
memory. PyTorch's own operations on (N, C, D, H, W) work on them as they are. Behind a flattening they are (blocks, features,
lanes).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from helper.sparse.library import kernels
from helper.sparse.plan import PARTS, LayerPlan, Plan

PRECISION = {torch.float32: "float", torch.float64: "double"}
ROWS_APIECE = 16  # at least, where a weight gradient is divided by rows


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
    channels = plan.backward.channels
    shape = (channels, *plan.backward.image) if x.dim() == 5 else (channels,)
    if x.shape[1:-1] != shape or (x.dim() == 3 and plan.backward.image != (1, 1)):
        raise ValueError(f"the plan is for inputs (blocks, {channels}, {plan.backward.image}, lanes), not {tuple(x.shape)}")
    if x.dtype != weight.dtype or x.dtype not in PRECISION:
        raise ValueError(f"inputs are {x.dtype} and weights {weight.dtype}: sparse layers are in float32, or both in float64")
    if weight.shape != plan.active.shape and weight.stride() != plan.strides:
        raise ValueError(f"the plan is for weights of strides {plan.strides}, not {weight.stride()}")
    return SparseLayer.apply(x, weight, bias, plan)


class SparseLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: LayerPlan) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.plan, ctx.has_bias = plan, bias is not None
        return gather(plan.forward, plan.active, x, weight, bias), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, more: Tensor | None) -> tuple[Tensor | None, ...]:
        (x, weight), plan = ctx.saved_tensors, ctx.plan
        if gradient is None:
            return more, None, None, None
        gradient, more = gradient.contiguous(), None if more is None else more.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_x = of_weight = None
        if needs_weight:
            of_x, of_weight = gradients(plan, x, gradient, weight, more, needs_x=needs_x)
        elif needs_x:
            of_x = gather(plan.backward, plan.active, gradient, weight, more=more)
        of_bias = gradient.sum([0, *range(2, gradient.dim())]) if ctx.has_bias and needs_bias else None
        return of_x, of_weight, of_bias, None


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def targets(plan: Plan, x: Tensor) -> Tensor:
    """Room for what a plan makes of its sources."""
    return x.new_empty((len(x), plan.channels, *(plan.image if x.dim() == 5 else ()), x.shape[-1]))


def gather(
    plan: Plan, active: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, more: Tensor | None = None
) -> Tensor:
    """Every target's sum over the sources that its active weights connect it with, plus the row's bias and `more`."""
    y, precision = targets(plan, x), PRECISION[x.dtype]
    values = weight if weight.dim() == 1 and plan.in_order else entry_values(plan, active, weight)
    bias = None if bias is None else bias.contiguous()
    getattr(kernels(precision).functions, f"gather_{precision}")(
        plan.address, x.data_ptr(), y.data_ptr(), values.data_ptr(), address(bias), address(more), len(x), x.shape[-1],
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def entry_values(plan: Plan, active: Tensor, weight: Tensor) -> Tensor:
    """The weight of every entry."""
    precision, whole = PRECISION[weight.dtype], weight.dim() > 1
    compact, values = weight.new_empty(plan.n_active if whole else 0), weight.new_empty(plan.n_entries)
    arrays = (weight.data_ptr(), active.data_ptr() if whole else None, compact.data_ptr(), values.data_ptr())
    getattr(kernels(precision).functions, f"fill_{precision}")(plan.address, *arrays, torch.get_num_threads())
    return values


def gradients(
    plan: LayerPlan, x: Tensor, gradient: Tensor, weight: Tensor, more: Tensor | None, *, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """(the loss's gradient of the inputs plus `more`, that of the active weights; zero at the others).

    The order of the weights' sums is the plan's.
    """
    forward, back, precision = plan.forward, plan.backward, PRECISION[x.dtype]
    parts = max(1, min(PARTS, len(x) * (len(forward.bands) - 1)))
    by_rows = 1 if parts == PARTS else max(1, min(PARTS, forward.channels // ROWS_APIECE))
    sums = x.new_zeros(parts, forward.n_active)
    if weight.dim() > 1:
        result, active = torch.zeros_like(weight), plan.active
    else:
        result, active = sums[0] if parts == 1 else torch.empty_like(weight), None
    values = entry_values(back, plan.active, weight) if needs_x else None
    of_x = targets(back, gradient) if needs_x else None
    getattr(kernels(precision).functions, f"weight_gradient_{precision}")(
        forward.address, x.data_ptr(), gradient.data_ptr(), address(active), sums.data_ptr(), result.data_ptr(),
        back.address if needs_x else None, address(values), address(more), address(of_x),
        len(x), x.shape[-1], parts, by_rows, torch.get_num_threads(),
    )  # fmt: skip
    return of_x, result

"""Convolutions whose backward pass is differentiated by kernels of forward and backward passes.

PyTorch takes convolutions with kernels as large as images for it. Written out here, for y = x * w and the gradient g of y:
its gradients by x and by w are both linear in g, and in w or x. So the derivative of one of them, along what comes back to it,
is a convolution, a gradient by an input, or one by a weight.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KERNEL = torch.ops.aten.convolution_backward


class How(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        places = (self.stride, self.padding, self.dilation)
        return torch.convolution(x, weight, bias, *places, False, (0,) * len(self.stride), self.groups)

    def shape(self, x: Tensor, weight: Tensor) -> list[int]:
        """Of `convolved`."""
        sizes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return [len(x), len(weight), *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)]

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, *wanted: bool) -> tuple[Tensor | None, ...]:
        """By x, weight and bias, as far as they are wanted; else None."""
        places = (self.stride, self.padding, self.dilation)
        return KERNEL(g, x, weight, [len(weight)], *places, False, (0,) * len(self.stride), self.groups, wanted)


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution layer's forward pass; PyTorch's own in eval mode, where measurements look at what it is made of."""
    whole = x.dim() == layer.weight.dim() and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    plain = x.device.type == "cpu" and x.dtype == layer.weight.dtype and not torch.is_autocast_enabled("cpu")
    if not (whole and plain and layer.training and torch.is_grad_enabled()):
        return type(layer).forward(layer, x)
    how = How(layer.stride, layer.padding, layer.dilation, layer.groups)
    nothing = OfParameters.apply(layer.weight, layer.bias, how, [x])
    return OfInput.apply(x, layer.weight, layer.bias, nothing, how)


class OfInput(torch.autograd.Function):
    """A convolution, which passes back what its input is given, and to `OfParameters` what it is given itself.

    They are two nodes, so that a gradient by inputs alone takes no products for those by weights.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, nothing: Tensor, how: How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return how.convolved(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = ByInput.apply(g, weight, x.detach(), ctx.how) if ctx.needs_input_grad[0] else None
        return by_x, None, None, g, None


class OfParameters(torch.autograd.Function):
    """Zeros of the convolution's shape, which take no memory: they pass back what weight and bias are given.

    The input comes in a list, where autograd does not see it: a path to it would make this node part of every gradient.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, how: How, inputs: list[Tensor]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.inputs, ctx.how, ctx.biased = inputs, how, bias is not None
        return weight.new_zeros(()).expand(how.shape(*inputs, weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return *ByParameters.apply(g, *ctx.inputs, weight.detach(), ctx.biased, ctx.how), None, None


class ByInput(torch.autograd.Function):
    """The gradient by x, of which only the shape counts here."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, x: Tensor, how: How) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.how = how
        return how.gradients(g, x, weight, True, False, False)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        by_g = ctx.how.convolved(u, weight) if ctx.needs_input_grad[0] else None
        by_weight = ctx.how.gradients(g, u, weight, False, True, False)[1] if ctx.needs_input_grad[1] else None
        return by_g, by_weight, None, None


class ByParameters(torch.autograd.Function):
    """The gradients by weight and bias; of the weight only the shape counts here."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, biased: bool, how: How) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x)
        ctx.how = how
        return how.gradients(g, x, weight, False, True, biased)[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor, of_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        by_g = ctx.how.convolved(x, u, of_bias) if ctx.needs_input_grad[0] else None
        by_x = ctx.how.gradients(g, x, u, True, False, False)[0] if ctx.needs_input_grad[1] else None
        return by_g, by_x, None, None, None

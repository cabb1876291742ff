"""BatchNorm whose backward pass is differentiated by few passes over memory, where PyTorch takes many."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

KERNEL = torch.ops.aten.native_batch_norm_backward


def normalise(layer: _BatchNorm, x: Tensor) -> Tensor:
    """A BatchNorm layer's forward pass."""
    usual = layer.training and torch.is_grad_enabled() and layer.affine and layer.momentum is not None
    if not (usual and x.device.type == "cpu" and x.dtype == layer.weight.dtype and x.numel() > x.shape[1]):
        return type(layer).forward(layer, x)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    return Normalise.apply(x, layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.momentum, layer.eps)


class Normalise(torch.autograd.Function):
    """PyTorch's own kernel of BatchNorm in training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        """Args:
        rest: bias, running mean and variance or None for both, momentum, eps.
        """
        *tensors, momentum, eps = rest
        y, mean, scale = torch.native_batch_norm(x, weight, *tensors, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *Backward.apply(gradient, *ctx.saved_tensors, ctx.eps), None, None, None, None


class Backward(torch.autograd.Function):
    """Gradients by x, weight and bias, as functions of the gradient g of the output, x and weight.

    With normalised x̂ = (x - mean) · scale, n values in a channel and sums over them:
    by_bias = Σ g, by_weight = Σ g x̂, by_x = weight · scale · (g - by_bias / n - x̂ · by_weight / n).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Any:
        found = KERNEL(g, x, weight, None, None, mean, scale, True, eps, (True, True, True))
        ctx.save_for_backward(g, x, weight, mean, scale, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
        """What the derivative φ = Σ u · by_x + of_weight · by_weight + of_bias · by_bias has by g, x and weight.

        Everything is a combination of g, u, x̂ and one by channel, with sums of u, u x̂ and u g.
        """
        g, x, weight, mean, scale, by_weight, by_bias = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        by_g, u_x, u_one = KERNEL(u, x, weight, None, None, mean, scale, True, ctx.eps, (True, True, True))
        u_g = summed(u, g)
        slope = weight * scale
        inner = u_g - (by_bias * u_one + by_weight * u_x) / n  # Σ u · by_x / (weight · scale)
        by_g = combined(by_g, (of_weight * scale, x), constant=of_bias - of_weight * scale * mean)
        # φ by x̂ where the scale stays is a · g + b · u, of which mean and correlation with x̂ go; then the scale's own part
        a, b = of_weight - slope * u_x / n, -slope * by_weight / n
        centre = (a * by_bias + b * u_one) / n
        along = (a * by_weight + b * u_x) / n + slope * inner / n
        of_x = -scale * along * scale
        by_x = combined(None, (scale * a, g), (scale * b, u), (of_x, x), constant=-scale * centre - of_x * mean)
        return by_g, by_x, scale * inner, None, None, None


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def combined(start: Tensor | None, *terms: tuple[Tensor, Tensor], constant: Tensor) -> Tensor:
    """start + constant + Σ factor · tensor, factors and constant by channel."""
    result = by_channel(constant, terms[0][1])
    if start is not None:
        result = start + result
    for factor, tensor in terms:
        result = torch.addcmul(result, tensor, by_channel(factor, tensor))
    return result


def summed(u: Tensor, g: Tensor) -> Tensor:
    """Σ u g over all but the channels."""
    product = u * g
    if product.dim() == 4 and product.is_contiguous(memory_format=torch.channels_last):
        product = product.permute(0, 2, 3, 1).reshape(-1, product.shape[1])
        return torch.mv(product.T, product.new_ones(len(product)))
    return product.sum([0, *range(2, product.dim())])

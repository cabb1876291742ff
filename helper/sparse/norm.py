"""BatchNorm of activations that lie batch-innermost, with a residual and a ReLU in the same pass over memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from helper.sparse.functional import PRECISION
from helper.sparse.library import kernels


class LanesNorm(nn.Module):
    """What a BatchNorm layer does, whose parameters and statistics it uses and updates; then `+ residual`, then a ReLU.

    Args:
        norm: BatchNorm1d or BatchNorm2d with parameters and running statistics.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, *, relu: bool) -> None:
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(blocks, channels, ..., lanes) -> the same shape. ValueError: training on one value per channel."""
        norm = self.norm
        if not norm.training:
            return Normalise.apply(x, residual, norm, 0.0, self.relu, norm.weight, norm.bias)
        n = x.numel() // x.shape[1]
        if n == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        return Normalise.apply(x, residual, norm, share, self.relu, norm.weight, norm.bias)


class Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, norm: nn.Module, share: float, relu: bool, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Share: that this batch has in the running statistics, in training."""
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        given, running = not norm.training, (norm.running_mean, norm.running_var)
        if given:  # the running ones may move on before the backward pass
            mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        else:
            mean, variance = torch.empty_like(norm.running_mean), torch.empty_like(norm.running_var)
        y, ctx.options = torch.empty_like(x), (norm.eps, given, relu)
        call("normalise", x, residual, y, weight, bias, mean, variance, *running, options=(share, *ctx.options))
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, mean, variance)
        ctx.has_residual = residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, mean, variance = ctx.saved_tensors
        gradient, of_x = gradient.contiguous(), torch.empty_like(x)
        of_residual = None if y is None else torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        written = of_x, of_residual, of_weight, of_bias
        call("normalise_backward", x, y, gradient, *written, weight, bias, mean, variance, options=ctx.options)
        if ctx.has_residual and of_residual is None:
            of_residual = gradient
        return of_x, of_residual, None, None, None, of_weight, of_bias


def call(name: str, x: Tensor, *tensors: Tensor | None, options: tuple[float, ...]) -> None:
    """A kernel for activations of the shape of `x`."""
    precision = PRECISION[x.dtype]
    function = getattr(kernels(precision).functions, f"{name}_{precision}")
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (x, *tensors)]
    blocks, channels = x.shape[:2]
    size = x[0, 0].numel() if x.numel() else 0
    function(*addresses, blocks, channels, size, *options, torch.get_num_threads())

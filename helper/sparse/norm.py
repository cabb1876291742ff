"""BatchNorm of activations that lie batch-innermost, with a residual and a ReLU in the same pass over memory.

Behind a convolution it is a pair of calls. The convolution gives, besides its outputs, their `statistics` (3, channels): mean,
variance and 1 / deviation. Whoever normalises them returns for the outputs the gradient below the ReLU, `g`, and for the
statistics `factors` (3, channels): factor, even and along. Together they say what the gradient of the outputs is,
(g - even - (outputs - mean) * along) * factor, which the convolution computes where it reads it. So outputs and statistics have
one reader, the same one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from helper.sparse.library import PRECISION, kernels
from helper.sparse.structs import NormSumsStruct, address, norm_struct, reference, statistics_struct


class LanesNorm(nn.Module):
    """What a BatchNorm layer does, whose parameters and statistics it uses and updates; then `+ residual`, then a ReLU.

    Args:
        norm: BatchNorm1d or BatchNorm2d with parameters and running statistics.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, *, relu: bool) -> None:
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x: Tensor, residual: Tensor | None = None, statistics: Tensor | None = None) -> Tensor:
        """(blocks, channels, ..., lanes) -> the same shape.

        Args:
            statistics: those of x, where the convolution that gave it has found them.
        Raises:
            ValueError: training on one value per channel.
        """
        return Normalise.apply(x, statistics, residual, self.norm.weight, self.norm.bias, self.norm, self.relu)


class Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor | None,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.Module,
        relu: bool,
    ) -> Tensor:
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        y, found = torch.empty_like(x), None
        ctx.relu, ctx.given, ctx.paired, ctx.has_residual = (
            relu,
            not norm.training,
            statistics is not None,
            residual is not None,
        )
        if statistics is None:
            statistics = weight.new_empty(3, x.shape[1])
            found = statistics_struct(norm, statistics, x.numel() // x.shape[1])
        of = norm_struct(statistics, weight, bias, residual, y, relu=relu)
        call("normalise", x, reference(of), reference(found), x.data_ptr())
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, statistics = ctx.saved_tensors
        gradient = gradient.contiguous()
        below = torch.empty_like(x) if ctx.relu and (ctx.has_residual or ctx.paired) else None
        of_x = None if ctx.paired else torch.empty_like(x)
        factors, of_weight, of_bias = torch.empty_like(statistics), torch.empty_like(weight), torch.empty_like(weight)
        parts = torch.empty(2 * x.shape[1], dtype=torch.float64)
        sums = NormSumsStruct(*map(address, (parts, factors, of_weight, of_bias)), ctx.given)
        of = norm_struct(statistics, weight, bias, None, y, relu=ctx.relu)
        call("normalise_backward", x, reference(of), *map(address, (x, gradient, of_x, below)), reference(sums))
        below = gradient if below is None else below
        of_residual = below if ctx.has_residual else None
        return below if ctx.paired else of_x, factors if ctx.paired else None, of_residual, of_weight, of_bias, None, None


def call(name: str, x: Tensor, *arguments: Any) -> None:
    """A kernel for activations of the shape of `x`."""
    precision = PRECISION[x.dtype]
    function = getattr(kernels(precision).functions, f"{name}_{precision}")
    function(*arguments, len(x), x[0, 0].numel() if x.numel() else 0, torch.get_num_threads())

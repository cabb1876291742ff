"""BatchNorm of activations that lie batch-innermost, with a residual and a ReLU in the same pass over memory.

Behind a convolution it is a pair of calls. The convolution gives, besides its outputs, their `statistics` (3, channels): mean,
variance and 1 / deviation. Whoever normalises them returns for the outputs the gradient below the ReLU, `g`, and for the
statistics `factors` (3, channels): factor, even and along. Together they say what the gradient of the outputs is,
(g - even - (outputs - mean) * along) * factor, which the convolution computes where it reads it. So outputs and statistics have
one reader, the same one.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from helper.sparse.chain import alone
from helper.sparse.drafts import Draft, Given
from helper.sparse.norm_pass import NormPass
from helper.sparse.part import Part


def key_of(norm: nn.Module | None) -> tuple[Any, ...]:
    return () if norm is None else (norm.training, norm.momentum, norm.eps)


class LanesNorm(Part):
    """What a BatchNorm layer does, whose parameters and statistics it uses and updates; then `+ residual`, then a ReLU.

    Args:
        norm: BatchNorm1d or BatchNorm2d with parameters and running statistics.
        paired: whether, in a chain, it is given statistics of x that a convolution has found.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, *, relu: bool, paired: bool = False) -> None:
        super().__init__()
        self.norm, self.relu, self.paired = norm, relu, paired

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(blocks, channels, ..., lanes) -> the same shape.

        Raises:
            ValueError: training on one value per channel.
        """
        return alone(self, x, None, residual)[0]

    def tensors(self) -> tuple[Tensor | None, ...]:
        return None, None, self.norm.weight, self.norm.bias

    def finds_for(self) -> nn.Module | None:
        return None if self.paired else self.norm

    def key(self) -> tuple[Any, ...]:
        return key_of(self.norm)

    def passes(self, draft: Draft, given: Given, places: Sequence[Any], *, keep: bool) -> NormPass:
        return NormPass(draft, given, self.norm, places, relu=self.relu, keep=keep)

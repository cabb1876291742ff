"""Wide residual network for 32x32 images (Zagoruyko & Komodakis 2016): WRN-depth-width."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from helper.schema.config import flag
from network.depths import multiple
from network.preactivation import PreActivatedNetwork
from network.resnet import WIDTHS, conv
from network.spec import NetworkSpec


class Block(nn.Module):
    """x + two 3x3 convolutions, each behind normalisation and ReLU, with dropout between them.

    Where the shapes differ, a 1x1 convolution of the normalised x takes the place of x.
    """

    def __init__(self, n_in: int, n_out: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), conv(n_in, n_out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(n_out), conv(n_out, n_out, 3)
        self.dropout = dropout(drop_rate)
        self.shortcut = None if stride == 1 and n_in == n_out else conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.relu(self.norm1(x))
        out = self.dropout(F.relu(self.norm2(self.conv1(normalised))))
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(normalised))


class WideResNet(PreActivatedNetwork):
    """Three stages of blocks of 16, 32 and 64 times the width.

    Args:
        depth: 6n+4, the shortcuts' convolutions among them.
        drop_rate: share of activations that training leaves out within each block.
    Raises:
        ValueError: another depth.
    """

    def __init__(
        self, n_channels: int, n_classes: int, depth: int = 28, widen_factor: int = 10, drop_rate: float = 0.0
    ) -> None:
        block, widths = partial(Block, drop_rate=drop_rate), [width * widen_factor for width in WIDTHS]
        super().__init__(n_channels, n_classes, block, blocks_per_stage(depth), widths)


def dropout(rate: float) -> nn.Module:
    """Without any it draws no random numbers."""
    return nn.Dropout(rate) if rate else nn.Identity()


def blocks_per_stage(depth: int) -> int:
    return multiple(depth, 6, 4, "wide_resnet")


class WideResNetFlags:
    dropRate: float = flag(0.0, "share of activations that training leaves out within blocks", short="-dr", low=0, below=1)


def build(
    input_shape: tuple[int, ...], n_classes: int, *, depth: int, widen_factor: int, dropRate: float
) -> WideResNet:  # the flag's published spelling
    return WideResNet(input_shape[0], n_classes, depth, widen_factor, dropRate)


def check(*, depth: int) -> None:
    """Raise ValueError unless there is a network of that depth."""
    blocks_per_stage(depth)


WIDE_RESNET_SPEC = NetworkSpec(
    "wide_resnet", build, head=lambda network: network.fc, folder="wide_resnet{depth}x{widen_factor}",
    flags=WideResNetFlags, check=check, smoke={"depth": 10, "widen_factor": 1, "dropRate": 0.1},
)  # fmt: skip

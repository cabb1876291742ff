"""ResNet with normalisation and ReLU before the convolutions (He et al. 2016, "Identity mappings"), for 32x32 images."""

from functools import partial

from torch import Tensor, nn

from network.depths import multiple
from network.preactivation import PreActivated, PreActivatedNetwork
from network.resnet import WIDTHS, conv
from network.spec import NetworkSpec


class Block(PreActivated):
    """x + two 3x3 convolutions, or a bottleneck; a 1x1 convolution takes the place of x where the shapes differ."""

    def __init__(self, n_in: int, n_out: int, stride: int, *, bottleneck: bool) -> None:
        narrow = n_out // 4
        super().__init__(
            *(((1, 3, 1), (n_in, narrow, narrow, n_out)) if bottleneck else ((3, 3), (n_in, n_out, n_out))), stride
        )
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(x) + self.shortcut(x)


class PreResNet(PreActivatedNetwork):
    """Three stages of blocks of 16, 32 and 64 channels at full, half and quarter resolution.

    Args:
        depth: 6n+2 with two 3x3 convolutions in a block; from 44 on 9n+2 with bottlenecks, which give four times the
            channels. Below 44 the published code builds fewer blocks than that.
    Raises:
        ValueError: a depth that is neither.
    """

    def __init__(self, n_channels: int, n_classes: int, depth: int = 32) -> None:
        n_blocks, bottleneck = blocks_per_stage(depth)
        widths = [4 * width if bottleneck else width for width in WIDTHS]
        super().__init__(n_channels, n_classes, partial(Block, bottleneck=bottleneck), n_blocks, widths)


def blocks_per_stage(depth: int) -> tuple[int, bool]:
    """(how many, whether they are bottlenecks). Raises ValueError unless there is such a network."""
    if depth < 44:
        return multiple(depth, 6, 2, "preresnet", below=44), False
    return multiple(depth, 9, 2, "preresnet from 44"), True


def build(input_shape: tuple[int, ...], n_classes: int, *, depth: int) -> PreResNet:
    return PreResNet(input_shape[0], n_classes, depth)


def check(*, depth: int) -> None:
    """Raise ValueError unless there is a network of that depth."""
    blocks_per_stage(depth)


PRERESNET_SPEC = NetworkSpec(
    "preresnet", build, head=lambda network: network.fc, folder="preresnet{depth}", check=check, smoke={"depth": 8}
)

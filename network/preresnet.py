"""ResNet with normalisation and ReLU before the convolutions (He et al. 2016, "Identity mappings"), for 32x32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from network.depths import multiple
from network.resnet import conv
from network.spec import NetworkSpec


class Block(nn.Module):
    """x + the residual; a 1x1 convolution takes the place of x where the shapes differ.

    Args:
        sizes: of the residual's convolutions. widths: channels of x and behind each convolution.
        stride: of the 3x3 convolution that comes first.
    """

    def __init__(self, sizes: tuple[int, ...], widths: tuple[int, ...], stride: int) -> None:
        super().__init__()
        first = sizes.index(3)
        strides = [stride if i == first else 1 for i in range(len(sizes))]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.convs = nn.ModuleList(map(conv, widths[:-1], widths[1:], sizes, strides))
        same = stride == 1 and widths[0] == widths[-1]
        self.shortcut = nn.Identity() if same else conv(widths[0], widths[-1], 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for norm, layer in zip(self.norms, self.convs, strict=True):
            out = layer(F.relu(norm(out)))
        return out + self.shortcut(x)


class PreResNet(nn.Module):
    """Three stages of blocks of 16, 32 and 64 channels at full, half and quarter resolution, a last normalisation with ReLU,
    global average pooling, one Linear layer.

    Args:
        depth: 6n+2 with two 3x3 convolutions in a block; from 44 on 9n+2 with bottlenecks, which give four times the
            channels. Below 44 the published code builds fewer blocks than that.
    Raises:
        ValueError: a depth that is neither.
    """

    def __init__(self, n_channels: int, n_classes: int, depth: int = 32) -> None:
        super().__init__()
        n_blocks, bottleneck = blocks_per_stage(depth)
        self.conv, n_in = conv(n_channels, 16, 3), 16
        blocks = []
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(n_blocks):
                sizes, inner = ((1, 3, 1), (width, width, 4 * width)) if bottleneck else ((3, 3), (width, width))
                blocks.append(Block(sizes, (n_in, *inner), stride if index == 0 else 1))
                n_in = inner[-1]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(n_in)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


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

"""ResNet for 32x32 images (He et al. 2016, section 4.2), with 1x1 projection shortcuts and a width factor."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from helper.schema.config import flag
from network.depths import multiple
from network.spec import NetworkSpec

WIDTHS = (16, 32, 64)  # channels of the stages, before they are multiplied


def conv(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)


def stages(block: Callable[[int, int, int], nn.Module], n_blocks: int, n_in: int, widths: Sequence[int]) -> nn.Sequential:
    """Stages of so many blocks, the first one at full resolution, each other one at half of that before it.

    Args:
        block: (channels in, channels out, stride of its first 3x3 convolution) -> module.
        widths: channels that come out of each stage.
    """
    blocks = []
    for stage, n_out in enumerate(widths):
        for index in range(n_blocks):
            blocks.append(block(n_in, n_out, 2 if stage and index == 0 else 1))
            n_in = n_out
    return nn.Sequential(*blocks)


def shortcut(n_in: int, n_out: int, stride: int) -> nn.Module:
    if stride == 1 and n_in == n_out:
        return nn.Identity()
    return nn.Sequential(conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, 3, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out, 3), nn.BatchNorm2d(n_out)
        self.shortcut = shortcut(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        n_mid = n_out // self.expansion
        self.conv1, self.bn1 = conv(n_in, n_mid, 1), nn.BatchNorm2d(n_mid)
        self.conv2, self.bn2 = conv(n_mid, n_mid, 3, stride), nn.BatchNorm2d(n_mid)
        self.conv3, self.bn3 = conv(n_mid, n_out, 1), nn.BatchNorm2d(n_out)
        self.shortcut = shortcut(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of residual blocks at full, half and quarter resolution, global average pooling, one Linear layer.

    Args:
        depth: 6n+2 with basic blocks; from 56 on 9n+2 with bottleneck blocks, so that it is the number of layers. The
            published code puts (depth - 2) / 6 bottlenecks into a stage there, and its 56 layers are 83.
        widen_factor: the first convolution and the first stage have 16 times this many channels, the other stages 32 and 64
            times (times 4 after a bottleneck), as in the published code.
    Raises:
        ValueError: a depth that is neither.
    """

    def __init__(self, n_channels: int, n_classes: int, depth: int = 32, widen_factor: int = 1) -> None:
        super().__init__()
        block, n_blocks = blocks_per_stage(depth)
        n_in, widths = 16 * widen_factor, [width * widen_factor * block.expansion for width in WIDTHS]
        self.conv, self.bn = conv(n_channels, n_in, 3), nn.BatchNorm2d(n_in)
        self.blocks = stages(block, n_blocks, n_in, widths)
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.conv(x)))
        out = self.blocks(out)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def blocks_per_stage(depth: int) -> tuple[type[nn.Module], int]:
    if depth < 54:
        return BasicBlock, multiple(depth, 6, 2, "resnet", below=54)
    return Bottleneck, multiple(depth, 9, 2, "resnet from 54")


class ResNetFlags:
    depth: int = flag(
        32, "layers; resnet: 6n+2 below 54, 9n+2 from there (bottlenecks); preresnet: the same with 44; wide_resnet: 6n+4; "
        "densenet: 6n+4, 3n+4 with basic blocks", short="-dp",
    )  # fmt: skip
    widen_factor: int = flag(4, "multiplies the channels of all convolutions", short="-wf", low=1)


def build(input_shape: tuple[int, ...], n_classes: int, *, depth: int, widen_factor: int) -> ResNet:
    return ResNet(input_shape[0], n_classes, depth, widen_factor)


def check(*, depth: int) -> None:
    """Raise ValueError unless there is a ResNet of that depth."""
    blocks_per_stage(depth)


RESNET_SPEC = NetworkSpec(
    "resnet", build, head=lambda network: network.fc, folder="resnet{depth}x{widen_factor}",
    revision=2, flags=ResNetFlags, check=check, smoke={"depth": 8, "widen_factor": 1},
)  # fmt: skip

"""DenseNet for 32x32 images (Huang et al. 2017): every layer reads the outputs of all layers before it in its stage."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.schema.config import flag
from network.depths import multiple
from network.preactivation import PreActivated
from network.resnet import conv
from network.spec import NetworkSpec
from network.wide_resnet import dropout

STAGES = 3
CONVOLUTIONS = {"bottleneck": 2, "basic": 1}  # in a dense layer


class DenseLayer(PreActivated):
    """x, and behind it `growth` new channels of a 3x3 convolution. With a bottleneck, that reads a 1x1 one's 4 growth channels.

    Each convolution follows normalisation and ReLU.
    """

    def __init__(self, n_in: int, growth: int, block: str, drop_rate: float) -> None:
        super().__init__(*(((1, 3), (n_in, 4 * growth, growth)) if block == "bottleneck" else ((3,), (n_in, growth))))
        self.dropout = dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.dropout(self.convolved(x))], 1)


class Transition(nn.Module):
    """Fewer channels at half the resolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(n_in), conv(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """A convolution of 2 growth channels, three stages of dense layers with transitions between them, a last normalisation
    with ReLU, global average pooling, one Linear layer.

    Args:
        depth: 6n+4 with bottlenecks, 3n+4 with basic layers; the transitions' convolutions count.
        growth: channels that each dense layer adds.
        compression: a transition divides the channels by it, rounded down.
        drop_rate: share of its new activations that a dense layer leaves out in training.
        block: of CONVOLUTIONS.
    Raises:
        ValueError: another depth, or a compression that leaves a transition no channel.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        depth: int = 100,
        growth: int = 12,
        compression: int = 2,
        drop_rate: float = 0.0,
        block: str = "bottleneck",
    ) -> None:
        super().__init__()
        widths = stage_widths(depth, growth, compression, block)
        layers: list[nn.Module] = []
        for stage, (n_in, n_out) in enumerate(widths):
            if stage:
                layers.append(Transition(widths[stage - 1][1], n_in))
            layers += [DenseLayer(n, growth, block, drop_rate) for n in range(n_in, n_out, growth)]
        self.conv = conv(n_channels, widths[0][0], 3)
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(widths[-1][1])
        self.fc = nn.Linear(widths[-1][1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.layers(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def stage_widths(depth: int, growth: int, compression: int, block: str) -> list[tuple[int, int]]:
    """(channels that go into a stage, that come out of it). Raises ValueError as `DenseNet`."""
    n_layers = multiple(depth, STAGES * CONVOLUTIONS[block], STAGES + 1, f"densenet of {block} blocks")
    widths, n_in = [], 2 * growth
    for _ in range(STAGES):
        widths.append((n_in, n_in + n_layers * growth))
        n_in = widths[-1][1] // compression
        if not n_in:
            raise ValueError(f"--compressionRate {compression}: leaves none of {widths[-1][1]} channels")
    return widths


class DenseNetFlags:
    growthRate: int = flag(12, "channels that each layer adds", short="-gr", low=1)
    compressionRate: int = flag(2, "between stages the channels are divided by it", short="-cr", low=1)
    dense_block: str = flag("bottleneck", "whether a 1x1 convolution precedes each 3x3 one", choices=CONVOLUTIONS)


def build(
    input_shape: tuple[int, ...], n_classes: int, *,
    depth: int, growthRate: int, compressionRate: int, dropRate: float, dense_block: str,
) -> DenseNet:  # fmt: skip
    return DenseNet(input_shape[0], n_classes, depth, growthRate, compressionRate, dropRate, dense_block)


def check(*, depth: int, growthRate: int, compressionRate: int, dense_block: str) -> None:
    """Raise ValueError unless they make a network."""
    stage_widths(depth, growthRate, compressionRate, dense_block)


DENSENET_SPEC = NetworkSpec(
    "densenet", build, head=lambda network: network.fc, folder="densenet{depth}x{growthRate}",
    least_side=2 ** (STAGES - 1), flags=DenseNetFlags, check=check,
    smoke={"depth": 10, "growthRate": 4, "compressionRate": 2, "dense_block": "bottleneck"},
)  # fmt: skip

"""VGG for 32x32 images (Simonyan & Zisserman 2015, configurations A, B, D and E, with one Linear layer behind them)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from network.spec import NetworkSpec

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # of each stage, by depth


class VGG(nn.Module):
    """Stages of 3x3 convolutions with biases, each stage followed by max pooling; global average pooling, one Linear layer.

    Args:
        convolutions: in each stage. widths: their channels.
        batch_norm: whether a BatchNorm follows each convolution.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        convolutions: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = n_channels
        for n_convolutions, width in zip(convolutions, widths, strict=True):
            for _ in range(n_convolutions):
                norm = [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.Conv2d(n_in, width, 3, padding=1), *norm, nn.ReLU()]
                n_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def spec(depth: int, *, batch_norm: bool) -> NetworkSpec:
    def build(input_shape: tuple[int, ...], n_classes: int) -> VGG:
        return VGG(input_shape[0], n_classes, CONVOLUTIONS[depth], batch_norm=batch_norm)

    name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
    return NetworkSpec(name, build, head=lambda network: network.fc, least_side=2 ** len(WIDTHS), batch_norm=batch_norm)


VGG_SPECS = [spec(depth, batch_norm=batch_norm) for depth in CONVOLUTIONS for batch_norm in (False, True)]

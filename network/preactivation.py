"""Networks that put normalisation and ReLU before a convolution (He et al. 2016, "Identity mappings")."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from network.resnet import conv, stages


class PreActivated(nn.Module):
    """Convolutions without biases, one after the other, each behind normalisation and ReLU.

    Args:
        sizes: of the convolutions. widths: channels that come in, and behind each convolution.
        stride: of the 3x3 convolution that comes first.
    """

    def __init__(self, sizes: Sequence[int], widths: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        first = sizes.index(3)
        strides = [stride if i == first else 1 for i in range(len(sizes))]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.convs = nn.ModuleList(map(conv, widths[:-1], widths[1:], sizes, strides))

    def convolved(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = layer(F.relu(norm(x)))
        return x


class PreActivatedNetwork(nn.Module):
    """A convolution of 16 channels, stages of blocks, a last normalisation with ReLU, global average pooling, one Linear layer.

    Args:
        block, n_blocks, widths: as `network.resnet.stages` takes them.
    """

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        block: Callable[[int, int, int], nn.Module],
        n_blocks: int,
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv = conv(n_channels, 16, 3)
        self.blocks = stages(block, n_blocks, 16, widths)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))

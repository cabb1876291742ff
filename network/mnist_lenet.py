"""LeNet-5 (LeCun et al. 1998) with ReLU and average pooling, without padding."""

import torch.nn.functional as F
from torch import Tensor, nn

from network.spec import NetworkSpec

SIDES = {8: 2, 28: 4, 32: 5}  # of an image: of what the second pooling leaves of it


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling, then 120 and 84 hidden units.

    Args:
        size: image side: 28 as in the published code, 32 as in LeCun's, or 8, where 3x3 convolutions that keep the size take
            their place. No other.
    """

    def __init__(self, n_channels: int, n_classes: int, size: int = 28) -> None:
        super().__init__()
        kernel, padding = (3, 1) if size == 8 else (5, 0)
        self.conv1 = nn.Conv2d(n_channels, 6, kernel, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, kernel, padding=padding)
        self.fc1 = nn.Linear(16 * SIDES[size] ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def build(input_shape: tuple[int, ...], n_classes: int) -> LeNet:
    return LeNet(input_shape[0], n_classes, input_shape[-1])


LENET_SPEC = NetworkSpec(
    "mnist_lenet", build, head=lambda network: network.fc3, revision=2, sides=tuple(SIDES), batch_norm=False
)  # fmt: skip

"""LeNet-5 (LeCun et al. 1998) with ReLU and average pooling, without padding."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling, then 120 and 84 hidden units.

    Args:
        size: image side: 28 as in the published code, 32 as in LeCun's, or 8, where 3x3 convolutions that keep the size take
            their place.
    Raises:
        ValueError: another size.
    """

    def __init__(self, n_channels: int, n_classes: int, size: int = 28) -> None:
        super().__init__()
        if size not in (8, 28, 32):
            raise ValueError(f"--net_name mnist_lenet takes images of 8x8, 28x28 or 32x32 pixels, not {size}x{size}")
        kernel, padding = (3, 1) if size == 8 else (5, 0)
        self.conv1 = nn.Conv2d(n_channels, 6, kernel, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, kernel, padding=padding)
        self.fc1 = nn.Linear(16 * {8: 2, 28: 4, 32: 5}[size] ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))

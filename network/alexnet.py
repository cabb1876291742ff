"""AlexNet (Krizhevsky, Sutskever & Hinton 2012) for 32x32 images, and a smaller one for 28x28 grey ones."""

import torch.nn.functional as F
from torch import Tensor, nn

from network.spec import NetworkSpec

LEAST_SIDE = 29  # whose first convolution gives 8x8, of which three poolings leave one


class AlexNet(nn.Module):
    """Five convolutions, the first 11x11 at stride 4, with three max poolings; global average pooling, one Linear layer."""

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(n_channels, 64, 11, stride=4, padding=5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc = nn.Linear(256, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class MnistAlexNet(nn.Module):
    """Five 3x3 convolutions with three max poolings, then 1024 and 512 hidden units, all with ReLU.

    Args:
        image: height and width, each at least 8.
    """

    def __init__(self, n_channels: int, n_classes: int, image: tuple[int, ...] = (28, 28)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(n_channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc1 = nn.Linear(256 * (image[0] // 8) * (image[1] // 8), 1024)
        self.fc2 = nn.Linear(1024, 512)
        self.fc3 = nn.Linear(512, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.features(x).flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def build(input_shape: tuple[int, ...], n_classes: int) -> AlexNet:
    return AlexNet(input_shape[0], n_classes)


def build_for_mnist(input_shape: tuple[int, ...], n_classes: int) -> MnistAlexNet:
    return MnistAlexNet(input_shape[0], n_classes, input_shape[1:])


ALEXNET_SPEC = NetworkSpec(
    "alexnet", build, head=lambda network: network.fc, least_side=LEAST_SIDE, batch_norm=False
)  # fmt: skip
MNIST_ALEXNET_SPEC = NetworkSpec(
    "mnist_alexnet", build_for_mnist, head=lambda network: network.fc3, least_side=8, batch_norm=False
)  # fmt: skip

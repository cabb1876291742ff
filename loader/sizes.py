"""How many examples of which shape a configuration has, without reading a file: sizes of the published data sets."""

import math
from dataclasses import dataclass

from loader.dataset import Dataset
from loader.main import DataConfig


@dataclass(frozen=True)
class Sizes:
    """Examples of every split, shape of one, classes."""

    train: int
    val: int
    test: int
    input_shape: tuple[int, ...]
    n_classes: int

    @classmethod
    def of(cls, dataset: Dataset) -> "Sizes":
        splits = (len(split) for split in (dataset.train, dataset.val, dataset.test))
        return cls(*splits, dataset.input_shape, dataset.n_classes)


# training, test examples (None: a share, --test_size, of the first number), shape, classes
PUBLISHED: dict[str, tuple[int, int | None, tuple[int, ...], int]] = {
    "digits": (1797, None, (1, 8, 8), 10),
    "toy": (4096, None, (12,), 2),
    "mnist": (60_000, 10_000, (1, 28, 28), 10),
    "fmnist": (60_000, 10_000, (1, 28, 28), 10),
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "cifar100": (50_000, 10_000, (3, 32, 32), 100),
}


def published_sizes(config: DataConfig) -> Sizes:
    """What `load_dataset` gives of the published files; with --limit_classes as if all classes had equally many examples."""
    train, test, shape, n_classes = PUBLISHED[config.clean_name]
    if test is None:
        test = round(config.test_size * train)
        train -= test
    classes = min(config.limit_classes or n_classes, n_classes)
    train, test = (math.ceil(n * classes / n_classes) for n in (train, test))
    train, test = min(train, config.limit_train or train), min(test, config.limit_test or test)
    val = round(config.val_size * train)
    return Sizes(train - val, val, test, shape, classes)

"""How many examples of which shape a configuration has, without reading a file: sizes of the published data sets."""

import math
from dataclasses import dataclass

from loader.dataset import Dataset
from loader.main import DataConfig, load_dataset


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


def published_sizes(config: DataConfig) -> Sizes:
    """What `load_dataset` gives of the published files; with --limit_classes as if all classes had equally many examples.

    A data set of which no published sizes are known is loaded.
    """
    published = config.loader.published
    if published is None:
        return Sizes.of(load_dataset(config))
    train, test, n_classes = published.train, published.test, published.n_classes
    if test is None:
        test = round(config.test_size * train)
        train -= test
    classes = min(config.limit_classes or n_classes, n_classes)
    train, test = (math.ceil(n * classes / n_classes) for n in (train, test))
    train, test = min(train, config.limit_train or train), min(test, config.limit_test or test)
    val = round(config.val_size * train)
    return Sizes(train - val, val, test, published.input_shape, classes)

"""scikit-learn's bundled copy of the UCI handwritten digits: 1,797 grey images of 8x8 pixels, values 0..16, no download."""

from typing import TYPE_CHECKING

import torch

from helper.utils import stream
from loader.dataset import Source
from loader.splits import balanced_rows

if TYPE_CHECKING:
    from loader.main import DataConfig


def load(config: "DataConfig") -> Source:
    """The digits with a class-balanced test share; no file is needed."""
    from sklearn.datasets import load_digits  # takes a second and a half to import

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    test, train = balanced_rows(labels, round(config.test_size * len(labels)), stream(config.split_seed, "test"))
    names = tuple(str(digit) for digit in range(10))
    return Source(images[train], labels[train], images[test], labels[test], names, 16, (0.305,), (0.376,))

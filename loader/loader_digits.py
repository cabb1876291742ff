"""scikit-learn's bundled copy of the UCI handwritten digits: 1,797 grey images of 8x8 pixels, values 0..16, no download."""

import hashlib
import importlib.util
from pathlib import Path

import numpy
import torch

from helper.system.seeds import stream
from loader.dataset import Source
from loader.spec import DatasetSpec, Published, held_out
from loader.splits import balanced_rows

PUBLISHED = "68aea062d35a1277"  # SHA-256 of the table's bytes, its first 16 digits


def load(*, test_size: float, split_seed: int) -> Source:
    """The digits with a class-balanced test share; no file is needed."""
    package = Path(importlib.util.find_spec("sklearn").origin).parent  # importing it takes a second and a half
    table = numpy.loadtxt(package / "datasets/data/digits.csv.gz", delimiter=",", dtype=numpy.uint8)
    content = hashlib.sha256(table.tobytes()).hexdigest()[:16]
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1]).long()
    test, train = balanced_rows(labels, round(test_size * len(labels)), stream(split_seed, "test"))
    names = tuple(str(digit) for digit in range(10))
    return Source(
        images[train], labels[train], images[test], labels[test], names, 16, (0.305,), (0.376,),
        fingerprint=None if content == PUBLISHED else content,
    )  # fmt: skip


def sizes(*, test_size: float) -> Published:
    return held_out(1797, test_size, (1, 8, 8), 10)


DIGITS = DatasetSpec("digits", load, sizes)

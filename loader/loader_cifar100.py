"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 pixels in 100 classes of 20 superclasses."""

import pickle
from pathlib import Path

import numpy
import torch
from torch import Tensor

from loader.archives import DataError, class_names, fingerprint, provide, unpickle
from loader.dataset import Source
from loader.human_labels import make_human_labels
from loader.loader_cifar100_noisy import HUMAN_FILE, HUMAN_KEY, leaves, with_noise_facts
from loader.made_up import N_TEST, N_TRAIN, labels_in_turn, pixels
from loader.spec import DatasetSpec, Published

ARCHIVE = ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")
FILES = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def load(*, root: str, download: bool, verify_data: bool) -> Source:
    """CIFAR-100 from `ROOT/cifar-100-python`, downloaded if need be.

    Raises:
        DataError: missing, damaged, or not the published files.
    """
    provide(FILES, Path(root), ARCHIVE, download=download, verify_data=verify_data)
    paths = [Path(root, name) for name in FILES]
    train, test = (read_images(path, "fine_labels") for path in paths[:2])
    names = class_names(paths[2], "fine_label_names")
    check_labels(paths[0], train[1], len(names), paths[2])
    check_labels(paths[1], test[1], len(names), paths[2])
    return Source(
        *train, *test, names, 255, MEAN, STD,
        fingerprint=None if verify_data else fingerprint(paths, FILES.values()),
    )  # fmt: skip


def load_noisy(*, root: str, download: bool, verify_data: bool, noise_method: str) -> Source:
    """`load`, with what the kind of noise has to know. Raises DataError: as it, and when that is missing or damaged."""
    source = load(root=root, download=download, verify_data=verify_data)
    return with_noise_facts(source, Path(root), noise_method)


def read_images(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    """((N, 3, 32, 32) uint8 images, (N,) labels) of a CIFAR batch file."""
    content = unpickle(path)
    pixels, labels = (content.get(key) for key in ("data", label_key))
    if (
        not isinstance(pixels, numpy.ndarray)
        or not isinstance(labels, list)
        or pixels.ndim != 2
        or pixels.shape != (len(labels), 3072)
        or pixels.dtype != "uint8"
        or not all(type(label) is int and 0 <= label < len(labels) + 1000 for label in labels)
    ):
        raise DataError(f"{path} has not the layout of a CIFAR file (data: N x 3072 bytes, {label_key}: N)")
    return torch.from_numpy(pixels.view(numpy.ndarray)).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def check_labels(path: Path, labels: Tensor, n_classes: int, meta: Path) -> None:
    """Raise DataError unless there are labels, of the classes that another file has names for."""
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"{path} is empty or has labels outside 0..{n_classes - 1}, the classes named in {meta}; delete both and "
            "download them again"
        )


def make_small(root: Path) -> None:
    """The three files with random images, and people's labels."""
    (root / "cifar-100-python").mkdir(parents=True)
    train, test, meta = FILES
    for name, n in ((train, N_TRAIN), (test, N_TEST)):
        fine = labels_in_turn(n, 100)
        batch = {"data": pixels(n, 3072), "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    (root / meta).write_bytes(pickle.dumps({"fine_label_names": [f"class{i}" for i in range(100)]}, protocol=2))
    make_human_labels(root / HUMAN_FILE, labels_in_turn(N_TRAIN, 100), HUMAN_KEY)


CIFAR100 = DatasetSpec(
    "cifar100", load, Published(50_000, 10_000, (3, 32, 32), 100),
    augmented=True, padding=4, load_noisy=load_noisy, leaves=leaves, human_labels=True, make_small=make_small,
)  # fmt: skip

"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28 pixels."""

import functools
import gzip
import math
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from loader.archives import MOST_BYTES, DataError, fingerprint, provide_file
from loader.dataset import Source
from loader.made_up import N_TEST, N_TRAIN, labels_in_turn, pixels
from loader.spec import DatasetSpec, Published

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST_FILES = {
    "folder": "MNIST/raw",
    "mirrors": ["https://ossci-datasets.s3.amazonaws.com/mnist/"],
    "md5": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "classes": tuple("0123456789"),
    "mean": (0.1307,),
    "std": (0.3081,),
}
FASHION_MNIST_FILES = {
    "folder": "FashionMNIST/raw",
    "mirrors": ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
    "md5": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "classes": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "mean": (0.2860,),
    "std": (0.3530,),
}  # fmt: skip


def load(published: dict, *, root: str, download: bool, verify_data: bool) -> Source:
    """MNIST or Fashion-MNIST from the .gz files in its folder under `root`, downloaded if need be.

    Raises:
        DataError: missing, damaged, or not the published files.
    """
    paths = [Path(root, published["folder"], f"{name}.gz") for name in NAMES]
    for path, published_md5 in zip(paths, published["md5"], strict=True):
        urls = [mirror + path.name for mirror in published["mirrors"]]
        provide_file(urls, path, published_md5, download=download, verify_data=verify_data)
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    for path, images, labels in ((paths[0], train_images, train_labels), (paths[2], test_images, test_labels)):
        if images.ndim != 3 or len(images) != len(labels) or labels.max() > 9:
            raise DataError(f"{path} does not fit its labels; delete both and download them again")
    return Source(
        train_images[:, None], train_labels.long(), test_images[:, None], test_labels.long(),
        published["classes"], 255, published["mean"], published["std"],
        fingerprint=None if verify_data else fingerprint(paths, published["md5"]),
    )  # fmt: skip


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor of a gzipped IDX file: magic 0 0 8 ndim, big-endian sizes, bytes.

    Raises:
        DataError: truncated, or not such a file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and download it again") from None
    ndim = content[3] if len(content) > 3 else 0
    sizes = numpy.frombuffer(content[4 : 4 + 4 * ndim], dtype=">i4").tolist() if len(content) >= 4 + 4 * ndim else []
    body = content[4 + 4 * ndim :]
    if (
        content[:3] != b"\0\0\x08"
        or len(sizes) != ndim
        or not sizes
        or min(sizes) < 1
        or len(body) != math.prod(sizes)
        or not body
    ):
        raise DataError(f"{path} is damaged or no IDX file of bytes; delete it and download it again")
    return torch.from_numpy(numpy.frombuffer(body, dtype=numpy.uint8).copy()).view(sizes)


def make_small(published: dict, root: Path) -> None:
    """The four files with random pixels."""
    folder = root / published["folder"]
    folder.mkdir(parents=True)
    for name in NAMES:
        n = N_TRAIN if name.startswith("train") else N_TEST
        if "images" in name:
            content = idx_header(n, 28, 28) + pixels(n, 784).tobytes()
        else:
            content = idx_header(n) + bytes(labels_in_turn(n, 10))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def idx_header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + numpy.array(sizes, dtype=">i4").tobytes()


def spec_of(name: str, published: dict) -> DatasetSpec:
    return DatasetSpec(
        name, functools.partial(load, published), Published(60_000, 10_000, (1, 28, 28), 10),
        make_small=functools.partial(make_small, published),
    )  # fmt: skip


MNIST = spec_of("mnist", MNIST_FILES)
FASHION_MNIST = spec_of("fmnist", FASHION_MNIST_FILES)

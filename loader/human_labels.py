"""CIFAR-10N and CIFAR-100N (Wei et al. 2022): labels that people gave to the training images, in the files for PyTorch.

Their arrays for NumPy are pickled objects and number the images in another order.
"""

import dataclasses
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy
import torch
from torch import Tensor

from helper.untrusted.reasons import reason_of
from loader.archives import DataError, fingerprint
from loader.dataset import Source

ARRAY_TYPES = [
    (numpy._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    numpy._core.multiarray._reconstruct,
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype(numpy.int64)),
]


def with_human_labels(source: Source, path: Path, key: str, images: str) -> Source:
    """A data set with people's labels; their file counts in its fingerprint, as there are no published checksums of it.

    Args:
        key: which of the labels in the file.
        images: the file of the images that they belong to, for messages.
    Raises:
        DataError: the file is missing, damaged, or belongs to other images.
    """
    labels = read_human_labels(path, source.train_labels, key, images)
    prints = [source.fingerprint or "published", fingerprint([path])]
    return dataclasses.replace(source, human_labels=labels, fingerprint="-".join(prints))


def read_human_labels(path: Path, true_labels: Tensor, key: str, images: str) -> Tensor:
    """(N,) labels under `key` of a CIFAR-N file whose `clean_label` agrees with the data."""
    if not path.exists():
        kind = path.stem.split("_")[0] + "N"
        raise DataError(f"{path} is missing; --noise_method human needs the {kind} file of noisylabels.com under --root")
    try:
        with torch.serialization.safe_globals(ARRAY_TYPES):
            content = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        clean, noisy = (torch.as_tensor(content[name]) for name in ("clean_label", key))
    except (
        pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, AttributeError,
        AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        kind = path.stem.split("_")[0] + "N"
        raise DataError(f"{path} is damaged or no {kind} file ({reason_of(error)}); get it again") from None
    if not torch.equal(clean, true_labels):
        raise DataError(
            f"{path}: its clean_label disagrees with the labels of {images}; "
            "the two files number the images differently, so its noise cannot be used with them"
        )
    if noisy.shape != clean.shape or noisy.dtype != torch.int64 or noisy.min() < 0 or noisy.max() > true_labels.max():
        raise DataError(f"{path}: {key} is not a class for each image; get it again")
    return noisy


def make_human_labels(path: Path, clean: list[int], *keys: str) -> None:
    """A file as of CIFAR-N: of the k-th set of labels, counted from 0, every (4 + k)-th label is the next class."""
    true = numpy.array(clean)
    rows, n_classes = numpy.arange(len(true)), max(clean) + 1
    sets = {key: numpy.where(rows % (4 + k) == 0, (true + 1) % n_classes, true) for k, key in enumerate(keys)}
    torch.save({"clean_label": true, **sets}, path)

"""What label noise has to know of CIFAR-100: its superclasses and CIFAR-100N, the labels that people gave (Wei et al. 2022)."""

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
from loader.archives import DataError, fingerprint, unpickle
from loader.dataset import Source

HUMAN_FILE = "CIFAR-100_human.pt"
ARRAY_TYPES = [
    (numpy._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    numpy._core.multiarray._reconstruct,
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype(numpy.int64)),
]


def leaves(noise_method: str, n_classes: int) -> bool:
    """Whether label noise may give a label beyond the first so many classes: a superclass's next class, or what people said."""
    return noise_method in ("asymmetric", "human")


def with_noise_facts(source: Source, root: Path, noise_method: str) -> Source:
    """CIFAR-100 with what a kind of noise needs: `next_class`, cyclic in each superclass, or the human labels.

    Raises:
        DataError: the superclasses or the human labels are missing, or belong to other images.
    """
    if noise_method == "asymmetric":
        coarse = read_superclasses(root / "cifar-100-python/train", len(source.train_labels))
        return dataclasses.replace(source, next_class=next_in_superclass(source.train_labels, coarse))
    if noise_method == "human":
        path = root / HUMAN_FILE
        labels = read_human_labels(path, source.train_labels)
        prints = [source.fingerprint or "published", fingerprint([path])]
        return dataclasses.replace(source, human_labels=labels, fingerprint="-".join(prints))
    return source


def read_superclasses(path: Path, n: int) -> Tensor:
    """(N,) the superclass of every training image. Raises DataError: the file does not have them."""
    coarse = unpickle(path).get("coarse_labels")
    if not isinstance(coarse, list) or not all(type(c) is int and 0 <= c < 100 for c in coarse) or len(coarse) != n:
        raise DataError(f"{path} has no coarse_labels, which asymmetric noise needs")
    return torch.tensor(coarse)


def next_in_superclass(fine: Tensor, coarse: Tensor) -> Tensor:
    """(classes,) the following class of the same superclass, cyclic in the order of class numbers."""
    superclass = torch.zeros(int(fine.max()) + 1, dtype=torch.int64)
    superclass[fine] = coarse
    next_class = torch.arange(len(superclass))
    for one in superclass.unique():
        members = (superclass == one).nonzero().flatten()
        next_class[members] = members.roll(-1)
    return next_class


def read_human_labels(path: Path, true_labels: Tensor) -> Tensor:
    """(N,) `noisy_label` of a CIFAR-100N file whose `clean_label` agrees with the data."""
    if not path.exists():
        raise DataError(f"{path} is missing; --noise_method human needs the CIFAR-100N file of noisylabels.com under --root")
    try:
        with torch.serialization.safe_globals(ARRAY_TYPES):
            content = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        clean, noisy = (torch.as_tensor(content[key]) for key in ("clean_label", "noisy_label"))
    except (
        pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, AttributeError,
        AssertionError, ArithmeticError, MemoryError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise DataError(f"{path} is damaged or no CIFAR-100N file ({reason_of(error)}); get it again") from None
    if not torch.equal(clean, true_labels):
        raise DataError(
            f"{path}: its clean_label disagrees with the labels of cifar-100-python/train; "
            "the two files number the images differently, so its noise cannot be used with them"
        )
    if noisy.shape != clean.shape or noisy.dtype != torch.int64 or noisy.min() < 0 or noisy.max() > true_labels.max():
        raise DataError(f"{path}: noisy_label is not a class for each image; get it again")
    return noisy


def make_human_labels(root: Path, clean: list[int]) -> None:
    """A file as of CIFAR-100N in which every fourth label is the next class."""
    true = numpy.array(clean)
    noisy = numpy.where(numpy.arange(len(true)) % 4 == 0, (true + 1) % 100, true)
    torch.save({"clean_label": true, "noisy_label": noisy}, root / HUMAN_FILE)

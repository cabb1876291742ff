"""What label noise has to know of CIFAR-100: its superclasses and CIFAR-100N, the labels that people gave (Wei et al. 2022)."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from loader.archives import DataError, unpickle
from loader.dataset import Source
from loader.human_labels import with_human_labels

HUMAN_FILE, HUMAN_KEY = "CIFAR-100_human.pt", "noisy_label"
IMAGES = "cifar-100-python/train"


def leaves(noise_method: str, n_classes: int) -> bool:
    """Whether label noise may give a label beyond the first so many classes: a superclass's next class, or what people said."""
    return noise_method in ("asymmetric", "human")


def with_noise_facts(source: Source, root: Path, noise_method: str) -> Source:
    """CIFAR-100 with what a kind of noise needs: `next_class`, cyclic in each superclass, or the human labels.

    Raises:
        DataError: the superclasses or the human labels are missing, or belong to other images.
    """
    if noise_method == "asymmetric":
        coarse = read_superclasses(root / IMAGES, len(source.train_labels))
        return dataclasses.replace(source, next_class=next_in_superclass(source.train_labels, coarse))
    if noise_method == "human":
        return with_human_labels(source, root / HUMAN_FILE, HUMAN_KEY, IMAGES)
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

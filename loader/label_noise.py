"""Label noise: (labels, ...) -> labels, with exactly the requested share corrupted."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loader.archives import DataError


@dataclass(frozen=True)
class Noise:
    """What a method of label noise may need beside the labels."""

    n_classes: int
    next_class: Tensor  # (classes,) class to confuse each class with, itself for none
    human_labels: Tensor | None  # (N,)
    generator: torch.Generator

    def choose(self, rows: Tensor, share: float) -> Tensor:
        """round(share M) of M rows, drawn without replacement."""
        return rows[torch.randperm(len(rows), generator=self.generator)[: round(share * len(rows))]]


def symmetric(labels: Tensor, noise: Noise, *, noise_ratio: float) -> Tensor:
    """Exactly round(noise_ratio N) examples get a uniformly drawn *other* class."""
    chosen = noise.choose(torch.arange(len(labels)), noise_ratio)
    offsets = torch.randint(1, noise.n_classes, chosen.shape, generator=noise.generator)
    return labels.index_put((chosen,), (labels[chosen] + offsets) % noise.n_classes)


def symmetric_inclusive(labels: Tensor, noise: Noise, *, noise_ratio: float) -> Tensor:
    """As many as in `symmetric` get a uniformly drawn class, which may be their own (the paper's)."""
    chosen = noise.choose(torch.arange(len(labels)), noise_ratio)
    return labels.index_put((chosen,), torch.randint(noise.n_classes, chosen.shape, generator=noise.generator))


def asymmetric(labels: Tensor, noise: Noise, *, noise_ratio: float) -> Tensor:
    """Exactly round(noise_ratio M) of the M examples whose class has a `next_class` get that class.

    Raises:
        DataError: no class has one.
    """
    if torch.equal(noise.next_class[: noise.n_classes], torch.arange(noise.n_classes)):
        raise DataError(f"--noise_method asymmetric: none of the {noise.n_classes} classes is confused with another")
    chosen = noise.choose((noise.next_class[labels] != labels).nonzero().flatten(), noise_ratio)
    return labels.index_put((chosen,), noise.next_class[labels[chosen]])


def human(labels: Tensor, noise: Noise) -> Tensor:
    """The labels that people gave. Raises DataError: the data set has none."""
    if noise.human_labels is None:
        raise DataError("--noise_method human: people gave no labels to this data set")
    return noise.human_labels.clone()


METHODS = {"symmetric": symmetric, "symmetric_inclusive": symmetric_inclusive, "asymmetric": asymmetric, "human": human}


def corrupt(
    labels: Tensor,
    method: str,
    n_classes: int,
    generator: torch.Generator,
    *,
    next_class: Tensor | None = None,
    human_labels: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Noisy labels for (N,) true labels, by one of METHODS.

    Args:
        options: the flags that the method reads, such as `noise_ratio`.
        next_class: (classes,) class to confuse each class with, itself for none; default the following one, cyclic.
        human_labels: (N,) labels that people gave, if any did.
    Raises:
        DataError: the data set lacks what the method needs, or the method gives labels that are none of the classes.
    """
    if next_class is None:
        next_class = (torch.arange(n_classes) + 1) % n_classes
    noisy = METHODS[method](labels, Noise(n_classes, next_class, human_labels, generator), **options)
    if len(noisy) and not 0 <= noisy.min() <= noisy.max() < n_classes:
        raise DataError(
            f"--noise_method {method} gives labels outside of 0..{n_classes - 1}, the classes that are used; "
            "leave --limit_classes out, or use --noise_method symmetric"
        )
    return noisy

"""Label noise: (labels, ...) -> labels, with exactly the requested share corrupted."""

import torch
from torch import Tensor

from loader.archives import DataError

METHODS = ("symmetric", "symmetric_inclusive", "asymmetric", "human")


def corrupt(
    labels: Tensor,
    method: str,
    ratio: float,
    n_classes: int,
    generator: torch.Generator,
    *,
    next_class: Tensor | None = None,
    human_labels: Tensor | None = None,
) -> Tensor:
    """Noisy labels for (N,) true labels.

    symmetric: exactly round(ratio N) examples get a uniformly drawn *other* class.
    symmetric_inclusive: the same number get a uniformly drawn class, which may be their own (the paper's).
    asymmetric: exactly round(ratio M) of the M examples whose class has a `next_class` get that class.
    human: `human_labels`, whatever the ratio.

    Args:
        next_class: (classes,) class to confuse each class with, itself for none; default the following one, cyclic.
    Raises:
        DataError: human labels are asked for and the data set has none.
    """
    if method == "human":
        if human_labels is None:
            raise DataError("--noise_method human: people's labels exist here for cifar100 only")
        return human_labels.clone()
    if next_class is None:
        next_class = (torch.arange(n_classes) + 1) % n_classes
    sources = torch.arange(len(labels))
    if method == "asymmetric":
        sources = sources[next_class[labels] != labels]
    chosen = sources[torch.randperm(len(sources), generator=generator)[: round(ratio * len(sources))]]
    noisy = labels.clone()
    if method == "symmetric":
        noisy[chosen] = (labels[chosen] + torch.randint(1, n_classes, chosen.shape, generator=generator)) % n_classes
    elif method == "symmetric_inclusive":
        noisy[chosen] = torch.randint(n_classes, chosen.shape, generator=generator)
    else:
        noisy[chosen] = next_class[labels[chosen]]
    return noisy

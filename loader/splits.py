"""Class-balanced selections."""

import torch
from torch import Tensor


def balanced_rows(labels: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n chosen rows, the others), both in ascending order; every class gives its proportional share.

    Classes of equal size give numbers that differ by at most one; others are off their share by less than two.

    Rows of a class are ranked at random; the i-th of m gets the quantile (i + u) / m with one random u a class, and the n
    smallest quantiles are chosen.

    Args:
        labels: (N,) classes.
        n: how many to choose, 0..N.
    """
    quantile = torch.empty(len(labels), dtype=torch.float64)
    for one in labels.unique():
        rows = (labels == one).nonzero().flatten()
        shift = torch.rand((), generator=generator, dtype=torch.float64)
        order = torch.randperm(len(rows), generator=generator)
        quantile[rows[order]] = (torch.arange(len(rows), dtype=torch.float64) + shift) / len(rows)
    chosen, others = quantile.argsort(stable=True).tensor_split([n])
    return chosen.sort().values, others.sort().values

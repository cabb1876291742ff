"""How far the eigenvalues of a sample's mean matrix are from those of its population: bias and standard error.

The largest eigenvalue is a convex function of a matrix, so that of a sample is too large on average, as the smallest one is
too small. To second order in the sample's deviation, whose covariance is that of a mean without replacement,
E value(n) = value(N) + b (1/n - 1/N). Both halves of a random sample are random samples themselves, which tells b.
"""

import torch
from torch import Tensor

from helper.metrics.estimate import two_stage_mean


def same_ranks(values: Tensor, others: Tensor) -> Tensor:
    """(k,) eigenvalues of another matrix, of the same ranks: the j-th largest for the j-th positive one, from below else.

    Args:
        values: (k,) by magnitude; others: (m,) in any order. nan where there are not so many.
    """
    ascending = others.sort().values
    found, counts = torch.full_like(values, torch.nan), {True: 0, False: 0}
    for index, positive in enumerate((values > 0).tolist()):
        rank = counts[positive]
        counts[positive] += 1
        if rank < len(ascending):
            found[index] = ascending[-1 - rank] if positive else ascending[rank]
    return found


def bias_of(values: Tensor, halves: Tensor, sizes: tuple[int, int], population: int) -> Tensor:
    """(k,) by how much a sample's eigenvalues exceed the population's on average; 0 for the population itself.

    Args:
        values: (k,) of the sample; halves: (2, k) of its halves, of `sizes` examples.
    """
    n = sum(sizes)
    slope = (halves.mean(0) - values) / (sum(1 / size for size in sizes) / 2 - 1 / n)
    return slope * (1 / n - 1 / population)


def errors_of(forms: Tensor, sizes: Tensor, bias: Tensor, population: int) -> Tensor:
    """(k,) standard errors of a sample's eigenvalues less their bias.

    To first order an eigenvalue of the mean matrix is the mean over examples of v^T H_i v, whose spread shows between
    groups of examples. The bias is an estimate itself: half of it counts as its error.

    Args:
        forms: (G, k) mean of v^T H_i v over each of G groups of the sample; sizes: (G,).
    """
    linear = two_stage_mean(forms[:, None].expand(-1, 2, -1), sizes, population).errors  # two equal draws: each form is exact
    return (linear.square() + (bias / 2).square()).sqrt()

"""Standard error of a gradient's signal-to-noise ratio: a jackknife that leaves out one group of mini-batches after another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from helper.processes.sharing import gather_from_processes

MOST_GROUPS, FEWEST_GROUPS = 20, 8
MEMORY = 256 << 20  # bytes that sums of groups may take, where those are not the fewest


class BatchGroups:
    """Sums of gradients over groups of mini-batches: a batch each, or more where there are many batches or many weights.

    Args:
        weights: of the layers. active: bool tensors of their shapes; other coordinates do not count.
    """

    def __init__(self, weights: Sequence[Tensor], active: Sequence[Tensor]) -> None:
        whole = all(bool(keep.all()) for keep in active)
        self.masks = None if whole else [keep.to(weight) for keep, weight in zip(active, weights, strict=True)]
        fitting = MEMORY // max(1, sum(weight.nbytes for weight in weights))
        self.most = max(FEWEST_GROUPS, min(MOST_GROUPS, fitting))
        self.sums: list[list[Tensor]] = []  # of a group, by layer
        self.norms: list[Tensor] = []  # (layers,) of a batch's gradients

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of one more batch; batches go to the groups in turn."""
        gradients = list(gradients) if self.masks is None else torch._foreach_mul(gradients, self.masks)
        index = len(self.norms) % self.most
        self.norms.append(torch.stack(torch._foreach_norm(gradients)))
        if index == len(self.sums):
            self.sums.append([gradient.clone() for gradient in gradients])
        else:
            torch._foreach_add_(self.sums[index], gradients)

    @torch.no_grad()
    def standard_errors(self, means: Sequence[Tensor], squares: Tensor, n: int) -> list[float | None]:
        """Of the SNR of every layer; None where too few batches tell, nan where a layer shows no noise. All processes call it.

        Args:
            means: of the gradients over all batches, with zeros where they do not count.
            squares: (layers,) double; sums of squared deviations from those means. n: batches in all processes.
        """
        own = [self.products(index, means) for index in range(len(self.sums))]
        layers = len(squares)
        groups = gather_from_processes([torch.stack(own) if own else torch.zeros(0, 4, layers, dtype=torch.float64)])
        if len(groups) < 2 or n - groups[:, 0].max() < 2:
            return [None] * layers
        norms = torch.stack([mean.double().square().sum().cpu() for mean in means])
        return jackknife(groups, norms, squares, n).tolist()

    def products(self, index: int, means: Sequence[Tensor]) -> Tensor:
        """(4, layers) double of a group: its batches, their squared norms, its sum's product with the means and with itself."""
        norms = torch.stack(self.norms[index :: self.most]).double()
        sums = [total.double() for total in self.sums[index]]
        with_mean = torch.stack([(total * mean.double()).sum() for total, mean in zip(sums, means, strict=True)])
        with_itself = torch.stack([total.square().sum() for total in sums])
        size = torch.full_like(with_mean, len(norms))
        return torch.stack([size, norms.square().sum(0), with_mean, with_itself]).cpu()


def jackknife(groups: Tensor, norms: Tensor, squares: Tensor, n: int) -> Tensor:
    """(layers,) standard errors of ||mean|| / ||std||, ddof 1, by groups of any sizes (Busing, Meijer and van der Leeden 1999).

    Args:
        groups: (groups, 4, layers) of `BatchGroups.products`.
        norms: (layers,) squared norms of the means. squares: sums of squared deviations. n: batches.
    """
    size, own_squares, with_mean, with_itself = groups.unbind(1)
    left = n - size
    # deviations and not plain squares, which would cancel where the mean is large
    moved = (size**2 * norms - 2 * size * with_mean + with_itself) / left**2  # ||mean without the group - mean||^2
    mean = (n**2 * norms - 2 * n * with_mean + with_itself) / left**2
    own_deviations = own_squares - 2 * with_mean + size * norms
    variance = (squares - own_deviations - left * moved) / (left - 1)
    without = mean.clamp(min=0).sqrt() / variance.sqrt()
    whole = norms.sqrt() / (squares / (n - 1)).sqrt()
    share = n / size
    estimate = len(groups) * whole - ((1 - 1 / share) * without).sum(0)
    pseudo = share * whole - (share - 1) * without
    return ((pseudo - estimate).square() / (share - 1)).mean(0).sqrt()

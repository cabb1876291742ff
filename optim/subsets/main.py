"""Which examples of the training set an epoch shows, and which of its batch a step trains on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helper.system.seeds import stream
from optim.subsets.config import SubsetConfig
from optim.subsets.methods import METHODS, Pool, largest, n_chosen
from optim.subsets.pacing import Pacing, mean_share, ranked


class Subset:
    """The choice of one run. It follows from the flags, the seed, stored scores, and for some methods the present weights.

    Args:
        scores: (N,) of the training examples, see `optim.subsets.scores`; None where the flags need none.
    """

    def __init__(self, config: SubsetConfig, *, n_epochs: int, seed: int, scores: Tensor | None) -> None:
        self.seed, self.ratio, self.scores = seed, config.subset_ratio if config.chooses else 1.0, scores
        self.method = METHODS[config.subset_method] if config.chooses else METHODS["default"]
        self.pacing: Pacing | None = None
        if config.paced:
            ties = torch.randperm(len(scores), generator=stream(seed, "subset ties"))
            ranking = ranked(scores, config.subset_schedule, ties)
            self.pacing = Pacing(ranking, n_epochs, config.subset_ratio, config.subset_until)

    @property
    def reads_network(self) -> bool:
        """Whether a step's examples are chosen by what the network makes of them."""
        return self.method.score is not None

    def batches(self, order: Tensor, epoch: int, batch_size: int) -> Sequence[Tensor]:
        """The rows of each of an epoch's steps, before a step chooses among them."""
        return order.split(batch_size) if self.pacing is None else self.pacing.batches(order, epoch, batch_size)

    def places(self, trainer: Any, step: int, pool: Pool) -> Tensor:
        """Places in its pool of the examples that a step trains on, in ascending order. All processes have to call this."""
        n = len(pool)
        k = n_chosen(n, self.ratio)
        if k == n:
            return torch.arange(n)
        if self.method.drawn:
            drawn = torch.randperm(n, generator=stream(self.seed, "subset", trainer.epoch, step))
            return drawn[:k].sort().values
        if self.method.score is None:
            return torch.arange(k)
        scores = self.method.score(trainer, pool).double()
        trainer.mask_owner.meter.add_passes(n, self.method.passes(trainer.dataset.n_classes))
        if self.method.reducible:
            scores = scores - self.scores[pool.rows.cpu()]
        return largest(scores, k)


def share_trained(config: SubsetConfig, n_epochs: int) -> float:
    """Of the training set that steps train on, mean over the epochs."""
    if config.paced:
        return mean_share(n_epochs=n_epochs, first=config.subset_ratio, until=config.subset_until)
    return config.subset_ratio if config.chooses else 1.0


def pool_passes(config: SubsetConfig, n_classes: int) -> int:
    """What choosing takes for each image of the training set and epoch, in forward passes."""
    return METHODS[config.subset_method].passes(n_classes) if config.chooses else 0

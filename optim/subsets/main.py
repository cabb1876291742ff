"""Which examples of the training set an epoch shows, and which of its batch a step trains on."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from helper.system.seeds import stream
from optim.subsets.config import SubsetConfig
from optim.subsets.methods import METHODS, Pool, largest, n_chosen
from optim.subsets.pacing import Pacing, n_shown, ranked


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

    def n_taken(self, pool: int) -> int:
        """Of the examples of a step's pool, how many it trains on."""
        return n_chosen(pool, self.ratio)

    def places(self, trainer: Any, step: int, pool: Pool) -> Tensor:
        """Places in its pool of the examples that a step trains on, in ascending order. All processes have to call this."""
        n = len(pool)
        k = self.n_taken(n)
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


@dataclass(frozen=True)
class Shown:
    """Examples that a run's epochs train on, and score for that, as shares of the training set: counted before it begins.

    Attributes:
        trained: (n_epochs,) shares. scored: of the examples that are in a pool of which some are left out.
    """

    trained: numpy.ndarray
    scored: float

    def between(self, begin: float, end: float) -> float:
        """Training sets that all steps between two shares of training train on."""
        return self.until(end) - self.until(begin)

    def until(self, moment: float) -> float:
        epochs = moment * len(self.trained)
        whole = min(int(epochs), len(self.trained) - 1)
        return float(self.before[whole] + (epochs - whole) * self.trained[whole])

    @functools.cached_property
    def before(self) -> numpy.ndarray:
        """(n_epochs,) training sets that all epochs before each train on."""
        return self.trained.cumsum() - self.trained


def shown_by(config: SubsetConfig, *, n_epochs: int, n: int, batch_size: int) -> Shown:
    """Args: n: examples of the training set."""
    if config.paced:
        of = {"n": n, "n_steps": -(-n // batch_size), "n_epochs": n_epochs}
        of |= {"first": config.subset_ratio, "until": config.subset_until}
        return Shown(numpy.array([n_shown(epoch, **of) for epoch in range(n_epochs)]) / n, 0.0)
    whole, rest = divmod(n, batch_size)
    sizes = {batch_size: whole, rest: int(rest > 0)}
    ratio = config.subset_ratio if config.chooses else 1.0
    taken = {size: n_chosen(size, ratio) for size, times in sizes.items() if times}
    trained = sum(sizes[size] * k for size, k in taken.items()) / n
    scored = sum(sizes[size] * size for size, k in taken.items() if k < size) / n
    return Shown(numpy.full(n_epochs, trained), scored)


def choosing_passes(config: SubsetConfig, shown: Shown, n_classes: int) -> float:
    """What choosing takes in an epoch, in forward passes of the whole training set."""
    return shown.scored * METHODS[config.subset_method].passes(n_classes) if config.chooses else 0.0

"""Which share of the training set an epoch shows, and from which end of the ranking by difficulty."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACINGS = ("constant", "hard-first", "easy-first")
PACED = PACINGS[1:]


def share_shown(epoch: int, *, n_epochs: int, first: float, until: float) -> float:
    """Of the training set, in an epoch counted from 0: a straight line from `first` to 1 after a share of the epochs.

    With `first` 1 every epoch shows everything.
    """
    length = until * n_epochs
    return 1.0 if epoch >= length else first + (1 - first) * epoch / length


def n_shown(epoch: int, *, n: int, n_steps: int, n_epochs: int, first: float, until: float) -> int:
    """How many of n examples that is, at least one for each of an epoch's steps."""
    share = share_shown(epoch, n_epochs=n_epochs, first=first, until=until)
    return min(n, max(n_steps, round(share * n)))


@dataclass(frozen=True)
class Pacing:
    """The examples of every epoch.

    Attributes:
        ranking: (N,) rows of the training split in the order in which they come in.
        n_epochs, first, until: as `share_shown` has them.
    """

    ranking: Tensor
    n_epochs: int
    first: float
    until: float

    def shown(self, epoch: int, n_steps: int) -> Tensor:
        """(N,) bool: the rows that an epoch of so many steps shows."""
        n = len(self.ranking)
        chosen = torch.zeros(n, dtype=torch.bool)
        of = {"n": n, "n_steps": n_steps, "n_epochs": self.n_epochs, "first": self.first, "until": self.until}
        chosen[self.ranking[: n_shown(epoch, **of)]] = True
        return chosen

    def batches(self, order: Tensor, epoch: int, batch_size: int) -> Sequence[Tensor]:
        """The rows of each of an epoch's steps, of which there are as many as ever: with fewer examples they are smaller.

        Args:
            order: (N,) in which the epoch would show everything.
        """
        everything = order.split(batch_size)
        shown = order[self.shown(epoch, len(everything))[order]]
        return everything if len(shown) == len(order) else shown.tensor_split(len(everything))


def ranked(scores: Tensor, schedule: str, ties: Tensor) -> Tensor:
    """(N,) rows in the order in which a schedule of PACED shows them.

    Args:
        scores: (N,) difficulties. ties: (N,) a permutation by which equal ones are ordered.
    """
    return ties[scores[ties].argsort(descending=schedule == "hard-first", stable=True)]

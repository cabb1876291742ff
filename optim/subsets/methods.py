"""How a step's examples are chosen from its batch: scores of the pool with the weights that the step begins with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from helper.metrics.evaluation import evaluation_mode
from helper.metrics.example_traces import example_traces, passes_of
from helper.metrics.parameters import full_precision
from helper.metrics.softmax import cross_entropies
from helper.processes.sharing import gather_from_processes, own_share
from helper.schema.registry import EntriesThat, by_name


class Pool(Protocol):
    """The batch that a step chooses from; all processes have the same."""

    rows: Tensor  # (n,) of the training split
    labels: Tensor  # (n,) the given ones

    def __len__(self) -> int: ...

    def __getitem__(self, places: Tensor) -> Tensor:
        """The inputs at some places, augmented and normalised, as the step would train on them."""


Score = Callable[[Any, Pool], Tensor]  # (trainer, pool) -> (n,) on the CPU, of all processes; the largest are chosen


@dataclass(frozen=True)
class SubsetMethod:
    """One word of --subset_method.

    Attributes:
        score: of the pool's examples; None: a share is taken without looking at them.
        drawn: whether that share is a random one; otherwise it is the first.
        passes: what scoring an example takes, in forward passes, by the number of classes.
        reducible: whether the score of a network that was trained on the held-out examples is subtracted.
    """

    name: str
    score: Score | None = None
    drawn: bool = False
    passes: Callable[[int], int] = lambda n_classes: 0
    reducible: bool = False


def loss(trainer: Any, pool: Pool) -> Tensor:
    """Cross-entropies, in eval mode."""
    forward = trainer.sparse_step.forward_for(trainer.mask_owner)
    places = torch.arange(len(pool))[own_share(len(pool))].to(trainer.device)
    with torch.no_grad(), evaluation_mode(trainer.network), full_precision(trainer.device):
        losses = cross_entropies(forward(pool[places]).float(), pool.labels[places])
    return gather_from_processes([losses.cpu()])


def fisher(trainer: Any, pool: Pool) -> Tensor:
    """Exact traces of the Fisher information, over the active parameters of layers, in eval mode."""
    return example_traces(trainer.network, pool, trainer.mask_owner.mask).values


def one_pass(n_classes: int) -> int:
    return 1


METHODS = by_name(
    SubsetMethod("default"),
    SubsetMethod("uniform", drawn=True),
    SubsetMethod("loss", loss, passes=one_pass),
    SubsetMethod("fisher", fisher, passes=passes_of),
    SubsetMethod("reducible_loss", loss, passes=one_pass, reducible=True),
    SubsetMethod("reducible_fisher", fisher, passes=passes_of, reducible=True),
)
REDUCIBLE = EntriesThat(METHODS, lambda method: method.reducible)


def n_chosen(n: int, ratio: float) -> int:
    """How many of n are trained on; at least one."""
    return max(1, round(ratio * n))


def largest(scores: Tensor, k: int) -> Tensor:
    """Places of the k largest scores, in ascending order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:k].sort().values

"""Scores say how much a weight matters: the highest stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.look import Look
from helper.masks.context import Context
from helper.masks.numbers import Sizes


@dataclass(frozen=True)
class Score:
    """One way to rank weights.

    Attributes:
        compute: a number for each of the weights of a context, by their names.
        data: whether it reads batches of training data.
        rounds: in how many rounds it prunes unless told otherwise; each scores what the former has left.
        passes: forward passes' worth of multiply-accumulates that it takes for each example it reads, in every round.
        label, look: what pruning at initialisation by it is called, and how figures draw that; default: its name in the
            registry, and a look that follows from its place there.
    """

    compute: Callable[[Context], Mapping[str, Tensor]]
    data: bool = False
    rounds: int = 1
    passes: float = 0
    label: str = ""
    look: Look | None = None


def magnitude(context: Context) -> Sizes:
    """|w|: small weights matter least (Han et al. 2015)."""
    return Sizes(context.weights)


def random(context: Context) -> dict[str, Tensor]:
    """Uniform scores, drawn on the CPU: the control that knows nothing of the weights."""
    drawn = {name: torch.rand(weight.shape, generator=context.generator) for name, weight in context.weights.items()}
    return {name: score.to(context.weights[name].device) for name, score in drawn.items()}

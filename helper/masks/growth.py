"""Which weights come back when a mask lets some go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.look import Look
from helper.masks.numbers import Sizes

Gradients = Mapping[str, Tensor]  # of all weights, pruned ones as well; of the step's batch, over all processes


@dataclass(frozen=True)
class Growth:
    """How the weights that come back are chosen.

    Attributes:
        scores: (gradients, CPU generator) -> {name: score of every weight}; the highest come back.
        dense_gradient: whether it needs the gradients of pruned weights, which are to be paid for.
        label, look: what dynamic sparse training with it is called, and how figures draw that; default: its name in the
            registry, and a look that follows from its place there.
    """

    scores: Callable[[Gradients, torch.Generator], Mapping[str, Tensor]]
    dense_gradient: bool
    label: str = ""
    look: Look | None = None


def at_random(gradients: Gradients, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniformly (SET, Mocanu et al. 2018). Drawn on the CPU, so that every device and process has the same."""
    return {name: torch.rand(g.shape, generator=generator).to(g.device) for name, g in gradients.items()}


def by_gradient(gradients: Gradients, generator: torch.Generator) -> Sizes:
    """Where the loss falls fastest (RigL, Evci et al. 2020)."""
    return Sizes(gradients)


GROWTHS = {
    "gradient": Growth(by_gradient, dense_gradient=True, label="RigL", look=Look("#56B4E9", "P", "--")),
    "random": Growth(at_random, dense_gradient=False, label="SET", look=Look("#117733", ">", ":")),
}

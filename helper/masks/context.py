"""What a score may look at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.mask import Mask


@dataclass(frozen=True)
class Context:
    """A network whose weights are scored, and what a score may ask about it.

    Attributes:
        network: its pruned weights are zero. A score leaves it as it is, to the bit.
        weights: {name: detached weight} of those that may be pruned.
        mask: which of them are active now.
        generator: on the CPU, for a score that draws.
        batches: gives the same batches of training data at every call: (inputs on the network's device, normalised and not
            augmented, (N,) classes); None: a score that reads data cannot be asked for.
        memory_mb: most MiB that a score may take beside the network, as far as it can choose.
        n_classes, input_shape: of the data; None: not known.
    """

    network: nn.Module
    weights: dict[str, Tensor]
    mask: Mask
    generator: torch.Generator
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = None
    memory_mb: float = 1000
    n_classes: int | None = None
    input_shape: tuple[int, ...] | None = None

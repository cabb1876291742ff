"""Sparse layers as differentiable functions of activations that lie batch-innermost.

Such activations are (blocks, channels, height, width, lanes): the examples of a batch in blocks of `lanes`, side by side in
memory. PyTorch's own operations on (N, C, D, H, W) work on them as they are. Behind a flattening they are (blocks, features,
lanes).
"""

from dataclasses import dataclass

from torch import Tensor

from helper.sparse.layers import LanesBlock
from helper.sparse.plan import LayerPlan

MOST_LANES = 256
LANES = 32  # of images: so many that rows of all channels fit into the cache, and few pixels make many vectors


def lanes_of(n: int) -> int:
    """Into blocks of how many images a batch is divided: about 32, a multiple of 16 if that is possible."""
    fit = [lanes for lanes in range(LANES // 2, 2 * LANES + 1) if n % lanes == 0]
    return min(fit, key=lambda lanes: (lanes % 16 > 0, abs(lanes - LANES), -lanes), default=lanes_of_features(n))


def lanes_of_features(n: int) -> int:
    """The same of examples that are no images: all of a usual batch, an even part of a large one."""
    if n <= MOST_LANES:
        return n
    return next((lanes for lanes in range(MOST_LANES, 0, -16) if n % lanes == 0), n)


def to_lanes(x: Tensor, lanes: int) -> Tensor:
    """(N, ...) -> (N / lanes, ..., lanes), contiguous. ValueError: `lanes` does not divide N."""
    if len(x) % lanes:
        raise ValueError(f"{len(x)} examples do not make blocks of {lanes}")
    return x.unflatten(0, (-1, lanes)).movedim(1, -1).contiguous()


def from_lanes(x: Tensor) -> Tensor:
    """The inverse of `to_lanes`: (blocks, ..., lanes) -> (N, ...)."""
    return x.movedim(-1, 1).flatten(0, 1)


@dataclass(frozen=True)
class PlannedLayer:
    """Weights with the plan for them."""

    weight: Tensor
    bias: Tensor | None
    made: LayerPlan

    def plan(self, image: tuple[int, ...]) -> LayerPlan:
        return self.made


def sparse_layer(x: Tensor, weight: Tensor, bias: Tensor | None, plan: LayerPlan) -> Tensor:
    """A linear or convolutional layer of which only the active weights count, whatever the others hold.

    Its gradient at pruned weights is exactly zero. It can be differentiated once.

    Args:
        x: (blocks, channels, height, width, lanes), or (blocks, features, lanes) for a linear layer.
        weight: of the memory layout for which the plan was made; or its active values alone, (n_active,), in the plan's order.
    Raises:
        ValueError: type, shape or memory layout is not what the plan is for.
    """
    return LanesBlock(PlannedLayer(weight, bias, plan))(x)

"""Layers of a sparse view: they read activations that lie batch-innermost, with the parameters of the network's own ones."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from helper.sparse.chain import alone
from helper.sparse.drafts import Draft, Given
from helper.sparse.layer_pass import LayerPass
from helper.sparse.norm import key_of
from helper.sparse.part import Part
from helper.sparse.plan import LayerPlan, layer_plan


class Weighted(Protocol):
    """Weights of a layer.

    Attributes:
        weight: of the memory layout for which the plans are; or its active values alone, (n_active,), in the plans' order.
    """

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    def plan(self, image: tuple[int, ...]) -> LayerPlan:
        """For inputs of so many pixels."""


class LanesLayer:
    """A linear or convolutional layer of which only the weights of a mask count; its plans are made for what it is given.

    Attributes:
        values: (n_active,), what counts in place of the layer's weight; None: the weight itself does.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, mask: Tensor) -> None:
        self.layer, self.mask, self.plans = layer, mask, dict[tuple[int, ...], LayerPlan]()
        self.values: Tensor | None = None

    def plan(self, image: tuple[int, ...] = (1, 1)) -> LayerPlan:
        if image not in self.plans:
            self.plans[image] = layer_plan(self.layer, self.mask, image)
        return self.plans[image]

    @property
    def weight(self) -> Tensor:
        return self.layer.weight if self.values is None else self.values

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias


class LanesBlock(Part):
    """A sparse layer with BatchNorm before it, behind it, or neither, of which no activations are written to memory.

    In a chain it reads (inputs, their statistics, a residual) and gives (outputs, their statistics, what the layer has read for
    whoever else reads that). The gradient that comes back for the last is added to the layer's own in one pass over memory.

    Args:
        before: whose result the layer reads; None: it reads what it is given. after: to which its outputs go.
        relu: whether one follows `before`. keep: whether others read what the layer reads.
    """

    n_outputs = 3

    def __init__(
        self,
        layer: Weighted,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        *,
        relu: bool = False,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.sparse, self.before, self.after, self.relu, self.keep = layer, before, after, relu, keep

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, without norms."""
        return alone(self, x, None, None)[0]

    def tensors(self) -> tuple[Tensor | None, ...]:
        of_norm = (None, None) if self.before is None else (self.before.weight, self.before.bias)
        return self.sparse.weight, self.sparse.bias, *of_norm

    def finds_for(self) -> nn.Module | None:
        return self.after

    def passed_on(self, output: int) -> int | None:
        return 0 if output == 2 and self.before is None else None

    def key(self) -> tuple[Any, ...]:
        return key_of(self.before), key_of(self.after)

    def check(self, shape: tuple[int, ...]) -> None:
        plan, weight = self.plan_for(shape), self.sparse.weight
        channels, image = plan.backward.channels, plan.backward.image
        if shape[1:-1] != ((channels, *image) if len(shape) == 5 else (channels,)) or (len(shape) == 3 and image != (1, 1)):
            raise ValueError(f"the plan is for inputs (blocks, {channels}, {image}, lanes), not {tuple(shape)}")
        if weight.shape != plan.active.shape and weight.stride() != plan.strides:
            raise ValueError(f"the plan is for weights of strides {plan.strides}, not {weight.stride()}")

    def plan_for(self, shape: tuple[int, ...]) -> LayerPlan:
        return self.sparse.plan(tuple(shape[2:-1]) or (1, 1))

    def passes(self, draft: Draft, given: Given, places: Sequence[Any], *, keep: bool) -> LayerPass:
        plan = self.plan_for(given.values[0].shape)
        return LayerPass(draft, given, plan, self.before, self.after, places, relu=self.relu, keep=self.keep)


class LanesLinear(nn.Module):
    """A linear layer, of all of its weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(self.layer.weight, x)
        return y if self.layer.bias is None else y + self.layer.bias[:, None]

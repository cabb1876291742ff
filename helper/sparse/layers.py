"""Layers of a sparse view: they read activations that lie batch-innermost, with the parameters of the network's own ones."""

import torch
from torch import Tensor, nn

from helper.sparse.functional import Normed, normed_layer, sparse_layer_and_inputs
from helper.sparse.plan import LayerPlan, layer_plan


class LanesLayer(nn.Module):
    """A linear or convolutional layer of which only the weights of a mask count; its plans are made for what it is given.

    Attributes:
        values: (n_active,), what counts in place of the layer's weight; None: the weight itself does.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, mask: Tensor) -> None:
        super().__init__()
        self.layer, self.mask, self.plans = layer, mask, dict[tuple[int, ...], LayerPlan]()
        self.values: Tensor | None = None

    def plan(self, image: tuple[int, ...] = (1, 1)) -> LayerPlan:
        if image not in self.plans:
            self.plans[image] = layer_plan(self.layer, self.mask, image)
        return self.plans[image]

    @property
    def weight(self) -> Tensor:
        return self.layer.weight if self.values is None else self.values

    def plan_for(self, x: Tensor) -> LayerPlan:
        return self.plan(tuple(x.shape[2:-1]) or (1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer gives, its inputs for whoever else reads them); see `sparse_layer_and_inputs`."""
        return sparse_layer_and_inputs(x, self.weight, self.layer.bias, self.plan_for(x))


class LanesBlock(nn.Module):
    """A sparse convolution with BatchNorm before it, behind it, or both, of which no activations are written to memory.

    Args:
        before: whose result the layer reads; None: it reads what it is given. after: to which its outputs go.
        relu: whether one follows `before`. keep: whether others read what the layer reads.
    """

    def __init__(self, layer: LanesLayer, before: nn.Module | None, after: nn.Module | None, *, relu: bool, keep: bool) -> None:
        super().__init__()
        self.sparse, self.before, self.after, self.relu, self.keep = layer, before, after, relu, keep

    def forward(
        self, x: Tensor, statistics: Tensor | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `normed_layer`."""
        before = None
        if self.before is not None:
            before = Normed(self.before, statistics, residual, self.relu, self.keep)
        layer = self.sparse
        return normed_layer(x, layer.weight, layer.layer.bias, layer.plan_for(x), before, self.after)


class LanesLinear(nn.Module):
    """A linear layer, of all of its weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(self.layer.weight, x)
        return y if self.layer.bias is None else y + self.layer.bias[:, None]

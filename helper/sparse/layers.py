"""Layers of a sparse view: they read activations that lie batch-innermost, with the parameters of the network's own ones."""

import torch
from torch import Tensor, nn

from helper.sparse.functional import sparse_layer_and_inputs
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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer gives, its inputs for whoever else reads them); see `sparse_layer_and_inputs`."""
        weight = self.layer.weight if self.values is None else self.values
        return sparse_layer_and_inputs(x, weight, self.layer.bias, self.plan(tuple(x.shape[2:-1]) or (1, 1)))


class LanesLinear(nn.Module):
    """A linear layer, of all of its weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(self.layer.weight, x)
        return y if self.layer.bias is None else y + self.layer.bias[:, None]

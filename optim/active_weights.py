"""Active weights held apart while steps are taken with them alone: values, gradient and the optimiser's state as vectors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.sparse.layers import LanesLayer


@dataclass
class Held:
    """The active weights of one layer.

    Attributes:
        layer: of the view, which computes with `values` while they are given to it.
        values: (n,), in the order in which the mask has them. places: where they are in the weight's memory.
        version: of the weight when both agreed last.
        ahead: whether the optimiser has moved the values since then.
    """

    layer: LanesLayer
    values: Tensor
    places: Tensor
    version: int
    ahead: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return self.layer.layer.weight


class ActiveWeights:
    """Takes active weights out of their dense tensors, into which the optimiser then need not reach, and puts them back.

    In the optimiser a weight's place is taken by the vector of its active values. A step's cost is then that of the active
    weights. The dense tensor is behind until `write_back`; what somebody else writes into it between two steps counts.

    Args:
        optimizer: which updates every element by its own gradient and state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.held = optimizer, dict[LanesLayer, Held]()

    @torch.no_grad()
    def hold(self, layers: Mapping[str, LanesLayer]) -> None:
        """From now on, hold the weights of just these linear layers of a view, and let it compute with them."""
        wanted = list(layers.values())
        for layer in [layer for layer in self.held if layer not in wanted]:
            self.release(self.held.pop(layer))
        for layer in wanted:
            if layer not in self.held:
                self.held[layer] = self.taken(layer)
            held = self.held[layer]
            if held.version != held.weight._version and not held.ahead:
                held.values.copy_(held.weight.view(-1)[held.places])
                held.version = held.weight._version
            layer.values = held.values

    def taken(self, layer: LanesLayer) -> Held:
        weight, places = layer.layer.weight, layer.plan().active
        values = weight.detach().view(-1)[places].requires_grad_()
        weight.grad = None
        state = self.replace(weight, values)
        whole = {name: value for name, value in state.items() if is_shaped(value, weight)}
        self.optimizer.state[values] = state | {name: value.view(-1)[places] for name, value in whole.items()}
        return Held(layer, values, places, weight._version)

    def release(self, held: Held) -> None:
        """Put a layer's weights and state back into dense tensors."""
        self.put_back(held)
        state, weight = self.replace(held.values, held.weight), held.weight
        compact = {name: value for name, value in state.items() if is_shaped(value, held.values)}
        self.optimizer.state[weight] = state | {name: spread(value, weight, held.places) for name, value in compact.items()}

    def replace(self, former: Tensor, by: Tensor) -> dict:
        """Put a tensor in another's place among the optimiser's; the former one's state, which the optimiser has no more."""
        for group in self.optimizer.param_groups:
            group["params"] = [by if parameter is former else parameter for parameter in group["params"]]
        return self.optimizer.state.pop(former, {})

    def updated(self) -> None:
        """The optimiser has moved what is held."""
        for held in self.held.values():
            held.ahead = True

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the dense weights up to date; the view computes with them until `hold` is called again."""
        for held in self.held.values():
            self.put_back(held)

    def put_back(self, held: Held) -> None:
        held.layer.values = None
        if held.ahead:
            held.weight.view(-1).index_copy_(0, held.places, held.values)
            held.version, held.ahead = held.weight._version, False


def spread(values: Tensor, weight: Tensor, places: Tensor) -> Tensor:
    """A tensor of a weight's shape that has values in some places of its memory and zeros in the others."""
    dense = torch.zeros_like(weight)
    dense.view(-1).index_copy_(0, places, values)
    return dense


def is_shaped(value: object, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape

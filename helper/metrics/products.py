"""v_l . (H v)_l of every example, for each layer l and a direction v of its own: of the loss's Hessian or its residual term."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from helper.metrics.parameters import UNFIT, Layers, explained, require_gradients
from helper.metrics.softmax import cross_entropies, residuals
from helper.processes.interruption import checking_signals


class Products(Protocol):
    def __call__(self, v: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        """(n, layers) products in float64, from directions {parameter name: (n, *shape)}, (n, ...) inputs and (n,) labels."""


def objective(term: str, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """What is differentiated twice over the size of its gradient by an example's (C,) logits, and that size.

    The size may be below what float32 holds.
    """
    logits = logits.double()
    residual = residuals(logits.detach()[None], label[None, None])[0, 0]
    size = residual.abs().amax()
    size = size.where(size > 0, 1)
    return (cross_entropies(logits, label) if term == "hessian" else -(residual * logits).sum()) / size, size


def choose_products(
    network: nn.Module, layers: Layers, term: str, v: dict[str, Tensor], inputs: Tensor, labels: Tensor
) -> Products:
    """`VmapProducts` where they give on some examples what differentiating backward passes gives, else `LoopProducts`.

    Raises:
        ValueError: an operation of the network has no second derivative.
    """
    plain, general = LoopProducts(network, layers, term), VmapProducts(network, layers, term)
    try:
        truth = plain(v, inputs, labels)
    except UNFIT as error:
        raise ValueError(f"the network has no second derivatives: {explained(error)}") from error
    try:
        found = general(v, inputs, labels)
    except UNFIT:
        return plain
    same = torch.allclose(found, truth, rtol=1e-2, atol=1e-4 * truth.nan_to_num().abs().max().item(), equal_nan=True)
    return general if same else plain


class VmapProducts:
    """Forward over reverse by `torch.func`, many examples at once."""

    def __init__(self, network: nn.Module, layers: Layers, term: str) -> None:
        self.network, self.layers, self.term = network, layers, term
        self.parameters = {name: p for parameters in layers.values() for name, p in parameters.items()}

    def __call__(self, v: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        require_gradients(self.network, False)
        return vmap(self.of_one)(v, inputs, labels).detach()

    def of_one(self, v: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        def value(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return objective(self.term, functional_call(self.network, weights, (x[None].clone(),))[0], label)

        _, hv, size = jvp(grad(value, has_aux=True), (self.parameters,), (v,), has_aux=True)
        return self.by_layer(v, hv) * size

    def by_layer(self, v: dict[str, Tensor], hv: dict[str, Tensor]) -> Tensor:
        """(layers,) in float64"""
        return torch.stack([sum((v[name] * hv[name]).sum() for name in names) for names in self.layers.values()]).double()


class LoopProducts(VmapProducts):
    """Reverse over reverse, one example after the other, with the network's own parameters: the slow reference."""

    def __call__(self, v: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        require_gradients(self.network, True)
        rows = [{name: part[index] for name, part in v.items()} for index in range(len(inputs))]
        return torch.stack([self.of_one(*item) for item in checking_signals(zip(rows, inputs, labels, strict=True))]).detach()

    def of_one(self, v: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        weights, options = list(self.parameters.values()), {"allow_unused": True, "materialize_grads": True}
        value, size = objective(self.term, self.network(x[None].clone())[0], label)
        gradients = torch.autograd.grad(value, weights, create_graph=True, **options)
        slope = sum((g * v[name]).sum() for name, g in zip(self.parameters, gradients, strict=True))
        if not slope.requires_grad:  # the value is linear
            return size.new_zeros(len(self.layers))
        hv = torch.autograd.grad(slope, weights, **options)
        return self.by_layer(v, dict(zip(self.parameters, hv, strict=True))) * size

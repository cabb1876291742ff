"""Multiply-accumulates of one forward pass."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from helper.mask import count as n_active
from helper.metrics.parameters import evaluation_mode


def count_macs(network: nn.Module, input_shape: tuple[int, ...], mask: Mapping[str, Tensor] | None = None) -> tuple[int, int]:
    """(dense, active) multiply-accumulates of one example through the Linear and Conv2d layers.

    A weight of a Linear layer is used once, one of a convolution once for each output position: the sum over layers of
    positions x weights, and of positions x weights that the mask leaves.

    Args:
        input_shape: of one example.
    """
    uses, sizes = uses_of_weights(network, input_shape), sizes_of_weights(network)
    return macs_of(uses, sizes), macs_of(uses, sizes | {name: n_active(keep) for name, keep in (mask or {}).items()})


def macs_of(uses: Mapping[str, int], counts: Mapping[str, int]) -> int:
    """Multiply-accumulates of one example, where so many weights of each layer are active."""
    return sum(n * counts[name] for name, n in uses.items())


def sizes_of_weights(network: nn.Module) -> dict[str, int]:
    """{weight name: its number of elements}."""
    return {name: parameter.numel() for name, parameter in network.named_parameters(remove_duplicate=False)}


@torch.no_grad()
def uses_of_weights(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """{weight name: how often each of its elements is multiplied in one example's forward pass}, of Linear and Conv2d layers.

    Computed on the CPU, where no graph has to be compiled for it.
    """
    if next(network.parameters()).device.type != "cpu":
        network = copy.deepcopy(network).cpu()
    uses: dict[str, int] = {}

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // output.shape[-1]
            uses[name] = uses.get(name, 0) + positions

        return hook

    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    handles = [module.register_forward_hook(count(f"{name}.weight".removeprefix("."))) for name, module in layers.items()]
    try:
        with evaluation_mode(network):
            network(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return uses

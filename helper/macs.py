"""Multiply-accumulates of one forward pass."""

import torch
from torch import Tensor, nn

from helper.metrics.parameters import evaluation_mode


def count_macs(network: nn.Module, input_shape: tuple[int, ...], mask=None) -> tuple[int, int]:
    """(dense, active) multiply-accumulates of one example through the Linear and Conv2d layers.

    A weight of a Linear layer is used once, one of a convolution once for each output position: the sum over layers of
    positions x weights, and of positions x weights that the mask leaves.

    Args:
        input_shape: of one example.
    """
    positions: dict[str, int] = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positions[name] = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // output.shape[-1]

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in layers.items()]
    try:
        with torch.no_grad(), evaluation_mode(network):
            network(torch.zeros(1, *input_shape, device=next(network.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    dense = active = 0
    for name, module in layers.items():
        weights = module.weight.numel()
        kept = int(mask[f"{name}.weight"].sum()) if mask and f"{name}.weight" in mask else weights
        dense, active = dense + positions[name] * weights, active + positions[name] * kept
    return dense, active

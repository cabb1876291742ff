"""Which layers are worth computing of their active weights alone: a rule by density and shape, the same on every machine.

Costs are in multiply-accumulates of active weights, for one training step.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from helper.mask import count

BREAK_EVEN = 0.38  # a dense layer's multiply-accumulates in those of active weights: below 62 % sparsity dense is faster
CONVERSION = 40  # of one value between layouts
PASSES, DENSE_PASSES = 17, 35  # of one value that a convolution reads or gives, in sparse and dense steps: BatchNorm, memory
CALL = 5e6  # of one layer, whatever its size
WORTH = 0.8  # share of the dense step's cost below which a sparse one is taken


def chosen_layers(network: nn.Module, masks: Mapping[str, Tensor], uses: Mapping[str, int]) -> dict[str, Tensor]:
    """{layer name: mask} of those whose active weights alone are computed, in a network that has masks.

    Args:
        masks: weight name -> bool tensor.
        uses: {weight name: how often each of its elements is multiplied in one example's forward pass}.
    """
    return masks_of(network, chosen_counts(network, {name: count(mask) for name, mask in masks.items()}, uses), masks)


def masks_of(network: nn.Module, names: Iterable[str], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{layer name: its weight's mask}, of all of its weights where there is none."""
    layers, found = known_layers(network), {name: masks.get(f"{name}.weight") for name in names}
    return {name: torch.ones(layers[name].weight.shape, dtype=torch.bool) if m is None else m for name, m in found.items()}


def chosen_counts(network: nn.Module, counts: Mapping[str, int], uses: Mapping[str, int]) -> dict[str, int]:
    """{layer name: active weights} of the layers that are chosen, where so many elements of the masked weights are active.

    Unmasked convolutions are among them where converting the layout for them and back would take longer.
    """
    chosen = {}
    for name, layer in known_layers(network).items():
        weight, n = f"{name}.weight", layer.weight.numel()
        if weight not in uses:
            continue
        active = counts.get(weight, n)
        conversions = CONVERSION * values(layer, uses[weight]) if isinstance(layer, nn.Conv2d) else 0
        if active * uses[weight] < BREAK_EVEN * n * uses[weight] + conversions:
            chosen[name] = active
    return chosen


def is_worth_it(network: nn.Module, chosen: Mapping[str, Tensor], uses: Mapping[str, int], batch_size: int) -> bool:
    """Whether a step with the chosen layers computed sparsely is faster than a dense one."""
    return relative_cost(network, {name: count(mask) for name, mask in chosen.items()}, uses, batch_size) < WORTH


def relative_cost(network: nn.Module, chosen: Mapping[str, int], uses: Mapping[str, int], batch_size: int) -> float:
    """Of a step with the chosen layers computed sparsely, {layer name: active weights}, in that of a dense step."""
    dense = sparse = 0.0
    for name, layer in known_layers(network).items():
        n_uses = uses.get(f"{name}.weight", 0)
        one, n_values = BREAK_EVEN * layer.weight.numel() * n_uses, values(layer, n_uses) if isinstance(layer, nn.Conv2d) else 0
        dense += batch_size * (one + DENSE_PASSES * n_values)
        if name in chosen:
            sparse += batch_size * (chosen[name] * n_uses + PASSES * n_values) + CALL
        else:
            sparse += batch_size * (one + (CONVERSION + DENSE_PASSES) * n_values)
    return sparse / dense if dense else 1.0


def known_layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Those that the kernels can do."""
    modules = {name: module for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    return {name: m for name, m in modules.items() if isinstance(m, nn.Linear) or m.padding_mode == "zeros"}


def values(layer: nn.Conv2d, positions: int) -> int:
    """That a convolution reads and gives, of one example."""
    steps = layer.stride[0] * layer.stride[1]
    return positions * (layer.out_channels + layer.in_channels * steps)

"""Which parameters a measurement counts, and the state in which a network is measured."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

PARAMS = ("layers", "weights", "all")


def counted_parameters(network: nn.Module, params: str) -> dict[str, dict[str, nn.Parameter]]:
    """{layer: {parameter name: parameter}} that count.

    layers: weights and biases of Linear and Conv2d; weights: without the biases; all: with BatchNorm.
    """
    kinds = (nn.Linear, nn.Conv2d) + ((nn.BatchNorm1d, nn.BatchNorm2d) if params == "all" else ())
    counted = {}
    for layer, module in network.named_modules():
        if isinstance(module, kinds):
            own = dict(module.named_parameters(recurse=False))
            counted[layer] = {f"{layer}.{k}": p for k, p in own.items() if k == "weight" or params != "weights"}
    return counted


def active(parameter: Tensor, name: str, mask) -> Tensor:
    """Bool tensor of a parameter's active coordinates: its mask, or all of it."""
    if mask is None or name not in mask:
        return torch.ones_like(parameter, dtype=torch.bool)
    return mask[name].to(parameter.device)


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; each one's own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TF32 off inside."""
    former = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(former[0])
        torch.backends.cudnn.allow_tf32 = former[1]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type of newly made floating-point tensors inside, for libraries that do not follow their inputs."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


def measurable_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode for libraries that leave hooks, gradients or modes behind."""
    duplicate = copy.deepcopy(network).eval()
    duplicate.zero_grad(set_to_none=True)
    return duplicate.requires_grad_(True)

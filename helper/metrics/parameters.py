"""Which parameters a measurement counts, and the state in which a network is measured."""

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from helper.config import near_match

PARAMS = ("layers", "weights", "all")
Layers = dict[str, dict[str, nn.Parameter]]  # layer -> parameter name -> parameter


def counted_parameters(network: nn.Module, params: str) -> Layers:
    """{layer: {parameter name: parameter}} that count; one that modules share counts once, for the first of them.

    layers: weights and biases of Linear and Conv2d; weights: without the biases; all: every parameter, BatchNorm's too.

    Raises:
        ValueError: nothing counts.
    """
    one_of("params", params, PARAMS)
    counted: Layers = {}
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        linear = isinstance(network.get_submodule(layer), (nn.Linear, nn.Conv2d))
        if params == "all" or (linear and (kind == "weight" or params == "layers")):
            counted.setdefault(layer, {})[name] = parameter
    if not counted:
        raise ValueError(f"the network has no parameters to count as {params!r}; choose params='all'")
    return counted


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError when an option is none of its choices, with the nearest one."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: not one of {', '.join(choices)}{near_match(value, choices)}")


def first_line(error: Exception) -> str:
    """What PyTorch says, without the advice that follows."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def active(parameter: Tensor, name: str, mask) -> Tensor:
    """Bool tensor of a parameter's active coordinates: its mask, or all of it."""
    if mask is None or name not in mask:
        return torch.ones_like(parameter, dtype=torch.bool)
    return mask[name].to(parameter.device, torch.bool)


def require_gradients(network: nn.Module, wanted: bool) -> None:
    """Switch gradients by all parameters that can have one on or off."""
    for parameter in network.parameters():
        parameter.requires_grad_(wanted and (parameter.is_floating_point() or parameter.is_complex()))


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

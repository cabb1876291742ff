"""Which parameters a measurement counts, and the state in which a network is measured."""

import contextlib
import functools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from helper.schema.values import near_match

PARAMS = ("layers", "weights", "all")
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # BatchNorm's and InstanceNorm's base
NORMALISATION_NAMES = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, NORMALISATIONS)}
UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # what a network that does not run like this raises
CURES = {  # words of PyTorch's -> advice
    "use_reentrant": "call torch.utils.checkpoint with use_reentrant=False",
    "inplace operation": "use inplace=False there",
    "is not implemented": "write that operation by others which have it; the Fisher trace needs first derivatives only",
}
Layers = dict[str, dict[str, nn.Parameter]]  # layer -> parameter name -> parameter


def counted_parameters(network: nn.Module, params: str) -> Layers:
    """{layer: {parameter name: parameter}} that count; one that modules share counts once, for the first of them.

    layers: every weight and bias of the network, wherever it lives, but those of normalisations (BatchNorm, LayerNorm,
    GroupNorm, InstanceNorm, RMSNorm and what is derived from them); weights: without the biases; all: every parameter.
    A parameter of the network itself is a layer of its own. Integers, which have no gradient, never count.

    Raises:
        ValueError: nothing counts, or something that is complex.
    """
    one_of("params", params, PARAMS)
    counted: Layers = {}
    for name, parameter in network.named_parameters():
        if counts(network, name, params) and not is_integer(parameter):
            counted.setdefault(name.rpartition(".")[0] or name, {})[name] = parameter
    if not counted:
        raise ValueError(f"the network has no parameters to count as {params!r}; choose params='all'")
    for name in (name for parameters in counted.values() for name, p in parameters.items() if p.is_complex()):
        raise ValueError(f"{name} is complex: the traces are about real parameters; keep its real and imaginary parts instead")
    return counted


def counts(network: nn.Module, name: str, params: str) -> bool:
    """Whether a parameter is among those that `params` names."""
    layer, _, kind = name.rpartition(".")
    if params == "all":
        return True
    return not is_normalisation(module_at(network, layer)) and (params == "layers" or not is_bias(kind))


def is_normalisation(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's normalisations, derived from one, or TorchScript's version of one."""
    scripted = getattr(module, "original_name", None)
    return isinstance(module, NORMALISATIONS) or scripted in NORMALISATION_NAMES


def is_bias(kind: str) -> bool:
    """Whether a parameter is called as biases are: `bias`, an LSTM's `bias_ih_l0`, attention's `in_proj_bias`."""
    return "bias" in kind.split("_")


def is_integer(parameter: Tensor) -> bool:
    return not (parameter.is_floating_point() or parameter.is_complex())


def uncounted(network: nn.Module, params: str) -> tuple[str, ...]:
    """Names of the parameters with a gradient that `counted_parameters` leaves out."""
    names = (name for name, parameter in network.named_parameters() if not is_integer(parameter))
    return tuple(name for name in names if not counts(network, name, params))


def module_of(network: nn.Module, layer: str) -> nn.Module:
    """The module of a counted layer; the network for a parameter of its own."""
    return network if layer in dict(network.named_parameters(recurse=False)) else module_at(network, layer)


def module_at(network: nn.Module, path: str) -> nn.Module:
    """`get_submodule`, which TorchScript does not have."""
    return functools.reduce(getattr, path.split("."), network) if path else network


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError when an option is none of its choices, with the nearest one."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: not one of {', '.join(choices)}{near_match(value, choices)}")


def explained(error: Exception) -> str:
    """What PyTorch says in its first sentence, and what can be done about it."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    cures = (cure for words, cure in CURES.items() if words in said)
    return "; ".join([said.split(". ")[0].rstrip("."), *cures])


def active(parameter: Tensor, name: str, mask) -> Tensor:
    """Bool tensor of a parameter's active coordinates: its mask, or all of it."""
    if mask is None or name not in mask:
        return torch.ones_like(parameter, dtype=torch.bool)
    return mask[name].to(parameter.device, torch.bool)


def require_gradients(network: nn.Module, wanted: bool) -> None:
    """Switch gradients by all parameters that can have one on or off."""
    for parameter in network.parameters():
        parameter.requires_grad_(wanted and not is_integer(parameter))


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

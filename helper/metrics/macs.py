"""Multiply-accumulates of one forward pass."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helper.mask import count as n_active
from helper.metrics.parameters import evaluation_mode


def count_macs(network: nn.Module, input_shape: tuple[int, ...], mask: Mapping[str, Tensor] | None = None) -> tuple[int, int]:
    """(dense, active) multiply-accumulates of one example through the weights of its linear maps and convolutions.

    A weight of a Linear layer is used once, one of a convolution once for each output position: the sum over weights of
    positions x elements, and of positions x elements that the mask leaves.

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


def uses_of_weights(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """{weight name: how often each of its elements is multiplied in one example's forward pass}.

    Of the parameters that are an operand of a matrix product or a convolution, wherever they live: of Linear and convolution
    layers, attention's projections, recurrent layers. Of one of which parts are used more often than others, the mean.
    Computed on the CPU, where no graph has to be compiled for it.
    """
    return watched(network, input_shape).uses()


def uncounted_macs(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one example in products that no parameter is an operand of, such as those of attention."""
    return watched(network, input_shape).of_no_weight


@torch.no_grad()
def watched(network: nn.Module, input_shape: tuple[int, ...]) -> "Products":
    """A forward pass of one example in eval mode."""
    if next(network.parameters()).device.type != "cpu":
        network = copy.deepcopy(network).cpu()
    products = Products(network)
    with evaluation_mode(network), plain_attention(), products:
        network(torch.zeros(1, *input_shape))
    return products


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without PyTorch's fused operations for whole attention layers, in which weights cannot be told from each other."""
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


class Products(TorchDispatchMode):
    """Adds up the multiply-accumulates of every operation that multiplies matrices, by the parameter that it multiplies with.

    Storages tell parameters: their views, such as the parts of attention's joint projection, are theirs too. So is what is
    computed from parameters and buffers alone and has as many elements as a parameter, as of weight and spectral norm. What
    that computation takes is of no example, and not counted.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        parameters = {name: p for name, p in network.named_parameters() if p.numel()}
        self.names: dict[int | None, str | None] = {storage_of(buffer): None for buffer in network.buffers()}
        self.names |= {storage_of(p): name for name, p in parameters.items()}
        self.names.pop(None, None)
        self.sizes = {name: p.numel() for name, p in parameters.items()}
        self.computed: list[Tensor] = []  # alive, so that no other tensor gets their storages
        self.macs: dict[str, int] = {}
        self.of_no_weight = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes longer than a small run, to hide this class from it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = tensors_in((args, kwargs)), tensors_in(result)
        if given and all(storage_of(tensor) in self.names for tensor in given):
            self.follow(given, made)
            return result
        for tensor in made if function._schema.is_mutable else ():
            self.names.pop(storage_of(tensor), None)
        for macs, operands in products_of(function._schema.name.removeprefix("aten::"), args, result):
            names = (self.names.get(storage_of(operand)) for operand in operands)
            name = next((name for name in names if name is not None), None)
            if name is None:
                self.of_no_weight += macs
            else:
                self.macs[name] = self.macs.get(name, 0) + macs
        return result

    def follow(self, given: list[Tensor], made: list[Tensor]) -> None:
        """Tensors are made of parameters and buffers alone."""
        for tensor in made:
            if storage_of(tensor) not in (None, *self.names):
                names = (self.names[storage_of(one)] for one in given if one.numel() == tensor.numel())
                self.names[storage_of(tensor)] = next((name for name in names if name is not None), None)
                self.computed.append(tensor)

    def uses(self) -> dict[str, int]:
        return {name: round(macs / self.sizes[name]) for name, macs in self.macs.items()}


def tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def storage_of(tensor: Tensor) -> int | None:
    """What tells its memory from others'; None of a sparse tensor."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


MATRICES = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}


def products_of(name: str, args: tuple, result: Any) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """(multiply-accumulates, operands) of the products that an operation is."""
    if name in MATRICES:
        first, second = args[MATRICES[name] : MATRICES[name] + 2]
        columns = second.shape[0] if name == "linear" else second.shape[-1] if second.ndim > 1 else 1
        yield first.numel() * columns, (second, first)
    elif name == "convolution":
        inputs, weight, transposed = args[0], args[1], args[6]
        positions = (inputs if transposed else result)[:, 0].numel()
        yield positions * weight.numel(), (weight,)
    elif name.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        yield query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]), (query,)
    elif name == "_trilinear":  # of a Bilinear layer
        weight = args[1]
        yield result[..., 0].numel() * weight.numel(), (weight,)
    elif name == "mkldnn_rnn_layer":
        for weight in args[1:3]:
            yield args[0][..., 0].numel() * weight.numel(), (weight,)

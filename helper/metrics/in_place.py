"""A network is measured itself, no copy of it, and is afterwards as it was, to the bit.

A copy need not be the network: what a closure, a wrapped or bound method, a list or a weak reference holds is still the
original's, so that derivatives by the copy's parameters are zero.
"""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from helper.metrics.parameters import full_precision, require_gradients

CONTAINERS = (dict, OrderedDict, list, set)
HALF = (torch.float16, torch.bfloat16)
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(network: nn.Module) -> nn.Module:
    """What DataParallel, DistributedDataParallel and torch.compile have wrapped: the same function and parameters."""
    while True:
        if isinstance(network, WRAPPERS):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod
        else:
            return network


def without_prefix(mask: Mapping[str, Tensor] | None, wrapper: nn.Module, network: nn.Module) -> Mapping[str, Tensor] | None:
    """A mask whose names may be those of the wrapper's parameters, by the names of the network's."""
    outer, inner = (next((name for name, _ in module.named_parameters()), "") for module in (wrapper, network))
    prefix = outer.removesuffix(inner)
    return {name.removeprefix(prefix): part for name, part in mask.items()} if mask and prefix else mask


def refuse_network(network: nn.Module) -> None:
    """Raise ValueError when per-example gradients are not defined, or weights are none that a mask could be about."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(f"{name} has no running statistics: its batch mixes the examples, so no example has a gradient")
        if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in module._parameters:
            raise ValueError(
                f"{name}.weight is computed from other parameters (pruning or another parametrisation); make it permanent, "
                "for torch.nn.utils.prune by prune.remove, and give a mask"
            )
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet; call the network once on an example before it is measured")
        if parameter.is_inference():
            raise ValueError(f"{name} was made under torch.inference_mode and has no gradient; measure a copy.deepcopy")
        if not parameter.is_leaf:
            raise ValueError(f"{name} is computed from other tensors: it is no parameter of its own that has a gradient")


@contextlib.contextmanager
def measured(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network ready for an estimator inside, and as it was afterwards, also when something is raised.

    Inside every module is in eval mode and every parameter at least in float32, differentiable, without a gradient or
    hooks on it; gradients are on whatever the caller has switched off; autocast, TF32, torch.compile and the fused kernels
    of attention, which have no second derivatives, are off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(full_precision(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if "torch._dynamo" in sys.modules:  # without it nothing can be compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        kept = stack.enter_context(untouched(network))
        for module in network.modules():
            module.training = False
        require_gradients(network, True)
        kept.prepare(network)
        yield


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator["Kept"]:
    """Whatever is done to a network inside, it is as before afterwards, to the bit.

    That includes modules that it calls without registering them: each is kept before its first call.
    """
    kept = Kept()
    kept.keep(network)

    def called(module: nn.Module, args: Any) -> None:
        if module not in kept.modules:
            kept.keep(module)
            kept.prepare(module)

    handle = nn.modules.module.register_module_forward_pre_hook(called)
    try:
        yield kept
    finally:
        restored = False
        try:
            handle.remove()
            kept.restore()
            restored = True
        finally:
            if not restored:  # a signal's handler has raised in between
                handle.remove()
                kept.restore()


@dataclass
class KeptTensor:
    """A parameter, buffer or tensor attribute as it was."""

    data: Tensor  # its own memory
    values: Tensor  # a copy of it
    requires_grad: bool
    gradient: Tensor | None
    hooks: list[tuple[dict, dict]]  # (of a tensor, what was in it)


class Kept:
    """Modules and their tensors as they were: modes, attributes, hooks, values, types, gradients."""

    def __init__(self) -> None:
        self.modules: dict[nn.Module, tuple[bool, dict[str, Any], list[tuple[Any, Any]]]] = {}
        self.tensors: dict[Tensor, KeptTensor] = {}

    def keep(self, network: nn.Module) -> None:
        """Note the present state of a network, as far as it is not known yet."""
        for module in (m for m in network.modules() if m not in self.modules):
            attributes = dict(vars(module))
            containers = [(v, v.copy()) for v in attributes.values() if type(v) in CONTAINERS]
            self.modules[module] = (module.training, attributes, containers)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False), *attributes.values())
            for tensor in own:
                if isinstance(tensor, Tensor) and tensor not in self.tensors and not is_lazy(tensor):
                    self.tensors[tensor] = kept_tensor(tensor)

    def prepare(self, network: nn.Module) -> None:
        """Parameters at least in float32, without gradients and hooks."""
        for parameter in network.parameters():
            parameter.grad = None
            for hooks, _ in self.tensors[parameter].hooks:
                hooks.clear()
        if any(p.dtype in HALF for p in network.parameters()):
            network.float()

    def restore(self) -> None:
        """Put back what has changed. Can be repeated when an exception has come in between."""
        for module, (training, attributes, containers) in self.modules.items():
            refill(vars(module), attributes)
            for container, content in containers:
                refill(container, content)
            module.training = training
        for tensor, former in self.tensors.items():
            if tensor.dtype != former.data.dtype or place(tensor) != place(former.data):
                tensor.data = former.data
            if not identical(tensor, former.values):
                with torch.no_grad():
                    tensor.copy_(former.values)
            if tensor.is_leaf:
                tensor.requires_grad_(former.requires_grad)
                tensor.grad = former.gradient
            for hooks, content in former.hooks:
                refill(hooks, content)


def kept_tensor(tensor: Tensor) -> KeptTensor:
    hooks = [h for h in (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)) if h]
    gradient = tensor.grad if tensor.is_leaf else None
    return KeptTensor(tensor.data, tensor.detach().clone(), tensor.requires_grad, gradient, [(h, h.copy()) for h in hooks])


def refill(container: Any, content: Any) -> None:
    """Put back into a dict, list or set what was in it."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, set):
        container &= content
        container |= content
    elif list(container) != list(content) or any(container[key] is not value for key, value in content.items()):
        for key in container.keys() - content.keys():
            del container[key]
        container.update(content)
        if list(container) != list(content):  # in another order
            for key in content:
                container[key] = container.pop(key)


def place(tensor: Tensor) -> int | None:
    """Where the values of a tensor are; None for one, such as a sparse tensor, that has no single place."""
    return tensor.data_ptr() if tensor.layout == torch.strided else None


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits, as far as they have a layout to compare."""
    if a.layout != torch.strided:
        return True
    a, b = (t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)

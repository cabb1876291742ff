"""Optimisers: parameters -> torch.optim.Optimizer."""

import functools
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn


@functools.cache
def eager(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A class of torch.optim with its own methods, but not the wrappers that hide them from torch.compile.

    At their first call these import the compiler, which takes longer than a small run; optimisers are not compiled here.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(optimizer.__name__, (optimizer,), methods)


def sgd(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.Optimizer:
    return eager(torch.optim.SGD)(parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)


def adam(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return eager(torch.optim.Adam)(parameters, lr, weight_decay=weight_decay)


def adamw(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam whose weight decay is not part of the gradient (Loshchilov & Hutter 2019)."""
    return eager(torch.optim.AdamW)(parameters, lr, weight_decay=weight_decay)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}


def tensors_kept(optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> int:
    """Tensors of a weight's shape that an optimiser keeps for each weight, such as momenta."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    made = optimizer([weight])
    made.step()
    kept = made.state[weight].values()
    return sum(isinstance(value, torch.Tensor) and value.shape == weight.shape for value in kept)

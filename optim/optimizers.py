"""Optimisers: (parameters, config) -> torch.optim.Optimizer."""

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from helper.schema.registry import reads

if TYPE_CHECKING:
    from optim.config import TrainConfig


@functools.cache
def eager(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A class of torch.optim with its own methods, but not the wrappers that hide them from torch.compile.

    At their first call these import the compiler, which takes longer than a small run; optimisers are not compiled here.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(optimizer.__name__, (optimizer,), methods)


@reads("momentum", "nesterov")
def sgd(parameters: Iterable[nn.Parameter], config: "TrainConfig") -> torch.optim.Optimizer:
    return eager(torch.optim.SGD)(
        parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )


@reads()
def adam(parameters: Iterable[nn.Parameter], config: "TrainConfig") -> torch.optim.Optimizer:
    return eager(torch.optim.Adam)(parameters, config.lr, weight_decay=config.weight_decay)


OPTIMIZERS = {"sgd": sgd, "adam": adam}


def tensors_kept(config: "TrainConfig") -> int:
    """Tensors of a weight's shape that the optimiser keeps for each weight, such as momenta."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    optimizer = OPTIMIZERS[config.optimizer_name]([weight], config)
    optimizer.step()
    kept = optimizer.state[weight].values()
    return sum(isinstance(value, torch.Tensor) and value.shape == weight.shape for value in kept)

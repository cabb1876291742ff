"""One network trained by several processes, each with its share of every batch."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helper.distributed import size, summed


def parallel(network: nn.Module, device: torch.device, *, sync_batch_norm: bool) -> nn.Module:
    """A training forward pass whose backward pass leaves means over the processes in the network's gradients.

    Args:
        network: on `device`; its parameters and buffers are shared. With one process it is returned itself.
        sync_batch_norm: normalise by the statistics of the global batch; otherwise each process by those of its share, and
            the first one's running statistics are kept.
    """
    if size() == 1:
        return network
    if sync_batch_norm:
        network = synchronised(network)
    devices = [device.index] if device.type == "cuda" else None
    replica = Replica(network).to(device)
    return nn.parallel.DistributedDataParallel(replica, device_ids=devices, find_unused_parameters=True)


class Replica(nn.Module):
    """A network and a parameter that it does not use.

    Unless it looks for unused parameters, DistributedDataParallel changes the order of its buckets after a process's first
    step, and with it the order in which gradients are added up: a resumed run would not end bit for bit as an uninterrupted
    one. And where it looks for them and finds none, it warns.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.unused = network, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def synchronised(network: nn.Module) -> nn.Module:
    """The same network with `GlobalBatchNorm` in place of BatchNorm, for training only; it shares all tensors."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    duplicate = copy.deepcopy(network, shared).train()
    for module in list(duplicate.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, GlobalBatchNorm(child))
    return duplicate


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, as often differentiable as one likes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.apply(gradient)


class GlobalBatchNorm(nn.Module):
    """A BatchNorm layer in training that normalises by the statistics of all processes' examples taken together.

    Built of differentiable sums over the processes: it runs on any device, takes empty shares, and can be differentiated
    twice, none of which nn.SyncBatchNorm can.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.statistics = [layer]  # in a list: no part of this module, so that nobody sends its buffers around

    def forward(self, x: Tensor) -> Tensor:
        (layer,), given = self.statistics, x.dtype
        x = x if given == torch.float64 else x.float()
        over, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = x.new_full((1,), x.numel() // x.shape[1])
        total = Sum.apply(torch.cat([x.sum(over), count]))
        mean, n = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean.view(shape)
        variance = Sum.apply(centred.square().sum(over)) / n
        self.follow(mean.detach(), variance.detach() * n / (n - 1))
        scale = (variance + layer.eps).rsqrt()
        if self.weight is not None:
            return torch.addcmul(self.bias.view(shape), centred, (scale * self.weight).view(shape)).to(given)
        return (centred * scale.view(shape)).to(given)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as nn.BatchNorm does, with the unbiased variance."""
        (layer,) = self.statistics
        if layer.running_mean is None:
            return
        layer.num_batches_tracked.add_(1)
        momentum = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean, momentum)
        layer.running_var.lerp_(variance, momentum)

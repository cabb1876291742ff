"""One network trained by several processes, each with its share of every batch."""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helper.processes.group import world_size
from helper.processes.sharing import stack_from_processes, sum_over_processes


def parallel(network: nn.Module, device: torch.device, *, sync_batch_norm: bool) -> nn.Module:
    """A training forward pass whose backward pass leaves means over the processes in the network's gradients.

    Args:
        network: on `device`; its parameters and buffers are shared. With one process it is returned itself.
        sync_batch_norm: let its BatchNorm layers normalise by the statistics of the global batch, see `synchronise`;
            otherwise each process does by those of its share, and the first one's running statistics are kept.
    """
    if world_size() == 1:
        return network
    if sync_batch_norm:
        synchronise(network)
    devices = [device.index] if device.type == "cuda" else None
    replica = Replica(network).to(device)
    shared = nn.parallel.DistributedDataParallel(replica, device_ids=devices, find_unused_parameters=True)
    shared.broadcast_buffers = not sync_batch_norm  # at every step; with global statistics they come out equal by themselves
    return shared


class Replica(nn.Module):
    """A network and a parameter that it does not use.

    Unless it looks for unused parameters, DistributedDataParallel changes the order of its buckets after a process's first
    step, and with it the order in which gradients are added up: a resumed run would not end bit for bit as an uninterrupted
    one. And where it looks for them and finds none, it warns.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.unused = network, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, view: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Args:
        view: computes in the network's place, with its parameters.
        """
        return (view or self.network)(x)


def synchronise(network: nn.Module) -> None:
    """Let a network's BatchNorm layers, in training, normalise by the statistics of all processes' examples together.

    The layers stay where they are and what they are. A copy of the network would not do: a closure in it, such as
    `self.f = lambda x: self.norm(x)`, goes on calling the layers of the original.
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = types.MethodType(global_batch_norm, layer)  # a method, so that a copy calls its own layers


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, as often differentiable as one likes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.apply(gradient)


def global_batch_norm(layer: _BatchNorm, x: Tensor) -> Tensor:
    """A BatchNorm layer's forward pass, in training by the statistics of all processes' examples taken together.

    It runs on any device, takes empty shares, and can be differentiated as often as one likes, none of which
    nn.SyncBatchNorm can. In eval mode it is the layer's own.

    Raises:
        ValueError: there is a single value in a channel, whose variance is none; on other devices than the CPU it is NaN,
            because to look would be to wait.
    """
    if not layer.training:
        return type(layer).forward(layer, x)
    given = x.dtype
    x = x if given == torch.float64 else x.float()
    weight = x.new_ones(x.shape[1]) if layer.weight is None else layer.weight
    bias = x.new_zeros(x.shape[1]) if layer.bias is None else layer.bias
    output, mean, variance, n = Normalisation.apply(x, weight, bias, layer.eps)
    if n.device.type == "cpu" and (n == 1).any():
        raise ValueError("Expected more than 1 value per channel when training, got one example in all processes together")
    follow(layer, mean, variance * n / (n - 1))
    return output.to(given)


@torch.no_grad()
def follow(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as nn.BatchNorm does, with the unbiased variance."""
    if layer.running_mean is None:
        return
    layer.num_batches_tracked.add_(1)
    momentum = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, momentum)
    layer.running_var.lerp_(variance, momentum)


class Normalisation(torch.autograd.Function):
    """weight · (x - mean) / sqrt(variance + eps) + bias, with the moments of all processes' examples in each channel.

    Returns the output, mean and biased variance (channels,), and the number of values in a channel. Forward pass and first
    backward pass are made of PyTorch's own kernels of BatchNorm, with one message each; a backward pass that is to be
    differentiated itself (`create_graph`) is written out in elementary operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, n = global_moments(x)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.mark_non_differentiable(mean, variance, n)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, n

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, n = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *differentiable_gradients(gradient, x, weight, n, ctx.eps), None
        by_weight, by_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if len(x):  # the kernel divides by it
            constants, wanted = (weight, mean, variance, None, None, False, ctx.eps), (False, True, True)
            _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(gradient, x, *constants, wanted)
        mean_weight, mean_bias = stack_from_processes(torch.stack([by_weight, by_bias])).sum(0) / n
        factor = weight * (variance + ctx.eps).rsqrt()  # by_x = factor · (gradient - mean_bias - normalised x · mean_weight)
        by_x = F.batch_norm(x, mean, variance, -factor * mean_weight, -factor * mean_bias, eps=ctx.eps)
        by_x.addcmul_(gradient, factor.view(-1, *[1] * (x.ndim - 2)))
        return by_x, by_weight, by_bias, None


def differentiable_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, n: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Normalisation` returns from its backward pass, as a function of the gradient, x and weight."""
    over, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
    centred = x - (Sum.apply(x.sum(over)) / n).view(shape)
    scale = (Sum.apply(centred.square().sum(over)) / n + eps).rsqrt()
    normalised = centred * scale.view(shape)
    by_weight, by_bias = (gradient * normalised).sum(over), gradient.sum(over)
    mean_weight, mean_bias = Sum.apply(torch.stack([by_weight, by_bias])) / n
    correlated = gradient - mean_bias.view(shape) - normalised * mean_weight.view(shape)
    return correlated * (scale * weight).view(shape), by_weight, by_bias


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (channels,) over all processes' x (examples, channels, ...), and how many values each is of.

    One message; the processes' moments are merged after Chan, Golub & LeVeque 1983.
    """
    own = x.new_zeros(3, x.shape[1])
    if len(x):
        own[0], own[1] = torch.batch_norm_update_stats(x, None, None, 0.0)
        own[2] = x.numel() / x.shape[1]
    means, variances, counts = stack_from_processes(own).unbind(1)
    n = counts.sum(0)
    mean = (counts * means).sum(0) / n
    return mean, (counts * (variances + (means - mean).square())).sum(0) / n, n

"""Scores by derivatives of the loss on training data.

The network is scored as it would train: BatchNorm normalises by the statistics of each batch, and what draws at random, such
as dropout, is off. Each score comes from all the data, whatever the batches' sizes: sums over examples, divided by their
number. Without BatchNorm a batch is cut into pieces that fit into the memory bound, the same ones for every bound that admits
LARGEST_CHUNK examples. BatchNorm couples the examples of a batch, so that it cannot be cut: then a batch is what takes memory.
"""

import contextlib
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.masks.context import Context
from helper.metrics.in_place import measured
from helper.metrics.operations import observe
from helper.metrics.parameters import UNFIT, explained
from helper.metrics.subject import LARGEST_CHUNK

BATCH_NORM = nn.modules.batchnorm._BatchNorm
BY_STATISTICS = nn.modules.batchnorm._NormBase  # also InstanceNorm, which can have running statistics as well
TEMPERATURE = 200  # what GraSP divides logits by (Wang et al. 2020)
GRADIENT_COPIES, PRODUCT_COPIES = 2, 4  # of an example's activations that a gradient and a Hessian product take at most


def gradient(context: Context) -> dict[str, Tensor]:
    """|dL/dw| of the mean loss, of pruned weights as well: what growth by the dense gradient asks for (Evci et al. 2020)."""
    with as_trained(context) as weights:
        return {name: g.abs() for name, g in mean_gradient(context, weights).items()}


def snip(context: Context) -> dict[str, Tensor]:
    """|w dL/dw| of the mean loss L: what a weight's mask does to the loss, |dL/dm| at m = 1 (Lee et al. 2019)."""
    with as_trained(context) as weights:
        return {name: (weights[name].detach() * g).abs() for name, g in mean_gradient(context, weights).items()}


def grasp(context: Context) -> dict[str, Tensor]:
    """w . (H g): to first order, removing w adds -2 w . (H g) to the gradient flow |g|^2, and what adds most goes first.

    g is the gradient of the mean loss, of logits divided by 200, by the active weights that may be pruned; H g is the product
    with its Hessian by these, of all the data with the g of all the data (Wang et al. 2020, eq. 8; S there is -w . (H g), of
    which the largest are removed). What is pruned has score 0.
    """
    with as_trained(context) as weights:
        flow = mean_gradient(context, weights, TEMPERATURE)
        flow = {name: g.masked_fill(~context.mask[name].to(g.device), 0) for name, g in flow.items()}
        product = hessian_product(context, weights, flow, TEMPERATURE)
        return {name: weight.detach() * product[name] for name, weight in weights.items()}


@contextlib.contextmanager
def as_trained(context: Context) -> Iterator[dict[str, nn.Parameter]]:
    """{name: weight} of a context's network in the state in which it is scored; it is as it was afterwards."""
    network = context.network
    with measured(network, device_of(context)):
        for module in network.modules():
            module.training = isinstance(module, BY_STATISTICS)
        context.mask.apply_(network)
        yield {name: network.get_parameter(name) for name in context.weights}


def mean_gradient(context: Context, weights: dict[str, nn.Parameter], temperature: float = 1) -> dict[str, Tensor]:
    """Of the mean cross-entropy of all batches, of logits divided by a temperature. ValueError: no examples."""
    total, n = {name: torch.zeros_like(weight) for name, weight in weights.items()}, 0
    for inputs, labels in pieces(context, GRADIENT_COPIES):
        gradients = derivatives(summed_loss(context.network, inputs, labels, temperature), weights)
        for name, part in gradients.items():
            total[name] += part
        n += len(labels)
    return {name: part / n for name, part in total.items()}


def hessian_product(
    context: Context, weights: dict[str, nn.Parameter], direction: dict[str, Tensor], temperature: float
) -> dict[str, Tensor]:
    """H v of the same loss: the sum over the batches of each one's Hessian times the whole direction."""
    total, n = {name: torch.zeros_like(weight) for name, weight in weights.items()}, 0
    for inputs, labels in pieces(context, PRODUCT_COPIES):
        slope = slope_along(direction, summed_loss(context.network, inputs, labels, temperature), weights)
        for name, part in derivatives(slope, weights).items():
            total[name] += part
        n += len(labels)
        del slope  # and its graph, before the next one is made
    return {name: part / n for name, part in total.items()}


def slope_along(direction: dict[str, Tensor], loss: Tensor, weights: dict[str, nn.Parameter]) -> Tensor:
    """The derivative of a loss along a direction of the weights, which can be differentiated once more."""
    gradients = derivatives(loss, weights, create_graph=True)
    return torch.stack([(gradients[name] * part).sum() for name, part in direction.items()]).sum()


def summed_loss(network: nn.Module, inputs: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy in nats, summed over the examples. ValueError: the network fails on them."""
    try:
        return F.cross_entropy(network(inputs) / temperature, labels, reduction="sum")
    except UNFIT as error:
        raise ValueError(f"the network fails on a batch of {len(inputs)} training examples: {explained(error)}") from error


def derivatives(value: Tensor, weights: dict[str, nn.Parameter], create_graph: bool = False) -> dict[str, Tensor]:
    """{name: derivative}, zero of a weight that the value does not depend on. ValueError: there is none."""
    try:
        found = torch.autograd.grad(
            value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    except UNFIT as error:
        raise ValueError(f"the loss cannot be differentiated by the weights: {explained(error)}") from error
    return dict(zip(weights, found, strict=True))


def pieces(context: Context, copies: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, classes) of the data, batch by batch, as much at once as may be. ValueError: there are no examples."""
    size, dtype, device = 0, dtype_of(context.network), device_of(context)
    for inputs, labels in context.batches():
        if len(inputs) == 0:
            continue
        inputs = inputs.to(device, dtype if inputs.is_floating_point() else None)
        inputs = inputs.contiguous()  # second derivatives of convolutions and BatchNorm take longer in channels_last
        size = size or piece_size(context, inputs, copies)
        yield from zip(inputs.split(size), labels.to(device, torch.long).split(size), strict=True)
    if size == 0:
        raise ValueError("there is no training example to score the weights on; does --limit_train leave any?")


def piece_size(context: Context, inputs: Tensor, copies: int) -> int:
    """Examples at once: all of a batch where they are coupled, else what fits into memory."""
    if any(isinstance(module, BATCH_NORM) for module in context.network.modules()):
        return sys.maxsize
    each = copies * observe(context.network, inputs[:2]).bytes_per_example
    return max(1, min(LARGEST_CHUNK, int(context.memory_mb * 2**20 / each)))


def device_of(context: Context) -> torch.device:
    return next(iter(context.weights.values())).device


def dtype_of(network: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())

"""SynFlow: how much of all the paths from inputs to outputs goes through a weight (Tanaka et al. 2020). It reads no data."""

import torch
from torch import Tensor, nn

from helper.masks.context import Context
from helper.metrics.in_place import measured
from helper.metrics.parameters import UNFIT, default_dtype, explained, is_bias

BATCH_NORM = nn.modules.batchnorm._BatchNorm
# activations that are not |x| for positive x, or not exactly; as functions within a forward pass they are refused
BENT = (
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Hardtanh,
    nn.Hardsigmoid, nn.Hardswish, nn.GELU, nn.SiLU, nn.Mish,
)  # fmt: skip


def synflow(context: Context) -> dict[str, Tensor]:
    """|w dR/dw|, where R = 1' (product of the layers' |W|) 1 is the sum of the outputs of an example of ones.

    R is that of the network whose parameters are their magnitudes and whose biases are zero, in float64. BatchNorm is as in a
    fresh network, with mean 0 and variance 1: it multiplies by the magnitude of its scale and adds nothing. An activation
    module is the identity, as ReLU is of what is positive. All of that is done in the network itself, and undone.

    Raises:
        ValueError: R overflows, or is not proportional to the input: then no product of magnitudes is behind it.
    """
    if context.input_shape is None:
        raise ValueError("synflow needs the shape of an example, input_shape")
    network, device = context.network, next(iter(context.weights.values())).device
    with measured(network, device), default_dtype(torch.float64):
        straighten(network)
        context.mask.apply_(network)
        ones = torch.ones((1, *context.input_shape), device=device, requires_grad=True)
        weights = {name: network.get_parameter(name) for name in context.weights}
        flow, by_input, *by_weight = derivatives(network, ones, list(weights.values()))
        refuse_flow(flow, by_input, by_weight)
        return {name: weight.detach() * part for (name, weight), part in zip(weights.items(), by_weight, strict=True)}


@torch.no_grad()
def straighten(network: nn.Module) -> None:
    """Make a network the product of its weights' magnitudes, in float64."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    for name, parameter in network.named_parameters():
        if is_bias(name.rpartition(".")[2]):
            parameter.zero_()
        else:
            parameter.abs_()
    for module in network.modules():
        if isinstance(module, BATCH_NORM) and module.running_mean is not None:
            module.running_mean.zero_()
            module.running_var.fill_(1)
        elif isinstance(module, BENT):
            module.forward = unchanged


def unchanged(x: Tensor) -> Tensor:
    return x


def derivatives(network: nn.Module, ones: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """R, and its derivatives by the input and by each weight. ValueError: the network fails."""
    try:
        flow = network(ones).sum()
        found = torch.autograd.grad(flow, [ones, *weights], allow_unused=True, materialize_grads=True)
    except UNFIT as error:
        raise ValueError(f"synflow cannot run the network on an example of ones: {explained(error)}") from error
    return [flow.detach(), *found]


def refuse_flow(flow: Tensor, by_input: Tensor, by_weight: list[Tensor]) -> None:
    """Raise ValueError where R or a derivative is not finite, or R is not its derivative by the input times the input."""
    if not all(part.isfinite().all() for part in (flow, by_input, *by_weight)):
        raise ValueError(
            "synflow overflows float64: the weights' magnitudes, summed over all paths, exceed 1e308; use a network with fewer "
            "layers or smaller weights, or another --prune_method"
        )
    if not torch.isclose(by_input.sum(), flow, rtol=1e-6, atol=0):
        raise ValueError(
            "synflow scores networks that are linear for positive inputs, and this one is not: it has an activation or a "
            "normalisation that is no module known to it; use ReLU and BatchNorm, or another --prune_method"
        )

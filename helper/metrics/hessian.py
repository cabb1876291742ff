"""Trace of the Hessian of the mean cross-entropy over the active parameters."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.metrics.estimate import Estimate, grouped_estimate, sample_groups
from helper.metrics.parameters import active, counted_parameters, full_precision, measurable_copy

Product = Callable[[list[Tensor]], list[Tensor]]


def pyhessian_product(network: nn.Module, inputs: Tensor, labels: Tensor) -> Product:
    """v -> Hv by PyHessian, on one batch, over the parameters that require gradients; its graph is built once."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        operator = hessian(network, F.cross_entropy, data=(inputs, labels), cuda=inputs.is_cuda)
    network.zero_grad(set_to_none=True)  # its gradients hold their own graph: a cycle that would never be freed
    return lambda vector: list(hessian_vector_product(operator.gradsH, operator.params, vector))


def eigenthings_product(network: nn.Module, inputs: Tensor, labels: Tensor) -> Product:
    """v -> Hv by hessian-eigenthings, on one batch, over the parameters that require gradients."""
    from hessian_eigenthings.operators.hessian import HessianOperator

    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    operator = HessianOperator(
        network,
        [(inputs, labels)],
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        param_filter=lambda name, parameter: parameter.requires_grad,
    )

    def product(vector: list[Tensor]) -> list[Tensor]:
        flat = operator.matvec(torch.cat([v.flatten() for v in vector]))
        return [p.view_as(w) for p, w in zip(flat.split([w.numel() for w in wanted]), wanted, strict=True)]

    return product


HESSIAN_METHODS = {"pyhessian": pyhessian_product, "eigenthings": eigenthings_product}


def hessian_trace(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    mask=None,
    *,
    method: str = "pyhessian",
    max_samples: int = 1000,
    n_probes: int = 5,
    batch_size: int = 100,
    params: str = "layers",
    population: int | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Trace of the Hessian of the mean cross-entropy over the active parameters, by Hutchinson's estimator.

    Every batch has Rademacher probes v of its own that are zero on pruned coordinates; v_l.(Hv)_l over the parameters of
    layer l is an unbiased draw of that layer's share of the trace.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode on a copy.
        inputs, labels: (N, ...) examples and (N,) classes that the mean is about, on the network's device.
        mask: weight name -> bool tensor of the weight's shape; pruned coordinates do not count.
        method: the library whose Hessian-vector products are used.
        max_samples: examples that are measured, drawn without replacement.
        n_probes: probes for each batch.
        params: `layers` (Linear and Conv2d), `weights` (without their biases) or `all` (with BatchNorm).
        population: size of the population that the inputs are a random sample of; default: they are all of it.
    Returns:
        Estimate in nats per squared parameter unit; its by_layer traces sum to the value.
    Raises:
        ValueError: fewer than 2 examples, or values that are not finite.
    Source: Ye et al. 2022, eq. 2.1; Hutchinson 1989.
    """
    duplicate = measurable_copy(network)
    layers = counted_parameters(duplicate, params)
    owners = {name: layer for layer, parameters in layers.items() for name in parameters}
    for name, parameter in duplicate.named_parameters():
        parameter.requires_grad_(name in owners)
    counted = {name: p for name, p in duplicate.named_parameters() if name in owners}
    columns = [list(layers).index(owners[name]) for name in counted]
    groups = sample_groups(len(inputs), max_samples, batch_size, generator)
    values = torch.zeros(len(groups), n_probes, len(layers), dtype=torch.float64)
    with full_precision(inputs.device):
        for row, group in enumerate(groups):
            group = group.to(inputs.device)
            product = HESSIAN_METHODS[method](duplicate, inputs[group], labels[group])
            for probe in range(n_probes):
                vector = [rademacher(p, generator) * active(p, name, mask) for name, p in counted.items()]
                draws = [(v * hv).sum() for v, hv in zip(vector, product(vector), strict=True)]
                values[row, probe].index_add_(0, torch.tensor(columns), torch.stack(draws).detach().double().cpu())
    sizes = torch.tensor([len(group) for group in groups])
    return grouped_estimate(values, sizes, population or len(inputs), list(layers), f"{method}:hutchinson")


def rademacher(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs of a parameter's shape, drawn on the CPU."""
    signs = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
    return signs.to(parameter.device, parameter.dtype)

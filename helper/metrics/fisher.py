"""Trace of the Fisher information matrix over the active parameters."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helper.metrics.estimate import Estimate, grouped_estimate, sample_groups
from helper.metrics.parameters import active, counted_parameters, default_dtype, full_precision, measurable_copy
from helper.utils import global_seed


def sampled_label(log_p: Tensor) -> Tensor:
    """(N, 1) log-probability of a label drawn from each prediction."""
    return log_p.gather(1, torch.multinomial(log_p.detach().exp(), 1))


def every_label(log_p: Tensor) -> Tensor:
    """(N, C) sqrt(p_c) log p_c, p fixed: their squared gradients sum to the expectation over labels."""
    return (log_p.detach() / 2).exp() * log_p


# (N, C) log-probabilities -> (N, K) values whose squared gradients, summed over K, have the Fisher trace as their mean
FISHER_METRICS = {"fim_monte_carlo": sampled_label, "fim": every_label}


def nngeometry_diagonal(
    network: nn.Module, inputs: Tensor, layers: dict[str, dict[str, nn.Parameter]], mask, metric: str
) -> Tensor:
    """(len(layers),) traces over the active parameters of each layer, from nngeometry's diagonal representation.

    nngeometry knows nothing of masks and always takes a layer with its bias, so the diagonal is cut to what counts here.
    Its own closed form over all labels takes roots of differences that rounding makes negative on confident networks, so
    both label rules are given to it from here.
    """
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatDiag

    collection = LayerCollection()
    modules = dict(network.named_modules())
    for layer in layers:
        collection.add_layer_from_model(network, modules[layer])

    def values(batch: Tensor) -> Tensor:
        logits = network(batch)
        if not torch.isfinite(logits).all():
            raise ValueError("the network gives logits that are not finite; has its training diverged?")
        return FISHER_METRICS[metric](logits.log_softmax(1))

    loader = DataLoader(TensorDataset(inputs), batch_size=len(inputs))
    backend = TorchHooksJacobianBackend(model=network, function=values, layer_collection=collection)
    with default_dtype(inputs.dtype):
        diagonal = PMatDiag(generator=backend, examples=loader).get_diag()
    traces = []
    for layer, parameters in layers.items():
        piece = diagonal[collection.p_pos[layer] :]  # weight, then bias
        for name, parameter in parameters.items():
            part, piece = piece[: parameter.numel()], piece[parameter.numel() :]
            traces.append((layer, part[active(parameter, name, mask).flatten()].sum()))
    return torch.stack([sum(value for owner, value in traces if owner == layer) for layer in layers])


FISHER_METHODS = {"nngeometry": nngeometry_diagonal}


def fisher_trace(
    network: nn.Module,
    inputs: Tensor,
    mask=None,
    *,
    method: str = "nngeometry",
    metric: str = "fim_monte_carlo",
    max_samples: int = 1000,
    n_probes: int = 5,
    batch_size: int = 100,
    params: str = "layers",
    population: int | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Trace of the true Fisher information, E_x E_{y ~ p(.|x)} ||grad log p(y|x)||^2, over the active parameters.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode on a copy.
        inputs: (N, ...) examples that the mean is about, on the network's device.
        mask: weight name -> bool tensor of the weight's shape; pruned coordinates do not count.
        metric: `fim_monte_carlo` samples labels from the prediction, `fim` sums over all of them (C passes).
        max_samples: examples that are measured, drawn without replacement.
        n_probes: label draws for each example (one suffices for `fim`, which has no label noise).
        params: `layers` (Linear and Conv2d), `weights` (without their biases) or `all` (with BatchNorm).
        population: size of the population that the inputs are a random sample of; default: they are all of it.
    Returns:
        Estimate in nats per squared parameter unit; its by_layer traces sum to the value.
    Raises:
        ValueError: fewer than 2 examples, or values that are not finite.
    Source: Ye et al. 2022, eq. 2.3 and footnote 4.
    """
    duplicate = measurable_copy(network)
    layers = counted_parameters(duplicate, params)
    groups = sample_groups(len(inputs), max_samples, batch_size, generator)
    draws = 1 if metric == "fim" else n_probes
    rows = []
    with full_precision(inputs.device), global_seed(generator):
        for group in groups:
            batch = inputs[group.to(inputs.device)]
            rows.append(torch.stack([FISHER_METHODS[method](duplicate, batch, layers, mask, metric) for _ in range(draws)]))
    values = torch.stack(rows).detach()
    if metric == "fim":
        values = values.expand(-1, 2, -1)  # no label noise: both "draws" are the same number
    sizes = torch.tensor([len(group) for group in groups])
    return grouped_estimate(values, sizes, population or len(inputs), list(layers), f"{method}:{metric}")

"""On the straight line between two states of a network: the weights, the statistics of BatchNorm, the barrier."""

from collections.abc import Iterable

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helper.metrics.parameters import evaluation_mode, full_precision

State = dict[str, Tensor]  # of a network: parameters and buffers by name


def between(a: State, b: State, alpha: float) -> State:
    """(1 - alpha) a + alpha b, exactly a and b at the ends; integer buffers, which only count batches, are those of a."""
    return {name: torch.lerp(start, b[name], alpha) if start.is_floating_point() else start for name, start in a.items()}


def barrier(alphas: numpy.ndarray, losses: numpy.ndarray) -> tuple[float, float, float]:
    """(height, alpha at which it is, largest loss minus the larger end's) of the loss along a line.

    height = max_alpha loss(alpha) - ((1 - alpha) loss(0) + alpha loss(1)), never below 0, which it is at the ends.

    Args:
        alphas: (A,) increasing from 0 to 1; losses: (A,).
    Source: Entezari et al. 2022, definition 1; with equal ends as in Frankle et al. 2020.
    """
    excess = losses - ((1 - alphas) * losses[0] + alphas * losses[-1])
    top = int(excess.argmax())
    return float(excess[top]), float(alphas[top]), float(losses.max() - max(losses[0], losses[-1]))


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm layer by those of what it takes in during one pass.

    In that pass each BatchNorm normalises by the statistics of its batch, as in training, and everything else is in eval
    mode. Means and variances of the batches are pooled, so that all examples count the same whatever the batch sizes and
    the spread between batches counts as well; averaging the batches' variances (`torch.optim.swa_utils.update_bn`) loses it.
    A network without running statistics is left alone, and its batches are not asked for.

    Args:
        batches: (n, ...) inputs on the network's device.
    Raises:
        ValueError: there is no batch, or one that gives a layer a single value for a channel.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    found: dict[nn.Module, list[tuple[int, Tensor, Tensor]]] = {layer: [] for layer in layers}

    def record(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        n = args[0].numel() // layer.num_features
        found[layer].append((n, layer.running_mean.double().clone(), layer.running_var.double().clone()))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with evaluation_mode(network), full_precision(layers[0].running_mean.device):
            for layer in layers:
                layer.reset_running_stats()
                layer.train().momentum = 1.0  # the running statistics become those of the batch
            for inputs in batches:
                network(inputs)
        if not any(found.values()):
            raise ValueError("running statistics need at least one batch")
    finally:
        for layer, momentum, handle in zip(layers, momenta, handles, strict=True):
            layer.momentum = momentum
            handle.remove()
    for layer in (used for used in layers if found[used]):
        counts, means, variances = zip(*found[layer], strict=True)
        mean, variance = pooled(torch.tensor(counts), torch.stack(means), torch.stack(variances))
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def pooled(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance, (C,) each, of all values together.

    Args:
        counts: (B,) numbers of values in each batch; means, variances: (B, C), the latter unbiased.
    """
    n = counts.to(means)[:, None]
    mean = (n * means).sum(0) / n.sum()
    return mean, ((n - 1) * variances + n * (means - mean).square()).sum(0) / (n.sum() - 1)

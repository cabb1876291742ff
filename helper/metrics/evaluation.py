"""One pass over a split: loss, accuracy, prediction entropy, the shares under label noise, and gradient moments."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from helper.metrics.memorization import noisy_means, noisy_sums
from helper.metrics.parameters import evaluation_mode, full_precision
from helper.metrics.snr import GradientMoments
from helper.metrics.softmax import cross_entropies, log_probabilities
from helper.processes.sharing import sum_over_processes
from helper.system.xla import end_of_graph

Batch = tuple[Tensor, Tensor, Tensor]


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    moments: GradientMoments | None = None,
    batch_size: int | None = None,
    noisy: bool = False,
) -> dict[str, float]:
    """Means over the examples of a split, in eval mode and full precision; every example counts the same.

    Args:
        batches: (inputs, given labels, true labels); un-augmented. Several processes bring different ones and get the
            same means, over all of them.
        moments: takes the gradient of the mean loss of every batch of exactly `batch_size` examples.
        noisy: add the columns of `noisy_means`.
    Returns:
        {loss (nats), acc, entropy (nats, of the prediction), ...}.
    """
    rows = []
    device = next(network.parameters()).device
    with evaluation_mode(network), full_precision(device), torch.set_grad_enabled(moments is not None):
        for inputs, labels, true_labels in batches:
            logits = network(inputs)
            losses = cross_entropies(logits, labels)
            if moments is not None and len(labels) == batch_size:
                moments.update(torch.autograd.grad(losses.mean(), moments.weights, allow_unused=True))
            rows.append(batch_sums(logits, losses, labels, true_labels, noisy=noisy))
            end_of_graph(device)
        own = torch.stack(rows).cpu().double().sum(0) if rows else torch.zeros(10 if noisy else 4, dtype=torch.float64)
    if moments is not None:
        moments.merge()
    return means_of(sum_over_processes(own))


@torch.no_grad()
def batch_sums(logits: Tensor, losses: Tensor, labels: Tensor, true_labels: Tensor, *, noisy: bool) -> Tensor:
    """(4,) or, under label noise, (10,) sums over a batch that add up over batches; `means_of` reads them."""
    predicted = logits.argmax(1)
    log_p = log_probabilities(logits)
    entropy = -(log_p.exp() * log_p).sum()
    n = torch.full_like(entropy, len(labels))
    sums = torch.stack([n, losses.sum(), (predicted == labels).sum(), entropy])
    return torch.cat([sums, noisy_sums(losses, predicted, labels, true_labels)]) if noisy else sums


def means_of(sums: Tensor) -> dict[str, float]:
    """Means from added-up `batch_sums`."""
    n, loss, correct, entropy, *noise = sums.tolist()
    means = {"loss": loss / n, "acc": correct / n, "entropy": entropy / n}
    return means | (noisy_means(noise, n) if noise else {})

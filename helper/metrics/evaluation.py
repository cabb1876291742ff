"""One pass over a split: loss, accuracy, prediction entropy, the shares under label noise, and gradient moments."""

from collections.abc import Callable, Iterable
from dataclasses import fields

import torch
from torch import Tensor, nn

from helper.metrics.memorization import NoisySums
from helper.metrics.parameters import evaluation_mode, full_precision
from helper.metrics.running_sums import RunningSums
from helper.metrics.snr import GradientMoments
from helper.metrics.softmax import cross_entropies, log_probabilities
from helper.processes.sharing import sum_over_processes
from helper.system.xla import end_of_graph

Batch = tuple[Tensor, Tensor, Tensor]


def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    moments: GradientMoments | None = None,
    batch_size: int | None = None,
    noisy: bool = False,
) -> dict[str, float]:
    """Means over the examples of a split, in eval mode and full precision; every example counts the same.

    Args:
        batches: (inputs, given labels, true labels); un-augmented. Several processes bring different ones and get the
            same means, over all of them.
        forward: gives the logits in the network's place, with its parameters; default: the network.
        moments: takes the gradient of the mean loss of every batch of exactly `batch_size` examples.
        noisy: add the means of `NoisySums`.
    Returns:
        {loss (nats), acc, entropy (nats, of the prediction), ...}.
    """
    forward, rows = forward or network, []
    device = next(network.parameters()).device
    with evaluation_mode(network), full_precision(device), torch.set_grad_enabled(moments is not None):
        for inputs, labels, true_labels in batches:
            logits = forward(inputs)
            losses = cross_entropies(logits, labels)
            if moments is not None and len(labels) == batch_size:
                moments.update(torch.autograd.grad(losses.mean(), moments.weights, allow_unused=True))
            rows.append(batch_sums(logits, losses, labels, true_labels, noisy=noisy).packed())
            end_of_graph(device)
        own = torch.stack(rows).cpu().double().sum(0) if rows else no_sums(noisy=noisy).packed().double()
    if moments is not None:
        moments.merge()
    return unpacked_sums(sum_over_processes(own)).means()


@torch.no_grad()
def batch_sums(logits: Tensor, losses: Tensor, labels: Tensor, true_labels: Tensor, *, noisy: bool) -> RunningSums:
    """Of one batch; `NoisySums` under label noise."""
    predicted = logits.argmax(1)
    log_p = log_probabilities(logits)
    entropy = -(log_p.exp() * log_p).sum()
    right = predicted == labels
    sums = (torch.full_like(entropy, len(labels)), losses.sum(), right.sum().to(losses.dtype), entropy)
    if not noisy:
        return RunningSums(*sums)
    wrong_label = labels != true_labels
    zero = losses.new_zeros(())  # torch.where and not indexing: no wait for the device
    of_labels = (
        wrong_label.sum(),
        torch.where(wrong_label, losses, zero).sum(),
        (wrong_label & (predicted == true_labels)).sum(),
        (wrong_label & right).sum(),
        torch.where(wrong_label, zero, losses).sum(),
        (~wrong_label & right).sum(),
    )
    return NoisySums(*sums, *(total.to(losses.dtype) for total in of_labels))


def no_sums(*, noisy: bool) -> RunningSums:
    """Sums over no examples, on the CPU."""
    return unpacked_sums(torch.zeros(len(fields(NoisySums if noisy else RunningSums))))


def unpacked_sums(vector: Tensor) -> RunningSums:
    """The inverse of `packed`. Raises ValueError: a vector of another length."""
    for kind in (RunningSums, NoisySums):
        if vector.shape == (len(fields(kind)),):
            return kind(*vector)
    raise ValueError(f"no sums are a tensor of shape {tuple(vector.shape)}")

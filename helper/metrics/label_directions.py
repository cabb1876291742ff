"""Directions of the labels in which gradients of examples are large, and cotangents that treat these apart.

With S = diag(p) - p p^T of an example and the gradients J of its C logits, its Fisher trace is Tr(S J J^T). A few directions
hold most of it, and nearly the same ones in all examples: those of the mean of J J^T over some. Along the first of them it
is summed exactly; random signs see the rest, whose noise is small because the rest is.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from helper.metrics.layer_sums import kept
from helper.metrics.parameters import require_gradients
from helper.metrics.per_example import pull_back
from helper.metrics.softmax import probabilities
from helper.metrics.subject import Subject
from helper.processes.interruption import checking_signals

RANK = 16  # of the mean that is kept, and most directions that are summed over
FEWEST = 4  # draws of the rest, whose spread is the error
MARGIN = 1.25  # on the draws, because their noise is that of a few examples
SMALLEST = 1e-10  # share of the largest eigenvalue below which there is no direction


class Plan(NamedTuple):
    """How many directions of an example are summed over, and how many draws are made of the rest."""

    exact: int
    drawn: int

    @property
    def probes(self) -> int:
        return self.exact + self.drawn


def label_kernels(subject: Subject, rows: Tensor, generator: torch.Generator) -> Tensor:
    """(n, C, C) products of the gradients of each pair of an example's logits, in float64 on the CPU, up to one factor.

    Of networks so large that the gradients of all logits do not fit in memory, by a random part of the parameters.
    """
    parameters = [(name, p) for layer in subject.layers.values() for name, p in layer.items()]
    keep = [kept(p, name, subject.mask) for name, p in parameters]
    sizes = torch.tensor([p.numel() for _, p in parameters])
    fits = int(subject.memory_mb * 2**20 / (2 * subject.n_classes * subject.dtype.itemsize))
    places = None if sizes.sum() <= fits else torch.randperm(int(sizes.sum()), generator=generator)[: max(1, fits)]
    require_gradients(subject.network, True)
    found = []
    for row in checking_signals(rows):
        logits = subject.network(subject.rows(row[None]))[0]
        gradients = []
        for one in torch.eye(len(logits), dtype=logits.dtype, device=logits.device):
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            parts = pull_back(logits, one, [p for _, p in parameters], **options)
            active = [g if mask is None else g * mask for g, mask in zip(parts, keep, strict=True)]
            flat = torch.cat([g.flatten() for g in active])
            gradients.append(flat if places is None else flat[places.to(flat.device)])
        rows_of_one = torch.stack(gradients)
        found.append((rows_of_one @ rows_of_one.T).double().cpu())
    return torch.stack(found)


def factor_of(kernels: Tensor) -> Tensor:
    """(C, r) L, of which L L^T is the mean of (n, C, C) kernels in its r largest directions."""
    values, vectors = torch.linalg.eigh(kernels.mean(0))
    return (vectors * values.clamp(min=0).sqrt())[:, -RANK:]


def root(logits: Tensor) -> Tensor:
    """(n, C, C) B with B B^T = S, in float64; where a prediction is sure, to the relative precision of its small parts."""
    p, rest = probabilities(logits)
    q = p.sqrt()
    return (-p[:, :, None] * q[:, None]).diagonal_scatter(q * rest, dim1=1, dim2=2)


def directions(b: Tensor, factor: Tensor) -> Tensor:
    """(n, C, r) orthonormal columns Q: eigenvectors of B^T L L^T B of each example, the largest first; zeros where it has none.

    Args:
        b: (n, C, C) roots. factor: (C, r).
    """
    seen = b.transpose(1, 2) @ factor
    values, vectors = torch.linalg.eigh(seen.transpose(1, 2) @ seen)
    values, vectors = values.flip(-1), vectors.flip(-1)
    vectors = vectors * torch.where(vectors[:, :1] < 0, -1.0, 1.0)
    there = values > SMALLEST * values[:, :1]
    return seen @ vectors * torch.where(there, values, math.inf).rsqrt()[:, None]


def directed_cotangents(logits: Tensor, factor: Tensor, exact: int, e: Tensor) -> Tensor:
    """(exact + k, n, C) z in float64: of the first ones, and of the mean over the others, z z^T sum to S on average.

    Args:
        logits: (n, C). factor: (C, r), r >= exact. e: (n, k, C) signs.
    """
    b, e = root(logits), e.to(logits.device, torch.float64)
    q = directions(b, factor.to(logits.device))[:, :, :exact]
    rest = e - (e @ q) @ q.transpose(1, 2)
    return (torch.cat([q.transpose(1, 2), rest], 1) @ b.transpose(1, 2)).transpose(0, 1)


def plan_for(kernels: Tensor, logits: Tensor, rtol: float) -> Plan:
    """The fewest probes with which a relative error is reached in the root mean square over some examples.

    Args:
        kernels: (n, C, C), logits: (n, C), of n >= 2 examples; each half shows the noise along directions of the other.
    """
    halves = torch.arange(len(kernels)) % 2 == 0
    noise = [relative_noise(factor_of(kernels[half]), kernels[~half], logits[~half]) for half in (halves, ~halves)]
    plans = [
        Plan(exact, max(FEWEST, math.ceil(MARGIN * variance / rtol**2)))
        for exact, variance in enumerate(torch.cat(noise).mean(0).tolist())
    ]
    return min(plans, key=lambda plan: plan.probes)


def relative_noise(factor: Tensor, kernels: Tensor, logits: Tensor) -> Tensor:
    """(n, r + 1) variances of one draw relative to the squared trace, with 0 to r directions summed over."""
    b = root(logits)
    whole = b.transpose(1, 2) @ kernels @ b
    traces = whole.diagonal(dim1=1, dim2=2).sum(1)
    q, variances = directions(b, factor), []
    for exact in range(factor.shape[1] + 1):
        first = q[:, :, :exact]
        out = torch.eye(b.shape[1], dtype=b.dtype) - first @ first.transpose(1, 2)
        rest = out @ whole @ out
        variances.append(2 * (rest.square().sum((1, 2)) - rest.diagonal(dim1=1, dim2=2).square().sum(1)))
    return (torch.stack(variances, 1) / traces.where(traces > 0, 1).square()[:, None]).clamp(min=0)

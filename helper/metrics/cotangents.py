"""Cotangents of logits: z with E z z^T = S = diag(p) - p p^T, of which ||J^T z||^2 has the Fisher trace as its mean."""

import math

import torch
from torch import Tensor

from helper.metrics.sampling import LEAST_DRAWS, Budget
from helper.metrics.softmax import probabilities, residuals

LIKELY = 15  # classes that an eigendecomposition tells apart
LABEL_DRAWS = 5  # of each example, where n_probes does not say


def spectral_cotangents(logits: Tensor, e: Tensor) -> Tensor:
    """(k, n, C) z in float64 with E z z^T = S, from (n, C) logits and (n, k, C + 1) signs e.

    Over the eigenpairs of S the noise is least, but their C x C matrices take longer than the network's gradient. So the
    likeliest classes and all others taken as one are treated in this way, and the variance among the others, which is
    small where the network is sure of anything, by columns sqrt(r_c) (e_c - r) with r = p(class | one of the others).
    On a trained network with 100 classes this has 1.003 times the noise.
    """
    n_likely = min(LIKELY, logits.shape[1])
    ranked, order = logits.double().sort(1, descending=True)
    p, others_than = probabilities(ranked)
    r = ranked[:, n_likely:].softmax(1)[:, None]
    rest = p[:, n_likely:].sum(1, keepdim=True)
    coarse = torch.cat([p[:, :n_likely], rest], 1)
    without = torch.cat([others_than[:, :n_likely], p[:, :n_likely].sum(1, keepdim=True)], 1)
    pairs = -coarse[:, :, None] * coarse[:, None]
    values, vectors = torch.linalg.eigh(pairs.diagonal_scatter(coarse * without, dim1=1, dim2=2))
    vectors = vectors * torch.where(vectors[:, :1] < 0, -1.0, 1.0)  # else rounding decides on their signs, and so on the draw
    e = e.to(p)
    z = (e[:, :, : n_likely + 1] * values.clamp(min=0).sqrt()[:, None]) @ vectors.transpose(1, 2)
    spread = r.sqrt() * e[:, :, n_likely + 1 :]
    others = r * z[:, :, -1:] + rest.sqrt()[:, None] * (spread - r * spread.sum(2, keepdim=True))
    z = torch.cat([z[:, :, :-1], others], 2)
    return torch.empty_like(z).scatter_(2, order[:, None].expand_as(z), z).transpose(0, 1)


def every_label(logits: Tensor) -> Tensor:
    """(C, n, C) columns sqrt(p_c) (e_c - p), whose squares sum to the expectation over labels."""
    every = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return logits.double().softmax(1).t().sqrt()[..., None] * residuals(logits, every)


def sampled_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """(n, k) labels with the network's probabilities, from (n, k) uniform numbers."""
    ranked, order = logits.double().sort(1)  # unlikely ones first: after the likely ones rounding would swallow them
    cumulative = ranked.softmax(1).cumsum(1)
    places = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, places)


def label_moments(logits: Tensor) -> Tensor:
    """(n, 3): mean, variance and third central moment of ||e_y - p||² over labels y ~ p, for (n, C) logits.

    A draw with a sampled label is about proportional to it.
    """
    p, rest = probabilities(logits)
    squares = rest.square() + (p.square().sum(1, keepdim=True) - p.square()).clamp(min=0)
    mean = (p * squares).sum(1, keepdim=True)
    return torch.cat([mean, *((p * (squares - mean).pow(k)).sum(1, keepdim=True) for k in (2, 3))], 1)


def label_skewness(moments: Tensor, draws: int, population: int) -> float:
    """Skewness of a mean of draws with sampled labels, so many of each of n of a population, as the labels alone make it.

    Known however few surprising labels were drawn: of a network that is nearly sure it is 1 / sqrt(how many are expected).

    Args:
        moments: (n, 3), of the examples drawn; see `label_moments`.
    """
    n = len(moments)
    mean, variance, third = moments.unbind(1)
    of_labels = variance.mean() / (n * draws)
    total = of_labels + (1 - n / population) * mean.var() / n
    if of_labels == 0:
        return 0.0
    return (third.mean() / variance.mean() / (n * draws) * of_labels / total / total.sqrt()).item()


def label_draws(budget: Budget, population: int) -> int:
    """Labels sampled for each example: as asked for, else five, or without any budget so many that there are a thousand."""
    least = 0 if budget.max_samples else math.ceil(LEAST_DRAWS / population)
    return budget.n_probes or max(LABEL_DRAWS, least)

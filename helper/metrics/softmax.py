"""Softmax of confident predictions, to full relative precision.

Where p of the likeliest class rounds to 1, 1 - p is what the other classes have, never a difference: p - p², softmax minus
one-hot and their derivatives by automatic differentiation cancel, in float32 from a margin of 16 on, in float64 of 36.
"""

import torch
from torch import Tensor


def probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """p and 1 - p of (..., C) logits, in float64."""
    p = logits.double().softmax(-1)
    top = logits.argmax(-1, keepdim=True)
    others = p.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return p, (1 - p).scatter(-1, top, others)


def residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """(k, n, C) e_y - p in float64 for (n, k) labels y: the gradient of log p(y|x) with respect to the logits."""
    p, rest = probabilities(logits)
    of_label = torch.arange(p.shape[1], device=p.device) == labels.t()[..., None]
    return torch.where(of_label, rest, -p)


def total_variance(logits: Tensor) -> Tensor:
    """(n,) Tr S = sum p (1 - p), in float64."""
    p, rest = probabilities(logits)
    return (p * rest).sum(1)


def log_probabilities(logits: Tensor) -> Tensor:
    """log p of (..., C) logits in their type; p = exp of it, and both derivatives of either, cancel nowhere.

    With t the likeliest class, log p_c = (f_c - f_t) - log1p(sum over the others of exp(f_j - f_t)), the first term for
    c = t being a 0 without a derivative rather than a difference.
    """
    top = logits.argmax(-1, keepdim=True)
    highest = logits.gather(-1, top)
    margins = (logits - highest).scatter(-1, top, 0.0) + 0 * highest.detach()  # nan where the logits are infinite
    others = margins.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return margins - others.log1p()


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """(...) losses of (..., C) logits and (...) classes."""
    return -log_probabilities(logits).gather(-1, labels[..., None])[..., 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of `cross_entropies`."""
    return cross_entropies(logits, labels).mean()

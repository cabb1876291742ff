"""Penalties that are added to the training loss: (logits, inputs, noise) -> their sum over the examples."""

import torch
from torch import Tensor


def jacobian_penalty(logits: Tensor, inputs: Tensor, noise: Tensor, *, reg_weight: float) -> Tensor:
    """reg_weight / 2 times an unbiased estimate of the sum over examples of ||d logits / d inputs||_F^2, differentiable.

    One random direction v on the unit sphere of the C logits for each example: C ||v^T J||^2 has mean ||J||_F^2.

    Args:
        logits: (N, C), computed from `inputs` with gradients on.
        inputs: (N, ...) normalised inputs, requiring gradients.
        noise: (N, C) independent normal numbers.
    Source: Hoffman, Roberts & Yaida 2019, algorithm 1 with one projection.
    """
    direction = noise.to(logits.device, logits.dtype)
    direction = direction / direction.norm(dim=1, keepdim=True)
    (rows,) = torch.autograd.grad(logits, inputs, direction, create_graph=True)
    return reg_weight / 2 * (logits.shape[1] * rows.float().square().sum())


REGULARIZERS = {
    "none": None,
    "jacobian": jacobian_penalty,
}

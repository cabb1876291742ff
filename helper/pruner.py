"""Pruning: scores say how much a weight matters, the allocation how many of each layer stay."""

import torch
from torch import Tensor, nn

from helper.mask import Mask


def magnitude(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """|w|: small weights matter least (Han et al. 2015)."""
    return {name: weight.abs() for name, weight in weights.items()}


def random_scores(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores, drawn on the CPU: the control that knows nothing of the weights."""
    return {name: torch.rand(weight.shape, generator=generator).to(weight.device) for name, weight in weights.items()}


SCORES = {
    "l1": magnitude,
    "random": random_scores,
}


def prune(
    network: nn.Module,
    generator: torch.Generator,
    *,
    prune_ratio: float,
    prune_method: str = "l1",
    prune_last: bool = False,
    head: str | None = None,
) -> Mask:
    """One-shot global mask of a network; its weights are left as they are.

    Args:
        prune_ratio: share of the prunable weights that the mask removes, in [0, 1).
        prune_method: of SCORES, how weights are ranked. prune_last: whether the classifier's can be pruned.
        head: the name of that layer; None: the last one.
    Raises:
        ValueError: the scores are not one number for each weight.

    With `l1` the mask is exactly that of `torch.nn.utils.prune.global_unstructured(..., L1Unstructured)`, ties included.
    """
    weights = prunable_weights(network, prune_last, head)
    scores = SCORES[prune_method](weights, generator)
    if {name: score.shape for name, score in scores.items()} != {name: weight.shape for name, weight in weights.items()}:
        raise ValueError(f"--prune_method {prune_method} does not give a score for each of the weights, and for nothing else")
    for name, score in scores.items():
        if score.isnan().any():
            raise ValueError(f"--prune_method {prune_method} gives scores of {name} that are NaN")
    return global_mask(scores, prune_ratio)


def prunable_weights(network: nn.Module, prune_last: bool, head: str | None = None) -> dict[str, Tensor]:
    """{name: weight} of the Linear and Conv2d layers, in order; unless `prune_last`, without the classifier.

    Args:
        head: the name of the classifier; None: the last of these layers.
    """
    weights = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weights[f"{name}.weight"] = module.weight.detach()
    if weights and not prune_last:
        weights.pop(list(weights)[-1] if head is None else f"{head}.weight", None)
    return weights


def global_mask(scores: dict[str, Tensor], prune_ratio: float) -> Mask:
    """Remove the round(ratio * n) lowest of all n scores, whatever their layer."""
    if not scores:
        return Mask()
    flat = torch.cat([score.flatten() for score in scores.values()])
    active = torch.ones_like(flat, dtype=torch.bool)
    # topk, as torch.nn.utils.prune uses it: among equal scores the same ones go
    active[torch.topk(flat, round(prune_ratio * flat.numel()), largest=False).indices] = False
    pieces = active.split([score.numel() for score in scores.values()])
    return Mask({name: piece.view_as(score) for (name, score), piece in zip(scores.items(), pieces, strict=True)})

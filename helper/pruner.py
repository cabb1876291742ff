"""Pruning: scores say how much a weight matters, the allocation how many of each layer stay."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.masks.context import Context
from helper.masks.scores import Score, magnitude, random

SCORES: dict[str, Score] = {
    "l1": Score(magnitude),
    "random": Score(random),
}


def prune(
    network: nn.Module,
    generator: torch.Generator,
    *,
    prune_ratio: float,
    prune_method: str = "l1",
    prune_last: bool = False,
    head: str | None = None,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = None,
    memory_mb: float = 1000,
    n_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Mask:
    """One-shot global mask of a network; its weights are left as they are.

    Args:
        prune_ratio: share of the prunable weights that the mask removes, in [0, 1).
        prune_method: of SCORES, how weights are ranked. prune_last: whether the classifier's can be pruned.
        head: the name of that layer; None: the last one.
        batches, memory_mb, n_classes, input_shape: what the score may look at, see `Context`.
    Raises:
        ValueError: the scores are not one number for each weight, or need data and there is none.

    With `l1` the mask is exactly that of `torch.nn.utils.prune.global_unstructured(..., L1Unstructured)`, ties included.
    """
    weights = prunable_weights(network, prune_last, head)
    active = Mask({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})
    context = Context(network, weights, active, generator, batches, memory_mb, n_classes, input_shape)
    return global_mask(scores_of(context, prune_method), prune_ratio)


def scores_of(context: Context, prune_method: str) -> dict[str, Tensor]:
    """The scores of a context's weights. Raises ValueError: as `prune`."""
    score, weights = SCORES[prune_method], context.weights
    if score.data and context.batches is None:
        raise ValueError(f"--prune_method {prune_method} scores weights on training data, and there is none")
    scores = score.compute(context)
    if {name: score.shape for name, score in scores.items()} != {name: weight.shape for name, weight in weights.items()}:
        raise ValueError(f"--prune_method {prune_method} does not give a score for each of the weights, and for nothing else")
    for name, score in scores.items():
        if score.isnan().any():
            raise ValueError(f"--prune_method {prune_method} gives scores of {name} that are NaN")
    return scores


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

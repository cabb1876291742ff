"""Pruning: scores say how much a weight matters, the allocation how many of each layer stay."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from helper.look import Look
from helper.mask import Mask
from helper.masks.allocation import ALLOCATIONS, Shapes
from helper.masks.choosing import all_finite, keep
from helper.masks.context import Context
from helper.masks.derivatives import gradient, grasp, snip
from helper.masks.numbers import Sizes
from helper.masks.scores import Score, magnitude, random
from helper.masks.synflow import synflow

Kind = tuple[tuple[type[nn.Module], ...], tuple[str, ...]]  # of layers, and names of their parameters
LAYERS: Kind = ((nn.Linear, _ConvNd), ("weight",))
PRUNABLE_BESIDE: dict[str, Kind] = {
    "embeddings": ((nn.Embedding, nn.EmbeddingBag), ("weight",)),
    "attention": ((nn.MultiheadAttention,), ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
}
SCORES: dict[str, Score] = {
    "l1": Score(magnitude, label="magnitude at init", look=Look("#AA4499", "8", "-.")),
    "random": Score(random, label="random", look=Look("#999933", "x", ":")),
    "snip": Score(snip, data=True, passes=3, label="SNIP", look=Look("#CC79A7", "D", "-")),
    "grasp": Score(grasp, data=True, passes=12, label="GraSP", look=Look("#332288", "p", "--")),
    "synflow": Score(synflow, rounds=100, passes=3, label="SynFlow", look=Look("#44AA99", "h", "-.")),
    "gradient": Score(gradient, data=True, passes=3, label="gradient at init", look=Look("#661100", "d", ":")),
}


def prune(
    network: nn.Module,
    generator: torch.Generator,
    *,
    prune_ratio: float,
    prune_method: str = "l1",
    prune_last: bool = False,
    head: str | None = None,
    also: Collection[str] = (),
    allocation: str = "global",
    score_rounds: int | None = None,
    within: Mask | None = None,
    watch: Callable[[Mask], None] = lambda mask: None,
    **data: Any,
) -> Mask:
    """The mask that leaves a network's best weights; they are left as they are.

    Args:
        prune_ratio: share of the prunable weights that is pruned by the mask, in [0, 1).
        prune_method: of SCORES, how weights are ranked. prune_last: whether the classifier's can be pruned.
        head: the name of that layer; None: the last one. also: of PRUNABLE_BESIDE, what can be pruned beside layers.
        allocation: of ALLOCATIONS, how many weights of each layer stay.
        score_rounds: in how many rounds, each of which scores what the former has left; None: the score's own. After the
            k-th of n the density is that of the start times (final / that of the start)^(k/n).
        within: a mask, of which only active weights can stay; None: all of them can.
        watch: called with the mask at which weights are scored, in every round.
        data: `batches`, `memory_mb`, `n_classes`, `input_shape`: what the score may look at, see `Context`.
    Raises:
        ValueError: weights or scores are not finite; the scores are not one number for each weight, are all the same although
            the network is asked, or need data and there is none; the allocation cannot leave so few weights; `within` has
            fewer.

    With `l1` the mask is exactly that of `torch.nn.utils.prune.global_unstructured(..., L1Unstructured)`, ties included.
    """
    weights = prunable_weights(network, prune_last, head, also)
    if not weights:
        return Mask()
    mask = whole_mask(weights) if within is None else within
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    final, before = mask.n_weights - round(prune_ratio * mask.n_weights), mask.n_active
    rounds, last = score_rounds or SCORES[prune_method].rounds, classifier_of(network, weights, head) if prune_last else None
    untouched = rounds == 1 and within is None and not SCORES[prune_method].passes  # and need not be copied
    with contextlib.nullcontext() if untouched else kept_weights(weights):
        for k in range(1, rounds + 1):
            mask.apply_(network)
            watch(mask)
            scores = scores_of(Context(network, weights, mask, generator, **data), prune_method)
            count = final if k == rounds else max(final, round(before * (final / before) ** (k / rounds)))
            mask = keep(scores, numbers_of(allocation, shapes, count, mask, last), mask if k > 1 else within)
    return mask


def whole_mask(weights: Mapping[str, Tensor]) -> Mask:
    """In which nothing is pruned."""
    return Mask({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})


def numbers_of(allocation: str, shapes: Shapes, count: int, mask: Mask, head: str | None) -> int | dict[str, int]:
    """How many weights stay, for `keep`: in all, or of each layer, of those that a mask has."""
    spread = ALLOCATIONS[allocation]
    if spread is None or not shapes:
        return count
    return spread(shapes, count, head=head, most=mask.counts())


@contextlib.contextmanager
def kept_weights(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """What happens to weights inside is undone."""
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])


def scores_of(context: Context, prune_method: str) -> Mapping[str, Tensor]:
    """The scores of a context's weights. Raises ValueError: as `prune`."""
    way, weights = SCORES[prune_method], context.weights
    if way.data and context.batches is None:
        raise ValueError(f"--prune_method {prune_method} scores weights on training data, and there is none")
    for name, weight in weights.items():
        if not all_finite(weight):
            raise ValueError(f"{name} has values that are NaN or infinite: no weights to choose from; has training diverged?")
    scores = way.compute(context)
    signed = scores.of if isinstance(scores, Sizes) else scores
    if {name: score.shape for name, score in signed.items()} != {name: weight.shape for name, weight in weights.items()}:
        raise ValueError(f"--prune_method {prune_method} does not give a score for each of the weights, and for nothing else")
    for name, score in signed.items():
        if not all_finite(score):
            raise ValueError(f"--prune_method {prune_method} gives scores of {name} that are NaN or infinite")
    if way.passes:
        refuse_equal(scores, context.mask, prune_method)
    return scores


def refuse_equal(scores: Mapping[str, Tensor], mask: Mask, prune_method: str) -> None:
    """Raise ValueError where what the network computes tells none of its active weights from another.

    When only a few weights are left, each may be on the only path: then they are alike, but not 0.
    """
    active = torch.cat([score[mask[name].to(score.device)].flatten() for name, score in scores.items()])
    if active.numel() > 1 and (active == active[0]).all() and (active[0] == 0 or mask.sparsity == 0):
        raise ValueError(
            f"--prune_method {prune_method} gives all {active.numel()} weights the same score, {active[0].item():g}: does what "
            "goes into the network come out of it, and do its weights differ? Another --prune_method may tell them apart"
        )


def prunable_weights(
    network: nn.Module, prune_last: bool, head: str | None = None, also: Collection[str] = ()
) -> dict[str, Tensor]:
    """{name: weight} of Linear and convolution layers, in order; unless `prune_last`, without the classifier.

    A weight that layers share is there once, by its first name. What is computed from other parameters, as weight norm does, is
    none.

    Args:
        head: the name of the classifier; None: the last of these layers.
        also: of PRUNABLE_BESIDE.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    kinds, weights = [LAYERS, *(PRUNABLE_BESIDE[word] for word in also)], {}
    for module in network.modules():
        wanted = [name for types, own in kinds if isinstance(module, types) for name in own]
        found = [module._parameters[name] for name in wanted if module._parameters.get(name) is not None]
        weights |= {names[parameter]: parameter.detach() for parameter in found}
    if not prune_last:
        weights.pop(classifier_of(network, weights, head), None)
    return weights


def classifier_of(network: nn.Module, weights: Mapping[str, Tensor], head: str | None) -> str | None:
    """The name of the classifier's weight, which is another layer's where it shares that; None: it has none of its own.

    Args:
        weights: of which it is the last where `head`, its name, is None.
    """
    if head is None:
        return list(weights)[-1] if weights else None
    weight = network.get_submodule(head)._parameters.get("weight")
    return next((name for name, parameter in network.named_parameters() if parameter is weight), None)

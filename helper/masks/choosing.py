"""The only two ways in which weights are chosen: which of them stay, and which change places. Numbers are exact.

Equal scores, all of them or some, leave the numbers as they are: some of the equal weights are taken, on one kind of device
always the same ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from helper.mask import Mask


def keep(scores: Mapping[str, Tensor], count: int | Mapping[str, int], within: Mask | None = None) -> Mask:
    """The weights with the highest scores.

    Args:
        scores: of every weight, in its shape.
        count: how many stay, of all layers together, which are ranked as one; or of each layer.
        within: a weight that this mask does not have cannot stay; default: every weight can.
    Raises:
        ValueError: a score is NaN, or fewer weights can stay than have to.
    """
    if not scores:
        return Mask()
    scores, within = choosable(scores), within and Mask(choosable(within))
    if isinstance(count, Mapping):
        return Mask({name: chosen(score, count[name], within and within[name]) for name, score in scores.items()})
    flat = torch.cat([score.flatten() for score in scores.values()])
    among = None if within is None else torch.cat([within[name].flatten() for name in scores])
    pieces = chosen(flat, count, among).split([score.numel() for score in scores.values()])
    return Mask({name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)})


def swap(mask: Mask, n: Mapping[str, int], drop: Mapping[str, Tensor], grow: Mapping[str, Tensor]) -> tuple[Mask, Mask]:
    """In every layer, drop active weights and let as many come back: (the mask after it, those that came back).

    Weights come back from all that are not kept, so that one that has just been dropped may; its value starts anew all the
    same. No layer's number of active weights changes.

    Args:
        n: how many weights of each layer.
        drop: scores, of which the lowest go. grow: scores, of which the highest come.
    Raises:
        ValueError: a score is NaN, or a layer has fewer active weights than are to be dropped.
    """
    drop, grow = choosable(drop), choosable(grow)
    after, grown = {}, {}
    for name, active in choosable(mask).items():
        stays = chosen(drop[name], int(active.sum()) - n[name], active)
        rest = (~stays).flatten().nonzero().flatten()
        comes = torch.zeros_like(active.flatten())
        comes[rest[torch.topk(grow[name].flatten()[rest], n[name]).indices]] = True
        grown[name] = comes.view(active.shape)
        after[name] = stays | grown[name]
    return Mask(after), Mask(grown)


def chosen(scores: Tensor, count: int, among: Tensor | None) -> Tensor:
    """Bool tensor of the scores' shape: the `count` highest, of those that `among` has."""
    flat = scores.flatten()
    if among is None:
        stays = torch.ones_like(flat, dtype=torch.bool)
        places = None
    else:
        stays = among.flatten().clone()
        places = stays.nonzero().flatten()
        flat = flat[places]
    if not 0 <= count <= len(flat):
        raise ValueError(f"{count} weights cannot stay where {len(flat)} can be chosen")
    # the lowest go, by topk, as in torch.nn.utils.prune: among equal scores the same ones
    lowest = torch.topk(flat, len(flat) - count, largest=False).indices
    stays[lowest if places is None else places[lowest]] = False
    return stays.view(scores.shape)


def choosable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, on the CPU where XLA would compile another graph for every choice. Raises ValueError: one has a NaN."""
    found = {name: tensor.cpu() if tensor.device.type == "xla" else tensor for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if tensor.isnan().any():
            raise ValueError(f"scores of {name} are NaN")
    return found

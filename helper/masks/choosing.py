"""The only two ways in which weights are chosen: which of them stay, and which change places. Numbers are exact.

Equal scores, all of them or some, leave the numbers as they are: some of the equal weights are taken, on one kind of device
always the same ones.
"""

from collections.abc import Mapping

import numpy
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
        stays = chosen(drop[name], int(active.count_nonzero()) - n[name], active)
        grown[name] = chosen(grow[name], n[name], ~stays)
        after[name] = stays | grown[name]
    return Mask(after), Mask(grown)


def chosen(scores: Tensor, count: int, among: Tensor | None) -> Tensor:
    """Bool tensor of the scores' shape: the `count` highest, of those that `among` has.

    Raises:
        ValueError: there are not so many.
    """
    flat = scores.flatten()
    stays = torch.ones_like(flat, dtype=torch.bool) if among is None else among.flatten().clone()
    n = len(flat) if among is None else int(stays.count_nonzero())
    if not 0 <= count <= n:
        raise ValueError(f"{count} weights cannot stay where {n} can be chosen")
    gone = lowest(flat if among is None else flat.masked_fill(~stays, torch.inf), n - count)
    if gone is not None:
        return (stays & ~gone).view(scores.shape)
    # equal scores: by topk, as in torch.nn.utils.prune, the same ones go
    places = torch.arange(len(flat), device=flat.device) if among is None else stays.nonzero().flatten()
    stays[places[torch.topk(flat[places], n - count, largest=False).indices]] = False
    return stays.view(scores.shape)


def lowest(flat: Tensor, n: int) -> Tensor | None:
    """Bool tensor of the n lowest of some numbers; None where equal ones leave open which these are."""
    if n == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    if flat.device.type == "cpu":  # NumPy's selection takes a tenth of the time of PyTorch's
        bound = torch.from_numpy(numpy.partition(flat.numpy(), n - 1)[n - 1 : n])
    else:
        bound = torch.kthvalue(flat, n).values
    found = flat <= bound
    return found if int(found.count_nonzero()) == n else None


def choosable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, on the CPU where XLA would compile another graph for every choice. Raises ValueError: one has a NaN."""
    found = {name: tensor.cpu() if tensor.device.type == "xla" else tensor for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not all_finite(tensor) and tensor.isnan().any():
            raise ValueError(f"scores of {name} are NaN")
    return found


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum takes one pass, and only one that overflows or is NaN needs more."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())

"""The only two ways in which weights are chosen: which of them stay, and which change places. Numbers are exact.

Equal scores, all of them or some, leave the numbers as they are: some of the equal weights are taken, on one kind of device
always the same ones.
"""

from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor

from helper.mask import Mask
from helper.masks.in_pieces import FEW, highest
from helper.masks.numbers import Numbers, Sizes


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
    names = list(scores)
    if isinstance(count, Mapping):
        return Mask({name: chosen(scores, [name], count[name], within)[name] for name in names})
    return Mask(chosen(scores, names, count, within))


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
        stays = chosen(drop, [name], int(active.count_nonzero()) - n[name], {name: active})[name]
        grown[name] = chosen(grow, [name], n[name], {name: ~stays})[name]
        after[name] = stays | grown[name]
    return Mask(after), Mask(grown)


def chosen(scores: Mapping[str, Tensor], names: list[str], count: int, among: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Bool tensors of some scores' shapes: the `count` highest of all their elements, of those that `among` has.

    Raises:
        ValueError: there are not so many.
    """
    absolute = isinstance(scores, Sizes)
    values = [(scores.of if absolute else scores)[name] for name in names]
    allowed = None if among is None else [among[name] for name in names]
    if may_be_copied(values):
        flat = torch.cat([value.flatten() for value in values])
        flags = None if allowed is None else torch.cat([part.flatten() for part in allowed])
        stays = highest_of(flat.abs_() if absolute else flat, count, flags).split([value.numel() for value in values])
        return {name: part.view(value.shape) for name, part, value in zip(names, stays, values, strict=True)}
    numbers = Numbers(values, allowed, absolute=absolute)
    check_count(count, numbers.n)
    return dict(zip(names, highest(numbers, count), strict=True))


def may_be_copied(values: Sequence[Tensor]) -> bool:
    """Whether numbers are few, not in this process's memory, or of no one floating-point type."""
    few = sum(value.numel() for value in values) <= FEW
    others = any(value.device.type != "cpu" or value.dtype not in (torch.float32, torch.float64) for value in values)
    return few or others or len({value.dtype for value in values}) > 1


def check_count(count: int, n: int) -> None:
    if not 0 <= count <= n:
        raise ValueError(f"{count} weights cannot stay where {n} can be chosen")


def highest_of(flat: Tensor, count: int, among: Tensor | None) -> Tensor:
    """Bool tensor: the `count` highest of some numbers, of those that `among` has."""
    stays = torch.ones_like(flat, dtype=torch.bool) if among is None else among.clone()
    n = len(flat) if among is None else int(stays.count_nonzero())
    check_count(count, n)
    gone = lowest(flat if among is None else flat.masked_fill(~stays, torch.inf), n - count)
    if gone is not None:
        return stays & ~gone
    # equal scores: by topk, as in torch.nn.utils.prune, the same ones go
    places = torch.arange(len(flat), device=flat.device) if among is None else stays.nonzero().flatten()
    stays[places[torch.topk(flat[places], n - count, largest=False).indices]] = False
    return stays


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


def choosable(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, on the CPU where XLA would compile another graph for every choice. Raises ValueError: one has a NaN."""
    if isinstance(tensors, Sizes):
        return Sizes(choosable(tensors.of))
    found = {name: tensor.cpu() if tensor.device.type == "xla" else tensor for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if tensor.is_floating_point() and not all_finite(tensor) and tensor.isnan().any():
            raise ValueError(f"scores of {name} are NaN")
    return found


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum takes one pass, and only one that overflows or is NaN needs more."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())

"""Calls that make images smaller, flat or of more channels, for activations that lie batch-innermost.

These are (blocks, channels, height, width, lanes): a pooling of images is one of volumes that leaves the lanes alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from helper.sparse.tracing import shape

Sizes = int | tuple[int, ...]
MAX, AVERAGE, ADAPTIVE, FLATTEN, MEAN = "max", "average", "adaptive average", "flatten", "mean"
KINDS = {
    F.max_pool2d: MAX, torch.max_pool2d: MAX, nn.MaxPool2d: MAX,
    F.avg_pool2d: AVERAGE, nn.AvgPool2d: AVERAGE,
    F.adaptive_avg_pool2d: ADAPTIVE, nn.AdaptiveAvgPool2d: ADAPTIVE,
    torch.flatten: FLATTEN, "flatten": FLATTEN, nn.Flatten: FLATTEN,
    torch.mean: MEAN, "mean": MEAN,
}  # fmt: skip
PARAMETERS = {  # behind the images, in this order
    MAX: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    AVERAGE: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ADAPTIVE: ("output_size",),
    FLATTEN: ("start_dim", "end_dim"),
    MEAN: ("dim", "keepdim"),
}
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def reduction(target: Any, args: tuple, kwargs: Mapping[str, Any], before: tuple[int, ...]) -> tuple[Any, ...] | None:
    """(function for activations that lie batch-innermost, its further arguments); None: it is not known how to do that.

    Args:
        target: a function, a method's name, or the type of a module, whose attributes are then `kwargs`.
        args, kwargs: its arguments behind the activations. before: shape of these, as the network has them.
    """
    kind = KINDS.get(target)
    if kind is None:
        return None
    names = PARAMETERS[kind]
    if isinstance(target, type):
        kwargs = {name: kwargs[name] for name in names if name in kwargs}
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if not given.keys() <= set(names) or len(args) > len(names) or not all(map(is_constant, given.values())):
        return None
    if kind == FLATTEN:
        return (flat,) if given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}) else None
    if len(before) != 4 or given.pop("return_indices", False):
        return None
    if kind == MEAN:
        return (mean_of_image, bool(given.get("keepdim"))) if axes(given.get("dim")) == {2, 3} else None
    if kind == ADAPTIVE:
        return mean_or_pool(pair(given["output_size"]), before)
    return (max_pool if kind == MAX else average_pool, *pooling_arguments(kind, given))


def is_constant(value: Any) -> bool:
    return value is None or isinstance(value, int) or (isinstance(value, (tuple, list)) and all(map(is_constant, value)))


def axes(dim: Any) -> set[int]:
    """Of four, counted from the first one."""
    return {d % 4 for d in dim} if isinstance(dim, (tuple, list)) else set()


def pair(sizes: Any) -> tuple[Any, Any]:
    values = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
    return values * 2 if len(values) == 1 else values


def mean_or_pool(output: tuple[int | None, int | None], before: tuple[int, ...]) -> tuple[Any, ...]:
    if output == (1, 1):
        return mean_of_image, True
    return adaptive_average_pool, *(own if size is None else size for size, own in zip(output, before[2:], strict=True))


def pooling_arguments(kind: str, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """By position, with sizes in three dimensions."""
    kernel = given["kernel_size"]
    sizes = (*pair(kernel), 1), (*pair(given.get("stride") or kernel), 1), (*pair(given.get("padding", 0)), 0)
    ceil_mode = given.get("ceil_mode", False)
    if kind == MAX:
        return *sizes, (*pair(given.get("dilation", 1)), 1), ceil_mode
    return *sizes, ceil_mode, given.get("count_include_pad", True), given.get("divisor_override")


def mean_of_image(x: Tensor, keepdim: bool) -> Tensor:
    return x.mean((2, 3), keepdim=keepdim)


def max_pool(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool) -> Tensor:
    return F.max_pool3d(x, kernel, stride, padding, dilation, ceil_mode)


def average_pool(
    x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool, include_padding: bool, divisor: int | None
) -> Tensor:
    return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, include_padding, divisor)


def adaptive_average_pool(x: Tensor, height: int, width: int) -> Tensor:
    return F.adaptive_avg_pool3d(x, (height, width, x.shape[-1]))


def flat(x: Tensor) -> Tensor:
    return x.flatten(1, -2)


def concatenated(node: fx.Node) -> list[fx.Node]:
    """What a concatenation puts side by side, where that are the channels of images, or features; else nothing."""
    given = {**dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
    parts, dim = given.get("tensors"), given.get("dim", 0)
    if not isinstance(parts, (list, tuple)) or not given.keys() <= {"tensors", "dim"}:
        return []
    if not parts or not all(isinstance(part, fx.Node) for part in parts) or not isinstance(dim, int):
        return []
    ranks = {len(shape(part)) for part in parts}
    return list(parts) if ranks in ({2}, {4}) and dim % ranks.pop() == 1 else []

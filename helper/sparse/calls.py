"""Both passes of a sparse layer as calls of the kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.sparse.library import PRECISION, kernels
from helper.sparse.plan import PARTS, LayerPlan, Plan
from helper.sparse.structs import (
    MOMENTS,
    SUMS,
    NormBackStruct,
    NormStruct,
    NormSumsStruct,
    Room,
    WindowsStruct,
    address,
    reference,
    statistics_struct,
    windows_struct,
)

ROWS_APIECE = 16  # at least, where a weight gradient is divided by rows


def targets(plan: Plan, x: Tensor) -> Tensor:
    """Room for what a plan makes of its sources."""
    return x.new_empty((x.shape[0], plan.channels, *(plan.image if x.dim() == 5 else ()), x.shape[-1]))


def gather(
    plan: Plan,
    active: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    more: Tensor | None = None,
    norm: NormStruct | None = None,
    after: nn.Module | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(every target's sum over the sources that its active weights connect it with, plus the row's bias and `more`; its
    statistics for the BatchNorm `after` it).

    Args:
        norm: of x, which gives the sources.
    """
    y, precision, threads, (blocks, channels) = targets(plan, x), PRECISION[x.dtype], torch.get_num_threads(), x.shape[:2]
    bias = None if bias is None else bias.contiguous()
    found = statistics = windows = None
    if after is not None:
        found = x.new_empty(3, plan.channels)
        statistics = statistics_struct(after, found, y.numel() // plan.channels)
    if norm is not None:
        windows = windows_struct(plan, channels, x.shape[-1], x.element_size(), plan.widest)
    of_moments = 0 if after is None else MOMENTS * blocks * plan.struct.n_bands * plan.channels
    room = Room(**of_values(plan, weight), moments=of_moments, windows=of_windows(windows, x, threads))
    if statistics is not None:
        statistics.parts = room["moments"]
    place(windows, room["windows"])
    getattr(kernels(precision).functions, f"gather_{precision}")(
        plan.address, x.data_ptr(), y.data_ptr(), *values(plan, active, weight, room), address(bias), address(more),
        reference(norm), reference(windows), reference(statistics), blocks, x.shape[-1], threads,
    )  # fmt: skip
    return y, found


def of_values(plan: Plan, weight: Tensor) -> dict[str, int]:
    """Bytes that the weights of a plan's entries take, and the active weights on their way there."""
    element, dense = weight.element_size(), weight.dim() > 1
    if plan.in_order and not dense:
        return {"compact": 0, "values": 0}
    return {"compact": plan.n_active * element if dense else 0, "values": plan.n_entries * element}


def values(plan: Plan, active: Tensor, weight: Tensor, room: Room) -> tuple[int | None, ...]:
    """(weight, places of the active ones in it, room for them, room for the weight of every entry), as the kernels take it."""
    if weight.dim() > 1:
        return weight.data_ptr(), active.data_ptr(), room["compact"], room["values"]
    if plan.in_order:  # it is what is wanted
        return None, None, None, weight.data_ptr()
    return weight.data_ptr(), None, None, room["values"]


def of_windows(windows: WindowsStruct | None, x: Tensor, threads: int) -> int:
    return 0 if windows is None else threads * windows.channels * windows.stride * x.shape[-1] * x.element_size()


def place(windows: WindowsStruct | None, at: int) -> None:
    if windows is not None:
        windows.to = at


@dataclass(frozen=True)
class Around:
    """What lies before and behind a layer on the way back.

    Attributes:
        norm: of the layer's inputs, which gives what it reads. outputs: how the gradient of its outputs comes about.
        sums: where factors and the gradients of the norm's weight and bias go.
    """

    norm: NormStruct | None = None
    outputs: NormBackStruct | None = None
    sums: NormSumsStruct | None = None


def gradients(
    plan: LayerPlan, x: Tensor, gradient: Tensor, weight: Tensor, more: Tensor | None, around: Around, *, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """(the loss's gradient of the inputs plus `more`, that of the active weights; zero at the others).

    The order of the weights' sums is the plan's.
    """
    forward, back, precision, threads = plan.forward, plan.backward, PRECISION[x.dtype], torch.get_num_threads()
    (blocks, channels), lanes, element = x.shape[:2], x.shape[-1], x.element_size()
    parts, by_rows = division(forward, blocks, around)
    sums = x.new_zeros(parts, forward.n_active)
    if weight.dim() > 1:
        result, active = torch.zeros_like(weight), plan.active
    else:
        result, active = sums[0] if parts == 1 else torch.empty_like(weight), None
    of_x = targets(back, gradient) if needs_x else None
    windows = output_windows = None
    if around.norm is not None and not around.norm.y:
        windows = windows_struct(forward, channels, lanes, element, plan.widest[0])
    if around.outputs is not None:
        output_windows = windows_struct(back, forward.channels, lanes, element, plan.widest[1])
    room = Room(
        **of_values(back, weight), sums=SUMS * blocks * back.struct.n_bands * back.channels,
        windows=of_windows(windows, x, threads), output_windows=of_windows(output_windows, x, threads),
    )  # fmt: skip
    place(windows, room["windows"])
    place(output_windows, room["output_windows"])
    if around.sums is not None:
        around.sums.parts = room["sums"]
    getattr(kernels(precision).functions, f"weight_gradient_{precision}")(
        forward.address, x.data_ptr(), gradient.data_ptr(), address(active), sums.data_ptr(), result.data_ptr(),
        back.address if needs_x else None, *values(back, plan.active, weight, room), address(more), address(of_x),
        reference(around.norm), reference(around.sums), reference(around.outputs), reference(windows),
        reference(output_windows), blocks, lanes, parts, by_rows, threads,
    )  # fmt: skip
    return of_x, result


def division(plan: Plan, blocks: int, around: Around) -> tuple[int, int]:
    """(parts, parts of the rows) into which the work of a weight gradient is divided, by images and by rows."""
    pieces = max(1, blocks * plan.struct.n_bands)
    if around.norm is not None or around.outputs is not None:  # each part makes its windows, and rows beside its own, itself
        return min(PARTS // 2, pieces), 1
    parts = min(PARTS, pieces)
    return parts, 1 if parts == PARTS else max(1, min(PARTS, plan.channels // ROWS_APIECE))

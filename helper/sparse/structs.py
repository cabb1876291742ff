"""What the kernels are told beside plans and activations: structures of kernels.cpp, and room for what they leave behind."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from helper.sparse.plan import Plan

WINDOW = 480 * 1024  # bytes, unless the rows of one band take more; a core has two of them at a time
PAD = 1  # pixels between the channels of a window, which would else fall into the same lines of the first cache
ALIGNED = 64  # bytes: a vector of the widest kind
MOMENTS = 24  # bytes of `Moments`: three doubles
SUMS = 16  # bytes of two doubles


def fields(pointers: str, doubles: str = "", integers: str = "") -> list[tuple[str, Any]]:
    kinds = ((pointers, ctypes.c_void_p), (doubles, ctypes.c_double), (integers, ctypes.c_int64))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class NormStruct(ctypes.Structure):
    """`Norm` of kernels.cpp."""

    _fields_ = fields("statistics weight bias residual y", integers="channels relu")


class StatisticsStruct(ctypes.Structure):
    """`Statistics` of kernels.cpp."""

    _fields_ = fields("values running_mean running_variance parts", "eps share", "channels given")


class NormBackStruct(ctypes.Structure):
    """`NormBack` of kernels.cpp."""

    _fields_ = fields("factors x mean", integers="channels given")


class NormSumsStruct(ctypes.Structure):
    """`NormSums` of kernels.cpp."""

    _fields_ = fields("parts factors weight bias", integers="given")


class WindowsStruct(ctypes.Structure):
    """`Windows` of kernels.cpp."""

    _fields_ = fields("to offsets", integers="channels room stride")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def reference(struct: ctypes.Structure | None) -> Any:
    return None if struct is None else ctypes.byref(struct)


def norm_struct(
    statistics: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, y: Tensor | None, *, relu: bool
) -> NormStruct:
    addresses = (address(tensor) for tensor in (statistics, weight, bias, residual, y))
    return NormStruct(*addresses, statistics.shape[1], relu)


def statistics_struct(norm: nn.Module, values: Tensor, n_values: int) -> StatisticsStruct:
    """Of a norm that is given so many values per channel, which in training become part of its running statistics.

    Raises:
        ValueError: training on one value per channel.
    """
    share, channels = 0.0, values.shape[1]
    if norm.training:
        if n_values == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got 1 in each of {channels} channels")
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    addresses = (address(tensor) for tensor in (values, norm.running_mean, norm.running_var))
    return StatisticsStruct(*addresses, None, norm.eps, share, channels, not norm.training)


def windows_struct(plan: Plan, channels: int, lanes: int, element: int, widest: int) -> WindowsStruct:
    """Of windows through which a plan reads, for which there is no room yet.

    Args:
        element: bytes of one. widest: pixels of a channel that have to be there at a time.
    """
    width = plan.source_width
    rows = max(-(-widest // width), WINDOW // (channels * width * lanes * element))
    pixels = min(plan.struct.source_plane, rows * width)
    return WindowsStruct(None, plan.offsets_in(pixels + PAD), channels, pixels, pixels + PAD)


class Room:
    """Memory for a kernel's own use, in one piece: at each name an address, aligned.

    Args:
        sizes: {name: bytes}.
    """

    def __init__(self, **sizes: int) -> None:
        total = sum(-(-size // ALIGNED) * ALIGNED for size in sizes.values())
        self.memory = torch.empty(total + ALIGNED, dtype=torch.uint8)
        at = -(-self.memory.data_ptr() // ALIGNED) * ALIGNED
        self.places: dict[str, int] = {}
        for name, size in sizes.items():
            self.places[name] = at
            at += -(-size // ALIGNED) * ALIGNED

    def __getitem__(self, name: str) -> int:
        return self.places[name]

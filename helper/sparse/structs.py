"""What the kernels are told beside plans and activations: structures of kernels.cpp."""

import ctypes
from typing import Any

WINDOW = 480 * 1024  # bytes, unless the rows of one band take more; a core has two of them at a time
PAD = 1  # pixels between the channels of a window, which would else fall into the same lines of the first cache
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


class CallStruct(ctypes.Structure):
    """`Call` of kernels.cpp."""

    _fields_ = [
        *fields("plan back x y g weight active compact values bias more places sums gradient of_inputs"),
        *(("norm", NormStruct), ("statistics", StatisticsStruct), ("norm_sums", NormSumsStruct), ("outputs", NormBackStruct)),
        *(("windows", WindowsStruct), ("output_windows", WindowsStruct)),
        *fields("", integers="kind blocks lanes parts row_parts"),
    ]


def places_of(struct: type[ctypes.Structure], prefix: str = "", first: int = 0) -> dict[str, int]:
    """{name of a field, behind `norm__` where it is one of an inner `norm`: which number of eight bytes it is}."""
    places: dict[str, int] = {}
    for name, kind in struct._fields_:
        at = first + getattr(struct, name).offset // 8
        inner = issubclass(kind, ctypes.Structure)
        places |= places_of(kind, f"{prefix}{name}__", at) if inner else {prefix + name: at}
    return places

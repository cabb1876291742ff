"""Plans of sparse layers: which active weight multiplies what, in the order in which the kernels go through them."""

import ctypes
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from helper.sparse.geometry import Geometry, geometry_of

RUN = np.dtype([("target", "i8"), ("source", "i8"), ("pixels", "i4"), ("kind", "i4")])
ABSENT = np.iinfo(np.int64).min
PARTS = 16  # into which the work of a weight gradient is divided, whatever the number of threads


class PlanStruct(ctypes.Structure):
    """`Plan` of kernels.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("starts", "offsets", "which", "runs")] + [
        (name, ctypes.c_int64)
        for name in ("n_runs", "rows", "n_entries", "n_active", "source_size", "target_size", "target_plane")
    ]


@dataclass(frozen=True)
class Plan:
    """One direction of a layer: sums over sources for each target. The arrays are those of kernels.cpp."""

    starts: np.ndarray
    offsets: np.ndarray
    which: np.ndarray
    runs: np.ndarray
    n_active: int
    channels: int
    image: tuple[int, int]
    source_size: int
    struct: PlanStruct

    @property
    def n_entries(self) -> int:
        return len(self.offsets)

    @property
    def address(self) -> ctypes.c_void_p:
        return ctypes.byref(self.struct)


@dataclass(frozen=True)
class LayerPlan:
    """Of a layer with a mask, for images of one size.

    Attributes:
        forward: from inputs to outputs. backward: from the outputs' gradient to the inputs'.
        active: (n,) int64, where the active weights lie in the weight's memory, in the order of the plans' `which`.
        strides: of the weight for which `active` holds.
    """

    forward: Plan
    backward: Plan
    active: Tensor
    strides: tuple[int, ...]


def layer_plan(layer: nn.Linear | nn.Conv2d, mask: Tensor, image: tuple[int, int]) -> LayerPlan:
    """Plan of a layer.

    Args:
        mask: bool, of the weight's shape.
        image: pixels of its inputs, (1, 1) for a linear layer.
    """
    geometry = geometry_of(layer, image)
    strides = (*layer.weight.stride(), *(0,) * (4 - layer.weight.dim()))
    by_group = mask.detach().cpu().reshape(geometry.groups, -1, *mask.shape[1:], *(1,) * (4 - mask.dim()))
    g, k, r, s, c = (index.numpy() for index in by_group.permute(0, 1, 3, 4, 2).nonzero(as_tuple=True))
    n_targets, n_sources = by_group.shape[1:3]
    target, source = g * n_targets + k, g * n_sources + c
    places = target * strides[0] + c * strides[1] + r * strides[2] + s * strides[3]
    back = order_of((source * by_group.shape[3] + r) * by_group.shape[4] + s)
    sizes = geometry.groups * n_targets, geometry.groups * n_sources
    forward = plan(geometry, target, source, r, s, np.arange(len(g)), *sizes)
    backward = plan(geometry.transposed(), source[back], target[back], r[back], s[back], back, *reversed(sizes))
    return LayerPlan(forward, backward, torch.from_numpy(places.astype(np.int64)), layer.weight.stride())


def plan(
    geometry: Geometry, target: np.ndarray, source: np.ndarray, r: np.ndarray, s: np.ndarray, number: np.ndarray,
    n_targets: int, n_sources: int,
) -> Plan:  # fmt: skip
    """Of active weights in the order of their target channels.

    Args:
        target, source: channels that each one connects. r, s: its place in the kernel. number: which weight it is.
    """
    height, width = geometry.source
    row_bases, row_kinds, row_shapes = geometry.rows.kinds()
    column_bases, column_kinds, column_shapes = geometry.columns.kinds()
    starts, offsets, which, begin = [], [], [], 0
    for rows, columns in itertools.product(row_shapes, column_shapes):
        down, along = distances(rows, r), distances(columns, s)
        hit = (down != ABSENT) & (along != ABSENT)
        offsets.append(source[hit] * height * width + down[hit] * width + along[hit])
        which.append(number[hit])
        starts.append(begin + np.searchsorted(target[hit], np.arange(n_targets + 1)))
        begin += len(which[-1])
    kinds = row_kinds[:, None] * len(column_shapes) + column_kinds
    runs = runs_of(kinds, row_bases[:, None] * width + column_bases)
    entries = np.concatenate(offsets).astype(np.int32), np.concatenate(which).astype(np.int32)
    arrays = (np.concatenate(starts).astype(np.int64), *entries, runs)
    plane = kinds.size
    sizes = (len(runs), n_targets, begin, len(number), n_sources * height * width, n_targets * plane, plane)
    struct = PlanStruct(*(array.ctypes.data for array in arrays), *sizes)
    return Plan(*arrays, len(number), n_targets, geometry.target, n_sources * height * width, struct)


def order_of(keys: np.ndarray) -> np.ndarray:
    """Where the keys lie in their order; equal ones stay in theirs. Small ones are sorted in linear time."""
    small = keys.max(initial=0) < 1 << 16
    return np.argsort(keys.astype(np.uint16) if small else keys, kind="stable")


def distances(shape: dict[int, int], places: np.ndarray) -> np.ndarray:
    """What `shape` says of each place in the kernel; ABSENT where it has none."""
    table = np.full(max([*shape, int(places.max(initial=0))]) + 1, ABSENT)
    table[list(shape)] = list(shape.values())
    return table[places]


def runs_of(kinds: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Pieces of the target's rows within which kind and distance to the source stay the same.

    Args:
        kinds, bases: (height, width), kind and first source pixel of each target pixel.
    """
    begins = np.ones(kinds.shape, bool)
    begins[:, 1:] = (np.diff(kinds) != 0) | (np.diff(bases) != 1)
    first = np.flatnonzero(begins)
    runs = np.zeros(len(first), RUN)
    runs["target"], runs["source"], runs["kind"] = first, bases.flat[first], kinds.flat[first]
    runs["pixels"] = np.diff(first, append=kinds.size)
    return runs

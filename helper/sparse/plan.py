"""Plans of sparse layers: which active weight multiplies what, in the order in which the kernels go through them."""

import ctypes
import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from helper.sparse.bands import reach_of, rows_of_bands, widest, widest_both
from helper.sparse.geometry import Geometry, geometry_of
from helper.sparse.library import kernels

RUN = np.dtype([("target", "i8"), ("source", "i8"), ("pixels", "i4"), ("kind", "i4")])
ABSENT = np.iinfo(np.int64).min
PARTS = 16  # into which the work of a weight gradient is divided, whatever the number of threads


ARRAYS = ("starts", "offsets", "which", "runs", "bands", "reach")
SIZES = (
    "n_runs", "n_bands", "rows", "n_entries", "n_active", "source_size", "target_size", "source_plane", "target_plane",
    "band_pixels",
)  # fmt: skip


class PlanStruct(ctypes.Structure):
    """`Plan` of kernels.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ARRAYS] + [(name, ctypes.c_int64) for name in SIZES]


@dataclass(frozen=True)
class Plan:
    """One direction of a layer: sums over sources for each target. The arrays are those of kernels.cpp.

    Attributes:
        in_order: whether there is one entry for each active weight, in their order.
    """

    starts: np.ndarray
    offsets: np.ndarray
    which: np.ndarray
    runs: np.ndarray
    bands: np.ndarray
    reach: np.ndarray
    n_active: int
    channels: int
    image: tuple[int, int]
    source_width: int
    struct: PlanStruct
    in_order: bool
    in_windows: dict[int, tuple[np.ndarray, int]] = field(default_factory=dict)

    @cached_property
    def widest(self) -> int:
        """Pixels of a channel that a band reads, at most."""
        return widest(self.reach)

    @property
    def band_begins(self) -> np.ndarray:
        """(bands + 1), in pixels."""
        return np.minimum(np.arange(self.struct.n_bands + 1) * self.struct.band_pixels, self.struct.target_plane)

    def offsets_in(self, stride: int) -> int:
        """Where the offsets are for channels that are so many pixels apart."""
        if stride not in self.in_windows:
            channels, distances = np.divmod(self.offsets, self.struct.source_plane)
            offsets = (channels * stride + distances).astype(np.int32)
            self.in_windows[stride] = offsets, offsets.ctypes.data
        return self.in_windows[stride][1]

    @property
    def n_entries(self) -> int:
        return len(self.offsets)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)


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

    @cached_property
    def widest(self) -> tuple[int, int]:
        """Pixels of a channel of the inputs, and of the outputs, that a band of outputs takes on the way back, at most."""
        return widest_both(*((plan.reach, plan.band_begins) for plan in (self.forward, self.backward)))


def layer_plan(layer: nn.Linear | nn.Conv2d, mask: Tensor, image: tuple[int, int]) -> LayerPlan:
    """Plan of a layer.

    Args:
        mask: bool, of the weight's shape.
        image: pixels of its inputs, (1, 1) for a linear layer.
    """
    geometry, strides = geometry_of(layer, image), layer.weight.stride()
    forward, active = connections(mask, geometry.groups, (*strides, *(0,) * (4 - len(strides))))
    backward = forward.transposed()
    plans = plan(geometry, forward), plan(geometry.transposed(), backward)
    return LayerPlan(*plans, active, strides)


@dataclass(frozen=True)
class Connections:
    """Active weights in the order of their rows, taps and channels.

    Attributes:
        starts: (rows * taps + 1), where those of each tap of each row begin.
        channels: of what each one reads.
        numbers: which weight each one is; None: they are numbered as they come.
        n_channels: that there are. kernel: taps, down and along.
    """

    starts: np.ndarray
    channels: np.ndarray
    numbers: np.ndarray | None
    n_channels: int
    kernel: tuple[int, int]

    @property
    def n_taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def n_rows(self) -> int:
        return (len(self.starts) - 1) // self.n_taps

    def transposed(self) -> "Connections":
        """The same weights, with the channels that they read as rows."""
        n, threads = len(self.channels), torch.get_num_threads()
        starts = np.empty(self.n_channels * self.n_taps + 1, np.int64)
        channels, numbers = np.empty(n, np.int32), np.empty(n, np.int32)
        next_ones = np.zeros((threads, len(starts) - 1), np.int64)
        given = (self.starts, self.channels, starts, channels, numbers, next_ones)
        sizes = self.n_rows, self.n_taps, self.n_channels
        kernels().functions.plan_transpose(*sizes, *(array.ctypes.data for array in given), threads)
        return Connections(starts, channels, numbers, self.n_rows, self.kernel)


class WeightsStruct(ctypes.Structure):
    """`Weights` of kernels.cpp."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("targets", "taps", "sources", "group_targets", "target_stride", "source_stride")
    ] + [("tap_places", ctypes.c_void_p)]


class EntriesStruct(ctypes.Structure):
    """`Entries` of kernels.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "taps", "plane")] + [
        (name, ctypes.c_void_p) for name in ("starts", "channels", "numbers", "hits", "distances")
    ]


def connections(mask: Tensor, groups: int, strides: tuple[int, ...]) -> tuple[Connections, Tensor]:
    """From every target to the sources that it reads, and where each active weight lies in memory.

    Args:
        strides: of the weight, with as many zeros behind them as it has fewer dimensions than four.
    """
    by_group = mask.detach().cpu().bool().reshape(groups, -1, *mask.shape[1:], *(1,) * (4 - mask.dim()))
    ordered = by_group.permute(0, 1, 3, 4, 2).contiguous()
    _, group_targets, height, width, sources = ordered.shape
    targets, taps, threads, functions = groups * group_targets, height * width, torch.get_num_threads(), kernels().functions
    starts = np.zeros(targets * taps + 1, np.int64)
    functions.plan_counts(ordered.data_ptr(), targets * taps, sources, starts[1:].ctypes.data, threads)
    np.cumsum(starts, out=starts)
    channels, places = np.empty(starts[-1], np.int32), torch.empty(int(starts[-1]), dtype=torch.int64)
    tap_places = np.add.outer(np.arange(height) * strides[2], np.arange(width) * strides[3]).astype(np.int64)
    struct = WeightsStruct(targets, taps, sources, group_targets, *strides[:2], tap_places.ctypes.data)
    arrays = (starts.ctypes.data, channels.ctypes.data, places.data_ptr())
    functions.plan_active(ctypes.byref(struct), ordered.data_ptr(), *arrays, threads)
    return Connections(starts, channels, None, groups * sources, (height, width)), places


def plan(geometry: Geometry, of: Connections) -> Plan:
    """Of sums for every row over the channels that it reads."""
    height, width = geometry.source
    row_bases, row_kinds, row_shapes = geometry.rows.kinds()
    column_bases, column_kinds, column_shapes = geometry.columns.kinds()
    shapes = list(itertools.product(row_shapes, column_shapes))
    distances = np.stack([tap_distances(*shape, of.kernel, width) for shape in shapes]).reshape(len(shapes), -1)
    starts = entry_starts(of, distances != ABSENT)
    offsets, which = entries(of, distances, starts, height * width)
    kinds = row_kinds[:, None] * len(column_shapes) + column_kinds
    rows_of_band = rows_of_bands(kinds.shape[1])
    runs, bands = runs_of(kinds, row_bases[:, None] * width + column_bases, rows_of_band)
    reach = reach_of(geometry.rows, rows_of_band) * width
    arrays, plane, n_active = (starts, offsets, which, runs, bands, reach), kinds.size, len(of.channels)
    source_size, target_size = of.n_channels * height * width, of.n_rows * plane
    counts = (len(runs), len(bands) - 1, of.n_rows, len(offsets), n_active)
    sizes = (*counts, source_size, target_size, height * width, plane, rows_of_band * kinds.shape[1])
    struct = PlanStruct(*(array.ctypes.data for array in arrays), *sizes)
    in_order = of.numbers is None and len(shapes) == 1 and len(offsets) == n_active
    return Plan(*arrays, n_active, of.n_rows, geometry.target, width, struct, in_order)


def tap_distances(rows: dict[int, int], columns: dict[int, int], kernel: tuple[int, int], width: int) -> np.ndarray:
    """Pixels between each tap and the first pixel that a kind of targets reads; ABSENT where a tap hits none."""
    distances = np.full(kernel, ABSENT)
    for (r, down), (s, along) in itertools.product(rows.items(), columns.items()):
        distances[r, s] = down * width + along
    return distances


def entry_starts(of: Connections, hits: np.ndarray) -> np.ndarray:
    """(kinds, rows + 1), where each kind's rows of entries begin.

    Args:
        hits: (kinds, taps), whether a tap hits the source.
    """
    by_tap = np.diff(of.starts).reshape(-1, of.n_taps)
    starts = np.zeros((len(hits), len(by_tap) + 1), np.int64)
    np.cumsum((by_tap @ hits.T.astype(np.int64)).T, axis=1, out=starts[:, 1:])
    starts[1:] += starts[:-1, -1].cumsum()[:, None]
    return starts


def entries(of: Connections, distances: np.ndarray, starts: np.ndarray, plane: int) -> tuple[np.ndarray, np.ndarray]:
    """(distance in pixels, number of its weight) of every entry."""
    offsets, which = np.empty(starts[-1, -1], np.int32), np.empty(starts[-1, -1], np.int32)
    numbers = None if of.numbers is None else of.numbers.ctypes.data
    for kind, hits in enumerate(distances != ABSENT):
        of_kind = (hits.ctypes.data, distances[kind].ctypes.data)
        struct = EntriesStruct(of.n_rows, of.n_taps, plane, of.starts.ctypes.data, of.channels.ctypes.data, numbers, *of_kind)
        arrays = (starts[kind].ctypes.data, offsets.ctypes.data, which.ctypes.data)
        kernels().functions.plan_entries(ctypes.byref(struct), *arrays, torch.get_num_threads())
    return offsets, which


def runs_of(kinds: np.ndarray, bases: np.ndarray, rows_of_band: int) -> tuple[np.ndarray, np.ndarray]:
    """(pieces of the target's rows within which kind and distance to the source stay the same, where each band of rows begins).

    Those of a band lie side by side, and among them those of a kind.

    Args:
        kinds, bases: (height, width), kind and first source pixel of each target pixel.
    """
    begins = np.ones(kinds.shape, bool)
    begins[:, 1:] = (np.diff(kinds) != 0) | (np.diff(bases) != 1)
    first = np.flatnonzero(begins)
    runs = np.zeros(len(first), RUN)
    runs["target"], runs["source"], runs["kind"] = first, bases.flat[first], kinds.flat[first]
    runs["pixels"] = np.diff(first, append=kinds.size)
    band = first // (kinds.shape[1] * rows_of_band)
    return runs[np.lexsort((first, runs["kind"], band))], np.searchsorted(band, np.arange(band.max(initial=-1) + 2))

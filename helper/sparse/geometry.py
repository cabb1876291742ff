"""Where a layer reads: which source pixels each target pixel's taps hit, in kinds of pixels that hit alike."""

from dataclasses import dataclass

import numpy as np
from torch import nn

Tap = tuple[int, int]  # (place in the kernel, pixel along the axis)


@dataclass(frozen=True)
class Axis:
    """One image axis of a layer.

    Attributes:
        taps: of each target pixel, those that hit the source. n_source: its pixels.
    """

    taps: tuple[tuple[Tap, ...], ...]
    n_source: int

    def transposed(self) -> "Axis":
        """The same pairs of pixels, seen from the source."""
        back: list[list[Tap]] = [[] for _ in range(self.n_source)]
        for pixel, taps in enumerate(self.taps):
            for place, source in taps:
                back[source].append((place, pixel))
        return Axis(tuple(tuple(sorted(taps)) for taps in back), len(self.taps))

    def kinds(self) -> tuple[np.ndarray, np.ndarray, list[dict[int, int]]]:
        """(first source pixel of each target pixel, its kind, {place: distance from that first pixel} of each kind)."""
        bases = [min((source for _, source in taps), default=0) for taps in self.taps]
        shapes = [tuple((place, source - base) for place, source in taps) for taps, base in zip(self.taps, bases, strict=True)]
        number = {shape: i for i, shape in enumerate(dict.fromkeys(shapes))}
        return np.array(bases), np.array([number[shape] for shape in shapes]), [dict(shape) for shape in number]


@dataclass(frozen=True)
class Geometry:
    """A layer's weight, seen as (groups, targets, sources, height, width), between two images."""

    rows: Axis
    columns: Axis
    groups: int

    @property
    def target(self) -> tuple[int, int]:
        return len(self.rows.taps), len(self.columns.taps)

    @property
    def source(self) -> tuple[int, int]:
        return self.rows.n_source, self.columns.n_source

    def transposed(self) -> "Geometry":
        return Geometry(self.rows.transposed(), self.columns.transposed(), self.groups)


def axis(n_source: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> Axis:
    """Of a convolution with so many zeros before and after the image.

    Raises:
        ValueError: the kernel is larger than the padded image.
    """
    n_target = (n_source + before + after - dilation * (kernel - 1) - 1) // stride + 1
    if n_target < 1:
        raise ValueError(f"a kernel that spans {dilation * (kernel - 1) + 1} pixels does not fit {n_source} padded ones")
    sources = [[(k, p * stride + k * dilation - before) for k in range(kernel)] for p in range(n_target)]
    return Axis(tuple(tuple((k, s) for k, s in taps if 0 <= s < n_source) for taps in sources), n_source)


def geometry_of(layer: nn.Linear | nn.Conv2d, image: tuple[int, int]) -> Geometry:
    """Of a layer that reads an image of so many pixels, (1, 1) for a linear one."""
    if isinstance(layer, nn.Linear):
        one = axis(1, 1, 1, 0, 0, 1)
        return Geometry(one, one, 1)
    height, width = zip(layer.kernel_size, layer.stride, zeros_around(layer), layer.dilation, strict=True)
    axes = [axis(n, k, s, *p, d) for n, (k, s, p, d) in zip(image, (height, width), strict=True)]
    return Geometry(*axes, layer.groups)


def zeros_around(layer: nn.Conv2d) -> list[tuple[int, int]]:
    """(before, after) the rows, and the columns."""
    if layer.padding == "valid":
        return [(0, 0), (0, 0)]
    if layer.padding == "same":
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(n, n) for n in layer.padding]

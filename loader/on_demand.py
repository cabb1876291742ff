"""Inputs of which only the rows that are asked for come into memory."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor

IN_MEMORY = 1 << 30  # bytes of inputs up to which they are read as a whole
RELEASED = 1 << 28  # bytes of pages that may have been touched before they are given back
PAGES = 1 << 18  # bytes that a fault maps around a row, about
AT_ONCE = 1 << 22  # bytes of rows that `pieces` takes at once


@dataclass
class Mapping:
    """A file's pages in this process's memory, which are given back from time to time: the kernel keeps them as its cache."""

    pages: mmap.mmap
    touched: int = 0

    def touch(self, n_rows: int, n_bytes: int) -> None:
        """So many rows of so many bytes each have been read."""
        self.touched += n_rows * max(n_bytes, PAGES)
        if self.touched > RELEASED:
            self.pages.madvise(mmap.MADV_DONTNEED)
            self.touched = 0


@dataclass(frozen=True)
class OnDemand:
    """Like an (N, ...) tensor as far as data sets ask, of rows that are taken when they are asked for.

    Attributes:
        source: (M, ...) all rows as they are stored. rows: (N,) which of them these are; None: all.
        dtype: of what is given. channels_behind: images are stored (M, H, W, C) and given (N, C, H, W).
        device: of what is given. mapping: whose pages the rows lie in; None: they are in memory.
    """

    source: Tensor
    rows: Tensor | None = None
    dtype: torch.dtype = torch.uint8
    channels_behind: bool = False
    device: torch.device = field(default=torch.device("cpu"))
    mapping: Mapping | None = None

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        inner = self.source.shape[1:]
        return torch.Size([len(self), *((inner[-1], *inner[:-1]) if self.channels_behind else inner)])

    @property
    def ndim(self) -> int:
        return self.source.ndim

    def to(self, device: torch.device) -> "OnDemand":
        return replace(self, device=torch.device(device))

    def subset(self, rows: Tensor) -> "OnDemand":
        """Some of the rows, or those where a bool tensor is True; none is read."""
        own = torch.arange(len(self.source)) if self.rows is None else self.rows
        return replace(self, rows=own[rows.cpu()])

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Rows in memory."""
        wanted = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu()
        if wanted.dtype == torch.bool:
            wanted = wanted.nonzero().flatten()
        found = self.source.index_select(0, wanted if self.rows is None else self.rows[wanted])
        if self.mapping is not None:
            self.mapping.touch(len(wanted), self.source[0].nbytes)
        if self.channels_behind:
            found = found.permute(0, 3, 1, 2)
        return found.to(self.device, self.dtype)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """`self[rows]`; `dim` has to be 0."""
        return self[rows]


def large_on_demand(inputs: Any) -> Any:
    """A tensor too large to be copied as `OnDemand`, anything else as it is."""
    if isinstance(inputs, Tensor) and inputs.nbytes > IN_MEMORY:
        return OnDemand(inputs, dtype=inputs.dtype)
    return inputs


def subset(inputs: Any, rows: Tensor) -> Any:
    """Some rows of a tensor or of what is taken on demand, which stays so."""
    return inputs.subset(rows) if isinstance(inputs, OnDemand) else inputs[rows]


def rows_at_once(inputs: Tensor | OnDemand) -> int:
    return max(1, AT_ONCE // max(1, inputs[:1].nbytes)) if len(inputs) else 1


def pieces(inputs: Tensor | OnDemand) -> Iterator[Tensor]:
    """All rows, some at a time."""
    for rows in torch.arange(len(inputs)).split(rows_at_once(inputs)):
        yield inputs[rows[0] : rows[-1] + 1]


def mapping_of(array: numpy.ndarray) -> Mapping | None:
    """The pages of an array that is a `numpy.memmap` or a view of one; None: it lies in memory."""
    while array is not None:
        pages = getattr(array, "_mmap", None)
        if isinstance(pages, mmap.mmap):
            return Mapping(pages)
        array = array.base if isinstance(array.base, numpy.ndarray) else None
    return None

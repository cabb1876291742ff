"""Scores as one sequence of numbers, of which only pieces are ever in memory beside the tensors themselves."""

from collections.abc import Iterator, Mapping, Sequence

import numpy
import torch
from torch import Tensor

PIECE = 1 << 18  # numbers, which stay in the cache


class Sizes(Mapping[str, Tensor]):
    """|x| of tensors, each made when it is asked for.

    Attributes:
        of: the tensors, with their signs.
    """

    def __init__(self, of: Mapping[str, Tensor]) -> None:
        self.of = of

    def __getitem__(self, name: str) -> Tensor:
        return self.of[name].abs()

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


class Numbers:
    """The elements of some CPU tensors in their order, or some of them.

    Args:
        tensors: of one dtype; where their memory has another order than their elements they are copied.
        among: bool tensors of their shapes, which say what counts; None: everything.
        absolute: whether absolute values are the numbers.
    Attributes:
        size: how many elements the tensors have. n: how many of them count.
    """

    def __init__(self, tensors: Sequence[Tensor], among: Sequence[Tensor] | None, *, absolute: bool) -> None:
        self.shapes, self.absolute = [tensor.shape for tensor in tensors], absolute
        self.flats = [flattened(tensor) for tensor in tensors]
        self.among = [None] * len(tensors) if among is None else [flattened(part) for part in among]
        self.everything = among is None
        self.ends = numpy.cumsum([len(flat) for flat in self.flats])
        self.size = int(self.ends[-1])
        self.n = self.size if among is None else sum(int(part.count_nonzero()) for part in among)

    def pieces(self) -> Iterator[numpy.ndarray]:
        """Those that count, some at a time."""
        for flat, among in zip(self.flats, self.among, strict=True):
            for start in range(0, len(flat), PIECE):
                piece = flat[start : start + PIECE]
                yield self.signless(piece if among is None else piece[among[start : start + PIECE]])

    def above(self, bound: numpy.number, *, equal: bool) -> list[Tensor]:
        """For each tensor a bool tensor of its shape: True where an element counts and is higher than a bound, or equal."""
        compare = numpy.greater_equal if equal else numpy.greater
        found = []
        for flat, among, shape in zip(self.flats, self.among, self.shapes, strict=True):
            there = numpy.empty(len(flat), bool)
            for start in range(0, len(flat), PIECE):
                part = slice(start, start + PIECE)
                compare(self.signless(flat[part]), bound, out=there[part])
            if among is not None:
                there &= among
            found.append(torch.from_numpy(there).view(shape))
        return found

    def places(self) -> numpy.ndarray:
        """Of those that count, in all elements."""
        starts = self.ends - [len(flat) for flat in self.flats]
        parts = zip(self.among, starts, strict=True)
        return numpy.concatenate([(numpy.flatnonzero(among) + start).astype(self.kind_of_place) for among, start in parts])

    @property
    def kind_of_place(self) -> type[numpy.integer]:
        return numpy.int32 if self.size < 2**31 else numpy.int64

    def at(self, places: numpy.ndarray) -> numpy.ndarray:
        """The elements in some places."""
        found = numpy.empty(len(places), self.flats[0].dtype)
        first, last = numpy.searchsorted(self.ends, [places.min(), places.max()], side="right") if len(places) else (0, -1)
        for layer in range(first, last + 1):
            end = self.ends[layer]
            own = slice(None) if first == last else (places >= end - len(self.flats[layer])) & (places < end)
            found[own] = self.flats[layer][places[own] - (end - len(self.flats[layer]))]
        return self.signless(found)

    def span(self, start: int, end: int) -> numpy.ndarray:
        """The elements from one place to before another."""
        parts = []
        for flat, after in zip(self.flats, self.ends, strict=True):
            first = int(after) - len(flat)
            if first < end and start < after:
                parts.append(flat[max(start - first, 0) : end - first])
        return self.signless(parts[0] if len(parts) == 1 else numpy.concatenate(parts))

    def signless(self, values: numpy.ndarray) -> numpy.ndarray:
        return numpy.abs(values) if self.absolute else values


def flattened(tensor: Tensor) -> numpy.ndarray:
    return tensor.detach().flatten().numpy()

"""Programs: calls of the kernels that are put together once, and run with other addresses each time.

Between two calls of a kernel, Python and PyTorch would take as long as a kernel takes for a small layer. A program makes all
calls of a chain of layers at once.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from helper.sparse.library import kernels
from helper.sparse.structs import CallStruct, places_of

PLACES = places_of(CallStruct)
SIZE = ctypes.sizeof(CallStruct) // 8
ALIGNED = 64  # bytes: a vector of the widest kind


def whole(size: int) -> int:
    """Bytes, up to the next aligned place."""
    return -(-size // ALIGNED) * ALIGNED


class Kind(IntEnum):
    """Of a call, as in kernels.cpp."""

    GATHER = 0
    GRADIENTS = 1
    NORMALISE = 2
    NORMALISE_BACKWARD = 3
    ADD = 4


@dataclass(frozen=True)
class At:
    """An address: so many bytes into a piece of memory that is there when a program runs.

    Attributes:
        piece: which one, by its place among those that `Program.run` is given.
    """

    piece: int
    offset: int = 0


class Program:
    """Calls of kernels, one after the other.

    Args:
        precision: of the kernels, see `library.PRECISION`.
    """

    def __init__(self, precision: str) -> None:
        self.precision, self.rows = precision, list[np.ndarray]()
        self.slots, self.pieces, self.offsets = list[int](), list[int](), list[int]()
        self.finished: tuple[np.ndarray, ...] | None = None

    def add(self, kind: Kind, **fields: At | int | float | None) -> int:
        """A further call; what is not given is zero.

        Args:
            fields: by their names in `PLACES`.
        Returns:
            Where its fields begin.
        """
        row, first = np.zeros(SIZE, np.int64), len(self.rows) * SIZE
        row[PLACES["kind"]] = kind
        for name, value in fields.items():
            place = PLACES[name]
            if isinstance(value, At):
                self.slots.append(first + place)
                self.pieces.append(value.piece)
                self.offsets.append(value.offset)
            elif isinstance(value, float):
                row.view(np.float64)[place] = value
            elif value is not None:
                row[place] = value
        self.rows.append(row)
        return first

    def run(self, pieces: Sequence[int], threads: int, values: Sequence[tuple[int, float]] = ()) -> None:
        """Make the calls.

        Args:
            pieces: addresses of the pieces of memory.
            values: (place, number) of what differs from time to time.
        """
        if not self.rows:
            return
        if self.finished is None:
            self.rows = [np.concatenate(self.rows)]  # first, as another thread may see that it is finished
            self.finished = tuple(np.array(one, np.int64) for one in (self.slots, self.pieces, self.offsets))
        slots, which, offsets = self.finished
        image = self.rows[0].copy()  # so that several threads may run it at once
        image[slots] = np.array(pieces, np.int64)[which] + offsets
        for place, value in values:
            image.view(np.float64)[place] = value
        function = getattr(kernels(self.precision).functions, f"run_{self.precision}")
        function(image.ctypes.data, len(image) // SIZE, threads)


@dataclass(eq=False)
class Block:
    """A piece of an arena.

    Attributes:
        users: who will still read it; None: it stays.
    """

    at: At
    size: int
    users: int | None


class Arena:
    """Memory of which calls that follow each other take blocks and give them back.

    Attributes:
        size, before: bytes that it has to have, behind its address and before that.
    """

    def __init__(self, piece: int) -> None:
        self.piece, self.size, self.before, self.free = piece, 0, 0, list[tuple[int, int]]()

    def take_small(self, size: int) -> Block:
        """A block that stays, where it does not break up what others give back."""
        size = whole(size)
        self.before += size
        return Block(At(self.piece, -self.before), size, None)

    def take(self, size: int, users: int | None) -> Block:
        """The smallest free block that is large enough."""
        size = whole(size)
        fit = [(room, offset) for offset, room in self.free if room >= size]
        if not fit:
            self.size += size
            return Block(At(self.piece, self.size - size), size, users)
        room, offset = min(fit)
        self.free.remove((offset, room))
        if room > size:
            self.free.append((offset + size, room - size))
        return Block(At(self.piece, offset), size, users)

    def release(self, block: Block) -> None:
        """One of its users is done with a block."""
        if block.users is None:
            return
        block.users -= 1
        if block.users > 0:
            return
        merged: list[tuple[int, int]] = []
        for offset, size in sorted([*self.free, (block.at.offset, block.size)]):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = merged[-1][0], merged[-1][1] + size
            else:
                merged.append((offset, size))
        self.free = merged

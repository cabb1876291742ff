"""Memory for passes: in huge pages where the system has them, and the same one step after step.

A pass of a ResNet goes through hundreds of megabytes, and a page of 4 KiB of each of its streams is soon read.
"""

import contextlib
import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

from helper.sparse.program import ALIGNED
from helper.system.memory import trim_memory

HUGE = 2 << 20  # bytes of a huge page, as most processors have them; smaller rooms come from PyTorch


class Rooms:
    """Gives memory, and takes it back when no tensor uses it any more, for the next one of the same size."""

    def __init__(self) -> None:
        self.free: dict[int, list[mmap.mmap]] = {}

    def take(self, size: int) -> Tensor:
        """(size,) bytes, aligned, with anything in them."""
        if size < HUGE:
            return ordinary(size)
        try:
            mapping = self.free[size].pop()
        except (KeyError, IndexError):  # none, or another thread was first
            mapping = mapped(size + HUGE)
        if mapping is None:
            return ordinary(size)
        array = np.frombuffer(mapping, np.uint8)
        weakref.finalize(array, give_back, weakref.ref(self), size, mapping).atexit = False
        return aligned(torch.from_numpy(array), size, HUGE)  # holds the array as long as a view of it is there


def give_back(rooms: "weakref.ref[Rooms]", size: int, mapping: mmap.mmap) -> None:
    """Memory to those from whom it was taken, if they are still there."""
    owner = rooms()
    if owner is not None:
        owner.free.setdefault(size, []).append(mapping)


def mapped(size: int) -> mmap.mmap | None:
    """Memory of its own, in huge pages if that is possible; None: the system has none to give."""
    trim_memory()
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None  # PyTorch may still have some, or says how much is missing
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a system without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def ordinary(size: int) -> Tensor:
    """(size,) bytes of PyTorch's memory, aligned."""
    return aligned(torch.empty(size + ALIGNED, dtype=torch.uint8), size, ALIGNED)


def aligned(raw: Tensor, size: int, to: int) -> Tensor:
    first = -raw.data_ptr() % to
    return raw[first : first + size]

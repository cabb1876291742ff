"""Long work that a signal may interrupt, in one process or in several at the same place."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from helper.processes.group import links, world_size
from helper.system.signals import Signals

NOTE = "asked to end"
Item = TypeVar("Item")
_heeded: Signals | None = None  # those that interrupt the work under way


@contextlib.contextmanager
def interruptible(signals: Signals | None) -> Iterator[None]:
    """Inside, the work may be interrupted wherever `check_signals` is called; None, as outside: it may not.

    All processes enter and leave together. Wherever they meet inside, they tell each other whether one was asked to end,
    and are interrupted at the same place. One that is asked between two meetings leaves a note, which the others find where
    they look for signals, and all go to the next meeting at once.
    """
    global _heeded
    former, _heeded = _heeded, signals
    try:
        yield
        meet()
    finally:
        _heeded = former


def check_signals() -> None:
    """Called between the parts of long work. Raises Interrupted: an end was asked for."""
    if _heeded is None:
        return
    if world_size() > 1:
        if _heeded.received:
            links.store.set(NOTE, "")
        if _heeded.received or links.store.check([NOTE]):
            meet(asked=True)
    elif _heeded.received:
        raise _heeded.interruption()


def checking_signals(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with `check_signals` before each."""
    for item in items:
        check_signals()
        yield item


def meet(*, asked: bool = False) -> None:
    """Raise Interrupted in every process if any of them was asked to end.

    Args:
        asked: this one knows of another one that was.
    """
    if _heeded is not None and world_size() > 1:
        anyone_asked = torch.tensor(int(asked or bool(_heeded.received)))
        dist.all_reduce(anyone_asked, group=links.group)
        if anyone_asked:
            raise _heeded.interruption()


@contextlib.contextmanager
def waiting_for_a_network() -> Iterator[None]:
    """Inside, a signal interrupts interruptible work at once: a read from a network may take any time.

    Not where several processes do it, of which none may leave alone.
    """
    signals = _heeded if world_size() == 1 else None
    if signals is None:
        yield
        return
    check_signals()
    signals.at_once = True
    try:
        yield
    finally:
        signals.at_once = False

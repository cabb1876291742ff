"""Long work is never silent: a bar on a terminal, elsewhere a log line when nothing has been said for half a minute."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import TypeVar

from helper.processes.group import rank
from helper.processes.interruption import check_signals

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds of silence until a line says how far the work is
BAR_AFTER = 1.0  # seconds until a bar appears: what is shorter would flicker
clock = time.monotonic
Item = TypeVar("Item")


class Task:
    """Work under way inside `with`, and how far it is; only the first of several processes shows it.

    Tasks may be nested: a line names all that are under way, the outermost first. A thread writes it, so that a step that
    takes minutes is no silence either.

    Args:
        what: the work, as a line begins with it.
        total: parts that it has; None: unknown, so there is no bar, and a line only says how long it has been under way.
        unit: plural of their name.
        done: parts done before, by an earlier process.
        shown: False: nothing is shown.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "", *, done: int = 0, shown: bool = True) -> None:
        self.what, self.total, self.unit, self.before, self.done = what, total, unit, done, done
        self.shown = shown and rank() == 0
        self.bar = None

    def __enter__(self) -> "Task":
        self.started = clock()
        if self.shown and self.total is not None and sys.stderr.isatty():
            from tqdm import tqdm  # only a terminal needs it

            self.bar = tqdm(
                total=self.total, initial=self.done, desc=self.what, unit=f" {self.unit}", delay=BAR_AFTER, leave=False
            )
        elif self.shown:
            _silence.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            _silence.leave(self)

    def advance(self, parts: int = 1) -> None:
        """Further parts are done. Raises Interrupted: an end was asked for, see `helper.processes.interruption`."""
        self.done += parts
        if self.bar is not None:
            self.bar.update(parts)
        check_signals()

    def note(self, **values: str) -> None:
        """Short values that a bar shows at its end."""
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)

    def line(self, now: float) -> str:
        """How far it is, how long it has taken, and how long the rest will take at that speed."""
        gone = now - self.started
        if self.total is None:
            return f"{self.what}: {duration(gone)} so far"
        new = self.done - self.before
        left = f", about {duration(gone / new * (self.total - self.done))} left" if 0 < new <= self.total - self.before else ""
        return f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {duration(gone)} so far{left}"


class Silence:
    """What is under way, and the thread that breaks the silence; there is a thread while there is work."""

    def __init__(self) -> None:
        self.under_way: list[Task] = []
        self.spoken = 0.0
        self.over = threading.Event()

    def enter(self, task: Task) -> None:
        self.under_way.append(task)
        if len(self.under_way) == 1:
            self.spoken, self.over = clock(), threading.Event()
            threading.Thread(target=self.watch, args=(self.over,), daemon=True).start()

    def leave(self, task: Task) -> None:
        self.under_way.remove(task)
        if not self.under_way:
            self.over.set()

    def watch(self, over: threading.Event) -> None:
        while not over.wait(max(0.0, self.spoken + EVERY - clock())):
            self.say_if_due()

    def say_if_due(self) -> None:
        tasks, now = list(self.under_way), clock()
        if tasks and now - self.spoken >= EVERY:
            self.spoken = now
            log.info("%s", "; ".join(task.line(now) for task in tasks))


_silence = Silence()


def spoken() -> None:
    """Something else has just said how far the work is: the next line may wait."""
    _silence.spoken = clock()


def tracked(items: Collection[Item], what: str, unit: str, *, shown: bool = True) -> Iterator[Item]:
    """The items, each a part of a task that begins with the first and ends after the last."""
    with Task(what, len(items), unit, shown=shown) as task:
        for item in items:
            yield item
            task.advance()


def lines_above_bars() -> contextlib.AbstractContextManager[None]:
    """Inside, log lines are printed above the bars of a terminal; elsewhere there are none."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()


def duration(seconds: float) -> str:
    """`3 d 4 h`, `2 h 05 min`, `4 min`, `12 s`."""
    minutes = round(seconds / 60)
    if seconds < 99:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"

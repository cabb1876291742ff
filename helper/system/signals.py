"""Signals that ask for an orderly end; `helper.processes.interruption` answers them between the parts of long work."""

import contextlib
import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 75  # of a process that did as it was asked: the same command goes on
STDERR = 2  # its descriptor: a handler may not use a stream that it has interrupted
GOES_ON = "the same command goes on from there"


class Interrupted(Exception):
    """An end was asked for, and what is on disk is whole. No RuntimeError, which some take for a network's own failure."""


class Signals:
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 inside `with`; a second SIGINT ends the process at once.

    `at_once`: the next one raises Interrupted wherever the program is, which is only for what waits for a network.
    """

    WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: str | None = None
        self.at_once = False
        self._former: dict = {}

    def __enter__(self) -> "Signals":
        self._former = {number: signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if self.at_once:
            raise self.interruption()

    def answer(self) -> None:
        """Raise Interrupted if an end has been asked for. One of several processes that have joined: `check_signals`."""
        if self.received:
            raise self.interruption()

    def interruption(self, where: str = "") -> Interrupted:
        """What ends the work.

        Args:
            where: words that follow `stopped`.
        """
        asked = self.received or "another process was asked to end"
        return Interrupted(f"{asked}: stopped{where}; {GOES_ON}")


def end_at_once(prog: str) -> None:
    """From now on each of the signals ends the process where it is, with its line: for what has begun nothing yet.

    No exception: one that is raised inside of an import may be taken for a library that is missing.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
            with contextlib.suppress(OSError):  # nobody listens any more
                os.write(STDERR, f"{prog}: {signal.Signals(number).name}: stopped; {GOES_ON}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    for number in Signals.WATCHED:
        signal.signal(number, end)


def usual_signals() -> None:
    """In a process that works for another one: SIGTERM ends it, and Ctrl-C is the other one's to answer."""
    for number in Signals.WATCHED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Signals that ask for an orderly end."""

import signal
from types import FrameType


class Signals:
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 inside `with`; a second SIGINT ends the process at once."""

    WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: str | None = None
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

"""An end that is asked for at a chosen step, where a real signal comes at some moment."""

from helper.signals import Signals


class StopsInSecondEpoch(Signals):
    """Asks for an end after some steps of the second epoch of `n_steps` each.

    A run looks for signals after the initialisation, after each step and after each epoch.
    """

    looks = 0
    received = property(lambda self: self.look(), lambda self, value: None)

    def __init__(self, n_steps: int, steps: int) -> None:
        super().__init__()
        self.last = 1 + n_steps + 1 + steps

    def look(self) -> str | None:
        self.looks += 1
        return "SIGTERM" if self.looks >= self.last else None

"""A tracker of its own: one line an epoch in a text file of the run folder. What it is asked to do, it may refuse."""

from pathlib import Path

from optim.folder import RunFolder
from optim.trackers.main import Tracker


class Refused(Exception):
    """What some tracker's library may raise: no OSError, no RuntimeError."""


class Lines(Tracker):
    refuse: tuple[int | str, ...] = ()  # events at which it raises: epochs and "end"

    def epoch(self, epoch: int) -> None:
        self.write(epoch, f"{epoch} {self.folder.history().rows[-1]['acc_test']}\n")

    def end(self) -> None:
        self.write("end", f"end finished={self.folder.finished} metrics={len(self.folder.metrics().rows)}\n")

    def write(self, event: int | str, line: str) -> None:
        if event in self.refuse:
            raise Refused("the line is engaged")
        with open(self.place / "lines.txt", "a") as file:
            file.write(line)


def make(folder: RunFolder, place: Path) -> Tracker:
    return Lines(folder, place)

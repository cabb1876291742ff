"""Where a run can be followed beside its tables. A tracker reads the run folder and never decides what happens to the run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from optim.folder import RunFolder

log = logging.getLogger(__name__)


class Tracker:
    """`--tracker none`, and what the others implement."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @staticmethod
    def check() -> None:
        """Before anything is trained; raises RuntimeError when a package is missing."""

    def epoch(self, epoch: int) -> None:
        """The tables have the rows of an epoch."""

    def end(self) -> None:
        """The folder holds all that it will, figures and summary too; also of a run that was finished long ago."""


class TensorBoard(Tracker):
    """An event file in `<run folder>/tensorboard/`, written from the tables when a process starts and ends, added to between.

    What cannot be written is reported and left out; the run goes on, and the next epoch starts from the tables again.
    """

    path: Path | None = None  # the file to add to

    @staticmethod
    def check() -> None:
        try:
            import optim.events  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] != "tensorboard":
                raise  # it is there, and something that it needs is not
            raise RuntimeError(
                "--tracker tensorboard: the package tensorboard is not installed; "
                "pip install tensorboard, or use --tracker none"
            ) from None

    def epoch(self, epoch: int) -> None:
        from optim.events import append_epoch, write_events

        with self.reported():
            if self.path is None:
                self.path = write_events(self.folder)
            else:
                append_epoch(self.path, self.folder, epoch)

    def end(self) -> None:
        from optim.events import write_events

        with self.reported():
            write_events(self.folder)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.path = None
            log.warning("--tracker tensorboard: %s; the tables have everything, the same command again writes it", error)


TRACKERS: dict[str, type[Tracker]] = {"none": Tracker, "tensorboard": TensorBoard}

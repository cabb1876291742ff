"""Where a run can be followed beside its tables. A tracker reads the run folder and never decides what happens to the run."""

import importlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helper.schema.registry import by_name
from helper.system.errors import cause
from helper.system.signals import Interrupted
from helper.untrusted.texts import one_line
from optim.folder import RunFolder

log = logging.getLogger(__name__)
LONG = 1.0  # seconds to fail
PATIENCE = 10  # times the seconds that a tracker took to fail: a run loses a tenth of its time by it at most


class Tracker:
    """What a tracker implements. It may raise anything: it is then reported, and made anew at the next event.

    Args:
        folder: the run's, whose tables, figures, config.yaml and summary.json it reads.
        place: its own folder in there.
    """

    def __init__(self, folder: RunFolder, place: Path) -> None:
        self.folder, self.place = folder, place

    def epoch(self, epoch: int) -> None:
        """The tables have the rows of an epoch."""

    def end(self) -> None:
        """The folder holds all that it will, figures and summary too; also of a run that was finished long ago."""


@dataclass(frozen=True)
class TrackerSpec:
    """One word of --tracker.

    Args:
        name: that word, and the name of the tracker's own folder in the run folder.
        module: where its `make(folder, place) -> Tracker` is; imported only for runs that ask for it.
        needs: packages that the module imports and a plain installation may lack.
        joins_sweeps: whether the module has a `join_sweep(root, name)`, which gives the environment variables by which the
            runs of a sweep are shown together.
    """

    name: str
    module: str
    needs: tuple[str, ...] = ()
    joins_sweeps: bool = False

    def check(self) -> None:
        """Before anything is trained. Raises RuntimeError: a package is missing."""
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            package = error.name.partition(".")[0]
            if package not in self.needs:
                raise  # it is there, and something that it needs is not
            raise RuntimeError(
                f"--tracker {self.name}: the package {package} is not installed; "
                f"pip install {' '.join(self.needs)}, or use --tracker none"
            ) from None

    def make(self, folder: RunFolder) -> Tracker:
        self.place(folder).mkdir(exist_ok=True)
        return importlib.import_module(self.module).make(folder, self.place(folder))

    def place(self, folder: RunFolder) -> Path:
        """Its own folder in a run folder."""
        return folder.path / self.name

    def clear(self, folder: RunFolder) -> None:
        """Remove what it has written of a run that is repeated."""
        for path in sorted(self.place(folder).rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


TRACKERS: dict[str, TrackerSpec] = by_name(
    TrackerSpec("tensorboard", "optim.trackers.tensorboard", needs=("tensorboard",)),
    TrackerSpec("wandb", "optim.trackers.wandb", needs=("wandb",), joins_sweeps=True),
    TrackerSpec("mlflow", "optim.trackers.mlflow", needs=("mlflow", "sqlalchemy", "alembic"), joins_sweeps=True),
)


def chosen_trackers(names: str) -> list[TrackerSpec]:
    """Of the words of --tracker, `none` or names with commas between."""
    return [TRACKERS[name] for name in names.split(",") if name in TRACKERS]


def join_sweep(names: str, root: Path, name: str) -> None:
    """Have the runs that this process starts shown as those of a sweep. A tracker that raises is reported.

    Args:
        root: folder of all run folders. name: of the sweep.
    """
    for spec in chosen_trackers(names):
        if not spec.joins_sweeps:
            continue
        reason = failure_of(lambda spec=spec: os.environ.update(importlib.import_module(spec.module).join_sweep(root, name)))
        if reason:
            log.warning("--tracker %s: %s; its runs are not shown as those of one sweep", spec.name, reason)


def failure_of(action: Callable[[], object]) -> str | None:
    """Why an action of a tracker has failed, in a line; None: it has not. What interrupts the run goes on to interrupt it."""
    try:
        action()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001  (anyone's tracker may raise anything, and a run of days must not end by it)
        return one_line(cause(type(error), error), 300)
    return None


class Trackers:
    """The trackers of a run, none of which can stop it or keep another one from its work.

    One that raises is reported once, and made anew at the next event, so that it starts from what the tables hold. If it took
    long to fail, as one does that waits for a server, it is left alone for `PATIENCE` times as long, or until the run's end.
    """

    def __init__(self, names: str, folder: RunFolder) -> None:
        self.folder = folder
        self.specs = chosen_trackers(names)
        self.at_work: dict[str, Tracker] = {}
        self.reported: dict[str, str] = {}  # the last error of those that do not work
        self.rests: dict[str, float] = {}  # of those, until when

    def epoch(self, epoch: int) -> None:
        """The tables have the rows of an epoch."""
        for spec in self.specs:
            if time.monotonic() >= self.rests.get(spec.name, 0.0):
                self.tell(spec, lambda tracker: tracker.epoch(epoch))

    def end(self) -> None:
        """The folder holds all that it will."""
        for spec in self.specs:
            self.tell(spec, lambda tracker: tracker.end())

    def tell(self, spec: TrackerSpec, event: Callable[[Tracker], None]) -> None:
        started = time.monotonic()
        reason = failure_of(lambda: event(self.working(spec)))
        if reason is None:
            self.reported.pop(spec.name, None)
            return
        self.at_work.pop(spec.name, None)
        now = time.monotonic()
        self.rests[spec.name] = now + PATIENCE * (now - started) * (now - started > LONG)
        if self.reported.get(spec.name) != reason:
            log.warning(
                "--tracker %s: %s; the tables have everything: mend it, and the same command writes it", spec.name, reason
            )
        self.reported[spec.name] = reason

    def working(self, spec: TrackerSpec) -> Tracker:
        """The tracker at work, made if there is none."""
        if spec.name not in self.at_work:
            self.at_work[spec.name] = spec.make(self.folder)
        return self.at_work[spec.name]

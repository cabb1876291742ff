"""What a sweep shows while it waits: a live table on a terminal, lines elsewhere."""

import collections
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from helper.progress import EVERY, duration
from helper.tables import last_row, newest_cells
from study.sweeping.executor import FINISHED, RUNNING, Executor
from study.sweeping.plan import PlannedRun


@dataclass
class Progress:
    """What is known of a running job from its history.csv."""

    started: float = field(default_factory=time.monotonic)
    first_epoch: int | None = None


def display_of(runs: Sequence[PlannedRun], executor: Executor):
    """Context of a function that shows the state: a live table on a terminal, a line for each change elsewhere."""
    console = Console()
    if console.is_terminal:
        return LiveTable(runs, executor, console)
    return nullcontext(Lines(runs, executor))


class LiveTable:
    """Counts of all runs, and a line for each running one: epoch, newest loss and accuracies, remaining time."""

    def __init__(self, runs: Sequence[PlannedRun], executor: Executor, console: Console) -> None:
        self.runs, self.executor = {run.name: run for run in runs}, executor
        self.live = Live(console=console, refresh_per_second=2)
        self.progress: dict[str, Progress] = {}

    def __enter__(self):
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self) -> None:
        self.live.update(self.table())

    def table(self) -> Table:
        states = self.executor.states
        count = collections.Counter(states.values())
        done = len(self.runs) - len(states) + count[FINISHED]
        words = [f"{done}/{len(self.runs)} finished", *(f"{n} {state}" for state, n in count.items() if state != FINISHED)]
        table = Table(title=", ".join(words), title_justify="left")
        table.add_column("run", overflow="fold")  # a name's end tells runs apart
        for heading in ("epoch", "train loss", "train acc", "test acc", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, state in states.items():
            if state == RUNNING:
                table.add_row(*self.row(self.runs[name]))
        return table

    def row(self, run: PlannedRun) -> list[str]:
        progress = self.progress.setdefault(run.name, Progress())
        newest = newest_cells(run.folder.path / "history.csv")
        if "epoch" not in newest:
            return [run.name, "", "", "", "", ""]
        epoch, total = int(newest["epoch"]), epochs_to_come(run)
        if progress.first_epoch is None:
            progress.first_epoch, progress.started = epoch, time.monotonic()
        gone = epoch - progress.first_epoch
        left = (time.monotonic() - progress.started) / gone * (total - epoch) if gone and total else None
        cells = [newest.get(name) for name in ("loss_train", "acc_train", "acc_test")]
        numbers = [f"{float(cell):.3f}" if cell else "" for cell in cells]
        return [run.name, f"{epoch}/{total or '?'}", *numbers, duration(left) if left is not None else ""]


class Lines:
    """A line whenever a run starts or ends, and one about all of them when that has not happened for half a minute."""

    def __init__(self, runs: Sequence[PlannedRun], executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs, self.executor, self.before = {run.name: run for run in runs}, executor, dict(executor.states)
        self.clock, self.started, self.spoken = clock, clock(), clock()

    def __call__(self) -> None:
        for name, state in self.executor.states.items():
            if state != self.before.get(name):
                self.say(f"{state:11} {name}")
        self.before = dict(self.executor.states)
        if self.clock() - self.spoken >= EVERY:
            count = collections.Counter(self.before.values())
            self.say(", ".join(f"{n} {state}{self.epochs() if state == RUNNING else ''}" for state, n in count.items()))

    def say(self, words: str) -> None:
        done = len(self.runs) - sum(state != FINISHED for state in self.executor.states.values())
        self.spoken = self.clock()
        print(f"{duration(self.spoken - self.started):>8}  {done}/{len(self.runs)}  {words}", flush=True)

    def epochs(self) -> str:
        """` (epoch 3/30, 12/30)` of the runs that have ended one."""
        running = [self.runs[name] for name, state in self.before.items() if state == RUNNING]
        rows = [(run, last_row(run.folder.path / "history.csv") or {}) for run in running]
        found = [f"{row['epoch']}/{epochs_to_come(run) or '?'}" for run, row in rows if row.get("epoch")]
        return f" (epoch {', '.join(found)})" if found else ""


def epochs_to_come(run: PlannedRun) -> int | None:
    """How many epochs a run is to have; None where a budget, of a mask that only the run knows, says it."""
    return run.config.train.n_epochs if run.config.train.train_budget is None else None

"""`experiment.py status`: what has become of the runs under a results root, by their folders, locks, logs and SLURM jobs.

Only looks: nothing is written, started or repaired. A run that waits in a sweep's local pool has left nothing yet and does
not show.
"""

import collections
import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helper.progress import duration
from helper.schema.config import Config, flag
from helper.system.locks import in_use
from helper.untrusted.texts import shown
from study.sweeping.executor import BLOCKED, FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING
from study.sweeping.slurm_jobs import ACTIVE, BROKEN, ENDED, Known, Task, latest_tasks, read_submissions, slurm_folder, squeue

DAMAGED = "damaged"  # trained to its end, with a file that is not whole
UNKNOWN = "unknown"  # in a job of a SLURM that cannot be asked from here
ORDER = (RUNNING, QUEUED, FINISHED, FAILED, DAMAGED, BLOCKED, INTERRUPTED, UNKNOWN)
TAIL_BYTES = 4096
TRACEBACK_BYTES = 1 << 16  # at most, at the end of a training.log
RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} )", re.MULTILINE)  # where one begins in a training.log
STOPPED = re.compile(r"(\w+\.)*(Interrupted|KeyboardInterrupt)\b")  # by someone: nothing wrong with the run
END_OF_ZIP = b"PK\5\6"  # the last 22 bytes of what torch.save writes begin with it


@dataclass(frozen=True)
class StatusConfig(Config):
    """Status: which runs get a line."""

    all: bool = flag(False, "a line for every run, not only for those that run or failed")


@dataclass(frozen=True)
class RunStatus:
    """A run that is known under a results root; `name` is its folder below the root, or its log's name if it has none."""

    name: str
    state: str
    job: str | None
    log: Path | None
    damage: str = ""


def status(config: StatusConfig, root: str) -> None:
    """Count the runs under a results root by their states, with a line for each that runs or failed: its epoch, how long ago
    the last one ended, its job in SLURM, its log. Nothing is changed.
    """
    path = Path(root)
    if not path.is_dir():
        raise RuntimeError(f"{path} is no folder; give the --results_root of a sweep")
    runs, remarks = survey(path)
    count = collections.Counter(run.state for run in runs)
    print(f"{len(runs)} runs under {shown(path)}: {', '.join(f'{count[state]} {state}' for state in ORDER if count[state])}")
    for remark in remarks:
        print(shown(remark))
    chosen = [run for run in runs if config.all or run.state in (RUNNING, FAILED, DAMAGED)]
    lines = [line_of(path, run) for run in sorted(chosen, key=lambda run: (ORDER.index(run.state), run.name))]
    if lines:
        print()
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), *line[4:]]).rstrip())


def line_of(root: Path, run: RunStatus) -> tuple[str, ...]:
    """(state, epoch, age of the last epoch, job, run, damage or log)."""
    history = root / run.name / "history.csv"
    epoch = re.match(r"\d{1,9}(?=,)", last_line_of(history), re.ASCII)
    age = ""
    if epoch:
        with contextlib.suppress(OSError):
            age = f"{duration(max(0.0, time.time() - history.stat().st_mtime))} ago"
    total = epochs_of(root / run.name)
    epochs = f"epoch {epoch.group()}" + (f"/{total}" if total else "") if epoch else ""
    job = f"job {run.job}" if run.job else ""
    return tuple(shown(cell) for cell in (run.state, epochs, age, job, run.name, run.damage or run.log or ""))


def survey(root: Path) -> tuple[list[RunStatus], list[str]]:
    """(every run known under a results root, remarks on what could not be read)."""
    folders = dict(run_folders(root))
    finished = {name for name, files in folders.items() if {"summary.json", "model.pt"} <= files}
    submissions, damaged = read_submissions(root)
    remarks = [f"left out, since it is damaged: {path}" for path in damaged]
    tasks = latest_tasks(submissions)
    known = squeue_or_none({task.submission.key for name, task in tasks.items() if name not in finished})
    if known is None:
        remarks.append("SLURM does not answer on this machine: jobs that it may have are counted as unknown")
    logs = set(names_in(root / "logs"))

    def look(name: str) -> RunStatus:
        log = f"{name.replace('/', '_')}.log"
        logs_of_it = root / "logs" / log if log in logs else None
        task = tasks.get(name)
        found = (known or {}).get((task.submission.key, task.index)) if task else None
        job = found.id if found else task.submission.task_id(task.index) if task else None
        if name in finished and (found is None or found.state in ENDED):
            damage = damage_of(root / name)
            return RunStatus(name, DAMAGED if damage else FINISHED, job, logs_of_it or log_of_job(root, job), damage)
        state = state_of(root / name, folders.get(name, frozenset()), logs_of_it, task, found, asked=known is not None)
        return RunStatus(name, state, job, logs_of_it or log_of_job(root, job))

    runs = {name: look(name) for name in [*folders, *(name for name in tasks if name not in folders)]}
    for name in tasks:
        if name not in folders and runs[name].state == INTERRUPTED and waits_for_failed(name, tasks, runs):
            runs[name] = RunStatus(name, BLOCKED, runs[name].job, runs[name].log)
    taken = {f"{name.replace('/', '_')}.log" for name in runs}
    for log in logs:  # of runs that ended before they had a folder
        if log.endswith(".log") and log not in taken:
            path = root / "logs" / log
            runs[log] = RunStatus(log.removesuffix(".log"), FAILED if says_failed(path) else INTERRUPTED, None, path)
    return list(runs.values()), remarks


def waits_for_failed(name: str, tasks: Mapping[str, Task], runs: Mapping[str, RunStatus]) -> bool:
    """Whether one of the runs that a run was to wait for, directly or through others, has failed."""
    seen = {name}
    while name in tasks and (name := tasks[name].submission.after) in runs and name not in seen:  # records may be made up
        seen.add(name)
        if runs[name].state == FAILED:
            return True
        if runs[name].state not in (INTERRUPTED, BLOCKED):
            return False
    return False


def state_of(
    folder: Path, files: frozenset[str], log: Path | None, task: Task | None, found: Known | None, *, asked: bool
) -> str:
    """State of a run that is not finished.

    Args:
        files: names in its folder.
        task, found: its latest job, and what SLURM says of it.
        asked: whether SLURM could be asked.
    """
    if found and found.state not in ENDED:
        return RUNNING if found.state in ACTIVE else QUEUED
    if ".lock" in files and held(folder):
        return RUNNING
    if log and says_failed(log):
        return FAILED
    if found and found.state in BROKEN and not (log and last_line_of(log).startswith("interrupted: ")):
        return FAILED
    if not task and ended_in_error(folder / "training.log"):
        return FAILED
    return UNKNOWN if task and not asked else INTERRUPTED


def epochs_of(folder: Path) -> int | None:
    """How many epochs a run is to have; None where its config.yaml does not say, or a budget that it goes by."""
    said = start_of(folder / "config.yaml")
    total = re.search(r"^n_epochs: (\d{1,9})$", said, re.ASCII | re.MULTILINE)
    return int(total.group(1)) if total and not re.search(r"^train_budget: ", said, re.MULTILINE) else None


def epochs_had(folder: Path) -> int | None:
    """How many epochs a run with a summary has had, by the summary; None where it does not say."""
    total = re.search(r'^  "epochs": (\d{1,9}),$', start_of(folder / "summary.json"), re.ASCII | re.MULTILINE)
    return int(total.group(1)) if total else None


def damage_of(folder: Path) -> str:
    """What is wrong with the files of a run that has left its summary, with the cure; nothing where they look whole.

    Looks at ends, not at everything: a file that was altered in its middle is found by the command that reads it.
    """
    total = epochs_had(folder) or epochs_of(folder)
    last = re.match(rb"\d{1,9}(?=,)", end_of(folder / "history.csv").rstrip(b"\n").rpartition(b"\n")[2])
    checks = {
        "config.yaml": re.search(r"^n_epochs: ", start_of(folder / "config.yaml"), re.MULTILINE) is not None,
        "history.csv": total is not None and last is not None and int(last.group()) == total,
        "summary.json": is_json_object(folder / "summary.json"),
        "model.pt": end_of(folder / "model.pt")[-22:].startswith(END_OF_ZIP),
    }
    tables = {name: end_of(folder / name).endswith(b"\n") for name in ("history.csv", "snr.csv", "metrics.csv")}
    checks |= {name: False for name, whole in tables.items() if not whole and (folder / name).exists()}
    wrong = [name for name, whole in checks.items() if not whole]
    return f"{wrong[0]} is not whole: put a copy of it back, or repeat the run with --overwrite 1" if wrong else ""


def is_json_object(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return path.is_file() and isinstance(json.loads(path.read_bytes()), dict)
    return False


def ended_in_error(log: Path) -> bool:
    """Whether the last thing that a training.log tells is the traceback of an error, and not of an interruption."""
    *_, last = RECORD.split(end_of(log, TRACEBACK_BYTES).decode(errors="replace"))
    lines = [line for line in last.splitlines() if line.strip()]
    return len(lines) > 1 and " ERROR " in lines[0] and not STOPPED.match(lines[-1])


def squeue_or_none(keys: set[str]) -> dict | None:
    try:
        return squeue(keys)
    except FileNotFoundError:
        return None


def log_of_job(root: Path, job: str | None) -> Path | None:
    """What submitit wrote of a job, if it did."""
    path = slurm_folder(root) / f"{job}_0_log.out"
    return path if job and path.exists() else None


def run_folders(root: Path) -> Iterable[tuple[str, frozenset[str]]]:
    """(name, files in it) of every run's folder below a results root: data/network/mode/run."""
    level = [""]
    for _ in range(4):
        level = [f"{above}{name}/" for above in level for name in names_in(root / above, folders=True)]
    for name in level:
        files = frozenset(names_in(root / name))
        if files & {"config.yaml", ".lock"}:
            yield name.removesuffix("/"), files


def names_in(folder: Path, *, folders: bool = False) -> list[str]:
    """Names of what is in a folder; nothing if it cannot be read. Links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not folders or entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def held(folder: Path) -> bool:
    """Whether a process of this machine, or of a shared file system's other machines, has the run."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG((folder / ".lock").stat().st_mode) and in_use(folder)
    return False


def says_failed(log: Path) -> bool:
    return last_line_of(log).startswith("exit code ")


def last_line_of(path: Path) -> str:
    """The last line with anything in it, by the file's end alone; empty where there is none."""
    lines = end_of(path).decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")


def end_of(path: Path, most: int = TAIL_BYTES) -> bytes:
    """The last bytes of a file; none where it cannot be read."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - most))
                return file.read(most)
    return b""


def start_of(path: Path) -> str:
    with contextlib.suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(TAIL_BYTES).decode(errors="replace")
    return ""

"""Which runs of a results root are in which jobs of SLURM, by the records that sweeps keep, and what SLURM says of them."""

import json
import re
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from helper.system.files import write_atomic

JOB_PREFIX = "sweep-"  # of a job's name in SLURM; its submission's key follows
ACTIVE = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
STOPPED = {"CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "DEADLINE", "REVOKED"}  # nothing wrong with the run
BROKEN = {"FAILED", "OUT_OF_MEMORY", "BOOT_FAIL"}
ENDED = STOPPED | BROKEN | {"COMPLETED"}
NAMES_AT_ONCE = 2_000  # in a command line


@dataclass(frozen=True)
class Submission:
    """What one call of sbatch submitted: runs in the order of the array's tasks, and the parent that all of them wait for."""

    key: str
    runs: tuple[str, ...]
    after: str | None
    submitted: float = field(default_factory=time.time)
    job: str | None = None  # its id in SLURM; None until sbatch has returned

    def task_id(self, index: int) -> str | None:
        if self.job is None:
            return None
        return f"{self.job}_{index}" if len(self.runs) > 1 else self.job

    def path(self, root: Path) -> Path:
        return record_folder(root) / f"{self.key}.json"

    def write(self, root: Path) -> None:
        self.path(root).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path(root), json.dumps(asdict(self)))


def slurm_folder(root: Path) -> Path:
    return root / "logs" / "slurm"


def record_folder(root: Path) -> Path:
    return slurm_folder(root) / "records"


def read_submissions(root: Path) -> tuple[list[Submission], list[Path]]:
    """(submissions, oldest first; files that are none)."""
    submissions, damaged = [], []
    for path in sorted(record_folder(root).glob("*.json")):
        try:
            submissions.append(read_submission(path))
        except (OSError, ValueError, TypeError, RecursionError):
            damaged.append(path)
    return sorted(submissions, key=lambda submission: submission.submitted), damaged


def read_submission(path: Path) -> Submission:
    """Raises OSError, ValueError, TypeError: it is none, or names something outside of the results root."""
    if not path.is_file():
        raise ValueError("no file")
    content = json.loads(path.read_text())
    submission = Submission(**content | {"runs": tuple(content["runs"])})
    names = [*submission.runs, *([submission.after] if submission.after is not None else [])]
    kinds = all(isinstance(name, str) for name in names) and isinstance(submission.submitted, (int, float))
    job = submission.job is None or (isinstance(submission.job, str) and re.fullmatch(r"\d{1,20}", submission.job, re.ASCII))
    if not (kinds and job and submission.runs and submission.key == path.stem):
        raise ValueError("not what a sweep wrote")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise ValueError(f"{name} is not below the results root")
    return submission


@dataclass(frozen=True)
class Task:
    """A run's place in a submission: its latest job."""

    submission: Submission
    index: int


def latest_tasks(submissions: Iterable[Submission]) -> dict[str, Task]:
    """{run: its task in the newest submission that has it}."""
    return {name: Task(submission, index) for submission in submissions for index, name in enumerate(submission.runs)}


@dataclass(frozen=True)
class Known:
    """What SLURM knows of a task."""

    id: str
    state: str
    reason: str


def squeue(keys: Collection[str]) -> dict[tuple[str, int], Known] | None:
    """{(submission's key, index): what SLURM knows} of jobs that wait, run, or have just ended; None: it does not answer.

    Raises:
        FileNotFoundError: no squeue on this machine.
    """
    found: dict[tuple[str, int], Known] = {}
    names = [f"{JOB_PREFIX}{key}" for key in keys]
    for start in range(0, len(names), NAMES_AT_ONCE):
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%r"]
        command.append(f"--name={','.join(names[start : start + NAMES_AT_ONCE])}")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, errors="replace")
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            return None
        found |= tasks_in(done.stdout)
    return found


def tasks_in(text: str) -> dict[tuple[str, int], Known]:
    """The tasks in the output of `squeue`; lines that are none are skipped."""
    found = {}
    for line in text.splitlines():
        id, name, state, reason = [*line.split("|"), "", "", ""][:4]
        match = re.fullmatch(r"(\d+)(?:_(\d+))?", id.strip(), re.ASCII)
        if match and name.startswith(JOB_PREFIX):
            found[name.removeprefix(JOB_PREFIX), int(match.group(2) or 0)] = Known(id.strip(), state, reason)
    return found


def largest_array() -> int:
    """Tasks that SLURM allows in an array."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=120).stdout
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return max(1, int(match.group(1))) if match else 1000


def cancel_line(ids: Iterable[str]) -> str:
    """The command that cancels tasks, each array once."""
    return f"scancel {' '.join(dict.fromkeys(id.partition('_')[0] for id in ids))}"

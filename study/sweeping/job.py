"""A call of run.py that a sweep has to make, and the log that it leaves."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from helper.system.versions import ROOT
from loader.main import DataConfig
from optim.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """One call of run.py. `log` takes what it prints: the command first, its exit code last.

    Attributes:
        data: what it loads; None: nobody has said.
    """

    name: str
    flags: tuple[str, ...]
    folder: RunFolder
    log: Path
    data: DataConfig | None = None

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "run.py"), *self.flags]


def first_line(job: Job) -> str:
    return f"$ {shlex.join(['run.py', *job.flags])}\n"


def last_line(log: Path) -> str:
    return next(reversed(log.read_text(errors="replace").splitlines()), "")


def failed_before(job: Job) -> bool:
    """Whether the very same command ended with an error the last time."""
    if not job.log.exists():
        return False
    return job.log.read_text(errors="replace").startswith(first_line(job)) and last_line(job.log).startswith("exit code ")

"""Who runs the runs of a sweep. An executor takes jobs with their order; the local one is a pool of processes of run.py.

`study/sweeping/slurm.py` has the one that hands them over to SLURM.
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from helper.system.devices import available_cores
from helper.system.environment import whole_number
from helper.system.locks import IN_USE, in_use
from helper.system.signals import EXIT_INTERRUPTED
from study.sweeping.job import Job, first_line, last_line
from study.sweeping.launching import Launcher, Process

QUEUED, RUNNING, FINISHED, FAILED, INTERRUPTED, BLOCKED = "queued", "running", "finished", "failed", "interrupted", "blocked"
STOPPED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)  # by someone: nothing wrong with the run


class Executor(Protocol):
    """Runs jobs somewhere. `states` has the state of every job that was submitted; `poll` is called every `poll_seconds`."""

    states: dict[str, str]
    poll_seconds: float

    @property
    def done(self) -> bool:
        """Whether there is nothing left to follow."""

    def submit(self, job: Job, after: Sequence[str]) -> None:
        """Queue a job that may start when those named in `after` have finished."""

    def poll(self) -> None:
        """Look at what has ended, start what can start."""

    def stop(self) -> list[str]:
        """Whatever cannot run on without this process saves its state and ends; lines for the user about what does run on."""


class LocalPool:
    """At most `n_jobs` run.py processes at a time, each with its share of the cores and, on CUDA, a device in turn.

    Args:
        warm: whether they may be forked, see `study.sweeping.launching`.
    """

    poll_seconds = 0.02  # a run may take less than a second
    look_seconds = 0.2  # for runs that other processes hold

    def __init__(self, n_jobs: int, *, n_devices: int = 0, warm: bool = False) -> None:
        self.states: dict[str, str] = {}
        self.n_jobs, self.n_devices = n_jobs, n_devices
        self.launcher = Launcher(threads_of(n_jobs), warm=warm and not n_devices)
        self.jobs: dict[str, tuple[Job, Sequence[str]]] = {}
        self.running: dict[int, tuple[Job, Process]] = {}  # slot -> process
        self.next_look = 0.0

    def submit(self, job: Job, after: Sequence[str] = ()) -> None:
        self.jobs[job.name] = (job, after)
        self.states[job.name] = QUEUED
        self.launcher.expect(job)
        self.next_look = 0.0

    @property
    def done(self) -> bool:
        return not any(state in (QUEUED, RUNNING) for state in self.states.values())

    def poll(self) -> None:
        ended = [slot for slot, (_, process) in self.running.items() if process.poll() is not None]
        if not ended and (len(self.running) == self.n_jobs or time.monotonic() < self.next_look):
            return  # nothing has changed for those that wait, who may be thousands
        for slot in ended:
            job, process = self.running.pop(slot)
            self.states[job.name] = self.ended(job, process.wait())
            if self.states[job.name] != QUEUED:
                self.launcher.ended(job, well=self.states[job.name] == FINISHED)
        for name, (job, after) in self.jobs.items():
            if self.states[name] != QUEUED:
                continue
            before = {self.states.get(parent, FINISHED) for parent in after}
            if before & {FAILED, BLOCKED}:
                self.states[name] = BLOCKED
            elif INTERRUPTED in before:
                self.states[name] = INTERRUPTED
            elif before <= {FINISHED} and len(self.running) < self.n_jobs and not in_use(job.folder.path):
                self.start(job)
        self.next_look = time.monotonic() + self.look_seconds

    def start(self, job: Job) -> None:
        slot = min(set(range(self.n_jobs)) - set(self.running))
        device = {}
        if self.n_devices:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.n_devices)))).split(",")
            device["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(first_line(job))
        self.running[slot] = (job, self.launcher.start(job, **device))
        self.states[job.name] = RUNNING

    def ended(self, job: Job, code: int) -> str:
        if code == 0:
            return FINISHED
        if in_use(job.folder.path) or IN_USE in last_line(job.log):
            return QUEUED  # another process was faster: wait for it, then look at what it left
        if code == EXIT_INTERRUPTED or -code in STOPPED_BY:
            return INTERRUPTED
        with contextlib.suppress(OSError), open(job.log, "a") as log:  # a full disk is why it may have failed
            log.write(f"\nexit code {code}\n")
        return FAILED

    def stop(self) -> list[str]:
        """Ask what runs to save its state and end, and wait for that; what is queued stays undone."""
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for slot, (job, process) in list(self.running.items()):
            self.states[job.name] = self.ended(job, process.wait())
            del self.running[slot]
        self.launcher.close()
        return []


def threads_of(n_jobs: int) -> int:
    """Threads that each of so many jobs at a time has: its share of the cores, or fewer if OMP_NUM_THREADS says so.

    Of a list, one number for each level of nested loops, the outermost one's counts: PyTorch does not nest them.

    Raises:
        RuntimeError: OMP_NUM_THREADS is no such number or list.
    """
    share = max(1, available_cores() // n_jobs)
    return min(share, whole_number("OMP_NUM_THREADS", share, several=True))

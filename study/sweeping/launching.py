"""How the processes of run.py begin: each anew, or forked from one that has imported run.py and holds the data."""

import collections
import logging
import os
import subprocess
from typing import Protocol

from helper.system.fork_server import ForkedProcess, ForkServer, ServerLost, can_fork
from helper.system.versions import ROOT
from loader.main import DATASETS, DataConfig
from study.sweeping.job import Job

PROGRAM = "run"  # module of what a job calls
log = logging.getLogger(__name__)


class Process(Protocol):
    """As `subprocess.Popen`."""

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def send_signal(self, number: int) -> None: ...


class WarmProcess:
    """A forked process, or where the server has ended before it was forked, one begun anew."""

    def __init__(self, launcher: "Launcher", job: Job, forked: ForkedProcess) -> None:
        self.launcher, self.job, self.process = launcher, job, forked

    def poll(self) -> int | None:
        return self.ask("poll")

    def wait(self) -> int:
        return self.ask("wait")

    def send_signal(self, number: int) -> None:
        self.ask("send_signal", number)

    def ask(self, action: str, *args: int) -> int | None:
        try:
            return getattr(self.process, action)(*args)
        except ServerLost:
            self.launcher.lost(self.process.server)
            self.process = self.launcher.begin_anew(self.job)
        return getattr(self.process, action)(*args)


class Launcher:
    """Begins a process of its own for each job.

    Args:
        n_threads: that each of them has.
        warm: whether they may be forked, where this system can.
    """

    def __init__(self, n_threads: int, *, warm: bool) -> None:
        threads = str(n_threads)
        self.environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self.warm = warm and can_fork()
        self.server: ForkServer | None = None
        # What a server computes in several threads its forks cannot go on with: such data each run reads for itself.
        self.holds_data = n_threads == 1
        self.held: DataConfig | None = None
        self.expected: collections.Counter[DataConfig] = collections.Counter()  # jobs to come, by their data

    def expect(self, job: Job) -> None:
        """A job is to come."""
        if job.data is not None:
            self.expected[job.data] += 1

    def start(self, job: Job, **more: str) -> Process:
        """Args: more: variables of its environment, which a forked process cannot have."""
        if not self.warm or more:
            return self.begin_anew(job, **more)
        if self.server is None:
            self.server = ForkServer(PROGRAM, ROOT, self.environment)
        try:
            return WarmProcess(self, job, self.server.start(job.flags, job.log))
        except ServerLost:
            self.lost(self.server)
            return self.start(job)

    def begin_anew(self, job: Job, **more: str) -> subprocess.Popen:
        with open(job.log, "a") as output:
            return subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self.environment | more,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which asks its runs in turn
            )  # fmt: skip

    def ended(self, job: Job, *, well: bool) -> None:
        """A job has ended; the data of one that ended well are there and sound, and held for those to come."""
        if job.data is None:
            return
        self.expected[job.data] -= 1
        known = job.data.loader_name.removesuffix("_noisy") in DATASETS  # no code of the user's runs in the server
        if not (well and known and self.server and self.holds_data):
            return
        if job.data != self.held and self.expected[job.data] > 0 and not self.expected[self.held]:
            try:
                self.server.hold(job.flags)
                self.held = job.data
            except ServerLost:
                self.lost(self.server)

    def lost(self, server: ForkServer) -> None:
        """A server has ended: another one takes its place, unless it has never come so far as to fork."""
        if server is not self.server:
            return  # that is known, and another one may have begun
        self.warm = self.server.has_forked
        self.holds_data = self.holds_data and self.held is None  # which may have been too much
        then = "another one takes its place" if self.warm else "each run begins by itself, which takes longer"
        log.warning("the process that runs are forked from has ended: %s", then)
        self.close()

    def close(self) -> None:
        """No more jobs are to come."""
        if self.server is not None:
            self.server.close()
            self.server = self.held = None

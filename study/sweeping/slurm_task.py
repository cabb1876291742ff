"""What a job of SLURM does on its node: run.py as a process of its own, asked to save before the time limit.

submitit unpickles a `RunTask` there and calls it. SLURM signals some seconds before the limit (SIGUSR2 by `--signal`), upon
which submitit calls `checkpoint` and then `scontrol requeue`: the same job, under the same id, waits for its next turn and
the run goes on from its own checkpoint. Who depends on the job (`afterok`) goes on waiting, since a requeued job is pending
again; only its last end counts.

How a job ends, and what that means for those that depend on it:

| what happened                                   | exit code | SLURM's state | children      | sweep says  |
|-------------------------------------------------|-----------|---------------|---------------|-------------|
| the run finished                                | 0         | COMPLETED     | start         | finished    |
| time limit, requeues left                       |           | PENDING       | wait          | queued      |
| time limit, no requeue left or none allowed     | 75        | FAILED        | are cancelled | interrupted |
| the run failed                                  | its own   | FAILED        | are cancelled | failed      |
| preempted or lost its node, requeued by SLURM   |           | PENDING       | wait          | queued      |
| cancelled by a user, or preempted for good      | 75        | CANCELLED ... | are cancelled | interrupted |

Nothing here imports torch: the process that waits takes no memory from the run.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from types import FrameType

from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable, DelayedSubmission

from helper.system.environment import whole_number
from helper.system.signals import EXIT_INTERRUPTED

INTERRUPTED_LINE = "interrupted: "  # begins the last line of the log of a job that saved its run and ended
POLL_SECONDS = 0.2
BUSY_SECONDS = 10.0
LATE_SIGNAL_SECONDS = 5.0  # SLURM signals every process of a job, one after the other


@dataclass
class RunTask(Checkpointable):
    """One run. What is pickled are these words and numbers.

    Args:
        command: of the run; its output is appended to the file `log`.
        processes: how many the command launches; a launcher of several ends with code 1 when they were interrupted, too.
        grace: seconds that the run has to save its state once it is asked to; then it is killed, and loses an epoch at most.
        busy: words in the error of a run that another process holds, which is then waited for: after a requeue it may
            be the same job's former process.
    """

    command: tuple[str, ...]
    log: str
    processes: int
    grace: float
    busy: str

    def __call__(self) -> None:
        self.asked = False  # whether the run has been asked to end
        signal.signal(signal.SIGTERM, self.pass_on)  # of scancel and preemption; submitit's handler drops it
        try:
            code = self.run()
            while code == 1 and self.busy in self.last_output() and not self.asked:
                time.sleep(BUSY_SECONDS)
                code = self.run()
            if self.interrupted(code) or (code == 1 and self.processes > 1):
                time.sleep(LATE_SIGNAL_SECONDS)  # the time limit's signal, if it was that, requeues the job in here
        except UncompletedJobError as error:
            self.end(f"{INTERRUPTED_LINE}{error}", EXIT_INTERRUPTED)
        except (subprocess.SubprocessError, OSError) as error:
            self.end(f"{INTERRUPTED_LINE}the job could not be requeued: {error}", EXIT_INTERRUPTED)
        if self.interrupted(code):
            self.end(f"{INTERRUPTED_LINE}the same sweep submits it again", EXIT_INTERRUPTED)
        if code:
            self.end(f"exit code {code}", code)

    def run(self) -> int:
        """Exit code of the command, negative for a signal."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        self.note(f"SLURM job {job_id()} on {socket.gethostname()}, requeued {restarts} times")
        try:
            environment = os.environ | threads(self.processes) | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.grace))}
        except RuntimeError as error:
            self.note(f"not started: {error}")
            self.end("exit code 1", 1)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=ignore_limit_signal,
                env=environment,
            )  # fmt: skip
        while (code := exit_code(self.process)) is None:
            time.sleep(POLL_SECONDS)
        return code

    def interrupted(self, code: int) -> bool:
        return code in (EXIT_INTERRUPTED, -signal.SIGTERM) or (self.asked and self.processes > 1 and code != 0)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        os.kill(self.process.pid, signal.SIGTERM)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit, in a signal's handler: end the run; the same task is to be queued again.

        Raises:
            SystemExit: the run has ended by itself, well or badly, and there is nothing to repeat.
        """
        self.pass_on(signal.SIGTERM, None)
        deadline = time.monotonic() + self.grace
        while (code := exit_code(self.process)) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if code is None:
            self.note(f"did not end within {self.grace:g} s and is killed")
            os.kill(self.process.pid, signal.SIGKILL)
        elif code == 0:
            raise SystemExit(0)
        elif not self.interrupted(code):
            self.end(f"exit code {code}", code)
        return DelayedSubmission(dataclasses.replace(self))

    def note(self, line: str) -> None:
        with open(self.log, "a") as log:
            log.write(f"\n{line}\n")

    def end(self, line: str, code: int) -> None:
        self.note(line)
        raise SystemExit(code if code > 0 else 128 - code)

    def last_output(self) -> str:
        """What the last call of the command printed."""
        with open(self.log, errors="replace") as log:
            return log.read().rpartition("\nSLURM job ")[2]


def exit_code(process: subprocess.Popen) -> int | None:
    """Of a process that has ended, None before. It stays a zombie: the handler of a signal may ask at any moment, too."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def ignore_limit_signal() -> None:
    """SLURM signals the run as well: before run.py listens, and in torch's launcher, that would be the end of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def threads(processes: int) -> dict[str, str]:
    """Each process's share of the allocated cores. RuntimeError: the environment has no number where it should."""
    cores = whole_number("SLURM_CPUS_PER_TASK", 0) or whole_number("SLURM_CPUS_ON_NODE", 1)
    share = str(max(1, cores // processes))
    return {"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share}


def job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]

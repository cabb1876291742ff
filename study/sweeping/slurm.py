"""`experiment.py sweep --executor slurm`: a sweep's runs as jobs of SLURM, which submitit submits.

Runs without a parent come first, as one job array; those that wait for the same parent are one array as well, with
`afterok` on that parent's array task (an array shares its dependency), and so on with their children. A sweep of p
unfinished parents takes 1 + p calls of sbatch, and one more for each further MaxArraySize runs that depend on the same. SLURM
counts a requeued job as pending, so its children wait for its last end; where that is a failure, `kill-on-invalid-dep`
cancels them.

Where SLURM accepts no more jobs (MaxSubmitJobs, MaxJobCount), the rest is handed over as jobs end, while the sweep watches.

`<results_root>/logs/slurm` holds what submitit writes, among it pickles of the jobs (command lines, no tensors), which are
read on the nodes, so only who may write there decides what the jobs do. `records/<key>.json` says which runs are in which
job. It is written *before* sbatch is called, and the jobs' name holds the key: a sweep that dies between the two still finds
its jobs by name the next time, and none is submitted twice.
"""

import contextlib
import dataclasses
import io
import logging
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from helper.processes.interruption import check_signals
from helper.system.locks import IN_USE, exclusive
from study.sweeping.executor import BLOCKED, FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING
from study.sweeping.job import Job, failed_before, first_line, last_line
from study.sweeping.slurm_jobs import (
    ACTIVE,
    BROKEN,
    ENDED,
    JOB_PREFIX,
    Known,
    Submission,
    Task,
    cancel_line,
    largest_array,
    latest_tasks,
    read_submissions,
    slurm_folder,
    squeue,
)
from study.sweeping.slurm_options import SlurmConfig
from study.sweeping.slurm_task import INTERRUPTED_LINE, RunTask

log = logging.getLogger(__name__)

FULL = re.compile(r"submit limit|MaxSubmit|GrpSubmit|unable to accept job|temporarily unavailable", re.IGNORECASE)
BATCH_SECONDS = 10.0  # of calling sbatch before the table is shown again
FULL_SECONDS = 60.0  # before more is handed over to a SLURM that accepts no more
QUERY_SHARE = 0.05  # of the time that may go into asking SLURM
GRACE = 0.7  # of the seconds between the signal and the time limit: for saving; the rest is for requeueing
SHOWN_LINES = 20  # of what submitit logged


def arrays(jobs: Mapping[str, str | None], largest: int) -> list[tuple[str | None, list[str]]]:
    """(what they wait for, runs) of each array, for {run: the run it waits for}; at most `largest` runs in one."""
    groups: dict[str | None, list[str]] = {}
    for name, after in jobs.items():
        groups.setdefault(after, []).append(name)
    return [(after, names[i : i + largest]) for after, names in groups.items() for i in range(0, len(names), largest)]


class SlurmQueue:
    """Hands jobs over to SLURM and follows them; jobs that an earlier sweep handed over are taken up, not submitted again."""

    poll_seconds = 1.0

    def __init__(self, config: SlurmConfig, root: Path) -> None:
        for program in ("sbatch", "srun", "squeue"):
            if not shutil.which(program):
                raise RuntimeError(f"--executor slurm: there is no {program} on this machine; run the sweep on a login node")
        logging.getLogger("submitit").setLevel(logging.WARNING)
        self.states: dict[str, str] = {}
        self.config, self.root = config, root
        self.jobs: dict[str, tuple[Job, str | None]] = {}
        self.tasks: dict[str, Task] = {}  # of the jobs that SLURM has
        self.ids: dict[str, str] = {}  # the same jobs' ids in SLURM
        self.executor = submitit.SlurmExecutor(slurm_folder(root), max_num_timeout=config.slurm_max_requeues)
        self.executor.update_parameters(**{name: value for name, value in config.sbatch().items() if value is not None})
        self.next_look = self.next_submission = 0.0
        self.largest, self.full = 0, False

    def submit(self, job: Job, after: Sequence[str] = ()) -> None:
        self.jobs[job.name] = (job, next(iter(after), None))
        self.states[job.name] = QUEUED

    @property
    def waiting(self) -> list[str]:
        """Jobs that SLURM does not have yet."""
        return [name for name, state in self.states.items() if state == QUEUED and name in self.jobs and name not in self.ids]

    def poll(self) -> None:
        now = time.monotonic()
        if now < self.next_look:
            return
        if self.waiting and now >= self.next_submission:
            with exclusive(slurm_folder(self.root)):  # against another sweep that submits the same
                self.take_up()
                self.look()
                self.hand_over()
        else:
            self.look()

    @property
    def done(self) -> bool:
        if not self.config.watch and (self.full or not self.waiting):
            return True
        return not any(state in (QUEUED, RUNNING) for state in self.states.values())

    def take_up(self) -> None:
        """Find the jobs of earlier sweeps among those that SLURM still has."""
        submissions, damaged = read_submissions(self.root)
        for path in damaged:
            log.warning("%r is damaged and left out; its runs may be submitted again", str(path))
        waiting = set(self.waiting)
        tasks = {name: task for name, task in latest_tasks(submissions).items() if name in waiting}
        known = squeue({task.submission.key for task in tasks.values()})
        if known is None:
            raise RuntimeError("--executor slurm: squeue fails; is SLURM's controller up?")
        for name, task in tasks.items():
            found = known.get((task.submission.key, task.index))
            if found and found.state not in ENDED:
                self.tasks[name], self.ids[name] = task, found.id

    def look(self) -> None:
        """Bring the states up to date."""
        started = time.monotonic()
        open_tasks = {name: task for name, task in self.tasks.items() if self.states[name] in (QUEUED, RUNNING)}
        known = squeue({task.submission.key for task in open_tasks.values()})
        now = time.monotonic()
        self.next_look = now + max(self.poll_seconds, (now - started) / QUERY_SHARE)
        if known is None:
            return  # the controller is busy or restarts
        for name, task in open_tasks.items():
            found = known.get((task.submission.key, task.index))
            if found is None or found.state in ENDED:
                self.states[name] = self.ended(name, found)
            else:
                self.states[name] = RUNNING if found.state in ACTIVE else QUEUED
        for name in self.waiting:
            parent = self.states.get(self.jobs[name][1], FINISHED)
            if parent in (FAILED, BLOCKED, INTERRUPTED):
                self.states[name] = INTERRUPTED if parent == INTERRUPTED else BLOCKED

    def ended(self, name: str, found: Known | None) -> str:
        """State of a job that has ended, by SLURM's word where it still has one, else by what the run left."""
        job, after = self.jobs[name]
        if found and found.state == "COMPLETED":
            return FINISHED
        if failed_before(job):
            return FAILED
        if job.folder.finished:
            return FINISHED
        if self.states.get(after) in (FAILED, BLOCKED):
            return BLOCKED
        if found and found.state in BROKEN and not last_line(job.log).startswith(INTERRUPTED_LINE):
            self.explain(job, found)
            return FAILED
        return INTERRUPTED

    def explain(self, job: Job, found: Known) -> None:
        """Add to a run's log why its job ended around it."""
        path = slurm_folder(self.root) / f"{found.id}_0_log.out"
        lines = path.read_text(errors="replace").splitlines()[-SHOWN_LINES:] if path.exists() else []
        with contextlib.suppress(OSError), open(job.log, "a") as file:
            file.write("\n".join(["", *lines, f"exit code unknown: {found.state} of SLURM job {found.id}, see {path}", ""]))

    def hand_over(self) -> None:
        """Submit what SLURM does not have, parents first, as far as it accepts it and time allows."""
        self.largest = self.largest or largest_array()
        queue = arrays({name: self.dependency(name) for name in self.waiting}, self.largest)
        until = time.monotonic() + BATCH_SECONDS
        while queue and time.monotonic() < until:
            check_signals()
            after, names = queue.pop(0)
            if after is not None and after not in self.ids:
                continue  # its parent is one of those that SLURM did not accept
            try:
                self.submit_array(after, names)
            except (FailedJobError, FailedSubmissionError) as error:
                reason = " ".join(str(error).split())
                if not FULL.search(reason):
                    raise RuntimeError(f"sbatch refuses: {reason}") from None
                if len(names) > 1:
                    half = len(names) // 2
                    queue[:0] = [(after, names[:half]), (after, names[half:])]
                    continue
                if not self.ids:
                    raise RuntimeError(f"sbatch refuses: {reason}") from None
                log.warning("SLURM accepts no more jobs now: %s; %d wait here", reason, len(self.waiting))
                self.full = True
                self.next_submission = time.monotonic() + FULL_SECONDS
                return

    def dependency(self, name: str) -> str | None:
        after = self.jobs[name][1]
        return after if self.states.get(after) in (QUEUED, RUNNING) else None

    def submit_array(self, after: str | None, names: list[str]) -> None:
        """One call of sbatch; raises FailedJobError where it refuses."""
        jobs = [self.jobs[name][0] for name in names]
        submission = Submission(secrets.token_hex(8), tuple(names), after)
        for job in jobs:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(first_line(job))  # before the job can start and add to it
        submission.write(self.root)
        self.executor.parameters.pop("dependency", None)
        dependency = {"dependency": f"afterok:{self.ids[after]}"} if after is not None else {}
        self.executor.update_parameters(job_name=f"{JOB_PREFIX}{submission.key}", **dependency)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error has sbatch's words as well
                submitted = self.executor.submit_array([self.task_of(job) for job in jobs])
        except FailedJobError:
            submission.path(self.root).unlink()
            self.tidy()
            raise
        submission = dataclasses.replace(submission, job=submitted[0].job_id.partition("_")[0])
        submission.write(self.root)
        for index, name in enumerate(names):
            self.tasks[name], self.ids[name] = Task(submission, index), submission.task_id(index)

    def task_of(self, job: Job) -> RunTask:
        processes = self.config.n_processes
        grace = GRACE * self.config.slurm_signal_delay
        return RunTask(tuple(launch_line(job.command, processes)), str(job.log.resolve()), processes, grace, IN_USE)

    def tidy(self) -> None:
        """Remove what submitit left of a submission that failed; nobody else submits meanwhile, see `poll`."""
        folder = slurm_folder(self.root)
        pickles = [path for path in folder.glob("*.pkl") if re.fullmatch("[0-9a-f]{32}", path.stem)]
        scripts = [path for path in folder.glob(".submission_file_*.sh") if not path.is_symlink()]
        for path in pickles + scripts:
            path.unlink()

    def stop(self) -> list[str]:
        """Leave the jobs to SLURM; what the user may want to know of them."""
        running = {name: id for name, id in self.ids.items() if self.states[name] in (QUEUED, RUNNING)}
        if not running:
            return []
        return [
            f"{len(running)} runs are left to SLURM: the same command follows them again, and so does",
            f"    experiment.py status {shlex.quote(str(self.root))}",
            "To cancel them:",
            f"    {cancel_line(running.values())}",
        ]


def launch_line(command: Sequence[str], processes: int) -> list[str]:
    """A command of the Python interpreter, under torchrun where it is to be several processes."""
    if processes == 1:
        return list(command)
    python, *words = command
    return [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *words]

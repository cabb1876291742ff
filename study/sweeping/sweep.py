"""`experiment.py sweep`: all runs of a file, here or in SLURM, each once, with a live table; or what they would be and cost."""

import collections
import functools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from helper.command_line.effects import without_effect_in
from helper.processes.interruption import check_signals, interruptible
from helper.progress import Task, duration, tracked
from helper.schema.config import Config, FlagError, flag, flatten, replace
from helper.system.signals import EXIT_INTERRUPTED, Interrupted, Signals
from helper.untrusted.texts import one_line
from loader.archives import DataError
from loader.main import DataConfig, fingerprint_of
from optim.config import RunConfig
from study.sweeping.cost import Cost, Reference, choose_reference, cost_of, makespan, threads
from study.sweeping.executor import (
    BLOCKED,
    FAILED,
    INTERRUPTED,
    QUEUED,
    RUNNING,
    Executor,
    Job,
    LocalPool,
    failed_before,
    threads_of,
)
from study.sweeping.plan import Planned, flags_named, plan, read_sweep, title_in
from study.sweeping.slurm_options import SlurmConfig
from study.sweeping.waiting import display_of
from study.sweeping.work import Work
from study.titles import write_title

SHOWN_LINES = 8  # of a failed run's log
EXECUTORS = ("local", "slurm")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepConfig(Config):
    """Sweep: how its runs are run."""

    executor: str = flag("local", "where they run: in processes of this machine, or as jobs of SLURM", choices=EXECUTORS)
    jobs: int = flag(1, "runs at a time; each gets its share of the cores", low=1)
    dry_run: bool = flag(False, "list the runs, what is there of them, and what the rest will take")
    images_per_second: float | None = flag(
        None,
        "with --dry_run: speed of the device that is meant, as history.csv of a run there has it; default: measured here",
        low=1e-6,
    )
    reference: str | None = flag(
        None, "data/network, as folders are named, whose --images_per_second that is; default: what most is trained of"
    )
    retry: bool = flag(False, "repeat the runs that failed the last time")
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.executor == "local":
            default = flatten(SlurmConfig())
            for name, value in flatten(self.slurm).items():
                if value != default[name]:
                    raise FlagError(f"--{name} needs --executor slurm")
        elif self.slurm.slurm_time is None:
            raise FlagError("--executor slurm needs --slurm_time, such as 4:00:00")
        elif self.jobs > 1 and not self.dry_run:
            raise FlagError("--jobs is for --executor local; --max_array_parallelism bounds what SLURM runs at a time")
        if self.images_per_second is not None and not self.dry_run:
            raise FlagError("--images_per_second prices a sweep that is not run here; it needs --dry_run 1")
        if self.reference is not None and self.images_per_second is None:
            raise FlagError("--reference says what --images_per_second was measured with, which is not given")


def sweep(config: SweepConfig, *files: str, **given: list[str]) -> int:
    """Run every run of YAML files once, dense parents first: finished ones are left, interrupted ones go on.

    Flags of run.py take the place of the files'; several values of one are separated by commas.
    """
    of_file = {Path(file): read_sweep(Path(file), given) for file in files}
    titles = {file: title_in(file) for file in of_file}
    configs = [run for runs in of_file.values() for run in runs]
    for words in without_effect_in(configs, {*given, *(name for file in of_file for name in flags_named(file))}):
        print(f"experiment.py: {one_line(words)}", file=sys.stderr)
    if config.dry_run:
        dry_run(config, configs)
        return 0
    with Task("planning"):
        runs = plan(configs)
        root = Path(runs[0].config.results_root)
        todo = {run.name: job_of(run, root) for run in runs if not run.finished}
        for file, title in titles.items():
            if title:
                write_title(root, title, [run.name for run in plan(of_file[file])])
    earlier = {} if config.retry else {name: job for name, job in todo.items() if failed_before(job)}
    executor = executor_of(config, runs, root)
    way = f"{config.jobs} at a time" if config.executor == "local" else "in SLURM"
    print(f"{len(runs)} runs under {root}: {len(runs) - len(todo)} finished, {len(todo)} to do, {way}", flush=True)
    for run in runs:
        if run.name in earlier:
            executor.states[run.name] = FAILED
        elif run.name in todo:
            executor.submit(todo[run.name], [run.parent] if run.parent in todo else [])
    try:
        with Signals() as signals, interruptible(signals), display_of(runs, executor) as show:
            executor.poll()
            show()
            while not executor.done:
                check_signals()
                time.sleep(executor.poll_seconds)
                executor.poll()
                show()
    except Interrupted:
        pass
    finally:
        with Task("waiting for what runs to save its state"):
            lines = executor.stop()  # whatever ended the loop
        print(*lines, sep="\n", end="\n" if lines else "")
    away = config.executor == "slurm" and not config.slurm.watch and not executor.waiting
    return report_end(executor, todo, earlier, signals.received, away=away)


def executor_of(config: SweepConfig, runs: Sequence[Planned], root: Path) -> Executor:
    """Raises FlagError: GPUs that no run uses, or none for runs that need one. RuntimeError: no SLURM here."""
    devices = {run.config.device for run in runs}
    if config.executor == "local":
        return LocalPool(config.jobs, n_devices=torch.cuda.device_count() if runs[0].config.device == "cuda" else 0)
    if config.slurm.slurm_gpus and devices != {"cuda"}:
        raise FlagError(f"--slurm_gpus {config.slurm.slurm_gpus}: needs --device cuda; the GPUs would idle")
    if "cuda" in devices and not config.slurm.asks_for_gpus:
        raise FlagError("--device cuda needs --slurm_gpus 1, or GPUs named in --slurm_options")
    try:
        from study.sweeping.slurm import SlurmQueue
    except ModuleNotFoundError as error:
        raise RuntimeError(f"--executor slurm: {error.name} is not installed; pip install -r requirements.txt") from None
    return SlurmQueue(config.slurm, root)


def job_of(run: Planned, root: Path) -> Job:
    return Job(run.name, tuple(run.flags()), run.folder, root / "logs" / f"{run.name.replace('/', '_')}.log")


def report_end(
    executor: Executor, jobs: dict[str, Job], earlier: dict[str, Job], signal: str | None, *, away: bool = False
) -> int:
    """Print what became of the jobs, with the last lines of those that failed; the exit code.

    Args:
        away: whether what is not done runs elsewhere and was not to be waited for.
    """
    count = collections.Counter(executor.states.values())
    print(", ".join(f"{n} {state}" for state, n in count.items() if n) or "nothing to do")
    for name, state in executor.states.items():
        if state == FAILED:
            print(f"\nfailed{' the last time' if name in earlier else ''}: {name}   ({jobs[name].log})")
            lines = jobs[name].log.read_text(errors="replace").splitlines()
            print("\n".join(f"    {line}" for line in [lines[0], *lines[1:][-SHOWN_LINES:]]))
    if count[BLOCKED]:
        print(f"\n{count[BLOCKED]} runs wait for a dense parent that failed")
    if count[FAILED]:
        print("\nexperiment.py: error: some runs failed; repeat them with --retry", file=sys.stderr)
        return 1
    if away and not count[INTERRUPTED]:
        return 0
    if count[INTERRUPTED] + count[QUEUED] + count[RUNNING]:
        print(f"experiment.py: {signal or 'a run was stopped'}; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


# -------------------------------------------------------------------------------------------------------- dry run


def dry_run(config: SweepConfig, configs: Sequence[RunConfig]) -> None:
    """Print the runs of a sweep, what is there, and an estimate of the time and disk that the others take."""
    problem: list[RuntimeError] = []

    @functools.cache
    def fingerprint(data: DataConfig) -> str | None:
        try:
            return fingerprint_of(replace(data, download=False))
        except DataError as error:
            problem.append(error)
            return None

    with Task("planning"):
        runs = plan(configs, fingerprint)
    states = [state_of(run) for run in tracked(runs, "looking for", "runs")]
    reference, estimate = None, cost_of
    if config.images_per_second is not None:
        reference = choose_reference(runs, config.images_per_second, config.reference)
        estimate = reference.cost_of
    n_threads = threads_of(config.jobs) if config.executor == "local" else config.slurm.slurm_cpus or 1
    costs = []
    if reference or not problem:
        try:
            with threads(n_threads):
                costs = [
                    Cost(Work(), 0.0) if state == "finished" else estimate(run)
                    for run, state in tracked(list(zip(runs, states, strict=True)), "pricing", "runs")
                ]
        except RuntimeError as error:  # the device is not here
            problem.append(error)
    for index, (run, state) in enumerate(zip(runs, states, strict=True)):
        print(f"{state:12} {duration(costs[index].seconds) if costs else '':>8}  {run.folder.path}")
    count = ", ".join(f"{n} {state}" for state, n in collections.Counter(states).items())
    print(f"\n{len(runs)} runs: {count}")
    if problem and not reference:
        print(f"no estimate: {problem[0]}")
    if problem and isinstance(problem[0], DataError):
        print("without the data, the folders' names are those of the published data files, and so are sizes")
    if not costs:
        return
    positions = {run.name: index for index, run in enumerate(runs)}
    seconds = [cost.seconds for cost in costs]
    wall = makespan(seconds, [positions[run.parent] if run.parent else None for run in runs], config.jobs)
    print(prices(runs, costs))
    print(
        f"about {duration(wall)} with --jobs {config.jobs}, {duration(sum(seconds))} one after the other, without start-up;\n"
        + (priced_by(reference) if reference else measured_on(configs[0].device, n_threads))
    )


def prices(runs: Sequence[Planned], costs: Sequence[Cost]) -> str:
    """A table with a line for each data set and network: images to be passed, device hours, disk."""
    groups: dict[str, list[Cost]] = {}
    for run, cost in zip(runs, costs, strict=True):
        if cost.seconds:
            groups.setdefault(run.group, []).append(cost)
    everything = [cost for group in groups.values() for cost in group]
    lines = [("images by a training step's cost", "runs", "training", "evaluation", "measuring", "device h", "MB", "files")]
    for name, part in [*groups.items(), ("total", everything)]:
        work = sum((cost.work for cost in part), Work())
        images = (f"{n / 1e6:,.1f} M" for n in (work.training, work.evaluation, work.measuring))
        hours = sum(cost.seconds for cost in part) / 3600
        lines.append((name, f"{len(part):,}", *images, f"{hours:,.2f}", f"{work.bytes / 1e6:,.0f}", f"{work.files:,}"))
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{line[0]:{width}}" + "".join(f"{word:>12}" for word in line[1:]) for line in lines)


def measured_on(device: str, n_threads: int) -> str:
    count = f" with {n_threads} thread{'s' if n_threads > 1 else ''}, as they are when nothing else runs here"
    return f"from steps measured on {device} just now" + (count if device == "cpu" else "")


def priced_by(reference: Reference) -> str:
    return (
        f"every job has a device that trains {reference.images_per_second:,.0f} images/s of {reference.name} "
        f"({reference.macs:,} multiply-accumulates each), other networks in that ratio"
    )


def state_of(run: Planned) -> str:
    if run.finished:
        return "finished"
    if run.folder.finished:
        return "to measure"
    return "interrupted" if run.begun else "to do"

"""`experiment.py sweep`: all runs of a file, here or in SLURM, each once, with a live table."""

import collections
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from helper.command_line.effects import refuse_misplaced, without_effect_in
from helper.own.consent import trust
from helper.processes.interruption import check_signals, interruptible
from helper.progress import Task
from helper.schema.config import FlagError
from helper.system.signals import EXIT_INTERRUPTED, GOES_ON, Interrupted, Signals
from helper.untrusted.texts import one_line
from optim.config import RunConfig
from optim.consent import code_named
from optim.trackers.main import join_sweep
from study.sweeping.dry_run import dry_run
from study.sweeping.executor import BLOCKED, FAILED, INTERRUPTED, QUEUED, RUNNING, Executor, LocalPool
from study.sweeping.job import Job, failed_before
from study.sweeping.plan import PlannedRun, flags_named, plan, read_sweep, title_in
from study.sweeping.sweep_options import SweepConfig
from study.sweeping.until_decided import at_most, until_decided
from study.sweeping.waiting import display_of
from study.titles import write_title

SHOWN_LINES = 8  # of a failed run's log
SHOW_SECONDS = 0.2  # between two looks at the runs' tables


def sweep(config: SweepConfig, *files: str, **given: list[str]) -> int:
    """Run every run of YAML files once, after its parent: finished ones are left, interrupted ones go on.

    Flags of run.py take the place of the files'; several values of one are separated by commas.
    """
    of_file = {Path(file): read_sweep(Path(file), given) for file in files}
    titles = {file: title_in(file) for file in of_file}
    configs = [run for runs in of_file.values() for run in runs]
    trust(word for config_of_run in configs for word in code_named(config_of_run).values())  # who wrote the file names it
    named = {*given, *(name for file in of_file for name in flags_named(file))}
    refuse_misplaced(configs, named, config.slurm.n_processes)
    for words in without_effect_in(configs, named, config.slurm.n_processes):
        print(f"experiment.py: {one_line(words)}", file=sys.stderr)
    if config.until_gap and len(of_file) > 1:
        raise FlagError("--until_gap is for one file, whose title the added runs take")
    if config.dry_run:
        dry_run(config, at_most(config, configs) if config.until_gap else configs)
        if config.until_gap:
            print(f"at most: with --until_gap {config.until_gap} seeds are added as long as their differences do not decide")
        return 0
    if config.until_gap:
        (file,) = of_file
        return until_decided(config, configs, lambda everything: work_off(config, {file: everything}, titles))
    return work_off(config, of_file, titles)


def work_off(config: SweepConfig, of_file: Mapping[Path, Sequence[RunConfig]], titles: Mapping[Path, str | None]) -> int:
    """Run what is not finished of the runs of some files, each once; the exit code."""
    with Task("planning"):
        runs = plan([run for configs in of_file.values() for run in configs])
        root = Path(runs[0].config.results_root)
        todo = {run.name: job_of(run, root) for run in runs if not run.finished}
        for file, title in titles.items():
            if title:
                write_title(root, title, [run.name for run in plan(of_file[file])])
    join_sweep(trackers_of([run.config for run in runs]), root, " + ".join(titles[file] or file.stem for file in of_file))
    earlier = {} if config.retry else {name: job for name, job in todo.items() if failed_before(job)}
    executor = executor_of(config, runs, root)
    way = f"{config.jobs} at a time" if config.executor == "local" else "in SLURM"
    print(f"{len(runs)} runs under {root}: {len(runs) - len(todo)} finished, {len(todo)} to do, {way}", flush=True)
    for run in runs:
        if run.name in earlier:
            executor.states[run.name] = FAILED
        elif run.name in todo:
            executor.submit(todo[run.name], [run.parent] if run.parent in todo else [])
    signal = follow(executor, runs)
    away = config.executor == "slurm" and not config.slurm.watch and not executor.waiting
    return report_end(executor, todo, earlier, signal, away=away)


def trackers_of(configs: Sequence[RunConfig]) -> str:
    """The words of --tracker of all runs together."""
    return ",".join({name: None for config in configs for name in config.tracker.split(",")})


def follow(executor: Executor, runs: Sequence[PlannedRun]) -> str | None:
    """Show what becomes of the jobs until there is nothing left to do here; the signal that ended it earlier, if one did."""
    signals = Signals()
    try:
        with signals, interruptible(signals), display_of(runs, executor) as show:
            executor.poll()
            show()
            shown = time.monotonic()
            while not executor.done:
                check_signals()
                time.sleep(executor.poll_seconds)
                executor.poll()
                if executor.done or time.monotonic() - shown >= SHOW_SECONDS:
                    show()
                    shown = time.monotonic()
    except Interrupted:
        pass
    finally:
        with Task("waiting for what runs to save its state"):
            lines = executor.stop()  # whatever ended the loop
        print(*lines, sep="\n", end="\n" if lines else "")
    return signals.received


def executor_of(config: SweepConfig, runs: Sequence[PlannedRun], root: Path) -> Executor:
    """Raises FlagError: GPUs that no run uses, or none for runs that need one. RuntimeError: no SLURM here."""
    devices = {run.config.device for run in runs}
    if config.executor == "local":
        n_devices = torch.cuda.device_count() if "cuda" in devices else 0
        return LocalPool(config.jobs, n_devices=n_devices, warm=devices == {"cpu"})
    if config.slurm.slurm_gpus and devices != {"cuda"}:
        raise FlagError(f"--slurm_gpus {config.slurm.slurm_gpus}: needs --device cuda; the GPUs would idle")
    if "cuda" in devices and not config.slurm.asks_for_gpus:
        raise FlagError("--device cuda needs --slurm_gpus 1, or GPUs named in --slurm_options")
    try:
        from study.sweeping.slurm import SlurmQueue
    except ModuleNotFoundError as error:
        raise RuntimeError(f"--executor slurm: {error.name} is not installed; pip install -r requirements.txt") from None
    return SlurmQueue(config.slurm, root)


def job_of(run: PlannedRun, root: Path) -> Job:
    log = root / "logs" / f"{run.name.replace('/', '_')}.log"
    return Job(run.name, tuple(run.flags()), run.folder, log, run.config.data)


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
        print(f"\n{count[BLOCKED]} runs wait for a parent that failed")
    if count[FAILED]:
        print("\nexperiment.py: error: some runs failed; repeat them with --retry", file=sys.stderr)
        return 1
    if away and not count[INTERRUPTED]:
        return 0
    if count[INTERRUPTED] + count[QUEUED] + count[RUNNING]:
        print(f"experiment.py: {signal or 'a run was stopped'}; {GOES_ON}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0

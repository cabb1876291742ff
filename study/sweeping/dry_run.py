"""`experiment.py sweep --dry_run 1`: which runs there would be, what is there of them, and what the rest takes."""

import collections
import functools
from collections.abc import Callable, Sequence

from helper.progress import Task, duration, tracked
from helper.schema.config import replace
from loader.archives import DataError
from loader.main import DataConfig, fingerprint_of
from optim.config import RunConfig
from study.sweeping.cost import Cost, Reference, choose_reference, cost_of, makespan, threads
from study.sweeping.executor import threads_of
from study.sweeping.plan import PlannedRun, plan
from study.sweeping.sweep_options import SweepConfig
from study.sweeping.work import Work


def dry_run(config: SweepConfig, configs: Sequence[RunConfig]) -> None:
    """Print the runs of a sweep, what is there, and an estimate of the time and disk that the others take."""
    problems: list[RuntimeError] = []
    with Task("planning"):
        runs = plan(configs, fingerprint_or_problem(problems))
    states = [state_of(run) for run in tracked(runs, "looking for", "runs")]
    reference = None
    if config.images_per_second is not None:
        reference = choose_reference(runs, config.images_per_second, config.reference)
    n_threads = threads_of(config.jobs) if config.executor == "local" else config.slurm.slurm_cpus or 1
    costs = []
    if reference or not problems:
        try:
            with threads(n_threads):
                costs = costs_of(runs, states, reference.cost_of if reference else cost_of)
        except RuntimeError as error:  # the device is not here
            problems.append(error)
    print_runs(runs, states, costs)
    if problems and not reference:
        print(f"no estimate: {problems[0]}")
    if problems and isinstance(problems[0], DataError):
        print("without the data, the folders' names are those of the published data files, and so are sizes")
    if costs:
        print(prices(runs, costs))
        print(times(runs, costs, config.jobs))
        print(priced_by(reference) if reference else measured_on(configs[0].device, n_threads))


def fingerprint_or_problem(problems: list[RuntimeError]) -> Callable[[DataConfig], str | None]:
    """`fingerprint_of` without a download; data that are not there are a problem and have none."""

    @functools.cache
    def fingerprint(data: DataConfig) -> str | None:
        try:
            return fingerprint_of(replace(data, download=False))
        except DataError as error:
            problems.append(error)
            return None

    return fingerprint


def state_of(run: PlannedRun) -> str:
    if run.finished:
        return "finished"
    if run.folder.finished:
        return "to measure"
    return "interrupted" if run.begun else "to do"


def costs_of(runs: Sequence[PlannedRun], states: Sequence[str], estimate: Callable[[PlannedRun], Cost]) -> list[Cost]:
    """What is left of each run; nothing of a finished one."""
    work = list(zip(runs, states, strict=True))
    return [Cost(Work(), 0.0) if state == "finished" else estimate(run) for run, state in tracked(work, "pricing", "runs")]


def print_runs(runs: Sequence[PlannedRun], states: Sequence[str], costs: Sequence[Cost]) -> None:
    """A line for each run, with its time if there are costs, and one that counts them."""
    times = [duration(cost.seconds) for cost in costs] or [""] * len(runs)
    for run, state, time in zip(runs, states, times, strict=True):
        print(f"{state:12} {time:>8}  {run.folder.path}")
    count = ", ".join(f"{n} {state}" for state, n in collections.Counter(states).items())
    print(f"\n{len(runs)} runs: {count}")


def times(runs: Sequence[PlannedRun], costs: Sequence[Cost], n_jobs: int) -> str:
    """How long all runs take, so many at a time and one after the other."""
    positions = {run.name: index for index, run in enumerate(runs)}
    parents = [positions[run.parent] if run.parent else None for run in runs]
    seconds = [cost.seconds for cost in costs]
    together = duration(makespan(seconds, parents, n_jobs))
    return f"about {together} with --jobs {n_jobs}, {duration(sum(seconds))} one after the other, without start-up;"


def prices(runs: Sequence[PlannedRun], costs: Sequence[Cost]) -> str:
    """A table with a line for each data set and network: images to be passed, device hours, disk."""
    groups: dict[str, list[Cost]] = {}
    for run, cost in zip(runs, costs, strict=True):
        if cost.seconds:
            groups.setdefault(run.group, []).append(cost)
    everything = [cost for group in groups.values() for cost in group]
    lines = [("images by a dense step's cost", "runs", "training", "evaluation", "measuring", "device h", "MB", "files")]
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

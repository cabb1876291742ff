"""`experiment.py power`: how many seeds and test images would show a gap, by the runs that are there, and what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy

from helper.progress import duration
from helper.schema.config import Config, FlagError, flag
from helper.untrusted.texts import shown
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import stored_config
from study.digits import digits
from study.sweeping.comparisons import Comparison, compared, paired_values
from study.sweeping.cost import choose_reference, cost_of, threads
from study.sweeping.dry_run import fingerprint_or_problem
from study.sweeping.executor import threads_of
from study.sweeping.plan import plan
from study.sweeping.sweep_options import IMAGES_PER_SECOND, REFERENCE, check_reference
from study.t_power import ALPHA, POWER, images_needed, sd_bounds, units_needed

Folders = Mapping[RunConfig, RunFolder]


@dataclass(frozen=True)
class PowerConfig(Config):
    """Power: which gap is to be shown, and what by."""

    gap: float = flag(0.01, "difference that is to be shown", low=1e-9)
    value: str = flag("acc_test", "number of summary.json, or metric, that it is a difference of")
    between: str = flag("mode", "flag in which the two sides differ, where the runs have more than two settings")
    jobs: int = flag(1, "runs at a time, for the price", low=1)
    images_per_second: float | None = flag(None, f"for the price: {IMAGES_PER_SECOND}", low=1e-6)
    reference: str | None = flag(None, REFERENCE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reference(self.reference, self.images_per_second)


@dataclass(frozen=True)
class Paired:
    """What the seeds say that two settings share.

    Attributes:
        differences: of each seed, the first setting less the second. sd: of them, at least that of one example.
        means: of both settings. n_examples: of which the value is a share; None: of none.
    """

    differences: list[float]
    sd: float
    means: tuple[float, float]
    n_examples: int | None

    @property
    def n(self) -> int:
        return len(self.differences)


def power(config: PowerConfig, *runs: str) -> None:
    """Print for every two settings among finished runs how far apart their seeds are, and what a gap takes to be shown."""
    folders = {}
    for path in runs:
        folder = RunFolder(Path(path))
        if not folder.finished:
            raise RuntimeError(f"{shown(path)} is no folder of a finished run")
        folders[stored_config(folder)] = folder
    for comparison in compared(folders, config.between):
        print(shown(f"{comparison.title}, {config.value}"))
        found = paired(comparison, folders, config.value)
        for line in [*lines_of(found, config.gap), price(config, comparison, found)]:
            print(f"  {shown(line)}")


def paired(comparison: Comparison, folders: Folders, value: str) -> Paired:
    """Raises FlagError: fewer than two seeds are in both settings, or there is no such value, or no spread."""
    if len(comparison.seeds) < 2:
        raise FlagError(f"{comparison.title}: the spread over seeds takes two that both settings have")
    pairs = [[folders[side[seed]] for side in comparison.sides] for seed in comparison.seeds]
    found, n_examples = paired_values(pairs, value)
    values = numpy.array(found)
    differences = values[:, 0] - values[:, 1]
    sd = max(float(differences.std(ddof=1)), 1 / n_examples if n_examples else 0.0)
    if not sd > 0 or not numpy.isfinite(differences).all():
        raise FlagError(f"{comparison.title}: {value} has no spread over these seeds, from which nothing can be told")
    return Paired(differences.tolist(), sd, (float(values[:, 0].mean()), float(values[:, 1].mean())), n_examples)


def lines_of(found: Paired, gap: float) -> list[str]:
    """What there is, and how many seeds and images a gap takes."""
    low, high = sd_bounds(found.sd, found.n)
    mean = sum(found.differences) / found.n
    lines = [
        f"{found.n} seeds: mean difference {mean:+.4g}, standard deviation of a seed's {digits(found.sd)} (95 %: {digits(low)} "
        f"to {digits(high)})"
    ]
    needed, fewest, most = (units_needed(gap / sd) for sd in (found.sd, low, high))
    lines.append(
        f"a gap of {gap:g} is shown with {POWER:.0%} power, tested at {ALPHA:.0%}, by {counted(needed)} seeds "
        f"({counted(fewest)} to {counted(most)} by those bounds)"
    )
    if found.n_examples:
        images = math.ceil(images_needed(found.means, gap))
        enough = "enough" if images <= found.n_examples else "too few, and more seeds do not make up for that"
        lines.append(f"and by {images:,} examples, as if both erred independently; there are {found.n_examples:,}: {enough}")
    return lines


def counted(n: int | None) -> str:
    return "over a million" if n is None else f"{n:,}"


def price(config: PowerConfig, comparison: Comparison, found: Paired) -> str:
    """What the seeds that lack take, with their dense runs, by the price of one more."""
    needed = units_needed(config.gap / found.sd)
    if needed is None or needed <= found.n:
        return "no more seeds are needed" if needed else "too many to be priced"
    more, new = needed - found.n, max(comparison.seeds) + 1
    problems: list[RuntimeError] = []
    runs = plan(comparison.at(new), fingerprint_or_problem(problems))
    if problems and config.images_per_second is None:
        return f"{more:,} more seeds, {more * len(runs):,} runs; no price: {problems[0]}"
    if config.images_per_second is None:
        with threads(threads_of(config.jobs)):
            costs = [cost_of(run) for run in runs]
    else:
        reference = choose_reference(runs, config.images_per_second, config.reference)
        costs = [reference.cost_of(run) for run in runs]
    seconds, megabytes = (more * sum(each) for each in zip(*((c.seconds, c.work.bytes / 1e6) for c in costs), strict=True))
    taken = f"about {duration(seconds / config.jobs)} with --jobs {config.jobs}, without start-up, {megabytes:,.0f} MB"
    instead = f"sweep --until_gap {config.value}:{config.gap:g} may stop before"
    return f"{more:,} more seeds are {more * len(runs):,} runs, with their dense ones: {taken}; {instead}"

"""`experiment.py sweep --until_gap`: seeds are added in pairs until an interval decides which holds however often one looks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from helper.schema.config import FlagError
from helper.untrusted.texts import shown
from loader.main import fingerprint_of
from optim.config import RunConfig
from optim.identity import run_folder
from study.anytime import ALPHA, OPEN, look
from study.decisions import Decision, write_decision
from study.sweeping.comparisons import Comparison, compared, paired_values
from study.sweeping.sweep_options import SweepConfig

RUNS_OF_A_SEED = 2


def until_decided(config: SweepConfig, configs: Sequence[RunConfig], run_all: Callable[[list[RunConfig]], int]) -> int:
    """Run a sweep, and then more seeds of the comparisons that are open; the exit code.

    What is decided depends on the runs alone, so that a sweep that was stopped goes on as if it had not been.

    Args:
        run_all: runs configurations, of which finished ones are left as they are; its exit code.
    """
    comparisons = comparisons_of(config, configs)
    root = Path(configs[0].results_root)
    while True:
        code = run_all(with_runs_of(comparisons, configs))
        if code:
            return code
        found = [judged(comparison, config, len(comparisons)) for comparison in comparisons]
        for comparison, decision in zip(comparisons, found, strict=True):
            write_decision(root, comparison.key(decision.value), decision)
            print(shown(sentence(decision)), flush=True)
        wanted = [d.verdict == OPEN and len(d.seeds) < config.max_seeds for d in found]
        if not any(wanted):
            return 0
        together = config.seeds_at_once or max(1, config.jobs // (RUNS_OF_A_SEED * sum(wanted)))
        comparisons = [
            comparison.with_more(min(together, config.max_seeds - len(comparison.seeds))) if more else comparison
            for comparison, more in zip(comparisons, wanted, strict=True)
        ]


def at_most(config: SweepConfig, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs of a sweep that adds seeds, if nothing is decided before there are as many as it may have."""
    comparisons = comparisons_of(config, configs)
    return with_runs_of([c.with_more(config.max_seeds - len(c.seeds)) for c in comparisons], configs)


def with_runs_of(comparisons: Sequence[Comparison], configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Some runs and those of some comparisons, each once."""
    return list(dict.fromkeys([*configs, *(run for comparison in comparisons for run in comparison.runs())]))


def comparisons_of(config: SweepConfig, configs: Sequence[RunConfig]) -> list[Comparison]:
    """Raises FlagError: there is nothing to compare, or there are more seeds than there may be."""
    comparisons = compared(configs, config.between)
    for comparison in comparisons:
        n = len(comparison.seeds)
        if not 0 < n <= config.max_seeds:
            why = "no seed is in both settings" if n == 0 else f"there are {n} seeds already"
            raise FlagError(f"--max_seeds {config.max_seeds}: {comparison.title}: {why}")
    return comparisons


def judged(comparison: Comparison, config: SweepConfig, n_comparisons: int) -> Decision:
    """What the seeds of a comparison say; its interval and those of the others hold together (Bonferroni)."""
    value, _, gap = config.until_gap.partition(":")
    folders = [[run_folder(run, fingerprint_of(run.data)) for run in comparison.at(seed)] for seed in comparison.seeds]
    values, n_examples = paired_values(folders, value)
    differences = [first - second for first, second in values]
    alpha = ALPHA / n_comparisons
    found = look(differences, alpha, least=1 / n_examples if n_examples else 0.0)
    bounded = found.low > -float("inf")
    return Decision(
        comparison.title, value, float(gap), 1 - alpha, comparison.seeds, differences, found.mean,
        found.low if bounded else None, found.high if bounded else None, found.decision(float(gap)), config.max_seeds,
    )  # fmt: skip


def sentence(decision: Decision) -> str:
    """What is known, in a line."""
    bounds = "no interval yet" if decision.low is None else f"[{decision.low:+.4g}, {decision.high:+.4g}]"
    left = decision.most - len(decision.seeds)
    more = f", {left} more may follow" if left else ", and there may be no more"
    return (
        f"{decision.title}, {decision.value}: {len(decision.seeds)} seeds, {decision.mean:+.4g} {bounds}: "
        f"{decision.words}{more if decision.verdict == OPEN else ''}"
    )

#!/usr/bin/env python
"""Gaps in accuracy on every example of their classes that runs were not trained on, with intervals over paired seeds.

    python scripts/held_out_gaps.py RUN... --root DATA        # seconds a run on one core

Runs with --limit_train leave training examples out, which are as new to them as test examples are; over both together a gap
shows from fewer seeds. Those of --val_size do not count where a run's --subset_method was reducible, whose scorer has them.
Runs are compared as `experiment.py power` compares them: the only two settings among them, or every two that differ in one
flag alone. Columns: examples that no run was trained on, seeds, mean accuracies, first minus second with its 95 % interval
(Student's t), the two-sided p-value, Holm's adjustment over all rows, and what so many seeds of this spread show with 80 %
power.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.metrics.evaluation import evaluate
from helper.schema.config import FlagError
from loader.dataset import Dataset, Split
from loader.main import DataConfig, load_dataset
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import load_run, stored_config
from study.reporting.regimes import judge
from study.reporting.statistics import spread_of
from study.sweeping.comparisons import Comparison, compared

BATCH = 500
COLUMNS = ("comparison", "examples", "seeds", "first", "second", "first minus second", "p", "p (Holm)", "shows from")


def unseen(config: DataConfig, own: Dataset, *, scored: bool) -> list[Split]:
    """The splits of a data set that training has not seen: test, and what --limit_train and --val_size leave out.

    Args:
        scored: whether a network that was trained on the examples of --val_size has chosen those of the steps.
    """
    seen = torch.cat([own.train.indices, own.val.indices]) if scored else own.train.indices
    whole = load_dataset(replace(config, limit_train=None, limit_test=None, val_size=0.0, train_on="train"))
    left_out = whole.train.subset(~torch.isin(whole.train.indices, seen))
    return [split for split in (whole.test, left_out) if len(split)]


def accuracy(network: nn.Module, dataset: Dataset, splits: Sequence[Split]) -> float:
    """Over the examples of all splits together, by their true labels."""
    right = 0.0
    for split in splits:
        clean = replace(split, labels=split.true_labels)
        right += evaluate(network, dataset.batches(clean, BATCH))["acc"] * len(split)
    return right / sum(map(len, splits))


def measured(paths: Sequence[str], root: str | None) -> tuple[dict[RunConfig, float], int]:
    """({configuration: accuracy} of some runs, over how many examples).

    Raises:
        SystemExit: they were not trained on the same examples, or their weights were chosen by others.
    """
    changes, found = {} if root is None else {"root": root}, {}
    scored = any(stored_config(RunFolder(Path(path))).subset.reducible for path in paths)
    first, splits = None, []
    for path in paths:
        network, _, config = load_run(path, changes)
        dataset = load_dataset(config.data)
        if first is None:
            first, splits = dataset, unseen(config.data, dataset, scored=scored)
        check(path, config, dataset, first)
        found[stored_config(RunFolder(Path(path)))] = accuracy(network, first, splits)
    return found, sum(map(len, splits))


def check(path: str, config: RunConfig, dataset: Dataset, first: Dataset) -> None:
    same = (dataset.name, dataset.class_names, dataset.fingerprint) == (first.name, first.class_names, first.fingerprint)
    if not (same and torch.equal(dataset.train.indices, first.train.indices)):
        sys.exit(f"held_out_gaps.py: error: {path} was trained on other examples than the first run; compare those apart")
    if config.train.select != "last":
        by = config.train.select
        sys.exit(
            f"held_out_gaps.py: error: {path} has the weights of the best {by} accuracy (--select {by}); give runs without"
        )


def comparisons_of(paths: Sequence[str], between: str) -> list[Comparison]:
    """Raises SystemExit: there is nothing to compare, or no seed that both settings have."""
    try:
        found = compared([stored_config(RunFolder(Path(path))) for path in paths], between)
    except FlagError as error:
        sys.exit(f"held_out_gaps.py: error: {error}")
    for one in found:
        if not one.seeds:
            sys.exit(f"held_out_gaps.py: error: {one.title}: no seed is in both settings")
    return found


def rows_of(comparisons: Sequence[Comparison], accuracies: dict[RunConfig, float], n: int) -> list[tuple[str, ...]]:
    pairs = [[[accuracies[side[seed]] for side in one.sides] for seed in one.seeds] for one in comparisons]
    gaps = judge([spread_of([first - second for first, second in pair], least=1 / n) for pair in pairs])
    rows = []
    for one, pair, gap in zip(comparisons, pairs, gaps, strict=True):
        means = [f"{sum(side) / len(pair):.4f}" for side in zip(*pair, strict=True)]
        numbers = (f"{value:.2g}" for value in (gap.p_value, gap.p_holm, gap.detectable))
        rows.append((one.title, f"{n:,}", str(len(pair)), *means, gap.interval.bounds(), *numbers))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--root", help="folder of the data; default: as the runs have it")
    parser.add_argument("--between", default="mode", help="flag in which compared settings differ")
    args = parser.parse_args()
    comparisons = comparisons_of(args.runs, args.between)
    accuracies, n = measured(args.runs, args.root)
    for row in (COLUMNS, ("---",) * len(COLUMNS), *rows_of(comparisons, accuracies, n)):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

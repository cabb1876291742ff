"""What a remedy changes: runs with one, and the same runs without, paired by seed.

A remedy is an option of training that is off by default, of `optim.train_config.REMEDIES`. Runs compare if they differ in
their remedies only; the dense parent may have them as well or be plain.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas

from helper.schema.config import digest
from optim.train_config import REMEDIES
from study.reporting.aggregate import finest, units_of
from study.reporting.finished_run import FinishedRun, grouped, place_of, without_seed
from study.reporting.pairs import FINETUNE, SCRATCH, side_of
from study.reporting.ranking import by_seed, paired, with_common_seeds
from study.reporting.regimes import Gap, judge
from study.reporting.statistics import SHARES, Interval, interval, ratio_interval

TEST, TRAIN, FISHER = "acc_test", "acc_train", "fisher"
COST = "cost"  # not relative to the dense run of a study, which may have the remedy itself


@dataclass(frozen=True)
class Comparison:
    """Runs of one method and sparsity with a remedy.

    Attributes:
        where: data and network. remedy: its options in words; empty: the runs without one.
        test, train: accuracies with the remedy; Tr F relative to the runs without, and so is cost.
        test_change, train_change: with minus without, of all rows of a table tested together; None of the runs without.
        behind: of runs from scratch, the plain finetuned ones minus these in test accuracy; None where there are none.
    """

    where: str
    method: str
    sparsity: float
    remedy: str
    test: Interval
    train: Interval
    fisher: Interval | None
    cost: Interval | None
    test_change: Gap | None
    train_change: Gap | None
    behind: Gap | None


@dataclass(frozen=True)
class Group:
    """Rows of the tidy table that differ in their seeds only, and those without the remedy, and plain finetuned ones."""

    first: FinishedRun
    remedy: str
    rows: pandas.DataFrame
    plain: pandas.DataFrame | None
    finetuned: pandas.DataFrame | None


def remedy_of(record: FinishedRun) -> str:
    """`sharpness_aware 0.05, also in its dense parent`; empty without one."""
    parent = record.identity.get("parent")
    of_parent = [name for name in parent if name in REMEDIES] if isinstance(parent, dict) else []
    words = [f"{name} {value}" for name, value in record.remedies.items()]
    if of_parent:
        words.append("also in its dense parent" if words else f"in its dense parent: {', '.join(of_parent)}")
    return ", ".join(words)


def without_remedies(record: FinishedRun) -> str:
    """Hash of all that runs have in common which differ in seed, method and remedies only."""
    where = place_of(record.flags)
    options = [json.loads(record.series), without_seed(record.dense or {})]
    kept = [{name: value for name, value in own.items() if name not in (*REMEDIES, "mode")} for own in options]
    return digest(where | {"options": kept, "sparsity": record.summary["sparsity_requested"]})


def comparisons(records: Sequence[FinishedRun], runs: pandas.DataFrame, margin: float) -> list[Comparison]:
    """Every method and sparsity of which there are runs with and without a remedy, the runs without first.

    Args:
        runs: the tidy table. margin: smallest difference of accuracies that counts.
    """
    groups = list(groups_of(records, runs.set_index("run", drop=False)))
    changes = {quantity: judged([(g.rows, g.plain) for g in groups], quantity, margin) for quantity in (TEST, TRAIN)}
    behind = judged([(g.finetuned, g.rows) for g in groups], TEST, margin)
    found = []
    for index, group in enumerate(groups):
        record, rows, plain = group.first, group.rows, group.plain
        found.append(
            Comparison(
                where=f"{record.data}, {record.name.split('/')[1]}",
                method=record.family.label,
                sparsity=record.summary["sparsity_requested"],
                remedy=group.remedy,
                test=mean_of(rows, TEST),
                train=mean_of(rows, TRAIN),
                fisher=None if plain is None else ratio(rows, plain, FISHER),
                cost=None if plain is None else ratio(rows, plain, COST),
                test_change=changes[TEST][index],
                train_change=changes[TRAIN][index],
                behind=behind[index],
            )
        )
    return found


def groups_of(records: Sequence[FinishedRun], rows: pandas.DataFrame) -> Iterator[Group]:
    """Those of each method and sparsity that has remedies, the plain ones first."""
    alike = grouped(records, lambda record: (without_remedies(record), record.mode))
    plain = {key: [record for record in group if not remedy_of(record)] for key, group in alike.items()}

    def table(group: Sequence[FinishedRun]) -> pandas.DataFrame | None:
        return rows.loc[[record.name for record in group]] if group else None

    for (setting, mode), group in alike.items():
        by_remedy = grouped(group, remedy_of)
        without = by_remedy.pop("", [])
        if not (without and by_remedy):
            continue
        side = side_of(mode)
        finetuned = [] if side != SCRATCH else [
            record for (other, name), of in plain.items() if other == setting and side_of(name) == FINETUNE for record in of
        ]  # fmt: skip
        yield Group(without[0], "", table(without), None, table(finetuned))
        for remedy, own in by_remedy.items():
            yield Group(own[0], remedy, table(own), table(without), table(finetuned))


def judged(
    sides: Sequence[tuple[pandas.DataFrame | None, pandas.DataFrame | None]], quantity: str, margin: float
) -> list[Gap | None]:
    """One side minus the other, all of them tested together; None where a side is missing or they have no seed in common."""
    spreads = [None if one is None or other is None else paired(one, other, quantity) for one, other in sides]
    tested = [index for index, spread in enumerate(spreads) if spread is not None]
    by_index = dict(zip(tested, judge([spreads[index] for index in tested], margin), strict=True))
    return [by_index.get(index) for index in range(len(sides))]


def ratio(one: pandas.DataFrame, other: pandas.DataFrame, quantity: str) -> Interval:
    """Geometric mean over the seeds that both have."""
    _, sides = with_common_seeds(one, other, quantity=quantity)
    mine, theirs, units = by_seed(sides, quantity)
    return ratio_interval(mine.tolist(), theirs.tolist(), units)


def mean_of(rows: pandas.DataFrame, quantity: str) -> Interval:
    return interval(rows[quantity].tolist(), units=units_of(rows), least=finest(rows, quantity), within=SHARES)

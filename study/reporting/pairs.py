"""Which finetuned run is set against which from scratch: those that differ in nothing but how they start."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helper.schema.config import digest
from optim.modes import MODES
from study.reporting.finished_run import SCHEDULE, FinishedRun, grouped, without_schedule

SIDES = (FINETUNE, SCRATCH) = ("finetune", "scratch")
UNTOLD = {"dense parent": "another dense parent", "weights left by layer": "another mask"}  # whose values say nothing
AS_LONG, AS_LONG_IN_TOTAL = "as long", "as long in total"


@dataclass(frozen=True)
class Pair:
    """Two runs to be compared.

    Attributes:
        budget: `as long`: every option but the mode is the same. `as long in total`: but for the learning rate's milestones,
            and from-scratch training has as many epochs as the dense run and finetuning together.
    """

    finetune: FinishedRun
    scratch: FinishedRun
    budget: str


def side_of(mode: str) -> str | None:
    """The side that runs of a mode take: FINETUNE goes on with the dense solution, SCRATCH draws all weights anew.

    Both have the mask of the dense solution; runs of other modes take neither side.
    """
    spec = MODES[mode]
    if spec.mask_from is None or not spec.mask_from.of_parent or spec.in_rounds:
        return None
    if spec.starts_from.of_parent:
        return FINETUNE if spec.starts_from.trained else None
    return SCRATCH


def pair_runs(records: Sequence[FinishedRun]) -> tuple[list[Pair], list[tuple[str, str]]]:
    """The pairs of a study, and (run, reason) of each run that has no partner while there are runs of both sides."""
    sides = {side: [record for record in records if side_of(record.mode) == side] for side in SIDES}
    partners = grouped(sides[SCRATCH], lambda record: digest(without_schedule(facts(record))))
    pairs = []
    for finetune in sides[FINETUNE]:
        for scratch in partners.get(digest(without_schedule(facts(finetune))), []):
            budget = budget_of(finetune, scratch)
            if budget:
                pairs.append(Pair(finetune, scratch, budget))
    paired = {record.name for pair in pairs for record in (pair.finetune, pair.scratch)}
    if not all(sides.values()):
        return pairs, []
    others = {FINETUNE: sides[SCRATCH], SCRATCH: sides[FINETUNE]}
    alone = [(record, others[side]) for side in SIDES for record in sides[side] if record.name not in paired]
    return pairs, [(record.name, why_alone(record, candidates)) for record, candidates in alone]


def facts(record: FinishedRun) -> dict[str, Any]:
    """What two runs must have in common: seed, dense parent, mask, data, network, and the options of their training."""
    options = json.loads(record.series)
    del options["mode"]
    parent = record.identity.get("parent")
    return {
        "random_state": record.seed,
        "prune_ratio": record.summary["sparsity_requested"],
        "dense parent": digest(parent) if isinstance(parent, dict) else str(parent),
        "weights left by layer": record.summary.get("sparsity_by_layer"),
        **{name: record.flags[name] for name in SCHEDULE},
        **options,
    }


def budget_of(finetune: FinishedRun, scratch: FinishedRun) -> str | None:
    """How the training of two otherwise equal runs compares; None where it does not."""
    mine, theirs = facts(finetune), facts(scratch)
    if all(mine[name] == theirs[name] for name in SCHEDULE):
        return AS_LONG
    total = mine["n_epochs"] + dense_epochs(finetune)
    return AS_LONG_IN_TOTAL if theirs["n_epochs"] == total else None


def dense_epochs(record: FinishedRun) -> float:
    """Epochs of the dense parent; nan where it was given as a file."""
    known = isinstance(record.identity.get("parent"), dict)
    return (record.flags["n_epochs_pretrain"] or record.flags["n_epochs"]) if known else float("nan")


def why_alone(record: FinishedRun, others: Sequence[FinishedRun]) -> str:
    """What the most similar run of the other mode has otherwise."""
    differing = [(differences(record, other), other) for other in others]
    words, nearest = min(differing, key=lambda one: (len(one[0]), one[1].name))
    return f"no {nearest.mode} run is its counterpart; the most similar one, {nearest.name}, has {', '.join(words)}"


def differences(record: FinishedRun, other: FinishedRun) -> list[str]:
    """`lr 0.2 instead of 0.1`, for each fact in which another run differs."""
    mine, theirs = facts(record), facts(other)
    found = []
    for name in {**mine, **theirs}:
        if mine.get(name) == theirs.get(name):
            continue
        if name in UNTOLD:
            found.append(UNTOLD[name])
        else:
            values = [run.flags.get(name, own.get(name)) for run, own in ((other, theirs), (record, mine))]
            found.append(f"{name} {values[0]} instead of {values[1]}")
    return found

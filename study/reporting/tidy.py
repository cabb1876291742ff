"""Finished runs -> one tidy table with a row for each."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas

from helper.interval import NORMAL_QUANTILE, half_interval
from helper.metrics.main import METRICS
from helper.schema.config import digest
from optim.meter import PASSES
from optim.subsets.config import NO_SUBSET, SubsetConfig
from optim.train_config import REMEDIES
from study.bias import marked
from study.reporting.collect import EXAMPLES, NUMBERS, Collection
from study.reporting.finished_run import BUDGET, FinishedRun, grouped, number

REPORTED = {name: metric.heading for name, metric in METRICS.items() if metric.heading}  # {column: its heading in tables}


def tidy(collection: Collection) -> pandas.DataFrame:
    """One row a run: where it belongs, its settings in short, and its numbers; accuracies are shares, losses nats.

    cost: multiply-accumulates for each training example, epochs x active weights' uses (forward; a training step takes
    about three times that); with the runs whose weights (cost_weights) or whose mask as well (cost_mask) it takes.
    relative_cost: what training took relative to the dense run of its study; relative_cost_with_parents: with all the runs
    that it needs; relative_budget: what `--train_budget` asked for in the same unit, which is its own only where that dense
    run has as many epochs as `--n_epochs` and plain steps.
    """
    dense = {digest(record.identity): record for record in collection.records if not record.mode_spec.has_mask}
    labels, wholes = series_labels(collection.records), costs_of_dense(dense.values())
    rows = [row_of(record, labels[record.name], dense, wholes.get(record.study, math.nan)) for record in collection.records]
    return pandas.DataFrame(rows)


def row_of(record: FinishedRun, series: str, dense: dict[str, FinishedRun], whole: float) -> dict[str, Any]:
    """`whole`: the cost of the dense run of its study."""
    summary, flags = record.summary, record.flags
    own = cost_of(record)
    parent = record.identity.get("parent")
    before = cost_before(record, dense)
    return {
        "run": record.name,
        "study": record.study,
        "data": record.data,
        "network": record.name.split("/")[1],
        "mode": record.mode,
        "family": record.family.label,
        "series": series,
        "sparsity": summary["sparsity_requested"],
        "seed": record.seed,
        "parent": digest(parent) if isinstance(parent, dict) else parent or "",
        "lottery": record.identity.get("lottery", ""),
        "hash": digest(record.identity),
        "select": flags["select"],
        "epochs": epochs_of(record),
        "epoch_selected": summary["epoch_selected"],
        **{name: summary.get(name, math.nan) for name in NUMBERS},
        **{f"n_{name}": summary.get("examples", {}).get(name, math.nan) for name in EXAMPLES},
        "entropy_train": at_selected(record, "entropy_train"),
        **{key: value for name in REPORTED for key, value in measured(summary["metrics"], name).items()},
        "n_classes": summary.get("n_classes", math.nan),
        **initial_fisher(record),
        **largest_eigenvalue(summary["metrics"].get("eigenvalue", {})),
        "macs_active": summary["macs_active"],
        BUDGET: record.identity.get(BUDGET, math.nan),
        "cost": own,
        "cost_weights": own + (before if record.mode_spec.starts_from.trained else 0.0),
        "cost_mask": own + before,
        "relative_cost": own / whole,
        "relative_cost_with_parents": (own + before) / whole,
        "relative_budget": budget_of(record) / whole,
        "seconds": summary.get("seconds", {}).get("training", math.nan),
    }


def epochs_of(record: FinishedRun) -> int:
    """That it took: as many as `--n_epochs`, unless a budget said otherwise, without those that a round is rewound to."""
    return record.summary.get("epochs", record.flags["n_epochs"]) - record.first_epoch


def cost_of(record: FinishedRun) -> float:
    """Of a run by itself, in the unit of `tidy`; as counted over its steps, where its summary has that."""
    counted, unit = record.summary.get("training_macs"), unit_of(record)
    return counted / unit if counted and unit else epochs_of(record) * record.summary["macs_active"]


def budget_of(record: FinishedRun) -> float:
    """What `--train_budget` allows a run to cost, in the unit of `tidy`; nan without one."""
    return record.identity.get(BUDGET, math.nan) * record.flags["n_epochs"] * record.summary["macs_dense"]


def cost_before(record: FinishedRun, dense: dict[str, FinishedRun]) -> float:
    """Of the runs that a run needs, one that scores its training examples among them; nan where one of them is not known."""
    total, own = (record.summary.get(name) for name in ("training_macs_with_parents", "training_macs"))
    if total and own and unit_of(record):
        return (total - own) / unit_of(record)
    if not record.mode_spec.needs_parent:
        return math.nan if own and total is None and is_scored(record) else 0.0
    parent = record.identity.get("parent")
    found = dense.get(digest(parent)) if isinstance(parent, dict) and not record.mode_spec.in_rounds else None
    return cost_of(found) if found else math.nan


def is_scored(record: FinishedRun) -> bool:
    """Whether a run needs scores of its training examples, which another run has made."""
    return SubsetConfig(**{name: record.flags[name] for name in NO_SUBSET}).scored is not None


def unit_of(record: FinishedRun) -> int:
    """Multiply-accumulates of training that are one in the unit of `tidy`; 0 where the number of examples is not known."""
    return PASSES * record.summary.get("examples", {}).get("train", 0)


def costs_of_dense(dense: Iterable[FinishedRun]) -> dict[str, float]:
    """{study: mean cost of its dense runs}, of those that no budget made longer or shorter."""
    usual = grouped((record for record in dense if BUDGET not in record.identity), lambda record: record.study)
    return {study: sum(map(cost_of, group)) / len(group) for study, group in usual.items()}


def measured(metrics: dict[str, dict[str, Any]], name: str) -> dict[str, float | str]:
    """Columns of a measurement. Its error is that of a normal distribution with the same 95 % interval, which is wider than
    the standard error where that was estimated from few draws."""
    found = metrics.get(name, {})
    value, error = (float(found.get(key, math.nan)) for key in ("value", "standard_error"))
    degrees, skewness = (float(found.get(key, default)) for key, default in (("degrees", math.inf), ("skewness", 0.0)))
    error = half_interval(error, degrees, skewness) / NORMAL_QUANTILE
    how = ", ".join(filter(None, (found["estimator"].split(";")[0], found["params"], found["split"]))) if found else ""
    reliable = float(found.get("reliable", math.nan))  # 0: a few large draws decide on it
    return {name: value, f"{name}_error": error, f"{name}_by": how, f"{name}_reliable": reliable}


def largest_eigenvalue(found: dict[str, Any]) -> dict[str, float]:
    """Of all examples, with its standard error, and that of the examples measured, which a sample has too large."""
    names = {"eigenvalue": "value", "eigenvalue_error": "standard_error", "eigenvalue_of_sample": "of_sample"}
    return {column: float(found.get(name, math.nan)) for column, name in names.items()}


def at_selected(record: FinishedRun, column: str) -> float:
    row = next((row for row in record.rows("history") if row["epoch"] == str(record.summary["epoch_selected"])), {})
    return number(row.get(column))


def initial_fisher(record: FinishedRun) -> dict[str, float]:
    """Columns of Tr F of the initialisation, measured as the selected weights' one was; nan where it was not."""
    selected, row = record.summary["metrics"].get("fisher"), {}
    if selected is not None:
        wanted = {name: selected[name] for name in ("settings", "params", "split")}
        wanted |= {"metric": "fisher", "epoch": str(record.first_epoch), "layer": "all", "subset": "all"}
        row = next((row for row in record.rows("metrics") if wanted.items() <= row.items()), {})
    return {"fisher_initial": number(row.get("value")), "fisher_initial_reliable": number(row.get("reliable"))}


def series_labels(records: Sequence[FinishedRun]) -> dict[str, str]:
    """{run: its family, with the options in which series of the same family and study differ}, of remedies those it has."""
    labels = {}
    for group in grouped(records, lambda record: (record.study, record.family)).values():
        options = {record.series: json.loads(record.series) for record in group}
        names = sorted(set().union(*options.values()))
        varying = [name for name in names if len({json.dumps(o.get(name)) for o in options.values()}) > 1]
        for record in group:
            shown = [name for name in varying if name not in REMEDIES or name in record.remedies]
            words = [f"{name} {record.flags.get(name, options[record.series].get(name))}" for name in shown]
            labels[record.name] = marked(", ".join([record.family.label, *words]), record.biased)
    return labels

"""The tidy table of runs -> means over seeds with intervals, gaps between finetuned and scratch, and the paper's two tables."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import pandas

from helper.metrics.main import METRICS
from optim.modes import MODES
from study.reporting.pairs import Pair
from study.reporting.regimes import MARGIN, judge, regime
from study.reporting.statistics import NOT_NEGATIVE, SHARES, Interval, independent, interval, ratio_interval, spread_of
from study.reporting.tidy import REPORTED
from study.reporting.unreliable import unreliable
from study.t_power import resolved

QUANTITIES = (
    "acc_train", "acc_test", "loss_train", "loss_test", "entropy_train", "acc_clean", "acc_generalized", "acc_memorized",
    *REPORTED,
)  # fmt: skip
COUNTED = {  # accuracy: what it is a share of
    "acc_train": "train", "acc_test": "test", "acc_val": "val", "acc_clean": "clean", "acc_generalized": "mislabelled",
    "acc_memorized": "mislabelled",
}  # fmt: skip
SETTING = ["study", "data", "network", "mode", "family", "series", "sparsity"]
COSTS = ["cost", "cost_weights", "cost_mask", "epochs", "relative_cost", "relative_cost_with_parents"]


def measured_alike(runs: pandas.DataFrame) -> tuple[pandas.DataFrame, list[tuple[str, str]]]:
    """The table without measurements made another way than most of their study: numbers of two kinds must not be averaged.

    Returns:
        The table, and (run, reason) of each value that was taken out.
    """
    runs, reasons = runs.copy(), []
    for name in REPORTED:
        by = runs[f"{name}_by"]
        usual = by[by != ""].groupby(runs["study"]).agg(lambda ways: ways.value_counts().index[0])
        other = (by != "") & (by != runs["study"].map(usual))
        for run, way, study in runs.loc[other, ["run", f"{name}_by", "study"]].itertuples(index=False):
            reasons.append((run, f"{name} was measured otherwise ({way}) than in most of its study ({usual[study]})"))
        initial = ["fisher_initial", "fisher_initial_reliable"] if name == "fisher" else []
        runs.loc[other, [name, f"{name}_error", f"{name}_reliable", *initial]] = numpy.nan
    return runs, reasons


def over_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Long table: a row for each setting and quantity, with mean, low, high, n, method and runs of the 95 % interval.

    unreliable: how many of the runs' values are marked as such.
    """
    rows = []
    for setting, group in runs.groupby(SETTING, sort=False):
        common = dict(zip(SETTING, setting, strict=True)) | group[COSTS].mean().to_dict()
        units = units_of(group)
        for quantity in QUANTITIES:
            errors = group.get(f"{quantity}_error")
            found = interval(
                group[quantity].tolist(), None if errors is None else errors.tolist(), units, least=finest(group, quantity),
                within=range_of(quantity, group["n_classes"].max()),
            )  # fmt: skip
            if found.n:
                rows.append(common | {"quantity": quantity} | vars(found) | {"unreliable": unreliable(group, quantity)[0]})
    fields = [f.name for f in dataclasses.fields(Interval)]
    table = pandas.DataFrame(rows, columns=[*SETTING, *COSTS, "quantity", *fields, "unreliable"])
    order = ["data", "network", "study", "sparsity", "mode", "series"]
    return table.sort_values(
        order, key=lambda c: c.map(list(MODES).index) if c.name == "mode" else c, kind="stable", ignore_index=True
    )


def units_of(runs: pandas.DataFrame) -> list[int]:
    """The independent unit of each run: runs that share a seed, a dense parent or a lottery ticket's weights are one."""
    shared = [
        [(name, value) for name, value in zip(("seed", "parent", "lottery"), row, strict=True) if value != ""]
        for row in runs[["seed", "parent", "lottery"]].itertuples(index=False)
    ]
    return independent(shared)


def finest(runs: pandas.DataFrame, accuracy: str) -> float:
    """1/N of an accuracy over N examples: by less than one of them seeds cannot be known to differ. nan: of unknown N."""
    counted = COUNTED.get(accuracy)
    return 1 / runs[f"n_{counted}"].min() if counted else numpy.nan


def range_of(quantity: str, n_classes: float) -> tuple[float, float]:
    """Where a quantity can lie; of an entropy in nats, up to the logarithm of the number of classes."""
    if quantity.startswith("acc"):
        return SHARES
    if quantity.startswith("entropy"):
        return (0.0, float(numpy.log(n_classes)) if n_classes > 0 else numpy.inf)
    return (METRICS[quantity].least, numpy.inf) if quantity in METRICS else NOT_NEGATIVE


def gaps(runs: pandas.DataFrame, pairs: Sequence[Pair], margin: float = MARGIN) -> pandas.DataFrame:
    """Finetuned against scratch at every sparsity of one study, the series with the most pairs first.

    Columns finetune, scratch, budget, sparsity; seeds (independent units), runs (pairs); train_gap and test_gap (`Gap`),
    tested together by column; ratios (`Interval`) of Tr F, Tr H and Jacobian norm, and of Tr F to the initialisation's; the
    names of those that rest on an unreliable measurement; regime.

    Args:
        pairs: runs that differ in their mode only, see `pairs.pair_runs`. margin: smallest gap that counts.
    """
    rows = runs.set_index("run")
    groups: dict[tuple, list[tuple[pandas.Series, pandas.Series]]] = {}
    for pair in pairs:
        finetune, scratch = rows.loc[pair.finetune.name], rows.loc[pair.scratch.name]
        key = (finetune["series"], scratch["series"], pair.budget, finetune["sparsity"])
        groups.setdefault(key, []).append((finetune, scratch))
    count = {key[:3]: sum(len(group) for other, group in groups.items() if other[:3] == key[:3]) for key in groups}
    keys = sorted(groups, key=lambda key: (-count[key[:3]], key))
    sides = [tuple(pandas.DataFrame(side) for side in zip(*groups[key], strict=True)) for key in keys]
    table = pandas.DataFrame(keys, columns=["finetune", "scratch", "budget", "sparsity"])
    if keys:
        columns = pandas.DataFrame([compared(*pair) for pair in sides])
        table = table.join(columns).join(judged(sides, margin))
    return table


def compared(finetune: pandas.DataFrame, scratch: pandas.DataFrame) -> dict[str, Any]:
    """Ratios of one row's pairs, which of them rest on an unreliable measurement, and how many units and pairs there are."""
    units = units_of(finetune)
    sides = {f"{name}_ratio": ((scratch, name), (finetune, name)) for name in REPORTED}
    sides |= {f"trend_{n}": ((of, "fisher"), (of, "fisher_initial")) for n, of in (("f", finetune), ("s", scratch))}
    ratios = {key: ratio_interval(*(runs[name].tolist() for runs, name in pair), units) for key, pair in sides.items()}
    doubtful = tuple(key for key, pair in sides.items() if any(unreliable(runs, name)[0] for runs, name in pair))
    return {"seeds": len(set(units)), "runs": len(units), **ratios, "unreliable": doubtful}


def judged(sides: Sequence[tuple[pandas.DataFrame, pandas.DataFrame]], margin: float) -> pandas.DataFrame:
    """Columns train_gap and test_gap, each one family of tests, and the regime that they speak for."""
    columns = {}
    for name, quantity in (("train_gap", "acc_train"), ("test_gap", "acc_test")):
        spreads = [
            spread_of((f[quantity].array - s[quantity].array).tolist(), units_of(f), least=finest(f, quantity))
            for f, s in sides
        ]
        images = [resolved([f[quantity].mean(), s[quantity].mean()], f["n_test"].min()) for f, s in sides]
        columns[name] = judge(spreads, margin, images if quantity == "acc_test" else None)
    states = zip(columns["train_gap"], columns["test_gap"], strict=True)
    columns["regime"] = [regime(training.state, test.state) for training, test in states]
    return pandas.DataFrame(columns)


def curves(
    tables: Sequence[pandas.DataFrame],
    column: str,
    units: Sequence[int] | None = None,
    *,
    logarithmic: bool = False,
    least: float = numpy.nan,
    within: tuple[float, float] = (-numpy.inf, numpy.inf),
) -> pandas.DataFrame:
    """(epoch, mean, low, high) of a column over the seeds' tables, at the epochs that all of them have.

    Args:
        units, least, within: as of `interval`.
        logarithmic: geometric mean and the interval of the logarithms, for what varies by factors; an epoch at which a
            value is not positive has none.
    """
    joined = pandas.concat([table.set_index("epoch")[column] for table in tables], axis=1, join="inner").dropna()
    if logarithmic:
        found = [ratio_interval(values, [1.0] * len(values), units) for values in joined.to_numpy()]
    else:
        found = [interval(values.tolist(), units=units, least=least, within=within) for values in joined.to_numpy()]
    bounds = [(f.mean, f.mean if numpy.isnan(f.low) else f.low, f.mean if numpy.isnan(f.high) else f.high) for f in found]
    curve = pandas.DataFrame(bounds, columns=["mean", "low", "high"]).assign(epoch=joined.index.to_numpy())
    return curve[curve["mean"].notna()]


def studies(runs: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """(name, runs) of every study: a dense setting with the sparse runs that start from it."""
    for _, part in runs.groupby("study", sort=False):
        yield f"{part['data'].iloc[0]}, {part['network'].iloc[0]}", part

"""The tidy table of runs -> means over seeds with intervals, gaps between finetuned and scratch, and the paper's two tables."""

import itertools
from collections.abc import Iterator, Sequence

import numpy
import pandas

from study.collect import METRICS
from study.statistics import Interval, interval, ratio_interval, regime

QUANTITIES = (
    "acc_train", "acc_test", "loss_train", "loss_test", "entropy_train", "acc_clean", "acc_generalized", "acc_memorized",
    "fisher", "hessian", "jacobian",
)  # fmt: skip
SETTING = ["study", "data", "network", "mode", "series", "sparsity"]
COSTS = ["cost", "cost_weights", "cost_mask", "epochs"]
ORDER = {"dense": 0, "sparse-finetune": 1, "sparse-scratch": 2, "lottery": 3}


def measured_alike(runs: pandas.DataFrame) -> tuple[pandas.DataFrame, list[tuple[str, str]]]:
    """The table without measurements made another way than most of their study: numbers of two kinds must not be averaged.

    Returns:
        The table, and (run, reason) of each value that was taken out.
    """
    runs, reasons = runs.copy(), []
    for name in METRICS:
        by = runs[f"{name}_by"]
        usual = by[by != ""].groupby(runs["study"]).agg(lambda ways: ways.value_counts().index[0])
        other = (by != "") & (by != runs["study"].map(usual))
        for run, way, study in runs.loc[other, ["run", f"{name}_by", "study"]].itertuples(index=False):
            reasons.append((run, f"{name} was measured otherwise ({way}) than in most of its study ({usual[study]})"))
        runs.loc[other, [name, f"{name}_error", *(["fisher_initial"] if name == "fisher" else [])]] = numpy.nan
    return runs, reasons


def over_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Long table: a row for each setting and quantity, with mean, low, high, n and method of the 95 % interval."""
    rows = []
    for setting, group in runs.groupby(SETTING, sort=False):
        common = dict(zip(SETTING, setting, strict=True)) | group[COSTS].mean().to_dict()
        for quantity in QUANTITIES:
            errors = group.get(f"{quantity}_error")
            found = interval(group[quantity].tolist(), None if errors is None else errors.tolist())
            if found.n:
                rows.append(common | {"quantity": quantity} | vars(found))
    table = pandas.DataFrame(rows, columns=[*SETTING, *COSTS, "quantity", "mean", "low", "high", "n", "method"])
    order = ["data", "network", "study", "sparsity", "mode", "series"]
    return table.sort_values(order, key=lambda c: c.map(ORDER) if c.name == "mode" else c, kind="stable", ignore_index=True)


def gaps(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Finetuned against scratch at every sparsity of one study: gaps paired by seed, ratios of Tr F and Tr H, regime.

    Every series against the other side's main one.
    """
    rows = []
    finetuned, scratched = series_of(runs, "sparse-finetune"), series_of(runs, "sparse-scratch")
    pairs = [(f, s) for f, s in itertools.product(finetuned, scratched) if f == finetuned[0] or s == scratched[0]]
    for finetune, scratch in pairs:
        for sparsity in sorted(set(runs.loc[runs["series"] == finetune, "sparsity"])):
            pair = paired(runs, finetune, scratch, sparsity)
            if len(pair):
                rows.append(
                    {"finetune": finetune, "scratch": scratch, "sparsity": sparsity, "seeds": len(pair)} | compared(pair)
                )
    return pandas.DataFrame(rows)


def paired(runs: pandas.DataFrame, finetune: str, scratch: str, sparsity: float) -> pandas.DataFrame:
    """Runs of two series at one sparsity, side by side where seed and dense parent are the same; suffixes _f and _s."""
    both = [runs[(runs["series"] == series) & (runs["sparsity"] == sparsity)] for series in (finetune, scratch)]
    return both[0].merge(both[1], on=["seed", "parent"], suffixes=("_f", "_s"))


def compared(pair: pandas.DataFrame) -> dict[str, Interval | str]:
    gap = {name: interval((pair[f"{name}_f"] - pair[f"{name}_s"]).tolist()) for name in ("acc_train", "acc_test")}
    ratio = {name: ratio_interval(pair[f"{name}_s"], pair[f"{name}_f"]) for name in ("fisher", "hessian", "jacobian")}
    return {
        "train_gap": gap["acc_train"],
        "test_gap": gap["acc_test"],
        **{f"{name}_ratio": found for name, found in ratio.items()},
        **{f"trend_{side}": ratio_interval(pair[f"fisher_{side}"], pair[f"fisher_initial_{side}"]) for side in "fs"},
        "regime": regime(gap["acc_train"], gap["acc_test"]),
    }


def series_of(runs: pandas.DataFrame, mode: str) -> list[str]:
    """The series of a mode, the one with the most runs first."""
    return runs.loc[runs["mode"] == mode, "series"].value_counts().index.tolist()


def curves(tables: Sequence[pandas.DataFrame], column: str, *, logarithmic: bool = False) -> pandas.DataFrame:
    """(epoch, mean, low, high) of a column over the seeds' tables, at the epochs that all of them have.

    Args:
        logarithmic: geometric mean and the interval of the logarithms, for what varies by factors.
    """
    joined = pandas.concat([table.set_index("epoch")[column] for table in tables], axis=1, join="inner").dropna()
    if logarithmic:
        joined = joined[(joined > 0).all(axis=1)]
        found = [ratio_interval(values, [1.0] * len(values)) for values in joined.to_numpy()]
    else:
        found = [interval(values.tolist()) for values in joined.to_numpy()]
    bounds = [(f.mean, f.mean if numpy.isnan(f.low) else f.low, f.mean if numpy.isnan(f.high) else f.high) for f in found]
    return pandas.DataFrame(bounds, columns=["mean", "low", "high"]).assign(epoch=joined.index.to_numpy())


def studies(runs: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    """(name, runs) of every study: a dense setting with the sparse runs that start from it."""
    for _, part in runs.groupby("study", sort=False):
        yield f"{part['data'].iloc[0]}, {part['network'].iloc[0]}", part

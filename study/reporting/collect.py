"""Run folders -> records, and one tidy table with a row a run."""

import csv
import functools
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from helper.interval import NORMAL_QUANTILE, half_interval
from helper.metrics.main import METRICS
from helper.progress import tracked
from helper.schema.config import digest, flag_fields, flatten
from helper.tables import DamagedTable
from helper.untrusted.reasons import Unfit, reason_of
from optim.config import PruneConfig
from optim.folder import HISTORY, SHAPE, SNR, RunFolder
from optim.folder import METRICS as METRICS_COLUMNS
from optim.model import stored_config
from optim.modes import MODES, ModeSpec
from study.bias import is_biased, marked

OWN = ("mode", "random_state", "prune_ratio", "parent", "lottery")  # of an identity: what does not tell one series from another
MASKING = {"mode", *(field.name for field in flag_fields(PruneConfig))}  # of an identity: what a dense run has not
REPORTED = {name: metric.heading for name, metric in METRICS.items() if metric.heading}  # {column: its heading in tables}
TABLES = {
    "history": HISTORY,
    "snr": SNR,
    "metrics": [name for name in METRICS_COLUMNS if name not in SHAPE],
}  # and the columns that all have
TEXTS = {
    "layer",
    "mode",
    "metric",
    "split",
    "subset",
    "params",
    "estimator",
    "settings",
    "checkpoint",
}  # the others: numbers


@dataclass(frozen=True)
class Record:
    """A finished run, as its folder tells."""

    path: Path
    name: str  # below the results root, POSIX
    flags: dict[str, Any]
    summary: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        return self.summary["identity"]

    @property
    def mode(self) -> str:
        return self.summary["mode"]

    @property
    def mode_spec(self) -> ModeSpec:
        return MODES[self.mode]

    @property
    def seed(self) -> int:
        return self.flags["random_state"]

    @property
    def biased(self) -> bool:
        return is_biased(self.flags)

    @property
    def origins(self) -> list[tuple[str, Any]]:
        """What a run's result depends on and another run may have as well: seed, dense parent, the lottery ticket's file."""
        parent, lottery = (self.identity.get(name) for name in ("parent", "lottery"))
        return [("seed", self.seed), *((name, digest(of)) for name, of in (("parent", parent), ("lottery", lottery)) if of)]

    @property
    def dense(self) -> dict[str, Any] | None:
        """Identity of the dense run that this one is, needs, or would be without its mask; None: it was given as a file."""
        if not self.mode_spec.needs_parent:
            return {name: value for name, value in self.identity.items() if name not in MASKING}
        parent = self.identity["parent"]
        return parent if isinstance(parent, dict) else None

    @functools.cached_property
    def study(self) -> str:
        """Hash over what a dense run, all sparse runs that start from it, and those that need none have in common.

        Their seeds may differ.
        """
        dense = self.dense
        where = {name: self.flags[name] for name in ("loader_name", "net_name")}
        return digest(where | {"dense": "given as a file" if dense is None else without_seed(dense)})

    @functools.cached_property
    def series(self) -> str:
        """JSON of the options that a run shares with those that differ from it in seed and sparsity only.

        With --train_eval, which does not change the weights but what the training columns mean.
        """
        own = {name: value for name, value in self.identity.items() if name not in OWN}
        own["train_eval"] = self.flags["train_eval"]
        return json.dumps({"mode": self.mode, **own}, sort_keys=True)

    @functools.cached_property
    def history(self) -> pandas.DataFrame:
        return self.table("history")

    @functools.cached_property
    def snr(self) -> pandas.DataFrame:
        return self.table("snr")

    @functools.cached_property
    def metrics(self) -> pandas.DataFrame:
        return self.table("metrics")

    def table(self, name: str) -> pandas.DataFrame:
        """One of TABLES; without rows where there is none, or a damaged one."""
        return pandas.read_csv(self.path / f"{name}.csv") if self.rows(name) else pandas.DataFrame()

    def rows(self, name: str) -> list[dict[str, str]]:
        """The same as texts, which for a few cells of many runs is ten times as fast."""
        try:
            return rows_of(self.path / f"{name}.csv", TABLES[name])
        except (FileNotFoundError, DamagedTable):
            return []


@dataclass(frozen=True)
class Collection:
    """The finished runs under a results root, and what was left out, with the reason."""

    root: Path
    records: tuple[Record, ...]
    left_out: list[tuple[str, str]]


def collect(root: Path) -> Collection:
    """Every finished run under a results root. Folders that are none, and damaged files, are listed with the reason."""
    records, left_out, seen = [], [], {}
    paths = sorted(
        {file.parent for kind in ("summary.json", "config.yaml") for file in root.glob(f"*/*/*/*/{kind}") if file.is_file()}
    )
    for path in tracked(paths, "reading runs", "runs"):
        name = path.relative_to(root).as_posix()
        folder = RunFolder(path)
        if not folder.summary.is_file():
            left_out.append((name, "not finished"))
            continue
        try:
            record = Record(path, name, flatten(stored_config(folder)), summary_of(folder))
            folder.check_files()
            key = (record.flags["loader_name"], record.study, digest(record.identity))
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            left_out.append((name, why_left_out(folder, error)))
            continue
        if key in seen:
            left_out.append((name, f"the same run as {seen[key]}"))
            continue
        seen[key] = name
        records.append(record)
        left_out += [(f"{name}/{table}.csv", why) for table, why in damaged_tables(path)]
    return Collection(root, tuple(records), left_out)


def why_left_out(folder: RunFolder, error: Exception) -> str:
    """A sentence with file and cure."""
    if isinstance(error, RuntimeError):
        return " ".join(str(error).split())
    path = getattr(error, "filename", None) or folder.summary
    return f"{path} is damaged: {reason_of(error)}; remove it, and the run's command makes it again"


def damaged_tables(path: Path) -> list[tuple[str, str]]:
    found = []
    for table, columns in TABLES.items():
        try:
            if (path / f"{table}.csv").is_file():
                rows_of(path / f"{table}.csv", columns)
        except DamagedTable as error:
            found.append((table, f"damaged: {error}; the run's other files are used, put a copy of it back"))
    return found


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """summary.json, if it has what a report needs. Raises ValueError, KeyError, TypeError when it is damaged."""
    summary = folder.read_summary()
    needed = ("epoch_selected", "acc_train", "acc_test", "macs_active", "macs_dense", "sparsity_requested")
    given = {name: summary[name] for name in NUMBERS if summary.get(name) is not None}
    counts = {**summary.get("seconds", {}), **summary.get("examples", {}), "n_classes": summary.get("n_classes", 0)}
    for name, value in {**{name: summary[name] for name in needed}, **given, **counts}.items():
        if not isinstance(value, float) and (type(value) is not int or abs(value) >= 2**63):
            raise Unfit(f"{name} is no number of a run")
    dict(summary["identity"])
    for found in summary["metrics"].values():
        float(found["value"]), float(found["standard_error"]), [found[how] + "" for how in ("estimator", "params", "split")]
        float(found.get("of_sample", 0))
    if summary["mode"] not in MODES:
        raise Unfit(f"mode {summary['mode']!r} is none of {', '.join(MODES)}")
    return summary


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        DamagedTable: a column or the end of a row is missing, or a cell of a number holds none.
    """
    try:
        text = path.read_text() if path.is_file() else ""
        header, *rows = csv.reader(io.StringIO(text), strict=True)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedTable(reason_of(error)) from None
    if (
        not set(columns) <= set(header)
        or len(set(header)) != len(header)
        or not text.endswith("\n")
        or any(len(row) != len(header) for row in rows)
    ):
        raise DamagedTable("half-written")
    try:
        for index in (index for index, column in enumerate(header) if column not in TEXTS):
            for row in rows:
                float(row[index] or 0)
        if any(int(row[header.index("epoch")]) < 0 for row in rows):
            raise Unfit("a negative epoch")
    except (ValueError, OverflowError) as error:
        raise DamagedTable(str(error) if isinstance(error, Unfit) else "a number is none") from None
    return [dict(zip(header, row, strict=True)) for row in rows]


def without_seed(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "random_state"}


# ------------------------------------------------------------------------------------------------------ one table


def tidy(collection: Collection) -> pandas.DataFrame:
    """One row a run: where it belongs, its settings in short, and its numbers; accuracies are shares, losses nats.

    cost: multiply-accumulates for each training example, epochs x active weights' uses (forward; a training step takes
    about three times that); with the dense run whose weights (cost_weights) or whose mask as well (cost_mask) it takes.
    """
    dense = {digest(record.identity): record for record in collection.records if not record.mode_spec.has_mask}
    labels = series_labels(collection.records)
    return pandas.DataFrame([row_of(record, labels[record.name], dense) for record in collection.records])


def row_of(record: Record, series: str, dense: dict[str, Record]) -> dict[str, Any]:
    summary, flags = record.summary, record.flags
    own = flags["n_epochs"] * summary["macs_active"]
    parent = record.identity.get("parent")
    before = 0.0
    if record.mode_spec.needs_parent:
        found = dense.get(digest(parent)) if isinstance(parent, dict) else None
        before = found.flags["n_epochs"] * found.summary["macs_active"] if found else math.nan
    return {
        "run": record.name,
        "study": record.study,
        "data": flags["loader_name"],
        "network": record.name.split("/")[1],
        "mode": record.mode,
        "series": series,
        "sparsity": summary["sparsity_requested"],
        "seed": record.seed,
        "parent": digest(parent) if isinstance(parent, dict) else parent or "",
        "lottery": record.identity.get("lottery", ""),
        "hash": digest(record.identity),
        "select": flags["select"],
        "epochs": flags["n_epochs"],
        "epoch_selected": summary["epoch_selected"],
        **{name: summary.get(name, math.nan) for name in NUMBERS},
        **{f"n_{name}": summary.get("examples", {}).get(name, math.nan) for name in EXAMPLES},
        "entropy_train": at_selected(record, "entropy_train"),
        **{key: value for name in REPORTED for key, value in measured(summary["metrics"], name).items()},
        "n_classes": summary.get("n_classes", math.nan),
        **initial_fisher(record),
        **largest_eigenvalue(summary["metrics"].get("eigenvalue", {})),
        "macs_active": summary["macs_active"],
        "cost": own,
        "cost_weights": own + (before if record.mode_spec.starts_from.trained else 0.0),
        "cost_mask": own + before,
        "seconds": summary.get("seconds", {}).get("training", math.nan),
    }


EXAMPLES = ("train", "val", "test", "clean", "mislabelled")  # of which summary.json has the number
NUMBERS = (
    "acc_train", "acc_val", "acc_test", "loss_train", "loss_val", "loss_test", "acc_clean", "acc_generalized", "acc_memorized",
    "sparsity_achieved",
)  # fmt: skip


def measured(metrics: dict[str, dict[str, Any]], name: str) -> dict[str, float | str]:
    """Columns of a measurement. Its error is that of a normal distribution with the same 95 % interval, which is wider than
    the standard error where that was estimated from few draws."""
    found = metrics.get(name, {})
    value, error = (float(found.get(key, math.nan)) for key in ("value", "standard_error"))
    error = half_interval(error, float(found.get("degrees", math.inf))) / NORMAL_QUANTILE
    how = ", ".join(filter(None, (found["estimator"].split(";")[0], found["params"], found["split"]))) if found else ""
    reliable = float(found.get("reliable", math.nan))  # 0: a few large draws decide on it
    return {name: value, f"{name}_error": error, f"{name}_by": how, f"{name}_reliable": reliable}


def largest_eigenvalue(found: dict[str, Any]) -> dict[str, float]:
    """Of all examples, with its standard error, and that of the examples measured, which a sample has too large."""
    names = {"eigenvalue": "value", "eigenvalue_error": "standard_error", "eigenvalue_of_sample": "of_sample"}
    return {column: float(found.get(name, math.nan)) for column, name in names.items()}


def at_selected(record: Record, column: str) -> float:
    row = next((row for row in record.rows("history") if row["epoch"] == str(record.summary["epoch_selected"])), {})
    return number(row.get(column))


def initial_fisher(record: Record) -> dict[str, float]:
    """Columns of Tr F of the initialisation, measured as the selected weights' one was; nan where it was not."""
    selected, row = record.summary["metrics"].get("fisher"), {}
    if selected is not None:
        wanted = {name: selected[name] for name in ("settings", "params", "split")}
        wanted |= {"metric": "fisher", "epoch": "0", "layer": "all", "subset": "all"}
        row = next((row for row in record.rows("metrics") if wanted.items() <= row.items()), {})
    return {"fisher_initial": number(row.get("value")), "fisher_initial_reliable": number(row.get("reliable"))}


def number(cell: str | None) -> float:
    """nan for an empty cell and for what is no number."""
    try:
        return float(cell or math.nan)
    except ValueError:
        return math.nan


def series_labels(records: Sequence[Record]) -> dict[str, str]:
    """{run: mode, with the options in which series of the same mode and study differ}."""
    labels = {}
    for group in grouped(records, lambda record: (record.study, record.mode)).values():
        options = {record.series: json.loads(record.series) for record in group}
        names = sorted(set().union(*options.values()))
        varying = [name for name in names if len({json.dumps(o.get(name)) for o in options.values()}) > 1]
        for record in group:
            words = [f"{name} {record.flags.get(name, options[record.series].get(name))}" for name in varying]
            labels[record.name] = marked(", ".join([record.mode, *words]), record.biased)
    return labels


def grouped(records: Iterable[Record], key) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups

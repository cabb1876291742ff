"""A finished run as its folder tells, without its weights: flags, summary, tables, and what it belongs to."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from helper.own.references import label_of
from helper.schema.config import all_flags, counts, digest, flag_fields
from helper.tables import TEXTS, DamagedTable, cells_of
from helper.untrusted.reasons import Unfit
from loader.main import data_label
from optim.columns import HISTORY, LATER, METRICS_COLUMNS, SHAPE, SNR, SNR_LATER
from optim.config import PruneConfig, RunConfig
from optim.modes import MODES, ModeSpec
from optim.train_config import REMEDIES
from study.bias import is_biased
from study.reporting.families import USUAL_MODE, Family, family_of, in_order

OWN = ("mode", "random_state", "prune_ratio", "parent", "lottery")  # of an identity: what does not tell one series from another
MASKING = {"mode", *(field.name for field in flag_fields(PruneConfig))}  # of an identity: what a dense run has not
SCHEDULE = ("n_epochs", "lr_milestones")  # what a run that is trained longer has to change
BUDGET = "train_budget"  # of an identity: it says how long a run is trained, and the other flags are the dense run's
TABLES = {
    "history": [name for name in HISTORY if name not in LATER],
    "snr": [name for name in SNR if name not in SNR_LATER],
    "metrics": [name for name in METRICS_COLUMNS if name not in SHAPE],
}  # and the columns that all have


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as its folder tells."""

    path: Path
    name: str  # below the results root, POSIX
    flags: dict[str, Any]
    summary: dict[str, Any]
    joined: str | None = None  # the study that a run without a parent belongs to although it has another schedule

    @property
    def identity(self) -> dict[str, Any]:
        return self.summary["identity"]

    @property
    def mode(self) -> str:
        return self.summary["mode"]

    @property
    def mode_spec(self) -> ModeSpec:
        return MODES[self.mode]

    @functools.cached_property
    def family(self) -> Family:
        """What its method is called."""
        return family_of(self.identity)

    @property
    def first_epoch(self) -> int:
        """That of the weights with which it began."""
        return self.flags["rewind_epoch"] if self.mode_spec.in_rounds else 0

    @property
    def seed(self) -> int:
        return self.flags["random_state"]

    @property
    def data(self) -> str:
        """What run folders call its data set."""
        return data_label(self.flags["loader_name"], noisy=self.flags["train_noisy"])

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
            return {name: value for name, value in self.identity.items() if name != BUDGET and self.acts_in_dense(name)}
        parent = self.identity["parent"]
        return parent if isinstance(parent, dict) else None

    def acts_in_dense(self, name: str) -> bool:
        """Whether an option of the identity would count in a dense run; what is no flag does."""
        field = all_flags(RunConfig).get(name)
        return field is None or (name != "mode" and counts(field.metadata["flag"], self.flags | {"mode": USUAL_MODE}))

    @functools.cached_property
    def remedies(self) -> dict[str, Any]:
        """The options of its own training that are remedies, see `optim.train_config.REMEDIES`."""
        return {name: value for name, value in self.identity.items() if name in REMEDIES}

    @functools.cached_property
    def study(self) -> str:
        """Hash over what a dense run, all sparse runs that start from it, and those that need none have in common.

        Their seeds may differ.
        """
        if self.joined is not None:
            return self.joined
        dense = self.dense
        where = place_of(self.flags)
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
        except DamagedTable:
            return []


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        DamagedTable: a column or the end of a row is missing, or a cell of a number holds none.
    """
    heading, rows = cells_of(path)
    if not set(columns) <= set(heading):
        raise DamagedTable("half-written")
    try:
        for index in (index for index, column in enumerate(heading) if column not in TEXTS):
            for row in rows:
                float(row[index] or 0)
        if any(int(row[heading.index("epoch")]) < 0 for row in rows):
            raise Unfit("a negative epoch")
    except (ValueError, OverflowError) as error:
        raise DamagedTable(str(error) if isinstance(error, Unfit) else "a number is none") from None
    return [dict(zip(heading, row, strict=True)) for row in rows]


def with_dense_runs(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Sparse runs without a parent join the study of the dense run that is otherwise equal, if they are trained longer or
    shorter, or with a remedy that no dense run has.

    One of which no dense run has all settings, and of which several have all but these, stays by itself.
    """
    dense = [record for record in records if not record.mode_spec.has_mask]
    studies = {record.study for record in dense}
    others: dict[str, set[str]] = {}
    for record in dense:
        for left_out in (SCHEDULE, *([] if record.remedies else [(*SCHEDULE, *REMEDIES)])):
            others.setdefault(dense_without(record, left_out), set()).add(record.study)
    found = []
    for record in records:
        keys = [dense_without(record, left_out) for left_out in (SCHEDULE, (*SCHEDULE, *REMEDIES))]
        near = next((others[key] for key in keys if key in others), set()) if not record.mode_spec.needs_parent else set()
        joins = record.study not in studies and len(near) == 1
        found.append(dataclasses.replace(record, joined=next(iter(near))) if joins else record)
    return found


def dense_without(record: FinishedRun, left_out: Sequence[str]) -> str:
    """Hash of a run's dense settings, whatever its seed and these options."""
    where = place_of(record.flags)
    options = {name: value for name, value in without_seed(record.dense or {}).items() if name not in left_out}
    return digest(where | {"dense": options, "without": list(left_out)})


def place_of(flags: dict[str, Any]) -> dict[str, str]:
    """Names of data set and network, wherever the code of one's own lies."""
    return {name: label_of(flags[name]) for name in ("loader_name", "net_name")}


def without_schedule(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in SCHEDULE}


def without_seed(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "random_state"}


def grouped(records: Iterable[FinishedRun], key) -> dict[Any, list[FinishedRun]]:
    groups: dict[Any, list[FinishedRun]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def families_of(records: Iterable[FinishedRun]) -> list[Family]:
    return in_order(record.family for record in records)


def number(cell: str | None) -> float:
    """nan for an empty cell and for what is no number."""
    try:
        return float(cell or math.nan)
    except ValueError:
        return math.nan

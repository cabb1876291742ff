"""What can be asked about a finished run, one column each: its place, its numbers, its measurements, and every flag."""

import datetime
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from helper.metrics.main import METRICS
from helper.schema.config import all_flags, digest, parts, value_type
from helper.system.sizes import size_of
from optim.config import RunConfig
from study.bias import marked
from study.digits import digits
from study.reporting.collect import NUMBERS
from study.reporting.condition import NUMBER, SWITCH, TEXT, Value
from study.reporting.finished_run import FinishedRun
from study.reporting.tidy import epochs_of, measured
from study.reporting.unreliable import doubted

COUNTS = (
    "parameters_dense",
    "parameters_active",
    "macs_dense",
    "macs_active",
    "peak_memory_mb",
)  # of a summary, beside NUMBERS


@dataclass(frozen=True)
class Column:
    """A column: the kind of its values, and its value for a run, None where that has none.

    Attributes:
        shown: how its value is marked where people read it.
    """

    kind: str
    of: Callable[[FinishedRun], Value]
    shown: Callable[[FinishedRun, str], str] = lambda record, text: text

    def value(self, record: FinishedRun) -> Value:
        found = self.of(record)
        return None if isinstance(found, float) and math.isnan(found) else found

    def cell(self, record: FinishedRun) -> str:
        """The value for a table that people read, with the digits that count."""
        found = self.value(record)
        if found is None:
            return ""
        text = found if isinstance(found, str) else digits(found) if isinstance(found, float) else str(int(found))
        return self.shown(record, text)


def own_columns() -> dict[str, Column]:
    places = {
        "run": lambda record: record.name,
        "data": lambda record: record.data,
        "network": lambda record: record.name.split("/")[1],
        "mode": lambda record: record.mode,
        "family": lambda record: record.family.label,
        "hash": lambda record: digest(record.identity),
        "finished": finished_at,
        "commit": lambda record: text_in(record.summary.get("git"), "commit"),
        "device": lambda record: record.flags["device"],
    }
    numbers = {
        "sparsity": lambda record: record.summary["sparsity_requested"],
        "seed": lambda record: record.seed,
        "epochs": epochs_of,
        "epoch_selected": lambda record: record.summary["epoch_selected"],
        **{name: functools.partial(number_in, name=name) for name in (*NUMBERS, *COUNTS)},
        "seconds": lambda record: record.summary.get("seconds", {}).get("training"),
        "megabytes": megabytes,
    }
    columns = {name: Column(TEXT, of) for name, of in places.items()} | {
        name: Column(NUMBER, of) for name, of in numbers.items()
    }
    columns["acc_test"] = Column(NUMBER, numbers["acc_test"], lambda record, text: marked(text, record.biased))
    for name in (*METRICS, "eigenvalue"):
        columns[name] = Column(NUMBER, functools.partial(measurement, name, name), functools.partial(with_doubt, name))
        columns[f"{name}_error"] = Column(NUMBER, functools.partial(measurement, name, f"{name}_error"))
    return columns


def number_in(record: FinishedRun, name: str) -> Value:
    """A number of a summary; None where there is none."""
    found = record.summary.get(name)
    return found if isinstance(found, int | float) else None


def text_in(mapping: object, name: str) -> str | None:
    found = mapping.get(name) if isinstance(mapping, dict) else None
    return found if isinstance(found, str) else None


def measurement(name: str, column: str, record: FinishedRun) -> Value:
    return measured(record.summary["metrics"], name)[column]


def with_doubt(name: str, record: FinishedRun, text: str) -> str:
    return doubted(text, measured(record.summary["metrics"], name)[f"{name}_reliable"] == 0)


def finished_at(record: FinishedRun) -> str:
    """When its summary was written, which a later measurement does again."""
    written = (record.path / "summary.json").stat().st_mtime
    return datetime.datetime.fromtimestamp(written).astimezone().isoformat(" ", "minutes")[:16]


def megabytes(record: FinishedRun) -> float:
    """Of all files in its folder."""
    return size_of(record.path) / 1e6


def flag_columns() -> dict[str, Column]:
    """{flag of run.py: its column}."""
    kinds = {bool: SWITCH, int: NUMBER, float: NUMBER, str: TEXT}
    return {
        name: Column(kinds[kind_of(RunConfig, name)], lambda record, name=name: record.flags[name])
        for name in all_flags(RunConfig)
    }


def kind_of(cls: type, name: str) -> type:
    """The type of a flag's values."""
    for part in parts(cls).values():
        if name in all_flags(part):
            return kind_of(part, name)
    return value_type(cls, all_flags(cls)[name])[0]


COLUMNS = flag_columns() | own_columns()
OWN = tuple(own_columns())  # those that are no flag, or another thing than the flag of that name

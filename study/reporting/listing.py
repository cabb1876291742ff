"""`experiment.py list`: the finished runs of a results root, some of them, in some order, as a table or as CSV."""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from helper.progress import tracked
from helper.schema.config import Config, FlagError, flag
from helper.schema.values import near_match
from helper.system.files import hash_of_file
from helper.untrusted.texts import csv_text, one_line, shown
from optim.folder import RunFolder
from study.reporting.collect import UNREADABLE, finished_run, run_paths, why_left_out
from study.reporting.condition import TEXT, Condition, Unclear, read_condition
from study.reporting.finished_run import FinishedRun
from study.reporting.run_columns import COLUMNS, OWN, Column
from study.reporting.text_table import fitted
from study.reporting.unreliable import notes_of

USUAL = ("run", "sparsity", "seed", "epochs", "acc_train", "acc_test", "fisher", "hessian", "jacobian", "seconds")


def column_names(value: object) -> str:
    """A comma-separated list of columns. Raises ValueError: one is unknown, or there is none."""
    words = [word.strip() for word in str(value).split(",") if word.strip()]
    if words == ["all"]:
        return ",".join((*OWN, *(name for name in COLUMNS if name not in OWN)))
    for word in words:
        if word not in COLUMNS:
            raise ValueError(f"{word!r} is no column{near_match(word, COLUMNS)}")
    if not words:
        raise ValueError("expected names of columns with commas between")
    return ",".join(dict.fromkeys(words))


@dataclass(frozen=True)
class ListConfig(Config):
    """List: which runs, in which order, and what of them."""

    where: str | None = flag(
        None, "only runs that fulfil this: comparisons of columns with numbers, texts in quotes or each other, joined by and, "
        "or, not; in; what a run does not have compares with nothing but None; default: all",
    )  # fmt: skip
    sort: str | None = flag(
        None, "columns to sort by, the first one first; runs without a value come last; default: by name", convert=column_names
    )
    descending: bool = flag(False, "sort from the largest to the smallest")
    columns: str | None = flag(
        None, f"columns, or all: {', '.join(OWN)}, and the flags of run.py by their names; default: what there is of "
        f"{', '.join(USUAL)}", convert=column_names,
    )  # fmt: skip
    csv: bool = flag(False, "CSV on stdout, numbers with all their digits")


def list_runs(config: ListConfig, results_root: str) -> int:
    """Print the finished runs of a results root. What cannot be read is left out, with a line on stderr."""
    root = Path(results_root)
    if not root.is_dir():
        raise RuntimeError(f"{root} is no folder; give the --results_root of runs")
    condition = condition_of(config)
    records, unfinished, left_out = readable(root)
    chosen = [
        record for record in records if condition is None or condition.holds(lambda name, r=record: COLUMNS[name].value(r))
    ]
    chosen = in_order(chosen, (config.sort or "run").split(","), config.descending)
    names = config.columns.split(",") if config.columns else usual_columns(chosen)
    try:
        if config.csv:
            print(csv_of(chosen, names), end="", flush=True)
        else:
            print_table(chosen, names, len(records))
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    for name, reason in left_out:
        print(one_line(f"left out {name}: {reason}"), file=sys.stderr)
    if unfinished:
        print(f"not finished: {unfinished}; experiment.py status has them", file=sys.stderr)
    return 0


def condition_of(config: ListConfig) -> Condition | None:
    if config.where is None:
        return None
    try:
        return read_condition(config.where, {name: column.kind for name, column in COLUMNS.items()})
    except Unclear as error:
        raise FlagError(f"--where {one_line(config.where, 200)}: {error}") from None


def readable(root: Path) -> tuple[list[FinishedRun], int, list[tuple[str, str]]]:
    """(finished runs, how many are not finished, (name, reason) of those that cannot be read)."""
    records, unfinished, left_out = [], 0, []
    for path in tracked(run_paths(root), "reading runs", "runs"):
        folder, name = RunFolder(path), path.relative_to(root).as_posix()
        if not folder.summary.is_file():
            unfinished += 1
            continue
        try:
            record = finished_run(folder, name)
            folder.check_file(folder.config, hash_of_file(folder.config), record.summary)
        except UNREADABLE as error:
            left_out.append((name, why_left_out(folder, error)))
            continue
        records.append(record)
    return records, unfinished, left_out


def in_order(records: Sequence[FinishedRun], names: Sequence[str], descending: bool) -> list[FinishedRun]:
    """Sorted by columns; those without a value last, those that are equal by name."""
    found = sorted(records, key=lambda record: record.name)
    for name in reversed(names):
        values = {record.name: COLUMNS[name].value(record) for record in found}
        known = [record for record in found if values[record.name] is not None]
        known.sort(key=lambda record: values[record.name], reverse=descending)
        found = known + [record for record in found if values[record.name] is None]
    return found


def usual_columns(records: Sequence[FinishedRun]) -> list[str]:
    """Those of USUAL of which a run has a value."""
    return [name for name in USUAL if name == "run" or any(COLUMNS[name].value(record) is not None for record in records)]


def csv_of(records: Iterable[FinishedRun], names: Sequence[str]) -> str:
    """An empty cell where a run has no value; 1 and 0 for switches."""
    rows = [[plain(COLUMNS[name], record) for name in names] for record in records]
    return csv_text(pandas.DataFrame(rows, columns=list(names), dtype=object))


def plain(column: Column, record: FinishedRun) -> str | int | float | None:
    value = column.value(record)
    return int(value) if isinstance(value, bool) else value


def print_table(records: Sequence[FinishedRun], names: Sequence[str], n_all: int) -> None:
    """As wide as the terminal; in full where there is none."""
    if records:
        rows = [[shown(COLUMNS[name].cell(record)) for name in names] for record in records]
        numeric = [COLUMNS[name].kind != TEXT for name in names]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        lines, without_room = fitted(names, rows, numeric, width)
        print("\n".join(lines))
        for note in notes_of("\n".join(lines)):
            print(note)
        if without_room:
            print(f"no room for {', '.join(without_room)}: --columns chooses, --csv has all")
    print(f"{len(records)} of {n_all} finished runs" if len(records) < n_all else f"{n_all} finished runs", flush=True)

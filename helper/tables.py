"""Tidy CSV tables that grow by whole epochs and survive a crash."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit, reason_of

# columns of a run's tables that hold texts; all others hold numbers
TEXTS = frozenset(("layer", "mode", "precision", "metric", "split", "subset", "params", "estimator", "settings", "checkpoint"))


class DamagedTable(RuntimeError):
    """A table that is not whole."""


def cells_of(path: Path) -> tuple[list[str], list[list[str]]]:
    """(heading, rows) of a CSV file, every row as long as the heading.

    Raises:
        DamagedTable: there is no such file, or it is half-written; the message is the reason alone.
    """
    try:
        text = path.read_text() if path.is_file() else ""  # a pipe would wait for ever
        heading, *rows = csv.reader(io.StringIO(text), strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedTable(reason_of(error)) from None
    if len(set(heading)) < len(heading) or not text.endswith("\n") or any(len(row) != len(heading) for row in rows):
        raise DamagedTable("half-written")
    return heading, rows


class Table:
    """Rows of a CSV file; every `write` replaces the file atomically. Rows read back keep their text to the letter.

    Args:
        replace: how the file gets a new content.
    """

    def __init__(self, path: Path, columns: list[str], replace: Callable[[Path, bytes], None] = write_atomic) -> None:
        self.path, self.columns, self.replace = path, columns, replace
        self.rows: list[dict[str, str]] = read(path, columns)

    def keep_until(self, epoch: int) -> None:
        """Forget the rows of later epochs: an interrupted run writes them again."""
        self.rows = [row for row in self.rows if int(row["epoch"]) <= epoch]

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append({column: text(row.get(column)) for column in self.columns})

    def write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.replace(self.path, buffer.getvalue().encode())


class TableReader:
    """The rows of a table that grows, each of them once: `new_rows` reads on from where it ended before."""

    TAIL = 1024  # bytes by which the place is known again

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.heading: list[str] | None = None  # as the file has it
        self.place, self.n_rows = 0, 0  # bytes and rows that have been read
        self.before = b""  # the last bytes of those

    def goes_on(self) -> bool:
        """Whether what has been read still ends at its place; otherwise rows were taken out, and a new reader has to begin."""
        try:
            return self.read_from(self.place - len(self.before))[: len(self.before)] == self.before
        except FileNotFoundError:
            return not self.place

    def new_rows(self) -> list[dict[str, str]]:
        """The rows since the last call, the given columns of each. Raises DamagedTable: one is not whole."""
        try:
            added = self.read_from(self.place)
        except FileNotFoundError:
            return []
        self.heading, rows = parse_rows(self.path, added, self.heading, self.n_rows)
        self.place, self.n_rows = self.place + len(added), self.n_rows + len(rows)
        self.before = (self.before + added)[-self.TAIL :]
        return [filled(row, self.columns) for row in rows]

    def read_from(self, place: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(place)
            return file.read()


def read(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The given columns of a table; no rows where there is none."""
    return [filled(row, columns) for row in whole_rows(path)] if path.exists() else []


def filled(row: dict[str, str], columns: list[str]) -> dict[str, str]:
    """The given columns of a row; those that an older table does not have are empty."""
    return {column: row.get(column) or "" for column in columns}


def whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table in which every row has an epoch.

    Raises:
        DamagedTable: a row has other cells than the heading, or no epoch.
    """
    if not path.is_file():
        raise damaged(path, "it is no file")
    return parse_rows(path, path.read_bytes())[1]


def parse_rows(
    path: Path, content: bytes, heading: list[str] | None = None, n_before: int = 0
) -> tuple[list[str], list[dict[str, str]]]:
    """(heading, rows) of a part of a table that follows `n_before` rows; without a heading it begins with one.

    Raises:
        DamagedTable: a row has other cells than the heading, or no epoch.
    """
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), heading, strict=True)
        rows = list(reader)
        for line, row in enumerate(rows, n_before + 2):
            if None in row or None in row.values():
                raise Unfit(f"line {line} has more or fewer cells than the heading")
            if not re.fullmatch(r"\d{1,9}", row["epoch"], re.ASCII):
                raise Unfit(f"line {line} has no epoch")
    except (ValueError, KeyError, csv.Error) as error:
        raise damaged(path, reason_of(error)) from None
    return list(reader.fieldnames or []), rows


def damaged(path: Path, reason: str) -> DamagedTable:
    return DamagedTable(f"{path} is damaged: {reason}; put a copy of it back, or move the run's folder away to repeat it")


def number(path: Path, row: dict[str, str], column: str) -> float:
    """A cell of a table's row as a number. Raises DamagedTable: it is none."""
    try:
        return float(row[column])
    except ValueError:
        raise damaged(path, f"{column} of epoch {row['epoch']} is no number") from None


def rows_so_far(path: Path) -> list[dict[str, str]]:
    """The rows of a table that another process writes; none where there is no whole one."""
    try:
        return whole_rows(path) if path.exists() else []
    except DamagedTable:
        return []


def last_row(path: Path) -> dict[str, str]:
    """The last row of a table that another process writes; empty where there is none."""
    return next(reversed(rows_so_far(path)), {})


def newest_cells(path: Path) -> dict[str, str]:
    """{column: its last cell that is not empty} of a table that another process writes."""
    return {column: cell for row in rows_so_far(path) for column, cell in row.items() if cell}


def text(value: Any) -> str:
    """A cell: empty for None, shortest exact form for floats."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)

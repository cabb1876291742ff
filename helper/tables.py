"""Tidy CSV tables that grow by whole epochs and survive a crash."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit, reason_of


class DamagedTable(RuntimeError):
    """A table that is not whole."""


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


def read(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The given columns of a table; no rows where there is none."""
    if not path.exists():
        return []
    return [{column: row.get(column) or "" for column in columns} for row in whole_rows(path)]


def whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table in which every row has an epoch.

    Raises:
        DamagedTable: a row has other cells than the heading, or no epoch.
    """
    try:
        if not path.is_file():
            raise Unfit("it is no file")
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        for number, row in enumerate(rows, 2):
            if None in row or None in row.values():
                raise Unfit(f"line {number} has more or fewer cells than the heading")
            if not re.fullmatch(r"\d{1,9}", row["epoch"], re.ASCII):
                raise Unfit(f"line {number} has no epoch")
    except (ValueError, KeyError, csv.Error) as error:
        raise DamagedTable(
            f"{path} is damaged: {reason_of(error)}; put a copy of it back, or move the run's folder away to repeat it"
        ) from None
    return rows


def number(path: Path, row: dict[str, str], column: str) -> float:
    """A cell of a table's row as a number. Raises DamagedTable: it is none."""
    try:
        return float(row[column])
    except ValueError:
        where = f"{column} of epoch {row['epoch']}"
        raise DamagedTable(
            f"{path} is damaged: {where} is no number; put a copy of it back, or move the run's folder away to repeat it"
        ) from None


def last_row(path: Path) -> dict[str, str]:
    """The last row of a table that another process writes; empty where there is none."""
    try:
        return next(reversed(whole_rows(path)), {}) if path.exists() else {}
    except DamagedTable:
        return {}


def text(value: Any) -> str:
    """A cell: empty for None, shortest exact form for floats."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)

"""Tidy CSV tables that grow by whole epochs and survive a crash."""

import csv
import io
from pathlib import Path
from typing import Any

from helper.distributed import by_first, once
from helper.utils import write_atomic


class Table:
    """Rows of a CSV file; every `write` replaces the file atomically. Rows read back keep their text to the letter."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.rows: list[dict[str, str]] = once(read, path, columns)

    def keep_until(self, epoch: int) -> None:
        """Forget the rows of later epochs: an interrupted run writes them again."""
        self.rows = [row for row in self.rows if int(row["epoch"]) <= epoch]

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append({column: text(row.get(column)) for column in self.columns})

    @by_first
    def write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, buffer.getvalue())


def read(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The given columns of a CSV file; no rows where there is none."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{column: row.get(column) or "" for column in columns} for row in csv.DictReader(file)]


def last_row(path: Path) -> dict[str, str]:
    """The last row of a table that another process writes; empty where there is none."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return next(reversed(list(csv.DictReader(file))), {})


def text(value: Any) -> str:
    """A cell: empty for None, shortest exact form for floats."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)

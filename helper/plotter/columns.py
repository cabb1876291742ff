"""Tables of a run folder as columns of numbers. Without pandas, which takes longer to import than a table to draw."""

from pathlib import Path

import numpy

from helper.tables import TEXTS, DamagedTable, cells_of

Columns = dict[str, numpy.ndarray]  # of a table, (rows,) each


def read_columns(path: Path) -> Columns:
    """A table of a run folder, numbers as floats with nan for an empty cell; nothing where there are no rows.

    Without pandas, which takes longer to import than a table to draw.

    Raises:
        RuntimeError: damaged.
    """
    if not path.is_file():
        return {}
    try:
        heading, rows = cells_of(path)
        cells = dict(zip(heading, zip(*rows, strict=True), strict=True)) if rows else {}
        return {name: numpy.array(column if name in TEXTS else list(map(number, column))) for name, column in cells.items()}
    except (ValueError, DamagedTable) as error:
        raise RuntimeError(f"{path} is damaged ({error})") from None


def number(cell: str) -> float:
    return float(cell) if cell else numpy.nan


def chosen(table: Columns, rows: numpy.ndarray) -> Columns:
    """The rows of a table with given positions, or where a mask is true."""
    return {name: column[rows] for name, column in table.items()}

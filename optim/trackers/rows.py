"""What the tables of a run folder hold, as numbers that have names and belong to epochs: what every tracker shows."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optim.folder import RunFolder

TABLES = ("history", "snr", "metrics")
SNR_QUANTITIES = ("snr", "weight_norm", "grad_mean_norm", "grad_std_norm")
Scalars = dict[int, dict[str, float]]  # {epoch: {tag: value}}


class NewRows:
    """The numbers of a run's tables, each of them once: `read` gives what has been added since it was called before.

    Of the epochs that history.csv has: what other tables hold beyond it is of an epoch that was interrupted and comes again.

    Args:
        sent: rows of each table, by its name, that are not wanted because someone has them.
    """

    def __init__(self, folder: RunFolder, sent: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        self.readers = dict(zip(TABLES, folder.table_readers(), strict=True))
        self.sent = sent or {}

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each table that have been read."""
        return {name: reader.n_rows for name, reader in self.readers.items()}

    def from_the_start(self) -> "NewRows":
        """The same tables, to be read once more without what has been given; also rows that belong to earlier epochs."""
        return NewRows(self.folder, {name: max(n, self.sent.get(name, 0)) for name, n in self.counts.items()})

    def go_on(self) -> bool:
        """Whether the tables hold, in their places, all rows that have been read."""
        return all(reader.goes_on() for reader in self.readers.values())

    def read(self) -> tuple[dict[int, float], Scalars]:
        """({epoch: when it ended, in seconds since 1970}, {epoch: {tag: value}}) in the order of the epochs of history.csv."""
        rows = {name: reader.new_rows() for name, reader in self.readers.items()}
        times = end_times(rows["history"], self.readers["history"].path)
        values: Scalars = {epoch: {} for epoch in times}
        for epoch, cells in tagged_cells(**{name: self.wanted(name, found) for name, found in rows.items()}):
            if epoch in values:
                values[epoch] |= {tag: float(cell) for tag, cell in cells.items() if cell != ""}
        return times, values

    def wanted(self, name: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """Of the rows that were read last, those that have not been sent."""
        before = self.readers[name].n_rows - len(rows)
        return rows[max(0, self.sent.get(name, 0) - before) :]


def tagged_cells(
    history: list[dict[str, str]], snr: list[dict[str, str]], metrics: list[dict[str, str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(epoch, {tag: text}) of every row; the first word of a tag is its group's."""
    for row in history:
        yield int(row["epoch"]), {f"history/{column}": row[column] for column in row if column != "epoch"}
    for row in snr:
        yield int(row["epoch"]), {f"{name}/{row['mode']}/{row['layer']}": row[name] for name in SNR_QUANTITIES}
    for row in metrics:
        yield int(row["epoch"]), {f"{measurement(row)}/{column}": row[column] for column in ("value", "standard_error")}


def measurement(row: dict[str, str]) -> str:
    """Tag of a row of metrics.csv: what was measured on what and how, so that no two measurements of a run share one."""
    options = json.loads(row["settings"])
    how = "-".join(value if isinstance(value, str) else f"{name}{value}" for name, value in options.items())
    where = [row["metric"], "", ""] if row["layer"] == "all" else [f"{row['metric']}_by_layer", row["layer"]]
    return "/".join(filter(None, [where[0], row["split"], row["subset"], row["params"], how, where[1]]))


def final_numbers(folder: RunFolder) -> Scalars:
    """The numbers of a finished run's summary.json and the measured totals with their standard errors."""
    if not folder.finished:
        return {}
    summary = folder.read_summary()
    numbers: dict[str, Any] = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
    for name, estimate in summary["metrics"].items():
        numbers |= {name: estimate["value"], f"{name}_standard_error": estimate["standard_error"]}
    return {summary["epoch_selected"]: {f"final/{name}": float(number) for name, number in numbers.items()}}


def end_times(history: list[dict[str, str]], path: Path) -> dict[int, float]:
    """{epoch: when it ended} of the last rows of a table: counted back from the file's time stamp, without interruptions."""
    ends = list(itertools.accumulate(float(row["seconds"] or 0) for row in history))
    began = path.stat().st_mtime - (ends[-1] if ends else 0)
    return {int(row["epoch"]): began + end for row, end in zip(history, ends, strict=True)}

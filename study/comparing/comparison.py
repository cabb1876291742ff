"""What every comparison of runs does, whatever it compares: open them, keep its results in a folder, say what they are."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
from matplotlib.figure import Figure

from helper.drawing import save_figure
from helper.own.references import label_of
from helper.schema.config import Config, digest, flag, flatten
from helper.system.files import write_atomic
from helper.untrusted.arrays import write_arrays
from helper.untrusted.texts import csv_text, shown
from optim.consent import trust_flag
from study.bias import CHOSEN, bias_noted
from study.runs import COMPARISONS, RESULT, LoadedRun, StoredRun, open_run

# data flags that do not say which data they are
WHERE_DATA_ARE = ("root", "filename", "verify_data", "download", "image_cache", "loader_args")


@dataclass(frozen=True)
class PredictionConfig(Config):
    """How the networks of a comparison of predictions are run."""

    batch_size: int = flag(500, "examples at once", low=1)
    device: str = flag("cpu", "where to compute", choices=("cpu", "cuda"))
    root: str | None = flag(None, "folder of the data files now; default: where they were when the runs were trained")
    trust_code: bool = trust_flag()


@dataclass(frozen=True)
class Drawn:
    """A figure with the words that stand beside it on a page; `stem` is the name of its files, without their suffix."""

    stem: str
    id: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, or many, and the folder that takes what comes of it.

    Attributes:
        kind: what is compared; the folder's name begins with it.
        settings: what the numbers depend on, such as options and the hashes of weights.
        tables: names of the files that `write_tables` leaves, without which a comparison is not finished.
    """

    kind: str
    runs: Sequence[StoredRun]
    settings: dict[str, Any]
    tables: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """`<results_root>/comparisons/<kind>_<hash8>_<hash8>` of the first run's results root; of many one hash of all."""
        hashes = [run.hash8 for run in self.runs]
        hashes = hashes if len(hashes) == 2 else [digest({"runs": sorted(hashes)})]
        return self.runs[0].results_root / COMPARISONS / "_".join([self.kind, *hashes])

    @property
    def paths(self) -> list[str]:
        """The run folders as seen from the first one's results root."""
        return [os.path.relpath(run.folder.path.resolve(), self.runs[0].results_root) for run in self.runs]

    def stored(self) -> dict[str, Any] | None:
        """What result.json holds; None where it is missing, damaged, of other settings, or tells of a file that is gone."""
        try:
            result = json.loads((self.folder / RESULT).read_text())
            files = [*self.tables, *(figure["file"] for figure in result["figures"])]
            whole = all((self.folder / file).is_file() for file in files)
            readable = all(isinstance(row, dict) for row in result["numbers"])
            return result if whole and readable and result["settings"] == self.settings else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def clear(self) -> None:
        """Remove the result first, so that the folder counts as unfinished, then its figures."""
        (self.folder / RESULT).unlink(missing_ok=True)
        for file in self.folder.glob("figures/*"):
            file.unlink()

    def write_tables(self, tables: Mapping[str, pandas.DataFrame | dict[str, numpy.ndarray]]) -> None:
        """Write each table as CSV, and arrays by name as .npz."""
        for name, table in tables.items():
            if isinstance(table, pandas.DataFrame):
                write_atomic(self.folder / name, csv_text(table))
            else:
                write_arrays(self.folder / name, table)

    def finish(self, title: str, drawn: Iterable[Drawn], numbers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """Save the figures as they are drawn, and last result.json; what that holds.

        Args:
            seconds: that the numbers took.
        """
        figures = []
        for one in drawn:
            save_figure(one.figure, self.folder / "figures" / one.stem)
            caption = bias_noted(one.caption, self.runs)
            figures.append({"id": one.id, "file": f"figures/{one.stem}.png", "title": one.title, "caption": caption})
        result = {
            "kind": self.kind,
            "title": title,
            "runs": self.paths,
            "figures": figures,
            "numbers": numbers,
            "settings": self.settings,
            "seconds": round(seconds, 2),
        }
        write_atomic(self.folder / RESULT, json.dumps(result, indent=2) + "\n")
        return result

    def show(self, result: dict[str, Any]) -> None:
        """Print the numbers of a result, the note on runs that are biased, and last the folder."""
        lines = pandas.DataFrame(result["numbers"]).to_string(index=False, float_format="{:.4g}".format).split("\n")
        note = bias_noted("", self.runs)
        print(*map(shown, [*lines, *([note] if note else []), self.folder]), sep="\n")


def open_pair(
    a: Path | str, b: Path | str, device: str, root: str | None, *, trust_code: bool = False
) -> tuple[LoadedRun, LoadedRun]:
    """Two finished runs, see `open_run`.

    Args:
        root: folder of the data files now; None: where they were when the runs were trained.
    """
    data = None if root is None else {"root": root, "download": False}
    return open_run(a, device, data, trust_code=trust_code), open_run(b, device, data, trust_code=trust_code)


def check_comparable(runs: Sequence[LoadedRun], parts: Sequence[str]) -> None:
    """Raise RuntimeError, naming the flag, where runs differ in a part of the configuration that has to be the same.

    Args:
        parts: of RunConfig, such as "network" and "data".
    """
    first, *others = runs
    for other in others:
        for part in parts:
            mine, theirs = (flatten(getattr(run.config, part)) for run in (first, other))
            for name in mine:
                if label_of(mine[name]) != label_of(theirs[name]) and name not in WHERE_DATA_ARE:
                    raise RuntimeError(
                        f"{first.folder.path} has --{name} {mine[name]} and {other.folder.path} --{name} {theirs[name]}: "
                        f"they have no {part} in common"
                    )


def chosen_by_test(solutions: Mapping[str, LoadedRun]) -> dict[str, list[str]]:
    """What the settings of a comparison say of those of its solutions that are biased; nothing where none is."""
    chosen = [name for name, run in solutions.items() if run.biased]
    return {CHOSEN: chosen} if chosen else {}

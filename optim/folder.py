"""The run folder: the contract between training, measuring and drawing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.schema.config import digest
from helper.spectrum_file import spectrum_key
from helper.system.files import file_hash, hash_of_file, write_atomic
from helper.tables import Table, TableReader
from helper.untrusted.reasons import Unfit, reason_of
from optim.checkpoint import previous
from optim.columns import HISTORY, LATER, METRICS_COLUMNS, NOISY_HISTORY, SNR

FIXED = ("config.yaml", "history.csv", "labels.npz", "scores.npz", "forgetting.npz")  # written while training and never again


class AlteredFile(RuntimeError):
    """A file of a finished run that is not as the run left it."""


def inside(name: str) -> property:
    """The path of a file or folder in a run folder."""
    return property(lambda folder: folder.path / name)


def hash_in_name(path: Path) -> str:
    """The hash at the end of the name of a run's folder."""
    return path.name.rpartition("-")[2]


@dataclass(frozen=True)
class RunFolder:
    """Paths and tables of one run."""

    path: Path

    config = inside("config.yaml")
    log = inside("training.log")
    summary = inside("summary.json")
    model = inside("model.pt")
    checkpoint = inside("checkpoint.pt")
    labels = inside("labels.npz")
    scores = inside("scores.npz")
    forgetting = inside("forgetting.npz")
    figures = inside("figures")
    states = inside("state_dicts")

    def spectrum(self, epoch: int | None = None) -> Path:
        """Of the selected weights, or of the state after an epoch."""
        return self.path / ("spectrum.npz" if epoch is None else f"spectra/epoch_{epoch}.npz")

    def epoch_state(self, epoch: int) -> Path:
        return self.states / f"epoch_{epoch}.pt"

    def history(self, *, noisy: bool = False) -> Table:
        return Table(self.path / "history.csv", NOISY_HISTORY if noisy else HISTORY, self.replace)

    def snr(self) -> Table:
        return Table(self.path / "snr.csv", SNR, self.replace)

    def metrics(self) -> Table:
        return Table(self.path / "metrics.csv", METRICS_COLUMNS, self.replace)

    @property
    def finished(self) -> bool:
        """The summary is written last."""
        return self.summary.exists() and self.model.exists()

    def check_there(self) -> None:
        """Raise RuntimeError when someone has removed the folder: what is written from now on would be half a run."""
        if not self.config.exists():
            raise RuntimeError(
                f"{self.path} has gone while the run was under way; the same command runs it again once it can be made"
            )

    def remove_checkpoints(self) -> None:
        for path in (self.checkpoint, previous(self.checkpoint)):
            path.unlink(missing_ok=True)

    def kept_epochs(self) -> list[int]:
        """Epochs whose states are in state_dicts/."""
        numbers = (path.stem.removeprefix("epoch_") for path in self.states.glob("epoch_*.pt"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def measured(self) -> str:
        """A hash that differs once a measurement has been added."""
        spectra = {path.name: spectrum_key(path) for path in (self.spectrum(), *self.path.glob("spectra/*.npz"))}
        return digest({"snr": len(self.snr().rows), "metrics": len(self.metrics().rows), "spectra": spectra})

    def written(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint remembers of the tables up to an epoch: a hash of the history, the others' numbers of rows."""
        rows = {name: [r for r in table.rows if int(r["epoch"]) <= epoch] for name, table in self.tables().items()}
        history = [{name: cell for name, cell in row.items() if cell or name not in LATER} for row in rows["history"]]
        return {"history": digest({"rows": history}), **{name: len(rows[name]) for name in ("snr", "metrics")}}

    def tables(self) -> dict[str, Table]:
        return {"history": self.history(noisy=True), "snr": self.snr(), "metrics": self.metrics()}

    def table_readers(self) -> list[TableReader]:
        """Of history, SNR and metrics, for those who follow a run."""
        columns = {"history.csv": NOISY_HISTORY, "snr.csv": SNR, "metrics.csv": METRICS_COLUMNS}
        return [TableReader(self.path / name, names) for name, names in columns.items()]

    # ------------------------------------------------------------------------- what the files of a finished run hold

    def name_of(self, path: Path) -> str:
        """Of a file in the folder, as the summary knows it."""
        return path.relative_to(self.path).as_posix()

    def measurements(self) -> list[Path]:
        """The files that measurements are added to, as far as they are there."""
        names = ("snr.csv", "metrics.csv", "spectrum.npz")
        return [path for path in (*(self.path / name for name in names), *self.path.glob("spectra/*.npz")) if path.exists()]

    def file_hashes(self) -> dict[str, str]:
        """{name: `file_hash`} of what a run leaves beside its weights."""
        fixed = [self.path / name for name in FIXED if (self.path / name).exists()]
        return {self.name_of(path): hash_of_file(path) for path in (*fixed, *self.measurements())}

    def check_file(self, path: Path, found: str, summary: dict[str, Any] | None = None) -> None:
        """Raise AlteredFile unless a file holds what the finished run has left in it; of an unfinished one nothing is known.

        Args:
            found: the `file_hash` of what it holds.
            summary: that of the run, if it has been read already.
        """
        if summary is None and not self.summary.exists():
            return
        summary, name = summary or self.read_summary(), self.name_of(path)
        if found not in (summary["files"].get(name), summary["files_pending"].get(name)):
            cure = "repeat the run with --overwrite 1"
            if path == self.model or path in self.measurements():
                cure = "remove it, and the run's command makes it again"
            raise AlteredFile(f"{path} is not what its run has left there: put a copy of that back, or {cure}")

    def check_files(self) -> None:
        """`check_file` of all files of a finished run but the kept states, which are checked when they are read.

        The selected weights and measurements may be gone: without them there is less to see, and nothing wrong.

        Raises:
            AlteredFile: naming the file. RuntimeError: the summary is damaged.
        """
        while True:
            summary = self.read_summary()
            try:
                return self.check_files_against(summary)
            except AlteredFile:
                if self.read_summary() == summary:
                    raise  # otherwise another process has added a measurement meanwhile

    def check_files_against(self, summary: dict[str, Any]) -> None:
        """`check_files` by a summary that has been read."""
        fixed = [self.path / name for name in FIXED]
        for path in (*fixed, self.model, *self.measurements()):
            if path.is_file():
                self.check_file(path, hash_of_file(path), summary)
            elif path in fixed and self.name_of(path) in summary["files"]:
                raise AlteredFile(f"{path} is gone: put a copy of it back, or repeat the run with --overwrite 1")

    def replace(self, path: Path, content: bytes) -> None:
        """Give a file of measurements a new content.

        The summary of a finished run knows it before the file has it, so that a kill at any moment leaves a known file.

        Raises:
            AlteredFile: what was there is not what the run had left there.
        """
        if self.summary.exists():
            summary, name = self.read_summary(), self.name_of(path)
            if path.exists():
                before = path.read_bytes()
                self.check_file(path, file_hash(before), summary)
                summary["files"][name] = file_hash(before)
            summary["files_pending"][name] = file_hash(content)
            self.write_summary(summary)
        write_atomic(path, content)

    @property
    def summarised(self) -> bool:
        """Whether the summary is of what the tables hold; not so where it is damaged."""
        try:
            summary = self.read_summary()
        except RuntimeError:
            return False
        recorded = {name for name in summary["files"] if name not in FIXED and not name.endswith(".pt")}
        return not summary["files_pending"] and recorded == {self.name_of(path) for path in self.measurements()}

    def read_summary(self) -> dict[str, Any]:
        """Raises RuntimeError when the file is no summary, or another than was written."""
        try:
            summary = json.loads(self.summary.read_text())
            parts = [summary[name] for name in ("identity", "metrics", "files", "files_pending")]
            if not (isinstance(summary["epoch_selected"], int) and all(isinstance(part, dict) for part in parts)):
                raise Unfit("it has not the layout of a summary")
            if summary.pop("checksum") != digest(summary):
                raise Unfit("it has been edited")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            cure = "remove it and run the same command again"
            raise RuntimeError(f"{self.summary} is damaged: {reason_of(error)}; {cure}") from None
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomic(self.summary, json.dumps(summary | {"checksum": digest(summary)}, indent=2) + "\n")

"""The run folder: the contract between training, measuring and drawing."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from helper.config import digest
from helper.distributed import by_first
from helper.tables import Table
from helper.untrusted import read_arrays
from helper.utils import write_atomic

SPLIT_COLUMNS = ["loss_clean", "loss_noisy", "acc_clean", "acc_generalized", "acc_memorized"]
HISTORY = [
    "epoch", "lr", "loss_train", "acc_train", "entropy_train", "loss_val", "acc_val", "loss_test", "acc_test",
    "seconds", "images_per_second", "peak_memory_mb",
]  # fmt: skip
NOISY_HISTORY = [*HISTORY[:9], *SPLIT_COLUMNS, *HISTORY[9:]]
TIMING = ("seconds", "images_per_second", "peak_memory_mb")  # columns that differ between equal runs
SNR = ["epoch", "layer", "weight_norm", "grad_mean_norm", "grad_std_norm", "snr", "n_batches", "batch_size", "mode"]
SPECTRUM_KEY = ("checkpoint", "split", "params", "settings")
METRICS = [
    "epoch", "metric", "split", "subset", "layer", "params", "value", "standard_error", "n_samples", "estimator",
    "settings", "checkpoint", "seconds",
]  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Paths and tables of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "training.log"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        return self.path / "model.pt"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def labels(self) -> Path:
        return self.path / "labels.npz"

    def spectrum(self, epoch: int | None = None) -> Path:
        """Of the selected weights, or of the state after an epoch."""
        return self.path / ("spectrum.npz" if epoch is None else f"spectra/epoch_{epoch}.npz")

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def events(self) -> Path:
        return self.path / "tensorboard"

    @property
    def states(self) -> Path:
        return self.path / "state_dicts"

    def epoch_state(self, epoch: int) -> Path:
        return self.states / f"epoch_{epoch}.pt"

    def history(self, *, noisy: bool = False) -> Table:
        return Table(self.path / "history.csv", NOISY_HISTORY if noisy else HISTORY)

    def snr(self) -> Table:
        return Table(self.path / "snr.csv", SNR)

    def metrics(self) -> Table:
        return Table(self.path / "metrics.csv", METRICS)

    @property
    @by_first
    def finished(self) -> bool:
        """The summary is written last."""
        return self.summary.exists() and self.model.exists()

    @by_first
    def check_there(self) -> None:
        """Raise RuntimeError when someone has removed the folder: what is written from now on would be half a run."""
        if not self.config.exists():
            raise RuntimeError(
                f"{self.path} has gone while the run was under way; the same command runs it again once it can be made"
            )

    @property
    def summarised(self) -> bool:
        """Whether summary and figures are of all that has been measured; not so where one is damaged."""
        try:
            return self.read_summary().get("measured") == self.measured()
        except RuntimeError:
            return False

    @by_first
    def kept_epochs(self) -> list[int]:
        """Epochs whose states are in state_dicts/."""
        numbers = (path.stem.removeprefix("epoch_") for path in self.states.glob("epoch_*.pt"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def measured(self) -> str:
        """A hash that differs once a measurement has been added; the summary has that of the tables it was made from."""
        spectra = {path.name: spectrum_key(path) for path in (self.spectrum(), *self.path.glob("spectra/*.npz"))}
        return digest({"snr": len(self.snr().rows), "metrics": len(self.metrics().rows), "spectra": spectra})

    @by_first
    def written(self, epoch: int) -> dict[str, Any]:
        """What a checkpoint remembers of the tables up to an epoch: a hash of the history, the others' numbers of rows."""
        rows = {name: [r for r in table.rows if int(r["epoch"]) <= epoch] for name, table in self.tables().items()}
        return {"history": digest({"rows": rows["history"]}), **{name: len(rows[name]) for name in ("snr", "metrics")}}

    def tables(self) -> dict[str, Table]:
        return {"history": self.history(noisy=True), "snr": self.snr(), "metrics": self.metrics()}

    def read_summary(self) -> dict[str, Any]:
        """Raises RuntimeError when the file is no summary."""
        try:
            summary = json.loads(self.summary.read_text())
            parts = [summary[name] for name in ("identity", "metrics")]
            if not (isinstance(summary["epoch_selected"], int) and all(isinstance(part, dict) for part in parts)):
                raise ValueError("it has not the layout of a summary")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__} {error}"
            raise RuntimeError(f"{self.summary} is damaged ({reason}); remove it and run the same command again") from None
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomic(self.summary, json.dumps(summary, indent=2) + "\n")


@by_first
def spectrum_key(path: Path) -> dict[str, str] | None:
    """Which weights a spectrum is of, and how it was measured; None where there is none that can be read."""
    try:
        arrays = read_arrays(path)
        return {name: str(arrays[name]) for name in SPECTRUM_KEY}
    except (FileNotFoundError, KeyError, RuntimeError):
        return None


@by_first
def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz file, replaced atomically."""
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())

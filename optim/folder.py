"""The run folder: the contract between training, measuring and drawing."""

import io
import json
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from helper.config import digest
from helper.tables import Table
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

UNREADABLE = (  # what damaged or made-up bytes make zipfile and numpy.load raise
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, EOFError, OSError,
    SyntaxError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


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
    def finished(self) -> bool:
        """The summary is written last."""
        return self.summary.exists() and self.model.exists()

    def kept_epochs(self) -> list[int]:
        """Epochs whose states are in state_dicts/."""
        numbers = (path.stem.removeprefix("epoch_") for path in self.states.glob("epoch_*.pt"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def measured(self) -> str:
        """A hash that differs once a measurement has been added; the summary has that of the tables it was made from."""
        spectra = {path.name: spectrum_key(path) for path in (self.spectrum(), *self.path.glob("spectra/*.npz"))}
        return digest({"snr": len(self.snr().rows), "metrics": len(self.metrics().rows), "spectra": spectra})

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


def spectrum_key(path: Path) -> dict[str, str] | None:
    """Which weights a spectrum is of, and how it was measured; None where there is none that can be read."""
    try:
        arrays = read_arrays(path)
        return {name: str(arrays[name]) for name in SPECTRUM_KEY}
    except (FileNotFoundError, KeyError, RuntimeError):
        return None


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """An .npz file of `write_arrays`: nothing in it is unpickled, or larger than the file.

    Raises:
        FileNotFoundError: there is none. RuntimeError: it is damaged, compressed, or holds Python objects.
    """
    if path.exists() and not path.is_file():
        raise RuntimeError(f"{path} is no file")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("it is compressed")
        with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except UNREADABLE as error:
        raise RuntimeError(f"{path} is damaged ({type(error).__name__} {error}); remove it to have it made again") from None


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz file, replaced atomically."""
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())

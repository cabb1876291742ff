"""Run folders without training, with numbers that follow a formula: for the report's benchmark and tests."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy

from helper.system.files import write_atomic
from helper.untrusted.yaml_text import write_yaml
from optim.columns import HISTORY, METRICS_COLUMNS, NOISY_HISTORY, SNR
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_folder, run_identity, stored_options

LAYERS = tuple(f"layers.{i}" for i in range(6))
HOW = {
    "split": "train",
    "params": "layers",
    "estimator": "spectral; importance sampling from 500",
    "settings": '{"rtol": 0.05}',
}
LAG = {"dense": 0.0, "sparse-finetune": 0.02, "sparse-scratch": 0.1, "lottery": 0.08}  # accuracy lost at full sparsity


def accuracy(mode: str, sparsity: float, seed: int) -> tuple[float, float]:
    """(training, test) accuracy of a made-up run: falls with the square of the sparsity, with a spread over seeds."""
    spread = 0.002 * math.sin(7.0 * seed)
    lost = LAG[mode] * sparsity**2
    return 1 - lost - abs(spread), 0.7 - 0.5 * lost + spread


def write_run(config: RunConfig, *, every: int = 10) -> RunFolder:
    """The tables, configuration and summary that a finished run would leave, without weights and figures."""
    folder, noisy, last = run_folder(config, None), config.data.train_noisy, config.train.n_epochs
    sparsity = config.prune.prune_ratio if config.mode_spec.has_mask else 0.0
    train, test = accuracy(config.mode, sparsity, config.random_state)
    epochs = numpy.arange(last + 1)
    rise = 1 - numpy.exp(-4 * epochs / last)
    fisher = 50.0 * (1 + 4 * LAG[config.mode] * sparsity) * (1.1 + config.random_state / 50) * numpy.maximum(rise, 0.02)
    measured = [epoch for epoch in epochs if epoch % every == 0 or epoch == last]
    folder.path.mkdir(parents=True, exist_ok=True)
    history = history_of(epochs, rise, train, test, noisy=noisy)
    write_table(folder.path / "history.csv", NOISY_HISTORY if noisy else HISTORY, history, len(epochs))
    rows = measurements_of(fisher, measured, noisy=noisy)
    columns = {column: [row.get(column, "") for row in rows] for column in METRICS_COLUMNS}
    write_table(folder.path / "metrics.csv", METRICS_COLUMNS, columns, len(rows))
    write_table(folder.path / "snr.csv", SNR, snr_of(epochs), len(epochs) * len(LAYERS))
    write_atomic(folder.config, write_yaml(stored_options(config)))
    examples = {"train": 50_000, "test": 10_000} | ({"clean": 35_000, "mislabelled": 15_000} if noisy else {})
    summary = {
        "mode": config.mode, "epoch_selected": last, "examples": examples, "n_classes": 10, "acc_train": train,
        "acc_test": test, "loss_train": float(2 * (1 - train)), "loss_test": 1.5, "sparsity_requested": sparsity,
        "sparsity_achieved": sparsity, "macs_dense": 10**6, "macs_active": round(10**6 * (1 - sparsity)),
        "metrics": {"fisher": {"value": float(fisher[-1]), "standard_error": 0.05 * float(fisher[-1]), **HOW}},
        "identity": run_identity(config, None), "seconds": {"training": 100.0, "measuring": 5.0},
    }  # fmt: skip
    folder.write_summary(summary | {"files": folder.file_hashes(), "files_pending": {}})
    return folder


def history_of(epochs: numpy.ndarray, rise: numpy.ndarray, train: float, test: float, *, noisy: bool) -> dict:
    """Columns of history.csv; `rise` is the share of the way to the last epoch's accuracies."""
    history = {
        "epoch": epochs, "lr": 0.1, "loss_train": 2 * (1 - rise * train), "acc_train": rise * train, "entropy_train": 1 - rise,
        "loss_test": 2.5 - rise, "acc_test": rise * test, "seconds": 1.0, "images_per_second": 500.0, "peak_memory_mb": 300.0,
    }  # fmt: skip
    if noisy:
        history |= {"loss_clean": 1 - rise / 2, "loss_noisy": 2 - rise, "acc_clean": rise}
        history |= {"acc_generalized": 0.5 * rise, "acc_memorized": 0.4 * rise}
    return history


def measurements_of(fisher: numpy.ndarray, epochs: Sequence[int], *, noisy: bool) -> list[dict]:
    """Rows of metrics.csv: Tr F at some epochs, of the total and of each layer, and under label noise of both subsets."""
    subsets = {"all": 1.0, "clean": 0.7, "mislabelled": 1.8} if noisy else {"all": 1.0}
    return [
        {
            "epoch": epoch, "metric": "fisher", "subset": subset, "layer": layer, "value": fisher[epoch] * share * factor,
            "standard_error": 0.05 * fisher[epoch] * share, "n_samples": 200, "checkpoint": f"{epoch:08x}", "seconds": 1.5,
            **HOW,
        }
        for epoch in epochs
        for subset, factor in subsets.items()
        for layer, share in [("all", 1.0), *((layer, 1 / len(LAYERS)) for layer in LAYERS)]
    ]  # fmt: skip


def snr_of(epochs: numpy.ndarray) -> dict:
    """Columns of snr.csv."""
    grid = [(epoch, layer, index) for epoch in epochs for index, layer in enumerate(LAYERS)]
    return {
        "epoch": [e for e, _, _ in grid], "layer": [layer for _, layer, _ in grid],
        "weight_norm": [2.0 + i for _, _, i in grid], "grad_mean_norm": [1 / (1 + e + i) for e, _, i in grid],
        "grad_std_norm": [2 / (1 + e) for e, _, _ in grid], "snr": 0.5, "n_batches": 20, "batch_size": 128, "mode": "fixed",
    }  # fmt: skip


def write_table(path: Path, columns: Sequence[str], values: dict, n: int) -> None:
    full = [values.get(c, "") for c in columns]
    full = [[v] * n if isinstance(v, (str, float, int)) else list(v) for v in full]
    cells = [",".join(quoted(column[i]) for column in full) for i in range(n)]
    write_atomic(path, "\n".join([",".join(columns), *cells]) + "\n")


def quoted(value: object) -> str:
    return '"' + value.replace('"', '""') + '"' if isinstance(value, str) and set(value) & {",", '"'} else str(value)

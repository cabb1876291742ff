"""Run folders without training, with numbers that follow a formula: for the report's benchmark and tests."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from helper.mask import Mask
from helper.masks.choosing import keep
from helper.system.files import write_atomic
from helper.system.seeds import stream
from helper.untrusted.yaml_text import write_yaml
from optim.checkpoint import save_state
from optim.columns import HISTORY, METRICS_COLUMNS, NOISY_HISTORY, SNR
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_folder, run_identity, stored_options
from optim.rounds import ratios
from study.reporting.families import family_of

LAYERS = tuple(f"layers.{i}" for i in range(6))
HOW = {
    "split": "train",
    "params": "layers",
    "estimator": "spectral; importance sampling from 500",
    "settings": '{"rtol": 0.05}',
}
LAG = {  # accuracy lost at full sparsity
    "dense": 0.0, "sparse-finetune": 0.02, "sparse-scratch": 0.1, "lottery": 0.08, "GMP": 0.03, "RigL": 0.04, "SET": 0.05,
    "IMP": 0.01, "AC/DC": 0.03, "GraNet": 0.02, "SynFlow": 0.08, "SNIP": 0.09, "GraSP": 0.1, "random-ERK": 0.12, "random": 0.16,
}  # fmt: skip
OTHER_LAG = 0.11
SIZE = 40  # made-up weights are matrices of so many rows and columns
MACS = 10**6  # of a forward pass of the dense network


def accuracy(family: str, sparsity: float, seed: int) -> tuple[float, float]:
    """(training, test) accuracy of a made-up run: falls with the square of the sparsity, with a spread over seeds."""
    spread = 0.002 * math.sin(7.0 * seed)
    lost = LAG.get(family, OTHER_LAG) * sparsity**2
    return 1 - lost - abs(spread), 0.7 - 0.5 * lost + spread


def write_run(config: RunConfig, *, every: int = 10, weights: bool = False) -> RunFolder:
    """The tables, configuration and summary that a finished run would leave, without figures.

    Args:
        every: epochs from one measurement to the next.
        weights: whether there are weights and masks as well, and kept states where the mask changes.
    """
    folder, noisy, last = run_folder(config, None), config.data.train_noisy, config.train.n_epochs
    sparsity = config.prune.prune_ratio if config.mode_spec.has_mask else 0.0
    family = family_of(run_identity(config, None)).label
    lag = LAG.get(family, OTHER_LAG)
    train, test = accuracy(family, sparsity, config.random_state)
    epochs = numpy.arange(last + 1)
    rise = 1 - numpy.exp(-4 * epochs / last)
    fisher = 50.0 * (1 + 4 * lag * sparsity) * (1.1 + config.random_state / 50) * numpy.maximum(rise, 0.02)
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
    masks = masks_of(config, sparsity) if weights else {}
    states = write_states(folder, masks)
    summary = {
        "mode": config.mode, "epoch_selected": last, "examples": examples, "n_classes": 10, "acc_train": train,
        "acc_test": test, "loss_train": float(2 * (1 - train)), "loss_test": 1.5, "sparsity_requested": sparsity,
        "sparsity_achieved": sparsity, "macs_dense": MACS, "macs_active": round(MACS * (1 - sparsity)),
        "training_macs": round(last * examples["train"] * 3 * MACS * mean_density(config, sparsity)),
        "training_macs_dense": last * examples["train"] * 3 * MACS,
        "metrics": {"fisher": {"value": float(fisher[-1]), "standard_error": 0.05 * float(fisher[-1]), **HOW}},
        "identity": run_identity(config, None), "seconds": {"training": 100.0, "measuring": 5.0},
    }  # fmt: skip
    if noisy:
        summary |= {"acc_clean": train, "acc_generalized": 0.5 * test, "acc_memorized": 0.4 - 0.3 * lag * sparsity}
    if config.mode_spec.in_rounds:
        shares = [0.0, *ratios(sparsity, config.prune.prune_step)]
        summary["training_macs_with_parents"] = round(sum(1 - share for share in shares) * summary["training_macs_dense"])
    if weights:
        summary["sparsity_by_layer"] = masks[last].sparsity_by_layer()
        summary["metrics"]["hessian"] = {"value": 3 * float(fisher[-1]), "standard_error": 0.1 * float(fisher[-1]), **HOW}
    folder.write_summary(summary | {"files": folder.file_hashes() | states, "files_pending": {}})
    return folder


def mean_density(config: RunConfig, sparsity: float) -> float:
    """Over training, as a share of the dense network; where it falls while training, half of it is dense."""
    gradual = config.mode_spec.updater is not None and config.mode_spec.updater.begins
    return 1 - sparsity * (0.5 if gradual else 1)


def masks_of(config: RunConfig, sparsity: float) -> dict[int, Mask]:
    """{epoch: mask}: of the last one, and of ten kept states where the mask changes; the same for masks of a dense parent.

    A score has a part that all families of a seed share, and one of its own; while training it moves from the start's.
    """
    if not config.mode_spec.has_mask:
        return {config.train.n_epochs: Mask()}
    family = family_of(run_identity(config, None)).label
    own = "dense parent" if config.mode_spec.mask_from.of_parent and not config.mode_spec.in_rounds else family
    epochs = sorted(config.train.saved_epochs()) if config.mode_spec.updater else [config.train.n_epochs]
    found = {}
    for epoch in epochs:
        share = epoch / config.train.n_epochs
        scores = {}
        for index, layer in enumerate(LAYERS):
            parts = [scored(config.random_state, layer, word) for word in ("all", own, f"{own}, start")]
            scores[f"{layer}.weight"] = 0.5 * parts[0] + share * parts[1] + (1 - share) * parts[2] + 0.03 * index
        removed = sparsity * (share if config.mode_spec.updater.begins else 1) if config.mode_spec.updater else sparsity
        n = SIZE**2 * len(LAYERS)
        found[epoch] = keep(scores, n - round(removed * n))
    return found


def scored(seed: int, layer: str, word: str) -> Tensor:
    return torch.rand(SIZE, SIZE, generator=stream(seed, layer, word))


def write_states(folder: RunFolder, masks: dict[int, Mask]) -> dict[str, str]:
    """Write the selected weights, and with several masks every kept state; {name: hash} of the files."""
    hashes = {}
    for epoch, mask in masks.items():
        state = {"network": {name: active.float() for name, active in mask.items()}, "mask": dict(mask), "epoch": epoch}
        for path in [folder.model] * (epoch == max(masks)) + [folder.epoch_state(epoch)] * (len(masks) > 1):
            hashes[folder.name_of(path)] = save_state(path, state)
    return hashes


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

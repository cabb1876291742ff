"""summary.json: what a finished run comes to."""

from typing import Any

from torch import nn

from helper.metrics.macs import count_macs
from helper.spectrum_file import read_spectrum, spectrum_key
from helper.system.memory import peak_memory_mb
from helper.system.versions import git_state, versions
from helper.system.xla import graph_counts
from helper.tables import number
from loader.dataset import Dataset
from optim.chain import runs_needed
from optim.columns import SHAPE, SPLIT_COLUMNS
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_folder, run_identity
from optim.model import Stored
from optim.trained import Trained


def summarise(
    folder: RunFolder,
    config: RunConfig,
    network: nn.Module,
    dataset: Dataset,
    trained: Trained,
    stored: Stored,
    measuring: float,
) -> dict[str, Any]:
    """The content of summary.json; `network` has the selected weights, and what is said of the mask is said of theirs."""
    selected, mask = stored.epoch, stored.mask
    history = folder.history(noisy=dataset.noisy).rows
    row = next(row for row in history if row["epoch"] == str(selected))
    names = ["acc_train", "acc_val", "acc_test", "loss_train", "loss_val", "loss_test", *SPLIT_COLUMNS]
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    dense, active = count_macs(network, dataset.input_shape, mask)
    return {
        "mode": config.mode,
        "epochs": trained.epochs,
        "epoch_selected": selected,
        **{name: number(folder.history().path, row, name) for name in names if row.get(name)},
        "examples": examples_of(dataset),
        "n_classes": dataset.n_classes,
        "sparsity_requested": config.prune.prune_ratio if config.mode_spec.has_mask else 0.0,
        "sparsity_achieved": mask.sparsity,
        "sparsity_by_layer": mask.sparsity_by_layer(),
        "parameters_dense": n_parameters,
        "parameters_active": n_parameters - mask.n_weights + mask.n_active,
        "macs_dense": dense,
        "macs_active": active,
        "training_macs": trained.meter.macs,
        "training_macs_dense": trained.meter.macs_dense,
        "training_macs_with_parents": macs_with_parents(config, dataset, trained.meter.macs),
        "metrics": metric_totals(folder, selected),
        "identity": run_identity(config, dataset.fingerprint),
        "seconds": {"training": round(sum(float(r["seconds"]) for r in history), 1), "measuring": round(measuring, 1)},
        "peak_memory_mb": round(peak_memory_mb(dataset.train.inputs.device), 1),
        "versions": versions(),
        "device": config.device,
        "processes": trained.processes,
        **({"sparse_step": trained.sparse_step} if trained.sparse_step else {}),
        **({"xla": graph_counts()} if config.device == "tpu" else {}),
        "git": git_state(),
    }


def macs_with_parents(config: RunConfig, dataset: Dataset, own: int) -> int | None:
    """What training a run and all the runs that it needs has cost; None where one of these is a file, or is not there."""
    if config.mode_spec.needs_parent and config.pretrain_model_path:
        return None
    folders = [run_folder(run, dataset.fingerprint) for run in runs_needed(config)]
    if not all(folder.finished for folder in folders):
        return None
    costs = [folder.read_summary().get("training_macs") for folder in folders]  # older summaries have none
    return None if None in costs else own + sum(costs)


def examples_of(dataset: Dataset) -> dict[str, int]:
    """How many examples each accuracy is a share of."""
    sizes = {name: len(getattr(dataset, name)) for name in ("train", "val", "test")}
    if dataset.noisy:
        sizes["mislabelled"] = int((dataset.train.labels != dataset.train.true_labels).sum())
        sizes["clean"] = sizes["train"] - sizes["mislabelled"]
    return sizes


def metric_totals(folder: RunFolder, epoch: int) -> dict[str, dict[str, Any]]:
    """{metric: value, error, how it was measured, whether to believe its interval} of one epoch's totals, the newest each."""
    rows = folder.metrics().rows
    totals = [r for r in rows if r["layer"] == "all" and r["subset"] == "all" and r["epoch"] == str(epoch)]
    how = ("split", "params", "estimator", "settings")
    table = folder.metrics().path
    found = {}
    for r in totals:
        known = [key for key in SHAPE if r[key]]  # empty: infinitely many degrees of freedom, or an older table
        numbers = {key: number(table, r, key) for key in ("value", "standard_error", *known)}
        found[r["metric"]] = numbers | {key: r[key] for key in how}
    return found | largest_eigenvalue(folder)


def largest_eigenvalue(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """{"eigenvalue": the largest one by magnitude of the selected weights' spectrum}, if that was measured.

    `value` is that of all examples, or its estimate from a sample, whose own is `of_sample` = value + bias; `residual` is
    Lanczos' and says nothing of other examples.
    """
    key = spectrum_key(folder.spectrum())
    if key is None:
        return {}
    arrays = read_spectrum(folder.spectrum())
    names = {
        "value": "corrected", "standard_error": "standard_errors", "of_sample": "eigenvalues", "bias": "bias",
        "residual": "residuals",
    }  # fmt: skip
    n, population = (int(arrays[name]) for name in ("n_samples", "population"))
    which = "every example" if n == population else f"{n} of {population} examples, less the bias that their halves show"
    estimator = f"Lanczos on {arrays['matrix']}; {which}"
    numbers = {name: float(arrays[stored][0]) for name, stored in names.items()}
    return {"eigenvalue": numbers | {"estimator": estimator} | {name: key[name] for name in ("split", "params", "settings")}}

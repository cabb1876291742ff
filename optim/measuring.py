"""From a network and a data set to rows of metrics.csv and snr.csv."""

import copy
import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.metrics.config import MetricConfig
from helper.metrics.estimate import Estimate, stratified, whole_estimate
from helper.metrics.evaluation import evaluate
from helper.metrics.main import METRICS
from helper.metrics.metric import Metric
from helper.metrics.quantities.snr import snr_epochs
from helper.metrics.quantities.spectrum import arrays_of, words_of
from helper.metrics.snr import GradientMoments
from helper.processes.first import broadcast_from_first
from helper.progress import tracked
from helper.schema.config import FlagError
from helper.spectrum_file import spectrum_key
from helper.system.seeds import stream
from helper.tables import Table
from helper.untrusted.arrays import write_arrays
from loader.dataset import Dataset, Split
from optim.checkpoint import content_hash
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import Stored, let_go, load_stored, take_over

log = logging.getLogger(__name__)
SPECTRUM = METRICS["spectrum"]
LEAST_EXAMPLES = 2  # that have an error
KEY = ("epoch", "metric", "split", "params", "settings", "checkpoint")


def evaluate_training(
    network: nn.Module, mask: Mask, dataset: Dataset, batch_size: int, seed: int, *, snr: bool,
    forward: Callable[[Tensor], Tensor] | None = None, precision: str = "fp32",
) -> tuple[dict[str, float], list[dict]]:  # fmt: skip
    """(means over the training split, SNR rows) from one pass, always over the same random mini-batches.

    Random ones, because a file may be in an order of its own: the toy set counts through its bit patterns.

    Args:
        forward: as `evaluate` takes it; another one than the network computes in float32.
        precision: of the network's own pass; bf16: of the means as well.
    """
    order = torch.randperm(len(dataset.train), generator=stream(seed, "evaluation"))
    moments = GradientMoments(network, mask, with_errors=True) if snr else None
    precision = precision if forward in (None, network) else "fp32"
    if precision == "bf16":
        forward = functools.partial(in_bfloat16, network)
    batches = dataset.batches(dataset.train, batch_size, order, own=True)
    shown = tracked(batches, f"training set{' and SNR' if snr else ''}", "batches")
    means = evaluate(network, shown, forward=forward, moments=moments, batch_size=batch_size, noisy=dataset.noisy)
    how = {"batch_size": batch_size, "mode": "fixed", "precision": precision}
    return means, [row | how for row in moments.table()] if moments else []


def in_bfloat16(network: nn.Module, inputs: Tensor) -> Tensor:
    """Logits as float32 of a network that computes as `--precision bf16` trains it, also inside of `full_precision`."""
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return network(inputs).float()


def measure_into(
    table: Table, network: nn.Module, mask: Mask, dataset: Dataset, config: MetricConfig, *, epoch: int, seed: int,
    former: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Append what is switched on in `config` for one state of a network, a row for the total and one a layer.

    About the examples of --metric_split, without augmentation, always with the same random numbers. Under label noise the
    training examples with true and with wrong labels are measured apart, and the whole set's value is put together from
    the two. What the table already has for this state and these settings is not measured again.

    Args:
        former: {metric and subset: what its last measurement left for this one}, which is brought up to date; None: each
            state is measured by itself.
    """
    checkpoint = broadcast_from_first(content_hash, network.state_dict(), mask)
    for metric in config.tabulated():
        common = {"epoch": str(epoch), "metric": metric.name, **how(metric, config), "checkpoint": checkpoint}
        if any(all(row[key] == common[key] for key in KEY) for row in table.rows):
            continue
        found = measure_subsets(metric, network, mask, dataset, config, seed, former)
        if found["all"].left_out and not any(row["params"] for row in table.rows):
            log.info("--metric_params %s leaves out %s", config.metric_params, ", ".join(found["all"].left_out))
        for subset, estimate in found.items():
            rows = {"all": (estimate.value, estimate.standard_error), **estimate.by_layer}
            made = {"n_samples": estimate.n_samples, "estimator": estimate.estimator, "seconds": estimate.seconds}
            for layer, (value, error) in rows.items():
                cells = {"subset": subset, "layer": layer, "value": value, "standard_error": error}
                table.append(common | made | cells | (shape_of(estimate) if layer == "all" else {}))
        broadcast_from_first(table.write)
        total = found["all"]
        log.info(
            "epoch %s  %s %.5g ± %.2g (95 %% interval; %s; %.1f s)",
            epoch, metric.name, total.value, total.half, total.estimator, total.seconds,
        )  # fmt: skip
        if not all(estimate.reliable for estimate in found.values()):
            log.warning(
                "epoch %s  %s: a few large draws decide on it (skewness %.2g), so that its interval may miss the true value; "
                "it is marked unreliable in metrics.csv. Measure more examples%s",
                epoch, metric.name, max(found.values(), key=lambda estimate: abs(estimate.skewness)).skewness,
                metric.cure(config),
            )  # fmt: skip


def shape_of(estimate: Estimate) -> dict[str, float | int | None]:
    """What tells whether the interval of an estimate can be believed, for metrics.csv."""
    degrees = None if math.isinf(estimate.degrees) else round(estimate.degrees, 2)
    return {"degrees": degrees, "skewness": round(estimate.skewness, 4), "reliable": int(estimate.reliable)}


def how(metric: Metric, config: MetricConfig) -> dict[str, str]:
    """What tells a measurement from others of the same state, for metrics.csv and spectrum.npz."""
    return {"split": config.metric_split, "params": metric.counted(config), "settings": metric.settings(config)}


def check_examples(config: RunConfig, dataset: Dataset) -> None:
    """Raise FlagError where there are too few examples for the measurements that are asked for: an error needs two."""
    metrics = config.metrics
    wanted = metrics.wanted()
    n = len(getattr(dataset, metrics.metric_split))
    if wanted and n < LEAST_EXAMPLES:
        cure = f"raise --limit_{metrics.metric_split}, or give {' '.join(f'--{metric.switch} 0' for metric in wanted)}"
        raise FlagError(f"{n} {metrics.metric_split} example is too few for measurements, which need {LEAST_EXAMPLES}; {cure}")


def missing_metrics(folder: RunFolder, config: MetricConfig) -> list[str]:
    """What is switched on in `config` and a finished run does not have, measured that way, of its selected weights."""
    try:
        epoch = str(folder.read_summary()["epoch_selected"])
        rows = [row for row in folder.metrics().rows if row["epoch"] == epoch and row["layer"] == "all"]
    except RuntimeError:  # damaged: the run itself says so
        return [metric.name for metric in config.tabulated()]
    wanted = {metric.name: how(metric, config) | {"metric": metric.name} for metric in config.tabulated()}
    missing = [name for name, cells in wanted.items() if not any(cells.items() <= row.items() for row in rows)]
    if config.save_spectrum:
        key = spectrum_key(folder.spectrum()) or {}
        missing += [] if how(SPECTRUM, config).items() <= key.items() else [SPECTRUM.name]
    return missing


def measure_subsets(
    metric: Metric, network: nn.Module, mask: Mask, dataset: Dataset, config: MetricConfig, seed: int,
    former: dict[str, Any] | None = None,
) -> dict[str, Estimate]:  # fmt: skip
    """{subset: estimate} of one metric: all examples of the split, and under label noise the clean and mislabelled ones.

    Args:
        former: as `measure_into` has it.
    """
    network, dataset = where_measured(network, dataset)
    split: Split = getattr(dataset, config.metric_split)
    parts = {"clean": (~split.noisy).nonzero().flatten(), "mislabelled": split.noisy.nonzero().flatten()}
    if not metric.by_subset or min(len(rows) for rows in parts.values()) < 2:
        parts = {"all": torch.arange(len(split), device=split.labels.device)}
    found, sizes = {}, []
    for subset, rows in parts.items():
        part = split[rows]
        sizes.append(len(part))
        generator = stream(seed, "metric", metric.name, subset)
        of_part, key = (network, dataset.examples(part), part.labels, mask, config), f"{metric.name} {subset}"
        measured, left = metric.measure_next((former or {}).get(key), *of_part, generator=generator)
        if former is not None and left is not None:
            former[key] = left
        found[subset] = whole_estimate(measured, metric.name)
    return found if "all" in found else {"all": stratified(list(found.values()), sizes), **found}


def where_measured(network: nn.Module, dataset: Dataset) -> tuple[nn.Module, Dataset]:
    """Both as they are, or copies on the host where they are on an XLA device.

    An estimator takes as many examples as its error needs: every chunk would be another shape, and a graph to compile.
    """
    if dataset.train.inputs.device.type != "xla":
        return network, dataset
    return copy.deepcopy(network).cpu(), dataset.to(torch.device("cpu"))


def measure_spectrum_into(
    folder: RunFolder, network: nn.Module, mask: Mask, dataset: Dataset, config: MetricConfig, *, epoch: int | None, seed: int
) -> None:
    """Write the spectrum of one state of a network, of an epoch or the selected one, if it is asked for and not there."""
    if not config.save_spectrum:
        return
    path = folder.spectrum(epoch)
    key = {"checkpoint": broadcast_from_first(content_hash, network.state_dict(), mask), **how(SPECTRUM, config)}
    if broadcast_from_first(spectrum_key, path) == key:
        return
    if broadcast_from_first(copy_measured, folder, path, key):
        return
    network, dataset = where_measured(network, dataset)
    split = getattr(dataset, config.metric_split)
    generator = stream(seed, "metric", SPECTRUM.name)
    found = SPECTRUM.measure(network, dataset.examples(split), split.labels, mask, config, generator=generator)
    broadcast_from_first(write_arrays, path, arrays_of(found) | key, folder.replace)
    log.info("%s: %s (%.1f s)", path.stem, words_of(found), found.seconds)


def copy_measured(folder: RunFolder, path: Path, key: dict[str, str]) -> bool:
    """Take a spectrum from the epochs' where the selected weights are those of a measured one; whether there was any."""
    for other in folder.path.glob("spectra/*.npz"):
        if spectrum_key(other) == key:
            folder.replace(path, other.read_bytes())
            return True
    return False


def measure_state(
    folder: RunFolder, config: RunConfig, network: nn.Module, dataset: Dataset, epoch: int, *, snr: bool = True,
    curvature: bool = True,
) -> None:  # fmt: skip
    """Measure a kept state, where the tables do not have it yet; `network` is left with its weights.

    Args:
        snr, curvature: whether that is measured, as far as it is asked for.
    """
    device = dataset.train.inputs.device
    mask = restore_in_all(network, folder.epoch_state(epoch)).mask.to(device)
    if snr:
        add_snr(folder, config, network, mask, dataset, epoch)
    if curvature:
        table = broadcast_from_first(folder.metrics)
        measure_into(table, network, mask, dataset, config.metrics, epoch=epoch, seed=config.random_state)
        measure_spectrum_into(folder, network, mask, dataset, config.metrics, epoch=epoch, seed=config.random_state)


def restore_in_all(network: nn.Module, path: Path) -> Stored:
    """Put the weights of a run's file into the network of every process; what the file holds. All processes call this.

    The network's own values are gone before the file is read, and lost where that fails.
    """
    let_go(network)
    stored = broadcast_from_first(load_stored, path)
    take_over(network, stored, path)
    return stored


def lacks_snr(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a finished run has not the SNR of every epoch after which a pass was to measure it."""
    epochs = folder.read_summary().get("epochs", config.train.n_epochs)  # which a budget may have said
    there = {int(row["epoch"]) for row in folder.snr().rows if row["mode"] == "fixed"}
    return not snr_epochs(config.metrics.snr_every, epochs, config.first_epoch) <= there


def measure_selected(folder: RunFolder, config: RunConfig, network: nn.Module, dataset: Dataset) -> Stored:
    """Measure the selected weights, where metrics.csv does not have it yet; `network` is left with them, which are returned."""
    stored = restore_in_all(network, folder.model)
    network.to(dataset.train.inputs.device)
    table = broadcast_from_first(folder.metrics)
    measure_into(table, network, stored.mask, dataset, config.metrics, epoch=stored.epoch, seed=config.random_state)
    measure_spectrum_into(folder, network, stored.mask, dataset, config.metrics, epoch=None, seed=config.random_state)
    return stored


def add_snr(folder: RunFolder, config: RunConfig, network: nn.Module, mask: Mask, dataset: Dataset, epoch: int) -> None:
    """Append one state's gradient SNR to snr.csv, if it is asked for and not there."""
    table = broadcast_from_first(folder.snr)
    metrics = config.metrics
    there = any(row["epoch"] == str(epoch) and row["mode"] == "fixed" for row in table.rows)
    if metrics.save_snr and metrics.snr_mode == "fixed" and not there:
        _, rows = evaluate_training(
            network, mask, dataset, config.train.batch_size, config.random_state, snr=True, precision=metrics.snr_precision
        )
        for row in rows:
            table.append({"epoch": epoch, **row})
        table.rows.sort(key=lambda row: int(row["epoch"]))
        broadcast_from_first(table.write)

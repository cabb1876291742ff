"""From a network and a data set to rows of metrics.csv and snr.csv."""

import logging
import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from helper.mask import Mask
from helper.metrics.evaluation import evaluate
from helper.metrics.main import METRICS, MetricConfig, settings
from helper.metrics.snr import GradientMoments
from helper.tables import Table
from helper.utils import stream
from loader.dataset import Dataset
from optim.checkpoint import content_hash
from optim.folder import RunFolder
from optim.model import restore

if TYPE_CHECKING:
    from optim.main import RunConfig

log = logging.getLogger(__name__)
KEY = ("metric", "split", "subset", "params", "settings", "checkpoint")


def evaluate_training(
    network: nn.Module, mask: Mask, dataset: Dataset, batch_size: int, seed: int, *, snr: bool
) -> tuple[dict[str, float], list[dict]]:
    """(means over the training split, SNR rows) from one pass, always over the same random mini-batches.

    Random ones, because a file may be in an order of its own: the toy set counts through its bit patterns.
    """
    order = torch.randperm(len(dataset.train), generator=stream(seed, "evaluation")).to(dataset.train.labels.device)
    moments = GradientMoments(network, mask) if snr else None
    batches = dataset.batches(dataset.train, batch_size, order)
    means = evaluate(network, batches, moments=moments, batch_size=batch_size, noisy=dataset.noisy)
    return means, [row | {"batch_size": batch_size} for row in moments.table()] if moments else []


def measure_into(
    table: Table, network: nn.Module, mask: Mask, dataset: Dataset, config: MetricConfig, *, epoch: int, seed: int
) -> None:
    """Append what is switched on in `config` for one state of a network, a row for the total and one a layer.

    Always on the same examples with the same random numbers: a fixed sample of --metric_split without augmentation. What
    the table already has for this state and these settings is not measured again.
    """
    checkpoint = content_hash(network.state_dict(), mask)
    for name in config.wanted():
        common = {
            "epoch": epoch, "metric": name, "split": config.metric_split, "subset": "all",
            "params": config.metric_params, "settings": settings(name, config), "checkpoint": checkpoint,
        }  # fmt: skip
        if any(all(row[key] == common[key] for key in KEY) for row in table.rows):
            continue
        started = time.perf_counter()
        split = getattr(dataset, config.metric_split)
        rows = torch.randperm(len(split), generator=stream(seed, "metric", "examples"))[: config.monte_carlo_samples]
        sample = split[rows.to(split.labels.device)]
        estimate = METRICS[name](
            network, dataset.normalise(sample.inputs), sample.labels, mask, config,
            population=len(split), generator=stream(seed, "metric", name),
        )  # fmt: skip
        seconds = round(time.perf_counter() - started, 3)
        common |= {"n_samples": estimate.n_samples, "estimator": estimate.estimator, "seconds": seconds}
        for layer, (value, error) in {"all": (estimate.value, estimate.standard_error), **estimate.by_layer}.items():
            table.append(common | {"layer": layer, "value": value, "standard_error": error})
        table.write()
        log.info("epoch %d  %s %.5g ± %.2g (%.1f s)", epoch, name, estimate.value, estimate.standard_error, seconds)


def measure_selected(folder: RunFolder, config: "RunConfig", network: nn.Module, dataset: Dataset) -> None:
    """Measure the selected weights, where metrics.csv does not have it yet; `network` is left with them."""
    stored = restore(network, folder.model)
    network.to(dataset.train.inputs.device)
    measure_into(folder.metrics(), network, stored.mask, dataset, config.metrics, epoch=stored.epoch, seed=config.random_state)


def add_snr(folder: RunFolder, config: "RunConfig", network: nn.Module, mask: Mask, dataset: Dataset, epoch: int) -> None:
    """Append one state's gradient SNR to snr.csv, if it is asked for and not there."""
    table = folder.snr()
    if config.metrics.save_snr and not any(row["epoch"] == str(epoch) for row in table.rows):
        _, rows = evaluate_training(network, mask, dataset, config.train.batch_size, config.random_state, snr=True)
        for row in rows:
            table.append({"epoch": epoch, **row})
        table.rows.sort(key=lambda row: int(row["epoch"]))
        table.write()

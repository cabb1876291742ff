"""From a network and a data set to rows of metrics.csv."""

import logging
import time

import torch
from torch import nn

from helper.mask import Mask
from helper.metrics.main import METRICS, MetricConfig, settings
from helper.tables import Table
from helper.utils import stream
from loader.dataset import Dataset
from optim.checkpoint import content_hash

log = logging.getLogger(__name__)
KEY = ("metric", "split", "subset", "params", "settings", "checkpoint")


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

"""Scores of all training examples that a run needs before it begins: made by another run's weights, kept in its folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from helper.metrics.evaluation import evaluation_mode
from helper.metrics.example_traces import example_traces
from helper.metrics.macs import count_macs
from helper.metrics.parameters import full_precision
from helper.metrics.softmax import cross_entropies
from helper.processes.first import broadcast_from_first
from helper.processes.sharing import gather_from_processes, own_share
from helper.progress import tracked
from helper.system.seeds import stream
from helper.untrusted.arrays import read_arrays, write_arrays
from loader.dataset import Dataset
from network.main import build_network
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import restore, weights_file

log = logging.getLogger(__name__)
RTOL = 0.1  # of the Fisher trace of an example


@dataclass(frozen=True)
class Scores:
    """Of the training examples, in the order of the training split.

    Attributes:
        values, errors: (N,) float64; standard errors, zero where a score is exact.
        macs: multiply-accumulates that they have taken.
    """

    values: Tensor
    errors: Tensor
    macs: int = 0


def scores_for(folder: RunFolder, config: RunConfig, dataset: Dataset, origin: Path) -> Scores:
    """The stored scores of a run, or new ones, which are then stored. All processes have to call this.

    Args:
        folder: the run's, which this process holds.
        origin: run folder of the scorer, or weights of it.
    Raises:
        RuntimeError: stored scores are damaged or of other examples; the scorer's weights or counts are missing or damaged.
    """
    stored = broadcast_from_first(stored_scores, folder.scores, dataset)
    if stored is not None:
        return stored
    found = made_scores(config, dataset, origin)
    arrays = {"index": dataset.train.indices.cpu(), "score": found.values, "standard_error": found.errors}
    named = {name: tensor.numpy() for name, tensor in arrays.items()} | {"macs": found.macs}
    broadcast_from_first(write_arrays, folder.scores, named)
    return found


def stored_scores(path: Path, dataset: Dataset) -> Scores | None:
    """Raises RuntimeError: they are damaged or of other examples."""
    if not path.exists():
        return None
    arrays = read_arrays(path)
    index = dataset.train.indices.cpu().numpy()
    try:
        values, errors = (torch.from_numpy(arrays[name]).double() for name in ("score", "standard_error"))
        same = arrays["index"].shape == index.shape and (arrays["index"] == index).all() and values.shape == index.shape
        macs = int(arrays["macs"])
    except (LookupError, TypeError, ValueError):
        same = False
    if not same:
        raise RuntimeError(f"{path} has no scores of this run's training examples; remove it to have it made again")
    return Scores(values, errors, macs)


def made_scores(config: RunConfig, dataset: Dataset, origin: Path) -> Scores:
    if config.subset.scored == "forgetting":
        values = broadcast_from_first(forgetting_scores, origin, dataset)
        return Scores(values, torch.zeros_like(values))
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    restore(network, weights_file(origin))
    network.to(dataset.train.inputs.device, memory_format=torch.channels_last)
    forward = count_macs(network, dataset.input_shape)[0]
    n = len(dataset.train)
    if config.subset.scored == "loss":
        values = losses(network, dataset, config.train.batch_size)
        return Scores(values, torch.zeros_like(values), n * forward)
    found = example_traces(
        network, dataset.examples(dataset.train), rtol=RTOL, generator=stream(config.random_state, "subset scores"),
        memory_mb=config.metrics.metric_memory_mb, progress=True,
    )  # fmt: skip
    log.info("Fisher traces of %d examples by %d backward passes each", n, found.probes)
    return Scores(found.values, found.errors, found.passes * forward)


@torch.no_grad()
def losses(network: nn.Module, dataset: Dataset, batch_size: int) -> Tensor:
    """(N,) cross-entropies of the training examples with their given labels, un-augmented, in eval mode and float32."""
    device = dataset.train.inputs.device
    own = torch.arange(len(dataset.train))[own_share(len(dataset.train))]
    pieces = []
    with evaluation_mode(network), full_precision(device):
        for inputs, labels, _ in tracked(dataset.batches(dataset.train, batch_size, own), "scoring", "batches"):
            pieces.append(cross_entropies(network(inputs).float(), labels).double().cpu())
    return gather_from_processes(pieces)


def forgetting_scores(origin: Path, dataset: Dataset) -> Tensor:
    """(N,) how often a run has forgotten each training example; more than can be for one that it has never known.

    Raises:
        RuntimeError: it has not counted that, or of other examples.
    """
    folder = RunFolder(origin if origin.is_dir() else origin.parent)
    path = folder.forgetting
    if not path.exists():
        raise RuntimeError(
            f"{path} does not exist, and --subset_difficulty forgetting needs it: train that run again, by its own command "
            "with --save_forgetting 1 --overwrite 1"
        )
    if folder.finished:
        folder.check_files()
    arrays, index = read_arrays(path), dataset.train.indices.cpu().numpy()
    if set(arrays) < {"index", "forgotten", "learned", "epochs"} or arrays["index"].shape != index.shape:
        raise RuntimeError(f"{path} has no counts of this run's training examples")
    if (arrays["index"] != index).any():
        raise RuntimeError(f"{path} has counts of other training examples than this run's")
    forgotten, learned = torch.from_numpy(arrays["forgotten"]), torch.from_numpy(arrays["learned"])
    return forgotten.double().where(learned, float(arrays["epochs"]))

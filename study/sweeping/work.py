"""What is left to do of a run, counted from its flags: images of every kind of pass, bytes and files on disk.

docs/scaling.md has the formulas and how well they fit.
"""

import functools
import operator
from dataclasses import dataclass, fields

import torch

from helper.metrics.example_traces import passes_of
from helper.metrics.macs import count_macs
from helper.metrics.price import FORWARD
from helper.metrics.quantities.snr import snr_epochs
from helper.pruner import prunable_weights
from loader.main import Sizes
from network.main import NetworkConfig, build_network
from optim.budget import passes_between
from optim.config import RunConfig
from optim.meter import PASSES
from optim.subsets.main import choosing_passes, shown_by
from study.sweeping.masks_to_come import scoring_images, with_expected_epochs
from study.sweeping.plan import PlannedRun
from study.sweeping.sparse_shares import sparse_shares, weights_without_state

FLOAT, TENSOR = 4, 370  # bytes: of a number, and of a tensor in a state file beside its numbers
CELLS = {"history": 160, "snr": 150, "metrics": 225, "log": 130}  # bytes of a row
UNEVALUATED = 0.5  # of the bytes that an epoch's row and line of the log have otherwise
FIGURE = 125_000  # bytes of one, as PNG and PDF
EXPECTED_PROBES = 8  # of an example of a trained network, for its Fisher trace to a tenth
SMALL = 5_000  # bytes of config.yaml, summary.json and the headings of tables


@dataclass(frozen=True)
class Work:
    """Images through passes over the network, and what they leave on disk; runs add up.

    An image of a pass that computes active weights alone counts as the share of a dense one's time that it takes.
    """

    training: float = 0  # steps: forward, backward, update; one with further passes counts as several
    forward: float = 0  # forward alone
    gradient: float = 0  # forward and backward, for the SNR
    measuring: float = 0  # curvature and Jacobian, in images of a training step
    bytes: int = 0
    files: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def evaluation(self) -> float:
        """In images of a training step."""
        return FORWARD * self.forward + self.gradient

    @property
    def images(self) -> float:
        """All of it, in images of a training step."""
        return self.training + self.evaluation + self.measuring


def work_of(run: PlannedRun, sizes: Sizes) -> Work:
    """The epochs to come of a run that has begun; of a trained one, which lacks a measurement, that of its selected weights."""
    config = with_expected_epochs(run.config, sizes)
    if run.folder.finished:
        return Work(measuring=state_images(config, sizes))
    begin = config.first_epoch
    last = begin + max(0, len(run.folder.history().rows) - 1) if run.begun else begin - 1  # that the tables have
    epochs = max(0, config.train.n_epochs - max(last, begin))  # a budget may have bought more than was expected
    passes, n_epochs = passes_to_come(config, last), config.train.n_epochs
    shares = sparse_shares(config, sizes, last)

    def dense_passes(epochs: list[int]) -> float:
        return sum(shares.passes[epoch] for epoch in epochs)

    shown = shown_by(config.subset, n_epochs=n_epochs, n=sizes.train, batch_size=config.train.batch_size)
    choosing = choosing_passes(config.subset, shown, sizes.n_classes)
    steps = passes_between(config.train, shown, min(1.0, max(last, begin) / n_epochs), 1.0) + epochs * choosing
    bytes_, files = disk_of(config, sizes)
    scoring = scoring_images(config, sizes) + example_scoring_images(config, sizes) if last < begin else 0
    return Work(
        training=shares.training * sizes.train * steps / PASSES + scoring,
        forward=dense_passes(passes.other) * (sizes.val + sizes.test) + dense_passes(passes.training) * sizes.train,
        gradient=dense_passes(passes.gradient) * sizes.train,
        measuring=len(measured_epochs(config, last)) * state_images(config, sizes),
        bytes=bytes_,
        files=files,
    )


@dataclass(frozen=True)
class Passes:
    """Epochs after which there are passes.

    Attributes:
        other: over validation and test set. training: over the training set, forward alone. gradient: the same with the SNR.
    """

    other: list[int]
    training: list[int]
    gradient: list[int]


def passes_to_come(config: RunConfig, last: int) -> Passes:
    """Those after epochs later than `last`, which the tables have; the first epoch, before any step, counts as one."""
    first, train = config.first_epoch, config.train
    to_come = range(last + 1, train.n_epochs + 1)
    with_snr = epochs_with_snr(config) if config.metrics.snr_mode == "fixed" else set()
    other = [epoch for epoch in to_come if train.evaluates(epoch, first)]
    training = [epoch for epoch in other if train.train_eval == "pass" or epoch == first]
    gradient = [epoch for epoch in to_come if epoch in with_snr]
    return Passes(other, [epoch for epoch in training if epoch not in with_snr], gradient)


def example_scoring_images(config: RunConfig, sizes: Sizes) -> float:
    """What scores of all training examples take, in images of a training step; counts of another run take nothing."""
    passes = {"loss": 1, "fisher": passes_of(min(EXPECTED_PROBES, sizes.n_classes))}
    return FORWARD * sizes.train * passes.get(config.subset.scored, 0)


def measured_epochs(config: RunConfig, former: int = -1) -> list[int]:
    """States later than `former` that are measured: on the way, and the selected weights as if they were the last epoch's."""
    begin, last = config.first_epoch, config.train.n_epochs
    epochs = range(max(former + 1, begin), last + 1)
    return [epoch for epoch in epochs if epoch == last or config.metrics.due(epoch, begin)]


def epochs_with_snr(config: RunConfig) -> set[int]:
    """Those that have rows in snr.csv."""
    metrics, first, last = config.metrics, config.first_epoch, config.train.n_epochs
    if not metrics.save_snr:
        return set()
    return snr_epochs(metrics.snr_every, last, first) if metrics.snr_mode == "fixed" else set(range(first + 1, last + 1))


def state_images(config: RunConfig, sizes: Sizes) -> float:
    """What measuring one state takes, in images of a training step."""
    metrics = config.metrics
    population = sizes.test if metrics.metric_split == "test" else sizes.train
    subsets = 2 if config.data.train_noisy and metrics.metric_split == "train" else 1
    prices = [metric.price(metrics, population, sizes.n_classes) for metric in metrics.wanted()]
    times = [subsets if metric.by_subset else 1 for metric in metrics.wanted()]
    return sum(map(operator.mul, prices, times))


# ------------------------------------------------------------------------------------------------------- on disk


@dataclass(frozen=True)
class Shape:
    """What a network is made of."""

    macs: int  # multiply-accumulates of one image forward
    parameters: int
    buffers: int  # bytes
    prunable: int
    layers: int  # Linear and Conv2d
    tensors: int  # of a state


@functools.cache
def shape_of(
    config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, prune_last: bool = False, also: tuple[str, ...] = ()
) -> Shape:
    network = build_network(config, input_shape, n_classes, torch.Generator())
    head = config.spec.head_name(network)
    return Shape(
        macs=count_macs(network, input_shape)[0],
        parameters=sum(p.numel() for p in network.parameters()),
        buffers=sum(b.numel() * b.element_size() for b in network.buffers()),
        prunable=sum(weight.numel() for weight in prunable_weights(network, prune_last, head, also).values()),
        layers=len(prunable_weights(network, prune_last=True)),
        tensors=len(network.state_dict()),
    )


def shape_for(config: RunConfig, sizes: Sizes) -> Shape:
    masks = config.prune
    return shape_of(config.network, sizes.input_shape, sizes.n_classes, masks.prune_last, masks.beside_layers)


def disk_of(config: RunConfig, sizes: Sizes) -> tuple[int, int]:
    """(bytes, files) of a finished run's folder: states, tables, figures."""
    train, metrics, shape = config.train, config.metrics, shape_for(config, sizes)
    sparse, noisy = config.mode_spec.has_mask, config.data.train_noisy
    snr = metrics.save_snr and sizes.train >= 2 * train.batch_size
    tensors = shape.tensors + (shape.layers if sparse else 0)
    state = FLOAT * shape.parameters + shape.buffers + (shape.prunable if sparse else 0) + TENSOR * tensors
    moved = shape.parameters - weights_without_state(config, sizes)
    checkpoint = state + train.tensors_kept() * (FLOAT * moved + TENSOR * shape.tensors)
    saved = config.saved_epochs()
    states = len(saved) + 1  # and model.pt
    checkpoints = 2 if saved else 0  # a round of which only the solution is kept has none in the end
    epochs = range(config.first_epoch, train.n_epochs + 1)
    rows = sum(1.0 if train.evaluates(epoch, config.first_epoch) else UNEVALUATED for epoch in epochs)
    kinds = metrics.tabulated()
    measured = len(measured_epochs(config)) * len(kinds) * (3 if noisy else 1)
    tables = rows * (CELLS["history"] * (1.4 if noisy else 1) + CELLS["log"])
    tables += CELLS["snr"] * len(epochs_with_snr(config)) * shape.layers if snr else 0
    tables += CELLS["metrics"] * measured * (1 + shape.layers)
    figures = config.figures * (1 + noisy + 2 * snr + bool(kinds) + metrics.save_spectrum)
    labels = 3 * 8 * sizes.train if noisy else 0
    tables_and_texts = 5 + snr + bool(kinds) + noisy + metrics.save_spectrum  # history, config, log, summary, lock
    files = tables_and_texts + states + checkpoints + 2 * figures
    return round(states * state + checkpoints * checkpoint + tables + FIGURE * figures + labels + SMALL), files

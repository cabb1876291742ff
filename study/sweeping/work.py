"""What is left to do of a run, counted from its flags: images of every kind of pass, bytes and files on disk.

docs/scaling.md has the formulas and how well they fit.
"""

import functools
import math
from dataclasses import dataclass, fields

import torch

from helper.macs import count_macs
from helper.metrics.main import MetricConfig, stops
from helper.metrics.sampling import DRAW_COST, LEAST_DRAWS, MARGIN, PILOT, SCORED_PER_DRAW
from helper.metrics.spectrum import affordable, full_products, half_steps
from helper.pruner import prunable_weights
from helper.schema.registry import with_options
from loader.sizes import Sizes
from network.main import NetworkConfig, build_network
from optim.config import RunConfig
from optim.optimizers import OPTIMIZERS, tensors_kept
from study.sweeping.plan import Planned

FORWARD = 1 / 3  # of a training step: one of its three products of every layer
NOISE = 1.0  # variance of a weighted draw relative to the squared trace: 0.2 of networks that have memorised, 2 early on
PRODUCT = 2  # training steps that a product of the Hessian with a vector takes
FLOAT, TENSOR = 4, 370  # bytes: of a number, and of a tensor in a state file beside its numbers
CELLS = {"history": 160, "snr": 105, "metrics": 225, "log": 130}  # bytes of a row
FIGURE = 125_000  # bytes of one, as PNG and PDF
SMALL = 5_000  # bytes of config.yaml, summary.json and the headings of tables


@dataclass(frozen=True)
class Work:
    """Images through passes over the network, and what they leave on disk; runs add up."""

    training: float = 0  # steps: forward, backward, update
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


def work_of(run: Planned, sizes: Sizes) -> Work:
    """The epochs to come of a run that has begun; of a trained one, which lacks a measurement, that of its selected weights."""
    config, metrics = run.config, run.config.metrics
    if run.folder.finished:
        return Work(measuring=state_images(config, sizes))
    first = max(0, len(run.folder.history().rows) - 1) if run.begun else -1  # epochs that the tables have
    epochs = config.train.n_epochs - max(first, 0)
    evaluated = config.train.n_epochs - first  # epoch 0 as well
    passes = evaluated if config.train.train_eval == "pass" else int(first < 0)
    snr = metrics.save_snr and metrics.snr_mode == "fixed"
    bytes_, files = disk_of(config, sizes)
    return Work(
        training=epochs * sizes.train,
        forward=evaluated * (sizes.val + sizes.test) + (0 if snr else passes * sizes.train),
        gradient=passes * sizes.train if snr else 0,
        measuring=len(measured_epochs(config, first)) * state_images(config, sizes),
        bytes=bytes_,
        files=files,
    )


def measured_epochs(config: RunConfig, first: int = -1) -> list[int]:
    """States later than `first` that are measured: on the way, and the selected weights as if they were the last epoch's."""
    last = config.train.n_epochs
    return [epoch for epoch in range(first + 1, last + 1) if epoch == last or config.metrics.due(epoch)]


def state_images(config: RunConfig, sizes: Sizes) -> float:
    """What measuring one state takes, in images of a training step; a draw of an estimator counts as `DRAW_COST` forwards."""
    metrics = config.metrics
    population = sizes.test if metrics.metric_split == "test" else sizes.train
    subsets = 2 if config.data.train_noisy and metrics.metric_split == "train" else 1
    each = sum(draws(name, metrics, population, sizes.n_classes) for name in metrics.wanted())
    images = subsets * each * FORWARD
    if metrics.save_spectrum:
        images += PRODUCT * spectrum_products(metrics, population)
    return images


def spectrum_products(config: MetricConfig, population: int) -> int:
    """Products of an example with a vector that a spectrum takes: of all examples, or of a sample and its halves."""
    k, steps, runs = config.spectrum_k, config.spectrum_steps, config.spectrum_runs
    n = min(population, config.monte_carlo_samples or affordable(population, k, steps, runs))
    return n * (full_products(k, steps, runs) + (half_steps(k, steps) if n < population else 0))


def draws(name: str, config: MetricConfig, population: int, n_classes: int) -> float:
    """Forward passes that one measurement comes to."""
    budget = config.budget(stops=stops(name, config))
    most = min(population, budget["max_samples"] or population)
    if not stops(name, config):
        labels = n_classes if (config.fisher_method == "exact" and name == "fisher") else budget["n_probes"] or 5
        return DRAW_COST * most * labels
    if budget["rtol"] == 0:
        return DRAW_COST * most * (budget["n_probes"] or max(1, math.ceil(LEAST_DRAWS / population)))
    needed = PILOT + NOISE * MARGIN / budget["rtol"] ** 2
    scored = min(population, SCORED_PER_DRAW * PILOT)
    return DRAW_COST * min(needed, budget["max_samples"] or needed) * (budget["n_probes"] or 1) + scored


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
def shape_of(config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, prune_last: bool = False) -> Shape:
    network = build_network(config, input_shape, n_classes, torch.Generator())
    return Shape(
        macs=count_macs(network, input_shape)[0],
        parameters=sum(p.numel() for p in network.parameters()),
        buffers=sum(b.numel() * b.element_size() for b in network.buffers()),
        prunable=sum(w.numel() for w in prunable_weights(network, prune_last).values()),
        layers=len(prunable_weights(network, prune_last=True)),
        tensors=len(network.state_dict()),
    )


def shape_for(config: RunConfig, sizes: Sizes) -> Shape:
    return shape_of(config.network, sizes.input_shape, sizes.n_classes, config.prune.prune_last)


def disk_of(config: RunConfig, sizes: Sizes) -> tuple[int, int]:
    """(bytes, files) of a finished run's folder: states, tables, figures."""
    train, metrics, shape = config.train, config.metrics, shape_for(config, sizes)
    sparse, noisy = config.mode_spec.has_mask, config.data.train_noisy
    snr = metrics.save_snr and sizes.train >= 2 * train.batch_size
    tensors = shape.tensors + (shape.layers if sparse else 0)
    state = FLOAT * shape.parameters + shape.buffers + (shape.prunable if sparse else 0) + TENSOR * tensors
    kept = tensors_kept(with_options(OPTIMIZERS[train.optimizer_name], train))
    checkpoint = state + kept * (FLOAT * shape.parameters + TENSOR * shape.tensors)
    states = len(train.saved_epochs()) + 1  # and model.pt
    epochs = train.n_epochs + 1
    kinds = metrics.wanted()
    measured = len(measured_epochs(config)) * len(kinds) * (3 if noisy else 1)
    tables = epochs * (CELLS["history"] * (1.4 if noisy else 1) + CELLS["log"])
    tables += CELLS["snr"] * epochs * shape.layers if snr else 0
    tables += CELLS["metrics"] * measured * (1 + shape.layers)
    figures = config.figures * (1 + noisy + 2 * snr + bool(kinds) + metrics.save_spectrum)
    labels = 3 * 8 * sizes.train if noisy else 0
    tables_and_texts = 5 + snr + bool(kinds) + noisy + metrics.save_spectrum  # history, config, log, summary, lock
    files = tables_and_texts + states + 2 + 2 * figures
    return round(states * state + 2 * checkpoint + tables + FIGURE * figures + labels + SMALL), files

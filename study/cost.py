"""What a sweep will cost: time from measured steps on this device, disk from the states that a run keeps."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from helper.metrics.evaluation import evaluate
from helper.metrics.snr import GradientMoments
from helper.utils import choose_device, stream
from helper.xla import end_of_graph
from loader.dataset import Dataset
from loader.main import load_dataset
from network.main import build_network
from optim.main import RunConfig
from optim.trainer import Trainer
from study.plan import Planned

ENOUGH = 0.3  # seconds of a step from which a larger one would take as much for each example
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds of training and evaluation, without curvature measurements; bytes on disk, without figures."""

    seconds: float
    bytes: int


def cost_of(run: Planned) -> Cost:
    """What is left of a run: nothing of a finished one, the epochs to come of one that has begun.

    Raises:
        DataError, RuntimeError: the data or the device are not there.
    """
    config = run.config
    if run.folder.finished:
        return Cost(0.0, 0)
    dataset = data_of(config.data)
    n_train, n_test = len(dataset.train), len(dataset.val) + len(dataset.test)
    speeds = measured_speeds(config)
    evaluated = 0.0
    if config.train.train_eval == "pass":
        with_gradients = config.metrics.save_snr and config.metrics.snr_mode == "fixed"
        evaluated = n_train * (speeds.gradient if with_gradients else speeds.forward)
    epoch = n_train * speeds.train + evaluated + n_test * speeds.forward
    done = len(run.folder.history().rows) - 1 if run.begun else 0
    states = len(config.train.saved_epochs()) + 1  # and model.pt
    momenta = {"sgd": 1 if config.train.momentum else 0, "adam": 2}[config.train.optimizer_name]
    return Cost((config.train.n_epochs - max(done, 0)) * epoch, speeds.parameters * FLOAT * (states + 2 * (1 + momenta)))


data_of = functools.cache(load_dataset)  # whose own cache holds one


@dataclass(frozen=True)
class Speeds:
    """Seconds an example, and the network's parameters."""

    train: float
    forward: float
    gradient: float
    parameters: int


SPEEDS: dict[tuple, Speeds] = {}


def measured_speeds(config: RunConfig) -> Speeds:
    """Of the steps that a run is made of, timed on its device; once for runs whose steps are alike."""
    train = config.train
    steps = (train.batch_size, train.precision, train.optimizer_name, train.momentum, train.reg_type)
    key = (config.network, config.data, steps, config.device)
    if key not in SPEEDS:
        SPEEDS[key] = time_steps(config)
    return SPEEDS[key]


def time_steps(config: RunConfig) -> Speeds:
    """`measured_speeds` anew."""
    device = choose_device(config.device)
    dataset = data_of(config.data).to(device)
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, stream(1, "init"))
    network.to(device, memory_format=torch.channels_last)
    steps = dataclasses.replace(config.train, compile=False)  # which would take longer to compile than the rest to time
    trainer = Trainer(network, dataset, steps, seed=1, callbacks=[])
    network.train()
    batch = config.train.batch_size
    return Speeds(
        train=seconds_per_example(lambda rows: trainer.train_step(0, rows), dataset, batch),
        forward=seconds_per_example(lambda rows: evaluate(network, pieces(dataset, rows, batch)), dataset, batch),
        gradient=seconds_per_example(lambda rows: with_moments(network, dataset, rows), dataset, batch),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def pieces(dataset: Dataset, rows: torch.Tensor, batch_size: int):
    return dataset.batches(dataset.train[rows], batch_size)


def with_moments(network: nn.Module, dataset: Dataset, rows: torch.Tensor) -> None:
    evaluate(network, pieces(dataset, rows, len(rows)), moments=GradientMoments(network), batch_size=len(rows))


def seconds_per_example(step: Callable[[torch.Tensor], object], dataset: Dataset, batch_size: int) -> float:
    """The fastest of a few steps of the largest batch, up to the run's own, that takes reasonable time.

    The fastest, because what other processes take away from a step is none of its cost.
    """
    everything = torch.arange(len(dataset.train), device=dataset.train.labels.device)
    largest = min(batch_size, len(everything))
    size = min(8, largest)
    while True:
        step(everything[:size])  # warms up
        fastest = min(timed(step, everything[:size]) for _ in range(3))
        if size == largest or fastest > ENOUGH:
            return fastest / size
        size = min(4 * size, largest)


def timed(step: Callable[[torch.Tensor], object], rows: torch.Tensor) -> float:
    started = time.perf_counter()
    step(rows)
    end_of_graph(rows.device, wait=True)
    return time.perf_counter() - started


def makespan(seconds: Sequence[float], parents: Sequence[int | None], n_jobs: int) -> float:
    """Wall time when `n_jobs` at a time are worked off in order, each after its parent."""
    free, ends = [0.0] * n_jobs, []
    for duration, parent in zip(seconds, parents, strict=True):
        slot = min(range(n_jobs), key=free.__getitem__)
        start = max(free[slot], 0.0 if parent is None else ends[parent])
        free[slot] = start + duration
        ends.append(free[slot])
    return max(ends, default=0.0)

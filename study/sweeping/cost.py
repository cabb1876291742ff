"""What a sweep will cost: time from steps measured on this device, or from the speed of another one; disk."""

import contextlib
import dataclasses
import functools
import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from helper.metrics.evaluation import evaluate
from helper.metrics.snr import GradientMoments
from helper.schema.config import FlagError, replace
from helper.schema.values import near_match
from helper.system.devices import choose_device
from helper.system.seeds import stream
from helper.system.xla import end_of_graph
from loader.dataset import Dataset
from loader.main import Sizes, load_dataset, published_sizes
from network.main import build_network
from optim.config import RunConfig
from optim.placement import laid_out, place
from optim.regularizer import OfOutputs, weighted_penalties
from optim.sparse_step import missing_kernels
from optim.trainer import Trainer
from study.sweeping.plan import PlannedRun
from study.sweeping.work import Work, shape_for, work_of

ENOUGH = 0.3  # seconds of a step from which a larger one would take as much for each example, and of repetitions of one
FEWEST, MOST = 3, 200  # repetitions of a step
STEP = 0.001  # seconds that a step takes however small the network is: Python and the launch of its operations


@dataclass(frozen=True)
class Cost:
    """What is left of a run: the work, and the seconds it takes, without start-up."""

    work: Work
    seconds: float


def cost_of(run: PlannedRun) -> Cost:
    """Of a run that is not finished, by dense steps measured on its device; sparse ones take their share of that.

    Raises:
        DataError, RuntimeError: the data or the device are not there.
    """
    work = work_here(run, Sizes.of(data_of(run.config.data)))
    speeds = measured_speeds(run.config)
    trained = work.training * speeds.train + work.forward * speeds.forward
    return Cost(work, trained + (work.gradient + work.measuring) * speeds.gradient)


def work_here(run: PlannedRun, sizes: Sizes) -> Work:
    """What is left of a run on this machine: with dense steps where it lacks the kernels for sparse ones."""
    work, dense = work_of(run, sizes), work_of(dataclasses.replace(run, config=replace(run.config, sparse_step="0")), sizes)
    return dense if work != dense and missing_kernels() else work


# ---------------------------------------------------------------------------------------- the speed of another device


@dataclass(frozen=True)
class Reference:
    """Training images a second of one network on one data set, `data/network` as in the names of runs.

    A network of other multiply-accumulates is taken to be faster or slower in their ratio, but no step to be faster than
    `STEP`. The speed is that of dense steps, in which pruned weights are multiplied like all others; of sparse ones, which
    runs on a CPU take, `Work` has the share.
    """

    name: str
    images_per_second: float
    macs: int

    def cost_of(self, run: PlannedRun) -> Cost:
        """Of a run that is not finished. No data file is read: the data set is taken for the published one."""
        sizes = published_sizes(run.config.data)
        work = work_of(run, sizes)
        return Cost(work, work.images / self.speed(run, sizes))

    def speed(self, run: PlannedRun, sizes: Sizes) -> float:
        """Training images a second of a run."""
        if run.group == self.name:
            return self.images_per_second
        macs = shape_for(run.config, sizes).macs
        return min(self.images_per_second * self.macs / macs, min(run.config.train.batch_size, sizes.train) / STEP)


def choose_reference(runs: Sequence[PlannedRun], images_per_second: float, name: str | None) -> Reference:
    """The network that is named, or else the one with the most multiply-accumulates to train.

    Raises:
        FlagError: no run has it.
    """
    macs, work = {}, dict.fromkeys((run.group for run in runs), 0.0)
    for run in runs:
        sizes = published_sizes(run.config.data)
        macs[run.group] = shape_for(run.config, sizes).macs
        work[run.group] += macs[run.group] * sizes.train * (run.config.train.n_epochs - run.config.first_epoch)
    if name is not None and name not in work:
        raise FlagError(f"--reference {name}: no run of the sweep is one of {', '.join(work)}{near_match(name, work)}")
    name = name or max(work, key=work.__getitem__)
    return Reference(name, images_per_second, macs[name])


# ----------------------------------------------------------------------------------------- measured on this device


data_of = functools.cache(load_dataset)  # whose own cache holds one


@dataclass(frozen=True)
class Speeds:
    """Seconds an example of a training step, a forward pass, and a pass that takes in gradients."""

    train: float
    forward: float
    gradient: float


SPEEDS: dict[tuple, Speeds] = {}


def measured_speeds(config: RunConfig) -> Speeds:
    """Of the steps that a run is made of, timed on its device as if nothing else ran there; once for runs of like steps.

    They have no passes beyond a step's three, which `Work` counts.
    """
    train, reg_type = config.train, timed_penalties(config)
    steps = (train.batch_size, train.precision, train.optimizer_name, train.momentum, reg_type, train.mix, train.ema > 0)
    key = (config.network, config.data, steps, config.device)
    if key not in SPEEDS:
        SPEEDS[key] = time_steps(config)
    return SPEEDS[key]


def timed_penalties(config: RunConfig) -> str:
    """Those of `--reg_type` that no multiply-accumulates are counted for."""
    penalties = weighted_penalties(config.train)
    return ",".join(w.name for w in penalties if isinstance(w.penalty, OfOutputs) and not w.penalty.differentiates) or "none"


def time_steps(config: RunConfig) -> Speeds:
    """`measured_speeds` anew."""
    device = choose_device(config.device)
    dataset = laid_out(data_of(config.data), config.network).to(device)
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, stream(1, "init"))
    place(network, dataset)
    penalties = {"reg_type": timed_penalties(config), "reg_weights": None, "reg_schedules": None, "sharpness_aware": 0.0}
    steps = dataclasses.replace(config.train, compile=False, **penalties)  # compiling would take longer than all the rest
    trainer = Trainer(network, dataset, steps, seed=1, callbacks=[])
    network.train()
    batch = config.train.batch_size
    return Speeds(
        train=seconds_per_example(lambda rows: trainer.train_step(0, rows), dataset, batch),
        forward=seconds_per_example(lambda rows: evaluate(network, pieces(dataset, rows, batch)), dataset, batch),
        gradient=seconds_per_example(lambda rows: with_moments(network, dataset, rows), dataset, batch),
    )


def pieces(dataset: Dataset, rows: torch.Tensor, batch_size: int):
    return dataset.batches(dataset.train[rows], batch_size)


def with_moments(network: nn.Module, dataset: Dataset, rows: torch.Tensor) -> None:
    evaluate(network, pieces(dataset, rows, len(rows)), moments=GradientMoments(network), batch_size=len(rows))


def seconds_per_example(step: Callable[[torch.Tensor], object], dataset: Dataset, batch_size: int) -> float:
    """Of the largest batch, up to the run's own, that takes reasonable time."""
    everything = torch.arange(len(dataset.train), device=dataset.train.labels.device)
    largest = min(batch_size, len(everything))
    size = min(8, largest)
    while True:
        rows = everything[:size]
        step(rows)  # warms up
        if size == largest or least_seconds(step, rows, FEWEST) > ENOUGH:
            with threads(1):
                alone = least_seconds(step, rows, MOST) if rows.device.type == "cpu" else math.inf
            return min(alone, least_seconds(step, rows, MOST)) / size
        size = min(4 * size, largest)


def least_seconds(step: Callable[[torch.Tensor], object], rows: torch.Tensor, most: int) -> float:
    """Of several repetitions of a step: what other processes take away from it is none of its cost.

    Threads that spin while one of them is not running are busy for nothing, in every repetition if there are many of them
    and a step is long. A thread alone waits for nobody: its time is an upper bound that nothing inflates.
    """
    clock, taken = clock_of(rows.device), []
    while len(taken) < FEWEST or (len(taken) < most and sum(taken) < ENOUGH):
        started = clock()
        step(rows)
        end_of_graph(rows.device, wait=True)
        taken.append(clock() - started)
    return min(taken)


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU that of the calling thread, which stands while another process has its core.

    It takes part in everything, so that on a machine with nothing else to do it would go like the clock on the wall.
    """
    return time.thread_time if device.type == "cpu" else time.perf_counter


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """PyTorch computes with n threads inside."""
    former = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def makespan(seconds: Sequence[float], parents: Sequence[int | None], n_jobs: int) -> float:
    """Wall time when `n_jobs` at a time are worked off in order, each after its parent."""
    free, ends = [0.0] * n_jobs, []
    for duration, parent in zip(seconds, parents, strict=True):
        start = max(heapq.heappop(free), 0.0 if parent is None else ends[parent])
        heapq.heappush(free, start + duration)
        ends.append(start + duration)
    return max(ends, default=0.0)

"""`train_run(RunConfig) -> run folder`: what run.py calls, and a notebook can."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helper.mask import Mask
from helper.metrics.main import METRICS
from helper.processes.first import broadcast_from_first, call_in_first_then_others
from helper.processes.group import connection_lost, world_size
from helper.processes.interruption import check_signals, interruptible
from helper.progress import Task, tracked
from helper.schema.config import FlagError
from helper.system.devices import choose_device
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.system.logs import RunLog
from helper.system.memory import keep_freed_memory
from helper.system.signals import Signals
from helper.system.xla import forget_graph_counts, graph_counts
from helper.tables import DamagedTable
from helper.untrusted.arrays import write_arrays
from helper.untrusted.reasons import reason_of
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import write_yaml
from loader.dataset import Dataset
from loader.main import load_dataset
from network.main import build_network
from optim import callbacks as hooks
from optim.checkpoint import FROM_THE_START, content_hash, load_latest
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import PATHS, check_stored, run_folder, stored_options
from optim.measuring import check_examples, measure_selected, measure_state
from optim.model import start
from optim.summary import metric_totals, summarise
from optim.trackers.main import TRACKERS, Trackers, chosen_trackers
from optim.trainer import Trainer

log = logging.getLogger(__name__)


def train_run(config: RunConfig, signals: Signals | None = None) -> Path:
    """Train and measure one run, its dense parent first if that is missing; the run folder's path.

    A finished run is left as it is, but for measurements that it does not have yet; an unfinished one is resumed.

    Args:
        signals: asks for an orderly end when one is received; default: never.
    Raises:
        FlagError: the network does not take the data.
        DataError: data missing or damaged.
        RuntimeError: device or tracker absent, folder in use, parent's weights missing, damaged or of another architecture.
        Diverged: the loss is not finite. Interrupted: a signal was received.
    """
    check_paths(config)
    signals = signals or Signals()
    device = choose_device(config.device)
    for tracker in chosen_trackers(config.tracker):
        tracker.check()
    keep_freed_memory()
    with interruptible(signals):
        check_signals()
        dataset = call_in_first_then_others(load_dataset, config.data)
    check_examples(config, dataset)
    folder = broadcast_from_first(run_folder, config, dataset.fingerprint)
    if broadcast_from_first(lambda: folder.finished) and not config.overwrite:
        broadcast_from_first(check_processes, folder, config, world_size())
        return measure_more(folder, config, dataset.to(device), signals)
    parent = dense_parent(config, dataset, signals)
    network, mask = broadcast_from_first(start, config, dataset, parent)  # refuses before the folder exists
    with contextlib.ExitStack() as stack:
        ready = broadcast_from_first(take, folder, config, dataset.fingerprint, stack)
        if ready:
            train_in(folder, config, network, mask, dataset.to(device), signals)
    return folder.path if ready else measure_more(folder, config, dataset.to(device), signals)


def check_paths(config: RunConfig) -> None:
    """Raise FlagError where weights are to be taken from a path at which nothing is."""
    for name in PATHS if config.mode_spec.needs_parent else ():
        path = getattr(config, name)
        if path and not Path(path).exists():
            raise FlagError(f"--{name} {path}: does not exist; give a run folder or a .pt file of weights")


def take(folder: RunFolder, config: RunConfig, fingerprint: str | None, stack: contextlib.ExitStack) -> bool:
    """Hold a folder for one run, and log into it, until the stack is closed; what stands there is made ready to go on.

    Returns:
        False: another process has finished the run meanwhile, and nothing is held.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(exclusive(folder.path))
        if folder.config.exists():
            check_stored(folder, config, fingerprint)
        if folder.finished and not config.overwrite:
            return False
        if folder.finished:
            clear(folder)
        folder.summary.unlink(missing_ok=True)  # of a run that lacks its weights: it is finished no more
        stack.push(held.pop_all())
    stack.enter_context(RunLog(folder.log))
    write_atomic(folder.config, write_yaml(stored_options(config)))
    return True


def check_processes(folder: RunFolder, config: RunConfig, n: int) -> None:
    """Raise RuntimeError when a finished run depends on how many processes trained it and they were not n."""
    found = folder.read_summary().get("processes", n)
    if found != n and not config.train.sync_batch_norm:
        raise RuntimeError(f"{folder.path} is of {found} processes, on which --sync_batch_norm 0 depends; use as many, not {n}")


def dense_parent(config: RunConfig, dataset: Dataset, signals: Signals) -> Path | None:
    """Run folder or weights of Sol-D, trained first if it is missing; a finished one is used as it is, by many at once.

    None in modes that need none.
    """
    if not config.mode_spec.needs_parent:
        return None
    if config.pretrain_model_path:
        return Path(config.pretrain_model_path)
    parent = config.dense_parent()
    folder = broadcast_from_first(run_folder, parent, dataset.fingerprint)
    finished = broadcast_from_first(lambda: folder.finished)
    return folder.path if finished and config.load_pretrain else train_run(parent, signals)


def train_in(folder: RunFolder, config: RunConfig, network: nn.Module, mask: Mask, dataset: Dataset, signals: Signals) -> None:
    """Train, measure, summarise and draw in a folder that this process holds."""
    broadcast_from_first(write_labels, folder, dataset)
    report_start(config, mask, dataset)
    weights = train(folder, config, network, mask, dataset, signals)
    if config.device == "tpu":
        log.info("XLA on %(platform)s: %(compilations)d graphs compiled for %(executions)d executions", graph_counts())
    started = time.perf_counter()
    with interruptible(signals):
        measure_selected(folder, config, network, dataset)
        measuring = time.perf_counter() - started
        broadcast_from_first(
            conclude, folder, config, network, mask, dataset, weights, measuring=measuring, processes=world_size()
        )


def conclude(
    folder: RunFolder, config: RunConfig, network: nn.Module, mask: Mask, dataset: Dataset, weights: dict[str, str],
    *, measuring: float, processes: int,
) -> None:  # fmt: skip
    summary = summarise(folder, config, network, mask, dataset, measuring, processes)
    summary |= {"files": weights | folder.file_hashes(), "files_pending": {}}
    draw(folder, config)
    folder.check_there()
    folder.write_summary(summary)  # last: now the run is finished
    track(folder, config)
    log.info("test accuracy %.4f (epoch %d), %s", summary["acc_test"], summary["epoch_selected"], folder.path)


def train(
    folder: RunFolder, config: RunConfig, network: nn.Module, mask: Mask, dataset: Dataset, signals: Signals
) -> dict[str, str]:
    """Put the loop together and run it, from the checkpoint if there is one.

    Returns:
        {name in the folder: hash} of the weights files that it has left.
    """
    written: dict[str, str] = {}
    device = dataset.train.inputs.device
    network.to(device, memory_format=torch.channels_last)
    mask = mask.to(device)
    online, progress = config.metrics.save_snr and config.metrics.snr_mode == "online", hooks.Progress()
    trainer = Trainer(
        network,
        dataset,
        config.train,
        seed=config.random_state,
        callbacks=[
            hooks.StopIfGone(folder),
            hooks.KeepPruned(mask),
            *([hooks.OnlineSNR(folder, mask)] if online else []),
            hooks.Evaluate(folder, mask, config.metrics),
            hooks.StopIfDiverged(),
            hooks.Measure(folder, mask, config.metrics, config.random_state),
            hooks.SelectBest(folder, mask, written),
            hooks.KeepStates(folder, mask, written),
            hooks.WriteHistory(folder),
            hooks.Track(Trackers(config.tracker, folder)),
            progress,
            hooks.WriteCheckpoint(folder, mask, written, signals),
        ],
    )
    state = broadcast_from_first(load_latest, folder.checkpoint)
    if state is not None:
        resume(trainer, state, folder, mask, written)
        log.info("resuming after %d epochs and %d steps", trainer.epoch, trainer.step)
    if config.device == "tpu":
        forget_graph_counts()  # of the dense parent, if this process has trained it
    with progress:
        trainer.fit(signals)
    return written


def resume(trainer: Trainer, state: dict[str, Any], folder: RunFolder, mask: Mask, written: dict[str, str]) -> None:
    """Put a checkpoint's state into a trainer, and what it knows of weights files into `written`.

    Raises:
        RuntimeError: it is another run's, of another mask or no state, or tables have lost what they had when it was written.
    """
    try:
        same_mask, n_processes = content_hash(state["mask"]) == content_hash(mask), state["processes"]
        run = state["run"]
        trainer.load_state(state)
        then, now = state["tables"], broadcast_from_first(folder.written, state["epoch"])
        written |= state["weights"]
        fewer = [name for name in now if (now[name] != then[name] if name == "history" else now[name] < then[name])]
    except DamagedTable:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if connection_lost(error):
            raise
        raise RuntimeError(f"{folder.checkpoint} is no state of this run: {reason_of(error)}; {FROM_THE_START}") from None
    if run != folder.path.name:
        raise RuntimeError(f"{folder.checkpoint} is of another run, {one_line(run, 200)}; {FROM_THE_START}")
    if n_processes != world_size() and not trainer.config.sync_batch_norm:
        raise RuntimeError(
            f"--sync_batch_norm 0: the run began with {n_processes} processes and its BatchNorm depends on that; "
            f"go on with as many, not with {world_size()}"
        )
    if not same_mask:
        raise RuntimeError(f"{folder.path} began with another mask: its dense parent has changed; move the folder away")
    for name in fewer:
        raise RuntimeError(f"{folder.path / name}.csv is not as this run left it: put a copy of it back, or {FROM_THE_START}")


def report_start(config: RunConfig, mask: Mask, dataset: Dataset) -> None:
    log.info("%s %s on %s, seed %d", config.mode, config.network.label, config.data.loader_name, config.random_state)
    if config.train.select == "test":
        log.warning("--select test keeps the epoch with the best *test* accuracy, as the paper does: it is biased upwards")
    n = len(dataset.train.labels.cpu().unique())
    if n < dataset.n_classes:
        log.warning(
            "the %d training examples are of %d of %d classes: raise --limit_train", len(dataset.train), n, dataset.n_classes
        )
    if mask:
        log.info("sparsity %.4f of the prunable weights (asked: %g)", mask.sparsity, config.prune.prune_ratio)
    for name in mask.empty_layers():
        log.warning("layer %s is pruned to nothing", name.removesuffix(".weight"))


def measure_more(folder: RunFolder, config: RunConfig, dataset: Dataset, signals: Signals) -> Path:
    """Add the measurements that a finished run does not have yet: of its selected weights and of the states it kept."""
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    network.to(dataset.train.inputs.device, memory_format=torch.channels_last)
    with contextlib.ExitStack() as stack:
        broadcast_from_first(take_finished, folder, config, dataset.fingerprint, stack)
        stack.enter_context(interruptible(signals))
        for epoch in tracked(broadcast_from_first(folder.kept_epochs), "kept states", "states"):
            measure_state(folder, config, network, dataset, epoch, curvature=config.metrics.due(epoch))
        measure_selected(folder, config, network, dataset)
        broadcast_from_first(refresh_summary, folder, config)
        broadcast_from_first(track, folder, config)
    return folder.path


def take_finished(folder: RunFolder, config: RunConfig, fingerprint: str | None, stack: contextlib.ExitStack) -> None:
    check_stored(folder, config, fingerprint)
    stack.enter_context(exclusive(folder.path))
    folder.check_files()
    stack.enter_context(RunLog(folder.log))
    log.info("%s is finished; --overwrite 1 repeats it", folder.path)


def refresh_summary(folder: RunFolder, config: RunConfig) -> None:
    """Bring summary and figures of a finished run up to what has been measured, be it by a process that was killed."""
    if folder.summarised:
        return
    summary = folder.read_summary()
    weights = {name: known for name, known in summary["files"].items() if name.endswith(".pt")}
    summary |= {"files": weights | folder.file_hashes(), "files_pending": {}}
    summary["metrics"] = metric_totals(folder, summary["epoch_selected"])
    draw(folder, config)
    folder.write_summary(summary)


def write_labels(folder: RunFolder, dataset: Dataset) -> None:
    """labels.npz of a noisy run: position in the published file, true and given label of every training example."""
    if dataset.noisy:
        train = dataset.train
        arrays = {"index": train.indices, "true_label": train.true_labels, "given_label": train.labels}
        write_arrays(folder.labels, {name: tensor.cpu().numpy() for name, tensor in arrays.items()})


def draw(folder: RunFolder, config: RunConfig) -> None:
    if config.figures:
        from helper.plotter.main import draw_run  # matplotlib takes a second to import

        with Task("drawing figures") as task:
            for _ in draw_run(folder.path, {name: metric.axis for name, metric in METRICS.items()}):
                task.advance()


def track(folder: RunFolder, config: RunConfig) -> None:
    Trackers(config.tracker, folder).end()


def clear(folder: RunFolder) -> None:
    """Remove what a run wrote, the summary first: from then on it counts as unfinished."""
    folder.summary.unlink()
    kinds = ("*.pt", "*.csv", "*.npz", "state_dicts/*.pt", "spectra/*.npz", "figures/*")
    for file in [*(file for kind in kinds for file in folder.path.glob(kind)), folder.log]:
        file.unlink(missing_ok=True)
    for tracker in TRACKERS.values():
        tracker.clear(folder)

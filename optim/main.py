"""`train_run(RunConfig) -> run folder`: what run.py calls, and a notebook can."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from helper.mask import Mask
from helper.own.consent import trust
from helper.processes.first import broadcast_from_first, call_in_first_then_others
from helper.processes.group import world_size
from helper.processes.interruption import check_signals, interruptible
from helper.progress import tracked
from helper.pruner import SCORES
from helper.schema.config import FlagError
from helper.system.devices import choose_device
from helper.system.memory import available_memory_mb, keep_freed_memory, return_freed_memory
from helper.system.signals import Signals
from helper.system.xla import forget_graph_counts, graph_counts
from helper.untrusted.arrays import write_arrays
from loader.dataset import Dataset
from loader.main import load_dataset
from network.main import build_network, facts_of
from optim.batches import steps_per_epoch
from optim.budget import within_budget
from optim.callbacks.main import callbacks_of
from optim.callbacks.watching import Progress
from optim.chain import keeping, runs_before, scorer_of
from optim.checkpoint import load_latest
from optim.closing import conclude, refresh_summary, track
from optim.config import RunConfig
from optim.consent import code_named
from optim.folder import RunFolder
from optim.holding import held_for_measuring, held_for_training
from optim.identity import PATHS, run_folder
from optim.measuring import check_examples, lacks_snr, measure_selected, measure_state
from optim.model import Beginning, rewind_file, start
from optim.own_network import check_network, report_uncounted
from optim.placement import laid_out, place
from optim.pruning import Pruning
from optim.resume import resume
from optim.rounds import ratios
from optim.sparse_step import check_sparse_step
from optim.subsets.main import Subset
from optim.subsets.scores import Scores, scores_for
from optim.trackers.main import Trackers, chosen_trackers
from optim.trained import Trained
from optim.trainer import Trainer
from optim.updating import MaskSchedule

log = logging.getLogger(__name__)


def train_run(config: RunConfig, signals: Signals | None = None) -> Path:
    """Train and measure one run, first the runs that it needs and that are missing; the run folder's path.

    A finished run is left as it is, but for measurements that it does not have yet; an unfinished one is resumed.

    Args:
        signals: asks for an orderly end when one is received; default: never.
    Raises:
        FlagError: the network does not take the data. OwnCodeError: code of a user's own, which this call trusts, fails.
        DataError: data missing or damaged.
        RuntimeError: device or tracker absent, folder in use, parent's weights missing, damaged or of another architecture.
        Diverged: the loss is not finite. Interrupted: a signal was received.
    """
    trust(code_named(config).values())
    check_paths(config)
    signals = signals or Signals()
    device = choose_device(config.device)
    for tracker in chosen_trackers(config.tracker):
        tracker.check()
    keep_freed_memory()
    with interruptible(signals):
        check_signals()
        dataset = laid_out(call_in_first_then_others(load_dataset, config.data), config.network)
    if dataset.on_demand:
        return_freed_memory()
    check_examples(config, dataset)
    check_network(config, dataset)
    check_masks(config, dataset)
    check_mix(config, dataset)
    folder = broadcast_from_first(run_folder, config, dataset.fingerprint)
    if broadcast_from_first(lambda: folder.finished) and not config.overwrite:
        broadcast_from_first(check_processes, folder, config, world_size())
        return measure_more(folder, config, dataset.to(device), signals)
    check_sparse_step(config, batch_norm=facts_of(config.network, dataset.input_shape, dataset.n_classes).batch_norm)
    scorer = train_scorer(config, dataset, signals)
    before = train_before(config, dataset, signals)
    beginning = broadcast_from_first(start, config, dataset, before)  # refuses before the folder exists, as does
    schedule = functools.cache(functools.partial(broadcast_from_first, within_budget, config, beginning, dataset))
    schedule(0)
    with held_for_training(folder, config, dataset.fingerprint) as ready:
        if ready:
            train_in(folder, config, schedule, beginning, dataset.to(device), signals, scorer)
    return folder.path if ready else measure_more(folder, config, dataset.to(device), signals)


def check_paths(config: RunConfig) -> None:
    """Raise FlagError where weights are to be taken from a path at which they are not."""
    for name in PATHS if config.mode_spec.needs_parent else ():
        path = getattr(config, name)
        if path and not Path(path).exists():
            raise FlagError(f"--{name} {path}: does not exist; give a run folder or a .pt file of weights")
    if config.begins_with_dense_state and config.pretrain_model_path:
        rewind_file(config, Path(config.pretrain_model_path))


def check_masks(config: RunConfig, dataset: Dataset) -> None:
    """Raise FlagError where training is too short for the changes of its mask, or there are too few data to score weights."""
    mode = config.mode_spec
    if isinstance(mode.updater, MaskSchedule):
        mode.updater.span(config, steps_per_epoch(len(dataset.train), config.train.batch_size))
    if mode.has_mask and SCORES[config.prune.prune_method].data:
        Pruning(config, dataset).rows()


def check_mix(config: RunConfig, dataset: Dataset) -> None:
    """Raise FlagError where boxes are to be cut out of what is no image."""
    if config.train.mix == "cutmix" and len(dataset.input_shape) != 3:
        shape = "x".join(map(str, dataset.input_shape))
        raise FlagError(f"--mix cutmix needs images, and {dataset.name} has vectors of {shape} numbers; use --mix mixup")


def check_processes(folder: RunFolder, config: RunConfig, n: int) -> None:
    """Raise RuntimeError when a finished run depends on how many processes trained it and they were not n."""
    found = folder.read_summary().get("processes", n)
    if found != n and not config.train.sync_batch_norm:
        raise RuntimeError(f"{folder.path} is of {found} processes, on which --sync_batch_norm 0 depends; use as many, not {n}")


def train_before(config: RunConfig, dataset: Dataset, signals: Signals) -> list[Path]:
    """Folders of the runs that a run needs, or weights of Sol-D in the place of the first; what is missing is trained, each
    after the one that it needs. A finished one is used as it is, by many at once. Empty in modes that need none.
    """
    runs = runs_before(config)
    given = [Path(config.pretrain_model_path)] if config.mode_spec.needs_parent and config.pretrain_model_path else []
    folders = [broadcast_from_first(run_folder, run, dataset.fingerprint) for run in runs]
    finished = broadcast_from_first(lambda: [folder.finished for folder in folders])
    for index, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        dense = index == 0 and not given
        wanted = not any(finished[index:]) or (dense and config.begins_with_dense_state and not finished[0])
        if wanted or (dense and not config.load_pretrain):
            kept = set(broadcast_from_first(folder.kept_epochs)) if dense and config.begins_with_dense_state else set()
            train_run(keeping(run, kept), signals)  # states of the dense run that other rounds have begun with stay there
    return given + [folder.path for folder in folders]


def train_scorer(config: RunConfig, dataset: Dataset, signals: Signals) -> Path | None:
    """Folder, or weights, of the run by which the training examples are scored, which is trained if it is not there."""
    run = scorer_of(config)
    if run is None:
        return None
    if config.mode_spec.needs_parent and config.pretrain_model_path and not config.subset.reducible:
        return Path(config.pretrain_model_path)
    folder = broadcast_from_first(run_folder, run, dataset.fingerprint)
    if not broadcast_from_first(lambda: folder.finished):
        train_run(run, signals)
    return folder.path


def train_in(
    folder: RunFolder, config: RunConfig, schedule: Callable[[int], RunConfig], beginning: Beginning, dataset: Dataset,
    signals: Signals, scorer: Path | None,
) -> None:  # fmt: skip
    """Train, measure, summarise and draw in a folder that this process holds.

    Args:
        schedule: gives the configuration with as many epochs as a budget allows, by what scores of the examples have cost.
        scorer: the run by which the training examples are scored, if they are.
    """
    broadcast_from_first(write_labels, folder, dataset)
    report_start(config, beginning.mask, dataset)
    report_memory(config, beginning, dataset.train.inputs.device)
    with interruptible(signals):
        scores = scores_for(folder, config, dataset, scorer) if scorer else None
    planned = schedule(scores.macs if scores else 0)
    trained = train(folder, planned, beginning, dataset, signals, scores)
    if config.device == "tpu":
        log.info("XLA on %(platform)s: %(compilations)d graphs compiled for %(executions)d executions", graph_counts())
    started = time.perf_counter()
    with interruptible(signals):
        selected = measure_selected(folder, config, beginning.network, dataset)
        measuring = time.perf_counter() - started
        broadcast_from_first(conclude, folder, config, beginning.network, dataset, trained, selected, measuring=measuring)
    if not config.saved_epochs():
        broadcast_from_first(folder.remove_checkpoints)  # of the states, the solution alone is wanted


def train(
    folder: RunFolder, config: RunConfig, beginning: Beginning, dataset: Dataset, signals: Signals, scores: Scores | None
) -> Trained:
    """Put the loop together and run it, from the checkpoint if there is one."""
    network, written = beginning.network, dict[str, str]()
    place(network, dataset)
    progress, trackers = Progress(), Trackers(config.tracker, folder)
    trainer = Trainer(
        network, dataset, config.train, seed=config.random_state, mask=beginning.mask, first_epoch=config.first_epoch,
        callbacks=callbacks_of(folder, config, written, signals, progress, trackers), subset=subset_of(config, scores),
    )  # fmt: skip
    trainer.mask_owner.meter.add_scoring(beginning.macs + (scores.macs if scores else 0))
    state = broadcast_from_first(load_latest, folder.checkpoint)
    if state is not None:
        resume(trainer, state, folder, written)
        log.info("resuming after %d epochs and %d steps", trainer.epoch, trainer.step)
    if config.device == "tpu":
        forget_graph_counts()  # of the runs before, if this process has trained them
    with progress:
        trainer.fit(signals)
    how = trainer.sparse_step.record(trainer.mask_owner)
    return Trained(written, trainer.mask_owner.meter, world_size(), config.train.n_epochs, trackers, how)


def subset_of(config: RunConfig, scores: Scores | None) -> Subset | None:
    """None where every step and epoch has all its examples."""
    if not (config.subset.chooses or config.subset.paced):
        return None
    values = scores.values if scores else None
    return Subset(config.subset, n_epochs=config.train.n_epochs, seed=config.random_state, scores=values)


def report_start(config: RunConfig, mask: Mask, dataset: Dataset) -> None:
    log.info("%s %s on %s, seed %d", config.mode, config.network.label, config.data.label, config.random_state)
    report_uncounted(config, dataset)
    if config.mode_spec.in_rounds:
        shares = ratios(config.prune.prune_ratio, config.prune.prune_step)
        log.info("round %d, which begins with epoch %d of its training", len(shares), config.first_epoch)
    if config.train.select == "test":
        log.warning("--select test keeps the epoch with the best *test* accuracy, as the paper does: it is biased upwards")
    n = len(dataset.train.labels.cpu().unique())
    if n < dataset.n_classes:
        log.warning(
            "the %d training examples are of %d of %d classes: raise --limit_train", len(dataset.train), n, dataset.n_classes
        )
    if mask:
        changes = " at first" if config.mode_spec.updater else ""
        log.info("sparsity %.4f of the prunable weights%s (asked: %g)", mask.sparsity, changes, config.prune.prune_ratio)
    twice = config.train.differentiated_twice()
    if mask and twice and config.train.sparse_step == "auto" and dataset.train.labels.device.type == "cpu":
        log.info("steps are dense: --reg_type %s is differentiated twice", ",".join(twice))
    for name in mask.empty_layers():
        log.warning("layer %s is pruned to nothing", name.removesuffix(".weight"))


def report_memory(config: RunConfig, beginning: Beginning, device: torch.device) -> None:
    """Warn where gradients and optimiser alone take more memory than there is: the system would kill the run without a word."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in beginning.network.parameters())
    held = 1 - beginning.mask.sparsity if config.train.sparse_step != "0" and beginning.mask else 1.0
    needed, available = size * held * (1 + config.train.tensors_kept()) / 2**20, available_memory_mb()
    if device.type == "cpu" and needed > available:
        log.warning(
            "gradients and optimiser take %.0f MB and %.0f MB of memory are free: the run may be killed; use a smaller "
            "network, or end what else runs here", needed, available,
        )  # fmt: skip


def write_labels(folder: RunFolder, dataset: Dataset) -> None:
    """labels.npz of a noisy run: position in the published file, true and given label of every training example."""
    if dataset.noisy:
        train = dataset.train
        arrays = {"index": train.indices, "true_label": train.true_labels, "given_label": train.labels}
        write_arrays(folder.labels, {name: tensor.cpu().numpy() for name, tensor in arrays.items()})


def measure_more(folder: RunFolder, config: RunConfig, dataset: Dataset, signals: Signals) -> Path:
    """Add the measurements that a finished run does not have yet: of its selected weights and of the states it kept."""
    network = build_network(config.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    place(network, dataset)
    with held_for_measuring(folder, config, dataset.fingerprint, signals):
        snr = broadcast_from_first(lacks_snr, folder, config)
        for epoch in tracked(broadcast_from_first(folder.kept_epochs), "kept states", "states"):
            curvature = config.metrics.due(epoch, config.first_epoch)
            measure_state(folder, config, network, dataset, epoch, snr=snr, curvature=curvature)
        measure_selected(folder, config, network, dataset)
        broadcast_from_first(refresh_summary, folder, config)
        broadcast_from_first(track, folder, config)
    return folder.path

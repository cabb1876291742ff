"""`experiment.py measure`: quantities of saved states, after the fact."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from helper.command_line.effects import without_effect_in
from helper.metrics.main import METRICS
from helper.progress import tracked
from helper.schema.config import Config, FlagError, flag, replace
from helper.schema.values import near_match
from helper.system.devices import choose_device
from helper.system.locks import exclusive
from helper.system.logs import RunLog
from helper.untrusted.texts import shown
from loader.main import load_dataset
from network.main import build_network
from optim.closing import refresh_summary, track
from optim.config import RunConfig
from optim.consent import consent, trust_flag
from optim.folder import RunFolder
from optim.measuring import add_snr, check_examples, measure_selected, measure_state
from optim.model import load_stored, restore, stored_config
from optim.placement import laid_out, place
from study.runs import check_data_files

NAMES = tuple(sorted(METRICS))


def names(value: object) -> str:
    """A comma-separated list of metrics; raises ValueError for an unknown one."""
    words = [word for word in re.split(r"[\s,]+", str(value)) if word]
    for word in words:
        if word not in NAMES:
            raise ValueError(f"expected some of {', '.join(NAMES)}, not {word!r}{near_match(word, NAMES)}")
    if not words:
        raise ValueError(f"expected some of {', '.join(NAMES)}")
    return ",".join(words)


def epochs(value: object) -> str:
    """all, selected, last, or epochs; raises ValueError for anything else."""
    if str(value) in ("all", "selected", "last") or re.fullmatch(r"\d+(,\d+)*", str(value), re.ASCII):
        return str(value)
    raise ValueError("expected all, selected, last, or epochs such as 0,10,30")


@dataclass(frozen=True)
class MeasureConfig(Config):
    """Measure: which quantities of which states, and where the data are now."""

    metrics: str = flag("fisher", f"some of {', '.join(NAMES)}, with commas between", convert=names)
    epochs: str = flag("selected", "selected weights, last or all kept states, or epochs such as 0,10,30", convert=epochs)
    device: str = flag("cpu", "where to compute", short="-dv", choices=("cpu", "cuda"))
    root: str | None = flag(None, "folder of the data files; default: where they were when the run was trained", short="-rt")
    trust_code: bool = trust_flag()


def measure(config: MeasureConfig, *runs: str, **given: list[str]) -> int:
    """Measure saved states of runs and append what is not there yet to metrics.csv, snr.csv and spectra.

    A state is never measured twice in one way: rows are known by the weights' checksum, the metric and its settings, those
    of the SNR by their epoch. How is measured follows the run's own settings, but for the measurement flags given here.
    """
    folders = [RunFolder(Path(path)) for path in runs]
    options = [with_measurements(stored_config(folder), config, given) for folder in folders]
    for folder, option in zip(folders, options, strict=True):
        consent(option, folder.path, trust_code=config.trust_code)
    for folder in folders:
        chosen_epochs(folder, config.epochs)  # refuses before any work
    for words in without_effect_in(options, given):
        print(f"experiment.py: {shown(words)}", file=sys.stderr)
    for folder, option in tracked(list(zip(folders, options, strict=True)), "measuring", "runs"):
        before = folder.measured()
        with exclusive(folder.path), RunLog(folder.log):
            measure_run(folder, option, config.epochs)
        print(f"{shown(folder.path)}: {'measured' if folder.measured() != before else 'everything was there'}")
    return 0


def with_measurements(run: RunConfig, config: MeasureConfig, given: Mapping[str, Sequence[str]]) -> RunConfig:
    """A run's configuration with the measurements that are asked for, and no others.

    Raises:
        FlagError: a flag has several values, or asks for a quantity that --metrics should name.
    """
    for name, values in given.items():
        if name.startswith("save_"):
            raise FlagError(f"--{name}: say it with --metrics {name.removeprefix('save_')}")
        if name in ("metric_every", "snr_every"):
            raise FlagError(f"--{name}: say with --epochs which states are measured")
        if name == "snr_mode":
            raise FlagError("--snr_mode: of saved states only the SNR at fixed weights can be measured")
        if len(values) > 1:
            raise FlagError(f"--{name} {','.join(values)}: one value is measured at a time")
    wanted = config.metrics.split(",")
    flags = {f"save_{name}": name in wanted for name in NAMES} | {"metric_every": 0, "snr_mode": "fixed", "train_eval": "pass"}
    flags |= {"snr_every": None}
    place = {} if config.root is None else {"root": config.root}
    return replace(run, **flags, **place, device=config.device, **{name: values[0] for name, values in given.items()})


def chosen_epochs(folder: RunFolder, text: str) -> tuple[list[int], bool]:
    """(kept epochs to measure, whether the selected weights are to be measured too).

    Raises:
        RuntimeError: no such state.
    """
    kept = folder.kept_epochs()
    selected = text in ("all", "selected")
    if selected and not folder.model.exists():
        if text == "selected":
            raise RuntimeError(f"{folder.path} is not finished and has no selected weights; choose other --epochs")
        selected = False
    wanted = {"all": kept, "selected": [], "last": kept[-1:]}.get(text)
    wanted = [int(epoch) for epoch in text.split(",")] if wanted is None else wanted
    for epoch in wanted:
        if epoch not in kept:
            raise RuntimeError(
                f"{folder.path} keeps no state of epoch {epoch}; there are {', '.join(map(str, kept)) or 'none'}"
            )
    if not wanted and not selected:
        raise RuntimeError(f"{folder.path} keeps no states")
    return wanted, selected


def measure_run(folder: RunFolder, options: RunConfig, epochs: str) -> None:
    """Append what is asked for and not there, and bring the summary of a finished run up to it."""
    device = choose_device(options.device)
    dataset = laid_out(load_dataset(options.data), options.network).to(device)
    check_examples(options, dataset)
    if folder.finished:
        folder.check_files()
        check_data_files(folder, dataset, options.data.root)
    network = build_network(options.network, dataset.input_shape, dataset.n_classes, torch.Generator())
    place(network, dataset)
    wanted, selected = chosen_epochs(folder, epochs)
    for epoch in tracked(wanted, "kept states", "states"):
        measure_state(folder, options, network, dataset, epoch)
    if selected:
        stored = load_stored(folder.model)
        restore(network, folder.model)
        add_snr(folder, options, network, stored.mask.to(device), dataset, stored.epoch)
        measure_selected(folder, options, network, dataset)
    if folder.finished:
        refresh_summary(folder, options)
        track(folder, options)

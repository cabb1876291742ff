"""From the initialisation to the solution on a straight line: what is on the way, and which examples pull along it.

Paper, figures 6, 7 and 8, for a network trained sparse from scratch (Init-S, Sol-S) and the finetuned one with the same
mask (Init-F, Sol-F).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from torch import Tensor

from helper.metrics.alignment import descent_cosines, upper_classes
from helper.metrics.evaluation import evaluate
from helper.metrics.line import State, barrier, between, reestimate_batch_norm
from helper.metrics.parameters import PARAMS
from helper.processes.interruption import checking_signals
from helper.progress import Task, tracked
from helper.schema.config import Config, flag
from helper.schema.values import number
from helper.system.locks import exclusive
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from optim.checkpoint import content_hash
from optim.consent import trust_flag
from optim.model import restore
from optim.modes import modes_that
from study.bias import CHOSEN, bias_noted, marked
from study.comparing.comparison import Comparison, check_comparable, chosen_by_test, open_pair
from study.comparing.interpolation_tables import FILES, Tables, drawn, numbers, read_tables
from study.runs import LoadedRun

log = logging.getLogger(__name__)
DRAWN_ANEW = modes_that(lambda mode: mode.has_mask and not mode.starts_from.of_parent)
FINETUNED = modes_that(lambda mode: mode.has_mask and mode.starts_from.trained and not mode.in_rounds)
PATHS = (("Init-S", "Sol-F"), ("Init-F", "Sol-F"), ("Sol-S", "Sol-F"))
SPLITS = ("train", "test")
UPPER = 0.05  # share of examples with the largest cosines whose classes are counted


def shares(value: Any) -> str:
    """Canonical text of increasing numbers in [0, 1] joined by commas, `0.3,0.9`.

    Raises:
        ValueError: anything else.
    """
    message = "expected increasing numbers between 0 and 1 joined by commas, such as 0.3,0.9"
    try:
        found = [number(word) for word in str(value).split(",")]
    except ValueError:
        raise ValueError(message) from None
    if not all(0 <= share <= 1 for share in found) or sorted(set(found)) != found:
        raise ValueError(message)
    return ",".join(f"{share:g}" for share in found)


@dataclass(frozen=True)
class InterpolateConfig(Config):
    """Interpolation: how finely, at which places the cosines, and within which bounds it is computed."""

    points: int = flag(21, "places on every line, both ends included", low=3)
    cosine_alphas: str = flag("0.3,0.9", "where on the line from Init-S to Sol-F cosines are taken", convert=shares)
    bn_examples: int | None = flag(
        None, "most training examples that re-estimate BatchNorm's statistics at every place; default: all", low=2
    )
    batch_size: int = flag(256, "examples at once in passes without gradients", low=4)
    metric_params: str = flag("layers", "parameters counted: without normalisations, weights, or all", choices=PARAMS)
    memory_mb: int = flag(1000, "most MiB of a chunk of examples whose gradients are taken", low=1)
    device: str = flag("cpu", "where to compute", short="-dv", choices=("cpu", "cuda"))
    root: str | None = flag(None, "folder of the data files now; default: as the runs have stored it", short="-rt")
    figures: bool = flag(True, "draw figures at the end")
    trust_code: bool = trust_flag()

    def alphas(self) -> list[float]:
        return [float(share) for share in self.cosine_alphas.split(",")]


def interpolate(config: InterpolateConfig, scratch: Path | str, finetune: Path | str) -> Path:
    """Figures 6, 7 and 8 for two finished runs with one mask; the folder with tables, figures and result.json.

    The same settings on the same weights again compute nothing; only figures that are missing are drawn.

    Args:
        scratch, finetune: run folders of a run of DRAWN_ANEW and one of FINETUNED, such as sparse-scratch and sparse-finetune.
    Raises:
        RuntimeError: no run, an unfinished one, other modes than these, runs that differ in network, data or mask, a state
            that is missing. DataError: their data are not there.
    """
    started = time.perf_counter()
    keep_freed_memory()
    runs = open_pair(scratch, finetune, config.device, config.root, trust_code=config.trust_code)
    check_pair(*runs)
    states = endpoints(*runs)
    settings = settings_of(config, states, runs[0]) | chosen_by_test({"Sol-S": runs[0], "Sol-F": runs[1]})
    comparison = Comparison("interpolate", runs, settings, FILES)
    with exclusive(comparison.folder):
        result = comparison.stored()
        tables = read_tables(comparison.folder) if result else None
        if tables:
            log.info("%s is finished with these settings", comparison.folder)
            seconds = result["seconds"]
        else:
            comparison.clear()
            tables = measure(config, runs[0], states)
            mark_biased(tables.line, settings.get(CHOSEN, []))
            comparison.write_tables(tables.files())
            seconds, result = time.perf_counter() - started, None
        if result is None or (config.figures and not result["figures"]):
            figures = drawn(tables, bias_noted("", runs)) if config.figures else []
            result = comparison.finish(title_of(runs), figures, numbers(tables), seconds)
    comparison.show(result)
    return comparison.folder


def title_of(runs: tuple[LoadedRun, LoadedRun]) -> str:
    config, sparsity = runs[0].config, runs[0].mask.sparsity
    where = f"{config.data.label}, {config.network.label}, sparsity {sparsity:.3g}"
    return f"On the line to {marked('Sol-F', runs[1].biased)}: {where}"


# ------------------------------------------------------------------------------------------------------- the two runs


def check_pair(scratch: LoadedRun, finetune: LoadedRun) -> None:
    """Raise RuntimeError unless both have one network, data set and mask, the first drawn anew and the second finetuned."""
    for run, modes in ((scratch, DRAWN_ANEW), (finetune, FINETUNED)):
        if run.config.mode not in modes:
            raise RuntimeError(
                f"{run.folder.path} is a {run.config.mode} run; interpolate takes a {' or '.join(DRAWN_ANEW)} run, then the "
                f"{' or '.join(FINETUNED)} run with the same mask"
            )
    check_comparable((scratch, finetune), ("network", "data"))
    if scratch.mask.keys() != finetune.mask.keys() or any(
        not torch.equal(keep, finetune.mask[name]) for name, keep in scratch.mask.items()
    ):
        ratios = " and ".join(f"{run.config.prune.prune_ratio:g}" for run in (scratch, finetune))
        raise RuntimeError(
            f"{scratch.folder.path} and {finetune.folder.path} have different masks (--prune_ratio {ratios}): "
            "give runs pruned in the same way from the same dense parent"
        )


def endpoints(scratch: LoadedRun, finetune: LoadedRun) -> dict[str, State]:
    """Init-S, Sol-S, Init-F and Sol-F, on the runs' device.

    Raises:
        RuntimeError: an initialisation was not kept, or a file is damaged.
    """
    states = {}
    for letter, run in (("S", scratch), ("F", finetune)):
        for kind, path in (("Init", run.folder.epoch_state(0)), ("Sol", run.folder.model)):
            if not path.exists():
                raise RuntimeError(f"{path} is missing: a line begins at the initialisation; repeat the run with --overwrite 1")
            restore(run.network, path)
            states[f"{kind}-{letter}"] = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    return states


def settings_of(config: InterpolateConfig, states: dict[str, State], run: LoadedRun) -> dict[str, Any]:
    """What the numbers depend on: the options, the weights and the mask, data files that are not the published ones."""
    names = ("points", "cosine_alphas", "bn_examples", "batch_size", "metric_params")
    hashes = {name: content_hash(state) for name, state in states.items()} | {"mask": content_hash(run.mask)}
    return {name: getattr(config, name) for name in names} | {"checkpoints": hashes, "data_files": run.dataset.fingerprint}


# ------------------------------------------------------------------------------------------------------- measuring


def measure(config: InterpolateConfig, run: LoadedRun, states: dict[str, State]) -> Tables:
    """Everything, with the network of `run`, which is left with other weights."""
    line = measure_lines(config, run, states)
    cosines = measure_cosines(config, run, states)
    names = run.dataset.class_names
    tables = [upper_classes(row, cosines["label"], len(names), UPPER) for row in cosines["cosines"]]
    for alpha, table in zip(cosines["alphas"], tables, strict=True):
        table.insert(0, "alpha", alpha)
        table.insert(2, "name", list(names))
    return Tables(line, cosines, pandas.concat(tables, ignore_index=True))


def measure_lines(config: InterpolateConfig, run: LoadedRun, states: dict[str, State]) -> pandas.DataFrame:
    """Loss and accuracy on both splits at every place of every path, BatchNorm re-estimated at each of them."""
    rows: list[dict[str, Any]] = []
    ends: dict[str, list[dict[str, float]]] = {}  # what is at a state that several paths share
    with Task("lines between weights", len(PATHS) * config.points, "places") as task:
        for origin, target in PATHS:
            for alpha in (place / (config.points - 1) for place in range(config.points)):
                end = {0.0: origin, 1.0: target}.get(alpha)
                means = ends.get(end)
                if means is None:
                    move(config, run, between(states[origin], states[target], alpha))
                    means = [evaluate(run.network, batches_of(run, split, config.batch_size)) for split in SPLITS]
                if end is not None:
                    ends[end] = means
                for split, found in zip(SPLITS, means, strict=True):
                    path = f"{origin} -> {target}"
                    rows.append({"path": path, "alpha": alpha, "split": split, "loss": found["loss"], "acc": found["acc"]})
                task.advance()
            line = pandas.DataFrame(rows)
            of_path = line[(line["path"] == path) & (line["split"] == "train")]
            height, where, _ = barrier(of_path["alpha"].to_numpy(), of_path["loss"].to_numpy())
            log.info("%s: barrier of the training loss %.4g nats at alpha %.2f", path, height, where)
    return line


def mark_biased(line: pandas.DataFrame, chosen: Sequence[str]) -> None:
    """Name in each row of a line the solutions on its path that were chosen by test accuracy, if any path has one."""
    if chosen:
        line[CHOSEN] = [" ".join(end for end in path.split(" -> ") if end in chosen) for path in line["path"]]


def batches_of(run: LoadedRun, split: str, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    return tracked(run.dataset.batches(getattr(run.dataset, split), batch_size), f"{split} set", "batches")


def measure_cosines(config: InterpolateConfig, run: LoadedRun, states: dict[str, State]) -> dict[str, numpy.ndarray]:
    """The arrays of cosines.npz: at each place on Init-S -> Sol-F, of all training examples, with Sol-F - Init-S."""
    train = run.dataset.train
    direction = {name: states["Sol-F"][name] - states["Init-S"][name] for name, _ in run.network.named_parameters()}
    rows = []
    for alpha in config.alphas():
        move(config, run, between(states["Init-S"], states["Sol-F"], alpha))
        cosines = descent_cosines(
            run.network, run.dataset.examples(train), train.labels, direction, run.mask,
            params=config.metric_params, memory_mb=config.memory_mb, progress=True,
        )  # fmt: skip
        log.info("alpha %g: median cosine %.4f", alpha, cosines.nanmedian().item())
        rows.append(cosines.numpy())
    arrays = {"index": train.indices.cpu().numpy(), "label": train.labels.cpu().numpy()}
    return arrays | {"alphas": numpy.array(config.alphas()), "cosines": numpy.stack(rows)}


def move(config: InterpolateConfig, run: LoadedRun, state: State) -> None:
    """Give the network a state and, if it has BatchNorm, the statistics that it has there on training examples.

    In random batches, because a file may be in an order of its own, of nearly equal sizes: a lone last example has no variance.
    """
    run.network.load_state_dict(state)
    inputs = run.dataset.examples(run.dataset.train)
    rows = torch.randperm(len(inputs), generator=stream(0, "batch norm"))[: config.bn_examples]
    parts = rows.tensor_split(-(-len(rows) // config.batch_size))
    reestimate_batch_norm(run.network, (inputs[part] for part in checking_signals(parts)))

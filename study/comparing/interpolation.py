"""From the initialisation to the solution on a straight line: what is on the way, and which examples pull along it.

Paper, figures 6, 7 and 8, for a network trained sparse from scratch (Init-S, Sol-S) and the finetuned one with the same
mask (Init-F, Sol-F).
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helper.drawing import save_figure
from helper.metrics.alignment import descent_cosines, upper_classes
from helper.metrics.evaluation import evaluate
from helper.metrics.line import State, barrier, between, reestimate_batch_norm
from helper.metrics.parameters import PARAMS
from helper.processes.interruption import checking_signals
from helper.progress import Task, tracked
from helper.schema.config import Config, flag
from helper.schema.values import number
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.system.memory import keep_freed_memory
from helper.system.seeds import stream
from helper.untrusted.arrays import read_arrays
from helper.untrusted.texts import csv_text
from optim.checkpoint import content_hash
from optim.folder import write_arrays
from optim.model import restore
from optim.modes import ModesThat
from study.bias import CHOSEN, bias_noted, marked
from study.comparing.figures_interpolation import FDR, draw_classes, draw_lines_and_cosines, path_names
from study.runs import Run, check_comparable, chosen_by_test, comparison_folder, open_run, show_result

log = logging.getLogger(__name__)
DRAWN_ANEW = ModesThat(lambda mode: mode.has_mask and not mode.starts_from.of_parent)
FINETUNED = ModesThat(lambda mode: mode.has_mask and mode.starts_from.trained)
PATHS = (("Init-S", "Sol-F"), ("Init-F", "Sol-F"), ("Sol-S", "Sol-F"))
SPLITS = ("train", "test")
UPPER = 0.05  # share of examples with the largest cosines whose classes are counted
RESULT, LINE, COSINES, CLASSES = "result.json", "line.csv", "cosines.npz", "classes.csv"
FIGURES = {
    "figure 6": ("figures/figure6", "Loss and accuracy on the line to Sol-F, and how examples' gradients lie to it"),
    "figures 7 and 8": ("figures/figure7_8", "Classes of the examples whose descent points most towards Sol-F"),
}  # fmt: skip


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

    def alphas(self) -> list[float]:
        return [float(share) for share in self.cosine_alphas.split(",")]


@dataclass(frozen=True)
class Tables:
    """What is measured, as the files of the folder hold it."""

    line: pandas.DataFrame  # path, alpha, split, loss (nats), acc; CHOSEN, where a solution is biased: the path's that are
    cosines: dict[str, numpy.ndarray]  # index, label (N,), alphas (A,), cosines (A, N)
    classes: pandas.DataFrame  # alpha, class, name, count, size, expected, p_value, q_value


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
    data = {"root": config.root, "download": False} if config.root else None
    runs = (open_run(scratch, config.device, data), open_run(finetune, config.device, data))
    check_pair(*runs)
    states = endpoints(*runs)
    folder = comparison_folder("interpolate", runs)
    settings = settings_of(config, states, runs[0]) | chosen_by_test({"Sol-S": runs[0], "Sol-F": runs[1]})
    with exclusive(folder):
        stored = read_result(folder)
        tables = read_tables(folder) if stored.get("settings") == settings else None
        if tables:
            log.info("%s is finished with these settings", folder)
            if stored["figures"] or not config.figures:
                show_result(stored, runs, folder)
                return folder
            seconds = stored["seconds"]
        else:
            clear(folder)
            tables = measure(config, runs[0], states)
            mark_biased(tables.line, settings.get(CHOSEN, []))
            write_tables(folder, tables)
            seconds = round(time.perf_counter() - started, 2)
        figures = draw(folder, tables, bias_noted("", runs)) if config.figures else []
        result = {
            "kind": "interpolate",
            "title": title_of(runs),
            "runs": [os.path.relpath(run.folder.path.resolve(), runs[0].results_root) for run in runs],
            "figures": figures,
            "numbers": numbers(tables),
            "settings": settings,
            "seconds": seconds,
        }
        write_atomic(folder / RESULT, json.dumps(result, indent=2) + "\n")
    show_result(result, runs, folder)
    return folder


def title_of(runs: tuple[Run, Run]) -> str:
    config, sparsity = runs[0].config, runs[0].mask.sparsity
    where = f"{config.data.loader_name}, {config.network.label}, sparsity {sparsity:.3g}"
    return f"On the line to {marked('Sol-F', runs[1].biased)}: {where}"


# ------------------------------------------------------------------------------------------------------- the two runs


def check_pair(scratch: Run, finetune: Run) -> None:
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


def endpoints(scratch: Run, finetune: Run) -> dict[str, State]:
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


def settings_of(config: InterpolateConfig, states: dict[str, State], run: Run) -> dict[str, Any]:
    """What the numbers depend on: the options, the weights and the mask, data files that are not the published ones."""
    names = ("points", "cosine_alphas", "bn_examples", "batch_size", "metric_params")
    hashes = {name: content_hash(state) for name, state in states.items()} | {"mask": content_hash(run.mask)}
    return {name: getattr(config, name) for name in names} | {"checkpoints": hashes, "data_files": run.dataset.fingerprint}


# ------------------------------------------------------------------------------------------------------- measuring


def measure(config: InterpolateConfig, run: Run, states: dict[str, State]) -> Tables:
    """Everything, with the network of `run`, which is left with other weights."""
    line = measure_lines(config, run, states)
    cosines = measure_cosines(config, run, states)
    names = run.dataset.class_names
    tables = [upper_classes(row, cosines["label"], len(names), UPPER) for row in cosines["cosines"]]
    for alpha, table in zip(cosines["alphas"], tables, strict=True):
        table.insert(0, "alpha", alpha)
        table.insert(2, "name", list(names))
    return Tables(line, cosines, pandas.concat(tables, ignore_index=True))


def measure_lines(config: InterpolateConfig, run: Run, states: dict[str, State]) -> pandas.DataFrame:
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


def batches_of(run: Run, split: str, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    return tracked(run.dataset.batches(getattr(run.dataset, split), batch_size), f"{split} set", "batches")


def measure_cosines(config: InterpolateConfig, run: Run, states: dict[str, State]) -> dict[str, numpy.ndarray]:
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


def move(config: InterpolateConfig, run: Run, state: State) -> None:
    """Give the network a state and, if it has BatchNorm, the statistics that it has there on training examples.

    In random batches, because a file may be in an order of its own, of nearly equal sizes: a lone last example has no variance.
    """
    run.network.load_state_dict(state)
    inputs = run.dataset.examples(run.dataset.train)
    rows = torch.randperm(len(inputs), generator=stream(0, "batch norm"))[: config.bn_examples]
    parts = rows.tensor_split(-(-len(rows) // config.batch_size))
    reestimate_batch_norm(run.network, (inputs[part] for part in checking_signals(parts)))


# --------------------------------------------------------------------------------------------------- what is shown


def numbers(tables: Tables) -> list[dict[str, Any]]:
    """Rows quantity, of, split, alpha, value: what the figures show, in numbers."""
    rows: list[dict[str, Any]] = []
    names = path_names(tables.line)

    def add(quantity: str, of: str, split: str, alpha: float | None, value: float) -> None:
        finite = float(value) if numpy.isfinite(value) else None
        rows.append({"quantity": quantity, "of": of, "split": split, "alpha": alpha, "value": finite})

    for (path, split), part in tables.line.groupby(["path", "split"], sort=False):
        alphas, losses = part["alpha"].to_numpy(), part["loss"].to_numpy()
        height, where, rise = barrier(alphas, losses)
        add("barrier height (nats)", names[path], split, where, height)
        add("largest loss - larger end's (nats)", names[path], split, float(alphas[losses.argmax()]), rise)
    for alpha, cosines in zip(tables.cosines["alphas"].tolist(), tables.cosines["cosines"], strict=True):
        of, defined = names.get("Init-S -> Sol-F", "Init-S -> Sol-F"), cosines[~numpy.isnan(cosines)]
        add("median cosine", of, "train", alpha, numpy.median(defined) if len(defined) else numpy.nan)
        add("share of examples with a positive cosine", of, "train", alpha, (defined > 0).mean() if len(defined) else numpy.nan)
        add("examples left out: zero gradient", of, "train", alpha, len(cosines) - len(defined))
        classes = tables.classes[tables.classes["alpha"] == alpha]
        found = classes[classes["q_value"] < FDR]
        add("examples in the upper 5 %", of, "train", alpha, classes["count"].sum())
        more = (found["count"] > found["expected"]).sum()
        add(f"classes over-represented in the upper 5 % (q < {FDR})", of, "train", alpha, more)
        add(f"classes under-represented in the upper 5 % (q < {FDR})", of, "train", alpha, len(found) - more)
    return rows


def captions(tables: Tables) -> dict[str, str]:
    line, cosines, names = tables.line, tables.cosines, path_names(tables.line)
    heights = []
    for path, part in line[line["split"] == "train"].groupby("path", sort=False):
        height, where, _ = barrier(part["alpha"].to_numpy(), part["loss"].to_numpy())
        heights.append(f"{height:.3g} on {names[path]} (at {where:.2f})")
    left_out = numpy.isnan(cosines["cosines"]).sum(1)
    places = ", ".join(f"{alpha:g}" for alpha in cosines["alphas"])
    return {
        "figure 6": f"(a, b) Loss and accuracy on straight lines between weights, {line['alpha'].nunique()} places each, "
        "BatchNorm re-estimated at every place on un-augmented training examples. Barrier of the training loss, the largest "
        f"excess over the straight line between the ends' losses, in nats: {'; '.join(heights)}. (c, d) Density and cumulative "
        "distribution over the training examples of the cosine between the negative gradient of the example's loss and "
        f"Sol-F - Init-S, over active parameters, on Init-S -> Sol-F at alpha {places}; examples whose gradient is exactly "
        f"zero have none and are left out ({', '.join(map(str, left_out))}).",
        "figures 7 and 8": "Training examples in the upper 5 % of that cosine by the class of their given label, at alpha "
        f"{places}, and the number expected if they were drawn by chance. Coloured: Fisher's exact test, two-sided, "
        f"Benjamini-Hochberg over the classes, q < {FDR}. Classes with names: all, or those with the smallest p-values.",
    }  # fmt: skip


DRAWN: dict[str, Callable[[Tables, str], Figure]] = {
    "figure 6": lambda tables, note: draw_lines_and_cosines(
        tables.line, tables.cosines["alphas"], tables.cosines["cosines"], note
    ),
    "figures 7 and 8": lambda tables, note: draw_classes(tables.classes, note),
}


def draw(folder: Path, tables: Tables, note: str) -> list[dict[str, str]]:
    """Draw into figures/, each with a note or "" below; the entries of result.json."""
    texts, entries = captions(tables), []
    for name, (stem, title) in tracked(FIGURES.items(), "drawing", "figures"):
        save_figure(DRAWN[name](tables, note), folder / stem)
        entries.append({"id": name, "file": f"{stem}.png", "title": title, "caption": f"{texts[name]} {note}".rstrip()})
    return entries


# ---------------------------------------------------------------------------------------------------------- files


def read_result(folder: Path) -> dict[str, Any]:
    """result.json; empty where it is missing or damaged, or a file that it tells of is gone."""
    try:
        result = json.loads((folder / RESULT).read_text())
        files = [LINE, COSINES, CLASSES, *(figure["file"] for figure in result["figures"])]
        return (
            result
            if all((folder / file).is_file() for file in files) and all(isinstance(row, dict) for row in result["numbers"])
            else {}
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def clear(folder: Path) -> None:
    """Remove the result first, so that the folder counts as unfinished, then its figures."""
    (folder / RESULT).unlink(missing_ok=True)
    for file in folder.glob("figures/*"):
        file.unlink()


def write_tables(folder: Path, tables: Tables) -> None:
    write_atomic(folder / LINE, csv_text(tables.line))
    write_arrays(folder / COSINES, tables.cosines)
    write_atomic(folder / CLASSES, csv_text(tables.classes))


def read_tables(folder: Path) -> Tables | None:
    """None where one of the files is damaged."""
    try:
        cosines = read_arrays(folder / COSINES)
        tables = Tables(pandas.read_csv(folder / LINE), cosines, pandas.read_csv(folder / CLASSES))
        numbers(tables)  # whatever is missing or no number shows there
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and measured anew: %s", folder, error)
        return None
    return tables

"""Finished runs as objects: what the commands of experiment.py open and set side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helper.mask import Mask
from helper.schema.config import flatten
from helper.system.devices import choose_device
from helper.untrusted.texts import shown
from loader.dataset import Dataset
from loader.main import load_dataset
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import load_run
from study.bias import CHOSEN, bias_noted, is_biased, marked

COMPARISONS = "comparisons"  # folder under a results root, beside the data sets' folders


@dataclass(frozen=True)
class Run:
    """A finished run with its selected weights, in eval mode, and its data set, all on one device."""

    folder: RunFolder
    config: RunConfig
    network: nn.Module
    mask: Mask
    dataset: Dataset

    @property
    def name(self) -> str:
        """`mode sparsity`, with the mark of a biased one, for titles and legends."""
        words = self.config.mode + (f" {self.config.prune.prune_ratio:g}" if self.config.mode_spec.has_mask else "")
        return marked(words, self.biased)

    @property
    def biased(self) -> bool:
        return is_biased(flatten(self.config))

    @property
    def results_root(self) -> Path:
        return self.folder.path.resolve().parents[3]

    @property
    def hash8(self) -> str:
        return self.folder.path.resolve().name.rpartition("-")[2]


def open_run(path: Path | str, device: str = "cpu", data: dict[str, Any] | None = None) -> Run:
    """A finished run.

    Args:
        data: data flags that say where the files are now (root, filename, verify_data, download), instead of the stored ones.
    Raises:
        RuntimeError: no run folder, unfinished, damaged, or trained on other data files. DataError: its data are not there.
    """
    folder = RunFolder(Path(path))
    network, mask, config = load_run(folder.path, data)
    where = choose_device(device)
    dataset = load_dataset(config.data).to(where)
    network.to(where, memory_format=torch.channels_last)
    check_data_files(folder, dataset, config.data.root)
    return Run(folder, config, network, mask.to(where), dataset)


def check_data_files(folder: RunFolder, dataset: Dataset, root: str) -> None:
    """Raise RuntimeError where the data files are not those that a run was trained on."""
    then, now = folder.read_summary()["identity"].get("data_files"), dataset.fingerprint
    if then != now:
        raise RuntimeError(
            f"{folder.path} was trained on other data files ({then or 'the published ones'}) than those under "
            f"{root} ({now or 'the published ones'}); say with --root where its files are"
        )


def check_comparable(runs: Sequence[Run], parts: Sequence[str]) -> None:
    """Raise RuntimeError, naming the flag, where runs differ in a part of the configuration that has to be the same.

    Args:
        parts: of RunConfig, such as "network" and "data".
    """
    first, *others = runs
    for other in others:
        for part in parts:
            mine, theirs = (flatten(getattr(run.config, part)) for run in (first, other))
            for name in mine:
                if mine[name] != theirs[name] and name not in ("root", "filename", "verify_data", "download"):
                    raise RuntimeError(
                        f"{first.folder.path} has --{name} {mine[name]} and {other.folder.path} --{name} {theirs[name]}: "
                        f"they have no {part} in common"
                    )


def comparison_folder(kind: str, runs: Sequence[Run]) -> Path:
    """`<results_root>/comparisons/<kind>_<hash8>_<hash8>` of the first run's results root."""
    return runs[0].results_root / COMPARISONS / "_".join([kind, *(run.hash8 for run in runs)])


def chosen_by_test(solutions: Mapping[str, Run]) -> dict[str, list[str]]:
    """What the settings of a comparison say of those of its solutions that are biased; nothing where none is."""
    chosen = [name for name, run in solutions.items() if run.biased]
    return {CHOSEN: chosen} if chosen else {}


def show_result(result: dict[str, Any], runs: Sequence[Run], folder: Path) -> None:
    """Print the numbers of a comparison, the note on runs that are biased, and last its folder."""
    import pandas  # only a result that is shown needs it

    lines = pandas.DataFrame(result["numbers"]).to_string(index=False, float_format="{:.4g}".format).split("\n")
    note = bias_noted("", runs)
    print(*map(shown, [*lines, *([note] if note else []), folder]), sep="\n")

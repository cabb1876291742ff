"""Finished runs with their weights and their data, for what computes with them.

What the parts of study/ call a run, one word for each meaning:

| word         | where                  | what it knows                                                          |
|--------------|------------------------|------------------------------------------------------------------------|
| PlannedRun   | study.sweeping.plan    | the configuration, the folder that it has or will have, its parent     |
| RunStatus    | study.sweeping.status  | name and state, by what lies on disk and by SLURM                      |
| FinishedRun  | study.reporting.collect| flags, summary and tables of a finished run, without weights           |
| StoredRun    | here                   | folder and configuration of a finished run                             |
| LoadedRun    | here                   | the same with network, mask and data set on a device                   |

`optim.folder.RunFolder` knows the files of any run. A `Job` (study.sweeping.job) is a call of run.py, a `Submission`
(study.sweeping.slurm_jobs) a call of sbatch, and a `Row` (study.reporting.page) a line of the page.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from helper.mask import Mask
from helper.schema.config import flatten
from helper.system.devices import choose_device
from loader.dataset import Dataset
from loader.main import load_dataset
from optim.config import RunConfig
from optim.folder import RunFolder, hash_in_name
from optim.model import load_run
from optim.placement import laid_out, place
from study.bias import is_biased, marked

COMPARISONS = "comparisons"  # folder under a results root, beside the data sets' folders
RESULT = "result.json"  # in the folder of a comparison, written last


@dataclass(frozen=True)
class StoredRun:
    """A finished run by its folder and its configuration."""

    folder: RunFolder
    config: RunConfig

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
        return hash_in_name(self.folder.path.resolve())


@dataclass(frozen=True)
class LoadedRun(StoredRun):
    """A finished run with its selected weights, in eval mode, and its data set, all on one device."""

    network: nn.Module
    mask: Mask
    dataset: Dataset


def open_run(
    path: Path | str, device: str = "cpu", data: dict[str, Any] | None = None, *, trust_code: bool = False
) -> LoadedRun:
    """A finished run.

    Args:
        trust_code: see `load_run`.
        data: data flags that say where the files are now (root, filename, verify_data, download), instead of the stored ones.
    Raises:
        RuntimeError: no run folder, unfinished, damaged, or trained on other data files. DataError: its data are not there.
    """
    folder = RunFolder(Path(path))
    network, mask, config = load_run(folder.path, data, trust_code=trust_code)
    where = choose_device(device)
    dataset = laid_out(load_dataset(config.data), config.network).to(where)
    place(network, dataset)
    check_data_files(folder, dataset, config.data.root)
    return LoadedRun(folder, config, network, mask.to(where), dataset)


def check_data_files(folder: RunFolder, dataset: Dataset, root: str) -> None:
    """Raise RuntimeError where the data files are not those that a run was trained on."""
    then, now = folder.read_summary()["identity"].get("data_files"), dataset.fingerprint
    if then != now:
        raise RuntimeError(
            f"{folder.path} was trained on other data files ({then or 'the published ones'}) than those under "
            f"{root} ({now or 'the published ones'}); say with --root where its files are"
        )

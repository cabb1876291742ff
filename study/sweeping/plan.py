"""A YAML file of flags and grids -> the runs of a sweep, each once and after its parent.

```yaml
title: Figure 1
config: ../presets/cifar100_resnet32x4.yaml          # flags of every run: a file, seen from this one,
flags: {n_epochs: 250, n_epochs_pretrain: 200}       # and more of them
grid:                                                # one mapping or a list of them
  - {mode: [sparse-finetune, sparse-scratch], prune_ratio: [0.9, 0.95], random_state: [1, 2, 3]}
  - {mode: sparse-scratch, prune_ratio: 0.9, n_epochs: 450, random_state: [1, 2, 3]}
```
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.command_line.effects import misplaced
from helper.command_line.flag_files import read_flags
from helper.metrics.main import METRICS
from helper.schema.config import FlagError, all_flags, flatten, replace, unflatten
from helper.schema.values import near_match
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import core_value
from loader.main import DataConfig, fingerprint_of
from optim.chain import keeping, runs_needed
from optim.config import RunConfig, usual_measurements
from optim.folder import RunFolder
from optim.identity import PATHS, run_folder
from optim.measuring import missing_metrics

KEYS = ("title", "config", "flags", "grid")
USUAL = {"figures": False}  # where neither a file nor the command line says: the report draws what many runs show together
ONE_RUN = {"overwrite": "a sweep leaves finished runs as they are", "load_pretrain": "a sweep trains each dense parent once"}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: where it goes, and which other run of the sweep it starts from.

    Attributes:
        generation: a parent's is less.
    """

    config: RunConfig
    folder: RunFolder
    parent: str | None
    generation: int = 0

    @property
    def name(self) -> str:
        """`data/network/mode/slug-hash`, below the results root."""
        return self.folder.path.relative_to(self.config.results_root).as_posix()

    @property
    def group(self) -> str:
        """`data/network`: the first two parts of its name."""
        return f"{self.config.data.label}/{self.config.network.label}"

    @property
    def finished(self) -> bool:
        """Trained, everything measured that is asked for of the selected weights, and summarised."""
        return self.folder.finished and not missing_metrics(self.folder, self.config.metrics) and self.folder.summarised

    @property
    def begun(self) -> bool:
        return self.folder.checkpoint.exists()

    def flags(self) -> list[str]:
        """The words of run.py's command line that make this run, without flags that it would refuse for other runs' sake."""
        defaults = {name: field.default for name, field in all_flags(RunConfig).items()}
        defaults |= usual_measurements(self.config.device)
        changed = {name: value for name, value in flatten(self.config).items() if value != defaults[name]}
        changed = {name: value for name, value in changed.items() if not misplaced(self.config, name)}
        return [
            w for name, value in changed.items() for w in (f"--{name}", str(int(value) if isinstance(value, bool) else value))
        ]


def title_in(path: Path) -> str | None:
    """The title that a sweep's file gives itself, in one line. Raises FlagError: it is no text."""
    title = read_flags(path).get("title")
    if title is not None and (not isinstance(title, (str, int, float)) or not str(title).strip()):
        raise FlagError(f"{path}: title: expected a text, such as Figure 1")
    return None if title is None else one_line(str(title).strip())


def read_sweep(path: Path, given: Mapping[str, Sequence[str]]) -> list[RunConfig]:
    """The runs that a file describes, in its order.

    Args:
        given: flags from the command line with one or more values; they take the place of the file's.
    Raises:
        FlagError: unreadable, an empty grid, an unknown flag, a value that is not allowed; names file and flag.
    """
    content = read_flags(path)
    for key in content:
        if key not in KEYS:
            raise FlagError(f"{path}: {key}: not one of the keys {', '.join(KEYS)}{near_match(key, KEYS)}")
    flags = read_flags(path.parent / str(content["config"])) if content.get("config") else {}
    given_flags, grids = content.get("flags") or {}, content.get("grid") or []
    if not isinstance(given_flags, dict):
        raise FlagError(f"{path}: flags: expected a mapping of flags to values")
    flags |= given_flags
    grids = [grids] if isinstance(grids, dict) and grids else grids
    if not isinstance(grids, list) or not all(isinstance(grid, dict) and grid for grid in grids):
        raise FlagError(f"{path}: grid: expected a mapping of flags to values, or a list of such mappings")
    if not grids:
        raise FlagError(f"{path}: grid: is empty; name at least one flag with its values, such as random_state: [1, 2, 3]")
    for name, value in flags.items():
        if isinstance(value, (list, dict)):
            raise FlagError(f"{path}: {name} has several values; put it into grid")
    try:
        return [config for grid in grids for config in expand({**USUAL, **flags, **grid, **given})]
    except FlagError as error:
        raise FlagError(f"{path}: {error}") from None


def flags_named(path: Path) -> set[str]:
    """The flags that a file which `read_sweep` has read gives itself, without those of the file under its `config`."""
    content = read_flags(path)
    grids = content["grid"] if isinstance(content["grid"], list) else [content["grid"]]
    return set(content.get("flags") or {}).union(*grids)


def expand(values: Mapping[str, Any]) -> list[RunConfig]:
    """The cartesian product over every flag that has a list of values; the last flag varies fastest.

    Raises:
        FlagError: a flag without any value, an unknown one, a value that is not allowed.
    """
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in values.items()}
    for name, several in lists.items():
        if not several:
            raise FlagError(f"grid: {name} has no values")
    configs = [
        unflatten(RunConfig, dict(zip(lists, combination, strict=True))) for combination in itertools.product(*lists.values())
    ]
    for name in ("random_state", "random_state_pretrain"):
        if any(is_zero(seed) for seed in lists.get(name, ())):
            raise FlagError(f"{name} 0 draws another seed at every call; a sweep needs seeds that can be found again")
    for name, reason in ONE_RUN.items():
        if any(getattr(config, name) != all_flags(RunConfig)[name].default for config in configs):
            raise FlagError(f"{name}: {reason}")
    return configs


def is_zero(seed: Any) -> bool:
    """Whether a value, or a word of a file, is the number 0, however it is written."""
    value = core_value(str(seed).strip())
    return not isinstance(value, bool) and value == 0


def kept_as_either(config: RunConfig, other: RunConfig) -> RunConfig:
    """The first of two configurations of one run, with what is to be evaluated, measured, drawn and kept in either."""
    config = keeping(measured_as_either(config, other), other.saved_epochs())
    if other.subset.save_forgetting and not config.subset.save_forgetting:
        config = replace(config, save_forgetting=True)
    every = math.gcd(config.train.eval_every, other.train.eval_every)
    if every < config.train.eval_every:
        config = replace(config, eval_every=every)
    return replace(config, figures=True) if other.figures and not config.figures else config


def measured_as_either(config: RunConfig, other: RunConfig) -> RunConfig:
    """The first of two configurations of one run, with what is to be measured in either, at the epochs of both.

    How it is measured the first one says; of what it does not measure, the other.
    """
    own, others = config.metrics, other.metrics
    if own == others:
        return config
    switches = [f.name for f in dataclasses.fields(own) if f.name.startswith("save_")]
    changes = {name: getattr(own, name) or getattr(others, name) for name in switches}
    kept = {name for metric in METRICS.values() if getattr(own, metric.switch) for name in metric.flags}
    for metric in METRICS.values():
        if getattr(others, metric.switch) and not getattr(own, metric.switch):
            changes |= {name: getattr(others, name) for name in metric.flags if name not in kept}
    every = math.gcd(own.metric_every, others.metric_every)
    return replace(config, **changes | {"metric_every": every})


def plan(configs: Sequence[RunConfig], fingerprint: Callable[[DataConfig], str | None] = fingerprint_of) -> list[PlannedRun]:
    """Every run once and after its parent; parents that the sweep does not name itself are among them.

    Args:
        fingerprint: content hash of data files that are not the published ones, see `fingerprint_of`.
    Raises:
        DataError: data files missing or damaged. FlagError: several results roots, or no weights at a given path.
    """
    roots = {config.results_root for config in configs}
    if len(roots) > 1:
        raise FlagError(f"results_root: a sweep has one, not {', '.join(sorted(roots))}")
    found: dict[str, PlannedRun] = {}
    named = set[str]()  # by the sweep itself: these say how they are measured

    for config in configs:
        for name in PATHS:
            if getattr(config, name) and config.mode_spec.needs_parent and not Path(getattr(config, name)).exists():
                raise FlagError(f"--{name} {getattr(config, name)}: does not exist")
        parent = None
        for run in (*runs_needed(config), config):
            folder = run_folder(run, fingerprint(run.data))
            planned = PlannedRun(run, folder, parent and parent.name, generation_of(run, parent))
            if planned.name in found:
                former = found[planned.name]
                pair = (run, former.config) if run is config and planned.name not in named else (former.config, run)
                planned = dataclasses.replace(former, config=kept_as_either(*pair))
            if run is config:
                named.add(planned.name)
            parent = found[planned.name] = planned
    return sorted(found.values(), key=lambda run: run.generation)


def generation_of(config: RunConfig, parent: PlannedRun | None) -> int:
    """One more than the parent's; of a run without one in the sweep 0, or 1 if its parent is given by a path."""
    return parent.generation + 1 if parent else int(config.mode_spec.needs_parent)

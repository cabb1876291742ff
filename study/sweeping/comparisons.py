"""Two settings that are to be told apart, with a run of each for every seed."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helper.schema.config import FlagError, all_flags, digest, flag_fields, flatten, replace
from optim.config import ParentConfig, RunConfig
from optim.folder import RunFolder
from optim.identity import PATHS

SEEDS = ("random_state", "random_state_pretrain")
PARTS = {"acc_train": "train", "acc_val": "val", "acc_test": "test"}  # of whose examples an accuracy is a share


def decisive() -> list[str]:
    """Flags that decide which weights come out, but for the seeds: the run's own and those of its dense parent."""
    own = [name for name, field in all_flags(RunConfig).items() if field.metadata["flag"].identity]
    return [name for name in dict.fromkeys([*own, *(f.name for f in flag_fields(ParentConfig)), *PATHS]) if name not in SEEDS]


@dataclass(frozen=True)
class Comparison:
    """Two settings, the first against the second.

    Attributes:
        label: in what it differs from other comparisons; empty for the only one.
        names: of both settings, by the flags in which they differ.
        sides: of both settings {seed: configuration}.
    """

    label: str
    names: tuple[str, str]
    sides: tuple[Mapping[int, RunConfig], Mapping[int, RunConfig]]

    @property
    def title(self) -> str:
        """`prune_ratio 0.9: mode sparse-finetune less mode sparse-scratch`."""
        return f"{self.label}: {' less '.join(self.names)}".removeprefix(": ")

    @property
    def seeds(self) -> list[int]:
        """Those that both settings have, in the order in which they were named."""
        return [seed for seed in self.sides[0] if seed in self.sides[1]]

    def key(self, value: str) -> str:
        """8 hex digits of the two settings, whatever their seeds, and of what is compared."""
        return digest({"value": value, "sides": [settings_of(next(iter(side.values()))) for side in self.sides]})

    def at(self, seed: int) -> tuple[RunConfig, RunConfig]:
        """The runs of a seed, also of one that is to come, whose dense parent has that seed as well."""
        seeds = {"random_state": seed, "random_state_pretrain": None}
        first, second = (side.get(seed) or replace(next(iter(side.values())), **seeds) for side in self.sides)
        return first, second

    def with_more(self, n: int) -> "Comparison":
        """With so many more seeds, which follow the largest one there is."""
        last = max(seed for side in self.sides for seed in side)
        new = {seed: self.at(seed) for seed in range(last + 1, last + 1 + n)}
        first, second = ({**side, **{seed: pair[i] for seed, pair in new.items()}} for i, side in enumerate(self.sides))
        return dataclasses.replace(self, sides=(first, second))

    def runs(self) -> list[RunConfig]:
        return [run for side in self.sides for run in side.values()]


def settings_of(config: RunConfig) -> dict[str, Any]:
    flat = flatten(config)
    return {name: flat[name] for name in decisive()}


def compared(configs: Iterable[RunConfig], between: str) -> list[Comparison]:
    """The comparisons that some runs make: of the only two settings among them, or of those that differ in one flag alone.

    Raises:
        FlagError: there is one setting, or more than two that are equal but for the flag; a seed of the parent's own.
    """
    if between not in decisive():
        raise FlagError(f"--between {between}: expected a flag that decides on the weights, such as mode or prune_ratio")
    groups: dict[str, dict[int, RunConfig]] = {}
    for config in configs:
        shared = [name for name in PATHS if getattr(config, name)]
        shared += [] if config.parent.random_state_pretrain in (None, config.random_state) else ["random_state_pretrain"]
        if shared:
            raise FlagError(f"--{shared[0]}: seeds that share a dense solution do not tell how far others would be apart")
        groups.setdefault(json.dumps(settings_of(config), sort_keys=True), {})[config.random_state] = config
    settings = {key: json.loads(key) for key in groups}
    if len(groups) < 2:
        raise FlagError("a gap is one between two settings, such as mode: [sparse-finetune, sparse-scratch]; there is one")
    pairs = [list(groups)] if len(groups) == 2 else by_others(settings, between)
    varying = differing(list(settings.values()))
    found = []
    for first, second in pairs:
        own = differing([settings[first], settings[second]])
        label = ", ".join(f"{name} {settings[first][name]}" for name in varying if name not in own)
        names = tuple(", ".join(f"{name} {settings[key][name]}" for name in own) for key in (first, second))
        found.append(Comparison(label, names, (groups[first], groups[second])))
    return found


def by_others(settings: Mapping[str, Mapping[str, Any]], between: str) -> list[list[str]]:
    """Pairs of settings that are equal but for one flag."""
    alike: dict[str, list[str]] = {}
    for key, options in settings.items():
        others = {name: value for name, value in options.items() if name != between}
        alike.setdefault(json.dumps(others, sort_keys=True), []).append(key)
    for keys in alike.values():
        if len(keys) != 2:
            values = ", ".join(str(settings[key][between]) for key in keys)
            cure = "give two for each setting of the others, or name another flag with --between"
            raise FlagError(f"--between {between}: {len(keys)} settings differ in it alone ({values}); {cure}")
    return list(alike.values())


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Flags of which not all have the same value."""
    return [name for name in settings[0] if any(one[name] != settings[0][name] for one in settings)]


def paired_values(pairs: Iterable[Sequence[RunFolder]], name: str) -> tuple[list[list[float]], int | None]:
    """(a number of both runs of each pair, of how many examples it is a share at least; None: of none).

    Raises:
        RuntimeError, FlagError: as `value_of`.
    """
    pairs = list(pairs)
    counts = [n for pair in pairs for folder in pair if (n := examples_of(folder, name))]
    return [[value_of(folder, name) for folder in pair] for pair in pairs], min(counts, default=None)


def value_of(folder: RunFolder, name: str) -> float:
    """A number of a finished run's summary: an accuracy, a loss, or a metric's value.

    Raises:
        RuntimeError: the summary is damaged, or the number is not finite. FlagError: it has no such number.
    """
    summary = folder.read_summary()
    known = {key: value for key, value in summary.items() if key.startswith(("acc_", "loss_"))}
    known |= {key: float(found["value"]) for key, found in summary["metrics"].items()}
    if name not in known:
        raise FlagError(f"{name}: {folder.path} has no number of that name; there are {', '.join(sorted(known))}")
    if not math.isfinite(known[name]):
        raise RuntimeError(
            f"{folder.path}: {name} is {known[name]}, which is compared with nothing; repeat or leave out that run"
        )
    return known[name]


def examples_of(folder: RunFolder, name: str) -> int | None:
    """Of how many examples an accuracy is a share; None of another quantity, or where the summary does not say."""
    return folder.read_summary().get("examples", {}).get(PARTS.get(name, ""))

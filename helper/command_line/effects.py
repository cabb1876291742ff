"""Flags that were given and have no effect beside the others."""

from collections.abc import Collection, Sequence
from typing import Any

from helper.command_line.help import needs, shown
from helper.schema.config import PROCESSES, Config, Flag, FlagError, all_flags, flatten


def without_effect(config: Config, given: Collection[str], n_processes: int = 1) -> list[str]:
    """A line for each flag that was given and does nothing beside the others: with which of them, and when it would act.

    Args:
        n_processes: that train a run together.
    """
    flat, lines = flatten(config) | {PROCESSES: n_processes}, []
    for name, each in all_flags(type(config)).items():
        spec: Flag = each.metadata["flag"]
        if name in given and not spec.acts(flat):
            against = {
                other: flat[other] for wanted in spec.when for other, values in wanted.items() if flat[other] not in values
            }
            others = ", ".join(circumstance(other, value) for other, value in against.items())
            lines.append(f"--{name} {shown(flat[name])} has no effect with {others}; it acts {needs(spec)}")
    return lines


def without_effect_in(configs: Sequence[Config], given: Collection[str], n_processes: int = 1) -> list[str]:
    """`without_effect` of flags that do nothing in any of several configs; how it is with the first is said."""
    if not configs:
        return []
    idle = [name for name in given if not any(acts(config, name, n_processes) for config in configs)]
    return without_effect(configs[0], idle, n_processes)


def refuse_misplaced(configs: Sequence[Config], given: Collection[str], n_processes: int = 1) -> None:
    """Raise FlagError for a strict flag that was given and does nothing in any of the configs."""
    if configs:
        wrong = [name for name in given if all(misplaced(config, name, n_processes) for config in configs)]
        for line in without_effect(configs[0], wrong, n_processes):
            raise FlagError(line)


def misplaced(config: Config, name: str, n_processes: int = 1) -> bool:
    """Whether a flag is strict and does nothing in a config."""
    return all_flags(type(config))[name].metadata["flag"].strict and not acts(config, name, n_processes)


def acts(config: Config, name: str, n_processes: int) -> bool:
    spec: Flag = all_flags(type(config))[name].metadata["flag"]
    return spec.acts(flatten(config) | {PROCESSES: n_processes})


def circumstance(name: str, value: Any) -> str:
    """What a condition finds, in words."""
    if name == PROCESSES:
        return "one process" if value == 1 else f"{value} processes"
    return f"--{name} {shown(value)}"

"""YAML files of flags -> their values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from helper.schema.config import Config, FlagError, all_flags, checked, flag_fields, parts
from helper.schema.values import near_match
from helper.untrusted.reasons import reason_of
from helper.untrusted.yaml_text import read_yaml

MOST_BYTES = 1 << 24  # of a file of flags


def read_flags(path: Path, cls: type[Config] | None = None) -> dict[str, Any]:
    """The flags, or other names, that a YAML file maps to values; words are left as they stand there, see `read_yaml`.

    Args:
        cls: the config class whose flags they have to be, with values that it admits; their canonical form is returned.
    Raises:
        FlagError: unreadable, something else than a mapping of names, an unknown flag, a value that is not admitted; the
            message begins with the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise FlagError(f"{path}: cannot be read as YAML: it is larger than {MOST_BYTES >> 20} MiB")
        values = read_yaml(content.decode(), words=True)
    except OSError as error:
        raise FlagError(f"{path}: cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise FlagError(f"{path}: cannot be read as YAML: it is no UTF-8 text") from None
    except yaml.YAMLError as error:
        raise FlagError(f"{path}: cannot be read as YAML: {reason_of(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise FlagError(f"{path}: expected a mapping of names to values, such as lr: 0.1")
    if cls is None:
        return values
    if "config" in values:
        raise FlagError(f"{path}: has a config of its own; give --config twice, the later file overrides")
    for name in values:
        if name not in all_flags(cls):
            raise FlagError(f"{path}: {name}: no such flag{near_match(f'--{name}', [f'--{n}' for n in all_flags(cls)])}")
    try:
        return canonical(cls, values)
    except FlagError as error:
        raise FlagError(f"{path}: {error}") from None


def canonical(cls: type[Config], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Values of flags, each by itself, as they are kept. Raises FlagError: one is not admitted, or unknown."""
    found = {f.name: checked(cls, f, flags[f.name]) for f in flag_fields(cls) if f.name in flags}
    for part in parts(cls).values():
        found |= canonical(part, flags)
    return found

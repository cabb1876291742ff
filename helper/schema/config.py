"""Flags live on the fields of frozen dataclasses; here they are declared, checked and hashed.

A part of the program (data, network, pruning, ...) owns one `Config` subclass. `helper.command_line` turns the fields of a
nested set of them into the flags of a command, `flatten` gives the flat mapping that `config.yaml` stores, and `identity` the
subset that decides which weights come out of a run.
"""

import dataclasses
import functools
import hashlib
import json
import math
import operator
import typing
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from helper.schema.values import integer, near_match, number, one_of, several_of, switch
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import core_kind


class FlagError(ValueError):
    """A flag has a wrong value or contradicts another; the message names the flag."""


@dataclass(frozen=True)
class Above:
    """Numbers above a bound, for `when`; None, which leaves a flag at what it does by itself, is not among them."""

    bound: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and value > self.bound


PROCESSES = "processes"  # in `when` beside flags: how many train the run together
Condition = dict[str, Container]  # {other flag: values of it}


@dataclass(frozen=True)
class Flag:
    """What a dataclass field says about its flag; made by `flag`."""

    help: str
    short: str | None
    choices: typing.Collection[str] | None
    many: bool
    convert: typing.Callable[[Any], Any] | None
    low: float | None
    high: float | None
    below: float | None
    when: tuple[Condition, ...]
    identity: bool
    always_counts: bool
    strict: bool
    whole: bool

    def acts(self, flat: dict[str, Any]) -> bool:
        """Whether the flag has any effect beside these values of all flags."""
        return any(all(flat[other] in values for other, values in condition.items()) for condition in self.when)


def flag(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: typing.Collection[str] | None = None,
    many: bool = False,
    convert: typing.Callable[[Any], Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    when: Condition | Sequence[Condition] = (),
    identity: bool = True,
    always_counts: bool = False,
    strict: bool = False,
    whole: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        choices: allowed words, usually a registry's keys.
        many: several of them may be given, with commas between; the default is the word for none of them.
        convert: brings a value into its canonical form, or raises ValueError.
        low, high, below: `low <= value <= high`, `value < below`.
        when: {other flag: values of it} with which this flag has any effect, or several such mappings, one of which is
            enough; otherwise it does not count in `identity`, and one who gives it is told.
        identity: whether it changes the trained weights.
        always_counts: in `identity` also where it has no effect; whoever gives it there is told all the same.
        strict: whoever gives it where it has no effect is refused, for they must mean another run.
        whole: one value may have commas, so that a sweep's command line does not cut it into several.
    """
    conditions = (when,) if isinstance(when, dict) else tuple(when) or ({},)
    spec = Flag(help, short, choices, many, convert, low, high, below, conditions, identity, always_counts, strict, whole)
    return dataclasses.field(default=default, metadata={"flag": spec})


class Config:
    """Base of the option dataclasses: every value is converted and checked when one is made.

    Raises:
        FlagError: a value that its flag does not admit.
    """

    def __post_init__(self) -> None:
        for field in flag_fields(type(self)):
            self._set(field.name, checked(type(self), field, getattr(self, field.name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone but the canonical form made at construction


# ---------------------------------------------------------------------------------------------------- value checks


WORDS = {bool: "1 or 0", int: "an integer", float: "a number", str: "a word"}
CONVERTERS = {bool: switch, int: integer, float: lambda value: float(number(value)), str: str}


def checked(cls: type, field: dataclasses.Field, value: Any) -> Any:
    """The value of a flag in its canonical form, in which defaults are written.

    Raises:
        FlagError: naming flag, value and what is allowed.
    """
    if value is field.default:  # most of the values of a sweep's many configs
        return value
    spec: Flag = field.metadata["flag"]
    kind, optional = value_type(cls, field)
    given, value = value, None if isinstance(value, str) and value and core_kind(value) == "null" else value
    if optional and value is None:
        return None
    try:
        if (
            value is None
            or (kind is float and isinstance(value, bool))
            or (isinstance(value, (dict, list)) and not spec.convert)
        ):
            raise ValueError(f"expected {WORDS[kind]}")
        result = (spec.convert or CONVERTERS[kind])(value)
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) and "expected" in str(error) else ""
        reason = reason or (str(error) if spec.convert else f"expected {WORDS[kind]}")
        raise FlagError(f"--{field.name} {one_line(given, 100)}: {reason}") from None
    if spec.choices is not None:
        try:
            result = several_of(spec.choices, result, field.default) if spec.many else one_of(spec.choices, result)
        except ValueError as error:
            raise FlagError(f"--{field.name} {one_line(given, 100)}: {error}") from None
    limits = ((spec.low, operator.ge, "at least"), (spec.high, operator.le, "at most"), (spec.below, operator.lt, "below"))
    conditions = [(holds(result, bound), f"{words} {bound}") for bound, holds, words in limits if bound is not None]
    if kind is str:  # it goes into paths, files and messages
        conditions.append((result.isprintable(), "text without control characters or stray bytes"))
    if kind is float:
        conditions.append((math.isfinite(result), "a finite number"))
    if not all(met for met, _ in conditions):
        raise FlagError(f"--{field.name} {one_line(given, 100)}: must be {' and '.join(text for _, text in conditions)}")
    return result


def value_type(cls: type, field: dataclasses.Field) -> tuple[type, bool]:
    """(type, whether None is allowed) of an annotation such as `int` or `int | None`."""
    hint = hints_of(cls)[field.name]
    members = typing.get_args(hint)
    if type(None) in members:
        return next(m for m in members if m is not type(None)), True
    return hint, False


# ----------------------------------------------------------------------------------------- nested configs <-> flat


@functools.cache  # a sweep makes thousands of configs of a few classes
def hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def flag_fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if "flag" in f.metadata]


@functools.cache
def parts(cls: type) -> dict[str, type]:
    """{field name: Config subclass} of the parts nested in a config class."""
    hints = hints_of(cls)
    return {
        f.name: hints[f.name]
        for f in dataclasses.fields(cls)
        if isinstance(hints[f.name], type) and issubclass(hints[f.name], Config)
    }


@functools.cache
def all_flags(cls: type) -> dict[str, dataclasses.Field]:
    """{flag name: field} of a config class and its parts."""
    found = {f.name: f for f in flag_fields(cls)}
    for part in parts(cls).values():
        found |= all_flags(part)
    return found


def flatten(config: Config) -> dict[str, Any]:
    """{flag name: value} of a config and its parts, as stored in config.yaml."""
    flat = {f.name: getattr(config, f.name) for f in flag_fields(type(config))}
    for name in parts(type(config)):
        flat |= flatten(getattr(config, name))
    return flat


def unflatten(cls: type, flat: dict[str, Any]) -> Any:
    """The inverse of `flatten`; missing flags take their defaults.

    Raises:
        FlagError: an unknown name, with the nearest known one, or a value that is not allowed.
    """
    known = all_flags(cls)
    for name in flat:
        if name not in known:
            raise FlagError(f"--{name}: no such flag{near_match(name, known)}")
    own = {f.name: flat[f.name] for f in flag_fields(cls) if f.name in flat}
    nested = {
        name: unflatten(part, {k: v for k, v in flat.items() if k in all_flags(part)}) for name, part in parts(cls).items()
    }
    return cls(**own, **nested)


def unknown(cls: type, flat: dict[str, Any]) -> list[str]:
    """What stands in a mapping of flags and no part declares: flags, and words of those that name an entry of a registry."""
    known, found = all_flags(cls), []
    for name, value in flat.items():
        if name not in known:
            found.append(f"--{name}")
            continue
        spec: Flag = known[name].metadata["flag"]
        words = value.split(",") if spec.many and isinstance(value, str) else [value]
        if spec.choices is not None and not all(word in spec.choices or word == known[name].default for word in words):
            found.append(f"--{name} {value}")
    return found


def replace(config: Any, **changes: Any) -> Any:
    """A copy with some flags changed, wherever in the parts they live."""
    return unflatten(type(config), flatten(config) | changes)


def identity(config: Config) -> dict[str, Any]:
    """The options that change the trained weights: not default, and with an effect in this configuration."""
    flat = flatten(config)
    return {
        name: flat[name]
        for name, field in all_flags(type(config)).items()
        if flat[name] != field.default and counts(field.metadata["flag"], flat)
    }


def counts(spec: Flag, flat: dict[str, Any]) -> bool:
    """Whether a flag's value tells one run from another beside these values of all flags."""
    return spec.identity and (spec.always_counts or spec.acts(flat))


def digest(payload: dict[str, Any]) -> str:
    """8 hex digits of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:8]

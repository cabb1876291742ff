"""Flags live on the fields of frozen dataclasses; here they are declared, checked, parsed and hashed.

A part of the program (data, network, pruning, ...) owns one `Config` subclass. `parse` turns the fields of a nested set
of them into command-line flags, `flatten` gives the flat mapping that `config.yaml` stores, and `identity` the subset
that decides which weights come out of a run.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import math
import operator
import re
import typing
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, set_dumper, set_loader

from helper.untrusted import one_line, read_yaml


def read_flags(text: str) -> Any:
    """The values of a --config file. Raises YAMLError: it is none, or names a further file."""
    values = read_yaml(text)
    if isinstance(values, dict) and "config" in values:
        raise yaml.YAMLError("it has a config of its own; give --config twice, the later file overrides")
    return values


FLAGS_FILE = "flags"  # how --config is read
set_loader(FLAGS_FILE, read_flags, exceptions=(yaml.YAMLError,))
set_dumper(FLAGS_FILE, lambda flags: yaml.safe_dump(flags, allow_unicode=True, sort_keys=False))


class FlagError(ValueError, ArgumentTypeError):
    """A flag has a wrong value or contradicts another; the message names the flag."""


@dataclass(frozen=True)
class Flag:
    """What a dataclass field says about its flag; made by `flag`."""

    help: str
    short: str | None
    choices: typing.Collection[str] | None
    convert: typing.Callable[[Any], Any] | None
    low: float | None
    high: float | None
    below: float | None
    when: dict[str, tuple]
    identity: bool


def flag(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: typing.Collection[str] | None = None,
    convert: typing.Callable[[Any], Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    when: dict[str, tuple] | None = None,
    identity: bool = True,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        choices: allowed words, usually a registry's keys.
        convert: brings a value into its canonical form, or raises ValueError.
        low, high, below: `low <= value <= high`, `value < below`.
        when: {other flag: values of it} with which this flag has any effect; otherwise it does not count in `identity`.
        identity: whether it changes the trained weights.
    """
    spec = Flag(help, short, choices, convert, low, high, below, when or {}, identity)
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


def near_match(word: str, words: typing.Iterable[str]) -> str:
    """`; did you mean ...?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def switch(value: Any) -> bool:
    """0/1 and true/false, as numbers or words."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError("expected 1 or 0")
    return words[str(value).lower()]


def integer(value: Any) -> int:
    """An int, or a float or text that is one; 5.5 and True are not."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("expected an integer")
    return int(value)


def dashed(value: Any) -> str:
    """Canonical text of a dash-separated list of positive integers, `128-64`; empty for none.

    Raises:
        ValueError: anything else.
    """
    numbers = list(value) if isinstance(value, (list, tuple)) else [n for n in str(value).split("-") if str(value)]
    try:
        return "-".join(str(positive(n)) for n in numbers)
    except ValueError:
        raise ValueError("expected positive integers joined by dashes, such as 128-64") from None


def positive(value: Any) -> int:
    number = integer(value)
    if number < 1:
        raise ValueError("expected a positive integer")
    return number


def increasing(value: Any) -> str:
    """`dashed`, strictly increasing: epochs at which something happens."""
    text = dashed(value)
    numbers = dashed_values(text)
    if any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ValueError("epochs must increase from left to right")
    return text


def dashed_values(text: str) -> list[int]:
    """The integers of a canonical `dashed` text."""
    return [int(number) for number in text.split("-") if number]


WORDS = {bool: "1 or 0", int: "an integer", float: "a number", str: "a word"}
CONVERTERS = {bool: switch, int: integer, float: float, str: str}


def checked(cls: type, field: dataclasses.Field, value: Any) -> Any:
    """The value of a flag in its canonical form, in which defaults are written.

    Raises:
        FlagError: naming flag, value and what is allowed.
    """
    if value is field.default:  # most of the values of a sweep's many configs
        return value
    spec: Flag = field.metadata["flag"]
    kind, optional = value_type(cls, field)
    if optional and (value is None or value == "null"):
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
        raise FlagError(f"--{field.name} {one_line(value, 100)}: {reason}") from None
    if spec.choices is not None and result not in spec.choices:
        names = ", ".join(spec.choices)
        raise FlagError(f"--{field.name} {one_line(value, 100)}: not one of {names}{near_match(result, spec.choices)}")
    limits = ((spec.low, operator.ge, "at least"), (spec.high, operator.le, "at most"), (spec.below, operator.lt, "below"))
    conditions = [(holds(result, bound), f"{words} {bound}") for bound, holds, words in limits if bound is not None]
    if kind is str:  # it goes into paths, files and messages
        conditions.append((result.isprintable(), "text without control characters or stray bytes"))
    if kind is float:
        conditions.append((math.isfinite(result), "a finite number"))
    if not all(met for met, _ in conditions):
        raise FlagError(f"--{field.name} {one_line(value, 100)}: must be {' and '.join(text for _, text in conditions)}")
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


def replace(config: Any, **changes: Any) -> Any:
    """A copy with some flags changed, wherever in the parts they live."""
    return unflatten(type(config), flatten(config) | changes)


def identity(config: Config) -> dict[str, Any]:
    """The options that change the trained weights: not default, and with an effect in this configuration."""
    flat = flatten(config)
    return {
        name: flat[name]
        for name, field in all_flags(type(config)).items()
        if field.metadata["flag"].identity
        and flat[name] != field.default
        and all(flat[other] in values for other, values in field.metadata["flag"].when.items())
    }


def digest(payload: dict[str, Any]) -> str:
    """8 hex digits of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:8]


# --------------------------------------------------------------------------------------------------- command line


class Parser(ArgumentParser):
    """jsonargparse's parser with errors of one line: the flag, the value, what is allowed, the near match."""

    def __init__(self, *args: Any, retired: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, parser_mode=FLAGS_FILE, **kwargs)
        self.retired = retired

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r'^(argument \S+: (?=--)|Parser key "\w+":\s*(?=--))', "", message)
        unknown = re.search(r"(?:unrecognized arguments:|Option ')\s*([^\s'=]+)", message)
        if unknown:
            stray = "unrecognized" in message and not unknown.group(1).startswith("-")
            message = self.about_unknown(unknown.group(1)) + (", and no further word is expected" if stray else "")
        if message.startswith("Problems parsing config"):
            message = f"a --config file is no YAML of flags: {message.removeprefix('Problems parsing config: ')}"
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def about_unknown(self, word: str) -> str:
        name = word.lstrip("-")
        if name in self.retired:
            return f"{word}: {self.retired[name]}"
        short = word.startswith("-") and not word.startswith("--")
        options = [o for action in self._actions for o in action.option_strings if o.startswith("--") != short]
        return f"{word}: no such flag{near_match(word if short else f'--{name}', options)}"


@dataclass(frozen=True)
class CommandLine:
    """What `parse_line` reads: the config, the words beside the flags, and the flags that were given as lists."""

    config: Any
    words: list[str]
    lists: dict[str, list[str]]


def parse(cls: type, argv: list[str] | None = None, *, prog: str, description: str, retired: dict[str, str]) -> Any:
    """A `cls` from command-line flags and `--config` files; wrong flags end the process with exit code 2.

    Args:
        retired: {former flag, without dashes: what to do instead}.
    """
    return parse_line(cls, argv, prog=prog, description=description, retired=retired).config


def parse_line(
    cls: type,
    argv: list[str] | None = None,
    *,
    prog: str,
    description: str,
    retired: dict[str, str],
    words: str = "",
    lists: type | None = None,
) -> CommandLine:
    """`parse` for a command that takes words as well, or flags of another config with several values each.

    Args:
        words: what stands beside the flags: space-separated names, of which the last may end in `...` for one or more.
        lists: Config class whose flags may be given too, as comma-separated values; they are not checked here.
    """
    usage = f"{prog} {words} [flags]" if words else None
    parser = Parser(prog=prog, description=description, retired=retired, usage=usage)
    names = words.split()
    for name in names:
        parser.add_argument(name.removesuffix("..."), nargs="+" if name.endswith("...") else None)
    if lists is None:
        parser.add_argument("--config", action="config", help="YAML file of flags; later flags override it")
    add_flags(parser.add_argument_group(cls.__name__), cls)
    for part in parts(cls).values():
        add_flags(parser.add_argument_group((part.__doc__ or part.__name__).splitlines()[0]), part)
    if lists is not None:
        group = parser.add_argument_group("Flags of a run, each one value or several with commas between")
        for name, field in all_flags(lists).items():
            short = [field.metadata["flag"].short] if field.metadata["flag"].short else []
            group.add_argument(*short, f"--{name}", type=str, metavar="X[,X...]", help=field.metadata["flag"].help)
    try:
        given = vars(parser.parse_args(argv))
    except UnicodeDecodeError as error:
        parser.error(f"a --config file is no UTF-8 text: {error}")
    try:
        config = unflatten(cls, {name: value for name, value in given.items() if name in all_flags(cls)})
    except FlagError as error:
        parser.error(str(error))
    beside = [given[name.removesuffix("...")] for name in names]
    several = {name: given[name].split(",") for name in (all_flags(lists) if lists else {}) if given[name] is not None}
    return CommandLine(config, [w for word in beside for w in ([word] if isinstance(word, str) else word)], several)


def add_flags(group: Any, cls: type) -> None:
    for field in flag_fields(cls):
        spec: Flag = field.metadata["flag"]
        names = [spec.short] if spec.short else []
        only = "".join(f"; with {k} {'/'.join(map(str, v))}" for k, v in spec.when.items() if k != "mode")
        choices = f" {{{', '.join(spec.choices)}}}" if spec.choices else ""
        bare = {"nargs": "?", "const": True} if value_type(cls, field)[0] is bool else {}  # --retry means --retry 1
        group.add_argument(
            *names,
            f"--{field.name}",
            type=_converter(cls, field),
            default=field.default,
            metavar=_metavar(cls, field),
            help=f"{spec.help}{choices}{only} (default: {_shown(field.default)})".replace("%", "%%"),
            **bare,
        )


def _converter(cls: type, field: dataclasses.Field) -> typing.Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        return checked(cls, field, value)

    return convert


def _metavar(cls: type, field: dataclasses.Field) -> str:
    kind, _ = value_type(cls, field)
    return {bool: "0|1", int: "N", float: "X", str: "WORD"}[kind]


def _shown(default: Any) -> str:
    return str(int(default)) if isinstance(default, bool) else "none" if default is None else str(default)

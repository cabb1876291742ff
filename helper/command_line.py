"""Words of a command line and `--config` files -> a checked config; `--help`; one line for what is wrong."""

import argparse
import dataclasses
import re
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from helper.schema.config import Config, Flag, FlagError, all_flags, checked, flag_fields, flatten, parts, unflatten, value_type
from helper.schema.values import near_match
from helper.untrusted import one_line, read_yaml, reason_of, write_yaml

MOST_BYTES = 1 << 24  # of a file of flags
INDENT = 26  # of the help texts
VALUES = {bool: "1|0", int: "N", float: "X", str: "WORD"}


@dataclass(frozen=True)
class Usage:
    """What a command says of itself, and what it takes beside the flags of its config.

    Args:
        prog: how it is called.
        what: one sentence on what it does. example: a whole line that does it.
        words: what stands beside the flags: space-separated names, of which the last may end in `...` for one or more.
        lists: config class whose flags may be given too, as comma-separated values; they are not checked here.
        about_lists: heading of those.
        retired: {former flag, without dashes: what to do instead}.
    """

    prog: str
    what: str
    example: str
    words: str = ""
    lists: type[Config] | None = None
    about_lists: str = ""
    retired: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandLine:
    """What `parse` reads: the config, the words beside the flags, and the flags that were given as lists.

    `given` has the names of the config's flags that stand on the command line or, with another value than the default, in
    a --config file.
    """

    config: Any
    words: list[str]
    lists: dict[str, list[str]]
    given: frozenset[str]


def parse(cls: type[Config], usage: Usage, argv: Sequence[str] | None = None) -> CommandLine:
    """A `cls` from flags and `--config` files, later ones before earlier ones; wrong flags end the process with exit code 2."""
    parser = Parser(cls, usage)
    found = vars(parser.parse_args(argv))
    own, several = all_flags(cls), all_flags(usage.lists) if usage.lists else {}
    flags = {name: value for name, value in found.items() if name in own}
    try:
        config = unflatten(cls, flags)
        if found.get("print_config"):
            print(write_yaml(defaults_of(cls) | canonical(cls, flags)), end="")
            parser.exit(0)
    except FlagError as error:
        parser.error(str(error))
    words = [found[name.removesuffix("...")] for name in usage.words.split()]
    return CommandLine(
        config,
        [word for each in words for word in ([each] if isinstance(each, str) else each)],
        {name: [word.strip() for word in found[name].split(",")] for name in several if name in found},
        frozenset(flags) - found.get("left_at_default", set()),
    )


def defaults_of(cls: type[Config]) -> dict[str, Any]:
    return {name: field.default for name, field in all_flags(cls).items()}


def canonical(cls: type[Config], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Values of flags, each by itself, as they are kept. Raises FlagError: one is not admitted, or unknown."""
    found = {f.name: checked(cls, f, flags[f.name]) for f in flag_fields(cls) if f.name in flags}
    for part in parts(cls).values():
        found |= canonical(part, flags)
    return found


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


class FlagsOfFile(argparse.Action):
    """--config FILE: the file's flags, as if they stood there."""

    def __init__(self, *args: Any, cls: type[Config], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cls = cls

    def __call__(self, parser: argparse.ArgumentParser, found: argparse.Namespace, path: Any, word: str | None = None) -> None:
        try:
            flags = read_flags(Path(path), self.cls)
        except FlagError as error:
            parser.error(f"--config {error}")
        defaults = defaults_of(self.cls)
        vars(found).update(flags)
        left = {name for name, value in flags.items() if value == defaults[name]}
        found.left_at_default = (getattr(found, "left_at_default", set()) | left) - (set(flags) - left)


class FlagOfLine(argparse.Action):
    """A flag on the command line; its word is checked with all others."""

    def __call__(self, parser: argparse.ArgumentParser, found: argparse.Namespace, word: Any, name: str | None = None) -> None:
        setattr(found, self.dest, word)
        if hasattr(found, "left_at_default"):
            found.left_at_default.discard(self.dest)


class Parser(argparse.ArgumentParser):
    """The flags of a config class and of its parts, with errors of one line: flag, value, what is allowed, near match."""

    def __init__(self, cls: type[Config], usage: Usage) -> None:
        super().__init__(prog=usage.prog, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.cls, self.usage = cls, usage
        for name in usage.words.split():
            self.add_argument(name.removesuffix("..."), nargs="+" if name.endswith("...") else None)
        if usage.lists is None:
            self.add_argument("--config", action=FlagsOfFile, cls=cls)
            self.add_argument("--print_config", action="store_true")
        for owner in (cls, usage.lists) if usage.lists else (cls,):
            for part in (owner, *parts_within(owner)):
                for each in flag_fields(part):
                    bare = {"nargs": "?", "const": "1"} if value_type(part, each)[0] is bool else {}  # --retry is --retry 1
                    self.add_argument(*names_of(each), action=FlagOfLine, **bare)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (?:-\w+/)?(?=--)", "", message)
        unknown = re.match(r"unrecognized arguments: ([^\s=]+)", message)
        if unknown:
            stray = not unknown.group(1).startswith("-")
            message = self.about_unknown(unknown.group(1)) + (", and no further word is expected" if stray else "")
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def about_unknown(self, word: str) -> str:
        name = word.lstrip("-")
        if name in self.usage.retired:
            return f"{word}: {self.usage.retired[name]}"
        short = word.startswith("-") and not word.startswith("--")
        options = [o for action in self._actions for o in action.option_strings if o.startswith("--") != short]
        return f"{word}: no such flag{near_match(word if short else f'--{name}', options)}"

    def format_help(self) -> str:
        return help_text(self.cls, self.usage, page_width())


def without_effect(config: Config, given: Collection[str]) -> list[str]:
    """A line for each flag that was given and does nothing beside the others: with which of them, and when it would act."""
    flat, lines = flatten(config), []
    for name, each in all_flags(type(config)).items():
        spec: Flag = each.metadata["flag"]
        if name in given and not spec.acts(flat):
            against = {
                other: flat[other] for wanted in spec.when for other, values in wanted.items() if flat[other] not in values
            }
            others = ", ".join(f"--{other} {shown(value)}" for other, value in against.items())
            lines.append(f"--{name} {shown(flat[name])} has no effect with {others}; it acts {needs(spec)}")
    return lines


def without_effect_in(configs: Sequence[Config], given: Collection[str]) -> list[str]:
    """`without_effect` of flags that do nothing in any of several configs; how it is with the first is said."""
    if not configs:
        return []
    idle = [name for name in given if not any(acts(config, name) for config in configs)]
    return without_effect(configs[0], idle)


def acts(config: Config, name: str) -> bool:
    spec: Flag = all_flags(type(config))[name].metadata["flag"]
    return spec.acts(flatten(config))


def parts_within(cls: type[Config]) -> list[type[Config]]:
    """The parts of a config class, and theirs."""
    return [each for part in parts(cls).values() for each in (part, *parts_within(part))]


def names_of(each: dataclasses.Field) -> list[str]:
    """[-short, --long] of a flag's field."""
    short = each.metadata["flag"].short
    return [*([short] if short else []), f"--{each.name}"]


# --------------------------------------------------------------------------------------------------------------- help


def page_width() -> int:
    """Columns of a page of help: those of the terminal, within reason."""
    return max(40, min(shutil.get_terminal_size().columns, 120))


def help_text(cls: type[Config], usage: Usage, width: int) -> str:
    """What --help prints: what the command does, an example, and the flags under the headings of the parts they belong to."""
    call = " ".join(filter(None, [usage.prog, usage.words, "[flags]"]))
    example = " \\\n    ".join(textwrap.wrap(usage.example, width - 6, break_long_words=False, break_on_hyphens=False))
    lines = [*textwrap.wrap(usage.what, width), "", f"  {example}", "", f"usage: {call}"]
    lines += textwrap.wrap(
        "A flag that takes 1|0 may stand alone for 1. X is a number, N an integer; a value is read as YAML 1.2 reads it, here "
        "and in files.", width,
    )  # fmt: skip
    general = [("-h, --help", "show this and end")]
    if usage.lists is None:
        general += [
            ("--config FILE", "YAML file of flags; flags that stand after it override it"),
            ("--print_config", "print all flags with their values, as such a file, and end"),
        ]
    lines += section("General", general, width)
    for part in (cls, *parts_within(cls)):
        lines += section(heading(part), [(entry(part, f), explained(f)) for f in flag_fields(part)], width)
    if usage.lists is not None:
        lines += ["", *textwrap.wrap(usage.about_lists, width)]
        for part in (usage.lists, *parts_within(usage.lists)):
            lines += section(heading(part), [(entry(part, f), explained(f)) for f in flag_fields(part)], width)
    return "\n".join(lines) + "\n"


def heading(part: type[Config]) -> str:
    return (part.__doc__ or part.__name__).splitlines()[0].removesuffix(".")


def section(title: str, entries: Sequence[tuple[str, str]], width: int) -> list[str]:
    lines = ["", *textwrap.wrap(title, width)] if entries else []
    for name, text in entries:
        told = textwrap.wrap(text, width - INDENT, break_long_words=False, break_on_hyphens=False)
        first = f"  {name}"
        if len(first) > INDENT - 2:
            lines.append(first)
        else:
            told[0] = first.ljust(INDENT) + told[0]
        lines += [line if line.startswith(first) else " " * INDENT + line for line in told]
    return lines


def entry(cls: type[Config], each: dataclasses.Field) -> str:
    """`-bs, --batch_size N`."""
    return f"{', '.join(names_of(each))} {VALUES[value_type(cls, each)[0]]}"


def explained(each: dataclasses.Field) -> str:
    """What a flag means, the words it takes, with which others it acts, and its default, once."""
    spec: Flag = each.metadata["flag"]
    text, _, told = spec.help.partition("; default: ")
    words = f"; one of {alternatives(spec.choices)}" if spec.choices else ""
    return f"{text}{words}{f'; acts {needs(spec)}' if any(spec.when) else ''} (default: {told or shown(each.default)})"


def needs(spec: Flag) -> str:
    """`with --mode dense and without --debug`: the other flags with which one acts; alternatives with `or` between."""
    if all(len(each) == 1 and None not in values for each in spec.when for values in each.values()):
        return f"with {either([f'--{name} {alternatives(values)}' for each in spec.when for name, values in each.items()])}"
    return "; or ".join(" and ".join(condition(name, values) for name, values in each.items()) for each in spec.when)


def condition(name: str, values: Sequence[Any]) -> str:
    return f"without --{name}" if tuple(values) == (None,) else f"with --{name} {alternatives(values)}"


def alternatives(values: Collection[Any]) -> str:
    return either([shown(value) for value in values])


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any) -> str:
    """A flag's value as one writes it."""
    return str(int(value)) if isinstance(value, bool) else "none" if value is None else str(value)

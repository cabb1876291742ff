"""The words of a command line -> a checked config; one line for what is wrong."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from helper.command_line.flag_files import canonical, read_flags
from helper.command_line.help import Usage, help_text, names_of, page_width, parts_within
from helper.schema.config import Config, Flag, FlagError, all_flags, flag_fields, unflatten, value_type
from helper.schema.values import near_match, switch
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import write_yaml

NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass(frozen=True)
class CommandLine:
    """What `parse` reads: the config, the words beside the flags, and the flags that were given as lists.

    `given` has the names of the config's flags that stand on the command line or, with another value than the default, in
    a --config file; `typed` of those whose value is the command line's.
    """

    config: Any
    words: list[str]
    lists: dict[str, list[str]]
    given: frozenset[str]
    typed: frozenset[str]


def parse(cls: type[Config], usage: Usage, argv: Sequence[str] | None = None) -> CommandLine:
    """A `cls` from flags and `--config` files, later ones before earlier ones; wrong flags end the process with exit code 2."""
    parser = Parser(cls, usage)
    found = vars(parser.parse_args(parser.with_ones(sys.argv[1:] if argv is None else argv)))
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
        {name: values_of(found[name], field) for name, field in several.items() if name in found},
        frozenset(flags) - found.get("left_at_default", set()),
        frozenset(flags) - found.get("of_files", set()),
    )


def values_of(text: str, each: dataclasses.Field) -> list[str]:
    """The values of a flag that is given as a list, with commas between; one that has commas of its own is one value."""
    spec: Flag = each.metadata["flag"]
    return [text] if spec.many or spec.whole else [word.strip() for word in text.split(",")]


def defaults_of(cls: type[Config]) -> dict[str, Any]:
    return {name: field.default for name, field in all_flags(cls).items()}


def is_switch(word: str) -> bool:
    """Whether a word is the value of a flag that takes 1|0."""
    try:
        switch(word)
    except ValueError:
        return False
    return True


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
        found.of_files = getattr(found, "of_files", set()) | set(flags)
        found.left_at_default = (getattr(found, "left_at_default", set()) | left) - (set(flags) - left)


class FlagOfLine(argparse.Action):
    """A flag on the command line; its word is checked with all others."""

    def __call__(self, parser: argparse.ArgumentParser, found: argparse.Namespace, word: Any, name: str | None = None) -> None:
        setattr(found, self.dest, word)
        if hasattr(found, "left_at_default"):
            found.left_at_default.discard(self.dest)
            found.of_files.discard(self.dest)


class Parser(argparse.ArgumentParser):
    """The flags of a config class and of its parts, with errors of one line: flag, value, what is allowed, near match."""

    def __init__(self, cls: type[Config], usage: Usage) -> None:
        super().__init__(prog=usage.prog, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.cls, self.usage = cls, usage
        self._negative_number_matcher = NEGATIVE  # argparse's own takes -1e-3 for a flag
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

    def with_ones(self, argv: Sequence[str]) -> list[str]:
        """The words of a command line, a 1 between a flag that takes 1|0 and a file or folder that follows: `--yes RUN`."""
        bare = {option for action in self._actions if action.nargs == "?" for option in action.option_strings}
        found: list[str] = []
        for word in argv:
            if self.usage.words and found and found[-1] in bare and not is_switch(word) and Path(word).exists():
                found.append("1")
            found.append(word)
        return found

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

"""What a command says of itself: the page of --help, and the words for its flags."""

import dataclasses
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from helper.schema.config import PROCESSES, Above, Config, Flag, flag_fields, parts, value_type

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


def heading(part: type[Config]) -> str:
    return (part.__doc__ or part.__name__).splitlines()[0].removesuffix(".")


def parts_within(cls: type[Config]) -> list[type[Config]]:
    """The parts of a config class, and theirs."""
    return [each for part in parts(cls).values() for each in (part, *parts_within(part))]


def names_of(each: dataclasses.Field) -> list[str]:
    """[-short, --long] of a flag's field."""
    short = each.metadata["flag"].short
    return [*([short] if short else []), f"--{each.name}"]


def entry(cls: type[Config], each: dataclasses.Field) -> str:
    """`-bs, --batch_size N`."""
    return f"{', '.join(names_of(each))} {VALUES[value_type(cls, each)[0]]}"


def explained(each: dataclasses.Field) -> str:
    """What a flag means, the words it takes, with which others it acts, and its default, once."""
    spec: Flag = each.metadata["flag"]
    text, _, told = spec.help.partition("; default: ")
    words = f"; one of {alternatives(spec.choices)}" if spec.choices else ""
    if spec.many:
        words = f"; {shown(each.default)}, or some of {', '.join(spec.choices)} with commas between"
    return f"{text}{words}{f'; acts {needs(spec)}' if any(spec.when) else ''} (default: {told or shown(each.default)})"


def needs(spec: Flag) -> str:
    """`with --mode dense and without --debug`: the other flags with which one acts; alternatives with `or` between."""
    if all(len(each) == 1 and None not in values for each in spec.when for values in each.values()):
        return f"with {either([wanted(name, values) for each in spec.when for name, values in each.items()])}"
    return "; or ".join(" and ".join(condition(name, values) for name, values in each.items()) for each in spec.when)


def condition(name: str, values: Collection[Any] | Above) -> str:
    return f"without --{name}" if values == (None,) else f"with {wanted(name, values)}"


def wanted(name: str, values: Collection[Any] | Above) -> str:
    """`--mode dense or lottery`, `--val_size above 0`, `several processes`."""
    if name == PROCESSES:
        return "several processes"
    return f"--{name} {f'above {values.bound:g}' if isinstance(values, Above) else alternatives(values)}"


def alternatives(values: Collection[Any]) -> str:
    return either([shown(value) for value in values])


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any) -> str:
    """A flag's value as one writes it."""
    return str(int(value)) if isinstance(value, bool) else "none" if value is None else str(value)

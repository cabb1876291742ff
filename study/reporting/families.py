"""What a method is called and how it is drawn: a family of runs, by their mode and by the flags that make another method of it.

Nothing here knows a mode, a score or a growth by name: all is said in their registries.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from helper.look import Look
from helper.schema.config import flag_fields
from optim.config import PruneConfig, RunConfig
from optim.modes import MODES

# A choice of words makes another method, a number or a switch another setting of it.
CHOICES = {field.name: field for field in flag_fields(PruneConfig) if field.metadata["flag"].choices}
USUAL_MODE = next(field.default for field in flag_fields(RunConfig) if field.name == "mode")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255")  # Okabe & Ito, Tol
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Family:
    """A method of the field.

    Attributes:
        label: in legends and tables.
        colour, marker, line: how figures draw it, as Matplotlib names them.
        place: sorts families as their registries do.
    """

    label: str
    colour: str
    marker: str
    line: str
    place: tuple[int, ...]


def family_of(options: Mapping[str, Any]) -> Family:
    """The family of a run.

    Args:
        options: its identity: the flags that act and differ from their defaults.
    """
    name = options.get("mode", USUAL_MODE)
    mode = MODES[name]
    method = mode.method or mode.label
    chosen = {flag: options.get(flag, field.default) for flag, field in CHOICES.items()}
    shown = [flag for flag in CHOICES if f"{{{flag}}}" in method]
    further = {flag: options[flag] for flag in CHOICES if flag in options and flag not in shown}
    label = method.format(**{flag: called(flag, chosen[flag]) for flag in shown})
    label += "".join(suffix(flag, value) for flag, value in further.items())
    look = Look(mode.colour, mode.marker, mode.line)
    for flag in shown:
        look = look_of(flag, chosen[flag])
    places = {flag: place_of(flag, value) for flag, value in chosen.items()}
    look = varied(look, [1 + places[flag] for flag in further])
    return Family(label, *look, (list(MODES).index(name), *(places[f] for f in shown), *(1 + places[f] for f in further)))


def in_order(families: Iterable[Family]) -> list[Family]:
    """Each once, as their registries have them."""
    return sorted(set(families), key=lambda family: (family.place, family.label))


def called(flag: str, value: str) -> str:
    """The label of an entry of a flag's registry; its name there, if it has none."""
    return getattr(entry_of(flag, value), "label", "") or value


def suffix(flag: str, value: str) -> str:
    """What a label has behind the method's name; allocations are named as papers name them, such as random-ERK."""
    if flag == "allocation":
        return f"-{value.upper() if len(value) <= 3 else value}"
    return f", {flag} {value}"


def entry_of(flag: str, value: str) -> Any:
    choices = CHOICES[flag].metadata["flag"].choices
    return choices.get(value) if isinstance(choices, Mapping) else None


def look_of(flag: str, value: str) -> Look:
    """That of an entry, or one that follows from its place."""
    place = place_of(flag, value)
    own = getattr(entry_of(flag, value), "look", None)
    return own or Look(COLOURS[place % len(COLOURS)], MARKERS[-1 - place % len(MARKERS)], LINES[place % len(LINES)])


def place_of(flag: str, value: str | None) -> int:
    words = list(CHOICES[flag].metadata["flag"].choices)
    return words.index(value) if value in words else 0


def varied(look: Look, steps: list[int]) -> Look:
    """The colour with another marker and line, for a method that further flags change."""
    if not steps:
        return look
    by = sum(step * 5**i for i, step in enumerate(steps))
    marker = MARKERS[((MARKERS.index(look.marker) if look.marker in MARKERS else 0) + by) % len(MARKERS)]
    return Look(look.colour, marker, LINES[(LINES.index(look.line) + by) % len(LINES)])

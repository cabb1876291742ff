"""Values of flags in their canonical form, from what a command line, a file or Python gives."""

import difflib
import itertools
import numbers
import typing
from typing import Any

from helper.untrusted.yaml_text import core_value


def near_match(word: str, words: typing.Iterable[str]) -> str:
    """`; did you mean ...?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(names: typing.Collection[str], word: Any) -> Any:
    """The word itself. Raises ValueError: it is none of the names; the closest one is proposed."""
    if word not in names:
        raise ValueError(f"not one of {', '.join(names)}{near_match(word, names)}")
    return word


def several_of(names: typing.Collection[str], text: str, nothing: str) -> str:
    """Canonical text of some of the names: each once, with commas between, in the order in which they are defined.

    Args:
        text: names with commas between, in any order, or the word `nothing`, which stands alone.
    Raises:
        ValueError: another word, or none at all; the closest name is proposed.
    """
    words = [one_of([nothing, *names], word.strip()) for word in text.split(",")]
    if nothing in words and len(set(words)) > 1:
        raise ValueError(f"{nothing} stands alone")
    return ",".join(name for name in names if name in words) or nothing


def switch(value: Any) -> bool:
    """0/1 and true/false, as numbers or words."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError("expected 1 or 0")
    return words[str(value).lower()]


def number(value: Any) -> int | float:
    """A number, or a text that is one in YAML 1.2: 010 is ten, 0o10 eight, 1e3 a thousand; 1_000 and 1:30 are none."""
    found = core_value(value.strip()) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        raise ValueError("expected a number")
    return found


def integer(value: Any) -> int:
    """An int, or a float or text that is one; 5.5 and True are not."""
    try:
        found = number(value)
    except ValueError:
        raise ValueError("expected an integer") from None
    if found != found // 1 or (isinstance(found, float) and abs(found) > 2**53):  # from there on it may be a rounded one
        raise ValueError("expected an integer")
    return int(found)


def dashed(value: Any) -> str:
    """Canonical text of a dash-separated list of positive integers, `128-64`; empty for none.

    Raises:
        ValueError: anything else.
    """
    widths = list(value) if isinstance(value, (list, tuple)) else [n for n in str(value).split("-") if str(value)]
    try:
        return "-".join(str(positive(n)) for n in widths)
    except ValueError:
        raise ValueError("expected positive integers joined by dashes, such as 128-64") from None


def positive(value: Any) -> int:
    found = integer(value)
    if found < 1:
        raise ValueError("expected a positive integer")
    return found


def increasing(value: Any) -> str:
    """`dashed`, strictly increasing: epochs at which something happens."""
    text = dashed(value)
    if any(a >= b for a, b in itertools.pairwise(dashed_values(text))):
        raise ValueError("epochs must increase from left to right")
    return text


def dashed_values(text: str) -> list[int]:
    """The integers of a canonical `dashed` text."""
    return [int(number) for number in text.split("-") if number]

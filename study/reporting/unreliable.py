"""The mark beside what rests on an unreliable measurement, what it means, and how many values have it."""

from collections.abc import Sequence

import pandas

from study.bias import BIAS_NOTE, BIASED

UNRELIABLE = "‡"  # beside a measurement on which a few large draws decide, and what such measurements are in
UNRELIABLE_NOTE = (
    f"{UNRELIABLE} A few large draws decide on a measurement that is in it (reliable 0 in metrics.csv): its interval may miss "
    "the true value."
)


def notes_of(text: str) -> list[str]:
    """What the marks in a text mean."""
    return [note for mark, note in ((BIASED, BIAS_NOTE), (UNRELIABLE, UNRELIABLE_NOTE)) if mark in text]


def unreliable(runs: pandas.DataFrame, quantity: str) -> tuple[int, int]:
    """(how many values of a quantity are marked, of how many it is known whether to mark them)."""
    flags = runs.get(f"{quantity}_reliable", pandas.Series(dtype=float)).dropna()
    return int((flags == 0).sum()), len(flags)


def doubted(text: str, mark: bool) -> str:
    return f"{text} {UNRELIABLE}" if mark and text else text


def unreliable_of(runs: pandas.DataFrame, quantities: Sequence[str]) -> tuple[int, int]:
    """The same of several quantities together."""
    counts = [unreliable(runs, quantity) for quantity in quantities]
    return sum(marks for marks, _ in counts), sum(n for _, n in counts)


def count_of(marks: int, n: int, what: str) -> str:
    """`3 of 24 values of Tr F are marked ‡.`; nothing where of none it is known."""
    return f"{marks or 'None'} of {n} {what} {'is' if marks < 2 else 'are'} marked {UNRELIABLE}." if n else ""


def doubt_noted(text: str, marks: int, n: int, what: str) -> str:
    """A text, with a word on the marked values among those that it is about, if there are any."""
    return f"{text} {count_of(marks, n, what)} {UNRELIABLE_NOTE}" if marks else text

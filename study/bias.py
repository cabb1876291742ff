"""What `--select test` does to a test accuracy, and the mark and the note by which it is known wherever it stands."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

BIASED = "†"  # beside what --select test chose by test accuracy
BIAS_NOTE = (
    f"{BIASED} The epoch was chosen by the accuracy on the test examples (--select test, as in the paper), which biases that "
    "accuracy upwards."
)
CHOSEN = "chosen_by_test"  # in settings and tables of a comparison: the solutions that are biased


class Chosen(Protocol):
    """A run, of whichever class, whose epoch was chosen somehow."""

    @property
    def biased(self) -> bool: ...


def is_biased(flags: Mapping[str, Any]) -> bool:
    """Whether a run with these flags has chosen its epoch by test accuracy, which makes that accuracy too high."""
    return flags["select"] == "test"


def marked(name: str, biased: bool) -> str:
    return f"{name} {BIASED}" if biased else name


def bias_noted(text: str, runs: Iterable[Chosen]) -> str:
    """A text, and the note where one of the runs that it is about is biased."""
    return f"{text} {BIAS_NOTE}".lstrip() if any(run.biased for run in runs) else text

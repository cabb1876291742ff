"""Whose code may run: what the user of this process has named, and nothing that only a file names."""

from collections.abc import Iterable

from helper.own.references import is_reference
from helper.schema.config import FlagError

NAMED: set[str] = set()


def trust(words: Iterable[str]) -> None:
    """From now on this process may run what these words name; words that are no MODULE:NAME name nothing."""
    NAMED.update(word for word in words if is_reference(word))


def refuse_unnamed(word: str) -> None:
    """Raise FlagError unless the user has named this code."""
    if word not in NAMED:
        raise FlagError(
            f"{word} is code that only a file names, and is not run: look at it, then add --trust_code 1 to the command line"
        )

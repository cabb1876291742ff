"""Whole numbers in the environment, where launchers and users leave them."""

import os
import re

from helper.untrusted.texts import one_line


def whole_number(name: str, default: int, *, low: int = 1, several: bool = False) -> int:
    """A whole number that a variable holds; the default where it is not set, or empty.

    Args:
        low: the smallest that makes sense.
        several: it may hold more, with commas between, of which the first is returned.
    Raises:
        RuntimeError: it holds something else; the message has its name and value.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    words = text.split(",") if several else [text]
    if not all(re.fullmatch(r"\s*[0-9]{1,18}\s*", word) and int(word) >= low for word in words):
        wanted = f"a whole number of at least {low}{', or several with commas between' if several else ''}"
        raise RuntimeError(f"the environment has {name}={one_line(text, 100)}: expected {wanted}; correct it or unset it")
    return int(words[0])

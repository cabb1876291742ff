"""Folders that one process has for itself."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from helper.system.files import UNFINISHED

IN_USE = "is in use by another process"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the kernel releases it when this one ends, however it ends.

    What killed processes were writing in it is removed.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder} {IN_USE}; wait for it or choose another --results_root") from None
        for left_over in (file for depth in ("", "*/") for kind in UNFINISHED for file in folder.glob(f"{depth}.*{kind}")):
            left_over.unlink(missing_ok=True)  # of a killed process
        yield


def in_use(folder: Path) -> bool:
    """Whether another process holds a folder by `exclusive`."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False

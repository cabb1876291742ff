"""Files that are whole at every moment."""

import hashlib
import os
from pathlib import Path

UNFINISHED = (".partial", ".new")  # files that take another one's place when they are whole


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file so that a reader, or a crash at any moment, sees the whole old or the whole new content.

    Raises:
        OSError: it could not be written (disk full, read-only); the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(exist_ok=True)  # not its parents: what has been removed must not come back with one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(content: bytes) -> str:
    """What `sha256sum` prints of a file with this content."""
    return hashlib.sha256(content).hexdigest()

"""Files that are whole at every moment."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNFINISHED = (".partial", ".new")  # files that take another one's place when they are whole


class HashedFile:
    """A file that is written from its beginning to its end, and hashed on the way.

    Attributes:
        sha: of what has been written. failure: why it could not be.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        self.sha.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file so that a reader, or a crash at any moment, sees the whole old or the whole new content.

    Raises:
        OSError: it could not be written (disk full, read-only); the old file is as it was.
    """
    with written_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_atomic(path: Path) -> Iterator[HashedFile]:
    """`write_atomic` of what is written inside, which need not be in memory as a whole."""
    path = Path(path)
    path.parent.mkdir(exist_ok=True)  # not its parents: what has been removed must not come back with one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            hashed = HashedFile(file)
            try:
                yield hashed
            except RuntimeError:  # what torch.save makes of it
                if hashed.failure:
                    raise hashed.failure from None
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(content: bytes) -> str:
    """What `sha256sum` prints of a file with this content."""
    return hashlib.sha256(content).hexdigest()


def hash_of_file(path: Path) -> str:
    """Its `file_hash`, with a part of it in memory at a time."""
    with open(path, "rb") as file:
        return hash_of(file)


def hash_of(file: BinaryIO) -> str:
    """`hash_of_file` of an open one, from its beginning."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()

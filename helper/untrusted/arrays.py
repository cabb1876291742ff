"""Arrays in .npz files: written, and read where others may have written them."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit, reason_of

UNREADABLE = (  # what damaged or made-up bytes make zipfile and numpy.load raise
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, EOFError, OSError,
    SyntaxError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """An .npz file of `write_arrays`: nothing in it is unpickled, or larger than the file.

    Raises:
        FileNotFoundError: there is none. RuntimeError: it is damaged, compressed, or holds Python objects.
    """
    if path.exists() and not path.is_file():
        raise RuntimeError(f"{path} is no file")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise Unfit("it is compressed")
        with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except UNREADABLE as error:
        raise RuntimeError(f"{path} is damaged: {reason_of(error)}; remove it to have it made again") from None


def write_arrays(path: Path, arrays: dict[str, Any], replace: Callable[[Path, bytes], None] = write_atomic) -> None:
    """An .npz file. `replace` gives a file a new content."""
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    replace(path, buffer.getvalue())

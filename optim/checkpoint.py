"""States on disk: written atomically, checked when read, the previous one kept.

A state file is an ordinary `torch.save` archive. Its records carry the CRC-32 sums of the zip format, which are compared
when it is read, so that a file with flipped bits or a missing end is refused and not trained on.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from helper.system.files import written_atomic
from helper.untrusted.reasons import Unfit, reason_of

FROM_THE_START = "remove checkpoint.pt and checkpoint.previous.pt to train from the start"
log = logging.getLogger(__name__)
NOT_LOADABLE = (  # what damaged or made-up bytes make zipfile and torch.load raise
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError,
    OSError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip


class DamagedFile(RuntimeError):
    """A state file that is truncated, altered, or none."""


def save_state(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> str:
    """Write a state of tensors and plain containers; its tensors are stored as CPU tensors and load anywhere.

    Returns:
        the file's `file_hash`.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    on_cpu = tree_map(lambda value: value.detach().cpu() if isinstance(value, Tensor) else value, state)
    new = path.with_name(f".{path.name}.new") if keep_previous and path.exists() else path
    with written_atomic(new) as file:
        torch.save(on_cpu, file)
    if new != path:
        os.replace(path, previous(path))
        os.replace(new, path)  # killed between these two, only the previous one is there: a state like any other
    return file.sha.hexdigest()


def load_state(path: Path) -> Any:
    """A state written by `save_state`.

    Raises:
        DamagedFile: not what was written, or not loadable without running code from it.
    """
    with opened(path) as file:
        return state_in(file, path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """An ordinary file, which is read in pieces. Raises DamagedFile: it is something else."""
    if not path.is_file():
        raise DamagedFile(f"{path} is no file")
    with open(path, "rb") as file:
        yield file


def state_in(file: BinaryIO, path: Path) -> Any:
    """`load_state` of an open file, of which no copy is in memory beside the tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise Unfit("it is compressed, as torch.save never does")  # a small file may unpack to any size
            altered = archive.testzip()
        if altered is None:
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        reason = "its checksums do not match"
    except NOT_LOADABLE as error:
        reason = reason_of(error)
    raise DamagedFile(f"{path} is damaged or no checkpoint: {reason}; its run makes it again when it is removed")


def load_latest(path: Path) -> dict[str, Any] | None:
    """The newest sound state of `path` and the previous one beside it; None where there is neither."""
    for candidate in (path, previous(path)):
        if candidate.exists():
            try:
                return load_state(candidate)
            except DamagedFile as error:
                log.warning("%s; falling back to the previous checkpoint or to the start", error)
    return None


def previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def content_hash(*states: dict[str, Tensor]) -> str:
    """16 hex digits over names and values of tensors, wherever and however they are stored."""
    digest = hashlib.sha256()
    for state in states:
        for name in sorted(state):
            tensor = state[name].detach().cpu()
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]

"""Files of published data sets: fetch, verify, unpickle without trust."""

import hashlib
import io
import itertools
import os
import pickle
import tarfile
import urllib.error
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from helper.processes.interruption import checking_signals, waiting_for_a_network
from helper.untrusted.texts import one_line

PART = 1 << 20  # bytes read at once
MOST_BYTES, MOST_MEMBERS = 1 << 30, 1000  # of an unpacked file and of an archive; published: 185 MB and 8


class DataError(RuntimeError):
    """Data is missing, damaged or not what was asked for; the message says which file and what to do."""


def md5(path: Path) -> str:
    found = hashlib.md5()
    with open(path, "rb") as file:
        for part in checking_signals(iter(lambda: file.read(PART), b"")):
            found.update(part)
    return found.hexdigest()


def verify(path: Path, published_md5: str) -> None:
    """Raise DataError unless a file is the published one."""
    found = md5(path)
    if found != published_md5:
        raise DataError(
            f"{path} is not the published file (MD5 {found}, published {published_md5}); "
            "delete it to download it again, or use --verify_data 0 for other files of the same layout"
        )


def fetch(urls: list[str], path: Path, published_md5: str) -> Path:
    """Download a file to `path` unless it is there, trying mirrors in turn, and verify it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        failures = []
        for url in urls:
            try:
                with waiting_for_a_network():
                    torch.hub.download_url_to_file(url, str(path))  # to a temporary name, moved when complete
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
        else:
            raise DataError(f"could not download {path.name} ({'; '.join(failures)}); put it into {path.parent} by hand")
    verify(path, published_md5)
    return path


def provide_file(urls: list[str], path: Path, published_md5: str, *, download: bool, verify_data: bool) -> None:
    """Make sure that a file of a data set is there.

    Raises:
        DataError: it is missing and may not or cannot be downloaded, or is not the published one.
    """
    if not path.exists() and not download:
        raise DataError(f"{path} is missing; point --root at the data or allow --download 1")
    if not path.exists():
        fetch(urls, path, published_md5)
    elif verify_data:
        verify(path, published_md5)


def provide(files: Mapping[str, str], root: Path, archive: tuple[str, str], *, download: bool, verify_data: bool) -> None:
    """Make sure that the files of a `.tar.gz` data set are under `root`.

    Args:
        files: {path under root: published MD5}.
        archive: (URL, published MD5).
    Raises:
        DataError: a file is missing and may not or cannot be downloaded, or is not the published one.
    """
    missing = [name for name in files if not (root / name).exists()]
    if missing and not download:
        raise DataError(f"{root / missing[0]} is missing; point --root at the data or allow --download 1")
    if missing:
        url, archive_md5 = archive
        packed = fetch([url], root / url.rsplit("/", 1)[-1], archive_md5)
        unpack(packed, list(files), root)
    if verify_data:
        for name, published_md5 in files.items():
            verify(root / name, published_md5)


def unpack(packed: Path, names: list[str], root: Path) -> None:
    """Unpack the named files of a tar archive and nothing else.

    Raises:
        DataError: it is damaged, or one of them is larger than a data file, or would lie elsewhere than under `root`.
    """
    try:
        with tarfile.open(packed) as tar:
            for member in itertools.islice(tar, MOST_MEMBERS):
                if member.name in names:
                    if not member.isreg() or member.size > MOST_BYTES:
                        raise DataError(f"{packed}: {member.name} is no file of at most {MOST_BYTES >> 20} MiB")
                    extract(tar, member, root)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{packed} cannot be unpacked ({one_line(error)}); delete it and download it again") from None


def extract(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """One file of an archive, under its name once it is whole. Raises TarError: it would lie elsewhere than under `root`."""
    path = root / member.name
    if not path.resolve().is_relative_to(root.resolve()):  # Python before 3.11.4 has no filter for that
        raise tarfile.TarError(f"{member.name} would lie elsewhere than under {root}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with tar.extractfile(member) as source, open(partial, "wb") as file:
            for part in checking_signals(iter(lambda: source.read(PART), b"")):
                file.write(part)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(paths: list[Path], published_md5s: Iterable[str] = ()) -> str | None:
    """One hash over the contents of data files; None when they are the published ones."""
    found = [md5(path) for path in paths]
    return None if found == list(published_md5s) else hashlib.sha256("".join(found).encode()).hexdigest()[:16]


class PickledDtype:
    """Stands for the dtype of an array, so that no state from a file reaches NumPy's own."""

    def __init__(self, code: str, *flags: object) -> None:
        if code not in ("u1", "i8"):
            raise pickle.UnpicklingError(f"it has an array of dtype {code!r}")
        self.dtype = numpy.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("|", "<"):
            raise pickle.UnpicklingError("it has an array of another byte order")


class PickledArray(numpy.ndarray):
    """An array of bytes or integers; the content of the file decides its values, and not more than that."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, pickled, fortran, content = state
        if not isinstance(pickled, PickledDtype) or not isinstance(content, bytes | str):
            raise pickle.UnpicklingError("it has an array of objects")
        raw = content.encode("latin1") if isinstance(content, str) else content
        super().__setstate__((1, tuple(shape), pickled.dtype, bool(fortran), raw))


def _reconstruct(kind: object, shape: object, code: object) -> PickledArray:
    return PickledArray((0,), "u1")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 2's strings are pickled by Python 3."""
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain containers; anything else in the pickle is refused before it can run."""

    ADMITTED = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): "numpy.ndarray",  # a name, which cannot be called
        ("numpy", "dtype"): PickledDtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return self.ADMITTED[module, name]


def unpickle(path: Path) -> dict[str, Any]:
    """The dictionary of arrays and containers in a pickle file.

    Raises:
        DataError: not a pickle, truncated, or one that holds anything but arrays and plain containers.
    """
    try:
        content = ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (
        pickle.UnpicklingError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
        MemoryError, RecursionError,
    ) as error:  # fmt: skip
        reason = one_line(error, 200) or "its end is missing"
        raise DataError(f"{path} is damaged or no data file ({reason}); delete it and download it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary; delete it and download it again")
    return content


def class_names(path: Path, key: str) -> tuple[str, ...]:
    """The names of the classes in a pickle file. Raises DataError: it has none."""
    names = unpickle(path).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} has no {key}; delete it and download it again")
    return tuple(one_line(name, 100) for name in names)

"""Arrays of a user's own in an .npz file: x_train, y_train, x_test, y_test, and class_names where it is there."""

import ast
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from helper.untrusted.reasons import Unfit, reason_of
from loader import on_demand
from loader.archives import DataError, fingerprint
from loader.arrays import NAMES, source_of
from loader.dataset import Source
from loader.made_up import labels_in_turn, pixels
from loader.spec import DatasetSpec

USUAL_FILE = "data.npz"
LOCAL_HEADER = 30  # bytes of what stands before a member of a zip file, up to its name
DAMAGED = (
    zipfile.BadZipFile, ValueError, LookupError, TypeError, OSError, EOFError, SyntaxError, RuntimeError, ArithmeticError,
    MemoryError, NotImplementedError, struct.error, zlib.error, tokenize.TokenError,
)  # fmt: skip


def load(*, root: str, filename: str | None, test_size: float, split_seed: int) -> Source:
    """The arrays of ROOT/FILENAME, or `data.npz`; large ones stay in the file, from which rows are taken when they are needed.

    Raises:
        DataError: no such file, damaged, with Python objects, or no data set; the message names the array.
    """
    path = Path(root, filename or USUAL_FILE)
    if not path.is_file():
        raise DataError(f"{path} is no file: say with --root and --filename where the arrays are")
    arrays = read_npz(path)
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {missing[0]}: it has to have {', '.join(NAMES)}")
    return source_of(arrays, str(path), fingerprint([path]), test_size=test_size, split_seed=split_seed)


def read_npz(path: Path) -> dict[str, Any]:
    """{name: array} of the members that a data set has; nothing in them is unpickled."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in (*NAMES, "class_names"):
                    found[name] = read_member(archive, member, file, path)
    except Unfit as error:
        raise DataError(f"{path}: {error}") from None
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or no .npz file ({reason_of(error)})") from None
    return found


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: BinaryIO, path: Path) -> numpy.ndarray:
    """One array, of which a large one stays in the file."""
    name, large = member.filename.removesuffix(".npy"), member.file_size > on_demand.IN_MEMORY
    with archive.open(member) as content:
        dtype, shape, fortran = header_of(content)
        if dtype.hasobject:
            raise Unfit(f"{name} holds Python objects, which may run code: write it as numbers")
        n_bytes = dtype.itemsize * int(numpy.prod(shape, dtype=object))
        header = content.tell()
        if header + n_bytes != member.file_size:
            raise Unfit(f"{name} has {member.file_size - header} bytes where its shape {shape} asks for {n_bytes}")
        if not large:
            array = numpy.frombuffer(content.read(), dtype)
            return array.reshape(shape, order="F" if fortran else "C")
    if member.compress_type != zipfile.ZIP_STORED:
        raise Unfit(f"{name} is compressed and too large to be read at once: write it with numpy.savez")
    file.seek(member.header_offset)
    names = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:])
    offset = member.header_offset + LOCAL_HEADER + sum(names) + header
    return numpy.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def header_of(content: Any) -> tuple[numpy.dtype, tuple[int, ...], bool]:
    """(dtype, shape, whether in Fortran's order) of what begins like a .npy file."""
    major, minor = numpy.lib.format.read_magic(content)
    size = struct.unpack("<H", content.read(2))[0] if major == 1 else struct.unpack("<I", content.read(4))[0]
    if (major, minor) not in ((1, 0), (2, 0), (3, 0)) or size > 1 << 16:
        raise Unfit("it holds something else than arrays")
    said = ast.literal_eval(content.read(size).decode("utf8" if major == 3 else "latin1"))
    shape = tuple(said["shape"])
    if not all(type(n) is int and n >= 0 for n in shape):
        raise Unfit("it holds an array of no shape")
    return (
        numpy.dtype(said["descr"]) if isinstance(said["descr"], str) else numpy.dtype("O"),
        shape,
        bool(said["fortran_order"]),
    )


def make_small(root: Path) -> None:
    """`data.npz` with 400 + 200 random grey images of 8x8 pixels, of 10 classes."""
    x_train, x_test = (pixels(n, 64).reshape(n, 8, 8) for n in (400, 200))
    y_train, y_test = (numpy.array(labels_in_turn(n, 10)) for n in (400, 200))
    numpy.savez(root / USUAL_FILE, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


NPZ = DatasetSpec("npz", load, make_small=make_small)

"""Arrays of MATLAB files (version 5), whose kinds and sizes are looked at before they are read."""

import math
import struct
import zlib
from pathlib import Path

import numpy

from helper.untrusted.reasons import Unfit, reason_of
from loader.archives import MOST_BYTES

BYTES_A_VALUE = {
    "logical": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "single": 4,
    "int64": 8, "uint64": 8, "double": 8,
}  # fmt: skip


def numeric_arrays(path: Path, *names: str) -> list[numpy.ndarray]:
    """The named arrays of a file.

    Raises:
        Unfit: the file is damaged, or an array is missing, holds something else than numbers, or is larger than a data file.
    """
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        kinds = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        for name in names:
            shape, kind = kinds[name]
            if kind not in BYTES_A_VALUE:
                raise Unfit(f"{name} is no array of numbers")
            if math.prod(shape) * BYTES_A_VALUE[kind] > MOST_BYTES:
                raise Unfit(f"{name} has more than {MOST_BYTES >> 20} MiB")
        content = loadmat(path, variable_names=names)
        return [content[name] for name in names]
    except (
        MatReadError, LookupError, ValueError, TypeError, OSError, EOFError, RuntimeError, AttributeError, ArithmeticError,
        MemoryError, SystemError, zlib.error, struct.error,
    ) as error:  # fmt: skip
        raise Unfit(reason_of(error)) from None

"""Image files decoded once, into files of bytes from which every run takes what it needs."""

import contextlib
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import psutil

from helper.processes.interruption import checking_signals
from helper.progress import tracked
from helper.untrusted.reasons import reason_of
from helper.untrusted.texts import one_line
from loader import on_demand
from loader.archives import DataError
from loader.arrays import Inputs, as_tensor, with_channels_behind

log = logging.getLogger(__name__)
GREY = ("1", "L", "LA")
MORE_THAN_BYTES = ("I", "F")  # and I;16, I;16B ...
ROTATED = (5, 6, 7, 8)  # orientations of a camera in which height and width change places
ORIENTATION = 0x0112
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError, struct.error,
              zlib.error)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """Height, width and channels of what is stored."""

    height: int
    width: int
    channels: int


def decoded(files: Mapping[str, Sequence[Path]], cache: Path, image_size: int | None) -> dict[str, Inputs]:
    """{role: its images as bytes (N, C, H, W)}, from a folder of the cache that is made if it is not there.

    Raises:
        DataError: an image cannot be read, or there are several sizes and none is asked for. OSError: no room for the cache.
    """
    if not cache.is_dir():
        make(files, cache, image_size)
    found = {}
    for role, paths in files.items():
        found[role] = stored(cache / f"{role}.npy", len(paths))
    return found


def stored(path: Path, n: int) -> Inputs:
    """The images of a file of the cache, of which many stay there."""
    try:
        large = path.stat().st_size > on_demand.IN_MEMORY
        array = numpy.load(path, mmap_mode="r" if large else None, allow_pickle=False)
        if array.dtype != numpy.uint8 or array.ndim != 4 or len(array) != n:
            raise ValueError("another shape")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.parent} has no decoded images ({reason_of(error)}): remove it, and it is made again") from None
    return with_channels_behind(as_tensor(array, str(path)))


def make(files: Mapping[str, Sequence[Path]], cache: Path, image_size: int | None) -> None:
    """Decode all images into a folder that takes its name once it is whole."""
    form = form_of([path for paths in files.values() for path in paths], image_size)
    partial = cache.with_name(f".{cache.name}.{os.getpid()}.partial")
    for left_over in cache.parent.glob(".*.partial"):
        if not psutil.pid_exists(int(left_over.name.split(".")[-2])):
            shutil.rmtree(left_over, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    try:
        for role, paths in files.items():
            write_images(partial / f"{role}.npy", paths, form, image_size)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.rename(partial, cache)
    except OSError as error:
        if not cache.is_dir():
            raise DataError(f"{cache.parent}: {error.strerror}; say with --image_cache where there is room") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_images(target: Path, paths: Sequence[Path], form: Form, image_size: int | None) -> None:
    shape = (len(paths), form.height, form.width, form.channels)
    with open(target, "wb") as file:
        numpy.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for path in checking_signals(tracked(paths, "decoding images", "images")):
            file.write(pixels_of(path, form, image_size).tobytes())
        file.flush()
        os.fsync(file.fileno())


def form_of(paths: Sequence[Path], image_size: int | None) -> Form:
    """What all images have, or are brought to: grey where all are grey, else three colours.

    Raises:
        DataError: several sizes, or an image that is none.
    """
    heads = [head_of(path) for path in checking_signals(tracked(paths, "looking at images", "images"))]
    channels = 1 if all(mode in GREY for mode, _ in heads) else 3
    sizes = {size for _, size in heads}
    if image_size is None and len(sizes) > 1:
        (least, most) = min(sizes), max(sizes)
        raise DataError(
            f"the images are of {len(sizes)} sizes, such as {least[0]}x{least[1]} and {most[0]}x{most[1]}: give --image_size"
        )
    if image_size is not None and sizes != {(image_size, image_size)}:
        log.info("images of %d sizes are cut to squares and resized to %dx%d", len(sizes), image_size, image_size)
    height, width = (image_size, image_size) if image_size else next(iter(sizes))
    return Form(height, width, channels)


def head_of(path: Path) -> tuple[str, tuple[int, int]]:
    """(mode, (height, width)) of an image file, by its beginning."""
    with opened(path) as image:
        if image.mode.startswith(MORE_THAN_BYTES):
            raise DataError(f"{path} has pixels of more than 8 bits: convert it, as it would be cut off")
        width, height = image.size
        return image.mode, (width, height) if image.getexif().get(ORIENTATION) in ROTATED else (height, width)


def pixels_of(path: Path, form: Form, image_size: int | None) -> numpy.ndarray:
    """(H, W, C) bytes."""
    from PIL import Image, ImageOps

    with opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if form.channels == 1 else "RGB")
        if image_size is not None and upright.size != (image_size, image_size):
            upright = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
        return numpy.asarray(upright).reshape(form.height, form.width, form.channels)


@contextlib.contextmanager
def opened(path: Path):
    """An image file. Raises DataError: it is none, or damaged, also where that shows inside."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError:
        raise DataError(f"{path} is damaged or made up: it would have more pixels than an image has") from None
    except UNREADABLE as error:
        reason = one_line(error, 200) if isinstance(error, OSError) and not error.strerror else reason_of(error)
        raise DataError(f"{path} is damaged or no image ({reason}): replace or remove it") from None

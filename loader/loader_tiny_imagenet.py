"""Tiny ImageNet (Stanford CS231n 2015): 100,000 + 10,000 colour images of 64x64 pixels in 200 classes of ImageNet.

The published validation images are the test set: the labels of the test images were never published.
"""

import io
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from helper.processes.interruption import checking_signals
from helper.untrusted.reasons import Unfit, reason_of
from helper.untrusted.texts import one_line
from loader.archives import DataError, fingerprint, provide_file
from loader.dataset import Source
from loader.made_up import labels_in_turn, pixels
from loader.spec import DatasetSpec, Published

FILE, PUBLISHED_MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
URL = f"http://cs231n.stanford.edu/{FILE}"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
SIDE = 64
TOP = "tiny-imagenet-200/"
TRAIN_IMAGE = re.compile(TOP + r"train/(n\d{8})/images/\1_(\d{1,6})\.JPEG")
MOST_IMAGES, MOST_BYTES = 200_000, 16 << 20  # in the archive, and in one file of it; published: 120,000 and 2.5 MiB


def load(*, root: str, download: bool, verify_data: bool) -> Source:
    """Tiny ImageNet from `ROOT/tiny-imagenet-200.zip`, downloaded if need be and read as it is: nothing is unpacked.

    Classes are numbered in the order of their WordNet identifiers, images stand in the order of class and number.

    Raises:
        DataError: missing, damaged, or not the published file.
    """
    from PIL import Image

    path = Path(root, FILE)
    provide_file([URL], path, PUBLISHED_MD5, download=download, verify_data=verify_data)
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            names, splits = read(archive)
    except (
        zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, LookupError, ValueError, RuntimeError, MemoryError,
    ) as error:  # fmt: skip
        cause = reason_of(error)
        raise DataError(f"{path} is damaged or not Tiny ImageNet's ({cause}); delete it and download it again") from None
    return Source(
        *splits[0], *splits[1], names, 255, MEAN, STD,
        fingerprint=None if verify_data else fingerprint([path], [PUBLISHED_MD5]),
    )  # fmt: skip


def read(archive: zipfile.ZipFile) -> tuple[tuple[str, ...], list[tuple[Tensor, Tensor]]]:
    """(names of the classes, (images, labels) of the training and of the validation split).

    Raises:
        Unfit: a file is larger than any of that name should be, an image is missing or no JPEG of 64x64 pixels.
    """
    files = {file.filename: file for file in archive.infolist()}
    classes = sorted(set(lines(archive, "wnids.txt")))
    number = {wnid: label for label, wnid in enumerate(classes)}
    synsets = dict(line.split("\t", 1) for line in lines(archive, "words.txt"))
    names = tuple(one_line(synsets.get(wnid, wnid).split(",")[0], 100) for wnid in classes)
    found = [match for match in map(TRAIN_IMAGE.fullmatch, files) if match and match[1] in number]
    train = sorted((number[match[1]], int(match[2]), match[0]) for match in found)
    annotations = [line.split("\t") for line in lines(archive, "val/val_annotations.txt")]
    val = [(number[fields[1]], f"{TOP}val/images/{fields[0]}") for fields in annotations]
    if not train or not val or len(train) + len(val) > MOST_IMAGES:
        raise Unfit(f"it has {len(train)} training and {len(val)} validation images")
    splits = [(label, name) for label, _, name in train], val
    return names, [
        (read_images(archive, [name for _, name in rows]), torch.tensor([label for label, _ in rows])) for rows in splits
    ]


def lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Those of a text file that are not empty."""
    return [line for line in content(archive, TOP + name).decode().splitlines() if line]


def content(archive: zipfile.ZipFile, name: str) -> bytes:
    """What a file of the archive holds; no more than it says that it has is ever unpacked."""
    try:
        file = archive.getinfo(name)
    except KeyError:
        raise Unfit(f"it lacks {one_line(name, 100)}") from None
    if file.file_size > MOST_BYTES:
        raise Unfit(f"{one_line(name, 100)} would have {file.file_size >> 20} MiB")
    return archive.read(file)


def read_images(archive: zipfile.ZipFile, names: list[str]) -> Tensor:
    """(N, 3, 64, 64) uint8; grey images have three equal channels."""
    images = numpy.empty((len(names), 3, SIDE, SIDE), dtype=numpy.uint8)
    for row, name in enumerate(checking_signals(names)):
        images[row] = read_image(io.BytesIO(content(archive, name)), one_line(name, 100))
    return torch.from_numpy(images)


def read_image(file: io.BytesIO, name: str) -> numpy.ndarray:
    """(3, 64, 64) bytes. Raises Unfit: it is no whole JPEG of 64x64 pixels."""
    from PIL import Image

    try:
        with Image.open(file, formats=("JPEG",)) as image:
            if image.size != (SIDE, SIDE):
                raise Unfit(f"{name} has {image.size[0]}x{image.size[1]} pixels")
            return numpy.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unfit(f"{name} is no whole JPEG image") from None


def make_small(root: Path) -> None:
    """The archive with two random training images and one validation image for each class."""
    wnids = [f"n{i:08}" for i in range(200)]
    shown = pixels(600, 64).reshape(600, 8, 8)
    with zipfile.ZipFile(root / FILE, "w") as archive:
        archive.writestr(TOP + "wnids.txt", "\n".join(reversed(wnids)))
        archive.writestr(TOP + "words.txt", "".join(f"{wnid}\tclass{i}, one of 200\n" for i, wnid in enumerate(wnids)))
        for i, wnid in enumerate(labels_in_turn(400, 200)):
            archive.writestr(f"{TOP}train/{wnids[wnid]}/images/{wnids[wnid]}_{i // 200}.JPEG", jpeg(shown[i]))
        annotated = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(wnids)]
        archive.writestr(TOP + "val/val_annotations.txt", "".join(annotated))
        for i in range(200):
            archive.writestr(f"{TOP}val/images/val_{i}.JPEG", jpeg(shown[400 + i]))


def jpeg(levels: numpy.ndarray) -> bytes:
    """A grey image of 8x8 grey squares."""
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(levels.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)).save(written, "JPEG", quality=95)
    return written.getvalue()


TINY_IMAGENET = DatasetSpec(
    "tiny_imagenet", load, Published(100_000, 10_000, (3, SIDE, SIDE), 200), augmented=True, padding=4, make_small=make_small,
)  # fmt: skip

"""Images of a user's own in folders named by their classes: ROOT/train/CLASS, ROOT/test/CLASS (or val), or ROOT/CLASS alone."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from helper.processes.interruption import checking_signals
from helper.schema.config import flag
from helper.system.caches import user_cache
from helper.system.files import hash_of_file, write_atomic
from helper.untrusted.texts import one_line
from loader.archives import DataError
from loader.arrays import Labelled, check_classes, described, held_out
from loader.dataset import Source
from loader.decoded import decoded
from loader.spec import DatasetSpec

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TESTING = ("test", "val", "valid", "validation")  # folders for testing, of which the first that is there counts


class FolderFlags:
    image_size: int | None = flag(
        None, "height and width that images get: the largest square from the middle, resized; default: as they are, all alike",
        low=1,
    )  # fmt: skip
    image_cache: str | None = flag(
        None, "folder for decoded images; default: price-of-sparsity/images in the user's cache folder", identity=False
    )


@dataclass(frozen=True)
class Listed:
    """Image files of one role in the order of their names, with the numbers of their classes."""

    paths: Sequence[Path]
    labels: Sequence[int]


def load(*, root: str, image_size: int | None, image_cache: str | None, test_size: float, split_seed: int) -> Source:
    """The images under ROOT, decoded once for all runs.

    Raises:
        DataError: no such folders, one class, one without images, an image that cannot be read, several sizes.
    """
    roles, names = listed(Path(root))
    key = content_of(Path(root), roles)
    cache = Path(image_cache) if image_cache else user_cache() / "images"
    inputs = decoded({role: each.paths for role, each in roles.items()}, cache / f"{key}-{image_size or 'whole'}", image_size)
    found = {role: Labelled(inputs[role], torch.tensor(each.labels)) for role, each in roles.items()}
    train, test = (found["train"], found["test"]) if "test" in found else held_out(found["train"], test_size, split_seed)
    check_classes(train, test, names, root)
    log.info(
        "%s: %d training and %d test images of %d classes, %s", one_line(root, 200), len(train.labels), len(test.labels),
        len(names), "x".join(map(str, train.inputs.shape[1:])),
    )  # fmt: skip
    return described(train, test, [one_line(name, 100) for name in names], f"{key}-{image_size or 'whole'}")


# ------------------------------------------------------------------------------------------------- what there is


def listed(root: Path) -> tuple[dict[str, Listed], list[str]]:
    """({train: images, test: images, where there are folders for testing}, names of the classes)."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder: say with --root where the folders of images are")
    folders = {"train": root / "train"} if (root / "train").is_dir() else {"train": root}
    if folders["train"] != root:
        testing = [root / name for name in TESTING if (root / name).is_dir()]
        folders |= {"test": testing[0]} if testing else {}
        if len(testing) > 1:
            log.info("%s is for testing, and %s is not read", testing[0], ", ".join(map(str, testing[1:])))
    names = classes_in(folders["train"])
    strange = [name for name in classes_in(folders["test"]) if name not in names] if "test" in folders else []
    if strange:
        raise DataError(f"{folders['test'] / strange[0]}: there is no such class in {folders['train']}")
    return {role: images_in(folder, names, needed=role == "train") for role, folder in folders.items()}, names


def classes_in(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        found = f"one class, {names[0]}" if names else "no folders of classes"
        raise DataError(f"{folder} has {found}: it has to have a folder of images for each of two or more classes")
    return names


def images_in(folder: Path, names: Sequence[str], *, needed: bool) -> Listed:
    """The images of every class, also in folders within.

    Args:
        needed: whether every class has to have some.
    """
    paths, labels, others = [], [], []
    for label, name in enumerate(names):
        files = sorted(
            Path(at, file) for at, _, inside in os.walk(folder / name) for file in inside if not file.startswith(".")
        )
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        others += [file for file in files if file.suffix.lower() not in SUFFIXES]
        if needed and not images:
            raise DataError(
                f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))}): fill the class, or remove its folder"
            )
        paths += images
        labels += [label] * len(images)
    if others:
        log.info("%s: %d files are no images and not read, such as %s", folder, len(others), others[0].name)
    return Listed(paths, labels)


# ------------------------------------------------------------------------------------------------------ identity


def content_of(root: Path, roles: Mapping[str, Listed]) -> str:
    """Hash over names and contents of all images. Where names, sizes and times are those of an earlier call, it is known."""
    paths = [path for each in roles.values() for path in each.paths]
    stats = [(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path in paths for stat in [path.stat()]]
    known = user_cache() / "contents" / hashlib.sha256(repr((str(root.resolve()), stats)).encode()).hexdigest()[:32]
    try:
        key = known.read_text()
        if len(key) == 16 and key.isalnum():
            return key
    except (OSError, UnicodeDecodeError):
        pass
    found = hashlib.sha256()
    for path in checking_signals(paths):
        found.update(f"{path.relative_to(root).as_posix()}\0{hash_of_file(path)}\n".encode(errors="surrogateescape"))
    key = found.hexdigest()[:16]
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(known, key)
    except OSError as error:
        log.info("the hash of the images under %s is not kept: %s", root, error.strerror)
    return key


def make_small(root: Path) -> None:
    """train/ and test/ with 80 and 30 colour images of 8x8 pixels of each of two classes, one brighter than the other."""
    import numpy
    from PIL import Image

    draw = numpy.random.default_rng(0)
    for role, n in (("train", 80), ("test", 30)):
        for name, base in (("dark", 0), ("light", 120)):
            folder = root / role / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(n):
                pixels = draw.integers(base, base + 130, (8, 8, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


FOLDER = DatasetSpec("folder", load, flags=FolderFlags, make_small=make_small)

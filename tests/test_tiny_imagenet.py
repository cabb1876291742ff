"""Tiny ImageNet's archive: read as it is, and never trusted."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from loader import loader_tiny_imagenet
from loader.archives import DataError
from loader.loader_tiny_imagenet import FILE, TOP, jpeg
from loader.made_up import pixels
from loader.main import DataConfig, load_dataset
from tests.test_loaders import load

FIRST = f"{TOP}train/n00000000/images/n00000000_0.JPEG"
GREY = jpeg(pixels(8, 8))


def changed(files: Path, root: Path, changes: dict[str, bytes | None]) -> Path:
    """`root` with a copy of the archive in which some files are others; None leaves one out."""
    root.mkdir()
    with zipfile.ZipFile(files / FILE) as old, zipfile.ZipFile(root / FILE, "w") as new:
        for name in old.namelist():
            if name not in changes:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            if content is not None:
                new.writestr(name, content)
    return root


def picture(side: int, kind: str, mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.new(mode, (side, side), 0).save(written, kind)
    return written.getvalue()


def test_classes_are_numbered_by_identifier_and_have_their_first_name(files):
    data = load(files, "tiny_imagenet")
    assert data.class_names == tuple(f"class{i}" for i in range(200))
    assert data.train.labels.tolist() == [i // 2 for i in range(400)]
    assert data.test.labels.tolist() == list(range(200))
    assert data.augmented


def test_images_are_those_of_the_archive_by_class_and_number(files, tmp_path):
    data = load(files, "tiny_imagenet")
    shown = torch.from_numpy(pixels(600, 64).reshape(600, 8, 8))
    rows = torch.tensor([0, 1, 2, 399])
    written = (
        shown[torch.tensor([0, 200, 1, 399])].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand(-1, 3, -1, -1)
    )
    assert (data.train.inputs[rows].int() - written.int()).abs().max() <= 3  # what a JPEG of quality 95 loses
    root = changed(files, tmp_path / "ten", {f"{TOP}train/n00000000/images/n00000000_10.JPEG": GREY})
    assert load(root, "tiny_imagenet").train.labels[:4].tolist() == [0, 0, 0, 1]  # the tenth after the second


def test_the_channels_of_a_colour_image_stay_apart(files, tmp_path):
    red = numpy.zeros((64, 64, 3), dtype=numpy.uint8)
    red[..., 0] = 255
    written = io.BytesIO()
    Image.fromarray(red).save(written, "JPEG")
    data = load(changed(files, tmp_path / "red", {FIRST: written.getvalue()}), "tiny_imagenet")
    assert [round(x / 255) for x in data.train.inputs[0].float().mean((1, 2)).tolist()] == [1, 0, 0]


def test_files_elsewhere_in_the_archive_do_nothing(files, tmp_path):
    train = f"{TOP}train/n00000001/images/"
    names = (
        f"../{FIRST}",
        "/tmp/x.JPEG",
        f"{train}../../x.JPEG",
        f"{train}n00000000_7.JPEG",
        f"{TOP}train/n9/images/n9_0.JPEG",
    )
    stray = dict.fromkeys(names, GREY)
    data = load(changed(files, tmp_path / "stray", stray), "tiny_imagenet")
    assert torch.equal(data.train.inputs, load(files, "tiny_imagenet").train.inputs)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["stray", FILE]


DAMAGES = {
    "a file that is missing": ({TOP + "wnids.txt": None}, "it lacks tiny-imagenet-200/wnids.txt"),
    "no classes": ({TOP + "wnids.txt": b""}, "it lacks n00000000"),
    "an annotation of another class": ({TOP + "val/val_annotations.txt": b"val_0.JPEG\tn12345678\t0\n"}, "it lacks n12345678"),
    "an annotation of a missing image": (
        {TOP + "val/val_annotations.txt": b"no.JPEG\tn00000000\t0\n"},
        r"it lacks .*val/images/no.JPEG",
    ),
    "an annotation of one column": (
        {TOP + "val/val_annotations.txt": b"val_0.JPEG\n"},
        "it holds something else than it should",
    ),
    "no annotations": ({TOP + "val/val_annotations.txt": b""}, "it has 400 training and 0 validation images"),
    "names that are no text": ({TOP + "words.txt": b"n00000000\t\xff\n"}, "it is no UTF-8 text"),
    "an image that is none": ({FIRST: b"no image"}, ".*n00000000_0.JPEG is no whole JPEG image"),
    "half an image": ({FIRST: GREY[: len(GREY) // 2]}, ".*n00000000_0.JPEG is no whole JPEG image"),
    "an image of another kind": ({FIRST: picture(64, "PNG")}, ".*n00000000_0.JPEG is no whole JPEG image"),
    "an image of other sizes": ({FIRST: picture(63, "JPEG")}, r".*n00000000_0.JPEG has 63x63 pixels"),
    "an enormous image": ({FIRST: picture(10_000, "JPEG", "L")}, ".*n00000000_0.JPEG is no whole JPEG image"),
    "a file that grows": ({TOP + "words.txt": bytes(17 << 20)}, ".*words.txt would have 17 MiB"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("changes", "words"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_the_published_layout_is_refused_in_a_line(files, tmp_path, changes, words):
    root = changed(files, tmp_path / "data", changes)
    with pytest.raises(DataError, match=rf"{FILE} is damaged or not Tiny ImageNet's \({words}") as refusal:
        load(root, "tiny_imagenet")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["empty", "half", "changed"])
def test_damaged_archives_are_refused(files, tmp_path, damage):
    whole = (files / FILE).read_bytes()
    middle = len(whole) // 2
    content = {"empty": b"", "half": whole[:middle], "changed": whole[:middle] + bytes(2000) + whole[middle + 2000 :]}[damage]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"{FILE} is damaged"):
        load(tmp_path, "tiny_imagenet")


def test_the_archive_is_downloaded_and_verified(files, tmp_path, monkeypatch):
    archive = shutil.copy(files / FILE, tmp_path / FILE)
    monkeypatch.setattr(loader_tiny_imagenet, "URL", Path(archive).as_uri())
    monkeypatch.setattr(loader_tiny_imagenet, "PUBLISHED_MD5", hashlib.md5((files / FILE).read_bytes()).hexdigest())
    load_dataset.cache_clear()
    data = load_dataset(DataConfig("tiny_imagenet", root=str(tmp_path / "root")))
    assert data.fingerprint is None
    assert len(data.train) == 400
    monkeypatch.setattr(loader_tiny_imagenet, "PUBLISHED_MD5", "0" * 32)
    load_dataset.cache_clear()
    with pytest.raises(DataError, match="not the published file"):
        load_dataset(DataConfig("tiny_imagenet", root=str(tmp_path / "root")))

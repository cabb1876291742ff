"""SVHN's files: digits that are stored from 1 to 10, and files that are none of it."""

import shutil

import numpy
import pytest
import torch
from scipy.io import savemat

from helper.untrusted.reasons import Unfit
from loader import loader_svhn, mat_files
from loader.archives import DataError
from loader.loader_svhn import read_digits
from loader.made_up import N_TRAIN, pixels
from loader.mat_files import numeric_arrays
from tests.test_loaders import load

IMAGES, DIGITS = numpy.zeros((32, 32, 3, 4), dtype=numpy.uint8), numpy.array([[1], [2], [9], [10]], dtype=numpy.uint8)


def test_images_keep_their_pixels_and_a_ten_is_a_zero(files):
    data = load(files, "svhn")
    assert torch.equal(data.train.inputs[:].flatten(1), torch.from_numpy(pixels(N_TRAIN, 3072)))
    assert data.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.class_names == tuple("0123456789")
    assert data.train.inputs.is_contiguous()


def test_rows_columns_and_channels_stay_where_they_are(tmp_path):
    images = IMAGES.copy()
    images[5, 7, 1, 2] = 200  # row, column, channel, example
    savemat(tmp_path / "some.mat", {"X": images, "y": DIGITS})
    read, labels = read_digits(tmp_path / "some.mat")
    assert read.nonzero().tolist() == [[2, 1, 5, 7]]
    assert labels.tolist() == [1, 2, 9, 0]


NO_DIGITS = {
    "a digit of 0": {"y": DIGITS % 10},
    "a digit of 11": {"y": DIGITS + 1},
    "fewer digits": {"y": DIGITS[:3]},
    "no images": {"X": IMAGES[..., :0], "y": DIGITS[:0]},
    "floats": {"X": IMAGES / 255},
    "other sizes": {"X": IMAGES[:28]},
    "text": {"y": "1234"},
    "objects": {"X": numpy.array([{"a": 1}, 2], dtype=object)},
    "a structure": {"X": {"X": IMAGES}},
}


@pytest.mark.parametrize("changes", NO_DIGITS.values(), ids=NO_DIGITS)
def test_files_of_another_layout_are_refused(tmp_path, changes):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": IMAGES, "y": DIGITS, **changes})
    with pytest.raises(DataError, match=r"train_32x32.mat .*; delete it and download it again"):
        read_digits(path)


@pytest.mark.parametrize("damage", ["empty", "half", "changed", "text"])
def test_damaged_files_are_refused(files, tmp_path, damage):
    root = shutil.copytree(files, tmp_path / "data")
    path = root / "test_32x32.mat"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {"empty": b"", "half": whole[:middle], "changed": whole[:middle] + bytes(99) + whole[middle + 99 :], "text": b"no"}[
            damage
        ]
    )
    with pytest.raises(DataError, match=r"test_32x32.mat is damaged or no file of SVHN"):
        load(root, "svhn")


@pytest.mark.parametrize(("name", "layout"), [("toy", {"F": IMAGES, "y": DIGITS}), ("svhn", {"X": IMAGES, "y": DIGITS})])
def test_arrays_larger_than_a_data_file_are_refused_before_they_are_read(tmp_path, monkeypatch, name, layout):
    monkeypatch.setattr(mat_files, "MOST_BYTES", 4096)
    monkeypatch.setattr("scipy.io.loadmat", lambda *args, **kwargs: pytest.fail("it was read"))
    for file in ("var_u.mat", *loader_svhn.FILES):
        savemat(tmp_path / file, layout, do_compression=True)
    with pytest.raises(DataError, match="has more than 0 MiB"):
        load(tmp_path, name)


def test_an_array_that_is_not_there_is_named(tmp_path):
    savemat(tmp_path / "some.mat", {"X": IMAGES})
    with pytest.raises(Unfit, match="it lacks y"):
        numeric_arrays(tmp_path / "some.mat", "X", "y")

"""SVHN, cropped digits (Netzer et al. 2011): 73,257 + 26,032 colour images of 32x32 pixels of house numbers."""

from pathlib import Path

import numpy
import torch
from torch import Tensor

from helper.untrusted.reasons import Unfit
from loader.archives import DataError, fingerprint, provide_file
from loader.dataset import Source
from loader.made_up import N_TEST, N_TRAIN, labels_in_turn, pixels
from loader.mat_files import numeric_arrays
from loader.spec import DatasetSpec, Published

URL = "http://ufldl.stanford.edu/housenumbers/"
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)


def load(*, root: str, download: bool, verify_data: bool) -> Source:
    """SVHN from `ROOT/train_32x32.mat` and `test_32x32.mat`, downloaded if need be.

    A class is the digit that is seen; the files store a 0 as 10.

    Raises:
        DataError: missing, damaged, or not the published files.
    """
    paths = [Path(root, name) for name in FILES]
    for path, published_md5 in zip(paths, FILES.values(), strict=True):
        provide_file([URL + path.name], path, published_md5, download=download, verify_data=verify_data)
    train, test = (read_digits(path) for path in paths)
    return Source(
        *train, *test, tuple("0123456789"), 255, MEAN, STD,
        fingerprint=None if verify_data else fingerprint(paths, FILES.values()),
    )  # fmt: skip


def read_digits(path: Path) -> tuple[Tensor, Tensor]:
    """((N, 3, 32, 32) uint8 images, (N,) digits) of a file with X: 32 x 32 x 3 x N bytes and y: N x 1, from 1 to 10."""
    try:
        images, labels = numeric_arrays(path, "X", "y")
    except Unfit as error:
        raise DataError(f"{path} is damaged or no file of SVHN ({error}); delete it and download it again") from None
    n = labels.size
    if (
        images.dtype != "uint8"
        or labels.dtype != "uint8"
        or n == 0
        or images.shape != (32, 32, 3, n)
        or not (labels.min() >= 1 and labels.max() <= 10)
    ):
        layout = "X: 32 x 32 x 3 x N bytes, y: N digits from 1 to 10"
        raise DataError(f"{path} has not the layout of SVHN ({layout}); delete it and download it again")
    in_rows = numpy.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return torch.from_numpy(in_rows), torch.from_numpy(labels.flatten().astype("int64") % 10)


def make_small(root: Path) -> None:
    """Both files with random pixels."""
    from scipy.io import savemat

    for name, n in zip(FILES, (N_TRAIN, N_TEST), strict=True):
        images = pixels(n, 3072).reshape(n, 3, 32, 32).transpose(2, 3, 1, 0)
        digits = numpy.array([[digit or 10] for digit in labels_in_turn(n, 10)], dtype=numpy.uint8)
        savemat(root / name, {"X": images, "y": digits}, do_compression=True)


SVHN = DatasetSpec("svhn", load, Published(73_257, 26_032, (3, 32, 32), 10), make_small=make_small)

"""The 12-bit synthetic set of Shwartz-Ziv & Tishby (2017): every pattern of 12 bits once, two classes."""

from pathlib import Path

import numpy
import torch
from torch import Tensor

from helper.schema.config import flag
from helper.system.seeds import stream
from helper.untrusted.reasons import Unfit
from loader.archives import DataError, fingerprint
from loader.dataset import Source
from loader.mat_files import numeric_arrays
from loader.spec import DatasetSpec, Published, held_out
from loader.splits import balanced_rows

USUAL_FILE = "var_u.mat"


class ToyFlags:
    filename: str | None = flag(
        None, "file of the toy set or of arrays under --root; default: var_u.mat, or data.npz", short="-fn", identity=False
    )


def load(*, root: str, filename: str | None, test_size: float, split_seed: int) -> Source:
    """The toy set with a class-balanced test share: `ROOT/FILENAME`, or `var_u.mat`, if it is there, else generated.

    Raises:
        DataError: the file is damaged or has another layout (F: N x 12 bits, y: 1 x N).
    """
    path = Path(root, filename or USUAL_FILE)
    inputs, labels = read_mat(path) if path.exists() else generate()
    test, train = balanced_rows(labels, round(test_size * len(labels)), stream(split_seed, "test"))
    return Source(
        inputs[train], labels[train], inputs[test], labels[test], ("0", "1"), 1, (0.0,), (1.0,),
        fingerprint=fingerprint([path]) if path.exists() else None,
    )  # fmt: skip


def read_mat(path: Path) -> tuple[Tensor, Tensor]:
    try:
        inputs, labels = (torch.from_numpy(array.astype("int64")) for array in numeric_arrays(path, "F", "y"))
    except Unfit as error:
        cure = "move it away to generate one"
        raise DataError(f"{path} is damaged or has not the toy set's layout ({error}); {cure}") from None
    labels = labels.flatten()
    if (
        inputs.ndim != 2
        or len(inputs) < 10
        or not inputs.shape[1]
        or len(inputs) != len(labels)
        or not ((inputs | 1) == 1).all()
        or not ((labels | 1) == 1).all()
    ):
        raise DataError(f"{path} has not the toy set's layout (F: N x 12 bits, y: 1 x N bits)")
    return inputs.to(torch.uint8), labels


def generate() -> tuple[Tensor, Tensor]:
    """All 4,096 patterns of 12 bits, labelled by a rotation-invariant function of bits on the icosahedron's vertices.

    As in the original set, the bits are points spread evenly on a sphere, the score does not change when the sphere turns,
    and it is cut so that the classes are nearly balanced. The score is the quadratic form sum_ij x_i x_j exp(2 u_i.u_j) of
    the vertices u, less its regression on the number of bits, so that counting alone does not solve it.
    """
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices = torch.tensor([c[i:] + c[:i] for c in corners for i in range(3)], dtype=torch.float64)
    vertices /= vertices.norm(dim=1, keepdim=True)
    bits = (torch.arange(4096)[:, None] >> torch.arange(12)) & 1
    x = bits.double()
    score = ((x @ (2 * vertices @ vertices.T).exp()) * x).sum(1)
    count = x.sum(1)
    powers = count[:, None] ** torch.arange(3)
    score = score - powers @ torch.linalg.lstsq(powers, score[:, None]).solution.squeeze(1)
    return bits.to(torch.uint8), (score.round(decimals=9) > score.median().round(decimals=9)).long()


def sizes(*, test_size: float) -> Published:
    return held_out(4096, test_size, (12,), 2)


def make_small(root: Path) -> None:
    """`var_u.mat` with 256 random patterns, labelled by how many bits they have."""
    from scipy.io import savemat

    bits = numpy.random.default_rng(0).integers(0, 2, (256, 12), dtype=numpy.uint8)
    savemat(root / USUAL_FILE, {"F": bits, "y": bits.sum(1, keepdims=True).T > 6})


TOY = DatasetSpec("toy", load, sizes, flags=ToyFlags, make_small=make_small)

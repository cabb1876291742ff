"""What spectrum.npz has to hold, for those who read it. No torch."""

from pathlib import Path

import numpy

from helper.untrusted.arrays import read_arrays

MATRICES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton matrix"}
OF_EIGENVALUES = ("eigenvalues", "residuals", "corrected", "bias", "standard_errors")
OF_GRID = ("grid", "density", "density_errors")
DIMENSIONS = dict.fromkeys((*OF_EIGENVALUES, *OF_GRID), 1) | dict.fromkeys(("sigma", "size", "n_samples", "population"), 0)
UNKNOWN = ("density_errors", "corrected", "bias", "standard_errors")  # nan of one starting vector, of a handful of examples
SPECTRUM_KEY = ("checkpoint", "split", "params", "settings")  # which weights it is of, and how it was measured


def read_spectrum(path: Path) -> dict[str, numpy.ndarray]:
    """What spectrum.npz holds. Raises RuntimeError: it is damaged, or lacks what a reader needs."""
    arrays = read_arrays(path)
    numbers = {
        name: arrays[name]
        for name, n in DIMENSIONS.items()
        if name in arrays and arrays[name].ndim == n and arrays[name].size and arrays[name].dtype.kind in "fiu"
    }
    whole = (
        len(numbers) == len(DIMENSIONS)
        and all(numpy.isfinite(array).all() for name, array in numbers.items() if name not in UNKNOWN)
        and not any(numpy.isinf(numbers[name]).any() for name in UNKNOWN)
        and all(len({numbers[name].shape for name in names}) == 1 for names in (OF_EIGENVALUES, OF_GRID))
        and not any((numbers[name] < 0).any() for name in ("residuals", "standard_errors", "density_errors"))
        and str(arrays.get("matrix")) in MATRICES
    )
    if not whole:
        raise RuntimeError(f"{path} is damaged (it has not the layout of a spectrum); remove it to have it made again")
    return arrays


def spectrum_key(path: Path) -> dict[str, str] | None:
    """Which weights a spectrum is of, and how it was measured; None where there is none that can be read."""
    try:
        arrays = read_arrays(path)
        return {name: str(arrays[name]) for name in SPECTRUM_KEY}
    except (FileNotFoundError, KeyError, RuntimeError):
        return None

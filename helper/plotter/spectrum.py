"""The spectrum of a curvature matrix: density of the eigenvalues, and the largest of them."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes

from helper.drawing import STYLE, save_figure
from helper.look import BLUE, ORANGE
from helper.spectrum_file import MATRICES

INTERVAL = 2.05  # standard errors of half of a 95 % interval of an eigenvalue: t of 29, as 30 groups of examples have


def draw_spectrum(arrays: Mapping[str, numpy.ndarray], stem: Path) -> Path:
    """Eigenvalue density on a logarithmic axis, and the largest eigenvalues.

    Those of a sample of the examples are drawn beside what they say of all examples: without the bias, with 95 % intervals.

    Args:
        arrays: as spectrum.npz holds them.
    """
    matrix = MATRICES[str(arrays["matrix"])]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
        shown = arrays["density"] > 0
        floor = arrays["density"].max() * 1e-9
        low, high = (arrays["density"] + sign * 2 * numpy.nan_to_num(arrays["density_errors"]) for sign in (-1, 1))
        left.fill_between(arrays["grid"], low.clip(min=floor), high, color=BLUE, alpha=0.25, linewidth=0)
        left.semilogy(arrays["grid"][shown], arrays["density"][shown], color=BLUE)
        left.set_ylim(floor, None)
        left.set(xlabel="eigenvalue (nats per squared parameter)", ylabel=f"density, smoothed over {arrays['sigma']:.2g}")
        n, population = int(arrays["n_samples"]), int(arrays["population"])
        draw_eigenvalues(right, arrays, n, population)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.axhline(0, color="0.6", linewidth=0.8)
        right.set(xlabel="rank by magnitude", ylabel="eigenvalue (nats per squared parameter)")
        which = f"all {population:,} examples" if n == population else f"{n:,} of {population:,} examples"
        figure.suptitle(
            f"{matrix} over {int(arrays['size']):,} active parameters, {which}; Lanczos' residuals are at most "
            f"{arrays['residuals'].max():.1g}\nband: 2 standard errors of the density by the choice of its starting vectors",
            fontsize=9,
        )
        return save_figure(figure, stem)


def draw_eigenvalues(axis: Axes, arrays: Mapping[str, numpy.ndarray], n: int, population: int) -> None:
    rank = numpy.arange(1, len(arrays["eigenvalues"]) + 1)
    if n == population:
        axis.plot(rank, arrays["eigenvalues"], "o", color=ORANGE)
        return
    axis.plot(rank - 0.1, arrays["eigenvalues"], "o", color="0.6", mfc="none", label=f"of the {n:,} examples themselves")
    known = numpy.isfinite(arrays["corrected"])
    axis.errorbar(
        rank[known] + 0.1, arrays["corrected"][known], INTERVAL * arrays["standard_errors"][known], fmt="o", color=ORANGE,
        capsize=3, label="of all examples: bias removed, 95 % intervals",
    )  # fmt: skip
    axis.legend(fontsize=8)

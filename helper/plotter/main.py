"""Tidy tables of a run folder -> figures, as PNG and PDF. No torch."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from helper.drawing import STYLE, save_figure
from helper.plotter.columns import Columns, read_columns
from helper.plotter.gradients import gradients, snr
from helper.plotter.measurements import metrics
from helper.plotter.spectrum import draw_spectrum
from helper.plotter.training import noisy_performance, performance
from helper.spectrum_file import read_spectrum

FIGURES: dict[str, tuple[str, Callable[[Columns], Figure | None]]] = {
    "performance": ("history", performance),
    "noisy_performance": ("history", noisy_performance),
    "snr": ("snr", snr),
    "gradients": ("snr", gradients),
}


def draw_run(folder: Path, labels: Mapping[str, str]) -> Iterator[Path]:
    """Draw what the tables of a run folder hold into `figures/`, one figure after the other; the PNG files' paths.

    Args:
        labels: {metric: what stands beside its axis}.
    """
    tables = {name: read_columns(folder / f"{name}.csv") for name in ("history", "snr", "metrics")}
    title = f"{folder.parent.parent.parent.name}, {folder.parent.parent.name}, {folder.parent.name}"
    for name, (table, draw) in {**FIGURES, "metrics": ("metrics", partial(metrics, labels=labels))}.items():
        with plt.rc_context(STYLE):
            figure = draw(tables[table]) if tables[table] else None
            if figure is not None:
                for axis in figure.axes:
                    if axis.get_xlabel() == "epoch":
                        axis.xaxis.get_major_locator().set_params(integer=True)
                figure.suptitle(f"{title}\n{folder.name}", fontsize=10)
                save_figure(figure, folder / "figures" / name)
        if figure is not None:
            yield folder / "figures" / f"{name}.png"
    for path in [folder / "spectrum.npz", *sorted(folder.glob("spectra/*.npz"))]:
        if path.exists():
            name = "spectrum" if path.parent == folder else f"spectrum_{path.stem}"
            yield draw_spectrum(read_spectrum(path), folder / "figures" / name)

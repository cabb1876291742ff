"""A chart as a Matplotlib figure. No torch."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from helper.charts.chart import LONGEST_UPRIGHT, Axis, Chart, Matrix, Panel, Series, crowded, letter
from helper.drawing import BESIDE, STYLE, label_points, lay_out, plain_log


def paint(chart: Chart) -> Figure:
    """Every panel with its letter, where there are several, and one legend for all of them."""
    with plt.rc_context(STYLE):
        rows = -(-len(chart.panels) // chart.columns)
        shared = {"": False, "all": True, "col": "col"}[chart.same_y]
        alike = all(panel.x == chart.panels[0].x for panel in chart.panels)
        figure, grid = plt.subplots(
            rows, chart.columns, figsize=chart.size, sharex=alike, sharey=shared, squeeze=False, layout="constrained"
        )
        axes = list(grid.flat[: len(chart.panels)])
        for axis in grid.flat[len(chart.panels) :]:
            axis.remove()
        for index, (axis, panel) in enumerate(zip(axes, chart.panels, strict=True)):
            paint_panel(axis, panel)
            below = index + chart.columns >= len(chart.panels)
            axis.set_xlabel(panel.x.label if below or not alike else "")
            axis.tick_params(labelbottom=below or not alike)
            axis.set_ylabel("" if chart.same_y == "all" and index % chart.columns else panel.y.label)
            if len(axes) > 1:
                axis.set_title(f"({letter(index)})", loc="left", fontsize=9, x=-0.08)
        for axis, panel in zip(axes, chart.panels, strict=True):
            scale(axis, panel.y, "y")
            scale(axis, panel.x, "x")
        add_legend(figure, axes, chart)
        label_panels(figure, axes, chart.panels)
    return figure


def paint_panel(axis: Axes, panel: Panel) -> None:
    for stretch in panel.stretches:
        axis.axvspan(stretch.left, stretch.right, color=stretch.colour, alpha=0.1, linewidth=0, zorder=0)
        middle = (stretch.left + stretch.right) / 2
        axis.annotate(stretch.word, (middle, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color="0.25")
    for level in panel.levels:
        axis.axhline(level.y, color=level.look.colour, alpha=level.tone, label=level.label)
        axis.axhspan(level.low, level.high, color=level.look.colour, alpha=0.15, linewidth=0)
    for series in panel.series:
        paint_series(axis, series)
    for area in panel.areas:
        axis.fill_between(area.x, area.low, area.high, color="0.5", alpha=0.2, linewidth=0)
    if panel.matrix:
        paint_matrix(axis, panel.matrix)
    axis.set_title(panel.title, fontsize=9)


def paint_series(axis: Axes, series: Series) -> None:
    look = {
        "color": series.look.colour, "marker": series.look.marker, "linestyle": series.look.line or "none",
        "alpha": series.tone, "linewidth": series.width, "markersize": series.size,
        "markerfacecolor": series.look.colour if series.tone == 1 else "white", "label": series.label if series.named else None,
        "drawstyle": "steps-post" if series.steps else "default",
    }  # fmt: skip
    x, y = numpy.asarray(series.x), numpy.asarray(series.y, dtype=float)
    if not len(series.low):
        axis.plot(x, y, **look, zorder=1 if series.steps else None)
        return
    low, high = (numpy.asarray(bound, dtype=float) for bound in (series.low, series.high))
    if series.bars:
        axis.errorbar(x, y, numpy.nan_to_num([y - low, high - y]), capsize=2.5, **look)
    else:
        axis.plot(x, y, **look)
        axis.fill_between(x, low, high, color=series.look.colour, alpha=0.2, linewidth=0)


def paint_matrix(axis: Axes, matrix: Matrix) -> None:
    size = min(9, 84 / len(matrix.values))  # points: that of a row's height
    for i, row in enumerate(matrix.values):
        for j, value in enumerate(row):
            lines = [line for line in matrix.texts[i][j].split("\n") if line]
            for line, (place, share) in zip(lines, ((-0.2, 1), (0.22, 0.85)), strict=False):
                colour = "white" if value < 0.5 else "black"
                axis.text(j, i + place, line, ha="center", va="center", fontsize=share * size, color=colour)
    shown = axis.imshow(numpy.array(matrix.values), vmin=0, vmax=1, cmap="cividis")
    axis.set_facecolor("0.9")
    axis.grid(visible=False)
    axis.figure.colorbar(shown, ax=axis, label=matrix.scale, shrink=0.7, location="top")


def scale(axis: Axes, how: Axis, along: str) -> None:
    """Limits, ticks and kind of an axis, after everything has been painted."""
    if how.limits != (None, None):
        axis.set(**{f"{along}lim": how.limits})
    line = getattr(axis, f"{along}axis")
    if how.log:
        plain_log(axis, along)
    elif len(how.ticks):
        names = list(how.names) or [f"{tick:g}" for tick in how.ticks]
        longest = max(map(len, names))
        turned = along == "x" and crowded(names)
        small = {"fontsize": 8 if longest > LONGEST_UPRIGHT else None}
        line.set_ticks(list(how.ticks), names, rotation=90 if turned else 0, **small)
    elif along == "x":
        line.get_major_locator().set_params(nbins=6, integer=how.whole)


def add_legend(figure: Figure, axes: Sequence[Axes], chart: Chart) -> None:
    right = axes[min(chart.columns, len(axes)) - 1]
    if chart.ramp:
        top = Normalize(chart.ramp.low, chart.ramp.high / 0.85 or 1)
        bar = figure.colorbar(ScalarMappable(top, "viridis"), ax=right, label=chart.ramp.label)
        bar.ax.set_ylim(chart.ramp.low, chart.ramp.high)
        return
    entries = chart.entries
    if not entries or (len(entries) == 1 and not chart.legend):
        return
    drawn = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            drawn.setdefault(label, handle)
    handles = {label: drawn[label] for label in entries}
    if chart.beside:
        right.legend(handles.values(), handles, title=chart.legend, fontsize=8, **BESIDE)
    else:
        columns = 2 if max(map(len, handles)) > 20 else 3
        figure.legend(
            handles.values(), handles, title=chart.legend or None, loc="outside lower center", ncols=columns, fontsize=9
        )


def label_panels(figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Texts beside points: last of all, because they need to know where everything is."""
    if not any(series.texts for panel in panels for series in panel.series):
        return
    lay_out(figure)
    for axis, panel in zip(axes, panels, strict=True):
        points = [
            (float(x), float(y), text)
            for series in panel.series
            for x, y, text in zip(series.x, series.y, series.texts or [""] * len(series.x), strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        told = sorted((point for point in points if point[2]), key=lambda point: point[2])
        x, y, texts = zip(*told, strict=True) if told else ((), (), ())
        label_points(axis, x, y, texts, beside=[point[:2] for point in points if not point[2]])

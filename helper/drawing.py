"""How every figure looks, and how it becomes files. No torch."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from helper.look import DPI
from helper.system.files import write_atomic
from helper.untrusted.texts import one_line

STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}  # places of legends, none of them on a curve
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}


KINDS = ("png", "pdf")


def save_figure(figure: Figure, stem: Path, kinds: Sequence[str] = KINDS) -> Path:
    """Write a figure as `<stem>.png`, `<stem>.pdf`, each replaced atomically, and close it; the PNG file's path.

    Args:
        kinds: which of the two.
    Raises:
        OSError: it could not be written; the file that was there before is as it was.
    """
    literal(figure)
    figure.set_dpi(DPI)
    contents = {}
    with plt.rc_context(STYLE):  # ticks take their style when they are drawn
        if "png" in kinds:
            contents["png"] = printed(figure.canvas.print_png)  # draws once, where savefig draws once more for the layout
        else:
            figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is found
        if "pdf" in kinds:
            contents["pdf"] = printed(FigureCanvasPdf(figure).print_pdf)
    plt.close(figure)
    for kind, content in contents.items():
        write_atomic(stem.with_suffix(f".{kind}"), content)
    return stem.with_suffix(".png")


def printed(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


FORMULA = re.compile(r"\$\\(alpha|mathdefault\{[\d.+×^{}\\times−-]*\})\$")  # what these figures mean to be one


def literal(figure: Figure) -> None:
    """Show texts as they are: names of runs, layers and classes may hold formulas, or what no font has."""
    for text in figure.findobj(Text):
        words = text.get_text()
        if "$" in FORMULA.sub("", words):
            text.set_parse_math(False)
        if not words.replace("\n", "").isprintable():
            text.set_text("\n".join(one_line(line) for line in words.split("\n")))


def lay_out(figure: Figure) -> None:
    """Find a figure's layout, its texts as they will be shown."""
    literal(figure)
    figure.draw_without_rendering()


def plain_log(axis: Axes, along: str = "y") -> None:
    """A logarithmic axis with its ticks as plain numbers where it spans so little that powers of ten are too few."""
    axis.set(**{f"{along}scale": "log"})
    line = getattr(axis, f"{along}axis")
    low, high = line.get_view_interval()
    if 0 < low < high < 100 * low:
        for which in (line.set_major_formatter, line.set_minor_formatter):
            which(StrMethodFormatter("{x:g}"))
        subs = numpy.arange(2, 10) if high < 4 * low else (2, 3, 5) if high < 30 * low else (2, 5)
        line.set_minor_locator(LogLocator(subs=subs))


PLACES = ((0, 1, "center", "bottom"), (0, -1, "center", "top"), (1, 0, "left", "center"), (-1, 0, "right", "center"))


def label_points(
    axis: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str], *, beside: Sequence[tuple[float, float]] = ()
) -> None:
    """Write a text beside each point: above it, or where that would cover another point or text below, right or left of it.

    Points with the same text that lie on each other have it once. A text for which no place is free is left out. The
    figure has to be laid out, see `lay_out`, with all else that it shows.

    Args:
        beside: further points, which have no text and which none may cover.
    """
    point = axis.figure.dpi / 72
    dots = axis.transData.transform(numpy.column_stack([x, y]))
    others = axis.transData.transform(numpy.reshape(beside, (-1, 2)).astype(float))
    taken = [Bbox.from_bounds(left - 3 * point, low - 3 * point, 6 * point, 6 * point) for left, low in (*dots, *others)]
    labelled: list[tuple[str, numpy.ndarray]] = []
    for *place, dot, text in zip(x, y, dots, texts, strict=True):
        if any(text == other and abs(dot - there).max() < 3 * point for other, there in labelled):
            continue
        for right, up, horizontal, vertical in PLACES:
            label = axis.annotate(text, place, (5 * right, 5 * up), textcoords="offset points", fontsize=7, color="0.3")
            label.set(ha=horizontal, va=vertical)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                labelled.append((text, dot))
                break
            label.remove()

"""Images side by side with lines of text below each. No torch."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helper.drawing import STYLE

COLUMNS, CELL, TOP = 6, 1.5, 0.45  # images in a row; inches of a cell and of the heading
ABOVE_LINES, LINE = 0.08, 0.14  # inches above the lines of a caption, and of a line
LETTERS_PER_INCH = 17  # of the smallest print
LETTERS = 15  # of a name, before it is cut


class Line(NamedTuple):
    text: str
    colour: str = "black"
    bold: bool = False


def contact_sheet(
    images: numpy.ndarray, captions: Sequence[Sequence[Line]], heading: str, *, sides: Sequence[Line] = (), foot: str = ""
) -> Figure:
    """A grid of images.

    Args:
        images: (n, H, W, 1) or (n, H, W, 3) in [0, 1]. captions: n lists of lines.
        sides: up to two lines beside each other below the heading. foot: a note at the end.
    """
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    below = ABOVE_LINES + LINE * max(map(len, captions))
    note = textwrap.wrap(foot, int(LETTERS_PER_INCH * max(columns, 4) * CELL))
    width, height = max(columns, 4) * CELL, rows * (CELL + below) + LINE * len(note)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height + TOP), layout="none")
        figure.text(0.5, 1 - 0.12 / (height + TOP), heading, ha="center", va="top", fontsize=9)
        for place, side in zip((0.25, 0.75), sides, strict=False):
            figure.text(place, 1 - 0.34 / (height + TOP), side.text, ha="center", va="top", fontsize=9, color=side.colour)
        for position, (image, lines) in enumerate(zip(images, captions, strict=True)):
            row, column = divmod(position, columns)
            left, bottom = (column + 0.06) * CELL, (rows - 1 - row) * (CELL + below) + below + LINE * len(note)
            box = (left / width, bottom / (height + TOP), 0.88 * CELL / width, 0.88 * CELL / (height + TOP))
            axis = figure.add_axes(box)
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")  # a single channel is squeezed
            axis.set_axis_off()
            write_below(axis, lines)
        figure.text(0.5, 0.04 / (height + TOP), "\n".join(note), ha="center", va="bottom", fontsize=7)
        return figure


def can_be_shown(input_shape: Sequence[int]) -> bool:
    """Whether examples of this shape are images, (channels, height, width) of grey, colour, or colour with opacity."""
    return len(input_shape) == 3 and input_shape[0] in (1, 3, 4)


def write_below(axis: Axes, lines: Sequence[Line]) -> None:
    for number, (text, colour, bold) in enumerate(lines):
        axis.annotate(
            plain(text), (0.5, 0), (0, -3 - 10 * number), "axes fraction", "offset points", ha="center", va="top",
            fontsize=7.5, color=colour, weight="bold" if bold else "normal",
        )  # fmt: skip


def short(name: str, most: int = LETTERS) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def plain(text: str) -> str:
    """A text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")

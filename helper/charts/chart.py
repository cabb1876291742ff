"""What a figure shows, before anybody draws it: panels with series, levels, areas and stretches, all of them numbers.

`helper.charts.painting` makes a Matplotlib figure of a chart, `helper.charts.vega` what a page draws. No Matplotlib, no torch.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

from helper.look import Look

Numbers = Sequence[float]
MOST_UPRIGHT, LONGEST_UPRIGHT = 10, 6  # names of ticks that stand side by side, and letters of one


@dataclass(frozen=True)
class Dots:
    """Single runs, of each its place and its name; a page shows them small behind the means, Matplotlib does not."""

    x: Numbers
    y: Numbers
    runs: Sequence[str]


@dataclass(frozen=True)
class Series:
    """Points of one thing, in the order in which a line joins them; those that are not finite are not drawn.

    Attributes:
        label: what legends call it; series with one label are shown and hidden together.
        look: with line "" the points are not joined, with marker "" they are not marked.
        low, high: bounds of the points' intervals, not finite where there is none; empty without any.
        bars: whether intervals are bars; otherwise a band.
        tone: opacity; below 1, markers are hollow.
        steps: whether the line keeps each value until the next point.
        named: whether it has a place in the legend.
        texts: a short text beside each point.
        size: of the markers, in points.
        runs: names of the runs behind each point, or of all points where there is one entry.
        dots: of the single runs.
    """

    label: str
    look: Look
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    bars: bool = True
    tone: float = 1.0
    width: float = 1.5
    size: float = 5
    steps: bool = False
    named: bool = True
    texts: Sequence[str] = ()
    runs: Sequence[Sequence[str]] = ()
    dots: Dots | None = None


@dataclass(frozen=True)
class Level:
    """A value that belongs to every x, with its interval: a line across a panel."""

    label: str
    look: Look
    y: float
    low: float
    high: float
    tone: float = 1.0
    named: bool = True
    runs: Sequence[str] = ()


@dataclass(frozen=True)
class Area:
    """Shaded between two curves."""

    x: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Stretch:
    """A part of the x axis with a colour behind it, and a word above it or ""."""

    left: float
    right: float
    colour: str
    word: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: with its unit.
        limits: lower and upper end; None: as the data have it.
        ticks: where they are; empty: anywhere. names: what stands at them; empty: the numbers.
        whole: whether ticks are whole numbers only.
    """

    label: str
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    ticks: Numbers = ()
    names: Sequence[str] = ()
    whole: bool = False


@dataclass(frozen=True)
class Matrix:
    """Values in [0, 1] as colours, with a text of up to two lines in every cell; nan where there is none.

    Attributes:
        values, texts: [row][column]; the axes' names are theirs.
        scale: what the colours mean.
    """

    values: Sequence[Numbers]
    texts: Sequence[Sequence[str]]
    scale: str


@dataclass(frozen=True)
class Panel:
    """A pair of axes with what is on it; `texts`: what the texts beside its points are."""

    x: Axis
    y: Axis
    title: str = ""
    series: Sequence[Series] = ()
    levels: Sequence[Level] = ()
    areas: Sequence[Area] = ()
    stretches: Sequence[Stretch] = ()
    texts: str = ""
    matrix: Matrix | None = None


@dataclass(frozen=True)
class Ramp:
    """Why colours run from dark to light, where a legend of all series would be long: the number behind them and its range."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        panels: row by row. columns: panels in a row.
        size: (width, height) in inches on paper.
        same_y: "" if every panel has its own vertical limits, "all" if they share them, "col" if those of a column do.
        legend: its title, or "".
        ramp: stands for the legend on paper.
        beside: whether the legend stands beside the panels on paper, and not below them.
    """

    panels: Sequence[Panel]
    columns: int
    size: tuple[float, float]
    same_y: str = ""
    legend: str = ""
    ramp: Ramp | None = None
    beside: bool = False

    @property
    def entries(self) -> dict[str, Series | Level]:
        """{label: what the legend shows beside it}, levels first."""
        found: dict[str, Series | Level] = {}
        for kind in ("levels", "series"):
            for panel in self.panels:
                for one in getattr(panel, kind):
                    if one.named:
                        found.setdefault(one.label, one)
        return found


def letter(index: int) -> str:
    """a, b, ..., z, aa, ab, ...: of a panel."""
    return (letter(index // 26 - 1) if index >= 26 else "") + string.ascii_lowercase[index % 26]


def crowded(names: Sequence[str]) -> bool:
    """Whether names of ticks have to be turned to stand side by side."""
    return len(names) > MOST_UPRIGHT or max(map(len, names)) > LONGEST_UPRIGHT

"""How Vega names colours, markers and dashes of a look. No Matplotlib, no torch."""

import re

from helper.charts.chart import Level, Series

SHAPES = {  # Matplotlib's markers, as paths in a square from -1 to 1
    "o": "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z", "s": "M-.9,-.9L.9,-.9L.9,.9L-.9,.9Z", "D": "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "^": "M0,-1L1,.9L-1,.9Z", "v": "M0,1L1,-.9L-1,-.9Z", "<": "M-1,0L.9,-1L.9,1Z", ">": "M1,0L-.9,-1L-.9,1Z",
    "P": "M-.35,-1L.35,-1L.35,-.35L1,-.35L1,.35L.35,.35L.35,1L-.35,1L-.35,.35L-1,.35L-1,-.35L-.35,-.35Z",
    "X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z", "d": "M0,-1.1L.65,0L0,1.1L-.65,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z", "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "8": "M-.41,-1L.41,-1L1,-.41L1,.41L.41,1L-.41,1L-1,.41L-1,-.41Z",
    "*": "M0,-1L.24,-.31L.95,-.31L.38,.12L.59,.81L0,.38L-.59,.81L-.38,.12L-.95,-.31L-.24,-.31Z",
}  # fmt: skip
DASHES = {"-": [1, 0], "--": [6, 3], "-.": [6, 2, 1, 2], ":": [1, 2]}
INVISIBLE = "rgba(0,0,0,0)"  # and yet under the pointer


def tinted(one: Series | Level) -> str:
    """A colour with the opacity of its series."""
    return "rgba({},{},{},{:g})".format(*(round(255 * part) for part in rgb(one.look.colour)), one.tone)


def rgb(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a colour as Matplotlib names it. Raises ValueError: it is none."""
    if re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    if re.fullmatch(r"0?\.\d+|[01]", colour):
        return (float(colour),) * 3
    from matplotlib.colors import to_rgb  # takes long to load, and few looks need it

    return to_rgb(colour)


def inside(series: Series) -> str:
    if not series.look.marker:
        return INVISIBLE
    return tinted(series) if series.tone == 1 else "#ffffff"


def shape_of(one: Series | Level) -> str:
    return SHAPES.get(one.look.marker, SHAPES["o"]) if one.look.marker else ""


def dash_of(one: Series | Level) -> list[int]:
    return DASHES.get(one.look.line, [1, 0])

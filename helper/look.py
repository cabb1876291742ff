"""How figures draw one of several methods, as Matplotlib names it. No Matplotlib."""

from typing import NamedTuple


class Look(NamedTuple):
    """Colour, marker and line style; with the default of each nothing is marked and the line is whole."""

    colour: str
    marker: str = ""
    line: str = "-"

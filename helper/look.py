"""How figures draw one of several methods, as Matplotlib names it, and their colours. No Matplotlib."""

from typing import NamedTuple

# Okabe & Ito 2008: distinguishable with every common form of colour blindness
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
DPI = 150  # of figures as PNG
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


class Look(NamedTuple):
    """Colour, marker and line style; with the default of each nothing is marked and the line is whole."""

    colour: str
    marker: str = ""
    line: str = "-"


def ramp(share: float) -> str:
    """A colour between dark, 0, and light, 1: viridis between nine of its colours."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in VIRIDIS[index : index + 2]]
    mixed = (round(low + (place - index) * (high - low)) for low, high in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)

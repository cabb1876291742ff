"""A chart as what a page draws: a Vega-Lite specification for each panel, and what its legend and its tooltips say.

Every text is data: no label becomes a part of an expression or of markup. No Matplotlib, no torch.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from helper.charts.chart import Axis, Chart, Matrix, Panel, Series, letter
from helper.charts.vega_layers import (
    TOLD,
    area_layers,
    dot_layer,
    layer,
    level_layers,
    of_rows,
    position,
    quantity,
    series_layers,
    stretch_layers,
)
from helper.charts.vega_looks import DASHES, shape_of, tinted

HEIGHT = 270  # pixels of a panel
ROOM = 0.05  # of an axis, beyond the values on either side

Place = Callable[[str], int]  # of a run in the page's table, by its name


def vega(chart: Chart, place: Place) -> dict[str, Any]:
    """What a page draws of a chart, as JSON has it.

    Returns:
        legend: its title; entries: {label, colour, shape, dash, hollow} of its lines; columns, and panels: {title,
        specification, labels of the series by number, runs behind each, names of the x axis's places, labels x, y, texts}.
    """
    entries = [
        {"label": label, "colour": tinted(one), "shape": shape_of(one), "dash": DASHES.get(one.look.line)}
        | {"hollow": one.tone < 1}
        for label, one in chart.entries.items()
    ]
    panels = [described(chart, index, place) for index in range(len(chart.panels))]
    return {"legend": chart.legend or (chart.ramp.label if chart.ramp else ""), "entries": entries, "columns": chart.columns,
            "panels": panels}  # fmt: skip


def described(chart: Chart, index: int, place: Place) -> dict[str, Any]:
    panel = chart.panels[index]
    parts = [*panel.series, *panel.levels]
    title = " ".join(filter(None, (f"({letter(index)})" if len(chart.panels) > 1 else "", panel.title)))
    return {
        "title": title,
        "spec": square(panel, panel.matrix) if panel.matrix else specification(chart, panel, index, place),
        "labels": [one.label for one in parts],
        "runs": [list(map(place, one.runs[0])) if single(one) else [] for one in panel.series]
        + [list(map(place, one.runs)) for one in panel.levels],
        "names": names_of(panel.x),
        "x": panel.x.label,
        "y": panel.y.label or panel.title,
        "texts": panel.texts,
    }


def single(series: Series) -> bool:
    """Whether the same runs are behind all points of a series."""
    return len(series.runs) == 1


def names_of(axis: Axis) -> dict[str, str]:
    """{place on an axis: what stands there}; empty where numbers do."""
    return {f"{tick:g}": name for tick, name in zip(axis.ticks, axis.names, strict=False)}


# ----------------------------------------------------------------------------------------------------------------- data


def finite(value: float) -> bool:
    return value is not None and math.isfinite(value)


def rows_of(panel: Panel, place: Place) -> list[dict[str, Any]]:
    """The points of all series: s: its number, i: place in the line, x, y, l and h: bounds, t: text, r: runs."""
    rows = []
    for s, series in enumerate(panel.series):
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            if not drawable(panel, x, y):
                continue
            row = {"s": s, "i": i, "x": short(x), "y": short(y)}
            if len(series.low) and finite(series.low[i]) and finite(series.high[i]):
                row |= {"l": short(least(panel.y, series.low[i], y)), "h": short(series.high[i])}
            if series.texts and series.texts[i]:
                row["t"] = series.texts[i]
            if len(series.runs) > 1:
                row["r"] = list(map(place, series.runs[i]))
            rows.append(row)
    return rows


def dots_of(panel: Panel, place: Place) -> list[dict[str, Any]]:
    """The single runs behind the series."""
    return [
        {"s": s, "x": short(x), "y": short(y), "r": [place(run)]}
        for s, series in enumerate(panel.series)
        if series.dots
        for x, y, run in zip(series.dots.x, series.dots.y, series.dots.runs, strict=True)
        if drawable(panel, x, y)
    ]


def levels_of(panel: Panel) -> list[dict[str, Any]]:
    """The levels, numbered on behind the series."""
    rows = []
    for s, level in enumerate(panel.levels, len(panel.series)):
        if finite(level.y) and (level.y > 0 or not panel.y.log):
            row = {"s": s, "y": short(level.y), "c": tinted(level)}
            if finite(level.low) and finite(level.high):
                row |= {"l": short(least(panel.y, level.low, level.y)), "h": short(level.high)}
            rows.append(row)
    return rows


def drawable(panel: Panel, x: float, y: float) -> bool:
    """Whether a point has a place: a logarithmic axis has none for what is not positive."""
    return finite(x) and finite(y) and (x > 0 or not panel.x.log) and (y > 0 or not panel.y.log)


def least(axis: Axis, low: float, value: float) -> float:
    """A lower bound that an axis can show."""
    return low if low > 0 or not axis.log else value / 1e6


def short(value: float) -> float:
    """Six digits: more than a screen shows."""
    return float(f"{float(value):.6g}")


# ------------------------------------------------------------------------------------------------------- specifications


def specification(chart: Chart, panel: Panel, index: int, place: Place) -> dict[str, Any]:
    x = position("x", panel.x, ends(panel.x, places(panel)))
    y = position("y", panel.y, ends(panel.y, (value for one in sharing(chart, index) for value in heights(one))))
    rows = rows_of(panel, place)
    layers = [
        *stretch_layers(panel.stretches, x), *area_layers(panel.areas, x, y),
        *of_rows(levels_of(panel), level_layers(panel, y)),
        *of_rows(dots_of(panel, place), [dot_layer(panel.series, x, y)]), *of_rows(rows, series_layers(panel, rows, x, y)),
    ]  # fmt: skip
    params = [{"name": "hidden", "value": []}, {"name": "names", "value": names_of(panel.x)}]
    return {"width": "container", "height": HEIGHT, "params": params, "layer": layers}


def square(panel: Panel, matrix: Matrix) -> dict[str, Any]:
    """Colours with texts; x and y are the names of column and row."""
    rows = [
        {"x": panel.x.names[j], "y": panel.y.names[i], "v": short(value), "t": matrix.texts[i][j].split("\n"), "d": value < 0.5}
        for i, line in enumerate(matrix.values)
        for j, value in enumerate(line)
        if finite(value)
    ]
    places = {
        along: {"field": along, "type": "nominal", "title": axis.label, "scale": {"domain": list(axis.names)}}
        for along, axis in (("x", panel.x), ("y", panel.y))
    }
    scale = {"domain": [0, 1], "scheme": "cividis"}
    colour = {**quantity("v"), "title": matrix.scale, "scale": scale, "legend": {"orient": "top", "gradientLength": 180}}
    ink = {"condition": {"test": "datum.d", "value": "white"}, "value": "black"}
    small = max(6, min(11, 100 // len(panel.y.names)))
    text = places | {"text": {"field": "t", "type": "nominal"}, "color": ink}
    layers = [layer("rect", places | {"color": colour}, **TOLD), layer("text", text, fontSize=small, dy=-small / 2)]
    height = max(HEIGHT, 26 * len(panel.y.names))
    return {"width": "container", "height": height, "data": {"values": rows}, "layer": layers,
            "resolve": {"scale": {"color": "independent"}}}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- limits


def ends(axis: Axis, values: Iterable[float]) -> tuple[float, float]:
    """Of an axis: where it is asked to end, otherwise a little beyond its values."""
    values = [value for value in values if finite(value) and (value > 0 or not axis.log)]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    if axis.log:
        low, high = low / 1.2, high * 1.2
    else:
        room = ROOM * (high - low) or ROOM * abs(high) or 1
        low, high = low - room, high + room
    return tuple(short(end if end is not None else found) for end, found in zip(axis.limits, (low, high), strict=True))


def sharing(chart: Chart, index: int) -> list[Panel]:
    """The panels that have one vertical axis with a panel, itself among them."""
    return [
        panel
        for i, panel in enumerate(chart.panels)
        if i == index or chart.same_y == "all" or (chart.same_y == "col" and i % chart.columns == index % chart.columns)
    ]


def heights(panel: Panel) -> Iterable[float]:
    """Everything that a panel's vertical axis has to show."""
    for one in panel.series:
        yield from (*one.y, *one.low, *one.high, *(one.dots.y if one.dots else ()))
    for level in panel.levels:
        yield from (level.y, level.low, level.high)


def places(panel: Panel) -> Iterable[float]:
    """Everything that a panel's horizontal axis has to show."""
    for one in panel.series:
        yield from (*one.x, *(one.dots.x if one.dots else ()))
    for stretch in panel.stretches:
        yield from (stretch.left, stretch.right)

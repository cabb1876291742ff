"""The layers of a panel as Vega-Lite has them: each series, level, area and stretch by its marks. No Matplotlib, no torch."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from helper.charts.chart import Axis, Panel, Series, Stretch, crowded
from helper.charts.vega_looks import INVISIBLE, SHAPES, dash_of, inside, shape_of, tinted

Rows = Sequence[dict[str, Any]]

MOST_TEXTS = 12  # in a panel; where there are more they would lie on each other, and stand in the tooltip alone
PLAIN = 1e5  # numbers from which on axes have powers of ten
TOLD = {"tooltip": {"content": "data"}, "cursor": "pointer"}  # of marks that have something to tell
VISIBLE = {"filter": "indexof(hidden, datum.s) < 0"}
BOUNDED = {"filter": "isValid(datum.l)"}


def layer(kind: str, encoding: dict[str, Any], transform: Rows = (), **look: Any) -> dict[str, Any]:
    """A mark that ends where its panel does.

    It has no description for screen readers: Vega-Lite makes one as an expression with the axes' titles in it.
    """
    mark = {"type": kind, "clip": True, "aria": False, "tooltip": None, **look}
    return {"mark": mark, "encoding": encoding, "transform": list(transform)}


def of_rows(rows: Rows, layers: Rows) -> list[dict[str, Any]]:
    """Layers over data of their own, of series that the legend has not hidden; nothing without data."""
    return [{"data": {"values": list(rows)}, "transform": [VISIBLE], "layer": list(layers)}] if rows else []


def series_layers(panel: Panel, rows: Rows, x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    """Bands, lines, bars, points and texts, each of the series that have them."""
    series, both, order = panel.series, {"x": x, "y": y}, {"order": quantity("i")}
    colour = {"color": by_number([tinted(one) for one in series])}
    ends = {"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}}
    banded = among(series, lambda one: len(one.low) and not one.bars)
    barred = among(series, lambda one: len(one.low) and one.bars)
    layers = [layer("area", ends | colour, [banded, BOUNDED], opacity=0.2)]  # an order would cut areas into points
    dashes = {"strokeDash": by_number([dash_of(one) for one in series])}
    for steps, way in ((True, "step-after"), (False, "linear")):
        joined = among(series, lambda one, steps=steps: one.steps == steps and one.look.line not in ("", "none"))
        layers.append(layer("line", both | colour | dashes | order, [joined], interpolate=way, strokeWidth=1.5))
    layers.append(layer("rule", ends | colour, [barred, BOUNDED], strokeWidth=1.2))
    marks = {
        "shape": by_number([shape_of(one) or SHAPES["o"] for one in series]),
        "stroke": by_number([tinted(one) if one.look.marker else INVISIBLE for one in series]),
        "fill": by_number([inside(one) for one in series]),
    }
    layers.append(
        layer("point", both | marks, [among(series, lambda one: not one.steps)], size=45, opacity=1, strokeWidth=1.2, **TOLD)
    )
    if 0 < sum("t" in row for row in rows) <= MOST_TEXTS:
        text = both | {"text": {"field": "t", "type": "nominal"}}
        layers.append(layer("text", text, [{"filter": "isValid(datum.t)"}], dy=-10, fontSize=10))
    return [one for one in layers if {"filter": {"field": "s", "oneOf": []}} not in one["transform"]]


def dot_layer(series: Sequence[Series], x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """Single runs, small behind the means."""
    colour = {"color": by_number([tinted(one) for one in series])}
    return layer("circle", {"x": x, "y": y} | colour, size=16, opacity=0.35, **TOLD)


def level_layers(panel: Panel, y: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines across the panel, and their intervals."""
    colour = {"color": {"field": "c", "type": "nominal", "scale": None, "legend": None}}
    ends = {"y": {**y, "field": "l"}, "y2": {"field": "h"}}
    layers = [layer("rect", ends | colour, [BOUNDED], opacity=0.15)]
    for number, level in enumerate(panel.levels, len(panel.series)):
        own = {"filter": {"field": "s", "equal": number}}
        layers.append(layer("rule", {"y": y} | colour, [own], strokeWidth=2, strokeDash=dash_of(level), **TOLD))
    return layers


def area_layers(areas: Sequence[Any], x: dict[str, Any], y: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for area in areas:
        rows = [{"x": a, "l": low, "h": high} for a, low, high in zip(area.x, area.low, area.high, strict=True)]
        encoding = {"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}}
        yield {"data": {"values": rows}} | layer("area", encoding, color="#808080", opacity=0.2)


def stretch_layers(stretches: Sequence[Stretch], x: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for one in stretches:
        rows = [{"x": one.left, "e": one.right, "m": (one.left + one.right) / 2, "t": one.word}]
        word = {"x": {**x, "field": "m"}, "text": {"field": "t", "type": "nominal"}}
        marks = [layer("rect", {"x": x, "x2": {"field": "e"}}, color=one.colour, opacity=0.1)]
        marks += [layer("text", word, y=8, fontSize=10)] if one.word else []
        yield {"data": {"values": rows}, "layer": marks}


# ------------------------------------------------------------------------------------------------------------ encodings


def quantity(name: str) -> dict[str, Any]:
    return {"field": name, "type": "quantitative"}


def position(name: str, axis: Axis, domain: tuple[float, float]) -> dict[str, Any]:
    """How values get their places between two ends, with the axis that shows it."""
    kind = {"type": "log"} if axis.log else {"type": "linear", "zero": False}
    kind |= {"domain": list(domain), "nice": False}
    title = axis.label.split("\n") if axis.label else None
    return {**quantity(name), "title": title, "scale": kind, "axis": ticks_of(axis, domain)}


def ticks_of(axis: Axis, domain: tuple[float, float]) -> dict[str, Any]:
    if axis.names:
        angle = -90 if crowded(axis.names) else 0
        return {"values": list(axis.ticks), "labelExpr": "names[datum.value]", "labelAngle": angle}
    if len(axis.ticks):
        return {"values": list(axis.ticks), "format": ".6~g", "labelOverlap": "greedy"}
    if axis.whole:
        return {"format": "d", "tickMinStep": 1, "tickCount": 6}
    return {"format": ".2~e" if max(map(abs, domain)) >= PLAIN else ".6~g", "labelOverlap": "greedy"}


def among(series: Sequence[Series], which: Callable[[Series], Any]) -> dict[str, Any]:
    """Keeps the rows of some series."""
    return {"filter": {"field": "s", "oneOf": [number for number, one in enumerate(series) if which(one)]}}


def by_number(values: Sequence[Any]) -> dict[str, Any]:
    """An encoding by the number of a series: a value for each, without a legend, which the page has."""
    scale = {"domain": list(range(len(values))), "range": list(values)}
    return {"field": "s", "type": "nominal", "scale": scale, "legend": None}

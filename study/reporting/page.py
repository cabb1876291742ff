"""The report as one HTML page that opens from a file, offline, and draws its charts; runs' own figures stay in files.

Every text in it may be hostile (a folder is named by whoever made it): the template escapes all of them, the script sets
text and never markup, links are percent-encoded paths, and the page's own security policy lets no other script run.
"""

import base64
import hashlib
import json
import math
import os
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from helper.charts.bundle import chart_scripts
from helper.charts.chart import Chart
from helper.charts.vega import vega
from helper.look import DPI
from study.digits import digits

RUNS_CSV = "runs.csv"  # beside index.html: the run table for readers without JavaScript
SCREEN = 96 / DPI  # CSS pixels for a pixel of a figure
MEASURED = re.compile(r"(-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s*[±\[†‡]")

Value = str | float | int | None


@dataclass(frozen=True)
class Picture:
    """A figure, embedded; `file` is a PNG of `save_figure`, `more` are (label, path) of what lies beside it.

    Paths of links are POSIX paths relative to index.html, as they are: the page percent-encodes them.
    """

    id: str
    title: str
    caption: str
    file: Path
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plot:
    """A figure that the page draws; `more` are (label, path) of the same as files, `command` is what makes them."""

    id: str
    title: str
    caption: str
    chart: Chart
    more: tuple[tuple[str, str], ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Numbers, and texts `value ± error`, `value [low, high]`, `value †` and `value ‡`, sort as numbers; None and nan are empty
    cells, which sort last.
    """

    id: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Section:
    """A heading with its text, figures and tables."""

    title: str
    intro: str
    pictures: tuple[Picture | Plot, ...] = ()
    sheets: tuple[Sheet, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of the run table and what opens below it.

    Attributes:
        name: the run's folder below the results root, POSIX.
        cells: column -> value; a column that is not there is an empty cell.
        settings: every flag -> its value.
        pictures: (title, path relative to index.html) of the run's own figures, loaded when the row is opened.
    """

    name: str
    cells: dict[str, Value]
    settings: dict[str, Any]
    pictures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        root: the results root, as text.
        made: ISO date and time.
        note: how the intervals are made.
        columns: of the run table, in their order.
        left_out: (path, reason) of what could not be read.
    """

    title: str
    root: str
    made: str
    note: str
    sections: tuple[Section, ...]
    columns: tuple[str, ...]
    runs: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cell:
    """What a cell shows and, where it sorts as a number, that number."""

    text: str
    key: float | int | None = None


def render(report: Report) -> str:
    """The page as text for a UTF-8 file.

    Raises:
        OSError: a picture's file cannot be read. ValueError: it is no PNG, or a sheet's row is not as long as its columns.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    charts = charts_of(report)
    numbers = {id(plot): number for number, plot in enumerate(plots_of(report))}
    environment.filters |= {"image": image, "link": link, "anchor": anchor, "cells": cells_of}
    environment.filters["number"] = lambda picture: numbers.get(id(picture))
    style, charting, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "charts.js", "page.js"))
    scripts = [chart_scripts(), charting, script] if charts else [script]
    page = environment.get_template("page.html.jinja").render(
        report=report,
        counts=counts(report),
        data=run_data(report),
        charts=charts,
        style=Markup(style),
        scripts=[Markup(one) for one in scripts],
        policy=security_policy(style, scripts),
        runs_csv=RUNS_CSV,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # a file name may hold bytes that are no text


def plots_of(report: Report) -> list[Plot]:
    return [picture for section in report.sections for picture in section.pictures if isinstance(picture, Plot)]


def charts_of(report: Report) -> list[dict[str, Any]]:
    """What the script draws, see `helper.charts.vega`; runs by their place in the run table."""
    places = {run.name: place for place, run in enumerate(report.runs)}
    return [vega(plot.chart, places.__getitem__) for plot in plots_of(report)]


def security_policy(style: str, scripts: Sequence[str]) -> str:
    """Nothing but this style sheet, these scripts, and images in the page or beside it."""
    allowed = " ".join(map(hash_of, scripts))
    return (
        f"default-src 'none'; img-src data: file: 'self'; style-src {hash_of(style)}; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )


def hash_of(text: str) -> str:
    """As a security policy names a text within a page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def counts(report: Report) -> str:
    """`60 runs, 2 data sets, 1 network`."""
    numbers = {"run": len(report.runs)}
    for column, noun in (("data", "data set"), ("network", "network")):
        numbers[noun] = len({run.cells.get(column) for run in report.runs} - {None})
    return ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in numbers.items() if n or noun == "run")


def run_data(report: Report) -> dict[str, Any]:
    """What the script builds the run table from; settings that all runs share are there once."""
    settings = [{name: setting(value) for name, value in run.settings.items()} for run in report.runs]
    flags = list(dict.fromkeys(name for one in settings for name in one))
    common = {name: settings[0][name] for name in flags if len({one.get(name) for one in settings}) == 1}
    return {
        "columns": report.columns,
        "flags": flags,
        "common": common,
        "runs": [
            {
                "name": run.name,
                "cells": [[c.text, c.key] for c in (cell(run.cells.get(column)) for column in report.columns)],
                "settings": {name: text for name, text in one.items() if name not in common},
                "pictures": [(title, link(path)) for title, path in run.pictures],
            }
            for run, one in zip(report.runs, settings, strict=True)
        ],
    }


def cells_of(sheet: Sheet) -> list[list[Cell]]:
    for row in sheet.rows:
        if len(row) != len(sheet.columns):
            raise ValueError(f"{sheet.id}: a row has {len(row)} cells, but there are {len(sheet.columns)} columns: {row}")
    return [[cell(value) for value in row] for row in sheet.rows]


def cell(value: Value) -> Cell:
    """A float with 4 significant digits, a whole number with all of its digits."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return Cell("")
    if isinstance(value, str):
        measured = MEASURED.match(value)
        return Cell(value, float(measured[1].replace(",", "")) if measured else None)
    if isinstance(value, bool) or not isinstance(value, Real):
        return Cell(setting(value))
    if isinstance(value, Integral):
        return Cell(str(int(value)), int(value))
    number, largest = float(value), sys.float_info.max  # JSON has no infinity
    return Cell(digits(number), min(max(number, -largest), largest))


def setting(value: Any) -> str:
    """A flag's value as it stands in config.yaml, but for quotes around texts."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def link(path: str) -> str:
    """A relative path as a link: nothing in it is taken for a scheme, a query or a fragment."""
    return quote(os.fsencode(path))


def anchor(id: str) -> str:
    """`figure 1` -> `figure-1`."""
    return re.sub(r"\W+", "-", id).strip("-").lower()


def image(picture: Picture) -> dict[str, str | int]:
    """The attributes of an <img> that holds a PNG file and has its size before it is decoded."""
    content = picture.file.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise ValueError(f"{picture.file} is no PNG file")
    width, height = (round(pixels * SCREEN) for pixels in struct.unpack(">II", content[16:24]))
    return {"src": f"data:image/png;base64,{base64.b64encode(content).decode()}", "width": width, "height": height}

"""Sharpness along the way: Tr F, the Hessian's largest eigenvalue, and how near it is to the stability limit. No torch."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas

from helper.charts.chart import Chart, Level, Panel
from helper.look import Look
from helper.metrics.main import METRICS
from study.reporting.aggregate import curves
from study.reporting.families import COLOURS, LINES, MARKERS
from study.reporting.figures_epochs import EPOCHS, Line, curve_of, main_sparsity, positive_axis, total_rows, way_of
from study.reporting.finished_run import FinishedRun, grouped, number
from study.reporting.remedies import remedy_of, without_remedies
from study.reporting.statistics import independent

FISHER, SHARPNESS = METRICS["fisher"], METRICS["sharpness"]
FEWEST = 3  # epochs at which some series has to be measured
LIMIT = "stability limit"

Kinds = Mapping[str, Sequence[FinishedRun]]


def sharpness_figure(records: Sequence[FinishedRun], labels: Mapping[str, str]) -> Chart | None:
    """Of every series at the sparsity that most have, and of dense runs; None where the eigenvalue was not followed.

    Args:
        labels: {run: its series}.
    """
    sparsity = main_sparsity(records)
    shown = [r for r in records if not r.mode_spec.has_mask or r.summary["sparsity_requested"] == sparsity]
    return sharpness_of(grouped(shown, lambda record: labels[record.name]))


def remedy_charts(records: Sequence[FinishedRun]) -> Iterator[tuple[str, str, Chart]]:
    """(hash, data and sparsity in words, chart) of runs that differ in method and remedies only, with some remedy."""
    for key, group in grouped(records, without_remedies).items():
        if len({remedy_of(record) for record in group}) > 1:
            kinds = grouped(group, lambda record: f"{record.family.label}, {remedy_of(record) or 'without a remedy'}")
            chart = sharpness_of(kinds)
            if chart:
                sparsity = group[0].summary["sparsity_requested"]
                what = f"{sparsity:g} pruned" if sparsity else "dense"
                yield key, f"{group[0].flags['loader_name']}, {what}", chart


def sharpness_of(kinds: Kinds) -> Chart | None:
    """A line a kind of run, geometric means over its seeds; None unless one has eigenvalues of at least `FEWEST` epochs."""
    eigenvalues, ratios = lines_of(kinds, SHARPNESS.name), lines_of(kinds, SHARPNESS.name, to_limit)
    if not any(len(line.curve) >= FEWEST for line in eigenvalues.values()):
        return None
    looks = looks_of(kinds)
    parts = (
        (lines_of(kinds, FISHER.name), FISHER.axis), (eigenvalues, SHARPNESS.axis),
        (ratios, "largest eigenvalue\nover the stability limit"),
    )  # fmt: skip
    panels = []
    for lines, label in parts:
        if lines:
            series = [curve_of(name, looks[name], line) for name, line in lines.items()]
            axis = positive_axis(label, [line.curve for line in lines.values()])
            levels = ()
            if lines is ratios:
                levels = [Level(LIMIT, Look("0.15", "", ":"), 1, float("nan"), float("nan"))]
                axis = dataclasses.replace(axis, limits=(axis.limits[0], max(2.0, axis.limits[1])))
            panels.append(Panel(EPOCHS, axis, "", series, levels))
    return Chart(panels, len(panels), (4.6 * len(panels), 4.6))


def looks_of(kinds: Kinds) -> dict[str, Look]:
    """Those of the families where each has one kind, else one that follows from its place."""
    families = [records[0].family for records in kinds.values()]
    if len(set(families)) == len(families):
        return {name: Look(f.colour, f.marker or "o", f.line) for name, f in zip(kinds, families, strict=True)}
    n = len(COLOURS)
    return {name: Look(COLOURS[i % n], MARKERS[i % len(MARKERS)], LINES[i // n % len(LINES)]) for i, name in enumerate(kinds)}


Scale = Callable[[FinishedRun, int], float]


def lines_of(kinds: Kinds, metric: str, scale: Scale = lambda record, epoch: 1.0) -> dict[str, Line]:
    """{kind: a metric's total against the epoch}, of rows that were measured as most were; kinds without any are left out."""
    rows = {record.name: total_rows(record, metric) for records in kinds.values() for record in records}
    ways = collections.Counter(way_of(row) for part in rows.values() for row in part)
    usual = max(ways, key=ways.__getitem__, default=None)
    found = {}
    for name, records in kinds.items():
        tables, measured = [], []
        for record in records:
            own = [(int(row["epoch"]), number(row["value"])) for row in rows[record.name] if way_of(row) == usual]
            scaled = [(epoch, value * scale(record, epoch)) for epoch, value in sorted(own)]
            if own:
                tables.append(pandas.DataFrame(scaled, columns=["epoch", "value"]).dropna())
                measured.append(record)
        if tables:
            curve = curves(tables, "value", independent([record.origins for record in measured]), logarithmic=True)
            found[name] = Line(curve, [record.name for record in measured])
    return {name: line for name, line in found.items() if len(line.curve)}


def to_limit(record: FinishedRun, epoch: int) -> float:
    """What an eigenvalue has to be multiplied with to be relative to that above which gradient descent diverges.

    2 (1 + m) / lr with heavy-ball momentum m, 2 (1 + m) / (lr (1 + 2 m)) with Nesterov's, on a quadratic loss and with the
    gradient of all examples, with the rate lr at the end of the epoch, of the first one where none has ended; nan for other
    optimisers. Source: Cohen et al. 2021, appendix B.
    """
    flags, known = record.flags, max(epoch, record.first_epoch + 1)
    rates = [number(row["lr"]) for row in record.rows("history") if row["epoch"] == str(known)]
    if flags["optimizer_name"] != "sgd" or not rates:
        return float("nan")
    m = flags["momentum"]
    return rates[0] * (1 + 2 * m if flags["nesterov"] else 1) / (2 * (1 + m))

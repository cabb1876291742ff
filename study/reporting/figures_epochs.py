"""Figures of the report against the epoch, from the tables of single runs. No torch."""

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
import pandas

from helper.charts.chart import Axis, Chart, Panel, Ramp, Series
from helper.look import Look, ramp
from helper.metrics.main import METRICS
from study.reporting.aggregate import COUNTED, curves, range_of
from study.reporting.families import Family, in_order
from study.reporting.finished_run import FinishedRun, families_of, grouped, number
from study.reporting.statistics import independent

FISHER = METRICS["fisher"]
EPOCHS = Axis("epoch", whole=True)
MOST_PANELS = 4  # in a row
FEW_LINES = 8  # of which each has its place in a legend on paper


def figure3(records: Sequence[FinishedRun], key: str = "all") -> Chart | None:
    """Tr F against the epoch, a panel a family and a line a sparsity, bands over seeds; None without three measured epochs."""
    lines = fisher_lines(records, key)
    if not any(len(line.curve) > 2 for line in lines.values()):
        return None
    families = in_order(family for family, _ in lines)
    sparsities = sorted({sparsity for _, sparsity in lines})
    ramped = Ramp("share pruned", 0, max(sparsities)) if len(sparsities) > FEW_LINES else None
    places = {s: s / max(sparsities) if ramped else i / max(len(sparsities) - 1, 1) for i, s in enumerate(sparsities)}
    shades = {sparsity: ramp(0.85 * place) for sparsity, place in places.items()}
    axis = positive_axis(FISHER.axis, [line.curve for line in lines.values()])
    panels = []
    for family in families:
        own = sorted((sparsity, line) for (of, sparsity), line in lines.items() if of == family)
        series = [curve_of(f"{sparsity:g}", Look(shades[sparsity], "o"), line) for sparsity, line in own]
        panels.append(Panel(EPOCHS, axis, family.label, series))
    columns = min(len(families), MOST_PANELS)
    size = (4.6 * columns, 4.0 * math.ceil(len(families) / columns))
    return Chart(panels, columns, size, same_y="all", legend="share pruned", ramp=ramped, beside=True)


@dataclass(frozen=True)
class Line:
    """A curve over seeds, see `aggregate.curves`, and the names of the runs behind it."""

    curve: pandas.DataFrame
    runs: Sequence[str]


def curve_of(label: str, look: Look, line: Line) -> Series:
    curve = line.curve
    columns = (curve[name].tolist() for name in ("epoch", "mean", "low", "high"))
    return Series(label, look, *columns, bars=False, size=3, runs=[line.runs])


def positive_axis(label: str, curves: Iterable[pandas.DataFrame]) -> Axis:
    """A logarithmic axis that ends at twice the range of the lines: a band over few seeds may reach over many decades."""
    values = numpy.concatenate([curve["mean"].to_numpy() for curve in curves])
    positive = values[(values > 0) & numpy.isfinite(values)]
    limits = (float(positive.min()) / 2, float(positive.max()) * 2) if len(positive) else (None, None)
    return Axis(label, log=True, limits=limits)


def fisher_lines(records: Sequence[FinishedRun], subset: str) -> dict[tuple[Family, float], Line]:
    """{(family, sparsity): curve of Tr F over seeds, geometric means}, of each one's main series.

    Measured in the way that most rows are.
    """
    found = {}
    for setting, alike in alike_rows(records, subset).items():
        points = [{int(row["epoch"]): number(row["value"]) for row in part} for _, part in alike]
        units = independent([record.origins for record, _ in alike])
        tables = [pandas.DataFrame(sorted(part.items()), columns=["epoch", "value"]) for part in points]
        found[setting] = Line(curves(tables, "value", units, logarithmic=True), [record.name for record, _ in alike])
    return found


def fisher_marks(records: Sequence[FinishedRun], subsets: Iterable[str]) -> tuple[int, int]:
    """Of the values that `fisher_lines` are made of: how many are marked unreliable, and of how many that is known."""
    lines = [line for subset in subsets for line in alike_rows(records, subset).values()]
    cells = [row["reliable"] for line in lines for _, part in line for row in part if row.get("reliable")]
    return sum(number(cell) == 0 for cell in cells), len(cells)


def alike_rows(
    records: Sequence[FinishedRun], subset: str
) -> dict[tuple[Family, float], list[tuple[FinishedRun, list[dict[str, str]]]]]:
    """{(family, sparsity): (run, its rows of Tr F) of the main series}, of those rows that were measured as most were."""
    rows = {record.name: total_rows(record, FISHER.name, subset) for record in records}
    ways = collections.Counter(way_of(row) for part in rows.values() for row in part)
    usual = max(ways, key=ways.__getitem__, default=None)
    found = {}
    for setting, group in grouped(records, lambda r: (r.family, r.summary["sparsity_requested"])).items():
        alike = [(r, [row for row in rows[r.name] if way_of(row) == usual]) for r in of_main_series(group)]
        alike = [(record, part) for record, part in alike if part]
        if alike:
            found[setting] = alike
    return found


def total_rows(record: FinishedRun, metric: str, subset: str = "all") -> list[dict[str, str]]:
    """Of a run's measurements the totals of one metric, of all examples or of those with true or with wrong labels."""
    wanted = {"metric": metric, "layer": "all", "subset": subset}
    return [row for row in record.rows("metrics") if wanted.items() <= row.items()]


def way_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["params"], row["split"], row["settings"]


NOISY_PANELS = (
    ("loss_train", "training loss (nats)"),
    ("loss_test", "test loss (nats)"),
    ("acc_train", "training accuracy, given labels"),
    ("acc_test", "test accuracy"),
    ("loss_clean", "loss, clean examples (nats)"),
    ("loss_noisy", "loss, mislabelled examples (nats)"),
    ("acc_clean", "accuracy, clean examples"),
    ("acc_generalized", "mislabelled: predicted as the true label"),
    ("acc_memorized", "mislabelled: predicted as the wrong label"),
)


def figure4(records: Sequence[FinishedRun]) -> Chart | None:
    """Label noise: losses and accuracies against the epoch, for every family at one sparsity, bands over seeds."""
    noisy = by_family([r for r in records if "acc_memorized" in r.history])
    if not noisy:
        return None
    panels = []
    for column, label in NOISY_PANELS:
        axis = Axis("", limits=(0, 1.02) if column.startswith("acc") else (None, None))
        series = [curve_of(family.label, Look(family.colour, "", family.line), history_curve(rows, column))
                  for family, rows in noisy.items()]  # fmt: skip
        panels.append(Panel(EPOCHS, axis, label, series))
    return Chart(panels, 3, (11, 9))


def history_curve(records: Sequence[FinishedRun], column: str) -> Line:
    """A column of history.csv over seeds, see `aggregate.curves`."""
    counted = [record.summary.get("examples", {}).get(COUNTED.get(column), numpy.nan) for record in records]
    found = curves(
        [record.history for record in records], column, independent([record.origins for record in records]),
        least=1 / min(counted), within=range_of(column, numpy.nan),
    )  # fmt: skip
    return Line(found, [record.name for record in records])


def figure5(records: Sequence[FinishedRun]) -> Chart | None:
    """Tr F of the clean and of the mislabelled training examples against the epoch, for every family."""
    lines = {subset: fisher_lines(of_families(records), subset) for subset in SUBSETS}
    if not all(any(len(line.curve) > 1 for line in part.values()) for part in lines.values()):
        return None
    axis = positive_axis(FISHER.axis, [line.curve for part in lines.values() for line in part.values()])
    panels = []
    for subset, label in SUBSETS.items():
        series = [curve_of(family.label, Look(family.colour, family.marker or "o", family.line), line)
                  for (family, _), line in lines[subset].items()]  # fmt: skip
        panels.append(Panel(EPOCHS, axis, label, series))
    return Chart(panels, 2, (9.5, 4.2), same_y="all")


SUBSETS = {"clean": "examples with true labels", "mislabelled": "mislabelled examples"}


def by_family(records: Sequence[FinishedRun]) -> dict[Family, list[FinishedRun]]:
    """{family: runs of its main series}, sparse ones at the sparsity that most of them have."""
    sparsity = main_sparsity(records)
    found = {}
    for family in families_of(records):
        own = [record for record in records if record.family == family]
        rows = [r for r in own if not r.mode_spec.has_mask or r.summary["sparsity_requested"] == sparsity]
        if rows:
            found[family] = of_main_series(rows)
    return found


def of_families(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs of `by_family`."""
    return [record for rows in by_family(records).values() for record in rows]


def of_main_series(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Those of the series that most of the runs belong to."""
    main = pandas.Series([record.series for record in records]).value_counts().index[0]
    return [record for record in records if record.series == main]


def main_sparsity(records: Sequence[FinishedRun]) -> float | None:
    """The sparsity that most sparse runs have, of equals the highest."""
    counts = pandas.Series(
        [r.summary["sparsity_requested"] for r in records if r.mode_spec.has_mask], dtype=float
    ).value_counts()
    return max(counts.index[counts == counts.max()], default=None)

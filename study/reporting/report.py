"""`experiment.py report`: every run under a results root as tables with intervals, the paper's figures, and one HTML page."""

import datetime
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from helper.progress import Task
from helper.schema.config import Config, flag
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.untrusted.texts import csv_text, one_line, shown
from study.bias import bias_noted, marked
from study.decisions import read_decisions
from study.digits import digits
from study.reporting.aggregate import measured_alike, over_seeds
from study.reporting.claims import findings
from study.reporting.collect import Collection, collect
from study.reporting.comparison_sections import comparison_sections
from study.reporting.decision_sections import decision_sections
from study.reporting.figures_sharpness import remedy_charts
from study.reporting.figures_widths import CAPTION, width_charts
from study.reporting.finished_run import FinishedRun
from study.reporting.page import Report, Row, Section, render
from study.reporting.regimes import MARGIN
from study.reporting.remedies import comparisons
from study.reporting.sheets import BRACKETS, NOTE, PAGE_NOTE, SHOWN, gap_rows, wide_table
from study.reporting.sheets_remedies import remedies_sheet, remedy_rows
from study.reporting.sheets_ways import claim_rows, claims_sheet
from study.reporting.study_sections import (
    ALL_MEASUREMENTS,
    ALONG,
    GEOMETRIC,
    MEASUREMENTS,
    Making,
    StudyParts,
    plot,
    study_sections,
)
from study.reporting.tidy import REPORTED, tidy
from study.reporting.unreliable import UNRELIABLE_NOTE, count_of, doubt_noted, doubted, unreliable_of
from study.titles import read_titles

RUN_COLUMNS = (
    "data", "network", "mode", "series", "sparsity", "seed", "epochs", "acc_train", "acc_test", "loss_train", "loss_test",
    *REPORTED, "eigenvalue", "eigenvalue_error", "eigenvalue_of_sample", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class ReportConfig(Config):
    """Report: how the page is headed, and which gap counts."""

    title: str = flag("The Price of Sparsity", "heading of the page")
    margin: float = flag(MARGIN, "gap of accuracies from which one counts; there is none if its interval lies within", low=1e-6)
    png: bool = flag(False, "every chart also as PNG, in the folder figures beside the page")
    pdf: bool = flag(False, "every chart also as PDF")


def report(config: ReportConfig, results_root: str) -> int:
    """Tables, figures and index.html over all finished runs of a results root, in its folder `report`."""
    root = Path(results_root)
    collection = collect(root)
    if not collection.records:
        print_left_out(collection)
        sys.exit(f"experiment.py: error: no finished run under {one_line(root)}; train some with run.py or experiment.py sweep")
    runs, mixed = measured_alike(tidy(collection))
    titles, damaged = read_titles(root)
    decisions, lost = read_decisions(root)
    collection.left_out.extend([*mixed, *damaged, *lost])
    table = over_seeds(runs)
    folder = root / "report"
    with exclusive(folder):
        write_atomic(folder / "runs.csv", csv_text(runs))
        write_atomic(folder / "over_seeds.csv", csv_text(table))
        making = Making(folder, config.margin, kinds_of(config))
        parts = study_sections(runs, collection, making, titles)
        write_atomic(folder / "gaps.csv", csv_text(gap_rows([part.gaps for part in parts])))
        sections = [section for part in parts for section in part.sections]
        sections += widths_section(making, parts, collection)
        sections += claims_section(folder, parts, collection, runs, config.margin)
        sections += remedies_section(making, collection, runs)
        sections += decision_sections(decisions)
        sections += comparison_sections(root, collection)
        collection.left_out.extend(line for part in parts for line in part.left_out)
        page = Report(
            title=config.title,
            root=str(root),
            made=datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
            note=doubt_noted(bias_noted(PAGE_NOTE, collection.records), *unreliable_of(runs, MEASUREMENTS), ALL_MEASUREMENTS),
            sections=tuple(sections),
            columns=RUN_COLUMNS,
            runs=tuple(entries(runs, collection.records)),
            left_out=collection.left_out,
        )
        with Task("writing the page"):
            write_atomic(folder / "index.html", render(page))
        remove_stale(folder, sections)
    print_summary(table, runs, collection)
    print(shown(folder / "index.html"))
    return 0


def kinds_of(config: ReportConfig) -> tuple[str, ...]:
    """The files that every chart is drawn into as well."""
    return tuple(kind for kind in ("png", "pdf") if getattr(config, kind))


def widths_section(making: Making, parts: Sequence[StudyParts], collection: Collection) -> list[Section]:
    """Gaps against the width of the network, over all studies, where there are several widths."""
    tables = [part.gaps for part in parts if len(part.gaps)]
    charts = width_charts(pandas.concat(tables), collection.records) if tables else []
    plots = [plot(making, key, "gaps, widths", f"Gaps against width, {what}", CAPTION, chart) for key, what, chart in charts]
    return [Section("Width", "Over all studies of this report.", tuple(plots))] if plots else []


def claims_section(
    folder: Path, parts: Sequence[StudyParts], collection: Collection, runs: pandas.DataFrame, margin: float
) -> list[Section]:
    """What the field says of the methods, over all studies, where one has several; ranks.csv and claims.csv beside it."""
    ranks = [part.ranks for part in parts if len(part.ranks)]
    if not ranks:
        for name in ("ranks.csv", "claims.csv"):
            (folder / name).unlink(missing_ok=True)
        return []
    found = findings(collection.records, runs, margin)
    write_atomic(folder / "ranks.csv", csv_text(pandas.concat(ranks)))
    write_atomic(folder / "claims.csv", csv_text(claim_rows(found)))
    return [Section("What the field says", "Over all studies of this report.", sheets=(claims_sheet(found, margin),))]


def remedies_section(making: Making, collection: Collection, runs: pandas.DataFrame) -> list[Section]:
    """What remedies change, over all studies, where there are runs with and without one; remedies.csv beside it."""
    found = comparisons(collection.records, runs, making.margin)
    if not found:
        (making.folder / "remedies.csv").unlink(missing_ok=True)
        return []
    write_atomic(making.folder / "remedies.csv", csv_text(remedy_rows(found)))
    charts, along = remedy_charts(collection.records), f"{ALONG} {GEOMETRIC}"
    plots = [plot(making, key, "sharpness, remedies", f"Sharpness along the way, {what}", along, c) for key, what, c in charts]
    sheet = remedies_sheet(found, making.margin)
    return [Section("Remedies", "Over all studies of this report.", tuple(plots), (sheet,))]


def entries(runs: pandas.DataFrame, records: Sequence[FinishedRun]) -> Iterator[Row]:
    rows = runs.set_index("run")
    for record in records:
        row = rows.loc[record.name]
        cells = {name: plain(row[name]) for name in RUN_COLUMNS}
        if record.biased and cells["acc_test"] is not None:
            cells["acc_test"] = marked(digits(cells["acc_test"]), True)
        for name in REPORTED:
            if row[f"{name}_reliable"] == 0 and cells[name] is not None:
                cells[name] = doubted(digits(cells[name]), True)
        pictures = tuple((p.stem, f"../{record.name}/figures/{p.name}") for p in sorted(record.path.glob("figures/*.png")))
        yield Row(record.name, cells, record.flags, pictures)


def plain(value: Any) -> str | float | int | None:
    """A cell as JSON has it; None for nan."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def remove_stale(folder: Path, sections: Sequence[Section]) -> None:
    """Delete the figures of an earlier report: files of which this page does not tell."""
    kept = {path for section in sections for picture in section.pictures for _, path in picture.more}
    for file in (folder / "figures").glob("*"):
        if file.relative_to(folder).as_posix() not in kept:
            file.unlink()


def print_summary(table: pandas.DataFrame, runs: pandas.DataFrame, collection: Collection) -> None:
    wide = wide_table(table)
    several = wide.groupby(["data", "network"])["study"].nunique().max() > 1  # nothing else would tell them apart
    order = ["data", "network", *(["study"] if several else []), "series", "sparsity", "seeds", *SHOWN]
    wide = wide[order].loc[:, (wide[order] != "").any()].rename(columns=SHOWN)
    with pandas.option_context("display.width", 250, "display.max_columns", None, "display.max_rows", 200):
        lines = wide.to_string(index=False).split("\n")
    print("\n".join(map(shown, lines)))
    print(bias_noted(f"{NOTE} {BRACKETS}" if "[" in " ".join(lines) else NOTE, collection.records))
    marks, n = unreliable_of(runs, MEASUREMENTS)
    if n:
        print(f"{count_of(marks, n, ALL_MEASUREMENTS)} {UNRELIABLE_NOTE if marks else ''}".rstrip())
    print_left_out(collection)


def print_left_out(collection: Collection) -> None:
    for name, reason in collection.left_out:
        print(one_line(f"left out {name}: {reason}"), file=sys.stderr)

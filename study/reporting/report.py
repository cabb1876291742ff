"""`experiment.py report`: every run under a results root as tables with intervals, the paper's figures, and one HTML page."""

import datetime
import json
import math
import multiprocessing.pool
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas
from matplotlib.figure import Figure

from helper.drawing import STYLE, save_figure
from helper.processes.interruption import check_signals, checking_signals
from helper.progress import Task, tracked
from helper.schema.config import Config, flag
from helper.system.devices import available_cores
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.system.signals import usual_signals
from helper.untrusted.reasons import reason_of
from helper.untrusted.texts import csv_text, one_line, shown
from study.bias import bias_noted, marked
from study.reporting import figures
from study.reporting.aggregate import gaps, measured_alike, over_seeds, studies
from study.reporting.collect import REPORTED, Collection, Record, collect, tidy
from study.reporting.figures_layers import figure11
from study.reporting.page import Picture, Report, Row, Section, Sheet, digits, image, render
from study.reporting.pairs import pair_runs
from study.reporting.regimes import MARGIN, rule
from study.reporting.sheets import (
    BRACKETS,
    NOTE,
    PAGE_NOTE,
    SHOWN,
    gap_rows,
    gap_tests,
    listed,
    not_paired,
    sharpness,
    table1,
    table2,
    wide_table,
)
from study.reporting.unreliable import UNRELIABLE_NOTE, count_of, doubt_noted, doubted, unreliable_of
from study.runs import COMPARISONS, RESULT
from study.titles import read_titles, title_of

RUN_COLUMNS = (
    "data", "network", "mode", "series", "sparsity", "seed", "epochs", "acc_train", "acc_test", "loss_train", "loss_test",
    *REPORTED, "eigenvalue", "eigenvalue_error", "eigenvalue_of_sample", "seconds",
)  # fmt: skip
BANDS = (
    "Bands and bars are 95 % intervals over independent seeds (Student's t, cut to what the quantity can be). Of a single "
    f"seed, {listed(list(REPORTED.values()))} have the interval of their measurement, and other quantities nothing."
)
MEASUREMENTS = (*REPORTED, "fisher_initial")
ALL_MEASUREMENTS = f"measurements ({listed([*REPORTED.values(), 'Tr F at the start'])})"
GEOMETRIC = (
    "Geometric means over seeds, bands: 95 % intervals of the mean logarithm (Student's t over independent seeds). An epoch "
    "at which the value of a seed is not positive has no geometric mean and is not drawn."
)


@dataclass(frozen=True)
class ReportConfig(Config):
    """Report: how the page is headed, and which gap counts."""

    title: str = flag("The Price of Sparsity", "heading of the page")
    margin: float = flag(MARGIN, "gap of accuracies from which one counts; there is none if its interval lies within", low=1e-6)


def report(config: ReportConfig, results_root: str) -> int:
    """Tables, figures and index.html over all finished runs of a results root, in its folder `report`."""
    root = Path(results_root)
    collection = collect(root)
    if not collection.records:
        sys.exit(f"experiment.py: error: no finished run under {one_line(root)}; train some with run.py or experiment.py sweep")
    runs, mixed = measured_alike(tidy(collection))
    titles, damaged = read_titles(root)
    collection.left_out.extend([*mixed, *damaged])
    table = over_seeds(runs)
    folder = root / "report"
    with exclusive(folder):
        write_atomic(folder / "runs.csv", csv_text(runs))
        write_atomic(folder / "over_seeds.csv", csv_text(table))
        sections, compared = study_sections(runs, collection, folder, config.margin, titles)
        write_atomic(folder / "gaps.csv", csv_text(gap_rows(compared)))
        sections = [*sections, *comparison_sections(root, collection)]
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


# ------------------------------------------------------------------------------------------------------- a study


def study_sections(
    runs: pandas.DataFrame, collection: Collection, folder: Path, margin: float, titles: dict[str, list[str]]
) -> tuple[list[Section], list[pandas.DataFrame]]:
    """A section, headed by the titles of its sweeps, and the gaps of each study.

    Drawing takes the time, so that several studies are shared out over the cores.
    """
    records = {record.name: record for record in collection.records}
    work = [
        (
            ": ".join(filter(None, (title_of(part["run"], titles), name))),
            part,
            [records[run] for run in part["run"]],
            folder,
            margin,
        )
        for name, part in studies(runs)
    ]
    n_workers = min(len(work), available_cores())
    if n_workers == 1:
        found = [study_section(*one) for one in tracked(work, "tables and figures", "studies")]
    else:
        with multiprocessing.get_context("fork").Pool(n_workers, usual_signals) as pool:
            waiting = [pool.apply_async(study_section, one) for one in work]
            found = [when_ready(section) for section in tracked(waiting, "tables and figures", "studies")]
    return [section for section, _ in found], [compared for _, compared in found]


def when_ready(result: multiprocessing.pool.AsyncResult) -> tuple[Section, pandas.DataFrame]:
    """What a worker has made; signals are answered meanwhile."""
    while not result.ready():
        result.wait(0.2)
        check_signals()
    return result.get()


def study_section(
    name: str, runs: pandas.DataFrame, records: Sequence[Record], folder: Path, margin: float
) -> tuple[Section, pandas.DataFrame]:
    """Figures and tables of one dense setting and the sparse runs that start from it, and its `aggregate.gaps`."""
    pairs, alone = pair_runs(records)
    table, compared = over_seeds(runs), gaps(runs, pairs, margin)
    key = runs["study"].iloc[0]
    sheets = [table1(compared, margin), gap_tests(compared, margin), sharpness(compared)] if len(compared) else []
    sheets += [not_paired(alone)] if alone else []
    sheets += [table2(table)]
    with plt.rc_context(STYLE):
        pictures = [
            picture(folder, f"{key}_{slug(id)}", id, title, caption, figure)
            for id, title, caption, figure in checking_signals(study_figures(runs, table, compared, records, margin))
        ]
    about = " ".join(filter(None, (intro(records), count_of(*unreliable_of(runs, MEASUREMENTS), ALL_MEASUREMENTS))))
    return Section(f"{name} ({key})", about, tuple(pictures), tuple(sheets)), compared.assign(study=key)


def study_figures(
    runs: pandas.DataFrame, table: pandas.DataFrame, compared: pandas.DataFrame, records: Sequence[Record], margin: float
) -> Iterator[tuple[str, str, str, Figure]]:
    """(id, title, caption, figure) of what the runs of a study have to show."""
    if (table["sparsity"] > 0).any():
        caption = f"Grey: dense. {BANDS} Shaded: the gap between finetuned and scratch. {rule(margin)}"
        caption = doubt_noted(bias_noted(caption, records), *unreliable_of(runs, ["fisher"]), "values of Tr F")
        yield "figure 1", "Accuracy, loss and prediction entropy against sparsity", caption, figures.figure1(table, compared)
        caption = (
            "Cost counts the multiply-accumulates of the weights that are left, for one example, times the epochs; a training "
            "step takes about three times that. Left: finetuning pays for the dense run it continues. Right: whoever uses a "
            f"mask pays for the dense run it was made from. Small numbers: share pruned. {BANDS}"
        )
        caption = bias_noted(caption, records)
        yield "training cost", "Test accuracy against training cost", caption, figures.cost_figure(table)
    figure = figures.figure3(records)
    if figure:
        caption = doubt_noted(GEOMETRIC, *figures.fisher_marks(records, ["all"]), "values of Tr F")
        yield "figure 3", "Tr F against the epoch", caption, figure
    sparsity = figures.main_sparsity(records)
    at = "" if sparsity is None else f"Sparse runs at {sparsity:g} pruned. "
    figure = figures.figure4(records)
    if figure:
        yield "figure 4", "Training under label noise", at + BANDS, figure
    figure = figures.figure5(records)
    if figure:
        marks = figures.fisher_marks(figures.of_modes(records), figures.SUBSETS)
        caption = doubt_noted(at + GEOMETRIC, *marks, "values of Tr F")
        yield "figure 5", "Tr F of examples with true and with wrong labels", caption, figure
    drawn = figure11(records)
    if drawn:
        figure, shown = drawn
        caption = f"One run a row: {'; '.join(record.name for record in shown)}. Active weights only."
        yield "figure 11", "Gradients and weights of every layer", caption, figure


def picture(folder: Path, stem: str, id: str, title: str, caption: str, figure: Figure) -> Picture:
    file = save_figure(figure, folder / "figures" / stem)
    return Picture(id, title, caption, file, more=tuple((kind, f"figures/{stem}.{kind.lower()}") for kind in ("PDF", "PNG")))


def intro(records: Sequence[Record]) -> str:
    """The options, other than the defaults, that all runs of a study share."""
    dense = records[0].dense
    if dense is None:
        return "Sparse runs from a dense network that was given as a file."
    options = ", ".join(f"{name} {value}" for name, value in sorted(dense.items()) if name not in ("random_state", "mode"))
    running = any(record.flags["train_eval"] == "running" for record in records)
    training = " Training loss, accuracy and entropy are averages over the steps of the epoch." if running else ""
    return f"Dense training: {options or 'all options at their defaults'}.{training}"


# --------------------------------------------------------------------------------------------- the rest of the page


def comparison_sections(root: Path, collection: Collection) -> list[Section]:
    """What `experiment.py interpolate` and `disagree` left under a results root."""
    sections = []
    for file in sorted((root / COMPARISONS).glob(f"*/{RESULT}")):
        try:
            if not within(file, root):
                raise ValueError("no file of this folder")
            result = json.loads(file.read_text())
            for one in result["figures"]:
                if not within(file.parent / one["file"], file.parent):
                    raise ValueError(f"{one['file']} is no file of this folder")
                image(Picture(one["id"], one["title"], one["caption"], file.parent / one["file"]))  # refuses what is no PNG
            pictures = [
                Picture(p["id"], p["title"], p["caption"], file.parent / p["file"], more=(("PDF", link(file, p["file"])),))
                for p in result["figures"]
            ]
            compared = [record for record in collection.records if record.name in result["runs"]]
            intro = bias_noted(" and ".join(result["runs"]), compared)
            rows = result["numbers"]
            columns = tuple(dict.fromkeys(key for row in rows for key in row))
            sheet = Sheet("", "", "", columns, tuple(tuple(row.get(c) for c in columns) for row in rows))
            sections.append(Section(result["title"], intro, tuple(pictures), (sheet,) if rows else ()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"damaged: {reason_of(error)}; remove its folder and make the comparison again"
            collection.left_out.append((file.relative_to(root).as_posix(), reason))
    return sections


def within(file: Path, folder: Path) -> bool:
    """Whether a path leads to an ordinary file of a folder, and not by `..` or a link to another place."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def link(result: Path, png: str) -> str:
    """From report/index.html to the PDF beside a comparison's figure."""
    return f"../{COMPARISONS}/{result.parent.name}/{Path(png).with_suffix('.pdf').as_posix()}"


def entries(runs: pandas.DataFrame, records: Sequence[Record]) -> Iterator[Row]:
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


def slug(id: str) -> str:
    return id.replace(" ", "_")


def remove_stale(folder: Path, sections: Sequence[Section]) -> None:
    """Delete figures of an earlier report that this one does not show."""
    kept = {picture.file.stem for section in sections for picture in section.pictures}
    for file in (folder / "figures").glob("*"):
        if file.stem not in kept:
            file.unlink()


def print_summary(table: pandas.DataFrame, runs: pandas.DataFrame, collection: Collection) -> None:
    wide = wide_table(table).drop(columns="mode")
    wide = wide.loc[:, (wide != "").any()].rename(columns=SHOWN)
    with pandas.option_context("display.width", 250, "display.max_columns", None, "display.max_rows", 200):
        lines = wide.to_string(index=False).split("\n")
    print("\n".join(map(shown, lines)))
    print(bias_noted(f"{NOTE} {BRACKETS}" if "[" in " ".join(lines) else NOTE, collection.records))
    marks, n = unreliable_of(runs, MEASUREMENTS)
    if n:
        print(f"{count_of(marks, n, ALL_MEASUREMENTS)} {UNRELIABLE_NOTE if marks else ''}".rstrip())
    for name, reason in collection.left_out:
        print(one_line(f"left out {name}: {reason}"), file=sys.stderr)

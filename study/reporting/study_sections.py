"""The figures and tables of each study: one dense setting and the sparse runs that belong to it."""

import itertools
import multiprocessing.pool
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from helper.charts.chart import Chart
from helper.processes.interruption import check_signals, checking_signals
from helper.progress import tracked
from helper.system.devices import available_cores
from helper.system.signals import usual_signals
from study.bias import bias_noted
from study.reporting.aggregate import gaps, over_seeds, studies
from study.reporting.collect import Collection
from study.reporting.figures_epochs import SUBSETS, figure3, figure4, figure5, fisher_marks, main_sparsity, of_families
from study.reporting.figures_layers import figure11
from study.reporting.figures_sharpness import sharpness_figure
from study.reporting.figures_sparsity import SingleRuns, cost_figure, figure1
from study.reporting.finished_run import FinishedRun, families_of
from study.reporting.overlap import Reader
from study.reporting.page import Plot, Section, Sheet
from study.reporting.pairs import pair_runs
from study.reporting.regimes import rule
from study.reporting.sheets import gap_tests, listed, not_paired, sharpness, table1, table2
from study.reporting.tidy import REPORTED, series_labels
from study.reporting.unreliable import count_of, doubt_noted, unreliable_of
from study.reporting.ways_section import many_ways, mask_figures, ranking_sheets, ways_figures
from study.titles import title_of

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
ALONG = (
    "The last panel has the Hessian's largest eigenvalue over that from "
    "which on gradient descent with the epoch's learning rate and this momentum diverges on a quadratic loss: where a curve "
    "ends to rise, the run has met what its steps can bear (break-even point), below 1 because of the noise of its batches."
)


@dataclass(frozen=True)
class StudyParts:
    """What a study has in the report.

    Attributes:
        gaps: `aggregate.gaps`. ranks: rows of ranks.csv.
        left_out: (path, reason) of files that could not be read.
    """

    sections: tuple[Section, ...]
    gaps: pandas.DataFrame
    ranks: pandas.DataFrame
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Making:
    """How the parts of a study are made.

    Attributes:
        folder: of the report. margin: of a gap that counts. kinds: of files that every chart is drawn into as well.
    """

    folder: Path
    margin: float
    kinds: tuple[str, ...] = ()


def study_sections(
    runs: pandas.DataFrame, collection: Collection, making: Making, titles: dict[str, list[str]]
) -> list[StudyParts]:
    """The parts of every study, headed by the titles of its sweeps; several studies are shared out over the cores."""
    records = {record.name: record for record in collection.records}
    work = []
    for name, part in studies(runs):
        heading = ": ".join(filter(None, (title_of(part["run"], titles), name)))
        work.append((heading, part, [records[run] for run in part["run"]], making))
    n_workers = min(len(work), available_cores())
    if n_workers == 1:
        return [study_parts(*one) for one in tracked(work, "tables and figures", "studies")]
    with multiprocessing.get_context("fork").Pool(n_workers, usual_signals) as pool:
        waiting = [pool.apply_async(study_parts, one) for one in work]
        return [when_ready(parts) for parts in tracked(waiting, "tables and figures", "studies")]


def when_ready(result: multiprocessing.pool.AsyncResult) -> StudyParts:
    """What a worker has made; signals are answered meanwhile."""
    while not result.ready():
        result.wait(0.2)
        check_signals()
    return result.get()


def study_parts(name: str, runs: pandas.DataFrame, records: Sequence[FinishedRun], making: Making) -> StudyParts:
    """Figures and tables of one dense setting and the sparse runs that belong to it."""
    margin = making.margin
    pairs, alone = pair_runs(records)
    table, compared = over_seeds(runs), gaps(runs, pairs, margin)
    key = runs["study"].iloc[0]
    sheets = [table1(compared, margin), gap_tests(compared, margin), sharpness(compared)] if len(compared) else []
    sheets += [not_paired(alone)] if alone else []
    sheets += [table2(table)]
    figures = study_figures(runs, table, compared, records, margin)
    pictures = [plot(making, key, *drawn) for drawn in checking_signals(figures)]
    about = " ".join(filter(None, (intro(records), count_of(*unreliable_of(runs, MEASUREMENTS), ALL_MEASUREMENTS))))
    section = Section(f"{name} ({key})", about, tuple(pictures), tuple(sheets))
    if not many_ways(records):
        return StudyParts((section,), compared.assign(study=key), pandas.DataFrame())
    reader = Reader()
    ways, ranks = ways_section(f"Ways to a mask: {name} ({key})", runs, table, records, making, reader)
    return StudyParts((section, ways), compared.assign(study=key), ranks, tuple(reader.left_out))


def ways_section(
    title: str, runs: pandas.DataFrame, table: pandas.DataFrame, records: Sequence[FinishedRun], making: Making, reader: Reader
) -> tuple[Section, pandas.DataFrame]:
    """Figures and tables of the methods of a study, and the rows of ranks.csv."""
    key = runs["study"].iloc[0]
    sheets, ranks = ranking_sheets(runs, making.margin)
    pictures = []
    for part in checking_signals(itertools.chain(ways_figures(runs, table, records, BANDS), mask_figures(records, reader))):
        if isinstance(part, Sheet):
            sheets.append(part)
        else:
            pictures.append(plot(making, key, *part))
    return Section(title, "", tuple(pictures), tuple(sheets)), ranks


def study_figures(
    runs: pandas.DataFrame, table: pandas.DataFrame, compared: pandas.DataFrame, records: Sequence[FinishedRun], margin: float
) -> Iterator[tuple[str, str, str, Chart]]:
    """(id, title, caption, chart) of what the runs of a study have to show."""
    families, single = families_of(records), SingleRuns(runs)
    if (table["sparsity"] > 0).any():
        caption = f"Grey: dense. {BANDS} Shaded: the gap between finetuned and scratch. {rule(margin)}"
        caption = doubt_noted(bias_noted(caption, records), *unreliable_of(runs, ["fisher"]), "values of Tr F")
        chart = figure1(table, compared, families, single)
        yield "figure 1", "Accuracy, loss and prediction entropy against sparsity", caption, chart
        caption = (
            "Cost counts the multiply-accumulates of the weights that are left, for one example, times the epochs; a training "
            "step takes about three times that. Left: finetuning pays for the dense run it continues. Right: whoever uses a "
            f"mask pays for the dense run it was made from. Small numbers: share pruned. {BANDS}"
        )
        caption = bias_noted(caption, records)
        yield "training cost", "Test accuracy against training cost", caption, cost_figure(table, families, single)
    figure = figure3(records)
    if figure:
        caption = doubt_noted(GEOMETRIC, *fisher_marks(records, ["all"]), "values of Tr F")
        yield "figure 3", "Tr F against the epoch", caption, figure
    chart = sharpness_figure(records, series_labels(records))
    if chart:
        yield "sharpness", "Sharpness along the way", f"{at_main(records)}{ALONG} {GEOMETRIC}", chart
    at = at_main(records)
    figure = figure4(records)
    if figure:
        yield "figure 4", "Training under label noise", at + BANDS, figure
    figure = figure5(records)
    if figure:
        marks = fisher_marks(of_families(records), SUBSETS)
        caption = doubt_noted(at + GEOMETRIC, *marks, "values of Tr F")
        yield "figure 5", "Tr F of examples with true and with wrong labels", caption, figure
    drawn = figure11(records)
    if drawn:
        figure, shown = drawn
        caption = f"One run a row: {'; '.join(record.name for record in shown)}. Active weights only."
        yield "figure 11", "Gradients and weights of every layer", caption, figure


def at_main(records: Sequence[FinishedRun]) -> str:
    """Which sparse runs a figure shows; empty without any."""
    sparsity = main_sparsity(records)
    return "" if sparsity is None else f"Sparse runs at {sparsity:g} pruned. "


def plot(making: Making, study: str, id: str, title: str, caption: str, chart: Chart) -> Plot:
    """A figure for the page, drawn into files where these are asked for."""
    stem = f"{study}_{slug(id)}"
    if making.kinds:
        draw_into_files(making.folder / "figures" / stem, chart, making.kinds)
    files = tuple((kind.upper(), f"figures/{stem}.{kind}") for kind in making.kinds)
    command = f"python experiment.py report {shlex.quote(str(making.folder.parent))} --png 1 --pdf 1"
    return Plot(id, title, caption, chart, files, command)


def draw_into_files(stem: Path, chart: Chart, kinds: Sequence[str]) -> None:
    from helper.charts.painting import paint  # Matplotlib takes a second to load, which a report without files does not need
    from helper.drawing import save_figure

    save_figure(paint(chart), stem, kinds)


def intro(records: Sequence[FinishedRun]) -> str:
    """The options, other than the defaults, that all runs of a study share."""
    dense = records[0].dense
    if dense is None:
        return "Sparse runs from a dense network that was given as a file."
    options = ", ".join(f"{name} {value}" for name, value in sorted(dense.items()) if name not in ("random_state", "mode"))
    running = any(record.flags["train_eval"] == "running" for record in records)
    training = " Training loss, accuracy and entropy are averages over the steps of the epoch." if running else ""
    return f"Dense training: {options or 'all options at their defaults'}.{training}"


def slug(id: str) -> str:
    return id.lower().replace(",", "").replace(" ", "_")

"""Tests of what a reader of the figures trips over: offsets, overlaps, letters, labels, intervals beyond the range."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy
import pandas
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from helper.charts.painting import paint
from helper.drawing import STYLE, label_points
from helper.plotter.columns import read_columns
from helper.plotter.gradients import gradients, snr
from helper.plotter.training import performance
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.comparing.figures_interpolation import draw_classes, draw_lines_and_cosines
from study.reporting.aggregate import curves, gaps, over_seeds, range_of
from study.reporting.collect import collect
from study.reporting.figures_epochs import figure3, figure4, figure5
from study.reporting.figures_layers import figure11
from study.reporting.figures_sparsity import SingleRuns, cost_figure, figure1
from study.reporting.finished_run import families_of
from study.reporting.pairs import pair_runs
from study.reporting.tidy import tidy


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context(STYLE):
        yield
    plt.close("all")


@pytest.fixture
def collection(tmp_path):
    for seed in (1, 2, 3):
        for mode, ratio in [("dense", 0.9), *((m, r) for m in ("sparse-finetune", "sparse-scratch") for r in (0.5, 0.9, 0.95))]:
            flags = {"mode": mode, "prune_ratio": ratio, "random_state": seed, "loader_name": "digits_noisy"}
            write_run(unflatten(RunConfig, {**flags, "results_root": str(tmp_path)}))
    return collect(tmp_path)


def all_figures(collection) -> dict[str, Figure]:
    runs, records = tidy(collection), collection.records
    table, compared = over_seeds(runs), gaps(runs, pair_runs(records)[0])
    folder, families = records[0].path, families_of(records)
    history, layers = (read_columns(folder / f"{name}.csv") for name in ("history", "snr"))
    single = SingleRuns(runs)
    charts = {
        "1": figure1(table, compared, families, single), "cost": cost_figure(table, families, single), "3": figure3(records),
        "4": figure4(records), "5": figure5(records), "11": figure11(records)[0],
    }  # fmt: skip
    drawn = {name: paint(chart) for name, chart in charts.items()} | {"6": interpolated(), "7": draw_classes(classes(10))}
    return drawn | {"run": performance(history), "snr": snr(layers), "gradients": gradients(layers)}


def interpolated() -> Figure:
    grid = numpy.linspace(0, 1, 5)
    paths = itertools.product(("Init-S->Sol-F", "Init-F->Sol-F"), ("train", "test"))
    line = pandas.concat(
        [pandas.DataFrame({"path": p, "alpha": grid, "split": s, "loss": grid, "acc": grid}) for p, s in paths]
    )
    return draw_lines_and_cosines(line, numpy.array([0.3, 0.9]), numpy.random.default_rng(0).normal(0, 0.1, (2, 500)))


def classes(n: int) -> pandas.DataFrame:
    one = {"class": range(n), "name": [f"class {i}" for i in range(n)], "count": range(n, 0, -1), "size": 50, "expected": 5.0}
    return pandas.concat([pandas.DataFrame(one | {"alpha": alpha, "p_value": 0.5, "q_value": 0.5}) for alpha in (0.3, 0.9)])


def test_no_axis_has_an_offset_and_no_ticks_touch(collection):
    for name, figure in all_figures(collection).items():
        figure.canvas.draw()
        for axis in figure.axes:
            assert axis.xaxis.get_offset_text().get_text() == axis.yaxis.get_offset_text().get_text() == "", name
            low, high = sorted(axis.get_xlim())
            shown = [tick.label1 for tick in axis.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [
                label.get_window_extent()
                for label in shown
                if label.get_text() and label.get_visible() and not label.get_rotation()
            ]
            for left, right in itertools.pairwise(boxes):
                assert left.x1 <= right.x0, (name, axis.get_xlabel())


@pytest.mark.parametrize("scale", [1e-5, 1.0, 3e6, 1e9])
def test_training_cost_is_in_a_unit_that_needs_no_offset(collection, scale):
    runs = tidy(collection)
    costs = [column for column in runs if column.startswith("cost")]
    table = over_seeds(runs.assign(**{column: runs[column] * scale for column in costs}))
    figure = paint(cost_figure(table, families_of(collection.records), SingleRuns(runs)))
    figure.canvas.draw()
    for axis in figure.axes:
        assert axis.xaxis.get_offset_text().get_text() == ""
        numbers = [tick.label1.get_text() for tick in axis.xaxis.get_major_ticks()]
        assert max(map(len, numbers)) <= 5


def boxes_of(axis) -> list[tuple[str, Bbox]]:
    axis.figure.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in axis.texts]


def test_sparsities_on_the_training_cost_figure_cover_neither_each_other_nor_a_point(tmp_path):
    modes = ("sparse-finetune", "sparse-scratch", "lottery")
    for mode, ratio in [("dense", 0.9), *itertools.product(modes, (0.5, 0.8, 0.9, 0.95, 0.98))]:
        write_run(unflatten(RunConfig, {"mode": mode, "prune_ratio": ratio, "results_root": str(tmp_path)}))
    found = collect(tmp_path)
    runs = tidy(found)
    for axis in paint(cost_figure(over_seeds(runs), families_of(found.records), SingleRuns(runs))).axes:
        boxes = boxes_of(axis)
        assert {text for text, _ in boxes} == {"0.5", "0.8", "0.9", "0.95", "0.98"}
        assert len(boxes) >= 13  # of 15, two of which have no room beside the others
        assert not [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
        points = [axis.transData.transform(line.get_xydata()) for line in axis.lines if line.get_label() != "_nolegend_"]
        assert not [text for text, box in boxes for place in points if box.count_contains(place)]


@pytest.mark.parametrize(
    ("x", "y", "texts", "shown"),
    [
        ([1, 1, 1, 3], [2, 2, 2, 2], ["0.5"] * 4, ["0.5", "0.5"]),  # three on each other have one label
        ([1, 1, 1, 1, 1, 1], [2] * 6, list("abcdef"), list("abcd")),  # and six with six texts one on each side
        ([1, 3, 5], [2, 4, 2], ["a", "b", "c"], ["a", "b", "c"]),
        ([], [], [], []),
    ],
)
def test_coinciding_points_are_labelled_once_and_others_as_far_as_there_is_room(x, y, texts, shown):
    figure, axis = plt.subplots()
    axis.plot([0, *x, 9], [0, *y, 9], "o")
    figure.draw_without_rendering()
    label_points(axis, x, y, texts)
    boxes = boxes_of(axis)
    assert [text for text, _ in boxes] == shown
    assert not [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


def test_no_legend_lies_on_a_curve(collection):
    for name, figure in all_figures(collection).items():
        figure.canvas.draw()
        for axis in figure.axes:
            if not axis.get_legend():
                continue
            box = axis.get_legend().get_window_extent()
            for line in axis.lines:
                points = line.get_transform().transform(numpy.column_stack(line.get_data(orig=False)))
                dense = numpy.column_stack(
                    [numpy.interp(numpy.linspace(0, 1, 500), numpy.linspace(0, 1, len(points)), p) for p in points.T]
                )
                assert not box.count_contains(dense[numpy.isfinite(dense).all(1)]), (name, line.get_label())


def test_every_panel_has_its_own_letter_and_every_lowest_panel_a_label(collection):
    figures = all_figures(collection)
    letters = [axis.get_title()[:3] for axis in figures["6"].axes]
    assert letters == ["(a)", "(b)", "(c)", "(d)"]
    for n in (10, 40):
        figures[f"classes {n}"] = draw_classes(classes(n))
    for name, figure in figures.items():
        for axis in figure.axes:
            if axis.get_subplotspec() and axis.get_subplotspec().is_last_row():
                assert axis.get_xlabel(), name


def test_intervals_of_accuracies_and_entropies_end_at_what_they_can_be(collection):
    runs = tidy(collection)
    near = numpy.where(runs["seed"] == 1, 1.0, 0.96)
    runs = runs.assign(
        acc_train=near, acc_test=1 - near, entropy_train=numpy.where(runs["seed"] == 1, 2.3, 1.5), loss_train=1 - near
    )
    table = over_seeds(runs)
    for quantity, (low, high) in {
        "acc_train": (0, 1), "acc_test": (0, 1), "entropy_train": (0, math.log(10)), "loss_train": (0, math.inf)
    }.items():  # fmt: skip
        rows = table[table["quantity"] == quantity]
        assert (rows["low"] >= low).all()
        assert (rows["high"] <= high).all()
        assert (rows["low"] < rows["mean"]).all()
        assert (rows["mean"] < rows["high"]).all()
    compared = gaps(runs, pair_runs(collection.records)[0])
    figure = paint(figure1(table, compared, families_of(collection.records), SingleRuns(runs)))
    for axis, top in zip(figure.axes[:3], (1, 1, math.log(10)), strict=True):
        ends = numpy.concatenate(
            [segment[:, 1] for bars in axis.collections if hasattr(bars, "get_segments") for segment in bars.get_segments()]
        )
        assert ends.min() >= -1e-12
        assert ends.max() <= top + 1e-12


def test_bands_of_curves_stay_within_the_range():
    tables = [pandas.DataFrame({"epoch": [0, 1], "acc_test": values}) for values in ([0.5, 1.0], [0.4, 0.9], [0.6, 1.0])]
    found = curves(tables, "acc_test", within=range_of("acc_test", math.nan))
    assert found["high"].max() == 1
    equal = curves([tables[0], tables[0]], "acc_test", least=0.1)
    assert (equal["high"] > equal["mean"]).all()
    shared = curves(tables, "acc_test", [0, 0, 0])
    assert (shared["high"] == shared["mean"]).all()  # one unit shows no spread

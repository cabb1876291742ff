"""What a page draws of a chart: its numbers against the tables, its form against Vega-Lite's schema, texts as data alone."""

import json
import math
from collections.abc import Iterator
from typing import Any

import altair
import numpy
import pytest
from matplotlib.colors import to_rgb

from helper.charts.bundle import chart_scripts
from helper.charts.chart import Area, Axis, Chart, Level, Matrix, Panel, Series, Stretch, letter
from helper.charts.vega import vega
from helper.charts.vega_looks import SHAPES, rgb
from helper.look import VIRIDIS, Look, ramp
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting.aggregate import gaps, over_seeds
from study.reporting.collect import Collection, collect
from study.reporting.families import LINES, MARKERS
from study.reporting.figures_epochs import figure3, figure4, figure5
from study.reporting.figures_layers import figure11
from study.reporting.figures_masks import changes_figure, density_figure, overlap_figure
from study.reporting.figures_sparsity import SingleRuns, cost_figure, figure1
from study.reporting.figures_ways import ways_figure
from study.reporting.finished_run import families_of
from study.reporting.overlap import Reader, changes, overlaps
from study.reporting.pairs import pair_runs
from study.reporting.tidy import tidy
from tests.made_up_report import HOSTILE, HOSTILE_NAMES, made_up_chart, run_entries
from tests.test_families import WAYS

RED = Look("#D55E00", "o", "-")
MODES = ("dense", "sparse-finetune", "sparse-scratch", "RigL")


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3):
        for label, ratio in [(MODES[0], 0.9), *((label, ratio) for label in MODES[1:] for ratio in (0.5, 0.9))]:
            flags = {"random_state": seed, "loader_name": "digits_noisy", "results_root": str(root), "prune_ratio": ratio}
            write_run(unflatten(RunConfig, flags | {"n_epochs": 10, "lr_milestones": "5"} | WAYS[label]), every=5, weights=True)
    return collect(root)


def charts(collection: Collection) -> dict[str, Chart]:
    runs, records = tidy(collection), collection.records
    table, families, single = over_seeds(runs), families_of(records), SingleRuns(tidy(collection))
    fisher, test = (table[table["quantity"] == name] for name in ("fisher", "acc_test"))
    sparse = [record for record in records if record.mode_spec.has_mask and record.flags["prune_ratio"] == 0.9]
    return {
        "1": figure1(table, gaps(runs, pair_runs(records)[0]), families, single), "cost": cost_figure(table, families, single),
        "3": figure3(records), "4": figure4(records), "5": figure5(records), "11": figure11(records)[0],
        "ways": ways_figure(test, families, "test accuracy", single, highest=True, log=False),
        "ways, Tr F": ways_figure(fisher, families, "Tr F", single, highest=False, log=True),
        "density": density_figure(records), "overlap": overlap_figure(overlaps(sparse, Reader()), families),
        "changes": changes_figure(changes([r for r in sparse if r.mode == "dynamic"], Reader()), families),
        "hostile": made_up_chart(run_entries(8)),
    }  # fmt: skip


def every_run(name: str) -> int:
    return 0


def texts_under(value: Any, keys: set[str], inside: bool = False) -> Iterator[str]:
    """The texts of a specification that stand below one of these keys."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from texts_under(own, keys, inside or key in keys)
    elif isinstance(value, list):
        for own in value:
            yield from texts_under(own, keys, inside)
    elif isinstance(value, str) and inside:
        yield value


def rows_with(spec: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """The data of the first layer whose rows have just these columns among others."""
    parts = [layer["data"]["values"] for layer in spec["layer"] if "data" in layer]
    return next((rows for rows in parts if rows and set(names) <= rows[0].keys()), [])


def test_every_figure_of_a_report_is_valid_vega_lite_and_json(collection):
    for name, chart in charts(collection).items():
        described = vega(chart, every_run)
        json.dumps(described, allow_nan=False)
        assert len(described["panels"]) == len(chart.panels), name
        for panel in described["panels"]:
            altair.Chart.from_dict(panel["spec"])  # raises SchemaValidationError


ALLOWED = {"indexof(hidden, datum.s) < 0", "isValid(datum.l)", "isValid(datum.t)", "names[datum.value]", "datum.d"}


def test_no_text_of_a_run_is_in_an_expression(collection):
    expressions, names_and_colours = {"filter", "labelExpr", "condition", "test", "expr", "calculate", "signal"}, {"s", "white"}
    for chart in charts(collection).values():
        for panel in vega(chart, every_run)["panels"]:
            assert set(texts_under(panel["spec"], expressions)) <= ALLOWED | names_and_colours


def test_figure_1_has_the_means_and_intervals_of_its_table_and_every_run_behind_them(collection):
    runs = tidy(collection)
    table, names = over_seeds(runs), runs["run"].tolist()
    chart = figure1(table, gaps(runs, []), families_of(collection.records), SingleRuns(runs))
    for (quantity, _), panel in zip(FIGURE1, vega(chart, names.index)["panels"], strict=True):
        rows = rows_with(panel["spec"], "i", "r")
        means = table[(table["quantity"] == quantity) & (table["sparsity"] > 0)].set_index(["series", "sparsity"])
        assert len(rows) == len(means) == 6
        for row in rows:
            expected = means.loc[(panel["labels"][row["s"]], row["x"])]
            found = row["y"], row.get("l", math.nan), row.get("h", math.nan)
            assert found == pytest.approx(expected[["mean", "low", "high"]].tolist(), rel=1e-5, nan_ok=True)
            own = runs[(runs["series"] == panel["labels"][row["s"]]) & (runs["sparsity"] == row["x"])]
            assert sorted(row["r"]) == sorted(own.index)
        (level,) = rows_with(panel["spec"], "c")
        dense = table[(table["quantity"] == quantity) & (table["mode"] == "dense")].iloc[0]
        assert level["y"] == pytest.approx(dense["mean"], rel=1e-5)
        assert sorted(panel["runs"][level["s"]]) == runs.index[runs["mode"] == "dense"].tolist()
        dots = [row for layer in panel["spec"]["layer"] for row in layer["data"]["values"] if "r" in row and "i" not in row]
        assert len(dots) == 18
        for row in dots:
            (place,) = row["r"]
            assert (row["x"], row["y"]) == pytest.approx((runs.at[place, "sparsity"], runs.at[place, quantity]), rel=1e-5)


FIGURE1 = (("acc_test", 0), ("acc_train", 0), ("entropy_train", 0), ("loss_test", 0), ("loss_train", 0), ("fisher", 0))


def test_tr_f_of_a_family_is_drawn_as_its_geometric_mean_with_the_runs_behind_it(collection):
    names = [record.name for record in collection.records]
    families = [family.label for family in families_of(collection.records)]
    described = vega(figure3(collection.records), names.index)
    panel = described["panels"][families.index("sparse-scratch")]
    rows = [row for row in rows_with(panel["spec"], "i") if panel["labels"][row["s"]] == "0.9"]
    own = [r for r in collection.records if r.mode == "sparse-scratch" and r.flags["prune_ratio"] == 0.9]
    values = [
        r.metrics.query("metric == 'fisher' and layer == 'all' and subset == 'all'").set_index("epoch")["value"] for r in own
    ]
    assert [row["x"] for row in rows] == values[0].index.tolist()
    assert [row["y"] for row in rows] == pytest.approx(numpy.exp(numpy.log(values).mean(0)).tolist(), rel=1e-5)
    assert sorted(panel["runs"][rows[0]["s"]]) == sorted(names.index(r.name) for r in own)


def panel_of(y: Axis, *series: Series, **more: Any) -> dict[str, Any]:
    chart = Chart([Panel(Axis("x"), y, series=series, **more)], 1, (4, 3))
    return vega(chart, every_run)["panels"][0]["spec"]


@pytest.mark.parametrize("log", [False, True])
def test_what_an_axis_cannot_show_is_left_out_and_the_rest_stays(log):
    y = [1.0, math.nan, math.inf, 0.0, -2.0, 3.0]
    spec = panel_of(Axis("y", log=log), Series("a", RED, range(6), y, [v - 1 for v in y], [v + 1 for v in y]))
    rows = rows_with(spec, "i")
    assert [row["x"] for row in rows] == ([0, 5] if log else [0, 3, 4, 5])
    assert (min(row["l"] for row in rows) > 0) == log
    low, high = spec["layer"][-1]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low <= min(row["y"] for row in rows)
    assert high >= 4 or log
    assert not log or low > 0


@pytest.mark.parametrize("same_y", ["", "all", "col"])
def test_panels_that_share_an_axis_have_one_domain(same_y):
    panels = [Panel(Axis("x"), Axis("y"), series=[Series("a", RED, [0, 1], [0, height])]) for height in (1, 2, 4, 8)]
    described = vega(Chart(panels, 2, (8, 6), same_y=same_y), every_run)["panels"]
    tops = [panel["spec"]["layer"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"][1] for panel in described]
    shown = {"": [1, 2, 4, 8], "all": [8] * 4, "col": [4, 8, 4, 8]}[same_y]
    assert tops == pytest.approx([1.05 * height for height in shown])


def test_limits_that_a_chart_asks_for_are_kept():
    spec = panel_of(Axis("y", limits=(0, 1.02)), Series("a", RED, [0, 1], [0.2, 0.4]))
    assert spec["layer"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0, 1.02]


def test_an_empty_chart_and_one_of_one_point_have_a_specification():
    for series in ((), (Series("a", RED, [], []),), (Series("a", RED, [1], [2]),), (Series("a", RED, [1], [math.nan]),)):
        altair.Chart.from_dict(panel_of(Axis("y"), *series) | {"width": 100})


def test_areas_stretches_levels_and_matrices_have_their_numbers():
    spec = panel_of(
        Axis("y"), Series("a", RED, [0, 1], [2, 3]), areas=[Area([0, 1], [2, 3], [4, 5])],
        stretches=[Stretch(0.2, 0.8, "#009E73", HOSTILE)], levels=[Level("d", RED, 7, math.nan, math.nan)],
    )  # fmt: skip
    assert rows_with(spec, "l", "h") == [{"x": 0, "l": 2, "h": 4}, {"x": 1, "l": 3, "h": 5}]
    assert rows_with(spec, "e") == [{"x": 0.2, "e": 0.8, "m": 0.5, "t": HOSTILE}]
    assert [(row["s"], row["y"], "l" in row) for row in rows_with(spec, "c")] == [(1, 7, False)]
    axis = Axis("method", ticks=(0, 1), names=("one", HOSTILE_NAMES[1]))
    matrix = Matrix([[math.nan, 0.25], [0.75, math.nan]], [["", "25\n1"], ["75\n2", ""]], "shared")
    panel = Chart([Panel(axis, axis, matrix=matrix)], 1, (4, 4))
    rows = vega(panel, every_run)["panels"][0]["spec"]["data"]["values"]
    assert [(row["y"], row["x"], row["v"], row["t"]) for row in rows] == [
        ("one", HOSTILE_NAMES[1], 0.25, ["25", "1"]), (HOSTILE_NAMES[1], "one", 0.75, ["75", "2"]),
    ]  # fmt: skip


def test_the_legend_has_every_series_once_and_levels_first():
    chance, levels = Series("a", Look("#D55E00", "", ":"), [0], [1], named=False), [Level("d", RED, 1, 1, 1)]
    panels = [Panel(Axis("x"), Axis("y"), series=[Series(name, RED, [0], [1]), chance], levels=levels) for name in "ab"]
    described = vega(Chart(panels, 2, (8, 4)), every_run)
    assert [entry["label"] for entry in described["entries"]] == ["d", "a", "b"]
    assert described["panels"][0]["labels"] == ["a", "a", "d"]


def test_every_marker_and_line_of_a_method_can_be_drawn():
    assert set(MARKERS) <= SHAPES.keys()
    series = [Series(line, Look("#000000", "o", line), [0], [1]) for line in LINES]
    entries = vega(Chart([Panel(Axis("x"), Axis("y"), series=series)], 1, (1, 1)), every_run)["entries"]
    assert len({str(entry["dash"]) for entry in entries}) == len(LINES)


@pytest.mark.parametrize("colour", ["#D55E00", "#d55e00", "0.4", "1", ".25", "red", "tab:blue", "C3"])
def test_colours_are_those_of_matplotlib(colour):
    assert rgb(colour) == pytest.approx(to_rgb(colour))


def test_colours_run_from_dark_to_light_through_viridis():
    assert [ramp(i / 8) for i in range(9)] == list(VIRIDIS)
    assert (ramp(-1), ramp(2)) == (VIRIDIS[0], VIRIDIS[-1])
    light = [sum(int(ramp(i / 50)[k : k + 2], 16) * w for k, w in ((1, 0.3), (3, 0.59), (5, 0.11))) for i in range(51)]
    assert light == sorted(light)


def test_panels_are_lettered_in_order():
    assert [letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_the_scripts_fetch_nothing_and_are_no_module():
    text = chart_scripts()
    assert "vegaEmbed" in text
    assert "</script" not in text.lower()
    assert "\nimport " not in text
    assert 'from"https:' not in text

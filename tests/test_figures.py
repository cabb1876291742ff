"""The report's figures show the numbers of its tables and of the runs: every line, bar and place."""

import matplotlib.pyplot as plt
import numpy
import pandas
import pytest
from matplotlib.axes import Axes

from helper.charts.painting import paint
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting import figures_epochs, figures_sparsity
from study.reporting.aggregate import gaps, over_seeds
from study.reporting.collect import collect
from study.reporting.figures_layers import figure11
from study.reporting.finished_run import FinishedRun, families_of
from study.reporting.pairs import pair_runs
from study.reporting.tidy import tidy

SEEDS, RATIOS = (1, 2, 3), (0.5, 0.9)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def records(tmp_path) -> tuple[FinishedRun, ...]:
    """Noisy runs of three seeds: dense, finetuned and from scratch at two sparsities."""
    for seed in SEEDS:
        for mode, ratio in [("dense", 0.9), *((m, r) for m in ("sparse-finetune", "sparse-scratch") for r in RATIOS)]:
            flags = {"mode": mode, "prune_ratio": ratio, "random_state": seed, "loader_name": "digits_noisy"}
            write_run(unflatten(RunConfig, flags | {"results_root": str(tmp_path)}))
    return collect(tmp_path).records


@pytest.fixture
def table(records, tmp_path) -> pandas.DataFrame:
    return over_seeds(tidy(collect(tmp_path)))


def bars(axis: Axes) -> dict[str, tuple[list, list, list]]:
    """{label: x, y and (low, high) of each error bar}."""
    found = {}
    for container in axis.containers:
        line, _, (segments,) = container.lines
        ends = [tuple(segment[:, 1]) for segment in segments.get_segments()]
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()), ends)
    return found


def rows_of(table: pandas.DataFrame, quantity: str, mode: str) -> pandas.DataFrame:
    return table[(table["quantity"] == quantity) & (table["mode"] == mode)].sort_values("sparsity")


def intervals(rows: pandas.DataFrame) -> numpy.ndarray:
    """(N, 2) bounds; where there is no interval, a bar of no length."""
    return rows[["low", "high"]].apply(lambda bound: bound.fillna(rows["mean"])).to_numpy()


def test_figure_1_has_the_means_and_intervals_of_every_quantity_against_sparsity(records, table):
    runs = tidy_of(records)
    compared = gaps(runs, pair_runs(records)[0])
    drawn = paint(figures_sparsity.figure1(table, compared, families_of(records), figures_sparsity.SingleRuns(runs)))
    for axis, (quantity, _) in zip(drawn.axes, figures_sparsity.FIGURE1_PANELS, strict=True):
        for mode in ("sparse-finetune", "sparse-scratch"):
            rows = rows_of(table, quantity, mode)
            places, means, ends = bars(axis)[mode]
            assert places == list(RATIOS)
            assert means == pytest.approx(rows["mean"].tolist())
            assert numpy.array(ends) == pytest.approx(intervals(rows))
        (level,) = [line for line in axis.lines if line.get_label() == "dense"]
        assert level.get_ydata()[0] == rows_of(table, quantity, "dense")["mean"].item()
    shaded = drawn.axes[0].collections
    (vertices,) = [c.get_paths()[0].vertices for c in shaded if type(c).__name__ == "FillBetweenPolyCollection"]
    middle = {mode: rows_of(table, "acc_test", mode)["mean"].tolist() for mode in ("sparse-finetune", "sparse-scratch")}
    for mode, means in middle.items():
        for place, mean in zip(RATIOS, means, strict=True):
            assert numpy.isclose(vertices, (place, mean)).all(1).any(), mode


def tidy_of(records: tuple[FinishedRun, ...]) -> pandas.DataFrame:
    return tidy(collect(records[0].path.parents[3]))


def test_training_cost_is_drawn_with_the_dense_run_of_weights_and_of_masks(records, table):
    drawn = paint(figures_sparsity.cost_figure(table, families_of(records), figures_sparsity.SingleRuns(tidy_of(records))))
    for axis, column in zip(drawn.axes, ("cost_weights", "cost_mask"), strict=True):
        for mode in ("dense", "sparse-finetune", "sparse-scratch"):
            rows = rows_of(table, "acc_test", mode)
            places, means, ends = bars(axis)[mode]
            assert places == pytest.approx((rows[column] / 1e6).tolist())
            assert "(10⁶ multiply-accumulates" in axis.get_xlabel()
            assert means == pytest.approx(rows["mean"].tolist())
            assert numpy.array(ends) == pytest.approx(intervals(rows))


def geometric(records, mode: str, sparsity: float, subset: str) -> pandas.Series:
    """Geometric mean over the seeds of Tr F, by epoch."""
    tables = [
        r.metrics.query(f"metric == 'fisher' and layer == 'all' and subset == '{subset}'").set_index("epoch")["value"]
        for r in records if r.mode == mode and (mode == "dense" or r.flags["prune_ratio"] == sparsity)
    ]  # fmt: skip
    assert len(tables) == len(SEEDS)
    return numpy.exp(pandas.concat(tables, axis=1).map(numpy.log).mean(axis=1))


@pytest.mark.parametrize("number", [3, 5])
def test_tr_f_is_drawn_as_the_geometric_mean_of_the_right_examples_and_sparsity(records, number):
    if number == 3:
        panels = paint(figures_epochs.figure3(records)).axes
        axes = dict(zip(("dense", "sparse-finetune", "sparse-scratch"), panels, strict=True))
        shown = [
            (axes[mode], f"{ratio:g}", mode, ratio, "all") for mode in ("sparse-finetune", "sparse-scratch") for ratio in RATIOS
        ]
    else:
        axes = dict(zip(("clean", "mislabelled"), paint(figures_epochs.figure5(records)).axes, strict=True))
        modes = ("dense", "sparse-finetune", "sparse-scratch")
        shown = [(axis, mode, mode, 0.9, subset) for subset, axis in axes.items() for mode in modes]
    for axis, label, mode, ratio, subset in shown:
        (line,) = [line for line in axis.lines if line.get_label() == label]
        expected = geometric(records, mode, ratio, subset)
        assert line.get_xdata().tolist() == expected.index.tolist()
        assert line.get_ydata().tolist() == pytest.approx(expected.tolist())


def test_figure_4_has_the_means_over_seeds_of_every_column(records):
    for axis, (column, _) in zip(paint(figures_epochs.figure4(records)).axes, figures_epochs.NOISY_PANELS, strict=True):
        for mode in ("dense", "sparse-finetune", "sparse-scratch"):
            own = [
                r.history.set_index("epoch")[column]
                for r in records
                if r.mode == mode and r.summary["sparsity_requested"] != 0.5
            ]
            (line,) = [line for line in axis.lines if line.get_label() == mode]
            assert line.get_ydata().tolist() == pytest.approx(pandas.concat(own, axis=1).mean(axis=1).tolist())


def test_figure_11_has_gradients_relative_to_the_weights_of_each_layer(records):
    chart, shown = figure11(records)
    rows = numpy.array(paint(chart).axes[: 3 * len(shown)]).reshape(len(shown), 3)
    for axes, record in zip(rows, shown, strict=True):
        table = record.snr
        of_panels = (
            table["grad_mean_norm"] / table["weight_norm"], table["grad_std_norm"] / table["weight_norm"], table["weight_norm"],
        )  # fmt: skip
        for axis, values in zip(axes, of_panels, strict=True):
            for layer, line in zip(table["layer"].unique(), axis.lines, strict=True):
                assert line.get_label() == layer
                assert line.get_ydata().tolist() == pytest.approx(values[table["layer"] == layer].tolist())

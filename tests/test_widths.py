"""Gaps against the width of the network: which studies stand in one figure, and where its points lie."""

import math

import pandas
import pytest
from scipy import stats

import experiment
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting.aggregate import gaps, studies
from study.reporting.collect import collect
from study.reporting.figures_widths import width_charts
from study.reporting.pairs import pair_runs
from study.reporting.tidy import tidy
from tests.edited import edit_summary

SETTING = {"loader_name": "cifar100", "net_name": "resnet", "depth": 8, "n_epochs": 4, "lr_milestones": "2"}
GAPS = {1: (-0.03, -0.035, -0.025), 4: (0.02, 0.03, 0.01)}  # test accuracy, finetuned minus scratch, of each seed at a width


def write(root, acc_test=None, **flags) -> None:
    folder = write_run(unflatten(RunConfig, SETTING | flags | {"results_root": str(root)}))
    if acc_test is not None:
        edit_summary(folder.path, lambda summary: summary.update(acc_test=acc_test))


def write_width(root, width, differences=(0.01, 0.02), **flags) -> None:
    for seed, difference in enumerate(differences, 1):
        shared = {"widen_factor": width, "random_state": seed} | flags
        write(root, mode="dense", **shared)
        write(root, 0.5 + difference, mode="sparse-finetune", **shared)
        write(root, 0.5, mode="sparse-scratch", **shared)


def charts_of(root):
    collection = collect(root)
    assert not collection.left_out
    records, tables = {record.name: record for record in collection.records}, []
    for _, part in studies(tidy(collection)):
        pairs, _ = pair_runs([records[run] for run in part["run"]])
        tables.append(gaps(part, pairs).assign(study=part["study"].iloc[0]))
    return [chart for _, _, chart in width_charts(pandas.concat(tables), collection.records)]


def test_points_are_the_paired_differences_of_each_width_with_their_intervals(tmp_path):
    for width, differences in GAPS.items():
        write_width(tmp_path, width, differences)
    (chart,) = charts_of(tmp_path)
    test, _ = chart.panels
    assert test.x.names == ["1", "4"]
    (series,) = test.series
    assert series.x == [0, 1]
    for place, differences in enumerate(GAPS.values()):
        expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (series.low[place], series.high[place]) == pytest.approx(tuple(expected))
        assert series.y[place] == pytest.approx(sum(differences) / 3)


def test_augmentation_sparsity_and_epochs_are_series_side_by_side(tmp_path):
    for width in (1, 2):
        write_width(tmp_path, width)
        write_width(tmp_path, width, augment="none", n_epochs=8)
        write_width(tmp_path, width, augment="none", n_epochs=8, prune_ratio=0.5)
    (chart,) = charts_of(tmp_path)
    for panel in chart.panels:
        assert {series.label for series in panel.series} == {
            "0.9, crop and flip, 4",
            "0.9, no augmentation, 8",
            "0.5, no augmentation, 8",
        }
        assert len({x for series in panel.series for x in series.x}) == 6
        assert all(round(x) == place for series in panel.series for place, x in enumerate(series.x))
        assert len({series.look for series in panel.series}) == 3


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"lr": 0.3}, "another learning rate"), ({"depth": 14}, "another depth"), ({"limit_train": 500}, "other examples"),
        ({"loader_name": "cifar10"}, "another data set"),
    ],
)  # fmt: skip
def test_studies_that_differ_in_more_than_width_stand_in_no_figure(tmp_path, flags, why):
    write_width(tmp_path, 1)
    write_width(tmp_path, 2, **flags)
    assert charts_of(tmp_path) == [], why


def test_one_width_makes_no_figure_and_a_network_without_widths_none(tmp_path):
    write_width(tmp_path, 2)
    write_width(tmp_path, 2, augment="none")
    for name in ("alexnet", "vgg11"):
        for mode in ("dense", "sparse-finetune", "sparse-scratch"):
            write(tmp_path, mode=mode, net_name=name)
    assert charts_of(tmp_path) == []


def test_hidden_layers_of_an_mlp_are_its_width_and_their_number_is_not(tmp_path):
    for dims in ("1000-8", "64-8", "16"):
        for mode, accuracy in (("dense", 0.5), ("sparse-finetune", 0.6), ("sparse-scratch", 0.5)):
            write(tmp_path, accuracy, mode=mode, net_name="mlp", hidden_dims=dims)
    (chart,) = charts_of(tmp_path)
    for panel in chart.panels:
        assert panel.x.names == ["64-8", "1000-8"]
        assert "--hidden_dims" in panel.x.label
    (series,) = chart.panels[0].series
    assert series.x == [0, 1]
    assert series.y == pytest.approx([0.1, 0.1])


def test_training_from_scratch_for_the_whole_budget_is_no_point(tmp_path):
    for width in (1, 2):
        write_width(tmp_path, width)
        for seed in (1, 2):
            longer = {"n_epochs": 8, "n_epochs_pretrain": 4, "lr_milestones_pretrain": "2"}
            write(tmp_path, 0.9, mode="sparse-scratch", widen_factor=width, random_state=seed, **longer)
    (chart,) = charts_of(tmp_path)
    (series,) = chart.panels[0].series
    assert series.y == pytest.approx([0.015, 0.015])


def test_without_a_pair_that_is_trained_as_long_there_is_no_figure(tmp_path):
    for width in (1, 2):
        write(tmp_path, mode="sparse-finetune", widen_factor=width)
        longer = {"n_epochs": 8, "n_epochs_pretrain": 4, "lr_milestones_pretrain": "2"}
        write(tmp_path, mode="sparse-scratch", widen_factor=width, **longer)
    assert charts_of(tmp_path) == []


def test_a_single_seed_has_a_point_and_no_interval(tmp_path):
    for width in (1, 2):
        write_width(tmp_path, width, (0.01,))
    (chart,) = charts_of(tmp_path)
    (series,) = chart.panels[0].series
    assert series.y == pytest.approx([0.01, 0.01])
    assert all(math.isnan(bound) for bound in (*series.low, *series.high))


def test_the_report_has_the_figure(tmp_path, capsys):
    for width in (1, 2):
        write_width(tmp_path, width)
    with pytest.raises(SystemExit) as stop:
        experiment.main(["report", str(tmp_path), "--png", "1"])
    assert stop.value.code == 0, capsys.readouterr().err
    assert "Gaps against width, cifar100, resnet" in (tmp_path / "report" / "index.html").read_text()
    assert len(list((tmp_path / "report" / "figures").glob("*_gaps_widths.png"))) == 1

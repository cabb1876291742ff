"""Means and gaps over seeds, intervals, regimes, and what is collected from run folders."""

import json
import math
import shutil

import numpy
import pandas
import pytest
from scipy import stats

from helper.config import unflatten
from optim.main import RunConfig
from scripts.made_up_runs import accuracy, write_run
from study.aggregate import curves, gaps, measured_alike, over_seeds, paired
from study.collect import collect, tidy
from study.statistics import Interval, interval, ratio_interval, regime


def test_the_interval_is_students_t_and_covers_19_of_20_times():
    values = [0.1, 0.4, 0.2]
    found = interval(values)
    expected = stats.t.interval(0.95, 2, loc=numpy.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.method == "t, 3 seeds"
    draws = numpy.random.default_rng(0).normal(5, 2, (2000, 3))
    hits = [i.low <= 5 <= i.high for i in map(interval, draws.tolist())]
    assert 0.935 < numpy.mean(hits) < 0.965


def test_a_single_seed_has_the_error_of_its_measurement_or_none():
    assert interval([3.0], [0.5]).half == pytest.approx(1.96 * 0.5, rel=1e-3)
    alone = interval([3.0])
    assert (alone.mean, math.isnan(alone.low), alone.method) == (3.0, True, "one seed")
    assert interval([math.nan, 2.0, 4.0], [math.nan, 0.1, 0.1]).n == 2
    assert interval([math.nan]).n == 0


def test_the_ratio_is_the_geometric_mean_with_the_interval_of_the_logarithms():
    found = ratio_interval([2.0, 8.0], [1.0, 1.0])
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)
    assert ratio_interval([1.0], [0.0]).n == 0


def gap(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half, 3, "t, 3 seeds")


@pytest.mark.parametrize(
    ("training", "test", "expected"),
    [
        (gap(0.05, 0.02), gap(0.0, 0.1), "optimization"),
        (gap(0.05, 0.06), gap(0.03, 0.01), "undecided"),
        (gap(0.001, 0.002), gap(0.03, 0.01), "generalization"),
        (gap(0.001, 0.002), gap(0.03, 0.05), "no gap"),
        (gap(0.005, 0.01), gap(0.03, 0.01), "undecided"),
        (gap(-0.02, 0.01), gap(0.0, 0.01), "no gap"),
        (gap(0.001, 0.002), gap(-0.05, 0.01), "scratch better"),
        (gap(0.001, 0.002), interval([0.1]), "one seed"),
        (interval([0.2]), interval([0.1]), "one seed"),
    ],
)
def test_regimes_follow_the_stated_rule(training, test, expected):
    assert regime(training, test) == expected


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (gap(0.9786, 0.0132), "0.979 ± 0.013"),
        (gap(27712.0, 1083.0), "27,700 ± 1,100"),
        (gap(472.3, 14.6), "472 ± 15"),
        (gap(1.0, 0.0), "1.00 ± 0.00"),
        (interval([0.19351]), "0.194"),
        (gap(3.2e-9, 1e-10), "3.20e-09 ± 1.00e-10"),
        (interval([math.nan]), ""),
    ],
)
def test_numbers_are_shown_to_the_place_that_their_interval_warrants(found, text):
    assert str(found) == text


# ------------------------------------------------------------------------------------------------- from run folders


@pytest.fixture
def folders(tmp_path):
    """folders(flags, ...) -> the tidy table and the collection of such made-up runs under the test's own folder."""

    def make(*runs: dict):
        for flags in runs:
            write_run(unflatten(RunConfig, {"results_root": str(tmp_path), **flags}))
        collection = collect(tmp_path)
        return tidy(collection), collection

    return make


def family(*, seeds=(1, 2, 3), ratios=(0.5, 0.9), **flags) -> list[dict]:
    dense = [{"mode": "dense", "random_state": seed, **flags} for seed in seeds]
    return dense + [
        {"mode": mode, "prune_ratio": ratio, "random_state": seed, **flags}
        for mode in ("sparse-finetune", "sparse-scratch")
        for ratio in ratios
        for seed in seeds
    ]


def test_means_and_gaps_over_seeds_are_those_of_the_runs(folders):
    runs, _ = folders(*family())
    table = over_seeds(runs)
    row = table[(table["mode"] == "sparse-scratch") & (table["sparsity"] == 0.9) & (table["quantity"] == "acc_test")].iloc[0]
    values = [accuracy("sparse-scratch", 0.9, seed)[1] for seed in (1, 2, 3)]
    assert (row["mean"], row["n"]) == (pytest.approx(numpy.mean(values)), 3)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))
    gap = gaps(runs).set_index("sparsity").loc[0.9, "test_gap"]
    assert gap.mean == pytest.approx(accuracy("sparse-finetune", 0.9, 1)[1] - accuracy("sparse-scratch", 0.9, 1)[1])
    assert gap.half == pytest.approx(0, abs=1e-12)  # the seeds' spread is the same on both sides: pairs do not show it


def test_runs_pair_only_under_the_same_seed_and_parent(folders):
    runs, _ = folders(*family(seeds=(1, 2), ratios=(0.5,)), {"mode": "sparse-scratch", "prune_ratio": 0.5, "random_state": 7})
    assert sorted(paired(runs, "sparse-finetune", "sparse-scratch", 0.5)["seed"]) == [1, 2]


def test_a_study_is_a_dense_setting_and_longer_training_is_a_series_of_its_own(folders):
    longer = {"mode": "sparse-scratch", "prune_ratio": 0.5, "n_epochs": 60, "n_epochs_pretrain": 30, "random_state": 1}
    runs, _ = folders(*family(ratios=(0.5,)), longer, *family(seeds=(1,), ratios=(0.5,), lr=0.2))
    assert runs["study"].nunique() == 2
    first = runs[runs["study"] == runs.loc[runs["seed"] == 2, "study"].iloc[0]]
    assert set(first["series"]) == {
        "dense", "sparse-finetune", "sparse-scratch, n_epochs 30", "sparse-scratch, n_epochs 60",
    }  # fmt: skip
    assert set(gaps(first)["scratch"]) == {"sparse-scratch, n_epochs 30", "sparse-scratch, n_epochs 60"}


def test_training_cost_counts_the_dense_run_where_its_weights_or_its_mask_are_used(folders):
    runs, _ = folders(*family(seeds=(1,), ratios=(0.5,)))
    cost = runs.set_index("mode")[["cost", "cost_weights", "cost_mask"]] / (30 * 10**6)
    assert cost.loc["dense"].tolist() == [1, 1, 1]
    assert cost.loc["sparse-finetune"].tolist() == [0.5, 1.5, 1.5]
    assert cost.loc["sparse-scratch"].tolist() == [0.5, 0.5, 1.5]


def test_what_was_measured_another_way_is_not_averaged_and_named(folders, tmp_path):
    runs, _ = folders(*family(seeds=(1, 2, 3), ratios=(0.5,)))
    (path,) = tmp_path.glob("*/*/dense/*-s2-*/summary.json")
    summary = json.loads(path.read_text())
    summary["metrics"]["fisher"]["params"] = "all"
    path.write_text(json.dumps(summary))
    runs, reasons = measured_alike(tidy(collect(tmp_path)))
    assert runs.loc[runs["run"].str.contains("dense") & (runs["seed"] == 2), "fisher"].isna().all()
    assert runs["fisher"].notna().sum() == 8
    assert [("spectral, all, train" in reason, "-s2-" in run) for run, reason in reasons] == [(True, True)]


def test_damaged_and_unfinished_runs_are_left_out_with_the_reason(folders, tmp_path):
    folders(*family(seeds=(1, 2, 3), ratios=(0.5,)))
    dense, finetune, scratch = (
        sorted(tmp_path.glob(f"*/*/{mode}/*")) for mode in ("dense", "sparse-finetune", "sparse-scratch")
    )
    (dense[0] / "summary.json").unlink()
    (dense[1] / "summary.json").write_text('{"mode": "dense"}')
    (finetune[0] / "summary.json").write_text("{half")
    (finetune[1] / "config.yaml").write_text("lr: [")
    (finetune[2] / "config.yaml").unlink()
    history = (scratch[0] / "history.csv").read_text()
    (scratch[0] / "history.csv").write_text(history[: len(history) // 2])
    (scratch[1] / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "a/b/c/no run").mkdir(parents=True)
    found = collect(tmp_path)
    left_out = dict(found.left_out)
    assert len(found.records) == 4
    names = {path.relative_to(tmp_path).as_posix(): path for path in [*dense[:2], *finetune]}
    assert left_out[next(iter(names))] == "not finished"
    assert set(names) <= set(left_out)
    tables = {name: reason for name, reason in left_out.items() if name.endswith(".csv")}
    assert [name.rpartition("/")[2] for name in sorted(tables)] == ["history.csv", "metrics.csv"]
    assert "half-written" in " ".join(tables.values())
    table = tidy(found)  # the other files are used
    assert table["entropy_train"].isna().sum() == 1
    assert table["acc_test"].notna().all()


@pytest.mark.parametrize(
    "other",
    [{"loss_test": []}, {"loss_test": "0.5"}, {"acc_train": True}, {"acc_clean": {}}, {"macs_active": 10**400},
     {"sparsity_requested": None}, {"seconds": []}, {"seconds": {"training": "long"}}, {"epoch_selected": 2**63}],
    ids=str,
)  # fmt: skip
def test_a_summary_whose_numbers_are_none_is_left_out(folders, tmp_path, other):
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    (path,) = tmp_path.glob("*/*/dense/*-s2-*/summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    found = collect(tmp_path)
    assert [name for name, _ in found.left_out] == [path.parent.relative_to(tmp_path).as_posix()]
    assert len(tidy(found)) == 5


def test_a_copy_of_a_run_is_no_further_seed(folders, tmp_path):
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    (dense,) = tmp_path.glob("*/*/dense/*-s1-*")
    shutil.copytree(dense, dense.with_name(dense.name + ".bak"))
    found = collect(tmp_path)
    assert len(found.records) == 6
    assert [reason.startswith("the same run as") for _, reason in found.left_out] == [True]


def test_training_columns_of_two_kinds_are_not_one_series(folders):
    runs, _ = folders(*family(seeds=(1,), ratios=(0.5,)), *family(seeds=(2,), ratios=(0.5,), train_eval="running", save_snr=0))
    assert runs["study"].nunique() == 1
    assert set(runs.loc[runs["mode"] == "dense", "series"]) == {"dense, train_eval pass", "dense, train_eval running"}


def test_seeds_under_parents_given_as_files_are_one_study(folders, tmp_path):
    runs, _ = folders(*family(seeds=(1, 2), ratios=(0.5,)))
    for path in tmp_path.glob("*/*/sparse-*/*/summary.json"):
        summary = json.loads(path.read_text())
        summary["identity"]["parent"] = f"hash of {summary['identity']['parent'].get('random_state', 42)}"
        path.write_text(json.dumps(summary))
    runs = tidy(collect(tmp_path))
    sparse = runs[runs["mode"] != "dense"]
    assert sparse["study"].nunique() == 1
    assert gaps(sparse)["seeds"].tolist() == [2]


@pytest.mark.parametrize(
    "metrics", [None, [], {"fisher": None}, {"fisher": {"value": 1.0}}, {"fisher": {"value": "x", "standard_error": 1}}]
)
def test_damaged_measurements_of_a_summary_are_left_out(folders, tmp_path, metrics):
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    path = next(tmp_path.glob("*/*/dense/*/summary.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": metrics}))
    found = collect(tmp_path)
    assert (len(found.records), len(found.left_out)) == (5, 1)


def test_numbers_that_are_not_finite_are_no_values():
    assert interval([math.inf, 1.0, 3.0]).n == 2
    assert interval([0.1, 0.1, 0.1]).half == 0
    assert ratio_interval([1e-38, 1e60], [1.0, 1.0]).high > 1e300


def test_curves_are_means_over_the_epochs_that_all_seeds_have():
    tables = [
        pandas.DataFrame({"epoch": [0, 1, 2], "x": [0.0, 1.0, 2.0]}),
        pandas.DataFrame({"epoch": [0, 2], "x": [1.0, 4.0]}),
    ]
    found = curves(tables, "x")
    assert found["epoch"].tolist() == [0, 2]
    assert found["mean"].tolist() == [0.5, 3.0]
    assert (found["low"] < found["mean"]).all()
    geometric = curves(tables, "x", logarithmic=True)
    assert geometric["epoch"].tolist() == [2]  # a zero has no logarithm
    assert geometric["mean"].tolist() == pytest.approx([8**0.5])

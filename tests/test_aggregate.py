"""Means and gaps over seeds, intervals, regimes, and what is collected from run folders."""

import math
import shutil

import numpy
import pandas
import pytest
from scipy import stats

from helper.schema.config import unflatten
from optim.config import RunConfig
from optim.folder import RunFolder
from scripts.made_up_runs import accuracy, write_run
from study.reporting.aggregate import COUNTED, curves, finest, judged, measured_alike, over_seeds, range_of
from study.reporting.aggregate import gaps as gaps_of
from study.reporting.collect import collect
from study.reporting.pairs import AS_LONG_IN_TOTAL, pair_runs
from study.reporting.sheets import not_paired, table1, table2
from study.reporting.statistics import Interval, independent, interval, ratio_interval
from study.reporting.tidy import tidy
from study.reporting.unreliable import unreliable_of
from tests.edited import edit_summary, vouch


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
    assert ratio_interval([1.0, math.nan], [2.0, 1.0]).n == 1  # what was not measured does not count


def gap(mean: float, half: float) -> Interval:
    return Interval(mean, mean - half, mean + half, 3, "t, 3 seeds")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (gap(0.9786, 0.0132), "0.979 ± 0.013"),
        (gap(27712.0, 1083.0), "27,700 ± 1,100"),
        (gap(472.3, 14.6), "472 ± 15"),
        (Interval(0.999, 0.9968, 1.0, 3, "t, 3 seeds"), "0.9990 [0.9968, 1.0000]"),
        (ratio_interval([1.0, 0.0], [2.0, 1.0]), "not defined: 1 of 2 pairs not positive"),
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


def gaps(runs, collection) -> pandas.DataFrame:
    return gaps_of(runs, pair_runs(collection.records)[0])


def test_means_and_gaps_over_seeds_are_those_of_the_runs(folders):
    runs, collection = folders(*family())
    table = over_seeds(runs)
    row = table[(table["mode"] == "sparse-scratch") & (table["sparsity"] == 0.9) & (table["quantity"] == "acc_test")].iloc[0]
    values = [accuracy("sparse-scratch", 0.9, seed)[1] for seed in (1, 2, 3)]
    assert (row["mean"], row["n"]) == (pytest.approx(numpy.mean(values)), 3)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))
    gap = gaps(runs, collection).set_index("sparsity").loc[0.9, "test_gap"].interval
    assert gap.mean == pytest.approx(accuracy("sparse-finetune", 0.9, 1)[1] - accuracy("sparse-scratch", 0.9, 1)[1])
    # the seeds' spread is the same on both sides, so that pairs show none: one of the 10,000 test examples stands for it
    assert gap.half == pytest.approx(stats.t.ppf(0.975, 2) / 10_000 / math.sqrt(3))


def test_runs_pair_only_under_the_same_seed_and_parent(folders):
    _, found = folders(*family(seeds=(1, 2), ratios=(0.5,)), {"mode": "sparse-scratch", "prune_ratio": 0.5, "random_state": 7})
    pairs, alone = pair_runs(found.records)
    assert sorted(pair.scratch.seed for pair in pairs) == sorted(pair.finetune.seed for pair in pairs) == [1, 2]
    ((name, why),) = alone
    assert "-s7-" in name
    assert "another dense parent" in why
    assert "random_state 1 instead of 7" in why


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"prune_last": 1}, "prune_last False instead of True"),
        ({"prune_method": "random"}, "prune_method l1 instead of random"),
        ({"lr": 0.2, "lr_pretrain": 0.1}, "lr 0.1 instead of 0.2"),
        ({"select": "test"}, "select last instead of test"),
        ({"n_epochs": 40, "n_epochs_pretrain": 30}, "n_epochs 30 instead of 40"),
        ({"lr_milestones": "10-20", "lr_milestones_pretrain": "15-25"}, "lr_milestones 15-25 instead of 10-20"),
    ],
    ids=str,
)
def test_runs_that_differ_in_more_than_the_mode_are_not_paired_and_said_so(folders, other, words):
    scratch = {"mode": "sparse-scratch", "prune_ratio": 0.5, "random_state": 1}
    _, found = folders(*family(seeds=(1,), ratios=(0.5,)), scratch | other)
    of_study = [r for r in found.records if r.mode != "dense"]
    pairs, alone = pair_runs(of_study)
    assert [(pair.finetune.mode, pair.scratch.flags["prune_last"]) for pair in pairs] == [("sparse-finetune", False)]
    assert len(alone) == 1
    assert words in alone[0][1]
    assert not_paired(alone).rows == tuple(alone)


def test_training_accuracies_of_two_kinds_are_not_paired(folders):
    *others, scratch = family(seeds=(1,), ratios=(0.5,))
    _, found = folders(*others, scratch | {"train_eval": "running", "save_snr": 0})
    pairs, alone = pair_runs(found.records)
    assert not pairs
    assert "train_eval running instead of pass" in dict(alone)[found.records[1].name]


def test_masks_that_came_out_otherwise_are_not_paired(folders, tmp_path):
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    for mode in ("sparse-finetune", "sparse-scratch"):
        (path,) = tmp_path.glob(f"*/*/{mode}/*-s2-*")
        left = {"layers.0.weight": 0.5 if mode == "sparse-finetune" else 0.4}
        edit_summary(path, lambda summary, left=left: summary.update(sparsity_by_layer=left))
    pairs, alone = pair_runs(collect(tmp_path).records)
    assert [pair.finetune.seed for pair in pairs] == [1]
    assert all("another mask" in why for _, why in alone)


def test_a_scratch_run_as_long_as_dense_and_finetuned_together_is_a_row_of_its_own(folders):
    longer = [
        {"mode": "sparse-scratch", "prune_ratio": 0.5, "n_epochs": n, "n_epochs_pretrain": 30, "random_state": seed}
        for n in (60, 50) for seed in (1, 2)
    ]  # fmt: skip
    runs, found = folders(*family(seeds=(1, 2), ratios=(0.5,)), *longer)
    table = gaps(runs, found)
    assert table["budget"].tolist() == ["as long", AS_LONG_IN_TOTAL]
    assert table["scratch"].str.contains("n_epochs 60").tolist() == [False, True]
    assert [name.split("-e")[1][:2] for name, _ in pair_runs(found.records)[1]] == ["50", "50"]


def test_runs_that_share_a_parent_are_one_unit_and_the_table_says_so(folders, tmp_path):
    folders(*family(seeds=(1, 2, 3, 4), ratios=(0.5,)))
    for path in tmp_path.glob("*/*/sparse-*/*"):
        parent = "of seed 4" if "-s4-" in str(path) else "the same file"
        edit_summary(path, lambda summary, parent=parent: summary["identity"].update(parent=parent))
    found = collect(tmp_path)
    runs = tidy(found)
    table = gaps(runs, found)
    assert table[["seeds", "runs"]].to_numpy().tolist() == [[2, 4]]
    assert "2 (4 runs)" in table1(table, 0.01).rows[0]
    rows = over_seeds(runs).query("mode == 'sparse-scratch' and quantity == 'acc_test'")
    assert rows[["n", "runs", "method"]].to_numpy().tolist() == [[2, 4, "t, 2 independent units of 4 runs"]]
    values = [accuracy("sparse-scratch", 0.5, seed)[1] for seed in (1, 2, 3, 4)]
    units = [numpy.mean(values[:3]), values[3]]  # of a unit the mean counts
    assert rows["mean"].item() == pytest.approx(numpy.mean(units))
    assert (rows["high"] - rows["low"]).item() / 2 == pytest.approx(
        stats.t.ppf(0.975, 1) * max(stats.sem(units), 1 / 10_000 / 2**0.5)
    )


def test_runs_of_one_parent_alone_have_no_interval_and_no_regime(folders, tmp_path):
    folders(*family(seeds=(1, 2, 3), ratios=(0.9,)))
    for path in tmp_path.glob("*/*/sparse-*/*"):
        edit_summary(path, lambda summary: summary["identity"].update(parent="the same file"))
    found = collect(tmp_path)
    row = gaps(tidy(found), found).iloc[0]
    assert (row["seeds"], row["runs"], row["regime"]) == (1, 3, "cannot tell")
    assert math.isnan(row["train_gap"].interval.low)
    assert math.isnan(row["train_gap"].p_holm)


def test_what_is_shared_directly_or_through_others_makes_one_unit():
    pairs = [(1, "a"), (2, "b"), (3, "a"), (2, "c"), (9, "d"), (3, "d")]
    shared = [[("seed", seed), ("parent", parent)] for seed, parent in pairs]
    assert independent(shared) == [0, 1, 0, 1, 0, 0]


def test_a_value_that_is_not_positive_leaves_its_ratio_undefined_and_counted(folders, tmp_path):
    folders(*family(ratios=(0.5,)))
    (path,) = tmp_path.glob("*/*/sparse-scratch/*-s2-*")
    edit_summary(path, lambda summary: summary["metrics"]["fisher"].update(value=-0.1))
    found = collect(tmp_path)
    assert str(gaps(tidy(found), found)["fisher_ratio"].iloc[0]) == "not defined: 1 of 3 pairs not positive"


def test_what_test_accuracy_chose_is_marked_wherever_it_stands(folders):
    runs, _ = folders(*family(seeds=(1, 2), ratios=(0.5,), select="test"))
    assert runs["series"].str.endswith("†").all()
    sheet = table2(over_seeds(runs))
    place = sheet.columns.index("test acc")
    assert all(row[place].endswith("†") for row in sheet.rows)
    assert "biases that accuracy upwards" in sheet.caption
    assert "†" not in table2(over_seeds(runs.assign(series=runs["mode"]))).caption


def test_a_mean_counts_how_many_of_its_measurements_are_unreliable(folders, tmp_path):
    folders(*family(ratios=(0.5,)))
    marks = {("sparse-scratch", 1): 0.0, ("sparse-scratch", 3): 0.0, ("sparse-scratch", 2): 1.0, ("dense", 1): 1.0}
    for (mode, seed), reliable in marks.items():
        (path,) = tmp_path.glob(f"*/*/{mode}/*-s{seed}-*")
        edit_summary(path, lambda summary, reliable=reliable: summary["metrics"]["fisher"].update(reliable=reliable))
    runs, _ = measured_alike(tidy(collect(tmp_path)))
    table = over_seeds(runs)
    of_fisher = table[table["quantity"] == "fisher"].set_index("mode")["unreliable"].to_dict()
    assert of_fisher == {"dense": 0, "sparse-finetune": 0, "sparse-scratch": 2}
    assert table.loc[table["quantity"] != "fisher", "unreliable"].eq(0).all()
    cells = {row[0]: row[table2(table).columns.index("Tr F")] for row in table2(table).rows}
    assert {mode: cell.endswith(" ‡") for mode, cell in cells.items()} == {mode: n > 0 for mode, n in of_fisher.items()}


def test_the_mark_of_a_measurement_that_is_taken_out_goes_with_it(folders, tmp_path):
    folders(*family(ratios=(0.5,)))
    (path,) = tmp_path.glob("*/*/dense/*-s2-*")
    edit_summary(path, lambda summary: summary["metrics"]["fisher"].update(params="all", reliable=0.0))
    runs, _ = measured_alike(tidy(collect(tmp_path)))
    assert over_seeds(runs)["unreliable"].sum() == 0
    assert unreliable_of(runs, ["fisher", "fisher_initial"]) == (0, 0)


def test_a_study_is_a_dense_setting_and_longer_training_is_a_series_of_its_own(folders):
    longer = {"mode": "sparse-scratch", "prune_ratio": 0.5, "n_epochs": 60, "n_epochs_pretrain": 30, "random_state": 1}
    runs, found = folders(*family(ratios=(0.5,)), longer, *family(seeds=(1,), ratios=(0.5,), lr=0.2))
    assert runs["study"].nunique() == 2
    first = runs[runs["study"] == runs.loc[runs["seed"] == 2, "study"].iloc[0]]
    assert set(first["series"]) == {
        "dense", "sparse-finetune", "sparse-scratch, n_epochs 30", "sparse-scratch, n_epochs 60",
    }  # fmt: skip
    assert set(gaps(runs, found)["scratch"]) >= {"sparse-scratch, n_epochs 30", "sparse-scratch, n_epochs 60"}


def test_training_cost_counts_the_dense_run_where_its_weights_or_its_mask_are_used(folders):
    runs, _ = folders(*family(seeds=(1,), ratios=(0.5,)))
    cost = runs.set_index("mode")[["cost", "cost_weights", "cost_mask"]] / (30 * 10**6)
    assert cost.loc["dense"].tolist() == [1, 1, 1]
    assert cost.loc["sparse-finetune"].tolist() == [0.5, 1.5, 1.5]
    assert cost.loc["sparse-scratch"].tolist() == [0.5, 0.5, 1.5]


def test_what_was_measured_another_way_is_not_averaged_and_named(folders, tmp_path):
    runs, _ = folders(*family(seeds=(1, 2, 3), ratios=(0.5,)))
    (path,) = tmp_path.glob("*/*/dense/*-s2-*")
    edit_summary(path, lambda summary: summary["metrics"]["fisher"].update(params="all"))
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
    for path in scratch[:2]:  # as if the run had left them so
        vouch(path)
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
    (path,) = tmp_path.glob("*/*/dense/*-s2-*")
    edit_summary(path, lambda summary: summary.update(other))
    found = collect(tmp_path)
    assert [name for name, _ in found.left_out] == [path.relative_to(tmp_path).as_posix()]
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
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    for path in tmp_path.glob("*/*/sparse-*/*"):
        seed = RunFolder(path).read_summary()["identity"]["parent"].get("random_state", 42)
        edit_summary(path, lambda summary, seed=seed: summary["identity"].update(parent=f"hash of {seed}"))
    found = collect(tmp_path)
    sparse = tidy(found)[lambda runs: runs["mode"] != "dense"]
    assert sparse["study"].nunique() == 1
    assert gaps(sparse, found)["seeds"].tolist() == [2]


@pytest.mark.parametrize(
    "metrics",
    [
        None, [], {"fisher": None}, {"fisher": {"value": 1.0}}, {"fisher": {"value": "x", "standard_error": 1}},
        {"eigenvalue": {"value": 1, "standard_error": 1, "estimator": "", "params": "", "split": "", "of_sample": "x"}},
    ],
)  # fmt: skip
def test_damaged_measurements_of_a_summary_are_left_out(folders, tmp_path, metrics):
    folders(*family(seeds=(1, 2), ratios=(0.5,)))
    edit_summary(next(tmp_path.glob("*/*/dense/*")), lambda summary: summary.update(metrics=metrics))
    found = collect(tmp_path)
    assert (len(found.records), len(found.left_out)) == (5, 1)


def test_numbers_that_are_not_finite_are_no_values():
    assert interval([math.inf, 1.0, 3.0]).n == 2
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


def test_costs_are_means_over_seeds_and_a_single_seed_has_the_error_of_each_measurement(folders, tmp_path):
    folders(*family(seeds=(1, 2), ratios=(0.5,)), {"mode": "lottery", "prune_ratio": 0.5, "random_state": 1})
    for seed, macs in ((1, 400_000), (2, 700_000)):
        (folder,) = tmp_path.glob(f"*/*/sparse-scratch/*-s{seed}-*")
        edit_summary(folder, lambda summary, macs=macs: summary.update(macs_active=macs, training_macs=30 * 150_000 * macs))
    (folder,) = tmp_path.glob("*/*/lottery/*")
    values = {"fisher": {"value": 9.0, "standard_error": 0.5}, "jacobian": {"value": 7.0, "standard_error": 0.2}}
    edit_summary(folder, lambda s: s.update(metrics={name: s["metrics"]["fisher"] | own for name, own in values.items()}))
    table = over_seeds(tidy(collect(tmp_path)))
    costs = table[table["mode"] == "sparse-scratch"][["cost", "cost_mask"]].drop_duplicates()
    assert costs.to_numpy().tolist() == [[30 * 550_000, 30 * (550_000 + 10**6)]]
    rows = table[table["mode"] == "lottery"].set_index("quantity")
    for name, error in (("fisher", 0.5), ("jacobian", 0.2)):
        assert (rows.loc[name, "high"] - rows.loc[name, "low"]) / 2 == pytest.approx(stats.norm.ppf(0.975) * error)


def test_accuracies_differ_by_an_example_of_their_own_set_at_least_and_quantities_keep_their_range():
    sizes = {"n_train": [500, 400], "n_val": [50, 60], "n_test": [100, 90], "n_clean": [300, 310], "n_mislabelled": [200, 210]}
    runs = pandas.DataFrame(sizes)
    found = {name: 1 / finest(runs, name) for name in COUNTED}
    assert found == pytest.approx(
        {"acc_train": 400, "acc_val": 50, "acc_test": 90, "acc_clean": 300, "acc_generalized": 200, "acc_memorized": 200}
    )
    assert math.isnan(finest(runs, "loss_train"))
    assert range_of("entropy_train", 10) == (0, pytest.approx(math.log(10)))
    assert (range_of("acc_test", 10), range_of("loss_test", 10)) == ((0, 1), (0, math.inf))
    assert range_of("hessian", 10) == (-math.inf, math.inf)


def test_gaps_are_finetuned_minus_scratch_and_test_images_those_of_the_test_set():
    shared = {"seed": [1, 2, 3], "parent": list("abc"), "lottery": [""] * 3, "n_train": [5000] * 3, "n_test": [200] * 3}
    finetune = pandas.DataFrame(shared | {"acc_train": [0.99, 0.98, 0.97], "acc_test": [0.9, 0.91, 0.92]})
    scratch = pandas.DataFrame(shared | {"acc_train": [0.95, 0.95, 0.95], "acc_test": [0.88, 0.9, 0.86]})
    row = judged([(finetune, scratch)], 0.01).iloc[0]
    assert row["train_gap"].interval.mean == pytest.approx(0.03)
    assert row["test_gap"].interval.mean == pytest.approx(0.03)
    assert row["test_gap"].images == pytest.approx((1.95996 + 0.84162) * math.sqrt((0.91 * 0.09 + 0.88 * 0.12) / 200), rel=1e-5)
    assert math.isnan(row["train_gap"].images)


def test_as_long_in_total_counts_the_epochs_of_the_dense_parent_and_not_those_of_finetuning_twice(folders):
    shared = {"prune_ratio": 0.5, "random_state": 1, "n_epochs_pretrain": 10, "lr_milestones_pretrain": "5"}
    lengths = [("sparse-finetune", 30), ("sparse-scratch", 40), ("sparse-scratch", 60)]
    dense = {"mode": "dense", "random_state": 1, "n_epochs": 10, "lr_milestones": "5"}
    _, found = folders(dense, *({"mode": mode, "n_epochs": n, **shared} for mode, n in lengths))
    pairs, _ = pair_runs(found.records)
    assert [(pair.scratch.flags["n_epochs"], pair.budget) for pair in pairs] == [(40, AS_LONG_IN_TOTAL)]

"""Remedies: which runs are set against which, and what is said of the difference."""

import math

import pytest
from scipy import stats

import experiment
from helper.schema.config import flag_fields, replace, unflatten
from optim.config import RunConfig
from optim.identity import run_identity
from optim.subsets.config import SubsetConfig
from optim.train_config import REMEDIES, TrainConfig
from scripts.made_up_runs import write_run
from study.reporting.collect import collect
from study.reporting.remedies import comparisons
from study.reporting.sheets_remedies import remedies_sheet, remedy_rows
from study.reporting.tidy import series_labels, tidy
from tests.edited import edit_summary

SHORT = {"n_epochs": 4, "lr_milestones": "2", "loader_name": "digits", "prune_ratio": 0.9}
SMOOTH = {"label_smoothing": 0.1, "plain_pretrain": True}
CHANGES = (0.03, 0.035, 0.025, 0.032)  # in test accuracy, of each seed


def config_of(root, **flags) -> RunConfig:
    return unflatten(RunConfig, SHORT | flags | {"results_root": str(root)})


def write(root, change=0.0, **flags) -> None:
    folder = write_run(config_of(root, **flags))
    edit_summary(folder.path, lambda summary: summary.update(acc_test=summary["acc_test"] + change))


def found_in(root, margin=0.01):
    collection = collect(root)
    assert not collection.left_out
    return collection.records, comparisons(collection.records, tidy(collection), margin)


def write_study(root) -> None:
    for seed, change in enumerate(CHANGES, 1):
        for mode in ("dense", "sparse-finetune", "sparse-scratch", "dynamic"):
            write(root, mode=mode, random_state=seed)
        write(root, change, mode="sparse-scratch", random_state=seed, **SMOOTH)
        write(root, mode="dynamic", random_state=seed, mix="mixup")


def test_runs_with_a_remedy_are_set_against_the_same_runs_without(tmp_path):
    write_study(tmp_path)
    records, found = found_in(tmp_path)
    rows = {(one.method, one.remedy): one for one in found}
    assert set(rows) == {
        ("sparse-scratch", ""), ("sparse-scratch", "label_smoothing 0.1"), ("RigL", ""), ("RigL", "mix mixup"),
    }  # fmt: skip
    smooth = rows["sparse-scratch", "label_smoothing 0.1"].test_change
    test = stats.ttest_1samp(CHANGES, 0)
    assert smooth.interval.mean == pytest.approx(sum(CHANGES) / 4)
    assert smooth.p_value == pytest.approx(test.pvalue)
    assert (smooth.interval.low, smooth.interval.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert smooth.p_holm == pytest.approx(2 * test.pvalue)
    assert smooth.state == "positive"
    assert rows["RigL", "mix mixup"].test_change.state == "none"
    assert rows["RigL", "mix mixup"].behind is None
    behind = [rows["sparse-scratch", remedy].behind.interval.mean for remedy in ("", "label_smoothing 0.1")]
    assert behind[0] - behind[1] == pytest.approx(sum(CHANGES) / 4)
    assert len({record.study for record in records}) == 1
    labels = set(series_labels(records).values())
    assert {"sparse-scratch", "sparse-scratch, label_smoothing 0.1", "RigL", "RigL, mix mixup"} < labels


def test_a_dense_parent_with_the_remedy_makes_another_row(tmp_path):
    for seed in (1, 2):
        write(tmp_path, mode="sparse-scratch", random_state=seed)
        write(tmp_path, 0.01, mode="sparse-scratch", random_state=seed, label_smoothing=0.1)
        write(tmp_path, 0.02, mode="sparse-scratch", random_state=seed, **SMOOTH)
    _, found = found_in(tmp_path)
    means = {one.remedy: one.test_change and one.test_change.interval.mean for one in found}
    assert means == {
        "": None,
        "label_smoothing 0.1, also in its dense parent": pytest.approx(0.01),
        "label_smoothing 0.1": pytest.approx(0.02),
    }


def test_cost_is_relative_to_the_run_without_the_remedy_also_where_the_dense_run_has_it(tmp_path):
    """Of each study the dense run costs 1; those with a remedy in the dense run are another study."""

    def write_costing(factor, **flags):
        folder = write_run(config_of(tmp_path, **flags))
        edit_summary(folder.path, lambda summary: summary.update(training_macs=factor * summary["training_macs"]))

    for seed, drift in ((1, 1.0), (2, 1.25)):
        for mode in ("dense", "sparse-scratch", "dynamic"):
            write_costing(1, mode=mode, random_state=seed)
            write_costing(2 * drift, mode=mode, random_state=seed, sharpness_aware=0.05)
        write_costing(2.5, mode="sparse-scratch", random_state=seed, sharpness_aware=0.05, plain_pretrain=True)
    _, found = found_in(tmp_path)
    costs = {(one.method, one.remedy): one.cost.mean for one in found if one.remedy}
    assert costs == pytest.approx({
        ("dense", "sharpness_aware 0.05"): 5**0.5, ("RigL", "sharpness_aware 0.05"): 5**0.5,
        ("sparse-scratch", "sharpness_aware 0.05, also in its dense parent"): 5**0.5,
        ("sparse-scratch", "sharpness_aware 0.05"): 2.5,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "cured", "said"),
    [
        ((1, 2, 3), (1, 2, 3), 3),
        ((1, 2), (1, 2, 3, 4), "4, 2 paired"),
        ((1, 2, 3), (2, 3, 4), "3, 2 paired"),
        ((1, 2, 3), (2, 3), 2),
    ],
)
def test_seeds_that_one_side_lacks_count_in_no_difference_and_the_table_says_so(tmp_path, plain, cured, said):
    for seed in plain:
        write(tmp_path, mode="sparse-scratch", random_state=seed)
    for seed in cured:
        write(tmp_path, CHANGES[seed - 1], mode="sparse-scratch", random_state=seed, **SMOOTH)
    _, found = found_in(tmp_path)
    both = sorted({*plain} & {*cured})
    assert found[1].test_change.interval.mean == pytest.approx(sum(CHANGES[seed - 1] for seed in both) / len(both))
    assert remedies_sheet(found, 0.01).rows[1][4] == said
    row = remedy_rows(found).iloc[1]
    assert (row["seeds"], row["test_seeds"]) == (len(cured), len(both))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"lr": 0.2}, "other learning rate"), ({"prune_ratio": 0.8}, "other sparsity"),
        ({"hidden_dims": "32"}, "other network"), ({"mode": "sparse-finetune"}, "other mode"),
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_a_remedy_are_not_compared(tmp_path, flags, why):
    write(tmp_path, mode="sparse-scratch", random_state=1)
    write(tmp_path, **({"mode": "sparse-scratch", "random_state": 1} | SMOOTH | flags))
    assert found_in(tmp_path)[1] == [], why


def test_one_seed_or_none_in_common_decides_nothing(tmp_path):
    write(tmp_path, mode="sparse-scratch", random_state=1)
    write(tmp_path, 0.3, mode="sparse-scratch", random_state=2, **SMOOTH)
    (_, other) = found_in(tmp_path)[1]
    assert other.test_change is None
    write(tmp_path, 0.3, mode="sparse-scratch", random_state=1, **SMOOTH)
    (_, other) = found_in(tmp_path)[1]
    assert other.test_change.state == "unclear"
    assert math.isnan(other.test_change.p_value)


def test_the_report_has_the_table_and_drops_it_with_the_runs(tmp_path, capsys):
    write_study(tmp_path)
    with pytest.raises(SystemExit) as stop:
        experiment.main(["report", str(tmp_path)])
    assert stop.value.code == 0, capsys.readouterr().err
    page, table = (tmp_path / "report" / name for name in ("index.html", "remedies.csv"))
    assert "label_smoothing 0.1" in page.read_text()
    assert table.read_text().count("\n") == 5


# -------------------------------------------------------------------------------------------------------- plain parents


@pytest.mark.parametrize(("flags"), [{"label_smoothing": 0.1}, {"mix": "mixup"}, {"reg_type": "jacobian"}, {"clip_norm": 1.0}])
def test_a_plain_parent_is_the_parent_of_the_run_without_the_remedy(tmp_path, flags):
    plain = config_of(tmp_path, mode="sparse-scratch")
    remedied = config_of(tmp_path, mode="sparse-scratch", **flags)
    assert remedied.dense_parent() != plain.dense_parent()
    cured = replace(remedied, plain_pretrain=True)
    assert cured.dense_parent() == plain.dense_parent()
    assert cured.train == remedied.train


def test_remedies_are_options_of_training_that_a_run_without_them_does_not_name(tmp_path):
    assert set(REMEDIES) <= {field.name for config in (TrainConfig, SubsetConfig) for field in flag_fields(config)}
    assert not set(REMEDIES) & set(run_identity(config_of(tmp_path, mode="dense"), None))

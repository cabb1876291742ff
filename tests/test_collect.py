"""The tidy table of runs: every number from its own place in the run folder."""

import numpy
import pandas
import pytest

from helper.schema.config import unflatten
from helper.tables import DamagedTable, cells_of
from optim.config import RunConfig
from optim.folder import RunFolder
from scripts.made_up_runs import write_run
from study.reporting.collect import NUMBERS, collect
from study.reporting.tidy import tidy
from tests.edited import edit_summary, vouch


@pytest.fixture
def written(tmp_path):
    """written(**flags) -> the folder of such a made-up run under the test's own folder."""

    def write(**flags):
        return write_run(unflatten(RunConfig, {"results_root": str(tmp_path), **flags})).path

    return write


def edit(path, **changes) -> dict:
    """summary.json with other numbers."""
    edit_summary(path, lambda summary: summary.update(changes))
    return RunFolder(path).read_summary()


def row_of(root, path) -> pandas.Series:
    return tidy(collect(root)).set_index("run").loc[path.relative_to(root).as_posix()]


def test_numbers_of_a_run_are_those_of_its_summary(written, tmp_path):
    run = written(mode="sparse-scratch", prune_ratio=0.8)
    how = {"estimator": "spectral; every example", "params": "weights", "split": "test", "settings": "{}"}
    metrics = {
        name: {"value": 10.0 + i, "standard_error": 0.1 + i, **how} for i, name in enumerate(("fisher", "hessian", "jacobian"))
    }
    numbers = {name: 0.01 * i for i, name in enumerate(NUMBERS, 1)}
    edit(run, metrics=metrics, seconds={"training": 7.5, "measuring": 2.5}, macs_active=12345, **numbers)
    row = row_of(tmp_path, run)
    assert row[list(NUMBERS)].to_dict() == numbers
    for name, found in metrics.items():
        assert (row[name], row[f"{name}_error"]) == (found["value"], found["standard_error"])
        assert row[f"{name}_by"] == "spectral, weights, test"
    assert (row["seconds"], row["macs_active"], row["sparsity"], row["epochs"]) == (7.5, 12345, 0.8, 30)


def test_entropy_is_that_of_the_selected_epoch(written, tmp_path):
    run = written(mode="dense")
    history = pandas.read_csv(run / "history.csv").set_index("epoch")["entropy_train"]
    for epoch in (30, 10):
        edit(run, epoch_selected=epoch)
        assert row_of(tmp_path, run)["entropy_train"] == history[epoch]
    assert history.nunique() == 31


def test_initial_tr_f_is_that_of_all_examples_at_epoch_0_measured_like_the_selected_weights(written, tmp_path):
    run = written(mode="dense", loader_name="digits_noisy")
    table = pandas.read_csv(run / "metrics.csv")
    other = table.assign(params="all", value=1e6 + table["value"])
    pandas.concat([other, table[::-1]]).to_csv(run / "metrics.csv", index=False)  # rows may be in any order
    vouch(run)
    expected = table.query("epoch == 0 and subset == 'all' and layer == 'all'")["value"].item()
    assert row_of(tmp_path, run)["fisher_initial"] == expected
    assert table["value"].eq(expected).sum() == 1


@pytest.mark.parametrize(
    ("mode", "weights", "mask"), [("sparse-finetune", 40, 40), ("sparse-scratch", 30, 40), ("lottery", 30, 40)]
)
def test_training_cost_is_of_each_runs_own_epochs_and_active_weights(written, tmp_path, mode, weights, mask):
    """60 epochs with half of a million multiply-accumulates, after 10 epochs with all of them."""
    dense = written(mode="dense", n_epochs=10, lr_milestones="5")
    child = written(mode=mode, prune_ratio=0.5, n_epochs=60, n_epochs_pretrain=10, lr_milestones_pretrain="5")
    cost = row_of(tmp_path, child)[["cost", "cost_weights", "cost_mask"]] / 10**6
    assert cost.tolist() == [30, weights, mask]
    assert row_of(tmp_path, dense)["cost"] == 10 * 10**6


@pytest.mark.parametrize("mode", ["dense", "dynamic", "sparse-scratch"])
def test_the_run_that_scores_the_examples_is_one_of_those_that_a_run_needs(written, tmp_path, mode):
    """With its 3 epochs of all weights the whole costs as much more, also where there is no parent."""
    written(mode="dense", n_epochs=10, lr_milestones="5")
    scored = {"train_subset": True, "subset_method": "reducible_loss", "val_size": 0.2}
    flags = {"mode": mode, "n_epochs": 20, "lr_milestones": "5"} | ({} if mode == "dense" else {"prune_ratio": 0.5})
    run = written(**flags, **scored)
    summary = RunFolder(run).read_summary()
    edit(run, training_macs_with_parents=summary["training_macs"] + 3 * 3 * summary["examples"]["train"] * 10**6)
    row = row_of(tmp_path, run)
    assert row["cost_mask"] - row["cost"] == pytest.approx(3 * 10**6)
    edit(run, training_macs_with_parents=None)
    assert numpy.isnan(row_of(tmp_path, run)["cost_mask"])  # the scorer is not there
    if mode == "dynamic":
        plain = written(**flags)
        edit(plain, training_macs_with_parents=None)
        assert row_of(tmp_path, plain)["cost_mask"] == row_of(tmp_path, plain)["cost"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it holds something else"),
        ("a,b\n1,2", "half-written"),
        ("a,b\n1\n", "half-written"),
        ("a,a\n1,2\n", "half-written"),
    ],
)
def test_a_table_that_is_not_whole_is_read_by_nobody(tmp_path, content, reason):
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(DamagedTable, match=reason):
        cells_of(path)
    path.unlink()
    with pytest.raises(DamagedTable):
        cells_of(path)

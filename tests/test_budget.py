"""--train_budget: what a run costs in the end is what its budget says, to within half an epoch."""

from pathlib import Path

import pytest

import run as command_line
from helper.schema.config import unflatten
from loader.main import Sizes, load_dataset
from optim.budget import stretched
from optim.config import RunConfig
from optim.folder import RunFolder
from study.sweeping.masks_to_come import scoring_images, with_expected_epochs
from tests.outcome import outcome

FLAGS = {
    "limit_train": 300, "limit_test": 50, "batch_size": 32, "n_epochs": 6, "lr_milestones": "2-4", "prune_ratio": 0.8,
    "mask_every": 4, "hidden_dims": "20-16", "save_snr": 0, "save_fisher": 0, "figures": 0,
}  # fmt: skip
STATIC = {"mode": "at-init", "prune_method": "random", "allocation": "erk"}


def trained(root: Path, **flags) -> dict:
    words = [word for name, value in {**FLAGS, **flags}.items() for word in (f"--{name}", value)]
    if flags["mode"] in ("at-init", "sparse-scratch", "dense"):
        at = words.index("--mask_every")
        del words[at : at + 2]
    if flags["mode"] == "dense":
        at = words.index("--prune_ratio")
        del words[at : at + 2]
    found = outcome(command_line.main, *words, "--results_root", root)
    assert found.code == 0, found.err
    return RunFolder(Path(found.folder)).read_summary()


@pytest.mark.parametrize("budget", [0.5, 1, 2])
@pytest.mark.parametrize(
    "mode",
    [
        STATIC,
        {"mode": "at-init", "prune_method": "snip", "score_batches": 2},
        {"mode": "gradual"},
        {"mode": "gradual", "allocation": "erk", "mask_begin": 3, "mask_end": 20},
        {"mode": "dynamic"},
        {"mode": "granet"},
    ],
)
def test_a_run_costs_what_its_budget_says(mode, budget, tmp_path):
    dense = trained(tmp_path, mode="dense")["training_macs"]
    summary = trained(tmp_path, **mode, train_budget=budget)
    epoch = summary["training_macs"] / summary["epochs"]
    mean = {"gradual": 3, "granet": 3}.get(mode["mode"], 1)  # of a mask that is yet to come the cost is an estimate
    assert abs(summary["training_macs"] - budget * dense) <= mean * epoch * 0.55


@pytest.mark.parametrize("budget", [1, 2])
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "gradual", "allocation": "uniform", "mask_every": 2},
        {"mode": "dynamic", "allocation": "uniform"},
        {"mode": "ac-dc", "allocation": "uniform"},
        {"mode": "granet", "allocation": "uniform", "prune_method": "gradient"},
    ],
)
def test_a_budget_counts_the_scores_of_every_change_of_the_mask(mode, budget, tmp_path):
    """A mask that changes is scored anew each time, at what is left of it: with these flags for a third of the cost."""
    dense = trained(tmp_path, mode="dense")["training_macs"]
    summary = trained(tmp_path, **{"prune_method": "snip"} | mode, train_budget=budget)
    epoch = summary["training_macs"] / summary["epochs"]
    assert abs(summary["training_macs"] - budget * dense) <= epoch


@pytest.mark.parametrize(
    "flags",
    [
        {"train_subset": 1, "subset_ratio": 0.05, "batch_size": 8},  # of eight examples not 0.4, but one
        {"train_subset": 1, "subset_ratio": 0.3, "batch_size": 8, "subset_method": "loss"},
        {"subset_schedule": "hard-first", "subset_ratio": 0.1, "reg_type": "fisher", "reg_schedule": "until:0.3"},
        {"subset_schedule": "easy-first", "subset_ratio": 0.3, "subset_difficulty": "fisher", "n_epochs": 12},
    ],
)
@pytest.mark.parametrize("mode", [STATIC | {"prune_ratio": 0.5}, {"mode": "gradual"}])
def test_a_budget_counts_the_examples_and_penalties_of_each_step_and_their_scores(mode, flags, tmp_path):
    """Penalties while few examples are shown cost less than on average; a step trains on one example at least."""
    dense = trained(tmp_path, mode="dense", **({"n_epochs": flags["n_epochs"]} if "n_epochs" in flags else {}))
    summary = trained(tmp_path, **mode, **flags, train_budget=1)
    epoch = summary["training_macs"] / summary["epochs"]
    mean = 3 if mode["mode"] == "gradual" else 1
    assert abs(summary["training_macs"] - dense["training_macs"]) <= mean * epoch * 0.55


def test_everything_that_is_told_in_epochs_or_steps_is_stretched():
    flags = {"mode": "gradual", "n_epochs": 10, "lr_milestones": "4-6", "warmup_epochs": 2, "mask_begin": 30, "mask_end": 0.5}
    config = unflatten(RunConfig, {**flags, "save_epochs": "0-5-10", "train_budget": 1, "results_root": "there"})
    longer = stretched(config, 25)
    assert (longer.train.n_epochs, longer.train.lr_milestones, longer.train.warmup_epochs) == (25, "10-15", 5)
    assert (longer.prune.mask_begin, longer.prune.mask_end) == (75, 0.5)
    assert longer.train.saved_epochs() == {0, 12, 25}
    assert longer.results_root == "there"
    shorter = stretched(config, 1)
    assert (shorter.train.n_epochs, shorter.train.lr_milestones, shorter.train.warmup_epochs) == (1, "1", 0)
    exponential = stretched(unflatten(RunConfig, {"n_epochs": 10, "lr_schedule": "exponential", "lr_gamma": 0.5}), 20)
    assert exponential.train.lr_gamma**20 == pytest.approx(0.5**10)


def test_another_budget_is_another_run_and_the_dense_parent_has_none(tmp_path):
    config = unflatten(RunConfig, {**FLAGS, "mode": "sparse-scratch", "train_budget": 1})
    assert config.dense_parent().train.train_budget is None
    summary = trained(tmp_path, mode="sparse-scratch", train_budget=0.5)
    assert summary["identity"]["train_budget"] == 0.5
    assert [path.name.split("-s42")[0] for path in tmp_path.glob("*/*/sparse-scratch/*")] == ["l1-0.8-lr0.1-e6-budget0.5"]


@pytest.mark.parametrize("mode", ["gradual", "dynamic", "ac-dc"])
@pytest.mark.parametrize("batch_size", [300, 150])
def test_an_epoch_may_have_fewer_steps_than_the_changes_of_a_mask(mode, batch_size, tmp_path):
    """As with the whole training set in one batch: the budget's epochs fit them, although one alone would not."""
    flags = {"batch_size": batch_size, "mask_every": 1, "n_epochs": 8, "lr_milestones": "4"}
    dense = trained(tmp_path, mode="dense", **flags | {"mask_every": 4})["training_macs"]
    summary = trained(tmp_path, mode=mode, allocation="uniform", train_budget=1, **flags)
    assert abs(summary["training_macs"] - dense) <= dense / 8


def test_changes_that_end_early_fit_into_any_epoch(tmp_path):
    """The first change of gradual pruning, --mask_begin, is none of dynamic training, whose last may come before it."""
    dense = trained(tmp_path, mode="dense")["training_macs"]
    summary = trained(tmp_path, mode="dynamic", mask_end=0.05, train_budget=0.5)
    assert abs(summary["training_macs"] - 0.5 * dense) <= 0.6 * summary["training_macs"] / summary["epochs"]


def test_a_budget_below_one_epoch_is_refused(tmp_path):
    words = [word for name, value in {**FLAGS, **STATIC}.items() for word in (f"--{name}", value) if name != "mask_every"]
    found = outcome(command_line.main, *words, "--train_budget", 0.01, "--results_root", tmp_path)
    assert found.code == 2
    assert "--train_budget 0.01: one epoch already costs" in found.line
    assert not list(tmp_path.rglob("config.yaml"))
    assert outcome(command_line.main, *words, "--train_budget", 0, "--results_root", tmp_path).code == 2


@pytest.mark.parametrize(
    "mode", [STATIC, {"mode": "gradual", "allocation": "uniform"}, {"mode": "dynamic", "growth": "random"}]
)
def test_a_sweep_expects_about_as_many_epochs(mode, tmp_path):
    config = unflatten(RunConfig, {**FLAGS, **mode, "train_budget": 2})
    expected = with_expected_epochs(config, Sizes.of(load_dataset(config.data))).train.n_epochs
    assert abs(expected - trained(tmp_path, **mode, train_budget=2)["epochs"]) <= 1 + 0.05 * expected


def test_scores_are_priced_by_what_they_read():
    sizes = Sizes.of(load_dataset(unflatten(RunConfig, FLAGS).data))
    snip = {**FLAGS, "mode": "at-init", "prune_method": "snip"}
    assert scoring_images(unflatten(RunConfig, snip), sizes) == 100  # ten of each of ten classes, forward and backward
    assert scoring_images(unflatten(RunConfig, {**snip, "score_batches": 3, "score_rounds": 5}), sizes) == 5 * 96
    assert scoring_images(unflatten(RunConfig, {**snip, "prune_method": "l1"}), sizes) == 0
    gradual = {**snip, "mode": "gradual", "mask_begin": 10, "mask_end": 20, "mask_every": 5}
    assert scoring_images(unflatten(RunConfig, gradual), sizes) == 3 * 100
    assert scoring_images(unflatten(RunConfig, FLAGS), sizes) == 0

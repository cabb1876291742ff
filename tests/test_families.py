"""What methods are called and how they are drawn."""

import dataclasses
import itertools

import pytest

from helper.masks.growth import GROWTHS, Growth
from helper.masks.scores import Score
from helper.pruner import SCORES
from helper.schema.config import unflatten
from optim.config import RunConfig
from optim.identity import run_identity
from optim.modes import FRESH, MODES, OF_START, ModeSpec
from scripts.made_up_runs import write_run
from study.reporting.collect import collect
from study.reporting.families import Family, family_of, in_order
from study.reporting.tidy import tidy

WAYS = {
    "dense": {},
    "sparse-finetune": {"mode": "sparse-finetune"},
    "sparse-scratch": {"mode": "sparse-scratch"},
    "lottery": {"mode": "lottery"},
    "IMP": {"mode": "iterative"},
    "IMP, rewind lr": {"mode": "iterative", "rewind": "lr"},
    "magnitude at init": {"mode": "at-init"},
    "random": {"mode": "at-init", "prune_method": "random"},
    "random-ERK": {"mode": "at-init", "prune_method": "random", "allocation": "erk"},
    "random-uniform": {"mode": "at-init", "prune_method": "random", "allocation": "uniform"},
    "SNIP": {"mode": "at-init", "prune_method": "snip"},
    "SNIP, mask_control shuffle": {"mode": "at-init", "prune_method": "snip", "mask_control": "shuffle"},
    "GraSP": {"mode": "at-init", "prune_method": "grasp"},
    "SynFlow": {"mode": "at-init", "prune_method": "synflow"},
    "gradient at init": {"mode": "at-init", "prune_method": "gradient"},
    "GMP": {"mode": "gradual"},
    "SET": {"mode": "dynamic", "growth": "random"},
    "RigL": {"mode": "dynamic"},
    "RigL-uniform": {"mode": "dynamic", "allocation": "uniform"},
    "GraNet": {"mode": "granet"},
    "GraNet, growth random": {"mode": "granet", "growth": "random"},
    "AC/DC": {"mode": "ac-dc"},
    "sparse-scratch, prune_method random": {"mode": "sparse-scratch", "prune_method": "random"},
}


def family(**flags) -> Family:
    return family_of(run_identity(unflatten(RunConfig, flags), None))


@pytest.mark.parametrize(("label", "flags"), WAYS.items(), ids=WAYS)
def test_a_family_is_called_what_the_field_calls_it(label, flags):
    assert family(**flags).label == label


def test_numbers_and_switches_are_settings_of_the_same_family():
    assert family(mode="dynamic", drop_fraction=0.5, prune_ratio=0.8, lr=0.01, prune_last=1, mask_every=7) == family(
        mode="dynamic"
    )


def test_flags_that_do_not_act_and_the_modes_own_allocation_make_no_other_family():
    assert family(mode="at-init", growth="random") == family(mode="at-init")
    assert family(mode="dynamic", allocation="erk") == family(mode="dynamic")


def test_no_two_families_look_the_same():
    looks = {label: (one.colour, one.marker, one.line) for label, one in ((w, family(**flags)) for w, flags in WAYS.items())}
    for (a, one), (b, other) in itertools.combinations(looks.items(), 2):
        assert one != other, (a, b)
        assert one[:2] != other[:2], (a, b)  # without its line, as in a figure of single points


def test_families_stand_in_the_order_of_the_registries():
    found = [one.label for one in in_order(family(**flags) for flags in reversed(WAYS.values()))]
    assert found.index("dense") == 0
    assert found.index("lottery") < found.index("random") < found.index("SNIP") < found.index("GMP") < found.index("RigL")
    assert len(found) == len(WAYS)


def test_what_is_added_to_a_registry_is_named_and_drawn_by_itself(monkeypatch):
    monkeypatch.setitem(SCORES, "added", Score(lambda context: {}))
    monkeypatch.setitem(GROWTHS, "other", Growth(lambda gradients, generator: {}, dense_gradient=False))
    monkeypatch.setitem(MODES, "mine", ModeSpec("mine", "black", "v", "-.", FRESH, OF_START))
    assert family_of({"mode": "at-init", "prune_method": "added"}).label == "added"
    assert family_of({"mode": "dynamic", "growth": "other"}).label == "other"
    assert family_of({"mode": "mine"}).label == "mine"
    assert family_of({"mode": "mine", "prune_method": "added"}).label == "mine, prune_method added"
    others = [family(**flags) for flags in WAYS.values()]
    for own in ({"mode": "at-init", "prune_method": "added"}, {"mode": "dynamic", "growth": "other"}, {"mode": "mine"}):
        found = family_of(own)
        assert (found.colour, found.marker, found.line) not in [(one.colour, one.marker, one.line) for one in others]


def test_series_of_a_family_are_told_apart_by_their_other_flags(tmp_path):
    for flags in (WAYS["SNIP"], WAYS["GraSP"], WAYS["SNIP"] | {"score_batches": 3}, WAYS["dense"]):
        write_run(unflatten(RunConfig, flags | {"random_state": 1, "results_root": str(tmp_path)}))
    runs = tidy(collect(tmp_path))
    assert set(runs["series"]) == {"dense", "GraSP", "SNIP, score_batches None", "SNIP, score_batches 3"}
    assert set(runs["family"]) == {"dense", "GraSP", "SNIP"}


SHORT = {"random_state": 1, "n_epochs": 10, "lr_milestones": "5"}


def collected(root, *runs: dict):
    for flags in runs:
        write_run(unflatten(RunConfig, SHORT | flags | {"results_root": str(root)}))
    return collect(root)


def test_runs_without_a_parent_belong_to_the_dense_run_of_their_settings_whatever_their_seed(tmp_path):
    ways = [WAYS[label] | {"random_state": seed} for label in ("dense", "SNIP", "RigL", "GMP", "lottery") for seed in (1, 2)]
    runs = tidy(collected(tmp_path, *ways, {"mode": "gradual", "lr": 0.2}))
    assert runs["study"].nunique() == 2
    assert runs["study"].value_counts().tolist() == [10, 1]


def test_longer_training_without_a_parent_joins_the_one_dense_run_that_is_otherwise_equal(tmp_path):
    longer = {"mode": "dynamic", "n_epochs": 20, "lr_milestones": "10"}
    runs = tidy(collected(tmp_path, {}, WAYS["RigL"], longer, longer | {"weight_decay": 1e-3}))
    assert runs["study"].value_counts().tolist() == [3, 1]
    assert set(runs.loc[runs["mode"] == "dynamic", "series"]) == {
        "RigL, lr_milestones 5, n_epochs 10", "RigL, lr_milestones 10, n_epochs 20", "RigL",
    }  # fmt: skip
    runs = tidy(collected(tmp_path, {"n_epochs": 15}))  # now there are two, and to neither it belongs more
    assert runs.loc[runs["mode"] == "dynamic", "study"].nunique() == 3


def test_costs_are_relative_to_the_dense_run_with_and_without_the_runs_that_were_needed(tmp_path):
    ways = [WAYS[label] for label in ("dense", "sparse-scratch", "SNIP", "GMP")]
    rows = tidy(collected(tmp_path, *ways)).set_index("family")
    assert rows["relative_cost"].to_dict() == pytest.approx({"dense": 1, "sparse-scratch": 0.1, "SNIP": 0.1, "GMP": 0.55})
    both = rows["relative_cost_with_parents"].to_dict()
    assert both == pytest.approx({"dense": 1, "sparse-scratch": 1.1, "SNIP": 0.1, "GMP": 0.55})
    assert rows.loc["GMP", "cost"] == pytest.approx(10 * 10**6 * 0.55)  # over the steps, not at the end's density
    rounds = tidy(collected(tmp_path, WAYS["IMP"] | {"prune_ratio": 0.36})).set_index("family").loc["IMP"]
    assert rounds["relative_cost_with_parents"] == pytest.approx(1 + 0.8 + 0.64)  # dense, and two rounds that each leave 0.8
    alone = tidy(collected(tmp_path / "alone", WAYS["SNIP"]))
    assert alone[["relative_cost", "relative_cost_with_parents"]].isna().all(axis=None)


def test_budgets_are_relative_to_the_dense_run_of_the_study_whatever_dense_run_they_were_told_in(tmp_path):
    """--train_budget counts the plain steps of --n_epochs; the study's dense run may have other epochs or dearer steps."""
    budget = WAYS["SNIP"] | {"train_budget": 1.5}
    longer = budget | {"n_epochs": 20, "lr_milestones": "10"}
    found = collected(tmp_path, {}, budget, longer, WAYS["SNIP"])
    rows = tidy(found)
    assert rows["study"].nunique() == 1
    assert rows.loc[rows["mode"] == "at-init"].sort_values("epochs")["relative_budget"].dropna().tolist() == [1.5, 3.0]
    assert rows.loc[rows["train_budget"].isna(), "relative_budget"].isna().all()
    dearer = next(record for record in found.records if record.mode == "dense")
    twice = dataclasses.replace(dearer, summary=dearer.summary | {"training_macs": 2 * dearer.summary["training_macs"]})
    others = [record for record in found.records if record is not dearer]
    rows = tidy(dataclasses.replace(found, records=(twice, *others)))
    assert sorted(rows["relative_budget"].dropna()) == [0.75, 1.5]

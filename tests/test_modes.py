"""A mode is one line of `MODES`: one that is sparse and needs no parent goes through every command, by what its spec says."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

import experiment
import run as command_line
from helper.metrics.main import METRICS
from helper.schema.config import unflatten
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_identity
from optim.model import load_stored
from optim.modes import FRESH, MODES, MaskSource, ModeSpec
from study.sweeping.plan import plan
from tests.outcome import Outcome, outcome
from tests.stops import sigterm_after

NAME = "at-start"
FLAGS = (
    "--limit_train", 200, "--limit_test", 60, "--n_epochs", 4, "--lr_milestones", 2, "--hidden_dims", "12-8", "--figures", 0,
    "--save_fisher", 0, "--prune_ratio", 0.5, "--prune_method", "random",
)  # fmt: skip


@pytest.fixture(autouse=True)
def added(monkeypatch) -> None:
    """The fifth mode: a mask on a freshly drawn network."""
    mask = MaskSource(lambda beginning, network: beginning.pruned(network))
    monkeypatch.setitem(MODES, NAME, ModeSpec(NAME, "black", "v", "-.", FRESH, mask))


def start(root: Path, *flags: object, mode: str = NAME) -> Outcome:
    return outcome(command_line.main, *FLAGS, "--mode", mode, *flags, "--results_root", root)


def trained(root: Path, *flags: object, mode: str = NAME) -> RunFolder:
    found = start(root, *flags, mode=mode)
    assert found.code == 0, found.err
    return RunFolder(found.folder)


def test_it_trains_without_a_parent_under_its_mask(tmp_path):
    folder = trained(tmp_path)
    assert [path.parts[-2] for path in tmp_path.glob("*/*/*/*")] == [NAME]
    assert folder.path.name.startswith("random-0.5-lr0.1-e4-s42-")
    summary = folder.read_summary()
    assert summary["identity"] == {
        "mode": NAME, "limit_train": 200, "limit_test": 60, "n_epochs": 4, "lr_milestones": "2", "hidden_dims": "12-8",
        "prune_ratio": 0.5, "prune_method": "random",
    }  # fmt: skip
    first, last = load_stored(folder.epoch_state(0)), load_stored(folder.model)
    assert last.mask.sparsity == summary["sparsity_achieved"] == summary["sparsity_requested"] == 0.5
    for name, keep in last.mask.items():
        assert torch.equal(keep, first.mask[name])
        assert (last.weights[name][~keep] == 0).all()
        assert (last.weights[name][keep] != first.weights[name][keep]).any()
    dense = load_stored(trained(tmp_path, mode="dense").epoch_state(0))  # the same draw, less what is pruned
    assert all(torch.equal(weight * first.mask.get(name, 1), first.weights[name]) for name, weight in dense.weights.items())


def test_flags_of_a_parent_have_no_effect_and_are_not_looked_at(tmp_path):
    config = unflatten(RunConfig, {"mode": NAME})
    for flags in ({"n_epochs_pretrain": 1, "warmup_epochs": 3}, {"pretrain_model_path": "nowhere"}, {"load_pretrain": 0}):
        changed = unflatten(RunConfig, {"mode": NAME, **flags})
        assert run_identity(changed, None).keys() - {"warmup_epochs"} == run_identity(config, None).keys()
    found = start(tmp_path, "--pretrain_model_path", "nowhere", "--n_epochs", 1, "--lr_milestones", 1)
    assert found.code == 0, found.err
    assert f"--pretrain_model_path nowhere has no effect with --mode {NAME}" in found.err
    assert "prune_ratio" not in found.err


def test_it_resumes_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole")
    with sigterm_after(2):
        assert start(tmp_path / "stopped").code == 75
    stopped = trained(tmp_path / "stopped")
    assert "resuming after 2 epochs" in stopped.log.read_text()
    assert stopped.model.read_bytes() == whole.model.read_bytes()


def test_a_sweep_plans_it_alone_and_before_what_needs_a_parent():
    configs = [unflatten(RunConfig, {"mode": mode}) for mode in ("lottery", NAME, "sparse-finetune")]
    planned = plan(configs)
    assert [run.config.mode for run in planned] == ["dense", NAME, "lottery", "sparse-finetune"]
    assert [bool(run.parent) for run in planned] == [False, False, True, True]


def test_it_is_swept_listed_reported_and_interpolated(tmp_path):
    root, modes = tmp_path / "results", (NAME, "sparse-finetune", "sparse-scratch")
    folders = {mode: trained(root, mode=mode).path for mode in modes}
    folders["dense"] = next(folders["sparse-finetune"].parent.parent.glob("dense/*"))
    flags = dict(zip((str(word).removeprefix("--") for word in FLAGS[::2]), FLAGS[1::2], strict=True))
    (tmp_path / "sweep.yaml").write_text(json.dumps({"flags": flags, "grid": {"mode": modes}}))
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--results_root", root, "--dry_run", 1)
    assert "4 runs" in found.out
    assert "4 finished" in found.out
    found = outcome(experiment.main, "status", root, "--all")
    assert "4 finished" in found.out
    assert f"/{NAME}/" in found.out
    same_mask = (folders[NAME], folders["sparse-finetune"])  # random scores know nothing of the weights
    found = outcome(experiment.main, "interpolate", *same_mask, "--points", 3, "--figures", 0, "--cosine_alphas", "0.5")
    assert found.code == 0, found.err
    found = outcome(experiment.main, "interpolate", folders["dense"], folders["sparse-finetune"])
    (modes,) = re.findall(r"is a dense run; interpolate takes a (.*) run, then the sparse-finetune run", found.line)
    assert modes.startswith("sparse-scratch or ")
    assert modes.endswith(f" or {NAME}")
    found = outcome(experiment.main, "report", root)
    assert found.code == 0, found.err
    page = (root / "report/index.html").read_text()
    assert NAME in page
    rows = {row["mode"]: row for row in csv.DictReader((root / "report/runs.csv").open())}
    assert len({row["study"] for row in rows.values()}) == 1  # of one dense setting
    assert len({float(rows[NAME][name]) for name in ("cost", "cost_weights", "cost_mask")}) == 1
    assert float(rows["sparse-scratch"]["cost_mask"]) > float(rows["sparse-scratch"]["cost_weights"])


def test_it_is_measured_afterwards(tmp_path):
    folder = trained(tmp_path)
    assert outcome(experiment.main, "measure", folder.path, "--metrics", "fisher", "-ms", 20).code == 0
    assert {row["metric"] for row in folder.metrics().rows} == {"fisher"} <= set(METRICS)

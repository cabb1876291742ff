"""Iterative pruning: which rounds there are, what each of them begins with, and that each is a run like any other."""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import experiment
import run as command_line
from helper.mask import Mask
from helper.masks.choosing import keep
from helper.metrics.main import METRICS
from helper.schema.config import unflatten
from helper.system.seeds import stream
from helper.untrusted.yaml_text import write_yaml
from loader.main import Sizes, load_dataset
from optim.chain import runs_before
from optim.checkpoint import load_state, save_state
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_identity, stored_options
from optim.model import load_stored
from optim.rounds import MOST_ROUNDS, canonical, ratio_after, ratios
from study.reporting.collect import collect
from study.reporting.tidy import tidy
from study.sweeping.plan import PlannedRun, plan
from study.sweeping.work import disk_of, work_of
from tests.edited import vouch
from tests.outcome import TIMING, Outcome, outcome
from tests.stops import sigterm_after

QUICK = {
    "limit_train": 120, "limit_test": 60, "n_epochs": 3, "lr_milestones": 2, "hidden_dims": "12-8", "batch_size": 60,
    "figures": 0, "save_fisher": 0, "save_snr": 0,
}  # fmt: skip


def words(flags: dict[str, object]) -> list[object]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def start(root: Path, **flags: object) -> Outcome:
    given = QUICK | {"mode": "iterative", "results_root": root} | flags
    return outcome(command_line.main, *words(given))


def trained(root: Path, **flags: object) -> RunFolder:
    found = start(root, **flags)
    assert found.code == 0, found.err
    return RunFolder(found.folder)


def config_of(**flags: object) -> RunConfig:
    return unflatten(RunConfig, {"mode": "iterative", **flags})


def folders(root: Path, mode: str = "iterative") -> dict[float, RunFolder]:
    """{share that is pruned: run} of a root."""
    found = [RunFolder(path.parent) for path in root.glob(f"*/*/{mode}/*/config.yaml")]
    return {folder.read_summary()["sparsity_requested"]: folder for folder in found}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def masked(weights: dict[str, torch.Tensor], mask: Mask) -> dict[str, torch.Tensor]:
    return {name: weight * mask[name] if name in mask else weight for name, weight in weights.items()}


# -------------------------------------------------------------------------------------------------------- the rounds


@given(st.floats(0.02, 0.95), st.floats(1e-6, 0.999))
@settings(deadline=None)
def test_each_round_removes_the_step_of_the_survivors_and_the_last_one_what_is_left(step, ratio):
    try:
        shares = ratios(canonical(ratio), step)
    except ValueError:
        assert (1 - step) ** MOST_ROUNDS > 1 - ratio
        return
    assert shares[-1] == pytest.approx(ratio, abs=1e-12)
    densities = [1.0, *(1 - share for share in shares)]
    removed = [1 - after / before for before, after in itertools.pairwise(densities)]
    assert all(one == pytest.approx(step, rel=1e-6, abs=1e-8) for one in removed[:-1])
    assert 0 < removed[-1] <= step + 1e-8
    assert len(shares) == pytest.approx(math.log(1 - ratio) / math.log(1 - step), abs=1 + 1e-6)


@given(st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.9]), st.integers(1, 25))
@settings(deadline=None)
def test_a_share_that_a_full_round_reaches_is_that_round_however_it_is_computed(step, rounds):
    rounds = min(rounds, int(math.log(1e-9) / math.log(1 - step)))
    product = 1.0
    for _ in range(rounds):
        product *= 1 - step
    spelled = [1 - product, 1 - (1 - step) ** rounds, -math.expm1(rounds * math.log1p(-step)), ratio_after(rounds, step)]
    configs = [config_of(prune_step=step, prune_ratio=share) for share in spelled]
    longer = config_of(prune_step=step, prune_ratio=ratio_after(rounds + 1, step))
    identities = [run_identity(config, None) for config in (*configs, runs_before(longer)[-1])]
    assert identities == identities[:1] * 5
    assert len(ratios(configs[0].prune.prune_ratio, step)) == rounds


def test_the_rungs_of_a_fifth_are_the_numbers_that_one_writes():
    assert ratios(0.9, 0.2)[:6] == [0.2, 0.36, 0.488, 0.5904, 0.67232, 0.737856]
    assert ratios(0.36, 0.2) == [0.2, 0.36]
    assert ratios(0.4, 0.2) == [0.2, 0.36, 0.4]
    assert ratios(0.1, 0.2) == [0.1]
    assert len(ratios(0.98, 0.2)) == 18
    assert [run.prune.prune_ratio for run in runs_before(config_of(prune_ratio=0.5))[1:]] == [0.2, 0.36, 0.488]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2), st.data())
@settings(deadline=None)
def test_a_mask_within_another_has_the_exact_count_and_nests_whatever_the_ties(sizes, values, data):
    generator = stream(data.draw(st.integers(0, 99)), "scores")
    first, second = sorted(data.draw(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))))
    outer, n = None, sum(sizes)
    for ratio in (first, second):
        scores = {str(i): torch.randint(values + 1, (size,), generator=generator).float() for i, size in enumerate(sizes)}
        mask = keep(scores, n - round(ratio * n), outer)
        assert mask.n_active == n - round(ratio * n)
        if outer is not None:
            assert all(not (mask[name] & ~outer[name]).any() for name in mask)
            kept = torch.cat([scores[name][mask[name]] for name in mask])
            gone = torch.cat([scores[name][outer[name] & ~mask[name]] for name in mask])
            assert not len(kept) or not len(gone) or kept.min() >= gone.max()
        outer = mask


# ------------------------------------------------------------------------------------------------- a chain that is trained


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Four rounds of a network with BatchNorm to half of the weights, rewound to epoch 1."""
    root = tmp_path_factory.mktemp("chain")
    network = {"net_name": "resnet", "depth": 8, "widen_factor": 1}
    trained(root, prune_ratio=0.5, rewind_epoch=1, **network)
    return root


def test_rounds_are_runs_of_the_shares_between_and_their_masks_nest_with_exact_counts(chain):
    rounds = folders(chain)
    assert sorted(rounds) == [0.2, 0.36, 0.488, 0.5]
    masks = [load_stored(rounds[share].model).mask for share in sorted(rounds)]
    for share, mask in zip(sorted(rounds), masks, strict=True):
        assert mask.n_active == mask.n_weights - round(share * mask.n_weights)
        summary = rounds[share].read_summary()
        assert summary["sparsity_achieved"] == mask.sparsity
    for outer, inner in itertools.pairwise(masks):
        assert all(not (inner[name] & ~outer[name]).any() for name in inner)


def test_a_round_removes_the_smallest_weights_that_the_one_before_has_left(chain):
    rounds = folders(chain)
    before, after = load_stored(rounds[0.36].model), load_stored(rounds[0.488].model).mask
    kept = torch.cat([before.weights[name][after[name]].abs() for name in after])
    gone = torch.cat([before.weights[name][before.mask[name] & ~after[name]].abs() for name in after])
    assert len(gone) > 0
    assert kept.min() >= gone.max()


def test_a_rewound_round_begins_with_the_dense_runs_state_times_its_mask_batch_norm_included(chain):
    (dense,) = (RunFolder(path) for path in chain.glob("*/*/dense/*"))
    state, first = load_stored(dense.epoch_state(1)), load_stored(folders(chain)[0.5].epoch_state(1))
    assert first.epoch == 1
    assert any("running_mean" in name for name in state.weights)
    assert same_weights(first.weights, masked(state.weights, first.mask))
    assert not same_weights(first.weights, state.weights)


def test_the_first_row_is_of_the_epoch_that_it_is_rewound_to(chain):
    for folder in folders(chain).values():
        rows = folder.history().rows
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
        assert [bool(row["images_per_second"]) for row in rows] == [False, True, True]
        assert [float(row["lr"]) for row in rows[1:]] == pytest.approx([0.1, 0.01])
        assert folder.read_summary()["epoch_selected"] == 3


def test_rounds_on_the_way_leave_their_solution_alone(chain):
    rounds = folders(chain)
    names = {share: {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*.pt")}
             for share, folder in rounds.items()}  # fmt: skip
    states = {"state_dicts/epoch_1.pt", "state_dicts/epoch_2.pt", "state_dicts/epoch_3.pt"}
    assert names == {0.2: {"model.pt"}, 0.36: {"model.pt"}, 0.488: {"model.pt"},
                     0.5: {"model.pt", "checkpoint.pt", "checkpoint.previous.pt", *states}}  # fmt: skip


def test_costs_add_up_over_the_runs_that_a_run_needs(chain):
    rounds = folders(chain)
    (dense,) = (RunFolder(path).read_summary() for path in chain.glob("*/*/dense/*"))
    total = dense["training_macs"]
    assert dense["training_macs_with_parents"] == total
    for share in sorted(rounds):
        summary = rounds[share].read_summary()
        total += summary["training_macs"]
        assert summary["training_macs_with_parents"] == total
        assert summary["training_macs_dense"] == dense["training_macs"] * 2 // 3  # two of three epochs


def test_status_and_report_take_rounds_as_runs(chain):
    found = outcome(experiment.main, "status", chain, "--all", 1)
    assert "5 runs" in found.out
    assert "5 finished" in found.out
    found = outcome(experiment.main, "report", chain)
    assert found.code == 0, found.err
    table = tidy(collect(chain)).set_index("sparsity")
    assert len(set(table["study"])) == 1
    rounds = table[table["mode"] == "iterative"].sort_index()
    assert rounds["cost_mask"].is_monotonic_increasing
    macs = {share: folder.read_summary()["macs_active"] for share, folder in folders(chain).items()}
    (dense,) = table.loc[table["mode"] == "dense", "cost"]
    assert rounds["cost"].to_dict() == {share: 2 * macs[share] for share in macs}
    assert rounds["cost_mask"].iloc[-1] == pytest.approx(dense + 2 * sum(macs.values()))


# -------------------------------------------------------------------------------------- rewinding to the start, and by rate


def test_one_round_rewound_to_the_start_is_the_lottery_ticket_bit_for_bit(tmp_path):
    lottery = trained(tmp_path, mode="lottery", prune_ratio=0.2)
    round_ = trained(tmp_path, prune_ratio=0.2)
    assert round_.path != lottery.path
    for path in ("model.pt", "state_dicts/epoch_0.pt", "state_dicts/epoch_2.pt"):
        one, other = load_stored(lottery.path / path), load_stored(round_.path / path)
        assert same_weights(one.weights, other.weights)
        assert same_weights(dict(one.mask), dict(other.mask))
    without = [{k: v for k, v in row.items() if k not in TIMING} for row in lottery.history().rows]
    assert without == [{k: v for k, v in row.items() if k not in TIMING} for row in round_.history().rows]


@pytest.mark.parametrize("epoch", [1, 2])
def test_training_goes_on_from_the_epoch_as_the_dense_run_did_when_nothing_is_pruned_and_nothing_has_momentum(tmp_path, epoch):
    """Rates, order and augmentation are those of the same epochs, and the optimiser begins empty."""
    flags = {"momentum": 0, "rewind_epoch": epoch, "prune_ratio": 1e-6, "loader_name": "digits", "augment": "crop_flip"}
    folder = trained(tmp_path, **flags)
    (dense,) = (RunFolder(path) for path in tmp_path.glob("*/*/dense/*"))
    assert load_stored(folder.model).mask.sparsity == 0
    assert load_stored(folder.model).mask.n_weights > 0
    assert same_weights(load_stored(folder.model).weights, load_stored(dense.model).weights)
    losses = [[row["loss_train"] for row in run.history().rows] for run in (folder, dense)]
    assert losses[0] == losses[1][epoch:]


def test_rate_rewinding_goes_on_with_the_weights_of_the_round_before(tmp_path):
    flags = {"rewind": "lr", "rewind_epoch": 1, "save_epochs": "1-3"}
    before, after = (trained(tmp_path, prune_ratio=share, **flags) for share in (0.2, 0.36))
    solution, first = load_stored(before.model), load_stored(after.epoch_state(1))
    assert same_weights(first.weights, masked(solution.weights, first.mask))
    assert [row["epoch"] for row in after.history().rows] == ["1", "2", "3"]
    dense = RunFolder(next(tmp_path.glob("*/*/dense/*")))
    assert same_weights(load_stored(before.epoch_state(1)).weights,
                        masked(load_stored(dense.model).weights, load_stored(before.model).mask))  # fmt: skip


def test_a_random_choice_takes_other_numbers_in_every_round(tmp_path):
    trained(tmp_path, prune_ratio=0.36, prune_method="random")
    masks = {share: load_stored(folder.model).mask for share, folder in folders(tmp_path).items()}
    once = trained(tmp_path, prune_ratio=0.36, prune_method="random", mode="lottery")
    assert load_stored(once.model).mask.n_active == masks[0.36].n_active
    assert not same_weights(dict(load_stored(once.model).mask), dict(masks[0.36]))
    assert all(not (masks[0.36][name] & ~masks[0.2][name]).any() for name in masks[0.2])


def test_the_state_that_is_selected_is_never_the_one_that_a_round_begins_with(tmp_path):
    """With a rate of 0 all epochs are as good as the first."""
    folder = trained(tmp_path, prune_ratio=0.2, rewind_epoch=1, lr=0, lr_pretrain=0.1, select="test")
    assert folder.read_summary()["epoch_selected"] == 2


def test_what_a_round_begins_with_is_measured_as_an_initialisation_is(tmp_path):
    measured = {"save_fisher": 1, "monte_carlo_samples": 20, "save_snr": 1}
    folder = trained(tmp_path, prune_ratio=0.36, rewind_epoch=1, **measured)
    assert {row["epoch"] for row in folder.metrics().rows} == {"1", "3"}
    assert {row["epoch"] for row in folder.snr().rows} == {"1", "2", "3"}
    rows = tidy(collect(tmp_path)).set_index("sparsity")
    assert rows.loc[0.36, "fisher_initial"] > 0
    assert math.isnan(rows.loc[0.2, "fisher"])  # a round on the way
    assert not folders(tmp_path)[0.2].snr().rows


# ---------------------------------------------------------------------------------------------- interrupted and shared


def test_a_chain_that_is_stopped_within_its_second_round_goes_on_to_the_same_bits(tmp_path):
    flags = {"prune_ratio": 0.488, "rewind_epoch": 1}
    whole = trained(tmp_path / "whole", **flags)
    trained(tmp_path / "stopped", **flags | {"prune_ratio": 0.2})
    with sigterm_after(1, 1):
        assert start(tmp_path / "stopped", **flags).code == 75
    assert list(folders_begun(tmp_path / "stopped")) == [0.36]
    stopped = trained(tmp_path / "stopped", **flags)
    log = folders(tmp_path / "stopped")[0.36].log.read_text()
    assert "resuming after 1 epochs and 1 steps" in log or "resuming after 1 epochs and 2 steps" in log
    for share in (0.36, 0.488):
        one, other = (load_stored(folders(tmp_path / name)[share].model) for name in ("whole", "stopped"))
        assert same_weights(one.weights, other.weights)
        assert same_weights(dict(one.mask), dict(other.mask))
    assert whole.read_summary()["training_macs"] == stopped.read_summary()["training_macs"]


def folders_begun(root: Path) -> list[float]:
    """Shares of the rounds that are not finished."""
    unfinished = [path for path in root.glob("*/*/iterative/*") if not RunFolder(path).finished]
    return [float(path.name.split("-")[1]) for path in unfinished]


def test_two_targets_share_their_rounds_on_disk(tmp_path):
    trained(tmp_path, prune_ratio=0.4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*/*/model.pt")}
    trained(tmp_path, prune_ratio=0.45)
    assert sorted(folders(tmp_path)) == [0.2, 0.36, 0.4, 0.45]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert load_stored(folders(tmp_path)[0.36].model).epoch == 3


def test_a_round_on_the_way_can_be_named_later_and_is_there(tmp_path):
    trained(tmp_path, prune_ratio=0.4)
    there = folders(tmp_path)[0.36]
    named = trained(tmp_path, prune_ratio=0.36, save_fisher=1, monte_carlo_samples=20)
    assert named.path == there.path
    assert {row["metric"] for row in named.metrics().rows} == {"fisher"}


def test_a_round_is_found_although_the_runs_before_it_are_gone(tmp_path):
    trained(tmp_path, prune_ratio=0.36, rewind="lr")
    for path in (next(tmp_path.glob("*/*/dense/*")), folders(tmp_path)[0.2].path):
        shutil.rmtree(path)
    later = trained(tmp_path, prune_ratio=0.4, rewind="lr")
    assert sorted(folders(tmp_path)) == [0.36, 0.4]
    assert later.read_summary()["training_macs_with_parents"] is None


# --------------------------------------------------------------------------------------------- the state to rewind to


def test_the_dense_run_keeps_the_epochs_that_rounds_begin_with(tmp_path):
    trained(tmp_path, prune_ratio=0.2, rewind_epoch=1, save_epochs="none")
    (dense,) = (RunFolder(path) for path in tmp_path.glob("*/*/dense/*"))
    assert dense.kept_epochs() == [0, 1, 3]
    found = start(tmp_path, prune_ratio=0.2, rewind_epoch=2, save_epochs="none")
    assert found.code == 1
    assert f"{dense.epoch_state(2)} does not exist" in found.line
    assert "--load_pretrain 0" in found.line
    assert "--save_epochs 0-1-2-3 --overwrite 1" in found.line
    assert len(folders(tmp_path)) == 1  # nothing is left of what was refused
    trained(tmp_path, prune_ratio=0.2, rewind_epoch=2, save_epochs="none", load_pretrain=0)
    assert dense.kept_epochs() == [0, 1, 2, 3]  # those of the other rounds as well


def test_the_flags_of_the_message_cure(tmp_path):
    trained(tmp_path, mode="dense", save_epochs="none")
    assert start(tmp_path, prune_ratio=0.2, rewind_epoch=2).code == 1
    trained(tmp_path, mode="dense", save_epochs="0-2", overwrite=1)
    assert trained(tmp_path, prune_ratio=0.2, rewind_epoch=2).finished


def test_a_plan_keeps_what_every_child_needs_and_measures_what_is_named():
    runs = plan([
        config_of(prune_ratio=0.36, rewind_epoch=4, save_epochs="none"),
        config_of(prune_ratio=0.2, rewind_epoch=7, save_epochs="none"),
        config_of(prune_ratio=0.2, rewind_epoch=4, save_jacobian=1),
        unflatten(RunConfig, {"mode": "sparse-scratch", "save_epochs": "none"}),
    ])  # fmt: skip
    dense = runs[0].config
    assert dense.mode == "dense"
    assert {0, 4, 7} <= dense.saved_epochs()
    by_share = {(run.config.prune.prune_ratio, run.config.prune.rewind_epoch): run.config for run in runs[1:]}
    named = by_share[0.2, 4]  # also a round on the way to .36
    assert named.metrics.save_jacobian
    assert named.metrics.save_fisher
    assert named.figures
    assert named.saved_epochs() > {4, 30}
    assert len(runs) == 5


def test_a_round_on_the_way_has_no_measurements_figures_or_states():
    between = runs_before(config_of(prune_ratio=0.36, save_hessian=1, metric_every=5, save_epochs="all"))[-1]
    assert between.metrics.wanted() == []
    assert not any(getattr(between.metrics, metric.switch) for metric in METRICS.values())
    assert not between.figures
    assert between.saved_epochs() == set()
    dense = runs_before(config_of(prune_ratio=0.36, save_hessian=1, save_epochs="all"))[0]
    assert dense.metrics.save_hessian
    assert dense.saved_epochs() == set(range(31))


# ----------------------------------------------------------------------------------------------------------- planning


def shares_of(runs: list[PlannedRun]) -> list[float]:
    return [run.config.prune.prune_ratio for run in runs if run.config.mode == "iterative"]


def test_a_plan_lists_a_chain_once_and_every_run_after_its_parent():
    configs = [config_of(prune_ratio=share, random_state=seed) for seed in (1, 2) for share in (0.5, 0.4, 0.2)]
    runs = plan([*configs, unflatten(RunConfig, {"mode": "sparse-scratch", "random_state": 1})])
    assert len(runs) == 2 * 6 + 1
    assert [run.config.mode for run in runs[:2]] == ["dense", "dense"]
    position = {run.name: index for index, run in enumerate(runs)}
    assert len(position) == len(runs)
    assert all(position[run.parent] < position[run.name] for run in runs if run.parent)
    assert shares_of(runs)[:2] == [0.2, 0.2]
    parents = {run.config.prune.prune_ratio: run.parent for run in runs if run.config.random_state == 1}
    of_name = {run.name: run.config for run in runs}
    assert of_name[parents[0.5]].prune.prune_ratio == 0.488
    assert of_name[parents[0.4]].prune.prune_ratio == 0.36
    assert of_name[parents[0.2]].mode == "dense"


def test_a_long_chain_is_planned_without_deep_recursion():
    runs = plan([config_of(prune_ratio=0.98, prune_step=0.02)])
    assert len(runs) == 1 + math.ceil(math.log(0.02) / math.log(0.98))
    assert [run.parent for run in runs] == [None, *(run.name for run in runs[:-1])]


def test_a_dry_run_names_and_prices_every_round(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        json.dumps({"flags": QUICK, "grid": {"mode": "iterative", "prune_ratio": [0.4, 0.36]}})
    )
    words_ = ("--dry_run", 1, "--images_per_second", 1000, "--results_root", tmp_path / "results", "--rewind_epoch", 1)
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", *words_)
    assert found.code == 0, found.err
    lines = [line for line in found.out.splitlines() if line.startswith("to do")]
    assert [line.split("/")[-2] + line.split("/")[-1].split("-lr")[0] for line in lines] == [
        "dense" + lines[0].split("/")[-1], "iterativel1-0.2", "iterativel1-0.36", "iterativel1-0.4",
    ]  # fmt: skip
    assert not (tmp_path / "results").exists()


def test_a_rewound_round_is_priced_by_the_epochs_that_it_trains():
    sizes = Sizes.of(load_dataset(config_of().data))
    dense, between, last = plan([config_of(prune_ratio=0.36, rewind_epoch=10, save_fisher=0)])
    assert [work_of(run, sizes).training for run in (dense, between, last)] == [30 * sizes.train, *[20 * sizes.train] * 2]
    assert work_of(between, sizes).forward == 21 * (sizes.train + sizes.test)
    assert disk_of(between.config, sizes)[0] < disk_of(last.config, sizes)[0] / 10
    assert disk_of(between.config, sizes)[1] == 6  # history, config, log, summary, lock, model.pt


def test_a_begun_round_is_priced_by_what_is_left_of_it(tmp_path):
    flags = {"prune_ratio": 0.2, "rewind_epoch": 1}
    with sigterm_after(2):  # the dense run
        assert start(tmp_path, **flags).code == 75
    trained(tmp_path, mode="dense")
    with sigterm_after(2):
        assert start(tmp_path, **flags).code == 75
    run = plan([config_of(**QUICK | flags, results_root=str(tmp_path))])[-1]
    assert run.begun
    sizes = Sizes.of(load_dataset(run.config.data))
    assert work_of(run, sizes).training == sizes.train
    assert "epoch 2/3" in outcome(experiment.main, "status", tmp_path, "--all", 1).out


def test_a_sweep_trains_two_chains_at_a_time_and_finds_them_again(tmp_path):
    grid = {"mode": "iterative", "prune_ratio": [0.36, 0.3], "rewind_epoch": 1}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"flags": QUICK, "grid": grid}))
    command = ("sweep", tmp_path / "sweep.yaml", "--results_root", tmp_path / "results", "--jobs", 2)
    found = outcome(experiment.main, *command)
    assert found.code == 0, found.out + found.err
    assert "4 runs" in found.out
    assert sorted(folders(tmp_path / "results")) == [0.2, 0.3, 0.36]
    assert "4 finished, 0 to do" in outcome(experiment.main, *command).out


def test_a_round_that_fails_stops_those_that_come_after_it(tmp_path):
    (tmp_path / "sweep.yaml").write_text(json.dumps({"flags": QUICK, "grid": {"mode": "iterative", "prune_ratio": 0.488}}))
    root = tmp_path / "results"
    trained(root, prune_ratio=0.2)
    model = folders(root)[0.2].model
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 0xFF
    model.write_bytes(content)  # the second round refuses it
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--results_root", root, "--jobs", 2)
    assert found.code == 1
    assert "1 runs wait for a parent that failed" in found.out
    assert "1 failed" in found.out
    assert sorted(folders(root)) == [0.2]


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "words_"),
    [
        ({"rewind_epoch": 3}, "--rewind_epoch 3: must be below --n_epochs 3"),
        ({"rewind_epoch": -1}, "--rewind_epoch -1"),
        ({"rewind": "lr", "rewind_epoch": 4}, "--rewind_epoch 4"),
        (
            {"rewind_epoch": 2, "n_epochs_pretrain": 1, "lr_milestones_pretrain": 1},
            "the dense run has only --n_epochs_pretrain 1",
        ),
        ({"prune_step": 0}, "--prune_step 0: must be above 0 and below 1"),
        ({"prune_step": 1}, "--prune_step 1"),
        ({"prune_step": -0.2}, "--prune_step -0.2"),
        ({"prune_step": "nan"}, "--prune_step nan"),
        ({"prune_step": 1e-9}, f"more than {MOST_ROUNDS} rounds"),
        ({"prune_ratio": 0}, "--prune_ratio 0: every round of iterative pruning removes something"),
        ({"prune_ratio": 1e-14}, "--prune_ratio 0: every round"),
        ({"rewind": "rate"}, "--rewind rate"),
        ({"pretrain_model_path": "nowhere"}, "--pretrain_model_path nowhere: does not exist"),
    ],
)
def test_what_makes_no_rounds_is_refused_and_leaves_nothing(tmp_path, flags, words_):
    found = start(tmp_path / "results", **flags)
    assert (found.code, words_ in found.line) == (2, True), found.line
    assert not (tmp_path / "results").exists()


def test_flags_of_rounds_are_refused_with_other_modes_and_a_budget_with_rounds(tmp_path):
    for flags in ({"prune_step": 0.3}, {"rewind": "lr"}, {"rewind_epoch": 1}):
        found = start(tmp_path, mode="lottery", **flags)
        assert (found.code, f"--{next(iter(flags))}" in found.line, "--mode lottery" in found.line) == (2, True, True)
    found = start(tmp_path, train_budget=2)
    assert (found.code, "--train_budget" in found.line, "--mode iterative" in found.line) == (2, True, True)
    assert not list(tmp_path.iterdir())
    plain = unflatten(RunConfig, {"mode": "lottery"})
    other = unflatten(RunConfig, {"mode": "lottery", "prune_step": 0.5, "rewind": "lr", "rewind_epoch": 99, "n_epochs": 30})
    assert run_identity(other, None) == run_identity(plain, None)
    assert (other.first_epoch, len(runs_before(other))) == (0, 1)


# --------------------------------------------------------------------------------------- a dense run given by its path


def test_a_dense_run_can_be_given_by_its_folder(tmp_path):
    dense = trained(tmp_path / "dense", mode="dense")
    found = trained(tmp_path / "given", prune_ratio=0.36, rewind_epoch=2, pretrain_model_path=dense.path)
    by_settings = trained(tmp_path / "found", prune_ratio=0.36, rewind_epoch=2)
    assert not list((tmp_path / "given").glob("*/*/dense"))
    assert sorted(folders(tmp_path / "given")) == [0.2, 0.36]
    one, other = load_stored(found.model), load_stored(by_settings.model)
    assert same_weights(one.weights, other.weights)
    assert found.read_summary()["training_macs_with_parents"] is None
    by_file = trained(tmp_path / "given", prune_ratio=0.36, rewind_epoch=2, pretrain_model_path=dense.model)
    assert by_file.path == found.path
    assert outcome(experiment.main, "report", tmp_path / "given").code == 0


def test_a_dense_run_without_the_state_to_rewind_to_is_refused_at_once(tmp_path):
    dense = trained(tmp_path / "dense", mode="dense", save_epochs="0")
    flags = {"prune_ratio": 0.36, "rewind_epoch": 2, "pretrain_model_path": dense.path}
    found = start(tmp_path / "results", **flags)
    assert (found.code, "--rewind_epoch 2" in found.line, "epoch_2.pt does not exist" in found.line) == (2, True, True)
    grid = QUICK | {"mode": "iterative"} | {**flags, "pretrain_model_path": str(dense.path)}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"grid": grid}))
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--results_root", tmp_path / "results")
    assert (found.code, "epoch_2.pt does not exist" in found.line) == (2, True)
    assert not (tmp_path / "results").exists()
    assert trained(tmp_path / "results", **flags | {"rewind": "lr"}).finished


def test_the_state_to_rewind_to_counts_beside_the_solution(tmp_path):
    """Two dense runs of one solution and of other states are two chains, unless it is the rate that is rewound."""
    one = trained(tmp_path / "one", mode="dense").path
    two = Path(shutil.copytree(one, tmp_path / "two/run"))
    state = load_state(two / "state_dicts/epoch_2.pt")
    for weight in state["network"].values():
        weight.mul_(2)
    save_state(two / "state_dicts/epoch_2.pt", state)
    vouch(two)
    for rewind, alike in (("weights", False), ("lr", True)):
        flags = {"prune_ratio": 0.2, "rewind_epoch": 2, "rewind": rewind}
        paths = [trained(tmp_path / "results", **flags, pretrain_model_path=path).path for path in (one, two)]
        assert (paths[0] == paths[1]) is alike


# ------------------------------------------------------------------------------- flags of one mode beside runs of another


@pytest.mark.parametrize(
    "flags",
    [
        {"mode": "iterative", "rewind_epoch": 1}, {"mode": "lottery", "mask_control": "shuffle"},
        {"mode": "lottery", "train_budget": 0.8},
    ],
)  # fmt: skip
def test_a_dense_parent_has_none_of_the_flags_with_which_its_mode_would_be_refused(tmp_path, flags):
    run, config = plan([config_of(**QUICK | flags)])[0], tmp_path / "config.yaml"
    assert run.config.mode == "dense"
    assert all(f"--{name}" not in run.flags() for name in flags)
    config.write_text(write_yaml(stored_options(run.config)))
    found = outcome(command_line.main, "--config", config, "--results_root", tmp_path)
    assert found.code == 0, found.err


def test_a_sweep_of_several_modes_gives_each_run_the_flags_of_its_own_mode():
    grid = [config_of(mode=mode, rewind_epoch=2, mask_begin=0.2) for mode in ("iterative", "gradual", "sparse-scratch")]
    flags = {run.config.mode: run.flags() for run in plan(grid)}
    assert {mode for mode, given_ in flags.items() if "--rewind_epoch" in given_} == {"iterative"}
    assert {mode for mode, given_ in flags.items() if "--mask_begin" in given_} == {"gradual"}

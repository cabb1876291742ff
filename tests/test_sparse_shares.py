"""What sparse steps are said to save, against the rule's cost by hand and against steps and passes that runs really take."""

import dataclasses

import pytest
import torch

from helper.mask import Mask
from helper.masks.schedules import Span
from helper.metrics.macs import uses_of_weights
from helper.schema.config import replace, unflatten
from helper.sparse import choice
from helper.sparse.choice import BREAK_EVEN, CALL, chosen_layers, is_worth_it, relative_cost
from loader.main import DataConfig, published_sizes
from network.main import build_network
from optim.config import RunConfig
from optim.main import train_run
from optim.sparse_step import SparseStep
from optim.trainer import Trainer
from study.sweeping import cost
from study.sweeping.cost import Reference, Speeds
from study.sweeping.masks_to_come import layers_of
from study.sweeping.plan import PlannedRun, plan
from study.sweeping.sparse_shares import Changing, Shares, sparse_shares, step_at
from study.sweeping.work import work_of

WIDE = {"hidden_dims": "2048-2048", "save_fisher": 0, "n_epochs": 3, "lr_milestones": "1", "allocation": "uniform"}
RESNET = {"loader_name": "cifar100", "net_name": "resnet", "depth": 8, "widen_factor": 1, "save_fisher": 0}
SIZES = published_sizes(DataConfig())  # digits


@pytest.fixture(autouse=True)
def fresh():
    step_at.cache_clear()
    yield
    step_at.cache_clear()


def planned(**flags) -> PlannedRun:
    return plan([unflatten(RunConfig, {"results_root": "nowhere", **flags})], fingerprint=lambda data: None)[-1]


def shares(last: int = -1, **flags) -> Shares:
    config = planned(**flags).config
    return sparse_shares(config, published_sizes(config.data), last)


DENSE = Shares(1.0, dict.fromkeys(range(4), 1.0))  # of three epochs and the first row


def by_hand(density: float) -> float:
    """Of an MLP 64-2048-2048-10 whose last layer is whole: what the rule says of its two wide layers, all for one example."""
    layers, head = (64 * 2048, 2048 * 2048), 2048 * 10
    dense = BREAK_EVEN * (sum(layers) + head)
    return (sum(round(density * n) for n in layers) + 2 * CALL / 128 + BREAK_EVEN * head) / dense


# ---------------------------------------------------------------------------------------------------- masks that stay


@pytest.mark.parametrize("ratio", [0.9, 0.95, 0.98])
def test_a_run_takes_the_share_that_the_rule_gives_its_density(ratio):
    found = shares(**WIDE, mode="sparse-scratch", prune_ratio=ratio, sparse_step="1")
    assert found == Shares(found.training, dict.fromkeys(range(4), found.training))
    assert found.training == pytest.approx(by_hand(1 - ratio), rel=1e-4)
    if by_hand(1 - ratio) < choice.WORTH:
        assert shares(**WIDE, mode="sparse-scratch", prune_ratio=ratio, sparse_step="auto") == found


@pytest.mark.parametrize(
    "flags",
    [
        {"sparse_step": "0"}, {"mode": "dense"}, {"prune_ratio": 0.3}, {"prune_ratio": 0.0}, {"hidden_dims": "64-64"},
        {"device": "cuda"}, {"device": "tpu"}, {"precision": "bf16"}, {"compile": 1}, {"reg_type": "jacobian"},
    ],
)  # fmt: skip
def test_a_run_whose_steps_are_dense_costs_what_dense_steps_do(flags):
    assert shares(**WIDE | {"mode": "sparse-scratch", "prune_ratio": 0.95, "sparse_step": "auto"} | flags) == DENSE


@pytest.mark.parametrize("flags", [{"precision": "bf16"}, {"prune_ratio": 0.3}])
def test_steps_that_are_asked_for_are_sparse_whatever_they_cost(flags):
    asked = {**WIDE, "mode": "sparse-scratch", "prune_ratio": 0.95, "sparse_step": "1", **flags}
    density = 1 - asked["prune_ratio"]
    if density < BREAK_EVEN:
        assert shares(**asked).training == pytest.approx(by_hand(density), rel=1e-4)
    else:  # no layer is worth it
        assert shares(**asked) == DENSE


@pytest.mark.parametrize(("allocation", "ratio"), [("uniform", 0.9), ("erk", 0.95), ("erk", 0.98)])
def test_the_share_of_a_network_is_the_cost_of_masks_with_its_numbers_of_weights(allocation, ratio):
    """Real masks of the same counts, at random places, chosen and priced as a run does it."""
    config = planned(**RESNET, mode="sparse-scratch", prune_ratio=ratio, allocation=allocation, sparse_step="1").config
    sizes = published_sizes(config.data)
    network = build_network(config.network, sizes.input_shape, sizes.n_classes, torch.Generator())
    counts = layers_of(config.network, sizes.input_shape, sizes.n_classes, config.prune.prune_last).counts(allocation, ratio)
    parameters = dict(network.named_parameters())
    places = {name: torch.randperm(parameters[name].numel()) for name in counts}
    mask = Mask({name: (places[name] < n).view(parameters[name].shape) for name, n in counts.items()})
    uses = uses_of_weights(network, sizes.input_shape)
    chosen = chosen_layers(network, mask, uses)
    share = relative_cost(network, {name: int(m.sum()) for name, m in chosen.items()}, uses, config.train.batch_size)
    assert sparse_shares(config, sizes, -1).training == pytest.approx(share, rel=1e-12)
    assert is_worth_it(network, chosen, uses, config.train.batch_size) == (share < choice.WORTH)


# ------------------------------------------------------------------------------------------------ masks that change


CHANGING = {
    "mask_every": 7,
    "mask_end": 0.75,
    "prune_ratio": 0.95,
    "hidden_dims": "1200-1200",
    "batch_size": 64,
    "limit_train": 700,
}


@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "gradual"}, {"mode": "ac-dc"}, {"mode": "granet"}, {"mode": "dynamic", "growth": "gradient"},
        {"mode": "dynamic", "growth": "random"},
    ],
)  # fmt: skip
def test_steps_and_passes_of_a_mask_that_changes_are_those_that_a_run_takes(mode, tmp_path, monkeypatch):
    """A run is asked before every step and in every pass how many weights are active, and whether it computes them alone."""
    flags = CHANGING | mode | {"n_epochs": 4, "lr_milestones": "1", "sparse_step": "auto", "save_fisher": 0, "figures": 0}
    config = unflatten(RunConfig, {"results_root": str(tmp_path), **flags})
    steps, passes = [], []

    def seen(trainer, dense: bool) -> float:
        mask = trainer.mask_owner.mask
        return 0.0 if dense or mask.n_active == mask.n_weights else 1 - mask.n_active / mask.n_weights

    def logits(trainer, inputs):
        dense = any(callback.needs_dense_gradient(trainer) for callback in trainer.callbacks)
        steps.append(seen(trainer, dense))
        return trainer.network(inputs)

    emit = Trainer.emit

    def emitted(trainer, event):
        if event == "on_epoch":
            passes.append(seen(trainer, dense=False))
        emit(trainer, event)

    monkeypatch.setattr(Trainer, "logits", logits)
    monkeypatch.setattr(Trainer, "emit", emitted)
    monkeypatch.setattr(SparseStep, "view_for", lambda step, owner: None)
    train_run(config)
    sizes = published_sizes(config.data)
    network = (config.network, sizes.input_shape, sizes.n_classes, config.prune.prune_last)

    def share(pruned: float) -> float:
        return step_at(network, config.allocation, 64, False, pruned).share

    def mean(pruned: list[float]) -> float:
        return sum(map(share, pruned)) / len(pruned)

    found = sparse_shares(config, sizes, -1)
    assert len(steps) == 4 * 11
    assert found.training == pytest.approx(mean(steps), rel=1e-3)
    assert found.passes == pytest.approx(dict(enumerate(map(share, passes))), rel=1e-3)
    later = sparse_shares(config, sizes, 2)
    assert later.training == pytest.approx(mean(steps[22:]), rel=1e-3)
    assert later.passes == {epoch: found.passes[epoch] for epoch in (3, 4)}
    assert found.training < 1


# ---------------------------------------------------------------------------------------------------- prices


def test_images_of_sparse_steps_and_passes_count_less_and_measurements_do_not():
    flags = WIDE | {"mode": "sparse-scratch", "prune_ratio": 0.95, "save_fisher": 1}
    dense, sparse = (work_of(planned(**flags, sparse_step=asked), SIZES) for asked in ("0", "1"))
    share = by_hand(0.05)
    assert sparse.training == pytest.approx(share * dense.training, rel=1e-4)
    assert sparse.forward == pytest.approx(share * dense.forward, rel=1e-4)
    assert sparse.gradient == pytest.approx(share * dense.gradient, rel=1e-4)
    assert (sparse.measuring, sparse.files) == (dense.measuring, dense.files)
    pruned = sum(n - round(0.05 * n) for n in (64 * 2048, 2048 * 2048))
    assert dense.bytes - sparse.bytes == 2 * 4 * pruned  # momentum in checkpoint.pt and the one before it


@pytest.mark.parametrize(("device", "cheaper"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_at_a_given_speed_sparse_steps_are_cheaper_on_a_cpu_alone(device, cheaper):
    flags = WIDE | {"mode": "sparse-scratch", "prune_ratio": 0.95, "device": device}
    dense, sparse = (
        Reference("digits/mlp-2048-2048", 100.0, 1).cost_of(planned(**flags, sparse_step=asked)) for asked in ("0", "auto")
    )
    assert sparse.seconds == pytest.approx((by_hand(0.05) if cheaper else 1) * dense.seconds, rel=1e-4)


@pytest.mark.parametrize(("missing", "share"), [("", by_hand(0.05)), ("no compiler", 1.0)])
def test_steps_measured_here_are_dense_where_there_are_no_kernels(missing, share, monkeypatch):
    """Without a compiler `auto` goes on densely, and so it is priced."""
    monkeypatch.setattr(cost, "measured_speeds", lambda config: Speeds(train=1.0, forward=0.0, gradient=0.0))
    monkeypatch.setattr(cost, "missing_kernels", lambda: missing)
    found = cost.cost_of(planned(**WIDE, mode="sparse-scratch", prune_ratio=0.95, sparse_step="auto"))
    assert found.seconds == pytest.approx(3 * SIZES.train * share, rel=1e-4)


@pytest.mark.parametrize("flags", [{"mode": "dense"}, {"sparse_step": "0"}, {"prune_ratio": 0.2}])
def test_kernels_are_not_made_for_runs_that_need_none(flags, monkeypatch):
    monkeypatch.setattr(cost, "missing_kernels", lambda: pytest.fail("asked for kernels"))
    run = planned(**WIDE | {"mode": "sparse-scratch", "prune_ratio": 0.95, "sparse_step": "auto"} | flags)
    assert cost.work_here(run, SIZES) == work_of(run, SIZES)


def test_dense_steps_are_measured_once_for_sparse_and_dense_runs(monkeypatch):
    timed = []
    monkeypatch.setattr(cost, "SPEEDS", {})
    monkeypatch.setattr(cost, "time_steps", lambda config: timed.append(config) or Speeds(1.0, 1.0, 1.0))
    config = planned(**WIDE, mode="sparse-scratch").config
    for asked in ("0", "auto", "1"):
        cost.measured_speeds(replace(config, sparse_step=asked))
    assert len(timed) == 1


def test_a_mask_holds_from_its_change_to_the_next():
    config = planned(**WIDE, mode="gradual", prune_ratio=0.8).config
    changing = Changing(config, config.mode_spec.updater, Span(10, 30, 10))
    found = [changing.pruned_in(step) for step in (-1, 0, 9, 10, 19, 20, 25, 29, 30, 99)]
    half = 0.8 * (1 - 0.5**3)
    assert found == pytest.approx([0, 0, 0, 0, 0, half, half, half, 0.8, 0.8])
    assert not changing.needs_dense_gradient(20)
    assert dataclasses.replace(changing, span=Span(0, 30, 10)).pruned_in(-1) == 0

"""Masks that change by a schedule, against closed forms, brute force and the static modes."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import run as command_line
from helper.mask import Mask
from helper.masks.choosing import swap
from helper.masks.growth import GROWTHS
from helper.masks.schedules import Span, alternating, cosine_drop, cubic
from helper.metrics.macs import macs_of, sizes_of_weights, uses_of_weights
from helper.pruner import prune
from helper.schema.config import unflatten
from helper.system.seeds import stream
from loader.main import load_dataset
from network.main import NetworkConfig, build_network
from optim.callbacks.callback import Callback
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import load_stored, start
from optim.trainer import Trainer
from tests.outcome import Outcome, outcome
from tests.stops import sigterm_after

SMALL = (
    "--limit_train", 320, "--limit_test", 50, "--batch_size", 32, "--n_epochs", 3, "--lr_milestones", 2, "--figures", 0,
    "--save_fisher", 0, "--save_snr", 0,
)  # fmt: skip
STEPS = 30  # of these runs


def run(root: Path, *words: object) -> Outcome:
    return outcome(command_line.main, *SMALL, "--results_root", root, *words)


def finished(root: Path, *words: object) -> RunFolder:
    found = run(root, *words)
    assert found.code == 0, found.err
    return RunFolder(Path(found.out.splitlines()[-1]))


# ---------------------------------------------------------------------------------------------------- schedules


def test_gradual_pruning_by_hand():
    span = Span(0, 400, 100)
    assert [cubic(step, span, 0.9) for step in (0, 100, 200, 300, 400)] == pytest.approx([0, 0.5203125, 0.7875, 0.8859375, 0.9])
    assert cubic(400, span, 0.9) == cubic(10**6, span, 0.9) == 0.9
    assert [step for step in range(500) if span.has(step)] == [0, 100, 200, 300, 400]
    assert [step for step in range(500) if Span(10, 45, 20).has(step)] == [10, 30, 45]  # the last change comes in any case
    for span in (Span(0, 400, 100), Span(10, 45, 20), Span(7, 7, 100), Span(0, 0, 1), Span(3, 9, 3)):
        assert span.changes() == [step for step in range(500) if span.has(step)]
    assert cubic(7, Span(7, 7, 100), 0.9) == 0.9
    assert cubic(6, Span(7, 7, 100), 0.9) == 0


def test_the_share_that_changes_places_falls_with_a_cosine():
    span = Span(0, 600, 100)
    assert [cosine_drop(step, span, 0.3) for step in (0, 200, 300, 600)] == pytest.approx([0, 0.225, 0.15, 0])


def test_phases_alternate_and_end_sparse():
    span = Span(10, 50, 10)
    assert [alternating(step, span, 0.8) for step in (0, 10, 19, 20, 30, 40, 50, 99)] == [0, 0.8, 0.8, 0, 0.8, 0, 0.8, 0.8]


# --------------------------------------------------------------------------------------------------- whole runs


class Recorder(Callback):
    """Masks before every change, what they became, and the gradients between; pruned weights never move."""

    def __init__(self) -> None:
        self.masks: list[Mask] = []
        self.versions: list[int] = []

    def on_step(self, trainer: Trainer) -> None:
        owner = trainer.mask_owner
        for weight, active in zip(owner.weights, owner.mask.values(), strict=True):
            for value in (weight, *owner.states_of(weight)):
                assert not value[~active].any()
        self.masks.append(Mask({name: active.clone() for name, active in owner.mask.items()}))
        self.versions.append(owner.version)


def trained(config: RunConfig) -> tuple[Recorder, Trainer]:
    """A run's training without its folder."""

    dataset = load_dataset(config.data)
    network, mask, _ = start(config, dataset, None)
    recorder, updater = Recorder(), config.mode_spec.updater
    callbacks = [*([updater(config)] if updater else []), recorder]
    trainer = Trainer(network, dataset, config.train, seed=config.random_state, callbacks=callbacks, mask=mask)
    trainer.fit()
    return recorder, trainer


def config_of(**flags) -> RunConfig:

    small = dict(zip((name.removeprefix("--") for name in SMALL[::2]), SMALL[1::2], strict=True))
    return unflatten(RunConfig, {**small, **flags})


def test_gradual_pruning_has_the_density_of_the_law_after_every_step():
    config = config_of(mode="gradual", prune_ratio=0.9, mask_begin=5, mask_end=20, mask_every=4)
    recorder, _ = trained(config)
    span, n = Span(5, 20, 4), recorder.masks[0].n_weights
    for step, mask in enumerate(recorder.masks):  # the mask of the step after so many
        last = max((s for s in range(step + 1) if span.has(s)), default=None)
        share = 0.0 if last is None else 0.9 * (1 - (1 - (last - 5) / 15) ** 3)
        assert n - mask.n_active == round(share * n)
    for before, after in zip(recorder.masks, recorder.masks[1:], strict=False):
        assert all((before[name] | ~after[name]).all() for name in before)
    assert recorder.masks[-1].n_active == n - round(0.9 * n)


@pytest.mark.parametrize("allocation", ["global", "erk", "uniform"])
def test_begin_equal_to_end_is_pruning_once(allocation, tmp_path):
    words = ("--prune_ratio", 0.8, "--allocation", allocation, "--save_epochs", "none")
    gradual = finished(tmp_path, "--mode", "gradual", "--mask_begin", 0, "--mask_end", 0, *words)
    once = finished(tmp_path, "--mode", "at-init", *words)
    mine, theirs = load_stored(gradual.model), load_stored(once.model)
    assert all(torch.equal(mine.mask[name], active) for name, active in theirs.mask.items())
    assert all(torch.equal(mine.weights[name], value) for name, value in theirs.weights.items())


def test_nothing_pruned_is_the_dense_run_to_the_bit(tmp_path):
    dense = load_stored(finished(tmp_path, "--mode", "dense").model).weights
    every = ("--mask_every", 5)
    for mode, words in {"at-init": (), "gradual": every, "ac-dc": every, "granet": every}.items():
        weights = load_stored(finished(tmp_path, "--mode", mode, "--prune_ratio", 0, *words).model).weights
        assert all(torch.equal(weights[name], value) for name, value in dense.items()), mode


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_dynamic_without_drops_is_static_to_the_bit(growth, tmp_path):
    common = ("--prune_ratio", 0.9, "--mask_every", 5)
    dynamic = finished(tmp_path, "--mode", "dynamic", "--growth", growth, "--drop_fraction", 0, *common)
    static = finished(tmp_path, "--mode", "at-init", "--prune_method", "random", "--allocation", "erk", *common[:2])
    mine, theirs = load_stored(dynamic.model), load_stored(static.model)
    assert all(torch.equal(mine.weights[name], value) for name, value in theirs.weights.items())


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_dynamic_training_changes_exactly_as_many_weights_as_the_cosine_says(growth, optimizer):
    config = config_of(
        mode="dynamic", growth=growth, prune_ratio=0.9, mask_every=5, mask_end=21, drop_fraction=0.4, optimizer_name=optimizer,
        lr=0.01,
    )  # fmt: skip
    recorder, _ = trained(config)
    counts = [{name: int(active.sum()) for name, active in mask.items()} for mask in recorder.masks]
    assert all(count == counts[0] for count in counts)
    assert [s for s in range(1, STEPS) if recorder.versions[s] != recorder.versions[s - 1]] == [5, 10, 15, 20]
    for step in (5, 10, 15, 20):
        share = cosine_drop(step, Span(0, 21, 5), 0.4)
        for name, active in recorder.masks[step].items():
            before = recorder.masks[step - 1][name]
            gone = int((before & ~active).sum())
            assert gone <= int(share * counts[0][name])
            if growth == "random":  # most are new: few of the candidates were just dropped
                assert gone > 0


def test_rigl_grows_where_the_dense_gradient_is_largest():
    """One update, done by hand: the same network, step and batch; gradients of all weights, pruned ones as well."""
    config = config_of(mode="dynamic", prune_ratio=0.9, mask_every=5, mask_end=6, drop_fraction=0.3)
    found: dict[str, dict[str, torch.Tensor]] = {}

    class Look(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            if trainer.step == 5 and trainer.epoch == 0:
                owner = trainer.mask_owner
                found["mask"] = {name: active.clone() for name, active in owner.mask.items()}
                found["weight"] = {n: w.detach().clone() for n, w in zip(owner.mask, owner.weights, strict=True)}
                found["gradient"] = {n: g.clone() for n, g in owner.gradients().items()}

    dataset = load_dataset(config.data)
    network, mask, _ = start(config, dataset, None)
    recorder = Recorder()
    callbacks = [Look(), config.mode_spec.updater(config), recorder]
    Trainer(network, dataset, config.train, seed=config.random_state, callbacks=callbacks, mask=mask).fit()
    share = cosine_drop(5, Span(0, 6, 5), 0.3)
    for name, active in found["mask"].items():
        n = int(share * int(active.sum()))
        assert n > 0
        sizes = found["weight"][name].abs().masked_fill(~active, torch.inf).flatten()
        stays = active.flatten().clone()
        stays[sizes.argsort()[:n]] = False
        grows = found["gradient"][name].abs().flatten().masked_fill(stays, -1).argsort(descending=True)[:n]
        expected = stays.clone()
        expected[grows] = True
        assert torch.equal(recorder.masks[5][name].flatten(), expected)


def test_a_layer_that_is_whole_keeps_its_weights():
    """The allocation leaves the first convolution whole: none of its weights is dropped, and none starts anew at zero."""
    config = config_of(mode="dynamic", net_name="mnist_lenet", prune_ratio=0.5, allocation="uniform_plus", mask_every=3)
    smallest = []

    class Look(Callback):
        def on_step(self, trainer: Trainer) -> None:
            smallest.append(trainer.mask_owner.weights[0].detach().abs().min().item())

    dataset = load_dataset(config.data)
    network, mask, _ = start(config, dataset, None)
    assert next(iter(mask.values())).all()
    Trainer(network, dataset, config.train, seed=1, callbacks=[config.mode_spec.updater(config), Look()], mask=mask).fit()
    assert min(smallest) > 0


def test_a_layer_that_is_pruned_to_nothing_is_named(tmp_path, caplog):
    words = ("--mode", "gradual", "--allocation", "uniform", "--hidden_dims", "64-2", "--prune_ratio", 0.997, "--mask_every", 5)
    finished(tmp_path, *words)
    assert "steps layer layers.2 is pruned to nothing" in caplog.text
    assert caplog.text.count("pruned to nothing") == 1


def test_random_growth_is_uniform_over_what_is_not_kept():

    active = torch.arange(40) < 10
    times = torch.zeros(40)
    for seed in range(600):
        grow = GROWTHS["random"].scores({"a": torch.zeros(40)}, stream(seed, "growth"))
        after, _ = swap(Mask({"a": active}), {"a": 4}, {"a": torch.arange(40.0)}, grow)
        times += after["a"]
    assert (times[4:10] == 600).all()
    rest = torch.cat([times[:4], times[10:]])  # 34 places for 4 of 600 draws each
    expected = 600 * 4 / 34
    chi_square = ((rest - expected) ** 2 / expected).sum()
    assert chi_square < 33 + 5 * (2 * 33) ** 0.5


@pytest.mark.parametrize(
    "words",
    [
        ("gradual", "--mask_every", 4),
        ("dynamic", "--mask_every", 4),
        ("dynamic", "--mask_every", 4, "--growth", "random", "--optimizer_name", "adam", "--lr", 0.01),
        ("granet", "--mask_every", 4, "--nesterov", 1),
        ("ac-dc", "--mask_every", 4),
    ],
)
@pytest.mark.parametrize("after", [(1, 4), (1, 5), (2, 2)])
def test_stopped_and_resumed_it_ends_with_the_same_bits(words, after, tmp_path):
    words = ("--mode", *words)
    whole = finished(tmp_path / "whole", *words)
    with sigterm_after(*after):
        assert run(tmp_path / "stopped", *words).code == 75
    resumed = finished(tmp_path / "stopped", *words)
    assert "resuming" in resumed.log.read_text()
    assert resumed.model.read_bytes() == whole.model.read_bytes()
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "peak_memory_mb")}
            for row in f.history().rows
        ]
        for f in (resumed, whole)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("end", [20, 22])  # one falls on the end of the second epoch, and comes after it
def test_selection_takes_no_state_of_another_density(end, tmp_path):
    """The dense epochs before the last change are better, and are not chosen."""
    words = ("--mode", "gradual", "--prune_ratio", 0.97, "--mask_begin", 20, "--mask_end", end, "--mask_every", 1)
    folder = finished(tmp_path, *words, "--select", "test", "--lr_schedule", "constant")
    rows = folder.history().rows
    best = max(rows[1:], key=lambda row: float(row["acc_test"]))
    summary = folder.read_summary()
    assert int(best["epoch"]) < 3 == summary["epoch_selected"]
    assert summary["sparsity_achieved"] == pytest.approx(0.97, abs=1e-3)


def test_batch_norm_is_recalibrated_where_the_mask_has_changed(tmp_path):
    words = (
        "--mode",
        "gradual",
        "--net_name",
        "resnet",
        "--depth",
        8,
        "--widen_factor",
        1,
        "--mask_begin",
        11,
        "--mask_end",
        15,
    )
    words += ("--mask_every", 2, "--n_epochs", 3, "--loader_name", "digits")
    folder = finished(tmp_path, *words, "--recalibrate_bn", 1)
    assert [row["recalibrated"] for row in folder.history().rows] == ["0", "0", "1", "0"]
    plain = finished(tmp_path, *words)
    assert [row["recalibrated"] for row in plain.history().rows] == [""] * 4
    mine, theirs = (float(f.history().rows[2]["loss_train"]) for f in (folder, plain))
    assert mine != theirs


# --------------------------------------------------------------------------------------------------------- cost


def test_training_costs_what_its_real_steps_do(tmp_path):

    for growth, dense_gradient in (("gradient", 1), ("random", 0)):
        config = config_of(mode="dynamic", growth=growth, prune_ratio=0.9, mask_every=5, mask_end=21, allocation="uniform")
        recorder, trainer = trained(config)
        uses, sizes = uses_of_weights(trainer.network, (64,)), sizes_of_weights(trainer.network)
        active = macs_of(uses, sizes | {name: int(a.sum()) for name, a in recorder.masks[0].items()})
        dense = macs_of(uses, sizes)
        expected = 3 * 960 * active + dense_gradient * 4 * 32 * (dense - active)  # updates at steps 5, 10, 15 and 20
        assert trainer.mask_owner.meter.macs == expected
        assert trainer.mask_owner.meter.macs_dense == 3 * 960 * dense


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gradual", "--mask_end", 1), "--mask_end 1: the last change comes after 30 steps, and there are only 30"),
        (("dynamic", "--mask_end", 31), "--mask_end 31: the last change comes after 31 steps, and there are only 30"),
        (("gradual", "--mask_begin", 20, "--mask_end", 0.5), "--mask_begin 20 is after --mask_end 0.5: 20 and 15 of 30 steps"),
        (
            ("dynamic", "--prune_ratio", 0),
            "--mode dynamic --prune_ratio 0: nothing is pruned, so that no weight could come back",
        ),
        (("dynamic", "--drop_fraction", 1.5), "--drop_fraction 1.5: must be at least 0 and at most 1"),
        (("gradual", "--mask_every", 0), "--mask_every 0: must be at least 1"),
        (
            ("gradual", "--growth", "random"),
            "--growth random has no effect with --mode gradual; it acts with --mode dynamic or",
        ),
        (("sparse-scratch", "--mask_every", 5), "--mask_every 5 has no effect with --mode sparse-scratch; it acts with"),
        (("dense", "--mask_control", "shuffle"), "--mask_control shuffle has no effect with --mode dense"),
        (
            ("at-init", "--prune_method", "snip", "--limit_train", 60),
            "reads 10 training examples of every class, but one has 6",
        ),
        (
            ("gradual", "--prune_method", "grasp", "--score_batches", 11),
            "--score_batches 11: the 320 training examples make 10",
        ),
        (("at-init", "--allocation", "uniform_plus", "--prune_ratio", 0.9), "--allocation uniform_plus keeps the first layer"),
        (("sparse-scratch", "--mask_control", "reinit"), "--mask_control reinit: --mode sparse-scratch draws its weights anew"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, message, tmp_path):
    found = run(tmp_path, "--mode", *words)
    assert found.code == 2
    assert message in found.line
    assert not list(tmp_path.rglob("config.yaml"))


def test_the_allocation_of_a_mode_needs_no_flag(tmp_path):
    given = [
        ("--mode", "dynamic"),
        ("--mode", "dynamic", "--allocation", "erk"),
        ("--mode", "dynamic", "--allocation", "global"),
    ]
    first, same, other = (finished(tmp_path, *words) for words in given)
    assert first == same != other


def test_mask_controls_shuffle_within_layers_or_draw_other_weights(tmp_path):
    words = ("--mode", "at-init", "--prune_ratio", 0.8, "--save_epochs", "all")
    plain, mixed, redrawn = (
        load_stored(finished(tmp_path, *words, "--mask_control", control).epoch_state(0))
        for control in ("none", "shuffle", "reinit")
    )
    for name, active in plain.mask.items():
        assert int(mixed.mask[name].sum()) == int(active.sum())
        assert not torch.equal(mixed.mask[name], active)
        assert torch.equal(redrawn.mask[name], active)
        assert not torch.equal(redrawn.weights[name], plain.weights[name])
        both = active & mixed.mask[name]
        assert torch.equal(mixed.weights[name][both], plain.weights[name][both])


def test_the_network_that_was_pruned_is_the_one_that_is_trained(tmp_path):

    folder = finished(tmp_path, "--mode", "at-init", "--prune_ratio", 0.8, "--save_epochs", "all")
    stored = load_stored(folder.epoch_state(0))
    network = build_network(NetworkConfig(), (64,), 10, stream(42, "init"))
    mask = prune(network, stream(42, "prune"), prune_ratio=0.8, head="layers.4")
    for name, active in mask.items():
        assert torch.equal(stored.mask[name], active)
        assert torch.equal(stored.weights[name], network.get_parameter(name) * active)


@pytest.fixture
def rigl_scheduler(monkeypatch) -> type:
    """rigl_torch's. Of torchvision, which need not import here, it wants two classes to tell blocks by."""
    blocks = types.SimpleNamespace(Bottleneck=type("Bottleneck", (), {}), BasicBlock=type("BasicBlock", (), {}))
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=types.SimpleNamespace(resnet=blocks)))
    return importlib.import_module("rigl_torch.RigL").RigLScheduler


@pytest.mark.parametrize("share", [0.3, 0.07])
def test_one_update_is_that_of_rigl_torch(rigl_scheduler, share):
    """Equal weights, mask and dense gradients of three layers; one of theirs is dense and stays so."""
    generator = stream(1, "rigl")
    network = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
    theirs = rigl_scheduler(
        network, torch.optim.SGD(network.parameters(), 0.1), dense_allocation=0.2, T_end=10**6, delta=1, alpha=share,
        ignore_linear_layers=False, grad_accumulation_n=0.5,
    )  # fmt: skip
    layers = [1, 2]  # the first is dense in their uniform distribution
    names = [f"{2 * layer}.weight" for layer in layers]
    mask = Mask({name: theirs.backward_masks[layer].clone() for name, layer in zip(names, layers, strict=True)})
    gradients = {name: torch.randn(active.shape, generator=generator) for name, active in mask.items()}
    for layer, name in zip(layers, names, strict=True):
        theirs.backward_hook_objects[layer].dense_grad = gradients[name]
        theirs.W[layer].grad = gradients[name].clone()
    numbers = {name: int(share * int(active.sum())) for name, active in mask.items()}
    sizes = {name: network.get_parameter(name).detach().abs() for name in names}
    after, grown = swap(mask, numbers, sizes, GROWTHS["gradient"].scores(gradients, generator))
    theirs._rigl_step()  # at step 0 their cosine gives alpha
    for layer, name in zip(layers, names, strict=True):
        assert torch.equal(after[name], theirs.backward_masks[layer])
        assert int(grown[name].sum()) == numbers[name] > 0

"""Runs whose training steps compute active weights alone are the dense runs to rounding, and resume to the same bits."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from helper.metrics.evaluation import evaluate
from helper.metrics.macs import uses_of_weights
from helper.pruner import prune
from helper.sparse.choice import chosen_layers, is_worth_it
from helper.sparse.compiler import NoCompiler
from helper.sparse.view import View
from loader.main import DataConfig, load_dataset
from network.mlp import MLP
from network.resnet import ResNet
from optim import sparse_step
from optim.callbacks.callback import Callback
from optim.callbacks.evaluation import Evaluate
from optim.checkpoint import FROM_THE_START, load_state, save_state
from optim.config import TrainConfig
from optim.measuring import evaluate_training
from optim.model import load_stored, start
from optim.trainer import Trainer
from tests.outcome import TIMING
from tests.stops import signal_at, sigterm_after
from tests.test_updating import config_of, finished, run, trained

pytestmark = pytest.mark.compiler
RESNET = {"net_name": "resnet", "depth": 8, "widen_factor": 1, "prune_ratio": 0.9, "lr": 0.01}
WIDE = ("--hidden_dims", "1024-1024", "--n_epochs", 1, "--lr_milestones", 1, "--save_epochs", "none", "--batch_size", 160)
NUMBERS = ("weight_norm", "grad_mean_norm", "grad_std_norm", "snr", "n_batches")
MODES = {
    "at-init": {"mode": "at-init"},
    "gradual": {"mode": "gradual", "mask_begin": 2, "mask_end": 12, "mask_every": 5},
    "RigL": {"mode": "dynamic", "growth": "gradient", "mask_every": 4, "mask_end": 12},
}


def words(flags: dict[str, object]) -> list[object]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


class Steps(Callback):
    """Which steps' logits came from a view, and the loss of each."""

    def __init__(self, monkeypatch) -> None:
        self.sparse: list[bool] = []
        usual, forward = View.__call__, Trainer.logits

        def logits(trainer: Trainer, inputs: Tensor) -> Tensor:
            self.sparse.append(False)
            return forward(trainer, inputs)

        def by_view(view: View, x: Tensor) -> Tensor:
            self.sparse[-1] = True
            return usual(view, x)

        monkeypatch.setattr(Trainer, "logits", logits)
        monkeypatch.setattr(View, "__call__", by_view)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


@pytest.mark.parametrize("mode", MODES)
def test_a_run_with_sparse_steps_is_the_dense_run_to_rounding(mode, monkeypatch):
    flags = RESNET | MODES[mode] | {"limit_train": 160, "n_epochs": 3, "lr_milestones": "2"}
    steps = Steps(monkeypatch)
    dense_masks, dense = trained(config_of(**flags, sparse_step="0"))
    assert not any(steps.sparse)
    steps.sparse.clear()
    sparse_masks, sparse = trained(config_of(**flags, sparse_step="1"))
    n_steps = 3 * dense.steps_per_epoch
    # steps before anything is pruned, and those that read the gradients of pruned weights
    dense_ones = {"gradual": list(range(7)), "RigL": [4, 8], "at-init": []}
    assert [step for step in range(n_steps) if not steps.sparse[step]] == dense_ones[mode]
    for a, b in zip(sparse_masks.masks, dense_masks.masks, strict=True):  # of nearly equal weights another one may be dropped
        assert a.n_active == b.n_active
        assert sum(int((a[name] ^ b[name]).sum()) for name in b) < 0.002 * b.n_active
    a, b = weights(sparse.network), weights(dense.network)
    assert (a - b).norm() < 1e-3 * b.norm()
    assert not torch.equal(a, b)  # so that something was computed in another way


def test_weights_that_grow_at_random_need_no_dense_step(monkeypatch):
    steps = Steps(monkeypatch)
    flags = RESNET | MODES["RigL"] | {"growth": "random", "limit_train": 160, "sparse_step": "1"}
    recorder, _ = trained(config_of(**flags))
    assert recorder.versions[-1] == 2
    assert all(steps.sparse)


@pytest.mark.parametrize(("growth", "moved"), [("random", False), ("gradient", True)])
@pytest.mark.parametrize("mode", [{"mode": "dynamic"}, {"mode": "granet", "mask_begin": 0}])
@pytest.mark.parametrize("optimizer", [{}, {"optimizer_name": "adam"}, {"clip_norm": 0.1, "nesterov": 1, "ema": 0.5}])
def test_the_step_of_a_change_moves_what_comes_by_its_gradient_alone_however_steps_are_computed(growth, moved, mode, optimizer):
    """What comes at random has no gradient in a sparse step, and takes none of a dense one either."""
    flags = RESNET | mode | optimizer | {"growth": growth, "mask_every": 2, "mask_end": 5, "limit_train": 96, "n_epochs": 2}

    def grown_weights(sparse: str) -> tuple[Tensor, Tensor]:
        grown = []

        class Look(Callback):
            def on_step(self, trainer: Trainer) -> None:
                owner = trainer.mask_owner
                if owner.version != self.version:
                    places = [owner.mask[name] & ~self.mask[name] for name in owner.mask]
                    grown.append(torch.cat([w.detach()[at] for w, at in zip(owner.weights, places, strict=True)]))
                self.mask, self.version = owner.mask, owner.version

            def on_start(self, trainer: Trainer) -> None:
                self.mask, self.version = trainer.mask_owner.mask, trainer.mask_owner.version

        config = config_of(**flags, sparse_step=sparse, lr_milestones="1")
        dataset = load_dataset(config.data)
        network, mask, _ = start(config, dataset, None)
        callbacks = [config.mode_spec.updater(config), Look()]
        trainer = Trainer(network, dataset, config.train, seed=1, callbacks=callbacks, mask=mask)
        trainer.fit()
        return torch.cat(grown), weights(trainer.network)

    (dense_grown, dense), (sparse_grown, sparse) = grown_weights("0"), grown_weights("1")
    for values in (dense_grown, sparse_grown):
        assert len(values) > 50
        assert (values != 0).float().mean() == pytest.approx(float(moved), abs=0.02)  # of some, the gradient is zero
    assert (sparse - dense).norm() < 1e-3 * dense.norm()


@contextlib.contextmanager
def in_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


WAYS = [("1", "1"), ("1", "0"), ("0", "1"), ("auto", "0"), ("auto", "1")]  # --sparse_step of a run's begin, and of its resuming


@pytest.mark.parametrize(("ways", "threads"), [*((ways, 1) for ways in WAYS), (("1", "0"), 2)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_run_goes_on_as_it_began_and_ends_with_the_same_bits(mode, ways, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_step, "is_worth_it", lambda *args: True)
    line, (begun, resumed) = words(RESNET | MODES[mode] | {"save_snr": 1}), ways
    with in_threads(threads):
        whole = finished(tmp_path / "whole", *line, "--sparse_step", begun)
        with sigterm_after(1, 3) if mode != "gradual" else sigterm_after(0, 1):  # the latter before anything is pruned
            assert run(tmp_path / "stopped", *line, "--sparse_step", begun).code == 75
        stopped = finished(tmp_path / "stopped", *line, "--sparse_step", resumed)
    log = stopped.log.read_text()
    assert "resuming after" in log
    assert (f"the run began with --sparse_step {begun} and goes on with it" in log) == (begun != resumed)
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert untimed(stopped.history().rows) == untimed(whole.history().rows)
    assert stopped.snr().rows == whole.snr().rows
    summary = stopped.read_summary().get("sparse_step")
    assert summary == whole.read_summary().get("sparse_step")
    assert (summary is None) == (begun == "0")
    if summary:
        assert summary["asked"] == begun
        assert "blocks.0.conv1" in summary["layers"]
        assert "fc" not in summary["layers"]


def untimed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def test_a_resumed_run_needs_the_kernels_that_it_has_had(tmp_path, monkeypatch):
    line = words(RESNET | MODES["at-init"])
    whole = finished(tmp_path / "whole", *line, "--sparse_step", 1)
    with sigterm_after(1, 3):
        assert run(tmp_path / "stopped", *line, "--sparse_step", 1).code == 75
    with monkeypatch.context() as without:
        without.setattr(sparse_step, "kernels", fail)
        for way in ("auto", "0"):
            found = run(tmp_path / "stopped", *line, "--sparse_step", way)
            assert found.code == 1
            assert "the run began with sparse steps, and can go on with these alone: no C++ compiler is found" in found.err
            assert found.err.splitlines()[-1].endswith(f"install g++; or {FROM_THE_START}")
    assert finished(tmp_path / "stopped", *line, "--sparse_step", 0).model.read_bytes() == whole.model.read_bytes()


@pytest.mark.parametrize("mode", ["at-init", "gradual"])
def test_a_run_that_began_without_a_compiler_stays_dense_where_there_is_one(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_step, "is_worth_it", lambda *args: True)
    line = words(RESNET | MODES[mode])
    dense = finished(tmp_path / "dense", *line, "--sparse_step", 0)
    with monkeypatch.context() as without, sigterm_after(1, 3):
        without.setattr(sparse_step, "kernels", fail)
        assert run(tmp_path / "stopped", *line, "--sparse_step", "auto").code == 75
    stopped = finished(tmp_path / "stopped", *line, "--sparse_step", "auto")
    assert stopped.model.read_bytes() == dense.model.read_bytes()
    assert stopped.read_summary()["sparse_step"] == {"asked": "auto", "layers": []}


def test_a_resumed_run_keeps_its_layers_where_the_rule_has_become_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_step, "is_worth_it", lambda *args: True)
    line = words(RESNET | MODES["at-init"])
    whole = finished(tmp_path / "whole", *line, "--sparse_step", "auto")
    with sigterm_after(1, 3):
        assert run(tmp_path / "stopped", *line, "--sparse_step", "auto").code == 75
    monkeypatch.setattr(sparse_step, "chosen_layers", lambda *args: {})
    stopped = finished(tmp_path / "stopped", *line, "--sparse_step", "auto")
    assert stopped.model.read_bytes() == whole.model.read_bytes()
    assert stopped.read_summary()["sparse_step"] == whole.read_summary()["sparse_step"]


def altered_checkpoint(root: Path, line: list[object], change: Callable[[dict[str, Any]], object]) -> None:
    """Stop a run and alter its state."""
    with sigterm_after(1, 3):
        assert run(root, *line).code == 75
    (path,) = root.rglob("checkpoint.pt")
    state = load_state(path)
    change(state)
    save_state(path, state)


def test_a_checkpoint_from_before_there_were_sparse_steps_goes_on_densely(tmp_path):
    line = words(RESNET | MODES["at-init"])
    dense = finished(tmp_path / "dense", *line, "--sparse_step", 0)
    altered_checkpoint(tmp_path / "old", [*line, "--sparse_step", 0], lambda state: state.pop("sparse_step"))
    assert finished(tmp_path / "old", *line, "--sparse_step", 1).model.read_bytes() == dense.model.read_bytes()


@pytest.mark.parametrize("change", [{"layers": ["blocks.9.conv1"]}, {"layers": None}, {"asked": "2"}])
def test_a_checkpoint_of_other_layers_is_refused(change, tmp_path):
    line = [*words(RESNET | MODES["at-init"]), "--sparse_step", 1]
    altered_checkpoint(tmp_path, line, lambda state: state["sparse_step"].update(change))
    found = run(tmp_path, *line)
    assert found.code == 1
    assert "is no state of this run: " in found.err.splitlines()[-1]


@pytest.mark.parametrize("mode", MODES)
def test_passes_after_an_epoch_are_sparse_under_the_mask_of_then_and_give_what_dense_ones_do(mode, monkeypatch, tmp_path):
    usual, compared = Evaluate.on_epoch, []

    def compare(self: Evaluate, trainer: Trainer) -> None:
        before = counted.examples
        usual(self, trainer)
        compared.append(counted.examples - before)
        args = (trainer.network, trainer.mask_owner.mask, trainer.dataset, trainer.config.batch_size, trainer.seed)
        means, snr = evaluate_training(*args, snr=True)
        test = evaluate(trainer.network, trainer.dataset.batches(trainer.dataset.test, 17))
        for name in ("loss", "acc", "entropy"):
            assert trainer.row[f"{name}_train"] == pytest.approx(means[name], rel=1e-5)
        assert trainer.row["loss_test"] == pytest.approx(test["loss"], rel=1e-5)
        assert trainer.row["acc_test"] == test["acc"]
        rows = [row for row in self.snr.rows if int(row["epoch"]) == trainer.epoch]
        assert [row["layer"] for row in rows] == [row["layer"] for row in snr]
        for row, other in zip(rows, snr, strict=True):
            assert [float(row[k]) for k in NUMBERS] == pytest.approx([other[k] for k in NUMBERS], rel=1e-4, nan_ok=True)

    monkeypatch.setattr(Evaluate, "on_epoch", compare)
    line = words(RESNET | MODES[mode] | {"sparse_step": 1, "save_snr": 1})
    with signal_at(ResNet) as counted:
        finished(tmp_path, *line)
    before = 320 + 50 if mode == "gradual" else 2  # nothing is pruned before the first change; two show that the view is right
    assert compared == [before, 0, 0, 0]


def test_recalibration_takes_the_view_and_finds_the_same_statistics(tmp_path):
    line = words(RESNET | MODES["RigL"] | {"n_epochs": 2, "lr_milestones": 1, "recalibrate_bn": 1, "lr": 1e-4})
    sparse, dense = (finished(tmp_path / way, *line, "--sparse_step", way, "--overwrite", 1) for way in "10")
    assert [row["recalibrated"] for row in sparse.history().rows] == ["0", "1", "0"]
    found, expected = (load_stored(folder.model).weights for folder in (sparse, dense))
    statistics = [name for name in found if "running" in name]
    assert statistics
    for name in statistics:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_measurements_after_training_are_of_the_dense_network(tmp_path, monkeypatch):
    line = words(RESNET | MODES["at-init"] | {"n_epochs": 1, "lr_milestones": 1})
    folder = finished(tmp_path, *line, "--sparse_step", 1)
    monkeypatch.setattr(View, "__call__", None)
    finished(tmp_path, *line, "--sparse_step", 1, "--save_snr", 1, "--save_jacobian", 1)
    rows = folder.snr().rows
    assert {row["epoch"] for row in rows} == {"0", "1"}
    assert {row["metric"] for row in folder.metrics().rows} == {"jacobian"}


def test_the_flag_makes_no_other_run(tmp_path):
    line = words({"mode": "at-init", "n_epochs": 2})
    dense = finished(tmp_path, *line, "--sparse_step", 0)
    assert finished(tmp_path, *line).path == finished(tmp_path, *line, "--sparse_step", 1).path == dense.path
    assert "sparse_step" not in dense.read_summary()


def test_a_dense_run_has_no_sparse_steps(tmp_path):
    folder = finished(tmp_path, "--mode", "dense", "--sparse_step", 1)
    assert "sparse_step" not in folder.read_summary()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"compile": 1}, "--sparse_step 1 --compile 1"),
        ({"reg_type": "jacobian"}, "--sparse_step 1 --reg_type jacobian"),
        ({"device": "cuda"}, "--sparse_step 1 --device cuda"),
        ({"sparse_step": "2"}, "--sparse_step 2"),
    ],
)
def test_what_sparse_steps_cannot_have_is_refused(refuse, flags, said):
    assert said in refuse(*words({"mode": "at-init", "sparse_step": 1} | flags))


def test_synchronised_batch_norm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_step, "world_size", lambda: 2)
    found = run(tmp_path, *words(RESNET | MODES["at-init"]), "--sparse_step", 1)
    assert found.code == 2
    assert "--sparse_step 1: BatchNorm is synchronised between processes" in found.err
    assert not list(tmp_path.iterdir())


def fail() -> None:
    raise NoCompiler("no C++ compiler is found: install g++")


def test_without_a_compiler_a_run_is_refused_or_goes_on_densely(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_step, "kernels", fail)
    monkeypatch.setattr(sparse_step, "is_worth_it", lambda *args: True)
    line = words({"mode": "at-init"})
    found = run(tmp_path / "one", *line, "--sparse_step", 1)
    assert found.code == 1
    assert found.err.splitlines()[-1].endswith("--sparse_step 1: no C++ compiler is found: install g++, or use --sparse_step 0")
    auto, dense = finished(tmp_path / "auto", *line, "--sparse_step", "auto"), finished(tmp_path / "dense", *line)
    log = auto.log.read_text()
    assert log.count("steps are dense: no C++ compiler is found: install g++") == 1
    assert auto.model.read_bytes() == dense.model.read_bytes()
    assert auto.read_summary()["sparse_step"] == {"asked": "auto", "layers": []}


def test_a_run_without_the_flag_takes_sparse_steps_where_they_pay_and_says_so_once(tmp_path):
    folder = finished(tmp_path, "--mode", "at-init", "--prune_ratio", 0.95, *WIDE)
    lines = [line for line in folder.log.read_text().splitlines() if "sparse steps" in line]
    assert len(lines) == 1
    assert re.search(r"sparse steps: 2 of 3 layers, kernels (cached|compiled in \d+\.\d s)$", lines[0])
    assert folder.read_summary()["sparse_step"] == {"asked": "auto", "layers": ["layers.0", "layers.2"]}


@pytest.mark.parametrize(
    "flags",
    [
        (*WIDE, "--prune_ratio", 0.3),
        (*WIDE, "--prune_ratio", 0.95, "--reg_type", "jacobian", "--n_epochs", 2),
        (*WIDE, "--prune_ratio", 0.95, "--precision", "bf16"),
        ("--prune_ratio", 0.99),
        ("--net_name", "mnist_lenet", "--lr", 0.01),
        ("--net_name", "resnet", "--depth", 8, "--widen_factor", 1, "--lr", 0.01),
        (*WIDE, "--prune_ratio", 0.0),
    ],
    ids=["too dense", "jacobian", "bf16", "small", "lenet", "resnet", "not pruned"],
)
def test_where_auto_is_dense_nothing_is_compiled_or_traced_and_the_bits_are_those_of_dense_steps(flags, tmp_path, monkeypatch):
    dense = finished(tmp_path / "dense", "--mode", "at-init", *flags, "--sparse_step", 0)
    monkeypatch.setattr(sparse_step, "kernels", None)
    monkeypatch.setattr(sparse_step, "View", None)
    folder = finished(tmp_path / "auto", "--mode", "at-init", *flags)
    assert "sparse steps" not in folder.log.read_text()
    assert ("steps are dense: --reg_type jacobian is differentiated twice" in folder.log.read_text()) == ("jacobian" in flags)
    assert folder.log.read_text().count("steps are dense") == ("jacobian" in flags)
    assert folder.model.read_bytes() == dense.model.read_bytes()


def test_a_network_that_does_more_than_its_calls_say_stays_dense(caplog):
    """A layer's hook is not traced."""
    network = ResNet(1, 10, 8)
    network.blocks[1].conv1.register_forward_hook(lambda module, args, output: 2 * output)
    trainer = trainer_of(network, sparse_step="auto")
    assert trainer.sparse_step.view_for(trainer.mask_owner) is None
    assert not trainer.sparse_step.possible
    assert "steps are dense: ResNet does more than its traced calls say" in caplog.text
    forced = trainer_of(network, sparse_step="1")
    with pytest.raises(RuntimeError, match="--sparse_step 1: ResNet does more than its traced calls say"):
        forced.sparse_step.view_for(forced.mask_owner)


def trainer_of(network: nn.Module, **options: Any) -> Trainer:
    """One whose layers are chosen as if that was worth it."""
    mask = prune(network, torch.Generator().manual_seed(0), prune_ratio=0.9)
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=100))
    with mock.patch.object(sparse_step, "is_worth_it", return_value=True):
        trainer = Trainer(network, dataset, TrainConfig(**options), seed=0, mask=mask)
        trainer.sparse_step.mask = trainer.mask_owner.mask
        trainer.sparse_step.layers = trainer.sparse_step.chosen(trainer.mask_owner)
    return trainer


def test_a_run_of_one_process_goes_on_densely_where_batch_norm_is_synchronised(caplog):
    """In several processes nothing promises the same bits, and a line says so; asked for, it is an error."""
    began = trainer_of(ResNet(1, 10, 8), sparse_step="1")
    state = began.sparse_step.state(began.mask_owner)
    assert state["layers"]
    for way in ("auto", "0"):
        trainer = trainer_of(ResNet(1, 10, 8), sparse_step=way)
        trainer.sparse_step.load_state(state, trainer.mask_owner)
        with mock.patch.object(sparse_step, "world_size", return_value=2):
            assert trainer.sparse_step.view_for(trainer.mask_owner) is None
        assert caplog.records[-1].getMessage().startswith("steps are dense: BatchNorm is synchronised between processes")


def test_a_finished_run_is_found_where_there_is_no_compiler(tmp_path, monkeypatch):
    line = words(RESNET | MODES["at-init"] | {"sparse_step": 1})
    folder = finished(tmp_path, *line)
    monkeypatch.setattr(sparse_step, "kernels", fail)
    assert finished(tmp_path, *line).path == folder.path


def test_a_run_that_was_to_be_sparse_is_not_resumed_densely_before_its_first_mask(tmp_path, monkeypatch):
    line = words(RESNET | MODES["gradual"])
    with sigterm_after(0, 1):
        assert run(tmp_path, *line, "--sparse_step", 1).code == 75
    monkeypatch.setattr(sparse_step, "kernels", fail)
    found = run(tmp_path, *line, "--sparse_step", 0)
    assert found.code == 1
    assert "the run began with sparse steps, and can go on with these alone" in found.line


def test_bf16_steps_are_left_alone_by_auto():
    network = MLP([3, 4, 2])
    assert not sparse_step.SparseStep(network, TrainConfig(sparse_step="auto", precision="bf16"), (3,)).possible
    assert sparse_step.SparseStep(network, TrainConfig(sparse_step="1", precision="bf16"), (3,)).possible


# -------------------------------------------------------------------------------------------------------- the rule


def masks(network: nn.Module, density: float, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1 and name not in but}
    return {name: torch.rand(p.shape, generator=generator) < density for name, p in weights.items()}


def worth(network: nn.Module, shape: tuple[int, ...], density: float) -> bool:
    uses, masked = uses_of_weights(network, shape), masks(network, density)
    return is_worth_it(network, chosen_layers(network, masked, uses), uses, 128)


def test_auto_takes_sparse_steps_where_they_are_clearly_cheaper():
    resnet, wide, narrow = ResNet(3, 10, 20, 1), MLP([3072, 2048, 2048, 10]), MLP([64, 128, 64, 10])
    assert [worth(resnet, (3, 32, 32), density) for density in (0.02, 0.1, 0.9)] == [True, True, False]
    assert [worth(wide, (3072,), density) for density in (0.02, 0.1, 0.5)] == [True, True, False]
    assert not worth(narrow, (64,), 0.02)  # calls cost more than weights


def test_layers_are_chosen_by_their_density_and_what_lies_between_stays_in_the_layout():
    network = ResNet(3, 10, 20, 4)
    uses = uses_of_weights(network, (3, 32, 32))
    dense_one = "blocks.8.conv2.weight"
    chosen = chosen_layers(network, masks(network, 0.1, but=("conv.weight", dense_one, "fc.weight")), uses)
    assert "conv" in chosen  # cheaper than converting for it
    assert chosen["conv"].all()
    assert "blocks.8.conv2" not in chosen
    assert "fc" not in chosen
    assert len(chosen) == 20

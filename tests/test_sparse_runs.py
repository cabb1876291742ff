"""Whole runs with sparse steps: the dense science to rounding, in every mode, also with what is not usual."""

import copy
import logging
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.pruner import prune
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.batches import Batch
from optim.callbacks.watching import Progress
from optim.config import TrainConfig
from optim.model import load_stored
from optim.modes import MODES
from optim.step_gradient import Passed
from optim.trainer import Trainer
from tests.test_distributed import InDoublePrecision
from tests.test_sparse_step import in_threads, words
from tests.test_updating import finished, run

pytestmark = pytest.mark.compiler
NETWORKS = {
    "mlp": {"hidden_dims": "128-64"},
    "mnist_lenet": {},
    "resnet": {"depth": 8, "widen_factor": 1},
}
UNUSUAL = ("--save_snr", 0, "--lr", 0.01, "--save_epochs", "none")


class Recording(Trainer):
    """Keeps the mean loss of every step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.losses: list[float] = []
        super().__init__(*args, **options)

    def add_up(self, batch: Batch, passed: Passed) -> None:
        self.losses.append(passed.losses.detach().double().mean().item())
        super().add_up(batch, passed)


def network_of(name: str, seed: int = 0) -> nn.Module:
    return build_network(NetworkConfig(net_name=name, **NETWORKS[name]), (1, 8, 8), 10, stream(seed, "init"))


def losses(
    network: nn.Module, mask: Mask, *, double: bool = False, threads: int = 1, limit_train: int = 400, **options: Any
) -> Tensor:
    """(steps,) the mean loss of every training step on digits, from a network that stays as it is."""
    network = copy.deepcopy(network)
    if double:
        network, mask = InDoublePrecision(network), Mask({f"network.{name}": active for name, active in mask.items()})
    network.to(memory_format=torch.channels_last)
    flags = {"n_epochs": 4, "batch_size": 32, "lr": 0.1, "lr_milestones": "3"} | options
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=limit_train))
    trainer = Recording(network, dataset, TrainConfig(**flags), seed=3, mask=mask)
    with in_threads(threads):
        trainer.fit()
    assert bool(trainer.sparse_step.layers) == (options["sparse_step"] == "1")
    return torch.tensor(trainer.losses, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_fifty_steps_stray_no_further_from_exact_ones_than_dense_steps_do(name, seed):
    """Exact: in float64. Dense steps stray by rounding, and by that of another number of threads."""
    network = network_of(name, seed)
    mask = prune(network, stream(0, "prune"), prune_ratio=0.9)
    exact = losses(network, mask, double=True, sparse_step="0")[:50]
    assert exact[-1] < 0.9 * exact[0]  # it learns
    dense, two_threads = (losses(network, mask, threads=n, sparse_step="0")[:50] for n in (1, 2))
    strayed = max(float((a - b).abs().max()) for a, b in [(dense, exact), (two_threads, dense)])
    sparse = losses(network, mask, sparse_step="1")[:50]
    assert float((sparse - exact).abs().max()) <= 3 * strayed + 1e-6
    assert not torch.equal(sparse, dense)  # so that something was computed in another way


@pytest.mark.parametrize("mode", [name for name, spec in MODES.items() if spec.has_mask])
def test_every_mode_with_masks_takes_sparse_steps_and_prunes_as_many_weights(mode, tmp_path):
    changes = {"mask_every": 5} if MODES[mode].updater else {}
    rounds = {"prune_step": 0.5, "prune_ratio": 0.75} if MODES[mode].in_rounds else {"prune_ratio": 0.8}
    line = words({"mode": mode, "lr": 0.05, "save_snr": 1} | changes | rounds)
    dense, sparse = (finished(tmp_path / way, *line, "--sparse_step", way) for way in "01")
    assert sparse.path.relative_to(tmp_path / "1") == dense.path.relative_to(tmp_path / "0")
    masks = [load_stored(folder.model).mask for folder in (dense, sparse)]
    assert masks[0].n_active == masks[1].n_active
    summaries = [folder.read_summary() for folder in (dense, sparse)]
    assert summaries[1]["sparse_step"]["layers"]
    assert summaries[1]["loss_test"] == pytest.approx(summaries[0]["loss_test"], rel=0.05)
    assert summaries[1]["training_macs"] == pytest.approx(summaries[0]["training_macs"], rel=1e-3)
    rounds = {path.parent.name for path in (tmp_path / "1").rglob("summary.json")}
    assert rounds == {path.parent.name for path in (tmp_path / "0").rglob("summary.json")}


def spoiled(value: float, *, active: bool):
    """Inside, a run sets a weight that is active or not to a value, after its third step of the second epoch."""
    usual = Progress.on_step

    def on_step(self: Progress, trainer: Trainer) -> None:
        usual(self, trainer)
        if (trainer.epoch, trainer.step) == (1, 3):
            trainer.mask_owner.write_back()
            (weight, *_), (mask, *_) = trainer.mask_owner.weights, trainer.mask_owner.mask.values()
            with torch.no_grad():
                weight[tuple((mask == active).nonzero()[0])] = value

    return mock.patch.object(Progress, "on_step", on_step)


@pytest.mark.parametrize("active", [True, False], ids=["active", "pruned"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_a_weight_that_is_not_finite_ends_a_run_as_it_ends_a_dense_one(net, value, active, tmp_path):
    line, ends = words({"mode": "at-init", "net_name": net, "lr": 0.01} | NETWORKS[net]), {}
    for way in "01":
        with spoiled(value, active=active):
            found = run(tmp_path / way, *line, "--sparse_step", way)
        (path,) = (tmp_path / way).rglob("checkpoint.pt")
        assert not list((tmp_path / way).rglob("summary.json"))
        ends[way] = found.code, found.line, torch.load(path, weights_only=True)["epoch"]
    assert ends["0"] == ends["1"]
    assert ends["0"][0] == 1
    assert "is not finite in epoch 2" in ends["0"][1]
    assert ends["0"][2] == 1  # the last good checkpoint


def test_a_run_that_diverges_ends_as_a_dense_one_does(tmp_path):
    found = [run(tmp_path / way, "--mode", "at-init", "--lr", 1e9, "--sparse_step", way) for way in "01"]
    assert [end.code for end in found] == [1, 1]
    assert found[0].line == found[1].line


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_of_one_example(name):
    network = network_of(name)
    mask = prune(network, stream(0, "prune"), prune_ratio=0.9)
    options = {"batch_size": 1, "limit_train": 10, "n_epochs": 1, "lr_milestones": "1", "lr": 0.005}
    exact = losses(network, mask, double=True, sparse_step="0", **options)
    sparse = losses(network, mask, sparse_step="1", **options)
    assert torch.allclose(sparse, exact, rtol=1e-4)
    assert len(sparse) == 10


@pytest.mark.parametrize(("name", "layer"), [("mlp", "layers.0"), ("mlp", "layers.2"), ("resnet", "blocks.1.conv1"),
                                             ("mnist_lenet", "conv2")])  # fmt: skip
@pytest.mark.parametrize("left", [0, 1], ids=["nothing", "one weight"])
def test_a_layer_pruned_to_nothing_or_not_at_all(name, layer, left, caplog):
    """The layer has no weight left, or one; the first of the others is not pruned."""
    network = network_of(name)
    masks = dict(prune(network, stream(0, "prune"), prune_ratio=0.9))
    masks[f"{layer}.weight"] = torch.zeros_like(masks[f"{layer}.weight"])
    masks[f"{layer}.weight"].view(-1)[:left] = True
    whole = next(other for other in masks if other != f"{layer}.weight")
    masks[whole] = torch.ones_like(masks[whole])
    options = {"n_epochs": 1, "lr_milestones": "1", "lr": 0.02}
    exact = losses(network, Mask(masks), double=True, sparse_step="0", **options)
    with caplog.at_level(logging.WARNING):
        sparse = losses(network, Mask(masks), sparse_step="1", **options)
    assert torch.allclose(sparse, exact, rtol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize(
    "flags", [("--batch_size", 1, "--limit_train", 10), ("--prune_ratio", 0.999), ("--prune_ratio", 0.001)]
)
def test_runs_with_what_is_not_usual_have_the_numbers_of_dense_ones(flags, tmp_path):
    line = ("--mode", "at-init", "--n_epochs", 1, "--lr_milestones", 1, *UNUSUAL, *flags)
    dense, sparse = (finished(tmp_path / way, *line, "--sparse_step", way).read_summary() for way in "01")
    for name in ("loss_train", "loss_test", "acc_test"):
        assert sparse[name] == pytest.approx(dense[name], rel=1e-5)

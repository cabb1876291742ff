"""Several processes take sparse steps as one does, all of them or none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.processes.group import rank
from helper.sparse.compiler import NoCompiler
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim import sparse_step
from optim.config import TrainConfig
from optim.model import load_stored
from optim.trainer import Trainer
from tests.outcome import TIMING
from tests.several import printed, start_runs, together
from tests.test_distributed import InDoublePrecision, finish, interrupt, rows, two

pytestmark = pytest.mark.compiler
MLP = ("-ln", "digits", "-nt", "mlp", "-hd", "24-16", "--figures", 0, "-bs", 100, "--save_fisher", 0, "--sparse_step", 1)
SMALL = {"n_epochs": 2, "batch_size": 23, "lr": 0.02, "lr_milestones": "1"}


def random_mask(network: nn.Module) -> Mask:
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    generator = torch.Generator().manual_seed(0)
    return Mask({name: torch.rand(weight.shape, generator=generator) < 0.3 for name, weight in weights.items()})


def trainer_of(network: str, n: int, **options: Any) -> Trainer:
    """Of n digits, in float64, so that little but the loss depends on the order of additions."""
    sizes = {"depth": 8, "widen_factor": 1} if network == "resnet" else {}
    built = build_network(NetworkConfig(net_name=network, **sizes), (1, 8, 8), 10, stream(0, "init"))
    model = InDoublePrecision(built)
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=n))
    return Trainer(model, dataset, TrainConfig(**SMALL | options), seed=3, callbacks=[], mask=random_mask(model))


def trained(network: str, n: int, options: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """(weights, layers of which active weights alone are computed) after training."""
    trainer = trainer_of(network, n, **options)
    trainer.fit()
    return trainer.network.state_dict(), trainer.sparse_step.layers


@pytest.mark.parametrize(("network", "options"), [("mlp", {}), ("mnist_lenet", {"optimizer_name": "adam", "lr": 1e-3})])
def test_processes_with_sparse_steps_train_what_one_does_with_dense_ones(network, options):
    expected, none = trained(
        network, 70, options | {"sparse_step": "0"}
    )  # 23 + 23 + 23 + 1: two processes have nothing of the last
    assert none == []
    for weights, layers in together(3, trained, network, 70, options | {"sparse_step": "1"}):
        assert len(layers) > 1
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)  # losses are in float32


def test_batch_norm_of_shares_is_the_dense_one_of_shares():
    options = {"sync_batch_norm": False}
    (dense, _), *_ = together(2, trained, "resnet", 69, options | {"sparse_step": "0"})
    for weights, layers in together(2, trained, "resnet", 69, options | {"sparse_step": "1"}):
        assert len(layers) > 5
        for name, tensor in dense.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


def without_compiler_in(process: int, function: Callable, *args: Any) -> Any:
    """What a function returns; in the process of that rank there is no compiler."""

    def fail() -> None:
        raise NoCompiler("no C++ compiler is found: install g++")

    sparse_step.is_worth_it = lambda *args: True
    if rank() == process:
        sparse_step.kernels = fail
    return function(*args)


def test_where_one_process_has_no_compiler_all_are_dense():
    expected = together(2, trained, "mlp", 69, {"sparse_step": "0"})
    found = together(2, without_compiler_in, 1, trained, "mlp", 69, {"sparse_step": "auto"})
    for (weights, layers), (dense, _) in zip(found, expected, strict=True):
        assert layers == []
        assert all(torch.equal(weights[name], tensor) for name, tensor in dense.items())


def refusal(*args: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        trained(*args)
    return str(caught.value)


def test_where_one_process_has_no_compiler_all_refuse():
    first, second = together(2, without_compiler_in, 1, refusal, "mlp", 69, {"sparse_step": "1"})
    assert first.startswith("--sparse_step 1: another process of the run cannot have the sparse kernels")
    assert second == "--sparse_step 1: no C++ compiler is found: install g++, or use --sparse_step 0"


def choices(cases: list[tuple[str, dict[str, Any]]]) -> list[tuple[bool, bool]]:
    """Whether there are sparse steps, and whether there may be under other masks, of several networks."""
    found = []
    for network, options in cases:
        trainer = trainer_of(network, 69, sparse_step="auto", **options)
        trainer.sparse_step.view_for(trainer.mask_owner)
        found.append((bool(trainer.sparse_step.layers), trainer.sparse_step.possible))
    return found


def test_where_batch_norm_is_synchronised_auto_is_dense():
    cases = [("resnet", {}), ("resnet", {"sync_batch_norm": False}), ("mlp", {})]
    for found in together(2, without_compiler_in, -1, choices, cases):
        assert found == [(False, False), (True, True), (True, True)]


@pytest.mark.parametrize("mode", [("at-init",), ("dynamic", "--mask_every", 4), ("gradual", "--mask_every", 4)], ids=str)
def test_a_run_by_two_processes_has_the_tables_of_one(mode, train, tmp_path):
    flags = (*MLP, "--mode", *mode, "--prune_ratio", 0.8, "--n_epochs", 2)
    one, both = train(*flags), two(tmp_path, *flags)
    weights = [load_stored(folder / "model.pt") for folder in (one, both)]
    for name, active in weights[0].mask.items():
        assert int((active & weights[1].mask[name]).sum()) > 0.97 * int(active.sum())
    for table in ("history", "snr"):
        for a, b in zip(rows(one, table, without=TIMING), rows(both, table, without=TIMING), strict=True):
            for name in a:
                if name != "layer" and a[name].replace(".", "").isdigit():
                    assert float(b[name]) == pytest.approx(float(a[name]), rel=0.02, abs=2e-3), (name, a, b)
    records = [json.loads((folder / "summary.json").read_text())["sparse_step"] for folder in (one, both)]
    assert records[0] == records[1]
    assert records[0]["layers"]


def test_two_interrupted_processes_end_with_the_same_bits(tmp_path: Path):
    mode = ("--mode", "dynamic", "--mask_every", 3, "--n_epochs", 10, "-bs", 50, "--limit_train", 500)
    line = (*MLP, *mode, "--results_root")
    assert interrupt(tmp_path, "first", 15, 1, (*line, tmp_path / "broken")) == [75, 75]
    assert finish(start_runs(2, tmp_path / "second", *line, tmp_path / "broken", "--sparse_step", 0)) == [0, 0]
    assert any(text.startswith("the run began with --sparse_step 1") for text in printed(tmp_path / "second"))
    assert finish(start_runs(2, tmp_path / "third", *line, tmp_path / "whole")) == [0, 0]
    (broken,), (whole,) = (list((tmp_path / name).glob("*/*/*/*/model.pt")) for name in ("broken", "whole"))
    assert broken.read_bytes() == whole.read_bytes()

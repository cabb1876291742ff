"""What is imported when: a library that takes long to load is loaded by what uses it, not by every start."""

import copy
import subprocess
import sys

import numpy
import pandas
import pytest
import torch
from torch import nn

from helper.metrics.per_example import pull_back
from helper.plotter.columns import read_columns
from helper.schema.registry import with_options
from helper.system.seeds import stream
from helper.system.versions import ROOT
from helper.tables import TEXTS
from optim.config import TrainConfig
from optim.optimizers import OPTIMIZERS

COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "triton")
STATISTICS = ("pandas", "scipy", "sklearn")
DRAWING = ("matplotlib", "PIL", "jinja2", "rich")
LIBRARIES = ("nngeometry", "pyhessian", "hessian_eigenthings", "submitit", "tensorboard", "wandb", "mlflow", "torchvision")


def imported_by(code: str) -> set[str]:
    """Of the modules named above those that are there after some code in a fresh interpreter."""
    names = (*COMPILER, *STATISTICS, *DRAWING, *LIBRARIES)
    watch = f"{code}\nimport sys\nprint('imported:', *(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", watch], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].removeprefix("imported:").split())


def test_a_finished_run_is_found_without_what_only_a_run_needs(train, tmp_path):
    flags = ["--n_epochs", "1", "--lr_milestones", "1", "--limit_train", "200", "--figures", "0"]
    train(*flags)
    assert imported_by(f"import run; run.main({[*flags, '--results_root', str(tmp_path)]})") == set()


def test_a_run_imports_neither_compiler_nor_statistics_and_draws_last(tmp_path):
    """Figures need matplotlib, which brings Pillow; without them the run does not."""
    flags = ["--n_epochs", "1", "--lr_milestones", "1", "--results_root", str(tmp_path)]
    plain = f"import run; run.main({[*flags, '--figures', '0']})"
    assert imported_by(plain) == set()
    assert imported_by(f"import run; run.main({[*flags, '--overwrite', '1']})") == {"matplotlib", "PIL"}


@pytest.mark.parametrize("flags", [("--optimizer_name", "adam"), ("--mode", "lottery", "--save_jacobian", "1")])
def test_neighbours_of_the_flagless_run_do_neither(flags, tmp_path):
    common = ["--n_epochs", "1", "--lr_milestones", "1", "--limit_train", "200", "--figures", "0"]
    assert imported_by(f"import run; run.main({[*common, *flags, '--results_root', str(tmp_path)]})") == set()


@pytest.mark.parametrize("words", [["status", "--help"], ["measure", "--help"]])
def test_commands_that_draw_nothing_import_nothing_to_draw_with(words):
    assert (
        imported_by(f"import contextlib, experiment\nwith contextlib.suppress(SystemExit): experiment.main({words})") == set()
    )


@pytest.mark.parametrize("name", ["run", "experiment"])
def test_garbage_is_searched_for_again_after_the_imports_but_neither_among_nor_during_them(name):
    before = "import gc; gc.collect(); searches = gc.get_stats()[2]['collections']"
    told = "print(gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_stats()[2]['collections'] - searches)"
    command = [sys.executable, "-c", f"{before}; import {name}; {told}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "0"]


# ------------------------------------------------------------------------------------ what stands in for the slow imports


@pytest.mark.parametrize(
    "flags",
    [{}, {"nesterov": True}, {"momentum": 0.0}, {"optimizer_name": "adam"}, {"optimizer_name": "adamw"}],
    ids=["sgd", "nesterov", "no momentum", "adam", "adamw"],
)
def test_optimisers_step_as_torchs_own_to_the_bit(flags):
    config = TrainConfig(lr=0.05, weight_decay=1e-3, **flags)
    networks = [nn.Linear(5, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours = with_options(OPTIMIZERS[config.optimizer_name], config)(networks[0].parameters())
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer_name]
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov} if config.optimizer_name == "sgd" else {}
    theirs = kind(networks[1].parameters(), 0.05, weight_decay=1e-3, **momentum)
    assert isinstance(ours, kind)
    for step in range(4):
        x = torch.randn(7, 5, generator=stream(step, "x"))
        for network, optimizer in zip(networks, (ours, theirs), strict=True):
            optimizer.zero_grad(set_to_none=True)
            network(x).square().sum().backward()
            optimizer.step()
        if step == 1:  # both formats of a state are one
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))
    assert not networks[0].weight.grad.requires_grad


def test_pulled_back_cotangents_are_autograds_to_the_bit():
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    x, v = (torch.randn(3, n, generator=stream(0, n)) for n in (6, 4))
    weights = list(network.parameters())
    v[0, 0] = -0.0
    for inputs in (weights, weights[0]):
        expected = torch.autograd.grad(network(x), inputs, v)
        assert all(torch.equal(a, b) for a, b in zip(pull_back(network(x), v, inputs), expected, strict=True))


def test_tables_are_read_for_figures_as_pandas_reads_them(train):
    folder = train("--n_epochs", "2", "--lr_milestones", "1", "--limit_train", "300", "--figures", "0", "--save_jacobian", "1")
    for name in ("history", "snr", "metrics"):
        found, expected = read_columns(folder / f"{name}.csv"), pandas.read_csv(folder / f"{name}.csv")
        assert list(found) == list(expected)
        for column, values in found.items():
            if column in TEXTS:
                assert values.tolist() == expected[column].fillna("").astype(str).tolist()
            else:
                numpy.testing.assert_array_equal(values, expected[column].to_numpy(dtype=float))


@pytest.mark.parametrize("content", ["", "epoch,loss_train\n0,1,2\n", "epoch,loss_train\n0,x\n", 'epoch,loss_train\n0,"1\n'])
def test_a_damaged_table_is_not_drawn(tmp_path, content):
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(RuntimeError, match="damaged"):
        read_columns(tmp_path / "history.csv")


def test_a_table_without_rows_has_nothing_to_draw(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss_train\n")
    assert read_columns(tmp_path / "history.csv") == {}
    assert read_columns(tmp_path / "none.csv") == {}

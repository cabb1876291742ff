"""Mistakes in a part that someone adds: one line says which part it is and what it has to be."""

import dataclasses
import math

import numpy
import pytest
import torch

import run
from helper.metrics.estimate import Estimate
from helper.metrics.main import METRICS
from helper.metrics.metric import Metric
from helper.schema.config import Config, flag, flatten
from helper.schema.registry import by_name, declared
from helper.untrusted.yaml_text import write_yaml
from loader.archives import DataError
from loader.main import DATASETS, DataConfig, load_dataset
from network.main import NETWORKS, NetworkConfig
from network.spec import NetworkSpec
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import stored_config
from optim.modes import FRESH, MODES, MaskSource, ModeSpec, Start
from optim.trackers.main import TRACKERS, TrackerSpec
from scripts.made_up_runs import write_run
from study.reporting.collect import collect
from tests.outcome import outcome

QUICK = (
    "--n_epochs", 1, "--figures", 0, "--save_snr", 0, "--save_fisher", 0, "--limit_train", 60, "--limit_test", 40,
    "--save_jacobian", 1,
)  # fmt: skip


@pytest.fixture
def measures(monkeypatch):
    """Let the metric `jacobian` return something."""
    return lambda result: monkeypatch.setattr(type(METRICS["jacobian"]), "measure", lambda *_, **__: result)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (0.25, "not float 0.25"),
        (torch.tensor(0.25), "not Tensor tensor(0.2500)"),
        (None, "not NoneType None"),
        ((0.25, 0.1), "not tuple (0.25, 0.1)"),
        (Estimate(torch.ones(2), 0.0, 3, "x"), "of numbers: "),
        (Estimate(None, 0.0, 3, "x"), "of numbers: "),
        (Estimate("a lot", 0.0, 3, "x"), "of numbers: "),
        (Estimate(0.5, 0.0, 3, "x", by_layer={"fc": 0.5}), "of numbers: "),
        (Estimate(0.5, 0.0, 3, "x", by_layer=[0.5]), "of numbers: "),
    ],
)
def test_a_metric_that_returns_no_estimate_is_named_before_anything_is_written(measures, refuse_run, result, words):
    measures(result)
    line, folder = refuse_run(*QUICK)
    assert "--save_jacobian: its measure has to return an Estimate(value, standard_error, n_samples, estimator)" in line
    assert words in line
    assert folder.metrics().rows == []


@pytest.fixture
def refuse_run(tmp_path):
    """(the error line, the folder) of a run that ends by an error."""

    def call(*flags: object) -> tuple[str, RunFolder]:
        found = outcome(run.main, *flags, "--results_root", tmp_path)
        assert found.code == 1
        (config,) = tmp_path.glob("*/*/*/*/config.yaml")
        return found.line, RunFolder(config.parent)

    return call


@pytest.mark.parametrize("number", [torch.tensor(0.25), numpy.float64(0.25), torch.tensor([0.25])])
def test_numbers_of_tensors_and_arrays_are_numbers(measures, train, number):
    measures(Estimate(number, number, torch.tensor(7), "x", by_layer={"fc": (number, number)}))
    total, layer, *_ = [row for row in RunFolder(train(*QUICK)).metrics().rows if row["epoch"] == "1"]
    for row in (total, layer):
        assert (row["value"], row["standard_error"], row["n_samples"]) == ("0.25", "0.25", "7")


def test_an_unknown_error_is_nan_and_the_run_can_be_read(measures, train):
    measures(Estimate(0.25, math.nan, 7, "x"))
    folder = RunFolder(train(*QUICK))
    assert {row["standard_error"] for row in folder.metrics().rows} == {"nan"}
    assert math.isnan(folder.read_summary()["metrics"]["jacobian"]["standard_error"])


@pytest.mark.parametrize("left_out", ["name", "about", "label"])
def test_a_metric_says_what_every_metric_needs(left_out):
    facts = {name: "x" for name in ("name", "about", "label") if name != left_out}
    with pytest.raises(TypeError, match=f"the metric Added has no {left_out}"):
        type("Added", (Metric,), facts)


def test_a_registry_takes_objects_with_names_of_their_own():
    mlp, resnet = NETWORKS["mlp"], NETWORKS["resnet"]
    assert by_name(resnet, mlp) == {"resnet": resnet, "mlp": mlp}
    assert list(by_name(resnet, mlp)) == ["resnet", "mlp"]
    with pytest.raises(TypeError, match="mlp is registered twice"):
        by_name(mlp, resnet, mlp)
    for wrong in (type(METRICS["fisher"]), None, lambda: mlp, Metric):
        with pytest.raises(TypeError, match="it has to be an object with a name"):
            by_name(mlp, wrong)


class Depth:
    depth: int = flag(3, "blocks")


class Untyped:
    blocks = flag(3, "blocks")


class Init:
    init_method: str = flag("x", "how weights are drawn")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (Depth, "--depth of added is a flag of resnet already: read it without declaring it again"),
        (Init, "--init_method of added is a flag of NetworkConfig already"),
        (Untyped, r"--blocks of added has no type: write `blocks: int = flag\(...\)`"),
    ],
)
def test_a_flag_that_cannot_be_is_named_with_its_owner(flags, words):
    class Shared(Config):
        """What all networks have."""

        init_method: str = flag("kaiming", "how weights are drawn")

    Shared.__name__ = NetworkConfig.__name__
    added = NetworkSpec("added", lambda shape, n: None, head=lambda network: network, flags=flags)
    with pytest.raises(TypeError, match=words):
        declared({**NETWORKS, "added": added}, Shared)


def test_a_trackers_folder_is_there_when_it_is_made(train, monkeypatch):
    monkeypatch.setitem(TRACKERS, "lines", TrackerSpec("lines", "tests.lines_tracker"))
    folder = train(*QUICK, "--save_jacobian", 0, "--tracker", "lines")
    assert (folder / "lines/lines.txt").read_text().endswith("end finished=True metrics=0\n")


@pytest.mark.parametrize("found", [None, (1, 2), {"train_inputs": 1}])
def test_a_loader_that_gives_no_source_is_named(monkeypatch, found):
    added = dataclasses.replace(DATASETS["digits"], name="added", load=lambda: found)
    monkeypatch.setitem(DATASETS, "added", added)
    load_dataset.cache_clear()
    with pytest.raises(DataError, match="what the loader of added gives is no data set: it has to be a Source"):
        load_dataset(DataConfig(loader_name="added"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["channels: 8"], "has --channels, which no part of this program knows"),
        (["net_name: convnet", "channels: 8"], "has --net_name convnet, --channels, which"),
        (["mode: melting", "spread: 0.1"], "has --mode melting, --spread, which"),
        (["loader_name: shapes_noisy"], "has --loader_name shapes_noisy, which"),
        (["tracker: tensorboard,lines"], "has --tracker tensorboard,lines, which"),
        (["lr: much"], "is damaged: --lr much: expected a number"),
        (["lr: [1]"], "is damaged: --lr"),
    ],
)
def test_a_run_with_a_part_that_is_gone_is_not_called_damaged(tmp_path, lines, words):
    folder = RunFolder(tmp_path)
    stored = write_yaml(flatten(RunConfig())).splitlines()
    names = {line.partition(":")[0] for line in lines}
    folder.config.write_text("\n".join([*(line for line in stored if line.partition(":")[0] not in names), *lines]))
    with pytest.raises(RuntimeError) as refusal:
        stored_config(folder)
    assert f"{folder.config} {words}" in str(refusal.value)
    assert ("damaged" in str(refusal.value)) == ("damaged" in words)
    assert "\n" not in str(refusal.value)


def test_the_report_leaves_such_a_run_out_with_the_reason(tmp_path):
    folder = write_run(RunConfig(results_root=str(tmp_path)))
    with open(folder.config, "a") as file:
        file.write("channels: 8\n")
    ((_, reason),) = collect(tmp_path).left_out
    assert "has --channels, which no part of this program knows: go on with the program that made the run" in reason


@pytest.mark.parametrize(
    "added",
    [
        ModeSpec("", "", "", "", Start(lambda beginning: beginning.dense_solution())),
        ModeSpec("", "", "", "", Start(lambda beginning: beginning.dense_initialisation())),
        ModeSpec("", "", "", "", FRESH, MaskSource(lambda beginning, network: beginning.pruned(beginning.dense_solution()))),
    ],
)
def test_a_mode_that_takes_a_dense_parents_weights_without_saying_so_is_named(tmp_path, monkeypatch, added):
    monkeypatch.setitem(MODES, "added", added)
    found = outcome(run.main, "--mode", "added", "--n_epochs", 1, "--results_root", tmp_path)
    assert "--mode added asks for the dense parent's weights, and neither its start nor its mask has of_parent" in found.line
    assert not list(tmp_path.iterdir())

"""Several processes train what one does, measure what one does, write what one writes, and end together."""

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from helper.processes import group, sharing
from helper.processes.first import broadcast_from_first
from helper.spectrum_file import spectrum_key
from helper.system.locks import exclusive
from helper.system.seeds import global_seed, stream
from helper.system.versions import ROOT
from helper.untrusted.arrays import write_arrays
from loader.archives import DataError
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.checkpoint import load_latest, load_state, save_state
from optim.config import TrainConfig
from optim.folder import RunFolder
from optim.model import load_stored
from optim.parallel import synchronise
from optim.trainer import Trainer
from tests.conftest import tiny_conv
from tests.outcome import TIMING
from tests.several import printed, run_here, start, start_runs, together

LOCAL = {"OMP_NUM_THREADS": "1"}
MLP = ("-ln", "digits", "-nt", "mlp", "-hd", "24-16", "--figures", 0, "-bs", 100)
LENET = ("-ln", "digits", "-nt", "mnist_lenet", "--augment", "crop_flip", "--figures", 0, "-bs", 100)
RESNET = ("-ln", "digits", "-nt", "resnet", "-dp", 8, "-wf", 1, "--figures", 0, "-bs", 100, "--limit_train", 250)
FIXED = ("-ms", 60, "--metric_rtol", 0)  # examples: else a pilot decides, where rounding may ask for one more and draw others


def rows(folder: Path, table: str, *, without: tuple[str, ...] = ()) -> list[dict[str, str]]:
    with open(folder / f"{table}.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def finish(workers, seconds: float = 120) -> list[int]:
    """Exit codes; a process that does not end is a failure."""
    for worker in workers:
        worker.join(seconds)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert None not in codes, "a process hangs"
    return codes


def two(tmp_path: Path, *flags: object) -> Path:
    """The run folder of a run by two processes."""
    codes = finish(start_runs(2, tmp_path / "printed", *flags, "--results_root", tmp_path / "two"))
    assert codes == [0, 0], printed(tmp_path / "printed")
    return Path(printed(tmp_path / "printed")[-1])


# --------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("n", [0, 1, 2, 7, 128])
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_shares_cover_everything_once_and_are_nearly_equal(monkeypatch, n, k):
    monkeypatch.setattr(sharing, "world_size", lambda: k)
    positions = []
    for rank in range(k):
        monkeypatch.setattr(sharing, "rank", lambda rank=rank: rank)
        positions.append(list(range(n))[sharing.own_share(n)])
    assert [position for share in positions for position in share] == list(range(n))
    assert max(map(len, positions)) - min(map(len, positions)) <= 1


def normalise_share(x: torch.Tensor, weights: torch.Tensor, share: list[slice], options: dict) -> dict[str, torch.Tensor]:
    """One process's part of a layer, its gradients, and the gradients of a gradient penalty."""
    x = x[share[group.rank()]].requires_grad_()
    layer = nn.BatchNorm2d(3, **options).double()
    if group.world_size() > 1:
        synchronise(layer)
    for name, parameter in layer.named_parameters():
        torch.nn.init.uniform_(parameter, generator=stream(0, name))
    output = layer(x)
    (slope,) = torch.autograd.grad((output * weights[share[group.rank()]]).sin().sum(), x, create_graph=True)
    (slope.square().sum() + output.cos().sum()).backward()
    found = {"output": output, "slope": slope, "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}
    return {name: t.detach() for name, t in found.items()} | dict(layer.named_buffers())


BATCH_NORMS = {
    "usual": {},
    "without weight, average of all": {"affine": False, "momentum": None},
    "without running statistics": {"track_running_stats": False},
}


def normalise_shares(x: torch.Tensor, weights: torch.Tensor, share: list[slice]) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": tensor
        for kind, options in BATCH_NORMS.items()
        for name, tensor in normalise_share(x, weights, share, options).items()
    }


@pytest.mark.parametrize("share", [[slice(0, 4), slice(4, 7)], [slice(0, 7), slice(7, 7)]], ids=["4 and 3", "7 and 0"])
def test_global_batch_norm_is_batch_norm_of_all_examples_also_differentiated_twice(share):
    x, weights = (torch.randn(7, 3, 2, 2, generator=stream(0, name), dtype=torch.float64) for name in "xw")
    expected = normalise_shares(x, weights, [slice(0, 7)])
    first, second = together(2, normalise_shares, x, weights, share)
    for name, value in expected.items():
        if name.endswith(("/output", "/slope", "/x")):
            found = torch.cat([first[name], second[name]])
        elif name.endswith(("/weight", "/bias")):
            found = first[name] + second[name]
        else:
            found = first[name]
            assert torch.equal(found, second[name])
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


def single_value(shape: tuple[int, ...]) -> str:
    """What a layer says of a global batch of one example, which the first process has."""
    layer = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3)
    synchronise(layer)
    try:
        layer(torch.ones(shape)[: 1 - group.rank()])
    except ValueError as error:
        return str(error)
    return "" if all(buffer.isfinite().all() for buffer in layer.buffers()) else "not finite"


@pytest.mark.parametrize(("shape", "refused"), [((1, 3), True), ((1, 3, 1, 1), True), ((1, 3, 1, 2), False)])
def test_a_single_value_has_no_variance_with_several_processes_either(shape, refused):
    """Its running variance would be NaN from then on."""
    assert ["more than 1 value per channel" in said for said in together(2, single_value, shape)] == [refused] * 2
    if not refused:
        assert together(2, single_value, shape) == ["", ""]


def looked_at_by_the_second_alone(folder: RunFolder) -> dict[str, Any]:
    """What the second of two processes reads and writes in a run folder while the first one does nothing."""
    if group.rank() == 0:
        return {}
    table = folder.history()
    table.append({"epoch": 7, "lr": 0.5})
    table.write()
    write_arrays(folder.spectrum(), {"checkpoint": "0", "split": "train", "params": "all", "settings": "{}"})
    save_state(folder.checkpoint, {"epoch": 7})
    save_state(folder.epoch_state(3), {"network": {"w": torch.ones(1)}, "mask": {}, "epoch": 3})
    folder.check_there()
    return {
        "finished": folder.finished, "kept": folder.kept_epochs(), "rows": folder.history().rows, "written": folder.written(7),
        "key": spectrum_key(folder.spectrum()), "checkpoint": load_latest(folder.checkpoint),
        "weights": load_stored(folder.epoch_state(3)).weights,
    }  # fmt: skip


def test_one_process_alone_may_look_at_a_run_folder_and_its_tables(tmp_path):
    (tmp_path / "config.yaml").touch()
    nothing, found = together(2, looked_at_by_the_second_alone, RunFolder(tmp_path))
    assert nothing == {}
    assert found["finished"] is False
    assert found["kept"] == [3]
    assert [(row["epoch"], row["lr"]) for row in found["rows"]] == [("7", "0.5")]
    assert found["written"]["metrics"] == 0
    assert found["key"]["split"] == "train"
    assert found["checkpoint"] == {"epoch": 7}
    assert found["weights"]["w"].item() == 1


def broadcast_of_the_first(folder: RunFolder) -> tuple[bool, list[str], str]:
    """(whether the run is finished, epochs of its history, an error) as every process gets them from the first one."""
    if group.rank() == 1:  # by itself it would see something else
        folder = RunFolder(folder.path / "elsewhere")
    finished = broadcast_from_first(lambda: folder.finished)
    epochs = [row["epoch"] for row in broadcast_from_first(folder.history).rows]
    with pytest.raises(RuntimeError) as error:
        broadcast_from_first(folder.check_there)
    return finished, epochs, str(error.value)


def test_what_the_first_process_reads_or_raises_reaches_all(tmp_path):
    folder = RunFolder(tmp_path)
    for name in ("summary.json", "model.pt"):
        (tmp_path / name).touch()
    (tmp_path / "history.csv").write_text("epoch,lr\n0,\n1,0.1\n")
    first, second = together(2, broadcast_of_the_first, folder)
    assert first == second
    assert first[:2] == (True, ["0", "1"])
    assert first[2].startswith(f"{tmp_path} has gone")


class InDoublePrecision(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.double())


def train_in_double(network: str, config: TrainConfig, augment: str) -> dict[str, torch.Tensor]:
    """Weights after training on 70 digits, in float64, so that little but the loss depends on the order of additions."""
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=70, augment=augment))
    options = {"depth": 8, "widen_factor": 1} if network == "resnet" else {}
    built = build_network(NetworkConfig(net_name=network, **options), (1, 8, 8), 10, stream(0, "init"))
    model = InDoublePrecision(built)
    Trainer(model, dataset, config, seed=3, callbacks=[]).fit()
    return model.state_dict()


@pytest.mark.parametrize(
    ("network", "options", "augment"),
    [
        ("mlp", {}, "none"),
        ("mnist_lenet", {"optimizer_name": "adam", "lr": 1e-3}, "crop_flip"),
        ("mnist_lenet", {"reg_type": "jacobian"}, "none"),
        ("resnet", {}, "crop_flip"),
        ("resnet", {"reg_type": "jacobian"}, "none"),
        ("mlp", {"reg_type": "fisher,gradient", "reg_weight": -0.05}, "none"),
        ("resnet", {"reg_type": "gradient", "reg_weight": 0.1}, "none"),
        ("resnet", {"sharpness_aware": 0.05, "reg_type": "fisher", "reg_method": "difference"}, "none"),
        ("mlp", {"optimizer_name": "adamw", "lr": 1e-3, "label_smoothing": 0.1, "clip_norm": 0.5, "mix": "mixup"}, "none"),
        ("resnet", {"mix": "cutmix", "ema": 0.9}, "crop_flip"),
    ],
)
def test_processes_train_what_one_does_to_rounding(network, options, augment):
    config = TrainConfig(**{"n_epochs": 2, "batch_size": 23, "lr": 0.02, "lr_milestones": "1", **options})  # 23 + 23 + 23 + 1
    expected = train_in_double(network, config, augment)
    for weights in together(3, train_in_double, network, config, augment):  # the last batch leaves two with nothing
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)  # losses are in float32


class Captured(nn.Module):
    """Convolution, BatchNorm and Linear, where BatchNorm is called by something that a copy of the network does not rebind."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 10)
        norm = self.norm
        ways = {
            "a closure over the network": lambda x: self.norm(x),
            "a closure over the layer": lambda x, norm=norm: norm(x),
            "a part of the layer's own": norm.__call__,
        }
        self.normalise = ways[way]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.normalise(self.convolution(x))).mean((2, 3)))


def train_captured(way: str) -> dict[str, torch.Tensor]:
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=70))
    with global_seed(stream(0, "captured")):
        model = InDoublePrecision(Captured(way))
    Trainer(model, dataset, TrainConfig(n_epochs=2, batch_size=23, lr=0.02, lr_milestones="1"), seed=3, callbacks=[]).fit()
    copied, images = copy.deepcopy(model.network.norm).eval(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert torch.equal(copied(images), model.network.norm.eval()(images))
    return model.state_dict()


@pytest.mark.parametrize("way", ["a closure over the network", "a closure over the layer", "a part of the layer's own"])
def test_batch_norm_is_global_whoever_calls_it(way):
    """A copy of the network would call the layers of the original, each normalising by its own process's share."""
    expected = train_captured(way)
    for weights in together(2, train_captured, way):
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_copy_of_a_synchronised_network_calls_its_own_layers():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    synchronise(network)
    copied = copy.deepcopy(network)
    copied(torch.randn(9, 3, generator=stream(0, "x"), dtype=torch.float64))
    assert network[0].num_batches_tracked == 0
    assert copied[0].num_batches_tracked == 1


def steps_of(compiled: bool) -> list[float]:
    """Training losses of a small residual network with BatchNorm, compiled or not."""
    dataset = load_dataset(DataConfig(loader_name="digits", limit_train=60))
    trainer = Trainer(
        tiny_conv(10).float(), dataset, TrainConfig(n_epochs=1, batch_size=20, compile=compiled), seed=3, callbacks=[]
    )
    losses = []
    for step, rows in trainer.remaining_batches():
        before = 0.0 if trainer.sums is None else trainer.sums.loss.item()
        trainer.train_step(step, rows)
        losses.append(trainer.sums.loss.item() - before)
    return losses


def test_compiled_processes_train_the_same():
    for compiled, eager in zip(together(2, steps_of, True), together(2, steps_of, False), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("flags", [MLP, LENET, RESNET], ids=["mlp", "lenet augmented", "resnet"])
def test_a_run_by_two_processes_has_the_tables_of_one(train, tmp_path, flags):
    """The ResNet's from the same weights: then the order of additions decides on which side of zero a ReLU's input falls.

    In float64, where it does not, the ResNet is trained to the same weights by `train_in_double`.
    """
    drifts = flags == RESNET
    measured = ("--save_hessian", 1, "--hessian_method", "hutchinson", "--save_jacobian", 1, *FIXED)
    spectrum = ("--save_spectrum", 1, "--spectrum_k", 2, "--spectrum_steps", 4, "--spectrum_runs", 1)
    flags = (*flags, "--n_epochs", 2, "--lr", 0.02, *measured, *spectrum)
    one, both = train(*flags), two(tmp_path, *flags)
    assert one.relative_to(tmp_path).parts[-1] == both.parts[-1]
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(both) for p in both.rglob("*")}
    for table in ("history", "snr", "metrics"):
        columns = (*TIMING, "estimator", "checkpoint")
        alone, shared = rows(one, table, without=columns), rows(both, table, without=columns)
        assert len(alone) == len(shared) > 0
        for a, b in zip(alone, shared, strict=True):
            drifted = drifts and a["epoch"] != "0"
            for name in a if table == "history" or not drifted else ():
                slack = 0.01 if drifted and name.startswith("acc_") else 1e-5  # a prediction or two hang on a ReLU
                try:
                    assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-3, abs=slack), (table, name, a, b)
                except ValueError:
                    assert a[name] == b[name]
    if not drifts:
        with numpy.load(one / "spectrum.npz") as alone, numpy.load(both / "spectrum.npz") as shared:
            assert alone["n_samples"] < alone["population"]
            for name in ("eigenvalues", "corrected", "standard_errors"):
                numpy.testing.assert_allclose(shared[name], alone[name], rtol=2e-3)
    log = (both / "training.log").read_text()
    assert all(log.count(f"epoch {epoch}/2 ") == 1 for epoch in range(3))


def test_a_sparse_run_by_two_processes_trains_its_parent_and_keeps_the_mask(train, tmp_path):
    flags = (*MLP, "--mode", "sparse-finetune", "--prune_ratio", 0.8, "--n_epochs", 2, "--save_fisher", 0)
    one, both = load_stored(train(*flags) / "model.pt"), load_stored(two(tmp_path, *flags) / "model.pt")
    for name, tensor in one.weights.items():
        torch.testing.assert_close(both.weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(one.mask[name], both.mask[name]) for name in one.mask)
    assert len(list((tmp_path / "two").glob("digits/mlp-24-16/dense/*/summary.json"))) == 1


@pytest.mark.parametrize(
    "mode",
    [("dynamic",), ("dynamic", "--growth", "random"), ("gradual", "--prune_method", "snip", "--score_batches", 2)],
    ids=str,
)
def test_two_processes_change_the_mask_as_one_does(mode, train, tmp_path):
    flags = (*MLP, "--mode", *mode, "--prune_ratio", 0.8, "--n_epochs", 2, "--mask_every", 4, "--save_fisher", 0)
    one, both = load_stored(train(*flags) / "model.pt"), load_stored(two(tmp_path, *flags) / "model.pt")
    for name, active in one.mask.items():
        assert int(active.sum()) == int(both.mask[name].sum())
        overlap = int((active & both.mask[name]).sum()) / int((active | both.mask[name]).sum())
        assert overlap > 0.97  # gradients differ in rounding, which decides between weights that are as good


def test_a_measurement_asked_for_later_is_added_by_two_processes(train, tmp_path):
    folder = two(tmp_path, *MLP, "--n_epochs", 1, "--save_fisher", 0)
    more = (*MLP, "--n_epochs", 1, "--save_fisher", 1, *FIXED)
    assert two(tmp_path, *more) == folder
    found = {row["metric"]: row for row in rows(folder, "metrics") if row["layer"] == "all" and row["epoch"] == "1"}
    expected = {row["metric"]: row for row in rows(train(*more), "metrics") if row["layer"] == "all" and row["epoch"] == "1"}
    assert float(found["fisher"]["value"]) == pytest.approx(float(expected["fisher"]["value"]), rel=1e-3)


def test_one_seed_is_drawn_for_all_processes(tmp_path):
    folder = two(tmp_path, *MLP, "--n_epochs", 1, "--random_state", 0, "--save_fisher", 0)
    assert len(list(folder.parent.iterdir())) == 1


# ---------------------------------------------------------------------------------------------- ends, wanted or not


def interrupt(tmp_path: Path, name: str, number: int, rank: int, flags: tuple, n: int = 2) -> list[int]:
    """Send a signal to one process of a run once it has trained a while; the exit codes of all."""
    workers = start_runs(n, tmp_path / name, *flags)
    deadline = time.monotonic() + 60
    while not any(line.startswith("epoch 3/") for line in printed(tmp_path / name)):
        assert time.monotonic() < deadline, printed(tmp_path / name)
        time.sleep(0.01)
    os.kill(workers[rank].pid, number)
    return finish(workers)


@pytest.mark.parametrize(("rank", "n"), [(0, 2), (1, 3)])
def test_a_signal_to_one_process_stops_all_at_the_same_step_and_the_run_goes_on(tmp_path, rank, n):
    flags = (*LENET, "-bs", 50, "--n_epochs", 10, "--snr_mode", "online", "--save_fisher", 0, "--results_root")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert interrupt(tmp_path, "first", signal.SIGUSR1, rank, (*flags, broken), n) == [75] * n
    said = [line for line in printed(tmp_path / "first") if line.startswith("run.py: ")]
    assert len(said) == 1
    assert "the same command goes on from there" in said[0]
    assert finish(start_runs(n, tmp_path / "second", *flags, broken)) == [0] * n
    assert any(line.startswith("resuming after") for line in printed(tmp_path / "second"))
    assert finish(start_runs(n, tmp_path / "whole", *flags, whole)) == [0] * n
    (a,), (b,) = (list(root.glob("*/*/*/*/")) for root in (broken, whole))
    assert (a / "model.pt").read_bytes() == (b / "model.pt").read_bytes()
    assert rows(a, "history", without=TIMING) == rows(b, "history", without=TIMING)
    assert (a / "snr.csv").read_text() == (b / "snr.csv").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_one_message_and_it_goes_on(tmp_path, rank):
    flags = (*LENET, "-bs", 50, "--n_epochs", 10, "--save_fisher", 0, "--save_snr", 0, "--results_root", tmp_path / "runs")
    codes = interrupt(tmp_path, "first", signal.SIGKILL, rank, flags)
    assert sorted(codes) == [-9, 1]
    errors = [line for line in printed(tmp_path / "first") if "error" in line]
    assert errors == ["run.py: error: another process of this run has ended; the same command goes on from the last checkpoint"]
    assert finish(start_runs(2, tmp_path / "second", *flags)) == [0, 0]
    assert any(line.startswith("resuming after") for line in printed(tmp_path / "second"))


def test_an_error_of_the_first_process_ends_all_of_them_with_its_message_once(train, tmp_path):
    flags = (*MLP, "--n_epochs", 1, "--save_fisher", 0)
    folder = train(*flags)
    (folder / "summary.json").unlink()
    with exclusive(folder):
        assert finish(start_runs(2, tmp_path / "printed", *flags, "--results_root", tmp_path)) == [1, 1]
    errors = [line for line in printed(tmp_path / "printed") if "error" in line]
    assert len(errors) == 1
    assert "is in use by another process" in errors[0]


def fail_in_the_second(folder: Path, flags: tuple[str, ...]) -> None:
    """run.py, in whose second process alone a checkpoint does not fit, while the first one goes on and waits for it."""

    def load_state(trainer: Trainer, state: dict[str, Any]) -> None:
        raise ValueError("it does not fit")

    if os.environ["RANK"] == "1":
        Trainer.load_state = load_state
    run_here(folder, flags)


def test_a_checkpoint_that_one_process_refuses_ends_all_of_them_with_its_message_once(tmp_path):
    flags = (*MLP, "--n_epochs", 1, "--save_fisher", 0, "--save_snr", 0, "--results_root", tmp_path / "runs")
    assert finish(start_runs(2, tmp_path / "first", *flags)) == [0, 0]
    (summary,) = (tmp_path / "runs").glob("*/*/*/*/summary.json")
    summary.unlink()
    (tmp_path / "second").mkdir()
    assert finish(start(2, fail_in_the_second, tmp_path / "second", tuple(map(str, flags)))) == [1, 1]
    errors = [line for line in printed(tmp_path / "second") if "error" in line]
    assert len(errors) == 1
    assert "is no state of this run" in errors[0]


def test_a_diverged_run_says_so_once(tmp_path):
    flags = (*MLP, "--n_epochs", 3, "--lr", 1e9, "--save_fisher", 0, "--save_snr", 0, "--results_root", tmp_path)
    assert finish(start_runs(2, tmp_path / "printed", *flags)) == [1, 1]
    assert sum("is not finite" in line for line in printed(tmp_path / "printed")) == 1


UNFIT = [("--lr", "fast"), ("--device", "tpu")]
if not torch.cuda.is_available():
    UNFIT.append(("--device", "cuda"))


@pytest.mark.parametrize("flags", UNFIT, ids=" ".join)
def test_what_every_process_would_refuse_is_said_once(tmp_path, flags):
    codes = finish(start_runs(2, tmp_path / "printed", *MLP, *flags, "--results_root", tmp_path))
    assert set(codes) <= {1, 2}
    assert 0 not in codes
    assert len(printed(tmp_path / "printed")) == 1, printed(tmp_path / "printed")


def test_batch_norm_by_shares_keeps_the_first_ones_statistics_and_refuses_another_number_of_processes(train, tmp_path):
    flags = (*RESNET, "--n_epochs", 2, "--sync_batch_norm", 0, "--save_snr", 0, "--save_fisher", 0)
    folder = two(tmp_path, *flags)
    weights, kept = load_stored(folder / "model.pt").weights, load_stored(folder / "state_dicts/epoch_2.pt").weights
    assert all(torch.equal(weights[name], kept[name]) for name in weights)
    assert load_state(folder / "checkpoint.pt")["processes"] == 2
    summary = (folder / "summary.json").read_text()
    (folder / "summary.json").unlink()
    (folder / "model.pt").unlink()
    with pytest.raises(RuntimeError, match="began with 2 processes"):
        train(*flags, root=tmp_path / "two")
    (folder / "model.pt").write_bytes((folder / "state_dicts/epoch_2.pt").read_bytes())
    (folder / "summary.json").write_text(summary)
    with pytest.raises(RuntimeError, match="is of 2 processes"):
        train(*flags, root=tmp_path / "two")


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (DataError("could not download cifar.tar.gz: Connection refused"), False),
        (RuntimeError("/home/igloo/model.pt lacks 'fc.weight'"), False),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), True),
    ],
)
def test_only_a_broken_connection_to_a_process_is_taken_for_its_end(error, is_lost):
    assert group.connection_lost(error) == is_lost


def test_torchrun_starts_a_run_that_one_process_goes_on_with(train, tmp_path):
    flags = [*map(str, (*MLP, "--n_epochs", 2, "--save_fisher", 0)), "--results_root", str(tmp_path)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "run.py")]
    done = subprocess.run([*torchrun, *flags], capture_output=True, text=True, timeout=300, env=os.environ | LOCAL)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1
    (folder / "summary.json").unlink()
    assert train(*flags) == folder

"""`--device tpu` in the environment of requirements-tpu.txt, on XLA's CPU device, against the same runs by plain PyTorch."""

import copy
import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import experiment
from helper.schema.config import replace
from helper.system.seeds import stream
from helper.system.signals import Interrupted
from helper.system.versions import ROOT
from network.main import NetworkConfig, build_network
from optim.checkpoint import load_state
from optim.folder import RunFolder
from optim.main import train_run
from optim.model import load_stored, stored_config
from tests.conftest import TPU_PYTHON
from tests.stops import StopsInSecondEpoch

pytestmark = pytest.mark.tpu
# the compiler's optimisations take most of a minute and change nothing that is tested
ENVIRONMENT = {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0", "OMP_NUM_THREADS": "1"}
COMMON = ("--figures", 0, "--lr_schedule", "cosine", "--warmup_epochs", 1)
MLP = (*COMMON, "--batch_size", 32)
LENET = (
    *COMMON, "--mode", "sparse-finetune", "--net_name", "mnist_lenet", "--augment", "crop_flip", "--limit_train", 640,
    "--n_epochs", 3, "--lr", 0.05,
)  # fmt: skip
RESNET = {"net_name": "resnet", "depth": 8, "widen_factor": 1}
GRADIENT = """
import sys
import torch
from helper.system.xla import xla_device
from network.main import NetworkConfig, build_network

given, device = torch.load(sys.argv[1], weights_only=True), xla_device()
network = build_network(NetworkConfig(**given["options"]), (1, 8, 8), 10, torch.Generator())
network.load_state_dict(given["network"])
network.to(device).train()
torch.nn.functional.cross_entropy(network(given["inputs"].to(device)), given["labels"].to(device)).backward()
torch.save({name: parameter.grad.cpu() for name, parameter in network.named_parameters()}, sys.argv[2])
"""
CHANGES = """
import sys
import torch
from helper.mask import Mask
from helper.system.seeds import stream
from helper.system.xla import graph_counts, xla_device
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.config import TrainConfig
from optim.trainer import Callback, Trainer

class Rotate(Callback):
    found = []
    def on_step(self, trainer):
        if trainer.step == 2:
            mask = trainer.mask_owner.mask
            trainer.mask_owner.change(Mask({name: keep.cpu().roll(1, 0) for name, keep in mask.items()}))
    def on_epoch(self, trainer):
        self.found.append(graph_counts()["compilations"])

device, data = xla_device(), load_dataset(DataConfig(limit_train=320, limit_test=50))
network = build_network(NetworkConfig(), data.input_shape, data.n_classes, stream(1, "init")).to(device)
masks = {n: torch.rand(w.shape, generator=stream(1, n)) < 0.5 for n, w in network.named_parameters() if w.ndim == 2}
config = TrainConfig(n_epochs=4, batch_size=64, lr_schedule="constant")
trainer = Trainer(network, data.to(device), config, seed=1, callbacks=[Rotate()], mask=Mask(masks))
trainer.fit()
weights = dict(network.named_parameters())
assert all((weights[name].cpu()[~keep.cpu()] == 0).all() for name, keep in trainer.mask_owner.mask.items())
assert trainer.mask_owner.version == 4
print(*Rotate.found)
"""
STEPS, EVALUATIONS = 45, 45 + 12  # an epoch of 1,437 digits; batches of the training and of the test split


def start(*flags: object, root: Path) -> subprocess.Popen:
    command = [TPU_PYTHON, ROOT / "run.py", "--device", "tpu", *flags, "--results_root", root]
    environment = os.environ | ENVIRONMENT
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[Path, str]:
    """(run folder, standard error) of a process that is to succeed."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return Path(out.splitlines()[-1]), err


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    return finish(start(*MLP, "--n_epochs", 6, root=tmp_path_factory.mktemp("long")))[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """Results root of the same run, stopped by SIGTERM in its second epoch or later."""
    root = tmp_path_factory.mktemp("stopped")
    process = start(*MLP, "--n_epochs", 6, root=root)
    for line in process.stderr:
        if line.startswith("epoch 1/6"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    shutil.copytree(root, root.with_name("stopped_copy"))
    return root


@pytest.fixture(scope="module")
def stopped_copy(stopped) -> Path:
    return stopped.with_name("stopped_copy")


@pytest.fixture(scope="module")
def lenet(tmp_path_factory) -> Path:
    """A finetuned network whose dense parent the same process has trained."""
    return finish(start(*LENET, root=tmp_path_factory.mktemp("lenet")))[0]


def counts(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())["xla"]


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def tensors_in(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def largest_difference(a: Path, b: Path, name: str = "model.pt") -> float:
    one, other = load_stored(a / name).weights, load_stored(b / name).weights
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


def test_graphs_are_compiled_once_and_run_once_a_step(long_run, tmp_path):
    short, err = finish(start(*MLP, "--n_epochs", 3, root=tmp_path))
    assert counts(short)["compilations"] == counts(long_run)["compilations"] <= 12
    assert f"XLA on CPU: {counts(short)['compilations']} graphs compiled" in err
    more = {name: counts(long_run)[name] - counts(short)[name] for name in ("executions", "transfers_to_host")}
    # means of two passes and the check that everything is finite; their three results come to the host
    assert more["executions"] == 3 * (STEPS + EVALUATIONS + 3)
    kept = len(load_stored(short / "model.pt").weights)
    states = 2 * 3 * kept  # weights and momenta of each checkpoint
    assert more["transfers_to_host"] - 3 * 3 - states in range(0, 3 * kept + 1)  # and of the states that are kept
    assert counts(short)["host_operations"] == []
    assert "Warning" not in err


def test_a_mask_that_changes_again_compiles_nothing_anew():
    done = subprocess.run([TPU_PYTHON, "-c", CHANGES], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, _, *after = done.stdout.split()[-5:]  # the initialisation, and the epoch of the first change
    assert len(set(after)) == 1


def test_modes_that_change_their_mask_compile_nothing_for_a_change(tmp_path):
    """Twice as many changes; their masks and weights are the CPU's."""
    common = (*MLP, "--mode", "dynamic", "--prune_ratio", 0.8, "--mask_every", 10, "--save_snr", 0, "--save_fisher", 0)
    short, long = (finish(start(*common, "--n_epochs", n, root=tmp_path))[0] for n in (4, 8))
    assert counts(short)["compilations"] == counts(long)["compilations"]
    gradual = finish(start(*MLP, "--mode", "gradual", "--mask_every", 10, "--n_epochs", 4, root=tmp_path))[0]
    for folder in (short, gradual):
        config = replace(stored_config(RunFolder(folder)), device="cpu", results_root=str(tmp_path / "cpu"))
        mine, theirs = load_stored(folder / "model.pt"), load_stored(train_run(config) / "model.pt")
        for name, active in theirs.mask.items():
            assert int(mine.mask[name].sum()) == int(active.sum())
            assert int((mine.mask[name] & active).sum()) > 0.95 * int((mine.mask[name] | active).sum())
            assert not mine.weights[name][~mine.mask[name]].any()


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(long_run, stopped):
    folder, err = finish(start(*MLP, "--n_epochs", 6, root=stopped))
    assert "resuming after" in err
    assert largest_difference(folder, long_run) == 0


def test_checkpoints_go_from_device_to_device(long_run, stopped_copy, tmp_path):
    (checkpoint,) = stopped_copy.glob("*/*/*/*/checkpoint.pt")
    state = load_state(checkpoint)
    assert all(tensor.device.type == "cpu" for tensor in tensors_in(state))
    assert type(state["optimizer"]["param_groups"][0]["lr"]) is float
    config = replace(stored_config(RunFolder(long_run)), device="cpu")
    folder = train_run(replace(config, results_root=str(stopped_copy)))
    assert "resuming after" in (folder / "training.log").read_text()
    assert_alike(folder, long_run)

    with pytest.raises(Interrupted, match="after 1 epochs and 5 steps"):
        train_run(replace(config, results_root=str(tmp_path)), StopsInSecondEpoch(STEPS, 5))
    folder, err = finish(start(*MLP, "--n_epochs", 6, root=tmp_path))
    assert "resuming after 1 epochs and 5 steps" in err
    assert_alike(folder, long_run)


def test_dense_training_is_that_of_the_cpu(long_run, train):
    cpu = train(*MLP, "--n_epochs", 6, "--save_snr", 0, "--save_fisher", 0)
    assert cpu.name == long_run.name
    assert largest_difference(cpu, long_run, "state_dicts/epoch_0.pt") == 0
    assert_alike(long_run, cpu)


def test_training_options_are_those_of_the_cpu(train, tmp_path):
    """Mixed with other shares and boxes in every step, clipped, averaged and sharpness-aware: no step is compiled anew."""
    flags = (*LENET[:-4], "--n_epochs", 3, "--mode", "dense", "--mix", "cutmix", "--label_smoothing", 0.1)
    flags += ("--clip_norm", 0.5, "--ema", 0.8, "--optimizer_name", "adamw", "--lr", 0.002, "--sharpness_aware", 0.02)
    short, long = (finish(start(*flags, "--n_epochs", n, root=tmp_path))[0] for n in (3, 5))
    assert counts(short)["compilations"] == counts(long)["compilations"]
    assert counts(short)["host_operations"] == []
    assert_alike(short, train(*flags, "--save_snr", 0, "--save_fisher", 0))


def assert_alike(folder: Path, cpu: Path) -> None:
    """To rounding, which training multiplies: 1e-7 a step, and more where a ReLU falls on the other side of zero."""
    for ours, theirs in zip(history(folder), history(cpu), strict=True):
        assert ours["lr"] == theirs["lr"]
        assert ours["loss_train"] == pytest.approx(theirs["loss_train"], rel=0.01), ours["epoch"]
        assert ours["loss_test"] == pytest.approx(theirs["loss_test"], rel=0.03), ours["epoch"]
        assert ours["acc_train"] == pytest.approx(theirs["acc_train"], abs=0.01), ours["epoch"]


def test_pruned_and_augmented_training_is_that_of_the_cpu(lenet, train):
    cpu = train(*LENET, "--save_snr", 0, "--save_fisher", 0)
    (dense,), (dense_cpu,) = (list(folder.parents[1].glob("dense/*")) for folder in (lenet, cpu))
    assert largest_difference(dense, dense_cpu, "state_dicts/epoch_0.pt") == 0
    assert_alike(dense, dense_cpu)
    stored = load_stored(lenet / "model.pt")
    assert stored.mask.sparsity == pytest.approx(0.9, abs=1e-3)
    assert all((stored.weights[name][~keep] == 0).all() for name, keep in stored.mask.items())
    assert counts(lenet)["compilations"] < counts(dense)["compilations"]  # evaluation was compiled for the parent


def test_the_ordinary_environment_measures_afterwards(lenet, capsys):
    assert not stored_config(RunFolder(lenet)).metrics.save_fisher
    assert not (lenet / "metrics.csv").exists()
    with pytest.raises(SystemExit) as stop:
        experiment.main(["measure", str(lenet), "--device", "cpu", "--metrics", "fisher,snr"])
    assert stop.value.code == 0
    summary = json.loads((lenet / "summary.json").read_text())
    assert summary["metrics"]["fisher"]["value"] > 0
    with open(lenet / "snr.csv", newline="") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"3"}


def test_a_resnets_gradient_is_that_of_double_precision(tmp_path):
    """Of a batch where no ReLU is within rounding of zero: on which side it falls there may move the gradient by percents."""
    network = build_network(NetworkConfig(**RESNET), (1, 8, 8), 10, stream(0, "init"))
    exact = copy.deepcopy(network).double().train()
    for seed in itertools.count():
        inputs = torch.randn(8, 1, 8, 8, generator=stream(seed, "inputs"))
        if smallest_activation(exact, inputs.double()) > 1e-5:
            break
    labels = torch.arange(8)
    torch.nn.functional.cross_entropy(exact(inputs.double()), labels).backward()
    given = {"options": RESNET, "network": network.state_dict(), "inputs": inputs, "labels": labels}
    torch.save(given, tmp_path / "given.pt")
    command = [TPU_PYTHON, "-c", GRADIENT, tmp_path / "given.pt", tmp_path / "gradient.pt"]
    subprocess.run(list(map(str, command)), env=os.environ | ENVIRONMENT, cwd=ROOT, check=True, timeout=600)
    found = torch.load(tmp_path / "gradient.pt", weights_only=True)
    for name, parameter in exact.named_parameters():
        assert (found[name] - parameter.grad).norm() < 1e-4 * parameter.grad.norm(), name


def smallest_activation(network: torch.nn.Module, inputs: torch.Tensor) -> float:
    """The smallest magnitude that a ReLU takes in."""
    seen: list[float] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.relu:
                seen.append(args[0].abs().min().item())
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        copy.deepcopy(network)(inputs)
    assert seen
    return min(seen)

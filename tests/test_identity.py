"""Every file that decides a run's weights is in its identity, and nothing that does not."""

import copy
import gzip
import pickle
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from scipy.io import savemat

import loader.main
import run as command_line
from helper.schema.config import unflatten
from loader import loader_cifar100, loader_digits
from loader.made_up import N_TRAIN, labels_in_turn
from loader.main import DataConfig, fingerprint_of, load_dataset
from optim.checkpoint import load_state, save_state
from optim.config import RunConfig
from optim.identity import run_folder, run_identity
from optim.model import load_stored
from tests.edited import vouch
from tests.outcome import Outcome, outcome

QUICK = (
    "--figures", 0, "--n_epochs", 1, "--hidden_dims", 8, "--limit_train", 100, "--limit_test", 50, "--batch_size", 50,
    "--save_fisher", 0, "--save_snr", 0,
)  # fmt: skip


def start(root: Path, *flags: object) -> Outcome:
    found = outcome(command_line.main, *QUICK, *flags, "--results_root", root)
    assert found.code == 0, found.err
    return found


def initial(folder: Path) -> dict[str, torch.Tensor]:
    return load_stored(folder / "state_dicts/epoch_0.pt").weights


def same(a: Path, b: Path) -> bool:
    """Whether two runs begin with the same weights."""
    one, other = initial(a), initial(b)
    return all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------------------------------- parents


@pytest.fixture
def dense(tmp_path) -> tuple[Path, Path]:
    """Two dense runs as parents: the second has the first's solution, and began elsewhere."""
    one = start(tmp_path / "one").folder
    two = shutil.copytree(one, tmp_path / "two/run")
    state = load_state(two / "state_dicts/epoch_0.pt")
    for weight in state["network"].values():
        weight.mul_(2)
    save_state(two / "state_dicts/epoch_0.pt", state)
    vouch(two)
    return one, two


def test_two_initialisations_beside_one_solution_are_two_lottery_tickets(dense, tmp_path):
    lottery = ("--mode", "lottery", "--prune_ratio", 0.5, "--pretrain_model_path")
    one, two = (start(tmp_path, *lottery, parent).folder for parent in dense)
    assert one != two
    assert not same(one, two)
    by_file = start(tmp_path, *lottery, dense[1] / "model.pt").folder
    assert by_file == two
    said = start(tmp_path, *lottery, dense[0], "--lottery_model_path", dense[1]).folder
    assert said == two  # an equal spelling


@pytest.mark.parametrize("mode", ["sparse-finetune", "sparse-scratch"])
def test_an_initialisation_that_decides_nothing_does_not_count(dense, tmp_path, mode):
    flags = ("--mode", mode, "--prune_ratio", 0.5, "--pretrain_model_path")
    assert start(tmp_path, *flags, dense[0]).folder == start(tmp_path, *flags, dense[1]).folder


def test_a_lottery_ticket_without_an_initialisation_is_refused_with_the_cure(dense, tmp_path):
    shutil.copy(dense[0] / "model.pt", tmp_path / "alone.pt")
    flags = ("--mode", "lottery", "--pretrain_model_path", tmp_path / "alone.pt", "--results_root", tmp_path / "none")
    found = outcome(command_line.main, *QUICK, *flags)
    assert (found.code, "epoch_0.pt does not exist" in found.line, "--lottery_model_path" in found.line) == (1, True, True)
    assert not (tmp_path / "none").exists()


def test_of_a_given_parent_the_weights_decide_and_not_its_mask_or_epoch(dense, tmp_path):
    """Magnitudes are ranked anew, so that the mask in the file decides nothing."""
    state = load_state(dense[0] / "model.pt")
    torch.save(state["network"], tmp_path / "weights.pt")
    masked = copy.deepcopy(state) | {"mask": {n: w != 0 for n, w in state["network"].items() if w.ndim == 2}, "epoch": 77}
    save_state(tmp_path / "masked.pt", masked)
    flags = ("--mode", "sparse-finetune", "--prune_ratio", 0.5, "--pretrain_model_path")
    folders = {start(tmp_path, *flags, path).folder for path in (dense[0], tmp_path / "weights.pt", tmp_path / "masked.pt")}
    assert len(folders) == 1
    state["network"]["layers.0.bias"][0] += 1e-6
    save_state(tmp_path / "other.pt", state)
    assert start(tmp_path, *flags, tmp_path / "other.pt").folder not in folders


@pytest.mark.parametrize(
    "flags", [{"select": "test"}, {"split_seed": 1}, {"val_size": 0.1}, {"lr_pretrain": 0.2}, {"random_state_pretrain": 5}]
)
def test_what_decides_a_parent_found_by_settings_decides_its_children(flags):
    plain, other = (unflatten(RunConfig, {"mode": "sparse-scratch"} | more) for more in ({}, flags))
    assert run_identity(plain, None)["parent"] != run_identity(other, None)["parent"]


# -------------------------------------------------------------------------------------------------------------- data


def fresh(**flags: object) -> str | None:
    """The fingerprint of data files as they are now, by both ways to it."""
    load_dataset.cache_clear()
    loader.main.PRINTS.clear()
    config = DataConfig(**flags)
    found = load_dataset(config).fingerprint
    assert fingerprint_of(config) == found
    return found


FILES = {  # one data file of every kind that a loader reads, and with which flags
    "cifar-100-python/train": {"loader_name": "cifar100"},
    "cifar-100-python/test": {"loader_name": "cifar100"},
    "cifar-10-batches-py/data_batch_4": {"loader_name": "cifar10"},
    "cifar-10-batches-py/test_batch": {"loader_name": "cifar10", "train_noisy": True, "noise_method": "asymmetric"},
    "MNIST/raw/train-images-idx3-ubyte.gz": {"loader_name": "mnist"},
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": {"loader_name": "fmnist"},
    "var_u.mat": {"loader_name": "toy"},
    "CIFAR-100_human.pt": {"loader_name": "cifar100_noisy", "noise_method": "human"},
}


def altered(root: Path, name: str) -> None:
    """Other content of the same layout."""
    path = root / name
    if name == "var_u.mat":
        bits = numpy.random.default_rng(1).integers(0, 2, (256, 12), dtype=numpy.uint8)
        savemat(path, {"F": bits, "y": bits.sum(1, keepdims=True).T > 6})
    elif name == "CIFAR-100_human.pt":
        clean = numpy.array(labels_in_turn(N_TRAIN, 100))
        torch.save({"clean_label": clean, "noisy_label": (clean + 2) % 100}, path)
    elif name.endswith(".gz"):
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(content)))
    else:
        batch = pickle.loads(path.read_bytes())
        batch["data"][0, 0] ^= 1
        path.write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize("name", FILES)
def test_other_data_files_are_another_run(files, tmp_path, name):
    root = shutil.copytree(files, tmp_path / "data")
    flags = {"root": str(root), "verify_data": False, "download": False} | FILES[name]
    before = fresh(**flags)
    altered(root, name)
    after = fresh(**flags)
    assert None not in (before, after)
    assert before != after
    config = unflatten(RunConfig, flags | {"mode": "sparse-scratch"})
    assert run_folder(config, before).path != run_folder(config, after).path
    assert run_identity(config, before)["parent"] != run_identity(config, after)["parent"]


def test_the_bundled_digits_count_once_they_are_others(monkeypatch):
    assert fresh(loader_name="digits") is None
    read = numpy.loadtxt

    def other(*args, **kwargs):
        table = read(*args, **kwargs)
        table[0, 0] += 1
        return table

    monkeypatch.setattr(loader_digits.numpy, "loadtxt", other)
    assert fresh(loader_name="digits") is not None
    monkeypatch.undo()
    assert fresh(loader_name="digits") is None


def test_what_becomes_of_the_data_after_reading_does_not_read_them_again(files, monkeypatch):
    read, reads = loader_cifar100.read_images, []
    monkeypatch.setattr(loader_cifar100, "read_images", lambda path, key: reads.append(path) or read(path, key))
    loader.main.PRINTS.clear()
    for more in ({}, {"limit_train": 50}, {"val_size": 0.2}, {"limit_classes": 5}, {"augment": "none"}):
        fingerprint_of(DataConfig(loader_name="cifar100", root=str(files), verify_data=False, **more))
    assert len(reads) == 2

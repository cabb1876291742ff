"""On the real CIFAR-100 files under DATA_ROOT."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helper.system.versions import ROOT
from loader.loader_toy import read_mat
from loader.main import DataConfig, load_dataset
from tests.conftest import shell

pytestmark = pytest.mark.real_data


def load(root, name="cifar100", **flags):
    return load_dataset(DataConfig(loader_name=name, root=str(root), verify_data=0, download=0, **flags))


def test_cifar100_has_its_published_statistics(data_root):
    data = load(data_root)
    assert (len(data.train), len(data.test), data.n_classes) == (50_000, 10_000, 100)
    assert (data.train.labels.bincount() == 500).all()
    pixels = data.train.inputs[:].float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(data.mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(data.std), atol=1e-3, rtol=0)
    seen = data.normalise(data.train.inputs[:20_000])
    assert abs(seen.mean()) < 0.01 > abs(seen.std() - 1)
    assert data.class_names[:3] == ("apple", "aquarium_fish", "baby")


def test_asymmetric_noise_stays_within_the_real_superclasses(data_root):
    data = load(data_root, "cifar100_noisy", noise_method="asymmetric", noise_ratio=0.4)
    assert data.train.noisy.sum() == 20_000
    apple, mushroom = data.class_names.index("apple"), data.class_names.index("mushroom")
    assert set(data.train.labels[data.train.true_labels == apple].tolist()) == {apple, mushroom}


def test_human_labels_are_wrong_in_two_of_five(data_root):
    data = load(data_root, "cifar100_noisy", noise_method="human")
    assert data.train.noisy.double().mean().item() == pytest.approx(0.402, abs=5e-4)


def test_limits_are_class_balanced(data_root):
    data = load(data_root, limit_train=1000, limit_test=500)
    assert (data.train.labels.bincount() == 10).all()
    assert (data.test.labels.bincount() == 5).all()


def test_the_published_toy_file_has_every_pattern(data_root):
    bits, labels = read_mat(data_root / "toy/var_u.mat")
    assert len(bits.unique(dim=0)) == 4096
    assert labels.double().mean().item() == pytest.approx(0.517, abs=1e-3)


def test_other_files_than_the_published_ones_are_refused_unless_asked_for(data_root):
    from loader.archives import DataError

    with pytest.raises(DataError, match="--verify_data 0"):
        load_dataset(DataConfig(loader_name="cifar100", root=str(data_root)))


def test_a_resnet_learns_something_in_every_mode(data_root, train):
    flags = ("-ln", "cifar100", "-rt", data_root, "--verify_data", 0, "-nt", "resnet", "-dp", 8, "-wf", 1, "-pr", 0.5,
             "--limit_train", 1000, "--limit_test", 1000, "--augment", "none", "-ne", 2, "-bs", 32, "-lr", 0.05,
             "-ss", 0, "-ms", 100, "-mt", 2)  # fmt: skip
    from tests.test_smoke import final_accuracy

    for mode in ("dense", "sparse-finetune", "sparse-scratch", "lottery"):
        assert final_accuracy(train("-m", mode, *flags)) > 0.02  # chance is 0.01, its standard deviation 0.003


def test_memory_of_full_cifar100_stays_under_two_gigabytes(data_root, tmp_path):
    """Reading, an augmented epoch and the evaluation; scripts/benchmark_training.py measures a ResNet-20's activations too."""
    flags = ("-ln", "cifar100", "-rt", data_root, "--verify_data", 0, "-nt", "mlp", "-hd", "64", "-ne", 1,
             "--augment", "crop_flip", "-ss", 0, "-sf", 0, "-rr", tmp_path)  # fmt: skip
    done = shell(*flags)
    assert done.returncode == 0, done.stderr
    summary = json.loads((Path(done.stdout.splitlines()[-1]) / "summary.json").read_text())
    assert 300 < summary["peak_memory_mb"] < 2000


@pytest.mark.long
def test_the_sweep_script_runs_on_a_few_images(data_root, tmp_path):
    environment = os.environ | {"SMOKE": "1", "ROOT": str(data_root), "RESULTS_ROOT": str(tmp_path), "PYTHON": sys.executable,
                                "RATIOS": "0.9", "N_EPOCHS": "1", "LR_MILESTONES": ""}  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/cifar100_resnet.sh"), "--limit_train", "300"],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "cifar100/resnet8x1").iterdir()} == {"dense", "sparse-finetune", "sparse-scratch"}
    assert (tmp_path / "report/index.html").exists()

"""`pytest -m smoke`: every mode, every loader and every flag once, on a CPU with no data files, in under a minute."""

import csv
import dataclasses

import pytest

from helper.metrics.main import METRICS
from helper.schema.config import FlagError, all_flags, flag_fields
from loader.main import DATASETS
from network.main import NETWORKS
from optim.config import RunConfig
from optim.modes import MODES
from tests.conftest import NETWORKS_TRIED, PUBLISHED, input_shape_of

pytestmark = pytest.mark.smoke
QUICK = ("--figures", 0, "--n_epochs", 1, "-ms", 40, "-mt", 2, "-bf", 20)

EVERY_FLAG = {
    "mode": "lottery", "random_state": 7, "device": "cpu", "load_pretrain": 0, "overwrite": 1, "debug": 1, "figures": 1,
    "tracker": "tensorboard",
    "pretrain_model_path": None, "lottery_model_path": None,
    "trust_code": 0,
    "loader_name": "digits", "root": "data", "download": 0, "verify_data": 0, "test_size": 0.3,
    "limit_classes": 8, "limit_train": 200, "limit_test": 60, "val_size": 0.2, "split_seed": 1,
    "augment": "crop_flip", "train_noisy": 1, "noise_method": "asymmetric", "noise_ratio": 0.2, "noise_seed": 2,
    "net_name": "mlp", "net_args": "", "net_code": None, "loader_args": "",
    "in_dim": 64, "out_dim": 8, "init_method": "xavier",
    "prune_method": "random", "prune_ratio": 0.5, "prune_last": 1, "prune_also": "none",
    "sparse_step": "auto",
    "allocation": "uniform", "score_batches": 2, "score_rounds": 2, "mask_control": "shuffle", "train_budget": 1.5,
    "n_epochs": 3, "batch_size": 32, "optimizer_name": "sgd", "lr": 0.05, "momentum": 0.8, "nesterov": 1, "weight_decay": 1e-4,
    "lr_schedule": "stepwise", "lr_milestones": "1-2", "lr_gamma": 0.5, "warmup_epochs": 1, "reg_type": "jacobian,fisher",
    "reg_weight": 0.05, "reg_weights": "fisher:-0.1", "reg_schedule": "linear", "reg_schedules": "fisher:until:0.5",
    "reg_method": "difference", "reg_every": 2, "sharpness_aware": 0.05,
    "label_smoothing": 0.1, "mix": "cutmix", "mix_alpha": 0.5, "clip_norm": 2.0, "ema": 0.9,
    "precision": "bf16", "sync_batch_norm": 0, "compile": 0, "train_eval": "pass", "eval_every": 1, "select": "val",
    "save_best": 0, "save_epochs": "0-2", "train_on": "train",
    "train_subset": 1, "subset_ratio": 0.5, "subset_method": "loss", "save_forgetting": 0,
    "lr_pretrain": 0.1, "lr_schedule_pretrain": "cosine", "lr_milestones_pretrain": "1", "lr_gamma_pretrain": 0.2,
    "n_epochs_pretrain": 2, "batch_size_pretrain": 64, "random_state_pretrain": 8, "plain_pretrain": 1,
    "metric_every": 2, "metric_params": "weights", "metric_split": "test", "metric_rtol": 0.2, "metric_memory_mb": 50,
    "monte_carlo_samples": 40, "monte_carlo_trials": 2, "batch_size_fisher": 20,
}  # fmt: skip
OF_OTHER_MODES = {  # flags that are refused with the mode above, or with other flags there
    "gradual": {"mask_begin": 0.2, "mask_end": 0.6, "mask_every": 2, "recalibrate_bn": 1, "net_name": "resnet", "depth": 8},
    "sparse-scratch": {
        "subset_schedule": "hard-first",
        "subset_ratio": 0.5,
        "subset_until": 0.6,
        "subset_difficulty": "forgetting",
        "mix": "none",
        "save_forgetting": 1,
    },
    "dynamic": {"drop_fraction": 0.2, "growth": "random", "mask_every": 2},
    "iterative": {"prune_step": 0.4, "rewind": "lr", "rewind_epoch": 1},
}
for spec in (*DATASETS.values(), *NETWORKS.values()):  # their own flags, with values of their choice or else as usual
    EVERY_FLAG |= {
        name: field.default for name, field in vars(spec.flags or object).items() if isinstance(field, dataclasses.Field)
    }
for spec in NETWORKS.values():
    EVERY_FLAG |= spec.smoke


def other_value(field: dataclasses.Field) -> object:
    """Of a metric's own flag: another choice than the default, or the least number."""
    spec = field.metadata["flag"]
    return [choice for choice in spec.choices if choice != field.default][-1] if spec.choices else spec.low


for metric in METRICS.values():
    EVERY_FLAG[metric.switch] = 1
    EVERY_FLAG |= {field.name: other_value(field) for field in flag_fields(metric.Flags)}


def final_accuracy(folder) -> float:
    with open(folder / "history.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["acc_test"])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(train, mode):
    assert final_accuracy(train("--mode", mode, "--prune_ratio", 0.5, "--save_hessian", 1, *QUICK)) > 0.2


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("noisy", ["", "_noisy"])
def test_every_loader(train, files, name, noisy):
    shape = input_shape_of(name)
    network = ("-nt", "mnist_lenet") if takes("mnist_lenet", shape) else ("-nt", "mlp", "-hd", "8-4")
    limits = ("--limit_train", 120, "--limit_test", 50, "-bs", 50)
    folder = train("-ln", name + noisy, "-rt", files, "--verify_data", 0, "-dl", 0, *network, *limits, *QUICK)
    assert (folder / "labels.npz").exists() == bool(noisy)


def takes(network: str, input_shape: tuple[int, ...]) -> bool:
    try:
        NETWORKS[network].check_inputs(input_shape)
    except FlagError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in NETWORKS_TRIED if not name.startswith("vgg") and "alexnet" not in name])
def test_every_network_but_the_large_ones(train, files, name):
    """On the last data set that it takes; tests/test_zoo.py trains the others, on fewer images."""
    data = [each for each in PUBLISHED if takes(name, input_shape_of(each))][-1]
    own = [word for flag, value in NETWORKS[name].smoke.items() for word in (f"--{flag}", value)]
    train("-ln", data, "-rt", files, "--verify_data", 0, "-nt", name, *own,
          "--limit_train", 150, "--limit_test", 100, "-bs", 50, *QUICK)  # fmt: skip


def test_every_flag_once(train):
    flags = {name: value for name, value in EVERY_FLAG.items() if value is not None}
    assert set(EVERY_FLAG).union({"results_root"}, *OF_OTHER_MODES.values()) == set(all_flags(RunConfig))
    command = [word for name, value in flags.items() for word in (f"--{name}", value)]
    folder = train(*command)
    (parent,) = (folder.parents[1] / "dense").iterdir()
    given = train(*command, "--pretrain_model_path", parent, "--lottery_model_path", parent)
    assert final_accuracy(given) == final_accuracy(folder)
    assert given != folder


@pytest.mark.parametrize("mode", OF_OTHER_MODES)
def test_every_flag_of_other_modes_once(train, mode):
    flags = {"limit_train": 200, "limit_test": 60, "batch_size": 50, "prune_ratio": 0.5, **OF_OTHER_MODES[mode]}
    train("--mode", mode, *(word for name, value in flags.items() for word in (f"--{name}", value)), *QUICK, "--n_epochs", 2)


def test_other_choices_of_optimiser_schedule_and_method(train):
    train("-on", "adam", "-lr", 0.001, "-ls", "exponential", "-lg", 0.9, "-im", "none", "--hidden_act", "sigmoid", *QUICK)
    train("-ls", "constant", "--save_epochs", "none", "--train_eval", "running", "-ss", 0, "-sb", 1, "-hd", "", *QUICK)

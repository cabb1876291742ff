"""run.py as its users meet it: modes, run folder, repeating and resuming, refusals."""

import csv
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import yaml

import run as command_line
from helper.metrics.evaluation import evaluate
from helper.schema.config import all_flags
from helper.system.locks import exclusive
from helper.system.versions import ROOT
from loader.main import load_dataset
from optim import main, trainer
from optim.callbacks import tables
from optim.columns import HISTORY
from optim.config import ParentConfig, RunConfig
from optim.model import load_run, load_stored
from tests.conftest import shell
from tests.outcome import TIMING

SHORT = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0)


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    with open(folder / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return load_stored(folder / name).weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------ a run


def test_a_run_without_flags_gives_the_whole_run_folder(train):
    folder = train()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["acc_test"] > 0.94
    history = rows(folder, "history")
    assert list(history[0]) == HISTORY
    assert [int(row["epoch"]) for row in history] == list(range(31))
    assert summary["acc_test"] == float(history[-1]["acc_test"])
    assert {row["epoch"] for row in rows(folder, "snr")} == {str(epoch) for epoch in range(31)}
    metrics = rows(folder, "metrics")
    assert {(row["metric"], row["epoch"]) for row in metrics} == {("fisher", "0"), ("fisher", "30")}
    total = next(row for row in metrics if row["layer"] == "all" and row["epoch"] == "30")
    layers = [float(row["value"]) for row in metrics if row["layer"] != "all" and row["epoch"] == "30"]
    assert sum(layers) == pytest.approx(float(total["value"]))
    assert summary["metrics"]["fisher"]["standard_error"] == float(total["standard_error"])
    for name in ("performance", "snr", "gradients", "metrics"):
        assert (folder / f"figures/{name}.png").stat().st_size > 10_000
        assert (folder / f"figures/{name}.pdf").exists()
    for name in (
        "config.yaml",
        "training.log",
        "checkpoint.pt",
        "model.pt",
        "state_dicts/epoch_0.pt",
        "state_dicts/epoch_30.pt",
    ):
        assert (folder / name).exists()


def test_the_stored_configuration_repeats_the_run(train, tmp_path):
    folder = train("--mode", "lottery", "--prune_ratio", 0.5, *SHORT)
    first = weights(folder)
    stamp = (folder / "state_dicts/epoch_0.pt").stat().st_mtime_ns
    command_line.main(["--config", str(folder / "config.yaml"), "--overwrite", "1"])
    assert same(first, weights(folder))
    assert (folder / "state_dicts/epoch_0.pt").stat().st_mtime_ns > stamp
    assert "epoch 2/2" in (folder / "training.log").read_text()


def test_print_config_shows_a_file_that_parses(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--lr", "1e-3", "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["lr"] == 0.001


def test_flags_override_the_file(train, tmp_path):
    (tmp_path / "own.yaml").write_text("n_epochs: 5\nhidden_dims: 10-5\nsave_snr: 0\nsave_fisher: 0\n")
    folder = train("--config", tmp_path / "own.yaml", "-ne", 1)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert (stored["n_epochs"], stored["hidden_dims"]) == (1, "10-5")


# ------------------------------------------------------------------------------------------------- start modes


@pytest.fixture
def family(train):
    """{mode: run folder} of one dense network and its sparse children."""
    flags = ("--net_name", "mnist_lenet", "--prune_ratio", 0.8, "--lr", 0.05, *SHORT)
    return {mode: train("--mode", mode, *flags) for mode in ("dense", "sparse-finetune", "sparse-scratch", "lottery")}


def test_children_share_the_mask_and_start_as_the_paper_says(family):
    init_d = weights(family["dense"], "state_dicts/epoch_0.pt")
    sol_d = weights(family["dense"])
    stored = {mode: load_stored(folder / "state_dicts/epoch_0.pt") for mode, folder in family.items()}
    mask = stored["lottery"].mask
    assert mask.sparsity == pytest.approx(0.8, abs=1e-3)
    for mode, origin in (("sparse-finetune", sol_d), ("lottery", init_d)):
        assert same(dict(stored[mode].mask), dict(mask))
        for name, weight in stored[mode].weights.items():
            assert torch.equal(weight, origin[name] * mask[name] if name in mask else origin[name])
    scratch = stored["sparse-scratch"]
    assert same(dict(scratch.mask), dict(mask))
    for name, keep in mask.items():
        assert (scratch.weights[name][~keep] == 0).all()
        assert not (scratch.weights[name][keep] == init_d[name][keep]).any()


def test_the_mask_prunes_the_smallest_weights_of_the_dense_solution(family):
    sol_d, mask = weights(family["dense"]), load_stored(family["lottery"] / "model.pt").mask
    kept = torch.cat([sol_d[name][keep].abs() for name, keep in mask.items()])
    pruned = torch.cat([sol_d[name][~keep].abs() for name, keep in mask.items()])
    assert pruned.max() <= kept.min()


def test_final_weights_keep_the_mask_and_load_again(family):
    network, mask, config = load_run(family["sparse-finetune"])
    assert config.mode == "sparse-finetune"
    assert not network.training
    for name, keep in mask.items():
        assert (network.get_parameter(name)[~keep] == 0).all()
    summary = json.loads((family["sparse-finetune"] / "summary.json").read_text())
    assert summary["sparsity_achieved"] == pytest.approx(mask.sparsity)


def test_the_summary_counts_parameters_and_multiply_accumulates(train):
    """Digits through 64-128-64-10; four fifths of the weights before the last layer are pruned, biases never."""
    sparse = train("-m", "sparse-scratch", "-pr", 0.8, *SHORT)
    (dense,) = sparse.parent.parent.glob("dense/*")
    weights_of = {"layers.0": 64 * 128, "layers.2": 128 * 64, "layers.4": 64 * 10}
    n_weights, n_biases = sum(weights_of.values()), 128 + 64 + 10
    for folder, pruned, ratio in ((dense, 0, 0), (sparse, round(0.8 * 2 * 64 * 128), 0.8)):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["parameters_dense"] == n_weights + n_biases
        assert summary["parameters_active"] == n_weights + n_biases - pruned
        assert (summary["macs_dense"], summary["macs_active"]) == (n_weights, n_weights - pruned)
        assert (summary["sparsity_requested"], summary["sparsity_achieved"]) == (ratio, pytest.approx(pruned / (2 * 64 * 128)))
    zeros = {name: (weight == 0).double().mean().item() for name, weight in weights(sparse).items() if weight.ndim == 2}
    assert summary["sparsity_by_layer"] == {name: pytest.approx(zeros[name]) for name in ("layers.0.weight", "layers.2.weight")}


def test_times_rates_and_learning_rates_of_a_history_are_those_of_each_epoch(train, monkeypatch):
    for module in (tables, trainer, main):  # clocks that go on by a second each time somebody looks
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    folder = train(*SHORT, "--n_epochs", 3, "--lr_milestones", "1-2", "--lr", 0.1, "--limit_train", 300)
    history = rows(folder, "history")
    assert [float(row["seconds"]) for row in history] == [1, 1, 1, 1]
    assert [row["images_per_second"] for row in history] == ["", "300.0", "300.0", "300.0"]
    assert [float(row["lr"]) for row in history] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert json.loads((folder / "summary.json").read_text())["seconds"] == {"training": 4, "measuring": 1}


def test_peak_memory_is_in_mebibytes():
    """In a process of its own: in this one, other tests may have left a peak and freed memory that is used again."""
    script = """
import torch
from helper.system.memory import peak_memory_mb
before = peak_memory_mb(torch.device("cpu"))
held = b"1" * 2**28
print(peak_memory_mb(torch.device("cpu")) - before)
"""
    grown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert float(grown) == pytest.approx(256, abs=4)


def test_a_sparse_run_finds_its_parent_by_settings_and_trains_it_once(family):
    assert len(list(family["dense"].parent.iterdir())) == 1
    assert (family["dense"] / "training.log").read_text().count("dense mnist_lenet on digits") == 1


def test_many_children_use_one_finished_parent_at_once(train, family):
    with exclusive(family["dense"]):  # as another child that adds measurements to it would
        train("--mode", "sparse-finetune", "--prune_ratio", 0.7, "--net_name", "mnist_lenet", "--lr", 0.05, *SHORT)


def test_a_given_parent_may_move(train, family, tmp_path):
    flags = ("-m", "sparse-finetune", "-nt", "mnist_lenet", *SHORT)
    folder = train(*flags, "-pp", family["dense"])
    moved = family["dense"].rename(tmp_path / "moved")
    assert train(*flags, "-pp", moved) == folder


def test_a_parents_drawn_seed_is_drawn_once():
    config = RunConfig(mode="sparse-scratch", parent=ParentConfig(random_state_pretrain=0))
    assert config.dense_parent() == config.dense_parent()
    assert config.dense_parent().random_state > 0


def test_fresh_batchnorm_for_scratch_and_kept_batchnorm_for_finetune(train, files):
    flags = ("-ln", "cifar100", "-rt", files, "--verify_data", 0, "-nt", "resnet", "-dp", 8, "-wf", 1, "-ne", 1,
             "-ss", 0, "-sf", 0, "--limit_test", 50)  # fmt: skip
    finetune, scratch, dense = (train("-m", m, *flags) for m in ("sparse-finetune", "sparse-scratch", "dense"))
    start = {f: weights(f, "state_dicts/epoch_0.pt") for f in (finetune, scratch)}
    sol_d = weights(dense)
    assert torch.equal(start[finetune]["bn.running_mean"], sol_d["bn.running_mean"])
    assert torch.equal(start[finetune]["bn.weight"], sol_d["bn.weight"])
    assert start[scratch]["bn.running_mean"].abs().max() == 0
    assert torch.equal(start[scratch]["bn.weight"], torch.ones(16))


def test_explicit_parents_may_be_folders_or_files(train, family, tmp_path):
    flags = ("-nt", "mnist_lenet", "-pr", 0.8, "-lr", 0.05, *SHORT)
    by_folder = train("-m", "lottery", "-pp", family["dense"], *flags)
    by_file = train("-m", "lottery", "-pp", family["dense"] / "model.pt", "-tp", family["dense"], *flags)
    for folder in (by_folder, by_file):
        assert same(weights(folder), weights(family["lottery"]))
    assert by_folder != family["lottery"]


# --------------------------------------------------------------------------------------------------- selection


def test_select_val_keeps_the_first_best_epoch_and_sums_up_that_one(train):
    folder = train("--select", "val", "--val_size", 0.02, "-ne", 12, "-lr", 0.2, "-ls", "constant", "--save_epochs", "all",
                   "-ss", 0, "-sf", 0, "--figures", 0)  # fmt: skip
    history = rows(folder, "history")
    scores = [float(row["acc_val"]) for row in history[1:]]
    best = 1 + scores.index(max(scores))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epoch_selected"] == best < 12
    assert same(weights(folder), weights(folder, f"state_dicts/epoch_{best}.pt"))
    network, _, config = load_run(folder)
    data = load_dataset(config.data)
    for name in ("train", "val", "test"):
        means = evaluate(network, data.batches(getattr(data, name), 100))
        for quantity in ("loss", "acc"):
            assert summary[f"{quantity}_{name}"] == float(history[best][f"{quantity}_{name}"])
            assert summary[f"{quantity}_{name}"] == pytest.approx(means[quantity], rel=1e-5)


def test_the_initialisation_is_never_selected(train):
    """Weights that stand still are equally good at every epoch: the first one that trained is the first best."""
    folder = train("--select", "val", "--val_size", 0.2, "-lr", 0, "-wt", 0, *SHORT)
    assert json.loads((folder / "summary.json").read_text())["epoch_selected"] == 1


def test_save_best_is_select_test_and_says_that_it_is_biased(train):
    folder = train("-sb", 1, "-ne", 3, "-ss", 0, "-sf", 0)
    assert "biased" in (folder / "training.log").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["select"] == "test"


def test_select_last_keeps_the_last_weights(train):
    folder = train(*SHORT)
    assert same(weights(folder), weights(folder, "state_dicts/epoch_2.pt"))


# ------------------------------------------------------------------------------------------------- noisy labels


def test_noisy_runs_store_their_labels_and_split_curves(train):
    folder = train("--loader_name", "digits_noisy", "--noise_ratio", 0.25, "--n_epochs", 3, "--limit_train", 400)
    stored = numpy.load(folder / "labels.npz")
    assert (stored["true_label"] != stored["given_label"]).sum() == 100
    last = rows(folder, "history")[-1]
    share = 0.75 * float(last["acc_clean"]) + 0.25 * float(last["acc_memorized"])
    assert share == pytest.approx(float(last["acc_train"]))
    assert 0.75 * float(last["loss_clean"]) + 0.25 * float(last["loss_noisy"]) == pytest.approx(float(last["loss_train"]))
    assert (folder / "figures/noisy_performance.png").exists()


def test_other_training_seeds_see_the_same_noise_and_split(train):
    flags = ("-ln", "digits_noisy", "--limit_train", 200, "--val_size", 0.1, *SHORT)
    a, b, other = train("-rs", 1, *flags), train("-rs", 2, *flags), train("--noise_seed", 3, *flags)
    stored = [dict(numpy.load(folder / "labels.npz")) for folder in (a, b, other)]
    assert all((stored[0][key] == stored[1][key]).all() for key in stored[0])
    assert (stored[0]["index"] == stored[2]["index"]).all()
    assert (stored[0]["given_label"] != stored[2]["given_label"]).any()


def test_running_averages_replace_the_training_pass(train):
    folder = train("--train_eval", "running", "-ss", 0, "-sf", 0, "-ne", 3, "-ln", "digits_noisy")
    last = rows(folder, "history")[-1]
    assert 0 < float(last["acc_clean"]) <= 1
    assert not (folder / "snr.csv").exists()


# ---------------------------------------------------------------------------------------- repeating and resuming


def test_a_finished_run_is_left_alone_but_takes_more_measurements(train, tmp_path, capsys):
    folder = train(*SHORT)
    before = {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in (".pt", ".csv", ".json")}
    again = train(*SHORT)
    assert again == folder
    assert {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in (".pt", ".csv", ".json")} == before
    train("--n_epochs", 2, "--save_snr", 0, "--save_fisher", 1, "--save_hessian", 1)
    metrics = rows(folder, "metrics")
    assert {(row["metric"], row["epoch"]) for row in metrics} == {(m, e) for m in ("fisher", "hessian") for e in "02"}
    train("--n_epochs", 2, "--save_snr", 0, "--save_fisher", 1, "--save_hessian", 1)
    assert rows(folder, "metrics") == metrics
    assert set(json.loads((folder / "summary.json").read_text())["metrics"]) == {"fisher", "hessian"}


def test_a_finished_run_takes_snr_and_measurements_on_the_way_from_its_kept_states(train):
    flags = ("--n_epochs", 4, "--save_epochs", "0-2-4", "-ms", 50, "-mt", 2, "--figures", 0)
    at_once = train(*flags, "--metric_every", 2, "--random_state", 5)
    later = train(*flags, "--save_snr", 0, "--save_fisher", 0)
    assert not (later / "snr.csv").exists()
    assert train(*flags, "--metric_every", 2) == later
    assert {row["epoch"] for row in rows(later, "snr")} == {"0", "2", "4"}
    assert {row["epoch"] for row in rows(later, "metrics")} == {row["epoch"] for row in rows(at_once, "metrics")}
    again = train(*flags, "--metric_every", 2, "--random_state", 6, "--save_snr", 0)
    while_training = train(*flags, "--random_state", 6, "--overwrite", 1)
    assert again == while_training
    row = next(row for row in rows(while_training, "snr") if row["epoch"] == "2")
    (while_training / "snr.csv").unlink()
    train(*flags, "--random_state", 6)
    assert next(r for r in rows(while_training, "snr") if r["epoch"] == "2") == row


def test_the_two_ways_of_training_columns_do_not_mix(train):
    train(*SHORT)
    with pytest.raises(RuntimeError, match="--train_eval pass"):
        train(*SHORT, "--train_eval", "running")


def test_an_edited_configuration_is_noticed(train):
    folder = train(*SHORT)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(RuntimeError, match="other settings"):
        train(*SHORT)


def test_metric_every_measures_on_the_way(train):
    folder = train("--n_epochs", 4, "--metric_every", 2, "--save_snr", 0, "-ms", 100, "-mt", 2)
    assert [row["epoch"] for row in rows(folder, "metrics") if row["layer"] == "all"] == ["0", "2", "4"]


MIDDLE = ("--figures", 0, "--n_epochs", 25, "--net_name", "mnist_lenet", "--augment", "crop_flip", "--lr", 0.02,
          "--save_epochs", "all", "--limit_train", 500, "--select", "val", "--val_size", 0.2, "--train_noisy", 1)  # fmt: skip
LONG = (*MIDDLE, "--n_epochs", 60)


def interrupt(root: Path, number: signal.Signals, n_rows: int, flags: tuple, mode: str = "dense") -> tuple[int, str]:
    """Start a long run, send a signal when it has written so many rows; (exit code, what it printed to stderr)."""
    command = [sys.executable, str(ROOT / "run.py"), *map(str, flags), "--results_root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        tables = list(root.glob(f"*/*/{mode}/*/history.csv"))
        if tables and len(tables[0].read_text().splitlines()) > n_rows:
            break
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def comparable(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    history = [{k: v for k, v in row.items() if k not in TIMING} for row in rows(folder, "history")]
    return history, rows(folder, "snr") if (folder / "snr.csv").exists() else []


@pytest.mark.long
def test_a_killed_or_interrupted_run_ends_bit_identical(tmp_path):
    whole = Path(shell(*LONG, "--results_root", tmp_path / "whole").stdout.strip())
    root = tmp_path / "stopped"
    stops = [(signal.SIGKILL, 4), (signal.SIGTERM, 12), (signal.SIGKILL, 20), (signal.SIGUSR1, 28), (signal.SIGINT, 35),
             (signal.SIGUSR2, 42)]  # fmt: skip
    for number, n_rows in stops:
        code, errors = interrupt(root, number, n_rows, LONG)
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 75
            assert f"{number.name}: stopped after" in errors
    done = shell(*LONG, "--results_root", root)
    assert done.returncode == 0, done.stderr
    stopped = Path(done.stdout.strip())
    assert "resuming after" in (stopped / "training.log").read_text()
    assert (stopped / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
    assert comparable(stopped) == comparable(whole)
    for state in (whole / "state_dicts").iterdir():
        assert (stopped / "state_dicts" / state.name).read_bytes() == state.read_bytes()


def test_a_sparse_resnet_killed_in_parent_and_child_ends_bit_identical(files, tmp_path):
    """BatchNorm, mask, Adam, bf16 and augmentation all go through the checkpoint."""
    flags = ("-m", "sparse-finetune", "-pr", 0.8, "-ln", "cifar100", "-rt", files, "--verify_data", 0, "-nt", "resnet",
             "-dp", 8, "-wf", 1, "-ne", 8, "--limit_train", 100, "--limit_test", 100, "-bs", 25, "-on", "adam", "-lr", 0.001,
             "--precision", "bf16", "-ss", 0, "-sf", 0, "--figures", 0)  # fmt: skip
    whole = Path(shell(*flags, "--results_root", tmp_path / "whole").stdout.strip())
    root = tmp_path / "stopped"
    interrupt(root, signal.SIGKILL, 3, flags)
    interrupt(root, signal.SIGTERM, 3, flags, "sparse-finetune")
    done = shell(*flags, "--results_root", root)
    assert done.returncode == 0, done.stderr
    stopped = Path(done.stdout.strip())
    assert "resuming after" in (stopped / "training.log").read_text()
    assert (stopped / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()
    assert comparable(stopped) == comparable(whole)


def test_a_checkpoint_under_another_mask_is_refused(train):
    folder = train("-m", "sparse-finetune", *SHORT)
    (folder / "summary.json").unlink()
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["mask"]["layers.0.weight"] = ~state["mask"]["layers.0.weight"]
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(RuntimeError, match="another mask"):
        train("-m", "sparse-finetune", *SHORT)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lrr", "1"], ["--lrr: no such flag", "did you mean --lr?"]),
        (["--resume_epoch", "3"], ["--resume_epoch: resuming is automatic"]),
        (["-nj", "3"], ["-nj: the data set is in memory"]),
        (["--net_name", "resnett"], ["--net_name resnett", "did you mean resnet?"]),
        (["--prune_ratio", "1"], ["--prune_ratio 1", "below 1"]),
        (["--lr_milestones", "30-20"], ["--lr_milestones 30-20", "increase"]),
        (["--select", "val"], ["--select val needs --val_size"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["stray"], ["stray: no such flag"]),
        (["-rs", "9" * 400 + ".5"], ["--random_state", "an integer"]),
        (["--compile", "1", "--reg_type", "jacobian"], ["--compile 1", "--reg_type jacobian"]),
        (["-m", "lottery", "-tp", "typo.pt"], ["--lottery_model_path typo.pt", "does not exist"]),
        (["-m", "lottery", "--warmup_epochs", "5", "-nep", "3"], ["--warmup_epochs 5", "of the dense parent"]),
        (["--lr"], ["--lr: expected one argument"]),
        (["-m", "lottery", "--augment", "crop_flip", "-ln", "toy"], ["--augment crop_flip"]),
    ],
)
def test_wrong_flags_exit_2_with_one_line_and_create_nothing(refuse, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    line = refuse(*flags)
    assert line.startswith("run.py: error: ")
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lrr: 1\n", "did you mean --lr?"),
        ("lr: [1\n", "cannot be read as YAML"),
        ("!!python/name:os.system\n", "python/name"),
        ("config: 0\n", "a config of its own"),
        ("config: other.yaml\n", "a config of its own"),
    ],
)
def test_wrong_configuration_files_exit_2(refuse, tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    assert words in refuse("--config", tmp_path / "c.yaml")


def failed(*flags, code: int = 1, **kwargs) -> str:
    """The one line (after the log lines) of a run that fails."""
    done = shell(*flags, **kwargs)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_missing_damaged_and_too_little_data(files, tmp_path):
    out = ("--results_root", tmp_path / "results", "--verify_data", 0, "--download", 0)
    line = failed("-ln", "cifar10", "--root", tmp_path, *out)
    assert "data_batch_1 is missing; point --root at the data" in line
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"junk")
    assert "damaged" in failed("-ln", "cifar10", "--root", tmp_path, *out)
    assert "--limit_train 9999: the data set has only 400" in failed(
        "-ln", "cifar100", "--root", files, "--limit_train", 9999, *out
    )
    assert not (tmp_path / "results").exists()


def test_absent_devices(tmp_path):
    if not torch.cuda.is_available():
        assert "--device cuda: this PyTorch sees no CUDA device" in failed("-dv", "cuda", "-rr", tmp_path)
    assert "--device tpu: torch_xla is not installed" in failed("-dv", "tpu", "-rr", tmp_path)
    assert not list(tmp_path.iterdir())


def test_parents_of_another_architecture_damaged_or_missing(train, tmp_path):
    dense = train("--hidden_dims", "20", *SHORT)
    flags = ("-m", "sparse-finetune", "--hidden_dims", "30", *SHORT, "-rr", tmp_path / "other", "-pp")
    line = failed(*flags, dense)
    assert "'layers.0.weight' has shape (20, 64) but the network's is (30, 64)" in line
    assert "--hidden_dims" in line
    (dense / "model.pt").write_bytes((dense / "model.pt").read_bytes()[:100])
    assert "is damaged" in failed(*flags, dense)
    assert "--pretrain_model_path" in failed(*flags, tmp_path / "nowhere.pt", code=2)
    assert not (tmp_path / "other").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    flags = ("--n_epochs", 5, "--lr", "1e18", "-rr", tmp_path)
    line = failed(*flags)
    assert "the training loss or a weight is not finite in epoch 1" in line
    assert "--lr" in line
    (checkpoint,) = tmp_path.glob("*/*/*/*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    assert "Traceback" in (checkpoint.parent / "training.log").read_text()
    assert "not finite in epoch 1" in failed("--n_epochs", 1, "--limit_train", 100, "--lr", "1e30", "-rr", tmp_path)  # one step
    debug = shell(*flags, "--debug", 1)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on file sizes stands for the full disk: the checkpoint no longer fits."""
    code, _ = interrupt(tmp_path, signal.SIGTERM, 5, MIDDLE)
    assert code == 75
    (checkpoint,) = tmp_path.glob("*/*/*/*/checkpoint.pt")
    before = checkpoint.read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    line = failed(*MIDDLE, "-rr", tmp_path, preexec_fn=limit)
    assert "make room and run the same command again" in line
    assert checkpoint.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
    assert shell(*MIDDLE, "-rr", tmp_path).returncode == 0


def test_a_truncated_checkpoint_falls_back_and_says_so(tmp_path):
    interrupt(tmp_path, signal.SIGTERM, 8, MIDDLE)
    (checkpoint,) = tmp_path.glob("*/*/*/*/checkpoint.pt")
    os.truncate(checkpoint, 2000)
    done = shell(*MIDDLE, "-rr", tmp_path)
    assert done.returncode == 0
    assert "checkpoint.pt is damaged" in done.stderr
    assert "falling back to the previous checkpoint" in done.stderr
    assert "resuming after" in done.stderr


def test_two_processes_on_one_run(train):
    folder = train(*SHORT)
    with exclusive(folder):
        assert "in use by another process" in failed(*SHORT, "-rr", folder.parents[3])


def test_a_layer_pruned_to_nothing_is_named(train):
    folder = train("-m", "sparse-finetune", "-pr", 0.999, "--hidden_dims", "64-2-64", *SHORT)
    log = (folder / "training.log").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    empty = [name for name, sparsity in summary["sparsity_by_layer"].items() if sparsity == 1]
    assert empty
    for name in empty:
        assert f"layer {name.removesuffix('.weight')} is pruned to nothing" in log


def test_ratio_zero_prunes_nothing(train):
    folder = train("-m", "sparse-scratch", "-pr", 0, *SHORT)
    assert json.loads((folder / "summary.json").read_text())["sparsity_achieved"] == 0


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in all_flags(RunConfig):
        assert f"--{name}" in text

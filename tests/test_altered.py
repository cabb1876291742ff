"""What was altered in a finished run is refused by whatever would read it; what is added to it is known."""

import json
import os
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import experiment
import optim.main
import run as command_line
from helper.schema.config import digest
from optim.checkpoint import load_state, save_state
from optim.folder import AlteredFile, RunFolder
from optim.model import load_run
from tests.chaos import Watch, unknown_files
from tests.outcome import Outcome, outcome
from tests.stops import sigterm_after

QUICK = (
    "--figures", 0, "--n_epochs", 2, "--lr_milestones", 1, "--hidden_dims", 8, "--limit_train", 200, "--limit_test", 50,
    "--batch_size", 50, "--train_noisy", 1, "-ms", 40,
)  # fmt: skip
SPECTRUM = ("--save_spectrum", 1, "--spectrum_k", 1, "--spectrum_steps", 4, "--spectrum_runs", 1)
MODES = ("dense", "sparse-finetune", "sparse-scratch")


def start(root: Path, *flags: object) -> Outcome:
    return outcome(command_line.main, *QUICK, *flags, "--results_root", root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A results root: dense, finetuned and from scratch, with every kind of file; one of seed 1 beside each."""
    root = tmp_path_factory.mktemp("trained") / "results"
    for seed in (42, 1):
        for mode in MODES:
            found = start(root, "--mode", mode, "--random_state", seed, *SPECTRUM)
            assert found.code == 0, found.err
    return root


@pytest.fixture
def root(trained, tmp_path) -> Path:
    """A copy that a test may change, made as `cp -r` does, so that all time stamps are new."""
    return shutil.copytree(trained, tmp_path / "results", copy_function=shutil.copy)


def run_of(root: Path, mode: str = "dense", seed: int = 42) -> RunFolder:
    (path,) = root.glob(f"*/*/{mode}/*-s{seed}-*")
    return RunFolder(path)


def content(path: Path) -> dict[str, bytes]:
    """Of all files below a folder that hold numbers."""
    kinds = (".pt", ".csv", ".npz", ".json", ".yaml")
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.suffix in kinds and file.is_file()}


def refused(found: Outcome, file: str) -> bool:
    return (found.code, f"{file} is not what its run has left there" in found.line) == (1, True)


def commands(root: Path, mode: str) -> list[tuple]:
    """Whatever opens a finished run of a mode."""
    folder, scratch, finetune = (run_of(root, m).path for m in (mode, "sparse-scratch", "sparse-finetune"))
    found = [
        (command_line.main, *QUICK, "--mode", mode, *SPECTRUM, "--results_root", root),
        (command_line.main, *QUICK, "--mode", mode, "--save_jacobian", 1, "--results_root", root),
        (experiment.main, "measure", folder, "--metrics", "jacobian"),
        (experiment.main, "measure", folder, "--metrics", "snr", "--epochs", "all"),
        (experiment.main, "disagree", folder, run_of(root, mode, 1).path), (experiment.main, "disagree", scratch, folder),
    ]  # fmt: skip
    return found if mode == "dense" else [*found, (experiment.main, "interpolate", scratch, finetune)]


# ----------------------------------------------------------------------------------------------------- what is known


def test_the_hashes_of_a_finished_run_are_those_of_sha256sum(trained):
    for mode in MODES:
        folder = run_of(trained, mode)
        assert list(unknown_files(folder)) == []
        assert {"model.pt", "state_dicts/epoch_0.pt", "history.csv", "snr.csv", "metrics.csv", "spectrum.npz", "labels.npz",
                "spectra/epoch_0.npz", "config.yaml"} <= folder.read_summary()["files"].keys()  # fmt: skip


def test_an_unaltered_copy_is_taken_by_everything(root):
    for mode in ("dense", "sparse-scratch"):
        for main, *words in commands(root, mode)[:5]:
            found = outcome(main, *words)
            assert found.code == 0, found.err
        assert list(unknown_files(run_of(root, mode))) == []
    assert "left out" not in outcome(experiment.main, "report", root).err


# ------------------------------------------------------------------------------------------------- what was altered


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2])
def test_another_runs_weights_in_a_finished_runs_place_are_refused_everywhere(root, mode, copy):
    """`copy2` keeps the time stamp."""
    folder = run_of(root, mode)
    copy(run_of(root, mode, 1).model, folder.model)
    before = content(root)
    for main, *words in commands(root, mode):
        assert refused(outcome(main, *words), f"{folder.path.name}/model.pt"), words
    with pytest.raises(AlteredFile, match=r"model\.pt"):
        load_run(folder.path)
    assert content(root) == before
    found = outcome(experiment.main, "report", root)
    assert found.code == 0
    assert f"{folder.path.name}/model.pt is not what its run has left there" in found.err
    assert folder.path.name not in (root / "report/runs.csv").read_text()


def other_epoch(folder: RunFolder) -> None:
    shutil.copy(folder.epoch_state(1), folder.epoch_state(2))


def saved_again(folder: RunFolder) -> None:
    state = load_state(folder.epoch_state(1))
    next(iter(state["network"].values()))[0] += 1e-7
    save_state(folder.epoch_state(1), state)


def foreign_epoch(folder: RunFolder) -> None:
    shutil.copy(folder.epoch_state(1), folder.epoch_state(7))


@pytest.mark.parametrize(
    ("change", "name"),
    [(other_epoch, "epoch_2.pt"), (saved_again, "epoch_1.pt"), (foreign_epoch, "epoch_7.pt")],
)
def test_kept_states_that_are_not_the_runs_are_not_measured(root, change, name):
    folder = run_of(root)
    change(folder)
    epoch = name.removeprefix("epoch_").removesuffix(".pt")
    for words in (("--epochs", "all"), ("--epochs", epoch)):
        assert refused(outcome(experiment.main, "measure", folder.path, "--metrics", "jacobian", *words), f"state_dicts/{name}")
    assert refused(start(root, "--save_jacobian", 1, "--metric_every", 1), f"state_dicts/{name}")
    assert not any(row["metric"] == "jacobian" and row["epoch"] == epoch for row in folder.metrics().rows)


def one_digit(path: Path) -> None:
    """Another last digit in the second row's first number with a point."""
    lines = path.read_text().split("\n")
    cells = lines[2].split(",")
    place = next(i for i, cell in enumerate(cells) if "." in cell and cell[-1].isdigit())
    cells[place] = cells[place][:-1] + str((int(cells[place][-1]) + 1) % 10)
    path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]))


def one_label(path: Path) -> None:
    with numpy.load(path) as arrays:
        changed = dict(arrays)
    changed["given_label"][0] = (changed["given_label"][0] + 1) % 10
    numpy.savez(path, **changed)


def one_eigenvalue(path: Path) -> None:
    with numpy.load(path) as arrays:
        changed = dict(arrays)
    changed["eigenvalues"] *= 2
    numpy.savez(path, **changed)


def one_flag(path: Path) -> None:
    """That is not part of the identity."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"metric_split": "test"}))


FILES = {
    "history.csv": one_digit, "snr.csv": one_digit, "metrics.csv": one_digit, "labels.npz": one_label,
    "spectrum.npz": one_eigenvalue, "spectra/epoch_0.npz": one_eigenvalue, "config.yaml": one_flag,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_edited_afterwards_is_refused_everywhere(root, name):
    folder = run_of(root)
    FILES[name](folder.path / name)
    before = content(root)
    for main, *words in commands(root, "dense"):
        assert refused(outcome(main, *words), name), words
    found = outcome(experiment.main, "report", root)
    assert (found.code, f"{name} is not what its run has left there" in found.err) == (0, True)
    assert folder.path.name not in (root / "report/runs.csv").read_text()
    shutil.rmtree(root / "report")
    assert content(root) == before


@pytest.mark.parametrize("name", ["history.csv", "labels.npz"])
def test_a_file_of_the_training_that_is_gone_is_named(root, name):
    folder = run_of(root)
    (folder.path / name).unlink()
    for main, *words in commands(root, "dense"):
        found = outcome(main, *words)
        assert (found.code, f"{name} is gone: put a copy of it back" in found.line) == (1, True)
    assert f"{name} is gone" in outcome(experiment.main, "report", root).err


@pytest.mark.parametrize("name", ["metrics.csv", "spectrum.npz", "model.pt"])
def test_what_is_altered_comes_back_once_removed_as_the_line_says(root, trained, name):
    folder, other = run_of(root), run_of(root, seed=1)
    shutil.copy(other.path / name, folder.path / name)
    found = start(root, *SPECTRUM)
    assert refused(found, name)
    assert "remove it, and the run's command makes it again" in found.line
    (folder.path / name).unlink()
    assert start(root, *SPECTRUM).code == 0
    assert list(unknown_files(folder)) == []
    if name == "model.pt":
        assert folder.model.read_bytes() == run_of(trained).model.read_bytes()


@pytest.mark.parametrize("name", ["acc_test", "metrics", "files"])
def test_an_edited_summary_is_damaged(root, name):
    folder = run_of(root)
    summary = json.loads(folder.summary.read_text())
    summary[name] = {"acc_test": 1.0, "metrics": {}, "files": summary["files"] | {"model.pt": 64 * "0"}}[name]
    folder.summary.write_text(json.dumps(summary))
    for main, *words in commands(root, "dense"):
        found = outcome(main, *words)
        assert (found.code, "summary.json is damaged" in found.line) == (1, True)
    assert "summary.json is damaged" in outcome(experiment.main, "report", root).err


def test_a_run_without_hashes_is_not_believed(root):
    folder = run_of(root)
    summary = json.loads(folder.summary.read_text())
    for name in ("files", "files_pending", "checksum"):
        del summary[name]
    folder.summary.write_text(json.dumps(summary | {"checksum": digest(summary)}))
    assert "summary.json is damaged" in start(root).line
    folder.summary.unlink()
    assert start(root).code == 0
    assert list(unknown_files(folder)) == []


# ----------------------------------------------------------------------------------------------------------- parents


def test_no_child_is_trained_from_a_parent_that_is_not_what_it_is_called(root):
    dense, other = run_of(root), run_of(root, seed=1)
    shutil.copy(other.model, dense.model)
    shutil.copy(other.epoch_state(0), dense.epoch_state(0))
    before = content(root)
    child = ("--mode", "sparse-scratch", "--prune_ratio", 0.5)
    for flags in (child, (*child, "-pp", dense.path), (*child, "-pp", dense.model)):
        assert refused(start(root, *flags), "model.pt"), flags
    lottery = ("--mode", "lottery", "--prune_ratio", 0.5)
    for flags in ((*lottery, "-pp", other.path, "-tp", dense.path), (*lottery, "-pp", other.path, "-tp", dense.epoch_state(0))):
        assert refused(start(root, *flags), "epoch_0.pt"), flags
    assert content(root).keys() == before.keys()


def test_weights_of_any_origin_are_taken_wherever_they_lie(root, tmp_path):
    """Beside files of the same names that are none of a run's."""
    (tmp_path / "mine").mkdir()
    shutil.copy(run_of(root).model, tmp_path / "mine/model.pt")
    (tmp_path / "mine/summary.json").write_text('{"mine": 1}')
    assert start(root, "--mode", "sparse-scratch", "-pp", tmp_path / "mine/model.pt").code == 0
    shutil.copy(run_of(root, seed=1).model, run_of(root).path / "other.pt")
    assert start(root, "--mode", "sparse-scratch", "-pp", run_of(root).path / "other.pt").code == 0


# ----------------------------------------------------------------------------- while it grows, and while it is trained


def test_measurements_added_later_are_known_whoever_adds_them(root):
    folder = run_of(root)
    before = folder.read_summary()["files"]
    assert outcome(experiment.main, "measure", folder.path, "--metrics", "jacobian,fisher", "--epochs", "all").code == 0
    assert start(root, "--save_hessian", 1).code == 0
    after = folder.read_summary()["files"]
    assert list(unknown_files(folder)) == []
    assert {name for name in after if after[name] != before.get(name)} == {"metrics.csv"}


def stop_at(monkeypatch, root: Path, nth: int) -> None:
    """From now on the nth operation on a file that holds numbers ends the process, as far as one can in a test."""
    left = [nth]

    def at(place):
        left[0] -= place[0].endswith((".csv", ".npz", ".json"))
        if left[0] == 0:
            raise KeyboardInterrupt(" ".join(place))

    watch = Watch(root, at)
    monkeypatch.setattr("builtins.open", watch.opened)
    monkeypatch.setattr(os, "replace", watch.watched("replace", os.replace))


def test_a_measurement_stopped_at_any_file_leaves_a_run_that_is_known_and_can_be_measured_on(trained, tmp_path, monkeypatch):
    words = (*SPECTRUM, "--save_jacobian", 1, "--spectrum_matrix", "gauss_newton")
    stopped = []
    for nth in range(1, 400, 3):  # a write is four operations
        root = shutil.copytree(trained, tmp_path / str(nth))
        with monkeypatch.context() as patch:
            stop_at(patch, root, nth)
            try:
                assert start(root, *words).code == 0
                break
            except KeyboardInterrupt as stop:
                stopped.append(str(stop))
        folder = run_of(root)
        folder.check_files()
        assert start(root, *words).code == 0
        assert list(unknown_files(folder)) == []
        assert {"fisher", "jacobian"} <= folder.read_summary()["metrics"].keys()
        shutil.rmtree(root)
    kinds = {name.split(" ")[0] for name in stopped}
    assert kinds == {"metrics.csv", "spectrum.npz", "epoch_#.npz", "summary.json"}
    assert sum(name.startswith("summary.json") for name in stopped) >= 5  # before each file, and at the end


def test_while_a_measurement_is_pending_other_contents_are_refused(root, monkeypatch):
    folder = run_of(root)
    with monkeypatch.context() as patch:
        patch.setattr(optim.main, "refresh_summary", lambda folder, config: None)
        assert start(root, "--save_jacobian", 1).code == 0
    assert folder.read_summary()["files_pending"].keys() == {"metrics.csv"}
    text = folder.metrics().path.read_text()
    one_digit(folder.metrics().path)
    assert refused(start(root, "--save_jacobian", 1), "metrics.csv")
    folder.metrics().path.write_text(text)
    assert start(root, "--save_jacobian", 1).code == 0
    assert list(unknown_files(folder)) == []


def test_who_reads_while_a_measurement_is_added_is_not_refused(root, monkeypatch):
    folder = run_of(root)
    read, before = RunFolder.read_summary, folder.read_summary()
    assert start(root, "--save_jacobian", 1).code == 0
    former = [before, before]  # read before the table was replaced
    monkeypatch.setattr(RunFolder, "read_summary", lambda self: former.pop() if former else read(self))
    with pytest.raises(AlteredFile, match=r"metrics\.csv"):
        folder.check_files()
    former.append(before)
    folder.check_files()
    assert not former


@pytest.fixture
def interrupted(tmp_path):
    """interrupted(*flags) -> a run that SIGTERM stopped after its first epoch of three."""

    def call(*flags: object) -> RunFolder:
        with sigterm_after(1):
            assert start(tmp_path, "--n_epochs", 3, *flags).code == 75
        (path,) = tmp_path.glob("*/*/*/*")
        return RunFolder(path)

    return call


def test_states_exchanged_while_a_run_was_interrupted_are_not_its_own(interrupted, tmp_path):
    folder = interrupted("--save_epochs", "all")
    shutil.copy(folder.epoch_state(0), folder.epoch_state(1))
    assert start(tmp_path, "--n_epochs", 3, "--save_epochs", "all").code == 0
    assert list(unknown_files(folder)) == ["state_dicts/epoch_1.pt has not the hash that is recorded"]
    found = outcome(experiment.main, "measure", folder.path, "--metrics", "jacobian", "--epochs", "1")
    assert refused(found, "state_dicts/epoch_1.pt")


@pytest.mark.parametrize("kept", [True, False])
def test_selected_weights_exchanged_while_a_run_was_interrupted_are_not_selected(interrupted, tmp_path, monkeypatch, kept):
    """Of a run whose first epoch is its best; where its state was kept, the weights come back."""
    flags = ("--select", "val", "--val_size", 0.2, "--lr_gamma", 0, "--save_epochs", "all" if kept else "none")
    folder = interrupted(*flags)
    before = folder.model.read_bytes()
    state = load_state(folder.model)
    next(iter(state["network"].values())).zero_()
    save_state(folder.model, state)
    found = start(tmp_path, "--n_epochs", 3, *flags)
    if kept:
        assert found.code == 0, found.err
        assert folder.model.read_bytes() == before
        assert list(unknown_files(folder)) == []
    else:
        assert (found.code, "model.pt is not what this run has left there" in found.line) == (1, True)
        assert not folder.summary.exists()


def test_a_run_does_not_go_on_from_another_runs_checkpoint(interrupted, tmp_path):
    """Even if the tables were copied as well, and the networks are of one shape."""
    folder = interrupted()
    (tmp_path / "other").mkdir()
    other = RunFolder(start(tmp_path / "other", "--n_epochs", 3, "--random_state", 1).folder)
    for name in ("checkpoint.pt", "history.csv", "snr.csv", "metrics.csv"):
        shutil.copy(other.path / name, folder.path / name)
    (folder.path / "checkpoint.previous.pt").unlink()
    found = start(tmp_path, "--n_epochs", 3)
    assert found.code == 1
    assert f"checkpoint.pt is of another run, {other.path.name}; remove checkpoint.pt" in found.line
    folder.checkpoint.unlink()
    assert start(tmp_path, "--n_epochs", 3).code == 0
    assert folder.model.read_bytes() != other.model.read_bytes()


def test_states_that_nobody_knows_are_gone_when_a_run_goes_on(interrupted, tmp_path):
    folder = interrupted("--save_epochs", "all")
    shutil.copy(folder.epoch_state(0), folder.epoch_state(2))
    torch.save({"network": {}}, folder.epoch_state(99))
    assert start(tmp_path, "--n_epochs", 3, "--save_epochs", "none").code == 0
    assert folder.kept_epochs() == [0, 1]
    assert list(unknown_files(folder)) == []
    assert start(tmp_path, "--n_epochs", 3).code == 0

"""What the commands say of damaged files, of runs that went wrong, and of limits: one line, file and cure, no Python."""

import builtins
import errno
import os
import re
import shutil
from pathlib import Path

import numpy
import pytest
import torch

import experiment
import run as command_line
from helper.system.errors import one_line_errors
from optim.checkpoint import DamagedFile, load_state, save_state
from tests.edited import edit_summary, vouch
from tests.outcome import Outcome, outcome

QUICK = (
    "--figures", 0, "--n_epochs", 2, "--lr_milestones", 1, "--hidden_dims", 4, "--limit_train", 40, "--limit_test", 20,
    "--batch_size", 10, "--save_epochs", "all", "-ms", 10,
)  # fmt: skip
EXCEPTIONS = [name for name in dir(builtins) if name.endswith(("Error", "Exception"))]
PYTHON = re.compile(
    rf"\b({'|'.join(EXCEPTIONS)}|Unpickl\w+|BadZipFile|JSONDecode\w+)\b|weights_only|allow_pickle|Traceback|object at 0x"
)
FILES = (
    "summary.json",
    "config.yaml",
    "history.csv",
    "snr.csv",
    "metrics.csv",
    "model.pt",
    "state_dicts/epoch_1.pt",
    "spectrum.npz",
)
KINDS = {
    "first half": lambda content: content[: len(content) // 2],
    "without its last bytes": lambda content: content[:-3], "a list": lambda content: b"[]",
    "not a number": lambda content: re.sub(rb"\d\.\d+", b"nan", content),
}  # fmt: skip


def start(root: Path, *flags: object) -> Outcome:
    return outcome(command_line.main, *QUICK, *flags, "--results_root", root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("messages") / "results"
    found = start(root, "--save_spectrum", 1, "--spectrum_k", 1, "--spectrum_steps", 3, "--spectrum_runs", 1)
    assert found.code == 0, found.err
    assert start(root, "-m", "sparse-scratch").code == 0
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_speaks_of_damage_in_the_users_words(finished, tmp_path, kind):
    for name in FILES:
        root = tmp_path / name.replace("/", "_")
        shutil.copytree(finished, root)
        dense, scratch = (next(root.glob(f"*/*/{mode}/*")) for mode in ("dense", "sparse-scratch"))
        content = (dense / name).read_bytes()
        (dense / name).write_bytes(KINDS[kind](content))
        if name != "summary.json":
            vouch(dense)  # what is behind the check of hashes
        commands = [
            (experiment.main, "report", root), (experiment.main, "status", root, "--all"),
            (experiment.main, "measure", dense, "--metrics", "jacobian", "--epochs", "all"),
            (experiment.main, "disagree", dense, scratch, "--images", 0), (command_line.main, *QUICK, "--results_root", root),
        ]  # fmt: skip
        for main, *words in commands:
            found = outcome(main, *words)
            assert found.code in (0, 1, 2), (name, words, found.err)
            assert not PYTHON.search(found.err + found.out), (name, words, found.err)
            if found.code:
                assert f"{name.rpartition('/')[2]}" in found.line, (name, words, found.line)


def left_out(root: Path) -> list[str]:
    return [line for line in outcome(experiment.main, "report", root).err.splitlines() if line.startswith("left out")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acc_test": "high"}, "acc_test is no number of a run"), ({"metrics": {"fisher": None}}, "holds something else"),
        ({"metrics": {"fisher": {"value": 1.0}}}, "it lacks standard_error"), ({"mode": "thick"}, "none of dense"),
        ({"seconds": 3}, "holds something else"), ({"identity": []}, "summary.json"), ({"acc_test": None}, "acc_test"),
    ],
)  # fmt: skip
def test_what_the_report_leaves_out_has_file_reason_and_cure(finished, tmp_path, change, words):
    shutil.copytree(finished, tmp_path / "results")
    folder = next((tmp_path / "results").glob("*/*/dense/*"))
    edit_summary(folder, lambda summary: summary.update(change))
    (line,) = left_out(tmp_path / "results")
    assert "summary.json is damaged: " in line
    assert words in line
    assert "remove it" in line
    assert not PYTHON.search(line)


# ---------------------------------------------------------------------------------------------------- states on disk


@pytest.mark.parametrize("name", ["objects", "a function", "half", "text", "empty", "an old format"])
def test_a_state_that_is_none_is_refused_without_the_librarys_advice(tmp_path, name):
    path = tmp_path / "state.pt"
    if name == "objects":
        torch.save({"a": numpy.zeros(3)}, path)
    elif name == "a function":
        torch.save({"a": print}, path)
    elif name == "an old format":
        torch.save({"a": print}, path, _use_new_zipfile_serialization=False)
    else:
        save_state(path, {"a": torch.zeros(300)})
        path.write_bytes({"half": path.read_bytes()[:900], "text": b"lr: 0.1\n" * 99, "empty": b""}[name])
    with pytest.raises(DamagedFile) as refused:
        load_state(path)
    assert str(path) in str(refused.value)
    assert "removed" in str(refused.value)
    assert not PYTHON.search(str(refused.value))


def test_the_systems_errors_name_the_file_and_the_cure_and_not_the_exception(capsys):
    hook = one_line_errors("run.py")
    numbers = (errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EISDIR)
    for error in (OSError(number, os.strerror(number), "/a/b.csv") for number in numbers):
        hook(type(error), error, None)
        line = capsys.readouterr().err
        assert line.startswith(f"run.py: error: /a/b.csv: {error.strerror}; ")
        assert not PYTHON.search(line)


# ------------------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--limit_train", 1], 2, ["--limit_train", "--save_fisher 0", "2"]),
        (["--limit_train", 0], 2, ["--limit_train 0", "at least 1"]),
        (["--limit_train", 5000], 1, ["--limit_train 5000", "give at most 1438"]),
        (["--limit_test", 5000], 1, ["--limit_test 5000", "give at most 359"]),
        (["--limit_test", 1, "--metric_split", "test"], 2, ["--limit_test", "--save_fisher 0"]),
        (["--limit_train", 3, "--val_size", 0.5], 2, ["--limit_train"]),
        (["--limit_classes", 11], 1, ["--limit_classes 11", "give fewer"]),
        (["--limit_train", 1, "--val_size", 0.5], 1, ["--val_size 0.5", "--limit_train"]),
        (["--limit_train", 1, "--save_fisher", 0, "--save_spectrum", 1], 2, ["--save_spectrum 0"]),
    ],
)  # fmt: skip
def test_too_few_or_too_many_examples_are_refused_with_a_cure_before_anything_is_made(tmp_path, flags, code, words):
    found = outcome(
        command_line.main, "--figures", 0, "--n_epochs", 1, "--lr_milestones", 1, *flags, "--results_root", tmp_path
    )
    assert found.code == code
    assert all(word in found.line for word in words), found.line
    assert not list(tmp_path.iterdir())


def test_fewer_examples_than_classes_are_trained_with_a_warning(tmp_path):
    flags = ("--figures", 0, "--n_epochs", 1, "--lr_milestones", 1, "--save_fisher", 0)
    found = outcome(command_line.main, *flags, "--limit_train", 5, "--results_root", tmp_path)
    assert found.code == 0
    assert "are of 5 of 10 classes: raise --limit_train" in (found.folder / "training.log").read_text()
    found = outcome(command_line.main, *flags, "--limit_train", 10, "--results_root", tmp_path)
    assert "classes" not in (found.folder / "training.log").read_text()


# ------------------------------------------------------------------------------------------------------------ status


def states(root: Path) -> dict[str, str]:
    """{mode: its line in the status of all runs}."""
    lines = outcome(experiment.main, "status", root, "--all").out.splitlines()[2:]
    return {mode: line for line in lines for mode in ("dense", "sparse-scratch") if f"/{mode}/" in line}


@pytest.mark.parametrize("name", ["summary.json", "history.csv", "model.pt", "metrics.csv", "snr.csv", "config.yaml"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_finished_run_with_a_truncated_file_is_not_called_finished(finished, tmp_path, name, kept):
    shutil.copytree(finished, tmp_path / "results")
    path = next((tmp_path / "results").glob(f"*/*/dense/*/{name}"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))] if name != "config.yaml" else content[: int(kept * 100)])
    line = states(tmp_path / "results")["dense"]
    assert line.startswith("damaged")
    assert f"{name} is not whole: put a copy of it back, or repeat the run with --overwrite 1" in line
    assert states(tmp_path / "results")["sparse-scratch"].startswith("finished")
    assert "damaged" in outcome(experiment.main, "status", tmp_path / "results").out, "without --all"


def test_a_finished_run_that_lacks_its_last_epochs_is_not_called_finished(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    path = next((tmp_path / "results").glob("*/*/dense/*/history.csv"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "history.csv is not whole" in states(tmp_path / "results")["dense"]


def test_a_run_that_diverged_has_failed_and_one_that_goes_on_has_not(tmp_path):
    found = start(tmp_path, "--lr", "1e18")
    assert (found.code, "not finite" in found.line) == (1, True)
    assert states(tmp_path)["dense"].startswith("failed")
    log = next(tmp_path.glob("*/*/*/*/training.log"))
    text = log.read_text()
    log.write_text(text + "2026-01-01 00:00:00,000 INFO resuming after 0 epochs and 3 steps\n")
    assert states(tmp_path)["dense"].startswith("interrupted")
    stopped = text.rstrip().rpartition("\n")[0] + "\noptim.callbacks.Interrupted: SIGTERM: saved\n"
    for other in (stopped, stopped.replace("optim.callbacks.Interrupted: SIGTERM: saved", "KeyboardInterrupt"), "", "no log"):
        log.write_text(other)
        assert states(tmp_path)["dense"].startswith("interrupted")


@pytest.mark.parametrize(("flags", "held"), [((), 2), (("--optimizer_name", "adam"), 3), (("--momentum", 0), 1)])
def test_training_that_cannot_fit_into_memory_is_warned_of_before_it_begins(tmp_path, monkeypatch, flags, held):
    """A gradient for each parameter; SGD has a momentum beside it, Adam two moments."""
    monkeypatch.setattr("optim.main.available_memory_mb", lambda: 1.0)
    flags = ("--hidden_dims", 8192, "--n_epochs", 1, "--lr_milestones", 1, *flags)
    found = start(tmp_path, *flags)
    size = 4 * (64 * 8192 + 8192 * 10 + 8192 + 10) / 2**20
    assert found.code == 0
    assert f"take {size * held:.0f} MB and 1 MB of memory are free" in (found.folder / "training.log").read_text()
    monkeypatch.setattr("optim.main.available_memory_mb", lambda: size * held + 1)
    found = start(tmp_path / "enough", *flags)
    assert "memory are free" not in (found.folder / "training.log").read_text()

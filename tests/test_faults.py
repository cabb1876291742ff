"""Faults around a run: each gives one line and an exit code, and once it is gone the run ends as if undisturbed."""

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import experiment
import optim.main
import run as command_line
from helper.system.locks import exclusive
from helper.system.versions import ROOT
from optim.callbacks.keeping import WriteCheckpoint
from optim.checkpoint import load_state
from optim.folder import RunFolder
from optim.trackers.main import TRACKERS
from tests.chaos import Watch, differences
from tests.outcome import Outcome, outcome
from tests.stops import sigterm_after

FLAGS = (
    "--figures", 0, "--save_fisher", 0, "--n_epochs", 3, "--lr_milestones", 2, "--hidden_dims", 8, "--limit_train", 200,
    "--limit_test", 50, "--batch_size", 50, "--train_noisy", 1,
)  # fmt: skip
SELECT = (*FLAGS, "--select", "val", "--val_size", 0.2, "--save_epochs", "none")


def start(root: Path, *more: object) -> Outcome:
    return outcome(command_line.main, *(more or FLAGS), "--results_root", root)


def only_run(root: Path, mode: str = "dense") -> RunFolder:
    (path,) = root.glob(f"*/*/{mode}/*")
    return RunFolder(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(*flags) -> the run folder of the undisturbed run."""
    found = {}

    def call(*flags: object) -> RunFolder:
        if flags not in found:
            found[flags] = RunFolder(start(tmp_path_factory.mktemp("whole"), *flags).folder)
        return found[flags]

    return call


@pytest.fixture
def half(tmp_path):
    """half(*flags, epochs=2) -> a run that was stopped after some epochs, by SIGTERM."""

    def call(*flags: object, epochs: int = 2) -> RunFolder:
        with sigterm_after(epochs):
            assert start(tmp_path, *(flags or FLAGS)).code == 75
        return only_run(tmp_path)

    return call


def content(folder: RunFolder) -> dict[str, bytes]:
    """What the files hold; the log may say more than before."""
    paths = [path for path in folder.path.rglob("*") if path.is_file() and path != folder.log]
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in paths}


def ends_as(folder: RunFolder, reference: RunFolder, *flags: object) -> None:
    """The same command now runs to its end, and nothing differs from the undisturbed run."""
    done = start(folder.path.parents[3], *flags)
    assert done.code == 0, done.err
    assert done.folder == folder.path
    assert list(differences(folder, reference)) == []


# ------------------------------------------------------------------------------------------------------- the disk


FILES = ("config.yaml", "labels.npz", "snr.csv", "epoch_#.pt", "history.csv", "checkpoint.pt", "model.pt", "summary.json")


@pytest.mark.parametrize("file", FILES)
def test_a_disk_that_is_full_when_any_file_is_written_loses_nothing(tmp_path, monkeypatch, whole, file):
    """Half of the content fits, of the second file of its kind where there are several."""
    times = itertools.count(1)

    def at(place):
        if place == (file, "half written") and next(times) >= (1 if file in ("config.yaml", "model.pt", "summary.json") else 2):
            raise OSError(errno.ENOSPC, "No space left on device")

    watch = Watch(tmp_path, at)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", watch.opened)
        found = start(tmp_path)
    if file == "labels.npz":
        assert found.code == 0  # written once
        return
    assert found.code == 1
    assert "No space left on device; what was saved before is sound: make room and run the same command again" in found.line
    assert not list(tmp_path.rglob("*.partial"))
    ends_as(only_run(tmp_path), whole(*FLAGS))


IN_A_SMALL_FILE_SYSTEM = """
run() { "$PYTHON" "$ROOT/run.py" "$@" --results_root results/here; echo "code $?" >&2; }
cd "$WORK"; mkdir results; export PYTHON ROOT
mount -t tmpfs -o size=700k small results
run "$@"
mount -o remount,size=50m results
run "$@"
cp -r results kept
mount -o remount,ro results
run "$@" --lr 0.2
"""


@pytest.mark.mounts
def test_a_file_system_that_is_really_full_or_read_only_loses_nothing(tmp_path, whole):
    flags = (*FLAGS, "--save_epochs", "all", "--hidden_dims", "200-100")  # 134 kB a state
    command = ("unshare", "--map-root-user", "--mount", "bash", "-c", IN_A_SMALL_FILE_SYSTEM, "bash", *map(str, flags))
    environment = os.environ | {"WORK": str(tmp_path), "ROOT": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    full, resumed, read_only = done.stderr.split("code ")[:3]
    assert re.findall(r"code (\d+)", done.stderr) == ["1", "0", "1"], done.stderr
    assert full.splitlines()[-1].endswith("make room and run the same command again")
    assert "resuming after" in resumed
    assert "choose another --results_root" in read_only.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(differences(only_run(tmp_path / "kept/here"), whole(*flags))) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_results_folder_that_cannot_be_written_is_named_with_the_cure(tmp_path, monkeypatch, code):
    """Root may write everywhere but on a read-only file system: the error is that one's, at the first folder made."""

    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        found = start(tmp_path)
    assert found.code == 1
    assert str(tmp_path) in found.line
    assert "choose another --results_root" in found.line
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_named_with_the_cure(tmp_path):
    (tmp_path / "results").write_text("mine")
    for root in (tmp_path / "results", tmp_path / "results/below"):
        found = start(root)
        assert found.code == 1
        assert f"{tmp_path}/results" in found.line
        assert "a file stands where a folder should be" in found.line
    assert (tmp_path / "results").read_text() == "mine"


@pytest.mark.parametrize("what", ["root", "run"])
def test_a_folder_that_vanishes_stops_the_run_which_is_not_finished_in_half_a_folder(tmp_path, monkeypatch, whole, what):
    root = tmp_path / "results"
    on_epoch = WriteCheckpoint.on_epoch_end

    def vanish(self, trainer):
        on_epoch(self, trainer)
        if trainer.epoch == 1:
            shutil.rmtree(root if what == "root" else self.folder.path)

    with monkeypatch.context() as patch:
        patch.setattr(WriteCheckpoint, "on_epoch_end", vanish)
        found = start(root)
    assert found.code == 1
    assert "has gone while the run was under way" in found.line
    assert not list(tmp_path.rglob("summary.json"))
    assert start(root).code == 0
    assert list(differences(only_run(root), whole(*FLAGS))) == []


def test_a_signal_after_the_folder_has_vanished_leaves_no_checkpoint_without_a_run(tmp_path, monkeypatch):
    root = tmp_path / "results"
    on_step = WriteCheckpoint.on_step

    def vanish(self, trainer):
        if trainer.epoch == 1:
            shutil.rmtree(self.folder.path)
            self.signals.received = "SIGTERM"
        on_step(self, trainer)

    monkeypatch.setattr(WriteCheckpoint, "on_step", vanish)
    found = start(root)
    assert found.code == 1
    assert "has gone while the run was under way" in found.line
    assert not list(root.rglob("checkpoint.pt"))


# ------------------------------------------------------------------------------------------ files of an unfinished run


def flip(path: Path) -> None:
    """Flip a bit in the middle of the largest record's content."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
    with open(path, "r+b") as file:
        file.seek(record.header_offset + 26)
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")  # of name and padding
        file.seek(record.header_offset + 30 + lengths + record.file_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("flipped", [["checkpoint.pt"], ["checkpoint.pt", "checkpoint.previous.pt"]])
def test_flipped_checkpoints_cost_epochs_and_no_results(half, whole, flipped, caplog):
    folder = half()
    for name in flipped:
        flip(folder.path / name)
    ends_as(folder, whole(*FLAGS))
    assert caplog.text.count("is damaged or no checkpoint") == len(flipped)
    assert ("resuming after 1 epochs" in folder.log.read_text()) == (len(flipped) == 1)


def garble(text: str) -> str:
    return text.replace(",0.", ",zero", 1)


DAMAGE = {
    "removed": lambda text: None,
    "empty": lambda text: "",
    "cut in a line": lambda text: text[: len(text) * 2 // 3],
    "a line less": lambda text: text[: text.rindex("\n", 0, -1) + 1],
    "a number altered": garble,
    "another heading": lambda text: text.replace("epoch", "Epoch", 1),
    "no text": lambda text: "\udcff\udcfe\0" + text,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_history_that_an_editor_spoilt_is_noticed_before_the_run_goes_on(half, whole, damage):
    folder = half(*SELECT)  # whose best epoch is looked up in it
    table = folder.path / "history.csv"
    text = table.read_text()
    spoilt = DAMAGE[damage](text)
    if spoilt is None:
        table.unlink()
    else:
        table.write_text(spoilt, errors="surrogateescape")
    before = content(folder)
    found = start(folder.path.parents[3], *SELECT)
    assert found.code == 1
    assert "history.csv" in found.line
    assert "put a copy of it back" in found.line
    assert content(folder) == before
    table.write_text(text)
    ends_as(folder, whole(*SELECT), *SELECT)


def test_a_removed_history_can_be_had_again_by_training_from_the_start(half, whole):
    folder = half()
    (folder.path / "history.csv").unlink()
    assert "remove checkpoint.pt and checkpoint.previous.pt" in start(folder.path.parents[3]).line
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder.path / name).unlink()
    ends_as(folder, whole(*FLAGS))


def test_a_table_that_lost_rows_is_noticed(half, whole):
    folder = half()
    text = (folder.path / "snr.csv").read_text()
    (folder.path / "snr.csv").write_text("\n".join(text.splitlines()[:-1]) + "\n")
    assert "snr.csv is not as this run left it" in start(folder.path.parents[3]).line
    (folder.path / "snr.csv").write_text(text)
    ends_as(folder, whole(*FLAGS))


@pytest.mark.parametrize("change", [{"mask": 3}, {"network": {}}, {"epoch": "2"}, {"optimizer": {"state": []}}, {"tables": {}}])
def test_a_sound_file_that_is_no_state_of_the_run_is_refused(half, whole, change):
    folder = half()
    before = folder.checkpoint.read_bytes()
    torch.save(load_state(folder.checkpoint) | change, folder.checkpoint)
    found = start(folder.path.parents[3])
    assert found.code == 1
    assert "remove checkpoint.pt and checkpoint.previous.pt to train from the start" in found.line
    folder.checkpoint.write_bytes(before)
    ends_as(folder, whole(*FLAGS))


# -------------------------------------------------------------------------------------------- files of a finished run


@pytest.mark.parametrize("flags", [FLAGS, (*SELECT[:-1], "all"), SELECT])
def test_selected_weights_that_were_removed_come_back(tmp_path, whole, flags):
    folder = RunFolder(start(tmp_path, *flags).folder)
    stored = folder.model.read_bytes()
    folder.model.unlink()
    if flags == SELECT:  # of which no state was kept
        found = start(tmp_path, *flags)
        assert found.code == 1
        assert "model.pt, the weights of epoch" in found.line
        assert "remove checkpoint.pt and checkpoint.previous.pt to train from the start" in found.line
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            (folder.path / name).unlink()
    ends_as(folder, whole(*flags), *flags)
    assert folder.model.read_bytes() == stored


def test_damaged_weights_of_a_finished_run_are_named_and_come_back_once_removed(tmp_path, whole):
    folder = RunFolder(start(tmp_path).folder)
    flip(folder.model)
    found = start(tmp_path)
    assert found.code == 1
    assert "model.pt is not what its run has left there: put a copy of that back, or remove it" in found.line
    folder.model.unlink()
    ends_as(folder, whole(*FLAGS))


@pytest.mark.parametrize("text", ["", "{half", "[]", '{"identity": 1}', "[" * 100_000])
def test_a_damaged_summary_is_named_and_written_again_once_removed(tmp_path, whole, text):
    folder = RunFolder(start(tmp_path).folder)
    folder.summary.write_text(text)
    found = start(tmp_path)
    assert found.code == 1
    assert "summary.json is damaged" in found.line
    assert "remove it and run the same command again" in found.line
    folder.summary.unlink()
    ends_as(folder, whole(*FLAGS))


def test_states_that_were_removed_are_said_to_be_missing(tmp_path):
    dense = RunFolder(start(tmp_path).folder)
    dense.epoch_state(0).unlink()
    found = outcome(experiment.main, "measure", dense.path, "--epochs", "0")
    assert (found.code, "keeps no state of epoch 0; there are 1, 2, 3" in found.line) == (1, True)
    found = start(tmp_path, *FLAGS, "--mode", "lottery")
    assert (found.code, "epoch_0.pt does not exist" in found.line) == (1, True)


def test_a_measurement_killed_before_the_summary_is_summarised_the_next_time(tmp_path, monkeypatch):
    folder = RunFolder(start(tmp_path).folder)
    measure = (*FLAGS[:2], "--save_fisher", 1, *FLAGS[4:])
    with monkeypatch.context() as patch:
        patch.setattr(optim.main, "refresh_summary", lambda folder, config: None)
        assert start(tmp_path, *measure).code == 0
    assert not folder.read_summary()["metrics"]
    assert start(tmp_path, *measure).code == 0
    row = next(r for r in folder.metrics().rows if r["epoch"] == "3" and r["layer"] == r["subset"] == "all")
    assert folder.read_summary()["metrics"]["fisher"]["value"] == float(row["value"])


# ----------------------------------------------------------------------------------------------- parents and company


def test_a_parent_that_was_removed_or_damaged_in_between_leaves_the_child_as_it_is(tmp_path, monkeypatch, whole):
    flags = (*FLAGS, "--mode", "sparse-finetune", "--prune_ratio", 0.5)
    reference = whole(*flags)
    on_epoch = WriteCheckpoint.on_epoch_end

    def stop(self, trainer):
        on_epoch(self, trainer)
        if trainer.epoch == 2 and trainer.mask_owner.mask:
            raise KeyError("any error")

    with monkeypatch.context() as patch:
        patch.setattr(WriteCheckpoint, "on_epoch_end", stop)
        assert start(tmp_path, *flags).code == 1
    parent, child = only_run(tmp_path), only_run(tmp_path, "sparse-finetune")
    before, model = content(child), parent.model.read_bytes()
    flip(parent.model)
    found = start(tmp_path, *flags)
    assert (found.code, "model.pt is damaged" in found.line) == (1, True)
    assert content(child) == before
    parent.model.write_bytes(model)
    shutil.rmtree(parent.path)
    ends_as(child, reference, *flags)  # the parent is trained again, to the same weights


def test_a_second_process_is_refused_at_once_and_the_first_is_unharmed(half, whole):
    folder = half()
    before = content(folder)
    with exclusive(folder.path):
        for flags in (FLAGS, (*FLAGS, "--mode", "sparse-finetune")):  # the run itself, and a child that would train it
            begin = time.monotonic()
            found = start(folder.path.parents[3], *flags)
            assert (found.code, "is in use by another process" in found.line) == (1, True)
            assert time.monotonic() - begin < 30
    assert content(folder) == before
    ends_as(folder, whole(*FLAGS))


def test_a_run_that_another_process_has_ended_in_the_meantime_is_not_cleared(tmp_path, monkeypatch):
    begin = optim.main.start

    def slow(config, dataset, parent):
        with monkeypatch.context() as patch:
            patch.setattr(optim.main, "start", begin)
            assert start(tmp_path).code == 0  # another process, while this one draws its weights
        stamps.extend(path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt"))
        return begin(config, dataset, parent)

    stamps = []
    monkeypatch.setattr(optim.main, "start", slow)
    assert start(tmp_path).code == 0
    assert stamps
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")] == stamps


# --------------------------------------------------------------------------------------------------- clock and data


def test_a_clock_that_jumps_changes_nothing_and_no_duration_is_negative(half, whole, monkeypatch):
    flags = (*FLAGS, "--tracker", "tensorboard")
    folder = half(*flags)
    place = TRACKERS["tensorboard"].place(folder)
    for name, jump in (("checkpoint.pt", 1e9), ("checkpoint.previous.pt", -1e9), ("history.csv", 2e9), ("config.yaml", -1e8)):
        os.utime(folder.path / name, (time.time() + jump, time.time() + jump))
    events = {path.name for path in place.iterdir()}
    clock = itertools.count(10**9, -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(clock)))
        patch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
        ends_as(folder, whole(*flags), *flags)
    assert all(float(row["seconds"]) >= 0 for row in folder.history().rows)
    assert all(0 <= seconds < 600 for seconds in folder.read_summary()["seconds"].values())
    new = [path.name for path in place.iterdir() if path.stat().st_size]
    assert min(new) > max(events)  # readers take the last by name


def test_data_that_are_gone_or_others_at_a_resume_leave_the_run_as_it_is(half, whole, files, tmp_path):
    root = shutil.copytree(files, tmp_path / "data")
    flags = (*FLAGS[:-2], "--loader_name", "cifar10", "--root", root, "--verify_data", 0, "--download", 0)
    folder = half(*flags)
    before = content(folder)
    batch = root / "cifar-10-batches-py/data_batch_3"
    batch.rename(tmp_path / "away")
    optim.main.load_dataset.cache_clear()
    found = start(tmp_path, *flags)
    assert (found.code, "data_batch_3 is missing; point --root at the data" in found.line) == (1, True)
    shutil.copy(root / "cifar-10-batches-py/data_batch_2", batch)
    torch.save({}, tmp_path / "other")
    batch.write_bytes((tmp_path / "away").read_bytes().replace(b"\x01\x02", b"\x02\x01"))
    optim.main.load_dataset.cache_clear()
    found = start(tmp_path, *flags)
    assert (found.code, found.folder != folder.path) == (0, True)  # other data: another run
    optim.main.load_dataset.cache_clear()
    found = start(tmp_path, *flags[:-3], 1, *flags[-2:])
    assert (found.code, "is not the published file" in found.line) == (1, True)
    assert content(folder) == before
    shutil.move(tmp_path / "away", batch)
    optim.main.load_dataset.cache_clear()
    ends_as(folder, whole(*flags), *flags)

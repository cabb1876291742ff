"""Signals are answered between the parts of every kind of pass; what was interrupted ends bit for bit as what was not."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import tarfile
import threading
from pathlib import Path

import pytest

import experiment
import run
from helper.processes import group, interruption
from helper.processes.interruption import check_signals, checking_signals, interruptible, waiting_for_a_network
from helper.system.signals import Interrupted, Signals
from loader import archives
from network.mlp import MLP
from optim.folder import RunFolder
from tests import several
from tests.chaos import differences
from tests.outcome import TIMING, Outcome, outcome
from tests.stops import signal_at

FLAGS = (
    "--figures", 0, "--n_epochs", 2, "--lr_milestones", "1", "--limit_train", 160, "--limit_test", 80, "--batch_size", 40,
    "--hidden_dims", "8", "--save_fisher", 0, "--save_snr", 0,
)  # fmt: skip
MOST = 70  # examples of one batch or chunk, and the few that a network is tried on: what may pass after a signal
SAMPLED = ("-ms", 120)
PASSES = {
    "evaluation": (),
    "evaluation of some epochs": ("--eval_every", 2),
    "SNR": ("--save_snr", 1),
    "online SNR, running averages": ("--save_snr", 1, "--snr_mode", "online", "--train_eval", "running"),
    "spectral Fisher": ("--save_fisher", 1, "--metric_every", 1),
    "Fisher of every label": ("--save_fisher", 1, "-fd", "exact", *SAMPLED),
    "Fisher one by one": ("--save_fisher", 1, "-fd", "ours", "-ms", 40, "-mt", 2),
    "nngeometry": ("--save_fisher", 1, "-fd", "nngeometry", *SAMPLED),
    "hutchinson": ("--save_hessian", 1, "--hessian_method", "hutchinson", "--metric_rtol", 0.3),
    "pyhessian": ("--save_hessian", 1, "--hessian_method", "pyhessian", *SAMPLED),
    "eigenthings": ("--save_hessian", 1, "--hessian_method", "eigenthings", *SAMPLED),
    "Jacobian": ("--save_jacobian", 1, "--metric_rtol", 0.1),
    "largest singular value": ("--save_jacobian_top", 1, *SAMPLED),
    "spectrum": ("--save_spectrum", 1, "--spectrum_steps", 5, "--spectrum_k", 2, "--spectrum_runs", 1, *SAMPLED),
}


def start(root: Path, *flags: object) -> Outcome:
    return outcome(run.main, *flags, "--results_root", root)


def only_run(root: Path) -> RunFolder:
    (folder,) = root.glob("*/*/*/*/")
    return RunFolder(folder)


def said_once(folder: RunFolder) -> None:
    """An interruption is a line of the log, and nothing that looks like a fault."""
    text = folder.log.read_text()
    assert text.count(": stopped") == 1
    assert " INFO SIGTERM: stopped" in text or " INFO another process was asked to end: stopped" in text
    assert "ERROR" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("flags", PASSES.values(), ids=PASSES)
def test_every_pass_is_interrupted_at_once_and_the_run_ends_the_same(tmp_path, flags):
    with signal_at(MLP) as whole:
        assert start(tmp_path / "whole", *FLAGS, *flags).code == 0
    for place in (0.02, 0.4, 0.7, 0.9):
        root = tmp_path / str(place)
        with signal_at(MLP, int(place * whole.examples)) as counted:
            found = start(root, *FLAGS, *flags)
        assert found.code == 75
        assert "run.py: SIGTERM: stopped" in found.err
        assert counted.after <= MOST
        said_once(only_run(root))
        assert start(root, *FLAGS, *flags).code == 0
        assert list(differences(only_run(root), only_run(tmp_path / "whole"))) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_every_signal_is_answered_in_a_pass(tmp_path, number):
    with signal_at(MLP, 200, number):
        found = start(tmp_path, *FLAGS)
    assert found.code == 75
    assert f"run.py: {number.name}: stopped" in found.err


def test_a_sparse_run_is_interrupted_in_its_parents_passes_and_ends_the_same(tmp_path):
    flags = (*FLAGS, "--mode", "sparse-finetune", "--save_snr", 1)
    with signal_at(MLP) as whole:
        assert start(tmp_path / "whole", *flags).code == 0
    for place in (0.3, 0.8):
        root = tmp_path / str(place)
        with signal_at(MLP, int(place * whole.examples)):
            assert start(root, *flags).code == 75
        assert start(root, *flags).code == 0
        for mode in ("dense", "sparse-finetune"):
            (a,), (b,) = (list(found.glob(f"*/*/{mode}/*/")) for found in (root, tmp_path / "whole"))
            assert list(differences(RunFolder(a), RunFolder(b))) == []


def test_figures_are_interrupted_between_two_and_drawn_by_the_same_command(tmp_path, monkeypatch):
    from helper.plotter import main as drawing

    save = drawing.save_figure

    def interrupted(figure, stem):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(figure, stem)

    flags = (*FLAGS, "--figures", 1, "--save_snr", 1)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "save_figure", interrupted)
        assert start(tmp_path, *flags).code == 75
    folder = only_run(tmp_path)
    assert not folder.finished
    assert len(list(folder.figures.glob("*.png"))) == 1
    assert start(tmp_path, *flags).code == 0
    assert len(list(folder.figures.glob("*.png"))) == 3


# ------------------------------------------------------------------------------------------------- several processes


def run_with_signal(folder: Path, flags: tuple[str, ...], rank: int, example: int) -> None:
    with signal_at(MLP, example if int(os.environ["RANK"]) == rank else None):
        several.run_here(folder, flags)


def codes(workers: list) -> list[int]:
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]


@pytest.mark.parametrize(("rank", "example"), [(0, 90), (1, 300), (1, 700), (0, 1100)])
def test_two_processes_are_interrupted_at_the_same_place_of_a_pass_and_end_the_same(tmp_path, rank, example):
    """Wherever one of them gets a signal: none waits for the other, and all have saved the same step."""
    flags = (*FLAGS, "--save_snr", 1, "--save_fisher", 1, "--metric_every", 1, "--save_jacobian", 1, "-ms", 120)
    broken, whole = (tuple(map(str, (*flags, "--results_root", tmp_path / name))) for name in ("broken", "whole"))
    (tmp_path / "first").mkdir()
    assert codes(several.start(2, run_with_signal, tmp_path / "first", broken, rank, example)) == [75, 75]
    said = [line for line in several.printed(tmp_path / "first") if line.startswith("run.py: ")]
    assert len(said) == 1
    said_once(only_run(tmp_path / "broken"))
    assert codes(several.start_runs(2, tmp_path / "second", *broken)) == [0, 0]
    assert codes(several.start_runs(2, tmp_path / "third", *whole)) == [0, 0]
    assert list(differences(only_run(tmp_path / "broken"), only_run(tmp_path / "whole"))) == []


def until_interrupted(n_parts: int) -> tuple[int, str]:
    """(parts done, message) of a process that works on alone while the first one is asked to end."""
    signals, done = Signals(), 0
    if group.rank() == 0:
        signals.received = "SIGTERM"
    with pytest.raises(Interrupted) as stop, interruptible(signals):
        for done in checking_signals(range(n_parts)):  # noqa: B007
            pass
    return done, str(stop.value)


def test_a_process_that_is_asked_is_noticed_by_one_that_works_on_alone():
    many = 200_000
    (asked, first), (noticed, second) = several.together(2, until_interrupted, many)
    assert asked == 0
    assert noticed < many - 1
    assert first.startswith("SIGTERM: stopped")
    assert second.startswith("another process was asked to end: stopped")


# -------------------------------------------------------------------------------------------------- commands over runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[Path]:
    """A finetuned and a scratch run with one mask."""
    root = tmp_path_factory.mktemp("pair")
    modes = ("sparse-scratch", "sparse-finetune")
    return [start(root, *FLAGS, "--mode", mode).folder for mode in modes]


def command(*words: object) -> Outcome:
    return outcome(experiment.main, *words)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("training.log", ".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


BY_TIMES = ("seconds", "files", "checksum")  # of a summary: its hashes are of tables that have times


def without_times(folder: Path) -> dict[str, object]:
    """What tables and results hold, but for times and what depends on them: hashes of tables, PDF."""
    found: dict[str, object] = {}
    for name, content in contents(folder).items():
        if name.endswith(".csv"):
            found[name] = [
                {k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(io.StringIO(content.decode()))
            ]
        elif name.endswith(".json"):
            found[name] = {
                key: value for key, value in json.loads(content).items() if key not in ("seconds", "files", "checksum")
            }
        elif not name.endswith(".pdf"):
            found[name] = content
    return found


COMMANDS = {
    "measure": ("--metrics", "fisher,jacobian,snr", "--epochs", "selected"),
    "interpolate": ("--points", 3, "--figures", 0),
    "disagree": ("--images", 0),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", [0.05, 0.6])
def test_commands_are_interrupted_with_one_line_and_nothing_half_written(tmp_path, pair, name, place):
    roots = {}
    for which in ("whole", "broken"):
        shutil.copytree(pair[0].parents[3], tmp_path / which)
        roots[which] = [tmp_path / which / folder.relative_to(pair[0].parents[3]) for folder in pair]
    n_runs = 1 if name == "measure" else 2
    words = {which: [name, *folders[:n_runs], *COMMANDS[name]] for which, folders in roots.items()}
    with signal_at(MLP) as whole:
        assert command(*words["whole"]).code == 0
    before = contents(tmp_path / "broken")
    with signal_at(MLP, int(place * whole.examples)) as counted:
        found = command(*words["broken"])
    assert found.code == 75
    assert [line for line in found.err.splitlines() if "experiment.py" in line] == [
        "experiment.py: SIGTERM: stopped; the same command goes on from there"
    ]
    assert counted.after <= 256 + MOST  # a batch of a pass without gradients
    if place < 0.5:
        assert contents(tmp_path / "broken") == before
    assert command(*words["broken"]).code == 0
    assert without_times(tmp_path / "broken") == without_times(tmp_path / "whole")


def test_a_report_is_interrupted_between_figures_and_made_by_the_same_command(tmp_path, pair, monkeypatch):
    from study.reporting import study_sections

    root = tmp_path / "results"
    shutil.copytree(pair[0].parents[3], root)
    plot = study_sections.plot

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return plot(*args)

    with monkeypatch.context() as patch:
        patch.setattr(study_sections, "plot", interrupted)
        found = command("report", root)
    assert (found.code, (root / "report/index.html").exists()) == (75, False)
    assert command("report", root).code == 0
    assert (root / "report/index.html").exists()


# --------------------------------------------------------------------------------------------------------- data files


@contextlib.contextmanager
def asked(signals: Signals, seconds: float):
    """A real signal to this process after a while."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    with signals:
        timer.start()
        yield
    timer.cancel()


def test_a_stalled_download_is_interrupted(tmp_path, monkeypatch):
    """The read would return after a minute, as from a server that says nothing."""

    def stalled(url, path):
        read, _ = os.pipe()
        os.read(read, 1)

    monkeypatch.setattr(archives.torch.hub, "download_url_to_file", stalled)
    signals = Signals()
    with asked(signals, 0.1), pytest.raises(Interrupted), interruptible(signals):
        archives.fetch(["https://nowhere.invalid/x"], tmp_path / "x", "")
    assert not signals.at_once


def test_a_download_outside_of_interruptible_work_waits():
    signals = Signals()
    with signals, interruptible(None), waiting_for_a_network():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == "SIGTERM"


def test_verification_and_unpacking_stop_between_parts_and_leave_no_part(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "PART", 10)
    (tmp_path / "data").write_bytes(bytes(1000))
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "data", "folder/data")
    signals = Signals()
    signals.received = "SIGTERM"
    for work in (
        lambda: archives.md5(tmp_path / "data"),
        lambda: archives.unpack(tmp_path / "packed.tar.gz", ["folder/data"], tmp_path / "out"),
    ):
        with pytest.raises(Interrupted), interruptible(signals):
            work()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    archives.unpack(tmp_path / "packed.tar.gz", ["folder/data"], tmp_path / "out")
    assert (tmp_path / "out/folder/data").read_bytes() == bytes(1000)


def test_nothing_is_interrupted_outside():
    signals = Signals()
    signals.received = "SIGUSR1"
    check_signals()
    with interruptible(signals), interruptible(None):
        check_signals()
    with pytest.raises(Interrupted, match="SIGUSR1: stopped; the same command"), interruptible(signals):
        check_signals()
    assert interruption._heeded is None

"""Sweeps on a real SLURM: order, arrays, time limits, failures, and sweeps that go away and come back."""

import contextlib
import json
import subprocess
import sys
import time

import psutil
import pytest

import experiment
from helper.system.versions import ROOT
from optim.folder import RunFolder
from study.sweeping.slurm_options import minutes_of
from tests.outcome import TIMING
from tests.slurm.conftest import MAX_WAIT, eventually

pytestmark = pytest.mark.slurm

QUICK = "figures: 0, save_snr: 0, save_fisher: 0, hidden_dims: 8, train_eval: running, save_epochs: none"
FAMILY = f"""
flags: {{{QUICK}, n_epochs: 2, n_epochs_pretrain: 2, lr_milestones: 1, lr_milestones_pretrain: 1}}
grid: {{mode: sparse-scratch, prune_ratio: [0.8, 0.9]}}
"""


@pytest.fixture
def status(slurm, capsys, monkeypatch):
    """status(root) -> what `experiment.py status` prints."""

    def call(root) -> str:
        for name, value in slurm.environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            experiment.main(["status", str(root)])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return call


def folders(root, mode: str) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(root.glob(f"*/*/{mode}/*"))]


def processes(root) -> list[psutil.Process]:
    """The run.py processes that train below a results root."""
    words = {str(ROOT / "run.py"), str(root)}
    return [process for process in psutil.process_iter(["cmdline"]) if words <= set(process.info["cmdline"] or ())]


@pytest.mark.long
def test_a_run_is_requeued_at_its_time_limit_and_ends_with_the_weights_of_an_uninterrupted_one(slurm, sweep, tmp_path):
    """The run stands still from its first epoch until its limit, so that it meets it on a machine of any speed."""
    n_epochs = 400
    common = ["--figures", 0, "--save_snr", 0, "--save_fisher", 0, "--hidden_dims", 8, "--train_eval", "running",
              "--save_epochs", "none", "--lr_milestones", 100]  # fmt: skip
    text = f"flags: {{{QUICK}, n_epochs: 2, lr_milestones: 1, n_epochs_pretrain: {n_epochs}, lr_milestones_pretrain: 100}}"
    command = [sys.executable, ROOT / "run.py", *common, "--n_epochs", n_epochs, "--results_root", tmp_path / "whole"]
    whole = subprocess.Popen(list(map(str, command)), env=slurm.environment)
    going = sweep(f"{text}\ngrid: {{mode: sparse-scratch}}", "--slurm_time", 1, "--slurm_signal_delay", 10)

    def begun() -> bool:
        return any(len(folder.history().rows) > 1 for folder in folders(going.root, "dense"))

    def waiting() -> list[str]:
        return [job for job, state in slurm.states().items() if state == "PENDING BeginTime"]

    saved = False
    while not saved:  # a slow machine may meet the limit before its first step
        eventually(lambda: (begun() and processes(going.root)) or waiting() or going.process.poll() is not None)
        for process in processes(going.root):
            with contextlib.suppress(psutil.NoSuchProcess):  # it met its limit already
                process.suspend()  # SLURM lets it continue when it signals
        eventually(lambda: waiting() or going.process.poll() is not None)
        assert going.process.poll() is None, going.printed()
        assert sorted(slurm.states().values()) == ["PENDING BeginTime", "PENDING Dependency"]  # its child waits on
        (job,) = waiting()
        time.sleep(2)  # until the node has forgotten the job's last start
        saved = ": stopped after" in going.log("dense")
        limit = "TimeLimit=10" if saved else "TimeLimit=1"  # one interruption is enough
        slurm("scontrol", "update", f"JobId={job}", "StartTime=now", limit)  # instead of two minutes later
        eventually(lambda: not waiting())
    assert whole.wait(timeout=MAX_WAIT) == 0
    assert (going.end(), "2 finished" in going.printed()) == (0, True), going.printed()
    (here,), (there,) = folders(going.root, "dense"), folders(tmp_path / "whole", "dense")
    assert "resuming after" in going.log("dense")
    assert here.model.read_bytes() == there.model.read_bytes()
    rows = [[{k: v for k, v in row.items() if k not in TIMING} for row in f.history().rows] for f in (here, there)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == n_epochs + 1


def test_a_sweep_that_is_left_is_found_again_with_its_jobs_and_children_wait_for_their_parent(slurm, sweep, status):
    family = FAMILY.replace("n_epochs_pretrain: 2", "n_epochs_pretrain: 100")  # so that it runs until it is suspended
    first = sweep(family, "--slurm_time", 10)
    eventually(lambda: " running " in first.printed())
    (running,) = [job for job, state in slurm.states().items() if state.startswith("RUNNING")]
    slurm("scontrol", "suspend", running)  # so that it runs until it is looked at
    first.interrupt()
    assert first.end() == 75
    (parent,), children = ([job for job in slurm.states() if ("_" in job) == array] for array in (False, True))
    assert len(children) == 2
    array = children[0].partition("_")[0]
    assert children == [f"{array}_0", f"{array}_1"]
    assert f"scancel {parent} {array}\n" in first.printed()
    assert f"Dependency=afterok:{parent}" in slurm("scontrol", "show", "job", array)
    printed = status(first.root)
    assert "3 runs under" in printed
    assert "1 running, 2 queued\n" in printed
    assert f"job {parent}  " in printed
    records = sorted(first.root.glob("logs/slurm/records/*.json"))
    second = sweep(family, "--slurm_time", 10)
    eventually(lambda: " running " in second.printed())
    slurm("scontrol", "resume", parent)
    assert second.end() == 0, second.printed()
    assert sorted(first.root.glob("logs/slurm/records/*.json")) == records  # nothing was submitted twice
    assert [json.loads(path.read_text())["after"] is None for path in records].count(True) == 1
    assert "3 finished" in second.printed()
    (dense,) = folders(first.root, "dense")
    assert all(dense.summary.stat().st_mtime <= child.config.stat().st_mtime for child in folders(first.root, "sparse-scratch"))
    assert "3 finished\n" in status(first.root)


def test_a_failing_parent_cancels_its_children(slurm, sweep, status):
    flags = ["--slurm_cpus", 2, "--slurm_mem", "100M", "--slurm_options", "nice=5 --mail-type=NONE", "--slurm_setup", "date"]
    going = sweep(FAMILY, "--slurm_time", 10, "--lr_pretrain", "1e30", *flags)
    assert going.end() == 1, going.printed()
    assert "1 failed, 2 blocked" in going.printed()
    assert "not finite in epoch 1" in going.printed()
    assert not slurm.states()
    assert not folders(going.root, "sparse-scratch")
    printed = status(going.root)
    assert "1 failed, 2 blocked\n" in printed
    again = sweep(FAMILY, "--slurm_time", 10, "--lr_pretrain", "1e30")
    assert (again.end(), "failed the last time" in again.printed()) == (1, True)
    assert len(list(going.root.glob("logs/slurm/records/*.json"))) == 2


def test_seeds_are_added_until_a_gap_is_decided(slurm, sweep):
    pair = FAMILY.replace("sparse-scratch, prune_ratio: [0.8, 0.9]", "[sparse-finetune, sparse-scratch], random_state: [1, 2]")
    going = sweep(pair, "--slurm_time", 10, "--until_gap", "acc_test:1e-9", "--max_seeds", 4, "--seeds_at_once", 2)
    assert going.end() == 0, going.printed()
    assert all(f": {n} seeds, " in going.printed() for n in (2, 4))
    assert {len(folders(going.root, mode)) for mode in ("dense", "sparse-finetune", "sparse-scratch")} == {4}
    assert all(
        folder.finished for mode in ("dense", "sparse-finetune", "sparse-scratch") for folder in folders(going.root, mode)
    )
    assert not slurm.states()


def test_runs_without_a_requeue_left_and_cancelled_ones_are_interrupted_and_go_on(slurm, sweep, status):
    long = FAMILY.replace("n_epochs_pretrain: 2,", "n_epochs_pretrain: 100000,").replace("[0.8, 0.9]", "0.9")
    flags = ["--slurm_time", 10, "--slurm_max_requeues", 0]
    going = sweep(long, *flags)
    eventually(lambda: folders(going.root, "dense") and len(folders(going.root, "dense")[0].history().rows) > 1)
    (parent,) = [job for job, state in slurm.states().items() if state.startswith("RUNNING")]
    slurm("scancel", "--signal=USR2", parent)  # what SLURM sends before the time limit
    assert going.end() == 75, going.printed()
    assert "2 interrupted" in going.printed()
    assert not slurm.states()
    assert "timed-out too many times" in going.log("dense")
    assert "2 interrupted\n" in status(going.root)
    again = sweep(long, *flags)
    eventually(lambda: "resuming after" in going.log("dense") and "epoch" in going.log("dense").split("resuming after")[1])
    (parent,) = [job for job, state in slurm.states().items() if state.startswith("RUNNING")]
    slurm("scancel", parent)
    assert again.end() == 75, again.printed()
    assert "2 interrupted" in again.printed()
    assert "SIGTERM: stopped after" in going.log("dense").split("resuming after")[1]


def test_time_limits_are_read_as_sbatch_reads_them(slurm):
    for text in ("7", "1:30", "2:03:04", "1-2", "1-2:30", "1-2:30:30", "90:00", "0:30", "100:00:00"):
        job = slurm("sbatch", "--hold", "--time", text, "--output=/dev/null", "--wrap", "true").split()[-1]
        days, _, clock = slurm("squeue", "--noheader", "--Format=TimeLimit", "--jobs", job).strip().rpartition("-")
        numbers = [int(number) for number in clock.split(":")]
        seconds = sum(number * unit for number, unit in zip(reversed(numbers), (1, 60, 3600), strict=False))
        slurm("scancel", job)
        assert minutes_of(text) * 60 == int(days or 0) * 86400 + seconds, text


def test_what_sbatch_refuses_is_said_in_one_line(sweep):
    going = sweep(FAMILY, "--slurm_time", 10, "--slurm_partition", "nowhere")
    assert going.end() == 1
    assert going.printed().splitlines()[-1].startswith("experiment.py: error: sbatch refuses: ")
    assert "invalid partition" in going.printed()
    assert not list(going.root.glob("logs/slurm/records/*.json"))
    assert not list(going.root.glob("logs/slurm/*.pkl"))

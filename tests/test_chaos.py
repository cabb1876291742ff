"""Killed anywhere, a run ends as if nothing had happened; `python -m tests.chaos` does the same at any length."""

import os
import random
import re
import signal
import subprocess
import sys

import pytest

from helper.system.versions import ROOT
from tests import chaos

KILLS = os.environ.get("CHAOS_KILLS", "30")


@pytest.mark.long
def test_runs_killed_at_random_times_and_inside_saves_all_end_bit_identical():
    """In a process of its own, whose forks inherit no threads."""
    command = [sys.executable, "-m", "tests.chaos", "--kills", KILLS, "--seed", "3"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, lost, differing = map(int, re.search(r"(\d+) kills.* (\d+) lost, (\d+) differing", done.stdout).groups())
    assert kills >= int(KILLS)
    assert (lost, differing) == (0, 0)
    inside = re.findall(r"\| (\S+) (?:opened|half written|before|after)", done.stdout)
    assert len(set(inside)) >= 5  # files in whose writing runs were killed


@pytest.mark.parametrize(("printed", "lost"), [("", 0), ("dense mlp-10-5 on toy, seed 42\n", 1)])
def test_sigterm_may_end_an_attempt_only_while_nobody_watches_for_it(printed, lost, tmp_path, monkeypatch):
    """Before anything is printed SIGTERM ends the process as any program; later the run has to save and exit with 75."""
    codes = iter([-signal.SIGTERM, 0, 0])

    def scripted(flags, root, at, output, stop, tally):
        output.write_text(printed)
        return next(codes)

    monkeypatch.setattr(chaos, "watched_attempt", scripted)
    tally, reference = chaos.Tally(), chaos.Reference(tmp_path / "whole", {("lock", "opened"): 1}, 1.0)
    chaos.one_run("toy mlp dense, every state", reference, tmp_path / "run", 3, random.Random(1), tally)
    assert len(tally.lost) == lost
    assert tally.killed == 1 - lost

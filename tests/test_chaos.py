"""Killed anywhere, a run ends as if nothing had happened; `python -m tests.chaos` does the same at any length."""

import os
import re
import subprocess
import sys

from helper.utils import ROOT

KILLS = os.environ.get("CHAOS_KILLS", "30")


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

"""A cluster for the session, and sweeps on it in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from helper.system.versions import ROOT
from tests.slurm.cluster import cluster, missing_programs, shell

MAX_WAIT = 480  # seconds until something that has to happen counts as missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """slurm(*words) -> what a command of SLURM prints; `slurm.environment` for other programs."""
    assert not missing_programs(), f"{missing_programs()} are missing: bash scripts/slurm.sh"
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield Slurm(environment | {"OMP_NUM_THREADS": "1"})


@dataclass
class Slurm:
    environment: dict[str, str]

    def __call__(self, *words: str) -> str:
        return shell(self.environment, *words)

    def states(self) -> dict[str, str]:
        """{job: state, reason} of what waits or runs."""
        lines = self("squeue", "--noheader", "--array", "--format=%i|%T %r").splitlines()
        return dict(line.split("|") for line in lines)


@dataclass
class Sweep:
    """`experiment.py sweep` of a file on the cluster, results under `root`."""

    process: subprocess.Popen
    out: Path
    root: Path

    def printed(self) -> str:
        return self.out.read_text()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        return self.process.wait(timeout=MAX_WAIT)

    def log(self, mode: str) -> str:
        """What the run of a mode printed."""
        (path,) = self.root.glob(f"logs/*_{mode}_*.log")
        return path.read_text()


@pytest.fixture
def sweep(slurm, tmp_path):
    """sweep(text, *flags) starts a sweep of the file's text; what is left of it and of its jobs ends with the test."""
    started: list[Sweep] = []

    def call(text: str, *flags: object) -> Sweep:
        file, root = tmp_path / "sweep.yaml", tmp_path / "results"
        file.write_text(text)
        out = tmp_path / f"out{len(started)}"
        command = [
            sys.executable, ROOT / "experiment.py", "sweep", file, "--executor", "slurm", "--results_root", root, *flags,
        ]  # fmt: skip
        with open(out, "w") as stream:
            process = subprocess.Popen(list(map(str, command)), env=slurm.environment, stdout=stream, stderr=subprocess.STDOUT)
        started.append(Sweep(process, out, root))
        return started[-1]

    yield call
    for each in started:
        each.process.kill()
        each.process.wait()
    slurm("scancel", "--user", str(os.getuid()))


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + MAX_WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)

#!/usr/bin/env python
"""Speed at scale: the report over 1,000 run folders, the dry run of 1,000 runs, two jobs against one.

    python scripts/benchmark_report.py [--runs 1000] [--rounds 3] [--jobs 1]

Each in processes of its own, import included. The folders are made up (scripts/made_up_runs.py), of four data and network
settings, with 30 epochs of history, four measured epochs and six layers each.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.schema.config import unflatten
from helper.system.devices import available_cores
from helper.system.versions import ROOT
from optim.config import RunConfig
from scripts.made_up_runs import write_run

SETTINGS = (
    {"loader_name": "digits"}, {"loader_name": "digits", "hidden_dims": "256-128"}, {"loader_name": "digits_noisy"},
    {"loader_name": "toy", "hidden_dims": "20-10"},
)  # fmt: skip


def make_runs(root: Path, n: int) -> int:
    """Write n finished runs: for each setting and seed a dense one, and finetuned and scratch ones at many sparsities."""
    seeds, written = range(1, 1 + max(5, n // 200)), 0
    ratios = [round(0.5 + 0.02 * i, 2) for i in range(max(1, round((n / (len(SETTINGS) * len(seeds)) - 1) / 2)))]
    for setting in SETTINGS:
        for seed in seeds:
            common = {**setting, "random_state": seed, "results_root": str(root)}
            write_run(unflatten(RunConfig, common))
            for mode in ("sparse-finetune", "sparse-scratch"):
                for ratio in ratios:
                    write_run(unflatten(RunConfig, {**common, "mode": mode, "prune_ratio": min(ratio, 0.99)}))
            written += 1 + 2 * len(ratios)
    return written


def timed(*words: object) -> tuple[float, float]:
    """(seconds, peak resident MiB) of experiment.py with these words, in a process of its own."""
    started = time.perf_counter()
    script = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    command = [sys.executable, "-c", script, ROOT / "experiment.py", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started, float(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def throughput(folder: Path, rounds: int) -> list[float]:
    """Time of an MLP sweep with one job over that with two, in turn."""
    sweep = folder / "sweep.yaml"
    sweep.write_text("flags: {figures: 0, n_epochs: 60, lr_milestones: 30}\ngrid: {random_state: [1, 2, 3, 4]}")
    ratios = []
    for index in range(rounds):
        one, two = (
            timed("sweep", sweep, "--jobs", jobs, "--results_root", folder / f"jobs{jobs}_{index}")[0] for jobs in (1, 2)
        )
        ratios.append(one / two)
        print(f"  4 digits MLP runs of 60 epochs: one job {one:.1f} s, two jobs {two:.1f} s", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="0 leaves the comparison of jobs out")
    given = parser.parse_args()
    print(f"{available_cores()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = make_runs(folder / "results", given.runs)
        reports = [timed("report", folder / "results") for _ in range(given.rounds)]
        print(f"report over {n} runs: {spread([s for s, _ in reports])} s, {max(m for _, m in reports):.0f} MiB", flush=True)
        sweep = folder / "thousand.yaml"
        seeds = list(range(1, 1 + given.runs // 5))
        sweep.write_text(f"grid: {{mode: [sparse-finetune, sparse-scratch], prune_ratio: [0.8, 0.9], random_state: {seeds}}}")
        dry = [timed("sweep", sweep, "--dry_run", 1, "--results_root", folder / "none")[0] for _ in range(given.rounds)]
        print(f"dry run of {5 * len(seeds)} runs: {spread(dry)} s", flush=True)
        if given.jobs:
            print(f"throughput of two jobs over one: {spread(throughput(folder, given.rounds))}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Small runs by the thousand: how long a sweep of them takes where they are forked, and where each begins anew.

    python scripts/benchmark_sweep.py [--runs 200] [--anew 12] [--jobs 2]

Each run is the digits MLP of `python run.py` (30 epochs, SNR and Fisher trace, no figures) with a seed of its own. Seconds on
the wall and of CPU, start-up of the server included, which is most of it where there are few.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.schema.config import unflatten
from helper.system.devices import available_cores
from optim.config import RunConfig
from study.sweeping.executor import FINISHED, LocalPool
from study.sweeping.plan import plan
from study.sweeping.sweep import job_of


def timed(n_runs: int, n_jobs: int, *, warm: bool) -> tuple[float, float]:
    """(seconds on the wall, of CPU) of so many runs in a new folder."""
    with tempfile.TemporaryDirectory() as root:
        seeds = range(1, n_runs + 1)
        runs = plan([unflatten(RunConfig, {"figures": False, "random_state": s, "results_root": root}) for s in seeds])
        started, before = time.perf_counter(), cpu_seconds()
        pool = LocalPool(n_jobs, warm=warm)
        for run in runs:
            pool.submit(job_of(run, Path(root)))
        while not pool.done:
            pool.poll()
            time.sleep(pool.poll_seconds)
        pool.stop()
        if set(pool.states.values()) != {FINISHED}:
            sys.exit(f"not all runs finished: {pool.states}")
        return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--anew", type=int, default=12, help="how many begin anew; 0: none")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    print(f"{available_cores()} cores, {given.jobs} jobs")
    for words, n, warm in (("forked", given.runs, True), ("each begun anew", given.anew, False)):
        if n:
            wall, cpu = timed(n, given.jobs, warm=warm)
            print(f"{words}: {n} runs in {wall:.1f} s, {cpu:.1f} s of CPU; a run {cpu / n:.2f} s of CPU", flush=True)


if __name__ == "__main__":
    main()

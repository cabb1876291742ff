"""One set of small runs for any version of the program: what is run, in which way, and where its results are.

A case's commands are written as one would type them in a folder of its own, which each version has: results go below
`results`, made-up data files lie in `../data`. A word with a star stands for the paths that it matches.
"""

import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy

INTERRUPTED = 75  # exit code of a run that can be resumed
AT_MOST = 900  # seconds that a command may take
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of an outer torchrun
SMALL = "--hidden_dims 24-16 --n_epochs 3 --lr_milestones 2"
QUICK = f"{SMALL} --figures 0"
SPARSE = f"{SMALL} --prune_ratio 0.83 --results_root results/modes"
ROUGH = "--metric_rtol 0.3 --spectrum_k 3 --spectrum_steps 8 --spectrum_runs 2"
LENET = "--net_name mnist_lenet --n_epochs 2 --lr_milestones 1 --lr 0.02 --limit_train 400 --figures 0"
RESNET = "--net_name resnet --depth 8 --widen_factor 1 --n_epochs 2 --lr_milestones 1 --lr 0.05 --batch_size 32 --figures 0"
CIFAR = "--loader_name cifar10 --root ../data --verify_data 0 --download 0"
SWEEP = """title: Two seeds
flags: {hidden_dims: 12, n_epochs: 2, lr_milestones: 1, figures: 0, results_root: results/sweep}
grid: {mode: [sparse-finetune, sparse-scratch], prune_ratio: 0.8, random_state: [1, 2]}
"""


class Failed(RuntimeError):
    """A command that did not end as it should."""


@dataclass(frozen=True)
class Program:
    """A version of the program, and the folder in which its commands are given."""

    checkout: Path
    place: Path

    @property
    def results(self) -> Path:
        return self.place / "results"

    def command(self, text: str, launcher: tuple[str, ...] = ()) -> list[str]:
        script, *words = shlex.split(text)
        found = [self.matches(word) if "*" in word else [word] for word in words]
        return [sys.executable, *launcher, str(self.checkout / script), *(word for some in found for word in some)]

    def matches(self, word: str) -> list[str]:
        return sorted(str(path.relative_to(self.place)) for path in self.place.glob(word)) or [word]

    def start(self, text: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(text, launcher), cwd=self.place, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, text: str, launcher: tuple[str, ...] = (), *, code: int = 0) -> str:
        """What a command has printed. Raises Failed: it ends with another exit code."""
        return ended(self.start(text, launcher), text, code)


def environment() -> dict[str, str]:
    """One thread, and no module path: a package without an __init__.py would be put together from both versions."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *PROCESSES)}
    return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def ended(process: subprocess.Popen, text: str, code: int) -> str:
    """What a process prints until it ends. Raises Failed: by another exit code than the one expected, or not at all."""
    try:
        printed, _ = process.communicate(timeout=AT_MOST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Failed(f"{text}: did not end within {AT_MOST} s") from None
    if process.returncode != code:
        last = (printed.strip().splitlines() or ["(nothing printed)"])[-1]
        raise Failed(f"{text}: exit code {process.returncode}, not {code}: {last}")
    return printed


def once(program: Program, text: str) -> str:
    return program.run(text)


def by_two_processes(program: Program, text: str) -> str:
    return program.run(text, TORCHRUN)


def interrupted(program: Program, text: str) -> str:
    """Ended by SIGTERM after the second epoch, and the same command again. Raises Failed: it ended before."""
    process = program.start(text)
    root = shlex.split(text)[-1]
    while process.poll() is None and not any(
        path.read_text().count("\n") >= 4 for path in program.place.glob(f"{root}/*/*/*/*/history.csv")
    ):
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    ended(process, text, INTERRUPTED)
    return program.run(text)


@dataclass(frozen=True)
class Case:
    """Commands, and patterns below `results` of what they leave.

    Args:
        needs: cases whose results the commands read.
        way: how a command is given for the first time.
    """

    name: str
    commands: tuple[str, ...]
    leaves: tuple[str, ...]
    needs: tuple[str, ...] = ()
    way: Callable[[Program, str], str] = once

    def run(self, program: Program) -> None:
        """Raises Failed, as `way` does."""
        for command in self.commands:
            self.way(program, command)

    def repeat(self, program: Program) -> None:
        """Give the commands again. Raises Failed: as above, or a run is not found finished."""
        way = once if self.way is interrupted else self.way
        for command in self.commands:
            printed = way(program, command)
            for script, words in (("run.py", "is finished"), ("experiment.py sweep", " 0 to do")):
                if command.startswith(script) and words not in printed:
                    raise Failed(f"{command}: the old run is not found: its output has no {words.strip()!r}")


def run_case(name: str, flags: str, **options: object) -> Case:
    """A case of one run, in a results root of its own."""
    return Case(name, (f"run.py {flags} --results_root results/{name}",), (f"{name}/*/*/*/*",), **options)


MODES = ("dense", "sparse-finetune", "sparse-scratch", "lottery")
PAIR = "results/modes/digits/*/sparse-scratch/* results/modes/digits/*/sparse-finetune/*"
AFTERWARDS = "experiment.py measure results/afterwards/digits/*/dense/*"
CASES = (
    *(Case(mode, (f"run.py --mode {mode} {SPARSE}",), (f"modes/digits/*/{mode}",)) for mode in MODES),
    run_case(  # too dense for sparse steps, which older versions do not have
        "resnet",
        f"{CIFAR} {RESNET} --mode sparse-scratch --prune_ratio 0.5 --n_epochs_pretrain 1 --lr_milestones_pretrain 1",
    ),
    run_case("lenet", f"{LENET} --mode sparse-finetune --prune_method random --prune_last 1 --select test"),
    run_case("toy", f"--loader_name toy --root ../data {QUICK} --hidden_act tanh --save_hessian 1 --metric_rtol 0.3"),
    run_case("noisy", f"--loader_name digits_noisy --noise_ratio 0.3 {QUICK} --mode sparse-scratch --metric_every 3"),
    run_case("adam", f"--optimizer_name adam --lr 0.003 --lr_schedule cosine --warmup_epochs 1 {QUICK}"),
    run_case("bf16", f"--precision bf16 --nesterov 1 {QUICK}"),
    run_case("select-val", f"--select val --val_size 0.2 {QUICK} --n_epochs 4 --batch_size 32"),
    run_case("two-processes", f"{RESNET} --limit_train 320 --limit_test 100", way=by_two_processes),
    run_case("interrupted", "--hidden_dims 24-16 --n_epochs 40 --batch_size 16 --figures 0", way=interrupted),
    run_case(
        "measured",
        f"{QUICK} --mode sparse-finetune --hidden_act tanh --metric_every 1 --save_fisher 1 --save_hessian 1 "
        f"--save_hessian_residual 1 -ms 200 --save_jacobian 1 --save_jacobian_top 1 --save_spectrum 1 {ROUGH}",
    ),
    Case(
        "afterwards",
        (
            f"run.py {QUICK} --save_snr 0 --save_fisher 0 --save_epochs all --results_root results/afterwards",
            f"{AFTERWARDS} --metrics fisher,hessian,jacobian,snr,spectrum --epochs all {ROUGH}",
            f"{AFTERWARDS} --fisher_method ours -ms 50 --metric_params weights",
        ),
        ("afterwards",),
    ),
    run_case("snr-online", f"{QUICK} --snr_mode online --train_eval running --mode sparse-scratch"),
    run_case("regularised", f"{QUICK} --reg_type jacobian --reg_weight 0.01"),
    Case("sweep", ("experiment.py sweep ../sweep.yaml",), ("sweep/*",)),
    Case("interpolate", (f"experiment.py interpolate {PAIR} --points 5",), ("modes/comparisons/interpolate*",), MODES[1:3]),
    Case("disagree", (f"experiment.py disagree {PAIR}",), ("modes/comparisons/disagree*",), MODES[1:3]),
    Case(
        "report",
        ("experiment.py report results/modes", "experiment.py report results/sweep", "experiment.py report results/noisy"),
        ("modes/report", "sweep/report", "noisy/report"),
        (*MODES, "noisy", "sweep", "interpolate", "disagree"),
    ),
)


def write_inputs(folder: Path) -> None:
    """The files that commands read: images in the layout of CIFAR-10, and a sweep."""
    (folder / "sweep.yaml").write_text(SWEEP)
    images = folder / "data/cifar-10-batches-py"
    images.mkdir(parents=True)
    numbers = numpy.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": numbers.integers(0, 256, (40, 3072), dtype=numpy.uint8), "labels": [i % 10 for i in range(40)]}
        (images / name).write_bytes(pickle.dumps(batch, protocol=2))
    (images / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}, protocol=2))

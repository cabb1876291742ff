"""Kill runs without mercy, start them again, and see whether anything is lost: `python -m tests.chaos --kills 200 --seed 1`.

Every attempt is a fork of this process, which has imported everything and computed nothing, so that it costs a training and
no start. A kill comes at a random time, or from inside: the attempt ends itself by SIGKILL at a chosen file operation, before
it, after it, or, of a write, in its middle. The places are those that an undisturbed run of the same flags went through.
"""

import argparse
import builtins
import collections
import csv
import hashlib
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

import helper.metrics.spectrum
import helper.plotter.main  # noqa: F401
import optim.trackers.tensorboard  # noqa: F401
import run as command_line
from loader.main import DataConfig, load_dataset
from optim.checkpoint import load_latest, previous
from optim.folder import RunFolder
from tests.outcome import TIMING

LIMIT = 120  # seconds after which an attempt hangs
QUICK = (
    "--figures", 0, "--save_fisher", 0, "--lr", 0.05, "--lr_milestones", "2", "--n_epochs", 4, "--limit_train", 300,
    "--limit_test", 100, "--batch_size", 50, "--n_epochs_pretrain", 3,
)  # fmt: skip
FINETUNE = ("--mode", "sparse-finetune", "--prune_ratio", 0.8)
LENET = ("--net_name", "mnist_lenet", "--augment", "crop_flip")
MEASURED = (
    "--save_fisher", 1, "--save_spectrum", 1, "--spectrum_steps", 8,
    "--spectrum_k", 2, "--spectrum_runs", 1, "--monte_carlo_samples", 40,
)  # fmt: skip
# fmt: off
RUNS: dict[str, tuple] = {
    "toy mlp dense, every state": (*QUICK, "--loader_name", "toy", "--hidden_dims", "10-5", "--save_epochs", "all"),
    "digits lenet dense, augmented, select val": (
        *QUICK,
        *LENET,
        "--select",
        "val",
        "--val_size",
        0.2,
        "--save_epochs",
        "none",
    ),
    "digits mlp finetune, noisy, online SNR": (*QUICK, *FINETUNE, "--train_noisy", 1, "--snr_mode", "online"),
    "digits lenet finetune, augmented, noisy, select val": (
        *QUICK,
        *FINETUNE,
        *LENET,
        "--train_noisy",
        1,
        "--select",
        "val",
        "--val_size",
        0.2,
    ),
    "toy mlp finetune, running averages, adam": (
        *QUICK,
        *FINETUNE,
        "--loader_name",
        "toy",
        "--hidden_dims",
        "10",
        "--train_eval",
        "running",
        "--snr_mode",
        "online",
        "--optimizer_name",
        "adam",
    ),
    "digits mlp dynamic, gradients, online SNR": (
        *QUICK, "--mode", "dynamic", "--prune_ratio", 0.8, "--mask_every", 3, "--snr_mode", "online", "--save_epochs", "all",
    ),
    "digits lenet gradual by snip, adam, select val": (
        *QUICK, *LENET, "--mode", "gradual", "--prune_ratio", 0.9, "--mask_every", 2, "--mask_end", 0.6,
        "--prune_method", "snip", "--score_batches", 1, "--optimizer_name", "adam", "--lr", 0.01, "--select", "val",
        "--val_size", 0.2,
    ),
    "toy mlp at init by synflow, shuffled": (
        *QUICK, "--loader_name", "toy", "--hidden_dims", "10-5", "--mode", "at-init", "--prune_method", "synflow",
        "--prune_ratio", 0.5, "--mask_control", "shuffle",
    ),
    "digits mlp dense, measured on the way, events": (
        *QUICK,
        *MEASURED,
        "--hidden_dims",
        "12",
        "--metric_every",
        2,
        "--tracker",
        "tensorboard",
    ),
    "a finished run that takes more measurements": (*QUICK, *MEASURED, "--hidden_dims", "11", "--figures", 1),
    "a finished run that is repeated": (*QUICK, "--hidden_dims", "13", "--overwrite", 1),
}
# fmt: on
FIRST: dict[str, tuple] = {  # what has ended in the folder before anything is killed
    "a finished run that takes more measurements": (*QUICK, "--hidden_dims", "11"),
    "a finished run that is repeated": (*QUICK, "--hidden_dims", "13"),
}  # fmt: skip
Place = tuple[str, str]  # (file, operation)


# ------------------------------------------------------------------------------------------------ inside an attempt


class Watch:
    """Reports every file operation under a folder to `at(place)`, from inside this process."""

    def __init__(self, root: Path, at: Callable[[Place], None]) -> None:
        self.root, self.at = str(root), at
        self.originals = {name: getattr(os, name) for name in ("replace", "unlink", "fsync", "truncate", "mkdir")}
        self.open, self.names = builtins.open, {}

    def arm(self) -> None:
        builtins.open = self.opened
        for name, original in self.originals.items():
            setattr(os, name, self.watched(name, original))

    def file(self, path: Any) -> str | None:
        """What a path is, without numbers that differ between processes; None outside of the folder."""
        text = self.names.get(path, "") if isinstance(path, int) else os.fspath(path)
        if not str(text).startswith(self.root):
            return None
        name = Path(text).name
        return re.sub(r"\d+", "#", re.sub(r"(\.new)?(\.\d+\.partial)?$", "", name.lstrip(".")))

    def watched(self, name: str, original: Callable) -> Callable:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            file = self.file(args[0] if name == "replace" else path)
            if file is None:
                return original(path, *args, **kwargs)
            self.at((file, f"before {name}"))
            result = original(path, *args, **kwargs)
            self.at((file, f"after {name}"))
            return result

        return call

    def opened(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = None if mode.startswith("r") or not isinstance(path, (str, os.PathLike)) else self.file(path)
        stream = self.open(path, mode, *args, **kwargs)
        if file is None:
            return stream
        self.names[stream.fileno()] = os.fspath(path)
        self.at((file, "opened"))
        return Halved(stream, lambda: self.at((file, "half written"))) if mode == "wb" else stream


class Halved:
    """A binary file that says when half of a write has reached the disk."""

    def __init__(self, stream: BinaryIO, at: Callable[[], None]) -> None:
        self.stream, self.at = stream, at

    def write(self, content: bytes) -> int:
        view = memoryview(content).cast("B")
        self.stream.write(view[: len(view) // 2])
        self.stream.flush()
        self.at()
        self.stream.write(view[len(view) // 2 :])
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> "Halved":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()


def attempt(flags: tuple, root: Path, at: Callable[[Place], None], output: Path) -> int:
    """Start run.py in a fork; its process id. The file of what it prints exists and is empty from the beginning."""
    sys.stdout.flush()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = os.fork()
    if child:
        os.close(descriptor)
        return child
    code = 1
    try:  # nothing of this process may go on in the fork, whatever happens
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        Watch(root, at).arm()
        command_line.main([*map(str, flags), "--results_root", str(root)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        logging.getLogger().exception("attempt")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def killer(place: Place | None, nth: int, report: Path) -> Callable[[Place], None]:
    """Ends the process at the nth time that a place, or any, is reached, and leaves its name in a file."""
    descriptor, left = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), [nth]

    def at(reached: Place) -> None:
        left[0] -= place in (None, reached)
        if left[0] == 0:
            os.write(descriptor, " ".join(reached).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return at


def nothing(place: Place) -> None:
    """Lets an attempt go on."""


def recorder(path: Path) -> Callable[[Place], None]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    return lambda place: os.write(descriptor, ("\t".join(place) + "\n").encode()) and None


def ended(child: int, stop: tuple[float, int] | None = None) -> int:
    """Exit code of a fork, negative for a signal; a signal is sent after a time, if asked for.

    Raises:
        AssertionError: it hangs.
    """
    begin, sent = time.monotonic(), False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        gone = time.monotonic() - begin
        if stop and not sent and gone > stop[0]:
            os.kill(child, stop[1])
            sent = True
        if gone > LIMIT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"an attempt took more than {LIMIT} s")
        time.sleep(0.002)


# --------------------------------------------------------------------------------------------------- what must be equal


def folders(root: Path) -> dict[str, RunFolder]:
    return {path.parent.relative_to(root).as_posix(): RunFolder(path.parent) for path in root.glob("*/*/*/*/config.yaml")}


def files(folder: RunFolder) -> set[str]:
    """Paths below a run folder; an event file is named by the time and may come twice, the former one empty."""
    found = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("tensorboard/")}


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{name: cell for name, cell in row.items() if name not in TIMING} for row in csv.DictReader(file)]


def content(path: Path) -> Any:
    """What has to be equal in a file of two runs with the same flags."""
    if path.suffix == ".csv":
        return table(path)
    if path.suffix == ".npz":
        with numpy.load(path) as arrays:
            return {
                name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items() if name != "seconds"
            }
    if path.name == "summary.json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in OF_THE_MOMENT}
    if path.name == "config.yaml":
        return re.sub(r"(?m)^results_root:.*\n(  .*\n)*", "", path.read_text())
    return path.read_bytes()


OF_THE_MOMENT = ("seconds", "peak_memory_mb", "git", "files", "checksum")  # tables hold seconds, so hashes differ too
UNEQUAL = (".pdf", ".log")  # hold the time
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")  # hold how often an epoch was begun


def unknown_files(folder: RunFolder) -> Iterator[str]:
    """Files of a finished run of which its summary does not have the hash, and what it has beside."""
    summary = json.loads(folder.summary.read_text())
    kinds = (".csv", ".npz", ".pt", ".yaml")
    there = {name for name in files(folder) - set(CHECKPOINTS) if name.endswith(kinds)}
    yield from (f"{name} is recorded or there alone" for name in sorted(there ^ summary["files"].keys()))
    for name in sorted(there & summary["files"].keys()):
        if hashlib.sha256((folder.path / name).read_bytes()).hexdigest() != summary["files"][name]:
            yield f"{name} has not the hash that is recorded"
    yield from (f"{name} is still expected" for name in summary["files_pending"])


def differences(folder: RunFolder, reference: RunFolder) -> Iterator[str]:
    """What a finished run has that the undisturbed one has not, or otherwise."""
    mine, whole = files(folder), files(reference)
    yield from unknown_files(folder)
    yield from (f"{name} is missing" for name in sorted(whole - mine - {CHECKPOINTS[1]}))
    yield from (f"{name} is left over" for name in sorted(mine - whole - {CHECKPOINTS[1]}))
    for name in sorted(mine & whole - set(CHECKPOINTS)):
        if not name.endswith(UNEQUAL) and content(folder.path / name) != content(reference.path / name):
            yield f"{name} differs"


# ------------------------------------------------------------------------------------------------------------ chaos


@dataclass
class Tally:
    """What happened, in numbers."""

    kills: collections.Counter = field(default_factory=collections.Counter)  # by place
    runs: int = 0
    attempts: int = 0
    interrupted: int = 0  # by SIGTERM, exit code 75
    resumed: int = 0
    previous: int = 0  # starts that found only the previous checkpoint
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    def text(self) -> str:
        places = "\n".join(f"| {place} | {n} |" for place, n in sorted(self.kills.items()))
        faults = "\n".join(self.lost + self.differing)
        return (
            f"{self.killed} kills in {self.runs} runs, {self.attempts} attempts, {self.resumed} resumed "
            f"({self.previous} from the previous checkpoint alone), {self.interrupted} interrupted by SIGTERM: "
            f"{len(self.lost)} lost, {len(self.differing)} differing\n\n| killed at | times |\n|---|---|\n{places}\n{faults}"
        )


@dataclass
class Reference:
    """The undisturbed run of some flags: its folders, the places that it went through, and its seconds."""

    root: Path
    places: collections.Counter
    seconds: float


def undisturbed(name: str, root: Path) -> Reference:
    prepare(name, root)
    begin, trace, output = time.monotonic(), root.with_suffix(".places"), root.with_suffix(".out")
    assert ended(attempt(RUNS[name], root, recorder(trace), output)) == 0, output.read_text()
    places = collections.Counter(tuple(line.split("\t")) for line in trace.read_text().splitlines())
    return Reference(root, places, time.monotonic() - begin)


def prepare(name: str, root: Path) -> None:
    output = root.with_suffix(".first")
    if name in FIRST:
        assert ended(attempt(FIRST[name], root, nothing, output)) == 0, output.read_text()


def one_run(name: str, reference: Reference, root: Path, n_kills: int, rng: random.Random, tally: Tally) -> None:
    """Kill a run about n times, let it end, and compare."""
    tally.runs += 1
    flags = RUNS[name]
    prepare(name, root)
    output = root.with_suffix(".out")
    for _ in range(n_kills):
        kind = rng.choices(("operation", "place", "time", "signal"), (5, 3, 3, 1))[0]
        place, nth = rng.choice(sorted(reference.places)), rng.randint(1, 3)
        inside = {"operation": (None, rng.randint(1, 50)), "place": (place, min(nth, reference.places[place]))}.get(kind)
        report = root.with_suffix(".killed")
        at = killer(*inside, report) if inside else nothing
        number = signal.SIGTERM if kind == "signal" else signal.SIGKILL
        stop = None if inside else (rng.uniform(0.01, 1) * reference.seconds, number)
        code = watched_attempt(flags, root, at, output, stop, tally)
        if code == -signal.SIGKILL:
            tally.kills[report.read_text() if inside else "a random time"] += 1
            check_progress(root, tally, cleared="--overwrite" in flags)
        elif code == 75:
            tally.interrupted += 1
        elif code == -signal.SIGTERM and (output.read_text() == "" or all_finished(root)):
            tally.kills["SIGTERM, before it is watched for or after the end"] += 1
        else:
            if code:
                tally.lost.append(f"{root}: exit code {code}: {output.read_text()[-500:]}")
            break
    code = watched_attempt(flags, root, nothing, output, None, tally)
    if code:
        tally.lost.append(f"{root}: exit code {code}: {output.read_text()[-500:]}")
        return
    mine, whole = folders(root), folders(reference.root)
    found = [f"{root}: run folders differ"] if mine.keys() != whole.keys() else []
    found += [f"{root}/{name}: {what}" for name in mine.keys() & whole for what in differences(mine[name], whole[name])]
    tally.differing += found


def all_finished(root: Path) -> bool:
    found = folders(root).values()
    return bool(found) and all(folder.finished for folder in found)


def watched_attempt(
    flags: tuple, root: Path, at: Callable[[Place], None], output: Path, stop: tuple[float, int] | None, tally: Tally
) -> int:
    """One attempt, which has to go on exactly where the newest sound checkpoint stands; its exit code."""
    tally.attempts += 1
    unfinished = [folder for folder in folders(root).values() if not folder.finished]
    states = [load_latest(folder.checkpoint) for folder in unfinished]
    tally.previous += sum(not f.checkpoint.exists() and previous(f.checkpoint).exists() for f in unfinished)
    logs = {folder: folder.log.read_text() if folder.log.exists() else "" for folder in unfinished}
    code = ended(attempt(flags, root, at, output), stop)
    for folder, state in zip(unfinished, states, strict=True):
        new = folder.log.read_text()[len(logs[folder]) :]
        if state is not None and "epoch" in new:
            tally.resumed += 1
            if f"resuming after {state['epoch']} epochs and {state['step']} steps" not in new:
                tally.differing.append(f"{folder.path} had a checkpoint of epoch {state['epoch']}, but: {new[:300]}")
    return code


def check_progress(root: Path, tally: Tally, *, cleared: bool) -> None:
    """After a kill at most the epoch under way is to be done again, and there are tables up to the checkpoint.

    A run that is cleared in order to be repeated loses its checkpoints first.
    """
    for folder in folders(root).values():
        rows = folder.history().rows
        state = load_latest(folder.checkpoint)
        if rows and not folder.finished and not (cleared and state is None):
            last, saved = int(rows[-1]["epoch"]), -1 if state is None else state["epoch"]
            if not saved <= last <= saved + 1:
                tally.differing.append(f"{folder.path}: history.csv ends at epoch {last}, the checkpoint at {saved}")


def chaos(work: Path, n_kills: int, seed: int) -> Tally:
    """Kill runs of all kinds in turn until there were so many kills; results under `work`."""
    torch.set_num_threads(1)
    logging.getLogger("optim.checkpoint").setLevel(logging.ERROR)
    for loader_name in ("digits", "toy"):
        load_dataset(DataConfig(loader_name=loader_name))  # imports what it needs
    rng, tally, references = random.Random(seed), Tally(), {}
    while tally.killed < n_kills and not (tally.lost or tally.differing):
        name = list(RUNS)[tally.runs % len(RUNS)]
        if name not in references:
            references[name] = undisturbed(name, work / f"whole{tally.runs}")
        one_run(name, references[name], work / f"run{tally.runs}", rng.randint(4, 10), rng, tally)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder of the runs, kept; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        begin = time.monotonic()
        tally = chaos(options.work or Path(temporary), options.kills, options.seed)
        print(tally.text())
        print(f"{time.monotonic() - begin:.0f} s, seed {options.seed}", file=sys.stderr)
    sys.exit(1 if tally.lost or tally.differing else 0)


if __name__ == "__main__":
    main()

"""docs/extending.md, done as it says in a copy of the program: its files written, its lines added, its commands run."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from helper.system.versions import ROOT
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.folder import RunFolder
from optim.model import load_stored
from tests.copied import copy_program

PAGE = (ROOT / "docs/extending.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    "--limit_train", "100", "--limit_test", "50", "--batch_size", "50", "--figures", "0", "--save_snr", "0",
    "--save_fisher", "0",
)  # fmt: skip

# Runs each command as a shell would, but all in one process, which loads the program once. RUN is the run before it.
# Where a command has a number, SIGTERM comes after that epoch.
COMMANDS = """
import json, os, signal, sys
import experiment, run
from optim.trackers.main import Trackers
from tests.outcome import outcome

events = Trackers.epoch
def epoch(self, epoch):
    events(self, epoch)
    if epoch == stop_after:
        os.kill(os.getpid(), signal.SIGTERM)
Trackers.epoch = epoch

found = []
for program, words, stop_after in json.load(sys.stdin):
    words = [found[-1].out.splitlines()[-1] if word == "RUN" else word for word in words]
    found.append(outcome({"run.py": run, "experiment.py": experiment}[program].main, *words))
print(json.dumps([(one.code, one.out, one.err) for one in found]))
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Section(NamedTuple):
    """What one section of the page has: {path: content}, [(path, lines to add)], commands."""

    files: dict[str, str]
    changes: list[tuple[str, str]]
    commands: list[str]


def section(text: str) -> Section:
    found = Section({}, [], [])
    for kind, block in FENCE.findall(text):
        first, _, rest = block.partition("\n")
        if kind == "sh":
            found.commands.extend(block.splitlines())
        elif kind == "diff":
            found.changes.append((first.removeprefix("# "), rest))
        else:
            found.files[first.removeprefix("# ")] = rest
    return found


TEXTS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SECTIONS = {title: section(text) for title, text in TEXTS.items()}


def added(text: str, change: str) -> str:
    """A file with the lines of a change: those with + are new, and stand between the others, which are there once."""
    lines = text.split("\n")
    for part in change.strip("\n").split("\n\n"):
        after = [(line[:1], line[1:]) for line in part.split("\n")]
        before = [line for sign, line in after if sign != "+"]
        (start,) = (i for i in range(len(lines)) if lines[i : i + len(before)] == before)
        lines[start : start + len(before)] = [line for _, line in after]
    return "\n".join(lines)


def once(items: list) -> list:
    return list(dict.fromkeys(items))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """A copy of the program with everything on the page."""
    root = copy_program(tmp_path_factory.mktemp("extended"), more=("scripts", "tests", "docs", "pyproject.toml"))
    for one in SECTIONS.values():
        for path, content in one.files.items():
            assert not (root / path).exists(), f"{path} of the page is in the program already"
            (root / path).write_text(content)
        for path, change in one.changes:
            (root / path).write_text(added((root / path).read_text(), change))
    return root


@pytest.fixture(scope="module")
def done(program) -> dict[str, Done]:
    """{command of the page: what came of it}. The report comes last, and the steady mode is interrupted once."""
    commands = once([command for one in SECTIONS.values() for command in one.commands])
    found, ours = {}, []
    for command in sorted(commands, key=lambda command: "experiment.py report" in command):
        _, program_name, *words = shlex.split(command)
        if program_name.startswith("-"):
            found[command] = shell(program, program_name, *words)
            continue
        words += SMALL if program_name == "run.py" else ()
        if "steady" in words:
            ours.append((f"{command}: whole", (program_name, [*words, "--results_root", "whole"], None)))
            ours.append((f"{command}: interrupted", (program_name, words, 2)))
        ours.append((command, (program_name, words, None)))
    printed = shell(program, "-c", COMMANDS, stdin=json.dumps([arguments for _, arguments in ours]))
    assert printed.code == 0, printed.err
    for (command, _), result in zip(ours, json.loads(printed.out), strict=True):
        found[command] = Done(*result)
    return found


def shell(program: Path, *words: str, stdin: str = "") -> Done:
    ended = subprocess.run([sys.executable, *words], cwd=program, capture_output=True, text=True, input=stdin, check=False)
    return Done(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def run_of(program, done):
    """run_of(words of its command) -> the folder of a run of the page."""

    def call(*words: str) -> RunFolder:
        (command,) = (command for command in done if "run.py" in command and all(word in command for word in words))
        return RunFolder(program / done[command].out.splitlines()[-1])

    return call


def rows(folder: RunFolder, table: str) -> list[dict[str, str]]:
    with open(folder.path / f"{table}.csv", newline="") as file:
        return list(csv.DictReader(file))


# -------------------------------------------------------------------------------------------------------- the page as a whole


def test_every_part_has_a_section_with_something_to_do():
    words = ("score", "metric", "network", "data set", "mode", "tracker", "schedule")
    for word in words:
        (found,) = (one for title, one in SECTIONS.items() if word in title)
        assert found.changes
        assert found.commands


def test_every_command_ends_well(done):
    assert len(done) > 12
    for command, result in done.items():
        assert result.code == (75 if command.endswith("interrupted") else 0), (command, result)


def test_the_examples_are_written_as_the_program_is(program):
    touched = {path for one in SECTIONS.values() for path in (*one.files, *dict(one.changes)) if path.endswith(".py")}
    for arguments in (("check",), ("format", "--check")):
        ended = shell(program, "-m", "ruff", *arguments, *touched)
        assert ended.code == 0, ended.out


def test_a_change_that_no_longer_fits_is_found():
    assert added("a = {\n    1,\n}\n", " a = {\n+    0,\n") == "a = {\n    0,\n    1,\n}\n"
    for text in ("b = {\n", "a = {\na = {\n"):
        with pytest.raises(ValueError, match="to unpack"):
            added(text, " a = {\n+    0,\n")


def test_files_and_registries_of_the_table_are_there():
    table = TEXTS["Places to touch"]
    for path in re.findall(r"`([\w/]+\.py)`", table):
        assert "NAME" in path or (ROOT / path).exists(), path
    for names, path in re.findall(r"`([A-Z]+)` in `([\w/]+\.py)`", table):
        assert re.search(rf"^{names}\b.* = ", (ROOT / path).read_text(), re.MULTILINE), path


# ------------------------------------------------------------------------------------------------------------- part by part


def test_the_score_takes_the_same_share_of_every_layer(run_of, done):
    folder = run_of("layerwise")
    by_layer = folder.read_summary()["sparsity_by_layer"]
    mask = load_stored(folder.model).mask
    assert set(mask) == {"layers.0.weight", "layers.2.weight"}
    for name, keep in mask.items():
        assert abs((~keep).sum().item() - 0.8 * keep.numel()) <= 1
        assert by_layer[name] == pytest.approx(0.8, abs=1 / keep.numel())
    assert "passed" in next(result.out for command, result in done.items() if "pytest" in command)


def test_the_metric_has_its_rows_and_its_column_in_the_report(program, run_of):
    folder = run_of("--save_margin")
    found = [row for row in rows(folder, "metrics") if row["metric"] == "margin"]
    assert [(row["epoch"], row["split"]) for row in found] == [
        ("0", "train"), ("2", "train"), ("0", "test"), ("1", "test"), ("2", "test"),
    ]  # fmt: skip
    assert all(float(row["standard_error"]) == 0 for row in found)  # of all 100 or 50 examples
    data = load_dataset(DataConfig(limit_train=100, limit_test=50))
    network = build_network(NetworkConfig(), data.input_shape, data.n_classes, torch.Generator())
    network.load_state_dict(load_stored(folder.model).weights)
    logits = network(data.normalise(data.train.inputs)).detach().double()
    pairs = zip(logits.tolist(), data.train.labels.tolist(), strict=True)
    margins = [row[label] - max(row[:label] + row[label + 1 :]) for row, label in pairs]
    assert float(found[1]["value"]) == pytest.approx(sum(margins) / 100, rel=1e-5)
    with open(program / "results/report/runs.csv", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if (program / "results" / row["run"]) == folder.path)
    assert float(row["margin"]) == float(found[-1]["value"])  # the newest
    assert "margin" in (program / "results/report/index.html").read_text()


def test_the_network_is_trained_under_its_name_and_its_head_is_whole(program, run_of):
    folder = run_of("convnet")
    assert folder.path.parent == program / "results/digits/convnet4/sparse-scratch"
    assert any((program / "results/digits/convnet4/dense").iterdir())
    stored = load_stored(folder.model)
    assert set(stored.mask) == {"conv1.weight", "conv2.weight"}
    assert stored.mask.sparsity == pytest.approx(0.5, abs=0.002)
    assert stored.weights["conv2.weight"].shape == (8, 4, 3, 3)
    assert stored.weights["classifier.weight"].ne(0).all()


def test_the_data_set_is_trained_and_priced(program, run_of, done):
    folder = run_of("shapes")
    assert float(rows(folder, "history")[-1]["acc_test"]) > 0.9
    assert folder.path.parts[-4] == "shapes"
    listed = next(result.out for command, result in done.items() if "--dry_run" in command)
    for name in ("shapes", "shapes_noisy"):
        assert listed.count(f" results/{name}/mlp-128-64/dense/") == 2
    assert not (program / "results/shapes_noisy").exists()


def test_a_mode_without_a_file_begins_with_its_mask(run_of):
    folder = run_of("static")
    first, last = load_stored(folder.epoch_state(0)), load_stored(folder.model)
    assert first.mask.sparsity == last.mask.sparsity == 0.5
    assert all(torch.equal(first.mask[name], keep) for name, keep in last.mask.items())


def test_the_steady_mode_prunes_while_training_and_resumes_to_the_same_bits(program, run_of, done):
    (command,) = (command for command in done if command.endswith("interrupted"))
    folder = RunFolder(program / done[command.removesuffix(": interrupted")].out.splitlines()[-1])
    whole = RunFolder(program / "whole" / folder.path.relative_to(program / "results"))
    assert "resuming after 2 epochs" in folder.log.read_text()
    assert folder.model.read_bytes() == whole.model.read_bytes()
    densities = [float(row["density"]) for row in rows(folder, "history")[1:]]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] == 1 > densities[1]
    assert densities[-1] == pytest.approx(0.1, abs=1e-3)
    assert load_stored(folder.model).mask.sparsity == pytest.approx(0.9, abs=1e-4)


def test_the_report_has_the_new_modes(program, done):
    page = (program / "results/report/index.html").read_text()
    assert "static" in page
    assert "steady" in page


def test_the_tracker_has_written_its_file(run_of):
    folder = run_of("--tracker lines")
    lines = (folder.path / "lines/accuracies.txt").read_text().splitlines()
    expected = rows(folder, "history")
    assert lines == [f"epoch {row['epoch']}: train {row['acc_train']} test {row['acc_test']}" for row in expected]
    assert len(lines) == 4


def test_schedule_optimiser_and_penalty_act_and_read_no_momentum(run_of, done):
    folder = run_of("rmsprop")
    assert [float(row["lr"]) for row in rows(folder, "history")[1:]] == [0.001, 0.0005]
    assert "--momentum 0.5 has no effect" in next(result.err for command, result in done.items() if "rmsprop" in command)
    assert folder.read_summary()["identity"].keys() >= {"lr_schedule", "optimizer_name", "reg_type"}

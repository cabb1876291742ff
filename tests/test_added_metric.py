"""A metric that is one file and one line in the registry is everywhere: flags, tables, figures, report, prices, tracker."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helper.system.versions import ROOT
from optim.folder import RunFolder
from optim.model import load_stored

QUICK = (
    "--n_epochs", 1, "--lr_milestones", "", "--limit_train", 100, "--limit_test", 50, "--save_snr", 0, "--save_fisher", 0,
    "--hidden_dims", 6,
)  # fmt: skip
NAME = "weight_power_sum"
POWER_2 = json.dumps({"weight_power": 2})


LABELS = """
import helper.plotter.main, optim.closing
helper.plotter.main.save_figure = lambda figure, stem: print(stem.name, [axis.get_ylabel() for axis in figure.axes])
folder = optim.closing.RunFolder(pathlib.Path(sys.argv[1]))
optim.closing.draw(folder, optim.closing.RunConfig())
"""


def python(program: str, *words: object) -> str:
    """What a program prints that has imported tests/added_metric.py before."""
    program = f"import pathlib, sys, tests.added_metric\n{program}"
    found = subprocess.run([sys.executable, "-c", program, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def call(module: str, *words: object) -> str:
    """What a command prints."""
    return python(f"import {module}; {module}.main(sys.argv[1:])", *words)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two sparse runs with their dense parents, measured and reported."""
    root = tmp_path_factory.mktemp("added")
    for mode in ("sparse-finetune", "sparse-scratch"):
        flags = ("--mode", mode, "--prune_ratio", 0.5, f"--save_{NAME}", 1, "--tracker", "tensorboard", "--results_root", root)
        call("run", *QUICK, *flags)
    call("experiment", "report", root)
    return root


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def sum_of_powers(path: Path, power: int) -> float:
    state = load_stored(path)
    kept = {name: weight.double() for name, weight in state.weights.items() if weight.ndim > 1}
    kept |= {name: kept[name][keep] for name, keep in state.mask.items()}
    return sum(float(weight.pow(power).sum()) for weight in kept.values())


def test_a_run_measures_it_with_its_settings_and_its_layers(results):
    (folder,) = results.glob("digits/*/sparse-finetune/*")
    totals = [row for row in rows(folder) if row["layer"] == "all"]
    assert [(row["epoch"], row["metric"], row["settings"], row["params"]) for row in totals] == [
        (epoch, NAME, POWER_2, "") for epoch in ("0", "1")
    ]
    assert float(totals[1]["value"]) == pytest.approx(sum_of_powers(RunFolder(folder).model, 2), rel=1e-6)
    layers = [float(row["value"]) for row in rows(folder) if row["epoch"] == "1" and row["layer"] != "all"]
    assert math.fsum(layers) == pytest.approx(float(totals[1]["value"]), rel=1e-12)
    assert yaml.safe_load((folder / "config.yaml").read_text())["weight_power"] == 2


def test_saved_states_are_measured_with_its_own_flag(results):
    (folder,) = results.glob("digits/*/dense/*")
    call("experiment", "measure", folder, "--metrics", NAME, "--epochs", "all", "--weight_power", 4)
    found = [row for row in rows(folder) if row["layer"] == "all" and row["settings"] == json.dumps({"weight_power": 4})]
    assert [row["epoch"] for row in found] == ["0", "1"]
    assert float(found[0]["value"]) == pytest.approx(sum_of_powers(RunFolder(folder).epoch_state(0), 4), rel=1e-6)


def test_the_report_has_its_columns_ratios_and_heading(results):
    with open(results / "report/runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    for run in runs:
        totals = [r for r in rows(results / run["run"]) if r["layer"] == "all" and r["settings"] == POWER_2]
        (row,) = [r for r in totals if r["epoch"] == run["epoch_selected"]]
        assert float(run[NAME]) == pytest.approx(float(row["value"]))
    with open(results / "report/over_seeds.csv", newline="") as file:
        assert NAME in {row["quantity"] for row in csv.DictReader(file)}
    page = (results / "report/index.html").read_text()
    assert "sum W^n ratio" in page
    assert "sum W^n, sum of a power of the active weights (power of a parameter)" in page


def test_its_figure_its_tag_and_its_help_are_there(results):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = results.glob("digits/*/sparse-scratch/*")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert f"{NAME}/train/all/weight_power2/value" in events.Tags()["scalars"]
    assert f"final/{NAME}" in events.Tags()["scalars"]
    assert (folder / "figures/metrics.pdf").exists()
    assert "metrics ['sum of powers of the weights\\n(power of a parameter)']" in python(LABELS, folder)


def test_its_flag_does_not_make_another_run():
    flags = {f"save_{NAME}": 1, "weight_power": 5}
    imports = "from helper.schema.config import identity, unflatten; from optim.config import RunConfig"
    assert python(f"{imports}; print(identity(unflatten(RunConfig, {flags})))") == "{}\n"


def test_help_and_dry_run_know_it(tmp_path):
    text = " ".join(call("run", "--help").split())
    assert f"--save_{NAME} 1|0 sum of a power of the active weights (default: 0)" in text
    assert f"--weight_power N power of the weights that are added up; acts with --save_{NAME} 1 (default: 2)" in text
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(json.dumps({"flags": {"save_fisher": 0, f"save_{NAME}": 1}, "grid": {"weight_power": [5000]}}))
    printed = call("experiment", "sweep", sweep, "--dry_run", 1, "--images_per_second", 100, "--results_root", tmp_path)
    (line,) = (line for line in printed.splitlines() if line.startswith("digits/mlp-128-64"))
    assert line.replace(" M ", " ").split()[4] == "10.0"  # millions of images: 5000 x 1000, before and after training

"""What the project says of itself: requirements, presets, README."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

import experiment
from experiment import COMMANDS
from helper.config import all_flags, unflatten
from helper.utils import ROOT
from optim.main import RunConfig


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_installed_packages_meet_the_floors(file):
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
    assert lines
    for line in lines:
        requirement = Requirement(line)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True), line


def test_constraints_are_within_the_requirements():
    floors = {}
    for file in ("requirements.txt", "requirements-dev.txt"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
        floors |= {Requirement(line).name: Requirement(line).specifier for line in lines}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert floors[name].contains(version, prereleases=True), line


@pytest.mark.parametrize("preset", sorted((ROOT / "scripts/presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_parse_and_are_headed_by_command_hardware_accuracy(preset):
    import yaml

    unflatten(RunConfig, yaml.safe_load(preset.read_text()))
    head = preset.read_text().split("\nloader_name")[0]
    for word in (f"python run.py --config scripts/presets/{preset.name}", "Hardware:", "Expected", "Time:"):
        assert word in head


def test_every_flag_that_the_readme_and_scripts_name_exists():
    known = set(all_flags(RunConfig)) | {"config", "print_config", "help", "debug"}
    known |= {"nproc_per_node", "max", "ntasks"}  # of torchrun and srun, as far as the pattern goes
    known |= {name for command in COMMANDS.values() for name in all_flags(command.load()[0])}
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    for file in ("README.md", *pages, "scripts/quickstart.sh", "scripts/cifar100_resnet.sh", "scripts/paper.sh"):
        text = (ROOT / file).read_text()
        text = re.sub(r"(?m)^.*(pip |pytest|bash scripts/test|git |python scripts/|python -m ).*$|torchrun.*?run\.py", "", text)
        for name in re.findall(r"(?<![\w-])--([a-z]\w+)", text):
            assert name in known, f"{file}: --{name}"


def test_every_command_of_experiment_has_help_and_a_line_in_the_readme(capsys):
    readme = (ROOT / "README.md").read_text()
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            experiment.main([name, "--help"])
        assert stop.value.code == 0
        words = capsys.readouterr().out
        assert all(f"--{flag}" in words for flag in all_flags(command.load()[0]))
        assert f"python experiment.py {name}" in readme

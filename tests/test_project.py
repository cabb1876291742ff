"""What the project says of itself: requirements, presets, README."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

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

    config = unflatten(RunConfig, yaml.safe_load(preset.read_text()))
    assert config.train.n_epochs >= 150
    head = preset.read_text().split("\nloader_name")[0]
    for word in (f"python run.py --config scripts/presets/{preset.name}", "Hardware:", "Expected", "Time:"):
        assert word in head


def test_every_flag_that_the_readme_and_scripts_name_exists():
    known = set(all_flags(RunConfig)) | {"config", "print_config", "help"}
    for file in ("README.md", "scripts/quickstart.sh", "scripts/cifar100_resnet.sh"):
        text = (ROOT / file).read_text()
        text = re.sub(r"(?m)^.*(pip |pytest|bash scripts/test|git ).*$", "", text)
        for name in re.findall(r"(?<![\w-])--([a-z]\w+)", text):
            assert name in known, f"{file}: --{name}"

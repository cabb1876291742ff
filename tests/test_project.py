"""What the project says of itself: requirements, presets, README."""

import ast
import importlib.metadata
import re
import sys

import pytest
from packaging.requirements import Requirement

import experiment
from experiment import COMMANDS
from helper.schema.config import all_flags, unflatten
from helper.system.versions import ROOT
from optim.config import RunConfig


def asked_for(file: str) -> list[Requirement]:
    """The packages that a file of requirements names itself."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
    assert lines
    return [Requirement(line) for line in lines]


def imported(nodes) -> set[str]:
    """The top names that the import statements among some nodes of a syntax tree load."""
    nodes = list(nodes)
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("folder", ["helper", "loader", "network", "optim", "study", "scripts", "tests", "."])
def test_every_package_that_is_imported_is_asked_for(folder):
    """Also those that others bring along today: a fresh environment has what the requirements name, and no more."""
    needed = {requirement.name.lower() for requirement in asked_for("requirements.txt")}
    # optional: the modules that import them are imported for --tracker alone
    needed |= {"tensorboard", "wandb", "mlflow-skinny", "sqlalchemy", "alembic"}
    further = ("requirements-dev.txt", "requirements-tpu.txt")
    known = needed | {requirement.name.lower() for file in further for requirement in asked_for(file)}
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    providers = importlib.metadata.packages_distributions()
    paths = list((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
    assert paths
    for path in paths:
        tree = ast.parse(path.read_text())
        on_loading = imported(tree.body) if folder not in ("scripts", "tests") else set()
        for name in imported(ast.walk(tree)) - own - set(sys.stdlib_module_names):
            package = providers.get(name, [name])[0].lower()
            assert package in (needed if name in on_loading else known), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_installed_packages_meet_the_floors(file):
    for requirement in asked_for(file):
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"


def test_constraints_are_within_the_requirements():
    asked = asked_for("requirements.txt") + asked_for("requirements-dev.txt")
    floors = {requirement.name: requirement.specifier for requirement in asked}
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
    known |= {"channels", "save_margin"}  # which docs/extending.md adds
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

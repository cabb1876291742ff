"""The shape of the project, read from its files: who imports whom, how long a file and a function may be, that scripts load."""

import ast
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from helper.system.versions import ROOT

# From the ground up: a file imports from its own layer or from one below it, but never from one above.
LAYERS = (
    ("helper.untrusted", "helper.schema", "helper.system"),
    ("helper",),
    ("helper.metrics",),
    ("helper.masks", "helper.pruner"),
    ("loader", "network"),
    ("optim",),
    ("study",),
    ("run", "experiment"),
    ("scripts",),
    ("tests",),
)
ROOMS = ("study.sweeping", "study.comparing", "study.reporting")  # what they share lies in study/ itself
MOST_LINES = {"file": 300, "function": 50}

# What does not hold yet. Take an entry out as soon as it does, and add none.
UPWARD = set()
FOR_TYPES_ONLY = set()
IN_CIRCLES = set()
LONG_FILES = set()


@dataclass(frozen=True)
class Import:
    """An import of one of the project's modules; `for_types`: only where TYPE_CHECKING is true."""

    module: str
    for_types: bool


def modules() -> dict[str, Path]:
    """{name: file} of every module of the project."""
    tops = {name.partition(".")[0] for layer in LAYERS for name in layer}
    paths = [path for top in tops for path in (*(ROOT / top).rglob("*.py"), ROOT / f"{top}.py") if path.is_file()]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
OURS = [name for name in MODULES if not name.startswith("tests")]


def imports_of(node: ast.AST, *, for_types: bool = False) -> list[Import]:
    """Of the project's modules, wherever they stand below a node."""
    found = []
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            names = [child.module, *(f"{child.module}.{alias.name}" for alias in child.names)]
        found += [Import(name, for_types) for name in names if name in MODULES]
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        found += imports_of(child, for_types=for_types or typing)
    return found


IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}


def layer_of(module: str) -> int:
    """The number of the layer with the longest name that a module's name begins with."""
    fitting = {name: number for number, layer in enumerate(LAYERS) for name in layer if f"{module}.".startswith(f"{name}.")}
    return fitting[max(fitting, key=len)]


def reachable_from(module: str) -> set[str]:
    """Every module that is loaded, at once or later, because of a module."""
    found, left = set(), [module]
    while left:
        for imported in IMPORTS[left.pop()]:
            if imported.module not in found:
                found.add(imported.module)
                left.append(imported.module)
    return found


def lengths_of_functions() -> dict[str, int]:
    functions = [
        (f"{module}.{node.name}", node)
        for module in OURS
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {name: node.end_lineno - node.lineno + 1 for name, node in functions}


def test_modules_and_imports_are_found():
    assert {"run", "helper.schema.config", "study.runs", "tests.test_architecture"} <= MODULES.keys()
    assert Import("helper.mask", False) in IMPORTS["helper.pruner"]
    assert imports_of(ast.parse("if TYPE_CHECKING:\n    from optim.config import RunConfig")) == [Import("optim.config", True)]
    assert imports_of(ast.parse("def f():\n    import run")) == [Import("run", False)]
    assert layer_of("helper.schema.config") < layer_of("helper.tables") < layer_of("helper.metrics.main") < layer_of("run")


def test_imports_point_down():
    upward = {
        (module, imported.module)
        for module in MODULES
        for imported in IMPORTS[module]
        if layer_of(imported.module) > layer_of(module) and not imported.for_types
    }
    assert upward == UPWARD


def test_no_module_is_imported_for_types_only():
    """Such an import hides that two modules need each other: what both need belongs below both."""
    assert {module for module, found in IMPORTS.items() if any(one.for_types for one in found)} == FOR_TYPES_ONLY


def test_there_is_no_circle():
    """Not even one that is closed by an import within a function."""
    assert {module for module in OURS if module in reachable_from(module)} == IN_CIRCLES


def test_the_rooms_of_study_do_not_know_each_other():
    for module in OURS:
        home = next((room for room in ROOMS if module.startswith(f"{room}.")), None)
        for imported in IMPORTS[module] if module.startswith("study.") else ():
            visited = next((room for room in ROOMS if imported.module.startswith(f"{room}.")), home)
            assert visited == home, f"{module} imports {imported.module}"


PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_page_draws_every_folder_in_the_order_of_the_layers():
    drawn = re.findall(r"(?<!\S)(\w[\w/]*)(/|\.py)(?=\s)", PAGE.split("```")[1])
    rows = [layer_of(name.replace("/", ".")) for name, _ in drawn]
    assert rows == sorted(rows, reverse=True)
    homes = {path.parent.relative_to(ROOT).as_posix() for name, path in MODULES.items() if name in OURS} - {".", "scripts"}
    assert {name for name, kind in drawn if kind == "/"} == homes


def test_what_the_page_names_is_there():
    named = re.findall(r"(?<![\w./])((?:helper|loader|network|optim|study|scripts|tests)/[\w./]*\w)", PAGE)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_files_are_short():
    long = {name for name in OURS if len(MODULES[name].read_text().splitlines()) > MOST_LINES["file"]}
    assert long == LONG_FILES


def test_functions_are_short():
    assert not {name for name, lines in lengths_of_functions().items() if lines > MOST_LINES["function"]}


@pytest.mark.parametrize("script", sorted(name for name in MODULES if name.startswith("scripts.")))
def test_scripts_load(script):
    importlib.import_module(script)

"""Code of a user's own, named as MODULE:NAME: where it lies and which version it is, told without running any of it."""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.schema.config import FlagError
from helper.system.versions import ROOT
from helper.untrusted.texts import one_line

MOST_BYTES, MOST_FILES = 1 << 22, 1000  # of one file, and of files that one imports
LONGEST = 100  # characters of a folder's name
OF_THIS_PROJECT = frozenset(("helper", "loader", "network", "optim", "study", "scripts", "tests", "run", "experiment"))
INSTALLED = frozenset(("site-packages", "dist-packages"))


def is_reference(word: object) -> bool:
    """Whether a word names code, as MODULE:NAME does, and no entry of a registry."""
    return isinstance(word, str) and all(word.rpartition(":"))


@dataclass(frozen=True)
class Reference:
    """A function or class in a module.

    Attributes:
        module: dotted name of one that can be imported, or path of a .py file.
        name: in that module; dots lead to attributes.
    """

    module: str
    name: str

    @property
    def is_file(self) -> bool:
        return self.module.endswith(".py")

    @property
    def word(self) -> str:
        return f"{self.module}:{self.name}"

    @property
    def label(self) -> str:
        """`my_nets.tiny_vit`: the same wherever a file lies."""
        return f"{Path(self.module).stem if self.is_file else self.module}.{self.name}"


def read_reference(word: str) -> Reference:
    """MODULE:NAME; the path of a file below the working directory is relative to that.

    Raises:
        ValueError: a part is no name.
    """
    module, _, name = word.rpartition(":")
    if module.endswith(".py"):
        module = os.path.normpath(module)
        inside = os.path.relpath(module)
        module = module if inside.startswith("..") else inside
    elif not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"expected MODULE:NAME, and {module} is neither a module's name nor the path of a .py file")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"expected MODULE:NAME, and {name} is no name of a function or class")
    return Reference(module, name)


def canonical(word: object) -> str:
    """A word of a registry as it is, a reference as `read_reference` has it. Raises ValueError: as that does."""
    return read_reference(word).word if is_reference(word) else str(word)


def label_of(word: str) -> str:
    """How a registry's entry, or a reference in its place, is called in folders and tables."""
    return read_reference(word).label if is_reference(word) else word


def path_label(word: str, arguments: str = "") -> str:
    """`label_of` with arguments, as part of a path."""
    return re.sub(r"[^\w.,=-]+", "-", "-".join(filter(None, [label_of(word), arguments])))[:LONGEST].rstrip(".-")


class WithReferences(Mapping[str, Any]):
    """A registry in which every reference stands for an entry that is made on the fly.

    Args:
        make: reference -> entry, without running the code.
        word: stands for all references where the entries are told.
    """

    def __init__(self, registry: Mapping[str, Any], make: Callable[[str], Any], word: str) -> None:
        self.registry, self.make, self.word = registry, make, word

    def __getitem__(self, name: str) -> Any:
        return self.make(name) if is_reference(name) else self.registry[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.registry, self.word])

    def __len__(self) -> int:
        return len(self.registry) + 1


# ----------------------------------------------------------------------------------------------------- which version


def version_of(word: str) -> str:
    """Name and version of an installed package; of another file a hash over it and over what it imports beside it.

    Raises:
        FlagError: there is no such module, or it is no readable Python text.
    """
    reference = read_reference(word)
    path, root = location(reference)
    package = installed_package(reference, path)
    if package:
        return package
    found = hashlib.sha256()
    packages = [] if reference.is_file else files_of_module(reference.module, root)
    for file in sorted(imported_files([path, *packages], root, word)):
        found.update(f"{file.relative_to(root).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


@functools.cache  # a sweep asks it of thousands of configurations
def installed_package(reference: Reference, path: Path) -> str | None:
    """`torchvision 0.28.0` where the module is of an installed package or of Python itself, else None."""
    if reference.is_file:
        return None
    if path.is_relative_to(sysconfig.get_path("stdlib")) and not INSTALLED & set(path.parts):
        return f"python {platform.python_version()}"
    if not INSTALLED & set(path.parts):
        return None  # also of a package that is installed in place, whose files change and whose version does not
    top = reference.module.partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, ()):
        return f"{name} {importlib.metadata.version(name).partition('+')[0]}"  # +cpu and +cu128 are one version
    return None


def location(reference: Reference) -> tuple[Path, Path]:
    """(file of a module, folder from which it is imported). Raises FlagError: there is none."""
    path, root = file_of(reference) if reference.is_file else module_file(reference)
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise FlagError(f"{path} is no file of at most {MOST_BYTES >> 20} MiB, as code would be")
    except OSError as error:
        raise FlagError(f"{path} cannot be read: {error.strerror}") from None
    return path, root


def file_of(reference: Reference) -> tuple[Path, Path]:
    path = Path(reference.module)
    if not path.exists():
        raise FlagError(f"{reference.word}: there is no file {path}, seen from {shown_folder()}")
    return path.resolve(), path.resolve().parent


def module_file(reference: Reference) -> tuple[Path, Path]:
    """Found part by part: to ask for `a.b` at once would import `a`."""
    top, *parts = reference.module.split(".")
    spec, name = importlib.machinery.PathFinder.find_spec(top) or spec_elsewhere(top), top
    root = spec and Path(spec.origin or next(iter(spec.submodule_search_locations or ()), "")).resolve().parent
    if spec and spec.submodule_search_locations is not None and spec.origin:
        root = root.parent
    for part in parts:
        name = f"{name}.{part}"
        spec = spec and importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations or [])
    if spec is None or not spec.has_location:
        beside = Path(f"{reference.module}.py")
        cure = f"for the file here give {beside}:{reference.name}" if beside.is_file() else "is it installed, or on PYTHONPATH?"
        raise FlagError(f"{reference.word}: there is no module {reference.module}; {cure}")
    return Path(spec.origin).resolve(), root


def spec_elsewhere(top: str) -> importlib.machinery.ModuleSpec | None:
    """Of a module that is not found along the path, as one that is installed in place may be."""
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # of a module without one, such as __main__
        return None


def shown_folder() -> str:
    return one_line(Path.cwd(), 200)


def imported_files(begin: Sequence[Path], root: Path, word: str) -> set[Path]:
    """Files and those below a folder that they import, also by way of others; modules from elsewhere are not followed.

    Raises:
        FlagError: one is no Python text, or there are too many.
    """
    found, waiting = set(), list(begin)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if len(found) > MOST_FILES:
            raise FlagError(f"{word}: imports more than {MOST_FILES} files of its own; install them as a package")
        for name in imported_names(file, root, word) if file.suffix == ".py" else ():
            waiting += files_of_module(name, root)
    return found


def imported_names(file: Path, root: Path, word: str) -> Iterator[str]:
    """Dotted names that may be modules which a file imports."""
    try:
        with tokenize.open(file) as text:
            tree = ast.parse(text.read())
    except (SyntaxError, ValueError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise FlagError(f"{word}: {file.name}{where}: {one_line(getattr(error, 'msg', error), 200)}") from None
    package = file.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (name for alias in node.names for name in (base, f"{base}.{alias.name}") if name)


def files_of_module(name: str, root: Path) -> list[Path]:
    """The file of a module below a folder and those of the packages that it is in; none of others, or of this project."""
    parts, found = name.split("."), []
    if root == ROOT and parts[0] in OF_THIS_PROJECT:
        return []
    for n in range(1, len(parts) + 1):
        at = root.joinpath(*parts[:n])
        found += [path for path in (at / "__init__.py", at.with_suffix(".py")) if path.is_file()]
    return found

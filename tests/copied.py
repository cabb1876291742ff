"""A copy of the program, in which a test may add to it."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from helper.system.versions import ROOT

PROGRAM = ("helper", "loader", "network", "optim", "study", "run.py", "experiment.py")


def copy_program(root: Path, more: Iterable[str] = ()) -> Path:
    """Copy the program to a folder, and more of the project's folders and files; the folder."""
    for name in (*PROGRAM, *more):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    return root

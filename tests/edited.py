"""Finished runs edited with the knowledge of their summaries: what lies behind the check of hashes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optim.folder import RunFolder


def edit_summary(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what summary.json holds, in place; its checksum follows."""
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("checksum", None)
    change(summary)
    RunFolder(folder).write_summary(summary)


def vouch(folder: Path) -> None:
    """Let the summary of a finished run take the files that are there for those that the run has left."""

    def take(summary: dict[str, Any]) -> None:
        for name in summary["files"]:
            if (folder / name).is_file():
                summary["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    edit_summary(folder, take)

"""What a sweep's file calls itself, kept below the results root for the report: one file a sweep that has a title."""

import json
from collections.abc import Sequence
from pathlib import Path

from helper.schema.config import digest
from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit, reason_of

SWEEPS = "sweeps"  # folder under a results root, beside the data sets' folders


def write_title(root: Path, title: str, runs: Sequence[str]) -> None:
    """Remember the title of a sweep, and which runs it has; another title of the same runs is replaced."""
    (root / SWEEPS).mkdir(parents=True, exist_ok=True)
    names = sorted(set(runs))
    write_atomic(
        root / SWEEPS / f"{digest({'runs': names})}.json", json.dumps({"title": title, "runs": names}, indent=1) + "\n"
    )


def read_titles(root: Path) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """{title: runs}, by title, and (path, reason) of what could not be read."""
    found: dict[str, list[str]] = {}
    damaged = []
    for path in sorted((root / SWEEPS).glob("*.json")):
        try:
            content = json.loads(path.read_text())
            title, runs = content["title"], content["runs"]
            if not isinstance(title, str) or not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
                raise Unfit("it has no title with the names of runs")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            damaged.append((path.relative_to(root).as_posix(), f"damaged: {reason_of(error)}; remove it"))
            continue
        found.setdefault(title, []).extend(runs)
    return dict(sorted(found.items())), damaged


def title_of(runs: Sequence[str], titles: dict[str, list[str]]) -> str:
    """The titles of the sweeps that some of these runs are of, the one with most of them first; empty where there is none."""
    shared = {title: len(set(runs) & set(names)) for title, names in titles.items()}
    return "; ".join(sorted((title for title, n in shared.items() if n), key=lambda title: -shared[title]))

"""`experiment.py show`: one run in words."""

import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helper.schema.config import Config, flatten
from helper.system.locks import in_use
from helper.system.sizes import in_words, size_of
from helper.tables import last_row
from helper.untrusted.texts import one_line, shown
from optim.folder import RunFolder
from optim.model import stored_config
from study.reporting.collect import UNREADABLE, finished_run, why_left_out
from study.reporting.facts import Facts, command_of, facts_of, settings_of
from study.reporting.finished_run import FinishedRun
from study.reporting.unreliable import notes_of

MOST = 40  # characters of the names on the left


@dataclass(frozen=True)
class ShowConfig(Config):
    """Show."""


def show(config: ShowConfig, run: str) -> int:
    """Print what there is to say of a run, finished or not."""
    folder = RunFolder(Path(run))
    stored = stored_config(folder)
    if folder.summary.is_file():
        parts = facts_of(opened(folder))
    else:
        parts = [
            Facts("Run", tuple(unfinished(folder))),
            Facts("Settings that are not the default", settings_of(flatten(stored))),
        ]
    parts.append(Facts("Files", tuple(files(folder))))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = [line for part in parts if part.rows for line in section(part, width)]
    text = "\n".join(lines)
    print("\n".join([text, *notes_of(text), "", "Command", f"  {shown(command_of(stored))}"]))
    return 0


def opened(folder: RunFolder) -> FinishedRun:
    """A finished run whose files are as it left them. Raises RuntimeError: they are not; the message names file and cure."""
    try:
        record = finished_run(folder, name_of(folder))
        folder.check_files()
    except UNREADABLE as error:
        raise RuntimeError(why_left_out(folder, error)) from None
    return record


def name_of(folder: RunFolder) -> str:
    """Below its results root."""
    return "/".join(folder.path.resolve().parts[-4:])


def unfinished(folder: RunFolder) -> Iterable[tuple[str, str]]:
    yield "run", name_of(folder)
    epoch = last_row(folder.path / "history.csv").get("epoch")
    state = "under way" if in_use(folder.path) else "not finished; its command goes on with it"
    yield "state", f"{state}, epoch {epoch}" if epoch else state


def files(folder: RunFolder) -> Iterable[tuple[str, str]]:
    for path in sorted(folder.path.iterdir()):
        if not path.name.startswith("."):
            yield path.name + ("/" if path.is_dir() else ""), in_words(size_of(path))
    kept = folder.kept_epochs()
    if kept:
        yield "kept states", f"after epochs {', '.join(map(str, kept))}"


def section(part: Facts, width: int | None) -> list[str]:
    """Lines of a heading and its rows, wrapped where a terminal has an end."""
    left = min(MOST, max(len(name) for name, _ in part.rows))
    lines = ["", part.heading]
    for name, text in part.rows:
        first, text = f"  {one_line(name).ljust(left)}  ", one_line(text, 4000)
        room = max(20, width - left - 4) if width else len(text) + 1
        told = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        lines += [first + told[0], *(" " * (left + 4) + each for each in told[1:])]
    return [line.rstrip() for line in lines]

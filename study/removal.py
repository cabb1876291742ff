"""`experiment.py remove`: runs with all of their files, never half of one, and none that another one needs."""

import contextlib
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helper.processes.interruption import check_signals
from helper.schema.config import Config, FlagError, flag
from helper.system.locks import IN_USE, exclusive, in_use
from helper.system.sizes import in_words, size_of
from helper.untrusted.texts import one_line, shown
from study.needs import Dependants, dependants

ASIDE = ".removed-"  # folders below a results root in which runs are deleted, one a command
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RemoveConfig(Config):
    """Remove: with which others, and whether it asks."""

    yes: bool = flag(False, "do not ask")
    children: bool = flag(False, "also remove all runs that need one of these")


def remove(config: RemoveConfig, *runs: str) -> int:
    """Remove runs. All are moved aside before the first is deleted, children before what they need: a kill leaves whole runs
    that have what they need, and at most a folder `.removed-...` that the next call deletes.

    Raises:
        RuntimeError: one is no run, is under way, or another one needs it; nothing has been removed then.
    """
    paths = list(dict.fromkeys(checked_path(run) for run in runs))
    by_root = {root: [path for path in paths if path.parents[3] == root] for root in {path.parents[3]: None for path in paths}}
    chosen = {root: with_children(root, some, config.children) for root, some in by_root.items()}
    everything = [path for some in chosen.values() for path in some]
    for path in everything:
        if in_use(path):
            raise RuntimeError(f"{path} {IN_USE}: wait for it, or stop it first; nothing was removed")
    sizes = {path: size_of(path) for path in everything}
    for path, size in sizes.items():
        print(f"{shown(path)}: {in_words(size)}")
    if not config.yes and not agreed(f"Remove {counted(len(sizes))}, {in_words(sum(sizes.values()))}? [y/N] "):
        print("nothing was removed")
        return 0
    left_over = sum(delete_left_overs(root) for root in chosen)
    with contextlib.ExitStack() as locks:
        for path in everything:
            if not path.is_dir():
                raise RuntimeError(f"{path} has gone meanwhile; nothing was removed")
            locks.enter_context(exclusive(path))
        for root, some in chosen.items():
            check_not_needed(dependants(root, some), some)  # nobody who has begun meanwhile
        for root, some in chosen.items():
            delete(root, some)
    print(f"removed {counted(len(sizes))}, {in_words(sum(sizes.values()))} freed")
    if left_over:
        print(f"and {in_words(left_over)} that a removal which did not come to its end had left")
    return 0


def counted(n: int) -> str:
    return f"{n} run{'s' if n != 1 else ''}"


def checked_path(run: str) -> Path:
    """The resolved path of a run's folder. Raises RuntimeError: it is none, or a link to one."""
    path = Path(run)
    if path.is_symlink():
        raise RuntimeError(f"{path} is a link: give the folder itself")
    path = path.resolve()
    if not (path / "config.yaml").is_file() or len(path.parents) < 4:
        raise RuntimeError(f"{path} is no run folder: it has no config.yaml")
    return path


def with_children(root: Path, paths: Sequence[Path], children: bool) -> list[Path]:
    """Runs to remove, each before what it needs.

    Raises:
        RuntimeError: others need one of them, and are not to be removed, or nobody can tell whether they do.
    """
    found = dependants(root, paths)
    if children:
        paths = list(dict.fromkeys([*paths, *sorted(child for some in found.known.values() for child in some)]))
        found = dependants(root, paths)  # rounds, of which later ones may have needs of their own
    check_not_needed(found, paths)
    return sorted(paths, key=lambda path: len(found.known[path]))


def check_not_needed(found: Dependants, paths: Sequence[Path]) -> None:
    """Raise RuntimeError where a run that stays needs one of those, or may need it."""
    for path, children in found.known.items():
        others = sorted(children - set(paths))
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise RuntimeError(f"{path} is needed by {others[0]}{more}: remove those as well, with --children 1, or keep it")
    for path, why in found.unclear.items():
        if path not in paths:
            raise RuntimeError(
                f"nobody can tell whether {path} needs one of these runs ({one_line(why, 300)}): repair it or remove it, too"
            )


def agreed(question: str) -> bool:
    """Whether someone at the terminal says yes. Raises FlagError: there is no terminal."""
    if not sys.stdin.isatty():
        raise FlagError("--yes: nobody can be asked here; give it to remove without asking")
    print(question, end="", flush=True)
    while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        check_signals()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def delete(root: Path, paths: Iterable[Path]) -> None:
    """Move runs, and what sweeps have kept of their output, into a folder of this command's own, and delete that."""
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=root))
    with exclusive(aside):
        for number, path in enumerate(paths):
            log = root / "logs" / f"{path.relative_to(root).as_posix().replace('/', '_')}.log"
            os.rename(path, aside / f"{number}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(log, aside / f"{number}.log")
        shutil.rmtree(aside)


def delete_left_overs(root: Path) -> int:
    """Bytes of what killed commands had moved aside, which are gone now."""
    freed = 0
    for path in root.glob(f"{ASIDE}*"):
        if (path / ".lock").is_file() and not in_use(path):
            freed += size_of(path)
            shutil.rmtree(path)
    return freed

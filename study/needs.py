"""Which runs of a results root need which others: sparse ones their dense run, rounds the rounds before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helper.schema.config import FlagError, digest
from optim.chain import runs_needed
from optim.folder import RunFolder, hash_in_name
from optim.identity import PATHS, run_folder, weights_hash
from optim.model import stored_config
from optim.modes import MODES


@dataclass(frozen=True)
class Needs:
    """What a run needs: runs by the hash in their names, weights by their content hash, or what lies at a path."""

    runs: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dependants:
    """{run: those that need it}, and {run that cannot be read: why}, of which nobody can tell what it needs."""

    known: dict[Path, set[Path]]
    unclear: dict[Path, str]


def dependants(root: Path, wanted: Sequence[Path]) -> Dependants:
    """The runs of a results root that need some of its runs. Runs that no other can need cost nothing.

    Args:
        root, wanted: resolved paths.
    """
    found = Dependants({path: set() for path in wanted}, {})
    parents = [path for path in wanted if may_be_needed(path)]
    prints = frozenset(fingerprint_in(RunFolder(path)) for path in parents)
    for path in sorted(file.parent for file in root.glob("*/*/*/*/config.yaml")) if parents else ():
        try:
            needs = needs_of(RunFolder(path), prints)
        except (RuntimeError, FlagError, OSError) as error:
            found.unclear[path] = str(error)
            continue
        for parent in parents:
            if parent != path and is_among(parent, needs):
                found.known[parent].add(path)
    return found


def may_be_needed(path: Path) -> bool:
    """Whether a run, by the mode in whose folder it is, may be another one's dense run or an earlier round of it."""
    spec = MODES.get(path.parent.name)
    return spec is None or not spec.has_mask or spec.in_rounds


def needs_of(folder: RunFolder, prints: Iterable[str | None]) -> Needs:
    """By its configuration, and of a finished run by its summary, which knows also what an older program has called its parent.

    Args:
        prints: content hashes that the data files of an unfinished run may have.
    Raises:
        RuntimeError, FlagError: it cannot be told.
    """
    config = stored_config(folder)
    runs = runs_needed(config)
    if not (runs or config.mode_spec.needs_parent):
        return Needs()
    identity = folder.read_summary()["identity"] if folder.summary.is_file() else None
    if identity is not None:
        prints = [identity.get("data_files")]
    hashes = {hash_in_name(run_folder(run, each).path) for each in prints for run in runs}
    parent = (identity or {}).get("parent")
    if isinstance(parent, dict):
        hashes.add(digest(parent))
    weights = {parent} if isinstance(parent, str) else set()
    given = tuple(Path(path).resolve() for name in PATHS if (path := getattr(config, name)))
    return Needs(frozenset(hashes), frozenset(weights), given)


def is_among(parent: Path, needs: Needs) -> bool:
    """Whether a run is one of those that another one needs."""
    if hash_in_name(parent) in needs.runs or any(path.is_relative_to(parent) for path in needs.paths):
        return True
    model = RunFolder(parent).model
    return bool(needs.weights) and model.is_file() and weights_hash(model) in needs.weights


def fingerprint_in(folder: RunFolder) -> str | None:
    """Content hash of the data files that a finished run was trained on; None for the published ones."""
    try:
        return folder.read_summary()["identity"].get("data_files")
    except (OSError, RuntimeError):
        return None

"""What two versions of the program have left, file by file: tables, states, arrays, summaries. Equal means equal to the bit.

Only what the files say counts: nothing of the program is imported, so that its modules may move.
"""

import collections
import csv
import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

TIMING = frozenset({"seconds", "images_per_second", "peak_memory_mb"})  # columns, arrays, keys that differ between equal runs
OF_THE_MACHINE = TIMING | {"versions", "git", "checksum"}  # further keys of summary.json
HASHES = "files"  # key of summary.json: hashes of files, some of which hold timings; their names count
TO_GO_ON = ("checkpoint.pt", "checkpoint.previous.pt")  # the program's own affair: they have to be there
UNREADABLE = (  # what damaged files raise
    ValueError, RuntimeError, EOFError, OSError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile, yaml.YAMLError,
)  # fmt: skip
LONGEST = 60  # characters of a value in a line


@dataclass(frozen=True)
class Finding:
    """A place where old and new are not the same.

    Args:
        where: the file, then the place in it.
        added: the new one only has more, which harms nobody who reads it by names.
    """

    where: tuple[str, ...]
    what: str
    added: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, (", ".join(self.where), self.what)))


def below(name: object, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a part, under the part's name."""
    for finding in findings:
        yield Finding((str(name), *finding.where), finding.what, finding.added)


def changed(old: object, new: object) -> str:
    return f"{short(old)} -> {short(new)}"


def short(value: object) -> str:
    """A value in one line that is not too long."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split()) or "(empty)"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


# ------------------------------------------------------------------------------------------------------------- tables


def compare_tables(old: str, new: str, *, may_grow: bool = False) -> Iterator[Finding]:
    """CSV texts: the old columns have to come first, in their order; timings may differ, other cells not in a letter.

    Args:
        may_grow: further rows at the end are no finding.
    """
    (head, rows), (new_head, new_rows) = read_table(old), read_table(new)
    gone = [column for column in head if column not in new_head]
    for column in gone:
        yield Finding((column,), "the column is gone")
    for column in new_head:
        if column not in head:
            yield Finding((column,), "a new column", added=True)
    if not gone and new_head[: len(head)] != head:
        yield Finding(("columns",), f"the old ones do not come first: {','.join(head)} -> {','.join(new_head)}")
    if len(new_rows) < len(rows) or (len(new_rows) > len(rows) and not may_grow):
        yield Finding(("rows",), changed(len(rows), len(new_rows)))
    compared = [column for column in head if column in new_head and column not in TIMING]
    for number, (row, new_row) in enumerate(zip(rows, new_rows, strict=False), 1):
        for column in compared:
            if row[column] != new_row[column]:
                yield Finding((f"row {number}", column), changed(row[column], new_row[column]))


def read_table(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a CSV text. Raises ValueError: a row has more or fewer cells than there are columns."""
    head, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    return head, [dict(zip(head, row, strict=True)) for row in rows]


# ------------------------------------------------------------------------------------------------------------- values


def compare_values(old: Any, new: Any) -> Iterator[Finding]:
    """Numbers, texts, tensors, arrays, and mappings and sequences of them, as JSON, YAML, .npz and .pt files hold them."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from compare_mappings(old, new)
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from below(index, compare_values(one, other))
    elif isinstance(old, (torch.Tensor, numpy.ndarray)) and type(old) is type(new):
        yield from compare_arrays(old, new)
    elif type(old) is not type(new) or repr(old) != repr(new):  # of a float: nan equals nan, and -0.0 is not 0.0
        yield Finding((), changed(old, new))


def compare_mappings(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[Finding]:
    for name, value in old.items():
        if name in new:
            yield from below(name, compare_values(value, new[name]))
        else:
            yield Finding((str(name),), f"{short(value)} is gone")
    for name in new:
        if name not in old:
            yield Finding((str(name),), "new", added=True)


def compare_arrays(old: torch.Tensor | numpy.ndarray, new: torch.Tensor | numpy.ndarray) -> Iterator[Finding]:
    """Type, shape and every bit, in whatever order memory holds them."""
    kinds = [f"{array.dtype} {tuple(array.shape)}" for array in (old, new)]
    if kinds[0] != kinds[1]:
        yield Finding((), changed(*kinds))
        return
    differing = (bits(old) != bits(new)).any(axis=1).nonzero()[0]
    if len(differing):
        first = int(differing[0])
        values = [array.reshape(-1)[first].item() for array in (old, new)]
        n = len(bits(old))
        yield Finding((), f"{len(differing)} of {n} values differ, the first at {first}: {changed(*values)}")


def bits(array: torch.Tensor | numpy.ndarray) -> numpy.ndarray:
    """(N, bytes of an element) uint8 of an array of N elements."""
    if isinstance(array, torch.Tensor):
        flat = array.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().reshape(len(flat), array.element_size())
    return numpy.frombuffer(array.tobytes(), dtype=numpy.uint8).reshape(array.size, array.itemsize)


# -------------------------------------------------------------------------------------------------------------- files


def read_arrays(content: bytes) -> dict[str, numpy.ndarray]:
    with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: array for name, array in arrays.items() if name not in TIMING}


def read_state(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_json(content: bytes) -> Any:
    """A summary or a result without what says something of the machine or the moment."""
    found = json.loads(content)
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name not in OF_THE_MACHINE}
        if isinstance(found.get(HASHES), dict):
            found[HASHES] = dict.fromkeys(found[HASHES], "a hash")
    return found


READERS: dict[str, Callable[[bytes], Any]] = {
    ".pt": read_state,
    ".npz": read_arrays,
    ".json": read_json,
    ".yaml": yaml.safe_load,
}
KINDS = {".pt": "states", ".npz": "arrays", ".json": "summaries", ".yaml": "settings", ".csv": "tables"}


def kind_of(name: Path) -> str:
    """How a file is compared: in words, by its suffix."""
    return "files by name" if name.name in TO_GO_ON else KINDS.get(name.suffix, "files by name")


def compare_contents(name: Path, old: bytes, new: bytes) -> Iterator[Finding]:
    """Two files of one name; of a kind that is not read, or the same byte for byte, there is nothing to find."""
    if old == new or kind_of(name) == "files by name":
        return
    try:
        if name.suffix == ".csv":
            yield from compare_tables(old.decode(), new.decode())
        else:
            yield from compare_values(*map(READERS[name.suffix], (old, new)))
    except UNREADABLE as error:
        yield Finding((), f"cannot be compared, {short(f'{type(error).__name__}: {error}')}")


@dataclass
class Comparison:
    """What was found between two folders, and how many files of each kind were compared."""

    findings: list[Finding] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def different(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.added]

    @property
    def added(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.added]


def compare_folders(old: Path, new: Path, patterns: Iterable[str]) -> Comparison:
    """The files that lie below the places which some patterns match in either of two folders.

    A folder that only one of them has is one finding, whatever is in it.
    """
    old_names, new_names = files_below(old, patterns), files_below(new, patterns)
    found = Comparison()
    found.findings += [Finding((name.as_posix(),), "is gone") for name in tops(old_names - new_names, new)]
    found.findings += [Finding((name.as_posix(),), "new", added=True) for name in tops(new_names - old_names, old)]
    for name in sorted(old_names & new_names):
        found.counts[kind_of(name)] += 1
        found.findings += below(name.as_posix(), compare_contents(name, *((root / name).read_bytes() for root in (old, new))))
    if not old_names:
        found.findings.append(Finding((), "the old program has left nothing to compare"))
    return found


def files_below(root: Path, patterns: Iterable[str]) -> set[Path]:
    """Names below `root` of all files at or below what the patterns match; hidden ones, such as locks, are left out."""
    places = itertools.chain.from_iterable(root.glob(pattern) for pattern in patterns)
    files = itertools.chain.from_iterable(place.rglob("*") if place.is_dir() else [place] for place in places)
    return {path.relative_to(root) for path in files if path.is_file() and not path.name.startswith(".")}


def tops(names: Iterable[Path], other: Path) -> list[Path]:
    """For each name that another folder lacks, the uppermost part of it that is lacking there, each once."""
    found = set()
    for name in names:
        parents = [parent for parent in reversed(name.parents) if parent != Path(".")]
        found.add(next((parent for parent in parents if not (other / parent).exists()), name))
    return sorted(found)

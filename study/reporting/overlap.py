"""How much the masks of runs have in common, and how much chance alone would give them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import pandas

from helper.mask import Mask
from optim.folder import RunFolder
from optim.model import load_stored
from study.reporting.finished_run import FinishedRun, grouped

OVERLAP = ["first", "second", "seed", "jaccard", "chance"]
CHANGES = ["family", "seed", "epoch", "with_first", "chance_first", "with_last", "chance_last", "run"]


@dataclass(frozen=True)
class Layer:
    """The mask of one weight, eight coordinates a byte: masks of many runs are held at once."""

    bits: numpy.ndarray
    size: int
    n_active: int


Packed = Mapping[str, Layer]


def packed(mask: Mask) -> dict[str, Layer]:
    found = {}
    for name, active in mask.items():
        values = active.flatten().numpy()
        found[name] = Layer(numpy.packbits(values), values.size, int(values.sum()))
    return found


def jaccard(a: Packed, b: Packed) -> float:
    """Weights that both masks have, over those that one of them has; nan where neither has any."""
    layers = aligned(a, b)
    return over_union(sum(int(numpy.bitwise_count(one.bits & other.bits).sum()) for one, other in layers), layers)


def expected_jaccard(a: Packed, b: Packed) -> float:
    """The same of masks with as many weights in each layer, at random places there.

    The intersection of a layer is hypergeometric, with mean |A| |B| / n; what is given is the index at the mean intersection
    of all layers together, from which the index's own mean differs little where there are more than a few weights.
    """
    layers = aligned(a, b)
    return over_union(sum(one.n_active * other.n_active / one.size for one, other in layers), layers)


def aligned(a: Packed, b: Packed) -> list[tuple[Layer, Layer]]:
    """The layers of two masks; one that only one of them masks is whole in the other."""
    names = dict.fromkeys([*a, *b])
    return [(a[n] if n in a else whole(b[n].size), b[n] if n in b else whole(a[n].size)) for n in names]


def whole(size: int) -> Layer:
    return Layer(numpy.packbits(numpy.ones(size, dtype=bool)), size, size)


def over_union(both: float, layers: list[tuple[Layer, Layer]]) -> float:
    union = sum(one.n_active + other.n_active for one, other in layers) - both
    return both / union if union else numpy.nan


# --------------------------------------------------------------------------------------------------- of finished runs


class Reader:
    """Reads masks of runs, each file once; what cannot be read is in `left_out`, with the reason."""

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}

    def masks(self, records: Iterable[FinishedRun]) -> list[tuple[FinishedRun, Packed]]:
        """Of the selected weights."""
        found = [(record, self.read(record, RunFolder(record.path).model)) for record in records]
        return [(record, mask) for record, mask in found if mask is not None]

    def states(self, record: FinishedRun) -> dict[int, Packed]:
        """{epoch: mask} of a run's kept states."""
        folder = RunFolder(record.path)
        found = {epoch: self.read(record, folder.epoch_state(epoch)) for epoch in folder.kept_epochs()}
        return {epoch: mask for epoch, mask in found.items() if mask is not None}

    def read(self, record: FinishedRun, path: Path) -> Packed | None:
        name = f"{record.name}/{path.relative_to(record.path).as_posix()}"
        try:
            mask = packed(load_stored(path).mask)
        except (RuntimeError, OSError) as error:
            self.left_out.append((name, f"{' '.join(str(error).split())}; its mask is in no figure of masks"))
            return None
        sizes = {layer: one.size for layer, one in mask.items()}
        if not mask or any(self.sizes.setdefault(layer, size) != size for layer, size in sizes.items()):
            why = "its layers have other sizes than those of the study's other runs" if mask else "it has no mask"
            self.left_out.append((name, f"{why}; it is in no figure of masks"))
            return None
        return mask


def overlaps(records: Sequence[FinishedRun], reader: Reader) -> pandas.DataFrame:
    """Columns OVERLAP: a row for each two families and each seed that both have; of a family the first run of a seed.

    Args:
        records: at one sparsity, of each family one series.
    """
    rows = []
    for seed, group in sorted(grouped(records, lambda record: record.seed).items()):
        masks = reader.masks({record.family: record for record in reversed(group)}.values())
        for (one, a), (other, b) in itertools.combinations(sorted(masks, key=lambda found: found[0].family.place), 2):
            rows.append((one.family.label, other.family.label, seed, jaccard(a, b), expected_jaccard(a, b)))
    return pandas.DataFrame(rows, columns=OVERLAP)


def changes(records: Sequence[FinishedRun], reader: Reader) -> pandas.DataFrame:
    """Columns CHANGES: the masks of the kept states of runs against the first and against the last of them."""
    rows = []
    for record in records:
        states = reader.states(record)
        if len(states) < 2:
            continue
        ends = states[min(states)], states[max(states)]
        for epoch, mask in states.items():
            compared = [value for end in ends for value in (jaccard(mask, end), expected_jaccard(mask, end))]
            rows.append((record.family.label, record.seed, epoch, *compared, record.name))
    return pandas.DataFrame(rows, columns=CHANGES)

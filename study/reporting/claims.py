"""What the field says of sparse training, and whether the runs of a report agree.

A claim compares runs that differ in one thing, paired by seed; all comparisons of a claim are tested together.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas

from helper.schema.config import digest
from optim.modes import CHOSEN_AT_START, REPLACING
from study.reporting.finished_run import BUDGET, MASKING, SCHEDULE, FinishedRun, grouped, place_of
from study.reporting.pairs import FINETUNE, side_of
from study.reporting.ranking import QUANTITY, paired
from study.reporting.regimes import CANNOT_TELL, MARGIN, NEGATIVE, NONE, POSITIVE, UNCLEAR, Gap, judge
from study.reporting.statistics import Spread
from study.reporting.tidy import epochs_of

AGREES, DIFFERS = "agrees", "differs"
RANDOM, MAGNITUDE = "random", "l1"  # of SCORES
ERK, UNIFORM = "erk", "uniform"  # of ALLOCATIONS
WIDTHS = ("widen_factor", "hidden_dims")
TRAINING_LENGTH = {*SCHEDULE, BUDGET}
LABELS = {"parent", "lottery", "random_state"}


@dataclass(frozen=True)
class Contrast:
    """Two groups of runs that differ in one thing.

    Attributes:
        what: in which, with sparsity and network.
        dense: of either group the dense runs from which its accuracy is counted, if it is.
    """

    what: str
    this: Sequence[FinishedRun]
    other: Sequence[FinishedRun]
    dense: tuple[Sequence[FinishedRun], Sequence[FinishedRun]] | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of the field.

    Attributes:
        agrees: the states of a difference, this minus other in test accuracy, of which it can be said that it agrees.
        contrasts: what of a report's runs it can be seen from. missing: what it takes, where there is nothing.
    """

    text: str
    source: str
    agrees: tuple[str, ...]
    contrasts: Callable[[Sequence[FinishedRun]], Iterator[Contrast]]
    missing: str


@dataclass(frozen=True)
class Finding:
    """A claim, one comparison, and what it says; without a comparison the verdict is that nobody can tell."""

    claim: Claim
    compared: str
    gap: Gap | None
    seeds: int = 0

    @property
    def verdict(self) -> str:
        if self.gap is None or self.gap.state == UNCLEAR:
            return CANNOT_TELL
        return AGREES if self.gap.state in self.claim.agrees else DIFFERS


def findings(records: Sequence[FinishedRun], runs: pandas.DataFrame, margin: float = MARGIN) -> list[Finding]:
    """Every claim with every comparison that the runs allow.

    Args:
        runs: the tidy table, with a row for each record.
    """
    rows, found = runs.set_index("run", drop=False), []
    for claim in CLAIMS:
        compared = []
        for contrast in claim.contrasts(records):
            spread = difference(contrast, rows)
            if spread is not None:
                compared.append((contrast.what, spread))
        gaps = judge([spread for _, spread in compared], margin)
        found += [Finding(claim, what, gap, spread.n) for (what, spread), gap in zip(compared, gaps, strict=True)]
        if not compared:
            found.append(Finding(claim, claim.missing, None))
    return found


def difference(contrast: Contrast, rows: pandas.DataFrame) -> Spread | None:
    """`ranking.paired` of the two groups, of their accuracies over those of the dense runs where there are any."""
    sides = [of(rows, group) for group in (contrast.this, contrast.other)]
    if contrast.dense is not None:
        sides = [less(side, of(rows, dense)) for side, dense in zip(sides, contrast.dense, strict=True)]
    return paired(*sides)


def of(rows: pandas.DataFrame, records: Sequence[FinishedRun]) -> pandas.DataFrame:
    return rows.loc[[record.name for record in records]]


def less(rows: pandas.DataFrame, dense: pandas.DataFrame) -> pandas.DataFrame:
    """The accuracy over that of the dense runs of the same seed; nan of a seed that has none."""
    return rows.assign(**{QUANTITY: rows[QUANTITY] - rows["seed"].map(dense.groupby("seed")[QUANTITY].mean())})


def key_of(record: FinishedRun, *without: str) -> str:
    """Hash of what tells a run from others, without its seed, its parent and some flags."""
    left = {name: value for name, value in record.identity.items() if name not in LABELS and name not in without}
    return digest({"flags": left, "study": record.study, "sparsity": record.summary["sparsity_requested"]})


def training_of(record: FinishedRun) -> str:
    """Hash of how and on what it was trained and how sparse it is, whatever the method."""
    return key_of(record, *MASKING)


def where(record: FinishedRun) -> str:
    network = record.name.split("/")[1]
    return f"{record.summary['sparsity_requested']:g} pruned, {network} on {record.data}"


def between(
    this: Sequence[FinishedRun], other: Sequence[FinishedRun], same: Callable[[FinishedRun], str]
) -> Iterator[Contrast]:
    """Every family of one side with every one of the other, as far as `same` holds."""
    others = grouped(other, lambda record: (same(record), record.family))
    for (alike, family), group in ordered(grouped(this, lambda record: (same(record), record.family))):
        for (key, against), rest in ordered(others):
            if key == alike and against != family:
                yield Contrast(f"{family.label} minus {against.label}, {where(group[0])}", main(group), main(rest))


def ordered(groups: dict[tuple, list[FinishedRun]]) -> list[tuple[tuple, list[FinishedRun]]]:
    return sorted(groups.items(), key=lambda one: (one[1][0].summary["sparsity_requested"], one[0][1].place, one[0][0]))


def main(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Those of the series with the most runs: a family may have been run with several settings of its own."""
    series = grouped(records, lambda record: record.series)
    return max(series.values(), key=len)


def at_init(records: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Those whose mask a score chose before training, without a dense solution, and nobody shuffled."""
    found = [record for record in records if record.mode in CHOSEN_AT_START and not record.mode_spec.needs_parent]
    return [record for record in found if record.flags["mask_control"] == "none"]


def score_of(record: FinishedRun) -> str:
    return record.flags["prune_method"]


def scored_against_random(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    found = at_init(records)
    chance = [record for record in found if score_of(record) == RANDOM]
    return between([record for record in found if score_of(record) != RANDOM], chance, training_of)


def scored_against_magnitude(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    after = [record for record in records if side_of(record.mode) == FINETUNE and score_of(record) == MAGNITUDE]
    after = [record for record in after if record.flags["mask_control"] == "none"]
    return between([record for record in at_init(records) if score_of(record) != RANDOM], after, training_of)


def shuffled_against_not(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    own = [record for record in at_init(records) if score_of(record) != RANDOM]
    modes = {record.mode for record in own}
    control = [record for record in records if record.mode in modes and record.flags["mask_control"] == "shuffle"]
    return between(control, own, lambda record: key_of(record, "mask_control"))


def erk_against_uniform(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    sides = [[r for r in records if r.mode_spec.has_mask and allocation_of(r) == word] for word in (ERK, UNIFORM)]
    return between(*sides, lambda record: key_of(record, "allocation"))


def allocation_of(record: FinishedRun) -> str:
    return record.identity.get("allocation", record.mode_spec.allocation)


def longer_against_shorter(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    """Every length of dynamic training with the next shorter one."""
    dynamic = [record for record in records if record.mode in REPLACING]
    for group in grouped(dynamic, lambda record: key_of(record, *TRAINING_LENGTH)).values():
        lengths = grouped(group, epochs_of)
        for shorter, longer in itertools.pairwise(sorted(lengths)):
            what = f"{longer} minus {shorter} epochs, {group[0].family.label}, {where(group[0])}"
            yield Contrast(what, lengths[longer], lengths[shorter])


def wider_against_narrower(records: Sequence[FinishedRun]) -> Iterator[Contrast]:
    """How far random masks are from the dense run of their width: every width with the next narrower one."""
    dense = grouped([r for r in records if not r.mode_spec.has_mask], lambda r: (family_of_widths(r, *MASKING), size_of(r)))
    chance = [record for record in at_init(records) if score_of(record) == RANDOM]
    for group in grouped(chance, lambda r: (family_of_widths(r), r.summary["sparsity_requested"])).values():
        widths = grouped(group, size_of)
        whole = {size: dense.get((family_of_widths(runs[0], *MASKING), size), []) for size, runs in widths.items()}
        sizes = [size for size in sorted(widths) if whole[size]]
        for narrow, wide in itertools.pairwise(sizes):
            names = [widths[size][0].name.split("/")[1] for size in (wide, narrow)]
            sparsity = group[0].summary["sparsity_requested"]
            what = f"{group[0].family.label} minus dense, {names[0]} minus {names[1]}, {sparsity:g} pruned"
            yield Contrast(what, widths[wide], widths[narrow], (whole[wide], whole[narrow]))


def family_of_widths(record: FinishedRun, *without: str) -> str:
    """Hash of all flags but how wide the network is."""
    left = {name: value for name, value in record.identity.items() if name not in {*LABELS, *WIDTHS, *without}}
    shape = {name: str(record.flags[name]).count("-") for name in WIDTHS if name in record.flags}
    return digest({"flags": left, "layers": shape, **place_of(record.flags)})


def size_of(record: FinishedRun) -> int:
    return record.summary["macs_dense"]


CLAIMS = (
    Claim(
        "scores at initialisation beat random masks", "Lee et al. 2019, Wang et al. 2020, Tanaka et al. 2020", (POSITIVE,),
        scored_against_random, "needs at-init runs with a score and with --prune_method random",
    ),
    Claim(
        "masks from before training stay below magnitude after training", "Frankle et al. 2021", (NEGATIVE,),
        scored_against_magnitude, "needs at-init and sparse-finetune runs of the same training",
    ),
    Claim(
        "shuffling a mask within its layers does not hurt scores at initialisation", "Frankle et al. 2021, Su et al. 2020",
        (NONE, POSITIVE), shuffled_against_not, "needs at-init runs with and without --mask_control shuffle",
    ),
    Claim(
        "random masks approach dense training as networks grow wider", "Liu et al. 2022", (POSITIVE,), wider_against_narrower,
        "needs random and dense runs of at least two widths (--widen_factor, --hidden_dims)",
    ),
    Claim(
        "Erdos-Renyi-kernel allocation beats uniform at equal parameters", "Evci et al. 2020", (POSITIVE,),
        erk_against_uniform, "needs runs with --allocation erk and uniform that are otherwise equal",
    ),
    Claim(
        "longer dynamic sparse training keeps helping", "Evci et al. 2020, Liu et al. 2021", (POSITIVE,),
        longer_against_shorter, "needs dynamic runs of several lengths (--n_epochs, --train_budget)",
    ),
)  # fmt: skip

"""What examples owe to being trained on: estimates over runs that saw different subsets, with errors. No torch.

Source: Feldman and Zhang 2020, "What Neural Networks Memorize and Why", equation 1 and its estimator over subsets.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import pandas

FEWEST = 2  # subsets with and without an example, below which it has no score


@dataclass(frozen=True)
class Outcomes:
    """What the runs of one kind say: a row a subset of the training examples, a column an example.

    Attributes:
        seen: (K, N) bool, whether the subset has the example. right: (K, N), the share of its runs that predict its label.
    """

    seen: numpy.ndarray
    right: numpy.ndarray

    def of(self, rows: numpy.ndarray) -> "Outcomes":
        """Those of some subsets, by mask or number."""
        return Outcomes(self.seen[rows], self.right[rows])

    @property
    def n_seen(self) -> numpy.ndarray:
        return self.seen.sum(0)

    @property
    def n_unseen(self) -> numpy.ndarray:
        return len(self.seen) - self.n_seen

    @property
    def scored(self) -> numpy.ndarray:
        """(N,) whether enough subsets have an example, and enough do not."""
        return (self.n_seen >= FEWEST) & (self.n_unseen >= FEWEST)


def by_subset(seen: numpy.ndarray, right: numpy.ndarray) -> Outcomes:
    """Runs that saw the same examples are one subset, of which the mean counts: they are not independent.

    Args:
        seen, right: (runs, N).
    """
    numbers: dict[bytes, list[int]] = {}
    for row, own in enumerate(numpy.packbits(seen, axis=1)):
        numbers.setdefault(own.tobytes(), []).append(row)
    parts = list(numbers.values())
    return Outcomes(seen[[rows[0] for rows in parts]], numpy.array([right[rows].mean(0) for rows in parts]))


def means(outcomes: Outcomes) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(N,) share right where an example was seen, and where it was not; nan for one that has no score."""
    shares = []
    for rows, n in ((outcomes.seen, outcomes.n_seen), (~outcomes.seen, outcomes.n_unseen)):
        total = (outcomes.right * rows).sum(0)
        shares.append(numpy.where(outcomes.scored, total / numpy.maximum(n, 1), numpy.nan))
    return shares[0], shares[1]


def memorisation(outcomes: Outcomes) -> pandas.DataFrame:
    """Columns n_seen, n_unseen, seen, unseen (shares right), score = seen - unseen, error.

    The error is that of a difference of two shares, each with one success and one failure added for its variance (as
    Agresti and Caffo 2000 do): shares of 0 and 1 in a few subsets are not known without error.
    """
    seen, unseen = means(outcomes)
    variance = numpy.zeros(len(seen))
    for rows, n in ((outcomes.seen, outcomes.n_seen), (~outcomes.seen, outcomes.n_unseen)):
        share = ((outcomes.right * rows).sum(0) + 1) / (n + 2)
        variance += share * (1 - share) / numpy.maximum(n - 1, 1)
    error = numpy.where(outcomes.scored, numpy.sqrt(variance), numpy.nan)
    columns = {"n_seen": outcomes.n_seen, "n_unseen": outcomes.n_unseen, "seen": seen, "unseen": unseen}
    return pandas.DataFrame(columns | {"score": seen - unseen, "error": error})


def paired(first: Outcomes, second: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Both on the subsets that they have in common, in one order."""
    places = {row.tobytes(): number for number, row in enumerate(numpy.packbits(second.seen, axis=1))}
    keys = [row.tobytes() for row in numpy.packbits(first.seen, axis=1)]
    common = [(number, places[key]) for number, key in enumerate(keys) if key in places]
    mine, theirs = (numpy.array([pair[side] for pair in common], dtype=int) for side in (0, 1))
    return first.of(mine), second.of(theirs)


def differences(first: Outcomes, second: Outcomes) -> pandas.DataFrame:
    """First minus second, paired by subset: columns seen and score, and their errors seen_error and score_error.

    The errors are those of paired shares with half a run added to each of their four outcomes (Bonett and Price 2012).
    """
    one, other = paired(first, second)
    (seen_a, unseen_a), (seen_b, unseen_b) = means(one), means(other)
    gap = one.right - other.right
    variances = []
    for rows, n in ((one.seen, one.n_seen), (~one.seen, one.n_unseen)):
        ahead, behind = ((numpy.maximum(sign * gap, 0) * rows).sum(0) for sign in (1, -1))
        ahead, behind = (ahead + 1) / (n + 2), (behind + 1) / (n + 2)
        variances.append((ahead + behind - (ahead - behind) ** 2) / (n + 2))
    known = one.scored
    seen, score = seen_a - seen_b, (seen_a - unseen_a) - (seen_b - unseen_b)
    errors = [numpy.where(known, numpy.sqrt(variance), numpy.nan) for variance in (variances[0], sum(variances))]
    return pandas.DataFrame({"seen": seen, "seen_error": errors[0], "score": score, "score_error": errors[1]})


Statistic = Callable[..., float]


def with_error(statistic: Statistic, *outcomes: Outcomes) -> tuple[float, float]:
    """(value, standard error) of what is computed from the outcomes of one kind of run, or of several on the same subsets.

    The error is the jackknife's, which leaves out one subset at a time.
    """
    n = len(outcomes[0].seen)
    value = statistic(*outcomes)
    without = numpy.array([statistic(*(one.of(numpy.arange(n) != left) for one in outcomes)) for left in range(n)])
    spread = ((without - without.mean()) ** 2).sum() if numpy.isfinite(without).all() else numpy.nan
    return value, float(numpy.sqrt((n - 1) / n * spread))


def mean_score(outcomes: Outcomes) -> float:
    seen, unseen = means(outcomes)
    return mean_of(seen - unseen)


def mean_seen(outcomes: Outcomes) -> float:
    return mean_of(means(outcomes)[0])


def mean_unseen(outcomes: Outcomes) -> float:
    return mean_of(means(outcomes)[1])


def mean_of(values: numpy.ndarray) -> float:
    """Of those that are known; nan of none."""
    known = values[~numpy.isnan(values)]
    return float(known.mean()) if len(known) else numpy.nan


def binned(reference: Outcomes, outcomes: Outcomes, edges: Sequence[float]) -> pandas.DataFrame:
    """Shares right by the reference's memorisation score: columns low, high, examples, and seen and unseen with errors.

    The examples are sorted into bins by one half of the common subsets and the shares are those of the other half, each half
    in turn: otherwise an example would be called memorised for the chance that the shares are made of. The errors are over
    subsets, each with its own share in a bin.
    """
    one, other = paired(reference, outcomes)
    halves = numpy.arange(len(one.seen)) % 2
    chosen = [place_of(one.of(halves != half), edges) for half in (0, 1)]
    rows = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [places == number for places in chosen]
        row = {"low": low, "high": high, "examples": float(numpy.mean([part.sum() for part in inside]))}
        for name, parts in (("seen", other.seen), ("unseen", ~other.seen)):
            own = [(right, inside[half] & part) for half, part, right in zip(halves, parts, other.right, strict=True)]
            shares = [float(right[part].mean()) for right, part in own if part.any()]
            row[name] = float(numpy.mean(shares)) if shares else numpy.nan
            row[f"{name}_error"] = float(numpy.std(shares, ddof=1) / len(shares) ** 0.5) if len(shares) > 1 else numpy.nan
        rows.append(row)
    return pandas.DataFrame(rows)


def place_of(outcomes: Outcomes, edges: Sequence[float]) -> numpy.ndarray:
    """(N,) the bin of every example's score, the last one with its upper edge; -1 without a score."""
    seen, unseen = means(outcomes)
    score = seen - unseen
    places = numpy.clip(numpy.digitize(score, edges) - 1, 0, len(edges) - 2)
    return numpy.where(numpy.isnan(score), -1, places)

"""Tables of many ways to a mask: rankings, overlap of masks, and what the field claims."""

import math
from collections.abc import Iterable, Sequence

import pandas

from study.bias import marked
from study.reporting.claims import Finding
from study.reporting.page import Sheet
from study.reporting.ranking import TOTAL, Place, Ranking
from study.reporting.regimes import CANNOT_TELL, NEGATIVE, NONE, POSITIVE, UNCLEAR
from study.reporting.sheets import counted, short
from study.reporting.statistics import interval

WORDS = {POSITIVE: "ahead", NEGATIVE: "behind", NONE: "level", UNCLEAR: CANNOT_TELL}
RANKED = (
    "share pruned", "place", "method", "seeds", "test accuracy", "minus the best", "p", "p (Holm)", "p (all pairs)", "is",
    "shows from", "with Holm", "images show from", "cost", "cost in all",
)  # fmt: skip
TESTED = (
    "Minus the best: paired by seed, with the 95 % interval of each difference by itself. p: two-sided, Student's t over "
    "independent seeds; Holm: adjusted for the rows that are ranked together. The best was chosen by the same runs, so that "
    "differences from it are on average too large: all pairs is Holm's adjustment for the differences of all pairs of these "
    "rows, which allows for that choice. Behind: the p of Holm is at most 0.05 and the difference at least {margin:g}; level: "
    "its 90 % interval lies within ± {margin:g}; otherwise nobody can tell. Shows from: what so many seeds of this spread "
    "show with 80 % power; images: what the test images do, however many seeds there are. Cost: multiply-accumulates of the "
    "run's training relative to the dense run's; in all: with the runs that it needs."
)


def sparsity_ranking(rankings: Sequence[Ranking], margin: float) -> Sheet:
    rows = [cells(ranking, place) for ranking in rankings for place in ranking.places]
    caption = f"Every series of one sparsity, whatever it cost. {TESTED.format(margin=margin)}"
    return Sheet("table 3", "Methods at equal sparsity", caption, RANKED, tuple(rows))


def cost_ranking(rankings: Sequence[Ranking], margin: float) -> Sheet:
    rows = [(*cells(ranking, place), ranking.why) for ranking in rankings for place in ranking.places]
    caption = (
        "Series of one sparsity whose whole training, with all the runs that they need, took alike: the cheapest one begins a "
        "group, to which all belong that took at most 10 % more, or were given the same --train_budget. Tests as in table 3, "
        "within each group."
    )
    return Sheet("table 4", "Methods at equal cost", caption, (*RANKED, "compares because"), tuple(rows))


def cells(ranking: Ranking, place: Place) -> tuple:
    runs, gap = place.runs, place.behind
    cost, total = (short3(runs[name].mean()) for name in ("relative_cost", TOTAL))
    accuracy = marked(str(place.accuracy), "†" in place.series)
    seeds = counted(place.accuracy.n, place.accuracy.runs)
    first = (ranking.sparsity, place.rank, place.series, seeds, accuracy)
    if gap is None:
        word = "best" if place.rank == 1 else "no seed in common"
        return (*first, None, None, None, None, word, None, None, None, cost, total)
    tests = (short(gap.p_value), short(gap.p_holm), short(place.p_all), WORDS[gap.state])
    power = (short(gap.detectable), short(gap.detectable_holm), short(gap.images))
    return (*first, gap.interval.bounds(), *tests, *power, cost, total)


def short3(value: float) -> float | None:
    """Three significant digits; None for nan."""
    return None if math.isnan(value) else float(f"{value:.3g}")


def rank_rows(kind: str, rankings: Iterable[Ranking]) -> pandas.DataFrame:
    """ranks.csv: a row a series of a ranking, with the numbers behind the tables."""
    rows = []
    for ranking in rankings:
        for place in ranking.places:
            gap, runs = place.behind, place.runs
            row = {
                "study": runs["study"].iloc[0], "ranked_at": kind, "why": ranking.why, "sparsity": ranking.sparsity,
                "place": place.rank, "family": runs["family"].iloc[0], "series": place.series, "seeds": place.accuracy.n,
                "runs": place.accuracy.runs, "acc_test": place.accuracy.mean, "low": place.accuracy.low,
                "high": place.accuracy.high, "relative_cost": runs["relative_cost"].mean(), TOTAL: runs[TOTAL].mean(),
            }  # fmt: skip
            if gap is not None:
                row |= {
                    "difference": gap.interval.mean, "difference_low": gap.interval.low, "difference_high": gap.interval.high,
                    "p": gap.p_value, "p_holm": gap.p_holm, "p_all_pairs": place.p_all, "low_90": gap.equivalence[0],
                    "high_90": gap.equivalence[1], "is": WORDS[gap.state], "shows_from": gap.detectable,
                    "shows_from_holm": gap.detectable_holm, "images_show_from": gap.images,
                }  # fmt: skip
            rows.append(row)
    return pandas.DataFrame(rows)


def overlap_sheet(table: pandas.DataFrame, sparsity: float) -> Sheet:
    """Of `overlap.overlaps`: what the matrix shows, with intervals over seeds."""
    rows = []
    for (first, second), part in table.groupby(["first", "second"], sort=False):
        shares = [interval(part[name].tolist(), within=(0.0, 1.0)) for name in ("jaccard", "chance")]
        rows.append((first, second, len(part), str(shares[0]), short3(shares[1].mean)))
    caption = (
        f"Jaccard index of the masks of the selected weights at {sparsity:g} pruned, of the same seed: weights that both have, "
        "over weights that one of them has; mean over seeds with its 95 % interval. By chance: of masks with as many weights "
        "in every layer, at random places there."
    )
    return Sheet(
        "table 5", "What masks have in common", caption, ("one", "other", "seeds", "Jaccard", "by chance"), tuple(rows)
    )


def claims_sheet(found: Sequence[Finding], margin: float) -> Sheet:
    columns = ("claim", "compared", "seeds", "difference", "p", "p (Holm)", "shows from", "verdict", "said by")
    rows = []
    for one in found:
        tests: tuple = (None, None, None, None, None)
        if one.gap is not None:
            gap = one.gap
            tests = (one.seeds, gap.interval.bounds(), short(gap.p_value), short(gap.p_holm), short(gap.detectable))
        rows.append((one.claim.text, one.compared, *tests, one.verdict, one.claim.source))
    caption = (
        "Differences in test accuracy, paired by seed, of runs that are trained alike; in brackets the 95 % interval. Adjusted "
        "by Holm for the comparisons of one claim. A difference is there if the adjusted p is at most 0.05 and it is at least "
        f"{margin:g}; that there is none takes a 90 % interval within ± {margin:g}. Agrees: the difference is what the claim "
        "says; differs: it is another, or none where the claim says one; otherwise, and without such runs, nobody can tell. A "
        "verdict is of these runs, and of no other network, data or training."
    )
    return Sheet("table 6", "What the field says, and what is seen here", caption, columns, tuple(rows))


def claim_rows(found: Sequence[Finding]) -> pandas.DataFrame:
    """claims.csv."""
    rows = []
    for one in found:
        row = {"claim": one.claim.text, "compared": one.compared, "seeds": one.seeds, "verdict": one.verdict}
        if one.gap is not None:
            gap = one.gap
            row |= {"difference": gap.interval.mean, "low": gap.interval.low, "high": gap.interval.high, "p": gap.p_value,
                    "p_holm": gap.p_holm, "low_90": gap.equivalence[0], "high_90": gap.equivalence[1],
                    "shows_from": gap.detectable}  # fmt: skip
        rows.append(row)
    return pandas.DataFrame(rows)

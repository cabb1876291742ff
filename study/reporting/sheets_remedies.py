"""The table of remedies, and remedies.csv."""

from collections.abc import Sequence

import pandas

from study.reporting.page import Sheet
from study.reporting.regimes import CANNOT_TELL, NEGATIVE, NONE, POSITIVE, UNCLEAR, Gap
from study.reporting.remedies import Comparison
from study.reporting.sheets import counted, short

HELPS = {POSITIVE: "helps", NEGATIVE: "harms", NONE: "changes nothing", UNCLEAR: CANNOT_TELL}
CURED = {POSITIVE: "behind", NEGATIVE: "ahead", NONE: "level", UNCLEAR: CANNOT_TELL}
COLUMNS = (
    "data, network", "method", "share pruned", "remedy", "seeds", "test accuracy", "minus without", "p", "p (Holm)",
    "verdict", "shows from", "training accuracy", "minus without", "p (Holm)", "Tr F, × without", "cost, × without",
    "finetuned minus this, test", "against finetuned",
)  # fmt: skip


def remedies_sheet(found: Sequence[Comparison], margin: float) -> Sheet:
    caption = (
        "Runs that differ in nothing but a remedy, paired by seed; the row without one comes first. Seeds that one side lacks "
        "count in no difference. Differences have their 95 % intervals; p: two-sided, Student's t over independent seeds; "
        "Holm: adjusted for all rows of the table. Helps, "
        f"harms: the adjusted p is at most 0.05 and the difference at least {margin:g}; changes nothing: its 90 % interval "
        f"lies within ± {margin:g}; otherwise nobody can tell. Shows from: what so many seeds of this spread show with 80 % "
        "power. Tr F and cost: geometric mean of the ratios; cost is multiply-accumulates of the run's own training. The last "
        "two columns set runs from scratch against finetuned ones without a remedy."
    )
    return Sheet("remedies", "Remedies", caption, COLUMNS, tuple(cells(one) for one in found))


def cells(one: Comparison) -> tuple:
    change, train, behind = one.test_change, one.train_change, one.behind
    first = (one.where, one.method, one.sparsity, one.remedy or "none", seeds_of(one), str(one.test))
    tests = tests_of(change) if one.remedy else (None,) * 5
    training = (str(one.train), *((bounds(train), short(train.p_holm)) if train else (None, None)))
    ratios = tuple(None if ratio is None else str(ratio) for ratio in (one.fisher, one.cost))
    last = (bounds(behind), CURED[behind.state]) if behind else (None, None)
    return (*first, *tests, *training, *ratios, *last)


def seeds_of(one: Comparison) -> int | str:
    """Of the runs, and how many of them the runs without have as well, which alone are compared, where those are fewer."""
    of_runs = counted(one.test.n, one.test.runs)
    paired = one.test_change.interval.n if one.test_change else one.test.n
    return of_runs if paired == one.test.n else f"{of_runs}, {paired} paired"


def tests_of(gap: Gap | None) -> tuple:
    if gap is None:
        return (None, None, None, "no seed in common", None)
    return (bounds(gap), short(gap.p_value), short(gap.p_holm), HELPS[gap.state], short(gap.detectable))


def bounds(gap: Gap) -> str:
    return gap.interval.bounds()


def remedy_rows(found: Sequence[Comparison]) -> pandas.DataFrame:
    """remedies.csv: a row a comparison, with the numbers behind the table."""
    rows = []
    for one in found:
        row = {
            "where": one.where, "method": one.method, "sparsity": one.sparsity, "remedy": one.remedy, "seeds": one.test.n,
            "acc_test": one.test.mean, "acc_train": one.train.mean,
        }  # fmt: skip
        for name, ratio in (("fisher", one.fisher), ("cost", one.cost)):
            if ratio is not None:
                row |= {f"{name}_ratio": ratio.mean, f"{name}_ratio_low": ratio.low, f"{name}_ratio_high": ratio.high}
        gaps = (("test", one.test_change, HELPS), ("train", one.train_change, HELPS), ("behind_finetuned", one.behind, CURED))
        for name, gap, words in gaps:
            if gap is not None:
                row |= {
                    f"{name}_seeds": gap.interval.n,
                    name: gap.interval.mean, f"{name}_low": gap.interval.low, f"{name}_high": gap.interval.high,
                    f"{name}_p": gap.p_value, f"{name}_p_holm": gap.p_holm, f"{name}_is": words[gap.state],
                    f"{name}_shows_from": gap.detectable,
                }  # fmt: skip
        rows.append(row)
    return pandas.DataFrame(rows)

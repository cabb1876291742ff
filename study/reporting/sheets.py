"""The report's tables: the two regimes and what they rest on, and what was measured of every solution."""

import math
from collections.abc import Sequence

import pandas

from helper.metrics.main import METRICS
from study.bias import BIAS_NOTE, BIASED, marked
from study.reporting.page import Sheet
from study.reporting.pairs import AS_LONG, AS_LONG_IN_TOTAL
from study.reporting.regimes import Gap, rule
from study.reporting.statistics import Interval, place, rounded
from study.reporting.tidy import REPORTED
from study.reporting.unreliable import UNRELIABLE, UNRELIABLE_NOTE, doubted

SHOWN = {
    "acc_train": "train acc", "acc_test": "test acc", **REPORTED,
}  # fmt: skip
GAPS = {"train_gap": "training gap", "test_gap": "test gap"}
NOTE = (
    "± is half of a 95 % interval by Student's t: over seeds, or of the measurement on a single seed, which says nothing of "
    "other seeds."
)
BRACKETS = "Brackets hold an interval that is not the same on both sides, as where a quantity can be no larger."
PAGE_NOTE = (
    "± is half of a 95 % interval, brackets hold one that is not the same on both sides: Student's t over independent runs, "
    "as many as the column of seeds says. Runs that share a seed or a dense parent are one independent unit, the mean of "
    "which counts. No interval reaches beyond what a quantity can be, and seeds whose accuracies differ by less are taken to "
    "differ by one example. Of a single seed ± is that of the measurement, which says nothing of other seeds."
)
WHICH = ("study", "sparsity", "finetune", "scratch", "budget", "seeds", "runs")  # row of a table of gaps
BUDGETS = {AS_LONG: "as many epochs", AS_LONG_IN_TOTAL: "as many as dense and finetuned together"}


def table1(compared: pandas.DataFrame, margin: float) -> Sheet:
    columns = (
        "share pruned", "regime", "seeds", "training gap", "shows from", "test gap", "shows from", "finetuned", "scratch",
        "scratch is trained for",
    )  # fmt: skip
    rows = []
    for _, row in compared.iterrows():
        training, test = row["train_gap"], row["test_gap"]
        cells = (training.interval.bounds(), short(training.detectable), test.interval.bounds(), short(test.detectable))
        series = (row["finetune"], row["scratch"], BUDGETS[row["budget"]])
        rows.append((row["sparsity"], row["regime"], counted(row["seeds"], row["runs"]), *cells, *series))
    caption = (
        f"{rule(margin)} In brackets the 95 % interval of each gap by itself. Shows from: the smallest difference that so many "
        f"seeds of this spread show with 80 % power at 5 %, by the noncentral t distribution.{bias_of(compared['scratch'])}"
    )
    return Sheet("table 1", "The two regimes", caption, columns, tuple(rows))


def gap_tests(compared: pandas.DataFrame, margin: float) -> Sheet:
    """What `table1` rests on, a row a gap."""
    columns = (
        "share pruned", "gap", "p", "p (Holm)", "together", "90 %", "is", "shows from", "with Holm", "images show from",
        "finetuned", "scratch",
    )  # fmt: skip
    rows = []
    for name, label in GAPS.items():
        for _, row in compared.iterrows():
            gap: Gap = row[name]
            tests = (short(gap.p_value), short(gap.p_holm), bounds(gap.joint), bounds(gap.equivalence), gap.state)
            power = (short(gap.detectable), short(gap.detectable_holm), short(gap.images))
            rows.append((row["sparsity"], label, *tests, *power, row["finetune"], row["scratch"]))
    caption = (
        "Two-sided p-values of Student's t over the paired seeds; beside them Holm's adjustment over the rows of this table, "
        "training and test gaps apart, so that at most one such table in twenty claims a gap of either kind that is not "
        "there. Together: intervals that hold for all rows of a kind at once with 95 % and leave out 0 where the adjusted p "
        "is at most 0.05; of a gap that is shown among others that are not, all they say is its sign. 90 %: none, if "
        f"it lies within ± {margin:g}. Shows from: the smallest difference that the seeds show with 80 % power at 5 %; with "
        "Holm: at the level of his first step, which is that of one row among all. Images: the smallest difference of two "
        "accuracies that so many test images tell from chance, if the networks err independently; seeds share the images, so "
        "that more seeds do not lower it."
    )
    return Sheet("table 1, tests", "What the regimes rest on", caption, columns, tuple(rows))


def gap_rows(tables: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    """gaps.csv: a row a gap of every study, with the numbers behind `table1` and `gap_tests`."""
    rows = []
    for _, row in pandas.concat(tables).iterrows():
        for name, label in GAPS.items():
            gap: Gap = row[name]
            numbers = {key: getattr(gap.interval, key) for key in ("mean", "low", "high")} | {
                "p": gap.p_value, "p_holm": gap.p_holm, "low_together": gap.joint[0], "high_together": gap.joint[1],
                "low_90": gap.equivalence[0], "high_90": gap.equivalence[1], "is": gap.state, "shows_from": gap.detectable,
                "shows_from_holm": gap.detectable_holm, "images_show_from": gap.images, "regime": row["regime"],
            }  # fmt: skip
            rows.append({key: row[key] for key in WHICH} | {"gap": label.split()[0]} | numbers)
    return pandas.DataFrame(rows)


def sharpness(compared: pandas.DataFrame) -> Sheet:
    columns = (
        "share pruned", "seeds", *(f"{heading} ratio" for heading in REPORTED.values()), "Tr F end/start, finetuned",
        "Tr F end/start, scratch", "finetuned", "scratch",
    )  # fmt: skip
    names = (*(f"{name}_ratio" for name in REPORTED), "trend_f", "trend_s")
    rows = [
        (
            row["sparsity"],
            counted(row["seeds"], row["runs"]),
            *(doubted(row[n].bounds(), n in row["unreliable"]) for n in names),
            row["finetune"],
            row["scratch"],
        )
        for _, row in compared.iterrows()
    ]
    caption = (
        "Ratios: scratch over finetuned, geometric means over pairs. End/start: Tr F of the selected weights over that of the "
        "run's own initialisation. In brackets 95 % intervals of the mean logarithm by Student's t over independent pairs. A "
        "pair with a value that is not positive has no ratio, and to leave it out would be to choose: then none is given."
        f"{notes_of(rows)}"
    )
    return Sheet("table 1, sharpness", "How much sharper from-scratch solutions are", caption, columns, tuple(rows))


def not_paired(alone: Sequence[tuple[str, str]]) -> Sheet:
    caption = (
        "Compared are finetuned and from-scratch runs of the same seed, dense parent, mask and options, trained for as many "
        "epochs, or from scratch for as many as the dense and the finetuned run together. These have no such counterpart; "
        "they are in every other table and figure."
    )
    return Sheet("table 1, not paired", "What is not compared", caption, ("run", "why"), tuple(alone))


def bias_of(names: pandas.Series) -> str:
    """The note on --select test, where one of these series has its mark."""
    return f" {BIAS_NOTE}" if names.str.contains(BIASED).any() else ""


def notes_of(rows: Sequence[tuple]) -> str:
    """The note on unreliable measurements, where a cell has their mark."""
    return f" {UNRELIABLE_NOTE}" if any(str(cell).endswith(UNRELIABLE) for row in rows for cell in row) else ""


def bounds(pair: tuple[float, float]) -> str:
    """`[low, high]`, to the place that the width warrants; a bound of exactly 0 is left out of the interval."""
    low, high = pair
    if math.isnan(low):
        return ""
    at = place((high - low) / 2, 2)
    return f"{'(' if low == 0 else '['}{rounded(low, at)}, {rounded(high, at)}{')' if high == 0 else ']'}"


def short(value: float) -> float | None:
    """Two significant digits; None for nan."""
    return None if math.isnan(value) else float(f"{value:.2g}")


def counted(units: int, runs: int) -> int | str:
    """Independent units, with the runs that they are made of where those are more."""
    return units if units == runs else f"{units} ({runs} runs)"


def table2(table: pandas.DataFrame) -> Sheet:
    wide = wide_table(table)
    columns = ("solution", "share pruned", "seeds", *SHOWN.values())
    rows = [tuple(row[c] for c in ("series", "sparsity", "seeds", *SHOWN)) for _, row in wide.iterrows()]
    caption = (
        f"Of the mean cross-entropy at the selected weights: {'; '.join(map(explained, REPORTED))}. {NOTE}"
        f"{bias_of(wide['series'])}{notes_of(rows)}"
    )
    title = listed([METRICS[name].label for name in REPORTED])
    return Sheet("table 2", title, caption, columns, tuple(rows))


def explained(name: str) -> str:
    """What a column of `table2` means."""
    metric = METRICS[name]
    return f"{metric.heading}, {metric.about}{f' ({metric.unit})' if metric.unit else ''}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def wide_table(table: pandas.DataFrame) -> pandas.DataFrame:
    """A row a setting, with `mean ± half of the interval` of every shown quantity as text, marked where it is unreliable."""
    rows = []
    setting = ["data", "network", "study", "sparsity", "mode", "series"]
    for values, part in table.groupby(setting, sort=False):
        found = {row.quantity: Interval(row.mean, row.low, row.high, row.n, row.method, row.runs) for row in part.itertuples()}
        seeds = counted(*max((interval.n, interval.runs) for interval in found.values()))
        doubtful = set(part.loc[part["unreliable"] > 0, "quantity"])
        cells = {name: doubted(str(found[name]), name in doubtful) if name in found else "" for name in SHOWN}
        row = dict(zip(setting, values, strict=True)) | {"seeds": seeds} | cells
        row["acc_test"] = marked(row["acc_test"], BIASED in row["series"] and row["acc_test"] != "")
        rows.append(row)
    return pandas.DataFrame(rows)

"""What sweeps that add seeds until a gap decides have found, as a section of the report."""

import math
from collections.abc import Sequence

from study.decisions import Decision
from study.reporting.page import Section, Sheet
from study.reporting.statistics import Interval

COLUMNS = ("comparison", "quantity", "gap", "seeds", "most seeds", "first less second", "interval", "verdict")
CAPTION = (
    "The interval (Wang and Ramdas 2024, of a normal mean with unknown variance) holds at all looks together with its "
    "level, so that adding seeds until it decides does not spoil it; those of all comparisons of a sweep hold together "
    "with 95 %. It is wider than Student's t, which holds at one look. Larger: it excludes 0. "
    "No gap: it lies within ± the gap. Open: neither."
)


def decision_sections(decisions: Sequence[Decision]) -> list[Section]:
    if not decisions:
        return []
    sheet = Sheet("decisions", "Differences and whether they decide", CAPTION, COLUMNS, tuple(map(row_of, decisions)))
    return [Section("Seeds added until a gap decides", "From sweeps with --until_gap.", sheets=(sheet,))]


def row_of(decision: Decision) -> tuple[str | float | int, ...]:
    low, high = (math.nan if bound is None else bound for bound in (decision.low, decision.high))
    interval = Interval(decision.mean, low, high, len(decision.seeds), "any number of looks")
    return (
        decision.title, decision.value, decision.gap, len(decision.seeds), decision.most, interval.bounds(),
        f"{100 * decision.level:.4g} %", decision.words,
    )  # fmt: skip

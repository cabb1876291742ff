"""What sweeps with --until_gap have found, kept below the results root for the report: one file a comparison."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helper.system.files import write_atomic
from helper.untrusted.reasons import Unfit, reason_of
from study.anytime import NEGATIVE, NONE, OPEN, POSITIVE
from study.titles import SWEEPS

FOLDER = "until_gap"  # in the folder of titles


@dataclass(frozen=True)
class Decision:
    """What a comparison's interval says after the last look.

    Attributes:
        title: which settings, the first less the second. value: the quantity.
        gap: the size that decides. level: of the interval, at all looks; all of a sweep hold together with 95 %.
        seeds: in their order; differences: of each.
        low, high: None while there are too few seeds for an interval.
        verdict: positive, negative, none or open, as of `study.anytime`.
        most: seeds that it was to have at most.
    """

    title: str
    value: str
    gap: float
    level: float
    seeds: list[int]
    differences: list[float]
    mean: float
    low: float | None
    high: float | None
    verdict: str
    most: int

    @property
    def words(self) -> str:
        """The verdict in words."""
        return {
            POSITIVE: "the first is larger", NEGATIVE: "the second is larger", NONE: f"no gap of {self.gap:g}", OPEN: "open",
        }[self.verdict]  # fmt: skip


def write_decision(root: Path, key: str, decision: Decision) -> None:
    """Keep a decision under the hash of its comparison; an earlier one is replaced."""
    folder = root / SWEEPS / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{key}.json", json.dumps(asdict(decision), indent=1) + "\n")


def read_decisions(root: Path) -> tuple[list[Decision], list[tuple[str, str]]]:
    """All of a results root, by title, and (path, reason) of what could not be read."""
    found, damaged = [], []
    for path in sorted((root / SWEEPS / FOLDER).glob("*.json")):
        try:
            found.append(decision_in(json.loads(path.read_text())))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            damaged.append((path.relative_to(root).as_posix(), f"damaged: {reason_of(error)}; the same sweep writes it again"))
    return sorted(found, key=lambda decision: (decision.title, decision.value)), damaged


def decision_in(content: Mapping[str, Any]) -> Decision:
    """Raises ValueError, LookupError, TypeError: it is none."""
    decision = Decision(**content)
    texts = (decision.title, decision.value, decision.verdict)
    numbers = [decision.gap, decision.level, decision.mean, *decision.differences]
    bounds = [bound for bound in (decision.low, decision.high) if bound is not None]
    whole = [*decision.seeds, decision.most]
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, (int, float)) and math.isfinite(number) for number in (*numbers, *bounds))
        and all(isinstance(number, int) for number in whole)
        and len(decision.seeds) == len(decision.differences)
        and decision.verdict in (POSITIVE, NEGATIVE, NONE, OPEN)
    ):
        raise Unfit("it is not the outcome of a comparison")
    return decision

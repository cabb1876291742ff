"""Which examples networks memorise, and which of them sparse ones forget (Feldman and Zhang 2020)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from helper.charts.painting import paint
from helper.interval import half_interval
from helper.progress import Task
from helper.schema.config import flag
from helper.system.locks import exclusive
from helper.untrusted.texts import one_line
from study.comparing.comparison import Comparison, Drawn, PredictionConfig
from study.comparing.contact_sheet import Line, can_be_shown, contact_sheet, short
from study.comparing.figures_memorisation import memorisation_chart
from study.comparing.subset_runs import Kind, Pool, open_kinds
from study.comparing.subset_scores import (
    FEWEST,
    Outcomes,
    Statistic,
    binned,
    differences,
    mean_score,
    mean_seen,
    mean_unseen,
    memorisation,
    paired,
    with_error,
)  # fmt: skip

FILES = ("examples.csv", "kinds.csv", "bins.csv")
EDGES = (-1.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the bins of memorisation scores
CAPTION = (
    "Memorisation score of a training example: the share of subsets with it after which its label is predicted, minus that of "
    "subsets without it. Middle and right: accuracy by that score of {reference}; the score is of one half of the subsets and "
    "the accuracy of the other, in turn. Bars: 95 % intervals over subsets."
)
BELOW = "Below each: the label that it was given, a score with its standard error, and the shares right with and without it."
SHEETS = {
    "most_memorised": ("most memorised", "Training examples that {name} memorises most"),
    "most_forgotten": ("most forgotten", "Training examples that {name} forgets first, against {reference}"),
}


@dataclass(frozen=True)
class MemorisationConfig(PredictionConfig):
    """Memorisation: how the networks are run, and what is shown."""

    images: int = flag(24, "images on a contact sheet; 0: no sheet", low=0, high=600)


def memorise(config: MemorisationConfig, *runs: str) -> int:
    """Memorisation scores of the training examples, over runs that saw different subsets of them.

    Writes examples.csv, kinds.csv, bins.csv, figures and last result.json below `<results_root>/comparisons`, and prints the
    table of the kinds.

    Raises:
        RuntimeError: not finished runs, runs that share no data, or too few subsets.
    """
    started = time.perf_counter()
    kinds, pool = open_kinds(runs, config.device, config.root, config.batch_size, trust_code=config.trust_code)
    check_enough(kinds)
    everything = tuple(run for kind in kinds for run in kind.runs)
    comparison = Comparison("memorisation", everything, {"images": config.images, "runs": len(everything)}, FILES)
    reference = kinds[0]
    tables = {"examples.csv": examples_table(kinds, pool), "kinds.csv": kinds_table(kinds), "bins.csv": bins_table(kinds)}
    with Task("drawing"):
        drawn = list(figures(kinds, pool, tables, config.images))
    with exclusive(comparison.folder):
        comparison.clear()
        comparison.write_tables(tables)
        title = f"What {pool.dataset.name} networks memorise, against {reference.name}"
        result = comparison.finish(title, drawn, shown(tables["kinds.csv"]), time.perf_counter() - started)
    comparison.show(result)
    return 0


def check_enough(kinds: Sequence[Kind]) -> None:
    """Raise RuntimeError where a kind of run has no example that enough subsets have and enough have not."""
    for kind in kinds:
        if not kind.outcomes.scored.any():
            n = len(kind.outcomes.seen)
            raise RuntimeError(
                f"{one_line(kind.name)}: with {n} subset{'s' * (n != 1)} no example was seen by {FEWEST} and not by {FEWEST}; "
                f"give runs with at least {2 * FEWEST} values of --split_seed and a --limit_train of about half of the examples"
            )


def examples_table(kinds: Sequence[Kind], pool: Pool) -> pandas.DataFrame:
    """examples.csv: a row an example and kind, the most memorised of the first kind first; with differences to that."""
    names = pool.dataset.class_names
    labels = {
        "index": pool.places.numpy(), "given_label": [names[c] for c in pool.given.tolist()],
        "true_label": [names[c] for c in pool.true.tolist()],
    }  # fmt: skip
    first = memorisation(kinds[0].outcomes)
    order = (-first["score"]).argsort(kind="stable")
    parts = []
    for kind in kinds:
        table = pandas.DataFrame(labels).assign(kind=kind.name).join(memorisation(kind.outcomes))
        if kind is not kinds[0]:
            gap = differences(kinds[0].outcomes, kind.outcomes)
            table = table.assign(forgotten=gap["seen"], forgotten_error=gap["seen_error"])
            table = table.assign(score_lost=gap["score"], score_lost_error=gap["score_error"])
        parts.append(table.iloc[order])
    table = pandas.concat(parts)
    return table[table["score"].notna()]


def kinds_table(kinds: Sequence[Kind]) -> pandas.DataFrame:
    """kinds.csv: means over examples with their errors over subsets, and differences to the first kind, paired by subset."""
    rows = []
    for kind in kinds:
        row: dict[str, Any] = {"kind": kind.name, "runs": len(kind.runs), "subsets": len(kind.outcomes.seen)}
        row["examples"] = int(kind.outcomes.scored.sum())
        for name, statistic in STATISTICS.items():
            value, error = with_error(statistic, kind.outcomes)
            row |= {name: value, f"{name}_error": max(error, finest(kind.outcomes))}
        pair = paired(kinds[0].outcomes, kind.outcomes)
        for name in ("seen", "score") if kind is not kinds[0] and len(pair[0].seen) > 1 else ():
            value, error = with_error(difference_of(STATISTICS[name]), *pair)
            row |= {f"{name}_lost": value, f"{name}_lost_error": max(error, finest(pair[0]))}
        rows.append(row)
    return pandas.DataFrame(rows)


STATISTICS = {"seen": mean_seen, "unseen": mean_unseen, "score": mean_score}


def finest(outcomes: Outcomes) -> float:
    """The least standard error to believe of a mean over subsets: shares of a subset move in steps of one example."""
    return float(1 / outcomes.seen.sum(1).mean() / len(outcomes.seen) ** 0.5)


def difference_of(statistic: Statistic) -> Statistic:
    return lambda first, second: statistic(first) - statistic(second)


def bins_table(kinds: Sequence[Kind]) -> pandas.DataFrame:
    """bins.csv: of every kind, by the memorisation score of the first."""
    return pandas.concat([binned(kinds[0].outcomes, kind.outcomes, EDGES).assign(kind=kind.name) for kind in kinds])


def shown(kinds: pandas.DataFrame) -> list[dict[str, Any]]:
    """kinds.csv for a terminal or a page, ± half of a 95 % interval, Student's t over subsets."""
    names = {
        "seen": "accuracy, seen", "unseen": "accuracy, unseen", "score": "memorisation",
        "seen_lost": "seen, lost", "score_lost": "memorisation, lost",
    }  # fmt: skip
    rows = []
    for row in kinds.to_dict("records"):
        own = {"kind": row["kind"], "runs": row["runs"], "subsets": row["subsets"], "examples": row["examples"]}
        for name, heading in names.items():
            if pandas.notna(row.get(name)):
                half = half_interval(row[f"{name}_error"], row["subsets"] - 1)
                own[heading] = f"{row[name]:.4f} ± {half:.4f}"
        rows.append(own)
    return rows


# -------------------------------------------------------------------------------------------------------------- figures


def figures(kinds: Sequence[Kind], pool: Pool, tables: Mapping[str, pandas.DataFrame], n: int) -> list[Drawn]:
    """The chart, and contact sheets of n images each; printed is why there are none."""
    reference = kinds[0].name
    scores = {kind.name: memorisation(kind.outcomes)["score"].to_numpy() for kind in kinds}
    bins = dict(list(tables["bins.csv"].groupby("kind", sort=False)))
    title = "Memorised examples, and what is kept of them"
    chart = paint(memorisation_chart(scores, bins, reference))
    found = [Drawn("memorisation", "memorisation", title, CAPTION.format(reference=reference), chart)]
    if n == 0:
        return found
    if not can_be_shown(pool.dataset.input_shape):
        print(f"no contact sheet: {pool.dataset.name} has no images that could be shown")
        return found
    most = memorisation(kinds[0].outcomes).nlargest(n, "score")
    lines = [[Line(f"{row.score:.2f} ± {row.error:.2f}"), seen_line(row)] for row in most.itertuples()]
    found.append(sheet("most_memorised", most.index, lines, pool, name=reference))
    for number, kind in enumerate(kinds[1:], 1):
        lost = differences(kinds[0].outcomes, kind.outcomes).query("seen > 0").nlargest(n, "seen")
        if lost.empty:
            print(one_line(f"no contact sheet of what {kind.name} forgets: it forgets nothing that {reference} knows"))
            continue
        own = memorisation(kind.outcomes).loc[lost.index]
        lines = [
            [Line(f"forgotten {row.seen:.2f} ± {row.seen_error:.2f}"), seen_line(mine)]
            for row, mine in zip(lost.itertuples(), own.itertuples(), strict=True)
        ]
        found.append(sheet("most_forgotten", lost.index, lines, pool, name=kind.name, reference=reference, number=number))
    return found


def seen_line(row: Any) -> Line:
    return Line(f"seen {row.seen:.2f}, not {row.unseen:.2f}", "0.35")


def sheet(
    stem: str, rows: pandas.Index, lines: Sequence[Sequence[Line]], pool: Pool, *, name: str, reference: str = "",
    number: int = 0,
) -> Drawn:  # fmt: skip
    """A contact sheet of some examples of the pool, in this order."""
    id, heading = SHEETS[stem]
    heading = heading.format(name=name, reference=reference)
    names, images = pool.dataset.class_names, pool.inputs(rows.tolist()).permute(0, 2, 3, 1) / pool.dataset.scale
    labels = pool.given[rows.tolist()].tolist()
    labelled = [[Line(short(names[label]), bold=True), *own] for label, own in zip(labels, lines, strict=True)]
    figure = contact_sheet(images.numpy(), labelled, heading)
    return Drawn(f"{stem}_{number}" if number else stem, f"{id}, {name}", heading, BELOW, figure)

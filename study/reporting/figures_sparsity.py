"""Figures of the report against sparsity and cost, from long tables of means with intervals. No torch."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy
import pandas

from helper.charts.chart import Area, Axis, Chart, Dots, Level, Panel, Series, Stretch
from helper.look import GREEN, PURPLE, Look
from optim.modes import MODES
from study.reporting.families import Family
from study.reporting.figures_epochs import FISHER
from study.reporting.pairs import SIDES, side_of

SHADES = {"generalization": GREEN, "optimization": PURPLE}
SPARSITY = "share of weights pruned"
FIGURE1_PANELS = (
    ("acc_test", "test accuracy"),
    ("acc_train", "training accuracy"),
    ("entropy_train", "prediction entropy, training set (nats)"),
    ("loss_test", "test loss (nats)"),
    ("loss_train", "training loss (nats)"),
    (FISHER.name, FISHER.axis),
)
FEW_PLACES = 8  # sparsities, each of which has its tick


class SingleRuns:
    """The runs of a study, see `tidy`, to be found behind the means over their seeds."""

    def __init__(self, runs: pandas.DataFrame) -> None:
        self.groups = dict(tuple(runs.groupby(["mode", "series", "sparsity"], sort=False)))

    def behind(self, rows: pandas.DataFrame) -> list[pandas.DataFrame]:
        """Those with a value, of every row of `aggregate.over_seeds`."""
        keys = rows[["mode", "series", "sparsity"]].itertuples(index=False, name=None)
        parts = [self.groups[key] for key in keys]
        return [part[part[name].notna()] for part, name in zip(parts, rows["quantity"], strict=True)]


def figure1(table: pandas.DataFrame, gaps: pandas.DataFrame, families: Sequence[Family], runs: SingleRuns) -> Chart:
    """Accuracy, loss, prediction entropy and Tr F against sparsity, the accuracy gap shaded and the regimes marked.

    Args:
        table: one study of `aggregate.over_seeds`. gaps: its `aggregate.gaps`. families: those that it has, in their order.
        runs: of the study.
    """
    places = sorted(set(table.loc[table["sparsity"] > 0, "sparsity"]))
    along = Axis(SPARSITY, ticks=places if len(places) <= FEW_PLACES else ())
    panels = []
    for index, (quantity, label) in enumerate(FIGURE1_PANELS):
        rows = table[table["quantity"] == quantity]
        levels, series = parts_of(rows, families, runs)
        panels.append(
            Panel(
                along, upright(label, rows, log=quantity == FISHER.name), levels=levels, series=series,
                areas=shaded(rows, families) if quantity.startswith("acc") else (),
                stretches=list(regimes(gaps, words=index < 3)),
            )
        )  # fmt: skip
    return Chart(panels, 3, (13, 7.6))


def upright(label: str, rows: pandas.DataFrame, *, log: bool) -> Axis:
    """The axis of a quantity. A logarithmic one ends at twice the means' range: an interval of few seeds may span decades."""
    positive = rows.loc[rows["mean"] > 0, "mean"]
    if not log or positive.empty:
        return Axis(label)
    return Axis(label, log=True, limits=(positive.min() / 2, positive.max() * 2))


def parts_of(table: pandas.DataFrame, families: Sequence[Family], runs: SingleRuns) -> tuple[list[Level], list[Series]]:
    """A series with error bars for each of the table's; a dense one, which has no sparsity, is a level."""
    levels, found = [], []
    for family, tone, rows in series_rows(table, families):
        if not MODES[rows["mode"].iloc[0]].has_mask:
            row = rows.iloc[0]
            look = Look(family.colour, family.marker, family.line)
            names = runs.behind(rows)[0]["run"].tolist()
            levels.append(Level(row["series"], look, row["mean"], row["low"], row["high"], tone, runs=names))
        else:
            found.append(against(rows, "sparsity", family, tone, runs))
    return levels, found


def series_rows(table: pandas.DataFrame, families: Sequence[Family]) -> Iterator[tuple[Family, float, pandas.DataFrame]]:
    """(family, opacity, rows) of every series; that of a family with the most runs comes first and is darkest."""
    for family in families:
        part = table[table["family"] == family.label]
        names = part.groupby("series", sort=False)["runs"].sum().sort_values(ascending=False, kind="stable").index
        for index, name in enumerate(names):
            yield family, max(1 - 0.3 * index, 0.2), part[part["series"] == name].sort_values("sparsity")


def against(rows: pandas.DataFrame, column: str, family: Family, tone: float, runs: SingleRuns, *, unit: float = 1) -> Series:
    """The means of a series against one of its columns, in a unit, with the single runs."""
    behind = runs.behind(rows)
    return Series(
        rows["series"].iloc[0], Look(family.colour, family.marker, family.line), (rows[column] / unit).tolist(),
        rows["mean"].tolist(), rows["low"].tolist(), rows["high"].tolist(), tone=tone,
        runs=[own["run"].tolist() for own in behind], dots=dots_of(rows, column, behind, unit),
    )  # fmt: skip


def dots_of(rows: pandas.DataFrame, column: str, behind: Sequence[pandas.DataFrame], unit: float) -> Dots:
    """Each run at its own value, and where the mean of its series stands on the x axis."""
    quantity = rows["quantity"].iloc[0]
    x = [place / unit for place, own in zip(rows[column], behind, strict=True) for _ in range(len(own))]
    y = [value for own in behind for value in own[quantity].tolist()]
    return Dots(x, y, [name for own in behind for name in own["run"]])


def shaded(table: pandas.DataFrame, families: Sequence[Family]) -> list[Area]:
    """Between the main series of either side of a gap, where both have a sparsity."""
    main: dict[str | None, pandas.Series] = {}
    for _, _, rows in series_rows(table, families):
        main.setdefault(side_of(rows["mode"].iloc[0]), rows.set_index("sparsity")["mean"])
    if not main.keys() >= set(SIDES):
        return []
    both = pandas.concat([main[side] for side in SIDES], axis=1, join="inner")
    return [Area(both.index.tolist(), both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist())]


def regimes(gaps: pandas.DataFrame, *, words: bool) -> Iterator[Stretch]:
    """A stretch behind every sparsity at which a regime shows, its name over the first of them; the main series decide."""
    if gaps.empty:
        return
    main = gaps[(gaps["finetune"] == gaps["finetune"].iloc[0]) & (gaps["scratch"] == gaps["scratch"].iloc[0])]
    places = main["sparsity"].to_numpy()
    middles = (places[1:] + places[:-1]) / 2
    width = 0.02 if len(places) < 2 else numpy.diff(places).min() / 2
    edges = [float(edge) for edge in (places[0] - width, *middles, places[-1] + width)]
    shown = list(main["regime"])
    for regime in SHADES:
        for first, last in stretches_of(regime, shown):
            yield Stretch(edges[first], edges[last + 1], SHADES[regime], regime if words else "")


def stretches_of(word: str, words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first, last) of every unbroken row of a word."""
    first = None
    for index, one in enumerate([*words, None]):
        if one == word and first is None:
            first = index
        elif one != word and first is not None:
            yield first, index - 1
            first = None


UNITS = ((1e15, "10¹⁵"), (1e12, "10¹²"), (1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"), (1, "single"))


def cost_figure(table: pandas.DataFrame, families: Sequence[Family], runs: SingleRuns) -> Chart:
    """Test accuracy against what training cost: weights taken from a dense run counted, and its mask counted as well."""
    rows = table[table["quantity"] == "acc_test"]
    labels = {
        "cost_weights": "this run, and the dense run whose weights it continues",
        "cost_mask": "this run, and the dense run whose mask it uses",
    }
    unit, word = next((unit, word) for unit, word in UNITS if rows["cost_mask"].max() >= unit or unit == 1)
    panels = []
    for column, label in labels.items():
        series = [priced(part, column, family, tone, runs, unit) for family, tone, part in series_rows(rows, families)]
        along = Axis(f"training cost: {label}\n({word} multiply-accumulates × epochs, for each example)")
        panels.append(Panel(along, Axis("test accuracy"), series=series, texts="share pruned"))
    return Chart(panels, 2, (11, 4.4), same_y="all")


def priced(rows: pandas.DataFrame, column: str, family: Family, tone: float, runs: SingleRuns, unit: float) -> Series:
    """A series against its cost, with its sparsities beside the points."""
    one = against(rows, column, family, tone, runs, unit=unit)
    look = Look(family.colour, family.marker or "D", "-" if len(rows) > 1 else "")
    texts = [f"{sparsity:g}" if sparsity > 0 else "" for sparsity in rows["sparsity"]]
    return dataclasses.replace(one, look=look, width=0.8, size=6, texts=texts)

"""How far finetuned runs are ahead of those from scratch, against the width of the network, over all studies. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas

from helper.charts.chart import Axis, Chart, Level, Panel, Series
from helper.look import Look
from helper.schema.config import all_flags, digest
from helper.schema.values import dashed_values
from loader.main import DATASETS
from optim.config import RunConfig
from study.reporting.families import COLOURS, LINES, MARKERS
from study.reporting.finished_run import SCHEDULE, FinishedRun, place_of, without_seed
from study.reporting.pairs import AS_LONG

WIDTHS = ("widen_factor", "hidden_dims")  # options that say how wide a network is
VARYING = (*WIDTHS, "augment", *SCHEDULE)  # in which the studies of a figure may differ
PANELS = {"test_gap": "test accuracy,\nfinetuned minus scratch", "train_gap": "training accuracy,\nfinetuned minus scratch"}
SIZE = (5.4, 6.6)  # inches: a page of 400 pixels shows it at three quarters of its size
WIDE = "width of the network (--{})"
LEGEND = "share pruned, augmentation, epochs of dense training"
NO_GAP = Level("no gap", Look("0.15", "", ":"), 0, float("nan"), float("nan"), named=False)
DODGE = 0.6  # of the distance between two widths, over which the points of one are spread
AUGMENTATIONS = {"none": "no augmentation", "crop_flip": "crop and flip"}
CAPTION = (
    "Finetuned minus scratch, paired by seed, of the main series of each study where both are trained for as many epochs: the "
    "rows of table 1. Above 0 finetuned is ahead. Bars are 95 % intervals of each difference by itself (Student's t over "
    "independent seeds); a single pair has none."
)


def width_charts(gaps: pandas.DataFrame, records: Sequence[FinishedRun]) -> Iterator[tuple[str, str, Chart]]:
    """(hash, data and network in words, chart) of studies that are equal but for width, augmentation and schedule.

    Args:
        gaps: `aggregate.gaps` of all studies, one below the other, with their column `study`.
    """
    groups: dict[str, dict[str, FinishedRun]] = {}
    for record in records:
        if record.dense is not None and record.joined is None and width_option(record):
            groups.setdefault(without_width(record), {})[record.study] = record
    for key, studies in groups.items():
        rows = points(gaps, {study: settings(record) for study, record in studies.items()})
        if rows["width"].nunique() > 1:
            record = next(iter(studies.values()))
            yield key, f"{record.data}, {record.flags['net_name']}", width_chart(rows, WIDE.format(width_option(record)))


def width_option(record: FinishedRun) -> str:
    """The option that says how wide its network is; empty: there is none."""
    return next((name for name in WIDTHS if record.acts_in_dense(name)), "")


def width_of(record: FinishedRun) -> tuple[int, ...]:
    """The factor of a ResNet's width, or the units of an MLP's hidden layers."""
    value = of_dense(record, width_option(record))
    return tuple(dashed_values(value)) if isinstance(value, str) else (value,)


def without_width(record: FinishedRun) -> str:
    """Hash of all that the studies of a figure have in common."""
    options = {name: value for name, value in without_seed(record.dense or {}).items() if name not in VARYING}
    return digest(place_of(record.flags) | {"dense": options, "layers": len(width_of(record))})


def of_dense(record: FinishedRun, name: str) -> Any:
    """An option of the dense runs of its study."""
    return (record.dense or {}).get(name, all_flags(RunConfig)[name].default)


def settings(record: FinishedRun) -> dict[str, Any]:
    """Width, augmentation in words, and epochs of the dense runs of its study."""
    augment, epochs = of_dense(record, "augment"), of_dense(record, "n_epochs")
    known = DATASETS.get(record.flags["loader_name"])
    usual = "crop_flip" if known and known.augmented else "none"
    return {"width": width_of(record), "augment": AUGMENTATIONS[usual if augment == "auto" else augment], "epochs": epochs}


def points(gaps: pandas.DataFrame, studies: Mapping[str, Mapping[str, Any]]) -> pandas.DataFrame:
    """Rows of some studies' main series, trained for as many epochs, with the columns of their `settings`."""
    rows = gaps[gaps["study"].isin(list(studies)) & (gaps["budget"] == AS_LONG)]
    main = rows.groupby("study")[["finetune", "scratch"]].transform("first")
    rows = rows[(rows[["finetune", "scratch"]] == main).all(axis=1)]
    return rows.assign(**{name: [studies[study][name] for study in rows["study"]] for name in ("width", "augment", "epochs")})


def width_chart(rows: pandas.DataFrame, wide: str) -> Chart:
    """Test gap, and below it training gap, against width; a series for each sparsity, augmentation and number of epochs."""
    widths = sorted(set(rows["width"]))
    names = ["-".join(map(str, width)) for width in widths]
    along = Axis(wide, limits=(-0.5, len(widths) - 0.5), ticks=range(len(widths)), names=names)
    panels = [
        Panel(along, Axis(label), series=list(series_of(rows, widths, name)), levels=[NO_GAP]) for name, label in PANELS.items()
    ]
    return Chart(panels, 1, SIZE, legend=LEGEND)


def series_of(rows: pandas.DataFrame, widths: Sequence[tuple[int, ...]], gap: str) -> Iterator[Series]:
    sparsities = sorted(set(rows["sparsity"]))
    kinds = sorted(set(zip(rows["augment"], rows["epochs"], strict=True)))
    groups = list(rows.groupby(["augment", "epochs", "sparsity"]))
    for index, ((augment, epochs, sparsity), part) in enumerate(groups):
        place = sparsities.index(sparsity)
        colour = COLOURS[kinds.index((augment, epochs)) % len(COLOURS)]
        look = Look(colour, MARKERS[place % len(MARKERS)], LINES[place % len(LINES)])
        part = part.sort_values("width")
        shift = DODGE * ((index + 0.5) / len(groups) - 0.5)
        found = [one.interval for one in part[gap]]
        yield Series(
            f"{sparsity:g}, {augment}, {epochs}", look, [widths.index(width) + shift for width in part["width"]],
            *([getattr(one, name) for one in found] for name in ("mean", "low", "high")), width=1.1,
        )  # fmt: skip

"""Reports made up on the spot, with names as hostile as a file system allows."""

import math
import random
from pathlib import Path

import matplotlib.image
import numpy

from helper.charts.chart import Axis, Chart, Dots, Level, Panel, Series
from helper.look import Look
from study.reporting.page import Picture, Plot, Report, Row, Section, Sheet

HOSTILE = "<img src=x onerror=window.hostile=1>"
HOSTILE_NAMES = (
    HOSTILE,
    "</script><script>window.hostile=1</script>",
    "<!--<script>",
    "\"' onmouseover='window.hostile=1",
    "two\nlines\u2028three, {{ 7 * 7 }} Größe 稀疏 🙂",
)
FOLDER = f'digits/mlp/dense/a #1?b=%41&"c" {HOSTILE}-00000000'  # a folder that a file system takes and a link may not
COLUMNS = ("data", "mode", "sparsity", "seed", "acc_test", "fisher")
PICTURE_WIDTH = 30  # pixels


def write_picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, numpy.zeros((20, PICTURE_WIDTH, 3)))
    return path


def run_entries(n: int) -> tuple[Row, ...]:
    """Runs in no order, with a Fisher trace over ten decades that every fourth run lacks, and 90 settings."""
    draw = random.Random(0)
    settings = {f"flag_{i}": i for i in range(86)} | {"lr": 0.1, "nesterov": False, "parent": None}
    runs = []
    for i in range(n):
        mode, sparsity = draw.choice([("dense", 0), ("sparse-finetune", 0.9), ("sparse-scratch", 0.95)])
        cells = {
            "data": draw.choice(["digits", "cifar100"]),
            "mode": mode,
            "sparsity": sparsity,
            "seed": i,
            "acc_test": draw.random(),
            "fisher": None if i % 4 == 3 else 10 ** draw.uniform(-5, 5),
        }
        name = f"digits/mlp/{mode}/l1-{sparsity}-s{i}-{i:08x}"
        runs.append(Row(name, cells, settings | {"seed": i}, (("accuracy", f"../{name}/figures/accuracy.png"),)))
    return tuple(runs)


def hostile_run() -> Row:
    cells = {
        "data": HOSTILE_NAMES[0],
        "mode": HOSTILE_NAMES[1],
        "sparsity": float("inf"),
        "seed": 10**17,
        "fisher": float("nan"),
    }
    settings = {name: name for name in HOSTILE_NAMES} | {"lr": 0.5}
    return Row(FOLDER, cells, settings, ((HOSTILE, f"../{FOLDER}/figures/accuracy.png"),))


def made_up_series(label: str, colour: str, marker: str, value: float, names: list[str]) -> Series:
    """Two points, the first with an interval and two runs, the second with the last run."""
    low, high = ([value + room, math.nan] for room in (0.15, 0.25))
    dots = Dots([0.5, 0.9], [value + 0.12, value], [names[2], names[-1]])
    runs = [names[2:4], [names[-1]]]
    look = Look(colour, marker, "--")
    return Series(label, look, [0.5, 0.9], [value + 0.2, value], low, high, runs=runs, dots=dots, texts=["0.5", "0.9"])


def made_up_chart(runs: tuple[Row, ...]) -> Chart:
    """Two panels with a dense level and two series, one with a hostile name, each point of which has runs behind it."""
    names = [run.name for run in runs]
    levels = [Level("dense", Look("#0072B2"), 0.9, 0.88, 0.92, runs=names[:2])]
    series = [made_up_series(*one, names) for one in (("scratch", "#D55E00", "s", 0.6), (HOSTILE, "#009E73", "^", 0.7))]
    along = Axis(HOSTILE_NAMES[1], ticks=[0.5, 0.9], names=["half", HOSTILE_NAMES[3]])
    first = Panel(along, Axis(HOSTILE_NAMES[4]), HOSTILE, series, levels)
    band = Series("band", Look("#CC79A7"), [0, 1, 2], [1, 2, 4], [0.5, 1, 3], [2, 3, 5], bars=False, runs=[names[:1]])
    second = Panel(Axis("epoch", whole=True), Axis("Tr F (nats)", log=True), "positive", [*series[:1], band])
    return Chart([first, second], 2, (8, 4), legend="series")


def made_up_report(root: Path, n_runs: int = 40) -> Report:
    """A report with a figure and a table in each of two sections; hostile texts wherever a text goes.

    The first run and the hostile one have their figure under root, the others miss theirs.
    """
    runs = (*run_entries(n_runs), hostile_run())
    for run in (runs[0], runs[-1]):
        write_picture(root / run.name / "figures/accuracy.png")
    picture = write_picture(root / "report/figure_1.png")
    rows = (("dense", 0, "1,510 ± 27", 53.81), ("scratch", 0.9, "159 ± 2.8", 1.5e-7), ("finetune", 0.9, "18.1 ± 0.3", None))
    rows += ((HOSTILE, 0.95, "2.7e+04 ± 9", 27712.3), (HOSTILE_NAMES[4], 0.98, None, 0.123456))
    columns = ("mode", "sparsity", "Tr F", HOSTILE)
    sections = tuple(
        Section(
            title,
            HOSTILE_NAMES[1],
            (
                Picture(f"figure {i}", HOSTILE, HOSTILE_NAMES[2], picture, (("PDF", "javascript:window.hostile=1"),)),
                Plot(f"chart {i}", HOSTILE, HOSTILE_NAMES[2], made_up_chart(runs), command=f"report {HOSTILE}"),
            ),
            (Sheet(f"table {i}", HOSTILE_NAMES[3], HOSTILE_NAMES[4], columns, rows),),
        )
        for i, title in enumerate(("Accuracy", HOSTILE), 1)
    )
    left_out = tuple((name, name) for name in HOSTILE_NAMES)
    return Report(HOSTILE_NAMES[1], HOSTILE, "2026-01-02T03:04:05", HOSTILE, sections, COLUMNS, runs, left_out)

"""What an interpolation leaves: its tables as files, and as the numbers, captions and figures that people are shown."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from helper.metrics.line import barrier
from helper.progress import tracked
from helper.untrusted.arrays import read_arrays
from study.bias import BIASED
from study.comparing.comparison import Drawn
from study.comparing.figures_interpolation import COSINES_ON, FDR, draw_classes, draw_lines_and_cosines, path_names

log = logging.getLogger(__name__)
FILES = (LINE, COSINES, CLASSES) = ("line.csv", "cosines.npz", "classes.csv")


@dataclass(frozen=True)
class Tables:
    """What is measured, as the files of the folder hold it."""

    line: pandas.DataFrame  # path, alpha, split, loss (nats), acc; CHOSEN, where a solution is biased: the path's that are
    cosines: dict[str, numpy.ndarray]  # index, label (N,), alphas (A,), cosines (A, N)
    classes: pandas.DataFrame  # alpha, class, name, count, size, expected, p_value, q_value

    def files(self) -> dict[str, pandas.DataFrame | dict[str, numpy.ndarray]]:
        return dict(zip(FILES, (self.line, self.cosines, self.classes), strict=True))


def read_tables(folder: Path) -> Tables | None:
    """None where one of the files is damaged."""
    try:
        cosines = read_arrays(folder / COSINES)
        tables = Tables(pandas.read_csv(folder / LINE), cosines, pandas.read_csv(folder / CLASSES))
        numbers(tables)  # whatever is missing or no number shows there
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and measured anew: %s", folder, error)
        return None
    return tables


def numbers(tables: Tables) -> list[dict[str, Any]]:
    """Rows quantity, of, split, alpha, value: what the figures show, in numbers."""
    rows: list[dict[str, Any]] = []
    names = path_names(tables.line)

    def add(quantity: str, of: str, split: str, alpha: float | None, value: float) -> None:
        finite = float(value) if numpy.isfinite(value) else None
        rows.append({"quantity": quantity, "of": of, "split": split, "alpha": alpha, "value": finite})

    for (path, split), part in tables.line.groupby(["path", "split"], sort=False):
        alphas, losses = part["alpha"].to_numpy(), part["loss"].to_numpy()
        height, where, rise = barrier(alphas, losses)
        add("barrier height (nats)", names[path], split, where, height)
        add("largest loss - larger end's (nats)", names[path], split, float(alphas[losses.argmax()]), rise)
    for alpha, cosines in zip(tables.cosines["alphas"].tolist(), tables.cosines["cosines"], strict=True):
        of, defined = names.get(COSINES_ON, COSINES_ON), cosines[~numpy.isnan(cosines)]
        add("median cosine", of, "train", alpha, numpy.median(defined) if len(defined) else numpy.nan)
        add("share of examples with a positive cosine", of, "train", alpha, (defined > 0).mean() if len(defined) else numpy.nan)
        add("examples left out: zero gradient", of, "train", alpha, len(cosines) - len(defined))
        classes = tables.classes[tables.classes["alpha"] == alpha]
        found = classes[classes["q_value"] < FDR]
        add("examples in the upper 5 %", of, "train", alpha, classes["count"].sum())
        more = (found["count"] > found["expected"]).sum()
        add(f"classes over-represented in the upper 5 % (q < {FDR})", of, "train", alpha, more)
        add(f"classes under-represented in the upper 5 % (q < {FDR})", of, "train", alpha, len(found) - more)
    return rows


def figure6(tables: Tables, note: str) -> Drawn:
    line, cosines, names = tables.line, tables.cosines, path_names(tables.line)
    heights = []
    for path, part in line[line["split"] == "train"].groupby("path", sort=False):
        height, where, _ = barrier(part["alpha"].to_numpy(), part["loss"].to_numpy())
        heights.append(f"{height:.3g} on {names[path]} (at {where:.2f})")
    left_out = numpy.isnan(cosines["cosines"]).sum(1)
    caption = (
        f"(a, b) Loss and accuracy on straight lines between weights, {line['alpha'].nunique()} places each, "
        "BatchNorm re-estimated at every place on un-augmented training examples. Barrier of the training loss, the largest "
        f"excess over the straight line between the ends' losses, in nats: {'; '.join(heights)}. (c, d) Density and cumulative "
        "distribution over the training examples of the cosine between the negative gradient of the example's loss and "
        f"Sol-F - Init-S, over active parameters, on Init-S -> Sol-F at alpha {places(tables)}; examples whose gradient is "
        f"exactly zero have none and are left out ({', '.join(map(str, left_out))})."
    )
    title = "Loss and accuracy on the line to Sol-F, and how examples' gradients lie to it"
    return Drawn(
        "figure6", "figure 6", title, caption, draw_lines_and_cosines(line, cosines["alphas"], cosines["cosines"], note)
    )


def figure7_8(tables: Tables, note: str) -> Drawn:
    caption = (
        "Training examples in the upper 5 % of that cosine by the class of their given label, at alpha "
        f"{places(tables)}, and the number expected if they were drawn by chance. Coloured: Fisher's exact test, two-sided, "
        f"Benjamini-Hochberg over the classes, q < {FDR}. Classes with names: all, or those with the smallest p-values."
    )
    title = "Classes of the examples whose descent points most towards Sol-F"
    path = path_names(tables.line).get(COSINES_ON, COSINES_ON)
    return Drawn(
        "figure7_8", "figures 7 and 8", title, caption, draw_classes(tables.classes, path, note if BIASED in path else "")
    )


def places(tables: Tables) -> str:
    return ", ".join(f"{alpha:g}" for alpha in tables.cosines["alphas"])


def drawn(tables: Tables, note: str) -> Iterator[Drawn]:
    """The figures one after the other, each with a note or "" below."""
    for draw in tracked((figure6, figure7_8), "drawing", "figures"):
        yield draw(tables, note)

"""Where two solutions disagree: how often, in which classes more than chance, on which examples (paper, figures 9 and 10)."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
import torch
from matplotlib.figure import Figure
from scipy.special import rel_entr
from scipy.stats import binomtest, false_discovery_control, fisher_exact, hypergeom
from torch import Tensor, nn

from helper.drawing import save_figure
from helper.metrics.parameters import evaluation_mode, full_precision
from helper.progress import Task, tracked
from helper.schema.config import Config, flag, flatten
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.untrusted.texts import csv_text
from loader.dataset import Dataset, Split
from optim.checkpoint import content_hash
from study.bias import CHOSEN, bias_noted, marked
from study.comparing.figures_disagreement import CAPTIONS, SIGNIFICANT, draw_classes, draw_sheet
from study.runs import Run, check_comparable, chosen_by_test, comparison_folder, open_run, show_result

SHEETS = {"test": "most_disagreed", "train": "most_disagreed_train"}
NAMED = ("given_label", "true_label", "prediction_a", "prediction_b")  # columns of classes
OUTCOMES = ("only_a_right", "only_b_right", "both_wrong_differently")  # the three ways to disagree


@dataclass(frozen=True)
class DisagreeConfig(Config):
    """Disagreement: how the networks are run, and what is shown."""

    batch_size: int = flag(500, "examples at once", low=1)
    device: str = flag("cpu", "where to compute", choices=("cpu", "cuda"))
    images: int = flag(36, "most disagreed images on a contact sheet; 0: no sheet", low=0, high=600)
    root: str | None = flag(None, "folder of the data files now; default: where they were when the runs were trained")


def disagree(config: DisagreeConfig, a: Path | str, b: Path | str) -> Path:
    """Where the predictions of two runs differ, on training and test examples, class by class (paper, figures 9 and 10).

    Writes examples.csv, classes.csv, splits.csv, figures and last result.json, and prints the table of the splits.

    Returns:
        `<results_root>/comparisons/disagree_<A>_<B>`; nothing is computed when it is there for these weights and settings.
    Raises:
        RuntimeError: not finished runs, one network given twice, runs on different data.
    """
    begin = time.perf_counter()
    data = None if config.root is None else {"root": config.root, "download": False}
    runs = [open_run(path, config.device, data) for path in (a, b)]
    check_same_examples(runs)
    checkpoints = [content_hash(run.network.state_dict(), run.mask) for run in runs]
    if checkpoints[0] == checkpoints[1]:
        raise RuntimeError(f"{a} and {b} hold the same network, which disagrees with itself nowhere; give two different runs")
    settings = {name: value for name, value in flatten(config).items() if name != "root"}
    settings |= {"checkpoint_a": checkpoints[0], "checkpoint_b": checkpoints[1]} | chosen_by_test(
        dict(zip("AB", runs, strict=True))
    )
    folder = comparison_folder("disagree", runs)
    result = finished_result(folder, settings)
    if result:
        print("already there for these weights and settings")
    else:
        dataset = runs[0].dataset
        examples = every_example(runs, config.batch_size)
        totals, classes = tables(examples, dataset)
        if CHOSEN in settings:
            totals[CHOSEN] = " ".join(settings[CHOSEN])
        names, note = [run.name for run in runs], bias_noted("", runs)
        with Task("drawing figures 9 and 10"):
            figures = {"figure9_10": draw_classes(classes, totals, names, heading(runs))}
            figures |= contact_sheets(examples, dataset, names, config.images, note)
        result = {
            "kind": "disagree",
            "title": f"Where {names[0]} (A) and {names[1]} (B) disagree, {dataset.name}",
            "runs": relative_paths(runs),
            "figures": [
                {**CAPTIONS[stem], "caption": bias_noted(CAPTIONS[stem]["caption"], runs), "file": f"figures/{stem}.png"}
                for stem in figures
            ],
            "numbers": shown(totals, noisy=dataset.noisy),
            "settings": settings,
            "seconds": round(time.perf_counter() - begin, 2),
        }
        listed = disagreed_rows(examples, dataset.class_names)
        with exclusive(folder), Task("writing figures 9 and 10"):
            write(folder, {"examples": listed, "classes": classes, "splits": totals}, figures, result)
    show_result(result, runs, folder)
    return folder


def check_same_examples(runs: Sequence[Run]) -> None:
    """Raise RuntimeError where runs differ in a data flag or in the content of their data files."""
    check_comparable(runs, ["data"])
    if runs[0].dataset.fingerprint != runs[1].dataset.fingerprint:
        raise RuntimeError(f"{runs[0].folder.path} and {runs[1].folder.path} were trained on different data files")


def finished_result(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What result.json holds, when it is of these settings and its figures are there."""
    try:
        result = json.loads((folder / "result.json").read_text())
        there = result["settings"] == settings and all((folder / figure["file"]).is_file() for figure in result["figures"])
        return result if there and all(isinstance(row, dict) for row in result["numbers"]) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write(folder: Path, tables: dict[str, pandas.DataFrame], figures: dict[str, Figure], result: dict[str, Any]) -> None:
    """Replace a comparison; while its tables and figures change there is no result.json."""
    (folder / "result.json").unlink(missing_ok=True)
    for former in (folder / "figures").glob("*"):
        if former.stem not in figures:
            former.unlink()
    for name, table in tables.items():
        write_atomic(folder / f"{name}.csv", csv_text(table))
    for stem, figure in figures.items():
        save_figure(figure, folder / "figures" / stem)
    write_atomic(folder / "result.json", json.dumps(result, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------- predictions


def every_example(runs: Sequence[Run], batch_size: int) -> pandas.DataFrame:
    """A row for every training and test example, under the name of its split, see `example_table`."""
    splits = splits_of(runs[0].dataset)
    found = [example_table(*(predict(run, split, batch_size) for run in runs), split) for split in splits.values()]
    return pandas.concat(found, keys=splits, names=["split", "row"])


def splits_of(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "test": dataset.test}


def predict(run: Run, split: Split, batch_size: int) -> Tensor:
    """(N, C) logits of a run's network over a split, un-augmented.

    Raises:
        RuntimeError: they are not finite.
    """
    batches = tracked(run.dataset.batches(split, batch_size), f"predictions of {run.name}", "batches")
    found = logits_of(run.network, (inputs for inputs, _, _ in batches))
    if not torch.isfinite(found).all():
        raise RuntimeError(f"{run.folder.path}: the network gives values that are not finite; has its training diverged?")
    return found


@torch.no_grad()
def logits_of(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """(N, C) logits on the CPU, in eval mode and full precision."""
    with evaluation_mode(network), full_precision(next(network.parameters()).device):
        return torch.cat([network(inputs) for inputs in batches]).cpu()


def example_table(logits_a: Tensor, logits_b: Tensor, split: Split) -> pandas.DataFrame:
    """What two networks say of each example of a split: `compare_logits` with index and labels."""
    columns = {"index": split.indices, "given_label": split.labels, "true_label": split.true_labels}
    labels = pandas.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    return labels.join(compare_logits(logits_a, logits_b))


def compare_logits(logits_a: Tensor, logits_b: Tensor) -> pandas.DataFrame:
    """N rows: predicted class and its probability from either (N, C) logits, and how far the distributions are apart.

    `divergence` is the Jensen-Shannon divergence (KL(p‖m) + KL(q‖m)) / 2 with m = (p + q) / 2, in nats: 0 for equal
    predictive distributions, log 2 for ones without a class in common (Lin 1991).
    """
    p, q = (logits.double().softmax(1).numpy() for logits in (logits_a, logits_b))
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(1) / 2
    columns = {}
    for letter, logits, probabilities in (("a", logits_a, p), ("b", logits_b, q)):
        columns[f"prediction_{letter}"] = logits.argmax(1).numpy()
        columns[f"probability_{letter}"] = probabilities.max(1)
    return pandas.DataFrame(columns | {"divergence": divergence.clip(min=0)})


def most_disagreed(examples: pandas.DataFrame, n: int | None = None) -> pandas.DataFrame:
    """The n examples, or all, whose predicted classes differ, the largest divergence first."""
    differing = examples[examples["prediction_a"] != examples["prediction_b"]]
    return differing.sort_values(["divergence", "index"], ascending=[False, True])[:n]


# --------------------------------------------------------------------------------------------------------- statistics


def tables(examples: pandas.DataFrame, dataset: Dataset) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """(a row a split, a row a class of each), right and wrong and the classes by true labels.

    Under label noise the training split has further rows in which right and wrong and the classes are by given labels.
    """
    views = (
        [("train", "true"), ("train", "given"), ("test", "true")] if dataset.noisy else [("train", "true"), ("test", "true")]
    )
    totals, classes = [], []
    for split, label in views:
        rows = examples.loc[split]
        columns = [rows[name].to_numpy() for name in (f"{label}_label", "prediction_a", "prediction_b")]
        of_classes = by_class(*columns, dataset.class_names)
        off_chance = int((of_classes["q_value"] < SIGNIFICANT).sum())
        totals.append({"split": split, "label": label, **overall(*columns), "classes_off_chance": off_chance})
        of_classes.insert(0, "split", split)
        of_classes.insert(1, "label", label)
        classes.append(of_classes)
    return pandas.DataFrame(totals), pandas.concat(classes)


def outcomes(labels: numpy.ndarray, a: numpy.ndarray, b: numpy.ndarray) -> pandas.DataFrame:
    """(N, 3) bools: the examples on which two predictions differ, by who is right."""
    right_a, right_b = a == labels, b == labels
    kinds = (right_a & ~right_b, right_b & ~right_a, ~right_a & ~right_b & (a != b))
    return pandas.DataFrame(dict(zip(OUTCOMES, kinds, strict=True)))


def overall(labels: numpy.ndarray, a: numpy.ndarray, b: numpy.ndarray) -> dict[str, Any]:
    """Disagreements of the predictions a and b over N examples.

    Returns:
        size; disagree (count), rate with its 95 % Wilson interval (low, high); expected_rate, see `expected_disagreement`;
        the 2x2 of right and wrong (both_right, only_a_right, only_b_right, both_wrong) and both_wrong_differently; accuracy_a,
        accuracy_b and mcnemar_p, the exact two-sided p-value for equal accuracies (McNemar 1947).
    """
    n, counts = len(labels), {name: int(column.sum()) for name, column in outcomes(labels, a, b).items()}
    only_a, only_b = counts["only_a_right"], counts["only_b_right"]
    both_right = int(((a == labels) & (b == labels)).sum())
    return {
        "size": n,
        **with_interval(sum(counts.values()), n),
        "expected_rate": expected_disagreement(labels, a, b) / n,
        "both_right": both_right,
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": n - both_right - only_a - only_b,
        "both_wrong_differently": counts["both_wrong_differently"],
        "accuracy_a": (both_right + only_a) / n,
        "accuracy_b": (both_right + only_b) / n,
        "mcnemar_p": binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0,
    }


def with_interval(disagree: int, n: int) -> dict[str, float]:
    """Count of n, rate and its 95 % Wilson interval; nan where n is 0."""
    if n == 0:
        return {"disagree": 0, "rate": numpy.nan, "low": numpy.nan, "high": numpy.nan}
    interval = binomtest(disagree, n).proportion_ci(method="wilson")
    return {"disagree": disagree, "rate": disagree / n, "low": interval.low, "high": interval.high}


def expected_disagreement(labels: numpy.ndarray, a: numpy.ndarray, b: numpy.ndarray) -> float:
    """How many examples would be disagreed on if the two predicted independently of each other within every class.

    sum_c n_c (1 - sum_k A_ck B_ck), with n_c examples of class c and the shares A_ck, B_ck of them that are predicted as k:
    the mean over all permutations of b within the classes. Fewer disagreements: the same examples are hard for both.
    """
    classes = 1 + max(labels.max(), a.max(), b.max())
    of_a, of_b = (numpy.bincount(labels * classes + x, minlength=classes**2).reshape(classes, classes) for x in (a, b))
    sizes = numpy.bincount(labels, minlength=classes)
    return float(len(labels) - ((of_a * of_b).sum(1) / sizes.clip(min=1)).sum())


def by_class(labels: numpy.ndarray, a: numpy.ndarray, b: numpy.ndarray, class_names: Sequence[str]) -> pandas.DataFrame:
    """Disagreements within every class, and whether they are more or fewer than chance has it.

    Chance: the D disagreements fall on D of the N examples at random, so that a class of n_c gets a hypergeometric number of
    them. p_value is two-sided (Fisher's exact test: as probable as the count found, or less), q_value its
    Benjamini-Hochberg adjustment over the classes; chance_low and chance_high are the 2.5 % and 97.5 % quantiles as rates.

    Returns:
        one row a class: class, name, size, disagree, rate, low, high (95 % Wilson), only_a_right, only_b_right,
        both_wrong_differently, chance_rate, chance_low, chance_high, p_value, q_value; nan for a class without examples.
    """
    of_class = outcomes(labels, a, b).groupby(labels).sum().reindex(range(len(class_names)), fill_value=0)
    sizes = numpy.bincount(labels, minlength=len(class_names))
    counts, n = of_class.sum(axis=1).to_numpy(), len(labels)
    total = int(counts.sum())
    rows = []
    for name, size, count in zip(class_names, sizes.tolist(), counts.tolist(), strict=True):
        quantiles = hypergeom.ppf([0.025, 0.975], n, total, size) / size if size else [numpy.nan] * 2
        others = (total - count, n - size - total + count)
        p_value = fisher_exact([(count, size - count), others]).pvalue if size else numpy.nan
        chance = {"chance_rate": total / n, "chance_low": quantiles[0], "chance_high": quantiles[1], "p_value": p_value}
        rows.append({"name": name, "size": size, **with_interval(count, size), **chance})
    table = pandas.DataFrame(rows)
    table.insert(0, "class", range(len(table)))
    for position, name in enumerate(OUTCOMES, table.columns.get_loc("high") + 1):
        table.insert(position, name, of_class[name])
    tested = table["p_value"].notna()
    table.loc[tested, "q_value"] = false_discovery_control(table.loc[tested, "p_value"])
    return table


# ------------------------------------------------------------------------------------------------ what people are shown


def with_names(rows: pandas.DataFrame, class_names: Sequence[str]) -> pandas.DataFrame:
    """Rows with the names of classes instead of their numbers."""
    return rows.assign(**{column: [class_names[c] for c in rows[column]] for column in NAMED})


def disagreed_rows(examples: pandas.DataFrame, class_names: Sequence[str]) -> pandas.DataFrame:
    """examples.csv: every example that is disagreed on, the largest divergence of its split first, classes by name."""
    found = [most_disagreed(examples.loc[split]).assign(split=split) for split in SHEETS]
    table = with_names(pandas.concat(found[::-1]), class_names)
    return table[["split", *table.columns.drop("split")]]


def contact_sheets(
    examples: pandas.DataFrame, dataset: Dataset, names: Sequence[str], n: int, note: str = ""
) -> dict[str, Figure]:
    """{stem: figure} of the n most disagreed images of either split, with a note or "" below; prints why there is none."""
    if n == 0:
        return {}
    if dataset.train.inputs.ndim != 4:
        print(f"no contact sheet: {dataset.name} has no images")
        return {}
    figures = {}
    for split, stem in SHEETS.items():
        rows = most_disagreed(examples.loc[split], n)
        if rows.empty:
            print(f"no contact sheet of {split}: no example is disagreed on")
            continue
        pixels = splits_of(dataset)[split].inputs[torch.tensor(rows.index.to_numpy())].cpu()
        images = (pixels.permute(0, 2, 3, 1) / dataset.scale).numpy()
        figures[stem] = draw_sheet(images, with_names(rows, dataset.class_names), names, split, note)
    return figures


def shown(totals: pandas.DataFrame, *, noisy: bool) -> list[dict[str, Any]]:
    """splits.csv for a terminal or a page: counts, and rates and p-values rounded."""
    return [
        {
            "split": f"{row.split}, {row.label} labels" if noisy else row.split,
            "examples": row.size,
            "disagree": row.disagree,
            "rate (95 %)": f"{row.rate:.3f} ({row.low:.3f}-{row.high:.3f})",
            "if independent": f"{row.expected_rate:.3f}",
            "both right": row.both_right,
            "only A right": row.only_a_right,
            "only B right": row.only_b_right,
            "both wrong": row.both_wrong,
            "McNemar p": f"{row.mcnemar_p:.2g}",
            "classes off chance": row.classes_off_chance,
        }
        for row in totals.astype(object).itertuples()
    ]


def relative_paths(runs: Sequence[Run]) -> list[str]:
    """Run folders as seen from the first one's results root."""
    return [os.path.relpath(run.folder.path.resolve(), runs[0].results_root) for run in runs]


def heading(runs: Sequence[Run]) -> str:
    """Which runs are drawn, a line each, and the note where one is biased."""
    paths = zip("AB", relative_paths(runs), runs, strict=True)
    lines = [f"{letter}: {marked(path, run.biased)}" for letter, path, run in paths]
    note = bias_noted("", runs)
    return "\n".join([*lines, note] if note else lines)

"""Where two solutions disagree: how often, in which classes more than chance, on which examples (paper, figures 9 and 10)."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from matplotlib.figure import Figure
from scipy.special import rel_entr
from torch import Tensor, nn

from helper.metrics.parameters import evaluation_mode, full_precision
from helper.progress import Task, tracked
from helper.schema.config import flag, flatten
from helper.system.locks import exclusive
from loader.dataset import Dataset, Split
from optim.checkpoint import content_hash
from study.bias import CHOSEN, bias_noted, marked
from study.comparing.comparison import Comparison, Drawn, PredictionConfig, check_comparable, chosen_by_test, open_pair
from study.comparing.contact_sheet import can_be_shown
from study.comparing.figures_disagreement import CAPTIONS, draw_classes, draw_sheet
from study.comparing.outcomes import tables
from study.runs import LoadedRun

FILES = ("examples.csv", "classes.csv", "splits.csv")
SHEETS = {"test": "most_disagreed", "train": "most_disagreed_train"}
NAMED = ("given_label", "true_label", "prediction_a", "prediction_b")  # columns of classes


@dataclass(frozen=True)
class DisagreeConfig(PredictionConfig):
    """Disagreement: how the networks are run, and what is shown."""

    images: int = flag(36, "most disagreed images on a contact sheet; 0: no sheet", low=0, high=600)


def disagree(config: DisagreeConfig, a: Path | str, b: Path | str) -> Path:
    """Where the predictions of two runs differ, on training and test examples, class by class (paper, figures 9 and 10).

    Writes examples.csv, classes.csv, splits.csv, figures and last result.json, and prints the table of the splits.

    Returns:
        `<results_root>/comparisons/disagree_<A>_<B>`; nothing is computed when it is there for these weights and settings.
    Raises:
        RuntimeError: not finished runs, one network given twice, runs on different data.
    """
    started = time.perf_counter()
    runs = open_pair(a, b, config.device, config.root, trust_code=config.trust_code)
    check_same_examples(runs)
    comparison = Comparison("disagree", runs, settings_of(config, runs), FILES)
    result = comparison.stored()
    if result:
        print("already there for these weights and settings")
    else:
        result = carry_out(comparison, config, started)
    comparison.show(result)
    return comparison.folder


def check_same_examples(runs: Sequence[LoadedRun]) -> None:
    """Raise RuntimeError where runs differ in a data flag or in the content of their data files."""
    check_comparable(runs, ["data"])
    if runs[0].dataset.fingerprint != runs[1].dataset.fingerprint:
        raise RuntimeError(f"{runs[0].folder.path} and {runs[1].folder.path} were trained on different data files")


def settings_of(config: DisagreeConfig, runs: Sequence[LoadedRun]) -> dict[str, Any]:
    """What a disagreement depends on: the options and both networks. Raises RuntimeError: they are one."""
    a, b = (content_hash(run.network.state_dict(), run.mask) for run in runs)
    if a == b:
        paths = " and ".join(str(run.folder.path) for run in runs)
        raise RuntimeError(f"{paths} hold the same network, which disagrees with itself nowhere; give two different runs")
    options = {name: value for name, value in flatten(config).items() if name != "root"}
    return options | {"checkpoint_a": a, "checkpoint_b": b} | chosen_by_test(dict(zip("AB", runs, strict=True)))


def carry_out(comparison: Comparison, config: DisagreeConfig, started: float) -> dict[str, Any]:
    """Compute, draw and write; the result."""
    runs, dataset = comparison.runs, comparison.runs[0].dataset
    names = [run.name for run in runs]
    examples = every_example(runs, config.batch_size)
    totals, classes = tables(examples, dataset)
    if CHOSEN in comparison.settings:
        totals[CHOSEN] = " ".join(comparison.settings[CHOSEN])
    with Task("drawing figures 9 and 10"):
        figures = {"figure9_10": draw_classes(classes, totals, names, heading(comparison))}
        figures |= contact_sheets(examples, dataset, names, config.images, bias_noted("", runs))
    listed = disagreed_rows(examples, dataset.class_names)
    title = f"Where {names[0]} (A) and {names[1]} (B) disagree, {dataset.name}"
    seconds = time.perf_counter() - started
    with exclusive(comparison.folder), Task("writing figures 9 and 10"):
        comparison.clear()
        comparison.write_tables(dict(zip(FILES, (listed, classes, totals), strict=True)))
        drawn = [Drawn(stem, figure=figure, **CAPTIONS[stem]) for stem, figure in figures.items()]
        return comparison.finish(title, drawn, shown(totals, noisy=dataset.noisy), seconds)


# ------------------------------------------------------------------------------------------------------- predictions


def every_example(runs: Sequence[LoadedRun], batch_size: int) -> pandas.DataFrame:
    """A row for every training and test example, under the name of its split, see `example_table`."""
    splits = splits_of(runs[0].dataset)
    found = [example_table(*(predict(run, split, batch_size) for run in runs), split) for split in splits.values()]
    return pandas.concat(found, keys=splits, names=["split", "row"])


def splits_of(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "test": dataset.test}


def predict(run: LoadedRun, split: Split, batch_size: int) -> Tensor:
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
    if not can_be_shown(dataset.input_shape):
        print(f"no contact sheet: {dataset.name} has no images that could be shown")
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


def heading(comparison: Comparison) -> str:
    """Which runs are drawn, a line each, and the note where one is biased."""
    paths = zip("AB", comparison.paths, comparison.runs, strict=True)
    lines = [f"{letter}: {marked(path, run.biased)}" for letter, path, run in paths]
    note = bias_noted("", comparison.runs)
    return "\n".join([*lines, note] if note else lines)

"""Two predictions for the same examples: how often they differ and who is right, over a split and class by class."""

from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from scipy.stats import binomtest, false_discovery_control, fisher_exact, hypergeom

from loader.dataset import Dataset
from study.comparing.figures_disagreement import SIGNIFICANT

OUTCOMES = ("only_a_right", "only_b_right", "both_wrong_differently")  # the three ways to disagree


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

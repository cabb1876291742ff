"""The report's tables: every number under its own heading, and the right way up."""

import math

import pandas
import pytest

from helper.metrics.main import METRICS
from study.reporting.aggregate import compared
from study.reporting.pairs import AS_LONG
from study.reporting.regimes import Gap
from study.reporting.sheets import explained, gap_rows, gap_tests, sharpness, table1, table2
from study.reporting.statistics import Interval


def gap(mean: float) -> Gap:
    """A gap each of whose numbers differs from the others."""
    return Gap(
        interval=Interval(mean, mean - 0.011, mean + 0.011, 3, "t, 3 seeds", 3), p_value=0.02, p_holm=0.04,
        joint=(mean - 0.015, mean + 0.015), equivalence=(mean - 0.0091, mean + 0.0091), detectable=0.017,
        detectable_holm=0.021, images=0.013, state="positive",
    )  # fmt: skip


def ratio(mean: float) -> Interval:
    return Interval(mean, mean - 0.5, mean + 0.5, 3, "t, 3 seeds", 3)


ROW = {
    "study": "abc", "finetune": "sparse-finetune", "scratch": "sparse-scratch", "budget": AS_LONG, "sparsity": 0.9, "seeds": 3,
    "runs": 4, "train_gap": gap(0.052), "test_gap": gap(0.023), "regime": "optimization",
    "fisher_ratio": ratio(2), "hessian_ratio": ratio(3), "jacobian_ratio": ratio(4), "trend_f": ratio(5), "trend_s": ratio(6),
    "unreliable": (),
}  # fmt: skip


def rows_of(sheet) -> list[dict]:
    """Each row as {(heading, how often it stood before): cell}."""
    headings = [(name, sheet.columns[:index].count(name)) for index, name in enumerate(sheet.columns)]
    return [
        {name if not n else f"{name} {n + 1}": cell for (name, n), cell in zip(headings, row, strict=True)}
        for row in sheet.rows
    ]


def test_table_1_has_each_gap_with_its_interval_and_power():
    (row,) = rows_of(table1(pandas.DataFrame([ROW]), 0.01))
    assert row == {
        "share pruned": 0.9, "regime": "optimization", "seeds": "3 (4 runs)", "training gap": "0.052 [0.041, 0.063]",
        "shows from": 0.017, "test gap": "0.023 [0.012, 0.034]", "shows from 2": 0.017, "finetuned": "sparse-finetune",
        "scratch": "sparse-scratch", "scratch is trained for": "as many epochs",
    }  # fmt: skip


def test_what_table_1_rests_on_has_each_number_under_its_heading():
    training, test = rows_of(gap_tests(pandas.DataFrame([ROW]), 0.01))
    shared = {
        "share pruned": 0.9, "p": 0.02, "p (Holm)": 0.04, "is": "positive", "shows from": 0.017, "with Holm": 0.021,
        "images show from": 0.013, "finetuned": "sparse-finetune", "scratch": "sparse-scratch",
    }  # fmt: skip
    assert training == shared | {
        "gap": "training gap", "together": "[0.037, 0.067]", "90 %": "[0.0429, 0.0611]",
    }  # fmt: skip
    assert test == shared | {"gap": "test gap", "together": "[0.008, 0.038]", "90 %": "[0.0139, 0.0321]"}


def test_gaps_csv_has_the_same_numbers():
    training, test = gap_rows([pandas.DataFrame([ROW])]).to_dict("records")
    for row, name, mean in ((training, "training", 0.052), (test, "test", 0.023)):
        assert row == {
            "study": "abc", "sparsity": 0.9, "finetune": "sparse-finetune", "scratch": "sparse-scratch", "budget": AS_LONG,
            "seeds": 3, "runs": 4, "gap": name, "mean": mean, "low": mean - 0.011, "high": mean + 0.011, "p": 0.02,
            "p_holm": 0.04, "low_together": mean - 0.015, "high_together": mean + 0.015, "low_90": mean - 0.0091,
            "high_90": mean + 0.0091, "is": "positive", "shows_from": 0.017, "shows_from_holm": 0.021,
            "images_show_from": 0.013, "regime": "optimization",
        }  # fmt: skip


def test_ratios_stand_under_their_quantities():
    (row,) = rows_of(sharpness(pandas.DataFrame([ROW])))
    headings = ("Tr F ratio", "Tr H ratio", "Jacobian ratio", "Tr F end/start, finetuned", "Tr F end/start, scratch")
    assert {name: row[name] for name in headings} == {
        name: f"{mean}.00 [{mean - 0.5:.2f}, {mean + 0.5:.2f}]" for mean, name in enumerate(headings, 2)
    }


def test_a_ratio_that_rests_on_an_unreliable_measurement_is_marked_and_explained():
    sheet = sharpness(pandas.DataFrame([ROW | {"unreliable": ("hessian_ratio", "trend_s")}]))
    (row,) = rows_of(sheet)
    assert [name for name, cell in row.items() if str(cell).endswith("] ‡")] == ["Tr H ratio", "Tr F end/start, scratch"]
    assert sheet.caption.count("may miss the true value") == 1
    assert "‡" not in sharpness(pandas.DataFrame([ROW])).caption


@pytest.mark.parametrize(
    ("side", "column", "names"),
    [
        ("finetune", "fisher", ("fisher_ratio", "trend_f")), ("scratch", "fisher", ("fisher_ratio", "trend_s")),
        ("scratch", "fisher_initial", ("trend_s",)), ("finetune", "jacobian", ("jacobian_ratio",)), ("scratch", None, ()),
    ],
)  # fmt: skip
def test_a_ratio_is_unreliable_if_any_of_its_measurements_is(side, column, names):
    quantities = ("fisher", "hessian", "jacobian", "fisher_initial")
    values = {name: [2.0, 8.0] for name in quantities} | {f"{name}_reliable": [1.0, math.nan] for name in quantities}
    sides = {name: pandas.DataFrame({"seed": [1, 2], "parent": ["a", "b"], "lottery": ["", ""], **values}) for name in SIDES}
    if column:
        sides[side].loc[1, f"{column}_reliable"] = 0.0
    assert compared(*(sides[name] for name in SIDES))["unreliable"] == names


SIDES = ("finetune", "scratch")


def test_ratios_are_scratch_over_finetuned_and_end_over_start():
    shared = {"seed": [1, 2], "parent": ["a", "b"], "lottery": ["", ""]}
    finetune = pandas.DataFrame(
        shared | {"fisher": [2.0, 8.0], "hessian": [1.0, 2.0], "jacobian": [5.0, 3.0], "fisher_initial": [1.0, 4.0]}
    )
    scratch = pandas.DataFrame(
        shared | {"fisher": [8.0, 32.0], "hessian": [3.0, 6.0], "jacobian": [1.0, 0.6], "fisher_initial": [1.0, 4.0]}
    )
    found = compared(finetune, scratch)
    means = {name: found[name].mean for name in found if name.endswith("_ratio") or name.startswith("trend")}
    assert means == pytest.approx({"fisher_ratio": 4, "hessian_ratio": 3, "jacobian_ratio": 0.2, "trend_f": 2, "trend_s": 8})
    assert (found["seeds"], found["runs"]) == (2, 2)


def test_a_quantity_without_a_unit_is_explained_without_brackets(monkeypatch):
    assert explained("fisher").endswith("(nats per squared parameter)")
    monkeypatch.setattr(type(METRICS["fisher"]), "unit", "")
    assert explained("fisher") == "Tr F, trace of the Fisher information"


def test_table_2_has_each_quantity_under_its_heading_and_as_many_seeds_as_any_of_them():
    setting = {"data": "digits", "network": "mlp", "study": "abc", "sparsity": 0.9, "mode": "dense", "series": "dense"}
    means = {"acc_train": 0.91, "acc_test": 0.81, "fisher": 71.0, "hessian": 61.0, "jacobian": 51.0}
    rows = [
        setting
        | {"quantity": name, "mean": mean, "low": math.nan, "high": math.nan, "n": n, "method": "", "runs": n}
        | {"unreliable": 0}
        for n, (name, mean) in enumerate(means.items(), 1)
    ]
    sheet = table2(pandas.DataFrame(rows))
    (row,) = rows_of(sheet)
    assert "‡" not in sheet.caption
    assert row == {
        "solution": "dense", "share pruned": 0.9, "seeds": 5, "train acc": "0.910", "test acc": "0.810", "Tr F": "71.0",
        "Tr H": "61.0", "Jacobian": "51.0",
    }  # fmt: skip
    sheet = table2(pandas.DataFrame([*rows[:3], rows[3] | {"unreliable": 1}, rows[4]]))
    (other,) = rows_of(sheet)
    assert other == row | {"Tr H": "61.0 ‡"}
    assert sheet.caption.count("may miss the true value") == 1

"""The report over runs of many methods, made up and trained."""

import itertools

import matplotlib.pyplot as plt
import pandas
import pytest
from PIL import Image

import experiment
from helper.charts.painting import paint
from helper.drawing import STYLE
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting.aggregate import over_seeds
from study.reporting.collect import collect
from study.reporting.figures_masks import density_figure
from study.reporting.figures_sparsity import SingleRuns
from study.reporting.figures_ways import WIDTH, ways_figure
from study.reporting.finished_run import families_of
from study.reporting.tidy import tidy
from tests.test_families import WAYS

SHORT = {"n_epochs": 10, "lr_milestones": "5", "loader_name": "digits_noisy"}
LABELS = (
    "sparse-finetune",
    "sparse-scratch",
    "lottery",
    "IMP",
    "random-ERK",
    "SNIP",
    "GraSP",
    "SynFlow",
    "GMP",
    "SET",
    "RigL",
    "AC/DC",
)


def write_ways(root, labels=LABELS, ratios=(0.8, 0.95), seeds=(1, 2)) -> None:
    for seed, (label, ratio) in itertools.product(seeds, [("dense", 0.9), *itertools.product(labels, ratios)]):
        flags = SHORT | WAYS[label] | {"prune_ratio": ratio, "random_state": seed, "results_root": str(root)}
        write_run(unflatten(RunConfig, flags), weights=True)


def report(capsys, root, *flags) -> tuple[str, str]:
    """(the page, what was printed on standard error)."""
    with pytest.raises(SystemExit) as stop:
        experiment.main(["report", str(root), *flags])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return (root / "report/index.html").read_text(), captured.err


def test_a_study_of_many_methods_has_figures_ranks_overlap_and_verdicts(tmp_path, capsys):
    write_ways(tmp_path)
    page, errors = report(capsys, tmp_path, "--png")
    assert errors == ""
    for title in (
        "Test accuracy of every way", "Tr F of every way", "Tr H of every way", "Memorised share of every way",
        "How dense every layer is", "What masks have in common", "How masks change while training", "Methods at equal sparsity",
        "Methods at equal cost", "What the field says, and what is seen here",
    ):  # fmt: skip
        assert title in page, title
    ranks = pandas.read_csv(tmp_path / "report/ranks.csv")
    equal = ranks[ranks["ranked_at"] == "equal sparsity"]
    assert equal.groupby("sparsity")["series"].nunique().tolist() == [len(LABELS)] * 2
    assert set(equal.loc[equal["place"] == 1, "series"]) == {"IMP"}
    for _, group in ranks[ranks["ranked_at"] == "equal cost"].groupby(["sparsity", "why"]):
        costs = group["relative_cost_with_parents"]
        assert costs.max() <= 1.1 * costs.min()
    claims = pandas.read_csv(tmp_path / "report/claims.csv")
    assert claims["claim"].nunique() == 6
    assert "agrees" in set(claims["verdict"])
    assert set(claims.loc[claims["p"].isna(), "verdict"]) == {"cannot tell"}
    drawn = list((tmp_path / "report/figures").glob("*_ways_*.png"))
    assert len(drawn) == 4
    for path in drawn:
        assert Image.open(path).width == round(WIDTH * 150)  # 400 pixels show it at three quarters of its size


def test_weights_that_are_gone_are_named_and_everything_else_is_there(tmp_path, capsys):
    write_ways(tmp_path, ("SNIP", "RigL"), ratios=(0.9,))
    (gone,) = tmp_path.glob("*/*/at-init/*-s1-*/model.pt")
    gone.unlink()
    (state,) = tmp_path.glob("*/*/dynamic/*-s2-*/state_dicts/epoch_4.pt")
    state.write_bytes(state.read_bytes()[:100])
    page, errors = report(capsys, tmp_path)
    lines = errors.splitlines()
    assert [str(path.relative_to(tmp_path)) in line for path, line in zip((gone, state), sorted(lines), strict=True)] == [
        True
    ] * 2
    assert "model.pt does not exist" in page
    assert "What masks have in common" in page


def test_a_study_with_one_kind_of_mask_has_no_such_section_and_reads_no_weights(tmp_path, capsys, monkeypatch):
    write_ways(tmp_path, ("sparse-finetune", "sparse-scratch", "lottery"), ratios=(0.8, 0.9))
    monkeypatch.setattr("study.reporting.overlap.load_stored", None)
    assert "Ways to a mask" not in report(capsys, tmp_path)[0]
    assert not (tmp_path / "report/claims.csv").exists()


def test_without_a_dense_run_there_is_no_cost_and_one_run_is_enough(tmp_path, capsys):
    write_ways(tmp_path, ("SNIP", "GMP"), ratios=(0.9,), seeds=(1,))
    for path in tmp_path.glob("*/*/dense/*/summary.json"):
        path.unlink()
    page, _ = report(capsys, tmp_path)
    assert "Methods at equal sparsity" in page
    assert "Methods at equal cost" not in page
    assert "Pareto" not in page


def test_figures_have_labels_and_their_legend_lies_outside_of_the_axes(tmp_path):
    write_ways(tmp_path)
    collection = collect(tmp_path)
    runs = tidy(collection)
    table, families = over_seeds(runs), families_of(collection.records)
    with plt.rc_context(STYLE):
        figures = [
            ways_figure(table[table["quantity"] == name], families, name, SingleRuns(runs), highest=highest, log=log)
            for name, highest, log in (("acc_test", True, False), ("fisher", False, True))
        ]
        figures.append(density_figure(collection.records))
        for figure in map(paint, figures):
            figure.canvas.draw()
            (legend,) = figure.legends
            box = legend.get_window_extent()
            labels = [text.get_text() for text in legend.get_texts()]
            assert set(labels) >= set(LABELS)
            assert len(labels) == len(set(labels))
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            for axis in figure.axes:
                assert axis.get_ylabel()
                assert not box.overlaps(axis.get_window_extent())
            assert figure.axes[-1].get_xlabel()
        plt.close("all")


def test_trained_runs_of_several_methods_are_reported(train, tmp_path, capsys):
    flags = [
        "--n_epochs",
        2,
        "--lr_milestones",
        1,
        "--limit_train",
        300,
        "--figures",
        0,
        "--hidden_dims",
        "12-8",
        "--save_fisher",
        0,
    ]
    masks = ["--prune_ratio", 0.5, "--mask_every", 2]
    for label in ("dense", "sparse-finetune", "SNIP", "random-ERK", "RigL", "GMP"):
        own = [word for name, value in WAYS[label].items() for word in (f"--{name}", value)]
        train(*flags, *own, *(masks if label in ("RigL", "GMP") else masks[:2] if label != "dense" else ()))
    page, errors = report(capsys, tmp_path)
    assert errors == ""
    assert "How masks change while training" in page
    runs = pandas.read_csv(tmp_path / "report/runs.csv").set_index("family")
    assert runs["study"].nunique() == 1
    own, total = runs["relative_cost"], runs["relative_cost_with_parents"]
    assert own["dense"] == total["dense"] == 1
    assert total["sparse-finetune"] == pytest.approx(1 + own["sparse-finetune"])
    assert 0 < own["random-ERK"] < own["GMP"] < 1

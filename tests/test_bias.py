"""What was chosen by test accuracy is marked, and the mark explained, in everything that a comparison of runs leaves behind."""

import json
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import experiment
from helper.drawing import save_figure
from study.bias import BIAS_NOTE, BIASED, CHOSEN
from tests.outcome import outcome

QUICK = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0, "--limit_train", 300, "--hidden_dims", 8)
MODES = ("sparse-scratch", "sparse-finetune")


@pytest.fixture
def runs(train):
    """runs(scratch, finetune) -> a from-scratch and a finetuned run, chosen by these values of --select."""

    def call(*choices: str) -> list[Path]:
        return [train("-m", mode, "-pr", 0.5, "--select", choice, *QUICK) for mode, choice in zip(MODES, choices, strict=True)]

    return call


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The texts of each figure that is saved, joined."""
    found = []

    def note(figure: Figure, stem: Path) -> Path:
        found.append(" ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split()))
        return save_figure(figure, stem)

    monkeypatch.setattr("study.comparing.comparison.save_figure", note)
    return found


COMPARISONS = {"interpolate": ("--points", 3, "--cosine_alphas", "0.5"), "disagree": ("--images", 2)}


def compared(kind: str, folders: list[Path]) -> tuple[str, dict, Path]:
    """(what was printed, result.json, folder) of a comparison."""
    found = outcome(experiment.main, kind, *folders, *COMPARISONS[kind])
    assert found.code == 0, found.err
    return found.out, json.loads((found.folder / "result.json").read_text()), found.folder


@pytest.mark.parametrize("kind", COMPARISONS)
@pytest.mark.parametrize("choices", [("test", "test"), ("last", "test"), ("test", "last")])
def test_a_comparison_marks_what_test_accuracy_has_chosen_and_says_so_everywhere(kind, choices, runs, drawn):
    folders = runs(*choices)
    printed, result, folder = compared(kind, folders)
    assert printed.splitlines()[-2] == BIAS_NOTE
    assert all(BIAS_NOTE in figure["caption"] for figure in result["figures"])
    assert (BIASED in result["title"]) == (kind == "disagree" or choices[1] == "test")  # that of a line names Sol-F
    assert len(drawn) == len(result["figures"]) > 1
    assert BIAS_NOTE in drawn[0]
    for texts in drawn:
        assert (BIAS_NOTE in texts) == (BIASED in texts.replace(BIAS_NOTE, ""))
    again, same, _ = compared(kind, folders)
    assert same == result
    assert again.splitlines()[-2] == BIAS_NOTE
    table = pandas.read_csv(folder / ("line.csv" if kind == "interpolate" else "splits.csv"))
    names = ("Sol-S", "Sol-F") if kind == "interpolate" else ("A", "B")
    chosen = " ".join(name for name, choice in zip(names, choices, strict=True) if choice == "test")
    assert table[CHOSEN].iloc[-1] == chosen


@pytest.mark.parametrize("kind", COMPARISONS)
def test_a_comparison_of_other_runs_has_neither_mark_nor_note(kind, runs, drawn):
    printed, result, folder = compared(kind, runs("last", "last"))
    tables = [path.read_text() for path in folder.glob("*.csv")]
    for text in (printed, json.dumps(result, ensure_ascii=False), *drawn, *tables):
        assert BIASED not in text
        assert CHOSEN not in text


def test_only_the_solutions_that_were_chosen_so_are_marked_on_the_lines(runs):
    _, result, folder = compared("interpolate", runs("test", "last"))
    line = pandas.read_csv(folder / "line.csv")
    assert line.groupby("path")[CHOSEN].first().fillna("").to_dict() == {
        "Init-S -> Sol-F": "", "Init-F -> Sol-F": "", "Sol-S -> Sol-F": "Sol-S",
    }  # fmt: skip
    assert {row["of"] for row in result["numbers"]} == {
        "Init-S -> Sol-F", "Init-F -> Sol-F", f"Sol-S {BIASED} -> Sol-F",
    }  # fmt: skip


def test_figures_that_are_drawn_later_have_the_marks_too(runs, drawn):
    folders = runs("test", "last")
    outcome(experiment.main, "interpolate", *folders, *COMPARISONS["interpolate"], "--figures", 0)
    assert drawn == []
    compared("interpolate", folders)
    assert f"Sol-S {BIASED} → Sol-F" in drawn[0]
    assert BIAS_NOTE in drawn[0]

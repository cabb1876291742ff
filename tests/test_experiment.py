import json

import pandas
import pytest

import experiment

QUICK = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "-ms", 50, "-mt", 2)


@pytest.fixture
def results(train, tmp_path):
    for seed in (1, 2, 3):
        for mode in ("dense", "sparse-finetune", "sparse-scratch"):
            train("-m", mode, "-rs", seed, "-pr", 0.8, *QUICK)
    train("-m", "sparse-scratch", "-rs", 1, "-pr", 0.8, "--weight_decay", 0, *QUICK)
    return tmp_path


def test_compare_averages_over_seeds_and_keeps_settings_apart(results, capsys):
    experiment.main(["compare", "--results_root", str(results)])
    printed = capsys.readouterr().out
    table = pandas.read_csv(results / "comparison.csv")
    assert table["seeds"].tolist().count(3) == 3
    finetune = table[table["mode"] == "sparse-finetune"].iloc[0]
    summaries = [json.loads(p.read_text()) for p in results.glob("*/*/sparse-finetune/*/summary.json")]
    assert finetune["acc_test_mean"] == pytest.approx(sum(s["acc_test"] for s in summaries) / 3)
    assert finetune["acc_test_std"] == pytest.approx(pandas.Series([s["acc_test"] for s in summaries]).std())
    assert "weight_decay 0.0" in printed
    assert (results / "comparison.png").exists()


def test_compare_leaves_out_and_names_what_is_damaged(results, capsys):
    broken = next(results.glob("*/*/dense/*/summary.json"))
    broken.write_text("{}")
    experiment.main(["compare", "-rr", str(results)])
    assert f"left out {broken.parent}" in capsys.readouterr().err


def test_compare_does_not_average_what_was_measured_differently(train, tmp_path):
    train("-rs", 1, *QUICK)
    train("-rs", 2, "--metric_params", "weights", *QUICK)
    experiment.main(["compare", "-rr", str(tmp_path)])
    assert pandas.read_csv(tmp_path / "comparison.csv")["seeds"].tolist() == [1, 1]


def test_compare_without_runs_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.main(["compare", "-rr", str(tmp_path)])
    assert "no finished run under" in str(stop.value)


def test_unknown_commands_are_refused_with_the_near_match(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.main(["compar"])
    assert stop.value.code == 2
    assert "did you mean compare?" in capsys.readouterr().err

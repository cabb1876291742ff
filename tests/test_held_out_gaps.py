"""Gaps over all examples that runs were not trained on: which examples those are, and what is said of the difference."""

import re
import sys

import pytest
import torch
from scipy import stats

from loader.main import DataConfig, load_dataset
from optim.model import load_run
from scripts import held_out_gaps

FLAGS = (
    "--net_name", "mlp", "--hidden_dims", "16", "--n_epochs", 3, "--lr_milestones", 2, "--prune_ratio", 0.5,
    "--save_snr", 0, "--save_fisher", 0, "--figures", 0, "--limit_train", 300,
)  # fmt: skip


def right_by_hand(folder) -> tuple[int, int]:
    """(right, of how many): every example of the digits whose position is not among those trained on, one by one."""
    network, _, config = load_run(folder)
    own, whole = load_dataset(config.data), load_dataset(DataConfig())
    seen = set(own.train.indices.tolist())
    new = [i for i, index in enumerate(whole.train.indices.tolist()) if index not in seen]
    inputs = torch.cat([whole.train.inputs[new], whole.test.inputs])
    labels = torch.cat([whole.train.labels[new], whole.test.labels])
    with torch.no_grad():
        return int((network(whole.normalise(inputs)).argmax(1) == labels).sum()), len(labels)


def test_accuracies_are_those_of_the_examples_that_no_run_has_seen(train):
    folder = train(*FLAGS)
    accuracies, n = held_out_gaps.measured([str(folder)], None)
    right, expected = right_by_hand(folder)
    assert n == expected
    assert list(accuracies.values()) == [pytest.approx(right / expected)]


def test_examples_of_a_validation_split_are_new_as_well(train):
    folder = train(*FLAGS, "--val_size", 0.5)
    _, n = held_out_gaps.measured([str(folder)], None)
    assert n == right_by_hand(folder)[1]


@pytest.mark.parametrize("method", ["reducible_loss", "loss"])
@pytest.mark.parametrize("last", [False, True])
def test_examples_that_a_scorer_was_trained_on_are_not_new_to_any_of_the_runs(train, method, last):
    """A reducible run has chosen its examples by them; runs that are set against it are measured on the same ones."""
    flags = (*FLAGS, "--val_size", 0.5)
    plain, chosen = train(*flags), train(*flags, "--train_subset", 1, "--subset_ratio", 0.5, "--subset_method", method)
    accuracies, n = held_out_gaps.measured([str(run) for run in ((plain, chosen) if last else (chosen, plain))], None)
    assert len(accuracies) == 2
    assert n == right_by_hand(plain)[1] - (150 if method == "reducible_loss" else 0)


def test_labels_are_the_true_ones_where_training_had_others(train):
    folder = train(*FLAGS, "--train_noisy", 1, "--noise_ratio", 0.4)
    accuracies, n = held_out_gaps.measured([str(folder)], None)
    right, expected = right_by_hand(folder)
    assert (n, list(accuracies.values())) == (expected, [pytest.approx(right / expected)])


def test_the_table_has_the_paired_t_interval_of_the_differences(train, monkeypatch, capsys):
    runs = {mode: [train(*FLAGS, "--mode", mode, "--random_state", seed) for seed in (1, 2, 3)] for mode in
            ("sparse-finetune", "sparse-scratch")}  # fmt: skip
    shares = {mode: [right_by_hand(folder)[0] / right_by_hand(folder)[1] for folder in runs[mode]] for mode in runs}
    differences = [a - b for a, b in zip(*shares.values(), strict=True)]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["held_out_gaps.py", *(str(folder) for folders in runs.values() for folder in folders)])
    held_out_gaps.main()
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    written = [float(number) for number in re.findall(r"-?[\d.]+", cells[5])]
    assert written == pytest.approx([sum(differences) / 3, low, high], abs=1e-2 * (high - low))
    assert float(cells[6]) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.1)


def test_runs_on_other_examples_are_refused(train):
    folders = [str(train(*FLAGS)), str(train(*FLAGS, "--split_seed", 1))]
    with pytest.raises(SystemExit, match="other examples"):
        held_out_gaps.measured(folders, None)


def test_runs_whose_weights_were_chosen_by_such_examples_are_refused(train):
    with pytest.raises(SystemExit, match="--select test"):
        held_out_gaps.measured([str(train(*FLAGS, "--select", "test"))], None)


def test_test_examples_that_were_left_out_count_as_well(train):
    folder = train(*FLAGS, "--limit_test", 50)
    assert held_out_gaps.measured([str(folder)], None)[1] == right_by_hand(folder)[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "there is one"),
        (("--mode", "sparse-scratch", "--random_state", 2), "no seed is in both settings"),
        (("--mode", "sparse-scratch", "--pretrain_model_path", "OTHER"), "--pretrain_model_path"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused_in_a_line_before_any_is_measured(train, monkeypatch, flags, said):
    other = train(*FLAGS, "--random_state", 1)
    run = train(*FLAGS, *(other if flag == "OTHER" else flag for flag in flags))
    monkeypatch.setattr(sys, "argv", ["held_out_gaps.py", str(other), str(run)])
    monkeypatch.setattr(held_out_gaps, "measured", None)
    with pytest.raises(SystemExit, match=said):
        held_out_gaps.main()

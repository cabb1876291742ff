"""`experiment.py list` and `show`: which runs, in which order, with which numbers; conditions are read and never run."""

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest

import experiment
import run as command_line
from helper.command_line.parsing import parse
from helper.schema.config import flatten, unflatten
from helper.system.versions import ROOT
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_identity
from scripts.made_up_runs import write_run
from study.reporting.condition import NUMBER, SWITCH, TEXT, Unclear, read_condition
from study.reporting.facts import command_of
from study.reporting.text_table import fitted
from tests.edited import edit_summary
from tests.outcome import Outcome, outcome

KINDS = {"mode": TEXT, "network": TEXT, "sparsity": NUMBER, "acc_val": NUMBER, "acc_test": NUMBER, "nesterov": SWITCH}
RUN = {"mode": "dynamic", "network": "mlp-8", "sparsity": 0.9, "acc_val": None, "acc_test": 0.7, "nesterov": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven finished runs and one that is not."""
    path = tmp_path_factory.mktemp("listing") / "results"
    for seed in (1, 2):
        write(path, mode="dense", random_state=seed)
        write(path, mode="dynamic", prune_ratio=0.95, random_state=seed)
        write(path, mode="sparse-scratch", prune_ratio=0.5, random_state=seed)
    write(path, mode="dense", random_state=3, select="test")
    write(path, mode="dense", random_state=4).summary.unlink()
    return path


def write(root, **flags) -> RunFolder:
    return write_run(unflatten(RunConfig, {"results_root": str(root), **flags}))


def listed(root, *words) -> Outcome:
    return outcome(experiment.main, "list", root, *words)


def cells(root, *words) -> list[dict[str, str]]:
    found = listed(root, "--csv", *words)
    assert found.code == 0, found.err
    return list(csv.DictReader(io.StringIO(found.out)))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('mode == "dynamic"', True),
        ('mode == "dynamic" and sparsity > 0.9', False),
        ("0.5 < sparsity <= 0.9", True),
        ("not sparsity < 0.9 and (acc_test > 1 or acc_test >= 0.7)", True),
        ('mode in ("dense", "dynamic")', True),
        ('mode not in ["dense", "dynamic"]', False),
        ('"mlp" in network', True),
        ("sparsity in {0.5, 0.9}", True),
        ("sparsity == -1e-3", False),
        ("sparsity > acc_test", True),
        ("acc_val > 0", False),
        ("acc_val <= 0", False),
        ("acc_val != 0.5", False),
        ("acc_val not in (0.5, 0.6)", False),
        ("acc_val == None and acc_test != None", True),
        ("nesterov", True),
        ("not nesterov or nesterov == 0", False),
        ("nesterov == True", True),
    ],
)
def test_a_condition_means_what_python_means_and_what_is_missing_compares_with_nothing(condition, expected):
    assert read_condition(condition, KINDS).holds(RUN.__getitem__) is expected


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ('mod == "dense"', "mod: no such column; did you mean mode?"),
        ("sparsty > 0.9", "did you mean sparsity?"),
        ("mode == dense", "dense: no such column"),
        ('sparsity > "0.9"', "sparsity is a number and '0.9' is a text".replace("'", '"')),
        ("mode > 3", "mode is a text and 3 is a number"),
        ("3 in sparsity", "in sparsity: expected a text, or values in parentheses"),
        ('sparsity in (0.5, "0.9")', "cannot be compared"),
        ("acc_val < None", "cannot be compared"),
        ("(mode == network) == 1", "cannot be compared"),
        ("sparsity", "sparsity is a number and has to be compared with something"),
        ("mode and nesterov", "mode is a text and has to be compared"),
        ('mode = "dense"', "compare by =="),
        ("sparsity >", "cannot be read"),
        ("", "cannot be read"),
        ("sparsity > 1\nimport os", "cannot be read"),
        ("mode == sparse-scratch", "a text stands in quotes"),
        ("mode is None", "compare by =="),
        ("__import__('os').system('true') == 0", "may not stand there"),
        ("mode.__class__ == 1", "may not stand there"),
        ("[x for x in (1, 2)] == 1", "may not stand there"),
        ("sparsity > 0.5 & acc_test", "may not stand there"),
        ("(lambda: 1) == 1", "may not stand there"),
        ('f"{mode}" == "dense"', "may not stand there"),
        ("mode == b'dense'", "may not stand there"),
        ("sparsity == 1j", "may not stand there"),
        ("-mode == 1", "may not stand there"),
        ("-" * 3000 + "1 == sparsity", ""),
        ("not " * 2000 + "nesterov", ""),
        ("(" * 500 + "nesterov" + ")" * 500, ""),
        ("nesterov and " * 2000 + "nesterov", "more than 10,000 characters"),
        ("sparsity == " + "9" * 6000, "cannot be read"),
        ("nesterov\0", ""),
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(condition, words):
    with pytest.raises(Unclear) as refused:
        read_condition(condition, KINDS)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_list_chooses_sorts_and_counts_runs(root):
    found = listed(root, "--where", 'mode == "dynamic" and sparsity > 0.9')
    assert (found.code, found.out.splitlines()[-1]) == (0, "2 of 7 finished runs")
    assert found.out.count("/dynamic/") == 2
    assert found.err.splitlines() == ["not finished: 1; experiment.py status has them"]
    accuracies = [float(row["acc_test"]) for row in cells(root, "--sort", "acc_test", "--columns", "acc_test")]
    assert len(accuracies) == 7
    assert accuracies == sorted(accuracies) != sorted(accuracies, reverse=True)
    order = [
        (row["mode"], int(row["seed"])) for row in cells(root, "--sort", "mode,seed", "--descending", "--columns", "mode,seed")
    ]
    assert order == sorted(order, reverse=True)


def test_csv_has_the_numbers_of_summaries_and_flags_to_the_last_digit(root):
    for row in cells(root, "--columns", "run,acc_test,fisher,sparsity,lr,nesterov,train_budget,training_macs"):
        summary = json.loads((root / row["run"] / "summary.json").read_text())
        assert float(row["acc_test"]) == summary["acc_test"]
        assert float(row["fisher"]) == summary["metrics"]["fisher"]["value"]
        assert float(row["sparsity"]) == summary["sparsity_requested"]
        assert int(row["training_macs"]) == summary["training_macs"]
        assert (float(row["lr"]), row["nesterov"], row["train_budget"]) == (0.1, "0", "")


def test_every_column_can_be_asked_for_and_runs_without_a_value_come_last(root):
    rows = cells(root, "--columns", "all")
    assert {"run", "hash", "megabytes", "finished", "batch_size"} <= rows[0].keys()
    for descending in (0, 1):
        found = cells(root, "--sort", "training_macs_with_parents,run", "--descending", descending)
        assert len(found) == 7
    values = [row["prune_ratio"] for row in cells(root, "--columns", "prune_ratio", "--sort", "acc_val")]
    assert len(values) == 7


def test_biased_accuracies_carry_their_mark_and_its_note(root):
    out = listed(root).out
    assert sum("†" in line for line in out.splitlines()) == 2  # the run, and the note
    assert "†" not in listed(root, "--where", 'select == "last"').out


def test_damaged_runs_are_said_in_a_line_each_and_the_others_are_listed(tmp_path):
    runs = [write(tmp_path, mode="dense", random_state=seed) for seed in range(5)]
    runs[1].summary.write_text("{")
    runs[2].config.write_text(runs[2].config.read_text().replace("batch_size: 128", "batch_size: 64"))
    runs[3].config.unlink()
    edit_summary(runs[4].path, lambda summary: summary.update(acc_test="high"))
    found = listed(tmp_path)
    assert (found.code, found.out.splitlines()[-1]) == (0, "1 finished runs")
    lines = found.err.splitlines()
    assert len(lines) == 4
    for run, line in zip(sorted(str(run.path) for run in runs[1:]), sorted(lines), strict=True):
        assert run in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--columns", "acc_tset"), "did you mean acc_test?"),
        (("--sort", "sede"), "did you mean seed?"),
        (("--columns", ","), "expected names of columns"),
        (("--where", "acc_tset > 1"), "did you mean acc_test?"),
        (("--where", ""), "cannot be read"),
    ],
)
def test_wrong_words_are_one_line(root, words, said):
    found = listed(root, *words)
    assert found.code == 2
    assert said in found.line
    assert words[0] in found.line


def test_a_root_that_is_none_is_one_line_and_an_empty_one_has_no_runs(tmp_path):
    assert "is no folder" in listed(tmp_path / "nowhere").line
    found = listed(tmp_path)
    assert (found.code, found.out, found.err) == (0, "0 finished runs\n", "")


def test_a_reader_that_has_enough_ends_the_list_quietly(root):
    command = [sys.executable, str(ROOT / "experiment.py"), "list", str(root), "--csv", "--columns", "all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.parametrize("width", [30, 40, 65, 66, 200])
def test_a_table_fits_its_width_and_keeps_the_end_of_names(width):
    heading = ("run", "sparsity", "acc_test", "family")
    rows = [(f"digits/mlp-128-64/dense/lr0.1-e30-s{i}-1234abc{i}", "0.95", "0.9555", "dense" * 8) for i in range(3)]
    lines, left_out = fitted(heading, rows, (False, True, True, False), width)
    assert len(lines) == 4
    assert all(len(line) <= width for line in lines)
    for i, line in enumerate(lines[1:]):
        assert f"1234abc{i}" in line
    shown = [name for name in heading if name in lines[0]]
    assert shown + left_out == list(heading)
    assert (not left_out) == (width >= 66)  # 22 + 8 + 8 + 22 characters, and 6 between them
    whole, none = fitted(heading, rows, (False, True, True, False), None)
    assert none == []
    assert "…" not in "".join(whole)


def shown(run) -> Outcome:
    return outcome(experiment.main, "show", run)


def test_show_has_settings_numbers_cost_and_the_command(root):
    run = next((root / "digits/mlp-128-64/dynamic").iterdir())
    found = shown(run)
    assert (found.code, found.err) == (0, "")
    summary = RunFolder(run).read_summary()
    for words in ("mode", "dynamic", "0.95", f"{summary['acc_test']:.4g}", "± ", "of 10,000 examples", "RigL", "as published"):
        assert words in found.out, words
    assert found.out.splitlines()[-1].startswith("  python run.py --mode dynamic")


def test_the_command_that_is_shown_is_of_the_same_run(root):
    for flags in (
        {"mode": "dynamic", "prune_ratio": 0.95},
        {"mode": "sparse-finetune", "lr_pretrain": 0.05, "hidden_dims": "16-8"},
        {"mode": "iterative", "rewind_epoch": 2, "figures": False, "n_epochs": 5, "lr_milestones": "2-3"},
        {"loader_name": "digits_noisy", "noise_ratio": 0.3},
    ):
        config = unflatten(RunConfig, flags)
        words = shlex.split(command_of(config))
        assert words[:2] == ["python", "run.py"]
        again = parse(RunConfig, command_line.USAGE, words[2:]).config
        assert run_identity(again, None) == run_identity(config, None)
        assert flatten(again)["figures"] == flatten(config)["figures"]


def test_show_of_an_unfinished_damaged_or_missing_run(tmp_path):
    run = write(tmp_path, mode="dense", random_state=1)
    run.summary.unlink()
    out = shown(run.path).out
    assert "not finished" in out
    assert "epoch 30" in out
    altered = write(tmp_path, mode="dense", random_state=2)
    (altered.path / "history.csv").write_text("epoch\n")
    for path, words in ((altered.path, "history.csv"), (tmp_path, "no run folder"), (tmp_path / "none", "no run folder")):
        found = shown(path)
        assert found.code == 1
        assert words in found.line

import itertools
import json
import math
import os
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
import torch

from helper.drawing import save_figure
from helper.schema.config import unflatten
from helper.system.seeds import stream
from loader.dataset import Dataset, Split
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.main import train_run
from study.comparing import comparison, disagreement
from study.comparing.disagreement import (
    DisagreeConfig,
    compare_logits,
    contact_sheets,
    disagree,
    disagreed_rows,
    logits_of,
    most_disagreed,
    shown,
)
from study.comparing.figures_disagreement import draw_classes
from study.comparing.outcomes import by_class, expected_disagreement, overall, tables
from tests.conftest import tiny_conv
from tests.edited import edit_summary, vouch

QUICK = {"n_epochs": 2, "lr_milestones": "1", "figures": 0, "save_snr": 0, "save_fisher": 0, "prune_ratio": 0.95}
NAMES = ("comma, inside", 'a "quoted" one', "two $ of $ them", "plain")


def empty_dataset(class_names: tuple[str, ...], *, noisy: bool = False) -> Dataset:
    empty = Split(*(torch.zeros(0, 1, dtype=torch.long) for _ in range(4)))
    return Dataset("made up", empty, empty, empty, class_names, 1.0, (0.0,), (1.0,), augmented=False, noisy=noisy)


def random_predictions(seed: int, n: int = 300, n_classes: int = 4) -> tuple[numpy.ndarray, ...]:
    """Labels of unequal classes, and two predictions that are right or wrong together more often than not."""
    draw = numpy.random.default_rng(seed)
    labels = draw.choice(n_classes, n, p=numpy.arange(1, n_classes + 1) / (n_classes * (n_classes + 1) / 2))
    a = numpy.where(draw.random(n) < 0.6, labels, draw.integers(n_classes, size=n))
    b = numpy.where(draw.random(n) < 0.5, a, numpy.where(draw.random(n) < 0.5, labels, draw.integers(n_classes, size=n)))
    return labels, a, b


# ---------------------------------------------------------------------------------------------------------- counts


def test_counts_of_a_split_are_those_of_a_plain_loop():
    labels, a, b = random_predictions(0)
    counts = dict.fromkeys(
        ("disagree", "both_right", "only_a_right", "only_b_right", "both_wrong", "both_wrong_differently"), 0
    )
    for label, of_a, of_b in zip(labels, a, b, strict=True):
        counts["disagree"] += of_a != of_b
        counts["both_right"] += of_a == label and of_b == label
        counts["only_a_right"] += of_a == label and of_b != label
        counts["only_b_right"] += of_a != label and of_b == label
        counts["both_wrong"] += of_a != label and of_b != label
        counts["both_wrong_differently"] += label not in (of_a, of_b) and of_a != of_b
    found = overall(labels, a, b)
    assert {name: found[name] for name in counts} == counts
    assert min(counts.values()) > 0
    assert found["accuracy_a"] == pytest.approx(sum(labels == a) / 300)
    assert found["accuracy_b"] == pytest.approx(sum(labels == b) / 300)


def test_counts_of_a_class_are_those_of_a_plain_loop():
    labels, a, b = random_predictions(1)
    found = by_class(labels, a, b, NAMES)
    for c, row in found.iterrows():
        members = [(of_a, of_b) for label, of_a, of_b in zip(labels, a, b, strict=True) if label == c]
        assert (row["class"], row["name"], row["size"]) == (c, NAMES[c], len(members))
        assert row["disagree"] == sum(of_a != of_b for of_a, of_b in members)
        assert row["only_a_right"] == sum(of_a == c != of_b for of_a, of_b in members)
        assert row["only_b_right"] == sum(of_b == c != of_a for of_a, of_b in members)
        assert row["both_wrong_differently"] == sum(c not in pair and pair[0] != pair[1] for pair in members)
        assert row["rate"] == row["disagree"] / row["size"]
    assert found["disagree"].sum() == overall(labels, a, b)["disagree"]


def test_equal_networks_disagree_nowhere():
    logits = torch.randn(50, 4, generator=stream(0, "logits"))
    found = compare_logits(logits, logits)
    labels, a, b = found["prediction_a"].to_numpy() % 3, found["prediction_a"].to_numpy(), found["prediction_b"].to_numpy()
    assert (found["divergence"] == 0).all()
    assert most_disagreed(found.assign(index=range(50))).empty
    total, classes = overall(labels, a, b), by_class(labels, a, b, NAMES)
    assert (total["disagree"], total["rate"], total["low"], total["mcnemar_p"]) == (0, 0, 0, 1)
    assert (classes["disagree"] == 0).all()
    assert (classes["p_value"].dropna() == 1).all()


def test_a_class_without_examples_is_listed_and_not_tested():
    labels, a, b = random_predictions(2, n_classes=3)
    found = by_class(labels, a, b, NAMES).set_index("name")
    assert found.loc["plain", ["size", "disagree"]].tolist() == [0, 0]
    assert found.loc["plain", ["rate", "p_value", "q_value"]].isna().all()
    assert found.drop("plain")["q_value"].notna().all()


def test_the_shown_table_has_each_number_under_its_heading():
    row = {
        "split": "train", "label": "given", "size": 100, "disagree": 30, "rate": 0.3, "low": 0.219, "high": 0.396,
        "expected_rate": 0.45, "both_right": 51, "only_a_right": 12, "only_b_right": 13, "both_wrong": 24,
        "both_wrong_differently": 5, "accuracy_a": 0.63, "accuracy_b": 0.64, "mcnemar_p": 0.8, "classes_off_chance": 7,
    }  # fmt: skip
    for noisy, split in ((True, "train, given labels"), (False, "train")):
        assert shown(pandas.DataFrame([row]), noisy=noisy) == [
            {
                "split": split, "examples": 100, "disagree": 30, "rate (95 %)": "0.300 (0.219-0.396)",
                "if independent": "0.450", "both right": 51, "only A right": 12, "only B right": 13, "both wrong": 24,
                "McNemar p": "0.8", "classes off chance": 7,
            }
        ]  # fmt: skip


def test_under_label_noise_right_and_wrong_are_by_true_and_by_given_labels():
    """Six training and two test examples, A predicts all true labels, B all given ones, which differ in two."""
    true, given = numpy.array([0, 0, 1, 1, 2, 2]), numpy.array([0, 1, 1, 1, 2, 0])
    columns = {"given_label": given, "true_label": true, "prediction_a": true, "prediction_b": given}
    test = pandas.DataFrame({name: [1, 2] for name in columns})
    examples = pandas.concat([pandas.DataFrame(columns), test], keys=["train", "test"])
    totals, classes = tables(examples, empty_dataset(("a", "b", "c"), noisy=True))
    assert totals[["split", "label"]].to_numpy().tolist() == [["train", "true"], ["train", "given"], ["test", "true"]]
    assert totals["accuracy_a"].tolist() == pytest.approx([1, 4 / 6, 1])
    assert totals["accuracy_b"].tolist() == pytest.approx([4 / 6, 1, 1])
    assert totals["only_a_right"].tolist() == [2, 0, 0]
    sizes = classes.groupby(["split", "label"], sort=False)["size"].apply(list)
    assert sizes.tolist() == [[2, 2, 2], [2, 3, 1], [0, 1, 1]]


# ------------------------------------------------------------------------------------------------------- divergence


def test_divergence_is_the_jensen_shannon_divergence_in_nats():
    a, b = torch.randn(2, 40, 5, generator=stream(0, "logits"))
    found = compare_logits(a, b)
    for row in range(40):
        p, q = ([math.exp(x) / sum(map(math.exp, of)) for x in of] for of in (a[row].tolist(), b[row].tolist()))
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        expected = sum(x * math.log(x / z) + y * math.log(y / z) for x, y, z in zip(p, q, m, strict=True)) / 2
        assert found["divergence"][row] == pytest.approx(expected, rel=1e-6)
        assert found["probability_a"][row] == pytest.approx(max(p), rel=1e-6)
        assert found["prediction_b"][row] == q.index(max(q))


def test_divergence_of_certain_and_opposite_predictions_is_log_2():
    found = compare_logits(torch.tensor([[500.0, -500, 0]]), torch.tensor([[-500.0, 500, 0]]))
    assert found["divergence"][0] == pytest.approx(math.log(2))


def test_most_disagreed_examples_come_in_order_of_their_divergence():
    a, b = torch.randn(2, 200, 3, generator=stream(1, "logits"))
    examples = compare_logits(a, b).assign(index=range(200))
    found = most_disagreed(examples, 10)
    differing = [row for row in range(200) if a[row].argmax() != b[row].argmax()]
    assert found["index"].tolist() == sorted(differing, key=lambda row: -examples["divergence"][row])[:10]


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("size", "total", "count"), [(4, 5, 0), (4, 5, 1), (4, 5, 4), (4, 9, 1), (4, 9, 4), (5, 5, 2), (7, 7, 5)]
)
def test_p_value_and_band_of_a_class_are_those_of_all_ways_to_place_the_disagreements(size, total, count):
    n = 12  # which of 12 examples are disagreed on; the first ones are the class
    ways = [sum(place < size for place in places) for places in itertools.combinations(range(n), total)]
    as_probable = [way for way in ways if ways.count(way) <= ways.count(count)]
    labels = numpy.repeat([0, 1], [size, n - size])
    a = labels.copy()
    b = a.copy()
    b[[*range(count), *range(size, size + total - count)]] = 2
    found = by_class(labels, a, b, ("class", "rest", "never"))
    assert found["disagree"][0] == count
    assert found["p_value"][0] == pytest.approx(len(as_probable) / len(ways))
    ranked = sorted(ways)  # the p-quantile is the smallest value with at least the share p at or below it
    limits = [ranked[math.ceil(p * len(ways)) - 1] / size for p in (0.025, 0.975)]
    assert found.loc[0, ["chance_low", "chance_high"]].tolist() == pytest.approx(limits)


def test_q_values_are_benjamini_and_hochbergs():
    found = by_class(*random_predictions(3, n=2000, n_classes=4), NAMES)
    p = sorted(found["p_value"])
    adjusted = [min(p[j] * len(p) / (j + 1) for j in range(i, len(p))) for i in range(len(p))]
    assert sorted(found["q_value"]) == pytest.approx([min(q, 1) for q in adjusted])


def test_class_test_rejects_as_often_as_it_says_when_disagreements_fall_at_random():
    draw, repetitions, names = numpy.random.default_rng(0), 150, tuple("abcdefgh")
    labels = numpy.repeat(numpy.arange(8), 100)
    rejected, any_found = [], []
    for _ in range(repetitions):
        b = labels.copy()
        b[draw.choice(800, 240, replace=False)] = 9
        found = by_class(labels, labels, b, names)
        rejected.append((found["p_value"] < 0.05).mean())
        any_found.append((found["q_value"] < 0.05).any())
    error = numpy.std(rejected, ddof=1) / repetitions**0.5
    assert 0.02 < numpy.mean(rejected) < 0.05 + 4 * error < 0.09  # discrete counts make it conservative
    assert numpy.mean(any_found) < 0.05 + 4 * (0.05 * 0.95 / repetitions) ** 0.5


def test_class_test_finds_a_class_that_is_disagreed_on_twice_as_often():
    labels = numpy.repeat(numpy.arange(8), 100)
    b = labels.copy()
    for c in range(8):
        b[100 * c : 100 * c + (40 if c == 5 else 20)] = 9
    found = by_class(labels, labels, b, tuple("abcdefgh"))
    assert found.loc[found["q_value"] < 0.05, "name"].tolist() == ["f"]


def test_classes_off_chance_are_counted_after_the_correction_for_their_number():
    """Of eight classes of 100, one is disagreed on 30 times and the others 20: unlikely by itself, not among eight."""
    labels, n = numpy.repeat(numpy.arange(8), 100), 800
    wrong = labels.copy()
    for c in range(8):
        wrong[100 * c : 100 * c + (30 if c == 5 else 20)] = (c + 1) % 8
    columns = {"given_label": labels, "true_label": labels, "prediction_a": labels, "prediction_b": wrong}
    examples = pandas.concat([pandas.DataFrame(columns)] * 2, keys=["train", "test"])
    totals, classes = tables(examples, empty_dataset(tuple("abcdefgh")))
    assert totals["size"].tolist() == [n, n]
    assert (classes["p_value"] < 0.05).sum() == 2
    assert totals["classes_off_chance"].tolist() == [0, 0]


def test_expected_disagreement_is_the_mean_over_permutations_within_classes():
    labels, a, b = random_predictions(4)
    draw, found = numpy.random.default_rng(0), []
    for _ in range(2000):
        shuffled = b.copy()
        for c in range(4):
            shuffled[labels == c] = draw.permutation(b[labels == c])
        found.append((a != shuffled).sum())
    error = numpy.std(found, ddof=1) / len(found) ** 0.5
    assert abs(numpy.mean(found) - expected_disagreement(labels, a, b)) < 4 * error < 1
    assert (a != b).sum() < expected_disagreement(labels, a, b) - 4 * numpy.std(found)  # made to go together


def test_expected_disagreement_of_two_symmetric_coins_is_half():
    labels = numpy.zeros(8, dtype=int)
    assert expected_disagreement(labels, numpy.arange(8) % 2, numpy.arange(8) // 4) == pytest.approx(4)


def test_interval_and_p_value_of_a_split_have_their_closed_forms():
    labels, a, b = random_predictions(5)
    found = overall(labels, a, b)
    z, n, rate = 1.959963984540054, found["size"], found["rate"]
    middle, half = rate + z**2 / (2 * n), z * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    assert (found["low"], found["high"]) == pytest.approx([(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)])
    only_a, only_b = found["only_a_right"], found["only_b_right"]
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    assert found["mcnemar_p"] == pytest.approx(min(1, 2 * tail))
    assert found["mcnemar_p"] < 0.5


# ------------------------------------------------------------------------------------------------------ predictions


def test_logits_are_those_in_eval_mode_whatever_the_batches():
    network = tiny_conv().train()
    inputs = torch.randn(10, 1, 5, 5, generator=stream(0, "inputs"), dtype=torch.float64)
    statistics = network.bn.running_mean.clone()
    found = logits_of(network, inputs.split(3))
    assert network.training
    assert torch.equal(network.bn.running_mean, statistics)
    assert torch.allclose(found, network.eval()(inputs), rtol=1e-12)


# -------------------------------------------------------------------------------------------------- names and figures


def awkward_dataset(n: int = 60) -> Dataset:
    """Colour images of 4 classes with awkward names, a quarter of the training labels wrong."""
    g = stream(0, "images")
    inputs, labels = torch.randint(256, (n, 3, 6, 6), generator=g, dtype=torch.uint8), torch.arange(n) % 4
    given = torch.where(torch.arange(n) % 3 == 0, 3, labels)
    train, test = Split(inputs, given, labels, torch.arange(n)), Split(inputs, labels, labels, torch.arange(n))
    return Dataset("awkward", train, train[:0], test, NAMES, 255, (0.5,) * 3, (0.5,) * 3, augmented=False, noisy=True)


def awkward_examples(dataset: Dataset) -> pandas.DataFrame:
    a, b = torch.randn(2, len(dataset.train), 4, generator=stream(2, "logits"))
    splits = {"train": dataset.train, "test": dataset.test}
    return pandas.concat([disagreement.example_table(a, b, split) for split in splits.values()], keys=splits)


def test_class_names_with_commas_quotes_and_dollars_survive_the_tables(tmp_path):
    dataset = awkward_dataset()
    examples = awkward_examples(dataset)
    _, classes = tables(examples, dataset)
    rows = disagreed_rows(examples, NAMES)
    rows.to_csv(tmp_path / "examples.csv", index=False)
    classes.to_csv(tmp_path / "classes.csv", index=False)
    assert pandas.read_csv(tmp_path / "classes.csv")["name"].tolist() == list(NAMES) * 3
    back = pandas.read_csv(tmp_path / "examples.csv")
    pandas.testing.assert_frame_equal(back, rows.reset_index(drop=True), check_dtype=False)
    assert set(back["prediction_a"]) == set(NAMES)


@pytest.mark.filterwarnings("error")
def test_figures_draw_awkward_names_and_colour_images(tmp_path):
    dataset = awkward_dataset()
    examples = awkward_examples(dataset)
    totals, classes = tables(examples, dataset)
    figures = [
        draw_classes(classes, totals, ["x", "y"], "a $ b $"),
        *contact_sheets(examples, dataset, ["x", "y"], 7).values(),
    ]
    assert len(figures) == 3
    ticks = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert {text.replace("\\$", "$") for text in ticks} == set(NAMES)
    assert sum(len(axis.images) for axis in figures[1].axes) == 7
    for index, figure in enumerate(figures):
        png = save_figure(figure, tmp_path / str(index))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert png.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_under_label_noise_the_training_split_is_counted_by_given_labels_too():
    dataset = awkward_dataset()
    examples = awkward_examples(dataset)
    totals, classes = tables(examples, dataset)
    assert list(zip(totals["split"], totals["label"], strict=True)) == [("train", "true"), ("train", "given"), ("test", "true")]
    train = examples.loc["train"]
    given = totals.iloc[1]
    assert given["accuracy_a"] == (train["prediction_a"] == train["given_label"]).mean()
    assert totals["accuracy_a"][0] == (train["prediction_a"] == train["true_label"]).mean() != given["accuracy_a"]
    sizes = classes[classes["label"] == "given"]["size"].tolist()
    assert sizes == torch.bincount(dataset.train.labels).tolist() != [15] * 4


def class_table(n_classes: int, n_hard: int) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Tables of a test split in which the first classes are disagreed on throughout, the others a fifth."""
    labels = numpy.repeat(numpy.arange(n_classes), 20)
    b = labels.copy()
    for c in range(n_classes):
        b[20 * c : 20 * c + (20 if c < n_hard else 4)] = (c + 1) % n_classes
    names = [f"class {c}" for c in range(n_classes)]
    places = {"split": "test", "label": "true"}
    return by_class(labels, labels, b, names).assign(**places), pandas.DataFrame([places | overall(labels, labels, b)])


@pytest.mark.parametrize(
    ("n_classes", "n_hard", "named"),
    [(10, 1, {f"class {c}" for c in range(10)}), (20, 0, {f"class {c}" for c in range(20)}),
     (100, 3, {"class 0", "class 1", "class 2"}), (100, 0, {f"class {c}" for c in range(10)})],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_many_classes_are_named_only_when_significant_or_first(n_classes, n_hard, named, tmp_path):
    figure = draw_classes(*class_table(n_classes, n_hard), ["x", "y"], "heading")
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.get_xticklabels()} == named
    heights = numpy.sum([[bar.get_height() for bar in bars] for bars in axis.containers], 0)
    assert heights.tolist() == pytest.approx([1.0] * n_hard + [0.2] * (n_classes - n_hard))
    assert save_figure(figure, tmp_path / "classes").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------------ whole command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Short runs on digits under one results root, relative to it."""
    root = tmp_path_factory.mktemp("results")
    settings = {
        "scratch": {"mode": "sparse-scratch"},
        "finetune": {"mode": "sparse-finetune"},
        "small": {"mode": "dense", "hidden_dims": "16"},
        "less": {"mode": "dense", "limit_train": 200},
        "noisy": {"mode": "dense", "train_noisy": True},
        "noisier": {"mode": "dense", "train_noisy": True, "random_state": 7},
    }
    configs = {name: unflatten(RunConfig, QUICK | {"results_root": str(root)} | own) for name, own in settings.items()}
    return {"root": root} | {name: train_run(config).relative_to(root) for name, config in configs.items()}


@pytest.fixture
def runs(trained, tmp_path) -> dict[str, Path]:
    """The same runs in a copy that a test may write to."""
    root = Path(shutil.copytree(trained["root"], tmp_path / "results"))
    return {"root": root} | {name: root / path for name, path in trained.items() if name != "root"}


def test_disagree_writes_what_the_predictions_say(runs, capsys):
    folder = disagree(DisagreeConfig(images=5), runs["scratch"], runs["finetune"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(folder)
    assert folder.parent == runs["root"].resolve() / "comparisons"
    result = json.loads((folder / "result.json").read_text())
    assert result["kind"] == "disagree"
    assert [runs["root"] / path for path in result["runs"]] == [runs["scratch"], runs["finetune"]]
    files = [folder / figure["file"] for figure in result["figures"]]
    assert [path.stem for path in files] == ["figure9_10", "most_disagreed", "most_disagreed_train"]
    assert all(path.exists() and path.with_suffix(".pdf").exists() for path in files)
    splits, classes, examples = (pandas.read_csv(folder / f"{name}.csv") for name in ("splits", "classes", "examples"))
    for letter, run in (("a", "scratch"), ("b", "finetune")):
        summary = RunFolder(runs[run]).read_summary()
        assert splits[f"accuracy_{letter}"].tolist() == pytest.approx([summary["acc_train"], summary["acc_test"]])
    assert splits["disagree"].tolist() == [(examples["split"] == split).sum() for split in ("train", "test")]
    assert splits["disagree"].tolist() == classes.groupby("split", sort=False)["disagree"].sum().tolist()
    assert [row["disagree"] for row in result["numbers"]] == splits["disagree"].tolist()
    assert (examples["prediction_a"] != examples["prediction_b"]).all()
    assert len(classes) == 20


def test_a_second_call_computes_nothing_and_other_settings_do(runs, capsys, monkeypatch):
    folder = disagree(DisagreeConfig(images=0), runs["scratch"], runs["finetune"])
    first = capsys.readouterr().out.splitlines()
    calls = []
    monkeypatch.setattr(
        disagreement, "predict", lambda run, *rest, predict=disagreement.predict: calls.append(run) or predict(run, *rest)
    )
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert disagree(DisagreeConfig(images=0, root="elsewhere"), runs["scratch"], runs["finetune"]) == folder
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    assert capsys.readouterr().out.splitlines() == ["already there for these weights and settings", *first]
    disagree(DisagreeConfig(images=0, batch_size=100), runs["scratch"], runs["finetune"])
    assert len(calls) == 4
    (folder / "figures/figure9_10.png").unlink()
    disagree(DisagreeConfig(images=0, batch_size=100), runs["scratch"], runs["finetune"])
    assert len(calls) == 8


def test_retrained_weights_are_compared_again(runs):
    folder = disagree(DisagreeConfig(images=0), runs["scratch"], runs["finetune"])
    state = torch.load(runs["scratch"] / "model.pt", weights_only=True)
    next(iter(state["network"].values())).mul_(2)
    torch.save(state, runs["scratch"] / "model.pt")
    vouch(runs["scratch"])
    before = json.loads((folder / "result.json").read_text())
    disagree(DisagreeConfig(images=0), runs["scratch"], runs["finetune"])
    after = json.loads((folder / "result.json").read_text())
    assert after["settings"]["checkpoint_a"] != before["settings"]["checkpoint_a"]
    assert after["settings"]["checkpoint_b"] == before["settings"]["checkpoint_b"]


def test_a_comparison_that_breaks_off_leaves_no_result(runs, monkeypatch):
    folder = disagree(DisagreeConfig(images=0), runs["scratch"], runs["finetune"])

    def full(figure, stem):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "save_figure", full)
    with pytest.raises(OSError, match="No space"):
        disagree(DisagreeConfig(images=0, batch_size=100), runs["scratch"], runs["finetune"])
    assert not (folder / "result.json").exists()
    assert list(folder.rglob("*.partial")) == []


def test_sheets_that_are_no_longer_asked_for_do_not_stay(runs):
    folder = disagree(DisagreeConfig(images=1), runs["scratch"], runs["finetune"])
    assert (folder / "figures/most_disagreed_train.pdf").exists()
    disagree(DisagreeConfig(images=0), runs["scratch"], runs["finetune"])
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["figure9_10.pdf", "figure9_10.png"]


def test_networks_of_different_shape_can_be_compared(runs):
    folder = disagree(DisagreeConfig(images=0), runs["small"], runs["finetune"])
    assert [figure["id"] for figure in json.loads((folder / "result.json").read_text())["figures"]] == ["figures 9, 10"]


def test_noisy_runs_are_compared_by_true_and_given_labels(runs, capsys):
    folder = disagree(DisagreeConfig(images=0), runs["noisy"], runs["noisier"])
    assert pandas.read_csv(folder / "splits.csv")["label"].tolist() == ["true", "given", "true"]
    assert "train, given labels" in capsys.readouterr().out


def test_data_without_images_have_no_contact_sheet(train, tmp_path, capsys):
    flags = [word for name, value in QUICK.items() for word in (f"--{name}", value)]
    a, b = (train("-ln", "toy", "-rt", tmp_path, "-rs", seed, *flags) for seed in (1, 2))
    folder = disagree(DisagreeConfig(), a, b)
    assert "no contact sheet: toy has no images that could be shown" in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["figure9_10.pdf", "figure9_10.png"]


def test_what_cannot_be_compared_is_refused_in_one_line(runs, tmp_path):
    unfinished = Path(shutil.copytree(runs["scratch"], runs["scratch"].with_name("unfinished-00000000")))
    (unfinished / "summary.json").unlink()
    copied = Path(shutil.copytree(runs["finetune"], runs["finetune"].with_name("copied-00000000")))
    cases = [
        (runs["finetune"], "hold the same network"),
        (copied, "hold the same network"),
        (unfinished, "is not finished; run it to its end first"),
        (tmp_path, "is no run folder: it has no config.yaml"),
        (tmp_path / "nowhere", "is no run folder: it has no config.yaml"),
        (runs["less"], "--limit_train 200"),
        (runs["noisy"], "--loader_name digits_noisy"),
    ]
    for other, message in cases:
        with pytest.raises(RuntimeError) as refusal:
            disagree(DisagreeConfig(), runs["finetune"], other)
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert not (runs["root"] / "comparisons").exists()


def test_runs_on_other_data_files_are_refused(runs):
    edit_summary(runs["scratch"], lambda summary: summary["identity"].update(data_files="0123456789abcdef"))
    with pytest.raises(RuntimeError, match="was trained on other data files \\(0123456789abcdef\\) than those under data"):
        disagree(DisagreeConfig(), runs["scratch"], runs["finetune"])


def test_a_network_that_gives_no_numbers_is_refused(runs):
    state = torch.load(runs["scratch"] / "model.pt", weights_only=True)
    next(iter(state["network"].values())).fill_(math.nan)
    torch.save(state, runs["scratch"] / "model.pt")
    vouch(runs["scratch"])
    with pytest.raises(RuntimeError, match="values that are not finite"):
        disagree(DisagreeConfig(), runs["scratch"], runs["finetune"])


def test_runs_under_another_results_root_are_named_relative_to_the_first(runs, tmp_path):
    moved = tmp_path / "second"
    shutil.copytree(runs["root"], moved)
    other = moved / runs["finetune"].relative_to(runs["root"])
    folder = disagree(DisagreeConfig(images=0), runs["scratch"], other)
    stored = json.loads((folder / "result.json").read_text())["runs"]
    assert not any(os.path.isabs(path) for path in stored)
    assert (runs["root"] / stored[1]).resolve() == other.resolve()

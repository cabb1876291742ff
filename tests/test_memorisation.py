"""What is memorised: estimates against closed forms and enumeration, their errors against simulation, and the command."""

import itertools
import json
import math

import numpy
import pandas
import pytest
import torch

import experiment
from loader.main import load_dataset
from optim.model import load_run
from study.comparing.memorisation import kinds_table
from study.comparing.subset_runs import Kind, open_kinds, whole_of
from study.comparing.subset_scores import (
    Outcomes,
    binned,
    by_subset,
    differences,
    mean_score,
    mean_seen,
    mean_unseen,
    means,
    memorisation,
    paired,
    with_error,
)  # fmt: skip
from tests.outcome import outcome

QUICK = ("--n_epochs", 3, "--lr_milestones", 2, "--hidden_dims", 24, "--limit_train", 300, "--figures", 0, "--save_snr", 0,
         "--save_fisher", 0, "--prune_ratio", 0.9)  # fmt: skip


def every_subset(n_examples: int, size: int) -> numpy.ndarray:
    subsets = list(itertools.combinations(range(n_examples), size))
    return numpy.array([[example in subset for example in range(n_examples)] for subset in subsets])


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_lookup_table_memorises_what_has_no_double_and_mislabelled_doubles_exactly(size):
    """It knows what it has seen, and calls anything else what most of the seen doubles of it are called.

    Doubles 0, 1, 2 agree, example 3 is a double of them with another label, 4 and 5 have none. With any subset being equally
    likely, an unseen one of the first three is right if one of the other two was seen; of the others none ever is.
    """
    seen = every_subset(7, size)
    groups = [(0, 1, 2), (), (), ()]
    right = seen.astype(float)
    for doubles in groups:
        for example in doubles:
            others = [other for other in doubles if other != example]
            right[:, example] = seen[:, example] | seen[:, others].any(1)
    table = memorisation(Outcomes(seen, right))
    unseen = 1 - math.comb(7 - 3, size) / math.comb(7 - 1, size)  # all of S is among the 4 that are no such doubles
    assert table["seen"].tolist() == [1.0] * 7
    assert table["score"].tolist() == pytest.approx([1 - unseen] * 3 + [1.0] * 4)


def random_outcomes(seed: int, n_subsets: int = 12, n_examples: int = 9) -> Outcomes:
    draw = numpy.random.default_rng(seed)
    return Outcomes(draw.random((n_subsets, n_examples)) < 0.5, (draw.random((n_subsets, n_examples)) < 0.6).astype(float))


def test_scores_and_differences_are_those_of_plain_loops():
    one, other = random_outcomes(0), random_outcomes(1)
    other = Outcomes(one.seen, other.right)
    table, gap = memorisation(one), differences(one, other)
    for example in range(9):
        inside = [row for row in range(12) if one.seen[row, example]]
        outside = [row for row in range(12) if row not in inside]
        a = [numpy.mean([o.right[row, example] for row in inside]) for o in (one, other)]
        b = [numpy.mean([o.right[row, example] for row in outside]) for o in (one, other)]
        assert table.loc[example, "score"] == pytest.approx(a[0] - b[0])
        assert gap.loc[example, "seen"] == pytest.approx(a[0] - a[1])
        assert gap.loc[example, "score"] == pytest.approx((a[0] - b[0]) - (a[1] - b[1]))


def test_an_example_that_too_few_subsets_have_or_miss_has_no_score():
    seen = numpy.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]], dtype=bool)
    table = memorisation(Outcomes(seen, seen.astype(float)))
    assert table["score"].notna().tolist() == [False, False, True, False, True]
    assert table["error"].notna().tolist() == table["score"].notna().tolist()


def test_runs_on_the_same_examples_are_one_subset():
    seen = numpy.array([[1, 0, 1], [0, 1, 1], [1, 0, 1]], dtype=bool)
    found = by_subset(seen, numpy.array([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]]))
    assert found.seen.tolist() == seen[:2].tolist()
    assert found.right.tolist() == [[0.5, 0, 0.5], [1, 1, 1]]


@pytest.mark.parametrize(("inside", "outside"), [(1.0, 0.0), (1.0, 0.5), (0.95, 0.9), (0.6, 0.4), (1.0, 1.0)])
def test_intervals_of_a_score_cover_the_true_one(inside, outside):
    draw = numpy.random.default_rng(3)
    seen = draw.random((24, 4000)) < 0.5
    right = (draw.random(seen.shape) < numpy.where(seen, inside, outside)).astype(float)
    table = memorisation(Outcomes(seen, right))
    covered = (abs(table["score"] - (inside - outside)) <= 1.96 * table["error"]).mean()
    assert covered >= 0.94
    assert table["error"].median() < 0.24


@pytest.mark.parametrize(("both", "first"), [(0.9, 0.1), (0.5, 0.3), (0.98, 0.02), (0.3, 0.0)])
def test_intervals_of_a_paired_difference_cover_the_true_one(both, first):
    """Runs on one subset: both are right, or the first alone, or none."""
    draw = numpy.random.default_rng(4)
    seen, luck = draw.random((24, 4000)) < 0.5, draw.random((24, 4000))
    ours, theirs = (Outcomes(seen, (luck < share).astype(float)) for share in (both + first, both))
    gap = differences(ours, theirs)
    assert (abs(gap["seen"] - first) <= 1.96 * gap["seen_error"]).mean() >= 0.94
    assert (abs(gap["score"]) <= 1.96 * gap["score_error"]).mean() >= 0.94
    apart = numpy.hypot(memorisation(ours)["error"], memorisation(theirs)["error"])
    assert gap["score_error"].median() < 1.02 * apart.median()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    one = random_outcomes(5)
    value, error = with_error(lambda outcomes: float(outcomes.right.mean()), one)
    own = one.right.mean(1)
    assert (value, error) == pytest.approx((own.mean(), own.std(ddof=1) / 12**0.5))


@pytest.mark.parametrize("statistic", [mean_score, mean_seen, mean_unseen])
def test_the_jackknife_knows_how_much_a_statistic_varies(statistic):
    draw = numpy.random.default_rng(6)
    chance = numpy.linspace(0, 1, 40)
    values, errors = [], []
    for _ in range(200):
        seen = draw.random((20, 40)) < 0.5
        luck = draw.random((20, 1)) / 4  # what all examples of a subset share
        right = (draw.random(seen.shape) < numpy.where(seen, 1, chance) - luck).astype(float)
        value, error = with_error(statistic, Outcomes(seen, right))
        values.append(value)
        errors.append(error)
    assert numpy.sqrt(numpy.mean(numpy.square(errors))) == pytest.approx(numpy.std(values), rel=0.25)


def test_subsets_are_paired_whatever_their_order():
    one = random_outcomes(7)
    shuffled = numpy.random.default_rng(8).permutation(12)[:8]
    first, second = paired(one, one.of(shuffled))
    assert len(first.seen) == 8
    assert (first.seen == second.seen).all()
    assert (first.right == second.right).all()


def test_bins_of_pure_chance_show_no_more_than_chance():
    """With one set of subsets for both, examples would be called memorised for the luck that is then counted again."""
    draw = numpy.random.default_rng(9)
    seen = draw.random((24, 2000)) < 0.5
    chance = Outcomes(seen, (draw.random(seen.shape) < 0.5).astype(float))
    table = binned(chance, chance, (-1, -0.2, 0.2, 1))
    assert table["examples"].sum() == pytest.approx(2000, rel=0.03)
    for name in ("seen", "unseen"):
        assert (abs(table[name] - 0.5) <= 4 * table[f"{name}_error"]).all()
        assert (table[f"{name}_error"] < 0.02).all()


def test_bins_separate_what_is_memorised_from_what_is_not():
    draw = numpy.random.default_rng(10)
    seen = draw.random((24, 400)) < 0.5
    memorised = numpy.arange(400) < 100
    dense = Outcomes(seen, numpy.where(memorised, seen, True).astype(float))
    forgetful = Outcomes(seen, numpy.where(memorised, seen & (draw.random(seen.shape) < 0.3), True).astype(float))
    low, high = binned(dense, forgetful, (-1, 0.5, 1)).to_dict("records")
    assert (low["examples"], high["examples"]) == pytest.approx((300, 100), abs=5)
    assert low["seen"] == low["unseen"] == 1
    assert abs(high["seen"] - 0.3) <= 4 * high["seen_error"] < 0.1
    assert high["unseen"] == 0


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def runs(train_once):
    """Eight dense runs and eight from scratch on subsets of the digits."""
    return [
        train_once(*QUICK, "--mode", mode, "--split_seed", seed) for mode in ("dense", "sparse-scratch") for seed in range(1, 9)
    ]


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("memorised")

    def call(*flags: object):
        import run as command_line

        found = outcome(command_line.main, *flags, "--results_root", root)
        assert found.code == 0, found.err
        return found.folder

    return call


def test_the_command_scores_every_example_as_its_runs_predict(runs, tmp_path):
    found = outcome(experiment.main, "memorisation", *runs, "--images", 4)
    assert found.code == 0, found.err
    folder = next((runs[0].parents[3] / "comparisons").glob("memorisation_*"))
    result = json.loads((folder / "result.json").read_text())
    assert [row["kind"] for row in result["numbers"]] == ["dense", "sparse-scratch 0.9"]
    assert {"memorisation.png", "most_memorised.png", "most_forgotten_1.png"} <= {
        p.name for p in (folder / "figures").iterdir()
    }

    whole = whole_of(load_run(runs[0])[2].data)
    pixels, labels = (torch.cat([getattr(split, name) for split in (whole.train, whole.test)]) for name in ("inputs", "labels"))
    inputs = whole.normalise(pixels)
    contents = {row.numpy().tobytes(): place for place, row in enumerate(pixels.flatten(1))}
    assert len(contents) == 1797
    table = pandas.read_csv(folder / "examples.csv")
    for kind, paths in (("dense", runs[:8]), ("sparse-scratch 0.9", runs[8:])):
        seen, right = numpy.zeros((8, len(inputs)), dtype=bool), numpy.zeros((8, len(inputs)))
        for row, path in enumerate(paths):
            network, _, config = load_run(path)
            own = load_dataset(config.data).train
            seen[row, [contents[one.numpy().tobytes()] for one in own.inputs.flatten(1)]] = True
            with torch.no_grad():
                right[row] = (network(inputs).argmax(1) == labels).numpy()
            assert seen[row].sum() == 300
        score = memorisation(Outcomes(seen, right)).dropna()
        part = table[table["kind"] == kind]
        assert sorted(part["score"]) == pytest.approx(sorted(score["score"]))
        assert len(part) > 500
    shares = means(Outcomes(seen, right))
    assert numpy.nanmean(shares[0]) == pytest.approx(part["seen"].mean())


def test_the_report_shows_what_was_memorised(runs):
    root = runs[0].parents[3]
    assert outcome(experiment.main, "memorisation", *runs, "--images", 0).code == 0
    assert outcome(experiment.main, "report", root).code == 0
    page = (root / "report/index.html").read_text()
    assert "What digits networks memorise, against dense" in page
    assert "memorisation, lost" in page


def test_runs_that_share_no_data_or_are_too_few_are_refused_in_one_line(runs, train_once):
    toy = train_once(*QUICK, "--loader_name", "toy", "--limit_train", 200)
    shorter = train_once(*QUICK, "--limit_classes", 5, "--limit_train", 200)
    for words, said in (
        (runs[:1], "give runs with at least 4 values of --split_seed"),
        (runs[:3], "no example was seen by 2 and not by 2"),
        ([*runs[:4], toy], "--loader_name digits"),
        ([*runs[:4], shorter], "--limit_classes None"),
        ([runs[0], runs[0].parent], "is no run folder"),
        ([*runs[:4], runs[8]], "sparse-scratch 0.9: with 1 subset"),
    ):
        found = outcome(experiment.main, "memorisation", *words)
        assert found.code == 1, words
        assert said in found.line, found.line
        assert len(found.err.strip().splitlines()[-1]) < 600


def test_runs_of_other_dense_parents_or_sizes_of_subsets_are_other_kinds(runs, train_once):
    """A mean over both would be of neither; of two sizes, the larger subsets would have more of those that saw an example."""
    seeds = range(1, 5)
    finetuned = [
        train_once(*QUICK, "--mode", "sparse-finetune", "--split_seed", seed, *flags)
        for flags in ((), ("--n_epochs_pretrain", 1), ("--n_epochs_pretrain", 1, "--lr_pretrain", 0.05))
        for seed in seeds
    ]
    fewer = [train_once(*QUICK, "--limit_train", 150, "--split_seed", seed) for seed in seeds]
    kinds, _ = open_kinds([*runs[:4], *fewer, *finetuned], "cpu", None, 500)
    common = "in its dense parent"
    assert {kind.name: len(kind.runs) for kind in kinds} == {
        "dense, limit_train 300": 4, "dense, limit_train 150": 4,
        f"sparse-finetune 0.9, limit_train 300, n_epochs 3 {common}": 4,
        f"sparse-finetune 0.9, limit_train 300, n_epochs 1 {common}": 4,
        f"sparse-finetune 0.9, limit_train 300, lr 0.05 {common}, n_epochs 1 {common}": 4,
    }  # fmt: skip
    assert [kind.outcomes.seen.sum(1).tolist() for kind in kinds[:2]] == [[300] * 4, [150] * 4]
    assert {run.config.random_state for kind in kinds for run in kind.runs} == {42}


def test_two_sizes_of_subsets_memorise_nothing_where_accuracy_follows_from_the_size_alone():
    """Of each kind by itself the score is 0; of both together it would be 0.19."""
    draw = numpy.random.default_rng(5)
    scores, parts = [], []
    for size, accuracy in ((100, 0.3), (700, 0.6)):
        seen = numpy.array([numpy.isin(numpy.arange(1000), draw.permutation(1000)[:size]) for _ in range(30)])
        parts.append((seen, (draw.random(seen.shape) < accuracy).astype(float)))
        scores.append(mean_score(by_subset(*parts[-1])))
    assert scores == pytest.approx([0, 0], abs=0.03)
    assert mean_score(by_subset(*map(numpy.concatenate, zip(*parts, strict=True)))) == pytest.approx(0.19, abs=0.03)


def test_a_dense_parent_that_may_have_seen_anything_is_refused(runs, train_once):
    given = train_once(*QUICK, "--mode", "sparse-finetune", "--split_seed", 2, "--pretrain_model_path", runs[0])
    found = outcome(experiment.main, "memorisation", *runs[:4], given)
    assert (found.code, "--pretrain_model_path" in found.line) == (1, True), found.line


def test_labels_that_contradict_are_refused_in_one_line(train_once):
    noisy = [train_once(*QUICK, "--train_noisy", 1, "--noise_ratio", 0.4, "--split_seed", seed) for seed in (1, 2, 3, 4)]
    found = outcome(experiment.main, "memorisation", *noisy)
    assert found.code == 1
    assert "were given different labels of the same examples" in found.line


def test_means_of_equal_subsets_are_not_known_without_error():
    seen = numpy.random.default_rng(11).random((16, 200)) < 0.5
    (row,) = kinds_table([Kind("dense", [], Outcomes(seen, seen.astype(float)))]).to_dict("records")
    assert (row["seen"], row["unseen"], row["score"]) == (1, 0, 1)
    assert row["seen_error"] == pytest.approx(1 / (seen.sum(1).mean() * 4))

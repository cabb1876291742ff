"""Lines between states, BatchNorm re-estimated on them, and `interpolate` from run folders to result.json."""

import json
import logging
import shutil

import numpy
import pandas
import pytest
import torch
from torch import nn

from helper.metrics.evaluation import evaluate
from helper.metrics.line import barrier, between, pooled, reestimate_batch_norm
from helper.schema.config import FlagError
from helper.system.seeds import stream
from loader.main import load_dataset
from optim.checkpoint import load_state, save_state
from optim.model import load_run, load_stored
from study.comparing.interpolation import InterpolateConfig, interpolate
from study.comparing.interpolation_tables import Tables, numbers
from tests.conftest import tiny_conv
from tests.edited import vouch
from tests.test_alignment import brute_force

QUICK = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0)
FEW = InterpolateConfig(points=3, figures=False)


# ------------------------------------------------------------------------------------------------------- mathematics


def test_ends_of_a_line_are_exact_and_the_middle_is_the_mean():
    a, b = ({name: t.clone() for name, t in tiny_conv().state_dict().items()} for _ in range(2))
    for tensor in b.values():
        tensor.add_(3)
    for alpha, end in ((0.0, a), (1.0, b)):
        state = between(a, b, alpha)
        assert all(torch.equal(state[name], end[name]) for name in a if name != "bn.num_batches_tracked")
    middle = between(a, b, 0.25)
    torch.testing.assert_close(middle["fc.weight"], 0.75 * a["fc.weight"] + 0.25 * b["fc.weight"])
    assert torch.equal(middle["bn.num_batches_tracked"], a["bn.num_batches_tracked"])
    assert middle["bn.num_batches_tracked"].dtype == torch.int64
    tiny_conv().load_state_dict(middle)


def test_barriers_of_a_straight_and_a_bent_line():
    alphas = numpy.linspace(0, 1, 101)
    height, _, rise = barrier(alphas, 3 - 2 * alphas)
    assert height == pytest.approx(0, abs=1e-12)
    assert rise == 0
    bump = 1 + alphas + 4 * alphas * (1 - alphas)  # 4a(1 - a) over the chord: height 1 at 1/2; largest value 2.5625 at 0.625
    height, where, rise = barrier(alphas, bump)
    assert (height, where) == (pytest.approx(1), pytest.approx(0.5))
    assert rise == pytest.approx(1 + 0.62 + 4 * 0.62 * 0.38 - 2)
    assert barrier(alphas, alphas**2) == (0, 0, 0)  # below its chord


def test_pooled_moments_are_those_of_all_values_together():
    values = 1e3 + torch.randn(100, 3, generator=stream(0, "values"), dtype=torch.float64) * torch.tensor([1, 10, 0.1])
    parts = values.split([1, 50, 2, 47])
    variances = torch.stack([part.var(0) if len(part) > 1 else torch.zeros(3) for part in parts])
    mean, variance = pooled(torch.tensor([1, 50, 2, 47]), torch.stack([part.mean(0) for part in parts]), variances)
    torch.testing.assert_close(mean, values.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, values.var(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sizes", [[60], [20, 20, 20], [25, 25, 10], [1, 59]])
def test_batch_norm_takes_the_statistics_of_all_examples_whatever_the_batches(sizes):
    """The one BatchNorm of the network lies behind no other, so what it takes in does not depend on the batches."""
    network = tiny_conv().eval()
    inputs = 2 + torch.randn(60, 1, 5, 5, generator=stream(0, "inputs"), dtype=torch.float64)
    reestimate_batch_norm(network, iter(inputs.split(sizes)))
    taken = network.conv1(inputs)
    torch.testing.assert_close(network.bn.running_mean, taken.mean((0, 2, 3)).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.bn.running_var, taken.transpose(0, 1).flatten(1).var(1).detach(), rtol=1e-12, atol=0)
    assert network.bn.num_batches_tracked == len(sizes)


def test_layers_behind_batch_norm_see_their_batch_normalised_as_in_training():
    """One whole batch: eval mode with the new statistics gives what training mode gives on that batch (up to n / (n - 1))."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            nn.Linear(6, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Linear(5, 4),
            nn.BatchNorm1d(4, momentum=None),
            nn.Dropout(),
        ]
        network = nn.Sequential(*layers).double()
        network.train()(torch.randn(8, 6, dtype=torch.float64))
    inputs = 5 * torch.randn(3000, 6, generator=stream(0, "inputs"), dtype=torch.float64)
    reestimate_batch_norm(network, [inputs])
    assert network.training
    assert (network[1].momentum, network[4].momentum) == (0.1, None)
    expected = network[:5](inputs)  # training mode
    torch.testing.assert_close(network.eval()(inputs), expected, rtol=0, atol=1e-2)
    assert len(network[4]._forward_hooks) == 0


def test_a_network_without_batch_norm_is_left_alone_and_asks_for_no_batch():
    def batches():
        raise AssertionError("a batch was asked for")
        yield

    reestimate_batch_norm(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)), batches())


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_batch_norm(tiny_conv(), [])


def test_numbers_say_what_the_tables_hold():
    line = pandas.DataFrame(
        [("A -> B", alpha, split, loss, 0.5) for split, losses in {"train": (1.0, 2.6, 3.0), "test": (4.0, 2.0, 1.0)}.items()
         for alpha, loss in zip((0.0, 0.5, 1.0), losses, strict=True)],
        columns=["path", "alpha", "split", "loss", "acc"],
    )  # fmt: skip
    cosines = numpy.array([[0.4, -0.1, 0.0, numpy.nan, 0.2, numpy.nan]])
    arrays = {"index": numpy.arange(6), "label": numpy.zeros(6), "alphas": numpy.array([0.3]), "cosines": cosines}
    classes = pandas.DataFrame(
        [(0.3, 0, "many", 9, 20, 2.0, 1e-4, 0.01), (0.3, 1, "more", 6, 20, 2.0, 1e-3, 0.02),
         (0.3, 2, "few", 0, 20, 5.0, 0.01, 0.04), (0.3, 3, "doubtful", 5, 20, 3.0, 0.04, 0.06)],
        columns=["alpha", "class", "name", "count", "size", "expected", "p_value", "q_value"],
    )  # fmt: skip
    found = [tuple(row.values()) for row in numbers(Tables(line, arrays, classes))]
    assert found == [
        ("barrier height (nats)", "A -> B", "train", 0.5, pytest.approx(0.6)),
        ("largest loss - larger end's (nats)", "A -> B", "train", 1.0, 0.0),
        ("barrier height (nats)", "A -> B", "test", 0.0, 0.0),
        ("largest loss - larger end's (nats)", "A -> B", "test", 0.0, 0.0),
        ("median cosine", "Init-S -> Sol-F", "train", 0.3, pytest.approx(0.1)),
        ("share of examples with a positive cosine", "Init-S -> Sol-F", "train", 0.3, 0.5),
        ("examples left out: zero gradient", "Init-S -> Sol-F", "train", 0.3, 2.0),
        ("examples in the upper 5 %", "Init-S -> Sol-F", "train", 0.3, 20.0),
        ("classes over-represented in the upper 5 % (q < 0.05)", "Init-S -> Sol-F", "train", 0.3, 2.0),
        ("classes under-represented in the upper 5 % (q < 0.05)", "Init-S -> Sol-F", "train", 0.3, 1.0),
    ]


# ----------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def pair(train):
    """(sparse-scratch, sparse-finetune) of digits with one mask."""
    return tuple(train("-m", mode, "-pr", 0.8, *QUICK) for mode in ("sparse-scratch", "sparse-finetune"))


def test_a_whole_run_leaves_tables_figures_and_the_result(pair, caplog):
    caplog.set_level(logging.INFO)
    folder = interpolate(InterpolateConfig(points=5), *pair)
    scratch, _ = pair
    hashes = [path.name.rpartition("-")[2] for path in pair]
    assert folder == scratch.parents[3] / "comparisons" / f"interpolate_{hashes[0]}_{hashes[1]}"
    assert "Sol-S -> Sol-F: barrier of the training loss" in caplog.text

    line = pandas.read_csv(folder / "line.csv")
    assert list(line) == ["path", "alpha", "split", "loss", "acc"]
    assert len(line) == 3 * 5 * 2
    assert line["path"].unique().tolist() == ["Init-S -> Sol-F", "Init-F -> Sol-F", "Sol-S -> Sol-F"]
    arrays = numpy.load(folder / "cosines.npz")
    n = len(arrays["label"])
    assert arrays["cosines"].shape == (2, n)
    assert arrays["alphas"].tolist() == [0.3, 0.9]
    classes = pandas.read_csv(folder / "classes.csv")
    assert list(classes) == ["alpha", "class", "name", "count", "size", "expected", "p_value", "q_value"]
    for alpha, cosines in zip(arrays["alphas"], arrays["cosines"], strict=True):
        upper = numpy.argsort(-cosines)[: round(0.05 * n)]
        counts = numpy.bincount(arrays["label"][upper], minlength=10)
        assert classes.loc[classes["alpha"] == alpha, "count"].tolist() == counts.tolist()

    result = json.loads((folder / "result.json").read_text())
    assert list(result) == ["kind", "title", "runs", "figures", "numbers", "settings", "seconds"]
    assert [scratch.parents[3] / run for run in result["runs"]] == list(pair)
    assert [figure["id"] for figure in result["figures"]] == ["figure 6", "figures 7 and 8"]
    for figure in result["figures"]:
        assert (folder / figure["file"]).stat().st_size > 10_000
        assert (folder / figure["file"]).with_suffix(".pdf").exists()
        assert "\n" not in figure["caption"]
    found = {(row["quantity"], row["of"], row["split"], row["alpha"]): row["value"] for row in result["numbers"]}
    assert found["median cosine", "Init-S -> Sol-F", "train", 0.3] == pytest.approx(numpy.median(arrays["cosines"][0]))
    for (path, split), part in line.groupby(["path", "split"]):
        height, where, _ = barrier(part["alpha"].to_numpy(), part["loss"].to_numpy())
        assert found["barrier height (nats)", path, split, where] == pytest.approx(height)
    assert str(scratch.parents[3]) not in (folder / "result.json").read_text()
    assert not list(folder.rglob("*.partial"))


def test_ends_are_the_stored_states_and_the_cosines_those_of_brute_force(pair):
    """Without BatchNorm a state's loss is the one in history.csv or of the loaded run."""
    folder = interpolate(InterpolateConfig(points=3, cosine_alphas="0.5", figures=False), *pair)
    line = pandas.read_csv(folder / "line.csv").set_index(["path", "alpha", "split"])
    networks = {"S": load_run(pair[0]), "F": load_run(pair[1])}
    dataset = load_dataset(networks["S"][2].data)
    ends = {
        ("Init-S -> Sol-F", 1.0): pandas.read_csv(pair[1] / "history.csv").iloc[-1],
        ("Init-S -> Sol-F", 0.0): pandas.read_csv(pair[0] / "history.csv").iloc[0],
        ("Init-F -> Sol-F", 0.0): pandas.read_csv(pair[1] / "history.csv").iloc[0],
        ("Sol-S -> Sol-F", 0.0): pandas.read_csv(pair[0] / "history.csv").iloc[-1],
    }
    for (path, alpha), row in ends.items():
        for split in ("train", "test"):
            found = line.loc[(path, alpha, split)]
            assert found["loss"] == pytest.approx(row[f"loss_{split}"], rel=1e-5)
            assert found["acc"] == pytest.approx(row[f"acc_{split}"])

    start, end = load_stored(pair[0] / "state_dicts/epoch_0.pt").weights, load_stored(pair[1] / "model.pt").weights
    network, mask, _ = networks["F"]
    network.load_state_dict({name: (start[name] + end[name]) / 2 for name in end})
    halfway = evaluate(network, dataset.batches(dataset.train, 100))
    assert line.loc[("Init-S -> Sol-F", 0.5, "train"), "loss"] == pytest.approx(halfway["loss"], rel=1e-5)
    arrays = numpy.load(folder / "cosines.npz")
    rows = slice(0, 40)
    assert arrays["index"][rows].tolist() == dataset.train.indices[rows].tolist()
    inputs = dataset.examples(dataset.train)[torch.arange(40)].double()
    direction = {name: (end[name] - start[name]).double() for name in end}
    exact = brute_force(network.double(), inputs, dataset.train.labels[rows], direction, mask)
    numpy.testing.assert_allclose(arrays["cosines"][0, rows], exact.numpy(), atol=1e-4)


@pytest.fixture
def resnets(train, files):
    flags = ("-ln", "cifar100", "-rt", files, "--verify_data", 0, "-nt", "resnet", "-dp", 8, "-wf", 1, "-ne", 1,
             "-ss", 0, "-sf", 0, "--figures", 0, "-bs", 20, "--limit_test", 100, "--limit_train", 200)  # fmt: skip
    return tuple(train("-m", mode, "-pr", 0.5, *flags) for mode in ("sparse-scratch", "sparse-finetune"))


def test_with_batch_norm_the_ends_are_the_stored_solutions_with_statistics_of_the_training_set(resnets, files, tmp_path):
    moved = shutil.copytree(files, tmp_path / "moved")
    config = InterpolateConfig(points=3, bn_examples=150, batch_size=40, root=str(moved), cosine_alphas="0.9")
    folder = interpolate(config, *resnets)
    line = pandas.read_csv(folder / "line.csv").set_index(["path", "alpha", "split"])
    network, _, run = load_run(resnets[1])
    dataset = load_dataset(run.data)
    stored = evaluate(network, dataset.batches(dataset.train, 40))
    rows = torch.randperm(200, generator=stream(0, "batch norm"))[:150]
    inputs = dataset.examples(dataset.train)
    reestimate_batch_norm(network, [inputs[part] for part in rows.tensor_split(4)])
    means = evaluate(network, dataset.batches(dataset.train, 40))
    for path in ("Init-S -> Sol-F", "Init-F -> Sol-F", "Sol-S -> Sol-F"):
        assert line.loc[(path, 1.0, "train"), "loss"] == pytest.approx(means["loss"], rel=1e-4)
    assert abs(means["loss"] / stored["loss"] - 1) > 1e-3  # which the statistics of one epoch of training do not give
    classes = pandas.read_csv(folder / "classes.csv")
    assert len(classes) == 100
    assert classes["count"].sum() == 10
    assert (folder / "figures/figure7_8.png").stat().st_size > 10_000


def test_the_same_again_computes_nothing_and_other_settings_compute_anew(pair, caplog):
    caplog.set_level(logging.INFO)
    folder = interpolate(FEW, *pair)
    assert json.loads((folder / "result.json").read_text())["figures"] == []
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*.*")}
    caplog.clear()
    assert interpolate(InterpolateConfig(points=3, figures=False, memory_mb=7), *pair) == folder
    assert "is finished with these settings" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*.*")} == stamps
    interpolate(InterpolateConfig(points=3), *pair)  # adds the figures only
    assert (folder / "line.csv").stat().st_mtime_ns == stamps[folder / "line.csv"]
    assert len(json.loads((folder / "result.json").read_text())["figures"]) == 2
    interpolate(InterpolateConfig(points=4, figures=False), *pair)
    assert not list(folder.glob("figures/*"))
    assert pandas.read_csv(folder / "line.csv")["alpha"].nunique() == 4
    (folder / "line.csv").unlink()
    interpolate(InterpolateConfig(points=4, figures=False), *pair)
    assert (folder / "line.csv").exists()


def test_other_weights_in_the_same_folder_compute_anew(pair):
    folder = interpolate(FEW, *pair)
    before = (folder / "line.csv").read_text()
    state = load_state(pair[1] / "model.pt")
    state["network"]["layers.0.bias"] += 0.5
    save_state(pair[1] / "model.pt", state)
    vouch(pair[1])
    interpolate(FEW, *pair)
    assert (folder / "line.csv").read_text() != before


def refusal(*runs, config=FEW) -> str:
    with pytest.raises(RuntimeError) as stop:
        interpolate(config, *runs)
    assert "\n" not in str(stop.value)
    assert not list(runs[0].parents[3].glob("comparisons/*/*"))
    return str(stop.value)


def test_runs_that_do_not_belong_together_are_refused(pair, train, tmp_path):
    scratch, finetune = pair
    (dense,) = (scratch.parent.parent / "dense").iterdir()
    assert f"{dense} is a dense run" in refusal(dense, finetune)
    assert f"{finetune} is a sparse-finetune run" in refusal(finetune, scratch)
    other = train("-m", "sparse-finetune", "-pr", 0.7, *QUICK)
    assert "different masks (--prune_ratio 0.8 and 0.7)" in refusal(scratch, other)
    other = train("-m", "sparse-finetune", "-pr", 0.8, "-rs", 1, *QUICK)
    assert "from the same dense parent" in refusal(scratch, other)
    other = train("-m", "sparse-finetune", "-pr", 0.8, "--hidden_dims", 20, *QUICK)
    assert "--hidden_dims 128-64" in refusal(scratch, other)
    other = train("-m", "sparse-finetune", "-pr", 0.8, "--limit_train", 500, *QUICK)
    assert "--limit_train" in refusal(scratch, other)
    assert "is no run folder" in refusal(scratch, tmp_path / "a/b/c/nowhere")


def test_unfinished_runs_and_missing_states_are_refused(pair):
    scratch, finetune = pair
    (scratch / "state_dicts/epoch_0.pt").rename(scratch / "gone.pt")
    assert "epoch_0.pt is missing" in refusal(scratch, finetune)
    (scratch / "gone.pt").rename(scratch / "state_dicts/epoch_0.pt")
    (scratch / "state_dicts/epoch_0.pt").write_bytes(b"junk")
    assert "epoch_0.pt is damaged" in refusal(scratch, finetune)
    (finetune / "summary.json").write_text("{}")
    assert "summary.json is damaged" in refusal(scratch, finetune)
    (finetune / "summary.json").unlink()
    assert f"{finetune} is not finished" in refusal(scratch, finetune)


def test_other_data_files_than_those_of_the_training_are_refused(resnets, files, tmp_path):
    shutil.copytree(files, tmp_path / "other")
    name = tmp_path / "other/cifar-100-python/test"
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.write_bytes(content)
    assert "was trained on other data files" in refusal(
        *resnets, config=InterpolateConfig(points=3, root=str(tmp_path / "other"))
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"points": 2}, "--points 2: must be at least 3"),
        ({"cosine_alphas": "0.9,0.3"}, "--cosine_alphas 0.9,0.3: expected increasing numbers between 0 and 1"),
        ({"cosine_alphas": "0.3;0.9"}, "--cosine_alphas"),
        ({"cosine_alphas": "nan"}, "--cosine_alphas"),
        ({"cosine_alphas": "1.5"}, "--cosine_alphas"),
        ({"device": "tpu"}, "--device tpu: not one of cpu, cuda"),
        ({"metric_params": "weight"}, "did you mean weights?"),
    ],
)
def test_wrong_flags_are_refused(flags, words):
    with pytest.raises(FlagError, match="(?i)" + words.replace("?", "\\?")):
        InterpolateConfig(**flags)


def test_alphas_have_one_spelling():
    assert InterpolateConfig(cosine_alphas="0.30, .9").cosine_alphas == "0.3,0.9"
    assert InterpolateConfig(cosine_alphas=0.5).alphas() == [0.5]

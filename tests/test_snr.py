"""When the gradient SNR is measured, in which precision, and how well its standard error tells how far off it is."""

import math

import numpy
import pytest
import torch
import torch.nn.functional as F

import run
from helper.mask import Mask
from helper.metrics import jackknife as jackknife_module
from helper.metrics.evaluation import evaluate
from helper.metrics.jackknife import BatchGroups
from helper.metrics.quantities.snr import EVERY_EPOCH, snr_epochs
from helper.metrics.snr import GradientMoments
from helper.plotter.columns import read_columns
from helper.plotter.gradients import snr as snr_figure
from helper.system.seeds import stream
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.columns import SNR, SNR_LATER
from optim.folder import RunFolder
from optim.measuring import evaluate_training
from study.reporting.finished_run import TABLES, rows_of
from tests.conftest import tiny_conv
from tests.exact import batch, random_mask
from tests.outcome import TIMING, outcome

# --------------------------------------------------------------------------------------------------- standard error


def ratio(gradients: numpy.ndarray) -> float:
    """||mean|| / ||std|| of (batches, weights)."""
    return numpy.linalg.norm(gradients.mean(0)) / math.sqrt(gradients.var(0, ddof=1).sum())


def by_hand(gradients: numpy.ndarray, groups: list[list[int]]) -> float:
    """Delete-a-group jackknife, written as in Busing et al. 1999, by leaving out and computing anew."""
    n, g = len(gradients), len(groups)
    without = [ratio(numpy.delete(gradients, group, axis=0)) for group in groups]
    share = [n / len(group) for group in groups]
    whole = ratio(gradients)
    estimate = g * whole - sum((1 - 1 / h) * t for h, t in zip(share, without, strict=True))
    pseudo = [h * whole - (h - 1) * t for h, t in zip(share, without, strict=True)]
    return math.sqrt(sum((p - estimate) ** 2 / (h - 1) for p, h in zip(pseudo, share, strict=True)) / g)


def moments_of(gradients: numpy.ndarray, mask: dict | None = None) -> GradientMoments:
    """Of a network of one layer whose gradients these are."""
    moments = GradientMoments(
        torch.nn.Sequential(torch.nn.Linear(gradients.shape[1], 1, bias=False)).double(), mask, with_errors=True
    )
    for gradient in gradients:
        moments.update([torch.from_numpy(gradient)[None]])
    return moments


@pytest.mark.parametrize("n", [3, 11, 20, 21, 47])
@pytest.mark.parametrize("shift", [0.0, 0.3, 30.0])
def test_the_standard_error_is_that_of_leaving_out_and_computing_anew(n, shift):
    """Also where the mean is so large that plain sums of squares would cancel."""
    gradients = numpy.random.default_rng(n).normal(size=(n, 6)) + shift
    (row,) = moments_of(gradients).table()
    groups = [list(range(start, n, 20)) for start in range(min(n, 20))]
    assert row["snr"] == pytest.approx(ratio(gradients), rel=1e-10)
    assert row["standard_error"] == pytest.approx(by_hand(gradients, groups), rel=1e-7)
    assert row["noise_floor"] == pytest.approx(1 / math.sqrt(n))


def test_one_batch_a_group_is_the_ordinary_jackknife():
    gradients = numpy.random.default_rng(0).normal(size=(9, 4)) + 0.5
    without = [ratio(numpy.delete(gradients, i, axis=0)) for i in range(9)]
    expected = math.sqrt(8 / 9 * sum((t - numpy.mean(without)) ** 2 for t in without))
    assert moments_of(gradients).table()[0]["standard_error"] == pytest.approx(expected, rel=1e-10)


def test_only_active_weights_have_a_say():
    gradients = numpy.random.default_rng(1).normal(size=(12, 6)) + 0.4
    keep = torch.tensor([[True, False, True, True, False, True]])
    (row,) = moments_of(gradients, {"0.weight": keep}).table()
    alone = gradients[:, keep[0].numpy()]
    assert row["standard_error"] == pytest.approx(by_hand(alone, [[i] for i in range(12)]), rel=1e-9)


def test_large_networks_have_fewer_groups(monkeypatch):
    weights, active = [torch.zeros(100)], [torch.ones(100, dtype=torch.bool)]
    monkeypatch.setattr(jackknife_module, "MEMORY", 400 * 13)
    assert BatchGroups(weights, active).most == 13
    monkeypatch.setattr(jackknife_module, "MEMORY", 400)
    assert BatchGroups(weights, active).most == jackknife_module.FEWEST_GROUPS


@pytest.mark.parametrize("signal", [0.15, 0.6, 2.0])
def test_the_standard_error_is_about_the_spread_over_repetitions(signal):
    """Of layers as they are: hundreds of weights, and noise that batches share in few directions."""
    generator = numpy.random.default_rng(5)
    directions = generator.normal(size=(4, 200))
    mean = generator.normal(size=200)
    mean *= signal * math.sqrt(200) / numpy.linalg.norm(mean)
    found = []
    for _ in range(300):
        gradients = mean + generator.normal(size=(20, 200)) + generator.normal(size=(20, 4)) @ directions * 0.3
        (row,) = moments_of(gradients).table()
        found.append((row["snr"], row["standard_error"]))
    values, errors = numpy.array(found).T
    assert 0.85 < numpy.sqrt((errors**2).mean()) / values.std(ddof=1) < 1.6  # a jackknife errs upwards near the floor


def test_too_few_batches_or_no_noise_have_no_error():
    gradients = numpy.random.default_rng(2).normal(size=(2, 3))
    assert moments_of(gradients).table()[0]["standard_error"] is None
    same = numpy.ones((5, 3))
    row = moments_of(same).table()[0]
    assert math.isnan(row["snr"])
    assert math.isnan(row["standard_error"])


def test_moments_without_errors_are_the_same_to_the_bit():
    network, (inputs, labels) = tiny_conv(), batch()
    mask = random_mask(network, 0.5)
    tables = []
    for with_errors in (False, True):
        moments = GradientMoments(network, mask, with_errors=with_errors)
        evaluate(
            network,
            [(inputs[i : i + 5], labels[i : i + 5], labels[i : i + 5]) for i in range(0, 20, 5)],
            moments=moments,
            batch_size=5,
        )
        tables.append([{name: cell for name, cell in row.items() if name != "standard_error"} for row in moments.table()])
    assert tables[0] == tables[1]


# ------------------------------------------------------------------------------------------------------ which epochs


@pytest.mark.parametrize("n", [1, 2, 29, 30])
def test_short_runs_have_it_after_every_epoch(n):
    assert snr_epochs(None, n) == set(range(n + 1))
    assert snr_epochs(None, n + 4, 4) == set(range(4, n + 5))


@pytest.mark.parametrize("n", [31, 45, 100, 250, 3000])
@pytest.mark.parametrize("first", [0, 7])
def test_longer_runs_have_it_after_31_of_which_the_first_lie_closest(n, first):
    epochs = sorted(snr_epochs(None, first + n, first))
    gaps = numpy.diff(epochs)
    assert len(epochs) == EVERY_EPOCH + 1
    assert (epochs[0], epochs[1], epochs[-1]) == (first, first + 1, first + n)
    assert max(gaps) - gaps[-1] <= 1
    assert (numpy.diff(gaps) >= -2).all()  # they grow, to rounding
    assert n < 100 or 3 * gaps[:10].mean() < 2 * gaps[-10:].mean()
    assert max(gaps) <= 2 * n / EVERY_EPOCH * math.log(n) / math.log(EVERY_EPOCH)


def test_every_kth_epoch_has_it_with_the_first_and_the_last():
    assert snr_epochs(10, 25) == {0, 10, 20, 25}
    assert snr_epochs(10, 25, 5) == {5, 10, 20, 25}
    assert snr_epochs(1, 60) == set(range(61))
    assert snr_epochs(99, 3) == {0, 3}


FLAGS = ("--figures", 0, "--save_fisher", 0, "--limit_train", 200, "--limit_test", 50, "-bs", 50, "--hidden_dims", "8")


def column(folder, table: str, name: str) -> list[str]:
    return [row[name] for row in getattr(RunFolder(folder), table)().rows]


def without_times(folder) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name not in TIMING} for row in RunFolder(folder).history().rows]


def test_a_run_measures_it_after_those_epochs_and_its_other_numbers_are_the_same(train, tmp_path):
    flags = (*FLAGS, "--n_epochs", 5, "--lr_milestones", "3")
    every, some = train(*flags), train(*flags, "--snr_every", 3, root=tmp_path / "some")
    assert every.name == some.name
    assert dict.fromkeys(column(some, "snr", "epoch")) == dict.fromkeys(["0", "3", "5"])
    rows = [row for row in RunFolder(every).snr().rows if row["epoch"] in ("0", "3", "5")]
    assert RunFolder(some).snr().rows == rows
    assert without_times(some) == without_times(every)


def test_a_finished_run_lacks_nothing_that_its_passes_were_to_measure(train):
    """Its kept states are not measured as well when the same command comes again; without a table they are."""
    flags = (*FLAGS, "--n_epochs", 6, "--lr_milestones", "3", "--save_epochs", "2-4")
    folder = train(*flags, "--snr_every", 5)
    assert set(column(folder, "snr", "epoch")) == {"0", "5", "6"}
    train(*flags, "--snr_every", 5)
    assert set(column(folder, "snr", "epoch")) == {"0", "5", "6"}
    train(*flags, "--snr_every", 1)
    assert set(column(folder, "snr", "epoch")) == {"0", "2", "4", "5", "6"}


# ---------------------------------------------------------------------------------------------------------- precision


def test_in_bfloat16_it_is_that_of_autocast_gradients_and_near_the_other():
    data = load_dataset(DataConfig(limit_train=256))
    network = build_network(NetworkConfig(hidden_dims="64-32"), data.input_shape, 10, stream(0, "init"))
    means, rows = evaluate_training(network, Mask(), data, 32, seed=0, snr=True, precision="bf16")
    exact, others = evaluate_training(network, Mask(), data, 32, seed=0, snr=True)
    stack = []
    order = torch.randperm(len(data.train), generator=stream(0, "evaluation"))
    for inputs, labels, _ in data.batches(data.train, 32, order):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(inputs)
        stack.append(
            torch.autograd.grad(F.cross_entropy(logits.float(), labels), network.layers[0].weight)[0].flatten().double().numpy()
        )
    assert rows[0]["snr"] == pytest.approx(ratio(numpy.stack(stack)), rel=1e-5)
    assert {row["precision"] for row in rows} == {"bf16"}
    assert {row["precision"] for row in others} == {"fp32"}
    for row, other in zip(rows, others, strict=True):
        assert row["snr"] != other["snr"]
        assert abs(row["snr"] - other["snr"]) < 0.1 * other["standard_error"]
    assert means["loss"] == pytest.approx(exact["loss"], rel=1e-3)
    assert means["loss"] != exact["loss"]


def test_a_run_measures_in_bfloat16_but_for_its_last_epoch(train, tmp_path):
    flags = (*FLAGS, "--n_epochs", 3, "--lr_milestones", "2")
    exact, rough = train(*flags), train(*flags, "--snr_precision", "bf16", root=tmp_path / "rough")
    assert exact.name == rough.name
    found = RunFolder(rough)
    assert [row["precision"] for row in found.snr().rows if row["layer"] == "layers.0"] == ["bf16"] * 3 + ["fp32"]
    assert found.history().rows[-1]["loss_train"] == RunFolder(exact).history().rows[-1]["loss_train"]
    assert found.history().rows[0]["loss_train"] != RunFolder(exact).history().rows[0]["loss_train"]
    assert column(rough, "history", "loss_test") == column(exact, "history", "loss_test")


@pytest.mark.parametrize("flag", [("--snr_every", 2), ("--snr_precision", "bf16")])
def test_of_the_steps_own_gradients_neither_flag_says_anything(tmp_path, flag):
    flags = (*FLAGS, "--n_epochs", 1, "--lr_milestones", "1", "--snr_mode", "online", "--results_root", tmp_path)
    assert f"{flag[0]} {flag[1]} has no effect" in outcome(run.main, *flags, *flag).err


def test_measuring_later_says_with_epochs_which_states(train):
    from helper.schema.config import FlagError
    from optim.model import stored_config
    from study.measure import MeasureConfig, with_measurements

    folder = train(*FLAGS, "--n_epochs", 1, "--lr_milestones", "1")
    with pytest.raises(FlagError, match="--snr_every: say with --epochs"):
        with_measurements(stored_config(RunFolder(folder)), MeasureConfig(metrics="snr"), {"snr_every": ["2"]})


# ----------------------------------------------------------------------------------------------------- older tables


def older(folder) -> None:
    """Take the later columns out of a run's snr.csv, as an older program has left it."""
    path = folder / "snr.csv"
    n = len(SNR) - len(SNR_LATER)
    path.write_text("".join(",".join(line.split(",")[:n]) + "\n" for line in path.read_text().splitlines()))


def test_older_tables_are_read_drawn_and_reported_as_before(train):
    folder = train(*FLAGS, "--n_epochs", 2, "--lr_milestones", "1")
    older(folder)
    rows = RunFolder(folder).snr().rows
    assert {row["standard_error"] for row in rows} == {""}
    assert float(rows[0]["snr"]) > 0
    assert len(rows_of(folder / "snr.csv", TABLES["snr"])) == len(rows)
    (axis,) = snr_figure(read_columns(folder / "snr.csv")).axes
    assert not axis.collections


def test_the_figure_draws_two_standard_errors_on_either_side(train):
    folder = train(*FLAGS, "--n_epochs", 2, "--lr_milestones", "1")
    table = read_columns(folder / "snr.csv")
    (axis,) = snr_figure(table).axes
    layers = list(dict.fromkeys(table["layer"]))
    assert len(axis.collections) == len(layers)
    rows = table["layer"] == layers[0]
    outline = axis.collections[0].get_paths()[0].vertices
    for epoch, value, error in zip(table["epoch"][rows], table["snr"][rows], table["standard_error"][rows], strict=True):
        ends = outline[outline[:, 0] == epoch, 1]
        assert max(ends) == pytest.approx(value + 2 * error)
        assert min(ends) == pytest.approx(max(value - 2 * error, value / 10))

"""The largest eigenvalue of the Hessian: against exact ones, its intervals, its price, and along training."""

import copy
import csv
import math

import pandas
import pytest
import torch
from torch import nn

import experiment
from helper.charts.painting import paint
from helper.mask import Mask
from helper.metrics import sharpness
from helper.metrics.config import MetricConfig
from helper.metrics.main import METRICS
from helper.metrics.price import PRODUCT
from helper.metrics.sharpness import followed_eigenvalue, largest_eigenvalue
from helper.metrics.spectrum import spectrum
from helper.progress import Task
from helper.schema.config import unflatten
from helper.system.seeds import stream
from optim.callbacks.evaluation import Measure
from optim.config import RunConfig
from optim.folder import RunFolder
from scripts.made_up_runs import write_run
from study.reporting.collect import collect
from study.reporting.figures_sharpness import sharpness_figure, sharpness_of, to_limit
from study.reporting.tidy import series_labels
from tests.edited import vouch
from tests.exact import batch, hessian_matrix, pruned
from tests.stops import sigterm_after
from tests.test_half_samples import hessians, network_and_data
from tests.test_updating import finished, run

T29 = 2.05  # of half of a 95 % interval


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_tanh", "conv"])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_of_all_examples_it_is_that_of_the_whole_hessian(name, density):
    network, mask = pruned(name, 3, True, density)
    inputs, labels = batch()
    values = torch.linalg.eigvalsh(hessian_matrix(network, inputs, labels, mask))
    found = largest_eigenvalue(network, inputs, labels, mask, steps=30, generator=stream(0, "test"))
    exact = values[values.abs().argmax()]
    assert abs(found.value - exact) <= max(found.standard_error, 1e-9 * abs(exact))
    assert found.standard_error < 1e-3 * abs(exact)
    assert (found.n_samples, found.estimator) == (24, "lanczos; all 24")


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_intervals_of_samples_cover_that_of_all_examples(kind):
    network, inputs, labels = network_and_data(kind, 100)
    exact = torch.linalg.eigvalsh(hessians(network, inputs, labels).mean(0))[-1].item()
    found = [largest_eigenvalue(network, inputs, labels, max_samples=200, generator=stream(i, "draw")) for i in range(40)]
    covered = sum(abs(one.value - exact) <= T29 * one.standard_error for one in found)
    assert covered >= 36
    mean = sum(one.value for one in found) / 40
    spread = torch.tensor([one.value for one in found]).std().item()
    assert abs(mean - exact) < 4 * spread / math.sqrt(40) + 0.05 * exact  # a few % of bias of higher order are left
    assert sum(one.standard_error for one in found) / 40 < 0.6 * exact
    assert {one.degrees for one in found} == {29}


def test_few_steps_find_what_the_spectrum_finds_with_many():
    network, inputs, labels = network_and_data(nn.Tanh, 300)
    few = largest_eigenvalue(network, inputs, labels, max_samples=len(inputs), generator=stream(0, "a"))
    many = spectrum(network, inputs, labels, k=1, runs=1, max_samples=len(inputs), generator=stream(1, "b"))
    assert few.value == pytest.approx(many.eigenvalues[0].item(), abs=few.standard_error + 1e-9)
    assert few.standard_error < 0.01 * few.value


@pytest.mark.parametrize(("flags", "population", "expected"), [
    ({}, 50_000, 500 * (15 + 1 + 8)), ({}, 400, 400 * 16), ({"sharpness_steps": 10}, 50_000, 500 * (10 + 1 + 5)),
    ({"monte_carlo_samples": 2000}, 50_000, 2000 * 24),
])  # fmt: skip
def test_its_price_is_that_of_its_products(flags, population, expected):
    assert METRICS["sharpness"].price(MetricConfig(save_sharpness=True, **flags), population, 10) == PRODUCT * expected


def moved(network: nn.Module, length: float) -> nn.Module:
    """A copy of which all weights have moved a little."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(length * weight.norm() * torch.nn.functional.normalize(torch.randn(weight.shape), dim=None))
    return other


@pytest.fixture
def products_taken(monkeypatch):
    """Products of an example with a vector, which measurements add to."""
    taken = []

    class Counting(Task):
        def advance(self, n=1):
            taken.append(n)
            return super().advance(n)

    monkeypatch.setattr(sharpness, "Task", Counting)
    return taken


def test_products_are_as_many_as_the_price_says(products_taken):
    network, inputs, labels = network_and_data(nn.Tanh, 20)
    largest_eigenvalue(network, inputs, labels, max_samples=100, generator=stream(0, "count"))
    assert sum(products_taken) == pytest.approx(100 * 24, rel=0.05)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_from_the_last_vectors_fewer_products_find_the_same(kind, products_taken):
    """To a fraction of the error that is said, most of which the halves make; also where the mask has changed meanwhile."""
    torch.manual_seed(0)
    network, inputs, labels = network_and_data(kind, 100)
    _, former = followed_eigenvalue(network, inputs, labels, max_samples=200, generator=stream(0, "draw"))
    mask = Mask({name: torch.rand(p.shape) < 0.8 for name, p in network.named_parameters() if p.ndim == 2})
    for at, within in ((moved(network, 0.05), None), (network, mask)):
        if within:
            within.apply_(at)
        exact = largest_eigenvalue(at, inputs, labels, within, max_samples=200, steps=60, generator=stream(0, "draw"))
        products_taken.clear()
        how = {"max_samples": 200, "generator": stream(0, "draw"), "former": former}
        found, left = followed_eigenvalue(at, inputs, labels, within, **how)
        assert sum(products_taken) == pytest.approx(200 * (8 + 1 + 8), rel=0.05)
        assert abs(found.value - exact.value) < 0.15 * found.standard_error
        assert found.standard_error == pytest.approx(exact.standard_error, rel=0.1)
        assert found.estimator == "lanczos from the last one; 200 of 1200, bias removed"
        pruned_away = [~within[name].flatten() for name in within] if within else []
        names = [name for name, _ in at.named_parameters()]
        parts = dict(zip(names, left.split([p.numel() for p in at.parameters()]), strict=True))
        assert all(not parts[name][gone].any() for name, gone in zip(within or (), pruned_away, strict=True))


def test_an_eigenvalue_that_overtakes_the_one_that_was_followed_is_found():
    """The last vector is that of another eigenvalue: to follow it blindly would give that one, with a small residual."""
    network, inputs, labels = network_and_data(nn.Tanh, 100)
    values, vectors = torch.linalg.eigh(hessians(network, inputs, labels).mean(0))
    assert values[-2] < 0.9 * values[-1]
    how = {"max_samples": len(inputs), "generator": stream(0, "draw")}
    found, _ = followed_eigenvalue(network, inputs, labels, former=vectors[:, -2].float(), **how)
    assert found.value == pytest.approx(values[-1].item(), rel=1e-3)
    assert abs(found.value - values[-1]) <= found.standard_error


@pytest.mark.parametrize(
    "former", [torch.zeros(75), torch.ones(9), torch.full((75,), math.nan)], ids=["zeros", "others", "nan"]
)
def test_without_a_usable_vector_it_begins_anew(former):
    network, inputs, labels = network_and_data(nn.Tanh, 20)
    how = {"max_samples": 100}
    fresh = largest_eigenvalue(network, inputs, labels, generator=stream(0, "a"), **how)
    found, _ = followed_eigenvalue(network, inputs, labels, generator=stream(0, "a"), former=former, **how)
    assert (found.value, found.estimator) == (fresh.value, fresh.estimator)


ALONG = (
    "--mode", "dynamic", "--mask_every", 4, "--hidden_dims", "24", "--limit_train", 300, "--n_epochs", 4, "--lr_milestones", 3,
    "--save_sharpness", 1, "--metric_every", 1, "-ms", 100, "-sf", 0, "-ss", 0, "--figures", 0,
)  # fmt: skip


def test_an_interrupted_run_follows_it_with_the_same_bits(tmp_path):
    """Under a mask that changes; later epochs take fewer products, and what is measured by itself is the same within errors."""
    whole = finished(tmp_path / "whole", *ALONG)
    with sigterm_after(2, 1):
        assert run(tmp_path / "stopped", *ALONG).code == 75
    stopped = finished(tmp_path / "stopped", *ALONG)
    mine, theirs = (
        [{name: cell for name, cell in row.items() if name != "seconds"} for row in folder.metrics().rows]
        for folder in (stopped, whole)
    )
    assert mine == theirs
    assert ["from the last one" in row["estimator"] for row in theirs] == [False, True, True, True, True]
    left = torch.load(whole.checkpoint, weights_only=True)["callbacks"]["Measure"]
    assert [vector.dtype for vector in left.values()] == [torch.float32]


def test_what_an_interrupted_epoch_has_measured_is_measured_again_as_before(tmp_path):
    """Its vectors count from the end of the epoch on, when the checkpoint does."""
    following = Measure(RunFolder(tmp_path), MetricConfig(), seed=0)
    following.load_state({"sharpness all": 1})
    following.coming = {"sharpness all": 2}
    assert following.state() == {"sharpness all": 1}
    following.on_epoch_end(None)
    assert following.state() == {"sharpness all": 2}


def test_a_run_measures_it_along_the_way_and_a_finished_one_after_the_fact(train):
    flags = (
        "--n_epochs",
        2,
        "--lr_milestones",
        1,
        "--hidden_dims",
        8,
        "--limit_train",
        200,
        "--figures",
        0,
        "-sf",
        0,
        "-ss",
        0,
    )
    folder = train(*flags, "--figures", 0, "-sf", 0, "-ss", 0, "--save_sharpness", 1, "--metric_every", 1)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "sharpness"]
    assert [(row["epoch"], row["subset"], row["layer"]) for row in rows] == [(str(epoch), "all", "all") for epoch in (0, 1, 2)]
    assert all(float(row["standard_error"]) < 0.2 * float(row["value"]) for row in rows)
    assert all(row["reliable"] == "1" for row in rows)


# ----------------------------------------------------------------------------------------------------- along the way


def with_eigenvalues(root, mode: str, seed: int, values: dict[int, float], **flags) -> None:
    """A made-up run with eigenvalues at some epochs beside its Tr F."""
    run = {"mode": mode, "random_state": seed, "results_root": str(root), "prune_ratio": 0.9, **flags}
    folder = write_run(unflatten(RunConfig, run))
    table = pandas.read_csv(folder.path / "metrics.csv")
    rows = table[table["layer"] == "all"].set_index("epoch").loc[list(values)].reset_index()
    rows = rows.assign(metric="sharpness", value=list(values.values()), settings="{}")
    pandas.concat([table, rows]).to_csv(folder.path / "metrics.csv", index=False)
    vouch(folder.path)


@pytest.fixture
def followed(tmp_path):
    for seed in (1, 2, 3):
        kinds = [("dense", {}), ("sparse-scratch", {}), ("sparse-scratch", {"label_smoothing": 0.1})]
        for factor, (mode, flags) in enumerate(kinds, 1):
            values = {0: 2.0 * factor, 10: 5.0 * factor * seed, 30: 8.0 * factor}
            with_eigenvalues(tmp_path, mode, seed, values, **flags)
    return collect(tmp_path)


def test_eigenvalues_are_drawn_as_geometric_means_beside_tr_f_and_the_limit(followed):
    records = [record for record in followed.records if "label_smoothing" not in record.identity]
    chart = sharpness_figure(records, series_labels(records))
    fisher, eigenvalue, ratio = chart.panels
    headings = [panel.y.label.split("\n")[0] for panel in chart.panels]
    assert headings == ["Fisher trace", "largest eigenvalue of the Hessian", "largest eigenvalue"]
    for factor, series, relative in zip((1, 2), eigenvalue.series, ratio.series, strict=True):
        assert series.label == relative.label == ("dense", "sparse-scratch")[factor - 1]
        assert list(series.x) == [0, 10, 30]
        middle = 5 * factor * 6 ** (1 / 3)
        assert list(series.y) == pytest.approx([2 * factor, middle, 8 * factor])
        assert list(relative.y) == pytest.approx([value * 0.1 / (2 * 1.9) for value in series.y])  # lr 0.1, momentum 0.9
        assert len(series.runs[0]) == 3
    assert [level.y for level in ratio.levels] == [1]
    assert {series.label for series in fisher.series} == {"dense", "sparse-scratch"}
    paint(chart)


def test_series_of_one_method_have_looks_of_their_own(followed):
    sparse = [record for record in followed.records if record.mode == "sparse-scratch"]
    chart = sharpness_of({str(i): [record] for i, record in enumerate(sparse)})
    looks = [series.look for series in chart.panels[1].series]
    assert len(set(looks)) == len(looks) == 6


def test_without_eigenvalues_of_three_epochs_there_is_no_such_figure(tmp_path):
    with_eigenvalues(tmp_path, "dense", 1, {0: 1.0, 30: 2.0})
    records = collect(tmp_path).records
    assert sharpness_figure(records, series_labels(records)) is None


@pytest.mark.parametrize(("flags", "expected"), [
    ({"momentum": 0.0}, 0.1 / 2), ({"momentum": 0.5}, 0.1 / 3), ({"nesterov": True}, 0.1 * 2.8 / 3.8),
    ({"optimizer_name": "adam"}, math.nan),
])  # fmt: skip
def test_the_limit_is_where_gradient_descent_on_a_quadratic_begins_to_diverge(flags, expected, tmp_path):
    with_eigenvalues(tmp_path, "dense", 1, {0: 1.0}, **flags)
    (record,) = collect(tmp_path).records
    factor = to_limit(record, 0)
    assert factor == pytest.approx(expected, nan_ok=True)
    for sign in () if math.isnan(factor) else (-1, 1):
        weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        steps = torch.optim.SGD([weight], 0.1, record.flags["momentum"], nesterov=record.flags["nesterov"])
        for _ in range(3000):
            steps.zero_grad()
            ((1 + 0.02 * sign) / factor * weight**2 / 2).backward()
            steps.step()
        assert (abs(weight.item()) > 1e3) == (sign > 0)


@pytest.mark.parametrize(("begin", "epochs"), [(0, {0: 1, 1: 1, 9: 9}), (3, {3: 4, 4: 4, 30: 30})])
def test_the_weights_that_training_begins_with_have_the_rate_of_their_first_epoch(begin, epochs, tmp_path):
    """A round begins at the epoch to which it is rewound; the rate in that row is none of its steps'."""
    flags = {"mode": "iterative", "rewind_epoch": begin, "prune_ratio": 0.2} if begin else {"mode": "dense"}
    folder = write_run(unflatten(RunConfig, {"results_root": str(tmp_path), "momentum": 0.0, **flags}))
    history = pandas.read_csv(folder.path / "history.csv")
    history[history["epoch"] >= begin].assign(lr=history["epoch"] / 100).to_csv(folder.path / "history.csv", index=False)
    vouch(folder.path)
    (record,) = collect(tmp_path).records
    assert record.first_epoch == begin
    assert {epoch: to_limit(record, epoch) for epoch in epochs} == pytest.approx({e: of / 200 for e, of in epochs.items()})


def test_the_report_has_the_figure(followed, capsys):
    root = followed.root
    with pytest.raises(SystemExit) as stop:
        experiment.main(["report", str(root)])
    assert stop.value.code == 0
    page = (root / "report/index.html").read_text()
    assert "Sharpness along the way" in page
    assert "sparse-scratch, without a remedy" in page
    assert "sparse-scratch, label_smoothing 0.1" in page

"""Measurements of a run: what metrics.csv, spectrum.npz and snr.csv hold, and that resuming and repeating change nothing."""

import io
import json
import re

import numpy
import pytest
import scipy.stats
import torch
from torch import nn

import experiment
from helper.mask import Mask
from helper.metrics.config import MetricConfig
from helper.metrics.estimate import Estimate
from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.main import METRICS
from helper.schema.config import replace
from helper.system.seeds import stream
from helper.system.signals import Interrupted
from loader.main import DataConfig, load_dataset
from network.main import NetworkConfig, build_network
from optim.checkpoint import save_state
from optim.folder import RunFolder
from optim.main import train_run
from optim.measuring import measure_subsets, restore_in_all
from optim.model import load_run, load_stored, model_state, stored_config
from tests.conftest import tiny_conv
from tests.exact import batch, random_mask
from tests.outcome import outcome
from tests.stops import StopsInSecondEpoch
from tests.test_run import rows

QUICK = ("--figures", 0, "--n_epochs", 2, "--lr_milestones", 1, "--save_snr", 0)
EVERYTHING = ("--save_hessian", 1, "--save_hessian_residual", 1, "--save_jacobian", 1, "--save_jacobian_top", 1)


def totals(folder, metric: str, **conditions: str) -> list[dict[str, str]]:
    wanted = {"metric": metric, "layer": "all"} | conditions
    return [row for row in rows(folder, "metrics") if all(row[key] == value for key, value in wanted.items())]


def test_every_quantity_is_measured_with_its_error(train):
    folder = train("--mode", "sparse-scratch", *QUICK, *EVERYTHING)
    for metric in ("fisher", "hessian", "jacobian", "jacobian_top"):
        first, last = totals(folder, metric)
        assert (first["epoch"], last["epoch"]) == ("0", "2")
        assert 0 < float(last["standard_error"]) < 1.2 * 0.05 * float(last["value"])
        assert int(last["n_samples"]) >= 2
        assert float(last["seconds"]) >= 0
    (residual,) = totals(folder, "hessian_residual", epoch="2")
    assert (residual["value"], residual["standard_error"]) == ("0.0", "0.0")
    (fisher,), (hessian,) = (totals(folder, metric, epoch="2") for metric in ("fisher", "hessian"))
    apart = abs(float(fisher["value"]) - float(hessian["value"]))
    assert apart < 4 * (float(fisher["standard_error"]) ** 2 + float(hessian["standard_error"]) ** 2) ** 0.5
    assert hessian["estimator"].startswith("gauss_newton (piecewise linear)")
    measured = json.loads((folder / "summary.json").read_text())["metrics"]
    assert measured["jacobian"]["value"] == float(totals(folder, "jacobian", epoch="2")[0]["value"])


def test_plus_minus_in_the_log_is_half_of_the_95_percent_interval(train):
    folder = train(*QUICK, "--save_jacobian", 1, "--save_spectrum", 1, "--spectrum_k", 1, "--spectrum_steps", 4)
    command = ("measure", folder, "--metrics", "hessian")
    assert outcome(experiment.main, *command).code == 0
    lines = re.findall(r"epoch (\d+)  (\w+) (\S+) ± (\S+) \((.*?);", (folder / "training.log").read_text())
    assert {metric for _, metric, *_ in lines} == {"fisher", "jacobian", "hessian"}
    for epoch, metric, value, half, says in lines:
        (row,) = totals(folder, metric, epoch=epoch)
        low, high = scipy.stats.norm.interval(0.95, float(row["value"]), float(row["standard_error"]))
        assert float(value) == pytest.approx((low + high) / 2, rel=1e-4)
        assert float(half) == pytest.approx((high - low) / 2, rel=0.05)
        assert says == "95 % interval"
    (spectrum,) = [line for line in (folder / "training.log").read_text().splitlines() if "largest eigenvalue" in line][-1:]
    assert "±" not in spectrum, "a residual is no interval"


def test_what_a_run_measures_is_what_python_measures(train):
    folder = train("--mode", "sparse-finetune", "--prune_ratio", 0.8, *QUICK, "-fd", "exact", "-ms", 200)
    network, mask, config = load_run(folder)
    train_split = load_dataset(config.data).train
    inputs = load_dataset(config.data).examples(train_split)
    (row,) = totals(folder, "fisher", epoch="2")
    same = fisher_trace(network, inputs, mask, method="exact", max_samples=200, generator=stream(42, "metric", "fisher", "all"))
    assert (float(row["value"]), float(row["standard_error"])) == pytest.approx((same.value, same.standard_error))
    assert row["n_samples"] == "200"
    layers = {r["layer"]: r for r in rows(folder, "metrics") if (r["metric"], r["epoch"]) == ("fisher", "2")}
    assert layers.keys() == {"all", *same.by_layer}
    for layer, (value, error) in same.by_layer.items():
        assert [float(layers[layer][c]) for c in ("value", "standard_error")] == pytest.approx([value, error])
    assert mask.sparsity > 0.7
    unmasked = fisher_trace(network, inputs, method="exact", max_samples=200, generator=stream(42, "metric", "fisher", "all"))
    assert unmasked.value > 1.02 * same.value  # pruned coordinates have gradients too


def test_noisy_runs_measure_clean_and_mislabelled_examples_apart(train):
    folder = train("--loader_name", "digits_noisy", "--noise_ratio", 0.25, *QUICK, "--save_jacobian", 1)
    for metric in ("fisher", "jacobian"):
        found = {row["subset"]: row for row in totals(folder, metric, epoch="2")}
        assert set(found) == {"all", "clean", "mislabelled"}
        value, error = ({k: float(row[c]) for k, row in found.items()} for c in ("value", "standard_error"))
        labels = numpy.load(folder / "labels.npz")
        share = (labels["true_label"] != labels["given_label"]).mean()
        summary = json.loads((folder / "summary.json").read_text())["metrics"][metric]
        assert (summary["value"], summary["standard_error"]) == (value["all"], error["all"])
        assert value["all"] == pytest.approx((1 - share) * value["clean"] + share * value["mislabelled"])
        assert error["all"] == pytest.approx((((1 - share) * error["clean"]) ** 2 + (share * error["mislabelled"]) ** 2) ** 0.5)
    layers = {row["subset"] for row in rows(folder, "metrics") if row["layer"] == "layers.0"}
    assert layers == {"all", "clean", "mislabelled"}
    clean_test = train("--loader_name", "digits_noisy", "--noise_ratio", 0.25, *QUICK, "--metric_split", "test")
    assert {row["subset"] for row in totals(clean_test, "fisher", split="test")} == {"all"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_estimator_gets_the_examples_labels_mask_and_random_numbers_of_its_subset(monkeypatch, split):
    data = load_dataset(DataConfig(loader_name="digits_noisy", noise_ratio=0.25, limit_train=100, limit_test=60))
    network = build_network(NetworkConfig(hidden_dims="8"), data.input_shape, 10, stream(0, "init"))
    mask, given = Mask({"layers.0.weight": torch.zeros(8, 64)}), []

    def record(network, inputs, labels, mask, config, *, generator):
        given.append((inputs, labels, mask, torch.rand(3, generator=generator)))
        return Estimate(0.0, 0.0, 0, "made up; every example")

    monkeypatch.setattr(METRICS["fisher"], "measure", record)
    found = measure_subsets(METRICS["fisher"], network, mask, data, MetricConfig(metric_split=split), seed=5)
    rows_of = data.train.noisy if split == "train" else None
    parts = [data.test] if rows_of is None else [data.train[~rows_of], data.train[rows_of]]
    assert list(found) == (["all"] if rows_of is None else ["all", "clean", "mislabelled"])
    for part, (inputs, labels, of_network, _) in zip(parts, given, strict=True):
        assert torch.equal(inputs[torch.arange(len(part))], data.normalise(part.inputs))
        assert torch.equal(labels, part.labels)
        assert of_network is mask
    assert len({drawn.numpy().tobytes() for *_, drawn in given}) == len(parts)


EXACT = {"fisher_method": "exact"}
FLAGS_THAT_ACT = [  # metric, flags, what measures it, the same as its arguments
    ("fisher", EXACT | {"metric_params": "weights"}, fisher_trace, {"method": "exact", "params": "weights"}),
    ("fisher", EXACT | {"metric_params": "all"}, fisher_trace, {"method": "exact", "params": "all"}),
    ("fisher", EXACT | {"fisher_metric": "empirical"}, fisher_trace, {"method": "exact", "metric": "empirical"}),
    ("fisher", EXACT | {"monte_carlo_samples": 10}, fisher_trace, {"method": "exact", "max_samples": 10}),
    ("fisher", {"fisher_method": "vmap", "monte_carlo_trials": 3}, fisher_trace, {"method": "vmap", "n_probes": 3}),
    ("hessian", {"metric_params": "weights"}, hessian_trace, {"params": "weights"}),
    ("hessian", {"hessian_method": "pyhessian"}, hessian_trace, {"method": "pyhessian", "max_samples": 1000}),
    ("hessian_residual", {"metric_params": "weights"}, hessian_trace, {"term": "residual", "params": "weights"}),
    ("jacobian", {"jacobian_output": "probabilities"}, jacobian_norm, {"output": "probabilities"}),
    ("jacobian", {"jacobian_method": "exact"}, jacobian_norm, {"method": "exact"}),
    (
        "jacobian_top", {"jacobian_output": "probabilities"}, jacobian_norm,
        {"method": "exact", "norm": "spectral", "output": "probabilities"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "flags", "function", "options"), FLAGS_THAT_ACT)
def test_the_flags_of_a_measurement_reach_its_estimator(metric, flags, function, options):
    network = nn.Sequential(tiny_conv(), nn.Tanh()).eval()  # curved, with BatchNorm
    inputs, labels = batch()
    mask = random_mask(network, 0.5)
    arguments = {fisher_trace: (inputs, mask), hessian_trace: (inputs, labels, mask), jacobian_norm: (inputs,)}[function]
    options |= {"labels": labels} if function is fisher_trace else {}

    def measured(**flags) -> Estimate:
        config = MetricConfig(metric_rtol=0, **flags)
        return METRICS[metric].measure(network, inputs, labels, mask, config, generator=stream(0, "flags"))

    found, usual = measured(**flags), measured()
    same = function(network, *arguments, rtol=0, generator=stream(0, "flags"), **options)
    assert (found.value, found.standard_error) == pytest.approx((same.value, same.standard_error), rel=1e-12)
    assert found.value != pytest.approx(usual.value, rel=1e-6)


def test_other_settings_are_measured_beside_the_old_ones_and_equal_ones_never_twice(train):
    folder = train(*QUICK)
    before = rows(folder, "metrics")
    train(*QUICK, "--metric_memory_mb", 50)  # how much at once is no setting
    train(*QUICK, "--fisher_metric", "fim")  # what it is by default
    assert rows(folder, "metrics") == before
    train(*QUICK, "--metric_rtol", 0.02)
    older, newer = totals(folder, "fisher", epoch="2")
    summary = json.loads((folder / "summary.json").read_text())["metrics"]["fisher"]
    assert summary["value"] == float(newer["value"]) != float(older["value"])
    train(*QUICK, "-fd", "vmap", "-ms", 50, "-mt", 2)
    assert [row["estimator"].split(";")[0] for row in totals(folder, "fisher", epoch="2")][2] == "vmap:fim_monte_carlo"


def test_the_flags_of_the_published_code_act(train):
    folder = train(*QUICK, "-fd", "ours", "-ms", 30, "-mt", 3, "-bf", 7)
    (row,) = totals(folder, "fisher", epoch="2")
    assert (row["n_samples"], row["estimator"]) == ("30", "ours:fim_monte_carlo; random sample, 3 probes")
    train(*QUICK, "-fd", "nngeometry", "-fm", "empirical", "-ms", 30, "-bf", 10)
    assert totals(folder, "fisher", epoch="2")[1]["estimator"] == "nngeometry:empirical; random batches"
    train(*QUICK, "-fd", "exact")
    assert totals(folder, "fisher", epoch="2")[2]["n_samples"] == "1000"  # where no precision stops it
    train(*QUICK, "-fd", "exact", "--metric_rtol", 0.01)
    assert len(totals(folder, "fisher", epoch="2")) == 3


def test_weights_that_stand_still_have_rows_for_each_epoch(train):
    folder = train(*QUICK, "--lr", 0, "--weight_decay", 0)
    assert [row["epoch"] for row in totals(folder, "fisher")] == ["0", "2"]
    assert "fisher" in json.loads((folder / "summary.json").read_text())["metrics"]


def test_a_curved_network_has_its_true_hessian_and_refuses_gauss_newton(train):
    flags = (*QUICK, "--hidden_act", "tanh", "--hidden_dims", "8", "--save_hessian", 1, "-ms", 60, "--save_hessian_residual", 1)
    folder = train(*flags)
    (row,) = totals(folder, "hessian", epoch="2")
    assert row["estimator"].startswith("hutchinson (not piecewise linear: operation tanh)")
    assert float(totals(folder, "hessian_residual", epoch="2")[0]["standard_error"]) > 0
    with pytest.raises(ValueError, match="would measure the Gauss-Newton"):
        train(*flags, "--hessian_method", "gauss_newton")


def test_the_spectrum_is_of_every_example_where_that_is_affordable(train):
    few = ("--spectrum_k", 2, "--spectrum_steps", 4, "--spectrum_runs", 1)
    folder = train("--n_epochs", 1, "--save_snr", 0, "--save_fisher", 0, "--hidden_dims", 8, "--save_spectrum", 1, *few)
    with numpy.load(folder / "spectrum.npz") as arrays:
        assert int(arrays["n_samples"]) == int(arrays["population"]) == 1438
        assert not arrays["bias"].any()
        assert not arrays["standard_errors"].any()
        assert numpy.isnan(arrays["density_errors"]).all()  # of one starting vector
    assert "of all 1438 examples (residual of Lanczos" in (folder / "training.log").read_text()
    found = json.loads((folder / "summary.json").read_text())["metrics"]["eigenvalue"]
    assert (found["estimator"], found["standard_error"]) == ("Lanczos on hessian; every example", 0)
    assert (folder / "figures/spectrum.png").stat().st_size > 10_000


def test_the_spectrum_is_stored_drawn_and_not_measured_twice(train):
    flags = ("--n_epochs", 2, "--lr_milestones", 1, "--save_snr", 0, "--mode", "sparse-scratch", "--save_spectrum", 1,
             "--spectrum_k", 3, "--spectrum_steps", 12, "--spectrum_runs", 2, "-ms", 300)  # fmt: skip
    folder = train(*flags)
    with numpy.load(folder / "spectrum.npz") as arrays:
        assert arrays["eigenvalues"].shape == arrays["residuals"].shape == (3,)
        assert arrays["nodes"].shape == (2, 12)
        summary = json.loads((folder / "summary.json").read_text())
        assert arrays["size"] == summary["parameters_active"]
        assert (str(arrays["matrix"]), int(arrays["n_samples"]), int(arrays["population"])) == ("hessian", 300, 1438)
        numpy.testing.assert_allclose(arrays["corrected"], arrays["eigenvalues"] - arrays["bias"])
        said = summary["metrics"]["eigenvalue"]
        assert said["value"] == pytest.approx(arrays["corrected"][0])
        assert (said["standard_error"], said["residual"]) == (arrays["standard_errors"][0], arrays["residuals"][0])
        assert said["estimator"] == "Lanczos on hessian; 300 of 1438 examples, less the bias that their halves show"
        assert arrays["grid"].shape == arrays["density"].shape
    assert "from 300 of 1438 examples" in (folder / "training.log").read_text()
    assert (folder / "figures/spectrum.png").stat().st_size > 10_000
    before = (folder / "spectrum.npz").read_bytes()
    with numpy.load(folder / "spectra/epoch_0.npz") as initial, numpy.load(folder / "spectrum.npz") as final:
        assert str(initial["checkpoint"]) != str(final["checkpoint"])
    train(*flags, "--metric_memory_mb", 30)
    assert (folder / "spectrum.npz").read_bytes() == before
    train(*flags, "--spectrum_matrix", "gauss_newton")
    with numpy.load(folder / "spectrum.npz") as arrays:
        assert str(arrays["matrix"]) == "gauss_newton"
    (folder / "spectrum.npz").unlink()
    train(*flags)
    with numpy.load(folder / "spectrum.npz") as again, numpy.load(io.BytesIO(before)) as first:
        assert all(numpy.array_equal(again[name], first[name]) for name in first if name != "seconds")


# ------------------------------------------------------------------------------------------------ SNR of the steps


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ((), [40, 40]), (("--train_subset", 1, "--subset_ratio", 0.3), [12, 12]),
        (("--train_subset", 1, "--subset_ratio", 0.01), [1, 1]),
        (("--subset_schedule", "easy-first", "--subset_ratio", 0.4), [16, 40]),
    ],
)  # fmt: skip
def test_online_snr_says_of_how_many_examples_its_gradients_were(train, flags, sizes):
    """Noise falls with the examples of a step, which a subset leaves out some of."""
    found = rows(train(*flags, "--snr_mode", "online", "--n_epochs", 2, "--lr_milestones", 1, "--limit_train", 200, "-bs", 40,
                       "--hidden_dims", 8, "--save_fisher", 0, "--figures", 0), "snr")  # fmt: skip
    assert {(int(row["epoch"]), int(row["batch_size"])) for row in found} == set(enumerate(sizes, 1))


def test_online_snr_is_that_of_the_training_gradients(train):
    """With a learning rate of zero the weights stand still: the steps' moments are those of the same mini-batches."""
    flags = ("--figures", 0, "--n_epochs", 2, "--lr", 0, "--save_fisher", 0, "--lr_milestones", 1, "--weight_decay", 0)
    online = {row["layer"]: row for row in rows(train(*flags, "--snr_mode", "online"), "snr") if row["epoch"] == "1"}
    fixed = train(*flags, "--random_state", 43)
    first = {row["layer"]: row for row in rows(fixed, "snr") if row["epoch"] == "1"}
    assert {row["mode"] for row in online.values()} == {"online"}
    assert {row["mode"] for row in first.values()} == {"fixed"}
    network, _, config = load_run(train(*flags, "--snr_mode", "online"))
    data = load_dataset(config.data).train
    gradients = []
    for rows_of_batch in torch.randperm(len(data), generator=stream(42, "order", 0)).split(128):
        if len(rows_of_batch) == 128:
            loss = torch.nn.functional.cross_entropy(
                network(load_dataset(config.data).normalise(data.inputs[rows_of_batch])), data.labels[rows_of_batch]
            )
            gradients.append(torch.autograd.grad(loss, network.layers[0].weight)[0])
    stack = torch.stack(gradients).double()
    row = online["layers.0"]
    assert int(row["n_batches"]) == len(stack)
    assert float(row["grad_mean_norm"]) == pytest.approx(stack.mean(0).norm().item(), rel=1e-4)
    assert float(row["grad_std_norm"]) == pytest.approx(stack.std(0).norm().item(), rel=1e-4)


@pytest.mark.parametrize(("n", "full"), [(256, "4"), (255, "3"), (257, "4")])
def test_online_snr_takes_every_full_batch_and_no_short_one(train, n, full):
    folder = train("--figures", 0, "-ne", 1, "-bs", 64, "--limit_train", n, "--snr_mode", "online", "--save_fisher", 0)
    assert {row["n_batches"] for row in rows(folder, "snr")} == {full}


def test_online_snr_has_no_row_before_the_first_step_and_needs_no_pass(train):
    folder = train("--figures", 0, "--n_epochs", 3, "--snr_mode", "online", "--train_eval", "running", "--save_fisher", 0)
    assert {row["epoch"] for row in rows(folder, "snr")} == {"1", "2", "3"}
    train("--n_epochs", 3, "--snr_mode", "online", "--train_eval", "running", "--save_fisher", 0, "--save_hessian", 1)
    assert (folder / "figures/snr.png").exists()


def test_online_snr_survives_an_interruption_in_mid_epoch(train, tmp_path):
    flags = (
        "--figures", 0, "--n_epochs", 3, "--net_name", "mnist_lenet", "--lr", 0.002, "-bs", 20, "--limit_train", 161,
        "--limit_test", 50, "--snr_mode", "online", "--train_eval", "running", "--save_fisher", 0, "--mode", "dense",
    )  # fmt: skip
    whole = train(*flags)
    config = replace(stored_config(RunFolder(whole)), results_root=str(tmp_path / "stopped"))
    with pytest.raises(Interrupted, match="after 1 epochs and 4 steps"):
        train_run(config, StopsInSecondEpoch(9, 4))
    stopped = train(*flags, root=tmp_path / "stopped")
    assert "resuming after 1 epochs and 4 steps" in (stopped / "training.log").read_text()
    assert (stopped / "snr.csv").read_text() == (whole / "snr.csv").read_text()


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-fd", "spectrall"], ["--fisher_method spectrall", "did you mean spectral?"]),
        (["-fm", "fim_monte_carlo"], ["--fisher_metric fim_monte_carlo", "vmap, ours or nngeometry"]),
        (["--metric_rtol", "-0.1"], ["--metric_rtol -0.1", "at least 0"]),
        (["--metric_rtol", "nan"], ["--metric_rtol nan"]),
        (["--metric_memory_mb", "0"], ["--metric_memory_mb 0", "at least 1"]),
        (["-mt", "1"], ["--monte_carlo_trials 1", "at least 2"]),
        (["-ms", "1"], ["--monte_carlo_samples 1", "at least 2"]),
        (["--spectrum_steps", "5"], ["--spectrum_steps 5", "at least --spectrum_k 10"]),
        (["--train_eval", "running"], ["--train_eval running", "--snr_mode online"]),
        (["--snr_mode", "onlin"], ["did you mean online?"]),
        (
            ["--metric_every", "2", "-sf", "0"],
            ["--metric_every needs something to measure: --save_fisher 1,", "--save_spectrum 1 or --save_sharpness 1"],
        ),
    ],
)
def test_wrong_measurement_flags_are_refused_in_one_line(refuse, flags, words):
    line = refuse(*flags)
    assert all(word in line for word in words), line


# -------------------------------------------------------------------------------------- weights of a file, in their place


class Tied(nn.Module):
    """Two layers of one weight, BatchNorm's buffers, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)


@pytest.mark.parametrize("make", [Tied, lambda: tiny_conv(3), lambda: nn.Linear(3, 2)])
def test_a_files_weights_take_the_place_of_a_networks_without_a_second_copy(tmp_path, monkeypatch, make):
    saved, network = make(), make()
    save_state(tmp_path / "model.pt", model_state(saved, Mask(), 3))
    parameters, bytes_left = dict(network.named_parameters(remove_duplicate=False)), []

    def load_after_counting(path):
        bytes_left.append(sum(value.untyped_storage().nbytes() for value in network.state_dict().values()))
        return load_stored(path)

    monkeypatch.setattr("optim.measuring.load_stored", load_after_counting)
    assert restore_in_all(network, tmp_path / "model.pt").epoch == 3
    assert bytes_left[0] <= 8 * len(network.state_dict())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in saved.state_dict().items())
    now = dict(network.named_parameters(remove_duplicate=False))
    assert all(now[name] is parameter for name, parameter in parameters.items())
    assert all(a.requires_grad == b.requires_grad for a, b in zip(network.parameters(), saved.parameters(), strict=True))


def test_a_file_of_another_network_is_refused_by_its_first_difference(tmp_path):
    save_state(tmp_path / "model.pt", model_state(nn.Linear(3, 2), Mask(), 3))
    with pytest.raises(RuntimeError, match=r"'weight' has shape \(2, 3\) but the network's is \(2, 4\)"):
        restore_in_all(nn.Linear(4, 2), tmp_path / "model.pt")

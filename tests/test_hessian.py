"""Hessian traces, their residual term and spectra against brute force in float64 on tiny networks."""

import copy

import pytest
import torch
from torch import nn

from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.spectrum import spectrum
from helper.system.seeds import stream
from tests.exact import (
    NETWORKS,
    batch,
    exact_fisher,
    exact_gauss_newton,
    exact_hessian,
    fitted,
    hessian_matrix,
    jacobians,
    pruned,
    tiny,
)
from tests.test_operations import CURVED, STRAIGHT

GIVEN = [(name, density) for name in NETWORKS for density in (1, 0.5, 0.05)]


def hessian(network, inputs, labels, mask=None, seed=0, **options):
    return hessian_trace(network, inputs, labels, mask, generator=stream(seed, "hessian trace"), **options)


@pytest.mark.parametrize(("name", "density"), GIVEN)
@pytest.mark.parametrize(("n_classes", "bias"), [(2, True), (3, False), (10, True)])
def test_every_estimator_agrees_with_brute_force(name, density, n_classes, bias):
    network, mask = pruned(name, n_classes, bias, density)
    params = {1: "layers", 0.5: "weights", 0.05: "all"}[density]
    inputs, labels = batch(n_classes)
    fitted(network, inputs, labels, mask)
    exact = exact_hessian(network, inputs, labels, mask, params)
    options = {"params": params, "rtol": 0}
    for method, more in {
        "auto": {"n_probes": 40},
        "hutchinson": {"n_probes": 40},
        "pyhessian": {"n_probes": 200, "batch_size": 12},
        "eigenthings": {"n_probes": 60, "batch_size": 12},
    }.items():
        estimate = hessian(network, inputs, labels, mask, method=method, **options, **more)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-9 * exact < 0.8 * exact, method
        if method != "eigenthings":
            assert sum(value for value, _ in estimate.by_layer.values()) == pytest.approx(estimate.value)
    residual = hessian(network, inputs, labels, mask, method="hutchinson", term="residual", n_probes=40, **options)
    exact_residual = exact - exact_gauss_newton(network, inputs, mask, params)
    assert abs(residual.value - exact_residual) < 4 * residual.standard_error + 1e-9


def test_on_a_piecewise_linear_network_the_hessian_trace_is_the_fisher_trace():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    exact = exact_hessian(network, inputs, labels, mask)
    assert exact == pytest.approx(exact_fisher(network, inputs, mask), rel=1e-9)
    estimate = hessian(network, inputs, labels, mask, rtol=0, n_probes=50)
    assert estimate.estimator == "gauss_newton (piecewise linear); every example, 50 probes"
    assert abs(estimate.value - exact) < 4 * estimate.standard_error < 0.2 * exact


def test_auto_says_why_it_takes_the_true_hessian():
    inputs, labels = batch()
    network, reason = CURVED["a layer used twice"]
    few = {"rtol": 0, "n_probes": 2}
    estimate = hessian(network.double(), inputs, labels, **few)
    assert estimate.estimator.startswith("hutchinson (not piecewise linear: parameter c.")
    assert reason in estimate.estimator
    assert hessian(STRAIGHT["relu"].double(), inputs, labels, **few).estimator.startswith("gauss_newton (piecewise linear); ")


@pytest.mark.parametrize("name", CURVED)
def test_gauss_newton_is_refused_where_it_is_not_the_hessian(name):
    network, reason = CURVED[name]
    with pytest.raises(ValueError, match=f"would measure the Gauss-Newton .Fisher. trace.*{reason}"):
        hessian(network.double(), *batch(), method="gauss_newton")


@pytest.mark.parametrize("name", [name for name in CURVED if "straight-through" not in name])
def test_auto_measures_the_hessian_of_what_curves(name):
    inputs, labels = batch()
    network = fitted(copy.deepcopy(CURVED[name][0]).double(), inputs, labels)
    exact = exact_hessian(network, inputs, labels, params="all")
    estimate = hessian(network, inputs, labels, rtol=0, n_probes=100, params="all")
    assert abs(estimate.value - exact) < 4 * estimate.standard_error < 0.8 * abs(exact)


def test_the_residual_is_zero_without_a_draw_where_it_is_known_to_be():
    inputs, labels = batch()
    estimate = hessian(tiny("conv"), inputs, labels, term="residual")
    assert (estimate.value, estimate.standard_error) == (0, 0)
    assert estimate.estimator == "zero (piecewise linear); no draw needed"
    with pytest.raises(ValueError, match="does not measure the residual"):
        hessian(tiny("conv"), inputs, labels, term="residual", method="gauss_newton")


def test_chunks_change_nothing_but_rounding():
    network, mask = pruned("mlp_tanh", 3, True, 0.5)
    inputs, labels = batch()
    results = [hessian(network, inputs, labels, mask, batch_size=size, rtol=0, n_probes=3) for size in (1, 7, 24)]
    for one in results[1:]:
        assert one.value == pytest.approx(results[0].value, rel=1e-9)


def test_hutchinson_reaches_the_precision_asked_for():
    network, _ = pruned("mlp_tanh", 3, True, 1)
    inputs, labels = batch(n=400)
    fitted(network, inputs, labels)
    exact = exact_hessian(network, inputs, labels)
    estimate = hessian(network, inputs, labels, rtol=0.05)
    assert estimate.standard_error < 1.2 * 0.05 * estimate.value
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


@pytest.mark.parametrize("method", HESSIAN_METHODS)
def test_bad_input_is_refused(method):
    network = tiny("conv")
    inputs, labels = batch()
    with pytest.raises(ValueError, match="at least 2 examples, not 1"):
        hessian(network, inputs[:1], labels[:1], method=method)
    network.fc.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        hessian(network, inputs, labels, method=method)


# ------------------------------------------------------------------------------------------------------ spectrum


def spectrum_of(network, inputs, labels, mask=None, **options):
    return spectrum(network, inputs, labels, mask, generator=stream(0, "spectrum"), **options)


def matrix_of(matrix, network, inputs, labels, mask=None):
    if matrix == "hessian":
        return hessian_matrix(network, inputs, labels, mask)
    j, p = jacobians(network, inputs, mask)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncq,ncd,ndr->qr", j, s, j) / len(inputs)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("batch_size", [6, 24])
def test_top_eigenvalues_are_those_of_the_whole_matrix(matrix, batch_size):
    network, mask = pruned("mlp_tanh", 3, True, 0.5)
    inputs, labels = batch()
    whole = matrix_of(matrix, network, inputs, labels, mask)
    values = torch.linalg.eigvalsh(whole)
    exact = values[values.abs().argsort(descending=True)][:5]
    found = spectrum_of(network, inputs, labels, mask, matrix=matrix, k=5, steps=60, batch_size=batch_size)
    torch.testing.assert_close(found.eigenvalues, exact, rtol=1e-6, atol=1e-9)
    assert found.size == len(whole) < sum(p.numel() for p in network.parameters())
    assert found.n_samples == 24
    assert (found.residuals < 1e-5).all()


def test_an_eigenvalue_lies_within_each_residual():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    values = torch.linalg.eigvalsh(hessian_matrix(network, inputs, labels, mask))
    found = spectrum_of(network, inputs, labels, mask, k=5, steps=6)
    assert found.residuals.max() > 1e-6  # six steps are not enough, and it says so
    distances = (found.eigenvalues[:, None] - values).abs().min(1).values
    assert (distances <= found.residuals + 1e-9).all()


def test_the_density_has_the_moments_of_the_spectrum():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    whole = hessian_matrix(network, inputs, labels, mask)
    found = spectrum_of(network, inputs, labels, mask, k=1, steps=40, runs=60)
    weights = found.weights.nan_to_num()
    means = (weights * found.nodes.nan_to_num()).sum(1)  # of each run, v^T H v / n
    error = means.std() / len(means) ** 0.5
    assert abs(means.mean() - whole.trace() / len(whole)) < 4 * error
    squares = (weights * found.nodes.nan_to_num().square()).sum(1)
    assert abs(squares.mean() - whole.square().sum() / len(whole)) < 4 * squares.std() / len(squares) ** 0.5
    assert torch.trapezoid(found.density, found.grid).item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(found.moments, torch.stack([means.mean(), squares.mean()]))
    torch.testing.assert_close(found.moment_errors[0], error)


def test_errors_of_the_density_are_those_of_its_starting_vectors():
    """Of 40 densities of 4 vectors each the mean stands for the truth, and their own errors for their distances from it."""
    network, mask = pruned("mlp_tanh", 3, True, 0.5)
    inputs, labels = batch()
    common = {"mask": mask, "matrix": "gauss_newton", "k": 1, "steps": 20}
    several = [spectrum(network, inputs, labels, runs=4, generator=stream(seed, "density"), **common) for seed in range(40)]
    exact = matrix_of("gauss_newton", network, inputs, labels, mask).trace() / several[0].size
    distances = torch.stack([found.moments[0] - exact for found in several])
    errors = torch.stack([found.moment_errors[0] for found in several])
    assert (distances / errors).abs().lt(3.18).double().mean() >= 0.85  # t of 3
    at_peak = torch.stack([found.density.max() for found in several])
    said = torch.stack([found.density_errors[found.density.argmax()] for found in several])
    assert 0.5 < said.square().mean().sqrt() / at_peak.std() < 2
    assert torch.isnan(spectrum_of(network, inputs, labels, mask, k=1, steps=5, runs=1).density_errors).all()


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize(("n", "size"), [(19, 4), (23, 22), (24, 7), (2, 64)])
def test_every_example_counts_the_same_in_batches_of_different_sizes(matrix, n, size):
    network, mask = pruned("mlp_tanh", 3, True, 0.5)
    inputs, labels = (whole[:n] for whole in batch())
    exact = matrix_of(matrix, network, inputs, labels, mask)
    found = spectrum_of(network, inputs, labels, mask, matrix=matrix, k=2, steps=40, runs=1, batch_size=size)
    top = torch.linalg.eigvalsh(exact)
    torch.testing.assert_close(found.eigenvalues, top[top.abs().argsort(descending=True)][:2], rtol=1e-6, atol=1e-9)
    assert found.n_samples == found.population == n
    assert (found.residuals < 1e-5).all()


def test_which_examples_are_measured_does_not_depend_on_the_memory():
    network, _ = pruned("mlp_relu", 3, True, 1)
    inputs, labels = batch()
    a, b = (spectrum_of(network, inputs, labels, k=3, runs=1, max_samples=19, memory_mb=m) for m in (0.01, 1000))
    assert a.n_samples == b.n_samples == 19
    for name in ("eigenvalues", "corrected", "standard_errors"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_no_eigenvalue_appears_that_does_not_exist_in_float32():
    """The Gauss-Newton matrix of 4 examples and 3 classes has rank 8, and 40 steps go far beyond it."""
    network = tiny("mlp_relu")
    inputs, labels = batch(n=4)
    found = spectrum_of(network.float(), inputs.float(), labels, matrix="gauss_newton", k=12, steps=40)
    j, p = jacobians(network.double(), inputs)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = torch.linalg.eigvalsh(torch.einsum("ncq,ncd,ndr->qr", j, s, j) / 4).flip(0)[:12]
    n = len(found.eigenvalues)
    assert 8 <= n <= 12  # the others are 0, if Lanczos goes on to them
    torch.testing.assert_close(found.eigenvalues, exact[:n], rtol=1e-3, atol=1e-5)
    assert found.residuals.max() < 1e-4


def test_a_spectrum_that_cannot_be_is_refused():
    network = tiny("conv")
    inputs, labels = batch()
    with pytest.raises(ValueError, match="steps >= k"):
        spectrum_of(network, inputs, labels, k=5, steps=4)
    nothing = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match="no parameter active"):
        spectrum_of(network, inputs, labels, nothing)
    network.fc.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        spectrum_of(network, inputs, labels)


def test_a_spectrum_needs_no_more_steps_than_parameters():
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 2, bias=False)).double()
    inputs, labels = batch(2)
    found = spectrum_of(network, inputs, labels, k=10, steps=500, runs=1)
    assert found.size == 50


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("power", [-17, -60, 17])
@pytest.mark.parametrize("max_samples", [None, 12])
def test_a_spectrum_scales_with_its_matrix(matrix, power, max_samples):
    """Inputs times 2^power and weights over it: the same logits, and a matrix times 4^power, to the bit."""
    inputs, labels = batch()
    found = []
    for factor in (1.0, 2.0**power):
        network = nn.Sequential(nn.Flatten(), nn.Linear(25, 3, bias=False)).double()
        network[1].weight.data = torch.randn(3, 25, generator=stream(0, "w"), dtype=torch.float64) / factor
        options = {"matrix": matrix, "k": 6, "steps": 60, "runs": 2, "max_samples": max_samples}
        found.append(spectrum_of(network, inputs * factor, labels, **options))
    plain, scaled = found
    unit = 4.0**power
    for name in ("eigenvalues", "residuals", "corrected", "bias", "standard_errors", "grid", "nodes"):
        assert torch.equal((getattr(plain, name) * unit).nan_to_num(), getattr(scaled, name).nan_to_num()), name
    torch.testing.assert_close(scaled.density * unit, plain.density)
    assert torch.equal(plain.weights, scaled.weights)
    torch.testing.assert_close(
        scaled.moments, plain.moments * torch.tensor([unit, unit**2], dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert scaled.sigma == pytest.approx(plain.sigma * unit, rel=1e-12)
    assert plain.nodes.shape[1] < 60  # 24 examples, 3 classes: rank 48 at most, and no step goes on from rounding

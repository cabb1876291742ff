"""What is measured of confident predictions, against closed forms for two classes: p = sigmoid of the margin."""

import math

import pytest
import torch
from torch import nn

from helper.metrics.cotangents import every_label, sampled_labels, spectral_cotangents
from helper.metrics.evaluation import evaluate
from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.softmax import cross_entropies, cross_entropy, probabilities, residuals, total_variance
from helper.metrics.spectrum import spectrum
from helper.system.seeds import stream
from tests.exact import batch, flat, jacobians, tiny

DOUBLE = [(margin, torch.float64) for margin in (0, 1, 17, 36, 37, 52, 100, 700)]
SINGLE = [(margin, torch.float32) for margin in (0, 1, 16, 17, 52, 80)]
WITHIN_RANGE = pytest.mark.parametrize(("margin", "dtype"), DOUBLE + SINGLE)
CONFIDENT = pytest.mark.parametrize(("margin", "dtype"), [*DOUBLE, *SINGLE, (100, torch.float32)])  # e^-100 is no float32


def close(wanted):
    return pytest.approx(wanted, rel=1e-5, abs=0)


def unlikely(margin: float) -> float:
    """p of the second class."""
    return math.exp(-margin) / (1 + math.exp(-margin))


def variance(margin: float) -> float:
    """p (1 - p)"""
    return math.exp(-margin) / (1 + math.exp(-margin)) ** 2


def linear(margin: float, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """(network, two inputs): logits (x/2, -x/2) with x = margin, so that J^T (1, -1) has the squared norm 2 (x^2 + 1)."""
    network = nn.Sequential(nn.Linear(1, 2)).to(dtype)
    network[0].weight.data = torch.tensor([[0.5], [-0.5]], dtype=dtype)
    network[0].bias.data.zero_()
    return network, torch.full((2, 1), float(margin), dtype=dtype)


@CONFIDENT
def test_the_softmax_covariance(margin, dtype):
    logits = torch.tensor([[0.0, margin], [margin, 0.0]], dtype=dtype)
    small, spread = unlikely(margin), variance(margin)
    p, rest = probabilities(logits)
    assert [p[0, 0].item(), rest[0, 1].item()] == close([small, small])
    assert total_variance(logits).tolist() == close([2 * spread] * 2)
    assert residuals(logits, torch.tensor([[1, 0], [0, 1]]))[:, 0].flatten().tolist() == close(
        [-small, small, 1 - small, small - 1]
    )
    z = spectral_cotangents(logits, torch.eye(3).expand(2, -1, -1))  # z is linear in the signs
    assert torch.einsum("knc,knd->ncd", z, z).abs().flatten().tolist() == close([spread] * 8)
    assert every_label(logits).square().sum((0, 2)).tolist() == close([2 * spread] * 2)


@WITHIN_RANGE
def test_losses_and_their_derivatives(margin, dtype):
    logits = torch.tensor([[0.0, margin], [0.0, margin]], dtype=dtype, requires_grad=True)
    losses = cross_entropies(logits, torch.tensor([1, 0]))
    loss = math.log1p(math.exp(-margin))
    assert losses.tolist() == close([loss, margin + loss])
    small, spread = unlikely(margin), variance(margin)
    gradient = torch.autograd.grad(losses.sum(), logits, create_graph=True)[0]
    assert gradient.flatten().tolist() == close([small, -small, small - 1, 1 - small])
    for value in gradient.flatten():
        second = torch.autograd.grad(value, logits, retain_graph=True)[0].abs()
        assert second.sum(1).sort().values.tolist() == close([0, 2 * spread])


def test_an_infinite_logit_has_no_loss():
    assert cross_entropies(torch.tensor([[math.inf, 0.0], [math.nan, 0.0]]), torch.tensor([0, 0])).isnan().all()


@CONFIDENT
def test_fisher_traces(margin, dtype):
    network, inputs = linear(margin, dtype)
    exact = 2 * variance(margin) * (margin**2 + 1)
    for method in ("spectral", "exact", "vmap", "ours"):  # S has rank 1: spectral has no noise
        found = fisher_trace(network, inputs, method=method, metric="fim", rtol=0, generator=stream(0, "f"))
        assert found.value == close(exact), method
    for label, residual in ((0, unlikely(margin)), (1, 1 - unlikely(margin))):
        labels = torch.full((2,), label)
        found = fisher_trace(network, inputs, metric="empirical", labels=labels, rtol=0, generator=stream(0, "e"))
        assert found.value == close(2 * residual**2 * (margin**2 + 1))


@pytest.mark.parametrize(("margin", "dtype"), [(17, torch.float32), (40, torch.float32), (52, torch.float64)])
def test_nngeometry_sums_over_the_labels_of_confident_predictions(margin, dtype):
    network, inputs = linear(margin, dtype)
    exact = 2 * variance(margin) * (margin**2 + 1)
    found = fisher_trace(network, inputs, method="nngeometry", metric="fim", rtol=0, generator=stream(0, "n"))
    assert found.value == close(exact)


@CONFIDENT
def test_hessian_traces(margin, dtype):
    network, inputs = linear(margin, dtype)
    exact = 2 * variance(margin) * (margin**2 + 1)
    found = [
        hessian_trace(one, x, torch.tensor([0, 0]), method="hutchinson", rtol=0, n_probes=100, generator=stream(0, "h"))
        for one, x in ((network, inputs), linear(margin, torch.float64))
    ]
    assert found[0].value == close(found[1].value)
    assert abs(found[0].value - exact) <= 4 * found[0].standard_error < 0.8 * exact
    shared = hessian_trace(network, inputs, torch.tensor([0, 0]), method="auto", rtol=0, generator=stream(0, "g"))
    assert shared.value == close(exact)


@pytest.mark.parametrize("options", [{}, {"term": "residual"}, {"method": "pyhessian"}])
def test_float32_gives_the_hessian_of_a_confident_curved_network(options):
    inputs, _ = batch(2, 60)
    network = tiny("mlp_tanh", 2).requires_grad_(False)
    network.layers[-2].weight *= 20
    margins = network(inputs).diff(dim=1).abs().squeeze(1)
    inputs = inputs[(margins > 30) & (margins < 60)]
    labels = network(inputs).argmax(1)
    options = {"method": "hutchinson", "rtol": 0, "n_probes": 20, **options}
    exact, single = (
        hessian_trace(network.to(dtype), inputs.to(dtype), labels, generator=stream(0, "h"), **options).value
        for dtype in (torch.float64, torch.float32)
    )
    assert 0 < abs(exact) < 1e-9
    assert single == pytest.approx(exact, rel=1e-3, abs=0)


@WITHIN_RANGE
def test_jacobians_of_probabilities(margin, dtype):
    network, inputs = linear(margin, dtype)
    for method in ("exact", "projection"):
        found = jacobian_norm(
            network, inputs, output="probabilities", method=method, rtol=0, n_probes=400, generator=stream(0, "j")
        )
        exact = 2 * variance(margin) ** 2
        assert found.value == close(exact) if method == "exact" else abs(found.value - exact) <= 4 * found.standard_error


@WITHIN_RANGE
def test_losses_and_entropies_of_a_split(margin, dtype):
    network, inputs = linear(margin, dtype)
    labels = torch.tensor([0, 0])
    means = evaluate(network, [(inputs, labels, labels)])
    loss, small = math.log1p(math.exp(-margin)), unlikely(margin)
    assert means["loss"] == close(loss)
    assert means["entropy"] == close((1 - small) * loss + small * (margin + loss))


def test_rare_labels_are_drawn_wherever_they_stand():
    for logits, rare in (([40.0, 0.0], 1), ([0.0, 40.0], 0)):
        uniform = torch.tensor([[0.5, 2.0, 1e17]], dtype=torch.float64) * unlikely(40)
        assert sampled_labels(torch.tensor([logits]), uniform).tolist() == [[rare, 1 - rare, 1 - rare]]


# ---------------------------------------------------------------------------------------------------------- spectra

MATRIX = pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])


def three_directions(margin: float, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, list[float]]:
    """(network without biases, three orthogonal inputs, exact eigenvalues): margins of `margin`, that + 1 and that + 3."""
    margins = [margin, margin + 1, margin + 3]
    network = nn.Sequential(nn.Linear(3, 2, bias=False)).to(dtype)
    network[0].weight.data = torch.tensor([margins, [-m for m in margins]], dtype=dtype) / 4
    return network, 2 * torch.eye(3, dtype=dtype), [variance(m) * 2 * 4 / 3 for m in margins]


@MATRIX
@pytest.mark.parametrize(
    ("margin", "dtype"),
    [(30, torch.float32), (60, torch.float32), (1, torch.float32), (60, torch.float64), (300, torch.float64)],
)
def test_the_spectrum_of_confident_predictions(matrix, margin, dtype):
    network, inputs, exact = three_directions(margin, dtype)
    found = spectrum(network, inputs, torch.tensor([0, 0, 0]), matrix=matrix, k=3, steps=6, runs=3, generator=stream(0, "s"))
    assert found.eigenvalues.tolist() == close(exact)
    assert found.residuals.max() < 1e-5 * exact[0]
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        seen = nodes[weights > 1e-9].tolist()
        assert max(seen) <= exact[0] * (1 + 1e-5)
        assert min(seen) >= -1e-5 * exact[0]
    assert 0 < found.sigma < exact[0]


@MATRIX
def test_float32_gives_the_spectrum_of_a_confident_curved_network(matrix):
    inputs, _ = batch(2, 60)
    network = tiny("mlp_tanh", 2)
    network.requires_grad_(False).layers[-2].weight *= 20
    margins = network(inputs).diff(dim=1).abs().squeeze(1)
    inputs = inputs[(margins > 30) & (margins < 60)]
    labels = network(inputs).argmax(1)
    network.requires_grad_(True)
    gradient = flat(
        torch.autograd.grad(cross_entropy(network(inputs), labels), list(network.parameters()), create_graph=True), network
    )
    whole = torch.stack(
        [flat(torch.autograd.grad(g, list(network.parameters()), retain_graph=True), network) for g in gradient]
    )
    if matrix == "gauss_newton":
        j, _ = jacobians(network, inputs)
        of_margin = j[:, 0] - j[:, 1]  # two classes: S = p (1 - p) (1, -1) (1, -1)^T
        whole = of_margin.t() @ (of_margin * (total_variance(network(inputs)) / 2).detach()[:, None]) / len(inputs)
    values = torch.linalg.eigvalsh(whole)
    exact = values[values.abs().argsort(descending=True)][:4]
    options = {"matrix": matrix, "k": 4, "steps": 30, "runs": 1, "generator": stream(0, "s")}
    found = spectrum(network.float(), inputs.float(), labels, **options)
    assert 0 < exact[0] < 1e-9
    torch.testing.assert_close(found.eigenvalues, exact, rtol=2e-3, atol=1e-3 * exact[0].item())

"""Input-output Jacobians against whole Jacobians in float64."""

import pytest
import torch
from torch import nn

from helper.metrics.jacobian import jacobian_norm
from helper.system.seeds import stream
from tests.exact import NETWORKS, batch, input_jacobians, pruned, tiny


def jacobian(network, inputs, seed=0, **options):
    return jacobian_norm(network, inputs, generator=stream(seed, "jacobian"), **options)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_both_methods_agree_with_the_whole_jacobian(name, n_classes, output):
    network, _ = pruned(name, n_classes, True, 0.5)
    inputs, _ = batch(n_classes)
    whole = input_jacobians(network, inputs, output)
    exact = whole.square().sum((1, 2)).mean().item()
    summed = jacobian(network, inputs, output=output, method="exact")
    assert summed.value == pytest.approx(exact, rel=1e-9)
    assert summed.standard_error == 0
    estimate = jacobian(network, inputs, output=output, rtol=0, n_probes=50)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-9 * exact < 0.5 * exact
    top = jacobian(network, inputs, output=output, method="exact", norm="spectral")
    assert top.value == pytest.approx(torch.linalg.matrix_norm(whole, 2).mean().item(), rel=1e-9)
    assert top.by_layer == {}


def test_a_subset_of_exact_norms_has_the_examples_spread():
    network, _ = pruned("conv", 3, True, 1)
    inputs, _ = batch(n=400)
    whole = input_jacobians(network, inputs).square().sum((1, 2))
    estimate = jacobian(network, inputs, method="exact", rtol=0, max_samples=100)
    assert estimate.standard_error == pytest.approx((whole.var() * (1 / 100 - 1 / 400)).sqrt().item(), rel=0.5)
    assert abs(estimate.value - whole.mean().item()) < 4 * estimate.standard_error


def test_the_precision_asked_for_is_reached():
    network, _ = pruned("conv", 3, True, 1)
    inputs, _ = batch(n=2000)
    exact = input_jacobians(network, inputs).square().sum((1, 2)).mean().item()
    for rtol in (0.1, 0.02):
        estimate = jacobian(network, inputs, rtol=rtol)
        assert estimate.standard_error < 1.2 * rtol * estimate.value
        assert abs(estimate.value - exact) < 4 * estimate.standard_error
        assert estimate.estimator.startswith("projection:logits; ")


def test_chunks_change_nothing_but_rounding():
    network, _ = pruned("conv", 3, True, 1)
    values = [jacobian(network, batch()[0], batch_size=size, rtol=0, n_probes=3).value for size in (1, 7, 24)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-12)


def test_a_network_without_parameters_has_a_jacobian():
    assert jacobian(nn.Flatten(), batch()[0], method="exact").value == pytest.approx(25)
    assert jacobian(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), batch()[0], rtol=0).value > 0


def test_bad_input_is_refused():
    network, inputs = tiny("conv"), batch()[0]
    with pytest.raises(ValueError, match="needs the whole Jacobian"):
        jacobian(network, inputs, norm="spectral")
    for options in ({"norm": "nuclear"}, {"output": "logit"}, {"method": "exat"}):
        with pytest.raises(ValueError, match="not one of"):
            jacobian(network, inputs, **options)
    with pytest.raises(ValueError, match="at least 2 examples"):
        jacobian(network, inputs[:1])
    tokens = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="must be floating-point"):
        jacobian(tokens, torch.ones(4, 2, dtype=torch.long))
    network.fc.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        jacobian(network, inputs, output="probabilities")

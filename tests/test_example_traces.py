"""Fisher traces of single examples: sums over labels against brute force, estimates against these by their errors."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from helper.mask import Mask
from helper.metrics.example_traces import example_traces
from helper.metrics.fisher import spectral_draw
from helper.metrics.label_directions import directed_cotangents, label_kernels
from helper.metrics.per_example import choose_engine
from helper.metrics.subject import Subject
from helper.system.seeds import stream
from tests.conftest import tiny_conv


def brute_force(network: nn.Module, inputs: torch.Tensor, mask: Mask | None = None) -> torch.Tensor:
    """(N,) sum over the labels of p ||grad log p||², over the active parameters of convolutions and linear layers."""
    counted = {n: p for n, p in network.named_parameters() if not n.startswith("bn")}
    network = network.eval()

    def log_p(parameters: dict, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(functional_call(network, parameters, (x[None],))[0], 0)[label]

    probabilities = network(inputs).softmax(1).detach()
    total = torch.zeros(len(inputs), dtype=torch.float64)
    for label in range(probabilities.shape[1]):
        found = vmap(grad(log_p), in_dims=(None, 0, None))(counted, inputs, torch.tensor(label))
        squares = sum((g * (mask[n] if mask and n in mask else 1)).square().flatten(1).sum(1) for n, g in found.items())
        total += probabilities[:, label] * squares
    return total


def masked_conv() -> tuple[nn.Module, Mask]:
    network = tiny_conv()
    mask = Mask({"conv2.weight": torch.rand(4, 4, 3, 3, generator=stream(0, "mask")) > 0.5})
    mask.apply_(network)
    return network, mask


def test_exact_traces_of_examples_are_brute_force_under_a_mask_and_their_mean_is_the_fisher_trace():
    network, mask = masked_conv()
    inputs = torch.randn(9, 1, 5, 5, dtype=torch.float64, generator=stream(0, "x"))
    found = example_traces(network, inputs, mask)
    torch.testing.assert_close(found.values, brute_force(network, inputs, mask), rtol=1e-6, atol=0)
    assert (found.probes, found.errors.max()) == (3, 0)


def wide_network(scale: float = 1.0) -> tuple[nn.Module, torch.Tensor]:
    """60 classes and 300 inputs in double precision."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 60)).double()
    with torch.no_grad():
        network[3].weight.mul_(scale)
    return network, torch.randn(300, 16, dtype=torch.float64, generator=stream(0, "x"))


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("rtol", [0.2, 0.05])
def test_estimated_traces_cover_the_exact_ones_by_their_errors_and_reach_the_precision_asked_for(rtol, scale):
    network, inputs = wide_network(scale)
    exact = example_traces(network, inputs).values
    found = [example_traces(network, inputs, rtol=rtol, generator=stream(seed, "probes")) for seed in range(4)]
    apart = torch.stack([(one.values - exact) / exact for one in found])
    assert apart.square().mean().sqrt() < 1.1 * rtol
    assert abs(apart.mean()) < 4 * apart.std() / apart.numel() ** 0.5
    z = torch.stack([(one.values - exact) / one.errors for one in found])
    inside = [(row.abs() < stats.t.ppf(0.975, one.degrees)).double().mean() for row, one in zip(z, found, strict=True)]
    assert sum(inside) / len(inside) > 0.95 - 4 * (0.05 * 0.95 / z.numel()) ** 0.5
    assert all(one.probes < 20 and one.passes < 300 * 45 + 16 * 121 + 1 for one in found)


def test_directions_common_to_all_examples_take_a_fraction_of_the_probes_of_random_signs():
    """Random signs on the eigenvectors of each example's label covariance, as the trace of a mean takes them.

    As in trained networks, few directions of the last layer count.
    """
    network, inputs = wide_network()
    left, sizes, right = torch.linalg.svd(network[3].weight.detach(), full_matrices=False)
    with torch.no_grad():
        network[3].weight.copy_(left * 20 / torch.arange(1, len(sizes) + 1).square() @ right)
    found = example_traces(network, inputs, rtol=0.1)
    subject = Subject(network, inputs)
    with subject.measuring():
        engine = choose_engine(network, subject.layers, None, subject.example, subject.seen.uses)
        drawn = spectral_draw(subject, engine, 64, stream(0, "signs"))(torch.arange(300), 16).sum(2)
    alone = (drawn.var(1) / drawn.mean(1).square()).mean() / 0.1**2
    assert 2 * found.probes < alone


@pytest.mark.parametrize("margin", [0.0, 2.0, 60.0])
@pytest.mark.parametrize("exact", [0, 2])
def test_cotangents_of_directions_have_the_label_covariance_over_all_signs(margin, exact):
    """Also where a prediction is sure: its small parts to their own precision, against exact fractions."""
    logits = torch.tensor([[margin, 0.5, -0.25, 1.0]], dtype=torch.float64)
    factor = torch.randn(4, 3, dtype=torch.float64, generator=stream(0, "factor"))
    every = torch.tensor(list(itertools.product((-1, 1), repeat=4)), dtype=torch.int8)[None]
    z = directed_cotangents(logits, factor, exact, every)[:, 0]
    found = z[:exact].T @ z[:exact] + z[exact:].T @ z[exact:] / 16
    weights = [Fraction(math.exp(x)) for x in logits[0].tolist()]
    p = [weight / sum(weights) for weight in weights]
    expected = [[float(a * (1 - a) if i == j else -a * b) for j, b in enumerate(p)] for i, a in enumerate(p)]
    expected = torch.tensor(expected, dtype=torch.float64)
    scale = expected.diagonal().outer(expected.diagonal()).sqrt()
    assert ((found - expected).abs() < 1e-10 * scale).all()


@pytest.mark.parametrize("memory_mb", [1000, 0.05])
def test_kernels_of_the_logits_are_products_of_masked_gradients(memory_mb):
    """Of a part of the parameters, where not all fit into memory, they are about a share of the whole."""
    network, mask = masked_conv()
    inputs = torch.randn(20, 1, 5, 5, dtype=torch.float64, generator=stream(0, "x"))
    subject = Subject(network, inputs, mask, memory_mb=memory_mb)
    with subject.measuring():
        found = label_kernels(subject, torch.tensor([3, 7]), stream(0, "kernels"))
    counted = {n: p for n, p in network.named_parameters() if not n.startswith("bn")}
    jacobian = jacrev(lambda parameters: functional_call(network.eval(), parameters, (inputs[[3, 7]],)))(counted)
    active = [(j * mask.get(n, 1)).flatten(2) for n, j in jacobian.items()]
    rows = torch.cat(active, 2).detach()
    whole = rows @ rows.transpose(1, 2)
    if memory_mb == 1000:
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(found).min() > -1e-9
    assert (torch.nn.functional.cosine_similarity(found.flatten(1), whole.flatten(1)) > 0.9).all()


def test_where_probes_would_cost_more_than_all_labels_these_are_summed_over():
    network, mask = masked_conv()
    inputs = torch.randn(20, 1, 5, 5, dtype=torch.float64, generator=stream(0, "x"))
    found = example_traces(network, inputs, mask, rtol=0.01)
    assert torch.equal(found.values, example_traces(network, inputs, mask).values)

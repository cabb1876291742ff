"""Cosines of per-example gradients with a direction, against brute force in float64 on tiny networks."""

import copy
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import hypergeom
from torch import Tensor, nn

from helper.metrics.alignment import descent_cosines, scaled_residuals, upper_classes
from helper.metrics.parameters import PARAMS
from helper.metrics.per_example import HookedNorms, LoopNorms, VmapNorms, choose_engine
from helper.metrics.subject import Subject
from helper.system.seeds import stream
from network.mlp import MLP
from tests.exact import NETWORKS, N, batch, flat, keep_of, pruned, random_mask, tiny
from tests.test_fisher import LAYERS, NOT_FOR_HOOKS, prepared


def drawn_direction(network: nn.Module) -> dict[str, Tensor]:
    g = stream(0, "direction")
    return {name: torch.randn(p.shape, generator=g, dtype=p.dtype) for name, p in network.named_parameters()}


def brute_force(network, inputs, labels, direction, mask=None, params="layers") -> Tensor:
    """(N,) one backward pass for each example."""
    network = copy.deepcopy(network).eval()
    keep = keep_of(network, mask, params)
    d = torch.cat([direction[name].flatten() for name, _ in network.named_parameters()])[keep]
    cosines = []
    for x, y in zip(inputs, labels, strict=True):
        loss = F.cross_entropy(network(x[None]), y[None])
        gradient = flat(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True), network)[keep]
        cosines.append(-(gradient @ d) / (gradient.norm() * d.norm()))
    return torch.stack(cosines)


def close(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("density", [1, 0.5, 0.05])
@pytest.mark.parametrize("name", NETWORKS)
def test_cosines_are_those_of_whole_gradients(name, density, params):
    network, mask = pruned(name, 3, True, density)
    inputs, labels = batch()
    direction = drawn_direction(network)
    exact = brute_force(network, inputs, labels, direction, mask, params)
    assert exact.std() > 0.01
    close(descent_cosines(network, inputs, labels, direction, mask, params=params), exact)


def test_a_linear_model_has_the_closed_form():
    """Logits W x: the gradient is (p - e_y) x^T, its norm ||p - e_y|| ||x||, its product with D is (p - e_y)^T D x."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 3, bias=False)).double()
    inputs, labels = batch()
    d = drawn_direction(network)["1.weight"]
    x = inputs.flatten(1)
    residual = (x @ network[1].weight.t()).softmax(1) - F.one_hot(labels, 3)
    exact = -(residual * (x @ d.t())).sum(1) / (residual.norm(dim=1) * x.norm(dim=1) * d.norm())
    close(descent_cosines(network, inputs, labels, {"1.weight": d}), exact.detach())


def test_an_examples_own_descent_direction_has_cosine_one_and_its_opposite_minus_one():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    network.eval()
    loss = F.cross_entropy(network(inputs[:1]), labels[:1])
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    down = {name: -g for name, g in gradient.items()}
    assert descent_cosines(network, inputs, labels, down, mask)[0] == pytest.approx(1, abs=1e-12)
    assert descent_cosines(network, inputs, labels, gradient, mask)[0] == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("name", [*LAYERS, *NOT_FOR_HOOKS])
@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_layer_and_every_engine_gives_the_same(name, masked):
    network = prepared({**LAYERS, **NOT_FOR_HOOKS}[name])
    mask = random_mask(network, 0.5) if masked else None
    inputs, labels = batch()
    direction = drawn_direction(network)
    exact = brute_force(network, inputs, labels, direction, mask, "all")
    close(descent_cosines(network, inputs, labels, direction, mask, params="all"), exact)


def test_hooks_vmap_and_loop_give_the_same_sums():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    subject = Subject(network, inputs, mask, params="all")
    direction = {name: d * mask.get(name, 1) for name, d in drawn_direction(network).items()}
    parts = (subject.network, subject.layers, mask)
    with subject.measuring():
        assert isinstance(choose_engine(*parts, subject.example, subject.seen.uses, direction), HookedNorms)
        sums = [
            kind(*parts, direction).sums(inputs, lambda logits: scaled_residuals(logits.detach(), labels))
            for kind in (HookedNorms, VmapNorms, LoopNorms)
        ]
    assert sums[0].shape == (1, N, 4, 2)
    for other in sums[1:]:
        close(sums[0], other.detach())


def test_chunks_change_nothing_but_rounding():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    direction = drawn_direction(network)
    whole = descent_cosines(network, inputs, labels, direction, mask)
    for bound in ({"batch_size": 1}, {"batch_size": 7}, {"memory_mb": 0.01}):
        close(descent_cosines(network, inputs, labels, direction, mask, **bound), whole)


def test_length_of_the_direction_and_its_pruned_or_uncounted_parts_do_not_matter():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    direction = drawn_direction(network)
    other = {name: 7 * d + (100 * ~mask[name] if name in mask else 0) for name, d in direction.items()}
    other["bn.weight"] = torch.full((4,), torch.nan)
    close(descent_cosines(network, inputs, labels, other, mask), descent_cosines(network, inputs, labels, direction, mask))


def test_float32_agrees_and_the_network_is_left_as_it_was():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, labels = batch()
    direction = drawn_direction(network)
    exact = brute_force(network, inputs, labels, direction, mask)
    network.float().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = descent_cosines(network, inputs.float(), labels, direction, mask)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_scaled_residuals_are_a_positive_multiple_of_the_logit_gradients(n_classes):
    g = stream(0, "logits")
    logits, labels = (
        3 * torch.randn(20, n_classes, generator=g, dtype=torch.float64),
        torch.randint(n_classes, (20,), generator=g),
    )
    p = logits.softmax(1)
    gradients = p - F.one_hot(labels, n_classes)
    wrong = 1 - p.gather(1, labels[:, None])
    close(wrong * scaled_residuals(logits, labels)[0], gradients)


def test_examples_that_the_network_is_sure_of_keep_their_direction():
    """In float32 with margins of hundreds of nats, where p - e_y is exactly zero."""
    network = tiny("mlp_relu").float()
    inputs, _ = batch()
    inputs = inputs.float()
    moderate = network(inputs)
    labels = moderate.argmax(1)
    network.layers[-2].weight.data *= 300
    network.layers[-2].bias.data *= 300
    logits = network(inputs)
    assert (logits.softmax(1).max(1).values == 1).sum() > 5
    direction = {name: d.float() for name, d in drawn_direction(network).items()}
    found = descent_cosines(network, inputs, labels, direction)
    exact = descent_cosines(network.double(), inputs.double(), labels, {n: d.double() for n, d in direction.items()})
    assert not found.isnan().any()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_a_zero_gradient_has_no_cosine():
    """A ReLU that is dead for an example, with the last layer pruned: nothing active can change its loss."""
    network = MLP([2, 2, 2]).double()
    network.layers[0].weight.data = torch.eye(2, dtype=torch.float64)
    network.layers[0].bias.data.zero_()
    mask = {"layers.2.weight": torch.zeros(2, 2, dtype=torch.bool), "layers.2.bias": torch.zeros(2, dtype=torch.bool)}
    inputs = torch.tensor([[1.0, 2], [-1, -2], [3, -1]], dtype=torch.float64)
    found = descent_cosines(network, inputs, torch.tensor([0, 1, 0]), drawn_direction(network), mask)
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.pop("layers.0.weight"), "no part for 'layers.0.weight', whose shape is \\(12, 25\\)"),
        (lambda d: d.update({"layers.0.weight": torch.ones(3, 4)}), "\\(3, 4\\) for 'layers.0.weight'"),
        (lambda d: d.update({name: 0 * tensor for name, tensor in d.items()}), "length 0"),
        (lambda d: d["layers.0.weight"].fill_(torch.nan), "length nan"),
    ],
)
def test_directions_that_have_no_cosine_are_refused(spoil, words):
    network, _ = pruned("mlp_relu", 3, True, 1)
    inputs, labels = batch()
    direction = drawn_direction(network)
    spoil(direction)
    with pytest.raises(ValueError, match=words):
        descent_cosines(network, inputs, labels, direction)


# ---------------------------------------------------------------------------------------------------------- classes


def two_sided(count: int, n: int, size: int, k: int) -> float:
    """Probability of all counts that are no likelier than the one found."""
    chances = [hypergeom.pmf(c, n, size, k) for c in range(min(size, k) + 1)]
    return min(1.0, sum(p for p in chances if p <= chances[count] * (1 + 1e-7)))


def test_classes_of_the_upper_share_are_counted_and_tested_against_the_hypergeometric():
    labels = numpy.repeat([0, 1, 2, 4], [100, 60, 30, 10])
    cosines = numpy.random.default_rng(0).uniform(-1, 0, 200)
    cosines[[0, 3, 5, 110, *range(160, 167)]] = numpy.linspace(0.1, 0.9, 11)  # the upper 11
    table = upper_classes(cosines, labels, 5, 0.055)
    assert table["count"].tolist() == [3, 1, 7, 0, 0]
    assert table["size"].tolist() == [100, 60, 30, 0, 10]
    assert table["expected"].tolist() == pytest.approx([5.5, 3.3, 1.65, 0, 0.55])
    p = [two_sided(c, 200, size, 11) for c, size in ((3, 100), (1, 60), (7, 30), (0, 10))]
    assert table["p_value"][[0, 1, 2, 4]].tolist() == pytest.approx(p)
    assert math.isnan(table["p_value"][3])
    ordered = sorted(p)  # Benjamini and Hochberg 1995: q_(i) = min over j >= i of 4 p_(j) / j
    q = [min(4 * ordered[j] / (j + 1) for j in range(ordered.index(value), 4)) for value in p]
    assert table["q_value"][[0, 1, 2, 4]].tolist() == pytest.approx(q)


@pytest.mark.parametrize(("n", "upper"), [(10, 1), (25, 1), (31, 2), (50, 2), (51, 3), (1000, 50)])
def test_the_upper_share_is_rounded_and_never_empty(n, upper):
    found = upper_classes(numpy.arange(float(n)), numpy.zeros(n, dtype=int), 1, 0.05)
    assert found["count"].tolist() == found["expected"].tolist() == [upper]


def test_undefined_cosines_take_part_in_nothing():
    cosines = numpy.array([numpy.nan, 0.9, 0.1, numpy.nan, 0.5, 0.2])
    table = upper_classes(cosines, numpy.array([0, 1, 1, 1, 0, 0]), 2, 0.5)
    assert table["count"].tolist() == [1, 1]
    assert table["size"].tolist() == [2, 2]
    none = upper_classes(numpy.full(6, numpy.nan), numpy.zeros(6, int), 2, 0.05)
    assert none["count"].tolist() == [0, 0]
    assert none["p_value"].isna().all()


def test_by_chance_few_classes_are_called_significant():
    """Under chance any of 10 classes has q < 0.05 in at most 5 % of the draws, uncorrected ones in a third; 4 errors of 60."""
    generator = numpy.random.default_rng(1)
    labels = numpy.arange(2000) % 10
    found = sum((upper_classes(generator.normal(size=2000), labels, 10, 0.05)["q_value"] < 0.05).any() for _ in range(60))
    assert found / 60 <= 0.05 + 4 * (0.05 * 0.95 / 60) ** 0.5

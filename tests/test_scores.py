"""Scores against central differences, whole Hessians and the algebra of paths, in float64 on tiny networks."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from helper.mask import Mask
from helper.masks import derivatives
from helper.masks.context import Context
from helper.pruner import SCORES, prunable_weights, prune
from helper.schema.config import unflatten
from helper.system.seeds import stream
from loader.main import load_dataset
from network.main import NetworkConfig, build_network
from optim.batches import batches_with_statistics
from optim.config import RunConfig
from optim.pruning import Pruning
from tests.exact import batch, random_mask, tiny
from tests.test_in_place import Layers, bound_forward, closure, partial_forward

WAYS = ("snip", "grasp", "gradient", "synflow")
SIZES = [13, 4, 7]  # of the batches: a mean over examples is not the mean over batches


def batches() -> list[tuple[Tensor, Tensor]]:
    inputs, labels = batch(n=sum(SIZES))
    return list(zip(inputs.split(SIZES), labels.split(SIZES), strict=True))


def context_of(network: nn.Module, mask: Mask | None = None, **other) -> Context:
    weights = prunable_weights(network, prune_last=True)
    mask = mask or Mask({name: torch.ones_like(weight) for name, weight in weights.items()})
    given = {"batches": lambda: iter(batches()), "n_classes": 3, "input_shape": (1, 5, 5)} | other
    return Context(network, weights, mask, stream(0, "test"), **given)


def scores_of(way: str, network: nn.Module, mask: Mask | None = None, **other) -> dict[str, Tensor]:
    return SCORES[way].compute(context_of(network, mask, **other))


def loss_by_weights(network: nn.Module, temperature: float = 1) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(mean loss as a function of all prunable weights in one vector, that vector), in training mode, by a plain loop."""
    network = copy.deepcopy(network).train()
    shapes = {name: weight.shape for name, weight in prunable_weights(network, prune_last=True).items()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        logits = [(functional_call(network, weights, (x,)) / temperature, y) for x, y in batches()]
        return torch.stack([F.cross_entropy(one, y, reduction="none").sum() for one, y in logits]).sum() / sum(SIZES)

    return loss, flat(prunable_weights(network, prune_last=True))


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


def masked(name: str, density: float) -> tuple[nn.Module, Mask]:
    """A network of tests/exact.py, and a mask of its weights; what it prunes is not zero in the network."""
    network = tiny(name)
    weights = prunable_weights(network, prune_last=True)
    return network, Mask({n: random_mask(network, density).get(n, torch.ones_like(w)) for n, w in weights.items()})


CASES = list(itertools.product(("mlp_relu", "mlp_tanh", "conv"), (1.0, 0.5)))


# ----------------------------------------------------------------------------------------------------------- SNIP


@pytest.mark.parametrize(("name", "density"), CASES)
def test_snip_is_the_central_difference_of_the_loss_in_the_mask(name, density):
    network, mask = masked(name, density)
    found = flat(scores_of("snip", network, mask))
    loss, weights = loss_by_weights(network)
    m, step = flat(mask).double(), 1e-5
    rows = torch.arange(len(m))[:: max(1, len(m) // 150)]
    exact = torch.zeros(len(rows), dtype=torch.float64)
    for index, row in enumerate(rows):
        moved = torch.zeros_like(m).index_fill(0, row, step)
        exact[index] = (loss((m + moved) * weights) - loss((m - moved) * weights)).abs() / (2 * step)
    kept = flat(mask)[rows]
    assert kept.all() == (density == 1)
    torch.testing.assert_close(found[rows][kept], exact[kept], rtol=1e-5, atol=1e-9)
    assert found[rows][~kept].eq(0).all()  # a pruned weight is zero, so that its mask moves nothing


@pytest.mark.parametrize(("name", "density"), CASES)
def test_the_gradient_is_that_of_all_weights_at_the_masked_network(name, density):
    network, mask = masked(name, density)
    loss, weights = loss_by_weights(network)
    at = (weights * flat(mask)).requires_grad_()
    (exact,) = torch.autograd.grad(loss(at), at)
    torch.testing.assert_close(flat(scores_of("gradient", network, mask)), exact.abs(), rtol=1e-9, atol=1e-14)


def test_batch_norm_takes_the_statistics_of_the_batch_and_not_those_it_has_seen():
    found = []
    for seen in (0.0, 3.0):
        network = tiny("conv").eval()
        network.bn.running_mean.fill_(seen)
        found.append(flat(scores_of("snip", network)))
    assert torch.equal(*found)
    assert found[0].gt(0).any()


# ---------------------------------------------------------------------------------------------------------- GraSP


@pytest.mark.parametrize(("name", "density"), CASES)
def test_grasp_is_the_weight_times_the_product_with_the_whole_hessian(name, density):
    network, mask = masked(name, density)
    loss, weights = loss_by_weights(network, temperature=200)
    m = flat(mask).double()
    at = (weights * m).requires_grad_()
    (g,) = torch.autograd.grad(loss(at), at)
    hessian = torch.autograd.functional.hessian(loss, at.detach())
    exact = at.detach() * (hessian @ (g * m))
    found = flat(scores_of("grasp", network, mask))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9 * exact.abs().max().item())
    assert exact.min() < 0 < exact.max()


@pytest.mark.parametrize("name", ["mlp_tanh", "conv"])
def test_what_grasp_removes_first_adds_most_to_the_gradient_flow(name):
    network = tiny(name)
    loss, weights = loss_by_weights(network, temperature=200)
    scores = flat(scores_of("grasp", network))

    def flow(at: Tensor) -> float:
        at = at.requires_grad_()
        return torch.autograd.grad(loss(at), at)[0].square().sum().item()

    order, step = scores.argsort(), 1e-4
    some = torch.cat([order[:8], order[len(order) // 2 :][:8], order[-8:]])
    gains = []
    for row in some:
        moved = torch.zeros_like(weights).index_fill(0, row, step) * weights
        gains.append((flow(weights - moved) - flow(weights + moved)) / (2 * step))
    torch.testing.assert_close(
        torch.tensor(gains).double(), -2 * scores[some], rtol=1e-3, atol=1e-6 * scores.abs().max().item()
    )
    assert max(range(len(gains)), key=gains.__getitem__) == 0
    assert min(range(len(gains)), key=gains.__getitem__) == len(gains) - 1


# -------------------------------------------------------------------------------------------------------- SynFlow


def chain(widths: list[int], seed: int = 0, bias: bool = False, act: type = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=6), density=st.sampled_from([1.0, 0.6]), seed=st.integers(0, 9))
def test_synflow_is_conserved_from_layer_to_layer_and_through_every_unit(widths, density, seed):
    network = chain(widths, seed).double()
    weights = prunable_weights(network, prune_last=True)
    g = stream(seed, "mask")
    mask = Mask({name: torch.rand(weight.shape, generator=g) < density for name, weight in weights.items()})
    scores = list(scores_of("synflow", network, mask, input_shape=(widths[0],)).values())
    product = torch.ones(widths[0], dtype=torch.float64)
    for name, weight in weights.items():
        product = (weight.abs() * mask[name]) @ product
    for score in scores:
        assert score.sum().item() == pytest.approx(product.sum().item(), rel=1e-10)
    for incoming, outgoing in itertools.pairwise(scores):
        torch.testing.assert_close(incoming.sum(1), outgoing.sum(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ReLU6, nn.LeakyReLU])
def test_neither_biases_nor_the_shape_of_an_activation_count_for_synflow(act):
    plain = chain([25, 6, 5, 3])
    other = chain([25, 6, 5, 3], bias=True, act=act)
    for ours, theirs in zip(prunable_weights(plain, True).values(), prunable_weights(other, True).values(), strict=True):
        theirs.copy_(ours)
    torch.testing.assert_close(scores_of("synflow", other), scores_of("synflow", plain), rtol=1e-12, atol=0)


def test_synflow_takes_batch_norm_as_a_fresh_one_with_the_magnitude_of_its_scale():
    network = tiny("conv", bias=True)
    network.bn.weight.data = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    network.bn.bias.data.fill_(7)
    found = scores_of("synflow", network)
    scale = network.bn.weight.abs() / (1 + network.bn.eps) ** 0.5
    conv1, conv2, fc = (weight.abs().requires_grad_() for weight in prunable_weights(network, True).values())
    y = F.conv2d(torch.ones(1, 1, 5, 5).double(), conv1, padding=1) * scale.detach().view(1, -1, 1, 1)
    flow = ((F.conv2d(y, conv2, padding=1) + y).mean((2, 3)) @ fc.t()).sum()
    by_weight = torch.autograd.grad(flow, (conv1, conv2, fc))
    for score, weight, part in zip(found.values(), (conv1, conv2, fc), by_weight, strict=True):
        torch.testing.assert_close(score, (weight * part).detach(), rtol=1e-10, atol=0)


def test_synflow_of_a_deep_network_needs_float64():
    network = chain([50, *[200] * 40, 3])
    for weight in prunable_weights(network, True).values():
        weight.mul_(10)
    scores = scores_of("synflow", network, input_shape=(50,))
    assert flat(scores).max() > torch.finfo(torch.float32).max
    assert len({round(score.sum().log().item(), 6) for score in scores.values()}) == 1


def pruned_chain(widths: list[int], way: str, ratio: float) -> Mask:
    given = {"batches": float32, "input_shape": (1, 5, 5)}
    return prune(chain(widths), stream(0, "p"), prune_method=way, prune_ratio=ratio, prune_last=True, **given)


@pytest.mark.parametrize("widths", [[25, 100, 10, 100, 3], [25, 8, 200, 3], [25, 4, 4, 4, 4, 3]])
def test_iterated_synflow_empties_no_layer_while_that_is_possible(widths):
    n_weights = sum(a * b for a, b in itertools.pairwise(widths))
    mask = pruned_chain(widths, "synflow", 1 - (len(widths) - 1) / n_weights)
    assert mask.n_active == len(widths) - 1  # one weight for each layer
    assert mask.empty_layers() == []


def test_one_shot_snip_empties_a_layer_where_synflow_does_not():
    widths, ratio = [25, 300, 300, 3], 0.998  # the widest layer has the lowest scores
    assert pruned_chain(widths, "snip", ratio).empty_layers() == ["3.weight"]
    assert pruned_chain(widths, "synflow", ratio).empty_layers() == []


def float32():
    return ((x.float(), y) for x, y in batches())


# ------------------------------------------------------------------------------------- the network, memory, bad input


def state_of(network: nn.Module) -> list:
    """Everything that a score could leave changed, to the bit."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return [
        {name: (t.detach().clone().numpy().tobytes(), t.dtype, t.stride(), t.data_ptr()) for name, t in tensors.items()},
        {name: (t.requires_grad, None if t.grad is None else t.grad.tolist()) for name, t in tensors.items()},
        {name: (module.training, sorted(vars(module))) for name, module in network.named_modules()},
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
    ]


def used(network: nn.Module) -> nn.Module:
    """A network in which everything differs from what a score sets."""
    network.train()
    for index, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(index != 0)
        parameter.grad = torch.full_like(parameter, index) if index == 1 else None
    list(network.modules())[-1].eval()
    return network


NETWORKS = {
    "conv": lambda: tiny("conv"),
    "channels_last, float32": lambda: tiny("conv").float().to(memory_format=torch.channels_last),
    "tanh": lambda: tiny("mlp_tanh"),
    "a dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_left_as_it_was_to_the_bit(way, name):
    network = used(NETWORKS[name]())
    mask = random_mask(network, 0.5)
    before = state_of(network)
    scores_of(way, network, Mask({n: mask.get(n, torch.ones_like(w)) for n, w in prunable_weights(network, True).items()}))
    assert state_of(network) == before


@pytest.mark.parametrize("way", WAYS)
def test_the_network_is_left_as_it_was_when_scoring_fails(way):
    network = used(tiny("conv"))
    before = state_of(network)
    wrong = lambda: iter([(torch.ones(4, 2, 5, 5), torch.zeros(4))])  # noqa: E731
    with pytest.raises(ValueError, match="channels"):
        scores_of(way, network, batches=wrong, input_shape=(2, 5, 5))
    assert state_of(network) == before


@pytest.mark.parametrize("way", ["snip", "grasp", "gradient"])
@pytest.mark.parametrize("make", [closure, bound_forward, partial_forward])
def test_a_network_that_cannot_be_copied_is_scored_itself(way, make):
    plain = Layers()
    plain.f = lambda x: plain.straight(x)
    network = make()
    before = state_of(network)
    torch.testing.assert_close(scores_of(way, network), scores_of(way, plain))
    assert state_of(network) == before


def test_synflow_of_a_network_that_cannot_be_copied_is_that_of_its_weights():
    network, plain = Layers(), chain([25, 6, 3])
    network.f = lambda x: network.b(network.a(x).relu())
    for ours, theirs in zip(prunable_weights(network, True).values(), prunable_weights(plain, True).values(), strict=True):
        theirs.copy_(ours)
    found, expected = (list(scores_of("synflow", one).values()) for one in (network, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", ["snip", "grasp"])
def test_memory_bounds_the_examples_at_once_unless_batch_norm_couples_them(way, monkeypatch):
    sizes: list[int] = []
    loss = derivatives.summed_loss

    def watched(network, inputs, *others):
        sizes.append(len(inputs))
        return loss(network, inputs, *others)

    monkeypatch.setattr(derivatives, "summed_loss", watched)
    whole, small = (scores_of(way, tiny("mlp_tanh"), memory_mb=mb) for mb in (1000, 1e-3))
    rounds = 1 + (way == "grasp")
    assert sizes[: rounds * len(SIZES)] == SIZES * rounds
    assert max(sizes[rounds * len(SIZES) :]) == 1
    torch.testing.assert_close(small, whole, rtol=1e-9, atol=1e-20)
    sizes.clear()
    scores_of(way, tiny("conv"), memory_mb=1e-3)
    assert sizes == SIZES * rounds


@pytest.mark.parametrize("way", ["snip", "grasp", "gradient"])
@pytest.mark.parametrize("none", [[], [(torch.empty(0, 1, 5, 5), torch.empty(0))]])
def test_no_example_to_score_on_is_refused(way, none):
    with pytest.raises(ValueError, match="no training example to score the weights on"):
        scores_of(way, tiny("conv"), batches=lambda: iter(none))


@pytest.mark.parametrize("way", WAYS)
def test_a_network_through_which_nothing_goes_is_refused(way):
    network = tiny("mlp_relu")
    list(prunable_weights(network, True).values())[-1].zero_()
    given = {"batches": lambda: iter(batches()), "input_shape": (1, 5, 5)}
    with pytest.raises(ValueError, match=rf"--prune_method {way} gives all 420 weights the same score, 0: "):
        prune(network, stream(0, "p"), prune_method=way, prune_ratio=0.5, **given)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("way", ["l1", *WAYS])
def test_weights_that_are_not_finite_are_refused(way, value):
    network = tiny("mlp_relu")
    prunable_weights(network, True)["layers.0.weight"][0, 0] = value
    given = {"batches": lambda: iter(batches()), "input_shape": (1, 5, 5)}
    with pytest.raises(ValueError, match=r"layers.0.weight has values that are NaN or infinite"):
        prune(network, stream(0, "p"), prune_method=way, prune_ratio=0.5, **given)


@pytest.mark.parametrize(("n_hidden", "fits"), [(7, True), (9, False)])
def test_synflow_that_overflows_float64_says_so(n_hidden, fits):
    network = chain([25, *[6] * n_hidden, 3])
    for weight in prunable_weights(network, True).values():
        weight.fill_(1e35)
    if fits:
        assert flat(scores_of("synflow", network)).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"overflows float64.*fewer layers"):
        scores_of("synflow", network)


@pytest.mark.parametrize("act", [lambda: nn.Softmax(1), lambda: nn.LayerNorm(6), lambda: nn.GroupNorm(2, 6)])
def test_synflow_of_a_network_that_is_not_linear_for_positive_inputs_is_refused(act):
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), act(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="linear for positive inputs"):
        scores_of("synflow", network)


def test_synflow_without_the_shape_of_an_example_is_refused():
    with pytest.raises(ValueError, match="input_shape"):
        scores_of("synflow", tiny("conv"), input_shape=None)


@pytest.mark.parametrize("way", WAYS)
def test_a_resnet_loses_exactly_the_share_asked_for(way):
    network = build_network(NetworkConfig(net_name="resnet", depth=8, widen_factor=1), (3, 8, 8), 4, stream(0, "init"))
    x, y = torch.randn(20, 3, 8, 8, generator=stream(0, "x")), torch.arange(20) % 4
    given = {"batches": lambda: zip(x.split(10), y.split(10), strict=True), "input_shape": (3, 8, 8)}
    mask = prune(network, stream(0, "p"), prune_method=way, prune_ratio=0.9, head="fc", **given)
    assert mask.n_weights - mask.n_active == round(0.9 * mask.n_weights)
    assert "fc.weight" not in mask


# ------------------------------------------------------------------------------------------- the batches of a run


class Normed(nn.Module):
    """BatchNorm of vectors, which has no statistics of a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x.flatten(1).double()))))


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        ({"batch_size": 33}, [33, 33, 34]),  # ten of each of ten classes
        ({"batch_size": 32, "score_batches": 10, "limit_train": 289}, [32] * 8 + [33]),
        ({"batch_size": 49}, [49, 49, 2]),
        ({"batch_size": 99}, [100]),
    ],
    ids=str,
)
def test_a_score_reads_no_batch_of_a_single_example(flags, sizes):
    config = unflatten(RunConfig, {"mode": "at-init", "prune_method": "snip", "limit_train": 300, **flags})
    pruning = Pruning(config, load_dataset(config.data))
    torch.manual_seed(0)
    network = Normed()
    mask = Mask(
        {
            name: torch.ones_like(weight, dtype=torch.bool)
            for name, weight in prunable_weights(network, prune_last=False).items()
        }
    )
    found = pruning.scores(network, mask, stream(0, "test"))
    examples = pruning.dataset.train[pruning.rows()]
    inputs, n = pruning.dataset.normalise(examples.inputs), sum(sizes)
    parts = zip(inputs.split(sizes), examples.labels.split(sizes), strict=True)
    network.train()
    loss = torch.stack([F.cross_entropy(network(x), y, reduction="sum") for x, y in parts]).sum() / n
    for name, score in found.items():
        weight = network.get_parameter(name)
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(score, (weight * gradient).abs().detach(), rtol=1e-9, atol=1e-15)


def test_batches_of_one_are_left_to_those_who_want_them():
    assert [len(rows) for rows in batches_with_statistics(torch.arange(3), 1)] == [1, 1, 1]
    assert [len(rows) for rows in batches_with_statistics(torch.arange(1), 8)] == [1]
    assert [rows.tolist() for rows in batches_with_statistics(torch.arange(5), 2)] == [[0, 1], [2, 3, 4]]

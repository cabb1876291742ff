"""Fisher traces against brute force in float64 on tiny networks."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helper.metrics import layer_sums
from helper.metrics.cotangents import label_moments, label_skewness, sampled_labels, spectral_cotangents
from helper.metrics.fisher import FISHER_METHODS, FISHER_METRICS, fisher_trace
from helper.metrics.parameters import counted_parameters
from helper.metrics.per_example import HookedNorms, LoopNorms, VmapNorms, choose_engine
from helper.metrics.subject import Subject, signs
from helper.system.seeds import stream
from tests.exact import NETWORKS, N, batch, exact_empirical, exact_fisher, pruned, random_mask, tiny
from tests.test_operations import CURVED, STRAIGHT

GIVEN = [(name, density) for name in NETWORKS for density in (1, 0.5, 0.05)]
ENGINES = {"hooks": HookedNorms, "vmap": VmapNorms, "loop": LoopNorms}


def fisher(network, inputs, mask=None, seed=0, **options):
    return fisher_trace(network, inputs, mask, generator=stream(seed, "fisher trace"), **options)


@pytest.mark.parametrize(("name", "density"), GIVEN)
@pytest.mark.parametrize(("n_classes", "bias"), [(2, True), (3, False), (10, True)])
def test_every_estimator_agrees_with_brute_force(name, density, n_classes, bias):
    network, mask = pruned(name, n_classes, bias, density)
    params = {1: "layers", 0.5: "weights", 0.05: "all"}[density]
    inputs, labels = batch(n_classes)
    exact = exact_fisher(network, inputs, mask, params)
    summed = fisher(network, inputs, mask, method="exact", params=params)
    assert summed.value == pytest.approx(exact, rel=1e-9)
    assert summed.standard_error == 0
    assert summed.n_samples == N
    for method in ("vmap", "ours", "nngeometry"):
        assert fisher(network, inputs, mask, method=method, metric="fim", params=params).value == pytest.approx(exact, rel=1e-9)
    for method in ("spectral", "vmap", "nngeometry"):
        estimate = fisher(network, inputs, mask, method=method, rtol=0, n_probes=40, params=params)
        assert abs(estimate.value - exact) < 4 * estimate.standard_error + 1e-9 * exact < 0.6 * exact
        assert sum(value for value, _ in estimate.by_layer.values()) == pytest.approx(estimate.value)
    empirical = exact_empirical(network, inputs, labels, mask, params)
    for method in FISHER_METHODS:
        found = fisher(network, inputs, mask, method=method, metric="empirical", labels=labels, params=params)
        assert found.value == pytest.approx(empirical, rel=1e-9)
        assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_ours_is_label_sampling_one_example_at_a_time():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, _ = batch()
    loop, vectorised = (fisher(network, inputs, mask, method=method, n_probes=6) for method in ("ours", "vmap"))
    assert loop.value == pytest.approx(vectorised.value, rel=1e-9)
    assert loop.standard_error == pytest.approx(vectorised.standard_error, rel=1e-9)


def test_layers_add_up_and_each_is_its_own_trace():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, _ = batch()
    by_layer = fisher(network, inputs, mask, method="exact", params="all").by_layer
    assert list(by_layer) == ["conv1", "bn", "conv2", "fc"]
    only_last = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in network.named_parameters() if "fc" not in name}
    assert by_layer["fc"][0] == pytest.approx(exact_fisher(network, inputs, {**mask, **only_last}, "all"), rel=1e-9)


# ------------------------------------------------------------------------------------------------ the fast engine


class Positions(nn.Module):
    """A Linear layer at several positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.flatten(1, 2))).mean(1))


def convolutional(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


class Temperature(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(25, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1)) * self.scale


class Turned(nn.Module):
    """A Linear layer on (2, N, 5): its first dimension is no batch, though of two examples it has the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.flatten(1)[:, :20].view(-1, 2, 10).transpose(0, 1))).mean(0))


class Blocked(nn.Module):
    """Nothing that the inputs reach by a derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(25, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((x.flatten(1) > 0).to(x.dtype))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spare = nn.Linear(25, 3), nn.Linear(25, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def with_hook() -> nn.Module:
    """Somebody else's hook changes a layer's output."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.Linear(6, 3))
    network[1].register_forward_hook(lambda module, args, output: 2 * torch.relu(output))
    return network


LAYERS = {
    "stride, dilation, padding": convolutional(nn.Conv2d(1, 4, 3, stride=2, padding=2, dilation=2)),
    "oblong kernel": convolutional(nn.Conv2d(1, 3, (1, 3), padding=(0, 1)), nn.Conv2d(3, 4, (3, 2), stride=(1, 2))),
    "circular padding": convolutional(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")),
    "same padding, even kernel": convolutional(nn.Conv2d(1, 4, 2, padding="same")),
    "many channels on few pixels": convolutional(nn.Conv2d(1, 90, 3, stride=2), nn.Conv2d(90, 90, 3, padding=2, dilation=2)),
    "many channels with a stride": convolutional(nn.Conv2d(1, 90, 1), nn.Conv2d(90, 90, 3, stride=2, padding=1)),
    "inputs changed in place": nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(25, 3)),
    "a hook of somebody else": with_hook(),
    "normalised vectors": nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    "positions": Positions(),
}  # fmt: skip
NOT_FOR_HOOKS = {
    "a scalar": Temperature(),
    "another dimension in front": Turned(),
    "no derivative by the inputs": Blocked(),
    "an unused layer": Unused(),
    "groups": convolutional(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
    "an unknown kind": nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(5, 4, 3), nn.Flatten(), nn.Linear(12, 3)),
    "rows of all examples together": nn.Sequential(
        nn.Flatten(0, 2), nn.Linear(5, 3), nn.Unflatten(0, (-1, 5)), nn.Flatten(), nn.Linear(15, 3)
    ),
    **{name: STRAIGHT[name] for name in ("a layer's weight used by a function", "prelu")},
    **{name: CURVED[name][0] for name in ("a layer used twice", "a squared weight")},
}  # fmt: skip


def prepared(network: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network(torch.randn(2, 1, 5, 5, dtype=next(iter(network.parameters())).dtype))
        network = network.double()
        for _ in range(3):
            network.train()(torch.randn(32, 1, 5, 5, dtype=torch.float64))
    return network


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_hooks_give_the_norms_of_whole_gradients(name, masked):
    network = prepared(LAYERS[name])
    mask = random_mask(network, 0.5) if masked else None
    inputs, _ = batch()
    subject = Subject(network, inputs, mask, params="all")
    assert isinstance(engine_of(subject), HookedNorms)
    for params in ("all", "weights"):
        exact = exact_fisher(network, inputs, mask, params)
        assert fisher(network, inputs, mask, method="exact", params=params).value == pytest.approx(exact, rel=1e-9)


def test_norms_of_many_channels_are_taken_from_gram_matrices(monkeypatch):
    used = []
    monkeypatch.setattr(layer_sums, "gram_squares", lambda *args: used.append(1) or torch.ones(len(args[1])))
    for name in ("many channels on few pixels", "many channels with a stride", "oblong kernel"):
        fisher(prepared(LAYERS[name]), batch()[0], method="exact")
        assert bool(used) == name.startswith("many")
        used.clear()


@pytest.mark.parametrize("name", NOT_FOR_HOOKS)
def test_what_hooks_cannot_treat_is_left_to_vmap(name):
    network = prepared(NOT_FOR_HOOKS[name])
    inputs, _ = batch()
    subject = Subject(network, inputs, params="all")
    assert isinstance(engine_of(subject), VmapNorms)
    exact = exact_fisher(network, inputs, None, "all")
    for method in ("exact", "vmap", "ours"):
        found = fisher(network, inputs, method=method, metric="fim", params="all", batch_size=2)
        assert found.value == pytest.approx(exact, rel=1e-9)


def engine_of(subject: Subject):
    with subject.measuring():
        return choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)


def test_tied_weights_count_once():
    network = tiny("mlp_relu")
    for _ in range(2):
        network.layers.insert(1, nn.Linear(12, 12).double())
    network.layers[1].weight = network.layers[2].weight
    inputs, _ = batch()
    assert len(counted_parameters(network, "weights")) == 4
    exact = exact_fisher(network, inputs, None, "weights")
    assert fisher(network, inputs, method="exact", params="weights").value == pytest.approx(exact, rel=1e-9)


def test_an_input_changed_in_place_after_its_use_is_refused():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(25, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = torch.relu(self.a(x.flatten(1)))
            y = self.b(h)
            h.add_(1)
            return self.c(y + h)

    with pytest.raises(ValueError, match=r"backward pass fails: .* modified by an inplace operation"):
        fisher(Spoilt().double(), batch()[0])


# -------------------------------------------------------------------------------------------------- random parts


@pytest.mark.parametrize("n_classes", [2, 4, 15, 16, 40])
@pytest.mark.parametrize("scale", [0.1, 3, 300])
def test_spectral_cotangents_have_the_softmax_covariance(n_classes, scale):
    logits = torch.randn(3, n_classes, generator=stream(0, "logits"), dtype=torch.float64) * scale
    units = torch.eye(n_classes + 1)  # z is linear in the signs: z = V e, and E z z^T = V V^T
    v = spectral_cotangents(logits, units.expand(3, -1, -1))
    p = logits.softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(torch.einsum("knc,knd->ncd", v, v), covariance, rtol=1e-9, atol=1e-15)


def test_rounding_does_not_change_a_draw():
    logits = 3 * torch.randn(500, 10, generator=stream(0, "logits"))
    e = signs((500, 2, 11), stream(0, "signs"))
    z, moved = spectral_cotangents(logits, e), spectral_cotangents(logits * (1 + 1e-6), e)
    assert ((z - moved).norm(dim=2) < 1e-3 * z.norm(dim=2)).all()


def test_sampled_labels_follow_the_prediction():
    logits = torch.tensor([[0.0, 1.0, -30.0, 2.0]]).expand(20_000, -1)
    uniform = torch.rand(20_000, 1, generator=stream(0, "uniform"), dtype=torch.float64)
    shares = sampled_labels(logits, uniform).flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=4 * 0.5 / 20_000**0.5, rtol=0)
    assert sampled_labels(logits[:1], torch.ones(1, 1, dtype=torch.float64)).item() == 3


def test_label_moments_are_those_of_every_label():
    logits = torch.randn(5, 4, generator=stream(0, "logits"), dtype=torch.float64) * 3
    p = logits.softmax(1)
    squares = (torch.eye(4, dtype=p.dtype) - p[:, None]).square().sum(2)  # (n, labels)
    mean = (p * squares).sum(1, keepdim=True)
    central = [(p * (squares - mean) ** k).sum(1, keepdim=True) for k in (2, 3)]
    torch.testing.assert_close(label_moments(logits), torch.cat([mean, *central], 1))


@pytest.mark.parametrize("margin", [1.0, 6.0, 60.0, 400.0])
def test_the_skewness_of_sampled_labels_is_that_of_a_binomial_number(margin):
    """Two classes, all examples alike: how many surprising labels there are decides."""
    rare = torch.tensor(-margin, dtype=torch.float64).sigmoid().item()
    moments = label_moments(torch.tensor([[margin, 0.0]], dtype=torch.float64).expand(30, -1))
    exact = (1 - 2 * rare) / (150 * rare * (1 - rare)) ** 0.5
    assert label_skewness(moments, 5, 1000) == pytest.approx(exact, rel=1e-6)


def test_the_skewness_of_sampled_labels_counts_for_less_where_examples_vary():
    """Of a sum of two independent parts; none of it where no label can surprise."""
    moments = torch.tensor([[1.0, 0.5, 0.25], [3.0, 0.5, 0.25]] * 20, dtype=torch.float64)
    labels, examples = 0.5 / 80, (40 / 39) / 40 * 0.9
    assert label_skewness(moments, 2, 400) == pytest.approx(0.25 / 80**2 / (labels + examples) ** 1.5)
    assert label_skewness(torch.zeros(4, 3, dtype=torch.float64), 2, 4) == 0


# -------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("method", ["spectral", "vmap", "exact"])
def test_chunks_change_nothing_but_rounding(method):
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, _ = batch()
    results = [fisher(network, inputs, mask, method=method, batch_size=size, rtol=0) for size in (1, 5, 24)]
    results.append(fisher(network, inputs, mask, method=method, memory_mb=0.01, rtol=0))
    for one in results[1:]:
        assert one.value == pytest.approx(results[0].value, rel=1e-12)
        assert one.standard_error == pytest.approx(results[0].standard_error, rel=1e-9)


def test_importance_sampling_does_not_depend_on_chunks_or_threads():
    network, _ = pruned("conv", 3, True, 1)
    inputs, _ = batch(n=600)
    threads = torch.get_num_threads()
    values = []
    for size, n_threads in ((7, 1), (64, 2)):
        torch.set_num_threads(n_threads)
        values.append(fisher(network, inputs, max_samples=50, rtol=0, batch_size=size).value)
    torch.set_num_threads(threads)
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_the_exact_method_does_not_depend_on_the_order_of_examples():
    network, mask = pruned("conv", 3, True, 0.5)
    inputs, _ = batch()
    order = torch.randperm(N, generator=stream(0, "order"))
    a, b = (fisher(network, x, mask, method="exact").value for x in (inputs, inputs[order]))
    assert a == pytest.approx(b, rel=1e-12)


def test_float32_and_bf16_networks_are_measured_in_float32():
    network = tiny("conv").float()
    inputs, _ = batch()
    assert fisher(network, inputs.float(), method="exact").value == pytest.approx(
        exact_fisher(network.double(), inputs), rel=1e-4
    )
    half = tiny("conv").bfloat16()
    rounded = exact_fisher(tiny("conv").bfloat16().double(), inputs)
    assert fisher(half, inputs.float(), method="exact").value == pytest.approx(rounded, rel=1e-4)
    assert half.fc.weight.dtype == torch.bfloat16


def test_the_sum_over_labels_holds_on_a_confident_network():
    """In float32, with predictions so sure that 1 - p rounds to nothing."""
    network = tiny("conv", 10).float()
    network.fc.weight.data *= 50
    inputs, _ = batch(10)
    exact = exact_fisher(network.double(), inputs)
    network.float()
    for method in ("exact", "vmap", "nngeometry"):
        assert fisher(network, inputs.float(), method=method, metric="fim").value == pytest.approx(exact, rel=1e-4)
    estimate = fisher(network, inputs.float(), rtol=0, n_probes=400)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error < 0.3 * exact


# ----------------------------------------------------------------------------------------- how much is measured


def test_without_a_budget_every_example_is_measured_with_a_thousand_draws():
    network, _ = pruned("mlp_relu", 3, True, 1)
    estimate = fisher(network, batch()[0], rtol=0)
    assert (estimate.n_samples, estimate.estimator) == (24, "spectral; every example, 42 probes")


@pytest.mark.parametrize("n", [24, 300, 3000])
@pytest.mark.parametrize("rtol", [0.1, 0.02])
def test_the_precision_asked_for_is_reached(n, rtol):
    network, _ = pruned("mlp_relu", 3, True, 1)
    inputs, _ = batch(n=n)
    exact = exact_fisher(network, inputs)
    for seed in range(5):
        estimate = fisher(network, inputs, rtol=rtol, seed=seed)
        assert estimate.standard_error < 1.2 * rtol * estimate.value
        assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_a_budget_bounds_the_draws():
    network, _ = pruned("mlp_relu", 3, True, 1)
    inputs, _ = batch(n=3000)
    for method in ("spectral", "exact", "vmap"):
        estimate = fisher(network, inputs, method=method, rtol=0.001, max_samples=70)
        assert estimate.n_samples == 70
        assert estimate.standard_error > 0.001 * estimate.value


def test_label_sampling_never_stops_early():
    network, _ = pruned("mlp_relu", 3, True, 1)
    estimate = fisher(network, batch(n=300)[0], method="vmap", rtol=0.9)
    assert (estimate.n_samples, estimate.estimator) == (300, "vmap:fim_monte_carlo; every example, 5 probes")


def test_label_sampling_without_a_budget_makes_a_thousand_draws_and_with_one_what_it_says():
    network, inputs = tiny("mlp_relu"), batch()[0]
    for method in ("vmap", "nngeometry"):
        assert fisher(network, inputs, method=method).estimator.endswith("every example, 42 probes")
        assert fisher(network, inputs, method=method, max_samples=10).estimator.endswith(", 5 probes")


def test_seconds_and_estimator_are_stated():
    estimate = fisher(tiny("conv"), batch()[0])
    assert estimate.seconds > 0
    assert estimate.estimator.startswith("spectral; ")


# ----------------------------------------------------------------------------------------------------- refusals


def test_contradictions_are_refused():
    network, inputs = tiny("conv"), batch()[0]
    with pytest.raises(ValueError, match="samples no labels"):
        fisher(network, inputs, metric="fim_monte_carlo")
    for labels in (None, [0] * N, torch.zeros(N + 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=f"one class for each of {N} inputs"):
            fisher(network, inputs, metric="empirical", labels=labels)
    for options, near in (({"method": "spectrall"}, "spectral"), ({"metric": "fimm"}, "fim"), ({"params": "layer"}, "layers")):
        with pytest.raises(ValueError, match=f"did you mean {near}?"):
            fisher(network, inputs, **options)
    for options in ({"rtol": -1}, {"rtol": float("nan")}, {"max_samples": 1}, {"n_probes": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least"):
            fisher(network, inputs, **options)
    assert set(FISHER_METRICS) == {"fim", "fim_monte_carlo", "empirical"}


@pytest.mark.parametrize("method", FISHER_METHODS)
def test_a_network_that_yields_nan_is_refused(method):
    network = tiny("conv")
    network.fc.bias.data[0] = torch.nan
    for n in (24, 600):
        with pytest.raises(ValueError, match="not finite"):
            fisher(network, batch(n=n)[0], method=method, max_samples=20)


@pytest.mark.parametrize("method", FISHER_METHODS)
def test_fewer_than_two_examples_are_refused(method):
    with pytest.raises(ValueError, match="at least 2 examples, not 1"):
        fisher(tiny("conv"), batch()[0][:1], method=method)


def test_networks_without_per_example_gradients_or_logits_are_refused():
    inputs = batch()[0]
    network = tiny("conv")
    network.bn = nn.BatchNorm2d(4, track_running_stats=False).double()
    with pytest.raises(ValueError, match="bn has no running statistics"):
        fisher(network, inputs)
    network = tiny("conv")
    prune.l1_unstructured(network.conv1, "weight", 0.5)
    with pytest.raises(ValueError, match=r"conv1.weight is computed from other parameters.*prune\.remove"):
        fisher(network, inputs)
    with pytest.raises(ValueError, match=r"must map \(N, ...\) inputs to \(N, C\) logits"):
        fisher(nn.Conv2d(1, 3, 3).double(), inputs)
    with pytest.raises(ValueError, match="no parameters to count as 'layers'"):
        fisher(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25)).double().eval(), inputs)


def test_networks_whose_examples_are_not_their_own_are_refused():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1) - x.flatten(1).mean(0))

    class Dropping(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x.flatten(1)))  # whose default is training=True

    for network in (Centred(25, 3), Dropping(25, 3)):
        with pytest.raises(ValueError, match="change with the others in its batch, or from call to call"):
            fisher(network.double(), batch()[0])
    with pytest.raises(ValueError, match="2 examples give no tensor"):
        fisher(nn.LSTM(5, 3, batch_first=True).double(), batch()[0][:, 0], params="all")


def test_gradients_that_the_caller_has_switched_off_are_switched_on():
    network, inputs = tiny("conv"), batch()[0]
    expected = fisher(network, inputs, method="exact").value
    with torch.no_grad():
        for method in ("exact", "ours", "nngeometry"):
            assert fisher(network, inputs, method=method, metric="fim").value == pytest.approx(expected, rel=1e-9)


def test_a_mask_of_another_network_is_refused():
    with pytest.raises(ValueError, match=r"'fc\.weight' has shape"):
        fisher(tiny("conv"), batch()[0], {"fc.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="'other'"):
        fisher(tiny("conv"), batch()[0], {"other": torch.ones(2, 2)})


def test_nngeometry_refuses_what_it_cannot_treat():
    twice = CURVED["a layer used twice"][0].double()
    with pytest.raises(ValueError, match=r"nngeometry cannot treat c \(its parameters are not used exactly once\)"):
        fisher(twice, batch()[0], method="nngeometry")
    for name, reason in (
        ("circular padding", "padding .1, 1., circular"),
        ("same padding, even kernel", "padding same, zeros"),
        ("positions", "Linear at several positions"),
    ):
        with pytest.raises(ValueError, match=f"nngeometry cannot treat .* .{reason}"):
            fisher(prepared(LAYERS[name]), batch()[0], method="nngeometry")
    with pytest.raises(ValueError, match=r"Conv2d with groups"):
        fisher(prepared(NOT_FOR_HOOKS["groups"]), batch()[0], method="nngeometry")
    with pytest.raises(ValueError, match=r"nngeometry cannot treat act \(PReLU\)"):
        fisher(STRAIGHT["prelu"].double(), batch()[0], method="nngeometry", params="all")

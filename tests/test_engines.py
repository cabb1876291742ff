"""Networks of every kind are measured by an engine that can, exactly, or refused in one line that says what to do."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.spectrum import spectrum
from tests.conftest import tiny_conv
from tests.exact import batch, exact_fisher, exact_hessian, input_jacobians, tiny
from tests.test_operations import Two
from tests.test_parameters import Attention, Recurrent

N = 6


class Sequence(nn.Module):
    """A recurrent layer whose own sequences are time-major, or not."""

    def __init__(self, kind: type[nn.Module], *, batch_first: bool, **options) -> None:
        super().__init__()
        self.layer = kind(5, 3, batch_first=batch_first, **options)
        self.fc, self.batch_first = nn.LazyLinear(3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        found = self.layer(x if self.batch_first else x.transpose(0, 1))[0]
        return self.fc(found[:, -1] if self.batch_first else found[-1])


class TimeMajor(nn.Module):
    """(T, N, d) inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.GRU(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x)[0][-1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.TransformerEncoderLayer(5, 1, 6, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x.flatten(1, 2)).mean(1))


class Dot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1, 2))
        return self.fc(F.scaled_dot_product_attention(h, h, h).mean(1))


def script(between: nn.Module) -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(25, 6), between, nn.Linear(6, 3)))


def by_rows(net: Two, h: Tensor) -> Tensor:
    return torch.stack([row.tanh() if row.max().item() > 0.3 else row.sin() for row in h])


NETWORKS = {
    "LSTM": lambda: Recurrent(),
    "GRU": lambda: Sequence(nn.GRU, batch_first=True, num_layers=2),
    "RNN": lambda: Sequence(nn.RNN, batch_first=True, nonlinearity="relu"),
    "bidirectional LSTM": lambda: Sequence(nn.LSTM, batch_first=True, bidirectional=True),
    "time-major inside": lambda: Sequence(nn.LSTM, batch_first=False),
    "multi-head attention": lambda: Attention(),
    "scaled dot products": lambda: Dot(),
    "encoder": lambda: Encoder(),
    "hardswish": lambda: Two(lambda net, h: F.hardswish(h)),
    "huber": lambda: Two(lambda net, h: F.huber_loss(h, torch.zeros_like(h), reduction="none")),
    "TorchScript": lambda: script(nn.Tanh()),
    "TorchScript inside": lambda: Two(lambda net, h: net.c(h), c=torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))),
    "DataParallel": lambda: nn.DataParallel(Two(lambda net, h: h.tanh())),
    "DataParallel inside": lambda: Two(lambda net, h: net.c(h).tanh(), c=nn.DataParallel(nn.Linear(6, 6))),
    "checkpointing": lambda: Two(
        lambda net, h: checkpoint(lambda h: net.c(h.tanh()), h, use_reentrant=False), c=nn.Linear(6, 6)
    ),
    "a branch on each row": lambda: Two(by_rows),
    "nested tensors of a bag": lambda: Two(lambda net, h: torch.logcumsumexp(h, 1)),
}  # fmt: skip
LINEAR = {
    "TorchScript of ReLU": lambda: script(nn.ReLU()),
    "checkpointed ReLU": lambda: Two(
        lambda net, h: checkpoint(lambda h: net.c(h.relu()), h, use_reentrant=False), c=nn.Linear(6, 6)
    ),
}  # fmt: skip


def built(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = make()
        network.double()(batch(n=2)[0])
    return network.double().eval()


@pytest.mark.parametrize("name", [*NETWORKS, *LINEAR])
def test_traces_are_those_of_brute_force(name):
    network, (inputs, labels) = built({**NETWORKS, **LINEAR}[name]), batch(n=N)
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivatives
        fisher, hessian = exact_fisher(network, inputs, params="all"), exact_hessian(network, inputs, labels, params="all")
        jacobian = input_jacobians(network, inputs).square().sum((1, 2)).mean().item()
    for method in ("exact", "ours"):
        found = fisher_trace(network, inputs, method=method, metric="fim", params="all")
        assert found.value == pytest.approx(fisher, rel=1e-9)
    found = hessian_trace(network, inputs, labels, rtol=0, n_probes=60, params="all")
    assert abs(found.value - hessian) < 4 * found.standard_error + 1e-9 * fisher
    assert found.standard_error < 0.5 * fisher
    assert found.estimator.startswith("hutchinson" if name in NETWORKS else "gauss_newton (piecewise linear)")
    assert jacobian_norm(network, inputs, method="exact").value == pytest.approx(jacobian, rel=1e-9)


def test_float32_networks_are_measured_by_the_same_engines():
    """In float32 a CPU has kernels of its own for recurrent layers and attention."""
    for name in ("LSTM", "GRU", "multi-head attention", "encoder"):
        network, (inputs, labels) = built(NETWORKS[name]), batch(n=N)
        exact = exact_fisher(network, inputs, params="all")
        found = fisher_trace(network.float(), inputs.float(), method="exact", params="all")
        assert found.value == pytest.approx(exact, rel=1e-4)
        assert hessian_trace(network, inputs.float(), labels, rtol=0, n_probes=2, params="all").standard_error > 0


def test_hardsigmoid_is_measured_as_the_piecewise_linear_function_it_is():
    network, (inputs, labels) = built(lambda: Two(lambda net, h: F.hardsigmoid(4 * h))), batch(n=N)
    written_out = built(lambda: Two(lambda net, h: (4 * h / 6 + 0.5).clamp(0, 1)))
    hessian = exact_hessian(written_out, inputs, labels)
    found = hessian_trace(network, inputs, labels, rtol=0, n_probes=60)
    assert abs(found.value - hessian) < 4 * found.standard_error < 0.5 * hessian


REFUSED = {
    "cdist": (lambda: Two(lambda net, h: torch.cdist(h[:, None], net.c.weight)[:, 0], c=nn.Linear(6, 6)), "_cdist_backward"),
    "hardsigmoid and more": (lambda: Two(lambda net, h: F.hardsigmoid(h.tanh())), "hardsigmoid_backward"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_second_derivatives_is_named_and_the_fisher_trace_is_exact(name):
    make, operation = REFUSED[name]
    network, (inputs, labels) = built(make), batch(n=N)
    found = fisher_trace(network, inputs, method="exact", params="all")
    assert found.value == pytest.approx(exact_fisher(network, inputs, params="all"), rel=1e-9)
    with pytest.raises(ValueError, match=f"no second derivatives: .*{operation}.*; write that operation by others") as refused:
        hessian_trace(network, inputs, labels)
    assert len(str(refused.value).splitlines()) == 1


def test_reentrant_checkpointing_is_refused_with_its_cure():
    network = built(lambda: Two(lambda net, h: checkpoint(lambda h: net.c(h.tanh()), h, use_reentrant=True), c=nn.Linear(6, 6)))
    inputs, labels = batch(n=N)
    for measure in (
        lambda: fisher_trace(network, inputs),
        lambda: fisher_trace(network, inputs, method="ours"),
        lambda: hessian_trace(network, inputs, labels),
    ):
        with pytest.raises(ValueError, match="use_reentrant=False") as refused:
            measure()
        assert len(str(refused.value).splitlines()) == 1


def test_inputs_along_another_dimension_are_refused_with_the_cure():
    network = TimeMajor().double()
    for length, examples in ((7, 5), (7, 2), (3, 3)):
        inputs = torch.randn(length, examples, 5, dtype=torch.float64)
        with pytest.raises(ValueError, match="time-major"):
            fisher_trace(network, inputs)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.transpose(0, 1))

    inputs = torch.randn(5, 7, 5, dtype=torch.float64)
    assert fisher_trace(Turned(), inputs, method="exact").value == pytest.approx(exact_fisher(Turned(), inputs), rel=1e-9)


def test_a_network_that_fails_is_refused_in_one_line():
    with pytest.raises(ValueError, match="the network fails on a batch of 2 examples: mat1 and mat2") as refused:
        fisher_trace(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double(), batch()[0])
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ValueError, match="the network fails on batches of other sizes than 2: "):
        fisher_trace(Two(lambda net, h: h[[1, 0]] if len(h) == 2 else h[:, :5]).double(), batch()[0])


def test_one_logit_is_refused():
    network, (inputs, labels) = nn.Sequential(nn.Flatten(), nn.Linear(25, 1)).double(), batch()
    for measure in (
        lambda: fisher_trace(network, inputs),
        lambda: hessian_trace(network, inputs, labels * 0),
        lambda: spectrum(network, inputs, labels * 0),
        lambda: jacobian_norm(network, inputs, output="probabilities"),
    ):
        with pytest.raises(ValueError, match="one logit: a softmax needs at least two classes"):
            measure()
    exact = network[1].weight.square().sum().item()
    assert jacobian_norm(network, inputs, method="exact").value == pytest.approx(exact)


# ------------------------------------------------------------------------------------------- what is given


def test_a_generator_is_not_needed_and_its_absence_is_no_chance():
    network, (inputs, labels) = tiny("mlp_tanh"), batch()
    state = torch.get_rng_state()
    for measure in (
        lambda **given: fisher_trace(network, inputs, method="vmap", **given).value,
        lambda **given: hessian_trace(network, inputs, labels, rtol=0, n_probes=2, **given).value,
        lambda **given: jacobian_norm(network, inputs, rtol=0, **given).value,
        lambda **given: spectrum(network, inputs, labels, k=1, steps=3, runs=1, **given).nodes.sum().item(),
    ):
        assert measure() == measure() == measure(generator=torch.Generator().manual_seed(0))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(8)
        first, second = measure(generator=torch.default_generator), measure(generator=torch.default_generator)
        torch.manual_seed(8)
        assert measure(generator=torch.default_generator) == first != second
        torch.set_rng_state(state)


def test_arrays_are_taken():
    network, (inputs, labels) = tiny("conv"), batch()
    arrays = inputs.numpy(), labels.numpy().astype(numpy.uint8)
    arrays[0].flags.writeable = False
    assert fisher_trace(network, arrays[0], method="exact").value == fisher_trace(network, inputs, method="exact").value
    backwards = inputs.flip(0).numpy()[::-1]
    assert fisher_trace(network, backwards, method="exact").value == fisher_trace(network, inputs, method="exact").value
    for measure in (
        lambda x, y: hessian_trace(network, x, y, rtol=0, n_probes=2).value,
        lambda x, y: fisher_trace(network, x, method="exact", metric="empirical", labels=y).value,
        lambda x, y: spectrum(network, x, y, k=1, steps=2, runs=1).eigenvalues[0],
    ):
        assert measure(*arrays) == measure(inputs, labels)
    assert jacobian_norm(network, arrays[0], rtol=0).value == jacobian_norm(network, inputs, rtol=0).value
    with pytest.raises(ValueError, match="inputs must be a tensor or an array"):
        fisher_trace(network, inputs.tolist())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y.double(), "labels must be integers, not torch.float64"),
        (lambda y: y > 0, "labels must be integers, not torch.bool"),
        (lambda y: y - 1, "label -1: the network has logits for classes 0 to 2"),
        (lambda y: y + 1, "label 3: the network has logits for classes 0 to 2"),
        (lambda y: F.one_hot(y), "one class for each of 24 inputs"),
        (lambda y: y.numpy().astype(float), "labels must be integers, not torch.float64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(change, reason):
    network, (inputs, labels) = tiny_conv(), batch()
    for measure in (
        lambda y: hessian_trace(network, inputs, y),
        lambda y: spectrum(network, inputs, y),
        lambda y: fisher_trace(network, inputs, metric="empirical", labels=y),
    ):
        with pytest.raises(ValueError, match=reason):
            measure(change(labels))

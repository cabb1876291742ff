"""What is measured is the given network, whatever it calls and however, and measuring leaves it as it was, to the bit."""

import contextlib
import copy
import functools
import weakref

import pytest
import torch
from torch import Tensor, nn

from helper.metrics import in_place
from helper.metrics.alignment import descent_cosines
from helper.metrics.fisher import FISHER_METHODS, fisher_trace
from helper.metrics.hessian import HESSIAN_METHODS, hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.metrics.spectrum import spectrum
from helper.system.seeds import stream
from tests.conftest import tiny_conv
from tests.exact import batch, exact_fisher, exact_hessian, hessian_matrix, input_jacobians, jacobians, tiny


class Layers(nn.Module):
    """Two registered layers; `f` says how they are used."""

    def __init__(self, f=None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.a, self.b = nn.Linear(25, 6), nn.Linear(6, 3)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x.flatten(1))

    def straight(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flatten(1)).tanh())


class Holder:
    """An object that is no module."""

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        first, last = self.layers
        return last(first(x).tanh())

    def __deepcopy__(self, memo: dict) -> "Holder":
        return self


def closure() -> nn.Module:
    network = Layers()
    network.f = lambda x: network.b(network.a(x).tanh())
    return network


def bound_forward() -> nn.Module:
    network = Layers()
    network.forward = network.straight
    return network


def bound_to_another() -> nn.Module:
    """`forward` is a method of the original, which shares its layers."""
    original = Layers()
    network = nn.ModuleList([original.a, original.b])
    network.forward = original.straight
    return network


def partial_forward() -> nn.Module:
    network = Layers()
    network.forward = functools.partial(Layers.straight, network)
    return network


def wrapped() -> nn.Module:
    network = Layers()
    network.f = Holder(network.a, network.b)
    return network


def nested() -> nn.Module:
    network = Layers()

    def outer(layers: dict[str, nn.Module]):
        def inner(x: Tensor) -> Tensor:
            return layers["last"](layers["first"](x).tanh())

        return inner

    network.f = outer({"first": network.a, "last": network.b})
    return network


def weak() -> nn.Module:
    network = Layers()
    reference = weakref.ref(network)
    network.f = lambda x: reference().straight(x)
    return network


def raw_parameters() -> nn.Module:
    """A function that holds the parameters themselves: substituting the modules' does not reach it."""
    network = Layers()
    tensors = (*network.a.parameters(), *network.b.parameters())
    network.f = lambda x: nn.functional.linear(nn.functional.linear(x, *tensors[:2]).tanh(), *tensors[2:])
    return network


NETWORKS = {
    "a closure": closure,
    "a replaced forward": bound_forward,
    "a method of another module": bound_to_another,
    "a partial": partial_forward,
    "a wrapped layer": wrapped,
    "a nested function": nested,
    "a weak reference": weak,
    "bare parameters in a function": raw_parameters,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_measured_is_the_network_and_not_a_copy_that_calls_another(name):
    network = NETWORKS[name]().double()
    inputs, labels = batch()
    fisher, hessian = exact_fisher(network, inputs), exact_hessian(network, inputs, labels)
    assert fisher > 0.1
    for method in ("exact", "ours"):
        found = fisher_trace(network, inputs, method=method, metric="fim", generator=stream(0, "f"))
        assert found.value == pytest.approx(fisher, rel=1e-9), method
    found = fisher_trace(network, inputs, rtol=0, n_probes=40, generator=stream(0, "f"))
    assert abs(found.value - fisher) < 4 * found.standard_error < 0.5 * fisher
    options = {"rtol": 0, "n_probes": 60, "batch_size": 12}
    for method in ("auto", "hutchinson", "pyhessian", "eigenthings"):
        found = hessian_trace(network, inputs, labels, method=method, generator=stream(0, "h"), **options)
        assert abs(found.value - hessian) < 4 * found.standard_error < 0.8 * hessian, method
    jacobian = input_jacobians(network, inputs).square().sum((1, 2)).mean().item()
    assert jacobian_norm(network, inputs, method="exact", generator=stream(0, "j")).value == pytest.approx(jacobian)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["a closure", "bare parameters in a function"])
def test_spectra_are_of_the_network_or_refused(name, matrix):
    network = NETWORKS[name]().double()
    inputs, labels = batch()
    options = {"matrix": matrix, "k": 2, "steps": 40, "runs": 1, "generator": stream(0, "s")}
    if matrix == "gauss_newton" and name == "bare parameters in a function":
        with pytest.raises(ValueError, match="holds a parameter itself"):
            spectrum(network, inputs, labels, **options)
        return
    whole = hessian_matrix(network, inputs, labels)
    if matrix == "gauss_newton":
        j, p = jacobians(network, inputs)
        s = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        whole = torch.einsum("ncq,ncd,ndr->qr", j, s, j) / len(inputs)
    values = torch.linalg.eigvalsh(whole)
    exact = values[values.abs().argsort(descending=True)][:2]
    torch.testing.assert_close(spectrum(network, inputs, labels, **options).eigenvalues, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["a closure", "bare parameters in a function"])
def test_cosines_are_of_the_network(name):
    network = NETWORKS[name]().double()
    inputs, labels = batch()
    direction = {n: torch.randn(p.shape, generator=stream(0, n), dtype=p.dtype) for n, p in network.named_parameters()}
    found = descent_cosines(network, inputs, labels, direction)
    d = torch.cat([part.flatten() for part in direction.values()])
    for x, y, cosine in zip(inputs, labels, found, strict=True):
        loss = nn.functional.cross_entropy(network(x[None]), y[None])
        g = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        assert cosine.item() == pytest.approx((-(g @ d) / (g.norm() * d.norm())).item(), rel=1e-9)


@pytest.mark.parametrize("name", ["a closure", "a wrapped layer", "bare parameters in a function"])
def test_a_copy_that_calls_the_original_is_refused(name):
    network = copy.deepcopy(NETWORKS[name]().double())
    inputs, labels = batch()
    for measure in (
        lambda: fisher_trace(network, inputs, generator=stream(0, "f")),
        lambda: hessian_trace(network, inputs, labels, generator=stream(0, "h")),
        lambda: spectrum(network, inputs, labels, generator=stream(0, "s")),
    ):
        with pytest.raises(ValueError, match=r"do not depend on a\.weight but on a tensor of shape .* build it anew"):
            measure()


def test_parameters_that_the_logits_do_not_use_are_refused_only_when_nothing_is_left():
    network = Layers(lambda x: x[:, :3])
    with pytest.raises(ValueError, match=r"no gradient by any counted parameter, such as a\.weight"):
        fisher_trace(network, batch()[0].float(), generator=stream(0, "f"))


# ------------------------------------------------------------------------------------------------ nothing is left behind


class Leaving(nn.Module):
    """Everything that a forward pass can leave behind: buffers, attributes, containers, numbers of calls, random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(25, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("nothing", torch.full((2,), torch.nan))
        self.mean, self.last, self.seen, self.n = torch.zeros(6), None, [], {"calls": 0}
        self.hidden = [nn.BatchNorm1d(6).train()]

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.a(x.flatten(1)))
        self.calls += 1
        self.mean.mul_(0.9).add_(h.detach().float().mean(0))
        self.last = h
        self.seen.append(len(x))
        self.n["calls"] += 1
        self.a.bias.data.mul_(1)
        self.hidden[0](h.detach().to(self.hidden[0].weight.dtype)) if len(h) > 1 else None
        return self.b(torch.relu(h)) + 0 * torch.rand(())


def leaving(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network in mixed modes with frozen and tied parameters, gradients, hooks, and a graph that is still to be used."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Leaving()
        network(torch.randn(8, 25))
    network = network.to(dtype)
    network.b.eval()
    network.bn.bias.requires_grad_(False)
    network.a.weight.grad = torch.ones_like(network.a.weight)
    network.a.weight.register_hook(lambda g: 2 * g)
    network.b.weight.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    network.b.register_forward_hook(lambda module, args, output: output)
    return network


def everything(network: nn.Module) -> dict:
    found = {"random": torch.get_rng_state(), "seen": list(network.seen), "n": dict(network.n), "last": network.last}
    for name, module in {**dict(network.named_modules()), "hidden": network.hidden[0]}.items():
        found[f"{name} mode"] = module.training
        found[f"{name} attributes"] = sorted(vars(module))
        found[f"{name} hooks"] = [list(v) for k, v in vars(module).items() if "hooks" in k]
        for kind, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            key = f"{name}.{kind}"
            found[key] = tensor.detach().reshape(-1).view(torch.uint8).clone()
            gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
            hooks = [list(h or {}) for h in (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)]
            found[f"{key} kind"] = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, hooks)
            found[f"{key} gradient"] = gradient
    found["mean"] = network.mean.clone()
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def every_measurement():
    yield from (
        (f"fisher {m}", lambda n, x, y, m=m: fisher_trace(n, x, method=m, generator=stream(0, "f"))) for m in FISHER_METHODS
    )
    yield from (
        (f"hessian {m}", lambda n, x, y, m=m: hessian_trace(n, x, y, method=m, generator=stream(0, "h")))
        for m in HESSIAN_METHODS
    )
    yield (
        "residual",
        lambda n, x, y: hessian_trace(n, x, y, method="hutchinson", term="residual", max_samples=6, generator=stream(0, "r")),
    )
    yield "jacobian", lambda n, x, y: jacobian_norm(n, x, generator=stream(0, "j"))
    yield "spectrum", lambda n, x, y: spectrum(n, x, y, k=1, steps=2, runs=1, generator=stream(0, "s"))
    yield "cosines", lambda n, x, y: descent_cosines(n, x, y, dict(n.named_parameters()))


MEASUREMENTS = dict(every_measurement())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_leaves_everything_as_it_was_to_the_bit(name, dtype):
    network = leaving(dtype)
    inputs, labels = batch(n=12)
    waiting = network.a.weight.square().sum()  # whose backward pass needs the weights as they are now
    before = everything(network)
    with contextlib.suppress(ValueError):  # some refuse this network, and leave no more behind
        MEASUREMENTS[name](network, inputs.float(), labels)
    after = everything(network)
    assert [key for key in before if not same(before[key], after[key])] == []
    waiting.backward()
    expected = 1 + 4 * network.a.weight.detach()  # the gradient that was there, and the hook's twice 2 w
    torch.testing.assert_close(network.a.weight.grad, expected)


class Stop(BaseException):
    """What a signal's handler raises."""


@pytest.mark.parametrize("calls", [1, 4, 9, 14])
def test_a_measurement_that_is_interrupted_leaves_everything_as_it_was(calls):
    network = leaving(torch.bfloat16)
    inputs, labels = batch(n=12)
    left = [calls]

    def stop(module, args, output):
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    network.bn.register_forward_hook(stop)
    before = everything(network)
    with pytest.raises(Stop):
        hessian_trace(network, inputs.float(), labels, method="hutchinson", generator=stream(0, "h"))
    assert [key for key, value in everything(network).items() if not same(before[key], value)] == []


def test_an_exception_while_the_network_is_put_back_leaves_nothing_undone(monkeypatch):
    network = leaving()
    inputs, _ = batch(n=12)
    before, compare, raised = everything(network), in_place.identical, []

    def once(*tensors: Tensor) -> bool:
        if not raised:
            raised.append(1)
            raise Stop
        return compare(*tensors)

    monkeypatch.setattr(in_place, "identical", once)
    with pytest.raises(Stop):
        fisher_trace(network, inputs.float(), generator=stream(0, "f"))
    assert [key for key, value in everything(network).items() if not same(before[key], value)] == []


def test_a_sparse_buffer_is_left_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.ReLU(), nn.Linear(6, 3)).bfloat16()
    network.register_buffer("adjacency", torch.eye(6, dtype=torch.bfloat16).to_sparse())
    adjacency = network.adjacency
    network[2].register_forward_hook(lambda module, args, output: torch.sparse.mm(network.adjacency, output.t()).t())
    found = fisher_trace(network, batch()[0].float(), method="exact", generator=stream(0, "f"))
    assert found.value > 0
    assert network.adjacency is adjacency
    assert adjacency.dtype == torch.bfloat16


def test_hooks_on_gradients_do_not_change_what_is_measured():
    network, inputs = tiny("conv"), batch()[0]
    expected = {
        m: fisher_trace(network, inputs, method=m, metric="fim", generator=stream(0, "f")).value for m in ("exact", "ours")
    }
    network.fc.weight.register_hook(torch.zeros_like)
    for method, value in expected.items():
        found = fisher_trace(network, inputs, method=method, metric="fim", generator=stream(0, "f")).value
        assert found == pytest.approx(value, rel=1e-12)


def test_a_network_that_keeps_its_activations_is_measured():
    network, inputs = tiny_conv(), batch()[0]
    expected = exact_fisher(network, inputs)
    network.last = network(inputs)
    assert fisher_trace(network, inputs, method="exact", generator=stream(0, "f")).value == pytest.approx(expected)


def test_wrappers_are_taken_off():
    network, inputs = tiny_conv().eval(), batch()[0]
    expected = exact_fisher(network, inputs)
    for wrapper in (nn.DataParallel(network), torch.compile(network), nn.DataParallel(torch.compile(network))):
        found = fisher_trace(wrapper, inputs, method="exact", generator=stream(0, "f"))
        assert found.value == pytest.approx(expected, rel=1e-9)
        assert list(found.by_layer) == ["conv1", "conv2", "fc"]
        masks = {name: torch.rand(p.shape, generator=stream(1, name)) < 0.5 for name, p in wrapper.named_parameters()}
        plain = {name.removeprefix("module.").removeprefix("_orig_mod."): part for name, part in masks.items()}
        pruned = exact_fisher(network, inputs, plain)
        for mask in (masks, plain):
            found = fisher_trace(wrapper, inputs, mask, method="exact", generator=stream(0, "f"))
            assert found.value == pytest.approx(pruned, rel=1e-9)


def test_networks_that_cannot_have_gradients_are_refused():
    inputs = batch()[0]
    with pytest.raises(ValueError, match="weight has no shape yet; call the network once"):
        fisher_trace(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), inputs, generator=stream(0, "f"))
    with torch.inference_mode():
        network = tiny_conv()
    with pytest.raises(ValueError, match=r"made under torch.inference_mode"):
        fisher_trace(network, inputs, generator=stream(0, "f"))

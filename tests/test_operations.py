"""Is a network piecewise linear in every parameter? Held against Tr H = Tr G by brute force."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helper.metrics.operations import observe
from helper.metrics.subject import Subject
from network.main import NetworkConfig, build_network
from tests.conftest import NETWORKS_TRIED, small_network
from tests.exact import batch, exact_fisher, exact_gauss_newton, exact_hessian


class Two(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(25, 6), nn.Linear(6, 3), between
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x.flatten(1))))


class Convolutions(nn.Module):
    def __init__(self, between) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Linear(3, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.bn(self.conv(x))).mean((2, 3)))


def squeeze_and_excite(net: Two, h: Tensor) -> Tensor:
    return h * torch.sigmoid(net.gate(h))


torch.manual_seed(1)  # of the networks below, which are drawn when this is imported
STRAIGHT = {
    "relu": Two(lambda net, h: torch.relu(h)),
    "relu in place": Two(lambda net, h: h.relu_()),
    "leaky relu": Two(lambda net, h: F.leaky_relu(h)),
    "prelu": Two(lambda net, h: net.act(h), act=nn.PReLU(6)),
    "relu6": Two(lambda net, h: F.relu6(h)),
    "absolute value": Two(lambda net, h: h.abs()),
    "maxout": Two(lambda net, h: torch.maximum(h, h.flip(1))),
    "residual branch": Two(lambda net, h: h + net.c(torch.relu(h)), c=nn.Linear(6, 6)),
    "concatenation": Two(lambda net, h: torch.cat([torch.relu(h[:, :3]), h[:, 3:] * 2 - 1], 1)),
    "a mask made of comparisons": Two(lambda net, h: h * (h > 0)),
    "dropout, which evaluation switches off": Two(lambda net, h: F.dropout(h, 0.5, net.training)),
    "a layer's weight used by a function": Two(
        lambda net, h: F.linear(torch.relu(h), net.c.weight), c=nn.Linear(6, 6, bias=False)
    ),
    "convolution, BatchNorm, max pooling": Convolutions(lambda h: F.max_pool2d(torch.relu(h), 2)),
    "average pooling": Convolutions(lambda h: F.avg_pool2d(torch.relu(h), 2)),
    "a contiguous copy of a weight": Two(
        lambda net, h: F.linear(h.relu(), net.c.weight.t().contiguous()), c=nn.Linear(6, 6, bias=False)
    ),
}  # fmt: skip
CURVED = {
    "tanh as a module": (Two(lambda net, h: net.act(h), act=nn.Tanh()), "operation tanh"),
    "tanh as a function": (Two(lambda net, h: torch.tanh(h)), "operation tanh"),
    "gelu": (Two(lambda net, h: F.gelu(h)), "operation gelu"),
    "softplus": (Two(lambda net, h: F.softplus(h)), "operation softplus"),
    "a layer used twice": (Two(lambda net, h: net.c(torch.relu(net.c(h))), c=nn.Linear(6, 6)), "used 2 times"),
    "a gate": (Two(lambda net, h: h * net.c(h), c=nn.Linear(6, 6)), "mul of two activations"),
    "squeeze and excite": (Two(squeeze_and_excite, gate=nn.Linear(6, 6)), "operation sigmoid"),
    "a square": (Two(lambda net, h: h * h), "mul of a tensor with itself"),
    "layer norm": (Two(lambda net, h: F.layer_norm(h, (6,))), "native_layer_norm"),
    "attention": (Two(lambda net, h: ((h[:, :, None] * h[:, None]) @ h[:, :, None])[..., 0]), "itself"),
    "division by an activation": (Two(lambda net, h: h / (1 + h.abs())), "division by an activation"),
    "a squared weight": (Two(lambda net, h: F.linear(h, net.c.weight * net.c.weight), c=nn.Linear(6, 6)), "itself"),
}


class Sign(torch.autograd.Function):
    """Straight-through: the sign, with the identity's derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class Bare(nn.Module):
    """A parameter written into a buffer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.b = nn.Parameter(torch.tensor(0.7)), nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.zeros_like(x.flatten(1)).masked_fill_(x.flatten(1) > 0, self.p)
        return self.b(t * t * t)


CURVED |= {
    "straight-through sign": (Two(lambda net, h: Sign.apply(h) * Sign.apply(net.c(h)), c=nn.Linear(6, 6)), "two activations"),
    "straight-through alone": (Two(lambda net, h: Sign.apply(h).relu()), "autograd.Function Sign"),
    "spectrum": (Two(lambda net, h: F.pad(torch.fft.rfft(h).abs(), (0, 2))), "operation _fft_r2c"),
    "a parameter written in place": (Bare(), "of a tensor with itself"),
}


def traces(network: nn.Module) -> tuple[float, float, float]:
    inputs, labels = batch()
    return (
        exact_hessian(network, inputs, labels, params="all"),
        exact_gauss_newton(network, inputs, params="all"),
        exact_fisher(network, inputs, params="all"),
    )


@pytest.mark.parametrize("name", STRAIGHT)
def test_where_no_operation_curves_the_three_traces_are_one(name):
    network = STRAIGHT[name].double().eval()
    assert Subject(network, batch()[0], params="all").seen.curved is None
    assert_one(traces(network))


def assert_one(found: tuple[float, float, float]) -> None:
    hessian, gauss_newton, fisher = found
    assert hessian == pytest.approx(gauss_newton, rel=1e-9)
    assert fisher == pytest.approx(gauss_newton, rel=1e-9)


@pytest.mark.parametrize("name", CURVED)
def test_what_curves_is_named_and_the_hessian_differs(name):
    network, reason = CURVED[name]
    network = network.double().eval()
    assert reason in Subject(network, batch()[0], params="all").seen.curved
    hessian, gauss_newton, fisher = traces(network)
    assert abs(hessian - gauss_newton) > 1e-6 * gauss_newton or name == "straight-through alone"
    assert fisher == pytest.approx(gauss_newton, rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS_TRIED)
def test_the_projects_networks_are_piecewise_linear(name):
    network, shape = small_network(name, hidden_act="relu")
    seen = observe(network.eval(), torch.randn(2, *shape))
    assert seen.curved is None
    assert set(seen.uses) == {name for name, _ in network.named_parameters()}
    assert seen.output == (2, 10)


def test_batch_statistics_curve():
    network = build_network(NetworkConfig(net_name="resnet", depth=8), (1, 8, 8), 10, torch.Generator())
    assert observe(network.train(), torch.randn(2, 1, 8, 8)).curved == "BatchNorm with batch statistics"


def test_a_tensor_that_cannot_be_followed_counts_as_curved():
    adjacency = torch.eye(6).to_sparse()
    network = Two(lambda net, h: torch.sparse.mm(adjacency, h.t()).t())
    assert observe(network, batch()[0][:2].float()).curved == "a tensor that cannot be followed"


def test_the_bytes_of_activations_are_counted():
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 7), nn.ReLU(), nn.Linear(7, 3))
    assert observe(network, torch.randn(2, 1, 5, 5)).bytes_per_example == 4 * (7 + 7 + 3)


# ------------------------------------------------------------------------------------- what no list of names tells


def complex_modulus(net: Two, h: Tensor) -> Tensor:
    z = torch.view_as_complex(h.view(-1, 3, 2).contiguous())
    return torch.cat([z.abs(), z.abs()], 1)


def without_gradients(net: Two, h: Tensor) -> Tensor:
    """What a recording without gradients would have seen is a ReLU."""
    return torch.tanh(h) if torch.is_grad_enabled() else torch.relu(h)


def foreach(net: Two, h: Tensor) -> Tensor:
    squares = [h.clone()]
    torch._foreach_mul_(squares, [h])
    return squares[0]


def foreach_tanh(net: Two, h: Tensor) -> Tensor:
    both = [h[:, :3].clone(), h[:, 3:].clone()]
    torch._foreach_tanh_(both)
    return torch.cat(both, 1)


def by_item(net: Two, h: Tensor) -> Tensor:
    """Piecewise linear for the examples that are looked at, none of which is large."""
    return torch.stack([row.tanh() if row.max().item() > 100 else row.relu() for row in h])


def by_count(net: Two, h: Tensor) -> Tensor:
    return torch.stack([row * len(row.nonzero()) for row in h.relu()])


def by_list(net: Two, h: Tensor) -> Tensor:
    return torch.stack([row * max(1.0, *row.tolist()) for row in h])


def by_numpy(net: Two, h: Tensor) -> Tensor:
    return h * torch.from_numpy(numpy.tanh(h.detach().numpy()))


def by_out(net: Two, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = torch.mul(h, 2, out=torch.empty_like(h))
    return h * scale


def by_hook(net: Two, h: Tensor) -> Tensor:
    h = h.relu()
    h.register_hook(lambda gradient: gradient * h)
    return h


@torch.library.custom_op("test_operations::relu", mutates_args=())
def curved_relu(x: Tensor) -> Tensor:
    """Called like an operation that is piecewise linear, which it is not."""
    return x * x


curved_relu.register_autograd(
    lambda ctx, gradient: gradient * 2 * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.jit.script
def scripted_relu(x: Tensor) -> Tensor:
    return torch.relu(x) - 0.5 * x


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * x


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(25, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x.flatten(1), self.a.weight.detach(), self.a.bias).relu())


HIDDEN = {
    "the modulus of a complex number": (Two(complex_modulus), "operation abs of complex numbers"),
    "complex numbers times each other": (
        Two(lambda net, h: torch.view_as_real((z := torch.view_as_complex(h.view(-1, 3, 2).contiguous())) * z).flatten(1)),
        "mul of a tensor with itself",
    ),
    "a branch on whether gradients are on": (Two(without_gradients), "operation tanh"),
    "a list multiplied in place": (Two(foreach), "operation _foreach_mul"),
    "a list's tanh in place": (Two(foreach_tanh), "operation _foreach_tanh"),
    "a branch on a value": (Two(by_item), "values taken out by operation _local_scalar_dense"),
    "a number of values": (Two(by_count), "values taken out by operation nonzero"),
    "a list of values": (Two(by_list), "values taken out by tolist"),
    "NumPy": (Two(by_numpy), "values taken out by numpy"),
    "an output that is given": (Two(by_out), "operation mul with out="),
    "a hook on a gradient": (Two(by_hook), "values taken out by register_hook"),
    "another library's operation": (Two(lambda net, h: curved_relu(h)), "operation test_operations::relu"),
    "TorchScript": (Two(lambda net, h: scripted(h)), "mul of two activations"),
    "a compiled function": (Two(torch.compile(lambda net, h: h.relu() * h)), "mul of two activations"),
    "a weight without a gradient": (Detached(), "parameter a.weight used without a gradient"),
}  # fmt: skip
SEEN = {
    "a compiled function of ReLU": Two(torch.compile(lambda net, h: h.relu())),
    "checkpointing": Two(lambda net, h: checkpoint(lambda h: net.c(h.relu()), h, use_reentrant=False), c=nn.Linear(6, 6)),
    "TorchScript of ReLU": Two(lambda net, h: scripted_relu(h)),
    "hardsigmoid": Two(lambda net, h: F.hardsigmoid(h)),
    "a value of a buffer": Two(lambda net, h: h.relu() * torch.tensor([2.0]).item()),
    "numbers through integers": Two(lambda net, h: h * h.detach().long().to(h.dtype)),
    "a complex number times a constant": Two(
        lambda net, h: torch.view_as_real(torch.view_as_complex(h.view(-1, 3, 2).contiguous()) * (1 + 2j)).flatten(1).relu()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_cannot_be_seen_or_is_not_known_curves(name):
    network, reason = HIDDEN[name]
    assert reason in Subject(network.double(), batch()[0], params="all").seen.curved


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen_to_be_piecewise_linear_stays_so(name):
    network = SEEN[name].double().eval()
    assert Subject(network, batch()[0], params="all").seen.curved is None
    if name != "hardsigmoid":  # of which PyTorch has no second derivative to compare with
        with torch.compiler.set_stance("force_eager"):  # compiled code has no second derivatives
            assert_one(traces(network))

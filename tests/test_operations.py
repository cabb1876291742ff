"""Is a network piecewise linear in every parameter? Held against Tr H = Tr G by brute force."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.metrics.operations import observe
from helper.metrics.subject import Subject
from network.main import NETWORKS, NetworkConfig, build_network
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
    hessian, gauss_newton, fisher = traces(network)
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


@pytest.mark.parametrize("name", NETWORKS)
def test_the_projects_networks_are_piecewise_linear(name):
    network = build_network(NetworkConfig(net_name=name, depth=8), (1, 8, 8), 10, torch.Generator())
    seen = observe(network.eval(), torch.randn(2, 1, 8, 8))
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

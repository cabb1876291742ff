"""BatchNorm between sparse convolutions: normalised where it is read, its sums taken where its inputs are made."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.sparse import chain, layer_pass
from helper.sparse.layers import LanesBlock
from helper.sparse.norm import LanesNorm
from helper.sparse.part import Part
from helper.sparse.view import View
from network.resnet import ResNet
from tests.test_sparse import seeded, threads  # noqa: F401
from tests.test_sparse_view import check_view, sparse_masks, step

pytestmark = pytest.mark.compiler


@pytest.fixture
def narrow(monkeypatch):
    """Windows have room for the rows of one band alone, and move on with each."""
    monkeypatch.setattr(layer_pass, "WINDOW", 0)


def parts_of(view: View) -> list[Part]:
    chains = [child for child in view.in_training.module.children() if isinstance(child, chain.Chain)]
    return [part for one in chains for part, _ in one.parts]


def n_between_norms(view: View) -> int:
    return sum(isinstance(part, LanesBlock) and bool(part.before or part.after) for part in parts_of(view))


def test_norms_of_a_resnet_take_no_pass_of_their_own_but_beside_shortcuts_and_at_the_end():
    network = ResNet(3, 5, 14)
    view = View(network, sparse_masks(network), (3, 8, 8))
    assert n_between_norms(view) == 13 + 2
    assert sum(isinstance(part, LanesNorm) for part in parts_of(view)) == 3


class Chain(nn.Module):
    """A convolution of any geometry that reads BatchNorm and ReLU of another one's outputs, which it may have to share."""

    def __init__(self, *, shared: bool, bias: bool, **geometry) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 4, bias=bias, **geometry), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(6, 4, 3, stride=2, bias=False) if shared else None
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x)).mean((2, 3))
        return self.fc(y if self.conv3 is None else y + self.conv3(x).mean((2, 3)))


GEOMETRIES = {
    "usual": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "pixels left out": {"kernel_size": 1, "stride": 4},
    "far apart": {"kernel_size": 3, "dilation": 3, "padding": 4},
    "mostly padding": {"kernel_size": (5, 1), "padding": (9, 0), "stride": (1, 3)},
    "grouped": {"kernel_size": (1, 3), "groups": 2},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_is_normalised_while_it_is_read_is_right_in_every_geometry(name, shared, narrow):
    network = Chain(shared=shared, bias=name == "usual", **GEOMETRIES[name]).double()
    for image, n in (((13, 9), 20), ((11, 70), 6), ((9, 9), 34)):
        view = check_view(copy.deepcopy(network), (2, *image), n=n)
        assert n_between_norms(view) == 2


def check_step(network: nn.Module, shape: tuple[int, ...]) -> None:
    """A step in float64 is the dense one, in the modes that a network's layers have."""
    masks, dense = sparse_masks(network), copy.deepcopy(network)
    x = torch.randn(12, *shape, generator=seeded(0)).double()
    view = View(network, masks, shape)
    ours, theirs = step(view, network, x, masks), step(dense, dense, x, masks)
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("which", ["none", "all", "first ones", "second ones"])
def test_norms_whose_statistics_are_given_are_right_beside_such_that_are_not(which, narrow):
    network = ResNet(3, 5, 8).double()
    for name, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(generator=seeded(1))
            norm.running_var.uniform_(0.5, 2, generator=seeded(2))
            norm.train(
                not (which == "all" or (which == "first ones" and "bn1" in name) or (which == "second ones" and "bn2" in name))
            )
    check_step(network, (3, 8, 8))


def test_biases_before_norms_get_the_gradient_that_is_left():
    for training in (True, False):
        network = Chain(shared=True, bias=True, kernel_size=3).double().train(training)
        check_step(network, (2, 8, 8))


@pytest.mark.parametrize("frozen", ["weight", "norm", "first"])
def test_gradients_pass_by_what_is_frozen(frozen):
    network = Chain(shared=False, bias=False, kernel_size=3).double()
    chosen = {"weight": [network.conv2.weight], "norm": list(network.norm1.parameters()), "first": [network.conv1.weight]}[
        frozen
    ]
    for parameter in chosen:
        parameter.requires_grad_(False)
    masks, dense, x = sparse_masks(network), copy.deepcopy(network), torch.randn(8, 2, 7, 7).double()
    for function in (View(network, masks, (2, 7, 7)), dense):
        F.cross_entropy(function(x), torch.arange(8) % 3).backward()
    for (name, ours), theirs in zip(network.named_parameters(), dense.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and ours.grad.any():
            mask = masks.get(name.removesuffix(".weight"), torch.tensor(1))
            assert torch.allclose(ours.grad, theirs.grad * mask, atol=1e-12), name


def test_statistics_are_exact_where_the_mean_is_far_from_zero():
    network = Chain(shared=False, bias=True, kernel_size=3)
    with torch.no_grad():
        network.conv1.bias.fill_(3000.0)
    exact, masks = copy.deepcopy(network).double(), sparse_masks(network)
    exact.load_state_dict(network.state_dict())
    x = torch.randn(64, 2, 16, 16, generator=seeded(0))
    View(network, masks, (2, 16, 16))(x)
    exact(x.double())
    spread = 3000 * 2.0**-23  # what float32 leaves of the outputs themselves
    assert torch.allclose(network.norm1.running_mean.double(), exact.norm1.running_mean, rtol=1e-6)
    error = (network.norm1.running_var.double() - exact.norm1.running_var).abs()
    assert (error <= spread * exact.norm1.running_var.sqrt()).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_in_one_example_reaches_that_one_alone_in_evaluation_and_all_in_training(value):
    network = ResNet(3, 5, 8)
    view = View(network, sparse_masks(network, 0.5), (3, 8, 8))
    x = torch.randn(40, 3, 8, 8, generator=seeded(0))
    x[7, :, 4, 4] = value
    network.eval()
    assert torch.equal(view(x).isnan().any(1), torch.arange(40) == 7)
    network.train()
    assert view(x).isnan().all()
    assert network.bn.running_var.isnan().any()


def test_a_network_gives_the_same_to_the_bit_with_any_number_of_threads(threads):  # noqa: F811
    network = ResNet(3, 5, 8)
    masks, x, found = sparse_masks(network, 0.2), torch.randn(96, 3, 16, 16, generator=seeded(0)), []
    states = copy.deepcopy(network.state_dict())
    for n in (1, 2, 3, 2, 7):
        threads(n)
        network.load_state_dict(states)
        values = step(View(network, masks, (3, 16, 16)), network, x, masks)
        found.append({name: value for name, value in values.items() if not name.startswith("fc")})
    for other in found[1:]:
        assert all(torch.equal(found[0][name], value) for name, value in other.items())


def test_training_on_one_value_per_channel_is_refused_between_layers_too():
    network = Chain(shared=False, bias=False, kernel_size=3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        View(network, sparse_masks(network), (2, 3, 3))(torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_layers_between_norms_of_which_nothing_or_everything_is_active_are_right(density):
    network = ResNet(3, 5, 8).double()
    check_view(network, (3, 8, 8), n=31, masks=sparse_masks(network, density))


def test_a_layer_without_weights_amid_others_passes_on_what_the_norm_behind_it_makes_of_zeros():
    network = ResNet(3, 5, 8).double()
    masks = sparse_masks(network)
    for name in ("blocks.0.conv2", "blocks.1.conv1"):
        masks[name].zero_()
        nn.init.zeros_(network.get_submodule(name).weight)
    check_view(network, (3, 8, 8), n=127, masks=masks)

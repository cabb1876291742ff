"""The sparse view of a network computes what the network does, to rounding, with the same parameters and statistics."""

import copy
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helper.sparse.functional import lanes_of, lanes_of_features
from helper.sparse.norm import LanesNorm
from helper.sparse.view import View
from network.resnet import ResNet
from network.vgg import VGG
from tests.conftest import NETWORKS_TRIED, TinyConv, small_network
from tests.test_sparse import EPSILON, seeded

pytestmark = pytest.mark.compiler


def sparse_masks(network: nn.Module, density: float = 0.3) -> dict[str, Tensor]:
    """{layer name: random mask} of all linear and convolutional layers but the last; pruned weights become zero."""
    layers = {name: m for name, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    masks = {name: torch.rand(m.weight.shape, generator=seeded(i)) < density for i, (name, m) in enumerate(layers.items())}
    masks.popitem()
    with torch.no_grad():
        for name, mask in masks.items():
            layers[name].weight.mul_(mask)
    return masks


def step(function, network: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """{name: float64 value} of logits, loss, gradients of what is not pruned, and statistics after a step's passes."""
    network.zero_grad()
    logits = function(x)
    loss = F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1])
    loss.backward()
    gradients = {name: p.grad * masks.get(name.removesuffix(".weight"), 1) for name, p in network.named_parameters()}
    found = {"logits": logits, "loss": loss, **gradients, **dict(network.named_buffers())}
    return {name: value.detach().double() for name, value in found.items()}


def check_view(network: nn.Module, input_shape: tuple[int, ...], n: int = 20, masks: dict[str, Tensor] | None = None) -> View:
    """Its errors against dense float64 are no more than four times those of dense float32, over all parameters together."""
    network.to(memory_format=torch.channels_last)
    masks = sparse_masks(network) if masks is None else masks
    dense, exact = copy.deepcopy(network), copy.deepcopy(network).double()
    view = View(network, masks, input_shape)
    x = torch.randn(n, *input_shape, generator=seeded(0)).to(next(network.parameters()).dtype)
    ours, theirs, truth = (step(*args, masks) for args in ((view, network, x), (dense, dense, x), (exact, exact, x.double())))
    assert ours.keys() == truth.keys()
    kinds = {name: "gradients" if name in dict(network.named_parameters()) else name for name in truth}
    rounding = torch.finfo(next(network.parameters()).dtype).eps
    for kind in set(kinds.values()):
        a, b, c = (torch.cat([f[n].flatten() for n in truth if kinds[n] == kind]) for f in (ours, theirs, truth))
        assert (a - c).norm() <= 4 * (b - c).norm() + (8 if rounding == EPSILON else 1e4) * rounding * c.norm(), kind
    for name, mask in masks.items():
        assert not network.get_submodule(name).weight.grad[~mask].any()
    return view


@pytest.mark.parametrize("batch_norm", [True, False])
def test_vgg_has_a_view(batch_norm):
    view = check_view(VGG(3, 5, (1, 2), (4, 6), batch_norm=batch_norm).double(), (3, 9, 8))
    assert len(view.layers) == 3
    assert conversions(view) == 1


@pytest.mark.parametrize("name", [name for name in NETWORKS_TRIED if not name.startswith("vgg")])
def test_every_network_of_the_registry_has_a_view(name):
    network, shape = small_network(name, dropRate=0.0)
    view = check_view(network, shape)
    assert set(view.layers) == set(sparse_masks(network))
    assert conversions(view) == 1


def conversions(view: View) -> int:
    """How often activations are brought into the layout of the view, the inputs among them, or back; once is least."""
    calls = [str(node.target) for node in view.in_training.graph.nodes if node.op == "call_function"]
    return sum("function enter" in call or "from_lanes" in call for call in calls) - 1


def test_bottlenecks_have_a_view():
    view = check_view(ResNet(3, 5, depth=56).double(), (3, 8, 8))
    calls = [str(node.target) for node in view.in_training.graph.nodes]
    assert view.in_evaluation is view.in_training  # traced alike, so that there is one of it
    assert sum("to_lanes" in call or "enter" in call for call in calls) == 1  # the layout is converted once
    assert not any("batch_norm" in call for call in calls)


class Odd(nn.Module):
    """Layers that are known and layers that are not, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.conv3 = nn.Conv2d(8, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6, momentum=None)
        self.frozen = nn.BatchNorm2d(6, affine=False)
        self.fc1 = nn.Linear(6, 9)
        self.norm1d = nn.BatchNorm1d(9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.group_norm(self.conv1(x)))
        z = self.conv2(y) + y
        z = self.norm(self.conv3(F.max_pool2d(z, 2)))
        z = torch.sigmoid(z) + F.relu(z) + z.tanh()  # a norm with several readers
        z = self.frozen(z).mean((2, 3))
        return self.fc2(F.relu(self.norm1d(self.fc1(z)), inplace=True))


def test_layers_that_are_not_known_stay_dense_inside_the_view():
    network = Odd().double()
    masks = {name: mask for name, mask in sparse_masks(network).items() if name != "conv2"}
    view = check_view(network, (2, 9, 9), masks=masks)
    assert view.layers == ["conv1", "conv3", "fc1"]


class Residuals(nn.Module):
    """Norms that meet in sums: two of them, one twice, and one that has another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (norm(conv(x)) for norm, conv in zip(self.norms, self.convs, strict=True))
        y = F.relu(a + b) + torch.add(c, c)
        d = x + c
        return self.fc(F.adaptive_avg_pool2d(F.relu(d) + d + y, (1, 1)).flatten(1))


class Pools(nn.Module):
    """What makes images smaller, flat or of more channels, in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.max = nn.MaxPool2d(3, 2, padding=1, dilation=2, ceil_mode=True)
        self.average = nn.AvgPool2d((3, 2), stride=(2, 1), padding=1, count_include_pad=False, ceil_mode=True)
        self.adaptive = nn.AdaptiveAvgPool2d((None, 3))
        self.conv2 = nn.Conv2d(16, 5, 3, padding=1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(5 * 4 * 3, 7)
        self.fc2 = nn.Linear(19, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        images = [self.max(x), self.average(x), F.max_pool2d(x, 3, stride=2), F.avg_pool2d(x, [3, 3], 2, divisor_override=5)]
        x = self.conv2(torch.cat([F.adaptive_avg_pool2d(self.adaptive(image), (4, 3)) for image in images], dim=-3))
        means = [x.mean((2, 3)), torch.mean(x, dim=[-1, -2], keepdim=True).flatten(1), torch.flatten(F.max_pool2d(x, 3), 1)]
        return self.fc2(torch.cat([self.fc1(self.flatten(x)), *means[:2], means[2][:, :2]], 1))


def test_images_are_made_smaller_as_the_network_does():
    network = Pools().double()
    view = check_view(network, (2, 13, 11), masks=sparse_masks(network))
    assert set(view.layers) == {"conv1", "conv2", "fc1"}
    calls = [str(node.target) for node in view.in_training.graph.nodes]
    assert not any("pool2d" in call for call in calls)


class Joined(nn.Module):
    """Concatenations of images that are not along their channels, or of what else."""

    def __init__(self, dim: int, *, mixed: bool) -> None:
        super().__init__()
        self.dim, self.mixed = dim, mixed
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc(torch.cat((y, x if self.mixed else y), self.dim).unflatten(1, (2, -1)).mean((2, 3, 4)))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_what_is_put_side_by_side_is_what_the_network_does(dim, mixed):
    check_view(Joined(dim, mixed=mixed).double(), (2, 5, 5))


def test_dropout_keeps_its_share_and_scale_in_a_view():
    network = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.Dropout(0.25), nn.Flatten(), nn.Linear(8 * 36, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[3].weight.fill_(1 / (8 * 36))
    view = View(network, {"0": torch.ones(8, 1, 1, 1, dtype=torch.bool)}, (1, 6, 6))
    torch.manual_seed(0)
    found = view(torch.ones(100, 1, 6, 6)).flatten()
    error = (0.25 / 0.75 / (8 * 36 * 100)) ** 0.5
    assert abs(found.mean() - 1) < 4 * error < 0.02
    assert found.std() > 0
    network.eval()
    assert torch.allclose(view(torch.ones(3, 1, 6, 6)), torch.ones(3, 1))


def test_norms_that_meet_in_sums_are_computed_once_each():
    network = Residuals().double()  # float32 might round to the other side of a ReLU's kink
    check_view(network, (3, 5, 4), masks=sparse_masks(network, 1.0))


def test_a_view_uses_the_networks_parameters_at_every_batch_size():
    network = TinyConv()
    view = View(network, {"conv1": torch.ones(4, 1, 3, 3, dtype=torch.bool)}, (1, 6, 6))
    for n in (5, 32, 1, 300):
        x = torch.randn(n, 1, 6, 6, generator=seeded(n))
        with torch.no_grad():
            network.conv1.weight.add_(0.1)
            assert torch.allclose(view(x), copy.deepcopy(network)(x), atol=1e-5)


def test_a_view_evaluates_as_the_network_does_and_leaves_its_modes_alone():
    network = TinyConv()
    network.train()
    network.bn.eval()
    modes = [module.training for module in network.modules()]
    view = View(network, sparse_masks(network), (1, 6, 6))
    assert [module.training for module in network.modules()] == modes
    x, before = torch.randn(7, 1, 6, 6, generator=seeded(0)), network.bn.running_mean.clone()
    assert torch.allclose(view(x), network(x), atol=1e-6)
    assert torch.equal(network.bn.running_mean, before)


class Wavering(nn.Module):
    """Does other things in training than in evaluation, all of them in ways that a trace takes for constants."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc1, self.fc2 = way, nn.Linear(6, 9), nn.Linear(9, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.fc1(x))
        if self.way == "dropout function":
            y = F.dropout(y, 0.5, training=self.training)
        elif self.way == "dropout module":
            y = self.dropout(y)
        elif self.training:
            y = y + 1.0
        return self.fc2(y)


@pytest.mark.parametrize("way", ["dropout function", "dropout module", "branch"])
def test_a_view_does_in_evaluation_what_the_network_does_there(way):
    network, x = Wavering(way), torch.randn(7, 6, generator=seeded(0))
    view = View(network, sparse_masks(network), (6,))
    for training in (True, False, True):
        network.train(training)
        torch.manual_seed(0)  # where it is the same, dropout draws for another layout
        found, own = view(x), network(x)
        assert torch.allclose(found, own, atol=1e-6) == (not training or way == "branch")
    mask = {"fc1": torch.rand(9, 6, generator=seeded(1)) < 0.5}
    view.follow(mask)
    network.eval()
    with torch.no_grad():
        found = view(x)
        network.fc1.weight.mul_(mask["fc1"])
        assert torch.allclose(found, network(x), atol=1e-6)


def test_both_modes_of_a_view_share_the_plans_of_a_layer():
    network = Wavering("branch")
    view = View(network, sparse_masks(network), (6,))
    assert view.in_training is not view.in_evaluation
    for lowering in (view.in_training, view.in_evaluation):
        assert lowering.module.chain_0.parts[0][0].sparse is view.in_training.sparse["fc1"]


def test_no_examples_give_no_logits():
    network = ResNet(1, 3, 8).eval()
    assert View(network, sparse_masks(network), (1, 8, 8))(torch.zeros(0, 1, 8, 8)).shape == (0, 3)


class LargestMemory(TorchDispatchMode):
    """Bytes of the tensors made inside that were there at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_a_large_batch_is_evaluated_in_no_more_memory_than_densely():
    network = ResNet(3, 10, 8, 1).eval()
    view = View(network, sparse_masks(network, 0.05), (3, 16, 16))
    x, most = torch.randn(512, 3, 16, 16, generator=seeded(0)).to(memory_format=torch.channels_last), {}
    for name, forward in {"plans are made": view, "sparse": view, "dense": network}.items():
        with torch.no_grad(), LargestMemory() as memory:
            logits = forward(x)
        assert logits.grad_fn is None
        most[name] = memory.most
    activations = 512 * 16 * 16 * 16 * 4
    assert 2 * activations <= most["sparse"] <= 1.05 * most["dense"]


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_a_network_whose_calls_depend_on_its_inputs_has_no_view():
    with pytest.raises(ValueError, match="the calls of Undecided depend on its inputs"):
        View(Undecided(), {}, (3,))


class Unsure(nn.Module):
    """Its forward passes do what only tensors can, or what chance says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc = way, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "asserts":
            assert isinstance(x, Tensor)
        elif self.way == "looks up":
            return self.fc(x * {1: 2.0, 2: 2.0}[len(x.shape)])
        elif self.way == "counts":
            x = x[: len(x)]
        elif (self.way == "torch's chance" and torch.rand(1) < 0.5) or (
            self.way == "python's chance" and random.random() < 0.5
        ):
            return self.fc(-x)
        return self.fc(x)


@pytest.mark.parametrize("way", ["asserts", "looks up", "counts", "torch's chance", "python's chance"])
def test_what_a_trace_cannot_know_has_no_view(way):
    network = Unsure(way)
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="Unsure"):
        View(network, {}, (3,))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_batches_are_divided_evenly():
    assert [lanes_of_features(n) for n in (1, 100, 256, 512, 1000, 2048, 997)] == [1, 100, 256, 256, 1000, 256, 997]
    assert [lanes_of(n) for n in (1, 20, 100, 128, 512, 1000, 96, 80, 997)] == [1, 20, 25, 32, 32, 25, 32, 16, 997]
    assert all(n % lanes_of(n) == n % lanes_of_features(n) == 0 for n in range(1, 3000))


# ---------------------------------------------------------------------------------------------------- BatchNorm


class Flat(nn.BatchNorm2d):
    """BatchNorm2d for activations (blocks, channels, height, width, lanes)."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() == 5


def norms(channels: int, momentum: float | None = 0.1) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """(a BatchNorm with drawn parameters and statistics, the same in float64)."""
    norm = Flat(channels, momentum=momentum)
    with torch.no_grad():
        for i, tensor in enumerate((norm.weight, norm.bias, norm.running_mean)):
            tensor.normal_(generator=seeded(i))
        norm.running_var.uniform_(0.5, 2, generator=seeded(3))
    return norm, copy.deepcopy(norm).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 5, 4, 20), (2, 2, 1, 1, 1), (3, 1, 2, 3, 17), (1, 4, 9, 9, 128)])
def test_batch_norm_with_residual_and_relu_is_pytorchs(shape, residual, relu, training):
    norm, exact = norms(shape[1], momentum=None if residual else 0.3)
    norm.train(training)
    exact.train(training)
    x, r, g = (torch.randn(shape, generator=seeded(i)) * 2 + 0.5 for i in range(3))
    results = []
    for layer, precision in ((LanesNorm(norm, relu=relu), torch.float32), (exact, torch.float64)):
        inputs = [x.to(precision).requires_grad_(), *([r.to(precision).requires_grad_()] if residual else [])]
        if layer is exact:
            y = layer(inputs[0]) if not residual else layer(inputs[0]) + inputs[1]
            y = F.relu(y) if relu else y
        else:
            y = layer(*inputs)
        own = layer if layer is exact else norm
        gradients = torch.autograd.grad(y, [*inputs, own.weight, own.bias], g.to(precision))
        results.append([y.detach(), *gradients, own.running_mean, own.running_var, own.num_batches_tracked])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_batch_norm_are_those_of_differences(training):
    norm = nn.BatchNorm2d(2).double().train(training)
    layer = LanesNorm(norm, relu=True)
    x, r = (torch.randn(2, 2, 2, 1, 5, generator=seeded(i), dtype=torch.float64, requires_grad=True) for i in range(2))

    def function(x: Tensor, r: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer(x, r)

    assert torch.autograd.gradcheck(function, (x, r, norm.weight, norm.bias))


def test_what_is_not_finite_passes_through_norm_and_relu():
    norm, _ = norms(2)
    x = torch.ones(1, 2, 2, 2, 20)
    x[0, 0, 0, 0, 3] = torch.nan
    norm.eval()
    y = LanesNorm(norm, relu=True)(x)
    assert y.isnan().sum() == 1
    assert y[0, 0, 0, 0, 3].isnan()


def test_training_on_one_value_per_channel_is_refused_as_pytorch_does():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        LanesNorm(nn.BatchNorm2d(3), relu=True)(torch.zeros(1, 3, 1, 1, 1))

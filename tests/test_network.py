import dataclasses

import pytest
import torch
from torch import nn

from helper.schema.config import FlagError
from helper.system.seeds import stream
from network.main import NETWORKS, NetworkConfig, build_network
from network.spec import NetworkSpec


def build(shape=(3, 32, 32), n_classes=100, seed=0, **flags) -> nn.Module:
    return build_network(NetworkConfig(**flags), shape, n_classes, stream(seed, "init"))


@pytest.mark.parametrize(
    ("depth", "widen_factor", "n_weights"),
    [(20, 1, 278_324), (32, 4, 7_451_044), (8, 2, 320_260), (56, 1, 614_452), (56, 2, 2_387_460)],
)
def test_resnets_have_the_size_of_their_formula(depth, widen_factor, n_weights):
    """32x4 is the paper's network with 100 classes; the formula: kernels, BatchNorm pairs, the last layer."""
    network = build(net_name="resnet", depth=depth, widen_factor=widen_factor)
    assert sum(p.numel() for p in network.parameters()) == resnet_parameters(depth, widen_factor) == n_weights
    main_path = [c for name, c in network.named_modules() if isinstance(c, nn.Conv2d) and "shortcut" not in name]
    assert len(main_path) + 1 == depth


def resnet_parameters(depth: int, widen_factor: int, n_classes: int = 100) -> int:
    """Counted layer by layer from the published description: (channels in, out, kernel side) of every convolution."""
    n_in = 16 * widen_factor
    convs = [(3, n_in, 3)]
    for width in (16 * widen_factor, 32 * widen_factor, 64 * widen_factor):
        for _ in range((depth - 2) // (6 if depth < 54 else 9)):
            if depth < 54:
                n_out, block = width, [(n_in, width, 3), (width, width, 3)]
            else:
                n_out, block = 4 * width, [(n_in, width, 1), (width, width, 3), (width, 4 * width, 1)]
            convs += block + ([(n_in, n_out, 1)] if n_in != n_out else [])
            n_in = n_out
    return sum(i * o * k * k + 2 * o for i, o, k in convs) + n_in * n_classes + n_classes


def test_resnet_shrinks_twice_and_adds_its_shortcuts():
    network = build(net_name="resnet", depth=8, widen_factor=1).eval()
    x = torch.randn(2, 3, 32, 32)
    assert network.blocks(torch.relu(network.bn(network.conv(x)))).shape == (2, 64, 8, 8)
    block = network.blocks[0]
    y = torch.relu(network.bn(network.conv(x)))
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(y)))))
    torch.testing.assert_close(block(y), torch.relu(inner + y))


@pytest.mark.parametrize(
    ("shape", "n_flat", "n_weights"), [((1, 28, 28), 256, 44_426), ((1, 32, 32), 400, 61_706), ((1, 8, 8), 64, 19_754)]
)
def test_lenet_has_its_published_size_on_mnist_and_fits_cifar_and_digits(shape, n_flat, n_weights):
    network = build(shape, 10, net_name="mnist_lenet")
    assert network.fc1.in_features == n_flat
    assert sum(p.numel() for p in network.parameters()) == n_weights
    assert network(torch.zeros(3, *shape)).shape == (3, 10)


def test_lenet_averages_without_padding():
    """An impulse in a corner reaches one output of the first convolution, and a quarter of it one pooled value."""
    network = build((1, 28, 28), 10, net_name="mnist_lenet").eval()
    seen = {}
    network.conv2.register_forward_hook(lambda module, inputs, output: seen.update(pooled=inputs[0]))
    with torch.no_grad():
        network.conv1.weight.fill_(1.0)
        network.conv1.bias.zero_()
        x = torch.zeros(1, 1, 28, 28)
        x[..., 0, 0] = 1.0
        network(x)
    assert seen["pooled"].shape == (1, 6, 12, 12)
    assert seen["pooled"].sum().item() == pytest.approx(6 * 0.25)


def test_mlp_is_a_chain_of_its_widths():
    network = build((12,), 2, net_name="mlp", hidden_dims="10-7-5-4-3", hidden_act="tanh", out_act="sigmoid")
    sizes = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(12, 10), (10, 7), (7, 5), (5, 4), (4, 3), (3, 2)]
    x = torch.randn(4, 12)
    expected = x
    for layer in [m for m in network.modules() if isinstance(m, nn.Linear)][:-1]:
        expected = torch.tanh(layer(expected))
    torch.testing.assert_close(network(x), torch.sigmoid(network.layers[-2](expected)))


def test_no_hidden_layer_is_a_linear_classifier():
    assert len(list(build((12,), 2, net_name="mlp", hidden_dims="").parameters())) == 2


def test_kaiming_has_fan_out_variance_and_a_small_last_layer():
    network = build(net_name="resnet", depth=20, widen_factor=4)
    conv = network.blocks[4].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (conv.out_channels * 9)) ** 0.5, rel=0.02)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert network.fc.bias.abs().max() == 0


def test_xavier_has_glorot_variance():
    layer = build((400,), 300, net_name="mlp", hidden_dims="", init_method="xavier").layers[0]
    assert layer.weight.std().item() == pytest.approx((2 / 700) ** 0.5, rel=0.02)


def test_none_is_pytorchs_own_initialisation():
    layer = build((100,), 300, net_name="mlp", hidden_dims="", init_method="none").layers[0]
    assert layer.weight.abs().max().item() == pytest.approx(0.1, rel=0.02)  # uniform up to 1/sqrt(fan_in)


def test_the_generator_alone_decides_and_the_global_one_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, other = build(seed=0, net_name="mlp"), build(seed=0, net_name="mlp"), build(seed=1, net_name="mlp")
    assert torch.equal(a.layers[0].weight, b.layers[0].weight)
    assert not torch.equal(a.layers[0].weight, other.layers[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "flags", "words"),
    [
        ((12,), {"net_name": "resnet"}, "takes images"),
        ((1, 9, 9), {"net_name": "mnist_lenet"}, "8x8, 28x28 or 32x32"),
        ((12,), {"in_dim": 13}, "--in_dim 13: the data has 12"),
        ((12,), {"out_dim": 3}, "--out_dim 3: the data has 2"),
    ],
)
def test_networks_that_do_not_fit_the_data_are_refused(shape, flags, words):
    with pytest.raises(FlagError, match=words):
        build(shape, 2, **flags)


@pytest.mark.parametrize("head", [lambda network: network, lambda network: nn.Linear(64, 10), lambda network: None])
def test_a_head_that_is_no_layer_of_the_network_is_refused(head, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mlp", dataclasses.replace(NETWORKS["mlp"], head=head))
    with pytest.raises(TypeError, match="head of --net_name mlp is no layer with a weight"):
        build((1, 8, 8), 10)


@pytest.mark.parametrize(
    "head", [lambda network: network.classifier, lambda network: network[99], lambda network: network["x"]]
)
def test_a_head_that_is_not_to_be_found_is_said_to_be_the_head(head, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mlp", dataclasses.replace(NETWORKS["mlp"], head=head))
    with pytest.raises(TypeError, match="head of --net_name mlp is not to be found: "):
        build((1, 8, 8), 10)


@pytest.mark.parametrize(
    "head",
    [nn.Linear(64, 11), nn.Linear(64, 9), nn.Sequential(nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, 11, 1), nn.Flatten())],
)
def test_a_network_with_another_number_of_logits_than_classes_is_refused(head, monkeypatch):
    def classifier(network: nn.Module) -> nn.Module:
        return network[1][1] if isinstance(network[1], nn.Sequential) else network[1]

    spec = NetworkSpec("mlp", lambda shape, n: nn.Sequential(nn.Flatten(), head), head=classifier, images=False)
    monkeypatch.setitem(NETWORKS, "mlp", spec)
    with pytest.raises(TypeError, match=r"head of --net_name mlp gives (11|9) logits for 10 classes"):
        build((1, 8, 8), 10)

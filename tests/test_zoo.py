"""The published networks beside ResNet, LeNet and MLP: their sizes, what they compute, and what trains them."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helper.metrics.macs import uses_of_weights
from helper.metrics.operations import observe
from helper.metrics.parameters import evaluation_mode
from helper.pruner import prunable_weights
from helper.schema.config import FlagError
from helper.schema.registry import with_options
from helper.system.seeds import stream
from network.main import NETWORKS, NetworkConfig, build_network
from network.vgg import VGG
from optim.model import load_stored

WHOLE_DENSENET = {"depth": 40, "compressionRate": 1, "dense_block": "basic"}
PUBLISHED = [  # (network, flags, parameters with 100 classes)
    ("vgg11", {}, 9_271_780), ("vgg13", {}, 9_456_292), ("vgg16", {}, 14_765_988), ("vgg19", {}, 20_075_684),
    ("vgg11_bn", {}, 9_277_284), ("vgg13_bn", {}, 9_462_180), ("vgg16_bn", {}, 14_774_436), ("vgg19_bn", {}, 20_086_692),
    ("densenet", WHOLE_DENSENET, 1_100_428), ("densenet", {"depth": 100}, 800_032),
    ("preresnet", {"depth": 56}, 613_556), ("preresnet", {"depth": 110}, 1_169_972), ("preresnet", {"depth": 164}, 1_726_388),
    ("wide_resnet", {"depth": 22, "widen_factor": 2}, 1_091_252),
    ("wide_resnet", {"depth": 28, "widen_factor": 10}, 36_536_884),
    ("alexnet", {}, 2_495_396),
]  # fmt: skip
SMALL = {
    "preresnet": [{"depth": 8}, {"depth": 47}],
    "wide_resnet": [{"depth": 10, "widen_factor": 1}, {"depth": 10, "widen_factor": 2, "dropRate": 0.3}],
    "densenet": [
        {"depth": 10, "growthRate": 4},
        {"depth": 7, "growthRate": 3, "compressionRate": 3, "dense_block": "basic", "dropRate": 0.2},
    ],
    "alexnet": [{}],
    "mnist_alexnet": [{}],
    "vgg11": [{}],
    "vgg13_bn": [{}],
}
SMALL_CASES = [(name, flags) for name, several in SMALL.items() for flags in several]


def build(name: str, shape=(3, 32, 32), n_classes=10, **flags) -> nn.Module:
    return build_network(NetworkConfig(net_name=name, **flags), shape, n_classes, stream(0, "init"))


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def size(name: str, flags: dict, n_classes: int, shape=(3, 32, 32)) -> int:
    """Without drawing the weights of the large ones."""
    config = NetworkConfig(net_name=name, **flags)
    with torch.device("meta"):
        network = with_options(config.spec.build, config)(shape, n_classes)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "flags", "n_weights"), PUBLISHED)
def test_networks_have_their_published_sizes(name, flags, n_weights):
    assert size(name, flags, 100) == n_weights


def test_the_sizes_with_ten_classes_are_the_published_ones():
    assert size("mnist_alexnet", {}, 10, (1, 28, 28)) == 3_868_170
    assert size("wide_resnet", {"depth": 28, "widen_factor": 10}, 10) == 36_479_194
    assert size("densenet", {"depth": 100}, 10) == 769_162


@pytest.mark.parametrize(
    ("name", "flags", "depth"),
    [("vgg11", {}, 11), ("vgg19_bn", {}, 19), ("preresnet", {"depth": 20}, 20), ("preresnet", {"depth": 56}, 56),
     ("densenet", WHOLE_DENSENET, 40), ("densenet", {"depth": 22}, 22), ("alexnet", {}, 6), ("mnist_alexnet", {}, 8)],
)  # fmt: skip
def test_depth_is_the_number_of_layers_on_the_main_path(name, flags, depth):
    """VGG has one Linear layer where the published network for larger images has three."""
    main_path = [one for one in layers_of(build(name, **flags)) if "shortcut" not in one]
    assert len(main_path) == depth - 2 * name.startswith("vgg")


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (1, 28, 28)])
@pytest.mark.parametrize(("name", "flags"), SMALL_CASES)
def test_images_of_every_size_give_logits_and_a_gradient_of_every_parameter(name, flags, shape):
    if min(shape[1:]) < NETWORKS[name].least_side:
        pytest.skip("smaller images than it takes")
    network = build(name, shape, 7, **flags)
    logits = network(torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize(("name", "flags"), SMALL_CASES)
def test_what_is_pruned_counted_and_measured(name, flags):
    """Convolutions and Linear layers but the classifier; multiply-accumulates by hand's rule; a piecewise linear network."""
    network = build(name, **flags)
    layers = layers_of(network)
    head = NETWORKS[name].head_name(network)
    assert list(prunable_weights(network, prune_last=False, head=head)) == [f"{one}.weight" for one in layers if one != head]
    seen = {}
    for one, layer in layers.items():
        layer.register_forward_hook(lambda module, inputs, output, one=one: seen.update({one: math.prod(output.shape[2:])}))
    uses = uses_of_weights(network, (3, 32, 32))
    assert uses == {f"{one}.weight": positions for one, positions in seen.items()}
    assert uses.keys() == {f"{one}.weight" for one in layers}
    with evaluation_mode(network):
        found = observe(network, torch.randn(2, 3, 32, 32))
    assert found.curved is None
    assert found.reached == {one for one, _ in network.named_parameters()}


# ------------------------------------------------------------------------------------------------------- what they compute


def drawn_norms(network: nn.Module) -> nn.Module:
    """In evaluation, with statistics and parameters that leave nothing as it is."""
    for i, norm in enumerate(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        generator = torch.Generator().manual_seed(i)
        for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2, generator=generator)
    return network.eval().double()


def normal(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("depth", [8, 47])
def test_preresnets_blocks_normalise_first_and_their_shortcuts_take_what_is_not_normalised(depth):
    network = drawn_norms(build("preresnet", depth=depth))
    x = F.conv2d(image(), network.conv.weight, padding=1)
    for i, block in enumerate(network.blocks):
        out, sizes = x, []
        for norm, layer in zip(block.norms, block.convs, strict=True):
            out = F.conv2d(normal(out, norm), layer.weight, stride=layer.stride, padding=layer.kernel_size[0] // 2)
            sizes.append(layer.kernel_size[0])
        assert sizes == ([3, 3] if depth == 8 else [1, 3, 1])
        first_of_stage = i % (len(network.blocks) // 3) == 0
        changes = first_of_stage and (i > 0 or depth == 47)
        stride = 2 if first_of_stage and i else 1
        x = out + (F.conv2d(x, block.shortcut.weight, stride=stride) if changes else x)
    logits = network.fc(normal(x, network.norm).mean((2, 3)))
    torch.testing.assert_close(network(image()), logits)


@pytest.mark.parametrize("widen_factor", [1, 2])
def test_wide_resnets_shortcuts_take_what_is_normalised(widen_factor):
    network = drawn_norms(build("wide_resnet", depth=10, widen_factor=widen_factor, dropRate=0.5))
    x = F.conv2d(image(), network.conv.weight, padding=1)
    for block, stride in zip(network.blocks, (1, 2, 2), strict=True):
        first = normal(x, block.norm1)
        out = F.conv2d(first, block.conv1.weight, stride=stride, padding=1)
        out = F.conv2d(normal(out, block.norm2), block.conv2.weight, padding=1)
        same = stride == 1 and widen_factor == 1
        x = out + (x if same else F.conv2d(first, block.shortcut.weight, stride=stride))
    torch.testing.assert_close(network(image()), network.fc(normal(x, network.norm).mean((2, 3))))


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_densenets_layers_read_all_layers_before_them_in_the_stage(block):
    network = drawn_norms(build("densenet", depth={"bottleneck": 16, "basic": 10}[block], growthRate=4, dense_block=block))
    x = F.conv2d(image(), network.conv.weight, padding=1)
    assert x.shape[1] == 8
    for i, layer in enumerate(network.layers):
        if i in (2, 5):
            x = F.conv2d(normal(x, layer.norm), layer.conv.weight)
            assert x.shape[1] == layer.conv.in_channels // 2
            x = (x[..., ::2, :] + x[..., 1::2, :]) / 2
            x = (x[..., ::2] + x[..., 1::2]) / 2
            continue
        out = x
        for norm, convolution in zip(layer.norms, layer.convs, strict=True):
            out = F.conv2d(normal(out, norm), convolution.weight, padding=convolution.kernel_size[0] // 2)
        assert out.shape[1] == 4
        x = torch.cat([x, out], 1)
    torch.testing.assert_close(network(image()), network.fc(normal(x, network.norm).mean((2, 3))))


def test_vgg_is_a_chain_of_convolutions_and_poolings():
    network = VGG(3, 5, (1, 2), (4, 6)).double()
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    x = image()
    for convolution, pools in zip(convs, (True, False, True), strict=True):
        x = F.relu(F.conv2d(x, convolution.weight, convolution.bias, padding=1))
        x = torch.stack([x[..., a::2, b::2] for a in (0, 1) for b in (0, 1)]).amax(0) if pools else x
    torch.testing.assert_close(network(image()), network.fc(x.mean((2, 3))))


# ------------------------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"net_name": "wide_resnet"}, r"--depth 32: must be 6n\+4 for wide_resnet; did you mean 34\?"),
        ({"net_name": "preresnet", "depth": 43}, r"6n\+2 for preresnet below 44; did you mean 38\?"),
        ({"net_name": "preresnet", "depth": 44}, r"9n\+2 for preresnet from 44; did you mean 47\?"),
        ({"net_name": "preresnet", "depth": 0}, r"did you mean 8\?"),
        ({"net_name": "densenet", "depth": 41}, r"6n\+4 for densenet of bottleneck blocks; did you mean 40\?"),
        (
            {"net_name": "densenet", "depth": 41, "dense_block": "basic"},
            r"3n\+4 for densenet of basic blocks; did you mean 40\?",
        ),
        ({"net_name": "densenet", "depth": 10, "growthRate": 1, "compressionRate": 9}, "--compressionRate 9: leaves none of 3"),
        ({"net_name": "densenet", "depth": 10, "dropRate": 1}, "--dropRate 1: must be"),
        ({"net_name": "densenet", "depth": 10, "growthRate": 0}, "--growthRate 0: must be"),
    ],
)
def test_flags_that_make_no_network_are_refused(flags, words):
    with pytest.raises(FlagError, match=words):
        NetworkConfig(**flags)


@pytest.mark.parametrize(
    ("name", "side", "least"), [("vgg16", 28, 32), ("alexnet", 28, 29), ("mnist_alexnet", 7, 8), ("densenet", 3, 4)]
)
def test_images_that_are_too_small_are_refused(name, side, least):
    flags = SMALL.get(name, [{}])[0]
    with pytest.raises(
        FlagError, match=f"--net_name {name} takes images of at least {least}x{least} pixels, not {side}x{side}"
    ):
        build(name, (1, side, side), **flags)
    assert build(name, (1, least, least), **flags)(torch.randn(2, 1, least, least)).shape == (2, 10)


def test_the_resnets_suggestions_are_networks():
    for name in ("resnet", "preresnet"):
        for depth in range(70):
            try:
                NetworkConfig(net_name=name, depth=depth)
            except FlagError as error:
                NetworkConfig(net_name=name, depth=int(str(error).rpartition("mean ")[2].rstrip("?")))


# --------------------------------------------------------------------------------------------------------- whole runs

QUICK = ("--figures", 0, "--n_epochs", 2, "--limit_train", 60, "--limit_test", 20, "-bs", 30, "-ms", 10, "-mt", 2, "--lr", 0.01)
RUNS = [
    ("preresnet", ("--depth", 8), ("--mode", "sparse-finetune"), "preresnet8"),
    ("wide_resnet", ("-dp", 10, "-wf", 1, "-dr", 0.2), ("--mode", "dynamic", "--mask_every", 1), "wide_resnet10x1"),
    ("densenet", ("-dp", 10, "-gr", 4, "-cr", 2, "-dr", 0.1), ("--mode", "at-init", "-pm", "snip", "--score_batches", 1),
     "densenet10x4"),
    ("mnist_alexnet", (), ("--mode", "gradual", "--mask_every", 1, "-ss", 0, "--save_epochs", "none"), "mnist_alexnet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "mode", "label"), RUNS, ids=[run[0] for run in RUNS])
def test_every_kind_trains_sparse(train, name, own, mode, label):
    folder = train("-nt", name, *own, *mode, "--prune_ratio", 0.5, *QUICK)
    assert folder.parts[-3] == label
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "fisher" and row["layer"] == "all"]
    assert rows
    assert all(math.isfinite(float(row["value"])) for row in rows)


@pytest.mark.parametrize("name", ["vgg11_bn", "alexnet"])
def test_large_networks_take_a_step(train, files, name):
    few = ("--limit_train", 10, "--limit_test", 10, "-bs", 10, "--n_epochs", 1, "-sf", 0, "-ss", 0, "--save_epochs", "none")
    data = ("-ln", "cifar10", "-rt", files, "--verify_data", 0, "--figures", 0)
    folder = train("-nt", name, "--mode", "at-init", "--prune_ratio", 0.9, *few, *data)
    weights = load_stored(folder / "model.pt")
    assert 1 - weights.mask.n_active / weights.mask.n_weights == pytest.approx(0.9, abs=1e-6)
    for one, keep in weights.mask.items():
        assert not weights.weights[one][~keep].any()

"""--init_method sparse_kaiming: variance 2 / active fan-in for every unit, wherever weights are drawn under a mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helper.mask import Mask
from helper.masks.fan_in import scale_to_active_fan_in
from helper.schema.config import unflatten
from helper.system.seeds import stream
from loader.main import load_dataset
from network.main import build_network
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_folder
from optim.model import load_stored, start
from optim.modes import MODES

FLAGS = {
    "limit_train": 100, "limit_test": 50, "hidden_dims": "12-8", "n_epochs": 1, "lr_milestones": "1", "prune_ratio": 0.7,
    "init_method": "sparse_kaiming", "figures": False, "save_fisher": False, "save_snr": False,
}  # fmt: skip


def config_of(**flags: object) -> RunConfig:
    return unflatten(RunConfig, FLAGS | flags)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(4, 5), (1, 1), (3, 2, 3, 3), (6, 1, 2, 1), (2, 7, 1, 1)]),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_unit_is_scaled_by_the_root_of_its_fan_in_over_its_active_fan_in(shape, density, seed):
    g = stream(seed, "weights")
    before, active = torch.randn(shape, generator=g, dtype=torch.float64), torch.rand(shape, generator=g) < density
    network = nn.Module()
    network.layer = nn.Module()
    network.layer.weight = nn.Parameter(before.clone())
    scale_to_active_fan_in(network, Mask({"layer.weight": active}))
    for row, old, keep in zip(network.layer.weight, before, active, strict=True):
        n = int(keep.sum())
        factor = (keep.numel() / n) ** 0.5 if n else 1.0
        torch.testing.assert_close(row.detach(), old * factor, rtol=1e-15, atol=0)
        if n:  # the active weights' variance about 0, were each drawn with variance 2 / fan-in
            assert factor**2 * 2 / keep.numel() == pytest.approx(2 / n, rel=1e-14)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(6, 4, 3, stride=2, bias=False), nn.ConvTranspose1d(6, 4, 2, groups=2, bias=False),
        nn.ConvTranspose2d(6, 6, 2, groups=6, bias=False),
    ],
    ids=["2d", "grouped", "depthwise"],
)  # fmt: skip
def test_units_of_a_transposed_convolution_are_its_output_channels(layer):
    """Whatever reaches one: the weights on which its outputs depend, found by their gradient."""
    layer, before = layer.double(), layer.weight.detach().double().clone()
    active = torch.rand(before.shape, generator=stream(0, "mask")) < 0.5
    scale_to_active_fan_in(layer, Mask({"weight": active}))
    factors = layer.weight.detach() / before
    outputs = layer(torch.ones(1, 6, *[3] * (before.ndim - 2), dtype=torch.float64))[0]
    for channel in outputs:
        (reached,) = torch.autograd.grad(channel.sum(), layer.weight, retain_graph=True)
        own = reached != 0
        n = int((own & active).sum())
        expected = (int(own.sum()) / n) ** 0.5 if n else 1.0
        torch.testing.assert_close(factors[own], torch.full_like(factors[own], expected), rtol=1e-12, atol=0)


def second_moments(weights: list[Tensor], x: Tensor) -> list[float]:
    """Half of E y^2 of every layer's outputs y before the ReLU: E x^2 of what the next one takes in."""
    found = []
    for weight in weights:
        x = x @ weight.t()
        found.append(x.square().mean().item() / 2)
        x = x.relu()
    return found


def test_signals_keep_their_size_through_a_sparse_network_whose_units_have_unlike_numbers_of_weights():
    width, depth, g = 1500, 8, stream(0, "deep")
    x = torch.randn(100, width, generator=g)
    x = x / x.square().mean(1, keepdim=True).sqrt()  # E x^2 = 1: the first layer's outputs then have E y^2 = 2
    network, masks = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(depth)]), {}
    for name, weight in network.named_parameters():
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu", generator=g)
        density = torch.linspace(0.05, 0.2, width)[torch.randperm(width, generator=g)]
        masks[name] = torch.rand(weight.shape, generator=g) < density[:, None]
    Mask(masks).apply_(network)
    plain = second_moments([weight.detach().clone() for weight in network.parameters()], x)
    scale_to_active_fan_in(network, Mask(masks))
    scaled = second_moments([weight.detach() for weight in network.parameters()], x)
    for layer, (small, kept) in enumerate(zip(plain, scaled, strict=True)):
        assert small == pytest.approx(0.125 ** (layer + 1), rel=0.5)  # an eighth of the weights, an eighth of the variance
        # a layer's gain has the standard deviation sqrt(5 / width), as the square of a ReLU of a normal has over its units
        assert abs(kept - 1) < 4 * (5 * (layer + 1) / width) ** 0.5


def plain_draw(config: RunConfig, name: str) -> nn.Module:
    dataset = load_dataset(config.data)
    return build_network(config.network, dataset.input_shape, dataset.n_classes, stream(config.random_state, name))


def expect_scaled(weights: dict[str, Tensor], mask: Mask, drawn: nn.Module) -> None:
    for name, weight in drawn.state_dict().items():
        expected = weight
        if name in mask:
            n = mask[name].sum(1, keepdim=True)
            expected = weight * mask[name] * (weight.shape[1] / n).sqrt().where(n > 0, 1.0)
        torch.testing.assert_close(weights[name], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("flags", "drawn_from"),
    [
        ({"mode": "at-init"}, "init"),
        ({"mode": "at-init", "prune_last": True}, "init"),
        ({"mode": "dynamic"}, "init"),
        ({"mode": "at-init", "mask_control": "reinit"}, "init-scratch"),
        ({"mode": "at-init", "mask_control": "shuffle"}, "init"),
    ],
)
def test_weights_drawn_under_a_mask_fit_it(flags, drawn_from):
    config = config_of(**flags)
    network, mask, _ = start(config, load_dataset(config.data), None)
    assert mask.sparsity == pytest.approx(0.7, abs=1e-3)
    expect_scaled(network.state_dict(), mask, plain_draw(config, drawn_from))


def test_scratch_weights_fit_the_mask_and_the_dense_parent_is_that_of_the_plain_draw(train, tmp_path):
    words = [word for name, value in FLAGS.items() for word in (f"--{name}", int(value) if value is False else value)]
    folder = RunFolder(train(*words, "--mode", "sparse-scratch"))
    config = config_of(mode="sparse-scratch", results_root=str(tmp_path))
    first = load_stored(folder.epoch_state(0))
    expect_scaled(first.weights, first.mask, plain_draw(config, "init-scratch"))
    (parent,) = tmp_path.glob("digits/*/dense/*")
    assert parent == run_folder(config_of(mode="dense", init_method="kaiming_fan_in", results_root=str(tmp_path)), None).path
    lottery = RunFolder(train(*words, "--mode", "lottery"))  # someone else's weights, by the same parent
    begun, rewound = load_stored(RunFolder(parent).epoch_state(0)), load_stored(lottery.epoch_state(0))
    for name, weight in begun.weights.items():
        assert torch.equal(rewound.weights[name], weight * rewound.mask.get(name, torch.tensor(True)))
    assert list(tmp_path.glob("digits/*/dense/*")) == [parent]


@pytest.mark.parametrize("mode", MODES)
def test_it_is_a_run_of_its_own_where_it_changes_the_weights_and_nowhere_else(mode):
    folders = [run_folder(config_of(mode=mode, init_method=name), None).path for name in ("sparse_kaiming", "kaiming_fan_in")]
    fits = mode in ("sparse-scratch", "at-init", "dynamic")
    assert (folders[0] != folders[1]) == fits
    assert MODES[mode].draws_under_mask() == fits


def test_without_a_mask_it_is_kaiming_by_fan_in():
    config = config_of(mode="dense", hidden_dims="300-200")
    assert config.network.init_method == "kaiming_fan_in"
    network = plain_draw(config, "init")
    assert network.layers[2].weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert network.layers[4].weight.std().item() == pytest.approx(0.01, rel=0.1)

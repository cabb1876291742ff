"""BatchNorm and convolutions that are fast to differentiate twice: PyTorch's own to the bit, and derivatives by differences."""

import copy

import pytest
import torch
from torch import Tensor, nn

from helper.metrics.fisher import fisher_trace
from helper.metrics.hessian import hessian_trace
from helper.metrics.jacobian import jacobian_norm
from helper.system.seeds import stream
from optim.conv_twice import convolve
from optim.norm_twice import Normalise
from optim.twice import differentiate_well
from tests.exact import batch, pruned

SHAPES = {"images": (4, 3, 2, 3), "vectors": (5, 3), "lines": (4, 3, 5)}


def example(kind: str) -> tuple[nn.Module, Tensor]:
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(SHAPES[kind])](3).double()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, generator=stream(0, name))
    return layer, torch.randn(SHAPES[kind], dtype=torch.float64, generator=stream(0, "x"))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_first_and_second_derivatives_are_those_of_finite_differences(kind, channels_last):
    layer, x = example(kind)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = (x.requires_grad_(), layer.weight, layer.bias)

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Normalise.apply(x, weight, bias, None, None, 0.1, 1e-5)

    assert torch.autograd.gradcheck(normalised, inputs)
    assert torch.autograd.gradgradcheck(normalised, inputs)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_statistics_and_gradients_are_pytorchs_to_the_bit(kind, dtype):
    layer, x = example(kind)
    usual, ours = layer.to(dtype), copy.deepcopy(layer).to(dtype)
    differentiate_well(ours)
    for step in range(3):
        if step == 2:
            usual.eval()
            ours.eval()
        found = []
        for each in (usual, ours):
            inputs = (x.to(dtype) + step).requires_grad_()
            y = each(inputs)
            gradients = torch.autograd.grad(y.square().sum() + y.sin().sum(), [inputs, *each.parameters()])
            found.append([y, *gradients, *each.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


CONVOLUTIONS = {
    "usual": (nn.Conv2d(2, 3, 3, padding=1, bias=False), (2, 2, 4, 5)),
    "strided": (nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2), groups=2), (2, 2, 6, 7)),
    "lines": (nn.Conv1d(2, 3, 3, stride=2), (2, 2, 8)),
    "volumes": (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 2)),
}


def convolution(name: str) -> tuple[nn.Module, Tensor]:
    layer, shape = CONVOLUTIONS[name]
    layer = copy.deepcopy(layer).double()
    for word, parameter in layer.named_parameters():
        nn.init.normal_(parameter, generator=stream(0, word))
    return layer, torch.randn(shape, dtype=torch.float64, generator=stream(0, "x"))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_derivatives_of_convolutions_are_those_of_finite_differences(name):
    layer, x = convolution(name)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def convolved(x: Tensor, *values: Tensor) -> Tensor:
        ours = copy.copy(layer)
        ours._parameters = {"bias": None} | dict(zip(names, values, strict=True))
        return convolve(ours, x)

    assert torch.autograd.gradcheck(convolved, (x.requires_grad_(), *parameters))
    assert torch.autograd.gradgradcheck(convolved, (x, *parameters))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("by_input", [False, True])
def test_convolutions_and_their_gradients_are_pytorchs_to_the_bit(name, by_input):
    layer, x = convolution(name)
    usual, ours = layer.float(), copy.deepcopy(layer).float()
    differentiate_well(ours)
    found = []
    for each in (usual, ours):
        inputs = x.float().requires_grad_(by_input)
        y = each(inputs).relu_()
        found.append([y, *torch.autograd.grad(y.square().sum(), [*[inputs] * by_input, *each.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


UNUSUAL = {
    "padding in words": nn.Conv1d(2, 3, 3, padding="same"),
    "padding by reflection": nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose1d(2, 3, 3),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_convolutions_work_as_ever(name):
    usual = UNUSUAL[name]
    ours = copy.deepcopy(usual)
    differentiate_well(ours)
    for x in (torch.randn(4, 2, 9, generator=stream(0, "x")), torch.randn(2, 9, generator=stream(0, "one"))):
        assert torch.equal(ours(x), usual(x))


def test_convolutions_under_autocast_work_as_ever():
    usual = nn.Conv1d(2, 3, 3)
    ours = copy.deepcopy(usual)
    differentiate_well(ours)
    x = torch.randn(4, 2, 9, generator=stream(0, "x"))
    with torch.autocast("cpu", torch.bfloat16):
        found = [each(x) for each in (ours, usual)]
    assert torch.equal(*found)
    assert found[0].dtype == torch.bfloat16
    found[0].sum().backward()
    found[1].sum().backward()
    assert torch.equal(ours.weight.grad, usual.weight.grad)


@pytest.mark.parametrize("quantity", [hessian_trace, fisher_trace, jacobian_norm])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_what_is_measured_of_a_network_is_measured_as_of_any_other(quantity, density):
    """Estimators are chosen by a network's operations: with unknown ones it would be taken for none of ReLU units."""
    usual, mask = pruned("conv", 3, True, density)
    ours = copy.deepcopy(usual)
    differentiate_well(ours)
    inputs, labels = batch()
    of = {hessian_trace: (inputs, labels, mask), fisher_trace: (inputs, mask), jacobian_norm: (inputs,)}[quantity]
    one, other = (quantity(network, *of, rtol=0.0, generator=stream(0, "draw")) for network in (ours, usual))
    assert (one.value, one.standard_error, one.estimator) == (other.value, other.standard_error, other.estimator)
    assert "not piecewise linear" not in one.estimator


class Doubled(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_layer_of_another_class_stays_what_it_is():
    layer, x = Doubled(3), torch.randn(6, 3, generator=stream(0, "x"))
    expected = copy.deepcopy(layer)(x)
    differentiate_well(layer)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_unusual_layers_and_copies_work_as_ever(options):
    torch.manual_seed(0)
    usual = nn.BatchNorm1d(3, **options)
    ours = copy.deepcopy(usual)
    differentiate_well(ours)
    ours = copy.deepcopy(ours)
    x = torch.randn(6, 3, generator=stream(0, "x"))
    assert torch.equal(ours(x), usual(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), usual.buffers(), strict=True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(x[:1])

"""BatchNorm that is differentiated twice in few passes: PyTorch's own to the bit, and its derivatives by finite differences."""

import copy

import pytest
import torch
from torch import Tensor, nn

from helper.system.seeds import stream
from optim.norm_twice import Normalise, differentiate_well

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

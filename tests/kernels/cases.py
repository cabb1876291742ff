"""Cases for driver.cpp: what the kernels are given, and what dense layers in float64 make of it."""

import ctypes
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.sparse.functional import PARTS, to_lanes
from helper.sparse.plan import LayerPlan, Plan, PlanStruct, layer_plan

GATHER, WEIGHT_GRADIENT, BOTH_GRADIENTS, NORMALISE, NORMALISE_BACKWARD = range(5)
GIVEN, RESULT, ADDED_TO, SCRATCH, ABSENT = range(5)
Array = tuple[int, Tensor | None]


def number(value: int) -> bytes:
    return np.int64(value).tobytes()


def array(role: int, values: Tensor | None) -> bytes:
    if values is None:
        return number(ABSENT) + number(0)
    content = values.detach().contiguous().numpy().tobytes()
    return number(role) + number(len(content)) + (b"" if role == SCRATCH else content)


def plan_content(plan: Plan | None) -> bytes:
    if plan is None:
        return number(0)
    arrays = [getattr(plan, name).tobytes() for name, kind in PlanStruct._fields_ if kind is ctypes.c_void_p]
    content = [number(GIVEN) + number(len(one)) + one for one in arrays]
    return b"".join([number(len(arrays)), bytes(plan.struct), *content])


def case(operation: int, sizes: list[int], arrays: list[Array], plan: Plan | None = None, back: Plan | None = None) -> bytes:
    content = [number(operation), number(len(sizes)), *map(number, sizes), plan_content(plan), plan_content(back)]
    return b"".join([*content, number(len(arrays)), *(array(*one) for one in arrays)])


def layer_cases(layer: nn.Linear | nn.Conv2d, image: tuple[int, ...], n: int, lanes: int, density: float) -> list[bytes]:
    """Of outputs, of the inputs' gradient, of the weights' and of both at once, for a random mask and random activations.

    Args:
        image: (height, width) of inputs; () for a linear layer. n: examples.
    """
    mask = torch.rand(layer.weight.shape) < density
    with torch.no_grad():
        layer.weight.mul_(mask)
    plan = layer_plan(layer, mask, image or (1, 1))
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    x = torch.randn(n, channels, *image)
    exact = layer.double()
    x64 = x.double().requires_grad_()
    y64 = exact(x64)
    g = torch.randn(y64.shape)
    dx, dw = torch.autograd.grad(y64, [x64, layer.weight], g.double())
    layer.float()
    x, g, y, dx = (to_lanes(v.detach().float(), lanes) for v in (x, g, y64, dx))
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    return [
        gathered(plan.forward, plan, weight, bias, x, y),
        gathered(plan.backward, plan, weight, None, g, dx),
        weighed(plan, x, g, (dw * mask).float()),
        both(plan, weight, x, g, (dw * mask).float(), dx),
    ]


def gathered(plan: Plan, layer: LayerPlan, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> bytes:
    scratch = torch.empty(plan.n_active), torch.empty(plan.n_entries)
    arrays = [(GIVEN, weight), (GIVEN, layer.active), *((SCRATCH, one) for one in scratch), (GIVEN, x), (GIVEN, bias)]
    return case(GATHER, [len(x), x.shape[-1]], [*arrays, (GIVEN, None), (RESULT, y)], plan)


def division(plan: LayerPlan, x: Tensor) -> tuple[int, int]:
    """(parts, parts of the rows) of a weight gradient's work."""
    parts = max(1, min(PARTS, len(x) * (len(plan.forward.bands) - 1)))
    return parts, 1 if parts == PARTS else max(1, min(3, plan.forward.channels))


def weighed(plan: LayerPlan, x: Tensor, g: Tensor, dw: Tensor) -> bytes:
    parts, row_parts = division(plan, x)
    arrays = [(GIVEN, x), (GIVEN, g), (GIVEN, plan.active), (SCRATCH, torch.empty(parts, plan.forward.n_active))]
    sizes = [len(x), x.shape[-1], parts, row_parts]
    return case(WEIGHT_GRADIENT, sizes, [*arrays, (ADDED_TO, dw)], plan.forward)


def both(plan: LayerPlan, weight: Tensor, x: Tensor, g: Tensor, dw: Tensor, dx: Tensor) -> bytes:
    """The inputs' gradient with a further one added to it."""
    (parts, row_parts), back, more = division(plan, x), plan.backward, torch.randn(dx.shape)
    scratch = torch.empty(parts, plan.forward.n_active), torch.empty(back.n_active), torch.empty(back.n_entries)
    arrays = [
        *((GIVEN, x), (GIVEN, g), (GIVEN, plan.active), (SCRATCH, scratch[0]), (ADDED_TO, dw)),
        *((GIVEN, weight), (SCRATCH, scratch[1]), (SCRATCH, scratch[2]), (GIVEN, more), (RESULT, dx + more)),
    ]
    return case(BOTH_GRADIENTS, [len(x), x.shape[-1], parts, row_parts], arrays, plan.forward, back)


def norm_cases(blocks: int, channels: int, size: int, *, given: bool, relu: bool, residual: bool) -> list[bytes]:
    """Of BatchNorm with what follows it, and of its gradients."""
    x, more, g = torch.randn(3, blocks, channels, size)
    weight, bias, mean, variance = torch.rand(4, channels) + 0.5
    if not given:
        mean, variance = x.mean((0, 2)), x.var((0, 2), unbiased=False)
    inputs = [v.double().requires_grad_() for v in (x, more, weight, bias)]
    x64, more64, weight64, bias64 = inputs
    statistics = (mean.double(), variance.double()) if given else (None, None)
    y64 = F.batch_norm(x64, *statistics, weight64, bias64, training=not given, eps=1e-5)
    y64 = y64 + more64 if residual else y64 + 0 * more64
    y64 = y64.relu() if relu else y64
    dx, dmore, dweight, dbias = (v.float() for v in torch.autograd.grad(y64, inputs, g.double()))
    y, more = y64.detach().float(), more if residual else None
    sizes, role = [blocks, channels, size, int(given), int(relu)], GIVEN if given else RESULT
    through = relu and residual
    forward = [(GIVEN, x), (GIVEN, more), (RESULT, y), (GIVEN, weight), (GIVEN, bias), (role, mean), (role, variance)]
    forward += [(GIVEN, None), (GIVEN, None)] if given else [(ADDED_TO, 0.1 * v) for v in (mean, x.var((0, 2)))]
    backward = [
        *((GIVEN, v) for v in (x, y if through else None, g)),
        *((RESULT, v) for v in (dx, dmore if through else None, dweight, dbias)),
        *((GIVEN, v) for v in (weight, bias, mean, variance)),
    ]
    return [case(NORMALISE, sizes, forward), case(NORMALISE_BACKWARD, sizes, backward)]


def all_cases() -> list[bytes]:
    """From a seed, of all kinds of shapes: ends of batches, strides, groups, empty and whole masks, tiny images."""
    torch.manual_seed(0)
    cases = []
    for n, lanes in [(1, 1), (2, 1), (3, 3), (7, 7), (9, 3), (17, 17), (40, 20), (50, 50), (66, 33)]:
        for density in (0.0, 0.1, 1.0):
            cases += layer_cases(nn.Linear(37, 21, bias=n % 2 == 0), (), n, lanes, density)
        cases += layer_cases(nn.Conv2d(3, 5, 3, padding=1), (5, 6), n, lanes, 0.3)
        cases += layer_cases(nn.Conv2d(4, 6, (5, 3), (2, 3), (4, 1), groups=2), (7, 9), n, lanes, 0.4)
        cases += layer_cases(nn.Conv2d(2, 9, 1, stride=2, bias=False), (3, 4), n, lanes, 0.5)
        cases += layer_cases(nn.Conv2d(2, 3, 3, padding=2, dilation=2), (1, 2), n, lanes, 0.9)
    for number_of, size in enumerate((1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 2047, 2049, 4100)):
        for options in range(8):
            blocks = 6 - number_of % 5  # few values of a channel would lose all digits of its gradient
            given, relu, residual = (bool(options >> bit & 1) for bit in range(3))
            cases += norm_cases(blocks, 3, size, given=given, relu=relu, residual=residual)
    return cases


def counted_cases() -> dict[str, tuple[bytes, int]]:
    """{function: (its case, products with nonzero weights or elements that are normalised)}, from a seed."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 32, 3, padding=1)
    forward, backward, weights, gradients = layer_cases(layer, (8, 8), 64, 64, 0.1)
    hits = F.conv2d(torch.ones(1, 16, 8, 8), (layer.weight != 0).float(), padding=1)
    norm, norm_backward = norm_cases(1, 32, 64 * 64, given=False, relu=True, residual=True)
    products, elements = 64 * int(hits.sum()), 32 * 64 * 64
    return {
        "gather forward": (forward, products),
        "gather backward": (backward, products),
        "weight_gradient": (weights, products),
        "weight_gradient and inputs": (gradients, 2 * products),
        "normalise": (norm, elements),
        "normalise_backward": (norm_backward, elements),
    }


def write(path: Path, cases: Iterable[bytes]) -> Path:
    """A file of cases."""
    content = list(cases)
    path.write_bytes(number(len(content)) + b"".join(content))
    return path

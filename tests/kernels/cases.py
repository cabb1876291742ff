"""Cases for driver.cpp: what the kernels are given, and what dense layers in float64 make of it."""

import ctypes
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.sparse.functional import to_lanes
from helper.sparse.plan import PARTS, LayerPlan, Plan, PlanStruct, layer_plan

GATHER, WEIGHT_GRADIENT, BOTH_GRADIENTS, NORMALISE, NORMALISE_BACKWARD, NORMED_GATHER, NORMED_GRADIENTS, SUM = range(8)
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


EPS = 1e-5
Values = dict[str, Tensor]


def statistics_of(x: Tensor) -> Tensor:
    """(3, channels) of (blocks, channels, ...): mean, variance and 1 / deviation."""
    dims = [0, *range(2, x.dim())]
    variance = x.var(dims, unbiased=False)
    return torch.stack([x.mean(dims), variance, (variance + EPS).rsqrt()])


def factors_of(g: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> Tensor:
    """(3, channels): factor, even and along of norm.py, where `g` is the gradient of BatchNorm's outputs."""
    dims, (mean, _, inverse) = [0, *range(2, x.dim())], statistics
    distances = x - mean.view(-1, *[1] * (x.dim() - 2))
    return torch.stack([weight * inverse, g.mean(dims), (g * distances).mean(dims) * inverse**2])


def normed_layer(layer: nn.Conv2d, image: tuple[int, int], n: int, *, relu: bool, residual: bool) -> Values:
    """Of BatchNorm of a batch, the layer, and BatchNorm of what it gives, in float64: values and gradients."""
    channels, more = layer.in_channels, torch.randn(n, layer.in_channels, *image).double()
    x, with_it = torch.randn(2, n, channels, *image, dtype=torch.float64)
    weight, bias, behind = (
        torch.rand(channels).double() + 0.5,
        torch.randn(channels).double(),
        torch.rand(layer.out_channels) + 0.5,
    )
    weight.requires_grad_()
    bias.requires_grad_()
    below = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS) + (with_it if residual else 0)
    below.retain_grad()
    z = below.relu() if relu else below * 1
    y = layer.double()(z)
    out = F.batch_norm(y, None, None, behind.double(), None, training=True, eps=EPS)
    g = torch.randn(out.shape).double()
    of_weight, of_bias, of_below, of_layer = torch.autograd.grad(
        (out * g).sum() + (z * more).sum(), [weight, bias, below, layer.weight]
    )
    layer.float()
    statistics, y_statistics = statistics_of(x), statistics_of(y)
    found = {
        "x": x, "residual": with_it, "z": z, "y": y, "g": g, "more": more, "below": of_below, "layer": of_layer,
        "statistics": statistics, "y statistics": y_statistics, "y variance": y.var((0, 2, 3)), "weight": weight, "bias": bias,
        "of weight": of_weight, "of bias": of_bias, "factors": factors_of(of_below, x, weight, statistics),
        "y factors": factors_of(g, y, behind.double(), y_statistics),
    }  # fmt: skip
    return {name: value.detach().float() for name, value in found.items()}


def normed_cases(
    layer: nn.Conv2d, image: tuple[int, int], n: int, lanes: int, *, relu: bool, residual: bool, narrow: bool
) -> list[bytes]:
    """A layer between BatchNorms, both ways, with its inputs kept in memory where there is a residual.

    Args:
        narrow: whether windows have room for the rows of one band alone.
    """
    mask = torch.rand(layer.weight.shape) < 0.4
    with torch.no_grad():
        layer.weight.mul_(mask)
    plan, v = layer_plan(layer, mask, image), normed_layer(layer, image, n, relu=relu, residual=residual)
    v |= {name: to_lanes(value, lanes) for name, value in v.items() if value.dim() == 4 and name != "layer"}
    weight, blocks, keep = layer.weight.detach(), n // lanes, residual
    forward, back = plan.forward, plan.backward
    rooms = [*plan.widest, forward.widest] if narrow else [image[0] * image[1]] * 2
    windows = window(forward, v["x"], rooms[-1] if narrow else rooms[0])
    gather = [
        *((GIVEN, weight), (GIVEN, plan.active), (SCRATCH, torch.empty(forward.n_active))),
        *((SCRATCH, torch.empty(forward.n_entries)), (GIVEN, v["x"]), (GIVEN, v["statistics"])),
        *((GIVEN, v["weight"]), (GIVEN, v["bias"]), (GIVEN, v["residual"] if residual else None)),
        *((RESULT, v["z"] if keep else None), *windows[1], (RESULT, v["y"]), (RESULT, v["y statistics"])),
        *((ADDED_TO, 0.1 * v["y statistics"][0]), (ADDED_TO, 0.1 * v["y variance"])),
        (SCRATCH, torch.empty(blocks * forward.struct.n_bands * forward.channels, 3).double()),
    ]
    parts, inputs, outputs = division(plan, v["x"])[0], window(forward, v["x"], rooms[0]), window(back, v["g"], rooms[1])
    sums = torch.empty(blocks * back.struct.n_bands * back.channels, 2).double()
    gradients = [
        *((GIVEN, v["x"]), (GIVEN, v["g"]), (GIVEN, plan.active), (SCRATCH, torch.empty(parts, forward.n_active))),
        *((ADDED_TO, v["layer"] * mask), (GIVEN, weight), (SCRATCH, torch.empty(back.n_active))),
        *((SCRATCH, torch.empty(back.n_entries)), (GIVEN, v["more"]), (RESULT, v["below"]), (GIVEN, v["statistics"])),
        *((GIVEN, v["weight"]), (GIVEN, v["bias"]), (GIVEN, v["z"] if keep else None), (SCRATCH, sums)),
        *((RESULT, v["factors"]), (RESULT, v["of weight"]), (RESULT, v["of bias"]), (GIVEN, v["y factors"]), (GIVEN, v["y"])),
        *((GIVEN, v["y statistics"]), *inputs[1], *outputs[1]),
    ]
    sizes = [blocks, lanes, int(relu)]
    return [
        case(NORMED_GATHER, [*sizes, *windows[0]], gather, forward),
        case(NORMED_GRADIENTS, [*sizes, parts, *inputs[0], *outputs[0]], gradients, forward, back),
    ]


def window(plan: Plan, x: Tensor, pixels: int) -> tuple[list[int], list[Array]]:
    """([pixels of a channel that fit, pixels from channel to channel], [room for them, offsets]) of a window into x."""
    plane = plan.struct.source_plane
    room, stride = min(pixels, plane), min(pixels, plane) + 1
    plan.offsets_in(stride)
    offsets = torch.from_numpy(plan.in_windows[stride][0])
    return [room, stride], [(SCRATCH, x.new_empty(x.shape[1], stride, x.shape[-1])), (GIVEN, offsets)]


def norm_cases(blocks: int, channels: int, size: int, *, given: bool, relu: bool, residual: bool) -> list[bytes]:
    """Of BatchNorm with what follows it, and of its gradients."""
    x, more, g = torch.randn(3, blocks, channels, size)
    weight, bias, mean, variance = torch.rand(4, channels) + 0.5
    if not given:
        mean, variance = x.mean((0, 2)), x.var((0, 2), unbiased=False)
    statistics = torch.stack([mean, variance, (variance + EPS).rsqrt()])
    inputs = [v.double().requires_grad_() for v in (x, more, weight, bias)]
    x64, more64, weight64, bias64 = inputs
    running = (mean.double(), variance.double()) if given else (None, None)
    y64 = F.batch_norm(x64, *running, weight64, bias64, training=not given, eps=EPS)
    y64 = y64 + more64 if residual else y64 + 0 * more64
    y64.retain_grad()
    out = y64.relu() if relu else y64 * 1
    dx, dmore, dweight, dbias, below = (v.float() for v in torch.autograd.grad(out, [*inputs, y64], g.double()))
    factors = factors_of(below.double(), x.double(), weight.double(), statistics.double()).float()
    y, more = out.detach().float(), more if residual else None
    sizes, through = [blocks, channels, size, int(given), int(relu)], relu and residual
    running = [(GIVEN, mean), (GIVEN, variance)] if given else [(ADDED_TO, 0.1 * v) for v in (mean, x.var((0, 2)))]
    forward = [(GIVEN, x), (GIVEN, more), (RESULT, y), (GIVEN, weight), (GIVEN, bias), (RESULT, statistics), *running]
    backward = [
        *((GIVEN, v) for v in (x, y if through else None, g)),
        *((RESULT, v) for v in (dx, dmore if through else None, dweight, dbias, factors)),
        *((GIVEN, v) for v in (weight, bias, statistics)),
        (SCRATCH, torch.empty(channels, 2).double()),
    ]
    left = [(RESULT, None), (RESULT, below)]  # the gradient of x is left to whoever reads what is below the ReLU
    return [
        case(NORMALISE, sizes, forward),
        case(NORMALISE_BACKWARD, sizes, backward),
        case(NORMALISE_BACKWARD, sizes, [*backward[:3], *left, *backward[5:]]),
    ]


def sum_cases(size: int) -> list[bytes]:
    """Of two numbers each, of one, and of none."""
    a, b = torch.randn(2, size)
    sums = ((a, b, a + b), (a, None, a), (None, b, b), (None, None, torch.zeros(size)))
    return [case(SUM, [size, 0], [(GIVEN, one), (GIVEN, other), (RESULT, y)]) for one, other, y in sums]


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
        for options in range(8):
            relu, residual, narrow = (bool(options >> bit & 1) for bit in range(3))
            stride, padding, image = ((1, 1), (1, 1), (6, 5)) if options % 3 else ((2, 1), (0, 3), (9, 40))
            layer = nn.Conv2d(3, 5, 3, stride, padding, bias=False)
            cases += normed_cases(layer, image, n, lanes, relu=relu, residual=residual, narrow=narrow) if n > 2 else []
    for number_of, size in enumerate((1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 2047, 2049, 4100)):
        for options in range(8):
            blocks = 6 - number_of % 5  # few values of a channel would lose all digits of its gradient
            given, relu, residual = (bool(options >> bit & 1) for bit in range(3))
            cases += norm_cases(blocks, 3, size, given=given, relu=relu, residual=residual)
        cases += sum_cases(size)
    return cases


def counted_cases() -> dict[str, tuple[bytes, int]]:
    """{function: (its case, products with nonzero weights or elements that are normalised)}, from a seed."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 32, 3, padding=1)
    forward, backward, weights, gradients = layer_cases(layer, (8, 8), 64, 64, 0.1)
    hits = F.conv2d(torch.ones(1, 16, 8, 8), (layer.weight != 0).float(), padding=1)
    torch.manual_seed(1)
    between = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    normed, normed_gradients = normed_cases(between, (16, 16), 64, 32, relu=True, residual=False, narrow=True)
    inner = 64 * int(F.conv2d(torch.ones(1, 16, 16, 16), (between.weight != 0).float(), padding=1).sum())
    norm, norm_backward, _ = norm_cases(1, 32, 64 * 64, given=False, relu=True, residual=True)
    products, elements = 64 * int(hits.sum()), 32 * 64 * 64
    return {
        "gather forward": (forward, products),
        "gather backward": (backward, products),
        "weight_gradient": (weights, products),
        "weight_gradient and inputs": (gradients, 2 * products),
        "gather between norms": (normed, inner),
        "weight_gradient between norms": (normed_gradients, 2 * inner),
        "normalise": (norm, elements),
        "normalise_backward": (norm_backward, elements),
    }


def write(path: Path, cases: Iterable[bytes]) -> Path:
    """A file of cases."""
    content = list(cases)
    path.write_bytes(number(len(content)) + b"".join(content))
    return path

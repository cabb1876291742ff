"""Plans name for every target what it sums, as a layer's definition has it, in one order with any number of threads."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helper.sparse.plan import LayerPlan, Plan, layer_plan
from tests.test_sparse import DENSITIES, convolutions, seeded

pytestmark = pytest.mark.compiler
Sums = dict[int, list[tuple[int, int]]]  # {target: [(source, place of the weight in memory), ...]}


def said(plan: Plan, active: Tensor) -> Sums:
    """By a plan."""
    found, plane = {}, plan.image[0] * plan.image[1]
    starts = plan.starts.reshape(-1, plan.channels + 1)
    for run, row in itertools.product(plan.runs, range(plan.channels)):
        begin, end = starts[run["kind"]][row : row + 2]
        offsets, places = plan.offsets[begin:end], active[plan.which[begin:end]].tolist()
        for pixel in range(run["pixels"]):
            sources = (int(run["source"]) + pixel + offsets).tolist()
            found[row * plane + int(run["target"]) + pixel] = list(zip(sources, places, strict=True))
    return found


def defined(layer: nn.Linear | nn.Conv2d, mask: Tensor, image: tuple[int, int]) -> tuple[Sums, Sums]:
    """By the layer's definition: forward and backward, in the order of taps and then of channels."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        layer, weight, mask = (
            nn.Conv2d(layer.in_features, layer.out_features, 1),
            weight[..., None, None],
            mask[..., None, None],
        )
    (height, width), (dh, dw), (sh, sw) = image, layer.dilation, layer.stride
    before = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    ph, pw = {"same": before, "valid": (0, 0)}.get(layer.padding, layer.padding)
    out = nn.functional.conv2d(torch.zeros(1, layer.in_channels, *image), layer.weight, None, layer.stride, layer.padding,
                               layer.dilation, layer.groups).shape[2:]  # fmt: skip
    per_group, rows = layer.out_channels // layer.groups, weight.shape[1]
    forward = {t: [] for t in range(layer.out_channels * out[0] * out[1])}
    backward = {s: [] for s in range(layer.in_channels * height * width)}
    taps = list(itertools.product(*map(range, weight.shape[2:])))
    for (r, s), k, c in itertools.product(taps, range(layer.out_channels), range(rows)):
        if not mask[k, c, r, s]:
            continue
        place = int(np.dot((k, c, r, s), weight.stride()))
        for p, q in itertools.product(*map(range, out)):
            h, w = p * sh + r * dh - ph, q * sw + s * dw - pw
            if 0 <= h < height and 0 <= w < width:
                source, target = ((k // per_group * rows + c) * height + h) * width + w, (k * out[0] + p) * out[1] + q
                forward[target].append((source, place))
                backward[source].append((target, place))
    return forward, backward


def check(layer: nn.Linear | nn.Conv2d, mask: Tensor, image: tuple[int, int]) -> LayerPlan:
    plan, (forward, backward) = layer_plan(layer, mask, image), defined(layer, mask, image)
    assert len(plan.active) == int(mask.sum())
    assert said(plan.forward, plan.active) == forward
    assert said(plan.backward, plan.active) == backward
    return plan


@settings(max_examples=80, deadline=None, derandomize=True)
@given(convolutions(), DENSITIES, st.integers(0, 99))
def test_a_convolutions_plan_is_its_definition(drawn, density, seed):
    layer, image = drawn
    check(layer, torch.rand(layer.weight.shape, generator=seeded(seed)) < density, image)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 30), DENSITIES, st.booleans())
def test_a_linear_layers_plan_is_its_definition(n_in, n_out, density, transposed):
    """Also where weight and mask lie transposed in memory, and where a row has more than 64 weights, or no multiple of 8."""
    layer, mask = nn.Linear(n_in, n_out), torch.rand(n_out, n_in, generator=seeded(n_in)) < density
    if transposed:
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
        mask = mask.t().contiguous().t()
    check(layer, mask, (1, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_any_number_of_threads_makes_the_same_plan(n):
    layer = nn.Conv2d(6, 5, 3, padding=1)
    before = torch.get_num_threads()
    torch.set_num_threads(n)  # also more than there are targets
    try:
        check(layer, torch.rand(layer.weight.shape, generator=seeded(0)) < 0.4, (4, 5))
    finally:
        torch.set_num_threads(before)


def test_rows_that_nothing_reads_and_that_read_nothing_are_empty():
    layer, mask = nn.Linear(70, 5), torch.zeros(5, 70, dtype=torch.bool)
    mask[3, 65] = True
    plan = check(layer, mask, (1, 1))
    assert plan.active.tolist() == [3 * 70 + 65]
    assert np.diff(plan.backward.starts.ravel()).nonzero()[0].tolist() == [65]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions())
def test_bands_read_within_their_reach_and_find_the_same_pixels_through_windows(drawn):
    layer, image = drawn
    layer_plans = layer_plan(layer, torch.ones(layer.weight.shape, dtype=torch.bool), image)
    for plan in (layer_plans.forward, layer_plans.backward):
        plane = plan.struct.source_plane
        plan.offsets_in(plane + 3)
        (moved, _), starts = plan.in_windows[plane + 3], plan.starts.reshape(-1, plan.channels + 1)
        assert (np.diff(plan.reach, axis=0) >= 0).all()
        assert np.diff(plan.reach).max() <= plan.widest
        for band, run in ((b, r) for b in range(len(plan.reach)) for r in plan.runs[plan.bands[b] : plan.bands[b + 1]]):
            entries = slice(starts[run["kind"], 0], starts[run["kind"], -1])
            for pixel in range(run["source"], run["source"] + run["pixels"]):
                channels, read = np.divmod(pixel + plan.offsets[entries], plane)
                assert ((plan.reach[band, 0] <= read) & (read < plan.reach[band, 1])).all()
                assert np.array_equal(pixel + moved[entries], channels * (plane + 3) + read)

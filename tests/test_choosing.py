"""Which weights are chosen, and how many of each layer, against brute force, published counts and hypothesis."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helper.mask import Mask
from helper.masks.allocation import ALLOCATIONS, sizes_of
from helper.masks.choosing import keep, swap
from helper.masks.control import shuffled
from helper.pruner import prune
from helper.system.seeds import stream
from network.main import NetworkConfig, build_network

SPREAD = {name: allocation for name, allocation in ALLOCATIONS.items() if allocation is not None}
SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6)


def resnet20() -> dict[str, tuple[int, ...]]:
    """ResNet-20 of width 1 for CIFAR-10: weights of its convolutions and its classifier."""
    channels = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
    return {f"conv{i}": (out, into, 3, 3) for i, (into, out) in enumerate(channels)} | {"fc": (10, 64)}


def scores_of(shapes, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = stream(seed, "scores")
    found = {str(i): torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    if kind == "ties":
        return {name: score.round() for name, score in found.items()}
    return found if kind == "real" else {name: torch.zeros_like(score) for name, score in found.items()}


@given(SHAPES, st.sampled_from(["real", "ties", "zero"]), st.floats(0, 1), st.integers(0, 3))
def test_as_many_weights_stay_as_are_asked_for_and_the_best(shapes, kind, share, seed):
    scores = scores_of(shapes, kind, seed)
    flat = torch.cat([score.flatten() for score in scores.values()])
    count = round(share * len(flat))
    mask = keep(scores, count)
    assert mask.n_active == count
    active = torch.cat([mask[name].flatten() for name in scores])
    if 0 < count < len(flat):
        assert flat[active].min() >= flat[~active].max()


@given(SHAPES, st.sampled_from(["real", "ties", "zero"]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_within_a_mask_only_its_weights_stay(shapes, kind, first, second, seed):
    scores = scores_of(shapes, kind, seed)
    outer = keep(scores_of(shapes, "real", seed + 1), round(first * sum(s.numel() for s in scores.values())))
    count = round(second * outer.n_active)
    inner = keep(scores, count, outer)
    assert inner.n_active == count
    assert all((outer[name] | ~inner[name]).all() for name in scores)
    by_layer = {name: round(second * int(active.sum())) for name, active in outer.items()}
    inner = keep(scores, by_layer, outer)
    assert {name: int(active.sum()) for name, active in inner.items()} == by_layer
    assert all((outer[name] | ~inner[name]).all() for name in scores)


@given(SHAPES, st.sampled_from(["real", "ties", "zero"]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
def test_a_swap_drops_the_lowest_and_grows_the_highest_of_all_that_are_not_kept(shapes, kind, density, share, seed):
    drop, grow = scores_of(shapes, kind, seed), scores_of(shapes, kind, seed + 9)
    mask = keep(scores_of(shapes, "real", seed + 1), {n: round(density * s.numel()) for n, s in drop.items()})
    n = {name: int(share * int(active.sum())) for name, active in mask.items()}
    after, grown = swap(mask, n, drop, grow)
    for name, active in mask.items():
        assert int(after[name].sum()) == int(active.sum())
        assert int(grown[name].sum()) == n[name]
        stayed = after[name] & ~grown[name]
        assert (active | ~stayed).all()
        gone, rest = active & ~stayed, ~stayed & ~grown[name]
        if gone.any() and stayed.any():
            assert drop[name][stayed].min() >= drop[name][gone].max()
        if rest.any() and grown[name].any():
            assert grow[name][grown[name]].min() >= grow[name][rest].max()


def test_a_weight_that_was_just_dropped_may_come_back():
    mask = Mask({"a": torch.tensor([True, True, False])})
    drop, grow = {"a": torch.tensor([1.0, 2.0, 0.0])}, {"a": torch.tensor([9.0, 0.0, 5.0])}
    after, grown = swap(mask, {"a": 1}, drop, grow)
    assert after["a"].tolist() == [True, True, False]
    assert grown["a"].tolist() == [True, False, False]


def test_scores_that_are_no_numbers_are_refused():
    scores = {"a": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="scores of a are NaN"):
        keep(scores, 1)
    with pytest.raises(ValueError, match="scores of a are NaN"):
        swap(Mask({"a": torch.ones(2)}), {"a": 1}, {"a": torch.zeros(2)}, scores)


# ------------------------------------------------------------------------------------------------- allocations


@given(SHAPES, st.floats(0, 1), st.sampled_from(sorted(SPREAD)))
def test_an_allocation_adds_up_and_overfills_no_layer(shapes, density, name):
    shapes = {str(i): shape for i, shape in enumerate(shapes)}
    sizes = sizes_of(shapes)
    total = round(density * sum(sizes.values()))
    head = list(shapes)[-1]
    if name == "uniform_plus" and total < sizes["0"] + (len(shapes) > 1) * math.ceil(0.2 * sizes[head]):
        with pytest.raises(ValueError, match="but only"):
            SPREAD[name](shapes, total, head=head)
        return
    counts = SPREAD[name](shapes, total, head=head)
    assert sum(counts.values()) == total
    assert all(0 <= counts[layer] <= sizes[layer] for layer in shapes)


@pytest.mark.parametrize(
    ("density", "n_dense", "least", "first"), [(0.2, 2, 0.1362, 1.0), (0.1, 2, 0.0667, 1.0), (0.05, 1, None, 0.517)]
)
def test_erk_on_resnet20_is_as_published(density, n_dense, least, first):
    """Counts of Evci et al. 2020 with the overfull layers dense and eps solved again; clamping alone misses the density."""
    shapes = resnet20()
    sizes = sizes_of(shapes)
    counts = ALLOCATIONS["erk"](shapes, round(density * sum(sizes.values())))
    densities = {name: counts[name] / sizes[name] for name in shapes}
    assert sum(d == 1 for d in densities.values()) == n_dense
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert densities["conv0"] == pytest.approx(first, abs=2e-3)
    if least is not None:
        assert min(densities.values()) == pytest.approx(least, abs=1e-4)


def test_erk_is_proportional_to_sum_over_product_where_no_layer_is_full():
    shapes = {"a": (100, 200), "b": (200, 300), "c": (300, 50)}
    counts = ALLOCATIONS["erk"](shapes, 5000)
    eps = [counts[name] / sum(shape) for name, shape in shapes.items()]
    assert max(eps) - min(eps) < 2 / 250


def test_uniform_balanced_and_uniform_plus_by_hand():
    shapes = {"first": (2, 5), "middle": (10, 30), "last": (10, 10)}  # 10, 300 and 100 weights
    assert ALLOCATIONS["uniform"](shapes, 41) == {"first": 1, "middle": 30, "last": 10}
    assert ALLOCATIONS["balanced"](shapes, 41) == {"first": 10, "middle": 16, "last": 15}
    assert ALLOCATIONS["uniform_plus"](shapes, 60, head="last") == {"first": 10, "middle": 30, "last": 20}
    assert ALLOCATIONS["uniform_plus"](shapes, 210, head="last") == {"first": 10, "middle": 150, "last": 50}
    assert ALLOCATIONS["uniform_plus"](shapes, 50) == {"first": 10, "middle": 30, "last": 10}
    with pytest.raises(ValueError, match="keeps the first layer and a fifth of the last, 30 weights, but only 29 are to stay"):
        ALLOCATIONS["uniform_plus"](shapes, 29, head="last")


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("method", ["l1", "random"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.8, 0.97])
def test_every_allocation_removes_the_requested_share(allocation, method, ratio, generator):
    network = build_network(NetworkConfig(net_name="resnet", depth=8, widen_factor=1), (3, 32, 32), 10, stream(0, "init"))
    mask = prune(network, generator, prune_ratio=ratio, prune_method=method, allocation=allocation, head="fc")
    assert mask.n_weights - mask.n_active == round(ratio * mask.n_weights)
    inner = prune(network, generator, prune_ratio=0.98, prune_method=method, allocation=allocation, head="fc", within=mask)
    assert inner.n_weights - inner.n_active == round(0.98 * mask.n_weights)
    assert all((mask[name] | ~inner[name]).all() for name in mask)


def test_pruning_in_rounds_nests_and_passes_through_the_geometric_densities(generator):
    network = build_network(NetworkConfig(), (64,), 10, stream(0, "init"))
    seen = []
    mask = prune(network, generator, prune_ratio=0.9, score_rounds=4, watch=seen.append)
    shares = [one.n_active / one.n_weights for one in seen]
    assert shares == pytest.approx([1, 0.1**0.25, 0.1**0.5, 0.1**0.75], abs=1e-3)
    for outer, inner in zip(seen, [*seen[1:], mask], strict=True):
        assert all((outer[name] | ~inner[name]).all() for name in mask)
    assert mask.n_active == mask.n_weights - round(0.9 * mask.n_weights)
    at_once = prune(network, generator, prune_ratio=0.9)
    assert all(torch.equal(mask[name], at_once[name]) for name in mask)  # |w| does not change from round to round


def test_a_shuffled_mask_keeps_the_number_of_every_layer(generator):
    mask = keep(scores_of([(30, 20), (7, 5, 3, 3)], "real"), 200)
    other = shuffled(mask, generator)
    for name, active in mask.items():
        assert int(other[name].sum()) == int(active.sum())
        assert other[name].shape == active.shape
        assert not torch.equal(other[name], active)
    overlap = int((mask["0"] & other["0"]).sum()) / int(mask["0"].sum())
    density = float(mask["0"].float().mean())
    assert abs(overlap - density) < 5 * math.sqrt(density / int(mask["0"].sum()))

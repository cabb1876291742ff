"""The choice without a copy of all numbers, against sorting, `torch.topk` and the choice with copies."""

import platform
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helper.mask import Mask
from helper.masks import choosing, in_pieces, numbers
from helper.masks.choosing import keep, swap
from helper.masks.growth import by_gradient
from helper.masks.in_pieces import nth_lowest, selected, selects
from helper.masks.numbers import Numbers, Sizes
from helper.system.seeds import stream

KINDS = st.sampled_from(["real", "rounded", "few values", "sorted", "infinite", "equal", "zeros of both signs"])
SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)
SHARES = st.floats(0, 1)


def drawn(shapes, kind: str, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.randn(sum(sizes), generator=stream(seed, "scores"), dtype=dtype)
    if kind == "sorted":
        flat = flat.sort().values
    if kind == "infinite":
        flat = (flat * 2).round().where(flat.abs() < 0.8, torch.inf * flat.sign())
    flat = {
        "rounded": (flat * 4).round(),
        "few values": flat.sign(),
        "equal": flat * 0 + 1,
        "zeros of both signs": flat * 0,
    }.get(kind, flat)
    return {str(i): part.view(shape) for i, (part, shape) in enumerate(zip(flat.split(sizes), shapes, strict=True))}


def small_pieces(patch: pytest.MonkeyPatch) -> None:
    """Choices in pieces have tiny pieces and samples, and copy no more than three numbers."""
    for module, name, value in (
        (numbers, "PIECE", 7), (in_pieces, "PIECE", 7), (in_pieces, "SAMPLE", 5), (in_pieces, "FEW", 3),
    ):  # fmt: skip
        patch.setattr(module, name, value)


def both_ways(monkeypatch, choose):
    """What a choice comes to (with copies, in pieces)."""
    found = []
    for few in (1 << 30, 0):
        monkeypatch.setattr(choosing, "FEW", few)
        found.append(choose())
    return found


def assert_same(one: Mask, other: Mask) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@given(SHAPES, KINDS, SHARES, SHARES, st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 5))
def test_the_same_weights_are_kept(shapes, kind, share, density, absolute, dtype, seed):
    scores = drawn(shapes, kind, seed, dtype)
    scores = Sizes(scores) if absolute else scores
    within = Mask({name: part < density for name, part in drawn(shapes, "real", seed + 1).items()})
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        for outer in (None, within):
            n = within.n_active if outer else within.n_weights
            assert_same(*both_ways(patch, lambda outer=outer, n=n: keep(scores, round(share * n), outer)))
            counts = {name: round(share * (int(part.sum()) if outer else part.numel())) for name, part in within.items()}
            assert_same(*both_ways(patch, lambda outer=outer, counts=counts: keep(scores, counts, outer)))


@given(SHAPES, KINDS, KINDS, SHARES, SHARES, st.integers(0, 5))
def test_the_same_weights_change_places(shapes, kind, other, density, share, seed):
    drop, grow = Sizes(drawn(shapes, kind, seed)), by_gradient(drawn(shapes, other, seed + 1), None)
    mask = Mask({name: part < density for name, part in drawn(shapes, "real", seed + 2).items()})
    n = {name: round(share * int(active.sum())) for name, active in mask.items()}
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        (after, grown), (after_too, grown_too) = both_ways(patch, lambda: swap(mask, n, drop, grow))
    assert_same(after, after_too)
    assert_same(grown, grown_too)


@given(st.lists(st.integers(-4, 4) | st.floats(allow_nan=False, width=32), min_size=1, max_size=200), st.data())
def test_the_nth_lowest_number_is_that_of_the_sorted_ones(values, data):
    flat, n = torch.tensor(values, dtype=torch.float32), data.draw(st.integers(1, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        assert nth_lowest(Numbers([flat], None, absolute=False), n) == flat.sort().values[n - 1]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=400), st.data())
def test_of_equal_numbers_those_go_that_topk_takes(values, data):
    flat = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(max(1, len(values) // 64 + 1), len(values)))
    taken, places = torch.topk(flat, k, largest=False)
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        found = selected(Numbers([flat], None, absolute=False), k, taken.max().item())
    assert found is None or sorted(found.tolist()) == sorted(places[taken == taken.max()].tolist())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C++ library may select in another order")
def test_pytorch_takes_equal_numbers_as_expected():
    """If not, choices among equal numbers ask topk, which is right but needs 16 bytes for each of all numbers."""
    assert selects()


def test_many_numbers_with_equal_ones_at_the_bound_are_chosen_as_with_copies(monkeypatch):
    scores = Sizes({"a": torch.randn(900, 1000, generator=stream(0, "a")), "b": torch.randn(400_000, generator=stream(0, "b"))})
    rounded = Sizes({name: (part * 1000).round() for name, part in scores.of.items()})
    monkeypatch.setattr(in_pieces, "FEW", 1 << 10)
    for numbers_of_weights in (scores, rounded):
        assert_same(*both_ways(monkeypatch, lambda given=numbers_of_weights: keep(given, 26_000)))


def test_sizes_are_the_absolute_values_and_choose_alike():
    signed = {"a": torch.tensor([[-3.0, 1.0], [2.0, -0.5]])}
    assert torch.equal(Sizes(signed)["a"], signed["a"].abs())
    assert keep(Sizes(signed), 2)["a"].tolist() == [[True, False], [True, False]]
    with pytest.raises(ValueError, match="scores of a are NaN"):
        keep(Sizes({"a": torch.tensor([float("nan")])}), 1)


def test_more_than_there_are_cannot_stay(monkeypatch):
    monkeypatch.setattr(choosing, "FEW", 0)
    with pytest.raises(ValueError, match="3 weights cannot stay where 2 can be chosen"):
        keep({"a": torch.zeros(2)}, 3)


@pytest.mark.parametrize("values", [lambda x: x, lambda x: (x * 500).round(), lambda x: x.sign()])
def test_numbers_are_not_copied_to_choose_from_them(values, monkeypatch):
    flat = values(torch.randn(1 << 21, generator=stream(0, "many")))
    monkeypatch.setattr(in_pieces, "FEW", 1 << 12)
    monkeypatch.setattr(in_pieces, "SAMPLE", 1 << 12)
    numbers_of_weights = Numbers([flat], None, absolute=True)
    tracemalloc.start()
    try:
        nth_lowest(numbers_of_weights, round(0.98 * len(flat)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < flat.nbytes / 2  # a piece of 1 MiB, its comparisons, and what lies between two bounds

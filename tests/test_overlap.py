"""What masks have in common, against enumeration, and masks of runs that cannot be read."""

import itertools
import math

import numpy
import pytest
import torch

from helper.mask import Mask
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting.collect import collect
from study.reporting.overlap import Reader, changes, expected_jaccard, jaccard, overlaps, packed
from tests.test_families import WAYS


def mask(*layers: list[int]) -> Mask:
    return Mask({f"{i}.weight": torch.tensor(layer, dtype=torch.bool) for i, layer in enumerate(layers)})


def places(size: int, n: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(size), n))


def test_jaccard_is_what_sets_of_coordinates_say(generator):
    for _ in range(20):
        a, b = (mask(*((torch.rand(n, generator=generator) < 0.3).int().tolist() for n in (1, 9, 40))) for _ in range(2))
        sets = [{(name, i) for name, m in one.items() for i in m.nonzero().flatten().tolist()} for one in (a, b)]
        expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else math.nan
        assert jaccard(packed(a), packed(b)) == pytest.approx(expected, nan_ok=True)


def test_the_expected_intersection_is_that_of_all_masks_with_these_numbers():
    sizes, ours, theirs = (5, 4), (2, 3), (3, 1)
    a = mask([1, 1, 0, 0, 0], [1, 1, 1, 0])
    layers = [list(itertools.product(places(n, k), places(n, m))) for n, k, m in zip(sizes, ours, theirs, strict=True)]
    mean = sum(numpy.mean([len(set(one) & set(other)) for one, other in layer]) for layer in layers)
    b = mask([1, 0, 1, 1, 0], [0, 0, 0, 1])
    assert expected_jaccard(packed(a), packed(b)) == pytest.approx(mean / (sum(ours) + sum(theirs) - mean))


def test_the_expected_jaccard_is_close_to_the_mean_of_random_masks(generator):
    def drawn() -> Mask:
        scores = [torch.rand(n, generator=generator) for n in (400, 900)]
        return Mask({f"{i}.weight": s >= s.sort().values[-k] for i, (s, k) in enumerate(zip(scores, (80, 45), strict=True))})

    found = [jaccard(packed(drawn()), packed(drawn())) for _ in range(200)]
    error = numpy.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(numpy.mean(found) - expected_jaccard(packed(drawn()), packed(drawn()))) < 4 * error + 1e-4
    assert error < 0.002


@pytest.mark.parametrize(("a", "b", "expected"), [
    (mask([1, 0]), mask([1, 0]), (1, 1 / 3)),
    (mask([1, 1]), mask([1, 1]), (1, 1)),
    (mask([0, 0]), mask([0, 0]), (math.nan, math.nan)),
    (mask([0, 0]), mask([1, 0]), (0, 0)),
    (mask([1, 0], [1, 0, 0, 1]), mask([1, 0]), (3 / 5, 2.5 / 5.5)),  # what one does not mask is whole there
])  # fmt: skip
def test_limits_of_the_index(a, b, expected):
    for one, other in ((a, b), (b, a)):
        found = jaccard(packed(one), packed(other)), expected_jaccard(packed(one), packed(other))
        assert found == pytest.approx(expected, nan_ok=True)


@pytest.fixture
def records(tmp_path):
    for seed, label in itertools.product((1, 2), ("sparse-finetune", "lottery", "SNIP", "RigL")):
        flags = WAYS[label] | {"random_state": seed, "n_epochs": 10, "lr_milestones": "5", "results_root": str(tmp_path)}
        write_run(unflatten(RunConfig, flags), weights=True)
    return collect(tmp_path).records


def test_runs_are_compared_by_seed_in_the_order_of_families(records):
    reader = Reader()
    table = overlaps(records, reader)
    assert reader.left_out == []
    assert table[["first", "second"]].drop_duplicates().to_numpy().tolist() == [
        list(pair) for pair in itertools.combinations(("sparse-finetune", "lottery", "SNIP", "RigL"), 2)
    ]
    assert table["seed"].tolist() == [1] * 6 + [2] * 6
    same = table[(table["first"] == "sparse-finetune") & (table["second"] == "lottery")]
    assert (same["jaccard"] == 1).all()
    assert (same["chance"] < 0.2).all()


def test_masks_of_kept_states_begin_and_end_with_themselves(records):
    table = changes([record for record in records if record.family.label == "RigL"], Reader())
    assert sorted(set(table["epoch"])) == list(range(11))
    assert (table.loc[table["epoch"] == 0, "with_first"] == 1).all()
    assert (table.loc[table["epoch"] == 10, "with_last"] == 1).all()
    one = table[table["seed"] == 1].sort_values("epoch")
    assert one["with_first"].is_monotonic_decreasing
    assert one["with_last"].is_monotonic_increasing


def broken(record, how: str) -> str:
    """Damage a run's weights; the reason that has to be told."""
    path = record.path / "model.pt"
    if how == "missing":
        path.unlink()
        return "does not exist"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return "model.pt"
    if how == "altered":
        torch.save({"network": {"layers.0.weight": torch.ones(2)}, "mask": {}, "epoch": 1}, path)
        return "is not what its run has left there"
    (record.path / "summary.json").unlink()  # of what is left nothing vouches for the weights
    layers = {"maskless": {}, "smaller": {"layers.0.weight": torch.ones(3, dtype=torch.bool)}}[how]
    torch.save({"network": {"layers.0.weight": torch.ones(3)}, "mask": layers, "epoch": 1}, path)
    return {"maskless": "it has no mask", "smaller": "other sizes"}[how]


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "maskless", "smaller"])
def test_a_mask_that_cannot_be_read_is_named_and_the_others_are_compared(records, how):
    damaged = next(r for r in records if r.family.label == "SNIP" and r.seed == 2)
    reason = broken(damaged, how)
    reader = Reader()
    table = overlaps(records, reader)
    assert [(name == f"{damaged.name}/model.pt", reason in why) for name, why in reader.left_out] == [(True, True)]
    assert len(table) == 6 + 3


def test_a_kept_state_that_cannot_be_read_is_left_out_alone(records):
    damaged = next(r for r in records if r.family.label == "RigL")
    (damaged.path / "state_dicts/epoch_3.pt").write_bytes(b"none")
    reader = Reader()
    table = changes([damaged], reader)
    assert 3 not in set(table["epoch"])
    assert len(table) == 10
    assert [name for name, _ in reader.left_out] == [f"{damaged.name}/state_dicts/epoch_3.pt"]

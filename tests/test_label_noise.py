import pytest
import torch

from helper.system.seeds import stream
from loader.archives import DataError
from loader.label_noise import corrupt
from loader.loader_cifar10 import CONFUSED
from loader.loader_cifar100_noisy import next_in_superclass

LABELS = torch.arange(1000) % 10


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.333, 1.0])
def test_symmetric_flips_exactly_the_share_and_always_to_another_class(ratio, generator):
    noisy = corrupt(LABELS, "symmetric", 10, generator, noise_ratio=ratio)
    assert (noisy != LABELS).sum() == round(ratio * 1000)


@pytest.mark.parametrize("method", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("n", "ratio", "corrupted"), [(7, 0.4, 3), (3, 0.2, 1), (100, 0.29, 29), (10, 0.25, 2)])
def test_the_number_of_wrong_labels_is_rounded_and_not_cut(method, n, ratio, corrupted, generator):
    labels = LABELS[:n]  # 0.29 * 100 is 28.999... in floating point
    assert (corrupt(labels, method, 10, generator, noise_ratio=ratio) != labels).sum() == corrupted


def test_symmetric_reaches_every_other_class_equally_often():
    offsets = torch.cat([(corrupt(LABELS, "symmetric", 10, stream(s, "n"), noise_ratio=1.0) - LABELS) % 10 for s in range(9)])
    counts = offsets.bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 4 * (1000 * 8 / 9) ** 0.5


def test_symmetric_inclusive_keeps_a_tenth_of_the_drawn_labels():
    noisy = corrupt(LABELS.repeat(20), "symmetric_inclusive", 10, stream(0, "n"), noise_ratio=0.5)
    changed = (noisy != LABELS.repeat(20)).float().mean().item()
    assert abs(changed - 0.45) < 4 * (0.09 * 0.5 / 20_000) ** 0.5


def test_symmetric_inclusive_draws_every_class_equally_often():
    drawn = torch.cat([corrupt(LABELS, "symmetric_inclusive", 10, stream(seed, "n"), noise_ratio=1.0) for seed in range(9)])
    assert (drawn.bincount(minlength=10) - 900).abs().max() < 4 * (900 * 0.9) ** 0.5
    kept = (drawn == LABELS.repeat(9)).sum()
    assert abs(kept - 900) < 4 * (900 * 0.9) ** 0.5


def test_asymmetric_goes_to_the_next_class_by_default(generator):
    noisy = corrupt(LABELS, "asymmetric", 10, generator, noise_ratio=0.4)
    flipped = noisy != LABELS
    assert flipped.sum() == 400
    assert torch.equal(noisy[flipped], (LABELS[flipped] + 1) % 10)


def test_asymmetric_counts_only_classes_that_have_a_confusion(generator):
    next_class = torch.tensor([CONFUSED.get(c, c) for c in range(10)])
    noisy = corrupt(LABELS, "asymmetric", 10, generator, noise_ratio=0.4, next_class=next_class)
    flipped = noisy != LABELS
    assert flipped.sum() == round(0.4 * 500)
    assert {(a, b) for a, b in zip(LABELS[flipped].tolist(), noisy[flipped].tolist(), strict=True)} == set(CONFUSED.items())


def test_cifar10_confuses_the_classes_that_patrini_et_al_name():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    found = {names[a]: names[b] for a, b in CONFUSED.items()}
    assert found == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def test_next_in_superclass_is_a_cycle_through_each_superclass():
    fine, coarse = torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 1])
    assert next_in_superclass(fine, coarse).tolist() == [2, 3, 4, 5, 0, 1]


def test_the_noise_seed_alone_decides():
    a, b, other = (corrupt(LABELS, "symmetric", 10, stream(s, "noise", "train"), noise_ratio=0.3) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_human_needs_human_labels(generator):
    with pytest.raises(DataError, match="people gave no labels"):
        corrupt(LABELS, "human", 10, generator)
    assert torch.equal(corrupt(LABELS, "human", 10, generator, human_labels=LABELS.flip(0)), LABELS.flip(0))

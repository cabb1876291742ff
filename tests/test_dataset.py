import numpy
import pytest
import torch
from PIL import Image

from helper.system.seeds import stream
from loader.dataset import Dataset, Split, crop_and_flip, draw_crops
from loader.splits import balanced_rows
from scripts.ordinary import import_transforms


def make_split(images: torch.Tensor) -> Split:
    labels = torch.arange(len(images)) % 3
    return Split(images, labels, labels, torch.arange(len(images)))


def make_dataset(images: torch.Tensor, **changes) -> Dataset:
    split = make_split(images)
    options = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "scale": 255.0, "augmented": False}
    return Dataset("made up", split, split[:0], split, ("a", "b", "c"), **(options | changes))


def test_normalisation_is_that_of_torchvision():
    transforms = import_transforms()
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    theirs = torch.stack([pipeline(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    torch.testing.assert_close(make_dataset(images).normalise(images), theirs, rtol=1e-5, atol=1e-6)


def shifts(batch: torch.Tensor, marker: torch.Tensor) -> list[tuple[int, int, bool]]:
    """(rows moved, columns moved, mirrored) of a marker image in each of a batch of its transformed copies."""
    padded = numpy.pad(marker, ((0, 0), (4, 4), (4, 4)))
    views = {}
    for top in range(9):
        for left in range(9):
            view = padded[:, top : top + 8, left : left + 8]
            views[view.tobytes()] = (top, left, False)
            views[view[:, :, ::-1].tobytes()] = (top, left, True)
    return [views[numpy.ascontiguousarray(image).tobytes()] for image in batch.numpy()]


def test_crop_and_flip_has_torchvisions_distribution():
    """Both draw every (row shift, column shift, mirrored) equally often, and nothing else: chi-squared over 162 cells."""
    from scipy.stats import chisquare

    n = 16_200
    marker = (torch.arange(192).view(3, 8, 8) + 1).to(torch.uint8)
    ours = crop_and_flip(marker.expand(n, -1, -1, -1), draw_crops(n, stream(0, "augment")))
    transforms = import_transforms()
    torch.manual_seed(0)
    pipeline = transforms.Compose([transforms.RandomCrop(8, padding=4), transforms.RandomHorizontalFlip()])
    theirs = torch.stack([pipeline(marker) for _ in range(n)])
    for batch in (ours, theirs):
        cells = shifts(batch, marker.numpy())
        counts = numpy.unique([9 * 2 * top + 2 * left + flip for top, left, flip in cells], return_counts=True)[1]
        assert len(counts) == 162
        assert chisquare(counts).pvalue > 1e-3


def test_crop_and_flip_treats_every_image_on_its_own_and_keeps_channels_last():
    images = torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 3, 8, 8).contiguous() + 1
    moved = crop_and_flip(images, draw_crops(64, stream(0, "augment")))
    for index, image in enumerate(moved):
        assert set(image.unique().tolist()) <= {0, index + 1}
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert moved.dtype == torch.uint8


def test_batches_cover_the_split_in_order_with_a_short_last_batch():
    dataset = make_dataset(torch.randint(256, (10, 3, 4, 4), dtype=torch.uint8))
    batches = list(dataset.batches(dataset.train, 4))
    assert [len(labels) for _, labels, _ in batches] == [4, 4, 2]
    torch.testing.assert_close(torch.cat([x for x, _, _ in batches]), dataset.normalise(dataset.train.inputs))


def test_examples_come_normalised_in_the_order_that_they_are_asked_for():
    dataset = make_dataset(torch.randint(256, (10, 3, 4, 4), dtype=torch.uint8))
    rows = torch.tensor([7, 2, 2, 9])
    assert torch.equal(dataset.examples(dataset.train)[rows], dataset.normalise(dataset.train.inputs)[rows])


@pytest.mark.parametrize("n", [0, 1, 7, 50, 99, 100])
def test_balanced_rows_give_every_class_its_share(n, generator):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=generator)]
    chosen, others = balanced_rows(labels, n, generator)
    assert sorted([*chosen.tolist(), *others.tolist()]) == list(range(100))
    assert len(chosen) == n
    share = labels[chosen].bincount(minlength=3) - n * torch.tensor([0.5, 0.3, 0.2])
    assert share.abs().max() < 2


@pytest.mark.parametrize("n", [0, 1, 25, 30, 31, 100])
def test_balanced_rows_of_equal_classes_differ_by_at_most_one(n, generator):
    chosen, _ = balanced_rows(torch.arange(100) % 10, n, generator)
    counts = (chosen % 10).bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_balanced_rows_give_what_is_left_over_to_every_class_equally_often():
    """Of five classes of four rows, seven chosen rows leave two classes with one more: each in two of five draws."""
    counts = torch.zeros(5)
    for seed in range(1000):
        counts += (balanced_rows(torch.arange(20) % 5, 7, stream(seed, "left over"))[0] % 5).bincount(minlength=5) - 1
    assert (counts / 1000 - 2 / 5).abs().max() < 4 * (0.4 * 0.6 / 1000) ** 0.5


def test_balanced_rows_choose_every_row_equally_often():
    labels = torch.tensor([0] * 6 + [1] * 3)
    counts = torch.zeros(9)
    for seed in range(3000):
        counts[balanced_rows(labels, 3, stream(seed, "balance"))[0]] += 1
    assert (counts / 3000 - 1 / 3).abs().max() < 4 * (2 / 9 / 3000) ** 0.5


def test_streams_are_independent_of_each_other_and_repeatable():
    a, b, again = (torch.rand(3, generator=g) for g in (stream(1, "a"), stream(1, "b"), stream(1, "a")))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=stream(2, "a")))

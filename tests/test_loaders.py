"""Loaders on made-up files of the published layouts, and on damaged ones."""

import dataclasses
import gzip
import hashlib
import os
import pickle
import shutil
import tarfile

import pytest
import torch

from helper.schema.config import FlagError, digest
from loader import loader_cifar100
from loader.archives import DataError, unpickle
from loader.dataset import Split
from loader.human_labels import make_human_labels
from loader.label_noise import METHODS
from loader.loader_cifar10 import HUMAN_SETS
from loader.loader_toy import generate
from loader.made_up import N_TEST, N_TRAIN, labels_in_turn, pixels
from loader.main import DATASETS, NAMES, DataConfig, load_dataset
from loader.main import _limit as limited
from loader.spec import DatasetSpec
from optim.config import RunConfig
from optim.identity import run_identity
from tests.conftest import PUBLISHED


def load(root, name, **flags):
    load_dataset.cache_clear()
    return load_dataset(DataConfig(loader_name=name, root=str(root), verify_data=False, download=False, **flags))


@pytest.mark.parametrize("name", NAMES)
def test_every_loader_reads_its_layout(files, name):
    data = load(files, name)
    assert data.train.inputs.dtype == torch.uint8
    assert len(data.train) > len(data.test) > 0
    assert data.train.labels.max() < data.n_classes
    assert data.train.noisy.any() == name.endswith("_noisy")
    assert not data.test.noisy.any()


def test_cifar_images_keep_their_pixels(files):
    content = pickle.loads((files / "cifar-100-python/train").read_bytes())
    data = load(files, "cifar100")
    assert data.train.inputs[3].flatten().tolist() == content["data"][3].tolist()
    assert data.train.labels.tolist() == content["fine_labels"]


def test_cifar10_batches_are_put_together(files):
    data = load(files, "cifar10")
    assert (len(data.train), len(data.test)) == (500, 100)


def test_idx_files_keep_their_pixels(files):
    data = load(files, "mnist")
    assert data.train.inputs[0].flatten().tolist() == pixels(N_TRAIN, 784)[0].tolist()


def test_human_noise_is_the_files(files):
    data = load(files, "cifar100_noisy", noise_method="human")
    assert torch.equal(data.train.noisy, torch.arange(N_TRAIN) % 4 == 0)


@pytest.mark.parametrize(("name", "every"), [*zip(HUMAN_SETS, range(4, 9), strict=True)])
def test_every_set_of_human_labels_of_cifar10_is_the_files(files, name, every):
    data = load(files, "cifar10_noisy", noise_method="human", human_set=name)
    assert torch.equal(data.train.noisy, torch.arange(500) % every == 0)  # as make_human_labels has it
    assert torch.equal(data.train.labels, (data.train.true_labels + data.train.noisy) % 10)


def test_runs_with_other_human_labels_are_other_runs_and_those_without_any_are_not(files):
    prints = [load(files, "cifar10_noisy", noise_method=method).fingerprint for method in ("symmetric", "human")]
    assert prints[1].startswith(prints[0])
    assert prints[1] != prints[0]
    sets = [RunConfig(data=DataConfig("cifar10_noisy", noise_method="human", human_set=name)) for name in HUMAN_SETS]
    assert len({digest(run_identity(config, None)) for config in sets}) == len(HUMAN_SETS)
    others = [RunConfig(data=DataConfig("cifar10_noisy", human_set=name)) for name in HUMAN_SETS]
    assert len({digest(run_identity(config, None)) for config in others}) == 1


def test_human_labels_follow_their_images_through_subset_and_split(files):
    data = load(files, "cifar100_noisy", noise_method="human", limit_train=150, val_size=0.3)
    for split in (data.train, data.val):
        wrong = split.indices % 4 == 0  # as make_human_labels has it
        assert torch.equal(split.labels, torch.where(wrong, (split.true_labels + 1) % 100, split.true_labels))
        assert 0 < wrong.sum() < len(split)


def test_human_noise_of_other_images_is_refused(files, tmp_path):
    root = shutil.copytree(files, tmp_path / "data")
    make_human_labels(root / "CIFAR-100_human.pt", [1, 0, *labels_in_turn(N_TRAIN, 100)[2:]], "noisy_label")
    with pytest.raises(DataError, match="clean_label disagrees"):
        load(root, "cifar100_noisy", noise_method="human")
    (root / "CIFAR-100_human.pt").unlink()
    with pytest.raises(DataError, match=r"noisylabels\.com"):
        load(root, "cifar100_noisy", noise_method="human")


def test_asymmetric_noise_stays_in_the_superclass(files):
    data = load(files, "cifar100_noisy", noise_method="asymmetric")
    assert torch.equal(data.train.labels // 5, data.train.true_labels // 5)


def test_split_subset_and_noise_do_not_depend_on_each_other(files):
    plain = load(files, "cifar100", limit_train=200, val_size=0.25)
    noisy = load(files, "cifar100_noisy", limit_train=200, val_size=0.25, noise_ratio=0.4)
    assert (len(plain.train), len(plain.val)) == (150, 50)
    assert torch.equal(plain.train.indices, noisy.train.indices)
    assert (noisy.train.noisy.sum(), noisy.val.noisy.sum()) == (60, 20)
    assert not set(plain.train.indices.tolist()) & set(plain.val.indices.tolist())


def test_training_and_validation_labels_are_corrupted_independently(files):
    data = load(files, "cifar100_noisy", limit_train=200, val_size=0.5, noise_ratio=0.5)
    assert data.train.noisy.sum() == data.val.noisy.sum() == 50
    assert not torch.equal(data.train.noisy, data.val.noisy)


def test_training_and_test_subsets_are_drawn_independently():
    labels = torch.arange(100) % 5
    split = Split(labels, labels, labels, torch.arange(100))
    train, test = (limited(split, 20, role, seed=0).indices for role in ("train", "test"))
    assert len(train) == len(test) == 20
    assert not torch.equal(train, test)


@pytest.mark.parametrize(("name", "mean", "std"), [("digits", 0, 1), ("toy", 0.5, 0.5)])
def test_bundled_digits_are_normalised_and_generated_bits_are_not(name, mean, std, tmp_path):
    data = load(tmp_path, name)
    seen = torch.cat([data.normalise(split.inputs) for split in (data.train, data.test)]).double()
    assert (seen.mean().item(), seen.std().item()) == pytest.approx((mean, std), abs=2e-3)


PUBLISHED_MOMENTS = {  # per channel, as shares of 255; their files are not here, so that they cannot be counted
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": ((0.1307,), (0.3081,)),
    "fmnist": ((0.2860,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}


@pytest.mark.parametrize("name", PUBLISHED_MOMENTS)
def test_inputs_are_normalised_by_the_published_moments(files, name):
    data = load(files, name)
    assert (data.mean, data.std, data.scale) == (*PUBLISHED_MOMENTS[name], 255)


def test_a_limit_on_classes_leaves_whole_classes_their_names_and_noise_among_them(files):
    data = load(files, "cifar100_noisy", limit_classes=20, limit_train=40, noise_ratio=0.5)
    assert data.class_names == tuple(f"class{i}" for i in range(20))
    assert data.train.true_labels.bincount().tolist() == [2] * 20
    assert torch.equal(data.train.indices % 100, data.train.true_labels)  # positions in the whole file
    assert data.train.labels.max() < 20
    assert data.train.noisy.sum() == 20
    assert len(data.test) == 20 * N_TEST // 100
    with pytest.raises(FlagError, match="human noise may give a label outside"):
        load(files, "cifar100_noisy", limit_classes=20, noise_method="human")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"limit_classes": 101}, "--limit_classes 101: the data set has only 100 classes"),
        ({"limit_train": 401}, "--limit_train 401: the data set has only 400"),
        ({"limit_test": 999}, "--limit_test 999"),
        ({"val_size": 0.001}, "0 validation examples"),
    ],
)
def test_fewer_examples_than_asked_are_refused(files, flags, words):
    with pytest.raises(DataError, match=words):
        load(files, "cifar100", **flags)


def test_missing_files_are_named(tmp_path):
    for name in ("cifar10", "cifar100", "mnist", "fmnist", "svhn", "tiny_imagenet"):
        with pytest.raises(DataError, match="is missing; point --root at the data"):
            load(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "meta", "key"),
    [("cifar100", "cifar-100-python/meta", "fine_label_names"), ("cifar10", "cifar-10-batches-py/batches.meta", "label_names")],
)
def test_a_class_without_a_name_shows_the_file_of_names(files, tmp_path, name, meta, key):
    root = shutil.copytree(files, tmp_path / "data")
    names = pickle.loads((root / meta).read_bytes())[key]
    (root / meta).write_bytes(pickle.dumps({key: names[:-1]}))
    with pytest.raises(DataError, match=f"labels outside .* classes named in {root / meta}; delete both"):
        load(root, name)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "layout", "labels", "code"])
def test_damaged_cifar_files_are_refused(files, tmp_path, damage):
    root = shutil.copytree(files, tmp_path / "data")
    path = root / "cifar-100-python/train"
    content = pickle.loads(path.read_bytes())
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {flag}",)

    path.write_bytes(
        {
            "truncate": path.read_bytes()[:1000],
            "garbage": b"not a pickle",
            "layout": pickle.dumps({"data": content["data"]}),
            "labels": pickle.dumps(content | {"fine_labels": [100] * N_TRAIN}),
            "code": pickle.dumps({"data": Evil()}),
        }[damage]
    )
    with pytest.raises(DataError, match="cifar-100-python/train"):
        load(root, "cifar100")
    assert not flag.exists()


def test_unpickle_reads_both_pickles_of_python_2_and_numpy_2(files):
    assert unpickle(files / "cifar-100-python/train")["data"].shape == (N_TRAIN, 3072)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"\0\0\x08\x03"), gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc")],
    ids=["empty", "no gzip", "short header", "short content"],  # gzip writes the time: ids must not follow the content
)
def test_damaged_idx_files_are_refused(files, tmp_path, content):
    root = shutil.copytree(files, tmp_path / "data")
    (root / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz .*damaged"):
        load(root, "mnist")


def test_damaged_toy_files_are_refused(files, tmp_path):
    (tmp_path / "var_u.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"var_u\.mat"):
        load(tmp_path, "toy")


def test_checksums_are_compared(files):
    load_dataset.cache_clear()
    with pytest.raises(DataError, match=r"is not the published file .*--verify_data 0"):
        load_dataset(DataConfig(loader_name="cifar100", root=str(files)))


def test_unpublished_files_have_a_fingerprint_and_it_follows_the_content(files, tmp_path):
    root = shutil.copytree(files, tmp_path / "data")
    before = load(root, "cifar100").fingerprint
    path = root / "cifar-100-python/test"
    content = pickle.loads(path.read_bytes())
    content["data"][0, 0] ^= 1
    path.write_bytes(pickle.dumps(content))
    assert before
    assert load(root, "cifar100").fingerprint != before
    assert load(root, "digits").fingerprint is None


def test_archives_are_downloaded_verified_and_unpacked(files, tmp_path, monkeypatch):
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(files / "cifar-100-python", "cifar-100-python")
    digests = {name: hashlib.md5((files / name).read_bytes()).hexdigest() for name in loader_cifar100.FILES}
    monkeypatch.setattr(loader_cifar100, "FILES", digests)
    monkeypatch.setattr(loader_cifar100, "ARCHIVE", (archive.as_uri(), hashlib.md5(archive.read_bytes()).hexdigest()))
    load_dataset.cache_clear()
    data = load_dataset(DataConfig(loader_name="cifar100", root=str(tmp_path / "root")))
    assert len(data.train) == N_TRAIN
    assert data.fingerprint is None
    monkeypatch.setattr(loader_cifar100, "ARCHIVE", (archive.as_uri(), "0" * 32))
    with pytest.raises(DataError, match="not the published file"):
        load_dataset(DataConfig(loader_name="cifar100", root=str(tmp_path / "other")))


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(loader_cifar100, "ARCHIVE", ("file:///nowhere/cifar-100-python.tar.gz", ""))
    load_dataset.cache_clear()
    with pytest.raises(DataError, match=r"could not download .*by hand"):
        load_dataset(DataConfig(loader_name="cifar100", root=str(tmp_path)))


def test_the_generated_toy_set_is_balanced_and_not_a_matter_of_counting():
    bits, labels = generate()
    assert len(bits.unique(dim=0)) == 4096
    assert 0.4 < labels.double().mean() < 0.6
    count = bits.sum(1)
    best = sum(labels[count == k].bincount(minlength=2).max() for k in range(13)) / 4096
    assert best < 0.75


# ------------------------------------------------------------------------------------------- noise among some classes


LEAVING = {
    "asymmetric": {"cifar10": (4, 5, 6, 7), "cifar100": range(2, 100)},
    "human": {"cifar10": range(2, 100), "cifar100": range(2, 100)},
}


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_noise_gives_labels_of_the_chosen_classes_or_is_refused_in_a_line(files, name, method, n):
    flags = {"noise_method": method, "noise_ratio": 0.9, "limit_classes": n, "val_size": 0.3}
    if n in LEAVING.get(method, {}).get(name, ()):
        with pytest.raises(FlagError, match=f"--limit_classes {n}: {method} noise may give a label outside"):
            DataConfig(loader_name=f"{name}_noisy", **flags)  # before anything is read
    elif method == "human" or (name, n, method) == ("cifar10", 2, "asymmetric") or n > DataConfig(name).published.n_classes:
        with pytest.raises(DataError, match=r"people's labels exist here|none of the 2 classes|has only \d+ classes"):
            load(files, f"{name}_noisy", **flags)
    else:
        data = load(files, f"{name}_noisy", **flags)
        assert data.train.noisy.any() or (method == "symmetric_inclusive" and len(data.train) < 5)  # few may keep theirs
        for split in (data.train, data.val):
            assert 0 <= split.labels.min() <= split.labels.max() < n


def test_asymmetric_noise_among_five_classes_of_cifar10_is_refused_as_that_of_cifar100():
    lines = []
    for name in ("cifar10", "cifar100"):
        with pytest.raises(FlagError) as refusal:
            DataConfig(loader_name=name, train_noisy=True, noise_method="asymmetric", limit_classes=5)
        lines.append(str(refusal.value))
    assert lines[0] == lines[1] == "--limit_classes 5: asymmetric noise may give a label outside of the chosen classes"


def test_an_added_set_whose_noise_leaves_the_classes_is_refused(monkeypatch):
    source = DATASETS["digits"].load(test_size=0.2, split_seed=0)
    n = len(source.train_labels)
    facts = {"asymmetric": {"next_class": torch.arange(10).roll(-1)}, "human": {"human_labels": torch.arange(n) % 10}}
    for method, more in facts.items():
        added = DatasetSpec("added", lambda more=more: dataclasses.replace(source, **more))
        monkeypatch.setitem(DATASETS, "added", added)
        load_dataset.cache_clear()
        with pytest.raises(DataError, match=rf"--noise_method {method} gives labels outside of 0\.\.4"):
            load_dataset(DataConfig(loader_name="added_noisy", noise_method=method, limit_classes=5))
        load_dataset.cache_clear()
        assert load_dataset(DataConfig(loader_name="added_noisy", noise_method=method)).train.noisy.any()


NO_DATA_SETS = [
    (
        {"train_inputs": lambda x: x.double()},
        r"train_inputs has to be a uint8 .* not a Tensor of \(1438, 1, 8, 8\), torch.float64",
    ),
    (
        {"test_inputs": lambda x: x.numpy()},
        r"test_inputs has to be a uint8 or float32 .* not a ndarray of \(359, 1, 8, 8\), uint8",
    ),
    ({"train_inputs": lambda x: x[:, 0, 0, 0]}, r"\(N, D\) or \(N, ...\), not a Tensor of \(1438,\)"),
    ({"test_labels": lambda y: y.int()}, r"test_labels has to be an int64 tensor of \(359,\), not .* torch.int32"),
    ({"train_labels": lambda y: y[:50]}, r"train_labels has to be an int64 tensor of \(1438,\), not a Tensor of \(50,\)"),
    ({"train_labels": lambda y: y + 1}, "train_labels has classes from 1 to 10, but class_names has 10, .* counted from 0"),
    ({"class_names": lambda names: names[:4]}, "classes from 0 to 9, but class_names has 4"),
    ({"mean": lambda _: 0.5}, "mean has to be a tuple of one number or of one for each channel, not 0.5"),
    ({"std": lambda _: torch.ones(1)}, "std has to be a tuple of one number .*, not tensor"),
    ({"std": lambda _: (1.0, 1.0, 1.0)}, "std has 3 values for 1 channels of train_inputs"),
]


@pytest.mark.parametrize(("changes", "words"), NO_DATA_SETS)
def test_an_added_loader_that_gives_no_data_set_is_told_what_is_wrong(monkeypatch, changes, words):
    source = DATASETS["digits"].load(test_size=0.2, split_seed=0)
    wrong = dataclasses.replace(source, **{name: change(getattr(source, name)) for name, change in changes.items()})
    monkeypatch.setitem(DATASETS, "added", DatasetSpec("added", lambda: wrong))
    load_dataset.cache_clear()
    with pytest.raises(DataError, match=f"what the loader of added gives is no data set: .*{words}"):
        load_dataset(DataConfig(loader_name="added"))

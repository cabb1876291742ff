"""Options, registry and builder of the data: `load_dataset(DataConfig) -> Dataset`."""

import functools
from dataclasses import dataclass

import torch

from helper.config import Config, FlagError, flag
from helper.progress import Task
from helper.utils import stream
from loader import (
    loader_cifar10,
    loader_cifar100,
    loader_cifar100_noisy,
    loader_digits,
    loader_mnist,
    loader_toy,
)
from loader.archives import DataError
from loader.dataset import Dataset, Source, Split
from loader.label_noise import METHODS, corrupt
from loader.splits import balanced_rows

DATASETS = {
    "digits": loader_digits.load,
    "toy": loader_toy.load,
    "mnist": loader_mnist.load_mnist,
    "fmnist": loader_mnist.load_fashion_mnist,
    "cifar10": loader_cifar10.load,
    "cifar100": loader_cifar100.load,
}
NOISY_DATASETS = {"cifar100": loader_cifar100_noisy.load}  # whose noise needs more than the clean files
AUGMENTED = ("cifar10", "cifar100")
NAMES = (*DATASETS, *(f"{name}_noisy" for name in DATASETS))
NOISY = {"train_noisy": (True,)}


@dataclass(frozen=True)
class DataConfig(Config):
    """Data: which set, where, how much of it, and with which label noise."""

    loader_name: str = flag("digits", "data set; `NAME_noisy` is NAME with --train_noisy 1", short="-ln", choices=NAMES)
    root: str = flag("data", "folder of the data files", short="-rt", identity=False)
    filename: str = flag("var_u.mat", "file of the toy set under --root", short="-fn", identity=False)
    download: bool = flag(True, "download what is missing", short="-dl", identity=False)
    verify_data: bool = flag(True, "insist on the published checksums; 0 loads other files of the same layout", identity=False)
    test_size: float = flag(
        0.2, "share held out for testing", short="-ts", low=0.01, below=1,
        when={"loader_name": ("toy", "toy_noisy", "digits", "digits_noisy")},
    )  # fmt: skip
    limit_classes: int | None = flag(None, "use only this many classes, the first of the data set's list; default: all", low=2)
    limit_train: int | None = flag(None, "use only this many training examples, class-balanced; default: all", low=1)
    limit_test: int | None = flag(None, "use only this many test examples, class-balanced; default: all", low=1)
    val_size: float = flag(0.0, "share of the training examples held out for validation, class-balanced", low=0, below=1)
    split_seed: int = flag(0, "seed of every split and subset")
    augment: str = flag(
        "auto", "random crop and flip of training images; auto: for CIFAR", choices=("auto", "none", "crop_flip")
    )
    train_noisy: bool = flag(False, "corrupt the training labels", short="-tn")
    noise_method: str = flag("symmetric", "kind of label noise", short="-nm", choices=METHODS, when=NOISY)
    noise_ratio: float = flag(
        0.3, "share of corrupted labels (asymmetric: of the classes that have a confusion)", short="-nr", low=0, high=1,
        when=NOISY | {"noise_method": ("symmetric", "symmetric_inclusive", "asymmetric")},
    )  # fmt: skip
    noise_seed: int = flag(0, "seed of the label noise: runs with other seeds see the same noise", when=NOISY)

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = self.loader_name.removesuffix("_noisy")
        noisy = self.train_noisy or clean != self.loader_name
        self._set("train_noisy", noisy)
        self._set("loader_name", f"{clean}_noisy" if noisy else clean)
        usual = "crop_flip" if clean in AUGMENTED else "none"
        if self.augment == usual:
            self._set("augment", "auto")
        if self.augment == "crop_flip" and clean == "toy":
            raise FlagError("--augment crop_flip: the toy set has no images to crop")
        if noisy and self.limit_classes and clean in NOISY_DATASETS and self.noise_method in ("asymmetric", "human"):
            raise FlagError(f"--limit_classes: {self.noise_method} noise may give a label outside of the chosen classes")

    @property
    def augmented(self) -> bool:
        return self.augment == "crop_flip" or (self.augment == "auto" and self.clean_name in AUGMENTED)

    @property
    def clean_name(self) -> str:
        return self.loader_name.removesuffix("_noisy")


@functools.lru_cache(maxsize=1)
def load_dataset(config: DataConfig) -> Dataset:
    """The data set of a configuration, on the CPU.

    Classes, then subset, then validation split, then label noise: train and validation labels each carry the exact share of
    noise; test labels are clean.

    Raises:
        DataError: files missing or damaged, fewer examples than asked for.
    """
    source = read(config)
    train = _split(source.train_inputs, source.train_labels)
    test = _split(source.test_inputs, source.test_labels)
    names = source.class_names[: config.limit_classes]
    if config.limit_classes:
        if config.limit_classes > len(names):
            raise DataError(f"--limit_classes {config.limit_classes}: the data set has only {len(names)} classes")
        train, test = (split[split.labels < len(names)] for split in (train, test))
    train = _limit(train, config.limit_train, "train", config.split_seed)
    test = _limit(test, config.limit_test, "test", config.split_seed)
    generator = stream(config.split_seed, "val")
    val_rows, train_rows = balanced_rows(train.labels, round(config.val_size * len(train)), generator)
    val, train = train[val_rows], train[train_rows]
    if len(train) == 0 or (config.val_size and len(val) == 0):
        raise DataError(f"--val_size {config.val_size} leaves {len(train)} training and {len(val)} validation examples")
    if config.train_noisy:
        train, val = (_with_noise(s, source, config, name, len(names)) for s, name in ((train, "train"), (val, "val")))
    return Dataset(
        config.loader_name, train, val, test, names, source.scale, source.mean, source.std,
        augmented=config.augmented, fingerprint=source.fingerprint, noisy=config.train_noisy,
    )  # fmt: skip


def read(config: DataConfig) -> Source:
    """The whole data set as its loader reads it. Raises DataError: files missing or damaged."""
    loaders = DATASETS | (NOISY_DATASETS if config.train_noisy else {})
    with Task(f"reading {config.clean_name} under {config.root}"):
        return loaders[config.clean_name](config)


@functools.cache
def fingerprint_of(config: DataConfig) -> str | None:
    """Content hash of data files that are not the published ones; None for those. Files are read once.

    Raises:
        DataError: files missing or damaged.
    """
    flags = {name: getattr(config, name) for name in ("loader_name", "root", "filename", "download", "verify_data")}
    return _fingerprint(DataConfig(**flags, noise_method=config.noise_method))


@functools.cache
def _fingerprint(config: DataConfig) -> str | None:
    return read(config).fingerprint


def _split(inputs: torch.Tensor, labels: torch.Tensor) -> Split:
    return Split(inputs, labels, labels, torch.arange(len(labels)))


def _limit(split: Split, limit: int | None, role: str, seed: int) -> Split:
    if limit is None:
        return split
    if limit > len(split):
        raise DataError(f"--limit_{role} {limit}: the data set has only {len(split)} {role} examples")
    return split[balanced_rows(split.labels, limit, stream(seed, "limit", role))[0]]


def _with_noise(split: Split, source: Source, config: DataConfig, role: str, n_classes: int) -> Split:
    human = None if source.human_labels is None else source.human_labels[split.indices]
    noisy = corrupt(
        split.true_labels, config.noise_method, config.noise_ratio, n_classes,
        stream(config.noise_seed, "noise", role), next_class=source.next_class, human_labels=human,
    )  # fmt: skip
    return Split(split.inputs, noisy, split.true_labels, split.indices)

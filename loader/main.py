"""Options, registry and builder of the data: `load_dataset(DataConfig) -> Dataset`."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from helper.own.references import WithReferences, canonical, is_reference, path_label
from helper.progress import Task
from helper.schema.config import Above, Config, FlagError, flag
from helper.schema.registry import Readers, by_name, options_of, with_options, with_own_flags
from helper.system.seeds import stream
from loader.archives import DataError
from loader.dataset import Dataset, Source, Split
from loader.label_noise import METHODS, corrupt
from loader.loader_cifar10 import CIFAR10
from loader.loader_cifar100 import CIFAR100
from loader.loader_digits import DIGITS
from loader.loader_folder import FOLDER
from loader.loader_mnist import FASHION_MNIST, MNIST
from loader.loader_npz import NPZ
from loader.loader_svhn import SVHN
from loader.loader_tiny_imagenet import TINY_IMAGENET
from loader.loader_toy import TOY
from loader.on_demand import large_on_demand
from loader.own import ANY, own_dataset
from loader.spec import DatasetSpec, Published, WithNoise, WithoutNoise
from loader.splits import balanced_rows

DATASETS: dict[str, DatasetSpec] = by_name(
    DIGITS,
    TOY,
    MNIST,
    FASHION_MNIST,
    SVHN,
    TINY_IMAGENET,
    CIFAR10,
    CIFAR100,
    FOLDER,
    NPZ,
)
NAMES, PLAIN_NAMES = WithNoise(DATASETS), WithoutNoise(DATASETS)
KNOWN, KNOWN_PLAIN = (WithReferences(names, own_dataset, ANY) for names in (NAMES, PLAIN_NAMES))
NOISY = {"train_noisy": (True,)}
NO_IMAGES = "--augment crop_flip: the {} set has no images to crop"


def read_by_some(name: str) -> dict[str, Readers]:
    """`when` of a flag that not all data sets read."""
    return {"loader_name": Readers(name, KNOWN_PLAIN)}


@dataclass(frozen=True)
@with_own_flags(KNOWN_PLAIN, word="loader_name", after="root")
class DataConfig(Config):
    """Data: which set, where, how much of it, and with which label noise."""

    loader_name: str = flag(
        "digits", "data set, or code of your own (docs/own.md); `NAME_noisy` is NAME with --train_noisy 1", short="-ln",
        choices=KNOWN, convert=canonical,
    )  # fmt: skip
    root: str = flag("data", "folder of the data files", short="-rt", when=read_by_some("root"), identity=False)
    download: bool = flag(True, "download what is missing", short="-dl", when=read_by_some("download"), identity=False)
    verify_data: bool = flag(
        True,
        "insist on the published checksums; 0 loads other files of the same layout",
        when=read_by_some("verify_data"),
        identity=False,
    )
    test_size: float = flag(
        0.2, "share held out for testing", short="-ts", low=0.01, below=1,
        when=read_by_some("test_size"),
    )  # fmt: skip
    limit_classes: int | None = flag(None, "use only this many classes, the first of the data set's list; default: all", low=2)
    limit_train: int | None = flag(None, "use only this many training examples, class-balanced; default: all", low=1)
    limit_test: int | None = flag(None, "use only this many test examples, class-balanced; default: all", low=1)
    val_size: float = flag(0.0, "share of the training examples held out for validation, class-balanced", low=0, below=1)
    train_on: str = flag(
        "train", "examples trained on: all others, or those that --val_size holds out, while the others validate",
        choices=("train", "val"), when={"val_size": Above(0)},
    )  # fmt: skip
    split_seed: int = flag(
        0, "seed of every split and subset",
        when=(read_by_some("split_seed"), *({name: Above(0)} for name in ("limit_train", "limit_test", "val_size"))),
        always_counts=True,
    )  # fmt: skip
    augment: str = flag(
        "auto",
        "random crop and flip of training images; auto: those of CIFAR and Tiny ImageNet",
        choices=("auto", "none", "crop_flip"),
    )  # fmt: skip
    train_noisy: bool = flag(False, "corrupt the training labels", short="-tn")
    noise_method: str = flag("symmetric", "kind of label noise", short="-nm", choices=METHODS, when=NOISY)
    noise_ratio: float = flag(
        0.3, "share of corrupted labels (asymmetric: of the classes that have a confusion)", short="-nr", low=0, high=1,
        when=NOISY | {"noise_method": Readers("noise_ratio", METHODS)},
    )  # fmt: skip
    noise_seed: int = flag(0, "seed of the label noise: runs with other seeds see the same noise", when=NOISY)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = is_reference(self.loader_name)
        clean = self.loader_name if own else self.loader_name.removesuffix("_noisy")
        noisy = self.train_noisy or clean != self.loader_name
        self._set("train_noisy", noisy)
        self._set("loader_name", f"{clean}_noisy" if noisy and not own else clean)
        usual = "crop_flip" if self.spec.augmented else "none"
        if self.augment == usual:
            self._set("augment", "auto")
        published, leaves = self.published, self.spec.leaves
        if self.augment == "crop_flip" and published and len(published.input_shape) != 3:
            raise FlagError(NO_IMAGES.format(clean))
        if noisy and self.limit_classes and leaves and leaves(self.noise_method, self.limit_classes):
            noise = f"{self.noise_method} noise may give a label outside of the chosen classes"
            raise FlagError(f"--limit_classes {self.limit_classes}: {noise}")

    @property
    def label(self) -> str:
        """What run folders call it: `digits_noisy`, `my_data.load`."""
        return data_label(self.loader_name, noisy=self.train_noisy)

    @property
    def spec(self) -> DatasetSpec:
        return KNOWN[self.loader_name]

    @property
    def published(self) -> Published | None:
        """Sizes of the published files; None where they are not known."""
        published = self.spec.published
        return with_options(published, self)() if callable(published) else published

    @property
    def trains_on_held_out(self) -> bool:
        return self.train_on == "val" and self.val_size > 0

    @property
    def augmented(self) -> bool:
        return self.augment == "crop_flip" or (self.augment == "auto" and self.spec.augmented)


def data_label(loader_name: str, *, noisy: bool) -> str:
    return path_label(loader_name) + ("_noisy" if noisy and is_reference(loader_name) else "")


@functools.lru_cache(maxsize=1)
def load_dataset(config: DataConfig) -> Dataset:
    """The data set of a configuration, on the CPU.

    Classes, then subset, then validation split, then label noise: train and validation labels each carry the exact share of
    noise; test labels are clean.

    Raises:
        DataError: files missing or damaged, fewer examples than asked for.
    """
    source = read(config)
    if config.augmented and source.train_inputs.ndim != 4:
        raise FlagError(NO_IMAGES.format(config.spec.name))
    train = _split(source.train_inputs, source.train_labels)
    test = _split(source.test_inputs, source.test_labels)
    names = source.class_names[: config.limit_classes]
    if config.limit_classes:
        if config.limit_classes > len(names):
            raise DataError(f"--limit_classes {config.limit_classes}: the data set has only {len(names)} classes; give fewer")
        train = train.subset(train.labels < len(names))
        test = test.subset(test.labels < len(names))
    train = _limit(train, config.limit_train, "train", config.split_seed)
    test = _limit(test, config.limit_test, "test", config.split_seed)
    train, val = _with_validation(train, config)
    if config.train_noisy:
        train = _with_noise(train, source, config, "train", len(names))
        val = _with_noise(val, source, config, "val", len(names))
    if config.trains_on_held_out:
        train, val = val, train
    return Dataset(
        config.loader_name, train, val, test, names, source.scale, source.mean, source.std,
        augmented=config.augmented, fingerprint=source.fingerprint, noisy=config.train_noisy, padding=config.spec.padding,
    )  # fmt: skip


def read(config: DataConfig) -> Source:
    """The whole data set as its loader reads it. Raises DataError: files missing or damaged, or no data set comes of them."""
    with Task(f"reading {config.spec.name} under {config.root}"):
        source = with_options(reader_of(config), config)()
    try:
        if not isinstance(source, Source):
            raise ValueError(f"it has to be a Source, not {type(source).__name__}")
        source.check()
    except ValueError as error:
        raise DataError(f"what the loader of {config.spec.name} gives is no data set: {error}") from None
    return source


def reader_of(config: DataConfig) -> Callable[..., Source]:
    """The function that reads the files of a configuration; what it does not ask for does not change what it gives."""
    spec = config.spec
    return spec.load_noisy if config.train_noisy and spec.load_noisy else spec.load


PRINTS: dict[tuple, str | None] = {}  # of files that have been read, by the function and the flags that it reads


def fingerprint_of(config: DataConfig) -> str | None:
    """Content hash of data files that are not the published ones; None for those. Files are read once.

    Raises:
        DataError: files missing or damaged.
    """
    function = reader_of(config)
    key = (function, *options_of(function, config).items())
    if key not in PRINTS:
        PRINTS[key] = read(config).fingerprint
    return PRINTS[key]


def _split(inputs: torch.Tensor, labels: torch.Tensor) -> Split:
    return Split(large_on_demand(inputs), labels, labels, torch.arange(len(labels)))


def _limit(split: Split, limit: int | None, role: str, seed: int) -> Split:
    if limit is None:
        return split
    if limit > len(split):
        cure = f"give at most {len(split)}, or leave it out for all"
        raise DataError(f"--limit_{role} {limit}: the data set has only {len(split)} {role} examples; {cure}")
    return split.subset(balanced_rows(split.labels, limit, stream(seed, "limit", role))[0])


def _with_validation(train: Split, config: DataConfig) -> tuple[Split, Split]:
    """Training and validation split of the training examples. Raises DataError: one that is asked for is empty."""
    generator = stream(config.split_seed, "val")
    val_rows, train_rows = balanced_rows(train.labels, round(config.val_size * len(train)), generator)
    if len(train_rows) == 0 or (config.val_size and len(val_rows) == 0):
        counts = f"{len(train_rows)} training and {len(val_rows)} validation examples"
        raise DataError(f"--val_size {config.val_size} leaves {counts}; change it, or raise --limit_train")
    return train.subset(train_rows) if len(val_rows) else train, train.subset(val_rows)


def _with_noise(split: Split, source: Source, config: DataConfig, role: str, n_classes: int) -> Split:
    if config.noise_method == "human" and source.human_labels is None:
        having = ", ".join(spec.name for spec in DATASETS.values() if spec.human_labels)
        raise DataError(f"--noise_method human: people's labels exist here for {having} only")
    human = None if source.human_labels is None else source.human_labels[split.indices]
    noisy = corrupt(
        split.true_labels, config.noise_method, n_classes, stream(config.noise_seed, "noise", role),
        next_class=source.next_class, human_labels=human, **options_of(METHODS[config.noise_method], config),
    )  # fmt: skip
    return Split(split.inputs, noisy, split.true_labels, split.indices)


# ------------------------------------------------------------------------------------------- sizes without the files


@dataclass(frozen=True)
class Sizes:
    """Examples of every split, shape of one, classes."""

    train: int
    val: int
    test: int
    input_shape: tuple[int, ...]
    n_classes: int

    @classmethod
    def of(cls, dataset: Dataset) -> "Sizes":
        splits = (len(split) for split in (dataset.train, dataset.val, dataset.test))
        return cls(*splits, dataset.input_shape, dataset.n_classes)


def published_sizes(config: DataConfig) -> Sizes:
    """What `load_dataset` gives of the published files; with --limit_classes as if all classes had equally many examples.

    A data set of which no published sizes are known is loaded.
    """
    published = config.published
    if published is None:
        return Sizes.of(load_dataset(config))
    classes = min(config.limit_classes or published.n_classes, published.n_classes)
    train = math.ceil(published.train * classes / published.n_classes)
    test = math.ceil(published.test * classes / published.n_classes)
    train, test = min(train, config.limit_train or train), min(test, config.limit_test or test)
    val = round(config.val_size * train)
    val = train - val if config.trains_on_held_out else val
    return Sizes(train - val, val, test, published.input_shape, classes)

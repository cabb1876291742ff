"""Options, registry and builder of the data: `load_dataset(DataConfig) -> Dataset`."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from helper.progress import Task
from helper.schema.config import Above, Config, FlagError, flag
from helper.schema.registry import Readers, options_of, with_options
from helper.system.seeds import stream
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


@dataclass(frozen=True)
class Published:
    """How large a published data set is."""

    train: int
    test: int | None  # None: a share, --test_size, of the training examples is held out
    input_shape: tuple[int, ...]
    n_classes: int


@dataclass(frozen=True)
class Loader:
    """An entry of DATASETS, where the function that loads it does not say enough."""

    load: Callable[..., Source]  # its keyword-only parameters name the flags that it reads
    published: Published | None = None  # default: a dry run loads the data
    augmented: bool = False  # whether --augment auto crops and flips
    load_noisy: Callable[..., Source] | None = None  # with what label noise has to know beyond the clean files
    leaves: Callable[[str, int], bool] | None = None  # whether a noise method may give labels beyond the first so many classes

    @property
    def functions(self) -> tuple[Callable, ...]:
        return (self.load,) if self.load_noisy is None else (self.load, self.load_noisy)


DATASETS: dict[str, Loader | Callable] = {
    "digits": Loader(loader_digits.load, Published(1797, None, (1, 8, 8), 10)),
    "toy": Loader(loader_toy.load, Published(4096, None, (12,), 2)),
    "mnist": Loader(functools.partial(loader_mnist.load, loader_mnist.MNIST), Published(60_000, 10_000, (1, 28, 28), 10)),
    "fmnist": Loader(
        functools.partial(loader_mnist.load, loader_mnist.FASHION_MNIST), Published(60_000, 10_000, (1, 28, 28), 10)
    ),
    "cifar10": Loader(
        loader_cifar10.load, Published(50_000, 10_000, (3, 32, 32), 10), augmented=True, leaves=loader_cifar10.leaves
    ),
    "cifar100": Loader(
        loader_cifar100.load, Published(50_000, 10_000, (3, 32, 32), 100), augmented=True,
        load_noisy=loader_cifar100_noisy.load, leaves=loader_cifar100_noisy.leaves,
    ),
}  # fmt: skip
NOISY = {"train_noisy": (True,)}
NO_IMAGES = "--augment crop_flip: the {} set has no images to crop"


class WithNoise(Mapping):
    """A registry of data sets in which each is there as `NAME_noisy` as well."""

    def __init__(self, registry: Mapping[str, Loader | Callable]) -> None:
        self.registry = registry

    def __getitem__(self, name: str) -> Loader | Callable:
        return self.registry[name.removesuffix("_noisy")]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.registry, *(f"{name}_noisy" for name in self.registry)])

    def __len__(self) -> int:
        return 2 * len(self.registry)


class WithoutNoise(WithNoise):
    """The same data sets, of which only the plain names are told."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)


NAMES = WithNoise(DATASETS)


def read_by_some(name: str) -> dict[str, Readers]:
    """`when` of a flag that not all data sets read."""
    return {"loader_name": Readers(name, WithoutNoise(DATASETS))}


@dataclass(frozen=True)
class DataConfig(Config):
    """Data: which set, where, how much of it, and with which label noise."""

    loader_name: str = flag("digits", "data set; `NAME_noisy` is NAME with --train_noisy 1", short="-ln", choices=NAMES)
    root: str = flag("data", "folder of the data files", short="-rt", when=read_by_some("root"), identity=False)
    filename: str = flag(
        "var_u.mat", "file of the toy set under --root", short="-fn", when=read_by_some("filename"), identity=False
    )
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
    split_seed: int = flag(
        0, "seed of every split and subset",
        when=(read_by_some("split_seed"), *({name: Above(0)} for name in ("limit_train", "limit_test", "val_size"))),
        always_counts=True,
    )  # fmt: skip
    augment: str = flag(
        "auto", "random crop and flip of training images; auto: for CIFAR", choices=("auto", "none", "crop_flip")
    )
    train_noisy: bool = flag(False, "corrupt the training labels", short="-tn")
    noise_method: str = flag("symmetric", "kind of label noise", short="-nm", choices=METHODS, when=NOISY)
    noise_ratio: float = flag(
        0.3, "share of corrupted labels (asymmetric: of the classes that have a confusion)", short="-nr", low=0, high=1,
        when=NOISY | {"noise_method": Readers("noise_ratio", METHODS)},
    )  # fmt: skip
    noise_seed: int = flag(0, "seed of the label noise: runs with other seeds see the same noise", when=NOISY)

    def __post_init__(self) -> None:
        super().__post_init__()
        clean = self.loader_name.removesuffix("_noisy")
        noisy = self.train_noisy or clean != self.loader_name
        self._set("train_noisy", noisy)
        self._set("loader_name", f"{clean}_noisy" if noisy else clean)
        usual = "crop_flip" if self.loader.augmented else "none"
        if self.augment == usual:
            self._set("augment", "auto")
        published, leaves = self.loader.published, self.loader.leaves
        if self.augment == "crop_flip" and published and len(published.input_shape) != 3:
            raise FlagError(NO_IMAGES.format(clean))
        if noisy and self.limit_classes and leaves and leaves(self.noise_method, self.limit_classes):
            noise = f"{self.noise_method} noise may give a label outside of the chosen classes"
            raise FlagError(f"--limit_classes {self.limit_classes}: {noise}")

    @property
    def loader(self) -> Loader:
        entry = DATASETS[self.clean_name]
        return entry if isinstance(entry, Loader) else Loader(entry)

    @property
    def augmented(self) -> bool:
        return self.augment == "crop_flip" or (self.augment == "auto" and self.loader.augmented)

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
    if config.augmented and source.train_inputs.ndim != 4:
        raise FlagError(NO_IMAGES.format(config.clean_name))
    train = _split(source.train_inputs, source.train_labels)
    test = _split(source.test_inputs, source.test_labels)
    names = source.class_names[: config.limit_classes]
    if config.limit_classes:
        if config.limit_classes > len(names):
            raise DataError(f"--limit_classes {config.limit_classes}: the data set has only {len(names)} classes; give fewer")
        train, test = (split[split.labels < len(names)] for split in (train, test))
    train = _limit(train, config.limit_train, "train", config.split_seed)
    test = _limit(test, config.limit_test, "test", config.split_seed)
    generator = stream(config.split_seed, "val")
    val_rows, train_rows = balanced_rows(train.labels, round(config.val_size * len(train)), generator)
    val, train = train[val_rows], train[train_rows]
    if len(train) == 0 or (config.val_size and len(val) == 0):
        counts = f"{len(train)} training and {len(val)} validation examples"
        raise DataError(f"--val_size {config.val_size} leaves {counts}; change it, or raise --limit_train")
    if config.train_noisy:
        train, val = (_with_noise(s, source, config, name, len(names)) for s, name in ((train, "train"), (val, "val")))
    return Dataset(
        config.loader_name, train, val, test, names, source.scale, source.mean, source.std,
        augmented=config.augmented, fingerprint=source.fingerprint, noisy=config.train_noisy,
    )  # fmt: skip


def read(config: DataConfig) -> Source:
    """The whole data set as its loader reads it. Raises DataError: files missing or damaged."""
    with Task(f"reading {config.clean_name} under {config.root}"):
        return with_options(reader_of(config), config)()


def reader_of(config: DataConfig) -> Callable[..., Source]:
    """The function that reads the files of a configuration; what it does not ask for does not change what it gives."""
    loader = config.loader
    return loader.load_noisy if config.train_noisy and loader.load_noisy else loader.load


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
    return Split(inputs, labels, labels, torch.arange(len(labels)))


def _limit(split: Split, limit: int | None, role: str, seed: int) -> Split:
    if limit is None:
        return split
    if limit > len(split):
        cure = f"give at most {len(split)}, or leave it out for all"
        raise DataError(f"--limit_{role} {limit}: the data set has only {len(split)} {role} examples; {cure}")
    return split[balanced_rows(split.labels, limit, stream(seed, "limit", role))[0]]


def _with_noise(split: Split, source: Source, config: DataConfig, role: str, n_classes: int) -> Split:
    human = None if source.human_labels is None else source.human_labels[split.indices]
    noisy = corrupt(
        split.true_labels, config.noise_method, n_classes, stream(config.noise_seed, "noise", role),
        next_class=source.next_class, human_labels=human, **options_of(METHODS[config.noise_method], config),
    )  # fmt: skip
    return Split(split.inputs, noisy, split.true_labels, split.indices)

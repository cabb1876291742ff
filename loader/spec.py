"""What a data set says about itself, in its own file: everything that the rest of the program asks about it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loader.dataset import PADDING, Source


@dataclass(frozen=True)
class Published:
    """How large a data set is, as it was published."""

    train: int
    test: int
    input_shape: tuple[int, ...]
    n_classes: int


def held_out(n: int, test_size: float, input_shape: tuple[int, ...], n_classes: int) -> Published:
    """A data set of n examples without a test set of its own: a share of them is held out."""
    test = round(test_size * n)
    return Published(n - test, test, input_shape, n_classes)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. Of its functions, the keyword-only parameters name the flags that they read.

    Attributes:
        name: on the command line and in folder names.
        load: gives its examples, with how to normalise them and what its classes are called.
        published: its sizes, or a function that gives them; None: a dry run loads the data.
        flags: a class whose fields are flags that no other data set reads.
        augmented: whether `--augment auto` crops and flips its images.
        padding: pixels by which that shifts an image at most.
        load_noisy: `load` with what some kind of label noise has to know beyond the clean files.
        leaves: whether a kind of noise may give labels beyond the first so many classes.
        human_labels: whether people's labels are among what `load_noisy` gives.
        make_small: writes a few made-up examples in the layout of its files under a folder; None: it needs no files.
    """

    name: str
    load: Callable[..., Source]
    published: Published | Callable[..., Published] | None = None
    flags: type | None = None
    augmented: bool = False
    padding: int = PADDING
    load_noisy: Callable[..., Source] | None = None
    leaves: Callable[[str, int], bool] | None = None
    human_labels: bool = False
    make_small: Callable[[Path], None] | None = None

    @property
    def functions(self) -> tuple[Callable, ...]:
        """Those that read flags."""
        return tuple(function for function in (self.load, self.load_noisy, self.published) if callable(function))


class WithNoise(Mapping):
    """A registry of data sets in which each is there as `NAME_noisy` as well."""

    def __init__(self, registry: Mapping[str, DatasetSpec]) -> None:
        self.registry = registry

    def __getitem__(self, name: str) -> DatasetSpec:
        return self.registry[name.removesuffix("_noisy")]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.registry, *(f"{name}_noisy" for name in self.registry)])

    def __len__(self) -> int:
        return 2 * len(self.registry)


class WithoutNoise(WithNoise):
    """The same data sets, of which only the plain names are told."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

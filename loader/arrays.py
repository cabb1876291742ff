"""Arrays of a user's own -> a `Source`: kinds of numbers, layout, classes and normalisation are found out."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from helper.processes.interruption import checking_signals
from helper.system.seeds import stream
from helper.untrusted.texts import one_line
from loader import on_demand
from loader.archives import DataError
from loader.dataset import Source
from loader.on_demand import OnDemand, large_on_demand, mapping_of, pieces, rows_at_once, subset
from loader.splits import balanced_rows

log = logging.getLogger(__name__)
CHANNELS = (1, 3, 4)  # that a last dimension may be
LOOKED_AT = 10_000  # training examples, evenly spread, from which mean and standard deviation come
NAMES = ("x_train", "y_train", "x_test", "y_test")
Inputs = Tensor | OnDemand


@dataclass(frozen=True)
class Labelled:
    """Inputs and int64 labels of one role."""

    inputs: Inputs
    labels: Tensor

    def subset(self, rows: Tensor) -> "Labelled":
        return Labelled(subset(self.inputs, rows), self.labels[rows])


def source_of(arrays: Mapping[str, Any], where: str, fingerprint: str | None, *, test_size: float, split_seed: int) -> Source:
    """A data set of the arrays x_train, y_train, x_test, y_test, and `class_names` where they are there.

    Args:
        arrays: NumPy arrays or tensors; without those for testing a share is held out, class-balanced.
        where: of what, for messages. fingerprint: content hash; None: made here of the arrays.
    Raises:
        DataError: they are no data set; one line says which and why.
    """
    missing = [name for name in NAMES[:2] if name not in arrays] or (
        [name for name in NAMES[2:] if name not in arrays] if set(NAMES[2:]) & set(arrays) else []
    )
    if missing:
        raise DataError(f"{where} has no {missing[0]}, but {', '.join(map(one_line, arrays)) or 'nothing'}")
    names, labels = labels_of(arrays, where)
    inputs = {name: inputs_of(arrays[name], f"{where}: {name}") for name in NAMES[::2] if name in arrays}
    for x, y in (NAMES[:2], NAMES[2:]):
        if x in inputs and len(inputs[x]) != len(labels[y]):
            raise DataError(f"{where}: {x} has {len(inputs[x])} rows and {y} {len(labels[y])}")
    train = Labelled(inputs["x_train"], labels["y_train"])
    if "x_test" in inputs:
        test = Labelled(inputs["x_test"], labels["y_test"])
        if test.inputs.shape[1:] != train.inputs.shape[1:]:
            shapes = [tuple(inputs[name].shape[1:]) for name in ("x_train", "x_test")]
            raise DataError(f"{where}: x_train has rows of {shapes[0]} and x_test of {shapes[1]}")
    else:
        train, test = held_out(train, test_size, split_seed)
    check_classes(train, test, names, where)
    return described(train, test, names, fingerprint)


def described(train: Labelled, test: Labelled, names: Sequence[str], fingerprint: str | None) -> Source:
    """The source of two roles, with mean and standard deviation of its training examples."""
    scale, mean, std = normalisation(train.inputs)
    source = Source(train.inputs, train.labels, test.inputs, test.labels, tuple(names), scale, mean, std)
    return with_fingerprint(source, fingerprint or content_of(source))


def with_fingerprint(source: Source, fingerprint: str) -> Source:
    return replace(source, fingerprint=fingerprint)


def held_out(all_of_them: Labelled, test_size: float, split_seed: int) -> tuple[Labelled, Labelled]:
    """(training, test): a class-balanced share is for testing."""
    n = round(test_size * len(all_of_them.labels))
    test, train = balanced_rows(all_of_them.labels, n, stream(split_seed, "test"))
    return all_of_them.subset(train), all_of_them.subset(test)


# ------------------------------------------------------------------------------------------------------------ inputs


def inputs_of(array: Any, what: str) -> Inputs:
    """(N, ...) inputs, uint8 where they are bytes and float32 else; images with their channels in front.

    Raises:
        DataError: no numbers, no rows, or some that are not finite.
    """
    array = as_tensor(array, what)
    if isinstance(array, OnDemand):
        return with_channels(array)
    if array.ndim < 2 or not array.numel():
        raise DataError(f"{what} has to have rows of some size, not the shape {tuple(array.shape)}")
    if array.dtype == torch.bool or (
        not (array.is_floating_point() or array.dtype == torch.uint8) and array.min() >= 0 and array.max() <= 255
    ):
        array = array.to(torch.uint8)
    if array.dtype != torch.uint8:
        array = array.to(torch.float32)
        if not torch.isfinite(array).all():
            raise DataError(f"{what} has values that are NaN or infinite")
    return with_channels(large_on_demand(array))


def as_tensor(array: Any, what: str) -> Inputs:
    """A tensor of an array's numbers; of a large one that lies in a file its rows on demand."""
    if isinstance(array, Tensor):
        return array.detach().cpu()
    if not isinstance(array, numpy.ndarray):
        raise DataError(f"{what} has to be an array or a tensor, not a {type(array).__name__}")
    if array.dtype.kind not in "buif":
        raise DataError(f"{what} has to hold numbers, not {array.dtype}")
    mapping = mapping_of(array) if array.nbytes > on_demand.IN_MEMORY else None
    if mapping is None:
        native = array.dtype.newbyteorder("=")
        whole = numpy.array(array, native) if mapping_of(array) else numpy.ascontiguousarray(array, native)
        return from_numpy(whole)
    if array.ndim < 2 or array.dtype.kind not in "uf" or not array.dtype.isnative:
        raise DataError(f"{what} is too large to be converted: it has to be bytes or floating-point numbers of this machine")
    return OnDemand(from_numpy(array), dtype=torch.uint8 if array.dtype == numpy.uint8 else torch.float32, mapping=mapping)


def from_numpy(array: numpy.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write to it, which nobody does
        return torch.from_numpy(array)


def with_channels(inputs: Inputs) -> Inputs:
    """Images (N, H, W) of bytes and (N, H, W, C) as (N, C, H, W); anything else as it is."""
    shape = inputs.shape
    if len(shape) == 3 and inputs.dtype == torch.uint8:
        lazy = isinstance(inputs, OnDemand)
        return replace(inputs, source=inputs.source.unsqueeze(1)) if lazy else inputs.unsqueeze(1)
    if len(shape) == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS:
        return with_channels_behind(inputs)
    return inputs


def with_channels_behind(inputs: Inputs) -> Inputs:
    """Images that are stored (N, H, W, C) as (N, C, H, W)."""
    if isinstance(inputs, OnDemand):
        return replace(inputs, channels_behind=True)
    return inputs.permute(0, 3, 1, 2).contiguous()


def normalisation(inputs: Inputs) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(scale, mean, std) with which a network sees numbers around 0: of each channel of images, of all values else."""
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), LOOKED_AT), dtype=torch.float64).round().long()
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    n, total, squares = 0, 0.0, 0.0
    for part in checking_signals(subset_pieces(inputs, rows)):
        values = part.double() / scale
        values = values.transpose(0, 1).flatten(1) if values.ndim == 4 else values.flatten()[None]
        n, total, squares = n + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6 * (mean.abs() + 1e-6), std, 1.0)
    return scale, tuple(round(value, 6) for value in mean.tolist()), tuple(round(value, 6) for value in std.tolist())


def subset_pieces(inputs: Inputs, rows: Tensor) -> Iterator[Tensor]:
    for part in rows.split(rows_at_once(inputs)):
        yield inputs[part]


def content_of(source: Source) -> str:
    """Hash over everything of a source that decides what a network is trained and tested on."""
    found = hashlib.sha256(repr((source.class_names, source.scale, source.mean, source.std)).encode())
    for name in ("train_inputs", "train_labels", "test_inputs", "test_labels", "next_class", "human_labels"):
        tensor = getattr(source, name)
        found.update(repr((name, None if tensor is None else (tuple(tensor.shape), str(tensor.dtype)))).encode())
        for part in checking_signals(pieces(tensor) if tensor is not None else ()):
            found.update(part.contiguous().numpy())
    return found.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ labels


def labels_of(arrays: Mapping[str, Any], where: str) -> tuple[list[str], dict[str, Tensor]]:
    """(names of the classes, {y_train: (N,) int64, ...}): numbers count the classes from 0, texts are their names.

    Raises:
        DataError: something else, or a number that is no class of the training examples.
    """
    found = {name: flat(arrays[name], f"{where}: {name}") for name in NAMES[1::2] if name in arrays}
    if all(labels.dtype.kind in "US" for labels in found.values()):
        texts = {name: labels.astype(str) for name, labels in found.items()}
        names = sorted(set(texts["y_train"]))
        for name, labels in texts.items():
            strange = sorted(set(labels) - set(names))
            if strange:
                raise DataError(f"{where}: {name} has the label {one_line(strange[0], 100)}, which no training example has")
        return [one_line(name, 100) for name in names], {
            name: torch.from_numpy(numpy.searchsorted(names, labels)) for name, labels in texts.items()
        }
    whole = {name: numbers_of(labels, f"{where}: {name}") for name, labels in found.items()}
    names = names_of(arrays.get("class_names"), whole["y_train"], where)
    for name, labels in whole.items():
        outside = labels[(labels < 0) | (labels >= len(names))]
        if len(outside):
            raise DataError(f"{where}: {name} has the label {outside[0]}, which is outside of 0 to {len(names) - 1}")
    return names, whole


def flat(array: Any, what: str) -> numpy.ndarray:
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if not isinstance(array, numpy.ndarray):
        raise DataError(f"{what} has to be an array or a tensor, not a {type(array).__name__}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        raise DataError(f"{what} has to be one label for each row, not the shape {array.shape}")
    return array


def numbers_of(labels: numpy.ndarray, what: str) -> Tensor:
    if labels.dtype.kind not in "buif" or not (numpy.isfinite(labels).all() and (labels == numpy.floor(labels)).all()):
        raise DataError(f"{what} has to be whole numbers, or names of classes, not {labels.dtype}")
    return torch.from_numpy(labels.astype(numpy.int64))


def names_of(given: Any, train: Tensor, where: str) -> list[str]:
    """Names of the classes: those given, or their numbers."""
    if given is None:
        return [str(number) for number in range(int(train.max()) + 1)]
    given = list(given)
    if not all(isinstance(name, str) for name in given):
        raise DataError(f"{where}: class_names have to be texts")
    return [one_line(name, 100) for name in given]


def check_classes(train: Labelled, test: Labelled, names: Sequence[str], where: str) -> None:
    """Raise DataError for fewer than two classes, or one without a training example, or nothing to test on."""
    if len(names) < 2:
        raise DataError(f"{where} has one class, {names[0]}: there is nothing to tell apart")
    counts = torch.bincount(train.labels, minlength=len(names))
    if not counts.all():
        empty = names[int((counts == 0).nonzero()[0])]
        raise DataError(f"{where}: no training example is of class {empty}; classes are counted from 0, without gaps")
    if not len(test.labels):
        raise DataError(f"{where} has nothing to test on: raise --test_size")

"""A data set as tensors in memory, or as rows on demand: what the loaders give, and what training and measuring take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.processes.group import rank, world_size
from loader.on_demand import OnDemand, subset

PADDING = 4  # pixels by which an image is shifted at most, unless its data set says otherwise


@dataclass(frozen=True)
class Source:
    """What a loader reads: a published data set before subsets, splits and label noise.

    `inputs` are uint8 or float32, (N, C, H, W) images, (N, D) vectors or (N, ...) of another form, as a whole or `OnDemand`; a
    network sees `(inputs / scale - mean) / std`.
    """

    train_inputs: Tensor | OnDemand
    train_labels: Tensor
    test_inputs: Tensor | OnDemand
    test_labels: Tensor
    class_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    next_class: Tensor | None = None  # (classes,) where asymmetric noise sends a class, itself for none
    human_labels: Tensor | None = None  # (N,) labels that people gave to the training examples
    fingerprint: str | None = None  # content hash of files that are not the published ones

    def check(self) -> None:
        """Raise ValueError, in the words of whoever writes a loader, where something is not as it is said above."""
        for role in ("train", "test"):
            inputs, labels = getattr(self, f"{role}_inputs"), getattr(self, f"{role}_labels")
            numbers = isinstance(inputs, Tensor | OnDemand) and inputs.dtype in (torch.uint8, torch.float32)
            if not (numbers and inputs.ndim >= 2):
                form = "a uint8 or float32 tensor of (N, C, H, W), (N, D) or (N, ...)"
                raise ValueError(f"{role}_inputs has to be {form}, not {described(inputs)}")
            if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == inputs.shape[:1]):
                raise ValueError(f"{role}_labels has to be an int64 tensor of ({len(inputs)},), not {described(labels)}")
            for name, values in (("mean", self.mean), ("std", self.std)):
                if not isinstance(values, tuple | list):
                    raise ValueError(f"{name} has to be a tuple of one number or of one for each channel, not {values!r}")
                if len(values) not in (1, inputs.shape[1] if inputs.ndim in (2, 4) else 1):
                    raise ValueError(f"{name} has {len(values)} values for {inputs.shape[1]} channels of {role}_inputs")
            if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.class_names)):
                found = f"{role}_labels has classes from {labels.min()} to {labels.max()}"
                raise ValueError(f"{found}, but class_names has {len(self.class_names)}, which are counted from 0")


def described(value: object) -> str:
    """What kind of array something is."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"a {type(value).__name__} of {tuple(shape)}, {dtype}"


@dataclass(frozen=True)
class Split:
    """Examples of one role. `labels` are the given ones; `true_labels` differ from them under label noise."""

    inputs: Tensor | OnDemand  # (N, ...) uint8 or float32
    labels: Tensor  # (N,) int64
    true_labels: Tensor  # (N,) int64
    indices: Tensor  # (N,) positions in the published file

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Split":
        return Split(*(taken(tensor, rows) for tensor in (self.inputs, self.labels, self.true_labels, self.indices)))

    def subset(self, rows: Tensor) -> "Split":
        """Some rows, or those where a bool tensor is True; inputs on demand stay so, where `[]` takes them into memory."""
        others = (taken(tensor, rows) for tensor in (self.labels, self.true_labels, self.indices))
        return Split(subset(self.inputs, rows), *others)

    def to(self, device: torch.device) -> "Split":
        return Split(*(t.to(device) for t in (self.inputs, self.labels, self.true_labels, self.indices)))

    @property
    def noisy(self) -> Tensor:
        """(N,) bool: the given label is not the true one."""
        return self.labels != self.true_labels


@dataclass(frozen=True)
class Dataset:
    """Train, validation (maybe empty) and test split of one data set, with how to normalise its inputs."""

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmented: bool
    fingerprint: str | None = None
    noisy: bool = False
    padding: int = PADDING  # of the crops, where it is augmented
    channels_last: bool = True  # layout of the images that a network sees
    _affine: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        shape = (-1, 1, 1) if self.train.inputs.ndim == 4 else (-1,)
        device = self.train.inputs.device
        pair = ((1 / (self.scale * std)).float(), (-mean / std).float())
        object.__setattr__(self, "_affine", tuple(t.view(shape).to(device) for t in pair))

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))

    @property
    def on_demand(self) -> bool:
        """Whether its training examples are too large for memory."""
        return isinstance(self.train.inputs, OnDemand)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    def normalise(self, inputs: Tensor) -> Tensor:
        """uint8 inputs -> the float32 inputs a network sees, images in its layout."""
        scale, shift = self._affine
        if inputs.ndim == 4 and not self.channels_last:
            inputs = inputs.contiguous()  # augmented ones are not
        elif inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(shift, inputs.float(), scale)

    def examples(self, split: Split) -> "NormalisedInputs":
        """The inputs of a split as a network sees them, normalised when they are taken."""
        return NormalisedInputs(self, split)

    def batches(self, split: Split, batch_size: int, order: Tensor | None = None, *, own: bool = False) -> "Batches":
        """(normalised inputs, given labels, true labels) of a split, un-augmented, in its own or a given order.

        Args:
            own: of several processes each gets every K-th batch.
        """
        order = torch.arange(len(split)) if order is None else order
        first, every = (rank(), world_size()) if own else (0, 1)
        return Batches(self, split, order.split(batch_size)[first::every])


@dataclass(frozen=True)
class Batches:
    """(normalised inputs, given labels, true labels) of some rows of a split after others, each made when it is taken."""

    dataset: Dataset
    split: Split
    rows: Sequence[Tensor]  # on the CPU: cut from a tensor on XLA every one would be a graph of its own

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in self.rows:
            batch = self.split[rows.to(self.split.labels.device)]
            yield self.dataset.normalise(batch.inputs), batch.labels, batch.true_labels


@dataclass(frozen=True)
class NormalisedInputs:
    """Like the (N, ...) float32 tensor of a split's normalised inputs, but in memory only as uint8."""

    dataset: Dataset
    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.dataset.normalise(taken(self.split.inputs, rows))


def taken(tensor: Tensor | OnDemand, rows: Tensor | slice) -> Tensor:
    """Some of a tensor's rows, in memory."""
    if isinstance(rows, slice) or rows.dtype == torch.bool:
        return tensor[rows]
    return tensor.index_select(0, rows.to(tensor.device))  # several times as fast


def draw_crops(n: int, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """(3, n) shifts down and to the right, from 0 to 2 padding, and whether an image is mirrored, for `crop_and_flip`.

    Drawn on the CPU, so every device augments alike.
    """
    shifts = torch.randint(2 * padding + 1, (2, n), generator=generator)
    return torch.cat([shifts, torch.randint(2, (1, n), generator=generator, dtype=torch.bool)])


def crop_and_flip(images: Tensor, draws: Tensor, padding: int = PADDING) -> Tensor:
    """Each image shifted by -padding..padding pixels a side (zeros come in) and mirrored with probability 1/2.

    The same distribution per image as torchvision's RandomCrop(size, padding) followed by RandomHorizontalFlip.

    Args:
        images: (N, C, H, W), any dtype. draws: (3, N) of `draw_crops` for the same padding.
    """
    n, _, height, width = images.shape
    top, left, flip = draws.to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    # pixels gathered with their channels together: the result is channels-last, as convolutions like it
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1).contiguous()
    first = torch.arange(n, device=images.device)[:, None] * padded.shape[1]
    pixels = ((first + rows) * padded.shape[2])[:, :, None] + columns[:, None, :]
    chosen = padded.flatten(0, 2).index_select(0, pixels.flatten())
    return chosen.unflatten(0, (n, height, width)).permute(0, 3, 1, 2)

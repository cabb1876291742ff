"""The examples of a training step: which of them are this process's, and what the network sees of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.processes.sharing import own_share
from helper.system.seeds import stream
from loader.dataset import Dataset, Split, crop_and_flip, draw_crops
from optim.subsets.main import Subset


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    Attributes:
        examples: this process's share, with images as they are stored. inputs: the same, augmented, normalised and mixed.
        epoch, step: of the training, counted from 0.
        n: examples of all processes. own: which of these are this one's.
        generator: of the step's random numbers, the augmentation's already drawn; the same in every process.
        rows: of the training split, of all processes.
        partners: examples with which they are mixed. share: of every input that is its own example's, see `optim.mixing`.
            None where nothing is mixed.
    """

    examples: Split
    inputs: Tensor
    epoch: int
    step: int
    n: int
    own: slice
    generator: torch.Generator
    rows: Tensor
    partners: Split | None = None
    share: Tensor | None = None


def steps_per_epoch(n_examples: int, batch_size: int) -> int:
    """The last step of an epoch may have fewer examples."""
    return -(-n_examples // batch_size)


def batches_with_statistics(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches for BatchNorm to take its statistics of: a single example that is left over goes into the one before."""
    batches = list(rows.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass(frozen=True)
class Pool:
    """The examples of which a step may choose some; `pool[places]` are inputs as the step would train on them."""

    drawing: "Drawing"
    rows: Tensor
    crops: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Tensor) -> Tensor:
        examples = self.drawing.dataset.train[self.rows[places.to(self.rows.device)]]
        return self.drawing.seen(examples, self.crops, places.cpu())

    @property
    def labels(self) -> Tensor:
        return self.drawing.dataset.train.labels[self.rows]


@dataclass(frozen=True)
class Drawing:
    """Makes batches; what chance decides in one comes from streams named by seed, epoch and step.

    Attributes:
        subset: which examples steps and epochs have; None: all.
        mix: of `optim.mixing.MIXES`, with its options.
    """

    dataset: Dataset
    seed: int
    subset: Subset | None = None
    mix: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None

    @property
    def reads_network(self) -> bool:
        """Whether a batch depends on the weights that its step begins with."""
        return self.subset is not None and self.subset.reads_network

    def rows(self, epoch: int, batch_size: int) -> Sequence[Tensor]:
        """Of the training split, for each step of an epoch."""
        order = torch.randperm(len(self.dataset.train), generator=stream(self.seed, "order", epoch))
        return order.split(batch_size) if self.subset is None else self.subset.batches(order, epoch, batch_size)

    def n_of_steps(self, epoch: int, batch_size: int) -> int:
        """How many examples an epoch's first step trains on, as all do but a short last one; a subset's, up to one more."""
        pool = len(self.rows(epoch, batch_size)[0])
        return pool if self.subset is None else self.subset.n_taken(pool)

    def batch(self, epoch: int, step: int, rows: Tensor, choose: Callable[[Pool], Tensor] | None = None) -> Batch:
        """Of rows of the training split, which all processes have.

        Args:
            choose: gives the places of those that are taken, see `Subset.places`; default: all.
        """
        generator = stream(self.seed, "step", epoch, step)
        crops = draw_crops(len(rows), generator, self.dataset.padding) if self.dataset.augmented else None
        if choose is not None:
            places = choose(Pool(self, rows, crops))
            rows, crops = rows[places.to(rows.device)], crops if crops is None else crops[:, places]
        own = own_share(len(rows))
        examples = self.dataset.train[rows[own]]
        inputs = self.seen(examples, crops, own)
        if self.mix is None:
            return Batch(examples, inputs, epoch, step, len(rows), own, generator, rows)
        mixing = stream(self.seed, "mix", epoch, step)
        theirs = torch.randperm(len(rows), generator=mixing)[own]
        partners = self.dataset.train[rows[theirs.to(rows.device)]]
        mixed, share = self.mix(inputs, self.seen(partners, crops, theirs), mixing)
        return Batch(examples, mixed, epoch, step, len(rows), own, generator, rows, partners, share)

    def seen(self, examples: Split, crops: Tensor | None, places: slice | Tensor) -> Tensor:
        """Inputs of examples, normalised.

        Args:
            crops: of the whole batch, in which the examples have these places; None: there is no augmentation.
        """
        images = examples.inputs
        if crops is not None:
            images = crop_and_flip(images, crops[:, places], self.dataset.padding)
        return self.dataset.normalise(images)

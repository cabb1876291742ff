"""The examples of a training step: which of them are this process's, and what the network sees of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.processes.sharing import own_share
from helper.system.seeds import stream
from loader.dataset import Dataset, Split, crop_and_flip, draw_crops


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    Attributes:
        examples: this process's share, with images as they are stored. inputs: the same, augmented, normalised and mixed.
        epoch, step: of the training, counted from 0.
        n: examples of all processes. own: which of these are this one's.
        generator: of the step's random numbers, the augmentation's already drawn; the same in every process.
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
    partners: Split | None = None
    share: Tensor | None = None


@dataclass(frozen=True)
class Drawing:
    """Makes batches; what chance decides in one comes from streams named by seed, epoch and step.

    Attributes:
        mix: of `optim.mixing.MIXES`, with its options.
    """

    dataset: Dataset
    seed: int
    mix: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None

    def batch(self, epoch: int, step: int, rows: Tensor) -> Batch:
        """Of rows of the training split, which all processes have."""
        own, generator = own_share(len(rows)), stream(self.seed, "step", epoch, step)
        crops = draw_crops(len(rows), generator, self.dataset.padding) if self.dataset.augmented else None
        examples = self.dataset.train[rows[own]]
        inputs = self.seen(examples, crops, own)
        if self.mix is None:
            return Batch(examples, inputs, epoch, step, len(rows), own, generator)
        mixing = stream(self.seed, "mix", epoch, step)
        theirs = torch.randperm(len(rows), generator=mixing)[own]
        partners = self.dataset.train[rows[theirs.to(rows.device)]]
        mixed, share = self.mix(inputs, self.seen(partners, crops, theirs), mixing)
        return Batch(examples, mixed, epoch, step, len(rows), own, generator, partners, share)

    def seen(self, examples: Split, crops: Tensor | None, places: slice | Tensor) -> Tensor:
        """Inputs of examples, normalised.

        Args:
            crops: of the whole batch, in which the examples have these places; None: there is no augmentation.
        """
        images = examples.inputs
        if crops is not None:
            images = crop_and_flip(images, crops[:, places], self.dataset.padding)
        return self.dataset.normalise(images)

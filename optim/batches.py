"""The examples of a training step: which of them are this process's, and what the network sees of them."""

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
        examples: this process's share, with images as they are stored. inputs: the same, augmented and normalised.
        n: examples of all processes. own: which of these are this one's.
        generator: of the step's random numbers, the augmentation's already drawn; the same in every process.
    """

    examples: Split
    inputs: Tensor
    n: int
    own: slice
    generator: torch.Generator


@dataclass(frozen=True)
class Drawing:
    """Makes batches; what chance decides in one comes from streams named by seed, epoch and step."""

    dataset: Dataset
    seed: int

    def batch(self, epoch: int, step: int, rows: Tensor) -> Batch:
        """Of rows of the training split, which all processes have."""
        own, generator = own_share(len(rows)), stream(self.seed, "step", epoch, step)
        examples = self.dataset.train[rows[own]]
        images = examples.inputs
        if self.dataset.augmented:
            padding = self.dataset.padding
            images = crop_and_flip(images, draw_crops(len(rows), generator, padding)[:, own], padding)
        return Batch(examples, self.dataset.normalise(images), len(rows), own, generator)

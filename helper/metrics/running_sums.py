"""What a pass over examples adds up, batch by batch."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class RunningSums:
    """Sums over examples, each a tensor without dimensions; they add up over batches of any size and over processes.

    Attributes:
        examples: how many. loss: nats. correct: predictions that are the given label. entropy: of the predictions, nats.
    """

    examples: Tensor
    loss: Tensor
    correct: Tensor
    entropy: Tensor

    def __add__(self, other: "RunningSums") -> "RunningSums":
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to(self, device: torch.device | str) -> "RunningSums":
        return type(self)(*(getattr(self, f.name).to(device) for f in fields(self)))

    def packed(self) -> Tensor:
        """All of them in one vector, as they travel between processes and into files."""
        return torch.stack([getattr(self, f.name) for f in fields(self)])

    def means(self) -> dict[str, float]:
        """{loss, acc, entropy}, per example."""
        n = self.examples.item()
        return {"loss": self.loss.item() / n, "acc": self.correct.item() / n, "entropy": self.entropy.item() / n}

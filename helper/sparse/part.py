"""What chains of a sparse view are made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from helper.sparse.drafts import Draft, Given

Reads = tuple[int | None, ...]


class Part(nn.Module, ABC):
    """A step of a chain.

    Attributes:
        n_outputs: of which some may not be there.
    """

    n_outputs = 1

    @abstractmethod
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weight and bias of its layer, and of its norm."""

    @abstractmethod
    def finds_for(self) -> nn.Module | None:
        """The norm for which it finds statistics, if there is one."""

    def passed_on(self, output: int) -> int | None:
        """Which of what it reads an output is, once more; None: it is a new value."""
        return None

    @abstractmethod
    def key(self) -> tuple[Any, ...]:
        """What decides, beside shapes and types of inputs and tensors, how its passes are made."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where it cannot be given such inputs."""

    @abstractmethod
    def passes(self, draft: Draft, given: Given, places: Sequence[Any], *, keep: bool) -> Any:
        """`LayerPass` or `NormPass`, whose forward pass is added to the draft.

        Args:
            places: make room for each output, of a shape. keep: whether there will be a backward pass.
        """


@dataclass(frozen=True)
class Steps:
    """Parts that follow each other, and what they give. Values are numbered: inputs, and then the outputs of each part.

    Attributes:
        parts: (part, numbers of what it reads; None for what it is not given).
        outputs: numbers of what is given.
    """

    parts: tuple[tuple[Part, Reads], ...]
    n_inputs: int
    outputs: tuple[int, ...]

    @cached_property
    def new(self) -> list[int]:
        """Of each number, the one under which its value is new."""
        found = list(range(self.n_inputs))
        for part, reads in self.parts:
            for output in range(part.n_outputs):
                source = part.passed_on(output)
                found.append(len(found) if source is None else found[reads[source]])
        return found

    @property
    def new_outputs(self) -> list[int]:
        return [self.new[number] for number in self.outputs]

"""When a mask changes and by how much, as functions of the completed steps alone: a resumed run needs no state for it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The steps between which a mask changes, counted from the start of training.

    Attributes:
        begin, end: completed steps at the first and at the last change.
        every: steps from one change to the next.
    """

    begin: int
    end: int
    every: int

    def has(self, step: int) -> bool:
        """Whether there is a change after so many steps; at the end there is one even if fewer than `every` lie before it."""
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)

    def changes(self) -> list[int]:
        """Completed steps at every change."""
        return [*range(self.begin, self.end, self.every), self.end]

    def progress(self, step: int) -> float:
        """From 0 before the first change to 1 at the last."""
        if step >= self.end:
            return 1.0
        return (step - self.begin) / (self.end - self.begin) if step > self.begin else 0.0


def cubic(step: int, span: Span, final: float) -> float:
    """Share of the weights that is pruned (Zhu & Gupta 2017): s (1 - (1 - t)³), fast at first; exactly s at the end."""
    return final * (1 - (1 - span.progress(step)) ** 3) if span.progress(step) < 1 else final


def alternating(step: int, span: Span, final: float) -> float:
    """Share of the weights that is pruned (AC/DC, Peste et al. 2021): all of s, nothing, all of s, ...; s from the end on."""
    if step >= span.end:
        return final
    return final if step >= span.begin and (step - span.begin) // span.every % 2 == 0 else 0.0


def constant(step: int, span: Span, final: float) -> float:
    """The same share is pruned from the first step on."""
    return final


def cosine_drop(step: int, span: Span, fraction: float) -> float:
    """Share of a layer's active weights that is replaced (Evci et al. 2020): a/2 (1 + cos(pi t)), 0 from the end on.

    Before the first step nothing is: no weight has been trained yet.
    """
    if step == 0 or step >= span.end:
        return 0.0
    return fraction / 2 * (1 + math.cos(math.pi * step / span.end))


def nothing(step: int, span: Span, fraction: float) -> float:
    """No weight is replaced."""
    return 0.0

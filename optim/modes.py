"""What a mode is: the weights that a run starts from, where its mask comes from, and what changes the mask while it trains.

Everything that differs between modes is said here once. Nothing else asks for a mode's name: flags, identity, reports and
figures ask its `ModeSpec`. Another mode is another line in `MODES`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from helper.mask import Mask


class Beginning(Protocol):
    """What a mode may ask for when a run begins. Every call returns a network of its own, on the CPU."""

    def fresh(self, stream: str) -> nn.Module:
        """A network whose weights are drawn from the random stream of that name."""

    def dense_solution(self) -> nn.Module:
        """The dense parent after training, Sol-D. RuntimeError: its weights are missing, damaged or do not fit."""

    def dense_initialisation(self) -> nn.Module:
        """The dense parent before training, Init-D. RuntimeError: as above."""

    def pruned(self, network: nn.Module) -> Mask:
        """The mask that the pruning flags make of a network's weights, which are left as they are."""


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from.

    Attributes:
        make: returns them.
        of_parent: whether they are the dense parent's.
        trained: whether they have been trained before, so that the run goes on with someone else's training.
    """

    make: Callable[[Beginning], nn.Module]
    of_parent: bool = False
    trained: bool = False


@dataclass(frozen=True)
class MaskSource:
    """Where a run's first mask comes from.

    Attributes:
        make: returns it, for the network that the run starts from.
        of_parent: whether it is made from the dense parent's weights.
    """

    make: Callable[[Beginning, nn.Module], Mask]
    of_parent: bool = False


@dataclass(frozen=True)
class ModeSpec:
    """One mode.

    Attributes:
        label: in legends.
        colour, marker, line: how figures draw it, as Matplotlib names them.
        starts_from: the weights.
        mask_from: the mask; None: every weight is active.
        updater: makes, of the run's configuration, the callback that changes the mask during training; None: it stays.
    """

    label: str
    colour: str
    marker: str
    line: str
    starts_from: Start
    mask_from: MaskSource | None = None
    updater: Callable[[Any], Any] | None = None

    @property
    def has_mask(self) -> bool:
        return self.mask_from is not None

    @property
    def needs_parent(self) -> bool:
        """Whether a dense run has to be finished before a run of this mode begins."""
        return self.starts_from.of_parent or (self.mask_from is not None and self.mask_from.of_parent)

    @property
    def rewinds(self) -> bool:
        """Whether it starts from the weights with which its dense parent began."""
        return self.starts_from.of_parent and not self.starts_from.trained

    def start(self, beginning: Beginning) -> tuple[nn.Module, Mask]:
        """Network and mask with which a run begins; pruned weights are zero."""
        network = self.starts_from.make(beginning)
        mask = Mask() if self.mask_from is None else self.mask_from.make(beginning, network)
        mask.apply_(network)
        return network, mask


FRESH = Start(lambda beginning: beginning.fresh("init"))
REDRAWN = Start(lambda beginning: beginning.fresh("init-scratch"))  # another stream: it must not equal Init-D
SOLUTION = Start(lambda beginning: beginning.dense_solution(), of_parent=True, trained=True)
REWOUND = Start(lambda beginning: beginning.dense_initialisation(), of_parent=True)
OF_SOLUTION = MaskSource(lambda beginning, network: beginning.pruned(beginning.dense_solution()), of_parent=True)

# as in figure 2 of the paper; colours of Okabe & Ito 2008, distinguishable with every common form of colour blindness
MODES = {
    "dense": ModeSpec("dense", "0.45", "", "-", FRESH),
    "sparse-finetune": ModeSpec("sparse-finetune", "#0072B2", "o", "-", SOLUTION, OF_SOLUTION),
    "sparse-scratch": ModeSpec("sparse-scratch", "#D55E00", "s", "--", REDRAWN, OF_SOLUTION),
    "lottery": ModeSpec("lottery", "#009E73", "^", ":", REWOUND, OF_SOLUTION),
}


@dataclass(frozen=True)
class ModesThat:
    """The modes of which something holds, for `when` of a flag; it follows what is added to `MODES`."""

    holds: Callable[[ModeSpec], bool]

    def __contains__(self, word: object) -> bool:
        mode = MODES.get(word) if isinstance(word, str) else None
        return mode is not None and self.holds(mode)

    def __iter__(self) -> Iterator[str]:
        return (word for word in MODES if word in self)


WITH_MASK = ModesThat(lambda mode: mode.has_mask)
WITH_PARENT = ModesThat(lambda mode: mode.needs_parent)
REWINDING = ModesThat(lambda mode: mode.rewinds)

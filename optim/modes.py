"""What a mode is: the weights that a run starts from, where its mask comes from, and what changes the mask while it trains.

Everything that differs between modes is said here once. Nothing else asks for a mode's name: flags, identity, reports and
figures ask its `ModeSpec`. Another mode is another line in `MODES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from helper.mask import Mask
from helper.masks.schedules import alternating, cosine_drop, cubic
from helper.schema.registry import EntriesThat
from optim.updating import MaskSchedule


class Beginning(Protocol):
    """What a mode may ask for when a run begins. Every call returns a network of its own, on the CPU."""

    def fresh(self, stream: str) -> nn.Module:
        """A network whose weights are drawn from the random stream of that name."""

    def dense_solution(self) -> nn.Module:
        """The dense parent after training, Sol-D. RuntimeError: its weights are missing, damaged or do not fit."""

    def dense_initialisation(self) -> nn.Module:
        """The dense parent before training, Init-D. RuntimeError: as above."""

    def rewound(self) -> nn.Module:
        """By `--rewind`, the dense run after `--rewind_epoch` or the round before after training. RuntimeError: as above."""

    def pruned(self, network: nn.Module, score: str | None = None) -> Mask:
        """The mask that the pruning flags make of a network's weights, which are left as they are; or with another score."""

    def shuffled(self, mask: Mask) -> Mask:
        """Every layer's active weights at random places."""

    def whole(self, network: nn.Module) -> Mask:
        """The mask of everything that may be pruned, in which nothing is."""

    def fit(self, network: nn.Module, mask: Mask) -> None:
        """Scale freshly drawn weights to their mask, in place, if `--init_method` is one that does."""

    def pruned_further(self) -> Mask:
        """The mask that they make of the round before, of the weights that it has left. RuntimeError: as above."""


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from.

    Attributes:
        make: returns them.
        of_parent: whether they are the dense parent's.
        trained: whether they have been trained before, so that the run goes on with someone else's training.
        drawn: whether they are a draw of this run's own, which may be one that fits its mask.
    """

    make: Callable[[Beginning], nn.Module]
    of_parent: bool = False
    trained: bool = False
    drawn: bool = False


@dataclass(frozen=True)
class MaskSource:
    """Where a run's first mask comes from.

    Attributes:
        make: returns it, for the network that the run starts from.
        of_parent: whether it is made from the dense parent's weights.
        scored: whether `--prune_method` chooses it.
    """

    make: Callable[[Beginning, nn.Module], Mask]
    of_parent: bool = False
    scored: bool = True


@dataclass(frozen=True)
class ModeSpec:
    """One mode.

    Attributes:
        label: in legends.
        colour, marker, line: how figures draw it, as Matplotlib names them.
        starts_from: the weights.
        mask_from: the mask; None: every weight is active.
        updater: makes, of the run's configuration, the callback that changes the mask during training; None: it stays.
        allocation: how many weights of each layer stay, unless a flag says otherwise.
        method: what the field calls it, in which {flag} stands for the label of the entry that a flag of pruning chooses;
            default: its label.
        in_rounds: whether runs of this mode are rounds, each with the one before as its parent, see optim/rounds.py.
    """

    label: str
    colour: str
    marker: str
    line: str
    starts_from: Start
    mask_from: MaskSource | None = None
    updater: Callable[[Any], Any] | None = None
    allocation: str = "global"
    method: str = ""
    in_rounds: bool = False

    @property
    def has_mask(self) -> bool:
        return self.mask_from is not None

    @property
    def needs_parent(self) -> bool:
        """Whether a dense run, or one that has it as its parent, has to be finished before a run of this mode begins."""
        return self.starts_from.of_parent or (self.mask_from is not None and self.mask_from.of_parent)

    @property
    def rewinds(self) -> bool:
        """Whether it starts from the weights with which its dense parent began."""
        return self.starts_from.of_parent and not self.starts_from.trained

    @property
    def redraws(self) -> bool:
        """Whether its weights can be drawn anew under its mask, which makes another run of it."""
        return self.starts_from is not REDRAWN

    def start(self, beginning: Beginning, control: str = "none") -> tuple[nn.Module, Mask]:
        """Network and mask with which a run begins; pruned weights are zero.

        Args:
            control: of `--mask_control`: shuffle: the mask has its active weights elsewhere in each layer; reinit: other
                weights are drawn under it.
        """
        network = self.starts_from.make(beginning)
        mask = Mask() if self.mask_from is None else self.mask_from.make(beginning, network)
        if control == "shuffle":
            mask = beginning.shuffled(mask)
        if control == "reinit":
            network = REDRAWN.make(beginning)
        mask.apply_(network)
        if self.draws_under_mask(control):
            beginning.fit(network, mask)
        return network, mask

    def draws_under_mask(self, control: str = "none") -> bool:
        """Whether weights are drawn for a mask that prunes some of them from the start: not a parent's, nor for all weights."""
        masked = self.has_mask and self.mask_from is not WHOLE
        return masked and (self.starts_from.drawn or control == "reinit")


FRESH = Start(lambda beginning: beginning.fresh("init"), drawn=True)
REDRAWN = Start(lambda beginning: beginning.fresh("init-scratch"), drawn=True)  # another stream: it must not equal Init-D
SOLUTION = Start(lambda beginning: beginning.dense_solution(), of_parent=True, trained=True)
REWOUND = Start(lambda beginning: beginning.dense_initialisation(), of_parent=True)
OF_ROUND = Start(lambda beginning: beginning.rewound(), of_parent=True, trained=True)
OF_START = MaskSource(lambda beginning, network: beginning.pruned(network))
AT_RANDOM = MaskSource(lambda beginning, network: beginning.pruned(network, "random"), scored=False)
WHOLE = MaskSource(lambda beginning, network: beginning.whole(network), scored=False)
OF_SOLUTION = MaskSource(lambda beginning, network: beginning.pruned(beginning.dense_solution()), of_parent=True)
OF_ROUND_BEFORE = MaskSource(lambda beginning, network: beginning.pruned_further(), of_parent=True)

# as in figure 2 of the paper; colours of Okabe & Ito 2008, distinguishable with every common form of colour blindness
MODES = {
    "dense": ModeSpec("dense", "0.45", "", "-", FRESH),
    "sparse-finetune": ModeSpec("sparse-finetune", "#0072B2", "o", "-", SOLUTION, OF_SOLUTION),
    "sparse-scratch": ModeSpec("sparse-scratch", "#D55E00", "s", "--", REDRAWN, OF_SOLUTION),
    "lottery": ModeSpec("lottery", "#009E73", "^", ":", REWOUND, OF_SOLUTION),
    "at-init": ModeSpec("at-init", "#CC79A7", "D", "-.", FRESH, OF_START, method="{prune_method}"),
    "gradual": ModeSpec("gradual", "#E69F00", "v", "-", FRESH, WHOLE, MaskSchedule(cubic), method="GMP"),
    "dynamic": ModeSpec(
        "dynamic", "#56B4E9", "P", "--", FRESH, AT_RANDOM, MaskSchedule(replaced=cosine_drop), "erk", "{growth}"
    ),
    "granet": ModeSpec("granet", "#882255", "X", "-.", FRESH, WHOLE, MaskSchedule(cubic, cosine_drop), method="GraNet"),
    "ac-dc": ModeSpec("ac-dc", "#EE6677", "<", ":", FRESH, WHOLE, MaskSchedule(alternating), method="AC/DC"),
    "iterative": ModeSpec("iterative", "#332288", "*", "-", OF_ROUND, OF_ROUND_BEFORE, method="IMP", in_rounds=True),
}


def modes_that(holds: Callable[[ModeSpec], bool]) -> EntriesThat:
    return EntriesThat(MODES, holds)


WITH_MASK = modes_that(lambda mode: mode.has_mask)
WITH_PARENT = modes_that(lambda mode: mode.needs_parent)
REWINDING = modes_that(lambda mode: mode.rewinds)
IN_ROUNDS = modes_that(lambda mode: mode.in_rounds)
BUDGETED = modes_that(lambda mode: mode.has_mask and not mode.in_rounds)  # what a round costs, it costs in every round
CHOSEN_AT_START = modes_that(lambda mode: mode.has_mask and mode.mask_from.scored and mode.updater is None)
UPDATING = modes_that(lambda mode: isinstance(mode.updater, MaskSchedule))
PRUNING_GRADUALLY = modes_that(lambda mode: isinstance(mode.updater, MaskSchedule) and mode.updater.begins)
REPLACING = modes_that(lambda mode: isinstance(mode.updater, MaskSchedule) and mode.updater.replaces)

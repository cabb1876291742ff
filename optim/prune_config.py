"""The flags of pruning: which weights are active, and how that changes."""

from dataclasses import dataclass

from helper.masks.allocation import ALLOCATIONS
from helper.masks.growth import GROWTHS
from helper.pruner import PRUNABLE_BESIDE, SCORES
from helper.schema.config import Config, FlagError, flag
from helper.schema.registry import EntriesThat
from optim.modes import CHOSEN_AT_START, IN_ROUNDS, PRUNING_GRADUALLY, REPLACING, UPDATING, WITH_MASK

MASKED = {"mode": WITH_MASK}
READING_DATA = {"mode": WITH_MASK, "prune_method": EntriesThat(SCORES, lambda score: score.data)}


@dataclass(frozen=True)
class PruneConfig(Config):
    """Pruning: which share of the weights goes, and which weights."""

    prune_method: str = flag("l1", "how weights are ranked, over all layers", short="-pm", choices=SCORES, when=MASKED)
    prune_ratio: float = flag(0.9, "share of the prunable weights removed, in [0, 1)", short="-pr", low=0, below=1, when=MASKED)
    prune_last: bool = flag(False, "prune the last layer too", short="-pl", when=MASKED)
    prune_also: str = flag(
        "none", "weights that can be pruned beside those of linear and convolution layers: embeddings, and attention's joint "
        "projection of queries, keys and values", choices=PRUNABLE_BESIDE, many=True, when=MASKED,
    )  # fmt: skip
    allocation: str | None = flag(
        None, "how many weights of each layer stay; default: global, all layers ranked as one, and erk in mode dynamic",
        choices=ALLOCATIONS, when=MASKED,
    )  # fmt: skip
    score_batches: int | None = flag(
        None, "batches of training data that a score reads; default: 10 examples of every class", low=1, when=READING_DATA
    )
    score_rounds: int | None = flag(
        None, "rounds in which a score prunes, each with what is left; default: 100 for synflow, 1 for others", low=1,
        when={"mode": CHOSEN_AT_START},
    )  # fmt: skip
    mask_control: str = flag(
        "none", "sanity check: shuffle the mask within every layer, or draw other weights under it",
        choices=("none", "shuffle", "reinit"), when={"mode": CHOSEN_AT_START}, strict=True,
    )  # fmt: skip
    mask_begin: float = flag(
        0.1,
        "first change of the mask: up to 1 a share of training, above it steps",
        low=0,
        when={"mode": PRUNING_GRADUALLY},
        strict=True,
    )
    mask_end: float = flag(
        0.75, "last change of the mask: a share of training, or steps", low=0, when={"mode": UPDATING}, strict=True
    )
    mask_every: int = flag(100, "steps from one change of the mask to the next", low=1, when={"mode": UPDATING}, strict=True)
    drop_fraction: float = flag(
        0.3, "share of every layer's active weights that changes places at first; it falls with a cosine to 0", low=0, high=1,
        when={"mode": REPLACING}, strict=True,
    )  # fmt: skip
    growth: str = flag("gradient", "which weights come back", choices=GROWTHS, when={"mode": REPLACING}, strict=True)
    prune_step: float = flag(
        0.2, "share of the surviving weights that a round removes, in (0, 1)", low=0, below=1, when={"mode": IN_ROUNDS},
        strict=True,
    )  # fmt: skip
    rewind: str = flag(
        "weights", "weights of a round: the dense run's after --rewind_epoch, or (lr) those of the round before",
        choices=("weights", "lr"), when={"mode": IN_ROUNDS}, strict=True,
    )  # fmt: skip
    rewind_epoch: int = flag(
        0, "epoch with which the training of every round begins", low=0, when={"mode": IN_ROUNDS}, strict=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune_step == 0:
            raise FlagError("--prune_step 0: must be above 0 and below 1")

    @property
    def beside_layers(self) -> tuple[str, ...]:
        """Of PRUNABLE_BESIDE, what can be pruned."""
        return tuple(word for word in self.prune_also.split(",") if word in PRUNABLE_BESIDE)

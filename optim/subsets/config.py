"""The flags of subsets: which of its batch a step trains on, and which of the training set an epoch shows."""

from dataclasses import dataclass, fields

from helper.schema.config import Config, FlagError, flag
from optim.subsets.methods import METHODS
from optim.subsets.pacing import PACED, PACINGS

DIFFICULTIES = ("loss", "fisher", "forgetting")
ANY_SUBSET = ({"train_subset": (True,)}, {"subset_schedule": PACED})


@dataclass(frozen=True)
class SubsetConfig(Config):
    """Subsets: which examples steps and epochs train on."""

    train_subset: bool = flag(False, "every step draws its batch as a pool and trains on a share of it", short="-sub")
    subset_ratio: float = flag(
        0.1, "that share; with --subset_schedule the share of the training set that the first epoch shows",
        short="-subr", low=0, high=1, when=ANY_SUBSET,
    )  # fmt: skip
    subset_method: str = flag(
        "default", "which of the pool: the first, a uniform draw, the largest loss or Fisher trace, or those furthest above "
        "a network's that was trained on the examples that --val_size holds out (reducible)",
        short="-subm", choices=METHODS, when={"train_subset": (True,)},
    )  # fmt: skip
    subset_schedule: str = flag(
        "constant", "whether all epochs show the whole training set, or early ones its hardest or easiest examples",
        choices=PACINGS,
    )  # fmt: skip
    subset_until: float = flag(
        0.5, "share of the epochs after which all examples are shown", low=0, high=1, when={"subset_schedule": PACED}
    )
    subset_difficulty: str = flag(
        "loss", "what hard is: loss or Fisher trace of the dense run without a subset after its training, or how often that "
        "has forgotten an example",
        choices=DIFFICULTIES, when={"subset_schedule": PACED},
    )  # fmt: skip
    save_forgetting: bool = flag(
        False, "count how often each training example is forgotten while training, in forgetting.npz", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset_ratio == 0:
            raise FlagError("--subset_ratio 0: must be above 0")
        if self.train_subset and self.subset_schedule in PACED:
            raise FlagError(
                f"--train_subset 1 chooses by step and --subset_schedule {self.subset_schedule} by epoch: leave out either"
            )

    @property
    def chooses(self) -> bool:
        """Whether steps leave out some of their batch."""
        return self.train_subset and self.subset_ratio < 1

    @property
    def paced(self) -> bool:
        """Whether epochs leave out some of the training set."""
        return self.subset_schedule in PACED and self.subset_ratio < 1 and self.subset_until > 0

    @property
    def partial(self) -> bool:
        """Whether what steps train on is easier or harder than the training set."""
        return self.paced or (self.chooses and METHODS[self.subset_method].score is not None)

    @property
    def reducible(self) -> bool:
        return self.chooses and METHODS[self.subset_method].reducible

    @property
    def scored(self) -> str | None:
        """What the scores are that the run needs of all training examples before it begins, of `DIFFICULTIES`; None: none."""
        if self.paced:
            return self.subset_difficulty
        return self.subset_method.removeprefix("reducible_") if self.reducible else None


NO_SUBSET = {field.name: field.default for field in fields(SubsetConfig)}
CHOOSING = tuple(name for name in NO_SUBSET if name != "save_forgetting")  # what decides the examples of a step

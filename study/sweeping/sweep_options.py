"""The flags of `experiment.py sweep`."""

import math
from dataclasses import dataclass, field

from helper.schema.config import Config, FlagError, flag, flatten
from study.sweeping.slurm_options import SlurmConfig

EXECUTORS = ("local", "slurm")
IMAGES_PER_SECOND = "speed of the device that is meant, as history.csv of a run there has it; default: measured here"
REFERENCE = "data/network, as folders are named, whose --images_per_second that is; default: what most is trained of"


def goal(value: object) -> str:
    """`acc_test:0.01`, a quantity and a difference of it. Raises ValueError: it is something else."""
    name, _, gap = str(value).partition(":")
    try:
        sound = name.isidentifier() and 0 < float(gap) < math.inf
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("expected a quantity and a difference of it above 0, such as acc_test:0.01")
    return f"{name}:{float(gap):g}"


def check_reference(reference: str | None, images_per_second: float | None) -> None:
    """Raise FlagError for a reference without the speed that was measured with it."""
    if reference is not None and images_per_second is None:
        raise FlagError("--reference says what --images_per_second was measured with, which is not given")


@dataclass(frozen=True)
class SweepConfig(Config):
    """Sweep: how its runs are run."""

    executor: str = flag("local", "where they run: in processes of this machine, or as jobs of SLURM", choices=EXECUTORS)
    jobs: int = flag(1, "runs at a time; each gets its share of the cores", low=1)
    dry_run: bool = flag(False, "list the runs, what is there of them, and what the rest will take")
    images_per_second: float | None = flag(None, f"with --dry_run: {IMAGES_PER_SECOND}", low=1e-6)
    reference: str | None = flag(None, REFERENCE)
    until_gap: str | None = flag(
        None, "VALUE:GAP, such as acc_test:0.01: add seeds to both of two settings until an interval for their difference "
        "excludes 0 or lies within +-GAP; it holds however often one looks; default: only the seeds of the grid", convert=goal,
    )  # fmt: skip
    max_seeds: int | None = flag(None, "with --until_gap: seeds of each setting at most; default: it has to be given", low=2)
    seeds_at_once: int | None = flag(
        None, "with --until_gap: seeds added between two looks; default: as many as --jobs has room for, one with SLURM", low=1
    )
    between: str = flag("mode", "with --until_gap: the flag in which the two differ, where there are more than two settings")
    retry: bool = flag(False, "repeat the runs that failed the last time")
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.executor == "local":
            default = flatten(SlurmConfig())
            for name, value in flatten(self.slurm).items():
                if value != default[name]:
                    raise FlagError(f"--{name} needs --executor slurm")
        elif self.slurm.slurm_time is None:
            raise FlagError("--executor slurm needs --slurm_time, such as 4:00:00")
        elif self.jobs > 1 and not self.dry_run:
            raise FlagError("--jobs is for --executor local; --max_array_parallelism bounds what SLURM runs at a time")
        if (self.until_gap is None) != (self.max_seeds is None):
            raise FlagError("--until_gap and --max_seeds need each other: which gap decides, and how many seeds it may take")
        if self.until_gap is None and self.seeds_at_once is not None:
            raise FlagError(f"--seeds_at_once {self.seeds_at_once} needs --until_gap, which adds seeds")
        if self.until_gap and not self.slurm.watch:
            raise FlagError("--until_gap adds seeds to runs that have finished, for which it has to stay; it needs --watch 1")
        if self.images_per_second is not None and not self.dry_run:
            raise FlagError("--images_per_second prices a sweep that is not run here; it needs --dry_run 1")
        check_reference(self.reference, self.images_per_second)

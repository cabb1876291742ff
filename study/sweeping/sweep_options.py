"""The flags of `experiment.py sweep`."""

from dataclasses import dataclass, field

from helper.schema.config import Config, FlagError, flag, flatten
from study.sweeping.slurm_options import SlurmConfig

EXECUTORS = ("local", "slurm")


@dataclass(frozen=True)
class SweepConfig(Config):
    """Sweep: how its runs are run."""

    executor: str = flag("local", "where they run: in processes of this machine, or as jobs of SLURM", choices=EXECUTORS)
    jobs: int = flag(1, "runs at a time; each gets its share of the cores", low=1)
    dry_run: bool = flag(False, "list the runs, what is there of them, and what the rest will take")
    images_per_second: float | None = flag(
        None,
        "with --dry_run: speed of the device that is meant, as history.csv of a run there has it; default: measured here",
        low=1e-6,
    )
    reference: str | None = flag(
        None, "data/network, as folders are named, whose --images_per_second that is; default: what most is trained of"
    )
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
        if self.images_per_second is not None and not self.dry_run:
            raise FlagError("--images_per_second prices a sweep that is not run here; it needs --dry_run 1")
        if self.reference is not None and self.images_per_second is None:
            raise FlagError("--reference says what --images_per_second was measured with, which is not given")

"""The flags of `experiment.py sweep --executor slurm`, and the options of sbatch that they become."""

import re
import shlex
from dataclasses import dataclass

from helper.schema.config import Config, FlagError, flag
from helper.system.versions import ROOT

OURS = (
    "array", "begin", "chdir", "comment", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "nodes",
    "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time", "wrap",
)  # fmt: skip


def minutes_of(text: str) -> int:
    """Whole minutes, rounded up, of a time limit as sbatch takes it.

    Raises:
        ValueError: it is none of M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, or no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip(), re.ASCII)
    if not match:
        raise ValueError("expected a time such as 90 (minutes), 30:00, 4:00:00, 1-12, 1-12:30 or 1-12:30:00")
    days, *numbers = match.groups()
    numbers = [int(number) for number in numbers if number is not None]
    units = [3600, 60, 1] if days or len(numbers) == 3 else [60, 1]
    seconds = int(days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    if seconds == 0:
        raise ValueError("expected a time above zero")
    return -(-seconds // 60)


def time_limit(value: object) -> str:
    minutes_of(str(value))
    return str(value).strip()


def memory(value: object) -> str:
    """Raise ValueError unless sbatch takes it for an amount of memory."""
    if not re.fullmatch(r"\d+[KMGT]?B?", str(value), re.ASCII | re.IGNORECASE):
        raise ValueError("expected an amount such as 16G or 4000M")
    return str(value)


def options_of(text: str) -> dict[str, str | bool]:
    """{option: value, True for none} of sbatch options in a line, such as `--exclude=node[1-3] --exclusive`.

    Raises:
        ValueError: no such line, or an option that the sweep sets itself.
    """
    options: dict[str, str | bool] = {}
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        name = name.lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]+", name):
            raise ValueError(f"expected long options of sbatch as name=value, not {word}")
        if not value.isprintable():
            raise ValueError(f"expected one line, not {word!r}")
        if name in OURS:
            raise ValueError(f"{name} is set by the sweep; see the other --slurm flags")
        options[name] = value or True
    return options


def option_line(value: object) -> str:
    options_of(str(value))
    return str(value)


@dataclass(frozen=True)
class SlurmConfig(Config):
    """SLURM: what its jobs ask for (with --executor slurm)."""

    slurm_time: str | None = flag(
        None,
        "time limit of a job as sbatch takes it, such as 90, 4:00:00, 1-12; default: none, it has to be given",
        convert=time_limit,
    )
    slurm_partition: str | None = flag(None, "partition; default: the cluster's")
    slurm_gpus: int = flag(0, "GPUs of a run; several train it together under torchrun", low=0)
    slurm_cpus: int | None = flag(None, "cores of a run; default: the cluster's", low=1)
    slurm_mem: str | None = flag(None, "memory of a run, such as 16G; default: the cluster's", convert=memory)
    slurm_account: str | None = flag(None, "account; default: the user's")
    slurm_qos: str | None = flag(None, "quality of service; default: the cluster's")
    slurm_constraint: str | None = flag(None, "features that a node must have; default: none")
    slurm_options: str | None = flag(
        None, 'further options of sbatch, such as "exclude=node7 mail-type=END"; default: none', convert=option_line
    )
    slurm_setup: str | None = flag(None, 'shell line before a run, such as "module load cuda"; default: none')
    slurm_signal_delay: int = flag(120, "seconds before the time limit at which a run saves and is requeued", low=10)
    slurm_max_requeues: int = flag(20, "times that a job is requeued at its time limit", low=0)
    max_array_parallelism: int | None = flag(None, "tasks of one job array that run at a time; default: as many as fit", low=1)
    watch: bool = flag(True, "stay until all jobs have ended; 0: submit and leave at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slurm_time and self.slurm_signal_delay >= minutes_of(self.slurm_time) * 60:
            raise FlagError(f"--slurm_signal_delay {self.slurm_signal_delay}: must be below --slurm_time {self.slurm_time}")

    @property
    def n_processes(self) -> int:
        """That train a run together."""
        return max(1, self.slurm_gpus)

    @property
    def asks_for_gpus(self) -> bool:
        return bool(self.slurm_gpus) or any(name.startswith(("gres", "gpus")) for name in options_of(self.slurm_options or ""))

    def sbatch(self) -> dict[str, object]:
        """Parameters of submitit's SlurmExecutor."""
        paths = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"  # a job unpickles a class of ours
        return {
            "time": minutes_of(self.slurm_time),
            "partition": self.slurm_partition,
            "gpus_per_node": self.slurm_gpus or None,
            "cpus_per_task": self.slurm_cpus,
            # since 22.05 srun does not take over what sbatch was given
            "srun_args": [f"--cpus-per-task={self.slurm_cpus}"] if self.slurm_cpus else None,
            "mem": self.slurm_mem,
            "account": self.slurm_account,
            "qos": self.slurm_qos,
            "constraint": self.slurm_constraint,
            "signal_delay_s": self.slurm_signal_delay,
            "setup": [paths, *([self.slurm_setup] if self.slurm_setup else [])],
            "stderr_to_stdout": True,
            "array_parallelism": self.max_array_parallelism or 10**9,
            "additional_parameters": options_of(self.slurm_options or "") | {"requeue": True, "kill-on-invalid-dep": "yes"},
        }

"""What a run is: the options of its training and of its dense parent, and `RunConfig` with all of its parts.

It lies below all that reads it: nothing here trains, measures or touches a file.
"""

import functools
import secrets
from dataclasses import dataclass, field
from typing import Any

from helper.command_line.help import either
from helper.metrics.config import MetricConfig
from helper.metrics.main import METRICS
from helper.schema.config import Config, FlagError, all_flags, flag, flatten, replace
from helper.schema.values import increasing
from loader.main import DataConfig
from network.init import BY_ACTIVE_FAN_IN
from network.main import NetworkConfig
from optim.modes import MODES, REPLACING, REWINDING, WITH_PARENT, ModeSpec
from optim.prune_config import PruneConfig
from optim.rounds import canonical, check_rewinding, check_rounds
from optim.schedule import SCHEDULES
from optim.subsets.config import NO_SUBSET, SubsetConfig
from optim.trackers.main import TRACKERS
from optim.train_config import REMEDIES, TrainConfig

PARENT_FLAGS = ("lr", "lr_schedule", "lr_milestones", "lr_gamma", "n_epochs", "batch_size", "random_state")
OF_TRAINING = [name for name in REMEDIES if name not in NO_SUBSET]  # a dense parent has no subset in any case
OWN_PARENT = {"mode": WITH_PARENT, "pretrain_model_path": (None,)}  # a dense parent that is found by its settings


def usual_measurements(device: str) -> dict[str, bool]:
    """What is measured by default: on a TPU nothing, which the host would have to do while the TPU waits."""
    return {metric.switch: device != "tpu" for metric in METRICS.values() if metric.usual}


def defaults_of_strict() -> dict[str, Any]:
    """Of the flags that are refused with a mode that has no use for them, as the dense one."""
    return {name: field.default for name, field in all_flags(RunConfig).items() if field.metadata["flag"].strict}


def drawn_seed() -> int:
    return secrets.randbelow(2**31 - 1) + 1


@dataclass(frozen=True)
class ParentConfig(Config):
    """Dense parent of a sparse run: where it differs from the run's own settings."""

    lr_pretrain: float | None = flag(
        None, "its learning rate; default: the run's own", short="-lrp", low=0, when=OWN_PARENT, identity=False
    )
    lr_schedule_pretrain: str | None = flag(
        None, "its schedule; default: the run's own", short="-lsp", choices=SCHEDULES, when=OWN_PARENT, identity=False
    )
    lr_milestones_pretrain: str | None = flag(
        None, "its milestones; default: the run's own", short="-lmp", convert=increasing, when=OWN_PARENT, identity=False
    )
    lr_gamma_pretrain: float | None = flag(
        None, "its lr_gamma; default: the run's own", short="-lgp", low=0, high=1, when=OWN_PARENT, identity=False
    )
    n_epochs_pretrain: int | None = flag(
        None, "its epochs; default: the run's own", short="-nep", low=1, when=OWN_PARENT, identity=False
    )
    batch_size_pretrain: int | None = flag(
        None, "its batch size; default: the run's own", short="-bsp", low=1, when=OWN_PARENT, identity=False
    )
    random_state_pretrain: int | None = flag(
        None, "its seed, 0: draw one; default: the run's own", low=0, when=OWN_PARENT, identity=False
    )

    plain_pretrain: bool = flag(
        False, f"train it without --{', --'.join(OF_TRAINING)}, which the run itself may have", when=OWN_PARENT, identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_state_pretrain == 0:
            self._set("random_state_pretrain", drawn_seed())


@dataclass(frozen=True)
class RunConfig(Config):
    """Run: what is trained from where, with which seed, and where the results go."""

    mode: str = flag("dense", "how the network starts", short="-m", choices=MODES)
    random_state: int = flag(42, "seed of everything but splits and label noise; 0: draw one", short="-rs", low=0)
    results_root: str = flag("results", "folder of all run folders", short="-rr", identity=False)
    device: str = flag("cpu", "where to compute", short="-dv", choices=("cpu", "cuda", "tpu"), identity=False)
    load_pretrain: bool = flag(
        True,
        "use the finished dense parent under --results_root; 0: train it again",
        short="-lp",
        when=OWN_PARENT,
        identity=False,
    )
    pretrain_model_path: str | None = flag(
        None, "run folder or weights of the dense parent; default: found by its settings, trained if it is not there",
        short="-pp", when={"mode": WITH_PARENT}, identity=False,
    )  # fmt: skip
    lottery_model_path: str | None = flag(
        None,
        "run folder or weights of the dense initialisation; default: the dense parent's",
        short="-tp",
        when={"mode": REWINDING},
        identity=False,
    )
    figures: bool = flag(True, "draw figures at the end", identity=False)
    tracker: str = flag("none", "where to follow the run beside its tables", choices=TRACKERS, many=True, identity=False)
    overwrite: bool = flag(False, "repeat a finished run; an unfinished one goes on as always", identity=False)
    debug: bool = flag(False, "show tracebacks", identity=False)
    trust_code: bool = flag(
        False, "run code of your own that a --config file names; given on the command line alone", identity=False
    )
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    parent: ParentConfig = field(default_factory=ParentConfig)
    metrics: MetricConfig = field(default_factory=MetricConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_state == 0:
            self._set("random_state", drawn_seed())
        left_open = {n: v for n, v in usual_measurements(self.device).items() if getattr(self.metrics, n) is None}
        if left_open:
            self._set("metrics", replace(self.metrics, **left_open))
        if self.train.compile and self.device == "tpu":
            raise FlagError("--compile 1 --device tpu: every step is compiled there anyway; leave --compile out")
        if self.train.sparse_step == "1" and self.device != "cpu":
            raise FlagError(f"--sparse_step 1 --device {self.device}: it is for the CPU; use --sparse_step 0 or auto")
        if self.train.select == "val" and self.data.val_size == 0:
            raise FlagError("--select val needs --val_size above 0")
        if self.subset.reducible and self.data.val_size == 0:
            raise FlagError(f"--subset_method {self.subset.subset_method} needs --val_size above 0: examples to hold out")
        if self.data.trains_on_held_out and (self.train.select == "val" or self.subset.reducible):
            raise FlagError("--train_on val: the validation examples are those that are trained on; leave it out")
        if self.subset.save_forgetting and self.train.mix != "none":
            raise FlagError(f"--save_forgetting 1 --mix {self.train.mix}: of mixed examples no one can be forgotten")
        if self.train.train_eval == "running" and self.subset.partial:
            raise FlagError(
                "--train_eval running averages over what steps train on, which --subset_method and --subset_schedule choose "
                "for its difficulty; use --train_eval pass"
            )
        if self.train.train_eval == "running" and self.metrics.save_snr and self.metrics.snr_mode == "fixed":
            raise FlagError(
                "--train_eval running makes no pass that could measure the SNR; add --snr_mode online or --save_snr 0"
            )
        if self.metrics.metric_every and not self.metrics.wanted():
            switches = [f"--{metric.switch} 1" for metric in METRICS.values() if metric.by_itself]
            raise FlagError(f"--metric_every needs something to measure: {either(switches)}")
        if self.prune.allocation == self.mode_spec.allocation:
            self._set("prune", replace(self.prune, allocation=None))  # the mode's own, under which name the run is known
        plain = BY_ACTIVE_FAN_IN.get(self.network.initialiser)
        if plain and not self.mode_spec.draws_under_mask(self.prune.mask_control):
            self._set("network", replace(self.network, init_method=plain))  # likewise: there is no mask to fit
        if self.mode in REPLACING and not self.mode_spec.updater.begins and self.prune.prune_ratio == 0:
            raise FlagError(f"--mode {self.mode} --prune_ratio 0: nothing is pruned, so that no weight could come back")
        if self.prune.mask_control == "reinit" and not self.mode_spec.redraws:
            raise FlagError(f"--mask_control reinit: --mode {self.mode} draws its weights anew without it")
        if self.mode_spec.in_rounds:
            if self.train.train_budget is not None:
                raise FlagError(f"--train_budget: a run of --mode {self.mode} costs what all its rounds do; leave it out")
            self._set("prune", replace(self.prune, prune_ratio=canonical(self.prune.prune_ratio)))
            dense_epochs = self.parent.n_epochs_pretrain if self.begins_with_dense_state else None
            check_rounds(self.prune.prune_ratio, self.prune.prune_step)
            check_rewinding(self.prune.rewind_epoch, self.train.n_epochs, dense_epochs)
        if self.mode_spec.needs_parent:
            self.check_parent()

    @property
    def allocation(self) -> str:
        """How many weights of each layer stay, of ALLOCATIONS."""
        return self.prune.allocation or self.mode_spec.allocation

    @property
    def mode_spec(self) -> ModeSpec:
        return MODES[self.mode]

    @property
    def first_epoch(self) -> int:
        """Epochs that count as done when training begins; the first row of every table is of this one."""
        return self.prune.rewind_epoch if self.mode_spec.in_rounds else 0

    @property
    def begins_with_dense_state(self) -> bool:
        """Whether training begins with the weights that the dense run had after `first_epoch`."""
        return self.mode_spec.in_rounds and self.prune.rewind == "weights"

    def saved_epochs(self) -> set[int]:
        """Epochs whose states are kept, the first one among them; none at all of a round with `--save_epochs none`."""
        if self.mode_spec.in_rounds and self.train.save_epochs == "none":
            return set()
        return {self.first_epoch} | {epoch for epoch in self.train.saved_epochs() if epoch > self.first_epoch}

    def check_parent(self) -> None:
        """Refuse before anything is trained what would be refused only after the dense parent."""
        try:
            self.dense_parent()
        except FlagError as error:
            raise FlagError(f"{error} (of the dense parent, as its *_pretrain flags describe it)") from None

    def dense_parent(self) -> "RunConfig":
        return self._dense_parent

    @functools.cached_property
    def _dense_parent(self) -> "RunConfig":
        """The run that trains this run's dense parent: its own settings where no *_pretrain flag differs."""
        changes = {name: getattr(self.parent, f"{name}_pretrain") for name in PARENT_FLAGS}
        changes = {name: value for name, value in changes.items() if value is not None}
        inherited = flatten(ParentConfig()) | defaults_of_strict() | NO_SUBSET
        inherited["save_forgetting"] = self.subset.save_forgetting or self.subset.scored == "forgetting"
        if self.parent.plain_pretrain:
            inherited |= {name: all_flags(RunConfig)[name].default for name in REMEDIES}
        if "n_epochs" in changes and self.train.save_epochs not in ("auto", "all", "none"):
            changes["save_epochs"] = "auto"  # epochs listed for this run need not exist in the parent
        return replace(self, **inherited, **changes, mode="dense", overwrite=not self.load_pretrain, load_pretrain=True)

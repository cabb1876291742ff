"""The flags of training: optimiser, schedule, loss, and which epoch's weights are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helper.schema.config import PROCESSES, Above, Config, FlagError, flag
from helper.schema.registry import EntriesThat, Readers, with_options
from helper.schema.values import increasing, integer
from network.main import WITH_BATCH_NORM
from optim.mixing import MIXES
from optim.modes import BUDGETED, UPDATING
from optim.optimizers import OPTIMIZERS, tensors_kept
from optim.prune_config import MASKED
from optim.regularizer import REGULARIZERS, OfGradient, by_penalty, schedule_word, values_by_penalty, weight_word
from optim.schedule import SCHEDULES
from optim.subsets.config import CHOOSING

# What may be done against memorisation and sharpness, all off by default: a run with one is set beside the same run without.
REMEDIES = (
    "clip_norm", "label_smoothing", "mix", "mix_alpha", "reg_type", "reg_weight", "reg_weights", "reg_schedule",
    "reg_schedules", "reg_method", "reg_every", "sharpness_aware", "ema", *CHOOSING,
)  # fmt: skip
WEIGHT = Readers("reg_weight", REGULARIZERS)
WEIGHTED = EntriesThat(REGULARIZERS, WEIGHT.reads)
BY_DIFFERENCE = ", or --reg_method difference"
OF_GRADIENT = EntriesThat(REGULARIZERS, lambda entry: isinstance(entry, OfGradient))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Training: optimiser, schedule, precision, and which epoch's weights are kept."""

    n_epochs: int = flag(30, "epochs", short="-ne", low=1)
    batch_size: int = flag(128, "examples in a step", short="-bs", low=1)
    train_budget: float | None = flag(
        None, "as many epochs as cost this many times what --n_epochs of dense training do, in multiply-accumulates; "
        "milestones, warm-up and changes of the mask stretch along; default: just --n_epochs",
        low=0, when={"mode": BUDGETED}, strict=True,
    )  # fmt: skip
    optimizer_name: str = flag("sgd", "optimiser", short="-on", choices=OPTIMIZERS)
    lr: float = flag(0.1, "learning rate", short="-lr", low=0)
    momentum: float = flag(
        0.9, "momentum of SGD", short="-mm", low=0, below=1, when={"optimizer_name": Readers("momentum", OPTIMIZERS)}
    )
    nesterov: bool = flag(False, "Nesterov momentum", when={"optimizer_name": Readers("nesterov", OPTIMIZERS)})
    weight_decay: float = flag(
        2e-4, "L2 penalty on every parameter, as in torch.optim; of adamw: decay apart from the gradient", short="-wt", low=0
    )
    clip_norm: float | None = flag(
        None, "longer gradients, of all active weights together, are scaled down to this norm; default: none are", low=0
    )
    lr_schedule: str = flag("stepwise", "how the learning rate falls", short="-ls", choices=SCHEDULES)
    lr_milestones: str = flag(
        "15-25", "epochs at which the rate falls", short="-lm", convert=increasing,
        when={"lr_schedule": Readers("lr_milestones", SCHEDULES)},
    )  # fmt: skip
    lr_gamma: float = flag(
        0.1, "factor at milestones, or at every epoch", short="-lg", low=0, high=1,
        when={"lr_schedule": Readers("lr_gamma", SCHEDULES)},
    )  # fmt: skip
    warmup_epochs: int = flag(0, "epochs of linear warm-up", low=0)
    label_smoothing: float = flag(
        0.0, "share of every label that the training loss spreads evenly over all classes", low=0, below=1
    )
    mix: str = flag(
        "none", "train on pairs of examples: mixup, weighted sums of both; cutmix, images with a box of another", choices=MIXES
    )
    mix_alpha: float = flag(
        1.0, "an example's own share is drawn from Beta(mix_alpha, mix_alpha)", low=0, when={"mix": Readers("mix_alpha", MIXES)}
    )
    reg_type: str = flag("none", "penalties added to the loss", short="-rp", choices=REGULARIZERS, many=True)
    reg_weight: float = flag(
        0.01, "their weight, which may be negative; half of it multiplies a penalty", short="-rw", when={"reg_type": WEIGHT}
    )
    reg_weights: str | None = flag(
        None, "weights of some of them, such as fisher:-0.1,jacobian:0.01; default: --reg_weight",
        convert=by_penalty(weight_word), when={"reg_type": WEIGHTED}, whole=True,
    )  # fmt: skip
    reg_schedule: str = flag(
        "constant", "factor of their weight: constant; until:SHARE, one for a share of training and then none; linear, from "
        "one to zero",
        convert=schedule_word, when={"reg_type": WEIGHTED},
    )  # fmt: skip
    reg_schedules: str | None = flag(
        None, "schedules of some of them, such as fisher:until:0.3,jacobian:constant; default: --reg_schedule",
        convert=by_penalty(schedule_word), when={"reg_type": WEIGHTED}, whole=True,
    )  # fmt: skip
    reg_method: str = flag(
        "exact", "derivative of the gradient's norm: exact, or the difference to the gradient at a point nearby",
        choices=("exact", "difference"), when={"reg_type": OF_GRADIENT},
    )  # fmt: skip
    reg_every: int = flag(
        1, "penalties act in every K-th step alone, with K times their weight", low=1, when={"reg_type": WEIGHTED}
    )
    sharpness_aware: float = flag(
        0.0, "radius of SAM: a step takes the gradient from that far up the gradient, within the active weights; 0: not", low=0
    )
    precision: str = flag("fp32", "of the training steps; evaluation and measurements are in float32", choices=("fp32", "bf16"))
    sync_batch_norm: bool = flag(
        True, "under torchrun, BatchNorm by the statistics of the global batch; 0: of each process's share",
        when={"net_name": WITH_BATCH_NORM, PROCESSES: Above(1)}, always_counts=True,
    )  # fmt: skip
    recalibrate_bn: bool = flag(
        False, "after an epoch in which the mask has changed, BatchNorm statistics from training batches before evaluation",
        when={"mode": UPDATING, "net_name": WITH_BATCH_NORM}, strict=True,
    )  # fmt: skip
    compile: bool = flag(False, "torch.compile the training step's network", identity=False)
    sparse_step: str = flag(
        "auto", "training steps on a CPU, and the passes after an epoch, compute active weights alone; auto: where a rule of "
        "density and shape finds that faster",
        choices=("0", "auto", "1"), when=MASKED, identity=False,
    )  # fmt: skip
    train_eval: str = flag(
        "pass", "training columns of history.csv from a pass after the epoch, or averaged while training",
        choices=("pass", "running"), identity=False,
    )  # fmt: skip
    eval_every: int = flag(
        1, "losses, accuracies and entropy of every K-th epoch, the initialisation and the last epoch; other rows of "
        "history.csv have none",
        low=1, identity=False,
    )  # fmt: skip
    ema: float = flag(
        0.0, "evaluate, measure and keep an exponential moving average over the steps, of weights and BatchNorm statistics, "
        "with this decay, such as 0.999; 0: the weights themselves",
        low=0, below=1,
    )  # fmt: skip
    select: str = flag(
        "last", "weights kept: of the last epoch, or of the best on val or test", choices=("last", "val", "test")
    )
    save_best: bool = flag(False, "1 means --select test", short="-sb", identity=False)
    save_epochs: str = flag("auto", "states kept: auto (about ten), all, none, or epochs such as 0-10-30", identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save_best and self.select == "val":
            raise FlagError("--save_best 1 means --select test and contradicts --select val")
        if self.save_best:
            self._set("select", "test")
            self._set("save_best", False)
        if self.eval_every > 1 and self.select != "last":
            raise FlagError(
                f"--eval_every {self.eval_every} --select {self.select}: the best of all epochs needs each evaluated; "
                "use --eval_every 1, or --select last"
            )
        if self.warmup_epochs >= self.n_epochs:
            raise FlagError(f"--warmup_epochs {self.warmup_epochs}: must be below --n_epochs {self.n_epochs}")
        if self.nesterov and self.momentum == 0 and self.optimizer_name == "sgd":
            raise FlagError("--nesterov 1 needs --momentum above 0")
        self.check_penalties()
        if self.sparse_step == "1" and self.compile:
            raise FlagError("--sparse_step 1 --compile 1: sparse steps cannot have that; use --sparse_step 0 or auto")
        for name in ("train_budget", "clip_norm", "mix_alpha"):
            if getattr(self, name) == 0:
                raise FlagError(f"--{name} 0: must be above 0")
        if self.train_eval == "running" and self.mix != "none":
            raise FlagError(f"--train_eval running --mix {self.mix}: it averages over mixed examples; use --train_eval pass")
        if self.train_eval == "running" and self.ema:
            raise FlagError(
                f"--train_eval running --ema {self.ema:g}: while training, the averaged weights see no examples; "
                "use --train_eval pass"
            )
        self.saved_epochs()

    def check_penalties(self) -> None:
        if self.reg_type != "none":
            self.fold("reg_weight", 0.01, float)
            self.fold("reg_schedule", "constant", str)
        chosen, twice = self.reg_type.split(","), self.differentiated_twice()
        apart = [name for name in chosen if name in OF_GRADIENT and (REGULARIZERS[name].drawn or len(chosen) > 1)]
        if self.compile and (twice or apart):
            why = f"--compile 1 goes back through a pass once, and --reg_type {','.join(twice or apart)} needs more"
            raise FlagError(f"{why}; use --compile 0{BY_DIFFERENCE if chosen == ['gradient'] else ''}")
        if self.sparse_step == "1" and twice:
            why = f"--sparse_step 1 --reg_type {','.join(twice)}: sparse steps cannot have that"
            cure = BY_DIFFERENCE if all(name in OF_GRADIENT for name in twice) else ""
            raise FlagError(f"{why}; use --sparse_step 0 or auto{cure}")

    def fold(self, name: str, usual: Any, convert: Callable[[str], Any]) -> None:
        """Bring a flag for all penalties, and the one for some of them, into the form that all equal spellings share."""
        text, chosen = getattr(self, f"{name}s"), self.reg_type.split(",")
        found = values_by_penalty(text)
        stray = [penalty for penalty in found if penalty not in chosen]
        if stray:
            raise FlagError(f"--{name}s {text}: {stray[0]} is none of --reg_type {self.reg_type}")
        values = {penalty: convert(found[penalty]) if penalty in found else getattr(self, name) for penalty in chosen}
        alike = len(set(values.values())) == 1
        others = ",".join(f"{penalty}:{value}" for penalty, value in values.items() if value != usual)
        self._set(name, values[chosen[0]] if alike else usual)
        self._set(f"{name}s", None if alike else others)

    def differentiated_twice(self) -> list[str]:
        """The penalties for which a step differentiates twice, which neither sparse nor compiled ones can."""
        exact = self.reg_method == "exact"
        entries = {name: REGULARIZERS[name] for name in self.reg_type.split(",") if name != "none"}
        return [name for name, entry in entries.items() if (exact if name in OF_GRADIENT else entry.differentiates)]

    def tensors_kept(self) -> int:
        """Tensors of a weight's shape that training keeps for each weight: the optimiser's, and the average of `--ema`."""
        return tensors_kept(with_options(OPTIMIZERS[self.optimizer_name], self)) + (self.ema > 0)

    def evaluates(self, epoch: int, first: int = 0) -> bool:
        """Whether every split is evaluated after an epoch; the first one, before any step, and the last are always."""
        return epoch in (first, self.n_epochs) or epoch % self.eval_every == 0

    def saved_epochs(self) -> set[int]:
        """Epochs whose states are kept; the initialisation and the last one always are, but for `none`."""
        if self.save_epochs == "none":
            return {0}  # lottery tickets start from it
        if self.save_epochs == "all":
            return set(range(self.n_epochs + 1))
        if self.save_epochs == "auto":
            return {round(self.n_epochs * i / 10) for i in range(11)}
        try:
            epochs = {integer(epoch) for epoch in self.save_epochs.split("-")}
        except ValueError:
            raise FlagError(f"--save_epochs {self.save_epochs}: expected auto, all, none, or epochs such as 0-10-30") from None
        if max(epochs) > self.n_epochs:
            raise FlagError(f"--save_epochs {self.save_epochs}: the run has only --n_epochs {self.n_epochs}")
        return epochs | {0, self.n_epochs}

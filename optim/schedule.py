"""Learning rates as functions of time alone, so that a resumed run needs no scheduler state."""

import math
from typing import TYPE_CHECKING

from helper.schema.registry import reads
from helper.schema.values import dashed_values

if TYPE_CHECKING:
    from optim.config import TrainConfig


@reads("lr_milestones", "lr_gamma")
def stepwise(config: "TrainConfig", epoch: int) -> float:
    """Times lr_gamma at every milestone."""
    return config.lr_gamma ** sum(epoch >= milestone for milestone in dashed_values(config.lr_milestones))


@reads("lr_gamma")
def exponential(config: "TrainConfig", epoch: int) -> float:
    """Times lr_gamma after every epoch."""
    return config.lr_gamma**epoch


@reads()
def cosine(config: "TrainConfig", epoch: int) -> float:
    """Half a cosine from 1 to 0 over the epochs after the warm-up (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / (config.n_epochs - config.warmup_epochs)))


@reads()
def constant(config: "TrainConfig", epoch: int) -> float:
    return 1.0


SCHEDULES = {"stepwise": stepwise, "exponential": exponential, "cosine": cosine, "constant": constant}


def learning_rate(config: "TrainConfig", epoch: int, step: int, steps_per_epoch: int) -> float:
    """The rate of one step: linear from 0 over the warm-up epochs, then the schedule; `epoch` and `step` count from 0."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch * steps_per_epoch + step + 1) / (config.warmup_epochs * steps_per_epoch)
    return config.lr * SCHEDULES[config.lr_schedule](config, epoch)

"""Learning rates as functions of time alone, so that a resumed run needs no scheduler state.

A schedule gives the factor of the learning rate in an epoch, counted from 0.
"""

import math
from collections.abc import Callable

from helper.schema.values import dashed_values


def stepwise(epoch: int, *, lr_milestones: str, lr_gamma: float) -> float:
    """Times lr_gamma at every milestone."""
    return lr_gamma ** sum(epoch >= milestone for milestone in dashed_values(lr_milestones))


def exponential(epoch: int, *, lr_gamma: float) -> float:
    """Times lr_gamma after every epoch."""
    return lr_gamma**epoch


def cosine(epoch: int, *, n_epochs: int, warmup_epochs: int) -> float:
    """Half a cosine from 1 to 0 over the epochs after the warm-up (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (n_epochs - warmup_epochs)))


def constant(epoch: int) -> float:
    return 1.0


SCHEDULES = {
    "stepwise": stepwise,
    "exponential": exponential,
    "cosine": cosine,
    "constant": constant,
}


def learning_rate(
    schedule: Callable[[int], float], epoch: int, step: int, steps_per_epoch: int, *, lr: float, warmup_epochs: int
) -> float:
    """The rate of one step: linear from 0 over the warm-up epochs, then the schedule; `epoch` and `step` count from 0."""
    if epoch < warmup_epochs:
        return lr * (epoch * steps_per_epoch + step + 1) / (warmup_epochs * steps_per_epoch)
    return lr * schedule(epoch)

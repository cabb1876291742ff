"""What a training step with penalties, or a sharpness-aware one, costs, in forward passes of multiply-accumulates."""

import itertools
from collections.abc import Sequence

from helper.schema.config import Config
from optim.meter import PASSES
from optim.regularizer import OfGradient, Weighted, weighted_penalties

TWICE = 6  # the backward pass of a gradient: four for the backward pass in it, two for the forward pass
BACKWARD = 2
BY_INPUTS = 3  # a derivative by the inputs, and its own: by what it went back from, and by the weights


def passes_of(config: Config, active: Sequence[Weighted]) -> int:
    """Of one step, in which these penalties have a weight: 3 for the loss.

    A penalty on the gradient takes a backward pass of its own, unless the step's is that already, and then a step at other
    weights (`--reg_method difference`) or the derivative of that pass, of which the last part is the loss's own backward
    pass. One on the outputs takes what `BY_INPUTS` says if it differentiates them by the inputs, however gradients are
    penalised; otherwise nothing.
    """
    passes = PASSES
    for weighted in active:
        if not isinstance(weighted.penalty, OfGradient):
            passes += BY_INPUTS * weighted.penalty.differentiates
        elif config.reg_method == "difference":
            passes += PASSES + BACKWARD * needs_own_pass(weighted, active)
        else:
            passes += TWICE
    return passes * (2 if config.sharpness_aware else 1)


def needs_own_pass(weighted: Weighted, active: Sequence[Weighted]) -> bool:
    """Whether the gradient of which a penalty is has to be found apart from that of the step's loss."""
    return weighted.penalty.drawn or len(active) > 1


def active_at(penalties: Sequence[Weighted], progress: float) -> list[Weighted]:
    """Those that have a weight after a share of training."""
    return [weighted for weighted in penalties if weighted.weight_at(progress)]


def changes_between(config: Config, begin: float, end: float) -> list[float]:
    """Shares of training at which the steps between two of them have other penalties than before, with these two."""
    found = {float(w.schedule.partition(":")[2]) for w in weighted_penalties(config) if w.schedule.startswith("until")}
    return sorted({begin, *(change for change in found if begin < change < end), end})


def mean_passes(config: Config, begin: float = 0.0, end: float = 1.0) -> float:
    """`passes_of` over the steps between two shares of training."""
    penalties, moments = weighted_penalties(config), changes_between(config, begin, end)
    parts = list(itertools.pairwise(moments)) or [(begin, begin)]
    without, every = passes_of(config, []), config.reg_every
    having = [passes_of(config, active_at(penalties, (first + last) / 2)) for first, last in parts]
    passes = [without + (n - without) / every for n in having]
    if len(set(passes)) == 1:
        return float(passes[0])
    return sum((last - first) * n for (first, last), n in zip(parts, passes, strict=True)) / (end - begin)

"""What is left of dense steps where active weights alone are computed, by the rule that chooses the layers."""

import bisect
import functools
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from helper.masks.growth import GROWTHS
from helper.masks.schedules import Span
from helper.sparse.choice import WORTH, chosen_counts, relative_cost
from loader.main import Sizes
from optim.batches import steps_per_epoch
from optim.config import RunConfig
from optim.sparse_step import may_be_sparse
from optim.updating import MaskSchedule
from study.sweeping.masks_to_come import layers_of, network_of


@dataclass(frozen=True)
class Shares:
    """Of the time of dense ones: the mean over a run's steps, and {epoch: that of a pass after it}."""

    training: float
    passes: dict[int, float]


def sparse_shares(config: RunConfig, sizes: Sizes, last: int) -> Shares:
    """Of the epochs of a run that are still to come.

    Args:
        last: epoch that the tables have; that before the first one where the run has not begun.
    """
    updater, n_epochs = config.mode_spec.updater, config.train.n_epochs
    to_come = range(last + 1, n_epochs + 1)
    if not config.mode_spec.has_mask or not may_be_sparse(config.train, config.device):
        return Shares(1.0, dict.fromkeys(to_come, 1.0))
    if not isinstance(updater, MaskSchedule):
        share = step_of(config, sizes, config.prune.prune_ratio).share
        return Shares(share, dict.fromkeys(to_come, share))
    n_steps = steps_per_epoch(sizes.train, config.train.batch_size)
    changing = Changing(config, updater, updater.span(config, n_steps))
    begin, end = max(last, config.first_epoch) * n_steps, n_epochs * n_steps

    def share_in(step: int) -> float:
        return step_of(config, sizes, changing.pruned_in(step)).share

    changes = [step for step in changing.steps if begin <= step < end]
    lengths = itertools.pairwise(sorted({begin, *changes, end}))
    total = sum((following - step) * share_in(step) for step, following in lengths)
    total += sum(1 - share_in(step) for step in changes if changing.needs_dense_gradient(step))
    passes = {epoch: share_in(epoch * n_steps - 1) for epoch in to_come}
    return Shares(total / (end - begin) if end > begin else 1.0, passes)


@dataclass(frozen=True)
class Changing:
    """The masks that a run will have one after the other."""

    config: RunConfig
    updater: MaskSchedule
    span: Span

    @functools.cached_property
    def steps(self) -> list[int]:
        """Before which there is a change, counted from 0."""
        return self.span.changes()

    def pruned_in(self, step: int) -> float:
        """Share of the prunable weights that is pruned in a step; before a mask that grows in training begins, none."""
        former = bisect.bisect_right(self.steps, step) - 1
        if former < 0 and self.updater.begins:
            return 0.0
        return self.updater.sparsity(self.steps[max(former, 0)], self.span, self.config.prune.prune_ratio)

    def needs_dense_gradient(self, step: int) -> bool:
        """Whether a step with a change takes the gradients of pruned weights too, so that it is a dense one."""
        masks = self.config.prune
        return GROWTHS[masks.growth].dense_gradient and self.updater.replaced(step, self.span, masks.drop_fraction) > 0


def weights_without_state(config: RunConfig, sizes: Sizes) -> int:
    """Pruned weights for which the optimiser of a finished run holds nothing, see `optim.active_weights`."""
    whole = config.metrics.save_snr and config.metrics.snr_mode == "online"
    if whole or not config.mode_spec.has_mask or not may_be_sparse(config.train, config.device):
        return 0
    return step_of(config, sizes, config.prune.prune_ratio).left_out


class Step(NamedTuple):
    """One step of a run.

    share: of a dense one's time that it takes. left_out: pruned weights of the linear layers that it computes sparsely.
    """

    share: float = 1.0
    left_out: int = 0


def step_of(config: RunConfig, sizes: Sizes, pruned: float) -> Step:
    """Where a share of the weights that may be pruned is."""
    return step_at(
        network_of(config, sizes), config.allocation, config.train.batch_size, config.train.sparse_step == "1", pruned
    )


@functools.cache
def step_at(network: tuple[Any, ...], allocation: str, batch_size: int, always: bool, pruned: float) -> Step:
    """`step_of`, for all runs of one kind at once.

    Args:
        network: what `layers_of` takes.
        always: sparse also where the rule expects no gain, as by --sparse_step 1.
    """
    layers = layers_of(*network)
    counts = layers.counts(allocation, pruned)
    chosen = chosen_counts(layers.network, counts, layers.uses)
    if not chosen or all(n == layers.sizes[name] for name, n in counts.items()):
        return Step()
    cost = relative_cost(layers.network, chosen, layers.uses, batch_size)
    if not always and cost >= WORTH:
        return Step()
    linear = [name for name in chosen if isinstance(layers.network.get_submodule(name), nn.Linear)]
    return Step(cost, sum(layers.sizes[f"{name}.weight"] - chosen[name] for name in linear))

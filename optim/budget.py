"""--train_budget: as many epochs as cost so many times what the dense run of the same flags does."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helper.mask import Mask
from helper.masks.growth import GROWTHS
from helper.metrics.macs import macs_of, sizes_of_weights, uses_of_weights
from helper.pruner import SCORES
from helper.schema.config import FlagError, replace
from helper.schema.values import dashed_values
from helper.system.seeds import stream
from loader.dataset import Dataset
from optim.batches import steps_per_epoch
from optim.meter import PASSES
from optim.model import Beginning
from optim.pruning import Pruning
from optim.step_price import changes_between, mean_passes
from optim.subsets.main import Shown, choosing_passes, shown_by
from optim.train_config import TrainConfig
from optim.updating import MaskSchedule

MOST = 1000  # times as many epochs as --n_epochs says
SHADES = 20  # densities at which the cost of a mask that is yet to come is found out


def within_budget(config: Any, beginning: Beginning, dataset: Dataset, scoring: int = 0) -> Any:
    """The configuration by which a run trains: its own, or with as many epochs as its budget allows.

    Everything that is told in epochs or steps is stretched alike: milestones, warm-up, the decay of an exponential schedule,
    kept states, first and last change of the mask. Counted are the run's own steps and its scores, not its parents'.

    Args:
        scoring: multiply-accumulates that scores of its training examples have taken.
    Raises:
        FlagError: the budget is below one epoch, or as many as the mask's changes take, or above `MOST` times the epochs of
            `--n_epochs`.
    """
    budget = config.train.train_budget
    if budget is None:
        return config
    costs = Costs(config, beginning, dataset, scoring)
    wanted, n_epochs = budget * costs.dense, config.train.n_epochs
    fewest = next((epochs for epochs in range(1, n_epochs) if costs.changes_fit(epochs)), n_epochs)
    if costs.of(fewest) > wanted:
        words = "one epoch already costs" if fewest == 1 else f"{fewest} epochs, in which all changes of the mask fit, cost"
        raise FlagError(f"--train_budget {budget:g}: {words} {costs.of(fewest) / costs.dense:.2g} of the dense run")
    low, high = fewest, fewest + 1
    while high < MOST * n_epochs and costs.of(high) <= wanted:  # of many epochs all changes of the mask take long to count
        low, high = high, min(2 * high, MOST * n_epochs)
    while high - low > 1:  # costs grow with the epochs
        middle = (low + high) // 2
        low, high = (middle, high) if costs.of(middle) <= wanted else (low, middle)
    nearest = min((low, high), key=lambda epochs: abs(costs.of(epochs) - wanted))
    if nearest >= MOST * n_epochs:
        raise FlagError(f"--train_budget {budget:g}: that would be more than {MOST} times --n_epochs {n_epochs}")
    return stretched(config, nearest)


def stretched(config: Any, n_epochs: int) -> Any:
    """A configuration with another number of epochs, and all that is told in epochs or steps in proportion."""
    train, masks, factor = config.train, config.prune, n_epochs / config.train.n_epochs

    def scaled(epochs: str, least: int) -> str:
        return "-".join(map(str, sorted({max(least, round(epoch * factor)) for epoch in dashed_values(epochs)})))

    changes = {"n_epochs": n_epochs, "train_budget": None, "lr_milestones": scaled(train.lr_milestones, 1)}
    changes["warmup_epochs"] = min(round(train.warmup_epochs * factor), n_epochs - 1)
    if train.lr_schedule == "exponential":
        changes["lr_gamma"] = train.lr_gamma ** (1 / factor)
    if train.save_epochs not in ("auto", "all", "none"):
        changes["save_epochs"] = scaled(train.save_epochs, 0)
    for name in ("mask_begin", "mask_end"):
        moment = getattr(masks, name)
        changes[name] = moment if moment <= 1 else max(2.0, round(moment * factor))
    return replace(config, **changes)


@dataclass(frozen=True)
class Costs:
    """What training costs, in multiply-accumulates, before it has begun.

    Exact for a mask that stays and for one whose layers keep their numbers of weights. Of a mask that is yet to come, the
    numbers are those of pruning the network that the run begins with.
    """

    config: Any
    beginning: Beginning
    dataset: Dataset
    scoring: int = 0

    @functools.cached_property
    def dense(self) -> float:
        """Of the dense run: as many epochs as `--n_epochs`, every weight active, each step of three passes."""
        return self.config.train.n_epochs * len(self.dataset.train) * PASSES * self.whole

    @functools.cached_property
    def uses(self) -> dict[str, int]:
        return uses_of_weights(self.beginning.network, self.dataset.input_shape)

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        return sizes_of_weights(self.beginning.network)

    @functools.cached_property
    def whole(self) -> int:
        """Of one example forward, every weight active."""
        return macs_of(self.uses, self.sizes)

    def forward(self, mask: Mask) -> int:
        """Of one example forward at a mask."""
        return macs_of(self.uses, self.sizes | mask.counts())

    @functools.cached_property
    def at(self) -> Callable[[float], float]:
        """Of one example forward, where a share of the weights is pruned; linear between `SHADES` densities."""
        pruning = Pruning(self.config, self.dataset)
        final, network, whole = self.config.prune.prune_ratio, self.beginning.network, self.beginning.mask
        if final == 0:
            return lambda share: float(self.whole)
        shares = [final * k / SHADES for k in range(SHADES + 1)]
        found = [
            self.forward(pruning.mask(network, share, stream(0, "costs"), score="l1", within=whole, rounds=1))
            for share in shares
        ]

        def interpolated(share: float) -> float:
            place = min(share / final * SHADES, SHADES)
            left = min(int(place), SHADES - 1)
            return found[left] + (place - left) * (found[left + 1] - found[left])

        return interpolated

    def changes_fit(self, n_epochs: int) -> bool:
        """Whether the mask's last change comes before the last of so many epochs' steps, of which there may be few."""
        updater = self.config.mode_spec.updater
        if not isinstance(updater, MaskSchedule):
            return True
        n_steps = n_epochs * steps_per_epoch(len(self.dataset.train), self.config.train.batch_size)
        begin, end = updater.bounds(stretched(self.config, n_epochs).prune, n_steps)
        return begin <= end < n_steps

    def of(self, n_epochs: int) -> float:
        """Of so many epochs of this run, with what its scores took."""
        config, n, batch_size = self.config, len(self.dataset.train), self.config.train.batch_size
        updater, shown = config.mode_spec.updater, shown_by(config.subset, n_epochs=n_epochs, n=n, batch_size=batch_size)
        choosing = choosing_passes(config.subset, shown, self.dataset.n_classes)
        total = float(self.beginning.macs + self.scoring)
        if not isinstance(updater, MaskSchedule):
            passes = passes_between(config.train, shown, 0.0, 1.0) + n_epochs * choosing
            return total + n * passes * self.forward(self.beginning.mask)
        n_steps = steps_per_epoch(n, batch_size)
        span, masks = updater.span(stretched(config, n_epochs), n_steps), config.prune
        moments = [0, *(step for step in span.changes() if step > 0), n_epochs * n_steps]
        pruned = 0.0
        for step, following in itertools.pairwise(moments):
            former, pruned = pruned, updater.sparsity(step, span, masks.prune_ratio)
            forward = self.at(pruned) if updater.begins else self.forward(self.beginning.mask)
            passes = passes_between(config.train, shown, step / moments[-1], following / moments[-1])
            total += n * (passes + (following - step) / n_steps * choosing) * forward
            if updater.begins and pruned and pruned != former:
                total += self.scoring_passes * (self.at(former) if pruned > former else self.whole)
            if pruned and updater.replaced(step, span, masks.drop_fraction):
                total += self.scoring_passes * forward
                if GROWTHS[masks.growth].dense_gradient:
                    total += shown.trained[min(step // n_steps, n_epochs - 1)] * n / n_steps * (self.whole - forward)
        return total

    @functools.cached_property
    def scoring_passes(self) -> float:
        """What scores for one change of the mask take, in forward passes of one example."""
        score = SCORES[self.config.prune.prune_method]
        examples = len(Pruning(self.config, self.dataset).rows()) if score.data else 1
        return score.passes * examples


def passes_between(config: TrainConfig, shown: Shown, begin: float, end: float) -> float:
    """What the steps between two shares of training take, in forward passes of the whole training set."""
    parts = itertools.pairwise(changes_between(config, begin, end))
    return sum(shown.between(*part) * mean_passes(config, *part) for part in parts)

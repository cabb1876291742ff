"""What a mask will take, before there is one: the epochs that `--train_budget` is expected to allow, and its scores."""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from helper.masks.allocation import ALLOCATIONS, Shapes, filled, sizes_of
from helper.metrics.macs import macs_of, sizes_of_weights, uses_of_weights
from helper.pruner import SCORES, classifier_of, prunable_weights
from loader.main import Sizes
from network.main import NetworkConfig, build_network
from optim.batches import steps_per_epoch
from optim.budget import passes_between, stretched
from optim.config import RunConfig
from optim.meter import PASSES
from optim.pruning import EXAMPLES_A_CLASS
from optim.subsets.main import choosing_passes, shown_by
from optim.updating import MaskSchedule


def with_expected_epochs(config: RunConfig, sizes: Sizes) -> RunConfig:
    """With the epochs that its budget will allow; exactly how many, the run says once it has its mask.

    Neither scores nor the gradients of pruned weights are counted.
    """
    budget = config.train.train_budget
    if budget is None:
        return config
    n_epochs = config.train.n_epochs
    shown = shown_by(config.subset, n_epochs=n_epochs, n=sizes.train, batch_size=config.train.batch_size)
    choosing = choosing_passes(config.subset, shown, sizes.n_classes)
    passes = passes_between(config.train, shown, 0.0, 1.0) / n_epochs + choosing
    cost = mean_cost(config, sizes) * passes / PASSES
    return stretched(config, max(1, round(n_epochs * budget / cost)))


def mean_cost(config: RunConfig, sizes: Sizes) -> float:
    """Multiply-accumulates of a step, relative to a dense network's, averaged over training."""
    updater, final = config.mode_spec.updater, config.prune.prune_ratio
    if not isinstance(updater, MaskSchedule):
        return cost_at(config, sizes, final)
    n_steps = steps_per_epoch(sizes.train, config.train.batch_size)
    span, total = updater.span(config, n_steps), n_steps * config.train.n_epochs
    moments = range(0, total, max(1, total // 200))
    return sum(cost_at(config, sizes, updater.sparsity(step, span, final)) for step in moments) / len(moments)


def cost_at(config: RunConfig, sizes: Sizes, share: float) -> float:
    """Multiply-accumulates of one example, relative to a dense network's, where a share of the weights is pruned."""
    layers = layers_for(config, sizes)
    counts = layers.counts(config.allocation, share)
    return macs_of(layers.uses, layers.sizes | counts) / macs_of(layers.uses, layers.sizes)


def scoring_images(config: RunConfig, sizes: Sizes) -> float:
    """What scores of weights take, in images of a training step; of all changes of a mask that changes."""
    if not config.mode_spec.has_mask:
        return 0.0
    score, masks, updater = SCORES[config.prune.prune_method], config.prune, config.mode_spec.updater
    batches = masks.score_batches
    examples = EXAMPLES_A_CLASS * sizes.n_classes if batches is None else min(batches * config.train.batch_size, sizes.train)
    once = score.passes / PASSES * (examples if score.data else 1)
    if not isinstance(updater, MaskSchedule):
        return once * (masks.score_rounds or score.rounds)
    span = updater.span(config, steps_per_epoch(sizes.train, config.train.batch_size))
    return once * len(span.changes())


@dataclass(frozen=True)
class Layers:
    """A network with uses and sizes of its weights, shapes of those that may be pruned, and the classifier's name."""

    network: nn.Module
    uses: dict[str, int]
    sizes: dict[str, int]
    prunable: Shapes
    head: str | None

    def counts(self, allocation: str, share: float) -> dict[str, int]:
        """{weight name: active elements} where a share of the weights that may be pruned is.

        Where no allocation says how many weights each layer keeps, all are taken to keep the same share.
        """
        sizes = sizes_of(self.prunable)
        n = sum(sizes.values())
        spread, total = ALLOCATIONS[allocation], n - round(share * n)
        return filled(sizes, total, sizes) if spread is None else spread(self.prunable, total, head=self.head)


def layers_for(config: RunConfig, sizes: Sizes) -> Layers:
    return layers_of(*network_of(config, sizes))


def network_of(config: RunConfig, sizes: Sizes) -> tuple[NetworkConfig, tuple[int, ...], int, bool, tuple[str, ...]]:
    """What decides which layers there are, and which of them can be pruned."""
    return config.network, sizes.input_shape, sizes.n_classes, config.prune.prune_last, config.prune.beside_layers


@functools.cache
def layers_of(
    config: NetworkConfig, input_shape: tuple[int, ...], n_classes: int, prune_last: bool, also: tuple[str, ...] = ()
) -> Layers:
    network = build_network(config, input_shape, n_classes, torch.Generator())
    head = config.spec.head_name(network)
    weights = prunable_weights(network, prune_last, head, also)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    last = classifier_of(network, weights, head) if prune_last else None
    return Layers(network, uses_of_weights(network, input_shape), sizes_of_weights(network), shapes, last)

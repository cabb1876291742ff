"""How the flags of a run prune its networks: which score, on which data, with which allocation."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from helper.mask import Mask
from helper.masks.context import Context
from helper.metrics.macs import macs_of, sizes_of_weights, uses_of_weights
from helper.pruner import SCORES, prunable_weights, prune, scores_of, whole_mask
from helper.schema.config import FlagError
from helper.system.seeds import stream
from loader.dataset import Dataset
from optim.batches import batches_with_statistics

EXAMPLES_A_CLASS = 10  # that a score reads at least, unless told otherwise


@dataclass
class Pruning:
    """The masks of one run.

    Args:
        config: a `RunConfig`.
        dataset: whose training examples a score reads.
    Attributes:
        macs: multiply-accumulates that scores have taken.
        uses: of the weights of its networks, which are all of one architecture; None until a score has its price.
    """

    config: Any
    dataset: Dataset
    macs: int = field(default=0, init=False)
    uses: dict[str, int] | None = field(default=None, init=False)

    def mask(
        self, network: nn.Module, ratio: float, generator: torch.Generator, *,
        score: str | None = None, within: Mask | None = None, rounds: int | None = None,
    ) -> Mask:  # fmt: skip
        """The mask that prunes a share of the weights.

        Args:
            score: of SCORES; default: that of `--prune_method`. rounds: default: those of `--score_rounds`.
            within: only weights that it has can stay.
        Raises:
            FlagError: the flags cannot have that on this network and these data.
        """
        flags, score = self.config.prune, score or self.config.prune.prune_method
        try:
            return prune(
                network, generator, prune_ratio=ratio, prune_method=score, prune_last=flags.prune_last, head=self.head(network),
                also=flags.beside_layers, allocation=self.config.allocation, score_rounds=rounds or flags.score_rounds,
                within=within, watch=lambda mask: self.count(network, mask, score), **self.data_for(score, network),
            )  # fmt: skip
        except ValueError as error:
            raise FlagError(str(error)) from None

    def whole(self, network: nn.Module) -> Mask:
        """The mask of all that may be pruned, in which nothing is."""
        return whole_mask(self.prunable(network))

    def prunable(self, network: nn.Module) -> dict[str, Tensor]:
        flags = self.config.prune
        return prunable_weights(network, flags.prune_last, self.head(network), flags.beside_layers)

    def scores(self, network: nn.Module, mask: Mask, generator: torch.Generator) -> dict[str, Tensor]:
        """By `--prune_method`, of the weights of a network whose pruned weights are zero."""
        score = self.config.prune.prune_method
        weights = {name: network.get_parameter(name).detach() for name in mask}
        self.count(network, mask, score)
        return scores_of(Context(network, weights, mask, generator, **self.data_for(score, network)), score)

    def head(self, network: nn.Module) -> str | None:
        return self.config.network.spec.head_name(network)

    def data_for(self, score: str, network: nn.Module) -> dict[str, Any]:
        """What a score may look at beside the network."""
        shape = {"n_classes": self.dataset.n_classes, "input_shape": self.dataset.input_shape}
        batches = self.batches(next(network.parameters()).device) if SCORES[score].data else None
        return {"batches": batches, "memory_mb": self.config.metrics.metric_memory_mb, **shape}

    def batches(self, device: torch.device) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        """Gives the batches of training data that a score reads, the same at every call."""
        pieces = batches_with_statistics(self.rows(), self.config.train.batch_size)

        def read() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in pieces:
                part = self.dataset.train[rows.to(self.dataset.train.labels.device)].to(device)
                yield self.dataset.normalise(part.inputs), part.labels

        return read

    def rows(self) -> Tensor:
        """Training examples that a score reads: so many batches, or ten of every class.

        Raises:
            FlagError: there are fewer.
        """
        labels, n_batches = self.dataset.train.labels.cpu(), self.config.prune.score_batches
        order = torch.randperm(len(labels), generator=stream(self.config.random_state, "score"))
        if n_batches is not None:
            there = math.ceil(len(labels) / self.config.train.batch_size)
            if n_batches > there:
                raise FlagError(f"--score_batches {n_batches}: the {len(labels)} training examples make {there} batches")
            return order[: n_batches * self.config.train.batch_size]
        place = torch.stack([(labels[order] == c).cumsum(0) for c in range(self.dataset.n_classes)])  # (classes, N)
        fewest = int(place[:, -1].min())
        if fewest < EXAMPLES_A_CLASS:
            raise FlagError(
                f"--prune_method {self.config.prune.prune_method} reads {EXAMPLES_A_CLASS} training examples of every class, "
                f"but one has {fewest}: raise --limit_train, or give --score_batches"
            )
        own = place.gather(0, labels[order][None])[0]  # which example of its class each one is
        return order[own <= EXAMPLES_A_CLASS]

    def count(self, network: nn.Module, mask: Mask, score: str) -> None:
        """Add what scoring at a mask takes."""
        passes = SCORES[score].passes
        if not passes:
            return
        n = len(self.rows()) if SCORES[score].data else 1
        if self.uses is None:
            self.uses = uses_of_weights(network, self.dataset.input_shape)
        self.macs += round(passes * n * macs_of(self.uses, sizes_of_weights(network) | mask.counts()))

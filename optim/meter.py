"""What training has cost, counted over the steps that were taken."""

from dataclasses import dataclass, field
from typing import Any

from helper.mask import Mask
from helper.metrics.macs import macs_of

PASSES = 3  # forward, gradient by the inputs of every layer, gradient by its weights: each as many multiply-accumulates


@dataclass
class Meter:
    """Adds up multiply-accumulates and density over the real steps of a run, at the mask that each of them has.

    A step of n examples counts n x 3 x the multiply-accumulates of one forward pass through the weights that are active in
    it, as `count_macs` has them: for the forward pass, for the gradient by every layer's inputs, and for the gradient by its
    weights. Penalties and sharpness-aware steps take further passes, see optim/step_price.py. Where the
    gradients of pruned weights are needed as well, the last is that of all weights. The first layer counts
    like the others, although its inputs need no gradient. Scores that read data or the network are counted, of weights and
    of examples to choose from; evaluation and measurements are no training and are not.

    Attributes:
        uses, sizes: of the network's weights, see helper/metrics/macs.py.
        macs: of all steps so far. macs_dense: of the same steps without a mask.
        steps: taken in the epoch under way. active_steps: sum of the active weights of the masked layers over these steps.
        replaced: weights that became active in it.
    """

    uses: dict[str, int]
    sizes: dict[str, int]
    macs: int = 0
    macs_dense: int = 0
    steps: int = 0
    active_steps: int = 0
    replaced: int = 0
    n_weights: int = field(default=0, init=False)  # of the masked layers
    n_active: int = field(default=0, init=False)

    def follow(self, mask: Mask) -> None:
        """From now on steps have this mask."""
        counts = mask.counts()
        self.n_weights, self.n_active = mask.n_weights, sum(counts.values())
        self.per_example = PASSES * macs_of(self.uses, self.sizes | counts)
        self.per_example_dense = PASSES * macs_of(self.uses, self.sizes)

    def add_step(self, n_examples: int, passes: int = PASSES) -> None:
        """One step at the present mask.

        Args:
            passes: that it takes, each of as many multiply-accumulates as the forward pass.
        """
        self.add_steps(1, n_examples)
        self.macs += n_examples * (passes - PASSES) * (self.per_example // PASSES)
        self.macs_dense += n_examples * (passes - PASSES) * (self.per_example_dense // PASSES)

    def add_steps(self, n_steps: int, n_examples: int) -> None:
        """Steps at the present mask, which have so many examples together."""
        self.macs += n_examples * self.per_example
        self.macs_dense += n_examples * self.per_example_dense
        self.steps += n_steps
        self.active_steps += n_steps * self.n_active

    def add_dense_gradient(self, n_examples: int) -> None:
        """In a step of so many examples the gradients of pruned weights are needed as well."""
        self.macs += n_examples * (self.per_example_dense - self.per_example) // PASSES

    def add_passes(self, n_examples: int, passes: int) -> None:
        """To choose its examples, a step has taken so many of the products of a forward pass with so many."""
        self.macs += n_examples * passes * self.per_example // PASSES
        self.macs_dense += n_examples * passes * self.per_example_dense // PASSES

    def add_scoring(self, macs: int) -> None:
        """Scores of weights, on which a mask was based, took so much."""
        self.macs += macs

    def add_replaced(self, n_weights: int) -> None:
        """A change of the mask made so many weights active that were not."""
        self.replaced += n_weights

    def begin_epoch(self) -> None:
        self.steps = self.active_steps = self.replaced = 0

    @property
    def churn(self) -> float:
        """Weights that became active in the epoch, as a share of those that are active now."""
        return self.replaced / self.n_active if self.n_active else 0.0

    @property
    def density(self) -> float:
        """Share of the masked layers' weights that is active: mean over the epoch's steps, or at present before the first."""
        if not self.n_weights:
            return 1.0
        return self.active_steps / (self.steps * self.n_weights) if self.steps else self.n_active / self.n_weights

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("macs", "macs_dense", "steps", "active_steps", "replaced")}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self.state():
            setattr(self, name, int(state.get(name, 0)))  # a checkpoint from before masks could change counts no replaced ones

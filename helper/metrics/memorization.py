"""How a network deals with corrupted labels (paper, figure 4)."""

from dataclasses import dataclass

from torch import Tensor

from helper.metrics.running_sums import RunningSums


@dataclass(frozen=True)
class NoisySums(RunningSums):
    """`RunningSums` of examples some of which are mislabelled.

    Attributes:
        mislabelled: how many of the examples. loss_noisy: theirs, for the given wrong label.
        generalized, memorized: how many of them are predicted as their true and as their given label.
        loss_clean, correct_clean: of the others.
    """

    mislabelled: Tensor
    loss_noisy: Tensor
    generalized: Tensor
    memorized: Tensor
    loss_clean: Tensor
    correct_clean: Tensor

    def means(self) -> dict[str, float]:
        """With {loss, acc}_clean of examples whose label is true, and loss_noisy, acc_generalized and acc_memorized of the
        others; nan where there are none."""
        n_noisy = self.mislabelled.item()
        n_clean = self.examples.item() - n_noisy

        def mean(total: Tensor, count: float) -> float:
            return total.item() / count if count else float("nan")

        return super().means() | {
            "loss_clean": mean(self.loss_clean, n_clean),
            "loss_noisy": mean(self.loss_noisy, n_noisy),
            "acc_clean": mean(self.correct_clean, n_clean),
            "acc_generalized": mean(self.generalized, n_noisy),
            "acc_memorized": mean(self.memorized, n_noisy),
        }

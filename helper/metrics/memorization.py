"""How a network deals with corrupted labels (paper, figure 4)."""

import torch
from torch import Tensor

SUMS = ("n_noisy", "loss_noisy", "generalized", "memorized", "loss_clean", "correct_clean")


def noisy_sums(losses: Tensor, predicted: Tensor, labels: Tensor, true_labels: Tensor) -> Tensor:
    """(6,) sums over a batch of per-example quantities, named by SUMS; they add up over batches of any size."""
    noisy = labels != true_labels
    zero = losses.new_zeros(())  # torch.where and not indexing: no wait for the device
    return torch.stack(
        [
            noisy.sum(),
            torch.where(noisy, losses, zero).sum(),
            (noisy & (predicted == true_labels)).sum(),
            (noisy & (predicted == labels)).sum(),
            torch.where(noisy, zero, losses).sum(),
            (~noisy & (predicted == labels)).sum(),
        ]
    )


def noisy_means(sums: list[float], n: float) -> dict[str, float]:
    """History columns from `noisy_sums` over n examples; nan where there is no such example.

    loss_clean, acc_clean: on examples whose label is true. loss_noisy: on the others, for their given wrong label;
    acc_generalized, acc_memorized: shares of them predicted as their true and as their given label.
    """
    total = dict(zip(SUMS, sums, strict=True))
    n_noisy, n_clean = total["n_noisy"], n - total["n_noisy"]

    def mean(name: str, count: float) -> float:
        return total[name] / count if count else float("nan")

    return {
        "loss_clean": mean("loss_clean", n_clean),
        "loss_noisy": mean("loss_noisy", n_noisy),
        "acc_clean": mean("correct_clean", n_clean),
        "acc_generalized": mean("generalized", n_noisy),
        "acc_memorized": mean("memorized", n_noisy),
    }

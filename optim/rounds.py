"""Iterative pruning: how much every round prunes.

After k rounds that each remove a share p of the surviving weights, 1 - (1 - p)^k of all weights are pruned. The last round
removes less, so that it ends on the share that is asked for.
"""

from helper.schema.config import FlagError

MOST_ROUNDS = 200
DIGITS = 12  # of a share after the point: what floats leave of (1 - p)^k beyond them depends on how it is computed


def canonical(prune_ratio: float) -> float:
    """The same number for every way in which a share is written or computed, so that it names one run."""
    rounded = round(prune_ratio, DIGITS)
    return rounded if rounded < 1 else prune_ratio


def ratio_after(rounds: int, prune_step: float) -> float:
    """Share that is pruned after so many full rounds."""
    return round(1 - (1 - prune_step) ** rounds, DIGITS)


def ratios(prune_ratio: float, prune_step: float) -> list[float]:
    """The share that is pruned after every round; the last one is `prune_ratio`, which is canonical.

    Raises:
        ValueError: these would be more than MOST_ROUNDS.
    """
    found: list[float] = []
    while (ratio := ratio_after(len(found) + 1, prune_step)) < prune_ratio:
        if len(found) + 1 == MOST_ROUNDS:
            raise ValueError(f"it is more than {MOST_ROUNDS} rounds to --prune_ratio {prune_ratio:g}; give more")
        found.append(ratio)
    return [*found, prune_ratio]


def check_rounds(prune_ratio: float, prune_step: float) -> None:
    """Raise FlagError when rounds would prune nothing, or be too many."""
    if prune_ratio == 0:
        raise FlagError("--prune_ratio 0: every round of iterative pruning removes something; use --mode dense")
    try:
        ratios(prune_ratio, prune_step)
    except ValueError as error:
        raise FlagError(f"--prune_step {prune_step:g}: {error}") from None


def check_rewinding(rewind_epoch: int, n_epochs: int, dense_epochs: int | None) -> None:
    """Raise FlagError when a round would begin after its end, or with a state that its dense run never has.

    Args:
        dense_epochs: of the dense run, if a round begins with a state of it and it has other epochs.
    """
    if rewind_epoch >= n_epochs:
        raise FlagError(f"--rewind_epoch {rewind_epoch}: must be below --n_epochs {n_epochs}")
    if dense_epochs is not None and rewind_epoch > dense_epochs:
        raise FlagError(f"--rewind_epoch {rewind_epoch}: the dense run has only --n_epochs_pretrain {dense_epochs}")

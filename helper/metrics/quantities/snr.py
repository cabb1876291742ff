"""--save_snr: signal-to-noise ratio of the mini-batches' gradients."""

import math
from dataclasses import dataclass

from helper.metrics.metric import Metric
from helper.schema.config import Config, flag

SNR_MODES = ("fixed", "online")
SNR_PRECISIONS = ("fp32", "bf16")
EVERY_EPOCH = 30  # up to so many; of longer runs so many and the first
PASS = {"snr_mode": ("fixed",)}


@dataclass(frozen=True)
class SnrFlags(Config):
    snr_mode: str = flag(
        "fixed", "gradients of a pass at fixed weights, or of the training steps themselves, which costs nothing",
        choices=SNR_MODES, identity=False,
    )  # fmt: skip
    snr_every: int | None = flag(
        None, "measure it every K epochs, and of the first and the last; default: every epoch of runs of up to 30, else of 31, "
        "which lie closer together in the beginning", low=1, when=PASS, identity=False,
    )  # fmt: skip
    snr_precision: str = flag(
        "fp32", "of the pass that measures it and the training set's loss and accuracy; bf16: but for the last epoch's",
        choices=SNR_PRECISIONS, when=PASS, identity=False,
    )  # fmt: skip


def snr_epochs(every: int | None, n_epochs: int, first: int = 0) -> set[int]:
    """Epochs after which a pass measures it, the first and the last of them always.

    Unless every K-th is asked for, it is each of a run of up to `EVERY_EPOCH`; of a longer one, of n epochs,
    n (i / 30)^p for i = 0..30 with p = ln n / ln 30, rounded: 0, 1, and then gaps that grow, to p n / 30 at the end.
    """
    n = n_epochs - first
    if every is not None or n <= EVERY_EPOCH:
        return {first, n_epochs} | {epoch for epoch in range(first, n_epochs) if epoch % (every or 1) == 0}
    power = math.log(n) / math.log(EVERY_EPOCH)
    return {first + round(n * (i / EVERY_EPOCH) ** power) for i in range(EVERY_EPOCH + 1)}


class Snr(Metric):
    """It comes out of the training's own passes, layer by layer, and has no `measure`.

    The pass that evaluates the training set, or the training steps, hand each mini-batch's gradients to
    `helper.metrics.snr.GradientMoments`. That pass, which then goes backward as well, is priced with the training.
    """

    name = "snr"
    about = "signal-to-noise ratio of the gradients after every epoch"
    label = "gradient SNR"
    short, usual = "-ss", True
    Flags = SnrFlags
    by_itself = False
    by_subset = False
    file = "snr.csv"

"""--save_snr: signal-to-noise ratio of the mini-batches' gradients."""

from dataclasses import dataclass

from helper.metrics.metric import Metric
from helper.schema.config import Config, flag

SNR_MODES = ("fixed", "online")


@dataclass(frozen=True)
class SnrFlags(Config):
    snr_mode: str = flag(
        "fixed", "gradients of a pass at fixed weights, or of the training steps themselves, which costs nothing",
        choices=SNR_MODES, identity=False,
    )  # fmt: skip


class Snr(Metric):
    """It comes out of the training's own passes, layer by layer, and has no standard error, nor `measure`.

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

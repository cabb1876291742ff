"""What training hands over to the end of a run."""

from dataclasses import dataclass
from typing import Any

from optim.meter import Meter
from optim.trackers.main import Trackers


@dataclass(frozen=True)
class Trained:
    """What training has left.

    Attributes:
        weights: {name in the folder: hash} of its weights files.
        meter: what its steps have cost.
        processes: how many there were.
        sparse_step: how steps were taken in the end, where that was asked for.
        epochs: that it took, more than `--n_epochs` where a budget allowed it.
        trackers: that have followed it.
    """

    weights: dict[str, str]
    meter: Meter
    processes: int
    epochs: int
    trackers: Trackers
    sparse_step: dict[str, Any] | None = None

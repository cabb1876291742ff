"""What hangs on the training loop of a run, in the order in which it is called."""

from helper.system.signals import Signals
from optim.callbacks.callback import Callback
from optim.callbacks.evaluation import Evaluate, Measure, OnlineSNR
from optim.callbacks.examples import CountExamples, CountForgetting
from optim.callbacks.keeping import KeepStates, SelectBest, WriteCheckpoint
from optim.callbacks.recalibration import RecalibrateBatchNorm
from optim.callbacks.tables import Track, WriteHistory
from optim.callbacks.watching import Progress, StopIfDiverged, StopIfGone
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.trackers.main import Trackers


def callbacks_of(
    folder: RunFolder, config: RunConfig, written: dict[str, str], signals: Signals, progress: Progress, trackers: Trackers
) -> list[Callback]:
    """Those of a run.

    What changes the mask comes before all that ask for it, and the checkpoint after everything else that an epoch writes:
    what is on disk beyond the checkpoint is written again.

    Args:
        written: {name in the folder: hash} of weights files, which is added to.
    """
    metrics, make = config.metrics, config.mode_spec.updater
    updater = make(config) if make else None
    online = metrics.save_snr and metrics.snr_mode == "online"
    return [
        StopIfGone(folder),
        *([updater] if updater else []),
        *([OnlineSNR(folder)] if online else []),
        *([RecalibrateBatchNorm()] if config.train.recalibrate_bn else []),
        Evaluate(folder, metrics),
        StopIfDiverged(),
        Measure(folder, metrics, config.random_state),
        SelectBest(folder, written, updater),
        KeepStates(folder, config.saved_epochs(), written),
        CountExamples(),
        *([CountForgetting(folder)] if config.subset.save_forgetting else []),
        WriteHistory(folder),
        Track(trackers),
        progress,
        WriteCheckpoint(folder, written, signals),
    ]

"""The end of a run: its summary, its figures, and a last word to the trackers."""

import logging

from torch import nn

from helper.metrics.main import METRICS
from helper.progress import Task
from loader.dataset import Dataset
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import Stored
from optim.summary import metric_totals, summarise
from optim.trackers.main import Trackers
from optim.trained import Trained

log = logging.getLogger(__name__)


def conclude(
    folder: RunFolder, config: RunConfig, network: nn.Module, dataset: Dataset, trained: Trained, selected: Stored, *,
    measuring: float,
) -> None:  # fmt: skip
    """Summarise and draw a run that has been trained and measured.

    Args:
        network: has the selected weights.
        measuring: seconds that it took.
    """
    summary = summarise(folder, config, network, dataset, trained, selected, measuring)
    summary |= {"files": trained.weights | folder.file_hashes(), "files_pending": {}}
    draw(folder, config)
    folder.check_there()
    folder.write_summary(summary)  # last: now the run is finished
    trained.trackers.end()
    log.info("test accuracy %.4f (epoch %d), %s", summary["acc_test"], summary["epoch_selected"], folder.path)


def refresh_summary(folder: RunFolder, config: RunConfig) -> None:
    """Bring summary and figures of a finished run up to what has been measured, be it by a process that was killed."""
    if folder.summarised:
        return
    summary = folder.read_summary()
    weights = {name: known for name, known in summary["files"].items() if name.endswith(".pt")}
    summary |= {"files": weights | folder.file_hashes(), "files_pending": {}}
    summary["metrics"] = metric_totals(folder, summary["epoch_selected"])
    draw(folder, config)
    folder.write_summary(summary)


def draw(folder: RunFolder, config: RunConfig) -> None:
    if config.figures:
        from helper.plotter.main import draw_run  # matplotlib takes a second to import

        with Task("drawing figures") as task:
            for _ in draw_run(folder.path, {name: metric.axis for name, metric in METRICS.items()}):
                task.advance()


def track(folder: RunFolder, config: RunConfig) -> None:
    Trackers(config.tracker, folder).end()

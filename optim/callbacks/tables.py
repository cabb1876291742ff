"""history.csv, and those who follow it."""

import time

from helper.processes.first import broadcast_from_first
from helper.system.memory import peak_memory_mb
from optim.callbacks.callback import Callback
from optim.folder import RunFolder
from optim.trackers.main import Trackers
from optim.trainer import Trainer


class WriteHistory(Callback):
    """history.csv, one row an epoch."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_start(self, trainer: Trainer) -> None:
        self.table = broadcast_from_first(self.folder.history, noisy=trainer.dataset.noisy)
        self.table.keep_until(trainer.recorded)
        self.started = time.perf_counter()

    def on_epoch(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        trainer.row |= {
            "epoch": trainer.epoch,
            "lr": trainer.learning_rate,
            "seconds": round(now - self.started, 3),
            "peak_memory_mb": round(peak_memory_mb(trainer.device), 1),
            "density": trainer.mask_owner.meter.density,
            "training_macs": trainer.mask_owner.meter.macs,
            "churn": trainer.mask_owner.meter.churn,
        }
        if trainer.epoch > trainer.first_epoch and trainer.images_timed:
            trainer.row["images_per_second"] = round(trainer.images_timed / trainer.train_seconds, 1)
        self.started = now
        self.table.append(trainer.row)
        broadcast_from_first(self.table.write)


class Track(Callback):
    """Tells the trackers of every epoch that the tables have."""

    def __init__(self, trackers: Trackers) -> None:
        self.trackers = trackers

    def on_epoch(self, trainer: Trainer) -> None:
        broadcast_from_first(self.trackers.epoch, trainer.epoch)

"""Weights that a run leaves: the selected ones, those of some epochs, and the state to resume from."""

from pathlib import Path

from helper.processes.first import broadcast_from_first
from helper.processes.sharing import Agreement, any_process
from helper.system.files import hash_of_file, write_atomic
from helper.system.signals import Signals
from optim.callbacks.callback import Callback
from optim.callbacks.watching import check_finite
from optim.checkpoint import FROM_THE_START, save_state
from optim.folder import RunFolder
from optim.model import model_state
from optim.trainer import Trainer


class SelectBest(Callback):
    """Writes model.pt: the last epoch's weights, or the first best on the split of --select.

    A state of which another share is pruned than in the end is never the best.

    Args:
        written: {name in the folder: hash} of weights files, which is added to.
        updater: what changes the mask; None: it stays.
    """

    def __init__(self, folder: RunFolder, written: dict[str, str], updater: Callback | None) -> None:
        self.folder, self.written, self.updater = folder, written, updater or Callback()

    def on_start(self, trainer: Trainer) -> None:
        self.column = f"acc_{trainer.config.select}"
        rows = broadcast_from_first(self.folder.history).rows if trainer.resumed else []
        scores = {int(row["epoch"]): float(row[self.column]) for row in rows if row.get(self.column)}
        scores = {epoch: score for epoch, score in scores.items() if self.may_be_best(trainer, epoch)}
        self.best = max(scores.values(), default=-1.0)
        if scores and trainer.config.select != "last":
            broadcast_from_first(self.bring_back, max(scores, key=scores.get))  # the first of the best

    def bring_back(self, epoch: int) -> None:
        """Write model.pt again from the kept state of its epoch, if it is gone or another.

        One of an epoch that the checkpoint does not have may stay where no state was kept: that epoch is to come.
        """
        model, state = self.folder.model, self.folder.epoch_state(epoch)
        if self.as_written(model):
            return
        if self.as_written(state):
            write_atomic(model, state.read_bytes())
        elif not model.exists():
            raise RuntimeError(f"{model}, the weights of epoch {epoch}, is gone: put it back, or {FROM_THE_START}")

    def as_written(self, path: Path) -> bool:
        """Whether a file is what was last written to model.pt, by this process or before it."""
        return path.is_file() and hash_of_file(path) == self.written["model.pt"]

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.config.select == "last" or not self.may_be_best(trainer, trainer.epoch):
            return
        if trainer.row[self.column] > self.best:
            self.best = trainer.row[self.column]
            self.save(trainer)

    def may_be_best(self, trainer: Trainer, epoch: int) -> bool:
        return trainer.first_epoch < epoch <= trainer.epoch and self.updater.final_after(trainer, epoch)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.config.select == "last":
            self.save(trainer)
        broadcast_from_first(self.check)

    def save(self, trainer: Trainer) -> None:
        state = model_state(trainer.network, trainer.mask_owner.mask, trainer.epoch)
        self.written["model.pt"] = broadcast_from_first(save_state, self.folder.model, state)

    def check(self) -> None:
        """Raise RuntimeError when model.pt is another's."""
        if not self.as_written(self.folder.model):
            raise RuntimeError(f"{self.folder.model} is not what this run has left there: {FROM_THE_START}")


class KeepStates(Callback):
    """state_dicts/epoch_<k>.pt.

    Args:
        epochs: whose states are kept.
        written: {name in the folder: hash} of weights files, which is added to.
    """

    def __init__(self, folder: RunFolder, epochs: set[int], written: dict[str, str]) -> None:
        self.folder, self.epochs, self.written = folder, epochs, written

    def on_start(self, trainer: Trainer) -> None:
        broadcast_from_first(self.remove_unknown)

    def remove_unknown(self) -> None:
        """Remove states that the checkpoint does not know: of an epoch that is to come again, or nobody's."""
        for path in map(self.folder.epoch_state, self.folder.kept_epochs()):
            if self.folder.name_of(path) not in self.written:
                path.unlink()

    def on_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch in self.epochs:
            path = self.folder.epoch_state(trainer.epoch)
            state = model_state(trainer.network, trainer.mask_owner.mask, trainer.epoch)
            self.written[self.folder.name_of(path)] = broadcast_from_first(save_state, path, state)


class WriteCheckpoint(Callback):
    """checkpoint.pt after every epoch, and of the last step taken when a signal asks the run to stop.

    Comes after everything else that an epoch writes: what is on disk beyond the checkpoint is written again.
    """

    def __init__(self, folder: RunFolder, written: dict[str, str], signals: Signals) -> None:
        self.folder, self.written, self.signals = folder, written, signals
        self.agreement = Agreement()

    def before_epoch(self, trainer: Trainer) -> None:
        if any_process(bool(self.signals.received)):
            self.stop(trainer)

    def touches_network(self, trainer: Trainer, event: str) -> bool:
        return False  # but where it stops the run, see `on_interruption`

    def on_step(self, trainer: Trainer) -> None:
        if self.agreement.any_process(bool(self.signals.received)):
            self.on_interruption(trainer)
            self.stop(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.save(trainer)

    def on_interruption(self, trainer: Trainer) -> None:
        trainer.mask_owner.write_back()
        check_finite(trainer)
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        broadcast_from_first(self.folder.check_there)
        tables = broadcast_from_first(self.folder.written, trainer.epoch)
        files = {"run": self.folder.path.name, "tables": tables, "weights": self.written}
        state = trainer.state() | files
        broadcast_from_first(save_state, self.folder.checkpoint, state, keep_previous=True)

    def stop(self, trainer: Trainer) -> None:
        raise self.signals.interruption(f" after {trainer.epoch} epochs and {trainer.step} steps")

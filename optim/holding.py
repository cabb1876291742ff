"""Who may write into a run's folder: one run at a time, which holds it against all others."""

import contextlib
import logging
from collections.abc import Iterator

from helper.processes.first import broadcast_from_first
from helper.processes.interruption import interruptible
from helper.system.files import write_atomic
from helper.system.locks import exclusive
from helper.system.logs import RunLog
from helper.system.signals import Signals
from helper.untrusted.yaml_text import write_yaml
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import check_stored, stored_options
from optim.trackers.main import TRACKERS

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held_for_training(folder: RunFolder, config: RunConfig, fingerprint: str | None) -> Iterator[bool]:
    """Inside, a folder belongs to this run, which logs into it. All processes have to enter; the first one holds it.

    Gives False, and holds nothing, where another run has finished it meanwhile.

    Raises:
        RuntimeError: another process holds it, or it has another run.
    """
    with contextlib.ExitStack() as stack:
        yield broadcast_from_first(hold_for_training, stack, folder, config, fingerprint)


def hold_for_training(stack: contextlib.ExitStack, folder: RunFolder, config: RunConfig, fingerprint: str | None) -> bool:
    """`held_for_training` until the stack is closed; what an earlier run has left is made ready to be continued."""
    stack.enter_context(exclusive(folder.path))
    if folder.config.exists():
        check_stored(folder, config, fingerprint)
    if folder.finished and not config.overwrite:
        stack.close()
        return False
    if folder.finished:
        clear(folder)
    folder.summary.unlink(missing_ok=True)  # of a run that lacks its weights: it is finished no more
    stack.enter_context(RunLog(folder.log))
    write_atomic(folder.config, write_yaml(stored_options(config)))
    return True


@contextlib.contextmanager
def held_for_measuring(folder: RunFolder, config: RunConfig, fingerprint: str | None, signals: Signals) -> Iterator[None]:
    """Inside, measurements may be added to a finished run. All processes have to enter; the first one holds the folder.

    Raises:
        RuntimeError: another process holds it, or it has another run. AlteredFile: its files are not as the run left them.
    """
    with contextlib.ExitStack() as stack:
        broadcast_from_first(hold_for_measuring, stack, folder, config, fingerprint)
        stack.enter_context(interruptible(signals))
        yield


def hold_for_measuring(stack: contextlib.ExitStack, folder: RunFolder, config: RunConfig, fingerprint: str | None) -> None:
    """`held_for_measuring` until the stack is closed."""
    check_stored(folder, config, fingerprint)
    stack.enter_context(exclusive(folder.path))
    folder.check_files()
    stack.enter_context(RunLog(folder.log))
    log.info("%s is finished; --overwrite 1 repeats it", folder.path)


def clear(folder: RunFolder) -> None:
    """Remove what a run wrote, the summary first: from then on it counts as unfinished."""
    folder.summary.unlink()
    kinds = ("*.pt", "*.csv", "*.npz", "state_dicts/*.pt", "spectra/*.npz", "figures/*")
    for file in [*(file for kind in kinds for file in folder.path.glob(kind)), folder.log]:
        file.unlink(missing_ok=True)
    for tracker in TRACKERS.values():
        tracker.clear(folder)

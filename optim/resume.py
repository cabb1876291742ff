"""Going on from a checkpoint: whether it is this run's, and what it puts where."""

from typing import Any

from helper.processes.first import broadcast_from_first
from helper.processes.group import connection_lost, world_size
from helper.tables import DamagedTable
from helper.untrusted.reasons import reason_of
from helper.untrusted.texts import one_line
from optim.checkpoint import FROM_THE_START
from optim.folder import RunFolder
from optim.trainer import Trainer


def resume(trainer: Trainer, state: dict[str, Any], folder: RunFolder, written: dict[str, str]) -> None:
    """Put a checkpoint's state into a trainer, and what it knows of weights files into `written`.

    Raises:
        RuntimeError: it is another run's, of another mask or no state, or tables have lost what they had when it was written.
    """
    try:
        same_mask, n_processes = trainer.mask_owner.began_like(state), state["processes"]
        run = state["run"]
        trainer.load_state(state)
        altered = altered_tables(state["tables"], broadcast_from_first(folder.written, state["epoch"]))
        written |= state["weights"]
    except DamagedTable:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if connection_lost(error):
            raise
        raise RuntimeError(f"{folder.checkpoint} is no state of this run: {reason_of(error)}; {FROM_THE_START}") from None
    if run != folder.path.name:
        raise RuntimeError(f"{folder.checkpoint} is of another run, {one_line(run, 200)}; {FROM_THE_START}")
    if n_processes != world_size() and not trainer.config.sync_batch_norm:
        raise RuntimeError(
            f"--sync_batch_norm 0: the run began with {n_processes} processes and its BatchNorm depends on that; "
            f"go on with as many, not with {world_size()}"
        )
    if not same_mask:
        raise RuntimeError(f"{folder.path} began with another mask: has its dense parent changed? Move the folder away")
    if altered:
        raise RuntimeError(
            f"{folder.path / altered[0]}.csv is not as this run left it: put a copy of it back, or {FROM_THE_START}"
        )


def altered_tables(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the tables that are not as a checkpoint remembers them, see `RunFolder.written`.

    The history has to be the same; the others, to which measurements are added, may have more rows.
    """
    altered = [name for name in now if name != "history" and now[name] < then[name]]
    return altered if now["history"] == then["history"] else ["history", *altered]

#!/usr/bin/env python
"""Flags -> configuration -> one trained and measured run. The last line printed is the run folder."""

import errno
import logging
import sys
from types import TracebackType

from tqdm.contrib.logging import logging_redirect_tqdm

from helper.config import FlagError, parse
from helper.signals import Signals
from optim.callbacks import Interrupted
from optim.main import RunConfig, train_run

DESCRIPTION = "Train a dense or sparse network and measure its gradients and curvature."
RETIRED = {
    "ree": "resuming is automatic; run the same command again",
    "resume_epoch": "resuming is automatic; run the same command again",
    "nj": "the data set is in memory and needs no loader workers; leave the flag out",
    "n_jobs_dataloader": "the data set is in memory and needs no loader workers; leave the flag out",
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_WRONG_FLAGS, EXIT_INTERRUPTED = 2, 75


def main(argv: list[str] | None = None) -> None:
    config = parse(RunConfig, argv, prog="run.py", description=DESCRIPTION, retired=RETIRED)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not config.debug:
        sys.excepthook = one_line
    try:
        with Signals() as signals, logging_redirect_tqdm():
            folder = train_run(config, signals)
    except FlagError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG_FLAGS)
    except Interrupted as stop:
        print(f"run.py: {stop}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    print(folder)


def one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Cause and cure of what ends the process, without the traceback (training.log has it); the exit code is 1."""
    name = "" if isinstance(error, RuntimeError) else f"{kind.__name__}: "
    cure = ""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        cure = "; what was saved before is sound: make room and run the same command again"
    print(f"run.py: error: {name}{' '.join(str(error).split())}{cure}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Log lines on the terminal and in the log of a run."""

import logging
import sys
from pathlib import Path
from typing import Any

from helper.system.signals import Interrupted
from helper.untrusted.texts import shown


class PlainFormatter(logging.Formatter):
    """Log lines in which names of files cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(shown(line) for line in super().format(record).split("\n"))


def log_to_stderr() -> None:
    """Show log records, unless something else does already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class RunLog:
    """Inside `with`, log records go to a file too, and an exception on its way out: its traceback, or a signal's line."""

    def __init__(self, path: Path) -> None:
        self.handler = logging.FileHandler(path)
        self.handler.handleError = lambda record: None  # a full disk must not hide what the terminal shows
        self.handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        root = logging.getLogger()
        root.addHandler(self.handler)
        self.level = root.level
        root.setLevel(min(self.level, logging.INFO))  # a notebook has set none

    def __exit__(self, *error: Any) -> None:
        logging.getLogger().removeHandler(self.handler)
        logging.getLogger().setLevel(self.level)
        if isinstance(error[1], Interrupted):
            self.handler.emit(logging.LogRecord("run", logging.INFO, __file__, 0, str(error[1]), None, None))
        elif error[0] is not None:
            self.handler.emit(logging.LogRecord("run", logging.ERROR, __file__, 0, "stopped", None, error))
        self.handler.close()

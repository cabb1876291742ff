"""A command of the project in this process, as a shell would see it: exit code, and what it printed."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TIMING = ("seconds", "images_per_second", "peak_memory_mb")  # columns that differ between equal runs


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `folder` is the last line that it printed to stdout."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        return Path(self.out.splitlines()[-1])

    @property
    def line(self) -> str:
        """The one error line; fails where there are more or none, or a traceback."""
        errors = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        return errors[0]


def outcome(main: Callable[[list[str]], None], *words: object) -> Outcome:
    """Call `run.main` or `experiment.main` and end as the interpreter would: with the excepthook, code 1, for an exception."""
    out, err, hook = io.StringIO(), io.StringIO(), sys.excepthook
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words])
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as error:  # noqa: BLE001  (whatever it is, the hook has to make one line of it)
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        finally:
            sys.excepthook = hook
    return Outcome(code, out.getvalue(), err.getvalue())

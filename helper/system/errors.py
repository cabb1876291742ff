"""How an error ends a process: one line that names cause and cure."""

import errno
import os
import sys
from collections.abc import Callable
from types import TracebackType

from helper.untrusted.texts import one_line

DISK_FULL = "; what was saved before is sound: make room and run the same command again"
NO_FOLDER = "; a file stands where a folder should be: choose another --results_root"
READ_ONLY = "; it may not be written or read: change its permissions, or choose another --results_root"
CURES = {
    errno.ENOSPC: DISK_FULL, errno.EDQUOT: DISK_FULL, errno.EFBIG: DISK_FULL,
    errno.ENOTDIR: NO_FOLDER, errno.EEXIST: NO_FOLDER, errno.EISDIR: "; a folder stands where a file should be: move it away",
    errno.EACCES: READ_ONLY, errno.EPERM: READ_ONLY, errno.EROFS: READ_ONLY,
    errno.ENAMETOOLONG: "; choose a shorter path", errno.ELOOP: "; links that lead to each other: remove them",
    errno.ENOENT: "; it has been removed meanwhile, or never was there",
    errno.EIO: "; check the disk, then run the same command again",
    errno.ESTALE: "; the file system has gone: run the same command again once it is there",
}  # fmt: skip


def one_line_errors(prog: str) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """An excepthook that shows cause and cure of what ends the process, without the traceback; the exit code is 1."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(f"{prog}: error: {one_line(cause(kind, error))}", file=sys.stderr)

    return hook


def cause(kind: type[BaseException], error: BaseException) -> str:
    """What has ended a process, with the cure; the kind of an exception that nobody has foreseen."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}{error.strerror}{CURES.get(error.errno, '')}"
    return str(error) if isinstance(error, RuntimeError) else f"{kind.__name__}: {error}"

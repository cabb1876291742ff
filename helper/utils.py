"""What any PyTorch project could use: random streams, device choice, atomic files, process memory, versions."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from helper.signals import Interrupted
from helper.untrusted import one_line, shown
from helper.xla import xla_device

IN_USE = "is in use by another process"
UNFINISHED = (".partial", ".new")  # files that take another one's place when they are whole
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
ROOT = Path(__file__).resolve().parent.parent


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator of its own for each (seed, name): using one stream never shifts another."""
    key = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


@contextlib.contextmanager
def global_seed(generator: torch.Generator) -> Iterator[None]:
    """The global generators follow `generator` inside and are as before afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch.randint(2**62, (), generator=generator).item())
        yield


def choose_device(name: str) -> torch.device:
    """The torch device of `--device {cpu, cuda, tpu}`.

    Raises:
        RuntimeError: it is not there.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("--device cuda: this PyTorch sees no CUDA device; check the driver, or use --device cpu")
        index, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if index >= there:
            raise RuntimeError(f"--device cuda: process {index} of this machine has no device of its own, of {there} there are")
        return torch.device("cuda", index)
    if name == "tpu":
        return xla_device()
    return torch.device(name)


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks instead of returning large ones to the kernel; True where that took effect.

    Activations of many MB are allocated and freed at every layer of every step; what goes back to the kernel has to be
    cleared, page by page, when it is asked for again.
    """
    return _mallopt(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def usual_freed_memory() -> bool:
    """The thresholds at which glibc's own dynamic rule settles in a process that frees large blocks, for comparisons."""
    return _mallopt(mmap_threshold=32 << 20, trim_threshold=64 << 20)


def _mallopt(mmap_threshold: int, trim_threshold: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    libc, m_trim_threshold, m_mmap_threshold = ctypes.CDLL(None), -1, -3
    return bool(libc.mallopt(m_mmap_threshold, mmap_threshold) and libc.mallopt(m_trim_threshold, trim_threshold))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file so that a reader, or a crash at any moment, sees the whole old or the whole new content.

    Raises:
        OSError: it could not be written (disk full, read-only); the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(exist_ok=True)  # not its parents: what has been removed must not come back with one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(content: bytes) -> str:
    """What `sha256sum` prints of a file with this content."""
    return hashlib.sha256(content).hexdigest()


def available_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; the kernel releases it when this one ends, however it ends.

    What killed processes were writing in it is removed.

    Raises:
        RuntimeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder} {IN_USE}; wait for it or choose another --results_root") from None
        for left_over in (file for depth in ("", "*/") for kind in UNFINISHED for file in folder.glob(f"{depth}.*{kind}")):
            left_over.unlink(missing_ok=True)  # of a killed process
        yield


def in_use(folder: Path) -> bool:
    """Whether another process holds a folder by `exclusive`."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the CUDA allocator there, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent process, from which this one was forked
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that numbers depend on."""
    names = ["torch", "numpy", "nngeometry", "pyhessian", "hessian-eigenthings", "torch_xla"]
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_state() -> dict[str, str | bool | None]:
    """{commit, dirty} of this code, None where it is no git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


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

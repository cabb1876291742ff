"""The compiled kernels: kept in the user's cache folder, checked, and loaded once in a process.

A library is code. It is loaded only from a file and a folder that this user owns and nobody else may write, and only if its
last bytes say that it is whole and was made of this source, by this compiler, for this processor. Anything else is made anew.
"""

import contextlib
import ctypes
import fcntl
import functools
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helper.sparse.compiler import SOURCE, Compiler, NoCompiler, find_compiler, openmp_runtime
from helper.system.files import file_hash, write_atomic

log = logging.getLogger(__name__)
NO_PLACE = "set XDG_CACHE_HOME or TMPDIR to a folder with room from which programs may run"
MARK = b"\nsparse kernels "
P, I64, INT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
SIGNATURES = {
    "fill": [P, P, P, P, P, INT],
    "gather": [P, P, P, P, P, I64, I64, INT],
    "weight_gradient": [P, P, P, P, P, P, I64, I64, I64, I64, INT],
    "normalise": [P, P, P, P, P, P, P, I64, I64, I64, DOUBLE, INT, INT, INT],
    "normalise_backward": [P, P, P, P, P, P, P, P, P, P, P, I64, I64, I64, DOUBLE, INT, INT, INT],
}
OF_PLANS = {  # these know no precision
    "plan_counts": [P, I64, I64, P, INT],
    "plan_active": [P, P, P, P, P, INT],
    "plan_transpose": [I64, I64, I64, P, P, P, P, P, P, INT],
    "plan_entries": [P, P, P, P, INT],
}


@dataclass(frozen=True)
class Library:
    """Attributes:
    functions: those of kernels.cpp. path: of the file. seconds: that compiling took; 0: it was in the cache.
    """

    functions: ctypes.CDLL
    compiler: Compiler
    path: Path
    seconds: float


def kernels(precision: str = "float") -> Library:
    """The kernels, compiled if they are not in the cache; those in double precision, for checks, are a library of their own.

    Raises:
        NoCompiler: they are not, and cannot be compiled.
    """
    return load(precision)


@functools.cache
def load(precision: str) -> Library:
    compiler = find_compiler()
    key = compiler.key(SOURCE.read_bytes(), precision)
    try:
        with locked(cache_folder()) as folder:
            path = folder / f"{key[:32]}.so"
            return loaded(compiler, path, key, precision)
    except OSError as error:
        reason = error.strerror or error
        log.warning("sparse kernels are compiled anew by every process: %s cannot be used (%s)", cache_folder(), reason)
    try:
        with tempfile.TemporaryDirectory(prefix="sparse-kernels-") as folder:
            return loaded(compiler, Path(folder) / f"{key[:32]}.so", key, precision)
    except OSError as error:
        raise NoCompiler(f"the sparse kernels cannot be stored or loaded ({error}): {NO_PLACE}") from None


def loaded(compiler: Compiler, path: Path, key: str, precision: str) -> Library:
    """The library at a path, made there first unless it is there and to be trusted."""
    started = time.perf_counter()
    fresh = not trusted(path, key)
    if fresh:
        make(compiler, path, key, precision)
    seconds = time.perf_counter() - started if fresh else 0.0
    runtime = openmp_runtime()
    if runtime:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)  # already there; now its names are found
    functions = ctypes.CDLL(str(path))
    for name, kinds in ({f"{name}_{precision}": kinds for name, kinds in SIGNATURES.items()} | OF_PLANS).items():
        function = getattr(functions, name)
        function.argtypes, function.restype = kinds, None
    if fresh:
        log.info("sparse kernels compiled in %.1f s by %s", seconds, compiler.version)
    return Library(functions, compiler, path, seconds)


def make(compiler: Compiler, path: Path, key: str, precision: str) -> None:
    """Compile, and put the result in place when it is whole."""
    with tempfile.TemporaryDirectory(prefix="sparse-kernels-") as folder:
        raw = Path(folder) / "kernels.so"
        compiler.compile(SOURCE, raw, precision)
        code = raw.read_bytes()
    write_atomic(path, code + seal(code, key))
    path.chmod(0o600)


def seal(code: bytes, key: str) -> bytes:
    """What is appended to a library; loaders do not look there."""
    return MARK + f"{key} {file_hash(code)}\n".encode()


def trusted(path: Path, key: str) -> bool:
    """Whether a file is this user's alone, whole, and what the key stands for."""
    try:
        mine = owned(path)
    except FileNotFoundError:
        return False
    if not mine or path.is_symlink():
        path.unlink()
        return False
    code, _, _ = (content := path.read_bytes()).rpartition(MARK)
    return content == code + seal(code, key)


def owned(path: Path) -> bool:
    """Whether this user owns a file or folder, and nobody else may write it."""
    found = path.lstat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "price-of-sparsity"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the cache folder, made if it is missing, while others wait: one compiles for all.

    Raises:
        OSError: it cannot be made or written, or is not this user's alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not owned(folder):
        raise PermissionError(0, "others may write it, or own it", str(folder))
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder

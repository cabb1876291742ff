"""The compiled kernels: kept in the user's cache folder, checked, and loaded once in a process.

A library is code. It is loaded only from a file and a folder that this user owns and nobody else may write, and only if its
last bytes say that it is whole and was made of this source, by this compiler, for this processor. Anything else is made anew.
"""

import contextlib
import ctypes
import errno
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

import torch

from helper.sparse.compiler import CURE, NO_PLACE, SOURCE, Compiler, NoCompiler, find_compiler, openmp_runtime
from helper.system.caches import user_cache
from helper.system.files import file_hash, write_atomic

log = logging.getLogger(__name__)
MARK = b"\nsparse kernels "
P, I64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
PRECISION = {torch.float32: "float", torch.float64: "double"}
SIGNATURES = {"run": [P, I64, INT]}
OF_PLANS = {  # these know no precision
    "plan_counts": [P, I64, I64, P, INT],
    "plan_active": [P, P, P, P, P, INT],
    "plan_transpose": [I64, I64, I64, P, P, P, P, P, P, INT],
    "plan_entries": [P, P, P, P, INT],
}


@dataclass(frozen=True)
class Stored:
    """A library's file.

    Attributes:
        seconds, cpu_seconds: that compiling it took, on the clock and of processors; 0: it was in the cache.
    """

    path: Path
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Library(Stored):
    """Attributes:
    functions: those of kernels.cpp.
    """

    functions: ctypes.CDLL
    compiler: Compiler


def kernels(precision: str = "float") -> Library:
    """The kernels, compiled if they are not in the cache; those in double precision, for checks, are a library of their own.

    Raises:
        NoCompiler: they are not, and cannot be compiled.
    """
    return load(precision)


@functools.cache
def load(precision: str) -> Library:
    compiler = find_compiler()
    if openmp_runtime() and not compiler.openmp():
        log.warning("sparse kernels made by clang run in one thread, as torch has GNU's OpenMP runtime: install g++")
    key = compiler.key(SOURCE.read_bytes(), precision)
    try:
        return opened(compiler, kept(compiler, cache_folder() / f"{key[:32]}.so", key, precision), precision)
    except OSError as error:
        reason = error.strerror or error
        log.warning("sparse kernels are compiled anew by every process: %s cannot be used (%s)", cache_folder(), reason)
    try:
        with tempfile.TemporaryDirectory(prefix="sparse-kernels-") as folder:
            return opened(compiler, make(compiler, Path(folder) / f"{key[:32]}.so", key, precision), precision)
    except OSError as error:
        cure = CURE if "undefined symbol" in str(error) else NO_PLACE
        raise NoCompiler(f"the sparse kernels cannot be stored or loaded ({error}): {cure}") from None


def kept(compiler: Compiler, path: Path, key: str, precision: str) -> Stored:
    """The library in the cache, made first unless it is there and to be trusted; a cache that holds it is only read.

    Raises:
        OSError: it is not there, and the cache cannot be made or written, or is not this user's alone.
    """
    if path.parent.exists() and private(path.parent) and trusted(path, key):
        return Stored(path, 0.0, 0.0)
    with locked(path.parent):
        if trusted(path, key):
            return Stored(path, 0.0, 0.0)  # another process was first
        return make(compiler, path, key, precision)


def opened(compiler: Compiler, stored: Stored, precision: str) -> Library:
    """A library loaded into this process."""
    runtime = openmp_runtime()
    if runtime:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)  # already there; now its names are found
    functions = ctypes.CDLL(str(stored.path))
    in_precision = {f"{name}_{precision}": kinds for name, kinds in SIGNATURES.items()}
    for name, kinds in (in_precision | OF_PLANS).items():
        function = getattr(functions, name)
        function.argtypes, function.restype = kinds, None
    return Library(**vars(stored), functions=functions, compiler=compiler)


def make(compiler: Compiler, path: Path, key: str, precision: str) -> Stored:
    """Compile, and put the result in place when it is whole."""
    started, before = time.perf_counter(), os.times()
    with tempfile.TemporaryDirectory(prefix="sparse-kernels-") as folder:
        raw = Path(folder) / "kernels.so"
        compiler.compile(SOURCE, raw, precision)
        code = raw.read_bytes()
    write_atomic(path, code + seal(code, key))
    path.chmod(0o600)
    seconds, after = time.perf_counter() - started, os.times()
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return Stored(path, seconds, children)


def seal(code: bytes, key: str) -> bytes:
    """What is appended to a library; loaders do not look there."""
    return MARK + f"{key} {file_hash(code)}\n".encode()


def trusted(path: Path, key: str) -> bool:
    """Whether a file is this user's alone, whole, and what the key stands for."""
    if path.is_symlink() or not path.is_file() or not private(path):
        return False
    code, _, _ = (content := path.read_bytes()).rpartition(MARK)
    return content == code + seal(code, key)


def private(path: Path) -> bool:
    """Whether this user owns a file or folder, and nobody else may write it."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def cache_folder() -> Path:
    """Where libraries are kept."""
    return user_cache()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache folder, made if it is missing, while others wait: one compiles for all.

    Raises:
        OSError: it cannot be made or written, or is not this user's alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not private(folder):
        raise PermissionError(errno.EPERM, "others own it or may write it; chmod go-w, or set XDG_CACHE_HOME", str(folder))
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

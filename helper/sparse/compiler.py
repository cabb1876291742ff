"""The system's C++ compiler: which one, with which options, and what it makes of the kernels."""

import errno
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from helper.system.files import file_hash
from helper.untrusted.texts import one_line

SOURCE = Path(__file__).with_name("kernels.cpp")
USUAL = ("g++", "clang++", "c++")
CURE = "install g++ 11 or newer (Debian: apt install g++), or set CXX to a compiler"
NO_PLACE = "set XDG_CACHE_HOME or TMPDIR to a folder with room from which programs may run"
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno")
ARM = ("aarch64", "arm64")
SECONDS = 300  # that a compiler may take


class NoCompiler(RuntimeError):
    """The kernels cannot be compiled here; the message names cause and cure."""


@dataclass(frozen=True)
class Compiler:
    """One that is there.

    Attributes:
        command: its words. version: the first line in which it says what it is.
    """

    command: tuple[str, ...]
    version: str

    def options(self, precision: str) -> tuple[str, ...]:
        processor = "-mcpu=native" if platform.machine() in ARM else "-march=native"
        return (*OPTIONS, processor, f"-DREAL={precision}", *self.openmp())

    def openmp(self) -> tuple[str, ...]:
        """With which it uses several threads; none where the runtime of torch does not know its calls, or there is none."""
        runtime = openmp_runtime()
        if runtime is None:
            return ()
        if "clang" not in self.version:
            return ("-fopenmp",)
        return () if Path(runtime).name.startswith("libgomp") else ("-Xclang", "-fopenmp")

    def key(self, source: bytes, precision: str) -> str:
        """Hash of all that decides what it makes of a source, and on which processors that runs."""
        parts = (file_hash(source), *self.command, self.version, *self.options(precision), platform.machine(), cpu_flags())
        return file_hash("\n".join(parts).encode())

    def compile(self, source: Path, library: Path, precision: str) -> None:
        """Make a shared library. It asks for no OpenMP runtime: it is to find the one that torch has loaded.

        Raises:
            NoCompiler: the compiler fails.
        """
        half = library.with_suffix(".o")
        shared = ("-shared", "-undefined", "dynamic_lookup") if platform.system() == "Darwin" else ("-shared",)
        self.call(*self.options(precision), "-c", str(source), "-o", str(half))
        self.call(*shared, str(half), "-o", str(library))

    def call(self, *words: str) -> None:
        done = run(*self.command, *words)
        if done.returncode:
            said = next(
                (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip() or "no reason given"
            )
            cure = NO_PLACE if os.strerror(errno.ENOSPC) in done.stderr else CURE
            raise NoCompiler(f"{self.command[0]} cannot compile the sparse kernels ({one_line(said, 200)}): {cure}")


def run(*words: str) -> subprocess.CompletedProcess:
    """A compiler's call. NoCompiler: it cannot be started, or does not end."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SECONDS, env=os.environ | {"LC_ALL": "C"}
        )
    except OSError as error:
        raise NoCompiler(f"the C++ compiler {words[0]} cannot be started ({error.strerror}): {CURE}") from None
    except subprocess.TimeoutExpired:
        raise NoCompiler(f"the C++ compiler {words[0]} takes longer than {SECONDS} seconds: {CURE}") from None


def find_compiler() -> Compiler:
    """The one that CXX names, or else the first of the usual ones.

    Raises:
        NoCompiler: there is none, or it does not say its version.
    """
    chosen = os.environ.get("CXX", "").strip()
    words = shlex.split(chosen) if chosen else [name for name in USUAL if shutil.which(name)][:1]
    if not words:
        raise NoCompiler(f"no C++ compiler is found ({', '.join(USUAL)}): {CURE}")
    if shutil.which(words[0]) is None:
        raise NoCompiler(f"the environment has CXX={one_line(chosen, 100)}, which is no program here: {CURE}")
    said = run(*words, "--version")
    if said.returncode or not said.stdout.strip():
        raise NoCompiler(f"{words[0]} --version fails: {CURE}")
    return Compiler(tuple(words), said.stdout.splitlines()[0])


def cpu_flags() -> str:
    """What the processor can do; its name where the system does not list that."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    kept = sorted({line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "model name", "CPU part")})
    return "\n".join(kept) or platform.processor()


def openmp_runtime() -> str | None:
    """Path of the OpenMP runtime that torch has loaded; None where it has none, and kernels run in one thread."""
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    own = Path(torch.__file__).parent  # other packages bring runtimes along as well
    found = sorted(openmp_runtimes(), key=lambda path: not Path(path).is_relative_to(own))
    return found[0] if found else None


def openmp_runtimes() -> list[str]:
    """Paths of all that this process has loaded."""
    return [path for path in loaded_libraries() if Path(path).name.startswith(("libgomp", "libomp", "libiomp5"))]


def loaded_libraries() -> list[str]:
    """Paths of the shared libraries of this process."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    return sorted({line.split(maxsplit=5)[5] for line in lines if ".so" in line and line.count(" ") >= 5 and "/" in line})

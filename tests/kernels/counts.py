"""Instructions that the kernels take, counted by callgrind: python -m tests.kernels.counts records those of today.

They are of kernels compiled for AVX2, since valgrind knows no AVX-512, and by one compiler, whose version is recorded.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

from tests.kernels.cases import counted_cases, write

DRIVER = Path(__file__).with_name("driver.cpp")
RECORDED = Path(__file__).with_name("counts.json")
STANDARD = ("-std=c++17", "-fno-math-errno", "-DREAL=float", "-O3")
AVX2 = ("g++", *STANDARD, "-march=haswell", "-fopenmp")


def built(command: tuple[str, ...], folder: Path, *more: str) -> Path:
    """The driver, by a compiler with its options."""
    program = folder / "driver"
    subprocess.run([*command, str(DRIVER), "-o", str(program), *more], check=True, timeout=300)
    return program


def compiler_version() -> str:
    """Of g++, by which counts depend on it."""
    return subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()


def recorded_version() -> str:
    return json.loads(RECORDED.read_text())["g++"]


def counts(folder: Path) -> dict[str, float]:
    """Instructions for each eight products with nonzero weights, or eight elements that are normalised."""
    program, found = built(AVX2, folder), {}
    for name, (case, n) in write_each(folder).items():
        function = f"{name.split()[0]}_float"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", f"--toggle-collect={function}"]
        done = subprocess.run([*command, str(program), str(case)], capture_output=True, text=True, check=True, timeout=300)
        found[name] = round(8 * int(re.search(r"Collected : (\d+)", done.stderr)[1]) / n, 3)
    return found


def write_each(folder: Path) -> dict[str, tuple[Path, int]]:
    """A file for each function."""
    return {name: (write(folder / name.replace(" ", "_"), [case]), n) for name, (case, n) in counted_cases().items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        content = {"g++": compiler_version(), "instructions": counts(Path(folder))}
    RECORDED.write_text(json.dumps(content, indent=2) + "\n")
    print(RECORDED.read_text(), end="")

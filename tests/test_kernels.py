"""The kernels are right on other processors and by other compilers, stay within their memory, and cost what they did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helper.sparse.compiler import cpu_flags
from helper.system.versions import ROOT
from tests.kernels.cases import GIVEN, NORMALISE, RESULT, all_cases, case, write
from tests.kernels.counts import AVX2, RECORDED, STANDARD, built, counts

pytestmark = pytest.mark.compiler
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0")
MEMCHECK = ("valgrind", "-q", "--error-exitcode=9")
ARM = "aarch64-linux-gnu-g++"
SANITIZED = ("asan", "ubsan")
SHAPES = "to_rounding or definition or geometry"
OVER_ALL_SHAPES = ("tests/test_sparse.py", "tests/test_sparse_plan.py", "tests/test_sparse_blocks.py", "-k", SHAPES)
checked = pytest.mark.checkers
WAYS = {  # to build and to run them: (compiler and options, what runs it, bytes of a vector)
    "plain vectors": (("g++", *STANDARD, "-march=x86-64", "-fopenmp"), (), 16),
    "AVX2": (AVX2, (), 32),
    "no AVX-512": (("g++", *STANDARD, "-march=native", "-mno-avx512f", "-fopenmp"), (), 32),
    "clang": (("clang++", *STANDARD, "-march=native"), (), None),
    "clang for AVX2": (("clang++", *STANDARD, "-march=haswell"), (), 32),
    "ARM": ((ARM, *STANDARD, "-static"), ("qemu-aarch64",), 16),
    "sanitizers": (("g++", *STANDARD, "-march=native", *SANITIZERS), (), None),
    "memcheck": (AVX2, MEMCHECK, 32),
    "memcheck of plain vectors": (("g++", *STANDARD, "-march=x86-64"), MEMCHECK, 16),
}
WITH_CHECKERS = {"clang", "clang for AVX2", "ARM", "memcheck", "memcheck of plain vectors"}
WITH_AVX2 = {"AVX2", "no AVX-512", "clang for AVX2"} if " avx2 " not in cpu_flags() else set()


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("cases") / "all", all_cases())


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=checked) if way in WITH_CHECKERS else way for way in WAYS if way not in WITH_AVX2]
)
def test_kernels_give_what_dense_layers_give_in_float64(way, cases, tmp_path):
    command, runner, vector = WAYS[way]
    done = subprocess.run([*runner, str(built(command, tmp_path)), str(cases)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert f"{len(all_cases())} cases, vectors of {vector or ''}" in done.stdout


@pytest.mark.parametrize(
    ("way", "said"), [("sanitizers", "AddressSanitizer"), pytest.param("memcheck", "Invalid write", marks=checked)]
)
def test_a_step_too_far_would_be_seen(way, said, tmp_path):
    x, one = torch.ones(20), torch.ones(1)
    arrays = [(GIVEN, x), (GIVEN, None), (RESULT, x[:19]), *[(GIVEN, one)] * 2, (RESULT, one.expand(3)), *[(GIVEN, one)] * 2]
    path = write(tmp_path / "short", [case(NORMALISE, [1, 1, 20, 1, 0], arrays)])
    command, runner, _ = WAYS[way]
    done = subprocess.run([*runner, str(built(command, tmp_path)), str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert said in done.stderr


def test_sanitizers_find_nothing_while_networks_use_the_kernels(tmp_path):
    """Plans, too, are made by kernels."""
    compiler = tmp_path / "sanitizing"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" {" ".join(SANITIZERS)}\n')
    compiler.chmod(0o755)
    runtimes = (subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True) for name in SANITIZED)
    environment = os.environ | {
        "CXX": str(compiler),
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": " ".join(found.stdout.strip() for found in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OVER_ALL_SHAPES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.checkers
@pytest.mark.counts
def test_kernels_take_the_recorded_instructions(tmp_path):
    """Within a tenth. Where the change is meant, python -m tests.kernels.counts records the new ones."""
    recorded, found = json.loads(RECORDED.read_text())["instructions"], counts(tmp_path)
    assert found == pytest.approx(recorded, rel=0.1)

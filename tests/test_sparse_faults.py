"""Whatever happens to cache, compiler or processes: the kernels are right, or one line names cause and cure."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helper.sparse import library
from helper.sparse.compiler import NoCompiler, find_compiler
from helper.sparse.library import cache_folder, load
from helper.system.versions import ROOT
from tests.conftest import SLOPPY_COMPILER, compilations

pytestmark = pytest.mark.compiler


def fresh() -> library.Library:
    """As a process that has not loaded them yet."""
    return load.__wrapped__("float")


def python(code: str, *args: object, before: tuple[str, ...] = (), **environment: object) -> subprocess.CompletedProcess:
    """A program in a process of its own."""
    command = [*before, sys.executable, "-c", code, *map(str, args)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def compiler(folder: Path, text: str) -> Path:
    path = folder / "other"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


FILE_SYSTEMS = """
import logging, subprocess, sys
from pathlib import Path
from helper.sparse.library import load
cache = Path(sys.argv[1])
def mount(*options):
    subprocess.run(["mount", *options, str(cache)], check=True)
def found(name):
    logging.warning("case %s", name)
    library = load.__wrapped__("float")
    assert library.functions.vector_bytes()
    print(name, "kept" if library.path.parent == cache else "elsewhere", library.seconds > 0)
cache.mkdir(parents=True)
mount("-t", "tmpfs", "-o", "size=8k,mode=700", "small")
found("full")
mount("-o", "remount,ro")
found("empty, read-only")
mount("-o", "remount,rw,size=50m,noexec")
found("not to run from")
mount("-o", "remount,exec")
found("roomy")
mount("-o", "remount,ro")
found("whole, read-only")
"""


@pytest.mark.mounts
def test_a_cache_that_is_full_or_read_only_is_done_without_unless_it_holds_the_library(cache):
    done = python(FILE_SYSTEMS, cache, before=("unshare", "--map-root-user", "--mount"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "full elsewhere True",
        "empty, read-only elsewhere True",
        "not to run from elsewhere True",
        "roomy kept False",
        "whole, read-only kept False",
    ]
    full, read_only, no_exec, roomy, whole = done.stderr.split("case ")[1:]
    assert "(No space left on device)" in full
    assert "(Read-only file system)" in read_only
    assert "cannot be used" not in roomy + whole
    assert "cannot be used" in no_exec
    assert "Traceback" not in done.stderr


def test_no_room_for_the_compiler_is_no_fault_of_the_compiler(cache, monkeypatch, tmp_path):
    text = '[ $1 = --version ] && echo g++ 12 && exit 0\necho "fatal error: x.s: No space left on device" >&2; exit 1'
    monkeypatch.setenv("CXX", str(compiler(tmp_path, text)))
    with pytest.raises(NoCompiler, match=r"No space left.*TMPDIR"):
        fresh()


def test_a_library_that_cannot_be_loaded_is_the_compilers_fault(cache, monkeypatch, tmp_path):
    (tmp_path / "more.h").write_text('extern "C" void nowhere(); void (*wanted)() = nowhere;')
    monkeypatch.setenv("CXX", str(compiler(tmp_path, f'exec g++ -include {tmp_path}/more.h "$@" -O0')))
    with pytest.raises(NoCompiler, match=r"undefined symbol.*install g\+\+"):
        fresh()


def test_a_user_without_a_home_has_a_cache_among_the_temporary_files(cache, monkeypatch, tmp_path):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fresh().path.parent == tmp_path / f"price-of-sparsity-{os.geteuid()}"
    assert fresh().seconds == 0


@pytest.mark.parametrize(("mode", "kept"), [(0o700, True), (0o755, True), (0o775, False), (0o777, False)])
def test_a_link_to_a_folder_is_as_good_as_the_folder(cache, mode, kept, tmp_path, caplog):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(mode)
    cache.parent.mkdir()
    cache.symlink_to(elsewhere)
    assert (fresh().path.parent == elsewhere) == kept
    assert ("chmod go-w" in caplog.text) != kept


def test_a_link_to_itself_is_done_without(cache, caplog):
    cache.parent.mkdir()
    cache.symlink_to(cache)
    assert fresh().functions.vector_bytes()
    assert f"{cache} cannot be used (" in caplog.text


def test_a_folder_of_another_user_is_done_without(cache, monkeypatch, caplog):
    assert fresh().path.parent == cache
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not library.trusted(next(cache.glob("*.so")), "")
    assert fresh().path.parent != cache
    assert f"{cache} cannot be used (others own it" in caplog.text


def test_a_killed_compilation_leaves_neither_lock_nor_half_a_library(cache, tmp_path, monkeypatch):
    waiting = f'[ "$1" = --version ] || {{ touch {tmp_path}/begun; sleep 60; }}'
    then = SLOPPY_COMPILER.format(log=tmp_path / "calls").partition("\n")[2]
    path = compiler(tmp_path, f"[ -e {tmp_path}/go ] || {waiting}\n{then}")
    monkeypatch.setenv("CXX", str(path))
    code = "from helper.sparse.library import kernels; kernels()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "go").touch()
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert fresh().path.parent == cache
    assert compilations(cache) == 1


MANY = """
import os, sys, torch
from helper.sparse.library import load
torch.set_num_threads(1)
begin, ready = os.pipe()
children = []
for _ in range(int(sys.argv[1])):
    children.append(os.fork())
    if not children[-1]:
        os.close(ready)
        os.read(begin, 1)  # until all are there
        found = load.__wrapped__("float")
        os.write(1, f"{found.path} {found.functions.vector_bytes()}\\n".encode())
        os._exit(0)
os.close(ready)
assert not any(os.waitpid(child, 0)[1] for child in children)
"""


def test_many_processes_that_begin_at_once_compile_once(cache):
    done = python(MANY, 40)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(lines := done.stdout.splitlines()) == 40
    assert len(set(lines)) == 1
    assert compilations(cache) == 1
    assert len(list(cache.iterdir())) == 2


def test_threads_that_begin_at_once_compile_once(cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fresh().path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert compilations(cache) == 1


def test_clang_makes_kernels_for_one_thread_where_torch_has_a_runtime_that_it_does_not_know(
    cache,
    monkeypatch,
    tmp_path,
    caplog,
):
    """Its calls would be of LLVM's runtime: the process would end at the first of them."""
    text = '[ "$1" = --version ] && echo "clang version 14" && exit 0\nexec g++ "$@" -O0'
    monkeypatch.setenv("CXX", str(compiler(tmp_path, text)))
    for runtime, options in (("libgomp.so.1", ()), ("libomp.so", ("-Xclang", "-fopenmp")), (None, ())):
        monkeypatch.setattr("helper.sparse.compiler.openmp_runtime", lambda found=runtime: found)
        assert find_compiler().openmp() == options
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(tmp_path / "other"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fresh().functions.vector_bytes()
    assert "one thread" in caplog.text
    assert "install g++" in caplog.text


LAYER = """
import torch
from torch import nn
from helper.sparse.functional import sparse_layer, to_lanes
from helper.sparse.plan import layer_plan
torch.manual_seed(0)
layer = nn.Conv2d(8, 8, 3, padding=1)
plan = layer_plan(layer, torch.rand(layer.weight.shape) < 0.3, (9, 9))
x = to_lanes(torch.randn(40, 8, 9, 9), 20)
def computed():
    inputs = x.detach().requires_grad_()
    y = sparse_layer(inputs, layer.weight, layer.bias, plan)
    found = torch.autograd.grad(y, [inputs, layer.weight], y.detach())
    return torch.cat([y.detach().flatten(), *(v.flatten() for v in found)])
torch.set_num_threads(2)
once = computed()
"""
IN_A_WORKER = """
from torch.utils.data import DataLoader
class Examples:
    def __len__(self): return 3
    def __getitem__(self, i): return computed()
for found in DataLoader(Examples(), batch_size=None, num_workers=2):
    assert torch.equal(found, once)
"""
IN_THREADS = """
import threading
found = []
def repeated(): found.extend(computed() for _ in range(50))
threads = [threading.Thread(target=repeated) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 150 and all(torch.equal(one, once) for one in found)
"""
BESIDE_ANOTHER_RUNTIME = """
import ctypes, ctypes.util
ctypes.CDLL(ctypes.util.find_library("gomp"), mode=ctypes.RTLD_GLOBAL)
"""


USES = {
    "a forked worker": LAYER + IN_A_WORKER,
    "threads": LAYER + IN_THREADS,
    "threads after the system's runtime": BESIDE_ANOTHER_RUNTIME + LAYER + IN_THREADS,
    "a forked worker after the system's runtime": LAYER + BESIDE_ANOTHER_RUNTIME + IN_A_WORKER,
}


@pytest.mark.parametrize("use", USES)
def test_kernels_give_the_same_bits_in_processes_and_threads_of_all_kinds(use):
    done = python(USES[use])
    assert done.returncode == 0, done.stderr


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == (Path.home() / ".cache/price-of-sparsity").resolve()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "price-of-sparsity"

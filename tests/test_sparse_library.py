"""The compiled kernels are made once, kept safely, and never loaded from a file that is not to be trusted."""

import os
import stat
import subprocess
import sys

import pytest

from helper.sparse import library
from helper.sparse.compiler import SOURCE, NoCompiler, find_compiler
from helper.sparse.library import trusted
from helper.system.versions import ROOT
from tests.conftest import compilations

pytestmark = pytest.mark.compiler


def load() -> library.Library:
    """As a process that has not loaded them yet."""
    return library.load.__wrapped__("float")


def key_of(found: library.Library) -> str:
    return found.compiler.key(SOURCE.read_bytes(), "float")


def test_kernels_are_compiled_once_and_kept_for_this_user_alone(cache):
    first, second = load(), load()
    assert compilations(cache) == 1
    assert first.seconds > 0 == second.seconds
    assert first.path == second.path
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert sorted(path.name for path in cache.iterdir()) == [".lock", first.path.name]


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "of another key", "link", "writable by all"])
def test_a_library_that_is_not_what_was_made_is_made_anew(cache, damage, tmp_path):
    first = load()
    path, whole = first.path, first.path.read_bytes()
    code = whole.rpartition(library.MARK)[0]
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "changed": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "of another key": code + library.seal(code, "0" * 64),
    }
    path.unlink()  # this process goes on with what it has loaded
    if damage == "link":
        (tmp_path / "elsewhere.so").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.write_bytes(damaged.get(damage, whole))
        path.chmod(0o666 if damage == "writable by all" else 0o600)
    found = load()
    assert compilations(cache) == 2
    assert trusted(found.path, key_of(found))
    assert not found.path.is_symlink()


def test_another_users_file_is_not_trusted(cache, monkeypatch):
    found = load()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not library.private(found.path)
    assert not library.private(cache)


@pytest.mark.parametrize("fault", ["writable by all", "a file", "below a file"])
def test_without_a_cache_of_ones_own_kernels_are_compiled_in_a_private_folder(cache, fault, caplog, monkeypatch):
    if fault == "writable by all":
        cache.mkdir(parents=True)
        cache.chmod(0o777)
    elif fault == "a file":
        cache.parent.mkdir()
        cache.write_text("")
    else:
        cache.parent.write_text("")
    found = load()
    assert found.functions.vector_bytes()
    assert not found.path.exists()  # nothing is left behind
    assert f"{cache} cannot be used" in caplog.text
    assert load().seconds > 0


def test_a_cache_that_may_not_be_written_is_done_without(cache, caplog, monkeypatch):
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Read-only file system", str(cache))

    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(library, "write_atomic", first_refused(refuse, library.write_atomic))
    assert load().functions.vector_bytes()
    assert "Read-only file system" in caplog.text


def first_refused(refuse, then):
    """A function that fails the first time."""
    calls = []

    def function(*args: object) -> None:
        calls.append(args)
        (refuse if len(calls) == 1 else then)(*args)

    return function


def test_the_key_changes_with_source_compiler_and_processor(cache, monkeypatch):
    found = find_compiler()
    keys = {found.key(b"a", "float"), found.key(b"b", "float"), found.key(b"a", "double")}
    monkeypatch.setattr("helper.sparse.compiler.cpu_flags", lambda: "flags: none")
    keys.add(found.key(b"a", "float"))
    monkeypatch.setenv("CXX", "g++ -O1")
    keys.add(find_compiler().key(b"a", "float"))
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no program here"),
        ("#!/bin/sh\nexit 1\n", "--version fails"),
        ("#!/bin/sh\n[ $1 = --version ] && echo old 1 && exit 0\necho 'error: unknown option' >&2; exit 1\n", "unknown option"),
        ("#!/nowhere/sh\n", "cannot be started"),
    ],
)
def test_a_compiler_that_fails_is_named_with_the_cure(cache, text, said, monkeypatch, tmp_path):
    path = tmp_path / "broken"
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(NoCompiler, match=said) as error:
        load()
    assert "install g++" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_compiler_is_said_with_the_cure(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler is found \(g\+\+.*\): install g\+\+"):
        load()


def test_the_builder_without_a_compiler_says_so_in_one_line(cache):
    done = subprocess.run(
        [sys.executable, "-m", "helper.sparse.build"],
        cwd=ROOT,
        env=os.environ | {"CXX": "nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "install g++" in done.stderr


def test_users_do_not_compile_what_only_checks_need(cache):
    """Nor do they read long headers: with these, compiling takes twice as long."""
    found = load()
    assert found.functions.run_float
    with pytest.raises(AttributeError):
        _ = found.functions.run_double
    headers = [line.split()[1] for line in SOURCE.read_text().splitlines() if line.startswith("#include")]
    assert headers == ["<cstdint>"]

"""Processes forked from one that has imported their program: as those that begin anew, whatever happens to any of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helper.system.fork_server import ForkServer, ServerLost
from helper.system.signals import EXIT_INTERRUPTED
from helper.system.versions import ROOT
from loader.main import DataConfig
from optim.folder import RunFolder
from study.sweeping.executor import FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING, LocalPool
from study.sweeping.job import Job
from study.sweeping.launching import Launcher
from tests.chaos import differences
from tests.test_sweep import stand_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")
PROGRAM = """
import atexit, json, os, signal, sys, time
held = "nothing"
def hold(words):
    global held
    held = words
def main(words):
    kind, *rest = words
    if kind == "tell":
        print(json.dumps({
            "words": sys.argv, "path": sys.path[0], "parent": os.getppid(), "session": os.getsid(0) == os.getpid(),
            "held": held, "stdin": os.readlink("/proc/self/fd/0"), "threads": os.environ["OMP_NUM_THREADS"],
            "descriptors": sorted(os.listdir("/proc/self/fd")),
        }))
    elif kind == "exit":
        atexit.register(print, "the last word")
        if rest[0] != "0":
            sys.exit(int(rest[0]))
    elif kind == "raise":
        raise ValueError("wrong")
    elif kind == "die":
        os.kill(os.getpid(), int(rest[0]))
    elif kind == "sleep":
        print("asleep", flush=True)
        time.sleep(float(rest[0]))
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    server = ForkServer("program", tmp_path, os.environ | {"OMP_NUM_THREADS": "3"})
    yield server
    server.close()


def ended(server: ForkServer, log, *words: object) -> int:
    return server.start(list(map(str, words)), log).wait()


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_process_is_its_owners_child_and_like_one_that_began_anew(server, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    assert ended(server, log, "tell") == 0
    first, line = log.read_text().splitlines()
    told = json.loads(line)
    assert first == "before"
    assert (told["words"], told["path"]) == (["program.py", "tell"], str(tmp_path))
    assert (told["parent"], told["session"], told["stdin"]) == (os.getpid(), True, "/dev/null")
    assert (told["held"], told["threads"]) == ("nothing", "3")
    assert len(told["descriptors"]) == 4  # 0, 1, 2 and that of the folder that was listed
    server.hold(["data"])
    ended(server, log, "tell")
    assert json.loads(log.read_text().splitlines()[-1])["held"] == ["data"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("exit", 0), 0),
        (("exit", 75), 75),
        (("raise",), 1),
        (("die", 9), -9),
        (("die", 11), -11),
        (("die", 15), EXIT_INTERRUPTED),
    ],
)
def test_exit_codes_are_those_of_a_child(server, tmp_path, words, code):
    assert ended(server, tmp_path / "log", *words) == code
    said = (tmp_path / "log").read_text()
    assert ("ValueError: wrong" in said) == (words == ("raise",))
    assert (said == "the last word\n") == (words[0] == "exit")


def test_a_crash_takes_nothing_along(server, tmp_path):
    logs = [tmp_path / str(index) for index in range(3)]
    sleeping = server.start(["sleep", "0.5"], logs[0])
    assert ended(server, logs[1], "die", 11) == -11
    assert ended(server, logs[2], "tell") == 0
    assert sleeping.wait() == 0


def test_a_killed_server_leaves_what_it_has_forked_with_its_exit_code(server, tmp_path):
    sleeping = server.start(["sleep", "0.5"], tmp_path / "log")
    wait_for(lambda: (tmp_path / "log").exists() and "asleep" in (tmp_path / "log").read_text())
    server.process.kill()
    server.process.wait()
    assert sleeping.poll() is None
    with pytest.raises(ServerLost):
        ended(server, tmp_path / "never", "tell")
    assert sleeping.wait() == 0


def test_what_a_killed_owner_has_started_goes_on_and_its_server_ends(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    code = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from helper.system.fork_server import ForkServer
server = ForkServer("program", Path({str(tmp_path)!r}), os.environ)
process = server.start(["sleep", "60"], Path({str(tmp_path / "log")!r}))
process.find(wait=True)
print(server.process.pid, process.pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server, process = map(int, owner.stdout.readline().split())
    owner.kill()
    owner.wait()
    wait_for(lambda: not is_alive(server))
    assert is_alive(process)
    os.kill(process, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether it runs, and does not only wait for someone to ask how it ended."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_server_that_cannot_import_its_program_is_lost(tmp_path):
    server = ForkServer("nothing_of_that_name", tmp_path, os.environ)
    try:
        with pytest.raises(ServerLost):
            ended(server, tmp_path / "log", "tell")
        assert not server.has_forked
    finally:
        server.close()


def test_a_signal_reaches_a_process_that_is_still_to_be_forked(server, tmp_path):
    process = server.start(["sleep", "60"], tmp_path / "log")  # while the server imports
    process.send_signal(signal.SIGTERM)
    assert process.wait() == EXIT_INTERRUPTED


def test_a_signal_that_comes_before_a_forked_process_is_set_up_is_not_lost(tmp_path):
    """Between the fork and what Python does after it signals are blocked, and one that comes meanwhile arrives in the end."""
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from helper.system import fork_server
from helper.system.signals import end_at_once
end_at_once("program.py")
fork_server.adopt_orphans(True)
def after():
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, []):
        os._exit(1)
    os.kill(os.getpid(), signal.SIGTERM)
os.register_at_fork(after_in_child=after)
def announce(pid): fork_server.told = pid
if fork_server.fork_deaf(announce) == 0:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(fork_server.told, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == EXIT_INTERRUPTED


# ------------------------------------------------------------------------------------------------------- in a sweep

QUICK = (
    "--figures", "0", "--n_epochs", "2", "--lr_milestones", "1", "--limit_train", "300", "--limit_test", "100",
    "--batch_size", "50", "--save_snr", "1",
)  # fmt: skip


def job_of(tmp_path, *flags: object, name: str = "run") -> Job:
    """A job of run.py whose folder is the only one under its results root."""
    root = tmp_path / name
    words = [*QUICK, *map(str, flags), "--results_root", str(root)]
    return Job(name, tuple(words), RunFolder(root / "in use by none"), tmp_path / f"{name}.log")


def only_run(root) -> RunFolder:
    (path,) = root.glob("digits/*/*/*")
    return RunFolder(path)


def work_off(pool: LocalPool) -> dict[str, str]:
    try:
        while not pool.done:
            pool.poll()
            time.sleep(0.01)
    finally:
        pool.stop()
    return pool.states


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_forked_run_has_the_bits_of_run_py(tmp_path, threads, monkeypatch):
    """With several threads as well: the server has never computed, and so its forks may."""
    monkeypatch.setattr("study.sweeping.executor.threads_of", lambda n_jobs: int(threads))
    pool = LocalPool(1, warm=True)
    jobs = [job_of(tmp_path, "--hidden_dims", "512-512", name=name) for name in ("one", "two")]
    for job in jobs:
        pool.submit(job)
    assert work_off(pool) == {"one": FINISHED, "two": FINISHED}
    alone = tmp_path / "alone"
    words = [*QUICK, "--hidden_dims", "512-512", "--results_root", str(alone)]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *words], env=environment, capture_output=True, text=True, check=True
    )
    for name in ("one", "two"):
        assert list(differences(only_run(tmp_path / name), only_run(alone))) == []
    lines = jobs[1].log.read_text().splitlines()
    assert lines[0].startswith("$ run.py --figures 0")
    assert lines[-1] == done.stdout.splitlines()[-1].replace(str(alone), str(tmp_path / "two"))


def test_a_pool_goes_on_when_its_server_is_killed(tmp_path):
    pool = LocalPool(1, warm=True)
    for index in range(3):
        pool.submit(job_of(tmp_path, name=str(index)))
    killed = False
    try:
        while not pool.done:
            pool.poll()
            time.sleep(0.01)
            if not killed and pool.states["0"] == FINISHED:
                pool.launcher.server.process.kill()
                killed = True
    finally:
        pool.stop()
    assert killed
    assert pool.states == dict.fromkeys("012", FINISHED)


def test_failures_and_kills_of_forked_runs_are_told_apart(tmp_path):
    pool = LocalPool(2, warm=True)
    pool.submit(job_of(tmp_path, "--lr", "1e30", name="diverges"))
    pool.submit(job_of(tmp_path, "--n_epochs", "3000", name="long"))
    while pool.states["diverges"] in (QUEUED, RUNNING) or not (tmp_path / "long.log").read_text().count("epoch 2/"):
        pool.poll()
        time.sleep(0.01)
    (process,) = [process for job, process in pool.running.values() if job.name == "long"]
    process.send_signal(signal.SIGKILL)
    assert work_off(pool) == {"diverges": FAILED, "long": INTERRUPTED}
    lines = (tmp_path / "diverges.log").read_text().splitlines()
    assert "run.py: error: the training loss or a weight is not finite" in lines[-3]
    assert lines[-1] == "exit code 1"


def test_a_pool_without_a_server_begins_each_run_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("study.sweeping.launching.PROGRAM", "nothing_of_that_name")
    pool = LocalPool(2, warm=True)
    for name in "ab":
        pool.submit(stand_in(tmp_path, name, "print('anew')"))
    assert work_off(pool) == {"a": FINISHED, "b": FINISHED}
    assert (tmp_path / "a.log").read_text().endswith("anew\n")


class Held:
    """Stands in for a server: notes whose data it is to hold."""

    has_forked = True

    def close(self) -> None:
        pass

    def __init__(self) -> None:
        self.words: list = []

    def hold(self, words) -> None:
        self.words.append(words)


@pytest.mark.parametrize(("n_threads", "expected"), [(1, ["a1", "b2"]), (2, [])])
def test_data_are_held_once_a_run_has_read_them_and_while_others_want_them(tmp_path, n_threads, expected):
    """Where a process has one thread: what is computed in several may not be forked."""
    launcher = Launcher(n_threads, warm=True)
    launcher.server = held = Held()
    sets = {"a": DataConfig("toy"), "b": DataConfig("digits")}
    names = ["a1", "a2", "b1", "b2", "b3"]
    jobs = {name: Job(name, (name,), RunFolder(tmp_path), tmp_path / name, sets[name[0]]) for name in names}
    for job in jobs.values():
        launcher.expect(job)
    launcher.ended(jobs["b1"], well=False)  # who knows whether the data are sound
    launcher.ended(jobs["a1"], well=True)
    launcher.ended(jobs["a2"], well=True)
    launcher.ended(jobs["b2"], well=True)
    launcher.ended(jobs["b3"], well=True)
    assert [words for (words,) in held.words] == expected


def test_data_that_a_server_did_not_survive_are_held_by_no_other(tmp_path):
    launcher = Launcher(1, warm=True)
    launcher.server, data = Held(), DataConfig("toy")
    jobs = [Job(name, (name,), RunFolder(tmp_path), tmp_path / name, data) for name in "abc"]
    for job in jobs:
        launcher.expect(job)
    launcher.ended(jobs[0], well=True)
    launcher.lost(launcher.server)
    assert (launcher.server, launcher.warm) == (None, True)
    launcher.server = again = Held()
    launcher.ended(jobs[1], well=True)
    assert again.words == []
    launcher.lost(Held())  # one that is known to be lost
    assert launcher.server is again

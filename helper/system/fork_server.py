"""A process that has imported a program once, and forks for each call of it: imports take seconds, a fork some milliseconds.

It imports and never computes, and so has no threads that a fork would lose: GNU's OpenMP runtime hangs in a process that
is forked after it has computed in several. What it forks is a child of the process that asks for it, which gets exit codes
and sends signals as to any other of its children, and does not mind the end of the server.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from helper.system.signals import EXIT_INTERRUPTED, Signals, end_at_once
from helper.system.versions import ROOT

PR_SET_CHILD_SUBREAPER = 36  # of Linux' prctl: orphans among the descendants become this process's children
LONGEST = 1 << 17  # bytes of a message


class ServerLost(RuntimeError):
    """The server has ended."""


def can_fork() -> bool:
    """Whether a server can be had here."""
    return sys.platform == "linux"


def adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


class ForkServer:
    """Its owner's side.

    Args:
        program: module whose `main(words)` each forked process calls, and whose `hold(words)` prepares them.
        root: folder that the module is in; forked processes have the import path of `python root/program.py`.
        environment: of the server and of all that it forks.
    """

    def __init__(self, program: str, root: Path, environment: Mapping[str, str]) -> None:
        self.channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path[0] = {str(ROOT)!r}; from helper.system.fork_server import serve; "
        code += f"serve({program!r}, {str(root)!r}, {its_end.fileno()})"
        adopt_orphans(True)
        with its_end:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[its_end.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(environment),
                start_new_session=True,
            )  # fmt: skip
        self.asked = 0  # how many processes
        self.has_forked = False
        self.pids: dict[int, int] = {}  # of those that have been forked and not been looked up yet, by number

    def start(self, words: Sequence[str], log: Path) -> "ForkedProcess":
        """A process that calls `main(words)`; what it prints is added to a file. Raises ServerLost."""
        self.asked += 1
        self.send({"number": self.asked, "words": list(words), "log": str(log.absolute())})
        return ForkedProcess(self, self.asked)

    def hold(self, words: Sequence[str]) -> None:
        """Have `hold(words)` called before the next process is forked. Raises ServerLost."""
        self.send({"hold": list(words)})

    def send(self, message: dict) -> None:
        try:
            self.channel.send(json.dumps(message).encode())
        except OSError as error:
            raise ServerLost(str(error)) from None

    def pid_of(self, number: int, *, wait: bool) -> int | None:
        """The process of a call; None where it is not forked yet and is not to be waited for. Raises ServerLost."""
        while number not in self.pids:
            try:
                message = self.channel.recv(LONGEST, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ServerLost(str(error)) from None
            if not message:
                raise ServerLost("it has ended")
            forked = json.loads(message)
            self.has_forked = True
            self.pids[forked["number"]] = forked["pid"]
        return self.pids.pop(number)

    def close(self) -> None:
        """End the server; what it has forked goes on."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        adopt_orphans(False)


class ForkedProcess:
    """A process that a server has forked, or is about to: as `subprocess.Popen` where it has the same names."""

    def __init__(self, server: ForkServer, number: int) -> None:
        self.server, self.number = server, number
        self.pid: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs. Raises ServerLost: it was not forked."""
        return self.look(wait=False)

    def wait(self) -> int:
        return self.look(wait=True)

    def send_signal(self, number: int) -> None:
        """Raises ServerLost: it was not forked."""
        self.find(wait=True)
        if self.poll() is None:
            os.kill(self.pid, number)

    def find(self, *, wait: bool) -> None:
        if self.pid is None:
            self.pid = self.server.pid_of(self.number, wait=wait)

    def look(self, *, wait: bool) -> int | None:
        self.find(wait=wait)
        if self.returncode is None and self.pid is not None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


# ------------------------------------------------------------------------------------------------- the server's side


def serve(program: str, root: str, descriptor: int) -> None:
    """Fork as often as is asked for, until the owner has gone; in a forked process: be the program."""
    end_at_once(f"{program}.py")  # forked processes are ready for signals before they know what to do
    finished: list[bool] = []
    atexit.register(leave_at_once, finished)  # the first to be registered is the last to be called
    channel = socket.socket(fileno=descriptor)
    sys.path[0] = root
    module = importlib.import_module(program)
    while message := channel.recv(LONGEST):
        asked = json.loads(message)
        if "hold" in asked:
            module.hold(asked["hold"])
            join_threads()
            gc.freeze()
        elif not fork_deaf(functools.partial(answer, channel, asked["number"])):
            channel.close()
            settle(Path(asked["log"]))
            sys.argv = [f"{program}.py", *asked["words"]]
            module.main(asked["words"])
            finished.append(True)
            return


def leave_at_once(finished: Sequence[bool]) -> None:
    """End a process that has done its work without taking its memory down piece by piece: an eighth of a small run's time."""
    if finished:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def join_threads() -> None:
    """Wait for threads that are about to end: a fork would find their locks as they left them."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


def answer(channel: socket.socket, number: int, pid: int) -> None:
    channel.send(json.dumps({"number": number, "pid": pid}).encode())


def fork_deaf(announce: Callable[[int], None]) -> int:
    """`fork_orphan` with signals that wait until it is over: Python forgets what a new process gets before it is set up."""
    signal.pthread_sigmask(signal.SIG_BLOCK, Signals.WATCHED)
    pid = fork_orphan(announce)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, Signals.WATCHED)
    return pid


def fork_orphan(announce: Callable[[int], None]) -> int:
    """Fork a process whose parent has ended, so that another one adopts it: its id; 0 in the process itself.

    It begins once it is announced: who hears nothing, as the server was killed, may be sure that there is none.
    """
    reader, writer = os.pipe()
    waiting, go = os.pipe()
    if between := os.fork():
        os.close(writer)
        os.close(waiting)
        pid = int(os.read(reader, 32))
        os.close(reader)
        os.waitpid(between, 0)  # now it is adopted
        announce(pid)
        with contextlib.suppress(BrokenPipeError):  # it has been killed meanwhile
            os.write(go, b"1")
        os.close(go)
        return pid
    if pid := os.fork():
        os.write(writer, str(pid).encode())
        os._exit(0)
    for descriptor in (reader, writer, go):
        os.close(descriptor)
    announced = os.read(waiting, 1)
    os.close(waiting)
    if not announced:
        os._exit(EXIT_INTERRUPTED)
    return 0


def settle(log: Path) -> None:
    """Make a forked process what `subprocess` would have started: a session of its own, and output that goes to a file."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

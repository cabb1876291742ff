"""Several processes on this machine, with the variables that torchrun sets, forked from one that has imported everything."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import run
from helper.processes.group import join_processes

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])


def together(n: int, function: Callable, *args: Any) -> list[Any]:
    """What a function returns in each of n processes that have joined, in the order of their ranks."""
    queue = context.SimpleQueue()
    workers = start(n, collect, queue, function, args)
    found = dict(pickle.loads(queue.get()) for _ in workers)
    for worker in workers:
        worker.join(60)
    failures = [result for result in found.values() if isinstance(result, Failure)]
    if failures:
        raise AssertionError(failures[0].text)
    return [found[rank] for rank in range(n)]


@dataclass(frozen=True)
class Failure:
    """What a process sends that has no result."""

    text: str


def collect(queue: Any, function: Callable, args: tuple) -> None:
    """Every process sends something, or the one that waits for them would wait for ever."""
    result, ended = None, False
    try:
        with join_processes("cpu"):
            result, ended = function(*args), True
    finally:
        sent = result if ended else Failure(traceback.format_exc())
        queue.put(pickle.dumps((int(os.environ["RANK"]), sent)))  # tensors by value: this process ends


def start(n: int, function: Callable, *args: Any) -> list[BaseProcess]:
    """n processes that call a function; they have not joined yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=as_rank, args=(rank, n, port, function, args), daemon=True) for rank in range(n)]
    for worker in workers:
        worker.start()
    return workers


def as_rank(rank: int, n: int, port: int, function: Callable, args: tuple) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    function(*args)


def start_runs(n: int, folder: Path, *flags: object) -> list[BaseProcess]:
    """n processes of one run.py; what each prints goes to `folder/<rank>.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    return start(n, run_here, folder, tuple(map(str, flags)))


def run_here(folder: Path, flags: tuple[str, ...]) -> None:
    file = os.open(folder / f"{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        run.main(list(flags))
    except (RuntimeError, OSError):
        sys.excepthook(*sys.exc_info())  # as at the end of a program; multiprocessing has its own way
        sys.exit(1)


def printed(folder: Path) -> list[str]:
    """All lines that the processes of one run have printed."""
    return [line for path in sorted(folder.glob("?.txt")) for line in path.read_text().splitlines()]

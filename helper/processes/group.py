"""The processes of one run, as torchrun starts them: who is who, how they join and how they end.

Without torchrun there is one process, and all of helper/processes is free. All processes run the same program. A function
that needs the others says so where it is called: `broadcast_from_first`, `sum_over_processes`, `gather_from_processes`.
All processes have to call it, in the same order; whatever else a program does, each process does by itself.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from helper.system.devices import choose_device
from helper.system.environment import whole_number

LONGEST_ERROR = 2.0  # seconds for which the first process waits for errors of the others
LONGEST_WAIT = timedelta(days=1)  # for another process: one may measure or load for hours; torchrun sees those that died
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class ProcessLost(RuntimeError):
    """Another process of the run has ended."""


@dataclass
class Links:
    """What connects this process with the others of its run; nothing while it has not joined them.

    Args:
        group: carries CPU tensors and small objects, whatever the device.
        store: notes that any process may read at any time.
        acting_alone: True while the first process does something for all of them.
    """

    group: dist.ProcessGroup | None = None
    store: dist.Store | None = None
    acting_alone: bool = False


links = Links()


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if links.group is not None and not links.acting_alone else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if links.group is not None and not links.acting_alone else 0


def n_launched() -> int:
    """How many processes torchrun, or a launcher that sets the same variables, has started for this run."""
    return whole_number("WORLD_SIZE", 1)


def launched() -> bool:
    """Whether this process is one of several."""
    return n_launched() > 1


def launched_rank() -> int:
    """This process's number as the launcher says it, also before the processes have joined."""
    return whole_number("RANK", 0, low=0) if launched() else 0


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Join the other processes of this run inside `with`; one of their errors is shown, the others are kept quiet.

    Args:
        device: `cpu`, where gloo connects them, or `cuda`: one device each, connected by NCCL.
    Raises:
        RuntimeError: the device is not there, or takes one process only.
        ProcessLost: another process has ended.
    """
    if not launched():
        yield
        return
    connect(device)
    try:
        yield
    except Exception as error:
        if not first_with_an_error():
            silence()
        if launched_rank() == 0:
            wait_for_errors_of_others()
        if connection_lost(error):
            raise ProcessLost(
                "another process of this run has ended; the same command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        if device == "cpu" or sys.exc_info()[0] is None:  # NCCL may wait for those that have ended
            dist.destroy_process_group()
        links.group = links.store = None
        logging.disable(logging.NOTSET)


def connect(device: str) -> None:
    """Wait until all processes are there, and connect this one with them."""
    try:
        if device == "tpu":
            raise RuntimeError("--device tpu trains on one device in one process; start run.py without torchrun")
        chosen = choose_device(device)
    except RuntimeError:
        if launched_rank() > 0:
            silence()  # the first one says it
        raise
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, own, n = next(dist.rendezvous("env://"))
    hook = sys.excepthook
    dist.init_process_group(BACKENDS[device], store=store, rank=own, world_size=n, timeout=LONGEST_WAIT)
    sys.excepthook = hook  # not the one that PyTorch has put there
    links.group, links.store = dist.new_group(backend="gloo", timeout=LONGEST_WAIT), store
    logging.disable(logging.NOTSET if own == 0 else logging.WARNING)  # the first one reports


def silence() -> None:
    """From now on this process prints nothing on standard error."""
    sys.stderr = io.StringIO()


def first_with_an_error() -> bool:
    """Whether this process is the first one that has an error to show."""
    try:
        return links.store.add("errors", 1) == 1
    except RuntimeError:  # without torchrun the store ends with its process: too many messages are better than none
        return True


def wait_for_errors_of_others() -> None:
    """Let the others ask which of them is the first, before the store that the first process may hold ends with it."""
    until = time.monotonic() + LONGEST_ERROR
    with contextlib.suppress(RuntimeError):  # the store is torchrun's, which has ended
        while links.store.add("errors", 0) < n_launched() and time.monotonic() < until:
            time.sleep(0.01)


def connection_lost(error: Exception) -> bool:
    """Whether an error says that the connection to another process has ended."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Inside, before the processes have joined, what all of them would print is printed once."""
    with contextlib.ExitStack() as stack:
        if launched_rank() > 0:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield

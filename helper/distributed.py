"""The processes of one run, as torchrun starts them: who is who, what they share, how they agree and how they end.

Without torchrun there is one process, and everything here is free. All processes run the same program; a function marked
`by_first` is carried out by the first of them alone, and all others get what it returns or raises. Inside of it there is one
process again.
"""

import contextlib
import functools
import io
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from helper.system.devices import choose_device
from helper.system.signals import Signals

NOTE = "asked to end"
LONGEST_WAIT = timedelta(days=1)  # for another process: one may measure or load for hours; torchrun sees those that died
Result, Item = TypeVar("Result"), TypeVar("Item")
_alone = False  # inside of what the first process does for all
_control: dist.ProcessGroup | None = None  # of CPU tensors and small objects, whatever the device
_store: dist.Store | None = None  # notes that any process may read at any time
_heeded: Signals | None = None  # those that interrupt the work under way


class ProcessLost(RuntimeError):
    """Another process of the run has ended."""


def launched() -> bool:
    """Whether this process is one of several that torchrun, or a launcher that sets the same variables, has started."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _control is not None and not _alone else 1


def rank() -> int:
    """This one's number among them, from 0."""
    return dist.get_rank() if _control is not None and not _alone else 0


# ------------------------------------------------------------------------------------------------ beginning and end


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the processes of this run inside `with`; of their errors one is shown.

    Args:
        device: `cpu`, where gloo connects them, or `cuda`: one device each, connected by NCCL.
    Raises:
        RuntimeError: the device is not there, or takes one process only.
        ProcessLost: another process has ended.
    """
    global _control, _store
    if not launched():
        yield
        return
    try:
        if device == "tpu":
            raise RuntimeError("--device tpu trains on one device in one process; start run.py without torchrun")
        chosen = choose_device(device)
    except RuntimeError:
        if os.environ.get("RANK", "0") != "0":
            silence()
        raise
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, own, n = next(dist.rendezvous("env://"))
    hook = sys.excepthook
    dist.init_process_group(BACKENDS[device], store=store, rank=own, world_size=n, timeout=LONGEST_WAIT)
    sys.excepthook = hook  # not the one that PyTorch has put there
    _control, _store = dist.new_group(backend="gloo", timeout=LONGEST_WAIT), store
    logging.disable(logging.NOTSET if own == 0 else logging.WARNING)  # the first one reports
    try:
        yield
    except Exception as error:
        if not speaks(store):
            silence()
        if lost(error):
            raise ProcessLost(
                "another process of this run has ended; the same command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        if device == "cpu" or sys.exc_info()[0] is None:  # NCCL may wait for those that have ended
            dist.destroy_process_group()
        _control = _store = None
        logging.disable(logging.NOTSET)


BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def silence() -> None:
    """From now on this process prints nothing on standard error."""
    sys.stderr = io.StringIO()


def speaks(store: dist.Store) -> bool:
    """Whether this process is the first one that has an error to show."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # without torchrun the store ends with its process: too many messages are better than none
        return True


def lost(error: Exception) -> bool:
    """Whether an error says that a connection has ended."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """What all processes would print is printed once, before they have joined."""
    with contextlib.ExitStack() as stack:
        if launched() and os.environ.get("RANK", "0") != "0":
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


# ------------------------------------------------------------------------------------------------ ending together


@contextlib.contextmanager
def interruptible(signals: Signals | None) -> Iterator[None]:
    """Inside, the work may be interrupted wherever `check_signals` is called; None, as outside: it may not.

    All processes enter and leave together. Wherever they meet inside, they tell each other whether one was asked to end,
    and are interrupted at the same place. One that is asked between two meetings leaves a note, which the others find where
    they look for signals, and all go to the next meeting at once.
    """
    global _heeded
    former, _heeded = _heeded, signals
    try:
        yield
        meet()
    finally:
        _heeded = former


def check_signals() -> None:
    """Called between the parts of long work. Raises Interrupted: an end was asked for."""
    if _heeded is None:
        return
    if size() > 1:
        if _heeded.received:
            _store.set(NOTE, "")
        if _heeded.received or _store.check([NOTE]):
            meet(asked=True)
    elif _heeded.received:
        raise _heeded.interruption()


def checked(items: Iterable[Item]) -> Iterator[Item]:
    """The items, with signals answered before each."""
    for item in items:
        check_signals()
        yield item


def meet(*, asked: bool = False) -> None:
    """Raise Interrupted in every process if any of them was asked to end.

    Args:
        asked: this one knows of another one that was.
    """
    if _heeded is not None and size() > 1:
        anyone_asked = torch.tensor(int(asked or bool(_heeded.received)))
        dist.all_reduce(anyone_asked, group=_control)
        if anyone_asked:
            raise _heeded.interruption()


@contextlib.contextmanager
def waiting_for_a_network() -> Iterator[None]:
    """Inside, a signal interrupts interruptible work at once: a read from a network may take any time.

    Not where several processes do it, of which none may leave alone.
    """
    signals = _heeded if size() == 1 else None
    if signals is None:
        yield
        return
    check_signals()
    signals.at_once = True
    try:
        yield
    finally:
        signals.at_once = False


# ------------------------------------------------------------------------------------------------ what the first does


def once(action: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """The result of a call that only the first process makes; it, or the exception, reaches all of them.

    Args:
        action: returns something that can be pickled.
    """
    global _alone
    if size() == 1:
        return action(*args, **kwargs)
    meet()
    if rank() > 0:
        result, error = receive()
        if error is not None:
            raise error
        return result
    _alone = True
    try:
        result = action(*args, **kwargs)
    except Exception as error:
        _alone = False
        send((None, portable(error)))
        raise
    finally:
        _alone = False
    send((result, None))
    return result


def by_first(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator: `once` at every call. All processes have to call it."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Result:
        return once(function, *args, **kwargs)

    return wrapper


def ahead(action: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Each process's own result of a call that the first one makes before the others, such as one that downloads."""
    mine: list[Result] = []
    once(lambda: mine.append(action(*args, **kwargs)))
    return mine[0] if mine else action(*args, **kwargs)


def send(value: Any) -> None:
    dist.broadcast_object_list([value], src=0, group=_control)


def receive() -> Any:
    found = [None]
    dist.broadcast_object_list(found, src=0, group=_control)
    return found[0]


def portable(error: Exception) -> Exception:
    """An exception as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except (TypeError, AttributeError, pickle.PicklingError):
        return RuntimeError(str(error))
    return error


# ------------------------------------------------------------------------------------------------ sharing out the work


def share(n: int) -> slice:
    """The positions among n that are this process's: nearly equal, contiguous, each exactly once over all processes."""
    k, own = size(), rank()
    small, more = divmod(n, k)
    start = own * small + min(own, more)
    return slice(start, start + small + (own < more))


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, equal to the bit in each of them."""
    if size() == 1:
        return tensor
    meet()
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group_for(total))
    return total


def gathered(tensor: Tensor) -> Tensor:
    """One row a process, (processes, *shape), of a small tensor; on gloo in half the time that a sum takes."""
    if size() == 1:
        return tensor.detach()[None]
    rows = tensor.detach().new_empty(size(), *tensor.shape)
    dist.all_gather(list(rows), tensor.detach().contiguous(), group=group_for(rows))
    return rows


def group_for(tensor: Tensor) -> dist.ProcessGroup | None:
    """What carries a tensor: gloo from the CPU's memory, otherwise what the processes were joined with."""
    return _control if tensor.device.type == "cpu" else None


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """CPU tensors of all processes one after the other, in the order of their shares."""
    if size() == 1:
        return torch.cat(list(pieces))
    meet()
    everyone: list[Tensor | None] = [None] * size()
    dist.all_gather_object(everyone, torch.cat(list(pieces)) if pieces else None, group=_control)
    return torch.cat([piece for piece in everyone if piece is not None])


def anyone(flag: bool) -> bool:
    """Whether it is true in any process."""
    return bool(summed(torch.tensor(int(flag))))


class Agreement:
    """Whether any process wants something, asked at every step and answered one step later, so that nobody waits."""

    def __init__(self) -> None:
        self.asked: tuple[Tensor, dist.Work] | None = None

    def any(self, flag: bool) -> bool:
        """Whether it was true in any process at the call before; with one process, whether it is now."""
        if size() == 1:
            return flag
        before = False
        if self.asked:
            total, work = self.asked
            work.wait()
            before = bool(total)
        total = torch.tensor(int(flag))
        self.asked = (total, dist.all_reduce(total, group=_control, async_op=True))
        return before


def follow_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

"""What the first process does for all of them, or before them."""

import pickle
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from helper.processes.group import links, rank, world_size
from helper.processes.interruption import meet

Result = TypeVar("Result")


def broadcast_from_first(action: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """What `action(*args, **kwargs)` returns or raises in the first process, in all of them; the others do not call it.

    All processes have to call this. While the action runs, the first process is one by itself: `world_size()` is 1, and
    what the action calls need not think of the others.

    Args:
        action: returns something that can be pickled.
    """
    if world_size() == 1:
        return action(*args, **kwargs)
    meet()
    if rank() > 0:
        result, error = receive()
        if error is not None:
            raise error
        return result
    try:
        result = alone(action, *args, **kwargs)
    except Exception as error:  # whatever it is: the others wait for it
        send((None, sendable(error)))
        raise
    send((result, None))
    return result


def alone(action: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """The result of an action during which this process counts as the only one."""
    links.acting_alone = True
    try:
        return action(*args, **kwargs)
    finally:
        links.acting_alone = False


def call_in_first_then_others(action: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Each process's own result of an action that the first one carries out before the others, such as a download.

    All processes have to call this.
    """
    mine: list[Result] = []
    broadcast_from_first(lambda: mine.append(action(*args, **kwargs)))
    return mine[0] if mine else action(*args, **kwargs)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process. All processes have to call this."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def send(value: Any) -> None:
    dist.broadcast_object_list([value], src=0, group=links.group)


def receive() -> Any:
    found = [None]
    dist.broadcast_object_list(found, src=0, group=links.group)
    return found[0]


def sendable(error: Exception) -> Exception:
    """An exception as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except (TypeError, AttributeError, pickle.PicklingError):
        return RuntimeError(str(error))
    return error

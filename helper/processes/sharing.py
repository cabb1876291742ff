"""How processes share out work, and put together what each has found."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from helper.processes.group import links, rank, world_size
from helper.processes.interruption import meet


def own_share(n: int) -> slice:
    """The positions among n that are this process's: nearly equal, contiguous, each exactly once over all processes."""
    k, own = world_size(), rank()
    small, more = divmod(n, k)
    start = own * small + min(own, more)
    return slice(start, start + small + (own < more))


# ------------------------------------------------------------------------------- all processes have to call these


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, equal to the bit in each of them."""
    if world_size() == 1:
        return tensor
    meet()
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group_for(total))
    return total


def stack_from_processes(tensor: Tensor) -> Tensor:
    """One row a process, (processes, *shape), of a small tensor; on gloo in half the time that a sum takes."""
    if world_size() == 1:
        return tensor.detach()[None]
    rows = tensor.detach().new_empty(world_size(), *tensor.shape)
    dist.all_gather(list(rows), tensor.detach().contiguous(), group=group_for(rows))
    return rows


def gather_from_processes(pieces: Sequence[Tensor]) -> Tensor:
    """CPU tensors of all processes, concatenated in the order of their shares."""
    if world_size() == 1:
        return torch.cat(list(pieces))
    meet()
    everyone: list[Tensor | None] = [None] * world_size()
    dist.all_gather_object(everyone, torch.cat(list(pieces)) if pieces else None, group=links.group)
    return torch.cat([piece for piece in everyone if piece is not None])


def any_process(flag: bool) -> bool:
    """Whether it is true in any process."""
    return bool(sum_over_processes(torch.tensor(int(flag))))


class Agreement:
    """Whether any process wants something, asked at every step and answered one step later, so that nobody waits."""

    def __init__(self) -> None:
        self.asked: tuple[Tensor, dist.Work] | None = None

    def any_process(self, flag: bool) -> bool:
        """Whether it was true in any process at the call before; with one process, whether it is now."""
        if world_size() == 1:
            return flag
        before = False
        if self.asked:
            total, work = self.asked
            work.wait()
            before = bool(total)
        total = torch.tensor(int(flag))
        self.asked = (total, dist.all_reduce(total, group=links.group, async_op=True))
        return before


def group_for(tensor: Tensor) -> dist.ProcessGroup | None:
    """What carries a tensor: gloo from the CPU's memory, otherwise what the processes were joined with."""
    return links.group if tensor.device.type == "cpu" else None

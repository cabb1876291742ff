"""Curvature matrices as products with a vector, over the counted and active parameters, through hessian-eigenthings."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from helper.metrics.operations import substitutable
from helper.metrics.parameters import active
from helper.metrics.sampling import finite
from helper.metrics.softmax import cross_entropies
from helper.metrics.subject import Subject
from helper.processes.interruption import check_signals, checking_signals
from helper.processes.sharing import own_share, sum_over_processes
from helper.progress import Task

if TYPE_CHECKING:
    from hessian_eigenthings.operators.base import CurvatureOperator

MATRICES = ("hessian", "gauss_newton")
ACTIVATIONS = 8  # copies of an example's activations that a product takes


class Chosen:
    """The matrix of the mean loss over chosen examples, whichever they are."""

    def __init__(self, subject: Subject, labels: Tensor, matrix: str, task: Task) -> None:
        self.subject, self.labels, self.matrix, self.task = subject, labels, matrix, task
        self.size = subject.chunk_size(ACTIVATIONS)

    def operator(self, rows: Tensor, *, shared: bool = True) -> "CurvatureOperator":
        """Of the examples `rows`, their batches shared out over the processes; not shared: all by this one."""
        batches = rows.split(self.size)
        own = batches[own_share(len(batches))] if shared else batches
        mine = Batches(self.subject, self.labels, own or batches[:1], self.task)
        counts = bool(own)  # of more processes than batches some have none, and theirs counts for nothing
        over_all = (lambda product: sum_over_processes(product * counts)) if shared else (lambda product: product)
        return active_operator(self.subject, mine, len(rows), self.matrix, over_all)


class Batches:
    """The same batches of normalised inputs and labels, made anew for every product; a task counts the examples."""

    def __init__(self, subject: Subject, labels: Tensor, rows: Sequence[Tensor], task: Task) -> None:
        self.subject, self.labels, self.rows, self.task = subject, labels, rows, task

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in checking_signals(self.rows):
            yield self.subject.rows(part), self.subject.labels_of(self.labels, part)
            self.task.advance(len(part))


def active_operator(
    subject: Subject,
    batches: Collection[tuple[Tensor, Tensor]],
    n: int,
    matrix: str,
    over_all: Callable[[Tensor], Tensor] = lambda product: product,
) -> "CurvatureOperator":
    """The matrix of a mean loss, restricted to the counted and active coordinates: no others exist in it.

    Args:
        batches: (inputs, labels), of any sizes; hessian-eigenthings averages over batches, whatever their sizes, and is
            given sums over their examples.
        n: examples that the mean is about; of several processes each has some of them.
        over_all: from this process's part of a product to the sum over all processes.
    Raises:
        ValueError: no coordinate is active, or a product is not finite.
    """
    from hessian_eigenthings.operators.base import LambdaOperator

    keep = active_coordinates(subject)
    n_active = int(keep.sum())
    if n_active == 0:
        raise ValueError("the mask leaves no parameter active")
    whole = whole_operator(subject, batches, matrix)

    def product(v: Tensor) -> Tensor:
        check_signals()
        full = torch.zeros(len(keep), device=v.device, dtype=subject.dtype)
        full[keep] = v.to(subject.dtype)
        return finite(over_all(whole.matvec(full)[keep].to(v.dtype) * len(batches) / n))

    return LambdaOperator(product, n_active, device=subject.device, dtype=torch.float64)


def active_coordinates(subject: Subject) -> Tensor:
    """(P,) which of the counted parameters' coordinates are active, in the network's order."""
    counted = subject.used
    keep = [active(p, name, subject.mask).flatten() for name, p in subject.network.named_parameters() if name in counted]
    return torch.cat(keep)


def whole_operator(subject: Subject, batches: Collection[tuple[Tensor, Tensor]], matrix: str) -> "CurvatureOperator":
    """The mean over batches of the matrix of their summed loss, over all coordinates of the counted parameters."""
    from hessian_eigenthings.operators.ggn import GGNOperator
    from hessian_eigenthings.operators.hessian import HessianOperator

    def chosen(name: str, parameter: nn.Parameter) -> bool:
        return name in subject.used

    def logits(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0].clone())  # which may be changed in place

    def loss_of_logits(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropies(output.double(), batch[1]).sum()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of_logits(logits(model, batch), batch)

    if matrix == "hessian":
        return HessianOperator(subject.network, batches, loss, param_filter=chosen)
    if not substitutable(subject.network, subject.example, subject.used):
        raise ValueError("something in the network holds a parameter itself, which cannot be substituted; use matrix hessian")
    return GGNOperator(subject.network, batches, logits, loss_of_logits, param_filter=chosen)


class OfUnitSize:
    """A matrix over `unit`, a power of two near its size that its first product tells: as an operator of hessian-eigenthings.

    Its Lanczos stops at vectors shorter than 1e-12 and its densities are no narrower than 1e-9, whatever the matrix: of a
    confident network that is more than all there is, and of large eigenvalues less than their rounding. A division by a
    power of two loses nothing.
    """

    def __init__(self, operator: "CurvatureOperator") -> None:
        self.operator = operator
        self.size, self.device, self.dtype = operator.size, operator.device, operator.dtype
        self.unit: float | None = None

    def matvec(self, v: Tensor) -> Tensor:
        product = self.operator.matvec(v)
        if self.unit is None:
            ratio = (product.abs().max() / v.abs().max()).item()
            self.unit = math.ldexp(1.0, math.frexp(ratio)[1])  # 1 for a ratio of 0
        return product / self.unit

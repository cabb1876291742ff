"""Top eigenvalues and spectral density of the Hessian or Gauss-Newton matrix, through hessian-eigenthings."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.distributed import check_signals, checked, share, summed
from helper.metrics.operations import substitutable
from helper.metrics.parameters import active, one_of
from helper.metrics.sampling import Budget, finite
from helper.metrics.subject import Examples, Subject, own_generator
from helper.progress import Task

if TYPE_CHECKING:
    from hessian_eigenthings.operators.base import CurvatureOperator

MATRICES = ("hessian", "gauss_newton")
GRID = 2000  # points at which the density is given
ACTIVATIONS = 8  # copies of an example's activations that a product takes


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a curvature matrix over the active parameters; all tensors on the CPU, in float64."""

    eigenvalues: Tensor  # (k,) of largest magnitude, in descending order of it
    residuals: Tensor  # (k,) ||A v - value v||: an eigenvalue lies within this distance
    grid: Tensor  # (g,) at which the density is given
    density: Tensor  # (g,) Gaussian-smoothed, integrates to 1
    nodes: Tensor  # (runs, m) quadrature nodes, padded with nan
    weights: Tensor  # (runs, m) their weights, each run's sum to 1
    sigma: float  # width of the smoothing
    size: int  # active parameters: order of the matrix
    n_samples: int
    matrix: str
    seconds: float


def spectrum(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    mask=None,
    *,
    matrix: str = "hessian",
    k: int = 10,
    steps: int = 40,
    runs: int = 4,
    max_samples: int | None = 1000,
    params: str = "layers",
    batch_size: int | None = None,
    memory_mb: float = 1000,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Top eigenvalues by Lanczos and spectral density by stochastic Lanczos quadrature, over the active parameters.

    The matrix is that of the mean loss over a fixed random sample of the examples in batches of one size; up to 7 examples
    are left out to make them so. Products are in the network's precision, vectors in float64: in float32 they lose their
    orthogonality, and eigenvalues appear that do not exist.

    Args:
        network, inputs, labels, mask, params, batch_size, memory_mb, progress, generator: as in `hessian_trace`.
        matrix: `hessian` or `gauss_newton`.
        k: eigenvalues of largest magnitude.
        steps: Lanczos steps, each a product with the matrix; at least k. All vectors are kept and orthogonalised.
        runs: random starting vectors of the quadrature, with `steps` steps each.
        max_samples: most examples in the sample.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, steps < k, no active parameter.
    Source: Ghorbani et al. 2019; Ubaru, Chen, Saad 2017.
    """
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    one_of("matrix", matrix, MATRICES)
    started = time.perf_counter()
    if not 1 <= k <= steps or runs < 1:
        raise ValueError(f"the spectrum needs runs >= 1 and steps >= k >= 1, not runs {runs}, steps {steps}, k {k}")
    subject = Subject(network, inputs, mask, params=params, batch_size=batch_size, memory_mb=memory_mb, progress=progress)
    labels, generator = subject.checked_labels(labels), own_generator(generator)
    n = Budget(0, max_samples).limit(len(inputs))
    n -= n % 8 if n > 8 else 0  # so that it has divisors: which examples are measured does not depend on the memory
    size = max(d for d in range(1, subject.chunk_size(ACTIVATIONS) + 1) if n % d == 0)
    rows = torch.randperm(len(inputs), generator=generator)[:n]
    seeds = torch.randint(2**31, (2,), generator=generator).tolist()
    with (
        subject.measuring(),
        Task("spectrum", (1 + runs) * steps + k, "products", shown=progress) as task,
    ):
        batches = rows.split(size)
        own = batches[share(len(batches))]
        weight = len(own) / len(batches)
        mine = Batches(subject, labels, own or batches[:1], task)  # of more processes than batches some count for nothing
        operator = active_operator(subject, mine, matrix, lambda product: summed(product * weight))
        steps, k = min(steps, operator.size), min(k, operator.size)
        top = lanczos(operator, k=k, max_iter=steps, reorthogonalize=True, seed=seeds[0])
        slq = spectral_density(operator, num_runs=runs, lanczos_steps=steps, num_grid_points=GRID, seed=seeds[1])
        # the library's residuals are exact arithmetic's: they fall far below what rounding leaves
        residuals = [
            (operator.matvec(v) - value * v).norm() for value, v in zip(top.eigenvalues, top.eigenvectors, strict=True)
        ]
    found = (top.eigenvalues, torch.stack(residuals), slq.grid, slq.density, slq.raw_eigenvalues, slq.raw_weights)
    seconds = round(time.perf_counter() - started, 3)
    tensors = (t.detach().double().cpu() for t in found)
    return Spectrum(*tensors, sigma=slq.sigma, size=operator.size, n_samples=len(rows), matrix=matrix, seconds=seconds)


class Batches:
    """The same batches of normalised inputs and labels, made anew for every product; a task counts the products."""

    def __init__(self, subject: Subject, labels: Tensor, rows: Sequence[Tensor], task: Task) -> None:
        self.subject, self.labels, self.rows, self.task = subject, labels, rows, task

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in checked(self.rows):
            yield self.subject.rows(part), self.subject.labels_of(self.labels, part)
        self.task.advance()


def active_operator(
    subject: Subject,
    batches: Iterable[tuple[Tensor, Tensor]],
    matrix: str,
    over_all: Callable[[Tensor], Tensor] = lambda product: product,
) -> "CurvatureOperator":
    """The matrix of the batches' mean loss, restricted to the counted and active coordinates: no others exist in it.

    Args:
        batches: (inputs, labels), of one size: hessian-eigenthings weighs batches alike.
        over_all: from a product with the mean over these batches to that over all processes'.
    Raises:
        ValueError: no coordinate is active, or a product is not finite.
    """
    from hessian_eigenthings.operators.base import LambdaOperator
    from hessian_eigenthings.operators.ggn import GGNOperator
    from hessian_eigenthings.operators.hessian import HessianOperator

    counted = subject.used
    keep = [active(p, name, subject.mask).flatten() for name, p in subject.network.named_parameters() if name in counted]
    keep = torch.cat(keep)
    n_active = int(keep.sum())
    if n_active == 0:
        raise ValueError("the mask leaves no parameter active")

    def chosen(name: str, parameter: nn.Parameter) -> bool:
        return name in counted

    def logits(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0].clone())  # which may be changed in place

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(logits(model, batch), batch[1])

    def loss_of_logits(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output, batch[1])

    if matrix == "hessian":
        whole = HessianOperator(subject.network, batches, loss, param_filter=chosen)
    elif not substitutable(subject.network, subject.example, subject.used):
        raise ValueError("something in the network holds a parameter itself, which cannot be substituted; use matrix hessian")
    else:
        whole = GGNOperator(subject.network, batches, logits, loss_of_logits, param_filter=chosen)

    def product(v: Tensor) -> Tensor:
        check_signals()
        full = torch.zeros(len(keep), device=v.device, dtype=subject.dtype)
        full[keep] = v.to(subject.dtype)
        return finite(over_all(whole.matvec(full)[keep].to(v.dtype)))

    return LambdaOperator(product, n_active, device=subject.device, dtype=torch.float64)

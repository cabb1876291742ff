"""Top eigenvalues and spectral density of the Hessian or Gauss-Newton matrix, through hessian-eigenthings."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from helper.metrics.half_samples import bias_of, errors_of, same_ranks
from helper.metrics.matrices import MATRICES, Chosen, OfUnitSize
from helper.metrics.options import Limits
from helper.metrics.parameters import one_of
from helper.metrics.sampling import Budget
from helper.metrics.subject import Examples, own_generator
from helper.processes.group import world_size
from helper.processes.sharing import gather_from_processes, own_share, sum_over_processes
from helper.progress import Task

if TYPE_CHECKING:
    from hessian_eigenthings.algorithms.spectral_density import SpectralDensityResult
    from hessian_eigenthings.operators.base import CurvatureOperator

GRID = 2000  # points at which the density is given
AFFORDABLE = 500_000  # products of an example with a vector, as long as twice as many images of training
FEWEST = 64  # examples of a sample, whatever the steps
FEWEST_HALVED = 4  # examples of which halves tell anything
GROUPS = 30  # of the sample, between which its spread shows


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a curvature matrix over the active parameters; all tensors on the CPU, in float64.

    A sample's eigenvalues differ from those of all examples by chance and by a bias, which `corrected` has no longer; about
    95 % of the intervals `corrected` ± 2.05 `standard_errors` cover (docs/measurements.md says where they do not). Of all
    examples there is neither. `residuals` say how exactly the sample's own were found, and nothing of other examples.
    """

    eigenvalues: Tensor  # (k,) of largest magnitude, in descending order of it, of the matrix of the examples measured
    residuals: Tensor  # (k,) ||A v - value v||: an eigenvalue of that matrix lies within this distance; Lanczos' error
    corrected: Tensor  # (k,) eigenvalues - bias: estimates of those of all examples
    bias: Tensor  # (k,) excess of such a sample's eigenvalues on average, from its halves; 0 for all examples
    standard_errors: Tensor  # (k,) of `corrected`, by the choice of the sample; 0 for all examples
    grid: Tensor  # (g,) at which the density is given
    density: Tensor  # (g,) of the examples measured, Gaussian-smoothed, integrates to 1
    density_errors: Tensor  # (g,) its standard errors by the choice of the starting vectors; nan for a single one
    moments: Tensor  # (2,) mean eigenvalue and mean squared eigenvalue of the examples measured, by the same quadrature
    moment_errors: Tensor  # (2,) their standard errors by the choice of the starting vectors
    nodes: Tensor  # (runs, m) quadrature nodes, padded with nan
    weights: Tensor  # (runs, m) their weights, each run's sum to 1
    sigma: float  # width of the smoothing
    size: int  # active parameters: order of the matrix
    n_samples: int
    population: int  # examples that n_samples were drawn from
    matrix: str
    seconds: float


@dataclass(frozen=True)
class SpectrumOptions(Limits):
    """Which matrix's spectrum, and how far it is followed.

    matrix: `hessian` or `gauss_newton`.
    k: eigenvalues of largest magnitude; fewer come back of a matrix that has not so many different ones.
    steps: Lanczos steps, each a product with the matrix; at least k. All vectors are kept and orthogonalised.
    runs: random starting vectors of the quadrature, with `steps` steps each.
    max_samples: most examples in the sample; default: see `affordable`.
    params: which parameters count, as in `ParameterOptions`.
    Raises:
        ValueError: an unknown matrix, steps < k, no run.
    """

    params: str = "layers"
    matrix: str = "hessian"
    k: int = 10
    steps: int = 40
    runs: int = 4

    def __post_init__(self) -> None:
        one_of("matrix", self.matrix, MATRICES)
        k, steps, runs = self.k, self.steps, self.runs
        if not 1 <= k <= steps or runs < 1:
            raise ValueError(f"the spectrum needs runs >= 1 and steps >= k >= 1, not runs {runs}, steps {steps}, k {k}")

    def n_samples(self, population: int) -> int:
        if self.max_samples is None:
            return affordable(population, self.k, self.steps, self.runs)
        return Budget(0, self.max_samples).limit(population)

    def products(self, n: int, in_halves: int) -> int:
        """Products of an example with a vector, of a sample of n of which so many are in its halves."""
        return n * full_products(self.k, self.steps, self.runs) + in_halves * half_steps(self.k, self.steps)


def spectrum(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    mask=None,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Spectrum:
    """Top eigenvalues by Lanczos and spectral density by stochastic Lanczos quadrature, over the active parameters.

    The matrix is that of the mean loss over all examples, or over a fixed random sample of them where all would take more
    than `AFFORDABLE` products of an example with a vector; then the halves of the sample tell bias and error. Products are
    in the network's precision, vectors in float64: in float32 they lose their orthogonality, and eigenvalues appear that do
    not exist.

    Args:
        network, inputs, labels, mask, generator: as in `hessian_trace`.
        options: fields of `SpectrumOptions`.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, steps < k, no active parameter.
    Source: Ghorbani et al. 2019; Ubaru, Chen, Saad 2017; Quenouille 1956 for the halves.
    """
    started, chosen = time.perf_counter(), SpectrumOptions(**options)
    subject = chosen.subject(network, inputs, mask, chosen.params)
    labels, generator = subject.checked_labels(labels), own_generator(generator)
    population, n = len(inputs), chosen.n_samples(len(inputs))
    rows = torch.randperm(population, generator=generator)[:n]
    seeds = torch.randint(2**31, (2,), generator=generator).tolist()
    halves = rows.tensor_split(2) if FEWEST_HALVED <= n < population else ()
    products = chosen.products(n, in_halves=sum(map(len, halves)))
    with subject.measuring(), Task("spectrum", products // world_size(), "products", shown=chosen.progress) as task:
        matrix = Chosen(subject, labels, chosen.matrix, task)
        operator = matrix.operator(rows)
        chosen = replace(chosen, steps=min(chosen.steps, operator.size), k=min(chosen.k, operator.size))
        top = top_eigenvalues(matrix, operator, rows, halves, chosen, seeds[0])
        slq = density(operator, chosen, seeds[1])
    density_errors, moments, moment_errors = spread_of_runs(slq)
    tensors = top | {
        "grid": slq.grid, "density": slq.density, "density_errors": density_errors, "moments": moments,
        "moment_errors": moment_errors, "nodes": slq.raw_eigenvalues, "weights": slq.raw_weights,
    }  # fmt: skip
    return Spectrum(
        **{name: tensor.detach().double().cpu() for name, tensor in tensors.items()}, sigma=slq.sigma, size=operator.size,
        n_samples=n, population=population, matrix=chosen.matrix, seconds=round(time.perf_counter() - started, 3),
    )  # fmt: skip


def top_eigenvalues(
    matrix: Chosen, operator: "CurvatureOperator", rows: Tensor, halves: Sequence[Tensor], chosen: SpectrumOptions, seed: int
) -> dict[str, Tensor]:
    """The fields of `Spectrum` that are about the k largest eigenvalues; the halves' tell bias and error, if there are any."""
    from hessian_eigenthings.algorithms.lanczos import lanczos

    scaled = OfUnitSize(operator)
    top = lanczos(scaled, k=chosen.k, max_iter=chosen.steps, reorthogonalize=True, seed=seed)
    return with_errors(
        matrix, rows, halves, half_steps(chosen.k, chosen.steps), top.eigenvalues * scaled.unit, top.eigenvectors
    )


def with_errors(
    matrix: Chosen, rows: Tensor, halves: Sequence[Tensor], n_steps: int, values: Tensor, vectors: Tensor
) -> dict[str, Tensor]:
    """`top_eigenvalues` from approximate pairs, (k,) and (k, size), with so many Lanczos steps for each half."""
    population = len(matrix.subject.inputs)
    residuals, forms, sizes = by_groups(matrix, rows, values, vectors)
    values = values.double().cpu()
    parts = [ritz_values(matrix.operator(half), vectors, n_steps) for half in halves]
    if len(rows) == population:
        bias = errors = torch.zeros_like(values)
    elif not halves:
        bias = errors = torch.full_like(values, torch.nan)
    else:
        found = torch.stack([same_ranks(values, part) for part in parts])
        bias = bias_of(values, found, (len(halves[0]), len(halves[1])), population)
        errors = errors_of(forms, sizes, bias, population)
    return {
        "eigenvalues": values, "residuals": residuals, "corrected": values - bias, "bias": bias, "standard_errors": errors,
    }  # fmt: skip


def density(operator: "CurvatureOperator", chosen: SpectrumOptions, seed: int) -> "SpectralDensityResult":
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    scaled = OfUnitSize(operator)
    slq = spectral_density(scaled, num_runs=chosen.runs, lanczos_steps=chosen.steps, num_grid_points=GRID, seed=seed)
    return times(slq, scaled.unit)


# --------------------------------------------------------------------------------------------------- how many examples


def affordable(population: int, k: int, steps: int, runs: int) -> int:
    """Examples that are measured where nobody says how many: all, if that takes at most `AFFORDABLE` products of one."""
    if population * full_products(k, steps, runs) <= AFFORDABLE:
        return population
    return min(population, max(FEWEST, AFFORDABLE // (full_products(k, steps, runs) + half_steps(k, steps))))


def full_products(k: int, steps: int, runs: int) -> int:
    """Products with the sample's matrix: of Lanczos, of its residuals, of the quadrature."""
    return steps + k + runs * steps


def half_steps(k: int, steps: int) -> int:
    """Lanczos steps for each half of a sample: fewer, as they start from the sample's own eigenvectors."""
    return max(k, math.ceil(steps / 2))


# -------------------------------------------------------------------------------------------------------- its products


def by_groups(chosen: Chosen, rows: Tensor, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a product with each eigenvector shows, taken group by group of the examples.

    Returns:
        (k,) residuals ||A v - value v||, measured because the library's, those of exact arithmetic, fall far below what
        rounding leaves; (G, k) means of v^T H_i v over each group; (G,) their sizes.
    """
    groups = rows.tensor_split(min(GROUPS, len(rows)))
    total, forms = torch.zeros_like(vectors), []
    for group in groups[own_share(len(groups))]:
        operator = chosen.operator(group, shared=False)
        products = torch.stack([operator.matvec(v) for v in vectors])
        total += products * len(group) / len(rows)
        forms.append((vectors * products).sum(1)[None].double().cpu())
    residuals = (sum_over_processes(total) - values[:, None] * vectors).norm(dim=1)
    return residuals, gather_from_processes(forms), torch.tensor([len(group) for group in groups])


def ritz_values(operator: "CurvatureOperator", vectors: Tensor, steps: int) -> Tensor:
    """(m,) approximate eigenvalues, the extreme ones best, by Lanczos from the sum of (k, size) approximate eigenvectors."""
    matrix, _, unit = projected(operator, vectors.sum(0), steps)
    return torch.linalg.eigvalsh(matrix).double().cpu() * unit


def ritz_pairs(operator: "CurvatureOperator", start: Tensor, steps: int, k: int) -> tuple[Tensor, Tensor]:
    """(k,) approximate eigenvalues of the largest magnitude, (k, size) vectors, by Lanczos from a vector; k at most."""
    matrix, basis, unit = projected(operator, start, steps)
    values, mixtures = torch.linalg.eigh(matrix)
    first = values.abs().argsort(descending=True)[:k]
    return values[first] * unit, torch.stack([sum(c * v for c, v in zip(mixtures[:, i], basis, strict=True)) for i in first])


def projected(operator: "CurvatureOperator", start: Tensor, steps: int) -> tuple[Tensor, list[Tensor], float]:
    """(m, m) what Lanczos makes of a matrix in an orthonormal basis; the basis; what to multiply eigenvalues with."""
    from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal

    scaled = OfUnitSize(operator)
    found = lanczos_tridiagonal(scaled, start, min(steps, operator.size), reorthogonalize=True)
    off = found.betas[: len(found.alphas) - 1]
    return found.alphas.diag() + off.diag(1) + off.diag(-1), list(found.basis)[: len(found.alphas)], scaled.unit


def times(slq: "SpectralDensityResult", unit: float) -> "SpectralDensityResult":
    """The density of `unit` times a matrix, from the matrix's."""
    nodes, grid, sigma = slq.raw_eigenvalues * unit, slq.grid * unit, slq.sigma * unit
    return replace(slq, raw_eigenvalues=nodes, grid=grid, density=slq.density / unit, sigma=sigma)


def spread_of_runs(slq: "SpectralDensityResult") -> tuple[Tensor, Tensor, Tensor]:
    """Standard errors of the density, the first two moments of the spectrum, and their errors, by the spread of the runs."""
    runs = []
    for nodes, weights in zip(slq.raw_eigenvalues, slq.raw_weights, strict=True):
        nodes, weights = nodes[~nodes.isnan()], weights[~nodes.isnan()]
        bells = torch.exp(-((slq.grid[:, None] - nodes) ** 2) / (2 * slq.sigma**2)) / (slq.sigma * math.sqrt(2 * math.pi))
        powers = torch.stack([(weights * nodes).sum(), (weights * nodes.square()).sum()])
        runs.append(torch.cat([powers, bells @ weights]))
    found = torch.stack(runs)
    errors = found.std(0) / len(found) ** 0.5 if len(found) > 1 else torch.full_like(found[0], torch.nan)
    return errors[2:], found.mean(0)[:2], errors[:2]

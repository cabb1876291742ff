"""Trace of the Hessian of the mean cross-entropy over the active parameters."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.estimate import Estimate, Mean, Sampled, estimate_of, two_stage_mean, with_total
from helper.metrics.fisher import spectral_mean
from helper.metrics.options import ParameterOptions
from helper.metrics.parameters import active, one_of
from helper.metrics.products import choose_products
from helper.metrics.sampling import Budget, finite, sample_groups, sample_mean
from helper.metrics.softmax import cross_entropy
from helper.metrics.subject import Examples, Subject, own_generator, signs
from helper.processes.interruption import checking_signals
from helper.processes.sharing import gather_from_processes
from helper.progress import tracked

HESSIAN_METHODS = ("auto", "gauss_newton", "hutchinson", "pyhessian", "eigenthings")
TERMS = ("hessian", "residual")
PRODUCT_COPIES = (10.0, 8.0)  # of activations and parameters that an example takes in a forward-over-reverse product
LIBRARY_PRODUCTS = {"pyhessian": 5, "eigenthings": 15}  # Hessian-vector products for each batch; Hutch++ takes thirds


@dataclass(frozen=True)
class HessianOptions(ParameterOptions):
    """Which estimator of the Hessian trace, or of a part of it.

    method: `gauss_newton` measures Tr G and refuses a network where that is not Tr H; `hutchinson` v^T H v with
        independent signs v for every example (forward over reverse); `auto` the first where it holds, else the second,
        as the estimate says; `pyhessian` Hutchinson and `eigenthings` Hutch++ with probes shared by a batch.
    term: `hessian`, or `residual` for Tr R alone (`auto` and `hutchinson` only; 0 without a draw where `auto` knows it).
    rtol: not for the libraries, nor for `residual`, which may be 0.
    n_probes: in the libraries products for each batch.
    """

    method: str = "auto"
    term: str = "hessian"


def hessian_trace(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    mask=None,
    *,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Estimate:
    """Trace of the Hessian of the mean cross-entropy over the active parameters.

    H = G + R with G = E_x J^T S J, the Gauss-Newton matrix, and R = E_x sum_c (p - e_y)_c Hessian(f_c). Where the logits are
    piecewise linear in every single parameter R has no diagonal, and Tr H = Tr G almost everywhere.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode, left as it was.
        inputs, labels: (N, ...) examples and (N,) classes that the mean is about, tensors or arrays.
        mask: parameter name -> bool tensor of the parameter's shape; pruned coordinates do not count.
        generator: of the draws; default: one seeded with 0, so that the same call gives the same number.
        options: fields of `HessianOptions`.
    Returns:
        Estimate in nats per squared parameter unit; its by_layer traces sum to the value (`eigenthings` gives none),
        left_out says what was not counted.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, a `gauss_newton` that is not the Hessian's.
    Source: Ye et al. 2022, eq. 2.1; Hutchinson 1989; Schraudolph 2002; Meyer et al. 2021 for Hutch++.
    """
    started, options = time.perf_counter(), HessianOptions(**options)
    subject = options.subject(network, inputs, mask, options.params)
    labels, generator = subject.checked_labels(labels), own_generator(generator)
    chosen, why = choose_method(options.method, options.term, subject.seen.curved)
    with subject.measuring():
        sampled = hessian_mean(subject, labels, chosen, options, generator)
    layers = [] if chosen == "eigenthings" else list(subject.layers)
    found = estimate_of(sampled, layers, f"{chosen}{why}", time.perf_counter() - started)
    return replace(found, left_out=subject.left_out)


def hessian_mean(subject: Subject, labels: Tensor, chosen: str, options: HessianOptions, generator: torch.Generator) -> Sampled:
    """By the estimator that `choose_method` has chosen."""
    if chosen == "zero":
        nothing = torch.zeros(1 + len(subject.layers), dtype=torch.float64)
        return Sampled(Mean(nothing, nothing, math.inf, 0.0), len(subject.inputs), "no draw needed")
    if chosen == "gauss_newton":
        return spectral_mean(subject, options.budget, generator)
    if chosen == "hutchinson":
        budget = options.budget if options.term == "hessian" else options.budget_of_all
        return hutchinson_mean(subject, labels, options.term, budget, generator)
    return library_mean(subject, labels, chosen, options.budget_of_all, generator)


def choose_method(method: str, term: str, curved: str | None) -> tuple[str, str]:
    """(estimator, reason in brackets) for a network, given why it is not piecewise linear.

    Raises:
        ValueError: the method does not measure what is asked for.
    """
    one_of("hessian_method", method, HESSIAN_METHODS)
    one_of("term", term, TERMS)
    if term == "residual" and method not in ("auto", "hutchinson"):
        raise ValueError(f"hessian_method {method} does not measure the residual term; use auto or hutchinson")
    if method == "gauss_newton" and curved:
        raise ValueError(
            f"hessian_method gauss_newton would measure the Gauss-Newton (Fisher) trace, which is not the Hessian's here: "
            f"{curved}; use auto or hutchinson"
        )
    if method != "auto":
        return method, ""
    if curved:
        return "hutchinson", f" (not piecewise linear: {curved})"
    return ("zero" if term == "residual" else "gauss_newton"), " (piecewise linear)"


# ---------------------------------------------------------------------------- a probe of its own for every example


def hutchinson_mean(subject: Subject, labels: Tensor, term: str, budget: Budget, generator: torch.Generator) -> Sampled:
    keep = {name: active(p, name, subject.mask) for ps in subject.layers.values() for name, p in ps.items()}
    size = subject.chunk_size(*PRODUCT_COPIES)

    some = torch.arange(len(subject.example))
    tried = (rademacher(keep, some, subject.dtype), subject.example, subject.labels_of(labels, some))
    products = choose_products(subject.network, subject.layers, term, *tried)

    def draw(rows: Tensor, k: int) -> Tensor:
        seeds = torch.randint(2**62, (len(rows), k), generator=generator)  # a stream for each probe, whatever the chunks
        pieces = []
        for part, x in subject.chunks(rows, size, k, "Hessian"):
            y = subject.labels_of(labels, rows[part])
            probes = [
                products(rademacher(keep, seeds[part, probe], subject.dtype), x, y) for probe in checking_signals(range(k))
            ]
            pieces.append(torch.stack(probes, 1).cpu())
        return gather_from_processes(pieces)

    return sample_mean(draw, len(subject.inputs), budget, generator)


def rademacher(keep: dict[str, Tensor], seeds: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """{parameter name: (n, *shape)} independent signs on the active coordinates, 0 elsewhere, from n seeds."""
    sizes = [k.numel() for k in keep.values()]
    flat = [signs((sum(sizes),), torch.Generator().manual_seed(int(seed))) for seed in seeds]
    columns = torch.stack(flat).split(sizes, 1)
    found = {}
    for (name, k), column in zip(keep.items(), columns, strict=True):
        found[name] = column.to(k.device, dtype).view(-1, *k.shape) * k
    return found


# --------------------------------------------------------------------------------------- libraries, batch by batch


def library_mean(subject: Subject, labels: Tensor, library: str, budget: Budget, generator: torch.Generator) -> Sampled:
    """A library's trace estimator on random batches; two-stage errors over batches, from the spread of its probes."""
    population = len(subject.inputs)
    limit = budget.limit(population)
    n_products = max(6 if library == "eigenthings" else 2, budget.n_probes or LIBRARY_PRODUCTS[library])
    for name, parameter in subject.network.named_parameters():
        parameter.requires_grad_(name in subject.used)
    groups = sample_groups(population, limit, subject.library_batch(limit), generator)
    rows = []
    for group in tracked(groups, "Hessian", "batches", shown=subject.progress):
        y = subject.labels_of(labels, group)
        rows.append(LIBRARIES[library](subject, subject.rows(group), y, n_products, generator))
    values = finite(torch.stack(rows))
    sizes = torch.tensor([len(group) for group in groups])
    scheme = "every example" if limit == population else "random batches"
    return Sampled(two_stage_mean(values, sizes, population), limit, f"{scheme}, {n_products} products")


def pyhessian_draws(subject: Subject, x: Tensor, y: Tensor, n_products: int, generator: torch.Generator) -> Tensor:
    """(probes, 1 + layers) draws of v_l . (H v)_l on one batch, with PyHessian's products; the graph is built once."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        operator = hessian(subject.network, cross_entropy, data=(x, y), cuda=x.is_cuda)
    subject.network.zero_grad(set_to_none=True)  # its gradients hold their own graph: a cycle that would never be freed
    owners = {name: index for index, ps in enumerate(subject.layers.values()) for name in ps}
    counted = {name: p for name, p in subject.network.named_parameters() if p.requires_grad}
    keep = {name: active(p, name, subject.mask) for name, p in counted.items()}
    columns = torch.tensor([owners[name] for name in counted])
    values = torch.zeros(n_products, len(subject.layers), dtype=torch.float64)
    for row in checking_signals(values):
        v = {name: signs(k.shape, generator).to(x.device, x.dtype) * k for name, k in keep.items()}
        products = hessian_vector_product(operator.gradsH, operator.params, list(v.values()))
        shares = torch.stack([(a * b).sum() for a, b in zip(v.values(), products, strict=True)])
        row.index_add_(0, columns, shares.detach().double().cpu())
    return with_total(values)


def eigenthings_draws(subject: Subject, x: Tensor, y: Tensor, n_products: int, generator: torch.Generator) -> Tensor:
    """(probes, 1) draws of Hutch++ by hessian-eigenthings on one batch, over the active coordinates.

    Its sketch is shared by its probes, so their spread is what is left beside the sketch.
    """
    from hessian_eigenthings.algorithms.trace import hutch_plus_plus

    from helper.metrics.matrices import active_operator

    operator = active_operator(subject, [(x, y)], len(y), "hessian")
    seed = int(torch.randint(2**31, (), generator=generator))
    result = hutch_plus_plus(operator, num_matvecs=n_products, seed=seed)
    samples = result.samples.double().cpu()
    return (samples - samples.mean() + result.estimate)[:, None]


LIBRARIES: dict[str, Callable[..., Tensor]] = {"pyhessian": pyhessian_draws, "eigenthings": eigenthings_draws}

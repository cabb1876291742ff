"""Norms of the input-output Jacobian, example by example."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.estimate import Estimate, estimate_of
from helper.metrics.options import Options
from helper.metrics.parameters import one_of, require_gradients
from helper.metrics.per_example import pull_back
from helper.metrics.sampling import Draw, sample_mean
from helper.metrics.softmax import log_probabilities
from helper.metrics.subject import AT_ONCE, Examples, Subject, own_generator, signs
from helper.processes.interruption import checking_signals
from helper.processes.sharing import gather_from_processes

JACOBIAN_METHODS = ("projection", "exact")
JACOBIAN_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: log_probabilities(logits).exp(),
}
NORMS = ("frobenius", "spectral")


@dataclass(frozen=True)
class JacobianOptions(Options):
    """Which norm of which outputs' Jacobian, by which estimator.

    output: `logits` or `probabilities`.
    method: `projection` draws ||J^T v||^2 with independent signs v; `exact` makes one backward pass for each output.
    norm: `frobenius`: E ||J||_F^2; `spectral`: E sigma_max(J), from the whole Jacobian (`exact` only).
    rtol: `exact` has only the examples' spread, `rtol` 0 measures them all.
    n_probes: projections of each example.
    Raises:
        ValueError: an unknown word, `spectral` by projection.
    """

    output: str = "logits"
    method: str = "projection"
    norm: str = "frobenius"

    def __post_init__(self) -> None:
        one_of("jacobian_output", self.output, JACOBIAN_OUTPUTS)
        one_of("jacobian_method", self.method, JACOBIAN_METHODS)
        one_of("norm", self.norm, NORMS)
        if self.norm == "spectral" and self.method != "exact":
            raise ValueError("the largest singular value needs the whole Jacobian: use jacobian_method exact")


def jacobian_norm(
    network: nn.Module, inputs: Examples, *, generator: torch.Generator | None = None, **options: Any
) -> Estimate:
    """Mean over examples of the squared Frobenius norm of df/dx, or of its largest singular value.

    The Jacobian is with respect to the input that the network sees, after normalisation.

    Args:
        network: maps (N, ...) floating-point inputs to (N, C) logits; measured in eval mode, left as it was.
        inputs: (N, ...) examples that the mean is about.
        generator: of the draws; default: one seeded with 0, so that the same call gives the same number.
        options: fields of `JacobianOptions`.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, integer inputs, options that contradict each other.
    Source: Ye et al. 2022, footnote 3; Novak et al. 2018; projections: Hoffman et al. 2019.
    """
    started, chosen = time.perf_counter(), JacobianOptions(**options)
    generator = own_generator(generator)
    subject = chosen.subject(network, inputs)
    if chosen.output == "probabilities":
        subject.refuse_one_class()
    if not subject.example.is_floating_point():
        raise ValueError("the Jacobian is with respect to the inputs, which must be floating-point numbers")
    with subject.measuring():
        require_gradients(subject.network, False)
        draw = projections(subject, chosen, generator) if chosen.method == "projection" else whole_norms(subject, chosen)
        exact = chosen.method == "exact"
        sampled = sample_mean(draw, len(inputs), chosen.budget, generator, exact=exact)
    name = f"{chosen.method}:{chosen.output}{'' if chosen.norm == 'frobenius' else ':sigma_max'}"
    return estimate_of(sampled, [], name, time.perf_counter() - started)


def projections(subject: Subject, chosen: JacobianOptions, generator: torch.Generator) -> Draw:
    """Draws ||J^T v||^2, each by one backward pass."""
    function, size = JACOBIAN_OUTPUTS[chosen.output], subject.chunk_size(activations=2)

    def draw(rows: Tensor, k: int) -> Tensor:
        return torch.cat([draw_some(some, k) for some in rows.split(AT_ONCE)])

    def draw_some(rows: Tensor, k: int) -> Tensor:
        v = signs((len(rows), k, subject.n_classes), generator)
        pieces = []
        for part, x in subject.chunks(rows, size, k, "Jacobian"):
            cotangents = v[part].transpose(0, 1).to(subject.device, subject.dtype)
            squares = [square_norms(g) for g in vector_products(subject.network, function, x, cotangents)]
            pieces.append(torch.stack(squares, 1)[..., None].cpu())
        return gather_from_processes(pieces)

    return draw


def whole_norms(subject: Subject, chosen: JacobianOptions) -> Draw:
    """The norm of every example's whole Jacobian, which one backward pass for each output gives."""
    function, spectral = JACOBIAN_OUTPUTS[chosen.output], chosen.norm == "spectral"
    whole = 4 * subject.n_classes * subject.example[0].nbytes if spectral else 0  # list, stack, float64
    size = subject.chunk_size(activations=2, other=whole)
    eye = torch.eye(subject.n_classes, device=subject.device, dtype=subject.dtype)[:, None]

    def draw(rows: Tensor, k: int) -> Tensor:
        return torch.cat([draw_some(some) for some in rows.split(AT_ONCE)])

    def draw_some(rows: Tensor) -> Tensor:
        pieces = []
        for _, x in subject.chunks(rows, size, subject.n_classes, "Jacobian"):
            gradients = vector_products(subject.network, function, x, eye.expand(-1, len(x), -1))
            if spectral:
                norms = largest_singular_values(torch.stack(list(gradients), 1))
            else:
                norms = torch.stack([square_norms(g) for g in gradients], 1).sum(1)
            pieces.append(norms[:, None, None].double().cpu())
        return gather_from_processes(pieces)

    return draw


def square_norms(gradients: Tensor) -> Tensor:
    """(N,) squared norms in float64 of (N, ...) gradients."""
    return gradients.double().square().flatten(1).sum(1)


def vector_products(network: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, cotangents: Tensor):
    """(N, ...) gradients of v . function(f(x)) with respect to x, one after the other for each of (k, N, C) cotangents v."""
    x = x.detach().requires_grad_()
    outputs = function(network(x.clone()))  # which may be changed in place
    for index, v in enumerate(checking_signals(cotangents)):
        yield pull_back(outputs, v, x, retain_graph=index < len(cotangents) - 1)[0]


def largest_singular_values(jacobians: Tensor) -> Tensor:
    """(N,) from (N, C, ...) Jacobians, by the eigenvalues of J J^T."""
    flat = jacobians.flatten(2).double()
    return torch.linalg.eigvalsh(flat @ flat.transpose(1, 2))[:, -1].clamp(min=0).sqrt()

"""Norms of the input-output Jacobian, example by example."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper.metrics.estimate import Estimate, estimate_of
from helper.metrics.parameters import one_of, require_gradients
from helper.metrics.per_example import pull_back
from helper.metrics.sampling import Budget, sample_mean
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


def jacobian_norm(
    network: nn.Module,
    inputs: Examples,
    *,
    output: str = "logits",
    method: str = "projection",
    norm: str = "frobenius",
    rtol: float = 0.05,
    max_samples: int | None = None,
    n_probes: int | None = None,
    batch_size: int | None = None,
    memory_mb: float = 1000,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Mean over examples of the squared Frobenius norm of df/dx, or of its largest singular value.

    The Jacobian is with respect to the input that the network sees, after normalisation.

    Args:
        network: maps (N, ...) floating-point inputs to (N, C) logits; measured in eval mode, left as it was.
        inputs: (N, ...) examples that the mean is about.
        output: `logits` or `probabilities`.
        method: `projection` draws ||J^T v||^2 with independent signs v; `exact` makes one backward pass for each output.
        norm: `frobenius`: E ||J||_F^2; `spectral`: E sigma_max(J), from the whole Jacobian (`exact` only).
        rtol: relative standard error asked for; `exact` has only the examples' spread, `rtol` 0 measures them all.
        max_samples: most examples; default: all.
        n_probes: projections of each example.
        batch_size, memory_mb: bounds on what is computed at once.
        progress: show how far it is: a bar on a terminal, else a log line every half a minute.
        generator: of the draws; default: one seeded with 0, so that the same call gives the same number.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, integer inputs, `spectral` by projection.
    Source: Ye et al. 2022, footnote 3; Novak et al. 2018; projections: Hoffman et al. 2019.
    """
    started = time.perf_counter()
    generator = own_generator(generator)
    one_of("jacobian_output", output, JACOBIAN_OUTPUTS)
    one_of("jacobian_method", method, JACOBIAN_METHODS)
    one_of("norm", norm, NORMS)
    if norm == "spectral" and method != "exact":
        raise ValueError("the largest singular value needs the whole Jacobian: use jacobian_method exact")
    subject = Subject(network, inputs, batch_size=batch_size, memory_mb=memory_mb, progress=progress, params=None)
    if output == "probabilities":
        subject.refuse_one_class()
    if not subject.example.is_floating_point():
        raise ValueError("the Jacobian is with respect to the inputs, which must be floating-point numbers")
    function = JACOBIAN_OUTPUTS[output]
    whole = 4 * subject.n_classes * subject.example[0].nbytes if norm == "spectral" else 0  # list, stack, float64
    size = subject.chunk_size(activations=2, other=whole)

    def draw(rows: Tensor, k: int) -> Tensor:
        return torch.cat([draw_some(some, k) for some in rows.split(AT_ONCE)])

    def draw_some(rows: Tensor, k: int) -> Tensor:
        v = signs((len(rows), k, subject.n_classes), generator) if method == "projection" else None
        pieces = []
        for part, x in subject.chunks(rows, size, k if v is not None else subject.n_classes, "Jacobian"):
            if v is not None:
                cotangents = v[part].transpose(0, 1).to(subject.device, subject.dtype)
            else:
                eye = torch.eye(subject.n_classes, device=subject.device, dtype=subject.dtype)
                cotangents = eye[:, None].expand(-1, len(x), -1)
            gradients = vector_products(subject.network, function, x, cotangents)
            if norm == "spectral":
                value = largest_singular_values(torch.stack(list(gradients), 1))[:, None]
            else:
                value = torch.stack([g.double().square().flatten(1).sum(1) for g in gradients], 1)
                value = value if v is not None else value.sum(1, keepdim=True)
            pieces.append(value[..., None].double().cpu())
        return gather_from_processes(pieces)

    with subject.measuring():
        require_gradients(subject.network, False)
        budget = Budget(rtol, max_samples, n_probes)
        sampled = sample_mean(draw, len(inputs), budget, generator, exact=method == "exact")
    name = f"{method}:{output}" if norm == "frobenius" else f"{method}:{output}:sigma_max"
    seconds = time.perf_counter() - started
    return estimate_of(sampled, [], name, seconds)


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

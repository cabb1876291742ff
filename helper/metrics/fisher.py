"""Trace of the Fisher information matrix over the active parameters."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helper.metrics.estimate import Estimate, Sampled, estimate_of, two_stage_mean, with_total
from helper.metrics.parameters import active, default_dtype, module_of, one_of
from helper.metrics.per_example import RULES, Engine, LoopNorms, choose_engine, supported, vmap_engine
from helper.metrics.sampling import LEAST_DRAWS, Budget, Draw, finite, importance_mean, sample_groups, sample_mean
from helper.metrics.scores import LayerInputs, outlying
from helper.metrics.softmax import log_probabilities, probabilities, residuals, total_variance
from helper.metrics.subject import AT_ONCE, Examples, Subject, own_generator, signs
from helper.processes.interruption import checking_signals
from helper.processes.sharing import gather_from_processes
from helper.progress import tracked
from helper.system.seeds import global_seed

FISHER_METHODS = ("spectral", "exact", "vmap", "ours", "nngeometry")
FISHER_METRICS = ("fim", "fim_monte_carlo", "empirical")
PROBING = ("spectral", "exact")  # methods that know the sum over labels and sample none
LIKELY = 15  # classes that an eigendecomposition tells apart
LABEL_DRAWS = 5  # of each example, where n_probes does not say


def fisher_trace(
    network: nn.Module,
    inputs: Examples,
    mask=None,
    *,
    method: str = "spectral",
    metric: str | None = None,
    labels: Tensor | None = None,
    rtol: float = 0.05,
    max_samples: int | None = None,
    n_probes: int | None = None,
    params: str = "layers",
    batch_size: int | None = None,
    memory_mb: float = 1000,
    progress: bool = False,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Trace of the Fisher information, E_x E_{y ~ p(.|x)} ||grad log p(y|x)||^2, over the active parameters.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode, left as it was.
        inputs: (N, ...) examples that the mean is about, a tensor or an array.
        mask: parameter name -> bool tensor of the parameter's shape; pruned coordinates do not count.
        method: `spectral` draws ||J^T z||^2 with E z z^T = S = diag(p) - p p^T by random signs on the eigenvectors of S, of
            examples drawn by importance where not all are measured; `exact` sums over the C labels; `vmap`, `ours` (one
            example at a time) and `nngeometry` (batch diagonals) sample labels.
        metric: `fim` the expectation over labels (`vmap`, `ours`, `nngeometry` then sum over all of them),
            `fim_monte_carlo` with sampled labels, `empirical` with the data's labels, which is another quantity. Default:
            `fim` for `spectral` and `exact`, `fim_monte_carlo` for the others.
        labels: (N,) classes, for `empirical`.
        rtol: relative standard error asked for, of `spectral` only: the others' tails are too heavy to stop on.
        max_samples: most examples (or draws, where they are drawn by importance); default: all.
        n_probes: draws for each example, at least 2; default: as few as an error needs, of labels 5 or a thousand in all.
        params: `layers` (every weight and bias but those of normalisations), `weights` (without biases) or `all`.
        batch_size, memory_mb: bounds on what is computed at once.
        progress: show how far it is: a bar on a terminal, else a log line every half a minute.
        generator: of the draws; default: one seeded with 0, so that the same call gives the same number.
    Returns:
        Estimate in nats per squared parameter unit; its by_layer traces sum to the value, left_out says what
        was not counted.
    Raises:
        ValueError: fewer than 2 examples, values that are not finite, options that contradict each other, or a network
            that the method cannot treat.
    Source: Ye et al. 2022, eq. 2.3 and footnote 4; label sampling: Kunstner et al. 2019.
    """
    started = time.perf_counter()
    metric, generator = usual_metric(method, metric), own_generator(generator)
    subject = Subject(network, inputs, mask, params=params, batch_size=batch_size, memory_mb=memory_mb, progress=progress)
    if metric == "empirical":
        labels = subject.checked_labels(labels)
    with subject.measuring():
        if method == "nngeometry":
            with global_seed(generator):  # its data loader draws from the global generator
                sampled = nngeometry_mean(subject, metric, labels, Budget(0, max_samples, n_probes), generator)
        elif method == "spectral" and metric == "fim":
            sampled = spectral_mean(subject, Budget(rtol, max_samples, n_probes), generator)
        else:
            sampled = label_mean(subject, method, metric, labels, Budget(0, max_samples, n_probes), generator)
    name = method if method in PROBING and metric == "fim" else f"{method}:{metric}"
    seconds = time.perf_counter() - started
    return replace(estimate_of(sampled, list(subject.layers), name, seconds), left_out=subject.left_out)


def usual_metric(method: str, metric: str | None) -> str:
    """The metric of a method, by default the one that it is made for.

    Raises:
        ValueError: the method does not do it.
    """
    one_of("fisher_method", method, FISHER_METHODS)
    if metric is None:
        return "fim" if method in PROBING else "fim_monte_carlo"
    one_of("fisher_metric", metric, FISHER_METRICS)
    if metric == "fim_monte_carlo" and method in PROBING:
        raise ValueError(f"fisher_method {method} samples no labels; for fisher_metric {metric} use vmap, ours or nngeometry")
    return metric


# --------------------------------------------------------------------------------- cotangents z with E z z^T = S


def spectral_cotangents(logits: Tensor, e: Tensor) -> Tensor:
    """(k, n, C) z in float64 with E z z^T = S, from (n, C) logits and (n, k, C + 1) signs e.

    Over the eigenpairs of S the noise is least, but their C x C matrices take longer than the network's gradient. So the
    likeliest classes and all others taken as one are treated in this way, and the variance among the others, which is
    small where the network is sure of anything, by columns sqrt(r_c) (e_c - r) with r = p(class | one of the others).
    On a trained network with 100 classes this has 1.003 times the noise.
    """
    n_likely = min(LIKELY, logits.shape[1])
    ranked, order = logits.double().sort(1, descending=True)
    p, others_than = probabilities(ranked)
    r = ranked[:, n_likely:].softmax(1)[:, None]
    rest = p[:, n_likely:].sum(1, keepdim=True)
    coarse = torch.cat([p[:, :n_likely], rest], 1)
    without = torch.cat([others_than[:, :n_likely], p[:, :n_likely].sum(1, keepdim=True)], 1)
    pairs = -coarse[:, :, None] * coarse[:, None]
    values, vectors = torch.linalg.eigh(pairs.diagonal_scatter(coarse * without, dim1=1, dim2=2))
    vectors = vectors * torch.where(vectors[:, :1] < 0, -1.0, 1.0)  # else rounding decides on their signs, and so on the draw
    e = e.to(p)
    z = (e[:, :, : n_likely + 1] * values.clamp(min=0).sqrt()[:, None]) @ vectors.transpose(1, 2)
    spread = r.sqrt() * e[:, :, n_likely + 1 :]
    others = r * z[:, :, -1:] + rest.sqrt()[:, None] * (spread - r * spread.sum(2, keepdim=True))
    z = torch.cat([z[:, :, :-1], others], 2)
    return torch.empty_like(z).scatter_(2, order[:, None].expand_as(z), z).transpose(0, 1)


def every_label(logits: Tensor) -> Tensor:
    """(C, n, C) columns sqrt(p_c) (e_c - p), whose squares sum to the expectation over labels."""
    every = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return logits.double().softmax(1).t().sqrt()[..., None] * residuals(logits, every)


def sampled_labels(logits: Tensor, uniform: Tensor) -> Tensor:
    """(n, k) labels with the network's probabilities, from (n, k) uniform numbers."""
    ranked, order = logits.double().sort(1)  # unlikely ones first: after the likely ones rounding would swallow them
    cumulative = ranked.softmax(1).cumsum(1)
    places = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, places)


# ------------------------------------------------------------------------------------------------- the estimators


def draw_squares(subject: Subject, engine: Engine, size: int, what: str, cotangents: Callable[..., Tensor]) -> Draw:
    """Draws of an engine: `cotangents(logits, positions among the rows)` gives those of each chunk, in float64."""

    def draw(rows: Tensor, k: int) -> Tensor:
        pieces = []
        for part, inputs in subject.chunks(rows, size, k, what):
            pieces.append(scaled_squares(engine, inputs, partial(cotangents, positions=part)).transpose(0, 1).cpu())
        return gather_from_processes(pieces)

    return draw


def scaled_squares(engine: Engine, inputs: Tensor, cotangents: Callable[[Tensor], Tensor]) -> Tensor:
    """(k, N, layers) squared gradient norms in float64; the network sees cotangents of length 1.

    The squares of a confident prediction's own, such as e^-100, are below what float32 holds.
    """
    lengths = []

    def unit(logits: Tensor) -> Tensor:
        z = cotangents(finite(logits))
        length = z.abs().amax(2, keepdim=True)
        lengths.append(length)
        return (z / length.where(length > 0, 1)).to(logits.dtype)

    return engine.squares(inputs, unit).double() * lengths[0].square()


def spectral_mean(subject: Subject, budget: Budget, generator: torch.Generator) -> Sampled:
    engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses)
    size = subject.chunk_size(*engine.copies)

    def draw(rows: Tensor, k: int) -> Tensor:
        return torch.cat([draw_some(some, k) for some in rows.split(AT_ONCE)])

    def draw_some(rows: Tensor, k: int) -> Tensor:
        e = signs((len(rows), k, subject.n_classes + 1), generator)

        def cotangents(logits: Tensor, positions: slice) -> Tensor:
            return spectral_cotangents(logits, e[positions].to(logits.device))

        return draw_squares(subject, engine, size, "Fisher", cotangents)(rows, k)

    def score(rows: Tensor) -> Tensor:
        with LayerInputs(subject) as inputs:
            return subject.map_logits(rows, lambda logits: inputs.scores(total_variance(logits)), size)

    return importance_mean(draw, score, len(subject.inputs), budget, generator, partial(outlying, subject))


def label_mean(
    subject: Subject, method: str, metric: str, labels: Tensor | None, budget: Budget, generator: torch.Generator
) -> Sampled:
    """Labels one way or another: all of them, the data's, or sampled ones."""
    parts = (subject.network, subject.layers, subject.mask)
    if method == "ours":
        engine: Engine = LoopNorms(*parts)
        engine.reference(subject.example)  # refuses a network without a backward pass
    elif method == "vmap":
        engine = vmap_engine(*parts, subject.example)
    else:
        engine = choose_engine(*parts, subject.example, subject.seen.uses)
    each = 5 * 8 * subject.n_classes**2 if metric == "fim" else 0  # the columns of every label, in float64 on the way
    size = subject.chunk_size(*engine.copies, other=each)

    def draw(rows: Tensor, k: int) -> Tensor:
        uniform = torch.rand(len(rows), k, generator=generator, dtype=torch.float64)

        def cotangents(logits: Tensor, positions: slice) -> Tensor:
            if metric == "fim":
                return every_label(logits)
            if metric == "empirical":
                given = subject.labels_of(labels, rows[positions])[:, None]
            else:
                given = sampled_labels(logits, uniform[positions].to(logits.device))
            return residuals(logits, given)

        values = draw_squares(subject, engine, size, "Fisher", cotangents)(rows, k)
        return values.sum(1, keepdim=True) if metric == "fim" else values

    population, sampling = len(subject.inputs), metric == "fim_monte_carlo"
    n_probes = label_draws(budget, population) if sampling else None
    return sample_mean(draw, population, Budget(0, budget.max_samples, n_probes), generator, exact=not sampling)


def label_draws(budget: Budget, population: int) -> int:
    """Labels sampled for each example: as asked for, else five, or without any budget so many that there are a thousand."""
    least = 0 if budget.max_samples else math.ceil(LEAST_DRAWS / population)
    return budget.n_probes or max(LABEL_DRAWS, least)


def nngeometry_mean(
    subject: Subject, metric: str, labels: Tensor | None, budget: Budget, generator: torch.Generator
) -> Sampled:
    """By nngeometry's diagonal of batches; two-stage errors over batches."""
    refuse_for_nngeometry(subject)
    population = len(subject.inputs)
    draws = label_draws(budget, population) if metric == "fim_monte_carlo" else 1
    limit = budget.limit(population)
    groups = sample_groups(population, limit, subject.library_batch(limit), generator)
    rows = []
    for group in tracked(groups, "Fisher", "batches", shown=subject.progress):
        inputs = subject.rows(group)
        given = subject.labels_of(labels, group) if metric == "empirical" else None
        values = [
            nngeometry_diagonal(subject, inputs, label_values(metric, given, generator)) for _ in checking_signals(range(draws))
        ]
        rows.append(torch.stack(values).detach().double().cpu())
    values = with_total(finite(torch.stack(rows)))
    exact = metric != "fim_monte_carlo"
    sizes = torch.tensor([len(group) for group in groups])
    mean = two_stage_mean(values.expand(-1, 2, -1) if exact else values, sizes, population)
    scheme = "every example" if sizes.sum() == population else "random batches"
    return Sampled(mean, int(sizes.sum()), scheme if exact else f"{scheme}, {draws} probes")


def refuse_for_nngeometry(subject: Subject) -> None:
    """Raise ValueError for a layer of which nngeometry 0.4 gives no or a wrong diagonal."""

    def refuse(layer: str, why: str) -> None:
        raise ValueError(f"nngeometry cannot treat {layer} ({why}); use fisher_method spectral")

    vectors: dict[str, bool] = {}
    handles = []
    for layer, parameters in subject.layers.items():
        module = module_of(subject.network, layer)
        if not supported(module):
            refuse(layer, f"{type(module).__name__}{' with groups' if type(module) in RULES else ''}")
        if any(subject.seen.uses.get(name) != 1 for name in parameters):
            refuse(layer, "its parameters are not used exactly once")
        if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
            refuse(layer, f"padding {module.padding}, {module.padding_mode}")
        if isinstance(module, nn.Linear):
            watch = partial(lambda layer, module, args, output: vectors.update({layer: output.ndim == 2}), layer)
            handles.append(module.register_forward_hook(watch))
    with torch.no_grad():
        subject.network(subject.example)
    for handle in handles:
        handle.remove()
    for layer, is_vector in vectors.items():
        if not is_vector:
            refuse(layer, "Linear at several positions")


def label_values(metric: str, labels: Tensor | None, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Rule logits (N, C) -> (N, K) values whose squared gradients, summed over K, have the Fisher trace as their mean.

    nngeometry's own closed form over all labels takes roots of differences that rounding makes negative on confident
    networks; sqrt(p_c) log p_c with p fixed does not.
    """

    def values(logits: Tensor) -> Tensor:
        log_p = log_probabilities(finite(logits))
        if metric == "fim":
            return (log_p.detach() / 2).exp() * log_p
        if labels is not None:
            return log_p.gather(1, labels[:, None])
        uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
        return log_p.gather(1, sampled_labels(logits.detach(), uniform))

    return values


def nngeometry_diagonal(subject: Subject, inputs: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """(layers,) traces over the active parameters of each layer, from nngeometry's diagonal of one batch.

    nngeometry knows nothing of masks and always takes a layer with its bias, so the diagonal is cut to what counts here.
    """
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatDiag

    collection = LayerCollection()
    modules = dict(subject.network.named_modules())
    for layer in subject.layers:
        collection.add_layer_from_model(subject.network, modules[layer])
    loader = DataLoader(TensorDataset(inputs), batch_size=len(inputs))
    backend = TorchHooksJacobianBackend(
        model=subject.network, function=lambda batch: rule(subject.network(batch)), layer_collection=collection
    )
    with default_dtype(subject.dtype):
        diagonal = PMatDiag(generator=backend, examples=loader).get_diag()
    traces = []
    for layer, parameters in subject.layers.items():
        piece = diagonal[collection.p_pos[layer] :]  # weight, then bias
        trace = diagonal.new_zeros(())
        for name, parameter in parameters.items():
            part, piece = piece[: parameter.numel()], piece[parameter.numel() :]
            trace = trace + part[active(parameter, name, subject.mask).flatten()].sum()
        traces.append(trace)
    return torch.stack(traces)

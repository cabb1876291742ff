"""The Fisher trace by nngeometry's diagonal of batches."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helper.metrics.cotangents import label_draws, label_moments, label_skewness, sampled_labels
from helper.metrics.estimate import Sampled, two_stage_mean, with_total
from helper.metrics.layer_sums import RULES, supported
from helper.metrics.parameters import active, default_dtype, module_of
from helper.metrics.sampling import Budget, finite, sample_groups
from helper.metrics.softmax import log_probabilities
from helper.metrics.subject import Subject
from helper.processes.interruption import checking_signals
from helper.progress import tracked


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
    if exact:
        return Sampled(mean, int(sizes.sum()), scheme)
    moments = subject.map_logits(torch.cat(groups), label_moments, len(groups[0]))
    skewness = label_skewness(moments, draws, population)
    return Sampled(mean, int(sizes.sum()), f"{scheme}, {draws} probes").at_least_as_skewed(skewness)


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

"""How the descent direction of every single example lies to a fixed direction of weight space, and of which classes."""

from collections.abc import Mapping

import numpy
import pandas
import torch
import torch.nn.functional as F
from scipy.stats import false_discovery_control, fisher_exact
from torch import Tensor, nn

from helper.metrics.parameters import active
from helper.metrics.per_example import choose_engine
from helper.metrics.sampling import finite
from helper.metrics.subject import Examples, Subject
from helper.processes.sharing import gather_from_processes


def descent_cosines(
    network: nn.Module,
    inputs: Examples,
    labels: Tensor,
    direction: Mapping[str, Tensor],
    mask=None,
    *,
    params: str = "layers",
    batch_size: int | None = None,
    memory_mb: float = 1000,
    progress: bool = False,
) -> Tensor:
    """Cosine between the negative gradient of each example's loss and a direction d, over the active parameters.

    cos_i = -<g_i, d> / (||g_i|| ||d||) with g_i the gradient of the cross-entropy of (x_i, y_i). Both sums over g_i come
    from one backward pass of a batch, in which no g_i outlives its layer.

    Args:
        network: maps (N, ...) inputs to (N, C) logits; measured in eval mode, in float32 or float64, left as it was.
        inputs, labels: (N, ...) examples and their (N,) classes.
        direction: parameter name -> tensor of the parameter's shape; others than the counted parameters are ignored.
        mask: parameter name -> bool tensor of the parameter's shape; pruned coordinates do not count.
        params: `layers` (every weight and bias but those of normalisations), `weights` (without biases) or `all`.
        batch_size, memory_mb: bounds on what is computed at once.
        progress: show how far it is: a bar on a terminal, else a log line every half a minute.
    Returns:
        (N,) float64 on the CPU; nan where an example's gradient is exactly zero.
    Raises:
        ValueError: fewer than 2 examples, logits that are not finite, a direction that lacks a counted parameter, has it in
            another shape, is not finite or is zero over the active parameters.
    Source: Ye et al. 2022, figure 6 (b, c).
    """
    subject = Subject(network, inputs, mask, params=params, batch_size=batch_size, memory_mb=memory_mb, progress=progress)
    labels = subject.checked_labels(labels)
    with subject.measuring():
        d = active_direction(subject, direction)
        length = sum(part.double().square().sum() for part in d.values()).sqrt().item()
        if not 0 < length < float("inf"):
            raise ValueError(f"the direction has length {length:g} over the active parameters: cosines with it are undefined")
        engine = choose_engine(subject.network, subject.layers, subject.mask, subject.example, subject.seen.uses, d)
        sums, rows = [], torch.arange(len(inputs))
        for part, chunk in subject.chunks(rows, subject.chunk_size(*engine.copies), 1, "cosines"):
            given = subject.labels_of(labels, rows[part])
            found = engine.sums(chunk, lambda logits, given=given: scaled_residuals(finite(logits), given))
            sums.append(found[0].double().sum(1).cpu())
    squares, products = gather_from_processes(sums).unbind(1)
    cosines = (-products / (squares.sqrt() * length)).clamp(-1, 1)
    return cosines.masked_fill(squares == 0, torch.nan)


def scaled_residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """(1, n, C) (p - e_y) / (1 - p_y), a positive multiple of the gradient of each cross-entropy by its (n, C) logits.

    A cosine does not depend on the gradient's length, and this multiple has one where p_y rounds to 1.
    """
    label = labels[:, None]
    others = logits.double().scatter(1, label, -torch.inf).softmax(1)
    return (others - F.one_hot(labels, logits.shape[1])).to(logits.dtype)[None]


def active_direction(subject: Subject, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction's parts for the counted parameters, zero where they are pruned, in the network's type and device.

    Raises:
        ValueError: a part is missing or has another shape.
    """
    parts = {}
    for name, parameter in ((name, p) for parameters in subject.layers.values() for name, p in parameters.items()):
        shape = tuple(direction[name].shape) if name in direction else "no part"
        if shape != tuple(parameter.shape):
            raise ValueError(f"the direction has {shape} for {name!r}, whose shape is {tuple(parameter.shape)}")
        keep = active(parameter, name, subject.mask)
        parts[name] = torch.where(keep, direction[name].detach().to(parameter), 0)
    return parts


def upper_classes(cosines: numpy.ndarray, labels: numpy.ndarray, n_classes: int, share: float) -> pandas.DataFrame:
    """Classes of the examples with the largest cosines, each tested against a draw by chance.

    By chance the k examples are drawn without replacement from all n whose cosine is defined, so that the count of a class is
    hypergeometric: Fisher's exact test, two-sided, with Benjamini and Hochberg's correction over the classes.

    Args:
        cosines: (N,), nan where undefined; labels: (N,) classes; share: of the examples that are the upper ones.
    Returns:
        A row a class: class, count, size (examples with a cosine), expected, p_value, q_value; nan without examples.
    Source: Ye et al. 2022, figures 7 and 8, which show the counts.
    """
    defined = numpy.flatnonzero(~numpy.isnan(cosines))
    n = len(defined)
    k = min(n, max(1, round(share * n)))
    upper = defined[numpy.argsort(-cosines[defined], kind="stable")[:k]]
    counts, sizes = (numpy.bincount(labels[rows], minlength=n_classes) for rows in (upper, defined))
    p_values = numpy.full(n_classes, numpy.nan)
    for c in numpy.flatnonzero(sizes):
        p_values[c] = fisher_exact([[counts[c], k - counts[c]], [sizes[c] - counts[c], n - sizes[c] - k + counts[c]]]).pvalue
    q_values = p_values.copy()
    q_values[sizes > 0] = false_discovery_control(p_values[sizes > 0])
    columns = {"count": counts, "size": sizes, "expected": k * sizes / max(n, 1), "p_value": p_values, "q_value": q_values}
    return pandas.DataFrame({"class": numpy.arange(n_classes), **columns})

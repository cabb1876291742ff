"""Which examples are worth a draw: guesses of squared gradient norms from a forward pass, and from the inputs alone."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from helper.metrics.parameters import active
from helper.metrics.softmax import total_variance
from helper.metrics.subject import AT_ONCE, Subject

LARGEST_SCAN = 1 << 32  # bytes of inputs that are looked through for outlying ones
OUTLYING = 10  # squared norms of an input, in medians, from which an example is scored for sure
RAREST = 50  # outlying examples are at most one in so many


class LayerInputs:
    """Context in which passes without gradients leave the squared norms of what the counted layers take in.

    The squared gradient norm of a layer's weight is that of its input times that of its output's gradient, for a
    convolution and for several positions about their sums. Inputs that meet pruned weights only do not count. A layer
    whose inputs are not seen, or not one row an example, has the guess of its output's gradient alone.

    Args:
        dtype: squares are summed in, at least; of inputs beyond 1e19 float32 holds none.
    """

    def __init__(self, subject: Subject, dtype: torch.dtype = torch.float64) -> None:
        self.subject, self.dtype = subject, dtype
        self.found: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> "LayerInputs":
        alone = dict(self.subject.network.named_parameters(recurse=False))  # parameters that no layer takes inputs for
        for layer, parameters in self.subject.layers.items():
            if layer in alone:
                continue
            module = self.subject.network.get_submodule(layer)
            name = next((name for name, p in parameters.items() if p is getattr(module, "weight", None)), None)
            of_channels = None
            if name and isinstance(module, (nn.Linear, nn.Conv2d)) and getattr(module, "groups", 1) == 1:
                kept = active(parameters[name], name, self.subject.mask).transpose(0, 1).flatten(1).sum(1).double()
                uniform = (kept == kept[0]).all() and kept[0] > 0  # a factor of all guesses is none
                of_channels = None if uniform else kept.sqrt()
            record = partial(self.record, layer, of_channels, -1 if isinstance(module, nn.Linear) else 1)
            self.handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def record(
        self, layer: str, of_channels: Tensor | None, channels: int, module: nn.Module, args: tuple, named: dict
    ) -> None:
        inputs = next((a for a in (*args, *named.values()) if isinstance(a, Tensor) and a.is_floating_point()), None)
        if inputs is None or inputs.ndim < 2:
            return
        inputs = inputs.to(torch.promote_types(inputs.dtype, self.dtype))
        if of_channels is not None:
            shape = [-1 if d == channels % inputs.ndim else 1 for d in range(inputs.ndim)]
            inputs = inputs * of_channels.to(inputs.dtype).view(shape)
        squares = torch.linalg.vector_norm(inputs, dim=tuple(range(1, inputs.ndim))).double().square()
        former = self.found.get(layer)
        self.found[layer] = squares if former is None or len(former) != len(squares) else former + squares

    def scores(self, variance: Tensor) -> Tensor:
        """(n, 1 + layers): the (n,) variance of the label, and that times the squared norm of each layer's input."""
        found, self.found = self.found, {}
        one = torch.ones_like(variance)
        norms = [found.get(layer, one) for layer in self.subject.layers]
        return torch.stack([variance, *(variance * (n if len(n) == len(one) else one) for n in norms)], 1)


def gradient_guesses(subject: Subject, size: int, rows: Tensor) -> Tensor:
    """(n, 1 + layers) scores of the examples `rows`, about `size` of them at once.

    Sums in float32, which take a fifth of the time of those in float64, do for guesses, but for those it cannot hold.
    """
    for dtype in (torch.float32, torch.float64):
        with LayerInputs(subject, dtype) as inputs:
            found = subject.map_logits(rows, lambda logits, of=inputs: of.scores(total_variance(logits)), size)
        if torch.isfinite(found).all():
            break
    return found


def outlying(subject: Subject) -> Tensor:
    """Rows of the examples whose inputs are unlike the others', by their norms: at most one in `RAREST`.

    None where the inputs are no floating-point numbers, or too many to look at.
    """
    n, none = len(subject.inputs), torch.empty(0, dtype=torch.long)
    if not subject.example.is_floating_point() or n * subject.example[0].nbytes > LARGEST_SCAN:
        return none
    rows = torch.arange(n).split(AT_ONCE)
    norms = [torch.linalg.vector_norm(subject.rows(part).flatten(1), dim=1, dtype=torch.float64).cpu() for part in rows]
    squares = torch.cat(norms).square()
    largest = squares.topk(n // RAREST)
    return largest.indices[largest.values > OUTLYING * squares.median()].sort().values

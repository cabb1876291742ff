"""Signal-to-noise ratio of mini-batch gradients at fixed weights (Saxe et al. 2018, eq. 26-27)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helper.metrics.jackknife import BatchGroups
from helper.metrics.parameters import active, counted_parameters
from helper.processes.group import world_size
from helper.processes.sharing import sum_over_processes


class GradientMoments:
    """Running mean and variance of every weight's gradient over mini-batches (Welford 1962), layer by layer.

    Args:
        network: its weights are followed, as `counted_parameters(network, "weights")` gives them.
        mask: weight name -> bool tensor; pruned coordinates do not count.
        with_errors: whether the ratios get standard errors, for which batches have to be independent: not where weights move.
    """

    def __init__(self, network: nn.Module, mask=None, *, with_errors: bool = False) -> None:
        weights = {name: p for parameters in counted_parameters(network, "weights").values() for name, p in parameters.items()}
        self.names, self.weights = list(weights), list(weights.values())
        self.active = [active(weight, name, mask) for name, weight in zip(self.names, self.weights, strict=True)]
        self.mean = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]  # sums of squared deviations from the mean
        self.n_batches = 0
        self.groups = BatchGroups(self.weights, self.active) if with_errors else None

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in the gradients of one more batch, in the order of `weights`; None of a weight that is not used is zero."""
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, gradients, strict=True)]
        self.n_batches += 1
        if self.groups is not None:
            self.groups.update(gradients)
        before = torch._foreach_sub(gradients, self.mean)
        torch._foreach_add_(self.mean, before, alpha=1 / self.n_batches)
        after = torch._foreach_sub(gradients, self.mean)
        torch._foreach_addcmul_(self.squares, before, after)

    @torch.no_grad()
    def merge(self) -> None:
        """Put together what several processes have taken in (Chan et al. 1979)."""
        if world_size() == 1:
            return
        n = max(1, int(sum_over_processes(torch.tensor(self.n_batches))))
        for mean, squares in zip(self.mean, self.squares, strict=True):
            together = sum_over_processes(mean * self.n_batches) / n
            squares += self.n_batches * (mean - together).square()
            squares.copy_(sum_over_processes(squares))
            mean.copy_(together)
        self.n_batches = n

    def state(self) -> dict[str, int | list[Tensor]]:
        """What `load_state` goes on from."""
        return {"n_batches": self.n_batches, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: dict[str, int | list[Tensor]]) -> None:
        self.n_batches = state["n_batches"]
        self.mean = [t.to(w) for t, w in zip(state["mean"], self.weights, strict=True)]
        self.squares = [t.to(w) for t, w in zip(state["squares"], self.weights, strict=True)]

    @torch.no_grad()
    def table(self) -> list[dict[str, str | float | int | None]]:
        """A row for each layer: ||W||, ||mean gradient||, ||std of the gradient|| (ddof 1), their ratio with its standard
        error, batches, and the ratio that independent gradients of mean zero would show. All processes call it.

        No rows with fewer than two batches; the ratio of a layer without active weights, or without noise, is nan.
        """
        if self.n_batches < 2:
            return []
        rows, squares = [], []
        tensors = zip(self.weights, self.active, self.mean, self.squares, strict=True)
        for name, tensors_of_layer in zip(self.names, tensors, strict=True):
            weight, keep, mean, deviations = (tensor.cpu() for tensor in tensors_of_layer)  # their number depends on the mask
            variance = deviations[keep].double() / (self.n_batches - 1)
            signal, noise = mean[keep].double().norm(), variance.sum().sqrt()
            squares.append(noise.square() * (self.n_batches - 1))
            rows.append(
                {
                    "layer": name.removesuffix(".weight"),
                    "weight_norm": weight[keep].double().norm().item(),
                    "grad_mean_norm": signal.item(),
                    "grad_std_norm": noise.item(),
                    "snr": (signal / noise).item() if noise > 0 else float("nan"),
                    "n_batches": self.n_batches,
                    "noise_floor": self.n_batches**-0.5,
                }
            )
        if self.groups is not None:
            means = [mean * keep for mean, keep in zip(self.mean, self.active, strict=True)]
            errors = self.groups.standard_errors(means, torch.stack(squares), self.n_batches)
            rows = [row | {"standard_error": error} for row, error in zip(rows, errors, strict=True)]
        return rows

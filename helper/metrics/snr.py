"""Signal-to-noise ratio of mini-batch gradients at fixed weights (Saxe et al. 2018, eq. 26-27)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from helper.metrics.parameters import active, counted_parameters
from helper.processes.group import world_size
from helper.processes.sharing import sum_over_processes


class GradientMoments:
    """Running mean and variance of every weight's gradient over mini-batches (Welford 1962), layer by layer.

    Args:
        network: its weights are followed, as `counted_parameters(network, "weights")` gives them.
        mask: weight name -> bool tensor; pruned coordinates do not count.
    """

    def __init__(self, network: nn.Module, mask=None) -> None:
        weights = {name: p for parameters in counted_parameters(network, "weights").values() for name, p in parameters.items()}
        self.names, self.weights = list(weights), list(weights.values())
        self.active = [active(weight, name, mask) for name, weight in zip(self.names, self.weights, strict=True)]
        self.mean = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]  # sums of squared deviations from the mean
        self.n_batches = 0

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """Take in the gradients of one more batch, in the order of `weights`; None of a weight that is not used is zero."""
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, gradients, strict=True)]
        self.n_batches += 1
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
    def table(self) -> list[dict[str, str | float | int]]:
        """A row for each layer: ||W||, ||mean gradient||, ||std of the gradient|| (ddof 1), their ratio, batches.

        For pure noise the ratio is about 1/sqrt(n_batches), not 0. No rows with fewer than two batches; the ratio of a
        layer without active weights, or without noise, is nan.
        """
        if self.n_batches < 2:
            return []
        rows = []
        tensors = zip(self.weights, self.active, self.mean, self.squares, strict=True)
        for name, tensors_of_layer in zip(self.names, tensors, strict=True):
            weight, keep, mean, squares = (tensor.cpu() for tensor in tensors_of_layer)  # their number depends on the mask
            variance = squares[keep].double() / (self.n_batches - 1)
            signal, noise = mean[keep].double().norm(), variance.sum().sqrt()
            rows.append(
                {
                    "layer": name.removesuffix(".weight"),
                    "weight_norm": weight[keep].double().norm().item(),
                    "grad_mean_norm": signal.item(),
                    "grad_std_norm": noise.item(),
                    "snr": (signal / noise).item() if noise > 0 else float("nan"),
                    "n_batches": self.n_batches,
                }
            )
        return rows

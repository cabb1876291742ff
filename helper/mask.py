"""Which weights of a network are active."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Mask(Mapping[str, Tensor]):
    """Weight name -> bool tensor of the weight's shape, True where the weight is active. Weights stay ordinary parameters.

    A pruned weight stays exactly zero as long as its gradient is zeroed before every optimiser step: with weight, gradient
    and optimiser state all zero, neither momentum, weight decay nor Adam moves it.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._masks = {name: mask.detach().bool() for name, mask in (masks or {}).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def to(self, device: torch.device | str) -> "Mask":
        return Mask({name: mask.to(device) for name, mask in self.items()})

    def parameters_of(self, network: nn.Module) -> list[nn.Parameter]:
        """The masked parameters of a network, in the order of the mask.

        Raises:
            ValueError: the network lacks one or has it in another shape.
        """
        parameters = dict(network.named_parameters())
        for name, mask in self.items():
            if name not in parameters:
                raise ValueError(f"mask {name!r} has no such weight in the network; was it saved from another --net_name?")
            if parameters[name].shape != mask.shape:
                raise ValueError(
                    f"mask {name!r} has shape {tuple(mask.shape)} but the weight has {tuple(parameters[name].shape)}; "
                    "was it saved with another --depth, --widen_factor or --hidden_dims?"
                )
        return [parameters[name] for name in self]

    @torch.no_grad()
    def apply_(self, network: nn.Module) -> None:
        """Set the pruned weights of a network to zero."""
        for weight, mask in zip(self.parameters_of(network), self.values(), strict=True):
            weight.masked_fill_(~mask.to(weight.device), 0.0)

    @property
    def n_weights(self) -> int:
        return sum(mask.numel() for mask in self.values())

    @property
    def n_active(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """How many weights of each layer are active."""
        return {name: count(mask) for name, mask in self.items()}

    @property
    def sparsity(self) -> float:
        """Share of the masked layers' weights that is pruned; 0 for an empty mask."""
        return 1 - self.n_active / self.n_weights if self.n_weights else 0.0

    def sparsity_by_layer(self) -> dict[str, float]:
        return {name: 1 - n / self[name].numel() for name, n in self.counts().items()}

    def empty_layers(self) -> list[str]:
        """Names of the weights of which nothing is left."""
        return [name for name, n in self.counts().items() if n == 0]


def count(active: Tensor) -> int:
    """How many elements of a bool tensor are True."""
    if active.device.type == "xla":  # where count_nonzero of a bool tensor is a bool: 1 for any number
        return int(active.sum())
    return int(active.count_nonzero())  # a sum makes 64-bit integers of all of them first

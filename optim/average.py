"""--ema: the network that is evaluated, measured and kept is an average over the steps of the one that is trained."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from helper.processes.first import copy_from_first

AVERAGE = "average"  # its name in the optimiser's state of a weight


class WeightAverage:
    """Exponential moving average of a network's weights and of its BatchNorm statistics.

    average <- decay · average + (1 - decay) · weights after every step of the optimiser; it begins with what the first step
    has left. That of a weight is in the optimiser's state of it: so it is in checkpoints, is held for active weights alone
    where these are, and starts at zero with a weight that comes back.

    Args:
        optimizer: of all of the network's parameters.
        decay: in (0, 1).
    Attributes:
        buffers: {name: average} of the network's floating-point buffers; empty before the first step.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self.network, self.optimizer, self.decay = network, optimizer, decay
        self.buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self) -> None:
        """To be called after each of the optimiser's steps."""
        averages, values = [], []
        for weight, state in self.states():
            if AVERAGE in state:
                averages.append(state[AVERAGE])
                values.append(weight)
            elif weight.grad is not None:  # otherwise it has not moved, and the optimiser has yet to make its own state
                self.optimizer.state[weight][AVERAGE] = weight.detach().clone()
        for name, buffer in self.live_buffers():
            if name in self.buffers:
                averages.append(self.buffers[name])
                values.append(buffer)
            else:
                self.buffers[name] = buffer.clone()
        if averages:
            torch._foreach_lerp_(averages, values, 1 - self.decay)

    def states(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """(what the optimiser moves, its state of it)."""
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                yield weight, self.optimizer.state.get(weight, {})

    def live_buffers(self) -> list[tuple[str, Tensor]]:
        return [(name, buffer) for name, buffer in self.network.named_buffers() if buffer.is_floating_point()]

    def copy_from_first(self) -> None:
        """BatchNorm statistics need not be the same in all processes. All of them have to call this."""
        copy_from_first(self.buffers.values())

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the network has the average in place of its weights and statistics, which are as before afterwards.

        The optimiser must not hold active weights apart, see `optim.mask_owner.MaskOwner.hold`.
        """
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        pairs = [(weight, state[AVERAGE]) for weight, state in self.states() if AVERAGE in state]
        pairs += [(buffer, self.buffers[name]) for name, buffer in self.live_buffers() if name in self.buffers]
        for one, other in pairs:
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    # --------------------------------------------------------------------------------------------- in a checkpoint

    def state(self) -> dict[str, Tensor]:
        """What is not in the optimiser's."""
        return dict(self.buffers)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError where a buffer is not the network's."""
        shapes = {name: buffer.shape for name, buffer in self.live_buffers()}
        if state and {name: value.shape for name, value in state.items()} != shapes:
            raise ValueError("the averaged statistics are not of this network")
        device = next(self.network.parameters()).device
        self.buffers = {name: value.to(device) for name, value in state.items()}

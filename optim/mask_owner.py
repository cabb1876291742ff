"""The one object that holds the mask of a network in training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helper.mask import Mask, count
from helper.metrics.macs import sizes_of_weights, uses_of_weights
from helper.processes.first import copy_from_first
from helper.processes.group import world_size
from helper.sparse.layers import LanesLayer
from optim.active_weights import ActiveWeights
from optim.checkpoint import content_hash
from optim.meter import Meter


class MaskOwner:
    """Keeps pruned weights at zero, changes the mask between two steps, and tells everyone else what it is.

    It owns the mask and its copies on the device, the optimiser's state of pruned weights, what the mask's steps have cost,
    and what a checkpoint holds of all that. Every other part of training asks it, each time anew.

    Args:
        network: on its device; its pruned weights are set to zero.
        optimizer: of the network's parameters.
        mask: with which the run begins; empty: nothing is pruned, and nothing can be.
        input_shape: of one example.

    Attributes:
        mask: the present one, on the network's device. A change puts another object in its place.
        version: how often it has changed. Who keeps something that depends on the mask compares it.
        began_with: content hash of the mask with which the run began.
        meter: what training has cost so far.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, mask: Mask, input_shape: tuple[int, ...]) -> None:
        self.network, self.optimizer = network, optimizer
        self.began_with, self.version = content_hash(mask), 0
        self.weights = mask.parameters_of(network)
        self.mask = mask.to(next(network.parameters()).device)
        self.factors: dict[str, Tensor] = {}  # see `factor`
        for name in self.mask if next(network.parameters()).device.type == "xla" else ():
            self.factor(name)  # before the first step, whose graph is then that of all
        self.active = ActiveWeights(optimizer)
        self.mask.apply_(network)
        self.meter = Meter(uses_of_weights(network, input_shape), sizes_of_weights(network))
        self.meter.follow(mask)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Called between backward pass and optimiser step: weights of which gradient and state are zero stay at zero."""
        gradients = {name: gradient for name, gradient in self.gradients().items() if gradient is not None}
        if gradients:
            torch._foreach_mul_(list(gradients.values()), [self.factor(name) for name in gradients])

    @torch.no_grad()
    def leave_out(self, weights: Mask) -> None:
        """Give some of the masked weights no gradient in the step under way."""
        for name, gradient in self.gradients().items():
            if gradient is not None:
                gradient.masked_fill_(weights[name].to(gradient.device), 0.0)

    def factor(self, name: str) -> Tensor:
        """The mask in dtype and memory layout of the gradients, so that one fused product does; changed in place."""
        if name not in self.factors:
            weight = dict(zip(self.mask, self.weights, strict=True))[name]
            self.factors[name] = torch.empty_like(weight).copy_(self.mask[name])
        return self.factors[name]

    # ------------------------------------------------------------------------------------- active weights held apart

    def hold(self, layers: Mapping[str, LanesLayer]) -> None:
        """From now on keep weights, gradients and the optimiser's state of just these layers of a view of the active ones
        alone; of all others, and of all before a change of the mask, they are dense tensors. See `ActiveWeights`.
        """
        self.active.hold(layers)
        self.fill_states()

    def updated(self) -> None:
        """To be called after each of the optimiser's steps."""
        self.active.updated()

    def write_back(self) -> None:
        """Bring the network's weights up to date, before anyone reads them or writes them."""
        self.active.write_back()

    @torch.no_grad()
    def fill_states(self) -> None:
        """Make vectors of active weights in the optimiser's state, as checkpoints have them, dense where they are not held."""
        for mask, weight in zip(self.mask.values(), self.weights, strict=True):
            state = self.optimizer.state.get(weight, {})
            for key, value in vectors(state, weight).items():
                state[key] = torch.zeros_like(weight).masked_scatter_(mask, value)

    @torch.no_grad()
    def change(self, mask: Mask, anew: Mask | None = None) -> None:
        """Go on with another mask of the same weights. All processes have to call this, and the first one's mask counts.

        What is dropped is set to zero, and what comes back starts at zero, each with its part of every tensor in the
        optimiser's state that has the weight's shape: momentum, and Adam's moments. Adam's count of steps, which is one for
        the whole tensor, goes on.

        Args:
            anew: weights that start at zero although they are active before and after; default: none.
        Raises:
            ValueError: a weight is missing, is none of the former mask's, or has another shape.
        """
        if mask.keys() != self.mask.keys():
            raise ValueError(f"a mask of {', '.join(mask) or 'nothing'} cannot take the place of one of {', '.join(self.mask)}")
        mask.parameters_of(self.network)
        self.hold({})
        stays = mask if anew is None else Mask({name: mask[name] & ~anew[name] for name in mask})
        mask, stays = as_first_has(mask), as_first_has(stays)
        before, device = self.mask, self.weights[0].device
        after, stays = mask.to(device), stays.to(device)
        self.meter.add_replaced(sum(count(after[name] & ~before[name]) for name in before))
        for name, weight in zip(self.mask, self.weights, strict=True):
            gone = ~(before[name] & stays[name])
            for value in (weight, *self.states_of(weight)):
                value.masked_fill_(gone, 0.0)
        self.put(after, mask)
        self.version += 1

    def gradients(self) -> dict[str, Tensor]:
        """{name: gradient} of the masked weights, pruned ones as well, between backward pass and `mask_gradients`."""
        return {name: weight.grad for name, weight in zip(self.mask, self.weights, strict=True)}

    # ------------------------------------------------------------------------------------ all that is moved, as one vector

    def moved(self) -> list[Tensor]:
        """What the optimiser moves: the trained parameters, or vectors of active weights in the place of some."""
        return [value for group in self.optimizer.param_groups for value in group["params"] if value.requires_grad]

    def gradients_moved(self) -> list[Tensor]:
        """The gradient of each of `moved`; zeros for one that has none."""
        return [torch.zeros_like(value) if value.grad is None else value.grad for value in self.moved()]

    @torch.no_grad()
    def masked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors, one for each of `moved`, with zeros for pruned weights."""
        names = {id(weight): name for name, weight in zip(self.mask, self.weights, strict=True)}
        return [
            tensor * self.factor(names[id(value)]) if id(value) in names else tensor
            for value, tensor in zip(self.moved(), tensors, strict=True)
        ]

    def norm(self, tensors: Sequence[Tensor], layers: Mapping[str, LanesLayer]) -> Tensor:
        """Of tensors, one for each of `moved` and zero for pruned weights, as one vector.

        Args:
            layers: linear ones of a view, of which the active weights alone are added up, so that the sum has the same order
                whether they are held apart or not.
        """
        places = {id(layer.layer.weight): layer.plan().active for layer in layers.values()}
        compact = [
            tensor.reshape(-1)[places[id(value)]] if id(value) in places else tensor
            for value, tensor in zip(self.moved(), tensors, strict=True)
        ]
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in compact]))

    @torch.no_grad()
    def clip_gradients(self, most: float, layers: Mapping[str, LanesLayer]) -> None:
        """Scale masked gradients so that together they are no longer than `most`, as torch.nn.utils.clip_grad_norm_ does.

        Args:
            layers: as `norm` takes them.
        """
        gradients = self.gradients_moved()
        torch._foreach_mul_(gradients, (most / (self.norm(gradients, layers) + 1e-6)).clamp(max=1.0))

    def states_of(self, weight: nn.Parameter) -> list[Tensor]:
        """The tensors in the optimiser's state that have an element for each of a weight's."""
        kept = self.optimizer.state.get(weight, {}).values()
        return [value for value in kept if isinstance(value, Tensor) and value.shape == weight.shape]

    def put(self, mask: Mask, on_cpu: Mask) -> None:
        """Make a mask on the device the present one, in the tensors that the training step's graph has."""
        for name, factor in self.factors.items():
            factor.copy_(mask[name])
        self.mask = mask
        self.meter.follow(on_cpu)

    # --------------------------------------------------------------------------------------------- in a checkpoint

    def state(self) -> dict[str, Any]:
        owner = {"began_with": self.began_with, "version": self.version, "meter": self.meter.state()}
        return {"mask": dict(self.mask), "mask_owner": owner}

    def began_like(self, state: dict[str, Any]) -> bool:
        """Whether a checkpoint is of a run that began with the mask of this one.

        The mask of a checkpoint from before masks could change is the one that its run began with.
        """
        present = content_hash(state["mask"])
        known = state.get("mask_owner", {"began_with": present, "version": 0})
        unchanged = known["version"] > 0 or present == known["began_with"]
        return unchanged and known["began_with"] == self.began_with

    def check_states(self, mask: Mask) -> None:
        """Raise ValueError where the optimiser's state holds a vector that is not of a mask's active weights."""
        for (name, active), weight in zip(mask.items(), self.weights, strict=True):
            for value in vectors(self.optimizer.state.get(weight, {}), weight).values():
                if len(value) != count(active):
                    raise ValueError(f"the optimiser's state has {len(value)} numbers for {count(active)} weights of {name}")

    @torch.no_grad()
    def load_state(self, state: dict[str, Any], *, steps: int, examples: int) -> None:
        """Go on from what `state` gave, after network and optimiser have their states.

        Args:
            steps: that the checkpoint's epoch under way has had.
            examples: of all steps of the run so far. Both count where a checkpoint from before masks could change has no
                meter: its mask has been the same in every step.
        """
        mask = Mask(state["mask"])
        mask.parameters_of(self.network)
        self.check_states(mask)
        self.put(mask.to(next(self.network.parameters()).device), mask)
        self.mask.apply_(self.network)
        if "mask_owner" in state:
            self.version = int(state["mask_owner"]["version"])
            self.meter.load_state(state["mask_owner"]["meter"])
        else:
            self.meter.add_steps(steps, examples)


def vectors(state: Mapping[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """Those in the optimiser's state of a weight that is none."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim() == 1 < weight.dim()}


def as_first_has(mask: Mask) -> Mask:
    """The first process's mask, in tensors of its own, in all of them."""
    if world_size() == 1:
        return Mask({name: active.bool().clone() for name, active in mask.items()})
    bits = {name: active.cpu().to(torch.uint8, copy=True).contiguous() for name, active in mask.items()}
    copy_from_first(bits.values())
    return Mask(bits)

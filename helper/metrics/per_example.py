"""Squared norms of per-example gradients over the active parameters of every layer, and their products with a direction.

An engine maps a batch and a rule that turns its logits into cotangents z, (k, N, C), to the (k, N, layers) values
||d(z . f(x)) / d theta_l||^2 and, with a direction d of parameter space, to <d(z . f(x)) / d theta_l, d_l>. `HookedNorms`
does it at little more than the cost of a plain backward pass, `VmapNorms` for whatever `torch.func` can differentiate,
`LoopNorms` with one plain backward pass for each example.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from helper.metrics.layer_sums import RULES, kept, sums_of, supported
from helper.metrics.parameters import UNFIT, Layers, explained, module_of, require_gradients
from helper.processes.interruption import checking_signals

Cotangents = Callable[[Tensor], Tensor]  # (N, C) logits -> (k, N, C)
Direction = Mapping[str, Tensor]  # parameter name -> tensor of its shape, zero where it is pruned


class Engine(Protocol):
    copies: tuple[float, float]  # of an example's activations and of all counted parameters that one example takes

    def sums(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        """(k, N, layers, 1) squared gradient norms, (k, N, layers, 2) with the products where there is a direction."""

    def squares(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        """(k, N, layers) squared gradient norms."""


def choose_engine(
    network: nn.Module, layers: Layers, mask, example: Tensor, uses: dict[str, int], direction: Direction | None = None
) -> Engine:
    """The fastest engine that gives what plain backward passes give on an example.

    `HookedNorms` is tried where each counted parameter is used once, inside its own Linear, Conv2d or BatchNorm.

    Args:
        network: as it is inside `Subject.measuring`.
        example: (n, ...) inputs to try engines on.
        uses: operations that take in each parameter, as `operations.observe` counted them.
        direction: of every counted parameter, for products with the gradients.
    Raises:
        ValueError: the network has no plain backward pass.
    """
    plain = LoopNorms(network, layers, mask, direction)
    truth = plain.reference(example)
    once = all(uses.get(name) == 1 for parameters in layers.values() for name in parameters)
    if once and example.is_floating_point() and all(supported(module_of(network, layer)) for layer in layers):
        engine = HookedNorms(network, layers, mask, direction)
        if agrees(engine, example, truth):
            return engine
        engine.remove()
    general = VmapNorms(network, layers, mask, direction)
    return general if agrees(general, example, truth) else plain


def vmap_engine(network: nn.Module, layers: Layers, mask, example: Tensor) -> "VmapNorms":
    """`VmapNorms` of a network.

    Raises:
        ValueError: it is none for `torch.func.vmap`, or its gradients are not those of plain backward passes.
    """
    engine = VmapNorms(network, layers, mask)
    if not agrees(engine, example, LoopNorms(network, layers, mask).reference(example)):
        raise ValueError("torch.func.vmap does not give this network's gradients; use fisher_method spectral or ours")
    return engine


def no_particular(logits: Tensor) -> Tensor:
    """(1, N, C) cotangents of no particular direction."""
    return torch.linspace(-1, 2, logits.numel(), device=logits.device, dtype=logits.dtype).view(1, *logits.shape)


def agrees(engine: Engine, example: Tensor, truth: Tensor) -> bool:
    """Whether an engine can treat the network, and gives its true squared norms of an example's gradients."""
    try:
        found = engine.squares(example, no_particular)
    except UNFIT:
        return False
    return torch.allclose(found, truth, rtol=1e-2, atol=1e-6 * truth.nan_to_num().max().item(), equal_nan=True)


# ------------------------------------------------------------------------------------------------------- by hooks


class HookedNorms:
    """Forms each layer's per-example gradient from its input and its output's gradient, in a backward pass of the batch.

    No parameter's batch gradient is computed. Per-example gradients live for one layer at a time.
    """

    copies = (2.0, 0.2)

    def __init__(self, network: nn.Module, layers: Layers, mask, direction: Direction | None = None) -> None:
        self.network, self.layers = network, list(layers)
        self.found: dict[str, Tensor] = {}
        self.handles: list[Any] = []
        for layer, parameters in layers.items():
            module = module_of(network, layer)
            keep = {name.rpartition(".")[2]: kept(p, name, mask) for name, p in parameters.items()}
            along = {name.rpartition(".")[2]: direction[name] for name in parameters} if direction else {}
            watch = partial(self.watch, layer, RULES[type(module)](module, keep, along))
            self.handles.append(module.register_forward_hook(watch, prepend=True, with_kwargs=True))

    def watch(self, layer: str, rule: Callable, module: nn.Module, args: tuple, named: dict, output: Tensor) -> None:
        if not output.requires_grad:
            return  # a pass without gradients
        inputs = next(iter((*args, *named.values()))).detach()
        version = inputs._version

        def record(gradient: Tensor) -> None:
            if inputs._version != version:
                raise ValueError(f"the input of {layer} is changed in place after its use; use inplace=False")
            self.found[layer] = rule(inputs, gradient.detach())

        output.register_hook(record)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def squares(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        return self.sums(inputs, cotangents)[..., 0]

    def sums(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        require_gradients(self.network, False)  # the inputs alone do: the parameters' own gradients are not needed
        leaf = inputs.detach().requires_grad_()
        logits = self.network(leaf.clone())  # which may be changed in place
        rows = []
        z = cotangents(logits.detach())
        for probe, cotangent in enumerate(checking_signals(z)):
            self.found = {}
            pull_back(logits, cotangent, leaf, retain_graph=probe < len(z) - 1)
            if len(self.found) < len(self.layers):
                raise RuntimeError("a layer's output does not depend on the inputs, or is not used")
            rows.append(torch.stack([self.found[layer] for layer in self.layers], 1))
        return torch.stack(rows)


def pull_back(outputs: Tensor, cotangent: Tensor, inputs: Tensor | Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """`torch.autograd.grad(outputs, inputs, cotangent, **options)` to the bit.

    To compare the shapes of outputs and cotangents, that imports symbolic algebra, which takes longer than a small network.
    """
    return torch.autograd.grad((outputs * cotangent).sum(), inputs, **options)


# ------------------------------------------------------------------------------------------- by whole gradients


class VmapNorms:
    """Whole per-example gradients by `torch.func.vmap`: any layer, also one used several times; N copies in memory."""

    copies = (4.0, 3.0)

    def __init__(self, network: nn.Module, layers: Layers, mask, direction: Direction | None = None) -> None:
        self.network, self.layers, self.mask, self.direction = network, layers, mask, direction or {}
        self.parameters = {name: p for parameters in layers.values() for name, p in parameters.items()}

    def squares(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        return self.sums(inputs, cotangents)[..., 0]

    def sums(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        def product(parameters: dict[str, Tensor], x: Tensor, z: Tensor) -> Tensor:
            return (functional_call(self.network, parameters, (x[None].clone(),))[0] * z).sum()

        require_gradients(self.network, False)
        logits = self.network(inputs.clone()).detach()
        gradients = vmap(grad(product), in_dims=(None, 0, 0))
        return torch.stack([self.by_layer(gradients(self.parameters, inputs, z)) for z in checking_signals(cotangents(logits))])

    def by_layer(self, gradients: dict[str, Tensor]) -> Tensor:
        """(N, layers, 1 or 2) from whole gradients (N, *shape) of every parameter."""

        def sums(name: str, parameter: Tensor) -> Tensor:
            return sums_of(gradients[name], kept(parameter, name, self.mask), self.direction.get(name))

        return torch.stack([sum(sums(*item) for item in parameters.items()) for parameters in self.layers.values()], 1)


class LoopNorms(VmapNorms):
    """One plain backward pass for each example and cotangent, as the published code does it: the slow reference."""

    def reference(self, example: Tensor) -> Tensor:
        """Squared norms that other engines are held against.

        Raises:
            ValueError: the network has no backward pass.
        """
        try:
            return self.squares(example, no_particular)
        except UNFIT as error:
            raise ValueError(f"the network's backward pass fails: {explained(error)}") from error

    def sums(self, inputs: Tensor, cotangents: Cotangents) -> Tensor:
        require_gradients(self.network, True)
        weights = list(self.parameters.values())
        outputs = [self.network(x[None].clone()) for x in checking_signals(inputs)]
        z = cotangents(torch.cat(outputs).detach())
        examples = []
        for output, of_one in checking_signals(zip(outputs, z.transpose(0, 1), strict=True)):
            options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
            found = [pull_back(output, v[None], weights, **options) for v in of_one]
            examples.append(self.by_layer(dict(zip(self.parameters, map(torch.stack, zip(*found, strict=True)), strict=True))))
        return torch.stack(examples, 1)

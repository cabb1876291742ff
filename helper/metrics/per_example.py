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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from helper.metrics.parameters import UNFIT, Layers, active, explained, module_of, require_gradients
from helper.processes.interruption import checking_signals

GATHER = 64  # multiplications in the time that picking one element takes
CACHE = 3 << 19  # bytes of a core's cache to work in
Cotangents = Callable[[Tensor], Tensor]  # (N, C) logits -> (k, N, C)
Direction = Mapping[str, Tensor]  # parameter name -> tensor of its shape, zero where it is pruned
Kinds = dict[str, Tensor | None]  # "weight", "bias" of a layer -> its active coordinates, None for all
Along = dict[str, Tensor]  # "weight", "bias" of a layer -> its part of a direction; empty without one


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


def supported(module: nn.Module) -> bool:
    return type(module) in RULES and getattr(module, "groups", 1) == 1


def kept(parameter: Tensor, name: str, mask) -> Tensor | None:
    """Active coordinates as 0 and 1 in the parameter's type; None where all are."""
    keep = active(parameter, name, mask)
    return None if keep.all() else keep.to(parameter.dtype)


def linear_sums(module: nn.Linear, keep: Kinds, along: Along) -> Callable[[Tensor, Tensor], Tensor]:
    """Rule (inputs (N, ..., in), output gradients (N, ..., out)) -> sums: for one position ||a||^2 ||g||^2 (Goodfellow 2015).

    A mask enters as sum_ij m_ij g_i^2 a_j^2, so that no gradient is formed; several positions need it elementwise.
    """
    direction = along.get("weight")

    def rule(a: Tensor, g: Tensor) -> Tensor:
        total = g.new_zeros(len(g), 1)
        if "weight" in keep:
            mask = keep["weight"]
            if a.ndim == 2:
                rows = g.square().sum(1, keepdim=True) if mask is None else g.square() @ mask
                products = None if direction is None else ((g @ direction) * a).sum(1)
                total = total + paired((rows * a.square()).sum(1), products)
            else:
                total = total + sums_of(g.flatten(1, -2).transpose(1, 2) @ a.flatten(1, -2), mask, direction)
        if "bias" in keep:
            total = total + sums_of(g.flatten(1, -2).sum(1) if g.ndim > 2 else g, keep["bias"], along.get("bias"))
        return total

    return rule


def conv_sums(module: nn.Conv2d, keep: Kinds, along: Along) -> Callable[[Tensor, Tensor], Tensor]:
    """Rule (inputs (N, in, H, W), output gradients (N, out, H', W')) -> sums.

    Without a mask, where pixels are few beside channels, ||G||^2 = sum_pq (g_p . g_q) (patch_p . patch_q) needs no gradient.
    """
    mask, direction = (by_row(kinds.get("weight")) for kinds in (keep, along))

    def rule(a: Tensor, g: Tensor) -> Tensor:
        total = g.new_zeros(len(g), 1)
        if "weight" in keep:
            a = padded(module, a).permute(0, 2, 3, 1)  # (N, H, W, in), contiguous for channels-last networks
            if mask is None and direction is None and gram_is_cheaper(module, a, g):
                total = total + paired(gram_squares(module, a, g))
            else:
                size = cached_examples(module, a, g)
                pairs = zip(a.split(size), g.split(size), strict=True)
                total = total + torch.cat([kernel_sums(module, *pair, mask, direction) for pair in pairs])
        if "bias" in keep:
            total = total + sums_of(g.sum((2, 3)), keep["bias"], along.get("bias"))
        return total

    return rule


def by_row(kernel: Tensor | None) -> Tensor | None:
    """(out, in, rows, columns) -> (rows, out * columns * in), in the order of `kernel_sums`."""
    return None if kernel is None else kernel.permute(2, 0, 3, 1).flatten(1)


def kernel_sums(module: nn.Conv2d, a: Tensor, g: Tensor, mask: Tensor | None, direction: Tensor | None) -> Tensor:
    """Sums of the kernel's gradients, from padded (N, H, W, in) inputs; mask and direction are `by_row`.

    The gradient of kernel row y is G_y = g (a shifted by y, for each column of the kernel): one batched product a row, on
    a copy of the input for the columns only, a third of im2col for a 3x3 kernel.
    """
    (height, width), (down, right), (dy, dx) = module.kernel_size, module.stride, module.dilation
    rows, columns = g.shape[2:]
    taps = torch.cat([a[:, :, x * dx : x * dx + right * (columns - 1) + 1 : right] for x in range(width)], 3)
    total, flat = g.new_zeros(len(g), 1), g.flatten(2)
    for y in range(height):
        shifted = taps[:, y * dy : y * dy + down * (rows - 1) + 1 : down].flatten(1, 2)
        gradient = torch.bmm(flat, shifted).flatten(1)  # (N, out * kernel columns * in)
        products = None if direction is None else gradient @ direction[y]
        # not squares @ mask: for few long rows a product with a vector takes twice as long
        squares = gradient.square_() if mask is None else (gradient * mask[y]).mul_(gradient)
        total = total + paired(squares.sum(1), products)
    return total


def cached_examples(module: nn.Conv2d, a: Tensor, g: Tensor) -> int:
    """How many examples `kernel_sums` should take at once: on a CPU as many as its copies leave in the cache.

    On the first stage of a ResNet-20 this halves the time of all steps: copies, products and squares.
    """
    if a.device.type != "cpu":
        return len(a)
    each = a.shape[1] * g.shape[3] * a.shape[3] * module.kernel_size[1] * a.element_size()
    return max(4, CACHE // each)


def gram_is_cheaper(module: nn.Conv2d, a: Tensor, g: Tensor) -> bool:
    """Whether products of pixels take fewer multiplications than the gradient of (N, H, W, in) inputs."""
    taps, pixels = module.kernel_size[0] * module.kernel_size[1], g.shape[2] * g.shape[3]
    direct = pixels * taps * a.shape[3] * g.shape[1]
    return (a.shape[1] * a.shape[2]) ** 2 * a.shape[3] + pixels**2 * (g.shape[1] + GATHER * taps) < direct


def gram_squares(module: nn.Conv2d, a: Tensor, g: Tensor) -> Tensor:
    """(N,) squared norms of the kernel's gradients from the Gram matrices of pixels (Rochette et al. 2019)."""
    (down, right), (dy, dx) = module.stride, module.dilation
    pixels = a.flatten(1, 2) @ a.flatten(1, 2).transpose(1, 2)
    rows, columns = (torch.arange(n, device=a.device) for n in g.shape[2:])
    patches = 0
    for y in range(module.kernel_size[0]):
        for x in range(module.kernel_size[1]):
            at = ((y * dy + down * rows)[:, None] * a.shape[2] + x * dx + right * columns).flatten()
            patches = patches + pixels[:, at[:, None], at]
    outputs = g.flatten(2).transpose(1, 2) @ g.flatten(2)
    return (patches * outputs).sum((1, 2))


def padded(module: nn.Conv2d, a: Tensor) -> Tensor:
    """Inputs with the convolution's padding put on, in whatever mode it pads."""
    pads = module._reversed_padding_repeated_twice  # also for padding="same"
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(a, pads, mode=mode) if any(pads) else a


def batch_norm_sums(module: nn.modules.batchnorm._BatchNorm, keep: Kinds, along: Along) -> Callable:
    """Rule for BatchNorm in eval mode, where it scales and shifts: (N, channels, ...) inputs and gradients -> sums."""

    def rule(a: Tensor, g: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (a.ndim - 2)
        scaled = (a - module.running_mean.view(shape)) * (module.running_var.view(shape) + module.eps).rsqrt()
        total = g.new_zeros(len(g), 1)
        for name, product in (("weight", g * scaled), ("bias", g)):
            if name in keep:
                gradients = product.flatten(2).sum(2) if g.ndim > 2 else product
                total = total + sums_of(gradients, keep[name], along.get(name))
        return total

    return rule


def sums_of(gradients: Tensor, mask: Tensor | None, direction: Tensor | None) -> Tensor:
    """Sums of (N, ...) gradients: (N, 1) of squares where `mask` is 1, (N, 2) with their products with a direction."""
    rows = gradients.reshape(len(gradients), -1)
    squares = rows.square().sum(1) if mask is None else rows.square() @ mask.flatten()
    return paired(squares, None if direction is None else rows @ direction.flatten())


def paired(squares: Tensor, products: Tensor | None = None) -> Tensor:
    """(N, 1) or (N, 2)"""
    return squares[:, None] if products is None else torch.stack([squares, products], 1)


RULES = {
    nn.Linear: linear_sums,
    nn.Conv2d: conv_sums,
    nn.BatchNorm1d: batch_norm_sums,
    nn.BatchNorm2d: batch_norm_sums,
}


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

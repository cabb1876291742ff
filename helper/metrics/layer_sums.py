"""Per-example sums of single layers, from what a layer takes in and the gradient of what it gives out.

A rule maps inputs (N, ...) and output gradients (N, ...) of a layer to the (N, 1) squared norms of its parameters' gradients,
with a direction of parameter space to (N, 2): their products with that beside them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.metrics.parameters import active

GATHER = 64  # multiplications in the time that picking one element takes
CACHE = 3 << 19  # bytes of a core's cache to work in
Kinds = dict[str, Tensor | None]  # "weight", "bias" of a layer -> its active coordinates, None for all
Along = dict[str, Tensor]  # "weight", "bias" of a layer -> its part of a direction; empty without one
Rule = Callable[[Tensor, Tensor], Tensor]


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

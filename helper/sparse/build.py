"""python -m helper.sparse.build: compile the sparse kernels, say with what, and check them against dense layers."""

import copy
import logging
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helper.sparse.compiler import SOURCE, Compiler, NoCompiler, find_compiler, openmp_runtime
from helper.sparse.functional import from_lanes, sparse_layer, to_lanes
from helper.sparse.library import Library, cache_folder, kernels
from helper.sparse.plan import layer_plan

LAYERS = {
    "linear 200 to 100": (nn.Linear(200, 100), (200,)),
    "convolution 3x3, 16 to 16": (nn.Conv2d(16, 16, 3, padding=1), (16, 12, 12)),
    "the same, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1), (16, 12, 12)),
    "convolution 5x5, 4 groups": (nn.Conv2d(16, 16, 5, groups=4), (16, 12, 12)),
}
DENSITY = 0.1
AS_GOOD = 4  # times a dense float32 layer's error that a sparse one may have
EPSILON = torch.finfo(torch.float32).eps


def passes(layer: nn.Linear | nn.Conv2d, x: Tensor, mask: Tensor, *, sparse: bool) -> list[Tensor]:
    """[outputs, gradients of inputs, active weights and bias] of a layer for the sum of its outputs' squares, in float64."""
    x, lanes = x.detach().requires_grad_(), len(x)
    if sparse:
        plan = layer_plan(layer, mask, tuple(x.shape[2:]) or (1, 1))
        y = from_lanes(sparse_layer(to_lanes(x, lanes), layer.weight, layer.bias, plan))
    else:
        y = layer(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])
    gradients = [gradients[0], gradients[1] * mask, gradients[2]]
    return [value.detach().double() for value in (y, *gradients)]


def errors(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> tuple[float, float]:
    """(sparse, dense): largest relative error of outputs and gradients in float32 against dense float64."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(layer.weight.shape, generator=generator) < DENSITY
    x = torch.randn(37, *shape, generator=generator)
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.mul_(mask)
    found = [passes(layer, x, mask, sparse=True), passes(layer, x, mask, sparse=False)]
    exact = passes(layer.double(), x.double(), mask, sparse=False)
    return tuple(max(float((a - b).norm() / b.norm()) for a, b in zip(values, exact, strict=True)) for values in found)


def plans(compiler: Compiler) -> Iterator[str]:
    """What is to be compiled, with what."""
    yield f"source    {SOURCE}"
    yield f"compiler  {' '.join(compiler.command)}: {compiler.version}"
    yield f"options   {' '.join(compiler.options('float'))}"
    runtime = openmp_runtime() or "none that torch has loaded"
    yield f"OpenMP    {runtime}{'' if compiler.openmp() else ': one thread'}"
    yield f"cache     {cache_folder()}"


def result(library: Library) -> str:
    made = f"compiled in {library.seconds:.1f} s ({library.cpu_seconds:.1f} s of processors)"
    bits = 8 * library.functions.vector_bytes()
    return f"library   {library.path}, {made if library.seconds else 'found there'}; vectors of {bits} bits"


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        print(*plans(find_compiler()), sep="\n", flush=True)
        library = kernels()
    except NoCompiler as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(result(library))
    print("relative error against dense float64, of outputs and gradients: sparse, dense")
    wrong = False
    for name, (layer, shape) in LAYERS.items():
        sparse, dense = errors(layer, shape)
        bad = not sparse <= AS_GOOD * max(dense, EPSILON)
        wrong |= bad
        print(f"  {name:28} {sparse:.1e}  {dense:.1e}{'  WRONG' if bad else ''}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

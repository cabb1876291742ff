"""What one forward pass of a network executes: is it piecewise linear in every parameter, and how often is each used?"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = {"clone", "_to_copy", "contiguous", "alias", "detach", "lift_fresh", "to_mkldnn"}
LINEAR = COPIES | {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "squeeze", "unsqueeze", "select", "slice",
    "as_strided", "split", "split_with_sizes", "unbind", "cat", "stack", "copy", "add", "sub", "rsub", "neg", "sum", "mean",
    "cumsum", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_bilinear2d", "roll", "flip", "index", "index_select", "gather", "repeat", "pixel_shuffle",
    "pixel_unshuffle", "im2col", "unfold", "diagonal", "masked_fill", "tril", "triu", "channel_shuffle",
}  # fmt: skip
PIECEWISE_LINEAR = {
    "relu", "threshold", "leaky_relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "abs", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max", "min", "amax",
    "amin", "maximum", "minimum", "where", "sort", "topk", "median", "sign", "floor", "ceil", "round", "trunc",
}  # fmt: skip
CONSTANT = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty"}
BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")  # their argument 5 asks for batch statistics
# operation -> positions of the arguments that it multiplies with each other
PRODUCTS = {
    "mul": (0, 1), "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "linear": (0, 1), "embedding": (0, 1),
    "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2), "addmv": (1, 2), "addcmul": (1, 2), "_prelu_kernel": (0, 1),
    "convolution": (0, 1), "_convolution": (0, 1), "mkldnn_convolution": (0, 1), "cudnn_convolution": (0, 1),
    **dict.fromkeys(BATCH_NORMS, (0, 1)),
}  # fmt: skip


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass was seen to do."""

    curved: str | None  # why the logits are not piecewise linear in every single parameter; None: they are
    uses: dict[str, int]  # parameter name -> operations that took it in; empty where that could not be followed
    reached: frozenset[str]  # parameters that the logits' gradients reach
    foreign: tuple[tuple[int, ...], ...]  # shapes of the differentiable tensors they reach that are none of the network's
    hidden: str | None  # an operation that hides what it depends on: `reached` may lack something
    bytes_per_example: float  # of all tensors that the operations made
    output: tuple[int, ...]  # shape; () for what is no tensor


def observe(network: nn.Module, inputs: Tensor) -> ForwardPass:
    """Run a network as it is measured on a few examples; watch the operations below autograd and the gradients' graph.

    The logits are piecewise linear in each single parameter (and the loss's Hessian has the diagonal of its Gauss-Newton
    part, Schraudolph 2002) if every operation is piecewise linear in what depends on parameters, no two such tensors are
    multiplied, and every parameter is taken in once. Operations are admitted by name: an unknown one counts as curved, and
    so does an `autograd.Function`, whose gradient need not be that of its operations, and a parameter of which only the
    operations or only the graph know.
    """
    recorder = Recorder(dict(network.named_parameters()))
    try:
        with recorder:
            output = network(inputs)
    except NotImplementedError:  # a sparse or other tensor without a storage to follow
        recorder.curved, recorder.uses = "a tensor that cannot be followed", Counter()
        output = network(inputs)
    leaves, hidden = graph_of(output)
    names = {parameter: name for name, parameter in network.named_parameters()}
    reached = frozenset(names[leaf] for leaf in leaves if leaf in names)
    foreign = tuple(tuple(leaf.shape) for leaf in leaves if leaf not in names and leaf is not inputs)
    curved = recorder.curved or hidden or more_than_once(recorder.uses) or otherwise_used(recorder.uses, reached)
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    return ForwardPass(curved, dict(recorder.uses), reached, foreign, hidden, max(recorder.n_bytes, 1) / len(inputs), shape)


def substitutable(network: nn.Module, inputs: Tensor, reached: Collection[str]) -> bool:
    """Whether `functional_call` with other tensors in place of the parameters reaches the same ones of them.

    It does not where something holds a parameter itself, and it does not exist for a TorchScript module.
    """
    others = {name: p.detach().requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
    try:
        leaves, _ = graph_of(functional_call(network, others, (inputs,)))
    except RuntimeError:
        return False
    names = {other: name for name, other in others.items()}
    return {names.get(leaf) for leaf in leaves} >= set(reached)


def more_than_once(uses: Mapping[str, int]) -> str | None:
    return next((f"parameter {name} used {n} times" for name, n in uses.items() if n > 1), None)


def otherwise_used(uses: Mapping[str, int], reached: Collection[str]) -> str | None:
    """The first parameter that either the operations or the gradients' graph alone use, in words."""
    for name in {**uses, **dict.fromkeys(sorted(reached))}:
        if name not in reached:
            return f"parameter {name} used without a gradient"
        if name not in uses:
            return f"parameter {name} used out of sight"
    return None


def graph_of(output: Any) -> tuple[list[Tensor], str | None]:
    """(leaves, the first `autograd.Function` in words) of the gradients' graph of an output."""
    waiting, seen, leaves, functions = [getattr(output, "grad_fn", None)], set(), [], []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            functions.append(f"autograd.Function {type(node).__name__.removesuffix('Backward')}")
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves, functions[0] if functions else None


class Recorder(TorchDispatchMode):
    """Follows what depends on parameters from operation to operation; storages tell tensors and their views."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.uses: Counter[str] = Counter()
        self.curved: str | None = None
        self.n_bytes = 0
        self.parameters = {storage(p): name for name, p in parameters.items() if p.numel()}  # and plain copies of them
        self.activations: set[int] = set()
        self.alive: list[Tensor] = []  # so that no storage's address is given out twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes longer than a small run, to hide this class from it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        in_place = function._schema.is_mutable
        self.record(name.rstrip("_") or name, in_place, args, list(tensors((args, kwargs))), list(tensors(result)))
        return result

    def record(self, name: str, in_place: bool, args: tuple, taken: list[Tensor], made: list[Tensor]) -> None:
        known = {storage(t) for t in taken}
        new = [t for t in made if storage(t) not in known]
        self.alive += made
        self.n_bytes += sum(t.nbytes for t in new)
        parameters = [self.parameters[s] for s in known if s in self.parameters]
        depends = bool(parameters) or not known.isdisjoint(self.activations)
        if not depends or name in CONSTANT or not any(t.is_floating_point() or t.is_complex() for t in made):
            return
        if parameters and name in COPIES:
            self.parameters |= {storage(t): parameters[0] for t in new}
            return
        if parameters and name in LINEAR and not new and not in_place:
            return  # a view of a parameter
        self.uses.update(parameters)
        self.activations |= {storage(t) for t in made}
        self.curved = self.curved or self.why_curved(name, args)

    def why_curved(self, name: str, args: tuple) -> str | None:
        if name in BATCH_NORMS and args[5]:
            return "BatchNorm with batch statistics"
        if name == "div":
            return "division by an activation" if self.dependent(args[1]) else None
        if name in PRODUCTS:
            first, second = (args[position] for position in PRODUCTS[name])
            if not (self.dependent(first) and self.dependent(second)):
                return None
            if storage(first) == storage(second):
                return f"{name} of a tensor with itself"
            both = {storage(first), storage(second)} <= self.activations
            return f"{name} of two activations" if both else None
        return None if name in LINEAR | PIECEWISE_LINEAR else f"operation {name}"

    def dependent(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (storage(value) in self.activations or storage(value) in self.parameters)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

"""What one forward pass of a network executes: is it piecewise linear in every parameter, and how often is each used?"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helper.metrics.parameters import UNFIT

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
    "hardsigmoid", "amin", "maximum", "minimum", "where", "sort", "topk", "median", "sign", "floor", "ceil", "round", "trunc",
}  # fmt: skip
REARRANGED = {"view_as_real", "view_as_complex", "real", "imag", "_conj", "_conj_physical", "conj_physical"}  # linear, real
CONSTANT = {"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty"}
BY_VALUE = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}  # shape of the result
ABOUT_SHAPES = {  # answers that no value decides
    "_fused_sdp_choice", "_has_same_storage_numel", "is_same_size", "sym_size", "sym_stride", "sym_numel",
    "sym_storage_offset",
}  # fmt: skip
# methods of a tensor that take its values, or its gradient, where no operation is seen
OUT_OF_SIGHT = {
    "numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "register_hook", "retain_grad",
}  # fmt: skip
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
    uses: dict[str, int]  # parameter name -> operations that took it in; empty where others could do for other examples
    reached: frozenset[str]  # parameters that the logits' gradients reach
    foreign: tuple[tuple[int, ...], ...]  # shapes of the differentiable tensors they reach that are none of the network's
    hidden: str | None  # an operation that hides what it depends on: `reached` may lack something
    bytes_per_example: float  # of all tensors that the operations made
    output: tuple[int, ...]  # shape; () for what is no tensor


def observe(network: nn.Module, inputs: Tensor) -> ForwardPass:
    """Run a network as it is measured on a few examples; watch the operations below autograd and the gradients' graph.

    The logits are piecewise linear in each single parameter (and the loss's Hessian has the diagonal of its Gauss-Newton
    part, Schraudolph 2002) if every operation is piecewise linear in what depends on parameters, no two such tensors are
    multiplied, every parameter is taken in once, and no operation is chosen by a value. Operations are admitted by name:
    what is unknown or out of sight counts as curved. So does an `autograd.Function`, whose gradient need not be that of its
    operations, and a parameter of which only the operations or only the graph know.
    """
    example = inputs.clone()  # which may be changed in place
    recorder = Recorder(dict(network.named_parameters()), example)
    try:
        with Methods(recorder), recorder:
            output = network(example)
    except NotImplementedError:  # a sparse or other tensor without a storage to follow
        recorder.curved, recorder.uses = "a tensor that cannot be followed", Counter()
        output = network(inputs.clone())
    leaves, hidden = graph_of(output)
    names = {parameter: name for name, parameter in network.named_parameters()}
    reached = frozenset(names[leaf] for leaf in leaves if leaf in names)
    foreign = tuple(tuple(leaf.shape) for leaf in leaves if leaf not in names)
    curved = recorder.curved or hidden or more_than_once(recorder.uses) or otherwise_used(recorder.uses, reached)
    uses = {} if recorder.chosen_by_value else dict(recorder.uses)
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    return ForwardPass(curved, uses, reached, foreign, hidden, max(recorder.n_bytes, 1) / len(inputs), shape)


def substitutable(network: nn.Module, inputs: Tensor, reached: Collection[str]) -> bool:
    """Whether `functional_call` with other tensors in place of the parameters reaches the same ones of them.

    It does not where something holds a parameter itself, and it does not exist for a TorchScript module.
    """
    others = {name: p.detach().requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
    try:
        leaves, _ = graph_of(functional_call(network, others, (inputs,)))
    except UNFIT:
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

    def __init__(self, parameters: dict[str, Tensor], inputs: Tensor) -> None:
        super().__init__()
        self.uses: Counter[str] = Counter()
        self.curved: str | None = None
        self.chosen_by_value = False  # other examples may take other operations
        self.n_bytes = 0
        self.parameters = {storage(p): name for name, p in parameters.items() if p.numel()}  # and plain copies of them
        self.activations: set[int] = set()
        self.varying = {storage(inputs), *self.parameters}  # tensors of any type that depend on inputs or parameters
        self.alive: list[Tensor] = []  # so that no storage's address is given out twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, which takes longer than a small run, to hide this class from it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # `Methods` watches the network, not this
            made = [*tensors(result), *tensors(written_to(function._schema, args, kwargs))]
            self.record(function, args, kwargs, list(tensors((args, kwargs))), made)
            if not made and plain_name(function) not in ABOUT_SHAPES:
                self.take_out(f"operation {plain_name(function)}", (args, kwargs))
        return result

    def record(self, function: Any, args: tuple, kwargs: dict, taken: list[Tensor], made: list[Tensor]) -> None:
        name, in_place = plain_name(function), function._schema.is_mutable
        known = {storage(t) for t in taken}
        new = [t for t in made if storage(t) not in known]
        self.alive += made
        self.n_bytes += sum(t.nbytes for t in new)
        if name in CONSTANT or known.isdisjoint(self.varying):
            return
        self.varying |= {storage(t) for t in made}
        if name in BY_VALUE or (name == "index" and any(t.dtype == torch.bool for t in tensors(args[1]))):
            self.take_out(f"operation {name}", args)
        parameters = [self.parameters[s] for s in known if s in self.parameters]
        depends = bool(parameters) or not known.isdisjoint(self.activations)
        if not depends or not any(t.is_floating_point() or t.is_complex() for t in made):
            return
        if parameters and name in COPIES:
            self.parameters |= {storage(t): parameters[0] for t in new}
            return
        if parameters and name in LINEAR and not new and not in_place:
            return  # a view of a parameter
        self.uses.update(parameters)
        self.activations |= {storage(t) for t in made}
        self.curved = self.curved or self.why_curved(function, args, kwargs)

    def why_curved(self, function: Any, args: tuple, kwargs: dict) -> str | None:
        name = plain_name(function)
        if any(argument.kwarg_only for argument in written_arguments(function._schema)):
            return f"operation {name} with out="
        if name in BATCH_NORMS and args[5]:
            return "BatchNorm with batch statistics"
        if name == "div":
            return "division by an activation" if self.dependent(args[1]) else None
        if name in PRODUCTS:
            return self.why_product(name, *(args[position] for position in PRODUCTS[name]))
        if name in LINEAR | REARRANGED:
            return None
        if any(t.is_complex() for t in tensors((args, kwargs))):
            return f"operation {name} of complex numbers"
        return None if name in PIECEWISE_LINEAR else f"operation {name}"

    def why_product(self, name: str, first: Any, second: Any) -> str | None:
        if not (self.dependent(first) and self.dependent(second)):
            return None
        if storage(first) == storage(second):
            return f"{name} of a tensor with itself"
        both = {storage(first), storage(second)} <= self.activations
        return f"{name} of two activations" if both else None

    def dependent(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (storage(value) in self.activations or storage(value) in self.parameters)

    def take_out(self, how: str, arguments: Any) -> None:
        """Note that values which depend on inputs or parameters go where no operation is seen."""
        if any(storage(t) in self.varying for t in tensors(arguments)):
            self.chosen_by_value = True
            self.curved = self.curved or f"values taken out by {how}"


class Methods(TorchFunctionMode):
    """Sees the methods by which values leave PyTorch's operations."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in OUT_OF_SIGHT:
            self.recorder.take_out(name, args[:1])
        return function(*args, **(kwargs or {}))


def plain_name(operation: Any) -> str:
    """`relu` for aten::relu_.default; others than PyTorch's own operations keep their namespace."""
    name = operation._schema.name.removeprefix("aten::")
    return name.rstrip("_") or name


def written_arguments(schema: Any) -> list[Any]:
    return [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def written_to(schema: Any, args: tuple, kwargs: dict) -> list[Any]:
    """Values of the arguments that an operation writes to."""
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    return [given[a.name] for a in written_arguments(schema) if a.name in given]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

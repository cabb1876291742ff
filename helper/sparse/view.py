"""The sparse view of a network: the same parameters and statistics, computed batch-innermost where that is known how to do.

The network is traced into a graph of calls. Calls that are known here get activations that lie batch-innermost, BatchNorm
with what follows it in one pass; all others stay as they are, with activations laid out as they expect them.
"""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from helper.sparse.functional import from_lanes, lanes_of, lanes_of_features, to_lanes
from helper.sparse.fusion import fuse
from helper.sparse.layers import LanesBlock, LanesLayer, LanesLinear
from helper.sparse.norm import LanesNorm
from helper.sparse.part import Part
from helper.sparse.reductions import CONCATENATIONS, concatenated, reduction
from helper.sparse.rooms import Rooms
from helper.sparse.tracing import python_of, shape, traced

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout)
RELU = (F.relu, torch.relu, "relu")
TANH, SIGMOID = (torch.tanh, F.tanh, "tanh"), (torch.sigmoid, F.sigmoid, "sigmoid")


def enter(x: Tensor) -> Tensor:
    return to_lanes(x, lanes_of(len(x)) if x.dim() > 2 else lanes_of_features(len(x)))


@dataclass(frozen=True)
class Value:
    """What a call of the network has become.

    Attributes:
        node: of the view. lanes: whether its activations lie batch-innermost.
        statistics: of them, for the BatchNorm that is to read them; None: nobody has found them.
    """

    node: fx.Node
    lanes: bool
    statistics: fx.Node | None = None


@dataclass(frozen=True)
class Waiting:
    """A BatchNorm that is not written yet, because a residual or a ReLU may follow, or a layer that does it while reading."""

    norm: nn.Module
    source: Value
    residual: fx.Node | None = None
    relu: bool = False


class View:
    """Maps (N, *input_shape) inputs to what the network gives for them in its present mode, and is differentiable once.

    Args:
        network: on the CPU, in float32.
        masks: see `follow`.
        input_shape: of one example.
    Attributes:
        layers: names of those whose active weights alone are computed.
        linear_layers: {name: layer} of the linear ones whose active weights are all that a training step reads of a parameter.
    Raises:
        ValueError: the network's calls depend on its inputs or on chance, so that there is no graph of them.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor], input_shape: tuple[int, ...]) -> None:
        self.network, self.rooms = network, Rooms()
        self.graphs = {training: traced(network, input_shape, training=training) for training in (True, False)}
        if python_of(self.graphs[True]) == python_of(self.graphs[False]):
            self.graphs[False] = self.graphs[True]
        self.follow(masks)

    def follow(self, masks: Mapping[str, Tensor]) -> None:
        """From now on compute the active weights alone of other layers, or under other masks.

        Args:
            masks: {name of a layer: bool tensor of its weight's shape}.
        """
        layers = {name: LanesLayer(self.network.get_submodule(name), mask) for name, mask in masks.items()}
        self.sparse = layers
        self.in_training = Lowering(self.network, layers, self.graphs[True], self.rooms)
        same = self.graphs[False] is self.graphs[True]
        self.in_evaluation = self.in_training if same else Lowering(self.network, layers, self.graphs[False], self.rooms)
        self.linear_layers = self.read_alone()

    @property
    def layers(self) -> list[str]:
        return self.in_training.layers

    def read_alone(self) -> dict[str, LanesLayer]:
        """See `linear_layers`."""
        uses = Counter(id(layer.layer.weight) for layer in self.sparse.values())
        uses.update(self.in_training.read_whole)
        linear = {name: self.sparse[name] for name in self.layers if isinstance(self.sparse[name].layer, nn.Linear)}
        weights = {name: layer.layer.weight for name, layer in linear.items()}
        fit = [name for name, w in weights.items() if uses[id(w)] == 1 and w.requires_grad and w.is_contiguous()]
        return {name: linear[name] for name in fit}

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x):  # a process's share of a small batch
            return self.network(x)
        return (self.in_training if self.network.training else self.in_evaluation).module(x)


class Lowering:
    """A graph of a network's calls, done batch-innermost where that is known.

    Args:
        sparse: {name: layer} of those whose active weights alone are computed; one of each, in whatever graphs.
        rooms: memory that all graphs share.
    Attributes:
        module: the result. layers: names of the sparse layers in it.
        read_whole: ids of the parameters that other calls than those of the sparse layers read.
    """

    def __init__(self, network: nn.Module, sparse: Mapping[str, LanesLayer], graph: fx.Graph, rooms: Rooms) -> None:
        self.network, self.sparse, self.layers = network, sparse, list[str]()
        self.graph, self.parts, self.values = fx.Graph(), dict[str, Any](), dict[fx.Node, Value | Waiting]()
        self.conversions: dict[fx.Node, fx.Node] = {}
        self.calls = Counter(network.get_submodule(node.target) for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.plain))
            else:
                self.values[node] = self.lowered(node) or self.unchanged(node)
                if not node.users:
                    self.written(node)  # a BatchNorm has statistics to update, whoever reads what it gives
        self.pass_inputs_on()
        whole = [part for part in self.parts.values() if not isinstance(part, LanesBlock)]
        self.read_whole = {id(p) for part in whole for p in (part.parameters() if isinstance(part, nn.Module) else [part])}
        self.parts |= fuse(self.graph, {name: part for name, part in self.parts.items() if isinstance(part, Part)}, rooms)
        self.module = fx.GraphModule(self.parts, self.graph)

    def lowered(self, node: fx.Node) -> Value | Waiting | None:
        """A call of the network in the view; None: it is not known how to do that batch-innermost."""
        if node.op == "call_module":
            return self.lowered_module(node, self.network.get_submodule(node.target))
        if node.op not in ("call_function", "call_method"):
            return None
        if node.target in CONCATENATIONS:
            return self.concatenation(concatenated(node))
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        first, rest = node.args[0], (*node.args[1:], *node.kwargs.items())
        if node.target in (operator.add, torch.add, "add"):
            return self.sum(node, *node.args) if len(node.args) == 2 and not node.kwargs else None
        if node.target in RELU and rest in [(), (("inplace", False),), (("inplace", True),)]:
            return self.relu(first)
        if not self.in_lanes(first):
            return None
        if node.target in TANH + SIGMOID:
            return self.call(torch.tanh if node.target in TANH else torch.sigmoid, self.lanes(first))
        return self.reduced(first, reduction(node.target, node.args[1:], node.kwargs, shape(first)))

    def lowered_module(self, node: fx.Node, module: nn.Module) -> Value | Waiting | None:
        source, dims = node.args[0], len(shape(node.args[0]))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and dims == (2 if isinstance(module, nn.Linear) else 4):
            if node.target in self.sparse:
                self.layers += [] if node.target in self.layers else [node.target]
                return self.sparse_call(self.sparse[node.target], source, self.norm_behind(node))
            if isinstance(module, nn.Linear) and self.in_lanes(source):
                return self.call(LanesLinear(module), self.lanes(source))
        if not self.in_lanes(source):
            return None
        if is_known_norm(module):
            waiting = Waiting(module, self.in_layout(source)) if dims in (2, 4) else None
            return self.normalised(waiting) if waiting and self.calls[module] > 1 else waiting
        if isinstance(module, nn.ReLU):
            return self.relu(source)
        if isinstance(module, nn.Identity):
            return self.in_layout(source)
        if isinstance(module, ELEMENTWISE):
            return self.call(module, self.lanes(source))
        return self.reduced(source, reduction(type(module), (), vars(module), shape(source)))

    def unchanged(self, node: fx.Node) -> Value:
        """A call as it is, with activations as it expects them."""
        if node.op == "call_module":
            self.parts[node.target] = self.network.get_submodule(node.target)
        elif node.op == "get_attr":
            self.parts[node.target] = operator.attrgetter(node.target)(self.network)
        return Value(self.graph.node_copy(node, self.plain), lanes=False)

    # ------------------------------------------------------------------------------------------------- single calls

    def call(self, what: Any, *args: Any) -> Value:
        """A new call with activations that lie batch-innermost, of a function or a module."""
        if not isinstance(what, nn.Module):
            return Value(self.graph.call_function(what, args), lanes=True)
        name = f"lanes_{len(self.parts)}"
        self.parts[name] = what
        return Value(self.graph.call_module(name, args), lanes=True)

    def reduced(self, source: fx.Node, how: tuple | None) -> Value | None:
        return None if how is None else self.call(how[0], self.lanes(source), *how[1:])

    def concatenation(self, parts: list[fx.Node]) -> Value | None:
        if not any(self.in_lanes(part) for part in parts):
            return None
        return self.call(torch.cat, [self.lanes(part) for part in parts], 1)

    def sparse_call(self, layer: LanesLayer, source: fx.Node, after: nn.Module | None) -> Value:
        waiting = self.values[source]
        convolution = isinstance(layer.layer, nn.Conv2d)
        after = after if convolution else None
        if convolution and isinstance(waiting, Waiting) and waiting.source.statistics is not None:
            keep = len(source.users) > 1
            block = LanesBlock(layer, waiting.norm, after, relu=waiting.relu, keep=keep)
            call = self.call(block, waiting.source.node, waiting.source.statistics, waiting.residual).node
            if keep:
                self.values[source] = self.call(operator.getitem, call, 2)
        else:
            call = self.call(LanesBlock(layer, after=after), self.lanes(source), None, None).node
        y = self.call(operator.getitem, call, 0)
        return y if after is None else Value(y.node, True, self.call(operator.getitem, call, 1).node)

    def norm_behind(self, node: fx.Node) -> nn.Module | None:
        """The BatchNorm that alone reads what a call gives, and reads nothing else: its statistics change in order of calls."""
        readers = list(node.users)
        if len(readers) != 1 or readers[0].op != "call_module":
            return None
        module = self.network.get_submodule(readers[0].target)
        return module if is_known_norm(module) and self.calls[module] == 1 and readers[0].args == (node,) else None

    def pass_inputs_on(self) -> None:
        """Let whoever reads a sparse layer's inputs after it have them from the layer, which then adds up their gradients."""
        place = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in list(self.graph.nodes):
            part = self.parts.get(node.target) if node.op == "call_module" else None
            if not isinstance(part, LanesBlock):
                continue
            later = [user for user in node.args[0].users if place.get(user, 0) > place[node]]
            if later:
                with self.graph.inserting_after(node):
                    inputs = self.graph.call_function(operator.getitem, (node, 2))
                for user in later:
                    user.replace_input_with(node.args[0], inputs)

    def relu(self, source: fx.Node) -> Value | None:
        waiting = self.values[source]
        if isinstance(waiting, Waiting) and not waiting.relu and len(source.users) == 1:
            return replace(waiting, relu=True)
        return self.call(F.relu, self.lanes(source)) if self.in_lanes(source) else None

    def sum(self, node: fx.Node, a: Any, b: Any) -> Value | Waiting | None:
        if not isinstance(b, fx.Node) or shape(a) != shape(b) or not (self.in_lanes(a) or self.in_lanes(b)):
            return None
        for one, other in ((a, b), (b, a)):
            waiting = self.values[one]
            bare = isinstance(waiting, Waiting) and waiting.residual is None and not waiting.relu
            if bare and len(one.users) == 1 and one is not other:
                return replace(waiting, residual=self.lanes(other))
        return self.call(operator.add, self.lanes(a), self.lanes(b))

    def normalised(self, waiting: Waiting) -> Value:
        source = waiting.source
        layer = LanesNorm(waiting.norm, relu=waiting.relu, paired=source.statistics is not None)
        y = self.call(layer, source.node, source.statistics, waiting.residual)
        return self.call(operator.getitem, y.node, 0)

    # ----------------------------------------------------------------------------------------------------- layouts

    def in_lanes(self, node: fx.Node) -> bool:
        value = self.values[node]
        return isinstance(value, Waiting) or value.lanes

    def written(self, node: fx.Node) -> Value:
        value = self.values[node]
        if isinstance(value, Waiting):
            self.values[node] = value = self.normalised(value)
        return value

    def in_layout(self, node: fx.Node) -> Value:
        value = self.written(node)
        return value if value.lanes else Value(self.converted(enter, value.node), lanes=True)

    def lanes(self, node: fx.Node) -> fx.Node:
        return self.in_layout(node).node

    def plain(self, node: fx.Node) -> fx.Node:
        value = self.written(node)
        return self.converted(from_lanes, value.node) if value.lanes else value.node

    def converted(self, function: Any, node: fx.Node) -> fx.Node:
        """A value in the other layout, converted once."""
        if node not in self.conversions:
            self.conversions[node] = self.graph.call_function(function, (node,))
        return self.conversions[node]


def is_known_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine and module.track_running_stats

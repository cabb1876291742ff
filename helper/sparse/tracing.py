"""The graph of a network's calls, with the shapes of what they give."""

import random

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

NOT_TRACEABLE = (  # what a forward pass may raise that is given placeholders in place of tensors
    fx.proxy.TraceError, TypeError, RuntimeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip


def traced(network: nn.Module, input_shape: tuple[int, ...], *, training: bool) -> fx.Graph:
    """The graph of a network's calls in one mode, in which every node knows the shape of what it gives for two examples."""
    modes, drawn = {module: module.training for module in network.modules()}, (torch.get_rng_state(), random.getstate())
    try:
        network.train(training)
        traced_module = fx.symbolic_trace(network)
        decided = not torch.equal(drawn[0], torch.get_rng_state()) or drawn[1] != random.getstate()
        network.eval()
        traced_module.eval()
        with torch.no_grad():
            ShapeProp(traced_module).propagate(next(network.parameters()).new_zeros(2, *input_shape))
    except NOT_TRACEABLE as error:
        raise ValueError(f"the calls of {type(network).__name__} depend on its inputs: {error}") from None
    finally:
        torch.set_rng_state(drawn[0])
        random.setstate(drawn[1])
        for module, mode in modes.items():
            module.training = mode
    if decided:
        raise ValueError(f"{type(network).__name__} draws random numbers between its calls, which a trace would draw once")
    return traced_module.graph


def python_of(graph: fx.Graph) -> str:
    """What a graph computes, with all constants."""
    return graph.python_code("self").src


def shape(node: fx.Node) -> tuple[int, ...]:
    """Of the tensor that a call gives; () where it gives something else."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))

"""Puts the parts of a sparse view that follow each other into chains."""

import operator
from collections.abc import Mapping

from torch import fx

from helper.sparse.chain import Chain
from helper.sparse.part import Part
from helper.sparse.rooms import Rooms


def fuse(graph: fx.Graph, parts: Mapping[str, Part], rooms: Rooms) -> dict[str, Chain]:
    """Replace calls of parts, of which outputs are taken by `getitem`, by calls of chains.

    Args:
        rooms: memory that the chains share.
    Returns:
        The chains, by the names by which the graph calls them.
    """
    chains: dict[str, Chain] = {}
    for run in runs_of(graph, parts):
        name = f"chain_{len(chains)}"
        chains[name] = fused(graph, run, parts, name, rooms)
    graph.lint()
    return chains


def runs_of(graph: fx.Graph, parts: Mapping[str, Part]) -> list[list[fx.Node]]:
    """Calls of parts with nothing between them but what takes their outputs."""
    runs, open_run = list[list[fx.Node]](), False
    for node in graph.nodes:
        if node.op == "call_module" and node.target in parts:
            if not open_run:
                runs.append([])
            runs[-1].append(node)
            open_run = True
        elif not is_output_of(node, parts):
            open_run = False
    return runs


def is_output_of(node: fx.Node, parts: Mapping[str, Part]) -> bool:
    return node.target is operator.getitem and node.args[0].op == "call_module" and node.args[0].target in parts


def fused(graph: fx.Graph, run: list[fx.Node], parts: Mapping[str, Part], name: str, rooms: Rooms) -> Chain:
    """One chain of several calls, put in their place."""
    inputs, numbers = list[fx.Node](), dict[fx.Node, int]()
    inside = {taken for call in run for taken in call.users}
    for call in run:
        for arg in call.args:
            if arg is not None and arg not in inside and arg not in numbers:
                numbers[arg] = len(inputs)
                inputs.append(arg)
    steps, first = [], len(inputs)
    for call in run:
        steps.append((parts[call.target], tuple(None if arg is None else numbers[arg] for arg in call.args)))
        numbers |= {taken: first + taken.args[1] for taken in call.users}
        first += parts[call.target].n_outputs
    outside = [taken for taken in inside if any(user not in run for user in taken.users)]
    outputs = sorted({numbers[taken] for taken in outside})
    with graph.inserting_after(run[-1]):
        whole = graph.call_module(name, tuple(inputs))
    with graph.inserting_after(whole):
        found = {number: graph.call_function(operator.getitem, (whole, i)) for i, number in enumerate(outputs)}
    for taken in outside:
        taken.replace_all_uses_with(found[numbers[taken]], delete_user_cb=lambda user: user not in run)
    for call in reversed(run):
        for node in [*call.users, call]:
            graph.erase_node(node)
    return Chain(steps, len(inputs), tuple(outputs), rooms)

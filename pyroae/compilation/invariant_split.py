"""Split a traced graph into a part that does not depend on the random draws and a part that does."""

import operator
from collections.abc import Collection, Iterator
from typing import Any

from torch import fx
from torch.fx.graph_module import GraphModule

from pyroae.compilation.noise_inputs import is_random


def hoisted(module: GraphModule, draws: Collection[str]) -> tuple[GraphModule, GraphModule]:
    """Two graphs that are one after the other what the graph is: `late(*early(*inputs), *draws)`.

    draws: names of the inputs that come anew each time, the last ones; random operations of the graph are as good as these. An
    input that late needs is handed through. Views are made again, so that nothing is handed on that is larger than what was
    worked out; what an operation changes in place is late, and all that reads it.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda w, x, noise: (x @ w).exp() + noise)(torch.ones(2, 2), torch.ones(3, 2), torch.ones(3, 2))
    >>> early, late = hoisted(graph, ["noise_1"])
    >>> [n.name for n in early.graph.nodes if n.op == "call_function"], [n.name for n in late.graph.nodes][-2:]
    (['mm', 'exp'], ['add', 'output'])
    """
    late = _hanging_on(module.graph, draws)
    nodes = list(module.graph.nodes)
    kept = dict.fromkeys(
        s for node in nodes if node in late for n in node.all_input_nodes for s in _sources(n, late)
    )
    first, second = fx.Graph(), fx.Graph()
    mine: dict[fx.Node, fx.Node] = {}
    there: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in late:
            mine[node] = first.node_copy(node, mine.__getitem__)
    first.output(tuple(mine[node] for node in kept))
    first.eliminate_dead_code()
    for node in kept:
        there[node] = second.placeholder(node.name)
        there[node].meta = dict(node.meta)

    def again(node: fx.Node) -> fx.Node:
        if node not in there:
            there[node] = second.node_copy(node, again)
        return there[node]

    for node in nodes:
        if node in late:
            again(node)
    return GraphModule(module, first), GraphModule(module, second)


def _sources(node: fx.Node, late: set[fx.Node]) -> Iterator[fx.Node]:
    """The early nodes that a late one needs for this input: itself, or what it is a view of."""
    if node in late or node.op == "get_attr":
        return
    if _is_view(node):
        for source in node.all_input_nodes:
            yield from _sources(source, late)
    else:
        yield node


def _hanging_on(graph: fx.Graph, draws: Collection[str]) -> set[fx.Node]:
    """Draws, what is made of them, what is changed in place or made of that, and the output."""
    late = {
        node for node in graph.nodes if node.name in draws or node.op == "output" or is_random(node)
    }
    before = -1
    while before != len(late):
        before = len(late)
        late |= {
            node
            for node in graph.nodes
            if node.op == "call_function" and not late.isdisjoint(node.all_input_nodes)
        }
        for node in filter(_is_changing, late.copy()):
            late |= {part for n in node.all_input_nodes for part in _memory(n)}
    return late


def _memory(node: fx.Node) -> Iterator[fx.Node]:
    """A tensor and what it is a view of, but for inputs, which stay what they are."""
    if node.op != "placeholder":
        yield node
        if _is_view(node):
            for source in node.all_input_nodes:
                yield from _memory(source)


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target is operator.getitem:  # of several results, which are views or not
        return _is_view(node.all_input_nodes[0])
    return bool(getattr(target, "is_view", False))


def _is_changing(node: fx.Node) -> bool:
    """Whether an operation writes into one of its arguments."""
    target: Any = node.target
    return (
        node.op == "call_function"
        and hasattr(target, "_schema")
        and bool(target._schema.is_mutable)
    )

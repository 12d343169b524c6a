"""Split a traced graph into a part that depends on the random draws and one that does not."""

import operator
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph_module import GraphModule

from pyroae.compilation.noise_inputs import is_random

aten = torch.ops.aten


TRANSPOSES = (aten.t.default, aten.permute.default, aten.transpose.int)
"""Operations that change the order of dimensions."""


def split_invariant(
    module: GraphModule, draws: Collection[str], transpose: bool = False
) -> tuple[GraphModule, GraphModule]:
    """Split a graph into two with the same composed result.

        graph(*inputs, *draws) = late(*early(*inputs), *draws)

    Random operations of the graph are treated like the draws. Inputs that the second graph needs
    are passed through the first. Views are repeated in the second graph, so that no output of the
    first is larger than what it computes. Operations that change a tensor in place, and all that
    read it, are in the second graph.

    Args:
        module: The traced graph.
        draws: Names of the inputs that differ between calls, the last ones.
        transpose: Whether the first graph has the transposes of its results, not the second.

    Returns:
        The graph that does not depend on the draws, and the graph that does.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> inputs = torch.ones(2, 2), torch.ones(3, 2), torch.ones(3, 2)
    >>> graph = make_fx(lambda w, x, noise: (x @ w).exp() + noise)(*inputs)
    >>> early, late = split_invariant(graph, ["noise_1"])
    >>> [n.name for n in early.graph.nodes if n.op == "call_function"]
    ['mm', 'exp']
    >>> [n.name for n in late.graph.nodes][-2:]
    ['add', 'output']
    """
    late = _dependent(module.graph, draws)
    nodes = list(module.graph.nodes)
    passed = dict.fromkeys(
        source
        for node in nodes
        if node in late
        for n in node.all_input_nodes
        for source in _sources(n, late, TRANSPOSES if transpose else ())
    )
    first, second = fx.Graph(), fx.Graph()
    in_first: dict[fx.Node, fx.Node] = {}
    in_second: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in late:
            in_first[node] = first.node_copy(node, in_first.__getitem__)
    first.output(tuple(in_first[node] for node in passed))
    first.eliminate_dead_code()
    for node in passed:
        in_second[node] = second.placeholder(node.name)
        in_second[node].meta = dict(node.meta)

    def copied(node: fx.Node) -> fx.Node:
        if node not in in_second:
            in_second[node] = second.node_copy(node, copied)
        return in_second[node]

    for node in nodes:
        if node in late:
            copied(node)
    return GraphModule(module, first), GraphModule(module, second)


def repeat_later(module: GraphModule) -> GraphModule:
    """Repeat a tensor after the elementwise operations on it: log(expand(x)) is expand(log(x)).

    What does not depend on the draws is then neither computed nor stored once per particle. A
    result is repeated as a view, so that its uses have to be elementwise too. Graphs with
    operations in place do not change.

    Args:
        module: The traced graph; it does not change.

    Returns:
        The graph with the same results.

    >>> import torch
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda scale: scale.expand(5, 3).log() * 2)(torch.ones(3))
    >>> [str(n.target) for n in repeat_later(graph).graph.nodes if n.op == "call_function"]
    ['aten.log.default', 'aten.expand.default', 'aten.mul.Tensor']
    """
    if any(map(_is_in_place, module.graph.nodes)):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    expand = torch.ops.aten.expand.default
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if len(inputs) != 1 or inputs[0].target is not expand:
            continue
        if not all(map(_is_elementwise, (node, *node.users))):
            continue
        repeated, value = inputs[0], node.meta["val"]
        base: Any = repeated.args[0]
        target: Any = node.target
        if value.shape != repeated.meta["val"].shape:
            continue
        with graph.inserting_before(node), base.meta["val"].fake_mode:
            small = graph.node_copy(node, {repeated: base}.__getitem__)
            again = graph.call_function(expand, (small, list(value.shape)))
            values = (base.meta["val"] if a is repeated else a for a in node.args)
            small.meta["val"] = target(*values, **node.kwargs)
        again.meta["val"] = value
        node.replace_all_uses_with(again)
    graph.eliminate_dead_code()
    return GraphModule(module, graph)


def _is_elementwise(node: fx.Node) -> bool:
    """Whether an operation computes each element of its result from one of each input."""
    return (
        node.op == "call_function"
        and torch.Tag.pointwise in getattr(node.target, "tags", ())
        and not is_random(node)
        and not _is_in_place(node)
    )


def as_inputs(module: GraphModule, last: int = 0) -> tuple[GraphModule, list[Tensor]]:
    """Replace the constant tensors of a graph by inputs.

    Args:
        module: The graph; it does not change.
        last: The number of last inputs, before which the new ones are.

    Returns:
        The graph, and the tensors in the order of its new inputs.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    constants: list[Tensor] = []
    inputs = graph.find_nodes(op="placeholder")
    place = inputs[-last - 1] if len(inputs) > last else None
    for node in graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target))
        if not isinstance(value, Tensor):
            continue
        with graph.inserting_after(place) if place else graph.inserting_before(inputs[0]):
            place = graph.placeholder(f"constant_{len(constants)}")
        place.meta = dict(node.meta)
        constants.append(value.detach())
        node.replace_all_uses_with(place)
        graph.erase_node(node)
    return GraphModule(module, graph), constants


def _sources(node: fx.Node, late: set[fx.Node], made: tuple[Any, ...]) -> Iterator[fx.Node]:
    """The early nodes that a late one needs for an input: the input, or the base of a view.

    Views by the operations `made` are inputs, not repeated.
    """
    if node in late or node.op == "get_attr":
        return
    if _is_view(node) and node.target not in made:
        for source in node.all_input_nodes:
            yield from _sources(source, late, made)
    else:
        yield node


def _dependent(graph: fx.Graph, draws: Collection[str]) -> set[fx.Node]:
    """Draws, tensors changed in place, all nodes that depend on these, and the output."""
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
        for node in filter(_is_in_place, late.copy()):
            late |= {part for n in node.all_input_nodes for part in _memory(n)}
    return late


def _memory(node: fx.Node) -> Iterator[fx.Node]:
    """A tensor and the base of a view; without inputs, which do not change."""
    if node.op != "placeholder":
        yield node
        if _is_view(node):
            for source in node.all_input_nodes:
                yield from _memory(source)


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    target: Any = node.target
    if target is operator.getitem:  # one of several results, which are views or not
        return _is_view(node.all_input_nodes[0])
    return bool(getattr(target, "is_view", False))


def _is_in_place(node: fx.Node) -> bool:
    """Whether an operation writes into one of its arguments."""
    target: Any = node.target
    return (
        node.op == "call_function"
        and hasattr(target, "_schema")
        and bool(target._schema.is_mutable)
    )

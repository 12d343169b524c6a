"""Compute the gradients of dense layers together with their Adam updates in a traced step.

The rewrite splits `ADAM` in a graph: parameters whose gradient is a product over the batch, used
for nothing else, become a `DENSE_ADAM`, which stores no gradients; the others keep the operations
of `adam`. Import this module only where something is compiled: it imports the compiler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import batched
from typing import Any, cast

import torch
from torch import Tensor
from torch._inductor.lowering import fallback_handler, register_lowering
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule, Node

from pyroae.compilation.adam_operators import ADAM, DENSE_ADAM, adam

aten = torch.ops.aten


PRODUCTS = (aten.mm.default, aten.bmm.default)
"""Products of matrices, one or several."""


SAME = (
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
)
"""Operations that change nothing where they keep the shape."""


LONGEST = 512
"""The longest batch whose sum one program computes; libraries divide longer ones."""


MOST = 16
"""Most layers of one kernel, whose code grows with them."""


@dataclass(frozen=True)
class Update:
    """The update of one parameter.

    Attributes:
        tensors: The parameter, m, v and the gradient.
        left: The left factor of the gradient, `[m, B]`; None without one.
        right: The right factor of the gradient of a weight, `[B, n]`.
        scale: The number that the product is multiplied by.
    """

    tensors: tuple[Node, Node, Node, Node]
    left: Node | None = None
    right: Node | None = None
    scale: float = 1.0


@register_lowering(DENSE_ADAM, type_promotion_kind=None)
def _lowered(parameters: Any, means: Any, squares: Any, *others: Any) -> Any:
    """The call of the operator, after all operations that read a parameter before its update.

    Without this inductor may compute them later, where it has inlined them: it looks for them only
    after it has put the operator in its place.
    """
    for tensor in (*parameters, *means, *squares):
        tensor.realize()
        V.graph.mark_buffer_mutated(tensor.get_name())
    call = fallback_handler(DENSE_ADAM, add_to_fallback_set=False)
    return call(parameters, means, squares, *others)


def fuse_gradients(module: GraphModule) -> None:
    """Rewrite the Adam updates of a traced step.

    Args:
        module: The traced step, changed in place.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=ADAM):
        *lists, numbers = cast(tuple[Any, ...], node.args[:5])
        updates = [Update(tensors) for tensors in zip(*lists, strict=True)]
        with graph.inserting_before(node):
            weights = [_of_weight(graph, each) for each in updates]
            dense = [each for each in weights if each is not None]
            biases = [_of_bias(graph, each, dense) for each in updates]
            for group in batched(dense, MOST):
                own = [b for b in biases if b is not None and b.left in [w.left for w in group]]
                _insert_dense(graph, [*group, *own], (numbers, *node.args[5:]))
            pairs = zip(updates, weights, biases, strict=True)
            rest = [each for each, weight, bias in pairs if weight is None and bias is None]
            if rest:
                _insert_rest(graph, rest, (numbers, *node.args[5:]))
        graph.erase_node(node)
        for each in updates:
            _erase_unused(graph, each.tensors[3])
    module.recompile()


def _of_weight(graph: Graph, update: Update) -> Update | None:
    """The update with the factors of the gradient; None where it is not a product of its own."""
    node, scale, flipped = update.tensors[3], 1.0, False
    while node.target not in PRODUCTS:
        below = _below(node)
        if below is None:
            return None
        node, scale, flipped = below[0], scale * below[1], flipped ^ below[2]
    left, right = cast(tuple[Node, Node], node.args)
    shapes = [each.meta["val"].shape for each in update.tensors]
    is_plain = all(each.meta["val"].is_contiguous() for each in update.tensors[:3]) and all(
        each.meta["val"].dtype == torch.float32 for each in (*update.tensors, left, right)
    )
    short = left.meta["val"].shape[-1] <= LONGEST
    if len(node.users) != 1 or len(set(shapes)) != 1 or not is_plain or not short:
        return None
    if flipped:
        left, right = _transposed(graph, right), _transposed(graph, left)
    return replace(update, left=left, right=right, scale=scale)


def _of_bias(graph: Graph, update: Update, weights: Sequence[Update]) -> Update | None:
    """The update with the left factor of the weight of which it is the bias; None without one."""
    node, scale = update.tensors[3], 1.0
    while node.target is not aten.sum.dim_IntList:
        below = _below(node)
        if below is None or below[2]:
            return None
        node, scale = below[0], scale * below[1]
    terms, (dim, *others) = cast(tuple[Any, Any], node.args[:2])
    shape = terms.meta["val"].shape
    weight = next((w for w in weights if _source(w.left) == (terms, True)), None)
    is_plain = all(
        each.meta["val"].is_contiguous()
        and each.meta["val"].dtype == torch.float32
        and each.meta["val"].shape == (*shape[:-2], shape[-1])
        for each in update.tensors[:3]
    )
    if weight is None or len(node.users) != 1 or others or dim % len(shape) != len(shape) - 2:
        return None
    return replace(update, left=weight.left, scale=scale) if is_plain else None


def _below(node: Node) -> tuple[Node, float, bool] | None:
    """The only operand of a view or of a scaling without other uses; its scale; if transposed."""
    if node.op != "call_function" or len(node.users) != 1 or node.kwargs:
        return None
    operand, number = cast(tuple[Any, Any], (*node.args, None)[:2])
    if node.target in (aten.mul.Tensor, aten.mul.Scalar) and isinstance(number, int | float):
        return operand, number, False
    if node.target in (aten.div.Tensor, aten.div.Scalar) and isinstance(number, int | float):
        return operand, 1 / number, False
    if node.target in (aten.alias.default, aten.detach.default):
        return operand, 1.0, False
    if node.target in (aten.view.default, aten._unsafe_view.default, aten.squeeze.dim):
        shapes = [[size for size in n.meta["val"].shape if size != 1] for n in (node, operand)]
        return (operand, 1.0, False) if shapes[0] == shapes[1] else None
    below = _below_transpose(node)
    return None if below is None else (below, 1.0, True)


def _below_transpose(node: Node) -> Node | None:
    """The operand of a transposition of the last two dimensions."""
    if node.target not in (aten.t.default, aten.transpose.int, aten.permute.default):
        return None
    operand, *order = cast(tuple[Any, ...], node.args)
    count = operand.meta["val"].ndim
    places = list(range(count))
    if node.target is aten.permute.default:
        places = [place % count for place in order[0]]
    elif count > 1:
        first, second = (place % count for place in order or (0, 1))
        places[first], places[second] = places[second], places[first]
    return operand if places == [*range(count - 2), count - 1, count - 2] else None


def _source(node: Node | None) -> tuple[Node | None, bool]:
    """The tensor of which a node is a chain of transpositions; whether their number is odd."""
    is_odd = False
    while node is not None:
        operand = cast(Any, node.args[0]) if node.target in SAME else None
        if operand is None or operand.meta["val"].shape != node.meta["val"].shape:
            operand = _below_transpose(node)
            is_odd ^= operand is not None
        if operand is None:
            break
        node = operand
    return node, is_odd


def _transposed(graph: Graph, node: Node) -> Node:
    result = graph.call_function(aten.transpose.int, (node, -2, -1))
    result.meta["val"] = node.meta["val"].mT
    return result


def _insert_dense(graph: Graph, updates: Sequence[Update], settings: tuple[Any, ...]) -> None:
    columns = zip(*(each.tensors[:3] for each in updates), strict=True)
    parameters, means, squares = (list(column) for column in columns)
    tf32 = torch.get_float32_matmul_precision() != "highest"
    rights = [each.right for each in updates if each.right is not None]
    lefts, scales = [each.left for each in updates], [each.scale for each in updates]
    factors = (lefts, rights, scales, tf32)
    graph.call_function(DENSE_ADAM, (parameters, means, squares, *factors, *settings))


def _insert_rest(graph: Graph, updates: Sequence[Update], settings: tuple[Any, ...]) -> None:
    """Insert the operations of `adam`, which inductor computes by one kernel."""
    from torch.fx.experimental.proxy_tensor import make_fx

    columns = zip(*(each.tensors for each in updates), strict=True)
    nodes = [*(node for column in columns for node in column), settings[0]]

    def function(*tensors: Tensor) -> None:
        count = len(updates)
        lists = (tensors[i * count : (i + 1) * count] for i in range(4))
        adam(*lists, tensors[-1], *settings[1:])  # type: ignore[arg-type,call-arg]

    like = [node.meta["val"] for node in nodes]
    traced = make_fx(function)(
        *[
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta")
            for each in like
        ]
    )
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    graph.graph_copy(traced.graph, dict(zip(inputs, nodes, strict=True)))


def _erase_unused(graph: Graph, node: Node) -> None:
    """Erase a gradient that is not used, and the operations that computed only it."""
    while not node.users and node.op == "call_function":
        below = node.args[0]
        graph.erase_node(node)
        if node.target in PRODUCTS or not isinstance(below, Node):
            return
        node = below

"""Dense layers and the Bernoulli log-density of their outputs, in one pass of a CPU's core.

    s_r = Σ_d log Bernoulli(x_rd | l_rd),   l = b + W a(... a(b' + W' h)),   a = tanh or max(·, 0)

A few rows at a time pass through all layers, transposed, so that a vector holds a number of each:
their logits stay in registers and in the first cache, where a graph writes and reads those of all
rows between its operations.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.graph_module import GraphModule
from torch.nn.functional import binary_cross_entropy_with_logits, pad

aten = torch.ops.aten


SOURCE = Path(__file__).with_name("bernoulli_rows.cpp")
"""The code of the kernel."""


ENTRY = "bernoulli_rows_add"
"""Its function, of the addresses of `_Arguments`, of the rows and of the sums."""


ACTIVATIONS: dict[Any, int] = {None: 0, aten.tanh.default: 1, aten.relu.default: 2}
"""Numbers of the activations that follow a layer."""


RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)
"""Operations that keep the order of elements, where they keep their number."""


PACKED = 8
"""Columns of a weight that are stored together; a layer has a multiple of it, with padding."""


ROWS = 48
"""The most rows that the kernel takes at a time."""


NO_PIXEL = -100.0
"""A logit of the padding, which with x = 0 adds zero."""


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "activation")),
    ]


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_layers", "num_data", "rows", "width")),
    ]


@dataclass(frozen=True)
class Layer:
    """A dense layer of a graph.

    Attributes:
        weight: Index of W `[n, m]` among the inputs of the graph.
        bias: Index of b `[m]`.
        activation: The operation on its outputs, of `ACTIVATIONS`.
    """

    weight: int
    bias: int
    activation: Any = None


@dataclass(frozen=True)
class BernoulliRows:
    """The layers and the log-density of their last outputs.

    Attributes:
        layers: The layers, the first one first.
        data: Index of x among the inputs, N rows of d numbers; row r of h belongs to row r modulo
            N.
    """

    layers: tuple[Layer, ...]
    data: int

    def __call__(self, inputs: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Compute the sums by operations of torch.

        Args:
            inputs: The inputs of the graph.
            rows: h `[R, n]`.

        Returns:
            s `[R]`, in nats.
        """
        for layer in self.layers:
            rows = torch.addmm(inputs[layer.bias], rows, inputs[layer.weight])
            rows = rows if layer.activation is None else layer.activation(rows)
        data = inputs[self.data].reshape(-1, rows.shape[1])
        x = data.repeat(len(rows) // len(data), 1)
        return -binary_cross_entropy_with_logits(rows, x, reduction="none").sum(-1)

    def of(self, inputs: Sequence[Tensor], count: int) -> "RowSums":
        """Prepare the kernel for the inputs of a graph.

        Args:
            inputs: The inputs of the graph.
            count: R, the number of rows of a call.

        Returns:
            What adds the sums; several threads may use it.
        """
        last, data = len(self.layers) - 1, inputs[self.data]
        tensors: list[Tensor] = []
        layers = (_Layer * len(self.layers))()
        for i, layer in enumerate(self.layers):
            weight = inputs[layer.weight]
            packed = _padded(weight, 0.0).unflatten(1, (-1, PACKED)).transpose(0, 1).contiguous()
            bias = _padded(inputs[layer.bias], NO_PIXEL if i == last else 0.0)
            tensors += [packed, bias]
            addresses = packed.data_ptr(), bias.data_ptr()
            layers[i] = _Layer(*addresses, len(weight), len(bias), ACTIVATIONS[layer.activation])
        data = data.reshape(-1, len(inputs[self.layers[last].bias]))
        repeated = torch.arange(len(data) + ROWS, device=data.device) % len(data)
        x = _padded(data, 0.0).t().index_select(1, repeated)
        sizes = len(layers), len(data), count, len(repeated)
        arguments = _Arguments(layers, x.data_ptr(), *sizes)
        return RowSums(self, inputs, arguments, (*tensors, x))


@dataclass(frozen=True)
class RowSums:
    """The sums for the inputs of a graph.

    Attributes:
        sums: The layers and the log-density.
        inputs: The inputs of the graph.
        arguments: The arguments of the kernel.
        tensors: What they refer to.
    """

    sums: BernoulliRows
    inputs: Sequence[Tensor]
    arguments: ctypes.Structure
    tensors: tuple[Tensor, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Compute the sums by operations of torch.

        Args:
            rows: h `[R, n]`.

        Returns:
            s `[R]`, in nats.
        """
        return self.sums(self.inputs, rows)


def without_sum(module: GraphModule) -> tuple[GraphModule, BernoulliRows | None]:
    """Remove the layers before a Bernoulli log-density, and its sum, from log-weights.

    Args:
        module: A graph of inputs and one output, of which the sum is a term.

    Returns:
        The graph of the other terms and of h, the rows `[R, n]` that enter the first layer, and
        what adds the sum; or the graph itself and None, where the sum, in single precision on a
        CPU, is not found.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    graph.eliminate_dead_code()
    output = graph.output_node()
    outputs: Any = output.args[0]
    root: Node = outputs[0]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for total in _terms(root):
        found = _matched(total, inputs)
        if found is None or found[0].meta["val"].shape[0] != _value(root).numel():
            continue
        rows, sums = found
        like = _value(total)
        with graph.inserting_before(total):
            zero = graph.call_function(
                aten.full.default,
                (list(like.shape), 0.0),
                {"dtype": like.dtype, "device": like.device},
            )
        zero.meta["val"] = like
        total.replace_all_uses_with(zero)
        output.args = ((root, rows),)
        graph.eliminate_dead_code()
        return GraphModule(module, graph), sums
    return module, None


def _padded(tensor: Tensor, value: float) -> Tensor:
    """A tensor whose last dimension is a multiple of `PACKED`."""
    return pad(tensor, [0, -tensor.shape[-1] % PACKED], value=value).contiguous()


def _terms(node: Node) -> Iterator[Node]:
    """The sums over dimensions that a value adds, each used there only."""
    if node.op != "call_function" or len(node.users) != 1:
        return
    if node.target is aten.sum.dim_IntList:
        yield node
        return
    operands: tuple[Any, ...] = ()
    if node.target in RESHAPES:
        operands = node.args[:1]
    elif not node.kwargs and node.target in (aten.add.Tensor, aten.sub.Tensor):
        operands = node.args if node.target is aten.add.Tensor else node.args[:1]
    for operand in operands:
        if isinstance(operand, Node) and _value(operand).numel() == _value(node).numel():
            yield from _terms(operand)


def _matched(total: Node, inputs: list[Node]) -> tuple[Node, BernoulliRows] | None:
    """The rows that enter the first layer of a Bernoulli log-density, and what sums it."""
    terms, dims, *rest = total.args
    negative = _single(terms)
    if rest or total.kwargs or negative is None or negative.target is not aten.neg.default:
        return None
    entropy = _single(negative.args[0])
    if entropy is None or entropy.target is not aten.binary_cross_entropy_with_logits.default:
        return None
    logits, x, *options = entropy.args
    last, data = _single(logits), _data(x)
    if options != [None, None, 0] or last is None or data is None or data not in inputs:
        return None
    layers, rows = _layers(last, inputs)
    size = _summed(_value(terms).shape, dims)
    if not layers or size != _value(last).shape[1] or _value(data).numel() % size:
        return None
    return rows, BernoulliRows(tuple(reversed(layers)), inputs.index(data))


def _summed(shape: torch.Size, dims: Any) -> int:
    """The number of terms of each sum; 0 if these are not the last dimensions."""
    last = len(shape) - len(dims)
    is_last = sorted(d % len(shape) for d in dims) == list(range(last, len(shape)))
    return prod(shape[last:]) if is_last and dims else 0


def _layers(last: Node, inputs: list[Node]) -> tuple[list[Layer], Node]:
    """The layers up to one, the last one first, and the rows that enter the first."""
    layers: list[Layer] = []
    node: Node | None = last
    rows, activation = last, None
    while node is not None and (layer := _layer(node, inputs, activation)) is not None:
        layers.append(layer)
        rows = node.args[1]  # type: ignore[assignment]
        below, node = _single(rows), None
        if below is not None and below.target in ACTIVATIONS:
            activation, node = below.target, _single(below.args[0])
            if node is not None and _value(node).shape != _value(rows).shape:
                node = None
    return layers, rows


def _layer(node: Node, inputs: list[Node], activation: Any) -> Layer | None:
    """A layer b + h W in single precision, whose weights are inputs."""
    if node.target is not aten.addmm.default or node.kwargs:
        return None
    bias: Any = node.args[0]
    weight: Any = node.args[2]
    if bias not in inputs or weight not in inputs:
        return None
    b, w = _value(bias), _value(weight)
    is_plain = all(_is_single(t) and t.is_contiguous() for t in (b, w, _value(node)))
    if not is_plain or b.shape != w.shape[1:]:
        return None
    return Layer(inputs.index(weight), inputs.index(bias), activation)


def _data(node: Any) -> Node | None:
    """The data, of which one copy for each particle follows the other."""
    shape = _value(node).shape
    while isinstance(node, Node) and node.target in RESHAPES:
        node = node.args[0]
        before = list(_value(node).shape)
        while before[:1] == [1]:
            del before[0]
        if list(shape[len(shape) - len(before) :]) != before:
            return None
    is_plain = _is_single(_value(node)) and _value(node).is_contiguous()
    return node if is_plain else None


def _single(node: Any) -> Node | None:
    """The operation behind reshapes, where it and they have one use each."""
    while isinstance(node, Node) and len(node.users) == 1:
        if node.target not in RESHAPES:
            return node if node.op == "call_function" else None
        if _value(node).numel() != _value(node.args[0]).numel():
            return None
        node = node.args[0]
    return None


def _is_single(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value
